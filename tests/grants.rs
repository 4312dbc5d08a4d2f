//! Grants that are nearly right, as the database reads them, and the roles that they are for.

use std::collections::BTreeSet;

use contract::{WORKERS, WorkerInfo, worker_role};
use diesel_async::SimpleAsyncConnection;
use testkit::Fixture;
use testkit::attack::{self, grant_key, login};
use uuid::Uuid;

use crate::support::ROLE;

/// Grants that are nearly right, read by the database: each is refused as a grant, and none is anything else. A part of the
/// million of `MEMFLEET_FUZZ_INPUTS`; `shared/trust/tests/fuzz.rs` has the others.
#[tokio::test(flavor = "multi_thread")]
async fn changed_grants_are_refused_and_break_nothing() {
    let fixture = Fixture::new().await;
    let all = std::env::var("MEMFLEET_FUZZ_INPUTS").ok().and_then(|count| count.parse().ok());
    let inputs = all.unwrap_or(1_000_000_u64) / 20;
    let good = attack::grant_with_key(&grant_key(), 1, ROLE, 3_600);
    let seed = std::env::var("MEMFLEET_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u32 = seed.unwrap_or_else(|| Uuid::now_v7().as_u64_pair().1 as u32 % 1_000_000);
    // Shown when the test fails.
    println!("MEMFLEET_FUZZ_SEED={seed}");
    let mut worker = login(&fixture, ROLE).await;
    let sql = format!(
        "CREATE FUNCTION public.try_changed_grants() RETURNS void LANGUAGE plpgsql AS $$
         DECLARE
             good text := '{good}';
             letters text[] := ARRAY['|', '-', '0', '9', 'f', 'g', ' ', E'\\n', 'é', '🍵', '', '||', 'v1', '{{', '\\'];
             changed text;
             place integer;
         BEGIN
             PERFORM setseed({seed} / 1000000.0);
             FOR i IN 1 .. {inputs} LOOP
                 changed := good;
                 FOR j IN 1 .. 1 + (random() * 3)::integer LOOP
                     place := 1 + (random() * length(changed))::integer;
                     changed := overlay(changed PLACING letters[1 + floor(random() * 15)::integer] FROM place FOR (random() * 3)::integer);
                 END LOOP;
                 BEGIN
                     PERFORM sec.open_context(ARRAY[changed]);
                     IF changed <> good THEN
                         RAISE 'taken: %', changed;
                     END IF;
                 EXCEPTION WHEN insufficient_privilege THEN
                     NULL;
                 END;
             END LOOP;
         END $$;
         GRANT EXECUTE ON FUNCTION public.try_changed_grants TO {ROLE}"
    );
    fixture.connection().await.batch_execute(&sql).await.expect("a function");
    // A DO block may open no context, so that all would be refused for that.
    worker.batch_execute("SELECT public.try_changed_grants()").await.expect("each is refused as a grant");
}

/// Workers of the design that have a role in the database and no entry in the catalogue yet.
const PLANNED: [&str; 1] = ["gpu-allocator"];

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_of_the_database_are_those_of_the_catalogue() {
    let fixture = Fixture::new().await;
    let roles: BTreeSet<String> =
        fixture.lines("role_name FROM sec.worker_privileges GROUP BY role_name").await.into_iter().collect();
    let catalogue: BTreeSet<String> = WORKERS.iter().map(WorkerInfo::role).collect();
    let planned: BTreeSet<String> = PLANNED.into_iter().map(worker_role).collect();
    let missing: Vec<&String> = catalogue.difference(&roles).collect();
    assert!(missing.is_empty(), "a migration has to grant these roles their rights: {missing:?}");
    let unknown: Vec<&String> =
        roles.iter().filter(|role| !catalogue.contains(*role) && !planned.contains(*role)).collect();
    assert!(unknown.is_empty(), "no worker has these roles: {unknown:?}");

    let attributes = "rolname FROM pg_roles WHERE rolcanlogin AND NOT (rolinherit OR rolsuper OR rolbypassrls
        OR rolcreaterole OR rolcreatedb OR rolreplication)";
    let logins: BTreeSet<String> = fixture.lines(attributes).await.into_iter().collect();
    assert!(roles.is_subset(&logins), "a login of its own without further attributes: {roles:?}, {logins:?}");
    let not_granted = fixture
        .lines(
            "concat_ws(' ', w.role_name, w.table_name, p.privilege) FROM sec.worker_privileges w,
             LATERAL unnest(w.privileges) AS p (privilege)
             WHERE NOT CASE p.privilege WHEN 'UPDATE' THEN has_any_column_privilege(w.role_name, w.table_name, 'UPDATE')
                 WHEN 'DELETE' THEN has_function_privilege(w.role_name, 'sec.delete_rows(regclass, integer[], uuid[])', 'EXECUTE')
                 ELSE has_table_privilege(w.role_name, w.table_name, p.privilege) END",
        )
        .await;
    assert!(not_granted.is_empty(), "listed and not granted: {not_granted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_consuming_worker_may_write_its_inbox_and_its_events() {
    let fixture = Fixture::new().await;
    for worker in WORKERS.iter().filter(|worker| worker.stream.is_some() || !worker.jobs.is_empty()) {
        for (table, privileges) in [
            ("inbox", "SELECT,INSERT,UPDATE"),
            ("blackboard_events", "SELECT,INSERT"),
            ("session_clocks", "SELECT,INSERT,UPDATE"),
        ] {
            let role = worker.role();
            let listed = fixture
                .lines(&format!(
                    "privileges @> '{{{privileges}}}'::text[] FROM sec.worker_privileges
                     WHERE role_name = '{role}' AND table_name = '{table}'::regclass"
                ))
                .await;
            assert_eq!(listed, ["true"], "{role} may {privileges} {table}");
        }
    }
}
