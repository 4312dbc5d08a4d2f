//! Progress on standard error: a bar on a terminal, otherwise a line every two seconds.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use cli::errln;
use cli::table::grouped;
use indicatif::{ProgressBar, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(2);

/// Progress of publishing and committing.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    printed_at: Instant,
}

impl Progress {
    pub(super) fn start() -> Self {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        Self { bar, began: Instant::now(), printed_at: Instant::now() }
    }

    /// Updates the numbers of published and committed messages, and the total if it is known.
    pub(super) fn update(&mut self, published: u64, committed: Option<u64>, total: Option<u64>) {
        let committed_text =
            committed.map_or_else(String::new, |committed| format!(", {} committed", grouped(committed)));
        let text = format!("{} published{committed_text}", grouped(published));
        match &self.bar {
            Some(bar) => {
                if let Some(total) = total.filter(|total| bar.length() != Some(*total)) {
                    bar.set_length(total);
                    bar.set_style(style());
                }
                bar.set_position(committed.unwrap_or(published));
                bar.set_message(text);
            }
            None if self.printed_at.elapsed() >= LINE_EVERY => {
                errln!("  {:5.1} s  {text}", self.began.elapsed().as_secs_f64());
                self.printed_at = Instant::now();
            }
            None => {}
        }
    }

    pub(super) fn finish(self) {}
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    // The template is a valid constant; the default bar is only a fallback.
    ProgressStyle::with_template("  {bar:30} {percent:>3}%  {msg}  {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
