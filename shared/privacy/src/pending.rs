//! Restrictions and exports that services have requested: retention-cleaner files them, and the process of an operator carries them out.
//!
//! A request is taken as an erasure is, for a minute at a time. One that cannot be carried out now is tried again later, and has the reason.

use std::path::Path;
use std::time::Duration;

use config::Settings;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Double, Integer, Jsonb, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Deserialize;
use store::Connection;
use uuid::Uuid;

use crate::access::{self, DEFAULT_PART_BYTES, NewExport, Recipient};
use crate::error::PrivacyError;
use crate::restriction::{self, Meanwhile};
use crate::{request, stores};

/// What a pass did of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Restrictions that are in force and complete.
    pub restricted: u64,
    /// Exports that are complete.
    pub exported: u64,
    /// Requests that wait, such as for a setting. They have the reason.
    pub waiting: u64,
    /// Requests that failed. They have the reason; most of them are tried again.
    pub failed: u64,
}

impl Carried {
    pub(crate) fn with(self, other: Self) -> Self {
        Self {
            restricted: self.restricted + other.restricted,
            exported: self.exported + other.exported,
            waiting: self.waiting + other.waiting,
            failed: self.failed + other.failed,
        }
    }
}

/// The most restrictions that one pass takes.
const MAX_RESTRICTIONS: usize = 1_000;
/// The most exports, one after the other: the next pass comes after them, and with it the requests that came meanwhile.
const MAX_EXPORTS: usize = 4;
/// How long a pass waits for transactions that ran when a restriction came.
const PATIENCE: Duration = Duration::from_secs(2);

const NO_FOLDER: &str = "privacy.export_folder is not set, so that `memfleet privacy run` exports nothing; set it, or export with `memfleet privacy access`";

/// A type of request.
#[derive(Clone, Copy)]
enum Kind {
    Restrict,
    Access,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Restrict => "restrict",
            Self::Access => "access",
        }
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Nullable<Text>)]
    service: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    reason: Option<String>,
    #[diesel(sql_type = Jsonb)]
    details: serde_json::Value,
}

/// A request that this process has taken.
struct Taken {
    id: Uuid,
    run: Uuid,
    user: UserId,
    service: String,
    reason: Option<String>,
    details: Details,
}

/// What this process reads of `privacy_requests.details`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    recipient: Option<String>,
    #[serde(rename = "while")]
    meanwhile: Option<String>,
}

/// What became of a request.
enum Outcome {
    Done,
    /// This has to happen first.
    Waits(String),
    /// It can never be carried out.
    Never(String),
}

/// Restricts whom services have requested to restrict.
///
/// # Errors
/// [`PrivacyError`] if the main database cannot be used. A request that fails is no error.
pub async fn restrict_due(settings: &Settings) -> Result<Carried, PrivacyError> {
    carry_out(settings, Kind::Restrict, MAX_RESTRICTIONS).await
}

/// Exports what services have requested to export.
///
/// # Errors
/// [`PrivacyError`] if the main database cannot be used. A request that fails is no error.
pub async fn export_due(settings: &Settings) -> Result<Carried, PrivacyError> {
    carry_out(settings, Kind::Access, MAX_EXPORTS).await
}

async fn carry_out(settings: &Settings, kind: Kind, most: usize) -> Result<Carried, PrivacyError> {
    let mut carried = Carried::default();
    let mut database = stores::operator(&settings.postgres.url).await?;
    for _ in 0..most {
        let Some(row) = claim(&mut database, kind).await? else { break };
        one(settings, &mut database, kind, row, &mut carried).await?;
    }
    Ok(carried)
}

async fn one(
    settings: &Settings,
    database: &mut Connection,
    kind: Kind,
    Claimed { row, run }: Claimed,
    carried: &mut Carried,
) -> Result<(), PrivacyError> {
    let (id, user_id) = (row.id, row.user_id);
    let worked = match taken(row, run) {
        Ok(taken) => work(settings, database, kind, &taken).await,
        Err(error) => Err(error),
    };
    let place = Place { id, user_id, run };
    match worked {
        Ok(Outcome::Done) => {
            give_back(database, place).await?;
            match kind {
                Kind::Restrict => carried.restricted += 1,
                Kind::Access => carried.exported += 1,
            }
        }
        Ok(Outcome::Waits(reason)) => {
            carried.waiting += 1;
            let most = match kind {
                Kind::Restrict => 60.0,
                // Such as for a setting.
                Kind::Access => 3_600.0,
            };
            put_back(database, place, &reason, most).await?;
        }
        Ok(Outcome::Never(reason)) => {
            carried.failed += 1;
            end(database, place, &reason).await?;
        }
        Err(error) => {
            carried.failed += 1;
            tracing::warn!(request = %id, %error, "a privacy request failed; it is tried again");
            put_back(database, place, &error.to_string(), 600.0).await?;
        }
    }
    Ok(())
}

/// Works on a request, and keeps it for as long.
async fn work(
    settings: &Settings,
    database: &mut Connection,
    kind: Kind,
    taken: &Taken,
) -> Result<Outcome, PrivacyError> {
    let kept = request::keep(settings.postgres.url.clone(), taken.id, taken.run);
    let working = async {
        match kind {
            Kind::Restrict => restrict(database, taken).await,
            Kind::Access => export(settings, taken).await,
        }
    };
    tokio::select! {
        worked = working => worked,
        never = kept => match never {},
    }
}

async fn restrict(database: &mut Connection, taken: &Taken) -> Result<Outcome, PrivacyError> {
    let meanwhile = match taken.details.meanwhile.as_deref() {
        None => None,
        Some(name) => match Meanwhile::from_name(name) {
            Some(meanwhile) => Some(meanwhile),
            None => {
                return Ok(Outcome::Never("its details name no way to treat requests meanwhile".to_owned()));
            }
        },
    };
    restriction::place(database, taken.user, taken.id, taken.run, meanwhile).await?;
    let open = restriction::complete(database, taken.user, taken.id, PATIENCE).await?;
    if open.is_empty() {
        return Ok(Outcome::Done);
    }
    let open = open.join(", ");
    Ok(Outcome::Waits(format!(
        "the restriction is in force; transactions that began before are open: {open}"
    )))
}

async fn export(settings: &Settings, taken: &Taken) -> Result<Outcome, PrivacyError> {
    let Some(folder) = &settings.privacy.export_folder else {
        return Ok(Outcome::Waits(NO_FOLDER.to_owned()));
    };
    let Some(recipient) = &taken.details.recipient else {
        return Ok(Outcome::Never("it names no public key of age as recipient".to_owned()));
    };
    let recipient = match Recipient::key(recipient) {
        Ok(recipient) => recipient,
        Err(problem) => return Ok(Outcome::Never(format!("recipient: {problem}"))),
    };
    let new = NewExport {
        user: taken.user,
        service: taken.service.clone(),
        reason: taken.reason.clone(),
        folder: Path::new(folder).join(taken.id.to_string()),
        recipient,
        part_bytes: DEFAULT_PART_BYTES,
    };
    let export = Box::pin(access::carry_out(settings, &new, taken.id, taken.run)).await?;
    tracing::info!(request = %export.request, parts = export.parts.len(), "exported");
    Ok(Outcome::Done)
}

/// A row that this process has taken, for this run.
struct Claimed {
    row: Row,
    run: Uuid,
}

/// Takes the request of a type that is due first, and before those that were tried. An export that is complete and was not given back may lack parts: its process was killed before it
/// gave them their names.
async fn claim(database: &mut Connection, kind: Kind) -> Result<Option<Claimed>, PrivacyError> {
    const CLAIM: &str = "
        UPDATE public.privacy_requests r SET claimed_by = $1, claimed_until = now() + interval '60 seconds', updated_at = now()
        WHERE (r.user_id, r.id) = (SELECT o.user_id, o.id FROM public.privacy_requests o
            WHERE o.request_type = $2::public.privacy_request_type AND (o.claimed_until IS NULL OR o.claimed_until < now())
                AND (o.retry_at IS NULL OR o.retry_at <= now())
                AND (o.request_status = 'pending' OR o.request_status = 'in_progress' AND (o.claimed_by IS NOT NULL OR o.retry_at IS NOT NULL)
                    OR o.request_status = 'completed' AND o.request_type = 'access' AND o.claimed_by IS NOT NULL)
            ORDER BY o.retry_at IS NOT NULL, coalesce(o.retry_at, o.due_at), o.id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING r.id, r.user_id, r.service, r.reason, r.details";
    let run = Uuid::now_v7();
    let query = diesel::sql_query(CLAIM).bind::<SqlUuid, _>(run).bind::<Text, _>(kind.as_str());
    let rows: Vec<Row> = query.load(database).await?;
    Ok(rows.into_iter().next().map(|row| Claimed { row, run }))
}

fn taken(row: Row, run: Uuid) -> Result<Taken, PrivacyError> {
    let Row { id, user_id, service, reason, details } = row;
    let other = |what: &str| {
        PrivacyError::Refused(format!("the request {id} is not one that this program wrote: {what}"))
    };
    Ok(Taken {
        id,
        run,
        user: UserId::new(user_id).map_err(|_| other("its user"))?,
        service: service.ok_or_else(|| other("its service"))?,
        reason,
        details: serde_json::from_value(details).map_err(|_| other("its details"))?,
    })
}

/// A request that a run of this process has.
#[derive(Clone, Copy)]
struct Place {
    id: Uuid,
    user_id: i32,
    run: Uuid,
}

/// Gives a complete request back.
async fn give_back(database: &mut Connection, place: Place) -> Result<(), PrivacyError> {
    const GIVE_BACK: &str = "
        UPDATE public.privacy_requests SET claimed_by = NULL, claimed_until = NULL, retry_at = NULL, last_error = NULL
        WHERE user_id = $1 AND id = $2 AND claimed_by = $3 AND request_status = 'completed'";
    diesel::sql_query(GIVE_BACK)
        .bind::<Integer, _>(place.user_id)
        .bind::<SqlUuid, _>(place.id)
        .bind::<SqlUuid, _>(place.run)
        .execute(database)
        .await?;
    Ok(())
}

/// Gives a request back, to be tried again: after 5 seconds first, `most` seconds at most. An export begins anew; a restriction that is in force is
/// completed.
async fn put_back(
    database: &mut Connection,
    place: Place,
    reason: &str,
    most: f64,
) -> Result<(), PrivacyError> {
    const LATER: &str = "
        UPDATE public.privacy_requests SET last_error = left($1, 2048), claimed_by = NULL, claimed_until = NULL, updated_at = now(),
            request_status = CASE WHEN request_type = 'access' THEN 'pending' ELSE request_status END, completed_at = NULL,
            progress = progress || jsonb_build_object('tries', coalesce((progress ->> 'tries')::bigint, 0) + 1),
            retry_at = now() + make_interval(secs => least(5 * power(2, least(coalesce((progress ->> 'tries')::bigint, 0), 16)), $2))
        WHERE user_id = $3 AND id = $4 AND claimed_by = $5 AND request_status IN ('pending', 'in_progress', 'completed')";
    diesel::sql_query(LATER)
        .bind::<Text, _>(reason)
        .bind::<Double, _>(most)
        .bind::<Integer, _>(place.user_id)
        .bind::<SqlUuid, _>(place.id)
        .bind::<SqlUuid, _>(place.run)
        .execute(database)
        .await?;
    Ok(())
}

/// Notes that a request can never be carried out.
async fn end(database: &mut Connection, place: Place, reason: &str) -> Result<(), PrivacyError> {
    const END: &str = "
        UPDATE public.privacy_requests SET request_status = 'failed', completed_at = now(), updated_at = now(), last_error = left($1, 2048),
            claimed_by = NULL, claimed_until = NULL, retry_at = NULL
        WHERE user_id = $2 AND id = $3 AND claimed_by = $4";
    diesel::sql_query(END)
        .bind::<Text, _>(reason)
        .bind::<Integer, _>(place.user_id)
        .bind::<SqlUuid, _>(place.id)
        .bind::<SqlUuid, _>(place.run)
        .execute(database)
        .await?;
    Ok(())
}
