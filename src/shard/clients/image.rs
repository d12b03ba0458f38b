//! The byte form of clients: sessions, and what a few connections have beside theirs. Answers that are
//! awaited, or at hand, are none of it: the commands that wait for them are handled once more.

use compact_str::CompactString;
use slab::Slab;

use super::Clients;
use super::aside::{Admin, Aside};
use super::connect::SessionTable;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, Slots, durable_enum, kind};
use crate::base::software::SoftwareId;
use crate::hub::local::Locals;
use crate::hub::subscribers::Subscriber;
use crate::session::{Renewal, Session, SubState};
use crate::shard::context::Cx;

durable_enum!(Admin { Upgraded = 0, Connected = 1 });

impl Clients {
    /// Writes the records of this group.
    pub(crate) fn write_image(&self, out: &mut ImageWriter) {
        // Users are indexed anew; calls of the application that are under way are forgotten.
        // Lapses have ended.
        let Self {
            sessions,
            users: _,
            asides,
            delayed: _,
            deferred: _,
            calls: _,
            ids: _,
            closes: _,
            lapses: _,
        } = self;
        out.record(kind::CLIENTS, |out| {
            out.field(&Slots::of(sessions.iter().map(|(at, _)| at)));
        });
        for (at, session) in sessions {
            out.record(kind::SESSION, |out| {
                out.field(&(at as u32));
                out.field(session);
            });
        }
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
        let moves = |session: &Session| {
            session.subs.as_slice().iter().any(|sub| sub.state != SubState::Live)
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

/// Clients that are read from an image.
pub(crate) struct ClientsReader {
    slots: Option<Slots>,
    sessions: Vec<(usize, Session)>,
    clients: Clients,
}

impl ClientsReader {
    /// No clients.
    pub(crate) fn new(cx: &Cx) -> Self {
        Self { slots: None, sessions: Vec::new(), clients: Clients::new(cx) }
    }

    /// Reads a record, if it is of this group.
    pub(crate) fn record(&mut self, found: u8, from: &mut ImageReader<'_>) -> Result<bool, Broken> {
        match (found, &mut self.slots) {
            (kind::CLIENTS, None) => self.slots = Some(from.field("Clients.slots")?),
            (kind::SESSION, Some(slots)) => {
                let at = slots.take(u32::read(from)?)?;
                let mut session = Session::read(from)?;
                // The application is asked once more.
                session.flags.set_refreshing(false);
                let extras = session.extra.iter_mut().flat_map(|extra| &mut extra.subs);
                for extra in extras.filter(|extra| extra.renewal == Renewal::Requested) {
                    extra.renewal = Renewal::Server;
                }
                self.sessions.push((at, session));
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
            (kind::CLIENTS | kind::SESSION | kind::ASIDE, _) => return Err(from.misplaced()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// All of them. Their subscriptions have to be those that the channels have.
    pub(crate) fn end(mut self, cx: &Cx, locals: &mut Locals) -> Result<Clients, Broken> {
        self.slots.ok_or(Broken::Value("a shard without clients"))?.end()?;
        let subscribers = locals.subscribers();
        let mut subscriptions = 0;
        for (_, session) in &self.sessions {
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
        let mut sessions: Slab<Session> = self.sessions.into_iter().collect();
        sessions.reserve(cx.node.options.slots_max().saturating_sub(sessions.len()));
        self.clients.sessions = sessions;
        let Clients { sessions, users, .. } = &mut self.clients;
        let indexed: Vec<u32> = sessions
            .iter()
            .filter(|(_, session)| !session.flags.hidden() && !session.flags.detached())
            .map(|(at, _)| at as u32)
            .collect();
        for at in indexed {
            users.insert(at, &mut SessionTable { sessions: &mut *sessions, names: &cx.node.names });
            cx.software_clients(SoftwareId::UNNAMED).add(1);
        }
        Ok(self.clients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Millis;
    use crate::hub::names::NameHasher;
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
        clients.write_image(&mut out);
        out.finish()
    }

    fn read(cx: &Cx, image: &[u8], now: Millis, locals: &mut Locals) -> Result<Clients, Broken> {
        let mut from = ImageReader::new(image, now)?;
        let mut reader = ClientsReader::new(cx);
        while let Some(found) = from.next_record()? {
            assert!(reader.record(found, &mut from)?);
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
