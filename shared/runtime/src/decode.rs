//! Stage two: bytes to a typed request, or a dead letter whose reason names the field.

use async_nats::HeaderMap;
use contract::{Malformed, RequestSubject, header};
use uuid::Uuid;

use crate::pull::Delivery;
use crate::worker::{Message, Worker};

/// A message that could be read.
#[derive(Debug)]
pub struct Decoded<R> {
    pub(crate) message: Message<R>,
    pub(crate) delivery: Delivery,
}

/// Reads a message.
///
/// # Errors
/// The message itself, with what is wrong with it.
pub fn decode<W: Worker>(
    worker: &W,
    delivery: Delivery,
) -> Result<Decoded<W::Request>, Box<(Delivery, Malformed)>> {
    match read(worker, &delivery) {
        Ok(message) => Ok(Decoded { message, delivery }),
        Err(malformed) => Err(Box::new((delivery, malformed))),
    }
}

fn read<W: Worker>(worker: &W, delivery: &Delivery) -> Result<Message<W::Request>, Malformed> {
    let message = &delivery.message;
    let subject: RequestSubject = message
        .subject
        .as_str()
        .parse()
        .map_err(|error| Malformed::new("subject", format!("{error}, got {}", message.subject)))?;
    let headers = message.headers.as_ref();
    check_contract(headers)?;
    let request_id = id(headers, header::MESSAGE_ID)?.ok_or_else(|| {
        Malformed::new(header::MESSAGE_ID, "is missing; give every request a UUID of its own")
    })?;
    Ok(Message {
        parent_event_id: id(headers, header::PARENT_EVENT)?,
        request: worker.decode(&subject, &message.payload)?,
        body: message.payload.clone(),
        stored_at: delivery.stored_at,
        sequence: delivery.sequence,
        subject,
        request_id,
    })
}

fn check_contract(headers: Option<&HeaderMap>) -> Result<(), Malformed> {
    match headers.and_then(|headers| headers.get(header::CONTRACT)) {
        None => Ok(()),
        Some(version) if version.as_str() == header::CONTRACT_VERSION => Ok(()),
        Some(version) => {
            let shown: String = version.as_str().chars().take(20).collect();
            let problem =
                format!("version {shown:?} is unknown; this worker knows {:?}", header::CONTRACT_VERSION);
            Err(Malformed::new(header::CONTRACT, problem))
        }
    }
}

/// Reads a header that holds a UUID.
pub(crate) fn id(headers: Option<&HeaderMap>, name: &str) -> Result<Option<Uuid>, Malformed> {
    match headers.and_then(|headers| headers.get(name)) {
        None => Ok(None),
        Some(value) => Uuid::try_parse(value.as_str())
            .map(Some)
            .map_err(|error| Malformed::new(name, format!("is no UUID: {error}"))),
    }
}
