//! HTTP requests to KEK providers. There is at most one per batch, for the keys that are not cached, so that a blocking
//! client on a blocking thread is sufficient.

use std::path::Path;
use std::time::Duration;

use contract::without_password;
use serde::Deserialize;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use zeroize::Zeroizing;

use crate::KeyError;

/// The timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest response, in bytes.
const MAX_ANSWER_BYTES: u64 = 4 * 1024 * 1024;

/// A response.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// It may contain a data key.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// A client that trusts the CA certificates of a PEM file, or the public CAs if there is no file.
pub(crate) fn agent(ca_file: Option<&str>) -> Result<Agent, KeyError> {
    let mut tls = TlsConfig::builder();
    if let Some(file) = ca_file {
        let failed = |problem: String| KeyError::Settings(format!("{file} cannot be used: {problem}"));
        let text = std::fs::read(Path::new(file)).map_err(|error| failed(error.to_string()))?;
        let certificates: Vec<Certificate<'static>> = ureq::tls::parse_pem(&text)
            .filter_map(|item| match item {
                Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(Ok(certificate)),
                Ok(_) => None,
                Err(error) => Some(Err(failed(error.to_string()))),
            })
            .collect::<Result<_, _>>()?;
        if certificates.is_empty() {
            return Err(failed("it contains no PEM certificate".to_owned()));
        }
        tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
    }
    let config = Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(tls.build())
        .build();
    Ok(config.into())
}

/// Sends a request: a POST if there is a body, or else a GET.
pub(crate) async fn ask(
    agent: &Agent,
    url: String,
    headers: Vec<(String, String)>,
    body: Option<Zeroizing<Vec<u8>>>,
) -> Result<Answer, KeyError> {
    let agent = agent.clone();
    let (whole, shown) = (url.clone(), without_password(&url));
    let failed = move |problem: String| {
        let problem = problem.replace(&whole, &shown);
        KeyError::Provider(format!("the request to {shown} failed: {problem}"))
    };
    let response = tokio::task::spawn_blocking(move || {
        let mut answer = match body {
            Some(body) => {
                let request = headers
                    .iter()
                    .fold(agent.post(&url), |request, (name, value)| request.header(name, value));
                request.send(body.as_slice())?
            }
            None => headers
                .iter()
                .fold(agent.get(&url), |request, (name, value)| request.header(name, value))
                .call()?,
        };
        let body = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec()?;
        Ok::<_, ureq::Error>(Answer { status: answer.status().as_u16(), body: Zeroizing::new(body) })
    });
    match response.await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The status and the error messages of a response. Nothing else of it is quoted, because it may contain a data key.
pub(crate) fn problem(answer: &Answer) -> String {
    /// The error responses of Vault and KMS.
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Refusal {
        errors: Vec<String>,
        #[serde(rename = "__type")]
        name: Option<String>,
        #[serde(alias = "Message")]
        message: Option<String>,
    }
    let Refusal { errors, name, message } = serde_json::from_slice(&answer.body).unwrap_or_default();
    let messages: Vec<String> = name.into_iter().chain(message).chain(errors).collect();
    let messages = if messages.is_empty() {
        format!("no error message in {} bytes", answer.body.len())
    } else {
        messages.join("; ")
    };
    let messages: String = messages.chars().filter(|letter| !letter.is_control()).take(300).collect();
    format!("{}: {messages}", answer.status)
}

/// Requires TLS, or a server on this machine: data keys are sent to it.
pub(crate) fn check_url(option: &str, url: &str) -> Result<(), KeyError> {
    let here = ["http://127.0.0.1:", "http://[::1]:", "http://localhost:"];
    if url.starts_with("https://") || here.iter().any(|start| url.starts_with(start)) {
        return Ok(());
    }
    Err(KeyError::Settings(format!(
        "keys.{option} must begin with https://, because data keys are sent there"
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_hides_the_password_of_the_url() {
        for url in
            ["http://u:hunter2@127.0.0.1:1/v1", "http://u:hunter2@127.0.0.1:999999/v1", "http://u:hunter2@"]
        {
            let Err(error) = ask(&agent(None).unwrap(), url.to_owned(), Vec::new(), None).await else {
                panic!("nobody answers at {url}");
            };
            let text = format!("{error} {error:?}");
            assert!(text.contains("http://***@") && !text.contains("hunter2"), "{text}");
        }
    }
}
