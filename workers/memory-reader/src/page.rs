//! Where a page begins: the sort key of the last item of the page before, as an opaque text.

use contract::{Cursor, Malformed};
use data_encoding::BASE64URL_NOPAD as BASE64;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The position that a cursor stands for. It is no secret and needs no seal: it only says from where on, among what the asker
/// may see.
///
/// # Errors
/// [`Malformed`] for one that no page of this query gave.
pub(crate) fn position<K: DeserializeOwned>(cursor: Option<&Cursor>) -> Result<Option<K>, Malformed> {
    let Some(cursor) = cursor else { return Ok(None) };
    let unknown = || Malformed::new("cursor", "is none that a page of this query gave");
    let json = BASE64.decode(cursor.as_str().as_bytes()).map_err(|_| unknown())?;
    let value: serde_json::Value = serde_json::from_slice(&json).map_err(|_| unknown())?;
    // PostgreSQL can store no such text, so it is none of its keys.
    if has_nul(&value) {
        return Err(unknown());
    }
    serde_json::from_value(value).map(Some).map_err(|_| unknown())
}

fn has_nul(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(parts) => parts.iter().any(has_nul),
        // No key of an item is anything else.
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::Object(_) => false,
    }
}

/// How many bytes the values of a page have together, if it has more than one item. A value is at most a request's body, and an
/// answer must be one message.
pub(crate) const PAGE_BYTES: i64 = 512 * 1024;

/// Cuts what was read to a page and says where the next one begins. `found` counts what there was to read, which was one item
/// more than a page has, or fewer: what was read may be less than that, for want of room.
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_page_leads_to_the_next_and_the_last_to_none() {
        let (page, next) = cut(vec![1, 2, 3], 2, 3, |item| ("k", *item));
        assert_eq!(page, [1, 2]);
        let cursor = Cursor::new(next.unwrap()).unwrap();
        assert_eq!(position::<(String, i32)>(Some(&cursor)).unwrap(), Some(("k".to_owned(), 2)));
        assert_eq!(cut(vec![1, 2], 2, 2, |item| *item), (vec![1, 2], None));
        // The second one had no room.
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
    fn what_is_no_cursor_of_the_query_is_refused() {
        let nul = BASE64.encode(br#"["a\u0000",1]"#);
        for text in ["x", "!", "bnVsbA", &BASE64.encode(b"[1]"), &nul] {
            let refused = position::<(String, i32)>(Some(&Cursor::new(text).unwrap())).unwrap_err();
            assert_eq!(refused.field, "cursor", "{text}");
        }
    }
}
