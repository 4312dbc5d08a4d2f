//! `memfleet consensus explain`

use anyhow::{Context, bail};
use clap::Args;
use cli::output::{out_json, printable};
use cli::table::grouped;
use cli::{out, outln};
use config::Settings;
use consensus::{Dossier, Rules, render};
use contract::UserId;
use store::Connection;
use uuid::Uuid;

use crate::dossiers::{self, Key, Report};

/// Prints the dossier of a node: the votes, the clusters of equal answers, the weights, the dissent and the events that its
/// score rests on.
///
/// With --verify, the dossier is recomputed from its inputs and compared byte by byte, the inputs are compared with the task
/// and the responses in the database, and the node with the dossier. Without a node, all nodes are verified. Exits with 1
/// if anything differs, and names it. Needs a role that bypasses row-level security.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The id of the node.
    #[arg(value_name = "NODE", required_unless_present = "verify")]
    node: Option<Uuid>,

    /// The user of the node. Without a node: verify the nodes of this user only.
    #[arg(long, value_name = "USER")]
    user: Option<UserId>,

    /// Recompute the dossier and compare it with what is stored.
    #[arg(long)]
    verify: bool,

    /// Print one JSON object, on the last line of standard output: the dossier, or with --verify the report.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &ExplainArgs, settings: &Settings) -> anyhow::Result<()> {
    let url = &settings.postgres.url;
    let mut connection =
        cli::database::connect(url, "postgres.url", "the database with the dossiers").await?;
    let key = match args.node {
        Some(node) => Some(find(&mut connection, node, args.user).await?),
        None => None,
    };
    if let Some(key) = key
        && !(args.verify && args.json)
    {
        show(&mut connection, key, args).await?;
    }
    if args.verify { verify(&mut connection, key, args).await } else { Ok(()) }
}

async fn find(connection: &mut Connection, node: Uuid, user: Option<UserId>) -> anyhow::Result<Key> {
    let found = dossiers::find(connection, node, user).await?;
    match found[..] {
        [key] => Ok(key),
        [] => bail!(
            "there is no node {node}{}",
            user.map(|user| format!(" of user {user}")).unwrap_or_default()
        ),
        [first, second, ..] => bail!(
            "several users have a node {node}, such as {} and {}; name one with --user",
            first.user,
            second.user
        ),
    }
}

async fn show(connection: &mut Connection, key: Key, args: &ExplainArgs) -> anyhow::Result<()> {
    let Key { user, node } = key;
    let stored = dossiers::stored(connection, key).await?;
    let stored = stored.with_context(|| {
        format!("node {node} of user {user} has no dossier: it is no answer of agents to a task")
    })?;
    let dossier = serde_json::from_slice::<Dossier>(&stored);
    match dossier {
        Ok(_) if args.json => out_json(String::from_utf8_lossy(&stored)),
        Ok(dossier) => out!("{}", render(&dossier)),
        // The verification names it.
        Err(_) if args.verify => {}
        Err(error) => bail!("the dossier of node {node} of user {user} is not readable: {error}"),
    }
    Ok(())
}

async fn verify(connection: &mut Connection, key: Option<Key>, args: &ExplainArgs) -> anyhow::Result<()> {
    let rules = Rules::current()?;
    let report = match key {
        Some(key) => dossiers::verify_one(connection, key, &rules).await?,
        None => dossiers::verify_all(connection, args.user, &rules).await?,
    };
    if args.json {
        out_json(serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    match report.differing {
        0 => Ok(()),
        1 => bail!("the dossier of 1 node differs from what was recorded"),
        count => bail!("the dossiers of {} nodes differ from what was recorded", grouped(count)),
    }
}

fn print(report: &Report) {
    for finding in &report.findings {
        outln!("user {}, node {}: {}", finding.user, finding.node, printable(&finding.difference));
    }
    outln!("nodes verified  {:>12}", grouped(report.nodes));
    outln!("nodes differing {:>12}", grouped(report.differing));
    if report.differing == 0 {
        outln!("All dossiers are what their inputs and rules give.");
    }
}
