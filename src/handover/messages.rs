//! The messages, and their byte form.

use std::fmt;

use compact_str::CompactString;

use crate::base::image::{
    Broken, FORMAT, ImageReader, ImageWriter, SKIPPABLE, durable, durable_enum,
};
use crate::base::time::Millis;

/// The number of the sequence of messages, and of what they mean.
pub const PROTOCOL: u16 = 1;

/// Kinds of records. Images of shards have their own, below these.
mod kind {
    pub(super) const HELLO: u8 = 64;
    pub(super) const WELCOME: u8 = 65;
    pub(super) const REFUSED: u8 = 66;
    pub(super) const PREPARED: u8 = 67;
    pub(super) const FROZEN: u8 = 68;
    pub(super) const READY: u8 = 69;
    pub(super) const GO: u8 = 70;
    pub(super) const ABORT: u8 = 71;
    pub(super) const FAILED: u8 = 72;
    pub(super) const STATUS: u8 = 73;
    pub(super) const CHANNELS: u8 = 74;
    pub(super) const ALL_CHANNELS: u8 = 75;
    pub(super) const LISTENING: u8 = 76;
    pub(super) const OTHERS: u8 = 77;
}

const _: () = assert!(kind::OTHERS < SKIPPABLE);

/// A message between the two processes.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// From the new process, first.
    Hello(Hello),
    /// From the running node: it hands over to a process that prepares by this.
    Welcome(Box<Welcome>),
    /// From the running node: it doesn't hand over, and goes on.
    Refused(String),
    /// From the new process: its shards wait. The links to them come along.
    Prepared,
    /// From the running node: all shards have sent their state. Listeners of its control thread come along.
    Frozen(Counts),
    /// From the new process: everything is there, in these numbers.
    Ready(Counts),
    /// From the running node, which never serves again: run.
    Go(Go),
    /// From the running node, which goes on: end.
    Abort(String),
    /// From the new process, which ends.
    Failed(String),
    /// From the running node, to a process that has only asked for it.
    Status(Status),
    /// From the running node: channels that a broker delivers to it.
    Channels(Channels),
    /// From the running node: these were all channels so far of this attempt. [`Message::Listening`] is the answer.
    AllChannels {
        /// Names the attempt to the brokers of both processes.
        key: u64,
    },
    /// From the new process: the broker delivers these channels to it.
    Listening,
    /// From the running node: the nodes beside it.
    Others(Others),
}

/// The purpose of a connection to the takeover socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To take the connections over.
    Takeover,
    /// To get a [`Status`].
    Status,
}

durable_enum!(Purpose { Takeover = 0, Status = 1 });

/// The first message.
#[derive(Debug, PartialEq, Eq)]
pub struct Hello {
    /// Number of the messages, [`PROTOCOL`].
    pub protocol: u16,
    /// Number of the format of images.
    pub image_format: u16,
    /// Version of the program.
    pub version: String,
    /// The reason for the connection.
    pub purpose: Purpose,
    /// Number of shards.
    pub shards: u32,
    /// Options that hold from the start of a node to its end, and differ from their defaults: name, and
    /// digest of the value.
    pub options: Vec<(String, [u8; 16])>,
}

impl Hello {
    /// The first message of this version.
    pub fn new(purpose: Purpose, version: &str) -> Self {
        Self {
            protocol: PROTOCOL,
            image_format: FORMAT,
            version: version.to_owned(),
            purpose,
            shards: 0,
            options: Vec::new(),
        }
    }

    /// The reason for which a node of `shards` shards with these options doesn't hand over to the sender.
    pub fn objection(&self, shards: usize, options: &[(String, [u8; 16])]) -> Option<String> {
        if (self.protocol, self.image_format) != (PROTOCOL, FORMAT) {
            return Some(format!(
                "version {} speaks protocol {} with images of format {}; this one, {}, speaks {PROTOCOL} \
                 with {FORMAT}: drain the node and start the new version",
                self.version,
                self.protocol,
                self.image_format,
                env!("CARGO_PKG_VERSION"),
            ));
        }
        if self.shards as usize != shards {
            return Some(format!(
                "the new process would have {} shards, and the running node has {shards}: roost.shards has \
                 to be the same",
                self.shards
            ));
        }
        let here = |(name, digest): &(String, [u8; 16]), in_list: &[(String, [u8; 16])]| {
            in_list.iter().any(|(other, of)| other == name && of == digest)
        };
        let changed = self.options.iter().filter(|option| !here(option, options));
        let missing = options.iter().filter(|option| !here(option, &self.options));
        let mut names: Vec<&str> = changed.chain(missing).map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        (!names.is_empty())
            .then(|| format!("options that need a restart have changed: {}", names.join(", ")))
    }
}

durable!(Hello { protocol, image_format, version, purpose, shards, options });

/// Secrets and seeds that a node makes at its start. Ids, tokens and hashes of its clients mean nothing
/// without them.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node's id.
    pub node_id: String,
    /// Key of client ids.
    pub client_ids: [u8; 32],
    /// Key of session ids.
    pub session_ids: [u8; 32],
    /// Seed of the hasher of names.
    pub names: u64,
    /// The secret that signs tokens of the admin page, where none is configured.
    pub admin_secret: Option<String>,
    /// The link that opens a development node's admin page.
    pub admin_link: Option<String>,
    /// The key of a development node's server API.
    pub api_key: Option<String>,
    /// Keys of TLS session tickets: the first seals.
    pub ticket_keys: Vec<[u8; 32]>,
    /// Since when the first of them seals, Unix seconds.
    pub ticket_keys_since: i64,
}

durable!(Identity {
    node_id,
    client_ids,
    session_ids,
    names,
    admin_secret,
    admin_link,
    api_key,
    ticket_keys,
    ticket_keys_since
});

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

/// The facts by which a new process prepares.
#[derive(Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Version of the program.
    pub version: String,
    /// Secrets and seeds.
    pub identity: Identity,
    /// Addresses of the public listeners, as [`crate::io::sockets::Address`] shows them.
    pub public: Vec<String>,
    /// Addresses of the internal port's listeners.
    pub internal: Vec<String>,
    /// One shard accepts for all.
    pub one_accepts: bool,
    /// The listeners belong to a service manager, and stay open when the node drains.
    pub listeners_stay: bool,
    /// Connections of each shard.
    pub open: Vec<u32>,
    /// Resident memory of the process, bytes.
    pub memory: u64,
    /// The zero of the shards' clock, nanoseconds of the machine's monotonic one: ages go on.
    pub zero_ns: u64,
}

durable!(Welcome {
    version,
    identity,
    public,
    internal,
    one_accepts,
    listeners_stay,
    open,
    memory,
    zero_ns
});

/// The content of a shard in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardCounts {
    /// Connections.
    pub connections: u64,
    /// Bytes of its image.
    pub bytes: u64,
}

durable!(ShardCounts { connections, bytes });

/// The content of all shards, and the descriptors that come along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Each shard.
    pub shards: Vec<ShardCounts>,
    /// Listeners of the internal port.
    pub internal: u32,
    /// Behind them comes the listener of HTTP-01 challenges.
    pub challenges: bool,
}

durable!(Counts { shards, internal, challenges });

/// The last message of a node that has handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Go {
    /// When the shards stopped reading, nanoseconds of the machine's monotonic clock.
    pub settled_since: u64,
    /// Nodes before this one whose connections live on, the sender included.
    pub takeovers: u64,
}

durable!(Go { settled_since, takeovers });

/// Changes of the channels that a broker delivers to one shard of the running node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Names the attempt to the brokers of both processes.
    pub key: u64,
    /// The number of the shard.
    pub shard: u8,
    /// They are delivered from now on.
    pub begun: Vec<CompactString>,
    /// They are not needed any more.
    pub ended: Vec<CompactString>,
}

durable!(Channels { key, shard, begun, ended });

/// What a node knows of those that share its broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Their states, as they publish them.
    pub nodes: Vec<Vec<u8>>,
    /// The number of the latest survey: answers to earlier ones may still come.
    pub surveys: u64,
}

durable!(Others { nodes, surveys });

/// A node in brief.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// Takeovers since the first start.
    pub takeovers: u64,
    /// Connections that came with the last one.
    pub connections: u64,
    /// How long the last one stopped reading, microseconds.
    pub pause_us: u64,
    /// Bytes of state that came with it.
    pub bytes: u64,
}

durable!(Status { pid, version, takeovers, connections, pause_us, bytes });

impl Message {
    /// The bytes of the message, without the length before them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = ImageWriter::new(Millis(0));
        match self {
            Self::Hello(hello) => out.record(kind::HELLO, |out| out.field(hello)),
            Self::Welcome(welcome) => out.record(kind::WELCOME, |out| out.field(&**welcome)),
            Self::Refused(why) => out.record(kind::REFUSED, |out| out.field(why)),
            Self::Prepared => out.record(kind::PREPARED, |_| ()),
            Self::Frozen(counts) => out.record(kind::FROZEN, |out| out.field(counts)),
            Self::Ready(counts) => out.record(kind::READY, |out| out.field(counts)),
            Self::Go(go) => out.record(kind::GO, |out| out.field(go)),
            Self::Abort(why) => out.record(kind::ABORT, |out| out.field(why)),
            Self::Failed(why) => out.record(kind::FAILED, |out| out.field(why)),
            Self::Status(status) => out.record(kind::STATUS, |out| out.field(status)),
            Self::Channels(channels) => out.record(kind::CHANNELS, |out| out.field(channels)),
            Self::AllChannels { key } => out.record(kind::ALL_CHANNELS, |out| out.field(key)),
            Self::Listening => out.record(kind::LISTENING, |_| ()),
            Self::Others(others) => out.record(kind::OTHERS, |out| out.field(others)),
        }
        out.finish()
    }

    /// The message of some bytes.
    ///
    /// # Errors
    /// They are no message of this version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Broken> {
        let mut from = ImageReader::new(bytes, Millis(0))?;
        let found = from.next_record()?.ok_or(Broken::Short)?;
        let message = match found {
            kind::HELLO => Self::Hello(from.field("Message.hello")?),
            kind::WELCOME => Self::Welcome(Box::new(from.field("Message.welcome")?)),
            kind::REFUSED => Self::Refused(from.field("Message.refused")?),
            kind::PREPARED => Self::Prepared,
            kind::FROZEN => Self::Frozen(from.field("Message.frozen")?),
            kind::READY => Self::Ready(from.field("Message.ready")?),
            kind::GO => Self::Go(from.field("Message.go")?),
            kind::ABORT => Self::Abort(from.field("Message.abort")?),
            kind::FAILED => Self::Failed(from.field("Message.failed")?),
            kind::STATUS => Self::Status(from.field("Message.status")?),
            kind::CHANNELS => Self::Channels(from.field("Message.channels")?),
            kind::ALL_CHANNELS => Self::AllChannels { key: from.field("Message.key")? },
            kind::LISTENING => Self::Listening,
            kind::OTHERS => Self::Others(from.field("Message.others")?),
            other => return Err(Broken::UnknownRecord(other)),
        };
        match from.next_record()? {
            None => Ok(message),
            Some(other) => Err(Broken::Misplaced(other)),
        }
    }

    /// Its name, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Refused(_) => "Refused",
            Self::Prepared => "Prepared",
            Self::Frozen(_) => "Frozen",
            Self::Ready(_) => "Ready",
            Self::Go(_) => "Go",
            Self::Abort(_) => "Abort",
            Self::Failed(_) => "Failed",
            Self::Status(_) => "Status",
            Self::Channels(_) => "Channels",
            Self::AllChannels { .. } => "AllChannels",
            Self::Listening => "Listening",
            Self::Others(_) => "Others",
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> Identity {
        Identity {
            node_id: "a-node".into(),
            client_ids: [1; 32],
            session_ids: [2; 32],
            names: 3,
            admin_secret: Some("secret".into()),
            admin_link: None,
            api_key: Some("key".into()),
            ticket_keys: vec![[4; 32], [5; 32]],
            ticket_keys_since: -6,
        }
    }

    /// A message of each kind.
    pub(crate) fn examples() -> Vec<Message> {
        let shards = vec![ShardCounts { connections: 1, bytes: 1 << 40 }, ShardCounts::default()];
        let counts = Counts { shards, internal: 2, challenges: true };
        let hello = Hello {
            shards: 2,
            options: vec![("http_server.port".into(), [7; 16])],
            ..Hello::new(Purpose::Takeover, "1.2.3")
        };
        let welcome = Welcome {
            version: "1.2.2".into(),
            identity: identity(),
            public: vec!["127.0.0.1:8000".into()],
            internal: vec!["unix:/run/roost".into()],
            one_accepts: true,
            listeners_stay: false,
            open: vec![10, 20],
            memory: 1 << 30,
            zero_ns: 1 << 50,
        };
        vec![
            Message::Hello(hello),
            Message::Welcome(Box::new(welcome)),
            Message::Refused("why".into()),
            Message::Prepared,
            Message::Frozen(counts.clone()),
            Message::Ready(counts),
            Message::Go(Go { settled_since: u64::MAX, takeovers: 1 }),
            Message::Abort(String::new()),
            Message::Failed("é".into()),
            Message::Status(Status { pid: 7, version: "1".into(), ..Status::default() }),
            Message::Channels(Channels {
                key: 7,
                shard: 1,
                begun: vec!["news".into()],
                ended: vec!["old".into(), "é".into()],
            }),
            Message::AllChannels { key: u64::MAX },
            Message::Listening,
            Message::Others(Others { nodes: vec![vec![1, 2], Vec::new()], surveys: 3 }),
        ]
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        for message in examples() {
            let bytes = message.to_bytes();
            assert_eq!(Message::from_bytes(&bytes).as_ref(), Ok(&message));
            for end in 0..bytes.len() {
                assert!(Message::from_bytes(&bytes[..end]).is_err(), "{} {end}", message.name());
            }
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 0x10;
                assert!(Message::from_bytes(&changed).is_err(), "{} {at}", message.name());
            }
        }
    }

    /// Each message as a released version has written it, in hexadecimal digits: the release behind that one has to
    /// understand it. `ROOST_WRITE_SAMPLES=1` writes them by the program as it is.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a switch of this test")]
    fn messages_of_a_released_version_are_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/handover/samples/0.2.0.txt");
        if std::env::var_os("ROOST_WRITE_SAMPLES").is_some() {
            let hex = |message: &Message| -> String {
                message.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
            };
            let lines: Vec<String> = examples().iter().map(hex).collect();
            std::fs::write(path, lines.join("\n") + "\n").unwrap();
        }
        let text = std::fs::read_to_string(path).unwrap();
        let mut known = examples().into_iter();
        for line in text.lines() {
            let digits = line.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
            let bytes: Vec<u8> = digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect();
            assert_eq!(Message::from_bytes(&bytes).ok(), known.next());
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", identity());
        assert_eq!(shown, "Identity { node_id: \"a-node\", .. }");
    }

    #[test]
    fn another_format_another_number_of_shards_and_other_options_are_objected_to() {
        let own = [("http_server.port".to_owned(), [7; 16]), ("roost.io".to_owned(), [1; 16])];
        let hello =
            || Hello { shards: 2, options: own.to_vec(), ..Hello::new(Purpose::Takeover, "9.9.9") };
        assert_eq!(hello().objection(2, &own), None);
        let why = |hello: Hello| hello.objection(2, &own).unwrap();
        assert!(why(Hello { protocol: 2, ..hello() }).contains("version 9.9.9 speaks protocol 2"));
        assert!(why(Hello { image_format: 9, ..hello() }).contains("drain the node"));
        assert!(why(Hello { shards: 3, ..hello() }).contains("3 shards"));
        let mut changed = hello();
        changed.options[0].1 = [8; 16];
        changed.options.remove(1);
        changed.options.push(("admin.enabled".to_owned(), [0; 16]));
        let why = why(changed);
        assert!(why.ends_with("changed: admin.enabled, http_server.port, roost.io"), "{why}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_none(
            kind in 60u8..80,
            body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut out = ImageWriter::new(Millis(0));
            out.record(kind, |out| out.bytes(&body));
            if let Ok(message) = Message::from_bytes(&out.finish()) {
                let bytes = message.to_bytes();
                prop_assert_eq!(Message::from_bytes(&bytes), Ok(message));
            }
            let _ = Message::from_bytes(&body);
        }
    }
}
