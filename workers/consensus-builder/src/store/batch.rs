//! What the statements of this worker share.

use std::collections::HashMap;
use std::hash::Hash;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault, FaultKind};
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Integer};
use diesel_async::RunQueryDsl;
use runtime::Verdict;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use crate::Message;

/// A request of a batch.
#[derive(Debug)]
pub(crate) struct Item<'a, T> {
    /// Its place in the batch.
    pub index: usize,
    pub message: &'a Message,
    pub request: &'a T,
}

impl<T> Clone for Item<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Item<'_, T> {}

impl<T> Item<'_, T> {
    pub fn user(&self) -> i32 {
        self.message.user_id().get()
    }
}

/// The verdicts of a batch. What has none in the end lacks its prerequisite.
pub(crate) struct Verdicts(Vec<Option<Verdict>>);

impl Verdicts {
    pub fn new(count: usize) -> Self {
        Self(vec![None; count])
    }

    pub fn set(&mut self, index: usize, verdict: Verdict) {
        if let Some(place) = self.0.get_mut(index) {
            *place = Some(verdict);
        }
    }

    /// Sets that of a request whose statement found its prerequisite.
    pub fn written<T>(&mut self, item: &Item<'_, T>, is_written: bool) {
        let verdict =
            if is_written { Verdict::applied(item.message) } else { Verdict::unchanged(item.message) };
        self.set(item.index, verdict);
    }

    pub fn finish(self, batch: &[&Message]) -> Vec<Verdict> {
        let verdict = |(verdict, message): (Option<Verdict>, &&Message)| {
            verdict.unwrap_or_else(|| Verdict::missing_prerequisite(message))
        };
        self.0.into_iter().zip(batch).map(verdict).collect()
    }
}

/// Splits items so that no key occurs twice in a round: the second request for a key is in the second round.
pub(crate) fn rounds<'i, I, K: Eq + Hash>(items: &'i [I], key: impl Fn(&'i I) -> K) -> Vec<Vec<&'i I>> {
    let mut seen: HashMap<K, usize> = HashMap::new();
    let mut rounds: Vec<Vec<&'i I>> = Vec::new();
    for item in items {
        let round = seen.entry(key(item)).or_default();
        if *round == rounds.len() {
            rounds.push(Vec::new());
        }
        rounds[*round].push(item);
        *round += 1;
    }
    rounds
}

/// Of a row whose prerequisite exists: its place among the rows of the statement, and whether it was written.
#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Integer)]
    ordinal: i32,
    #[diesel(sql_type = Bool)]
    is_written: bool,
}

/// Runs a statement that takes rows and returns an answer (`ordinal`, `is_written`) for each of them whose prerequisite
/// exists. Returns the items that were written.
pub(crate) async fn apply<'a, T, R: UnnestRow + 'a, K: Eq + Hash>(
    connection: &mut Connection,
    sql: &str,
    items: &[Item<'a, T>],
    key: impl Fn(&Item<'a, T>) -> K,
    row: impl Fn(&Item<'a, T>) -> R,
    verdicts: &mut Verdicts,
) -> Result<Vec<Item<'a, T>>, Fault> {
    let mut written = Vec::new();
    for round in rounds(items, key) {
        let rows: Vec<R> = round.iter().map(|&item| row(item)).collect();
        let answers: Vec<Answer> = with_rows(sql, rows).load(connection).await?;
        for Answer { ordinal, is_written } in answers {
            let Some(item) = usize::try_from(ordinal).ok().and_then(|place| round.get(place)) else {
                continue;
            };
            verdicts.written(item, is_written);
            if is_written {
                written.push(**item);
            }
        }
    }
    Ok(written)
}

/// Computes while the other tasks of the runtime go on.
pub(crate) fn computed<T>(compute: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    let has_threads = Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    if has_threads { block_in_place(compute) } else { compute() }
}

/// A statement between two computations: PostgreSQL ends a transaction that is idle for ten seconds, which is longer than one task takes.
pub(crate) async fn keep_alive(connection: &mut Connection) -> Result<(), Fault> {
    ::store::prepared(diesel::sql_query("SELECT 1")).execute(connection).await?;
    Ok(())
}

/// Another transaction was faster: this one is tried again and sees what that one wrote.
pub(crate) fn overtaken(what: &str) -> Fault {
    Fault { kind: FaultKind::Transient, reason: format!("another transaction wrote {what} at the same time") }
}

/// The error of a computation that cannot fail for what was checked when it came.
pub(crate) fn uncomputable(error: &impl std::fmt::Display) -> Fault {
    Fault { kind: FaultKind::Permanent, reason: format!("a consensus cannot be computed: {error}") }
}

/// A list as JSON.
pub(crate) fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    // Names and numbers always serialize.
    serde_json::to_string(value).unwrap_or_else(|_| "[]".to_owned())
}
