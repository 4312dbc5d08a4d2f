//! Merkle trees as in RFC 6962, section 2.1.

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// The hash of a leaf: SHA-256 of a zero byte and the content. The zero byte distinguishes leaves from nodes.
pub fn leaf_hash(content: &[u8]) -> Digest {
    Sha256::new().chain_update([0]).chain_update(content).finalize().into()
}

fn node_hash(left: &Digest, right: &Digest) -> Digest {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The root of leaf hashes; of an empty list, the hash of the empty string.
pub fn root(leaves: impl IntoIterator<Item = Digest>) -> Digest {
    // The roots of complete subtrees, largest first: one for each one bit of the number of leaves so far.
    let mut subtrees: Vec<Digest> = Vec::new();
    for (count, leaf) in leaves.into_iter().enumerate() {
        let mut node = leaf;
        for _ in 0..count.trailing_ones() {
            if let Some(left) = subtrees.pop() {
                node = node_hash(&left, &node);
            }
        }
        subtrees.push(node);
    }
    let last = subtrees.pop();
    last.map_or_else(
        || Sha256::digest([]).into(),
        |last| subtrees.iter().rev().fold(last, |right, left| node_hash(left, &right)),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// The tree as the RFC defines it: split at the largest power of two below the count.
    fn by_definition(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => *leaf,
            _ => {
                let half = leaves.len().next_power_of_two() / 2;
                node_hash(&by_definition(&leaves[..half]), &by_definition(&leaves[half..]))
            }
        }
    }

    #[test]
    fn the_root_matches_the_definition() {
        let leaves: Vec<Digest> = (0..70_u8).map(|number| leaf_hash(&[number])).collect();
        for count in 0..leaves.len() {
            assert_eq!(root(leaves[..count].iter().copied()), by_definition(&leaves[..count]), "{count}");
        }
    }

    /// Vectors of the reference implementation of RFC 6962 (certificate-transparency, `merkle_tree_test`).
    #[test]
    fn known_roots() {
        let hex = |digest: Digest| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let inputs: [&[u8]; 8] = [
            &[],
            &[0],
            &[0x10],
            &[0x20, 0x21],
            &[0x30, 0x31],
            &[0x40, 0x41, 0x42, 0x43],
            &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
            &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
        ];
        let of = |count: usize| hex(root(inputs[..count].iter().map(|input| leaf_hash(input))));
        assert_eq!(of(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(of(1), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(of(2), "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125");
        assert_eq!(of(8), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }
}
