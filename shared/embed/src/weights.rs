//! The model files, with pinned checksums.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::EmbedError;

/// The name of the model.
pub(crate) const MODEL: &str = "all-MiniLM-L6-v2";

/// A model file with its name, length and SHA-256. A file with another checksum is not used, wherever it came from.
struct Pinned {
    name: &'static str,
    bytes: u64,
    sha256: &'static str,
}

const CONFIG: Pinned = Pinned {
    name: "config.json",
    bytes: 612,
    sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
};
const TOKENIZER: Pinned = Pinned {
    name: "tokenizer.json",
    bytes: 466_247,
    sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
};
const WEIGHTS: Pinned = Pinned {
    name: "model.safetensors",
    bytes: 90_868_376,
    sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
};

/// The contents of the model files.
pub(crate) struct Files {
    pub(crate) config: Vec<u8>,
    pub(crate) tokenizer: Vec<u8>,
    pub(crate) weights: Vec<u8>,
}

impl Files {
    /// Reads the model files from a folder.
    pub(crate) fn read(folder: &Path) -> Result<Self, EmbedError> {
        Ok(Self {
            config: CONFIG.read(folder)?,
            tokenizer: TOKENIZER.read(folder)?,
            weights: WEIGHTS.read(folder)?,
        })
    }
}

impl Pinned {
    /// Reads the file once, so that the verified bytes are the ones that are used.
    fn read(&self, folder: &Path) -> Result<Vec<u8>, EmbedError> {
        let path = folder.join(self.name);
        let failed = |problem: String| {
            EmbedError::Misconfigured(format!(
                "{} {problem}. Run `make setup` in the memfleet folder to download {MODEL}, or correct embedder.weights",
                path.display()
            ))
        };
        let mut bytes = Vec::with_capacity(usize::try_from(self.bytes).unwrap_or_default());
        File::open(&path)
            .and_then(|file| file.take(self.bytes + 1).read_to_end(&mut bytes))
            .map_err(|error| failed(format!("cannot be read: {error}")))?;
        if HEXLOWER.encode(&Sha256::digest(&bytes)) != self.sha256 {
            return Err(failed(format!("is not the file of {MODEL}: its SHA-256 differs")));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_file_with_another_checksum_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let error = |folder: &Path| CONFIG.read(folder).unwrap_err().to_string();
        assert!(error(folder.path()).contains("cannot be read"));
        for content in [vec![b' '; 612], Vec::new(), vec![b'{'; 5_000]] {
            std::fs::write(folder.path().join("config.json"), content).unwrap();
            assert!(error(folder.path()).contains("its SHA-256 differs"));
        }
    }
}
