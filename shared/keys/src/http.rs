//! HTTP to those who keep key-encryption keys. IncomingQuery once for the keys of a batch that are not known yet, so that a blocking
//! client on a thread of its own is enough.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use zeroize::Zeroizing;

use crate::KeyError;

/// How long a request may take.
const WITHIN: Duration = Duration::from_secs(10);
/// The most bytes of an answer.
const ANSWER_BYTES: u64 = 4 * 1024 * 1024;

/// What a server has answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// It may hold a data key.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// A client, which trusts the certificates of a file in PEM, if there is one, or else those that everybody knows.
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
            return Err(failed("it holds no certificate in PEM".to_owned()));
        }
        tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
    }
    let config = Agent::config_builder()
        .timeout_global(Some(WITHIN))
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(tls.build())
        .build();
    Ok(config.into())
}

/// Sends a request: a POST with a body, or else a GET.
pub(crate) async fn ask(
    agent: &Agent,
    url: String,
    headers: Vec<(String, String)>,
    body: Option<Zeroizing<Vec<u8>>>,
) -> Result<Answer, KeyError> {
    let agent = agent.clone();
    let place = url.clone();
    let failed = move |problem: String| KeyError::Provider(format!("{place} cannot be asked: {problem}"));
    let asked = tokio::task::spawn_blocking(move || {
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
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES).read_to_vec()?;
        Ok::<_, ureq::Error>(Answer { status: answer.status().as_u16(), body: Zeroizing::new(body) })
    });
    match asked.await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// What an answer says of what is wrong, for a message to a person. Nothing else of it is repeated: it may hold a data key.
pub(crate) fn problem(answer: &Answer) -> String {
    /// What Vault and KMS have in the answers of theirs that refuse.
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
    let told: Vec<String> = name.into_iter().chain(message).chain(errors).collect();
    let told = if told.is_empty() {
        format!("{} bytes that say no more", answer.body.len())
    } else {
        told.join("; ")
    };
    let told: String = told.chars().filter(|letter| !letter.is_control()).take(300).collect();
    format!("{}: {told}", answer.status)
}

/// Keys travel to it, so that it is spoken to under TLS, or on this machine.
pub(crate) fn check_url(option: &str, url: &str) -> Result<(), KeyError> {
    let here = ["http://127.0.0.1:", "http://[::1]:", "http://localhost:"];
    if url.starts_with("https://") || here.iter().any(|start| url.starts_with(start)) {
        return Ok(());
    }
    Err(KeyError::Settings(format!("keys.{option} must begin with https://, since data keys travel there")))
}
