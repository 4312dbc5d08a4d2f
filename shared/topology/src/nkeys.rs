use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nkeys::KeyPair;

use crate::TopologyError;
use crate::permission::{Identity, variable};

/// Makes an nkey for every identity that has none in the folder yet, in a file `<name>.nk` that only its owner can read, and
/// gives the public ones as a file of the server's configuration.
///
/// # Errors
/// [`TopologyError::Unreadable`] if a key that is there cannot be read, or one cannot be written.
pub fn make_nkeys(folder: &Path, identities: &[Identity]) -> Result<String, TopologyError> {
    std::fs::create_dir_all(folder).map_err(|error| unreadable(folder, &error.to_string()))?;
    let mut public =
        String::from("# The public keys of whoever may connect. Made by `memfleet nats keys`.\n");
    for identity in identities {
        let key = key_in(&folder.join(format!("{}.nk", identity.name)))?;
        // Writing into a string does not fail.
        let _ = writeln!(public, "{}: {}", variable(&identity.name), key.public_key());
    }
    Ok(public)
}

fn unreadable(path: &Path, problem: &str) -> TopologyError {
    TopologyError::Unreadable { path: path.display().to_string(), problem: problem.to_owned() }
}

fn key_in(file: &Path) -> Result<KeyPair, TopologyError> {
    let failed = |error: std::io::Error| unreadable(file, &error.to_string());
    if file.exists() {
        let seed = std::fs::read_to_string(file).map_err(failed)?;
        return match KeyPair::from_seed(seed.trim()) {
            Ok(key) if key.public_key().starts_with('U') => Ok(key),
            Ok(_) | Err(_) => Err(unreadable(file, "it holds no seed of a user's nkey")),
        };
    }
    let key = KeyPair::new_user();
    let seed = key.seed().map_err(|error| unreadable(file, &error.to_string()))?;
    let mut file_of_key =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
    writeln!(file_of_key, "{seed}").map_err(failed)?;
    Ok(key)
}
