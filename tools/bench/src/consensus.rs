//! `memfleet bench consensus`: how often each rule finds the true answers of a crowd data set.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use cli::outln;
use cli::output::step;
use cli::table::{Align, Table, grouped};
use consensus::Rules;
use consensus::dataset::{Accuracy, Dataset};

#[derive(Debug, Args)]
pub(super) struct ConsensusArgs {
    /// The folder of the data set: answer.csv (question, worker, answer; in the order of arrival) and truth.csv
    /// (question, truth), each with a heading.
    #[arg(long, value_name = "DIR")]
    dataset: PathBuf,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: ConsensusArgs) -> anyhow::Result<()> {
    let ConsensusArgs { dataset, json } = args;
    // Seconds of arithmetic, during which Ctrl-C must still work.
    let measuring = tokio::task::spawn_blocking(move || measure(&dataset));
    let accuracy = step("estimating the true answers by each rule", async { measuring.await? }).await?;
    if json {
        outln!("{}", serde_json::to_string(&accuracy).context("cannot serialize the report")?);
    } else {
        show(&accuracy)?;
    }
    Ok(())
}

fn measure(dataset: &std::path::Path) -> anyhow::Result<Accuracy> {
    let dataset = Dataset::read(dataset)?;
    Ok(dataset.accuracy(&Rules::current()?.reliability))
}

fn show(accuracy: &Accuracy) -> anyhow::Result<()> {
    let mut table = Table::new([("rule", Align::Left), ("accuracy", Align::Right)]);
    for (rule, value) in [
        ("majority vote", accuracy.majority_accuracy),
        ("batch", accuracy.batch_accuracy),
        ("online, after the last answer", accuracy.online_accuracy),
        ("online, when each question closed", accuracy.online_at_close_accuracy),
    ] {
        table.row([rule.to_owned(), format!("{value:.4}")]);
    }
    let (questions, answers) = (u64::try_from(accuracy.questions)?, u64::try_from(accuracy.answers)?);
    outln!("{} questions, {} answers\n\n{table}", grouped(questions), grouped(answers));
    Ok(())
}
