//! `memfleet vectors`

mod reconcile;

use std::time::Duration;

use ::vectors::{ALIAS, CollectionSpec, Embedders};
use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use cli::signal::interrupted;
use cli::table::{Align, Table, grouped};
use cli::{errln, outln};
use config::Quantization;
use config::Settings;
use contract::Service;
use serde_json::json;
use store::vector::{self, Collection, Right};
use vector_indexer::collection;
use vector_indexer::reconcile::Reconciler;

use reconcile::{ReconcileArgs, tell};

/// Looks after the vector store.
///
/// A collection holds the vectors of one model. Searches go to the active one, which the alias unified_memory names too; while
/// another one is being filled, vector-indexer writes to both.
#[derive(Debug, Args)]
pub struct VectorsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the active collection, if it is not there.
    Apply,
    /// Show the collections.
    List {
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Compare the vector store with the database: points without a memory, memories without their points.
    Reconcile(ReconcileArgs),
    /// Go over to the model of `next_embedder`, or to another quantization, while the fleet works on; or go back.
    Migrate(MigrateArgs),
    /// Remove a former collection for good, or one that is being filled: that gives a migration up.
    Drop {
        /// The collection.
        #[arg(value_name = "COLLECTION")]
        name: String,
    },
    /// Show which service may search, write and delete what.
    Rights {
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Say what a service may do with vectors. What is not named it may not do from then on.
    Grant(GrantArgs),
}

#[derive(Debug, Args)]
struct MigrateArgs {
    /// The model to go over to: that of `next_embedder`, or of `embedder` for going back or for another quantization.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// How long a point may be without its memory, in seconds: its transaction may be under way.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    grace: u64,
    /// How vectors are kept in memory; as configured by default.
    #[arg(long, value_enum, value_name = "HOW")]
    quantization: Option<QuantizationName>,
    /// Go over although up to so many memories cannot be embedded. They are then found by their words alone.
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
    /// Only vectors of this type; all by default.
    #[arg(long = "type", value_name = "TYPE", value_parser = ["query", "response", "context", "knowledge"])]
    vector_type: Option<String>,
    /// It may find them.
    #[arg(long)]
    search: bool,
    /// It may index them.
    #[arg(long)]
    write: bool,
    /// It may remove them.
    #[arg(long)]
    delete: bool,
}

/// Runs `memfleet vectors`.
///
/// # Errors
/// What happened, to what, and what to do about it.
pub async fn execute(args: VectorsArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.action {
        Action::Apply => {
            let collection = collection::apply(settings).await?;
            outln!(
                "{} is active: {}, {} numbers, {}",
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
                bail!("interrupted; searches go where they went, and the same command goes on where this one was")
            }
        },
        Action::Drop { name } => drop_collection(&name, settings).await,
        Action::Rights { json } => rights(settings, json).await,
        Action::Grant(args) => grant(&args, settings).await,
    }
}

async fn all(connection: &mut store::Connection) -> anyhow::Result<Vec<Collection>> {
    Ok(vector::collections(connection, ALIAS, &["active", "filling", "former"]).await?)
}

async fn list(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let vectors = collection::vectors(settings)?;
    let mut connection = store::connect(&settings.postgres.url).await?;
    let mut table = Table::new([
        ("collection", Align::Left),
        ("state", Align::Left),
        ("model", Align::Left),
        ("numbers", Align::Right),
        ("kept as", Align::Left),
        ("points", Align::Right),
        ("indexed", Align::Right),
    ]);
    for one in all(&mut connection).await? {
        let info = vectors.collection_info(&one.collection_name).await?;
        if json {
            outln!(
                "{}",
                json!({ "collection": one.collection_name, "state": one.state, "model": one.model, "dimension": one.dimension,
                    "quantization": one.quantization, "points": info.points, "indexed": info.indexed })
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
            "no embedder makes vectors of {}; configure it as next_embedder, for the workers too",
            args.model
        )
    })?;
    let quantization = args.quantization.map_or(spec.quantization, |name| match name {
        QuantizationName::None => Quantization::None,
        QuantizationName::Int8 => Quantization::Int8,
        QuantizationName::Binary => Quantization::Binary,
    });
    let spec = CollectionSpec { quantization, ..spec };
    let mut connection = store::connect(&settings.postgres.url).await?;
    let filling = collection::record(&spec, "filling")?;
    // Workers take the first of two collections for the active one.
    let active = vector::collections(&mut connection, ALIAS, &["active"]).await?.into_iter().next();
    let active =
        active.context("there is no collection to migrate; `memfleet vectors apply` makes the first one")?;
    ensure!(
        active.collection_name != filling.collection_name,
        "{} is active already",
        filling.collection_name
    );
    vectors.create_collection(&filling.collection_name, &spec).await?;
    vector::put_collection(&mut connection, ALIAS, &filling).await?;
    errln!(
        "vector-indexer writes to {} too from now on; filling it with what was there before",
        filling.collection_name
    );
    let reconciler = Reconciler {
        vectors: &vectors,
        collection: &filling,
        embedder: embedders.of(&spec.model),
        repair: true,
        grace: Duration::from_secs(args.grace),
    };
    // What a worker was writing that did not know yet of the collection is found the second time.
    for _ in 0..2 {
        let found = reconciler.run(&mut connection).await?;
        tell(&filling, &found, false);
        ensure!(
            found.lost <= args.without,
            "{lost} memories cannot be embedded; searches go where they went. The log names those that the embedder refuses; `--without \
             {lost}` goes over without them",
            lost = found.lost
        );
    }
    let active = collection::record(&spec, "active")?;
    vector::put_collection(&mut connection, ALIAS, &active).await?;
    vectors.point_alias(ALIAS, &active.collection_name).await?;
    // And what one was still writing then.
    let found = reconciler.run(&mut connection).await?;
    tell(&active, &found, false);
    outln!(
        "{} is active. The former collection stays: the same command with its model goes back, `memfleet vectors drop` removes it",
        active.collection_name
    );
    let lost = found.lost;
    ensure!(lost <= args.without, "{lost} memories cannot be embedded; some came while searches went over");
    Ok(())
}

async fn drop_collection(name: &str, settings: &Settings) -> anyhow::Result<()> {
    let vectors = collection::vectors(settings)?;
    let mut connection = store::connect(&settings.postgres.url).await?;
    let one = all(&mut connection).await?.into_iter().find(|one| one.collection_name == name);
    let one =
        one.with_context(|| format!("there is no collection {name}; `memfleet vectors list` shows them"))?;
    ensure!(
        !one.is_active(),
        "{name} is active; only a former collection is removed, or one that is being filled"
    );
    // Workers write to it no longer once they know.
    vector::put_collection(&mut connection, ALIAS, &Collection { state: "former".to_owned(), ..one }).await?;
    vectors.drop_collection(name).await?;
    vector::delete_collection(&mut connection, name).await?;
    outln!("{name} is removed");
    Ok(())
}

async fn rights(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let mut connection = store::connect(&settings.postgres.url).await?;
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
            outln!(
                "{}",
                json!({ "service": service, "type": vector_type, "search": may_search, "write": may_write, "delete": may_delete })
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
    let mut connection = store::connect(&settings.postgres.url).await?;
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
