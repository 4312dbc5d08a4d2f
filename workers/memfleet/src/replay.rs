//! Rebuilds a user's memory from events alone, and compares it with the tables.
//!
//! An event carries the request that had the effect. The requests are decoded and written by context-writer's own
//! statements, into tables of the same shape in a scratch schema. Equal contents prove that the event stream is
//! complete, that it is in the order in which requests took effect, and that the statements are deterministic.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use contract::{
    ContextRequest, Event, Job, REQUESTS, Redacted, RequestKind, RequestSubject, Service, UserId,
};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use keys::DataKeys;
use runtime::{Message, Source};
use serde::Serialize;
use store::blackboard::{self, Recorded};
use store::{Connection, Fault, FaultKind};
use uuid::Uuid;

use crate::{replay_retention, replay_sync, visibility};

/// The tables that are rebuilt: all that context-writer writes, in any order.
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
    /// The columns that identify a row.
    key: &'static str,
    /// The columns to compare. Not compared are row ids, which are newly generated, and times, which are taken from the
    /// requests' metadata and not recorded in events.
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

/// Maximum number of events per batch.
const BATCH_EVENTS: i64 = 1_000;
/// Maximum size of a batch's payloads, unless it is a single event.
const BATCH_BYTES: i64 = 16 * 1024 * 1024;
/// Maximum number of differences reported per table.
const MAX_DIFFERENCES: i64 = 100;

/// The result of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Number of applied events.
    pub events: u64,
    /// The sequence number of the last one.
    pub as_of: i64,
    /// Number of rebuilt contexts by table, removed ones included.
    pub contexts: BTreeMap<String, u64>,
    /// Differences from the tables, at most 100 for each.
    pub differences: Vec<Difference>,
}

/// A context that differs between the events and the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, QueryableByName)]
pub struct Difference {
    /// The table.
    #[diesel(sql_type = Text)]
    pub table_name: String,
    /// The key columns of the context, as a JSON array.
    #[diesel(sql_type = Text)]
    pub context: String,
    /// The context rebuilt from the events; `null` if the events do not contain it.
    #[diesel(sql_type = Text)]
    pub replayed: String,
    /// The context in the table; `null` if the table does not contain it.
    #[diesel(sql_type = Text)]
    pub live: String,
}

/// Replays the events of a user up to a sequence number, on a connection that bypasses row-level security. Everything
/// is rolled back.
///
/// # Errors
/// A [`Fault`] of the database, or a permanent one for an event that cannot be decoded, a role that row-level security
/// applies to, or a user without a row and without events.
pub async fn replay(connection: &mut Connection, user: UserId, as_of: i64) -> Result<Replayed, Fault> {
    connection.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let replayed = in_scratch(connection, user, as_of).await;
    connection.batch_execute("ROLLBACK").await?;
    replayed
}

/// Replays in a scratch schema, which the caller rolls back. No other session ever sees the schema, so its name is
/// fixed; a concurrent replay waits until this one has ended.
async fn in_scratch(connection: &mut Connection, user: UserId, as_of: i64) -> Result<Replayed, Fault> {
    check_sees_all(connection).await?;
    check_exists(connection, user).await?;
    let mut setup = "CREATE SCHEMA replayed;".to_owned();
    for table in REBUILT {
        setup.push_str(&format!("CREATE TABLE replayed.{table} (LIKE public.{table} INCLUDING ALL);"));
    }
    // The platform's user exists before any user's first event.
    setup.push_str("INSERT INTO replayed.users SELECT * FROM public.users WHERE id = 0; SET LOCAL search_path = replayed, public");
    connection.batch_execute(&setup).await?;
    let mut replayed = Replayed::default();
    let mut requests = HashSet::new();
    loop {
        let recorded =
            blackboard::of_user(connection, user, replayed.as_of, as_of, BATCH_EVENTS, BATCH_BYTES).await?;
        let Some(last) = recorded.last() else { break };
        replayed.as_of = last.event.event_sequence;
        let mut messages = Vec::new();
        for recorded in recorded {
            if let Some(member) = replay_sync::listed_in(recorded.event.event_type) {
                // It writes what requests before it have left.
                write(connection, &mut messages, &mut replayed).await?;
                replay_sync::apply(connection, &recorded.event, member, recorded.request_id).await?;
                replayed.events += 1;
            } else if replay_retention::removes(recorded.event.event_type) {
                write(connection, &mut messages, &mut replayed).await?;
                replay_retention::apply(connection, &recorded.event, recorded.request_id).await?;
                replayed.events += 1;
            } else if let Some(message) = message(recorded, &mut requests) {
                messages.push(message?);
            }
        }
        write(connection, &mut messages, &mut replayed).await?;
    }
    for compared in COMPARED {
        compare(connection, user, &mut replayed, &compared).await?;
    }
    Ok(replayed)
}

/// Writes requests, as context-writer did.
async fn write(
    connection: &mut Connection,
    messages: &mut Vec<Message<ContextRequest>>,
    replayed: &mut Replayed,
) -> Result<(), Fault> {
    let messages = std::mem::take(messages);
    replayed.events += messages.len() as u64;
    let messages: Vec<_> = messages.iter().collect();
    context_writer::store::write(connection, &messages, &DataKeys::new()).await?;
    Ok(())
}

/// The request that an event carries, if it is one of context-writer's. `requests` are those that came before: only the first
/// event of a request carries it. Each event of a job's tick stands for itself.
fn message(
    recorded: Recorded,
    requests: &mut HashSet<Uuid>,
) -> Option<Result<Message<ContextRequest>, Fault>> {
    let Recorded { event, request_id } = recorded;
    let kind = REQUESTS.iter().find(|kind| kind.event == event.event_type)?;
    // The id of a request is unique among those of its worker.
    let carries = kind.worker == contract::CONTEXT_WRITER.name
        && (Job::is_publisher(&event.source_agent_id) || requests.insert(request_id));
    carries.then(|| decode(event, request_id, kind))
}

fn decode(event: Event, request_id: Uuid, kind: &RequestKind) -> Result<Message<ContextRequest>, Fault> {
    let unreadable = |problem: String| Fault {
        kind: FaultKind::Permanent,
        reason: format!("cannot replay event {}: {problem}", event.event_sequence),
    };
    let service: Service = "replay".parse().map_err(|_| unreadable("invalid service name".to_owned()))?;
    let (noun, verb) = (kind.noun.to_owned(), kind.verb.to_owned());
    let subject = RequestSubject { service, noun, verb, user_id: event.user_id };
    let body = Bytes::from(event.payload.as_str().to_owned());
    let decoded = contract::Request::recorded(&subject, &body);
    let decoded = decoded.and_then(Redacted::new);
    let Redacted { request, .. } = decoded.map_err(|malformed| unreadable(malformed.to_string()))?;
    Ok(Message {
        request,
        // Events contain markers in place of secrets, so there are none to write.
        secrets: Vec::new(),
        source: Source::Request(subject),
        request_id,
        parent_event_id: None,
        is_widened: false,
        // Among records without a version, the one stored last wins. The event's sequence number serves as the time.
        stored_at: time_from_sequence(event.event_sequence)
            .ok_or_else(|| unreadable("its sequence number is out of range".to_owned()))?,
        sequence: event.event_sequence.unsigned_abs(),
        event_id: event.event_id,
        body,
    })
}

fn time_from_sequence(sequence: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(sequence)
}

async fn check_sees_all(connection: &mut Connection) -> Result<(), Fault> {
    let checked = visibility::check_sees_all(connection, &["blackboard_events"], "events").await;
    checked.map_err(|fault| Fault { reason: format!("cannot replay: {}", fault.reason), ..fault })
}

async fn check_exists(connection: &mut Connection, user: UserId) -> Result<(), Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        exists: bool,
    }
    let query = "SELECT EXISTS (SELECT FROM users WHERE id = $1)
        OR EXISTS (SELECT FROM blackboard_events WHERE user_id = $1) AS exists";
    let rows: Vec<Row> = diesel::sql_query(query).bind::<Integer, _>(user.get()).load(connection).await?;
    if rows.iter().any(|row| row.exists) {
        return Ok(());
    }
    Err(Fault { kind: FaultKind::Permanent, reason: format!("there is no user {user}, and no event of one") })
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
        WHERE r.value IS DISTINCT FROM l.value ORDER BY 2 LIMIT {MAX_DIFFERENCES}",
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
