//! The subscribers' side: answers of homes, deliveries, fan-out.

use super::mail::{Asker, Mail};
use super::*;
use crate::hub::history::Position;
use crate::hub::local::Delivery;
use crate::hub::subscribers::Subscriber;
use crate::proto::client::{SubscribeResult, Unsubscribed};
use crate::session::SubState;

impl<D: Driver> Shard<D> {
    /// Opens some of the mail.
    pub(super) fn open_mail(&mut self) {
        // Mail to itself is as old as this turn's: one round, so that others have theirs too.
        let mut bytes = 0;
        for _ in 0..self.loopback.len() {
            if bytes >= TURN_MAIL_BYTES_MAX {
                break;
            }
            let Some(batch) = self.loopback.pop_front() else { break };
            bytes += batch.bytes;
            self.loopback_bytes -= batch.bytes;
            self.open_batch(*batch);
        }
        let mut bytes = 0;
        for _ in 0..TURN_BATCHES_MAX {
            if bytes >= TURN_MAIL_BYTES_MAX {
                break;
            }
            let Some(batch) = self.mailbox.take() else { break };
            bytes += batch.bytes;
            self.open_batch(*batch);
        }
        self.mailbox.take_turned(|shard| self.mail[shard.index()].ring());
    }

    fn open_batch(&mut self, batch: Batch) {
        self.counters().mail_batches.add(1);
        self.counters().mail.add(batch.mail.len() as u64);
        let from = batch.from;
        for mail in batch.mail {
            match mail {
                Mail::Subscribe(subscribe) => self.home_subscribe(from, &subscribe),
                Mail::Unsubscribe { local, channel, asker } => {
                    self.home_unsubscribe(from, local, &channel, asker);
                }
                Mail::Publish(publish) => self.home_publish(from, &publish),
                Mail::Subscribed { local, asker, serial, position } => {
                    self.earn(from);
                    self.subscribed(local, asker, serial, position);
                }
                Mail::Unsubscribed { local, asker } => {
                    if asker.is_some() {
                        self.earn(from);
                    }
                    self.unsubscribed(local, asker);
                }
                Mail::Published { asker } => {
                    self.earn(from);
                    self.scratch.clear();
                    json::put_publish(&mut self.scratch, asker.command);
                    self.answer(asker);
                }
                Mail::Deliver { local, offset, frame } => self.deliver(local, offset, frame),
                Mail::Gap { local } => self.gap(local),
                // Nobody asks yet.
                Mail::Signed { .. } => {}
                Mail::Drain { per_second } => self.drain(per_second),
                Mail::Stop => self.stopped = true,
            }
        }
    }

    /// An answer gives its credit back; who waits for one has it at the end of the turn.
    fn earn(&mut self, home: ShardId) {
        self.mail[home.index()].earn();
    }

    /// Sends the reply in `scratch`, if the connection is still there.
    fn answer(&mut self, asker: Asker) {
        let Some(conn) = self.conn(asker.conn) else { return };
        let (at, paused) = (conn.session, conn.flags.paused() && !conn.flags.waiting());
        let Some(session) = self.sessions.get_mut(at as usize) else { return };
        if session.detached {
            return;
        }
        session.unanswered -= 1;
        // Half of the answers first, so that what is left of a long message is taken in few parts.
        let resumes = paused && session.unanswered <= COMMANDS_UNANSWERED_MAX / 2;
        self.enqueue_scratch(asker.conn.index);
        if resumes {
            self.resume(asker.conn);
        }
    }

    /// The home has a new subscriber: from here on it gets what is published.
    fn subscribed(&mut self, local: u32, asker: Asker, serial: u32, position: Position) {
        if let Some(record) = self.locals.get(local) {
            record.asked -= 1;
        }
        let Some(conn) = self.conn(asker.conn) else { return self.locals.release(local) };
        let at = conn.session;
        let Some(session) = self.sessions.get_mut(at as usize) else {
            return self.locals.release(local);
        };
        let mut positioned = false;
        let mine =
            |sub: &&mut crate::session::Sub| sub.state == SubState::Joining && sub.place == serial;
        // Not there when the client has unsubscribed since: the reply goes out all the same.
        if let Some(sub) = session.subs.find(local).filter(mine)
            && let Some(record) = self.locals.get(local)
        {
            positioned = sub.positioned;
            let conn = asker.conn.index;
            sub.place = record.subscribers.add(Subscriber { conn, positioned });
            sub.state = SubState::Live;
            self.locals.begin_at(local, position.offset);
        }
        let now = self.driver.unix().0;
        let extra = session.extra.as_mut();
        let (mut data, mut ttl) = (None, None);
        if let Some(extra) = extra {
            let at = extra.sub_data.iter().position(|(c, _)| *c == local);
            data = at.map(|at| extra.sub_data.swap_remove(at).1);
            let expiry = extra.sub_expiries.iter().find(|(c, _)| *c == local);
            ttl = expiry.map(|(_, at)| u32::try_from(at - now).unwrap_or(0).max(1));
        }
        let epoch = position.epoch.filter(|_| positioned);
        self.scratch.clear();
        let result = SubscribeResult {
            expires: ttl.is_some(),
            ttl: ttl.unwrap_or(0),
            positioned,
            epoch: epoch.as_ref().map_or("", |epoch| epoch.as_str()),
            offset: if positioned { position.offset } else { 0 },
            data: data.as_deref(),
            ..SubscribeResult::default()
        };
        json::put_subscribe(&mut self.scratch, asker.command, &result);
        self.answer(asker);
    }

    /// The home has one subscriber less.
    fn unsubscribed(&mut self, local: u32, asker: Option<Asker>) {
        if let Some(record) = self.locals.get(local) {
            record.asked -= 1;
        }
        self.locals.release(local);
        if let Some(asker) = asker {
            self.scratch.clear();
            json::put_unsubscribe(&mut self.scratch, asker.command);
            self.answer(asker);
        }
    }

    /// A publication for the subscribers of a channel.
    fn deliver(&mut self, local: u32, offset: u64, frame: SharedFrame) {
        let mut delivery = self.locals.deliver(local, offset, frame.clone());
        if delivery == Delivery::Broken {
            // The others were told, or counted, when the gap came about.
            self.end_positioned(local);
            delivery = self.locals.deliver(local, offset, frame);
        }
        if delivery == Delivery::Refused {
            self.counters().gaps_fanout.add(1);
            self.gap(local);
        }
    }

    /// Publications of a channel were lost on their way here: who is positioned is told, and
    /// recovers from history; others lost them.
    fn gap(&mut self, local: u32) {
        let Some(record) = self.locals.get(local) else { return };
        let untold = record.subscribers.iter().filter(|s| !s.positioned).count();
        self.counters().gaps_untold.add(untold as u64);
        self.end_positioned(local);
    }

    /// Ends the subscriptions of those who would be out of position: their clients come back.
    fn end_positioned(&mut self, local: u32) {
        let Some(record) = self.locals.get(local) else { return };
        let positioned = record.subscribers.iter().filter(|s| s.positioned);
        let positioned: Vec<u32> = positioned.map(|s| s.conn).collect();
        self.counters().gaps_told.add(positioned.len() as u64);
        for conn in positioned {
            self.end_sub(conn, local, Unsubscribed::InsufficientState);
        }
    }

    /// Sends some of what waits for subscribers: channels in turn, a slice of each.
    pub(super) fn fan_out_some(&mut self) {
        let mut left = self.node.options.turn_deliveries_max;
        let mut scratch = std::mem::take(&mut self.scratch);
        while left > 0 {
            let Some(at) = self.locals.next_active() else { break };
            let Some(fan_out) = self.locals.fan_out(at) else { continue };
            let Some(slice) = fan_out.next(left, &mut scratch) else {
                self.fan_out_done(at);
                continue;
            };
            let done = fan_out.is_empty();
            let Some(local) = self.locals.get(at) else { continue };
            let mut listed = std::mem::take(&mut self.listed);
            listed.extend(local.subscribers.at(slice.range.clone()).map(|s| s.conn));
            let sent = listed.len() as u64 * u64::from(slice.publications);
            self.counters().deliveries.add(sent);
            for conn in listed.drain(..) {
                self.enqueue(conn, slice.frame.clone());
            }
            self.listed = listed;
            left = left.saturating_sub(slice.range.len().max(1) as u32);
            if done {
                self.fan_out_done(at);
            } else {
                self.locals.still_active(at);
            }
        }
        self.scratch = scratch;
    }

    /// A channel's fan-out is over: its places may change again.
    fn fan_out_done(&mut self, at: u32) {
        self.locals.fan_out_done(at);
        let Some(local) = self.locals.get(at) else { return };
        let mut moves = Vec::new();
        local.subscribers.settle(|subscriber, place| moves.push((subscriber.conn, place)));
        for (conn, place) in moves {
            self.moved(at, conn, place);
        }
        self.locals.release(at);
    }
}
