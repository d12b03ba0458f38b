//! Keys and PUB/SUB names. All nodes of a system must build the same ones.
//!
//! | layout | channel `c` | why |
//! | --- | --- | --- |
//! | [`Layout::Plain`] | `P.stream.c` | one Redis, Sentinel, several addresses |
//! | [`Layout::Cluster`] | `P.stream.{c}` | all keys of a channel are in one slot |
//! | [`Layout::Sharded`] | `P.stream.{p}.c` | and its PUB/SUB messages go to the owner of that slot only |
//!
//! Presence keys of a sharded layout are those of a cluster. Names that belong to no channel are bare in
//! each layout.

use super::hash::jump;
use super::tags::balanced;

/// How names of channels are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As they are.
    Plain,
    /// In braces.
    Cluster,
    /// Behind the hash tag of their partition.
    Sharded(Partitions),
}

/// Hash tags of partitions, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partitions(Vec<Box<str>>);

impl Partitions {
    /// Partitions whose tags are their numbers.
    pub fn numbered(count: u16) -> Self {
        Self((0..count.max(1)).map(|number| number.to_string().into()).collect())
    }

    /// Partitions whose tags divide the slots evenly: 16, 32, 64, 128 or 256 of them.
    pub fn balanced(count: u16) -> Option<Self> {
        Some(Self(balanced(count)?.into_iter().map(Into::into).collect()))
    }

    /// How many there are: at least one.
    pub fn count(&self) -> u16 {
        // Made of a u16, and at least one.
        self.0.len() as u16
    }

    /// The partition of a channel.
    pub fn of(&self, channel: &str) -> u16 {
        jump(channel, self.0.len() as u32) as u16
    }

    /// Their tags divide the slots evenly; else they are numbers.
    pub fn is_balanced(&self) -> bool {
        self.tag(0) != "0"
    }

    fn tag(&self, partition: u16) -> &str {
        self.0.get(usize::from(partition)).map_or("", |tag| tag)
    }
}

/// A channel that a layout can't carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Its hash tag would be empty, and its keys in different slots.
    #[error("a channel of a Redis Cluster can't begin with \"}}\"")]
    EmptyTag,
    /// The stream of `meta.x` has the key of the position of `x`: publishing would destroy it.
    #[error("a channel with history can't begin with \"meta.\"")]
    MetaPrefix,
}

/// Builds names.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: Box<str>,
    layout: Layout,
}

impl Names {
    /// For a prefix; `centrifugo` by default.
    pub fn new(prefix: &str, layout: Layout) -> Self {
        Self { prefix: prefix.into(), layout }
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The partition of a channel; 0 without partitions.
    pub fn partition(&self, channel: &str) -> u16 {
        match &self.layout {
            Layout::Sharded(partitions) => partitions.of(channel),
            Layout::Plain | Layout::Cluster => 0,
        }
    }

    /// Parts into which the messages of channels are divided: all of one part are in one slot. One without
    /// partitions.
    pub fn partitions(&self) -> u16 {
        match &self.layout {
            Layout::Sharded(partitions) => partitions.count(),
            Layout::Plain | Layout::Cluster => 1,
        }
    }

    /// Messages of channels go to the owner of their slot only.
    pub fn is_sharded(&self) -> bool {
        matches!(self.layout, Layout::Sharded(_))
    }

    /// # Errors
    /// The names of this channel would mean something else.
    pub fn check(&self, channel: &str, has_history: bool) -> Result<(), Unusable> {
        if self.layout != Layout::Plain && channel.starts_with('}') {
            return Err(Unusable::EmptyTag);
        }
        let is_bare = self.layout == Layout::Plain;
        if is_bare && has_history && channel.starts_with("meta.") {
            return Err(Unusable::MetaPrefix);
        }
        Ok(())
    }

    /// PUB/SUB: messages of a channel.
    pub fn messages(&self, channel: &str) -> String {
        self.of_channel(".client.", channel)
    }

    /// The channel whose messages have this name; `None` for a name of another kind or layout.
    pub fn channel_of<'a>(&self, name: &'a [u8]) -> Option<&'a str> {
        let name = std::str::from_utf8(name).ok()?;
        let rest = name.strip_prefix(&*self.prefix)?.strip_prefix(".client.")?;
        match &self.layout {
            Layout::Plain => Some(rest),
            Layout::Cluster => rest.strip_prefix('{')?.strip_suffix('}'),
            Layout::Sharded(partitions) => {
                let (tag, channel) = rest.strip_prefix('{')?.split_once("}.")?;
                (partitions.tag(partitions.of(channel)) == tag).then_some(channel)
            }
        }
    }

    /// The command that sends to [`Self::messages`].
    pub fn publish_command(&self) -> &'static str {
        match self.layout {
            Layout::Sharded(_) => "SPUBLISH",
            Layout::Plain | Layout::Cluster => "PUBLISH",
        }
    }

    /// Stream: publications of a channel.
    pub fn stream(&self, channel: &str) -> String {
        self.of_channel(".stream.", channel)
    }

    /// Hash: position and version of that stream.
    pub fn stream_meta(&self, channel: &str) -> String {
        self.of_channel(".stream.meta.", channel)
    }

    /// List: publications of a channel, with `history_use_lists`.
    pub fn list(&self, channel: &str) -> String {
        self.of_channel(".list.", channel)
    }

    /// Hash: position of that list.
    pub fn list_meta(&self, channel: &str) -> String {
        self.of_channel(".list.meta.", channel)
    }

    /// Hash: the answer to a publish with an idempotency key.
    pub fn result(&self, channel: &str, key: &str) -> String {
        let mut name = self.of_channel(".result.", channel);
        name.push('.');
        name.push_str(key);
        name
    }

    /// Hash: client id to `ClientInfo`.
    pub fn presence(&self, channel: &str) -> String {
        self.of_presence(".presence.data.", channel)
    }

    /// Sorted set: client ids by the second at which they expire.
    pub fn presence_expiry(&self, channel: &str) -> String {
        self.of_presence(".presence.expire.", channel)
    }

    /// Hash: user to the number of its connections.
    pub fn presence_users(&self, channel: &str) -> String {
        self.of_presence(".presence.user.clients.", channel)
    }

    /// Sorted set: users by the second at which they expire.
    pub fn presence_users_expiry(&self, channel: &str) -> String {
        self.of_presence(".presence.user.expire.", channel)
    }

    /// PUB/SUB: control messages to all nodes.
    pub fn control(&self) -> String {
        format!("{}.control", self.prefix)
    }

    /// PUB/SUB: control messages to one node.
    pub fn node(&self, uid: &str) -> String {
        format!("{}.node.{uid}", self.prefix)
    }

    /// PUB/SUB: a name on which nodes send nothing that matters, of one partition.
    pub fn service(&self, partition: u16) -> String {
        match &self.layout {
            Layout::Sharded(partitions) => {
                format!("{}.shard.0.{{{}}}", self.prefix, partitions.tag(partition))
            }
            Layout::Plain | Layout::Cluster => format!("{}.shard.0", self.prefix),
        }
    }

    /// PUB/SUB: the name on which connection `k` of a node sees its own probes. Of roost alone: nodes of
    /// Centrifugo would parse each message on [`Self::service`].
    pub fn probe(&self, uid: &str, connection: usize) -> String {
        format!("{}.roost.probe.{uid}.{connection}", self.prefix)
    }

    /// The same for the messages of a partition: in its slot.
    pub fn probe_of(&self, uid: &str, connection: usize, partition: u16) -> String {
        match &self.layout {
            Layout::Sharded(partitions) => {
                let (prefix, tag) = (&self.prefix, partitions.tag(partition));
                format!("{prefix}.roost.probe.{{{tag}}}.{uid}.{connection}")
            }
            Layout::Plain | Layout::Cluster => self.probe(uid, connection),
        }
    }

    /// A set of roost alone: the presence entries that a node has made.
    pub fn entries_of_node(&self, uid: &str) -> String {
        format!("{}.roost.node.{uid}", self.prefix)
    }

    fn of_channel(&self, kind: &str, channel: &str) -> String {
        let prefix = &*self.prefix;
        match &self.layout {
            Layout::Plain => [prefix, kind, channel].concat(),
            Layout::Cluster => [prefix, kind, "{", channel, "}"].concat(),
            Layout::Sharded(partitions) => {
                let tag = partitions.tag(partitions.of(channel));
                [prefix, kind, "{", tag, "}.", channel].concat()
            }
        }
    }

    fn of_presence(&self, kind: &str, channel: &str) -> String {
        let prefix = &*self.prefix;
        match &self.layout {
            Layout::Plain => [prefix, kind, channel].concat(),
            Layout::Cluster | Layout::Sharded(_) => [prefix, kind, "{", channel, "}"].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::hash::slot;
    use super::*;

    fn layout(mode: &str) -> Layout {
        match mode {
            "standalone" | "standalone-lists" => Layout::Plain,
            "cluster" | "cluster-lists" => Layout::Cluster,
            "cluster-sharded-pubsub-16" => Layout::Sharded(Partitions::numbered(16)),
            "cluster-sharded-pubsub-64" => Layout::Sharded(Partitions::numbered(64)),
            "cluster-sharded-pubsub-64-precomputed" => {
                Layout::Sharded(Partitions::balanced(64).unwrap())
            }
            _ => panic!("unknown mode {mode}"),
        }
    }

    #[test]
    fn names_are_those_of_the_vectors() {
        let lines = include_str!("../../tests/vectors/redis/key-vectors.jsonl").lines();
        let mut checked = 0;
        for line in lines {
            let vector: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| vector[name].as_str().unwrap_or_default().to_owned();
            let (channel, mode) = (&*text("channel"), text("mode"));
            let names = Names::new("centrifugo", layout(&mode));
            assert_eq!(names.messages(channel), text("pubsub_channel"), "{line}");
            let (history, meta) = if mode.ends_with("lists") {
                assert_eq!(names.list(channel), text("list"), "{line}");
                (names.list(channel), names.list_meta(channel))
            } else {
                assert_eq!(names.stream(channel), text("stream"), "{line}");
                (names.stream(channel), names.stream_meta(channel))
            };
            assert_eq!(meta, text("meta"), "{line}");
            assert_eq!(names.result(channel, "k"), text("result(idem-key k)"), "{line}");
            assert_eq!(names.presence(channel), text("presence_data"), "{line}");
            assert_eq!(names.presence_expiry(channel), text("presence_expire"), "{line}");
            assert_eq!(names.presence_users(channel), text("presence_user_clients"), "{line}");
            assert_eq!(names.presence_users_expiry(channel), text("presence_user_expire"));
            let partition = names.partition(channel);
            assert_eq!(names.service(partition), text("shard_service_channel"), "{line}");
            if let Some(expected) = vector["partition"].as_u64() {
                assert_eq!(u64::from(partition), expected, "{line}");
            }
            for (name, key) in [
                ("slot_stream", &history),
                ("slot_meta", &meta),
                ("slot_pubsub_channel", &names.messages(channel)),
            ] {
                if let Some(expected) = vector[name].as_u64() {
                    assert_eq!(u64::from(slot(key.as_bytes())), expected, "{name} of {line}");
                }
            }
            let name = names.messages(channel);
            assert_eq!(names.channel_of(name.as_bytes()), Some(channel), "{line}");
            assert_eq!(text("extracted_channel"), channel);
            checked += 1;
        }
        assert_eq!(checked, 42);
    }

    #[test]
    fn names_of_another_kind_or_layout_have_no_channel() {
        let plain = Names::new("p", Layout::Plain);
        for name in [&b"p.control"[..], b"p.clients.x", b"q.client.x", b"p.client.\xff", b""] {
            assert_eq!(plain.channel_of(name), None, "{name:?}");
        }
        let cluster = Names::new("p", Layout::Cluster);
        for name in ["p.client.x", "p.client.{x", "p.client.x}"] {
            assert_eq!(cluster.channel_of(name.as_bytes()), None, "{name}");
        }
        let sharded = Names::new("p", Layout::Sharded(Partitions::numbered(16)));
        let other = (sharded.partition("x") + 1) % 16;
        for name in ["p.client.{x}".to_owned(), format!("p.client.{{{other}}}.x")] {
            assert_eq!(sharded.channel_of(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn channels_whose_names_would_mean_something_else_are_refused() {
        let plain = Names::new("p", Layout::Plain);
        let cluster = Names::new("p", Layout::Cluster);
        assert_eq!(plain.check("meta.x", true), Err(Unusable::MetaPrefix));
        assert_eq!(plain.check("meta.x", false), Ok(()));
        assert_eq!(plain.check("}x", true), Ok(()));
        assert_eq!(cluster.check("meta.x", true), Ok(()));
        assert_eq!(cluster.check("}x", false), Err(Unusable::EmptyTag));
    }

    #[test]
    fn names_of_no_channel_are_bare() {
        for layout in [Layout::Plain, Layout::Cluster, Layout::Sharded(Partitions::numbered(2))] {
            let names = Names::new("p", layout);
            assert_eq!(names.control(), "p.control");
            assert_eq!(names.node("n"), "p.node.n");
            assert_eq!(names.probe("n", 3), "p.roost.probe.n.3");
            assert_eq!(names.entries_of_node("n"), "p.roost.node.n");
        }
    }

    proptest! {
        #[test]
        fn each_usable_channel_comes_back_and_keeps_one_slot(channel in ".{0,40}") {
            let sharded = Layout::Sharded(Partitions::balanced(32).unwrap());
            for layout in [Layout::Plain, Layout::Cluster, sharded] {
                let names = Names::new("p", layout);
                prop_assume!(names.check(&channel, true).is_ok());
                let messages = names.messages(&channel);
                prop_assert_eq!(names.channel_of(messages.as_bytes()), Some(channel.as_str()));
                if *names.layout() == Layout::Plain || channel.is_empty() {
                    continue;
                }
                let slots = [
                    names.stream(&channel), names.stream_meta(&channel), names.list(&channel),
                    names.list_meta(&channel), names.result(&channel, "k"), messages,
                ].map(|key| slot(key.as_bytes()));
                prop_assert!(slots.iter().all(|slot| *slot == slots[0]), "{slots:?}");
            }
        }
    }
}
