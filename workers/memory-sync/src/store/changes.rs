//! The changes that a sync has made, as an undo reads them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

use ::store::{Connection, Fault};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use keys::{Encrypted, OpenKeys};
use secrecy::ExposeSecret;
use sync::{Cell, Key};
use uuid::Uuid;

use super::cells::{self, KEPT_BYTES};
use super::rows::{self, Sealed};
use super::run::Run;
use super::table::Table;

/// How much a change counts of what a batch may read, beside its texts: for its row, that of its key, and what depends on it.
pub(crate) const CHANGE_BYTES: usize = 4096;

/// The changes of a sync that have not been taken back, the latest first, below this position: as many as have so many bytes together
/// with the cells that they led to, but one in any case. What the session has put since may be as large as any value.
static CHANGES_OF_SYNC: LazyLock<String> = LazyLock::new(|| {
    let of_cell = |table: Table, same: &str| {
        format!(
            "coalesce((SELECT {kept} + CASE WHEN pg_column_compression(t.context_value) IS NULL THEN coalesce(octet_length(t.context_value::text), 0)
                WHEN t.writes = t.synced_writes THEN coalesce(octet_length(t.sync_values), 0) ELSE {largest} END
            FROM {name} t WHERE t.user_id = c.user_id AND t.session_id = c.target_session_id AND {same}), 0)",
            kept = table.kept_bytes("t"),
            largest = contract::limit::BODY_BYTES,
            name = table.name(),
        )
    };
    let context = of_cell(Table::Contexts, "t.context_key = c.context_key AND c.agent_id IS NULL");
    let agent = of_cell(
        Table::Agents,
        "t.agent_id = c.agent_id AND t.memory_tier = c.memory_tier AND t.context_key = c.context_key",
    );
    format!(
        "SELECT c.id, c.agent_id::text AS agent_id, c.memory_tier::text AS memory_tier, c.context_key::text AS context_key,
            c.position, c.had_before, CASE WHEN c.own_bytes <= {KEPT_BYTES} THEN c.before END AS before,
            c.before_digest::text AS before_digest, c.after_digest::text AS after_digest, c.writes, c.is_sensitive,
            c.own_bytes > {KEPT_BYTES} AS keeps_too_much
        FROM (
            SELECT c.*, sum(c.own_bytes + c.cell_bytes)
                OVER (ORDER BY c.position DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS so_far
            FROM (
                SELECT c.*, coalesce(octet_length(c.before), 0) + CASE WHEN c.is_sensitive THEN (
                    SELECT coalesce(sum(octet_length(e.ciphertext)), 0) FROM encrypted_fields e
                    WHERE e.user_id = c.user_id AND e.row_id = c.id AND e.table_name = 'sync_changes') ELSE 0 END AS own_bytes,
                    {context} + {agent} AS cell_bytes
                FROM sync_changes c
                WHERE c.user_id = $1 AND c.sync_id = $2 AND c.undone_at IS NULL AND c.after_digest IS NOT NULL AND c.position < $3
                ORDER BY c.position DESC LIMIT $4
            ) AS c
        ) AS c WHERE coalesce(c.so_far, 0) < $5 ORDER BY c.position DESC"
    )
});

#[derive(QueryableByName)]
pub(crate) struct ChangeRow {
    #[diesel(sql_type = SqlUuid)]
    pub(crate) id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    agent_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    memory_tier: Option<String>,
    #[diesel(sql_type = Text)]
    context_key: String,
    #[diesel(sql_type = BigInt)]
    pub(crate) position: i64,
    #[diesel(sql_type = Bool)]
    had_before: bool,
    #[diesel(sql_type = Nullable<Text>)]
    before: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    before_digest: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    after_digest: Option<String>,
    #[diesel(sql_type = BigInt)]
    writes: i64,
    #[diesel(sql_type = Bool)]
    is_sensitive: bool,
    /// Whether what the key was before is not here since it takes more than [`KEPT_BYTES`].
    #[diesel(sql_type = Bool)]
    keeps_too_much: bool,
}

/// The changes that a sync made to a key, one on the other, so that all of them are taken back together.
pub(crate) struct Chain {
    pub(crate) changes: Vec<Uuid>,
    /// The place of the last one.
    pub(crate) position: i64,
    /// The change that the key goes back before.
    pub(crate) first: ChangeRow,
    pub(crate) after: String,
    pub(crate) writes: u64,
}

/// What is not undone yet.
pub(crate) async fn load(
    connection: &mut Connection,
    run: &Run,
    below: i64,
    most: i32,
) -> Result<Vec<ChangeRow>, Fault> {
    let query = diesel::sql_query(CHANGES_OF_SYNC.as_str())
        .bind::<Integer, _>(run.user.get())
        .bind::<SqlUuid, _>(run.id)
        .bind::<BigInt, _>(below)
        .bind::<Integer, _>(most)
        .bind::<BigInt, _>(i64::try_from(cells::BYTES).unwrap_or(i64::MAX));
    Ok(::store::prepared(query).load(connection).await?)
}

/// The changes by key, back to the first one after which nothing but this sync has changed the key.
pub(crate) fn chains(changes: Vec<ChangeRow>) -> Result<BTreeMap<Key, Chain>, Fault> {
    let mut chains: BTreeMap<Key, Chain> = BTreeMap::new();
    let mut broken: BTreeSet<Key> = BTreeSet::new();
    for change in changes {
        let key =
            rows::key_of(change.agent_id.as_deref(), change.memory_tier.as_deref(), &change.context_key)?;
        match chains.get_mut(&key) {
            None => {
                let chain = Chain {
                    changes: vec![change.id],
                    position: change.position,
                    after: change.after_digest.clone().unwrap_or_default(),
                    writes: u64::try_from(change.writes).unwrap_or(0),
                    first: change,
                };
                chains.insert(key, chain);
            }
            Some(chain)
                if !broken.contains(&key)
                    && chain.first.before_digest.is_some()
                    && chain.first.before_digest == change.after_digest =>
            {
                chain.changes.push(change.id);
                chain.first = change;
            }
            Some(_) => drop(broken.insert(key)),
        }
    }
    Ok(chains)
}

/// The cells before, by change, and how many bytes were read for them.
pub(crate) async fn befores(
    connection: &mut Connection,
    chains: &BTreeMap<Key, Chain>,
    keys: &OpenKeys,
) -> Result<(HashMap<Uuid, Result<Option<Cell>, Sealed>>, usize), Fault> {
    let sealed =
        |chain: &&Chain| chain.first.is_sensitive && chain.first.had_before && !chain.first.keeps_too_much;
    let ids: Vec<Uuid> = chains.values().filter(sealed).map(|chain| chain.first.id).collect();
    let fields = match ids.as_slice() {
        [] => Vec::new(),
        ids => keys::load_fields(connection, "sync_changes", ids).await?,
    };
    let encrypted: usize = fields.iter().map(|field| field.ciphertext.len()).sum();
    let plain: usize = chains.values().filter_map(|chain| chain.first.before.as_ref()).map(String::len).sum();
    let fields: HashMap<Uuid, Encrypted> =
        fields.into_iter().filter(|field| field.column == "before").map(|field| (field.row, field)).collect();
    let broken = || Sealed::Unreadable("what it was before is not as it was written".to_owned());
    let mut befores = HashMap::new();
    for chain in chains.values() {
        let ChangeRow { id, had_before, before, is_sensitive, keeps_too_much, .. } = &chain.first;
        let text = match (had_before, is_sensitive) {
            (false, _) => Ok(None),
            (true, _) if *keeps_too_much => {
                Err(Sealed::Unreadable(format!("what it was before takes more than {KEPT_BYTES} bytes")))
            }
            (true, false) => Ok(before.clone()),
            (true, true) => match fields.get(id) {
                None => Err(Sealed::Unreadable("what it was before is missing".to_owned())),
                Some(field) => match keys.lacks(field) {
                    Some(key) => Err(Sealed::Lacks(key)),
                    None => keys
                        .decrypt(field)
                        .map(|plain| Some(plain.expose_secret().to_owned()))
                        .map_err(Sealed::Unreadable),
                },
            },
        };
        let cell = text
            .and_then(|text| text.map(|text| serde_json::from_str(&text)).transpose().map_err(|_| broken()));
        befores.insert(*id, cell);
    }
    Ok((befores, encrypted + plain))
}
