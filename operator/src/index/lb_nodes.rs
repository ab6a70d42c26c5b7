//! LB nodes: which are there, which live, and what they have programmed.
//!
//! Never asks an LB node: what it says stands in its LbNode, and that it lives, in its Lease.

/// On which LB nodes a table is in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Live LB nodes that have it.
    pub on: usize,
    /// Live LB nodes.
    pub of: usize,
    /// Live LB nodes that cannot program it, and why; sorted.
    pub failing: Vec<(String, String)>,
}
