//! Subscriptions at their channel's home.
//!
//! A subscriber joins and the publications that it missed are read in one step, so that nothing comes
//! between: mail to a shard stays in order, and the answer stands exactly between the publications before
//! it and those after it.

use super::occupancy::{report_joined, report_left};
use super::seam::stream_options;
use super::{Event, Home};
use crate::base::id::{ConnKey, ShardId};
use crate::hub::broker::PresenceChange;
use crate::hub::members::Member;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::mail::{Mail, Recovery, Subscribe, Subscribed, Unsubscribe};

impl Home {
    /// A subscription begins: the subscriber joins, and the publications that it missed are read.
    pub(super) fn subscribe(
        &mut self,
        cx: &Cx,
        from: ShardId,
        subscribe: Subscribe,
        out: &mut Post,
    ) {
        let Subscribe { channel, hash, local, asker, serial, mut traits, .. } = subscribe;
        let namespace = subscribe.namespace;
        let options = stream_options(cx.channels_with(namespace).namespace(namespace));
        let (at, position) =
            self.channels.subscribe(cx.now, &channel, hash, options, from, local, traits);
        let recovery = match &subscribe.recover {
            Some(recover) => self.recover(cx, at, traits.form(), recover),
            None => Recovery::None,
        };
        let based = matches!(&recovery, Recovery::Done { publications: Some(_), .. });
        traits = traits.with_fresh(traits.form().takes_patches() && !based);
        if traits.fresh() {
            self.channels.mark_fresh(at, from);
        }
        let announced = subscribe.membership.map(|membership| {
            let member = Member { shard: from, conn: asker.conn };
            let (present, announces) = (membership.present, membership.announces);
            self.channels.enter(at, member, &membership.info, present, announces);
            if present {
                let entered = PresenceChange::Enter { announces };
                self.share_presence(&channel, entered, &membership.info);
            }
            (announces, membership.info)
        });
        report_joined(cx, out, &self.channels, at, namespace);
        let fresh = traits.fresh();
        let subscribed = Subscribed { local, asker, serial, position, recovery, fresh };
        out.send(cx, from, Mail::Subscribed(Box::new(subscribed)));
        if let Some((true, info)) = announced {
            self.events.push(Event { channel, joined: true, info });
        }
    }

    /// A subscription ends.
    pub(super) fn unsubscribe(
        &mut self,
        cx: &Cx,
        from: ShardId,
        unsubscribe: &Unsubscribe,
        out: &mut Post,
    ) {
        let Unsubscribe { local, channel, asker, traits, member } = unsubscribe;
        let hash = cx.node.names.hash(channel);
        let member = member.map(|conn| Member { shard: from, conn });
        let left = self.channels.unsubscribe(channel, hash, from, *traits, member);
        report_left(cx, out, &self.channels, channel, hash);
        if let Some(left) = left {
            self.share_presence(channel, PresenceChange::Leave, &left.info);
            if left.announces {
                let (channel, info) = (channel.clone(), left.info);
                self.events.push(Event { channel, joined: false, info });
            }
        }
        out.send(cx, from, Mail::Unsubscribed { local: *local, asker: *asker });
    }

    /// The info of a subscriber has changed. Where presence shows the subscriber: whether it makes join and
    /// leave events, and the info that presence shows.
    pub(super) fn reinform(
        &mut self,
        cx: &Cx,
        from: ShardId,
        channel: &str,
        conn: ConnKey,
        info: &[u8],
    ) -> Option<(bool, Box<[u8]>)> {
        let hash = cx.node.names.hash(channel);
        let member = Member { shard: from, conn };
        let shown = self.channels.reinform(channel, hash, member, info)?;
        Some((shown.0, shown.1.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::history::Since;
    use crate::shard::home::driven::{Driven, conn, info, texts, with_history};
    use crate::shard::mail::{Answer, Reading};

    fn list(recovery: &Recovery) -> String {
        match recovery {
            Recovery::Done { publications: Some(list), .. } => {
                String::from_utf8_lossy(list.bytes()).into_owned()
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_answer_stands_between_the_publications_before_and_behind_it() {
        let mut driven = Driven::with(with_history());
        driven.subscribes("news", 1);
        driven.publishes("news", "1");
        let subscribe = driven.subscribe("news", 2);
        driven.handle(1, Mail::Subscribe(subscribe.into()));
        driven.publishes("news", "2");
        let mail = texts(&driven.sent_to(1));
        assert!(mail[0].contains(r#""offset":1"#) && mail[2].contains(r#""offset":2"#), "{mail:?}");
        assert_eq!(mail[1], "subscribed 1");
    }

    #[test]
    fn a_subscriber_gets_the_publications_behind_its_position() {
        let mut driven = Driven::with(with_history());
        let epoch = driven.subscribes("news", 1).position.epoch.unwrap();
        (1..=3).for_each(|n| driven.publishes("news", &n.to_string()));
        driven.sent_to(1);
        let since = |offset| Since { offset, epoch: epoch.as_str().into() };
        let subscribed = driven.recovers("news", since(1));
        assert_eq!(subscribed.position.offset, 3);
        let publications = list(&subscribed.recovery);
        assert!(publications.contains(r#""data":2"#) && publications.contains(r#""data":3"#));
        assert!(!publications.contains(r#""data":1"#));
        // Nothing is missing, or it can't be known what is.
        let none = driven.recovers("news", since(3)).recovery;
        assert!(matches!(none, Recovery::Done { publications: None, offset: 3 }), "{none:?}");
        let other = Since { offset: 1, epoch: "other".into() };
        assert!(matches!(driven.recovers("news", other).recovery, Recovery::Failed));
        (4..=14).for_each(|n| driven.publishes("news", &n.to_string()));
        driven.sent_to(1);
        assert!(matches!(driven.recovers("news", since(1)).recovery, Recovery::Failed));
        let counters = driven.cx.counters();
        assert_eq!((counters.recoveries.get(), counters.recovered.get()), (4, 2));
    }

    #[test]
    fn publications_end_with_the_last_subscription_of_a_shard() {
        let mut driven = Driven::with(with_history());
        driven.joins("news", 1, "ann");
        driven.joins("news", 2, "ann");
        driven.leaves("news", 1);
        driven.publishes("news", "1");
        assert!(texts(&driven.sent_to(1)).iter().any(|mail| mail.contains(r#""data":1"#)));
        driven.leaves("news", 2);
        driven.publishes("news", "2");
        assert_eq!(texts(&driven.sent_to(1)), ["unsubscribed 7", "published 2"]);
        assert!(driven.home.left().iter().all(|(_, count)| *count == 0));
    }

    #[test]
    fn presence_shows_the_latest_info() {
        let mut driven = Driven::with(with_history());
        driven.joins("news", 1, "ann");
        driven.sent_to(1);
        let (channel, info) = ("news".into(), info("ann", "renamed"));
        driven.handle(1, Mail::Reinform { channel, conn: conn(1), info });
        let Answer::Presence(list) = driven.reads("news", Reading::Presence) else { panic!() };
        assert!(String::from_utf8_lossy(list.bytes()).contains("renamed"));
    }
}
