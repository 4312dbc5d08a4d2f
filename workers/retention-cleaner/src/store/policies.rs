//! Policies and legal holds, and what is filed beside them (`privacy.rs`). Of two requests for the same rows or hold, the one that JetStream stored later decides.

use std::collections::HashMap;
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{AccessTier, ChatMode, RetainedTable, RetentionAction, RetentionRequest};
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Integer};
use diesel_async::RunQueryDsl;
use runtime::{Reason, Verdict};
use uuid::Uuid;

use crate::store::{privacy, progress};
use crate::{Message, RetentionItem};

::store::unnest_row! {
    /// A row of [`PUT`].
    struct PolicyRow<'a> {
        place: i32,
        id: Uuid,
        user_id: i32,
        table_name: &'a str,
        chat_mode: Option<&'a str>,
        access_tier: Option<&'a str>,
        keep_days: Option<i32>,
        action: &'a str,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

/// A removal keeps the row, inactive.
static PUT: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (PolicyRow::arrays(1), PolicyRow::names());
    format!(
        "WITH input AS (
        SELECT i.* FROM unnest({arrays}) AS i ({names}) JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO data_retention_policies AS t (id, user_id, table_name, chat_mode, access_tier, keep_days, action, is_active,
            created_at, updated_at, request_id)
        SELECT i.id, i.user_id, i.table_name, i.chat_mode::chat_mode, i.access_tier, coalesce(i.keep_days, 36500),
            i.action::retention_action, i.keep_days IS NOT NULL, i.stored_at, i.stored_at, i.request_id
        FROM input i ORDER BY i.user_id, i.table_name, i.chat_mode, i.access_tier
        ON CONFLICT (user_id, table_name, chat_mode, access_tier) DO UPDATE SET
            keep_days = CASE WHEN excluded.is_active THEN excluded.keep_days ELSE t.keep_days END,
            action = CASE WHEN excluded.is_active THEN excluded.action ELSE t.action END,
            is_active = excluded.is_active, updated_at = excluded.updated_at, request_id = excluded.request_id
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, request_id
    )
    SELECT i.place, w.user_id IS NOT NULL AS is_written
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.request_id = i.request_id"
    )
});

::store::unnest_row! {
    /// A row of [`HOLD`].
    struct HoldRow<'a> {
        place: i32,
        id: Uuid,
        user_id: i32,
        table_name: Option<&'a str>,
        chat_mode: Option<&'a str>,
        access_tier: Option<&'a str>,
        reason: &'a str,
        is_released: bool,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

/// What a release covers stays as it was.
static HOLD: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (HoldRow::arrays(1), HoldRow::names());
    format!(
        "WITH input AS (
        SELECT i.* FROM unnest({arrays}) AS i ({names}) JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO retention_holds AS t (id, user_id, table_name, chat_mode, access_tier, reason, released_at, created_at, updated_at,
            request_id)
        SELECT i.id, i.user_id, i.table_name, i.chat_mode::chat_mode, i.access_tier, i.reason,
            CASE WHEN i.is_released THEN i.stored_at END, i.stored_at, i.stored_at, i.request_id
        FROM input i ORDER BY i.user_id, i.id
        ON CONFLICT (user_id, id) DO UPDATE SET
            table_name = CASE WHEN excluded.released_at IS NULL THEN excluded.table_name ELSE t.table_name END,
            chat_mode = CASE WHEN excluded.released_at IS NULL THEN excluded.chat_mode ELSE t.chat_mode END,
            access_tier = CASE WHEN excluded.released_at IS NULL THEN excluded.access_tier ELSE t.access_tier END,
            reason = excluded.reason, released_at = excluded.released_at, updated_at = excluded.updated_at,
            request_id = excluded.request_id
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, request_id
    )
    SELECT i.place, w.user_id IS NOT NULL AS is_written
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.request_id = i.request_id"
    )
});

const NO_TARGET: &str =
    "action: this platform has no archives; ask its operator to set archive.url, or use delete";

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Integer)]
    place: i32,
    #[diesel(sql_type = Bool)]
    is_written: bool,
}

/// What a request is about: a statement writes each once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    Rows(i32, RetainedTable, Option<ChatMode>, Option<AccessTier>),
    Hold(i32, Uuid),
}

/// None of a request that is about no policy and no hold.
fn subject(message: &Message, request: &RetentionRequest) -> Option<Subject> {
    let user = message.user_id().get();
    match request {
        RetentionRequest::PolicyPut(put) => {
            Some(Subject::Rows(user, put.table, put.chat_mode, put.access_tier))
        }
        RetentionRequest::PolicyRemove(remove) => {
            Some(Subject::Rows(user, remove.table, remove.chat_mode, remove.access_tier))
        }
        RetentionRequest::PolicyHold(hold) => Some(Subject::Hold(user, hold.hold_id)),
        RetentionRequest::PrivacyAccess(_)
        | RetentionRequest::PrivacyRectify(_)
        | RetentionRequest::PrivacyRestrict(_)
        | RetentionRequest::PrivacyAnonymise(_)
        | RetentionRequest::PrivacyErase(_) => None,
    }
}

/// A request and its place in the batch.
type Placed<'a> = (usize, &'a Message, &'a RetentionRequest);

/// The requests of a batch in the order of the stream, in rounds that have each subject once.
fn rounds<'a>(batch: &[&'a Message], archives: bool) -> Vec<Vec<Placed<'a>>> {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    // What was delivered again may stand behind what came later.
    order.sort_by_key(|index| batch[*index].sequence);
    let mut rounds: Vec<Vec<_>> = Vec::new();
    let mut seen: HashMap<Subject, usize> = HashMap::new();
    for index in order {
        let message = batch[index];
        let RetentionItem::Request(request) = &message.request else { continue };
        if is_in_vain(&message.request, archives) {
            continue;
        }
        let Some(subject) = subject(message, request) else { continue };
        let round = seen.entry(subject).or_default();
        if rounds.len() <= *round {
            rounds.push(Vec::new());
        }
        rounds[*round].push((index, message, request));
        *round += 1;
    }
    rounds
}

/// A policy that archives while there is nowhere to archive to: nothing would become of its rows.
fn is_in_vain(request: &RetentionItem, archives: bool) -> bool {
    match request {
        RetentionItem::Request(RetentionRequest::PolicyPut(put)) => {
            !archives && put.action == RetentionAction::Archive
        }
        RetentionItem::Request(
            RetentionRequest::PolicyRemove(_)
            | RetentionRequest::PolicyHold(_)
            | RetentionRequest::PrivacyAccess(_)
            | RetentionRequest::PrivacyRectify(_)
            | RetentionRequest::PrivacyRestrict(_)
            | RetentionRequest::PrivacyAnonymise(_)
            | RetentionRequest::PrivacyErase(_),
        )
        | RetentionItem::Tick(_) => false,
    }
}

/// The rows of a round.
fn rows<'a>(round: &[Placed<'a>]) -> (Vec<PolicyRow<'a>>, Vec<HoldRow<'a>>) {
    let (mut policies, mut holds) = (Vec::new(), Vec::new());
    for (index, message, request) in round {
        let place = i32::try_from(*index).unwrap_or(i32::MAX);
        match request {
            RetentionRequest::PolicyPut(put) => policies.push(PolicyRow {
                // The range of the type fits.
                keep_days: i32::try_from(put.keep_days.get()).ok(),
                action: put.action.as_str(),
                ..policy(place, message, put.table, put.chat_mode, put.access_tier)
            }),
            RetentionRequest::PolicyRemove(remove) => {
                policies.push(policy(place, message, remove.table, remove.chat_mode, remove.access_tier));
            }
            RetentionRequest::PolicyHold(hold) => holds.push(HoldRow {
                place,
                id: hold.hold_id,
                user_id: message.user_id().get(),
                table_name: hold.table.map(RetainedTable::as_str),
                chat_mode: hold.chat_mode.map(ChatMode::as_str),
                access_tier: hold.access_tier.map(AccessTier::as_str),
                reason: hold.reason.as_str(),
                is_released: hold.released,
                stored_at: message.stored_at,
                request_id: message.request_id,
            }),
            // They have no subject, and are in no round.
            RetentionRequest::PrivacyAccess(_)
            | RetentionRequest::PrivacyRectify(_)
            | RetentionRequest::PrivacyRestrict(_)
            | RetentionRequest::PrivacyAnonymise(_)
            | RetentionRequest::PrivacyErase(_) => {}
        }
    }
    (policies, holds)
}

/// Writes a batch of requests. `archives`: whether there is a target for archives. Once a hold is committed, no run removes what it covers:
/// one that has begun without it ends before.
pub(crate) async fn write(
    connection: &mut Connection,
    batch: &[&Message],
    archives: bool,
) -> Result<Vec<Verdict>, Fault> {
    let mut answered: HashMap<usize, bool> = HashMap::with_capacity(batch.len());
    for round in rounds(batch, archives) {
        let (policies, holds) = rows(&round);
        let mut answers: Vec<Answer> = Vec::new();
        if !policies.is_empty() {
            answers = with_rows(&PUT, policies).load(connection).await?;
        }
        if !holds.is_empty() {
            let more: Vec<Answer> = with_rows(&HOLD, holds).load(connection).await?;
            answers.extend(more);
        }
        let of = |answer: Answer| Some((usize::try_from(answer.place).ok()?, answer.is_written));
        answered.extend(answers.into_iter().filter_map(of));
    }
    let is_hold = |message: &&Message| {
        matches!(message.request, RetentionItem::Request(RetentionRequest::PolicyHold(_)))
    };
    if batch.iter().any(is_hold) {
        progress::await_run(connection).await?;
    }
    let mut filed = privacy::file(connection, batch).await?;
    let verdict = |(index, message): (usize, &&Message)| {
        filed.remove(&index).unwrap_or_else(|| match answered.get(&index) {
            _ if is_in_vain(&message.request, archives) => Verdict::Rejected(Reason::new(NO_TARGET)),
            Some(true) => Verdict::applied(message),
            Some(false) => Verdict::unchanged(message),
            None => Verdict::missing_prerequisite(message),
        })
    };
    Ok(batch.iter().enumerate().map(verdict).collect())
}

fn policy<'a>(
    place: i32,
    message: &Message,
    table: RetainedTable,
    chat_mode: Option<ChatMode>,
    access_tier: Option<AccessTier>,
) -> PolicyRow<'a> {
    PolicyRow {
        place,
        id: Uuid::now_v7(),
        user_id: message.user_id().get(),
        table_name: table.as_str(),
        chat_mode: chat_mode.map(ChatMode::as_str),
        access_tier: access_tier.map(AccessTier::as_str),
        keep_days: None,
        action: "delete",
        stored_at: message.stored_at,
        request_id: message.request_id,
    }
}
