//! Answers one by one, by incremental expectation-maximisation.

use crate::{
    ReliabilityRules,
    reliability::{
        Reliability, Task, estimate,
        judge::posterior,
        model::{Counts, Crowd},
    },
};

/// An estimate that is updated after every answer.
///
/// After each answer the task that it belongs to is estimated anew from all that is known, and then a bounded number of
/// earlier tasks, in turn: what is learnt about agents later corrects what was concluded earlier. Such an update takes time
/// with the answers of these tasks, not with those of all.
///
/// The first answers decide which of several explanations of the data such updates settle on. So each time the answers have
/// grown by a fraction, all tasks within the limit are estimated from scratch, as [`estimate`] does; spread over the answers,
/// that is a constant number of passes. Tasks beyond the limit keep their last estimate.
#[derive(Clone, Debug)]
pub struct Online {
    rules: ReliabilityRules,
    groups: Vec<u32>,
    counts: Counts,
    /// Sums of the counts over all agents.
    sums: Vec<f64>,
    tasks: Vec<Held>,
    /// The oldest task that is still revised.
    oldest: usize,
    next: usize,
    /// Answers observed, and at how many all tasks are estimated from scratch.
    observed: usize,
    due: usize,
}

#[derive(Clone, Debug, Default)]
struct Held {
    answers: Vec<(u32, u32)>,
    probabilities: Vec<f64>,
    truth: Option<u32>,
}

impl Online {
    /// Nothing known yet. `groups` as for [`estimate`](super::estimate).
    #[must_use]
    pub fn new(options: usize, groups: Vec<u32>, rules: &ReliabilityRules) -> Self {
        let counts = Counts::new(0, options);
        let sums = vec![0.0; counts.options * counts.options];
        Self {
            rules: rules.clone(),
            groups,
            counts,
            sums,
            tasks: Vec::new(),
            oldest: 0,
            next: 0,
            observed: 0,
            due: 1,
        }
    }

    /// A new task; returns its number.
    pub fn open(&mut self) -> usize {
        self.tasks.push(Held::default());
        self.oldest = self.oldest.max(self.tasks.len().saturating_sub(self.rules.task_limit.max(1)));
        if let Some(forgotten) = self.oldest.checked_sub(1) {
            // Its counts stay; what is needed to revise them goes.
            self.tasks[forgotten].answers = Vec::new();
        }
        self.tasks.len() - 1
    }

    /// An answer to a task. Of several of one agent, the last counts. Out of range, it is ignored.
    pub fn observe(&mut self, task: usize, agent: u32, option: u32) {
        if task < self.oldest || task >= self.tasks.len() || option as usize >= self.counts.options {
            return;
        }
        self.counts.reserve(agent as usize);
        let mut answers = self.tasks[task].answers.clone();
        match answers.binary_search_by_key(&agent, |(agent, _)| *agent) {
            Ok(place) => answers[place].1 = option,
            Err(place) => answers.insert(place, (agent, option)),
        }
        self.update(task, answers);
        self.observed += 1;
        if self.observed < self.due {
            self.revisit();
        } else {
            self.reestimate();
        }
    }

    /// Estimates all tasks within the limit from scratch.
    pub fn reestimate(&mut self) {
        let task = |held: &Held| Task { answers: held.answers.clone(), truth: held.truth };
        let tasks: Vec<Task> = self.tasks[self.oldest..].iter().map(task).collect();
        let (agents, options) = (self.counts.agents(), self.counts.options);
        let estimate = estimate(&tasks, agents, options, &self.groups, &self.rules);
        self.counts = Counts::new(agents, options);
        self.sums.fill(0.0);
        let first = self.oldest;
        for (place, probabilities) in estimate.tasks.into_iter().enumerate() {
            let task = first + place;
            if probabilities.is_empty() && !self.tasks[task].answers.is_empty() {
                // Over the limit of answers: it keeps its last estimate, which counts no more.
                self.tasks[task].answers = Vec::new();
                self.oldest = task + 1;
            } else if !probabilities.is_empty() {
                self.tasks[task].probabilities = probabilities;
                self.counts.tasks += 1.0;
                self.add(task, 1.0);
            }
        }
        self.due = self.observed + 1 + (self.observed as f64 * self.rules.growth) as usize;
    }

    /// The true option of a task, by a verdict.
    pub fn confirm(&mut self, task: usize, truth: u32) {
        if task < self.oldest || task >= self.tasks.len() || truth as usize >= self.counts.options {
            return;
        }
        self.tasks[task].truth = Some(truth);
        self.update(task, self.tasks[task].answers.clone());
        self.revisit();
    }

    /// The probability of each option of a task, as last estimated. Empty without an answer.
    #[must_use]
    pub fn probabilities(&self, task: usize) -> &[f64] {
        self.tasks.get(task).map_or(&[], |task| &task.probabilities)
    }

    /// The reliability of the agents.
    #[must_use]
    pub fn agents(&self) -> Vec<Reliability> {
        let crowd = self.crowd();
        let reliability = |agent| {
            let (answers, right) = self.counts.totals(agent);
            Reliability { answers, right, accuracy: self.counts.accuracy(agent, &crowd, &self.rules).0 }
        };
        (0..self.counts.agents()).map(reliability).collect()
    }

    fn crowd(&self) -> Crowd {
        self.counts.crowd_of(&self.sums, &self.rules)
    }

    fn revisit(&mut self) {
        for _ in 0..self.rules.revisits.min(self.tasks.len() - self.oldest) {
            self.next = if self.next + 1 < self.tasks.len() { self.next + 1 } else { self.oldest };
            self.next = self.next.max(self.oldest);
            self.update(self.next, self.tasks[self.next].answers.clone());
        }
    }

    /// Estimates a task with these answers, and replaces what it has added to the counts.
    ///
    /// The counts that it is judged by contain its own earlier part, as in the batch: so both come to rest at the same values.
    fn update(&mut self, task: usize, answers: Vec<(u32, u32)>) {
        if answers.is_empty() {
            return;
        }
        let truth = self.tasks[task].truth;
        let (k, crowd) = (self.counts.options, self.crowd());
        let mut matrix = vec![0.0; k * k];
        let probabilities =
            posterior(&answers, truth, &crowd.frequencies, &self.groups, |agent, option, row| {
                self.counts.agent_matrix(agent, &crowd, &self.rules, &mut matrix);
                row.copy_from_slice(&matrix[option * k..(option + 1) * k]);
            });
        if self.tasks[task].answers.is_empty() {
            self.counts.tasks += 1.0;
        }
        self.add(task, -1.0);
        let held = &mut self.tasks[task];
        (held.answers, held.probabilities) = (answers, probabilities);
        self.add(task, 1.0);
    }

    fn add(&mut self, task: usize, sign: f64) {
        let task = &self.tasks[task];
        let k = self.counts.options;
        if task.probabilities.is_empty() {
            return;
        }
        self.counts.add_votes(&task.answers, sign);
        for (sum, probability) in self.counts.truths.iter_mut().zip(&task.probabilities) {
            *sum += sign * probability;
        }
        for (agent, option) in &task.answers {
            let sums = &mut self.sums[*option as usize * k..(*option as usize + 1) * k];
            let cells = self.counts.answer_mut(*agent as usize, *option as usize);
            for ((cell, sum), probability) in cells.iter_mut().zip(sums).zip(&task.probabilities) {
                *cell += sign * probability;
                *sum += sign * probability;
            }
        }
    }
}
