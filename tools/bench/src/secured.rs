//! The whole path with optional security measures on, compared with the same path with them off.
//!
//! Off means no NATS accounts and nkeys, no encryption at rest, unencrypted bodies, and nothing marked sensitive.
//! Tokens, row-level security and the audit trail are always on, since the workers require them.

use cli::errln;
use cli::output::step;
use cli::signal::interrupted;
use config::Settings;
use context_writer::ContextWriter;
use playground::Local;

use super::corpus::Corpus;
use super::median;
use super::pipeline::{Pipeline, add_payload_key};
use super::process::Meter;

/// Percentage of contexts marked sensitive.
pub(super) const SENSITIVE: u8 = 10;

/// Messages per second.
pub(super) struct Rates {
    pub(super) off: f64,
    /// With [`SENSITIVE`] percent of the contexts sensitive.
    pub(super) on: f64,
    /// With all contexts sensitive.
    pub(super) all_sensitive: f64,
}

/// Measures the first two alternately, then the third, and returns the medians.
pub(super) async fn measure(settings: &Settings, messages: usize, runs: u32) -> anyhow::Result<Rates> {
    let off = step("starting private servers without optional security", Local::unsecured(settings)).await?;
    let on =
        step("starting private servers with all security", Local::temporary(settings, Default::default()));
    let on = match on.await {
        Ok(on) => on,
        Err(error) => {
            off.stop().await?;
            return Err(error);
        }
    };
    let measured = tokio::select! {
        measured = in_turns(&off, &on, messages, runs) => measured,
        stopped = interrupted() => stopped.and_then(|()| anyhow::bail!("interrupted")),
    };
    let stopped = (off.stop().await, on.stop().await);
    let rates = measured?;
    stopped.0.and(stopped.1).map(|()| rates)
}

async fn in_turns(off: &Local, on: &Local, messages: usize, runs: u32) -> anyhow::Result<Rates> {
    add_payload_key(&on.settings)?;
    let (plain, secured) = (
        Pipeline::open::<ContextWriter>(&off.settings).await?,
        Pipeline::open::<ContextWriter>(&on.settings).await?,
    );
    let mut corpus = Corpus::new();
    plain.prepare(&corpus).await?;
    secured.prepare(&corpus).await?;
    let (off_meter, on_meter) = (Meter::new(off.stack()), Meter::new(on.stack()));
    let (mut offs, mut ons, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs {
        errln!("run {run} of {runs}: security off, then on");
        corpus.mark(0);
        offs.push(plain.measure(&corpus.messages(messages), &off_meter).await?.messages_per_second);
        corpus.mark(SENSITIVE);
        ons.push(secured.measure(&corpus.messages(messages), &on_meter).await?.messages_per_second);
    }
    // Not alternated with the others, so that both databases hold the same amount of data during those runs.
    corpus.mark(100);
    for run in 1..=runs {
        errln!("run {run} of {runs}: security on, all contexts sensitive");
        all.push(secured.measure(&corpus.messages(messages), &on_meter).await?.messages_per_second);
    }
    Ok(Rates { off: median(offs)?, on: median(ons)?, all_sensitive: median(all)? })
}
