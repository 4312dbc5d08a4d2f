//! `memfleet consensus`

mod explain;

use clap::{Args, Subcommand};
use config::Settings;

use explain::ExplainArgs;

/// Explains and verifies what agents agree on.
#[derive(Debug, Args)]
pub struct ConsensusArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the dossier of a node: votes, clusters, weights, dissent, events. Verify one dossier or all.
    Explain(ExplainArgs),
}

/// Runs `memfleet consensus`.
///
/// # Errors
/// If the database is unreachable, there is no such node, or a dossier differs.
pub async fn execute(args: ConsensusArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.what {
        What::Explain(args) => explain::execute(&args, settings).await,
    }
}
