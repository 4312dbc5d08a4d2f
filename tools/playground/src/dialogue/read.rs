use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::{Dialogue, DialogueError};

/// The longest line, in bytes. The longest of the Schema-Guided Dialogue data set has a hundredth of it.
pub const LINE_BYTES: usize = 4 * 1024 * 1024;

/// The first bytes of everything that gzip makes.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Reads dialogues one at a time from JSON Lines, plain or compressed with gzip. After an error there are no more.
pub struct Dialogues {
    name: String,
    input: Box<dyn BufRead + Send>,
    line: u64,
    buffer: Vec<u8>,
    over: bool,
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

    /// Reads what is in memory; `name` is what messages call it.
    ///
    /// # Errors
    /// None that memory could cause.
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
        Ok(Self { name, input, line: 0, buffer: Vec::new(), over: false })
    }

    /// Fills the buffer with the next line that is not blank. False at the end.
    fn next_line(&mut self) -> Result<bool, String> {
        loop {
            self.line += 1;
            self.buffer.clear();
            // One more than fits, to tell a line that is too long from one that just fits.
            let limit = u64::try_from(LINE_BYTES + 1).unwrap_or(u64::MAX);
            let mut bounded = (&mut self.input).take(limit);
            let read = bounded
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
        if self.over {
            return None;
        }
        let dialogue = match self.next_line() {
            Ok(false) => None,
            Ok(true) => Some(serde_json::from_slice(&self.buffer).map_err(|error| not_a_dialogue(&error))),
            Err(problem) => Some(Err(problem)),
        };
        let place = || format!("{}: line {}", self.name, self.line);
        let dialogue = dialogue.map(|read| read.map_err(|problem| DialogueError::new(place(), problem)));
        self.over = !matches!(dialogue, Some(Ok(_)));
        dialogue
    }
}

fn not_a_dialogue(error: &serde_json::Error) -> String {
    // What it was given is one line, and which one of the file is said already.
    let error = error.to_string().replace(" at line 1 column ", " at column ");
    format!(
        "is no dialogue: {error}; expected dialogue_id, services and turns, as in tools/playground/sample/README.md"
    )
}
