//! What tables and indexes need, by what the server counts.

use anyhow::Context;
use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use store::Connection;

/// A table is vacuumed or analyzed if so many rows are dead or have changed: a smaller table costs nothing as it is.
const ROWS: i64 = 1_000;
/// And if these are so many percent of it. Autovacuum waits for 20 by default.
const PERCENT: i64 = 10;
/// An index is rebuilt if it has so many bytes,
const INDEX_BYTES: i64 = 8 << 20;
/// so many times what its rows would take,
const INDEX_TIMES: i64 = 2;
/// and so many percent of what it had when it was rebuilt last: the estimate may be wrong.
const INDEX_GROWN_PERCENT: i64 = 130;

/// A table or partition.
#[derive(Debug, QueryableByName, Serialize)]
pub(super) struct TableNeed {
    #[diesel(sql_type = Text)]
    pub(super) name: String,
    #[diesel(sql_type = BigInt)]
    pub(super) live: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) dead: i64,
    /// Rows that have changed since it was analyzed.
    #[diesel(sql_type = BigInt)]
    pub(super) modified: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) heap_bytes: i64,
    /// What its rows would take, by the planner's statistics; 0 before it is analyzed. Much less than `heap_bytes` is bloat.
    #[diesel(sql_type = BigInt)]
    pub(super) estimated_bytes: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) toast_bytes: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) index_bytes: i64,
    /// JSON that is stored within rows, by the planner's statistics. What is larger is in TOAST.
    #[diesel(sql_type = BigInt)]
    pub(super) json_bytes: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub(super) vacuumed_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub(super) analyzed_at: Option<DateTime<Utc>>,
}

/// What a table needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// VACUUM and ANALYZE.
    Vacuum,
    /// ANALYZE alone.
    Analyze,
}

impl TableNeed {
    pub(super) fn treatment(&self) -> Option<Treatment> {
        let share = |rows: i64| rows >= ROWS && rows.saturating_mul(100) >= self.live.saturating_mul(PERCENT);
        if share(self.dead) {
            Some(Treatment::Vacuum)
        } else if share(self.modified) {
            Some(Treatment::Analyze)
        } else {
            None
        }
    }
}

/// A B-tree index.
#[derive(Debug, QueryableByName, Serialize)]
pub(super) struct IndexNeed {
    #[diesel(sql_type = Text)]
    pub(super) name: String,
    #[diesel(sql_type = Text)]
    pub(super) table: String,
    #[diesel(sql_type = BigInt)]
    pub(super) bytes: i64,
    /// What its rows would take, by the planner's statistics.
    #[diesel(sql_type = BigInt)]
    pub(super) estimated_bytes: i64,
    /// Since the server's statistics were reset.
    #[diesel(sql_type = BigInt)]
    pub(super) scans: i64,
    /// Whether it keeps rows unique, used or not.
    #[diesel(sql_type = Bool)]
    pub(super) is_unique: bool,
    /// How large it was after it was rebuilt.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(super) rebuilt_bytes: Option<i64>,
}

impl IndexNeed {
    pub(super) fn is_bloated(&self) -> bool {
        let grown =
            |rebuilt: i64| self.bytes.saturating_mul(100) >= rebuilt.saturating_mul(INDEX_GROWN_PERCENT);
        self.bytes >= INDEX_BYTES
            && self.bytes >= self.estimated_bytes.saturating_mul(INDEX_TIMES)
            && self.rebuilt_bytes.is_none_or(grown)
    }

    /// Large, and never used.
    pub(super) fn is_unused(&self) -> bool {
        self.scans == 0 && !self.is_unique && self.bytes >= INDEX_BYTES
    }
}

const TABLES: &str = "
    SELECT format('%I.%I', s.schemaname, s.relname) AS name, s.n_live_tup AS live, s.n_dead_tup AS dead, s.n_mod_since_analyze AS modified,
        pg_relation_size(s.relid) AS heap_bytes, coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0) AS toast_bytes,
        pg_indexes_size(s.relid) AS index_bytes, coalesce(w.json * greatest(c.reltuples, 0), 0)::bigint AS json_bytes,
        coalesce(w.every + 28, 0)::bigint * greatest(c.reltuples, 0)::bigint * 10 / 9 AS estimated_bytes,
        greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed_at, greatest(s.last_analyze, s.last_autoanalyze) AS analyzed_at
    FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
    CROSS JOIN LATERAL (SELECT sum(p.avg_width * (1 - p.null_frac)) AS every,
            sum(p.avg_width * (1 - p.null_frac)) FILTER (WHERE a.atttypid = 'jsonb'::regtype) AS json
        FROM pg_stats p JOIN pg_attribute a ON a.attrelid = s.relid AND a.attname = p.attname
        WHERE p.schemaname = s.schemaname AND p.tablename = s.relname AND NOT p.inherited) AS w
    WHERE s.schemaname IN ('public', 'audit', 'sec') AND c.relkind = 'r' ORDER BY pg_total_relation_size(s.relid) DESC, 1 LIMIT 1000";

/// An entry of an index has 8 bytes of its own and a pointer of 4; pages are filled to 90 %.
const INDEXES: &str = "
    SELECT format('%I.%I', n.nspname, c.relname) AS name, format('%I.%I', m.nspname, t.relname) AS table,
        pg_relation_size(c.oid) AS bytes, coalesce(u.idx_scan, 0) AS scans, i.indisunique AS is_unique, r.bytes AS rebuilt_bytes,
        ((1 + ceil(greatest(c.reltuples, 0)::float8 * (12 + ceil(w.width / 8.0) * 8) / (current_setting('block_size')::integer * 0.9)))
            * current_setting('block_size')::integer)::bigint AS estimated_bytes
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace m ON m.oid = t.relnamespace
    JOIN pg_am y ON y.oid = c.relam AND y.amname = 'btree'
    LEFT JOIN pg_stat_user_indexes u ON u.indexrelid = i.indexrelid
    LEFT JOIN maintenance_indexes r ON r.index_name = format('%I.%I', n.nspname, c.relname)
    CROSS JOIN LATERAL (SELECT sum(coalesce(p.avg_width, 16)) AS width FROM pg_attribute a
        LEFT JOIN pg_attribute o ON o.attrelid = i.indrelid AND o.attnum = i.indkey[a.attnum - 1] AND o.attnum > 0
        LEFT JOIN pg_stats p ON NOT p.inherited AND (p.schemaname = m.nspname AND p.tablename = t.relname AND p.attname = o.attname
            OR o.attname IS NULL AND p.schemaname = n.nspname AND p.tablename = c.relname AND p.attname = a.attname)
        WHERE a.attrelid = i.indexrelid AND a.attnum > 0) AS w
    WHERE m.nspname IN ('public', 'audit', 'sec') AND c.relkind = 'i' AND i.indisvalid AND NOT i.indisexclusion
    ORDER BY pg_relation_size(c.oid) DESC, 1 LIMIT 1000";

/// The tables, the largest first.
pub(super) async fn tables(connection: &mut Connection) -> anyhow::Result<Vec<TableNeed>> {
    diesel::sql_query(TABLES).load(connection).await.context("cannot read the statistics of tables")
}

/// The indexes, the largest first.
pub(super) async fn indexes(connection: &mut Connection) -> anyhow::Result<Vec<IndexNeed>> {
    diesel::sql_query(INDEXES).load(connection).await.context("cannot read the statistics of indexes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(live: i64, dead: i64, modified: i64) -> TableNeed {
        TableNeed {
            name: "t".to_owned(),
            live,
            dead,
            modified,
            heap_bytes: 0,
            estimated_bytes: 0,
            toast_bytes: 0,
            index_bytes: 0,
            json_bytes: 0,
            vacuumed_at: None,
            analyzed_at: None,
        }
    }

    #[test]
    fn a_table_is_treated_by_the_share_of_its_rows() {
        assert_eq!(table(9_990, 999, 999).treatment(), None);
        assert_eq!(table(10_001, 1_000, 1_000).treatment(), None);
        assert_eq!(table(10_000, 1_000, 0).treatment(), Some(Treatment::Vacuum));
        assert_eq!(table(10_000, 0, 1_000).treatment(), Some(Treatment::Analyze));
    }

    #[test]
    fn an_index_that_stays_large_is_not_rebuilt_for_ever() {
        let index = |bytes, estimated_bytes, rebuilt_bytes| IndexNeed {
            name: "i".to_owned(),
            table: "t".to_owned(),
            bytes,
            estimated_bytes,
            scans: 0,
            is_unique: false,
            rebuilt_bytes,
        };
        let large = INDEX_BYTES;
        assert!(index(large, large / 2, None).is_bloated());
        assert!(!index(large - 1, 0, None).is_bloated());
        assert!(!index(large, large / 2 + 1, None).is_bloated());
        assert!(!index(2 * large, large, Some(2 * large)).is_bloated());
        assert!(index(4 * large, large, Some(2 * large)).is_bloated());
    }
}
