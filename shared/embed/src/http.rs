//! Requests to an embedding server, with a blocking client for the blocking threads of Tokio.

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use ureq::{Agent, http};

use crate::answer::{self, Fault};
use config::EmbedderSettings;

use crate::{EmbedError, missing};

/// The body of a request.
#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: &'static str,
}

/// The server, and the credentials for it.
pub(crate) struct Server {
    agent: Agent,
    url: String,
    pub(crate) model: String,
    pub(crate) dimension: usize,
    /// The value of the header: `Bearer …`.
    authorization: Option<SecretString>,
}

impl Server {
    /// Checks the settings. It sends no request.
    pub(crate) fn new(settings: &EmbedderSettings) -> Result<Self, EmbedError> {
        let token = settings.token.as_ref().filter(|token| !token.expose_secret().is_empty());
        if token.is_some_and(|token| !token.expose_secret().bytes().all(|byte| byte.is_ascii_graphic())) {
            let problem = "embedder.token contains characters that are not allowed in a header".to_owned();
            return Err(EmbedError::Misconfigured(problem));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // A redirect would send the token and the texts to another server; the operator must correct the URL
            // instead.
            .max_redirects_will_error(false)
            .build();
        Ok(Self {
            agent: config.into(),
            url: endpoint(settings.url.as_deref().ok_or_else(|| missing("url"))?)?,
            model: settings.model.clone().ok_or_else(|| missing("model"))?,
            dimension: settings.dimension.ok_or_else(|| missing("dimension"))?,
            authorization: token.map(|token| format!("Bearer {}", token.expose_secret()).into()),
        })
    }

    /// The body of a request for these texts, shared by its retries.
    pub(crate) fn body(&self, texts: &[String]) -> Result<Arc<Vec<u8>>, Fault> {
        let request = Request { model: &self.model, input: texts, encoding_format: "float" };
        let body = serde_json::to_vec(&request);
        body.map(Arc::new).map_err(|_| Fault::Refused("a text cannot be encoded as JSON".to_owned()))
    }

    /// Sends one request for the vectors of `count` texts.
    pub(crate) fn ask(&self, body: &[u8], count: usize, timeout: Duration) -> Result<Vec<Vec<f32>>, Fault> {
        let request = self.agent.post(&self.url).config().timeout_global(Some(timeout)).build();
        let mut request = request.header("Content-Type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization.expose_secret());
        }
        let mut answer = request.send(body).map_err(|error| self.failed(&error))?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(Fault::of_status(status, retry_after(answer.headers())));
        }
        let most = answer::most_bytes(count, self.dimension);
        let body = answer.body_mut().with_config().limit(most).read_to_vec();
        answer::vectors(&body.map_err(|error| self.failed(&error))?, count, self.dimension)
    }

    fn failed(&self, error: &ureq::Error) -> Fault {
        let reason = format!("the request to {} failed: {error}", self.url);
        let ours = matches!(error, ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Tls(_));
        if ours {
            return Fault::Misconfigured(reason);
        }
        if matches!(error, ureq::Error::Timeout(_)) { Fault::NoAnswer(reason) } else { Fault::failed(reason) }
    }
}

/// The `Retry-After` of the server in seconds. A date is ignored, because clocks differ.
fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    headers.get("retry-after")?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The URL of the embeddings endpoint. It appears in logs and errors, so it must contain no secret.
fn endpoint(url: &str) -> Result<String, EmbedError> {
    let misconfigured = |problem: &str| Err(EmbedError::Misconfigured(format!("embedder.url {problem}")));
    let Some(place) = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")) else {
        return misconfigured("must begin with http:// or https://");
    };
    if place.contains(['@', '?', '#']) {
        return misconfigured(
            "must contain no user, no password and no parameters; set the token as embedder.token",
        );
    }
    let url = format!("{}/embeddings", url.trim_end_matches('/'));
    match url.parse::<http::Uri>() {
        Ok(parsed) if parsed.host().is_some_and(|host| !host.is_empty()) => Ok(url),
        Ok(_) | Err(_) => misconfigured("is not a URL"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_url_must_not_contain_a_secret() {
        for good in ["http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1/"] {
            assert_eq!(endpoint(good).unwrap(), "http://127.0.0.1:11434/v1/embeddings");
        }
        for bad in [
            "",
            "ftp://a",
            "a:80",
            "http://",
            "http:///v1",
            "http://u:hush@a/v1",
            "http://a/v1?key=hush",
            "http://a b",
        ] {
            let told = endpoint(bad).unwrap_err().to_string();
            assert!(told.contains("embedder.url") && !told.contains("hush"), "{told}");
        }
    }
}
