//! The whole path with every security measure on, beside the same with them off.
//!
//! Off: a broker without accounts, nkeys and encryption at rest, plain bodies, nothing marked sensitive. On in both: tokens,
//! row-level security and the audit trail, which the worker cannot do without.

use cli::errln;
use cli::output::step;
use cli::signal::interrupted;
use config::Settings;
use context_writer::ContextWriter;
use playground::Local;

use super::corpus::Corpus;
use super::median;
use super::pipeline::{Pipeline, give_key};
use super::process::Meter;

/// Of a hundred contexts, how many are marked sensitive.
pub(super) const SENSITIVE: u8 = 10;

/// Messages a second.
pub(super) struct Rates {
    pub(super) off: f64,
    /// With a tenth of the contexts sensitive.
    pub(super) on: f64,
    /// With all of them sensitive.
    pub(super) all_sensitive: f64,
}

/// Runs the first two in turns, then the third, and gives the medians.
pub(super) async fn measure(settings: &Settings, messages: usize, runs: u32) -> anyhow::Result<Rates> {
    let off = step("starting private servers with nothing on", Local::unsecured(settings)).await?;
    let on =
        step("starting private servers with everything on", Local::temporary(settings, Default::default()));
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
    give_key(&on.settings)?;
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
        errln!("run {run} of {runs}: off, then on");
        corpus.mark(0);
        offs.push(plain.measure(&corpus.messages(messages), &off_meter).await?.messages_per_second);
        corpus.mark(SENSITIVE);
        ons.push(secured.measure(&corpus.messages(messages), &on_meter).await?.messages_per_second);
    }
    // Not in turns with the others, or one of the two databases would hold twice as much as the other.
    corpus.mark(100);
    for run in 1..=runs {
        errln!("run {run} of {runs}: on, with all sensitive");
        all.push(secured.measure(&corpus.messages(messages), &on_meter).await?.messages_per_second);
    }
    Ok(Rates { off: median(offs)?, on: median(ons)?, all_sensitive: median(all)? })
}
