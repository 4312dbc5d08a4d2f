//! A dossier for a reader at a terminal: plain text, at most 100 columns.

use std::fmt::Write;

use crate::{
    Cluster, Dossier, Evidence, Micro, Reason, Status, Uncounted, Vote,
    text::{compatible, is_unspaced},
};

const COLUMNS: usize = 100;
const BAR: usize = 24;
/// Most lines of one list. A dossier in JSON has all.
const LINES: usize = 60;

/// The dossier as text. What the agents wrote is shown without control characters, and shortened.
#[must_use]
pub fn render(dossier: &Dossier) -> String {
    let mut page = Page(String::new());
    heading(&mut page, dossier);
    answers(&mut page, dossier);
    votes(&mut page, dossier);
    origin(&mut page, dossier);
    page.0
}

/// Lines, none of which is longer than [`COLUMNS`].
struct Page(String);

impl Page {
    fn line(&mut self, text: &str) {
        self.0.push_str(fit(text, COLUMNS).trim_end());
        self.0.push('\n');
    }

    fn wrapped(&mut self, indent: &str, text: &str) {
        let mut line = String::new();
        for word in compatible(text).split(' ') {
            if !line.is_empty() && width(&line) + 1 + width(word) > COLUMNS - indent.len() {
                self.line(&format!("{indent}{line}"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(&format!("{indent}{line}"));
    }
}

fn heading(page: &mut Page, dossier: &Dossier) {
    let outcome = &dossier.outcome;
    page.wrapped("", &dossier.question);
    page.line("");
    let label = outcome.status.as_str().to_uppercase();
    page.line(&format!("  {label}   {}  score {}", bar(outcome.score), decimals(outcome.score, 6)));
    page.wrapped("  ", &why(dossier));
    page.line("");
}

fn why(dossier: &Dossier) -> String {
    let sentences: Vec<String> =
        dossier.outcome.reasons.iter().map(|reason| sentence(*reason, dossier)).collect();
    sentences.join(" ")
}

fn sentence(reason: Reason, dossier: &Dossier) -> String {
    let outcome = &dossier.outcome;
    let answered = dossier.votes.iter().filter(|vote| vote.cluster.is_some()).count();
    let leader = dossier.clusters.first();
    let agree = leader.map_or(Micro::ZERO, |leader| leader.independent_voters);
    let weight = leader.map_or(Micro::ZERO, |leader| leader.weight);
    match reason {
        Reason::Verdict if outcome.status == Status::Rejected => "A verdict rejected this answer.".into(),
        Reason::Verdict => "A verdict confirmed this answer.".into(),
        Reason::Replaced => {
            format!("Superseded by {}.", dossier.superseded_by.as_deref().unwrap_or("another node"))
        }
        Reason::NoAnswer => "No vote counts.".into(),
        Reason::NoQuorum => format!("{answered} answered of the {} asked for.", dossier.quorum),
        Reason::FewIndependent => {
            format!(
                "All voters together are worth {} independent ones.",
                decimals(outcome.independent_voters, 2)
            )
        }
        Reason::Tie => {
            let places: Vec<String> = outcome.leaders.iter().map(|place| (place + 1).to_string()).collect();
            format!("A tie: the answers {} have the same weight.", places.join(" and "))
        }
        Reason::Dissent => {
            let share = dossier.clusters.get(1).map_or(Micro::ZERO, |second| second.share);
            format!("Strong dissent: answer 2 holds {}.", percent(share))
        }
        Reason::Contradiction => {
            format!("It contradicts what is validated: {}.", dossier.contradicts.join(", "))
        }
        Reason::LowScore => "The score is too low to validate.".into(),
        Reason::FewIndependentAgree => {
            format!("Those who agree are worth {} independent voters only.", decimals(agree, 2))
        }
        Reason::LowSupport => format!("Their weight, {}, is too little.", decimals(weight, 2)),
        Reason::SmallMargin => format!("The lead of {} is too small.", percent(outcome.margin)),
        Reason::Sufficient => {
            format!(
                "{} independent voters agree, with a lead of {}.",
                decimals(agree, 2),
                percent(outcome.margin)
            )
        }
    }
}

fn answers(page: &mut Page, dossier: &Dossier) {
    page.line("ANSWERS");
    if dossier.clusters.is_empty() {
        page.line("  none");
    }
    for (place, cluster) in dossier.clusters.iter().enumerate().take(LINES) {
        answer(page, place, cluster);
    }
    rest(page, dossier.clusters.len());
    page.line("");
    let outcome = &dossier.outcome;
    page.line(&format!(
        "  share {}   margin {}   entropy {}   independent voters {}",
        percent(outcome.share),
        percent(outcome.margin),
        decimals(outcome.entropy, 3),
        decimals(outcome.independent_voters, 2)
    ));
    page.line("");
}

fn answer(page: &mut Page, place: usize, cluster: &Cluster) {
    let shown =
        if cluster.answer.is_empty() { cluster.claim.as_deref().unwrap_or("") } else { &cluster.answer };
    page.line(&format!(
        "  {:>2}  {}  {:>7}   weight {}",
        place + 1,
        bar(cluster.share),
        percent(cluster.share),
        decimals(cluster.weight, 2)
    ));
    page.wrapped("      ", &format!("“{}”", compatible(shown)));
    if let Some(claim) = cluster.claim.as_deref().filter(|_| !cluster.answer.is_empty()) {
        page.line(&format!("      {}", compatible(claim)));
    }
    page.wrapped("      ", &format!("— {}", cluster.agents.join(", ")));
}

fn votes(page: &mut Page, dossier: &Dossier) {
    page.line("VOTES");
    if dossier.votes.is_empty() {
        page.line("  none");
        page.line("");
        return;
    }
    page.line("  agent               answer  record       accuracy  said  weight  discount  counts  ");
    for vote in dossier.votes.iter().take(LINES) {
        page.line(&vote_line(vote));
    }
    rest(page, dossier.votes.len());
    page.line("");
}

fn vote_line(vote: &Vote) -> String {
    let place = vote.cluster.map_or_else(|| "–".into(), |place| (place + 1).to_string());
    let answers = vote.right.plus(vote.wrong);
    let record = if answers == Micro::ZERO {
        "new".into()
    } else {
        format!("{} of {}", decimals(vote.right, 0), decimals(answers, 0))
    };
    let said = vote.confidence.map_or_else(|| "–".into(), |confidence| decimals(confidence, 2));
    format!(
        "  {} {:>6}  {} {:>9}  {said:>4}  {:>6}  {:>8}  {:>6}  {}",
        pad(&compatible(&vote.agent), 19),
        place,
        pad(&record, 12),
        decimals(vote.accuracy, 2),
        decimals(vote.weight, 2),
        decimals(vote.discount, 2),
        decimals(vote.counted, 2),
        note(vote)
    )
}

fn note(vote: &Vote) -> String {
    let family = compatible(vote.family.as_deref().unwrap_or("no family"));
    match vote.uncounted {
        Some(Uncounted::Abstained) => "abstained".into(),
        Some(Uncounted::Recalled) => "from memory".into(),
        Some(Uncounted::Unreliable) => "unreliable".into(),
        None => family,
    }
}

fn origin(page: &mut Page, dossier: &Dossier) {
    page.line("ORIGIN");
    page.line(&format!("  task    {} ({})", compatible(&dossier.task), compatible(&dossier.task_kind)));
    page.line(&format!("  rules   version {}, {}", dossier.rules.version, dossier.rules.sha256));
    page.line(&format!("  inputs  {}", dossier.inputs_sha256));
    let mut sources: Vec<String> = dossier.votes.iter().flat_map(|vote| &vote.evidence).map(root).collect();
    sources.sort_unstable();
    sources.dedup();
    for (at, source) in sources.iter().enumerate().take(LINES) {
        page.line(&format!("  {}  {source}", if at == 0 { "roots " } else { "      " }));
    }
    rest(page, sources.len());
    for (at, event) in dossier.causality.iter().enumerate().take(LINES) {
        page.line(&format!("  {}  {}", if at == 0 { "events" } else { "     →" }, compatible(event)));
    }
    rest(page, dossier.causality.len());
}

fn root(evidence: &Evidence) -> String {
    match evidence {
        Evidence::Source(source) => compatible(source),
        Evidence::Recalled(node) => format!("recalled from {}", compatible(node)),
    }
}

fn rest(page: &mut Page, count: usize) {
    if count > LINES {
        page.line(&format!("  … and {} more", count - LINES));
    }
}

fn bar(share: Micro) -> String {
    let filled =
        usize::try_from(share.times(Micro::from_f64(BAR as f64)).millionths() / 1_000_000).unwrap_or(BAR);
    let filled = filled.min(BAR);
    format!("{}{}", "█".repeat(filled), "·".repeat(BAR - filled))
}

fn percent(share: Micro) -> String {
    format!("{} %", decimals(share.times(Micro::from_f64(100.0)), 1))
}

/// Rounded half up, in integers.
fn decimals(value: Micro, places: u32) -> String {
    let step = 10u64.pow(6 - places.min(6));
    let rounded = (value.millionths() + step / 2) / step;
    let base = 10u64.pow(places.min(6));
    let mut text = (rounded / base).to_string();
    if places > 0 {
        // Writing to a string does not fail.
        let _ = write!(text, ".{:0width$}", rounded % base, width = places as usize);
    }
    text
}

/// The columns that a text takes: wide characters take two, combining marks none.
fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(character: char) -> usize {
    let wide = is_unspaced(character) && !matches!(u32::from(character), 0x0e00..=0x1fff)
        || matches!(u32::from(character), 0x1100..=0x115f | 0x3000..=0x303f | 0xac00..=0xd7a3 | 0xff00..=0xff60 | 0x1_f300..=0x1_faff);
    if unicode_normalization::char::is_combining_mark(character) { 0 } else { 1 + usize::from(wide) }
}

/// At most so many columns; what is cut off is shown as an ellipsis.
fn fit(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    let mut taken = 0;
    let kept = text.chars().take_while(|character| {
        taken += columns(*character);
        taken < limit
    });
    let mut kept: String = kept.collect();
    kept.push('…');
    kept
}

fn pad(text: &str, columns: usize) -> String {
    let text = fit(text, columns);
    let missing = columns.saturating_sub(width(&text));
    text + &" ".repeat(missing)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_half_up() {
        assert_eq!(decimals(Micro::from_millionths(1_005_000), 2), "1.01");
        assert_eq!(decimals(Micro::from_millionths(999_999), 2), "1.00");
        assert_eq!(decimals(Micro::ZERO, 0), "0");
        assert_eq!(percent(Micro::from_f64(0.5)), "50.0 %");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(width("日本"), 4);
        assert_eq!(fit("日本語", 4), "日…");
        assert_eq!(pad("e\u{301}", 3).chars().count(), 4);
    }

    #[test]
    fn a_long_word_is_cut() {
        let mut page = Page(String::new());
        page.wrapped("  ", &"x".repeat(300));
        assert!(page.0.lines().all(|line| width(line) <= COLUMNS));
    }
}
