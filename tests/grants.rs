//! Grants that are nearly right, as the database reads them.

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
        "DO $$
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
         END $$"
    );
    worker.batch_execute(&sql).await.expect("each is refused as a grant");
}
