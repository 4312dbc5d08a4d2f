//! The commands, one a file.

pub mod ask;
pub mod audit;
pub mod bench;
pub mod contract;
pub mod dead;
pub mod demo;
mod demo_search;
pub mod dev;
pub mod keys;
pub mod load;
pub mod migrate;
pub mod nats;
pub mod publish;
pub mod replay;
pub mod run;
pub mod security;
pub mod status;
pub mod tail;
pub mod token;
pub mod vectors;

use crate::cli::{Cli, Command};
use crate::logging;
use config::Settings;

/// What to type to run this program again.
fn this_program() -> String {
    std::env::current_exe().map_or_else(|_| "memfleet".to_owned(), |path| path.display().to_string())
}

/// Carries out a command line.
///
/// # Errors
/// What happened, to what, and what to do about it.
pub async fn execute(cli: Cli) -> anyhow::Result<()> {
    let settings = Settings::load(cli.config.as_deref())?;
    let stays = matches!(cli.command, Command::Run(_) | Command::Dev(_));
    logging::start(&settings.log, stays)?;
    match cli.command {
        Command::Run(args) => run::execute(args, &settings).await,
        Command::Dev(args) => dev::execute(args, &settings).await,
        Command::Demo(args) => demo::execute(args, &settings).await,
        Command::Migrate(args) => migrate::execute(args, &settings).await,
        Command::Nats(args) => nats::execute(args, &settings).await,
        Command::Publish(args) => publish::execute(args, &settings).await,
        Command::Ask(args) => ask::execute(args, &settings).await,
        Command::Replay(args) => replay::execute(args, &settings).await,
        Command::Tail(args) => tail::execute(args, &settings).await,
        Command::Load(args) => load::execute(args, &settings).await,
        Command::Dead(args) => dead::execute(args, &settings).await,
        Command::Security(args) => security::execute(args, &settings).await,
        Command::Keys(args) => keys::execute(args, &settings).await,
        Command::Vectors(args) => vectors::execute(args, &settings).await,
        Command::Token(args) => token::execute(args, &settings).await,
        Command::Audit(args) => audit::execute(args, &settings).await,
        Command::Status(args) => status::execute(args, &settings).await,
        Command::Bench(args) => bench::execute(args, &settings).await,
        Command::Contract(args) => contract::execute(&args),
    }
}
