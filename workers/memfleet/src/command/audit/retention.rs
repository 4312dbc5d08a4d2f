//! `memfleet audit retention`

use anyhow::{Context, ensure};
use audit::{Keep, RetiredRows, Source, due_rows};
use chrono::Utc;
use clap::Args;
use cli::outln;
use cli::output::out_json;
use cli::table::{Align, Table, grouped};
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Integer, Nullable, Text};
use diesel_async::RunQueryDsl;
use store::Connection;

use super::database;
use super::retire::{LEAST_DAYS, TRAIL};
use crate::visibility;

/// The longest retention that a policy can have, in days.
const MOST_DAYS: i32 = 36_500;

/// Shows how long rows of the audit trail are kept after they were sealed, or sets it with --days or --years.
///
/// Also counts the rows that `audit retire` would remove now, by the seals in the database, which are not verified. Removes nothing:
/// `audit retire` does, and a longer retention does not bring back what it removed. The platform's policies of audit_log,
/// data_access_log and security_violations are 365 to 36,500 days long. A change of them is in the audit trail itself.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    /// Keep rows for so many days, 365 to 36500.
    #[arg(long, value_name = "DAYS", conflicts_with = "years")]
    days: Option<u32>,
    /// Keep rows for so many years, 1 to 99; 7 years are 2557 days.
    #[arg(long, value_name = "YEARS")]
    years: Option<u32>,
    /// Only this table; may be repeated. Default: all three.
    #[arg(long = "table", value_name = "TABLE", value_parser = ["audit_log", "data_access_log", "security_violations"])]
    tables: Vec<String>,
    /// Print one JSON object: {"tables": [...]}.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &RetentionArgs, settings: &Settings) -> anyhow::Result<()> {
    let days = days(args)?;
    let is_meant = |name: &str| args.tables.is_empty() || args.tables.iter().any(|table| table == name);
    let names: Vec<&str> = TRAIL.iter().map(|(name, _)| *name).filter(|name| is_meant(name)).collect();
    let mut connection = database(settings).await?;
    let read = ["data_retention_policies", "retention_holds"];
    visibility::check_sees_all(&mut connection, &read, "policies").await?;
    if let Some(days) = days {
        set(&mut connection, &names, days).await?;
    }
    let policies = policies(&mut connection, &names).await?;
    let keeps: Vec<Keep> = policies.iter().filter_map(Policy::keep).collect();
    let due =
        due_rows(&mut connection, &keeps, Utc::now()).await.context("cannot count the rows that are due")?;
    if args.json {
        let tables: Vec<_> = policies
            .iter()
            .map(|one| {
                let due = one.due(&due);
                serde_json::json!({ "table": one.table_name, "keep_days": one.keep_days, "held": one.is_held,
                    "due_rows": due.map_or(0, |due| due.rows), "through_seal": due.map(|due| due.through_seal) })
            })
            .collect();
        out_json(serde_json::json!({ "tables": tables }));
        return Ok(());
    }
    show(&policies, &due);
    if days.is_some() {
        outln!("set; `memfleet audit retire` removes what is due");
    }
    Ok(())
}

/// The days to set, if any.
fn days(args: &RetentionArgs) -> anyhow::Result<Option<i32>> {
    // Of four years one is a leap year. Rounded up, so that no row goes before its years are over.
    let of_years = |years: u32| (u64::from(years) * 1_461).div_ceil(4);
    let Some(days) = args.days.map(u64::from).or(args.years.map(of_years)) else { return Ok(None) };
    ensure!(
        days >= u64::from(LEAST_DAYS.unsigned_abs()),
        "cannot keep the audit trail for {days} days: it is evidence and is kept for {LEAST_DAYS} days at least; use --days \
         {LEAST_DAYS} or more"
    );
    ensure!(
        days <= u64::from(MOST_DAYS.unsigned_abs()),
        "cannot keep the audit trail for {days} days: the database accepts policies of {MOST_DAYS} days at most; use --days \
         {MOST_DAYS} or less"
    );
    Ok(Some(i32::try_from(days)?))
}

async fn set(connection: &mut Connection, names: &[&str], days: i32) -> anyhow::Result<()> {
    // A policy that somebody removed is made again.
    const SET: &str = "
        INSERT INTO data_retention_policies AS t (id, user_id, table_name, keep_days, action)
        SELECT gen_random_uuid(), 0, name, $2, 'delete' FROM unnest($1) AS name ORDER BY name
        ON CONFLICT (user_id, table_name, chat_mode, access_tier) DO UPDATE
        SET keep_days = excluded.keep_days, is_active = true, updated_at = now()
        WHERE t.keep_days <> excluded.keep_days OR NOT t.is_active";
    diesel::sql_query(SET)
        .bind::<Array<Text>, _>(names)
        .bind::<Integer, _>(days)
        .execute(connection)
        .await
        .context("cannot set the policies")?;
    Ok(())
}

/// What the platform says of a table of the trail.
#[derive(QueryableByName)]
struct Policy {
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Nullable<Integer>)]
    keep_days: Option<i32>,
    #[diesel(sql_type = Bool)]
    is_held: bool,
}

async fn policies(connection: &mut Connection, names: &[&str]) -> anyhow::Result<Vec<Policy>> {
    const POLICIES: &str = "
        SELECT name AS table_name, p.keep_days, EXISTS (SELECT FROM retention_holds h WHERE h.user_id = 0 AND h.released_at IS NULL
            AND (h.table_name IS NULL OR h.table_name = name)) AS is_held
        FROM unnest($1) AS name LEFT JOIN data_retention_policies p ON p.user_id = 0 AND p.table_name = name AND p.is_active
            AND p.chat_mode IS NULL AND p.access_tier IS NULL
        ORDER BY name";
    diesel::sql_query(POLICIES)
        .bind::<Array<Text>, _>(names)
        .load(connection)
        .await
        .context("cannot read the policies")
}

impl Policy {
    fn source(&self) -> Option<Source> {
        TRAIL.iter().find(|(name, _)| *name == self.table_name).map(|(_, source)| *source)
    }

    /// What `audit retire` goes by; none if it removes nothing of this table.
    fn keep(&self) -> Option<Keep> {
        let days = self.keep_days.filter(|days| *days >= LEAST_DAYS && !self.is_held)?;
        Some(Keep { source: self.source()?, days })
    }

    fn due<'a>(&self, due: &'a [RetiredRows]) -> Option<&'a RetiredRows> {
        due.iter().find(|one| Some(one.source) == self.source())
    }

    fn state(&self) -> String {
        match self.keep_days {
            _ if self.is_held => "nothing is removed: legal hold".to_owned(),
            None => "nothing is removed: no policy".to_owned(),
            Some(days) if days < LEAST_DAYS => {
                format!("`audit retire` fails: {LEAST_DAYS} days at least; set it with --days")
            }
            Some(_) => String::new(),
        }
    }
}

fn show(policies: &[Policy], due: &[RetiredRows]) {
    let mut table = Table::new([
        ("table", Align::Left),
        ("kept for days", Align::Right),
        ("due rows", Align::Right),
        ("state", Align::Left),
    ]);
    for one in policies {
        table.row([
            one.table_name.clone(),
            one.keep_days.map(|days| grouped(u64::from(days.unsigned_abs()))).unwrap_or_default(),
            grouped(one.due(due).map_or(0, |due| due.rows)),
            one.state(),
        ]);
    }
    outln!("{}", table.to_string().trim_end());
}
