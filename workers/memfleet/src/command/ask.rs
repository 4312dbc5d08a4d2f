//! `memfleet ask`

use std::io::Read;

use anyhow::{Context, ensure};
use clap::Args;
use cli::outln;
use cli::tokens::Tokens;
use client::{Client, ClientOptions, QueryOptions};
use config::Settings;
use contract::{QUERIES, QUERY_BYTES, QueryKind, UserId, limit};
use runtime::broker;
use serde_json::Value;
use serde_json::value::RawValue;
use topology::Service;
use uuid::Uuid;

/// Asks the memory a query, as a service does, and prints the answer in JSON.
#[derive(Debug, Args)]
#[command(after_help = help())]
pub struct AskArgs {
    /// What to ask, such as session.list.
    #[arg(value_name = "NOUN.VERB")]
    query: String,
    /// The query, in JSON; `-` is standard input.
    #[arg(default_value = "{}", value_name = "JSON|-")]
    body: String,
    /// About which user. A token that is given says it itself.
    #[arg(long, required_unless_present = "token", value_parser = clap::value_parser!(i32).range(1..))]
    user: Option<i32>,
    /// The service that asks; by default the first one in nats/services.json that may.
    #[arg(long)]
    service: Option<String>,
    /// The service token; by default one is issued, if the configuration names the keys.
    #[arg(long, env = "MEMFLEET_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// How many milliseconds the database may take, 10 to 10000.
    #[arg(long, default_value_t = limit::DEADLINE_MS_DEFAULT, value_name = "MS", value_parser = clap::value_parser!(u64).range(limit::DEADLINE_MS_MIN..=limit::DEADLINE_MS_MAX))]
    deadline: u64,
    /// The id under which the query is found in audit.data_access_log; by default a fresh one.
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
}

fn help() -> String {
    let width = QUERIES.iter().map(|kind| kind.name().len()).max().unwrap_or_default();
    let lines: Vec<String> =
        QUERIES.iter().map(|kind| format!("  {:width$}  {}", kind.name(), kind.description)).collect();
    format!(
        "Queries; `memfleet contract schema NOUN.VERB` shows what each takes:\n{}\n\nExamples:\n  memfleet ask session.list \
         --user 1\n  memfleet ask context.get --user 1 '{{\"session_id\": \"s1\", \"context_key\": \"k\"}}'",
        lines.join("\n")
    )
}

/// Carries out `memfleet ask`.
///
/// # Errors
/// If there is no such query, nobody answers, or the answer is a refusal.
pub async fn execute(args: AskArgs, settings: &Settings) -> anyhow::Result<()> {
    let kind = find(&args.query)?;
    let service = match args.service {
        Some(service) => service,
        None => who_may(kind)?,
    };
    let tokens = Tokens::open(settings, args.token).await?;
    ensure!(
        !tokens.is_none(),
        "no service token: give one with --token, or name the keys in the configuration"
    );
    let options = ClientOptions::new(
        &settings.nats.url,
        service.parse().with_context(|| format!("the service {service:?}"))?,
    );
    let body = read(args.body)?;
    // memory-reader checks it as well; here mistakes are reported without a broker.
    contract::Query::decode(kind.noun, kind.verb, body.as_bytes())
        .map_err(|malformed| anyhow::anyhow!("{malformed}"))?;
    let body = RawValue::from_string(body).context("the query is no JSON")?;

    let connection = broker::connect(&settings.nats, &service).await?;
    let client = Client::over(connection, tokens.of_service(options.service.clone()), &options)?;
    // Without a user there is a token that was given, which has its own.
    let user = client.user(args.user.unwrap_or(UserId::PLATFORM.get()));
    let id = args.id.unwrap_or_else(Uuid::now_v7);
    let answer: Value =
        user.query_with(kind, &body, &QueryOptions { id, deadline_ms: args.deadline }).await?;
    outln!("{}", serde_json::to_string_pretty(&answer)?);
    Ok(())
}

/// The query of this name.
///
/// # Errors
/// If there is none.
fn find(name: &str) -> anyhow::Result<&'static QueryKind> {
    let names: Vec<String> = QUERIES.iter().map(|kind| kind.name()).collect();
    QUERIES
        .iter()
        .find(|kind| kind.name() == name)
        .copied()
        .with_context(|| format!("there is no query {name:?}; there are {}", names.join(", ")))
}

fn who_may(kind: &QueryKind) -> anyhow::Result<String> {
    let allows = |service: &Service| {
        let scopes = service.scopes.iter().filter_map(|scope| scope.parse::<trust::Scope>().ok());
        scopes.into_iter().any(|scope| scope.allows(kind.noun, kind.verb))
    };
    let services = Service::shipped()?;
    let found = services.into_iter().find(allows).map(|service| service.service);
    found.with_context(|| {
        format!("no service in nats/services.json may ask {}; name one with --service", kind.name())
    })
}

fn read(body: String) -> anyhow::Result<String> {
    if body != "-" {
        return Ok(body);
    }
    let (mut text, longest) = (String::new(), QUERY_BYTES as u64 + 1);
    std::io::stdin().take(longest).read_to_string(&mut text).context("standard input cannot be read")?;
    Ok(text)
}
