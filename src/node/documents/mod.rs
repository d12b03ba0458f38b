//! Documents that are written from the tables of the program, `docs/configuration.md` and
//! `docs/limits.md`, and the tests that hold the files to them. `tools/docs` writes them.

mod configuration;
mod limits;

use std::fs;
use std::path::{Path, PathBuf};

/// A path in the repository.
fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares a document with what its tables say; with `ROOST_WRITE_DOCS` it is written instead.
#[expect(clippy::disallowed_methods, reason = "how tools/docs has the files written")]
fn hold(path: &str, text: &str) {
    let file = in_repository(path);
    if std::env::var_os("ROOST_WRITE_DOCS").is_some() {
        fs::write(file, text).unwrap();
        return;
    }
    let stands = fs::read_to_string(file).unwrap_or_default();
    let differing = stands.lines().zip(text.lines()).position(|(stands, line)| stands != line);
    let line = differing.unwrap_or_else(|| stands.lines().count().min(text.lines().count()));
    let shown = |text: &str| text.lines().nth(line).unwrap_or("(the end)").to_owned();
    assert!(
        stands == text,
        "{path}:{} is stale: run tools/docs and commit what it writes\n- {}\n+ {}",
        line + 1,
        shown(&stands),
        shown(text)
    );
}

/// A text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A whole number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn numbers_are_grouped() {
    for (number, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_048_576, "1,048,576")] {
        assert_eq!(grouped(number), expected);
    }
}
