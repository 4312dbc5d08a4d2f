//! `memfleet bench consensus`: how often each rule finds the true answers of a crowd data set.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use cli::outln;
use cli::output::step;
use cli::table::{Align, Table, grouped};
use config::Settings;
use consensus::Rules;
use consensus::dataset::{Accuracy, Dataset};

use super::pipeline::add_payload_key;
use super::{crowd, on_private_servers};

#[derive(Debug, Args)]
pub(super) struct ConsensusArgs {
    /// The folder of the data set: answer.csv (question, worker, answer; in the order of arrival) and truth.csv
    /// (question, truth), each with a heading.
    #[arg(long, value_name = "DIR")]
    dataset: PathBuf,

    /// Feed the answers to so many questions at most through the worker, evenly chosen: 100,000 answers take some two
    /// minutes. Without it, all.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    online_questions: Option<u32>,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: ConsensusArgs, settings: &Settings) -> anyhow::Result<()> {
    let ConsensusArgs { dataset, online_questions, json } = args;
    let dataset = Dataset::read(&dataset)?;
    let online = match online_questions {
        Some(most) => dataset.thinned(usize::try_from(most)?),
        None => dataset.clone(),
    };
    crowd::check(&online)?;
    let rules = Rules::current()?.reliability;
    let (questions, answers) = (dataset.questions(), dataset.answers.len());
    let majority_accuracy = dataset.majority_accuracy();
    let fed = on_private_servers(settings, async |local| {
        add_payload_key(&local.settings)?;
        crowd::feed(&online, &local.settings).await
    })
    .await?;
    // Seconds of arithmetic, during which Ctrl-C must still work.
    let batch = tokio::task::spawn_blocking(move || dataset.batch_accuracy(&rules));
    let batch_accuracy = step("estimating all answers at once", async { Ok(batch.await?) }).await?;
    let accuracy = Accuracy {
        questions,
        answers,
        majority_accuracy,
        batch_accuracy,
        online_questions: online.questions(),
        online_accuracy: fed.at_end,
        online_at_close_accuracy: fed.at_close,
    };
    if json {
        outln!("{}", serde_json::to_string(&accuracy).context("cannot serialize the report")?);
    } else {
        show(&accuracy)?;
    }
    Ok(())
}

fn show(accuracy: &Accuracy) -> anyhow::Result<()> {
    let mut table = Table::new([("rule", Align::Left), ("accuracy", Align::Right)]);
    for (rule, value) in [
        ("majority vote", accuracy.majority_accuracy),
        ("batch", accuracy.batch_accuracy),
        ("online, after the last tick", accuracy.online_accuracy),
        ("online, when each task closed", accuracy.online_at_close_accuracy),
    ] {
        table.row([rule.to_owned(), format!("{value:.4}")]);
    }
    let (questions, answers) = (u64::try_from(accuracy.questions)?, u64::try_from(accuracy.answers)?);
    outln!("{} questions, {} answers\n\n{table}", grouped(questions), grouped(answers));
    if accuracy.online_questions < accuracy.questions {
        outln!("online, of {} questions", grouped(u64::try_from(accuracy.online_questions)?));
    }
    Ok(())
}
