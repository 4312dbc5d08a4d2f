//! Where the stores are written to: files of JSON lines, in pieces that go into parts.

use sha2::{Digest as _, Sha256};
use trust::text::to_hex;
use uuid::Uuid;

use super::NewExport;
use super::database::to_line;
use super::index::{Exported, Index, LeftOut};
use super::part::{Parts, Written};
use crate::error::PrivacyError;

/// The most bytes of a piece of a file. A part has room for several.
pub(super) const PIECE: usize = 256 * 1024;

/// The names of the index in an export, for programs and for people.
pub(super) const INDEX: &str = "index.json";
pub(super) const READABLE_INDEX: &str = "index.txt";

/// What was exported, and what was left out.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) exported: Vec<Exported>,
    pub(super) left_out: Vec<LeftOut>,
}

/// An export that is being written. Not more than a part of it is in memory.
pub(super) struct Sink {
    parts: Parts,
    entries: Entries,
    open: Option<Open>,
}

/// A file that lines are added to.
struct Open {
    store: &'static str,
    name: String,
    file: String,
    buffer: Vec<u8>,
    pieces: u32,
    rows: u64,
    bytes: u64,
    hash: Sha256,
}

impl Sink {
    pub(super) fn create(new: &NewExport, request: Uuid) -> Result<Self, PrivacyError> {
        Ok(Self { parts: Parts::create(new, request)?, entries: Entries::default(), open: None })
    }

    /// Names something that is left out: all of `name`, or a part of it.
    pub(super) fn leave_out(&mut self, store: &'static str, name: &str, what: Option<&str>, reason: &str) {
        self.entries.left_out.push(LeftOut {
            store: store.to_owned(),
            name: name.to_owned(),
            what: what.map(str::to_owned),
            reason: reason.to_owned(),
        });
    }

    /// Begins a file with the lines of a table, a collection or a stream.
    pub(super) fn begin(&mut self, store: &'static str, name: &str, file: &str) -> Result<(), PrivacyError> {
        self.end()?;
        self.open = Some(Open {
            store,
            name: name.to_owned(),
            file: file.to_owned(),
            buffer: Vec::with_capacity(PIECE),
            pieces: 0,
            rows: 0,
            bytes: 0,
            hash: Sha256::new(),
        });
        Ok(())
    }

    /// Adds a line, without its end.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<(), PrivacyError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.rows += 1;
        for bytes in [line, b"\n"] {
            open.hash.update(bytes);
            open.bytes = open.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            open.add(bytes, &mut self.parts)?;
        }
        Ok(())
    }

    /// Ends the file. One without lines is named in the index, and is not there.
    pub(super) fn end(&mut self) -> Result<(), PrivacyError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        if !open.buffer.is_empty() {
            open.flush(&mut self.parts)?;
        }
        let is_there = open.rows > 0;
        self.entries.exported.push(Exported {
            store: open.store.to_owned(),
            name: open.name,
            file: is_there.then_some(open.file),
            rows: open.rows,
            bytes: open.bytes,
            sha256: is_there.then(|| to_hex(&open.hash.finalize())),
        });
        Ok(())
    }

    pub(super) fn take_entries(&mut self) -> Entries {
        std::mem::take(&mut self.entries)
    }

    /// Adds the index, and seals the last part.
    pub(super) fn finish(mut self, index: &Index) -> Result<Written, PrivacyError> {
        self.end()?;
        for (file, content) in [(READABLE_INDEX, index.text().into_bytes()), (INDEX, to_line(index)?)] {
            for (number, piece) in (0..).zip(content.chunks(PIECE)) {
                self.parts.add(&piece_name(file, number), piece)?;
            }
        }
        self.parts.finish()
    }
}

impl Open {
    fn add(&mut self, mut bytes: &[u8], parts: &mut Parts) -> Result<(), PrivacyError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() >= PIECE {
                self.flush(parts)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, parts: &mut Parts) -> Result<(), PrivacyError> {
        parts.add(&piece_name(&self.file, self.pieces), &self.buffer)?;
        self.pieces += 1;
        self.buffer.clear();
        Ok(())
    }
}

/// The name of a piece of a file: the first one has that of the file.
fn piece_name(file: &str, number: u32) -> String {
    if number == 0 { file.to_owned() } else { format!("{file}.{:06}", number + 1) }
}

/// The file that a piece belongs to, and its number from 0.
pub(super) fn file_of(piece: &str) -> (&str, u32) {
    let numbered = piece
        .rsplit_once('.')
        .filter(|(_, number)| number.len() == 6 && number.bytes().all(|digit| digit.is_ascii_digit()));
    let found = numbered.and_then(|(file, number)| Some((file, number.parse::<u32>().ok()?.checked_sub(1)?)));
    found.unwrap_or((piece, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_names_its_file() {
        for number in [0, 1, 41] {
            assert_eq!(file_of(&piece_name("a/b.jsonl", number)), ("a/b.jsonl", number));
        }
        assert_eq!(file_of("a/b.jsonl.000000"), ("a/b.jsonl.000000", 0));
    }
}
