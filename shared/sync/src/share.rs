//! `knowledge_share`: nodes of the knowledge graph by reference.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// A node that a session knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knowledge {
    /// The id of the node, which the target will refer to.
    pub node: String,
    /// Whether its consensus is validated.
    pub validated: bool,
    /// Whether another node has taken its place.
    pub superseded: bool,
}

/// Why a node is not shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Withheld {
    /// Its consensus is not validated, or disputed.
    NotValidated,
    /// Another node has taken its place.
    Superseded,
}

/// What a `knowledge_share` does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Nodes that the target gets a reference to.
    pub references: Vec<String>,
    /// Nodes that it knew already.
    pub known: usize,
    /// Nodes that it gets no reference to.
    pub withheld: Vec<(String, Withheld)>,
    /// How many nodes are over the limit. The next sync goes on with them.
    pub left: usize,
}

/// Plans a `knowledge_share` of at most `limit` nodes. `known` are the nodes that the target refers to already.
pub fn share(nodes: &[Knowledge], known: &BTreeSet<String>, limit: usize) -> Share {
    let mut share = Share::default();
    let different: BTreeSet<&str> = nodes.iter().map(|node| node.node.as_str()).collect();
    let mut taken = BTreeSet::new();
    for node in nodes.iter().filter(|node| taken.insert(node.node.as_str())) {
        let id = || node.node.clone();
        if known.contains(&node.node) {
            share.known += 1;
        } else if node.superseded {
            share.withheld.push((id(), Withheld::Superseded));
        } else if !node.validated {
            share.withheld.push((id(), Withheld::NotValidated));
        } else if share.references.len() < limit {
            share.references.push(id());
        }
    }
    share.left = different.len() - share.references.len() - share.known - share.withheld.len();
    share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_validated_nodes_that_are_current_and_new_are_shared() {
        let node = |node: &str, validated, superseded| Knowledge { node: node.into(), validated, superseded };
        let nodes = [
            node("a", true, false),
            node("a", true, false),
            node("b", true, true),
            node("c", false, false),
            node("d", true, false),
            node("e", true, false),
        ];
        let shared = share(&nodes, &BTreeSet::from(["d".to_owned()]), 1);
        assert_eq!(shared.references, ["a"]);
        assert_eq!((shared.known, shared.left), (1, 1));
        let withheld = [("b".into(), Withheld::Superseded), ("c".into(), Withheld::NotValidated)];
        assert_eq!(shared.withheld, withheld);
    }
}
