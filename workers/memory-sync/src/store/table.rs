//! The two tables whose rows syncs carry, in SQL.

use sync::Key;

/// A table that syncs carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    Contexts,
    Agents,
}

impl Table {
    pub(crate) const ALL: [Self; 2] = [Self::Contexts, Self::Agents];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Contexts => "simple_chat_context",
            Self::Agents => "agent_context_states",
        }
    }

    pub(crate) fn of(key: &Key) -> Self {
        match key {
            Key::Context(_) => Self::Contexts,
            Key::Agent { .. } => Self::Agents,
        }
    }

    /// The columns that name a key within a session, and so the order in which rows are locked.
    pub(crate) fn key_columns(self) -> &'static str {
        match self {
            Self::Contexts => "context_key",
            Self::Agents => "agent_id, memory_tier, context_key",
        }
    }

    /// Whether rows of the two aliases have the same key.
    pub(crate) fn same_key(self, one: &str, other: &str) -> String {
        let columns = self.key_columns().split(", ");
        columns.map(|column| format!("{one}.{column} = {other}.{column}")).collect::<Vec<_>>().join(" AND ")
    }

    /// The columns of a [`Row`] of the alias `t`. All arguments are SQL: the text of its value, NULL if it is too large; how many bytes were
    /// not sent for that reason; and whether what syncs keep of it is too large, and is not sent either.
    pub(crate) fn columns(self, value: &str, oversize: &str, keeps_too_much: &str) -> String {
        let of_table = match self {
            Self::Contexts => {
                "t.id, NULL::text AS agent_id, NULL::text AS memory_tier, t.context_key::text AS context_key,
                t.context_type::text AS context_type, t.access_level::text AS access_level, t.priority, t.version, t.expires_at,
                t.is_persistent, false AS is_shareable, t.is_sensitive, t.writes, t.written_at, t.updated_at"
            }
            Self::Agents => {
                "t.id, t.agent_id::text AS agent_id, t.memory_tier::text AS memory_tier, t.context_key::text AS context_key,
                NULL::text AS context_type, NULL::text AS access_level, 1 AS priority, t.version, t.expires_at,
                false AS is_persistent, t.is_shareable, t.is_sensitive, t.writes, t.written_at,
                t.updated_at"
            }
        };
        format!(
            "{of_table}, CASE WHEN NOT {keeps_too_much} THEN t.sync_state END AS sync_state,
            CASE WHEN NOT {keeps_too_much} THEN t.sync_values END AS sync_values, {value} AS context_value, {oversize} AS oversize,
            {keeps_too_much} AS keeps_too_much"
        )
    }

    /// Whether the row of the alias `t` is among those that the sync of the alias `i` asks for.
    pub(crate) fn is_asked_for(self) -> String {
        let named = "(i.filter -> 'keys' = '[]' AND i.filter -> 'prefixes' = '[]' OR i.filter -> 'keys' ? t.context_key::text
            OR EXISTS (SELECT FROM jsonb_array_elements_text(i.filter -> 'prefixes') AS p WHERE starts_with(t.context_key::text, p)))";
        let of_table = match self {
            Self::Contexts => {
                "(i.filter -> 'types' = '[]' OR i.filter -> 'types' ? t.context_type::text)
                AND (i.filter -> 'access_levels' = '[]' OR i.filter -> 'access_levels' ? t.access_level::text)
                AND i.filter -> 'tiers' = '[]'"
            }
            Self::Agents => {
                "i.filter -> 'types' = '[]' AND i.filter -> 'access_levels' = '[]'
                AND (i.filter -> 'tiers' = '[]' OR i.filter -> 'tiers' ? t.memory_tier::text)"
            }
        };
        format!("(i.is_all OR {named} AND {of_table})")
    }

    /// The bytes that syncs keep of a key beside its value, and those of ciphertexts. None of it is unpacked to measure it.
    pub(crate) fn kept_bytes(self, alias: &str) -> String {
        format!(
            "(coalesce(octet_length({alias}.sync_state), 0)::bigint + coalesce(octet_length({alias}.sync_values), 0)
                + CASE WHEN {alias}.is_sensitive THEN (
                SELECT coalesce(sum(octet_length(e.ciphertext)), 0) FROM encrypted_fields e
                WHERE e.user_id = {alias}.user_id AND e.row_id = {alias}.id AND e.table_name = '{name}') ELSE 0 END)",
            name = self.name()
        )
    }

    /// Why the row of the alias `t` stays in its session, as [`sync::crosses`] says: `private`, `expired`, `removed`, or NULL.
    pub(crate) fn stays(self) -> String {
        let private = match self {
            Self::Contexts => "t.access_level = 'private'",
            Self::Agents => "t.memory_tier = 'private'",
        };
        format!(
            "CASE WHEN {private} AND NOT i.crosses_private THEN 'private'
                WHEN t.removed_at IS NULL AND t.expires_at <= i.now THEN 'expired'
                WHEN t.removed_at IS NOT NULL AND t.sync_state IS NULL THEN 'removed' END"
        )
    }
}

/// The columns of the alias `t`.
pub(crate) fn prefixed(columns: &str) -> String {
    columns.split(", ").map(|column| format!("t.{column}")).collect::<Vec<_>>().join(", ")
}
