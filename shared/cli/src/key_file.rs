//! Files with keys, which only their owner can read.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use trust::{CipherKey, KeyRing};
use zeroize::Zeroizing;

/// Adds a new random key to a ring's file.
///
/// # Errors
/// If the file cannot be written.
pub fn add_key(ring: &Path, name: &str, version: u32) -> anyhow::Result<()> {
    append(ring, &KeyRing::expose_line(name, &CipherKey::generate(version)?))
        .with_context(|| format!("{} cannot be written", ring.display()))
}

/// Adds a line, in one write, to a file that only its owner can read. A last line that has no end is ended first.
fn append(file: &Path, line: &str) -> std::io::Result<()> {
    let held = std::fs::read(file).map(Zeroizing::new);
    let has_end = held.is_ok_and(|held| held.last().is_none_or(|last| *last == b'\n')) || !file.exists();
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    let text = Zeroizing::new(format!("{}{line}", if has_end { "" } else { "\n" }));
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Writes a file that only its owner can read.
///
/// # Errors
/// If it cannot be written.
pub fn write_private(path: &Path, content: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // The mode above is only that of a file that was not there.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content.as_bytes())
}
