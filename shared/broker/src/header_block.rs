//! The grammar of a message's header block, and its replacement if the block does not follow it.
//!
//! ```text
//! block = "NATS/1.0" [" " status] CRLF *(name ":" value CRLF) CRLF
//! ```
//!
//! The server compares header names and values byte by byte and ends a header at CRLF only. The client library also
//! ends it at LF, continues it on a line that starts with any Unicode white space, and trims such white space. A block
//! that the two would read differently does not follow this grammar.
//!
//! Blocks are limited in size, too: JetStream stores none larger than 64 KiB, but what is not stored may be all headers, and the client
//! library allocates memory for each of them before anybody has looked at the message.

use std::fmt::Write as _;

use contract::header;

const VERSION: &[u8] = b"NATS/1.0";
const CRLF: &[u8] = b"\r\n";
/// Maximum size of a block in bytes, as in JetStream.
const MAX_BYTES: usize = 64 * 1024;
/// Maximum number of header lines of a block. A request has about ten.
const MAX_LINES: usize = 256;
/// Maximum length of a quoted header name, in characters.
const MAX_QUOTED_CHARS: usize = 40;

/// What a header block may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// A status line, which only the server sends.
    Allowed,
    /// No status line: the client library would take a stored message that has one for a message of the server.
    Forbidden,
}

/// Checks a header block.
///
/// # Errors
/// What is wrong with it, without values.
pub(crate) fn check(block: &[u8], status: Status) -> Result<(), String> {
    if block.len() > MAX_BYTES {
        return Err(format!("the header block has more than {MAX_BYTES} bytes"));
    }
    let rest = block.strip_prefix(VERSION).ok_or("the header block does not start with NATS/1.0")?;
    let end = memchr::memmem::find(rest, CRLF).ok_or("the first line of the header block does not end")?;
    if end > 0 && (status == Status::Forbidden || !is_status(&rest[..end])) {
        return Err("the first line of the header block is not NATS/1.0".to_owned());
    }
    let mut lines = &rest[end + CRLF.len()..];
    for _ in 0..=MAX_LINES {
        let end =
            memchr::memmem::find(lines, CRLF).ok_or("the header block does not end with an empty line")?;
        let (line, rest) = (&lines[..end], &lines[end + CRLF.len()..]);
        if line.is_empty() {
            return if rest.is_empty() {
                Ok(())
            } else {
                Err("the header block has an empty line".to_owned())
            };
        }
        header_of(line)?;
        lines = rest;
    }
    Err(format!("the header block has more than {MAX_LINES} lines"))
}

/// Replaces a block: keeps its first valid headers, unless it is too large, and says in [`header::UNREADABLE`] what is wrong.
pub(crate) fn replacement(block: &[u8], problem: &str) -> Vec<u8> {
    let mut replaced = [VERSION, CRLF].concat();
    let kept = if block.len() > MAX_BYTES { &[] } else { block };
    for (name, value) in headers(kept).take(MAX_LINES - 1) {
        replaced.extend([name.as_bytes(), b": ", value.as_bytes(), CRLF].concat());
    }
    replaced.extend([header::UNREADABLE.as_bytes(), b": ", problem.as_bytes(), CRLF, CRLF].concat());
    replaced
}

/// The valid headers of a block, in order. Other lines are left out.
pub(crate) fn headers(block: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = block;
    std::iter::from_fn(move || {
        let end = memchr::memmem::find(rest, CRLF)?;
        let line = &rest[..end];
        rest = &rest[end + CRLF.len()..];
        Some(header_of(line).ok())
    })
    .flatten()
}

/// The name and the value of a header line.
///
/// # Errors
/// What is wrong with it. Only its name is quoted: a value may be a secret.
fn header_of(line: &[u8]) -> Result<(&str, &str), String> {
    let Some(colon) = memchr::memchr(b':', line) else {
        return Err("a header line has no colon".to_owned());
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let graphic = name.iter().all(u8::is_ascii_graphic);
    let (true, false, Ok(readable)) = (graphic, name.is_empty(), std::str::from_utf8(name)) else {
        let name = quoted(name);
        return Err(format!("the header name {name} has characters other than printable ASCII"));
    };
    let value = std::str::from_utf8(value)
        .map_err(|_| format!("the value of the header {} is not UTF-8", quoted(name)))?;
    let value = value.trim_matches([' ', '\t']);
    let is_control = |byte: u8| byte.is_ascii_control() && byte != b'\t';
    if value.bytes().any(is_control) {
        return Err(format!("the value of the header {} has control characters", quoted(name)));
    }
    if value.starts_with(char::is_whitespace) || value.ends_with(char::is_whitespace) {
        return Err(format!("the value of the header {} starts or ends with white space", quoted(name)));
    }
    Ok((readable, value))
}

/// Whether the end of the first line is a status, ` <three digits>[ <description>]`.
fn is_status(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    let (code, description) = text.split_at(text.len().min(3));
    code.len() == 3
        && code.iter().all(u8::is_ascii_digit)
        && code.first() != Some(&b'0')
        && (description.is_empty() || description.starts_with(b" "))
        && description.iter().all(|byte| (b' '..=b'~').contains(byte))
}

/// A name in quotes, escaped and truncated.
fn quoted(name: &[u8]) -> String {
    let mut text = String::from("\"");
    for character in String::from_utf8_lossy(name).chars().take(MAX_QUOTED_CHARS) {
        // Escapes quotes, and all that is not printable ASCII.
        let _infallible = write!(text, "{}", character.escape_default());
    }
    text.push('"');
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const BROKEN: [&[u8]; 22] = [
        b"",
        b"NATS/1.0",
        b"NATS/1.0\r\n",
        b"NATS/1.0\r\nA: 1\r\n",
        b"NATS/1.1\r\n\r\n",
        b"nats/1.0\r\n\r\n",
        b"NATS/1.0\nA: 1\r\n\r\n",
        b"NATS/1.0\r\nX Trace: 1\r\n\r\n",
        "NATS/1.0\r\nGr\u{f6}\u{df}e: 1\r\n\r\n".as_bytes(),
        b"NATS/1.0\r\nX-Name: J\xfcrgen\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\nA: 1\nB: 2\r\n\r\n",
        b"NATS/1.0\r\nA: 1\rB: 2\r\n\r\n",
        b"NATS/1.0\r\nA: 1\r\n B: 2\r\n\r\n",
        b"NATS/1.0\r\n: 1\r\n\r\n",
        b"NATS/1.0\r\nA: 1\r\n\r\nB: 2\r\n\r\n",
        b"NATS/1.0\r\nA: 1\r\n\r\n\r\n",
        b"NATS/1.0\r\nA: \0\r\n\r\n",
        "NATS/1.0\r\nNats-Msg-Id: 1\u{a0}\r\n\r\n".as_bytes(),
        "NATS/1.0\r\nA: 1\r\n\u{2028}B: 2\r\n\r\n".as_bytes(),
        b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
        b"NATS/1.0 99\r\n\r\n",
    ];

    #[test]
    fn a_block_that_two_parsers_read_differently_is_replaced_by_one_that_both_read_alike() {
        for block in BROKEN {
            let problem = check(block, Status::Forbidden).unwrap_err();
            assert!(problem.is_ascii(), "{problem}");
            let replaced = replacement(block, &problem);
            assert_eq!(check(&replaced, Status::Forbidden), Ok(()), "{}", block.escape_ascii());
            assert!(headers(&replaced).any(|(name, value)| name == header::UNREADABLE && value == problem));
        }
        let problem = check(b"NATS/1.0\r\nAuthorization : Bearer x\r\n\r\n", Status::Forbidden).unwrap_err();
        assert!(problem.contains("Authorization") && !problem.contains("Bearer"), "{problem}");
    }

    #[test]
    fn a_valid_block_is_accepted() {
        for block in [
            "NATS/1.0\r\n\r\n",
            "NATS/1.0\r\nA: 1\r\nA:2\r\nB:\r\nC:  \t\r\n\r\n",
            "NATS/1.0\r\nX-Name: J\u{fc}rgen, 10:00 \"quoted\"\ttab\r\n\r\n",
        ] {
            assert_eq!(check(block.as_bytes(), Status::Forbidden), Ok(()), "{block:?}");
        }
        let kept: Vec<_> = headers(b"NATS/1.0\r\nA: 1 \r\nB C: 2\r\nD:3\r\n\r\n").collect();
        assert_eq!(kept, [("A", "1"), ("D", "3")]);
    }

    #[test]
    fn a_block_of_many_headers_is_replaced_by_a_small_one() {
        let block = |lines: usize, line: &str| format!("NATS/1.0\r\n{}\r\n", line.repeat(lines)).into_bytes();
        for (accepted, one_more, kept) in [
            (block(MAX_LINES, "A:\r\n"), block(MAX_LINES + 1, "A:\r\n"), MAX_LINES),
            (
                block(1, &format!("A:{}\r\n", "b".repeat(65_520))),
                block(1, &format!("A:{}\r\n", "b".repeat(65_521))),
                1,
            ),
            (block(1, ""), block(580_000, "A:\r\n"), 1),
        ] {
            assert_eq!(check(&accepted, Status::Forbidden), Ok(()));
            let problem = check(&one_more, Status::Forbidden).unwrap_err();
            let replaced = replacement(&one_more, &problem);
            assert_eq!(check(&replaced, Status::Forbidden), Ok(()), "{problem}");
            assert_eq!(headers(&replaced).count(), kept);
            assert_eq!(headers(&replaced).last(), Some((header::UNREADABLE, problem.as_str())));
        }
    }

    #[test]
    fn only_the_server_sends_a_status() {
        let heartbeat = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 4\r\n\r\n";
        assert_eq!(check(heartbeat, Status::Allowed), Ok(()));
        assert!(check(heartbeat, Status::Forbidden).is_err());
        for status in ["NATS/1.0 1000\r\n\r\n", "NATS/1.0 4x4\r\n\r\n", "NATS/1.0 099\r\n\r\n"] {
            assert!(check(status.as_bytes(), Status::Allowed).is_err(), "{status}");
        }
        assert_eq!(check(b"NATS/1.0 503\r\n\r\n", Status::Allowed), Ok(()));
    }
}
