//! What holds for all votes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use consensus::{
    Agent, Dossier, Evidence, Inputs, Likeness, Micro, Record, Response, Rules, Standing, Verdict,
    Verification, likeness, verify,
};
use proptest::prelude::*;

const TEXTS: [&str; 8] =
    ["Paris", "paris ", "It is Paris", "London", "It is not Paris", "", "5 km", "unknown"];
const CLAIMS: [&str; 4] = ["null", r#"{"city":"Paris"}"#, r#"{"CITY":"paris"}"#, r#"{"city":"Rome"}"#];

fn response() -> impl Strategy<Value = Response> {
    let embedding = proptest::option::of(proptest::collection::vec(-1.0f32..1.0, 3));
    let claim = proptest::option::of(0..CLAIMS.len());
    let evidence = proptest::collection::vec((0..4u8, any::<bool>()), 0..3);
    (0..6u8, 0..4u64, 0..TEXTS.len(), claim, proptest::option::of(0.0..=1.0f64), embedding, evidence)
        .prop_map(|(agent, sequence, text, claim, confidence, embedding, evidence)| Response {
            id: format!("{agent}-{sequence}-{text}-{claim:?}"),
            agent: format!("agent-{agent}"),
            sequence,
            text: TEXTS[text].into(),
            claim: claim.map(|claim| CLAIMS[claim].into()),
            confidence,
            embedding,
            evidence: evidence
                .into_iter()
                .map(|(root, recalled)| {
                    let name = root.to_string();
                    if recalled { Evidence::Recalled(name) } else { Evidence::Source(name) }
                })
                .collect(),
        })
}

fn agent() -> impl Strategy<Value = Agent> {
    let count = || 0..50u32;
    (proptest::option::of(0..3u8), proptest::option::of(0..2u8), count(), count()).prop_map(
        |(family, prompt, right, wrong)| Agent {
            family: family.map(|family| family.to_string()),
            prompt: prompt.map(|prompt| prompt.to_string()),
            record: Record {
                right: Micro::from_f64(f64::from(right)),
                wrong: Micro::from_f64(f64::from(wrong)),
                confidence: Micro::from_f64(f64::from(right + wrong) * 0.75),
            },
        },
    )
}

fn inputs() -> impl Strategy<Value = Inputs> {
    let responses = proptest::collection::vec(response(), 0..14);
    (responses, proptest::collection::vec(agent(), 6), 0..4u32).prop_map(|(mut responses, agents, quorum)| {
        // One response has one id.
        responses.sort_by(|a, b| a.id.cmp(&b.id));
        responses.dedup_by(|a, b| a.id == b.id);
        let agents = agents.into_iter().enumerate().map(|(number, agent)| (format!("agent-{number}"), agent));
        Inputs { task: "t".into(), quorum, responses, agents: agents.collect(), ..Inputs::default() }
    })
}

fn standing() -> impl Strategy<Value = Standing> {
    let verdict = prop_oneof![Just(None), Just(Some(Verdict::Confirmed)), Just(Some(Verdict::Rejected))];
    let contradicts = proptest::collection::vec("[a-c]", 0..3);
    (verdict, proptest::option::of("[a-c]"), contradicts)
        .prop_map(|(verdict, superseded_by, contradicts)| Standing { verdict, superseded_by, contradicts })
}

fn bytes(inputs: &Inputs) -> Vec<u8> {
    Dossier::compute(inputs, &Rules::current().unwrap()).unwrap().to_bytes().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_order_of_arrival_never_changes_the_bytes((inputs, order) in inputs().prop_flat_map(|inputs| {
        let order = Just(inputs.responses.clone()).prop_shuffle();
        (Just(inputs), order)
    })) {
        let shuffled = Inputs { responses: order, ..inputs.clone() };
        prop_assert_eq!(bytes(&inputs), bytes(&shuffled));
    }

    #[test]
    fn a_duplicate_never_counts_twice(inputs in inputs(), at in any::<prop::sample::Index>()) {
        prop_assume!(!inputs.responses.is_empty());
        let mut twice = inputs.clone();
        twice.responses.push(inputs.responses[at.index(inputs.responses.len())].clone());
        prop_assert_eq!(bytes(&inputs), bytes(&twice));
    }

    #[test]
    fn an_agreeing_independent_voter_never_lowers_the_score(
        inputs in inputs(), right in 0..100u32, wrong in 0..100u32, confidence in proptest::option::of(0.0..=1.0f64),
    ) {
        let rules = Rules::current().unwrap();
        let before = Dossier::compute(&inputs, &rules).unwrap();
        prop_assume!(before.outcome.leaders.len() == 1);
        let speaker = &before.clusters[0].agents[0];
        let response = before.votes.iter().find(|vote| vote.agent == *speaker).unwrap().response.clone();
        let said = inputs.responses.iter().find(|candidate| candidate.id == response).unwrap();
        let mut more = inputs.clone();
        more.responses.push(Response {
            id: "new".into(), agent: "new".into(), confidence, evidence: Vec::new(), ..said.clone()
        });
        let record = Record {
            right: Micro::from_f64(f64::from(right)), wrong: Micro::from_f64(f64::from(wrong)), confidence: Micro::ZERO,
        };
        more.agents.insert("new".into(), Agent { family: Some("new".into()), prompt: None, record });
        let after = Dossier::compute(&more, &rules).unwrap();
        prop_assert!(after.outcome.score >= before.outcome.score, "{:?} {:?}", before, after);
        prop_assert!(after.outcome.share >= before.outcome.share);
    }

    #[test]
    fn every_value_is_in_range_and_verifies(inputs in inputs()) {
        let rules = Rules::current().unwrap();
        let dossier = Dossier::compute(&inputs, &rules).unwrap();
        let outcome = &dossier.outcome;
        for value in [outcome.score, outcome.share, outcome.margin, outcome.entropy] {
            prop_assert!(value <= Micro::ONE);
        }
        let sum: Micro = dossier.clusters.iter().map(|cluster| cluster.share).sum();
        prop_assert!(sum.millionths() == 0 || sum.millionths().abs_diff(1_000_000) <= dossier.clusters.len() as u64);
        prop_assert!(outcome.independent_voters.millionths() <= 1_000_000 * dossier.votes.len() as u64);
        prop_assert_eq!(verify(&dossier.to_bytes().unwrap(), &inputs, &rules).unwrap(), Verification::Same);
    }

    #[test]
    fn a_dossier_under_another_standing_is_the_one_that_is_computed_with_it(
        inputs in inputs(), before in standing(), after in standing(),
    ) {
        let rules = Rules::current().unwrap();
        let stored = bytes(&Inputs { standing: before, ..inputs.clone() });
        let inputs = Inputs { standing: after, ..inputs };
        let dossier = Dossier::read(&stored, &rules).unwrap().with_standing(&inputs, &rules).unwrap();
        prop_assert_eq!(dossier.to_bytes().unwrap(), bytes(&inputs));
        let mut other = rules;
        other.id.version += 1;
        prop_assert!(Dossier::read(&stored, &other).is_none());
        prop_assert!(Dossier::read(b"null", &other).is_none());
    }

    #[test]
    fn the_names_of_agents_have_no_influence_on_clusters(inputs in inputs()) {
        let renamed = |agent: &str| format!("z{}", 9 - agent.as_bytes()[agent.len() - 1] % 10);
        let mut other = inputs.clone();
        other.responses.iter_mut().for_each(|response| response.agent = renamed(&response.agent));
        other.agents = inputs.agents.iter().map(|(name, agent)| (renamed(name), agent.clone())).collect();
        let groups = |inputs: &Inputs, rename: bool| {
            let dossier = Dossier::compute(inputs, &Rules::current().unwrap()).unwrap();
            let name = |agent: &String| if rename { renamed(agent) } else { agent.clone() };
            let mut groups: Vec<Vec<String>> = dossier
                .clusters
                .iter()
                .map(|cluster| {
                    let mut agents: Vec<String> = cluster.agents.iter().map(name).collect();
                    agents.sort();
                    agents
                })
                .collect();
            groups.sort();
            groups
        };
        prop_assert_eq!(groups(&inputs, true), groups(&other, false));
    }

    #[test]
    fn likeness_is_symmetric(a in response(), b in response()) {
        let rules = Rules::current().unwrap();
        prop_assert_eq!(likeness(&a, &b, &rules).unwrap(), likeness(&b, &a, &rules).unwrap());
    }

    #[test]
    fn any_text_has_a_signature_and_equals_itself(text in any::<String>()) {
        let rules = Rules::current().unwrap();
        let response = Response { text, embedding: Some(vec![1.0]), ..Response::default() };
        let alike = likeness(&response, &response, &rules).unwrap();
        prop_assert!(matches!(alike, Likeness::Equal | Likeness::Cosine(Micro::ONE)), "{:?}", alike);
    }
}
