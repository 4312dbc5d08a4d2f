//! Archives: rows of a table in zstd-compressed Parquet files, beside a manifest that is signed.
//!
//! An archive is a folder at the [`Target`]: a file for each table whose rows belong together, such as contexts and their ciphertexts,
//! and `manifest.json`, which is written last. The manifest has the number of rows, the hash and the columns of each file, and the
//! policies that the rows were archived by. It is signed with a key that the database does not have. Nothing is ever overwritten: each
//! attempt has an id of its own.
//!
//! [`write()`] reads back all that it has written. [`read`] believes nothing that it has not checked: the signature, then the hashes, then
//! the rows. Values are as the database has them: what is encrypted there is encrypted here.

mod column;
mod error;
mod file;
mod folder;
mod manifest;
mod receipts;
mod rows;
mod table;
mod target;
mod transfer;
mod value;
mod without;

pub use column::{Column, Kind};
pub use error::ArchiveError;
pub use manifest::{File, Manifest, Policy, Signed};
pub use receipts::MAX_RECEIPT_BYTES;
pub use rows::{MAX_ROWS, Rows};
pub use table::{ENCRYPTED_FIELDS, TABLES, Table, table};
pub use target::{Found, Keys, Listing, Target};
pub use transfer::{
    Contents, Draft, MAX_FILE_BYTES, Written, discard, discard_files, read, read_manifest, write,
};
pub use value::Value;
pub use without::{Old, Rewritten, without_user};
