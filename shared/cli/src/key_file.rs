//! Key files, readable only by their owner.

use std::fs::{OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use trust::{CipherKey, KeyRing};
use zeroize::Zeroizing;

use crate::out;

/// Adds a new random key to a key ring file.
///
/// # Errors
/// If the file cannot be written.
pub fn add_key(ring: &Path, name: &str, version: u32) -> anyhow::Result<()> {
    append(ring, &KeyRing::expose_line(name, &CipherKey::generate(version)?))
        .with_context(|| format!("cannot write {}", ring.display()))
}

/// Appends a line in one write to a file that only its owner can read. Terminates an unterminated last line first.
fn append(file: &Path, line: &str) -> std::io::Result<()> {
    let content = std::fs::read(file).map(Zeroizing::new);
    let has_end =
        content.is_ok_and(|content| content.last().is_none_or(|last| *last == b'\n')) || !file.exists();
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    let text = Zeroizing::new(format!("{}{line}", if has_end { "" } else { "\n" }));
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Writes a new key to the file, which only its owner can read, or prints it if there is none.
///
/// # Errors
/// If the file exists already or cannot be written.
pub fn write_new(file: Option<&Path>, line: &str) -> anyhow::Result<()> {
    let Some(path) = file else {
        out!("{line}");
        return Ok(());
    };
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(line.as_bytes())?;
        file.sync_all()
    };
    match write() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} exists, and a key is never overwritten; choose another file", path.display())
        }
        done => done.with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Writes a file that only its owner can read.
///
/// # Errors
/// If it cannot be written.
pub fn write_private(path: &Path, content: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // The mode above applies only if the file did not exist.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content.as_bytes())
}
