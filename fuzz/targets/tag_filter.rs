//! Tag filters: accepted by the rules of the client protocol's section 22 and no others, and true of
//! the tags that a plain reading of its tables says.
//!
//! Input: a line with the filter as JSON, then the tags as a JSON object.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use roost::base::filter::FilterNode;
use roost::base::limits::{FILTER_DEPTH_MAX, FILTER_NODES_MAX};
use roost::base::tags::Tags;
use roost::hub::filter::{Filter, Filters};
use roost::proto::client::{Request, commands};

fn is_valid(node: &FilterNode, levels: usize) -> bool {
    let (key, val, vals) = (!node.key.is_empty(), !node.val.is_empty(), !node.vals.is_empty());
    let comparison = match node.cmp.as_str() {
        "eq" | "neq" | "sw" | "ew" | "ct" | "lt" | "lte" | "gt" | "gte" => key && val && !vals,
        "in" | "nin" => key && vals && !val,
        "ex" | "nex" => !val && !vals,
        _ => false,
    };
    let operation = match node.op.as_str() {
        "" => return levels > 0 && comparison,
        "and" | "or" => !node.nodes.is_empty(),
        "not" => node.nodes.len() == 1,
        _ => false,
    };
    operation && levels > 0 && node.nodes.iter().all(|node| is_valid(node, levels - 1))
}

/// Nodes that count: a comparison's children don't.
fn count(node: &FilterNode) -> usize {
    let children = if node.op.is_empty() { &[][..] } else { &node.nodes };
    1 + children.iter().map(count).sum::<usize>()
}

/// Whether a valid filter is true of the tags; `None` when it has a number that doesn't fit the type
/// used here.
fn holds(node: &FilterNode, tags: &BTreeMap<String, String>) -> Option<bool> {
    let mut children = node.nodes.iter().map(|node| holds(node, tags));
    match node.op.as_str() {
        "and" => return children.try_fold(true, |all, one| Some(all & one?)),
        "or" => return children.try_fold(false, |any, one| Some(any | one?)),
        "not" => return children.next()?.map(|one| !one),
        _ => {}
    }
    let tag = tags.get(&node.key);
    let is_in = || node.vals.contains(tag.unwrap_or(&String::new()));
    let text = |test: fn(&str, &str) -> bool| tag.is_some_and(|tag| test(tag, &node.val));
    let ordered = |test: fn(&f64, &f64) -> bool| {
        let Some(tag) = tag else { return Some(false) };
        if tag.len().max(node.val.len()) > 15 {
            return None;
        }
        let numbers = number(tag).zip(number(&node.val));
        Some(numbers.is_some_and(|(tag, val)| test(&tag, &val)))
    };
    Some(match node.cmp.as_str() {
        "eq" => tag == Some(&node.val),
        "neq" => tag != Some(&node.val),
        "in" => is_in(),
        "nin" => !is_in(),
        "ex" => tag.is_some(),
        "nex" => tag.is_none(),
        "sw" => text(|tag, val| tag.starts_with(val)),
        "ew" => text(|tag, val| tag.ends_with(val)),
        "ct" => text(|tag, val| tag.contains(val)),
        "lt" => ordered(f64::lt)?,
        "lte" => ordered(f64::le)?,
        "gt" => ordered(f64::gt)?,
        _ => ordered(f64::ge)?,
    })
}

/// A decimal number of so few digits that a float holds it.
fn number(text: &str) -> Option<f64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let ends = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.ends_with(|c: char| c.is_ascii_digit());
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    (ends && plain).then(|| text.parse().ok())?
}

/// The same filter, said differently.
fn reworded(node: &FilterNode) -> FilterNode {
    let mut node = node.clone();
    node.vals.extend(node.vals.clone());
    node.vals.reverse();
    node.nodes = node.nodes.iter().map(reworded).collect();
    node
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (filter, tags) = text.split_once('\n').unwrap_or((text, "{}"));
    let tags: BTreeMap<String, String> = serde_json::from_str(tags).unwrap_or_default();
    let line = format!(r#"{{"id":1,"subscribe":{{"channel":"c","tf":{filter}}}}}"#);
    let Some(Ok(command)) = commands(&line).next() else { return };
    let Request::Subscribe(request) = command.request else { return };
    let Some(node) = request.tf else { return };

    let compiled = Filter::new(&node);
    let valid = is_valid(&node, FILTER_DEPTH_MAX) && count(&node) <= FILTER_NODES_MAX;
    assert_eq!(compiled.is_ok(), valid);
    let Ok(compiled) = compiled else { return };
    let packed = Tags::pack(tags.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let matches = compiled.matches(Tags::packed(&packed));
    if let Some(expected) = holds(&node, &tags) {
        assert_eq!(matches, expected);
    }

    let mut filters = Filters::default();
    let same = Filter::new(&reworded(&node)).ok().and_then(|same| filters.intern(same));
    assert!(same.is_some() && filters.intern(compiled) == same);
    for id in same.into_iter().chain(same) {
        filters.release(id);
    }
    assert!(filters.is_empty());
});
