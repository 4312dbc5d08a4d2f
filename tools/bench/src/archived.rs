//! The part of `memfleet bench retention` about archives: rows that retention-cleaner archives in a second, beside a bare `COPY` and
//! `DELETE` of the same rows.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use cli::errln;
use cli::key_file::write_private;
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use store::Connection;
use trust::PrivateKey;

/// The settings with a target for archives in this folder.
pub(super) fn with_target(settings: &Settings, folder: &Path) -> anyhow::Result<Settings> {
    let key = folder.join("archive.key");
    write_private(&key, &PrivateKey::generate("bench")?.expose_line()).context("cannot write a key")?;
    let archives = folder.join("archives");
    std::fs::create_dir(&archives).context("cannot create a folder for archives")?;
    let mut settings = settings.clone();
    settings.archive.url = Some(format!("file://{}", archives.display()));
    settings.archive.signing_key_file = Some(key.display().to_string());
    Ok(settings)
}

/// Has contexts archived that were deleted before.
pub(super) async fn archive_instead(owner: &mut Connection) -> anyhow::Result<()> {
    let policy =
        "UPDATE data_retention_policies SET action = 'archive' WHERE table_name = 'simple_chat_context'";
    owner.batch_execute(policy).await.context("cannot change the policy")
}

/// The seconds of a `COPY` of the contexts of users from this one on, and of a `DELETE` after it.
pub(super) async fn bare(owner: &mut Connection, first: i32) -> anyhow::Result<(f64, f64)> {
    #[derive(QueryableByName)]
    struct Folder {
        #[diesel(sql_type = Text)]
        folder: String,
    }
    errln!("a bare COPY and DELETE");
    let query = diesel::sql_query("SELECT current_setting('data_directory') AS folder");
    let folder: Folder = query.get_result(owner).await.context("cannot read where the server's files are")?;
    let file = format!("{}/bench.copy", folder.folder).replace('\'', "''");
    let began = Instant::now();
    owner
        .batch_execute(&format!(
            "COPY (SELECT * FROM simple_chat_context WHERE user_id >= {first}) TO '{file}'"
        ))
        .await
        .context("cannot copy the rows")?;
    let copied = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let delete = diesel::sql_query("DELETE FROM simple_chat_context WHERE user_id >= $1");
    delete.bind::<Integer, _>(first).execute(owner).await.context("cannot delete the rows")?;
    Ok((copied, began.elapsed().as_secs_f64()))
}
