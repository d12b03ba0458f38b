//! `config default`: every option that does something, with its default and what it is.

use serde_json::{Map, Value as Json};

use super::file_value::{FileValue, Form};
use super::table::{OPTIONS, Opt, Place, places};
use super::tree;

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

fn toml() -> String {
    let mut text = String::from(
        "# roost: all options and their defaults.\n\
         # A variable ROOST_HTTP_SERVER_PORT or a flag --http_server.port wins over this file.\n",
    );
    put_toml(&mut text, "", "", OPTIONS);
    for Place { path, about, like, rows, is_list } in places() {
        text += &format!("\n# {about}");
        match (is_list, *like) {
            (true, like) => {
                text += &format!(" Options as in {like}.\n# [[{path}]]\n# name = \"some\"\n")
            }
            (false, "") => put_toml(&mut text, path, "", rows),
            (false, like) => text += &format!(" Options as in {like}.\n[{path}]\n"),
        }
    }
    text
}

/// Rows of one table, which stands at `path`.
fn put_toml(text: &mut String, path: &str, before: &str, rows: &[Opt]) {
    let mut section = None;
    for row in rows.iter().filter(|row| row.is_built()) {
        let (inner, name) = row.path.rsplit_once('.').unwrap_or(("", row.path));
        if section != Some(inner) {
            section = Some(inner);
            let whole = [path, inner].into_iter().filter(|part| !part.is_empty());
            let whole = whole.collect::<Vec<_>>().join(".");
            if !whole.is_empty() {
                *text += &format!("\n[{whole}]\n");
            }
        }
        *text += &line(before, name, row);
    }
}

fn line(before: &str, name: &str, row: &Opt) -> String {
    format!("# {}\n{before}{name} = {}\n", row.doc, row.default)
}

fn json() -> Json {
    let mut root = Map::new();
    for row in OPTIONS.iter().filter(|row| row.is_built()) {
        insert(&mut root, row.path, row);
    }
    for Place { path, rows, is_list, .. } in places() {
        if *is_list {
            insert_at(&mut root, path, Json::Array(Vec::new()));
            continue;
        }
        for row in rows.iter().filter(|row| row.is_built()) {
            insert(&mut root, &format!("{path}.{}", row.path), row);
        }
    }
    Json::Object(root)
}

fn insert(map: &mut Map<String, Json>, path: &str, row: &Opt) {
    let node = tree::parse("default.toml", &format!("value = {}", row.default));
    if let Ok(FileValue { form: Form::Map(mut entries), .. }) = node
        && let Some(entry) = entries.pop()
    {
        insert_at(map, path, entry.value.json());
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
