//! The subscribers' side: what the mail brings, deliveries, fan-out.

use std::sync::Arc;

use crate::base::id::ShardId;
use crate::base::limits::{TURN_BATCHES_MAX, TURN_MAIL_BYTES_MAX};
use crate::edge::channels::SlowPolicy;
use crate::hub::fanout::Outgoing;
use crate::hub::parcel::Parcel;
use crate::io::Driver;
use crate::proto::client::Reply;
use crate::proto::framing;
use crate::session::{Sub, SubState};
use crate::shard::Shard;
use crate::shard::local::LocalSide;
use crate::shard::local::arrival::Taken;
use crate::shard::local::fanout::{Slice, Step};
use crate::shard::mail::{Asker, Batch, CONTROL, List, ListOf, Mail};
use crate::shard::outlets::outlets;

impl<D: Driver> Shard<D> {
    /// Opens some of the mail.
    pub(crate) fn open_mail(&mut self) {
        self.open_loopback();
        let mut bytes = 0;
        for _ in 0..TURN_BATCHES_MAX {
            if bytes >= TURN_MAIL_BYTES_MAX {
                break;
            }
            let Some(batch) = self.post.take_batch() else { break };
            bytes += batch.bytes;
            self.open_batch(*batch);
        }
        self.post.ring_turned_away();
    }

    /// Opens some of the mail to itself. Each batch that is there, and no more: others have their turn.
    fn open_loopback(&mut self) {
        let mut bytes = 0;
        let mut opened = 0;
        for _ in 0..self.post.own_batches() {
            if bytes >= TURN_MAIL_BYTES_MAX {
                break;
            }
            let Some(batch) = self.post.take_own_batch() else { break };
            bytes += batch.bytes;
            opened += 1;
            self.open_batch(*batch);
        }
        self.orders.batches_opened(opened);
    }

    /// Opens what this turn's reading and mail had for this shard itself: a question to a home that is
    /// here is answered with the reply that the same turn writes, and a publication goes on to its
    /// subscribers.
    pub(crate) fn open_own_mail(&mut self) {
        for _ in 0..OWN_MAIL_ROUNDS {
            self.post.flush_to(&self.cx, self.cx.id);
            if self.post.own_batches() == 0 {
                return;
            }
            self.open_loopback();
        }
    }

    fn open_batch(&mut self, batch: Batch) {
        self.cx.counters().mail_batches.add(1);
        self.cx.counters().mail.add(batch.mail.len() as u64);
        let from = batch.from;
        for mail in batch.mail {
            match mail {
                mail @ (Mail::Subscribe(_)
                | Mail::Unsubscribe(_)
                | Mail::Publish(_)
                | Mail::Read(_)
                | Mail::Reinform { .. }
                | Mail::UserEnter(_)
                | Mail::UserLeave { .. }
                | Mail::Verify { .. }
                | Mail::Signed { .. }
                | Mail::BrokerEvent(_)
                | Mail::Pass { .. }
                | Mail::List(List { of: ListOf::Channels, .. })) => {
                    self.home.handle(&self.cx, from, mail, &mut self.post, &mut self.codec);
                }
                Mail::Subscribed(subscribed) => {
                    self.earn(from, subscribed.asker);
                    self.clients.subscribed(&mut outlets!(self), &mut self.local, &subscribed);
                }
                Mail::Unsubscribed { local, asker } => {
                    if let Some(asker) = asker {
                        self.earn(from, asker);
                    }
                    self.clients.unsubscribed(&mut outlets!(self), &mut self.local, local, asker);
                }
                Mail::Published { asker, .. } => {
                    self.earn(from, asker);
                    if self.clients.takes_answer(&mut outlets!(self), asker) {
                        self.net.reply(
                            &self.cx,
                            &mut self.codec,
                            asker.conn.index,
                            asker.command,
                            &Reply::Publish,
                        );
                    }
                }
                Mail::Answer { asker, answer } => {
                    self.earn(from, asker);
                    self.clients.answered(&mut outlets!(self), &mut self.local, asker, &answer);
                }
                Mail::UserEntered { asker, admitted } => {
                    self.earn(from, asker);
                    self.clients.user_entered(
                        &mut outlets!(self),
                        &mut self.local,
                        asker,
                        admitted,
                    );
                }
                Mail::Evict { conn } => {
                    self.clients.evict(&mut outlets!(self), &mut self.local, conn)
                }
                Mail::Verified { asker, hash, signed } => {
                    self.earn(from, asker);
                    self.clients.verified(&mut outlets!(self), asker, hash, signed);
                }
                Mail::Deliver { local, parcel } => self.deliver(local, &parcel),
                Mail::Gap { local } => self.gap(local),
                Mail::Response { asker, bytes, keep_alive } => {
                    match from == CONTROL {
                        true => self.earn(from, asker),
                        false => self.post.end_emulation(from),
                    }
                    self.net.web_response(
                        &self.cx,
                        &mut self.codec,
                        &mut self.post,
                        asker.conn,
                        bytes,
                        keep_alive,
                    );
                    self.after_net();
                }
                Mail::Emulate(emulate) => self.take_emulated(*emulate),
                Mail::AppReply(reply) => {
                    self.clients.take_app_reply(&mut outlets!(self), &mut self.local, *reply)
                }
                Mail::List(list) => self.list_users(from, list),
                Mail::Inspect(inspect) => self.inspect(from, &inspect),
                Mail::Order(order) => self.take_order(from, order),
                Mail::Passed { order } => self.passed(from, order),
                // Only the control thread gets those.
                Mail::Request(_)
                | Mail::AppCall(_)
                | Mail::Inspected { .. }
                | Mail::Listed { .. }
                | Mail::Ordered { .. }
                | Mail::Command(_) => {}
                Mail::Drain { per_second } => self.net.drain(&self.cx, per_second),
                Mail::Stop => self.life.stopped = true,
            }
        }
    }

    /// An answer gives its credits back; who waits for some has them at the end of the turn.
    fn earn(&mut self, home: ShardId, asker: Asker) {
        self.post.earn(home, asker.credits);
    }

    /// A parcel has come for the subscribers of a channel.
    fn deliver(&mut self, local: u32, parcel: &Arc<Parcel>) {
        let mut taken = self.local.deliver(&self.cx, local, parcel);
        if taken == Taken::Broken {
            // The gap was counted when it came about. Without those who need a place there is none to keep.
            self.clients.end_positioned(&mut outlets!(self), &mut self.local, local);
            taken = self.local.deliver(&self.cx, local, parcel);
        }
        if taken == Taken::Gap {
            self.gap(local);
        }
    }

    /// Publications of a channel were lost on their way here: subscriptions with a position end, and their
    /// clients recover from history; others lost them.
    fn gap(&mut self, local: u32) {
        self.cx.counters().gaps_untold.add(self.local.without_position(local) as u64);
        self.clients.end_positioned(&mut outlets!(self), &mut self.local, local);
    }

    /// Sends some of what waits for subscribers: channels in turn, a slice of each.
    pub(crate) fn fan_out_some(&mut self) {
        let mut left = self.local.begin_fan_outs(&self.cx);
        let queue_bytes_max = self.cx.client.queue_bytes_max;
        while let Some(step) = self.local.next_step(&self.cx, left, &mut self.codec.scratch) {
            let slice = match step {
                Step::Ended(at) => {
                    self.fan_out_done(at);
                    continue;
                }
                Step::Slice(slice) => slice,
            };
            let Slice { channel: at, namespace, policy, .. } = slice;
            let mut walk = slice.walk;
            let mut messages = 0;
            for (conn, outgoing) in walk.to.drain(..) {
                let outgoing = &walk.outgoing[outgoing as usize];
                messages += u64::from(outgoing.messages);
                if self.queue_outgoing(conn, at, policy, outgoing) > queue_bytes_max {
                    self.net.over.push((conn, namespace));
                }
                if outgoing.marks
                    && outgoing.messages > 0
                    && let Some(of) = self.net.conns.get(conn as usize)
                {
                    self.net.to_mark.push(of.key(conn));
                }
                if outgoing.unfit {
                    self.clients.inappropriate(&mut outlets!(self), &mut self.local, conn);
                }
            }
            self.cx.counters().deliveries.add(messages);
            self.cx.counters().messages_sent.add(messages);
            left = left.saturating_sub(walk.places.max(1));
            if self.local.end_slice(&self.cx, at, walk) {
                self.fan_out_done(at);
            }
        }
    }

    /// Queues what a subscriber gets of a group. The answer is how many bytes wait for it then.
    #[inline]
    fn queue_outgoing(
        &mut self,
        conn: u32,
        at: u32,
        policy: SlowPolicy,
        outgoing: &Outgoing,
    ) -> usize {
        match (policy, &outgoing.last, &outgoing.frame) {
            (_, _, frame) if outgoing.collected => {
                self.net.collect_for_poll(&self.cx, conn, at, frame.as_ref());
                0
            }
            (SlowPolicy::Latest, Some(_), _) => {
                let namespace = self.local.locals.get(at).map_or(u16::MAX, |local| local.namespace);
                self.net.enqueue_latest(&self.cx, conn, at, namespace, outgoing)
            }
            (SlowPolicy::DropOldest, Some(_), _) => {
                self.enqueue_or_drop(conn, at, outgoing);
                0
            }
            (_, _, Some(frame)) => self.net.enqueue(&self.cx, conn, frame.clone()),
            _ => 0,
        }
    }

    /// Queues publications of a channel that drops the oldest rather than close a client.
    fn enqueue_or_drop(&mut self, index: u32, channel: u32, outgoing: &Outgoing) {
        let mut dropped = std::mem::take(&mut self.net.dropped);
        let based = self.net.enqueue_or_drop(&self.cx, index, channel, outgoing, &mut dropped);
        if based || !dropped.is_empty() {
            let conn = self.net.conns.get(index as usize);
            let session = conn.and_then(|conn| self.clients.sessions.get(conn.session as usize));
            let subs = session.map(|session| &session.subs);
            self.local.lost(&self.cx, subs, &dropped);
            if based {
                self.local.set_fresh(subs, channel, false);
            }
        }
        dropped.clear();
        self.net.dropped = dropped;
    }

    /// Queues at once what fan-outs hold for a connection whose subscriptions (to one channel, or all) are
    /// about to end by an order or because the node drains: these may follow a publish whose caller has
    /// its answer, and fan-outs come later in the turn, go in slices, or wait for `write_delay`. The price
    /// is a look at each subscription; the bytes are those that the fan-out shares.
    ///
    /// A poll gets nothing: it leaves publications to the next request. Before the reply to `connect` a
    /// client has no subscriptions that it knows of.
    pub(crate) fn deliver_pending(&mut self, index: u32, only: Option<u32>) {
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        let (key, is_poll) = (conn.key(index), conn.form.is_poll());
        let Some(session) = self.clients.session_of(&self.net, index) else { return };
        if is_poll || session.connecting().is_some() {
            return;
        }
        let live =
            |sub: &&Sub| sub.state == SubState::Live && only.is_none_or(|only| only == sub.channel);
        let subs: Vec<_> = session.subs.as_slice().iter().filter(live).copied().collect();
        for sub in subs {
            let at = sub.channel;
            let LocalSide { locals, filters, .. } = &mut self.local;
            let scratch = &mut self.codec.scratch;
            let ahead = locals.pending_for(at, sub.place, filters, framing::join, scratch);
            let Some(namespace) = self.local.locals.get(at).map(|local| local.namespace) else {
                continue;
            };
            let policy = self.cx.channels_with(namespace).namespace(namespace).slow_policy;
            for outgoing in &ahead {
                self.queue_outgoing(index, at, policy, outgoing);
                self.cx.counters().deliveries.add(outgoing.messages.into());
                self.cx.counters().messages_sent.add(outgoing.messages.into());
                if outgoing.marks && outgoing.messages > 0 {
                    self.net.to_mark.push(key);
                }
                if outgoing.unfit {
                    return self.clients.inappropriate(&mut outlets!(self), &mut self.local, index);
                }
            }
        }
    }

    /// A channel's fan-out is over: subscriptions may have other places.
    fn fan_out_done(&mut self, at: u32) {
        for (conn, place) in self.local.fan_out_done(at) {
            self.clients.set_place(&self.net, at, conn, place);
        }
        self.local.locals.release(at);
    }
}

/// From the question to the home, and from there to the answer.
const OWN_MAIL_ROUNDS: usize = 2;
