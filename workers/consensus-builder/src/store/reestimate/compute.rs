//! The estimate of one kind of tasks. Arithmetic alone: it runs on a thread of its own, while no transaction is open.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use consensus::ReliabilityRules;
use consensus::reliability::{OpenTask, Reliability, Task, estimate, estimate_open, most_probable};
use uuid::Uuid;

use super::read::{Basis, Closed};

/// A smaller change of the probability of a task's answer is not written.
const CHANGE: f64 = 0.001;

/// The estimate of one kind of tasks.
#[derive(Debug)]
pub(crate) struct Estimated {
    pub(super) user_id: i32,
    pub(super) task_kind: String,
    /// How many tasks the records rest on.
    pub(super) count: usize,
    /// Those that no estimate had taken in, as they were then.
    pub(super) new: Vec<New>,
    /// The tasks about which the estimate says something else than before.
    pub(super) changed: Vec<EstimatedTask>,
    /// Of each agent: its right answers, its answers, and the sum of the confidences that it stated.
    pub(super) records: BTreeMap<String, Sums>,
}

/// A task that an estimate takes in for the first time.
#[derive(Clone, Copy, Debug)]
pub(super) struct New {
    pub id: Uuid,
    pub updated_at: DateTime<Utc>,
}

#[derive(Debug)]
pub(super) struct EstimatedTask {
    pub id: Uuid,
    pub answer: Option<i32>,
    pub probability: Option<f64>,
    pub updated_at: DateTime<Utc>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub right: f64,
    pub answers: f64,
    pub confidence: f64,
}

impl Estimated {
    /// Tasks with the same options are estimated together, and so are those without.
    pub(super) fn new(basis: &Basis, rules: &ReliabilityRules) -> Self {
        let mut result = Self {
            user_id: basis.due.user_id,
            task_kind: basis.due.task_kind.clone(),
            count: basis.tasks.values().map(Vec::len).sum(),
            new: Vec::new(),
            changed: Vec::new(),
            records: BTreeMap::new(),
        };
        let all: BTreeSet<&Option<String>> = basis.tasks.keys().chain(basis.older.keys()).collect();
        let none: &[Closed] = &[];
        for options in all {
            let tasks = basis.tasks.get(options).map_or(none, Vec::as_slice);
            let older = basis.older.get(options).map_or(none, Vec::as_slice);
            result.add(basis, options.as_deref(), [tasks, older], rules);
        }
        result
    }

    /// How many rows it writes.
    pub(super) fn rows(&self) -> usize {
        self.changed.len() + self.records.len()
    }

    /// Adds what is found of the newest tasks with these options, and of older ones that are due.
    fn add(
        &mut self,
        basis: &Basis,
        options: Option<&str>,
        [tasks, older]: [&[Closed]; 2],
        rules: &ReliabilityRules,
    ) {
        let agents = Agents::of(basis, tasks, older);
        let found = match options {
            Some(options) => {
                let options = serde_json::from_str::<Vec<String>>(options).map_or(0, |options| options.len());
                Found::with_options(options, tasks, older, &agents, rules)
            }
            None => Found::without_options(tasks, older, &agents, rules),
        };
        let mut confidences = vec![0.0; agents.names.len()];
        for (task, probabilities) in tasks.iter().zip(&found.tasks) {
            self.add_task(task, probabilities);
            agents.add_confidences(task, probabilities, &mut confidences);
        }
        older.iter().zip(&found.older).for_each(|(task, probabilities)| self.add_task(task, probabilities));
        let records = agents.names.iter().zip(found.agents).zip(confidences).zip(&agents.are_newest);
        for (((name, Reliability { answers, right, .. }), confidence), is_newest) in records {
            // Nothing is said of an agent that answered none of the newest tasks: its record stays.
            if *is_newest {
                let sums = self.records.entry((*name).to_owned()).or_default();
                sums.answers += answers;
                sums.right += right;
                sums.confidence += confidence;
            }
        }
    }

    fn add_task(&mut self, task: &Closed, probabilities: &[f64]) {
        if task.is_new {
            self.new.push(New { id: task.id, updated_at: task.updated_at });
        }
        self.changed.extend(EstimatedTask::new(task, probabilities));
    }
}

/// Of each task, the probability of each answer; and the agents.
struct Found {
    tasks: Vec<Vec<f64>>,
    older: Vec<Vec<f64>>,
    agents: Vec<Reliability>,
}

impl Found {
    fn with_options(
        options: usize,
        tasks: &[Closed],
        older: &[Closed],
        agents: &Agents<'_>,
        rules: &ReliabilityRules,
    ) -> Self {
        let task = |task: &Closed| Task { answers: agents.answers(task), truth: truth(task) };
        let tasks: Vec<Task> = tasks.iter().map(task).collect();
        let made = estimate(&tasks, agents.names.len(), options, &agents.groups, rules);
        let older = older.iter().map(|one| made.judge(&task(one), &agents.groups, rules)).collect();
        Self { tasks: made.tasks, older, agents: made.agents }
    }

    fn without_options(
        tasks: &[Closed],
        older: &[Closed],
        agents: &Agents<'_>,
        rules: &ReliabilityRules,
    ) -> Self {
        let task = |task: &Closed| OpenTask { answers: agents.answers(task), truth: truth(task) };
        let tasks: Vec<OpenTask> = tasks.iter().map(task).collect();
        let made = estimate_open(&tasks, agents.names.len(), &agents.groups, rules);
        let older = older.iter().map(|one| made.judge(&task(one), &agents.groups)).collect();
        Self { tasks: made.tasks, older, agents: made.agents }
    }
}

fn truth(task: &Closed) -> Option<u32> {
    task.truth.and_then(|truth| u32::try_from(truth).ok())
}

impl EstimatedTask {
    /// None if it says what was said before.
    fn new(task: &Closed, probabilities: &[f64]) -> Option<Self> {
        // A tie has no answer.
        let (answer, probability) = match most_probable(probabilities).as_slice() {
            [place] => (i32::try_from(*place).ok(), probabilities.get(*place).copied()),
            [] | [_, ..] => (None, None),
        };
        let probability = probability.map(|probability| probability.clamp(0.0, 1.0));
        let moved = match (probability, task.estimated_probability) {
            (Some(new), Some(old)) => (new - old).abs() > CHANGE,
            (new, old) => new.is_some() != old.is_some(),
        };
        let is_changed = task.is_new || moved || answer != task.estimated_answer;
        is_changed.then_some(Self { id: task.id, answer, probability, updated_at: task.updated_at })
    }
}

/// The agents of some tasks, numbered in the order of their names.
struct Agents<'a> {
    names: Vec<&'a str>,
    /// By their place in [`Basis::agents`]; None for those that are not among these.
    numbers: Vec<Option<u32>>,
    /// The family of each.
    groups: Vec<u32>,
    /// Whether it answered one of the newest tasks.
    are_newest: Vec<bool>,
}

impl<'a> Agents<'a> {
    fn of(basis: &'a Basis, tasks: &[Closed], older: &[Closed]) -> Self {
        let newest = voters(tasks);
        let mut places = [newest.as_slice(), voters(older).as_slice()].concat();
        places.sort_unstable();
        places.dedup();
        let name = |place: &u32| basis.agents.get(*place as usize).map_or("", String::as_str);
        places.sort_unstable_by_key(name);
        let names: Vec<&str> = places.iter().map(name).collect();
        let are_newest = places.iter().map(|place| newest.binary_search(place).is_ok()).collect();
        let mut numbers = vec![None; basis.agents.len()];
        for (place, number) in places.into_iter().zip(0..) {
            if let Some(held) = numbers.get_mut(place as usize) {
                *held = Some(number);
            }
        }
        // Agents that declare no family are one.
        let mut known: HashMap<Option<&str>, u32> = HashMap::new();
        let groups = names
            .iter()
            .map(|name| {
                let next = u32::try_from(known.len()).unwrap_or(u32::MAX);
                *known.entry(basis.families.get(*name).map(String::as_str)).or_insert(next)
            })
            .collect();
        Self { names, numbers, groups, are_newest }
    }

    /// Who gave which answer to a task.
    fn answers(&self, task: &Closed) -> Vec<(u32, u32)> {
        task.votes.iter().filter_map(|vote| Some((self.number(vote.agent)?, vote.choice?))).collect()
    }

    fn number(&self, place: u32) -> Option<u32> {
        self.numbers.get(place as usize).copied().flatten()
    }

    /// Adds the confidences of a task's votes to the sums of its agents. An agent that states none counts as one whose confidence is
    /// always right.
    fn add_confidences(&self, task: &Closed, probabilities: &[f64], sums: &mut [f64]) {
        for vote in &task.votes {
            let (Some(choice), Some(number)) = (vote.choice, self.number(vote.agent)) else {
                continue;
            };
            let confidence = vote.confidence.or(probabilities.get(choice as usize).copied());
            if let Some(sum) = sums.get_mut(number as usize) {
                *sum += confidence.unwrap_or_default();
            }
        }
    }
}

/// The places of the agents that voted, each once, in order.
fn voters(tasks: &[Closed]) -> Vec<u32> {
    let mut places: Vec<u32> =
        tasks.iter().flat_map(|task| task.votes.iter().map(|vote| vote.agent)).collect();
    places.sort_unstable();
    places.dedup();
    places
}
