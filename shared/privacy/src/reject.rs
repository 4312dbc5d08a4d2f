//! Refusing what a person has asked for. The law wants the person to be told why.

use diesel::QueryableByName;
use diesel::sql_types::{Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::Connection;
use uuid::Uuid;

use crate::error::PrivacyError;
use crate::request::MAX_REASON;

/// Rejects a pending rectification, restriction or export that no process works on, also an export whose process was killed. Of a rectification, the request keeps the names of the columns, and
/// no value.
///
/// # Errors
/// [`PrivacyError::Refused`] if there is no such request, or a reason that is empty or too long.
pub async fn reject(db: &mut Connection, request: Uuid, reason: &str) -> Result<(), PrivacyError> {
    // One statement: a process that takes the request at the same time either has it before, or finds it rejected.
    const REJECT: &str = "
        UPDATE public.privacy_requests r SET request_status = 'rejected', completed_at = now(), updated_at = now(), claimed_by = NULL,
            claimed_until = NULL, retry_at = NULL, last_error = left('rejected: ' || $2, 2048),
            details = CASE WHEN r.request_type = 'rectify' AND jsonb_typeof(r.details -> 'corrections') = 'array'
                THEN jsonb_build_object('corrections', (SELECT jsonb_agg(CASE jsonb_typeof(c) WHEN 'object' THEN c - 'value' - 'was' ELSE '{}' END)
                    FROM jsonb_array_elements(r.details -> 'corrections') AS c))
                WHEN r.request_type = 'rectify' THEN '{}' ELSE r.details END
        WHERE r.id = $1 AND r.request_type IN ('rectify', 'restrict', 'access')
            AND (r.request_status = 'pending' OR r.request_type = 'access' AND r.request_status = 'in_progress' AND r.claimed_until < now())
            AND (r.claimed_until IS NULL OR r.claimed_until < now())";
    if reason.trim().is_empty() || reason.chars().count() > MAX_REASON {
        return Err(PrivacyError::Refused(format!("the reason has 1 to {MAX_REASON} characters")));
    }
    let rejected =
        diesel::sql_query(REJECT).bind::<SqlUuid, _>(request).bind::<Text, _>(reason).execute(db).await?;
    if rejected > 0 {
        return Ok(());
    }
    Err(PrivacyError::Refused(why_not(db, request).await?))
}

async fn why_not(db: &mut Connection, request: Uuid) -> Result<String, PrivacyError> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Text)]
        request_type: String,
        #[diesel(sql_type = Text)]
        status: String,
    }
    const FOUND: &str = "SELECT request_type::text AS request_type, request_status::text AS status FROM public.privacy_requests WHERE id = $1";
    let found: Vec<Found> = diesel::sql_query(FOUND).bind::<SqlUuid, _>(request).load(db).await?;
    Ok(match found.into_iter().next() {
        None => format!("there is no request {request}; `memfleet privacy list` has the ids"),
        Some(Found { request_type, .. }) if matches!(request_type.as_str(), "erase" | "anonymise") => {
            format!(
                "an erasure is not rejected; `memfleet privacy cancel {request}` stops one that has deleted nothing yet"
            )
        }
        Some(Found { request_type, status }) => format!(
            "the request {request} ({request_type}) is not pending, or a process works on it; it is {status}: `memfleet privacy show {request}`"
        ),
    })
}
