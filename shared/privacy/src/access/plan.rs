//! What is exported of each table of the catalogue, and what is left out of it.

use crate::catalogue::{Entry, Erase, Owner, TABLES};
use crate::rows;

/// A column that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// What is exported of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The rows of the person, without these columns.
    Rows(&'static [Column]),
    /// Nothing, as it has no rows of persons. What it has instead.
    LeftOut(&'static str),
}

const DIGEST_KEY: Column = Column {
    name: "digest_key",
    reason: "a key of the deployment: with it, a row of the audit trail could be forged to look like another one",
};
const WRAPPED: Column =
    Column { name: "wrapped", reason: "a wrapped key; the fields that it encrypts are exported in clear" };
const KEK: Column = Column { name: "kek", reason: "the name of a key of the deployment" };
const CIPHERTEXT: Column = Column { name: "ciphertext", reason: "exported in clear, as value" };
const NOT_REMOVED: Column =
    Column { name: "not_removed", reason: "ids of rows, which may be those of other users" };
const POLICIES: Column =
    Column { name: "policies", reason: "ids of retention policies, which may be those of other users" };

/// Why what authenticates a person is not exported: an export may be intercepted, or asked for by somebody else in the person's name.
pub(super) const CREDENTIAL: &str = "whoever has it could act as the person";
const PASSWORD_HASH: Column = Column { name: "password_hash", reason: CREDENTIAL };
const SECRET_KEY: Column = Column { name: "secret_key", reason: CREDENTIAL };
const BACKUP_CODES: Column = Column { name: "backup_codes", reason: CREDENTIAL };

/// What is exported of a table of the catalogue.
///
/// Every entry has a plan: a table with rows of persons is exported as soon as it is in the catalogue. Of columns with the ids of several users,
/// that of the person alone is exported.
#[must_use]
pub fn plan(entry: &Entry) -> Plan {
    match (entry.owner, entry.erase) {
        (Owner::Nobody(_), Erase::Kept(what)) => Plan::LeftOut(what),
        (Owner::Nobody(what), _) => Plan::LeftOut(what),
        (Owner::Column(_) | Owner::Arrays(_) | Owner::Through { .. } | Owner::Token, _) => {
            Plan::Rows(left_out_columns(entry))
        }
    }
}

fn left_out_columns(entry: &Entry) -> &'static [Column] {
    match (entry.schema, entry.table) {
        ("public", "users") => &[PASSWORD_HASH],
        ("public", "user_two_factor_auth") => &[SECRET_KEY, BACKUP_CODES],
        ("audit", "subjects") => &[DIGEST_KEY],
        ("public", "data_keys") => &[WRAPPED, KEK],
        ("public", "encrypted_fields") => &[CIPHERTEXT],
        ("public", "archives") => &[NOT_REMOVED, POLICIES],
        _ => &[],
    }
}

/// Whether an encrypted field of a table of the schema `public` is left out where the field itself is.
pub(super) fn is_left_out(table: &str, column: &str) -> bool {
    let entry = TABLES.iter().find(|entry| entry.schema == "public" && entry.table == table);
    entry.is_some_and(|entry| left_out_columns(entry).iter().any(|one| one.name == column))
}

/// Which rows `t` of a table are of the user `$1`. None for a table that has rows of nobody.
pub(super) fn condition(owner: Owner) -> Option<String> {
    match owner {
        Owner::Token => {
            let token = "SELECT s.token FROM audit.subjects s WHERE s.user_id = $1";
            Some(format!("t.subject_token = ({token})"))
        }
        Owner::Column(_) | Owner::Arrays(_) | Owner::Through { .. } | Owner::Nobody(_) => {
            rows::condition(owner)
        }
    }
}

/// What replaces columns of a row in its JSON object, as an SQL expression: of arrays with the ids of users, that of the user `$1` alone is left.
pub(super) fn replaced(owner: Owner) -> String {
    match owner {
        Owner::Arrays(columns) => {
            let only = |column: &&str| {
                format!(
                    "'{column}', CASE WHEN t.{column} @> ARRAY[$1] THEN jsonb_build_array($1) ELSE '[]'::jsonb END"
                )
            };
            format!("jsonb_build_object({})", columns.iter().map(only).collect::<Vec<_>>().join(", "))
        }
        Owner::Column(_) | Owner::Through { .. } | Owner::Token | Owner::Nobody(_) => {
            "'{}'::jsonb".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::KEY_STORE_TABLES;

    #[test]
    fn every_table_is_exported_or_left_out_with_a_reason() {
        for entry in TABLES.iter().chain(KEY_STORE_TABLES) {
            match plan(entry) {
                Plan::Rows(columns) => {
                    assert!(condition(entry.owner).is_some_and(|of| of.contains("$1")), "{}", entry.name());
                    assert!(columns.iter().all(|column| !column.reason.is_empty()), "{}", entry.name());
                }
                Plan::LeftOut(reason) => {
                    assert!(!reason.is_empty(), "{}", entry.name());
                    assert!(matches!(entry.owner, Owner::Nobody(_)), "{}", entry.name());
                }
            }
        }
    }

    #[test]
    fn what_authenticates_the_person_is_left_out_encrypted_or_not() {
        assert!(is_left_out("users", "password_hash") && is_left_out("user_two_factor_auth", "backup_codes"));
        assert!(!is_left_out("users", "email") && !is_left_out("unknown", "password_hash"));
    }

    #[test]
    fn of_arrays_only_the_person_is_left() {
        let replaced = replaced(Owner::Arrays(&["users", "earlier"]));
        assert!(replaced.contains("'users', CASE WHEN t.users @> ARRAY[$1]"), "{replaced}");
        assert!(replaced.contains("'earlier', CASE"), "{replaced}");
    }
}
