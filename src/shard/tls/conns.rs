//! What is kept for the connections of a shard that speak TLS, by their slots.
//!
//! | connection | kept |
//! | --- | --- |
//! | nothing has come yet | nothing |
//! | PROXY header, handshake | [`Early`] |
//! | idle | [`Key`] of its slot in the pool |
//! | in the middle of a send | [`Notes`], and its tail in the pool |
//! | refused | [`Early::Refused`], until it is closed |

use std::collections::VecDeque;
use std::sync::Arc;

use super::waiting::Waiting;
use crate::base::id::{ConnKey, ShardId};
use crate::base::limits::{TURN_HANDSHAKES_MAX, TURN_READ_BYTES_MAX};
use crate::base::time::Millis;
use crate::io::{Completion, Sent};
use crate::proto::tls::handshake::Handshaking;
use crate::proto::tls::{Batch, Fault, Key, Pool, Records};
use crate::shard::by_slot::BySlot;
use crate::shard::node_state::NodeState;
use crate::shard::stats::ShardCounters;

/// The slot of no connection: one that is turned away before it has a slot.
pub(super) const NOBODY: u32 = u32::MAX;

/// The TLS of a shard's connections.
pub(super) struct Tls {
    pub(super) node: Arc<NodeState>,
    pub(super) shard: ShardId,
    pub(super) pool: Pool,
    /// By slot. Untouched pages cost nothing.
    keys: Vec<Option<Key>>,
    /// Connections without keys of which something is known.
    pub(super) early: BySlot<Early>,
    /// Connections with keys that are in the middle of something.
    pub(super) notes: BySlot<Notes>,
    /// Names in the certificates of clients, of all that have shown one.
    pub(super) names: BySlot<Box<str>>,
    /// Handshakes in the order in which they began, those that have ended among them.
    order: VecDeque<(u32, u64)>,
    /// Handshakes that are under way.
    pub(super) shaking: usize,
    serial: u64,
    /// Steps of handshakes that this turn may still make.
    pub(super) steps: usize,
    /// The connection that is read, and how much this turn has read of it.
    pub(super) reading: (u32, usize),
    /// Bytes of unfinished records, tails and handshakes at the last housekeeping.
    unfinished_bytes: usize,
    /// Connections that are reported as readable by the next wait.
    pub(super) again: Vec<ConnKey>,
    /// Handshakes that are reported as readable when a turn has steps for them.
    pub(super) waiting: Waiting,
    /// Connections whose keys will soon seal no more.
    pub(super) worn: Vec<ConnKey>,
    /// Slots of connections that were ended since a record was late.
    pub(super) late: Vec<u32>,
    pub(super) batch: Batch,
    /// The batch was used since the last housekeeping.
    pub(super) batch_used: bool,
    /// Room for results of the driver, and for the ends of frames.
    pub(super) results: Vec<Sent>,
    pub(super) ends: Vec<usize>,
}

/// A connection before it has keys, or when it has none any more.
pub(super) enum Early {
    /// A PROXY header comes first; this has come of it.
    Header(Vec<u8>),
    /// A handshake.
    Shaking(Box<Shaking>),
    /// Refused.
    Refused(Refused),
}

/// A handshake that is under way.
pub(super) struct Shaking {
    pub(super) key: ConnKey,
    /// `None` before its first byte is handled.
    pub(super) handshake: Option<Box<dyn Handshaking>>,
    /// Bytes that were read and aren't handled.
    pub(super) unread: Vec<u8>,
    /// The driver has the bytes to send.
    pub(super) in_flight: bool,
    serial: u64,
}

/// A connection whose input is thrown away.
#[derive(Default)]
pub(super) struct Refused {
    /// The shard knows of it.
    pub(super) is_announced: bool,
    /// The answer: an alert, or one in plain text.
    pub(super) unsent: Vec<u8>,
    /// The driver has it.
    pub(super) in_flight: bool,
    /// The FIN follows.
    pub(super) finishing: bool,
}

/// What a connection is in the middle of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Notes {
    /// The last byte of what is sealed isn't counted as sent yet.
    pub(super) withheld: bool,
    /// The driver has the tail.
    pub(super) in_flight: bool,
    /// The FIN follows the tail.
    pub(super) finishing: bool,
}

impl Tls {
    pub(super) fn new(node: Arc<NodeState>, shard: ShardId) -> Self {
        let keys = Vec::with_capacity(node.options.slots_max());
        Self {
            node,
            shard,
            pool: Pool::default(),
            keys,
            early: BySlot::default(),
            notes: BySlot::default(),
            names: BySlot::default(),
            order: VecDeque::new(),
            shaking: 0,
            serial: 0,
            steps: TURN_HANDSHAKES_MAX,
            reading: (NOBODY, 0),
            unfinished_bytes: 0,
            again: Vec::new(),
            waiting: Waiting::default(),
            worn: Vec::new(),
            late: Vec::new(),
            batch: Batch::new(),
            batch_used: false,
            results: Vec::new(),
            ends: Vec::new(),
        }
    }

    pub(super) fn counters(&self) -> &ShardCounters {
        &self.node.counters[self.shard.index()]
    }

    /// Whether a connection has keys.
    pub(super) fn is_open(&self, index: u32) -> bool {
        self.keys.get(index as usize).is_some_and(Option::is_some)
    }

    /// The record layer of a connection.
    pub(super) fn records(&mut self, index: u32) -> Option<Records<'_>> {
        self.pool.records(self.keys.get(index as usize)?.as_ref()?)
    }

    /// The record layer of a connection beside the batch that it seals into.
    pub(super) fn records_and_batch(&mut self, index: u32) -> Option<(Records<'_>, &mut Batch)> {
        let key = self.keys.get(index as usize)?.as_ref()?;
        Some((self.pool.records(key)?, &mut self.batch))
    }

    /// Keeps the key of a connection.
    pub(super) fn set_key(&mut self, index: u32, key: Key) {
        let at = index as usize;
        if self.keys.len() <= at {
            self.keys.resize_with(at + 1, || None);
        }
        if let Some(before) = self.keys[at].replace(key) {
            debug_assert!(false, "the slot of another connection");
            self.pool.remove(before);
        }
    }

    /// Takes the key of a connection, and forgets what it is in the middle of.
    pub(super) fn take_key(&mut self, index: u32) -> Option<Key> {
        self.notes.remove(&index);
        self.keys.get_mut(index as usize)?.take()
    }

    /// Whether sealed bytes of a connection wait for its socket.
    pub(super) fn has_tail(&mut self, index: u32) -> bool {
        self.records(index).is_some_and(|records| !records.tail().is_empty())
    }

    pub(super) fn notes(&self, index: u32) -> Notes {
        if self.notes.is_empty() {
            return Notes::default();
        }
        self.notes.get(&index).copied().unwrap_or_default()
    }

    /// Keeps the notes of a connection, as long as there is something in them or a tail.
    pub(super) fn set_notes(&mut self, index: u32, notes: Notes) {
        if notes == Notes::default() && !self.has_tail(index) {
            if !self.notes.is_empty() {
                self.notes.remove(&index);
            }
        } else {
            self.notes.insert(index, notes);
        }
    }

    /// Begins to keep a handshake. The one that is under way for longest makes room for it.
    pub(super) fn begin_shaking(&mut self, key: ConnKey, unread: Vec<u8>) {
        let handshakes_max = self.node.options.tls_handshakes_max;
        while self.shaking >= handshakes_max && self.end_oldest() {}
        // Those that have ended go when they come to the front.
        while let Some((index, serial)) = self.order.front()
            && !self.is_shaking(*index, *serial)
        {
            self.order.pop_front();
        }
        self.serial += 1;
        self.shaking += 1;
        let serial = self.serial;
        self.order.push_back((key.index, serial));
        let shaking = Shaking { key, handshake: None, unread, in_flight: false, serial };
        self.early.insert(key.index, Early::Shaking(Box::new(shaking)));
    }

    fn is_shaking(&self, index: u32, serial: u64) -> bool {
        let early = self.early.get(&index);
        matches!(early, Some(Early::Shaking(shaking)) if shaking.serial == serial)
    }

    /// Ends the handshake that is under way for longest.
    fn end_oldest(&mut self) -> bool {
        let Some((index, serial)) = self.order.pop_front() else { return false };
        if self.is_shaking(index, serial)
            && let Some(Early::Shaking(shaking)) = self.early.remove(&index)
        {
            self.shaking -= 1;
            self.counters().tls_failed_crowded.add(1);
            self.early.insert(index, Early::Refused(Refused::default()));
            self.again.push(shaking.key);
        }
        true
    }

    /// Sealed bytes, and answers to refused connections, that the driver is sending.
    pub(super) fn own_sends(&self) -> usize {
        let early = self.early.values().filter(|early| match early {
            Early::Shaking(shaking) => shaking.in_flight,
            Early::Refused(refused) => refused.in_flight,
            Early::Header(_) => false,
        });
        self.notes.values().filter(|notes| notes.in_flight).count() + early.count()
    }

    /// Connections whose handshakes are under way.
    pub(super) fn handshakes(&self) -> Vec<ConnKey> {
        let shaking = self.early.values().filter_map(|early| match early {
            Early::Shaking(shaking) => Some(shaking.key),
            _ => None,
        });
        let mut keys: Vec<ConnKey> = shaking.collect();
        keys.sort_unstable_by_key(|key| key.index);
        keys
    }

    pub(super) fn expect_proxy_header(&mut self, key: ConnKey, seen: &[u8]) {
        self.early.insert(key.index, Early::Header(seen.to_vec()));
    }

    pub(super) fn rename(&mut self, old: ConnKey, new: ConnKey) {
        let lists = self.again.iter_mut().chain(&mut self.worn);
        lists.filter(|key| **key == old).for_each(|key| *key = new);
        self.waiting.rename(old, new);
        if let Some(Early::Shaking(shaking)) = self.early.get_mut(&old.index) {
            shaking.key = new;
        }
    }

    /// Whether the next wait has something to report at once.
    pub(super) fn has_work(&self) -> bool {
        !self.again.is_empty() || !self.waiting.is_empty()
    }

    /// Begins a turn with what the driver has reported from `from` on.
    pub(super) fn begin_turn(&mut self, completions: &mut Vec<Completion>, from: usize) {
        self.steps = TURN_HANDSHAKES_MAX;
        self.reading = (NOBODY, 0);
        // Those that wait since an earlier turn come before new ones.
        let new = completions.split_off(from);
        let again = self.again.drain(..);
        completions.extend(again.map(|key| Completion::Readable { key, ended: false }));
        self.waiting.take(|key| completions.push(Completion::Readable { key, ended: false }));
        let from = completions.len();
        completions.extend(new);
        self.take_completions(completions, from);
    }

    /// Takes sends of its own that have ended. Where sealed bytes wait for a socket that has room, the
    /// connection is to be read: that sends them.
    pub(super) fn take_completions(&mut self, completions: &mut Vec<Completion>, from: usize) {
        if self.notes.is_empty() && self.early.is_empty() {
            return;
        }
        for at in from..completions.len() {
            match completions[at] {
                Completion::Writable { key } if self.has_unsent(key.index) => {
                    completions.push(Completion::Readable { key, ended: false });
                }
                Completion::Sent { key, bytes: Some(bytes) } => {
                    self.sent(key.index, bytes as usize);
                    completions[at] = Completion::Writable { key };
                    completions.push(Completion::Readable { key, ended: false });
                }
                _ => {}
            }
        }
    }

    fn has_unsent(&self, index: u32) -> bool {
        self.notes.contains_key(&index)
            || match self.early.get(&index) {
                Some(Early::Shaking(shaking)) => {
                    let handshake = shaking.handshake.as_ref();
                    handshake.is_some_and(|handshake| !handshake.to_send().is_empty())
                }
                Some(Early::Refused(refused)) => !refused.unsent.is_empty(),
                Some(Early::Header(_)) | None => false,
            }
    }

    /// A send that the driver had has ended.
    fn sent(&mut self, index: u32, bytes: usize) {
        match self.early.get_mut(&index) {
            Some(Early::Shaking(shaking)) => {
                shaking.in_flight = false;
                if let Some(handshake) = &mut shaking.handshake {
                    handshake.sent(bytes);
                }
            }
            Some(Early::Refused(refused)) => {
                refused.in_flight = false;
                refused.unsent.drain(..bytes.min(refused.unsent.len()));
            }
            Some(Early::Header(_)) | None => {
                let notes = Notes { in_flight: false, ..self.notes(index) };
                if let Some(mut records) = self.records(index) {
                    records.tail_sent(bytes);
                }
                // They stay although the tail may be gone: the read that follows draws the consequences.
                self.notes.insert(index, notes);
            }
        }
    }

    /// Ends connections whose records are late: an incomplete one keeps everything behind it from its
    /// connection, pongs and ends as well, and 16 KiB at most. The time is that of a request head.
    fn end_late(&mut self, now: Millis, is_awaited: &dyn Fn(u32) -> bool) {
        let late = self.pool.late(now.0, self.node.options.handshake_timeout_ms);
        if late.is_empty() {
            return;
        }
        // Slots aren't kept by key: a pass over 4 bytes for each, when there are any late ones.
        let found = (0..)
            .zip(&self.keys)
            .filter(|(_, key)| key.as_ref().is_some_and(|key| key.is_one_of(&late)));
        let slots: Vec<u32> = found.map(|(index, _)| index).collect();
        for index in slots {
            let Some(mut records) = self.records(index) else { continue };
            if !is_awaited(index) {
                // The rest of the record may be here, and the shard doesn't read it yet.
                records.restart();
                continue;
            }
            records.fail(Fault::Late);
            self.take_fault(index, Fault::Late);
            self.late.push(index);
        }
    }

    /// Ends what is late, and gives back what a burst has left.
    pub(super) fn housekeeping(&mut self, now: Millis, is_awaited: &dyn Fn(u32) -> bool) {
        self.end_late(now, is_awaited);
        self.unfinished_bytes = self.pool.unfinished_bytes() + self.handshake_bytes();
        if !std::mem::take(&mut self.batch_used) {
            self.batch.release();
        }
        self.pool.shrink();
        self.waiting.shrink();
        if self.shaking == 0 {
            self.order = VecDeque::new();
        }
        if self.early.len() * 4 < self.early.capacity() {
            self.early.shrink_to_fit();
        }
        if self.notes.len() * 4 < self.notes.capacity() {
            self.notes.shrink_to_fit();
        }
    }

    /// Bytes of handshakes that are under way, without the library's own.
    fn handshake_bytes(&self) -> usize {
        let bytes = self.early.values().map(|early| match early {
            Early::Header(seen) => seen.capacity(),
            Early::Shaking(shaking) => {
                let handshake = shaking.handshake.as_ref();
                shaking.unread.capacity() + handshake.map_or(0, |one| one.heap_bytes())
            }
            Early::Refused(refused) => refused.unsent.capacity(),
        });
        bytes.sum()
    }

    /// Counts bytes that were read of a connection, as they came.
    pub(super) fn count_read(&mut self, index: u32, bytes: usize) {
        if self.reading.0 != index {
            self.reading = (index, 0);
        }
        self.reading.1 += bytes;
    }

    /// Whether a connection has had its share of the turn, by the bytes as they came.
    pub(super) fn has_read_enough(&self, index: u32) -> bool {
        self.reading.0 == index && self.reading.1 >= TURN_READ_BYTES_MAX
    }

    /// Whether memory is kept although there are no connections.
    pub(super) fn has_spare(&self) -> bool {
        let owned = self.pool.slot_bytes() + self.batch.heap_bytes() + self.order.capacity();
        self.pool.is_empty() && self.early.is_empty() && owned > 0
    }

    pub(super) fn set_gauges(&self) {
        let counters = self.counters();
        counters.tls_connections.set(self.pool.len() as u64);
        counters.tls_handshakes_open.set(self.shaking as u64);
        counters.tls_state_bytes.set(self.pool.slot_bytes() as u64);
        let has_some = self.pool.unfinished() + self.early.len() > 0;
        let unfinished = if has_some { self.unfinished_bytes } else { 0 };
        counters.tls_unfinished_bytes.set(unfinished as u64);
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(super) fn left(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("TLS connections", self.pool.len()),
            ("TLS handshakes", self.shaking),
            ("TLS connections before their keys", self.early.len()),
            ("TLS handshakes that wait for a step", self.waiting.len()),
            ("TLS connections in the middle of a send", self.notes.len()),
            ("names of certificates", self.names.len()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Rig, SUITE};
    use super::*;
    use crate::io::Driver as _;

    #[test]
    fn an_idle_connection_owns_nothing_but_its_keys() {
        let mut rig = Rig::new(9000);
        let mut conn = rig.open(SUITE);
        conn.client.write(&[b'x'; 20_000]);
        for _ in 0..5 {
            rig.up(&mut conn);
            rig.turn();
            rig.read(&conn);
        }
        let blocked = rig.send_and_read(&mut conn, &[&[b'y'; 50_000]]);
        assert!(blocked > 0 && conn.client.plain_bytes() == 50_000);
        rig.driver.housekeeping(&|_| true);
        rig.driver.housekeeping(&|_| true);
        let tls = rig.driver.tls.as_ref().unwrap();
        let owned = (tls.early.capacity(), tls.notes.capacity(), tls.batch.heap_bytes());
        assert_eq!((owned, tls.pool.unfinished_bytes()), ((0, 0, 0), 0));
    }

    #[test]
    fn a_record_that_is_late_ends_its_connection() {
        let mut rig = Rig::new(9000);
        let [mut slow, mut idle] = [(); 2].map(|()| rig.open(SUITE));
        let timeout_ms = rig.driver.tls.as_ref().unwrap().node.options.handshake_timeout_ms;
        slow.client.write(b"a record in pieces");
        let rest = slow.client.out().split_off(10);
        rig.up(&mut slow);
        rig.turn();
        assert_eq!(rig.read(&slow), b"");
        rig.driver.housekeeping(&|_| true);
        rig.advance(timeout_ms + 1);
        // The shard doesn't read: the time begins anew.
        rig.driver.housekeeping(&|_| false);
        rig.driver.housekeeping(&|_| true);
        rig.advance(timeout_ms);
        rig.driver.housekeeping(&|_| true);
        assert_eq!(rig.driver.next_late(), None);
        rig.advance(1);
        rig.driver.housekeeping(&|_| true);
        assert_eq!(rig.driver.next_late(), Some(slow.key.index));
        assert_eq!(rig.driver.next_late(), None);
        assert_eq!(rig.counters().tls_record_faults_late.get(), 1);
        assert_eq!(rig.recv(&slow), Err("refused"));
        rig.driver.finish(slow.key, &slow.socket);
        rig.down(&mut slow);
        assert!(slow.client.is_closed && slow.client.fault.is_none());
        // Others go on, and what still comes of that one is thrown away.
        *slow.client.out() = rest;
        rig.up(&mut slow);
        rig.turn();
        assert_eq!(rig.recv(&slow), Err("blocked"));
        idle.client.write(b"still here");
        rig.up(&mut idle);
        rig.turn();
        assert_eq!(rig.recv(&idle), Ok(b"still here".to_vec()));
        for conn in [slow, idle] {
            rig.driver.close(conn.key, conn.socket, false);
        }
        assert!(rig.driver.left().iter().all(|(_, count)| *count == 0));
    }

    #[test]
    fn one_handshake_too_many_ends_the_oldest() {
        let mut rig = Rig::new(1 << 10);
        let handshakes_max = 30;
        let mut conns: Vec<_> = (0..=handshakes_max).map(|_| rig.connect(SUITE)).collect();
        for conn in &mut conns {
            rig.up(conn);
            rig.turn();
            assert_eq!(rig.recv(conn), Err("taken"));
        }
        assert_eq!(rig.driver.unpackable().len(), handshakes_max);
        assert_eq!(rig.counters().tls_failed_crowded.get(), 1);
        let readable = Completion::Readable { key: conns[0].key, ended: false };
        assert!(rig.turn().contains(&readable));
        assert_eq!(rig.recv(&conns[0]), Err("refused"));
        assert_eq!(rig.recv(&conns[0]), Err("blocked"));
    }
}
