//! `memfleet ask`

use std::io::Read;

use anyhow::{Context, ensure};
use clap::Args;
use cli::json;
use cli::output::out_json;
use cli::tokens::Tokens;
use client::{Client, ClientOptions, QueryOptions};
use config::Settings;
use contract::{QUERIES, QUERY_BYTES, QueryKind, UserId, limit};
use runtime::broker;
use serde_json::value::RawValue;
use topology::Service;
use uuid::Uuid;

/// Sends a query to memory-reader as a service and prints the JSON answer.
#[derive(Debug, Args)]
#[command(after_help = help())]
pub struct AskArgs {
    /// The query kind, such as session.list.
    #[arg(value_name = "NOUN.VERB")]
    query: String,
    /// The query body in JSON; `-` reads standard input.
    #[arg(default_value = "{}", value_name = "JSON|-")]
    body: String,
    /// The user to query. Not needed with --token: a token is for one user.
    #[arg(long, required_unless_present = "token", value_parser = clap::value_parser!(i32).range(1..))]
    user: Option<i32>,
    /// The service to act as. Default: the first service in nats/services.json whose scopes allow the query.
    #[arg(long)]
    service: Option<String>,
    /// The service token. Default: a new one, signed with trust.token_key_file and trust.grant_key_file.
    #[arg(long, env = "MEMFLEET_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Time limit for the database, in milliseconds, 10 to 10000.
    #[arg(long, default_value_t = limit::DEADLINE_MS_DEFAULT, value_name = "MS", value_parser = clap::value_parser!(u64).range(limit::DEADLINE_MS_MIN..=limit::DEADLINE_MS_MAX))]
    deadline: u64,
    /// The query id recorded in audit.data_access_log. Default: a new UUIDv7.
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
}

fn help() -> String {
    let width = QUERIES.iter().map(|kind| kind.name().len()).max().unwrap_or_default();
    let lines: Vec<String> =
        QUERIES.iter().map(|kind| format!("  {:width$}  {}", kind.name(), kind.description)).collect();
    format!(
        "Queries (`memfleet contract schema NOUN.VERB` prints their schemas):\n{}\n\nExamples:\n  \
         memfleet ask session.list --user 1\n  memfleet ask context.get --user 1 '{{\"session_id\": \"s1\", \"context_key\": \"k\"}}'",
        lines.join("\n")
    )
}

/// Runs `memfleet ask`.
///
/// # Errors
/// If the query is unknown or invalid, is not answered, or is rejected.
pub async fn execute(args: AskArgs, settings: &Settings) -> anyhow::Result<()> {
    let kind = find(&args.query)?;
    let service = match args.service {
        Some(service) => service,
        None => service_allowed(kind)?,
    };
    let tokens = Tokens::open(settings, args.token).await?;
    ensure!(
        !tokens.is_none(),
        "no service token: pass --token, or set trust.token_key_file and trust.grant_key_file"
    );
    let options = ClientOptions::new(
        &settings.nats.url,
        service.parse().with_context(|| format!("invalid service name {service:?}"))?,
    );
    let body = read(args.body)?;
    // memory-reader validates the body too; checking here reports mistakes without a broker.
    contract::Query::decode(kind.noun, kind.verb, body.as_bytes())
        .map_err(|malformed| anyhow::anyhow!("{malformed}"))?;
    let body = RawValue::from_string(body).context("the query body is not valid JSON")?;

    let connection = broker::connect(&settings.nats, &service).await?;
    let client = Client::over(connection, tokens.of_service(options.service.clone()), &options)?;
    // --user is absent only with --token, which has its own user.
    let user = client.user(args.user.unwrap_or(UserId::PLATFORM.get()));
    let id = args.id.unwrap_or_else(Uuid::now_v7);
    let answer: Box<RawValue> =
        user.query_with(kind, &body, &QueryOptions { id, deadline_ms: args.deadline }).await?;
    out_json(json::pretty(answer.get()).as_deref().unwrap_or(answer.get()));
    Ok(())
}

/// The query of this name.
///
/// # Errors
/// If no query has this name.
fn find(name: &str) -> anyhow::Result<&'static QueryKind> {
    let names: Vec<String> = QUERIES.iter().map(|kind| kind.name()).collect();
    QUERIES
        .iter()
        .find(|kind| kind.name() == name)
        .copied()
        .with_context(|| format!("unknown query {name:?}; expected one of {}", names.join(", ")))
}

/// The first service in nats/services.json whose scopes allow a query.
fn service_allowed(kind: &QueryKind) -> anyhow::Result<String> {
    let allows = |service: &Service| {
        let scopes = service.scopes.iter().filter_map(|scope| scope.parse::<trust::Scope>().ok());
        scopes.into_iter().any(|scope| scope.allows(kind.noun, kind.verb))
    };
    let services = Service::shipped()?;
    let found = services.into_iter().find(allows).map(|service| service.service);
    found.with_context(|| {
        format!("no service in nats/services.json has a scope for {}; pass --service", kind.name())
    })
}

fn read(body: String) -> anyhow::Result<String> {
    if body != "-" {
        return Ok(body);
    }
    let (mut text, longest) = (String::new(), QUERY_BYTES as u64 + 1);
    std::io::stdin().take(longest).read_to_string(&mut text).context("cannot read standard input")?;
    Ok(text)
}
