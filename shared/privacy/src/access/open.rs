//! Opening an export: its parts are decrypted and checked, and its files put together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};
use trust::text::to_hex;
use uuid::Uuid;

use super::index::{Exported, Index};
use super::lock::Opener;
use super::part::{FORMAT, LABEL, Label, MAX_PART_BYTES, MAX_PARTS};
use super::sink::{INDEX, PIECE, READABLE_INDEX, file_of};
use crate::error::PrivacyError;

/// The most bytes of a label.
const MAX_LABEL: u64 = 4 * 1024;
/// The most bytes of an index.
const MAX_INDEX: u64 = 64 * 1024 * 1024;

/// An export that was opened.
#[derive(Clone, Debug, Serialize)]
pub struct Opened {
    /// The id of the export.
    pub export: Uuid,
    /// How many parts it has.
    pub parts: usize,
    /// How many files it has, without the index.
    pub files: usize,
    /// How many rows, points and messages it has.
    pub rows: u64,
}

fn failed(action: &'static str, path: &Path, error: impl ToString) -> PrivacyError {
    PrivacyError::File { action, path: path.display().to_string(), problem: error.to_string() }
}

fn wrong(path: &Path, problem: impl ToString) -> PrivacyError {
    PrivacyError::NotGenuine(format!("{}: {}", path.display(), problem.to_string()))
}

/// Decrypts the parts of an export, in whatever order they are given, checks that all of them are there and undamaged, and writes their files into a
/// folder, which must be new or empty. Without all of it, nothing is written there. Needs no server.
///
/// # Errors
/// [`PrivacyError::NotGenuine`] if a part is damaged, of another export or encrypted for somebody else; [`PrivacyError::Refused`] if one is missing
/// or given twice, or the folder is not empty; [`PrivacyError::File`] if something cannot be read or written.
pub fn open(parts: &[PathBuf], opener: &Opener, folder: &Path) -> Result<Opened, PrivacyError> {
    check_folder(folder)?;
    let (export, parts) = in_order(parts, opener)?;
    let staging = Staging::create(folder)?;
    let mut pieces = BTreeMap::new();
    for path in &parts {
        extract(path, opener, &staging.path, &mut pieces)?;
    }
    let index = index(&staging.path)?;
    let mut files: BTreeSet<&String> = BTreeSet::new();
    for one in &index.exported {
        if one.file.as_ref().is_some_and(|file| !files.insert(file)) {
            return Err(PrivacyError::NotGenuine("the index of the export has a file twice".to_owned()));
        }
        check(one, &staging.path)?;
    }
    if let Some(more) =
        pieces.keys().find(|file| !files.contains(file) && ![INDEX, READABLE_INDEX].contains(&file.as_str()))
    {
        return Err(PrivacyError::NotGenuine(format!(
            "the export has the file {more}, and its index does not name it"
        )));
    }
    staging.finish(folder)?;
    Ok(Opened { export, parts: parts.len(), files: files.len(), rows: index.rows() })
}

fn check_folder(folder: &Path) -> Result<(), PrivacyError> {
    let is_empty = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => return Err(failed("use", folder, error)),
    };
    if is_empty {
        return Ok(());
    }
    Err(PrivacyError::Refused(format!(
        "{} is not empty, and nothing in it is replaced; name a new folder",
        folder.display()
    )))
}

/// The parts in their order. All of one export, and none missing.
fn in_order(paths: &[PathBuf], opener: &Opener) -> Result<(Uuid, Vec<PathBuf>), PrivacyError> {
    if paths.is_empty() || paths.len() > MAX_PARTS {
        return Err(PrivacyError::Refused(format!("an export has 1 to {MAX_PARTS} parts")));
    }
    let mut found: BTreeMap<usize, &PathBuf> = BTreeMap::new();
    let (mut export, mut count) = (None, None);
    for path in paths {
        let label = label(path, opener)?;
        if *export.get_or_insert(label.export) != label.export {
            return Err(PrivacyError::Refused(format!(
                "{} is a part of another export than {}; give the parts of one export",
                path.display(),
                paths[0].display()
            )));
        }
        if let Some(other) = found.insert(label.part, path) {
            let (part, one, two) = (label.part, other.display(), path.display());
            return Err(PrivacyError::Refused(format!(
                "{one} and {two} are both part {part}; give one of them"
            )));
        }
        count = count.or(label.parts);
    }
    let Some(count) = count else {
        return Err(PrivacyError::Refused(format!(
            "the last part is missing: {} parts are given, and there are more",
            found.len()
        )));
    };
    let missing: Vec<String> =
        (1..=count).filter(|part| !found.contains_key(part)).take(10).map(|part| part.to_string()).collect();
    if !missing.is_empty() {
        return Err(PrivacyError::Refused(format!(
            "of {count} parts, these are missing: {}; give all of them",
            missing.join(", ")
        )));
    }
    let Some(export) = export else { return Err(PrivacyError::Refused("no part is given".to_owned())) };
    Ok((export, found.into_values().cloned().collect()))
}

/// The tar archive of a part. Anybody can encrypt a file for a public key, so that nothing of it is believed, and all of it is bounded.
fn decrypted(path: &Path, opener: &Opener) -> Result<Archive<impl Read + use<>>, PrivacyError> {
    let file = File::open(path).map_err(|error| failed("read", path, error))?;
    let mut input = BufReader::with_capacity(MAX_HEADER, file.take(MAX_FILE));
    // The library reads the header line by line, and each time from its beginning.
    let header = input.fill_buf().map_err(|error| failed("read", path, error))?;
    if !header.windows(END_OF_HEADER.len()).any(|part| part == END_OF_HEADER) {
        return Err(wrong(path, "it is no file of the format age, or it is damaged"));
    }
    let plain = opener.open(input).map_err(|problem| wrong(path, problem))?;
    Ok(Archive::new(plain))
}

/// The most bytes of a part: what is encrypted is a little longer.
const MAX_FILE: u64 = (MAX_PART_BYTES + MAX_PART_BYTES / 1024) as u64;
/// The most bytes of the header of a part, and how its last line begins.
const MAX_HEADER: usize = 64 * 1024;
const END_OF_HEADER: &[u8] = b"\n--- ";

const DAMAGED: &str = "it is damaged; get this part again";

fn label(path: &Path, opener: &Opener) -> Result<Label, PrivacyError> {
    let mut archive = decrypted(path, opener)?;
    let damaged = || wrong(path, DAMAGED);
    let entry = archive
        .entries()
        .map_err(|_| damaged())?
        .raw(true)
        .next()
        .ok_or_else(damaged)?
        .map_err(|_| damaged())?;
    let mut content = Vec::new();
    entry.take(MAX_LABEL).read_to_end(&mut content).map_err(|_| damaged())?;
    let label: Label =
        serde_json::from_slice(&content).map_err(|_| wrong(path, "it is no part of an export"))?;
    if label.format != FORMAT || label.part == 0 || label.parts.is_some_and(|parts| parts != label.part) {
        return Err(wrong(
            path,
            "it is a part of an export of another version of memfleet; open it with that one",
        ));
    }
    Ok(label)
}

/// Writes the pieces of a part to the ends of their files. `pieces`: how many each file has.
fn extract(
    path: &Path,
    opener: &Opener,
    folder: &Path,
    pieces: &mut BTreeMap<String, u32>,
) -> Result<(), PrivacyError> {
    let damaged = || wrong(path, DAMAGED);
    let mut archive = decrypted(path, opener)?;
    // Raw: no member says something of another one.
    for entry in archive.entries().map_err(|_| damaged())?.raw(true) {
        let mut entry = entry.map_err(|_| damaged())?;
        let name = String::from_utf8(entry.path_bytes().into_owned()).map_err(|_| damaged())?;
        if name == LABEL {
            continue;
        }
        let (file, number) = file_of(&name);
        let is_regular = entry.header().entry_type() == EntryType::Regular;
        let next = pieces.entry(file.to_owned()).or_insert(0);
        let is_small = entry.size() <= u64::try_from(PIECE).unwrap_or(u64::MAX);
        if !is_regular || !is_small || !is_safe(file) || number != *next {
            return Err(wrong(path, "it has a file that no export has"));
        }
        *next += 1;
        let out = folder.join(file);
        if let Some(parent) = out.parent() {
            let created = DirBuilder::new().recursive(true).mode(0o700).create(parent);
            created.map_err(|error| failed("create", parent, error))?;
        }
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&out);
        let mut opened = opened.map_err(|error| failed("write", &out, error))?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|_| damaged())?;
        std::io::Write::write_all(&mut opened, &content).map_err(|error| failed("write", &out, error))?;
    }
    // What is after the last file is checked, too.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).map_err(|_| damaged())?;
    Ok(())
}

/// Whether a name is that of a file in the folder, one folder deep at most.
fn is_safe(name: &str) -> bool {
    let is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    name.split('/').count() <= 2 && name.split('/').all(is_plain)
}

fn index(folder: &Path) -> Result<Index, PrivacyError> {
    let path = folder.join(INDEX);
    let file =
        File::open(&path).map_err(|_| PrivacyError::NotGenuine("the export has no index".to_owned()))?;
    let mut content = Vec::new();
    file.take(MAX_INDEX).read_to_end(&mut content).map_err(|error| failed("read", &path, error))?;
    serde_json::from_slice(&content).map_err(|_| {
        PrivacyError::NotGenuine("the index of the export is not one that this program writes".to_owned())
    })
}

/// Compares a file with its line in the index.
fn check(one: &Exported, folder: &Path) -> Result<(), PrivacyError> {
    let (Some(name), Some(expected)) = (&one.file, &one.sha256) else { return Ok(()) };
    let differs = || {
        PrivacyError::NotGenuine(format!(
            "the file {name} of the export is not what its index says; export it again"
        ))
    };
    if !is_safe(name) {
        return Err(differs());
    }
    let mut file = File::open(folder.join(name)).map_err(|_| differs())?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = file.read(&mut buffer).map_err(|error| failed("read", &folder.join(name), error))?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    if to_hex(&hash.finalize()) == *expected { Ok(()) } else { Err(differs()) }
}

/// The folder beside the one that is asked for, until all is in it. Dropped before that, it is deleted.
struct Staging {
    path: PathBuf,
    is_finished: bool,
}

impl Staging {
    fn create(folder: &Path) -> Result<Self, PrivacyError> {
        let name = folder
            .file_name()
            .ok_or_else(|| failed("create", folder, "it has no name; name a new folder"))?;
        let path = folder.with_file_name(format!(".{}.{}", name.to_string_lossy(), Uuid::new_v4()));
        let created = DirBuilder::new().mode(0o700).create(&path);
        created.map_err(|error| failed("create", &path, error))?;
        Ok(Self { path, is_finished: false })
    }

    fn finish(mut self, folder: &Path) -> Result<(), PrivacyError> {
        fs::rename(&self.path, folder).map_err(|error| failed("create", folder, error))?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a folder with plain text cannot be deleted; delete it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        for name in ["index.json", "nats/CONTEXT.jsonl", "postgresql/public.users.jsonl"] {
            assert!(is_safe(name), "{name}");
        }
        for name in ["../x", "/x", "a/../x", "a//x", "", ".x", "a/b/c", "a\0b", "a b"] {
            assert!(!is_safe(name), "{name}");
        }
    }
}
