//! `memfleet vectors`

mod reconcile;

use std::time::Duration;

use ::vectors::{ALIAS, CollectionSpec, Embedders};
use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use cli::confirm::confirm;
use cli::output::out_json;
use cli::signal::interrupted;
use cli::table::{Align, Table, grouped};
use cli::{errln, outln};
use config::Quantization;
use config::Settings;
use contract::Service;
use serde_json::json;
use store::registry;
use store::vector::{self, Collection, Right};
use vector_indexer::collection::{self, Applied};
use vector_indexer::reconcile::Reconciler;

use reconcile::{ReconcileArgs, print_findings};

/// Manages the collections of the vector store and the access rights to them.
///
/// A collection holds the vectors of one model. Searches use the active collection, which the alias vectors.alias points
/// to. During a migration, vector-indexer writes to the active and to the new collection. Each collection records the
/// deployment that it belongs to; no other deployment changes it.
#[derive(Debug, Args)]
pub struct VectorsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create the active collection if it does not exist, and record this deployment as the owner of its collections.
    Apply {
        /// Take over collections that belong to another deployment: this database replaces the other one's.
        #[arg(long)]
        take_over: bool,
    },
    /// List the collections.
    List {
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Compare the vector store with the database: find points without a memory and memories without a point.
    Reconcile(ReconcileArgs),
    /// Migrate online to the model of `next_embedder` or to another quantization, or roll back.
    Migrate(MigrateArgs),
    /// Delete a former collection permanently; dropping one that is being filled cancels the migration.
    Drop {
        /// The collection.
        #[arg(value_name = "COLLECTION")]
        name: String,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// Show the rights of services to search, write and delete vectors.
    Rights {
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Set the rights of a service on vectors. Rights not given are revoked.
    Grant(GrantArgs),
}

#[derive(Debug, Args)]
struct MigrateArgs {
    /// The target model: that of `next_embedder`, or that of `embedder` to roll back or to change the quantization.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Seconds during which a point without a memory is ignored: its transaction may not be committed yet.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    grace: u64,
    /// The quantization of vectors in memory. Default: as configured.
    #[arg(long, value_enum, value_name = "HOW")]
    quantization: Option<QuantizationName>,
    /// Switch even if up to this many memories cannot be embedded. Those are then found by full-text search only.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    without: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum QuantizationName {
    None,
    Int8,
    Binary,
}

#[derive(Debug, Args)]
struct GrantArgs {
    /// The service.
    #[arg(value_name = "SERVICE")]
    service: Service,
    /// The vector type. Default: all types.
    #[arg(long = "type", value_name = "TYPE", value_parser = ["query", "response", "context", "knowledge"])]
    vector_type: Option<String>,
    /// Allow searching.
    #[arg(long)]
    search: bool,
    /// Allow indexing.
    #[arg(long)]
    write: bool,
    /// Allow removing.
    #[arg(long)]
    delete: bool,
}

/// Runs `memfleet vectors`.
///
/// # Errors
/// If the vector store or the database is unreachable, the stores differ, or a migration cannot be completed.
pub async fn execute(args: VectorsArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.action {
        Action::Apply { take_over } => {
            let Applied { collection, adopted } = collection::apply_with(settings, take_over).await?;
            for name in adopted {
                outln!("{name} now belongs to this deployment, {}", collection.deployment);
            }
            outln!(
                "{} is active: model {}, {} dimensions, quantization {}",
                collection.collection_name,
                collection.model,
                collection.dimension,
                collection.quantization
            );
            Ok(())
        }
        Action::List { json } => list(settings, json).await,
        Action::Reconcile(args) => reconcile::execute(&args, settings).await,
        Action::Migrate(args) => tokio::select! {
            done = migrate(&args, settings) => done,
            stopped = interrupted() => {
                stopped?;
                bail!("interrupted; searches are unchanged, run the same command again to resume")
            }
        },
        Action::Drop { name, yes } => drop_collection(&name, yes, settings).await,
        Action::Rights { json } => rights(settings, json).await,
        Action::Grant(args) => grant(&args, settings).await,
    }
}

async fn connect(settings: &Settings) -> anyhow::Result<store::Connection> {
    cli::database::connect(&settings.postgres.url, "postgres.url", "the database").await
}

async fn all(connection: &mut store::Connection, alias: &str) -> anyhow::Result<Vec<Collection>> {
    Ok(vector::collections(connection, alias, &["active", "filling", "former"]).await?)
}

async fn list(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let vectors = collection::vectors(settings)?;
    let mut connection = connect(settings).await?;
    let mut table = Table::new([
        ("collection", Align::Left),
        ("state", Align::Left),
        ("model", Align::Left),
        ("dimensions", Align::Right),
        ("quantization", Align::Left),
        ("points", Align::Right),
        ("indexed", Align::Right),
    ]);
    for one in all(&mut connection, vectors.alias()).await? {
        let info = vectors.collection_info(&one.collection_name).await?;
        if json {
            out_json(
                json!({ "collection": one.collection_name, "state": one.state, "model": one.model, "dimension": one.dimension,
                    "quantization": one.quantization, "points": info.points, "indexed": info.indexed }),
            );
        }
        table.row([
            one.collection_name,
            one.state,
            one.model,
            one.dimension.to_string(),
            one.quantization,
            grouped(info.points),
            grouped(info.indexed),
        ]);
    }
    if !json {
        outln!("{table}");
    }
    Ok(())
}

async fn migrate(args: &MigrateArgs, settings: &Settings) -> anyhow::Result<()> {
    let vectors = collection::vectors(settings)?;
    let embedders = Embedders::open(&[&settings.embedder, &settings.next_embedder]).await?;
    let of_model = [&settings.next_embedder, &settings.embedder].into_iter().find_map(|embedder| {
        collection::spec(settings, embedder).ok().filter(|spec| spec.model == args.model)
    });
    let spec = of_model.with_context(|| {
        format!(
            "no embedder is configured for the model {}; set next_embedder, here and for the workers",
            args.model
        )
    })?;
    let quantization = args.quantization.map_or(spec.quantization, |name| match name {
        QuantizationName::None => Quantization::None,
        QuantizationName::Int8 => Quantization::Int8,
        QuantizationName::Binary => Quantization::Binary,
    });
    let spec = CollectionSpec { quantization, ..spec };
    let mut connection = connect(settings).await?;
    let (alias, deployment) = (vectors.alias(), vector::deployment(&mut connection).await?);
    let filling = collection::record(alias, deployment, &spec, "filling")?;
    // Workers treat the first collection as the active one, so an active one must exist before another is filled.
    let recorded = all(&mut connection, alias).await?;
    let active = recorded.iter().find(|one| one.is_active());
    let active =
        active.context("no collection to migrate; `memfleet vectors apply` creates the first one")?;
    collection::check_owned(&vectors, [active]).await?;
    let name = &filling.collection_name;
    let is_recorded = recorded.iter().any(|one| one.collection_name == *name);
    collection::check_claim(&vectors, name, deployment, is_recorded).await?;
    ensure!(
        active.collection_name != filling.collection_name,
        "{} is already active",
        filling.collection_name
    );
    vectors.create_collection(&filling.collection_name, &spec).await?;
    vectors.claim(&filling.collection_name, deployment, false).await?;
    vector::put_collection(&mut connection, alias, &filling).await?;
    errln!("vector-indexer now also writes to {}; embedding existing memories", filling.collection_name);
    let reconciler = Reconciler {
        vectors: &vectors,
        collection: &filling,
        embedder: embedders.of(&spec.model),
        repair: true,
        grace: Duration::from_secs(args.grace),
    };
    // The second pass finds memories written meanwhile by workers that did not know the new collection yet.
    for _ in 0..2 {
        let found = reconciler.run(&mut connection).await?;
        print_findings(&filling, &found, false);
        ensure!(
            found.lost <= args.without,
            "{lost} memories cannot be embedded; searches are unchanged. The log lists those that the embedder rejects; \
             `--without {lost}` switches without them",
            lost = found.lost
        );
    }
    let active = collection::record(alias, deployment, &spec, "active")?;
    vector::put_collection(&mut connection, alias, &active).await?;
    vectors.point_alias(alias, &active.collection_name).await?;
    // Checks memories that were written during the switch.
    let found = reconciler.run(&mut connection).await?;
    print_findings(&active, &found, false);
    outln!(
        "{} is active. The former collection is kept: the same command with its model rolls back, \
         `memfleet vectors drop` deletes it",
        active.collection_name
    );
    let lost = found.lost;
    ensure!(
        lost <= args.without,
        "{lost} memories cannot be embedded; some arrived during the switch, which is done"
    );
    Ok(())
}

async fn drop_collection(name: &str, yes: bool, settings: &Settings) -> anyhow::Result<()> {
    let vectors = collection::vectors(settings)?;
    let mut connection = connect(settings).await?;
    let alias = vectors.alias();
    let one = all(&mut connection, alias).await?.into_iter().find(|one| one.collection_name == name);
    let one = one.with_context(|| format!("no collection {name}; `memfleet vectors list` shows all"))?;
    ensure!(
        !one.is_active(),
        "{name} is active; only a former collection or one being filled can be dropped"
    );
    collection::check_owned(&vectors, [&one]).await?;
    // The store may have lost a collection that the database still lists.
    let points = vectors.collection_info(name).await;
    let points =
        points.map_or_else(|_| String::new(), |info| format!(" with {} points", grouped(info.points)));
    let consequence = match one.state.as_str() {
        "filling" => format!("this cancels the migration and permanently deletes collection {name}{points}"),
        _ => format!("this permanently deletes collection {name}{points}"),
    };
    confirm(&consequence, yes)?;
    // Workers stop writing to a former collection once they have read the new state.
    vector::put_collection(&mut connection, alias, &Collection { state: "former".to_owned(), ..one }).await?;
    vectors.drop_collection(name).await?;
    vector::delete_collection(&mut connection, name).await?;
    outln!("dropped {name}");
    Ok(())
}

async fn rights(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let mut connection = connect(settings).await?;
    let mut table = Table::new([
        ("service", Align::Left),
        ("type", Align::Left),
        ("search", Align::Left),
        ("write", Align::Left),
        ("delete", Align::Left),
    ]);
    let word = |may: bool| if may { "yes" } else { "no" }.to_owned();
    for right in vector::all_rights(&mut connection, ALIAS).await? {
        let Right { service, vector_type, may_search, may_write, may_delete } = right;
        if json {
            out_json(
                json!({ "service": service, "type": vector_type, "search": may_search, "write": may_write, "delete": may_delete }),
            );
        } else {
            table.row([service, vector_type, word(may_search), word(may_write), word(may_delete)]);
        }
    }
    if !json {
        outln!("{table}");
    }
    Ok(())
}

async fn grant(args: &GrantArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = connect(settings).await?;
    ensure!(
        registry::is_registered(&mut connection, &args.service).await?,
        "the service {} is not registered; `memfleet token service put` registers it",
        args.service
    );
    let types: Vec<&str> = match &args.vector_type {
        Some(one) => vec![one],
        None => contract::VectorType::ALL.iter().map(|one| one.as_str()).collect(),
    };
    for vector_type in types {
        let right = Right {
            service: args.service.to_string(),
            vector_type: vector_type.to_owned(),
            may_search: args.search,
            may_write: args.write,
            may_delete: args.delete,
        };
        vector::put_right(&mut connection, ALIAS, &right).await?;
    }
    rights(settings, false).await
}
