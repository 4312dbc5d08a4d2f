//! A million nearly valid inputs for all parsers of untrusted input.
//!
//! `MEMFLEET_FUZZ_INPUTS` sets the number of inputs; `MEMFLEET_FUZZ_SEED` repeats a run.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use contract::UserId;
use data_encoding::BASE64URL_NOPAD as BASE64;
use fastrand::Rng;
use trust::{
    AssociatedData, CipherKey, GrantKey, KeyRing, PrivateKey, Scope, TokenIssuer, TokenRequest, key_version,
    verify,
};
use uuid::Uuid;

fn inputs(share: usize) -> usize {
    let all = std::env::var("MEMFLEET_FUZZ_INPUTS").ok().and_then(|count| count.parse().ok());
    all.unwrap_or(1_000_000_usize) * share / 100
}

fn rng() -> Rng {
    let seed = std::env::var("MEMFLEET_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    // Shown when the test fails.
    println!("MEMFLEET_FUZZ_SEED={seed}");
    Rng::with_seed(seed)
}

/// Changes, removes, repeats or inserts a few bytes.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(0..=bytes.len());
        let end = (at + rng.usize(0..=12)).min(bytes.len());
        match rng.u8(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            4 => bytes.truncate(at),
            _ => bytes.insert(at, *rng.choice(b".\"{}[]:,-=0aA\x00\xff").unwrap()),
        }
    }
}

fn signing() -> PrivateKey {
    PrivateKey::parse(&format!("main private {}", "9d".repeat(32))).unwrap()
}

fn token() -> String {
    let grants = GrantKey::parse(&format!("main {}", "6b".repeat(32))).unwrap();
    let request = TokenRequest {
        service: "simple-chat".parse().unwrap(),
        user_id: UserId::new(42).unwrap(),
        session: None,
        scopes: Scope::parse_list("context:put session:*").unwrap(),
        life: Duration::from_secs(900),
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    TokenIssuer::new(signing(), grants, "memfleet").issue(&request, now).unwrap().token
}

/// Modified tokens: none is accepted.
#[test]
fn changed_tokens() {
    let (mut rng, good, key) = (rng(), token(), signing().public());
    for _ in 0..inputs(30) {
        let mut bytes = good.clone().into_bytes();
        mutate(&mut rng, &mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let read = verify(&text, "memfleet", |name| (name == key.name()).then_some(&key));
        assert!(read.is_err() || text == good, "{text}");
    }
}

/// Nearly valid claims and grants that a compromised issuer could sign. A decoded token can be used without a panic, and its grant
/// is a line of text.
#[test]
fn signed_nonsense() {
    let (mut rng, good, (signing, key)) = (rng(), token(), (signing(), signing().public()));
    let parts: Vec<&str> = good.split('.').collect();
    let claims = BASE64.decode(parts[1].as_bytes()).unwrap();
    let mut read = 0;
    for _ in 0..inputs(10) {
        let mut changed = claims.clone();
        mutate(&mut rng, &mut changed);
        let text = format!("{}.{}", parts[0], BASE64.encode(&changed));
        let text = format!("{text}.{}", BASE64.encode(&signing.sign(text.as_bytes())));
        if let Ok(token) = verify(&text, "memfleet", |name| (name == key.name()).then_some(&key)) {
            read += 1;
            for role in ["w_context_writer", "w_nobody"] {
                if let Ok(grant) = token.grant(role) {
                    assert!(!grant.to_string().contains('\n'));
                }
            }
        }
    }
    assert!(read > 0, "some are still readable, or nothing was tried");
}

/// Modified ciphertexts: none decrypts.
#[test]
fn changed_ciphertexts() {
    let mut rng = rng();
    let key = CipherKey::generate(1).unwrap();
    let aad = AssociatedData::Field { table: "t", column: "c", row: Uuid::nil(), user: UserId::PLATFORM };
    let good = key.seal(br#"{"slot":"area","value":"Alfama"}"#, aad).unwrap();
    for _ in 0..inputs(40) {
        let mut bytes = good.clone();
        mutate(&mut rng, &mut bytes);
        let _ = key_version(&bytes);
        assert!(key.open(&bytes, aad).is_err() || bytes == good, "{bytes:?}");
    }
}

/// Corrupted key files.
#[test]
fn spoilt_key_files() {
    let mut rng = rng();
    let line = KeyRing::expose_line("kek", &CipherKey::generate(7).unwrap());
    let ring = format!("# keys\n{}{}", *line, line.replace("kek.7", "kek.8"));
    for _ in 0..inputs(20) {
        let mut bytes = ring.clone().into_bytes();
        mutate(&mut rng, &mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let _ = PrivateKey::parse(&text);
        let _ = GrantKey::parse(&text);
        if let Err(error) = KeyRing::parse(&text.into()) {
            assert!(!error.to_string().contains(&line[6..20]), "nothing of a key is told: {error}");
        }
    }
}
