//! `memfleet token`

mod inspect;
mod issue;
mod key;
mod list;
mod revoke;
mod service;

use anyhow::Context;
use clap::{Args, Subcommand};
use config::Settings;
use store::Connection;

const HELP: &str = "\
A service publishes with a token in the header Authorization, which says what it may do for which user. To issue them:

  memfleet security key generate main > grant.key && memfleet security key add grant.key
  memfleet token key generate main > token.key && memfleet token key add token.key
  memfleet token service put simple-chat --scope 'session:*' --scope context:put
  export MEMFLEET_TRUST__GRANT_KEY_FILE=grant.key MEMFLEET_TRUST__TOKEN_KEY_FILE=token.key
  memfleet token issue --service simple-chat --user 42

The registry of services is in the database that postgres.url names.";

/// Service tokens: issues, reads, revokes and lists them; the services they are for; the keys that sign them.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct TokenArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print a new token, and register it.
    Issue(issue::IssueArgs),
    /// Show what a token says and whether it is good.
    Inspect(inspect::InspectArgs),
    /// Revoke tokens, on every replica within one second.
    Revoke(revoke::RevokeArgs),
    /// List the tokens that are good, the newest first.
    List(list::ListArgs),
    /// Services and what they may do.
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Keys that sign tokens.
    #[command(subcommand)]
    Key(key::KeyCommand),
}

/// Carries out `memfleet token`.
///
/// # Errors
/// If the registry cannot be reached or refuses, or what is asked for cannot be.
pub async fn execute(args: TokenArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.what {
        What::Issue(args) => issue::execute(&args, settings).await,
        What::Inspect(args) => inspect::execute(args, settings).await,
        What::Revoke(args) => revoke::execute(&args, settings).await,
        What::List(args) => list::execute(args, settings).await,
        What::Service(command) => service::execute(command, settings).await,
        What::Key(command) => key::execute(command, settings).await,
    }
}

async fn registry(settings: &Settings) -> anyhow::Result<Connection> {
    store::connect(&settings.postgres.url)
        .await
        .context("the registry of services is in the database that postgres.url names")
}
