//! The probability of each option of one task, by what is known of agents.

use crate::reliability::{
    batch::repeats,
    damped,
    model::{normalise, rescale},
};

/// One answer of each agent, sorted by agent; none of them and no `truth` is out of range. `factors` writes the probability of an answer
/// of an agent, by truth.
pub(super) fn posterior(
    answers: &[(u32, u32)],
    truth: Option<u32>,
    frequencies: &[f64],
    groups: &[u32],
    mut factors: impl FnMut(usize, usize, &mut [f64]),
) -> Vec<f64> {
    let k = frequencies.len();
    if let Some(truth) = truth {
        let mut certain = vec![0.0; k];
        certain[truth as usize] = 1.0;
        return certain;
    }
    let mut probabilities = frequencies.to_vec();
    let mut row = vec![0.0; k];
    for ((agent, option), repeats) in answers.iter().zip(repeats(answers, groups)) {
        factors(*agent as usize, *option as usize, &mut row);
        probabilities.iter_mut().zip(&row).for_each(|(value, factor)| *value *= damped(*factor, repeats));
        rescale(&mut probabilities);
    }
    normalise(&mut probabilities);
    probabilities
}
