//! What would keep the sealer from sealing, for whoever has no key.

use diesel_async::AsyncPgConnection;

use crate::AuditError;
use crate::anchor::Anchors;
use crate::{chain, form};

/// What is wrong with the trail as far as a look at the catalogs and at the last seals and anchors shows it, if anything is.
/// A whole verification is [`verify()`](crate::verify()).
///
/// # Errors
/// [`AuditError`] if the database or the anchors cannot be read.
pub async fn condition(
    connection: &mut AsyncPgConnection,
    anchors: &Anchors,
) -> Result<Option<AuditError>, AuditError> {
    store::security::fix_search_path(connection).await?;
    let faults = form::faults(connection).await?;
    if !faults.is_empty() {
        return Ok(Some(AuditError::Form { faults }));
    }
    chain::fault_of_end(connection, anchors).await
}
