//! The requests of exports, in `privacy_requests`.

use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Jsonb, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use serde_json::json;
use store::Connection;
use uuid::Uuid;

use super::{Export, Index, NewExport};
use crate::error::PrivacyError;
use crate::person::{self, Person};
use crate::request::{MAX_REASON, under_way};

/// The class of the advisory locks by which one export of a person runs at a time: "accs" in ASCII. The session of the export has the lock, so that it
/// goes with a process that is killed.
const LOCK: i32 = 0x6163_6373;

/// What the index and the audit trail call an access of this kind.
const ACCESS: &str = "export";

/// A request that was filed.
pub(super) struct Filed {
    pub(super) id: Uuid,
    /// Requests of earlier exports that may have been interrupted.
    pub(super) interrupted: Vec<Uuid>,
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

/// Files a request that is `in_progress`. Earlier ones of the person that are open belong to processes that ended: they are rejected. One
/// that is complete may have ended before all its parts had names.
pub(super) async fn file(db: &mut Connection, new: &NewExport) -> Result<Filed, PrivacyError> {
    const INTERRUPTED: &str = "
        UPDATE public.privacy_requests SET request_status = 'rejected', completed_at = now(), updated_at = now(),
            last_error = 'interrupted: the process ended before the export was complete'
        WHERE user_id = $1 AND request_type = 'access' AND claimed_by IS NULL AND request_status = 'in_progress' RETURNING id";
    const COMPLETE: &str = "
        SELECT id FROM public.privacy_requests WHERE user_id = $1 AND request_type = 'access' AND request_status = 'completed'";
    const FILE: &str = "
        INSERT INTO public.privacy_requests (id, user_id, request_type, request_status, service, reason)
        VALUES ($1, $2, 'access', 'in_progress', $3, $4)";
    let user = new.user;
    if user == UserId::PLATFORM {
        return Err(PrivacyError::Refused("user 0 is the platform, and no person".to_owned()));
    }
    if new.reason.as_ref().is_some_and(|reason| reason.chars().count() > MAX_REASON) {
        return Err(PrivacyError::Refused(format!("the reason has at most {MAX_REASON} characters")));
    }
    check_open(db, user).await?;
    lock(db, user).await?;
    let mut interrupted: Vec<Id> = Vec::new();
    for query in [COMPLETE, INTERRUPTED] {
        let found: Vec<Id> = diesel::sql_query(query).bind::<Integer, _>(user.get()).load(db).await?;
        interrupted.extend(found);
    }
    let id = Uuid::now_v7();
    diesel::sql_query(FILE)
        .bind::<SqlUuid, _>(id)
        .bind::<Integer, _>(user.get())
        .bind::<Text, _>(&new.service)
        .bind::<Nullable<Text>, _>(&new.reason)
        .execute(db)
        .await?;
    Ok(Filed { id, interrupted: interrupted.into_iter().map(|one| one.id).collect() })
}

/// Begins an export that was filed before and that the process `run` has taken.
pub(super) async fn begin(
    db: &mut Connection,
    user: UserId,
    request: Uuid,
    run: Uuid,
) -> Result<(), PrivacyError> {
    const BEGIN: &str = "
        UPDATE public.privacy_requests SET request_status = 'in_progress', completed_at = NULL, updated_at = now()
        WHERE user_id = $1 AND id = $2 AND claimed_by = $3 AND request_type = 'access' AND request_status IN ('pending', 'in_progress', 'completed')";
    check_open(db, user).await?;
    lock(db, user).await?;
    let begin = diesel::sql_query(BEGIN)
        .bind::<Integer, _>(user.get())
        .bind::<SqlUuid, _>(request)
        .bind::<SqlUuid, _>(run);
    match begin.execute(db).await? {
        1 => Ok(()),
        _ => Err(PrivacyError::Refused(format!(
            "the request {request} was rejected, or another process goes on with it"
        ))),
    }
}

async fn lock(db: &mut Connection, user: UserId) -> Result<(), PrivacyError> {
    #[derive(QueryableByName)]
    struct Locked {
        #[diesel(sql_type = Bool)]
        locked: bool,
    }
    const TRY: &str = "SELECT pg_catalog.pg_try_advisory_lock($1, $2) AS locked";
    let query = diesel::sql_query(TRY).bind::<Integer, _>(LOCK).bind::<Integer, _>(user.get());
    let Locked { locked } = query.get_result(db).await?;
    if locked {
        return Ok(());
    }
    Err(PrivacyError::Refused(format!(
        "another export of user {user} runs; run the command again when it has ended"
    )))
}

/// Refuses an unknown or erased person, and one whose erasure has begun.
pub(super) async fn check_open(db: &mut Connection, user: UserId) -> Result<(), PrivacyError> {
    let Person { is_known, is_fenced, is_erased } = person::look_up(db, user).await?;
    let problem = match (is_erased, is_fenced, is_known) {
        (true, _, _) => format!("user {user} was erased: nothing is stored that could be exported"),
        (false, true, _) => {
            let erasure = under_way(db, user).await?.map(|id| format!(" {id}")).unwrap_or_default();
            format!(
                "the erasure{erasure} of user {user} has begun; `memfleet privacy cancel` stops one that has deleted nothing yet"
            )
        }
        (false, false, false) => format!("there is no user {user}"),
        (false, false, true) => return Ok(()),
    };
    Err(PrivacyError::Refused(problem))
}

/// Completes a request, and notes the access in the audit trail.
pub(super) async fn complete(
    db: &mut Connection,
    new: &NewExport,
    export: &Export,
    index: &Index,
) -> Result<(), PrivacyError> {
    // What a service has asked for stays: an export that is killed before its parts have names is made again.
    const COMPLETE: &str = "
        UPDATE public.privacy_requests SET request_status = 'completed', completed_at = now(), updated_at = now(), details = details || $1
        WHERE user_id = $2 AND id = $3 AND request_type = 'access' AND request_status = 'in_progress'";
    const NOTE: &str = "
        INSERT INTO audit.data_access_log (subject_token, role_name, service, request_id, access_type, object_name, rows_returned)
        SELECT s.token, session_user, $1, $2, $3, 'all stores', $4
        FROM (VALUES ($5)) AS u (id) LEFT JOIN audit.subjects s ON s.user_id = u.id";
    let details = json!({
        "encrypted_for": new.recipient.kind(), "exported_at": export.exported_at, "parts": export.parts, "rows": index.counts(),
        "unreadable_fields": export.unreadable
    });
    let (user, request) = (new.user.get(), export.request);
    let rows = i64::try_from(export.rows).unwrap_or(i64::MAX);
    db.transaction(async |db| {
        let complete = diesel::sql_query(COMPLETE)
            .bind::<Jsonb, _>(&details)
            .bind::<Integer, _>(user)
            .bind::<SqlUuid, _>(request);
        if complete.execute(db).await? != 1 {
            return Err(PrivacyError::Refused(format!(
                "the request {request} was changed while the export ran; run the command again"
            )));
        }
        diesel::sql_query(NOTE)
            .bind::<Text, _>(&new.service)
            .bind::<SqlUuid, _>(request)
            .bind::<Text, _>(ACCESS)
            .bind::<BigInt, _>(rows)
            .bind::<Integer, _>(user)
            .execute(db)
            .await?;
        Ok(())
    })
    .await
}

/// Notes that an export failed: also one that was completed, and whose parts could not get their names.
pub(super) async fn fail(
    db: &mut Connection,
    user: UserId,
    request: Uuid,
    error: &PrivacyError,
) -> Result<(), PrivacyError> {
    const FAIL: &str = "
        UPDATE public.privacy_requests SET request_status = 'failed', completed_at = now(), updated_at = now(), last_error = left($1, 2048)
        WHERE user_id = $2 AND id = $3 AND request_type = 'access'";
    diesel::sql_query(FAIL)
        .bind::<Text, _>(error.to_string())
        .bind::<Integer, _>(user.get())
        .bind::<SqlUuid, _>(request)
        .execute(db)
        .await?;
    Ok(())
}
