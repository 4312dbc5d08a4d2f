//! How far the sweep is. It takes the users in the order of their ids, a slice at a time.

use ::store::{Connection, Fault};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Integer, Nullable};
use diesel_async::RunQueryDsl;

use super::sweep::Swept;

/// The slice that a run is at.
#[derive(Clone, Copy, Debug, QueryableByName)]
pub(crate) struct Progress {
    /// Its last user; `None` behind the last user of all.
    #[diesel(sql_type = Nullable<Integer>)]
    last_user: Option<i32>,
}

/// Locks the progress until the transaction ends. `None`: another run holds it.
pub(crate) async fn lock(connection: &mut Connection) -> Result<Option<Progress>, Fault> {
    const LOCK: &str = "
        SELECT sec.retention_slice() AS last_user FROM (SELECT FROM retention_state FOR UPDATE SKIP LOCKED) AS held";
    let rows: Vec<Progress> = ::store::prepared(diesel::sql_query(LOCK)).load(connection).await?;
    Ok(rows.into_iter().next())
}

/// The users that the tick acts for.
pub(crate) async fn users(connection: &mut Connection) -> Result<Vec<i32>, Fault> {
    #[derive(QueryableByName)]
    struct Users {
        #[diesel(sql_type = Array<Integer>)]
        users: Vec<i32>,
    }
    const USERS: &str = "SELECT sec.current_user_ids() AS users";
    let rows: Vec<Users> = ::store::prepared(diesel::sql_query(USERS)).load(connection).await?;
    Ok(rows.into_iter().flat_map(|row| row.users).collect())
}

/// The users of a slice while there is much to remove, and otherwise.
const FEW: i32 = 20;
const MANY: i32 = 200;

/// Moves on to the next slice, or begins anew; stays at this one, with fewer users, if there may be more to remove.
pub(crate) async fn advance(
    connection: &mut Connection,
    progress: Progress,
    swept: &Swept,
) -> Result<(), Fault> {
    const ADVANCE: &str = "
        UPDATE retention_state SET slice_users = $2, after_user = CASE WHEN $3 THEN after_user ELSE coalesce($1, -1) END,
            pass_completed_at = CASE WHEN $1 IS NULL AND NOT $3 THEN now() ELSE pass_completed_at END,
            pass_started_at = CASE WHEN after_user = -1 AND pass_started_at IS NULL OR $1 IS NULL THEN now() ELSE pass_started_at END";
    let query = diesel::sql_query(ADVANCE)
        .bind::<Nullable<Integer>, _>(progress.last_user)
        .bind::<Integer, _>(if swept.changed() > 0 { FEW } else { MANY })
        .bind::<Bool, _>(swept.has_more);
    ::store::prepared(query).execute(connection).await?;
    Ok(())
}
