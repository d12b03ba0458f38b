//! Subscriptions on the subscriber's side: requested, answered, refreshed, ended.

use compact_str::CompactString;

use crate::base::limits::CONNECTION_FILTERS_BYTES_MAX;
use crate::base::notices::Reason;
use crate::edge::channels::Granted;
use crate::hub::filter::{Filter, FilterId};
use crate::hub::subscribers::Subscriber;
use crate::io::Driver;
use crate::proto::client::{
    Body, Disconnect, ErrorCode, Push, Reply, SubscribeResult, Unsubscribed,
};
use crate::session::{Made, NewSub, Renewal, ServerSub, Stop, Sub, SubFlags, SubState};
use crate::shard::clients::Clients;
use crate::shard::clients::commands::ErrorReply;
use crate::shard::context::Cx;
use crate::shard::local::LocalSide;
use crate::shard::local::traits::traits_of;
use crate::shard::mail::{
    Asker, Mail, Membership, Method, Recover, Recovery, Subscribe, Subscribed,
};
use crate::shard::outlets::Outlets;

impl Clients {
    /// Requests a subscription that the server makes.
    pub(crate) fn subscribe_by_server<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        asker: Asker,
        sub: &ServerSub,
    ) -> Result<(), Stop> {
        let channels = out.cx.channels_with(sub.namespace);
        let (insecure, polls) = (out.cx.client.insecure, out.net.form(index).is_poll());
        let Some(session) = self.session_of(out.net, index) else { return Ok(()) };
        let new = session.server_sub(sub, &channels, insecure, polls);
        self.request_sub(out, side, asker, new)?;
        self.schedule(out, index);
        if let Some(session) = self.session_of(out.net, index) {
            session.sub_requested();
        }
        Ok(())
    }

    /// Requests a subscription of the channel's home. From here on the session has it, as joining.
    pub(crate) fn request_sub<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        asker: Asker,
        new: NewSub<'_>,
    ) -> Result<(), Stop> {
        let index = asker.conn.index;
        let credits = new.credits();
        let NewSub { channel, namespace, granted, flags, info, data, expires, filter, .. } = new;
        let (since, renewal, latest, as_pushes) =
            (new.since, new.renewal, new.latest, new.as_pushes);
        let hash = out.cx.node.names.hash(channel);
        let home = out.cx.node.names.home(hash);
        let credits = out.spend(home, credits)?;
        let recover = since.map(|since| {
            let bytes_max = out.cx.client.answer_bytes_max();
            Box::new(Recover { since, latest, filter: filter.clone(), bytes_max, as_pushes })
        });
        let filter = match filter.map(|filter| self.hold_filter(out, side, index, filter)) {
            None => None,
            Some(Some(id)) => Some(id),
            Some(None) => {
                out.post.earn(home, credits);
                let why = "too many tag filters on this connection or shard";
                return Err(Stop::Error(ErrorCode::LimitExceeded, why));
            }
        };
        let membership = flags.member().then(|| {
            let since = subscription_time(out.cx, namespace);
            let info = self.client_info_since(out, asker.conn, &info, since);
            let Granted { presence: present, announces, .. } = granted;
            Box::new(Membership { info, present, announces })
        });
        let local = side.locals.find_or_insert(channel, namespace);
        let serial = side.next_serial;
        side.next_serial = serial.wrapping_add(1);
        if let Some(record) = side.locals.get(local) {
            record.claims += 1;
        }
        side.locals.ask(local);
        let traits = traits_of(out.net.form(index), flags);
        let Some(session) = self.session_of(out.net, index) else { return Ok(()) };
        session.subs.push(Sub { channel: local, place: serial, state: SubState::Joining, flags });
        if expires.is_some() || !info.is_empty() || !data.is_empty() || filter.is_some() {
            let extra = session.sub_extra_or_new(local);
            (extra.expires, extra.info, extra.data, extra.filter) = (expires, info, data, filter);
            extra.renewal = renewal;
        }
        if !flags.hidden() {
            out.cx.counters().subscriptions.add(1);
        }
        out.post.send(
            out.cx,
            home,
            Mail::Subscribe(Box::new(Subscribe {
                channel: CompactString::new(channel),
                hash,
                namespace,
                local,
                asker: Asker { credits, ..asker },
                serial,
                traits,
                recover,
                membership,
            })),
        );
        Ok(())
    }

    /// The home has a new subscriber: from here on it gets what is published.
    pub(crate) fn subscribed<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        subscribed: &Subscribed,
    ) {
        let Subscribed { local, asker, serial, recovery, .. } = subscribed;
        let (local, index) = (*local, asker.conn.index);
        side.locals.answered(local);
        let session = match out.net.conn(asker.conn) {
            Some(conn) => {
                let at = conn.session;
                self.sessions.get_mut(at as usize)
            }
            None => None,
        };
        let Some(session) = session else { return side.locals.release(local) };
        let mine = |sub: &&mut Sub| sub.state == SubState::Joining && sub.place == *serial;
        let Some(sub) = session.subs.find(local).filter(mine).map(|sub| *sub) else {
            // The client has unsubscribed since: its command gets the reply all the same.
            if asker.method == Method::Subscribe && self.takes_answer(out, *asker) {
                let result = SubscribeResult::default();
                out.net.reply(out.cx, out.codec, index, asker.command, &Reply::Subscribe(result));
            }
            return side.locals.release(local);
        };
        let refusal = match recovery {
            Recovery::Unfit => return self.inappropriate(out, side, index),
            // Nothing could tell the client which of its subscriptions is not there.
            Recovery::Unavailable if sub.flags.server() => {
                return self.disconnect(out, side, index, Disconnect::InternalError);
            }
            Recovery::Failed if sub.flags.strict() => Some(ErrorCode::UnrecoverablePosition),
            Recovery::Unavailable => Some(ErrorCode::Internal),
            _ => None,
        };
        if let Some(code) = refusal {
            // As if it had never been there: the home forgets it, the client gets the error.
            let channel = side.locals.get(local).map(|record| record.name.clone());
            self.undo(out, side, index, local);
            if self.takes_answer(out, *asker) {
                let channel = channel.unwrap_or_default();
                let error = ErrorReply::new(code, &channel, "subscribe");
                self.reply_error(out, side, index, asker.command, error);
            }
            return;
        }
        self.go_live(out, side, sub, subscribed);
        let made = self.result_of(out, side, index, local, sub.flags, subscribed);
        if sub.flags.server() {
            return self.server_sub_done(out, side, index, made);
        }
        if self.takes_answer(out, *asker) {
            self.reply_subscribed(out, *asker, local, &made);
        }
    }

    /// Puts a subscription into the list of its channel, from the position on where it begins.
    fn go_live<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        sub: Sub,
        subscribed: &Subscribed,
    ) {
        let Subscribed { local, asker, position, fresh, .. } = subscribed;
        let (local, index) = (*local, asker.conn.index);
        let session = self.session_of(out.net, index);
        let extra = session.and_then(|session| session.sub_extra(local));
        let filter = extra.and_then(|extra| extra.filter);
        if side.locals.is_elsewhere(local, position) {
            // A channel has one position here: older subscribers may lack what stands before the new one's.
            self.end_positioned(out, side, local);
        }
        let traits = traits_of(out.net.form(index), sub.flags)
            .with_fresh(*fresh)
            .with_filter(filter.map_or(0, FilterId::get));
        let Some(record) = side.locals.get(local) else { return };
        let place = record.subscribers.add(Subscriber { conn: index, traits });
        if let Some(session) = self.session_of(out.net, index)
            && let Some(sub) = session.subs.find(local)
        {
            (sub.place, sub.state) = (place, SubState::Live);
        }
        side.locals.begin_at(local, position);
    }

    /// Answers the subscribe of a client.
    fn reply_subscribed<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        asker: Asker,
        local: u32,
        made: &Made,
    ) {
        let (index, id) = (asker.conn.index, asker.command);
        let extra = self.session_of(out.net, index).and_then(|session| session.sub_extra(local));
        let extra = extra.filter(|extra| extra.renewal == Renewal::Client);
        let expires = extra.and_then(|extra| extra.expires);
        let ttl = expires.map(|expires| expires.ttl(out.cx.unix));
        let list = made.publications.as_ref();
        let reply = Reply::Subscribe(SubscribeResult {
            expires: ttl.is_some(),
            ttl: ttl.unwrap_or(0),
            publications: list.map_or(Body::Here(b""), |list| Body::Elsewhere(list.len())),
            ..made.result()
        });
        match list {
            Some(list) => out.net.reply_around(out.cx, out.codec, index, id, &reply, list),
            None => out.net.reply(out.cx, out.codec, index, id, &reply),
        }
    }

    /// The result of a subscription, for the reply or the push.
    fn result_of<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        local: u32,
        flags: SubFlags,
        subscribed: &Subscribed,
    ) -> Made {
        let Subscribed { position, recovery, .. } = subscribed;
        let channel = side.locals.get(local).map(|local| local.name.clone()).unwrap_or_default();
        let session = self.session_of(out.net, index);
        let data = session
            .and_then(|session| Some(std::mem::take(&mut session.sub_extra_mut(local)?.data)))
            .unwrap_or_default();
        let positioned = flags.positioned();
        let epoch = position.epoch.as_ref().filter(|_| positioned);
        let (recovered, publications, offset) = match recovery {
            Recovery::Done { publications, offset } => (true, publications.clone(), *offset),
            _ => (false, None, position.offset),
        };
        Made {
            channel,
            recoverable: flags.recoverable(),
            positioned,
            epoch: epoch.map(|epoch| epoch.as_str().into()).unwrap_or_default(),
            offset: if positioned { offset } else { 0 },
            was_recovering: flags.recovering(),
            recovered,
            publications,
            delta: flags.delta(),
            data,
        }
    }

    /// Takes back a subscription that its home has just made.
    fn undo<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        local: u32,
    ) {
        let Some(session) = self.session_of(out.net, index) else { return };
        let Some(mut sub) = session.subs.remove(local) else { return };
        self.forget_sub(out, side, index, local);
        self.leave_list(out, side, &mut sub);
        side.leave_home(out, index, &sub, None);
    }

    /// Ends a subscription that the client gives up.
    pub(crate) fn unsubscribe<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        asker: Asker,
        channel: &str,
        local: u32,
    ) -> Result<(), Stop> {
        let index = asker.conn.index;
        let home = out.cx.node.names.home(out.cx.node.names.hash(channel));
        let credits = out.spend(home, 1)?;
        // Out of the list at once; a subscribe in flight is undone behind its answer.
        let Some(session) = self.session_of(out.net, index) else { return Ok(()) };
        let Some(mut sub) = session.subs.remove(local) else { return Ok(()) };
        session.unanswered += 1;
        self.forget_sub(out, side, index, local);
        self.leave_list(out, side, &mut sub);
        out.cx.counters().unsubscribe_client.inc();
        side.leave_home(out, index, &sub, Some(Asker { credits, ..asker }));
        Ok(())
    }

    /// The home has one subscriber less.
    pub(crate) fn unsubscribed<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        local: u32,
        asker: Option<Asker>,
    ) {
        side.locals.answered(local);
        side.locals.release(local);
        if let Some(asker) = asker
            && self.takes_answer(out, asker)
        {
            out.net.reply(out.cx, out.codec, asker.conn.index, asker.command, &Reply::Unsubscribe);
        }
    }

    /// Forgets what a session kept for one subscription.
    fn forget_sub<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        local: u32,
    ) {
        let filter = self.session_of(out.net, index).and_then(|session| session.forget_sub(local));
        if let Some(filter) = filter {
            let bytes = side.filters.get(filter).bytes();
            side.filters.release(filter);
            if let Some(extra) = self.session_of(out.net, index).and_then(|s| s.extra.as_mut()) {
                extra.filters_bytes -= bytes;
            }
        }
    }

    /// Keeps a filter for one more subscription of a connection; `None` when that is too much for the
    /// connection or the shard.
    fn hold_filter<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        filter: Filter,
    ) -> Option<FilterId> {
        let bytes = filter.bytes();
        let extra = self.session_of(out.net, index)?.extra();
        if extra.filters_bytes + bytes > CONNECTION_FILTERS_BYTES_MAX {
            return None;
        }
        let id = side.filters.intern(filter)?;
        self.session_of(out.net, index)?.extra().filters_bytes += bytes;
        Some(id)
    }

    /// Ends a subscription by the server: push, list, home. One that the server made ends with its
    /// connection where the client would have to do something about it.
    pub(crate) fn end_sub<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        channel: u32,
        why: Unsubscribed,
    ) {
        let Some(session) = self.session_of(out.net, index) else { return };
        let Some(sub) = session.subs.find(channel).map(|sub| *sub) else { return };
        if sub.flags.server() {
            return self.disconnect(
                out,
                side,
                index,
                match why {
                    Unsubscribed::Expired => Disconnect::SubscriptionExpired,
                    _ => Disconnect::InsufficientState,
                },
            );
        }
        self.take_away(out, side, index, channel, why);
    }

    /// Ends a subscription of the client's or of the server's: push, list, home.
    pub(crate) fn take_away<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        channel: u32,
        why: Unsubscribed,
    ) {
        let (code, reason) = (why.code(), why.reason());
        let Some(name) = self.take_away_with(out, side, index, channel, code, reason) else {
            return;
        };
        let reason = match why {
            Unsubscribed::Expired => Some(Reason::EndExpired),
            Unsubscribed::InsufficientState => Some(Reason::EndInsufficientState),
            _ => None,
        };
        if let Some(reason) = reason {
            self.notice(out, index, reason, code.into(), &name, format_args!(""));
        }
    }

    /// The same with a code and a reason that may be those of another node. Yields the channel's name if there
    /// was a subscription.
    pub(crate) fn take_away_with<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        channel: u32,
        code: u16,
        reason: &str,
    ) -> Option<CompactString> {
        let session = self.session_of(out.net, index)?;
        let mut sub = session.subs.remove(channel)?;
        out.cx.counters().count_unsubscribe(code);
        self.forget_sub(out, side, index, channel);
        self.leave_list(out, side, &mut sub);
        let name = side.locals.get(channel)?.name.clone();
        // Not held back by a full outbox: there are at most as many as subscriptions.
        side.leave_home(out, index, &sub, None);
        self.push(out, side, index, &name, &Push::Unsubscribe { code, reason });
        Some(name)
    }
}

/// The time of a subscription where the namespace keeps it, in Unix seconds; 0: none. Seconds of 32 bits last
/// until 2106.
fn subscription_time(cx: &Cx, namespace: u16) -> u32 {
    let keeps = cx.channels_with(namespace).namespace(namespace).subscribed_at;
    if keeps { cx.unix.0 as u32 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::history::Position;
    use crate::shard::clients::testing::Scene;
    use crate::shard::fixture::Plan;
    use crate::shard::flow::Flow;

    const SUBSCRIBE: &str = r#"{"id":2,"subscribe":{"channel":"news"}}"#;
    const UNSUBSCRIBE: &str = r#"{"id":3,"unsubscribe":{"channel":"news"}}"#;

    #[test]
    fn a_subscription_lives_from_its_homes_answer_to_the_unsubscribe() {
        let mut scene = Scene::new(Plan::default());
        let (link, key) = scene.client("alice");
        assert_eq!(scene.commands(key, SUBSCRIBE), Flow::On);
        let channel = scene.side.locals.find("news").unwrap();
        assert_eq!(scene.sub(key, channel).map(|sub| sub.state), Some(SubState::Joining));
        assert_eq!(scene.wired.received(link), "", "the home has not answered");
        scene.carry_mail();
        assert_eq!(scene.sub(key, channel).map(|sub| sub.state), Some(SubState::Live));
        assert!(scene.wired.received(link).contains(r#"{"id":2,"subscribe":{}}"#));
        assert_eq!(scene.wired.cx.counters().subscriptions.get(), 1);

        assert_eq!(scene.commands(key, UNSUBSCRIBE), Flow::On);
        assert!(scene.sub(key, channel).is_none(), "nothing is delivered any more");
        scene.carry_mail();
        assert!(scene.wired.received(link).contains(r#"{"id":3,"unsubscribe":{}}"#));
        assert_eq!(scene.side.locals.find("news"), None);
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn an_answer_behind_the_unsubscribe_is_a_reply_and_no_subscription() {
        let mut scene = Scene::new(Plan::default());
        let (link, key) = scene.client("alice");
        scene.commands(key, &format!("{SUBSCRIBE}\n{UNSUBSCRIBE}"));
        scene.carry_mail();
        let replies = scene.wired.received(link);
        assert!(replies.contains(r#"{"id":2,"subscribe":{}}"#), "{replies}");
        assert!(replies.contains(r#"{"id":3,"unsubscribe":{}}"#), "{replies}");
        assert_eq!(scene.side.locals.find("news"), None);
        assert_eq!(scene.session(key).map(|session| session.unanswered), Some(0));
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn without_its_broker_a_subscription_is_undone_and_answered_with_an_error() {
        let mut scene = Scene::new(Plan::default());
        let (link, key) = scene.client("alice");
        scene.commands(key, SUBSCRIBE);
        let channel = scene.side.locals.find("news").unwrap();
        let serial = scene.sub(key, channel).unwrap().place;
        let asker = Asker { command: 2, method: Method::Subscribe, ..Asker::of(key) };
        let subscribed = Subscribed {
            local: channel,
            asker,
            serial,
            position: Position { offset: 0, epoch: None },
            recovery: Recovery::Unavailable,
            fresh: false,
        };
        scene.with(|clients, out, side| clients.subscribed(out, side, &subscribed));
        let reply = scene.wired.received(link);
        assert!(reply.contains(r#"{"id":2,"error":{"code":100,"#), "{reply}");
        assert!(scene.sub(key, channel).is_none());
        assert_eq!(scene.wired.cx.counters().subscriptions.get(), 0);
    }

    #[test]
    fn subscriptions_that_the_server_made_end_with_their_connection() {
        let mut scene = Scene::new(Plan::default());
        let (link, key, channel) = scene.subscriber("alice", "news");
        let (other, other_key, _) = scene.subscriber("bob", "news");
        scene.session(other_key).unwrap().subs.find(channel).unwrap().flags.set_server(true);
        let why = Unsubscribed::InsufficientState;
        for index in [key.index, other_key.index] {
            scene.with(|clients, out, side| clients.end_sub(out, side, index, channel, why));
        }
        assert!(scene.wired.received(link).contains(r#""unsubscribe":{"code":2500,"#));
        assert!(scene.session(key).is_some_and(|session| session.subs.is_empty()));
        // The close frame has the code of "insufficient state", 3010.
        assert!(scene.wired.received(other).contains("insufficient state"));
        assert!(scene.session(other_key).is_none());
        assert_eq!(scene.end(), []);
    }
}
