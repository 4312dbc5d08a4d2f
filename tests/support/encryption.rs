//! Encrypted fields, as somebody with a user's context reads them.

use std::time::Duration;

use contract::UserId;
use diesel_async::AsyncConnection as _;
use keys::{Encrypted, Grants, Keys};
use secrecy::{ExposeSecret as _, SecretString};
use store::Fault;
use testkit::Fixture;
use testkit::attack::{grant, login};
use uuid::Uuid;

use super::ROLE;

/// The keys of a replica that has none in its cache yet.
fn open_keys(fixture: &Fixture) -> Keys {
    Keys::open(&fixture.settings.keys, ROLE, "test", Duration::from_secs(5)).expect("keys")
}

/// Every encrypted field of a user in these tables, after its `table.column`: its value, or why it does not open.
pub async fn revealed(
    fixture: &Fixture,
    user_id: i32,
    tables: &[&str],
) -> Vec<(String, Result<String, String>)> {
    let rows = fixture.lines("row_id FROM encrypted_fields GROUP BY row_id").await;
    let rows: Vec<Uuid> = rows.iter().map(|id| id.parse().expect("an id")).collect();
    let (mut reader, grant) = (login(fixture, ROLE).await, grant(user_id, ROLE));
    let loaded: Result<Vec<Encrypted>, Fault> = reader
        .transaction(async |reader| {
            store::security::open_context(reader, &[&grant]).await?;
            let mut all = Vec::new();
            for table in tables {
                all.extend(keys::load_fields(reader, table, &rows).await?);
            }
            Ok(all)
        })
        .await;
    let fields = loaded.expect("fields");
    let grants = Grants::from([(UserId::new(user_id).expect("a user"), grant.as_str())]);
    let values = open_keys(fixture).decrypt(&fields, &grants).await.expect("keys");
    let value = |value: Result<SecretString, String>| value.map(|value| value.expose_secret().to_owned());
    let name = |field: &Encrypted| format!("{}.{}", field.table, field.column);
    fields.iter().zip(values).map(|(field, one)| (name(field), value(one))).collect()
}

/// One encrypted field of a user in clear.
pub async fn revealed_field(fixture: &Fixture, user_id: i32, table: &str, column: &str, row: Uuid) -> String {
    let (mut reader, grant) = (login(fixture, ROLE).await, grant(user_id, ROLE));
    let loaded: Result<Vec<Encrypted>, Fault> = reader
        .transaction(async |reader| {
            store::security::open_context(reader, &[&grant]).await?;
            keys::load_fields(reader, table, &[row]).await
        })
        .await;
    let fields: Vec<Encrypted> =
        loaded.expect("fields").into_iter().filter(|field| field.column == column).collect();
    let grants = Grants::from([(UserId::new(user_id).expect("a user"), grant.as_str())]);
    let values = open_keys(fixture).decrypt(&fields, &grants).await.expect("keys");
    let value = values.into_iter().next().expect("an encrypted field").expect("a readable one");
    value.expose_secret().to_owned()
}
