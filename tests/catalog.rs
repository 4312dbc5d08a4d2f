//! What `memfleet security validate` compares with what the migrations make. Each change here was once made by a superuser without
//! a difference; each is made in a transaction that is rolled back.

use diesel_async::{AsyncConnection as _, SimpleAsyncConnection as _};
use stack::{Postgres, PostgresOptions, Programs};
use store::catalog::{Catalog, Difference, MAIN};
use testkit::Fixture;

const QUIET: &str =
    "CREATE FUNCTION pg_toast.quiet() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';";

/// What is done, and how the line begins that names it.
const CHANGES: [(&str, &str); 49] = [
    // The comparison itself uses it, and could have its lines rewritten.
    (
        "CREATE OR REPLACE FUNCTION pg_catalog.regexp_replace(string text, pattern text, replacement text) RETURNS text
             LANGUAGE sql IMMUTABLE STRICT AS 'SELECT pg_catalog.regexp_replace($1, $2, $3)'",
        "+the function regexp_replace of PostgreSQL (oid 2284) was replaced",
    ),
    (
        "DO $$ BEGIN EXECUTE 'CREATE OR REPLACE VIEW pg_catalog.pg_roles AS ' || rtrim(pg_get_viewdef('pg_roles'::regclass), ';')
             || ' WHERE pg_authid.rolname <> ''mallory'''; END $$",
        "+the rule _RETURN of a relation of PostgreSQL",
    ),
    (
        "CREATE TRIGGER quiet BEFORE INSERT ON audit.audit_log_default FOR EACH ROW EXECUTE FUNCTION pg_toast.quiet()",
        "+trigger quiet on audit.audit_log_default",
    ),
    (
        "CREATE TRIGGER quiet BEFORE INSERT ON simple_chat_context FOR EACH ROW EXECUTE FUNCTION pg_toast.quiet();
         UPDATE pg_trigger SET tgisinternal = true WHERE tgname = 'quiet'; ALTER EXTENSION plpgsql ADD FUNCTION pg_toast.quiet()",
        "+trigger quiet on public.simple_chat_context",
    ),
    ("ALTER EXTENSION plpgsql ADD FUNCTION pg_toast.quiet()", "+function pg_toast.quiet()"),
    ("ALTER TABLE chat_messages DISABLE TRIGGER ALL", "+trigger RI_ConstraintTrigger_c_"),
    (
        "DELETE FROM pg_trigger t USING pg_constraint c WHERE c.oid = t.tgconstraint AND c.conrelid = 'chat_messages'::regclass",
        "-constraint chat_messages_",
    ),
    (
        "GRANT SET ON PARAMETER session_replication_role TO w_context_writer",
        "+parameter session_replication_role grants SET to w_context_writer",
    ),
    (
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_try_advisory_lock(bigint) TO w_context_writer",
        "+function of PostgreSQL pg_try_advisory_lock(bigint) grants EXECUTE to w_context_writer",
    ),
    ("GRANT SELECT ON pg_catalog.pg_authid TO w_context_writer", "+relation of PostgreSQL pg_authid grants SELECT"),
    ("GRANT USAGE ON SCHEMA pg_toast TO w_memory_reader", "+schema pg_toast grants USAGE to w_memory_reader"),
    (
        "CREATE FUNCTION pg_catalog.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1';
         UPDATE pg_proc SET oid = 9001 WHERE proname = 'mine'",
        "+changed function of PostgreSQL mine() sql SELECT 1",
    ),
    ("ALTER TABLE blackboard_events ALTER transaction_id DROP NOT NULL", "-column public.blackboard_events.transaction_id bigint not null"),
    ("ALTER TABLE audit.data_access_log ALTER transaction_id SET DEFAULT 0", "+column audit.data_access_log.transaction_id bigint not null default 0"),
    ("ALTER TABLE audit.subjects DROP CONSTRAINT subjects_pkey", "-constraint subjects_pkey on audit.subjects: PRIMARY KEY"),
    (
        "CREATE TYPE pg_toast.texty; CREATE FUNCTION pg_toast.texty_in(cstring) RETURNS pg_toast.texty LANGUAGE internal STRICT AS 'textin';
         CREATE FUNCTION pg_toast.texty_out(pg_toast.texty) RETURNS cstring LANGUAGE internal STRICT AS 'textout';
         CREATE TYPE pg_toast.texty (INPUT = pg_toast.texty_in, OUTPUT = pg_toast.texty_out, LIKE = text);
         CREATE CAST (text AS pg_toast.texty) WITHOUT FUNCTION; CREATE CAST (varchar AS pg_toast.texty) WITHOUT FUNCTION;
         ALTER TABLE audit.audit_log ALTER service TYPE pg_toast.texty USING service::text::pg_toast.texty",
        "+column audit.audit_log.service pg_toast.texty",
    ),
    (
        "ALTER TABLE audit.audit_log DROP CONSTRAINT audit_log_pkey;
         CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER elsewhere FOREIGN DATA WRAPPER elsewhere;
         CREATE FOREIGN TABLE audit.audit_log_2031_05 PARTITION OF audit.audit_log 
            FOR VALUES FROM ('fffffff0-0000-7000-8000-000000000000') TO ('fffffff1-0000-7000-8000-000000000000') SERVER elsewhere",
        "+relation audit.audit_log_month f of",
    ),
    (
        "CREATE SCHEMA copies; CREATE TABLE copies.users AS TABLE users; GRANT USAGE ON SCHEMA copies TO w_token_issuer;
         GRANT SELECT ON copies.users TO w_token_issuer",
        "+relation copies.users grants SELECT to w_token_issuer",
    ),
    ("ALTER FUNCTION sec.trust_state SECURITY INVOKER", "-function sec.trust_state("),
    (
        "GRANT INSERT ON chat_messages TO w_memory_reader",
        "+relation public.chat_messages grants INSERT to w_memory_reader",
    ),
    (
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = information_schema, public', current_database()); END $$",
        "+setting search_path of the database",
    ),
    (
        "DO $$ BEGIN EXECUTE format('ALTER ROLE w_token_issuer IN DATABASE %I SET statement_timeout = 1', current_database()); END $$",
        "+setting of the role w_token_issuer: statement_timeout",
    ),
    (
        "INSERT INTO sec.event_writers VALUES ('w_router_logger', 'context.stored')",
        "+events of the type context.stored are appended by w_router_logger",
    ),
    ("ALTER TABLE users ADD CONSTRAINT everything CHECK (true)", "+constraint everything on public.users"),
    (
        // The function that writes the trail writes nothing.
        "ALTER FUNCTION audit.audit_trigger_function RENAME TO kept;
         CREATE FUNCTION audit.audit_trigger_function() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
         SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN NULL; END'",
        "-function audit.audit_trigger_function()",
    ),
    ("CREATE LANGUAGE mine HANDLER plpgsql_call_handler", "+language mine"),
    // What is in the catalogs has no effect if a flag denies it.
    (
        "UPDATE pg_class SET relhastriggers = false WHERE oid = 'simple_chat_context'::regclass",
        "+flag of public.simple_chat_context denies its triggers",
    ),
    ("UPDATE pg_class SET relchecks = 0 WHERE oid = 'users'::regclass", "+flag of public.users denies its checks"),
    (
        "CREATE VIEW copies AS SELECT 1 AS one; UPDATE pg_class SET relhasrules = false WHERE oid = 'copies'::regclass",
        "+flag of public.copies denies its rules",
    ),
    (
        "UPDATE pg_class SET relhasindex = false WHERE oid = 'audit.subjects'::regclass",
        "+flag of audit.subjects denies its indexes",
    ),
    (
        "UPDATE pg_index SET indisunique = false WHERE indexrelid = 'audit.subjects_pkey'::regclass",
        "+flag of the index of the constraint subjects_pkey on audit.subjects denies what it enforces",
    ),
    (
        "UPDATE pg_attribute SET atthasdef = false WHERE attrelid = 'audit.data_access_log'::regclass AND attname = 'transaction_id'",
        "+flag of the column audit.data_access_log.transaction_id denies its default",
    ),
    (
        "UPDATE sec.jobs SET role_name = 'w_router_logger' WHERE job = 'knowledge-index'",
        "+job knowledge-index acts as w_router_logger for users of sec.due_knowledge_index",
    ),
    // Nothing is written into the trail. Only a view may have a rule of this name.
    (
        "CREATE RULE quiet AS ON INSERT TO audit.audit_log DO INSTEAD NOTHING;
         UPDATE pg_rewrite SET rulename = '_RETURN' WHERE rulename = 'quiet'",
        "+rule _RETURN on audit.audit_log",
    ),
    (
        "UPDATE pg_trigger SET tgfoid = '\"RI_FKey_noaction_del\"'::regproc
         WHERE tgrelid = 'chat_messages'::regclass AND tgfoid = '\"RI_FKey_check_ins\"'::regproc",
        "+trigger RI_FKey_check_ins of the constraint chat_messages_",
    ),
    (
        "UPDATE pg_trigger SET tgtype = 9 WHERE tgrelid = 'chat_messages'::regclass AND tgfoid = '\"RI_FKey_check_upd\"'::regproc",
        "+trigger RI_FKey_check_upd of the constraint chat_messages_",
    ),
    ("DROP INDEX consensus_memory_nodes_one_valid", "-unique index consensus_memory_nodes_one_valid on public.consensus_memory_nodes"),
    (
        "UPDATE pg_index SET indpred = (SELECT indpred FROM pg_index WHERE indexrelid = 'consensus_tasks_due'::regclass)
         WHERE indexrelid = 'audit.subjects_pkey'::regclass",
        "+flag of the index of the constraint subjects_pkey on audit.subjects denies what it enforces",
    ),
    ("UPDATE pg_type SET typoutput = 'textout' WHERE oid = 'varchar'::regtype", "+changed type character varying"),
    (
        "CREATE OPERATOR public.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = uuid_ne)",
        "+operator public.=(uuid,uuid) calls uuid_ne",
    ),
    ("CREATE CAST (text AS chat_mode) WITH INOUT AS IMPLICIT", "+changed cast from text to public.chat_mode"),
    ("ALTER TABLE audit.security_violations SET UNLOGGED", "+relation audit.security_violations r of memfleet_owner not permanent"),
    ("ALTER SEQUENCE blackboard_event_sequence MAXVALUE 100000 CYCLE", "+sequence public.blackboard_event_sequence: from 1 to 100000"),
    (
        "UPDATE pg_trigger SET tgdeferrable = true, tginitdeferred = true WHERE tgname = 'audit_insert'",
        "+trigger audit_insert on public.users O deferrable",
    ),
    // Expressions that PostgreSQL prints as before and that do something else. An implicit cast is printed as its first argument: this
    // one is true, whatever that is.
    (
        "CREATE CAST (text AS pg_node_tree) WITHOUT FUNCTION;
         UPDATE pg_policy SET polqual = (format('{FUNCEXPR :funcid 2516 :funcresulttype 16 :funcretset false :funcvariadic false :funcformat 2
             :funccollid 0 :inputcollid 0 :args (%s {CONST :consttype 16 :consttypmod -1 :constcollid 0 :constlen 1 :constbyval true
             :constisnull false :location -1 :constvalue 1 [ 1 0 0 0 0 0 0 0 ]}) :location -1}', polqual))::pg_node_tree
             WHERE polrelid = 'users'::regclass; DROP CAST (text AS pg_node_tree)",
        "-policy own_rows on public.users * permissive",
    ),
    // The operator that is named calls another function: > is =.
    (
        "CREATE CAST (text AS pg_node_tree) WITHOUT FUNCTION;
         UPDATE pg_constraint SET conbin = replace(conbin::text, ':opfuncid 147 ', ':opfuncid 65 ')::pg_node_tree
             WHERE conname = 'archives_row_count_check'; DROP CAST (text AS pg_node_tree)",
        "-constraint archives_row_count_check on public.archives: CHECK ((row_count > 0))",
    ),
    // Another column than the one that is named is compared.
    (
        "CREATE CAST (text AS pg_node_tree) WITHOUT FUNCTION;
         UPDATE pg_constraint SET conbin = regexp_replace(conbin::text, ':varattno [0-9]+', ':varattno 10', 'g')::pg_node_tree
             WHERE conrelid = 'archives'::regclass AND pg_get_constraintdef(oid) = 'CHECK ((last_at >= first_at))';
         DROP CAST (text AS pg_node_tree)",
        "-constraint archives_check on public.archives: CHECK ((last_at >= first_at))",
    ),
    (
        "CREATE CAST (text AS pg_node_tree) WITHOUT FUNCTION;
         UPDATE pg_trigger SET tgqual = replace(tgqual::text, ':varattno 4 ', ':varattno 2 ')::pg_node_tree
             WHERE tgrelid = 'users'::regclass AND tgname = 'ciphertext_update'; DROP CAST (text AS pg_node_tree)",
        "-trigger ciphertext_update on public.users O AFTER UPDATE ON public.users",
    ),
    // What a sealed table has is read by an index if there is one, so one that has other values hides changes.
    (
        "CREATE INDEX hides ON audit.audit_log_default (transaction_id, id) INCLUDE (service)",
        "+index hides on audit.audit_log_default: btree (transaction_id, id) INCLUDE (service)",
    ),
];

/// The same for the key store.
const CHANGES_OF_THE_KEY_STORE: [(&str, &str); 12] = [
    ("ALTER TABLE data_keys NO FORCE ROW LEVEL SECURITY", "-relation public.data_keys r of memfleet_owner row security forced"),
    ("CREATE POLICY everything ON data_keys USING (true)", "+policy everything on public.data_keys"),
    ("ALTER POLICY own_keys ON data_keys USING (true)", "-policy own_keys on public.data_keys"),
    (
        "CREATE CAST (text AS pg_node_tree) WITHOUT FUNCTION;
         UPDATE pg_policy SET polqual = replace(polqual::text, ':opfuncid 65 ', ':opfuncid 144 ')::pg_node_tree WHERE polname = 'own_keys';
         DROP CAST (text AS pg_node_tree)",
        "-policy own_keys on public.data_keys",
    ),
    ("GRANT UPDATE ON data_keys TO w_context_writer", "+relation public.data_keys grants UPDATE to w_context_writer"),
    ("GRANT SELECT ON data_keys TO w_vector_indexer", "+relation public.data_keys grants SELECT to w_vector_indexer"),
    ("GRANT SELECT (inner_pad) ON sec.keys TO w_memory_reader", "+column sec.keys.inner_pad grants SELECT to w_memory_reader"),
    (
        "CREATE OR REPLACE FUNCTION sec.current_user_ids() RETURNS integer[] LANGUAGE sql STABLE SECURITY DEFINER
         SET search_path = pg_catalog, pg_temp AS 'SELECT array_agg(user_id) FROM public.data_keys'",
        "-function sec.current_user_ids() of memfleet_owner definer",
    ),
    ("ALTER TABLE sec.revoked_grants DISABLE TRIGGER trust_changed", "-trigger trust_changed on sec.revoked_grants O"),
    (
        "UPDATE pg_class SET relhastriggers = false WHERE oid = 'sec.revoked_grants'::regclass",
        "+flag of sec.revoked_grants denies its triggers",
    ),
    (
        "CREATE TABLE copies AS TABLE data_keys; GRANT SELECT ON copies TO w_memory_reader",
        "+relation public.copies grants SELECT to w_memory_reader",
    ),
    (
        "DO $$ BEGIN EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM w_context_writer', current_database()); END $$",
        "-role w_context_writer login",
    ),
];

/// Asserts that each change is found, and that without it nothing differs.
async fn assert_found(catalog: &Catalog, database: &str, changes: &[(&str, &str)]) {
    let mut connection = store::connect(database).await.expect("a connection");
    for (change, expected) in changes {
        let mut found = Difference::default();
        let rolled_back: Result<(), _> = connection
            .transaction(async |connection| {
                connection.batch_execute(&format!("{QUIET} {change}")).await.expect(change);
                found = catalog.difference(connection).await.expect(change);
                Err(diesel::result::Error::RollbackTransaction)
            })
            .await;
        assert_eq!(rolled_back, Err(diesel::result::Error::RollbackTransaction), "{change}");
        let missing = found.missing.iter().map(|line| format!("-{line}"));
        let found: Vec<String> = missing.chain(found.unknown.iter().map(|line| format!("+{line}"))).collect();
        assert!(found.iter().any(|line| line.starts_with(expected)), "{change}: {found:#?}");
    }
    let clean = catalog.difference(&mut connection).await.expect("the catalogs");
    assert_eq!(clean, Difference::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_superuser_changes_differs_from_the_migrations() {
    let fixture = Fixture::new().await;
    assert_found(&MAIN, &fixture.settings.postgres.url, &CHANGES).await;
    assert_found(&keys::CATALOG, &fixture.settings.keys.url, &CHANGES_OF_THE_KEY_STORE).await;
}

/// The lines of partitions do not depend on the month in which they are read, nor on when the partition was added.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_other_months_differ_in_nothing() {
    let fixture = Fixture::new().await;
    for parent in ["public.blackboard_events", "audit.audit_log"] {
        fixture.execute(&format!("SELECT make_month_partitions('{parent}', 40)")).await;
    }
    let mut connection = fixture.connection().await;
    assert_eq!(MAIN.difference(&mut connection).await.expect("the catalogs"), Difference::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_of_postgres_that_is_sent_by_a_function_of_others_is_named() {
    let fixture = Fixture::new().await;
    let mut connection = fixture.connection().await;
    let added = "BEGIN; CREATE FUNCTION pg_toast.jsonb_send(jsonb) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea';
        ALTER TYPE pg_catalog.jsonb SET (SEND = pg_toast.jsonb_send)";
    connection.batch_execute(added).await.expect("a changed type");
    let found = store::server::added_to_system_schemas(&mut connection).await.expect("the catalogs");
    connection.batch_execute("ROLLBACK").await.expect("a rollback");
    assert!(found.len() == 1 && found[0].starts_with("changed type pg_catalog.jsonb "), "{found:?}");
}

/// Whoever compares, sorts or indexes calls the functions of an operator family. A row of it that was deleted may be back under any id.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_an_operator_family_of_postgres_that_it_did_not_make_is_named() {
    let fixture = Fixture::new().await;
    let mut connection = fixture.connection().await;
    for changed in [
        "UPDATE pg_amproc SET oid = 99999, amproc = 'uuid_hash' WHERE amproc = 'uuid_cmp'::regproc",
        "UPDATE pg_amop SET oid = 99999, amopopr = '<>(uuid,uuid)'::regoperator
             WHERE amopopr = '=(uuid,uuid)'::regoperator AND amopfamily = (SELECT opcfamily FROM pg_opclass WHERE opcname = 'uuid_ops'
                 AND opcmethod = (SELECT oid FROM pg_am WHERE amname = 'hash'))",
    ] {
        connection.batch_execute(&format!("BEGIN; {changed}")).await.expect(changed);
        let found = store::server::added_to_system_schemas(&mut connection).await.expect("the catalogs");
        connection.batch_execute("ROLLBACK").await.expect("a rollback");
        assert_eq!(found, ["changed operator family pg_catalog.uuid_ops (oid 99999)"], "{changed}");
    }
}

/// Triggers, and so the trail, are off for everybody under this setting.
#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_server_that_switch_off_the_trail_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let options = PostgresOptions { fsync: false, ..PostgresOptions::default() };
    let server = Postgres::start(&Programs::find().unwrap(), folder.path(), options).await.unwrap();
    let database = testkit::create_database_on(&server.url("postgres")).await.unwrap();
    let mut connection = store::connect(&database).await.unwrap();
    for statement in ["ALTER SYSTEM SET session_replication_role = 'replica'", "SELECT pg_reload_conf()"] {
        connection.batch_execute(statement).await.unwrap();
    }
    let expected = ["setting session_replication_role of the server: replica".to_owned()];
    testkit::eventually("the setting is in force and named", async || {
        let mut fresh = store::connect(&database).await.unwrap();
        let found = MAIN.difference(&mut fresh).await.unwrap();
        assert!(found.missing.is_empty(), "{found:?}");
        (found.unknown == expected).then_some(())
    })
    .await;
}
