//! Histories in JetStream: one stream for each namespace with history, and the requests that make, read and empty
//! it.
//!
//! | subject | content |
//! | --- | --- |
//! | `P.js.NS.CH` | publications of a channel with their payloads; republished to `P.client.CH` |
//! | `P.jsr.NS.CH` | the sequence up to which the history of a channel was removed, in digits |
//!
//! The offset of a publication is its sequence in the stream, which grows but is not dense for a channel. What came
//! before it in its channel is in the header `Nats-Last-Sequence` when it is republished. The oldest one that is kept
//! has no such neighbour, so a stream keeps one publication more than a namespace wants: the oldest shows what
//! the next one follows, and where there are fewer the first one is the channel's first.
//!
//! The newest publications stay for as long as positions do: a channel whose history is over in the eyes of clients
//! (`history_ttl` since its newest publication) still has its position.

use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::header::{IntoHeaderName, NATS_LAST_SEQUENCE, NATS_SEQUENCE, NATS_TIME_STAMP};
use hashbrown::HashMap;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::edge::channels::{ChannelRules, Namespace};
use crate::hub::history::Epoch;

/// Time for which a stream knows idempotency keys, in milliseconds.
const RESULT_TTL_MS: u64 = 300_000;

/// The part of the metadata of a stream that replaces its time of creation as its life.
const EPOCH_KEY: &str = "roost.epoch";

/// The header with the life of a version.
pub const VERSION_EPOCH: &str = "Roost-Version-Epoch";

/// The header with the number of messages behind this one that an answer could have, too.
pub const PENDING: &str = "Nats-Num-Pending";

/// Nothing is published if another message has come meanwhile.
pub const WRONG_SEQUENCE: u64 = 10_071;

/// There is no such stream.
pub const NO_STREAM: u64 = 10_059;

/// There is no such message.
pub const NO_MESSAGE: u64 = 10_037;

/// How streams are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// In files; else in memory.
    pub in_files: bool,
    /// Servers that keep each.
    pub replicas: u8,
    /// Bytes of each at most; 0: no bound. A stream that is full takes no more publications.
    pub bytes_max: u64,
    /// They are made and changed as the options say; else they have to be there.
    pub manages: bool,
}

/// The stream of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// Publications of a channel that clients see.
    pub size: u32,
    /// How long they see them after the newest one.
    pub ttl_ms: u64,
    /// How long a publication is kept; 0: for ever.
    meta_ttl_ms: u64,
    publications: String,
    removals: String,
}

/// The streams of all namespaces with history.
#[derive(Clone, Debug)]
pub struct Streams {
    /// How they are kept.
    pub keeping: Keeping,
    /// Of each namespace with history.
    pub all: Vec<Stream>,
    by_namespace: HashMap<u16, usize, foldhash::fast::RandomState>,
    rules: Arc<ChannelRules>,
    messages: String,
}

impl Streams {
    /// For these namespaces.
    pub fn new(prefix: &str, keeping: Keeping, rules: Arc<ChannelRules>) -> Self {
        let mut all = Vec::new();
        let mut by_namespace = HashMap::default();
        for namespace in rules.namespaces().iter().filter(|of| of.history_size > 0) {
            by_namespace.insert(namespace.index, all.len());
            all.push(Stream::new(prefix, namespace));
        }
        Self { keeping, all, by_namespace, rules, messages: format!("{prefix}.client.") }
    }

    /// The same for other namespaces. Streams that are known keep their numbers.
    pub fn following(&self, prefix: &str, rules: Arc<ChannelRules>) -> Self {
        let (mut all, mut by_namespace) = (self.all.clone(), HashMap::default());
        for namespace in rules.namespaces().iter().filter(|of| of.history_size > 0) {
            let stream = Stream::new(prefix, namespace);
            let at = all.iter().position(|of| of.name == stream.name).unwrap_or(all.len());
            by_namespace.insert(namespace.index, at);
            if at < all.len() {
                all[at] = stream;
            } else {
                all.push(stream);
            }
        }
        let (keeping, messages) = (self.keeping.clone(), self.messages.clone());
        Self { keeping, all, by_namespace, rules, messages }
    }

    /// The number of a channel's stream in [`Self::all`]; `None` without history.
    pub fn of(&self, channel: &str) -> Option<usize> {
        let namespace = self.rules.resolve_trusted(channel).ok()?;
        self.by_namespace.get(&namespace.index).copied()
    }

    /// The configuration of a stream. `existing`: what it has now; parts that are not mentioned here stay.
    pub fn config(&self, stream: &Stream, existing: Option<&Value>) -> Value {
        let Keeping { in_files, replicas, bytes_max, .. } = &self.keeping;
        let nanoseconds = |ms: u64| ms.saturating_mul(1_000_000).min(i64::MAX as u64);
        let window = match stream.meta_ttl_ms {
            0 => RESULT_TTL_MS,
            ttl => ttl.min(RESULT_TTL_MS),
        };
        let mut config = existing.cloned().unwrap_or_else(|| {
            json!({
                "name": stream.name,
                "retention": "limits",
                "storage": if *in_files { "file" } else { "memory" },
                "max_consumers": -1,
                "max_msgs": -1,
            })
        });
        let own = json!({
            "subjects": [format!("{}>", stream.publications), format!("{}>", stream.removals)],
            "max_msgs_per_subject": u64::from(stream.size) + 1,
            "max_age": nanoseconds(stream.meta_ttl_ms),
            "max_bytes": if *bytes_max == 0 { -1 } else { bytes_max.cast_signed() },
            "discard": if *bytes_max == 0 { "old" } else { "new" },
            "num_replicas": replicas,
            "duplicate_window": nanoseconds(window),
            "allow_direct": true,
            "republish": { "src": format!("{}>", stream.publications), "dest": format!("{}>", self.messages) },
        });
        if let (Some(config), Value::Object(own)) = (config.as_object_mut(), own) {
            config.extend(own);
        }
        config
    }

    /// Why a stream with this configuration can't keep the history.
    pub fn misfit(&self, stream: &Stream, config: &Value) -> Option<&'static str> {
        let wanted = self.config(stream, None);
        if config["allow_direct"] != true {
            Some("it doesn't allow direct reads")
        } else if config["republish"]["src"] != wanted["republish"]["src"]
            || config["republish"]["dest"] != wanted["republish"]["dest"]
        {
            Some("it doesn't republish to the subjects of channels")
        } else if config["max_msgs_per_subject"]
            .as_i64()
            .is_some_and(|kept| kept > 0 && kept < i64::from(stream.size) + 1)
        {
            Some("it keeps fewer than history_size + 1 messages of a subject")
        } else {
            None
        }
    }
}

impl Stream {
    fn new(prefix: &str, namespace: &Namespace) -> Self {
        // Names of namespaces have no "=", and at least two characters.
        let part = match namespace.name.as_str() {
            "" => "_".to_owned(),
            name => name.replace('.', "="),
        };
        Self {
            name: format!("{}-{part}", prefix.replace('.', "=")),
            size: namespace.history_size,
            ttl_ms: namespace.history_ttl_ms,
            meta_ttl_ms: namespace.history_meta_ttl_ms,
            publications: format!("{prefix}.js.{part}."),
            removals: format!("{prefix}.jsr.{part}."),
        }
    }

    /// Publications of a channel.
    pub fn publications(&self, channel: &str) -> String {
        [&*self.publications, channel].concat()
    }

    /// Removals of its history.
    pub fn removals(&self, channel: &str) -> String {
        [&*self.removals, channel].concat()
    }

    /// The subject of a request about the stream itself: `INFO`, `CREATE`, `UPDATE`, `PURGE`, `MSG.GET`.
    pub fn request(&self, what: &str) -> String {
        format!("$JS.API.STREAM.{what}.{}", self.name)
    }

    /// The subject of a direct read.
    pub fn direct(&self) -> String {
        format!("$JS.API.DIRECT.GET.{}", self.name)
    }
}

/// The key by which a stream knows a publication: keys of one channel have nothing to do with those of others.
pub fn message_id(channel: &str, key: &str) -> String {
    let escaped = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    format!("{}.{}", escaped(channel), escaped(key))
}

/// A text as the value of a header.
pub fn header_value(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The newest message of a subject.
pub fn last_of(subject: &str) -> Vec<u8> {
    json!({ "last_by_subj": subject }).to_string().into_bytes()
}

/// The newest message of each of these.
pub fn last_of_each(subjects: &[&str]) -> Vec<u8> {
    json!({ "multi_last": subjects }).to_string().into_bytes()
}

/// Up to so many messages of a subject from a sequence on.
pub fn from(subject: &str, sequence: u64, count: usize) -> Vec<u8> {
    json!({ "next_by_subj": subject, "seq": sequence.max(1), "batch": count.max(1) })
        .to_string()
        .into_bytes()
}

/// All messages of a subject before a sequence.
pub fn purge_before(subject: &str, sequence: u64) -> Vec<u8> {
    json!({ "filter": subject, "seq": sequence }).to_string().into_bytes()
}

/// An error of JetStream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Fault {
    /// Its number.
    pub err_code: u64,
    /// Its text.
    pub description: String,
}

/// The answer to a publication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Ack {
    /// Its sequence; of one that was taken before, that of then.
    pub seq: u64,
    /// It was taken before.
    pub duplicate: bool,
    /// It was not taken.
    pub error: Option<Fault>,
}

/// A stream as it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamInfo {
    /// Its configuration, an object.
    #[serde(deserialize_with = "object")]
    pub config: Value,
    /// When it was made.
    pub created: String,
    /// The time of the server.
    pub ts: String,
    /// There is none, or no answer.
    pub error: Option<Fault>,
}

/// An object: parts of it are read and replaced, and an answer with anything else is none.
fn object<'de, D: Deserializer<'de>>(from: D) -> Result<Value, D::Error> {
    serde_json::Map::deserialize(from).map(Value::Object)
}

impl StreamInfo {
    /// The life of the stream.
    pub fn epoch(&self) -> Epoch {
        match self.config["metadata"][EPOCH_KEY].as_str() {
            Some(epoch) => Epoch::from(epoch),
            None => Epoch::from(letters(&self.created).as_str()),
        }
    }

    /// The configuration with which a stream of this life begins another one. Nodes that do so at the same time
    /// give it the same.
    pub fn renewed(&self) -> Value {
        let mut config = self.config.clone();
        if !config["metadata"].is_object() {
            config["metadata"] = json!({});
        }
        config["metadata"][EPOCH_KEY] = letters(&format!("{}+", self.epoch().as_str())).into();
        config
    }
}

/// Eight letters made of a text.
fn letters(text: &str) -> String {
    let mut hash = crate::cluster::hash::fnv1a64(text.as_bytes());
    let mut letters = String::with_capacity(8);
    for _ in 0..8 {
        let letter = b'a' + (hash % 26) as u8;
        letters.push(char::from(letter));
        hash /= 26;
    }
    letters
}

/// The place of a message in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its sequence.
    pub sequence: u64,
    /// That of the message before it: of the same subject where it was republished, of the same answer where it was
    /// read.
    pub last: u64,
    /// When the server took it, in Unix milliseconds.
    pub time_ms: u64,
}

impl Stored {
    /// Reads it from the headers of a message; `None` for one that is in no stream.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let sequence = number(headers, NATS_SEQUENCE).filter(|sequence| *sequence > 0)?;
        let last = number(headers, NATS_LAST_SEQUENCE).unwrap_or(0);
        let time_ms = text(headers, NATS_TIME_STAMP).and_then(unix_ms).unwrap_or(0);
        Some(Self { sequence, last, time_ms })
    }
}

/// The value of a header.
pub fn text(headers: &HeaderMap, name: impl IntoHeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.as_str())
}

/// The number in a header.
pub fn number(headers: &HeaderMap, name: impl IntoHeaderName) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// Unix milliseconds of a time such as `2026-11-30T14:03:59.464325925Z`.
pub fn unix_ms(text: &str) -> Option<u64> {
    let time = humantime::parse_rfc3339(text).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::channels::ChannelSyntax;

    fn streams(bytes_max: u64) -> Streams {
        let namespace = |name: &str, history_size, history_meta_ttl_ms| Namespace {
            name: name.into(),
            history_size,
            history_ttl_ms: 60_000,
            history_meta_ttl_ms,
            ..Namespace::default()
        };
        let named = vec![namespace("news.eu", 10, 120_000), namespace("plain", 0, 0)];
        let rules = ChannelRules::new(namespace("", 1, 0), named, ChannelSyntax::default());
        let keeping = Keeping { in_files: true, replicas: 1, bytes_max, manages: true };
        Streams::new("c.x", keeping, Arc::new(rules))
    }

    #[test]
    fn each_namespace_with_history_has_a_stream() {
        let streams = streams(0);
        let name = |channel: &str| streams.of(channel).map(|at| streams.all[at].name.as_str());
        assert_eq!(name("news.eu:a"), Some("c=x-news=eu"));
        assert_eq!(name("a"), Some("c=x-_"));
        assert_eq!((name("plain:a"), name("unknown:a")), (None, None));
        let stream = &streams.all[streams.of("news.eu:a.b").unwrap()];
        assert_eq!(stream.publications("news.eu:a.b"), "c.x.js.news=eu.news.eu:a.b");
        assert_eq!(stream.request("INFO"), "$JS.API.STREAM.INFO.c=x-news=eu");
    }

    #[test]
    fn a_stream_is_as_its_namespace_says() {
        let streams = streams(0);
        let stream = &streams.all[streams.of("news.eu:a").unwrap()];
        let config = streams.config(stream, None);
        assert_eq!(
            (&config["max_msgs_per_subject"], &config["storage"]),
            (&json!(11), &json!("file"))
        );
        assert_eq!(config["max_age"], 120_000_000_000_u64);
        assert_eq!(config["duplicate_window"], 120_000_000_000_u64, "at most the age");
        assert_eq!(config["republish"], json!({"src": "c.x.js.news=eu.>", "dest": "c.x.client.>"}));
        assert_eq!((&config["discard"], &config["max_bytes"]), (&json!("old"), &json!(-1)));
        assert_eq!(streams.misfit(stream, &config), None);
        let changed = |key: &str, value: Value| {
            let mut config = config.clone();
            config[key] = value;
            streams.misfit(stream, &config).is_some()
        };
        assert!(
            changed("allow_direct", false.into()) && changed("max_msgs_per_subject", 10.into())
        );
        assert!(changed("republish", Value::Null) && !changed("max_msgs_per_subject", (-1).into()));
        // Settings made by others stay.
        let existing = json!({"placement": {"cluster": "c"}, "storage": "memory", "max_age": 1});
        let merged = streams.config(stream, Some(&existing));
        assert_eq!(merged["placement"], existing["placement"]);
        assert_eq!(
            (&merged["storage"], &merged["max_age"]),
            (&json!("memory"), &config["max_age"])
        );
    }

    #[test]
    fn a_bounded_stream_refuses_what_has_no_room() {
        let streams = streams(1_000);
        let config = streams.config(&streams.all[0], None);
        assert_eq!((&config["discard"], &config["max_bytes"]), (&json!("new"), &json!(1_000)));
    }

    #[test]
    fn a_life_ends_with_the_stream_or_when_it_is_renewed() {
        let info = |created: &str| StreamInfo {
            created: created.into(),
            config: json!({"name": "n"}),
            ..StreamInfo::default()
        };
        let first = info("2026-11-30T14:03:59Z");
        assert_eq!(first.epoch(), info("2026-11-30T14:03:59Z").epoch());
        assert_ne!(first.epoch(), info("2026-11-30T14:04:00Z").epoch());
        let renewed = StreamInfo { config: first.renewed(), ..first.clone() };
        assert_ne!(renewed.epoch(), first.epoch());
        let again = StreamInfo { config: renewed.renewed(), ..first.clone() };
        assert_ne!(again.epoch(), renewed.epoch());
        assert_eq!(again.config["name"], "n");
    }

    #[test]
    fn a_stream_has_an_object_as_its_configuration() {
        for config in ["\"text\"", "7", "[]", "null"] {
            let answer = format!("{{\"config\":{config},\"created\":\"\"}}");
            assert!(serde_json::from_str::<StreamInfo>(&answer).is_err(), "{answer}");
        }
        for config in ["{}", "{\"metadata\":\"text\"}"] {
            let answer = format!("{{\"config\":{config},\"created\":\"\"}}");
            let info: StreamInfo = serde_json::from_str(&answer).unwrap();
            assert!(info.renewed()["metadata"][EPOCH_KEY].is_string());
        }
        // An answer with a fault has none.
        assert!(serde_json::from_str::<StreamInfo>("{\"error\":{}}").is_ok());
    }

    #[test]
    fn keys_of_channels_are_apart_and_headers_have_no_line_feeds() {
        assert_ne!(message_id("a.b", "c"), message_id("a", "b.c"));
        assert!(!message_id("a\r\nb", "ü").contains(['\r', '\n', 'ü']));
    }

    #[test]
    fn the_place_of_a_message_is_in_its_headers() {
        let mut headers = HeaderMap::new();
        assert_eq!(Stored::read(&headers), None);
        headers.insert("Nats-Sequence", "7");
        headers.insert("Nats-Last-Sequence", "5");
        headers.insert("Nats-Time-Stamp", "2026-11-30T14:03:59.464325925Z");
        headers.insert("Nats-Num-Pending", "x");
        let stored = Stored { sequence: 7, last: 5, time_ms: 1_796_047_439_464 };
        assert_eq!((Stored::read(&headers), number(&headers, PENDING)), (Some(stored), None));
        headers.insert("Nats-Sequence", "0");
        assert_eq!(Stored::read(&headers), None);
    }

    #[test]
    fn answers_are_read() {
        let ack: Ack =
            serde_json::from_str(r#"{"stream":"s","seq":13,"duplicate": true}"#).unwrap();
        assert_eq!(ack, Ack { seq: 13, duplicate: true, error: None });
        let text = r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 13"},"seq":0}"#;
        let ack: Ack = serde_json::from_str(text).unwrap();
        assert_eq!(ack.error.unwrap().err_code, WRONG_SEQUENCE);
        assert_eq!(unix_ms("2026-11-30T14:03:59.464325925Z"), Some(1_796_047_439_464));
    }
}
