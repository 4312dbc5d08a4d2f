//! HTTP to those who keep key-encryption keys. Asked once for the keys of a batch that are not known yet, so that a blocking
//! client on a thread of its own is enough.

use std::path::Path;
use std::time::Duration;

use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::KeyError;

/// How long a request may take.
const WITHIN: Duration = Duration::from_secs(10);
/// The most bytes of an answer.
const ANSWER_BYTES: u64 = 4 * 1024 * 1024;

/// What a server has answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
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
    body: Option<Vec<u8>>,
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
        Ok::<_, ureq::Error>(Answer { status: answer.status().as_u16(), body })
    });
    match asked.await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The start of an answer that is not as it should be, for a message to a person.
pub(crate) fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().filter(|letter| !letter.is_control()).take(300).collect()
}
