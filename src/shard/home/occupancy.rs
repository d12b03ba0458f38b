//! Events for the application about channels that got their first subscriber on this node, and about those that
//! lost the last one.

use compact_str::CompactString;

use crate::hub::home::Homes;
use crate::shard::context::Cx;
use crate::shard::mail::AppEvent;
use crate::shard::mail::post::Post;

/// A subscriber has joined the channel with this number. `namespace`: the number of its namespace.
pub(super) fn report_joined(cx: &Cx, out: &mut Post, homes: &Homes, channel: u32, namespace: u16) {
    if cx.channels.has_state_events()
        && homes.subscribers(channel) == 1
        && cx.channels_with(namespace).namespace(namespace).occupied_events
    {
        out.report(AppEvent::Occupied(CompactString::new(homes.name(channel))));
    }
}

/// A subscriber has left this channel.
pub(super) fn report_left(
    cx: &Cx,
    out: &mut Post,
    homes: &Homes,
    channel: &CompactString,
    hash: u64,
) {
    if cx.channels.has_state_events()
        && !homes.has_subscribers(channel, hash)
        && cx.channels.resolve_trusted(channel).is_ok_and(|of| of.vacated_events)
    {
        out.report(AppEvent::Vacated(channel.clone()));
    }
}

#[cfg(test)]
mod tests {
    use crate::edge::channels::Namespace;
    use crate::shard::home::driven::Driven;
    use crate::shard::mail::{AppEvent, CONTROL, Mail};

    fn events(driven: &mut Driven) -> Vec<AppEvent> {
        driven.posts.post.flush(&driven.cx);
        let events = driven.posts.sent_to(CONTROL.0).into_iter().filter_map(|mail| match mail {
            Mail::AppEvents(events) => Some(events.events),
            _ => None,
        });
        events.flatten().collect()
    }

    #[test]
    fn the_first_subscriber_and_the_last_make_an_event() {
        let namespace =
            Namespace { occupied_events: true, vacated_events: true, ..Namespace::default() };
        let mut driven = Driven::with(namespace);
        driven.joins("news", 1, "alice");
        driven.joins("news", 2, "bob");
        driven.leaves("news", 1);
        assert_eq!(events(&mut driven), [AppEvent::Occupied("news".into())]);
        driven.leaves("news", 2);
        driven.joins("news", 3, "alice");
        let (vacated, occupied) =
            (AppEvent::Vacated("news".into()), AppEvent::Occupied("news".into()));
        assert_eq!(events(&mut driven), [vacated, occupied]);
    }

    #[test]
    fn a_namespace_without_events_makes_none() {
        let mut driven = Driven::with(Namespace::default());
        driven.joins("news", 1, "alice");
        driven.leaves("news", 1);
        assert_eq!(events(&mut driven), []);
    }
}
