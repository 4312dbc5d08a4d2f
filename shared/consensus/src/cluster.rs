//! Answers that say the same.

use std::collections::BTreeMap;

use crate::{
    Difference, Micro, Rules,
    guard::{Signature, Vocabulary},
    input::Answer,
    text::fold,
};

/// Clusters of answers, by their indices: members sorted, clusters sorted by their first member.
pub(crate) type Clusters = Vec<Vec<usize>>;

/// How two answers relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// Their claims, or their texts, are equal after normalisation.
    Equal,
    /// Their texts have this cosine, and the guard sees no difference.
    Cosine(Micro),
    /// Their claims differ, or a text has no vector to compare.
    Apart,
    /// The guard keeps them apart.
    Guarded(Difference),
}

/// Answers with equal content, which no comparison can tell apart.
struct Atom<'a> {
    members: Vec<usize>,
    claim: Option<&'a str>,
    folded: String,
    vector: Option<Vector<'a>>,
    signature: Signature,
}

/// A vector with its length, which is computed once and not for each pair.
#[derive(Clone, Copy)]
struct Vector<'a> {
    components: &'a [i64],
    length: u128,
}

impl<'a> Vector<'a> {
    fn new(components: &'a [i64]) -> Self {
        Self { components, length: dot(components, components).unsigned_abs().isqrt() }
    }
}

/// Clusters the answers that do not abstain.
///
/// Equal answers come together first. Those atoms are joined by complete linkage: the two clusters whose least similar pair
/// is most similar, as long as that pair reaches the threshold; on equality, the clusters whose contents sort first. Names
/// of agents and the order of arrival have no influence.
pub(crate) fn cluster(answers: &[Answer], rules: &Rules) -> Clusters {
    let atoms = atoms(answers, rules);
    let threshold = Micro::from_f64(rules.cluster.similarity);
    let mut similar = vec![vec![Micro::ZERO; atoms.len()]; atoms.len()];
    for (row, a) in atoms.iter().enumerate() {
        for (column, b) in atoms.iter().enumerate().take(row) {
            let value = similarity(a, b, threshold, rules);
            similar[row][column] = value;
            similar[column][row] = value;
        }
    }
    let mut clusters: Vec<Option<Vec<usize>>> = atoms.into_iter().map(|atom| Some(atom.members)).collect();
    while let Some((into, from)) = most_similar(&similar, &clusters, threshold) {
        let members = clusters[from].take().unwrap_or_default();
        clusters[into].get_or_insert_default().extend(members);
        let pairs = similar[into].iter().zip(&similar[from]);
        let least: Vec<Micro> = pairs.map(|(a, b)| (*a).min(*b)).collect();
        for (row, value) in similar.iter_mut().zip(&least) {
            row[into] = *value;
        }
        similar[into] = least;
    }
    let mut clusters: Clusters = clusters.into_iter().flatten().collect();
    for members in &mut clusters {
        members.sort_unstable();
    }
    clusters.sort_unstable();
    clusters
}

/// How two responses relate that need not belong to one task: whether a new answer repeats or contradicts a node.
pub(crate) fn likeness(a: &Answer, b: &Answer, rules: &Rules) -> Likeness {
    let mut vocabulary = Vocabulary::default();
    let a = Atom::new(a, fold(&a.text), Vec::new(), rules, &mut vocabulary);
    let b = Atom::new(b, fold(&b.text), Vec::new(), rules, &mut vocabulary);
    compare(&a, &b, rules)
}

impl<'a> Atom<'a> {
    fn new(
        answer: &'a Answer,
        folded: String,
        members: Vec<usize>,
        rules: &Rules,
        vocabulary: &mut Vocabulary,
    ) -> Self {
        Self {
            members,
            claim: answer.claim.as_deref(),
            folded,
            vector: answer.vector.as_deref().map(Vector::new),
            signature: Signature::of(&answer.text, rules, vocabulary),
        }
    }
}

/// Sorted by content.
fn atoms<'a>(answers: &'a [Answer], rules: &Rules) -> Vec<Atom<'a>> {
    let mut by_content: BTreeMap<(Option<&str>, String), Vec<usize>> = BTreeMap::new();
    for (index, answer) in answers.iter().enumerate().filter(|(_, answer)| !answer.abstains) {
        // Beside a claim the text is decoration; of equal claims the text that sorts first stands for all.
        let text = if answer.claim.is_some() { String::new() } else { fold(&answer.text) };
        by_content.entry((answer.claim.as_deref(), text)).or_default().push(index);
    }
    let mut vocabulary = Vocabulary::default();
    by_content
        .into_iter()
        .filter_map(|((claim, text), members)| {
            let content = |index: &usize| (&answers[*index].text, &answers[*index].vector);
            let first = members.iter().copied().min_by(|a, b| content(a).cmp(&content(b)))?;
            let folded = if claim.is_some() { fold(&answers[first].text) } else { text };
            Some(Atom::new(&answers[first], folded, members, rules, &mut vocabulary))
        })
        .collect()
}

/// Zero for answers that are not joined. Vectors are compared first: the guard takes longer, and cannot join what they keep apart.
fn similarity(a: &Atom<'_>, b: &Atom<'_>, threshold: Micro, rules: &Rules) -> Micro {
    let by_text = a.claim.is_none() || b.claim.is_none();
    let is_near = || vectors(a, b).is_some_and(|(a, b)| cosine(a, b) >= threshold);
    if by_text && a.folded != b.folded && !is_near() {
        return Micro::ZERO;
    }
    match compare(a, b, rules) {
        Likeness::Equal => Micro::ONE,
        Likeness::Cosine(cosine) => cosine,
        Likeness::Apart | Likeness::Guarded(_) => Micro::ZERO,
    }
}

fn compare(a: &Atom<'_>, b: &Atom<'_>, rules: &Rules) -> Likeness {
    if let (Some(a), Some(b)) = (a.claim, b.claim) {
        return if a == b { Likeness::Equal } else { Likeness::Apart };
    }
    if a.folded == b.folded && !a.folded.is_empty() {
        return Likeness::Equal;
    }
    if let Some(difference) = a.signature.difference(&b.signature, rules) {
        return Likeness::Guarded(difference);
    }
    match vectors(a, b) {
        Some((a, b)) => Likeness::Cosine(cosine(a, b)),
        None => Likeness::Apart,
    }
}

/// Vectors that can be compared.
fn vectors<'a>(a: &Atom<'a>, b: &Atom<'a>) -> Option<(Vector<'a>, Vector<'a>)> {
    a.vector.zip(b.vector).filter(|(a, b)| a.components.len() == b.components.len())
}

fn dot(a: &[i64], b: &[i64]) -> i128 {
    a.iter().zip(b).map(|(a, b)| i128::from(*a) * i128::from(*b)).sum()
}

/// The cosine, rounded down; zero if it is negative or a vector is zero.
fn cosine(a: Vector<'_>, b: Vector<'_>) -> Micro {
    let product = dot(a.components, b.components);
    // Each is below 10^18 times the dimension; scaled by the lengths before they are multiplied.
    let lengths = a.length * b.length;
    if product <= 0 || lengths == 0 {
        return Micro::ZERO;
    }
    let millionths = product.unsigned_abs() * 1_000_000 / lengths;
    Micro::from_millionths(u64::try_from(millionths).unwrap_or(u64::MAX)).min(Micro::ONE)
}

/// The first of the most similar pairs.
fn most_similar(
    similar: &[Vec<Micro>],
    clusters: &[Option<Vec<usize>>],
    threshold: Micro,
) -> Option<(usize, usize)> {
    let live: Vec<usize> = (0..clusters.len()).filter(|index| clusters[*index].is_some()).collect();
    let mut best: Option<(Micro, usize, usize)> = None;
    for (at, &a) in live.iter().enumerate() {
        for &b in &live[at + 1..] {
            if similar[a][b] >= threshold && best.is_none_or(|(value, ..)| similar[a][b] > value) {
                best = Some((similar[a][b], a, b));
            }
        }
    }
    best.map(|(_, a, b)| (a, b))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{Inputs, Response};

    fn clusters(responses: Vec<Response>) -> Vec<Vec<String>> {
        let rules = Rules::current().unwrap();
        let frozen = Inputs { responses, ..Inputs::default() }.freeze(&rules).unwrap();
        let name = |index: usize| frozen.answers[index].agent.clone();
        cluster(&frozen.answers, &rules)
            .into_iter()
            .map(|members| members.into_iter().map(name).collect())
            .collect()
    }

    fn response(agent: &str, text: &str, angle: f32) -> Response {
        Response {
            agent: agent.into(),
            id: agent.into(),
            text: text.into(),
            embedding: Some(vec![angle.cos(), angle.sin()]),
            ..Response::default()
        }
    }

    #[test]
    fn linkage_is_complete() {
        // The cosines of neighbours are 0.88 and 0.83, that of the ends is 0.45.
        let chain = vec![
            response("a", "the cat is big", 0.0),
            response("b", "a cat that is really very large indeed", 0.5),
            response("c", "huge the animal seems to be", 1.1),
        ];
        assert_eq!(clusters(chain), [vec!["a", "b"], vec!["c"]]);
    }

    #[test]
    fn the_guard_wins_over_the_cosine() {
        let same = vec![response("a", "It takes 5 minutes.", 0.0), response("b", "It takes 6 minutes.", 0.0)];
        assert_eq!(clusters(same).len(), 2);
    }

    #[test]
    fn a_claim_decides_before_the_text() {
        let claimed = |agent: &str, text: &str, claim: &str| Response {
            claim: Some(claim.into()),
            ..response(agent, text, 0.0)
        };
        let answers = vec![
            claimed("a", "I am sure it is Paris", r#"{"city":"Paris"}"#),
            claimed("b", "certainly", r#"{"city":"paris"}"#),
            claimed("c", "I am sure it is Paris", r#"{"city":"Lyon"}"#),
        ];
        assert_eq!(clusters(answers), [vec!["a", "b"], vec!["c"]]);
    }

    #[test]
    fn texts_without_vectors_join_only_if_they_are_equal() {
        let plain = |agent: &str, text: &str| Response { embedding: None, ..response(agent, text, 0.0) };
        assert_eq!(
            clusters(vec![plain("a", "Paris"), plain("b", "paris "), plain("c", "It is Paris")]),
            [vec!["a", "b"], vec!["c"]]
        );
    }

    #[test]
    fn the_cosine_of_nothing_is_zero() {
        let cosine = |a: &[i64], b: &[i64]| cosine(Vector::new(a), Vector::new(b));
        assert_eq!(cosine(&[], &[]), Micro::ZERO);
        assert_eq!(cosine(&[0, 0], &[1, 1]), Micro::ZERO);
        assert_eq!(cosine(&[5, 0], &[-5, 0]), Micro::ZERO);
        assert_eq!(cosine(&[1_000_000, 0], &[1_000_000, 0]), Micro::ONE);
    }
}
