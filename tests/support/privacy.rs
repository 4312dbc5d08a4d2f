//! A person with a row in each table that has rows of users.

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
