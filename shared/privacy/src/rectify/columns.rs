//! What can be rectified, and what corrects everything else.

use contract::{Correction, limit};
use serde_json::Value;

use crate::catalogue::{Erase, TABLES};
use crate::error::PrivacyError;

/// A table of which some columns can be rectified.
#[derive(Debug)]
pub struct Table {
    /// Its name, in the schema `public`.
    pub name: &'static str,
    /// The columns.
    pub columns: &'static [Column],
    /// How a row of a person is found.
    pub(super) rows: Rows,
    /// The request by which the platform's own records come again.
    pub request: &'static str,
}

/// How a row of a person is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// The person is the row.
    Person,
    /// A person has one row.
    One,
    /// A person has any number of rows, with the ids in the column `id`. Those for which the condition does not hold have been removed.
    Many(&'static str),
}

/// A column that can be rectified.
#[derive(Debug)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What it may have.
    pub(super) holds: Holds,
}

/// What a column may have: as the request that writes it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Holds {
    /// A text of so many characters.
    Text(usize, usize),
    /// The same, or nothing.
    TextOrNothing(usize, usize),
    /// A number, or nothing.
    NumberOrNothing(i64, i64),
    /// An object.
    Object,
}

const fn text(name: &'static str, least: usize, most: usize) -> Column {
    Column { name, holds: Holds::Text(least, most) }
}

const fn optional(name: &'static str, least: usize, most: usize) -> Column {
    Column { name, holds: Holds::TextOrNothing(least, most) }
}

/// Facts about the person that no journal replays, and of which no version is kept. Everything else is corrected by the request that writes it.
pub static RECTIFIABLE: &[Table] = &[
    Table {
        name: "users",
        columns: &[text("username", 1, limit::NAME_CHARS), text("email", 3, 320)],
        rows: Rows::Person,
        request: "user.put",
    },
    Table {
        name: "user_profiles",
        columns: &[
            optional("first_name", 0, limit::NAME_CHARS),
            optional("last_name", 0, limit::NAME_CHARS),
            optional("timezone", 1, 64),
            Column { name: "preferences", holds: Holds::Object },
        ],
        rows: Rows::One,
        request: "profile.put",
    },
    Table {
        name: "registered_devices",
        columns: &[text("device_name", 1, limit::NAME_CHARS)],
        rows: Rows::Many("t.removed_at IS NULL"),
        request: "device.put",
    },
    Table {
        name: "passkey_credentials",
        columns: &[optional("passkey_name", 1, limit::NAME_CHARS)],
        rows: Rows::Many("t.removed_at IS NULL"),
        request: "passkey.put",
    },
    Table {
        name: "message_feedback",
        columns: &[
            optional("comment", 1, 8_192),
            Column { name: "rating", holds: Holds::NumberOrNothing(-5, 5) },
        ],
        rows: Rows::Many("true"),
        request: "feedback.put",
    },
];

/// What corrects rows of the other tables of a person.
const CORRECTED_BY: &[(&str, &str)] = &[
    ("system_settings", "`setting.put`"),
    ("simple_chat_context", "`context.put` with a higher version"),
    ("agent_context_states", "`agent-context.put` with a higher version"),
    ("chat_mode_sessions", "`session.open`"),
    ("chat_history", "`conversation.put`"),
    ("chat_session_summary", "`summary.put`"),
    ("user_two_factor_auth", "`second-factor.put`"),
    ("unified_memory_vectors", "`vector.index`, which also computes the vectors anew"),
    ("agent_configurations", "`agent.configure`"),
    ("agent_profiles", "`agent.profile`"),
    ("consensus_memory_nodes", "`knowledge.propose` and `verdict.give`"),
    ("consensus_memory_relations", "`relation.put`"),
    ("data_retention_policies", "`policy.put`"),
    ("retention_holds", "`policy.hold`"),
    (
        "encrypted_fields",
        "the request that has put the value: an encrypted value must be put again by its service",
    ),
];

/// The table and the column that a correction is about.
///
/// # Errors
/// [`PrivacyError::Refused`] if it is none of [`RECTIFIABLE`]. The message says what corrects it.
pub(super) fn find(correction: &Correction) -> Result<(&'static Table, &'static Column), PrivacyError> {
    let (table, column) = (correction.table.as_str(), correction.column.as_str());
    let Some(found) = RECTIFIABLE.iter().find(|one| one.name == table) else {
        return Err(PrivacyError::Refused(other_table(table)));
    };
    let Some(known) = found.columns.iter().find(|one| one.name == column) else {
        let names: Vec<&str> = found.columns.iter().map(|one| one.name).collect();
        return Err(PrivacyError::Refused(format!(
            "{table}.{} cannot be rectified; of {table} these can be: {}. `{}` replaces the others; an encrypted value must be put again by its service",
            contract::printable_within(column, 63),
            names.join(", "),
            found.request
        )));
    };
    Ok((found, known))
}

fn other_table(table: &str) -> String {
    if let Some((_, by)) = CORRECTED_BY.iter().find(|(name, _)| *name == table) {
        return format!(
            "rows of {table} are not rectified by an operator, since services, journals or other stores would bring the old value back; {by} corrects \
             them"
        );
    }
    let is_of_persons = TABLES.iter().any(|entry| {
        entry.schema == "public" && entry.table == table && !matches!(entry.erase, Erase::Kept(_))
    });
    if is_of_persons {
        return format!(
            "rows of {table} record what has happened, and are not rectified; a request of the service adds what is right, and an erasure deletes them"
        );
    }
    let names: Vec<&str> = RECTIFIABLE.iter().map(|one| one.name).collect();
    format!(
        "{} is no table with data of a person that can be rectified; these are: {}",
        contract::printable_within(table, 63),
        names.join(", ")
    )
}

impl Holds {
    /// Whether the column may have a value.
    ///
    /// # Errors
    /// What is wrong with it, without the value.
    pub(super) fn check(self, value: &Value) -> Result<(), String> {
        let is_nothing = value.is_null();
        let length = value.as_str().map(|text| text.chars().count());
        match self {
            Self::Text(least, most) => match length {
                Some(length) if (least..=most).contains(&length) => Ok(()),
                Some(_) | None => Err(format!("must be a text of {least} to {most} characters")),
            },
            Self::TextOrNothing(least, most) => match length {
                Some(length) if (least..=most).contains(&length) => Ok(()),
                None if is_nothing => Ok(()),
                Some(_) | None => Err(format!("must be null, or a text of {least} to {most} characters")),
            },
            Self::NumberOrNothing(least, most) => match value.as_i64() {
                Some(number) if (least..=most).contains(&number) => Ok(()),
                None if is_nothing => Ok(()),
                Some(_) | None => Err(format!("must be null, or a whole number from {least} to {most}")),
            },
            Self::Object if value.is_object() => Ok(()),
            Self::Object => Err("must be an object".to_owned()),
        }
    }

    /// The value of the column, from the parameter `$4`, which is JSON.
    pub(super) fn of_json(self) -> &'static str {
        match self {
            Self::Text(..) | Self::TextOrNothing(..) => "($4::jsonb #>> '{}')",
            Self::NumberOrNothing(..) => "($4::jsonb #>> '{}')::integer",
            Self::Object => "$4::jsonb",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(table: &str, column: &str) -> Result<(), String> {
        let body = serde_json::json!({ "table": table, "column": column, "value": null });
        let correction: Correction = serde_json::from_value(body).map_err(|error| error.to_string())?;
        find(&correction).map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_cannot_be_rectified_is_refused_with_what_corrects_it() {
        assert_eq!(found("users", "email"), Ok(()));
        for (table, column, says) in [
            ("users", "password_hash", "an encrypted value must be put again by its service"),
            ("users", "role", "of users these can be: username, email"),
            ("users", "id = 1; --", "cannot be rectified"),
            ("simple_chat_context", "context_value", "`context.put` with a higher version corrects them"),
            ("encrypted_fields", "ciphertext", "must be put again by its service"),
            ("chat_messages", "content", "record what has happened"),
            ("archives", "location", "record what has happened"),
            ("job_runs", "details", "no table with data of a person"),
            ("pg_authid", "rolname", "no table with data of a person"),
        ] {
            let said = found(table, column);
            assert!(said.as_ref().is_err_and(|said| said.contains(says)), "{table}.{column}: {said:?}");
        }
    }

    #[test]
    fn every_table_of_a_person_is_known() {
        let known = |table: &str| {
            RECTIFIABLE.iter().any(|one| one.name == table)
                || CORRECTED_BY.iter().any(|(name, _)| *name == table)
        };
        for name in CORRECTED_BY.iter().map(|(name, _)| *name).chain(RECTIFIABLE.iter().map(|one| one.name)) {
            let is_there = TABLES.iter().any(|entry| entry.schema == "public" && entry.table == name);
            assert!(is_there && known(name), "{name} is no table");
        }
    }

    #[test]
    fn a_column_takes_what_its_request_would() {
        let check = |holds: Holds, value: Value| holds.check(&value).is_ok();
        assert!(check(Holds::Text(1, 3), "äöü".into()));
        for wrong in [Value::Null, "".into(), "abcd".into(), 1.into(), serde_json::json!(["a"])] {
            assert!(!check(Holds::Text(1, 3), wrong.clone()), "{wrong}");
        }
        assert!(
            check(Holds::TextOrNothing(0, 3), Value::Null) && check(Holds::TextOrNothing(0, 3), "".into())
        );
        assert!(!check(Holds::TextOrNothing(1, 3), "".into()));
        let rating = Holds::NumberOrNothing(-5, 5);
        assert!(check(rating, (-5).into()) && check(rating, 5.into()) && check(rating, Value::Null));
        assert!(!check(rating, 6.into()) && !check(rating, 1.5.into()) && !check(rating, "1".into()));
        assert!(check(Holds::Object, serde_json::json!({})) && !check(Holds::Object, Value::Null));
    }
}
