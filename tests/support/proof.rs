//! Ten persons in every store, and searches for all that the stores have of one of them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use ::archive::{Keys, Target};
use consensus_builder::ConsensusBuilder;
use context_writer::ContextWriter;
use futures::TryStreamExt as _;
use memory_sync::MemorySync;
use qdrant_client::qdrant::{RetrievedPoint, ScrollPointsBuilder};
use router_logger::RouterLogger;
use serde_json::json;
use testkit::{Fixture, RequestMessage, lines_on, request, session, user};
use uuid::Uuid;
use vector_indexer::VectorIndexer;

use super::archives::{TABLES, archive, with_target};
use super::erasure::{rows_with, tables, with_receipts};
use super::memories::{Memories, index, memory};
use super::privacy::fill;
use super::retention::{cleaner, sweep_all};
use super::search::{analyze_database, broker_folder, bytes, database_folder, files_with, rewrite_database};
use super::sync::Sync;

/// The person who is erased.
pub const PERSON: i32 = 77_003;
/// Nine others. Ids that begin or end like the person's are among them.
pub const OTHERS: [i32; 9] = [1, 2, 3, 77, 7_700, 770_030, 177_003, 77_004, 5_003];

/// The store that has pseudonyms and no text, so that a canary is never there.
const VECTORS: &str = "files of the vector store";

/// A broker, a database, archives and a vector store with the person and nine others in all of them.
pub struct Ten {
    pub memories: Memories,
    pub receipts: tempfile::TempDir,
    _archives: tempfile::TempDir,
    /// What this run's canaries begin with: other tests share the PostgreSQL server and its log.
    run: String,
    /// The person's pseudonym in the vector store.
    tenant: String,
    /// The person's data keys as the key store has them.
    wrapped: Vec<Vec<u8>>,
}

impl Ten {
    pub async fn new() -> Self {
        let mut memories = Memories::new().await;
        let receipts = with_receipts(&mut memories.fixture);
        let archives = with_target(&mut memories.fixture);
        let run = format!("k{:06x}", fastrand::u32(..1 << 24));
        let mut ten =
            Self { memories, receipts, _archives: archives, run, tenant: String::new(), wrapped: Vec::new() };
        // A job that a schedule starts would work on rows of others, which are compared.
        let jobs = ten.fixture().jetstream.get_stream("JOBS").await.expect("the stream");
        jobs.purge().await.expect("no schedules");
        ten.fill().await;
        let tenant = format!(
            "encode(substr(sha256(s.digest_key || convert_to('vector tenant', 'UTF8')), 1, 16), 'hex')::uuid
             FROM audit.subjects s WHERE s.user_id = {PERSON}"
        );
        ten.tenant = ten.fixture().lines(&tenant).await.remove(0);
        let wrapped = format!("encode(wrapped, 'hex') FROM data_keys WHERE user_id = {PERSON}");
        ten.wrapped = ten.in_key_store(&wrapped).await.iter().map(|digits| bytes(digits)).collect();
        ten
    }

    pub fn fixture(&self) -> &Fixture {
        &self.memories.fixture
    }

    /// What every text of a user has, and of nobody else.
    pub fn canary(&self, user: i32) -> String {
        format!("{}-of-{user}-", self.run)
    }

    async fn fill(&self) {
        let fixture = self.fixture();
        let accounts: Vec<RequestMessage> = everybody()
            .flat_map(|id| [user(id), session(id, "s"), self.context(id, "plain", false)])
            .collect();
        fixture.process(ContextWriter, accounts).await;
        self.memories.process(everybody().map(|id| self.memory(id, 1)).collect::<Vec<_>>()).await;
        self.archive().await;
        for id in everybody() {
            fill(fixture, id, &self.canary(id)).await;
        }
        fixture.process(RouterLogger, everybody().map(|id| self.decision(id)).collect::<Vec<_>>()).await;
        // A value under a data key, and dead letters: of a body that is refused, and of one that cannot be read.
        let more = everybody().flat_map(|id| {
            let unreadable =
                request("context.put", id, json!({})).map_body(|_| format!("{{{}", self.canary(id)));
            [self.context(id, "secret", true), self.mistake(id), unreadable]
        });
        fixture.process(ContextWriter, more.collect::<Vec<_>>()).await;
    }

    /// Old sessions of all users, which retention puts into archives together.
    async fn archive(&self) {
        let (fixture, run) = (self.fixture(), &self.run);
        let users: Vec<String> = everybody().map(|user| user.to_string()).collect();
        let users = format!("unnest(ARRAY[{}]) AS n", users.join(", "));
        fixture
            .execute(&format!(
                "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
                     SELECT gen_random_uuid(), n, 'ended', 'simple', false, now() - interval '400 days' FROM {users};
                 INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
                     SELECT gen_random_uuid(), n, 'ended', 'old', to_jsonb('{run}-of-' || n || '-old') FROM {users}"
            ))
            .await;
        archive(fixture, &TABLES).await;
        let worker = fixture.run(cleaner(fixture));
        sweep_all(fixture).await;
        worker.stop().await.expect("a clean end");
        let shared = format!("archives WHERE user_ids @> ARRAY[{PERSON}, 77]");
        assert!(fixture.count(&shared).await >= 1, "shared ones");
    }

    fn context(&self, id: i32, key: &str, is_sensitive: bool) -> RequestMessage {
        let body = json!({ "session_id": "s", "context_key": key, "context_value": self.canary(id), "version": 1,
            "sensitive": is_sensitive });
        request("context.put", id, body)
    }

    fn mistake(&self, id: i32) -> RequestMessage {
        request("context.put", id, json!({ "session_id": "s", "mistake": self.canary(id) }))
    }

    fn decision(&self, id: i32) -> RequestMessage {
        let body = json!({ "decision_id": Uuid::now_v7(), "session_id": "s", "user_request": self.canary(id),
            "routing_decision": { "route": "direct" } });
        request("decision.log", id, body)
    }

    fn proposal(&self, id: i32) -> RequestMessage {
        let node = Uuid::now_v7();
        let body = json!({ "node_id": node, "node_type": "note", "node_key": node, "title": self.canary(id), "content": {} });
        request("knowledge.propose", id, body)
    }

    fn memory(&self, id: i32, number: u64) -> RequestMessage {
        index(id, vec![memory(Uuid::now_v7(), &format!("{} {number}", self.canary(id)), number)])
    }

    /// A request of the person for each worker, and one that none accepts. A sync goes over all contexts, so that there are fewer of them.
    pub async fn send(&self, number: u64) {
        let context = self.context(PERSON, &format!("k{number}"), number.is_multiple_of(2));
        let (decision, memory) = (self.decision(PERSON), self.memory(PERSON, number));
        let mut requests = vec![context, decision, memory, self.proposal(PERSON), self.mistake(PERSON)];
        if number.is_multiple_of(20) {
            requests.push(Sync::new().start_as(PERSON, "context_transfer", "s", "filled-one", json!({})));
        }
        self.fixture().publish(requests).await;
    }

    /// What services send for the person, without an end.
    pub async fn load(&self) -> Infallible {
        for number in 1_000.. {
            self.send(number).await;
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        unreachable!("there are more numbers")
    }

    /// Waits until the workers have done all that was sent.
    pub async fn drained(&self) {
        self.fixture().drained::<ContextWriter>().await;
        self.fixture().drained::<RouterLogger>().await;
        self.fixture().drained::<VectorIndexer>().await;
        self.fixture().drained::<ConsensusBuilder>().await;
        self.fixture().drained::<MemorySync>().await;
    }

    /// Where the person's canary is, by store.
    async fn found(&self) -> BTreeMap<&'static str, Vec<String>> {
        let (fixture, canary) = (self.fixture(), self.canary(PERSON));
        let of_lines = |lines: Vec<String>| -> Vec<String> {
            lines.into_iter().filter(|line| line.contains(&canary)).collect()
        };
        let vectors = self.memories.qdrant.data();
        let vectors = vectors.parent().expect("the folder with its log, too");
        let database = database_folder(&fixture.settings.postgres.url).await;
        let mut of_keys = Vec::new();
        let keys = database_folder(&fixture.settings.keys.url).await;
        for wrapped in &self.wrapped {
            of_keys.extend(files_with(&keys, wrapped));
        }
        BTreeMap::from([
            ("rows", rows_with(fixture, &canary).await),
            ("messages", of_lines(self.messages().await)),
            ("files of the broker", text(files_with(&broker_folder(fixture.nats.pid()), canary.as_bytes()))),
            (VECTORS, text(files_with(vectors, canary.as_bytes()))),
            ("archives", of_lines(self.archived().await.into_iter().map(|(_, row)| row).collect())),
            ("files of the database", text(files_with(&database, canary.as_bytes()))),
            ("data keys in the files of the key store", text(of_keys)),
        ])
    }

    /// Each search finds the person: without this, one that finds nothing proves nothing.
    pub async fn assert_everywhere(&self) {
        // The worst for an erasure: the planner has samples of all columns.
        analyze_database(&self.fixture().settings.postgres.url).await;
        for (store, places) in self.found().await {
            assert_eq!(places.is_empty(), store == VECTORS, "{store}: {places:?}");
        }
        let messages = self.messages().await;
        for stream in ["CONTEXT", "ROUTER", "VECTOR", "EVENTS", "DEAD"] {
            let has = |line: &String| line.starts_with(stream) && line.contains(&self.canary(PERSON));
            assert!(messages.iter().any(has), "{stream}");
        }
        assert!(!self.wrapped.is_empty() && !self.points(|tenant| tenant == self.tenant).await.is_empty());
        let pseudonym = files_with(&self.memories.qdrant.data(), self.tenant.as_bytes());
        assert!(!pseudonym.is_empty(), "the vector store has its files in plain");
    }

    /// No store has the person: no row, no message, no point, no archive, and no file of them, once PostgreSQL has written its files anew.
    pub async fn assert_nowhere(&self) {
        let databases = [&self.fixture().settings.postgres.url, &self.fixture().settings.keys.url];
        let mut found = BTreeMap::new();
        // A connection that is still being closed keeps deleted rows for a moment.
        for _ in 0..3 {
            for url in databases {
                rewrite_database(url).await;
            }
            found = self.found().await;
            if found.values().all(Vec::is_empty) {
                break;
            }
        }
        for (store, places) in found {
            assert_eq!(places, Vec::<String>::new(), "{store}");
        }
        let points = self.points(|tenant| tenant == self.tenant).await;
        assert_eq!(points, Vec::<String>::new());
        let messages = self.messages().await;
        let of_person = |line: &&String| user_of(line) == Some(PERSON);
        assert_eq!(messages.iter().find(of_person), None);
        assert!(self.archived().await.iter().all(|(id, _)| *id != PERSON.to_string()));
    }

    /// All that the stores have of the nine others, byte by byte.
    pub async fn of_others(&self) -> Vec<String> {
        let ids: Vec<String> = OTHERS.iter().map(ToString::to_string).collect();
        let ids = format!("ANY (ARRAY[{}])", ids.join(", "));
        let mut all = Vec::new();
        for (table, column) in tables(self.fixture()).await {
            let rows =
                format!("'{table} ' || t::text FROM {table} t WHERE {column} = {ids} ORDER BY t::text");
            all.extend(self.fixture().lines(&rows).await);
        }
        let subjects =
            format!("'subject ' || t::text FROM audit.subjects t WHERE user_id = {ids} ORDER BY user_id");
        all.extend(self.fixture().lines(&subjects).await);
        let keys =
            format!("'key ' || t::text FROM data_keys t WHERE user_id = {ids} ORDER BY user_id, version");
        all.extend(self.in_key_store(&keys).await);
        let of_others = |line: &String| user_of(line).is_some_and(|id| OTHERS.contains(&id));
        all.extend(self.messages().await.into_iter().filter(of_others));
        all.extend(self.points(|tenant| tenant != self.tenant).await);
        let person = PERSON.to_string();
        let archived = self.archived().await.into_iter().filter(|(id, _)| *id != person);
        all.extend(archived.map(|(id, row)| format!("archived of {id}: {row}")));
        all
    }

    /// What a SELECT in the key store yields, line by line.
    async fn in_key_store(&self, select: &str) -> Vec<String> {
        let url = &self.fixture().settings.keys.url;
        lines_on(&mut store::connect(url).await.expect("the key store"), select).await
    }

    /// All messages of all streams, with the stream and the subject first, in their order.
    async fn messages(&self) -> Vec<String> {
        let fixture = self.fixture();
        let mut streams: Vec<String> =
            fixture.jetstream.stream_names().try_collect().await.expect("the names of the streams");
        streams.sort();
        let mut lines = Vec::new();
        for stream in streams {
            for message in fixture.messages(&stream).await {
                let headers = message.headers.iter().map(|(name, values)| format!("{name}: {values:?}"));
                let mut headers: Vec<String> = headers.collect();
                headers.sort();
                let (subject, number) = (&message.subject, message.sequence);
                let body = String::from_utf8_lossy(&message.payload);
                lines.push(format!("{stream} {subject} {number} {headers:?} {body}"));
            }
        }
        lines
    }

    /// The points of some pseudonyms with all that they have, in an order of its own.
    async fn points(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let scroll = ScrollPointsBuilder::new(&self.memories.collection.collection_name);
        let scroll = scroll.limit(10_000).with_payload(true).with_vectors(true);
        let points = self.memories.client().scroll(scroll).await.expect("points").result;
        let wanted = points.into_iter().filter(|point| is_wanted(&tenant_of(point)));
        let line = |point: RetrievedPoint| {
            let payload: BTreeMap<String, String> =
                point.payload.into_iter().map(|(field, value)| (field, format!("{value:?}"))).collect();
            format!("point {:?} {payload:?} {:?}", point.id, point.vectors)
        };
        let mut lines: Vec<String> = wanted.map(line).collect();
        lines.sort();
        lines
    }

    /// The rows of all archives at the target, each with its user. There are no files but theirs.
    async fn archived(&self) -> Vec<(String, String)> {
        let settings = &self.fixture().settings.archive;
        let (target, keys) =
            (Target::open(settings).expect("the target"), Keys::public(settings).expect("the keys"));
        let listing = target.list().await.expect("files");
        let complete = listing.complete();
        for file in &listing.files {
            let is_complete = complete.iter().any(|(location, _)| file.path.starts_with(location.as_str()));
            assert!(is_complete, "{} is of no complete archive", file.path);
        }
        let mut lines = Vec::new();
        for (location, _) in complete {
            let contents = ::archive::read(&target, &keys, &location, None).await.expect("an archive");
            for rows in &contents.tables {
                lines.extend((0..rows.len()).map(|row| {
                    let json = serde_json::Value::Object(rows.to_json(row));
                    let of = rows.get(row, "user_id").to_text().expect("a user");
                    (of, format!("{} {json}", rows.table))
                }));
            }
        }
        lines.sort();
        lines
    }
}

fn everybody() -> impl Iterator<Item = i32> {
    OTHERS.into_iter().chain([PERSON])
}

/// The user whom the subject of a line of a message names. Those of seals end with other numbers.
fn user_of(line: &str) -> Option<i32> {
    let subject = line.split(' ').nth(1)?;
    let is_of_user =
        ["memory.req.", "memory.event.", "memory.dead."].iter().any(|root| subject.starts_with(root));
    is_of_user.then(|| subject.rsplit('.').next()?.parse().ok()).flatten()
}

fn tenant_of(point: &RetrievedPoint) -> String {
    point.payload.get("tenant").and_then(|value| value.as_str()).expect("a tenant").to_owned()
}

fn text(files: Vec<PathBuf>) -> Vec<String> {
    files.into_iter().map(|file| file.display().to_string()).collect()
}
