//! The rows of `privacy_requests`: filing, taking, storing how far they are, and cancelling.
//!
//! A process takes a request for a minute, and longer while it works on it. Another one takes it when that is over: the steps can be repeated,
//! and what the first one stores afterwards is refused.

use std::convert::Infallible;
use std::time::Duration;

use chrono::{DateTime, Utc};
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use store::Connection;
use tokio::time::sleep;
use uuid::Uuid;

use crate::error::PrivacyError;
use crate::person::{self, Person};
use crate::step::{Claimed, Hold, Progress, Removal, Step};
use crate::stores;

/// An erasure to file.
#[derive(Clone, Debug)]
pub struct NewRequest {
    /// Whether sums are kept of what the rows count.
    pub removal: Removal,
    /// The service that files it, 1 to 64 bytes.
    pub service: String,
    /// Why, at most 2,048 characters. It goes with the person's rows.
    pub reason: String,
}

/// An erasure that was filed.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// The id of the request, of the erasure and of its receipt.
    pub id: Uuid,
    /// By when it must be done: a month later (GDPR, article 12 (3)).
    pub due_at: DateTime<Utc>,
    /// What keeps it from beginning.
    pub hold: Option<Hold>,
}

/// The longest reason, in characters.
pub(crate) const MAX_REASON: usize = 2_048;

/// Files the erasure of a user.
///
/// # Errors
/// [`PrivacyError::Refused`] for the platform, an unknown or erased user, one whose erasure is under way, or a reason that is empty or too
/// long.
pub async fn submit(db: &mut Connection, user: UserId, new: NewRequest) -> Result<Submitted, PrivacyError> {
    let refused = |problem: String| Err(PrivacyError::Refused(problem));
    if user == UserId::PLATFORM {
        return refused("user 0 is the platform, and cannot be erased".to_owned());
    }
    if let Some(id) = under_way(db, user).await? {
        return refused(format!(
            "the erasure {id} of user {user} is under way; `memfleet privacy show {id}` shows it"
        ));
    }
    let Person { is_known, is_erased, is_fenced: _ } = person::look_up(db, user).await?;
    if is_erased {
        return refused(format!("user {user} was erased"));
    }
    if !is_known {
        return refused(format!("there is no user {user}"));
    }
    file(db, user, &new).await
}

/// Files the erasure of a user of whom something may be there, whatever the database knows.
pub(crate) async fn file(
    db: &mut Connection,
    user: UserId,
    new: &NewRequest,
) -> Result<Submitted, PrivacyError> {
    #[derive(QueryableByName)]
    struct Filed {
        #[diesel(sql_type = Timestamptz)]
        due_at: DateTime<Utc>,
    }
    const FILE: &str = "
        INSERT INTO public.privacy_requests (id, user_id, request_type, service, reason)
        VALUES ($1, $2, $5::public.privacy_request_type, $3, $4)
        ON CONFLICT (user_id) WHERE request_type IN ('erase', 'anonymise') AND request_status IN ('pending', 'held', 'in_progress') DO NOTHING
        RETURNING due_at";
    if new.reason.trim().is_empty() || new.reason.chars().count() > MAX_REASON {
        return Err(PrivacyError::Refused(format!("the reason has 1 to {MAX_REASON} characters")));
    }
    let id = Uuid::now_v7();
    let filed: Vec<Filed> = diesel::sql_query(FILE)
        .bind::<SqlUuid, _>(id)
        .bind::<Integer, _>(user.get())
        .bind::<Text, _>(&new.service)
        .bind::<Text, _>(&new.reason)
        .bind::<Text, _>(new.removal.as_str())
        .load(db)
        .await?;
    let Some(Filed { due_at }) = filed.into_iter().next() else {
        return Err(PrivacyError::Refused(format!(
            "another erasure of user {user} was filed at the same time"
        )));
    };
    Ok(Submitted { id, due_at, hold: hold_of(db, user).await? })
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

/// The erasure of a user that is neither complete nor cancelled.
pub(crate) async fn under_way(db: &mut Connection, user: UserId) -> Result<Option<Uuid>, PrivacyError> {
    const OPEN: &str =
        "SELECT id FROM public.privacy_requests WHERE user_id = $1 AND request_type IN ('erase', 'anonymise')
        AND request_status IN ('pending', 'held', 'in_progress')";
    let open: Vec<Id> = diesel::sql_query(OPEN).bind::<Integer, _>(user.get()).load(db).await?;
    Ok(open.into_iter().next().map(|open| open.id))
}

/// The oldest hold that keeps a user's rows: of the user, or of the platform, on any table.
pub(crate) async fn hold_of(db: &mut Connection, user: UserId) -> Result<Option<Hold>, PrivacyError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Text)]
        reason: String,
    }
    const HOLD: &str = "SELECT id, reason::text AS reason FROM public.retention_holds
        WHERE user_id IN ($1, 0) AND released_at IS NULL ORDER BY id LIMIT 1";
    let rows: Vec<Row> = diesel::sql_query(HOLD).bind::<Integer, _>(user.get()).load(db).await?;
    Ok(rows.into_iter().next().map(|Row { id, reason }| Hold { id, reason }))
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Text)]
    removal: String,
    #[diesel(sql_type = Nullable<Text>)]
    step: Option<String>,
    #[diesel(sql_type = Jsonb)]
    progress: serde_json::Value,
    #[diesel(sql_type = Timestamptz)]
    requested_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    due_at: DateTime<Utc>,
}

/// Takes the erasure that is due first, or the one with this id whenever it is to be tried again. None if there is none that another process
/// does not have. One that a hold keeps is taken by its id only.
///
/// # Errors
/// [`PrivacyError`] of the database, or if the row is not one that this program writes.
pub async fn claim(
    db: &mut Connection,
    run: Uuid,
    only: Option<Uuid>,
) -> Result<Option<Claimed>, PrivacyError> {
    const CLAIM: &str = "
        UPDATE public.privacy_requests r SET claimed_by = $1, claimed_until = now() + interval '60 seconds', request_status = 'in_progress',
            step = coalesce(r.step, 'fence'), hold_id = NULL, updated_at = now()
        WHERE r.id = (SELECT o.id FROM public.privacy_requests o
            WHERE o.request_type IN ('erase', 'anonymise') AND o.request_status IN ('pending', 'held', 'in_progress')
                AND (o.claimed_until IS NULL OR o.claimed_until < now() OR o.claimed_by = $1)
                AND (o.id = $2 OR $2 IS NULL AND (o.retry_at IS NULL OR o.retry_at <= now()) AND (o.request_status <> 'held'
                    OR NOT EXISTS (SELECT FROM public.retention_holds h WHERE h.user_id IN (o.user_id, 0) AND h.released_at IS NULL)))
            ORDER BY o.due_at, o.id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING r.id, r.user_id, r.request_type::text AS removal, r.step::text AS step, r.progress, r.requested_at, r.due_at";
    let query = diesel::sql_query(CLAIM).bind::<SqlUuid, _>(run).bind::<Nullable<SqlUuid>, _>(only);
    let rows: Vec<Row> = query.load(db).await?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let id = row.id;
    match row.claimed(run) {
        Ok(claimed) => Ok(Some(claimed)),
        Err(error) => {
            set_aside(db, id, run, &error).await?;
            Err(error)
        }
    }
}

/// Puts a request aside that this program cannot read, so that it holds up no other.
async fn set_aside(
    db: &mut Connection,
    id: Uuid,
    run: Uuid,
    error: &PrivacyError,
) -> Result<(), PrivacyError> {
    const ASIDE: &str = "
        UPDATE public.privacy_requests SET last_error = left($1, 2048), retry_at = now() + interval '10 minutes', claimed_by = NULL,
            claimed_until = NULL, updated_at = now()
        WHERE id = $2 AND claimed_by = $3";
    diesel::sql_query(ASIDE)
        .bind::<Text, _>(error.to_string())
        .bind::<SqlUuid, _>(id)
        .bind::<SqlUuid, _>(run)
        .execute(db)
        .await?;
    Ok(())
}

/// How often a process that works on a request for long says so.
const KEPT_EVERY: Duration = Duration::from_secs(20);

/// Keeps a request for this run for as long as this is polled, over a connection of its own: a statement may run for longer than a process
/// has the request. A failure is left to the step, which then cannot be stored.
pub(crate) async fn keep(url: String, id: Uuid, run: Uuid) -> Infallible {
    const KEEP: &str = "UPDATE public.privacy_requests SET claimed_until = now() + interval '60 seconds' WHERE id = $1 AND claimed_by = $2";
    let mut connection = None;
    loop {
        sleep(KEPT_EVERY).await;
        if connection.is_none() {
            connection = stores::operator(&url).await.ok();
        }
        let Some(open) = &mut connection else { continue };
        let keep = diesel::sql_query(KEEP).bind::<SqlUuid, _>(id).bind::<SqlUuid, _>(run);
        if let Err(error) = keep.execute(open).await {
            tracing::debug!(request = %id, %error, "cannot keep a request");
            connection = None;
        }
    }
}

impl Row {
    fn claimed(self, run: Uuid) -> Result<Claimed, PrivacyError> {
        let Self { id, user_id, removal, step, progress, requested_at, due_at } = self;
        let other = |what: &str| {
            PrivacyError::Refused(format!("the request {id} is not one that this program wrote: {what}"))
        };
        Ok(Claimed {
            id,
            run,
            user: UserId::new(user_id).map_err(|_| other("its user"))?,
            removal: Removal::from_name(&removal).ok_or_else(|| other("its type"))?,
            step: step.and_then(|step| Step::from_name(&step)).ok_or_else(|| other("its step"))?,
            progress: serde_json::from_value(progress).map_err(|_| other("its progress"))?,
            requested_at,
            due_at,
        })
    }
}

/// Stores the progress and, if one is given, the next step, and keeps the request for another minute. In the transaction of the caller, if it
/// has one.
///
/// # Errors
/// [`PrivacyError::Refused`] if another process has the request by now, or it was cancelled: nothing of this transaction must be committed
/// then.
pub async fn commit_step(
    db: &mut Connection,
    claimed: &mut Claimed,
    next: Option<Step>,
) -> Result<(), PrivacyError> {
    const COMMIT: &str = "
        UPDATE public.privacy_requests SET progress = $1, step = $2, claimed_until = now() + interval '60 seconds', updated_at = now(),
            retry_at = CASE WHEN $2 = step THEN retry_at END, last_error = CASE WHEN $2 = step THEN last_error END
        WHERE id = $3 AND claimed_by = $4 AND step = $5 AND request_status = 'in_progress'";
    let step = next.unwrap_or(claimed.step);
    if next.is_some() {
        claimed.progress.of_steps.remove(TRIES);
    }
    let stored = diesel::sql_query(COMMIT)
        .bind::<Jsonb, _>(to_json(&claimed.progress)?)
        .bind::<Text, _>(step.as_str())
        .bind::<SqlUuid, _>(claimed.id)
        .bind::<SqlUuid, _>(claimed.run)
        .bind::<Text, _>(claimed.step.as_str())
        .execute(db)
        .await?;
    if stored != 1 {
        return Err(taken(claimed.id));
    }
    claimed.step = step;
    Ok(())
}

pub(crate) fn taken(id: Uuid) -> PrivacyError {
    PrivacyError::Refused(format!("the erasure {id} was cancelled, or another process goes on with it"))
}

fn to_json(progress: &Progress) -> Result<serde_json::Value, PrivacyError> {
    serde_json::to_value(progress).map_err(|error| {
        PrivacyError::Refused(format!("the progress of an erasure cannot be stored: {error}"))
    })
}

/// How often the present step was tried, in [`Progress::of_steps`].
const TRIES: &str = "tries";

/// Why a step is tried again later.
pub(crate) enum Later<'a> {
    /// It failed, and the person waits: after 5 s first, 10 min at most.
    Failed(&'a PrivacyError),
    /// This has to happen first: after 1 s first, 1 min at most.
    Waiting(&'a str),
}

/// Gives the request back, to be tried again later.
pub(crate) async fn put_back(
    db: &mut Connection,
    claimed: &Claimed,
    later: Later<'_>,
) -> Result<(), PrivacyError> {
    // What a transaction that was rolled back has changed in `claimed` is not stored.
    const LATER: &str = "
        UPDATE public.privacy_requests SET last_error = left($1, 2048), claimed_by = NULL, claimed_until = NULL, updated_at = now(),
            progress = progress || jsonb_build_object('tries', coalesce((progress ->> 'tries')::bigint, 0) + 1),
            retry_at = now() + make_interval(secs => least($2 * power(2, least(coalesce((progress ->> 'tries')::bigint, 0), 16)), $3))
        WHERE id = $4 AND claimed_by = $5 AND request_status = 'in_progress'";
    let (first, most, problem) = match later {
        Later::Failed(error) => (5.0, 600.0, error.to_string()),
        Later::Waiting(reason) => (1.0, 60.0, reason.to_owned()),
    };
    diesel::sql_query(LATER)
        .bind::<Text, _>(problem)
        .bind::<Double, _>(first)
        .bind::<Double, _>(most)
        .bind::<SqlUuid, _>(claimed.id)
        .bind::<SqlUuid, _>(claimed.run)
        .execute(db)
        .await?;
    Ok(())
}

/// Notes that a hold keeps the erasure from beginning.
pub(crate) async fn put_on_hold(
    db: &mut Connection,
    claimed: &Claimed,
    hold: &Hold,
) -> Result<(), PrivacyError> {
    const HELD: &str = "
        UPDATE public.privacy_requests SET request_status = 'held', hold_id = $1, step = NULL, claimed_by = NULL, claimed_until = NULL,
            updated_at = now()
        WHERE id = $2 AND claimed_by = $3 AND step = 'fence'";
    diesel::sql_query(HELD)
        .bind::<SqlUuid, _>(hold.id)
        .bind::<SqlUuid, _>(claimed.id)
        .bind::<SqlUuid, _>(claimed.run)
        .execute(db)
        .await?;
    Ok(())
}

const FENCE: &str = "INSERT INTO sec.fenced_users (user_id, request_id) VALUES ($1, $2)
    ON CONFLICT (user_id) DO UPDATE SET request_id = excluded.request_id WHERE sec.fenced_users.request_id <> excluded.request_id";
const LIFT: &str = "DELETE FROM sec.fenced_users WHERE request_id = $1";

/// Fences the user in a database: the main one, or the key store.
pub(crate) async fn put_up_fence(db: &mut Connection, user: UserId, id: Uuid) -> Result<(), PrivacyError> {
    diesel::sql_query(FENCE).bind::<Integer, _>(user.get()).bind::<SqlUuid, _>(id).execute(db).await?;
    Ok(())
}

/// Says that the erasure of this request cannot be cancelled any more: what comes of the user is lost from then on, and waits no longer.
pub(crate) async fn close_fence(db: &mut Connection, id: Uuid) -> Result<(), PrivacyError> {
    const CLOSE: &str =
        "UPDATE sec.fenced_users SET may_be_cancelled = false WHERE request_id = $1 AND may_be_cancelled";
    diesel::sql_query(CLOSE).bind::<SqlUuid, _>(id).execute(db).await?;
    Ok(())
}

/// The request that has fenced a user in the main database.
pub(crate) async fn fenced_by(db: &mut Connection, user: UserId) -> Result<Option<Uuid>, PrivacyError> {
    const FENCED: &str = "SELECT request_id AS id FROM sec.fenced_users WHERE user_id = $1";
    let found: Vec<Id> = diesel::sql_query(FENCED).bind::<Integer, _>(user.get()).load(db).await?;
    Ok(found.into_iter().next().map(|fence| fence.id))
}

/// Refuses to go on with an erasure that has not put up its fence, or that somebody could still cancel: a row of the table of requests alone
/// has nothing deleted, and nothing signed.
///
/// # Errors
/// [`PrivacyError::Refused`] without the fence.
pub(crate) async fn refuse_without_fence(db: &mut Connection, claimed: &Claimed) -> Result<(), PrivacyError> {
    #[derive(QueryableByName)]
    struct Fenced {
        #[diesel(sql_type = Bool)]
        fenced: bool,
    }
    const FENCED: &str = "SELECT EXISTS (SELECT FROM sec.fenced_users
        WHERE user_id = $1 AND request_id = $2 AND NOT may_be_cancelled) AS fenced";
    let query =
        diesel::sql_query(FENCED).bind::<Integer, _>(claimed.user.get()).bind::<SqlUuid, _>(claimed.id);
    let Fenced { fenced } = query.get_result(db).await?;
    if fenced && claimed.progress.fenced_at.is_some() {
        return Ok(());
    }
    Err(PrivacyError::Refused(format!(
        "the erasure {} has not put up its fence, or the fence was taken away by hand: nothing is deleted; cancel it by hand and file it anew",
        claimed.id
    )))
}

/// Takes the fence of a request away. Says whether there was one.
pub(crate) async fn lift_fence(db: &mut Connection, id: Uuid) -> Result<bool, PrivacyError> {
    Ok(diesel::sql_query(LIFT).bind::<SqlUuid, _>(id).execute(db).await? > 0)
}

/// Cancels an erasure that has deleted nothing yet, and takes its fences away. If the one of the key store could not be taken away, it can be
/// repeated.
///
/// # Errors
/// [`PrivacyError::Refused`] if there is no such erasure, it has begun to delete, or it was cancelled and no fence is left.
pub async fn cancel(
    db: &mut Connection,
    key_store: &mut Connection,
    id: Uuid,
    reason: &str,
) -> Result<(), PrivacyError> {
    const CANCEL: &str = "
        UPDATE public.privacy_requests SET request_status = 'rejected', completed_at = now(), updated_at = now(), claimed_by = NULL,
            claimed_until = NULL, retry_at = NULL, last_error = left('cancelled: ' || $2, 2048)
        WHERE id = $1 AND request_type IN ('erase', 'anonymise') AND request_status IN ('pending', 'held', 'in_progress')
            AND (step IS NULL OR step IN ('fence', 'drain', 'count'))";
    const CANCELLED: &str = "SELECT EXISTS (SELECT FROM public.privacy_requests
        WHERE id = $1 AND request_type IN ('erase', 'anonymise') AND request_status = 'rejected') AS cancelled";
    #[derive(QueryableByName)]
    struct Cancelled {
        #[diesel(sql_type = Bool)]
        cancelled: bool,
    }
    let is_new = db
        .transaction(async |db| {
            let cancel = diesel::sql_query(CANCEL).bind::<SqlUuid, _>(id).bind::<Text, _>(reason);
            let is_new = cancel.execute(db).await? == 1;
            if is_new {
                lift_fence(db, id).await?;
            }
            Ok::<bool, PrivacyError>(is_new)
        })
        .await?;
    let Cancelled { cancelled } = diesel::sql_query(CANCELLED).bind::<SqlUuid, _>(id).get_result(db).await?;
    let is_lifted = cancelled && lift_fence(key_store, id).await?;
    if is_new || is_lifted {
        return Ok(());
    }
    Err(PrivacyError::Refused(format!(
        "there is no erasure {id} that can be cancelled: it is over, or has begun to delete; `memfleet privacy show {id}` shows it"
    )))
}
