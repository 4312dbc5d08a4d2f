//! `memfleet token`

mod inspect;
mod issue;
mod key;
mod list;
mod revoke;
mod service;

use clap::{Args, Subcommand};
use config::Settings;
use store::Connection;

const HELP: &str = "\
A service sends a token in the header Authorization of each request. The token states the service, the user and the \
scopes. To set up keys and a service, and issue a token:

  memfleet security key generate main --out grant.key && memfleet security key add grant.key
  memfleet token key generate main --out token.key && memfleet token key add token.key
  memfleet token service put simple-chat --scope 'session:*' --scope context:put
  export MEMFLEET_TRUST__GRANT_KEY_FILE=grant.key MEMFLEET_TRUST__TOKEN_KEY_FILE=token.key
  memfleet token issue --service simple-chat --user 42

Services, keys and tokens are registered in the database at postgres.url.";

/// Issues, inspects, lists and revokes service tokens; registers services and signing keys.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct TokenArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Issue and print a new token.
    Issue(issue::IssueArgs),
    /// Show the contents of a token and whether it is valid.
    Inspect(inspect::InspectArgs),
    /// Revoke tokens, on all replicas within one second.
    Revoke(revoke::RevokeArgs),
    /// List valid tokens, newest first.
    List(list::ListArgs),
    /// Register, disable and list services.
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Create, register, retire and list signing keys.
    #[command(subcommand)]
    Key(key::KeyCommand),
}

/// Runs `memfleet token`.
///
/// # Errors
/// If the registry is unreachable or rejects the change, or an argument is invalid.
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
    cli::database::connect(&settings.postgres.url, "postgres.url", "the service registry").await
}
