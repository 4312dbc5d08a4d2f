//! What a restored or promoted database still has, compared with what the broker has. For an administrator, whose role
//! bypasses row-level security.

use std::collections::{HashMap, HashSet, VecDeque};

use chrono::{DateTime, Utc};
use contract::Event;
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::Fault;
use crate::prepared;

/// The server of a connection, and its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, QueryableByName)]
pub struct Access {
    /// Whether the server is in recovery: a standby, which accepts no writes.
    #[diesel(sql_type = Bool)]
    pub is_standby: bool,
    /// Whether row-level security hides rows from the role.
    #[diesel(sql_type = Bool)]
    pub is_restricted: bool,
}

/// What the server and the role of a connection allow.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn access(connection: &mut AsyncPgConnection) -> Result<Access, Fault> {
    const ACCESS: &str = "SELECT pg_is_in_recovery() AS is_standby,
        row_security_active('inbox') OR row_security_active('blackboard_events') AS is_restricted";
    Ok(diesel::sql_query(ACCESS).get_result(connection).await?)
}

/// The messages among these, as user and request id, that a worker's inbox has.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn in_inbox(
    connection: &mut AsyncPgConnection,
    worker: &str,
    messages: &[(i32, Uuid)],
) -> Result<HashSet<(i32, Uuid)>, Fault> {
    const FIND: &str = "
        SELECT i.user_id, i.message_id AS id FROM unnest($2::integer[], $3::uuid[]) AS m (user_id, message_id)
        JOIN inbox i ON i.worker = $1 AND i.user_id = m.user_id AND i.message_id = m.message_id";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let (users, ids): (Vec<i32>, Vec<Uuid>) = messages.iter().copied().unzip();
    let query = diesel::sql_query(FIND)
        .bind::<Text, _>(worker)
        .bind::<Array<Integer>, _>(users)
        .bind::<Array<SqlUuid>, _>(ids);
    let rows: Vec<Row> = prepared(query).load(connection).await?;
    Ok(rows.into_iter().map(|row| (row.user_id, row.id)).collect())
}

/// Whether a refusal of this request is on record.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn is_denied(
    connection: &mut AsyncPgConnection,
    user_id: i32,
    request_id: Uuid,
) -> Result<bool, Fault> {
    // A user who was not known yet has no token in the trail.
    const FIND: &str = "SELECT EXISTS (SELECT FROM audit.security_violations v
        LEFT JOIN audit.subjects s ON s.token = v.subject_token
        WHERE v.request_id = $2 AND (v.subject_token IS NULL OR s.user_id = $1)) AS found";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Bool)]
        found: bool,
    }
    let query = diesel::sql_query(FIND).bind::<Integer, _>(user_id).bind::<SqlUuid, _>(request_id);
    let row: Row = query.get_result(connection).await?;
    Ok(row.found)
}

/// When the oldest entry of a worker's inbox was made. `None` if it has none.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn oldest_in_inbox(
    connection: &mut AsyncPgConnection,
    worker: &str,
) -> Result<Option<DateTime<Utc>>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Nullable<Timestamptz>)]
        oldest: Option<DateTime<Utc>>,
    }
    let query = diesel::sql_query("SELECT min(received_at) AS oldest FROM inbox WHERE worker = $1");
    let row: Row = query.bind::<Text, _>(worker).get_result(connection).await?;
    Ok(row.oldest)
}

/// The ids among these that are events.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn events(connection: &mut AsyncPgConnection, ids: &[Uuid]) -> Result<HashSet<Uuid>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let query = diesel::sql_query("SELECT id FROM blackboard_events WHERE id = ANY ($1)")
        .bind::<Array<SqlUuid>, _>(ids);
    let rows: Vec<Row> = prepared(query).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Lets the numbers of future events begin after this one, if they do not already. A promoted standby would otherwise
/// give the numbers of events that vanished to others.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn number_events_after(connection: &mut AsyncPgConnection, number: i64) -> Result<(), Fault> {
    const ADVANCE: &str = "SELECT setval('blackboard_event_sequence', $1)
        FROM blackboard_event_sequence WHERE last_value < $1";
    diesel::sql_query(ADVANCE).bind::<BigInt, _>(number).execute(connection).await?;
    Ok(())
}

/// The event of a request that was applied again, instead of an event that vanished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// The event.
    pub event_id: Uuid,
    /// The request that caused both.
    pub request_id: Option<Uuid>,
}

/// For each of these vanished events, the event that replaces it: the first later one of the same user, session, type,
/// source and payload that replaces no other. The vanished row alone had the request id, so what an event says is what
/// identifies its request.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn replacements(
    connection: &mut AsyncPgConnection,
    vanished: &[Event],
) -> Result<Vec<Option<Replacement>>, Fault> {
    const FIND: &str = "
        SELECT DISTINCT i.ordinal::integer AS ordinal, e.id, e.request_id, e.created_at, e.event_sequence
        FROM unnest($1::integer[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[]) WITH ORDINALITY
            AS i (user_id, session_id, event_type, source_agent_id, payload, created_at, ordinal)
        JOIN blackboard_events e ON e.user_id = i.user_id AND e.session_id = i.session_id
            AND e.event_type::text = i.event_type AND e.source_agent_id = i.source_agent_id
            AND e.event_payload = i.payload::jsonb AND e.created_at > i.created_at
            AND e.id >= uuid7_at(i.created_at - interval '1 day')
        ORDER BY 1, e.event_sequence";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        ordinal: i32,
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Nullable<SqlUuid>)]
        request_id: Option<Uuid>,
    }
    fn column<T>(events: &[Event], field: impl Fn(&Event) -> T) -> Vec<T> {
        events.iter().map(field).collect()
    }
    let query = diesel::sql_query(FIND)
        .bind::<Array<Integer>, _>(column(vanished, |event| event.user_id.get()))
        .bind::<Array<Text>, _>(column(vanished, |event| event.session_id.clone()))
        .bind::<Array<Text>, _>(column(vanished, |event| event.event_type.as_str()))
        .bind::<Array<Text>, _>(column(vanished, |event| event.source_agent_id.clone()))
        .bind::<Array<Text>, _>(column(vanished, |event| event.payload.as_str().to_owned()))
        .bind::<Array<Timestamptz>, _>(column(vanished, |event| -> DateTime<Utc> { event.created_at }));
    let rows: Vec<Row> = prepared(query).load(connection).await?;
    let mut candidates: HashMap<usize, VecDeque<Row>> = HashMap::new();
    for row in rows {
        let place = usize::try_from(row.ordinal - 1).unwrap_or(usize::MAX);
        candidates.entry(place).or_default().push_back(row);
    }
    let mut used = HashSet::new();
    Ok((0..vanished.len())
        .map(|place| {
            let row = candidates.remove(&place)?.into_iter().find(|row| used.insert(row.id))?;
            Some(Replacement { event_id: row.id, request_id: row.request_id })
        })
        .collect())
}
