//! The channels that homes listen to: one subscription for each, whose number is never used again, so that a message
//! that comes late belongs to no other channel.

use std::collections::HashMap;

use compact_str::CompactString;

use crate::hub::broker::BrokerEvent;

/// The first number of a channel; those before it are the thread's own.
const FIRST: u64 = 16;

/// A channel that is listened to.
#[derive(Debug)]
pub(super) struct Interest {
    /// Its home.
    pub(super) home: u16,
    /// The server has confirmed it on this connection.
    pub(super) is_on: bool,
    pub(super) channel: CompactString,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Interests {
    by_sid: HashMap<u64, Interest, foldhash::fast::RandomState>,
    by_channel: HashMap<CompactString, u64, foldhash::fast::RandomState>,
    last: u64,
    /// Those that are not confirmed.
    missing: usize,
}

/// What follows when a home begins to listen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// This subscription is to be made.
    New(u64),
    /// It is under way.
    UnderWay,
    /// It is there.
    On,
}

impl Interests {
    pub(super) fn listen(&mut self, home: usize, channel: &CompactString) -> Begun {
        if let Some(sid) = self.by_channel.get(channel) {
            let is_on = self.by_sid.get(sid).is_some_and(|of| of.is_on);
            return if is_on { Begun::On } else { Begun::UnderWay };
        }
        self.last = self.last.max(FIRST - 1) + 1;
        let (sid, channel) = (self.last, channel.clone());
        self.by_channel.insert(channel.clone(), sid);
        self.by_sid.insert(sid, Interest { home: home as u16, is_on: false, channel });
        self.missing += 1;
        Begun::New(sid)
    }

    /// The subscription that is to end.
    pub(super) fn unlisten(&mut self, channel: &str) -> Option<u64> {
        let sid = self.by_channel.remove(channel)?;
        let removed = self.by_sid.remove(&sid);
        self.missing -= usize::from(removed.is_some_and(|of| !of.is_on));
        Some(sid)
    }

    /// The channel of a message.
    pub(super) fn get(&self, sid: u64) -> Option<&Interest> {
        self.by_sid.get(&sid)
    }

    /// The server has confirmed a subscription: the channel, if it is still listened to.
    pub(super) fn confirm(&mut self, sid: u64) -> Option<&Interest> {
        let interest = self.by_sid.get_mut(&sid)?;
        if !std::mem::replace(&mut interest.is_on, true) {
            self.missing -= 1;
        }
        Some(interest)
    }

    /// The connection has ended: what was delivered is interrupted.
    pub(super) fn interrupt(&mut self, mut each: impl FnMut(usize, BrokerEvent)) {
        for interest in self.by_sid.values_mut().filter(|of| of.is_on) {
            interest.is_on = false;
            let channel = interest.channel.clone();
            each(usize::from(interest.home), BrokerEvent::Interrupted { channel });
        }
        self.missing = self.by_sid.len();
    }

    /// The subscriptions to make on a new connection.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, &CompactString)> {
        self.by_sid.iter().map(|(sid, of)| (*sid, &of.channel))
    }

    /// Calls `each` with every channel that is delivered, and its home.
    pub(super) fn on(&self, mut each: impl FnMut(usize, &CompactString)) {
        let on = self.by_sid.values().filter(|of| of.is_on);
        on.for_each(|of| each(usize::from(of.home), &of.channel));
    }

    /// Homes begin anew, with all of their wishes.
    pub(super) fn forget(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }

    /// Subscriptions that are not confirmed.
    pub(super) fn missing(&self) -> usize {
        self.missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_never_used_again() {
        let mut interests = Interests::default();
        let news: CompactString = "news".into();
        let Begun::New(first) = interests.listen(1, &news) else { panic!() };
        assert_eq!(interests.listen(1, &news), Begun::UnderWay);
        assert_eq!(interests.missing(), 1);
        assert_eq!(interests.confirm(first).map(|of| of.home), Some(1));
        assert_eq!(interests.listen(1, &news), Begun::On);
        assert_eq!(interests.unlisten("news"), Some(first));
        assert!(interests.get(first).is_none() && interests.confirm(first).is_none());
        assert!(interests.listen(1, &news) != Begun::New(first));
        interests.forget();
        assert_eq!(interests.missing(), 0);
        assert!(interests.listen(1, &news) != Begun::New(first));
    }

    #[test]
    fn a_lost_connection_interrupts_and_keeps_the_wishes() {
        let mut interests = Interests::default();
        for channel in ["a", "b"] {
            interests.listen(0, &channel.into());
        }
        let (sid, _) = interests.all().find(|(_, channel)| *channel == "a").unwrap();
        interests.confirm(sid);
        let mut interrupted = Vec::new();
        interests.interrupt(|home, event| interrupted.push((home, event)));
        assert!(
            matches!(&interrupted[..], [(0, BrokerEvent::Interrupted { channel })] if channel == "a")
        );
        assert_eq!((interests.all().count(), interests.missing()), (2, 2));
    }
}
