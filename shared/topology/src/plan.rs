use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::TopologyError;
use crate::change::{Change, FieldChange, Target};
use crate::file::{Consumer, Stream, Topology, as_consumer, as_stream};

/// One request to the JetStream API, and what it changes.
pub(crate) struct Step {
    target: Target,
    subject: String,
    payload: Value,
    pub(crate) changes: Vec<Change>,
}

pub(crate) async fn plan(
    broker: &jetstream::Context,
    topology: &Topology,
) -> Result<Vec<Step>, TopologyError> {
    let mut steps = Vec::new();
    for stream in &topology.streams {
        steps.extend(stream_step(broker, stream).await?);
    }
    for consumer in &topology.consumers {
        steps.extend(consumer_step(broker, consumer).await?);
    }
    Ok(steps)
}

pub(crate) async fn execute(broker: &jetstream::Context, step: &Step) -> Result<(), TopologyError> {
    let refused = |problem: String| {
        let fields: Vec<String> =
            step.changes.iter().filter_map(|change| change.field.as_ref()).map(ToString::to_string).collect();
        let refused = if fields.is_empty() {
            format!("to create {}", step.target)
        } else {
            format!("to change {}, {}", step.target, fields.join(", "))
        };
        TopologyError::Refused { refused, problem }
    };
    let response: Response<Value> = broker
        .request(step.subject.clone(), &step.payload)
        .await
        .map_err(|error| refused(error.to_string()))?;
    match response {
        Response::Ok(_) => Ok(()),
        Response::Err { error } if error.error_code() == ErrorCode::STORAGE_RESOURCES_EXCEEDED => {
            Err(refused(format!("{error}; {RESERVED}")))
        }
        Response::Err { error } => Err(refused(error.to_string())),
    }
}

const RESERVED: &str = "the server reserves the max_bytes of every stream out of its max_file_store, which is \
    three quarters of the free disk unless the server's configuration names more";

async fn stream_step(broker: &jetstream::Context, stream: &Stream) -> Result<Option<Step>, TopologyError> {
    let target = Target::Stream(stream.name.clone());
    let Some(has) = current_config(broker, &target, format!("STREAM.INFO.{}", stream.name)).await? else {
        let subject = format!("STREAM.CREATE.{}", stream.name);
        return Ok(Some(creation(target, subject, Value::Object(stream.config.clone()))));
    };
    let unknown = |problem| TopologyError::Unknown { target: target.clone(), problem };
    let known = as_stream(&has).map_err(unknown)?;
    let wanted = as_stream(&stream.config).map_err(unknown)?;
    let changes = compare(&target, &stream.config, &known, &wanted);
    let payload = Value::Object(overlaid(has, &stream.config));
    let subject = format!("STREAM.UPDATE.{}", stream.name);
    Ok((!changes.is_empty()).then_some(Step { target, subject, payload, changes }))
}

async fn consumer_step(
    broker: &jetstream::Context,
    consumer: &Consumer,
) -> Result<Option<Step>, TopologyError> {
    let Consumer { stream, name, config } = consumer;
    let target = Target::Consumer(stream.clone(), name.clone());
    let subject = format!("CONSUMER.CREATE.{stream}.{name}");
    let payload = |action: &str, config: Map<String, Value>| json!({ "stream_name": stream, "config": config, "action": action });
    let Some(has) = current_config(broker, &target, format!("CONSUMER.INFO.{stream}.{name}")).await? else {
        return Ok(Some(creation(target, subject, payload("create", config.clone()))));
    };
    let unknown = |problem| TopologyError::Unknown { target: target.clone(), problem };
    let known = as_consumer(&has).map_err(unknown)?;
    let wanted = as_consumer(config).map_err(unknown)?;
    let changes = compare(&target, config, &known, &wanted);
    let payload = payload("update", overlaid(without_other_filter(has, config), config));
    Ok((!changes.is_empty()).then_some(Step { target, subject, payload, changes }))
}

fn creation(target: Target, subject: String, payload: Value) -> Step {
    let changes = vec![Change { target: target.clone(), field: None }];
    Step { target, subject, payload, changes }
}

/// The configuration on the server; none if the stream or consumer does not exist.
async fn current_config(
    broker: &jetstream::Context,
    target: &Target,
    subject: String,
) -> Result<Option<Map<String, Value>>, TopologyError> {
    let unknown = |problem: String| TopologyError::Unknown { target: target.clone(), problem };
    // Not through the context, which sends `null` where the server expects an empty payload.
    let answer = broker
        .client()
        .request(format!("$JS.API.{subject}"), Bytes::new())
        .await
        .map_err(|error| unknown(error.to_string()))?;
    let response: Response<Value> =
        serde_json::from_slice(&answer.payload).map_err(|error| unknown(error.to_string()))?;
    match response {
        Response::Ok(mut info) => match info.get_mut("config").map(Value::take) {
            Some(Value::Object(config)) => Ok(Some(config)),
            Some(_) | None => Err(unknown("the response contains no configuration".to_owned())),
        },
        Response::Err { error } => match error.error_code() {
            ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => Ok(None),
            _ => Err(unknown(error.to_string())),
        },
    }
}

/// Compares the fields that the document names, both sides as the client represents them.
fn compare(
    target: &Target,
    file: &Map<String, Value>,
    known: &Map<String, Value>,
    wanted: &Map<String, Value>,
) -> Vec<Change> {
    let value = |map: &Map<String, Value>, field: &str| map.get(field).cloned().unwrap_or(Value::Null);
    file.keys()
        .filter(|field| known.get(*field) != wanted.get(*field))
        .map(|field| FieldChange { name: field.clone(), from: value(known, field), to: value(wanted, field) })
        .map(|field| Change { target: target.clone(), field: Some(field) })
        .collect()
}

/// Removes the other filter field. The server rejects a consumer with both, so naming one replaces the other.
fn without_other_filter(mut has: Map<String, Value>, file: &Map<String, Value>) -> Map<String, Value> {
    for (named, other) in [("filter_subject", "filter_subjects"), ("filter_subjects", "filter_subject")] {
        if file.contains_key(named) && !file.contains_key(other) {
            has.remove(other);
        }
    }
    has
}

/// The configuration on the server, overridden by the fields that the document names.
fn overlaid(mut has: Map<String, Value>, file: &Map<String, Value>) -> Map<String, Value> {
    for (field, value) in file {
        has.insert(field.clone(), value.clone());
    }
    has
}
