//! Writing and reading archives.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;
use trust::text::to_hex;
use trust::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::error::ArchiveError;
use crate::file::{decode, encode};
use crate::manifest::{File, Manifest, Policy, Signed, VERSION};
use crate::rows::Rows;
use crate::table::table;
use crate::target::Target;
use crate::value::Value;

/// The most bytes of a file, and of the values that it is made of.
pub const MAX_FILE_BYTES: usize = 256 * 1024 * 1024;
/// The most bytes of a manifest.
const MAX_MANIFEST_BYTES: u64 = 4 * 1024 * 1024;
/// The name of a manifest in the folder of its archive.
pub(crate) const MANIFEST: &str = "manifest.json";

/// An archive to write.
#[derive(Debug)]
pub struct Draft {
    /// Its id. Each attempt has one of its own, so that nothing is overwritten.
    pub id: Uuid,
    /// The run of the job.
    pub run: Uuid,
    /// When.
    pub created_at: DateTime<Utc>,
    /// The policies of the rows.
    pub policies: Vec<Policy>,
    /// The rows: first those of the table that is archived, then what belongs to them. Tables without rows are left out.
    pub tables: Vec<Rows>,
}

/// An archive that was written, and read back.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its folder at the target.
    pub location: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// The hash of the manifest.
    pub hash: [u8; 32],
}

impl Written {
    /// The length of its files.
    pub fn bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.bytes).sum()
    }
}

/// An archive that was read, and is as it was written.
#[derive(Debug)]
pub struct Contents {
    /// Its manifest.
    pub manifest: Manifest,
    /// The hash of the manifest.
    pub hash: [u8; 32],
    /// The rows of each file.
    pub tables: Vec<Rows>,
}

impl Contents {
    /// The rows of a table, if it has any.
    pub fn rows(&self, table: &str) -> Option<&Rows> {
        self.tables.iter().find(|rows| rows.table == table)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ArchiveError> {
    spawn_blocking(work)
        .await
        .map_err(|error| ArchiveError::Rows { table: "an archive".to_owned(), problem: error.to_string() })
}

/// Writes an archive: its files, then its manifest; then it reads all of it back and compares it with the rows.
///
/// # Errors
/// [`ArchiveError`] if the archive is not completely there. What was written of it stays: no row of the database names it.
pub async fn write(target: &Target, key: &PrivateKey, mut draft: Draft) -> Result<Written, ArchiveError> {
    let table = draft.tables.first().map(|rows| rows.table.clone()).unwrap_or_default();
    let wrong = |problem: &str| ArchiveError::Rows { table: table.clone(), problem: problem.to_owned() };
    draft.tables.retain(|rows| !rows.is_empty());
    let main = draft.tables.first().filter(|rows| rows.table == table);
    let (first_at, last_at) =
        main.and_then(|rows| rows.times("created_at")).ok_or_else(|| wrong("there are none"))?;
    if draft.tables.iter().any(|rows| rows.size() > MAX_FILE_BYTES) {
        return Err(wrong("their values take too many bytes"));
    }
    let (encoded, tables) = blocking(move || {
        let encoded: Result<Vec<Vec<u8>>, _> = draft.tables.iter().map(encode).collect();
        (encoded, draft.tables)
    })
    .await?;
    let encoded = encoded.map_err(|error| wrong(&error.to_string()))?;
    let files: Vec<File> = tables.iter().zip(&encoded).map(|(rows, content)| file(rows, content)).collect();
    let manifest = Manifest {
        version: VERSION,
        id: draft.id,
        table: table.clone(),
        created_at: draft.created_at,
        run: draft.run,
        policies: draft.policies,
        rows: tables.first().map_or(0, |rows| u64::try_from(rows.len()).unwrap_or(u64::MAX)),
        users: tables.first().map(users).unwrap_or_default(),
        first_at,
        last_at,
        files,
    };
    let location = manifest.location();
    for (file, content) in manifest.files.iter().zip(encoded) {
        target.put(&format!("{location}/{}", file.name), content).await?;
    }
    let signed = Signed::new(&manifest, key).map_err(|error| wrong(&error.to_string()))?;
    let content = serde_json::to_vec(&signed).map_err(|error| wrong(&error.to_string()))?;
    let path = format!("{location}/{MANIFEST}");
    target.put(&path, content).await?;
    let read = read(target, &[key.public()], &location, Some(&signed.hash())).await?;
    if read.tables != tables {
        return Err(ArchiveError::changed(path, "its rows are not those of the database"));
    }
    Ok(Written { location, manifest, hash: read.hash })
}

/// Deletes an archive that nothing names and nobody will name. Its manifest goes first: what is left of it then is no archive.
///
/// # Errors
/// [`ArchiveError`] if a file cannot be deleted. One that is gone is no error.
pub async fn discard(target: &Target, written: &Written) -> Result<(), ArchiveError> {
    let files: Vec<String> = written.manifest.files.iter().map(|file| file.name.clone()).collect();
    discard_files(target, &written.location, &files).await
}

/// The same of an archive whose files are named but for its manifest.
///
/// # Errors
/// As [`discard`].
pub async fn discard_files(target: &Target, location: &str, files: &[String]) -> Result<(), ArchiveError> {
    for name in std::iter::once(MANIFEST).chain(files.iter().map(String::as_str)) {
        match target.delete(&format!("{location}/{name}")).await {
            Ok(()) | Err(ArchiveError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn file(rows: &Rows, content: &[u8]) -> File {
    File {
        name: format!("{}.parquet", rows.table),
        table: rows.table.clone(),
        rows: u64::try_from(rows.len()).unwrap_or(u64::MAX),
        bytes: u64::try_from(content.len()).unwrap_or(u64::MAX),
        sha256: sha256(content),
        columns: rows.columns().to_vec(),
    }
}

fn users(rows: &Rows) -> Vec<i32> {
    let mut users: Vec<i32> = (0..rows.len())
        .filter_map(|row| match rows.get(row, "user_id") {
            Value::Integer(user) => i32::try_from(*user).ok(),
            Value::Null
            | Value::Boolean(_)
            | Value::Double(_)
            | Value::Text(_)
            | Value::Uuid(_)
            | Value::Time(_)
            | Value::Bytes(_) => None,
        })
        .collect();
    users.sort_unstable();
    users.dedup();
    users
}

fn sha256(content: &[u8]) -> String {
    to_hex(&Sha256::digest(content))
}

/// A manifest that one of these keys has signed, and its hash.
async fn read_signed(
    target: &Target,
    keys: &[PublicKey],
    path: &str,
) -> Result<(Manifest, [u8; 32]), ArchiveError> {
    let content = target.get(path, MAX_MANIFEST_BYTES).await?;
    let signed: Signed = serde_json::from_slice(&content)
        .map_err(|error| ArchiveError::changed(path, format!("it is no manifest: {error}")))?;
    let manifest = signed.verify(keys).map_err(|problem| ArchiveError::changed(path, problem))?;
    Ok((manifest, signed.hash()))
}

/// Reads the manifest of an archive and not its files. Gives its hash, too.
///
/// # Errors
/// [`ArchiveError`] if there is none, or it is not what one of these keys has signed for an archive in this place.
pub async fn read_manifest(
    target: &Target,
    keys: &[PublicKey],
    location: &str,
) -> Result<(Manifest, [u8; 32]), ArchiveError> {
    let (manifest, hash) = read_signed(target, keys, &format!("{location}/{MANIFEST}")).await?;
    check_place(&manifest, location)?;
    Ok((manifest, hash))
}

/// A target may read a file by several paths, and only one of them is that of its archive.
fn check_place(manifest: &Manifest, location: &str) -> Result<(), ArchiveError> {
    let place = manifest.location();
    if place == location {
        return Ok(());
    }
    let problem = format!("its manifest is of the archive {}, which is in {place}", manifest.id);
    Err(ArchiveError::changed(format!("{location}/{MANIFEST}"), problem))
}

/// Reads an archive and checks all of it: that one of these keys has signed its manifest, and that its files are those of the manifest,
/// with as many rows. `expected` is the hash of its manifest in the database.
///
/// # Errors
/// [`ArchiveError`] if a file is missing, or something is not as it was written.
pub async fn read(
    target: &Target,
    keys: &[PublicKey],
    location: &str,
    expected: Option<&[u8]>,
) -> Result<Contents, ArchiveError> {
    let path = format!("{location}/{MANIFEST}");
    let (manifest, hash) = read_signed(target, keys, &path).await?;
    if expected.is_some_and(|expected| *expected != hash) {
        return Err(ArchiveError::changed(&path, "its manifest is not the one that the database names"));
    }
    check_place(&manifest, location)?;
    check_tables(&manifest).map_err(|problem| ArchiveError::changed(&path, problem))?;
    let mut tables = Vec::with_capacity(manifest.files.len());
    for file in &manifest.files {
        let path = format!("{location}/{}", file.name);
        let most = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX);
        let content = target.get(&path, most).await?;
        tables.push(check(path, file.clone(), content).await?);
    }
    let counted = tables.first().map_or(0, |rows| u64::try_from(rows.len()).unwrap_or(u64::MAX));
    if counted != manifest.rows || tables.first().is_none_or(|rows| rows.table != manifest.table) {
        return Err(ArchiveError::changed(&path, "its first file is not of its table"));
    }
    if tables.iter().flat_map(users).any(|user| !manifest.users.contains(&user)) {
        return Err(ArchiveError::changed(&path, "its files have rows of users whom it does not name"));
    }
    Ok(Contents { manifest, hash, tables })
}

/// Checks that rows of a manifest's table can be archived, and that its files are of this table first, and then of what belongs to its rows.
fn check_tables(manifest: &Manifest) -> Result<(), String> {
    let known = table(&manifest.table)
        .ok_or_else(|| format!("rows of the table {:?} are not archived", manifest.table))?;
    for (place, file) in manifest.files.iter().enumerate() {
        let belongs =
            if place == 0 { file.table == known.name } else { known.parts.contains(&file.table.as_str()) };
        let is_second = manifest.files.iter().take(place).any(|other| other.table == file.table);
        if !belongs || is_second || file.name != format!("{}.parquet", file.table) {
            return Err(format!(
                "its file {:?} of the table {:?} does not belong to {}",
                file.name, file.table, known.name
            ));
        }
    }
    Ok(())
}

/// The rows of a file. Nothing of it is decoded before its hash is that of the manifest.
async fn check(path: String, file: File, content: Bytes) -> Result<Rows, ArchiveError> {
    blocking(move || {
        let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        if bytes != file.bytes {
            let problem = format!("it has {bytes} bytes, and the manifest says {}", file.bytes);
            return Err(ArchiveError::changed(path, problem));
        }
        if sha256(&content) != file.sha256 {
            return Err(ArchiveError::changed(path, "its hash is not that of the manifest"));
        }
        let count = usize::try_from(file.rows).unwrap_or(usize::MAX);
        decode(&file.table, &file.columns, count, content).map_err(|error| ArchiveError::changed(path, error))
    })
    .await?
}
