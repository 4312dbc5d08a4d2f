//! `memfleet privacy statistics`

use anyhow::Context;
use clap::Args;
use cli::outln;
use cli::output::out_json;
use cli::table::{Align, Table};
use config::Settings;
use privacy::statistics::{self, FEWEST_PERSONS};

#[derive(Debug, Args)]
pub(super) struct StatisticsArgs {
    /// Print one JSON object: {"statistics": [{"statistic", "month", "label", "persons", "amount"}], "left_out": N}.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &StatisticsArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let (shown, left_out) = statistics::shown(&mut connection)
        .await
        .context("cannot read the sums of persons who were anonymised")?;
    if args.json {
        out_json(serde_json::json!({ "statistics": shown, "left_out": left_out }).to_string());
        return Ok(());
    }
    if !shown.is_empty() {
        let mut table = Table::new([
            ("statistic", Align::Left),
            ("month", Align::Left),
            ("label", Align::Left),
            ("persons", Align::Right),
            ("amount", Align::Right),
        ]);
        for one in shown {
            let month = one.month.format("%Y-%m").to_string();
            table.row([one.statistic, month, one.label, one.persons.to_string(), one.amount]);
        }
        outln!("{}", table.to_string().trim_end());
    }
    outln!("{left_out} sums are of fewer than {FEWEST_PERSONS} persons, and are not shown");
    Ok(())
}
