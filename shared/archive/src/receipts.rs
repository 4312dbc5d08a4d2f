//! Receipts of erasures at a target: `<erasure>.json`, each written once.

use futures::StreamExt;
use object_store::{Error, ObjectStore, PutMode, PutOptions};
use uuid::Uuid;

use crate::error::ArchiveError;
use crate::target::{MAX_LISTED, Target, failure};

/// The most bytes of a receipt.
pub const MAX_RECEIPT_BYTES: u64 = 1024 * 1024;

fn name(erasure: Uuid) -> String {
    format!("{erasure}.json")
}

impl Target {
    /// Writes the receipt of an erasure. One that is there already with the same content is kept.
    ///
    /// # Errors
    /// [`ArchiveError`] if it cannot be written, or another one is there: nothing is overwritten.
    pub async fn put_receipt(&self, erasure: Uuid, content: &[u8]) -> Result<(), ArchiveError> {
        let file = name(erasure);
        let place = self.place(&file)?;
        if let Some(folder) = self.folder.clone() {
            let path = file.clone();
            self.on_disk("write", &file, move || folder.place(&path)).await?;
        }
        let new = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = async {
            match self.store.put_opts(&place, content.to_vec().into(), new).await {
                Ok(_) => Ok(true),
                Err(Error::AlreadyExists { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        if self.within("write", &file, put).await? || self.get_receipt(erasure).await? == content {
            Ok(())
        } else {
            Err(failure("write", &file, "another receipt of this erasure is there, and is not overwritten"))
        }
    }

    /// Reads the receipt of an erasure. It is not verified.
    ///
    /// # Errors
    /// [`ArchiveError`] if it is not there, cannot be read, or is longer than [`MAX_RECEIPT_BYTES`].
    pub async fn get_receipt(&self, erasure: Uuid) -> Result<Vec<u8>, ArchiveError> {
        Ok(self.get(&name(erasure), MAX_RECEIPT_BYTES).await?.to_vec())
    }

    /// The erasures of which there is a receipt, in the order of their ids. Other files are none.
    ///
    /// # Errors
    /// [`ArchiveError`] if the target cannot be listed, or has more than a million files.
    pub async fn receipts(&self) -> Result<Vec<Uuid>, ArchiveError> {
        let prefix = if self.prefix.is_empty() { None } else { Some(self.place("")?) };
        let mut listed = self.store.list(prefix.as_ref());
        let mut found = Vec::new();
        for _ in 0..=MAX_LISTED {
            let next = async { Ok(listed.next().await) };
            match self.within("list", "receipts", next).await? {
                None => {
                    found.sort_unstable();
                    return Ok(found);
                }
                Some(Ok(meta)) => {
                    let file = meta.location.as_ref();
                    let id =
                        file.rsplit('/').next().and_then(|file| file.strip_suffix(".json")?.parse().ok());
                    found.extend(
                        id.filter(|id| self.place(&name(*id)).is_ok_and(|place| place == meta.location)),
                    );
                }
                Some(Err(error)) => return Err(failure("list", "receipts", &error.to_string())),
            }
        }
        Err(failure("list", "receipts", "it has more than a million files"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use config::ArchiveSettings;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_receipt_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("other.json"), "x").unwrap();
        let url = format!("file://{}", folder.path().display());
        let on_disk = Target::open_url("privacy.receipt_url", &url, &ArchiveSettings::default()).unwrap();
        let in_memory = Target::with_store(Arc::new(InMemory::new()), Duration::from_secs(10));
        for target in [on_disk, in_memory] {
            let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
            assert_eq!(target.receipts().await.unwrap(), Vec::<Uuid>::new());
            target.put_receipt(two, b"two").await.unwrap();
            target.put_receipt(one, b"one").await.unwrap();
            target.put_receipt(one, b"one").await.unwrap();
            let refused = target.put_receipt(one, b"another").await.unwrap_err().to_string();
            assert!(refused.contains("not overwritten"), "{refused}");
            assert_eq!(target.get_receipt(one).await.unwrap(), b"one");
            assert_eq!(target.receipts().await.unwrap(), [one, two]);
            assert!(matches!(target.get_receipt(Uuid::from_u128(3)).await, Err(ArchiveError::Missing(_))));
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_named_with_its_option() {
        let settings = ArchiveSettings::default();
        let refused = Target::open_url("privacy.receipt_url", "file:///nowhere/at/all", &settings);
        assert!(refused.unwrap_err().to_string().starts_with("privacy.receipt_url names"));
    }
}
