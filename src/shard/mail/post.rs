//! The post of one shard: its mail both ways, acknowledgements that wait for it, and credits.

use std::collections::VecDeque;

use super::acks::Acks;
use super::{Flushed, Mail, Outgoing};
use crate::base::id::{ConnKey, ShardId};
use crate::base::limits::MAILBOX_BYTES_MAX;
use crate::shard::context::Cx;
use crate::shard::mail::{Batch, Letterbox, Mailbox};
use crate::shard::stats::ShardCounters;

/// Mail of one shard.
pub(crate) struct Post {
    pub(crate) mailbox: Mailbox,
    /// Mail of this shard to itself.
    pub(crate) loopback: VecDeque<Box<Batch>>,
    pub(crate) loopback_bytes: usize,
    pub(crate) mail: Outgoing,
    /// Some receiver had no room in this turn.
    pub(crate) mail_blocked: bool,
    pub(crate) acks: Acks,
    /// Connections that wait for credit at a home, by home, and for how much; the last for a call of the
    /// application.
    pub(crate) waiting: Vec<VecDeque<(ConnKey, u8)>>,
}

impl Post {
    /// No mail.
    pub(crate) fn new(mailbox: Mailbox, letterboxes: Vec<Letterbox>, control: Letterbox) -> Self {
        let shards = letterboxes.len();
        Self {
            mailbox,
            loopback: VecDeque::new(),
            loopback_bytes: 0,
            mail: Outgoing::new(letterboxes, control),
            mail_blocked: false,
            acks: Acks::new(shards),
            waiting: (0..=shards).map(|_| VecDeque::new()).collect(),
        }
    }

    /// Adds mail for a shard. Mail that fills a lane leaves at once, so that the lane stays full only while
    /// the receiver has no room: then requests and clean-up wait, and deliveries become a gap.
    pub(crate) fn send(&mut self, cx: &Cx, to: ShardId, mail: Mail) {
        self.mail[to].push(mail);
        if self.mail[to].is_full() {
            self.flush_to(cx, to);
        }
    }

    /// Sends the mail that waits for a shard. False when some of it has to stay.
    pub(crate) fn flush_to(&mut self, cx: &Cx, to: ShardId) -> bool {
        let outbox = &mut self.mail[to];
        if to == cx.id {
            if self.loopback_bytes < MAILBOX_BYTES_MAX
                && let Some(batch) = outbox.take(to)
            {
                self.loopback_bytes += batch.bytes;
                self.loopback.push_back(batch);
                self.acks.delivered_to(to);
                return true;
            }
            return false;
        }
        match outbox.flush(cx.id) {
            Flushed::Nothing => true,
            Flushed::Gone => {
                self.acks.delivered_to(to);
                true
            }
            Flushed::Full => {
                self.mail_blocked = true;
                cx.counters().mail_full.add(1);
                false
            }
        }
    }

    /// Gauges that are cheaper to read off than to keep.
    pub(crate) fn set_gauges(&self, counters: &ShardCounters) {
        let (batches, bytes) = self.mailbox.waiting();
        counters.mailbox_batches.set(batches as u64);
        counters.mailbox_bytes.set(bytes as u64);
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(crate) fn left(&self) -> [(&'static str, usize); 5] {
        [
            ("connections that wait for credit", self.waiting.iter().map(VecDeque::len).sum()),
            ("batches to itself", self.loopback.len()),
            ("lanes with mail", self.mail.iter().filter(|lane| !lane.is_empty()).count()),
            ("credits spent", self.mail.iter().map(|lane| lane.spent() as usize).sum()),
            ("acknowledgements", self.acks.len()),
        ]
    }
}
