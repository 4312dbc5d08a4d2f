//! Helpers of the tests.
#![allow(dead_code, clippy::unwrap_used, reason = "a test may panic, and each has its part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use config::{EmbedderKind, EmbedderSettings};
use embed::Embedder;
use serde_json::{Value, json};
use stack::Places;

/// A path in the folder of the downloads of `make setup`.
pub fn fetched(path: &str) -> PathBuf {
    Places::of_this_process().home().join(path)
}

/// Reports that a test is skipped because a download is missing. CI has all downloads.
pub fn skip(path: &std::path::Path, fetched: bool) {
    let problem = format!("{} is not there", path.display());
    assert!(!fetched || std::env::var_os("CI").is_none(), "{problem}; `scripts/setup --tests` gets it");
    // Not by println!, which is shown for tests that fail only.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "skipped: {problem}").unwrap();
}

/// The chunks of a text.
pub fn cut<'a>(embedder: &Embedder, text: &'a str) -> Vec<&'a str> {
    embedder.chunks(text).into_iter().map(|piece| &text[piece]).collect()
}

/// A request that a server received.
#[derive(Clone, Debug)]
pub struct ReceivedRequest {
    pub path: String,
    /// The headers by their names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Value,
}

impl ReceivedRequest {
    pub fn texts(&self) -> Vec<String> {
        serde_json::from_value(self.body["input"].clone()).unwrap()
    }
}

/// The behaviour of a server.
pub enum Reply {
    /// It responds with a status, a header and a body.
    Says(u16, &'static str, String),
    /// It closes the connection after these bytes.
    Closes(&'static str),
    /// It sends an endless response.
    Floods,
    /// It does not respond.
    Hangs,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self::Says(status, "X-Nothing: 1", String::new())
    }

    /// A response with the vectors of the texts.
    pub fn vectors(asked: &ReceivedRequest) -> Self {
        let texts = asked.texts();
        let item = |(index, text): (usize, &String)| json!({"index": index, "embedding": vector(text)});
        // In reverse order, so that the indexes matter.
        let data: Vec<Value> = texts.iter().enumerate().rev().map(item).collect();
        Self::data(&data)
    }

    pub fn data(data: &[Value]) -> Self {
        Self::Says(200, "X-Nothing: 1", json!({"object": "list", "data": data, "model": "m"}).to_string())
    }
}

/// A vector of a text with three dimensions, not normalized.
pub fn vector(text: &str) -> [f32; 3] {
    [text.len() as f32 + 1.0, f32::from(text.bytes().next().unwrap_or(1)), 2.0]
}

/// A server in this process. It calls a function with the number of the request, from 0, and the request.
pub struct Server {
    pub url: String,
    asked: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl Server {
    pub fn start(does: impl Fn(usize, &ReceivedRequest) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (all, does) = (Arc::clone(&asked), Arc::new(does));
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (all, does) = (Arc::clone(&all), Arc::clone(&does));
                thread::spawn(move || {
                    let Some(one) = read(&connection) else { return };
                    let number = {
                        let mut all = all.lock().unwrap();
                        all.push(one.clone());
                        all.len() - 1
                    };
                    reply(connection, does(number, &one));
                });
            }
        });
        Self { url, asked }
    }

    pub fn asked(&self) -> Vec<ReceivedRequest> {
        self.asked.lock().unwrap().clone()
    }

    pub fn settings(&self) -> EmbedderSettings {
        EmbedderSettings {
            kind: EmbedderKind::Http,
            url: Some(self.url.clone()),
            model: Some("some-model".to_owned()),
            dimension: Some(3),
            ..EmbedderSettings::default()
        }
    }
}

fn read(connection: &TcpStream) -> Option<ReceivedRequest> {
    let mut lines = BufReader::new(connection);
    let mut line = String::new();
    lines.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        lines.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    lines.read_exact(&mut body).ok()?;
    Some(ReceivedRequest { path, headers, body: serde_json::from_slice(&body).ok()? })
}

/// Ignores errors, because the client may have closed the connection.
fn reply(mut to: TcpStream, reply: Reply) {
    let _ = match reply {
        Reply::Says(status, header, body) => {
            let head = format!("HTTP/1.1 {status} Words\r\n{header}\r\nContent-Length: {}", body.len());
            write!(to, "{head}\r\nConnection: close\r\n\r\n{body}")
        }
        Reply::Closes(bytes) => to.write_all(bytes.as_bytes()),
        Reply::Floods => {
            let mut flooded = to.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"data\":[");
            while flooded.is_ok() {
                flooded = to.write_all(&[b' '; 4096]);
            }
            flooded
        }
        Reply::Hangs => to.read(&mut [0]).map(|_| ()),
    };
}
