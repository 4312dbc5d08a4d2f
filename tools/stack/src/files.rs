//! Folders, secrets and logs on disk.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::StackError;
use crate::os_user;

/// Lines of a log that an error carries.
const TAIL_LINES: usize = 20;
/// Bytes at the end of a log that are read for it.
const TAIL_BYTES: u64 = 16 * 1024;

/// Creates the folder and those above it where they are missing, and returns its full path. Other users can enter what
/// is created, whatever the umask says: under root, PostgreSQL runs as one of them.
pub(crate) fn prepare(dir: &Path) -> Result<PathBuf, StackError> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|folder| !folder.exists()).collect();
    let missing: Vec<&Path> = missing.into_iter().filter(|folder| !folder.as_os_str().is_empty()).collect();
    fs::create_dir_all(dir).map_err(|source| StackError::file("create the folder", dir, source))?;
    for folder in missing {
        allow_entry(folder)?;
    }
    fs::canonicalize(dir).map_err(|source| StackError::file("open the folder", dir, source))
}

fn allow_entry(folder: &Path) -> Result<(), StackError> {
    fs::set_permissions(folder, Permissions::from_mode(0o711))
        .map_err(|source| StackError::file("set the permissions of", folder, source))
}

/// Lets only this user enter the folder.
pub(crate) fn make_private(folder: &Path) -> Result<(), StackError> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))
        .map_err(|source| StackError::file("set the permissions of", folder, source))
}

/// A new folder, which is removed when it is dropped. Under root it is where an unprivileged user can enter it.
pub(crate) fn temporary_folder() -> Result<TempDir, StackError> {
    let default = std::env::temp_dir();
    let base = if os_user::is_root() && !os_user::is_reachable_by_all(&default) {
        PathBuf::from("/var/tmp")
    } else {
        default
    };
    let folder = tempfile::Builder::new().prefix("memfleet-").tempdir_in(&base);
    let folder = folder.map_err(|source| StackError::file("create a folder in", &base, source))?;
    allow_entry(folder.path())?;
    Ok(folder)
}

/// Removes a file, if it exists.
pub(crate) fn remove_file(path: &Path) -> Result<(), StackError> {
    removed(path, fs::remove_file(path))
}

/// Removes a folder with all it holds, if it exists.
pub(crate) fn remove_folder(path: &Path) -> Result<(), StackError> {
    removed(path, fs::remove_dir_all(path))
}

fn removed(path: &Path, result: io::Result<()>) -> Result<(), StackError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StackError::file("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a file that only this user can read.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<(), StackError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(content.as_bytes())
    };
    write().map_err(|source| StackError::file("write", path, source))
}

/// The password in the file, or a new one that is written to it: 32 hexadecimal digits, 128 random bits.
pub(crate) fn password(path: &Path) -> Result<String, StackError> {
    match fs::read_to_string(path) {
        Ok(kept) if !kept.trim().is_empty() => return Ok(kept.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(StackError::file("read", path, source)),
    }
    let source = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 16];
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| StackError::file("read", source, error))?;
    let password: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    write_private(path, &password)?;
    Ok(password)
}

/// The log of a server: one file, of which the part since the last start of the server is shown in errors.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) path: PathBuf,
    from: u64,
}

impl Log {
    /// Begins a new log and keeps one earlier one beside it, so that logs do not grow from start to start.
    pub(crate) fn begin(path: PathBuf) -> Self {
        let earlier = path.with_extension("log.previous");
        // If the rename fails, the old log is appended to, which does not prevent the start.
        let _ = fs::rename(&path, &earlier);
        Self { path, from: 0 }
    }

    /// Opens the log for a server that starts now.
    pub(crate) fn open(&mut self) -> Result<File, StackError> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path);
        let file = file.map_err(|source| StackError::file("open the log", &self.path, source))?;
        self.from = file.metadata().map_or(0, |meta| meta.len());
        Ok(file)
    }

    /// The last lines written since [`Log::open`].
    pub(crate) fn tail(&self) -> String {
        let read = || {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.from.max(length.saturating_sub(TAIL_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(bytes)
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        if lines.is_empty() {
            return "(nothing)".to_owned();
        }
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}
