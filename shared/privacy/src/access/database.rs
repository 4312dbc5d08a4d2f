//! The rows of a person in the main database and in the key store, as JSON lines.

use std::collections::BTreeMap;

use contract::UserId;
use data_encoding::HEXLOWER;
use diesel::QueryableByName;
use diesel::sql_types::{Array, Integer, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use futures::TryStreamExt;
use serde_json::value::{RawValue, to_raw_value};
use store::{Connection, Fault};

use super::plan::{self, Plan};
use super::secrets::{Cell, Secrets};
use super::sink::Sink;
use crate::catalogue::{Entry, Owner};
use crate::error::PrivacyError;

/// The main database, in the index and as a folder of the export.
pub(super) const MAIN: &str = "postgresql";
/// The key store.
pub(super) const KEY_STORE: &str = "key-store";

/// Begins the transaction in which all tables are read, as they are at one moment.
///
/// By hand: `AsyncConnection::transaction` wants a future that other threads may run, and the rows are read as a stream. The server does not end the
/// transaction while other stores are read, for six hours: erasures wait for it.
pub(super) async fn begin(connection: &mut Connection) -> Result<(), Fault> {
    connection.batch_execute("SET idle_in_transaction_session_timeout = '6h'").await?;
    Ok(connection.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
}

/// Fails if the transaction is over.
pub(super) async fn is_open(connection: &mut Connection) -> Result<(), Fault> {
    Ok(connection.batch_execute("SAVEPOINT is_open").await?)
}

/// A row as an object, in the order of the names of its columns.
type Row = BTreeMap<String, Box<RawValue>>;

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

/// Exports the rows of a person in a table, or names the table as left out.
pub(super) async fn export(
    connection: &mut Connection,
    store: &'static str,
    entry: &Entry,
    user: UserId,
    secrets: &mut Secrets,
    sink: &mut Sink,
) -> Result<(), PrivacyError> {
    let table = entry.name();
    let (columns, condition) = match (plan::plan(entry), plan::condition(entry.owner)) {
        (Plan::Rows(columns), Some(condition)) => (columns, condition),
        (Plan::LeftOut(reason), _) => {
            sink.leave_out(store, &table, None, reason);
            return Ok(());
        }
        // A test rules it out.
        (Plan::Rows(_), None) => {
            return Err(PrivacyError::Refused(format!(
                "the catalogue does not say whose the rows of {table} are"
            )));
        }
    };
    for column in columns {
        sink.leave_out(store, &table, Some(column.name), column.reason);
    }
    if matches!(entry.owner, Owner::Arrays(_)) {
        sink.leave_out(
            store,
            &table,
            Some("ids of users"),
            "those of others; that of the person is exported",
        );
    }
    let is_secret = entry.schema == "public" && entry.table == archive::ENCRYPTED_FIELDS;
    // A ciphertext is read to be decrypted.
    let removed: Vec<&str> =
        if is_secret { Vec::new() } else { columns.iter().map(|column| column.name).collect() };
    let bytes = byte_columns(connection, &table).await?;
    let replaced = plan::replaced(entry.owner);
    let select =
        format!("SELECT ((to_jsonb(t) - $2) || {replaced})::text AS line FROM {table} t WHERE {condition}");
    sink.begin(store, &table, &format!("{store}/{table}.jsonl"))?;
    let query = diesel::sql_query(select).bind::<Integer, _>(user.get()).bind::<Array<Text>, _>(removed);
    let mut rows = query.load_stream::<Line>(connection).await?;
    while let Some(Line { line }) = rows.try_next().await? {
        if bytes.is_empty() {
            sink.line(line.as_bytes())?;
            continue;
        }
        let mut row = parse(&table, &line)?;
        if is_secret {
            decrypt(&table, &mut row, secrets).await?;
        }
        readable(&mut row, &bytes);
        sink.line(&to_line(&row)?)?;
    }
    drop(rows);
    sink.end()
}

/// The columns of a table that hold bytes.
async fn byte_columns(connection: &mut Connection, table: &str) -> Result<Vec<String>, Fault> {
    const COLUMNS: &str = "SELECT a.attname::text AS line FROM pg_attribute a
        WHERE a.attrelid = $1::regclass AND a.atttypid = 'bytea'::regtype AND a.attnum > 0 AND NOT a.attisdropped";
    let rows: Vec<Line> = diesel::sql_query(COLUMNS).bind::<Text, _>(table).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.line).collect())
}

fn parse(table: &str, line: &str) -> Result<Row, PrivacyError> {
    // The error has no value of the row.
    serde_json::from_str(line)
        .map_err(|_| PrivacyError::Refused(format!("a row of {table} is no JSON object")))
}

pub(super) fn to_line<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, PrivacyError> {
    serde_json::to_vec(value)
        .map_err(|_| PrivacyError::Refused("a value cannot be expressed in JSON".to_owned()))
}

/// Replaces bytes that are text by the text. Others stay as PostgreSQL writes them: `\x` and hexadecimal digits.
fn readable(row: &mut Row, columns: &[String]) {
    for column in columns {
        let Some(text) = row.get(column).and_then(|raw| text_of(raw)) else { continue };
        if let Ok(text) = to_raw_value(&text) {
            row.insert(column.clone(), text);
        }
    }
}

fn bytes_of(raw: &RawValue) -> Option<Vec<u8>> {
    let text: String = serde_json::from_str(raw.get()).ok()?;
    HEXLOWER.decode(text.strip_prefix("\\x")?.as_bytes()).ok()
}

fn text_of(raw: &RawValue) -> Option<String> {
    let text = String::from_utf8(bytes_of(raw)?).ok()?;
    let is_text = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    (!text.is_empty() && text.chars().all(is_text)).then_some(text)
}

/// Replaces the ciphertext of a row of `encrypted_fields` by its value.
async fn decrypt(table: &str, row: &mut Row, secrets: &mut Secrets) -> Result<(), PrivacyError> {
    let text = |column: &str| {
        let raw = row.get(column)?;
        serde_json::from_str::<String>(raw.get()).ok()
    };
    let cell = || {
        Some(Cell {
            table: text("table_name")?,
            column: text("column_name")?,
            row: text("row_id")?.parse().ok()?,
            ciphertext: bytes_of(row.get("ciphertext")?)?,
        })
    };
    let Some(cell) = cell() else {
        return Err(PrivacyError::Refused(format!("a row of {table} is not what this program writes")));
    };
    let (name, value) = secrets.decrypt(cell).await?;
    row.remove("ciphertext");
    let value = to_raw_value(&value)
        .map_err(|_| PrivacyError::Refused(format!("a field of {table} cannot be expressed in JSON")))?;
    row.insert(name.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_text_become_text_and_numbers_stay_as_they_are() {
        let line =
            r#"{"a":"\\x74657874","b":"\\x00ff","c":123456789012345678901234567890.10,"d":"\\x74657874"}"#;
        let mut row = parse("t", line).unwrap_or_default();
        readable(&mut row, &["a".to_owned(), "b".to_owned()]);
        let out = to_line(&row).unwrap_or_default();
        let expected =
            r#"{"a":"text","b":"\\x00ff","c":123456789012345678901234567890.10,"d":"\\x74657874"}"#;
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}
