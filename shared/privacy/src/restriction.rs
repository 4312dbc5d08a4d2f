//! The restriction of processing (GDPR, article 18): the data of a person stay, and no role reads or writes them until an operator lifts it.
//!
//! From the commit of a row in `sec.restricted_users` on, no context opens for the person in the main database, and each statement of one that is
//! open ends with an error. What ran already may still commit: [`complete`] waits for it. Operators need no context, so that an erasure, an
//! anonymisation or an export of the person works.

use std::time::Duration;

use chrono::{DateTime, Utc};
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use store::Connection;
use uuid::Uuid;

use crate::error::PrivacyError;
use crate::fence;
use crate::person::{self, Person};
use crate::request::MAX_REASON;

const RESTRICTED: &str = "restricted";

// A row that another process inserts at the same time is waited for.
const PLACE: &str = "
    INSERT INTO sec.restricted_users AS r (user_id, request_id, waits) VALUES ($1, $2, coalesce($3, false))
    ON CONFLICT (user_id) DO UPDATE SET request_id = excluded.request_id, waits = $3 WHERE r.waits <> $3
    RETURNING r.since, r.waits, r.request_id = $2 AND r.since = now() AS is_new";

/// What becomes of requests that come while a restriction lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meanwhile {
    /// They are retried until it is lifted, for as long as a message may wait.
    Wait,
    /// They become dead letters.
    Refuse,
}

impl Meanwhile {
    /// The name on the command line and in `privacy_requests.details`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Refuse => "refuse",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Wait, Self::Refuse].into_iter().find(|meanwhile| meanwhile.as_str() == name)
    }

    fn waits(self) -> bool {
        match self {
            Self::Wait => true,
            Self::Refuse => false,
        }
    }

    fn of(waits: bool) -> Self {
        if waits { Self::Wait } else { Self::Refuse }
    }
}

/// What an operator asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The service that asks, 1 to 64 bytes.
    pub service: String,
    /// Why, at most 2,048 characters.
    pub reason: Option<String>,
}

/// A restriction that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restriction {
    /// The row of `privacy_requests`.
    pub request: Uuid,
    /// Since when.
    pub since: DateTime<Utc>,
    /// What becomes of requests meanwhile.
    pub meanwhile: Meanwhile,
    /// By when the request must be complete: a month later (GDPR, article 12 (3)).
    pub due_at: DateTime<Utc>,
    /// What asking for it has changed.
    pub change: Change,
}

/// What asking for a restriction has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The person is restricted now.
    Restricted,
    /// The person was, and what becomes of requests is another thing now.
    Meanwhile,
    /// Nothing: it was like this before.
    Nothing,
}

/// A restriction that was lifted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifted {
    /// The row of `privacy_requests` about the lift.
    pub request: Uuid,
    /// Since when the person was restricted.
    pub since: DateTime<Utc>,
    /// What became of requests meanwhile.
    pub meanwhile: Meanwhile,
}

#[derive(QueryableByName)]
struct Placed {
    #[diesel(sql_type = Timestamptz)]
    since: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    waits: bool,
    #[diesel(sql_type = Bool)]
    is_new: bool,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    request_id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    since: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    waits: bool,
}

/// Restricts the processing of a user's data. Whoever is restricted already stays so, since when it was; `meanwhile` is changed if it is given and
/// differs, and is [`Meanwhile::Refuse`] of a new restriction if it is not given. Nobody waits for it; [`complete`] does.
///
/// # Errors
/// [`PrivacyError::Refused`] for the platform, an unknown or erased user, one whose erasure has begun, or a reason that is too long.
pub async fn restrict(
    db: &mut Connection,
    user: UserId,
    meanwhile: Option<Meanwhile>,
    asked: &Asked,
) -> Result<Restriction, PrivacyError> {
    check_reason(asked)?;
    let id = Uuid::now_v7();
    db.transaction(async |db| {
        check(db, user, RESTRICTED).await?;
        let Some(Placed { since, waits, is_new }) = put_in_force(db, user, id, meanwhile).await? else {
            return present(db, user).await;
        };
        let meanwhile = Meanwhile::of(waits);
        let due_at = file(db, id, user, Kind::Restrict(meanwhile), asked).await?;
        let change = if is_new { Change::Restricted } else { Change::Meanwhile };
        Ok(Restriction { request: id, since, meanwhile, due_at, change })
    })
    .await
}

/// None if the user is restricted like this already.
async fn put_in_force(
    db: &mut Connection,
    user: UserId,
    request: Uuid,
    meanwhile: Option<Meanwhile>,
) -> Result<Option<Placed>, PrivacyError> {
    let placed: Vec<Placed> = diesel::sql_query(PLACE)
        .bind::<Integer, _>(user.get())
        .bind::<SqlUuid, _>(request)
        .bind::<Nullable<Bool>, _>(meanwhile.map(Meanwhile::waits))
        .load(db)
        .await?;
    Ok(placed.into_iter().next())
}

/// Puts a restriction in force that was filed before and that the process `run` has taken. [`complete`] is to follow. One that is in force stays so.
///
/// # Errors
/// [`PrivacyError::Refused`] as [`restrict`], or if another process has the request, or it was rejected.
pub(crate) async fn place(
    db: &mut Connection,
    user: UserId,
    request: Uuid,
    run: Uuid,
    meanwhile: Option<Meanwhile>,
) -> Result<(), PrivacyError> {
    #[derive(QueryableByName)]
    struct Status {
        #[diesel(sql_type = Bool)]
        is_pending: bool,
    }
    const STATUS: &str = "
        SELECT request_status = 'pending' AS is_pending FROM public.privacy_requests
        WHERE user_id = $1 AND id = $2 AND claimed_by = $3 AND request_status IN ('pending', 'in_progress') FOR UPDATE";
    const BEGUN: &str = "
        UPDATE public.privacy_requests SET request_status = 'in_progress', details = details || jsonb_build_object('while', $3), updated_at = now()
        WHERE user_id = $1 AND id = $2";
    db.transaction(async |db| {
        let status = diesel::sql_query(STATUS)
            .bind::<Integer, _>(user.get())
            .bind::<SqlUuid, _>(request)
            .bind::<SqlUuid, _>(run);
        let found: Vec<Status> = status.load(db).await?;
        let Some(Status { is_pending }) = found.into_iter().next() else {
            return Err(PrivacyError::Refused(format!(
                "the request {request} was rejected, or another process goes on with it"
            )));
        };
        if !is_pending {
            return Ok(());
        }
        check(db, user, RESTRICTED).await?;
        let meanwhile = match put_in_force(db, user, request, meanwhile).await? {
            Some(placed) => Meanwhile::of(placed.waits),
            None => present(db, user).await?.meanwhile,
        };
        diesel::sql_query(BEGUN)
            .bind::<Integer, _>(user.get())
            .bind::<SqlUuid, _>(request)
            .bind::<Text, _>(meanwhile.as_str())
            .execute(db)
            .await?;
        Ok(())
    })
    .await
}

/// The restriction of a user who is restricted already.
async fn present(db: &mut Connection, user: UserId) -> Result<Restriction, PrivacyError> {
    #[derive(QueryableByName)]
    struct Present {
        #[diesel(embed)]
        restriction: Row,
        #[diesel(sql_type = Timestamptz)]
        due_at: DateTime<Utc>,
    }
    const PRESENT: &str = "
        SELECT r.request_id, r.since, r.waits, coalesce(p.due_at, r.since) AS due_at FROM sec.restricted_users r
        LEFT JOIN public.privacy_requests p ON p.user_id = r.user_id AND p.id = r.request_id WHERE r.user_id = $1";
    let found: Vec<Present> = diesel::sql_query(PRESENT).bind::<Integer, _>(user.get()).load(db).await?;
    let Some(Present { restriction: Row { request_id, since, waits }, due_at }) = found.into_iter().next()
    else {
        return Err(PrivacyError::Refused(format!(
            "the restriction of user {user} was lifted at the same time; try again"
        )));
    };
    let meanwhile = Meanwhile::of(waits);
    Ok(Restriction { request: request_id, since, meanwhile, due_at, change: Change::Nothing })
}

/// Waits until what ran when the restriction came has ended, and notes that its request is complete. Gives those transactions that are still
/// open after `patience`, as an operator knows them; then it is to be repeated. A request that is complete stays so.
///
/// # Errors
/// [`PrivacyError`] of the database.
pub async fn complete(
    db: &mut Connection,
    user: UserId,
    request: Uuid,
    patience: Duration,
) -> Result<Vec<String>, PrivacyError> {
    #[derive(QueryableByName)]
    struct Open {
        #[diesel(sql_type = Bool)]
        is_open: bool,
    }
    const IS_OPEN: &str = "
        SELECT EXISTS (SELECT FROM public.privacy_requests WHERE user_id = $1 AND id = $2 AND request_status = 'in_progress') AS is_open";
    // An earlier one is complete, too, whose restriction this one has changed.
    const COMPLETE: &str = "
        UPDATE public.privacy_requests p SET request_status = 'completed', completed_at = now(), updated_at = now(), claimed_by = NULL,
            claimed_until = NULL, retry_at = NULL, last_error = NULL
        FROM public.privacy_requests waited WHERE waited.user_id = $1 AND waited.id = $2 AND p.user_id = $1 AND p.requested_at <= waited.requested_at
            AND waited.request_status = 'in_progress' AND p.request_type = 'restrict' AND p.request_status = 'in_progress'";
    let is_open = diesel::sql_query(IS_OPEN).bind::<Integer, _>(user.get()).bind::<SqlUuid, _>(request);
    let Open { is_open } = is_open.get_result(db).await?;
    if !is_open {
        return Ok(Vec::new());
    }
    let running = fence::running(db).await?;
    let mut left = fence::drain(db, &running, patience).await?;
    if left.is_empty() {
        // What ran may have become a prepared transaction.
        let prepared = fence::prepared(db).await?;
        left = fence::drain(db, &prepared, patience).await?;
    }
    if !left.is_empty() {
        return Ok(fence::keepers(db, &left).await?);
    }
    let complete = diesel::sql_query(COMPLETE).bind::<Integer, _>(user.get()).bind::<SqlUuid, _>(request);
    complete.execute(db).await?;
    Ok(Vec::new())
}

/// Lifts the restriction of a user.
///
/// # Errors
/// [`PrivacyError::Refused`] if the user is not restricted, is unknown or erased, or the erasure has begun, or if the reason is too long.
pub async fn lift(db: &mut Connection, user: UserId, asked: &Asked) -> Result<Lifted, PrivacyError> {
    const LIFT: &str =
        "DELETE FROM sec.restricted_users WHERE user_id = $1 RETURNING request_id, since, waits";
    // It was in force, but nobody has waited for what ran before.
    const INCOMPLETE: &str = "
        UPDATE public.privacy_requests SET request_status = 'rejected', completed_at = now(), updated_at = now(),
            last_error = 'lifted before the transactions that ran when it came had ended', claimed_by = NULL, claimed_until = NULL, retry_at = NULL
        WHERE user_id = $1 AND request_type = 'restrict' AND request_status = 'in_progress'";
    check_reason(asked)?;
    let id = Uuid::now_v7();
    db.transaction(async |db| {
        check(db, user, RESTRICTED).await?;
        let lifted: Vec<Row> = diesel::sql_query(LIFT).bind::<Integer, _>(user.get()).load(db).await?;
        let Some(Row { since, waits, .. }) = lifted.into_iter().next() else {
            return Err(PrivacyError::Refused(format!("user {user} is not restricted")));
        };
        diesel::sql_query(INCOMPLETE).bind::<Integer, _>(user.get()).execute(db).await?;
        file(db, id, user, Kind::Lift, asked).await?;
        Ok(Lifted { request: id, since, meanwhile: Meanwhile::of(waits) })
    })
    .await
}

/// Deletes the restriction of a user who is being erased.
pub(crate) async fn forget(db: &mut Connection, user: UserId) -> Result<(), PrivacyError> {
    const FORGET: &str = "DELETE FROM sec.restricted_users WHERE user_id = $1";
    diesel::sql_query(FORGET).bind::<Integer, _>(user.get()).execute(db).await?;
    Ok(())
}

fn check_reason(asked: &Asked) -> Result<(), PrivacyError> {
    let is_good = |reason: &String| !reason.trim().is_empty() && reason.chars().count() <= MAX_REASON;
    match asked.reason.as_ref().is_none_or(is_good) {
        true => Ok(()),
        false => Err(PrivacyError::Refused(format!("a reason has 1 to {MAX_REASON} characters"))),
    }
}

/// Refuses the platform, and users of whom there is nothing to restrict or to rectify. `done` is what cannot be done to the platform.
pub(crate) async fn check(db: &mut Connection, user: UserId, done: &str) -> Result<(), PrivacyError> {
    let refused = |problem: String| Err(PrivacyError::Refused(problem));
    if user == UserId::PLATFORM {
        return refused(format!("user 0 is the platform, and cannot be {done}"));
    }
    // A role that row-level security applies to would see no user.
    fence::see_all(db).await?;
    let Person { is_known, is_fenced, is_erased } = person::look_up(db, user).await?;
    if is_erased {
        return refused(format!("user {user} was erased"));
    }
    if is_fenced {
        return refused(format!(
            "user {user} is being erased; `memfleet privacy list --open --user {user}` shows the erasure"
        ));
    }
    if !is_known {
        return refused(format!("there is no user {user}"));
    }
    Ok(())
}

/// What a request is about.
#[derive(Clone, Copy)]
enum Kind {
    Restrict(Meanwhile),
    Lift,
}

/// Files a request, which the trail notes, and gives its legal deadline.
async fn file(
    db: &mut Connection,
    id: Uuid,
    user: UserId,
    kind: Kind,
    asked: &Asked,
) -> Result<DateTime<Utc>, PrivacyError> {
    #[derive(QueryableByName)]
    struct Filed {
        #[diesel(sql_type = Timestamptz)]
        due_at: DateTime<Utc>,
    }
    const FILE: &str = "
        INSERT INTO public.privacy_requests (id, user_id, request_type, request_status, service, reason, details, completed_at)
        VALUES ($1, $2, $3::public.privacy_request_type, $4::public.privacy_request_status, $5, $6,
            CASE WHEN $7 IS NULL THEN '{}' ELSE jsonb_build_object('while', $7) END, CASE $4 WHEN 'completed' THEN now() END)
        RETURNING due_at";
    let (name, status, meanwhile) = match kind {
        Kind::Restrict(meanwhile) => ("restrict", "in_progress", Some(meanwhile.as_str())),
        Kind::Lift => ("lift", "completed", None),
    };
    let filed: Filed = diesel::sql_query(FILE)
        .bind::<SqlUuid, _>(id)
        .bind::<Integer, _>(user.get())
        .bind::<Text, _>(name)
        .bind::<Text, _>(status)
        .bind::<Text, _>(&asked.service)
        .bind::<Nullable<Text>, _>(&asked.reason)
        .bind::<Nullable<Text>, _>(meanwhile)
        .get_result(db)
        .await?;
    Ok(filed.due_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_may_be_missing_but_is_neither_empty_nor_too_long() {
        let check =
            |reason: Option<String>| check_reason(&Asked { service: "operator".to_owned(), reason }).is_ok();
        assert!(check(None) && check(Some("a letter".to_owned())) && check(Some("ä".repeat(MAX_REASON))));
        assert!(!check(Some(" ".to_owned())) && !check(Some("a".repeat(MAX_REASON + 1))));
    }
}
