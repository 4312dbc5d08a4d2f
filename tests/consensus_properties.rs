//! What holds of any answers, through the worker and the database. `shared/consensus` tests the arithmetic on many more.

use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;
use testkit::{Fixture, RequestMessage, set_duplicate_window};
use uuid::Uuid;

use crate::support::consensus::{Task, agent, know, process, start};

/// Random groups and their answers.
const CASES: i32 = 10;
const FAMILIES: [&str; 4] = ["v", "w", "x", "y"];
const TEXTS: [&str; 4] = ["The Tagus", "The Douro", "The Minho", ""];

/// An agent: its name, its family, its answer and its confidence.
type Voter = (String, &'static str, &'static str, Option<f64>);

fn group(random: &mut Rng) -> Vec<Voter> {
    let voter = |number| {
        // One answer is likely, so that some lead.
        let text = if random.bool() { TEXTS[0] } else { TEXTS[random.usize(0..TEXTS.len())] };
        let confidence = random.bool().then(|| f64::from(random.u8(0..=10)) / 10.0);
        (format!("agent-{number}"), FAMILIES[random.usize(0..FAMILIES.len())], text, confidence)
    };
    (0..7).map(voter).collect()
}

/// The task of a user for a group, and the requests before the answers.
fn asked(user: i32, group: &[Voter]) -> (Task, Vec<RequestMessage>) {
    let task = Task::of(user);
    let names: Vec<&str> = group.iter().map(|(name, ..)| name.as_str()).collect();
    let mut requests: Vec<RequestMessage> =
        group.iter().map(|(name, family, ..)| agent(user, name, family)).collect();
    requests.push(start(user));
    // All are asked, so the last one closes the task, whoever that is.
    requests.push(task.delegate(&names, group.len(), json!({})));
    (task, requests)
}

fn answers(task: &Task, group: &[Voter]) -> Vec<RequestMessage> {
    let answer = |(name, _, text, confidence): &Voter| {
        let source =
            json!({ "confidence": confidence, "evidence": [{ "source": format!("notes of {name}") }] });
        task.respond(name, text, source)
    };
    group.iter().map(answer).collect()
}

/// All that a task became, without the ids of its user's rows.
async fn outcome(fixture: &Fixture, task: &Task) -> String {
    let row = format!(
        "concat_ws(' | ', n.validation_status, n.consensus_score, n.content, t.close_reason, t.responded, t.answered, t.voters,
            t.choices, t.confidences)
         FROM consensus_tasks t JOIN consensus_memory_nodes n ON n.user_id = t.user_id AND n.id = t.node_id WHERE t.id = '{}'",
        task.id
    );
    let found = fixture.lines(&row).await;
    assert_eq!(found.len(), 1, "one node of {task:?}");
    found[0].clone()
}

async fn score(fixture: &Fixture, task: &Task) -> f64 {
    let row = format!("consensus_score FROM consensus_memory_nodes WHERE task_id = '{}'", task.id);
    fixture.lines(&row).await[0].parse().expect("a score")
}

/// The answer that leads alone, if there is one.
async fn leading(fixture: &Fixture, task: &Task) -> Option<String> {
    let row = format!(
        "coalesce(content ->> 'answer', '') FROM consensus_memory_nodes WHERE task_id = '{}'",
        task.id
    );
    Some(fixture.lines(&row).await.remove(0)).filter(|text| !text.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn order_and_repeats_change_nothing_and_agreement_lowers_no_score() {
    let mut random = Rng::with_seed(19);
    let fixture = Fixture::with_topology(|topology| {
        set_duplicate_window(topology, "CONSENSUS", Duration::from_millis(100));
    })
    .await;
    let fixture = know(fixture, 1..=3 * CASES).await;
    let groups: Vec<Vec<Voter>> = (0..CASES).map(|_| group(&mut random)).collect();
    let (mut requests, mut pairs) = (Vec::new(), Vec::new());
    for (case, group) in (0..).zip(&groups) {
        let [(straight, first), (shuffled, second)] =
            [3 * case + 1, 3 * case + 2].map(|user| asked(user, group));
        requests.extend(first.into_iter().chain(second));
        requests.extend(answers(&straight, group));
        let mut others = answers(&shuffled, group);
        random.shuffle(&mut others);
        // Some come twice: the same message, or the same response in another message; also after the close.
        let repeats: Vec<RequestMessage> = others.iter().step_by(2).cloned().collect();
        let resent = others.iter().skip(1).step_by(2).cloned();
        let resent: Vec<RequestMessage> =
            resent.map(|one| RequestMessage { id: Uuid::now_v7(), ..one }).collect();
        let last = others.pop();
        others.extend(repeats.iter().cloned());
        others.extend(resent);
        random.shuffle(&mut others);
        others.extend(last);
        others.extend(repeats);
        requests.extend(others);
        pairs.push((straight, shuffled));
    }
    process(&fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let voters = groups.iter().map(Vec::len).sum::<usize>();
    assert_eq!(fixture.count("agent_responses").await, 2 * i64::try_from(voters).expect("a count"));
    assert_eq!(fixture.count("agent_responses WHERE NOT is_counted").await, 0);
    let counters = "concat_ws(' ', total_tasks_delegated, tasks_completed) FROM multi_agent_conversations";
    assert!(fixture.lines(counters).await.iter().all(|line| line == "1 1"));

    let (mut more, mut agreeing, mut statuses) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (case, (group, (straight, shuffled))) in (0..).zip(groups.into_iter().zip(&pairs)) {
        let outcome_of = outcome(&fixture, straight).await;
        assert_eq!(outcome_of, outcome(&fixture, shuffled).await, "case {case}");
        statuses.insert(outcome_of.split(' ').next().unwrap_or_default().to_owned());
        // One more, of a family of its own, says what leads.
        let Some(leader) = leading(&fixture, straight).await else { continue };
        let text = TEXTS.into_iter().find(|text| *text == leader).expect("one of the answers");
        let mut group = group;
        group.push(("independent".to_owned(), "z", text, None));
        let (task, before) = asked(3 * case + 3, &group);
        more.extend(before);
        more.extend(answers(&task, &group));
        agreeing.push((score(&fixture, straight).await, task));
    }
    assert!(statuses.len() > 1 && agreeing.len() > 2, "the cases are different: {statuses:?}");
    process(&fixture, more).await;
    for (before, task) in agreeing {
        let after = score(&fixture, &task).await;
        assert!(after >= before, "{after} < {before} with one more that agrees: {task:?}");
    }
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}
