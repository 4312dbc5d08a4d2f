//! The model in this process, compared with its reference implementation.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use config::{EmbedderKind, EmbedderSettings};
use embed::Embedder;
use serde::Deserialize;

/// The tolerance of a number, compared with the reference implementation and with another batch.
const NEAR: f32 = 1e-5;

/// The settings, if the model files exist.
fn settings() -> Option<EmbedderSettings> {
    let weights = kit::fetched("models/all-MiniLM-L6-v2");
    if !weights.is_dir() {
        kit::skip(&weights, true);
        return None;
    }
    Some(EmbedderSettings {
        kind: EmbedderKind::Local,
        weights: Some(weights),
        ..EmbedderSettings::default()
    })
}

async fn embedder() -> Option<Embedder> {
    Embedder::open(&settings()?).await.unwrap()
}

fn furthest(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

#[derive(Deserialize)]
struct Golden {
    text: String,
    embedding: Vec<f32>,
}

#[tokio::test]
async fn vectors_are_those_of_the_reference_implementation_in_every_batch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/minilm-golden20.json");
    let Ok(file) = std::fs::read(&path) else { return kit::skip(&path, false) };
    let Some(embedder) = embedder().await else { return };
    assert_eq!((embedder.model(), embedder.dimension()), ("all-MiniLM-L6-v2", 384));
    let golden: Vec<Golden> = serde_json::from_slice(&file).unwrap();
    assert_eq!(golden.len(), 20);
    let together = embedder.embed(golden.iter().map(|one| one.text.clone()).collect()).await.unwrap();
    let mut worst = (0.0_f32, 0.0_f32);
    for (one, vector) in golden.iter().zip(&together) {
        worst.0 = worst.0.max(furthest(&one.embedding, vector));
        let alone = embedder.embed(vec![one.text.clone()]).await.unwrap();
        worst.1 = worst.1.max(furthest(&alone[0], vector));
        let length = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-5);
    }
    println!("furthest from the reference: {}; from itself alone: {}", worst.0, worst.1);
    assert!(worst.0 < NEAR && worst.1 < NEAR, "{worst:?}");
}

#[tokio::test]
async fn any_text_has_a_vector_and_a_long_one_has_that_of_its_beginning() {
    let Some(embedder) = embedder().await else { return };
    let long = "word ".repeat(254);
    let texts = [
        String::new(),
        " \n\u{0}\u{200b}\u{ad}".to_owned(),
        "[SEP] [CLS] [PAD] [MASK] [UNK]".to_owned(),
        "é".repeat(100_000),
        "\u{1F468}\u{200D}\u{1F469} \u{301}\u{301} \u{FFFD}".to_owned(),
        long.clone(),
        long + "and more of it that is not read",
    ];
    let vectors = embedder.embed(texts.to_vec()).await.unwrap();
    assert!(
        vectors.iter().all(|vector| vector.len() == 384 && vector.iter().all(|number| number.is_finite()))
    );
    assert!(furthest(&vectors[5], &vectors[6]) < NEAR);
    assert!(furthest(&vectors[0], &vectors[6]) > NEAR);
}

#[tokio::test]
async fn calls_at_once_do_not_disturb_each_other() {
    let Some(embedder) = embedder().await else { return };
    let texts: Vec<String> = (0..24).map(|at| format!("text number {at} {}", "again ".repeat(at))).collect();
    let alone = embedder.embed(texts.clone()).await.unwrap();
    let calls = (0..8).map(|_| {
        tokio::spawn({
            let (embedder, texts) = (embedder.clone(), texts.clone());
            async move { embedder.embed(texts).await.unwrap() }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        let made = call.await.unwrap();
        assert!(made.iter().zip(&alone).all(|(one, other)| furthest(one, other) < NEAR));
    }
}

#[tokio::test]
async fn texts_are_cut_into_what_the_model_reads() {
    let Some(mut settings) = settings() else { return };
    settings.chunk_tokens = 30;
    settings.chunk_overlap = 8;
    settings.chunk_limit = 5;
    let embedder = Embedder::open(&settings).await.unwrap().unwrap();
    assert!(embedder.chunks("").is_empty() && embedder.chunks(" \n").is_empty());
    assert_eq!(kit::cut(&embedder, " To be? "), ["To be?"]);
    assert_eq!(kit::cut(&embedder, "\u{200b}"), ["\u{200b}"]);
    assert_eq!(embedder.chunks(&"x".repeat(100_000)).len(), 1);
    let text = "Ünïcödé naïve café, 東京 и Москва: “quotes” … and 😀. ".repeat(40);
    let pieces = embedder.chunks(&text);
    assert_eq!((pieces.len(), pieces[0].start), (5, 0));
    for pair in pieces.windows(2) {
        assert!(pair[0].start < pair[1].start && pair[1].start <= pair[0].end && pair[0].end < pair[1].end);
    }
    assert!(pieces.iter().all(|piece| text[piece.clone()].ends_with('.')), "{pieces:?}");
}

/// `cargo test --release -p embed --test local -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn throughput() {
    let Some(settings) = settings() else { return };
    let mut out = std::io::stderr();
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status
            .lines()
            .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
            .collect::<String>()
    };
    writeln!(out, "before: {}", resident()).unwrap();
    for threads in [1, 2] {
        let began = Instant::now();
        let settings = EmbedderSettings { threads: Some(threads), ..settings.clone() };
        let embedder = Embedder::open(&settings).await.unwrap().unwrap();
        writeln!(out, "{threads} threads: opened in {:?}; {}", began.elapsed(), resident()).unwrap();
        for (words, count, calls) in [(18, 1, 100), (18, 32, 10), (18, 256, 3), (200, 1, 10), (200, 32, 2)] {
            let texts: Vec<String> =
                (0..count).map(|at| format!("{at} {}", "river ".repeat(words - 1))).collect();
            embedder.embed(texts.clone()).await.unwrap();
            let began = Instant::now();
            for _ in 0..calls {
                embedder.embed(texts.clone()).await.unwrap();
            }
            let each = began.elapsed().as_secs_f64() / f64::from(calls) / count as f64;
            let told = format!(
                "{words} words, {count} at once: {:.1} texts/s, {:.2} ms each",
                1.0 / each,
                each * 1e3
            );
            writeln!(out, "{threads} threads: {told}; {}", resident()).unwrap();
        }
    }
    let text = "A sentence of some words, as they are found in letters. ".repeat(2_000);
    let embedder = Embedder::open(&settings).await.unwrap().unwrap();
    let began = Instant::now();
    let pieces = embedder.chunks(&text).len();
    writeln!(out, "{} bytes are cut into {pieces} pieces in {:?}", text.len(), began.elapsed()).unwrap();
}
