//! An archive written anew without the rows of a user.

use trust::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::error::ArchiveError;
use crate::rows::Rows;
use crate::target::Target;
use crate::transfer::{self, Contents, Draft, Written};
use crate::value::Value;

/// What became of an archive.
#[derive(Debug)]
pub struct Rewritten {
    /// The archive without the user; none if nothing that counts is left, so that it is only to be deleted.
    pub written: Option<Written>,
    /// How many rows of its table were the user's.
    pub removed: u64,
    /// The ids of `not_removed` that the new archive has, too.
    pub not_removed: Vec<Uuid>,
    /// The names of the files of the old archive, but for its manifest.
    pub old_files: Vec<String>,
}

/// Which archive.
#[derive(Clone, Copy, Debug)]
pub struct Old<'a> {
    /// Its folder at the target.
    pub location: &'a str,
    /// The hash of its manifest in the database.
    pub hash: &'a [u8],
    /// The rows of it that were not removed from the database, and count for nothing.
    pub not_removed: &'a [Uuid],
}

/// Reads an archive, and writes it anew as `id` without the rows of a user and the user's policies: with the same time, so that its place
/// among the other archives is the same, and the same values. The old one stays.
///
/// A call that is repeated with the same id writes the same files.
///
/// # Errors
/// [`ArchiveError`] if the old archive is not as it was written, or the new one is not completely there.
pub async fn without_user(
    target: &Target,
    key: &PrivateKey,
    keys: &[PublicKey],
    old: Old<'_>,
    user: i32,
    id: Uuid,
) -> Result<Rewritten, ArchiveError> {
    let contents = transfer::read(target, keys, old.location, Some(old.hash)).await?;
    let old_files = contents.manifest.files.iter().map(|file| file.name.clone()).collect();
    let before = contents.manifest.rows;
    let (draft, not_removed) = draft(contents, old.not_removed, user, id);
    let left = draft.tables.first().map_or(0, Rows::len);
    let removed = before.saturating_sub(u64::try_from(left).unwrap_or(u64::MAX));
    let written =
        if left > not_removed.len() { Some(transfer::write(target, key, draft).await?) } else { None };
    Ok(Rewritten { written, removed, not_removed, old_files })
}

/// The archive without the user, and what of `not_removed` is still in it.
fn draft(mut contents: Contents, not_removed: &[Uuid], user: i32, id: Uuid) -> (Draft, Vec<Uuid>) {
    for rows in &mut contents.tables {
        rows.retain(
            |rows, row| !matches!(rows.get(row, "user_id"), Value::Integer(of) if *of == i64::from(user)),
        );
    }
    let ids = |rows: &Rows| -> Vec<Uuid> {
        let of = |row: usize| if let Value::Uuid(id) = rows.get(row, "id") { Some(*id) } else { None };
        (0..rows.len()).filter_map(of).collect()
    };
    let mut left = contents.tables.first().map(ids).unwrap_or_default();
    // Each row counts once: two rows of different users may have one id.
    let mut still_there = Vec::new();
    for id in not_removed {
        if let Some(place) = left.iter().position(|one| one == id) {
            left.swap_remove(place);
            still_there.push(*id);
        }
    }
    let manifest = contents.manifest;
    let policies = manifest.policies.into_iter().filter(|policy| policy.user_id != user).collect();
    let draft =
        Draft { id, run: manifest.run, created_at: manifest.created_at, policies, tables: contents.tables };
    (draft, still_there)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use chrono::DateTime;
    use object_store::memory::InMemory;

    use super::*;
    use crate::column::{Column, Kind};
    use crate::manifest::Policy;

    const TABLE: &str = "simple_chat_context";

    fn rows(table: &str, of: &[(i32, u128)]) -> Rows {
        let column = |name: &str, sql_type: &str, kind: Kind| Column {
            name: name.to_owned(),
            sql_type: sql_type.to_owned(),
            kind,
        };
        let mut rows = Rows::new(
            table,
            vec![
                column("id", "uuid", Kind::Uuid),
                column("user_id", "integer", Kind::Integer),
                column("created_at", "timestamp with time zone", Kind::Time),
            ],
        );
        for (user, id) in of {
            let texts = [
                Uuid::from_u128(*id).to_string(),
                user.to_string(),
                format!("{}", 1_800_000_000_000_000_u64),
            ];
            rows.push(texts.into_iter().map(Some).collect()).unwrap();
        }
        rows
    }

    fn policy(user_id: i32) -> Policy {
        Policy { id: Uuid::new_v4(), user_id, chat_mode: None, access_tier: None, keep_days: 9 }
    }

    async fn written(of: &[(i32, u128)]) -> (Target, PrivateKey, Written) {
        let target = Target::with_store(Arc::new(InMemory::new()), Duration::from_secs(10));
        let key = PrivateKey::parse(&format!("archive private {}", "07".repeat(32))).unwrap();
        let draft = Draft {
            id: Uuid::now_v7(),
            run: Uuid::now_v7(),
            created_at: DateTime::from_timestamp(1_800_000_100, 0).unwrap(),
            policies: vec![policy(0), policy(42)],
            tables: vec![rows(TABLE, of), rows(crate::ENCRYPTED_FIELDS, of)],
        };
        let written = transfer::write(&target, &key, draft).await.unwrap();
        (target, key, written)
    }

    async fn rewrite(of: &[(i32, u128)], not_removed: &[u128]) -> (Target, PrivateKey, Written, Rewritten) {
        let (target, key, old) = written(of).await;
        let not_removed: Vec<Uuid> = not_removed.iter().copied().map(Uuid::from_u128).collect();
        let id = Uuid::new_v5(&old.manifest.id, b"erasure");
        let named = Old { location: &old.location, hash: &old.hash, not_removed: &not_removed };
        let mut last = None;
        // A second call writes the same files.
        for _ in 0..2 {
            last = Some(without_user(&target, &key, &[key.public()], named, 42, id).await.unwrap());
        }
        (target, key, old, last.unwrap())
    }

    #[tokio::test]
    async fn the_rows_of_others_are_as_they_were_and_those_of_the_user_are_gone() {
        let of = [(42, 1), (420, 2), (4, 3), (42, 4), (7, 5)];
        let (target, key, old, rewritten) = rewrite(&of, &[4, 5]).await;
        assert_eq!(
            (rewritten.removed, rewritten.not_removed.as_slice()),
            (2, [Uuid::from_u128(5)].as_slice())
        );
        assert_eq!(rewritten.old_files, ["simple_chat_context.parquet", "encrypted_fields.parquet"]);
        let new = rewritten.written.unwrap();
        assert_eq!((new.manifest.created_at, new.manifest.run), (old.manifest.created_at, old.manifest.run));
        assert_eq!(new.manifest.users, [4, 7, 420]);
        assert_eq!(new.manifest.policies, old.manifest.policies[..1]);
        let read = transfer::read(&target, &[key.public()], &new.location, Some(&new.hash)).await.unwrap();
        let others = [(420, 2), (4, 3), (7, 5)];
        assert_eq!(read.tables, [rows(TABLE, &others), rows(crate::ENCRYPTED_FIELDS, &others)]);
        assert!(transfer::read(&target, &[key.public()], &old.location, Some(&old.hash)).await.is_ok());
    }

    #[tokio::test]
    async fn nothing_is_written_if_nothing_that_counts_is_left() {
        for (of, not_removed) in [(&[(42, 1), (42, 2)][..], &[][..]), (&[(42, 1), (7, 2)], &[2])] {
            let (_, _, _, rewritten) = rewrite(of, not_removed).await;
            assert!(rewritten.written.is_none(), "{of:?}");
        }
    }

    #[tokio::test]
    async fn complete_archives_are_found_and_their_manifests_read() {
        let (target, key, old) = written(&[(42, 1), (7, 2)]).await;
        let keys = [key.public()];
        let complete = target.list().await.unwrap().complete();
        assert_eq!(complete, [(old.location.clone(), old.manifest.id)]);
        let read = transfer::read_manifest(&target, &keys, &old.location).await.unwrap();
        assert_eq!(read, (old.manifest.clone(), old.hash));
        transfer::discard(&target, &old).await.unwrap();
        assert!(target.list().await.unwrap().complete().is_empty());
        let gone = transfer::read_manifest(&target, &keys, &old.location).await;
        assert!(matches!(gone, Err(ArchiveError::Missing(_))));
    }

    #[tokio::test]
    async fn an_archive_that_was_changed_is_not_rewritten() {
        let (target, key, old) = written(&[(42, 1), (7, 2)]).await;
        let named = Old { location: &old.location, hash: &[0; 32], not_removed: &[] };
        let refused = without_user(&target, &key, &[key.public()], named, 42, Uuid::new_v4()).await;
        assert!(matches!(refused, Err(ArchiveError::Changed { .. })));
    }
}
