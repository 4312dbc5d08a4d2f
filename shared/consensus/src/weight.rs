//! What a vote weighs: how reliable its agent is, and how independent of the others.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use crate::{
    Micro, Rules,
    fixed::log_odds,
    input::{Answer, Evidence, Record},
};

/// Why a vote does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Uncounted {
    /// The agent abstained.
    Abstained,
    /// All its evidence was recalled from consensus.
    Recalled,
    /// Its agent is right no more often than not.
    Unreliable,
}

/// The weight of one vote, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Weight {
    /// The mean of the Beta posterior.
    pub accuracy: Micro,
    /// The probability that this answer is right, after the stated confidence.
    pub probability: Micro,
    /// The weight of the vote by itself, in units of an agent without a record.
    pub weight: Micro,
    /// What it is discounted by within its cluster.
    pub discount: Micro,
    /// What counts: the product.
    pub counted: Micro,
    pub uncounted: Option<Uncounted>,
}

/// The mean of the Beta posterior of an agent.
pub(crate) fn accuracy(record: &Record, rules: &Rules) -> Micro {
    let right = record.right.plus(Micro::from_f64(rules.weight.prior_right));
    let wrong = record.wrong.plus(Micro::from_f64(rules.weight.prior_wrong));
    right.over(right.plus(wrong))
}

/// The accuracy, moved towards the stated confidence by as much as the record shows that to be worth.
///
/// The confidence is first corrected by how far the agent has been from its accuracy on average. Without a record it has no
/// influence: anybody can state certainty.
pub(crate) fn probability(record: &Record, confidence: Option<Micro>, rules: &Rules) -> Micro {
    let accuracy = accuracy(record, rules);
    let limit = Micro::from_f64(rules.weight.accuracy_limit);
    let answers = record.right.plus(record.wrong);
    let Some(confidence) = confidence.filter(|_| answers > Micro::ZERO) else { return accuracy.min(limit) };
    let stated = record.confidence.over(answers);
    let achieved = record.right.over(answers);
    let calibrated = confidence.plus(achieved).minus(stated).min(Micro::ONE);
    let share = answers.over(answers.plus(Micro::from_f64(rules.weight.confidence_answers)));
    let share = share.times(Micro::from_f64(rules.weight.confidence_share));
    let mean = accuracy.times(Micro::ONE.minus(share)).plus(calibrated.times(share));
    mean.min(limit)
}

/// The weights of all votes, in the order of the answers, without discounts.
pub(crate) fn weights(answers: &[Answer], rules: &Rules) -> Vec<Weight> {
    let unit = rules.prior_accuracy();
    answers
        .iter()
        .map(|answer| {
            let probability = probability(&answer.record, answer.confidence, rules);
            let weight = log_odds(probability, unit);
            let uncounted = if answer.abstains {
                Some(Uncounted::Abstained)
            } else if is_recalled(answer) {
                Some(Uncounted::Recalled)
            } else if weight == Micro::ZERO {
                Some(Uncounted::Unreliable)
            } else {
                None
            };
            let discount = if uncounted.is_some() { Micro::ZERO } else { Micro::ONE };
            Weight {
                accuracy: accuracy(&answer.record, rules),
                probability,
                weight,
                discount,
                counted: weight.times(discount),
                uncounted,
            }
        })
        .collect()
}

/// Whether an answer rests on nothing but what consensus said before.
fn is_recalled(answer: &Answer) -> bool {
    !answer.evidence.is_empty() && answer.evidence.iter().all(|root| matches!(root, Evidence::Recalled(_)))
}

/// What the voters of a group share.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Shared<'a> {
    Family(Option<&'a str>),
    Prompt(&'a str),
    Source(&'a str),
}

/// How far each of these voters counts beside the others, in their order; one is an independent voter.
///
/// The heaviest counts in full. Each further one that shares an attribute with `n` heavier ones counts the attribute's
/// factor to the power of `n`, so that a family of any size stays below `1 / (1 - factor)` voters; if it shares several, the
/// least of these counts. Who shares nothing changes nobody's discount.
pub(crate) fn discounts(
    members: &[usize],
    answers: &[Answer],
    weights: &[Weight],
    rules: &Rules,
) -> Vec<Micro> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|at| (Reverse(weights[members[*at]].weight), members[*at]));
    let mut heavier: BTreeMap<Shared<'_>, u32> = BTreeMap::new();
    let mut result = vec![Micro::ZERO; members.len()];
    for at in order {
        let answer = &answers[members[at]];
        if weights[members[at]].uncounted.is_some() {
            continue;
        }
        let mut discount = Micro::ONE;
        for (attribute, factor) in shared(answer, rules) {
            let count = heavier.entry(attribute).or_default();
            discount = discount.min(power(Micro::from_f64(factor), *count));
            *count += 1;
        }
        result[at] = discount;
    }
    result
}

fn shared<'a>(answer: &'a Answer, rules: &Rules) -> Vec<(Shared<'a>, f64)> {
    let independence = &rules.independence;
    let mut shared = vec![(Shared::Family(answer.family.as_deref()), independence.family)];
    if let Some(prompt) = &answer.prompt {
        shared.push((Shared::Prompt(prompt), independence.prompt));
    }
    shared.extend(answer.evidence.iter().filter_map(|root| match root {
        Evidence::Source(source) => Some((Shared::Source(source), independence.evidence)),
        Evidence::Recalled(_) => None,
    }));
    shared
}

fn power(factor: Micro, exponent: u32) -> Micro {
    // Below a millionth after a few steps, unless the factor is one, which stays one.
    (0..exponent.min(64)).fold(Micro::ONE, |product, _| product.times(factor))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn record(right: f64, wrong: f64, confidence: f64) -> Record {
        Record {
            right: Micro::from_f64(right),
            wrong: Micro::from_f64(wrong),
            confidence: Micro::from_f64(confidence),
        }
    }

    #[test]
    fn a_record_moves_the_accuracy_from_the_prior() {
        let rules = Rules::current().unwrap();
        assert_eq!(accuracy(&Record::default(), &rules), Micro::from_f64(0.7));
        assert_eq!(accuracy(&record(90.0, 0.0, 0.0), &rules), Micro::from_f64(0.97));
        assert_eq!(accuracy(&record(0.0, 90.0, 0.0), &rules), Micro::from_f64(0.07));
    }

    #[test]
    fn confidence_counts_by_the_record_only() {
        let rules = Rules::current().unwrap();
        let sure = Some(Micro::ONE);
        assert_eq!(probability(&Record::default(), sure, &rules), Micro::from_f64(0.7));
        // Right 13 times of 20: 20 of 30 with the prior. It always stated 0.95, so certainty is worth 0.05 more than 0.65.
        let boastful = record(13.0, 7.0, 19.0);
        assert_eq!(accuracy(&boastful, &rules), Micro::from_millionths(666_667));
        assert_eq!(probability(&boastful, sure, &rules), Micro::from_f64(0.675));
        let unsure = probability(&boastful, Some(Micro::from_f64(0.5)), &rules);
        assert_eq!(unsure, Micro::from_millionths(550_000));
        assert_eq!(probability(&record(1e9, 0.0, 1e9), sure, &rules), Micro::from_f64(0.95));
    }

    #[test]
    fn powers_end() {
        assert_eq!(power(Micro::ONE, u32::MAX), Micro::ONE);
        assert_eq!(power(Micro::from_f64(0.25), 2), Micro::from_millionths(62_500));
        assert_eq!(power(Micro::from_f64(0.25), u32::MAX), Micro::ZERO);
        assert_eq!(power(Micro::ZERO, 0), Micro::ONE);
    }
}
