//! A shard's mailbox: a bounded queue of batches from all senders, and an alarm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::messages::Mail;
use crate::base::id::ShardId;
use crate::base::limits::MAILBOX_BYTES_MAX;
use crate::io::Alarm;

/// All that one turn of one shard had for another one.
#[derive(Debug)]
pub struct Batch {
    /// The sender: a shard, [`CONTROL`], or a broker.
    pub from: ShardId,
    /// In order.
    pub mail: Vec<Mail>,
    /// What they count towards bounds on bytes.
    pub bytes: usize,
}

/// The control thread, as a sender and a receiver of mail.
pub const CONTROL: ShardId = ShardId(u8::MAX);

/// The broker of a shard's channels, as a sender and a receiver of mail: the thread that serves this shard.
pub const BROKER: ShardId = ShardId(u8::MAX - 1);

/// The broker of presence, where it is another one.
pub const PRESENCE_BROKER: ShardId = ShardId(u8::MAX - 2);

/// Receivers of a shard's mail that are no shards.
#[derive(Clone)]
pub struct Outside {
    /// The control thread.
    pub control: Letterbox,
    /// See [`BROKER`]; none in a node that keeps its channels itself.
    pub broker: Option<Letterbox>,
    /// See [`PRESENCE_BROKER`].
    pub presence: Option<Letterbox>,
}

impl Outside {
    /// The control thread alone.
    pub fn new(control: Letterbox) -> Self {
        Self { control, broker: None, presence: None }
    }
}

/// The shards that found a mailbox full, one bit each: they are rung when there is room again.
#[derive(Default)]
struct Turned([AtomicU64; 4]);

impl Turned {
    fn insert(&self, shard: ShardId) {
        self.0[shard.index() / 64].fetch_or(1 << (shard.index() % 64), Ordering::SeqCst);
    }

    fn contains(&self, shard: ShardId) -> bool {
        self.0[shard.index() / 64].load(Ordering::SeqCst) & 1 << (shard.index() % 64) != 0
    }

    fn take(&self, mut each: impl FnMut(ShardId)) {
        for (word, bits) in self.0.iter().enumerate() {
            // Mostly nobody: then no write makes the line travel.
            if bits.load(Ordering::SeqCst) == 0 {
                continue;
            }
            let mut bits = bits.swap(0, Ordering::SeqCst);
            while bits != 0 {
                each(ShardId((word * 64) as u8 + bits.trailing_zeros() as u8));
                bits &= bits - 1;
            }
        }
    }
}

/// Where mail for one shard goes in.
#[derive(Clone)]
pub struct Letterbox {
    sender: Sender<Box<Batch>>,
    alarm: Alarm,
    turned: Arc<Turned>,
    /// Bytes that wait in the mailbox.
    waiting_bytes: Arc<AtomicUsize>,
}

impl Letterbox {
    /// Puts one message in as the control thread does, or gives it back when the mailbox is full: for the
    /// simulation, which has no control thread.
    pub fn try_post(&self, mail: Mail) -> Result<(), Mail> {
        match self.sender.try_send(Box::new(Batch { from: CONTROL, mail: vec![mail], bytes: 0 })) {
            Ok(()) => {
                self.alarm.ring();
                Ok(())
            }
            Err(TrySendError::Full(mut batch)) => batch.mail.pop().map_or(Ok(()), Err),
            Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }

    /// Puts a batch in and rings. A batch that finds no room comes back; its sender is rung when there is room.
    pub(crate) fn send(&self, batch: Box<Batch>) -> Result<(), Box<Batch>> {
        let from = batch.from;
        let sent = self.put(batch).or_else(|fault| match fault {
            TrySendError::Full(batch) => {
                // The mark first, then another look: the receiver may have made room in between.
                self.turned.insert(from);
                self.put(batch)
            }
            gone => Err(gone),
        });
        match sent {
            Ok(()) => {
                self.alarm.ring();
                Ok(())
            }
            Err(TrySendError::Full(batch)) => Err(batch),
            // The receiver has ended: the process is stopping.
            Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }

    /// Wakes the receiver.
    pub(crate) fn ring(&self) {
        self.alarm.ring();
    }

    /// A shard found no room here, and there has been none since.
    pub(crate) fn has_turned_away(&self, shard: ShardId) -> bool {
        self.turned.contains(shard)
    }

    fn put(&self, batch: Box<Batch>) -> Result<(), TrySendError<Box<Batch>>> {
        let bytes = batch.bytes;
        if self.waiting_bytes.load(Ordering::SeqCst) >= MAILBOX_BYTES_MAX {
            return Err(TrySendError::Full(batch));
        }
        // Counted before it is there, so that the count never goes below zero.
        self.waiting_bytes.fetch_add(bytes, Ordering::SeqCst);
        self.sender.try_send(batch).inspect_err(|_| {
            self.waiting_bytes.fetch_sub(bytes, Ordering::SeqCst);
        })
    }
}

/// Where a shard takes its mail out.
pub struct Mailbox {
    receiver: Receiver<Box<Batch>>,
    alarm: Alarm,
    turned: Arc<Turned>,
    /// Bytes that wait in the mailbox.
    waiting_bytes: Arc<AtomicUsize>,
}

impl Mailbox {
    /// A mailbox of `batches` batches, and where others put mail in.
    pub fn new(batches: usize, alarm: Alarm) -> (Letterbox, Self) {
        let (sender, receiver) = crossbeam_channel::bounded(batches);
        let turned = Arc::new(Turned::default());
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let letterbox = Letterbox {
            sender,
            alarm: alarm.clone(),
            turned: Arc::clone(&turned),
            waiting_bytes: Arc::clone(&waiting_bytes),
        };
        (letterbox, Self { receiver, alarm, turned, waiting_bytes })
    }

    /// The next batch.
    pub fn take(&self) -> Option<Box<Batch>> {
        let batch = self.receiver.try_recv().ok()?;
        self.waiting_bytes.fetch_sub(batch.bytes, Ordering::SeqCst);
        Some(batch)
    }

    /// There is room again: calls `each` with every shard that found none, once.
    pub fn take_turned(&self, each: impl FnMut(ShardId)) {
        self.turned.take(each);
    }

    /// Asks to be woken by the next mail. False when there is mail already.
    pub fn sleep(&self) -> bool {
        self.alarm.arm();
        if self.receiver.is_empty() {
            return true;
        }
        self.alarm.disarm();
        false
    }

    /// Awake again.
    pub fn awake(&self) {
        self.alarm.disarm();
    }

    /// Batches that wait, and bytes of them.
    pub fn waiting(&self) -> (usize, usize) {
        (self.receiver.len(), self.waiting_bytes.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::io::Wake;
    use crate::shard::mail::{Flushed, MailLane};

    #[derive(Default)]
    pub(crate) struct Bell(AtomicU32);

    impl Wake for Bell {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A mailbox with a bell that counts.
    pub(crate) fn mailbox(batches: usize) -> (Letterbox, Mailbox, Arc<Bell>) {
        let bell = Arc::new(Bell::default());
        let (letterbox, mailbox) = Mailbox::new(batches, Alarm::new(bell.clone()));
        (letterbox, mailbox, bell)
    }

    #[test]
    fn a_sleeping_shard_is_rung_once() {
        let (letterbox, mailbox, bell) = mailbox(8);
        assert!(mailbox.sleep());
        let mut lane = MailLane::new(letterbox);
        for local in 0..3 {
            lane.push(Mail::Gap { local });
            assert_eq!(lane.flush(ShardId(1)), Flushed::Gone);
        }
        assert_eq!(bell.0.load(Ordering::SeqCst), 1);
        assert!(!mailbox.sleep(), "with mail there is no sleep");
    }
}
