//! `roost config explain`: an option by any of its names, and everything there is to know about it.

use std::fmt::Write;

use super::names;
use super::renamed::{self, Fate};
use super::table::{Class, OPTIONS, Opt, Place, places};
use super::value::Kind;

/// An option, and where it stands.
#[derive(Clone, Debug)]
struct Found {
    /// From the root; entries of a list have `<name>` in it.
    path: String,
    row: &'static Opt,
    place: Option<&'static Place>,
}

/// The text about an option, a section, an old name, a variable or a flag.
///
/// # Errors
/// No option has such a name: a text with the nearest one.
pub fn explain(asked: &str) -> Result<String, String> {
    let name = asked.trim();
    if let Some(text) = by_path(name) {
        return Ok(text);
    }
    for prefix in ["ROOST_", "CENTRIFUGO_"] {
        let Some(own) = name.strip_prefix(prefix) else { continue };
        let named = all().into_iter().find(|found| {
            found.place.is_none_or(|place| !place.is_list)
                && names::prefixed(prefix, &found.path).as_deref() == Some(name)
        });
        if let Some(found) = named {
            return Ok(text(&found));
        }
        return explain(&own.to_lowercase()).map_err(|_| unknown(asked));
    }
    if let Some(flag) = name.strip_prefix("--") {
        let path = match flag {
            "port" | "address" => format!("http_server.{flag}"),
            "log-level" | "log_level" => "log.level".to_owned(),
            flag => flag.to_owned(),
        };
        let named = OPTIONS.iter().find(|row| row.flag().is_some_and(|flag| flag == path));
        return match named.and_then(|row| by_path(row.path)) {
            Some(text) => Ok(text),
            None => Err(unknown(asked)),
        };
    }
    let old = renamed::at_top(name, &is_known).or_else(|| {
        renamed::in_namespace(name).map(|fate| match fate {
            Fate::Moved(path) => Fate::Moved(format!("channel.without_namespace.{path}")),
            gone => gone,
        })
    });
    match old {
        Some(Fate::Gone(why)) => Ok(format!(
            "{name}: an option of Centrifugo before version 6 that has no place: {why}.\n"
        )),
        Some(Fate::Moved(path)) => match by_path(&path) {
            Some(text) => Ok(format!("{name} was its name before version 6.\n\n{text}")),
            None => Err(unknown(asked)),
        },
        None => Err(unknown(asked)),
    }
}

/// Whether a path from the root is an option, or lies below one of which nothing is built.
pub(crate) fn is_known(path: &str) -> bool {
    !find(path).is_empty()
        || OPTIONS.iter().any(|row| {
            let below = |rest: &str| rest.starts_with('.');
            matches!(row.kind, Kind::Any) && path.strip_prefix(row.path).is_some_and(below)
        })
        || places().iter().any(|place| place.path == path)
}

/// How much is built of the option at a path, and its argument; `None` for what is built or no option.
pub(crate) fn objection(path: &str) -> Option<(bool, &'static str)> {
    let covered = |row: &&'static Opt| {
        matches!(row.kind, Kind::Any)
            && path.strip_prefix(row.path).is_some_and(|rest| rest.starts_with('.'))
    };
    let row = find(path).first().map(|found| found.row).or_else(|| OPTIONS.iter().find(covered));
    match row?.class {
        Class::Built => None,
        Class::Silent(why) | Class::Harmless(why) => Some((false, why)),
        Class::Refused(why) | Class::RefusedWith(_, why) => Some((true, why)),
    }
}

/// All options, those of places with the place in front.
fn all() -> Vec<Found> {
    let root = OPTIONS.iter().map(|row| Found { path: row.path.to_owned(), row, place: None });
    let of_places = places().iter().flat_map(|place| {
        let entry = if place.is_list { "<name>." } else { "" };
        let found = move |row: &'static Opt| {
            let path = format!("{}.{entry}{}", place.path, row.path);
            Found { path, row, place: Some(place) }
        };
        place.rows.iter().map(found)
    });
    root.chain(of_places).collect()
}

/// The options of a path: with or without the name of an entry in it, in brackets or between dots.
fn find(path: &str) -> Vec<Found> {
    let is_same = |found: &Found| {
        if found.path == path {
            return true;
        }
        let Some(place) = found.place.filter(|place| place.is_list) else { return false };
        let Some(rest) = path.strip_prefix(place.path) else { return false };
        let ends = rest.strip_suffix(found.row.path);
        ends.is_some_and(|between| {
            let inner = between.trim_matches('.').trim_start_matches('[').trim_end_matches(']');
            between.ends_with('.') && !inner.contains('.')
        })
    };
    all().into_iter().filter(is_same).collect()
}

fn by_path(path: &str) -> Option<String> {
    let found = find(path);
    if let Some(found) = found.first() {
        return Some(text(found));
    }
    // The last part of a path, where only one or a few have it.
    let below = format!("{path}.");
    let section: Vec<Found> =
        all().into_iter().filter(|found| found.path.starts_with(&below)).collect();
    if !section.is_empty() {
        return Some(list(&format!("{path}: a section with these options.\n"), &section));
    }
    let ending = format!(".{path}");
    let mut ends: Vec<Found> = all()
        .into_iter()
        .filter(|found| found.row.is_built() && found.path.ends_with(&ending))
        .collect();
    match ends.len() {
        0 => None,
        1 => ends.pop().map(|found| text(&found)),
        _ => Some(list(&format!("{path}: several options end with this name.\n"), &ends)),
    }
}

fn list(title: &str, options: &[Found]) -> String {
    let mut text = title.to_owned();
    for Found { path, row, .. } in options {
        let doc = if row.is_built() { row.doc } else { "Without effect in roost." };
        let _ = write!(text, "\n{path} = {}\n{}", row.default, indented(doc));
    }
    text
}

/// All about one option.
fn text(found: &Found) -> String {
    let Found { path, row, place } = found;
    let mut text = format!("{path}\n");
    match row.class {
        Class::Built => text += &indented(row.doc),
        Class::Silent(why) => text += &indented(&format!("Accepted, without effect: {why}.")),
        Class::Harmless(why) => {
            text += &indented(&format!("Accepted with a warning, without effect: {why}."));
        }
        Class::Refused(why) => {
            text +=
                &indented(&format!("Refused: a node with it does not start. {}.", sentence(why)));
        }
        Class::RefusedWith(other, why) => {
            let said = format!("Refused with {other} = true: {why}.");
            text += &indented(&said);
        }
    }
    if let Some(Place { about, .. }) = place {
        text += &indented(&format!("Section: {about}"));
    }
    let mut line = |name: &str, value: &str| {
        let _ = write!(text, "\n  {name:<10} {value}");
    };
    line("type", &row.kind.expected());
    line("default", if row.default.is_empty() { "nothing" } else { row.default });
    for (name, prefix) in [("variable", "ROOST_"), ("", "CENTRIFUGO_")] {
        let path = path.replace("<name>", "NAME");
        if let Some(variable) = names::prefixed(prefix, &path) {
            line(name, &variable);
        }
    }
    match (place, row.flag()) {
        (None, Some(flag)) => line("flag", &format!("--{flag}")),
        _ => line("flag", "none"),
    }
    if row.is_built() {
        let reload = match is_reloaded(path) {
            true => "yes: a reload (SIGHUP, `roost reload`) puts it into effect",
            false => "no: a change needs a restart",
        };
        line("reload", reload);
    }
    text + "\n"
}

fn sentence(why: &str) -> String {
    let mut letters = why.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Lines of at most 78 columns, with two in front.
fn indented(doc: &str) -> String {
    const COLUMNS: usize = 76;
    let mut text = String::new();
    let mut column = 0;
    for word in doc.split(' ') {
        let length = word.chars().count();
        if column == 0 || column + 1 + length > COLUMNS {
            text += if column == 0 { "  " } else { "\n  " };
            column = length;
        } else {
            text.push(' ');
            column += 1 + length;
        }
        text += word;
    }
    text + "\n"
}

fn unknown(asked: &str) -> String {
    format!("{asked}: no option has this name{}", suggestion(asked))
}

/// `; did you mean NAME?`, by the names of today and those before version 6.
pub(super) fn suggestion(unknown: &str) -> String {
    let name = unknown.trim_start_matches("--").to_lowercase();
    match renamed::at_top(&name, &is_known) {
        Some(Fate::Moved(path)) => return format!("; did you mean {path}?"),
        Some(Fate::Gone(why)) => return format!("; it has no place today: {why}"),
        None => {}
    }
    if let Some(Fate::Moved(path)) = renamed::in_namespace(&name) {
        return format!("; did you mean channel.without_namespace.{path}?");
    }
    let all = all();
    names::nearest(&name, all.iter().map(|found| found.path.as_str()), ".")
}

/// Whether a reload puts an option into effect. Held against the node's own comparison of configurations by
/// `reload_is_what_the_node_does`.
pub(crate) fn is_reloaded(path: &str) -> bool {
    const SECTIONS: [&str; 11] = [
        "channel.",
        "client.connect_code_to_unidirectional_disconnect.",
        "client.proxy.",
        "client.subscription_token.",
        "client.token.",
        "http_api.error_mode",
        "http_api.insecure",
        "http_api.key",
        "proxies.",
        "roost.tls.",
        "rpc.",
    ];
    const OPTIONS: [&str; 24] = [
        "client.allowed_origins",
        "client.channel_limit",
        "client.concurrency",
        "client.connect_include_server_time",
        "client.connection_limit",
        "client.connection_rate_limit",
        "client.expired_close_delay",
        "client.expired_sub_close_delay",
        "client.history_max_publication_limit",
        "client.insecure_skip_token_signature_verify",
        "client.queue_max_size",
        "client.recovery_max_publication_limit",
        "client.stale_close_delay",
        "http_server.internal_tls.cert_pem",
        "http_server.internal_tls.client_ca_pem",
        "http_server.internal_tls.key_pem",
        "http_server.tls.cert_pem",
        "http_server.tls.client_ca_pem",
        "http_server.tls.key_pem",
        "http_server.tls_autocert.email",
        "http_server.tls_autocert.host_whitelist",
        "http_server.tls_autocert.server_name",
        "log.level",
        "roost.tls_ticket_keys",
    ];
    let is_switch = path == "client.subscription_token.enabled";
    let in_section = SECTIONS.iter().any(|section| path.starts_with(section));
    !is_switch && (in_section || OPTIONS.contains(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_by_each_of_its_names() {
        for name in [
            "client.channel_limit",
            "channel_limit",
            "client_channel_limit",
            "ROOST_CLIENT_CHANNEL_LIMIT",
            "CENTRIFUGO_CLIENT_CHANNEL_LIMIT",
            "--client.channel_limit",
        ] {
            let text = explain(name).unwrap();
            for part in [
                "client.channel_limit\n  Maximum number of subscriptions",
                "type       a whole number from 1",
                "default    128",
                "variable   ROOST_CLIENT_CHANNEL_LIMIT",
                "flag       --client.channel_limit",
                "reload     yes",
            ] {
                assert!(text.contains(part), "{name}: {text}");
            }
        }
        for (name, part) in [
            ("--port", "http_server.port\n"),
            ("CENTRIFUGO_TOKEN_HMAC_SECRET_KEY", "client.token.hmac_secret_key\n"),
            ("roost.memory_limit", "variable   ROOST_MEMORY_LIMIT\n"),
            ("channel.namespaces.history_size", "ROOST_CHANNEL_NAMESPACES_NAME_HISTORY_SIZE"),
            ("channel.namespaces[chat].history_size", "channel.namespaces.<name>.history_size\n"),
            ("channel.without_namespace.presence", "reload     yes"),
            ("http_server.port", "reload     no"),
            ("http_server.tls", "http_server.tls.cert_pem = "),
            ("history_ttl", "several options end with this name"),
            ("webtransport.enabled", "Refused: a node with it does not start."),
            ("sockjs_url", "has no place: SockJS"),
        ] {
            let text = explain(name).unwrap_or_else(|fault| panic!("{fault}"));
            assert!(text.contains(part), "{name}: {text}");
        }
    }

    #[test]
    fn unknown_names_have_a_suggestion() {
        for (name, part) in [
            ("client.chanel_limit", "did you mean client.channel_limit?"),
            ("--memory-limt", "no option has this name"),
            ("nonsense", "no option has this name"),
        ] {
            let fault = explain(name).unwrap_err();
            assert!(fault.contains(part), "{fault}");
        }
    }

    #[test]
    fn each_option_is_explained() {
        for Found { path, .. } in all() {
            assert!(explain(&path).is_ok(), "{path}");
        }
    }

    #[test]
    fn lines_fit_a_terminal() {
        for line in explain("roost.idle_timeout").unwrap().lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
