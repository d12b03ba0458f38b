//! The brokers of these runs: what is different between them is in this table, and all else is one code.
//!
//! NATS with JetStream is played by the same server: it has the same faults and answers the same requests. Offsets are
//! not consecutive there, one connection carries all that a node sends and gets, nothing waits for a server that is
//! away, and two nodes may get the messages of two others in different orders, so that a takeover needs more than a
//! fence (`src/node/nats/fence.rs`).

use roost::hub::broker::{BrokerEvent, Command, Entry};
use roost::hub::history::Record;

/// What a broker is like.
#[derive(Debug)]
pub(crate) struct Broker {
    /// Offsets of a channel are consecutive.
    pub(crate) is_dense: bool,
    /// Commands and messages have connections of their own.
    pub(crate) has_apart: bool,
    /// Commands wait for the next connection.
    pub(crate) keeps_commands: bool,
    /// All get messages in one order.
    pub(crate) has_order: bool,
}

pub(crate) static REDIS: Broker =
    Broker { is_dense: true, has_apart: true, keeps_commands: true, has_order: true };

pub(crate) static NATS: Broker =
    Broker { is_dense: false, has_apart: false, keeps_commands: false, has_order: false };

/// Distance of two offsets, about.
const STEP: u64 = 3;

impl Broker {
    /// The offset that nodes see in the place of a consecutive one.
    pub(crate) fn offset(&self, dense: u64) -> u64 {
        if self.is_dense || dense == 0 {
            return dense;
        }
        dense * STEP + dense.wrapping_mul(0x9e37_79b9_7f4a_7c15) % STEP
    }

    /// How many publications a channel has up to an offset.
    fn dense(&self, offset: u64) -> u64 {
        if self.is_dense {
            return offset;
        }
        let about = offset / STEP;
        if self.offset(about) <= offset { about } else { about - 1 }
    }

    /// A command as the server takes it.
    pub(crate) fn command(&self, mut command: Command) -> Command {
        if let Command::Read { page, expects, .. } = &mut command {
            if let Some(since) = &mut page.since {
                // Backwards from an offset that no publication has: from the next one that has.
                let is_between = self.offset(self.dense(since.offset)) != since.offset;
                since.offset = self.dense(since.offset) + u64::from(page.reverse && is_between);
            }
            *expects = expects.map(|offset| self.dense(offset));
        }
        command
    }

    /// An event as nodes see it.
    pub(crate) fn event(&self, mut event: BrokerEvent) -> BrokerEvent {
        match &mut event {
            _ if self.is_dense => {}
            BrokerEvent::Delivered(of) => self.entry(&mut of.entry),
            BrokerEvent::Published { position, .. } => {
                position.offset = self.offset(position.offset);
            }
            BrokerEvent::History { top, entries, .. } => {
                top.offset = self.offset(top.offset);
                entries.iter_mut().for_each(|entry| self.entry(entry));
            }
            _ => {}
        }
        event
    }

    fn entry(&self, entry: &mut Entry) {
        entry.after = self.offset(entry.after);
        let offset = self.offset(entry.record.offset());
        entry.record = Record::new(offset, &entry.record.published());
    }
}

#[test]
fn offsets_grow_and_are_found_again() {
    let mut last = 0;
    for dense in 0..10_000 {
        let offset = NATS.offset(dense);
        assert!(dense == 0 || offset > last, "{dense}");
        for between in last..offset {
            assert_eq!(NATS.dense(between), dense - 1, "{between}");
        }
        assert_eq!(NATS.dense(offset), dense);
        last = offset;
    }
    assert_eq!((REDIS.offset(7), REDIS.dense(7)), (7, 7));
}
