//! Job grants: how far a scheduled job reaches, and what a worker that is taken over makes of it.

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use store::FaultKind;
use store::job_grants::{self, JobGrant};
use testkit::attack::{assert_refused, attempt, attempt_for, login, roles};
use testkit::{Fixture, lines_on};
use uuid::Uuid;

const JOB: &str = "expire-contexts";
const ROLE: &str = "w_gpu_allocator";
const OTHER_ROLE: &str = "w_router_logger";
const UNCOMMITTED: &str = "the security context is refused: a grant is of no committed mint";

/// Four users with a context each. Those of the users 1 and 2 have expired, which is work for the job.
async fn with_users() -> Fixture {
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, 4) AS n;
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
                 SELECT gen_random_uuid(), n, 's', 'simple' FROM generate_series(1, 4) AS n;
             INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, expires_at)
                 SELECT gen_random_uuid(), n, 's', 'k', '1',
                     now() + CASE WHEN n <= 2 THEN '-1 hour' ELSE '1 hour' END::interval
                 FROM generate_series(1, 4) AS n",
        )
        .await;
    fixture
}

/// The same, with the job.
async fn with_job() -> Fixture {
    let fixture = with_users().await;
    register(&fixture).await;
    fixture
}

async fn register(fixture: &Fixture) {
    let due = "SELECT DISTINCT user_id FROM public.simple_chat_context WHERE expires_at < now() ORDER BY 1 LIMIT $1";
    fixture
        .execute(&format!(
            "{};
             GRANT SELECT (user_id, expires_at, context_type) ON simple_chat_context TO memfleet_due;
             SELECT sec.grant_worker('{ROLE}', '{{\"simple_chat_context\": [\"SELECT\", \"INSERT\", \"UPDATE\"]}}');
             SELECT sec.add_job('{JOB}', '{ROLE}', 'sec.due_test(integer)')",
            due_function("due_test", due)
        ))
        .await;
}

/// Gives the job another function that determines whose work is due.
async fn register_again(fixture: &Fixture, query: &str) {
    let due = due_function("due_again", query).replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION");
    fixture.execute(&format!("{due}; SELECT sec.add_job('{JOB}', '{ROLE}', 'sec.due_again(integer)')")).await;
}

/// A function of the schema `sec` that determines whose work is due.
fn due_function(name: &str, query: &str) -> String {
    format!(
        "CREATE FUNCTION sec.{name}(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
         SET search_path = pg_catalog, pg_temp AS $due$ {query} $due$"
    )
}

async fn mint(worker: &mut AsyncPgConnection, max_users: i32) -> Vec<JobGrant> {
    job_grants::mint(worker, JOB, Uuid::now_v7(), max_users).await.expect("grants")
}

fn texts(grants: &[JobGrant]) -> Vec<String> {
    grants.iter().map(|grant| grant.grant.clone()).collect()
}

fn users(grants: &[JobGrant]) -> Vec<i32> {
    let mut users: Vec<i32> = grants.iter().map(|grant| grant.user_id).collect();
    users.sort_unstable();
    users
}

/// The grant of one user.
fn of(grants: &[JobGrant], user: i32) -> String {
    grants.iter().find(|grant| grant.user_id == user).expect("a grant of this user").grant.clone()
}

/// What the database says to a grant, by itself.
async fn open(worker: &mut AsyncPgConnection, grant: &str) -> Result<usize, String> {
    attempt_for(worker, &[grant.to_owned()], "SELECT FROM simple_chat_context").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_reaches_the_users_whose_work_is_due_and_no_others() {
    let fixture = with_job().await;
    let mut worker = login(&fixture, ROLE).await;
    assert_eq!(attempt(&mut worker, "SELECT FROM simple_chat_context").await, Ok(0), "without grants");

    let grants = mint(&mut worker, 100).await;
    assert_eq!(users(&grants), [0, 1, 2]);
    let all = texts(&grants);
    assert_eq!(attempt_for(&mut worker, &all, "SELECT FROM simple_chat_context").await, Ok(2));
    let touch = "UPDATE simple_chat_context SET priority = 7";
    assert_eq!(attempt_for(&mut worker, &all, touch).await, Ok(2));
    assert_eq!(attempt_for(&mut worker, &all, &format!("{touch} WHERE user_id > 2")).await, Ok(0));
    assert_eq!(open(&mut worker, &of(&grants, 1)).await, Ok(1), "one grant is for one user");

    let list: Vec<String> = all.iter().map(|grant| format!("'{grant}'")).collect();
    let open_all = format!("SELECT sec.open_context(ARRAY[{}])", list.join(","));
    for sql in ["BEGIN", &open_all, touch, "COMMIT"] {
        worker.batch_execute(sql).await.expect("work under job grants");
    }
    assert_eq!(
        fixture.lines("concat_ws(' ', user_id, priority) FROM simple_chat_context ORDER BY user_id").await,
        ["1 7", "2 7", "3 1", "4 1"]
    );
    let trail = "concat_ws(' ', s.user_id, l.role_name, l.service) FROM audit.audit_log l
        JOIN audit.subjects s ON s.token = l.subject_token WHERE l.operation = 'UPDATE' ORDER BY s.user_id";
    assert_eq!(
        fixture.lines(trail).await,
        ["1 w_gpu_allocator job:expire-contexts", "2 w_gpu_allocator job:expire-contexts"]
    );

    assert_eq!(users(&mint(&mut worker, 1).await), [0, 1], "the limit");
    fixture.execute("UPDATE simple_chat_context SET expires_at = NULL WHERE user_id = 1").await;
    assert_eq!(users(&mint(&mut worker, 100).await), [0, 2], "what is done is not due any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_minted_by_its_own_role_alone() {
    let fixture = with_job().await;
    let call = |job: &str| format!("SELECT FROM sec.job_grants('{job}', gen_random_uuid(), 10)");
    for role in roles(&fixture).await.iter().filter(|role| *role != ROLE) {
        let mut worker = login(&fixture, role).await;
        // A role with shipped jobs may call the function, and has no other job.
        let has_jobs = fixture.count(&format!("sec.jobs WHERE role_name = '{role}'")).await > 0;
        let refusal =
            if has_jobs { "this role has no such job" } else { "permission denied for function job_grants" };
        assert_refused(attempt(&mut worker, &call(JOB)).await, refusal, &format!("{role} has no job"));
        let note =
            format!("SELECT sec.note_job_run('{JOB}', gen_random_uuid(), now(), 1, 1, 0, NULL, '{{}}')");
        let noted = attempt(&mut worker, &note).await;
        assert!(
            noted.is_err_and(|error| error.contains("permission denied") || error.contains("no such job")),
            "{role}"
        );
    }
    // A role that has a job of its own may call the function, and mints that one alone.
    let due = due_function("due_other", "SELECT 3");
    fixture
        .execute(&format!("{due}; SELECT sec.add_job('other', '{OTHER_ROLE}', 'sec.due_other(integer)')"))
        .await;
    let (mut own, mut other) = (login(&fixture, ROLE).await, login(&fixture, OTHER_ROLE).await);
    assert_eq!(attempt(&mut own, &call(JOB)).await, Ok(3));
    assert_eq!(attempt(&mut other, &call("other")).await, Ok(2));
    for (worker, job) in [(&mut own, "other"), (&mut other, JOB)] {
        let fault = job_grants::mint(worker, job, Uuid::now_v7(), 10).await.expect_err("another role's job");
        assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
        assert!(fault.reason.contains("this role has no such job"), "{fault}");
    }
    for nothing in ["no-such", "", "' || 'expire-contexts"] {
        let fault = job_grants::mint(&mut own, nothing, Uuid::now_v7(), 10).await.expect_err("no job");
        assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
    }
    assert_refused(
        attempt(&mut own, "SELECT FROM sec.job_grants(NULL, gen_random_uuid(), 10)").await,
        "this role has no such job",
        "NULL",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_grant_that_is_changed_or_another_roles_is_refused() {
    let fixture = with_job().await;
    let (mut worker, mut other) = (login(&fixture, ROLE).await, login(&fixture, OTHER_ROLE).await);
    let good = of(&mint(&mut worker, 10).await, 1);
    assert_eq!(open(&mut worker, &good).await, Ok(1));
    assert_refused(open(&mut other, &good).await, "a grant is of another role", "another role");
    let edit = |place: usize, value: &str| {
        let mut parts: Vec<&str> = good.split('|').collect();
        parts[place] = value;
        parts.join("|")
    };
    let id = Uuid::now_v7().to_string();
    for (changed, why) in [
        (edit(0, "v2"), "malformed"),
        // The key that issuers of service tokens seal with.
        (edit(1, "test"), "forged"),
        (edit(1, "context"), "unknown key"),
        (edit(2, "3"), "forged"),
        (edit(3, "s"), "forged"),
        (edit(4, "job:other"), "forged"),
        (edit(4, "test"), "forged"),
        (edit(6, &id), "forged"),
        (edit(7, "9999999999"), "forged"),
        (format!("{good}0"), "forged"),
        (good[..good.len() - 1].to_owned(), "forged"),
    ] {
        assert_refused(open(&mut worker, &changed).await, &format!("a grant is {why}"), &changed);
    }
    let theirs = edit(5, OTHER_ROLE);
    assert_refused(open(&mut other, &theirs).await, "a grant is forged", "made out to another role");
    // One bad grant spoils the good ones beside it.
    let both = [good.clone(), edit(2, "3")];
    assert_refused(
        attempt_for(&mut worker, &both, "SELECT FROM simple_chat_context").await,
        "a grant is forged",
        "both",
    );
}

/// A job grant of user 1, sealed as the database seals it, by whoever can read the key.
async fn sealed(fixture: &Fixture, mint: &str, expires_in: i32) -> String {
    sealed_as(fixture, &format!("1||job:{JOB}|{ROLE}|{mint}"), expires_in).await
}

/// The same of any user, service, role and mint.
async fn sealed_as(fixture: &Fixture, whose: &str, expires_in: i32) -> String {
    let content =
        format!("concat('v1|', key_id, '|{whose}|', extract(epoch from now())::bigint + {expires_in})");
    let seal = format!("encode(sec.hmac(inner_pad, outer_pad, convert_to({content}, 'UTF8')), 'hex')");
    let key = "sec.keys WHERE purpose = 'job' AND retired_at IS NULL";
    fixture.lines(&format!("{content} || '|' || {seal} FROM {key}")).await.remove(0)
}

/// What counts is the mint: whoever knows the key reaches nobody whom the database has not named to the role.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_job_grants_reaches_nobody_beyond_a_mint() {
    let fixture = with_job().await;
    let due = due_function("due_other", "SELECT 3");
    fixture
        .execute(&format!("{due}; SELECT sec.add_job('other', '{OTHER_ROLE}', 'sec.due_other(integer)')"))
        .await;
    let (mut worker, mut other) = (login(&fixture, ROLE).await, login(&fixture, OTHER_ROLE).await);
    let tick = Uuid::now_v7();
    let minted = job_grants::mint(&mut worker, JOB, tick, 10).await.expect("grants");
    let mint_of = |grants: &[JobGrant]| of(grants, 0).split('|').nth(6).expect("its mint").to_owned();
    let of_tick = mint_of(&minted);
    let theirs = mint_of(&job_grants::mint(&mut other, "other", tick, 10).await.expect("grants"));
    for (whose, by) in [
        (format!("3||job:{JOB}|{ROLE}|{of_tick}"), "of a user who is not in its mint"),
        (format!("1||simple-chat|{ROLE}|{of_tick}"), "of another job than its mint"),
        (format!("1||job:other|{ROLE}|{of_tick}"), "of another job than its mint"),
        (format!("3||job:other|{ROLE}|{theirs}"), "of a mint of another role"),
    ] {
        let forged = sealed_as(&fixture, &whose, 60).await;
        assert_refused(open(&mut worker, &forged).await, &format!("a grant is {by}"), &whose);
        let both = [of(&minted, 1), forged];
        let done = attempt_for(&mut worker, &both, "SELECT FROM simple_chat_context").await;
        assert_refused(done, by, &format!("{whose} beside a good one"));
    }
    for user in [0, 1, 2] {
        let own = sealed_as(&fixture, &format!("{user}||job:{JOB}|{ROLE}|{of_tick}"), 60).await;
        assert!(open(&mut worker, &own).await.is_ok(), "user {user} is in the mint");
    }
    // Those of an earlier delivery are in the mint of this one.
    fixture.execute("UPDATE simple_chat_context SET expires_at = NULL WHERE user_id = 1").await;
    let again = job_grants::mint(&mut worker, JOB, tick, 10).await.expect("grants");
    assert_eq!(attempt_for(&mut worker, &texts(&again), "SELECT FROM simple_chat_context").await, Ok(2));
    let elsewhere = mint_of(&mint(&mut worker, 10).await);
    let earlier = sealed_as(&fixture, &format!("1||job:{JOB}|{ROLE}|{elsewhere}"), 60).await;
    assert_refused(open(&mut worker, &earlier).await, "of a user who is not in its mint", "of another tick");
}

/// Grants of before are no fault of their tick: it is tried again, and mints anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_key_of_job_grants_makes_its_ticks_mint_anew() {
    let fixture = with_job().await;
    let mut worker = login(&fixture, ROLE).await;
    assert_eq!(fixture.count("sec.keys WHERE key_id = 'job' AND retired_at IS NOT NULL").await, 1);
    let tick = Uuid::now_v7();
    let before = of(&job_grants::mint(&mut worker, JOB, tick, 10).await.expect("grants"), 1);
    fixture
        .execute(
            "SELECT sec.add_key('job-next', 'job', sha256(uuid_send(gen_random_uuid())));
             UPDATE sec.keys SET retired_at = now() WHERE purpose = 'job' AND key_id <> 'job-next'",
        )
        .await;
    let fault = store::security::open_context(&mut worker, &[&before]).await.expect_err("the key is gone");
    assert_eq!(fault.kind, FaultKind::Transient, "{fault}");
    assert!(fault.reason.contains("the key of job grants was replaced"), "{fault}");
    let forged = format!("{}0", &before[..before.len() - 1]);
    if forged != before {
        assert_refused(open(&mut worker, &forged).await, "a grant is forged", "under the key of before");
    }
    let after = job_grants::mint(&mut worker, JOB, tick, 10).await.expect("grants");
    assert_eq!(open(&mut worker, &of(&after, 1)).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn job_grants_end() {
    let fixture = with_job().await;
    let mut worker = login(&fixture, ROLE).await;
    let good = of(&mint(&mut worker, 10).await, 1);
    let id = good.split('|').nth(6).expect("its mint").to_owned();
    let lives = "sec.minted_job_grants WHERE expires_at BETWEEN now() + interval '4 minutes' AND now() + interval '301 s'";
    assert_eq!(fixture.count(lives).await, 1);

    // By what the grant itself says.
    assert_eq!(
        open(&mut worker, &sealed(&fixture, &id, 60).await).await,
        Ok(1),
        "it is sealed as it must be"
    );
    let expired = "the security context is refused: a grant is expired";
    assert_refused(open(&mut worker, &sealed(&fixture, &id, 0).await).await, expired, "expired");
    // Without its mint, however good its seal is.
    let unknown = sealed(&fixture, &Uuid::now_v7().to_string(), 60).await;
    assert_refused(open(&mut worker, &unknown).await, UNCOMMITTED, "of no mint");
    // By the row of its mint, by its revocation, and with its job.
    let whole = "UPDATE sec.minted_job_grants SET expires_at = now()";
    fixture.execute(whole).await;
    assert_refused(open(&mut worker, &good).await, expired, "its mint has expired");
    mint(&mut worker, 10).await;
    let long_ago = "UPDATE sec.minted_job_grants SET expires_at = now() - interval '1 day'";
    fixture.execute(long_ago).await;
    let good = of(&mint(&mut worker, 10).await, 1);
    assert_eq!(
        fixture.count("sec.minted_job_grants").await,
        1,
        "a mint deletes those that expired a day ago"
    );
    let id = good.split('|').nth(6).expect("its mint");
    fixture.execute(&format!("SELECT sec.revoke_tokens(ARRAY['{id}']::uuid[])")).await;
    assert_refused(open(&mut worker, &good).await, "a grant is revoked", "revoked");
    let good = of(&mint(&mut worker, 10).await, 1);
    assert_eq!(open(&mut worker, &good).await, Ok(1));
    fixture.execute(&format!("SELECT sec.drop_job('{JOB}')")).await;
    assert_refused(open(&mut worker, &good).await, UNCOMMITTED, "of a job that is gone");
    let fault = job_grants::mint(&mut worker, JOB, Uuid::now_v7(), 10).await.expect_err("no job");
    assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
    assert!(fault.reason.contains("this role has no such job"), "{fault}");
}

/// Whoever drops a job waits for no transaction that has minted for it, and what is minted there is good for nothing, also when the job is
/// there again.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_mints_does_not_keep_its_job() {
    let fixture = with_job().await;
    let mut worker = login(&fixture, ROLE).await;
    worker.batch_execute("BEGIN").await.expect("a transaction");
    let minted = format!("grant_text FROM sec.job_grants('{JOB}', gen_random_uuid(), 10) WHERE user_id = 1");
    let grant = lines_on(&mut worker, &minted).await.concat();
    fixture
        .execute(&format!(
            "SET lock_timeout = '1s'; SELECT sec.drop_job('{JOB}'); SELECT sec.add_job('{JOB}', '{ROLE}', 'sec.due_test(integer)')"
        ))
        .await;
    worker.batch_execute("COMMIT").await.expect("a commit");
    assert_refused(open(&mut worker, &grant).await, UNCOMMITTED, "of the job that was dropped");
    let good = of(&mint(&mut worker, 10).await, 1);
    assert_eq!(open(&mut worker, &good).await, Ok(1));
}

/// Also while its row is still there, which later mints delete.
#[tokio::test(flavor = "multi_thread")]
async fn a_tick_that_is_delivered_again_acts_for_its_users_within_a_day() {
    let fixture = with_job().await;
    let mut worker = login(&fixture, ROLE).await;
    let tick = Uuid::now_v7();
    assert_eq!(users(&job_grants::mint(&mut worker, JOB, tick, 10).await.expect("grants")), [0, 1, 2]);
    fixture.execute("UPDATE simple_chat_context SET expires_at = NULL").await;
    assert_eq!(users(&job_grants::mint(&mut worker, JOB, tick, 10).await.expect("grants")), [0, 1, 2]);
    fixture.execute("UPDATE sec.minted_job_grants SET minted_at = now() - interval '25 hours'").await;
    assert_eq!(users(&job_grants::mint(&mut worker, JOB, tick, 10).await.expect("grants")), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mint_that_is_not_committed_gives_nothing() {
    let fixture = with_job().await;
    let (mut worker, mut accomplice) = (login(&fixture, ROLE).await, login(&fixture, ROLE).await);
    // In the transaction itself: what it reads would leave no trace after a rollback.
    worker.batch_execute("BEGIN").await.expect("a transaction");
    let grants = mint(&mut worker, 10).await;
    let call = format!("SELECT sec.open_context(ARRAY['{}'])", of(&grants, 1));
    assert_refused(attempt(&mut worker, &call).await, UNCOMMITTED, "in its own transaction");
    worker.batch_execute("ROLLBACK").await.expect("its end");
    // On another connection, while the transaction is open and after it was rolled back.
    worker.batch_execute("BEGIN").await.expect("a transaction");
    let grants = mint(&mut worker, 10).await;
    assert_refused(open(&mut accomplice, &of(&grants, 1)).await, UNCOMMITTED, "not committed yet");
    worker.batch_execute("ROLLBACK").await.expect("its end");
    assert_refused(open(&mut accomplice, &of(&grants, 1)).await, UNCOMMITTED, "rolled back");
    assert_refused(open(&mut worker, &of(&grants, 1)).await, UNCOMMITTED, "rolled back");
    // In a part of a transaction.
    worker.batch_execute("BEGIN; SAVEPOINT part").await.expect("a transaction");
    let grants = mint(&mut worker, 10).await;
    worker.batch_execute("ROLLBACK TO SAVEPOINT part; COMMIT").await.expect("its end");
    assert_refused(open(&mut worker, &of(&grants, 1)).await, UNCOMMITTED, "rolled back to a savepoint");
    assert_eq!(fixture.count("sec.minted_job_grants").await, 0);
    assert_eq!(fixture.count("audit.data_access_log").await, 0);

    worker.batch_execute("BEGIN").await.expect("a transaction");
    let grants = mint(&mut worker, 10).await;
    worker.batch_execute("COMMIT").await.expect("its end");
    assert_eq!(open(&mut accomplice, &of(&grants, 1)).await, Ok(1), "committed");
    assert_eq!(fixture.count("audit.data_access_log").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_makes_nobody_due() {
    let fixture = with_job().await;
    let mut worker = login(&fixture, ROLE).await;
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        worker
            .batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}; SELECT 1"))
            .await
            .expect("a transaction");
        let fault = job_grants::mint(&mut worker, JOB, Uuid::now_v7(), 10).await.expect_err(isolation);
        assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
        assert!(fault.reason.contains("read committed only"), "{fault}");
        worker.batch_execute("ROLLBACK").await.expect("its end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_cannot_make_others_due() {
    let fixture = with_job().await;
    let mut worker = login(&fixture, ROLE).await;
    let all = texts(&mint(&mut worker, 10).await);
    let expire = "UPDATE simple_chat_context SET expires_at = now() - interval '1 hour' WHERE user_id = 3";
    assert_eq!(attempt_for(&mut worker, &all, expire).await, Ok(0));
    let policy = "row-level security policy";
    for theirs in [
        "UPDATE simple_chat_context SET user_id = 3, context_key = 'x' WHERE user_id = 1",
        "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, expires_at)
             VALUES (gen_random_uuid(), 3, 's', 'x', '1', now() - interval '1 hour')",
    ] {
        assert_refused(attempt_for(&mut worker, &all, theirs).await, policy, theirs);
    }
    assert_eq!(users(&mint(&mut worker, 10).await), [0, 1, 2]);
    // Whatever a due function gives, its users are cut to the limit, each once. Only what it gives is due.
    let due = due_function("due_more", "SELECT unnest(ARRAY[0, -1, NULL, 2, 2, 1, 3, 4])");
    fixture.execute(&format!("{due}; SELECT sec.add_job('{JOB}', '{ROLE}', 'sec.due_more(integer)')")).await;
    assert_eq!(users(&mint(&mut worker, 2).await), [0, 2]);
    let grants = mint(&mut worker, 10).await;
    assert_eq!(users(&grants), [0, 1, 2, 3, 4]);
    assert!(grants.iter().all(|grant| grant.is_due), "{grants:?}");
    register_again(&fixture, "SELECT 3").await;
    let grants = mint(&mut worker, 10).await;
    assert_eq!(users(&grants), [0, 3]);
    assert!(grants.iter().all(|grant| grant.is_due == (grant.user_id == 3)), "{grants:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_job_grants_rest_on_is_out_of_reach() {
    let fixture = with_job().await;
    for role in roles(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        assert_eq!(
            store::security::excess_privileges(&mut worker).await.expect("an answer"),
            Vec::<String>::new()
        );
        for sql in [
            "SELECT sec.due_test(10)",
            "SELECT * FROM sec.jobs",
            "UPDATE sec.jobs SET role_name = session_user",
            "INSERT INTO sec.jobs VALUES ('mine', session_user, 'sec.due_test')",
            "SELECT * FROM sec.minted_job_grants",
            "UPDATE sec.minted_job_grants SET expires_at = now() + interval '1 day'",
            "DELETE FROM sec.minted_job_grants",
            "INSERT INTO sec.minted_job_grants DEFAULT VALUES",
            "SELECT * FROM sec.keys",
            "SELECT sec.add_key('mine', 'job', sha256('x'))",
            "SELECT sec.hmac('', '', '')",
            "SELECT sec.add_job('mine', session_user::name, 'sec.excess_privileges()')",
            "SELECT sec.drop_job('expire-contexts')",
            "SELECT sec.grant_worker(session_user::name, '{\"users\": [\"SELECT\"]}')",
            "SELECT sec.revoke_worker('w_context_writer')",
            "SELECT sec.read_privileges('{}')",
            "SELECT sec.message_privileges()",
            "SELECT sec.worker_functions()",
            "SET ROLE memfleet_due",
        ] {
            assert_refused(attempt(&mut worker, sql).await, "permission denied", &format!("{role}: {sql}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_users_is_bounded() {
    let fixture = with_job().await;
    let mut worker = login(&fixture, ROLE).await;
    for max_users in [i32::MIN, -1, 0, job_grants::MAX_USERS + 1, i32::MAX] {
        let fault =
            job_grants::mint(&mut worker, JOB, Uuid::now_v7(), max_users).await.expect_err("out of range");
        assert_eq!(fault.kind, FaultKind::Permanent, "{fault}");
        assert!(fault.reason.contains("max_users is out of range"), "{fault}");
    }
    for missing in ["NULL::uuid, 10", "gen_random_uuid(), NULL"] {
        let sql = format!("SELECT FROM sec.job_grants('{JOB}', {missing})");
        assert_refused(attempt(&mut worker, &sql).await, "job grants: the tick is missing", missing);
    }
    assert_eq!(users(&mint(&mut worker, 1).await), [0, 1]);
    // As many as possible still fit into one context, with as many of earlier mints of the same tick.
    register_again(&fixture, "SELECT generate_series(1, 20000)").await;
    let tick = Uuid::now_v7();
    let most = job_grants::MAX_USERS;
    assert_eq!(job_grants::mint(&mut worker, JOB, tick, most).await.expect("grants").len(), 5_000);
    fixture
        .execute(
            "CREATE OR REPLACE FUNCTION sec.due_again(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
             SET search_path = pg_catalog, pg_temp AS $due$ SELECT generate_series(5001, 20000) $due$",
        )
        .await;
    let grants = job_grants::mint(&mut worker, JOB, tick, most).await.expect("grants");
    assert_eq!(grants.len(), 9_999);
    assert_eq!(attempt_for(&mut worker, &texts(&grants), "SELECT FROM simple_chat_context").await, Ok(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_that_is_delivered_again_reaches_the_users_it_has_served_for_a_day() {
    let fixture = with_job().await;
    let (mut worker, tick) = (login(&fixture, ROLE).await, Uuid::now_v7());
    let mut minted = async |tick| job_grants::mint(&mut worker, JOB, tick, 10).await.expect("grants");
    assert_eq!(users(&minted(tick).await), [0, 1, 2]);
    fixture.execute("UPDATE simple_chat_context SET expires_at = NULL WHERE user_id = 1").await;
    let again = minted(tick).await;
    assert_eq!(users(&again), [0, 1, 2]);
    assert!(again.iter().all(|grant| grant.is_due == (grant.user_id == 2)), "{again:?}");
    assert_eq!(users(&minted(Uuid::now_v7()).await), [0, 2], "another tick does not");
    fixture.execute("UPDATE sec.minted_job_grants SET expires_at = now() - interval '25 hours'").await;
    minted(Uuid::now_v7()).await;
    assert_eq!(users(&minted(tick).await), [0, 2], "after a day it does not");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mint_is_in_the_audit_trail() {
    let fixture = with_job().await;
    let mut worker = login(&fixture, ROLE).await;
    let tick = Uuid::now_v7();
    // A tick that is delivered again mints again.
    for deliveries in 1..=2 {
        let grants = job_grants::mint(&mut worker, JOB, tick, 10).await.expect("grants");
        assert_eq!(users(&grants), [0, 1, 2]);
        let minted = format!(
            "sec.minted_job_grants WHERE job = '{JOB}' AND tick = '{tick}' AND role_name = '{ROLE}' AND users = '{{1,2}}'"
        );
        assert_eq!(fixture.count(&minted).await, deliveries);
        assert_eq!(open(&mut worker, &of(&grants, 2)).await, Ok(1));
    }
    let rows = "concat_ws(' ', s.user_id, l.role_name, l.service, l.access_type, l.object_name, l.rows_returned, l.request_id)
        FROM audit.data_access_log l JOIN audit.subjects s ON s.token = l.subject_token ORDER BY s.user_id, l.id";
    let line = |user: i32, users: i32| format!("{user} {ROLE} job:{JOB} job-grant {JOB} {users} {tick}");
    // The platform's row has the number of users.
    let expected = [(0, 2), (1, 1), (2, 1)].map(|(user, users)| [line(user, users), line(user, users)]);
    assert_eq!(fixture.lines(rows).await, expected.concat());
    assert_eq!(fixture.count("audit.data_access_log").await, 6, "and no others");
    // `memfleet audit trail` finds it.
    let trail = audit::trail(&mut fixture.connection().await, 1, 10).await.expect("a trail").expect("a user");
    let deed = trail.iter().find(|deed| deed.request_id == Some(tick)).expect("the mint");
    assert_eq!((deed.operation.as_str(), deed.object.as_deref()), ("access", Some(JOB)));
    assert_eq!(deed.details, ["job-grant", "1 rows"]);
    assert_eq!(
        (deed.role_name.as_deref(), deed.service.as_deref()),
        (Some(ROLE), Some("job:expire-contexts"))
    );
    // A refusal is one too.
    let message = job_grants::mint(&mut worker, "other", tick, 10).await.expect_err("no such job").reason;
    let violation =
        store::security::Violation { message: &message, user_id: 0, service: "job:other", request_id: tick };
    store::security::record_violation(&mut worker, &violation).await.expect("it is recorded");
    assert_eq!(
        fixture
            .lines("concat_ws('|', violation_type, severity, reason) FROM audit.security_violations")
            .await,
        ["grant-refused|high|the security context is refused: this role has no such job"]
    );
}

/// The columns that the role of due functions may read, beside those for the shipped jobs.
const READABLE: &str = "c.oid::regclass || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit') AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND c.relname NOT IN ('consensus_tasks', 'consensus_memory_nodes', 'task_estimates', 'unified_memory_vectors') AND a.attnum > 0 AND NOT a.attisdropped
    AND has_column_privilege('memfleet_due', c.oid, a.attnum, 'SELECT') ORDER BY 1";

/// What the due functions of the shipped jobs read.
const SHIPPED: [&str; 77] = [
    "agent_context_states.expires_at",
    "agent_context_states.id",
    "agent_context_states.memory_tier",
    "agent_context_states.removed_at",
    "agent_context_states.session_id",
    "agent_context_states.sync_state",
    "agent_context_states.updated_at",
    "agent_context_states.user_id",
    "blackboard_events.created_at",
    "blackboard_events.event_sequence",
    "blackboard_events.id",
    "blackboard_events.session_id",
    "blackboard_events.user_id",
    "blackboard_events_default.id",
    "chat_mode_sessions.chat_mode",
    "chat_mode_sessions.ended_at",
    "chat_mode_sessions.id",
    "chat_mode_sessions.is_active",
    "chat_mode_sessions.session_id",
    "chat_mode_sessions.user_id",
    "cross_service_memory_sync.carried_at",
    "cross_service_memory_sync.completed_at",
    "cross_service_memory_sync.created_at",
    "cross_service_memory_sync.crosses_private",
    "cross_service_memory_sync.expires_at",
    "cross_service_memory_sync.has_more",
    "cross_service_memory_sync.id",
    "cross_service_memory_sync.service",
    "cross_service_memory_sync.source_clock",
    "cross_service_memory_sync.source_session_id",
    "cross_service_memory_sync.sync_status",
    "cross_service_memory_sync.target_session_id",
    "cross_service_memory_sync.user_id",
    "data_retention_policies.access_tier",
    "data_retention_policies.action",
    "data_retention_policies.chat_mode",
    "data_retention_policies.id",
    "data_retention_policies.is_active",
    "data_retention_policies.keep_days",
    "data_retention_policies.table_name",
    "data_retention_policies.user_id",
    "inbox.message_id",
    "inbox.received_at",
    "inbox.user_id",
    "inbox.worker",
    "multi_agent_conversations.completed_at",
    "multi_agent_conversations.session_id",
    "multi_agent_conversations.user_id",
    "retention_holds.access_tier",
    "retention_holds.chat_mode",
    "retention_holds.released_at",
    "retention_holds.table_name",
    "retention_holds.user_id",
    "retention_state.after_user",
    "retention_state.slice_users",
    "router_decision_log.anonymised_at",
    "router_decision_log.created_at",
    "router_decision_log.id",
    "router_decision_log.session_id",
    "router_decision_log.user_id",
    "sec.fenced_users.user_id",
    "sec.restricted_users.user_id",
    "session_clocks.logical_time",
    "session_clocks.session_id",
    "session_clocks.user_id",
    "session_knowledge.session_id",
    "session_knowledge.sync_id",
    "session_knowledge.user_id",
    "simple_chat_context.access_level",
    "simple_chat_context.expires_at",
    "simple_chat_context.id",
    "simple_chat_context.is_persistent",
    "simple_chat_context.removed_at",
    "simple_chat_context.session_id",
    "simple_chat_context.sync_state",
    "simple_chat_context.user_id",
    "users.id",
];

#[tokio::test(flavor = "multi_thread")]
async fn due_functions_read_what_is_granted_and_nobody_logs_in_as_their_owner() {
    let fixture = with_users().await;
    let shipped = fixture.lines(READABLE).await;
    // No table as a whole, and no content.
    assert!(shipped.iter().all(|column| SHIPPED.contains(&column.as_str())), "as it is shipped: {shipped:?}");
    register(&fixture).await;
    let registered = fixture.lines(READABLE).await;
    let added: Vec<&String> = registered.iter().filter(|column| !shipped.contains(column)).collect();
    assert_eq!(added, ["simple_chat_context.context_type"]);
    let role = "pg_roles WHERE rolname = 'memfleet_due' AND NOT rolcanlogin AND rolbypassrls AND NOT rolsuper
        AND NOT rolcreaterole AND NOT rolcreatedb AND NOT rolreplication";
    assert_eq!(fixture.count(role).await, 1);
    let members = "pg_auth_members WHERE 'memfleet_due'::regrole IN (roleid, member)";
    assert_eq!(fixture.count(members).await, 0);
    let url = fixture.settings.postgres.url_of("memfleet_due");
    assert!(store::connect(&url).await.is_err(), "it logs in");

    let mut due = fixture.connection().await;
    due.batch_execute("SET ROLE memfleet_due").await.expect("a superuser");
    assert_eq!(attempt(&mut due, "SELECT user_id FROM simple_chat_context").await, Ok(4));
    for sql in [
        "SELECT context_value FROM simple_chat_context",
        "SELECT * FROM users",
        "SELECT * FROM sec.keys",
        "SELECT * FROM audit.subjects",
        "UPDATE simple_chat_context SET expires_at = now()",
        "DELETE FROM simple_chat_context",
        "CREATE TABLE public.mine (x integer)",
        "SELECT sec.job_grants('expire-contexts', gen_random_uuid(), 1)",
    ] {
        assert_refused(attempt(&mut due, sql).await, "permission denied", sql);
    }
    // A due function that reads more than it may gives nobody a grant.
    let greedy = due_function("due_greedy", "SELECT id FROM public.users WHERE email <> ''");
    fixture
        .execute(&format!("{greedy}; SELECT sec.add_job('{JOB}', '{ROLE}', 'sec.due_greedy(integer)')"))
        .await;
    let mut worker = login(&fixture, ROLE).await;
    let fault =
        job_grants::mint(&mut worker, JOB, Uuid::now_v7(), 10).await.expect_err("a column not granted");
    assert_eq!(fault.kind, FaultKind::Denied, "{fault}");
    let broken = "sec.due_greedy of the job expire-contexts fails (SQLSTATE 42501)";
    assert!(fault.reason.contains(broken), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_function_that_reads_for_its_own_owner_determines_what_is_due() {
    let fixture = with_users().await;
    let mut admin = fixture.connection().await;
    let good = due_function("due_good", "SELECT 1");
    for (name, bad) in [
        ("due_invoker", good.replace("SECURITY DEFINER", "SECURITY INVOKER")),
        ("due_writes", good.replace("STABLE", "VOLATILE")),
        ("due_path", good.replace("SET search_path = pg_catalog, pg_temp", "")),
        ("due_other_path", good.replace("pg_catalog, pg_temp", "public, pg_temp")),
        ("due_text", good.replace("SETOF integer", "SETOF text").replace("SELECT 1", "SELECT 'x'::text")),
        ("due_one", good.replace("SETOF integer", "integer")),
    ] {
        let bad = bad.replace("due_good", name);
        let add = format!("{bad}; SELECT sec.add_job('{JOB}', '{ROLE}', 'sec.{name}(integer)')");
        let refusal = admin.batch_execute(&add).await.expect_err(name).to_string();
        assert!(refusal.contains("does not determine whose work is due"), "{name}: {refusal}");
    }
    admin.batch_execute(&good).await.expect("a function");
    for (arguments, by) in [
        (format!("'{JOB}', 'w_nobody', 'sec.due_good(integer)'"), "w_nobody is not the role of a worker"),
        (format!("'Expire|x', '{ROLE}', 'sec.due_good(integer)'"), "jobs_job_check"),
        (format!("'', '{ROLE}', 'sec.due_good(integer)'"), "jobs_job_check"),
    ] {
        let add = format!("SELECT sec.add_job({arguments})");
        assert_refused(attempt(&mut admin, &add).await, by, &arguments);
    }
    assert_eq!(
        fixture
            .count(
                "sec.jobs WHERE role_name NOT IN ('w_consensus_builder', 'w_memory_sync', 'w_retention_cleaner', 'w_vector_indexer')"
            )
            .await,
        0
    );
    // What is registered twice is registered once, and whoever loses the job loses the function that mints.
    for role in [OTHER_ROLE, ROLE, ROLE] {
        let add = format!("SELECT sec.add_job('{JOB}', '{role}', 'sec.due_good(integer)')");
        admin.batch_execute(&add).await.expect("a job");
    }
    let others = "role_name FROM sec.jobs WHERE role_name NOT IN ('w_consensus_builder', 'w_memory_sync', 'w_retention_cleaner', 'w_vector_indexer')";
    assert_eq!(fixture.lines(others).await, [ROLE]);
    let may = "r.rolname FROM pg_roles r WHERE has_function_privilege(r.oid, 'sec.job_grants(text, uuid, integer)', 'EXECUTE')
        AND r.rolname LIKE 'w\\_%' AND r.rolname NOT IN ('w_consensus_builder', 'w_memory_sync', 'w_retention_cleaner', 'w_vector_indexer')";
    assert_eq!(fixture.lines(may).await, [ROLE]);
    let owned =
        "pg_proc WHERE oid = 'sec.due_good(integer)'::regprocedure AND proowner = 'memfleet_due'::regrole
        AND NOT has_function_privilege('public', oid, 'EXECUTE')";
    assert_eq!(fixture.count(owned).await, 1);
}
