//! The filter of the relay: what the server sends, in frames that the client library reads as the server does.

use std::borrow::Cow;

use async_nats::ServerInfo;
use bytes::{Buf, BytesMut};
use contract::header;

use crate::header_block::{self, Status};

/// What the server sent breaks its own protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// A line without an end.
    #[error("the server sent a line of more than {MAX_LINE_BYTES} bytes")]
    LineTooLong,
    /// The arguments of a message.
    #[error("the server sent a message with invalid arguments")]
    Arguments,
    /// Its description of itself.
    #[error("the server sent an invalid description of itself: {0}")]
    Info(#[from] serde_json::Error),
}

/// Maximum length of a line. The longest is INFO, which lists the servers of the cluster.
const MAX_LINE_BYTES: usize = 256 * 1024;
const CRLF: &[u8] = b"\r\n";

/// Passes on what a server sends.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// The bytes of the current message still to be passed on as they are.
    rest: usize,
}

/// A complete frame at the start of the input, or the start of one.
enum Frame {
    /// More input is needed.
    Incomplete,
    /// So many bytes pass unchanged. They may extend beyond the input.
    Pass(usize),
    /// The first `read` bytes of the input are replaced, then `pass` bytes pass unchanged.
    Replace { read: usize, with: Vec<u8>, pass: usize },
}

impl Filter {
    /// Moves all complete frames from `input` to `output`. `on_info` receives what the server says about itself.
    pub(crate) fn pass(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
        on_info: &mut impl FnMut(&ServerInfo),
    ) -> Result<(), FrameError> {
        loop {
            let now = self.rest.min(input.len());
            if now > 0 {
                // Joins two halves of one buffer without copying.
                output.unsplit(input.split_to(now));
                self.rest -= now;
            }
            if input.is_empty() {
                return Ok(());
            }
            match frame(input, on_info)? {
                Frame::Incomplete => return Ok(()),
                Frame::Pass(bytes) => self.rest = bytes,
                Frame::Replace { read, with, pass } => {
                    input.advance(read);
                    output.extend_from_slice(&with);
                    self.rest = pass;
                }
            }
        }
    }
}

fn frame(input: &[u8], on_info: &mut impl FnMut(&ServerInfo)) -> Result<Frame, FrameError> {
    let Some(end) = memchr::memmem::find(input, CRLF) else {
        return if input.len() > MAX_LINE_BYTES {
            Err(FrameError::LineTooLong)
        } else {
            Ok(Frame::Incomplete)
        };
    };
    let (line, line_bytes) = (&input[..end], end + CRLF.len());
    if let Some(arguments) = line.strip_prefix(b"HMSG ") {
        return message_with_headers(&Arguments::new(arguments, 2)?, line_bytes, input);
    }
    if let Some(arguments) = line.strip_prefix(b"MSG ") {
        return message(&Arguments::new(arguments, 1)?, line_bytes);
    }
    if let Some(json) = line.strip_prefix(b"INFO ") {
        on_info(&serde_json::from_slice(json)?);
        return Ok(Frame::Replace { read: line_bytes, with: own_info(json)?, pass: 0 });
    }
    Ok(Frame::Pass(line_bytes))
}

/// `MSG <subject> <subscription> [reply] <bytes>`.
fn message(arguments: &Arguments<'_>, line_bytes: usize) -> Result<Frame, FrameError> {
    let pass = arguments.sizes[0] + CRLF.len();
    if arguments.are_printable() {
        return Ok(Frame::Pass(line_bytes + pass));
    }
    // Without headers, the escaped subject alone shows that the message is not readable.
    let sizes = [arguments.sizes[0]];
    Ok(Frame::Replace { read: line_bytes, with: arguments.escaped("MSG", &sizes), pass })
}

/// `HMSG <subject> <subscription> [reply] <header bytes> <total bytes>`.
fn message_with_headers(
    arguments: &Arguments<'_>,
    line_bytes: usize,
    input: &[u8],
) -> Result<Frame, FrameError> {
    let [header_bytes, total_bytes] = arguments.sizes;
    let payload_bytes = total_bytes.checked_sub(header_bytes).ok_or(FrameError::Arguments)?;
    let Some(block) = input.get(line_bytes..line_bytes + header_bytes) else { return Ok(Frame::Incomplete) };
    // The server sends its status to the inbox of a request, where it delivers no stored message.
    let is_inbox = arguments.subject.starts_with(b"_INBOX.");
    let checked = header_block::check(block, if is_inbox { Status::Allowed } else { Status::Forbidden });
    let pass = payload_bytes + CRLF.len();
    if checked.is_ok() && arguments.are_printable() {
        return Ok(Frame::Pass(line_bytes + header_bytes + pass));
    }
    let problem = checked.err().unwrap_or_else(|| {
        "the subject has characters other than printable ASCII; they are percent-encoded here".to_owned()
    });
    let block = header_block::replacement(block, &problem);
    let mut with = arguments.escaped("HMSG", &[block.len(), block.len() + payload_bytes]);
    with.extend(block);
    Ok(Frame::Replace { read: line_bytes + header_bytes, with, pass })
}

/// The arguments of a message.
struct Arguments<'a> {
    subject: &'a [u8],
    subscription: &'a [u8],
    reply: Option<&'a [u8]>,
    /// The last arguments: the size of the headers, if there are headers, and the size in all.
    sizes: [usize; 2],
}

impl<'a> Arguments<'a> {
    /// Splits at single spaces, as the server joins them.
    fn new(line: &'a [u8], sizes: usize) -> Result<Self, FrameError> {
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let mut next = || words.next();
        let (subject, subscription) = next().zip(next()).ok_or(FrameError::Arguments)?;
        let rest: Vec<&[u8]> = words.take(4).collect();
        let (reply, numbers) = match rest.len().checked_sub(sizes) {
            Some(0) => (None, rest.as_slice()),
            Some(1) => (rest.first().copied(), &rest[1..]),
            Some(_) | None => return Err(FrameError::Arguments),
        };
        let mut parsed = [0; 2];
        for (size, number) in parsed.iter_mut().zip(numbers) {
            let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
            *size = number.filter(|size| *size <= MAX_MESSAGE_BYTES).ok_or(FrameError::Arguments)?;
        }
        Ok(Self { subject, subscription, reply, sizes: parsed })
    }

    /// Whether the subjects are printable ASCII, which everybody reads alike.
    fn are_printable(&self) -> bool {
        self.subject.iter().chain(self.reply.unwrap_or_default()).all(u8::is_ascii_graphic)
    }

    /// The first line of the message, with percent-encoded subjects.
    fn escaped(&self, operation: &str, sizes: &[usize]) -> Vec<u8> {
        let mut line = format!("{operation} {} ", escaped(self.subject)).into_bytes();
        line.extend_from_slice(self.subscription);
        if let Some(reply) = self.reply {
            line.extend(format!(" {}", escaped(reply)).into_bytes());
        }
        for size in sizes {
            line.extend(format!(" {size}").into_bytes());
        }
        line.extend_from_slice(CRLF);
        line
    }
}

/// The largest message that a server can be configured to accept.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// A subject with all bytes percent-encoded that are not printable ASCII.
fn escaped(subject: &[u8]) -> Cow<'_, str> {
    percent_encoding::percent_encode(subject, percent_encoding::CONTROLS).into()
}

/// What the server says about itself, for a client of the relay: it connects to no other server and without TLS.
fn own_info(json: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut info: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json)?;
    for field in ["connect_urls", "ws_connect_urls", "tls_required", "tls_available", "tls_verify"] {
        info.remove(field);
    }
    Ok([b"INFO ", serde_json::to_vec(&info)?.as_slice(), CRLF].concat())
}

/// What is wrong with a received message; `None` if the client library reads it as the server does.
pub fn unreadable(headers: Option<&async_nats::HeaderMap>) -> Option<&str> {
    headers?.get(header::UNREADABLE).map(async_nats::HeaderValue::as_str)
}
