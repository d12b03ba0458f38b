//! Holds citations in comments against the reference documents: each section that a comment names is in
//! `docs/protocol.md` or `docs/server-api.md`, and each code that the node knows is in the tables there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::Regex;
use roost::proto::client::{Disconnect, ErrorCode, Unsubscribed};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|fault| panic!("{path}: {fault}"))
}

/// The Rust files below a folder, by their paths from the root.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "rs" => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// The reference documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Document {
    Protocol,
    ServerApi,
}

/// One section that a comment names.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Citation {
    document: Document,
    /// `12.1`, or for a method of section 3 of the server API `3 publish`.
    section: String,
}

/// The text of the comments of a source, without marks and line ends, since a citation may go over two lines.
fn comments(source: &str) -> String {
    let mut text = String::new();
    for line in source.lines() {
        let Some((_, comment)) = line.split_once("//") else {
            text.push_str(" ;; ");
            continue;
        };
        text.push_str(comment.trim_start_matches(['/', '!', '=']).trim());
        text.push(' ');
    }
    text
}

/// What the comments of a source cite: `protocol, 8`, `client protocol, sections 9.1 and 9.3`,
/// `server API, 6.1 to 6.6`, `the client protocol's section 22`. A section without a document is the client
/// protocol's, unless the words around it say whose it is.
fn citations(source: &str) -> BTreeSet<Citation> {
    // One or several of a document: `8`, `5 and 6`, `6.1 to 6.6`, `9.2 FilterNode and section 22`.
    let one = r"\d+(?:\.\d+)?";
    let more = format!("(?:, | and | to | \\w+ and section ){one}");
    let cited = Regex::new(&format!(
        "(?<document>protocol|server API)(?:, (?:sections? )?|(?:'s)? \\(?sections? )\
         (?<list>{one}(?:{more})*)(?: (?<method>[a-z_]+))?"
    ))
    .unwrap();
    let number = Regex::new(one).unwrap();
    let text = comments(source);
    let mut found = BTreeSet::new();
    for captures in cited.captures_iter(&text) {
        let document = match &captures["document"] {
            "protocol" => Document::Protocol,
            _ => Document::ServerApi,
        };
        let method = captures.name("method").map(|method| method.as_str());
        for section in number.find_iter(&captures["list"]) {
            let section = match (document, section.as_str(), method) {
                (Document::ServerApi, "3", Some(method)) => format!("3 {method}"),
                (_, section, _) => section.to_owned(),
            };
            found.insert(Citation { document, section });
        }
    }
    let alone = Regex::new(&format!("[Ss]ections? ({one})")).unwrap();
    for captures in alone.captures_iter(&text) {
        let (Some(whole), Some(section)) = (captures.get(0), captures.get(1)) else { continue };
        let before = &text[..whole.start()];
        let of_another = ["protocol, ", "API, ", "API's ", "suite's ", "RFC "]
            .iter()
            .any(|owner| before.ends_with(owner))
            || text[whole.end()..].starts_with(" there");
        if !of_another {
            let section = section.as_str().to_owned();
            found.insert(Citation { document: Document::Protocol, section });
        }
    }
    found
}

/// The numbers of a document's sections, and the headings below `## 3.` as `3 heading`.
fn sections(document: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut chapter = "";
    for line in document.lines().filter(|line| line.starts_with("##")) {
        let title = line.trim_start_matches('#').trim();
        let number = title.split(' ').next().unwrap_or("").trim_end_matches('.');
        match number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            true => {
                if line.starts_with("## ") {
                    chapter = number;
                }
                found.insert(number.to_owned());
            }
            false => {
                let names = title.split(", ").map(|name| format!("{chapter} {name}"));
                found.extend(names);
            }
        }
    }
    found
}

/// The rows of the tables below a heading: the cells of each, without the head.
fn rows<'d>(document: &'d str, heading: &str) -> Vec<Vec<&'d str>> {
    let below = document.lines().skip_while(|line| !line.starts_with(heading)).skip(1);
    below
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with('|') && !line.starts_with("| ---"))
        .skip(1)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn sections_that_comments_name_are_there() {
    let protocol = sections(&read("docs/protocol.md"));
    let server_api = sections(&read("docs/server-api.md"));
    let mut wrong = Vec::new();
    let mut count = 0;
    for folder in ["src", "tests", "benches", "fuzz/targets"] {
        for path in sources(folder) {
            let source = fs::read_to_string(&path).unwrap();
            let shown = path.strip_prefix(root()).unwrap().display();
            // This file has examples of wrong ones.
            if path.ends_with(file!()) {
                continue;
            }
            for Citation { document, section } in citations(&source) {
                count += 1;
                let known = match document {
                    Document::Protocol => &protocol,
                    Document::ServerApi => &server_api,
                };
                if !known.contains(&section) {
                    wrong.push(format!("{shown}: {document:?} has no section {section}"));
                }
            }
        }
    }
    assert!(count > 50, "found only {count} citations");
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn codes_are_in_the_tables_of_the_protocol() {
    let document = read("docs/protocol.md");
    let table = |heading: &str| -> Vec<(String, String)> {
        let rows = rows(&document, heading);
        rows.iter().map(|cells| (cells[0].to_owned(), cells[1].to_owned())).collect()
    };
    let row = |code: u16, text: &str| (code.to_string(), text.to_owned());
    let errors: Vec<_> = ErrorCode::ALL.iter().map(|of| row(of.code(), of.message())).collect();
    assert_eq!(table("### 24.1 "), errors);
    let ends: Vec<_> = Disconnect::ALL.iter().map(|of| row(of.code(), of.reason())).collect();
    assert_eq!(table("### 24.2 "), ends);
    let ends: Vec<_> = Unsubscribed::ALL.iter().map(|of| row(of.code(), of.reason())).collect();
    assert_eq!(table("### 24.3 "), ends);
    let temporary: Vec<_> =
        rows(&document, "### 24.1 ").iter().map(|cells| cells[2] == "yes").collect();
    let expected: Vec<_> = ErrorCode::ALL.iter().map(|of| of.temporary()).collect();
    assert_eq!(temporary, expected);
}

#[test]
fn fields_of_the_schema_are_in_the_protocol() {
    let (schema, document) = (read("src/proto/client/client.proto"), read("docs/protocol.md"));
    let chapter = document.split("\n## ").find(|chapter| chapter.starts_with("9. ")).unwrap();
    let words: BTreeSet<&str> =
        chapter.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let field = Regex::new(r"(?m)^  [\w<>, ]*\b(\w+) = \d+;").unwrap();
    let fields: BTreeSet<String> =
        field.captures_iter(&schema).map(|captures| captures[1].to_owned()).collect();
    assert!(fields.len() > 70, "found only {} fields", fields.len());
    // They are in messages that nothing here reads or writes.
    let left_out = ["data_b64", "signature"];
    let missing: Vec<_> = fields
        .iter()
        .map(String::as_str)
        .filter(|name| !words.contains(name) && !left_out.contains(name))
        .collect();
    assert!(missing.is_empty(), "not in section 9: {missing:?}");
}

#[test]
fn the_checks_find_violations() {
    let found = |source: &str| -> BTreeSet<(Document, String)> {
        citations(source).into_iter().map(|of| (of.document, of.section)).collect()
    };
    use Document::{Protocol, ServerApi};
    for (source, expected) in [
        ("// A (client protocol, 8).", &[(Protocol, "8")][..]),
        ("//= client protocol, 8: x", &[(Protocol, "8")]),
        ("/// x (client\n    /// protocol, 15.3).", &[(Protocol, "15.3")]),
        ("//! (protocol, sections 9.1 and 9.3).", &[(Protocol, "9.1"), (Protocol, "9.3")]),
        (
            "// (client protocol, 9.2 FilterNode and section 22).",
            &[(Protocol, "9.2"), (Protocol, "22")],
        ),
        ("// client protocol (section 12).", &[(Protocol, "12")]),
        ("// the client protocol's section 21.3.", &[(Protocol, "21.3")]),
        ("/// A rule of section 22, or", &[(Protocol, "22")]),
        ("// In the suite's sections 1 to 7, and section 5 there", &[]),
        ("// (server API, 3 publish).", &[(ServerApi, "3 publish")]),
        ("// (server API, 6.1 to 6.6).", &[(ServerApi, "6.1"), (ServerApi, "6.6")]),
        ("// (server API, 1.4 and 4)", &[(ServerApi, "1.4"), (ServerApi, "4")]),
        ("// (server\n// API, section 1)", &[(ServerApi, "1")]),
        ("// RFC 6455 5.1, section 5 there; the client protocol, but not 8", &[]),
        ("let protocol = 8; // protocol\nlet a = [1, 8];", &[]),
    ] {
        let expected: BTreeSet<_> =
            expected.iter().map(|(of, at)| (*of, (*at).to_owned())).collect();
        assert_eq!(found(source), expected, "{source}");
    }
    let document = "# x\n## 3. Methods\n### publish\n### a, b\n## 12. T\n### 12.1 U\n### Notes\n";
    let expected = ["12", "12 Notes", "12.1", "3", "3 a", "3 b", "3 publish"];
    assert_eq!(sections(document), expected.map(str::to_owned).into());
    let table = "## 1\n| a | b |\n| --- | --- |\n| 1 | x |\n## 2\n| 2 | y |\n";
    assert_eq!(rows(table, "## 1"), [["1", "x"]]);
}
