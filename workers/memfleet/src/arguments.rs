//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::command::{
    ask::AskArgs, audit::AuditArgs, contract::ContractArgs, dead::DeadArgs, keys::KeysArgs,
    migrate::MigrateArgs, nats::NatsArgs, publish::PublishArgs, replay::ReplayArgs, run::RunArgs,
    security::SecurityArgs, status::StatusArgs, tail::TailArgs, token::TokenArgs, vectors::VectorsArgs,
};

/// The unified memory store of a multi-agent AI platform, as a fleet of message-queue workers.
///
/// Chat services publish requests on NATS JetStream; workers write them to PostgreSQL, each exactly once.
#[derive(Debug, Parser)]
#[command(name = "memfleet", version, max_term_width = 100, after_help = after_help())]
pub struct Arguments {
    /// Configuration file in TOML; docs/memfleet.toml shows every option.
    #[arg(long, short, global = true, env = "MEMFLEET_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where to start, in a program that has these commands.
#[cfg(feature = "dev")]
const START: &str = "\
Start with `memfleet demo`, or with `memfleet dev` and `memfleet publish`.

";
#[cfg(not(feature = "dev"))]
const START: &str = "";

fn after_help() -> String {
    format!("{START}{CONFIGURATION}")
}

const CONFIGURATION: &str = "\
Configuration: every option of the file can be given in the environment, as MEMFLEET_<SECTION>__<OPTION>,
for example MEMFLEET_NATS__URL or MEMFLEET_WORKER__BATCH_SIZE. The environment wins.

Exit status: 0 when all went well, 1 when something failed (standard error says what, to what, and what to
do about it), 2 when the command line is wrong.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run workers until SIGTERM or Ctrl-C.
    Run(RunArgs),
    /// Run private servers and every worker on this machine, for development, until Ctrl-C.
    #[cfg(feature = "dev")]
    Dev(playground::dev::DevArgs),
    /// Publish sample conversations to private servers, and show what is stored and found.
    #[cfg(feature = "dev")]
    Demo(playground::demo::DemoArgs),
    /// Bring the database's schema up to date, or roll migrations back.
    Migrate(MigrateArgs),
    /// Create or update the broker's streams and consumers as the files describe them.
    Nats(NatsArgs),
    /// Publish requests.
    Publish(PublishArgs),
    /// Ask the memory a query.
    Ask(AskArgs),
    /// Rebuild a user's contexts from the event stream, and compare.
    Replay(ReplayArgs),
    /// Print a user's events as they happen.
    Tail(TailArgs),
    /// Turn recorded dialogues into requests and publish them.
    #[cfg(feature = "dev")]
    Load(playground::load::LoadArgs),
    /// Look at, replay or drop dead letters.
    Dead(DeadArgs),
    /// Test the isolation of the database with every worker's role; create and add grant keys.
    Security(SecurityArgs),
    /// Create and rotate the keys that encrypt fields and payloads.
    Keys(KeysArgs),
    /// Create, compare and migrate collections of vectors; set who may use them.
    Vectors(VectorsArgs),
    /// Issue, read and revoke service tokens; register services.
    Token(TokenArgs),
    /// Seal, verify and read the audit trail.
    Audit(AuditArgs),
    /// Show streams, lag, consumers, database and versions.
    Status(StatusArgs),
    /// Run benchmarks.
    #[cfg(feature = "dev")]
    Bench(bench::BenchArgs),
    /// Print the message contract: subjects, schemas, examples.
    Contract(ContractArgs),
}
