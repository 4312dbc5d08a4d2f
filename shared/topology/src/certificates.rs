//! The certificates with which the servers of a private deployment encrypt their connections.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::{TopologyError, invalid, unreadable};

/// How long the certificate of the CA is valid.
const AUTHORITY_LIFE: Duration = Duration::days(3_650);
/// How far the clock of a client may be behind.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// Creates a certificate for the servers with these names or addresses, valid for `life`: `server.pem` and its key
/// `server.key`, which replace earlier ones. The CA that signs it is `ca.pem` with its key `ca.key`; both are created if
/// they are missing and are otherwise kept, so that clients and other servers accept the new certificate. The servers
/// also show the certificate to each other as clients. Only the owner can read the keys.
///
/// # Errors
/// [`TopologyError::Invalid`] for a host that can be in no certificate or a CA key that is none,
/// [`TopologyError::Unreadable`] if a file cannot be read or written or only one half of the CA exists.
pub fn make_certificates(
    folder: &Path,
    hosts: &[String],
    life: std::time::Duration,
) -> Result<(), TopologyError> {
    std::fs::create_dir_all(folder).map_err(|error| unreadable(folder, &error.to_string()))?;
    let issuer = authority(folder)?;
    let mut server = parameters(hosts, "memfleet server", life.try_into().unwrap_or(AUTHORITY_LIFE))?;
    server.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    server.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(|error| failed(&error))?;
    let signed = server.signed_by(&key, &issuer).map_err(|error| failed(&error))?;
    write(&folder.join("server.key"), &key.serialize_pem(), 0o600)?;
    write(&folder.join("server.pem"), &signed.pem(), 0o644)
}

/// The CA of the folder, or a new one.
fn authority(folder: &Path) -> Result<Issuer<'static, KeyPair>, TopologyError> {
    let (key_file, certificate_file) = (folder.join("ca.key"), folder.join("ca.pem"));
    let mut authority = parameters(&[], "memfleet CA", AUTHORITY_LIFE)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // What a certificate says of its issuer, the name and the key, is the same as in `ca.pem`.
    match (key_file.exists(), certificate_file.exists()) {
        (true, true) => {
            let text = std::fs::read_to_string(&key_file);
            let text = text.map_err(|error| unreadable(&key_file, &error.to_string()))?;
            let key = KeyPair::from_pem(&text).map_err(|_| {
                invalid(&key_file.display().to_string(), "not a private key in the form PEM".to_owned())
            })?;
            Ok(Issuer::new(authority, key))
        }
        (false, false) => {
            let key = KeyPair::generate().map_err(|error| failed(&error))?;
            let certificate = authority.self_signed(&key).map_err(|error| failed(&error))?;
            write(&key_file, &key.serialize_pem(), 0o600)?;
            write(&certificate_file, &certificate.pem(), 0o644)?;
            Ok(Issuer::new(authority, key))
        }
        (true, false) => Err(unreadable(&certificate_file, HALF)),
        (false, true) => Err(unreadable(&key_file, HALF)),
    }
}

const HALF: &str = "missing, while the other half of the CA is there; restore it, or remove both files and replace the CA everywhere";

fn parameters(hosts: &[String], name: &str, life: Duration) -> Result<CertificateParams, TopologyError> {
    let mut parameters = CertificateParams::new(hosts.to_vec())
        .map_err(|error| invalid(&hosts.join(", "), format!("not names or addresses of hosts: {error}")))?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    (parameters.not_before, parameters.not_after) = (now - CLOCK_SKEW, now + life);
    Ok(parameters)
}

fn failed(error: &rcgen::Error) -> TopologyError {
    invalid("certificate", error.to_string())
}

/// Replaces a file in one step, so that a server that starts meanwhile reads the old one or the new one.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), TopologyError> {
    let new = path.with_extension("new");
    let written = || {
        let _ = std::fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    written().map_err(|error| unreadable(path, &error.to_string()))
}
