//! Reads the rows that are sealed, and makes their leaves.
//!
//! Whoever can change a row can also add functions, casts and operators that show it unchanged. So the statements name
//! columns and compare their order; everything else is done here, with the columns as PostgreSQL sends them.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use sha2::{Digest as _, Sha256};
use store::Fault;
use uuid::Uuid;

use crate::digest::Digest;
use crate::leaf::{Leaf, Source};
use crate::record::{Column, Record};

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

/// What is read of a table. A column that is added to a table later must not be added here, because it would change the
/// digest of old rows; it would need a second version of the table's list.
struct Reading {
    table: &'static str,
    id: &'static str,
    columns: &'static [(&'static str, Column)],
}

const AUDIT_LOG: Reading = Reading {
    table: "audit.audit_log",
    id: "id",
    columns: &[
        ("transaction_id", Column::Integer),
        ("id", Column::Uuid),
        ("occurred_at", Column::Time),
        ("subject_token", Column::Uuid),
        ("role_name", Column::Text),
        ("service", Column::Text),
        ("request_id", Column::Uuid),
        ("table_name", Column::Text),
        ("row_id", Column::Uuid),
        ("operation", Column::Text),
        ("row_digest_before", Column::Hex),
        ("row_digest_after", Column::Hex),
        ("changed_columns", Column::Texts),
    ],
};

const VIOLATIONS: Reading = Reading {
    table: "audit.security_violations",
    id: "id",
    columns: &[
        ("transaction_id", Column::Integer),
        ("id", Column::Uuid),
        ("occurred_at", Column::Time),
        ("subject_token", Column::Uuid),
        ("role_name", Column::Text),
        ("service", Column::Text),
        ("request_id", Column::Uuid),
        ("violation_type", Column::Text),
        ("severity", Column::Text),
        ("table_name", Column::Text),
        ("reason", Column::Text),
    ],
};

const DATA_ACCESS: Reading = Reading {
    table: "audit.data_access_log",
    id: "id",
    columns: &[
        ("transaction_id", Column::Integer),
        ("id", Column::Uuid),
        ("occurred_at", Column::Time),
        ("subject_token", Column::Uuid),
        ("role_name", Column::Text),
        ("service", Column::Text),
        ("request_id", Column::Uuid),
        ("access_type", Column::Text),
        ("object_name", Column::Text),
        ("rows_returned", Column::Integer),
    ],
};

const EVENTS: Reading = Reading {
    table: "public.blackboard_events",
    id: "id",
    columns: &[
        ("transaction_id", Column::Integer),
        ("id", Column::Uuid),
        ("event_sequence", Column::Integer),
        ("event_type", Column::Text),
        ("performative", Column::Text),
        ("source_agent_id", Column::Text),
        ("target_agent_id", Column::Text),
        ("user_id", Column::Integer),
        ("session_id", Column::Text),
        ("event_payload", Column::Jsonb),
        ("semantic_context", Column::Jsonb),
        ("parent_event_id", Column::Uuid),
        ("causality_chain", Column::Jsonb),
        ("logical_timestamp", Column::Integer),
        ("created_at", Column::Time),
        ("request_id", Column::Uuid),
        (
            "(SELECT s.digest_key FROM audit.subjects s WHERE s.user_id OPERATOR(pg_catalog.=) t.user_id)",
            Column::Key,
        ),
    ],
};

const SUBJECTS: Reading = Reading {
    table: "audit.subjects",
    id: "token",
    columns: &[
        ("transaction_id", Column::Integer),
        ("token", Column::Uuid),
        ("user_id", Column::Integer),
        ("created_at", Column::Time),
        ("digest_key", Column::Key),
    ],
};

impl Source {
    fn reading(self) -> &'static Reading {
        match self {
            Self::AuditLog => &AUDIT_LOG,
            Self::Violations => &VIOLATIONS,
            Self::DataAccess => &DATA_ACCESS,
            Self::Events => &EVENTS,
            Self::Subjects => &SUBJECTS,
        }
    }
}

impl Reading {
    /// The rows after a position ($1, $2) and up to another ($3, $4), in order, at most $5.
    fn statement(&self) -> String {
        let Self { table, id, columns } = self;
        let columns: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        format!(
            "SELECT t.transaction_id, t.{id} AS id, ROW({}) AS content FROM {table} t
            WHERE (t.transaction_id, t.{id}) OPERATOR(pg_catalog.>) ($1, $2)
                AND (t.transaction_id, t.{id}) OPERATOR(pg_catalog.<=) ($3, $4)
            ORDER BY t.transaction_id, t.{id} LIMIT $5",
            columns.join(", ")
        )
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    transaction_id: i64,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Binary)]
    content: Vec<u8>,
}

impl Row {
    fn placed(self, source: Source) -> Placed {
        let record = Record::read(&self.content, source.reading().columns.iter().map(|(_, column)| *column));
        let (digest, at) = match record {
            Some(Record { json, key, at }) => {
                let content: Digest = Sha256::digest(&json).into();
                let digest = key.map_or(content, |key| {
                    Sha256::new().chain_update(key).chain_update(content).finalize().into()
                });
                (digest, at)
            }
            // No table that the migrations make has such a row, so that it never was sealed. A JSON array is not hashed
            // to the same.
            None => (Sha256::digest(&self.content).into(), 0),
        };
        let place = (self.transaction_id, self.id);
        Placed { place, at, leaf: Leaf { source, id: self.id, digest } }
    }
}

/// The rows after one position and up to another, in order, at most `limit` of them.
pub(crate) async fn read(
    connection: &mut AsyncPgConnection,
    after: Place,
    through: Place,
    limit: usize,
) -> Result<Vec<Placed>, Fault> {
    let (mut all, mut through) = (Vec::new(), through);
    for source in Source::ALL {
        let rows: Vec<Row> = store::prepared(
            diesel::sql_query(source.reading().statement())
                .bind::<BigInt, _>(after.0)
                .bind::<SqlUuid, _>(after.1)
                .bind::<BigInt, _>(through.0)
                .bind::<SqlUuid, _>(through.1)
                .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX)),
        )
        .load(connection)
        .await?;
        all.extend(rows.into_iter().map(|row| row.placed(source)));
        all.sort_by_key(|row: &Placed| row.place);
        // What lies behind the last row that counts is not read of the other tables.
        all.truncate(limit);
        if let Some(last) = all.last().filter(|_| all.len() == limit) {
            through = last.place;
        }
    }
    Ok(all)
}

/// The number of rows after a position.
pub(crate) async fn count_after(connection: &mut AsyncPgConnection, after: Place) -> Result<u64, Fault> {
    #[derive(QueryableByName)]
    struct Number {
        #[diesel(sql_type = BigInt)]
        number: i64,
    }
    let mut sum = 0;
    for source in Source::ALL {
        let Reading { table, id, .. } = source.reading();
        let count = format!(
            "SELECT pg_catalog.count(*) AS number FROM {table} t
            WHERE (t.transaction_id, t.{id}) OPERATOR(pg_catalog.>) ($1, $2)"
        );
        let rows: Vec<Number> = diesel::sql_query(count)
            .bind::<BigInt, _>(after.0)
            .bind::<SqlUuid, _>(after.1)
            .load(connection)
            .await?;
        sum += rows.iter().map(|row| u64::try_from(row.number).unwrap_or(0)).sum::<u64>();
    }
    Ok(sum)
}

/// Has the statements of this connection read what is stored: names are PostgreSQL's own, and a policy that would hide
/// rows is an error. To be called before anything else.
pub(crate) async fn as_stored(connection: &mut AsyncPgConnection) -> Result<(), Fault> {
    use diesel_async::SimpleAsyncConnection;

    store::security::fix_search_path(connection).await?;
    Ok(connection.batch_execute("SET row_security = off").await?)
}
