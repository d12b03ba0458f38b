//! Freezing and thawing: a shard that has settled is written to bytes, and a shard of another process, or of
//! another version, is made of them and of the sockets.
//!
//! Each group writes and reads its own records and points at other groups by number only: slots of
//! connections, sessions and channels, generations, numbers of filters. What is made anew is derived (tables
//! of names, users, timers) or a cache (patches, encoded answers, remembered tokens).

use std::sync::Arc;

use super::clients::image::ClientsReader;
use super::codec::Codec;
use super::context::Cx;
use super::home::image::HomeReader;
use super::life::Life;
use super::local::image::LocalReader;
use super::mail::post::Post;
use super::net::image::NetReader;
use super::orders::Orders;
use super::outlets::outlets;
use super::{NodeState, Seat, Shard};
use crate::base::id::ConnKey;
use crate::base::image::{Broken, ImageReader, kind};
use crate::base::rng::Rng;
use crate::base::time::Millis;
use crate::io::Driver;
use crate::session::{Session, SubState};
use crate::shard::clients::aside::Admin;
use crate::shard::net::record::{NONE, Phase};

/// A shard as bytes, and its sockets.
pub struct Frozen<S> {
    /// The image.
    pub image: Vec<u8>,
    /// The sockets, by the key of their connection.
    pub sockets: Vec<(ConnKey, S)>,
}

impl<D: Driver> Shard<D> {
    /// Writes the shard, which has settled, and ends it: its sockets stay open.
    ///
    /// # Errors
    /// The shard, and what [`Self::unsettled`] names.
    #[expect(clippy::type_complexity, reason = "the shard comes back")]
    pub fn freeze(mut self) -> Result<Frozen<D::Socket>, (Box<Self>, Vec<(&'static str, usize)>)> {
        match self.handing_over().image() {
            Ok(image) => Ok(Frozen { image, sockets: self.net.into_sockets() }),
            Err(left) => Err((Box::new(self), left)),
        }
    }

    /// A shard of an image and the sockets that belong to it. What the node counts is counted for its
    /// connections.
    ///
    /// # Errors
    /// The image is none of this shard, or of one that is whole; or a socket is missing.
    pub fn thaw(
        node: Arc<NodeState>,
        seat: Seat,
        driver: D,
        collect: fn(),
        from: &mut ImageReader<'_>,
        sockets: impl IntoIterator<Item = (ConnKey, D::Socket)>,
    ) -> Result<Self, Broken> {
        let mut thawing = Thawing::new(node, seat, driver, collect);
        for (key, socket) in sockets {
            thawing.socket(key, socket)?;
        }
        thawing.part(from)?;
        thawing.end()
    }

    /// Each session has a connection, and each connection that names one has that one.
    fn check_sessions(&self) -> Result<(), Broken> {
        let of_conns = self.net.conns.iter().filter(|(_, conn)| conn.session != NONE);
        let good = |index: usize, session: u32| {
            let session = self.clients.sessions.get(session as usize);
            session.is_some_and(|session| session.conn as usize == index)
        };
        let mut count = 0;
        for (index, conn) in of_conns {
            if !good(index, conn.session) {
                return Err(Broken::Value("the session of a connection"));
            }
            count += 1;
        }
        if count != self.clients.sessions.len() {
            return Err(Broken::Value("the connection of a session"));
        }
        let (net, conns) = (&self.net, &self.net.conns);
        let has = |index: u32| conns.contains(index as usize);
        let is_poll = |index: u32| net.form(index).is_poll();
        let good = self.clients.asides.iter().all(|(index, _)| has(index))
            && net.http.polls.keys().all(|index| has(*index) && is_poll(*index))
            && net.http.heads.keys().all(|index| has(*index))
            && net.replaceable.order().into_iter().all(has)
            && net.addresses.indexes().all(has);
        if good { Ok(()) } else { Err(Broken::Value("a part of a connection")) }
    }

    /// Figures of the node and of the shard that are kept, and not read off.
    fn count_what_is_there(&self) {
        let counters = self.cx.counters();
        let live = |session: &Session| {
            let subs = session.subs.as_slice().iter();
            subs.filter(|sub| sub.state == SubState::Live && !sub.flags.hidden()).count() as u64
        };
        let subscriptions = self.clients.sessions.iter().map(|(_, session)| live(session)).sum();
        counters.subscriptions.add(subscriptions);
        let admins =
            self.clients.asides.iter().filter(|(_, of)| of.admin == Some(Admin::Connected));
        let admins = admins.count() as u32;
        self.cx.node.admins.fetch_add(admins, std::sync::atomic::Ordering::Relaxed);
        debug_assert!(self.net.conns.iter().all(|(_, conn)| conn.phase != Phase::Leaving));
    }
}

/// A shard that is made of an image in parts, while the one that it is written from runs. It does nothing before it
/// is whole.
pub struct Thawing<D: Driver> {
    cx: Cx,
    seat: Seat,
    collect: fn(),
    /// The image says of which shard it is.
    is_named: bool,
    home: HomeReader,
    local: LocalReader,
    clients: ClientsReader,
    net: NetReader<D>,
}

impl<D: Driver> Thawing<D> {
    /// A shard of which nothing has come.
    pub fn new(node: Arc<NodeState>, seat: Seat, mut driver: D, collect: fn()) -> Self {
        let mut rng = Rng::new(seat.seed);
        let cx = Cx::new(node, seat.shard, driver.now(), driver.unix());
        // The other process has its copies until it has ended.
        driver.share(false);
        Self {
            home: HomeReader::new(&cx, seat.letterboxes.len(), &mut rng),
            local: LocalReader::default(),
            clients: ClientsReader::new(&cx),
            net: NetReader::new(&cx, driver, rng),
            is_named: false,
            collect,
            seat,
            cx,
        }
    }

    /// The time of its driver.
    pub fn now(&self) -> Millis {
        self.cx.now
    }

    /// Takes the socket of a connection.
    ///
    /// # Errors
    /// It can't be watched, or came before.
    pub fn socket(&mut self, key: ConnKey, socket: D::Socket) -> Result<(), Broken> {
        self.net.socket(&self.cx, key, socket)
    }

    /// A connection whose socket has come has ended.
    pub fn gone(&mut self, key: ConnKey) {
        self.net.gone(key);
    }

    /// Takes what the kernel has reported of the sockets so far, so that the shard begins without it.
    pub fn drain_driver(&mut self) {
        self.net.drain_driver();
    }

    /// Reads the next part of the image.
    ///
    /// # Errors
    /// It is none of this shard.
    pub fn part(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let Self { cx, home, local, clients, net, .. } = self;
        while let Some(found) = from.next_record()? {
            if found == kind::SHARD {
                let of = (self.seat.shard, self.seat.letterboxes.len());
                if of != (from.field("Shard.id")?, from.field("Shard.count")?) {
                    return Err(Broken::Value("the number of the shard"));
                }
                self.is_named = true;
                continue;
            }
            let taken = home.record(cx, found, from)?
                || local.record(cx, found, from)?
                || clients.record(&cx.node.names, found, from)?
                || net.record(cx, found, from)?;
            if !taken {
                from.pass_over()?;
            }
        }
        Ok(())
    }

    /// The shard, when all of it has come. What the node counts is counted for its connections.
    ///
    /// # Errors
    /// Something is missing, or doesn't fit.
    pub fn end(self) -> Result<Shard<D>, Broken> {
        let Self { cx, seat, collect, is_named, home, local, clients, net } = self;
        if !is_named {
            return Err(Broken::Value("the number of the shard"));
        }
        let mut local = local.end()?;
        let clients = clients.end(&cx, &mut local.locals)?;
        let unanswered_max = cx.node.options.requests_unanswered_max;
        let mut shard = Shard {
            home: home.end()?,
            post: Post::new(seat.mailbox, seat.letterboxes, seat.outside, unanswered_max),
            local,
            clients,
            codec: Codec::new(&cx),
            orders: Orders::default(),
            life: Life::new(cx.now, collect),
            net: net.end(&cx)?,
            cx,
        };
        shard.cx.resumes = true;
        shard.check_sessions()?;
        shard.count_what_is_there();
        let indexes: Vec<u32> = shard.net.conns.iter().map(|(index, _)| index as u32).collect();
        for index in indexes {
            shard.clients.schedule(&mut outlets!(shard), index);
        }
        shard.set_gauges();
        Ok(shard)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::id::ShardId;
    use crate::edge::channels::Namespace;
    use crate::io::sim::{Faults, LinkId, SharedWorld, SimDriver, Sizes, World};
    use crate::proto::ws;
    use crate::shard::fixture::Plan;
    use crate::shard::http::endpoint::{Endpoint, EndpointKind};
    use crate::shard::mail::Outside;
    use crate::shard::mail::mailbox::tests::mailbox;

    /// One shard on a network without faults, and clients of it.
    pub(crate) struct Alone {
        pub(crate) shard: Shard<SimDriver>,
        pub(crate) world: SharedWorld,
        clock: i64,
    }

    pub(crate) fn node() -> Arc<NodeState> {
        let channels = Namespace {
            allow_subscribe_for_client: true,
            allow_subscribe_for_anonymous: true,
            allow_publish_for_client: true,
            allow_publish_for_anonymous: true,
            presence: true,
            history_size: 5,
            history_ttl_ms: 60_000,
            history_meta_ttl_ms: 60_000,
            force_positioning: true,
            ..Namespace::default()
        };
        let mut plan = Plan { shards: 1, channels, ..Plan::default() };
        plan.client.channel_limit = 10;
        plan.client.queue_bytes_max = 1 << 20;
        plan.options.endpoints = vec![Endpoint::new("/ws", EndpointKind::WebSocket)];
        plan.options.handshake_timeout_ms = 10_000;
        plan.node()
    }

    /// A message of a client, masked with zeros.
    pub(crate) fn masked(message: &str) -> Vec<u8> {
        let mut frame = ws::frame(ws::TEXT, message.as_bytes()).bytes().to_vec();
        frame[1] |= 0x80;
        frame.splice(2..2, [0; 4]);
        frame
    }

    pub(crate) fn seat() -> Seat {
        let (letterbox, own, _) = mailbox(8);
        let (control, ..) = mailbox(8);
        let outside = Outside::new(control);
        Seat { shard: ShardId(0), mailbox: own, letterboxes: vec![letterbox], outside, seed: 7 }
    }

    impl Alone {
        pub(crate) fn new() -> Self {
            let sizes = Sizes {
                shards: 1,
                pipe_bytes: 4096,
                read_buffer_bytes: 4096,
                passing: 8,
                events: 64,
            };
            let world = World::new(1, sizes, Faults::NONE);
            let driver = SimDriver::new(&world, ShardId(0));
            let shard = Shard::new(node(), seat(), driver, || {});
            Self { shard, world, clock: 0 }
        }

        /// A client upgrades its connection.
        pub(crate) fn connect(&mut self) -> LinkId {
            let link = self.world.borrow_mut().connect_to(ShardId(0));
            let request = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
            self.world.borrow_mut().write(link, request.as_bytes());
            link
        }

        /// A client sends a message.
        pub(crate) fn says(&mut self, link: LinkId, message: &str) {
            self.world.borrow_mut().write(link, &masked(message));
        }

        pub(crate) fn turns(&mut self) {
            for _ in 0..10 {
                let now = self.world.borrow().now();
                let now = Millis(now.0.saturating_add_signed(self.clock));
                self.shard.turn_after(Some(now));
            }
        }

        /// The bytes that a client gets when the shard has done what there is to do.
        pub(crate) fn hears(&mut self, link: LinkId) -> String {
            self.turns();
            let bytes = self.world.borrow_mut().read(link, usize::MAX);
            String::from_utf8_lossy(&bytes).into_owned()
        }

        /// Settles, freezes and thaws. The image.
        fn replace(&mut self) -> Vec<u8> {
            self.shard.settle().unwrap();
            self.turns();
            let driver = SimDriver::new(&self.world, ShardId(0));
            let empty = Shard::new(node(), seat(), driver, || {});
            let frozen = std::mem::replace(&mut self.shard, empty).freeze();
            let Frozen { image, sockets } = frozen.map_err(|(_, left)| left).unwrap();
            self.clock += 100_000;
            let driver = SimDriver::with_clock(&self.world, ShardId(0), self.clock);
            let mut from = ImageReader::new(&image, driver.now()).unwrap();
            self.shard = Shard::thaw(node(), seat(), driver, || {}, &mut from, sockets).unwrap();
            image
        }
    }

    #[test]
    fn a_shard_goes_on_from_its_image() {
        let mut of = Alone::new();
        let (one, two) = (of.connect(), of.connect());
        for link in [one, two] {
            of.says(link, r#"{"id":1,"connect":{}}"#);
            of.says(link, r#"{"id":2,"subscribe":{"channel":"news"}}"#);
            assert!(of.hears(link).contains("epoch"));
        }
        // Half a head, half a frame, and a publication that nobody has read.
        let half = of.world.borrow_mut().connect_to(ShardId(0));
        of.world.borrow_mut().write(half, b"GET /ws HT");
        let frame = masked(r#"{"id":9,"unsubscribe":{"channel":"other"}}"#);
        of.world.borrow_mut().write(one, &frame[..7]);
        of.says(two, r#"{"id":3,"publish":{"channel":"news","data":{"n":1}}}"#);
        of.turns();
        let image = of.replace();
        assert_eq!(of.shard.cx.counters().connections_open.get(), 3);
        assert_eq!(of.shard.cx.counters().subscriptions.get(), 2);
        assert!(of.hears(one).contains(r#""offset":1"#));
        of.hears(two);
        // What is left of the halves.
        of.world.borrow_mut().write(one, &frame[7..]);
        let reply = of.hears(one);
        assert!(reply.contains(r#""id":9"#), "{reply}");
        of.world.borrow_mut().write(half, b"TP/1.1\r\nHost: a\r\n\r\n");
        assert!(of.hears(half).contains("HTTP/1.1 "));
        // Offsets and subscriptions go on, and another image is the same but for what was read.
        of.says(one, r#"{"id":4,"publish":{"channel":"news","data":{"n":2}}}"#);
        assert!(of.hears(two).contains(r#""offset":2"#));
        let again = of.replace();
        assert!(again.len() > image.len() / 2);
        let third = of.replace();
        assert_eq!(third.len(), of.replace().len());
        for link in [one, two, half] {
            of.world.borrow_mut().shut(link);
        }
        of.turns();
        assert_eq!(of.shard.cx.counters().connections_open.get(), 0);
    }

    #[test]
    fn a_shard_that_was_written_goes_on_as_before() {
        let mut of = Alone::new();
        let link = of.connect();
        of.says(link, r#"{"id":1,"connect":{}}"#);
        of.says(link, r#"{"id":2,"subscribe":{"channel":"news"}}"#);
        of.hears(link);
        let frame = masked(r#"{"id":3,"publish":{"channel":"news","data":{"n":1}}}"#);
        of.world.borrow_mut().write(link, &frame[..11]);
        of.turns();
        of.shard.settle().unwrap();
        of.turns();
        let image = of.shard.handing_over().image().unwrap();
        assert_eq!(of.shard.handing_over().image().unwrap(), image, "writing changes nothing");
        assert_eq!(of.shard.handing_over().sockets().count(), 1);
        of.shard.go_on();
        of.world.borrow_mut().write(link, &frame[11..]);
        let heard = of.hears(link);
        assert!(heard.contains(r#""offset":1"#) && heard.contains(r#""id":3"#), "{heard}");
    }

    #[test]
    fn changed_images_are_refused() {
        let mut of = Alone::new();
        let link = of.connect();
        of.says(link, r#"{"id":1,"connect":{}}"#);
        of.says(link, r#"{"id":2,"subscribe":{"channel":"news"}}"#);
        of.hears(link);
        of.shard.settle().unwrap();
        of.turns();
        let Frozen { image, sockets } = of.shard.freeze().map_err(|(_, left)| left).unwrap();
        let keys: Vec<ConnKey> = sockets.iter().map(|(key, _)| *key).collect();
        let body = &image[..image.len() - 4];
        let mut refused = 0;
        for at in 10..body.len() {
            for bit in [0, 3, 7] {
                let mut changed = body.to_vec();
                changed[at] ^= 1 << bit;
                crate::base::image::seal(&mut changed);
                // Each time with sockets of a network of its own.
                let alone = Alone::new();
                let driver = SimDriver::new(&alone.world, ShardId(0));
                let sockets: Vec<_> = keys
                    .iter()
                    .filter_map(|key| {
                        let mut driver = SimDriver::new(&alone.world, ShardId(0));
                        alone.world.borrow_mut().connect_to(ShardId(0));
                        let crate::io::Accepted::Socket(socket) = driver.accept() else {
                            return None;
                        };
                        driver.watch(*key, &socket).unwrap();
                        Some((*key, socket))
                    })
                    .collect();
                let mut from = ImageReader::new(&changed, Millis(1_000)).unwrap();
                let thawed = Shard::thaw(node(), seat(), driver, || {}, &mut from, sockets);
                refused += usize::from(thawed.is_err());
            }
        }
        // Others say something else that can be: another time, another user, another option.
        assert!(refused > body.len(), "{refused} of {}", 3 * body.len());
    }
}
