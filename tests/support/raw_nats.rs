//! A publisher that sends any bytes to a NATS server, as a client in another language may.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection without a client library.
pub struct RawPublisher {
    stream: TcpStream,
}

impl RawPublisher {
    /// Connects to `nats://user:password@host:port`.
    pub async fn connect(url: &str) -> Self {
        let address = url.strip_prefix("nats://").expect("a URL");
        let (login, address) = address.split_once('@').expect("a user");
        let (user, password) = login.split_once(':').expect("a password");
        let stream = TcpStream::connect(address).await.expect("a connection");
        let mut publisher = Self { stream };
        let options = serde_json::json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "protocol": 1,
            "lang": "raw", "version": "0", "user": user, "pass": password,
        });
        publisher.send(format!("CONNECT {options}\r\n").as_bytes()).await;
        publisher.flush().await;
        publisher
    }

    /// Publishes a message with this header block, to which the server may reply at `reply`.
    pub async fn publish_to(&mut self, subject: &[u8], reply: &str, block: &[u8], body: &[u8]) {
        let sizes = format!(" {reply} {} {}\r\n", block.len(), block.len() + body.len());
        self.send(&[b"HPUB ", subject, sizes.as_bytes(), block, body, b"\r\n"].concat()).await;
    }

    /// Publishes a message with this header block.
    pub async fn publish(&mut self, subject: &[u8], block: &[u8], body: &[u8]) {
        self.publish_to(subject, "", block, body).await;
    }

    /// Waits until the server has received everything.
    ///
    /// # Panics
    /// With what the server refused.
    pub async fn flush(&mut self) {
        self.send(b"PING\r\n").await;
        let mut received = String::new();
        while !received.contains("PONG\r\n") {
            let mut chunk = [0; 4096];
            let read = self.stream.read(&mut chunk).await.expect("an answer");
            received.push_str(&String::from_utf8_lossy(&chunk[..read]));
            assert!(read > 0 && !received.contains("-ERR"), "the server refuses: {received}");
        }
        if received.contains("PING\r\n") {
            self.send(b"PONG\r\n").await;
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("a connection that stays");
    }
}

/// A header block with these lines.
pub fn block(lines: &[&[u8]]) -> Vec<u8> {
    let mut block = b"NATS/1.0\r\n".to_vec();
    for line in lines {
        block.extend_from_slice(line);
        block.extend_from_slice(b"\r\n");
    }
    block.extend_from_slice(b"\r\n");
    block
}
