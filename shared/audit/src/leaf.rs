//! The rows that are sealed, and the leaf of the Merkle tree that each becomes.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use sha2::{Digest as _, Sha256};
use store::Fault;
use uuid::Uuid;

use crate::digest::Digest;

/// The tables whose rows are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// `audit.audit_log`
    AuditLog,
    /// `audit.security_violations`
    Violations,
    /// `audit.data_access_log`
    DataAccess,
    /// `blackboard_events`: an event is an audit record itself.
    Events,
}

impl Source {
    const ALL: [Self; 4] = [Self::AuditLog, Self::Violations, Self::DataAccess, Self::Events];

    /// The name of the table.
    pub fn table(self) -> &'static str {
        match self {
            Self::AuditLog => "audit.audit_log",
            Self::Violations => "audit.security_violations",
            Self::DataAccess => "audit.data_access_log",
            Self::Events => "blackboard_events",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::AuditLog => 1,
            Self::Violations => 2,
            Self::DataAccess => 3,
            Self::Events => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.code() == code)
    }
}

/// A leaf of the Merkle tree of a seal: a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its table.
    pub source: Source,
    /// The id of the row.
    pub id: Uuid,
    /// SHA-256 of its columns. The digest of an event is keyed with the digest key of its user, because it contains
    /// user data.
    pub digest: Digest,
}

/// The length of an encoded leaf, in bytes.
pub(crate) const LEAF_BYTES: usize = 49;

impl Leaf {
    /// Encodes it: the table (1 byte), the id (16) and the digest (32).
    pub fn to_bytes(&self) -> [u8; LEAF_BYTES] {
        let mut bytes = [0; LEAF_BYTES];
        bytes[0] = self.source.code();
        bytes[1..17].copy_from_slice(self.id.as_bytes());
        bytes[17..].copy_from_slice(&self.digest);
        bytes
    }

    /// Decodes a list of leaves. None if it is malformed.
    pub(crate) fn read_all(bytes: &[u8]) -> Option<Vec<Self>> {
        let chunks = bytes.chunks_exact(LEAF_BYTES);
        if !chunks.remainder().is_empty() {
            return None;
        }
        chunks
            .map(|chunk| {
                Some(Self {
                    source: Source::from_code(*chunk.first()?)?,
                    id: Uuid::from_slice(chunk.get(1..17)?).ok()?,
                    digest: chunk.get(17..)?.try_into().ok()?,
                })
            })
            .collect()
    }
}

/// A position in the order in which rows are sealed: the transaction that wrote the row, and the id of the row.
pub(crate) type Place = (i64, Uuid);

/// A row and its position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) place: Place,
    /// The timestamp in the row, in microseconds since 1970.
    pub(crate) at: i64,
    pub(crate) leaf: Leaf,
}

/// Reads rows as JSON arrays of all their columns. Numbers, times in microseconds since 1970 and hex digits do not
/// depend on settings of the session. A column that is added to a table later must not be added here, because it would
/// change the digest of old rows; it would need a second version of this statement.
const READ: &str = "
    SELECT r.transaction_id, r.source, r.id, (extract(epoch FROM r.at) * 1000000)::bigint AS at, r.content, r.key FROM (
        SELECT transaction_id, 1::smallint AS source, id, occurred_at AS at, json_build_array(transaction_id, id,
            (extract(epoch FROM occurred_at) * 1000000)::bigint, subject_token, role_name, service, request_id, table_name,
            row_id, operation, encode(row_digest_before, 'hex'), encode(row_digest_after, 'hex'), changed_columns)::text
            AS content, NULL::bytea AS key
        FROM audit.audit_log
        UNION ALL
        SELECT transaction_id, 2::smallint, id, occurred_at, json_build_array(transaction_id, id,
            (extract(epoch FROM occurred_at) * 1000000)::bigint, subject_token, role_name, service, request_id,
            violation_type, severity, table_name, reason)::text, NULL
        FROM audit.security_violations
        UNION ALL
        SELECT transaction_id, 3::smallint, id, occurred_at, json_build_array(transaction_id, id,
            (extract(epoch FROM occurred_at) * 1000000)::bigint, subject_token, role_name, service, request_id, access_type,
            object_name, rows_returned)::text, NULL
        FROM audit.data_access_log
        UNION ALL
        SELECT transaction_id, 4::smallint, id, created_at, json_build_array(transaction_id, id, event_sequence, event_type, performative,
            source_agent_id, target_agent_id, user_id, session_id, event_payload::text, semantic_context::text,
            parent_event_id, causality_chain::text, logical_timestamp, (extract(epoch FROM created_at) * 1000000)::bigint,
            request_id)::text, (SELECT s.digest_key FROM audit.subjects s WHERE s.user_id = blackboard_events.user_id)
        FROM blackboard_events
    ) AS r
    WHERE (r.transaction_id, r.id) > ($1, $2) AND (r.transaction_id, r.id) <= ($3, $4)
    ORDER BY r.transaction_id, r.id LIMIT $5";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    transaction_id: i64,
    #[diesel(sql_type = SmallInt)]
    source: i16,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    at: i64,
    #[diesel(sql_type = Text)]
    content: String,
    #[diesel(sql_type = Nullable<Binary>)]
    key: Option<Vec<u8>>,
}

/// The rows after one position and up to another, in order, at most `limit` of them.
pub(crate) async fn read(
    connection: &mut AsyncPgConnection,
    after: Place,
    through: Place,
    limit: usize,
) -> Result<Vec<Placed>, Fault> {
    let rows: Vec<Row> = store::prepared(
        diesel::sql_query(READ)
            .bind::<BigInt, _>(after.0)
            .bind::<SqlUuid, _>(after.1)
            .bind::<BigInt, _>(through.0)
            .bind::<SqlUuid, _>(through.1)
            .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX)),
    )
    .load(connection)
    .await?;
    let placed = rows.into_iter().filter_map(|row| {
        let source = Source::from_code(u8::try_from(row.source).ok()?)?;
        let content: Digest = Sha256::digest(&row.content).into();
        let digest = row
            .key
            .map_or(content, |key| Sha256::new().chain_update(key).chain_update(content).finalize().into());
        Some(Placed {
            place: (row.transaction_id, row.id),
            at: row.at,
            leaf: Leaf { source, id: row.id, digest },
        })
    });
    Ok(placed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_round_trip() {
        let leaves: Vec<Leaf> = Source::ALL
            .into_iter()
            .enumerate()
            .map(|(number, source)| Leaf {
                source,
                id: Uuid::from_u128(number as u128),
                digest: [source.code(); 32],
            })
            .collect();
        let bytes: Vec<u8> = leaves.iter().flat_map(Leaf::to_bytes).collect();
        assert_eq!(Leaf::read_all(&bytes), Some(leaves));
        assert_eq!(Leaf::read_all(&bytes[1..]), None);
        assert_eq!(Leaf::read_all(&[9; LEAF_BYTES]), None);
    }
}
