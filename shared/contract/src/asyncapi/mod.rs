//! The AsyncAPI 3.0 document, generated from the contract itself. `nats/asyncapi.yaml` is a copy; a test compares it.

mod queries;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{DeadLetterClass, Event, Outcome, QueryKind, REQUESTS, RequestKind, header, limit};
use queries::Parts;

/// The document, or an example in it, cannot be generated.
#[derive(Debug, thiserror::Error)]
pub enum AsyncApiError {
    /// A golden file is not an object with the messages `full` and `minimal`.
    #[error("the golden file of {name} is not valid JSON: {source}")]
    Golden {
        /// The request.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A schema is not an object with a title.
    #[error("a schema has no title")]
    Untitled,
    /// Two types of the same name have different schemas.
    #[error("two schemas are named {0} and differ")]
    Ambiguous(String),
    /// The document cannot be written as YAML.
    #[error("the document cannot be written as YAML: {0}")]
    Yaml(String),
}

/// The fields are written in this order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    asyncapi: &'static str,
    info: Value,
    default_content_type: &'static str,
    servers: Value,
    channels: Value,
    operations: Value,
    components: Components,
}

#[derive(Serialize)]
struct Components {
    messages: Value,
    schemas: Value,
}

const ABOUT: &str = "The messages between chat services and memfleet over NATS. A service publishes requests to \
    JetStream, each with an id that the service chooses. After a worker has committed the effect, it publishes an event. A \
    request that cannot take effect becomes a dead letter that contains the reason.";

/// Generates the document, in YAML. The same contract always gives the same text.
///
/// # Errors
/// If two schemas of the same name differ, or a golden file is not valid JSON.
pub fn document() -> Result<String, AsyncApiError> {
    let mut schemas = Map::new();
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    for kind in REQUESTS {
        let name = kind.name();
        let payload = collect((kind.schema)(generator()), &mut schemas)?;
        channels.insert(name.clone(), request_channel(kind));
        operations.insert(format!("send.{name}"), request_operation(kind));
        messages.insert(name, request_message(kind, &payload)?);
    }
    for (name, schema) in [
        ("RequestHeaders", request_headers()),
        ("EventHeaders", event_headers()),
        ("DeadLetterHeaders", dead_letter_headers()),
    ] {
        schemas.insert(name.to_owned(), schema);
    }
    let event = collect(root::<Event>(), &mut schemas)?;
    let outcome = collect(root::<Outcome>(), &mut schemas)?;
    messages.insert(
        "event".to_owned(),
        json!({
            "title": "Event", "headers": schema_ref("EventHeaders"), "payload": schema_ref(&event),
        }),
    );
    messages.insert(
        "outcome".to_owned(),
        json!({
            "title": "Outcome of a request", "payload": schema_ref(&outcome),
        }),
    );
    messages.insert(
        "deadLetter".to_owned(),
        json!({
            "title": "Dead letter",
            "description": "The body is that of the original message, byte for byte; it need not be JSON.",
            "contentType": "application/octet-stream",
            "headers": schema_ref("DeadLetterHeaders"),
        }),
    );
    add_other_channels(&mut channels);
    add_other_operations(&mut operations);
    queries::add(&mut Parts {
        schemas: &mut schemas,
        channels: &mut channels,
        operations: &mut operations,
        messages: &mut messages,
    })?;
    let document = Document {
        asyncapi: "3.0.0",
        info: sorted(info()),
        default_content_type: "application/json",
        servers: sorted(servers()),
        channels: sorted(Value::Object(channels)),
        operations: sorted(Value::Object(operations)),
        components: Components {
            messages: sorted(Value::Object(messages)),
            schemas: sorted(Value::Object(schemas)),
        },
    };
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(&document, options)
        .map_err(|error| AsyncApiError::Yaml(error.to_string()))
}

/// The JSON Schemas of a query and its answer, draft 2020-12.
pub fn query_schema(kind: &QueryKind) -> Value {
    let schema =
        |make: fn(SchemaGenerator) -> Schema| without_links(Value::from(make(SchemaGenerator::default())));
    json!({ "query": schema(kind.query), "answer": schema(kind.answer) })
}

/// The JSON Schema of a request's body, draft 2020-12.
pub fn schema(kind: &RequestKind) -> Value {
    without_links(Value::from((kind.schema)(SchemaGenerator::default())))
}

/// The golden messages of a kind: the full one and the minimal one.
///
/// # Errors
/// If its golden file is not valid JSON.
pub fn examples(kind: &RequestKind) -> Result<(Value, Value), AsyncApiError> {
    let mut golden: Value = serde_json::from_str(kind.golden)
        .map_err(|source| AsyncApiError::Golden { name: kind.name(), source })?;
    Ok((golden["full"].take(), golden["minimal"].take()))
}

fn info() -> Value {
    json!({
        "title": "memfleet",
        "version": header::CONTRACT_VERSION,
        "description": ABOUT,
        "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
    })
}

fn servers() -> Value {
    json!({
        "nats": {
            "host": "{host}:4222",
            "protocol": "nats",
            "description": "A NATS server or cluster with JetStream.",
            "variables": { "host": { "default": "127.0.0.1", "description": "The host name or address of the server." } },
        },
    })
}

fn request_channel(kind: &RequestKind) -> Value {
    json!({
        "address": format!("{}.{{service}}.{}.{}.{{userId}}", crate::REQUEST_ROOT, kind.noun, kind.verb),
        "description": format!(
            "Stored in stream {}. Emits the event {}.", kind.stream, kind.event
        ),
        "parameters": { "service": service_parameter(), "userId": user_parameter() },
        "messages": { "request": { "$ref": format!("#/components/messages/{}", kind.name()) } },
    })
}

fn service_parameter() -> Value {
    json!({ "description": format!(
        "The publishing service: 1 to {} of a-z 0-9 and -. NATS permissions restrict a service to its own name.", limit::SERVICE_CHARS
    ) })
}

fn user_parameter() -> Value {
    json!({ "description": "The user id, from 0 to 2147483647. 0 is the platform, which has settings only." })
}

fn request_operation(kind: &RequestKind) -> Value {
    let channel = format!("#/channels/{}", kind.name());
    json!({
        "action": "send",
        "summary": format!("Send the request {}.", kind.name()),
        "channel": { "$ref": channel },
        "messages": [{ "$ref": format!("{channel}/messages/request") }],
        "reply": {
            "address": { "location": format!("$message.header#/{}", header::REPLY_TO) },
            "channel": { "$ref": "#/channels/outcomes" },
            "messages": [{ "$ref": "#/channels/outcomes/messages/outcome" }],
        },
    })
}

fn request_message(kind: &RequestKind, payload: &str) -> Result<Value, AsyncApiError> {
    let (full, minimal) = examples(kind)?;
    let mut message = json!({
        "title": kind.name(),
        "headers": schema_ref("RequestHeaders"),
        "payload": schema_ref(payload),
        "correlationId": { "location": format!("$message.header#/{}", header::REQUEST_ID) },
    });
    message["examples"] = if full == minimal {
        json!([{ "name": "full", "payload": full }])
    } else {
        json!([{ "name": "full", "payload": full }, { "name": "minimal", "payload": minimal }])
    };
    Ok(message)
}

fn add_other_channels(channels: &mut Map<String, Value>) {
    channels.insert(
        "events".to_owned(),
        json!({
            "address": "memory.event.{noun}.{verb}.{userId}",
            "description": "Events, published after their transactions have committed; delivered at least once.",
            "parameters": {
                "noun": { "description": "The kind of record." },
                "verb": { "description": "The operation." },
                "userId": user_parameter(),
            },
            "messages": { "event": { "$ref": "#/components/messages/event" } },
        }),
    );
    channels.insert(
        "outcomes".to_owned(),
        json!({
            "address": "_INBOX.{service}.{inbox}",
            "description": format!("The subject that a request named in {}.", header::REPLY_TO),
            "parameters": {
                "service": service_parameter(),
                "inbox": { "description": "Chosen by the service." },
            },
            "messages": { "outcome": { "$ref": "#/components/messages/outcome" } },
        }),
    );
    channels.insert(
        "deadLetters".to_owned(),
        json!({
            "address": "memory.dead.{worker}.{userId}",
            "description": "Dead letters: messages that could not be processed. For operators.",
            "parameters": {
                "worker": { "description": "The worker that dead-lettered the message." },
                "userId": { "description": "The user of the message, or `unknown`." },
            },
            "messages": { "deadLetter": { "$ref": "#/components/messages/deadLetter" } },
        }),
    );
}

fn add_other_operations(operations: &mut Map<String, Value>) {
    for (name, channel, message, summary) in [
        ("receive.events", "events", "event", "An authorized subscriber receives the events of a user."),
        ("receive.deadLetters", "deadLetters", "deadLetter", "An operator receives dead letters."),
    ] {
        operations.insert(
            name.to_owned(),
            json!({
                "action": "receive",
                "summary": summary,
                "channel": { "$ref": format!("#/channels/{channel}") },
                "messages": [{ "$ref": format!("#/channels/{channel}/messages/{message}") }],
            }),
        );
    }
}

fn request_headers() -> Value {
    headers(
        &[header::REQUEST_ID],
        &[
            (
                header::REQUEST_ID,
                json!({ "type": "string", "format": "uuid" }),
                "The request id. A second request of the user with the same id has no effect. Absent in requests of \
                 older publishers, whose request id is Nats-Msg-Id.",
            ),
            (
                header::MESSAGE_ID,
                json!({ "type": "string" }),
                "The id by which the broker drops a request that is published again within ten minutes. All services share \
                 these ids: use one that no other service can know, or none.",
            ),
            (header::AUTHORIZATION, json!({ "type": "string", "pattern": "^Bearer " }), "The service token."),
            (header::TRACEPARENT, json!({ "type": "string" }), "W3C trace context of the publisher."),
            (
                header::ENCRYPTION,
                json!({ "type": "string", "pattern": "^[a-z0-9-]+\\.[1-9][0-9]*$" }),
                "The key that the body is encrypted with. Absent: the body is plain JSON.",
            ),
            (
                header::REPLY_TO,
                json!({ "type": "string", "pattern": "^_INBOX\\." }),
                "A subject in the service's own inbox, to which the outcome is published after the commit.",
            ),
            (
                header::CONTRACT,
                json!({ "type": "string", "enum": [header::CONTRACT_VERSION] }),
                "The version of the contract that the body follows. Absent: this version.",
            ),
            (
                header::PARENT_EVENT,
                json!({ "type": "string", "format": "uuid" }),
                "The id of the event that caused this request.",
            ),
        ],
    )
}

fn event_headers() -> Value {
    headers(
        &[header::MESSAGE_ID],
        &[(
            header::MESSAGE_ID,
            json!({ "type": "string", "format": "uuid" }),
            "The event id, as in the body.",
        )],
    )
}

fn dead_letter_headers() -> Value {
    let classes = DeadLetterClass::ALL.map(DeadLetterClass::as_str);
    let required = [
        header::MESSAGE_ID,
        header::DEAD_CLASS,
        header::DEAD_REASON,
        header::DEAD_SUBJECT,
        header::DEAD_SOURCE,
        header::DEAD_TRIES,
    ];
    headers(
        &required,
        &[
            (header::MESSAGE_ID, json!({ "type": "string", "format": "uuid" }), "The dead letter's own id."),
            (header::DEAD_CLASS, json!({ "type": "string", "enum": classes }), "The class of the reason."),
            (
                header::DEAD_REASON,
                json!({ "type": "string" }),
                "The reason: one sentence that names the field or the condition.",
            ),
            (header::DEAD_SUBJECT, json!({ "type": "string" }), "The subject of the original message."),
            (
                header::DEAD_SOURCE,
                json!({ "type": "string" }),
                "The stored original message: stream/sequence.",
            ),
            (
                header::DEAD_TRIES,
                json!({ "type": "string", "pattern": "^[0-9]+$" }),
                "The number of attempts.",
            ),
            (
                header::DEAD_REQUEST_ID,
                json!({ "type": "string" }),
                "The request id of the original message, if it had one.",
            ),
        ],
    )
}

fn headers(required: &[&str], fields: &[(&str, Value, &str)]) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|(name, schema, description)| {
            let mut schema = schema.clone();
            schema["description"] = json!(description);
            ((*name).to_owned(), schema)
        })
        .collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

fn schema_ref(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// AsyncAPI's own schema format is a superset of draft 7.
fn generator() -> SchemaGenerator {
    SchemaSettings::draft07()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator()
}

fn root<T: JsonSchema>() -> Schema {
    generator().into_root_schema_for::<T>()
}

/// Adds a root schema and its definitions to the components, and returns its name there.
fn collect(schema: Schema, schemas: &mut Map<String, Value>) -> Result<String, AsyncApiError> {
    let mut schema = without_links(Value::from(schema));
    let fields = schema.as_object_mut().ok_or(AsyncApiError::Untitled)?;
    let title = fields.remove("title");
    let name = title.as_ref().and_then(Value::as_str).ok_or(AsyncApiError::Untitled)?.to_owned();
    let mut parts = fields.remove("components").unwrap_or_default();
    if let Some(Value::Object(definitions)) = parts.get_mut("schemas").map(Value::take) {
        for (name, definition) in definitions {
            add(schemas, name, definition)?;
        }
    }
    add(schemas, name.clone(), schema)?;
    Ok(name)
}

fn add(schemas: &mut Map<String, Value>, name: String, schema: Value) -> Result<(), AsyncApiError> {
    let schema = with_lone_references(schema);
    if schemas.get(&name).is_some_and(|known| *known != schema) {
        return Err(AsyncApiError::Ambiguous(name));
    }
    schemas.insert(name, schema);
    Ok(())
}

/// Moves every `$ref` that has sibling keywords into an `allOf`, because draft 7 ignores keywords next to a `$ref`. The
/// generator does this in the schema itself, but not in its definitions.
fn with_lone_references(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut map: Map<String, Value> =
                map.into_iter().map(|(name, value)| (name, with_lone_references(value))).collect();
            if map.len() > 1
                && let Some(reference) = map.remove("$ref")
            {
                map.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
            }
            Value::Object(map)
        }
        Value::Array(items) => items.into_iter().map(with_lone_references).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

/// Sorts the keys, so that the output does not depend on the map type that serde_json is built with.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<(String, Value)> =
                map.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

/// Replaces rustdoc links in descriptions by their text.
fn without_links(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            for (name, value) in map {
                let description = value.as_str().filter(|_| name == "description").map(plain);
                *value = description.map_or_else(|| without_links(value.take()), Value::String);
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = without_links(item.take());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    value
}

fn plain(description: &str) -> String {
    let mut text = description.split_whitespace().collect::<Vec<_>>().join(" ");
    while let Some(middle) = text.find("](crate::") {
        let Some(length) = text[middle..].find(')') else { break };
        text.replace_range(middle..=middle + length, "");
        match text[..middle].rfind('[') {
            Some(start) => text.replace_range(start..=start, ""),
            None => break,
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_rustdoc_become_text() {
        let text = plain("As in [`ContextPut`](crate::ContextPut), or\n[`A`](crate::A).");
        assert_eq!(text, "As in `ContextPut`, or `A`.");
    }
}
