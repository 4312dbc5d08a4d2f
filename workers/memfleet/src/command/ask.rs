//! `memfleet ask`

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::HeaderMap;
use clap::Args;
use config::Settings;
use contract::{QUERIES, QUERY_BYTES, QueryError, QueryKind, UserId, header, limit};
use runtime::broker;
use serde::de::DeserializeOwned;
use serde_json::Value;
use topology::Service;
use uuid::Uuid;

use crate::outln;
use crate::tokens::Tokens;

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

/// How much longer than the database's deadline is waited for the answer.
const GRACE: Duration = Duration::from_secs(3);

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
    let mut tokens = Tokens::open(settings, args.token).await?;
    let name = service.parse().with_context(|| format!("the service {service:?}"))?;
    let user = args.user.map(UserId::new).transpose().map_err(anyhow::Error::msg)?;
    // Without a user there is a token that was given, which is of its own.
    let token = tokens.of_holder(name, user.unwrap_or(UserId::PLATFORM)).await?;
    let token =
        token.context("no service token: give one with --token, or name the keys in the configuration")?;
    let body = read(args.body)?;
    // It is refused as well where it is asked; here what is wrong is said without a broker.
    contract::Query::decode(kind.noun, kind.verb, body.as_bytes())
        .map_err(|malformed| anyhow::anyhow!("{malformed}"))?;

    let client = broker::connect(&settings.nats, &service).await?;
    let asking = Asking {
        id: args.id.unwrap_or_else(Uuid::now_v7),
        deadline_ms: args.deadline,
        ..Asking::new(&service, &token)
    };
    let answer: Value = ask(&client, kind, &asking, body).await?;
    outln!("{}", serde_json::to_string_pretty(&answer)?);
    Ok(())
}

/// Who asks, and how.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// The service that asks.
    pub service: &'a str,
    /// Its token for the user that is asked about.
    pub token: &'a str,
    /// The id of the query.
    pub id: Uuid,
    /// How long the answer may take, in milliseconds.
    pub deadline_ms: u64,
}

impl<'a> Asking<'a> {
    /// With an id of its own and the usual deadline.
    pub fn new(service: &'a str, token: &'a str) -> Self {
        Self { service, token, id: Uuid::now_v7(), deadline_ms: limit::DEADLINE_MS_DEFAULT }
    }
}

/// Asks a query and gives the answer.
///
/// # Errors
/// If nobody answers, or the answer is a refusal or no `T`.
pub async fn ask<T: DeserializeOwned>(
    client: &async_nats::Client,
    kind: &QueryKind,
    asking: &Asking<'_>,
    body: String,
) -> anyhow::Result<T> {
    let Asking { service, token, id, deadline_ms } = asking;
    let mut headers = HeaderMap::new();
    headers.insert(header::MESSAGE_ID, id.to_string());
    headers.insert(header::AUTHORIZATION, header::bearer(token));
    headers.insert(header::DEADLINE_MS, deadline_ms.to_string());
    let within = Duration::from_millis(*deadline_ms) + GRACE;
    let request = async_nats::Request::new().headers(headers).payload(body.into()).timeout(Some(within));
    let answer = client.send_request(kind.subject(service), request).await.with_context(|| {
        format!(
            "{} has no answer; `memfleet run memory-reader` answers queries, and nats/services.json says which {service} may ask",
            kind.name()
        )
    })?;
    let is_refusal = answer.headers.is_some_and(|headers| headers.get(header::REFUSED).is_some());
    if is_refusal {
        let error: QueryError =
            serde_json::from_slice(&answer.payload).context("the refusal cannot be read")?;
        bail!("{}: {}", error.code, error.message);
    }
    serde_json::from_slice(&answer.payload).context("the answer cannot be read")
}

/// The query of this name.
///
/// # Errors
/// If there is none.
pub fn find(name: &str) -> anyhow::Result<&'static QueryKind> {
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
