//! `memfleet security validate`: attacks the configured database as each worker's role, and checks in the catalogs that
//! isolation is set up completely. Everything runs in transactions that are rolled back.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use cli::outln;
use cli::output::{out_json, printable};
use cli::table::{Align, Table, grouped};
use config::Settings;
use contract::{Service, UserId};
use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use serde::Serialize;
use store::catalog::Catalog;
use trust::{Grant, GrantKey};
use uuid::Uuid;

use super::attack::{self, Attempt, Expected, Target};
use crate::server_warnings;

/// Attacks the database as each worker's role and reports what succeeds. Needs a superuser's login; changes nothing.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Print one JSON object, on the last line of standard output, instead of a table.
    #[arg(long)]
    json: bool,
}

/// The result.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Number of attempts and checks.
    attempts: u64,
    /// Attempts that succeeded or failed with an unexpected error, and failed checks.
    findings: Vec<Finding>,
    /// What lies outside of this database, and is for the operator of the server to judge.
    warnings: Vec<String>,
    /// `None` if they could not be read.
    grant_keys: Option<GrantKeys>,
    #[serde(skip)]
    kinds: BTreeMap<&'static str, (u64, u64)>,
}

/// The names of the registered keys that are not retired. Whoever knows one of them can act for every user. Which keys are
/// the operator's, only the operator knows.
#[derive(Debug, Default, Serialize)]
struct GrantKeys {
    /// In the main database.
    database: Vec<String>,
    key_store: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Finding {
    kind: &'static str,
    /// The attacking role; `None` for a check of the catalogs.
    role: Option<String>,
    what: String,
    outcome: String,
}

impl Report {
    fn note(&mut self, kind: &'static str, finding: Option<Finding>) {
        self.attempts += 1;
        let counts = self.kinds.entry(kind).or_default();
        counts.0 += 1;
        counts.1 += u64::from(finding.is_some());
        self.findings.extend(finding);
    }

    /// Notes a check and everything that it found.
    fn note_all(
        &mut self,
        kind: &'static str,
        found: impl IntoIterator<Item = (Option<String>, String, String)>,
    ) {
        let mut found = found.into_iter().peekable();
        if found.peek().is_none() {
            self.note(kind, None);
        }
        for (role, what, outcome) in found {
            self.note(kind, Some(Finding { kind, role, what, outcome }));
        }
    }
}

/// Runs `memfleet security validate`.
///
/// # Errors
/// If the database is unreachable, the role is not a superuser, or there are findings.
pub async fn execute(args: &ValidateArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut connection = connect(&settings.postgres.url, "postgres.url", "the database to validate").await?;
    let mut key_store = connect(&settings.keys.url, "keys.url", "the key store to validate").await?;
    let mut warnings = server_warnings::open_databases(&mut connection).await?;
    warnings.extend(server_warnings::powers(&mut connection).await?);
    let mut report = Report { warnings, ..Report::default() };
    // What was found is told also if a check cannot be run, since it may be the reason.
    let judged = judge(&mut connection, &mut key_store, &mut report).await;
    if args.json {
        out_json(serde_json::to_string(&report)?);
    } else {
        show(&report);
    }
    judged?;
    match report.findings.len() {
        0 => Ok(()),
        count => bail!("{count} findings: isolation is broken"),
    }
}

async fn judge(
    connection: &mut AsyncPgConnection,
    key_store: &mut AsyncPgConnection,
    report: &mut Report,
) -> anyhow::Result<()> {
    check_server(connection, report).await?;
    report.grant_keys = Some(GrantKeys {
        database: lines(connection, GRANT_KEYS).await.context("cannot read the grant keys")?,
        key_store: lines(key_store, GRANT_KEYS)
            .await
            .context("cannot read the grant keys of the key store")?,
    });
    check_catalogs(connection, report).await?;
    compare_with_migrations(&store::catalog::MAIN, connection, "differs from the migrations", report).await?;
    let kind = "key store differs from its migrations";
    compare_with_migrations(&keys::CATALOG, key_store, kind, report).await?;
    attack_all(connection, report).await?;
    attack_key_store(key_store, report).await.context("cannot validate the key store")?;
    compare_revocations(connection, key_store, report).await
}

/// Compares what the key store knows of revocations.
async fn compare_revocations(
    connection: &mut AsyncPgConnection,
    key_store: &mut AsyncPgConnection,
    report: &mut Report,
) -> anyhow::Result<()> {
    let found = keys::difference(connection, key_store).await?;
    let unknown =
        |what| (None, what, "unknown to the key store; `memfleet security sync` tells it".to_owned());
    report.note_all("revocation unknown to the key store", found.phrases().into_iter().map(unknown));
    Ok(())
}

/// Connects as a superuser, who can assume the workers' roles.
async fn connect(url: &str, setting: &str, what: &str) -> anyhow::Result<AsyncPgConnection> {
    let mut connection = cli::database::connect(url, setting, what).await?;
    // First of all: what is added to the database must not take part in judging it.
    store::security::fix_search_path(&mut connection).await?;
    if lines(&mut connection, "SELECT 'x' AS line FROM pg_roles WHERE rolname = session_user AND rolsuper")
        .await?
        .is_empty()
    {
        bail!("the role of {setting} is not a superuser; only a superuser can assume the workers' roles");
    }
    // Attacks must not block other users of the database.
    connection.batch_execute("SET lock_timeout = '1s'; SET statement_timeout = '10s'").await?;
    Ok(connection)
}

fn show(report: &Report) {
    let mut table =
        Table::new([("attempt", Align::Left), ("tried", Align::Right), ("findings", Align::Right)]);
    for (kind, (tried, found)) in &report.kinds {
        table.row([(*kind).to_owned(), grouped(*tried), grouped(*found)]);
    }
    let found = u64::try_from(report.findings.len()).unwrap_or(u64::MAX);
    table.row(["total".to_owned(), grouped(report.attempts), grouped(found)]);
    outln!("{table}");
    if let Some(GrantKeys { database, key_store }) = &report.grant_keys {
        for (place, names) in [("the database", database), ("the key store", key_store)] {
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            outln!("grant keys of {place}: {}", printable(&names));
        }
        outln!("Compare them with the issuers': whoever has one of these keys can act for every user.");
    }
    for warning in &report.warnings {
        outln!("warning: {}", printable(warning));
    }
    for Finding { kind, role, what, outcome } in &report.findings {
        outln!(
            "{kind}: {}{}: {}",
            role.as_ref().map_or_else(String::new, |role| format!("{role}: ")),
            printable(what),
            printable(outcome)
        );
    }
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

async fn lines(connection: &mut AsyncPgConnection, sql: &str) -> anyhow::Result<Vec<String>> {
    let rows: Vec<Line> = diesel::sql_query(sql).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.line).collect())
}

/// The tables with rows of users: all with a column `user_id`, and `users`. Except `cross_service_auth`: it registers
/// services, and no worker may read it.
const TARGETS: &str = "
    SELECT c.oid::regclass || ' ' || a.attname AS line FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        AND a.attname = CASE WHEN c.relname = 'users' THEN 'id' ELSE 'user_id' END
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND c.relname <> 'cross_service_auth' ORDER BY 1";
const ROLES: &str = "SELECT DISTINCT role_name::text AS line FROM sec.worker_privileges WHERE 'INSERT' = ANY (privileges) ORDER BY 1";
const GRANT_KEYS: &str = "SELECT k.key_id::text AS line FROM sec.keys k WHERE k.purpose = 'grant' AND k.retired_at IS NULL ORDER BY 1";
const PARTITIONS: &str = "SELECT inhrelid::regclass::text AS line FROM pg_inherits
    JOIN pg_class c ON c.oid = inhparent AND c.relkind = 'p' ORDER BY 1";

/// Checks of the catalogs. Each query returns one line per violation.
const CHECKS: [(&str, &str); 13] = [
    (
        "table without forced RLS",
        "SELECT c.oid::regclass::text AS line FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
            AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
            AND c.relname NOT IN ('gpu_resources', 'qdrant_access_control', 'cross_service_auth', 'vector_collections',
                'retention_state', 'job_runs', 'archives', 'maintenance_indexes', '__diesel_schema_migrations')",
    ),
    (
        "unknown RLS policy",
        "SELECT polrelid::regclass || ' ' || polname AS line FROM pg_policy
            WHERE NOT (NOT polpermissive AND (polname IN ('evidence', 'own_types') AND polrelid = 'public.blackboard_events'::regclass
                OR polname = 'published' AND polrelid = 'public.session_clocks'::regclass
                OR polname ~ '^own_worker_(adds|changes|deletes)$' AND polrelid = 'public.inbox'::regclass
                OR polname ~ '^of_[a-z]+_tables$' AND polrelid = 'public.encrypted_fields'::regclass))
            AND (polname = 'own_rows'
                AND pg_get_expr(polwithcheck, polrelid) ~ '^\\((user_id|id) = ANY \\(\\( SELECT sec.current_user_ids\\(\\) AS current_user_ids\\)::integer\\[\\]\\)\\)$'
                AND pg_get_expr(polqual, polrelid) = format('(((( SELECT sec.current_users() AS current_users))[%s] IS NOT NULL) AND %s)',
                    substring(pg_get_expr(polwithcheck, polrelid) FROM '[a-z_]+'), pg_get_expr(polwithcheck, polrelid))) IS NOT TRUE",
    ),
    (
        "privilege granted to PUBLIC",
        "SELECT c.oid::regclass || ' ' || acl.privilege_type AS line FROM pg_class c, aclexplode(c.relacl) AS acl
            WHERE c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit') AND acl.grantee = 0
         UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc p
            WHERE p.pronamespace::regnamespace::text IN ('public', 'sec', 'audit')
            AND has_function_privilege('public', p.oid, 'EXECUTE')
         UNION ALL SELECT 'the database' FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS acl
            WHERE d.datname = current_database() AND acl.grantee = 0",
    ),
    (
        "SECURITY DEFINER function without a fixed search_path",
        "SELECT p.oid::regprocedure::text AS line FROM pg_proc p
            WHERE p.pronamespace::regnamespace::text IN ('public', 'sec', 'audit') AND p.prosecdef
            AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)",
    ),
    (
        "SECURITY DEFINER function whose plans its caller can print",
        "SELECT p.oid::regprocedure::text AS line FROM pg_proc p
            WHERE p.pronamespace::regnamespace::text IN ('public', 'sec', 'audit') AND p.prosecdef
            AND NOT coalesce(p.proconfig @> ARRAY['debug_print_parse=off', 'debug_print_rewritten=off', 'debug_print_plan=off',
                'client_min_messages=warning'], false)",
    ),
    (
        "table owner that can log in",
        "SELECT c.oid::regclass || ' of ' || r.rolname AS line FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
            WHERE c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit') AND c.relkind IN ('r', 'p')
            AND c.relname <> '__diesel_schema_migrations' AND r.rolcanlogin",
    ),
    (
        "role memfleet_due with more than column privileges",
        "SELECT 'it can log in' AS line FROM pg_roles WHERE rolname = 'memfleet_due' AND rolcanlogin
         UNION ALL SELECT c.oid::regclass || ' ' || acl.privilege_type FROM pg_class c, aclexplode(c.relacl) AS acl
            WHERE acl.grantee = 'memfleet_due'::regrole
         UNION ALL SELECT a.attrelid::regclass || '.' || a.attname || ' ' || acl.privilege_type
            FROM pg_attribute a, aclexplode(a.attacl) AS acl
            WHERE acl.grantee = 'memfleet_due'::regrole AND acl.privilege_type <> 'SELECT'
         UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE p.proowner = 'memfleet_due'::regrole
            AND NOT EXISTS (SELECT FROM sec.jobs j WHERE j.due_function = format('%I.%I', n.nspname, p.proname))
            AND (n.nspname <> 'sec' OR p.proname NOT IN ('platform_policies', 'platform_holds', 'retention_slice',
                'due_users', 'next_slice', 'has_due_beside', 'has_archive_policies', 'has_events_outside'))",
    ),
    (
        "view that bypasses RLS",
        "SELECT c.oid::regclass::text AS line FROM pg_class c
            WHERE c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit') AND c.relkind IN ('v', 'm')
            AND NOT coalesce('security_invoker=true' = ANY (c.reloptions), false)",
    ),
    (
        "unknown trigger",
        "SELECT t.tgrelid::regclass || ' ' || t.tgname AS line FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
            JOIN pg_class c ON c.oid = t.tgrelid AND c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit')
            WHERE NOT t.tgisinternal AND p.proowner <> 'memfleet_owner'::regrole",
    ),
    (
        "table without audit trigger",
        "SELECT c.oid::regclass || ' on ' || o.operation AS line FROM pg_policy p
            JOIN pg_class c ON c.oid = p.polrelid AND NOT c.relispartition AND c.oid <> ALL (ARRAY['public.inbox', 'public.session_clocks',
                'public.router_hourly_patterns']::regclass[])
            CROSS JOIN (VALUES ('INSERT', 4), ('DELETE', 8), ('UPDATE', 16)) AS o (operation, bit)
            WHERE NOT (c.oid = 'public.blackboard_events'::regclass AND o.operation = 'INSERT')
            AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled IN ('O', 'A')
                AND t.tgtype & o.bit > 0 AND t.tgfoid = CASE o.operation
                    WHEN 'UPDATE' THEN to_regproc('audit.note_updates_of_' || c.relname)
                    ELSE 'audit.audit_trigger_function'::regproc END)",
    ),
    (
        "advisory lock function granted to PUBLIC",
        "SELECT p.oid::regprocedure::text AS line FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace
            AND p.proname ~ '^pg_(try_)?advisory_' AND has_function_privilege('public', p.oid, 'EXECUTE')",
    ),
    (
        "large object function granted to PUBLIC",
        "SELECT p.oid::regprocedure::text AS line FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace
            AND p.proname ~ '^(lo_|loread$|lowrite$)' AND has_function_privilege('public', p.oid, 'EXECUTE')",
    ),
    (
        "foreign key without user_id",
        "SELECT conrelid::regclass || ' ' || conname AS line FROM pg_constraint c
            WHERE contype = 'f' AND conparentid = 0 AND connamespace = 'public'::regnamespace
            AND confrelid <> ALL (ARRAY['public.users', 'public.gpu_resources']::regclass[])
            AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attname = 'user_id'
                AND a.attnum = ANY (c.conkey))",
    ),
];

/// Checks whether the catalogs can be trusted at all, and what workers' roles may take of the server.
async fn check_server(connection: &mut AsyncPgConnection, report: &mut Report) -> anyhow::Result<()> {
    let added =
        store::server::added_to_system_schemas(connection).await.context("cannot read the catalogs")?;
    let added = added.into_iter().map(|what| (None, what, "exists".to_owned()));
    report.note_all("object added to PostgreSQL's own schemas", added);
    let unlimited = store::server::unlimited_roles(connection).await.context("cannot read the roles")?;
    let unlimited = unlimited.into_iter().map(|one| {
        let outcome = format!(
            "{} of {} connections",
            one.limit.map_or_else(|| "all".to_owned(), |limit| limit.to_string()),
            one.connections
        );
        (Some(one.role), "CONNECTION LIMIT".to_owned(), outcome)
    });
    report.note_all("role without a limit of connections", unlimited);
    Ok(())
}

async fn check_catalogs(connection: &mut AsyncPgConnection, report: &mut Report) -> anyhow::Result<()> {
    for (kind, sql) in CHECKS {
        let found = lines(connection, sql).await.with_context(|| format!("cannot run the check {kind:?}"))?;
        report.note_all(kind, found.into_iter().map(|what| (None, what, "exists".to_owned())));
    }
    Ok(())
}

/// Compares roles, functions, policies, triggers and privileges with what the migrations of this program make.
async fn compare_with_migrations(
    catalog: &Catalog,
    connection: &mut AsyncPgConnection,
    kind: &'static str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let difference = catalog.difference(connection).await.context("cannot read the catalogs")?;
    let sides = [(difference.missing, "is missing"), (difference.unknown, "exists")];
    let found = sides
        .into_iter()
        .flat_map(|(lines, outcome)| lines.into_iter().map(move |what| (None, what, outcome.to_owned())));
    report.note_all(kind, found);
    Ok(())
}

async fn attack_all(connection: &mut AsyncPgConnection, report: &mut Report) -> anyhow::Result<()> {
    let target = |line: &String| {
        let (table, owner) = line.split_once(' ')?;
        Some(Target { table: table.to_owned(), owner: owner.to_owned() })
    };
    let targets: Vec<Target> = lines(connection, TARGETS).await?.iter().filter_map(target).collect();
    let (roles, partitions) = (lines(connection, ROLES).await?, lines(connection, PARTITIONS).await?);
    let user = users(connection, USERS).await?.0;
    for role in &roles {
        let excess = "SELECT excess AS line FROM sec.excess_privileges() AS excess";
        let mut attempts = attack::without_a_grant(&targets);
        attempts.extend(attack::around(role, &roles, &partitions));
        let grants = Grants::new(role, user)?;
        attempts.extend(grants.bad());
        attempts.extend(attack::no_grants(user));
        connection.batch_execute("BEGIN").await?;
        grants.register(connection).await?;
        connection.batch_execute(&format!("SET LOCAL SESSION AUTHORIZATION {role}")).await?;
        for what in lines(connection, excess).await? {
            let kind = "excess privilege";
            let finding = Finding { kind, role: Some(role.clone()), what, outcome: "exists".to_owned() };
            report.note(kind, Some(finding));
        }
        for attempt in attempts {
            try_one(connection, role, &attempt, report).await?;
        }
        connection.batch_execute(&format!("SELECT sec.open_context(ARRAY['{}'])", grants.good)).await?;
        for attempt in attack::with_a_grant(&targets, user) {
            try_one(connection, role, &attempt, report).await?;
        }
        connection.batch_execute("ROLLBACK").await?;
    }
    Ok(())
}

/// Two users with whom an attack is tried: with rows, if there are such. For one who is erased, is being erased or is restricted, no context
/// opens, and whatever is tried is refused or left out for that reason.
const USERS: &str = "
    SELECT c.id::text AS line FROM ((SELECT id, 0 AS without_rows FROM public.users WHERE id > 0 ORDER BY random() LIMIT 100)
        UNION ALL (SELECT n, 1 FROM generate_series(1, 10000) AS n ORDER BY random() LIMIT 100)) AS c
    WHERE sec.fence_of(ARRAY[c.id]) IS NULL AND sec.restriction_of(ARRAY[c.id]) IS NULL GROUP BY c.id ORDER BY min(c.without_rows), random() LIMIT 2";
const KEYS_USERS: &str = "
    SELECT c.id::text AS line FROM ((SELECT DISTINCT user_id AS id, 0 AS without_rows FROM public.data_keys LIMIT 100)
        UNION ALL (SELECT n, 1 FROM generate_series(1, 10000) AS n ORDER BY random() LIMIT 100)) AS c
    WHERE NOT sec.is_fenced(ARRAY[c.id]) GROUP BY c.id ORDER BY min(c.without_rows), random() LIMIT 2";

async fn users(connection: &mut AsyncPgConnection, of: &str) -> anyhow::Result<(i32, i32)> {
    let found = lines(connection, of).await?;
    let ids: Vec<i32> = found.iter().filter_map(|id| id.parse().ok()).collect();
    match ids[..] {
        [user, other] => Ok((user, other)),
        _ => anyhow::bail!("of 200 ids, all but one at most are of users who were erased; run it again"),
    }
}

/// A valid grant, and others that are not.
struct Grants {
    key: GrantKey,
    user: i32,
    good: String,
    bad: [String; 3],
}

impl Grants {
    fn new(role: &str, user: i32) -> anyhow::Result<Self> {
        let key = GrantKey::generate("validate")?;
        let now = SystemTime::now();
        let later = now + Duration::from_secs(60);
        let bad = [
            seal(&key, user, "w_nobody", later)?,
            seal(&key, user, role, now - Duration::from_secs(1))?,
            seal(&GrantKey::generate("validate")?, user, role, later)?,
        ];
        Ok(Self { good: seal(&key, user, role, later)?, key, user, bad })
    }

    fn bad(&self) -> Vec<Attempt> {
        let [other_role, expired, foreign_key] = &self.bad;
        attack::bad_grants(&self.good, other_role, expired, foreign_key, self.user)
    }

    /// Registers the key, in a transaction that is rolled back.
    async fn register(&self, connection: &mut AsyncPgConnection) -> anyhow::Result<()> {
        Ok(store::security::add_grant_key(connection, self.key.name(), self.key.expose()).await?)
    }
}

/// Attacks the data keys as each role that may read them.
async fn attack_key_store(connection: &mut AsyncPgConnection, report: &mut Report) -> anyhow::Result<()> {
    const ROLES: &str = "SELECT r.rolname::text AS line FROM pg_roles r
        WHERE NOT r.rolsuper AND r.rolcanlogin AND has_any_column_privilege(r.oid, 'public.data_keys', 'SELECT') ORDER BY 1";
    const UNFORCED: &str = "SELECT 'data_keys' AS line FROM pg_class c
        WHERE c.oid = 'public.data_keys'::regclass AND NOT (c.relrowsecurity AND c.relforcerowsecurity)";
    let exists = |what| (None, what, "exists".to_owned());
    let added = store::server::added_to_system_schemas(connection).await?;
    report
        .note_all("object added to PostgreSQL's own schemas in the key store", added.into_iter().map(exists));
    let unforced = lines(connection, UNFORCED).await?;
    report.note_all("table without forced RLS", unforced.into_iter().map(exists));
    let (user, other) = users(connection, KEYS_USERS).await?;
    for role in lines(connection, ROLES).await? {
        let grants = Grants::new(&role, user)?;
        connection.batch_execute("BEGIN").await?;
        grants.register(connection).await?;
        connection.batch_execute(&format!("SET LOCAL SESSION AUTHORIZATION {role}")).await?;
        for attempt in attack::on_key_store(user).into_iter().chain(grants.bad()) {
            try_one(connection, &role, &attempt, report).await?;
        }
        connection.batch_execute(&format!("SELECT sec.open_context(ARRAY['{}'])", grants.good)).await?;
        for attempt in attack::on_key_store_with_a_grant(user, other) {
            try_one(connection, &role, &attempt, report).await?;
        }
        connection.batch_execute("ROLLBACK").await?;
    }
    Ok(())
}

fn seal(key: &GrantKey, user: i32, role: &str, expires_at: SystemTime) -> anyhow::Result<String> {
    let service: Service = "validate".parse()?;
    Ok(key.seal(&Grant {
        user_id: UserId::new(user)?,
        session: None,
        service: &service,
        role,
        id: Uuid::now_v7(),
        expires_at,
    }))
}

/// Runs one attempt, rolls it back and records the outcome.
async fn try_one(
    connection: &mut AsyncPgConnection,
    role: &str,
    attempt: &Attempt,
    report: &mut Report,
) -> anyhow::Result<()> {
    connection.batch_execute("SAVEPOINT attempt").await?;
    let mut outcome = Ok(0);
    for statement in attempt.sql.split("; ") {
        outcome = diesel::sql_query(statement).execute(connection).await;
        if outcome.is_err() {
            break;
        }
    }
    connection.batch_execute("ROLLBACK TO SAVEPOINT attempt").await?;
    let outcome = outcome.map_err(|error| error.to_string());
    let as_expected = match (attempt.expected, &outcome) {
        (Expected::Nothing | Expected::NotGenuine, Ok(rows)) => *rows == 0,
        (Expected::NotGenuine, Err(error)) => {
            error.contains("the security context is not genuine") || error.contains("permission denied")
        }
        (Expected::Nothing, Err(error)) => error.contains("permission denied"),
        (Expected::Refused(_), Ok(_)) => false,
        (Expected::Refused(by), Err(error)) => by.iter().any(|phrase| error.contains(phrase)),
    };
    let finding = (!as_expected).then(|| Finding {
        kind: attempt.kind,
        role: Some(role.to_owned()),
        what: attempt.sql.clone(),
        outcome: outcome.map_or_else(|error| error, |rows| format!("{rows} rows")),
    });
    report.note(attempt.kind, finding);
    Ok(())
}
