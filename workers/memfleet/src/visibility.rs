//! Whether the role of `postgres.url` sees the rows of all users: what lacks some of them unseen is worse than no answer.

use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Text};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault, FaultKind};

/// Fails if row-level security binds the role in one of these tables. `rows`: what is in them, in the plural, for the message.
///
/// # Errors
/// A [`Fault`] of the database, or a permanent one that says what to do.
pub(crate) async fn check_sees_all(
    connection: &mut Connection,
    tables: &[&str],
    rows: &str,
) -> Result<(), Fault> {
    #[derive(QueryableByName)]
    struct Access {
        #[diesel(sql_type = Bool)]
        is_bound: bool,
    }
    const ACCESS: &str = "SELECT row_security_active(name) AS is_bound FROM unnest($1) AS name";
    let query = diesel::sql_query(ACCESS).bind::<Array<Text>, _>(tables);
    let access: Vec<Access> = query.load(connection).await?;
    if access.iter().any(|table| table.is_bound) {
        let reason =
            format!("row-level security hides {rows} from the role of postgres.url; use an administrator's");
        return Err(Fault { kind: FaultKind::Permanent, reason });
    }
    Ok(())
}
