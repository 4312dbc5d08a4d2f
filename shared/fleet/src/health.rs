//! HTTP health endpoints for orchestrators: `/healthz` and `/readyz`.
//!
//! A worker whose dependency is unavailable waits and recovers automatically. `/healthz` therefore reports only that
//! the process responds: a restart would not help.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use config::Settings;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::{Readiness, ReadinessReport};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// The maximum number of concurrent connections. Further ones wait to be accepted.
const CONNECTIONS: usize = 64;
/// The timeout of a connection, for its request and its response.
const CONNECTION_WITHIN: Duration = Duration::from_secs(5);
/// The timeout for the headers of a request.
const HEADERS_WITHIN: Duration = Duration::from_secs(1);
/// The pause after a connection could not be accepted, for example because there are no file descriptors left.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// The configured address is not available.
#[derive(Debug, thiserror::Error)]
#[error("health.listen: cannot listen on {address}: {source}")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Listens on the configured address, if there is one. Requests wait until they are [answered](serve).
///
/// # Errors
/// [`ListenError`].
pub async fn listen(settings: &Settings) -> Result<Option<TcpListener>, ListenError> {
    let Some(address) = settings.health.listen else { return Ok(None) };
    let failed = |source| ListenError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "listening for /healthz and /readyz");
    Ok(Some(listener))
}

/// Serves the readiness of these workers until the returned handle is dropped.
pub fn serve(listener: TcpListener, workers: Vec<Readiness>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(accept(listener, workers.into())))
}

async fn accept(listener: TcpListener, workers: Arc<[Readiness]>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed, so acquiring a permit does not fail.
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the health endpoints");
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        let workers = Arc::clone(&workers);
        tokio::spawn(async move {
            let _permit = permit;
            answer(stream, &workers).await;
        });
    }
}

async fn answer(stream: TcpStream, workers: &[Readiness]) {
    let service = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(respond(request.method(), request.uri().path(), workers))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A client that disconnects early, or sends no request in time, gets no response.
    drop(timeout(CONNECTION_WITHIN, connection).await);
}

fn respond(method: &Method, path: &str, workers: &[Readiness]) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/healthz" | "/readyz" if !matches!(*method, Method::GET | Method::HEAD) => {
            (StatusCode::METHOD_NOT_ALLOWED, json!({ "error": "only GET and HEAD are supported" }))
        }
        "/healthz" => (StatusCode::OK, json!({ "alive": true })),
        "/readyz" => readiness(workers.iter().map(Readiness::report).collect()),
        _ => (StatusCode::NOT_FOUND, json!({ "error": "not found; the endpoints are /healthz and /readyz" })),
    };
    let mut response = Response::new(Full::from(format!("{body}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// Ready if all workers are ready: a process with one worker is ready when its worker is.
fn readiness(workers: Vec<ReadinessReport>) -> (StatusCode, Value) {
    let ready = workers.iter().all(|worker| worker.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, json!({ "ready": ready, "workers": workers }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refused_method_is_answered_with_those_that_are_allowed() {
        let allowed = |method: Method, path: &str| {
            let response = respond(&method, path, &[]);
            (response.status().as_u16(), response.headers().get(ALLOW).map(|value| value.as_bytes().to_vec()))
        };
        for path in ["/healthz", "/readyz"] {
            assert_eq!(allowed(Method::POST, path), (405, Some(b"GET, HEAD".to_vec())));
            assert_eq!(allowed(Method::GET, path), (200, None));
            assert_eq!(allowed(Method::HEAD, path), (200, None));
        }
        assert_eq!(allowed(Method::POST, "/other"), (404, None));
    }
}
