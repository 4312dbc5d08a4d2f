//! Prints dead letters as text or JSON.

use std::fmt::Write as _;
use std::io::Write as _;

use async_nats::HeaderValue;
use chrono::SecondsFormat;
use cli::json::pretty;
use cli::output::{out_json, printable};
use cli::table::{Align, Table};
use cli::{out, outln};
use contract::{header, printable_json};
use serde_json::{Value, json};

use super::letters::{Letter, STREAM};

/// Maximum length of a printed body, in characters.
const BODY_CHARS: usize = 16 * 1024;
/// Maximum length of a reason in the table, in characters; `dead show` prints all of it.
const REASON_CHARS: usize = 100;
/// Maximum number of bytes printed of a binary body.
const HEX_BYTES: usize = 512;

pub(super) fn table(letters: &[Letter]) {
    let mut table = Table::new([
        ("seq", Align::Right),
        ("class", Align::Left),
        ("user", Align::Right),
        ("subject", Align::Left),
        ("tries", Align::Right),
        ("when", Align::Left),
        ("reason", Align::Left),
    ]);
    for letter in letters {
        table.row([
            letter.sequence.to_string(),
            letter.header(header::DEAD_CLASS).to_owned(),
            letter.user().to_owned(),
            letter.header(header::DEAD_SUBJECT).to_owned(),
            letter.header(header::DEAD_TRIES).to_owned(),
            when(letter),
            shortened(&printable(letter.header(header::DEAD_REASON))),
        ]);
    }
    out!("{table}");
}

fn shortened(reason: &str) -> String {
    match reason.char_indices().nth(REASON_CHARS) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.to_owned(),
    }
}

pub(super) fn json(letters: &[Letter]) -> anyhow::Result<()> {
    let letters: Vec<Value> = letters
        .iter()
        .map(|letter| {
            json!({
                "sequence": letter.sequence,
                "class": letter.header(header::DEAD_CLASS),
                "worker": letter.worker(),
                "user": letter.user(),
                "subject": letter.header(header::DEAD_SUBJECT),
                "source": letter.header(header::DEAD_SOURCE),
                "request_id": letter.headers.get(header::DEAD_REQUEST_ID).map(HeaderValue::as_str),
                "tries": letter.header(header::DEAD_TRIES).parse::<u32>().ok(),
                "died_at": letter.died_at,
                "reason": letter.header(header::DEAD_REASON),
            })
        })
        .collect();
    out_json(serde_json::to_string(&letters)?);
    Ok(())
}

pub(super) fn show(letter: &Letter, body_alone: bool, is_decrypted: bool) -> anyhow::Result<()> {
    if body_alone {
        std::io::stdout().write_all(&letter.body)?;
        return Ok(());
    }
    outln!("{STREAM}/{} on {}, {}", letter.sequence, printable(&letter.subject), when(letter));
    let mut headers: Vec<String> = letter
        .headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.as_str())))
        .map(|(name, value)| format!("{}: {}", printable(&name), shown_value(&name, value)))
        .collect();
    headers.sort();
    outln!("{}\n", headers.join("\n"));
    let key = letter.header(header::ENCRYPTION);
    if key.is_empty() || is_decrypted {
        outln!("{}", body(&letter.body));
    } else {
        outln!("({} bytes, encrypted with key {}; --decrypt shows them)", letter.body.len(), printable(key));
    }
    Ok(())
}

/// The printable value of a header. Service tokens are hidden: anyone who reads one could use it.
fn shown_value(name: &str, value: &str) -> String {
    if name.eq_ignore_ascii_case(header::AUTHORIZATION) {
        "(hidden)".to_owned()
    } else {
        printable(value).into_owned()
    }
}

fn when(letter: &Letter) -> String {
    letter.died_at.map_or_else(String::new, |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

fn body(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "(no body)".to_owned();
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => text,
        Ok(_) | Err(_) => return hex(bytes),
    };
    let shown = match pretty(text) {
        Some(json) => printable_json(&json).into_owned(),
        None => text.lines().map(printable).collect::<Vec<_>>().join("\n"),
    };
    match shown.char_indices().nth(BODY_CHARS) {
        Some((end, _)) => {
            format!("{}\n… truncated; --body prints all {} bytes", &shown[..end], bytes.len())
        }
        None => shown,
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut shown = String::new();
    for (line, chunk) in bytes[..bytes.len().min(HEX_BYTES)].chunks(16).enumerate() {
        let digits: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = chunk
            .iter()
            .map(|&byte| if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '.' })
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(shown, "{:06x}  {:<47}  {text}", line * 16, digits.join(" "));
    }
    let _ = write!(shown, "(binary; --body prints all {} bytes)", bytes.len());
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_shown_as_json_text_or_hex() {
        assert_eq!(body(b""), "(no body)");
        assert_eq!(body(b"{\"a\":1}"), "{\n  \"a\": 1\n}");
        assert_eq!(body(b"{\"b\":1e400,\"a\":1.10}"), "{\n  \"b\": 1e400,\n  \"a\": 1.10\n}");
        assert_eq!(body(b"{\"a\":"), "{\"a\":");
        assert!(body(b"a\0").starts_with("000000  61 00  "));
        assert!(body(b"\xffabc").starts_with("000000  ff 61 62 63  "));
        assert!(body(&[b'x'; 40_000]).ends_with("truncated; --body prints all 40000 bytes"));
    }

    #[test]
    fn control_characters_of_a_body_are_escaped() {
        assert_eq!(body(b"{\"a\":\x1b1}"), "{\"a\":\\u{1b}1}");
    }

    #[test]
    fn a_token_is_not_shown() {
        assert_eq!(shown_value("authorization", "Bearer x"), "(hidden)");
    }
}
