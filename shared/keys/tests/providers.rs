//! Vault and AWS KMS as KEK providers: requests and responses.

#![cfg(all(feature = "vault", feature = "aws-kms"))]
#![allow(missing_docs, clippy::unwrap_used)]

mod fake;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use config::{KeySettings, ProviderName};
use contract::UserId;
use data_encoding::BASE64;
use fake::{Fake, ReceivedRequest};
use keys::{Grants, KeyError, Keys};
use serde_json::{Value, json};
use testkit::attack::grant;
use testkit::{Fixture, create_key_store};

fn user(id: i32) -> UserId {
    UserId::new(id).unwrap()
}

/// The role of the tests' administrator, who opens the key stores here.
const ROLE: &str = "memfleet";

/// Users with their grants.
fn users(ids: &[i32]) -> Grants<'static> {
    ids.iter().map(|id| (user(*id), &*Box::leak(grant(*id, ROLE).into_boxed_str()))).collect()
}

async fn kek_usage(store: &str) -> Vec<keys::KekUsage> {
    keys::kek_usage(&mut store::connect(store).await.unwrap()).await.unwrap()
}

fn open(settings: &KeySettings) -> Keys {
    Keys::open(settings, "", "test", Duration::from_secs(5)).unwrap()
}

/// A fake transit engine, whose encryption is base64 of the plaintext and the associated data.
fn vault(latest: &'static AtomicU64) -> impl Fn(&ReceivedRequest) -> (u16, Value) + Send + Sync + 'static {
    move |asked| {
        if asked.header("x-vault-token") != Some("s.token") {
            return (403, json!({ "errors": ["permission denied"] }));
        }
        let latest = latest.load(Ordering::SeqCst);
        let path = asked.path.replace("/v1/other/", "/v1/secrets/transit/");
        if (asked.method.as_str(), path.as_str()) == ("GET", "/v1/secrets/transit/keys/fleet") {
            return (200, json!({ "data": { "latest_version": latest, "type": "aes256-gcm96" } }));
        }
        let batch = asked.json()["batch_input"].as_array().unwrap().clone();
        let results: Vec<Value> = batch
            .iter()
            .map(|item| match path.as_str() {
                "/v1/secrets/transit/encrypt/fleet" => {
                    let held = json!([item["plaintext"], item["associated_data"]]).to_string();
                    json!({ "ciphertext": format!("vault:v{latest}:{}", BASE64.encode(held.as_bytes())), "key_version": latest })
                }
                "/v1/secrets/transit/decrypt/fleet" => {
                    let held = item["ciphertext"].as_str().unwrap().rsplit(':').next().unwrap();
                    match BASE64.decode(held.as_bytes()).ok().and_then(|held| serde_json::from_slice::<Value>(&held).ok()) {
                        Some(held) if held[1] == item["associated_data"] => json!({ "plaintext": held[0] }),
                        _ => json!({ "error": "cipher: message authentication failed" }),
                    }
                }
                other => panic!("nobody asks Vault for {other}"),
            })
            .collect();
        let status = if results.iter().any(|result| result.get("error").is_some()) { 400 } else { 200 };
        (status, json!({ "data": { "batch_results": results } }))
    }
}

fn vault_settings(url: &str, folder: &std::path::Path) -> KeySettings {
    let token = folder.join("token");
    std::fs::write(&token, "s.token\n").unwrap();
    KeySettings {
        provider: ProviderName::Vault,
        vault_url: Some(format!("{url}/")),
        vault_token_file: Some(token.to_str().unwrap().to_owned()),
        vault_mount: "secrets/transit".to_owned(),
        vault_key: "fleet".to_owned(),
        ..KeySettings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_wraps_a_batch_at_once_and_opens_it_for_the_same_user_only() {
    static LATEST: AtomicU64 = AtomicU64::new(3);
    let (fake, folder) = (Fake::start(vault(&LATEST)), tempfile::tempdir().unwrap());
    let store = create_key_store().await.unwrap();
    let settings = KeySettings { url: store.clone(), ..vault_settings(&fake.url, folder.path()) };
    let keys = open(&settings);
    keys.check().await.unwrap();
    let made = keys.current(&users(&[1, 2])).await.unwrap();
    let usage = kek_usage(&store).await;
    assert_eq!((usage[0].kek.as_str(), usage[0].data_keys), ("vault:secrets/transit/fleet.3", 2));

    // One request for both, as Vault's API describes it.
    let asked = fake.asked();
    let encrypt: Vec<&ReceivedRequest> =
        asked.iter().filter(|asked| asked.path.contains("/encrypt/")).collect();
    assert_eq!(encrypt.len(), 1);
    assert_eq!(encrypt[0].method, "POST");
    assert_eq!(encrypt[0].header("x-vault-request"), Some("true"));
    let batch = &encrypt[0].json()["batch_input"];
    assert_eq!(batch.as_array().unwrap().len(), 2);
    let plain = BASE64.decode(batch[0]["plaintext"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(plain, made[&user(1)].as_ref().unwrap().expose());
    assert_ne!(batch[0]["associated_data"], batch[1]["associated_data"]);

    // A replica that knows nothing opens the same keys.
    let again = open(&settings).current(&users(&[1, 2])).await.unwrap();
    assert_eq!(again[&user(2)].as_ref().unwrap().expose(), made[&user(2)].as_ref().unwrap().expose());
    assert!(!format!("{keys:?} {settings:?}").contains("s.token"));

    // Wrapped keys of two users that were exchanged: neither opens, each gets another one.
    let mut connection = store::connect(&store).await.unwrap();
    let swap = "UPDATE data_keys k SET wrapped = o.wrapped FROM data_keys o WHERE o.user_id = 3 - k.user_id";
    diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, swap).await.unwrap();
    let found = open(&settings).current(&users(&[1, 2, 3])).await.unwrap();
    let versions = |ids: [i32; 3]| ids.map(|id| found[&user(id)].as_ref().unwrap().version());
    assert_eq!(versions([1, 2, 3]), [2, 2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_names_nothing_of_vault_but_a_transit_key_and_no_other_one_must_be_there() {
    static LATEST: AtomicU64 = AtomicU64::new(1);
    let folder = tempfile::tempdir().unwrap();
    let transit = vault(&LATEST);
    let fake = Fake::start(move |asked| {
        if asked.path.starts_with("/v1/of/another/") {
            return (403, json!({ "errors": ["permission denied"] }));
        }
        // It panics at any other request.
        transit(asked)
    });
    let url = create_key_store().await.unwrap();
    let vault_former_keys = Some("of/another/key, secrets/transit/older".to_owned());
    let settings =
        KeySettings { url: url.clone(), vault_former_keys, ..vault_settings(&fake.url, folder.path()) };
    let keks = [
        "vault:foreign/fleet.1",
        "vault:auth/token/revoke-self?/x.1",
        "vault:../sys/seal#/x.1",
        "vault:/x.1",
        "vault:of/another/key.1",
    ];
    let mut connection = store::connect(&url).await.unwrap();
    for (id, kek) in (1..).zip(keks) {
        let sql = format!(
            "INSERT INTO data_keys (user_id, version, kek, wrapped) VALUES ({id}, 1, '{kek}', sha256('x'))"
        );
        diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, &sql).await.unwrap();
    }
    let found = open(&settings).current(&users(&[1, 2, 3, 4, 5, 6])).await.unwrap();
    let versions = [1, 2, 3, 4, 5, 6].map(|id| found[&user(id)].as_ref().unwrap().version());
    assert_eq!(versions, [2, 2, 2, 2, 2, 1]);
    let asked = fake.asked().into_iter().filter(|asked| asked.path.contains("/decrypt/"));
    let foreign = asked.filter(|asked| !asked.path.starts_with("/v1/secrets/transit/"));
    assert_eq!(foreign.map(|asked| asked.path).collect::<Vec<_>>(), ["/v1/of/another/decrypt/key"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_in_vault_wraps_what_is_rotated() {
    static LATEST: AtomicU64 = AtomicU64::new(1);
    let (fake, folder) = (Fake::start(vault(&LATEST)), tempfile::tempdir().unwrap());
    let url = create_key_store().await.unwrap();
    let settings = KeySettings { url, ..vault_settings(&fake.url, folder.path()) };
    let made = open(&settings).current(&users(&[1, 2, 3])).await.unwrap();
    LATEST.store(2, Ordering::SeqCst);
    let renewed = keys::rewrap(&open(&settings)).await.unwrap();
    assert_eq!((renewed.done, renewed.failed), (3, 0));
    let usage = kek_usage(&settings.url).await;
    assert_eq!((usage.len(), usage[0].kek.as_str()), (1, "vault:secrets/transit/fleet.2"));
    let again = open(&settings).current(&users(&[1, 2, 3])).await.unwrap();
    assert_eq!(again[&user(3)].as_ref().unwrap().expose(), made[&user(3)].as_ref().unwrap().expose());
    assert_eq!(keys::rewrap(&open(&settings)).await.unwrap().done, 0, "once is enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vault_refuses_keeps_everybody_waiting_and_says_why() {
    static LATEST: AtomicU64 = AtomicU64::new(1);
    let (fake, folder) = (Fake::start(vault(&LATEST)), tempfile::tempdir().unwrap());
    let url = create_key_store().await.unwrap();
    let settings = KeySettings { url, ..vault_settings(&fake.url, folder.path()) };
    std::fs::write(folder.path().join("token"), "s.old").unwrap();
    let keys = open(&settings);
    let refused = keys.current(&users(&[1])).await.unwrap_err();
    assert!(matches!(refused, KeyError::Provider(_)));
    assert_eq!(refused.to_string(), "the key provider: Vault responded with 403: permission denied");
    assert!(keys.check().await.unwrap_err().contains("permission denied"));
    // A token that somebody renews is taken at once.
    std::fs::write(folder.path().join("token"), "s.token").unwrap();
    assert!(keys.current(&users(&[1])).await.unwrap()[&user(1)].is_ok());

    let gone = KeySettings { vault_url: Some("http://127.0.0.1:1".to_owned()), ..settings };
    let refused = open(&gone).current(&users(&[1])).await.unwrap_err().to_string();
    assert!(
        refused.starts_with(
            "the key provider: the request to http://127.0.0.1:1/v1/secrets/transit/decrypt/fleet failed"
        ),
        "{refused}"
    );
}

/// The key that the alias names.
const ARN: &str = "arn:aws:kms:eu-central-1:1:key/x";

/// A fake KMS, which decrypts a blob with the same encryption context only.
fn kms(disabled: &'static AtomicBool) -> impl Fn(&ReceivedRequest) -> (u16, Value) + Send + Sync + 'static {
    move |asked| {
        let body = asked.json();
        if disabled.load(Ordering::SeqCst) {
            return (400, json!({ "__type": "DisabledException", "message": "arn is disabled" }));
        }
        match asked.header("x-amz-target") {
            Some("TrentService.Encrypt") => {
                let held = json!([body["Plaintext"], body["EncryptionContext"], ARN]).to_string();
                (200, json!({ "CiphertextBlob": BASE64.encode(held.as_bytes()), "KeyId": ARN }))
            }
            Some("TrentService.Decrypt") => {
                let blob = BASE64.decode(body["CiphertextBlob"].as_str().unwrap().as_bytes()).unwrap();
                match serde_json::from_slice::<Value>(&blob) {
                    Ok(held) if held[1] == body["EncryptionContext"] && held[2] == body["KeyId"] => {
                        (200, json!({ "Plaintext": held[0], "KeyId": ARN }))
                    }
                    Ok(held) if held[1] == body["EncryptionContext"] => {
                        (400, json!({ "__type": "IncorrectKeyException" }))
                    }
                    _ => (400, json!({ "__type": "InvalidCiphertextException" })),
                }
            }
            Some("TrentService.DescribeKey") => {
                assert_eq!(body, json!({ "KeyId": "alias/fleet" }));
                (200, json!({ "KeyMetadata": { "Arn": ARN, "KeyState": "Enabled" } }))
            }
            other => panic!("nobody asks KMS for {other:?}"),
        }
    }
}

fn kms_settings(url: &str, store: String) -> KeySettings {
    KeySettings {
        url: store,
        provider: ProviderName::AwsKms,
        kms_key: Some("alias/fleet".to_owned()),
        kms_region: Some("eu-central-1".to_owned()),
        kms_url: Some(url.to_owned()),
        ..KeySettings::default()
    }
}

/// Credentials are in the environment of the process, so that the test runs in a process of its own.
#[test]
fn kms_is_asked_as_its_api_describes() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "kms_with_credentials", "--nocapture"])
        .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
        .env("AWS_SESSION_TOKEN", "session")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test above, with credentials"]
async fn kms_with_credentials() {
    static DISABLED: AtomicBool = AtomicBool::new(false);
    let fake = Fake::start(kms(&DISABLED));
    let store = create_key_store().await.unwrap();
    let settings = kms_settings(&fake.url, store.clone());
    let keys = open(&settings);
    keys.check().await.unwrap();
    let made = keys.current(&users(&[1, 2])).await.unwrap();
    let again = open(&settings).current(&users(&[1, 2])).await.unwrap();
    assert_eq!(again[&user(1)].as_ref().unwrap().expose(), made[&user(1)].as_ref().unwrap().expose());
    assert_eq!(kek_usage(&store).await[0].kek, format!("aws-kms:{ARN}"));

    let asked = fake.asked();
    // They are asked for several at a time, in any order.
    let encrypt = asked
        .iter()
        .filter(|asked| asked.header("x-amz-target") == Some("TrentService.Encrypt"))
        .find(|asked| asked.json()["EncryptionContext"]["user-id"] == "1")
        .unwrap();
    assert_eq!((encrypt.method.as_str(), encrypt.path.as_str()), ("POST", "/"));
    assert_eq!(encrypt.header("content-type"), Some("application/x-amz-json-1.1"));
    assert_eq!(encrypt.header("x-amz-security-token"), Some("session"));
    let signed = encrypt.header("authorization").unwrap();
    assert!(signed.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"), "{signed}");
    assert!(signed.contains("/eu-central-1/kms/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, Signature="), "{signed}");
    let body = encrypt.json();
    assert_eq!(body["KeyId"], "alias/fleet");
    assert_eq!(
        body["EncryptionContext"],
        json!({ "memfleet-key": "data-key", "user-id": "1", "version": "1" })
    );
    let decrypt =
        asked.iter().find(|asked| asked.header("x-amz-target") == Some("TrentService.Decrypt")).unwrap();
    assert_eq!(
        decrypt.json()["KeyId"],
        ARN,
        "only what this key has wrapped, whatever the alias names by then"
    );

    // KMS is not asked for the key of another account, which may be one that KMS lets us use.
    let mut connection = store::connect(&store).await.unwrap();
    let rename = "UPDATE data_keys SET kek = 'aws-kms:arn:of:another:key' WHERE user_id = 2";
    diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, rename).await.unwrap();
    let found = open(&settings).current(&users(&[1, 2])).await.unwrap();
    let versions = [1, 2].map(|id| found[&user(id)].as_ref().unwrap().version());
    assert_eq!(versions, [1, 2]);
    let named = |kek: &str| fake.asked().iter().filter(|asked| asked.json()["KeyId"] == kek).count();
    assert_eq!(named("arn:of:another:key"), 0);
    // Unless it is known as a former one: what it has wrapped would open.
    let kms_former_keys = Some("arn:of:another:key".to_owned());
    let before = KeySettings { kms_former_keys, ..settings.clone() };
    assert!(open(&before).current(&users(&[1, 2])).await.unwrap()[&user(2)].is_ok());
    let remove = "DELETE FROM data_keys WHERE user_id = 2 AND version = 2";
    diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, remove).await.unwrap();
    assert!(open(&before).current(&users(&[1, 2])).await.unwrap()[&user(2)].is_ok());
    assert!(named("arn:of:another:key") > 0);
    let restore = "UPDATE data_keys SET kek = (SELECT kek FROM data_keys WHERE user_id = 1) WHERE user_id = 2 AND version = 1";
    diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, restore).await.unwrap();

    // Exchanged blobs open for nobody; a key that is disabled keeps everybody waiting.
    let swap = "UPDATE data_keys k SET wrapped = o.wrapped FROM data_keys o WHERE o.user_id = 3 - k.user_id AND o.version = 1 AND k.version = 1";
    diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, swap).await.unwrap();
    let found = open(&settings).current(&users(&[1])).await.unwrap();
    assert_eq!(found[&user(1)].as_ref().unwrap().version(), 2);
    DISABLED.store(true, Ordering::SeqCst);
    let refused = open(&settings).current(&users(&[1])).await.unwrap_err().to_string();
    assert!(refused.contains("KMS responded with 400") && refused.contains("DisabledException"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_refuses_is_told_without_the_keys_in_it() {
    // One item failed inside of Vault, and the answer has the others' keys all the same.
    let partly = json!({ "data": { "batch_results": [{ "plaintext": "a2V5LW9mLXNvbWVib2R5" }, { "error": "internal" }] } });
    let fake = Fake::start(move |asked| match asked.method.as_str() {
        "GET" => (200, json!({ "data": { "latest_version": 1 } })),
        _ => (500, partly.clone()),
    });
    let folder = tempfile::tempdir().unwrap();
    let url = create_key_store().await.unwrap();
    let settings = KeySettings { url, ..vault_settings(&fake.url, folder.path()) };
    let refused = open(&settings).current(&users(&[1, 2])).await.unwrap_err().to_string();
    assert!(
        refused.starts_with("the key provider: Vault responded with 500: ") && !refused.contains("a2V5"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_key_of_vaults_has_wrapped_opens_and_moves() {
    static LATEST: AtomicU64 = AtomicU64::new(1);
    let (fake, folder) = (Fake::start(vault(&LATEST)), tempfile::tempdir().unwrap());
    let url = create_key_store().await.unwrap();
    let before = KeySettings { url, ..vault_settings(&fake.url, folder.path()) };
    let made = open(&before).current(&users(&[1])).await.unwrap();
    let vault_former_keys = Some("secrets/transit/fleet".to_owned());
    let after = KeySettings { vault_mount: "other".to_owned(), vault_former_keys, ..before };
    let found = open(&after).current(&users(&[1])).await.unwrap();
    assert_eq!(found[&user(1)].as_ref().unwrap().expose(), made[&user(1)].as_ref().unwrap().expose());
    assert_eq!(keys::rewrap(&open(&after)).await.unwrap().done, 1);
    assert_eq!(kek_usage(&after.url).await[0].kek, "vault:other/fleet.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_moves_from_a_file_to_vault() {
    static LATEST: AtomicU64 = AtomicU64::new(1);
    let (fake, fixture) = (Fake::start(vault(&LATEST)), Fixture::new().await);
    let folder = tempfile::tempdir().unwrap();
    let file = KeySettings { worker_url: None, ..fixture.settings.keys.clone() };
    let made = open(&file).current(&users(&[1, 2])).await.unwrap();
    let both = KeySettings {
        url: file.url.clone(),
        ring_file: file.ring_file.clone(),
        ..vault_settings(&fake.url, folder.path())
    };
    // Before anything is rotated, the old keys are opened and new ones wrapped by Vault.
    let found = open(&both).current(&users(&[1, 2, 3])).await.unwrap();
    assert_eq!(found[&user(1)].as_ref().unwrap().expose(), made[&user(1)].as_ref().unwrap().expose());
    assert_eq!(keys::rewrap(&open(&both)).await.unwrap().done, 2);
    let vault_alone = KeySettings { ring_file: None, ..both };
    let found = open(&vault_alone).current(&users(&[1, 2, 3])).await.unwrap();
    assert_eq!(found[&user(2)].as_ref().unwrap().expose(), made[&user(2)].as_ref().unwrap().expose());
}

#[test]
fn a_provider_that_lacks_an_option_is_refused_by_its_name() {
    let refused = |settings: KeySettings| {
        Keys::open(&settings, "", "test", Duration::from_secs(1)).map(drop).unwrap_err().to_string()
    };
    let ring = KeySettings::default();
    assert_eq!(refused(ring.clone()), "keys.ring_file is not set, but keys.provider requires it");
    let vault = KeySettings { provider: ProviderName::Vault, ..ring.clone() };
    assert_eq!(refused(vault.clone()), "keys.vault_url is not set, but keys.provider requires it");
    let in_clear = KeySettings {
        vault_url: Some("http://v:8200".to_owned()),
        vault_token_file: Some("t".to_owned()),
        ..vault.clone()
    };
    assert_eq!(
        refused(in_clear),
        "keys.vault_url must begin with https://, because data keys are sent there"
    );
    let no_token = KeySettings { vault_url: Some("https://v".to_owned()), ..vault };
    assert_eq!(refused(no_token), "keys.vault_url is set, but keys.vault_token_file is not");
    let kms = KeySettings { provider: ProviderName::AwsKms, kms_key: Some("k".to_owned()), ..ring };
    assert_eq!(refused(kms), "keys.kms_key is set, but keys.kms_region is not");
}
