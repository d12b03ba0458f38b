//! `docs/configuration.md`: every option, from the option table.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{cell, grouped, hold};
use crate::config::documented::{self, OPTIONS, Opt, Place, places, variable};
use crate::config::explain::is_reloaded;
use crate::config::value::Kind;
use crate::config::{self, Loaded, Sources};
use crate::node::serve;

const INTRODUCTION: &str = "\
# Configuration

Written by `tools/docs` from the option table of the program (`src/config/table.rs`); a test fails
when it is stale. Names, types and defaults are those of a Centrifugo configuration, and `roost.*`
are roost's own. `roost config default` prints the same options as a file (`--format toml`, `json`
or `yaml`), and `roost config check FILE` reports unknown, wrong and refused options.

An option is set, from the weakest to the strongest:

1. by its default;
2. in a file (TOML, JSON or YAML): `roost -c FILE`, or `ROOST_CONFIG`;
3. by an environment variable with `CENTRIFUGO_`, then by one with `ROOST_`. The tables show the
   second; the first is the same with `CENTRIFUGO_` in its place, except for `roost.*`, which have
   only `ROOST_`. In a variable, lists are separated by spaces, and lists of objects are JSON;
4. by a flag: `--` and the path (`--client.channel_limit 10`); for `roost.*` the name alone, with
   dashes (`--memory-limit 4GiB`).

Durations are texts such as `\"25s\"`, `\"1h30m\"` or `\"300ms\"`.

**reload**: *yes* marks options that a `SIGHUP` puts into effect while the node runs; the others
need a restart, and the log names their section when they have changed.
";

const WITHOUT_EFFECT: &str = "Centrifugo's options without effect";

/// The type of an option, in a few words.
fn kind(kind: Kind) -> String {
    let choices = |choices: &[&str]| {
        let named = choices.iter().map(|choice| format!("`{choice:?}`"));
        named.collect::<Vec<_>>().join(", ")
    };
    match kind {
        Kind::Bool => "boolean".into(),
        Kind::Integer(min, max) if max == i64::MAX => format!("integer from {min}"),
        Kind::Integer(min, max) if max == i64::from(i32::MAX) => format!("integer from {min}"),
        Kind::Integer(min, max) => {
            let grouped = |number: i64| match u64::try_from(number) {
                Ok(number) => grouped(number),
                Err(_) => number.to_string(),
            };
            format!("integer, {} to {}", grouped(min), grouped(max))
        }
        Kind::Text => "text".into(),
        Kind::Choice(of) => format!("one of {}", choices(of)),
        Kind::List => "list of texts".into(),
        Kind::Choices(of) => format!("list of {}", choices(of)),
        Kind::Duration => "duration".into(),
        Kind::DurationOrOff => "duration or -1".into(),
        Kind::Checked(_, expected) | Kind::Json(_, expected) => expected.into(),
        Kind::Any => "any".into(),
    }
}

/// The heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// The variable of an option of a place; in a list the name of the entry stands in it.
fn variable_in(place: &Place, row: &Opt) -> String {
    let name = if place.is_list { "<NAME>_" } else { "" };
    let section = variable(place.path).unwrap_or_default();
    let option = row.path.to_uppercase().replace(['.', '-'], "_");
    format!("{section}_{name}{option}")
}

fn head(text: &mut String) {
    *text += "\n| option | type | default | variable | reload | meaning |\n";
    *text += "| --- | --- | --- | --- | --- | --- |\n";
}

fn line(text: &mut String, whole: &str, name: &str, variable: &str, row: &Opt) {
    let reload = if is_reloaded(whole) { "yes" } else { "" };
    let (kind, default, doc) = (kind(row.kind), row.default, row.doc);
    let cells = [
        &format!("<a id=\"{whole}\"></a>`{name}`"),
        &kind,
        &format!("`{default}`"),
        &format!("`{variable}`"),
        reload,
        doc,
    ];
    let cells: Vec<String> = cells.iter().map(|text| cell(text)).collect();
    let _ = writeln!(text, "| {} |", cells.join(" | ").replace("|  |", "| |"));
}

/// The sections of a table, in its order, each with its options that do something.
fn sections(rows: &'static [Opt]) -> Vec<(&'static str, Vec<&'static Opt>)> {
    let mut sections: Vec<(&str, Vec<&Opt>)> = Vec::new();
    for row in rows.iter().filter(|row| row.is_built()) {
        let section = row.path.rsplit_once('.').map_or("", |(section, _)| section);
        match sections.iter_mut().find(|(other, _)| *other == section) {
            Some((_, rows)) => rows.push(row),
            None => sections.push((section, vec![row])),
        }
    }
    sections
}

fn document() -> String {
    let (mut body, mut headings) = (String::new(), Vec::new());
    let mut begin = |body: &mut String, heading: &str| {
        headings.push(heading.to_owned());
        let _ = write!(body, "\n## {heading}\n");
    };
    for (section, rows) in sections(OPTIONS) {
        begin(&mut body, if section.is_empty() { "Top level" } else { section });
        head(&mut body);
        for row in rows {
            let (_, name) = row.path.rsplit_once('.').unwrap_or(("", row.path));
            line(&mut body, row.path, name, &variable(row.path).unwrap_or_default(), row);
        }
    }
    for place in places() {
        let Place { path, about, like, rows, is_list } = place;
        begin(&mut body, path);
        let _ = write!(body, "\n{about}");
        if *is_list {
            let example = variable(path).unwrap_or_default();
            let _ = write!(
                body,
                "\n\nA list of sections. `{example}` names them, separated by spaces,\n\
                 or holds them as JSON; `<NAME>` in a variable is such a name in capitals."
            );
        }
        body.push('\n');
        if !like.is_empty() {
            let _ = writeln!(body, "\nOptions as in [{like}](#{}).", anchor(like));
            continue;
        }
        head(&mut body);
        for row in rows.iter().filter(|row| row.is_built()) {
            let whole = format!("{path}.{}", row.path);
            line(&mut body, &whole, row.path, &variable_in(place, row), row);
        }
    }
    body += &without_effect();
    let mut text = String::from(INTRODUCTION);
    // A table, since some links are longer than a line may be.
    text += "\n| section |\n| --- |\n";
    headings.push(WITHOUT_EFFECT.to_owned());
    for heading in headings {
        let _ = writeln!(text, "| [{heading}](#{}) |", anchor(&heading));
    }
    text + &body
}

/// Options of a Centrifugo configuration that are accepted with a warning or refused.
fn without_effect() -> String {
    let mut text = format!("\n## {WITHOUT_EFFECT}\n");
    text += "\nA *warning* starts the node all the same: neither safety nor delivery change. A *refused*\n\
         option stops the start when it is set to anything but its default.\n\n\
         | option | answer | reason |\n| --- | --- | --- |\n";
    let mut seen = BTreeSet::new();
    let roots = OPTIONS.iter().map(|row| (row.path.to_owned(), row));
    let placed = places().iter().filter(|place| place.like.is_empty()).flat_map(|place| {
        place.rows.iter().map(move |row| (format!("{}.{}", place.path, row.path), row))
    });
    for (path, row) in roots.chain(placed) {
        let Some((answer, why)) = documented::answer(row) else { continue };
        if seen.insert(path.clone()) {
            let _ = writeln!(text, "| `{path}` | {answer} | {} |", cell(why));
        }
    }
    text
}

#[test]
fn the_configuration_is_documented() {
    hold("docs/configuration.md", &document());
}

#[test]
fn every_option_has_an_anchor_of_its_own() {
    let text = document();
    for row in OPTIONS.iter().filter(|row| row.is_built()) {
        assert_eq!(text.matches(&format!("<a id=\"{}\">", row.path)).count(), 1, "{}", row.path);
    }
    for (at, _) in text.match_indices("](#") {
        let target = text[at + 3..].split(')').next().unwrap();
        let headings = text.lines().filter_map(|line| line.strip_prefix("## "));
        assert!(headings.map(anchor).any(|anchor| anchor == target), "no heading for #{target}");
    }
}

/// A configuration with one variable set.
fn with(name: &str, value: &str) -> Option<config::Config> {
    let environment = vec![(name.to_owned(), value.to_owned())];
    let sources = Sources { file: None, environment, flags: Vec::new(), dev: false };
    config::load(&sources).ok().map(|Loaded { config, .. }| config)
}

/// Values that an option of this kind may have.
fn values(kind: Kind) -> Vec<String> {
    match kind {
        Kind::Bool => vec!["true".into(), "false".into()],
        Kind::Integer(min, max) => {
            [min, min + 1, 3, 7, 1 << 20, max].iter().map(i64::to_string).collect()
        }
        Kind::Text => vec!["some".into(), "127.0.0.1".into(), "8123".into()],
        Kind::Choice(of) => of.iter().map(|choice| (*choice).to_owned()).collect(),
        Kind::List => vec!["https://example.com".into(), "127.0.0.1".into()],
        Kind::Choices(of) => vec![of[0].to_owned()],
        Kind::Duration | Kind::DurationOrOff => vec!["3s".into(), "17s".into(), "100h".into()],
        Kind::Checked(..) => {
            ["/other", "3", "0600", "70%", "http://127.0.0.1/"].map(str::to_owned).into()
        }
        Kind::Json(..) | Kind::Any => Vec::new(),
    }
}

#[test]
fn reload_is_what_the_node_does() {
    let nothing = with("ROOST_PID_FILE", "").unwrap();
    let (mut reloaded, mut restarted, mut wrong) = (0, 0, Vec::new());
    // Whether there are keys of their own is compared where keys are replaced: it needs a restart.
    let compared = |row: &&Opt| row.is_built() && row.path != "client.subscription_token.enabled";
    for row in OPTIONS.iter().filter(compared) {
        let name = variable(row.path).unwrap();
        for value in values(row.kind) {
            let Some(config) = with(&name, &value) else { continue };
            let (at_once, at_start) = serve::differences(&nothing, &config);
            if at_once.is_empty() && at_start.is_empty() {
                continue;
            }
            let expected = is_reloaded(row.path);
            if at_start.is_empty() != expected {
                wrong.push(format!("{} = {value}: {at_once:?} {at_start:?}", row.path));
            }
            *(if expected { &mut reloaded } else { &mut restarted }) += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(reloaded > 30 && restarted > 60, "only {reloaded} and {restarted} were compared");
}
