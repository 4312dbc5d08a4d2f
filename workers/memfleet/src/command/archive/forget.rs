//! `memfleet archive forget`

use anyhow::{Context, bail, ensure};
use archive::{ArchiveError, Keys, Target, read_manifest};
use clap::Args;
use cli::output::{out_json, printable};
use cli::{errln, outln};
use config::Settings;
use diesel::sql_types::{Binary, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use trust::PublicKey;
use uuid::Uuid;

use super::load::{self, Archive, Filter, PAGE};

/// Has the database forget archives whose files are missing or were changed, so that nobody can read their rows. An erasure of a person who
/// has rows in such an archive waits until its files are restored, or until the database has forgotten it. What is left of its files stays
/// until `memfleet archive clean --complete` deletes it, and holds up the erasure for as long.
///
/// Check archive.url first: of another folder or bucket, every archive is missing.
#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    /// The ids of archives.
    #[arg(value_name = "ARCHIVE", required_unless_present = "missing")]
    archives: Vec<Uuid>,
    /// All archives whose manifest is missing, instead: not those that were changed.
    #[arg(long, conflicts_with = "archives")]
    missing: bool,
    /// Also archives that were changed; with --missing, also if every archive is missing.
    #[arg(long)]
    yes: bool,
    /// Only print which.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object: {"forgotten": ["..."]}.
    #[arg(long)]
    json: bool,
}

/// What is wrong with an archive. Of all archives only the manifests are read; of those that are named, every file.
async fn problem(
    args: &ForgetArgs,
    target: &Target,
    keys: &[PublicKey],
    archive: &Archive,
) -> Option<ArchiveError> {
    if args.missing {
        return read_manifest(target, keys, &archive.location).await.err();
    }
    ::archive::read(target, keys, &archive.location, Some(&archive.manifest_hash)).await.err()
}

pub(super) async fn execute(args: &ForgetArgs, settings: &Settings) -> anyhow::Result<()> {
    const FORGET: &str = "DELETE FROM public.archives WHERE id = $1 AND manifest_hash = $2";
    let mut connection = super::connect(settings).await?;
    let (target, keys) = (Target::open(&settings.archive)?, Keys::public(&settings.archive)?);
    let mut filter = Filter { ids: args.archives.clone(), ..Filter::default() };
    let (mut forgotten, mut unknown): (Vec<Archive>, _) = (Vec::new(), args.archives.clone());
    let mut is_any_there = false;
    loop {
        let page = load::archives(&mut connection, &filter, PAGE).await?;
        let Some(last) = page.last() else { break };
        filter.after = Some((last.created_at, last.id));
        for archive in page {
            unknown.retain(|id| *id != archive.id);
            match problem(args, &target, &keys, &archive).await {
                Some(ArchiveError::Missing(_)) => forgotten.push(archive),
                Some(ArchiveError::Changed { .. }) if !args.missing && args.yes => forgotten.push(archive),
                Some(error @ ArchiveError::Changed { .. }) if !args.missing => bail!(
                    "{error}: the archive {} may be intact, if archive.public_keys_file lacks a key; nothing was changed. If its rows are lost, add --yes",
                    archive.id
                ),
                None | Some(ArchiveError::Changed { .. }) if args.missing => is_any_there = true,
                None | Some(ArchiveError::Changed { .. }) => bail!(
                    "the archive {} is at the target as it was written ({}); nothing was changed",
                    archive.id,
                    printable(&archive.location)
                ),
                Some(
                    error @ (ArchiveError::Settings(_)
                    | ArchiveError::Key { .. }
                    | ArchiveError::Target { .. }
                    | ArchiveError::Rows { .. }),
                ) => return Err(error).context("nothing was changed"),
            }
        }
    }
    if let [first, ..] = unknown.as_slice() {
        bail!("the database has no archive {first}; nothing was changed");
    }
    if args.missing && !forgotten.is_empty() && !is_any_there && !args.dry_run && !args.yes {
        bail!(
            "every archive that the database names is missing, {} of them: archive.url may name another place than before; nothing was \
             changed. If they are lost, add --yes",
            forgotten.len()
        );
    }
    for archive in &forgotten {
        if !args.dry_run {
            let forget = diesel::sql_query(FORGET).bind::<SqlUuid, _>(archive.id);
            let forget = forget.bind::<Binary, _>(&archive.manifest_hash).execute(&mut connection);
            let gone = forget.await.context("cannot delete the row of an archive")?;
            ensure!(gone == 1, "the archive {} was changed meanwhile; try again", archive.id);
        }
        if !args.json {
            let did = if args.dry_run { "would forget" } else { "forgot" };
            outln!("{did} {} ({} rows of {} users)", archive.id, archive.row_count, archive.user_ids.len());
        }
    }
    if args.json {
        let ids: Vec<Uuid> = forgotten.iter().map(|archive| archive.id).collect();
        out_json(serde_json::json!({ "forgotten": ids }).to_string());
    } else if forgotten.is_empty() {
        errln!("no archive is missing at the target");
    }
    Ok(())
}
