//! What the main database knows of a person who is asked for.

use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Integer};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};

/// Whether there is anything to ask for.
#[derive(Clone, Copy, Debug, QueryableByName)]
pub(crate) struct Person {
    /// Whether there is such a user.
    #[diesel(sql_type = Bool)]
    pub(crate) is_known: bool,
    /// Whether the user's erasure has begun.
    #[diesel(sql_type = Bool)]
    pub(crate) is_fenced: bool,
    /// Whether the user was erased.
    #[diesel(sql_type = Bool)]
    pub(crate) is_erased: bool,
}

/// Looks a user up, over a connection that sees all rows.
pub(crate) async fn look_up(db: &mut Connection, user: UserId) -> Result<Person, Fault> {
    const LOOK_UP: &str = "
        SELECT EXISTS (SELECT FROM public.users u WHERE u.id = $1) AS is_known,
            EXISTS (SELECT FROM sec.fenced_users f WHERE f.user_id = $1) AS is_fenced,
            EXISTS (SELECT FROM sec.erased_among(ARRAY[$1])) AS is_erased";
    Ok(diesel::sql_query(LOOK_UP).bind::<Integer, _>(user.get()).get_result(db).await?)
}
