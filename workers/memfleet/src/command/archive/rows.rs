//! The statements of `memfleet archive restore`. They are of the transaction that it opens.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context, ensure};
use archive::Rows;
use diesel::QueryableByName;
use diesel::pg::Pg;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::Connection;
use uuid::Uuid;

use super::load;

/// Which of these users were erased. The others are locked, so that none of them is erased meanwhile.
pub(super) async fn erased(
    connection: &mut Connection,
    users: BTreeSet<i32>,
) -> anyhow::Result<BTreeSet<i32>> {
    #[derive(QueryableByName)]
    struct User {
        #[diesel(sql_type = Integer)]
        id: i32,
    }
    const LOCK: &str = "SELECT id FROM users WHERE id = ANY ($1) ORDER BY id FOR KEY SHARE";
    const ERASED: &str = "SELECT u.id FROM unnest($1::integer[]) AS u (id) WHERE sec.is_erased(u.id)";
    let users: Vec<i32> = users.into_iter().collect();
    let locked: Result<Vec<User>, _> =
        diesel::sql_query(LOCK).bind::<Array<Integer>, _>(&users).load(connection).await;
    locked.context("cannot lock the users")?;
    let query = diesel::sql_query(ERASED).bind::<Array<Integer>, _>(&users);
    let erased: Vec<User> = query.load(connection).await.context("cannot tell which users were erased")?;
    Ok(erased.into_iter().map(|user| user.id).collect())
}

/// The sessions of these rows that are not there.
pub(super) async fn without_session(
    connection: &mut Connection,
    rows: &Rows,
) -> anyhow::Result<HashSet<(i32, String)>> {
    #[derive(QueryableByName)]
    struct Session {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = Text)]
        session_id: String,
    }
    const MISSING: &str = "
        SELECT DISTINCT i.user_id, i.session_id FROM unnest($1::integer[], $2::text[]) AS i (user_id, session_id)
        WHERE NOT EXISTS (SELECT FROM chat_mode_sessions s WHERE s.user_id = i.user_id AND s.session_id = i.session_id)";
    let (users, sessions): (Vec<i32>, Vec<&str>) = (0..rows.len())
        .filter_map(|row| {
            Some((load::number(rows.get(row, "user_id"))?, load::text(rows.get(row, "session_id"))?))
        })
        .unzip();
    let query = diesel::sql_query(MISSING).bind::<Array<Integer>, _>(users).bind::<Array<Text>, _>(sessions);
    let missing: Vec<Session> = query.load(connection).await.context("cannot look for the sessions")?;
    Ok(missing.into_iter().map(|one| (one.user_id, one.session_id)).collect())
}

/// Gives the sessions of events their clocks, which went with their last event. The events have been published: without a clock that says
/// so, the next worker that appends one would publish them again.
pub(super) async fn clocks(connection: &mut Connection, events: &Rows) -> anyhow::Result<()> {
    const CLOCKS: &str = "
        INSERT INTO session_clocks AS c (user_id, session_id, published_sequence, logical_time)
        SELECT i.user_id, i.session_id, max(i.event_sequence), max(i.logical_timestamp)
        FROM unnest($1::integer[], $2::text[], $3::bigint[], $4::bigint[]) AS i (user_id, session_id, event_sequence, logical_timestamp)
        GROUP BY i.user_id, i.session_id ORDER BY i.user_id, i.session_id
        ON CONFLICT (user_id, session_id) DO UPDATE SET published_sequence = greatest(c.published_sequence, excluded.published_sequence)";
    let (mut users, mut sessions, mut sequences, mut times) = (vec![], vec![], vec![], vec![]);
    for row in 0..events.len() {
        let known = (
            load::number(events.get(row, "user_id")),
            load::text(events.get(row, "session_id")),
            load::big_number(events.get(row, "event_sequence")),
            load::big_number(events.get(row, "logical_timestamp")),
        );
        if let (Some(user), Some(session), Some(sequence), Some(time)) = known {
            users.push(user);
            sessions.push(session);
            sequences.push(sequence);
            times.push(time);
        }
    }
    let query = diesel::sql_query(CLOCKS)
        .bind::<Array<Integer>, _>(users)
        .bind::<Array<Text>, _>(sessions)
        .bind::<Array<BigInt>, _>(sequences)
        .bind::<Array<BigInt>, _>(times);
    query.execute(connection).await.context("cannot restore the clocks of the sessions")?;
    Ok(())
}

/// Inserts rows unless their place is taken. Gives those that were inserted.
pub(super) async fn insert(connection: &mut Connection, rows: &Rows) -> anyhow::Result<HashSet<(i32, Uuid)>> {
    #[derive(QueryableByName)]
    struct Inserted {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    if rows.is_empty() {
        return Ok(HashSet::new());
    }
    let present = retention_cleaner::columns(connection, &rows.table).await?;
    let (mut names, mut values, mut arrays, mut aliases) = (vec![], vec![], vec![], vec![]);
    for (place, column) in rows.columns().iter().enumerate() {
        let known = present.iter().find(|known| known.column.name == column.name);
        ensure!(
            known.is_some_and(|known| known.column.kind == column.kind),
            "{} has no column {} of the type {} any more; restore with the version of memfleet that wrote the archive",
            rows.table,
            column.name,
            column.sql_type
        );
        let Some(known) = known else { continue };
        names.push(known.quoted.clone());
        values.push(column.kind.value_of(&format!("v.c{place}"), &known.column.sql_type));
        arrays.push(format!("${}::text[]", place + 1));
        aliases.push(format!("c{place}"));
    }
    let sql = format!(
        "INSERT INTO {} ({}) SELECT {} FROM unnest({}) AS v ({}) ON CONFLICT DO NOTHING RETURNING user_id, id",
        rows.table,
        names.join(", "),
        values.join(", "),
        arrays.join(", "),
        aliases.join(", ")
    );
    let mut query = diesel::sql_query(sql).into_boxed::<Pg>();
    for values in rows.values() {
        let texts: Vec<Option<String>> = values.iter().map(archive::Value::to_text).collect();
        query = query.bind::<Array<Nullable<Text>>, _>(texts);
    }
    let inserted: Vec<Inserted> =
        query.load(connection).await.with_context(|| format!("cannot restore rows of {}", rows.table))?;
    Ok(inserted.into_iter().map(|row| (row.user_id, row.id)).collect())
}

/// Notes what was restored, for the audit trail.
pub(super) async fn note(
    connection: &mut Connection,
    archive: Uuid,
    table: &str,
    by_user: &BTreeMap<i32, i32>,
) -> anyhow::Result<()> {
    const NOTE: &str = "
        INSERT INTO archive_restores (id, user_id, archive_id, table_name, restored)
        SELECT gen_random_uuid(), i.user_id, $1, $2, i.restored FROM unnest($3::integer[], $4::integer[]) AS i (user_id, restored)";
    if by_user.is_empty() {
        return Ok(());
    }
    let query = diesel::sql_query(NOTE)
        .bind::<SqlUuid, _>(archive)
        .bind::<Text, _>(table)
        .bind::<Array<Integer>, _>(by_user.keys().copied().collect::<Vec<_>>())
        .bind::<Array<Integer>, _>(by_user.values().copied().collect::<Vec<_>>());
    query.execute(connection).await.context("cannot note what was restored")?;
    Ok(())
}
