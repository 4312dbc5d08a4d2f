//! Dispatches the command line to its command.

use config::Settings;

use crate::arguments::{Arguments, Command};
use crate::{command, logging};

/// Loads the configuration, starts logging and runs the command.
///
/// # Errors
/// If the configuration is invalid, logging cannot be started, or the command fails.
pub async fn execute(arguments: Arguments) -> anyhow::Result<()> {
    let settings = Settings::load(arguments.config.as_deref())?;
    logging::start(&settings.log, runs_until_stopped(&arguments.command))?;
    match arguments.command {
        Command::Run(args) => command::run::execute(args, &settings).await,
        #[cfg(feature = "dev")]
        Command::Dev(args) => playground::dev::execute(args, &settings).await,
        #[cfg(feature = "dev")]
        Command::Demo(args) => playground::demo::execute(args, &settings).await,
        Command::Migrate(args) => command::migrate::execute(args, &settings).await,
        Command::Nats(args) => command::nats::execute(args, &settings).await,
        Command::Publish(args) => command::publish::execute(args, &settings).await,
        Command::Ask(args) => command::ask::execute(args, &settings).await,
        Command::Replay(args) => command::replay::execute(args, &settings).await,
        Command::Recover(args) => command::recover::execute(args, &settings).await,
        Command::Consensus(args) => command::consensus::execute(args, &settings).await,
        Command::Sync(args) => command::sync::execute(args, &settings).await,
        Command::Retention(args) => command::retention::execute(args, &settings).await,
        Command::Maintenance(args) => command::maintenance::execute(args, &settings).await,
        Command::Archive(args) => command::archive::execute(args, &settings).await,
        Command::Schedule(args) => command::schedule::execute(args, &settings).await,
        Command::Tail(args) => command::tail::execute(args, &settings).await,
        #[cfg(feature = "dev")]
        Command::Load(args) => playground::load::execute(args, &settings).await,
        Command::Dead(args) => command::dead::execute(args, &settings).await,
        Command::Security(args) => command::security::execute(args, &settings).await,
        Command::Keys(args) => command::keys::execute(args, &settings).await,
        Command::Vectors(args) => command::vectors::execute(args, &settings).await,
        Command::Token(args) => command::token::execute(args, &settings).await,
        Command::Audit(args) => command::audit::execute(args, &settings).await,
        Command::Privacy(args) => command::privacy::execute(args, &settings).await,
        Command::Status(args) => command::status::execute(args, &settings).await,
        #[cfg(feature = "dev")]
        Command::Bench(args) => bench::execute(args, &settings).await,
        Command::Contract(args) => command::contract::execute(&args),
    }
}

/// Whether a command runs workers until it is stopped. Such a command logs more than warnings by default.
fn runs_until_stopped(command: &Command) -> bool {
    #[cfg(feature = "dev")]
    if matches!(command, Command::Dev(_)) {
        return true;
    }
    matches!(command, Command::Run(_))
}
