//! Options of every layer: read from a file, the environment and flags, checked, and handed out as
//! typed sections. Nothing below this layer reads a configuration.
//!
//! ```text
//!  file (TOML, YAML, JSON) -> tree --.
//!  CENTRIFUGO_... , ROOST_... -------+--> layers (one table of options) --> build --> Config
//!  flags ----------------------------'            |
//!                                                 '--> errors (exit code 2), warnings
//! ```
//!
//! Every problem of a configuration is named at once, each with option, value and what was expected.
//! Options fall in classes (`table::Class`): what is built; what is harmless and isn't, which
//! warns; and what changes safety or delivery and isn't, which stops the start.

mod advice;
mod build;
pub(crate) mod explain;
mod file_value;
mod files;
mod hooks;
mod json;
mod layers;
mod migrate;
mod names;
mod nats;
mod options;
mod print;
mod redis;
mod renamed;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod tls;
mod transforms;
mod transports;
mod tree;
pub(crate) mod value;

/// What `docs/configuration.md` and `docs/limits.md` are written from.
#[cfg(test)]
pub(crate) mod documented {
    use super::names;
    use super::table::Class;
    pub(crate) use super::table::{OPTIONS, Opt, Place, places};

    /// The variable of an option or of a section.
    pub(crate) fn variable(path: &str) -> Option<String> {
        names::prefixed("ROOST_", path)
    }

    /// The answer to an option without effect that is set, and the reason; `None` for
    /// options that have one, and those that are accepted in silence.
    pub(crate) fn answer(row: &Opt) -> Option<(&'static str, &'static str)> {
        match row.class {
            Class::Built | Class::Silent(_) => None,
            Class::Harmless(why) => Some(("warning", why)),
            Class::Refused(why) => Some(("refused", why)),
            Class::RefusedWith(_, why) => Some(("refused", why)),
        }
    }
}

pub use self::hooks::Hooks;
pub use self::layers::ConfigError;
pub use self::options::{
    Admin, Api, Config, Demo, HttpServer, Internal, Io, ListenAt, Log, MemoryLimit, Pin, Roost,
    Shards, Tokens, Web, WebSocket,
};

use std::path::{Path, PathBuf};

pub use self::explain::explain;
pub use self::migrate::{
    Migrated, Version, migrate, migrate_variables, print_options, print_variables,
};
pub use self::nats::NatsOptions;
pub use self::redis::{Brokers, RedisOptions};
pub use self::tls::{Acme, ListenerTls, PairSource, Pem, TicketOptions, Tls};
use layers::{Report, Settings};
pub use print::{PrintFormat, print_defaults};
pub use transports::Transports;

/// The file that is read when none is named and this one is there.
pub const DEFAULT_FILE: &str = "config.json";

/// Secret of the development node, for tokens on one machine only.
pub const DEV_SECRET: &str = "roost-dev-secret";

/// The defaults of the development node.
const DEV_PRESET: &[(&str, &str)] = &[
    ("http_server.address", "127.0.0.1"),
    // Pages of this machine only: any other page in the developer's browser could publish, too.
    (
        "client.allowed_origins",
        "http://localhost http://localhost:* https://localhost https://localhost:* \
         http://127.0.0.1 http://127.0.0.1:*",
    ),
    ("client.allow_anonymous_connect_without_token", "true"),
    ("client.token.hmac_secret_key", DEV_SECRET),
    ("admin.enabled", "true"),
    ("roost.demo", "true"),
    ("websocket.compression", "true"),
    ("http_stream.enabled", "true"),
    ("sse.enabled", "true"),
    ("uni_websocket.enabled", "true"),
    ("uni_http_stream.enabled", "true"),
    ("uni_sse.enabled", "true"),
    ("long_poll.enabled", "true"),
    ("channel.without_namespace.allow_subscribe_for_client", "true"),
    ("channel.without_namespace.allow_subscribe_for_anonymous", "true"),
    ("channel.without_namespace.allow_publish_for_client", "true"),
    ("channel.without_namespace.allow_publish_for_anonymous", "true"),
    // Everything that a channel can have, so that a first program sees it without a file of options.
    ("channel.without_namespace.allow_history_for_client", "true"),
    ("channel.without_namespace.allow_history_for_anonymous", "true"),
    ("channel.without_namespace.allow_presence_for_client", "true"),
    ("channel.without_namespace.allow_presence_for_anonymous", "true"),
    ("channel.without_namespace.presence", "true"),
    ("channel.without_namespace.join_leave", "true"),
    ("channel.without_namespace.force_push_join_leave", "true"),
    ("channel.without_namespace.history_size", "100"),
    ("channel.without_namespace.history_ttl", "10m"),
    ("channel.without_namespace.force_recovery", "true"),
    ("channel.without_namespace.force_positioning", "true"),
    ("channel.without_namespace.allowed_delta_types", "fossil"),
    ("channel.without_namespace.allow_tags_filter", "true"),
    ("prometheus.enabled", "true"),
    ("health.enabled", "true"),
];

/// A configuration that may be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The options that hold from the start of a node to its end and differ from their defaults: name, and
    /// value as text. Two processes whose lists are equal may follow each other with the same connections.
    pub fixed: Vec<(String, String)>,
    /// The warnings for its owner, a line each.
    pub warnings: Vec<String>,
    /// The file that it came from, if one was read.
    pub origin: Option<PathBuf>,
}

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file named on the command line; else `ROOST_CONFIG` names one, else [`DEFAULT_FILE`] is
    /// read if it is there (but not by the development node).
    pub file: Option<PathBuf>,
    /// All variables.
    pub environment: Vec<(String, String)>,
    /// Flags, as pairs of path and text.
    pub flags: Vec<(&'static str, String)>,
    /// Put the development preset under it all.
    pub dev: bool,
}

/// Reads, checks and builds.
///
/// # Errors
/// Everything that is wrong. A named file that isn't there, or has nothing in it, is: it may be in the
/// middle of being replaced, and the defaults would take all that it grants from a running node.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut report = Report::default();
    let file = chosen_file(sources);
    let text = file.as_ref().and_then(|(path, named)| match read_options(path) {
        Ok(text) => Some((path.clone(), text)),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound && !named => None,
        Err(fault) => {
            report.errors.push(unreadable(path, &fault));
            None
        }
    });
    let name = text.as_ref().map(|(path, _)| path.display().to_string());
    let text = name.as_deref().zip(text.as_ref().map(|(_, text)| text.as_str()));
    let (config, fixed) = resolve_all(text, sources, &mut report);
    if sources.dev {
        report.advice.extend(warn_of_development(sources, name.as_deref()));
    }
    let closed = report.close(false);
    let warnings = closed.map_err(|f| ConfigError { json_log: config.log.json, ..f })?;
    Ok(Loaded { config, fixed, warnings, origin: name.map(PathBuf::from) })
}

/// A development node is what nobody means who has written a configuration.
fn warn_of_development(sources: &Sources, file: Option<&str>) -> Option<String> {
    let open =
        "anonymous clients may connect, subscribe and publish unless the options say otherwise";
    if let Some(file) = file {
        return Some(format!(
            "THIS IS A DEVELOPMENT NODE, with the options of {file}: {open}; without --dev it is a node \
             by that file alone"
        ));
    }
    if is_configured(sources) {
        return Some(format!(
            "THIS IS A DEVELOPMENT NODE, although keys are configured: {open}; without --dev it is a \
             node by its options alone"
        ));
    }
    Path::new(DEFAULT_FILE).exists().then(|| {
        format!("{DEFAULT_FILE} is here, and a development node doesn't read it: roost -c {DEFAULT_FILE}")
    })
}

/// Whether somebody has configured a node: a file is named, or a key is set by variables or flags. Without
/// that, `roost` alone is a development node.
pub fn is_configured(sources: &Sources) -> bool {
    let named =
        sources.environment.iter().any(|(name, path)| name == CONFIG_VARIABLE && !path.is_empty());
    if named || sources.file.is_some() {
        return true;
    }
    let mut settings = Settings::new();
    // Their faults are reported when they are loaded.
    let mut report = Report::default();
    settings.environment(&sources.environment, &mut report);
    settings.flags(&sources.flags, &mut report);
    KEYS.iter()
        .any(|key| settings.root.setting(key).is_some_and(|setting| !setting.value.is_nothing()))
}

/// Options that only a node for others has.
const KEYS: &[&str] = &[
    "admin.password",
    "admin.secret",
    "client.subscription_token.ecdsa_public_key",
    "client.subscription_token.hmac_previous_secret_key",
    "client.subscription_token.hmac_secret_key",
    "client.subscription_token.jwks_public_endpoint",
    "client.subscription_token.rsa_public_key",
    "client.token.ecdsa_public_key",
    "client.token.hmac_previous_secret_key",
    "client.token.hmac_secret_key",
    "client.token.jwks_public_endpoint",
    "client.token.rsa_public_key",
    "http_api.key",
];

/// Names a configuration file.
const CONFIG_VARIABLE: &str = "ROOST_CONFIG";

/// Checks a file by itself, without environment and flags. Returns the configuration and the warnings.
///
/// # Errors
/// Everything that is wrong, and with `strict` options that nobody knows, too.
pub fn check(file: &Path, strict: bool) -> Result<(Config, Vec<String>), ConfigError> {
    let name = file.display().to_string();
    let text = read_options(file).map_err(|fault| ConfigError {
        problems: vec![unreadable(file, &fault)],
        warnings: Vec::new(),
        json_log: false,
    })?;
    let mut report = Report::default();
    let config = resolve(Some((&name, &text)), &Sources::default(), &mut report);
    Ok((config, report.close(strict)?))
}

/// All layers over each other, checked and built. Only to be used when the report has no errors.
fn resolve(file: Option<(&str, &str)>, sources: &Sources, report: &mut Report) -> Config {
    resolve_all(file, sources, report).0
}

/// The same, and the options that a reload doesn't change ([`Loaded::fixed`]).
fn resolve_all(
    file: Option<(&str, &str)>,
    sources: &Sources,
    report: &mut Report,
) -> (Config, Vec<(String, String)>) {
    let mut settings = Settings::new();
    if sources.dev {
        settings.preset(DEV_PRESET, report);
    }
    if let Some((name, text)) = file {
        settings.file(name, text, report);
    }
    settings.environment(&sources.environment, report);
    settings.flags(&sources.flags, report);
    settings.judge(report);
    let config = build::build(&settings, report);
    report.advice.extend(advice::advice(&settings, &config));
    if let Some(Admin { password: None, insecure: false, .. }) = &config.web.admin
        && !sources.dev
    {
        let expected = "false, or true with admin.password";
        report.errors.push(settings.root.complaint("admin.enabled", expected));
    }
    if sources.dev && config.http_server.at.is_seen_from_outside() {
        report.errors.push(settings.root.complaint(
            "http_server.address",
            "a loopback address: the development node is open to everyone who reaches it; use \
             `roost serve` for others",
        ));
    }
    (config, settings.fixed())
}

/// The file to read, and whether somebody named it.
fn chosen_file(sources: &Sources) -> Option<(PathBuf, bool)> {
    if let Some(path) = &sources.file {
        return Some((path.clone(), true));
    }
    let named = sources.environment.iter().find(|(name, _)| name == CONFIG_VARIABLE);
    match named {
        Some((_, path)) if !path.is_empty() => Some((PathBuf::from(path), true)),
        _ if sources.dev => None,
        _ => Some((PathBuf::from(DEFAULT_FILE), false)),
    }
}

/// The text of a configuration file.
fn read_options(path: &Path) -> std::io::Result<String> {
    let text = files::read(path)?;
    match text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}').is_empty() {
        true => Err(std::io::Error::other("the file is empty")),
        false => Ok(text),
    }
}

fn unreadable(path: &Path, fault: &std::io::Error) -> String {
    let path = path.display();
    match fault.kind() {
        std::io::ErrorKind::NotFound => format!("{path}: no such file"),
        std::io::ErrorKind::IsADirectory => format!("{path}: a folder, expected a file"),
        _ => format!("{path}: {fault}"),
    }
}
