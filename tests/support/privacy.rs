//! A person with a row in each table that has rows of users.

use contract::UserId;
use privacy::restriction::{self, Asked, Meanwhile};
use testkit::Fixture;

/// The statements, with the words `USER` and `TEXT` where the id and a text go.
const PERSON: &str = include_str!("person.sql");

/// Gives a user, who is there, rows in all tables with rows of users but `users` and `archives`, whose rows name files. Each text of them
/// begins with `text`, which has no quotes. No worker must run that would take some of them for its work.
pub async fn fill(fixture: &Fixture, user: i32, text: &str) {
    fixture.execute(&person(user, text)).await;
}

/// The statements of [`fill`].
pub fn person(user: i32, text: &str) -> String {
    PERSON.replace("USER", &user.to_string()).replace("TEXT", text)
}

/// As an operator asks for a restriction or its lift.
pub fn asked() -> Asked {
    Asked { service: "operator".to_owned(), reason: Some("a letter".to_owned()) }
}

/// Restricts the processing of a user's data.
pub async fn restrict(fixture: &Fixture, user: i32, meanwhile: Meanwhile) {
    let (mut db, user) = (fixture.connection().await, UserId::new(user).expect("an id"));
    restriction::restrict(&mut db, user, Some(meanwhile), &asked()).await.expect("a restriction");
}

/// Lifts that.
pub async fn lift(fixture: &Fixture, user: i32) {
    let (mut db, user) = (fixture.connection().await, UserId::new(user).expect("an id"));
    restriction::lift(&mut db, user, &asked()).await.expect("a lift");
}
