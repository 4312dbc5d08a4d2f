//! Workers that keep rows locked which an erasure deletes.
//!
//! Once the fence is up and what ran before has ended, no worker has a reason to lock rows of the person for long. A role that is taken over
//! could do so all the same, by what needs no context: it notes that a token was used, and does not commit.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Integer, Text};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use tokio::time::sleep;
use uuid::Uuid;

use crate::stores;

/// How often it is looked whether a step waits for a worker. If it waits for a role at two looks, those of this role are ended: it may have
/// several connections that take turns.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The process of a connection, by which [`end`] knows it.
pub(crate) async fn process_of(db: &mut Connection) -> Result<i32, Fault> {
    #[derive(QueryableByName)]
    struct Process {
        #[diesel(sql_type = Integer)]
        process: i32,
    }
    const OWN: &str = "SELECT pg_backend_pid() AS process";
    let Process { process } = diesel::sql_query(OWN).get_result(db).await?;
    Ok(process)
}

/// Ends the transactions of workers that this process of the main database waits for, for as long as this is polled. Over a connection of its
/// own, which is opened when the process has worked for a second.
pub(crate) async fn end(url: String, process: i32, request: Uuid) -> Infallible {
    let (mut connection, mut earlier, mut is_warned) = (None, HashSet::new(), false);
    loop {
        sleep(LOOK_EVERY).await;
        if connection.is_none() {
            connection = stores::operator(&url).await.ok();
        }
        let Some(open) = &mut connection else { continue };
        match look(open, process, &earlier).await {
            Ok(found) => {
                for blocker in found.iter().filter(|blocker| blocker.ended) {
                    tracing::warn!(%request, role = blocker.role, "ended a worker's transaction that kept an erasure waiting");
                }
                earlier = found.into_iter().map(|blocker| blocker.role).collect();
            }
            Err(error) => {
                if !is_warned {
                    tracing::warn!(%request, %error, "cannot end what keeps an erasure waiting");
                }
                (connection, is_warned) = (None, true);
            }
        }
    }
}

#[derive(QueryableByName)]
struct Blocker {
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Bool)]
    ended: bool,
}

/// Workers that the process waits for. Those of a role of the look before are ended.
async fn look(db: &mut Connection, process: i32, earlier: &HashSet<String>) -> Result<Vec<Blocker>, Fault> {
    const LOOK: &str = "
        WITH blocker AS MATERIALIZED (
            SELECT a.pid, a.usename::text AS role FROM pg_stat_activity a
            WHERE a.pid = ANY (pg_blocking_pids($1)) AND EXISTS (SELECT FROM sec.worker_privileges p WHERE p.role_name = a.usename))
        SELECT role, CASE WHEN role = ANY ($2) THEN pg_terminate_backend(pid) ELSE false END AS ended FROM blocker";
    let earlier: Vec<&str> = earlier.iter().map(String::as_str).collect();
    let query = diesel::sql_query(LOOK).bind::<Integer, _>(process).bind::<Array<Text>, _>(earlier);
    Ok(query.load(db).await?)
}
