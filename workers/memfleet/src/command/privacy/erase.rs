//! `memfleet privacy erase` and `memfleet privacy anonymise`

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use archive::ArchiveError;
use audit::AuditError;
use clap::Args;
use cli::confirm::confirm;
use cli::output::{out_json, printable};
use cli::{errln, outln};
use config::Settings;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use keys::KeyError;
use privacy::process::{self, Stores};
use privacy::request::{self, NewRequest, Submitted};
use privacy::{Advance, Claimed, Hold, PrivacyError, Removal};
use store::{Connection, FaultKind};
use uuid::Uuid;

use super::requests::time;

#[derive(Debug, Args)]
pub(super) struct EraseArgs {
    /// The user.
    user: UserId,
    /// Why, 1 to 2048 characters, such as the letter of the person. It is erased with the person's data.
    #[arg(long, value_name = "TEXT", value_parser = super::reason)]
    reason: String,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    /// Carry the erasure out, and end when its receipt is signed. Without it, `memfleet privacy run --follow` does so.
    #[arg(long)]
    wait: bool,
    /// Print one JSON object: {"request": "...", "due_at": "...", "status": "pending" or "completed"}.
    #[arg(long)]
    json: bool,
}

/// The service of requests that operators file.
pub(super) const SERVICE: &str = "operator";
/// The pause before a step that has to wait is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The pause before a step that failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

pub(super) async fn execute(args: &EraseArgs, removal: Removal, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    if args.wait {
        super::check_receipts(settings)?;
    }
    let kept = match removal {
        Removal::Erase => "",
        Removal::Anonymise => ", adds what the rows count to sums over all anonymised persons",
    };
    let consequence = format!(
        "this deletes everything of user {} from all stores permanently{kept}, and the id is refused from then on",
        args.user
    );
    confirm(&consequence, args.yes)?;
    let new = NewRequest { removal, service: SERVICE.to_owned(), reason: args.reason.clone() };
    let Submitted { id, due_at, hold } = request::submit(&mut connection, args.user, new).await?;
    if let Some(hold) = hold {
        return Err(held(id, &hold));
    }
    if args.wait {
        carry_out(settings, id).await?;
    }
    let status = if args.wait { "completed" } else { "pending" };
    if args.json {
        let filed = serde_json::json!({ "request": id, "due_at": due_at, "status": status });
        out_json(filed.to_string());
    } else if args.wait {
        let done = match removal {
            Removal::Erase => "erased",
            Removal::Anonymise => "anonymised",
        };
        outln!("{done}; the receipt is {id}.json");
    } else {
        outln!("filed as {id}, to be complete by {}", time(due_at));
        outln!("`memfleet privacy run` carries it out; `memfleet privacy show {id}` shows how far it is");
    }
    Ok(())
}

fn held(id: Uuid, hold: &Hold) -> anyhow::Error {
    anyhow::anyhow!(
        "the erasure {id} is filed and waits for the release of the legal hold {}: {}",
        hold.id,
        printable(&hold.reason)
    )
}

/// Does one step after the other until the receipt is signed. Another process may do some of them. What may pass, such as a store that is away,
/// is waited for.
async fn carry_out(settings: &Settings, id: Uuid) -> anyhow::Result<()> {
    let (run, mut told) = (Uuid::now_v7(), String::new());
    loop {
        let Err(error) = attempt(settings, id, run, &mut told).await else { return Ok(()) };
        match error.downcast_ref::<PrivacyError>() {
            Some(problem) if may_pass(problem) => {
                let wait = AGAIN_AFTER.as_secs();
                tell(&mut told, format!("{error:#}; it is tried again every {wait} s, until Ctrl-C"));
            }
            Some(_) => bail!("{error:#}; `memfleet privacy run` goes on from there"),
            None => return Err(error),
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Prints to standard error why the erasure waits, unless that was the last to be printed.
fn tell(told: &mut String, reason: String) {
    if *told != reason {
        errln!("{}", printable(&reason));
        *told = reason;
    }
}

/// Goes on with the erasure, with stores that are opened anew, until it is complete.
async fn attempt(settings: &Settings, id: Uuid, run: Uuid, told: &mut String) -> anyhow::Result<()> {
    let mut stores = Stores::open(settings).await?;
    loop {
        let claimed = request::claim(&mut stores.database, run, Some(id)).await?;
        let is_complete = match claimed {
            Some(claimed) => advance(&mut stores, claimed, told).await?,
            None => is_complete(&mut stores.database, id).await?,
        };
        if is_complete {
            return Ok(());
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// Does steps until one has to wait or the erasure is complete. Says whether it is.
async fn advance(stores: &mut Stores, mut claimed: Claimed, told: &mut String) -> anyhow::Result<bool> {
    let id = claimed.id;
    loop {
        let step = claimed.step;
        let advanced = process::advance(stores, &mut claimed).await;
        match advanced.with_context(|| format!("the erasure {id} stopped at the step {step}"))? {
            Advance::Next(_) => {}
            Advance::Done => return Ok(true),
            Advance::Held(hold) => return Err(held(id, &hold)),
            Advance::Waiting(reason) => {
                tell(told, format!("{step}: {reason}"));
                return Ok(false);
            }
        }
    }
}

/// Whether the same step may succeed later without anybody's doing: its store is away, or a database failed this time.
fn may_pass(error: &PrivacyError) -> bool {
    match error {
        // What differed is counted anew.
        PrivacyError::Left { .. } | PrivacyError::Away { .. } | PrivacyError::Connection(_) => true,
        PrivacyError::Database(fault) | PrivacyError::Audit(AuditError::Database(fault)) => {
            fault_may_pass(fault.kind)
        }
        PrivacyError::Audit(error) => matches!(error, AuditError::Anchor { .. } | AuditError::Blocked { .. }),
        PrivacyError::Archive(error) => matches!(error, ArchiveError::Target { .. }),
        PrivacyError::Vectors(error) => error.is_transient(),
        PrivacyError::Keys(error) => match error {
            KeyError::Store(_) | KeyError::Blocked(_) | KeyError::Main(_) | KeyError::Provider(_) => true,
            KeyError::Denied(_) | KeyError::Settings(_) => false,
        },
        PrivacyError::Refused(_)
        | PrivacyError::NotGenuine(_)
        | PrivacyError::Settings(_)
        | PrivacyError::File { .. } => false,
    }
}

fn fault_may_pass(kind: FaultKind) -> bool {
    match kind {
        FaultKind::Transient | FaultKind::Blocked | FaultKind::Unavailable | FaultKind::ConnectionLost => {
            true
        }
        FaultKind::MissingPrerequisite
        | FaultKind::Permanent
        | FaultKind::Denied
        | FaultKind::Erased
        | FaultKind::Fenced
        | FaultKind::Restricted { .. } => false,
    }
}

/// Whether another process has completed it.
///
/// # Errors
/// If it was cancelled.
async fn is_complete(database: &mut Connection, id: Uuid) -> anyhow::Result<bool> {
    #[derive(QueryableByName)]
    struct State {
        #[diesel(sql_type = Bool)]
        is_complete: bool,
        #[diesel(sql_type = Bool)]
        is_open: bool,
    }
    // One statement, which sees both as they were at one moment: two would take one that is completed between them for cancelled.
    const STATE: &str = "
        SELECT EXISTS (SELECT FROM sec.erased_users WHERE erasure = $1 AND receipt IS NOT NULL) AS is_complete,
            EXISTS (SELECT FROM public.privacy_requests WHERE id = $1 AND request_status IN ('pending', 'held', 'in_progress')) AS is_open";
    let query = diesel::sql_query(STATE).bind::<SqlUuid, _>(id);
    let State { is_complete, is_open } = query.get_result(database).await.map_err(PrivacyError::from)?;
    ensure!(is_complete || is_open, "the erasure {id} was cancelled");
    Ok(is_complete)
}
