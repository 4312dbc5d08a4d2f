//! `memfleet security validate` finds nothing in a database as it should be, and whatever is out of order.

use serde_json::json;
use testkit::Fixture;
use testkit::attack::grant_key;

use crate::support::program::{Ended, memfleet, output};
use crate::support::two_users;

/// `memfleet security validate --json`: whether it is content, and its report.
pub async fn validate(fixture: &Fixture) -> (bool, serde_json::Value) {
    let ended: Ended = output(memfleet(fixture, &["security", "validate", "--json"])).await.into();
    let last = ended.out.lines().last().unwrap_or_else(|| panic!("{}", ended.err));
    (ended.is_success(), serde_json::from_str(last).expect("an object"))
}

/// In the order of the migrations.
const RESTORE_SETTINGS: &str = "ALTER FUNCTION sec.current_user_ids RESET ALL;
    ALTER FUNCTION sec.current_user_ids SET search_path = pg_catalog, pg_temp; SELECT sec.hide_plans()";

#[tokio::test(flavor = "multi_thread")]
async fn the_validation_finds_nothing_in_order_and_whatever_is_out_of_it() {
    let fixture = two_users().await;
    // Only the operator knows that this key is not the issuers'.
    fixture.execute("SELECT sec.add_key('evil', 'grant', sha256('known'))").await;
    let (fine, report) = validate(&fixture).await;
    assert_eq!((fine, &report["findings"]), (true, &json!([])));
    let issuers = grant_key().name().to_owned();
    assert_eq!(report["grant_keys"], json!({ "database": ["evil", issuers], "key_store": [issuers] }));
    assert!(report["attempts"].as_u64().expect("a count") > 2_000, "{}", report["attempts"]);
    assert_eq!(fixture.count("sec.keys WHERE key_id = 'validate'").await, 0, "it left nothing");

    // What breaks together is found each for itself, by its kind and its name.
    for broken in [
        &[
            (
                "ALTER TABLE chat_messages NO FORCE ROW LEVEL SECURITY",
                "ALTER TABLE chat_messages FORCE ROW LEVEL SECURITY",
                "table without forced RLS",
                "chat_messages",
            ),
            (
                "CREATE POLICY leak ON users USING (true)",
                "DROP POLICY leak ON users",
                "read without a context",
                "users",
            ),
            (
                "GRANT TRUNCATE ON users TO w_gpu_allocator",
                "REVOKE TRUNCATE ON users FROM w_gpu_allocator",
                "excess privilege",
                "users",
            ),
            (
                "GRANT SELECT ON blackboard_events_default TO w_router_logger",
                "REVOKE SELECT ON blackboard_events_default FROM w_router_logger",
                "partition accessed directly",
                "blackboard_events_default",
            ),
            (
                "ALTER FUNCTION sec.current_user_ids RESET search_path",
                RESTORE_SETTINGS,
                "SECURITY DEFINER function without a fixed search_path",
                "current_user_ids",
            ),
            (
                "ALTER FUNCTION sec.current_user_ids RESET debug_print_plan",
                RESTORE_SETTINGS,
                "SECURITY DEFINER function whose plans its caller can print",
                "current_user_ids",
            ),
            (
                "ALTER TABLE users DISABLE TRIGGER audit_update",
                "ALTER TABLE users ENABLE TRIGGER audit_update",
                "table without audit trigger",
                "users",
            ),
            (
                "GRANT EXECUTE ON FUNCTION pg_advisory_lock(bigint) TO PUBLIC",
                "REVOKE EXECUTE ON FUNCTION pg_advisory_lock(bigint) FROM PUBLIC",
                "advisory lock function granted to PUBLIC",
                "pg_advisory_lock(bigint)",
            ),
            (
                "GRANT EXECUTE ON FUNCTION lo_create(oid) TO PUBLIC",
                "REVOKE EXECUTE ON FUNCTION lo_create(oid) FROM PUBLIC",
                "large object function granted to PUBLIC",
                "lo_create(oid)",
            ),
            (
                "ALTER TABLE users OWNER TO memfleet",
                "ALTER TABLE users OWNER TO memfleet_owner",
                "table owner that can log in",
                "users",
            ),
            (
                "GRANT SELECT ON chat_messages TO memfleet_due",
                "REVOKE SELECT ON chat_messages FROM memfleet_due",
                "role memfleet_due with more than column privileges",
                "chat_messages",
            ),
            (
                "CREATE VIEW everybody AS SELECT * FROM users",
                "DROP VIEW everybody",
                "view that bypasses RLS",
                "everybody",
            ),
            (
                "GRANT EXECUTE ON FUNCTION sec.seal TO PUBLIC",
                "REVOKE EXECUTE ON FUNCTION sec.seal FROM PUBLIC",
                "privilege granted to PUBLIC",
                "sec.seal",
            ),
            (
                "CREATE FUNCTION leak() RETURNS SETOF users LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
             AS 'SELECT * FROM public.users'; REVOKE EXECUTE ON FUNCTION leak FROM PUBLIC;
             GRANT EXECUTE ON FUNCTION leak TO w_memory_reader",
                "DROP FUNCTION leak",
                "differs from the migrations",
                "leak()",
            ),
            (
                "CREATE FUNCTION pg_catalog.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
                "DROP FUNCTION pg_catalog.mine",
                "object added to PostgreSQL's own schemas",
                "mine",
            ),
        ][..],
        &[
            (
                "CREATE TABLE forgotten (user_id integer); GRANT SELECT ON forgotten TO w_memory_sync",
                "DROP TABLE forgotten",
                "table without forced RLS",
                "forgotten",
            ),
            (
                "CREATE OPERATOR pg_catalog.|| (leftarg = integer, rightarg = integer, function = int4pl)",
                "DROP OPERATOR pg_catalog.|| (integer, integer)",
                "object added to PostgreSQL's own schemas",
                "||",
            ),
        ],
    ] {
        for (break_it, ..) in broken {
            fixture.execute(break_it).await;
        }
        let (fine, report) = validate(&fixture).await;
        assert!(!fine);
        let findings: Vec<(&str, &str)> = report["findings"]
            .as_array()
            .expect("findings")
            .iter()
            .filter_map(|one| Some((one["kind"].as_str()?, one["what"].as_str()?)))
            .collect();
        for (break_it, _, kind, name) in broken {
            let found = findings.iter().any(|(of, what)| of == kind && what.contains(name));
            assert!(found, "{break_it}: {findings:#?}");
        }
        for (_, mend, ..) in broken {
            fixture.execute(mend).await;
        }
    }
    assert!(validate(&fixture).await.0, "all is mended");
}
