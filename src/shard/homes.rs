//! The home role: the one writer of its channels. Mail in, deliveries and answers out.

use super::mail::{Asker, Flushed, Mail, Publish, Subscribe};
use super::*;
use crate::edge::channels::Namespace;
use crate::hub::history::StreamOptions;
use crate::proto::client::Publication;

/// A set of shards: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ShardSet([u64; 4]);

impl ShardSet {
    pub(super) fn insert(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] |= 1 << (shard.index() % 64);
    }

    fn remove(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] &= !(1 << (shard.index() % 64));
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    fn pop(&mut self) -> Option<ShardId> {
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
    to: ShardId,
    asker: Asker,
    waits_for: ShardSet,
}

fn stream_options(namespace: &Namespace) -> StreamOptions {
    StreamOptions {
        size: namespace.history_size,
        ttl_ms: namespace.history_ttl_ms,
        meta_ttl_ms: namespace.history_meta_ttl_ms,
    }
}

impl<D: Driver> Shard<D> {
    /// A subscription begins.
    pub(super) fn home_subscribe(&mut self, from: ShardId, subscribe: &Subscribe) {
        let now = self.driver.now();
        let namespace = self.node.rules.channels.namespace(subscribe.namespace);
        let position = self.homes.subscribe(
            now,
            &subscribe.channel,
            subscribe.hash,
            stream_options(namespace),
            from,
            subscribe.local,
        );
        let Subscribe { local, asker, serial, .. } = *subscribe;
        self.post(from, Mail::Subscribed { local, asker, serial, position });
    }

    /// A subscription ends.
    pub(super) fn home_unsubscribe(
        &mut self,
        from: ShardId,
        local: u32,
        channel: &str,
        asker: Option<Asker>,
    ) {
        let hash = self.node.names.hash(channel);
        self.homes.unsubscribe(channel, hash, from);
        self.post(from, Mail::Unsubscribed { local, asker });
    }

    /// A publication: next offset, history, one encoding, a delivery to each interested shard.
    pub(super) fn home_publish(&mut self, from: ShardId, publish: &Publish) {
        let now = self.driver.now();
        let namespace = self.node.rules.channels.namespace(publish.namespace);
        let options = stream_options(namespace);
        let Publish { channel, hash, data, info, .. } = publish;
        let taken = self.homes.publish(now, channel, *hash, options, data, info);
        self.node.counters[self.id.index()].publications.add(1);
        let mut waits_for = ShardSet::default();
        let mut filled = ShardSet::default();
        if let Some(at) = taken.channel {
            let offset = taken.position.offset;
            let epoch = taken.position.epoch.filter(|_| offset == 1);
            self.scratch.clear();
            let publication = Publication {
                data,
                info: (!info.is_empty()).then_some(info),
                offset,
                epoch: epoch.as_ref().map(|epoch| epoch.as_str()),
                ..Publication::default()
            };
            json::put_push_publication(&mut self.scratch, channel, &publication);
            self.replies.clear();
            ws::put_frame(&mut self.replies, ws::TEXT, &self.scratch);
            let frame = SharedFrame::new(&self.replies);
            for interest in self.homes.interests_mut(at) {
                let outbox = &mut self.mail[interest.shard.index()];
                if interest.gap || outbox.is_full() {
                    if !interest.gap {
                        interest.gap = true;
                        outbox.gaps.push(at);
                    }
                    self.node.counters[self.id.index()].gaps_mail.add(1);
                    continue;
                }
                waits_for.insert(interest.shard);
                let (local, frame) = (interest.local, frame.clone());
                outbox.push(Mail::Deliver { local, offset, frame });
                if outbox.is_full() {
                    filled.insert(interest.shard);
                }
            }
        }
        self.acks.push_back(PendingAck { to: from, asker: publish.asker, waits_for });
        // One turn may bring more than an outbox holds. Where the receiver has room it goes at once:
        // only a mailbox that is full makes a gap.
        while let Some(shard) = filled.pop() {
            self.flush_to(shard);
        }
    }

    /// Sends what the turn had for other shards; then acknowledges the publishes whose deliveries
    /// are in their receivers' mailboxes.
    pub(super) fn send_mail(&mut self) {
        self.mail_blocked = false;
        self.tell_gaps();
        for at in 0..self.mail.len() {
            self.flush_to(ShardId(at as u8));
        }
        if self.acks.is_empty() {
            return;
        }
        let mut acked = false;
        let mail = &mut self.mail;
        self.acks.retain(|ack| {
            let done = ack.waits_for.is_empty();
            if done {
                mail[ack.to.index()].push(Mail::Published { asker: ack.asker });
                acked = true;
            }
            !done
        });
        if acked {
            for at in 0..self.mail.len() {
                self.flush_to(ShardId(at as u8));
            }
        }
    }

    /// Adds mail for a shard. What fills an outbox leaves at once, so that it stays full only while
    /// the receiver has no room: then requests and clean-up wait, and deliveries become a gap.
    pub(super) fn post(&mut self, to: ShardId, mail: Mail) {
        self.mail[to.index()].push(mail);
        if self.mail[to.index()].is_full() {
            self.flush_to(to);
        }
    }

    fn flush_to(&mut self, to: ShardId) {
        let outbox = &mut self.mail[to.index()];
        if to == self.id {
            if self.loopback_bytes < MAILBOX_BYTES_MAX
                && let Some(batch) = outbox.take(to)
            {
                self.loopback_bytes += batch.bytes;
                self.loopback.push_back(batch);
                self.delivered_to(to);
            }
            return;
        }
        match outbox.flush(self.id) {
            Flushed::Nothing => {}
            Flushed::Gone => self.delivered_to(to),
            Flushed::Full => {
                self.mail_blocked = true;
                self.counters().mail_full.add(1);
            }
        }
    }

    /// Where there is credit: some of those that waited for it try once more. Each turn anew, so
    /// that a credit which one of them has no use for any more is not lost for the others.
    pub(super) fn resume_waiting(&mut self) {
        let unanswered_max = self.node.options.requests_unanswered_max;
        for home in 0..self.waiting.len() {
            if self.waiting[home].is_empty() {
                continue;
            }
            for _ in 0..self.mail[home].credits(unanswered_max).min(RESUMED_MAX) {
                let Some(key) = self.waiting[home].pop_front() else { break };
                if let Some(conn) = self.conn(key) {
                    conn.flags.set_waiting(false);
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
        for at in 0..self.mail.len() {
            let outbox = &mut self.mail[at];
            if outbox.gaps.is_empty() || outbox.is_full() {
                self.mail_blocked |= !outbox.gaps.is_empty();
                continue;
            }
            for channel in std::mem::take(&mut outbox.gaps) {
                let interests = self.homes.interests_mut(channel);
                // The channel may have lost that shard, or be another one by now.
                if let Some(interest) =
                    interests.iter_mut().find(|i| i.shard.index() == at && i.gap)
                {
                    interest.gap = false;
                    outbox.push(Mail::Gap { local: interest.local });
                }
            }
        }
    }
}

/// Connections that try again in one turn, for each home.
const RESUMED_MAX: u32 = 64;
