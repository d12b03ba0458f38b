//! A node of one shard for unit tests of its clients: connections, homes and subscribers' side, without the
//! shard that wires them.

use crate::base::id::{ConnKey, ShardId};
use crate::base::rng::Rng;
use crate::io::sim::{LinkId, SimDriver};
use crate::proto::client::{self, Reply};
use crate::session::{Session, Sub};
use crate::shard::clients::Clients;
use crate::shard::fixture::{Plan, Wired};
use crate::shard::flow::Flow;
use crate::shard::home::Home;
use crate::shard::local::LocalSide;
use crate::shard::mail::Mail;
use crate::shard::net::record::Phase;
use crate::shard::outlets::Outlets;

/// Clients, and everything that their commands need.
pub(crate) struct Scene {
    pub(crate) wired: Wired,
    pub(crate) home: Home,
    pub(crate) clients: Clients,
    pub(crate) side: LocalSide,
}

impl Scene {
    /// No clients yet. Those with a user may subscribe and publish everywhere.
    pub(crate) fn new(mut plan: Plan) -> Self {
        (plan.shards, plan.client.allow_anonymous) = (1, false);
        (plan.channels.allow_subscribe_for_client, plan.channels.allow_publish_for_client) =
            (true, true);
        let wired = Wired::new(plan);
        Self {
            home: Home::new(&wired.cx, 1, &mut Rng::new(1)),
            clients: Clients::new(&wired.cx),
            side: LocalSide::new(&wired.cx),
            wired,
        }
    }

    /// Calls a method of the clients.
    pub(crate) fn with<R>(
        &mut self,
        call: impl FnOnce(&mut Clients, &mut Outlets<'_, SimDriver>, &mut LocalSide) -> R,
    ) -> R {
        call(&mut self.clients, &mut self.wired.outlets(), &mut self.side)
    }

    /// A client has connected, and has read the reply.
    pub(crate) fn client(&mut self, user: &str) -> (LinkId, ConnKey) {
        let (link, key) = self.wired.connect_client();
        self.clients.asides.entry(key.index).header_user = user.into();
        assert_eq!(self.commands(key, r#"{"id":1,"connect":{}}"#), Flow::On);
        self.carry_mail();
        let reply = self.wired.received(link);
        assert!(reply.contains(r#""connect":{"#), "{reply}");
        (link, key)
    }

    /// A client that has subscribed to a channel besides; the channel's number.
    pub(crate) fn subscriber(&mut self, user: &str, channel: &str) -> (LinkId, ConnKey, u32) {
        let (link, key) = self.client(user);
        let command = format!(r#"{{"id":2,"subscribe":{{"channel":"{channel}"}}}}"#);
        assert_eq!(self.commands(key, &command), Flow::On);
        self.carry_mail();
        let reply = self.wired.received(link);
        assert!(reply.contains(r#""subscribe":{"#), "{reply}");
        (link, key, self.side.locals.find(channel).unwrap())
    }

    /// Commands of a client.
    pub(crate) fn commands(&mut self, key: ConnKey, text: &str) -> Flow {
        self.with(|clients, out, side| {
            clients.commands(out, side, key.index, client::commands(text))
        })
    }

    /// Carries the shard's mail to itself until there is none. Deliveries are dropped.
    pub(crate) fn carry_mail(&mut self) {
        let Self { wired, home, clients, side } = self;
        loop {
            wired.posts.post.flush_to(&wired.cx, ShardId(0));
            let mail = wired.posts.sent_to(0);
            if mail.is_empty() {
                return;
            }
            for mail in mail {
                let mut out = wired.outlets();
                let out = &mut out;
                let mut earn = |asker: crate::shard::mail::Asker| {
                    out.post.earn(ShardId(0), asker.credits);
                };
                match mail {
                    Mail::Subscribed(subscribed) => {
                        earn(subscribed.asker);
                        clients.subscribed(out, side, &subscribed);
                    }
                    Mail::Unsubscribed { local, asker } => {
                        asker.map(&mut earn);
                        clients.unsubscribed(out, side, local, asker);
                    }
                    Mail::Published { asker, .. } => {
                        earn(asker);
                        if clients.takes_answer(out, asker) {
                            let (index, id) = (asker.conn.index, asker.command);
                            out.net.reply(out.cx, out.codec, index, id, &Reply::Publish);
                        }
                    }
                    Mail::Answer { asker, answer } => {
                        earn(asker);
                        clients.answered(out, side, asker, &answer);
                    }
                    Mail::UserEntered { asker, admitted } => {
                        earn(asker);
                        clients.user_entered(out, side, asker, admitted);
                    }
                    Mail::Evict { conn } => clients.evict(out, side, conn),
                    Mail::Deliver { .. } | Mail::Gap { .. } => {}
                    mail => home.handle(out.cx, ShardId(0), mail, out.post, out.codec),
                }
            }
        }
    }

    /// The session of a connection.
    pub(crate) fn session(&mut self, key: ConnKey) -> Option<&mut Session> {
        self.clients.session_of(&self.wired.net, key.index)
    }

    /// A subscription of a connection.
    pub(crate) fn sub(&mut self, key: ConnKey, channel: u32) -> Option<Sub> {
        self.session(key)?.subs.find(channel).map(|sub| *sub)
    }

    /// The phase of a connection.
    pub(crate) fn phase(&mut self, key: ConnKey) -> Option<Phase> {
        self.wired.net.conn(key).map(|conn| conn.phase)
    }

    /// All peers go. Returns everything that is left then.
    pub(crate) fn end(mut self) -> Vec<(&'static str, usize)> {
        for key in self.wired.net.keys() {
            let out = self.wired.outlets();
            out.net.release(out.cx, out.post, key.index, true);
        }
        self.with(|clients, out, side| clients.clean_up_leavers(out, side));
        self.carry_mail();
        let mut left = self.clients.left().to_vec();
        left.extend(self.side.left());
        left.retain(|(_, count)| *count > 0);
        left.extend(self.wired.end());
        left
    }
}
