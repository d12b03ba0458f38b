//! The channels that homes listen to. Each has a number that is never used again, so that a message that comes late
//! belongs to no other channel.
//!
//! Either each channel has a subscription, or one subscription takes all channels ([`Interests::new`]) and a message
//! finds its channel by name; patterns have one of their own in any case.

use std::collections::{HashMap, VecDeque};

use compact_str::CompactString;
use futures_util::future::AbortHandle;

use crate::hub::broker::BrokerEvent;

/// A channel that is listened to.
#[derive(Debug)]
pub(super) struct Interest {
    /// Its home.
    pub(super) home: u16,
    /// The server has confirmed it on this connection.
    is_on: bool,
    /// It is a pattern.
    pub(super) is_pattern: bool,
    pub(super) channel: CompactString,
    /// Ends its subscription.
    subscription: Option<AbortHandle>,
}

impl Drop for Interest {
    fn drop(&mut self) {
        if let Some(subscription) = self.subscription.take() {
            subscription.abort();
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Interests {
    by_number: HashMap<u64, Interest, foldhash::fast::RandomState>,
    by_channel: HashMap<CompactString, u64, foldhash::fast::RandomState>,
    last: u64,
    /// Channels that are to be subscribed, in their order. Some may have ended.
    waiting: VecDeque<u64>,
    /// Those that the server has refused, in their order.
    refused: VecDeque<u64>,
    /// Those that are not confirmed.
    missing: usize,
    /// Whether the subscription that takes all channels is confirmed, where there is one.
    all: Option<bool>,
}

/// What follows when a home begins to listen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// A subscription is to be made.
    New,
    /// It is under way.
    UnderWay,
    /// It is there.
    On,
}

impl Interests {
    /// `takes_all`: one subscription takes all channels.
    pub(super) fn new(takes_all: bool) -> Self {
        Self { all: takes_all.then_some(false), ..Self::default() }
    }

    /// One subscription takes all channels, and is confirmed.
    pub(super) fn has_all(&self) -> bool {
        self.all == Some(true)
    }

    /// One subscription takes all channels.
    pub(super) fn takes_all(&self) -> bool {
        self.all.is_some()
    }

    pub(super) fn listen(
        &mut self,
        home: usize,
        channel: &CompactString,
        is_pattern: bool,
    ) -> Begun {
        if let Some(number) = self.by_channel.get(channel) {
            let is_on = self.by_number.get(number).is_some_and(|of| of.is_on);
            return if is_on { Begun::On } else { Begun::UnderWay };
        }
        self.last += 1;
        let (number, channel, home) = (self.last, channel.clone(), home as u16);
        let covered = self.all.filter(|_| !is_pattern);
        let is_on = covered == Some(true);
        self.by_channel.insert(channel.clone(), number);
        let interest = Interest { home, is_on, is_pattern, channel, subscription: None };
        self.by_number.insert(number, interest);
        self.missing += usize::from(!is_on);
        match covered {
            Some(true) => Begun::On,
            Some(false) => Begun::UnderWay,
            None => {
                self.waiting.push_back(number);
                Begun::New
            }
        }
    }

    /// A home listens no more. Its subscription ends.
    pub(super) fn unlisten(&mut self, channel: &str) {
        let removed =
            self.by_channel.remove(channel).and_then(|number| self.by_number.remove(&number));
        self.missing -= usize::from(removed.is_some_and(|of| !of.is_on));
    }

    /// Up to so many channels that are to be subscribed.
    pub(super) fn next(&mut self, count: usize) -> Vec<(u64, CompactString)> {
        let numbers = std::iter::from_fn(|| self.waiting.pop_front());
        let wanted = numbers
            .filter_map(|number| Some((number, self.by_number.get(&number)?.channel.clone())));
        wanted.take(count).collect()
    }

    /// This ends the subscription of a channel. True if it is still listened to.
    pub(super) fn subscribed(&mut self, number: u64, subscription: AbortHandle) -> bool {
        match self.by_number.get_mut(&number) {
            Some(interest) => {
                interest.subscription = Some(subscription);
                true
            }
            None => {
                subscription.abort();
                false
            }
        }
    }

    /// It is not known whether this one is subscribed: it is once more.
    pub(super) fn again(&mut self, number: u64) {
        if let Some(interest) = self.by_number.get_mut(&number) {
            if let Some(subscription) = interest.subscription.take() {
                subscription.abort();
            }
            self.waiting.push_back(number);
        }
    }

    /// The server has refused a subscription.
    pub(super) fn refuse(&mut self, number: u64) {
        if let Some(interest) = self.by_number.get_mut(&number) {
            if let Some(subscription) = interest.subscription.take() {
                subscription.abort();
            }
            self.refused.push_back(number);
        }
    }

    /// Tries up to so many of those that were refused once more. Whether there are any.
    pub(super) fn retry(&mut self, count: usize) -> bool {
        let count = count.min(self.refused.len());
        self.waiting.extend(self.refused.drain(..count));
        count > 0
    }

    /// The channel of a message.
    pub(super) fn get(&self, number: u64) -> Option<&Interest> {
        self.by_number.get(&number)
    }

    /// The same by its name.
    pub(super) fn named(&self, channel: &str) -> Option<&Interest> {
        self.by_channel.get(channel).and_then(|number| self.by_number.get(number))
    }

    /// The server has confirmed a subscription: the channel, if it is still listened to.
    pub(super) fn confirm(&mut self, number: u64) -> Option<&Interest> {
        let interest = self.by_number.get_mut(&number)?;
        if !std::mem::replace(&mut interest.is_on, true) {
            self.missing -= 1;
        }
        Some(interest)
    }

    /// The server has confirmed the subscription that takes all channels.
    pub(super) fn confirm_all(&mut self, mut each: impl FnMut(usize, BrokerEvent)) {
        self.all = Some(true);
        for interest in self.by_number.values_mut().filter(|of| !of.is_on && !of.is_pattern) {
            interest.is_on = true;
            self.missing -= 1;
            let channel = interest.channel.clone();
            each(usize::from(interest.home), BrokerEvent::Listening { channel });
        }
    }

    /// The connection has ended: what was delivered is interrupted, and subscribed again on the next one.
    pub(super) fn interrupt(&mut self, mut each: impl FnMut(usize, BrokerEvent)) {
        self.all = self.all.map(|_| false);
        self.waiting.clear();
        self.refused.clear();
        for (number, interest) in &mut self.by_number {
            interest.subscription = None;
            if std::mem::take(&mut interest.is_on) {
                let channel = interest.channel.clone();
                each(usize::from(interest.home), BrokerEvent::Interrupted { channel });
            }
            if self.all.is_none() || interest.is_pattern {
                self.waiting.push_back(*number);
            }
        }
        self.missing = self.by_number.len();
    }

    /// Calls `each` with every channel that is delivered, and its home.
    pub(super) fn on(&self, mut each: impl FnMut(usize, &CompactString)) {
        let on = self.by_number.values().filter(|of| of.is_on);
        on.for_each(|of| each(usize::from(of.home), &of.channel));
    }

    /// Homes begin anew, with all of their wishes.
    pub(super) fn forget(&mut self) {
        *self = Self { last: self.last, ..Self::new(self.takes_all()) };
    }

    /// Channels that are not confirmed.
    pub(super) fn missing(&self) -> usize {
        self.missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> AbortHandle {
        AbortHandle::new_pair().0
    }

    #[test]
    fn a_number_is_never_used_again() {
        let mut interests = Interests::new(false);
        let news: CompactString = "news".into();
        assert_eq!(interests.listen(1, &news, false), Begun::New);
        assert_eq!(interests.listen(1, &news, false), Begun::UnderWay);
        let (first, _) = interests.next(10).remove(0);
        let subscription = handle();
        assert!(interests.subscribed(first, subscription.clone()));
        assert_eq!(interests.missing(), 1);
        assert_eq!(interests.confirm(first).map(|of| of.home), Some(1));
        assert_eq!(interests.listen(1, &news, false), Begun::On);
        interests.unlisten("news");
        assert!(subscription.is_aborted());
        assert!(interests.get(first).is_none() && interests.confirm(first).is_none());
        assert_eq!(interests.listen(1, &news, false), Begun::New);
        assert_ne!(interests.next(10)[0].0, first);
        interests.forget();
        assert_eq!(interests.missing(), 0);
        assert_eq!(interests.listen(1, &news, false), Begun::New);
        assert_eq!(interests.next(10)[0].0, 3);
    }

    #[test]
    fn a_subscription_that_came_too_late_ends() {
        let mut interests = Interests::new(false);
        interests.listen(0, &"a".into(), false);
        let (number, _) = interests.next(1).remove(0);
        interests.unlisten("a");
        let subscription = handle();
        assert!(!interests.subscribed(number, subscription.clone()) && subscription.is_aborted());
    }

    #[test]
    fn a_lost_connection_interrupts_and_keeps_the_wishes() {
        let mut interests = Interests::new(false);
        for channel in ["a", "b"] {
            interests.listen(0, &channel.into(), false);
        }
        let wanted = interests.next(1);
        assert_eq!(wanted[0].1, "a");
        interests.confirm(wanted[0].0);
        let mut interrupted = Vec::new();
        interests.interrupt(|home, event| interrupted.push((home, event)));
        assert!(
            matches!(&interrupted[..], [(0, BrokerEvent::Interrupted { channel })] if channel == "a")
        );
        assert_eq!((interests.next(10).len(), interests.missing()), (2, 2));
    }

    #[test]
    fn one_in_doubt_is_subscribed_once_more() {
        let mut interests = Interests::new(false);
        interests.listen(0, &"a".into(), false);
        let (number, _) = interests.next(1).remove(0);
        let subscription = handle();
        interests.subscribed(number, subscription.clone());
        interests.again(number);
        assert!(subscription.is_aborted());
        assert_eq!(interests.next(1), [(number, "a".into())]);
    }

    #[test]
    fn one_that_is_refused_is_tried_again_later() {
        let mut interests = Interests::new(false);
        for channel in ["a", "b"] {
            interests.listen(0, &channel.into(), false);
        }
        let wanted = interests.next(2);
        let subscription = handle();
        interests.subscribed(wanted[0].0, subscription.clone());
        wanted.iter().for_each(|(number, _)| interests.refuse(*number));
        assert!(subscription.is_aborted() && interests.next(2).is_empty());
        interests.unlisten("a");
        assert!(interests.retry(1) && interests.next(2).is_empty(), "it is not wished any more");
        assert!(interests.retry(1) && !interests.retry(1));
        assert_eq!(interests.next(2), [(wanted[1].0, "b".into())]);
    }

    #[test]
    fn one_subscription_takes_all_channels_but_patterns() {
        let mut interests = Interests::new(true);
        assert_eq!(interests.listen(0, &"a".into(), false), Begun::UnderWay);
        assert_eq!(interests.listen(1, &"a.*".into(), true), Begun::New);
        let patterns = interests.next(10);
        assert_eq!(patterns.len(), 1);
        let mut confirmed = Vec::new();
        interests.confirm_all(|home, event| confirmed.push((home, event)));
        assert!(
            matches!(&confirmed[..], [(0, BrokerEvent::Listening { channel })] if channel == "a")
        );
        assert_eq!(interests.listen(0, &"b".into(), false), Begun::On);
        assert_eq!((interests.missing(), interests.named("b").map(|of| of.home)), (1, Some(0)));
        interests.confirm(patterns[0].0);
        interests.unlisten("b");
        assert!(interests.named("b").is_none());
        let mut interrupted = 0;
        interests.interrupt(|_, _| interrupted += 1);
        assert_eq!((interrupted, interests.missing(), interests.next(10).len()), (2, 2, 1));
        interests.forget();
        assert!(interests.takes_all());
        assert_eq!(interests.listen(0, &"b".into(), false), Begun::UnderWay);
    }
}
