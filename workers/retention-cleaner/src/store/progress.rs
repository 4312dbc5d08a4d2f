//! How far the sweep is. It takes the users in the order of their ids, a slice at a time.

use ::store::{Connection, Fault};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Integer, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::sweep::Swept;

/// The slice that a run is at.
#[derive(Clone, Copy, Debug, QueryableByName)]
pub(crate) struct Progress {
    /// The user before its first one; -1 before the first user of all.
    #[diesel(sql_type = Integer)]
    after_user: i32,
    /// Its last user; `None` behind the last user of all.
    #[diesel(sql_type = Nullable<Integer>)]
    last_user: Option<i32>,
    /// Whether it is the first one of the next pass, or one behind it.
    #[diesel(sql_type = Bool)]
    is_next_pass: bool,
    /// How many users it has.
    #[diesel(sql_type = Integer)]
    slice_users: i32,
    /// How many runs in a row have left something in it.
    #[diesel(sql_type = Integer)]
    slice_runs: i32,
    /// Whether it is known only from the grants of the tick whose rows are due, as it was when they were minted.
    #[diesel(sql_type = Bool)]
    is_as_minted: bool,
}

impl Progress {
    /// Whether some of these users are of the slice. The platform is of none.
    fn has_any(self, users: &[i32]) -> bool {
        let Some(last_user) = self.last_user else { return false };
        users.iter().any(|user| *user != 0 && self.after_user < *user && *user <= last_user)
    }
}

/// A run, by the transaction that it was: the last one to have moved the sweep on.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub(crate) struct Run {
    #[diesel(sql_type = Text)]
    transaction: String,
}

/// The last run whose transaction has been committed.
pub(crate) async fn last_run(connection: &mut Connection) -> Result<Run, Fault> {
    const LAST: &str = "SELECT xmin::text AS transaction FROM retention_state";
    Ok(::store::prepared(diesel::sql_query(LAST)).get_result(connection).await?)
}

/// Locks the progress until the transaction ends. `None`: another run holds it.
pub(crate) async fn lock(connection: &mut Connection) -> Result<Option<Progress>, Fault> {
    const LOCK: &str = "
        SELECT held.after_user, sec.retention_slice() AS last_user, false AS is_next_pass, held.slice_users, held.slice_runs,
            true AS is_as_minted
        FROM (SELECT after_user, slice_users, slice_runs FROM retention_state FOR UPDATE SKIP LOCKED) AS held";
    let rows: Vec<Progress> = ::store::prepared(diesel::sql_query(LOCK)).load(connection).await?;
    Ok(rows.into_iter().next())
}

/// The slice that the tick has grants of: the one that the sweep is at, or the next one with due rows. `None`: another run has moved on
/// since they were minted, and this one would leave rows unseen.
pub(crate) async fn slice(
    connection: &mut Connection,
    progress: Progress,
    users: &[i32],
) -> Result<Option<Progress>, Fault> {
    #[derive(QueryableByName)]
    struct Slice {
        #[diesel(sql_type = Integer)]
        after_user: i32,
        #[diesel(sql_type = Nullable<Integer>)]
        last_user: Option<i32>,
        #[diesel(sql_type = Bool)]
        is_next_pass: bool,
        #[diesel(sql_type = Array<Integer>)]
        due: Vec<i32>,
    }
    const NEXT: &str = "SELECT after_user, last_user, is_next_pass, due FROM sec.next_slice()";
    if progress.has_any(users) {
        return Ok(Some(progress));
    }
    let rows: Vec<Slice> = ::store::prepared(diesel::sql_query(NEXT)).load(connection).await?;
    let Some(next) = rows.into_iter().next() else { return Ok(None) };
    let is_same = next.after_user == progress.after_user && !next.is_next_pass;
    let (slice_users, slice_runs) =
        if is_same { (progress.slice_users, progress.slice_runs) } else { (MANY, 0) };
    let Slice { after_user, last_user, is_next_pass, due } = next;
    let next = Progress { after_user, last_user, is_next_pass, slice_users, slice_runs, is_as_minted: false };
    // Whose rows are found first is not always the same.
    Ok((due.is_empty() || next.has_any(users)).then_some(next))
}

/// Whether rows of others than these users are due in the slice. Another run may have removed what was due of these since the grants were
/// minted.
pub(crate) async fn has_due_beside(
    connection: &mut Connection,
    progress: Progress,
    users: &[i32],
) -> Result<bool, Fault> {
    #[derive(QueryableByName)]
    struct Has {
        #[diesel(sql_type = Bool)]
        has: bool,
    }
    const BESIDE: &str = "SELECT sec.has_due_beside($1, $2, $3) AS has";
    let (true, Some(last_user)) = (progress.is_as_minted, progress.last_user) else { return Ok(false) };
    let query = diesel::sql_query(BESIDE)
        .bind::<Array<Integer>, _>(users)
        .bind::<Integer, _>(progress.after_user)
        .bind::<Integer, _>(last_user);
    let row: Has = ::store::prepared(query).get_result(connection).await?;
    Ok(row.has)
}

/// Waits for a run that is under way, and keeps others from beginning until the transaction ends. Of what this transaction has written, the
/// first one does not know; the next one does.
pub(crate) async fn await_run(connection: &mut Connection) -> Result<(), Fault> {
    const AWAIT: &str = "SELECT FROM retention_state FOR SHARE";
    ::store::prepared(diesel::sql_query(AWAIT)).execute(connection).await?;
    Ok(())
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
/// How many runs in a row stay at a slice in which they leave something: 40,000 rows. Who adds rows as fast as they are removed, or keeps
/// them locked, keeps nobody else's from being removed.
const RUNS: i32 = 20;

/// Where the next run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Next {
    stays: bool,
    users: i32,
    runs: i32,
}

impl Next {
    /// The next slice, or the same with fewer users while there may be more to remove. A slice of one user has its turn and no more.
    fn after(progress: Progress, has_more: bool, has_changed: bool) -> Self {
        let again = has_changed && progress.slice_runs < RUNS;
        match (has_more, progress.slice_users, again) {
            // Where a run could not begin, slices grow slowly again.
            (false, users, _) if users < FEW => Self { stays: false, users: FEW.min(4 * users), runs: 0 },
            (false, ..) => Self { stays: false, users: if has_changed { FEW } else { MANY }, runs: 0 },
            (true, 1, false) => Self { stays: false, users: FEW, runs: 0 },
            (true, users, true) => Self { stays: true, users: users.min(FEW), runs: progress.slice_runs + 1 },
            (true, _, false) => Self { stays: true, users: 1, runs: 0 },
        }
    }
}

/// Moves on to the next slice, or begins anew; or stays at this one.
pub(crate) async fn advance(
    connection: &mut Connection,
    progress: Progress,
    swept: &Swept,
) -> Result<(), Fault> {
    const ADVANCE: &str = "
        UPDATE retention_state SET slice_users = $2, after_user = CASE WHEN $3 THEN $5 ELSE coalesce($1, -1) END,
            pass_completed_at = CASE WHEN $1 IS NULL AND NOT $3 OR $6 THEN now() ELSE pass_completed_at END,
            pass_started_at = CASE WHEN after_user = -1 AND pass_started_at IS NULL OR $1 IS NULL OR $6 THEN now() ELSE pass_started_at END,
            slice_runs = $4";
    let next = Next::after(progress, swept.has_more, swept.changed() > 0);
    let query = diesel::sql_query(ADVANCE)
        .bind::<Nullable<Integer>, _>(progress.last_user)
        .bind::<Integer, _>(next.users)
        .bind::<Bool, _>(next.stays)
        .bind::<Integer, _>(next.runs)
        .bind::<Integer, _>(progress.after_user)
        .bind::<Bool, _>(progress.is_next_pass);
    ::store::prepared(query).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many runs there are until the first user is passed, and how many users the next slice has then.
    fn runs(has_more: impl Fn(i32) -> bool, has_changed: bool) -> (i32, i32) {
        let mut progress = Progress {
            after_user: -1,
            last_user: Some(200),
            is_next_pass: false,
            slice_users: MANY,
            slice_runs: 0,
            is_as_minted: false,
        };
        for run in 1..1_000 {
            let next = Next::after(progress, has_more(run), has_changed);
            if !next.stays {
                return (run, next.users);
            }
            assert!(next.users <= FEW, "fewer while there is more");
            (progress.slice_users, progress.slice_runs) = (next.users, next.runs);
        }
        (i32::MAX, progress.slice_users)
    }

    #[test]
    fn a_slice_is_left_once_it_is_empty_and_after_some_runs_in_any_case() {
        assert_eq!(runs(|_| false, false), (1, MANY));
        assert_eq!(runs(|_| false, true), (1, FEW));
        assert_eq!(runs(|run| run < 5, true), (5, FEW));
        // Runs of the slice, then of its first user alone, after whom the others have theirs.
        assert_eq!(runs(|_| true, true), (2 * RUNS + 2, FEW));
        // Others hold the rows.
        assert_eq!(runs(|_| true, false), (2, FEW));
    }
}
