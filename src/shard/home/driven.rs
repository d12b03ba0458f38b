//! A home that a unit test drives by mail alone: no driver, no socket, no thread.

use std::num::NonZeroU32;

use compact_str::CompactString;

use super::Home;
use crate::base::id::{ConnKey, ShardId};
use crate::base::info::ClientInfo;
use crate::base::rng::Rng;
use crate::edge::channels::Namespace;
use crate::hub::history::Since;
use crate::hub::subscribers::Traits;
use crate::proto::client::Encoding;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::fixture::{Plan, Posts};
use crate::shard::mail::{
    Answer, Asker, Mail, Membership, Publish, PublishOptions, Read, Reading, Recover, Subscribe,
    Subscribed, Unsubscribe,
};

/// A home, the context of its turn, and the mail that it has sent.
pub(crate) struct Driven {
    pub(crate) cx: Cx,
    pub(crate) home: Home,
    pub(crate) posts: Posts,
    pub(crate) codec: Codec,
}

/// A namespace that keeps ten publications for a minute.
pub(crate) fn with_history() -> Namespace {
    Namespace {
        history_size: 10,
        history_ttl_ms: 60_000,
        history_meta_ttl_ms: 600_000,
        ..Namespace::default()
    }
}

/// A connection by number.
pub(crate) fn conn(index: u32) -> ConnKey {
    ConnKey { index, generation: NonZeroU32::MIN }
}

/// The packed info of a user's client.
pub(crate) fn info(user: &str, client: &str) -> Box<[u8]> {
    ClientInfo { user, client, ..<_>::default() }.pack()
}

impl Driven {
    /// The home of shard 0 of this plan.
    pub(crate) fn of(plan: Plan) -> Self {
        let shards = plan.shards;
        let cx = plan.cx();
        let home = Home::new(&cx, shards, &mut Rng::new(1));
        Self { home, posts: Posts::new(shards, 8), codec: Codec::new(&cx), cx }
    }

    /// The same where channels are as this namespace says.
    pub(crate) fn with(channels: Namespace) -> Self {
        Self::of(Plan { channels, ..Plan::default() })
    }

    /// Handles one message.
    pub(crate) fn handle(&mut self, from: u8, mail: Mail) {
        let Self { cx, home, posts, codec } = self;
        home.handle(cx, ShardId(from), mail, &mut posts.post, codec);
    }

    /// Ends the turn, and takes the mail that has left for a shard.
    pub(crate) fn sent_to(&mut self, shard: u8) -> Vec<Mail> {
        let Self { cx, home, posts, codec } = self;
        home.send_events(cx, &mut posts.post, codec);
        home.send_gaps(&mut posts.post);
        posts.post.flush(cx);
        posts.sent_to(shard)
    }

    /// A publication of `channel`.
    pub(crate) fn publish(&self, channel: &str, data: &str) -> Publish {
        Publish {
            channel: channel.into(),
            hash: self.cx.node.names.hash(channel),
            namespace: 0,
            asker: Some(Asker { credits: 1, ..Asker::of(conn(99)) }),
            data: data.as_bytes().into(),
            info: Box::default(),
            tags: Default::default(),
            is_json: true,
            options: None,
        }
    }

    /// Shard 1 publishes.
    pub(crate) fn publishes(&mut self, channel: &str, data: &str) {
        let publish = self.publish(channel, data);
        self.handle(1, Mail::Publish(publish.into()));
    }

    /// Shard 1 publishes with options.
    pub(crate) fn publishes_with(&mut self, channel: &str, data: &str, options: PublishOptions) {
        let publish = Publish { options: Some(options.into()), ..self.publish(channel, data) };
        self.handle(1, Mail::Publish(publish.into()));
    }

    /// A subscription of connection `index` to `channel`, which its shard keeps as number 7.
    pub(crate) fn subscribe(&self, channel: &str, index: u32) -> Subscribe {
        Subscribe {
            channel: channel.into(),
            hash: self.cx.node.names.hash(channel),
            namespace: 0,
            local: 7,
            asker: Asker { credits: 1, ..Asker::of(conn(index)) },
            serial: index,
            traits: Traits::JSON.with_positioned(true),
            recover: None,
            membership: None,
        }
    }

    /// Connection `index` of shard 1 subscribes. The answer.
    pub(crate) fn subscribes(&mut self, channel: &str, index: u32) -> Subscribed {
        let subscribe = self.subscribe(channel, index);
        self.handle(1, Mail::Subscribe(subscribe.into()));
        self.subscribed()
    }

    /// The same behind a position.
    pub(crate) fn recovers(&mut self, channel: &str, since: Since) -> Subscribed {
        let recover =
            Recover { since, latest: false, filter: None, bytes_max: 1 << 20, as_pushes: false };
        let recover = Some(Box::new(recover));
        let subscribe = Subscribe { recover, ..self.subscribe(channel, 50) };
        self.handle(1, Mail::Subscribe(subscribe.into()));
        self.subscribed()
    }

    /// A member subscribes.
    pub(crate) fn joins(&mut self, channel: &str, index: u32, user: &str) {
        let info = info(user, &format!("client-{index}"));
        let membership = Some(Box::new(Membership { info, present: true, announces: true }));
        let traits = Traits::JSON.with_joins(true);
        let subscribe = Subscribe { membership, traits, ..self.subscribe(channel, index) };
        self.handle(1, Mail::Subscribe(subscribe.into()));
    }

    /// A member unsubscribes.
    pub(crate) fn leaves(&mut self, channel: &str, index: u32) {
        let unsubscribe = Unsubscribe {
            local: 7,
            channel: channel.into(),
            asker: None,
            traits: Traits::JSON.with_joins(true),
            member: Some(conn(index)),
        };
        self.handle(1, Mail::Unsubscribe(unsubscribe.into()));
    }

    /// The only answer to a subscription that shard 1 has got.
    fn subscribed(&mut self) -> Subscribed {
        let mut answers = self.sent_to(1).into_iter().filter_map(|mail| match mail {
            Mail::Subscribed(subscribed) => Some(*subscribed),
            _ => None,
        });
        let (first, none) = (answers.next(), answers.next());
        assert!(none.is_none());
        first.unwrap()
    }

    /// Shard 1 reads. The answer.
    pub(crate) fn reads(&mut self, channel: &str, what: Reading) -> Answer {
        let read = Read {
            channel: CompactString::new(channel),
            hash: self.cx.node.names.hash(channel),
            namespace: 0,
            asker: Asker::of(conn(98)),
            encoding: Encoding::Json,
            bytes_max: 1 << 20,
            what,
        };
        self.handle(1, Mail::Read(read.into()));
        let mut answers = self.sent_to(1).into_iter().filter_map(|mail| match mail {
            Mail::Answer { answer, .. } => Some(answer),
            _ => None,
        });
        let (first, none) = (answers.next(), answers.next());
        assert!(none.is_none());
        first.unwrap()
    }
}

/// Mail as a test reads it: deliveries by the text of their JSON frame, acknowledgements by offset.
pub(crate) fn texts(mail: &[Mail]) -> Vec<String> {
    let text = |mail: &Mail| match mail {
        Mail::Deliver { local, parcel } => {
            let frame = parcel.full(crate::base::form::Form::JSON).unwrap();
            // A frame of less than 126 bytes has two bytes of head.
            format!("{local} {}", String::from_utf8_lossy(&frame.bytes()[2..]))
        }
        Mail::Published { position, .. } => format!("published {}", position.offset),
        Mail::Subscribed(subscribed) => format!("subscribed {}", subscribed.position.offset),
        Mail::Unsubscribed { local, .. } => format!("unsubscribed {local}"),
        Mail::Gap { local } => format!("gap {local}"),
        Mail::Lapse { local } => format!("lapse {local}"),
        Mail::Answer { answer: Answer::Error(failure), .. } => format!("error {:?}", failure.code),
        other => format!("{other:?}"),
    };
    mail.iter().map(text).collect()
}

#[test]
fn a_home_is_driven_by_mail() {
    let mut driven = Driven::with(with_history());
    assert_eq!(driven.subscribes("news", 1).position.offset, 0);
    driven.publishes("news", "1");
    assert_eq!(driven.sent_to(1).len(), 2);
    assert!(driven.sent_to(1).is_empty());
}
