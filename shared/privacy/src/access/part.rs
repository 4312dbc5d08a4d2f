//! The parts of an export: tar archives, encrypted, that have their names when all of them are written.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};
use tokio::runtime::{Handle, RuntimeFlavor};
use trust::text::to_hex;
use uuid::Uuid;

use super::database::to_line;
use super::lock::Recipient;
use super::{NewExport, Part};
use crate::error::PrivacyError;

/// The size of a part without another setting: what mail servers take.
pub const DEFAULT_PART_BYTES: usize = 8 * 1024 * 1024;
/// The least size of a part.
pub const MIN_PART_BYTES: usize = 1024 * 1024;
/// The greatest: a part is in memory until it is encrypted.
pub const MAX_PART_BYTES: usize = 256 * 1024 * 1024;
/// The most parts of an export.
pub const MAX_PARTS: usize = 9_999;
/// How the names of complete parts end.
pub const FINAL_ENDING: &str = "age";

/// The first member of each part.
pub(super) const LABEL: &str = "part.json";
/// The format of an export.
pub(super) const FORMAT: &str = "memfleet-access-1";
/// The block size of tar.
const BLOCK: usize = 512;
/// For the label, the end of the archive, and the header of age.
const RESERVED: usize = 4 * 1024;

/// What a part says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Label {
    /// [`FORMAT`].
    pub(super) format: String,
    /// The id of the export.
    pub(super) export: Uuid,
    /// The number of the part, from 1.
    pub(super) part: usize,
    /// How many parts there are. Only the last one says so.
    pub(super) parts: Option<usize>,
}

/// Parts that are being written. Dropped, they are deleted.
#[derive(Debug)]
pub(super) struct Parts {
    export: Uuid,
    recipient: Recipient,
    /// How many bytes of members fit into a part.
    room: usize,
    members: Vec<u8>,
    written: Written,
}

/// Parts that are all written. Those that have no name when this is dropped are deleted.
#[derive(Debug)]
pub(super) struct Written {
    folder: PathBuf,
    parts: Vec<Part>,
    /// The temporary files of those without a name.
    temporary: Vec<PathBuf>,
}

fn failed(action: &'static str, path: &Path, error: impl ToString) -> PrivacyError {
    PrivacyError::File { action, path: path.display().to_string(), problem: error.to_string() }
}

/// Creates a folder for its owner alone. An existing one is left as it is.
fn create_folder(folder: &Path) -> Result<(), PrivacyError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if folder.is_dir() {
                Ok(())
            } else {
                Err(failed("use", folder, "it is no folder"))
            }
        }
        Err(error) => Err(failed("create", folder, error)),
    }
}

impl Parts {
    pub(super) fn create(new: &NewExport, export: Uuid) -> Result<Self, PrivacyError> {
        create_folder(&new.folder)?;
        let part_bytes = new.part_bytes.clamp(MIN_PART_BYTES, MAX_PART_BYTES);
        Ok(Self {
            export,
            recipient: new.recipient.clone(),
            // age adds 16 bytes to each 64 KiB.
            room: part_bytes - part_bytes / 4096 - RESERVED,
            members: Vec::new(),
            written: Written { folder: new.folder.clone(), parts: Vec::new(), temporary: Vec::new() },
        })
    }

    /// Adds a file, of at most a few hundred KiB.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> Result<(), PrivacyError> {
        let member = member(name, content)?;
        if self.members.len() + member.len() > self.room && !self.members.is_empty() {
            self.seal(false)?;
        }
        self.members.extend_from_slice(&member);
        Ok(())
    }

    /// Seals the last part.
    pub(super) fn finish(mut self) -> Result<Written, PrivacyError> {
        self.seal(true)?;
        Ok(self.written)
    }

    fn seal(&mut self, is_last: bool) -> Result<(), PrivacyError> {
        let number = self.written.parts.len() + 1;
        if number > MAX_PARTS {
            return Err(PrivacyError::Refused(format!(
                "the export has more than {MAX_PARTS} parts; export it again with larger parts (--part-size)"
            )));
        }
        let label = Label {
            format: FORMAT.to_owned(),
            export: self.export,
            part: number,
            parts: is_last.then_some(number),
        };
        let mut plain = member(LABEL, &to_line(&label)?)?;
        plain.append(&mut self.members);
        plain.extend_from_slice(&[0; 2 * BLOCK]);
        let temporary = self.written.folder.join(temporary(self.export, number));
        self.written.temporary.push(temporary.clone());
        let recipient = &self.recipient;
        let (bytes, hash) = blocking(|| encrypt(recipient, &plain, &temporary))
            .map_err(|error| failed("write", &temporary, error))?;
        let file = final_name(self.export, number);
        self.written.parts.push(Part { file, bytes, sha256: to_hex(&hash) });
        Ok(())
    }
}

/// A file as a member of a tar archive.
fn member(name: &str, content: &[u8]) -> Result<Vec<u8>, PrivacyError> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_path(name).map_err(|error| failed("add", Path::new(name), error))?;
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(u64::try_from(content.len()).unwrap_or(u64::MAX));
    header.set_cksum();
    let mut member = Vec::with_capacity(BLOCK + content.len().next_multiple_of(BLOCK));
    member.extend_from_slice(header.as_bytes());
    member.extend_from_slice(content);
    member.resize(member.len().next_multiple_of(BLOCK), 0);
    Ok(member)
}

/// Tells a runtime with other threads that this one computes or waits for a disk.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    if matches!(flavor, Ok(RuntimeFlavor::MultiThread)) { tokio::task::block_in_place(work) } else { work() }
}

/// Writes a file that only its owner can read. Gives its length and its hash.
fn encrypt(recipient: &Recipient, plain: &[u8], path: &Path) -> io::Result<(u64, Vec<u8>)> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut out = Hashing { inner: io::BufWriter::new(file), hash: Sha256::new(), bytes: 0 };
    let mut encrypted = recipient.encryptor()?.wrap_output(&mut out)?;
    encrypted.write_all(plain)?;
    encrypted.finish()?;
    out.flush()?;
    out.inner.get_ref().sync_all()?;
    Ok((out.bytes, out.hash.finalize().to_vec()))
}

/// Counts and hashes what is written.
struct Hashing {
    inner: io::BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += u64::try_from(count).unwrap_or(u64::MAX);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Written {
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Gives the parts their names, the first one last: where it is, the others are. No file is replaced.
    pub(super) fn name(&mut self) -> Result<(), PrivacyError> {
        let mut named: Vec<PathBuf> = Vec::new();
        while let Some(temporary) = self.temporary.last() {
            let Some(part) = self.parts.get(self.temporary.len() - 1) else { break };
            let path = self.folder.join(&part.file);
            if let Err(error) = rename(temporary, &path) {
                for path in &named {
                    remove(path);
                }
                return Err(failed("create", &path, error));
            }
            named.push(path);
            self.temporary.pop();
        }
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| {
            named.iter().for_each(|path| remove(path));
            failed("write", &self.folder, error)
        })
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for path in &self.temporary {
            remove(path);
        }
    }
}

/// The name of a part that is being written.
fn temporary(export: Uuid, number: usize) -> String {
    format!(".access-{export}.{number:04}.incomplete")
}

/// The name of a part that is complete.
fn final_name(export: Uuid, number: usize) -> String {
    format!("access-{export}.{number:04}.{FINAL_ENDING}")
}

/// Deletes all parts of an export, complete or not.
pub(super) fn delete_all(folder: &Path, export: Uuid) {
    for number in 1..=MAX_PARTS {
        let paths = [temporary(export, number), final_name(export, number)].map(|name| folder.join(name));
        if !paths.iter().any(|path| path.exists()) {
            break;
        }
        paths.iter().for_each(|path| remove(path));
    }
}

/// Deletes what exports that were interrupted have left in a folder. Nobody can open it but whom they were for.
pub(super) fn delete_left(folder: &Path, exports: &[Uuid]) {
    for export in exports {
        // The first part gets its name last.
        if folder.join(temporary(*export, 1)).exists() {
            delete_all(folder, *export);
        }
    }
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a part of an export that failed cannot be deleted; delete it");
        }
    }
}

/// Renames a file to a name that no other one has.
fn rename(old: &Path, new: &Path) -> io::Result<()> {
    match renameat_with(CWD, old, CWD, new, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // The file system cannot do that in one step. A second name for the same file replaces no other, either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            std::fs::hard_link(old, new)?;
            std::fs::remove_file(old)
        }
        Err(error) => Err(error.into()),
    }
}
