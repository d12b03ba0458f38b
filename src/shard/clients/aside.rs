//! The side table by slot: what a connection has beside its session, or before it has one.
//!
//! Few connections have anything here at a time: until `connect` is answered, while an answer is
//! awaited, or as an administrator's. An entry goes with its last part, so that an idle client costs
//! nothing, and a connection that ends takes its whole entry with it.

use std::collections::VecDeque;
use std::sync::Arc;

use compact_str::CompactString;

use crate::session::app::AppAnswer;
use crate::session::{Headers, Verdict};
use crate::shard::by_slot::BySlot;
use crate::shard::clients::signatures::Interest;

/// The parts that one connection has.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    /// The user that a header of its request names, until it connects; empty for none.
    pub(crate) header_user: CompactString,
    /// Headers that proxies forward, until it connects.
    pub(crate) headers: Option<Arc<Headers>>,
    /// It came to the endpoint of administrators.
    pub(crate) admin: Option<Admin>,
    /// The check of a token's signature that its commands wait for, or its result.
    pub(crate) check: Option<Check>,
    /// The application is called for the command at which the connection has stopped.
    pub(crate) call: bool,
    /// Replies of the application, in the order of the commands that they are for.
    pub(crate) replies: VecDeque<ReplyAtHand>,
    /// Its deferred commands.
    pub(crate) deferred: u32,
}

/// A reply of the application, kept until the command that waits for it is done.
#[derive(Debug)]
pub(crate) struct ReplyAtHand {
    /// The time of the call: the low bits of the shard's clock, milliseconds.
    pub(crate) began_ms: u16,
    pub(crate) answer: Arc<AppAnswer>,
}

/// How far an administrator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admin {
    /// The upgrade was answered.
    Upgraded,
    /// Connected, and counted among the node's administrators.
    Connected,
}

/// The check of a token's signature.
#[derive(Debug)]
pub(crate) enum Check {
    /// The home of the token has the request.
    Requested(Interest),
    /// It has answered, and the command isn't handled again yet.
    Done(Verdict),
}

impl Aside {
    /// An answer is out for which the connection's commands have stopped.
    pub(crate) fn is_pending(&self) -> bool {
        self.call || matches!(self.check, Some(Check::Requested(_)))
    }

    fn is_empty(&self) -> bool {
        let Self { header_user, headers, admin, check, call, replies, deferred } = self;
        header_user.is_empty()
            && headers.is_none()
            && admin.is_none()
            && check.is_none()
            && !call
            && replies.is_empty()
            && *deferred == 0
    }
}

/// The entries of all connections of a shard. Boxed: a table of few large entries would be sparse.
#[derive(Default)]
pub(crate) struct Asides(BySlot<Box<Aside>>);

impl Asides {
    /// How many connections have something.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The entry of a connection. A look at the length comes first: commands ask here, and mostly
    /// no connection has an entry.
    pub(crate) fn get(&self, index: u32) -> Option<&Aside> {
        if self.0.is_empty() { None } else { self.0.get(&index).map(|aside| &**aside) }
    }

    /// The entries of all connections that have one.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Aside)> {
        self.0.iter().map(|(index, aside)| (*index, &**aside))
    }

    /// The entry of a connection to put something in, made when there is none.
    pub(crate) fn entry(&mut self, index: u32) -> &mut Aside {
        self.0.entry(index).or_default()
    }

    /// Takes something out of the entry of a connection, if it has one; an empty entry goes.
    pub(crate) fn take<R: Default>(&mut self, index: u32, take: impl FnOnce(&mut Aside) -> R) -> R {
        if self.0.is_empty() {
            return R::default();
        }
        let Some(aside) = self.0.get_mut(&index) else { return R::default() };
        let taken = take(aside);
        if aside.is_empty() {
            self.0.remove(&index);
        }
        taken
    }

    /// Takes out the whole entry of a connection that ends.
    pub(crate) fn remove(&mut self, index: u32) -> Option<Box<Aside>> {
        if self.0.is_empty() { None } else { self.0.remove(&index) }
    }

    /// The connection is an administrator's.
    pub(crate) fn is_admin(&self, index: u32) -> bool {
        self.get(index).is_some_and(|aside| aside.admin.is_some())
    }

    /// The user that a header of the connection's request names.
    pub(crate) fn header_user(&self, index: u32) -> Option<&CompactString> {
        self.get(index).map(|aside| &aside.header_user).filter(|user| !user.is_empty())
    }

    /// An answer is out for which the commands of the connection have stopped.
    pub(crate) fn is_pending(&self, index: u32) -> bool {
        self.get(index).is_some_and(Aside::is_pending)
    }

    /// Commands of the connection that wait for the application while others go on.
    pub(crate) fn deferred(&self, index: u32) -> u32 {
        self.get(index).map_or(0, |aside| aside.deferred)
    }

    /// The reply of the application to the command that is being handled.
    pub(crate) fn reply(&self, index: u32) -> Option<&ReplyAtHand> {
        self.get(index)?.replies.front()
    }

    /// The result of the check that the connection's commands waited for.
    pub(crate) fn verdict(&self, index: u32) -> Option<Verdict> {
        match self.get(index)?.check {
            Some(Check::Done(verdict)) => Some(verdict),
            _ => None,
        }
    }

    /// The answer in that reply.
    pub(crate) fn answer(&self, index: u32) -> Option<Arc<AppAnswer>> {
        self.reply(index).map(|reply| Arc::clone(&reply.answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(began_ms: u16) -> ReplyAtHand {
        ReplyAtHand { began_ms, answer: Arc::new(AppAnswer::Nothing) }
    }

    #[test]
    fn an_entry_goes_with_its_last_part() {
        let mut asides = Asides::default();
        assert!(asides.get(7).is_none() && !asides.take(7, |aside| aside.call));
        asides.entry(7).header_user = "alice".into();
        asides.entry(7).deferred += 1;
        asides.entry(7).replies.push_back(reply(1));
        assert_eq!((asides.len(), asides.deferred(7), asides.deferred(8)), (1, 1, 0));
        assert_eq!(asides.take(7, |aside| std::mem::take(&mut aside.header_user)), "alice");
        asides.take(7, |aside| aside.deferred -= 1);
        assert_eq!(asides.len(), 1);
        assert_eq!(asides.take(7, |aside| aside.replies.pop_front()).map(|r| r.began_ms), Some(1));
        assert_eq!(asides.len(), 0);
    }

    #[test]
    fn each_part_alone_keeps_an_entry() {
        let parts: [fn(&mut Aside); 7] = [
            |aside| aside.header_user = "alice".into(),
            |aside| aside.headers = Some(Arc::default()),
            |aside| aside.admin = Some(Admin::Upgraded),
            |aside| aside.check = Some(Check::Requested(Interest::default())),
            |aside| aside.call = true,
            |aside| aside.replies.push_back(reply(0)),
            |aside| aside.deferred = 1,
        ];
        let mut asides = Asides::default();
        for part in parts {
            part(asides.entry(3));
            asides.take(3, |_| ());
            assert!(asides.remove(3).is_some());
            assert_eq!(asides.len(), 0);
        }
    }

    #[test]
    fn commands_stop_for_a_check_and_for_a_call() {
        let mut asides = Asides::default();
        asides.entry(1).check = Some(Check::Requested(Interest::default()));
        asides.entry(2).call = true;
        asides.entry(3).deferred = 1;
        assert_eq!([1, 2, 3, 4].map(|at| asides.is_pending(at)), [true, true, false, false]);
        // The first reply is that of the command in front.
        asides.entry(2).replies.extend([reply(5), reply(6)]);
        assert_eq!(asides.reply(2).map(|reply| reply.began_ms), Some(5));
    }
}
