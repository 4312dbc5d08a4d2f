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

/// Where an agent works.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Session(Uuid),
    /// A conversation, and when it ended.
    Conversation(Option<DateTime<Utc>>),
    Nowhere,
}

/// A row of agent_context_states.
#[derive(Clone, Debug)]
pub struct AgentMemory {
    pub user: i32,
    pub place: Place,
    pub tier: &'static str,
    pub updated_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub removed_at: Option<DateTime<Utc>>,
}

/// A row of unified_memory_vectors.
#[derive(Clone, Debug)]
pub struct Memory {
    pub user: i32,
    pub session: Option<Uuid>,
    pub updated_at: DateTime<Utc>,
    pub removed_at: Option<DateTime<Utc>>,
}

/// A row of cross_service_memory_sync.
#[derive(Clone, Debug)]
pub struct Sync {
    pub source: Uuid,
    pub target: Uuid,
    pub completed_at: Option<DateTime<Utc>>,
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

impl AgentMemory {
    fn line(&self, id: Uuid) -> String {
        line(id, "agent", self.removed_at.is_some().then_some("empty"))
    }
}

impl Memory {
    fn line(&self, id: Uuid) -> String {
        line(id, "memory", self.removed_at.is_some().then_some("empty"))
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
    pub agents: BTreeMap<Uuid, AgentMemory>,
    pub memories: BTreeMap<Uuid, Memory>,
    pub syncs: BTreeMap<Uuid, Sync>,
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
        for agent in self.agents.values_mut() {
            moved(&mut agent.expires_at);
            moved(&mut agent.removed_at);
            agent.updated_at -= by;
            if let Place::Conversation(ended_at) = &mut agent.place {
                moved(ended_at);
            }
        }
        for memory in self.memories.values_mut() {
            moved(&mut memory.removed_at);
            memory.updated_at -= by;
        }
        for sync in self.syncs.values_mut() {
            moved(&mut sync.completed_at);
        }
    }

    fn mode(&self, session: Uuid) -> Option<&'static str> {
        self.sessions.get(&session).map(|session| session.mode)
    }

    /// Whether a sync still reads or writes the contexts of a session.
    fn is_synced(&self, session: Uuid) -> bool {
        self.syncs
            .values()
            .any(|sync| sync.completed_at.is_none() && [sync.source, sync.target].contains(&session))
    }

    /// Whether a row that was removed then is old enough to go.
    fn is_old(&self, at: DateTime<Utc>, user: i32, removed_at: Option<DateTime<Utc>>) -> bool {
        self.due(at, removed_at, Kind { user, table: "tombstones", mode: None, tier: None }).is_some()
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
        self.sweep_agents(at, archives);
        self.sweep_decisions(at, archives);
        self.sweep_memories(at);
        self.sweep_syncs(at);
        self.sweep_sessions(at, archives);
    }

    /// Archiving comes before tombstones are deleted, and a value that has expired is not archived: its empty row is.
    fn sweep_contexts(&mut self, at: DateTime<Utc>, archives: bool) {
        for (id, mut context) in self.contexts.clone() {
            let of = &self.sessions[&context.session];
            let (mode, tier) = (Some(of.mode), Some(context.tier));
            let kind = Kind { user: of.user, table: "simple_chat_context", mode, tier };
            let is_old = self.is_old(at, of.user, context.removed_at);
            let expires = context.removed_at.is_none() && context.expires_at.is_some_and(|time| time <= at);
            if expires && !self.is_held(kind) {
                (context.expires_at, context.removed_at) = (None, Some(at));
            }
            let stays = context.is_persistent || self.is_synced(context.session);
            let action = self.due(at, of.ended_at, kind).filter(|_| !stays);
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

    /// As contexts, if they are of a session. Of others, a row that is empty or has expired is no longer a memory.
    fn sweep_agents(&mut self, at: DateTime<Utc>, archives: bool) {
        for (id, mut agent) in self.agents.clone() {
            let has_expired = agent.removed_at.is_none() && agent.expires_at.is_some_and(|time| time <= at);
            let is_memory = agent.removed_at.is_none() && !has_expired;
            let (mode, since) = match agent.place {
                Place::Session(session) => {
                    let ended_at = self.sessions.get(&session).and_then(|session| session.ended_at);
                    (self.mode(session), ended_at.filter(|_| !self.is_synced(session)))
                }
                Place::Conversation(ended_at) => {
                    (None, ended_at.filter(|_| is_memory).map(|ended_at| ended_at.max(agent.updated_at)))
                }
                Place::Nowhere => (None, is_memory.then_some(agent.updated_at)),
            };
            let kind = Kind { user: agent.user, table: "agent_context_states", mode, tier: Some(agent.tier) };
            let is_old = self.is_old(at, agent.user, agent.removed_at);
            if has_expired && !self.is_held(kind) {
                (agent.expires_at, agent.removed_at) = (None, Some(at));
            }
            let action = self.due(at, since, kind);
            let is_archived = archives && action == Some(Action::Archive);
            if is_archived {
                self.archived.insert(agent.line(id));
            }
            if is_archived || is_old || action == Some(Action::Delete) {
                self.agents.remove(&id);
            } else {
                self.agents.insert(id, agent);
            }
        }
    }

    /// A memory becomes an empty row.
    fn sweep_memories(&mut self, at: DateTime<Utc>) {
        for (id, memory) in self.memories.clone() {
            let mode = memory.session.and_then(|session| self.mode(session));
            let kind = Kind { user: memory.user, table: "unified_memory_vectors", mode, tier: None };
            if self.is_old(at, memory.user, memory.removed_at) {
                self.memories.remove(&id);
            } else if memory.removed_at.is_none() && self.due(at, Some(memory.updated_at), kind).is_some() {
                self.memories.insert(id, Memory { removed_at: Some(at), ..memory });
            }
        }
    }

    fn sweep_syncs(&mut self, at: DateTime<Utc>) {
        for (id, sync) in self.syncs.clone() {
            let Some(source) = self.sessions.get(&sync.source) else { continue };
            let (user, mode) = (source.user, Some(source.mode));
            let kind = Kind { user, table: "cross_service_memory_sync", mode, tier: None };
            if self.due(at, sync.completed_at, kind).is_some() {
                self.syncs.remove(&id);
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
                || self.decisions.values().any(|decision| decision.session == id)
                || self.agents.values().any(|agent| matches!(agent.place, Place::Session(of) if of == id))
                || self.memories.values().any(|memory| memory.session == Some(id))
                || self.syncs.values().any(|sync| [sync.source, sync.target].contains(&id));
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
        let agents = self.agents.iter().map(|(id, agent)| agent.line(*id));
        let memories = self.memories.iter().map(|(id, memory)| memory.line(*id));
        let syncs = self.syncs.keys().map(|id| line(*id, "sync", None));
        contexts.chain(decisions).chain(sessions).chain(agents).chain(memories).chain(syncs).collect()
    }
}
