//! What unit tests of the groups need: a node without threads, the context of a turn, and a post whose
//! mail can be read.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::codec::Codec;
use super::context::Cx;
use super::local::LocalSide;
use super::mail::mailbox::tests::mailbox;
use super::mail::post::Post;
use super::mail::{BROKER, CONTROL, Mail, MailLane, Mailbox, Outside, PRESENCE_BROKER};
use super::net::Net;
use super::net::record::{NONE, Phase};
use super::outlets::Outlets;
use super::{
    AddressSources, Broker, Memory, NodeParts, NodeState, Notices, Options, Presence, Seat, Shard,
    UniWebSocketOptions,
};
use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::id::{ConnKey, ShardId};
use crate::base::rng::Rng;
use crate::base::tags::Tags;
use crate::base::time::{Millis, UnixSeconds};
use crate::edge::address_limits::{AddressLimits, AddressOptions};
use crate::edge::channels::{ChannelRules, ChannelSyntax, Namespace};
use crate::edge::client_id::ClientIdSealer;
use crate::edge::host::HostRules;
use crate::edge::jwt::{TokenKeys, TokenOptions};
use crate::edge::origin::OriginRules;
use crate::hub::names::NameHasher;
use crate::hub::parcel::{Frames, Parcel, ParcelKind};
use crate::hub::subscribers::{Subscriber, Traits};
use crate::io::Driver;
use crate::io::sim::{Faults, LinkId, SharedWorld, SimDriver, Sizes, World};
use crate::proto::tls::handshake::ServerSettings;
use crate::session::{ClientOptions, Rules, testing};
use crate::shard::crypto::Crypto;

/// A publication as homes send it, in the frame of JSON.
pub(crate) fn parcel(offset: u64, text: &str) -> Arc<Parcel> {
    let frames = Frames { full: Some(SharedFrame::new(text.as_bytes())), patch: None };
    let mut parcel = Parcel::new(ParcelKind::Publication, offset, Tags::NONE);
    parcel.frames.push((Form::JSON.subscriber(false, false), frames));
    Arc::new(parcel)
}

/// A channel with subscribers on this shard; the even ones have a position.
pub(crate) fn channel(local: &mut LocalSide, name: &str, subscribers: u32) -> u32 {
    let at = local.locals.find_or_insert(name, 0);
    let record = local.locals.get(at).unwrap();
    record.claims = subscribers;
    for conn in 0..subscribers {
        let traits = Traits::new(Form::JSON.subscriber(false, false));
        let traits = traits.with_positioned(conn % 2 == 0);
        record.subscribers.add(Subscriber { conn, traits });
    }
    at
}

/// Options of a shard that a test needn't care about.
pub(crate) fn options() -> Options {
    Options {
        conns_soft: 100,
        conns_max: 100,
        handshake_timeout_ms: 1_000,
        close_timeout_ms: 1_000,
        write_timeout_ms: 1_000,
        idle_timeout_ms: 1_000,
        message_bytes_max: 65_536,
        inflated_bytes_max: 655_360,
        endpoints: Vec::new(),
        deflate: None,
        uni_websocket: UniWebSocketOptions::default(),
        poll_wait_ms: 1_000,
        spin_us: 0,
        one_accepts: false,
        listeners_stay: false,
        addresses: AddressSources::default(),
        web: Vec::new(),
        channels_idle_max: 100,
        requests_unanswered_max: 4,
        turn_deliveries_max: 512,
        turn_ordered_max: 256,
        hosts: HostRules::default(),
        broker: Broker::Memory,
        presence: Presence::WithChannels,
        presence_ttl_s: 60,
        broker_window_bytes: 1 << 20,
        lapsed_batch: 100,
        tls_handshakes_max: 30,
    }
}

/// Options of clients that a test needn't care about: nothing is limited.
fn client() -> ClientOptions {
    ClientOptions {
        allow_anonymous: true,
        ping_interval_ms: None,
        pong_timeout_ms: None,
        expired_close_delay_ms: 2_000,
        expired_sub_close_delay_ms: 2_000,
        version: "test".into(),
        ..testing::client()
    }
}

/// A node to be: a test changes what it is about.
pub(crate) struct Plan {
    pub(crate) shards: usize,
    pub(crate) channels: Namespace,
    pub(crate) client: ClientOptions,
    pub(crate) keys: TokenOptions,
    pub(crate) crypto: Crypto,
    pub(crate) memory: Memory,
    pub(crate) options: Options,
    pub(crate) tls: Option<ServerSettings>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            shards: 2,
            channels: Namespace::default(),
            client: client(),
            keys: TokenOptions::default(),
            crypto: Crypto::Inline,
            memory: Memory::simulated(u64::MAX / 4),
            options: options(),
            tls: None,
        }
    }
}

impl Plan {
    /// The node of this plan.
    #[expect(clippy::disallowed_methods, reason = "no test reads the clock of log lines")]
    pub(crate) fn node(self) -> Arc<NodeState> {
        let rules = Rules {
            api: ArcSwap::from_pointee(None),
            client: ArcSwap::from_pointee(self.client),
            keys: TokenKeys::new(&self.keys).unwrap(),
            subscription_keys: None,
            channels: ChannelRules::new(self.channels, Vec::new(), ChannelSyntax::default())
                .into_shared(),
            origins: ArcSwap::from_pointee(OriginRules::new(&["*".to_string()]).unwrap()),
            client_ids: ClientIdSealer::new(&[7; 32]),
            session_ids: ClientIdSealer::new(&[8; 32]),
            node_id: "node".to_owned(),
            rpc: Default::default(),
            admin: None,
        };
        Arc::new(NodeState::new(NodeParts {
            rules,
            options: self.options,
            names: NameHasher::new(1, self.shards),
            crypto: self.crypto,
            memory: self.memory,
            addresses: AddressLimits::new(AddressOptions::default(), 1, 100),
            notices: Notices::new(std::time::Instant::now()),
            tls: self.tls.map(|tls| Arc::new(ArcSwap::from_pointee(tls))),
        }))
    }

    /// The context of shard 0 of this plan's node, at 1 s by the shard's clock.
    pub(crate) fn cx(self) -> Cx {
        Cx::new(self.node(), ShardId(0), Millis(1_000), UnixSeconds(1_000_000))
    }
}

/// The post of shard 0, and the mailboxes of all others.
pub(crate) struct Posts {
    pub(crate) post: Post,
    mailboxes: Vec<Mailbox>,
    control: Mailbox,
    broker: Mailbox,
    presence: Mailbox,
}

impl Posts {
    /// Of a node with so many shards, with room for so many batches at each.
    pub(crate) fn new(shards: usize, batches: usize) -> Self {
        let (letterboxes, mut mailboxes): (Vec<_>, Vec<_>) = (0..shards)
            .map(|_| {
                let (letterbox, mailbox, _) = mailbox(batches);
                (letterbox, mailbox)
            })
            .unzip();
        let (to_control, control, _) = mailbox(batches);
        let (to_broker, broker, _) = mailbox(batches);
        let (to_presence, presence, _) = mailbox(batches);
        let own = mailboxes.remove(0);
        let (to_broker, to_presence) = (Some(to_broker), Some(to_presence));
        let outside = Outside { control: to_control, broker: to_broker, presence: to_presence };
        let post = Post::new(own, letterboxes, outside, 4);
        Self { post, mailboxes, control, broker, presence }
    }

    /// Takes the mail that has left for a shard.
    pub(crate) fn sent_to(&mut self, shard: u8) -> Vec<Mail> {
        let mut mail = Vec::new();
        match shard {
            0 => {
                while let Some(batch) = self.post.take_own_batch() {
                    mail.extend(batch.mail);
                }
            }
            _ => {
                let mailbox = match ShardId(shard) {
                    CONTROL => &self.control,
                    BROKER => &self.broker,
                    PRESENCE_BROKER => &self.presence,
                    _ => &self.mailboxes[usize::from(shard) - 1],
                };
                while let Some(batch) = mailbox.take() {
                    mail.extend(batch.mail);
                }
            }
        }
        mail
    }
}

#[test]
fn mail_of_a_fixture_is_read_where_it_was_sent() {
    let cx = Plan { shards: 3, ..Plan::default() }.cx();
    let mut posts = Posts::new(3, 1);
    for to in [ShardId(0), ShardId(2), CONTROL, BROKER, PRESENCE_BROKER] {
        posts.post.send(&cx, to, Mail::Gap { local: 0 });
    }
    posts.post.flush(&cx);
    let all = [0, 1, 2, CONTROL.0, BROKER.0, PRESENCE_BROKER.0];
    assert_eq!(all.map(|shard| posts.sent_to(shard).len()), [1, 0, 1, 1, 1, 1]);
}

/// A shard alone on simulated sockets, and the way of the control thread's mail to it.
pub(crate) fn shard(plan: Plan) -> (Shard<SimDriver>, MailLane, SharedWorld) {
    let sizes =
        Sizes { shards: 1, pipe_bytes: 4096, read_buffer_bytes: 4096, passing: 1, events: 8 };
    let world = World::new(1, sizes, Faults::NONE);
    let (letterbox, own, _) = mailbox(8);
    let (control, ..) = mailbox(8);
    let lane = MailLane::new(letterbox.clone());
    let (id, letterboxes) = (ShardId(0), vec![letterbox]);
    let outside = Outside::new(control);
    let seat = Seat { shard: id, mailbox: own, letterboxes, outside, seed: 1 };
    let driver = SimDriver::new(&world, id);
    (Shard::new(Plan { shards: 1, ..plan }.node(), seat, driver, || ()), lane, world)
}

/// The connections of shard 0 on simulated sockets, driven without a shard.
pub(crate) struct Wired {
    pub(crate) cx: Cx,
    pub(crate) codec: Codec,
    pub(crate) posts: Posts,
    pub(crate) net: Net<SimDriver>,
    pub(crate) world: SharedWorld,
}

impl Wired {
    /// No connections, on a network without faults whose sockets hold 4 KiB.
    pub(crate) fn new(plan: Plan) -> Self {
        let sizes = Sizes {
            shards: plan.shards,
            pipe_bytes: 4096,
            read_buffer_bytes: 4096,
            passing: 8,
            events: 64,
        };
        let posts = Posts::new(plan.shards, 8);
        let mut cx = plan.cx();
        let world = World::new(1, sizes, Faults::NONE);
        let driver = SimDriver::new(&world, ShardId(0));
        (cx.now, cx.unix) = (driver.now(), driver.unix());
        let net = Net::new(&cx, driver, Rng::new(1));
        Self { codec: Codec::new(&cx), cx, posts, net, world }
    }

    /// The outlets of this shard, for a group that stands above them.
    pub(crate) fn outlets(&mut self) -> Outlets<'_, SimDriver> {
        let Self { cx, net, posts, codec, .. } = self;
        Outlets { cx, net, post: &mut posts.post, codec }
    }

    /// A client connects, and its connection gets a slot.
    pub(crate) fn connect(&mut self) -> (LinkId, ConnKey) {
        let link = self.world.borrow_mut().connect_to(ShardId(0));
        let before = self.net.keys();
        self.net.set_acceptable();
        self.net.accept_some(&self.cx, &mut self.posts.post);
        (link, self.net.keys().into_iter().find(|key| !before.contains(key)).unwrap())
    }

    /// The same, and it is a client that speaks JSON over a WebSocket.
    pub(crate) fn connect_client(&mut self) -> (LinkId, ConnKey) {
        let (link, key) = self.connect();
        self.net.at_mut(key.index).unwrap().phase = Phase::Client;
        (link, key)
    }

    /// Bytes of a request head, or of what comes behind one.
    pub(crate) fn request(&mut self, key: ConnKey, bytes: &str) {
        let Self { net, cx, codec, posts, .. } = self;
        match net.at(key.index).unwrap().phase {
            Phase::Body => net.web_body(cx, &mut posts.post, key, bytes.as_bytes()),
            _ => net.head(cx, codec, &mut posts.post, key, bytes.as_bytes()),
        }
    }

    /// Time passes.
    pub(crate) fn after(&mut self, ms: u64) {
        self.cx.now = self.cx.now.after(ms);
        self.world.borrow_mut().advance_to(self.cx.now);
    }

    /// Writes what is queued. Returns what a client has got then.
    pub(crate) fn received(&mut self, link: LinkId) -> String {
        self.flush();
        self.after(1);
        let bytes = self.world.borrow_mut().read(link, usize::MAX);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Writes what is queued, as a turn does.
    pub(crate) fn flush(&mut self) {
        let Self { net, cx, codec, posts, .. } = self;
        let dirty = net.take_dirty();
        for key in &dirty {
            if !net.list_to_write(*key) {
                net.after_write(cx, codec, &mut posts.post, *key);
            }
        }
        net.send_listed();
        let mut results = 0..;
        while results.next().is_some_and(|at| net.take_sent(cx, codec, &mut posts.post, at)) {}
        net.end_writes(dirty);
    }

    /// Ends all connections, and returns what is left of them then.
    pub(crate) fn end(mut self) -> Vec<(&'static str, usize)> {
        for key in self.net.keys() {
            self.net.release(&self.cx, &mut self.posts.post, key.index, true);
        }
        while let Some(index) = self.net.next_leaver() {
            self.net[index].session = NONE;
            self.net.free_slot(index);
        }
        self.net.forget_turn();
        self.net.left().into_iter().filter(|(_, count)| *count > 0).collect()
    }
}
