//! The probability of each option of one task, by what is known of agents.

use crate::{
    ReliabilityRules,
    reliability::{
        batch::repeats,
        damped,
        model::{Counts, Crowd, normalise, rescale},
    },
};

/// One answer of each agent, sorted by agent; none of them and no `truth` is out of range.
pub(super) fn posterior(
    answers: &[(u32, u32)],
    truth: Option<u32>,
    counts: &Counts,
    crowd: &Crowd,
    groups: &[u32],
    rules: &ReliabilityRules,
) -> Vec<f64> {
    let k = counts.options;
    if let Some(truth) = truth {
        let mut certain = vec![0.0; k];
        certain[truth as usize] = 1.0;
        return certain;
    }
    let mut probabilities = crowd.frequencies.clone();
    let mut matrix = vec![0.0; k * k];
    for ((agent, option), repeats) in answers.iter().zip(repeats(answers, groups)) {
        counts.agent_matrix(*agent as usize, crowd, rules, &mut matrix);
        let row = &matrix[*option as usize * k..(*option as usize + 1) * k];
        probabilities.iter_mut().zip(row).for_each(|(value, factor)| *value *= damped(*factor, repeats));
        rescale(&mut probabilities);
    }
    normalise(&mut probabilities);
    probabilities
}
