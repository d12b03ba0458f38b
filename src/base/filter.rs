//! A tag filter as a client requested it, before any check.

use serde::Deserialize;

/// One node of the tree (client protocol, 9.2 FilterNode and section 22). Absent fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct FilterNode {
    /// `""` compares, `and`, `or` and `not` combine.
    pub op: String,
    /// Name of the tag.
    pub key: String,
    /// How it is compared.
    pub cmp: String,
    /// With what.
    pub val: String,
    /// With which of these.
    pub vals: Vec<String>,
    /// The combined filters.
    pub nodes: Vec<Self>,
}
