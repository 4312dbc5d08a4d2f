//! `memfleet audit retire`

use anyhow::{Context, ensure};
use audit::{Accepted, Keep, RetiredRows, Source};
use chrono::{SecondsFormat, Utc};
use clap::Args;
use cli::output::out_json;
use cli::table::grouped;
use cli::{errln, outln};
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_async::RunQueryDsl;
use fleet::sealer::{anchors, seal_key};
use privacy::Receipts;
use store::Connection;

use super::{database, public_keys, receipt_keys};

/// The shortest retention of the trail, in days.
pub(super) const LEAST_DAYS: i32 = Source::AuditLog.least_days();

/// The tables of the trail, as policies name them.
pub(super) const TRAIL: [(&str, Source); 3] = [
    ("audit_log", Source::AuditLog),
    ("data_access_log", Source::DataAccess),
    ("security_violations", Source::Violations),
];

/// Removes rows of the audit trail whose retention is over, whole months where possible.
///
/// How long rows are kept is said by the platform's policies of audit_log, security_violations and data_access_log: 2,557 days at first;
/// `audit retention` shows and sets it. A legal hold of user 0 that covers a table keeps it. That rows may be gone is stated under the
/// seal key, so that `audit verify` counts them as excused with proof; also of events that the platform's policy no longer keeps. Of events
/// nothing is stated, and a warning is printed, if that policy keeps them for less than 30 days, or if a user has a legal hold on events or
/// keeps them for longer. The whole trail is verified first, and nothing is removed while a row of it differs.
#[derive(Debug, Args)]
pub struct RetireArgs {
    /// Only print what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object: {"tables": [...]}.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &RetireArgs, settings: &Settings) -> anyhow::Result<()> {
    let key = seal_key(settings)?;
    let mut keys = public_keys(settings)?;
    if !keys.iter().any(|known| known.name() == key.name()) {
        keys.push(key.public());
    }
    let receipts = receipt_keys(settings)?;
    let erasures = Receipts { settings, keys: &receipts };
    let keys = Accepted { seals: &keys, receipts: &receipts, erasures: Some(&erasures) };
    let mut connection = database(settings).await?;
    let keeps = keeps(&mut connection).await?;
    let anchors = anchors(settings).await?;
    let retired = audit::retire(&mut connection, &anchors, &key, keys, &keeps, Utc::now(), args.dry_run)
        .await
        .context("cannot retire rows of the audit trail")?;
    if args.json {
        let tables: Vec<_> = retired
            .iter()
            .map(|one| {
                serde_json::json!({ "table": one.source.table(), "through_seal": one.through_seal,
                    "sealed_at": one.sealed_at.to_rfc3339_opts(SecondsFormat::Secs, true), "partitions": one.partitions,
                    "rows": one.rows })
            })
            .collect();
        out_json(serde_json::json!({ "tables": tables }));
        return Ok(());
    }
    for one in &retired {
        show(one, args.dry_run);
    }
    if retired.is_empty() {
        outln!("no seal is as old as rows are kept");
    }
    Ok(())
}

fn show(retired: &RetiredRows, dry_run: bool) {
    let RetiredRows { source, through_seal, sealed_at, partitions, rows } = retired;
    let at = sealed_at.to_rfc3339_opts(SecondsFormat::Secs, true);
    let verb = if dry_run { "would remove" } else { "removed" };
    outln!("{}: {verb} {} rows up to seal {through_seal}, of {at}", source.table(), grouped(*rows));
    for partition in partitions {
        outln!("  dropped {partition}");
    }
}

/// How long the rows of each table are kept; none of a table under a hold. Prints a warning if nothing can be stated of events.
async fn keeps(connection: &mut Connection) -> anyhow::Result<Vec<Keep>> {
    #[derive(QueryableByName)]
    struct Policy {
        #[diesel(sql_type = Text)]
        table_name: String,
        #[diesel(sql_type = Integer)]
        keep_days: i32,
    }
    const POLICIES: &str = "
        SELECT p.table_name::text AS table_name, p.keep_days FROM data_retention_policies p
        WHERE p.user_id = 0 AND p.is_active AND p.chat_mode IS NULL AND p.access_tier IS NULL
            AND NOT EXISTS (SELECT FROM retention_holds h WHERE h.user_id = 0 AND h.released_at IS NULL
                AND (h.table_name IS NULL OR h.table_name = p.table_name))
        ORDER BY p.table_name";
    let policies: Vec<Policy> =
        diesel::sql_query(POLICIES).load(connection).await.context("cannot read the policies")?;
    let mut keeps = Vec::new();
    for Policy { table_name, keep_days: days } in policies {
        let events = ("blackboard_events", Source::Events);
        let mut sources = TRAIL.into_iter().chain([events]);
        let Some((_, source)) = sources.find(|(name, _)| *name == table_name) else { continue };
        if source == Source::Events {
            let problems = problems_of_events(connection, days).await?;
            if !problems.is_empty() {
                errln!("warning: nothing is stated of events: {}", problems.join("; "));
                continue;
            }
        }
        ensure!(
            days >= source.least_days(),
            "the policy of {table_name} keeps {days} days; the audit trail is kept for {LEAST_DAYS} at least"
        );
        keeps.push(Keep { source, days });
    }
    Ok(keeps)
}

/// How many users a warning names.
const NAMED_USERS: usize = 5;

/// Why nothing can be stated of events that the platform keeps for so many days: a statement covers the events of all users.
async fn problems_of_events(connection: &mut Connection, days: i32) -> anyhow::Result<Vec<String>> {
    #[derive(QueryableByName)]
    struct Longer {
        #[diesel(sql_type = Text)]
        reason: String,
        #[diesel(sql_type = BigInt)]
        users: i64,
    }
    // Events have no chat mode and no access tier. Holds come first.
    const LONGER: &str = "
        SELECT l.reason, count(*) OVER () AS users FROM (
            SELECT DISTINCT 0 AS place, h.user_id, format('user %s has a legal hold', h.user_id) AS reason FROM retention_holds h
            WHERE h.user_id <> 0 AND h.released_at IS NULL AND h.chat_mode IS NULL AND h.access_tier IS NULL
                AND (h.table_name IS NULL OR h.table_name = 'blackboard_events')
            UNION ALL SELECT 1, p.user_id, format('the policy of user %s keeps %s days', p.user_id, p.keep_days)
            FROM data_retention_policies p
            WHERE p.user_id <> 0 AND p.is_active AND p.chat_mode IS NULL AND p.access_tier IS NULL
                AND p.table_name = 'blackboard_events' AND p.keep_days > $1) AS l
        ORDER BY l.place, l.user_id LIMIT $2";
    let longer: Vec<Longer> = diesel::sql_query(LONGER)
        .bind::<Integer, _>(days)
        .bind::<BigInt, _>(i64::try_from(NAMED_USERS)?)
        .load(connection)
        .await
        .context("cannot read the users' holds and policies")?;
    let mut problems = Vec::new();
    let least = Source::Events.least_days();
    if days < least {
        problems
            .push(format!("the policy of blackboard_events keeps {days} days, and {least} are the least"));
    }
    let all = longer.as_slice().first().map_or(0, |one| usize::try_from(one.users).unwrap_or(0));
    problems.extend(longer.into_iter().map(|one| one.reason));
    if all > NAMED_USERS {
        problems.push(format!("and {} more", all - NAMED_USERS));
    }
    Ok(problems)
}
