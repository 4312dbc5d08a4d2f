//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::command::{
    archive::ArchiveArgs, ask::AskArgs, audit::AuditArgs, consensus::ConsensusArgs, contract::ContractArgs,
    dead::DeadArgs, keys::KeysArgs, maintenance::MaintenanceArgs, migrate::MigrateArgs, nats::NatsArgs,
    privacy::PrivacyArgs, publish::PublishArgs, recover::RecoverArgs, replay::ReplayArgs,
    retention::RetentionArgs, run::RunArgs, schedule::ScheduleArgs, security::SecurityArgs,
    status::StatusArgs, sync::SyncArgs, tail::TailArgs, token::TokenArgs, vectors::VectorsArgs,
};

/// Unified memory store of a multi-agent AI platform.
///
/// Chat services publish requests on NATS JetStream; workers apply each exactly once to PostgreSQL and answer queries.
#[derive(Debug, Parser)]
#[command(name = "memfleet", version, max_term_width = 100, after_help = after_help())]
pub struct Arguments {
    /// Configuration file in TOML; docs/memfleet.toml lists every option.
    #[arg(long, short, global = true, env = "MEMFLEET_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The first commands to try, in a build that has them.
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
Configuration: each option of the file can also be set by an environment variable MEMFLEET_<SECTION>__<OPTION>,
such as MEMFLEET_NATS__URL or MEMFLEET_WORKER__BATCH_SIZE. Environment variables take precedence.

Exit status: 0 on success, 1 on failure (the reason is on standard error), 2 for an invalid command line.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run workers until SIGTERM or Ctrl-C.
    Run(RunArgs),
    /// Run private servers and all workers on this machine, for development, until Ctrl-C.
    #[cfg(feature = "dev")]
    Dev(playground::dev::DevArgs),
    /// Publish sample conversations to private servers, then show stored contexts and search results.
    #[cfg(feature = "dev")]
    Demo(playground::demo::DemoArgs),
    /// Apply or roll back database migrations; create monthly partitions.
    Migrate(MigrateArgs),
    /// Create and update JetStream streams and consumers; generate NATS accounts, keys and
    /// certificates.
    Nats(NatsArgs),
    /// Publish requests from a file or standard input.
    Publish(PublishArgs),
    /// Send a query to memory-reader and print the answer.
    Ask(AskArgs),
    /// Rebuild a user's contexts from the events and compare them with the tables.
    Replay(ReplayArgs),
    /// Have requests applied again that a restored or promoted database lacks.
    Recover(RecoverArgs),
    /// Explain and verify what agents agree on.
    Consensus(ConsensusArgs),
    /// List, show and undo syncs between sessions.
    Sync(SyncArgs),
    /// Show retention policies and what they remove; run the sweep at once.
    Retention(RetentionArgs),
    /// Report what tables, indexes and partitions need, and do it.
    Maintenance(MaintenanceArgs),
    /// List, verify, restore and search archives of rows whose retention is over.
    Archive(ArchiveArgs),
    /// List, change, pause and run the schedules of jobs; show their runs.
    Schedule(ScheduleArgs),
    /// Print a user's events as they happen.
    Tail(TailArgs),
    /// Publish recorded dialogues as requests.
    #[cfg(feature = "dev")]
    Load(playground::load::LoadArgs),
    /// List, show, replay or delete dead letters.
    Dead(DeadArgs),
    /// Test database isolation as each worker's role; manage grant keys; bring revocations to the key store.
    Security(SecurityArgs),
    /// Create, list and rotate encryption keys of fields and payloads.
    Keys(KeysArgs),
    /// Create, reconcile and migrate vector collections; set access rights.
    Vectors(VectorsArgs),
    /// Issue, inspect and revoke service tokens; register services and signing keys.
    Token(TokenArgs),
    /// Seal, verify and show the audit trail.
    Audit(AuditArgs),
    /// Erase persons from all stores, with a signed receipt; verify receipts; erase again after a restore.
    Privacy(PrivacyArgs),
    /// Show streams, consumers, lag, dead letters, database and versions.
    Status(StatusArgs),
    /// Run benchmarks.
    #[cfg(feature = "dev")]
    Bench(bench::BenchArgs),
    /// Print the message contract: subjects, schemas, examples.
    Contract(ContractArgs),
}
