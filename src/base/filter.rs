//! A tag filter as a client requested it, before any check.

use serde::Deserialize;

use super::image::{Broken, Durable, ImageReader, ImageWriter};
use super::limits::FILTER_DEPTH_MAX;

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

impl Durable for FilterNode {
    fn write(&self, out: &mut ImageWriter) {
        let Self { op, key, cmp, val, vals, nodes } = self;
        [op, key, cmp, val].into_iter().for_each(|text| out.field(text));
        out.field(vals);
        out.field(nodes);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        Self::read_within(from, FILTER_DEPTH_MAX)
    }
}

impl FilterNode {
    /// The depth is bounded while it is read: each level takes some of the stack.
    fn read_within(from: &mut ImageReader<'_>, levels: usize) -> Result<Self, Broken> {
        let levels = levels.checked_sub(1).ok_or(Broken::Value("a filter"))?;
        let mut text = || String::read(from);
        let (op, key, cmp, val) = (text()?, text()?, text()?, text()?);
        let vals = Vec::read(from)?;
        let nodes = (0..from.count()?).map(|_| Self::read_within(from, levels));
        let nodes = nodes.collect::<Result<_, _>>()?;
        Ok(Self { op, key, cmp, val, vals, nodes })
    }
}
