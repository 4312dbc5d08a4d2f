//! From weighted clusters to a score and a status.

use serde::{Deserialize, Serialize};

use crate::{
    Dossier, Micro, Rules,
    cluster::Clusters,
    fixed::normalised_entropy,
    input::{Frozen, Standing, Verdict},
    weight::{Weight, discounts, weights},
};

/// The status of an answer, as `validationstatus` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// No quorum, or too few independent voters.
    Unvalidated,
    /// Enough voters agree, but the evidence does not suffice yet.
    Pending,
    /// Score, independence, support and margin suffice; or a verdict confirmed it.
    Validated,
    /// A tie, strong dissent, or a live validated node says something else.
    Disputed,
    /// A verdict rejected it.
    Rejected,
    /// Another node took its place.
    Superseded,
}

impl Status {
    /// Its label, as `validationstatus` has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unvalidated => "unvalidated",
            Self::Pending => "pending",
            Self::Validated => "validated",
            Self::Disputed => "disputed",
            Self::Rejected => "rejected",
            Self::Superseded => "superseded",
        }
    }
}

/// Why the status is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A verdict said so.
    Verdict,
    /// Another node took its place.
    Replaced,
    /// Nobody gave an answer that counts.
    NoAnswer,
    /// Fewer answers than asked for.
    NoQuorum,
    /// Too few independent voters over all answers.
    FewIndependent,
    /// Several answers have the same, largest weight.
    Tie,
    /// The runner-up is too strong.
    Dissent,
    /// A live validated node says something else.
    Contradiction,
    /// The score is too low.
    LowScore,
    /// Too few independent voters agree.
    FewIndependentAgree,
    /// The voters who agree weigh too little.
    LowSupport,
    /// The lead over the runner-up is too small.
    SmallMargin,
    /// All that is needed.
    Sufficient,
}

/// One cluster with its weight.
#[derive(Clone, Debug)]
pub(crate) struct Weighed {
    pub members: Vec<usize>,
    pub weight: Micro,
    /// The number of independent voters in it.
    pub independent: Micro,
    pub share: Micro,
}

/// The outcome of a vote.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub weights: Vec<Weight>,
    /// The heaviest first; clusters of equal weight in the order of their members.
    pub clusters: Vec<Weighed>,
    /// How many clusters share the largest weight.
    pub leaders: usize,
    pub margin: Micro,
    pub entropy: Micro,
    /// The number of independent voters over all clusters.
    pub independent: Micro,
    pub score: Micro,
}

/// Counts the votes.
pub(crate) fn tally(frozen: &Frozen, clusters: Clusters, rules: &Rules) -> Tally {
    let mut weights = weights(&frozen.answers, rules);
    let mut weighed: Vec<Weighed> = clusters
        .into_iter()
        .map(|members| {
            let discounts = discounts(&members, &frozen.answers, &weights, rules);
            for (member, discount) in members.iter().zip(&discounts) {
                weights[*member].discount = *discount;
                weights[*member].counted = weights[*member].weight.times(*discount);
            }
            Weighed {
                weight: members.iter().map(|member| weights[*member].counted).sum(),
                independent: discounts.into_iter().sum(),
                share: Micro::ZERO,
                members,
            }
        })
        .collect();
    // Stable: equal weights stay in the order of their members.
    weighed.sort_by_key(|cluster| std::cmp::Reverse(cluster.weight));
    let total: Micro = weighed.iter().map(|cluster| cluster.weight).sum();
    for cluster in &mut weighed {
        cluster.share = cluster.weight.over(total);
    }
    let largest = weighed.first().map_or(Micro::ZERO, |cluster| cluster.weight);
    let second = weighed.get(1).map_or(Micro::ZERO, |cluster| cluster.weight);
    let voters: Vec<usize> = weighed.iter().flat_map(|cluster| cluster.members.iter().copied()).collect();
    Tally {
        leaders: weighed.iter().filter(|cluster| cluster.weight == largest && largest > Micro::ZERO).count(),
        margin: largest.minus(second).over(total),
        entropy: normalised_entropy(&weighed.iter().map(|cluster| cluster.weight).collect::<Vec<_>>()),
        independent: discounts(&voters, &frozen.answers, &weights, rules).into_iter().sum(),
        // More weight for the largest cluster never lowers it, and it reaches one never.
        score: largest.over(total.plus(Micro::from_f64(rules.score.doubt))),
        clusters: weighed,
        weights,
    }
}

/// The status of the leading answer by what its dossier holds and by its standing, and every reason for it.
pub(crate) fn status(dossier: &Dossier, standing: &Standing, rules: &Rules) -> (Status, Vec<Reason>) {
    if standing.superseded_by.is_some() {
        return (Status::Superseded, vec![Reason::Replaced]);
    }
    match standing.verdict {
        Some(Verdict::Confirmed) => return (Status::Validated, vec![Reason::Verdict]),
        Some(Verdict::Rejected) => return (Status::Rejected, vec![Reason::Verdict]),
        None => {}
    }
    let steps = [
        (Status::Unvalidated, absent(dossier)),
        (Status::Disputed, disputed(dossier, standing, rules)),
        (Status::Unvalidated, lonely(dossier, rules)),
        (Status::Pending, insufficient(dossier, rules)),
    ];
    let decided = steps.into_iter().find(|(_, reasons)| !reasons.is_empty());
    decided.unwrap_or((Status::Validated, vec![Reason::Sufficient]))
}

fn reasons<const N: usize>(candidates: [(bool, Reason); N]) -> Vec<Reason> {
    candidates.into_iter().filter_map(|(holds, reason)| holds.then_some(reason)).collect()
}

fn absent(dossier: &Dossier) -> Vec<Reason> {
    let quorum = usize::try_from(dossier.quorum).unwrap_or(usize::MAX);
    let answered = dossier.votes.iter().filter(|vote| vote.cluster.is_some()).count();
    reasons([(dossier.outcome.leaders.is_empty(), Reason::NoAnswer), (answered < quorum, Reason::NoQuorum)])
}

fn disputed(dossier: &Dossier, standing: &Standing, rules: &Rules) -> Vec<Reason> {
    let dissent = Micro::from_f64(rules.score.dissent_share);
    let leaders = dossier.outcome.leaders.len();
    let strong = leaders == 1 && dossier.clusters.get(1).is_some_and(|second| second.share >= dissent);
    reasons([
        (leaders > 1, Reason::Tie),
        (strong, Reason::Dissent),
        (!standing.contradicts.is_empty(), Reason::Contradiction),
    ])
}

fn lonely(dossier: &Dossier, rules: &Rules) -> Vec<Reason> {
    let least = Micro::from_f64(rules.score.least_independence);
    reasons([(dossier.outcome.independent_voters < least, Reason::FewIndependent)])
}

fn insufficient(dossier: &Dossier, rules: &Rules) -> Vec<Reason> {
    let (limits, outcome) = (&rules.score, &dossier.outcome);
    let (weight, independent) = dossier
        .clusters
        .first()
        .map_or((Micro::ZERO, Micro::ZERO), |leader| (leader.weight, leader.independent_voters));
    reasons([
        (outcome.score < Micro::from_f64(limits.validated_score), Reason::LowScore),
        (independent < Micro::from_f64(limits.validated_independence), Reason::FewIndependentAgree),
        (weight < Micro::from_f64(limits.validated_support), Reason::LowSupport),
        (outcome.margin < Micro::from_f64(limits.validated_margin), Reason::SmallMargin),
    ])
}
