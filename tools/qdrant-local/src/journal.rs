//! What was written while the optimiser ran.
//!
//! While the engine builds a segment, it keeps the deletions and index changes that concern the old ones in memory, and
//! applies them to the new one at the end. Flushing does not make them durable, and the engine does not read its
//! write-ahead log again. So they stand here as well, and are applied anew when a collection was not closed well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use qdrant_edge::UpdateOperation;

use crate::files;

const FILE: &str = "journal.jsonl";

/// The journal of a collection: a file that exists only while the optimiser runs, an operation a line.
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
    pub(crate) fn of(folder: &Path) -> Self {
        Self { path: folder.join(FILE), open: None }
    }

    /// Whether the optimiser was cut short when the collection was last open.
    pub(crate) fn was_left(&self) -> bool {
        self.path.exists()
    }

    /// From now on, operations are kept.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        files::sync_folder_of(&self.path)?;
        self.open = Some(Open { file, empty: true, synced: true });
        Ok(())
    }

    /// Whether operations must be kept.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether nothing was kept since the journal was begun.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.as_ref().is_none_or(|open| open.empty)
    }

    /// Keeps an operation; durable once the journal is synced.
    pub(crate) fn keep(&mut self, operation: &UpdateOperation) -> io::Result<()> {
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

    /// Everything kept is durable in the engine: the journal goes.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.open = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| files::sync_folder_of(&self.path)),
        }
    }

    /// Calls for each operation that was kept, in order.
    pub(crate) fn replay(&self, mut apply: impl FnMut(UpdateOperation)) -> io::Result<()> {
        let mut lines = BufReader::new(File::open(&self.path)?);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            // A last line without an end was being written when the process died: nobody was answered.
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
            apply(serde_json::from_slice(&line).map_err(io::Error::other)?);
            line.clear();
        }
        Ok(())
    }
}
