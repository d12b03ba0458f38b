//! The byte form of clients: sessions, and what a few connections have beside theirs. Answers that are
//! awaited, or at hand, are none of it: the commands that wait for them are handled once more.

use std::ops::Range;

use compact_str::CompactString;

use super::Clients;
use super::aside::{Admin, Aside};
use super::connect::SessionTable;
use crate::base::filling::Filling;
use crate::base::image::{
    Broken, Durable, ImageReader, ImageWriter, Slots, Written, durable_enum, kind,
};
use crate::base::software::SoftwareId;
use crate::hub::local::Locals;
use crate::hub::names::NameHasher;
use crate::hub::subscribers::Subscriber;
use crate::session::{Renewal, Session, SubState};
use crate::shard::context::Cx;

durable_enum!(Admin { Upgraded = 0, Connected = 1 });

impl Clients {
    /// Writes which sessions there are. The end of their table.
    pub(crate) fn write_head(&self, out: &mut ImageWriter) -> usize {
        out.record(kind::CLIENTS, |out| {
            out.field(&Slots::of(self.sessions.iter().map(|(at, _)| at)));
        });
        self.sessions.iter().next_back().map_or(0, |(at, _)| at + 1)
    }

    /// Writes the sessions of these slots, as far as they have changed since they were written; those that are in
    /// the middle of something are left out. Stops behind `bytes_max` bytes, and returns the slot to go on with.
    pub(crate) fn write_sessions(
        &self,
        out: &mut ImageWriter,
        slots: Range<usize>,
        written: &mut Written,
        bytes_max: usize,
    ) -> usize {
        for at in slots.clone() {
            let Some(session) = self.sessions.get(at) else { continue };
            if is_settled(session) {
                out.unit(written.at(at), |out| {
                    out.record(kind::SESSION, |out| {
                        out.field(&(at as u32));
                        out.field(session);
                    });
                });
            }
            if out.len() >= bytes_max {
                return at + 1;
            }
        }
        slots.end
    }

    /// Writes what is small, once all sessions are written.
    pub(crate) fn write_rest(&self, out: &mut ImageWriter) {
        // Users are indexed anew; calls of the application that are under way are forgotten.
        // Lapses have ended.
        let Self {
            sessions: _,
            users: _,
            asides,
            delayed: _,
            deferred: _,
            calls: _,
            ids: _,
            closes: _,
            lapses: _,
        } = self;
        for (index, aside) in asides.iter() {
            let Aside { header_user, headers, admin, .. } = aside;
            let Aside { check: _, call: _, replies: _, deferred: _, .. } = aside;
            if !header_user.is_empty() || headers.is_some() || admin.is_some() {
                out.record(kind::ASIDE, |out| {
                    out.field(&index);
                    out.field(header_user);
                    out.field(headers);
                    out.field(admin);
                });
            }
        }
    }

    /// What keeps this group from being written. Looks at every session.
    pub(crate) fn unsettled(&self) -> [(&'static str, usize); 5] {
        let count = |is: fn(&Session) -> bool| {
            self.sessions.iter().filter(|(_, session)| is(session)).count()
        };
        [
            ("connects that are not answered", count(Session::is_connecting)),
            ("commands that are not answered", count(|session| session.unanswered > 0)),
            ("subscriptions on their way", count(moves)),
            ("sessions that have ended", count(|session| session.flags.detached())),
            ("subscriptions that are to end", self.lapses.len()),
        ]
    }

    /// Calls of the application that commands wait for, and replies to them.
    pub(crate) fn unsettled_calls(&self) -> [(&'static str, usize); 2] {
        let waits = |aside: &Aside| aside.call || aside.deferred > 0;
        [
            ("calls of the application", self.asides.iter().filter(|(_, of)| waits(of)).count()),
            (
                "replies of the application",
                self.asides.iter().filter(|(_, of)| !of.replies.is_empty()).count(),
            ),
        ]
    }
}

/// A subscription is on its way.
fn moves(session: &Session) -> bool {
    session.subs.as_slice().iter().any(|sub| sub.state != SubState::Live)
}

/// Homes have answered everything of a session.
fn is_settled(session: &Session) -> bool {
    !(session.is_connecting()
        || session.unanswered > 0
        || session.flags.detached()
        || moves(session))
}

/// A session whose user is in the index.
fn is_indexed(session: &Session) -> bool {
    !session.flags.hidden() && !session.flags.detached()
}

/// Clients that are read from an image. Users are indexed as their sessions come.
pub(crate) struct ClientsReader {
    slots: Option<Slots>,
    sessions: Filling<Session>,
    clients: Clients,
}

impl ClientsReader {
    /// No clients.
    pub(crate) fn new(cx: &Cx) -> Self {
        let sessions = Filling::new(cx.node.options.slots_max(), Session::placeholder);
        Self { slots: None, sessions, clients: Clients::new(cx) }
    }

    /// Reads a record, if it is of this group.
    pub(crate) fn record(
        &mut self,
        names: &NameHasher,
        found: u8,
        from: &mut ImageReader<'_>,
    ) -> Result<bool, Broken> {
        match (found, &mut self.slots) {
            (kind::CLIENTS, _) => self.slots = Some(from.field("Clients.slots")?),
            (kind::SESSION, Some(slots)) => {
                let at = u32::read(from)? as usize;
                if at >= slots.bound() {
                    return Err(Broken::Value("a slot"));
                }
                let mut session = Session::read(from)?;
                // The application is asked once more.
                session.flags.set_refreshing(false);
                let extras = session.extra.iter_mut().flat_map(|extra| &mut extra.subs);
                for extra in extras.filter(|extra| extra.renewal == Renewal::Requested) {
                    extra.renewal = Renewal::Server;
                }
                self.put(names, at, session);
            }
            (kind::ASIDE, Some(_)) => {
                let index = u32::read(from)?;
                let header_user: CompactString = from.field("Aside.header_user")?;
                let headers = from.field("Aside.headers")?;
                let admin = from.field("Aside.admin")?;
                if self.clients.asides.get(index).is_some() {
                    return Err(from.misplaced());
                }
                let aside = self.clients.asides.entry(index);
                (aside.header_user, aside.headers, aside.admin) = (header_user, headers, admin);
            }
            (kind::SESSION | kind::ASIDE, None) => return Err(from.misplaced()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Sets the session of a slot, and indexes its user.
    fn put(&mut self, names: &NameHasher, at: usize, session: Session) {
        self.forget_user(names, at);
        let is_indexed = is_indexed(&session);
        self.sessions.put(at, session);
        if is_indexed {
            let sessions = self.sessions.table();
            self.clients.users.insert(at as u32, &mut SessionTable { sessions, names });
        }
    }

    /// Takes the user of a session that has come out of the index.
    fn forget_user(&mut self, names: &NameHasher, at: usize) {
        if self.sessions.get_mut(at).is_some_and(|before| is_indexed(before)) {
            let sessions = self.sessions.table();
            self.clients.users.remove(at as u32, &mut SessionTable { sessions, names });
        }
    }

    /// All of them. Their subscriptions have to be those that the channels have.
    pub(crate) fn end(mut self, cx: &Cx, locals: &mut Locals) -> Result<Clients, Broken> {
        let slots = self.slots.take().ok_or(Broken::Value("a shard without clients"))?;
        let gone: Vec<usize> = self.sessions.beside(&slots).collect();
        gone.into_iter().for_each(|at| self.forget_user(&cx.node.names, at));
        let sessions = self.sessions.end(&slots)?;
        let subscribers = locals.subscribers();
        let mut subscriptions = 0;
        for (_, session) in &sessions {
            for sub in session.subs.as_slice() {
                let local = locals.get(sub.channel);
                let subscriber: Option<Subscriber> =
                    local.and_then(|local| local.subscribers.get(sub.place));
                if sub.state != SubState::Live
                    || subscriber.is_none_or(|subscriber| subscriber.conn != session.conn)
                {
                    return Err(Broken::Value("a subscription"));
                }
            }
            subscriptions += session.subs.len();
        }
        if subscriptions != subscribers {
            return Err(Broken::Value("a subscriber"));
        }
        let indexed = sessions.iter().filter(|(_, session)| is_indexed(session)).count();
        cx.software_clients(SoftwareId::UNNAMED).add(indexed as u64);
        self.clients.sessions = sessions;
        Ok(self.clients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Millis;
    use crate::hub::subscribers::Traits;
    use crate::session::{Connecting, NewSession, Sub, SubFlags};
    use crate::shard::fixture::Plan;

    fn session_of(user: &str, conn: u32, due_tick: u32) -> Session {
        let new = NewSession {
            user: user.into(),
            expires: None,
            info: None,
            meta: None,
            connecting: Connecting::default(),
            is_admin: false,
        };
        Session::begin(new, None, conn, due_tick).0
    }

    fn write(clients: &Clients, now: Millis) -> Vec<u8> {
        let mut out = ImageWriter::new(now);
        let end = clients.write_head(&mut out);
        clients.write_sessions(&mut out, 0..end, &mut Written::default(), usize::MAX);
        clients.write_rest(&mut out);
        out.finish()
    }

    fn read(cx: &Cx, image: &[u8], now: Millis, locals: &mut Locals) -> Result<Clients, Broken> {
        let mut from = ImageReader::new(image, now)?;
        let mut reader = ClientsReader::new(cx);
        while let Some(found) = from.next_record()? {
            assert!(reader.record(&cx.node.names, found, &mut from)?);
        }
        reader.end(cx, locals)
    }

    #[test]
    fn sessions_come_back_and_are_held_against_their_channels() {
        let cx = Plan::default().cx();
        let mut locals = Locals::new(NameHasher::new(1, 2));
        let mut clients = Clients::new(&cx);
        for (conn, user) in [(3, "anna"), (4, "anna"), (9, "ben")] {
            clients.sessions.insert(session_of(user, conn, 70 + conn));
        }
        clients.sessions.remove(1);
        let session = &mut clients.sessions[2];
        session.flags.set_pong_due(true);
        session.flags.set_refreshing(true);
        session.extra().meta = b"{}"[..].into();
        clients.asides.entry(4).header_user = "carla".into();
        let channel = locals.find_or_insert("news", 0);
        let place = locals
            .get(channel)
            .unwrap()
            .subscribers
            .add(Subscriber { conn: 9, traits: Traits::JSON });
        let flags = SubFlags::default();
        let sub = Sub { channel, place, state: SubState::Live, flags };
        clients.sessions[2].subs.push(sub);
        let image = write(&clients, Millis(5_000));
        let again = read(&cx, &image, Millis(5_000), &mut locals).unwrap();
        assert_eq!(again.users.len(), 2);
        assert!(again.sessions[2].flags.pong_due() && !again.sessions[2].flags.refreshing());
        assert_eq!(again.sessions[2].subs.as_slice(), [sub]);
        assert_eq!(again.asides.header_user(4).map(|user| user.as_str()), Some("carla"));
        // The application is asked once more; all else is the same.
        clients.sessions[2].flags.set_refreshing(false);
        assert_eq!(write(&again, Millis(5_000)), write(&clients, Millis(5_000)));
        // By another clock the ping is due as late from now.
        let moved = read(&cx, &image, Millis(105_000), &mut locals).unwrap();
        assert_eq!(moved.sessions[2].due_tick, clients.sessions[2].due_tick + 1_000);
        // Without its subscriber a subscription is broken; so is a subscriber without one.
        clients.sessions[2].subs = Default::default();
        let image = write(&clients, Millis(5_000));
        let broken = read(&cx, &image, Millis(5_000), &mut locals).err();
        assert_eq!(broken, Some(Broken::Value("a subscriber")));
        clients.sessions[0].subs.push(sub);
        let image = write(&clients, Millis(5_000));
        let broken = read(&cx, &image, Millis(5_000), &mut locals).err();
        assert_eq!(broken, Some(Broken::Value("a subscription")));
    }

    #[test]
    fn what_is_awaited_is_named() {
        let cx = Plan::default().cx();
        let mut clients = Clients::new(&cx);
        clients.asides.entry(1).call = true;
        let at = clients.sessions.insert(session_of("", 1, 1));
        clients.sessions[at].unanswered = 1;
        let named: usize = clients.unsettled().iter().map(|(_, count)| count).sum();
        let calls: usize = clients.unsettled_calls().iter().map(|(_, count)| count).sum();
        assert_eq!((named, calls), (1, 1));
    }
}
