//! The destruction of a user's data keys: what they have encrypted is unreadable from then on, wherever a copy of it is.

use contract::UserId;
use diesel::dsl::count_star;
use diesel::prelude::*;
use diesel::sql_types::Integer;
use diesel_async::{AsyncConnection, RunQueryDsl};
use store::{Connection, Fault};

use crate::KeyError;
use crate::key_store;
use crate::schema::data_keys;

/// Deletes all data keys of a user, notes that the user is erased, so that none is ever added again, and takes away the user's fence. Gives
/// the number of keys. It can be repeated. Processes that have opened a key keep it in memory for at most `keys.cache_s`.
///
/// # Errors
/// [`KeyError::Store`], or [`KeyError::Settings`] if the connection does not see the keys of all users. Nothing is destroyed then.
pub async fn destroy(connection: &mut Connection, user: UserId) -> Result<u64, KeyError> {
    key_store::check_operator(connection).await?;
    let destroyed: Result<usize, Fault> = connection
        .transaction(async |connection| {
            let own = data_keys::table.filter(data_keys::user_id.eq(user.get()));
            let destroyed = diesel::delete(own).execute(connection).await?;
            for note in ["SELECT sec.note_erased($1)", "DELETE FROM sec.fenced_users WHERE user_id = $1"] {
                diesel::sql_query(note).bind::<Integer, _>(user.get()).execute(connection).await?;
            }
            Ok(destroyed)
        })
        .await;
    Ok(u64::try_from(destroyed?).unwrap_or(u64::MAX))
}

/// The number of data keys of a user.
///
/// # Errors
/// [`KeyError::Store`], or [`KeyError::Settings`] if the connection does not see the keys of all users.
pub async fn count(connection: &mut Connection, user: UserId) -> Result<u64, KeyError> {
    key_store::check_operator(connection).await?;
    let own = data_keys::table.filter(data_keys::user_id.eq(user.get()));
    let number: i64 = own.select(count_star()).get_result(connection).await.map_err(Fault::from)?;
    Ok(u64::try_from(number).unwrap_or(0))
}

/// The ids of all users who have data keys, in order.
///
/// # Errors
/// [`KeyError::Store`], or [`KeyError::Settings`] if the connection does not see the keys of all users.
pub async fn user_ids(connection: &mut Connection) -> Result<Vec<i32>, KeyError> {
    key_store::check_operator(connection).await?;
    let ids = data_keys::table.select(data_keys::user_id).distinct().order(data_keys::user_id);
    Ok(ids.load(connection).await.map_err(Fault::from)?)
}
