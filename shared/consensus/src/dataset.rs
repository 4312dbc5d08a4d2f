//! Crowd data with known truth, and how well each rule finds it.
//!
//! A data set is a folder with `answer.csv` (question, worker, answer; a line for each answer, in the order in which they
//! came) and `truth.csv` (question, truth). The truth is used to score the rules and for nothing else.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;

use crate::{
    ReliabilityRules,
    reliability::{Online, Task, estimate, most_probable},
};

/// Most bytes of a file of a data set.
const BYTES: u64 = 1 << 28;

/// Why a data set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {fault}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        fault: std::io::Error,
    },
    /// A line has another form.
    #[error("{path}, line {line}: {columns} columns are expected")]
    Line {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// How many columns there must be.
        columns: usize,
    },
    /// Without answers there is nothing to measure.
    #[error("{path} has no answers")]
    Empty {
        /// The file.
        path: String,
    },
}

/// Answers with known truth.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Question, worker and option of each answer, in the order in which they came. Numbers follow the sorted names.
    pub answers: Vec<(u32, u32, u32)>,
    /// The true option of each question that has one.
    pub truths: Vec<Option<u32>>,
    /// The workers.
    pub workers: usize,
    /// The options.
    pub options: usize,
}

/// The share of questions that each rule answers right. A tie between `n` answers counts as `1/n`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Questions with an answer.
    pub questions: usize,
    /// Answers.
    pub answers: usize,
    /// The most frequent answer.
    pub majority_accuracy: f64,
    /// [`estimate`] over all tasks.
    pub batch_accuracy: f64,
    /// The questions that the next two figures are of.
    pub online_questions: usize,
    /// Answer by answer, what is held for each question when the last answer has come: by [`Online`], or by a fleet.
    pub online_accuracy: f64,
    /// The same, what was held for each question right after that question's last answer, never revised.
    pub online_at_close_accuracy: f64,
}

impl Dataset {
    /// Reads a folder.
    ///
    /// # Errors
    /// If a file is missing or has another form.
    pub fn read(folder: &Path) -> Result<Self, DatasetError> {
        let (path, text) = read(&folder.join("answer.csv"))?;
        let answers = rows::<3>(&path, &text)?;
        let (truth_path, text) = read(&folder.join("truth.csv"))?;
        let truths = rows::<2>(&truth_path, &text)?;
        if answers.is_empty() {
            return Err(DatasetError::Empty { path });
        }
        let questions = numbers(answers.iter().map(|[question, ..]| *question));
        let workers = numbers(answers.iter().map(|[_, worker, _]| *worker));
        let given = answers.iter().map(|[.., answer]| *answer);
        let options = numbers(given.chain(truths.iter().map(|[_, truth]| *truth)));
        let mut known = vec![None; questions.len()];
        for [question, truth] in &truths {
            if let Some(question) = questions.get(*question) {
                known[*question as usize] = options.get(*truth).copied();
            }
        }
        let row = |[question, worker, answer]: &[&str; 3]| {
            Some((*questions.get(*question)?, *workers.get(*worker)?, *options.get(*answer)?))
        };
        Ok(Self {
            answers: answers.iter().filter_map(row).collect(),
            truths: known,
            workers: workers.len(),
            options: options.len(),
        })
    }

    /// The same with the answers to at most `most` questions: every second one, or every third, and so on.
    #[must_use]
    pub fn thinned(&self, most: usize) -> Self {
        let step = self.truths.len().div_ceil(most.max(1)).max(1);
        let stays = |question: usize| question.is_multiple_of(step);
        let answers = self.answers.iter().filter(|(question, ..)| stays(*question as usize));
        let truths = self.truths.iter().enumerate();
        Self {
            answers: answers.copied().collect(),
            truths: truths.map(|(question, truth)| truth.filter(|_| stays(question))).collect(),
            ..*self
        }
    }

    /// The answers by question.
    #[must_use]
    pub fn tasks(&self) -> Vec<Task> {
        let mut tasks = vec![Task::default(); self.truths.len()];
        for (question, worker, option) in &self.answers {
            tasks[*question as usize].answers.push((*worker, *option));
        }
        tasks
    }

    /// Measures all rules.
    #[must_use]
    pub fn accuracy(&self, rules: &ReliabilityRules) -> Accuracy {
        let (online, at_close) = self.online(rules);
        Accuracy {
            questions: self.questions(),
            answers: self.answers.len(),
            majority_accuracy: self.majority_accuracy(),
            batch_accuracy: self.batch_accuracy(rules),
            online_questions: self.questions(),
            online_accuracy: self.score(&online),
            online_at_close_accuracy: self.score(&at_close),
        }
    }

    /// The number of questions with an answer.
    #[must_use]
    pub fn questions(&self) -> usize {
        self.tasks().iter().filter(|task| !task.answers.is_empty()).count()
    }

    /// Of the most frequent answer.
    #[must_use]
    pub fn majority_accuracy(&self) -> f64 {
        self.score(&majority(&self.tasks(), self.options))
    }

    /// Of [`estimate`] over all tasks, whatever the limits of the rules.
    #[must_use]
    pub fn batch_accuracy(&self, rules: &ReliabilityRules) -> f64 {
        let rules = rules.without_limits();
        self.score(&estimate(&self.tasks(), self.workers, self.options, &[], &rules).tasks)
    }

    /// What the online rule holds at the end, and what it held when each question closed, whatever the limits of the rules.
    #[must_use]
    pub fn online(&self, rules: &ReliabilityRules) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let mut online = Online::new(self.options, Vec::new(), &rules.without_limits());
        let mut opened = BTreeMap::new();
        let mut last = vec![0; self.truths.len()];
        for (at, (question, ..)) in self.answers.iter().enumerate() {
            last[*question as usize] = at;
        }
        let mut at_close = vec![Vec::new(); self.truths.len()];
        for (at, (question, worker, option)) in self.answers.iter().enumerate() {
            let task = *opened.entry(*question).or_insert_with(|| online.open());
            online.observe(task, *worker, *option);
            if last[*question as usize] == at {
                at_close[*question as usize] = online.probabilities(task).to_vec();
            }
        }
        let held = |question: &u32| opened.get(question).map(|task| online.probabilities(*task).to_vec());
        let questions = 0..u32::try_from(self.truths.len()).unwrap_or(u32::MAX);
        (questions.map(|question| held(&question).unwrap_or_default()).collect(), at_close)
    }

    /// The share of questions with a known truth whose most probable option is true.
    #[must_use]
    pub fn score(&self, probabilities: &[Vec<f64>]) -> f64 {
        let (mut right, mut known) = (0.0, 0.0);
        for (probabilities, truth) in probabilities.iter().zip(&self.truths) {
            let Some(truth) = truth else { continue };
            known += 1.0;
            let best = most_probable(probabilities);
            if best.contains(&(*truth as usize)) {
                right += 1.0 / best.len() as f64;
            }
        }
        if known > 0.0 { right / known } else { 0.0 }
    }
}

fn majority(tasks: &[Task], options: usize) -> Vec<Vec<f64>> {
    let votes = |task: &Task| {
        let mut votes = vec![0.0; options];
        task.answers.iter().for_each(|(_, option)| votes[*option as usize] += 1.0);
        votes
    };
    tasks.iter().map(votes).collect()
}

fn read(path: &Path) -> Result<(String, String), DatasetError> {
    let name = path.display().to_string();
    let read = || {
        if std::fs::metadata(path)?.len() > BYTES {
            return Err(std::io::Error::other("the file has more than 256 MiB"));
        }
        std::fs::read_to_string(path)
    };
    match read() {
        Ok(text) => Ok((name, text)),
        Err(fault) => Err(DatasetError::File { path: name, fault }),
    }
}

/// The rows after the heading.
fn rows<'a, const N: usize>(path: &str, text: &'a str) -> Result<Vec<[&'a str; N]>, DatasetError> {
    let lines = text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            let columns: Vec<&str> = line.split(',').map(|column| column.trim().trim_matches('"')).collect();
            <[&str; N]>::try_from(columns).map_err(|_| DatasetError::Line {
                path: path.to_owned(),
                line: at + 1,
                columns: N,
            })
        })
        .collect()
}

fn numbers<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, u32> {
    let sorted: std::collections::BTreeSet<&str> = names.collect();
    sorted.into_iter().zip(0..).collect()
}
