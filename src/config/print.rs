//! `config default`: every option that does something, with its default and what it is.

use serde_json::{Map, Value as Json};

use super::table::{NAMESPACE, OPTIONS, Opt};
use super::tree::{self, Form, Node};

/// Formats that the defaults can be printed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrintFormat {
    /// With documentation.
    Toml,
    /// Values only.
    Json,
    /// Values only.
    Yaml,
}

/// All options that do something, with their defaults: a file that changes nothing.
pub fn print_defaults(format: PrintFormat) -> String {
    match format {
        PrintFormat::Toml => toml(),
        PrintFormat::Json => serde_json::to_string_pretty(&json()).unwrap_or_default() + "\n",
        PrintFormat::Yaml => serde_saphyr::to_string(&json()).unwrap_or_default(),
    }
}

/// Built rows of `channel.without_namespace`, which has no name.
fn without_namespace() -> impl Iterator<Item = &'static Opt> {
    NAMESPACE.iter().filter(|row| row.is_built() && row.path != "name")
}

fn toml() -> String {
    let mut text = String::from(
        "# roost: all options and their defaults.\n\
         # A variable ROOST_HTTP_SERVER_PORT or a flag --http_server.port wins over this file.\n",
    );
    let mut section = "";
    for row in OPTIONS.iter().filter(|row| row.is_built()) {
        let (in_section, name) = row.path.rsplit_once('.').unwrap_or(("", row.path));
        if in_section != section {
            section = in_section;
            text += &format!("\n[{section}]\n");
        }
        text += &line("", name, row);
    }
    text += "\n# Channels whose names have no namespace.\n[channel.without_namespace]\n";
    for row in without_namespace() {
        text += &line("", row.path, row);
    }
    text += "\n# One such section for each namespace, with the options above and a name.\n\
             # [[channel.namespaces]]\n# name = \"news\"\n# allow_subscribe_for_client = true\n";
    text
}

fn line(before: &str, name: &str, row: &Opt) -> String {
    format!("# {}\n{before}{name} = {}\n", row.doc, row.default)
}

fn json() -> Json {
    let mut root = Map::new();
    for row in OPTIONS.iter().filter(|row| row.is_built()) {
        insert(&mut root, row.path, row);
    }
    for row in without_namespace() {
        insert(&mut root, &format!("channel.without_namespace.{}", row.path), row);
    }
    insert_at(&mut root, "channel.namespaces", Json::Array(Vec::new()));
    Json::Object(root)
}

fn insert(map: &mut Map<String, Json>, path: &str, row: &Opt) {
    let node = tree::parse("default.toml", &format!("value = {}", row.default));
    if let Ok(Node { form: Form::Map(mut entries), .. }) = node
        && let Some(entry) = entries.pop()
    {
        insert_at(map, path, plain(entry.value));
    }
}

fn insert_at(map: &mut Map<String, Json>, path: &str, value: Json) {
    match path.split_once('.') {
        None => {
            map.insert(path.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = map.entry(section).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(inner) = inner {
                insert_at(inner, rest, value);
            }
        }
    }
}

fn plain(node: Node) -> Json {
    match node.form {
        Form::Null | Form::Float(_) => Json::Null,
        Form::Bool(value) => value.into(),
        Form::Integer(value) => value.into(),
        Form::Text(text) => text.into(),
        Form::List(items) => items.into_iter().map(plain).collect(),
        Form::Map(entries) => {
            entries.into_iter().map(|entry| (entry.key, plain(entry.value))).collect()
        }
    }
}
