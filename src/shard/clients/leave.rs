//! The session's half of every ending: out of the lists of subscribers and of the index of users. Homes are
//! informed as far as there is room for mail; the rest stays owed in the session, and its slot in use.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use compact_str::CompactString;

use crate::base::id::ConnKey;
use crate::edge::client_id::ClientId;
use crate::io::Driver;
use crate::proto::client::Disconnect;
use crate::session::{Session, State, Sub, SubState};
use crate::shard::clients::Clients;
use crate::shard::clients::aside::{Admin, Check};
use crate::shard::local::LocalSide;
use crate::shard::mail::{AppEvent, Mail};
use crate::shard::net::Net;
use crate::shard::net::record::NONE;
use crate::shard::outlets::Outlets;

/// How a session ended, as the application gets to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    /// Code of the client protocol.
    pub(crate) code: u16,
    /// The reason that belongs to it.
    pub(crate) reason: &'a str,
}

impl End<'static> {
    /// The client or the network ended it, or nobody is to be informed.
    pub(crate) fn closed() -> Self {
        let why = Disconnect::ConnectionClosed;
        Self { code: why.code(), reason: why.reason() }
    }
}

impl End<'static> {
    /// A poll has its answer: its client comes back with the next one, so that nothing has ended.
    pub(crate) fn of_poll() -> Self {
        Self { code: 0, reason: "" }
    }
}

impl End<'_> {
    /// The application gets an event about it.
    fn is_reported(self) -> bool {
        self.code > 0
    }

    fn event(self, session: &Session, client: ClientId, address: Option<IpAddr>) -> AppEvent {
        AppEvent::Disconnect {
            client: CompactString::new(client.text().as_str()),
            user: session.user.clone(),
            address,
            code: self.code,
            reason: CompactString::new(self.reason),
        }
    }
}

impl Clients {
    /// A connection is no client's any more: the parts beside its session go.
    pub(crate) fn forget_client<D: Driver>(&mut self, out: &mut Outlets<'_, D>, index: u32) {
        out.net.leave_client_place(out.cx, index);
        if let Some(aside) = self.asides.remove(index) {
            if let Some(Check::Requested(interest)) = aside.check {
                interest.withdraw();
                out.cx.counters().tokens_withdrawn.add(1);
            }
            if aside.admin == Some(Admin::Connected) {
                out.cx.node.admins.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes a session out of the subscriber lists and the user index. Homes are informed as far as
    /// there is room for mail, the rest stays owed: a later call goes on with it, and its `end` is of no
    /// account.
    pub(crate) fn detach<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        end: End<'_>,
    ) {
        out.net.leave_client_place(out.cx, index);
        let Some(conn) = out.net.at(index) else { return };
        let (at, key) = (conn.session, conn.key(index));
        let Some(session) = self.sessions.get_mut(at as usize) else { return };
        let subs = std::mem::take(&mut session.subs);
        if !session.flags.detached() {
            let is_reported = out.cx.client.disconnect_events && end.is_reported();
            if is_reported
                && !session.flags.hidden()
                && State::of(Some(session)) == State::Connected
            {
                let event =
                    end.event(session, out.cx.client_id(key), out.net.client_address(index));
                out.post.report(event);
            }
            session.flags.set_detached(true);
            let extra = session.extra.take();
            for sub in extra.iter().flat_map(|extra| &extra.subs) {
                if let Some(filter) = sub.filter {
                    side.filters.release(filter);
                }
            }
            self.forget_user(out.cx, at);
        }
        for sub in subs.as_slice() {
            let mut sub = *sub;
            self.leave_list(out, side, &mut sub);
            if side.leave_home_if_room(out, index, &sub).is_err()
                && let Some(session) = self.sessions.get_mut(at as usize)
            {
                session.subs.push(sub);
            }
        }
        self.leave_user(out, at, key);
        let done = |session: &Session| session.subs.is_empty() && !session.flags.user_counted();
        if self.sessions.get(at as usize).is_some_and(done) {
            self.sessions.remove(at as usize);
            if let Some(conn) = out.net.at_mut(index) {
                conn.session = NONE;
            }
        }
    }

    /// Informs the home of a user that one of its connections has gone, if there is room.
    fn leave_user<D: Driver>(&mut self, out: &mut Outlets<'_, D>, session: u32, conn: ConnKey) {
        let Some(session) = self.sessions.get_mut(session as usize) else { return };
        let home = out.cx.node.names.home(out.cx.node.names.hash(&session.user));
        if !session.flags.user_counted() || out.post.is_full(home) {
            return;
        }
        session.flags.set_user_counted(false);
        let user = session.user.as_str().into();
        out.post.send(out.cx, home, Mail::UserLeave { user, conn });
    }

    /// Takes a subscription out of its channel's list.
    pub(crate) fn leave_list<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        sub: &mut Sub,
    ) {
        if sub.state == SubState::Live {
            let held = side.locals.held(sub.channel);
            if let Some(local) = side.locals.get(sub.channel)
                && let Some(moved) = local.subscribers.remove(sub.place, held)
            {
                self.set_place(out.net, sub.channel, moved.conn, sub.place);
            }
        }
        if sub.state != SubState::Owed && !sub.flags.hidden() {
            out.cx.counters().subscriptions.sub(1);
        }
        sub.state = SubState::Owed;
    }

    /// A subscriber has a new place in its channel's list.
    pub(crate) fn set_place<D: Driver>(
        &mut self,
        net: &Net<D>,
        channel: u32,
        conn: u32,
        place: u32,
    ) {
        let Some(conn) = net.at(conn) else { return };
        if let Some(session) = self.sessions.get_mut(conn.session as usize)
            && let Some(sub) = session.subs.find(channel)
        {
            sub.place = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::ShardId;
    use crate::shard::clients::signatures::Interest;
    use crate::shard::clients::testing::Scene;
    use crate::shard::fixture::Plan;

    #[test]
    fn a_session_leaves_its_channels_and_the_index_of_users() {
        let mut scene = Scene::new(Plan::default());
        let (_, key, channel) = scene.subscriber("alice", "news");
        let (_, last, _) = scene.subscriber("bob", "news");
        assert_eq!(scene.sub(last, channel).map(|sub| sub.place), Some(1));
        scene.with(|clients, out, side| clients.detach(out, side, key.index, End::closed()));
        assert!(scene.session(key).is_none());
        assert_eq!(scene.clients.users.len(), 1);
        // The last subscriber of the list has taken the place.
        assert_eq!(scene.sub(last, channel).map(|sub| sub.place), Some(0));
        scene.carry_mail();
        assert_eq!(scene.side.locals.get(channel).map(|local| local.claims), Some(1));
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn subscriptions_stay_owed_while_a_home_has_no_room_for_the_mail() {
        let mut scene = Scene::new(Plan::default());
        let (_, key, channel) = scene.subscriber("alice", "news");
        let home = ShardId(0);
        let post = &mut scene.wired.posts.post;
        while !post.is_full(home) {
            post.send(&scene.wired.cx, home, Mail::Gap { local: 0 });
        }
        scene.with(|clients, out, side| clients.detach(out, side, key.index, End::closed()));
        assert_eq!(scene.sub(key, channel).map(|sub| sub.state), Some(SubState::Owed));
        // Nobody finds the session any more, and it is counted once.
        assert_eq!(scene.clients.users.len(), 0);
        assert_eq!(scene.wired.cx.counters().subscriptions.get(), 0);
        scene.carry_mail();
        scene.with(|clients, out, side| clients.detach(out, side, key.index, End::closed()));
        assert!(scene.session(key).is_none());
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn a_client_that_goes_withdraws_its_check_and_gives_its_place_back() {
        let mut scene = Scene::new(Plan::default());
        let (_, key) = scene.client("alice");
        let clients = || scene.wired.cx.node.clients.load(Ordering::Relaxed);
        assert_eq!(clients(), 1);
        let interest = Interest::new(None);
        let aside = scene.clients.asides.entry(key.index);
        aside.check = Some(Check::Requested(interest.clone()));
        aside.admin = Some(Admin::Connected);
        scene.wired.cx.node.admins.store(1, Ordering::Relaxed);
        scene.with(|clients, out, _| clients.forget_client(out, key.index));
        assert!(interest.is_withdrawn());
        assert_eq!(scene.wired.cx.node.clients.load(Ordering::Relaxed), 0);
        assert_eq!(scene.wired.cx.node.admins.load(Ordering::Relaxed), 0);
        assert_eq!(scene.end(), []);
    }
}
