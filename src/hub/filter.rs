//! Tag filters: which publications a subscriber gets, by their tags (client protocol, 22).
//!
//! A filter is compiled once, when its client subscribes. Filters that mean the same to the letter
//! are one entry of [`Filters`], so that a publication is held against each of them once.

use std::cmp::Ordering;
use std::hash::BuildHasher;
use std::num::NonZeroU32;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use slab::Slab;

use crate::base::filter::FilterNode;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, Slots, kind};
use crate::base::limits::{
    FILTER_BYTES_MAX, FILTER_DEPTH_MAX, FILTER_NODES_MAX, FILTER_VALUES_MAX, FILTERS_MAX,
};
use crate::base::tags::Tags;

/// A filter that breaks a rule of section 22, or has too many nodes, levels, values or bytes. The client is
/// answered with error 107.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFilter;

/// A filter that keeps the rules. Shape: a tree of 40 bytes a node, and the texts it compares with.
///
/// Equal are those whose trees are, where the order and repetition of `vals` and the way in which a
/// number is written don't count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Filter(Node);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Node {
    All(Box<[Self]>),
    Any(Box<[Self]>),
    Not(Box<Self>),
    Compare { key: Box<str>, test: Test },
}

const _: () = assert!(size_of::<Node>() == 40);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Test {
    Equals(Box<str>),
    Differs(Box<str>),
    /// Sorted.
    In(Box<[Box<str>]>),
    /// Sorted.
    NotIn(Box<[Box<str>]>),
    Exists,
    Missing,
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    Contains(Box<str>),
    /// Against a number in its shortest form.
    Ordered(Order, Box<str>),
    /// Ordered against what is no number.
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Filter {
    /// Checks and compiles what a client sent. Fields that a node's `op` doesn't use (`nodes` of a
    /// comparison, all others of `and`, `or` and `not`) are not looked at.
    ///
    /// # Errors
    /// Every rule of section 22, [`FILTER_NODES_MAX`], [`FILTER_DEPTH_MAX`], [`FILTER_VALUES_MAX`] and
    /// [`FILTER_BYTES_MAX`]. The bounds are decided before anything is built.
    pub fn new(node: &FilterNode) -> Result<Self, BadFilter> {
        Room::FOR_ONE.take(node, FILTER_DEPTH_MAX)?;
        Node::new(node).map(Self)
    }

    /// Bytes that it holds, its own allocations included.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.0.heap_bytes()
    }

    /// Whether a publication with these tags goes to the subscriber.
    pub fn matches(&self, tags: Tags<'_>) -> bool {
        self.0.matches(tags)
    }
}

/// The rest of the budget of a filter.
struct Room {
    nodes: usize,
    values: usize,
    bytes: usize,
}

impl Room {
    const FOR_ONE: Self =
        Self { nodes: FILTER_NODES_MAX, values: FILTER_VALUES_MAX, bytes: FILTER_BYTES_MAX };

    /// Takes what a node and those below it need, so many levels at most. Without looking further than
    /// the bounds go.
    fn take(mut self, node: &FilterNode, levels: usize) -> Result<Self, BadFilter> {
        let levels = levels.checked_sub(1).ok_or(BadFilter)?;
        self.nodes = self.nodes.checked_sub(1).ok_or(BadFilter)?;
        if !node.op.is_empty() {
            return node.nodes.iter().try_fold(self, |room, child| room.take(child, levels));
        }
        self.values = self.values.checked_sub(node.vals.len()).ok_or(BadFilter)?;
        let texts = [&node.key, &node.val].into_iter().chain(&node.vals);
        let bytes: usize = texts.map(String::len).sum();
        self.bytes = self.bytes.checked_sub(bytes).ok_or(BadFilter)?;
        Ok(self)
    }
}

/// The overhead of a small allocation, about.
const ALLOCATION_BYTES: usize = 16;

impl Node {
    fn new(node: &FilterNode) -> Result<Self, BadFilter> {
        let children =
            || -> Result<Box<[Self]>, BadFilter> { node.nodes.iter().map(Self::new).collect() };
        match (node.op.as_str(), node.nodes.len()) {
            ("", _) => Self::comparison(node),
            ("and", 1..) => Ok(Self::All(children()?)),
            ("or", 1..) => Ok(Self::Any(children()?)),
            ("not", 1) => Self::new(&node.nodes[0]).map(Box::new).map(Self::Not),
            _ => Err(BadFilter),
        }
    }

    /// Bytes of what it allocated, and of what that allocated.
    fn heap_bytes(&self) -> usize {
        let text = |text: &str| text.len() + ALLOCATION_BYTES;
        match self {
            Self::All(nodes) | Self::Any(nodes) => {
                let below: usize = nodes.iter().map(Self::heap_bytes).sum();
                size_of_val(&**nodes) + ALLOCATION_BYTES + below
            }
            Self::Not(node) => size_of::<Self>() + ALLOCATION_BYTES + node.heap_bytes(),
            Self::Compare { key, test } => {
                text(key)
                    + match test {
                        Test::In(vals) | Test::NotIn(vals) => {
                            let texts: usize = vals.iter().map(|val| text(val)).sum();
                            size_of_val(&**vals) + ALLOCATION_BYTES + texts
                        }
                        Test::Equals(val)
                        | Test::Differs(val)
                        | Test::StartsWith(val)
                        | Test::EndsWith(val)
                        | Test::Contains(val)
                        | Test::Ordered(_, val) => text(val),
                        Test::Exists | Test::Missing | Test::Never => 0,
                    }
            }
        }
    }

    /// A node that compiles to this one.
    fn as_sent(&self) -> FilterNode {
        let combined = |op: &str, nodes: &[Self]| FilterNode {
            op: op.into(),
            nodes: nodes.iter().map(Self::as_sent).collect(),
            ..FilterNode::default()
        };
        let (key, test) = match self {
            Self::All(nodes) => return combined("and", nodes),
            Self::Any(nodes) => return combined("or", nodes),
            Self::Not(node) => return combined("not", std::slice::from_ref(node)),
            Self::Compare { key, test } => (key, test),
        };
        let (cmp, val, vals): (&str, &str, &[Box<str>]) = match test {
            Test::Equals(val) => ("eq", val, &[]),
            Test::Differs(val) => ("neq", val, &[]),
            Test::In(vals) => ("in", "", vals),
            Test::NotIn(vals) => ("nin", "", vals),
            Test::Exists => ("ex", "", &[]),
            Test::Missing => ("nex", "", &[]),
            Test::StartsWith(val) => ("sw", val, &[]),
            Test::EndsWith(val) => ("ew", val, &[]),
            Test::Contains(val) => ("ct", val, &[]),
            Test::Ordered(Order::Less, val) => ("lt", val, &[]),
            Test::Ordered(Order::LessOrEqual, val) => ("lte", val, &[]),
            Test::Ordered(Order::Greater, val) => ("gt", val, &[]),
            Test::Ordered(Order::GreaterOrEqual, val) => ("gte", val, &[]),
            Test::Never => ("lt", "no number", &[]),
        };
        FilterNode {
            key: key.to_string(),
            cmp: cmp.into(),
            val: val.into(),
            vals: vals.iter().map(|val| val.to_string()).collect(),
            ..FilterNode::default()
        }
    }

    fn comparison(node: &FilterNode) -> Result<Self, BadFilter> {
        let given = (!node.key.is_empty(), !node.val.is_empty(), !node.vals.is_empty());
        let used = match node.cmp.as_str() {
            "in" | "nin" => given == (true, false, true),
            // The key may be empty: so may a tag's name.
            "ex" | "nex" => matches!(given, (_, false, false)),
            _ => given == (true, true, false),
        };
        if !used {
            return Err(BadFilter);
        }
        let val = || Box::from(node.val.as_str());
        let vals = || {
            let mut vals: Vec<Box<str>> = node.vals.iter().map(|val| Box::from(&**val)).collect();
            vals.sort_unstable();
            vals.dedup();
            vals.into_boxed_slice()
        };
        let ordered = |order| match Number::parse(&node.val) {
            Some(number) => Test::Ordered(order, number.shortest()),
            None => Test::Never,
        };
        let test = match node.cmp.as_str() {
            "eq" => Test::Equals(val()),
            "neq" => Test::Differs(val()),
            "in" => Test::In(vals()),
            "nin" => Test::NotIn(vals()),
            "ex" => Test::Exists,
            "nex" => Test::Missing,
            "sw" => Test::StartsWith(val()),
            "ew" => Test::EndsWith(val()),
            "ct" => Test::Contains(val()),
            "lt" => ordered(Order::Less),
            "lte" => ordered(Order::LessOrEqual),
            "gt" => ordered(Order::Greater),
            "gte" => ordered(Order::GreaterOrEqual),
            _ => return Err(BadFilter),
        };
        Ok(Self::Compare { key: Box::from(node.key.as_str()), test })
    }

    fn matches(&self, tags: Tags<'_>) -> bool {
        match self {
            Self::All(nodes) => nodes.iter().all(|node| node.matches(tags)),
            Self::Any(nodes) => nodes.iter().any(|node| node.matches(tags)),
            Self::Not(node) => !node.matches(tags),
            Self::Compare { key, test } => test.holds(tags.get(key)),
        }
    }
}

impl Test {
    /// Whether it is true of a tag's value, `None` when there is no such tag.
    fn holds(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::Equals(val), _) => value == Some(&**val),
            (Self::Differs(val), _) => value != Some(&**val),
            // A missing tag counts as an empty one here, and nowhere else.
            (Self::In(vals), _) => is_in(vals, value.unwrap_or_default()),
            (Self::NotIn(vals), _) => !is_in(vals, value.unwrap_or_default()),
            (Self::Exists, _) => value.is_some(),
            (Self::Missing, _) => value.is_none(),
            (_, None) | (Self::Never, _) => false,
            (Self::StartsWith(val), Some(value)) => value.starts_with(&**val),
            (Self::EndsWith(val), Some(value)) => value.ends_with(&**val),
            (Self::Contains(val), Some(value)) => value.contains(&**val),
            (Self::Ordered(order, val), Some(value)) => {
                match (Number::parse(value), Number::parse(val)) {
                    (Some(value), Some(val)) => order.holds(value.cmp(&val)),
                    _ => false,
                }
            }
        }
    }
}

fn is_in(sorted: &[Box<str>], value: &str) -> bool {
    sorted.binary_search_by(|val| (**val).cmp(value)).is_ok()
}

impl Order {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

/// A decimal number as it is written: a sign (`+` or `-`) or none, digits, and behind a point more
/// digits or no point. There must be a digit on each side of a point. No exponents, blanks or
/// separators: such texts are no numbers. Any count of digits, and all of them count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number<'a> {
    /// Never set for zero.
    negative: bool,
    /// Without zeros in front: of two that differ in length the longer is greater.
    whole: &'a str,
    /// Without zeros behind: compares as text does.
    fraction: &'a str,
}

impl<'a> Number<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return None;
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let zero = whole.is_empty() && fraction.is_empty();
        Some(Self { negative: text.starts_with('-') && !zero, whole, fraction })
    }

    /// The one way to write it that all equal numbers share.
    fn shortest(&self) -> Box<str> {
        let sign = if self.negative { "-" } else { "" };
        let whole = if self.whole.is_empty() { "0" } else { self.whole };
        let point = if self.fraction.is_empty() { "" } else { "." };
        [sign, whole, point, self.fraction].concat().into_boxed_str()
    }
}

impl Ord for Number<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let size = |number: &Self| (number.whole.len(), number.whole, number.fraction);
        match (self.negative, other.negative) {
            (false, false) => size(self).cmp(&size(other)),
            (true, true) => size(other).cmp(&size(self)),
            (negative, _) => {
                if negative {
                    Ordering::Less
                } else {
                    Ordering::Greater
                }
            }
        }
    }
}

impl PartialOrd for Number<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Names a filter of [`Filters`]: 1 to [`FILTERS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FilterId(NonZeroU32);

impl FilterId {
    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The filter of a number; `None` for 0, and for what no filter can have.
    pub fn from_u32(number: u32) -> Option<Self> {
        NonZeroU32::new(number).filter(|number| number.get() <= FILTERS_MAX).map(Self)
    }

    fn place(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl Durable for FilterId {
    fn write(&self, out: &mut ImageWriter) {
        out.field(&self.get());
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        Self::from_u32(u32::read(from)?).ok_or(Broken::Value("the number of a filter"))
    }
}

/// In the form in which a client sends it, so that one that is read passes the same checks.
impl Durable for Filter {
    fn write(&self, out: &mut ImageWriter) {
        out.field(&self.0.as_sent());
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        Self::new(&FilterNode::read(from)?).map_err(|BadFilter| Broken::Value("a filter"))
    }
}

/// The filters in use on a shard, each once: subscribers hold its number. Default: empty.
///
/// A filter is freed when as many have released it as interned it, and its number goes to another.
#[derive(Default)]
pub struct Filters {
    entries: Slab<Entry>,
    table: HashTable<u32>,
    // Filters come from clients: with a seed of its own nobody can choose ones that collide.
    hasher: RandomState,
    /// The bytes of all entries.
    bytes: usize,
}

struct Entry {
    filter: Filter,
    /// Never 0.
    holders: u32,
}

impl Filters {
    /// Different filters in use.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes that they hold.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// No filter is in use.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of a filter for one more subscriber, who gives it back with
    /// [`release`](Self::release). `None` when there are [`FILTERS_MAX`] others.
    pub fn intern(&mut self, filter: Filter) -> Option<FilterId> {
        self.intern_below(FILTERS_MAX, filter)
    }

    fn intern_below(&mut self, filters_max: u32, filter: Filter) -> Option<FilterId> {
        let hash = self.hasher.hash_one(&filter);
        let same = |place: &u32| self.entries[*place as usize].filter == filter;
        if let Some(place) = self.table.find(hash, same).copied() {
            // A shard has far fewer than 2^32 subscribers.
            self.entries[place as usize].holders += 1;
            return FilterId::from_u32(place + 1);
        }
        if self.entries.len() >= filters_max as usize {
            return None;
        }
        self.bytes += filter.bytes();
        // A slab fills its gaps first: the place is below `filters_max`.
        let place = self.entries.insert(Entry { filter, holders: 1 }) as u32;
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.table
            .insert_unique(hash, place, |place| hasher.hash_one(&entries[*place as usize].filter));
        FilterId::from_u32(place + 1)
    }

    /// A subscriber gives its filter back. A filter that nobody holds is a broken invariant, and
    /// aborts, here as in [`get`](Self::get): another subscriber's would be taken for it.
    pub fn release(&mut self, id: FilterId) {
        let entry = &mut self.entries[id.place()];
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        let filter = self.entries.remove(id.place()).filter;
        self.bytes -= filter.bytes();
        let hash = self.hasher.hash_one(&filter);
        if let Ok(found) = self.table.find_entry(hash, |place| *place as usize == id.place()) {
            found.remove();
        }
        if self.entries.is_empty() {
            self.entries = Slab::new();
            self.table = HashTable::new();
        }
    }

    /// Which numbers are in use.
    pub fn slots(&self) -> Slots {
        Slots::of(self.entries.iter().map(|(place, _)| place))
    }

    /// Writes a record for each filter.
    pub fn write(&self, out: &mut ImageWriter) {
        for (place, entry) in &self.entries {
            out.record(kind::FILTER, |out| {
                out.field(&(place as u32));
                out.field(&entry.filter);
                out.field(&entry.holders);
            });
        }
    }

    /// Whether a number is in use; 0, which is none, counts.
    pub fn has(&self, number: u32) -> bool {
        FilterId::from_u32(number).is_none_or(|id| self.entries.contains(id.place()))
    }

    /// The filter of a number that is held.
    pub fn get(&self, id: FilterId) -> &Filter {
        &self.entries[id.place()].filter
    }
}

/// Filters that are read from an image.
#[derive(Default)]
pub struct FiltersReader {
    slots: Slots,
    entries: Vec<(usize, Entry)>,
}

impl FiltersReader {
    /// Filters with these numbers.
    pub fn new(slots: Slots) -> Self {
        Self { slots, entries: Vec::new() }
    }

    /// Reads the next record of these.
    ///
    /// # Errors
    /// It is none.
    pub fn filter(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let place = self.slots.take(u32::read(from)?)?;
        let filter = from.field("Filter.filter")?;
        let holders: u32 = from.field("Filter.holders")?;
        if holders == 0 {
            return Err(Broken::Value("a filter"));
        }
        self.entries.push((place, Entry { filter, holders }));
        Ok(())
    }

    /// All of them.
    ///
    /// # Errors
    /// One is missing, or there twice.
    pub fn end(self) -> Result<Filters, Broken> {
        self.slots.end()?;
        let entries: Slab<Entry> = self.entries.into_iter().collect();
        let mut filters = Filters { entries, ..Filters::default() };
        let Filters { entries, table, hasher, bytes } = &mut filters;
        for (place, entry) in entries.iter() {
            let hash = hasher.hash_one(&entry.filter);
            if table.find(hash, |at| entries[*at as usize].filter == entry.filter).is_some() {
                return Err(Broken::Value("a filter"));
            }
            let hash_at = |at: &u32| hasher.hash_one(&entries[*at as usize].filter);
            table.insert_unique(hash, place as u32, hash_at);
            *bytes += entry.filter.bytes();
        }
        Ok(filters)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::memory::requested_bytes;

    fn leaf(cmp: &str, key: &str, val: &str, vals: &[&str]) -> FilterNode {
        FilterNode {
            cmp: cmp.into(),
            key: key.into(),
            val: val.into(),
            vals: vals.iter().map(|val| (*val).into()).collect(),
            ..FilterNode::default()
        }
    }

    fn branch(op: &str, nodes: Vec<FilterNode>) -> FilterNode {
        FilterNode { op: op.into(), nodes, ..FilterNode::default() }
    }

    fn matches(node: &FilterNode, tags: &[(&str, &str)]) -> bool {
        let packed = Tags::pack(tags.iter().copied());
        Filter::new(node).unwrap().matches(Tags::packed(&packed))
    }

    #[test]
    fn comparisons_hold_as_the_table_says() {
        const MISSING: Option<&str> = None;
        let table: [(&str, &str, Option<&str>, bool); 44] = [
            ("eq", "us", Some("us"), true),
            ("eq", "us", Some("eu"), false),
            ("eq", "us", MISSING, false),
            ("neq", "us", Some("us"), false),
            ("neq", "us", Some("eu"), true),
            ("neq", "us", MISSING, true),
            ("sw", "ab", Some("abc"), true),
            ("sw", "bc", Some("abc"), false),
            ("sw", "ab", MISSING, false),
            ("ew", "bc", Some("abc"), true),
            ("ew", "ab", Some("abc"), false),
            ("ew", "bc", MISSING, false),
            ("ct", "b", Some("abc"), true),
            ("ct", "d", Some("abc"), false),
            ("ct", "b", MISSING, false),
            ("lt", "10", Some("9"), true),
            ("lt", "10", Some("10"), false),
            ("lt", "10", Some("11"), false),
            ("lt", "10", MISSING, false),
            ("lt", "10", Some("nine"), false),
            ("lt", "ten", Some("9"), false),
            ("lte", "10", Some("10.0"), true),
            ("lte", "10", Some("10.01"), false),
            ("lte", "10", MISSING, false),
            ("gt", "10", Some("9"), false),
            ("gt", "10", Some("10"), false),
            ("gt", "10", Some("11"), true),
            ("gt", "10", MISSING, false),
            ("gt", "ten", Some("11"), false),
            ("gte", "10", Some("+010"), true),
            ("gte", "10", Some("9.999999999999999999999999999"), false),
            ("gte", "10", MISSING, false),
            // As floating point numbers these would be equal.
            ("gt", "9007199254740992", Some("9007199254740993"), true),
            ("lte", "0.1", Some("0.10000000000000000000001"), false),
            ("lt", "-1", Some("-1.5"), true),
            ("lt", "1", Some("-2"), true),
            ("gt", "-2", Some("1"), true),
            ("gte", "-0.0", Some("0"), true),
            ("lte", "-0", Some("0"), true),
            // No plain decimal numbers.
            ("gt", "1", Some("1e3"), false),
            ("gt", "1", Some("2."), false),
            ("lt", "1", Some(".5"), false),
            ("lt", "1", Some(" 0"), false),
            ("lt", "1", Some("-"), false),
        ];
        for (cmp, val, value, expected) in table {
            let tags: Vec<_> = value.iter().map(|value| ("k", *value)).collect();
            let found = matches(&leaf(cmp, "k", val, &[]), &tags);
            assert_eq!(found, expected, "{cmp} {val:?} of {value:?}");
        }
        let table: [(&str, &[&str], Option<&str>, bool); 16] = [
            ("in", &["us", "eu"], Some("eu"), true),
            ("in", &["us", "eu"], Some("us"), true),
            ("in", &["us", "eu"], Some("asia"), false),
            ("in", &["us", "eu"], Some(""), false),
            ("in", &["us", "eu"], MISSING, false),
            ("in", &["us", ""], MISSING, true),
            ("nin", &["us", "eu"], Some("eu"), false),
            ("nin", &["us", "eu"], Some("asia"), true),
            ("nin", &["us", "eu"], MISSING, true),
            ("nin", &["us", ""], MISSING, false),
            ("nin", &["us", ""], Some(""), false),
            ("ex", &[], Some("1"), true),
            ("ex", &[], Some(""), true),
            ("ex", &[], MISSING, false),
            ("nex", &[], Some(""), false),
            ("nex", &[], MISSING, true),
        ];
        for (cmp, vals, value, expected) in table {
            let tags: Vec<_> = value.iter().map(|value| ("k", *value)).collect();
            let found = matches(&leaf(cmp, "k", "", vals), &tags);
            assert_eq!(found, expected, "{cmp} {vals:?} of {value:?}");
        }
    }

    #[test]
    fn operators_combine() {
        let [yes, no] = ["ex", "nex"].map(|cmp| leaf(cmp, "k", "", &[]));
        let table = [
            ("and", vec![&yes], true),
            ("and", vec![&yes, &no], false),
            ("and", vec![&yes, &yes], true),
            ("or", vec![&no], false),
            ("or", vec![&no, &yes], true),
            ("or", vec![&no, &no], false),
            ("not", vec![&no], true),
            ("not", vec![&yes], false),
        ];
        for (op, nodes, expected) in table {
            let node = branch(op, nodes.into_iter().cloned().collect());
            assert_eq!(matches(&node, &[("k", "")]), expected, "{node:?}");
        }
    }

    #[test]
    fn filters_that_break_a_rule_are_refused() {
        let fine = || leaf("eq", "k", "v", &[]);
        let mut bad = vec![
            leaf("", "k", "v", &[]),
            leaf("EQ", "k", "v", &[]),
            leaf("", "", "", &[]),
            branch("and", vec![]),
            branch("or", vec![]),
            branch("not", vec![]),
            branch("not", vec![fine(), fine()]),
            branch("xor", vec![fine()]),
            branch("and", vec![fine(), leaf("eq", "k", "", &[])]),
            branch("not", vec![branch("or", vec![])]),
        ];
        for cmp in ["eq", "neq", "sw", "ew", "ct", "lt", "lte", "gt", "gte"] {
            bad.extend([
                leaf(cmp, "", "v", &[]),
                leaf(cmp, "k", "", &[]),
                leaf(cmp, "k", "", &["v"]),
                leaf(cmp, "k", "v", &["v"]),
            ]);
            assert!(Filter::new(&leaf(cmp, "k", "v", &[])).is_ok(), "{cmp}");
        }
        for cmp in ["in", "nin"] {
            bad.extend([
                leaf(cmp, "", "", &["v"]),
                leaf(cmp, "k", "", &[]),
                leaf(cmp, "k", "v", &[]),
                leaf(cmp, "k", "v", &["v"]),
            ]);
            assert!(Filter::new(&leaf(cmp, "k", "", &["v"])).is_ok(), "{cmp}");
        }
        for cmp in ["ex", "nex"] {
            bad.extend([leaf(cmp, "k", "v", &[]), leaf(cmp, "k", "", &["v"])]);
            assert!(Filter::new(&leaf(cmp, "", "", &[])).is_ok(), "{cmp}");
        }
        for node in bad {
            assert_eq!(Filter::new(&node), Err(BadFilter), "{node:?}");
        }
    }

    #[test]
    fn nodes_and_levels_have_a_bound() {
        let nodes = |count| branch("or", vec![leaf("ex", "k", "", &[]); count - 1]);
        assert!(Filter::new(&nodes(FILTER_NODES_MAX)).is_ok());
        assert_eq!(Filter::new(&nodes(FILTER_NODES_MAX + 1)), Err(BadFilter));
        let levels =
            |count| (1..count).fold(leaf("ex", "k", "", &[]), |node, _| branch("not", vec![node]));
        assert!(Filter::new(&levels(FILTER_DEPTH_MAX)).is_ok());
        assert_eq!(Filter::new(&levels(FILTER_DEPTH_MAX + 1)), Err(BadFilter));
    }

    #[test]
    fn values_and_bytes_have_a_bound() {
        let values = |count: usize| {
            let vals: Vec<String> = (0..count).map(|n| n.to_string()).collect();
            leaf("in", "k", "", &vals.iter().map(String::as_str).collect::<Vec<_>>())
        };
        assert!(Filter::new(&values(FILTER_VALUES_MAX)).is_ok());
        assert_eq!(Filter::new(&values(FILTER_VALUES_MAX + 1)), Err(BadFilter));
        // The values of all nodes together.
        let half = || values(FILTER_VALUES_MAX / 2);
        assert!(Filter::new(&branch("or", vec![half(), half()])).is_ok());
        assert_eq!(Filter::new(&branch("or", vec![half(), half(), values(1)])), Err(BadFilter));
        let bytes = |count: usize| leaf("eq", "k", &"v".repeat(count - 1), &[]);
        assert!(Filter::new(&bytes(FILTER_BYTES_MAX)).is_ok());
        assert_eq!(Filter::new(&bytes(FILTER_BYTES_MAX + 1)), Err(BadFilter));
        let key = leaf("ex", &"k".repeat(FILTER_BYTES_MAX + 1), "", &[]);
        assert_eq!(Filter::new(&key), Err(BadFilter));
        let half = || bytes(FILTER_BYTES_MAX / 2);
        assert_eq!(
            Filter::new(&branch("not", vec![branch("and", vec![half(), half(), half()])])),
            Err(BadFilter)
        );
    }

    #[test]
    fn filters_too_large_are_refused_before_they_are_built() {
        let many: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
        let many = leaf("in", "k", "", &many.iter().map(String::as_str).collect::<Vec<_>>());
        for node in [branch("or", vec![leaf("ex", "k", "", &[]); 100_000]), many] {
            let before = requested_bytes();
            let bad = Filter::new(&node);
            assert_eq!((bad, requested_bytes() - before), (Err(BadFilter), 0));
        }
    }

    proptest! {
        #[test]
        fn a_filter_counts_its_bytes(node in tree()) {
            let before = requested_bytes();
            let Ok(filter) = Filter::new(&node) else { return Ok(()) };
            let held = size_of::<Filter>() + usize::try_from(requested_bytes() - before).unwrap();
            prop_assert!(filter.bytes() >= held, "{} of {}", filter.bytes(), held);
            let mut filters = Filters::default();
            let bytes = filter.bytes();
            let ids = [filter.clone(), filter].map(|filter| filters.intern(filter).unwrap());
            prop_assert_eq!(filters.bytes(), bytes);
            filters.release(ids[0]);
            filters.release(ids[1]);
            prop_assert_eq!(filters.bytes(), 0);
        }
    }

    #[test]
    fn equal_filters_are_one() {
        let same = [
            (leaf("in", "k", "", &["a", "b", "a"]), leaf("in", "k", "", &["b", "a"])),
            (leaf("lt", "k", "1", &[]), leaf("lt", "k", "+01.0", &[])),
            (leaf("lt", "k", "-0.0", &[]), leaf("lt", "k", "0", &[])),
        ];
        for (a, b) in same {
            assert_eq!(Filter::new(&a), Filter::new(&b));
        }
        let a = leaf("lt", "k", "1", &[]);
        for b in [leaf("lt", "k", "10", &[]), leaf("lt", "k", "-1", &[]), leaf("gt", "k", "1", &[])]
        {
            assert_ne!(Filter::new(&a), Filter::new(&b));
        }
    }

    #[test]
    fn numbers_of_filters_leave_one_for_no_filter() {
        for number in [0, FILTERS_MAX + 1, u32::MAX] {
            assert_eq!(FilterId::from_u32(number), None);
        }
        for number in [1, FILTERS_MAX] {
            assert_eq!(FilterId::from_u32(number).map(FilterId::get), Some(number));
        }
        let filter = |val: &str| Filter::new(&leaf("eq", "k", val, &[])).unwrap();
        let mut filters = Filters::default();
        let [a, b] = ["a", "b"].map(|val| filters.intern_below(2, filter(val)).unwrap());
        assert_eq!(filters.intern_below(2, filter("c")), None);
        assert_eq!(filters.intern_below(2, filter("b")), Some(b));
        filters.release(a);
        assert_eq!(filters.intern_below(2, filter("c")), Some(a));
    }

    /// A number of the few digits that the tests use, in millionths.
    fn millionths(text: &str) -> Option<i128> {
        let (sign, digits) = match text.as_bytes().first()? {
            b'-' => (-1, &text[1..]),
            b'+' => (1, &text[1..]),
            _ => (1, text),
        };
        let (whole, fraction) = match digits.find('.') {
            Some(at) => (&digits[..at], &digits[at + 1..]),
            None => (digits, "0"),
        };
        if whole.is_empty() || fraction.is_empty() || digits.contains(['+', '-']) {
            return None;
        }
        let whole: i128 = whole.parse().ok()?;
        let fraction: u32 = format!("{fraction:0<6}").parse().ok()?;
        Some(sign * (whole * 1_000_000 + i128::from(fraction)))
    }

    /// The verdict of a filter, straight from the tables; `None` if it breaks a rule.
    fn naive(node: &FilterNode, tags: &BTreeMap<String, String>) -> Option<bool> {
        let nodes: Vec<Option<bool>> = node.nodes.iter().map(|node| naive(node, tags)).collect();
        let verdicts = || nodes.iter().copied().collect::<Option<Vec<bool>>>();
        match node.op.as_str() {
            "and" if !nodes.is_empty() => return Some(!verdicts()?.contains(&false)),
            "or" if !nodes.is_empty() => return Some(verdicts()?.contains(&true)),
            "not" if nodes.len() == 1 => return Some(!verdicts()?[0]),
            "" => {}
            _ => return None,
        }
        let (val, vals, tag) = (&node.val, &node.vals, tags.get(&node.key));
        match node.cmp.as_str() {
            "ex" | "nex" if !val.is_empty() || !vals.is_empty() => return None,
            "ex" => return Some(tag.is_some()),
            "nex" => return Some(tag.is_none()),
            _ if node.key.is_empty() => return None,
            "in" | "nin" => {
                if vals.is_empty() || !val.is_empty() {
                    return None;
                }
                let found = vals.contains(&tag.cloned().unwrap_or_default());
                return Some(found == (node.cmp == "in"));
            }
            _ if val.is_empty() || !vals.is_empty() => return None,
            _ => {}
        }
        let numbers = tag.and_then(|tag| Some((millionths(tag)?, millionths(val)?)));
        Some(match node.cmp.as_str() {
            "eq" => tag == Some(val),
            "neq" => tag != Some(val),
            "sw" => tag.is_some_and(|tag| tag.find(val.as_str()) == Some(0)),
            "ew" => {
                let end = |tag: &String| tag.len().checked_sub(val.len());
                tag.is_some_and(|tag| end(tag).is_some_and(|at| tag[at..] == **val))
            }
            "ct" => tag.is_some_and(|tag| tag.find(val.as_str()).is_some()),
            "lt" => numbers.is_some_and(|(tag, val)| tag < val),
            "lte" => numbers.is_some_and(|(tag, val)| tag <= val),
            "gt" => numbers.is_some_and(|(tag, val)| tag > val),
            "gte" => numbers.is_some_and(|(tag, val)| tag >= val),
            _ => return None,
        })
    }

    fn value() -> impl Strategy<Value = String> {
        prop_oneof!["[ab]{0,3}", "[+-]?0{0,2}[0-9]{1,3}(\\.[0-9]{1,4})?0{0,2}", "[-+.e0-9]{1,4}",]
    }

    fn comparison() -> impl Strategy<Value = FilterNode> {
        // Mostly with the fields that are wanted, so that whole trees keep the rules.
        let with_val = (
            prop_oneof!["eq", "neq", "sw", "ew", "ct", "lt", "lte", "gt", "gte"],
            "[kl]",
            value(),
            Just(Vec::new()),
        );
        let with_vals = (
            prop_oneof!["in", "nin"],
            "[kl]",
            Just(String::new()),
            proptest::collection::vec(value(), 0..4),
        );
        let with_none = (prop_oneof!["ex", "nex"], "[kl]?", Just(String::new()), Just(Vec::new()));
        let with_any = (
            prop_oneof!["eq", "in", "ex", "lt", "neq", "", "zz"],
            "[kl]?",
            value(),
            proptest::collection::vec(value(), 0..2),
        );
        prop_oneof![20 => with_val, 10 => with_vals, 5 => with_none, 1 => with_any].prop_map(
            |(cmp, key, val, vals)| FilterNode { cmp, key, val, vals, ..FilterNode::default() },
        )
    }

    fn tree() -> impl Strategy<Value = FilterNode> {
        comparison().prop_recursive(4, 24, 4, |node| {
            let op = prop_oneof![8 => "and", 8 => "or", 8 => "not", 1 => "nor"];
            (op, proptest::collection::vec(node, 0..4)).prop_map(|(op, mut nodes)| {
                if op == "not" && nodes.len() > 2 {
                    nodes.truncate(1);
                }
                branch(&op, nodes)
            })
        })
    }

    proptest! {
        #[test]
        fn a_filter_agrees_with_the_tables(
            node in tree(),
            tags in proptest::collection::vec(("[kl]?", value()), 0..4),
        ) {
            let packed = Tags::pack(tags.iter().map(|(name, value)| (&**name, &**value)));
            let compiled = Filter::new(&node).ok();
            let found = compiled.map(|filter| filter.matches(Tags::packed(&packed)));
            prop_assert_eq!(found, naive(&node, &tags.into_iter().collect()));
        }

        #[test]
        fn numbers_compare_as_their_values_do(a in value(), b in value()) {
            let (x, y) = (Number::parse(&a), Number::parse(&b));
            prop_assert_eq!(x.is_some(), millionths(&a).is_some());
            if let (Some(x), Some(y)) = (x, y) {
                prop_assert_eq!(x.cmp(&y), millionths(&a).cmp(&millionths(&b)));
                let (short_x, short_y) = (x.shortest(), y.shortest());
                prop_assert_eq!(Number::parse(&short_x), Some(x));
                prop_assert_eq!(x == y, short_x == short_y);
            }
        }

        // Against a plain list of who holds what.
        #[test]
        fn filters_live_as_long_as_somebody_holds_them(
            ops in proptest::collection::vec((any::<bool>(), 0..6u8, any::<usize>()), 1..200),
        ) {
            let filter = |n: u8| Filter::new(&leaf("eq", "k", &n.to_string(), &[])).unwrap();
            let mut filters = Filters::default();
            let mut held: Vec<(u8, FilterId)> = Vec::new();
            for (add, n, pick) in ops {
                if add || held.is_empty() {
                    let id = filters.intern(filter(n)).unwrap();
                    held.push((n, id));
                } else {
                    let (_, id) = held.swap_remove(pick % held.len());
                    filters.release(id);
                }
                let mut ids = BTreeMap::new();
                for (n, id) in &held {
                    prop_assert_eq!(filters.get(*id), &filter(*n));
                    prop_assert_eq!(*ids.entry(n).or_insert(id), id);
                }
                prop_assert_eq!(filters.len(), ids.len());
                prop_assert_eq!(filters.is_empty(), held.is_empty());
            }
        }
    }
}
