//! `memfleet bench trust`: the cost of security, step by step and over the whole path.

use std::time::{Duration, Instant, SystemTime};

use ::trust::{AssociatedData, CipherKey, TokenIssuer, TokenRequest, verify, worker_role};
use anyhow::Context;
use async_nats::HeaderMap;
use chrono::Utc;
use clap::Args;
use cli::outln;
use cli::table::{Align, Table};
use config::Settings;
use contract::{RequestSubject, UserId, header};
use diesel_async::AsyncConnection;
use runtime::authorize::Authorizer;
use serde::Serialize;
use store::{Fault, registry, security};
use uuid::Uuid;

use super::secured::{self, SENSITIVE};
use super::{on_private_servers, percentile, rounded};

#[derive(Debug, Args)]
pub(super) struct TrustArgs {
    /// Number of measurements of each operation.
    #[arg(long, default_value_t = 5_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(100..=100_000))]
    times: u32,

    /// Messages in each run of the whole path.
    #[arg(long, default_value_t = 20_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    messages: u32,

    /// Runs of each kind.
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=20))]
    runs: u32,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    /// Time to verify a token that is not cached, in milliseconds.
    token_cold_ms_p50: f64,
    token_cold_ms_p99: f64,
    /// Time to verify a cached token, in microseconds.
    token_cached_us_p50: f64,
    token_cached_us_p99: f64,
    /// Round-trip time to open the security context of a transaction with one grant, in microseconds.
    grant_us_p50: f64,
    grant_us_p99: f64,
    /// Size of a token, in bytes.
    token_bytes: usize,
    /// Time to encrypt a field of 1 KiB, in microseconds.
    encrypt_1kib_us_p50: f64,
    encrypt_1kib_us_p99: f64,
    /// Time to decrypt a field of 1 KiB, in microseconds.
    decrypt_1kib_us_p50: f64,
    decrypt_1kib_us_p99: f64,
    /// Throughput of the whole path with security on, divided by that with it off.
    secured_ratio: f64,
    /// The same ratio with all contexts sensitive instead of [`SENSITIVE`] percent.
    all_sensitive_ratio: f64,
    /// Throughput with security on.
    secured_messages_per_second: f64,
}

pub(super) async fn execute(args: &TrustArgs, settings: &Settings) -> anyhow::Result<()> {
    let steps = on_private_servers(settings, async |local| measure(args, &local.settings).await).await?;
    let rates = secured::measure(settings, args.messages as usize, args.runs).await?;
    let report = Report {
        secured_ratio: rounded(rates.on / rates.off),
        all_sensitive_ratio: rounded(rates.all_sensitive / rates.off),
        secured_messages_per_second: rounded(rates.on),
        ..steps
    };
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
    } else {
        show(&report);
    }
    Ok(())
}

/// The parts of a request that the authorizer uses.
struct Sample {
    subject: RequestSubject,
    headers: HeaderMap,
    grant: String,
    bytes: usize,
}

fn sample(issuer: &TokenIssuer, user: u32) -> anyhow::Result<Sample> {
    let subject: RequestSubject = format!("memory.req.simple-chat.context.put.{user}").parse()?;
    let request = TokenRequest {
        service: subject.service.clone(),
        user_id: subject.user_id,
        session: None,
        scopes: vec!["context:*".parse()?],
        life: Duration::from_secs(3_600),
    };
    let token = issuer.issue(&request, SystemTime::now())?.token;
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, header::bearer(&token));
    let key = issuer.signing().public();
    let known =
        verify(&token, issuer.audience(), |_| Some(&key)).ok().context("the issued token is invalid")?;
    let grant = known
        .grant(&worker_role(contract::CONTEXT_WRITER.name))
        .ok()
        .context("the token has no grant")?
        .to_string();
    Ok(Sample { subject, headers, grant, bytes: token.len() })
}

async fn measure(args: &TrustArgs, settings: &Settings) -> anyhow::Result<Report> {
    let issuer =
        token_issuer::issuer(&settings.trust)?.context("the keys to issue tokens are not configured")?;
    let mut owner = store::connect(&settings.postgres.url).await?;
    let authorizer = Authorizer::new(
        &settings.trust,
        contract::CONTEXT_WRITER.name,
        registry::trust_state(&mut owner).await?,
    );
    let samples: Vec<Sample> =
        (1..=args.times).map(|user| sample(&issuer, user)).collect::<anyhow::Result<_>>()?;
    let verify_one = |sample: &Sample| -> anyhow::Result<f64> {
        let began = Instant::now();
        let grant = authorizer.grant_for(Some(&sample.headers), &sample.subject, None, Utc::now());
        let seconds = began.elapsed().as_secs_f64();
        grant.map(|_| seconds).context("a valid token was rejected")
    };
    let cold: Vec<f64> = samples.iter().map(verify_one).collect::<anyhow::Result<_>>()?;
    let cached: Vec<f64> = samples.iter().map(verify_one).collect::<anyhow::Result<_>>()?;

    let mut worker =
        store::connect(&settings.postgres.url_of(&worker_role(contract::CONTEXT_WRITER.name))).await?;
    let mut grants = Vec::with_capacity(samples.len());
    for one in &samples {
        let mut seconds = 0.0;
        let opened: Result<(), Fault> = worker
            .transaction(async |connection| {
                let began = Instant::now();
                security::open_context(connection, &[&one.grant]).await?;
                seconds = began.elapsed().as_secs_f64();
                Ok(())
            })
            .await;
        opened.context("a valid grant was rejected")?;
        grants.push(seconds);
    }
    let (encrypted, decrypted) = ciphers(args.times)?;
    let at = |seconds: &[f64], share: f64, unit: f64| rounded(percentile(seconds, share) * unit);
    Ok(Report {
        token_cold_ms_p50: at(&cold, 0.5, 1e3),
        token_cold_ms_p99: at(&cold, 0.99, 1e3),
        token_cached_us_p50: at(&cached, 0.5, 1e6),
        token_cached_us_p99: at(&cached, 0.99, 1e6),
        grant_us_p50: at(&grants, 0.5, 1e6),
        grant_us_p99: at(&grants, 0.99, 1e6),
        token_bytes: samples.first().map_or(0, |one| one.bytes),
        encrypt_1kib_us_p50: at(&encrypted, 0.5, 1e6),
        encrypt_1kib_us_p99: at(&encrypted, 0.99, 1e6),
        decrypt_1kib_us_p50: at(&decrypted, 0.5, 1e6),
        decrypt_1kib_us_p99: at(&decrypted, 0.99, 1e6),
        secured_ratio: f64::NAN,
        all_sensitive_ratio: f64::NAN,
        secured_messages_per_second: f64::NAN,
    })
}

/// Seconds to encrypt and to decrypt a field of 1 KiB.
fn ciphers(times: u32) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (key, plain) = (CipherKey::generate(1)?, [7_u8; 1024]);
    let (mut encrypted, mut decrypted) = (Vec::new(), Vec::new());
    for row in 0..times {
        let aad = AssociatedData::Field {
            table: "simple_chat_context",
            column: "context_value",
            row: Uuid::from_u128(row.into()),
            user: UserId::PLATFORM,
        };
        let began = Instant::now();
        let sealed = key.seal(&plain, aad)?;
        let between = Instant::now();
        let opened = key.open(&sealed, aad)?;
        decrypted.push(between.elapsed().as_secs_f64());
        encrypted.push((between - began).as_secs_f64());
        anyhow::ensure!(opened.as_slice() == plain, "the decrypted text differs from the encrypted one");
    }
    Ok((encrypted, decrypted))
}

fn show(report: &Report) {
    let mut table = Table::new([("operation", Align::Left), ("p50", Align::Right), ("p99", Align::Right)]);
    for (what, unit, p50, p99) in [
        ("verify a token, not cached", "ms", report.token_cold_ms_p50, report.token_cold_ms_p99),
        ("verify a token, cached", "µs", report.token_cached_us_p50, report.token_cached_us_p99),
        ("open a security context, one grant", "µs", report.grant_us_p50, report.grant_us_p99),
        ("encrypt a field of 1 KiB", "µs", report.encrypt_1kib_us_p50, report.encrypt_1kib_us_p99),
        ("decrypt a field of 1 KiB", "µs", report.decrypt_1kib_us_p50, report.decrypt_1kib_us_p99),
    ] {
        table.row([what.to_owned(), format!("{p50:.3} {unit}"), format!("{p99:.3} {unit}")]);
    }
    outln!("{table}");
    outln!("token size: {} bytes", report.token_bytes);
    outln!(
        "whole path with security on, {SENSITIVE} % of contexts sensitive: {:.0} messages/s, {:.2} of the throughput with it off",
        report.secured_messages_per_second,
        report.secured_ratio
    );
    outln!("with all contexts sensitive: {:.2} of the throughput with it off", report.all_sensitive_ratio);
}
