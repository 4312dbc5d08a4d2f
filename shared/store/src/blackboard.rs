//! The blackboard: the events of requests, each appended in the transaction that applies its request.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use contract::{Event, EventType, Json, Performative, UserId, limit};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::{Fault, FaultKind};
use crate::prepared;
use crate::unnest::{UnnestRow, with_rows};
use crate::unpublished::EventKey;

/// The columns of [`EventRow`].
macro_rules! event_columns {
    () => {
        "e.id, e.event_sequence, e.event_type::text AS event_type, e.performative::text AS performative, e.source_agent_id,
        e.target_agent_id, e.user_id, e.session_id, e.parent_event_id, e.logical_timestamp, e.created_at,
        e.event_payload::text AS payload, e.transaction_id"
    };
}
pub(crate) use event_columns;

/// The maximum length of an event's `causality_chain`. The nearest causes are kept.
pub const CHAIN_LENGTH: usize = 64;

/// The cause of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The parent: the event that caused it.
    pub parent_event_id: Uuid,
    /// The parent's Lamport timestamp.
    pub parent_time: i64,
    /// The parent's chain followed by the parent, oldest first, at most [`CHAIN_LENGTH`] ids.
    pub causality_chain: Vec<Uuid>,
}

/// An event to append.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    /// Its id, a UUIDv7.
    pub id: Uuid,
    /// The request that caused it.
    pub request_id: Uuid,
    /// The type.
    pub event_type: EventType,
    /// The performative.
    pub performative: Performative,
    /// The agent or service that caused it.
    pub source_agent_id: &'a str,
    /// The agent or tool that it is addressed to.
    pub target_agent_id: Option<&'a str>,
    /// The user whose memory changed.
    pub user_id: UserId,
    /// The session, or [`Event::ACCOUNT_SESSION`].
    pub session_id: &'a str,
    /// The payload: JSON without secrets.
    pub payload: &'a str,
    /// The cause, if there is one.
    pub cause: Option<&'a Cause>,
    /// The Lamport timestamp, from the clock of the session ([`crate::clock`]).
    pub logical_timestamp: i64,
}

/// An event of the blackboard, and the transaction that appended it.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// The event.
    pub event: Event,
    /// The id of the transaction.
    pub transaction_id: i64,
}

impl StoredEvent {
    /// Its key among the unpublished events.
    pub fn key(&self) -> EventKey {
        (self.transaction_id, self.event.event_id)
    }
}

/// The values that the database assigned to an appended event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The sequence number, strictly increasing within a session.
    pub event_sequence: i64,
    /// When the transaction began.
    pub created_at: DateTime<Utc>,
}

crate::unnest_row! {
    /// A row of [`APPEND`].
    struct NewRow<'a> {
        id: Uuid,
        event_type: &'a str,
        performative: &'a str,
        source_agent_id: &'a str,
        user_id: i32,
        session_id: &'a str,
        payload: &'a str,
        parent_event_id: Option<Uuid>,
        causality_chain: String,
        logical_timestamp: i64,
        request_id: Uuid,
        target_agent_id: Option<&'a str>,
    }
}

static APPEND: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NewRow::arrays(1), NewRow::names());
    format!(
        "INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id,
            event_payload, parent_event_id, causality_chain, logical_timestamp, request_id, target_agent_id)
        SELECT e.id, e.event_type::eventtype, e.performative::performative, e.source_agent_id, e.user_id,
            e.session_id, e.payload::jsonb, e.parent_event_id, e.causality_chain::jsonb, e.logical_timestamp,
            e.request_id, e.target_agent_id
        FROM unnest({arrays}) WITH ORDINALITY AS e ({names}, ordinal)
        JOIN users u ON u.id = e.user_id
        ORDER BY e.ordinal
        RETURNING id, event_sequence, created_at"
    )
});

/// Appends events in the given order. Returns the assigned values by event id.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn append(
    connection: &mut AsyncPgConnection,
    events: &[NewEvent<'_>],
) -> Result<HashMap<Uuid, Appended>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = BigInt)]
        event_sequence: i64,
        #[diesel(sql_type = Timestamptz)]
        created_at: DateTime<Utc>,
    }
    if events.is_empty() {
        return Ok(HashMap::new());
    }
    let new = events.iter().map(|event| NewRow {
        id: event.id,
        event_type: event.event_type.as_str(),
        performative: event.performative.as_str(),
        source_agent_id: event.source_agent_id,
        user_id: event.user_id.get(),
        session_id: event.session_id,
        payload: event.payload,
        parent_event_id: event.cause.map(|cause| cause.parent_event_id),
        causality_chain: chain_json(event.cause),
        logical_timestamp: event.logical_timestamp,
        request_id: event.request_id,
        target_agent_id: event.target_agent_id,
    });
    let rows: Vec<Row> = with_rows(&APPEND, new.collect()).load(connection).await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.id, Appended { event_sequence: row.event_sequence, created_at: row.created_at }))
        .collect())
}

fn chain_json(cause: Option<&Cause>) -> String {
    let ids = cause.map_or(&[][..], |cause| &cause.causality_chain);
    serde_json::Value::from(ids.iter().map(Uuid::to_string).collect::<Vec<_>>()).to_string()
}

/// The causes that these parents are for new events, by user and parent id. A parent that does not exist among the
/// events of its user is missing from the result.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn causes(
    connection: &mut AsyncPgConnection,
    parents: &[(UserId, Uuid)],
) -> Result<HashMap<(UserId, Uuid), Cause>, Fault> {
    const FIND: &str = "
        SELECT e.id, e.user_id, e.logical_timestamp, e.causality_chain::text AS chain
        FROM unnest($1::integer[], $2::uuid[]) AS p (user_id, id)
        JOIN blackboard_events e ON e.id = p.id AND e.user_id = p.user_id";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = BigInt)]
        logical_timestamp: i64,
        #[diesel(sql_type = Text)]
        chain: String,
    }
    if parents.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<Row> = prepared(
        diesel::sql_query(FIND)
            .bind::<Array<Integer>, _>(parents.iter().map(|(user, _)| user.get()).collect::<Vec<_>>())
            .bind::<Array<SqlUuid>, _>(parents.iter().map(|(_, id)| *id).collect::<Vec<_>>()),
    )
    .load(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let mut chain: Vec<Uuid> = serde_json::from_str(&row.chain).map_err(unreadable)?;
            chain.push(row.id);
            let surplus = chain.len().saturating_sub(CHAIN_LENGTH);
            chain.drain(..surplus);
            let user_id = UserId::new(row.user_id).map_err(unreadable)?;
            let cause =
                Cause { parent_event_id: row.id, parent_time: row.logical_timestamp, causality_chain: chain };
            Ok(((user_id, row.id), cause))
        })
        .collect()
}

/// Reads events by id. Ids without an event are missing from the result.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn read(connection: &mut AsyncPgConnection, ids: &[Uuid]) -> Result<Vec<StoredEvent>, Fault> {
    const READ: &str = concat!(
        "SELECT ",
        event_columns!(),
        " FROM blackboard_events e WHERE e.id = ANY ($1) ORDER BY e.event_sequence"
    );
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<EventRow> =
        prepared(diesel::sql_query(READ).bind::<Array<SqlUuid>, _>(ids)).load(connection).await?;
    rows.into_iter().map(EventRow::into_stored).collect()
}

/// The first events of a session after a sequence number, in order, and the number of such events, counted up to
/// `limit`. Returns at least one event if there is any, and more as long as their payloads together have at most
/// `bytes` bytes.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn after(
    connection: &mut AsyncPgConnection,
    user: UserId,
    session_id: &str,
    after: i64,
    limit: i64,
    bytes: i64,
) -> Result<(Vec<Event>, i64), Fault> {
    const AFTER: &str = concat!(
        "WITH page AS (
            SELECT * FROM blackboard_events
            WHERE user_id = $1 AND session_id = $2 AND event_sequence > $3 ORDER BY event_sequence LIMIT $4
        ), sized AS (
            SELECT p.*, count(*) OVER () AS found, row_number() OVER in_order AS place,
                sum(octet_length(p.event_payload::text)) OVER in_order AS bytes
            FROM page p WINDOW in_order AS (ORDER BY p.event_sequence))
        SELECT ",
        event_columns!(),
        ", e.found FROM sized e WHERE e.place = 1 OR e.bytes <= $5 ORDER BY e.place"
    );
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(embed)]
        event: EventRow,
        #[diesel(sql_type = BigInt)]
        found: i64,
    }
    let query = diesel::sql_query(AFTER)
        .bind::<Integer, _>(user.get())
        .bind::<Text, _>(session_id)
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(limit)
        .bind::<BigInt, _>(bytes);
    let rows: Vec<Row> = prepared(query).load(connection).await?;
    let found = rows.as_slice().first().map_or(0, |row| row.found);
    Ok((rows.into_iter().map(|row| row.event.into_event()).collect::<Result<_, Fault>>()?, found))
}

/// An event and the request that caused it.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The event.
    pub event: Event,
    /// The request.
    pub request_id: Uuid,
}

/// The first events of a user in all sessions with sequence numbers above `after` and up to `until`, in order. Events
/// without a request are omitted. Returns at least one event if there is any, and more as long as their payloads
/// together have at most `bytes` bytes. For an administrator, who can read every row.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn of_user(
    connection: &mut AsyncPgConnection,
    user: UserId,
    after: i64,
    until: i64,
    limit: i64,
    bytes: i64,
) -> Result<Vec<Recorded>, Fault> {
    const OF_USER: &str = concat!(
        "WITH page AS (
            SELECT * FROM blackboard_events
            WHERE user_id = $1 AND event_sequence > $2 AND event_sequence <= $3 AND request_id IS NOT NULL
            ORDER BY event_sequence LIMIT $4
        ), sized AS (
            SELECT p.*, row_number() OVER in_order AS place,
                sum(octet_length(p.event_payload::text)) OVER in_order AS bytes
            FROM page p WINDOW in_order AS (ORDER BY p.event_sequence))
        SELECT ",
        event_columns!(),
        ", e.request_id FROM sized e WHERE e.place = 1 OR e.bytes <= $5 ORDER BY e.place"
    );
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(embed)]
        event: EventRow,
        #[diesel(sql_type = SqlUuid)]
        request_id: Uuid,
    }
    let query = diesel::sql_query(OF_USER)
        .bind::<Integer, _>(user.get())
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(until)
        .bind::<BigInt, _>(limit)
        .bind::<BigInt, _>(bytes);
    let rows: Vec<Row> = prepared(query).load(connection).await?;
    let recorded = |row: Row| Ok(Recorded { event: row.event.into_event()?, request_id: row.request_id });
    rows.into_iter().map(recorded).collect()
}

/// An event as selected from the table alias `e`.
#[derive(QueryableByName)]
pub(crate) struct EventRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    event_sequence: i64,
    #[diesel(sql_type = Text)]
    event_type: String,
    #[diesel(sql_type = Text)]
    performative: String,
    #[diesel(sql_type = Text)]
    source_agent_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    target_agent_id: Option<String>,
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Text)]
    session_id: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    parent_event_id: Option<Uuid>,
    #[diesel(sql_type = BigInt)]
    logical_timestamp: i64,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    payload: String,
    #[diesel(sql_type = BigInt)]
    transaction_id: i64,
}

impl EventRow {
    pub(crate) fn into_stored(self) -> Result<StoredEvent, Fault> {
        let transaction_id = self.transaction_id;
        Ok(StoredEvent { event: self.into_event()?, transaction_id })
    }

    pub(crate) fn into_event(self) -> Result<Event, Fault> {
        let newer = |label: &str| unreadable(format!("this program is too old: it does not know {label:?}"));
        Ok(Event {
            event_id: self.id,
            event_sequence: self.event_sequence,
            event_type: EventType::from_label(&self.event_type).ok_or_else(|| newer(&self.event_type))?,
            performative: Performative::from_label(&self.performative)
                .ok_or_else(|| newer(&self.performative))?,
            source_agent_id: self.source_agent_id,
            target_agent_id: self.target_agent_id,
            user_id: UserId::new(self.user_id).map_err(unreadable)?,
            session_id: self.session_id,
            parent_event_id: self.parent_event_id,
            logical_timestamp: self.logical_timestamp,
            created_at: self.created_at,
            payload: payload_within_limits(self.payload)?,
        })
    }
}

/// A worker writes no payload beyond the limits. A role that does must stop neither those who read the event nor those who
/// publish it.
fn payload_within_limits(text: String) -> Result<Json, Fault> {
    let fits = text.len() <= limit::EVENT_PAYLOAD_BYTES;
    let payload = if fits { Json::recorded(text) } else { Json::recorded(UNREADABLE) };
    payload.or_else(|_| Json::recorded(UNREADABLE)).map_err(unreadable)
}

/// What takes the place of a payload beyond the limits of JSON texts, or beyond [`limit::EVENT_PAYLOAD_BYTES`].
const UNREADABLE: &str = r#"{"$unreadable":true}"#;

/// The fault of an event that this program cannot read. The request was applied, so the message must not be
/// dead-lettered: it waits for a program that can read the event.
fn unreadable(problem: impl ToString) -> Fault {
    Fault {
        kind: FaultKind::Unavailable,
        reason: format!("an event cannot be read: {}", problem.to_string()),
    }
}
