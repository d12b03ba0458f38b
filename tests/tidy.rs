//! Small promises about the files of the repository themselves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What the repository's own files are in; the rest is made by tools.
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
    let documents = texts().into_iter().filter(|(path, ..)| path.ends_with(".md"));
    for (path, _, content) in documents.filter(|(path, ..)| path != "ARCHITECTURE.md") {
        for (number, line) in content.lines().enumerate() {
            // A row of a table is one line whatever it holds.
            let columns = line.chars().count();
            if columns > 100 && !line.trim_start().starts_with('|') {
                wrong.push(format!("{path}:{}: {columns} columns", number + 1));
            }
        }
    }
    none(&wrong);
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
