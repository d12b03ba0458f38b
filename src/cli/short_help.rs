//! `roost -h`: one screen, where `--help` has each of some hundred options.

use std::ffi::OsString;

use clap::Command;

/// Options of a node that most people need.
macro_rules! usual_options {
    () => {
        "\
  -c, --config FILE          configuration (TOML, YAML, JSON)  [ROOST_CONFIG]
  -a, --address ADDRESS      address to listen on  [all]
  -p, --port PORT            port to listen on  [8000]
      --dev                  a development node, open to this machine
      --log-level LEVEL      none, trace, debug, info, warn or error  [info]
      --shards N             threads that hold connections  [cores]
      --memory-limit SIZE    memory that the node may use  [80%]
      --tls-self-signed      speak TLS, for trials
"
    };
}

/// Commands, the options that most people need, and where the rest is: 24 lines of 80 columns.
const SCREEN: &str = concat!(
    "\
roost pushes messages to browsers, phones and devices.

Usage: roost [COMMAND] [OPTIONS]     without a command and a configuration: a
                                     development node on http://localhost:8000
Commands:
  serve                      run a node
  config init|check|explain  write a configuration, check one, explain an option
  config migrate FILE        translate a configuration of Centrifugo 3 to 5
  token, plan, tune          print a token; size a system; prepare this host
  health, status, top        whether a node can serve; its figures; a live view
  reload, upgrade            new configuration; new process, connections stay
Options of a node:
",
    usual_options!(),
    "\
Examples: roost config init && roost serve -c roost.toml
          roost token --user 42 -c roost.toml
All options: roost --help, roost config explain NAME; more: roost COMMAND -h
"
);

/// Options of the node are 250, so `roost serve -h` is a screen, too.
const OF_SERVE: &str = concat!(
    "\
Run a node.

Usage: roost serve [OPTIONS]

",
    usual_options!(),
    "
All options: roost serve --help, roost config explain NAME
"
);

/// The command line whose help is short where `-h` is among the arguments. `--help` has it all.
pub(super) fn in_place(command: Command, arguments: &[OsString]) -> Command {
    let has = |flag: &str| arguments.iter().skip(1).any(|argument| argument == flag);
    if !has("-h") || has("--help") {
        return command;
    }
    command.override_help(SCREEN).mut_subcommand("serve", |serve| serve.override_help(OF_SERVE))
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;
    use crate::cli::command;

    fn help(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let fault = in_place(command(), &words).try_get_matches_from(&words).unwrap_err();
        assert_eq!(fault.kind(), ErrorKind::DisplayHelp, "{line}");
        fault.to_string()
    }

    #[test]
    fn the_short_help_is_a_screen() {
        for text in [SCREEN, OF_SERVE] {
            assert!(text.lines().count() <= 24, "{} lines", text.lines().count());
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
        assert_eq!(help("roost -h"), SCREEN);
        assert_eq!(help("roost serve -h"), OF_SERVE);
        assert!(help("roost --help").lines().count() > 200);
        assert!(help("roost health -h").contains("--timeout"));
    }

    #[test]
    fn the_short_help_names_what_is_there() {
        let root = command();
        let words = SCREEN.split(|c: char| c.is_whitespace() || "[]|,;".contains(c));
        let has = |word: &str| root.find_subcommand(word).is_some();
        for name in [
            "serve", "config", "token", "plan", "tune", "health", "status", "top", "reload",
            "upgrade",
        ] {
            assert!(words.clone().any(|word| word == name) && has(name), "{name}");
        }
        let flag = |word: &str| {
            let named = |argument: &clap::Arg| {
                let long = argument.get_long_and_visible_aliases().unwrap_or_default();
                long.contains(&word.trim_start_matches("--"))
            };
            root.get_arguments().any(named)
        };
        let flags: Vec<&str> = words.filter(|word| word.starts_with("--")).collect();
        for word in flags {
            assert!(matches!(word, "--help" | "--user") || flag(word), "{word}");
        }
    }
}
