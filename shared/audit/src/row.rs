//! Reads the rows that are sealed, and makes their leaves.
//!
//! Whoever can change a row can also add functions, casts and operators that show it unchanged. So the statements name
//! columns and compare their order; everything else is done here, with the columns as PostgreSQL sends them. That the
//! types of these columns send what is stored is checked before ([`crate::form`]).

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use store::Fault;
use uuid::Uuid;

use crate::digest::Digest;
use crate::leaf::{Leaf, Source};
use crate::record::{Column, EnumType, Record, Types};

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
pub(crate) struct Reading {
    pub(crate) table: &'static str,
    pub(crate) id: &'static str,
    pub(crate) columns: &'static [(&'static str, Column)],
}

const AUDIT_LOG: Reading = Reading {
    table: "audit.audit_log",
    id: "id",
    columns: &[
        ("transaction_id", Column::Int8),
        ("id", Column::Uuid),
        ("occurred_at", Column::Time),
        ("subject_token", Column::Uuid),
        ("role_name", Column::Text),
        ("service", Column::Text),
        ("request_id", Column::Uuid),
        ("table_name", Column::Varchar),
        ("row_id", Column::Uuid),
        ("operation", Column::Enum(EnumType::Operation)),
        ("row_digest_before", Column::Hex),
        ("row_digest_after", Column::Hex),
        ("changed_columns", Column::Texts),
    ],
};

const VIOLATIONS: Reading = Reading {
    table: "audit.security_violations",
    id: "id",
    columns: &[
        ("transaction_id", Column::Int8),
        ("id", Column::Uuid),
        ("occurred_at", Column::Time),
        ("subject_token", Column::Uuid),
        ("role_name", Column::Text),
        ("service", Column::Text),
        ("request_id", Column::Uuid),
        ("violation_type", Column::Varchar),
        ("severity", Column::Enum(EnumType::Severity)),
        ("table_name", Column::Varchar),
        ("reason", Column::Text),
    ],
};

const DATA_ACCESS: Reading = Reading {
    table: "audit.data_access_log",
    id: "id",
    columns: &[
        ("transaction_id", Column::Int8),
        ("id", Column::Uuid),
        ("occurred_at", Column::Time),
        ("subject_token", Column::Uuid),
        ("role_name", Column::Text),
        ("service", Column::Text),
        ("request_id", Column::Uuid),
        ("access_type", Column::Varchar),
        ("object_name", Column::Varchar),
        ("rows_returned", Column::Int8),
    ],
};

const EVENTS: Reading = Reading {
    table: "public.blackboard_events",
    id: "id",
    columns: &[
        ("transaction_id", Column::Int8),
        ("id", Column::Uuid),
        ("event_sequence", Column::Int8),
        ("event_type", Column::Enum(EnumType::EventType)),
        ("performative", Column::Enum(EnumType::Performative)),
        ("source_agent_id", Column::Varchar),
        ("target_agent_id", Column::Varchar),
        ("user_id", Column::Int4),
        ("session_id", Column::Varchar),
        ("event_payload", Column::Jsonb),
        ("semantic_context", Column::Jsonb),
        ("parent_event_id", Column::Uuid),
        ("causality_chain", Column::Jsonb),
        ("logical_timestamp", Column::Int8),
        ("created_at", Column::Time),
        ("request_id", Column::Uuid),
        ("user_id", Column::KeyOfUser),
    ],
};

const SUBJECTS: Reading = Reading {
    table: "audit.subjects",
    id: "token",
    columns: &[
        ("transaction_id", Column::Int8),
        ("token", Column::Uuid),
        ("user_id", Column::Int4),
        ("created_at", Column::Time),
        ("digest_key", Column::Key),
    ],
};

impl Source {
    pub(crate) fn reading(self) -> &'static Reading {
        match self {
            Self::AuditLog => &AUDIT_LOG,
            Self::Violations => &VIOLATIONS,
            Self::DataAccess => &DATA_ACCESS,
            Self::Events => &EVENTS,
            Self::Subjects => &SUBJECTS,
        }
    }
}

/// Of a user with two subjects, which is a finding of its own, one of the two.
const KEY_OF_USER: &str =
    "(SELECT s.digest_key FROM audit.subjects s WHERE s.user_id OPERATOR(pg_catalog.=) t.user_id LIMIT 1)";

impl Reading {
    /// The head of a statement that reads rows, named `t`.
    fn select(&self) -> String {
        let Self { table, id, columns } = self;
        let columns: Vec<String> = columns
            .iter()
            .map(
                |(name, column)| {
                    if *column == Column::KeyOfUser { KEY_OF_USER.to_owned() } else { format!("t.{name}") }
                },
            )
            .collect();
        let columns = columns.join(", ");
        format!("SELECT t.transaction_id, t.{id} AS id, ROW({columns}) AS content FROM {table} t")
    }

    /// The rows after a position ($1, $2), or from it on, and up to another ($3, $4), in order, at most $5.
    fn statement(&self, start: Start) -> String {
        let Self { id, .. } = self;
        format!(
            "{}
            WHERE (t.transaction_id, t.{id}) OPERATOR(pg_catalog.{}) ($1, $2)
                AND (t.transaction_id, t.{id}) OPERATOR(pg_catalog.<=) ($3, $4)
            ORDER BY t.transaction_id, t.{id} LIMIT $5",
            self.select(),
            start.later()
        )
    }
}

/// Where rows begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At the first row that there can be, whatever its transaction.
    Beginning,
    /// After the row of this place.
    After(Place),
}

impl Start {
    fn place(self) -> Place {
        match self {
            Self::Beginning => (i64::MIN, Uuid::nil()),
            Self::After(place) => place,
        }
    }

    /// Whether a row of this place may lie behind it.
    pub(crate) fn is_before(self, place: Place) -> bool {
        match self {
            Self::Beginning => true,
            Self::After(start) => start < place,
        }
    }

    /// The operator of a row that lies behind it.
    fn later(self) -> &'static str {
        match self {
            Self::Beginning => ">=",
            Self::After(_) => ">",
        }
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    transaction_id: i64,
    /// NULL if somebody dropped the constraint.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    id: Option<Uuid>,
    #[diesel(sql_type = Binary)]
    content: Vec<u8>,
}

impl Row {
    /// None if it has not the columns of its table.
    fn record(&self, source: Source, types: &Types) -> Option<Record<'_>> {
        let columns = source.reading().columns.iter().map(|(_, column)| *column);
        Record::read(&self.content, columns, types)
    }

    fn placed(&self, source: Source, types: &Types) -> Placed {
        let record = self.record(source, types);
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
        let id = self.id.unwrap_or_default();
        Placed { place: (self.transaction_id, id), at, leaf: Leaf { source, id, digest } }
    }
}

/// The rows from one position on and up to another, in order, at most `limit` of them. One row at a time is held with its content: those of
/// a seal may be gigabytes.
pub(crate) async fn read(
    connection: &mut AsyncPgConnection,
    types: &Types,
    start: Start,
    through: Place,
    limit: usize,
) -> Result<Vec<Placed>, Fault> {
    let (mut all, mut through) = (Vec::new(), through);
    for source in Source::ALL {
        let statement = store::prepared(
            diesel::sql_query(source.reading().statement(start))
                .bind::<BigInt, _>(start.place().0)
                .bind::<SqlUuid, _>(start.place().1)
                .bind::<BigInt, _>(through.0)
                .bind::<SqlUuid, _>(through.1)
                .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX)),
        );
        let mut rows = statement.load_stream::<Row>(connection).await?;
        while let Some(row) = rows.try_next().await? {
            all.push(row.placed(source, types));
        }
        drop(rows);
        all.sort_by_key(|row: &Placed| row.place);
        // What lies behind the last row that counts is not read of the other tables.
        all.truncate(limit);
        if let Some(last) = all.last().filter(|_| all.len() == limit) {
            through = last.place;
        }
    }
    Ok(all)
}

/// The leaves of rows of a user, at most `limit` of them in any order. Of a table with the column `user_id`.
pub(crate) async fn of_user(
    connection: &mut AsyncPgConnection,
    types: &Types,
    source: Source,
    user: i32,
    limit: usize,
) -> Result<Vec<Leaf>, Fault> {
    let query = format!("{} WHERE t.user_id OPERATOR(pg_catalog.=) $1 LIMIT $2", source.reading().select());
    let rows: Vec<Row> = diesel::sql_query(query)
        .bind::<Integer, _>(user)
        .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
        .load(connection)
        .await?;
    Ok(rows.into_iter().map(|row| row.placed(source, types).leaf).collect())
}

/// A row of the trail, with the content that its digest is made of: a JSON array of its columns. None if there is no such row.
pub(crate) async fn of_trail(
    connection: &mut AsyncPgConnection,
    types: &Types,
    id: Uuid,
) -> Result<Option<(Placed, String)>, Fault> {
    let source = Source::AuditLog;
    let query = format!("{} WHERE t.id OPERATOR(pg_catalog.=) $1", source.reading().select());
    let rows: Vec<Row> = diesel::sql_query(query).bind::<SqlUuid, _>(id).load(connection).await?;
    let row = rows.as_slice().first();
    Ok(row.and_then(|row| Some((row.placed(source, types), row.record(source, types)?.json))))
}

/// How many rows a table has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, QueryableByName)]
pub(crate) struct Counts {
    #[diesel(sql_type = BigInt)]
    every: i64,
    #[diesel(sql_type = BigInt)]
    earlier: i64,
    /// Behind the position.
    #[diesel(sql_type = BigInt)]
    pub(crate) later: i64,
}

impl Counts {
    /// The rows that lie neither before the position nor behind it: their place is NULL. A condition with `IS NULL` may
    /// find none of them, since PostgreSQL answers it by what the catalog says of the column.
    pub(crate) fn without_place(self) -> i64 {
        self.every - self.earlier - self.later
    }
}

/// The rows of a table before and behind a position.
pub(crate) async fn count(
    connection: &mut AsyncPgConnection,
    source: Source,
    start: Start,
) -> Result<Counts, Fault> {
    let Reading { table, id, .. } = source.reading();
    let earlier = match start {
        Start::Beginning => "<",
        Start::After(_) => "<=",
    };
    let count = format!(
        "SELECT pg_catalog.count(*) AS every,
            pg_catalog.count(*) FILTER (WHERE (t.transaction_id, t.{id}) OPERATOR(pg_catalog.{earlier}) ($1, $2)) AS earlier,
            pg_catalog.count(*) FILTER (WHERE (t.transaction_id, t.{id}) OPERATOR(pg_catalog.{}) ($1, $2)) AS later
        FROM {table} t",
        start.later()
    );
    let rows: Vec<Counts> = diesel::sql_query(count)
        .bind::<BigInt, _>(start.place().0)
        .bind::<SqlUuid, _>(start.place().1)
        .load(connection)
        .await?;
    Ok(rows.into_iter().next().unwrap_or_default())
}

/// Has the statements of this connection read what is stored: names are PostgreSQL's own, a policy that would hide rows is an
/// error, and values come from the rows themselves and not from an index, which may hold others. To be called before anything
/// else.
pub(crate) async fn as_stored(connection: &mut AsyncPgConnection) -> Result<(), Fault> {
    use diesel_async::SimpleAsyncConnection;

    store::security::fix_search_path(connection).await?;
    Ok(connection.batch_execute("SET row_security = off; SET enable_indexonlyscan = off").await?)
}

/// The same until the end of the present transaction: for one that goes on with statements of others.
pub(crate) async fn as_stored_locally(connection: &mut AsyncPgConnection) -> Result<(), Fault> {
    use diesel_async::SimpleAsyncConnection;

    const LOCALLY: &str = "
        SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL row_security = off; SET LOCAL enable_indexonlyscan = off";
    Ok(connection.batch_execute(LOCALLY).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_lie_nowhere_are_the_rest() {
        assert_eq!(Counts { every: 9, earlier: 4, later: 3 }.without_place(), 2);
        assert_eq!(Counts { every: 7, earlier: 4, later: 3 }.without_place(), 0);
    }
}
