//! Small promises about the files of the repository themselves.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Folders without the repository's own files: they are made by tools.
const SKIPPED: [&str; 6] = ["target", ".git", ".cache", "node_modules", "__pycache__", ".venv"];
const TEXT: [&str; 14] = [
    "rs", "toml", "md", "sh", "py", "js", "mjs", "json", "yaml", "yml", "conf", "txt", "html",
    "css",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// The text files: path as shown, whether it may be executed, content.
fn texts() -> Vec<(String, bool, String)> {
    let mut texts = Vec::new();
    for path in files(root()) {
        let extension = path.extension().unwrap_or_default();
        let named_as_text = TEXT.iter().any(|text| extension == *text);
        let Ok(bytes) = fs::read(&path) else { continue };
        if !named_as_text && !bytes.starts_with(b"#!") {
            continue;
        }
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        let executable = fs::metadata(&path).unwrap().permissions().mode() & 0o111 != 0;
        let content = String::from_utf8(bytes).unwrap_or_else(|_| panic!("{shown} is not UTF-8"));
        texts.push((shown, executable, content));
    }
    assert!(texts.len() > 20, "found only {} files", texts.len());
    texts
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn files_end_with_one_line_feed() {
    let mut wrong = Vec::new();
    for (path, _, content) in texts() {
        if !content.is_empty() && (!content.ends_with('\n') || content.ends_with("\n\n")) {
            wrong.push(format!("{path}: must end with one line feed"));
        }
        if content.contains('\r') {
            wrong.push(format!("{path}: has carriage returns"));
        }
    }
    none(&wrong);
}

#[test]
fn lines_have_no_trailing_space() {
    let mut wrong = Vec::new();
    for (path, _, content) in texts().iter().filter(|(path, ..)| !path.ends_with(".md")) {
        for (number, line) in content.lines().enumerate() {
            if line.ends_with([' ', '\t']) {
                wrong.push(format!("{path}:{}: trailing space", number + 1));
            }
        }
    }
    none(&wrong);
}

#[test]
fn lines_of_documents_have_at_most_100_columns() {
    let mut wrong = Vec::new();
    for (path, _, content) in texts().iter().filter(|(path, ..)| path.ends_with(".md")) {
        for (number, line) in content.lines().enumerate() {
            // A row of a table is one line whatever it holds, and one word can't be wrapped.
            let columns = line.chars().count();
            let line = line.trim();
            if columns > 100 && !line.starts_with('|') && line.contains(' ') {
                wrong.push(format!("{path}:{}: {columns} columns", number + 1));
            }
        }
    }
    none(&wrong);
}

/// What a document says outside of its code blocks.
fn prose(document: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    document.lines().enumerate().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    })
}

/// The targets of a line's links, without their anchors and without those of other sites.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let here = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    here.map(|target| target.split('#').next().unwrap_or(target))
}

/// The code spans of a line that name a file of the sources: `src/a.rs`, or `a/b.rs` below `src`.
fn sources_in(line: &str) -> impl Iterator<Item = &str> {
    let is_path = |span: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
        span.contains('/') && span.ends_with(".rs") && span.chars().all(plain)
    };
    line.split('`').skip(1).step_by(2).filter(is_path)
}

#[test]
fn documents_name_files_that_exist() {
    let mut wrong = Vec::new();
    for (path, _, content) in texts().iter().filter(|(path, ..)| path.ends_with(".md")) {
        let folder = root().join(path).parent().unwrap().to_owned();
        for (number, line) in prose(content) {
            let mut missing = |name: &str| wrong.push(format!("{path}:{}: {name}", number + 1));
            links(line).filter(|link| !folder.join(link).exists()).for_each(&mut missing);
            let below = |folder: &str, name: &str| root().join(folder).join(name).exists();
            let exists = |name: &str| ["", "src", "tests"].iter().any(|of| below(of, name));
            sources_in(line).filter(|name| !exists(name)).for_each(&mut missing);
        }
    }
    none(&wrong);
}

#[test]
fn links_and_sources_are_found_in_a_line() {
    let line =
        "see [a](../b.md#c), [d](https://e/f.md), `src/a.rs`, `b/c.rs`, `d.rs` and `x: y/z.rs`";
    assert_eq!(links(line).collect::<Vec<_>>(), ["../b.md"]);
    assert_eq!(sources_in(line).collect::<Vec<_>>(), ["src/a.rs", "b/c.rs"]);
    assert_eq!(prose("a\n```\nb\n```\nc").map(|(_, line)| line).collect::<Vec<_>>(), ["a", "c"]);
}

/// The targets of a line's links, whole.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// The anchors of a document: those of its headings, as forges make them, and its own.
fn anchors(document: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (_, line) in prose(document) {
        let own = line.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next());
        found.extend(own.map(str::to_owned));
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        // The text of a link stands for it.
        let text = heading.trim().split("](").enumerate().map(|(at, part)| match at {
            0 => part,
            _ => part.split_once(')').map_or(part, |(_, rest)| rest),
        });
        let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        let text: String = text.collect::<String>().to_lowercase().chars().filter(kept).collect();
        let slug = text.replace(' ', "-");
        let same = |other: &&String| {
            other.strip_prefix(&slug).is_some_and(|end| {
                end.is_empty() || end.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok())
            })
        };
        match found.iter().filter(same).count() {
            0 => found.push(slug),
            count => found.push(format!("{slug}-{count}")),
        }
    }
    found
}

#[test]
fn links_lead_to_headings_that_exist() {
    let mut wrong = Vec::new();
    for (path, _, content) in texts().iter().filter(|(path, ..)| path.ends_with(".md")) {
        let folder = root().join(path).parent().unwrap().to_owned();
        for (number, line) in prose(content) {
            for target in targets(line).filter(|target| !target.contains("://")) {
                let Some((file, anchor)) = target.split_once('#') else { continue };
                let there = match file {
                    "" => content.clone(),
                    file => fs::read_to_string(folder.join(file)).unwrap_or_default(),
                };
                let is_document = file.is_empty() || file.ends_with(".md");
                if is_document && !anchors(&there).iter().any(|other| other == anchor) {
                    wrong.push(format!("{path}:{}: {target}: no such heading", number + 1));
                }
            }
        }
    }
    none(&wrong);
}

/// What is wrong with the form of a link to another site.
fn fault_of_outside_link(target: &str) -> Option<&'static str> {
    let (scheme, rest) = target.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next().unwrap_or("");
    let name = host.split(':').next().unwrap_or("");
    match scheme {
        "http" if ["127.0.0.1", "localhost"].contains(&name) => None,
        "https" if target.contains(|c: char| c.is_whitespace()) => Some("has a space"),
        "https" if !name.contains('.') || name.starts_with('.') || name.ends_with('.') => {
            Some("has no host")
        }
        "https" if rest.ends_with(['.', ',']) => Some("ends with the sentence's punctuation"),
        "https" => None,
        _ => Some("is not https"),
    }
}

#[test]
fn links_to_other_sites_are_well_formed() {
    let mut wrong = Vec::new();
    for (path, _, content) in texts().iter().filter(|(path, ..)| path.ends_with(".md")) {
        for (number, line) in prose(content) {
            let bare = line.split('<').skip(1).filter_map(|rest| rest.split('>').next());
            let bare = bare.filter(|text| text.starts_with("http"));
            for target in targets(line).chain(bare) {
                if let Some(fault) = fault_of_outside_link(target) {
                    wrong.push(format!("{path}:{}: {target} {fault}", number + 1));
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn anchors_are_those_of_forges() {
    let document = "# A b\n## `engine.redis`: it's\n```\n# c\n```\n## A b\n<a id=\"own\"></a>x\n\
                    ## [Link](x.md) here";
    assert_eq!(anchors(document), ["a-b", "engineredis-its", "a-b-1", "own", "link-here"]);
    for (target, is_good) in [
        ("https://example.com/a?b#c", true),
        ("http://127.0.0.1:8000/demo", true),
        ("http://example.com", false),
        ("https://example", false),
        ("https://example.com/a b", false),
        ("https://example.com/.", false),
        ("guides/a.md", true),
    ] {
        assert_eq!(fault_of_outside_link(target).is_none(), is_good, "{target}");
    }
}

#[test]
fn scripts_are_executable_and_only_scripts() {
    let mut wrong = Vec::new();
    for (path, executable, content) in texts() {
        let script = content.starts_with("#!") && !content.starts_with("#![");
        if script != executable {
            wrong.push(format!("{path}: executable {executable}, starts as a script {script}"));
        }
    }
    none(&wrong);
}

#[test]
fn no_path_of_the_machine_it_was_written_on() {
    // Put together here, so that this file doesn't find itself.
    let folders = ["work", "root", "tmp/wt", "tmp/target"].map(|folder| format!("/{folder}/"));
    let mut wrong = Vec::new();
    for (path, _, content) in texts() {
        for (number, line) in content.lines().enumerate() {
            // A path starts where no other one goes on: a folder of that name inside another one is none.
            let starts =
                |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.');
            if folders.iter().any(|folder| line.match_indices(folder).any(|(at, _)| starts(at))) {
                wrong.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none(&wrong);
}

// ---- The structure of the sources. Lists of what still has to be done only shrink: a new entry is a
// step back, and one that has become needless is deleted.

/// Longest function, in lines, that no list names.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions in which a table is written out: splitting them would hide it.
const TABLES: [&str; 5] = [
    "src/config/build.rs: namespace",
    "src/config/transports.rs: transports",
    "src/host/plan.rs: capacity",
    "src/load/report.rs: fmt",
    "src/node/serve.rs: settings",
];

/// Fields and methods of `Shard`, which wires its groups and has little else to do.
const SHARD_FIELDS_MAX: usize = 12;
const SHARD_METHODS_MAX: usize = 30;

/// The Rust files under `folder`, without test modules: path as shown, and lines.
fn sources(folder: &str) -> Vec<(String, Vec<String>)> {
    let mut sources = Vec::new();
    for path in files(&root().join(folder)) {
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        let tests =
            ["tests", "tests.rs", "conformance.rs", "contract.rs", "testing.rs", "documents"];
        let is_test = |part: &str| tests.contains(&part);
        if !shown.ends_with(".rs") || shown.split('/').any(is_test) {
            continue;
        }
        let content = fs::read_to_string(&path).unwrap();
        sources.push((shown, without_tests(&content)));
    }
    assert!(sources.len() > 3, "{folder} has only {} files", sources.len());
    sources
}

/// The lines of a file, each module behind `#[cfg(test)]` left out.
fn without_tests(content: &str) -> Vec<String> {
    let mut lines = content.lines().peekable();
    let mut kept = Vec::new();
    while let Some(line) = lines.next() {
        let module = |next: &&str| next.contains("mod ") && next.ends_with('{');
        if line.trim() == "#[cfg(test)]" && lines.peek().is_some_and(module) {
            let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
            lines.by_ref().find(|line| *line == end);
            continue;
        }
        kept.push(line.to_owned());
    }
    kept
}

/// The name of the function that begins on a line, formatted as rustfmt does it.
fn function(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    if let Some(inner) = rest.strip_prefix("pub(") {
        rest = inner.split_once(") ")?.1;
    }
    for word in ["pub ", "default ", "const ", "async ", "unsafe ", "extern \"C\" "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    let name = rest.strip_prefix("fn ")?;
    name.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// Functions, each with the number of its lines. A function ends with a brace as far right as it begins.
fn functions(lines: &[String]) -> Vec<(&str, usize)> {
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function(line) else { continue };
        if line.ends_with(['}', ';']) {
            found.push((name, 1));
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        // A declaration over several lines ends with a parenthesis and a semicolon instead.
        let ends = |other: &&String| {
            other
                .strip_prefix(indent)
                .is_some_and(|rest| rest == "}" || (rest.starts_with(')') && rest.ends_with(';')))
        };
        let count = lines[at + 1..].iter().position(|line| ends(&line)).unwrap_or(0);
        found.push((name, count + 2));
    }
    found
}

/// Findings that are not listed, and listed ones that are not found any more.
fn listed(found: &[String], listed: &[&str], rule: &str) {
    let mut wrong = Vec::new();
    for one in found.iter().filter(|one| !listed.contains(&one.as_str())) {
        wrong.push(format!("{one}: {rule}"));
    }
    for one in listed.iter().filter(|one| !found.iter().any(|found| found == *one)) {
        wrong.push(format!("{one}: is fine now: delete its line in tests/tidy.rs"));
    }
    none(&wrong);
}

#[test]
fn functions_are_short_but_tables() {
    let mut long = Vec::new();
    for (path, lines) in sources("src") {
        for (name, count) in functions(&lines) {
            if count > FUNCTION_LINES_MAX {
                long.push(format!("{path}: {name}"));
            }
        }
    }
    listed(&long, &TABLES, "a function of more than 70 lines");
}

#[test]
fn imports_name_each_item() {
    let all = |line: &String| {
        let line = line.trim_start();
        line.starts_with("use super::") && line.ends_with("*;")
    };
    let found = sources("src").into_iter().filter(|(_, lines)| lines.iter().any(all));
    let found: Vec<String> = found.map(|(path, _)| path).collect();
    listed(&found, &[], "imports all of its parent");
}

#[test]
fn files_of_the_middle_have_unit_tests() {
    let mut untested = Vec::new();
    for folder in ["src/shard", "src/session"] {
        for (path, lines) in sources(folder) {
            let content = fs::read_to_string(root().join(&path)).unwrap();
            // Modules and re-exports alone can't be tested, and a folder's tests stand beside it.
            let has_code = lines.iter().any(|line| function(line).is_some());
            let beside = root().join(path.trim_end_matches(".rs")).join("tests.rs");
            let of_folder = path.ends_with("/mod.rs")
                && root().join(path.replace("mod.rs", "tests.rs")).exists();
            if has_code && !content.contains("#[test]") && !beside.exists() && !of_folder {
                untested.push(path);
            }
        }
    }
    listed(&untested, &[], "no unit test");
}

#[test]
fn the_shard_wires_and_does_little_else() {
    let (mut fields, mut methods) = (0, 0);
    for (_, lines) in sources("src/shard") {
        let mut rest = lines.iter();
        while let Some(line) = rest.next() {
            let is_struct = line.starts_with("pub struct Shard<") && line.ends_with('{');
            let is_impl = line.starts_with("impl<") && line.contains(" Shard<");
            if !is_struct && !is_impl {
                continue;
            }
            for line in rest.by_ref().take_while(|line| *line != "}") {
                let inner = line.strip_prefix("    ").filter(|inner| !inner.starts_with(' '));
                let Some(inner) = inner else { continue };
                let is_field = inner.ends_with(',') && inner.contains(": ");
                fields += usize::from(is_struct && is_field && !inner.starts_with('/'));
                methods += usize::from(is_impl && function(inner).is_some());
            }
        }
    }
    assert!(fields > 0 && methods > 0, "no Shard is found");
    assert!(fields <= SHARD_FIELDS_MAX, "Shard has {fields} fields, not {SHARD_FIELDS_MAX}");
    assert!(methods <= SHARD_METHODS_MAX, "Shard has {methods} methods, not {SHARD_METHODS_MAX}");
}

#[test]
fn functions_are_found_and_counted() {
    let lines = |text: &str| without_tests(text);
    let text = "\
impl A {
    pub(crate) const fn one(&self) -> u8 {
        1
    }
    fn two(&self) {}
    fn three(
        &self,
    );
}
async fn four() {
    if x {
    }
}
#[cfg(test)]
mod tests {
    fn five() {
    }
}
";
    let text = lines(text);
    let expected = vec![("one", 3), ("two", 1), ("three", 3), ("four", 4)];
    assert_eq!(functions(&text), expected);
}

#[test]
fn subjects_of_commits_are_checked() {
    let check = |subject: &str| {
        let mut child = Command::new(root().join("tools/commits"))
            .arg("--stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(subject.as_bytes()).unwrap();
        child.wait().unwrap().success()
    };
    for good in ["shard: flush outboxes", "config, cli: plain words", "README: a table\ndocs: one"]
    {
        assert!(check(good), "{good}");
    }
    let long = format!("shard: {}", "x".repeat(66));
    for bad in ["Flush outboxes", "shard:flush", "shard: ends.", &long, "docs: one\nNo area"] {
        assert!(!check(bad), "{bad}");
    }
}
