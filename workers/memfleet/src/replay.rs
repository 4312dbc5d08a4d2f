//! Rebuilds a user's memory from events alone, and compares it with what the tables hold.
//!
//! Events carry the requests that had an effect. They are decoded as requests are, and written by the statements that wrote them
//! before, into tables of the same shape in a scratch schema. So what is proven is that the event stream is complete, that its
//! order is the order of the effects, and that the statements make of it what is there.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use contract::{ContextRequest, Event, REQUESTS, Redacted, RequestKind, RequestSubject, Service, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use keys::DataKeys;
use runtime::{Message, Source};
use serde::Serialize;
use store::blackboard::{self, Recorded};
use store::{Connection, Fault, FaultKind};
use uuid::Uuid;

/// The tables that are rebuilt, in no particular order: everything that context-writer writes.
const REBUILT: [&str; 14] = [
    "users",
    "user_profiles",
    "system_settings",
    "registered_devices",
    "user_two_factor_auth",
    "passkey_credentials",
    "chat_mode_sessions",
    "simple_chat_context",
    "chat_history",
    "chat_messages",
    "chat_session_summary",
    "message_feedback",
    "agent_context_states",
    "encrypted_fields",
];

/// A table that is compared.
struct Compared {
    table: &'static str,
    /// The columns that name a row.
    key: &'static str,
    /// Those that say what it holds. Keys of rows are drawn anew, and times are those of the requests, which events do not carry.
    value: &'static str,
}

const COMPARED: [Compared; 2] = [
    Compared {
        table: "simple_chat_context",
        key: "session_id, context_key",
        value: "context_value, context_type, access_level, priority, version, expires_at, is_persistent, is_sensitive, request_id,
            removed_at IS NOT NULL AS removed",
    },
    Compared {
        table: "agent_context_states",
        key: "session_id, agent_id, memory_tier, context_key",
        value: "context_value, is_shareable, version, expires_at, is_sensitive, request_id, removed_at IS NOT NULL AS removed",
    },
];

/// How many events are written with one round of statements.
const TOGETHER: i64 = 1_000;
/// How many bytes their payloads have together, unless a single one has more.
const TOGETHER_BYTES: i64 = 16 * 1024 * 1024;
/// How many differences are told of each table.
const TOLD: i64 = 100;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Events that were applied.
    pub events: u64,
    /// The number of the last one.
    pub as_of: i64,
    /// Contexts that came of them, by table, removed ones included.
    pub contexts: BTreeMap<String, u64>,
    /// What is otherwise in the tables, at most 100 of each.
    pub differences: Vec<Difference>,
}

/// A context that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, QueryableByName)]
pub struct Difference {
    /// The table.
    #[diesel(sql_type = Text)]
    pub table_name: String,
    /// What names the context.
    #[diesel(sql_type = Text)]
    pub context: String,
    /// What the events say; `null` if they say nothing of it.
    #[diesel(sql_type = Text)]
    pub replayed: String,
    /// What the table holds; `null` if it does not hold it.
    #[diesel(sql_type = Text)]
    pub live: String,
}

/// Replays the events of a user up to a number, on a connection that sees every row. Nothing stays of it.
///
/// # Errors
/// A [`Fault`] of the database, or a permanent one for an event that no program of this version can have written.
pub async fn replay(connection: &mut Connection, user: UserId, as_of: i64) -> Result<Replayed, Fault> {
    connection.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let replayed = in_scratch(connection, user, as_of).await;
    connection.batch_execute("ROLLBACK").await?;
    replayed
}

/// In a transaction that is rolled back, the schema with it. Nobody else ever sees it, so that one
/// name serves; a second replay waits for the end of the first.
async fn in_scratch(connection: &mut Connection, user: UserId, as_of: i64) -> Result<Replayed, Fault> {
    refuse_if_hidden(connection).await?;
    let mut make = "CREATE SCHEMA replayed;".to_owned();
    for table in REBUILT {
        make.push_str(&format!("CREATE TABLE replayed.{table} (LIKE public.{table} INCLUDING ALL);"));
    }
    // What everybody's rows refer to is there before the first event of a user.
    make.push_str("INSERT INTO replayed.users SELECT * FROM public.users WHERE id = 0; SET LOCAL search_path = replayed, public");
    connection.batch_execute(&make).await?;
    let mut replayed = Replayed::default();
    loop {
        let recorded =
            blackboard::of_user(connection, user, replayed.as_of, as_of, TOGETHER, TOGETHER_BYTES).await?;
        let Some(last) = recorded.last() else { break };
        replayed.as_of = last.event.event_sequence;
        let messages: Vec<_> = recorded.into_iter().filter_map(message).collect::<Result<_, Fault>>()?;
        replayed.events += messages.len() as u64;
        let messages: Vec<_> = messages.iter().collect();
        context_writer::store::write(connection, &messages, &DataKeys::new()).await?;
    }
    for compared in COMPARED {
        compare(connection, user, &mut replayed, &compared).await?;
    }
    Ok(replayed)
}

/// The request that an event carries, if it is one of context-writer's.
fn message(recorded: Recorded) -> Option<Result<Message<ContextRequest>, Fault>> {
    let Recorded { event, request_id } = recorded;
    let kind = REQUESTS.iter().find(|kind| kind.event == event.event_type)?;
    (kind.worker == contract::CONTEXT_WRITER.name).then(|| decode(event, request_id, kind))
}

fn decode(event: Event, request_id: Uuid, kind: &RequestKind) -> Result<Message<ContextRequest>, Fault> {
    let unreadable = |problem: String| Fault {
        kind: FaultKind::Permanent,
        reason: format!("the event {} cannot be replayed: {problem}", event.event_sequence),
    };
    let service: Service = "replay".parse().map_err(|_| unreadable("no service".to_owned()))?;
    let (noun, verb) = (kind.noun.to_owned(), kind.verb.to_owned());
    let subject = RequestSubject { service, noun, verb, user_id: event.user_id };
    let body = Bytes::from(event.payload.as_str().to_owned());
    let decoded = contract::Request::recorded(&subject, &body);
    let decoded = decoded.and_then(Redacted::new);
    let Redacted { request, .. } = decoded.map_err(|malformed| unreadable(malformed.to_string()))?;
    Ok(Message {
        request,
        // An event has markers where secrets were, and they are none.
        secrets: Vec::new(),
        source: Source::Request(subject),
        request_id,
        parent_event_id: None,
        // Of two records without a version the later one wins: later is what has the higher number.
        stored_at: later(event.event_sequence)
            .ok_or_else(|| unreadable("its number is too high".to_owned()))?,
        sequence: 0,
        event_id: event.event_id,
        body,
    })
}

fn later(number: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(number)
}

async fn refuse_if_hidden(connection: &mut Connection) -> Result<(), Fault> {
    const ASK: &str = "SELECT row_security_active('blackboard_events') AS hidden";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        hidden: bool,
    }
    let rows: Vec<Row> = diesel::sql_query(ASK).load(connection).await?;
    if rows.iter().any(|row| row.hidden) {
        let reason = "the events cannot be replayed: row-level security hides them from this role; use an administrator's";
        return Err(Fault { kind: FaultKind::Permanent, reason: reason.to_owned() });
    }
    Ok(())
}

async fn compare(
    connection: &mut Connection,
    user: UserId,
    replayed: &mut Replayed,
    Compared { table, key, value }: &Compared,
) -> Result<(), Fault> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        rows: i64,
    }
    let side = |schema: &str| format!("SELECT {key}, {value} FROM {schema}.{table} WHERE user_id = $1");
    let different = format!(
        "SELECT '{table}'::text AS table_name, coalesce(r.key, l.key)::text AS context, coalesce(r.value::text, 'null') AS replayed,
            coalesce(l.value::text, 'null') AS live
        FROM (SELECT jsonb_build_array({key}) AS key, to_jsonb(r) AS value FROM ({}) AS r) AS r
        FULL JOIN (SELECT jsonb_build_array({key}) AS key, to_jsonb(l) AS value FROM ({}) AS l) AS l ON l.key = r.key
        WHERE r.value IS DISTINCT FROM l.value ORDER BY 2 LIMIT {TOLD}",
        side("replayed"),
        side("public")
    );
    let found: Vec<Difference> =
        diesel::sql_query(different).bind::<Integer, _>(user.get()).load(connection).await?;
    replayed.differences.extend(found);
    let count = format!("SELECT count(*) AS rows FROM replayed.{table} WHERE user_id = $1");
    let rows: Vec<Count> = diesel::sql_query(count).bind::<Integer, _>(user.get()).load(connection).await?;
    let rows = rows.iter().map(|row| row.rows.unsigned_abs()).sum();
    replayed.contexts.insert((*table).to_owned(), rows);
    Ok(())
}
