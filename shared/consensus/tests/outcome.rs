//! Status and score of whole votes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use consensus::{
    Agent, Dossier, Evidence, InputError, Inputs, Micro, Reason, Record, Response, Rules, Standing, Status,
    Verdict, render,
};

fn rules() -> Rules {
    Rules::current().unwrap()
}

/// Agents that answer, each of a family.
fn vote(votes: &[(&str, &str, &str)]) -> Inputs {
    let response = |(agent, _, text): &(&str, &str, &str)| Response {
        id: format!("r-{agent}"),
        agent: (*agent).to_owned(),
        text: (*text).to_owned(),
        ..Response::default()
    };
    let agent = |(agent, family, _): &(&str, &str, &str)| {
        let family = Some((*family).to_owned()).filter(|family| !family.is_empty());
        ((*agent).to_owned(), Agent { family, ..Agent::default() })
    };
    Inputs {
        task: "task".into(),
        question: "What is the capital of France?".into(),
        task_kind: "geography".into(),
        quorum: 2,
        responses: votes.iter().map(response).collect(),
        agents: votes.iter().map(agent).collect(),
        ..Inputs::default()
    }
}

fn dossier(inputs: &Inputs) -> Dossier {
    let dossier = Dossier::compute(inputs, &rules()).unwrap();
    let outcome = &dossier.outcome;
    for value in [outcome.score, outcome.share, outcome.margin, outcome.entropy] {
        assert!(value <= Micro::ONE, "{outcome:?}");
    }
    assert!((0.0..=1.0).contains(&dossier.score()));
    assert!(render(&dossier).lines().all(|line| line.chars().count() <= 100));
    dossier
}

fn record(right: f64, wrong: f64) -> Record {
    Record { right: Micro::from_f64(right), wrong: Micro::from_f64(wrong), confidence: Micro::ZERO }
}

#[test]
fn three_families_validate_and_one_family_of_any_size_does_not() {
    let three = dossier(&vote(&[("a", "x", "Paris"), ("b", "y", "paris"), ("c", "z", "Paris ")]));
    assert_eq!(three.outcome.status, Status::Validated, "{three:?}");
    assert_eq!(three.score(), 0.75);
    let names: Vec<String> = (0..100).map(|number| format!("a{number:03}")).collect();
    for size in [4, 100] {
        let one: Vec<_> = names[..size].iter().map(|name| (name.as_str(), "x", "Paris")).collect();
        let one = dossier(&vote(&one));
        assert_eq!(one.outcome.status, Status::Unvalidated, "{size}");
        assert_eq!(one.outcome.reasons, [Reason::FewIndependent]);
        assert!(one.score() < 0.58, "{}", one.score());
    }
}

#[test]
fn agents_without_a_declared_family_are_one_family() {
    let votes = [("a", "", "Paris"), ("b", "", "Paris"), ("c", "", "Paris"), ("d", "", "Paris")];
    assert_eq!(dossier(&vote(&votes)).outcome.status, Status::Unvalidated);
}

#[test]
fn a_shared_prompt_or_source_is_no_independent_evidence() {
    let votes = [("a", "x", "Paris"), ("b", "y", "Paris"), ("c", "z", "Paris")];
    let mut inputs = vote(&votes);
    for agent in inputs.agents.values_mut() {
        agent.prompt = Some("p".into());
    }
    let shared = dossier(&inputs);
    assert_eq!(shared.outcome.status, Status::Unvalidated, "{shared:?}");
    assert_eq!(shared.outcome.independent_voters, Micro::from_f64(1.75));
    let mut inputs = vote(&votes);
    for response in &mut inputs.responses {
        response.evidence = vec![Evidence::Source("page".into()), Evidence::Source(response.agent.clone())];
    }
    assert_eq!(dossier(&inputs).outcome.independent_voters, Micro::from_f64(1.3125));
}

#[test]
fn what_was_recalled_from_consensus_does_not_count_for_it() {
    let mut inputs = vote(&[("a", "x", "Paris"), ("b", "y", "Paris"), ("c", "z", "Paris")]);
    inputs.responses[2].evidence = vec![Evidence::Recalled("node".into())];
    let recalled = dossier(&inputs);
    assert_eq!(recalled.outcome.status, Status::Pending);
    assert_eq!(recalled.votes[2].counted, Micro::ZERO);
    inputs.responses[2].evidence.push(Evidence::Source("atlas".into()));
    assert_eq!(dossier(&inputs).outcome.status, Status::Validated);
}

#[test]
fn a_tie_is_disputed_and_names_both() {
    let tie =
        dossier(&vote(&[("a", "x", "Paris"), ("b", "y", "Lyon"), ("c", "z", "Lyon"), ("d", "w", "Paris")]));
    assert_eq!(tie.outcome.status, Status::Disputed);
    assert_eq!(tie.outcome.reasons, [Reason::Tie]);
    assert_eq!(tie.outcome.leaders, [0, 1]);
    assert_eq!(tie.outcome.margin, Micro::ZERO);
    let text = render(&tie);
    assert!(text.contains("A tie: the answers 1 and 2"), "{text}");
}

#[test]
fn strong_dissent_and_contradiction_are_disputes() {
    let votes = [("a", "x", "Paris"), ("b", "y", "Paris"), ("c", "z", "Lyon")];
    let dissent = dossier(&vote(&votes));
    assert_eq!(
        (dissent.outcome.status, &dissent.outcome.reasons[..]),
        (Status::Disputed, &[Reason::Dissent][..])
    );
    assert_eq!(dissent.dissent().count(), 1);
    let mut inputs = vote(&[("a", "x", "Paris"), ("b", "y", "Paris"), ("c", "z", "Paris")]);
    inputs.standing.contradicts = vec!["node".into()];
    assert_eq!(dossier(&inputs).outcome.reasons, [Reason::Contradiction]);
}

#[test]
fn a_verdict_and_a_successor_decide() {
    let mut inputs = vote(&[("a", "x", "Paris")]);
    for (standing, status) in [
        (Standing { verdict: Some(Verdict::Confirmed), ..Standing::default() }, Status::Validated),
        (Standing { verdict: Some(Verdict::Rejected), ..Standing::default() }, Status::Rejected),
        (Standing { superseded_by: Some("other".into()), ..Standing::default() }, Status::Superseded),
    ] {
        inputs.standing = standing;
        assert_eq!(dossier(&inputs).outcome.status, status);
    }
}

#[test]
fn no_vote_breaks_the_arithmetic() {
    let bad = record(0.0, 1000.0);
    type Case = (&'static str, Inputs, Status, f64);
    let mut unreliable = vote(&[("a", "x", "Paris"), ("b", "y", "Paris"), ("c", "z", "Lyon")]);
    unreliable.agents.values_mut().for_each(|agent| agent.record = bad);
    let mut one_reliable = unreliable.clone();
    one_reliable.agents.insert("d".into(), Agent { family: Some("w".into()), ..Agent::default() });
    one_reliable.responses.push(Response { agent: "d".into(), text: "Lyon".into(), ..Response::default() });
    let mut null = vote(&[("a", "x", "text"), ("b", "y", "text"), ("c", "z", "text")]);
    null.responses.iter_mut().for_each(|response| response.claim = Some("\"unknown\"".into()));
    let cases: [Case; 10] = [
        ("nobody", vote(&[]), Status::Unvalidated, 0.0),
        ("one voter", vote(&[("a", "x", "Paris")]), Status::Unvalidated, 0.5),
        ("all the same", vote(&[("a", "x", "P"), ("b", "y", "P")]), Status::Pending, 0.666_667),
        ("all different", vote(&[("a", "x", "P"), ("b", "y", "Q"), ("c", "z", "R")]), Status::Disputed, 0.25),
        (
            "all abstain",
            vote(&[("a", "x", "I don’t know."), ("b", "y", "unknown")]),
            Status::Unvalidated,
            0.0,
        ),
        ("empty text", vote(&[("a", "x", ""), ("b", "y", " \n")]), Status::Unvalidated, 0.0),
        ("zero weight", unreliable, Status::Unvalidated, 0.0),
        ("one counts", one_reliable, Status::Unvalidated, 0.5),
        ("claims that abstain", null, Status::Unvalidated, 0.0),
        ("one empty", vote(&[("a", "x", ""), ("b", "y", "P")]), Status::Unvalidated, 0.5),
    ];
    for (name, inputs, status, score) in cases {
        let dossier = dossier(&inputs);
        assert_eq!((dossier.outcome.status, dossier.score()), (status, score), "{name}: {dossier:?}");
    }
}

#[test]
fn a_good_record_weighs_more() {
    let mut inputs = vote(&[("a", "x", "Paris"), ("b", "y", "Lyon"), ("c", "z", "Lyon")]);
    inputs.agents.get_mut("a").unwrap().record = record(200.0, 2.0);
    let dossier = dossier(&inputs);
    assert_eq!(dossier.clusters[0].agents, ["a"]);
    assert!(dossier.clusters[0].weight > dossier.clusters[1].weight);
}

#[test]
fn bad_inputs_are_refused() {
    let with = |change: fn(&mut Response)| {
        let mut inputs = vote(&[("a", "x", "P"), ("b", "y", "P")]);
        inputs.responses[0].embedding = Some(vec![1.0]);
        change(&mut inputs.responses[1]);
        Dossier::compute(&inputs, &rules()).map_err(|fault| fault.to_string())
    };
    type Case = (fn(&mut Response), &'static str);
    let cases: [Case; 5] = [
        (|response| response.confidence = Some(f64::NAN), "confidence"),
        (|response| response.confidence = Some(1.1), "confidence"),
        (|response| response.claim = Some("{".into()), "not JSON"),
        (|response| response.embedding = Some(vec![f32::NAN]), "component"),
        (|response| response.embedding = Some(vec![1.0, 2.0]), "dimensions"),
    ];
    for (change, part) in cases {
        let fault = with(change).unwrap_err();
        assert!(fault.contains(part), "{fault}");
    }
    let many = Inputs {
        responses: (0..501).map(|n| Response { agent: n.to_string(), ..Response::default() }).collect(),
        agents: BTreeMap::new(),
        ..Inputs::default()
    };
    assert!(Dossier::compute(&many, &rules()).unwrap_err().to_string().contains("501"));
}

/// As many agents as a task may have, with texts as long as they may be, all of the same names: no shorter way tells them apart.
#[test]
fn the_answers_that_a_task_may_have_are_compared_in_time() {
    const AGENTS: usize = 500;
    let words: Vec<String> = (0..280).map(|n| format!("Name{n:03}")).collect();
    let responses = (0..AGENTS).map(|agent| {
        let mut words = words.clone();
        words.rotate_left(agent % 280);
        Response {
            id: format!("r{agent}"),
            agent: format!("agent{agent:03}"),
            text: format!("It is {agent_word} {}", words.join(" "), agent_word = "so".repeat(1 + agent)),
            embedding: Some(vec![1.0; 384]),
            ..Response::default()
        }
    });
    let inputs = Inputs { responses: responses.collect(), ..Inputs::default() };
    let since = std::time::Instant::now();
    let dossier = Dossier::compute(&inputs, &rules()).unwrap();
    assert_eq!(dossier.clusters.len(), 1, "equal vectors and names");
    // PostgreSQL ends a transaction that is idle for ten seconds.
    assert!(since.elapsed() < std::time::Duration::from_secs(5), "{:?}", since.elapsed());
}

/// Eighteen characters in one: as many as a response may have, for each of so many agents as may use all of them.
#[test]
fn answers_that_normalisation_would_lengthen_are_compared_in_time() {
    let responses = (0..32).map(|agent| Response {
        id: format!("r{agent}"),
        agent: format!("agent{agent:02}"),
        text: format!("{agent} {}", "\u{fdfa}".repeat(16_000)),
        claim: (agent % 2 == 0).then(|| format!("[\"{agent} {}\"]", "\u{fdfa}".repeat(5_000))),
        ..Response::default()
    });
    let inputs = Inputs { responses: responses.collect(), ..Inputs::default() };
    let since = std::time::Instant::now();
    let dossier = Dossier::compute(&inputs, &rules()).unwrap();
    assert_eq!(dossier.clusters.len(), 32, "they differ at their beginning");
    assert!(since.elapsed() < std::time::Duration::from_secs(5), "{:?}", since.elapsed());
}

#[test]
fn a_response_with_a_text_that_becomes_much_longer_is_refused() {
    let abstains = |text: &str, claim: Option<String>| {
        let response = Response { text: text.to_owned(), claim, ..Response::default() };
        consensus::abstains(&response, &rules()).map_err(|error| matches!(error, InputError::Growth { .. }))
    };
    let many = "\u{fdfa}".repeat(100);
    assert_eq!(abstains(&many, None), Err(true));
    assert_eq!(abstains(&many, Some("1".to_owned())), Err(true));
    for claim in
        [format!("[1,\"{many}\"]"), format!("{{\"{many}\":1}}"), format!("\"{}\"", "\\ufdfa".repeat(100))]
    {
        assert_eq!(abstains("so", Some(claim)), Err(true));
    }
    assert_eq!(abstains(&format!("{}{many}", "word ".repeat(400)), None), Ok(false));
    // What follows an abstention may be long.
    for text in [format!("unknown{}", ".".repeat(500)), format!("{}?", "\u{200b}".repeat(500)), String::new()]
    {
        assert_eq!(abstains(&text, None), Ok(true), "{text:?}");
    }
    assert_eq!(abstains(&"unknown ".repeat(100), None), Ok(false));
}
