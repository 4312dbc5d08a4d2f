//! The attacks of `memfleet security validate`: what an attacker with a worker's database login could try, and the
//! required outcome.

/// The required outcome of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Rejected with an error that contains one of these phrases.
    Refused(&'static [&'static str]),
    /// Rejected for a missing privilege, or zero rows.
    Nothing,
    /// Rejected for a forged context or a missing privilege, or zero rows: the policy evaluates the context only if the
    /// table has rows.
    NotGenuine,
}

/// One attempt.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    /// The attack's kind, a row of the printed table.
    pub(super) kind: &'static str,
    /// The statements. The rows that the last one returns or affects are counted.
    pub(super) sql: String,
    pub(super) expected: Expected,
}

/// A table with rows of users.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) table: String,
    /// The column with the owner's user id.
    pub(super) owner: String,
}

const DENIED: &[&str] = &["permission denied", "must be owner"];
const REFUSED: &[&str] = &["permission denied", "row-level security policy"];

/// Access without a security context, or with one set by hand.
pub(super) fn without_a_grant(targets: &[Target]) -> Vec<Attempt> {
    let mut all = Vec::new();
    for Target { table, owner } in targets {
        let mut add = |kind, sql: String, expected| all.push(Attempt { kind, sql, expected });
        add("read without a context", format!("SELECT FROM {table}"), Expected::Nothing);
        add("update without a context", format!("UPDATE {table} SET {owner} = {owner}"), Expected::Nothing);
        add("delete without a context", format!("DELETE FROM {table}"), Expected::Nothing);
        add(
            "insert without a context",
            format!("INSERT INTO {table} DEFAULT VALUES"),
            Expected::Refused(REFUSED),
        );
        add("copy from the server", format!("COPY {table} FROM '/dev/null'"), Expected::Refused(REFUSED));
        add(
            "disable row-level security",
            format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"),
            Expected::Refused(DENIED),
        );
        add(
            "create own RLS policy",
            format!("CREATE POLICY mine ON {table} USING (true)"),
            Expected::Refused(DENIED),
        );
        add(
            "create own trigger",
            format!(
                "CREATE TRIGGER mine BEFORE INSERT ON {table} EXECUTE FUNCTION suppress_redundant_updates_trigger()"
            ),
            Expected::Refused(DENIED),
        );
        add("empty a table", format!("TRUNCATE {table} CASCADE"), Expected::Refused(DENIED));
    }
    for forged in ["1|||", "1,2|||00", "rubbish"] {
        for Target { table, .. } in targets {
            all.push(Attempt {
                kind: "security context set by hand",
                sql: format!("SELECT set_config('memfleet.context', '{forged}', true); SELECT FROM {table}"),
                expected: Expected::NotGenuine,
            });
        }
    }
    all
}

/// Access to other users' rows with a valid grant for the user `own` only.
pub(super) fn with_a_grant(targets: &[Target], own: i32) -> Vec<Attempt> {
    let mut all = Vec::new();
    for Target { table, owner } in targets {
        let mut add = |kind, sql: String, expected| all.push(Attempt { kind, sql, expected });
        add("read another's rows", format!("SELECT FROM {table} WHERE {owner} <> {own}"), Expected::Nothing);
        add(
            "update another's rows",
            format!("UPDATE {table} SET {owner} = {own} WHERE {owner} <> {own}"),
            Expected::Nothing,
        );
        add(
            "delete another's rows",
            format!("DELETE FROM {table} WHERE {owner} <> {own}"),
            Expected::Nothing,
        );
    }
    all
}

/// Attacks other than on the tables of users: partitions, other roles, keys, the audit trail, files and new objects.
pub(super) fn around(role: &str, roles: &[String], partitions: &[String]) -> Vec<Attempt> {
    let mut all: Vec<Attempt> = partitions
        .iter()
        .map(|partition| Attempt {
            kind: "partition accessed directly",
            sql: format!("SELECT FROM {partition}"),
            expected: Expected::Refused(DENIED),
        })
        .collect();
    // `SET ROLE` would always succeed on this superuser's connection, so membership is checked instead.
    all.extend(roles.iter().filter(|other| *other != role).map(|other| Attempt {
        kind: "another role",
        sql: format!("SELECT WHERE pg_has_role('{role}', '{other}', 'MEMBER')"),
        expected: Expected::Nothing,
    }));
    const WAYS: [(&str, &str); 33] = [
        ("keys", "SELECT FROM sec.keys"),
        ("keys", "SELECT FROM sec.revoked_grants"),
        ("keys", "SELECT sec.add_key('mine', 'grant', sha256('x'))"),
        ("keys", "SELECT sec.seal('1||')"),
        ("keys", "SELECT sec.add_key('mine', 'job', sha256('x'))"),
        ("job grants", "SELECT FROM sec.jobs"),
        ("job grants", "SELECT FROM sec.minted_job_grants"),
        ("job grants", "UPDATE sec.minted_job_grants SET expires_at = now() + interval '1 day'"),
        ("job grants", "SELECT sec.add_job('mine', session_user::name, 'sec.excess_privileges()')"),
        ("job grants", "SELECT sec.grant_worker(session_user::name)"),
        ("audit", "SELECT FROM audit.audit_log"),
        ("audit", "INSERT INTO audit.audit_log DEFAULT VALUES"),
        ("audit", "DELETE FROM audit.audit_log"),
        ("audit", "UPDATE audit.audit_log SET service = 'mine'"),
        ("audit", "SELECT FROM audit.seals"),
        ("audit", "SELECT FROM audit.subjects"),
        ("audit", "SELECT audit.audit_trigger_function()"),
        ("audit", "SELECT audit.follow_updates('public.users')"),
        ("audit", "ALTER TABLE public.users DISABLE TRIGGER audit_insert"),
        ("locks", "SELECT pg_advisory_lock(1)"),
        ("locks", "SELECT pg_try_advisory_xact_lock(1)"),
        ("files", "COPY public.blackboard_events TO '/tmp/events'"),
        ("files", "COPY (SELECT 1) TO PROGRAM 'cat'"),
        ("files", "SELECT pg_read_file('/etc/passwd')"),
        ("create own objects", "CREATE TABLE public.mine (x integer)"),
        ("create own objects", "CREATE TEMP TABLE mine (x integer)"),
        ("create own objects", "CREATE FUNCTION public.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'"),
        ("create own objects", "CREATE SCHEMA mine"),
        ("create own objects", "SELECT lo_create(0)"),
        ("create own objects", "SELECT lo_from_bytea(0, 'mine')"),
        ("history", "UPDATE public.blackboard_events SET event_payload = '{}'"),
        ("history", "DELETE FROM public.blackboard_events"),
        ("history", "SELECT public.make_month_partitions('public.blackboard_events', 1)"),
    ];
    all.extend(WAYS.iter().map(|(kind, sql)| Attempt {
        kind,
        sql: (*sql).to_owned(),
        expected: Expected::Refused(DENIED),
    }));
    all
}

/// Opening a security context with invalid grants: altered, truncated, for another user or role, expired, or signed
/// with an unknown key.
pub(super) fn bad_grants(
    good: &str,
    other_role: &str,
    expired: &str,
    foreign_key: &str,
    user: i32,
) -> Vec<Attempt> {
    let swapped = good.replacen(&format!("|{user}||"), &format!("|{}||", user.saturating_add(1)), 1);
    let cut = good.get(..good.len().saturating_sub(1)).unwrap_or_default().to_owned();
    [
        good.to_owned() + "0",
        cut,
        swapped,
        other_role.to_owned(),
        expired.to_owned(),
        foreign_key.to_owned(),
        String::new(),
    ]
    .into_iter()
    .map(|grant| opening(&format!("ARRAY['{grant}']")))
    .collect()
}

/// Opening a security context of the main database without grants.
pub(super) fn no_grants(user: i32) -> Vec<Attempt> {
    [format!("NULL, '{user}', 'x'"), format!("ARRAY[]::text[], '{user}', 'x'")]
        .iter()
        .map(|arguments| opening(arguments))
        .collect()
}

fn opening(arguments: &str) -> Attempt {
    Attempt {
        kind: "security context from an invalid grant",
        sql: format!("SELECT sec.open_context({arguments})"),
        // The key store waits for a key that it lacks, and says so.
        expected: Expected::Refused(&["the security context is refused", "it lacks the grant key"]),
    }
}

/// The key store without a security context: the data keys of all, and one more of a user.
pub(super) fn on_key_store(user: i32) -> Vec<Attempt> {
    const KIND: &str = "data keys without a grant";
    let insert = format!(
        "INSERT INTO public.data_keys (user_id, version, kek, wrapped) VALUES ({user}, 1, 'mine', sha256('x'))"
    );
    let refused = [
        "UPDATE public.data_keys SET wrapped = sha256(wrapped)",
        "DELETE FROM public.data_keys",
        "TRUNCATE public.data_keys",
        "SELECT FROM public.data_keys FOR UPDATE",
        "ALTER TABLE public.data_keys DISABLE ROW LEVEL SECURITY",
        "CREATE POLICY mine ON public.data_keys USING (true)",
        "COPY public.data_keys TO '/tmp/data_keys'",
        "SELECT FROM sec.keys",
        "SELECT sec.add_key('mine', 'grant', sha256('x'))",
        "SELECT sec.seal('1')",
        "SELECT pg_advisory_lock(1)",
        "SELECT lo_create(0)",
        "CREATE TABLE public.mine (x integer)",
        "CREATE TEMP TABLE mine (x integer)",
        "CREATE SCHEMA mine",
    ];
    let mut all: Vec<Attempt> = refused
        .iter()
        .map(|sql| Attempt { kind: KIND, sql: (*sql).to_owned(), expected: Expected::Refused(DENIED) })
        .collect();
    all.push(Attempt { kind: KIND, sql: insert, expected: Expected::Refused(REFUSED) });
    all.push(Attempt {
        kind: KIND,
        sql: "SELECT FROM public.data_keys".to_owned(),
        expected: Expected::Nothing,
    });
    all.extend(["1|", "1|00", "rubbish"].map(|forged| Attempt {
        kind: KIND,
        sql: format!("SELECT set_config('memfleet.context', '{forged}', true); SELECT FROM public.data_keys"),
        expected: Expected::NotGenuine,
    }));
    all
}

/// Data keys of others, such as `other`, and later versions of one's own, with a valid grant for the user `own` only.
pub(super) fn on_key_store_with_a_grant(own: i32, other: i32) -> Vec<Attempt> {
    const KIND: &str = "data keys of others";
    let add = |user: i32, version: i32| Attempt {
        kind: KIND,
        sql: format!(
            "INSERT INTO public.data_keys (user_id, version, kek, wrapped) VALUES ({user}, {version}, 'mine', sha256('x'))"
        ),
        expected: Expected::Refused(REFUSED),
    };
    let read = format!("SELECT FROM public.data_keys WHERE user_id <> {own}");
    vec![Attempt { kind: KIND, sql: read, expected: Expected::Nothing }, add(other, 1), add(own, 1_000_000)]
}
