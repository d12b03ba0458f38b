//! Holds documents against the tests, the codes and the options that exist:
//! `docs/protocol-coverage.md` names no test that is missing and leaves no code and no option out,
//! and every promise of `SPECIFICATION.md` names a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use roost::config::{PrintFormat, print_defaults};
use roost::proto::client::{Disconnect, ErrorCode, Unsubscribed};
use serde_json::Value;

/// The beginning of a tests cell that names no test.
const PLAIN: [&str; 2] = ["no test", "not built"];

/// One row of a table: the heading over it, the head of its first column, and its two cells.
#[derive(Debug)]
struct Row<'d> {
    line: usize,
    heading: &'d str,
    kind: &'d str,
    what: &'d str,
    tests: &'d str,
}

/// The rows of all tables.
fn rows(document: &str) -> Vec<Row<'_>> {
    let mut found = Vec::new();
    let (mut heading, mut kind) = ("", "");
    for (line, text) in (1..).zip(document.lines()) {
        if text.starts_with('#') {
            heading = text.trim_start_matches('#').trim();
        }
        let Some(cells) = text.strip_prefix('|') else {
            kind = "";
            continue;
        };
        let mut cells = cells.split('|').map(str::trim);
        let (what, tests) = (cells.next().unwrap_or(""), cells.next().unwrap_or(""));
        match (kind, what) {
            ("", _) => kind = what,
            (_, "---") => {}
            _ => found.push(Row { line, heading, kind, what, tests }),
        }
    }
    found
}

/// The code spans of a cell.
fn spans(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The names of a reference behind its file: `a, b` or `"a title", "another"`.
fn names(list: &str) -> Vec<&str> {
    match list.contains('"') {
        true => list.split('"').skip(1).step_by(2).collect(),
        false => list.split(',').map(str::trim).collect(),
    }
}

/// Where a file stands that is named in the document.
fn path(file: &str) -> Option<String> {
    let (folder, rest) = file.split_once('/')?;
    let folder = match folder {
        "src" => "src",
        "it" => "tests/it",
        "sim" => "tests/sim",
        "sdk" => "tools/sdk",
        "browser" => "tools/browser",
        _ => return None,
    };
    Some(format!("{folder}/{rest}"))
}

/// Whether a source has a test of this name.
fn has_test(file: &str, source: &str, name: &str) -> bool {
    if file.ends_with(".mjs") {
        return titles(source).any(|title| match name.strip_suffix("...") {
            Some(beginning) => title.starts_with(beginning),
            None => title == name,
        });
    }
    let python = format!("def {name}(");
    let rust = format!("fn {name}(");
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    lines.iter().enumerate().any(|(at, line)| {
        if file.ends_with(".py") {
            return line.trim_start_matches("async ").starts_with(&python);
        }
        // A helper is no test.
        let above = lines[..at].iter().rev();
        let mut attributes = above.take_while(|line| line.starts_with("#[") || is_comment(line));
        let is_test = |line: &&str| matches!(*line, "#[test]" | "#[tokio::test]");
        line.trim_start_matches("async ").starts_with(&rust) && attributes.any(is_test)
    })
}

fn is_comment(line: &str) -> bool {
    line.starts_with("//")
}

/// The titles of tests in JavaScript.
fn titles(source: &str) -> impl Iterator<Item = &str> {
    let calls = ["test(", "testEach("];
    source.lines().filter_map(move |line| {
        let line = line.trim_start();
        let rest = calls.iter().find_map(|call| line.strip_prefix(call))?;
        let quote = rest.chars().next().filter(|first| "'\"`".contains(*first))?;
        rest[1..].split(quote).next()
    })
}

/// The faults of the references of a row.
fn bad_references(row: &Row<'_>, read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |text: String| faults.push(format!("line {}: {text}", row.line));
    if spans(row.tests).next().is_none() && !PLAIN.iter().any(|word| row.tests.starts_with(word)) {
        fault(format!("no test named, and not said so: {}", row.tests));
    }
    for span in spans(row.tests) {
        let Some((file, list)) = span.split_once(": ") else {
            fault(format!("no reference: {span}"));
            continue;
        };
        let Some(source) = path(file).and_then(|path| read(&path)) else {
            fault(format!("no such file: {file}"));
            continue;
        };
        for name in names(list) {
            if !has_test(file, &source, name) {
                fault(format!("{file} has no test {name}"));
            }
        }
    }
    faults
}

/// The paths of all options that are built, from the printed defaults.
fn options() -> BTreeSet<String> {
    fn add(paths: &mut BTreeSet<String>, path: &str, value: &Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    add(paths, &format!("{path}{dot}{name}"), value);
                }
            }
            _ => _ = paths.insert(path.to_owned()),
        }
    }
    let defaults = serde_json::from_str(&print_defaults(PrintFormat::Json)).unwrap();
    let mut paths = BTreeSet::new();
    add(&mut paths, "", &defaults);
    paths
}

/// Sections with the options of a proxy.
const PROXIES: [&str; 6] = [
    "client.proxy.connect",
    "client.proxy.refresh",
    "channel.proxy.subscribe",
    "channel.proxy.publish",
    "channel.proxy.sub_refresh",
    "rpc.proxy",
];

/// Sections with the options of a Redis, and the beginning of those that a section does not have.
const REDIS: [(&str, &str); 3] = [
    ("engine.redis", "no such beginning"),
    ("broker.redis", "presence_"),
    ("presence_manager.redis", "history_"),
];

/// The options that rows are about, by their whole paths; those of a namespace stand in 13.1, those that
/// all proxies have in 26.1, those of a Redis in 26.2, those of NATS in 26.3.
fn documented<'r>(rows: impl Iterator<Item = &'r Row<'r>>) -> BTreeSet<String> {
    let whole = |row: &Row<'_>, name: &str| match row.heading.split(' ').next() {
        Some("13.1") => vec![format!("channel.without_namespace.{name}")],
        Some("26.3") => vec![format!("broker.nats.{name}")],
        Some("26.1") => PROXIES.iter().map(|section| format!("{section}.{name}")).collect(),
        Some("26.2") => {
            let sections = REDIS.iter().filter(|(_, without)| !name.starts_with(without));
            sections.map(|(section, _)| format!("{section}.{name}")).collect()
        }
        _ => vec![name.to_owned()],
    };
    rows.filter(|row| row.kind == "option")
        .flat_map(|row| spans(row.what).flat_map(move |name| whole(row, name)))
        .collect()
}

/// The faults of a document, in words.
fn faults(
    document: &str,
    codes: &[(u16, &str)],
    options: &BTreeSet<String>,
    read: &dyn Fn(&str) -> Option<String>,
) -> Vec<String> {
    let rows = rows(document);
    let mut faults: Vec<String> = rows.iter().flat_map(|row| bad_references(row, read)).collect();
    for (code, words) in codes {
        let name = format!("{code} {words}");
        if !rows.iter().any(|row| row.kind == "code" && row.what == name) {
            faults.push(format!("no row for the code {name}"));
        }
    }
    let missing = options.difference(&documented(rows.iter())).cloned().collect::<Vec<_>>();
    faults.extend(missing.iter().map(|path| format!("no row for the option {path}")));
    let built = documented(rows.iter().filter(|row| !row.tests.starts_with("not built")));
    let unknown = built.difference(options).cloned().collect::<Vec<_>>();
    faults.extend(unknown.iter().map(|path| format!("there is no option {path}")));
    faults
}

#[test]
fn the_document_is_true_and_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let document = read("docs/protocol-coverage.md").unwrap();
    let mut codes: Vec<_> = ErrorCode::ALL.iter().map(|e| (e.code(), e.message())).collect();
    codes.extend(Disconnect::ALL.iter().map(|d| (d.code(), d.reason())));
    codes.extend(Unsubscribed::ALL.iter().map(|u| (u.code(), u.reason())));
    assert!(rows(&document).len() > 200, "tables not found");
    let wrong = faults(&document, &codes, &options(), &read);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// The faults of the promises in a specification: each row has to name a test.
fn faults_of_promises(document: &str, read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let rows = rows(document);
    let promises = rows.iter().filter(|row| row.kind == "promise");
    promises
        .flat_map(|row| match spans(row.tests).next() {
            Some(_) => bad_references(row, read),
            None => vec![format!("line {}: a promise without a test", row.line)],
        })
        .collect()
}

#[test]
fn each_promise_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let document = read("SPECIFICATION.md").unwrap();
    let promises = rows(&document).iter().filter(|row| row.kind == "promise").count();
    assert!(promises >= 19, "found only {promises} promises");
    let wrong = faults_of_promises(&document, &read);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn a_promise_without_an_existing_test_is_a_fault() {
    let read = |path: &str| {
        (path == "src/a.rs").then(|| "#[test]\nfn good() {}\nfn helper() {}\n".to_owned())
    };
    let faults = |tests: &str| {
        let document = format!("| promise | kept by |\n| --- | --- |\n| x | {tests} |\n");
        faults_of_promises(&document, &read).len()
    };
    assert_eq!(faults("`src/a.rs: good`; more"), 0);
    for tests in
        ["", "the suite", "not built", "`src/a.rs`", "`src/a.rs: helper`", "`src/b.rs: good`"]
    {
        assert_eq!(faults(tests), 1, "{tests}");
    }
}

#[test]
fn the_check_finds_violations() {
    let read = |path: &str| {
        let source = match path {
            "src/a.rs" => "    #[test]\n    // Why.\n    fn good() {\nfn helper() {\n",
            "tools/sdk/a.test.mjs" => {
                "test('of, commas', async () => {\ntestEach(\"it's each\", 1);\n  test(`of ${x}`)\n"
            }
            "tools/sdk/test_a.py" => "    async def test_one(self):\n    def test_two(self):\n",
            _ => return None,
        };
        Some(source.to_owned())
    };
    let options = ["a.b", "channel.without_namespace.c"].map(str::to_owned).into();
    let faults = |document: &str| faults(document, &[(7, "seven")], &options, &read);
    let whole = |tests: &str| {
        format!(
            "# 1\n| code | tests |\n| --- | --- |\n| 7 seven | not built |\n\n\
             | option | tests |\n| --- | --- |\n| `a.b` | no test |\n| `x` | not built: x |\n\
             ## 13.1 x\n| option | tests |\n| --- | --- |\n| `c` | {tests} |\n"
        )
    };
    for tests in [
        "no test of it",
        "not built: x, `src/a.rs: good`",
        "`src/a.rs: good`",
        "`src/a.rs: good, good`, `sdk/test_a.py: test_one, test_two`; more",
        "`sdk/a.test.mjs: \"of, commas\", \"it's each\", \"of ...\"`",
    ] {
        assert_eq!(faults(&whole(tests)), [""; 0], "{tests}");
    }
    for tests in [
        "",
        "maybe",
        "`good`",
        "`src/a.rs: bad`",
        "`src/a.rs: helper`",
        "`src/a.rs: goo`",
        "`src/b.rs: good`",
        "`a.rs: good`",
        "`sdk/a.test.mjs: \"of\"`",
        "`sdk/a.test.mjs: \"of, commas\", \"each\"`",
        "`sdk/test_a.py: test`",
    ] {
        assert_eq!(faults(&whole(tests)).len(), 1, "{tests}");
    }
    let good = whole("no test");
    for (before, after) in [
        ("7 seven", "7 eleven"),
        ("| 7 seven | not built |", ""),
        ("| `a.b` | no test |", ""),
        ("| `c` | no test |", ""),
        ("not built: x", "no test"),
    ] {
        let bad = good.replace(before, after);
        assert_ne!(bad, good);
        assert_eq!(faults(&bad).len(), 1, "{before}");
    }
}
