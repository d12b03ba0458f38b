//! Holds the imports of `src` against the layer table in the documentation of `src/lib.rs`, so that
//! the arrows between modules point down, and keeps clocks, sockets and locks out of the modules
//! that are pure. Reads the source as tokens; comments and strings don't count.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that are bytes and facts in, bytes and verdicts out: time is an argument there.
const PURE: [&str; 6] = ["proto", "hub", "edge", "handover", "session", "cluster"];

/// Names that a pure module never uses.
const IMPURE: [&str; 14] = [
    "Instant",
    "Mutex",
    "RwLock",
    "SystemTime",
    "TcpListener",
    "TcpStream",
    "UnixStream",
    "crossbeam_channel",
    "libc",
    "mio",
    "rustix",
    "socket2",
    "thread",
    "tokio",
];

/// The one file of the pure modules that may name rustls, and its tests.
const RUSTLS: &str = "proto/tls/handshake";

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// An identifier or keyword.
    Word(String),
    /// `::`
    PathSeparator,
    /// Any other character outside comments and literals.
    Mark(char),
}

/// The tokens of Rust source, each with its line. Literals and comments are left out.
fn tokens(source: &str) -> Vec<(usize, Token)> {
    let chars: Vec<char> = source.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut line = 1;
    let mut index = 0;
    while index < chars.len() {
        let start = index;
        match at(index) {
            '/' if at(index + 1) == '/' => {
                while index < chars.len() && at(index) != '\n' {
                    index += 1;
                }
            }
            '/' if at(index + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(index), at(index + 1)) {
                        ('/', '*') => (depth, index) = (depth + 1, index + 2),
                        ('*', '/') => (depth, index) = (depth - 1, index + 2),
                        _ => index += 1,
                    }
                    if depth == 0 || index >= chars.len() {
                        break;
                    }
                }
            }
            '"' => index = end_of_string(&chars, index + 1),
            // A character or byte literal; a lifetime is a mark and a word.
            '\'' if at(index + 1) == '\\' => {
                index += 3;
                while index < chars.len() && at(index) != '\'' {
                    index += 1;
                }
                index += 1;
            }
            '\'' if at(index + 2) == '\'' => index += 3,
            ':' if at(index + 1) == ':' => {
                found.push((line, Token::PathSeparator));
                index += 2;
            }
            c if is_word(c) => {
                while is_word(at(index)) {
                    index += 1;
                }
                let word: String = chars[start..index].iter().collect();
                let hashes = chars[index..].iter().take_while(|c| **c == '#').count();
                if matches!(word.as_str(), "r" | "br" | "cr") && at(index + hashes) == '"' {
                    index = end_of_raw_string(&chars, index + hashes + 1, hashes);
                } else {
                    found.push((line, Token::Word(word)));
                }
            }
            c => {
                if !c.is_whitespace() {
                    found.push((line, Token::Mark(c)));
                }
                index += 1;
            }
        }
        let end = index.min(chars.len());
        line += chars[start..end].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn end_of_string(chars: &[char], mut index: usize) -> usize {
    while index < chars.len() && chars[index] != '"' {
        index += if chars[index] == '\\' { 2 } else { 1 };
    }
    index + 1
}

fn end_of_raw_string(chars: &[char], mut index: usize, hashes: usize) -> usize {
    while index < chars.len() {
        let tail = chars[index + 1..].iter().take_while(|c| **c == '#').count();
        if chars[index] == '"' && tail >= hashes {
            return index + 1 + hashes;
        }
        index += 1;
    }
    index
}

/// The top-level modules that a file names, each with a line. `depth` is how many modules deep the
/// file itself is: 1 for `src/hub/mod.rs`.
fn modules_named(tokens: &[(usize, Token)], depth: usize) -> Vec<(usize, String)> {
    let word = |index: usize| match tokens.get(index) {
        Some((_, Token::Word(word))) => word.as_str(),
        _ => "",
    };
    let is = |index: usize, token: &Token| tokens.get(index).is_some_and(|(_, t)| t == token);
    let mut named = Vec::new();
    // One entry for each open brace: whether it opened a module.
    let mut braces = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        match &tokens[index].1 {
            Token::Mark('{') => {
                braces.push(index >= 2 && word(index - 2) == "mod" && !word(index - 1).is_empty());
            }
            Token::Mark('}') => {
                braces.pop();
            }
            _ => {}
        }
        let inside_path = index > 0 && is(index - 1, &Token::PathSeparator);
        let mut after = index;
        let from_root = match word(index) {
            "crate" | "roost" if !inside_path => {
                after += 1;
                true
            }
            "super" if !inside_path => {
                let mut supers = 0;
                while word(after) == "super" {
                    supers += 1;
                    after += if is(after + 1, &Token::PathSeparator) { 2 } else { 1 };
                }
                after -= 1;
                supers >= depth + braces.iter().filter(|module| **module).count()
            }
            _ => false,
        };
        if from_root && is(after, &Token::PathSeparator) {
            named.extend(first_segments(tokens, after + 1));
        }
        // On with the brace of a group, so that every brace is counted.
        index = after + 1;
    }
    named
}

/// The first segment of each path that starts here: one, or those of a `{...}` group.
fn first_segments(tokens: &[(usize, Token)], start: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    match tokens.get(start) {
        Some((line, Token::Word(word))) => found.push((*line, word.clone())),
        Some((_, Token::Mark('{'))) => {
            let mut depth = 0;
            for index in start..tokens.len() {
                match &tokens[index].1 {
                    Token::Mark('{') => depth += 1,
                    Token::Mark('}') => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
                let opens = matches!(tokens[index].1, Token::Mark('{' | ','));
                if let (1, true, Some((line, Token::Word(word)))) =
                    (depth, opens, tokens.get(index + 1))
                {
                    found.push((*line, word.clone()));
                }
            }
        }
        // `crate::*` names everything.
        Some((line, _)) => found.push((*line, "*".to_owned())),
        None => {}
    }
    found
}

/// The layer of each module, from the table in the documentation of `lib.rs`.
fn layers(lib: &str) -> BTreeMap<String, usize> {
    let mut layers = BTreeMap::new();
    for row in lib.lines().filter_map(|line| line.strip_prefix("//! |")) {
        let mut cells = row.split('|').map(str::trim);
        let Some(Ok(layer)) = cells.next().map(str::parse::<usize>) else { continue };
        for name in cells.next().unwrap_or_default().split(',') {
            let name = name.trim().trim_matches(['[', ']', '`']);
            let before = layers.insert(name.to_owned(), layer);
            assert_eq!(before, None, "{name} is twice in the table");
        }
    }
    layers
}

/// The faults of one file, in words.
fn faults(
    path: &str,
    source: &str,
    depth: usize,
    own: &str,
    layers: &BTreeMap<String, usize>,
) -> Vec<String> {
    let tokens = tokens(source);
    let mut faults = Vec::new();
    for (line, module) in modules_named(&tokens, depth) {
        let Some(layer) = layers.get(&module) else {
            // A macro or an item at the root would be a module that the table doesn't know.
            faults.push(format!("{path}:{line}: {module} is not in the layer table"));
            continue;
        };
        if module != own && *layer >= layers[own] {
            faults.push(format!(
                "{path}:{line}: {own} (layer {}) uses {module} (layer {layer})",
                layers[own]
            ));
        }
    }
    for (line, token) in &tokens {
        let Token::Word(word) = token else { continue };
        if PURE.contains(&own) && IMPURE.contains(&word.as_str()) {
            faults.push(format!("{path}:{line}: {own} is pure and names {word}"));
        }
        if word == "rustls" && PURE.contains(&own) && !path.starts_with(RUSTLS) {
            faults.push(format!("{path}:{line}: only {RUSTLS} knows rustls"));
        }
        if word == "unsafe" && own != "sys" {
            faults.push(format!("{path}:{line}: unsafe outside of sys"));
        }
    }
    faults
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn modules_use_lower_layers_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layers = layers(&fs::read_to_string(src.join("lib.rs")).unwrap());
    assert!(layers.len() > 5, "no layer table found: {layers:?}");
    let mut seen = BTreeMap::new();
    let mut wrong = Vec::new();
    for file in rust_files(&src) {
        let inside = file.strip_prefix(&src).unwrap();
        let mut segments: Vec<String> =
            inside.with_extension("").iter().map(|part| part.to_string_lossy().into()).collect();
        if matches!(segments.last().map(String::as_str), Some("mod" | "lib")) {
            segments.pop();
        }
        // The programs stand above every layer.
        let own = match segments.first().map(String::as_str) {
            None | Some("main" | "bin") => continue,
            Some(own) => own.to_owned(),
        };
        if !layers.contains_key(&own) {
            wrong.push(format!("{}: {own} is not in the layer table", inside.display()));
            continue;
        }
        let source = fs::read_to_string(&file).unwrap();
        let shown = inside.display().to_string();
        wrong.extend(faults(&shown, &source, segments.len(), &own, &layers));
        *seen.entry(own).or_insert(0) += 1;
    }
    for module in layers.keys().filter(|module| !seen.contains_key(*module)) {
        wrong.push(format!("{module} is in the layer table and has no file"));
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_check_finds_violations() {
    let table = "//! | 0 | [`base`], [`sys`] | x |\n//! | 1 | [`hub`], [`io`] | x |\n\
                 //! | 2 | [`shard`] | x |\n";
    let layers = layers(table);
    let of = |source: &str| faults("f", source, 2, "hub", &layers).len();
    let good = [
        "use crate::base::Tick; use crate::hub::ring;",
        "use crate::{base::{self, id}, sys};",
        "// crate::shard\n/* crate::shard /* crate::io */ */ /// crate::io",
        "const A: &str = \"crate::shard \\\" unsafe\"; const B: &str = r#\"crate::io \" \"#;",
        "pub(crate) fn f<'a>(c: &'a char) -> bool { *c == '\"' } // \"",
        "use super::ring; mod tests { use super::super::ring; }",
        "use std::thread_like; let unsafely = b'\\'';",
    ];
    for source in good {
        assert_eq!(of(source), 0, "{source}");
    }
    let bad = [
        "use crate::shard::Conn;",
        "use crate::io;",
        "fn f() { crate::io::poll(); }",
        "use crate::{base::{self}, io};",
        "use crate::{\n    io,\n};",
        "use super::super::io;",
        "mod tests { use super::super::super::shard; }",
        "use roost::shard;",
        "use crate::unheard_of;",
        "use crate::*;",
        "use std::time::Instant;",
        "let x = '\\''; std::thread::spawn(f);",
        "unsafe { f() }",
        "use rustls::Error;",
    ];
    for source in bad {
        assert_eq!(of(source), 1, "{source}");
    }
    let handshake = faults("proto/tls/handshake.rs", "use rustls::Error;", 3, "hub", &layers);
    assert_eq!(handshake, [""; 0]);
}
