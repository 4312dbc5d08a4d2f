//! A plain evaluation of policies and holds, without a database.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

/// What becomes of the rows of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Delete,
    Anonymise,
    Archive,
}

impl Action {
    /// Its name in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Anonymise => "anonymise",
            Self::Archive => "archive",
        }
    }
}

/// Rows of a table: of a user, of a chat mode and of an access tier. In a policy or a hold, user 0 means all users, and `None` all modes or
/// tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub user: i32,
    pub table: &'static str,
    pub mode: Option<&'static str>,
    pub tier: Option<&'static str>,
}

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy {
    pub of: Kind,
    pub days: i64,
    pub action: Action,
}

/// A legal hold.
#[derive(Clone, Debug)]
pub struct Hold {
    pub user: i32,
    pub table: Option<&'static str>,
    pub mode: Option<&'static str>,
    pub tier: Option<&'static str>,
}

/// A row of chat_mode_sessions.
#[derive(Clone, Debug)]
pub struct Session {
    pub user: i32,
    pub mode: &'static str,
    pub ended_at: Option<DateTime<Utc>>,
}

/// A row of simple_chat_context.
#[derive(Clone, Debug)]
pub struct Context {
    pub session: Uuid,
    pub tier: &'static str,
    pub is_persistent: bool,
    pub expires_at: Option<DateTime<Utc>>,
    pub removed_at: Option<DateTime<Utc>>,
}

/// A row of router_decision_log.
#[derive(Clone, Debug)]
pub struct Decision {
    pub session: Uuid,
    pub created_at: DateTime<Utc>,
    pub is_anonymised: bool,
}

/// What a row is, for comparisons.
pub fn line(id: Uuid, what: &str, state: Option<&str>) -> String {
    format!("{id} {what}{}{}", if state.is_some() { " " } else { "" }, state.unwrap_or_default())
}

impl Context {
    fn line(&self, id: Uuid) -> String {
        line(id, "context", self.removed_at.is_some().then_some("empty"))
    }
}

impl Decision {
    fn line(&self, id: Uuid) -> String {
        line(id, "decision", self.is_anonymised.then_some("anonymised"))
    }
}

/// What the rows are, and what the policies say of them.
#[derive(Default)]
pub struct Model {
    pub policies: Vec<Policy>,
    pub holds: Vec<Hold>,
    pub sessions: BTreeMap<Uuid, Session>,
    pub contexts: BTreeMap<Uuid, Context>,
    pub decisions: BTreeMap<Uuid, Decision>,
    /// The rows that archives have, as they were.
    pub archived: BTreeSet<String>,
}

impl Model {
    /// Sets a policy, in the place of the one of the same rows.
    pub fn put(&mut self, policy: Policy) {
        self.remove(policy.of);
        self.policies.push(policy);
    }

    /// Removes the policy of these rows.
    pub fn remove(&mut self, of: Kind) {
        self.policies.retain(|policy| policy.of != of);
    }

    /// Makes everything older.
    pub fn move_back(&mut self, by: TimeDelta) {
        let moved = |time: &mut Option<DateTime<Utc>>| *time = time.map(|time| time - by);
        for session in self.sessions.values_mut() {
            moved(&mut session.ended_at);
        }
        for context in self.contexts.values_mut() {
            moved(&mut context.expires_at);
            moved(&mut context.removed_at);
        }
        for decision in self.decisions.values_mut() {
            decision.created_at -= by;
        }
    }

    fn is_held(&self, of: Kind) -> bool {
        self.holds.iter().any(|hold| {
            [0, of.user].contains(&hold.user)
                && hold.table.is_none_or(|table| table == of.table)
                && (hold.mode.is_none() || hold.mode == of.mode)
                && (hold.tier.is_none() || hold.tier == of.tier)
        })
    }

    fn rule(&self, of: Kind) -> Option<&Policy> {
        let applies = |policy: &&Policy| {
            [0, of.user].contains(&policy.of.user)
                && policy.of.table == of.table
                && (policy.of.mode.is_none() || policy.of.mode == of.mode)
                && (policy.of.tier.is_none() || policy.of.tier == of.tier)
        };
        let rank =
            |policy: &&Policy| (policy.of.user != 0, policy.of.mode.is_some(), policy.of.tier.is_some());
        (!self.is_held(of)).then(|| self.policies.iter().filter(applies).max_by_key(rank)).flatten()
    }

    /// What is to be done with a row whose time is counted from `since`.
    fn due(&self, at: DateTime<Utc>, since: Option<DateTime<Utc>>, of: Kind) -> Option<Action> {
        let (since, rule) = since.zip(self.rule(of))?;
        (since <= at - TimeDelta::days(rule.days)).then_some(rule.action)
    }

    /// Sweeps until nothing is left to do. Without `archives`, rows that are to be archived stay, unless they are old tombstones.
    pub fn sweep(&mut self, at: DateTime<Utc>, archives: bool) {
        self.sweep_contexts(at, archives);
        self.sweep_decisions(at, archives);
        self.sweep_sessions(at, archives);
    }

    /// Archiving comes before tombstones are deleted, and a value that has expired is not archived: its empty row is.
    fn sweep_contexts(&mut self, at: DateTime<Utc>, archives: bool) {
        for (id, mut context) in self.contexts.clone() {
            let of = &self.sessions[&context.session];
            let (mode, tier) = (Some(of.mode), Some(context.tier));
            let kind = Kind { user: of.user, table: "simple_chat_context", mode, tier };
            let tombstone = Kind { user: of.user, table: "tombstones", mode: None, tier: None };
            let is_old = self.due(at, context.removed_at, tombstone).is_some();
            let expires = context.removed_at.is_none() && context.expires_at.is_some_and(|time| time <= at);
            if expires && !self.is_held(kind) {
                (context.expires_at, context.removed_at) = (None, Some(at));
            }
            let action = self.due(at, of.ended_at, kind).filter(|_| !context.is_persistent);
            let is_archived = archives && action == Some(Action::Archive);
            if is_archived {
                self.archived.insert(context.line(id));
            }
            if is_archived || is_old || action == Some(Action::Delete) {
                self.contexts.remove(&id);
            } else {
                self.contexts.insert(id, context);
            }
        }
    }

    fn sweep_decisions(&mut self, at: DateTime<Utc>, archives: bool) {
        for (id, decision) in self.decisions.clone() {
            let of = &self.sessions[&decision.session];
            let kind = Kind { user: of.user, table: "router_decision_log", mode: Some(of.mode), tier: None };
            match self.due(at, Some(decision.created_at), kind) {
                Some(Action::Anonymise) => {
                    self.decisions.insert(id, Decision { is_anonymised: true, ..decision });
                }
                Some(Action::Delete) => {
                    self.decisions.remove(&id);
                }
                Some(Action::Archive) if archives => {
                    self.archived.insert(decision.line(id));
                    self.decisions.remove(&id);
                }
                Some(Action::Archive) | None => {}
            }
        }
    }

    fn sweep_sessions(&mut self, at: DateTime<Utc>, archives: bool) {
        for (id, session) in self.sessions.clone() {
            let is_needed = self.contexts.values().any(|context| context.session == id)
                || self.decisions.values().any(|decision| decision.session == id);
            let kind = Kind {
                user: session.user,
                table: "chat_mode_sessions",
                mode: Some(session.mode),
                tier: None,
            };
            match self.due(at, session.ended_at, kind).filter(|_| !is_needed) {
                Some(Action::Delete) => {
                    self.sessions.remove(&id);
                }
                Some(Action::Archive) if archives => {
                    self.archived.insert(line(id, "session", None));
                    self.sessions.remove(&id);
                }
                Some(Action::Archive | Action::Anonymise) | None => {}
            }
        }
    }

    /// What is left in the tables.
    pub fn lines(&self) -> BTreeSet<String> {
        let contexts = self.contexts.iter().map(|(id, context)| context.line(*id));
        let decisions = self.decisions.iter().map(|(id, decision)| decision.line(*id));
        let sessions = self.sessions.keys().map(|id| line(*id, "session", None));
        contexts.chain(decisions).chain(sessions).collect()
    }
}
