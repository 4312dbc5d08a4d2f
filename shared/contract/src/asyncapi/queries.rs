//! Queries and their answers in the AsyncAPI document.

use serde_json::{Map, Value, json};

use super::{AsyncApiError, collect, generator, headers, root, schema_ref, service_parameter};
use crate::{
    QUERIES, QUERY_ROOT, QueryError, QueryKind, TOKEN_ISSUE, TokenAnswer, TokenQuery, header, limit,
};

/// The parts of the document that is being generated.
pub(super) struct Parts<'a> {
    pub(super) schemas: &'a mut Map<String, Value>,
    pub(super) channels: &'a mut Map<String, Value>,
    pub(super) operations: &'a mut Map<String, Value>,
    pub(super) messages: &'a mut Map<String, Value>,
}

/// Adds all queries, including the one for tokens.
pub(super) fn add(parts: &mut Parts<'_>) -> Result<(), AsyncApiError> {
    parts.schemas.insert("QueryHeaders".to_owned(), query_headers());
    let refusal = collect(root::<QueryError>(), parts.schemas)?;
    let refusal = json!({
        "title": "Error of a query",
        "headers": headers(&[header::REFUSED], &[(
            header::REFUSED,
            json!({ "type": "string", "pattern": "^[0-9]{3}$" }),
            "An HTTP status code. Absent: the message is an answer.",
        )]),
        "payload": schema_ref(&refusal),
    });
    parts.messages.insert("refusal".to_owned(), refusal);
    parts.channels.insert(
        "answers".to_owned(),
        json!({
            "address": null,
            "description": "The reply subject of a query, in the inbox of the querying service.",
            "messages": { "refusal": { "$ref": "#/components/messages/refusal" } },
        }),
    );
    for kind in QUERIES {
        let query = collect((kind.query)(generator()), parts.schemas)?;
        let answer = collect((kind.answer)(generator()), parts.schemas)?;
        add_one(parts, &Channel::of(kind), &query, &answer);
    }
    let query = collect(root::<TokenQuery>(), parts.schemas)?;
    let answer = collect(root::<TokenAnswer>(), parts.schemas)?;
    let token = Channel {
        name: "token.issue".to_owned(),
        address: format!("{TOKEN_ISSUE}.{{service}}"),
        description: "A service token for one user.",
    };
    add_one(parts, &token, &query, &answer);
    Ok(())
}

/// The channel of one query.
struct Channel<'a> {
    name: String,
    address: String,
    description: &'a str,
}

impl<'a> Channel<'a> {
    fn of(kind: &'a QueryKind) -> Self {
        let address = format!("{QUERY_ROOT}.{}.{}.{{service}}", kind.noun, kind.verb);
        Self { name: format!("ask.{}", kind.name()), address, description: kind.description }
    }
}

fn add_one(parts: &mut Parts<'_>, channel: &Channel<'_>, query: &str, answer: &str) {
    let Channel { name, address, description } = channel;
    let answer_name = format!("{name}.answer");
    parts.channels.insert(
        name.clone(),
        json!({
            "address": address,
            "description": description,
            "parameters": { "service": service_parameter() },
            "messages": { "query": { "$ref": format!("#/components/messages/{name}") } },
        }),
    );
    if let Some(messages) = parts.channels.get_mut("answers").and_then(|answers| answers.get_mut("messages"))
    {
        messages[&answer_name] = json!({ "$ref": format!("#/components/messages/{answer_name}") });
    }
    let channel = format!("#/channels/{name}");
    parts.operations.insert(
        format!("send.{name}"),
        json!({
            "action": "send",
            "summary": format!("Query: {description}"),
            "channel": { "$ref": channel },
            "messages": [{ "$ref": format!("{channel}/messages/query") }],
            "reply": {
                "channel": { "$ref": "#/channels/answers" },
                "messages": [
                    { "$ref": format!("#/channels/answers/messages/{answer_name}") },
                    { "$ref": "#/channels/answers/messages/refusal" },
                ],
            },
        }),
    );
    // A token query carries no token: NATS permissions identify the service.
    let query_headers = if name == "token.issue" { Value::Null } else { schema_ref("QueryHeaders") };
    let mut message = json!({ "title": name, "payload": schema_ref(query) });
    if !query_headers.is_null() {
        message["headers"] = query_headers;
    }
    parts.messages.insert(name.clone(), message);
    parts
        .messages
        .insert(answer_name.clone(), json!({ "title": answer_name, "payload": schema_ref(answer) }));
}

fn query_headers() -> Value {
    let bearer = json!({ "type": "string", "pattern": "^Bearer " });
    let uuid = json!({ "type": "string", "format": "uuid" });
    let deadline = json!({ "type": "string", "pattern": "^[0-9]{2,5}$" });
    let (least, most) = (limit::DEADLINE_MS_MIN, limit::DEADLINE_MS_MAX);
    let about_deadline =
        format!("The deadline in milliseconds, {least} to {most}. Absent: {}.", limit::DEADLINE_MS_DEFAULT);
    headers(
        &[header::AUTHORIZATION],
        &[
            (header::AUTHORIZATION, bearer, "The service token. The query is answered for its user."),
            (header::MESSAGE_ID, uuid, "The id of the query in the audit trail."),
            (header::DEADLINE_MS, deadline, &about_deadline),
        ],
    )
}
