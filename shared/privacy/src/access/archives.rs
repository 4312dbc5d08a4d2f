//! The rows of the person in archives: those that the database names, and those that no row of it names.

use ::archive::{ArchiveError, Contents, ENCRYPTED_FIELDS, Rows, Target, Value};
use config::Settings;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Binary, Integer, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde_json::json;
use store::{Connection, Fault};
use trust::PublicKey;
use uuid::Uuid;

use super::database::to_line;
use super::secrets::{Cell, Secrets};
use super::sink::Sink;
use crate::archives::orphans::{self, Orphan, Read};
use crate::archives::{accepted_keys, away};
use crate::error::PrivacyError;

/// The most archives that are named each for itself, as nobody can read them.
const UNKNOWN_NAMED: usize = 100;
/// The store in the index.
const ARCHIVES: &str = "archives";

#[derive(QueryableByName)]
struct Named {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    location: String,
    #[diesel(sql_type = Binary)]
    manifest_hash: Vec<u8>,
}

async fn named(snapshot: &mut Connection, user: UserId) -> Result<Vec<Named>, Fault> {
    const NAMED: &str = "SELECT id, location, manifest_hash FROM public.archives WHERE user_ids @> ARRAY[$1]
        ORDER BY created_at, id";
    Ok(diesel::sql_query(NAMED).bind::<Integer, _>(user.get()).load(snapshot).await?)
}

/// Exports the rows of a person from all archives, one archive after the other. Encrypted fields are exported in clear.
pub(super) async fn export(
    settings: &Settings,
    snapshot: &mut Connection,
    user: UserId,
    secrets: &mut Secrets,
    sink: &mut Sink,
) -> Result<(), PrivacyError> {
    let named = named(snapshot, user).await?;
    if settings.archive.url.is_none() {
        if !named.is_empty() {
            return Err(away(
                "archive.url is not set, and there are archives with rows of the person; set it",
            ));
        }
        sink.leave_out(ARCHIVES, "all archives", None, "this deployment has no archives");
        return Ok(());
    }
    let target = Target::open(&settings.archive).map_err(away)?;
    let keys = accepted_keys(&settings.archive)?;
    sink.begin(ARCHIVES, "rows", &format!("{ARCHIVES}/rows.jsonl"))?;
    for Named { id, location, manifest_hash } in named {
        let contents = read(&target, &keys, &location, &manifest_hash).await?;
        write(id, contents, user, secrets, sink).await?;
    }
    let (unnamed, mut unknown) = orphans::unnamed(snapshot, &target).await?;
    for location in unnamed {
        let orphan = match orphans::read(&target, &keys, location).await? {
            Read::Orphan(orphan) => *orphan,
            Read::Gone => continue,
            Read::Foreign(problem) | Read::Unreadable(problem) => {
                unknown.push(problem);
                continue;
            }
        };
        let Orphan { location, manifest, hash } = orphan;
        if manifest.users.contains(&user.get()) {
            let contents = read(&target, &keys, &location, &hash).await?;
            write(manifest.id, contents, user, secrets, sink).await?;
        }
    }
    sink.end()?;
    let more = unknown.len().saturating_sub(UNKNOWN_NAMED);
    if more > 0 {
        let reason = format!("nobody can tell whose rows are in {more} more of them");
        sink.leave_out(ARCHIVES, "rows", Some("archives that the database does not name"), &reason);
    }
    for problem in unknown.iter().take(UNKNOWN_NAMED) {
        let reason = format!("nobody can tell whose rows are there: {problem}");
        sink.leave_out(ARCHIVES, "rows", Some("an archive that the database does not name"), &reason);
    }
    sink.leave_out(ARCHIVES, "rows", Some("rows of others"), "an archive may have rows of several users");
    Ok(())
}

async fn read(
    target: &Target,
    keys: &[PublicKey],
    location: &str,
    hash: &[u8],
) -> Result<Contents, PrivacyError> {
    ::archive::read(target, keys, location, Some(hash)).await.map_err(|error| match error {
        // It may have been written anew without another person, or deleted, since the snapshot.
        ArchiveError::Missing(file) => away(format!(
            "{file} is missing; run the command again, and restore the file if it is missing then, too, or have the database forget its \
             archive (`memfleet archive forget`)"
        )),
        other @ (ArchiveError::Settings(_)
        | ArchiveError::Key { .. }
        | ArchiveError::Target { .. }
        | ArchiveError::Changed { .. }
        | ArchiveError::Rows { .. }) => other.into(),
    })
}

async fn write(
    archive: Uuid,
    contents: Contents,
    user: UserId,
    secrets: &mut Secrets,
    sink: &mut Sink,
) -> Result<(), PrivacyError> {
    let own = i64::from(user.get());
    for rows in &contents.tables {
        for number in 0..rows.len() {
            if !matches!(rows.get(number, "user_id"), Value::Integer(id) if *id == own) {
                continue;
            }
            let mut row = rows.to_json(number);
            if rows.table == ENCRYPTED_FIELDS {
                let (name, value) = secrets.decrypt(cell(rows, number)?).await?;
                row.remove("ciphertext");
                row.insert(name.to_owned(), value.into());
            }
            let line = json!({ "archive": archive, "table": rows.table, "row": row });
            sink.line(&to_line(&line)?)?;
        }
    }
    Ok(())
}

fn cell(rows: &Rows, number: usize) -> Result<Cell, PrivacyError> {
    let text = |column: &str| {
        let Value::Text(text) = rows.get(number, column) else { return None };
        Some(text.clone())
    };
    let found = || {
        let Value::Uuid(row) = rows.get(number, "row_id") else { return None };
        let Value::Bytes(ciphertext) = rows.get(number, "ciphertext") else { return None };
        let (table, column) = (text("table_name")?, text("column_name")?);
        Some(Cell { table, column, row: *row, ciphertext: ciphertext.clone() })
    };
    found().ok_or_else(|| {
        PrivacyError::Refused("an encrypted field in an archive is not what this program writes".to_owned())
    })
}
