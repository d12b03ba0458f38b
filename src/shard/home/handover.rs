//! A home whose channels a broker keeps is handed over to another process: that one listens to the same channels
//! before this one stops, and a fence divides what the broker delivers to both.

use compact_str::CompactString;

use super::Home;
use super::followed::Remote;
use super::line::Link;
use super::seam::command;
use crate::hub::broker::Command;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;

/// The channels that another process has to listen to: what has changed since the last call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelNames {
    /// It listens to these from now on.
    pub begun: Vec<CompactString>,
    /// To these no more.
    pub ended: Vec<CompactString>,
}

/// How far a home is in being handed over.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Channels that the other process listens to, and this one no more.
    ended: Vec<CompactString>,
    /// The key of the fence that is under way.
    awaited: Option<u64>,
    /// The broker delivers nothing, or nothing behind a fence.
    is_held: bool,
}

impl Leaving {
    /// A channel is not listened to any more. `is_named`: the other process has its name.
    pub(super) fn ends(&mut self, channel: &CompactString, is_named: bool) {
        if is_named {
            self.ended.push(channel.clone());
        }
    }

    /// The fence has come.
    pub(super) fn fenced(&mut self, key: u64) {
        self.awaited = self.awaited.take_if(|awaited| *awaited != key);
    }

    /// Fences that have not come.
    pub(super) fn awaited(&self) -> usize {
        usize::from(self.awaited.is_some())
    }
}

impl Home {
    /// The names of channels that the other process has not had, and of those that it needs no more.
    pub(crate) fn channel_names(&mut self) -> ChannelNames {
        let mut names = ChannelNames::default();
        let Some(remote) = &mut self.remote else { return names };
        names.ended = std::mem::take(&mut remote.leaving.ended);
        for (_, channel) in &mut remote.channels {
            let Some(channel) = channel else { continue };
            if channel.line.link != Link::Off && !std::mem::replace(&mut channel.is_named, true) {
                names.begun.push(channel.name.clone());
            }
        }
        names
    }

    /// The shard is to settle: the broker delivers nothing meanwhile.
    pub(crate) fn settle(&mut self, cx: &Cx, out: &mut Post) {
        if let Some(remote) = self.remote.as_mut().filter(|remote| remote.shares_channels) {
            remote.leaving.is_held = true;
            command(cx, out, Command::Hold);
        }
    }

    /// Has the broker divide what it delivers. Not where it keeps presence alone.
    pub(crate) fn fence(&mut self, cx: &Cx, key: u64, out: &mut Post) {
        if let Some(remote) = self.remote.as_mut().filter(|remote| remote.shares_channels) {
            (remote.leaving.awaited, remote.leaving.is_held) = (Some(key), true);
            command(cx, out, Command::Fence { key });
        }
    }

    /// The other process has failed: all is delivered here again.
    pub(crate) fn go_on(&mut self, cx: &Cx, out: &mut Post) {
        let Some(remote) = &mut self.remote else { return };
        if std::mem::take(&mut remote.leaving).is_held {
            command(cx, out, Command::Resume);
        }
        for (_, channel) in &mut remote.channels {
            if let Some(channel) = channel {
                channel.is_named = false;
            }
        }
    }

    /// What keeps this group from being written.
    pub(crate) fn unsettled(&self) -> [(&'static str, usize); 5] {
        let of = |count: fn(&Remote) -> usize| self.remote.as_ref().map_or(0, |of| count(of));
        let is_away = |remote: &Remote| {
            let channels = remote.shares_channels && !remote.is_connected;
            let presence = remote.changes.broker.is_some() && !remote.changes.is_connected;
            usize::from(channels || presence)
        };
        [
            ("joins and leaves", self.events.len()),
            ("brokers that can't be reached", of(is_away)),
            ("operations at the broker", of(|of| of.waiting.len() + of.passes.len())),
            ("changes of presence", of(|of| of.changes.len())),
            ("fences of the broker", of(|of| of.leaving.awaited())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::broker::BrokerEvent;
    use crate::shard::fixture::Plan;
    use crate::shard::home::driven::{Driven, with_history};
    use crate::shard::mail::{BROKER, Mail};

    fn commands(driven: &mut Driven) -> Vec<String> {
        let text = |mail| match mail {
            Mail::Command(command) => format!("{command:?}"),
            other => panic!("{other:?}"),
        };
        driven.sent_to(BROKER.0).into_iter().map(text).collect()
    }

    #[test]
    fn names_are_given_once_and_a_fence_is_awaited() {
        let mut plan = Plan { channels: with_history(), ..Plan::default() };
        plan.options.broker = crate::shard::options::Broker::Remote;
        let mut driven = Driven::of(plan);
        let news = |driven: &mut Driven, event| {
            driven.handle(BROKER.0, Mail::BrokerEvent(Box::new(event)));
        };
        let left = |driven: &Driven| {
            let mut left = driven.home.unsettled().to_vec();
            left.retain(|(_, count)| *count > 0);
            left
        };
        assert_eq!(left(&driven), [("brokers that can't be reached", 1)]);
        news(&mut driven, BrokerEvent::Connected);
        let subscribe = driven.subscribe("news", 1);
        driven.handle(1, Mail::Subscribe(Box::new(subscribe)));
        assert_eq!(left(&driven), [("operations at the broker", 1)]);
        assert_eq!(driven.home.channel_names().begun, ["news"]);
        assert_eq!(driven.home.channel_names(), ChannelNames::default());
        commands(&mut driven);
        driven.home.settle(&driven.cx, &mut driven.posts.post);
        driven.home.fence(&driven.cx, 7, &mut driven.posts.post);
        assert_eq!(commands(&mut driven), ["Hold", "Fence { key: 7 }"]);
        assert!(left(&driven).contains(&("fences of the broker", 1)));
        news(&mut driven, BrokerEvent::Fenced { key: 6 });
        assert!(left(&driven).contains(&("fences of the broker", 1)), "another attempt's");
        news(&mut driven, BrokerEvent::Fenced { key: 7 });
        assert_eq!(left(&driven), [("operations at the broker", 1)]);
        driven.home.go_on(&driven.cx, &mut driven.posts.post);
        assert_eq!(commands(&mut driven), ["Resume"]);
        assert_eq!(driven.home.channel_names().begun, ["news"], "for another process");
        let mut leaving = Leaving::default();
        leaving.ends(&"unknown".into(), false);
        leaving.ends(&"known".into(), true);
        assert_eq!(leaving.ended, ["known"]);
    }
}
