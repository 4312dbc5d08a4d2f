//! How often agents are right, estimated from many closed tasks whose true answers nobody knows.
//!
//! [`estimate`] looks at all tasks at once (the job of a tick); [`Online`] is updated after every answer. Both use one
//! model, Dawid and Skene's with partial pooling: each agent has a matrix of how often it gives each option for each true
//! one. A row of it is drawn towards the matrix that all agents share, tilted by the agent's own accuracy, which is drawn
//! towards the accuracy of all. So an agent with three answers counts almost as the average one, and one with three hundred
//! as its own record shows. [`estimate_open`] is for questions without fixed options.
//!
//! All arithmetic is `+ - * /` and square roots of doubles in a fixed order, which IEEE 754 defines to the last bit; no
//! logarithm or exponential, which differ between platforms.

mod batch;
mod judge;
mod model;
mod online;
mod open;

pub use batch::{Estimate, estimate};
pub use online::Online;
pub use open::{OpenEstimate, OpenTask, estimate_open};

use crate::{Micro, Record};

/// A closed task with fixed options.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// Who answered what: the number of the agent, and that of the option. One answer of an agent counts, the last.
    pub answers: Vec<(u32, u32)>,
    /// The true option, where a verdict named it.
    pub truth: Option<u32>,
}

/// What is expected of an agent's answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reliability {
    /// Its answers.
    pub answers: f64,
    /// How many of them are right, as far as the estimate knows.
    pub right: f64,
    /// Its accuracy, drawn towards that of all.
    pub accuracy: f64,
}

impl Reliability {
    /// As the record that weighs the agent's votes.
    #[must_use]
    pub fn record(&self, confidence: f64) -> Record {
        let (answers, right) = (Micro::from_f64(self.answers), Micro::from_f64(self.right));
        let right = right.min(answers);
        Record { right, wrong: answers.minus(right), confidence: Micro::from_f64(confidence).min(answers) }
    }
}

/// The option of the largest probability; of several, all.
#[must_use]
pub fn most_probable(probabilities: &[f64]) -> Vec<usize> {
    let largest = probabilities.iter().copied().fold(0.0, f64::max);
    (0..probabilities.len()).filter(|option| probabilities[*option] >= largest * (1.0 - 1e-12)).collect()
}

/// Further agents of a group count as this one: as good as nothing.
const MOST_REPEATS: u8 = 8;

/// The root that makes the vote of the `repeats`-th agent of a group of dependent ones count a quarter of the one before:
/// a factor to the power of 4^-repeats. Square roots are exact everywhere, powers are not.
fn damped(factor: f64, repeats: u8) -> f64 {
    (0..2 * repeats.min(MOST_REPEATS)).fold(factor, |factor, _| factor.sqrt())
}
