//! Tasks without fixed options: only whether an agent was right is estimated.

use crate::{
    ReliabilityRules,
    reliability::{
        Reliability,
        batch::{latest, repeats},
        damped,
        model::normalise,
    },
};

/// A closed task whose answers were clustered.
#[derive(Clone, Debug, Default)]
pub struct OpenTask {
    /// Who gave which answer: the number of the agent, and that of the cluster.
    pub answers: Vec<(u32, u32)>,
    /// The cluster that a verdict confirmed.
    pub truth: Option<u32>,
}

/// What the closed tasks say about answers and agents.
#[derive(Clone, Debug)]
pub struct OpenEstimate {
    /// Of each task, the probability of each cluster; what is missing to one is that none is right.
    pub tasks: Vec<Vec<f64>>,
    /// The agents.
    pub agents: Vec<Reliability>,
}

impl OpenEstimate {
    /// The probability of each cluster of a task that was left out, by what is known of its agents. Empty without an answer.
    ///
    /// `groups` are those of the estimate.
    #[must_use]
    pub fn judge(&self, task: &OpenTask, groups: &[u32]) -> Vec<f64> {
        let mut votes = task_votes(task, self.agents.len(), groups);
        infer(&mut votes, &self.agents);
        votes.probabilities.pop();
        votes.probabilities
    }
}

struct Votes {
    answers: Vec<(u32, u32, u8)>,
    truth: Option<u32>,
    /// One for each cluster, and one for none of them.
    probabilities: Vec<f64>,
}

/// Estimates which clusters are right, and the reliability of `agents` agents, by a one-coin model: an agent is right with
/// its accuracy, and otherwise gives any other answer.
///
/// `groups` as for [`estimate`](super::estimate). Limits, too.
#[must_use]
pub fn estimate_open(
    tasks: &[OpenTask],
    agents: usize,
    groups: &[u32],
    rules: &ReliabilityRules,
) -> OpenEstimate {
    let mut votes = collect(tasks, agents, groups, rules);
    let mut estimate = vec![Reliability::default(); agents];
    for _ in 0..rules.iterations {
        count(&votes, &mut estimate, rules);
        let change = votes.iter_mut().map(|votes| infer(votes, &estimate)).fold(0.0, f64::max);
        if change < rules.tolerance {
            break;
        }
    }
    count(&votes, &mut estimate, rules);
    let skipped = tasks.len() - votes.len();
    let none = std::iter::repeat_n(Vec::new(), skipped);
    let probabilities = votes.into_iter().map(|mut votes| {
        votes.probabilities.pop();
        votes.probabilities
    });
    OpenEstimate { tasks: none.chain(probabilities).collect(), agents: estimate }
}

fn collect(tasks: &[OpenTask], agents: usize, groups: &[u32], rules: &ReliabilityRules) -> Vec<Votes> {
    let skipped = tasks.len().saturating_sub(rules.task_limit);
    let mut left = rules.answer_limit;
    let newest = tasks[skipped..].iter().rev().take_while(|task| {
        let fits = task.answers.len() <= left;
        left = left.saturating_sub(task.answers.len());
        fits
    });
    let mut votes: Vec<Votes> = newest.map(|task| task_votes(task, agents, groups)).collect();
    votes.reverse();
    votes
}

fn task_votes(task: &OpenTask, agents: usize, groups: &[u32]) -> Votes {
    // A task has at most one cluster for each answer, so a number beyond that is none.
    let limit = task.answers.len();
    let valid = |(agent, cluster): &(u32, u32)| (*agent as usize) < agents && (*cluster as usize) < limit;
    let answers = latest(task.answers.iter().copied().filter(valid));
    let clusters = answers.iter().map(|(_, cluster)| *cluster as usize + 1).max().unwrap_or(0);
    let mut probabilities = vec![0.0; clusters + 1];
    for (_, cluster) in &answers {
        probabilities[*cluster as usize] += 1.0 / answers.len() as f64;
    }
    let truth = task.truth.filter(|truth| (*truth as usize) < clusters);
    if let Some(truth) = truth {
        probabilities.fill(0.0);
        probabilities[truth as usize] = 1.0;
    }
    let repeats = repeats(&answers, groups);
    let answers =
        answers.into_iter().zip(repeats).map(|((agent, cluster), repeats)| (agent, cluster, repeats));
    Votes { answers: answers.collect(), truth, probabilities }
}

fn count(votes: &[Votes], estimate: &mut [Reliability], rules: &ReliabilityRules) {
    estimate.fill(Reliability::default());
    for votes in votes {
        for (agent, cluster, _) in &votes.answers {
            let agent = &mut estimate[*agent as usize];
            agent.answers += 1.0;
            agent.right += votes.probabilities[*cluster as usize];
        }
    }
    let sum = |value: fn(&Reliability) -> f64| estimate.iter().map(value).sum::<f64>();
    let usual = (sum(|agent| agent.right) + 2.0) / (sum(|agent| agent.answers) + 4.0);
    for agent in estimate {
        agent.accuracy =
            (agent.right + rules.accuracy_prior * usual) / (agent.answers + rules.accuracy_prior);
    }
}

/// New probabilities of a task; returns the largest change.
fn infer(votes: &mut Votes, estimate: &[Reliability]) -> f64 {
    if votes.truth.is_some() || votes.answers.is_empty() {
        return 0.0;
    }
    let others = (votes.probabilities.len() - 1) as f64;
    let mut next = vec![1.0; votes.probabilities.len()];
    for (agent, cluster, repeats) in &votes.answers {
        let accuracy = estimate[*agent as usize].accuracy;
        // Only the ratio matters, so the other options keep their value.
        let ratio = damped(accuracy / ((1.0 - accuracy) / others), *repeats);
        next[*cluster as usize] *= ratio;
        if next[*cluster as usize] > 1e150 {
            normalise(&mut next);
        }
    }
    normalise(&mut next);
    let change = |change: f64, (old, new): (&f64, &f64)| change.max((old - new).abs());
    let largest = votes.probabilities.iter().zip(&next).fold(0.0, change);
    votes.probabilities = next;
    largest
}
