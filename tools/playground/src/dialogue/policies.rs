//! Retention in the built-in sample: a user keeps routing decisions for a shorter time, and thinks better of it.

use contract::{PolicyHold, PolicyPut, PolicyRemove, Request};
use serde_json::json;

use super::prepare::{ACCOUNT_SERVICE, Out, id};
use super::sample::read;

/// Adds the requests.
pub(super) fn add(out: &mut Out) -> Result<(), String> {
    let before = std::mem::replace(&mut out.service, ACCOUNT_SERVICE);
    let put: PolicyPut =
        read(json!({ "table": "router_decision_log", "keep_days": 30, "action": "anonymise" }))?;
    out.add(Request::PolicyPut(put), &["decisions"], false)?;
    let hold_id = id(&[out.corpus.as_str(), &out.user_id.to_string(), "hold", "trip"]);
    let hold: PolicyHold =
        read(json!({ "hold_id": hold_id, "table": "chat_mode_sessions", "reason": "A lost suitcase." }))?;
    out.add(Request::PolicyHold(hold), &["placed"], false)?;
    let release: PolicyHold =
        read(json!({ "hold_id": hold_id, "released": true, "reason": "The suitcase was found." }))?;
    out.add(Request::PolicyHold(release), &["released"], false)?;
    let remove: PolicyRemove = read(json!({ "table": "router_decision_log" }))?;
    out.add(Request::PolicyRemove(remove), &["decisions"], false)?;
    out.service = before;
    Ok(())
}
