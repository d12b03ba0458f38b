//! Software of clients: the names and versions that they give in `connect`, and how many of each are connected.
//!
//! The table is the node's and grows by each new pair until it is full: clients can write any text there. What has
//! no place counts as "other". A session has the number of its pair in one byte.

use std::sync::OnceLock;

use compact_str::CompactString;

use super::counters::Gauge;

/// Pairs of name and version that are told apart.
const SOFTWARE_PAIRS_MAX: usize = 62;

/// Bytes of a name or a version at most. Longer ones count as other.
const TEXT_BYTES_MAX: usize = 48;

/// The number of a pair of name and version.
///
/// Shape: 1 byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftwareId(u8);

impl SoftwareId {
    /// Neither name nor version was given.
    pub const UNNAMED: Self = Self(0);
    const OTHER: Self = Self(1);
}

/// A name and a version.
#[derive(Debug, PartialEq, Eq)]
struct Pair {
    name: CompactString,
    version: CompactString,
}

/// See the module.
#[derive(Debug)]
pub struct SoftwareTable {
    /// Filled from the beginning.
    pairs: [OnceLock<Pair>; SOFTWARE_PAIRS_MAX],
}

impl Default for SoftwareTable {
    fn default() -> Self {
        Self { pairs: [const { OnceLock::new() }; SOFTWARE_PAIRS_MAX] }
    }
}

impl SoftwareTable {
    /// The number of a name and a version, which are a client's words. Allocates and synchronizes only for a pair
    /// that is new.
    pub fn id(&self, name: &str, version: &str) -> SoftwareId {
        if name.is_empty() && version.is_empty() {
            return SoftwareId::UNNAMED;
        }
        if !is_plain(name) || !is_plain(version) {
            return SoftwareId::OTHER;
        }
        for (at, place) in (2u8..).zip(&self.pairs) {
            // Another shard may take the place between the look and the write: the pair is compared afterwards.
            let pair = place.get_or_init(|| Pair { name: name.into(), version: version.into() });
            if pair.name == name && pair.version == version {
                return SoftwareId(at);
            }
        }
        SoftwareId::OTHER
    }

    /// The name and version of a number.
    pub fn name(&self, id: SoftwareId) -> (&str, &str) {
        match usize::from(id.0) {
            0 => ("", ""),
            1 => ("other", ""),
            at => match self.pairs.get(at - 2).and_then(OnceLock::get) {
                Some(pair) => (&pair.name, &pair.version),
                None => ("other", ""),
            },
        }
    }

    /// The numbers in use.
    pub fn ids(&self) -> impl Iterator<Item = SoftwareId> {
        let pairs = self.pairs.iter().take_while(|pair| pair.get().is_some()).count() as u8;
        (0..pairs + 2).map(SoftwareId)
    }
}

/// Whether a text may be a label: short, and letters, digits and a few signs, as in names of packages.
fn is_plain(text: &str) -> bool {
    let is_letter = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b' ' | b'-' | b'_' | b'.' | b'+' | b'/' | b'@')
    };
    text.len() <= TEXT_BYTES_MAX && text.bytes().all(is_letter)
}

/// Connected clients of a shard, by the number of their software.
///
/// Shape: 512 bytes.
#[derive(Debug)]
pub struct SoftwareClients([Gauge; SOFTWARE_PAIRS_MAX + 2]);

impl Default for SoftwareClients {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Gauge::default()))
    }
}

impl SoftwareClients {
    /// Clients of this name and version.
    pub fn of(&self, id: SoftwareId) -> &Gauge {
        &self.0[usize::from(id.0).min(SOFTWARE_PAIRS_MAX + 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_one_number_and_what_is_no_label_none() {
        let table = SoftwareTable::default();
        let js = table.id("js", "5.5.2");
        assert_eq!(table.id("js", "5.5.2"), js);
        assert_ne!(table.id("js", "5.5.3"), js);
        assert_eq!(table.name(js), ("js", "5.5.2"));
        assert_eq!(table.name(table.id("", "")), ("", ""));
        for odd in ["a\nb", "a\"b", &"x".repeat(TEXT_BYTES_MAX + 1)] {
            assert_eq!(table.name(table.id(odd, "")), ("other", ""));
        }
        assert_eq!(table.ids().count(), 4);
    }

    #[test]
    fn a_full_table_counts_the_rest_as_other() {
        let table = SoftwareTable::default();
        for version in 0..2 * SOFTWARE_PAIRS_MAX {
            table.id("js", &version.to_string());
        }
        assert_eq!(table.ids().count(), SOFTWARE_PAIRS_MAX + 2);
        assert_eq!(table.id("js", &SOFTWARE_PAIRS_MAX.to_string()), SoftwareId::OTHER);
        assert_eq!(table.name(table.id("js", "0")), ("js", "0"));
        let clients = SoftwareClients::default();
        table.ids().for_each(|id| clients.of(id).add(1));
        assert!(table.ids().all(|id| clients.of(id).get() == 1));
    }
}
