//! The shared model: counts, and the probabilities that follow from them.

use crate::ReliabilityRules;

/// How often each agent gave each option for each true one, as far as is known.
///
/// Two options at least: where all agents always say the same, something else could have been said.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    pub options: usize,
    /// Of an agent, an answer and a truth, in this order: what a task is updated with lies together.
    cells: Vec<f64>,
    /// Tasks by their true option.
    pub truths: Vec<f64>,
    /// Sum of the shares of votes that an option got in each task.
    pub shares: Vec<f64>,
    pub tasks: f64,
}

/// The probabilities that all agents share.
#[derive(Clone, Debug)]
pub(super) struct Crowd {
    /// Of an answer and a truth.
    pub matrix: Vec<f64>,
    pub frequencies: Vec<f64>,
    pub accuracy: f64,
}

impl Counts {
    pub fn new(agents: usize, options: usize) -> Self {
        let options = options.max(2);
        Self {
            options,
            cells: vec![0.0; agents * options * options],
            truths: vec![0.0; options],
            shares: vec![0.0; options],
            tasks: 0.0,
        }
    }

    pub fn agents(&self) -> usize {
        self.cells.len() / (self.options * self.options)
    }

    /// Makes room for an agent.
    pub fn reserve(&mut self, agent: usize) {
        let size = (agent + 1) * self.options * self.options;
        if self.cells.len() < size {
            self.cells.resize(size, 0.0);
        }
    }

    /// Forgets the answers; the shares of votes stay.
    pub fn clear(&mut self) {
        self.cells.fill(0.0);
        self.truths.fill(0.0);
    }

    /// The counts of an agent's answer, by truth.
    pub fn answer_mut(&mut self, agent: usize, answer: usize) -> &mut [f64] {
        let start = (agent * self.options + answer) * self.options;
        &mut self.cells[start..start + self.options]
    }

    fn agent(&self, agent: usize) -> &[f64] {
        let size = self.options * self.options;
        &self.cells[agent * size..(agent + 1) * size]
    }

    /// The share of each option in the votes of one task, added `sign` times.
    pub fn add_votes(&mut self, answers: &[(u32, u32)], sign: f64) {
        let share = sign / answers.len().max(1) as f64;
        for (_, answer) in answers {
            self.shares[*answer as usize] += share;
        }
    }

    /// What all agents share, at the present counts.
    pub fn crowd(&self, rules: &ReliabilityRules) -> Crowd {
        let mut sums = vec![0.0; self.options * self.options];
        for cells in self.cells.chunks_exact(self.options * self.options) {
            sums.iter_mut().zip(cells).for_each(|(sum, cell)| *sum += cell);
        }
        self.crowd_of(&sums, rules)
    }

    /// The same from sums over all agents that the caller keeps.
    pub fn crowd_of(&self, sums: &[f64], rules: &ReliabilityRules) -> Crowd {
        let k = self.options;
        let right: f64 = (0..k).map(|option| sums[option * k + option]).sum();
        let total: f64 = sums.iter().sum();
        // A Beta(2, 2) keeps the accuracy inside of 0 and 1.
        let accuracy = (right + 2.0) / (total + 4.0);
        let wrong = (1.0 - accuracy) / (k - 1) as f64;
        let prior = rules.crowd_prior * k as f64;
        let mut matrix = vec![0.0; k * k];
        for truth in 0..k {
            let answers: f64 = (0..k).map(|answer| sums[answer * k + truth]).sum();
            for answer in 0..k {
                let expected = if answer == truth { accuracy } else { wrong };
                matrix[answer * k + truth] =
                    (sums[answer * k + truth] + prior * expected) / (answers + prior);
            }
        }
        let frequency = |option: usize| {
            let smoothed = |sum: f64| (sum + 1.0) / (self.tasks + k as f64);
            let votes = smoothed(self.shares[option]);
            rules.vote_share * votes + (1.0 - rules.vote_share) * smoothed(self.truths[option])
        };
        Crowd { matrix, frequencies: (0..k).map(frequency).collect(), accuracy }
    }

    /// The accuracy of an agent, drawn towards what the crowd reaches on tasks of the same truths; and the latter.
    pub fn accuracy(&self, agent: usize, crowd: &Crowd, rules: &ReliabilityRules) -> (f64, f64) {
        let k = self.options;
        let cells = self.agent(agent);
        let (mut right, mut total, mut usual) = (0.0, 0.0, 0.0);
        for truth in 0..k {
            let answers: f64 = (0..k).map(|answer| cells[answer * k + truth]).sum();
            right += cells[truth * k + truth];
            usual += answers * crowd.matrix[truth * k + truth];
            total += answers;
        }
        let usual = if total > 0.0 { usual / total } else { crowd.accuracy };
        ((right + rules.accuracy_prior * usual) / (total + rules.accuracy_prior), usual)
    }

    /// Answers of an agent, and how many of them are right.
    pub fn totals(&self, agent: usize) -> (f64, f64) {
        let cells = self.agent(agent);
        (cells.iter().sum(), (0..self.options).map(|option| cells[option * self.options + option]).sum())
    }

    /// Writes the matrix of each agent, one after the other, to `matrices`.
    pub fn agent_matrices(&self, crowd: &Crowd, rules: &ReliabilityRules, matrices: &mut [f64]) {
        for (agent, matrix) in matrices.chunks_exact_mut(self.options * self.options).enumerate() {
            self.agent_matrix(agent, crowd, rules, matrix);
        }
    }

    /// Writes the probability of each answer of an agent, by truth, to `matrix`.
    pub fn agent_matrix(&self, agent: usize, crowd: &Crowd, rules: &ReliabilityRules, matrix: &mut [f64]) {
        let k = self.options;
        let cells = self.agent(agent);
        let (accuracy, usual) = self.accuracy(agent, crowd, rules);
        let odds = |p: f64| p.clamp(1e-6, 1.0 - 1e-6) / (1.0 - p.clamp(1e-6, 1.0 - 1e-6));
        let tilt = odds(accuracy) / odds(usual);
        for truth in 0..k {
            let right = crowd.matrix[truth * k + truth];
            // The shared row with the odds of the right answer tilted.
            let whole = 1.0 - right + right * tilt;
            let answers: f64 = (0..k).map(|answer| cells[answer * k + truth]).sum();
            let divisor = answers + rules.confusion_prior;
            for answer in 0..k {
                let shared =
                    crowd.matrix[answer * k + truth] * if answer == truth { tilt } else { 1.0 } / whole;
                // Cells that are added to and taken from may end below zero by a rounding.
                let count = cells[answer * k + truth].max(0.0);
                matrix[answer * k + truth] = (count + rules.confusion_prior * shared) / divisor;
            }
        }
    }
}

/// Scales probabilities before they become too small for a double.
pub(super) fn rescale(probabilities: &mut [f64]) {
    if probabilities.iter().copied().fold(0.0, f64::max) < 1e-150 {
        normalise(probabilities);
    }
}

/// Makes them add up to one; equal ones if all are zero.
pub(super) fn normalise(probabilities: &mut [f64]) {
    let sum: f64 = probabilities.iter().sum();
    if sum > 0.0 && sum.is_finite() {
        probabilities.iter_mut().for_each(|probability| *probability /= sum);
    } else {
        probabilities.fill(1.0 / probabilities.len().max(1) as f64);
    }
}
