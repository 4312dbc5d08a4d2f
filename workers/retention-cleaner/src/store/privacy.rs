//! Requests of a person by law. They are filed here and carried out by an operator's process (`memfleet privacy run`): this worker has neither the
//! right to delete data keys nor to restrict a person.

use std::collections::HashMap;
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault, FaultKind};
use chrono::{DateTime, Utc};
use contract::{Correction, Meanwhile, PrivacyReason, RetentionRequest};
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Text};
use diesel_async::RunQueryDsl;
use runtime::{Reason, Verdict};
use serde::Serialize;
use uuid::Uuid;

use crate::{Message, RetentionItem};

::store::unnest_row! {
    /// A row of [`FILE`].
    struct FiledRow<'a> {
        place: i32,
        id: Uuid,
        user_id: i32,
        kind: &'a str,
        service: &'a str,
        reason: Option<&'a str>,
        content: String,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static FILE: LazyLock<String> = LazyLock::new(|| {
    let arrays = FiledRow::arrays(1);
    format!("SELECT f.place, f.outcome FROM sec.file_privacy_requests({arrays}) AS f")
});

const TOO_MANY: &str = "the user has 100 requests that are open; an operator completes or rejects them first";

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Integer)]
    place: i32,
    #[diesel(sql_type = Text)]
    outcome: String,
}

/// The type of a request in `privacy_requests`, its reason, and its `details`. Those of a retention policy or a hold are none.
type Parts<'a> = (&'static str, Option<&'a PrivacyReason>, Details<'a>);

/// What `privacy_requests.details` has of a request.
#[derive(Default, Serialize)]
struct Details<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<&'a str>,
    #[serde(rename = "while", skip_serializing_if = "Option::is_none")]
    meanwhile: Option<Meanwhile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    corrections: Option<&'a [Correction]>,
}

fn parts(request: &RetentionRequest) -> Option<Parts<'_>> {
    let nothing = Details::default();
    Some(match request {
        RetentionRequest::PrivacyAccess(access) => {
            let details = Details { recipient: Some(access.recipient.as_str()), ..nothing };
            ("access", access.reason.as_ref(), details)
        }
        RetentionRequest::PrivacyRectify(rectify) => {
            let details = Details { corrections: Some(rectify.corrections.as_slice()), ..nothing };
            ("rectify", Some(&rectify.reason), details)
        }
        RetentionRequest::PrivacyRestrict(restrict) => {
            let details = Details { meanwhile: restrict.meanwhile, ..nothing };
            ("restrict", restrict.reason.as_ref(), details)
        }
        RetentionRequest::PrivacyAnonymise(anonymise) => ("anonymise", Some(&anonymise.reason), nothing),
        RetentionRequest::PrivacyErase(erase) => ("erase", Some(&erase.reason), nothing),
        RetentionRequest::PolicyPut(_)
        | RetentionRequest::PolicyRemove(_)
        | RetentionRequest::PolicyHold(_) => return None,
    })
}

fn row<'a>(index: usize, message: &'a Message) -> Result<Option<FiledRow<'a>>, Fault> {
    let RetentionItem::Request(request) = &message.request else { return Ok(None) };
    let Some((kind, reason, details)) = parts(request) else { return Ok(None) };
    // The text of a value is kept as it is: a number may have more digits than any type of this program.
    let content = serde_json::to_string(&details).map_err(|error| Fault {
        kind: FaultKind::Permanent,
        reason: format!("a privacy request cannot be stored: {error}"),
    })?;
    Ok(Some(FiledRow {
        place: i32::try_from(index).unwrap_or(i32::MAX),
        // The event of the request has the same id, so that the outcome tells its publisher which request an operator can show.
        id: message.event_id,
        user_id: message.user_id().get(),
        kind,
        service: message.publisher(),
        reason: reason.map(PrivacyReason::as_str),
        content,
        stored_at: message.stored_at,
        request_id: message.request_id,
    }))
}

/// Files the requests of a batch that are of this kind, in the order of the stream. Gives their verdicts, by their place in the batch.
pub(super) async fn file(
    connection: &mut Connection,
    batch: &[&Message],
) -> Result<HashMap<usize, Verdict>, Fault> {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by_key(|index| batch[*index].sequence);
    let mut rows = Vec::new();
    for index in order {
        rows.extend(row(index, batch[index])?);
    }
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    let answers: Vec<Answer> = with_rows(&FILE, rows).load(connection).await?;
    let verdict = |Answer { place, outcome }: Answer| {
        let index = usize::try_from(place).ok()?;
        let message = *batch.get(index)?;
        let verdict = match outcome.as_str() {
            "filed" => Verdict::applied(message),
            "open" => Verdict::unchanged(message),
            "full" => Verdict::Rejected(Reason::new(TOO_MANY)),
            _ => Verdict::missing_prerequisite(message),
        };
        Some((index, verdict))
    };
    Ok(answers.into_iter().filter_map(verdict).collect())
}
