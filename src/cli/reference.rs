//! `docs/command-line.md`, written from the command line itself by `tools/docs`; a test fails while it is stale.

use std::fmt::Write;
use std::path::Path;

use clap::{Arg, Command};

use super::command;
use crate::config::table::OPTIONS;

const INTRODUCTION: &str = "\
# Command line

Written by `tools/docs` from the program's own definition; a test fails when it is stale.

`roost -h` is one screen, `roost --help` has every option. Without a command, a configuration file
and keys, `roost` is a development node; with a file (`-c`, `ROOST_CONFIG`) or a key it is the same
as `roost serve`. Options of a node ([configuration.md](configuration.md)) stand before or behind
`serve`, and `health`, `status`, `top` and `reload` take them, too, to find the node: they read the
same file and the same variables as the node does.

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done; for `health`: the node can serve; for `config check`: the file can be used |
| 1 | the command could not do its work: the node is away or not healthy, a reload or an upgrade failed, a file exists, `tune` found something too low, `config migrate --strict` found an option without a place |
| 2 | a mistake in the command line, in a variable or in a file; the message names the option, and the file and line where there is one |

Results go to standard output, everything else to standard error.

## Finding the node

`--url` wins. Without it the address is that of the configuration, with loopback in the place of an
unspecified one, and the internal port where there is one. A certificate is not compared with such
an address, which is this machine's own; one of `--url` has to be signed by the machine's
authorities or by `--ca`. A PROXY header is sent where the listener expects one. A password is
`--password`, or `admin.password` of the configuration; of a development node, `--url` takes the
link that it printed.

`reload` goes over the admin API, whose answer has the outcome. Without it the options are checked
first, and then `SIGHUP` is sent to the process that holds `pid_file` (or `--pid`); a fault that
only the running node finds is in its log. `--systemd UNIT` leaves it to systemd.

`upgrade` starts `serve` with the same options, waits until that process has taken over at
`roost.takeover`, and names connections, bytes and pause; see
[guides/upgrade.md](guides/upgrade.md).

In `top`, `s` or the right arrow sorts by the next column, the left arrow by the last one, `r`
reverses, `p` or space pauses, `q` ends. It is one viewer of the figures that the node publishes
once a second while somebody looks, and requests nothing beside.
";

fn is_option_of_node(argument: &Arg) -> bool {
    let id = argument.get_id().as_str();
    id == "config" && argument.get_short() == Some('c') && argument.get_long() == Some("config")
        || OPTIONS.iter().any(|row| row.path == id)
}

fn name_of(argument: &Arg) -> String {
    let value = argument.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    let takes = argument.get_action().takes_values();
    let value = if takes { format!(" {value}") } else { String::new() };
    match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("`-{short}`, `--{long}{value}`"),
        (None, Some(long)) => format!("`--{long}{value}`"),
        (Some(short), None) => format!("`-{short}{value}`"),
        (None, None) => format!("`{}`", value.trim().trim_matches(['<', '>']).to_uppercase()),
    }
}

fn put(text: &mut String, path: &str, command: &Command) {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = write!(text, "\n## {path}\n\n{}\n", wrapped(&format!("{about}.")));
    let has_options = command.get_arguments().any(is_option_of_node);
    let own = command.get_arguments().filter(|argument| {
        let is_config_alone = argument.get_id() == "config" && !takes_node_options(command);
        (!is_option_of_node(argument) || is_config_alone)
            && !matches!(argument.get_id().as_str(), "help" | "version")
    });
    let mut rows = String::new();
    for argument in own {
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let defaults = argument.get_default_values().iter().map(|value| value.to_string_lossy());
        let default = defaults.collect::<Vec<_>>().join(" ");
        let hide = default.is_empty() || !argument.get_action().takes_values();
        let default = if hide { String::new() } else { format!("`{default}`") };
        let cells = [name_of(argument), default, help].map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(rows, "| {} |", cells.join(" | ").replace("|  |", "| |"));
    }
    if !rows.is_empty() {
        let _ = write!(text, "\n| argument | default | meaning |\n| --- | --- | --- |\n{rows}");
    }
    if has_options && takes_node_options(command) {
        *text += "\nAnd the options of a node: `-c`, `-a`, `-p` and all others.\n";
    }
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        put(text, &format!("{path} {}", inner.get_name()), inner);
    }
}

fn takes_node_options(command: &Command) -> bool {
    command.get_arguments().any(|argument| argument.get_id() == "http_server.port")
}

/// Lines of at most 100 columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.trim_end_matches("..").split_whitespace() {
        let last = lines.len() - 1;
        if lines[last].len() + word.len() + 1 > 100 {
            lines.push(word.to_owned());
        } else {
            let gap = if lines[last].is_empty() { "" } else { " " };
            lines[last] += &format!("{gap}{word}");
        }
    }
    lines.join("\n")
}

fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    let root = command();
    for inner in root.get_subcommands().filter(|inner| inner.get_name() != "help") {
        put(&mut text, &format!("roost {}", inner.get_name()), inner);
    }
    text
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how tools/docs has the file written")]
fn the_document_is_that_of_the_program() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/command-line.md");
    let text = document();
    if std::env::var_os("ROOST_WRITE_DOCS").is_some() {
        std::fs::write(file, text).unwrap();
        return;
    }
    let stands = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        stands == text,
        "docs/command-line.md is stale: run tools/docs and commit what it writes"
    );
}

#[test]
fn every_command_is_documented() {
    let text = document();
    for name in ["serve", "health", "config init", "config migrate", "gentoken", "plan", "top"] {
        assert!(text.contains(&format!("\n## roost {name}\n")), "{name}");
    }
    assert!(text.lines().all(|line| line.len() <= 100 || line.starts_with('|')), "{text}");
}
