//! The statements of a worker, seen between it and PostgreSQL.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use config::Settings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// The transactions that have ended, each as its statements.
#[derive(Clone, Debug, Default)]
pub struct Transactions(Arc<Mutex<Vec<Vec<String>>>>);

impl Transactions {
    /// Has the workers with these settings connect through a port that passes everything on.
    pub async fn watch(settings: &mut Settings) -> Self {
        let url = settings.postgres.worker_url.clone().expect("a URL");
        let (_, rest) = url.rsplit_once('@').expect("a login in the URL");
        let (server, _) = rest.split_once('/').expect("a database in the URL");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        settings.postgres.worker_url = Some(url.replace(server, &address));
        let (server, seen) = (server.to_owned(), Self::default());
        let transactions = seen.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.expect("a connection to the server");
                let (mut answers, requests) = server.into_split();
                let (client, mut back) = client.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
                tokio::spawn(pass_on(client, requests, seen.clone()));
            }
        });
        transactions
    }

    /// Those since the last call that have a statement with this text.
    pub fn take(&self, text: &str) -> Vec<Vec<String>> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        all.into_iter().filter(|one| one.iter().any(|statement| statement.contains(text))).collect()
    }

    fn add(&self, statements: Vec<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(statements);
    }
}

/// Passes on what a client sends until one side closes.
async fn pass_on(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, seen: Transactions) {
    let (mut watched, mut is_started) = (Watched::default(), false);
    while let Ok(message) = read(&mut client, is_started).await {
        if is_started && let Some(statements) = watched.note(&message) {
            seen.add(statements);
        }
        if server.write_all(&message).await.is_err() {
            return;
        }
        is_started = true;
    }
}

/// A message of the protocol: its type, its length with that of the length itself, its content. The first one has no type.
async fn read(client: &mut OwnedReadHalf, has_type: bool) -> std::io::Result<Vec<u8>> {
    let head = if has_type { 5 } else { 4 };
    let mut message = vec![0; head];
    client.read_exact(&mut message).await?;
    let length: [u8; 4] = message[head - 4..].try_into().expect("four bytes");
    let content = usize::try_from(u32::from_be_bytes(length)).expect("a length") - 4;
    message.resize(head + content, 0);
    client.read_exact(&mut message[head..]).await?;
    Ok(message)
}

/// What is known of a connection.
#[derive(Default)]
struct Watched {
    /// The texts of prepared statements by name.
    prepared: HashMap<String, String>,
    /// The statements of the transaction that is open.
    open: Option<Vec<String>>,
}

impl Watched {
    /// Notes a message. Returns the statements of the transaction that it ends.
    fn note(&mut self, message: &[u8]) -> Option<Vec<String>> {
        let text = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        let mut texts = message[5..].split(|byte| *byte == 0).map(text);
        match (message[0], texts.next()?) {
            (b'P', name) => {
                self.prepared.insert(name, texts.next()?);
                None
            }
            // It is preceded by the name of a portal.
            (b'B', _) => {
                let statement = self.prepared.get(&texts.next()?).cloned()?;
                self.run(statement)
            }
            (b'Q', statement) => self.run(statement),
            _ => None,
        }
    }

    fn run(&mut self, statement: String) -> Option<Vec<String>> {
        if statement.starts_with("BEGIN") {
            self.open = Some(Vec::new());
        } else if statement.starts_with("COMMIT") {
            return self.open.take();
        } else if statement.starts_with("ROLLBACK") {
            self.open = None;
        } else if let Some(open) = &mut self.open {
            open.push(statement);
        }
        None
    }
}
