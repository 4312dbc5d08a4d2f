//! The points of the person in the vector store, with their payloads and vectors.

use ::vectors::VectorError;
use contract::UserId;
use serde_json::json;
use store::Connection;

use super::database::to_line;
use super::sink::Sink;
use crate::error::{PrivacyError, Store};
use crate::process::Stores;
use crate::vectors;

/// The store in the index.
const QDRANT: &str = "qdrant";
/// Points per call: 8 MiB with the longest vectors.
const PAGE: u32 = 125;

/// Exports the points of a person from all collections that points were ever written into.
pub(super) async fn export(
    stores: &mut Stores,
    snapshot: &mut Connection,
    user: UserId,
    sink: &mut Sink,
) -> Result<(), PrivacyError> {
    let Some(store) = stores.vectors()? else {
        if vectors::exist(snapshot).await? {
            let reason = "vectors.url is not set, and the database names collections; set it".to_owned();
            return Err(PrivacyError::Away { store: Store::Vectors, reason });
        }
        sink.leave_out(QDRANT, "all collections", None, "this deployment has no vector store");
        return Ok(());
    };
    let Some(tenant) = vectors::tenant(snapshot, user).await? else {
        sink.leave_out(QDRANT, "all collections", None, "the person has no pseudonym in the vector store");
        return Ok(());
    };
    // It adds the id if there is none, which the snapshot cannot.
    let deployment = ::store::vector::deployment(&mut stores.database).await?;
    for (number, collection) in vectors::collections(snapshot).await?.into_iter().enumerate() {
        let name = &collection.name;
        match store.owner(name, deployment).await {
            Ok(_) => {}
            Err(VectorError::NoCollection(_)) if collection.is_former => {
                sink.leave_out(QDRANT, name, None, "the vector store does not have it any more");
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        // Its name may have characters that the names of files do not have.
        sink.begin(QDRANT, name, &format!("{QDRANT}/collection-{}.jsonl", number + 1))?;
        let mut from = None;
        loop {
            let (points, next) = store.scroll_tenant(name, tenant, from, PAGE).await?;
            for point in points {
                let line = json!({ "collection": name, "id": point.id, "payload": point.payload, "vector": point.vector });
                sink.line(&to_line(&line)?)?;
            }
            let Some(next) = next else { break };
            from = Some(next);
        }
        sink.end()?;
    }
    Ok(())
}
