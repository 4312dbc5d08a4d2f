//! A sync between two sessions in the built-in sample: one follows the other, is stopped, and is taken back.

use contract::{Request, SessionOpen, SyncStart, SyncStop, SyncUndo};
use serde_json::json;

use super::prepare::{Out, id};
use super::sample::read;

/// The service that publishes their requests.
const SERVICE: &str = "simple-chat";
/// The sessions: what is noted in the first one would be carried into the second one.
const SESSIONS: [&str; 2] = ["trip-notes", "trip-plan"];

/// Adds the requests.
pub(super) fn add(out: &mut Out) -> Result<(), String> {
    let before = std::mem::replace(&mut out.service, SERVICE);
    for session in SESSIONS {
        let open: SessionOpen = read(json!({ "session_id": session, "chat_mode": "simple" }))?;
        out.add(Request::SessionOpen(open), &[session], true)?;
    }
    let sync_id = id(&[out.corpus.as_str(), &out.user_id.to_string(), "sync", "packing"]);
    let start: SyncStart = read(json!({ "sync_id": sync_id, "source_session_id": SESSIONS[0],
        "target_session_id": SESSIONS[1], "sync_type": "state_sync" }))?;
    out.add(Request::SyncStart(start), &["packing"], false)?;
    let stop: SyncStop = read(json!({ "sync_id": sync_id, "reason": "The bags are packed." }))?;
    out.add(Request::SyncStop(stop), &["packing"], false)?;
    let undo: SyncUndo = read(json!({ "sync_id": sync_id, "reason": "They need no list any more." }))?;
    out.add(Request::SyncUndo(undo), &["packing"], false)?;
    out.service = before;
    Ok(())
}
