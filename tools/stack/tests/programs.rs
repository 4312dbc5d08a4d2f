//! Finding the server programs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use stack::{Places, Programs};
use tempfile::TempDir;

fn program(path: &Path) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.canonicalize().unwrap()
}

fn postgres(bin: &Path) -> PathBuf {
    program(&bin.join("initdb"));
    program(&bin.join("postgres")).parent().unwrap().to_path_buf()
}

/// Nothing named, nothing installed, and a current folder two below the temporary one.
fn places(root: &TempDir) -> Places {
    let current = root.path().join("one/two");
    fs::create_dir_all(&current).unwrap();
    Places {
        nats_server: None,
        postgres_bin: None,
        qdrant_local: None,
        home: None,
        current,
        installed: root.path().join("installed"),
    }
}

#[test]
fn programs_lie_in_the_private_folder_of_a_folder_above() {
    let root = TempDir::new().unwrap();
    let nats_server = program(&root.path().join(".memfleet/servers/nats/nats-server"));
    let postgres_bin = postgres(&root.path().join(".memfleet/servers/postgres/bin"));
    postgres(&root.path().join("installed/17/bin"));
    let qdrant_local = program(&root.path().join(".memfleet/bin/qdrant-local"));
    let places = places(&root);
    let found = Programs::find_in(&places).unwrap();
    assert_eq!(found.qdrant_local().unwrap(), qdrant_local);
    assert_eq!((found.nats_server, found.postgres_bin), (nats_server, postgres_bin));
    assert_eq!(places.home(), root.path().join(".memfleet"));
}

#[test]
fn a_named_home_is_the_only_one() {
    let root = TempDir::new().unwrap();
    program(&root.path().join(".memfleet/servers/nats/nats-server"));
    let other = root.path().join("other");
    let places = Places { home: Some(other.clone()), ..places(&root) };
    let error = Programs::find_in(&places).unwrap_err().to_string();
    assert!(error.contains(&other.join("servers/nats/nats-server").display().to_string()), "{error}");
}

#[test]
fn the_highest_installed_postgresql_that_is_new_enough_is_taken() {
    let root = TempDir::new().unwrap();
    let nats_server = program(&root.path().join("nats"));
    let places = Places { nats_server: Some(nats_server), ..places(&root) };
    postgres(&root.path().join("installed/14/bin"));
    Programs::find_in(&places).unwrap_err();
    postgres(&root.path().join("installed/9/bin"));
    postgres(&root.path().join("installed/15/bin"));
    let highest = postgres(&root.path().join("installed/17/bin"));
    assert_eq!(Programs::find_in(&places).unwrap().postgres_bin, highest);
}

#[test]
fn a_missing_program_is_named_with_the_places_and_the_remedy() {
    let root = TempDir::new().unwrap();
    let error = Programs::find_in(&places(&root)).unwrap_err().to_string();
    assert!(error.starts_with("nats-server is not found. Searched: "), "{error}");
    let looked = root.path().join("one/two/.memfleet/servers/nats/nats-server");
    for part in [looked.to_str().unwrap(), "Run `make setup`", "set MEMFLEET_NATS_SERVER to the path"] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }

    program(&root.path().join(".memfleet/servers/nats/nats-server"));
    let error = Programs::find_in(&places(&root)).unwrap_err().to_string();
    assert!(error.starts_with("PostgreSQL (the programs postgres and initdb) is not found."), "{error}");
    for part in ["installed/N/bin", "Run `make setup`", "set MEMFLEET_PG_BIN to the folder"] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn a_name_that_leads_nowhere_is_not_passed_over() {
    let root = TempDir::new().unwrap();
    program(&root.path().join(".memfleet/servers/nats/nats-server"));
    postgres(&root.path().join(".memfleet/servers/postgres/bin"));
    let nowhere = root.path().join("nowhere");
    let wrong_nats = Places { nats_server: Some(nowhere.clone()), ..places(&root) };
    let wrong_postgres = Places { postgres_bin: Some(nowhere.clone()), ..places(&root) };
    for places in [wrong_nats, wrong_postgres] {
        let error = Programs::find_in(&places).unwrap_err().to_string();
        assert!(error.contains(&format!("Searched: {}. ", nowhere.display())), "{error}");
    }
}
