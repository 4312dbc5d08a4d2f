use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::{Dialogue, DialogueError};

/// Maximum length of a line, in bytes; about 100 times the longest line of the Schema-Guided Dialogue data set.
pub const LINE_BYTES: usize = 4 * 1024 * 1024;

/// The magic bytes of gzip files.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Iterator over the dialogues of JSON Lines, plain or gzip-compressed. Ends after the first error.
pub struct Dialogues {
    name: String,
    input: Box<dyn BufRead + Send>,
    line: u64,
    buffer: Vec<u8>,
    finished: bool,
}

impl Dialogues {
    /// Opens a file.
    ///
    /// # Errors
    /// If it cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self, DialogueError> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Self::new(name, BufReader::new(file)),
            Err(error) => Err(DialogueError::new(name, format!("cannot be opened: {error}"))),
        }
    }

    /// Reads dialogues from memory; error messages refer to them as `name`.
    ///
    /// # Errors
    /// Never, in practice: reading from memory does not fail.
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self, DialogueError> {
        Self::new(name.to_owned(), bytes)
    }

    fn new(name: String, mut input: impl BufRead + Send + 'static) -> Result<Self, DialogueError> {
        let start = input
            .fill_buf()
            .map_err(|error| DialogueError::new(&name, format!("cannot be read: {error}")))?;
        let input: Box<dyn BufRead + Send> = if start.starts_with(&GZIP) {
            Box::new(BufReader::new(MultiGzDecoder::new(input)))
        } else {
            Box::new(input)
        };
        Ok(Self { name, input, line: 0, buffer: Vec::new(), finished: false })
    }

    /// Reads the next non-blank line into the buffer. Returns false at the end of the input.
    fn next_line(&mut self) -> Result<bool, String> {
        loop {
            self.line += 1;
            self.buffer.clear();
            // One byte more than allowed, to detect a line that is too long.
            let limit = u64::try_from(LINE_BYTES + 1).unwrap_or(u64::MAX);
            let mut limited = (&mut self.input).take(limit);
            let read = limited
                .read_until(b'\n', &mut self.buffer)
                .map_err(|error| format!("cannot be read: {error}"))?;
            if read == 0 {
                return Ok(false);
            }
            if self.buffer.len() > LINE_BYTES {
                return Err(format!("is longer than {LINE_BYTES} bytes"));
            }
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }
}

impl Iterator for Dialogues {
    type Item = Result<Dialogue, DialogueError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let dialogue = match self.next_line() {
            Ok(false) => None,
            Ok(true) => Some(serde_json::from_slice(&self.buffer).map_err(|error| invalid_dialogue(&error))),
            Err(problem) => Some(Err(problem)),
        };
        let location = || format!("{}: line {}", self.name, self.line);
        let dialogue = dialogue.map(|read| read.map_err(|problem| DialogueError::new(location(), problem)));
        self.finished = !matches!(dialogue, Some(Ok(_)));
        dialogue
    }
}

fn invalid_dialogue(error: &serde_json::Error) -> String {
    // The parser sees a single line; the line number in the file is already part of the message.
    let error = error.to_string().replace(" at line 1 column ", " at column ");
    format!(
        "invalid dialogue: {error}; expected dialogue_id, services and turns, as in tools/playground/sample/README.md"
    )
}
