//! `memfleet contract`

use anyhow::Context;
use clap::{Args, Subcommand};
use cli::output::out_json;
use cli::table::{Align, Table};
use cli::{out, outln};
use contract::asyncapi;
use contract::{QUERIES, QueryKind, REQUEST_ROOT, REQUESTS, RequestKind};

/// Prints the message contract: subjects, schemas, examples.
#[derive(Debug, Args)]
pub struct ContractArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List all requests with subject, stream and event, and all queries.
    List,
    /// Print the JSON Schema (draft 2020-12) of a request body, or of a query and its answer.
    Schema {
        /// The request or query, as printed by `memfleet contract list`.
        #[arg(value_name = "NOUN.VERB")]
        name: String,
    },
    /// Print an example request body for `memfleet publish`.
    Example {
        /// The request, as printed by `memfleet contract list`.
        #[arg(value_name = "NOUN.VERB")]
        name: String,
        /// Only the required fields.
        #[arg(long)]
        minimal: bool,
    },
    /// Print the AsyncAPI 3.0 document of the contract in YAML; nats/asyncapi.yaml is a copy.
    Asyncapi,
}

/// Runs `memfleet contract`.
///
/// # Errors
/// If no request or query has the given name.
pub fn execute(args: &ContractArgs) -> anyhow::Result<()> {
    match &args.action {
        Action::List => list(),
        Action::Schema { name } => {
            let schema = match query(name) {
                Some(kind) => asyncapi::query_schema(kind),
                None => asyncapi::schema(find(name)?),
            };
            out_json(serde_json::to_string_pretty(&schema)?);
        }
        Action::Example { name, minimal } => {
            let (full, least) = asyncapi::examples(find(name)?)?;
            outln!("{}", if *minimal { least } else { full });
        }
        Action::Asyncapi => out!("{}", asyncapi::document()?),
    }
    Ok(())
}

fn list() {
    let mut table = Table::new([
        ("request", Align::Left),
        ("subject", Align::Left),
        ("stream", Align::Left),
        ("event", Align::Left),
    ]);
    for kind in REQUESTS {
        table.row([
            kind.name(),
            format!("{REQUEST_ROOT}.<service>.{}.<user_id>", kind.name()),
            kind.stream.to_owned(),
            kind.event.to_string(),
        ]);
    }
    out!("{table}");
    let mut table = Table::new([("query", Align::Left), ("subject", Align::Left)]);
    for kind in QUERIES {
        table.row([kind.name(), kind.subject("<service>")]);
    }
    out!("\n{table}");
}

fn query(name: &str) -> Option<&'static QueryKind> {
    QUERIES.iter().find(|kind| kind.name() == name).copied()
}

fn find(name: &str) -> anyhow::Result<&'static RequestKind> {
    name.split_once('.').and_then(|(noun, verb)| RequestKind::find(noun, verb)).with_context(|| {
        format!("no request or query is named {name:?}; `memfleet contract list` prints all names")
    })
}
