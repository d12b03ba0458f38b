//! Mail on its way out: what a turn had for other shards, acknowledgements that wait for it, gaps to
//! be told, and whoever waits for credit.

use super::mail::{Asker, Flushed, Mail};
use super::*;
use crate::hub::history::Position;

/// A set of shards: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ShardSet([u64; 4]);

impl ShardSet {
    pub(super) fn insert(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] |= 1 << (shard.index() % 64);
    }

    pub(super) fn remove(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] &= !(1 << (shard.index() % 64));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    pub(super) fn iter(mut self) -> impl Iterator<Item = ShardId> {
        std::iter::from_fn(move || self.pop())
    }

    pub(super) fn pop(&mut self) -> Option<ShardId> {
        let word = self.0.iter().position(|word| *word != 0)?;
        let shard = ShardId((word * 64) as u8 + self.0[word].trailing_zeros() as u8);
        self.remove(shard);
        Some(shard)
    }
}

/// A publish that is taken but not acknowledged: its deliveries are not all in their receivers'
/// mailboxes.
#[derive(Debug)]
pub(super) struct PendingAck {
    /// Who asked, and where it is.
    pub(super) to: ShardId,
    pub(super) asker: Asker,
    pub(super) position: Position,
    /// The shards in whose mailboxes its deliveries are not yet.
    pub(super) waits_for: ShardSet,
}

impl<D: Driver> Shard<D> {
    /// Sends what the turn had for other shards; then acknowledges the publishes whose deliveries
    /// are in their receivers' mailboxes.
    pub(super) fn send_mail(&mut self) {
        self.mail_blocked = false;
        self.tell_gaps();
        self.mail.receivers().for_each(|to| _ = self.flush_to(to));
        if self.acks.is_empty() {
            return;
        }
        let mut acked = false;
        let mail = &mut self.mail;
        self.acks.retain(|ack| {
            let done = ack.waits_for.is_empty();
            if done {
                mail[ack.to].push(Mail::Published { asker: ack.asker, position: ack.position });
                acked = true;
            }
            !done
        });
        if acked {
            self.mail.receivers().for_each(|to| _ = self.flush_to(to));
        }
    }

    /// Adds mail for a shard. What fills an outbox leaves at once, so that it stays full only while
    /// the receiver has no room: then requests and clean-up wait, and deliveries become a gap.
    pub(super) fn post(&mut self, to: ShardId, mail: Mail) {
        self.mail[to].push(mail);
        if self.mail[to].is_full() {
            self.flush_to(to);
        }
    }

    /// Sends what is there for a shard. Whether all of it has left.
    pub(super) fn flush_to(&mut self, to: ShardId) -> bool {
        let outbox = &mut self.mail[to];
        if to == self.id {
            if self.loopback_bytes < MAILBOX_BYTES_MAX
                && let Some(batch) = outbox.take(to)
            {
                self.loopback_bytes += batch.bytes;
                self.loopback.push_back(batch);
                self.delivered_to(to);
                return true;
            }
            return false;
        }
        match outbox.flush(self.id) {
            Flushed::Nothing => true,
            Flushed::Gone => {
                self.delivered_to(to);
                true
            }
            Flushed::Full => {
                self.mail_blocked = true;
                self.counters().mail_full.add(1);
                false
            }
        }
    }

    /// Where there is credit: some of those that waited for it try once more. Each turn anew, so
    /// that a credit which one of them has no use for any more is not lost for the others.
    pub(super) fn resume_waiting(&mut self) {
        self.ask_unasked();
        let unanswered_max = self.node.options.requests_unanswered_max;
        for home in 0..self.waiting.len() {
            if self.waiting[home].is_empty() {
                continue;
            }
            let credits = match home == self.waiting.len() - 1 {
                true => self.question_credits() as u32,
                false => self.mail[ShardId(home as u8)].credits(unanswered_max),
            };
            let mut left = credits.min(RESUMED_MAX);
            while left > 0
                && let Some(key) = self.waiting[home].pop_front()
            {
                let Some(conn) = self.conn(key) else { continue };
                left -= 1;
                conn.flags.set_waiting(false);
                if self.is_connecting(key.index) {
                    self.go_on_connecting(key.index);
                } else {
                    self.resume(key);
                }
            }
        }
    }

    /// All deliveries to a shard are in its mailbox.
    fn delivered_to(&mut self, shard: ShardId) {
        for ack in &mut self.acks {
            ack.waits_for.remove(shard);
        }
    }

    /// Where there is room again: tells shards which channels have a gap.
    fn tell_gaps(&mut self) {
        for to in self.mail.receivers() {
            let outbox = &mut self.mail[to];
            if outbox.gaps.is_empty() || outbox.is_full() {
                self.mail_blocked |= !outbox.gaps.is_empty();
                continue;
            }
            for channel in std::mem::take(&mut outbox.gaps) {
                let interests = self.homes.interests_mut(channel);
                // The channel may have lost that shard, or be another one by now.
                if let Some(interest) = interests.iter_mut().find(|i| i.shard == to && i.gap) {
                    interest.gap = false;
                    outbox.push(Mail::Gap { local: interest.local });
                }
            }
        }
    }
}

/// Connections that try again in one turn, for each home.
const RESUMED_MAX: u32 = 64;
