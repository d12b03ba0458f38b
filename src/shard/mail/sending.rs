//! Mail on its way out: what a turn had for other shards, acknowledgements that wait for it, gaps to
//! be told, and whoever waits for credit.

use crate::base::id::ShardId;
use crate::io::Driver;
use crate::shard::Shard;
use crate::shard::mail::acks::Ack;
use crate::shard::mail::{CONTROL, Mail};

/// A set of shards: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardSet([u64; 4]);

impl ShardSet {
    pub(crate) fn insert(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] |= 1 << (shard.index() % 64);
    }

    pub(crate) fn remove(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] &= !(1 << (shard.index() % 64));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    pub(crate) fn iter(mut self) -> impl Iterator<Item = ShardId> {
        std::iter::from_fn(move || self.pop())
    }

    pub(crate) fn first(&self) -> Option<ShardId> {
        let word = self.0.iter().position(|word| *word != 0)?;
        Some(ShardId((word * 64) as u8 + self.0[word].trailing_zeros() as u8))
    }

    pub(crate) fn pop(&mut self) -> Option<ShardId> {
        let shard = self.first()?;
        self.remove(shard);
        Some(shard)
    }

    /// Leaves those that are in the other set as well.
    pub(crate) fn keep(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= other);
    }
}

impl<D: Driver> Shard<D> {
    /// Sends what the turn had for other shards; then acknowledges the publishes whose deliveries
    /// are in their receivers' mailboxes.
    pub(crate) fn send_mail(&mut self) {
        self.post.mail_blocked = false;
        self.tell_gaps();
        self.post.mail.receivers().for_each(|to| _ = self.post.flush_to(&self.cx, to));
        if self.post.acks.is_empty() {
            return;
        }
        let mut held = ShardSet::default();
        let receivers = self.post.mail.receivers().filter(|to| *to != CONTROL);
        receivers.filter(|to| !self.post.mail[*to].is_empty()).for_each(|to| held.insert(to));
        let mut acked = false;
        let mail = &mut self.post.mail;
        self.post.acks.take_done(held, |Ack { to, asker, position }| {
            mail[to].push(Mail::Published { asker, position });
            acked = true;
        });
        if acked {
            self.post.mail.receivers().for_each(|to| _ = self.post.flush_to(&self.cx, to));
        }
    }

    /// Where there is credit: some of those that waited for it try once more. Each turn anew, so
    /// that a credit which one of them has no use for any more is not lost for the others. The first in the
    /// row tries when there is as much as it was refused: otherwise it would be refused in each turn again, for
    /// as long as the home has no time.
    pub(crate) fn resume_waiting(&mut self) {
        self.ask_unasked();
        let unanswered_max = self.cx.node.options.requests_unanswered_max;
        for home in 0..self.post.waiting.len() {
            if self.post.waiting[home].is_empty() {
                continue;
            }
            let credits = match home == self.post.waiting.len() - 1 {
                true => self.question_credits() as u32,
                false => self.post.mail[ShardId(home as u8)].credits(unanswered_max),
            };
            let mut left = credits.min(RESUMED_MAX);
            while left > 0
                && let Some((_, needed)) = self.post.waiting[home].front()
                && u32::from(*needed).min(unanswered_max).max(1) <= credits
                && let Some((key, needed)) = self.post.waiting[home].pop_front()
            {
                let Some(conn) = self.net.conn(key) else { continue };
                left = left.saturating_sub(u32::from(needed).max(1));
                conn.flags.set_waiting(false);
                if self.is_connecting(key.index) {
                    self.go_on_connecting(key.index);
                } else {
                    self.resume(key);
                }
            }
        }
    }

    /// Where there is room again: tells shards which channels have a gap.
    fn tell_gaps(&mut self) {
        for to in self.post.mail.receivers() {
            let outbox = &mut self.post.mail[to];
            if outbox.gaps.is_empty() || outbox.is_full() {
                self.post.mail_blocked |= !outbox.gaps.is_empty();
                continue;
            }
            for channel in std::mem::take(&mut outbox.gaps) {
                let interests = self.home.homes.interests_mut(channel);
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
