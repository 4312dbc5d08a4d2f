//! `memfleet token list`

use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use cli::outln;
use cli::output::out_json;
use cli::table::{Align, Table};
use config::Settings;
use contract::{Service, UserId};
use store::registry::{self, RegisteredToken, TokenFilter};

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only tokens of this service.
    #[arg(long)]
    service: Option<Service>,
    /// Only tokens for this user.
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Include expired and revoked tokens.
    #[arg(long)]
    all: bool,
    /// Maximum number of tokens.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print one JSON object: {"tokens": [...]}.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: ListArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::registry(settings).await?;
    let which =
        TokenFilter { service: args.service, user_id: args.user, all: args.all, limit: args.limit.into() };
    let tokens = registry::list(&mut connection, &which).await?;
    if args.json {
        out_json(serde_json::json!({ "tokens": tokens }));
    } else if tokens.is_empty() {
        outln!("no tokens");
    } else {
        outln!("{}", table(&tokens, Utc::now()));
    }
    Ok(())
}

fn table(tokens: &[RegisteredToken], now: DateTime<Utc>) -> Table {
    let mut table = Table::new([
        ("id", Align::Left),
        ("service", Align::Left),
        ("user", Align::Right),
        ("session", Align::Left),
        ("scopes", Align::Left),
        ("key", Align::Left),
        ("until", Align::Left),
        ("last used", Align::Left),
        ("state", Align::Left),
    ]);
    let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    for token in tokens {
        let state = match token.revoked_at {
            Some(_) => "revoked",
            None if token.expires_at <= now => "expired",
            None => "valid",
        };
        table.row([
            token.token_id.to_string(),
            token.service.clone(),
            token.user_id.to_string(),
            token.session_id.clone().unwrap_or_else(|| "-".to_owned()),
            token.scopes.join(" "),
            token.key_id.clone(),
            time(token.expires_at),
            token.last_used_at.map_or_else(|| "never".to_owned(), time),
            state.to_owned(),
        ]);
    }
    table
}
