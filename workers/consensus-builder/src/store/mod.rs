//! The worker's SQL. The steps of a batch follow each other in the order in which their rows depend on each other; so do their
//! locks: agents, conversations that are new, tasks, nodes, conversations that change.

pub(crate) mod agents;
pub(crate) mod batch;
pub(crate) mod budget;
pub(crate) mod close;
pub(crate) mod conversations;
pub(crate) mod deadline;
pub(crate) mod delegate;
pub(crate) mod knowledge;
pub(crate) mod nodes;
pub(crate) mod reestimate;
pub(crate) mod respond;
pub(crate) mod share;
pub(crate) mod task;
pub(crate) mod verdicts;

use std::collections::HashMap;

use ::store::{Connection, Fault};
use consensus::Rules;
use contract::{
    AgentConfigure, AgentProfile, AgentRetire, ConsensusRequest, ExpertConversationStart, KnowledgePropose,
    TaskDelegate, VerdictGive,
};
use runtime::Verdict;

use batch::{Item, Verdicts};
use conversations::{AllCounters, Move};
use knowledge::Relation;
use respond::Step;
use task::TaskKey;

use crate::prepare::Prepared;
use crate::{ConsensusItem, Message};

/// The requests of a part of a batch by their steps, each in the order of the stream.
#[derive(Default)]
struct Steps<'a> {
    configurations: Vec<Item<'a, AgentConfigure>>,
    retirements: Vec<Item<'a, AgentRetire>>,
    profiles: Vec<Item<'a, AgentProfile>>,
    starts: Vec<Item<'a, ExpertConversationStart>>,
    moves: Vec<Move<'a>>,
    delegations: Vec<Item<'a, TaskDelegate>>,
    tasks: Vec<Step<'a>>,
    proposals: Vec<Item<'a, KnowledgePropose>>,
    relations: Vec<(usize, &'a Message, Relation<'a>)>,
    verdicts: Vec<Item<'a, VerdictGive>>,
}

/// The requests of a batch in parts, in the order of the stream: a part ends with its verdicts, which come after what stands before
/// them and before what stands behind them.
fn parts<'a>(batch: &[&'a Message]) -> Vec<Steps<'a>> {
    let mut parts = vec![Steps::default()];
    let mut order: Vec<usize> = (0..batch.len()).collect();
    // What was delivered again may stand behind what came later.
    order.sort_by_key(|index| batch[*index].sequence);
    for index in order {
        let message = batch[index];
        let ConsensusItem::Request(request) = &message.request else { continue };
        let is_verdict = matches!(request, ConsensusRequest::VerdictGive(_));
        if !is_verdict && parts.last().is_none_or(|part| !part.verdicts.is_empty()) {
            parts.push(Steps::default());
        }
        if let Some(part) = parts.last_mut() {
            part.add(index, message, request);
        }
    }
    parts
}

impl<'a> Steps<'a> {
    fn add(&mut self, index: usize, message: &'a Message, request: &'a ConsensusRequest) {
        macro_rules! item {
            ($request:ident) => {
                Item { index, message, request: $request }
            };
        }
        match request {
            ConsensusRequest::AgentConfigure(request) => self.configurations.push(item!(request)),
            ConsensusRequest::AgentRetire(request) => self.retirements.push(item!(request)),
            ConsensusRequest::AgentProfile(request) => self.profiles.push(item!(request)),
            ConsensusRequest::ExpertConversationStart(request) => self.starts.push(item!(request)),
            ConsensusRequest::ExpertConversationPhase(request) => {
                let (session, phase) = (request.session_id.as_str(), request.phase);
                self.moves.push(Move { index, message, session, phase });
            }
            ConsensusRequest::ExpertConversationEnd(request) => {
                let (session, phase) = (request.session_id.as_str(), request.outcome.phase());
                self.moves.push(Move { index, message, session, phase });
            }
            ConsensusRequest::TaskDelegate(request) => self.delegations.push(item!(request)),
            ConsensusRequest::TaskCancel(request) => self.tasks.push(Step::Cancel(item!(request))),
            ConsensusRequest::ResponseSubmit(request) => self.tasks.push(Step::Respond(item!(request))),
            ConsensusRequest::KnowledgePropose(request) => self.proposals.push(item!(request)),
            ConsensusRequest::RelationPut(put) => self.relations.push((index, message, Relation::Put(put))),
            ConsensusRequest::RelationRemove(remove) => {
                self.relations.push((index, message, Relation::Remove(remove)));
            }
            ConsensusRequest::VerdictGive(request) => self.verdicts.push(item!(request)),
        }
    }
}

/// Writes a batch of requests.
pub(crate) async fn write(
    connection: &mut Connection,
    rules: &Rules,
    batch: &[&Message],
    prepared: &Prepared,
) -> Result<Vec<Verdict>, Fault> {
    let parts = parts(batch);
    let mut verdicts = Verdicts::new(batch.len());
    let mut counters = AllCounters::new();
    let judged: Vec<_> = parts.iter().flat_map(|part| part.verdicts.iter().copied()).collect();
    // All tasks are locked with the first part, before a node is.
    let mut tasks = verdicts::tasks(connection, &judged).await?;
    verdicts::check_work(connection, &tasks).await?;
    tasks.extend(parts.iter().flat_map(|part| part.tasks.iter().map(Step::task)));
    for part in &parts {
        write_part(connection, rules, part, &tasks, prepared, &mut counters, &mut verdicts).await?;
        tasks.clear();
    }
    let moves: Vec<Move<'_>> = parts.into_iter().flat_map(|part| part.moves).collect();
    conversations::advance(connection, &moves, &counters, &mut verdicts).await?;
    Ok(verdicts.finish(batch))
}

async fn write_part(
    connection: &mut Connection,
    rules: &Rules,
    part: &Steps<'_>,
    more_tasks: &[TaskKey],
    prepared: &Prepared,
    counters: &mut AllCounters,
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    agents::configure(connection, &part.configurations, verdicts).await?;
    agents::retire(connection, &part.retirements, verdicts).await?;
    agents::profile(connection, &part.profiles, verdicts).await?;
    conversations::start(connection, &part.starts, verdicts).await?;
    delegate::delegate(connection, &part.delegations, counters, verdicts).await?;
    let tasks = respond::respond(connection, &part.tasks, more_tasks, prepared, verdicts).await?;
    let closings: Vec<_> = tasks.closings.iter().map(|(_, closing)| closing.clone()).collect();
    let mut closed = close::close(connection, rules, &closings, counters).await?;
    let closers: HashMap<usize, TaskKey> =
        tasks.closings.iter().map(|(index, closing)| (*index, (closing.user_id, closing.task_id))).collect();
    for (index, mut events) in tasks.applied {
        let own = closers.get(&index).and_then(|task| closed.remove(task));
        events.extend(own.unwrap_or_default());
        verdicts.set(index, Verdict::Applied(events));
    }
    knowledge::propose(connection, &part.proposals, verdicts).await?;
    let relations: Vec<Item<'_, Relation<'_>>> = part
        .relations
        .iter()
        .map(|(index, message, request)| Item { index: *index, message, request })
        .collect();
    knowledge::relate(connection, &relations, verdicts).await?;
    verdicts::give(connection, rules, &part.verdicts, verdicts).await
}
