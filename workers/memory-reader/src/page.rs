//! Pages: where one starts, which is the sort key of the last item of the page before, and where it ends.

use chrono::{DateTime, Utc};
use contract::{Cursor, Malformed, QueryErrorCode};
use data_encoding::BASE64URL_NOPAD as BASE64;
use runtime::query::QueryRefusal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use store::{Fault, FaultKind};

/// The sort key that a cursor encodes. It is neither secret nor signed: it selects only among rows that the sender may
/// see.
///
/// # Errors
/// [`Malformed`] if no page of this type of query returns such a cursor.
pub(crate) fn position<K: DeserializeOwned>(cursor: Option<&Cursor>) -> Result<Option<K>, Malformed> {
    let Some(cursor) = cursor else { return Ok(None) };
    let unknown = || Malformed::new("cursor", "is not a next_cursor of this query");
    let json = BASE64.decode(cursor.as_str().as_bytes()).map_err(|_| unknown())?;
    let value: serde_json::Value = serde_json::from_slice(&json).map_err(|_| unknown())?;
    // PostgreSQL cannot store such a text, so no key has it.
    if has_nul(&value) {
        return Err(unknown());
    }
    serde_json::from_value(value).map(Some).map_err(|_| unknown())
}

/// A time in a cursor, within the limits of times in requests: a larger one is not a time of PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "DateTime<Utc>")]
pub(crate) struct CursorTime(pub(crate) DateTime<Utc>);

impl TryFrom<DateTime<Utc>> for CursorTime {
    type Error = String;

    fn try_from(time: DateTime<Utc>) -> Result<Self, String> {
        contract::bounded_time(time).map(Self)
    }
}

fn has_nul(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(parts) => parts.iter().any(has_nul),
        // A key consists of texts, numbers and arrays.
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::Object(_) => false,
    }
}

/// The maximum size of the values of a page with more than one item, in bytes. A value is at most as large as the body
/// of a request, and an answer must fit into one message.
pub(crate) const PAGE_BYTES: i64 = 512 * 1024;

/// The maximum size of a row of an answer, in bytes: its values, and the ciphertexts of all that is encrypted in it. A row
/// that a request stored has less. One that a role has written otherwise may be a thousand times as long as text as it is
/// where it is stored; nothing of it is read.
macro_rules! max_row_bytes {
    () => {
        8388608
    };
}
pub(crate) use max_row_bytes;

/// What the error of [`fits`] says.
macro_rules! too_large {
    () => {
        "too large for an answer"
    };
}
pub(crate) use too_large;

/// A condition that fails its statement if a row of `bytes` bytes, that an answer would begin with, has more than
/// [`max_row_bytes`]: PostgreSQL has no expression that raises an error, but a text that is no boolean. Else `$otherwise`.
macro_rules! fits {
    ($is_first:literal, $otherwise:expr) => {
        concat!(
            "CASE WHEN ",
            $is_first,
            " AND bytes > ",
            $crate::page::max_row_bytes!(),
            " THEN ('",
            $crate::page::too_large!(),
            ": ' || bytes)::boolean ELSE ",
            $otherwise,
            " END"
        )
    };
}
pub(crate) use fits;

/// The answer to a query whose statement failed because of [`fits`].
pub(crate) fn refusal_of(fault: &Fault) -> Option<QueryRefusal> {
    const MESSAGE: &str = concat!(
        "the first row of the answer takes more than ",
        max_row_bytes!(),
        " bytes, and no answer has room for it; query for others, or store a smaller value in its place"
    );
    let is_too_large = fault.kind == FaultKind::Permanent && fault.reason.contains(too_large!());
    is_too_large.then(|| QueryRefusal::new(QueryErrorCode::TooLarge, MESSAGE, None))
}

/// The bytes of the ciphertexts of a row of the alias, if they are to be revealed. `$1` is the user.
macro_rules! ciphertext_bytes {
    ($row:literal, $table:literal, $reveal:literal) => {
        concat!(
            "CASE WHEN ",
            $reveal,
            " AND ",
            $row,
            ".is_sensitive THEN (SELECT coalesce(sum(octet_length(e.ciphertext)), 0) FROM encrypted_fields e
                    WHERE e.user_id = $1 AND e.table_name = '",
            $table,
            "' AND e.row_id = ",
            $row,
            ".id) ELSE 0 END"
        )
    };
}
pub(crate) use ciphertext_bytes;

/// Cuts rows to a page and returns the cursor of the next one. `found` is the number of rows up to one more than the
/// limit; `items` may be fewer, because of [`PAGE_BYTES`].
pub(crate) fn cut<T, K: Serialize>(
    mut items: Vec<T>,
    limit: i64,
    found: i64,
    key: impl FnOnce(&T) -> K,
) -> (Vec<T>, Option<String>) {
    items.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    if usize::try_from(found).unwrap_or(usize::MAX) <= items.len() {
        return (items, None);
    }
    let next = items.last().and_then(|last| serde_json::to_vec(&key(last)).ok());
    (items, next.map(|json| BASE64.encode(&json)))
}

/// The `LIMIT` of a statement for a page: one more row shows that there is another page.
pub(crate) fn one_more(limit: i64) -> i64 {
    limit + 1
}

/// The end of a statement that cuts the rows of its `page` to those that fit into an answer: the first row, and further
/// rows while the bytes of their values, and of the secrets to be revealed in them, are within a limit. `found` counts
/// all rows of `page`. The values are serialized one after the other to measure them, and kept only for the rows of the
/// answer. A table without secrets needs no name and no `$reveal`. The statement fails if the first row does not fit.
macro_rules! within_page {
    ($columns:expr, $size:literal, $table:literal, $order:literal, $reveal:literal, $bytes:literal) => {
        within_page!(
            $columns,
            concat!($size, " + ", $crate::page::ciphertext_bytes!("p", $table, $reveal)),
            $order,
            $bytes
        )
    };
    ($columns:expr, $size:expr, $order:literal, $bytes:literal) => {
        concat!(
            ", sized AS (SELECT p.*, count(*) OVER () AS found, row_number() OVER in_order AS place, sum(",
            $size,
            ") OVER in_order AS bytes FROM page p WINDOW in_order AS (ORDER BY ",
            $order,
            ")) SELECT ",
            $columns,
            ", found FROM sized WHERE ",
            $crate::page::fits!("place = 1", concat!("place = 1 OR bytes <= ", $bytes)),
            " ORDER BY place"
        )
    };
}
pub(crate) use within_page;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_page_points_to_the_next_and_the_last_to_none() {
        let (page, next) = cut(vec![1, 2, 3], 2, 3, |item| ("k", *item));
        assert_eq!(page, [1, 2]);
        let cursor = Cursor::new(next.unwrap()).unwrap();
        assert_eq!(position::<(String, i32)>(Some(&cursor)).unwrap(), Some(("k".to_owned(), 2)));
        assert_eq!(cut(vec![1, 2], 2, 2, |item| *item), (vec![1, 2], None));
        // The second item did not fit.
        let (page, next) = cut(vec![1], 2, 2, |item| ("k", *item));
        assert!(page == [1] && next.is_some());
        assert_eq!(cut(Vec::<i32>::new(), 2, 0, |item| *item), (vec![], None));
    }

    #[test]
    fn the_longest_and_oddest_keys_make_cursors() {
        let odd = (r"a\u0000b".to_owned(), "\u{10ffff}".repeat(256), "\u{1}".repeat(128));
        let (_, next) = cut(vec![1, 2], 1, 2, |_| &odd);
        let cursor = Cursor::new(next.unwrap()).unwrap();
        assert_eq!(position::<(String, String, String)>(Some(&cursor)).unwrap().unwrap(), odd);
    }

    #[test]
    fn a_cursor_holds_a_time_that_postgresql_has() {
        let at = |time: &str| {
            let cursor = Cursor::new(BASE64.encode(format!("[{time:?},1]").as_bytes())).unwrap();
            position::<(CursorTime, i32)>(Some(&cursor))
        };
        let expected = CursorTime("2026-11-01T10:00:00.000001Z".parse().unwrap());
        assert_eq!(at("2026-11-01T10:00:00.000001Z").unwrap(), Some((expected, 1)));
        for time in ["-262143-01-01T00:00:00Z", "+262142-12-31T23:59:59Z", "9999-12-31T23:59:60Z"] {
            assert_eq!(at(time).unwrap_err().field, "cursor", "{time}");
        }
    }

    #[test]
    fn a_cursor_of_another_query_is_rejected() {
        let nul = BASE64.encode(br#"["a\u0000",1]"#);
        for text in ["x", "!", "bnVsbA", &BASE64.encode(b"[1]"), &nul] {
            let refused = position::<(String, i32)>(Some(&Cursor::new(text).unwrap())).unwrap_err();
            assert_eq!(refused.field, "cursor", "{text}");
        }
    }
}
