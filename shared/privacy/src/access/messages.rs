//! The messages of the person in the streams: requests, events, and dead letters.

use std::ops::ControlFlow;

use async_nats::jetstream::{self, Message};
use async_nats::{HeaderMap, HeaderValue};
use chrono::{DateTime, SecondsFormat};
use contract::{UserId, header};
use data_encoding::BASE64;
use serde_json::{Map, Value, json};

use super::database::to_line;
use super::plan::CREDENTIAL;
use super::sink::Sink;
use crate::error::PrivacyError;
use crate::streams::{self, Read};

/// The store in the index.
const NATS: &str = "nats";

/// Exports the messages of a person from all streams.
pub(super) async fn export(
    jetstream: &jetstream::Context,
    user: UserId,
    sink: &mut Sink,
) -> Result<(), PrivacyError> {
    let end = format!(".{user}");
    for name in streams::names() {
        let stream = streams::open(jetstream, name).await?;
        sink.begin(NATS, name, &format!("{NATS}/{name}.jsonl"))?;
        for (subject, by_header) in streams::filters(name, user) {
            let each = |sequence: u64, message: Message| {
                let of = message.headers.as_ref().and_then(|all| all.get(header::DEAD_SUBJECT));
                if by_header && !of.is_some_and(|of| of.as_str().ends_with(&end)) {
                    return Ok(ControlFlow::Continue(()));
                }
                sink.line(&to_line(&value(sequence, &message))?)?;
                Ok(ControlFlow::Continue(()))
            };
            // It never has enough.
            let _ = streams::scan_messages(&stream, &subject, Read::Bodies, each).await?;
        }
        sink.end()?;
        let token = "a service token, which is a secret of the service";
        sink.leave_out(NATS, name, Some(header::AUTHORIZATION), token);
        sink.leave_out(NATS, name, Some("bodies of user.put and second-factor.put"), CREDENTIAL);
    }
    Ok(())
}

fn value(sequence: u64, message: &Message) -> Value {
    let mut value = json!({
        "sequence": sequence,
        "subject": message.subject.as_str(),
        "stored_at": stored_at(message),
        "headers": message.headers.as_ref().map(headers).unwrap_or_default(),
    });
    let dead =
        message.headers.as_ref().and_then(|all| all.get(header::DEAD_SUBJECT)).map(HeaderValue::as_str);
    let (name, body) = match std::str::from_utf8(&message.payload) {
        _ if has_credential(&message.subject) || dead.is_some_and(has_credential) => {
            ("left_out", CREDENTIAL.to_owned())
        }
        Ok(text) => ("body", text.to_owned()),
        Err(_) => ("body_base64", BASE64.encode(&message.payload)),
    };
    if let Some(fields) = value.as_object_mut() {
        fields.insert(name.to_owned(), body.into());
    }
    value
}

/// Whether the request of this subject may have what authenticates the person: `user.put` a password hash, `second-factor.put` a secret.
fn has_credential(subject: &str) -> bool {
    let mut tokens = subject.split('.');
    tokens.next() == Some("memory")
        && tokens.next() == Some("req")
        && tokens.nth(1).is_some_and(|noun| ["user", "second-factor"].contains(&noun))
}

fn stored_at(message: &Message) -> Option<String> {
    let nanoseconds = message.info().ok()?.published.unix_timestamp_nanos();
    let time = DateTime::from_timestamp_nanos(i64::try_from(nanoseconds).ok()?);
    Some(time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// The headers without tokens, whatever the case of their names.
fn headers(all: &HeaderMap) -> Map<String, Value> {
    let of = |name: &str| name.eq_ignore_ascii_case(header::AUTHORIZATION);
    all.iter()
        .map(|(name, values)| (name.to_string(), values))
        .filter(|(name, _)| !of(name))
        .map(|(name, values)| (name, values.iter().map(HeaderValue::as_str).collect()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_with_credentials_are_known_by_their_subjects() {
        for subject in ["memory.req.account.user.put.42", "memory.req.x.second-factor.put.42"] {
            assert!(has_credential(subject), "{subject}");
        }
        for subject in ["memory.req.user.context.put.42", "memory.event.user.put.42", "memory.dead.x.42", ""]
        {
            assert!(!has_credential(subject), "{subject}");
        }
    }

    #[test]
    fn a_token_is_left_out_however_its_header_is_written() {
        let mut all = HeaderMap::new();
        all.insert("authorization", "Bearer secret");
        all.insert("Authorization", "Bearer secret");
        all.insert("Nats-Msg-Id", "id");
        let headers = headers(&all);
        assert_eq!(Value::Object(headers), json!({ "Nats-Msg-Id": ["id"] }));
    }
}
