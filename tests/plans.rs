//! How PostgreSQL plans the statements of a batch.

use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use testkit::Fixture;
use testkit::attack::{grant, login};

use crate::support::ROLE;

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_batch_reuses_plans() {
    const SETTINGS: &str = "SELECT concat_ws(' ', current_setting('plan_cache_mode'), current_setting('enable_seqscan')) AS line";
    let fixture = Fixture::new().await;
    let mut worker = login(&fixture, ROLE).await;
    for (messages, expected) in
        [(1, "force_generic_plan off"), (32, "force_generic_plan off"), (33, "auto on")]
    {
        worker.batch_execute("BEGIN").await.expect("a transaction");
        let opened = store::security::open_context_of_batch(&mut worker, &[&grant(1, ROLE)], messages).await;
        opened.expect("a context");
        let settings: Vec<Line> = diesel::sql_query(SETTINGS).load(&mut worker).await.expect("the settings");
        assert_eq!(settings[0].line, expected, "{messages} messages");
        worker.batch_execute("COMMIT").await.expect("its end");
    }
    let settings: Vec<Line> = diesel::sql_query(SETTINGS).load(&mut worker).await.expect("the settings");
    assert_eq!(settings[0].line, "auto on", "they end with the transaction");
}

/// A generic plan is kept, also if the table was empty when it was made.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_for_empty_tables_is_good_for_full_ones() {
    let fixture = Fixture::new().await;
    let mut worker = login(&fixture, ROLE).await;
    worker.batch_execute("BEGIN").await.expect("a transaction");
    let opened = store::security::open_context_of_batch(&mut worker, &[&grant(1, ROLE)], 1).await;
    opened.expect("a context");
    worker
        .batch_execute(
            "PREPARE known AS SELECT i.event_id FROM unnest($1::integer[], $2::uuid[]) AS m (user_id, message_id)
             JOIN inbox i ON i.worker = $3 AND i.user_id = m.user_id AND i.message_id = m.message_id",
        )
        .await
        .expect("a statement");
    worker
        .batch_execute(
            "DO $$ DECLARE plan json; BEGIN
                 EXECUTE 'EXPLAIN (FORMAT JSON) EXECUTE known (''{1}'', ''{00000000-0000-0000-0000-000000000000}'', ''w'')' INTO plan;
                 PERFORM set_config('test.plan', plan::text, true);
             END $$",
        )
        .await
        .expect("a plan");
    let plan: Vec<Line> = diesel::sql_query("SELECT current_setting('test.plan') AS line")
        .load(&mut worker)
        .await
        .expect("a plan");
    let plan = &plan[0].line;
    assert!(plan.contains("Index") && !plan.contains("Seq Scan"), "{plan}");
}
