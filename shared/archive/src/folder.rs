//! A folder as a target. Nothing in it is read, listed, written or deleted by way of a link: what a link names is outside of the folder, or
//! in it a second time.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use rustix::fs::OFlags;
use uuid::Uuid;

use crate::table::table;
use crate::target::Found;
use crate::transfer::MANIFEST;

/// The folder of all archives.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    /// Without links.
    root: PathBuf,
}

/// What a folder has, without what is in its folders.
#[derive(Debug, Default)]
pub(crate) struct Level {
    /// Folders that may have archives.
    pub(crate) folders: Vec<String>,
    /// Files of archives.
    pub(crate) files: Vec<Found>,
    pub(crate) links: Vec<String>,
    /// Files that could not be looked at, and why.
    pub(crate) unreadable: Vec<String>,
    /// How many entries it has, of any kind.
    pub(crate) seen: usize,
}

impl Folder {
    pub(crate) fn open(folder: &str) -> Result<Self> {
        Ok(Self { root: fs::canonicalize(folder)? })
    }

    /// The place of a file or a folder, which need not be there. No part of its path is a link.
    pub(crate) fn place(&self, path: &str) -> Result<PathBuf> {
        let mut place = self.root.clone();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if matches!(part, "." | "..") {
                return Err(Error::other("its path has the part . or .."));
            }
            place.push(part);
            match fs::symlink_metadata(&place) {
                Ok(found) if found.is_symlink() => {
                    let link = place.display();
                    return Err(Error::other(format!("{link} is a link, and links are not followed")));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(place)
    }

    /// The content of a regular file. Of one with more bytes than `most`, their number.
    pub(crate) fn read(&self, file: &str, most: u64) -> Result<std::result::Result<Vec<u8>, u64>> {
        let place = self.place(file)?;
        let (opened, found) = open_regular(&place)?;
        if found.len() > most {
            return Ok(Err(found.len()));
        }
        let mut content = Vec::with_capacity(usize::try_from(found.len()).unwrap_or_default());
        opened.take(most.saturating_add(1)).read_to_end(&mut content)?;
        let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        Ok(if bytes > most { Err(bytes) } else { Ok(content) })
    }

    /// What a folder has, unless it has more than `most` entries.
    pub(crate) fn level(&self, path: &str, most: usize) -> Result<Level> {
        let depth = path.split('/').filter(|part| !part.is_empty()).count();
        let mut level = Level::default();
        for entry in fs::read_dir(self.place(path)?)? {
            let entry = entry?;
            level.seen += 1;
            if level.seen > most {
                return Err(Error::other("it has more than a million of them"));
            }
            let (Ok(name), kind) = (entry.file_name().into_string(), entry.file_type()?) else { continue };
            let inner = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            if kind.is_symlink() {
                level.links.push(inner);
            } else if kind.is_dir() && depth < DEPTH && fits(depth, &name) {
                level.folders.push(inner);
            } else if kind.is_file() && depth == DEPTH && fits(depth, &name) {
                match found(inner, entry.metadata()) {
                    Ok(found) => level.files.extend(found),
                    Err(error) => level.unreadable.push(format!("{path}/{name}: {error}")),
                }
            }
        }
        Ok(level)
    }

    /// Deletes a regular file.
    pub(crate) fn delete(&self, file: &str) -> Result<()> {
        let place = self.place(file)?;
        is_regular(&fs::symlink_metadata(&place)?)?;
        // A part of its path may have become a link meanwhile.
        let parent = place.parent().unwrap_or(&self.root);
        let real = fs::canonicalize(parent)?;
        if real != parent || !real.starts_with(&self.root) {
            return Err(Error::other("it is outside of the folder of archives"));
        }
        fs::remove_file(&place)
    }
}

/// Opens a regular file. What has its name may be another thing a moment later, so the open file is looked at. A pipe is opened without waiting
/// for its writer, and a link is not followed.
fn open_regular(place: &Path) -> Result<(File, Metadata)> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(place)?;
    let found = opened.metadata()?;
    is_regular(&found)?;
    Ok((opened, found))
}

fn is_regular(found: &Metadata) -> Result<()> {
    if found.is_file() { Ok(()) } else { Err(Error::other("it is no regular file")) }
}

/// A file that was listed. None if it was deleted meanwhile, or something else took its place.
fn found(path: String, found: Result<Metadata>) -> Result<Option<Found>> {
    let found = match found {
        Ok(found) if found.is_file() => found,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // A file may have a time that no calendar has.
    let age = found.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
    let modified = DateTime::from_timestamp(seconds, age.subsec_nanos()).unwrap_or(DateTime::<Utc>::MAX_UTC);
    Ok(Some(Found { path, bytes: found.len(), modified }))
}

/// In how many folders a file of an archive is.
const DEPTH: usize = 3;

/// Whether a path is that of a file of an archive: `<table>/<YYYY-MM>/<id>/manifest.json`, or a `.parquet` beside it.
pub(crate) fn is_of_archive(path: &str) -> bool {
    path.split('/').count() == DEPTH + 1 && path.split('/').enumerate().all(|(depth, part)| fits(depth, part))
}

fn fits(depth: usize, name: &str) -> bool {
    match depth {
        0 => table(name).is_some(),
        1 => name.bytes().map(|byte| if byte.is_ascii_digit() { b'0' } else { byte }).eq(*b"0000-00"),
        2 => Uuid::try_parse(name).is_ok_and(|id| id.to_string() == name),
        DEPTH => {
            name == MANIFEST
                || Path::new(name).extension().is_some_and(|ending| ending == "parquet")
                    && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        }
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::process::Command;

    use super::*;

    /// Something that takes the place of a file after its name was looked at.
    #[test]
    fn only_a_regular_file_is_opened_whatever_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("file"), "content").unwrap();
        assert_eq!(open_regular(&place("file")).unwrap().1.len(), 7);
        // Nobody writes into the pipe: whoever waits for that waits for ever.
        assert!(Command::new("mkfifo").arg(place("pipe")).status().unwrap().success());
        std::os::unix::fs::symlink(place("file"), place("link")).unwrap();
        for other in ["pipe", "link", ""] {
            assert!(open_regular(&place(other)).is_err(), "{other}");
        }
    }
}
