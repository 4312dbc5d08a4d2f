//! The rows that are archived: how they are read, and removed when their archive is complete.

use ::archive::{Column, ENCRYPTED_FIELDS, Kind, Policy, Rows, Table, Written};
use ::store::{Connection, Fault, FaultKind};
use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::removal;

/// The most bytes of an archive's values, and of a row with what belongs to it: a larger one stays. No request stores as large a row.
const BYTES: i64 = 32 * 1024 * 1024;

/// A row in an archive, as it was when it was read.
#[derive(Clone, Debug)]
pub(crate) struct ArchivedRow {
    pub(crate) user_id: i32,
    pub(crate) id: Uuid,
    /// The transaction that wrote it (`xmin`): another one if it changes.
    pub(crate) row_version: String,
    pub(crate) policy_id: Uuid,
}

/// What was found of a table.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What can be archived.
    pub(crate) due: Option<Due>,
    /// How many of the rows that were measured are too large.
    pub(crate) too_large: usize,
}

/// What was read of a table.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) rows: Vec<ArchivedRow>,
    /// The summaries of sessions. A session is not removed if they have changed.
    pub(crate) parts: Vec<ArchivedRow>,
    pub(crate) tables: Vec<Rows>,
    pub(crate) policies: Vec<Policy>,
    /// Whether there may be more rows that are due.
    pub(crate) has_more: bool,
}

/// An archive that is complete. Its rows are still in the database.
#[derive(Debug)]
pub struct Archived {
    pub(crate) table: &'static Table,
    pub(crate) written: Written,
    pub(crate) rows: Vec<ArchivedRow>,
    pub(crate) parts: Vec<ArchivedRow>,
    /// Whether there may be more rows that are due.
    pub(crate) has_more: bool,
}

#[derive(QueryableByName)]
struct Read {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    row_version: String,
    #[diesel(sql_type = SqlUuid)]
    policy_id: Uuid,
    #[diesel(sql_type = Array<Nullable<Text>>)]
    cells: Vec<Option<String>>,
    /// Whether it is too large to be archived. Then there are no cells.
    #[diesel(sql_type = Bool)]
    is_too_large: bool,
    /// How many rows were due, some of which may not fit.
    #[diesel(sql_type = BigInt)]
    found: i64,
}

/// Whether any policy archives.
pub(crate) async fn has_policies(connection: &mut Connection) -> Result<bool, Fault> {
    #[derive(QueryableByName)]
    struct Has {
        #[diesel(sql_type = Bool)]
        has: bool,
    }
    let query = diesel::sql_query("SELECT sec.has_archive_policies() AS has");
    let rows: Vec<Has> = ::store::prepared(query).load(connection).await?;
    Ok(rows.iter().any(|row| row.has))
}

/// A column of a table as it is at present.
#[derive(Clone, Debug)]
pub struct TableColumn {
    /// Its name as SQL has it.
    pub quoted: String,
    /// The column.
    pub column: Column,
}

/// The columns of a table, which rows of archives have.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn columns(connection: &mut Connection, table: &str) -> Result<Vec<TableColumn>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = Text)]
        quoted: String,
        #[diesel(sql_type = Text)]
        sql_type: String,
        #[diesel(sql_type = Text)]
        category: String,
    }
    const COLUMNS: &str = "
        SELECT a.attname::text AS name, quote_ident(a.attname) AS quoted, format_type(a.atttypid, NULL) AS sql_type,
            t.typcategory::text AS category
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = ('public.' || quote_ident($1))::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        ORDER BY a.attnum";
    let query = diesel::sql_query(COLUMNS).bind::<Text, _>(table);
    let rows: Vec<Row> = ::store::prepared(query).load(connection).await?;
    let described = |row: Row| {
        let kind = Kind::of(&row.sql_type, &row.category);
        TableColumn { quoted: row.quoted, column: Column { name: row.name, sql_type: row.sql_type, kind } }
    };
    Ok(rows.into_iter().map(described).collect())
}

/// The texts of a row's values, as an array.
fn cells(columns: &[TableColumn]) -> String {
    let texts = columns.iter().map(|one| one.column.kind.text_of(&format!("t.{}", one.quoted)));
    format!("ARRAY[{}]::text[]", texts.collect::<Vec<_>>().join(", "))
}

/// Takes the users ($1), the time ($2), the most rows ($3) and the most bytes ($4). The text is the same as long as the table is.
///
/// Rows are measured one after the other, in the order of their users and ids, until they are as many bytes: what is stored of a value may be a
/// small part of its text. One that is too large counts for nothing, and those after it are read.
fn read_statement(name: &str, columns: &[TableColumn]) -> String {
    let due = match name {
        "simple_chat_context" => "due_contexts",
        "agent_context_states" => "due_agent_contexts",
        "router_decision_log" => "due_decisions",
        "chat_mode_sessions" => "due_sessions",
        _ => "due_events",
    };
    // The length of what belongs to the row, and is read apart. Whether the row says that it has ciphertexts does not matter: they are read.
    let ciphertexts = |row: &str, table: &str| {
        format!(
            "coalesce((SELECT sum(2 * octet_length(e.ciphertext)) FROM encrypted_fields e
            WHERE e.user_id = {row}.user_id AND e.row_id = {row}.id AND e.table_name = '{table}'), 0)"
        )
    };
    let parts = match name {
        "blackboard_events" => "0".to_owned(),
        "chat_mode_sessions" => format!(
            "coalesce((SELECT sum(octet_length(m.summary) + octet_length(m.key_topics::text) + {})
            FROM chat_session_summary m WHERE m.user_id = t.user_id AND m.session_id = t.session_id), 0)",
            ciphertexts("m", "chat_session_summary")
        ),
        _ => ciphertexts("t", name),
    };
    // A value whose own time is over is not kept by an archive: the run empties its row, and a later one archives that.
    let unexpired = match name {
        "simple_chat_context" | "agent_context_states" => " AND (t.expires_at IS NULL OR t.expires_at > $2)",
        _ => "",
    };
    format!(
        "WITH RECURSIVE due AS MATERIALIZED (SELECT d.user_id, d.id, d.policy_id FROM sec.{due}($1, $2, $3, 'archive') AS d),
        listed AS MATERIALIZED (
            SELECT array_agg(t.user_id ORDER BY t.user_id, t.id) AS users, array_agg(t.id ORDER BY t.user_id, t.id) AS ids
            FROM due d CROSS JOIN LATERAL (
                SELECT t.user_id, t.id FROM {name} t WHERE t.user_id = d.user_id AND t.id = d.id{unexpired} OFFSET 0
            ) AS t
        ), sized AS (
            SELECT 0 AS place, NULL::integer AS user_id, NULL::uuid AS id, false AS is_too_large, 0::bigint AS total
            UNION ALL
            SELECT s.place + 1, m.user_id, m.id, m.bytes > $4, s.total + CASE WHEN m.bytes > $4 THEN 0 ELSE m.bytes END
            FROM sized s CROSS JOIN listed l CROSS JOIN LATERAL (
                SELECT t.user_id, t.id, (pg_column_size({cells}) + {parts})::bigint AS bytes FROM {name} t
                WHERE t.user_id = l.users[s.place + 1] AND t.id = l.ids[s.place + 1] OFFSET 0
            ) AS m WHERE s.total < $4
        )
        SELECT s.user_id, s.id, t.row_version, d.policy_id, t.cells, s.is_too_large, (SELECT count(*) FROM due) AS found
        FROM sized s JOIN due d ON d.user_id = s.user_id AND d.id = s.id CROSS JOIN LATERAL (
            SELECT t.xmin::text AS row_version, CASE WHEN s.is_too_large THEN ARRAY[]::text[] ELSE {cells} END AS cells
            FROM {name} t WHERE t.user_id = s.user_id AND t.id = s.id OFFSET 0
        ) AS t
        ORDER BY s.user_id, s.id",
        cells = cells(columns)
    )
}

/// Reads what is due to be archived of a table, at most so many rows, with what belongs to them.
pub(crate) async fn read(
    connection: &mut Connection,
    table: &Table,
    at: DateTime<Utc>,
    users: &[i32],
    most: i32,
) -> Result<Found, Fault> {
    let described = columns(connection, table.name).await?;
    let query = diesel::sql_query(read_statement(table.name, &described))
        .bind::<Array<Integer>, _>(users)
        .bind::<Timestamptz, _>(at)
        .bind::<Integer, _>(most)
        .bind::<BigInt, _>(BYTES);
    let read: Vec<Read> = ::store::prepared(query).load(connection).await?;
    let Some(found) = read.as_slice().first().map(|row| row.found) else { return Ok(Found::default()) };
    let has_more = found >= i64::from(most) || i64::try_from(read.len()).is_ok_and(|fit| fit < found);
    let (large, read): (Vec<Read>, Vec<Read>) = read.into_iter().partition(|row| row.is_too_large);
    let too_large = large.len();
    if read.is_empty() {
        return Ok(Found { due: None, too_large });
    }
    let (rows, main) = collect(table.name, described, read)?;
    let mut tables = vec![main];
    let mut parts: Vec<ArchivedRow> = Vec::new();
    let mut owner = table.name;
    for part in table.parts {
        let described = columns(connection, part).await?;
        let owners = if owner == table.name { rows.as_slice() } else { parts.as_slice() };
        let read = read_part(connection, part, &described, (owner, owners)).await?;
        if read.iter().any(|row| row.is_too_large) {
            return Ok(Found { due: None, too_large: too_large + rows.len() });
        }
        let (known, rows) = collect(part, described, read)?;
        tables.push(rows);
        if *part != ENCRYPTED_FIELDS {
            (parts, owner) = (known, *part);
        }
    }
    let policies = policies(connection, &rows).await?;
    Ok(Found { due: Some(Due { rows, parts, tables, policies, has_more }), too_large })
}

fn collect(
    name: &str,
    described: Vec<TableColumn>,
    read: Vec<Read>,
) -> Result<(Vec<ArchivedRow>, Rows), Fault> {
    let mut rows = Rows::new(name, described.into_iter().map(|one| one.column).collect());
    let mut known = Vec::with_capacity(read.len());
    for Read { user_id, id, row_version, policy_id, cells, .. } in read {
        rows.push(cells).map_err(|error| Fault { kind: FaultKind::Permanent, reason: error.to_string() })?;
        known.push(ArchivedRow { user_id, id, row_version, policy_id });
    }
    Ok((known, rows))
}

/// What belongs to rows: the summaries of sessions, or the ciphertexts of rows of a table. If it has become more than the rows were measured
/// with, since another transaction has added some, all of it is too large.
async fn read_part(
    connection: &mut Connection,
    part: &str,
    described: &[TableColumn],
    (owner, rows): (&str, &[ArchivedRow]),
) -> Result<Vec<Read>, Fault> {
    let (joined, bytes) = match part {
        ENCRYPTED_FIELDS => (
            "JOIN encrypted_fields t ON t.user_id = i.user_id AND t.row_id = i.id AND t.table_name = $3",
            "2 * octet_length(t.ciphertext)",
        ),
        _ => (
            "JOIN chat_mode_sessions s ON s.user_id = i.user_id AND s.id = i.id AND $3 IS NOT NULL
            JOIN chat_session_summary t ON t.user_id = s.user_id AND t.session_id = s.session_id",
            "octet_length(t.summary) + octet_length(t.key_topics::text)",
        ),
    };
    let sql = format!(
        "SELECT t.user_id, t.id, t.row_version, t.id AS policy_id, CASE WHEN t.total > $4 THEN ARRAY[]::text[] ELSE {} END AS cells,
            t.total > $4 AS is_too_large, 0::bigint AS found
        FROM (SELECT t.*, t.xmin::text AS row_version, sum({bytes}) OVER () AS total
            FROM unnest($1::integer[], $2::uuid[]) AS i (user_id, id) {joined}) AS t
        ORDER BY t.user_id, t.id",
        cells(described)
    );
    let query = diesel::sql_query(sql)
        .bind::<Array<Integer>, _>(rows.iter().map(|row| row.user_id).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind::<Text, _>(owner)
        // The last of the rows reaches the limit, and has at most as many bytes itself.
        .bind::<BigInt, _>(2 * BYTES);
    Ok(::store::prepared(query).load(connection).await?)
}

async fn policies(connection: &mut Connection, rows: &[ArchivedRow]) -> Result<Vec<Policy>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = Nullable<Text>)]
        chat_mode: Option<String>,
        #[diesel(sql_type = Nullable<Text>)]
        access_tier: Option<String>,
        #[diesel(sql_type = Integer)]
        keep_days: i32,
    }
    const POLICIES: &str = "
        SELECT id, user_id, chat_mode::text AS chat_mode, access_tier::text AS access_tier, keep_days FROM data_retention_policies
        WHERE id = ANY ($1) ORDER BY user_id, id";
    let mut ids: Vec<Uuid> = rows.iter().map(|row| row.policy_id).collect();
    ids.sort_unstable();
    ids.dedup();
    let query = diesel::sql_query(POLICIES).bind::<Array<SqlUuid>, _>(ids);
    let rows: Vec<Row> = ::store::prepared(query).load(connection).await?;
    let policy = |Row { id, user_id, chat_mode, access_tier, keep_days }: Row| Policy {
        id,
        user_id,
        chat_mode,
        access_tier,
        keep_days,
    };
    Ok(rows.into_iter().map(policy).collect())
}

/// Removes the rows of an archive that are as they are in it, and names it. Gives what was removed.
pub(crate) async fn remove(
    connection: &mut Connection,
    archived: &Archived,
    run: Uuid,
) -> Result<Vec<removal::Gone>, Fault> {
    const NAME: &str = "SELECT sec.record_archive($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    let gone = removal::remove(connection, archived).await?;
    if gone.is_empty() {
        return Ok(gone);
    }
    let removed: std::collections::HashSet<(i32, Uuid)> =
        gone.iter().map(|row| (row.user_id, row.id)).collect();
    let not_removed = archived.rows.iter().filter(|row| !removed.contains(&(row.user_id, row.id)));
    let manifest = &archived.written.manifest;
    let query = diesel::sql_query(NAME)
        .bind::<SqlUuid, _>(manifest.id)
        .bind::<Text, _>(archived.table.name)
        .bind::<Text, _>(&archived.written.location)
        .bind::<Binary, _>(archived.written.hash.as_slice())
        .bind::<Array<SqlUuid>, _>(manifest.policies.iter().map(|policy| policy.id).collect::<Vec<_>>())
        .bind::<SqlUuid, _>(run)
        .bind::<Integer, _>(i32::try_from(gone.len()).unwrap_or(i32::MAX))
        .bind::<BigInt, _>(i64::try_from(archived.written.bytes()).unwrap_or(i64::MAX))
        .bind::<Timestamptz, _>(manifest.first_at)
        .bind::<Timestamptz, _>(manifest.last_at)
        .bind::<Array<Integer>, _>(&manifest.users)
        .bind::<Array<SqlUuid>, _>(not_removed.map(|row| row.id).collect::<Vec<_>>());
    ::store::prepared(query).execute(connection).await?;
    Ok(gone)
}
