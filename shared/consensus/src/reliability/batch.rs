//! All closed tasks at once, by expectation-maximisation.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use crate::{
    ReliabilityRules,
    reliability::{
        MOST_REPEATS, Reliability, Task, damped,
        judge::posterior,
        model::{Counts, Crowd, normalise, rescale},
    },
};

/// What the closed tasks say about answers and agents.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// Of each task, the probability of each option. Empty for tasks that were left out or have no answer.
    pub tasks: Vec<Vec<f64>>,
    /// The agents.
    pub agents: Vec<Reliability>,
    /// The iterations that it took.
    pub iterations: usize,
    counts: Counts,
    crowd: Crowd,
    /// The matrices of all agents, once a task is judged.
    matrices: OnceLock<Vec<f64>>,
}

impl Estimate {
    /// The probability of each option of a task that was left out, by what is known of its agents. One that answered none of the
    /// estimated tasks counts as all do together. Empty without an answer.
    ///
    /// `groups` and `rules` are those of the estimate.
    #[must_use]
    pub fn judge(&self, task: &Task, groups: &[u32], rules: &ReliabilityRules) -> Vec<f64> {
        let (agents, k) = (self.counts.agents(), self.counts.options);
        let valid = |(agent, option): &(u32, u32)| (*agent as usize) < agents && (*option as usize) < k;
        let answers = latest(task.answers.iter().copied().filter(valid));
        if answers.is_empty() {
            return Vec::new();
        }
        let truth = task.truth.filter(|truth| (*truth as usize) < k);
        let matrices = self.matrices.get_or_init(|| {
            let mut matrices = vec![0.0; agents * k * k];
            self.counts.agent_matrices(&self.crowd, rules, &mut matrices);
            matrices
        });
        posterior(&answers, truth, &self.crowd.frequencies, groups, |agent, option, row| {
            let start = (agent * k + option) * k;
            row.copy_from_slice(&matrices[start..start + k]);
        })
    }
}

/// One answer: its agent, its option, and where its factors are.
struct Ballot {
    agent: u32,
    option: u32,
    factors: u32,
}

/// What the factors of a ballot follow from. `repeats` is how many agents of the same group gave the same answer before.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    agent: u32,
    option: u32,
    repeats: u8,
}

struct Problem {
    ballots: Vec<Ballot>,
    /// The different kinds of ballots: their roots are taken once in an iteration, and not for each ballot.
    kinds: Vec<Kind>,
    /// Where the ballots of each task end.
    ends: Vec<usize>,
    truths: Vec<Option<u32>>,
    /// Which of the given tasks these are.
    places: Vec<usize>,
}

/// Estimates the true options and the reliability of `agents` agents.
///
/// `groups` has the group of each agent: of agents that share one and give the same answer to a task, the first counts in
/// full, the next a quarter, and so on. Agents beyond its end are independent. Tasks are the oldest first; if they are more than the
/// rules allow, the oldest are left out. [`Estimate::judge`] is for those.
///
/// Answers with an agent or option out of range are ignored. Time grows with answers, options and iterations, memory with
/// the answers times the options and with the agents times the square of the options.
#[must_use]
pub fn estimate(
    tasks: &[Task],
    agents: usize,
    options: usize,
    groups: &[u32],
    rules: &ReliabilityRules,
) -> Estimate {
    let problem = Problem::new(tasks, agents, options, groups, rules);
    let mut counts = Counts::new(agents, options);
    let k = counts.options;
    let mut posterior = problem.votes(k);
    counts.tasks = problem.ends.len() as f64;
    for task in posterior.chunks_exact(k) {
        counts.shares.iter_mut().zip(task).for_each(|(sum, share)| *sum += share);
    }
    problem.fix(&mut posterior, k);
    let mut matrices = vec![0.0; agents * k * k];
    let mut factors = vec![0.0; problem.kinds.len() * k];
    let mut iterations = 0;
    while iterations < rules.iterations {
        iterations += 1;
        problem.count(&posterior, &mut counts);
        let crowd = counts.crowd(rules);
        counts.agent_matrices(&crowd, rules, &mut matrices);
        problem.factors(&matrices, k, &mut factors);
        let change = problem.infer(&factors, &crowd.frequencies, &mut posterior);
        if change < rules.tolerance {
            break;
        }
    }
    problem.count(&posterior, &mut counts);
    let crowd = counts.crowd(rules);
    let reliability = |agent| {
        let (answers, right) = counts.totals(agent);
        Reliability { answers, right, accuracy: counts.accuracy(agent, &crowd, rules).0 }
    };
    let mut result = vec![Vec::new(); tasks.len()];
    for (place, posterior) in problem.places.iter().zip(posterior.chunks_exact(k)) {
        result[*place] = posterior.to_vec();
    }
    let agents = (0..agents).map(reliability).collect();
    Estimate { tasks: result, agents, iterations, counts, crowd, matrices: OnceLock::new() }
}

impl Problem {
    fn new(tasks: &[Task], agents: usize, options: usize, groups: &[u32], rules: &ReliabilityRules) -> Self {
        let mut problem = Self {
            ballots: Vec::new(),
            kinds: Vec::new(),
            ends: Vec::new(),
            truths: Vec::new(),
            places: Vec::new(),
        };
        let mut places = HashMap::new();
        let skipped = tasks.len().saturating_sub(rules.task_limit);
        let mut left = rules.answer_limit;
        let newest = tasks[skipped..].iter().rev().take_while(|task| {
            let fits = task.answers.len() <= left;
            left = left.saturating_sub(task.answers.len());
            fits
        });
        let first = tasks.len() - newest.count();
        for (place, task) in tasks.iter().enumerate().skip(first) {
            let valid =
                |(agent, option): &(u32, u32)| (*agent as usize) < agents && (*option as usize) < options;
            let answers = latest(task.answers.iter().copied().filter(valid));
            if answers.is_empty() {
                continue;
            }
            for kind in kinds(&answers, groups) {
                let next = u32::try_from(problem.kinds.len()).unwrap_or(u32::MAX);
                let factors = *places.entry(kind).or_insert_with(|| {
                    problem.kinds.push(kind);
                    next
                });
                problem.ballots.push(Ballot { agent: kind.agent, option: kind.option, factors });
            }
            problem.ends.push(problem.ballots.len());
            problem.truths.push(task.truth.filter(|truth| (*truth as usize) < options));
            problem.places.push(place);
        }
        problem
    }

    /// The ballots of each task.
    fn tasks(&self) -> impl Iterator<Item = &[Ballot]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(move |(start, end)| &self.ballots[start..*end])
    }

    /// The share of each option in the votes of each task. A power of a quarter is exact.
    fn votes(&self, options: usize) -> Vec<f64> {
        let mut shares = vec![0.0; self.ends.len() * options];
        for (ballots, shares) in self.tasks().zip(shares.chunks_exact_mut(options)) {
            let weight = |ballot: &Ballot| {
                let repeats = self.kinds[ballot.factors as usize].repeats;
                0.25f64.powi(i32::from(repeats))
            };
            let sum: f64 = ballots.iter().map(weight).sum();
            for ballot in ballots {
                shares[ballot.option as usize] += weight(ballot) / sum;
            }
        }
        shares
    }

    /// Certainty where a verdict named the truth.
    fn fix(&self, posterior: &mut [f64], options: usize) {
        for (posterior, truth) in posterior.chunks_exact_mut(options).zip(&self.truths) {
            if let Some(truth) = truth {
                posterior.fill(0.0);
                posterior[*truth as usize] = 1.0;
            }
        }
    }

    fn count(&self, posterior: &[f64], counts: &mut Counts) {
        counts.clear();
        let k = counts.options;
        for (ballots, posterior) in self.tasks().zip(posterior.chunks_exact(k)) {
            counts.truths.iter_mut().zip(posterior).for_each(|(sum, value)| *sum += value);
            for ballot in ballots {
                let cells = counts.answer_mut(ballot.agent as usize, ballot.option as usize);
                cells.iter_mut().zip(posterior).for_each(|(cell, value)| *cell += value);
            }
        }
    }

    /// Of each kind of ballots, the factor of each true option.
    fn factors(&self, matrices: &[f64], k: usize, factors: &mut [f64]) {
        for (kind, factors) in self.kinds.iter().zip(factors.chunks_exact_mut(k)) {
            let start = (kind.agent as usize * k + kind.option as usize) * k;
            for (factor, probability) in factors.iter_mut().zip(&matrices[start..start + k]) {
                *factor = damped(*probability, kind.repeats);
            }
        }
    }

    /// New probabilities; returns the largest change.
    fn infer(&self, factors: &[f64], frequencies: &[f64], posterior: &mut [f64]) -> f64 {
        let k = frequencies.len();
        let mut change = 0.0f64;
        let mut next = vec![0.0; k];
        for ((ballots, posterior), truth) in self.tasks().zip(posterior.chunks_exact_mut(k)).zip(&self.truths)
        {
            if truth.is_some() {
                continue;
            }
            next.copy_from_slice(frequencies);
            match k {
                2 => product::<2>(&mut next, ballots, factors),
                3 => product::<3>(&mut next, ballots, factors),
                4 => product::<4>(&mut next, ballots, factors),
                5 => product::<5>(&mut next, ballots, factors),
                _ => product::<0>(&mut next, ballots, factors),
            }
            normalise(&mut next);
            for (old, new) in posterior.iter_mut().zip(&next) {
                change = change.max((*old - *new).abs());
                *old = *new;
            }
        }
        change
    }
}

/// Multiplies probabilities by the factors of all ballots. `K` is the number of options, known to the compiler, or zero.
fn product<const K: usize>(next: &mut [f64], ballots: &[Ballot], factors: &[f64]) {
    let k = if K == 0 { next.len() } else { K };
    let next = &mut next[..k];
    // Eight factors cannot take a value from the limit of `rescale` to zero.
    for ballots in ballots.chunks(8) {
        for ballot in ballots {
            let start = ballot.factors as usize * k;
            let factors = &factors[start..start + k];
            next.iter_mut().zip(factors).for_each(|(probability, factor)| *probability *= factor);
        }
        rescale(next);
    }
}

/// One answer of each agent, the last, sorted by agent.
pub(super) fn latest(answers: impl Iterator<Item = (u32, u32)>) -> Vec<(u32, u32)> {
    let answers: Vec<_> = answers.collect();
    if answers.is_sorted_by(|a, b| a.0 < b.0) {
        return answers;
    }
    let by_agent: BTreeMap<u32, u32> = answers.into_iter().collect();
    by_agent.into_iter().collect()
}

/// The kinds of the answers to one task, in their order.
fn kinds(answers: &[(u32, u32)], groups: &[u32]) -> Vec<Kind> {
    let repeats = repeats(answers, groups);
    let kinds = answers.iter().zip(repeats);
    kinds.map(|(&(agent, option), repeats)| Kind { agent, option, repeats }).collect()
}

/// Of each answer to one task, how many agents of the same group gave the same one before: [`MOST_REPEATS`] stands for all further
/// ones.
pub(super) fn repeats(answers: &[(u32, u32)], groups: &[u32]) -> Vec<u8> {
    let mut before = BTreeMap::new();
    let repeats = answers.iter().map(|(agent, option)| {
        groups.get(*agent as usize).map_or(0, |group| {
            let count = before.entry((*group, *option)).or_insert(0u8);
            let repeats = *count;
            *count = count.saturating_add(1).min(MOST_REPEATS);
            repeats
        })
    });
    repeats.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_repeated_by_agents_of_the_same_group_only() {
        // Agents 0, 1 and 3 are of one group, 2 of another; 4 and 5 are of none.
        let groups = [7, 7, 8, 7];
        assert_eq!(repeats(&[(0, 1), (1, 0), (2, 1), (3, 1), (4, 1), (5, 1)], &groups), [0, 0, 0, 1, 0, 0]);
        assert_eq!(repeats(&[(0, 0), (1, 0), (2, 0), (3, 0)], &groups), [0, 1, 0, 2]);
    }
}
