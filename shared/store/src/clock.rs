//! The order of the events of a session (docs/adr/0021).
//!
//! A transaction that appends events to a session first locks the session's clock, a row of `session_clocks`, and holds
//! the lock until it commits. Sequence numbers therefore become visible in the order in which they were drawn: a reader
//! that has seen an event has seen all earlier events of the session.

use std::collections::HashMap;
use std::sync::LazyLock;

use contract::{EventType, UserId, WorkerInfo};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::blackboard::{EventRow, StoredEvent, event_columns};
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
    pub earlier: Vec<Earlier>,
    /// Whether there are more such events that this worker can publish. If so, nothing may be appended: publish these
    /// events first, then take the clocks again.
    pub has_more: bool,
}

/// An event of an earlier transaction that may not have been published yet.
#[derive(Clone, Debug)]
pub struct Earlier {
    /// The event. One of another worker has the payload `{}`.
    pub stored: StoredEvent,
    /// Whether this worker publishes events of this type. If not, it can only wait until another one has.
    pub is_own: bool,
    /// Whether further events of the session were left out after this one.
    pub is_cut: bool,
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
/// The maximum number of earlier events of a session that are read from the first one of another worker on.
const BEHIND: i64 = 16;
/// The maximum number of events of a session that one statement looks at, whether they are published or not: what a role writes into
/// its sessions makes no statement of another one long.
const LOOKED_AT: i64 = AT_ONCE + BEHIND + 2;
/// The number of events that one statement looks at in all sessions, if each session has [`FEWEST_LOOKED_AT`].
const LOOKED_AT_IN_ALL: i64 = 100_000;
const FEWEST_LOOKED_AT: i64 = BEHIND + 2;
/// The maximum number of such statements. A session with more published events after its mark waits for none after those.
const LOOKS: usize = 50;
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
/// appends events afterwards, so that no transaction waits for another lock while it holds a clock. No event is published
/// that is not there: a greater number is a role's claim, or of a server that was replaced by a standby.
static TAKE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (Row::arrays(1), Row::names());
    format!(
        "INSERT INTO session_clocks AS c (user_id, session_id, published_sequence, events, logical_time)
        SELECT user_id, session_id, least(published, (SELECT sec.last_event_sequence())), events, causes + events
        FROM unnest({arrays}) AS s ({names})
        ORDER BY user_id, session_id
        ON CONFLICT (user_id, session_id) DO UPDATE SET
            published_sequence = least(greatest(c.published_sequence, excluded.published_sequence),
                (SELECT sec.last_event_sequence())),
            events = c.events + excluded.events,
            logical_time = greatest(c.logical_time + excluded.events, excluded.logical_time)
        RETURNING user_id, session_id, published_sequence, logical_time"
    )
});

/// Takes the clocks of sessions, which must be distinct, for a worker: locks each one and advances it.
///
/// Events older than one hour are not returned as earlier events: their messages have been redelivered since, to a
/// worker that published them, and nobody waits longer for a worker that does not run. Events of a type that this program
/// does not know are left to a program that does.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn take(
    connection: &mut AsyncPgConnection,
    worker: &WorkerInfo,
    sessions: &[Session<'_>],
) -> Result<Taken, Fault> {
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
            seen.push(Seen {
                user_id: clock.user_id,
                session_id: session.session_id,
                number: clock.published_sequence.max(session.enqueued),
                is_mark: session.enqueued <= clock.published_sequence,
            });
            let key = (session.user_id, session.session_id.to_owned());
            times.insert(key, clock.logical_time - session.events);
        }
    }
    let unpublished = look(connection, seen).await?;
    let (earlier, has_more) = earlier(connection, worker, &unpublished).await?;
    Ok(Taken { times, earlier, has_more })
}

/// A session and the sequence number of its last known event.
#[derive(Clone, Copy)]
struct Seen<'a> {
    user_id: i32,
    session_id: &'a str,
    number: i64,
    /// Whether all events up to that number are published. Otherwise this replica is about to publish some of them.
    is_mark: bool,
}

/// The unpublished events of a session, of those that were looked at.
struct Unpublished {
    ids: Vec<Uuid>,
    /// Whether there are events that were not looked at.
    is_cut: bool,
}

/// Looks for unpublished events after the known ones. Where all that are looked at in a session are published, its mark is raised and it is
/// looked further, so that no batch has to look at them again.
async fn look(
    connection: &mut AsyncPgConnection,
    mut seen: Vec<Seen<'_>>,
) -> Result<Vec<Unpublished>, Fault> {
    let (mut found, mut raised) = (Vec::new(), HashMap::new());
    for _ in 0..LOOKS {
        let looked = look_once(connection, &seen).await?;
        let mut further = Vec::new();
        for Looked { session, last, has_unknown, ids } in looked {
            let place = usize::try_from(session - 1).ok();
            let Some(known) = place.and_then(|place| seen.get(place)).copied() else { continue };
            match last {
                Some(last) if ids.is_empty() => {
                    let is_mark = known.is_mark && !has_unknown;
                    if is_mark {
                        raised.insert((known.user_id, known.session_id), last);
                    }
                    further.push(Seen { number: last, is_mark, ..known });
                }
                Some(_) | None => found.push(Unpublished { ids, is_cut: last.is_some() }),
            }
        }
        if further.is_empty() {
            break;
        }
        seen = further;
    }
    raise(connection, &raised).await?;
    Ok(found)
}

/// What was found in a session.
#[derive(QueryableByName)]
struct Looked {
    /// Its place among the given ones, from 1 on.
    #[diesel(sql_type = BigInt)]
    session: i64,
    /// The last event that was looked at, if there may be more.
    #[diesel(sql_type = Nullable<BigInt>)]
    last: Option<i64>,
    /// Whether there are late events of types that this program does not know: newer replicas publish them.
    #[diesel(sql_type = Bool)]
    has_unknown: bool,
    /// Those that are not published, by sequence number.
    #[diesel(sql_type = Array<SqlUuid>)]
    ids: Vec<Uuid>,
}

async fn look_once(connection: &mut AsyncPgConnection, seen: &[Seen<'_>]) -> Result<Vec<Looked>, Fault> {
    // A separate statement, because a statement sees only what was committed when it began, and the previous one may
    // have waited for a lock. The limit comes before every condition but those of the index: events that are looked at
    // and left out count. The id alone spares partitions: a policy admits none that is older than eight days.
    const LOOK: &str = "
        WITH looked AS MATERIALIZED (
            SELECT s.session, b.* FROM unnest($1::integer[], $2::text[], $3::bigint[])
                WITH ORDINALITY AS s (user_id, session_id, seen, session)
            CROSS JOIN LATERAL (
                SELECT b.id, b.event_sequence, b.transaction_id, b.event_type, b.created_at FROM blackboard_events b
                WHERE b.user_id = s.user_id AND b.session_id = s.session_id AND b.event_sequence > s.seen
                    AND b.id >= (SELECT uuid7_at(now() - interval '9 days'))
                ORDER BY b.event_sequence LIMIT $5) AS b
        ), unpublished AS MATERIALIZED (
            SELECT u.id FROM (SELECT array_agg(l.transaction_id) AS transactions, array_agg(l.id) AS ids FROM looked l
                WHERE l.created_at >= now() - interval '1 hour' AND l.event_type::text = ANY ($4)) AS a
            CROSS JOIN LATERAL sec.unpublished_of(a.transactions, a.ids) AS u (id)
        )
        SELECT l.session, CASE WHEN count(*) >= $5 THEN max(l.event_sequence) END AS last,
            bool_or(l.created_at >= now() - interval '1 hour' AND l.event_type::text <> ALL ($4)) AS has_unknown,
            coalesce(array_agg(u.id ORDER BY l.event_sequence) FILTER (WHERE u.id IS NOT NULL), '{}') AS ids
        FROM looked l LEFT JOIN unpublished u ON u.id = l.id
        GROUP BY l.session HAVING count(*) >= $5 OR count(u.id) > 0 ORDER BY l.session";
    let known: Vec<&str> = EventType::ALL.iter().map(|known| known.as_str()).collect();
    let sessions = i64::try_from(seen.len().max(1)).unwrap_or(i64::MAX);
    let limit = (LOOKED_AT_IN_ALL / sessions).clamp(FEWEST_LOOKED_AT, LOOKED_AT);
    let query = diesel::sql_query(LOOK)
        .bind::<Array<Integer>, _>(seen.iter().map(|one| one.user_id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(seen.iter().map(|one| one.session_id).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(seen.iter().map(|one| one.number).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(known)
        .bind::<BigInt, _>(limit);
    Ok(prepared(query).load(connection).await?)
}

/// Raises the marks of sessions whose clocks are taken.
async fn raise(connection: &mut AsyncPgConnection, raised: &HashMap<(i32, &str), i64>) -> Result<(), Fault> {
    const RAISE: &str = "
        UPDATE session_clocks c SET published_sequence = greatest(c.published_sequence, r.mark)
        FROM unnest($1::integer[], $2::text[], $3::bigint[]) AS r (user_id, session_id, mark)
        WHERE c.user_id = r.user_id AND c.session_id = r.session_id";
    if raised.is_empty() {
        return Ok(());
    }
    let query = diesel::sql_query(RAISE)
        .bind::<Array<Integer>, _>(raised.keys().map(|(user, _)| *user).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(raised.keys().map(|(_, session)| *session).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(raised.values().copied().collect::<Vec<_>>());
    prepared(query).execute(connection).await?;
    Ok(())
}

/// The first event of another worker is found in every session. Of a session that was not looked at to its end, what this worker can
/// publish comes first.
const FIND: &str = concat!(
    "WITH found AS (
        SELECT b.*, s.session, s.is_unfinished, b.event_type::text = ANY ($4) AS is_own
        FROM unnest($1::bigint[], $2::boolean[], $3::uuid[]) AS s (session, is_unfinished, id)
        CROSS JOIN LATERAL (SELECT b.* FROM blackboard_events b WHERE b.id = s.id LIMIT 1) AS b
    ), placed AS (
        SELECT f.*, count(*) FILTER (WHERE NOT f.is_own) OVER (PARTITION BY f.session ORDER BY f.event_sequence) > 0
            AS is_behind, f.is_unfinished AND NOT bool_or(NOT f.is_own) OVER (PARTITION BY f.session) AS has_rest
        FROM found f
    ), sized AS (
        SELECT p.*, row_number() OVER (PARTITION BY p.session, p.is_behind ORDER BY p.event_sequence) AS place,
            row_number() OVER (PARTITION BY p.is_behind ORDER BY p.session, p.event_sequence) AS place_of_all,
            sum(octet_length(p.event_payload::text)) FILTER (WHERE p.is_own)
                OVER (PARTITION BY p.is_behind ORDER BY p.session, p.event_sequence) AS bytes,
            count(*) FILTER (WHERE NOT p.is_behind) OVER () AS in_front,
            lead(p.event_sequence) OVER (PARTITION BY p.session ORDER BY p.event_sequence) AS next
        FROM placed p
    ), chosen AS (
        SELECT s.id, s.event_sequence, s.event_type, s.performative, s.source_agent_id, s.target_agent_id, s.user_id,
            s.session_id, s.parent_event_id, s.logical_timestamp, s.created_at, s.transaction_id, s.session, s.is_own,
            s.is_behind, s.in_front, s.next, s.is_unfinished, s.has_rest,
            CASE WHEN s.is_own THEN s.event_payload ELSE '{}' END AS event_payload
        FROM sized s WHERE (s.place_of_all <= $5 AND (s.place_of_all = 1 OR s.bytes <= $6 OR s.bytes IS NULL)
            AND (NOT s.is_behind OR s.place <= $7)) OR (s.is_behind AND s.place = 1)
    ), followed AS (
        SELECT c.*, lead(c.event_sequence) OVER (PARTITION BY c.session ORDER BY c.event_sequence) AS next_chosen FROM chosen c
    )
    SELECT ",
    event_columns!(),
    ", e.is_own, e.is_behind, e.in_front, e.has_rest, CASE WHEN e.next_chosen IS NULL
        THEN e.next IS NOT NULL OR e.is_unfinished ELSE e.next <> e.next_chosen END AS is_cut
    FROM followed e ORDER BY e.session, e.event_sequence"
);

/// A row of [`FIND`].
#[derive(QueryableByName)]
struct Found {
    #[diesel(embed)]
    event: EventRow,
    #[diesel(sql_type = Bool)]
    is_own: bool,
    #[diesel(sql_type = Bool)]
    is_behind: bool,
    #[diesel(sql_type = Bool)]
    is_cut: bool,
    #[diesel(sql_type = Bool)]
    has_rest: bool,
    #[diesel(sql_type = BigInt)]
    in_front: i64,
}

/// The first of these events, and whether there are more that this worker can publish: those before the first one of another
/// worker in their session.
async fn earlier(
    connection: &mut AsyncPgConnection,
    worker: &WorkerInfo,
    unpublished: &[Unpublished],
) -> Result<(Vec<Earlier>, bool), Fault> {
    if unpublished.is_empty() {
        return Ok((Vec::new(), false));
    }
    let (mut sessions, mut unfinished, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    for (session, found) in (1_i64..).zip(unpublished) {
        sessions.extend(std::iter::repeat_n(session, found.ids.len()));
        unfinished.extend(std::iter::repeat_n(found.is_cut, found.ids.len()));
        ids.extend_from_slice(&found.ids);
    }
    let own: Vec<&str> = worker.events().map(EventType::as_str).collect();
    let query = diesel::sql_query(FIND)
        .bind::<Array<BigInt>, _>(sessions)
        .bind::<Array<Bool>, _>(unfinished)
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Array<Text>, _>(own)
        .bind::<BigInt, _>(AT_ONCE)
        .bind::<BigInt, _>(BYTES)
        .bind::<BigInt, _>(BEHIND);
    let mut rows: Vec<Found> = prepared(query).load(connection).await?;
    let in_front = rows.as_slice().first().map_or(0, |row| row.in_front);
    let is_left_out =
        rows.iter().filter(|row| !row.is_behind).count() < usize::try_from(in_front).unwrap_or(0);
    let has_more = is_left_out || rows.iter().any(|row| row.has_rest);
    if has_more {
        rows.retain(|row| !row.is_behind);
    }
    let earlier = rows.into_iter().map(|row| {
        let stored = row.event.into_stored()?;
        Ok(Earlier { stored, is_own: row.is_own, is_cut: row.is_cut })
    });
    Ok((earlier.collect::<Result<_, Fault>>()?, has_more))
}
