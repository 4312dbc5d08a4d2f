//! The tables whose rows are sealed, and the leaf of the Merkle tree that each row becomes.

use uuid::Uuid;

use crate::digest::Digest;

/// The tables whose rows are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// `audit.audit_log`
    AuditLog,
    /// `audit.security_violations`
    Violations,
    /// `audit.data_access_log`
    DataAccess,
    /// `blackboard_events`: an event is an audit record itself.
    Events,
    /// `audit.subjects`: which user a token of the trail stands for (docs/adr/0046).
    Subjects,
}

impl Source {
    pub(crate) const ALL: [Self; 5] =
        [Self::Subjects, Self::AuditLog, Self::Violations, Self::DataAccess, Self::Events];

    /// The name of the table.
    pub fn table(self) -> &'static str {
        match self {
            Self::AuditLog => "audit.audit_log",
            Self::Violations => "audit.security_violations",
            Self::DataAccess => "audit.data_access_log",
            Self::Events => "blackboard_events",
            Self::Subjects => "audit.subjects",
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::AuditLog => 1,
            Self::Violations => 2,
            Self::DataAccess => 3,
            Self::Events => 4,
            Self::Subjects => 5,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.code() == code)
    }
}

/// A leaf of the Merkle tree of a seal: a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leaf {
    /// Its table.
    pub source: Source,
    /// The id of the row; of a subject, its token.
    pub id: Uuid,
    /// SHA-256 of its columns. The digest of an event is keyed with the digest key of its user, because it contains
    /// user data, and so is that of a subject: without the key, it does not reveal the user.
    pub digest: Digest,
}

/// The length of an encoded leaf, in bytes.
pub(crate) const LEAF_BYTES: usize = 49;

impl Leaf {
    /// Encodes it: the table (1 byte), the id (16) and the digest (32).
    pub fn to_bytes(&self) -> [u8; LEAF_BYTES] {
        let mut bytes = [0; LEAF_BYTES];
        bytes[0] = self.source.code();
        bytes[1..17].copy_from_slice(self.id.as_bytes());
        bytes[17..].copy_from_slice(&self.digest);
        bytes
    }

    /// Decodes a list of leaves. None if it is malformed.
    pub(crate) fn read_all(bytes: &[u8]) -> Option<Vec<Self>> {
        let chunks = bytes.chunks_exact(LEAF_BYTES);
        if !chunks.remainder().is_empty() {
            return None;
        }
        chunks
            .map(|chunk| {
                Some(Self {
                    source: Source::from_code(*chunk.first()?)?,
                    id: Uuid::from_slice(chunk.get(1..17)?).ok()?,
                    digest: chunk.get(17..)?.try_into().ok()?,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_round_trip() {
        let leaves: Vec<Leaf> = Source::ALL
            .into_iter()
            .enumerate()
            .map(|(number, source)| Leaf {
                source,
                id: Uuid::from_u128(number as u128),
                digest: [source.code(); 32],
            })
            .collect();
        let bytes: Vec<u8> = leaves.iter().flat_map(Leaf::to_bytes).collect();
        assert_eq!(Leaf::read_all(&bytes), Some(leaves));
        assert_eq!(Leaf::read_all(&bytes[1..]), None);
        assert_eq!(Leaf::read_all(&[9; LEAF_BYTES]), None);
    }
}
