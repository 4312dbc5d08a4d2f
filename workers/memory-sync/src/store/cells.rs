//! Loading and locking what a round compares.

use std::collections::HashMap;
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer};
use diesel_async::RunQueryDsl;
use keys::OpenKeys;
use sync::Key;
use uuid::Uuid;

use super::rows::{Opener, Row, Sealed, Stored, agent_of, secrets};
use super::run::Run;
use super::table::{Table, prefixed};
use super::work::Portion;

/// The most keys of one round of a sync.
pub(crate) const KEYS: i32 = 500;
/// The most bytes of values and states that a statement reads, shared by the syncs that it reads. One key is read in any case, but for
/// values of more than [`VALUE_BYTES`] and rows of which more than [`KEPT_BYTES`] are kept. What is read takes about ten times as much memory until it is written: texts, parsed values, and
/// their parts with those who wrote them.
pub(crate) const BYTES: usize = 16 << 20;
/// The most bytes of a value as text. A key with a larger one fails by itself. No request stores a larger one, no event has room for it, and
/// the tables refuse it; one from before that check may have a hundred thousand times the size that is stored.
pub(crate) const VALUE_BYTES: usize = contract::limit::EVENT_PAYLOAD_BYTES;
/// The most bytes that are kept of a row: its state without values and with them, which `state_bytes` of the rules bounds, or the ciphertexts
/// of its value and of its state. A key with more fails by itself, and nothing of that is read.
pub(crate) const KEPT_BYTES: usize = 8 << 20;

::store::unnest_row! {
    struct PairRow<'a> {
        ordinal: i32,
        user_id: i32,
        source: &'a str,
        target: &'a str,
        filter: &'a str,
        is_all: bool,
        crosses_private: bool,
        resume_after: Option<Uuid>,
        most: i32,
        bytes: i64,
        now: DateTime<Utc>,
    }
}

fn input() -> String {
    let (arrays, names) = (PairRow::arrays(1), PairRow::names());
    format!(
        "i AS MATERIALIZED (SELECT ordinal, user_id, source, target, filter::jsonb AS filter, is_all, crosses_private,
            resume_after, most, bytes, now FROM unnest({arrays}) AS i ({names}))"
    )
}

/// The rows of the source that the target may not know, the first ones after `resume_after`, with those of the target that have
/// the same keys. A row that is as the last sync left it, with the same state as the target's, has nothing for the target.
///
/// A value counts as long as it is as text, which says nothing of the size that is stored: it may be compressed, and a number such as 1e131071
/// takes 16 bytes. Values, but for texts that are stored as they are, are measured one after the other, until the bytes are used up: to
/// measure one, PostgreSQL writes it.
///
/// Sources and targets are locked by one statement, in the order of their keys, which is that of context-writer.
fn load_sql(table: Table) -> String {
    let (input, key_columns) = (input(), table.key_columns());
    let value = "CASE WHEN c.oversize = 0 THEN t.context_value::text END";
    let columns = table.columns(value, "c.oversize", "c.keeps_too_much");
    let (asked, stays) = (table.is_asked_for(), table.stays());
    let (target_key, chosen_key) = (table.same_key("o", "t"), table.same_key("c", "t"));
    let (kept_of_source, kept_of_target) = (table.kept_bytes("t"), table.kept_bytes("o"));
    let measured = format!("{} OR {}", is_measured("value"), is_measured("other"));
    format!(
        "WITH {input}, chosen AS MATERIALIZED (
        SELECT i.ordinal, i.user_id, i.source, i.target, s.* FROM i CROSS JOIN LATERAL (
            WITH RECURSIVE found AS MATERIALIZED (
                SELECT t.id, {own_columns}, count(*) OVER () AS found, t.context_value AS value, o.context_value AS other,
                    {kept_of_source} AS kept_of_source, {kept_of_target} AS kept_of_target
                FROM {name} t LEFT JOIN {name} o ON o.user_id = i.user_id AND o.session_id = i.target AND {target_key}
                WHERE t.user_id = i.user_id AND t.session_id = i.source AND (i.resume_after IS NULL OR t.id > i.resume_after)
                    AND {asked} AND {stays} IS NULL
                    AND (o.id IS NULL OR t.writes <> t.synced_writes OR t.sync_state IS DISTINCT FROM o.sync_state)
                ORDER BY t.id LIMIT i.most + 1
            ), packed AS MATERIALIZED (
                SELECT id, value, other, row_number() OVER (ORDER BY id) AS place FROM found WHERE {measured}
            ), unpacked AS (
                SELECT NULL::uuid AS id, 0::bigint AS place, 0::bigint AS bytes, 0 AS largest, 0::bigint AS total
                UNION ALL SELECT p.id, p.place, b.value::bigint + b.other, greatest(b.value, b.other), u.total + b.value + b.other
                FROM unpacked u JOIN packed p ON p.place = u.place + 1
                CROSS JOIN LATERAL (SELECT coalesce(octet_length(p.value::text), 0) AS value,
                    coalesce(octet_length(p.other::text), 0) AS other OFFSET 0) AS b
                WHERE u.total < i.bytes
            )
            SELECT id, {key_columns}, found, oversize, keeps_too_much FROM (
                SELECT f.*, CASE WHEN u.largest > {VALUE_BYTES} THEN u.bytes ELSE 0 END AS oversize, k.keeps_too_much,
                    sum(CASE WHEN k.keeps_too_much THEN 0 ELSE f.kept_of_source + f.kept_of_target END
                        + coalesce(u.bytes, coalesce(pg_column_size(f.value), 0) + coalesce(pg_column_size(f.other), 0)))
                    OVER (ORDER BY f.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
                FROM found f LEFT JOIN unpacked u ON u.id = f.id
                CROSS JOIN LATERAL (SELECT greatest(f.kept_of_source, f.kept_of_target) > {KEPT_BYTES} AS keeps_too_much) AS k
            ) AS f WHERE coalesce(before, 0) < i.bytes) AS s)
    SELECT c.ordinal, t.session_id = c.source AS is_source, c.found, {columns}
    FROM chosen c JOIN {name} t ON t.user_id = c.user_id AND t.session_id IN (c.source, c.target) AND {chosen_key}
    ORDER BY t.user_id, t.session_id, {ordered} FOR NO KEY UPDATE OF t",
        name = table.name(),
        own_columns = prefixed(key_columns),
        ordered = prefixed(key_columns),
    )
}

/// Whether the text of a value may be much longer than what is stored of it.
fn is_measured(value: &str) -> String {
    format!(
        "pg_column_compression({value}) IS NOT NULL OR jsonb_typeof({value}) IN ('number', 'array', 'object')"
    )
}

static LOAD_CONTEXTS: LazyLock<String> = LazyLock::new(|| load_sql(Table::Contexts));
static LOAD_AGENTS: LazyLock<String> = LazyLock::new(|| load_sql(Table::Agents));

/// How many keys of the source are asked for, and how many of them stay.
static COUNT: LazyLock<String> = LazyLock::new(|| {
    let input = input();
    let of = |table: Table| {
        format!(
            "SELECT i.ordinal, {stays} AS stays FROM i JOIN {name} t ON t.user_id = i.user_id AND t.session_id = i.source
            WHERE {asked}",
            stays = table.stays(),
            name = table.name(),
            asked = table.is_asked_for()
        )
    };
    let (contexts, agents) = (of(Table::Contexts), of(Table::Agents));
    format!(
        "WITH {input} SELECT ordinal, count(*) FILTER (WHERE stays IS NULL) AS crossing,
        count(*) FILTER (WHERE stays = 'private') AS private, count(*) FILTER (WHERE stays = 'expired') AS expired,
        count(*) FILTER (WHERE stays = 'removed') AS removed
    FROM ({contexts} UNION ALL {agents}) AS k GROUP BY ordinal"
    )
});

#[derive(QueryableByName)]
pub(crate) struct Counted {
    #[diesel(sql_type = Integer)]
    ordinal: i32,
    #[diesel(sql_type = BigInt)]
    pub(crate) crossing: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) private: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) expired: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) removed: i64,
}

#[derive(QueryableByName)]
struct Place {
    #[diesel(sql_type = Integer)]
    ordinal: i32,
    #[diesel(sql_type = Bool)]
    is_source: bool,
    /// How many rows of the source's table are left to read, this one included.
    #[diesel(sql_type = BigInt)]
    found: i64,
    #[diesel(embed)]
    row: Row,
}

/// What a round of a sync compares.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) source: HashMap<Key, Result<Stored, Sealed>>,
    pub(crate) target: HashMap<Key, Result<Stored, Sealed>>,
    /// Whether there are more keys.
    pub(crate) has_more: bool,
    /// The bytes of values and states that were read.
    pub(crate) bytes: usize,
    /// The keys of the source with their rows, in the order in which rounds go on.
    pub(crate) order: Vec<(Uuid, Key)>,
}

fn pairs<'a>(runs: &'a [&Run], filters: &'a [String], portion: Portion) -> Vec<PairRow<'a>> {
    let pair = |((ordinal, run), filter): ((usize, &&'a Run), &'a String)| PairRow {
        ordinal: i32::try_from(ordinal).unwrap_or(i32::MAX),
        user_id: run.user.get(),
        source: &run.source,
        target: &run.target,
        filter,
        is_all: run.filter == contract::SyncFilter::default(),
        crosses_private: run.crosses_private,
        resume_after: run.resume_after,
        most: portion.keys,
        bytes: portion.bytes,
        now: run.now,
    };
    runs.iter().enumerate().zip(filters).map(pair).collect()
}

fn filters(runs: &[&Run]) -> Vec<String> {
    runs.iter().map(|run| super::json(&run.filter)).collect()
}

/// Counts the keys of the sources, in the order of the syncs: all of them.
pub(crate) async fn count(
    connection: &mut Connection,
    runs: &[&Run],
) -> Result<HashMap<usize, Counted>, Fault> {
    if runs.is_empty() {
        return Ok(HashMap::new());
    }
    let (filters, all) = (filters(runs), Portion { keys: i32::MAX, bytes: i64::MAX });
    let counted: Vec<Counted> = with_rows(&COUNT, pairs(runs, &filters, all)).load(connection).await?;
    Ok(counted.into_iter().filter_map(|row| Some((usize::try_from(row.ordinal).ok()?, row))).collect())
}

/// Loads and locks what a round compares, a portion for each of these syncs, of which none writes a session that another one reads or
/// writes.
pub(crate) async fn load(
    connection: &mut Connection,
    runs: &[&Run],
    keys: &OpenKeys,
    portion: Portion,
) -> Result<Vec<Loaded>, Fault> {
    let filters = filters(runs);
    let mut places: Vec<(Table, Place)> = Vec::new();
    for table in Table::ALL {
        let sql = match table {
            Table::Contexts => &LOAD_CONTEXTS,
            Table::Agents => &LOAD_AGENTS,
        };
        let rows: Vec<Place> = with_rows(sql, pairs(runs, &filters, portion)).load(connection).await?;
        places.extend(rows.into_iter().map(|row| (table, row)));
    }
    let secrets = secrets(connection, places.iter().map(|(table, place)| (*table, &place.row))).await?;
    let mut encrypted: HashMap<(Table, Uuid), usize> = HashMap::new();
    for ((table, row, _), field) in &secrets {
        *encrypted.entry((*table, *row)).or_default() += field.ciphertext.len();
    }
    let mut loaded: Vec<Loaded> = runs.iter().map(|_| Loaded::default()).collect();
    let mut read: Vec<[Read; 2]> = runs.iter().map(|_| Default::default()).collect();
    for (table, Place { ordinal, is_source, found, row }) in places {
        let Some(index) = usize::try_from(ordinal).ok().filter(|index| *index < runs.len()) else { continue };
        let (id, key) = (row.id, row.key()?);
        loaded[index].bytes += row.bytes() + encrypted.get(&(table, id)).copied().unwrap_or(0);
        let opener = Opener { secrets: &secrets, keys, may_decrypt: runs[index].may_decrypt };
        let stored = opener.open(table, row);
        if is_source {
            let read = &mut read[index][table as usize];
            read.found = usize::try_from(found).unwrap_or(usize::MAX);
            read.rows.push((id, key.clone()));
            loaded[index].source.insert(key, stored);
        } else {
            loaded[index].target.insert(key, stored);
        }
    }
    for (loaded, read) in loaded.iter_mut().zip(read) {
        loaded.cut(read, portion.keys);
    }
    Ok(loaded)
}

/// What was read of one table of a source.
#[derive(Debug, Default)]
struct Read {
    rows: Vec<(Uuid, Key)>,
    found: usize,
}

impl Loaded {
    /// Leaves out what is behind the first row that was not read, of either table: the next round goes on from there.
    fn cut(&mut self, read: [Read; 2], most: i32) {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let mut end: Option<Uuid> = None;
        let mut all: Vec<(Uuid, Key)> = Vec::new();
        for Read { rows, found } in read {
            if found > rows.len() {
                let last = rows.iter().map(|(id, _)| *id).max();
                end = end.into_iter().chain(last).min();
            }
            all.extend(rows);
        }
        all.sort_unstable();
        let within = all.iter().take(most).take_while(|(id, _)| end.is_none_or(|end| *id <= end)).count();
        self.has_more = end.is_some() || within < all.len();
        for (_, key) in all.split_off(within) {
            self.source.remove(&key);
            self.target.remove(&key);
        }
        self.order = all;
    }
}

::store::unnest_row! {
    struct KeyRow<'a> {
        user_id: i32,
        session_id: &'a str,
        agent_id: Option<&'a str>,
        memory_tier: Option<&'a str>,
        context_key: &'a str,
    }
}

/// The most bytes of values that are loaded by key. Whoever asks for keys estimates what they have, at half of it at least, and asks for no
/// more than [`BYTES`]: beyond it are rows that no worker has left as they are.
const BYTES_BY_KEY: usize = 4 * BYTES;

fn load_keys_sql(table: Table) -> String {
    let (arrays, names) = (KeyRow::arrays(1), KeyRow::names());
    let same = match table {
        Table::Contexts => "t.context_key = i.context_key",
        Table::Agents => {
            "t.agent_id = i.agent_id AND t.memory_tier = i.memory_tier::memorytier AND t.context_key = i.context_key"
        }
    };
    let oversize = "(CASE WHEN w.is_sent THEN 0 ELSE w.bytes END)::bigint";
    let columns = table.columns("v.value", oversize, "v.keeps_too_much");
    format!(
        "WITH wanted AS MATERIALIZED (
            SELECT m.user_id, m.id, m.bytes, m.bytes <= {VALUE_BYTES} AND coalesce(sum(m.bytes)
                OVER (ORDER BY m.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) < {BYTES_BY_KEY} AS is_sent
            FROM (
                SELECT t.user_id, t.id, coalesce(octet_length(t.context_value::text), 0) AS bytes FROM unnest({arrays}) AS i ({names})
                JOIN {name} t ON t.user_id = i.user_id AND t.session_id = i.session_id AND {same}
            ) AS m
        )
        SELECT {columns} FROM wanted w JOIN {name} t ON t.user_id = w.user_id AND t.id = w.id
        CROSS JOIN LATERAL (
            SELECT CASE WHEN w.is_sent THEN t.context_value::text END AS value, {kept} > {KEPT_BYTES} AS keeps_too_much OFFSET 0
        ) AS v
        ORDER BY t.user_id, t.session_id, {ordered} FOR UPDATE OF t",
        name = table.name(),
        kept = table.kept_bytes("t"),
        ordered = prefixed(table.key_columns()),
    )
}

static LOAD_CONTEXTS_BY_KEY: LazyLock<String> = LazyLock::new(|| load_keys_sql(Table::Contexts));
static LOAD_AGENTS_BY_KEY: LazyLock<String> = LazyLock::new(|| load_keys_sql(Table::Agents));

/// Loads and locks these keys of a session. Gives also how many bytes were read.
pub(crate) async fn load_keys(
    connection: &mut Connection,
    user: UserId,
    session: &str,
    wanted: &[Key],
    keys: &OpenKeys,
) -> Result<(HashMap<Key, Result<Stored, Sealed>>, usize), Fault> {
    let mut rows: Vec<(Table, Row)> = Vec::new();
    for (table, sql) in [(Table::Contexts, &LOAD_CONTEXTS_BY_KEY), (Table::Agents, &LOAD_AGENTS_BY_KEY)] {
        let of_table = wanted.iter().filter(|key| Table::of(key) == table);
        let input: Vec<KeyRow<'_>> = of_table
            .map(|key| {
                let (agent_id, memory_tier) = agent_of(key);
                let (user_id, context_key) = (user.get(), key.name());
                KeyRow { user_id, session_id: session, agent_id, memory_tier, context_key }
            })
            .collect();
        if !input.is_empty() {
            let found: Vec<Row> = with_rows(sql, input).load(connection).await?;
            rows.extend(found.into_iter().map(|row| (table, row)));
        }
    }
    let secrets = secrets(connection, rows.iter().map(|(table, row)| (*table, row))).await?;
    let encrypted: usize = secrets.values().map(|field| field.ciphertext.len()).sum();
    let bytes = rows.iter().map(|(_, row)| row.bytes()).sum::<usize>() + encrypted;
    let opener = Opener { secrets: &secrets, keys, may_decrypt: true };
    let opened = rows.into_iter().map(|(table, row)| Ok((row.key()?, opener.open(table, row))));
    Ok((opened.collect::<Result<_, Fault>>()?, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of rows of the two tables after the cut, and whether there are more. Of each table: which rows were read, and how
    /// many were found. All of them have a row in the target too.
    fn cut(tables: [(&[u128], usize); 2]) -> (Vec<u128>, bool) {
        let key = |id: u128| Key::Context(id.to_string());
        let mut loaded = Loaded::default();
        let read = tables.map(|(ids, found)| {
            for id in ids {
                loaded.source.insert(key(*id), Err(Sealed::Encrypted));
                loaded.target.insert(key(*id), Err(Sealed::Encrypted));
            }
            Read { rows: ids.iter().map(|id| (Uuid::from_u128(*id), key(*id))).collect(), found }
        });
        loaded.cut(read, KEYS);
        let left: Vec<u128> = loaded.order.iter().map(|(id, _)| id.as_u128()).collect();
        let sorted = |rows: &HashMap<Key, Result<Stored, Sealed>>| {
            let mut ids: Vec<u128> = rows.keys().filter_map(|key| key.name().parse().ok()).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!((sorted(&loaded.source), sorted(&loaded.target)), (left.clone(), left.clone()));
        (left, loaded.has_more)
    }

    #[test]
    fn a_round_ends_with_the_last_row_that_was_read_of_each_table() {
        assert_eq!(cut([(&[], 0), (&[], 0)]), (vec![], false));
        assert_eq!(cut([(&[3, 1], 2), (&[2], 1)]), (vec![1, 2, 3], false), "all were read");
        // Rows 4 and 5 wait for those that were not read of the other table, which may come before them.
        assert_eq!(cut([(&[1, 3], 9), (&[2, 4, 5], 3)]), (vec![1, 2, 3], true));
        assert_eq!(cut([(&[2, 4, 5], 3), (&[1, 3], 9)]), (vec![1, 2, 3], true));
        assert_eq!(cut([(&[1, 3], 3), (&[2, 4], 5)]), (vec![1, 2, 3], true));
        assert_eq!(cut([(&[1, 2], 3), (&[], 0)]), (vec![1, 2], true));
    }

    #[test]
    fn no_state_within_the_rules_is_too_large_to_be_read() {
        let state_bytes = sync::Rules::current().map(|rules| rules.limits.state_bytes);
        assert_eq!(state_bytes.ok(), Some(KEPT_BYTES / 2));
    }

    #[test]
    fn a_round_has_a_limited_number_of_keys() {
        let most = u128::try_from(KEYS).unwrap_or(0);
        let all: Vec<u128> = (1..=most).collect();
        for (count, has_more) in [(most, false), (most + 1, true)] {
            let (even, odd): (Vec<u128>, Vec<u128>) = (1..=count).partition(|id| id % 2 == 0);
            assert_eq!(cut([(&even, even.len()), (&odd, odd.len())]), (all.clone(), has_more));
        }
    }
}
