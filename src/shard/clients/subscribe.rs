//! Subscriptions on the subscriber's side: asked for, answered, refreshed, ended.

use compact_str::CompactString;

use crate::base::form::{Form, Framing};
use crate::base::limits::CONNECTION_FILTERS_BYTES_MAX;
use crate::base::notices::Reason;
use crate::edge::channels::Granted;
use crate::hub::filter::{Filter, FilterId};
use crate::hub::subscribers::{Subscriber, Traits};
use crate::io::Driver;
use crate::proto::client::{
    Body, Disconnect, ErrorCode, Push, Reply, SubscribeResult, Unsubscribed,
};
use crate::session::{Made, NewSub, Renewal, ServerSub, Stop, Sub, SubFlags, SubState};
use crate::shard::Shard;
use crate::shard::mail::{
    Asker, Mail, Membership, Method, Recover, Recovery, Subscribe, Subscribed, Unsubscribe,
};
use crate::shard::outlets::outlets;

impl<D: Driver> Shard<D> {
    /// Requests a subscription that the server makes.
    pub(crate) fn subscribe_by_server(
        &mut self,
        index: u32,
        asker: Asker,
        sub: &ServerSub,
    ) -> Result<(), Stop> {
        let channels = self.cx.channels_with(sub.namespace);
        let (insecure, polls) = (self.cx.client.insecure, self.net.form(index).is_poll());
        let Some(session) = self.session_of(index) else { return Ok(()) };
        let new = session.server_sub(sub, &channels, insecure, polls);
        self.request_sub(asker, new)?;
        self.schedule(index);
        if let Some(session) = self.session_of(index) {
            session.sub_requested();
        }
        Ok(())
    }

    /// Requests a subscription of the channel's home. From here on the session has it, as joining.
    pub(crate) fn request_sub(&mut self, asker: Asker, new: NewSub<'_>) -> Result<(), Stop> {
        let index = asker.conn.index;
        let credits = new.credits();
        let NewSub { channel, namespace, granted, flags, info, data, expires, filter, .. } = new;
        let (since, renewal, latest, as_pushes) =
            (new.since, new.renewal, new.latest, new.as_pushes);
        let hash = self.cx.node.names.hash(channel);
        let home = self.cx.node.names.home(hash);
        let credits = outlets!(self).spend(home, credits)?;
        let recover = since.map(|since| {
            let bytes_max = self.cx.client.answer_bytes_max();
            Box::new(Recover { since, latest, filter: filter.clone(), bytes_max, as_pushes })
        });
        let filter = match filter.map(|filter| self.hold_filter(index, filter)) {
            None => None,
            Some(Some(id)) => Some(id),
            Some(None) => {
                self.post.earn(home, credits);
                let why = "too many tag filters on this connection or shard";
                return Err(Stop::Error(ErrorCode::LimitExceeded, why));
            }
        };
        let membership = flags.member().then(|| {
            let info = self.client_info(asker.conn, &info);
            let Granted { presence: present, announces, .. } = granted;
            Box::new(Membership { info, present, announces })
        });
        let local = self.local.locals.find_or_insert(channel, namespace);
        let serial = self.local.next_serial;
        self.local.next_serial = serial.wrapping_add(1);
        if let Some(record) = self.local.locals.get(local) {
            record.claims += 1;
            record.asked += 1;
        }
        let traits = self.traits(index, flags);
        let Some(session) = self.session_of(index) else { return Ok(()) };
        session.subs.push(Sub { channel: local, place: serial, state: SubState::Joining, flags });
        if expires.is_some() || !info.is_empty() || !data.is_empty() || filter.is_some() {
            let extra = session.sub_extra_or_new(local);
            (extra.expires, extra.info, extra.data, extra.filter) = (expires, info, data, filter);
            extra.renewal = renewal;
        }
        if !flags.hidden() {
            self.cx.counters().subscriptions.add(1);
        }
        self.post.send(
            &self.cx,
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

    /// What a subscription of a connection gets of its channel.
    pub(crate) fn traits(&self, index: u32, flags: SubFlags) -> Traits {
        traits_of(self.net.form(index), flags)
    }

    /// The home has a new subscriber: from here on it gets what is published.
    pub(crate) fn subscribed(&mut self, subscribed: &Subscribed) {
        let Subscribed { local, asker, serial, position, recovery, fresh } = subscribed;
        let (local, index) = (*local, asker.conn.index);
        if let Some(record) = self.local.locals.get(local) {
            record.asked -= 1;
        }
        let session = match self.net.conn(asker.conn) {
            Some(conn) => {
                let at = conn.session;
                self.clients.sessions.get_mut(at as usize)
            }
            None => None,
        };
        let Some(session) = session else { return self.local.locals.release(local) };
        let mine = |sub: &&mut Sub| sub.state == SubState::Joining && sub.place == *serial;
        let Some(sub) = session.subs.find(local).filter(mine).map(|sub| *sub) else {
            // The client has unsubscribed since: the reply goes out all the same, if it asked.
            if asker.method == Method::Subscribe && self.takes_answer(*asker) {
                let result = SubscribeResult::default();
                self.net.reply(
                    &self.cx,
                    &mut self.codec,
                    index,
                    asker.command,
                    &Reply::Subscribe(result),
                );
            }
            return self.local.locals.release(local);
        };
        if matches!(recovery, Recovery::Unfit) {
            return self.inappropriate(index);
        }
        if matches!(recovery, Recovery::Unavailable) && sub.flags.server() {
            // Nothing could tell the client which of its subscriptions is not there.
            return self.disconnect(index, Disconnect::InternalError);
        }
        let refusal = match recovery {
            Recovery::Failed if sub.flags.strict() => Some(ErrorCode::UnrecoverablePosition),
            Recovery::Unavailable => Some(ErrorCode::Internal),
            _ => None,
        };
        if let Some(code) = refusal {
            // As if it had never been there: the home forgets it, the client gets the error.
            let channel = self.local.locals.get(local).map(|record| record.name.clone());
            self.undo(index, local);
            if self.takes_answer(*asker) {
                let channel = channel.unwrap_or_default();
                let (id, temporary, why) = (asker.command, code.temporary(), "subscribe");
                self.reply_error_because(index, id, code, temporary, &channel, why);
            }
            return;
        }
        let filter = session.sub_extra(local).and_then(|extra| extra.filter);
        if self.local.locals.is_elsewhere(local, position) {
            // There is one place for all: nobody may seem to have what only the new one has.
            self.end_positioned(local);
        }
        let traits = self
            .traits(index, sub.flags)
            .with_fresh(*fresh)
            .with_filter(filter.map_or(0, FilterId::get));
        if let Some(record) = self.local.locals.get(local) {
            let place = record.subscribers.add(Subscriber { conn: index, traits });
            if let Some(session) = self.session_of(index)
                && let Some(sub) = session.subs.find(local)
            {
                (sub.place, sub.state) = (place, SubState::Live);
            }
            self.local.locals.begin_at(local, position);
        }
        let made = self.made_of(index, local, sub.flags, subscribed);
        if sub.flags.server() {
            return self.made(index, made);
        }
        if !self.takes_answer(*asker) {
            return;
        }
        let now = self.cx.unix;
        let extra = self.session_of(index).and_then(|session| session.sub_extra(local));
        let extra = extra.filter(|extra| extra.renewal == Renewal::Client);
        let expires = extra.and_then(|extra| extra.expires);
        let ttl = expires.map(|expires| expires.ttl(now));
        let list = made.publications.as_ref();
        let reply = Reply::Subscribe(SubscribeResult {
            expires: ttl.is_some(),
            ttl: ttl.unwrap_or(0),
            publications: list.map_or(Body::Here(b""), |list| Body::Elsewhere(list.len())),
            ..made.result()
        });
        match list {
            Some(list) => {
                self.net.reply_around(&self.cx, &mut self.codec, index, asker.command, &reply, list)
            }
            None => self.net.reply(&self.cx, &mut self.codec, index, asker.command, &reply),
        }
    }

    /// What came of a subscription, as its result says it.
    fn made_of(
        &mut self,
        index: u32,
        local: u32,
        flags: SubFlags,
        subscribed: &Subscribed,
    ) -> Made {
        let Subscribed { position, recovery, .. } = subscribed;
        let channel =
            self.local.locals.get(local).map(|local| local.name.clone()).unwrap_or_default();
        let session = self.session_of(index);
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
    fn undo(&mut self, index: u32, local: u32) {
        let Some(session) = self.session_of(index) else { return };
        let Some(mut sub) = session.subs.remove(local) else { return };
        self.forget_sub(index, local);
        self.leave_list(&mut sub);
        self.leave_home(index, &sub, None);
    }

    /// Ends a subscription that the client gives up.
    pub(crate) fn unsubscribe(
        &mut self,
        asker: Asker,
        channel: &str,
        local: u32,
    ) -> Result<(), Stop> {
        let index = asker.conn.index;
        let home = self.cx.node.names.home(self.cx.node.names.hash(channel));
        let credits = outlets!(self).spend(home, 1)?;
        // Out of the list at once; a subscribe in flight is undone behind its answer.
        let Some(session) = self.session_of(index) else { return Ok(()) };
        let Some(mut sub) = session.subs.remove(local) else { return Ok(()) };
        session.unanswered += 1;
        self.forget_sub(index, local);
        self.leave_list(&mut sub);
        self.leave_home(index, &sub, Some(Asker { credits, ..asker }));
        Ok(())
    }

    /// Tells the home that a subscription has ended. `asker` waits for the answer, and has spent the
    /// credit.
    pub(crate) fn leave_home(&mut self, index: u32, sub: &Sub, asker: Option<Asker>) {
        let traits = self.traits(index, sub.flags);
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        let member = sub.flags.member().then(|| conn.key(index));
        let Some(local) = self.local.locals.get(sub.channel) else { return };
        local.claims -= 1;
        local.asked += 1;
        let (home, channel) = (local.home, local.name.clone());
        let unsubscribe = Unsubscribe { local: sub.channel, channel, asker, traits, member };
        self.post.send(&self.cx, home, Mail::Unsubscribe(Box::new(unsubscribe)));
    }

    /// The home has one subscriber less.
    pub(crate) fn unsubscribed(&mut self, local: u32, asker: Option<Asker>) {
        if let Some(record) = self.local.locals.get(local) {
            record.asked -= 1;
        }
        self.local.locals.release(local);
        if let Some(asker) = asker
            && self.takes_answer(asker)
        {
            self.net.reply(
                &self.cx,
                &mut self.codec,
                asker.conn.index,
                asker.command,
                &Reply::Unsubscribe,
            );
        }
    }

    /// Forgets what a session kept for one subscription.
    fn forget_sub(&mut self, index: u32, local: u32) {
        let filter = self.session_of(index).and_then(|session| session.forget_sub(local));
        if let Some(filter) = filter {
            let bytes = self.local.filters.get(filter).bytes();
            self.local.filters.release(filter);
            if let Some(extra) = self.session_of(index).and_then(|s| s.extra.as_mut()) {
                extra.filters_bytes -= bytes;
            }
        }
    }

    /// Keeps a filter for one more subscription of a connection; `None` when that is too much for the
    /// connection or the shard.
    fn hold_filter(&mut self, index: u32, filter: Filter) -> Option<FilterId> {
        let bytes = filter.bytes();
        let extra = self.session_of(index)?.extra();
        if extra.filters_bytes + bytes > CONNECTION_FILTERS_BYTES_MAX {
            return None;
        }
        let id = self.local.filters.intern(filter)?;
        self.session_of(index)?.extra().filters_bytes += bytes;
        Some(id)
    }

    /// Ends a subscription by the server: push, list, home. One that the server made ends with its
    /// connection where the client would have to do something about it.
    pub(crate) fn end_sub(&mut self, index: u32, channel: u32, why: Unsubscribed) {
        let Some(session) = self.session_of(index) else { return };
        let Some(sub) = session.subs.find(channel).map(|sub| *sub) else { return };
        if sub.flags.server() {
            return self.disconnect(
                index,
                match why {
                    Unsubscribed::Expired => Disconnect::SubscriptionExpired,
                    _ => Disconnect::InsufficientState,
                },
            );
        }
        self.take_away(index, channel, why);
    }

    /// Ends a subscription, whoever made it: push, list, home.
    pub(crate) fn take_away(&mut self, index: u32, channel: u32, why: Unsubscribed) {
        let Some(session) = self.session_of(index) else { return };
        let Some(mut sub) = session.subs.remove(channel) else { return };
        self.forget_sub(index, channel);
        self.leave_list(&mut sub);
        let Some(name) = self.local.locals.get(channel).map(|local| local.name.clone()) else {
            return;
        };
        // Not held back by a full outbox: there are at most as many as subscriptions.
        self.leave_home(index, &sub, None);
        let reason = match why {
            Unsubscribed::Expired => Some(Reason::EndExpired),
            Unsubscribed::InsufficientState => Some(Reason::EndInsufficientState),
            _ => None,
        };
        if let Some(reason) = reason {
            self.notice(index, reason, why.code().into(), &name, format_args!(""));
        }
        self.push(index, &name, &Push::Unsubscribe(why));
    }
}

/// The traits of a subscription on a connection of this form. A namespace without compression has its
/// publications go plain, whatever the connection has agreed on.
fn traits_of(form: Form, flags: SubFlags) -> Traits {
    let form = match form.framing().window_bits() {
        Some(_) if flags.plain() && form.is_one_way() => {
            form.with_framing(Framing::WebSocketSingle)
        }
        Some(_) if flags.plain() => form.with_framing(Framing::WebSocket),
        _ => form,
    };
    let form = form.subscriber(flags.delta(), flags.positioned());
    Traits::new(form).with_positioned(flags.positioned()).with_joins(flags.joins())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_subscription_is_not_deflated() {
        let (deflated, one_way) =
            (Form::new(Framing::deflate(15), false), Form::one_way(Framing::deflate(15)));
        let mut flags = SubFlags::default();
        flags.set_positioned(true);
        let traits = traits_of(deflated, flags);
        assert!(traits.positioned() && !traits.takes_joins());
        assert!(traits.form().framing().window_bits().is_some());
        flags.set_plain(true);
        for (form, framing) in [(deflated, Framing::WebSocket), (one_way, Framing::WebSocketSingle)]
        {
            assert_eq!(traits_of(form, flags).form().framing(), framing);
        }
    }
}
