//! The order of the events of a session (docs/adr/0021).
//!
//! A transaction that appends events to a session first locks the session's clock, a row of `session_clocks`, and holds
//! the lock until it commits. Sequence numbers therefore become visible in the order in which they were drawn: a reader
//! that has seen an event has seen all earlier events of the session.

use std::collections::HashMap;
use std::sync::LazyLock;

use contract::{Event, EventType, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::blackboard::{EventRow, event_columns};
use crate::fault::Fault;
use crate::prepared;
use crate::unnest::{UnnestRow, with_rows};

/// A session whose clock is taken, and what is known about its published events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session<'a> {
    /// The user of the session.
    pub user_id: UserId,
    /// The session, or [`Event::ACCOUNT_SESSION`].
    pub session_id: &'a str,
    /// The number of events that are appended to it now.
    pub events: i64,
    /// The greatest Lamport timestamp of the causes of these events; 0 without causes.
    pub causes: i64,
    /// All events up to this sequence number have been published. 0 if nothing is known.
    pub published: i64,
    /// All events up to this sequence number are published before the events that are appended now. At least
    /// `published`.
    pub enqueued: i64,
}

/// The state of the taken clocks.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// By session: the Lamport timestamp of the event before the next one.
    times: HashMap<(UserId, String), i64>,
    /// Events of these sessions that may not have been published yet, ordered by sequence number within each session.
    pub earlier: Vec<Event>,
    /// Whether there are more such events. If so, nothing may be appended: publish these events first, then take the
    /// clocks again.
    pub has_more: bool,
}

impl Taken {
    /// The Lamport timestamp of the next event of a session: greater than that of every earlier event of the session,
    /// and than that of every cause of the events that are appended now.
    pub fn next(&mut self, user_id: UserId, session_id: &str) -> i64 {
        let time = self.times.entry((user_id, session_id.to_owned())).or_default();
        *time += 1;
        *time
    }
}

/// The maximum number of earlier events that are read at a time.
const AT_ONCE: i64 = 2_000;
/// The maximum size of their payloads together, in bytes. A single larger payload is still read.
const BYTES: i64 = 16 * 1024 * 1024;

crate::unnest_row! {
    /// A row of [`TAKE`].
    struct Row<'a> {
        user_id: i32,
        session_id: &'a str,
        published: i64,
        events: i64,
        causes: i64,
    }
}

/// Rows are sorted, so that two replicas lock clocks in the same order. A transaction takes clocks last and only
/// appends events afterwards, so that no transaction waits for another lock while it holds a clock.
static TAKE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (Row::arrays(1), Row::names());
    format!(
        "INSERT INTO session_clocks AS c (user_id, session_id, published_sequence, events, logical_time)
        SELECT user_id, session_id, published, events, causes + events
        FROM unnest({arrays}) AS s ({names})
        ORDER BY user_id, session_id
        ON CONFLICT (user_id, session_id) DO UPDATE SET
            published_sequence = greatest(c.published_sequence, excluded.published_sequence),
            events = c.events + excluded.events,
            logical_time = greatest(c.logical_time + excluded.events, excluded.logical_time)
        RETURNING user_id, session_id, published_sequence, logical_time"
    )
});

/// Takes the clocks of sessions, which must be distinct: locks each one and advances it.
///
/// Events older than one hour are not returned as earlier events: their messages have been redelivered since, to a
/// worker that published them. Events of a type that this program does not know are left to a program that does.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn take(connection: &mut AsyncPgConnection, sessions: &[Session<'_>]) -> Result<Taken, Fault> {
    #[derive(QueryableByName)]
    struct Clock {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = Text)]
        session_id: String,
        #[diesel(sql_type = BigInt)]
        published_sequence: i64,
        #[diesel(sql_type = BigInt)]
        logical_time: i64,
    }
    if sessions.is_empty() {
        return Ok(Taken::default());
    }
    let rows = sessions.iter().map(|session| Row {
        user_id: session.user_id.get(),
        session_id: session.session_id,
        published: session.published,
        events: session.events,
        causes: session.causes,
    });
    let clocks: Vec<Clock> = with_rows(&TAKE, rows.collect()).load(connection).await?;
    let requested: HashMap<(i32, &str), &Session<'_>> =
        sessions.iter().map(|session| ((session.user_id.get(), session.session_id), session)).collect();
    let (mut times, mut seen) = (HashMap::with_capacity(clocks.len()), Vec::with_capacity(clocks.len()));
    for clock in clocks {
        if let Some(session) = requested.get(&(clock.user_id, clock.session_id.as_str())).copied() {
            let key = (session.user_id, session.session_id.to_owned());
            seen.push((key.clone(), clock.published_sequence.max(session.enqueued)));
            times.insert(key, clock.logical_time - session.events);
        }
    }
    let (earlier, has_more) = earlier(connection, &seen).await?;
    Ok(Taken { times, earlier, has_more })
}

/// A session and the sequence number of its last known event.
type Seen = ((UserId, String), i64);

/// The first events after the known ones, and whether there are more.
async fn earlier(connection: &mut AsyncPgConnection, seen: &[Seen]) -> Result<(Vec<Event>, bool), Fault> {
    // A separate statement, because a statement sees only what was committed when it began, and the previous one may
    // have waited for a lock.
    const FIND: &str = concat!(
        "WITH page AS (
            SELECT b.*, s.session FROM unnest($1::integer[], $2::text[], $3::bigint[])
                WITH ORDINALITY AS s (user_id, session_id, seen, session)
            CROSS JOIN LATERAL (
                SELECT * FROM blackboard_events b
                WHERE b.user_id = s.user_id AND b.session_id = s.session_id AND b.event_sequence > s.seen
                    AND b.created_at >= now() - interval '1 hour' AND b.id >= uuid7_at(now() - interval '1 day')
                    AND b.event_type::text = ANY ($4)
                ORDER BY b.event_sequence LIMIT $5) AS b
            ORDER BY s.session, b.event_sequence LIMIT $5
        ), sized AS (
            SELECT p.*, count(*) OVER () AS found, row_number() OVER in_order AS place,
                sum(octet_length(p.event_payload::text)) OVER in_order AS bytes
            FROM page p WINDOW in_order AS (ORDER BY p.session, p.event_sequence))
        SELECT ",
        event_columns!(),
        ", e.found FROM sized e WHERE e.place = 1 OR e.bytes <= $6 ORDER BY e.place"
    );
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(embed)]
        event: EventRow,
        #[diesel(sql_type = BigInt)]
        found: i64,
    }
    let known: Vec<&str> = EventType::ALL.iter().map(|known| known.as_str()).collect();
    let query = diesel::sql_query(FIND)
        .bind::<Array<Integer>, _>(seen.iter().map(|((user, _), _)| user.get()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(seen.iter().map(|((_, session), _)| session.as_str()).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(seen.iter().map(|(_, number)| *number).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(known)
        .bind::<BigInt, _>(AT_ONCE + 1)
        .bind::<BigInt, _>(BYTES);
    let rows: Vec<Row> = prepared(query).load(connection).await?;
    let found = rows.as_slice().first().map_or(0, |row| row.found);
    let has_more = found > AT_ONCE || usize::try_from(found).unwrap_or(usize::MAX) > rows.len();
    Ok((rows.into_iter().map(|row| row.event.into_event()).collect::<Result<_, Fault>>()?, has_more))
}
