use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use async_nats::jetstream::{self, consumer::PullConsumer};
use config::Settings;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures::StreamExt;
use runtime::{ExternalWorker, Observed, Readiness, RunError, Stats, broker};
use stack::{Nats, NatsOptions, Programs};
use store::registry::{self, Rates, ServiceEntry};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use topology::Topology;
use trust::Scope;

use crate::database::{create_database, create_key_store, worker_url};
use crate::logs;
use crate::publish::RequestMessage;
use crate::secrets::{GRANT_KEY, KEK_RING, PAYLOAD_RING, SEAL_KEY, TOKEN_KEY};
use crate::wait::eventually;

/// The servers of one test.
pub struct Fixture {
    /// The settings with which a worker connects to them.
    pub settings: Settings,
    /// The broker. A test may kill and resume it.
    pub nats: Nats,
    /// A client of the broker with all permissions.
    pub jetstream: jetstream::Context,
    folder: tempfile::TempDir,
}

/// A worker that runs in the test's process.
pub struct RunningWorker {
    /// Its counters.
    pub stats: Arc<Stats>,
    /// Its phase and missing dependencies.
    pub readiness: Readiness,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

#[allow(clippy::expect_used)]
impl RunningWorker {
    /// Stops the worker as SIGTERM would, and waits for its end.
    ///
    /// # Errors
    /// The error with which the worker ended.
    ///
    /// # Panics
    /// If the worker panicked.
    pub async fn stop(self) -> Result<(), RunError> {
        self.stop.cancel();
        self.task.await.expect("the worker did not panic")
    }

    /// Waits for the worker to end by itself, which it does only if it cannot work.
    ///
    /// # Errors
    /// The error with which the worker ended.
    ///
    /// # Panics
    /// If the worker panicked.
    pub async fn failure(self) -> Result<(), RunError> {
        self.task.await.expect("the worker did not panic")
    }
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Nullable<Text>)]
    line: Option<String>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        logs::keep_file("nats", &self.folder.path().join("nats.log"));
    }
}

/// Errors here are failures of the test's setup, so every method panics with what failed.
#[allow(clippy::expect_used, clippy::missing_panics_doc)]
impl Fixture {
    /// Starts servers with the current schema and the shipped streams.
    pub async fn new() -> Self {
        Self::with_topology(|_| {}).await
    }

    /// Starts servers with the current schema and streams that `change` has changed.
    pub async fn with_topology(change: impl FnOnce(&mut Topology)) -> Self {
        Self::with(change, |_| None).await
    }

    /// Starts servers whose broker has accounts with permissions, as in production. The fixture's own client is the
    /// operator.
    pub async fn secured() -> Self {
        Self::with_listeners([]).await
    }

    /// As [`Fixture::secured`], with a listener for the events of each of these users, also over WebSocket.
    pub async fn with_listeners(users: impl IntoIterator<Item = i32>) -> Self {
        let accounts = |folder: &Path| {
            let mut services = topology::Service::shipped().expect("the shipped services");
            let listeners = users.into_iter().map(|user| UserId::new(user).expect("a user"));
            services.extend(listeners.map(topology::Service::listener));
            let identities = topology::identities(&services);
            let public = topology::make_nkeys(&folder.join("nkeys"), &identities).expect("keys");
            Some(topology::render(&services, &public))
        };
        Self::with(|_| {}, accounts).await
    }

    async fn with(
        change: impl FnOnce(&mut Topology),
        accounts: impl FnOnce(&Path) -> Option<String>,
    ) -> Self {
        logs::start();
        let folder = tempfile::tempdir().expect("a folder for the broker");
        let programs = Programs::find().expect("the servers' programs");
        let accounts = accounts(folder.path());
        let options = NatsOptions { websocket: accounts.is_some(), accounts, ..NatsOptions::default() };
        let nkeys = options.accounts.as_ref().map(|_| folder.path().join("nkeys/{name}.nk"));
        let (nats, url, key_store) = tokio::join!(
            Nats::start(&programs, folder.path(), options),
            create_database(),
            create_key_store()
        );
        let nats = nats.expect("a broker");
        let mut settings = Settings::default();
        settings.nats.url = nats.url().to_owned();
        settings.nats.api_prefix = nkeys.as_ref().map(|_| topology::API_PREFIX.to_owned());
        settings.nats.nkey_file = nkeys.map(|file| file.to_str().expect("a path").to_owned());
        settings.postgres.url = url.expect("a database");
        settings.postgres.worker_url = Some(worker_url(&settings.postgres.url));
        settings.keys.url = key_store.expect("a key store");
        settings.keys.worker_url = Some(worker_url(&settings.keys.url));
        let key_file = |name: &str, content: &str| Some(write_file(folder.path(), name, content));
        settings.trust.grant_key_file = key_file("grant.key", GRANT_KEY);
        settings.trust.token_key_file = key_file("token.key", TOKEN_KEY);
        settings.trust.payload_ring_file = key_file("payload.ring", PAYLOAD_RING);
        settings.audit.seal_key_file = key_file("seal.key", SEAL_KEY);
        settings.keys.ring_file = key_file("kek.ring", KEK_RING);
        settings.worker.retry_first_delay_ms = 20;
        settings.worker.retry_longest_delay_ms = 200;
        settings.worker.startup_timeout_s = 30;
        let client =
            broker::connect_operator(&settings.nats, "test").await.expect("a connection to the broker");
        let jetstream = jetstream::new(client);
        let mut topology = Topology::shipped().expect("the shipped streams");
        change(&mut topology);
        topology::apply(&jetstream, &topology).await.expect("streams and consumers");
        Self { settings, nats, jetstream, folder }
    }

    /// The environment variables with which the program connects to the servers.
    pub fn environment(&self) -> Vec<(String, String)> {
        let all = self.settings.to_environment().expect("an environment");
        let servers = [
            "MEMFLEET_NATS__",
            "MEMFLEET_POSTGRES__",
            "MEMFLEET_TRUST__",
            "MEMFLEET_KEYS__",
            "MEMFLEET_ARCHIVE__",
            "MEMFLEET_AUDIT__",
            "MEMFLEET_PRIVACY__",
            "MEMFLEET_VECTORS__",
            "MEMFLEET_EMBEDDER__",
            "MEMFLEET_NEXT_EMBEDDER__",
        ];
        all.into_iter().filter(|(name, _)| servers.iter().any(|start| name.starts_with(start))).collect()
    }

    /// Starts a worker in this process.
    pub fn run<W: ExternalWorker>(&self, worker: W) -> RunningWorker {
        self.run_with(worker, self.settings.clone())
    }

    /// Starts a worker in this process with other settings.
    pub fn run_with<W: ExternalWorker>(&self, worker: W, settings: Settings) -> RunningWorker {
        let (observed, stop) = (Observed::new(W::INFO.name), CancellationToken::new());
        let (seen, stopped) = (observed.clone(), stop.clone());
        let task =
            tokio::spawn(async move { runtime::run(Arc::new(worker), &settings, seen, stopped).await });
        let Observed { stats, readiness } = observed;
        RunningWorker { stats, readiness, stop, task }
    }

    /// Publishes requests and waits until the broker has stored them.
    pub async fn publish(&self, requests: impl IntoIterator<Item = RequestMessage>) {
        let mut waiting = Vec::new();
        for request in requests {
            let headers = request.header_map();
            let sent = self.jetstream.publish_with_headers(request.subject, headers, request.body.into());
            waiting.push(sent.await.expect("a publish"));
        }
        for acknowledged in waiting {
            acknowledged.await.expect("an acknowledged publish");
        }
    }

    /// Subscribes to a subject.
    pub async fn subscribe(&self, subject: &str) -> async_nats::Subscriber {
        let client = self.jetstream.client();
        let subscriber = client.subscribe(subject.to_owned()).await.expect("a subscription");
        client.flush().await.expect("a broker that has it");
        subscriber
    }

    /// The seed of an identity's nkey, at a broker with accounts.
    pub fn seed(&self, identity: &str) -> String {
        let file = self.folder.path().join(format!("nkeys/{identity}.nk"));
        std::fs::read_to_string(file).expect("a key").trim().to_owned()
    }

    /// A consumer of the broker. While servers of a cluster fail, it may not be there for a moment.
    pub async fn consumer(&self, stream: &str, name: &str) -> PullConsumer {
        eventually("there is the consumer", async || {
            self.jetstream.get_consumer_from_stream(name, stream).await.ok()
        })
        .await
    }

    /// Waits until a worker has acknowledged every message of its stream.
    pub async fn drained<W: ExternalWorker>(&self) {
        let consumer = self.consumer(W::INFO.stream.expect("a stream"), W::INFO.name).await;
        // For a moment after a publish, the server may not count the message as pending for the consumer.
        let stream = eventually("there is the stream", async || {
            self.jetstream.get_stream(W::INFO.stream.expect("a stream")).await.ok()
        })
        .await;
        let last = stream.cached_info().state.last_sequence;
        eventually("every message of the stream is acknowledged", async || {
            let info = consumer.get_info().await.ok()?;
            let delivered = info.delivered.stream_sequence >= last;
            (delivered && info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
        })
        .await;
    }

    /// Registers a service with these scopes: `register("alpha", "context:* session:open")`.
    pub async fn register(&self, service: &str, scopes: &str) {
        let scopes = Scope::parse_list(scopes).expect("scopes");
        let entry = ServiceEntry { scopes, rates: Rates::default() };
        let service = service.parse().expect("a service");
        registry::put_service(&mut self.connection().await, &service, &entry).await.expect("a service");
    }

    /// A connection to the test's database.
    pub async fn connection(&self) -> AsyncPgConnection {
        store::connect(&self.settings.postgres.url).await.expect("a connection to the database")
    }

    /// Runs statements.
    pub async fn execute(&self, sql: &str) {
        self.connection().await.batch_execute(sql).await.expect("a statement");
    }

    /// The number of rows that a FROM clause with its conditions yields: `count("inbox WHERE user_id = 1")`.
    pub async fn count(&self, from: &str) -> i64 {
        let query = format!("SELECT count(*) AS number FROM {from}");
        let rows: Vec<Number> =
            diesel::sql_query(query).load(&mut self.connection().await).await.expect("a count");
        rows.iter().map(|row| row.number).sum()
    }

    /// The value of an expression for each row, as text: `lines("session_id FROM chat_mode_sessions ORDER BY 1")`.
    pub async fn lines(&self, select: &str) -> Vec<String> {
        lines_on(&mut self.connection().await, select).await
    }

    /// Publishes requests, has a worker in this process process them, and waits until all are acknowledged.
    pub async fn process<W: ExternalWorker>(
        &self,
        worker: W,
        requests: impl IntoIterator<Item = RequestMessage>,
    ) {
        let worker = self.run(worker);
        self.publish(requests).await;
        self.drained::<W>().await;
        worker.stop().await.expect("a clean end");
    }

    /// Writes a file with this content, which is removed with the fixture.
    pub fn key_file(&self, name: &str, content: &str) -> String {
        write_file(self.folder.path(), name, content)
    }

    /// The number of messages a stream holds.
    pub async fn stored(&self, stream: &str) -> u64 {
        self.jetstream.get_stream(stream).await.expect("a stream").cached_info().state.messages
    }

    /// The messages of a stream, oldest first.
    pub async fn messages(&self, stream: &str) -> Vec<jetstream::message::StreamMessage> {
        let stream = self.jetstream.get_stream(stream).await.expect("a stream");
        let state = &stream.cached_info().state;
        let mut messages = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            if let Ok(message) = stream.get_raw_message(sequence).await {
                messages.push(message);
            }
        }
        messages
    }

    /// `class: reason` of every dead letter, oldest first.
    pub async fn dead_letters(&self) -> Vec<String> {
        let header = |message: &jetstream::message::StreamMessage, name: &str| {
            message.headers.get(name).map_or_else(String::new, |value| value.as_str().to_owned())
        };
        self.messages("DEAD")
            .await
            .iter()
            .map(|message| {
                let class = header(message, contract::header::DEAD_CLASS);
                format!("{class}: {}", header(message, contract::header::DEAD_REASON))
            })
            .collect()
    }
}

#[allow(clippy::expect_used)]
fn write_file(folder: &Path, name: &str, content: &str) -> String {
    let file = folder.join(name);
    std::fs::write(&file, content).expect("a key file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    file.to_str().expect("a path").to_owned()
}

/// The next message of a subscription.
///
/// # Panics
/// If none comes before the deadline.
#[allow(clippy::expect_used)]
pub async fn next(subscriber: &mut async_nats::Subscriber) -> async_nats::Message {
    let next = tokio::time::timeout(crate::wait::DEADLINE, subscriber.next()).await;
    next.expect("a message in time").expect("a subscription that goes on")
}

/// As [`Fixture::lines`], on this connection.
///
/// # Panics
/// If the statement fails.
#[allow(clippy::expect_used)]
pub async fn lines_on(connection: &mut AsyncPgConnection, select: &str) -> Vec<String> {
    let (expression, rest) = select.split_once(" FROM ").expect("a FROM clause");
    let query = format!("SELECT ({expression})::text AS line FROM {rest}");
    let rows: Vec<Line> = diesel::sql_query(query).load(connection).await.expect("a query");
    rows.into_iter().map(|row| row.line.unwrap_or_else(|| "NULL".to_owned())).collect()
}
