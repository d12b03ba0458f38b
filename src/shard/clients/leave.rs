//! The session's half of every ending: out of the lists of subscribers and of the index of users; homes get
//! the news as far as there is room for mail.

use std::sync::atomic::Ordering;

use crate::base::id::ConnKey;
use crate::io::Driver;
use crate::session::{Session, Sub, SubState};
use crate::shard::Shard;
use crate::shard::clients::aside::{Admin, Check};
use crate::shard::mail::Mail;
use crate::shard::net::record::NONE;

impl<D: Driver> Shard<D> {
    /// A connection is no client's any more: the parts beside its session go.
    pub(crate) fn forget_client(&mut self, index: u32) {
        self.net.leave_client_place(&self.cx, index);
        if let Some(aside) = self.clients.asides.remove(index) {
            if let Some(Check::Requested(interest)) = aside.check {
                interest.withdraw();
                self.cx.counters().tokens_withdrawn.add(1);
            }
            if aside.admin == Some(Admin::Connected) {
                self.cx.node.admins.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes a session apart: out of the subscriber lists and the user index; homes are told as far
    /// as there is room for mail, the rest stays owed.
    pub(crate) fn detach(&mut self, index: u32) {
        self.net.leave_client_place(&self.cx, index);
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        let (at, key) = (conn.session, conn.key(index));
        let Some(session) = self.clients.sessions.get_mut(at as usize) else { return };
        let subs = std::mem::take(&mut session.subs);
        if !session.flags.detached() {
            session.flags.set_detached(true);
            let extra = session.extra.take();
            for sub in extra.iter().flat_map(|extra| &extra.subs) {
                if let Some(filter) = sub.filter {
                    self.local.filters.release(filter);
                }
            }
            self.forget_user(at);
        }
        for sub in subs.as_slice() {
            let mut sub = *sub;
            self.leave_list(&mut sub);
            if self.tell_home(index, &sub).is_err()
                && let Some(session) = self.clients.sessions.get_mut(at as usize)
            {
                session.subs.push(sub);
            }
        }
        self.leave_user(at, key);
        let done = |session: &Session| session.subs.is_empty() && !session.flags.user_counted();
        if self.clients.sessions.get(at as usize).is_some_and(done) {
            self.clients.sessions.remove(at as usize);
            if let Some(conn) = self.net.conns.get_mut(index as usize) {
                conn.session = NONE;
            }
        }
    }

    /// Tells the home of a user that one of its connections has gone, if there is room.
    fn leave_user(&mut self, session: u32, conn: ConnKey) {
        let Some(session) = self.clients.sessions.get_mut(session as usize) else { return };
        let home = self.cx.node.names.home(self.cx.node.names.hash(&session.user));
        if !session.flags.user_counted() || self.post.is_full(home) {
            return;
        }
        session.flags.set_user_counted(false);
        let user = session.user.as_str().into();
        self.post.send(&self.cx, home, Mail::UserLeave { user, conn });
    }

    /// Takes a subscription out of its channel's list.
    pub(crate) fn leave_list(&mut self, sub: &mut Sub) {
        if sub.state == SubState::Live {
            let held = self.local.locals.held(sub.channel);
            if let Some(local) = self.local.locals.get(sub.channel)
                && let Some(moved) = local.subscribers.remove(sub.place, held)
            {
                self.moved(sub.channel, moved.conn, sub.place);
            }
        }
        if sub.state != SubState::Owed && !sub.flags.hidden() {
            self.cx.counters().subscriptions.sub(1);
        }
        sub.state = SubState::Owed;
    }

    /// A subscriber has a new place in its channel's list.
    pub(crate) fn moved(&mut self, channel: u32, conn: u32, place: u32) {
        let Some(conn) = self.net.conns.get(conn as usize) else { return };
        if let Some(session) = self.clients.sessions.get_mut(conn.session as usize)
            && let Some(sub) = session.subs.find(channel)
        {
            sub.place = place;
        }
    }

    /// Tells the home that a subscription of a dead session has ended, if there is room.
    fn tell_home(&mut self, index: u32, sub: &Sub) -> Result<(), ()> {
        let Some(local) = self.local.locals.get(sub.channel) else { return Ok(()) };
        if self.post.is_full(local.home) {
            return Err(());
        }
        self.leave_home(index, sub, None);
        Ok(())
    }
}
