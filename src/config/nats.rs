//! The options of a broker in NATS.

use percent_encoding::percent_decode_str;

use super::layers::{Report, Scope};
use super::redis::security;
use crate::cluster::nats::streams::Keeping;
use crate::cluster::nats::{Credentials, Place};
use crate::cluster::servers::Security;
use crate::edge::subjects::SubjectRules;

/// NATS as a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsOptions {
    /// Servers of one cluster.
    pub servers: Vec<(Place, Credentials)>,
    /// Prefix of all subjects.
    pub prefix: String,
    /// Time for a connection to be made.
    pub dial_timeout_ms: u64,
    /// Time for the server to take what is sent.
    pub write_timeout_ms: u64,
    /// Clients may subscribe to patterns.
    pub wildcards: bool,
    /// In raw mode: the prefix of the subjects of channels, and what is replaced in names.
    pub raw: Option<(String, Vec<(String, String)>)>,
    /// One subscription takes all channels.
    pub takes_all: bool,
    /// TLS, whatever the server wants.
    pub security: Option<Security>,
    /// Histories are in JetStream.
    pub history: Option<Keeping>,
}

impl NatsOptions {
    /// How the names of channels become subjects.
    pub fn rules(&self) -> SubjectRules {
        match &self.raw {
            Some((prefix, replacements)) => {
                SubjectRules::new(self.wildcards, prefix, replacements.clone())
            }
            None => {
                SubjectRules::new(self.wildcards, &format!("{}.client.", self.prefix), Vec::new())
            }
        }
    }
}

/// Reads the section.
pub(super) fn nats(scope: &Scope, takes_all: bool, report: &mut Report) -> NatsOptions {
    let mut timeout = |path: &str| {
        if scope.ms(path) == 0 {
            report.errors.push(scope.complaint(path, "more than 0"));
        }
        scope.ms(path)
    };
    let (dial_timeout_ms, write_timeout_ms) = (timeout("dial_timeout"), timeout("write_timeout"));
    let mut security = security(scope, "tls", report);
    if security.as_ref().is_some_and(|security| security.insecure) {
        let danger = "anybody between here and NATS can read and change everything";
        report.warnings.push(scope.remark("tls.insecure_skip_verify", danger));
    }
    let servers = match servers(&scope.text("url")) {
        Ok((servers, is_secure)) => {
            if is_secure {
                security.get_or_insert_default();
            }
            servers
        }
        // The text may have a password.
        Err(fault) => {
            report.errors.push(format!("{}: {fault}", scope.full("url")));
            Vec::new()
        }
    };
    let raw = scope.flag("raw_mode.enabled").then(|| {
        let replacements: std::collections::BTreeMap<String, String> =
            serde_json::from_value(scope.json("raw_mode.channel_replacements")).unwrap_or_default();
        (scope.text("raw_mode.prefix"), replacements.into_iter().collect())
    });
    let history = scope.flag("jetstream.enabled").then(|| Keeping {
        in_files: scope.text("jetstream.storage") == "file",
        replicas: scope.integer("jetstream.replicas") as u8,
        bytes_max: scope.integer("jetstream.max_bytes").cast_unsigned(),
        manages: scope.flag("jetstream.manage_streams"),
    });
    if history.is_some() && raw.is_some() {
        let expected =
            "false with raw_mode: raw messages have no publishers, tags and times to keep";
        report.errors.push(scope.complaint("jetstream.enabled", expected));
    }
    let options = NatsOptions {
        servers,
        prefix: scope.text("prefix"),
        dial_timeout_ms,
        write_timeout_ms,
        wildcards: scope.flag("allow_wildcards"),
        raw,
        takes_all,
        security,
        history,
    };
    let is_subject = |prefix: &str| SubjectRules::new(false, "", Vec::new()).carries(prefix);
    if !is_subject(&options.prefix) {
        report.errors.push(scope.complaint("prefix", "a subject of NATS, such as \"centrifugo\""));
    }
    if let Some((prefix, _)) = &options.raw
        && !prefix.is_empty()
        && !is_subject(&format!("{prefix}x"))
    {
        let expected = "the beginning of a subject of NATS, such as \"raw.\", or nothing";
        report.errors.push(scope.complaint("raw_mode.prefix", expected));
    }
    options
}

/// Servers with commas between them, and whether TLS is wanted.
fn servers(text: &str) -> Result<(Vec<(Place, Credentials)>, bool), String> {
    let (mut all, mut is_secure) = (Vec::new(), false);
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (scheme, rest) = part.split_once("://").unwrap_or(("nats", part));
        match scheme {
            "nats" => {}
            "tls" => is_secure = true,
            other => return Err(format!("{other}:// is not known")),
        }
        let (user, place) =
            rest.rsplit_once('@').map_or((None, rest), |(user, at)| (Some(user), at));
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let credentials = match user.map(|user| user.split_once(':').ok_or(user)) {
            None => Credentials::default(),
            Some(Ok((user, password))) => Credentials {
                user: decode(user),
                password: decode(password),
                ..Credentials::default()
            },
            Some(Err(token)) => Credentials { token: decode(token), ..Credentials::default() },
        };
        let place = Place::read(place.trim_end_matches('/')).ok_or("expected host and port")?;
        all.push((place, credentials));
    }
    // Those of the first one do for all that have none.
    let first = all.first().map(|(_, credentials)| credentials.clone()).unwrap_or_default();
    for (_, credentials) in &mut all {
        if *credentials == Credentials::default() {
            *credentials = first.clone();
        }
    }
    if all.is_empty() {
        Err("expected at least one server".to_owned())
    } else {
        Ok((all, is_secure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_servers_and_credentials() {
        let (all, is_secure) = servers("nats://u%40x:p%3Aw@a:1, b , tls://token@[::1]:3/").unwrap();
        assert!(is_secure);
        let places: Vec<String> = all.iter().map(|(place, _)| place.to_string()).collect();
        assert_eq!(places, ["a:1", "b:4222", "[::1]:3"]);
        assert_eq!((&*all[0].1.user, &*all[0].1.password), ("u@x", "p:w"));
        assert_eq!(all[1].1, all[0].1);
        assert_eq!((&*all[2].1.token, &*all[2].1.user), ("token", ""));
        assert!(!servers("localhost:4222").unwrap().1);
    }

    #[test]
    fn urls_that_cannot_work_are_refused() {
        for (text, fault) in [
            ("", "expected at least one server"),
            ("ws://a", "ws:// is not known"),
            ("a:b", "expected host and port"),
            ("nats://a:0", "expected host and port"),
        ] {
            assert_eq!(servers(text).unwrap_err(), fault, "{text}");
        }
    }
}
