//! How well each rule finds the truth of a crowd data set: `cargo run -p consensus --release --example crowd -- DIR [SEEDS]`.
//!
//! Prints JSON for the order of the file, then the median and range of the online rule over shuffled orders.

use std::{error::Error, path::Path, time::Instant};

use consensus::{Rules, dataset::Dataset, reliability};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rules = Rules::current()?.reliability;
    let Some(folder) = arguments.first() else { return speed(&rules) };
    let mut dataset = Dataset::read(Path::new(folder))?;
    println!("{}", serde_json::to_string(&dataset.accuracy(&rules))?);
    let seeds: u64 = arguments.get(1).map_or(Ok(0), |seeds| seeds.parse())?;
    if seeds == 0 {
        return Ok(());
    }
    let (mut by_question, mut by_answer) = (Vec::new(), Vec::new());
    for seed in 0..seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        random.shuffle(&mut dataset.answers);
        by_answer.push(dataset.accuracy(&rules));
        let keys: Vec<u64> = dataset.truths.iter().map(|_| random.u64(..)).collect();
        dataset.answers.sort_by_key(|(question, ..)| keys[*question as usize]);
        by_question.push(dataset.accuracy(&rules));
    }
    for (name, runs) in [("questions shuffled", by_question), ("answers shuffled", by_answer)] {
        println!(
            "{name}: online {}; at close {}; batch {}",
            spread(runs.iter().map(|run| run.online_accuracy)),
            spread(runs.iter().map(|run| run.online_at_close_accuracy)),
            spread(runs.iter().map(|run| run.batch_accuracy)),
        );
    }
    Ok(())
}

fn spread(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    format!("{:.4} ({:.4} to {:.4})", values[values.len() / 2], values[0], values[values.len() - 1])
}

/// 10,000 closed tasks that 100 agents answered each.
fn speed(rules: &consensus::ReliabilityRules) -> Result<(), Box<dyn Error>> {
    let mut random = fastrand::Rng::with_seed(1);
    let accuracy: Vec<f64> = (0..100).map(|_| 0.02 * random.f64()).collect();
    // Agents that are hardly better than chance: the estimate needs all its iterations.
    let answer = |random: &mut fastrand::Rng, truth: u32, agent: u32| {
        let right = random.f64() < accuracy[agent as usize];
        (agent, if right { truth } else { random.u32(0..4) })
    };
    let mut task = || {
        let truth = random.u32(0..4);
        reliability::Task {
            answers: (0..100).map(|agent| answer(&mut random, truth, agent)).collect(),
            truth: None,
        }
    };
    let tasks: Vec<_> = (0..10_000).map(|_| task()).collect();
    for _ in 0..5 {
        let start = Instant::now();
        let estimate = reliability::estimate(&tasks, 100, 4, &[], rules);
        println!("{:.3} s, {} iterations", start.elapsed().as_secs_f64(), estimate.iterations);
    }
    Ok(())
}
