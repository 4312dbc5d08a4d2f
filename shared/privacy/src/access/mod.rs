//! The export of all that is stored of a person, encrypted for the person (GDPR, articles 15 and 20).
//!
//! An export reads the tables of the [`catalogue`](crate::catalogue) in one snapshot, and the other stores while the transaction of the snapshot
//! is open: the erasure of the person waits for it ([`fence`](crate::fence)), and an export does not begin once the person is fenced. What is not
//! exported is named in the index, with the reason.
//!
//! An export is one or more *parts*. Each is a tar archive in a file of the format age, complete in itself: the program `age` opens it, too.
//! Plain text is never written to a disk. A part gets its name when the request is completed, the first part last.

mod archives;
mod database;
mod index;
mod lock;
mod messages;
mod open;
mod part;
mod plan;
mod points;
mod request;
mod secrets;
mod sink;

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use config::Settings;
use contract::UserId;
use serde::Serialize;
use store::Connection;
use uuid::Uuid;

use crate::catalogue::{KEY_STORE_TABLES, TABLES};
use crate::crash;
use crate::error::PrivacyError;
use crate::process::Stores;
use crate::stores;

pub use index::{Exported, Index, LeftOut};
pub use lock::{MAX_PASSPHRASE, MIN_PASSPHRASE, Opener, Recipient};
pub use open::{Opened, open};
pub use part::{DEFAULT_PART_BYTES, FINAL_ENDING, MAX_PART_BYTES, MAX_PARTS, MIN_PART_BYTES};
pub use plan::{Plan, plan};

use secrets::Secrets;
use sink::Sink;

/// What to export, and where to.
#[derive(Debug)]
pub struct NewExport {
    /// The person.
    pub user: UserId,
    /// The service that asks for it, 1 to 64 bytes.
    pub service: String,
    /// Why, at most 2,048 characters.
    pub reason: Option<String>,
    /// The folder of the parts. It is created for its owner alone if it does not exist.
    pub folder: PathBuf,
    /// Who can open it.
    pub recipient: Recipient,
    /// The most bytes of a part, [`MIN_PART_BYTES`] to [`MAX_PART_BYTES`].
    pub part_bytes: usize,
}

/// A complete export.
#[derive(Clone, Debug, Serialize)]
pub struct Export {
    /// The id of its request.
    pub request: Uuid,
    /// When its snapshot was taken.
    pub exported_at: DateTime<Utc>,
    /// Its parts, in their order.
    pub parts: Vec<Part>,
    /// How many rows, points and messages it has.
    pub rows: u64,
    /// How many encrypted fields could not be decrypted. They are named in the export.
    pub unreadable: u64,
}

/// A part of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The name of its file.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// Exports all that is stored of a person. The request is `in_progress` from before the first store is read, and completed with the hashes of the
/// parts before the first one has its name.
///
/// # Errors
/// [`PrivacyError::Refused`] for the platform, an unknown or erased person, one whose erasure is under way, or if another export of the person
/// runs; [`PrivacyError::Away`] if a store that may have data of the person cannot be used; [`PrivacyError::File`] if a part cannot be written.
/// The request is `failed` then, and no part is left.
pub async fn export(settings: &Settings, new: NewExport) -> Result<Export, PrivacyError> {
    let mut stores = Stores::open(settings).await?;
    let request::Filed { id: request, interrupted } = request::file(&mut stores.database, &new).await?;
    part::delete_left(&new.folder, &interrupted);
    let exported = run(settings, &mut stores, &new, request).await;
    if let Err(error) = &exported
        && let Err(lost) = request::fail(&mut stores.database, new.user, request, error).await
    {
        tracing::warn!(%request, error = %lost, "cannot note that an export failed");
    }
    exported
}

/// Carries out an export that was filed before and that the process `run` has taken. What an attempt that was killed has left in its folder, which
/// has nothing else, is deleted first. The request is to be given back afterwards, also if it is complete: one that is not may lack parts.
///
/// # Errors
/// As [`export`]. The request stays `in_progress`, and no part is left.
pub(crate) async fn carry_out(
    settings: &Settings,
    new: &NewExport,
    request: Uuid,
    by: Uuid,
) -> Result<Export, PrivacyError> {
    // Its session has the lock of the person, which goes with it.
    let mut stores = Stores::open(settings).await?;
    if let Err(refused) = request::begin(&mut stores.database, new.user, request, by).await {
        // What an earlier try has left would stay once the person is erased.
        part::delete_left(&new.folder, &[request]);
        return Err(refused);
    }
    part::delete_all(&new.folder, request);
    run(settings, &mut stores, new, request).await
}

async fn run(
    settings: &Settings,
    stores: &mut Stores,
    new: &NewExport,
    request: Uuid,
) -> Result<Export, PrivacyError> {
    let mut sink = Sink::create(new, request)?;
    // Ends, and with it the hold on an erasure, when it is dropped.
    let mut snapshot = stores::operator(&settings.postgres.url).await?;
    database::begin(&mut snapshot).await?;
    request::check_open(&mut snapshot, new.user).await?;
    let exported_at = Utc::now();
    let mut secrets = Secrets::new(&settings.keys, new.user);
    read_all(stores, &mut snapshot, &mut secrets, new.user, &mut sink).await?;
    let index = Index::new(request, new.user, exported_at, sink.take_entries(), secrets.unreadable());
    let mut written = sink.finish(&index)?;
    crash::reach_export("written");
    let export = Export {
        request,
        exported_at,
        parts: written.parts().to_vec(),
        rows: index.rows(),
        unreadable: index.unreadable_fields,
    };
    // If it ended meanwhile, an erasure has not waited for this export.
    database::is_open(&mut snapshot).await?;
    request::complete(&mut stores.database, new, &export, &index).await?;
    crash::reach_export("completed");
    written.name()?;
    drop(snapshot);
    Ok(export)
}

/// Reads every store, one after the other.
async fn read_all(
    stores: &mut Stores,
    snapshot: &mut Connection,
    secrets: &mut Secrets,
    user: UserId,
    sink: &mut Sink,
) -> Result<(), PrivacyError> {
    for entry in TABLES {
        database::export(snapshot, database::MAIN, entry, user, secrets, sink).await?;
    }
    crash::reach_export("tables");
    let (_, key_store) = stores.databases().await?;
    for entry in KEY_STORE_TABLES {
        database::export(key_store, database::KEY_STORE, entry, user, secrets, sink).await?;
    }
    points::export(stores, snapshot, user, sink).await?;
    archives::export(&stores.settings, snapshot, user, secrets, sink).await?;
    messages::export(&stores.jetstream().await?, user, sink).await
}
