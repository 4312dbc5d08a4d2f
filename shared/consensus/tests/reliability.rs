//! The estimate over many tasks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use consensus::{
    ReliabilityRules, Rules,
    dataset::Dataset,
    reliability::{Online, OpenTask, Task, estimate, estimate_open, most_probable},
};

fn rules() -> ReliabilityRules {
    Rules::current().unwrap().reliability
}

/// Tasks of four options that agents answer with their accuracies; and the truths.
fn crowd(seed: u64, accuracies: &[f64], count: usize, each: usize) -> (Vec<Task>, Vec<u32>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut truths = Vec::new();
    let mut task = || {
        let truth = random.u32(0..4);
        truths.push(truth);
        let agents = random.choose_multiple(0..accuracies.len() as u32, each);
        let answer = |agent: u32| {
            let right = random.f64() < accuracies[agent as usize];
            (agent, if right { truth } else { (truth + random.u32(1..4)) % 4 })
        };
        Task { answers: agents.into_iter().map(answer).collect(), truth: None }
    };
    let tasks = (0..count).map(|_| task()).collect();
    (tasks, truths)
}

fn accuracy(probabilities: &[Vec<f64>], truths: &[u32]) -> f64 {
    let right =
        |(probabilities, truth): &(&Vec<f64>, &u32)| most_probable(probabilities) == [**truth as usize];
    probabilities.iter().zip(truths).filter(right).count() as f64 / truths.len() as f64
}

fn online(tasks: &[Task]) -> Online {
    let mut online = Online::new(4, Vec::new(), &rules());
    for task in tasks {
        let number = online.open();
        for (agent, option) in &task.answers {
            online.observe(number, *agent, *option);
        }
    }
    online
}

#[test]
fn accuracies_are_found_without_the_truth() {
    let accuracies = [0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.25];
    let (tasks, truths) = crowd(1, &accuracies, 1000, 6);
    let batch = estimate(&tasks, 10, 4, &[], &rules());
    let online = online(&tasks);
    for (agent, expected) in accuracies.iter().enumerate() {
        for found in [batch.agents[agent], online.agents()[agent]] {
            assert!((found.accuracy - expected).abs() < 0.06, "{agent}: {found:?}, expected {expected}");
            assert!(found.right <= found.answers);
        }
    }
    assert!(accuracy(&batch.tasks, &truths) > 0.9);
}

#[test]
fn the_same_tasks_in_another_order_of_answers_give_the_same_bits() {
    let (tasks, _) = crowd(2, &[0.8; 12], 200, 5);
    let mut reversed = tasks.clone();
    reversed.iter_mut().for_each(|task| task.answers.reverse());
    let (a, b) = (estimate(&tasks, 12, 4, &[], &rules()), estimate(&reversed, 12, 4, &[], &rules()));
    assert_eq!(a.tasks, b.tasks);
    assert_eq!(a.agents, b.agents);
}

#[test]
fn empty_cells_and_strange_tasks_are_no_trouble() {
    let answer = |agent, option| Task { answers: vec![(agent, option)], truth: None };
    for tasks in [
        vec![],
        vec![Task::default()],
        vec![answer(0, 0)],
        vec![answer(0, 0), answer(1, 0), answer(2, 0)],
        vec![answer(9, 0), answer(0, 9)],
        vec![Task { answers: vec![(0, 1), (0, 2), (1, 1)], truth: Some(7) }],
        vec![Task { answers: vec![(0, 1)], truth: Some(0) }],
    ] {
        for options in [0, 1, 4] {
            let result = estimate(&tasks, 3, options, &[], &rules());
            let mut online = Online::new(options, vec![0; 3], &rules());
            for task in &tasks {
                let number = online.open();
                task.answers.iter().for_each(|(agent, option)| online.observe(number, *agent, *option));
                task.truth.into_iter().for_each(|truth| online.confirm(number, truth));
            }
            let agents = result.agents.iter().chain(&online.agents()).copied().collect::<Vec<_>>();
            assert!(agents.iter().all(|agent| (0.0..=1.0).contains(&agent.accuracy)), "{agents:?}");
            for probabilities in result.tasks.iter().filter(|probabilities| !probabilities.is_empty()) {
                assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{probabilities:?}");
            }
        }
    }
    assert!(most_probable(&[]).is_empty());
}

#[test]
fn a_verdict_teaches_who_was_right() {
    let (mut tasks, truths) = crowd(3, &[0.6, 0.6, 0.6, 0.6], 300, 4);
    // Agents 0 to 2 conspire; only verdicts can tell.
    for (task, truth) in tasks.iter_mut().zip(&truths) {
        for (agent, option) in &mut task.answers {
            *option = if *agent == 3 { *truth } else { (truth + 1) % 4 };
        }
    }
    let fooled = estimate(&tasks, 4, 4, &[], &rules());
    assert!(fooled.agents[3].accuracy < 0.2);
    tasks.iter_mut().zip(&truths).take(150).for_each(|(task, truth)| task.truth = Some(*truth));
    let told = estimate(&tasks, 4, 4, &[], &rules());
    assert!(told.agents[3].accuracy > 0.9 && told.agents[0].accuracy < 0.1, "{:?}", told.agents);
}

#[test]
fn a_group_that_copies_does_not_outvote_independent_agents() {
    let (mut tasks, truths) = crowd(4, &[0.7; 9], 400, 9);
    // Agents 3 to 8 are copies of agent 3.
    for task in &mut tasks {
        task.answers.sort_unstable();
        let copied = task.answers[3].1;
        task.answers[4..].iter_mut().for_each(|(_, option)| *option = copied);
    }
    let naive = accuracy(&estimate(&tasks, 9, 4, &[], &rules()).tasks, &truths);
    let groups = [0, 1, 2, 3, 3, 3, 3, 3, 3];
    let grouped = accuracy(&estimate(&tasks, 9, 4, &groups, &rules()).tasks, &truths);
    assert!(grouped > naive + 0.05, "{grouped} {naive}");
}

#[test]
fn the_last_answer_of_an_agent_counts_once() {
    let (tasks, _) = crowd(5, &[0.8; 6], 50, 4);
    let mut twice = tasks.clone();
    for task in &mut twice {
        let mut first: Vec<_> =
            task.answers.iter().map(|(agent, option)| (*agent, (option + 1) % 4)).collect();
        first.append(&mut task.answers);
        task.answers = first;
    }
    let (a, b) = (estimate(&tasks, 6, 4, &[], &rules()), estimate(&twice, 6, 4, &[], &rules()));
    assert_eq!(a.tasks, b.tasks);
    let answers: f64 = online(&twice).agents().iter().map(|agent| agent.answers).sum();
    assert!((answers - 200.0).abs() < 1e-6, "{answers}");
}

#[test]
fn limits_leave_out_the_oldest() {
    let (tasks, _) = crowd(6, &[0.8; 6], 50, 4);
    for limits in
        [ReliabilityRules { task_limit: 10, ..rules() }, ReliabilityRules { answer_limit: 43, ..rules() }]
    {
        let estimate = estimate(&tasks, 6, 4, &[], &limits);
        let known = estimate.tasks.iter().map(|probabilities| !probabilities.is_empty());
        assert_eq!(known.collect::<Vec<_>>(), [vec![false; 40], vec![true; 10]].concat());
    }
    let mut online = Online::new(4, Vec::new(), &ReliabilityRules { task_limit: 10, ..rules() });
    for task in &tasks {
        let number = online.open();
        task.answers.iter().for_each(|(agent, option)| online.observe(number, *agent, *option));
    }
    let before = online.probabilities(0).to_vec();
    online.observe(0, 0, 1);
    assert_eq!(online.probabilities(0), before, "a task beyond the limit is not revised");
    assert_eq!(before.len(), 4);
}

#[test]
fn what_an_estimate_leaves_out_is_judged_by_its_agents() {
    let (tasks, truths) = crowd(8, &[0.95, 0.9, 0.9, 0.3, 0.3, 0.3], 400, 6);
    let limits = ReliabilityRules { task_limit: 200, ..rules() };
    let part = estimate(&tasks, 7, 4, &[], &limits);
    let judged: Vec<Vec<f64>> = tasks.iter().map(|task| part.judge(task, &[], &limits)).collect();
    assert!(accuracy(&judged[..200], &truths[..200]) > 0.9, "the good agents count");
    for (judged, estimated) in judged.iter().zip(&part.tasks).skip(200) {
        let differs = judged.iter().zip(estimated).any(|(a, b)| (a - b).abs() > 0.01);
        assert!(!differs && judged.len() == 4, "as the estimate has it: {judged:?} {estimated:?}");
    }
    // Agent 6 has answered nothing else.
    let strange = |answers, truth| part.judge(&Task { answers, truth }, &[], &limits);
    assert_eq!(most_probable(&strange(vec![(6, 2), (99, 1), (0, 9)], None)), [2]);
    assert_eq!(strange(vec![(0, 1)], Some(3)), [0.0, 0.0, 0.0, 1.0]);
    assert!(strange(vec![], None).is_empty());
}

#[test]
fn open_tasks_that_an_estimate_leaves_out_are_judged_by_its_agents() {
    // Agents 3 and 4 agree on what is wrong, as 0 to 2 show.
    let answers = vec![(0, 0), (1, 0), (2, 0), (3, 1), (4, 1)];
    let tasks = vec![OpenTask { answers, truth: None }; 30];
    let estimate = estimate_open(&tasks, 6, &[], &rules());
    let judge = |answers, truth| estimate.judge(&OpenTask { answers, truth }, &[]);
    assert_eq!(most_probable(&judge(vec![(0, 0), (3, 1), (4, 1)], None)), [0]);
    assert_eq!(judge(vec![(0, 0), (3, 1)], Some(1)), [0.0, 1.0]);
    assert_eq!(most_probable(&judge(vec![(5, 0)], None)), [0], "an agent of which nothing is known");
    assert!(judge(vec![], None).is_empty());
}

#[test]
fn a_data_set_is_estimated_beyond_the_limits() {
    let (tasks, truths) = crowd(9, &[0.9; 6], 100, 4);
    let answers = (0..).zip(&tasks).flat_map(|(question, task)| {
        task.answers.iter().map(move |(agent, option)| (question, *agent, *option))
    });
    let dataset = Dataset {
        answers: answers.collect(),
        truths: truths.into_iter().map(Some).collect(),
        workers: 6,
        options: 4,
    };
    let limits = ReliabilityRules { task_limit: 10, answer_limit: 43, ..rules() };
    assert_eq!(dataset.accuracy(&limits), dataset.accuracy(&rules()));
    assert!(dataset.batch_accuracy(&limits) > 0.9);

    let thinned = dataset.thinned(30);
    assert_eq!((thinned.questions(), thinned.answers.len()), (25, 100), "every fourth question");
    assert_eq!(thinned.tasks()[4].answers, tasks[4].answers);
    assert!(thinned.majority_accuracy() > 0.8, "the others are not scored");
    assert_eq!(dataset.thinned(100).answers, dataset.answers);
}

#[test]
fn open_tasks_tell_good_agents_from_bad_ones() {
    let mut random = fastrand::Rng::with_seed(7);
    let accuracies = [0.9, 0.9, 0.7, 0.5, 0.3];
    let mut task = || {
        let answer = |agent: u32| {
            let right = random.f64() < accuracies[agent as usize];
            // Wrong answers rarely agree.
            (agent, if right { 0 } else { random.u32(1..5) })
        };
        OpenTask { answers: (0..5).map(answer).collect(), truth: None }
    };
    let tasks: Vec<_> = (0..500).map(|_| task()).collect();
    let estimate = estimate_open(&tasks, 5, &[], &rules());
    for (agent, expected) in accuracies.iter().enumerate() {
        assert!(
            (estimate.agents[agent].accuracy - expected).abs() < 0.08,
            "{agent}: {:?}",
            estimate.agents[agent]
        );
    }
    for strange in
        [vec![], vec![OpenTask::default()], vec![OpenTask { answers: vec![(9, 0), (0, 9)], truth: Some(3) }]]
    {
        assert_eq!(estimate_open(&strange, 2, &[], &rules()).tasks.len(), strange.len());
    }
}

#[test]
fn real_crowds_are_at_least_as_good_as_the_best_of_three_rules() {
    for (name, best) in [("dog", 0.843), ("face", 0.640)] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/crowd").join(name);
        if !folder.exists() {
            eprintln!("SKIPPED: {} is not there", folder.display());
            continue;
        }
        let accuracy = Dataset::read(&folder).unwrap().accuracy(&rules());
        // The reference has three digits.
        let reached = |value: f64| (value * 1000.0).round() / 1000.0 >= best;
        assert!(
            reached(accuracy.batch_accuracy) && reached(accuracy.online_accuracy),
            "{name}: {accuracy:?}"
        );
    }
}
