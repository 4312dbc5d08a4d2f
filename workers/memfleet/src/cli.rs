//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::command::{
    ask::AskArgs, audit::AuditArgs, bench::BenchArgs, contract::ContractArgs, dead::DeadArgs, demo::DemoArgs,
    dev::DevArgs, keys::KeysArgs, load::LoadArgs, migrate::MigrateArgs, nats::NatsArgs, publish::PublishArgs,
    replay::ReplayArgs, run::RunArgs, security::SecurityArgs, status::StatusArgs, tail::TailArgs,
    token::TokenArgs, vectors::VectorsArgs,
};

/// The unified memory store of a multi-agent AI platform, as a fleet of message-queue workers.
///
/// Chat services publish requests on NATS JetStream; workers write them to PostgreSQL, each exactly once. Start
/// with `memfleet demo`, or with `memfleet dev` and `memfleet publish`.
#[derive(Debug, Parser)]
#[command(name = "memfleet", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// Configuration file in TOML; docs/memfleet.toml shows every option.
    #[arg(long, short, global = true, env = "MEMFLEET_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Configuration: every option of the file can be given in the environment, as MEMFLEET_<SECTION>__<OPTION>,
for example MEMFLEET_NATS__URL or MEMFLEET_WORKER__BATCH_SIZE. The environment wins.

Exit status: 0 when all went well, 1 when something failed (standard error says what, to what, and what to
do about it), 2 when the command line is wrong.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run workers until SIGTERM or Ctrl-C.
    Run(RunArgs),
    /// Run private servers and every worker on this machine, for hacking, until Ctrl-C.
    Dev(DevArgs),
    /// Carry a sample of conversations through private servers and show what came out.
    Demo(DemoArgs),
    /// Bring the database's schema up to date, or take it back.
    Migrate(MigrateArgs),
    /// Make the broker's streams and consumers what the files say.
    Nats(NatsArgs),
    /// Publish requests.
    Publish(PublishArgs),
    /// Ask the memory a query.
    Ask(AskArgs),
    /// Rebuild a user's contexts from the event stream, and compare.
    Replay(ReplayArgs),
    /// Print a user's events as they happen.
    Tail(TailArgs),
    /// Turn recorded dialogues into requests and carry them through.
    Load(LoadArgs),
    /// Look at, replay or drop dead letters.
    Dead(DeadArgs),
    /// Attack the database with every worker's role; make and add the keys of grants.
    Security(SecurityArgs),
    /// Make and rotate the keys that encrypt fields and payloads.
    Keys(KeysArgs),
    /// Make, compare and migrate collections of vectors; say who may use them.
    Vectors(VectorsArgs),
    /// Issue, read and revoke service tokens; register services.
    Token(TokenArgs),
    /// Seal the audit trail, prove it, and read it.
    Audit(AuditArgs),
    /// Show streams, lag, consumers, database and versions.
    Status(StatusArgs),
    /// Measure.
    Bench(BenchArgs),
    /// Print the contract with publishers.
    Contract(ContractArgs),
}
