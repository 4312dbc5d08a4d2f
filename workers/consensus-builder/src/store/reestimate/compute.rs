//! The estimate of one kind of tasks. Arithmetic alone: it runs on a thread of its own, while no transaction is open.

use std::collections::{BTreeMap, HashMap};

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
    /// How many tasks it rests on.
    pub(super) count: usize,
    /// Those that no estimate had taken in, as they were then.
    pub(super) new: Vec<New>,
    /// The tasks about which the estimate says something else than before.
    pub(super) changed: Vec<EstimatedTask>,
    /// Of each agent: its right answers, its answers, and the sum of the confidences that it stated.
    pub(super) records: BTreeMap<String, Sums>,
    /// Older tasks are left out for good.
    pub(super) oldest: Option<DateTime<Utc>>,
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
            oldest: basis.oldest,
        };
        let groups: BTreeMap<Option<&str>, &[Closed]> =
            basis.tasks.iter().map(|(options, tasks)| (options.as_deref(), tasks.as_slice())).collect();
        for (options, tasks) in groups {
            result.add(basis, options, tasks, rules);
        }
        result
    }

    /// How many rows it writes.
    pub(super) fn rows(&self) -> usize {
        self.changed.len() + self.records.len()
    }

    fn add(&mut self, basis: &Basis, options: Option<&str>, tasks: &[Closed], rules: &ReliabilityRules) {
        let agents = Agents::of(basis, tasks);
        let answers = |task: &Closed| -> Vec<(u32, u32)> {
            let votes = task.votes.iter();
            votes.filter_map(|vote| Some((agents.number(vote.agent)?, vote.choice?))).collect()
        };
        let truth = |task: &Closed| task.truth.and_then(|truth| u32::try_from(truth).ok());
        let count = agents.names.len();
        let (probabilities, reliabilities) = match options {
            Some(options) => {
                let options = serde_json::from_str::<Vec<String>>(options).map_or(0, |options| options.len());
                let tasks: Vec<Task> =
                    tasks.iter().map(|task| Task { answers: answers(task), truth: truth(task) }).collect();
                let made = estimate(&tasks, count, options, &agents.groups, rules);
                (made.tasks, made.agents)
            }
            None => {
                let tasks: Vec<OpenTask> = tasks
                    .iter()
                    .map(|task| OpenTask { answers: answers(task), truth: truth(task) })
                    .collect();
                let made = estimate_open(&tasks, count, &agents.groups, rules);
                (made.tasks, made.agents)
            }
        };
        let mut confidences = vec![0.0; count];
        for (task, probabilities) in tasks.iter().zip(&probabilities) {
            if task.is_new {
                self.new.push(New { id: task.id, updated_at: task.updated_at });
            }
            self.changed.extend(EstimatedTask::new(task, probabilities));
            agents.add_confidences(task, probabilities, &mut confidences);
        }
        let records = agents.names.iter().zip(reliabilities).zip(confidences);
        for ((name, Reliability { answers, right, .. }), confidence) in records {
            let sums = self.records.entry((*name).to_owned()).or_default();
            sums.answers += answers;
            sums.right += right;
            sums.confidence += confidence;
        }
    }
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
}

impl<'a> Agents<'a> {
    fn of(basis: &'a Basis, tasks: &[Closed]) -> Self {
        let mut places: Vec<u32> =
            tasks.iter().flat_map(|task| task.votes.iter().map(|vote| vote.agent)).collect();
        places.sort_unstable();
        places.dedup();
        let name = |place: &u32| basis.agents.get(*place as usize).map_or("", String::as_str);
        places.sort_unstable_by_key(name);
        let names: Vec<&str> = places.iter().map(name).collect();
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
        Self { names, numbers, groups }
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
