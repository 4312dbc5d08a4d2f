//! Exports of persons by the program, and what is in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use privacy::access::Recipient;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use testkit::Fixture;

use super::erasure::{json, privacy};

/// A pair of keys of age.
pub struct Holder {
    /// The public key.
    pub public: String,
    /// The file with the private key.
    pub identity: String,
}

/// A new pair of keys, whose private key is in a file of this name.
pub fn holder(fixture: &Fixture, name: &str) -> Holder {
    let (recipient, private) = Recipient::generate();
    let identity = fixture.key_file(name, &format!("# a key\n{}\n", private.expose_secret()));
    Holder { public: recipient.public_key().expect("a key"), identity }
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// Exports a user into a folder, for a key. Gives what the program prints.
pub async fn export(fixture: &Fixture, user: i32, out: &Path, holder: &Holder, more: &[&str]) -> Value {
    let user = user.to_string();
    let arguments = ["access", &user, "--out", path(out), "--recipient", &holder.public];
    json(fixture, &[&arguments, more].concat()).await
}

/// The parts that an export printed.
pub fn parts(out: &Path, exported: &Value) -> Vec<PathBuf> {
    let parts = exported["parts"].as_array().expect("parts").iter();
    parts.map(|part| out.join(part["file"].as_str().expect("a name"))).collect()
}

/// Opens parts into a folder, which must succeed.
pub async fn opened(fixture: &Fixture, parts: &[PathBuf], holder: &Holder, into: &Path) -> Value {
    let files: Vec<&str> = parts.iter().map(|part| path(part)).collect();
    let arguments = ["open", "--identity", &holder.identity, "--out", path(into)];
    json(fixture, &[&arguments, files.as_slice()].concat()).await
}

/// Runs `memfleet privacy`, which must fail without a panic, and gives what it says.
pub async fn refused(fixture: &Fixture, arguments: &[&str]) -> String {
    let ended = privacy(fixture, arguments).await;
    assert_eq!(ended.code, Some(1), "{arguments:?}: {}", ended.all());
    assert!(!ended.err.contains("panicked"), "{}", ended.err);
    ended.err
}

/// The index of an export that was opened.
pub fn index(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("index.json")).expect("an index");
    serde_json::from_str(&text).expect("JSON")
}

/// The lines of a file of an export.
pub fn lines(folder: &Path, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// How many rows the index of an export has of each table, collection or stream of a store.
pub fn rows(index: &Value, store: &str) -> BTreeMap<String, i64> {
    let exported = index["exported"].as_array().expect("a list").iter();
    let of = exported.filter(|one| one["store"] == store);
    of.map(|one| (one["name"].as_str().expect("a name").to_owned(), one["rows"].as_i64().expect("a number")))
        .collect()
}

/// The reasons of what is left out of a store, by name and, after a space, what of it.
pub fn left_out(index: &Value, store: &str) -> BTreeMap<String, String> {
    let left_out = index["left_out"].as_array().expect("a list").iter();
    let of = left_out.filter(|one| one["store"] == store);
    of.map(|one| {
        let name = one["name"].as_str().expect("a name");
        let what = one["what"].as_str().map(|what| format!(" {what}")).unwrap_or_default();
        (format!("{name}{what}"), one["reason"].as_str().expect("a reason").to_owned())
    })
    .collect()
}
