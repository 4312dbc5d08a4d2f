//! The journal of operations during a run of the optimizer.
//!
//! While the engine builds a segment, it keeps deletions and index changes of the old segments in memory and applies
//! them to the new segment at the end. A flush does not make them durable, and the engine does not read its write-ahead
//! log. The journal records them, and it is replayed if the collection was not closed cleanly.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use qdrant_edge::UpdateOperation;

use crate::files;

const FILE: &str = "journal.jsonl";

/// The journal of a collection: a file that exists only while the optimizer runs, with one operation per line.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    empty: bool,
    synced: bool,
}

impl Journal {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { path: folder.join(FILE), open: None }
    }

    /// Whether there is a journal: the optimizer was interrupted when the collection was last open.
    pub(crate) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Starts recording.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        files::sync_folder_of(&self.path)?;
        self.open = Some(Open { file, empty: true, synced: true });
        Ok(())
    }

    /// Whether operations must be recorded.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether nothing was recorded yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.as_ref().is_none_or(|open| open.empty)
    }

    /// Records an operation. It is durable after [`Journal::sync`].
    pub(crate) fn record(&mut self, operation: &UpdateOperation) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let mut line = serde_json::to_vec(operation).map_err(io::Error::other)?;
        line.push(b'\n');
        open.file.write_all(&line)?;
        open.empty = false;
        open.synced = false;
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        match &mut self.open {
            Some(open) if !open.synced => {
                open.file.sync_data()?;
                open.synced = true;
                Ok(())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Removes the journal, when all recorded operations are durable in the engine.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.open = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| files::sync_folder_of(&self.path)),
        }
    }

    /// Calls `apply` for each recorded operation, in order.
    pub(crate) fn replay(&self, mut apply: impl FnMut(UpdateOperation)) -> io::Result<()> {
        let mut lines = BufReader::new(File::open(&self.path)?);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            // An incomplete last line was being written during the crash: its write did not return.
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
            apply(serde_json::from_slice(&line).map_err(io::Error::other)?);
            line.clear();
        }
        Ok(())
    }
}
