//! Writes the secrets of a batch, after the rows that they belong to.

use std::collections::HashMap;

use contract::ContextRequest as Request;
use keys::{DataKeys, Field};
use store::{Connection, Fault};
use uuid::Uuid;

use runtime::Message;

use super::Done;
use super::table::Change;

/// Encrypts the secrets that were extracted from the requests and writes them. Of several messages that wrote one row,
/// only the last one counts, even if it has no secrets: the row holds what that one wrote.
pub(super) async fn write(
    connection: &mut Connection,
    batch: &[&Message<Request>],
    changes: &[Change],
    done: &[Done],
    keys: &DataKeys,
) -> Result<(), Fault> {
    if batch.iter().all(|message| message.secrets.is_empty()) {
        return Ok(());
    }
    let mut last: HashMap<(&str, i32, Uuid), &Message<Request>> = HashMap::new();
    for ((&message, change), done) in batch.iter().zip(changes).zip(done) {
        if let Done::Applied(row) = done {
            last.insert((change.table.name, message.user_id().get(), *row), message);
        }
    }
    let mut secrets = Vec::new();
    for ((table, _, row), message) in last {
        for secret in &message.secrets {
            let field = Field {
                user: message.user_id(),
                table,
                column: secret.field,
                row,
                request_id: message.request_id,
                stored_at: message.stored_at,
            };
            secrets.push((field, &secret.value));
        }
    }
    keys::encrypt_fields(connection, &secrets, keys).await
}
