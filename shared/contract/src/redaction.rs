//! Values that are stored encrypted only: every [`Secret`](crate::Secret), and the values of a request marked
//! `sensitive`.

use secrecy::SecretString;

use crate::json::{Json, JsonObject};
use crate::value::{List, Secret, Text};

/// The marker that replaces an encrypted value in its table, in events and wherever else the request is written. An
/// object is replaced by `{"$encrypted": true}`, a list by `["$encrypted"]`.
pub const ENCRYPTED: &str = "$encrypted";

/// A value that was removed from a request.
#[derive(Clone, Debug)]
pub struct SecretField {
    /// The field that held it.
    pub field: &'static str,
    /// The value: a string unchanged, anything else as JSON.
    pub value: SecretString,
}

/// The values that were removed from a request.
#[derive(Debug, Default)]
pub struct SecretFields(Vec<SecretField>);

impl SecretFields {
    /// Moves the value of a field to this list and leaves [`ENCRYPTED`] in its place.
    pub(crate) fn take(&mut self, field: &'static str, from: &mut impl Redact) {
        self.0.push(SecretField { field, value: from.redact() });
    }

    /// The same for a field that may be absent.
    pub(crate) fn take_some(&mut self, field: &'static str, from: &mut Option<impl Redact>) {
        if let Some(from) = from {
            self.take(field, from);
        }
    }

    /// The removed values.
    pub fn into_vec(self) -> Vec<SecretField> {
        self.0
    }
}

/// A value that can be replaced by a marker.
pub(crate) trait Redact {
    /// Replaces the value by the marker and returns it.
    fn redact(&mut self) -> SecretString;
}

impl Redact for Secret {
    fn redact(&mut self) -> SecretString {
        std::mem::replace(&mut self.0, ENCRYPTED.into())
    }
}

impl<const MIN: usize, const MAX: usize> Redact for Text<MIN, MAX> {
    fn redact(&mut self) -> SecretString {
        std::mem::replace(&mut self.0, ENCRYPTED.to_owned()).into()
    }
}

impl Redact for Json {
    fn redact(&mut self) -> SecretString {
        let text: Box<str> = std::mem::replace(&mut self.0, raw(&ENCRYPTED)).into();
        text.into()
    }
}

impl Redact for JsonObject {
    fn redact(&mut self) -> SecretString {
        let marker = Self(Json(raw(&serde_json::json!({ (ENCRYPTED): true }))));
        std::mem::replace(self, marker).0.redact()
    }
}

impl<const MIN: usize, const LONG: usize, const MAX: usize> Redact for List<Text<MIN, LONG>, MAX> {
    fn redact(&mut self) -> SecretString {
        as_json(&std::mem::replace(&mut self.0, vec![Text(ENCRYPTED.to_owned())]))
    }
}

impl<const MAX: usize> Redact for List<Secret, MAX> {
    fn redact(&mut self) -> SecretString {
        as_json(&std::mem::replace(&mut self.0, vec![Secret(ENCRYPTED.into())]))
    }
}

fn as_json<T: serde::Serialize>(list: &[T]) -> SecretString {
    // A list of strings can always be serialized.
    serde_json::to_string(list).unwrap_or_default().into()
}

fn raw<T: serde::Serialize>(value: &T) -> Box<serde_json::value::RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| serde_json::value::RawValue::NULL.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;
    use crate::Request;

    fn redacted(mut request: Request) -> (Request, Vec<SecretField>) {
        let mut taken = SecretFields::default();
        request.facts_mut().redact(&mut taken);
        (request, taken.into_vec())
    }

    fn redact(noun_verb: &str, body: serde_json::Value) -> (String, Vec<(&'static str, String)>) {
        let subject = format!("memory.req.test.{noun_verb}.1").parse().unwrap();
        let (request, taken) = redacted(Request::decode(&subject, body.to_string().as_bytes()).unwrap());
        let show = |one: &SecretField| (one.field, one.value.expose_secret().to_owned());
        (serde_json::to_string(&request).unwrap(), taken.iter().map(show).collect())
    }

    #[test]
    fn only_sensitive_values_are_removed() {
        let id = "0193d5a0-0000-7000-8000-000000000001";
        let cases = [
            (
                "user.put",
                r#"{"username":"u","email":"a@b","password_hash":"hush"}"#,
                r#"{"username":"u","email":"a@b"}"#,
            ),
            ("second-factor.put", r#"{"method":"totp","secret_key":"hush","backup_codes":["hush1"]}"#, ""),
            ("passkey.put", r#"{"credential_id":"c","public_key":"hush"}"#, ""),
            ("setting.put", r#"{"setting_key":"k","setting_value":{"a":"hush"}}"#, "sensitive"),
            (
                "context.put",
                r#"{"session_id":"s","context_key":"k","version":1,"context_value":["hush"]}"#,
                "sensitive",
            ),
            (
                "agent-context.put",
                r#"{"agent_id":"a","session_id":"s","memory_tier":"private","context_key":"k","version":1,"context_value":"hush"}"#,
                "sensitive",
            ),
            (
                "conversation.put",
                r#"{"conversation_id":"c","summary":"hush","metadata":{"a":"hush"}}"#,
                "sensitive",
            ),
            (
                "message.add",
                r#"{"message_id":"ID","conversation_id":"c","role":"user","content":"hush"}"#,
                "sensitive",
            ),
            ("summary.put", r#"{"session_id":"s","summary":"hush","key_topics":["hush"]}"#, "sensitive"),
            ("feedback.put", r#"{"message_id":"ID","feedback_type":"report","comment":"hush"}"#, "sensitive"),
            (
                "decision.log",
                r#"{"decision_id":"ID","session_id":"s","user_request":"hush","routing_decision":1,"error_details":{"a":"hush"}}"#,
                "sensitive",
            ),
        ];
        for (noun_verb, body, without) in cases {
            let mut body: serde_json::Value = serde_json::from_str(&body.replace("ID", id)).unwrap();
            if without == "sensitive" {
                let (plain, taken) = redact(noun_verb, body.clone());
                assert!(plain.contains("hush") && taken.is_empty(), "{noun_verb}: {plain}");
                body["sensitive"] = true.into();
            }
            let (redacted, taken) = redact(noun_verb, body.clone());
            assert!(!redacted.contains("hush") && redacted.contains(ENCRYPTED), "{noun_verb}: {redacted}");
            assert!(!taken.is_empty());
            for (field, value) in taken {
                let given = &body[field];
                let text = given
                    .as_str()
                    .filter(|_| !matches!(field, "context_value" | "setting_value" | "error_details"));
                assert_eq!(
                    value,
                    text.map_or_else(|| given.to_string(), str::to_owned),
                    "{noun_verb}.{field}"
                );
            }
            if without.starts_with('{') {
                assert!(redact(noun_verb, serde_json::from_str(without).unwrap()).1.is_empty());
            }
        }
    }

    #[test]
    fn debug_output_contains_no_secret() {
        let subject = "memory.req.test.passkey.put.1".parse().unwrap();
        let request = Request::decode(&subject, br#"{"credential_id":"c","public_key":"hush"}"#).unwrap();
        assert!(!format!("{request:?}").contains("hush"));
        assert!(!format!("{:?}", redacted(request)).contains("hush"));
    }
}
