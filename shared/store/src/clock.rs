//! The order of the events of a session (docs/adr/0021).
//!
//! Whoever appends events to a session takes its clock first and holds it until the commit. So the numbers of its events become
//! visible in the order in which they were drawn: whoever has seen one has seen all that come before it.

use contract::{Event, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::blackboard::{EventRow, event_columns};
use crate::fault::Fault;
use crate::prepared;

/// A session whose clock is taken, and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session<'a> {
    /// Whose session it is.
    pub user_id: UserId,
    /// The session, or [`Event::ACCOUNT_SESSION`].
    pub session_id: &'a str,
    /// Up to this one, its events have been published. Zero if nothing is known.
    pub published: i64,
    /// Up to this one, its events are published before anything that is appended now. At least `published`.
    pub handed: i64,
}

/// How many events of one session [`take`] gives at most, the oldest ones.
const EARLIER: i64 = 1_000;

/// Takes the clocks of sessions, no two of which are the same, and gives the events in them that may not have been published
/// yet, in the order of their numbers.
///
/// An event older than ten minutes is not among them. Its message has been delivered again long since, to somebody who has
/// published it; and a stream tells a repeat by its id for no longer than that.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn take(connection: &mut AsyncPgConnection, sessions: &[Session<'_>]) -> Result<Vec<Event>, Fault> {
    // Sorted, so that two replicas take them in one order. Nothing but appending is left to do then, so that nobody who holds
    // one waits for anything that a neighbour has locked.
    const TAKE: &str = "
        INSERT INTO session_clocks AS c (user_id, session_id, published_sequence)
        SELECT user_id, session_id, published FROM unnest($1::integer[], $2::text[], $3::bigint[])
            AS s (user_id, session_id, published)
        ORDER BY user_id, session_id
        ON CONFLICT (user_id, session_id) DO UPDATE
            SET published_sequence = greatest(c.published_sequence, excluded.published_sequence)
        RETURNING user_id, session_id, published_sequence";
    // A statement of its own: one sees what was committed when it begins, and the one before may have waited.
    const FIND: &str = concat!(
        "SELECT ",
        event_columns!(),
        " FROM unnest($1::integer[], $2::text[], $3::bigint[]) AS s (user_id, session_id, seen)
        CROSS JOIN LATERAL (
            SELECT * FROM blackboard_events b
            WHERE b.user_id = s.user_id AND b.session_id = s.session_id AND b.event_sequence > s.seen
                AND b.created_at >= now() - interval '10 minutes' AND b.id >= uuid7_at(now() - interval '1 day')
            ORDER BY b.event_sequence LIMIT $4) AS e
        ORDER BY e.event_sequence"
    );
    #[derive(QueryableByName)]
    struct Clock {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = Text)]
        session_id: String,
        #[diesel(sql_type = BigInt)]
        published_sequence: i64,
    }
    if sessions.is_empty() {
        return Ok(Vec::new());
    }
    let query = diesel::sql_query(TAKE)
        .bind::<Array<Integer>, _>(sessions.iter().map(|session| session.user_id.get()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(sessions.iter().map(|session| session.session_id).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(sessions.iter().map(|session| session.published).collect::<Vec<_>>());
    let clocks: Vec<Clock> = prepared(query).load(connection).await?;
    let handed: std::collections::HashMap<(i32, &str), i64> = sessions
        .iter()
        .map(|session| ((session.user_id.get(), session.session_id), session.handed))
        .collect();
    let seen = |clock: &Clock| {
        let handed = handed.get(&(clock.user_id, clock.session_id.as_str())).copied().unwrap_or_default();
        clock.published_sequence.max(handed)
    };
    let query = diesel::sql_query(FIND)
        .bind::<Array<Integer>, _>(clocks.iter().map(|clock| clock.user_id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(clocks.iter().map(|clock| clock.session_id.as_str()).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(clocks.iter().map(seen).collect::<Vec<_>>())
        .bind::<BigInt, _>(EARLIER);
    let rows: Vec<EventRow> = prepared(query).load(connection).await?;
    rows.into_iter().map(EventRow::into_event).collect()
}
