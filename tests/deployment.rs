//! The files of `compose/` and `kubernetes/` agree with the program: its workers, options, consumers and accounts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fleet::WorkerName;
use topology::Topology;

use crate::support::in_repository;

fn read(path: &str) -> String {
    std::fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files of a folder and of the folders in it, except secrets and models that somebody keeps there.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let is_shipped =
        |path: &PathBuf| !(path.ends_with("secrets") || path.ends_with("models")) || path.is_file();
    let shipped = entries.filter(is_shipped);
    shipped.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The words of a text that begin with `start` and go on with these characters.
fn words(text: &str, start: &str, goes_on: impl Fn(char) -> bool) -> BTreeSet<String> {
    text.match_indices(start)
        .map(|(at, _)| text[at..].split(|c: char| !goes_on(c)).next().unwrap_or_default().to_owned())
        .collect()
}

/// The options of docs/memfleet.toml, as variables of the environment.
fn options() -> BTreeSet<String> {
    let mut section = String::new();
    let mut options = BTreeSet::new();
    for line in read("docs/memfleet.toml").lines() {
        let line = line.trim_start_matches("# ");
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((name, _)) = line.split_once(" = ") {
            options.insert(format!("MEMFLEET_{section}__{name}").to_uppercase());
        }
    }
    options
}

#[test]
fn every_worker_is_a_service_a_deployment_and_scaled() {
    let (compose, deployments, budgets, scalers) = (
        read("compose/compose.yaml"),
        read("kubernetes/base/workers.yaml"),
        read("kubernetes/base/disruption.yaml"),
        read("kubernetes/keda/scalers.yaml"),
    );
    let consumers = Topology::shipped().expect("the consumers").consumers;
    for worker in WorkerName::ALL {
        let name = worker.as_str();
        let service = format!("\n  {name}:\n    <<: *worker\n    command: [memfleet, run, {name}]\n");
        assert!(compose.contains(&service), "{name} is no service of compose/compose.yaml");
        assert!(
            deployments.contains(&format!("command: [memfleet, run, {name}]")),
            "{name} is no deployment"
        );
        assert!(budgets.contains(&format!("name: {name}\n")), "{name} has no disruption budget");
        assert!(scalers.contains(&format!("  name: {name}\n")), "{name} has no scaler");
        for consumer in consumers.iter().filter(|consumer| consumer.name == name) {
            let trigger = format!("stream: {}\n        consumer: {name}\n", consumer.stream);
            assert!(scalers.contains(&trigger), "{name} is not scaled by its consumer");
        }
    }
    for text in [&compose, &deployments] {
        assert_eq!(text.matches("command: [memfleet, run, ").count(), WorkerName::ALL.len());
    }
}

/// A role without a password cannot log in.
#[test]
fn the_role_of_every_worker_gets_its_password() {
    let (setup, secrets) = (read("kubernetes/base/setup.yaml"), read("kubernetes/secrets"));
    for worker in WorkerName::ALL {
        let password = format!("w_{}.password", worker.as_str().replace('-', "_"));
        let item = format!("{{key: {password}, path: roles/{password}}}");
        assert!(setup.contains(&item), "kubernetes/base/setup.yaml does not set {password}");
        assert!(
            secrets.contains(worker.as_str()),
            "kubernetes/secrets has no secret for {}",
            worker.as_str()
        );
    }
}

/// retention-cleaner signs archives and operators verify them: each has the file that its settings name.
#[test]
fn archives_have_a_place_and_a_key() {
    let (compose, patch) =
        (read("compose/archives.yaml"), read("kubernetes/archives/retention-cleaner.yaml"));
    for text in [&compose, &patch] {
        assert!(
            text.contains("file:///var/lib/memfleet/archives") && text.contains("/run/memfleet/archive.key")
        );
    }
    let folders = |text: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with("FOLDERS: ")).expect("folders");
        line.trim().to_owned()
    };
    let all = format!("{} /volumes/archives", folders(&read("compose/compose.yaml")));
    assert_eq!(folders(&compose), all, "the volumes that get their owners");
    let keys = read("compose/image/memfleet-keys");
    assert!(keys.contains("give retention-cleaner \"$own/archive.key\"\n"), "the signing key");
    let of_operator = keys.split("give operator ").nth(1).and_then(|rest| rest.split("give ").next());
    assert!(of_operator.expect("an operator").contains("$own/archive.pub"), "the public key");
}

/// The processor alone has the key of receipts; operators and the sealer verify what it signs.
#[test]
fn the_key_of_receipts_is_of_one_service() {
    let compose = read("compose/compose.yaml");
    assert!(compose.contains("command: [memfleet, privacy, run, --follow]"));
    assert!(read("kubernetes/base/single.yaml").contains("command: [memfleet, privacy, run, --follow]"));
    let keys = read("compose/image/memfleet-keys");
    let with_key: Vec<&str> = keys
        .split("\ngive ")
        .skip(1)
        .filter(|given| given.split("\n#").next().unwrap_or(given).contains("/receipt.key\""))
        .filter_map(|given| given.split_whitespace().next())
        .collect();
    assert_eq!(with_key, ["privacy"]);
    for service in ["operator", "sealer", "privacy"] {
        let given = keys.split(&format!("\ngive {service} ")).nth(1).expect("its files");
        assert!(given.split("\ngive ").next().expect("files").contains("$own/receipt.pub"), "{service}");
    }
    for text in [&compose, &read("kubernetes/base/kustomization.yaml")] {
        assert!(text.contains("file:///var/lib/memfleet/receipts"), "a place for receipts");
        assert!(text.contains("/run/memfleet/receipt.key"));
    }
}

#[test]
fn every_option_that_is_set_exists() {
    let known = options();
    assert!(
        known.contains("MEMFLEET_NATS__URL") && known.contains("MEMFLEET_EMBEDDER__WEIGHTS"),
        "{known:?}"
    );
    let mut found = 0;
    for file in ["compose", "kubernetes"].into_iter().flat_map(|folder| files(&in_repository(folder))) {
        let text =
            std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for word in words(&text, "MEMFLEET_", |c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
            // Those with one underscore are of the NATS servers or of a script.
            if word.contains("__") {
                assert!(known.contains(&word), "{}: {word} is no option", file.display());
                found += 1;
            }
        }
    }
    assert!(found > 30, "{found} were found");
}

#[test]
fn every_variable_of_the_servers_file_is_set() {
    let needed = words(&read("nats/cluster/server.conf"), "$MEMFLEET_", |c| {
        c == '$' || c == '_' || c.is_ascii_alphanumeric()
    });
    assert_eq!(needed.len(), 13, "{needed:?}");
    for file in ["compose/compose.yaml", "kubernetes/nats/nats.yaml"] {
        let text = read(file);
        for variable in needed.iter().map(|variable| variable.trim_start_matches('$')) {
            let is_set =
                [format!("{variable}: "), format!("name: {variable}\n"), format!("name: {variable}, value")];
            assert!(is_set.iter().any(|line| text.contains(line)), "{file} does not set {variable}");
        }
    }
}

/// A fixed name or port would limit a service to one replica, a fixed network to one deployment on a machine.
#[test]
fn services_can_be_scaled_and_reach_nothing_outside() {
    let compose = read("compose/compose.yaml");
    for fixed in
        ["container_name", "ports:", "network_mode: host", "ipv4_address", "privileged", "docker.sock"]
    {
        assert!(!compose.contains(fixed), "compose/compose.yaml has {fixed}");
    }
    let networks = compose.split("\nnetworks:\n").nth(1).and_then(|rest| rest.split("\nvolumes:").next());
    let networks: Vec<&str> = networks.expect("networks").lines().filter(|line| !line.is_empty()).collect();
    assert!(
        networks.len() >= 4 && networks.iter().all(|line| line.ends_with(": {internal: true}")),
        "{networks:?}"
    );
}
