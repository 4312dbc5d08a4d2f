//! `memfleet archive verify`

use anyhow::ensure;
use clap::Args;
use cli::output::{out_json, printable};
use cli::{errln, outln};
use config::Settings;
use uuid::Uuid;

use super::load::{self, Filter, PAGE, Source};

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The ids of archives. Default: all archives.
    #[arg(value_name = "ARCHIVE")]
    archives: Vec<Uuid>,
    /// Print one JSON object: {"archives": 2, "rows": 4000, "not_removed": 0, "faults": [...]}.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &VerifyArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = super::connect(settings).await?;
    let source = Source::open(settings)?;
    let mut filter = Filter { ids: args.archives.clone(), ..Filter::default() };
    let (mut verified, mut rows, mut not_removed, mut faults) = (0_u64, 0_u64, 0_u64, Vec::new());
    let mut missing = args.archives.clone();
    loop {
        let page = load::archives(&mut connection, &filter, PAGE).await?;
        let Some(last) = page.last() else { break };
        filter.after = Some((last.created_at, last.id));
        for archive in &page {
            missing.retain(|id| *id != archive.id);
            verified += 1;
            let problem = match source.read(archive).await {
                Ok(contents) => {
                    rows += contents.manifest.rows;
                    not_removed += u64::try_from(archive.not_removed.len()).unwrap_or(u64::MAX);
                    None
                }
                Err(error) => Some(error.to_string()),
            };
            faults.extend(problem.map(|problem| (archive.id, problem)));
        }
    }
    faults.extend(missing.into_iter().map(|id| (id, "the database has no archive of this id".to_owned())));
    if args.json {
        let listed: Vec<_> = faults
            .iter()
            .map(|(id, problem)| serde_json::json!({ "archive": id, "problem": problem }))
            .collect();
        let report = serde_json::json!({
            "archives": verified, "rows": rows, "not_removed": not_removed, "faults": listed
        });
        out_json(report.to_string());
    } else {
        for (id, problem) in &faults {
            errln!("archive {id}: {}", printable(problem));
        }
        outln!(
            "{verified} archives with {rows} rows read, {} of them not as they were written",
            faults.len()
        );
        if not_removed > 0 {
            outln!(
                "{not_removed} archived rows were not removed from the database, as it says: query and restore skip them"
            );
        }
    }
    ensure!(faults.is_empty(), "archives are not as they were written; see above");
    Ok(())
}
