//! `memfleet token inspect`

use std::io::Read;

use anyhow::{Context, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use cli::outln;
use cli::output::out_json;
use config::Settings;
use contract::SessionId;
use serde_json::json;
use store::registry::{self, TrustState};
use trust::{MAX_TOKEN_BYTES, Refusal, Scope, Token, verify};

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The token; `-` reads standard input.
    #[arg(default_value = "-")]
    token: String,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: InspectArgs, settings: &Settings) -> anyhow::Result<()> {
    let text = if args.token == "-" { from_standard_input()? } else { args.token };
    let text = text.trim();
    let text = text.strip_prefix("Bearer ").unwrap_or(text);
    let mut connection = super::registry(settings).await?;
    let state = registry::trust_state(&mut connection).await?;
    let token = match verify(text, &settings.trust.audience, |name| state.keys.get(name)) {
        Ok(token) => token,
        Err(refusal) => bail!("{refusal}"),
    };
    let refusal = judge(&token, &state, Utc::now());
    show(&token, refusal, args.json);
    match refusal {
        Some(refusal) => bail!("{refusal}"),
        None => Ok(()),
    }
}

fn from_standard_input() -> anyhow::Result<String> {
    let mut text = String::new();
    let limit = u64::try_from(MAX_TOKEN_BYTES)? + 64;
    std::io::stdin().take(limit).read_to_string(&mut text).context("cannot read standard input")?;
    Ok(text)
}

/// Why every request stored now with this token would be rejected, if it would.
fn judge(token: &Token, state: &TrustState, now: DateTime<Utc>) -> Option<Refusal> {
    let now = u64::try_from(now.timestamp()).unwrap_or_default();
    if state.revoked.contains(&token.id()) {
        return Some(Refusal::Revoked);
    }
    if !state.services.contains_key(token.service()) {
        return Some(Refusal::UnknownService);
    }
    token.check_time(now).err()
}

fn show(token: &Token, refusal: Option<Refusal>, as_json: bool) {
    let time = |seconds: u64| {
        let time = i64::try_from(seconds).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
        time.map_or_else(|| seconds.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
    };
    let session = token.session().map(SessionId::as_str);
    let roles: Vec<&str> = token.roles().collect();
    if as_json {
        let object = json!({
            "id": token.id(), "key": token.key_name(), "service": token.service().as_str(), "user_id": token.user_id(),
            "session_id": session, "scopes": token.scopes().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "not_before": time(token.not_before()), "expires": time(token.expires()), "roles": roles,
            "good": refusal.is_none(), "refusal": refusal.map(Refusal::as_str),
        });
        out_json(object);
        return;
    }
    outln!("id       {}", token.id());
    outln!("key      {}", token.key_name());
    outln!("service  {}", token.service());
    outln!("user     {}", token.user_id());
    outln!("session  {}", session.unwrap_or("any session of the user"));
    outln!("scopes   {}", Scope::list(token.scopes()));
    outln!("from     {}", time(token.not_before()));
    outln!("until    {}", time(token.expires()));
    outln!("roles    {}", roles.join(", "));
    if refusal.is_none() {
        outln!("The token is valid now.");
    }
}
