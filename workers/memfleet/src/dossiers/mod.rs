//! Stored dossiers, and whether they are what the responses and the rules give.
//!
//! A node of consensus has a dossier, the dossier has inputs, and the inputs are rows of other tables. [`check`] recomputes
//! the dossier from the inputs, to the same bytes, and compares the inputs with the rows and the node with the dossier. So a
//! change at any one of these places is found, and named.

mod check;
mod load;

use consensus::Rules;
use contract::UserId;
use serde::Serialize;
use store::{Connection, Fault};
use uuid::Uuid;

pub use load::{Key, find, stored};

/// The most findings that a report lists. All are counted.
const MAX_FINDINGS: usize = 1_000;

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The user.
    pub user: i32,
    /// The node.
    pub node: Uuid,
    /// What differs.
    pub difference: String,
}

/// What was verified, and what differs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Nodes verified.
    pub nodes: u64,
    /// Nodes with a difference.
    pub differing: u64,
    /// The differences of the first of these.
    pub findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, key: Key, differences: Vec<String>) {
        self.nodes += 1;
        self.differing += u64::from(!differences.is_empty());
        let finding = |difference| Finding { user: key.user, node: key.node, difference };
        let room = MAX_FINDINGS.saturating_sub(self.findings.len());
        self.findings.extend(differences.into_iter().take(room).map(finding));
    }
}

/// Verifies one node.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn verify_one(connection: &mut Connection, key: Key, rules: &Rules) -> Result<Report, Fault> {
    let mut report = Report::default();
    verify_into(&mut report, connection, key, rules).await?;
    Ok(report)
}

/// Verifies every node that agents were asked about, of one user or of all. Each node is read in a transaction of its own, so
/// that the fleet may go on, and memory is needed for one at a time.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn verify_all(
    connection: &mut Connection,
    user: Option<UserId>,
    rules: &Rules,
) -> Result<Report, Fault> {
    let mut report = Report::default();
    let mut after = None;
    loop {
        let keys = load::keys(connection, user, after).await?;
        let Some(last) = keys.last() else { return Ok(report) };
        after = Some(*last);
        for key in keys {
            verify_into(&mut report, connection, key, rules).await?;
        }
    }
}

async fn verify_into(
    report: &mut Report,
    connection: &mut Connection,
    key: Key,
    rules: &Rules,
) -> Result<(), Fault> {
    // A node that was removed since it was listed is not there to be verified.
    if let Some(held) = load::held(connection, key).await? {
        report.add(key, check::check(&held, rules));
    }
    Ok(())
}
