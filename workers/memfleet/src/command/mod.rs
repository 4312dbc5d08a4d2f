//! The commands, one a file.

pub mod ask;
pub mod audit;
pub mod contract;
pub mod dead;
pub mod keys;
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

use config::Settings;

use crate::arguments::{Arguments, Command};
use crate::logging;

/// Carries out a command line.
///
/// # Errors
/// What happened, to what, and what to do about it.
pub async fn execute(arguments: Arguments) -> anyhow::Result<()> {
    let settings = Settings::load(arguments.config.as_deref())?;
    logging::start(&settings.log, runs_until_stopped(&arguments.command))?;
    match arguments.command {
        Command::Run(args) => run::execute(args, &settings).await,
        #[cfg(feature = "dev")]
        Command::Dev(args) => playground::dev::execute(args, &settings).await,
        #[cfg(feature = "dev")]
        Command::Demo(args) => playground::demo::execute(args, &settings).await,
        Command::Migrate(args) => migrate::execute(args, &settings).await,
        Command::Nats(args) => nats::execute(args, &settings).await,
        Command::Publish(args) => publish::execute(args, &settings).await,
        Command::Ask(args) => ask::execute(args, &settings).await,
        Command::Replay(args) => replay::execute(args, &settings).await,
        Command::Tail(args) => tail::execute(args, &settings).await,
        #[cfg(feature = "dev")]
        Command::Load(args) => playground::load::execute(args, &settings).await,
        Command::Dead(args) => dead::execute(args, &settings).await,
        Command::Security(args) => security::execute(args, &settings).await,
        Command::Keys(args) => keys::execute(args, &settings).await,
        Command::Vectors(args) => vectors::execute(args, &settings).await,
        Command::Token(args) => token::execute(args, &settings).await,
        Command::Audit(args) => audit::execute(args, &settings).await,
        Command::Status(args) => status::execute(args, &settings).await,
        #[cfg(feature = "dev")]
        Command::Bench(args) => bench::execute(args, &settings).await,
        Command::Contract(args) => contract::execute(&args),
    }
}

/// Whether a command runs workers until it is stopped. Its log shows more than warnings.
fn runs_until_stopped(command: &Command) -> bool {
    #[cfg(feature = "dev")]
    if matches!(command, Command::Dev(_)) {
        return true;
    }
    matches!(command, Command::Run(_))
}
