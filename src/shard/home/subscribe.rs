//! Subscriptions at their channel's home.
//!
//! A subscriber joins and the publications that it missed are read in one step, so that nothing comes
//! between: mail to a shard stays in order, and the answer stands exactly between the publications before
//! it and those after it.

use super::events::Event;
use super::{Home, stream_options};
use crate::base::id::{ConnKey, ShardId};
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
            (announces, membership.info)
        });
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
        if let Some(left) = left
            && left.announces
        {
            let (channel, info) = (channel.clone(), left.info);
            self.events.push(Event { channel, joined: false, info });
        }
        out.send(cx, from, Mail::Unsubscribed { local: *local, asker: *asker });
    }

    /// The info of a subscriber, which presence shows, has changed.
    pub(super) fn reinform(
        &mut self,
        cx: &Cx,
        from: ShardId,
        channel: &str,
        conn: ConnKey,
        info: &[u8],
    ) {
        let hash = cx.node.names.hash(channel);
        self.channels.reinform(channel, hash, Member { shard: from, conn }, info);
    }
}
