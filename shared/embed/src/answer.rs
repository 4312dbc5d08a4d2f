//! Responses of an embedding server, and their errors.

use std::time::Duration;

use serde::Deserialize;

use crate::vector::normalized;

/// Why a request failed. No message quotes the response, because servers repeat rejected texts in it.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The server has too much to do, or the quota is used up. No text causes this. It may state when to retry.
    Busy { reason: String, after: Option<Duration> },
    /// The server fails, or its response is invalid. It may state when to retry.
    Failed { reason: String, after: Option<Duration> },
    /// There is no response within the timeout.
    NoAnswer(String),
    /// The server rejects these texts.
    Refused(String),
    /// An operator must correct something.
    Misconfigured(String),
}

impl Fault {
    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self::Failed { reason: reason.into(), after: None }
    }

    pub(crate) fn into_reason(self) -> String {
        match self {
            Self::Busy { reason, .. }
            | Self::Failed { reason, .. }
            | Self::NoAnswer(reason)
            | Self::Refused(reason)
            | Self::Misconfigured(reason) => reason,
        }
    }

    /// The meaning of a response with a status other than 200.
    pub(crate) fn of_status(status: u16, after: Option<Duration>) -> Self {
        let reason = format!("the server responds with status {status}");
        match status {
            400 | 413 | 422 => Self::Refused(reason),
            401 | 403 => Self::Misconfigured(format!(
                "{reason}: embedder.token is missing, wrong or lacks permissions"
            )),
            404 => Self::Misconfigured(format!(
                "{reason}: it has no such API or model; check embedder.url and embedder.model"
            )),
            402 | 429 => Self::Busy { reason, after },
            408 | 409 | 424 | 425 | 500.. => Self::Failed { reason, after },
            _ => Self::Misconfigured(format!(
                "the server responds with the unexpected status {status}; check embedder.url"
            )),
        }
    }
}

/// The largest response with so many vectors, in bytes: 32 bytes per number, of which few numbers need more than 25.
pub(crate) fn most_bytes(count: usize, dimension: usize) -> u64 {
    let bytes = (count.saturating_mul(dimension.saturating_mul(32) + 1_024)).saturating_add(64 * 1_024);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    /// The index of the text. Absent: vectors are in the order of the texts.
    index: Option<usize>,
    /// A number that is not finite arrives as `null`.
    embedding: Vec<Option<f32>>,
}

/// The vectors of a response, normalized, in the order of the texts.
pub(crate) fn vectors(body: &[u8], count: usize, dimension: usize) -> Result<Vec<Vec<f32>>, Fault> {
    let Answer { data } = serde_json::from_slice(body)
        .map_err(|_| Fault::failed("the response of the server is not a list of embeddings"))?;
    if data.len() != count {
        return Err(Fault::failed(format!("the server returned {} vectors for {count} texts", data.len())));
    }
    let mut vectors = vec![Vec::new(); count];
    for (at, Item { index, embedding }) in data.into_iter().enumerate() {
        if embedding.len() != dimension {
            return Err(Fault::Misconfigured(format!(
                "the server's vectors have {} dimensions, but embedder.dimension is {dimension}",
                embedding.len()
            )));
        }
        let numbers = embedding.into_iter().map(|number| number.unwrap_or(f32::NAN)).collect();
        let Some(vector) = normalized(numbers) else {
            return Err(Fault::Refused(
                "the server returned a vector with a number that is not finite, or with zeros only"
                    .to_owned(),
            ));
        };
        match vectors.get_mut(index.unwrap_or(at)) {
            Some(place) if place.is_empty() => *place = vector,
            Some(_) | None => {
                return Err(Fault::failed("the indexes of the server's vectors do not match the texts"));
            }
        }
    }
    Ok(vectors)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn fault(body: &str) -> &'static str {
        match vectors(body.as_bytes(), 2, 2).unwrap_err() {
            Fault::Busy { .. } | Fault::NoAnswer(_) => "not a response",
            Fault::Failed { .. } => "failed",
            Fault::Refused(_) => "refused",
            Fault::Misconfigured(_) => "misconfigured",
        }
    }

    #[test]
    fn vectors_are_returned_in_the_order_of_the_texts() {
        let body =
            r#"{"data":[{"index":1,"embedding":[0,2]},{"index":0,"embedding":[1e-3,0.0]}],"model":"m"}"#;
        assert_eq!(vectors(body.as_bytes(), 2, 2).unwrap(), [[1.0, 0.0], [0.0, 1.0]]);
        let body = r#"{"data":[{"embedding":[0,2]},{"embedding":[3,0]}]}"#;
        assert_eq!(vectors(body.as_bytes(), 2, 2).unwrap(), [[0.0, 1.0], [1.0, 0.0]]);
    }

    #[test]
    fn invalid_responses_are_rejected() {
        let with = |one: &str, other: &str| format!(r#"{{"data":[{one},{other}]}}"#);
        let good = r#"{"index":0,"embedding":[1,2]}"#;
        for (other, meaning) in [
            (r#"{"index":0,"embedding":[1,2]}"#, "failed"),
            (r#"{"index":2,"embedding":[1,2]}"#, "failed"),
            (r#"{"index":-1,"embedding":[1,2]}"#, "failed"),
            (r#"{"index":1,"embedding":[1,NaN]}"#, "failed"),
            (r#"{"index":1,"embedding":"AAAA"}"#, "failed"),
            (r#"{"index":1,"embedding":[1,null]}"#, "refused"),
            (r#"{"index":1,"embedding":[1,1e39]}"#, "refused"),
            (r#"{"index":1,"embedding":[0,0]}"#, "refused"),
            (r#"{"index":1,"embedding":[1,2,3]}"#, "misconfigured"),
            (r#"{"index":1,"embedding":[]}"#, "misconfigured"),
        ] {
            assert_eq!(fault(&with(good, other)), meaning, "{other}");
        }
        for body in ["", "null", "[]", "{}", r#"{"data":[]}"#, r#"{"error":"busy"}"#] {
            assert_eq!(fault(body), "failed", "{body}");
        }
    }
}
