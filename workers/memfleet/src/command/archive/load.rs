//! What the database has of archives, and the archives themselves.

use std::collections::HashMap;

use anyhow::Context;
use archive::{ArchiveError, Contents, Keys, Rows, TABLES, Target, Value};
use chrono::{DateTime, Utc};
use config::Settings;
use contract::{UserId, nearest};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::Connection;
use trust::PublicKey;
use uuid::Uuid;

/// An archive.
#[derive(Clone, Debug, QueryableByName)]
pub(super) struct Archive {
    #[diesel(sql_type = SqlUuid)]
    pub(super) id: Uuid,
    #[diesel(sql_type = Text)]
    pub(super) table_name: String,
    #[diesel(sql_type = Text)]
    pub(super) location: String,
    #[diesel(sql_type = Binary)]
    pub(super) manifest_hash: Vec<u8>,
    #[diesel(sql_type = Array<SqlUuid>)]
    pub(super) policies: Vec<Uuid>,
    #[diesel(sql_type = Integer)]
    pub(super) row_count: i32,
    #[diesel(sql_type = BigInt)]
    pub(super) byte_count: i64,
    #[diesel(sql_type = Timestamptz)]
    pub(super) first_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    pub(super) last_at: DateTime<Utc>,
    #[diesel(sql_type = Array<Integer>)]
    pub(super) user_ids: Vec<i32>,
    #[diesel(sql_type = Array<SqlUuid>)]
    pub(super) not_removed: Vec<Uuid>,
    #[diesel(sql_type = Timestamptz)]
    pub(super) created_at: DateTime<Utc>,
}

/// Which archives. What is not given means all.
#[derive(Debug, Default)]
pub(super) struct Filter {
    pub(super) ids: Vec<Uuid>,
    pub(super) table: Option<String>,
    /// Those with rows of any of these users.
    pub(super) users: Vec<i32>,
    /// Those with rows that were created in this time.
    pub(super) from: Option<DateTime<Utc>>,
    pub(super) to: Option<DateTime<Utc>>,
    /// Those behind this one, in the order of their creation.
    pub(super) after: Option<(DateTime<Utc>, Uuid)>,
}

/// The archives of a page of [`archives`].
pub(super) const PAGE: i64 = 500;

/// Archives, oldest first. The role of retention-cleaner could leave NULL in a list before migration 000066: that is left out.
pub(super) async fn archives(
    connection: &mut Connection,
    filter: &Filter,
    limit: i64,
) -> anyhow::Result<Vec<Archive>> {
    const LIST: &str = "
        SELECT id, table_name::text AS table_name, location, manifest_hash, row_count, byte_count, first_at, last_at, created_at,
            ARRAY(SELECT one FROM unnest(policies) AS one WHERE one IS NOT NULL) AS policies,
            ARRAY(SELECT one FROM unnest(user_ids) AS one WHERE one IS NOT NULL) AS user_ids,
            ARRAY(SELECT one FROM unnest(not_removed) AS one WHERE one IS NOT NULL) AS not_removed
        FROM archives WHERE (cardinality($1) = 0 OR id = ANY ($1)) AND ($2 IS NULL OR table_name = $2)
            AND (cardinality($3) = 0 OR user_ids && $3) AND ($4 IS NULL OR last_at >= $4) AND ($5 IS NULL OR first_at <= $5)
            AND ($6 IS NULL OR (created_at, id) > ($6, $7))
        ORDER BY created_at, id LIMIT $8";
    diesel::sql_query(LIST)
        .bind::<Array<SqlUuid>, _>(&filter.ids)
        .bind::<Nullable<Text>, _>(filter.table.as_deref())
        .bind::<Array<Integer>, _>(&filter.users)
        .bind::<Nullable<Timestamptz>, _>(filter.from)
        .bind::<Nullable<Timestamptz>, _>(filter.to)
        .bind::<Nullable<Timestamptz>, _>(filter.after.map(|after| after.0))
        .bind::<Nullable<SqlUuid>, _>(filter.after.map(|after| after.1))
        .bind::<BigInt, _>(limit)
        .load(connection)
        .await
        .context("cannot read the archives")
}

/// The name of a table whose rows can be archived.
pub(super) fn table_name(name: &str) -> Result<String, String> {
    let names = || TABLES.iter().map(|table| table.name);
    if names().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    Err(match nearest(name, names()) {
        Some(near) => format!("rows of this table are not archived; did you mean {near}?"),
        None => format!(
            "rows of this table are not archived; expected one of {}",
            names().collect::<Vec<_>>().join(", ")
        ),
    })
}

/// The place of archives and the keys that they are signed with.
#[derive(Debug)]
pub(super) struct Source {
    target: Target,
    keys: Vec<PublicKey>,
}

impl Source {
    pub(super) fn open(settings: &Settings) -> Result<Self, ArchiveError> {
        Ok(Self { target: Target::open(&settings.archive)?, keys: Keys::public(&settings.archive)? })
    }

    /// Reads and checks an archive: also that its manifest is of the table, the rows and the users that the database says, and that it has
    /// the rows that were not removed.
    pub(super) async fn read(&self, archive: &Archive) -> Result<Contents, ArchiveError> {
        let read = archive::read(&self.target, &self.keys, &archive.location, Some(&archive.manifest_hash));
        let contents = read.await?;
        match difference(archive, &contents) {
            Some(problem) => Err(ArchiveError::Changed { path: archive.location.clone(), problem }),
            None => Ok(contents),
        }
    }

    /// The rows of its table that it removed from the database.
    pub(super) async fn removed(&self, archive: &Archive) -> Result<Rows, ArchiveError> {
        Ok(removed(archive, &mut self.read(archive).await?))
    }
}

/// What the database says otherwise than the manifest.
fn difference(archive: &Archive, contents: &Contents) -> Option<String> {
    let manifest = &contents.manifest;
    let rows = u64::try_from(archive.not_removed.len()).unwrap_or(u64::MAX)
        + u64::from(archive.row_count.unsigned_abs());
    if manifest.id != archive.id || manifest.table != archive.table_name {
        Some(format!(
            "its manifest is of the archive {} of {}, and the database says {} of {}",
            manifest.id, manifest.table, archive.id, archive.table_name
        ))
    } else if manifest.rows != rows {
        Some(format!("its manifest has {} rows, and the database says {rows}", manifest.rows))
    } else if manifest.users != archive.user_ids {
        Some("its manifest has other users than the database".to_owned())
    } else if !has_rows(contents, &archive.not_removed) {
        Some("the database says that rows were not removed which the archive does not have".to_owned())
    } else {
        None
    }
}

/// Whether an archive has as many rows of each of these ids as there are.
fn has_rows(contents: &Contents, ids: &[Uuid]) -> bool {
    let mut left: HashMap<Uuid, usize> = HashMap::new();
    if let Some(rows) = contents.tables.as_slice().first() {
        for id in (0..rows.len()).filter_map(|row| uuid(rows.get(row, "id"))) {
            *left.entry(id).or_default() += 1;
        }
    }
    ids.iter().all(|id| match left.get_mut(id) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        Some(_) | None => false,
    })
}

/// Takes the rows out that an archive removed from the database.
pub(super) fn removed(archive: &Archive, contents: &mut Contents) -> Rows {
    let mut rows = if contents.tables.is_empty() {
        Rows::new(&archive.table_name, Vec::new())
    } else {
        contents.tables.remove(0)
    };
    rows.retain(|rows, row| uuid(rows.get(row, "id")).is_some_and(|id| !archive.not_removed.contains(&id)));
    rows
}

/// The value as a number.
pub(super) fn number(value: &Value) -> Option<i32> {
    if let Value::Integer(number) = value { i32::try_from(*number).ok() } else { None }
}

/// The value as a number of any size.
pub(super) fn big_number(value: &Value) -> Option<i64> {
    if let Value::Integer(number) = value { Some(*number) } else { None }
}

/// The value as an id.
pub(super) fn uuid(value: &Value) -> Option<Uuid> {
    if let Value::Uuid(id) = value { Some(*id) } else { None }
}

/// The value as a text.
pub(super) fn text(value: &Value) -> Option<&str> {
    if let Value::Text(text) = value { Some(text) } else { None }
}

/// Whether a row is of this user and this session.
pub(super) fn is_of(rows: &Rows, row: usize, user: Option<UserId>, session: Option<&str>) -> bool {
    user.is_none_or(|user| number(rows.get(row, "user_id")) == Some(user.get()))
        && session.is_none_or(|session| text(rows.get(row, "session_id")) == Some(session))
}
