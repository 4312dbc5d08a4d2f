//! Settings: docs/memfleet.toml is complete and correct, and an invalid option is rejected by its name.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use config::{LogFormat, Settings, SettingsError};
use serde_json::Value;

fn documented() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/memfleet.toml")
}

/// Loads a file with this content.
fn load(name: &str, content: &str) -> Result<Settings, SettingsError> {
    let file = std::env::temp_dir().join(format!("memfleet-settings-{}-{name}.toml", std::process::id()));
    std::fs::write(&file, content).unwrap();
    let settings = Settings::load(Some(&file));
    std::fs::remove_file(&file).unwrap();
    settings
}

/// The error of a file that must be rejected.
fn refusal(name: &str, content: &str) -> String {
    match load(name, content) {
        Err(error) => error.to_string(),
        Ok(settings) => panic!("{content:?} was taken as {settings:?}"),
    }
}

/// All options, as section and name.
fn options() -> Vec<(String, String)> {
    let Value::Object(sections) = serde_json::to_value(Settings::default()).unwrap() else {
        panic!("the settings are no object")
    };
    let names = |section: &Value| section.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    sections
        .iter()
        .flat_map(|(section, options)| names(options).into_iter().map(move |name| (section.clone(), name)))
        .collect()
}

#[test]
fn a_vector_store_is_reached_over_http() {
    assert_eq!(
        refusal("scheme", "[vectors]\nurl = \"ftp://somewhere\"\n"),
        "vectors.url must begin with http:// or https://"
    );
}

#[test]
fn archives_are_in_a_folder_or_in_a_bucket() {
    for url in ["/var/lib/archives", "file://archives", "ftp://somewhere", "S3://bucket"] {
        let problem = refusal("archive", &format!("[archive]\nurl = \"{url}\"\n"));
        assert!(
            problem.starts_with("archive.url must begin with file:/// (a folder) or s3:// (a bucket)"),
            "{problem}"
        );
    }
    for url in ["file:///var/lib/archives", "s3://bucket", "s3://bucket/prefix"] {
        load("archive", &format!("[archive]\nurl = \"{url}\"\n")).unwrap();
    }
    let problem = refusal("archive", "[archive]\ns3_url = \"minio:9000\"\n");
    assert!(problem.starts_with("archive.s3_url must begin with https://"), "{problem}");
}

#[test]
fn the_documented_file_holds_the_defaults() {
    assert_eq!(Settings::load(Some(&documented())).unwrap(), Settings::default());
    assert_eq!(Settings::load(None).unwrap(), Settings::default());
}

#[test]
fn the_documented_file_names_every_option() {
    let text = std::fs::read_to_string(documented()).unwrap();
    let mut section = String::new();
    let mut named: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
        }
        // An option without a default stands there as a comment.
        if let Some((name, _)) = line.trim_start_matches("# ").split_once(" = ") {
            named.push((section.clone(), name.to_owned()));
        }
    }
    let mut expected = options();
    named.sort();
    expected.sort();
    assert_eq!(named, expected);
}

#[test]
fn a_file_overrides_the_defaults() {
    let content =
        "[worker]\nbatch_size = 7\n[nats]\ncredentials_file = \"a.creds\"\n[log]\nformat = \"json\"\n";
    let settings = load("overrides", content).unwrap();
    assert_eq!(settings.worker.batch_size, 7);
    assert_eq!(settings.nats.credentials_file.as_deref(), Some("a.creds"));
    assert_eq!(settings.log.format, LogFormat::Json);
    assert_eq!(settings.postgres, Settings::default().postgres);
}

#[test]
fn an_unknown_option_is_refused_by_name() {
    let problem = refusal("unknown-option", "[worker]\nbatchsize = 7\n");
    assert!(problem.contains("worker") && problem.contains("batchsize"), "{problem}");
    assert!(problem.contains("did you mean `batch_size`?"), "{problem}");
    let problem = refusal("unknown-section", "[wroker]\nbatch_size = 7\n");
    assert!(problem.contains("wroker"), "{problem}");
    assert!(problem.contains("did you mean `worker`?"), "{problem}");
    let problem = refusal("unknown-option", "[health]\ninterval = 7\n");
    assert!(problem.contains("there is no option `interval`; expected one of `listen`"), "{problem}");
    let problem = refusal("unknown-value", "[log]\nformat = \"xml\"\n");
    assert!(
        problem.contains("log.format: \"xml\" is not allowed; expected one of `text`, `json`"),
        "{problem}"
    );
}

#[test]
fn a_value_of_the_wrong_type_is_refused_by_name() {
    let table = [
        ("worker.batch_size", "[worker]\nbatch_size = \"many\"\n"),
        ("worker.retry_attempts", "[worker]\nretry_attempts = -1\n"),
        ("worker.batch_wait_ms", "[worker]\nbatch_wait_ms = 0.5\n"),
        ("nats.url", "[nats]\nurl = 4222\n"),
        ("log.format", "[log]\nformat = \"xml\"\n"),
    ];
    for (option, content) in table {
        let problem = refusal(option, content);
        assert!(problem.starts_with(option), "{content:?}: {problem}");
    }
}

#[test]
fn a_number_out_of_bounds_is_refused_by_name_with_the_bounds() {
    let table = [
        ("postgres", "read_pool_size", 1, 200),
        ("postgres", "write_pool_size", 1, 200),
        ("postgres", "connect_timeout_ms", 100, 60_000),
        ("postgres", "statement_timeout_ms", 1_000, 600_000),
        ("postgres", "lock_timeout_ms", 50, 60_000),
        ("trust", "service_per_second", 1, 1_000_000),
        ("trust", "service_kib_per_second", 1, 10_000_000),
        ("trust", "scope_per_second", 1, 1_000_000),
        ("trust", "user_per_second", 1, 1_000_000),
        ("keys", "cache_s", 1, 3_600),
        ("audit", "seal_every_s", 1, 3_600),
        ("archive", "timeout_ms", 100, 300_000),
        ("privacy", "every_s", 1, 3_600),
        ("privacy", "streams_parallel", 1, 256),
        ("vectors", "oversampling", 1, 100),
        ("vectors", "timeout_ms", 10, 60_000),
        ("vectors", "reconcile_every_s", 10, 604_800),
        ("embedder", "batch", 1, 256),
        ("embedder", "timeout_ms", 100, 600_000),
        ("embedder", "retries", 0, 10),
        ("embedder", "chunk_limit", 1, 4_096),
        ("next_embedder", "batch", 1, 256),
        ("next_embedder", "timeout_ms", 100, 600_000),
        ("next_embedder", "retries", 0, 10),
        ("next_embedder", "chunk_limit", 1, 4_096),
        ("worker", "batch_size", 1, 1_000),
        ("worker", "batch_wait_ms", 0, 1_000),
        ("worker", "retry_attempts", 1, 100),
        ("worker", "retry_first_delay_ms", 1, 60_000),
        ("worker", "retry_longest_delay_ms", 1, 3_600_000),
        ("worker", "prerequisite_wait_s", 0, 604_800),
        ("worker", "waiting_per_service", 1, 1_000_000),
        ("worker", "startup_timeout_s", 1, 3_600),
        ("worker", "shutdown_grace_s", 1, 600),
    ];
    // A number that is added to the settings must be added here too.
    let defaults = serde_json::to_value(Settings::default()).unwrap();
    let numbers = options().into_iter().filter(|(section, name)| defaults[section][name].is_number()).count();
    // The bounds of chunk_tokens and chunk_overlap depend on each other; `embed` tests them.
    assert_eq!(numbers, table.len() + 4);

    for (section, name, least, most) in table {
        let content = |value: i64| format!("[{section}]\n{name} = {value}\n");
        for inside in [least, most] {
            load(name, &content(inside))
                .unwrap_or_else(|error| panic!("{section}.{name} = {inside}: {error}"));
        }
        // What is below zero is of the wrong type, and refused as such.
        for outside in [least - 1, most + 1].into_iter().filter(|value| *value >= 0) {
            let expected = format!("{section}.{name} is {outside}; it must be from {least} to {most}");
            assert_eq!(refusal(name, &content(outside)), expected);
        }
    }
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_refused() {
    let error = Settings::load(Some(Path::new("/nowhere/memfleet.toml"))).unwrap_err().to_string();
    assert_eq!(error, "there is no configuration file /nowhere/memfleet.toml");
    let problem = refusal("no-toml", "[worker\n");
    assert!(problem.contains("memfleet-settings-"), "{problem}");
}

/// The environment belongs to the whole process, so the test runs itself again in a process of its own.
#[test]
fn the_environment_overrides_the_file() {
    const CHILD: &str = "SETTINGS_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let content = "[worker]\nbatch_size = 7\nretry_attempts = 3\n[nats]\nurl = \"nats://file:4222\"\n";
        let settings = load("environment", content).unwrap();
        assert_eq!((settings.worker.batch_size, settings.worker.retry_attempts), (9, 3));
        assert_eq!(settings.nats.url, "nats://environment:4222");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_environment_overrides_the_file"])
        .env(CHILD, "1")
        .env("MEMFLEET_WORKER__BATCH_SIZE", "9")
        .env("MEMFLEET_NATS__URL", "nats://environment:4222")
        // Without two underscores it is no option.
        .env("MEMFLEET_HOME", "/nowhere")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn an_unknown_option_of_the_environment_is_refused_by_name() {
    const CHILD: &str = "SETTINGS_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let problem = Settings::load(None).unwrap_err().to_string();
        assert!(problem.contains("batchsize"), "{problem}");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "an_unknown_option_of_the_environment_is_refused_by_name"])
        .env(CHILD, "1")
        .env("MEMFLEET_WORKER__BATCHSIZE", "9")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn every_option_can_be_passed_on_in_the_environment() {
    let content = "nats.credentials_file = \"/a b\"\nnats.nkey_file = \"n\"\nnats.ca_file = \"c\"\nnats.api_prefix = \"a\"\npostgres.worker_url = \"w\"\npostgres.read_url = \"r\"\ntrust.grant_key_file = \"k\"\ntrust.token_key_file = \"t\"\ntrust.payload_ring_file = \"p\"\n\
                   keys.worker_url = \"w\"\nkeys.ring_file = \"r\"\nkeys.vault_url = \"u\"\nkeys.vault_token_file = \"t\"\n\
                   keys.vault_ca_file = \"c\"\nkeys.vault_former_keys = \"f\"\nkeys.kms_former_keys = \"f\"\nkeys.kms_key = \"k\"\nkeys.kms_region = \"r\"\nkeys.kms_url = \"u\"\n\
                   audit.seal_key_file = \"s\"\naudit.public_keys_file = \"p\"\n\
                   archive.url = \"file:///a\"\narchive.signing_key_file = \"s\"\narchive.public_keys_file = \"p\"\n\
                   archive.s3_region = \"r\"\narchive.s3_url = \"https://u\"\nworker.batch_size = 7\n\
                   vectors.url = \"http://u\"\nvectors.api_key = \"k\"\nvectors.model = \"m\"\nvectors.dimension = 3\nhealth.listen = \"127.0.0.1:1\"\n\
                   privacy.receipt_url = \"file:///r\"\nprivacy.receipt_key_file = \"r\"\nprivacy.public_keys_file = \"p\"\nprivacy.export_folder = \"/e\"\n";
    let embedder = "weights = \"w\"\nthreads = 1\nurl = \"u\"\nmodel = \"m\"\ndimension = 3\ntoken = \"t\"\nrequests_per_second = 1\n";
    let content = &format!("{content}[embedder]\n{embedder}[next_embedder]\n{embedder}");
    let settings = load("passed-on", content).unwrap();
    let variables = settings.to_environment().unwrap();
    let mut names: Vec<String> = variables.iter().map(|(name, _)| name.clone()).collect();
    let mut expected: Vec<String> = options()
        .iter()
        .map(|(section, option)| format!("MEMFLEET_{section}__{option}").to_uppercase())
        .collect();
    expected.push("MEMFLEET_NATS__CREDENTIALS_FILE".to_owned());
    for list in [&mut names, &mut expected] {
        list.sort();
        list.dedup();
    }
    assert_eq!(names, expected);
    for (name, value) in [
        ("MEMFLEET_NATS__CREDENTIALS_FILE", "/a b"),
        ("MEMFLEET_WORKER__BATCH_SIZE", "7"),
        ("MEMFLEET_LOG__FORMAT", "text"),
    ] {
        assert!(variables.contains(&(name.to_owned(), value.to_owned())), "{name}: {variables:?}");
    }
}

#[test]
fn keys_must_not_lie_with_what_they_encrypt() {
    let content = "[postgres]\nurl = \"postgres://h/d\"\n[keys]\nurl = \"postgres://k:p@h:5432/d\"\n";
    let problem = refusal("one-database", content);
    assert!(problem.starts_with("keys.url names the main database"), "{problem}");
}

#[test]
fn passwords_are_hidden() {
    for (section, name) in SECRETS {
        let url = if name.contains("url") { "https://u:secret@h/x?password=secret" } else { "secret" };
        let settings = load("hidden", &format!("[{section}]\n{name} = {url:?}\n")).unwrap();
        assert!(!format!("{settings:?}{settings:#?}").contains("secret"), "{section}.{name}: {settings:?}");
        let variables = settings.to_environment().unwrap();
        assert!(variables.iter().any(|(_, value)| value == url), "{section}.{name} is passed on");
    }
}

/// The options with secrets: tokens, and URLs, which may contain a password.
const SECRETS: [(&str, &str); 13] = [
    ("nats", "url"),
    ("postgres", "url"),
    ("postgres", "worker_url"),
    ("postgres", "read_url"),
    ("keys", "url"),
    ("keys", "worker_url"),
    ("keys", "vault_url"),
    ("keys", "kms_url"),
    ("vectors", "url"),
    ("vectors", "api_key"),
    ("embedder", "url"),
    ("embedder", "token"),
    ("next_embedder", "token"),
];

/// The one text option that takes only texts of a form.
const ALIAS: (&str, &str) = ("vectors", "alias");

/// The options that are not text. All others take any text, but for [`ALIAS`].
fn is_text(section: &str, name: &str) -> bool {
    let other = ["kind", "provider", "quantization", "threads", "dimension", "requests_per_second", "listen"];
    let is_other = other.contains(&name) || (section, name) == ("log", "format");
    !is_other && !serde_json::to_value(Settings::default()).unwrap()[section][name].is_number()
}

#[test]
fn the_value_of_a_text_option_is_in_no_message() {
    // A number, a text without quotation marks, and values of other types, each with the secret in it.
    let wrong = |secret: &str, number: &str| {
        [
            number.to_owned(),
            format!("-{number}"),
            format!("{number}.5"),
            format!("[{secret:?}]"),
            format!("{{ a = {secret:?} }}"),
            secret.to_owned(),
            format!("\"{secret}"),
            format!("\"{secret}\\q\""),
            format!("'{secret}"),
            format!("{secret:?} {secret:?}"),
            format!("{secret:?}\n{secret}"),
            format!("{secret:?}\n= {secret:?}"),
        ]
    };
    for (section, name) in options().iter().filter(|(section, name)| is_text(section, name)) {
        for value in wrong("hunter2", "48151623") {
            let problem = refusal("secret", &format!("[{section}]\n{name} = {value}\n"));
            assert!(!problem.contains("hunter2") && !problem.contains("48151623"), "{value}: {problem}");
            assert!(!problem.contains('\n'), "one line: {problem}");
        }
        let problem = refusal("secret", &format!("[{section}]\n{name} = 48151623\n"));
        let start = format!("{section}.{name}: is an integer; expected ");
        assert!(problem.starts_with(&start) && problem.contains("memfleet-settings-"), "{problem}");
    }
    for content in ["vectors = \"hunter2\"", "vectors = [\"hunter2\"]", "[vectors]\nurl = \"ftp://hunter2\""]
    {
        let problem = refusal("secret", content);
        assert!(problem.starts_with("vectors") && !problem.contains("hunter2"), "{problem}");
    }
}

/// The environment belongs to the whole process, so the test runs itself again in a process of its own.
#[test]
fn a_text_option_takes_any_text_of_the_environment() {
    const CHILD: &str = "SETTINGS_TEST_TEXT";
    // An alias has a form of its own: what looks like a number is one, most other texts are none.
    let options: Vec<(String, String)> = options()
        .into_iter()
        .filter(|(section, name)| is_text(section, name) && (section.as_str(), name.as_str()) != ALIAS)
        .collect();
    // Addresses begin with a scheme.
    let text = |section: &str, name: &str, text: &str| match (section, name) {
        ("archive", "url") | ("privacy", "receipt_url") => format!("file:///{text}"),
        ("archive", "s3_url") => format!("https://{text}"),
        ("privacy", "export_folder") => format!("/{text}"),
        (_, "url") => format!("http://{text}"),
        _ => text.to_owned(),
    };
    if let Ok(value) = std::env::var(CHILD) {
        let settings = serde_json::to_value(Settings::load(None).unwrap()).unwrap();
        for (section, name) in &options {
            let expected = text(section, name, value.trim_end_matches('\n'));
            assert_eq!(settings[section][name], expected, "{section}.{name}");
        }
        assert_eq!(settings[ALIAS.0][ALIAS.1], "12345");
        assert_eq!(settings["worker"]["batch_size"], 9);
        assert_eq!(settings["vectors"]["oversampling"], 2.5);
        assert_eq!(settings["embedder"]["threads"], 3);
        assert_eq!(settings["log"]["format"], "json");
        return;
    }
    for value in [
        "12345",
        "-1",
        "1.5",
        "1e400",
        "007",
        "true",
        "false",
        "null",
        "[a, b]",
        "[",
        "{a = 1}",
        "{",
        "\"a\"",
        "'a'",
        " a ",
        "a, b",
        "a=b",
        "1979-05-27",
        "ключ",
        "\u{1b}[2J",
        "a\n",
    ] {
        let variables = options.iter().map(|(section, name)| {
            (format!("MEMFLEET_{section}__{name}").to_uppercase(), text(section, name, value))
        });
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_text_option_takes_any_text_of_the_environment"])
            .env(CHILD, value)
            .envs(variables)
            .env("MEMFLEET_VECTORS__ALIAS", "12345")
            .env("MEMFLEET_WORKER__BATCH_SIZE", "9")
            .env("MEMFLEET_VECTORS__OVERSAMPLING", "2.5")
            .env("MEMFLEET_EMBEDDER__THREADS", "3")
            .env("MEMFLEET_LOG__FORMAT", "json")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{value:?}: {said}");
    }
}
