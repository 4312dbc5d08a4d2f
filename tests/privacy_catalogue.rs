//! The catalogue of the tables with data of persons has every table, knows whose the rows are, and empties them in an order that the foreign
//! keys allow.

use std::collections::BTreeMap;

use contract::UserId;
use diesel_async::AsyncPgConnection;
use privacy::catalogue::{self, CIRCLE, DEPLOYMENT, Entry, Erase, KEY_STORE_TABLES, Owner, TABLES};
use privacy::request::{self, NewRequest};
use privacy::{Claimed, Removal, Step, rows};
use testkit::{Fixture, lines_on};
use trust::PrivateKey;
use uuid::Uuid;

use crate::support::privacy::fill;

const SCHEMAS: &str = "n.nspname IN ('public', 'sec', 'audit')";
const TABLE: &str = "c.relkind IN ('r', 'p') AND NOT c.relispartition";
/// Columns that look like the id or the token of a user, or like several ids.
const OF_USERS: &str = "a.attname ~ '(^|_)(user|owner|person|subject)(_?id|_?ids|_token|s)?$' AND a.attnum > 0 AND NOT a.attisdropped";

async fn names(connection: &mut AsyncPgConnection, sql: &str) -> Vec<String> {
    lines_on(connection, sql).await
}

/// What a catalogue lacks of a database.
async fn faults(connection: &mut AsyncPgConnection, entries: &[Entry]) -> Vec<String> {
    let by_name: BTreeMap<String, &Entry> = entries.iter().map(|entry| (entry.name(), entry)).collect();
    let mut faults = Vec::new();
    let tables = format!(
        "concat_ws('.', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {SCHEMAS} AND {TABLE} ORDER BY 1"
    );
    let tables = names(connection, &tables).await;
    faults.extend(
        tables
            .iter()
            .filter(|name| !by_name.contains_key(*name))
            .map(|name| format!("{name} is not in the catalogue")),
    );
    faults.extend(
        by_name
            .keys()
            .filter(|name| !tables.contains(name))
            .map(|name| format!("{name} is not in the database")),
    );

    let columns = format!(
        "concat_ws(' ', concat_ws('.', n.nspname, c.relname), a.attname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_attribute a ON a.attrelid = c.oid WHERE {SCHEMAS} AND {TABLE} AND {OF_USERS} ORDER BY 1"
    );
    for line in names(connection, &columns).await {
        let (table, column) = line.split_once(' ').expect("two words");
        let is_covered = by_name.get(table).is_some_and(|entry| match entry.owner {
            Owner::Column(own) | Owner::Through { column: own, .. } => own == column,
            Owner::Arrays(own) => own.contains(&column),
            Owner::Token => column == "subject_token",
            Owner::Nobody(why) => why != DEPLOYMENT,
        });
        if !is_covered {
            faults.push(format!(
                "{table}.{column} looks like a user, and the catalogue does not say whose the rows are"
            ));
        }
    }
    let below_users = "WITH RECURSIVE below AS (
            SELECT conrelid FROM pg_constraint WHERE contype = 'f' AND confrelid = to_regclass('public.users')
            UNION SELECT k.conrelid FROM pg_constraint k JOIN below b ON k.confrelid = b.conrelid WHERE k.contype = 'f')
        SELECT concat_ws('.', n.nspname, c.relname) AS t FROM below b JOIN pg_class c ON c.oid = b.conrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT c.relispartition";
    for table in names(connection, &format!("t FROM ({below_users}) AS f ORDER BY 1")).await {
        if by_name.get(&table).is_none_or(|entry| matches!(entry.owner, Owner::Nobody(_) | Owner::Token)) {
            faults.push(format!("{table} hangs on users, and the catalogue does not say whose the rows are"));
        }
    }
    faults
}

/// Foreign keys between tables that are emptied, which the order breaks.
async fn out_of_order(connection: &mut AsyncPgConnection) -> Vec<String> {
    let order: BTreeMap<String, u8> =
        catalogue::emptied().into_iter().filter_map(|entry| Some((entry.name(), entry.order()?))).collect();
    let keys = "concat_ws(' ', concat_ws('.', n.nspname, c.relname), concat_ws('.', m.nspname, p.relname), k.conname) FROM pg_constraint k
        JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace m ON m.oid = p.relnamespace
        WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid <> k.confrelid ORDER BY 1";
    let mut broken = Vec::new();
    for line in names(connection, keys).await {
        let parts: Vec<&str> = line.split(' ').collect();
        let (Some(child), Some(parent)) = (order.get(parts[0]), order.get(parts[1])) else { continue };
        if child > parent || child == parent && *child != CIRCLE {
            broken.push(line);
        }
    }
    broken
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_is_in_the_catalogue_with_its_users_and_in_an_order_that_keys_allow() {
    let fixture = Fixture::new().await;
    let mut main = fixture.connection().await;
    assert_eq!(faults(&mut main, TABLES).await, Vec::<String>::new());
    assert_eq!(out_of_order(&mut main).await, Vec::<String>::new());
    let mut key_store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    assert_eq!(faults(&mut key_store, KEY_STORE_TABLES).await, Vec::<String>::new());
}

/// The test itself: it finds tables that somebody adds, also if their entry says that they are nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_added_is_noticed() {
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "CREATE TABLE notes (owner integer, about varchar(128), PRIMARY KEY (owner, about),
                 FOREIGN KEY (owner, about) REFERENCES chat_mode_sessions (user_id, session_id));
             CREATE TABLE hidden (who integer, about varchar(128), FOREIGN KEY (who, about) REFERENCES notes);
             CREATE TABLE sec.shares (owner_user_ids integer[])",
        )
        .await;
    let mut main = fixture.connection().await;
    let missing = faults(&mut main, TABLES).await;
    for table in ["public.notes", "public.hidden", "sec.shares"] {
        assert!(missing.contains(&format!("{table} is not in the catalogue")), "{missing:?}");
    }
    let nobodys =
        |schema, table| Entry { schema, table, owner: Owner::Nobody(DEPLOYMENT), erase: Erase::Kept("so") };
    let more = [nobodys("public", "notes"), nobodys("public", "hidden"), nobodys("sec", "shares")];
    let wrong = faults(&mut main, &[TABLES, &more].concat()).await;
    for place in
        ["public.notes.owner looks", "sec.shares.owner_user_ids looks", "public.hidden hangs on users"]
    {
        assert!(wrong.iter().any(|fault| fault.starts_with(place)), "{place}: {wrong:?}");
    }
}

/// The rows of users in all tables of the catalogue that are emptied.
async fn counts(fixture: &Fixture, user: i32) -> BTreeMap<String, u64> {
    let user = UserId::new(user).expect("an id");
    rows::count(&mut fixture.connection().await, user).await.expect("numbers")
}

/// As the steps before leave it. Without it, nothing is deleted.
async fn fence(fixture: &Fixture, claimed: &mut Claimed) {
    let fence = format!(
        "INSERT INTO sec.fenced_users (user_id, request_id, may_be_cancelled) VALUES ({}, '{}', false)",
        claimed.user, claimed.id
    );
    fixture.execute(&fence).await;
    claimed.progress.fenced_at = Some(chrono::Utc::now());
}

/// The rows of everybody but one user, in all of these tables.
async fn others(fixture: &Fixture, user: i32) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in catalogue::emptied() {
        let column = match entry.owner {
            Owner::Column(column) => column,
            Owner::Arrays(_) | Owner::Through { .. } | Owner::Token | Owner::Nobody(_) => continue,
        };
        lines.extend(
            fixture
                .lines(&format!("t::text FROM {} t WHERE {column} <> {user} ORDER BY 1", entry.name()))
                .await,
        );
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn all_rows_of_one_person_are_deleted_and_counted_and_none_of_another() {
    const PERSON: i32 = 42;
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) VALUES (42, 'u', 'e'), (420, 'u', 'e'), (4, 'u', 'e')",
        )
        .await;
    for user in [PERSON, 420, 4] {
        fill(&fixture, user, "text-").await;
    }
    let before = counts(&fixture, PERSON).await;
    assert!(before.values().all(|number| *number > 0), "each table is filled: {before:?}");
    let of_others = others(&fixture, PERSON).await;

    let mut db = fixture.connection().await;
    let user = UserId::new(PERSON).expect("an id");
    let new =
        NewRequest { removal: Removal::Erase, service: "operator".to_owned(), reason: "a letter".to_owned() };
    let filed = request::submit(&mut db, user, new).await.expect("a request");
    let run = Uuid::new_v4();
    let mut claimed =
        request::claim(&mut db, run, Some(filed.id)).await.expect("an answer").expect("the request");
    claimed.progress.before = before.clone();
    fence(&fixture, &mut claimed).await;
    request::commit_step(&mut db, &mut claimed, Some(Step::Rows)).await.expect("a step");
    let key = PrivateKey::generate("receipts").expect("a key");
    rows::erase(&mut db, &key, &mut claimed).await.expect("an erasure");

    assert_eq!(claimed.progress.deleted, before);
    let left = counts(&fixture, PERSON).await;
    assert!(left.values().all(|number| *number == 0), "{left:?}");
    assert_eq!(others(&fixture, PERSON).await, of_others);
    assert!(counts(&fixture, 420).await.values().all(|number| *number > 0), "arrays, too");
    assert_eq!(fixture.count("audit.erasures").await, 1, "the events are stated");
    let stored =
        "progress -> 'deleted' ->> 'blackboard_events' FROM privacy_requests WHERE request_type = 'erase'";
    assert_eq!(fixture.lines(stored).await, ["3"]);
    // Again, as after a crash: nothing is counted twice.
    rows::erase(&mut db, &key, &mut claimed).await.expect("nothing to do");
    assert_eq!(claimed.progress.deleted, before);
}

/// A row that is not where it was counted, or was not counted, stops the erasure.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_do_not_agree_are_an_error() {
    let fixture = Fixture::new().await;
    fixture.execute("INSERT INTO users (id, username, email) VALUES (42, 'u', 'e')").await;
    let mut db = fixture.connection().await;
    let user = UserId::new(42).expect("an id");
    let new =
        NewRequest { removal: Removal::Erase, service: "operator".to_owned(), reason: "a letter".to_owned() };
    let filed = request::submit(&mut db, user, new).await.expect("a request");
    let mut claimed = request::claim(&mut db, Uuid::new_v4(), Some(filed.id))
        .await
        .expect("an answer")
        .expect("the request");
    claimed.progress.before = counts(&fixture, 42).await;
    fence(&fixture, &mut claimed).await;
    request::commit_step(&mut db, &mut claimed, Some(Step::Rows)).await.expect("a step");
    let uncounted = "INSERT INTO user_profiles (id, user_id) VALUES (gen_random_uuid(), 42)";
    fixture.execute(uncounted).await;
    let key = PrivateKey::generate("receipts").expect("a key");
    let problem = rows::erase(&mut db, &key, &mut claimed).await.expect_err("a difference").to_string();
    assert!(problem.starts_with("user_profiles: 1 of 0 rows were deleted, and 0 are left"), "{problem}");
}
