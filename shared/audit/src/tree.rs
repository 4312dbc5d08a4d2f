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

/// The audit path of a leaf in the tree of these leaf hashes: the siblings on the way to the root, from the leaf on (RFC 6962, section
/// 2.1.1). None if there is no such leaf.
pub fn path(leaves: &[Digest], index: usize) -> Option<Vec<Digest>> {
    let mut path = Vec::new();
    let (mut subtree, mut place) = (leaves, index);
    subtree.get(place)?;
    while subtree.len() > 1 {
        let (left, right) = subtree.split_at(split(subtree.len()));
        let sibling;
        (subtree, sibling, place) =
            if place < left.len() { (left, right, place) } else { (right, left, place - left.len()) };
        path.push(root(sibling.iter().copied()));
    }
    path.reverse();
    Some(path)
}

/// The root of a tree with so many leaves in which a leaf with this hash has this index and this path. None if no tree of this size has
/// such a path.
pub fn root_of_path(leaf: &Digest, index: usize, count: usize, path: &[Digest]) -> Option<Digest> {
    if index >= count {
        return None;
    }
    // From the root down: on which side the leaf lies at each level.
    let (mut sides, mut place, mut size) = (Vec::new(), index, count);
    while size > 1 {
        let left = split(size);
        let is_left = place < left;
        sides.push(is_left);
        (place, size) = if is_left { (place, left) } else { (place - left, size - left) };
    }
    if sides.len() != path.len() {
        return None;
    }
    let levels = sides.iter().rev().zip(path);
    Some(levels.fold(
        *leaf,
        |node, (is_left, sibling)| {
            if *is_left { node_hash(&node, sibling) } else { node_hash(sibling, &node) }
        },
    ))
}

/// Whether a leaf with this hash has this index in the tree of so many leaves with this root.
pub fn verify_path(leaf: &Digest, index: usize, count: usize, path: &[Digest], root: &Digest) -> bool {
    root_of_path(leaf, index, count, path).as_ref() == Some(root)
}

/// How many leaves of a tree with at least two of them are in its left subtree: the largest power of two below their number.
fn split(count: usize) -> usize {
    count.div_ceil(2).next_power_of_two()
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

    #[test]
    fn every_leaf_has_a_path_to_the_root_and_no_other() {
        for count in 1..=33_usize {
            let leaves: Vec<Digest> = (0..count).map(|number| leaf_hash(&number.to_be_bytes())).collect();
            let root = root(leaves.iter().copied());
            for (index, leaf) in leaves.iter().enumerate() {
                let path = path(&leaves, index).unwrap();
                assert!(verify_path(leaf, index, count, &path, &root), "{index} of {count}");
                for other in (0..count).filter(|other| *other != index) {
                    assert!(!verify_path(leaf, other, count, &path, &root), "{index} at {other} of {count}");
                    assert!(
                        !verify_path(&leaves[other], index, count, &path, &root),
                        "{other} at {index} of {count}"
                    );
                }
                assert!(
                    !verify_path(leaf, index, index, &path, &root),
                    "{index} of {count}: too small a tree"
                );
                assert!(!verify_path(leaf, index, count, &[path.clone(), vec![root]].concat(), &root));
                for place in 0..path.len() {
                    let mut changed = path.clone();
                    changed[place][0] ^= 1;
                    assert!(!verify_path(leaf, index, count, &changed, &root), "{index} of {count}: {place}");
                    changed.remove(place);
                    assert!(!verify_path(leaf, index, count, &changed, &root), "{index} of {count}: {place}");
                }
            }
            assert_eq!(path(&leaves, count), None);
        }
        assert_eq!(path(&[], 0), None);
    }

    #[test]
    fn a_tree_is_split_at_the_largest_power_of_two_below_its_size() {
        let by_definition =
            |count: usize| (0..).map(|power| 1 << power).take_while(|half| *half < count).last();
        for count in 2..=130 {
            assert_eq!(Some(split(count)), by_definition(count), "{count}");
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
