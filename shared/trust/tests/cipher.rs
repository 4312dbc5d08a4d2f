//! The format of ciphertexts, and what they do not decrypt with.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashSet;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use contract::UserId;
use data_encoding::HEXLOWER;
use hkdf::Hkdf;
use sha2::Sha256;
use trust::{AssociatedData, CIPHERTEXT_OVERHEAD, CipherError, CipherKey, MAX_PLAINTEXT_BYTES, key_version};
use uuid::{Uuid, uuid};

const ROW: Uuid = uuid!("0193d5a0-0000-7000-8000-000000000001");

fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).unwrap()
}

fn key(version: u32) -> CipherKey {
    CipherKey::new(version, &mut std::array::from_fn(|at| at as u8))
}

fn user(id: i32) -> UserId {
    UserId::new(id).unwrap()
}

const FIELD: AssociatedData<'static> = AssociatedData::Field {
    table: "passkey_credentials",
    column: "public_key",
    row: ROW,
    user: UserId::PLATFORM,
};

/// The AES-256 cases of the specification that was submitted to NIST (test cases 13, 14 and 16), on the library that is used.
#[test]
fn known_answers_of_gcm() {
    let long_key = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
    let zero_key = "00".repeat(32);
    let plain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
    let cipher = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b";
    let cases = [
        (zero_key.as_str(), "000000000000000000000000", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        (
            &zero_key,
            "000000000000000000000000",
            "",
            "00000000000000000000000000000000",
            "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
        ),
        (long_key, "cafebabefacedbaddecaf888", "feedfacedeadbeeffeedfacedeadbeefabaddad2", plain, cipher),
    ];
    for (key, nonce, associated, plain, sealed) in cases {
        let gcm = Aes256Gcm::new_from_slice(&hex(key)).unwrap();
        let nonce = Nonce::from(<[u8; 12]>::try_from(hex(nonce)).unwrap());
        let (msg, aad) = (hex(plain), hex(associated));
        let made = gcm.encrypt(&nonce, Payload { msg: &msg, aad: &aad }).unwrap();
        assert_eq!(HEXLOWER.encode(&made), sealed);
        assert_eq!(gcm.decrypt(&nonce, Payload { msg: &made, aad: &aad }).unwrap(), msg);
    }
}

/// RFC 5869, test case 1.
#[test]
fn a_known_answer_of_hkdf() {
    let mut made = [0; 42];
    let salt = hex("000102030405060708090a0b0c");
    let hkdf = Hkdf::<Sha256>::new(Some(&salt), &[0x0b; 22]);
    hkdf.expand(&hex("f0f1f2f3f4f5f6f7f8f9"), &mut made).unwrap();
    let known = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
    assert_eq!(HEXLOWER.encode(&made), known);
}

/// A ciphertext of another implementation of the format (Python's `cryptography`), so that the format stays stable.
#[test]
fn a_ciphertext_of_another_implementation_opens() {
    let sealed = hex(
        "0101000000076465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f8081828345d31cda228f8ff02f17552239f7b9d4af32f06bb93216841144e049d3efdae408082c953428d3cd1bcedd34369fd1e7dc3ca66a48cc9e74858ba02880b3f950",
    );
    let aad = AssociatedData::Field {
        table: "passkey_credentials",
        column: "public_key",
        row: ROW,
        user: user(42),
    };
    assert_eq!(key_version(&sealed), Ok(7));
    assert_eq!(key(7).open(&sealed, aad).unwrap().as_slice(), b"pQECAyYgASFYIEq8");
}

#[test]
fn what_is_sealed_opens_whatever_its_length() {
    let key = key(1);
    for length in [0, 1, 15, 16, 17, 1024, 70_000] {
        let plain = vec![7; length];
        let sealed = key.seal(&plain, FIELD).unwrap();
        assert_eq!(sealed.len(), length + CIPHERTEXT_OVERHEAD);
        assert_eq!(key.open(&sealed, FIELD).unwrap().as_slice(), plain);
    }
    assert_eq!(key.seal(&vec![0; MAX_PLAINTEXT_BYTES + 1], FIELD), Err(CipherError::TooLong));
    let largest = key.seal(&vec![0; MAX_PLAINTEXT_BYTES], FIELD).unwrap();
    assert_eq!(largest.len(), 2 << 20, "the table's own bound");
    assert!(key.open(&largest, FIELD).is_ok());
}

#[test]
fn a_changed_byte_or_a_missing_one_is_refused() {
    let key = key(0x0101_0101);
    let sealed = key.seal(b"secret", FIELD).unwrap();
    for at in 0..sealed.len() {
        for bit in 0..8 {
            let mut changed = sealed.clone();
            changed[at] ^= 1 << bit;
            let refused = key.open(&changed, FIELD).unwrap_err();
            match at {
                0 | 1 => assert_eq!(refused, CipherError::Malformed),
                2..=5 => assert!(matches!(refused, CipherError::OtherVersion(_)), "{refused}"),
                _ => assert_eq!(refused, CipherError::Refused),
            }
        }
        let refused = key.open(&sealed[..at], FIELD).unwrap_err();
        assert!(matches!(refused, CipherError::Malformed | CipherError::Refused), "{at}: {refused}");
    }
    let longer = [sealed.as_slice(), b"x"].concat();
    assert_eq!(key.open(&longer, FIELD).unwrap_err(), CipherError::Refused);
}

#[test]
fn it_opens_nowhere_else() {
    let key = key(1);
    let places = [
        FIELD,
        AssociatedData::Field {
            table: "user_two_factor_auth",
            column: "public_key",
            row: ROW,
            user: user(0),
        },
        AssociatedData::Field { table: "passkey_credentials", column: "secret_key", row: ROW, user: user(0) },
        AssociatedData::Field {
            table: "passkey_credentials",
            column: "public_key",
            row: Uuid::nil(),
            user: user(0),
        },
        AssociatedData::Field { table: "passkey_credentials", column: "public_key", row: ROW, user: user(1) },
        // The same letters, cut in another place.
        AssociatedData::Field { table: "passkey_credentialsp", column: "ublic_key", row: ROW, user: user(0) },
        AssociatedData::DataKey { user: user(0), version: 1 },
        AssociatedData::DataKey { user: user(0), version: 2 },
        AssociatedData::DataKey { user: user(1), version: 1 },
        AssociatedData::Payload { subject: "memory.req.test.passkey.put.0" },
        AssociatedData::Payload { subject: "memory.req.test.passkey.put.1" },
    ];
    for (at, made) in places.iter().enumerate() {
        let sealed = key.seal(b"secret", *made).unwrap();
        for (other, place) in places.iter().enumerate() {
            let opened = key.open(&sealed, *place);
            assert_eq!(opened.is_ok(), at == other, "{made:?} as {place:?}");
        }
    }
}

#[test]
fn another_key_is_refused_before_anything_is_decrypted() {
    let sealed = key(1).seal(b"secret", FIELD).unwrap();
    let other = CipherKey::generate(1).unwrap();
    assert_eq!(other.open(&sealed, FIELD).unwrap_err(), CipherError::Refused);
    assert_eq!(key(2).open(&sealed, FIELD).unwrap_err(), CipherError::OtherVersion(1));
    // With the commitment of another record of the same key, the tag is not even looked at.
    let mut mixed = sealed.clone();
    mixed[38..70].copy_from_slice(&key(1).seal(b"secret", FIELD).unwrap()[38..70]);
    assert_eq!(key(1).open(&mixed, FIELD).unwrap_err(), CipherError::Refused);
}

#[test]
fn a_key_shows_in_no_log() {
    assert_eq!(format!("{:?}", key(3)), "CipherKey { version: 3, .. }");
    let mut bytes = [9; 32];
    let _ = CipherKey::new(1, &mut bytes);
    assert_eq!(bytes, [0; 32], "what it was made of is wiped");
}

/// The key and the nonce are derived from the record's salt, so that they repeat only if the salt does. No salt repeats, and
/// neither does the commitment, which is part of the same HKDF output.
#[test]
fn no_salt_and_no_key_comes_twice() {
    let records: usize =
        std::env::var("MEMFLEET_NONCES").ok().and_then(|count| count.parse().ok()).unwrap_or(200_000);
    let key = CipherKey::generate(1).unwrap();
    let (mut salts, mut made) = (HashSet::with_capacity(records), HashSet::with_capacity(records));
    let half = |bytes: &[u8]| u128::from_be_bytes(bytes.try_into().unwrap());
    for _ in 0..records {
        let sealed = key.seal(b"", FIELD).unwrap();
        assert!(salts.insert(half(&sealed[6..22])), "a salt comes twice");
        assert!(made.insert(half(&sealed[38..54])), "a key comes twice");
    }
}
