//! Encrypted values and their places in an answer.

use contract::{Json, QueryErrorCode};
use keys::{Encrypted, Grants, KeyError};
use runtime::query::QueryRefusal;
use secrecy::ExposeSecret;
use store::{Connection, Fault, FaultKind};
use uuid::Uuid;

use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;

/// Puts a decrypted value into an answer.
type Place<A> = Box<dyn FnOnce(&mut A, &str) + Send>;

/// An encrypted value, and the place in the answer where a marker stands for it.
pub(crate) struct Secret<A> {
    encrypted: Encrypted,
    place: Place<A>,
}

impl<A> Secret<A> {
    pub(crate) fn new(encrypted: Encrypted, place: impl FnOnce(&mut A, &str) + Send + 'static) -> Self {
        Self { encrypted, place: Box::new(place) }
    }
}

/// Loads the encrypted fields of these rows, if they are to be revealed.
///
/// # Errors
/// A [`Fault`] of the database.
pub(crate) async fn load(
    connection: &mut Connection,
    reveal: bool,
    table: &str,
    rows: impl IntoIterator<Item = (bool, Uuid)>,
) -> Result<Vec<Encrypted>, Fault> {
    let sensitive = rows.into_iter().filter(|(is_sensitive, _)| reveal && *is_sensitive);
    let rows: Vec<Uuid> = sensitive.map(|(_, row)| row).collect();
    if rows.is_empty() { Ok(Vec::new()) } else { keys::load_fields(connection, table, &rows).await }
}

/// Replaces a marker by a decrypted value. What was JSON when it was encrypted still is.
pub(crate) fn replace_json(value: &mut Json, plain: &str) {
    if let Ok(plain) = Json::recorded(plain) {
        *value = plain;
    }
}

/// The secrets of JSON values. `rows` are the rows of the answer in their order, and `value` returns that of one of
/// them.
pub(crate) fn of_json<A: 'static>(
    encrypted: Vec<Encrypted>,
    rows: &[Uuid],
    value: fn(&mut A, usize) -> Option<&mut Json>,
) -> Vec<Secret<A>> {
    let secret = |field: Encrypted| {
        let index = rows.iter().position(|row| *row == field.row)?;
        Some(Secret::new(field, move |answer: &mut A, plain| {
            if let Some(value) = value(answer, index) {
                replace_json(value, plain);
            }
        }))
    };
    encrypted.into_iter().filter_map(secret).collect()
}

/// Decrypts values into an answer.
///
/// # Errors
/// [`QueryFailure`] if the key store is unreachable or refuses the grant, or a value cannot be decrypted.
pub(crate) async fn reveal<A>(
    context: &QueryContext<'_>,
    answer: &mut A,
    secrets: Vec<Secret<A>>,
) -> Result<(), QueryFailure> {
    if secrets.is_empty() {
        return Ok(());
    }
    let (fields, places): (Vec<Encrypted>, Vec<Place<A>>) =
        secrets.into_iter().map(|secret| (secret.encrypted, secret.place)).unzip();
    let grants = Grants::from([(context.user, context.grant)]);
    let plain = context.keys.decrypt(&fields, &grants).await.map_err(|error| {
        if let KeyError::Denied(reason) = error {
            return QueryFailure::Database(Fault { kind: FaultKind::Denied, reason });
        }
        tracing::warn!(worker = crate::NAME, %error, "cannot decrypt values of an answer");
        QueryRefusal::unavailable("the key store is unreachable; retry later, or without reveal").into()
    })?;
    for ((field, place), plain) in fields.iter().zip(places).zip(plain) {
        let plain = plain.map_err(|reason| {
            tracing::error!(
                worker = crate::NAME,
                table = field.table,
                row = %field.row,
                reason,
                "cannot decrypt a value"
            );
            QueryRefusal::new(
                QueryErrorCode::Failed,
                "a value cannot be decrypted; retry without reveal",
                None,
            )
        })?;
        place(answer, plain.expose_secret());
    }
    Ok(())
}
