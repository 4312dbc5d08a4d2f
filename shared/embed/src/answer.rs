//! What a server answers, and what is wrong with it.

use std::time::Duration;

use serde::Deserialize;

use crate::vector::normalized;

/// Why a request did not give its vectors. Nothing of the answer is quoted: servers repeat the texts in what they refuse.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Perhaps in a while; the server may say after which time.
    Later { reason: String, after: Option<Duration> },
    /// Not with these texts.
    Refused(String),
    /// Not before somebody mends something.
    Misconfigured(String),
}

impl Fault {
    pub(crate) fn later(reason: impl Into<String>) -> Self {
        Self::Later { reason: reason.into(), after: None }
    }

    /// What an answer means that has another status than 200.
    pub(crate) fn of_status(status: u16, after: Option<Duration>) -> Self {
        match status {
            400 | 413 | 422 => Self::Refused(format!("the server answers with status {status}")),
            401 | 403 => Self::Misconfigured(format!(
                "the server answers with status {status}: embedder.token is missing, wrong or not enough"
            )),
            404 => Self::Misconfigured(
                "the server answers with status 404: it has no such API or model; see embedder.url and embedder.model"
                    .to_owned(),
            ),
            402 | 408 | 409 | 425 | 429 | 500.. => {
                Self::Later { reason: format!("the server answers with status {status}"), after }
            }
            _ => Self::Misconfigured(format!(
                "the server answers with status {status}, which is no answer to this; see embedder.url"
            )),
        }
    }
}

/// The most bytes of an answer with so many vectors: a number has at most some twenty-five, and few need these.
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
    /// Where it is not said, vectors are in the order of the texts.
    index: Option<usize>,
    /// What is not a number arrives as `null`.
    embedding: Vec<Option<f32>>,
}

/// The vectors in an answer, in the order of the texts, at length one.
pub(crate) fn vectors(body: &[u8], count: usize, dimension: usize) -> Result<Vec<Vec<f32>>, Fault> {
    let Answer { data } = serde_json::from_slice(body)
        .map_err(|_| Fault::later("the server answers with what is no list of embeddings"))?;
    if data.len() != count {
        return Err(Fault::later(format!(
            "the server answers with {} vectors for {count} texts",
            data.len()
        )));
    }
    let mut vectors = vec![Vec::new(); count];
    for (at, Item { index, embedding }) in data.into_iter().enumerate() {
        if embedding.len() != dimension {
            return Err(Fault::Misconfigured(format!(
                "the server's vectors have {} numbers; embedder.dimension is {dimension}",
                embedding.len()
            )));
        }
        let numbers = embedding.into_iter().map(|number| number.unwrap_or(f32::NAN)).collect();
        let Some(vector) = normalized(numbers) else {
            return Err(Fault::Refused(
                "the server's vector has a number that is not finite, or zeros only".to_owned(),
            ));
        };
        match vectors.get_mut(index.unwrap_or(at)) {
            Some(place) if place.is_empty() => *place = vector,
            Some(_) | None => {
                return Err(Fault::later("the server's vectors are not numbered as the texts are"));
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
            Fault::Later { .. } => "later",
            Fault::Refused(_) => "refused",
            Fault::Misconfigured(_) => "misconfigured",
        }
    }

    #[test]
    fn vectors_are_put_in_the_order_of_the_texts() {
        let body =
            r#"{"data":[{"index":1,"embedding":[0,2]},{"index":0,"embedding":[1e-3,0.0]}],"model":"m"}"#;
        assert_eq!(vectors(body.as_bytes(), 2, 2).unwrap(), [[1.0, 0.0], [0.0, 1.0]]);
        let body = r#"{"data":[{"embedding":[0,2]},{"embedding":[3,0]}]}"#;
        assert_eq!(vectors(body.as_bytes(), 2, 2).unwrap(), [[0.0, 1.0], [1.0, 0.0]]);
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let with = |one: &str, other: &str| format!(r#"{{"data":[{one},{other}]}}"#);
        let good = r#"{"index":0,"embedding":[1,2]}"#;
        for (other, meaning) in [
            (r#"{"index":0,"embedding":[1,2]}"#, "later"),
            (r#"{"index":2,"embedding":[1,2]}"#, "later"),
            (r#"{"index":-1,"embedding":[1,2]}"#, "later"),
            (r#"{"index":1,"embedding":[1,NaN]}"#, "later"),
            (r#"{"index":1,"embedding":"AAAA"}"#, "later"),
            (r#"{"index":1,"embedding":[1,null]}"#, "refused"),
            (r#"{"index":1,"embedding":[1,1e39]}"#, "refused"),
            (r#"{"index":1,"embedding":[0,0]}"#, "refused"),
            (r#"{"index":1,"embedding":[1,2,3]}"#, "misconfigured"),
            (r#"{"index":1,"embedding":[]}"#, "misconfigured"),
        ] {
            assert_eq!(fault(&with(good, other)), meaning, "{other}");
        }
        for body in ["", "null", "[]", "{}", r#"{"data":[]}"#, r#"{"error":"busy"}"#] {
            assert_eq!(fault(body), "later", "{body}");
        }
    }
}
