//! The rectification of wrong data (GDPR, article 16). A service requests it, or an operator; the operator looks at it and carries it out.
//!
//! It is one transaction: the rows are locked, what they have is compared with what is said to be wrong, and the request is completed with the names
//! of the columns. No value is left in the request. The audit trail has the update as any other one.

mod columns;

use contract::{Correction, Json, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Jsonb, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::Connection;
use uuid::Uuid;

use crate::error::PrivacyError;
use crate::request::MAX_REASON;
use crate::restriction;

pub use columns::{Column, RECTIFIABLE, Table};
use columns::{Rows, find};

/// The most corrections of a request.
pub const MAX_CORRECTIONS: usize = 100;
/// Shorter texts stand in too many places to look for them elsewhere.
const LEAST_SOUGHT: usize = 3;

/// A value that was corrected, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Corrected {
    /// The table.
    pub table: &'static str,
    /// The id of the row; none of a table with one row of a person.
    pub row: Option<Uuid>,
    /// The column.
    pub column: &'static str,
    /// What it had.
    pub before: Value,
    /// What it has.
    pub after: Value,
}

/// Where else something of a person may say what was wrong. No rectification changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Elsewhere {
    /// Events with one of the values. They record what was requested.
    pub events: u64,
    /// Memories, with their vectors, whose text has one of the values.
    pub memories: u64,
    /// Archives with rows of the person.
    pub archives: u64,
}

/// A rectification that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rectified {
    /// The id of its request.
    pub request: Uuid,
    /// The person.
    pub user: UserId,
    /// What was corrected.
    pub corrected: Vec<Corrected>,
    /// Where else the old values are.
    pub elsewhere: Elsewhere,
}

/// What `privacy_requests.details` has of a rectification.
#[derive(Debug, Deserialize)]
struct Details {
    corrections: Vec<Correction>,
}

/// What an operator corrects without a request of a service.
#[derive(Clone, Debug)]
pub struct NewRectification {
    /// The person.
    pub user: UserId,
    /// Who files it, 1 to 64 bytes.
    pub service: String,
    /// Why, 1 to 2,048 characters.
    pub reason: String,
    /// What is wrong, and what is right.
    pub corrections: Vec<Correction>,
}

/// Reads what a request would correct, and changes nothing.
///
/// # Errors
/// As [`carry_out`].
pub async fn preview(db: &mut Connection, request: Uuid) -> Result<(UserId, Vec<Corrected>), PrivacyError> {
    db.transaction(async |db| {
        let (user, corrections) = pending(db, request).await?;
        let corrected = look(db, user, &corrections).await?;
        Ok((user, corrected))
    })
    .await
}

/// The same of a rectification that has no request.
///
/// # Errors
/// As [`rectify`].
pub async fn preview_new(
    db: &mut Connection,
    new: &NewRectification,
) -> Result<Vec<Corrected>, PrivacyError> {
    check(new)?;
    db.transaction(async |db| {
        restriction::check(db, new.user, "rectified").await?;
        look(db, new.user, &new.corrections).await
    })
    .await
}

/// Carries out a request that a service has filed.
///
/// # Errors
/// [`PrivacyError::Refused`] if it is not a pending rectification, for an erased person or one who is being erased, and for a column that cannot be
/// rectified, a value that it cannot have, a row that is not there, and a value that is not the one said to be wrong. Nothing is changed then.
pub async fn carry_out(db: &mut Connection, request: Uuid) -> Result<Rectified, PrivacyError> {
    let (user, corrected) = db
        .transaction(async |db| {
            let (user, corrections) = pending(db, request).await?;
            let corrected = apply(db, user, request, &corrections).await?;
            complete(db, user, request, &corrected).await?;
            Ok::<_, PrivacyError>((user, corrected))
        })
        .await?;
    let elsewhere = elsewhere_if_known(db, user, &corrected).await;
    Ok(Rectified { request, user, corrected, elsewhere })
}

/// Corrects data of a person, and files a request that says so.
///
/// # Errors
/// As [`carry_out`], and for the platform, an unknown person, or a reason that is empty or too long.
pub async fn rectify(db: &mut Connection, new: &NewRectification) -> Result<Rectified, PrivacyError> {
    const FILE: &str = "
        INSERT INTO public.privacy_requests (id, user_id, request_type, request_status, service, reason)
        VALUES ($1, $2, 'rectify', 'in_progress', $3, $4)";
    check(new)?;
    let (request, user) = (Uuid::now_v7(), new.user);
    let corrected = db
        .transaction(async |db| {
            restriction::check(db, user, "rectified").await?;
            diesel::sql_query(FILE)
                .bind::<SqlUuid, _>(request)
                .bind::<Integer, _>(user.get())
                .bind::<Text, _>(&new.service)
                .bind::<Text, _>(&new.reason)
                .execute(db)
                .await?;
            let corrected = apply(db, user, request, &new.corrections).await?;
            complete(db, user, request, &corrected).await?;
            Ok::<_, PrivacyError>(corrected)
        })
        .await?;
    let elsewhere = elsewhere_if_known(db, user, &corrected).await;
    Ok(Rectified { request, user, corrected, elsewhere })
}

fn check(new: &NewRectification) -> Result<(), PrivacyError> {
    if new.reason.trim().is_empty() || new.reason.chars().count() > MAX_REASON {
        return Err(PrivacyError::Refused(format!("the reason has 1 to {MAX_REASON} characters")));
    }
    if new.corrections.is_empty() || new.corrections.len() > MAX_CORRECTIONS {
        return Err(PrivacyError::Refused(format!("a rectification has 1 to {MAX_CORRECTIONS} corrections")));
    }
    Ok(())
}

/// The person and the corrections of a pending request, whose row is locked until the end of the transaction.
async fn pending(db: &mut Connection, request: Uuid) -> Result<(UserId, Vec<Correction>), PrivacyError> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = Text)]
        request_type: String,
        #[diesel(sql_type = Text)]
        status: String,
        // As text: a number may have more digits than any type of this program.
        #[diesel(sql_type = Text)]
        details: String,
    }
    const FOUND: &str = "
        SELECT user_id, request_type::text AS request_type, request_status::text AS status, details::text AS details FROM public.privacy_requests
        WHERE id = $1 FOR UPDATE";
    let refused = |problem: String| Err(PrivacyError::Refused(problem));
    let found: Vec<Found> = diesel::sql_query(FOUND).bind::<SqlUuid, _>(request).load(db).await?;
    let Some(Found { user_id, request_type, status, details }) = found.into_iter().next() else {
        return refused(format!("there is no request {request}; `memfleet privacy list` has the ids"));
    };
    if request_type != "rectify" {
        return refused(format!("the request {request} is no rectification; its type is {request_type}"));
    }
    if status != "pending" {
        return refused(format!("the rectification {request} is not pending; it is {status}"));
    }
    let other = || {
        PrivacyError::Refused(format!(
            "the request {request} is not one that this program wrote; reject it: `memfleet privacy reject`"
        ))
    };
    let user = UserId::new(user_id).map_err(|_| other())?;
    let Details { corrections } = serde_json::from_str(&details).map_err(|_| other())?;
    if corrections.is_empty() || corrections.len() > MAX_CORRECTIONS {
        return Err(other());
    }
    restriction::check(db, user, "rectified").await?;
    Ok((user, corrections))
}

/// A correction that the column can have.
struct Change<'a> {
    table: &'static Table,
    column: &'static Column,
    correction: &'a Correction,
    after: Value,
}

impl<'a> Change<'a> {
    fn of(correction: &'a Correction) -> Result<Self, PrivacyError> {
        let (table, column) = find(correction)?;
        let place = format!("{}.{}", table.name, column.name);
        let refused = |problem: &str| PrivacyError::Refused(format!("{place}: {problem}"));
        match (table.rows, correction.row) {
            (Rows::Person, Some(_)) => {
                return Err(refused("the row is that of the person; name no other (row, --row)"));
            }
            (Rows::Many(_), None) => {
                return Err(refused("a person may have several rows; name the row by its id (row, --row)"));
            }
            (Rows::Person | Rows::One, None) | (Rows::One | Rows::Many(_), Some(_)) => {}
        }
        let after: Value =
            serde_json::from_str(correction.value.as_str()).map_err(|_| refused("the value is no JSON"))?;
        column.holds.check(&after).map_err(|problem| refused(&format!("the value {problem}")))?;
        Ok(Self { table, column, correction, after })
    }

    /// What finds the row: the person is `$1`, the row `$2`. All names are those of [`RECTIFIABLE`].
    fn condition(&self) -> String {
        match self.table.rows {
            Rows::Person => "t.id = $1 AND $2 IS NULL".to_owned(),
            Rows::One => "t.user_id = $1 AND ($2 IS NULL OR t.id = $2)".to_owned(),
            Rows::Many(is_there) => format!("t.user_id = $1 AND t.id = $2 AND {is_there}"),
        }
    }

    /// Locks the row, and gives the value that it has.
    async fn read(&self, db: &mut Connection, user: UserId) -> Result<Value, PrivacyError> {
        #[derive(QueryableByName)]
        struct Read {
            #[diesel(sql_type = Jsonb)]
            before: Value,
            #[diesel(sql_type = Bool)]
            is_as_said: bool,
            #[diesel(sql_type = Bool)]
            is_encrypted: bool,
        }
        let (table, column) = (self.table.name, self.column.name);
        let row_id = match self.table.rows {
            Rows::Person => "NULL::uuid",
            Rows::One | Rows::Many(_) => "t.id",
        };
        let read = format!(
            "SELECT coalesce(to_jsonb(t.{column}), 'null') AS before, $3 IS NULL OR coalesce(to_jsonb(t.{column}), 'null') = $3::jsonb AS is_as_said,
                EXISTS (SELECT FROM public.encrypted_fields e WHERE e.user_id = $1 AND e.row_id = {row_id} AND e.table_name = '{table}'
                    AND e.column_name = '{column}') AS is_encrypted
            FROM public.{table} t WHERE {} FOR UPDATE OF t",
            self.condition()
        );
        let rows: Vec<Read> = diesel::sql_query(read)
            .bind::<Integer, _>(user.get())
            .bind::<Nullable<SqlUuid>, _>(self.correction.row)
            .bind::<Nullable<Text>, _>(self.correction.was.as_ref().map(Json::as_str))
            .load(db)
            .await?;
        let place = self.place();
        let Some(Read { before, is_as_said, is_encrypted }) = rows.into_iter().next() else {
            return Err(PrivacyError::Refused(format!(
                "{place}: user {user} has no such row, or it was removed; nothing is corrected"
            )));
        };
        if is_encrypted {
            return Err(PrivacyError::Refused(format!(
                "{place}: the value is encrypted; its service must put it again with `{}`; nothing is corrected",
                self.table.request
            )));
        }
        if !is_as_said {
            return Err(PrivacyError::Refused(format!(
                "{place}: the value is not the one that is said to be wrong; it was changed since, and nothing is corrected"
            )));
        }
        Ok(before)
    }

    fn place(&self) -> String {
        let row = self.correction.row.map(|row| format!(" of {row}")).unwrap_or_default();
        format!("{}.{}{row}", self.table.name, self.column.name)
    }

    /// Writes the value. What a service has published before does not bring the old one back: the row counts as written now.
    async fn write(&self, db: &mut Connection, user: UserId, request: Uuid) -> Result<(), PrivacyError> {
        let (table, column, value) = (self.table.name, self.column.name, self.column.holds.of_json());
        let write = format!(
            "UPDATE public.{table} t SET {column} = {value}, updated_at = greatest(t.updated_at, now()), request_id = $3 WHERE {}",
            self.condition()
        );
        let written = diesel::sql_query(write)
            .bind::<Integer, _>(user.get())
            .bind::<Nullable<SqlUuid>, _>(self.correction.row)
            .bind::<SqlUuid, _>(request)
            .bind::<Text, _>(self.correction.value.as_str())
            .execute(db)
            .await?;
        match written {
            1 => Ok(()),
            _ => Err(PrivacyError::Refused(format!("{}: {written} rows were changed", self.place()))),
        }
    }

    fn corrected(&self, before: Value) -> Corrected {
        Corrected {
            table: self.table.name,
            row: self.correction.row,
            column: self.column.name,
            before,
            after: self.after.clone(),
        }
    }
}

/// All of them, each column of a row once.
fn changes(corrections: &[Correction]) -> Result<Vec<Change<'_>>, PrivacyError> {
    let changes: Vec<Change<'_>> = corrections.iter().map(Change::of).collect::<Result<_, _>>()?;
    let mut places: Vec<String> = changes.iter().map(Change::place).collect();
    places.sort_unstable();
    if let Some([twice, _]) = places.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(PrivacyError::Refused(format!("{twice}: is corrected twice; correct it once")));
    }
    Ok(changes)
}

async fn look(
    db: &mut Connection,
    user: UserId,
    corrections: &[Correction],
) -> Result<Vec<Corrected>, PrivacyError> {
    let mut corrected = Vec::new();
    for change in changes(corrections)? {
        let before = change.read(db, user).await?;
        corrected.push(change.corrected(before));
    }
    Ok(corrected)
}

async fn apply(
    db: &mut Connection,
    user: UserId,
    request: Uuid,
    corrections: &[Correction],
) -> Result<Vec<Corrected>, PrivacyError> {
    let mut corrected = Vec::new();
    for change in changes(corrections)? {
        let before = change.read(db, user).await?;
        change.write(db, user, request).await?;
        corrected.push(change.corrected(before));
    }
    Ok(corrected)
}

/// Completes a request. It keeps the names of the columns, and no value.
async fn complete(
    db: &mut Connection,
    user: UserId,
    request: Uuid,
    corrected: &[Corrected],
) -> Result<(), PrivacyError> {
    #[derive(Serialize)]
    struct Place {
        table: &'static str,
        row: Option<Uuid>,
        column: &'static str,
    }
    const COMPLETE: &str = "
        UPDATE public.privacy_requests SET request_status = 'completed', completed_at = now(), updated_at = now(), details = $1, last_error = NULL
        WHERE user_id = $2 AND id = $3 AND request_type = 'rectify' AND request_status IN ('pending', 'in_progress')";
    let places: Vec<Place> =
        corrected.iter().map(|one| Place { table: one.table, row: one.row, column: one.column }).collect();
    let completed = diesel::sql_query(COMPLETE)
        .bind::<Jsonb, _>(serde_json::json!({ "corrected": places }))
        .bind::<Integer, _>(user.get())
        .bind::<SqlUuid, _>(request)
        .execute(db)
        .await?;
    match completed {
        1 => Ok(()),
        _ => Err(PrivacyError::Refused(format!(
            "the rectification {request} was changed at the same time; try again"
        ))),
    }
}

/// The same after the rectification is committed, which a failure does not undo.
async fn elsewhere_if_known(db: &mut Connection, user: UserId, corrected: &[Corrected]) -> Elsewhere {
    match elsewhere(db, user, corrected).await {
        Ok(elsewhere) => elsewhere,
        Err(error) => {
            tracing::warn!(%error, "rectified; it cannot be told where else the old values are");
            Elsewhere::default()
        }
    }
}

/// Looks for the old values where no rectification changes them.
async fn elsewhere(
    db: &mut Connection,
    user: UserId,
    corrected: &[Corrected],
) -> Result<Elsewhere, PrivacyError> {
    #[derive(QueryableByName)]
    struct Counts {
        #[diesel(sql_type = BigInt)]
        events: i64,
        #[diesel(sql_type = BigInt)]
        memories: i64,
        #[diesel(sql_type = BigInt)]
        archives: i64,
    }
    // An event has the value as a string of its JSON, a memory within its text.
    const COUNTS: &str = "
        SELECT (SELECT count(*) FROM public.blackboard_events b
                WHERE b.user_id = $1 AND EXISTS (SELECT FROM unnest($2) AS v (text) WHERE position(to_json(v.text)::text IN b.event_payload::text) > 0)) AS events,
            (SELECT count(*) FROM public.unified_memory_vectors m
                WHERE m.user_id = $1 AND EXISTS (SELECT FROM unnest($2) AS v (text) WHERE position(v.text IN m.content_text) > 0)) AS memories,
            (SELECT count(*) FROM public.archives a WHERE a.user_ids @> ARRAY[$1]) AS archives";
    let is_sought = |text: &&str| text.chars().count() >= LEAST_SOUGHT;
    let changed = corrected.iter().filter(|one| one.before != one.after);
    let sought: Vec<&str> = changed.filter_map(|one| one.before.as_str()).filter(is_sought).collect();
    let Counts { events, memories, archives } = diesel::sql_query(COUNTS)
        .bind::<Integer, _>(user.get())
        .bind::<Array<Text>, _>(sought)
        .get_result(db)
        .await?;
    Ok(Elsewhere {
        events: events.unsigned_abs(),
        memories: memories.unsigned_abs(),
        archives: archives.unsigned_abs(),
    })
}
