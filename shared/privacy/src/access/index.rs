//! The index of an export: what it has, and what was left out and why.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use contract::UserId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::part::FORMAT;
use super::sink::Entries;

/// A table, a collection, a stream or the archives in an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The store, such as `postgresql`.
    pub store: String,
    /// Its name there.
    pub name: String,
    /// Its file of JSON lines. None if there is nothing of the person.
    pub file: Option<String>,
    /// The number of lines.
    pub rows: u64,
    /// The length of the file.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: Option<String>,
}

/// Something that is not in an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The store.
    pub store: String,
    /// The table, collection or stream.
    pub name: String,
    /// What of it, such as a column. All of it if none.
    pub what: Option<String>,
    /// Why.
    pub reason: String,
}

/// The index of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// The format of the export.
    pub format: String,
    /// The id of its request.
    pub export: Uuid,
    /// The id of the person.
    pub user: i32,
    /// When its snapshot was taken.
    pub exported_at: DateTime<Utc>,
    /// What it has.
    pub exported: Vec<Exported>,
    /// What it does not have.
    pub left_out: Vec<LeftOut>,
    /// How many encrypted fields could not be decrypted: their lines have `unreadable` and the reason.
    pub unreadable_fields: u64,
}

/// What stands before the lists of the readable index.
const INTRODUCTION: &str = "\
Each file has a line of JSON for each row, point or message. The files are those of tables (postgresql, key-store), of the vector store
(qdrant), of archives, and of message streams (nats). Encrypted fields are in postgresql/public.encrypted_fields.jsonl in clear, each
with its table, column and row; the row itself has \"$encrypted\" in its place. A message whose publisher encrypted it has its body as it was
sent. Times are in UTC. index.json has the same as this file, and the SHA-256 of each file.
";

impl Index {
    pub(super) fn new(
        export: Uuid,
        user: UserId,
        exported_at: DateTime<Utc>,
        entries: Entries,
        unreadable_fields: u64,
    ) -> Self {
        let Entries { exported, left_out } = entries;
        let (format, user) = (FORMAT.to_owned(), user.get());
        Self { format, export, user, exported_at, exported, left_out, unreadable_fields }
    }

    /// How many rows, points and messages the export has.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.exported.iter().map(|one| one.rows).sum()
    }

    /// The number of rows by store and name, without those that have none.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        let of = |one: &Exported| (format!("{} {}", one.store, one.name), one.rows);
        self.exported.iter().filter(|one| one.rows > 0).map(of).collect()
    }

    /// The index for people.
    pub(super) fn text(&self) -> String {
        let time = self.exported_at.to_rfc3339_opts(SecondsFormat::Secs, true);
        let mut text = format!(
            "All that is stored of user {} at {time}\nExport {}\n\n{INTRODUCTION}\nExported:\n",
            self.user, self.export
        );
        for one in &self.exported {
            let file = one.file.as_deref().unwrap_or("nothing of you");
            let _ = writeln!(text, "  {:<11} {:<40} {:>9}  {file}", one.store, one.name, one.rows);
        }
        if self.unreadable_fields > 0 {
            let count = self.unreadable_fields;
            let _ = writeln!(text, "\n{count} encrypted fields could not be decrypted; their lines say why.");
        }
        text.push_str("\nLeft out:\n");
        for one in &self.left_out {
            let what = one.what.as_deref().map(|what| format!(", {what}")).unwrap_or_default();
            let _ = writeln!(text, "  {} {}{what}: {}", one.store, one.name, one.reason);
        }
        text
    }
}
