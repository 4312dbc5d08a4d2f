//! What a person may ask for by law (GDPR, articles 15 to 18). A request is filed; an operator's process carries it out.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts::RequestFacts;
use crate::json::Json;
use crate::label::labels;
use crate::malformed::Malformed;
use crate::value::{NonEmptyList, Text};

labels! {
    /// What becomes of requests while a person is restricted.
    Meanwhile {
        /// They are retried until the restriction is lifted, for about a day and a half.
        Wait = "wait",
        /// They become dead letters.
        Refuse = "refuse",
    }
}

/// Why a person asks, such as the date of the letter.
pub type PrivacyReason = Text<1, 2048>;

/// Requests an export of all that is stored of the user, encrypted for the holder of a key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrivacyAccess {
    /// The public key of age, `age1...`, of whoever can open the export. The person creates the pair with `age-keygen`.
    pub recipient: Text<1, 128>,
    /// Why. Absent: no reason is kept.
    #[serde(default)]
    pub reason: Option<PrivacyReason>,
}

/// Requests that wrong data of the user are corrected. An operator looks at it and decides.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrivacyRectify {
    /// What is wrong, and what is right.
    pub corrections: NonEmptyList<Correction, 100>,
    /// Why, such as what the person has written.
    pub reason: PrivacyReason,
}

/// A value of the user that is wrong.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Correction {
    /// The table.
    pub table: Text<1, 63>,
    /// The id of the row. Absent: the only row of the user, in `users` and `user_profiles`.
    #[serde(default)]
    pub row: Option<Uuid>,
    /// The column.
    pub column: Text<1, 63>,
    /// The value that is right. `null` removes it.
    pub value: Json,
    /// The value that is wrong. Nothing is corrected if another one is stored. Absent: whatever is stored is corrected.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::present")]
    pub was: Option<Json>,
}

/// Requests that the data of the user are kept and not processed until an operator lifts the restriction.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrivacyRestrict {
    /// What becomes of requests of the user meanwhile. Absent: refuse, or as before if the user is restricted already.
    #[serde(default, rename = "while")]
    pub meanwhile: Option<Meanwhile>,
    /// Why. Absent: no reason is kept.
    #[serde(default)]
    pub reason: Option<PrivacyReason>,
}

/// Requests that the user is erased, and what the rows count is added to sums over all anonymised users.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrivacyAnonymise {
    /// Why. It is erased with the data of the user.
    pub reason: PrivacyReason,
}

/// Requests that everything of the user is deleted from all stores. The id is refused from then on.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrivacyErase {
    /// Why. It is erased with the data of the user.
    pub reason: PrivacyReason,
}

/// Whether a text has the form of a public key of age. Whoever exports checks the key itself.
fn check_recipient(recipient: &str) -> Result<(), Malformed> {
    let wrong = |problem: &str| Err(Malformed::new("recipient", problem));
    if recipient.to_ascii_uppercase().contains("AGE-SECRET-KEY-") {
        return wrong(
            "is a private key, and must stay with the person; give the public key, age1..., of a new pair",
        );
    }
    let is_form = |rest: &str| {
        rest.len() == 58 && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    match recipient.strip_prefix("age1") {
        Some(rest) if is_form(rest) => Ok(()),
        Some(_) | None => {
            wrong("is not a public key of age; `age-keygen` prints one: age1 and 58 letters and digits")
        }
    }
}

impl RequestFacts for PrivacyAccess {
    fn check(&self) -> Result<(), Malformed> {
        check_recipient(self.recipient.as_str())
    }
}

impl RequestFacts for PrivacyRectify {
    fn event_payload(&self) -> Option<String> {
        #[derive(Serialize)]
        struct Place<'a> {
            table: &'a str,
            row: Option<Uuid>,
            column: &'a str,
        }
        let corrections = self.corrections.as_slice().iter();
        let places: Vec<Place<'_>> = corrections
            .map(|one| Place { table: one.table.as_str(), row: one.row, column: one.column.as_str() })
            .collect();
        // Subscribers learn what is disputed, and no value.
        Some(serde_json::json!({ "corrections": places, "reason": self.reason }).to_string())
    }
}

impl RequestFacts for PrivacyRestrict {}

impl RequestFacts for PrivacyAnonymise {
    fn unchanged_reason(&self) -> &'static str {
        REMOVAL_IS_OPEN
    }
}

impl RequestFacts for PrivacyErase {
    fn unchanged_reason(&self) -> &'static str {
        REMOVAL_IS_OPEN
    }
}

const REMOVAL_IS_OPEN: &str = "an erasure or anonymisation of the user is already requested";

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const KEY: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

    #[test]
    fn an_export_is_for_a_public_key_and_for_nothing_else() {
        let check = |recipient: &str| {
            let access: PrivacyAccess =
                serde_json::from_value(serde_json::json!({ "recipient": recipient })).unwrap();
            access.check().map_err(|malformed| malformed.to_string())
        };
        assert_eq!(check(KEY), Ok(()));
        let private = format!("AGE-SECRET-KEY-1{}", "Q".repeat(58));
        let refused = check(&private).unwrap_err();
        assert!(refused.starts_with("recipient: is a private key") && !refused.contains("QQQ"), "{refused}");
        for wrong in ["a passphrase of mine", "age1", &KEY[..61], &KEY.to_uppercase(), "ssh-ed25519 AAAA"] {
            assert!(check(wrong).unwrap_err().contains("is not a public key of age"), "{wrong}");
        }
    }

    #[test]
    fn a_passphrase_is_no_field_of_an_export() {
        let body = r#"{"recipient":"age1","passphrase":"correct horse battery"}"#;
        let error = serde_json::from_str::<PrivacyAccess>(body).unwrap_err().to_string();
        assert!(error.contains("unknown field `passphrase`"), "{error}");
    }

    #[test]
    fn the_event_of_a_rectification_has_no_value() {
        let body = r#"{"corrections":[{"table":"users","column":"email","value":"right@example.org","was":"wrong@example.org"}],
            "reason":"letter of 3 May"}"#;
        let rectify: PrivacyRectify = serde_json::from_str(body).unwrap();
        let payload = rectify.event_payload().unwrap();
        assert!(!payload.contains("example.org"), "{payload}");
        let expected = serde_json::json!({
            "corrections": [{ "table": "users", "row": null, "column": "email" }], "reason": "letter of 3 May"
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&payload).unwrap(), expected);
    }

    #[test]
    fn a_rectification_names_one_to_a_hundred_values() {
        let correction = r#"{"table":"users","column":"email","value":null}"#;
        let read = |count: usize| {
            let corrections = vec![correction; count].join(",");
            serde_json::from_str::<PrivacyRectify>(&format!(
                r#"{{"corrections":[{corrections}],"reason":"r"}}"#
            ))
        };
        assert!(read(1).is_ok() && read(100).is_ok());
        assert!(read(0).is_err() && read(101).is_err());
    }
}
