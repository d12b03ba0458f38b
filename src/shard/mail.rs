//! What shards tell each other, and how it travels.
//!
//! ```text
//!  shard A                                           shard B
//!  mail -> outbox for B --(end of turn: one batch)--> mailbox of B (bounded FIFO, all senders)
//!                          then ring B's alarm, once
//! ```
//! One queue for each receiver, whoever sends: what is sent first arrives first. A batch is one
//! pointer, and carries all that a turn had for that shard.
//!
//! Each request (subscribe, publish, ...) gets exactly one answer, and spends a credit that comes
//! back with it, so that answers always fit. Deliveries are not answered: when the receiver can't
//! take them they become a gap. Clean-up (unsubscribe of a dead connection) is derived from what the
//! connection still owes, and waits there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use compact_str::CompactString;
use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::signatures::Signed;
use crate::base::frame::SharedFrame;
use crate::base::id::{ConnKey, ShardId};
use crate::base::limits::{MAILBOX_BYTES_MAX, OUTBOX_BYTES_MAX};
use crate::hub::history::Position;
use crate::io::Alarm;

/// Who asked, so that the answer finds the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The connection.
    pub conn: ConnKey,
    /// The command's id, copied into the reply.
    pub command: u32,
}

/// A publication on its way to the home. Boxed in [`Mail`], which stays small.
#[derive(Debug)]
pub struct Publish {
    /// The channel.
    pub channel: CompactString,
    /// Its hash.
    pub hash: u64,
    /// Its namespace's number.
    pub namespace: u16,
    /// Who is told that it was taken.
    pub asker: Asker,
    /// The payload.
    pub data: Box<[u8]>,
    /// The publisher's encoded ClientInfo.
    pub info: Box<[u8]>,
}

/// A subscription that begins.
#[derive(Debug)]
pub struct Subscribe {
    /// The channel.
    pub channel: CompactString,
    /// Its hash.
    pub hash: u64,
    /// Its namespace's number.
    pub namespace: u16,
    /// Where the asking shard keeps the channel.
    pub local: u32,
    /// Who asks.
    pub asker: Asker,
    /// Which attempt of the session it is: an unsubscribe may overtake the answer.
    pub serial: u32,
}

/// One message between shards.
#[derive(Debug)]
pub enum Mail {
    /// To the home: one more subscriber. Answer: [`Mail::Subscribed`].
    Subscribe(Box<Subscribe>),
    /// From the home: the subscription begins at `position`. What comes after this mail is for the
    /// subscriber, what came before isn't.
    Subscribed {
        /// Where the asking shard keeps the channel.
        local: u32,
        /// Who asked.
        asker: Asker,
        /// Which attempt it was.
        serial: u32,
        /// Where the subscription begins.
        position: Position,
    },
    /// To the home: one subscriber less. Answer: [`Mail::Unsubscribed`].
    Unsubscribe {
        /// Where the asking shard keeps the channel; it keeps the name until it has the answer.
        local: u32,
        /// The channel.
        channel: Box<str>,
        /// Who waits for a reply: nobody when a connection has died.
        asker: Option<Asker>,
    },
    /// From the home: done.
    Unsubscribed {
        /// Where the asking shard keeps the channel.
        local: u32,
        /// Who waits for a reply.
        asker: Option<Asker>,
    },
    /// To the home: publish. Answer: [`Mail::Published`].
    Publish(Box<Publish>),
    /// From the home: taken, and its deliveries are in their receivers' queues.
    Published {
        /// Who asked.
        asker: Asker,
    },
    /// From the home: send `frame` to all subscribers of the channel.
    Deliver {
        /// Where the receiving shard keeps the channel.
        local: u32,
        /// Its place in the stream, 0 without history.
        offset: u64,
        /// Encoded once for all.
        frame: SharedFrame,
    },
    /// From the home: publications of the channel were lost on the way to this shard.
    Gap {
        /// Where the receiving shard keeps the channel.
        local: u32,
    },
    /// From the threads that check signatures: what came of a job.
    Signed {
        /// The job.
        ticket: u64,
        /// What came of it.
        signed: Signed,
    },
    /// From the control thread: close all connections at this pace, refuse new ones.
    Drain {
        /// Connections closed per second on this shard.
        per_second: u32,
    },
    /// From the control thread: end the loop.
    Stop,
}

const _: () = assert!(size_of::<Mail>() <= 56);

impl Mail {
    /// What it counts towards the bound on bytes.
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Publish(publish) => publish.data.len() + publish.info.len() + 96,
                Self::Deliver { frame, .. } => frame.len(),
                Self::Subscribe(_) => size_of::<Subscribe>(),
                Self::Unsubscribe { channel, .. } => channel.len(),
                _ => 0,
            }
    }
}

/// All that one turn of one shard had for another one.
#[derive(Debug)]
pub struct Batch {
    /// Who sends; [`ShardId`] 255 is the control thread.
    pub from: ShardId,
    /// In order.
    pub mail: Vec<Mail>,
    /// What they count towards bounds on bytes.
    pub bytes: usize,
}

/// The control thread, as a sender of mail.
pub const CONTROL: ShardId = ShardId(u8::MAX);

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
    /// Puts one message in from the control thread, waiting for room.
    pub fn post(&self, mail: Mail) {
        // Fails only when the shard has ended, and then nothing is to be told.
        let _ = self.sender.send(Box::new(Batch { from: CONTROL, mail: vec![mail], bytes: 0 }));
        self.alarm.ring();
    }
}

impl Letterbox {
    /// The same without waiting: gives the message back when the mailbox is full.
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
}

impl Letterbox {
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

    /// Mail waits.
    pub fn has_mail(&self) -> bool {
        !self.receiver.is_empty()
    }
}

/// A shard's mail for one other shard that hasn't left yet, and the credits it has there.
pub struct Outbox {
    letterbox: Letterbox,
    mail: Vec<Mail>,
    bytes: usize,
    /// Requests unanswered.
    spent: u32,
    /// Channels (of this home) whose deliveries to that shard were lost, and it isn't told yet.
    pub gaps: Vec<u32>,
}

/// What came of sending a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// There was nothing.
    Nothing,
    /// It is in the mailbox.
    Gone,
    /// The mailbox is full.
    Full,
}

impl Outbox {
    /// An empty one.
    pub fn new(letterbox: Letterbox) -> Self {
        Self { letterbox, mail: Vec::new(), bytes: 0, spent: 0, gaps: Vec::new() }
    }

    /// Whether mail that can wait should wait: deliveries, requests and clean-up.
    pub fn is_full(&self) -> bool {
        self.bytes >= OUTBOX_BYTES_MAX
    }

    /// Whether a request may go. It takes a credit if so.
    pub fn spend(&mut self, unanswered_max: u32) -> bool {
        let may = self.credits(unanswered_max) > 0;
        self.spent += u32::from(may);
        may
    }

    /// How many requests may go.
    pub fn credits(&self, unanswered_max: u32) -> u32 {
        if self.is_full() { 0 } else { unanswered_max.saturating_sub(self.spent) }
    }

    /// The answer to a request has come.
    pub fn earn(&mut self) {
        self.spent -= 1;
    }

    /// Requests unanswered.
    pub fn spent(&self) -> u32 {
        self.spent
    }

    /// Adds a message.
    pub fn push(&mut self, mail: Mail) {
        self.bytes += mail.bytes();
        self.mail.push(mail);
    }

    /// Mail waits here for room, and the receiver has made some since.
    pub fn may_retry(&self, from: ShardId) -> bool {
        !self.mail.is_empty() && !self.letterbox.turned.contains(from)
    }

    /// Wakes that shard, which waits to send to this one.
    pub fn ring(&self) {
        self.letterbox.alarm.ring();
    }

    /// Nothing waits here.
    pub fn is_empty(&self) -> bool {
        self.mail.is_empty() && self.gaps.is_empty()
    }

    /// Takes what is there as one batch, for a shard's mail to itself.
    pub fn take(&mut self, from: ShardId) -> Option<Box<Batch>> {
        if self.mail.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.bytes);
        Some(Box::new(Batch { from, mail: std::mem::take(&mut self.mail), bytes }))
    }

    /// Sends what is there as one batch, and rings.
    pub fn flush(&mut self, from: ShardId) -> Flushed {
        if self.mail.is_empty() {
            return Flushed::Nothing;
        }
        let mail = std::mem::take(&mut self.mail);
        let batch = Box::new(Batch { from, mail, bytes: self.bytes });
        let sent = self.letterbox.put(batch).or_else(|fault| match fault {
            TrySendError::Full(batch) => {
                // Leave word, then look again: the receiver may have made room in between.
                self.letterbox.turned.insert(from);
                self.letterbox.put(batch)
            }
            gone => Err(gone),
        });
        match sent {
            Ok(()) => {
                self.bytes = 0;
                self.letterbox.alarm.ring();
                Flushed::Gone
            }
            Err(TrySendError::Full(batch)) => {
                self.mail = batch.mail;
                Flushed::Full
            }
            // The shard has ended: the process is stopping.
            Err(TrySendError::Disconnected(_)) => {
                self.bytes = 0;
                Flushed::Gone
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicU32;

    use proptest::prelude::*;

    use super::*;
    use crate::io::Wake;

    #[derive(Default)]
    struct Bell(AtomicU32);

    impl Wake for Bell {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn mailbox(batches: usize) -> (Letterbox, Mailbox, Arc<Bell>) {
        let bell = Arc::new(Bell::default());
        let (letterbox, mailbox) = Mailbox::new(batches, Alarm::new(bell.clone()));
        (letterbox, mailbox, bell)
    }

    fn numbers(batch: &Batch) -> Vec<(u8, u32)> {
        let number = |mail: &Mail| match mail {
            Mail::Gap { local } => *local,
            other => panic!("{other:?}"),
        };
        batch.mail.iter().map(|mail| (batch.from.0, number(mail))).collect()
    }

    #[derive(Clone, Debug)]
    enum Op {
        Push(u8),
        Flush(u8),
        Take,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => (0..3u8).prop_map(Op::Push),
            3 => (0..3u8).prop_map(Op::Flush),
            2 => Just(Op::Take),
        ]
    }

    proptest! {
        // Three senders, one receiver with little room, against one plain queue of batches: what
        // was flushed first comes out first, nothing is lost or doubled, and whoever was turned
        // away is named once there is room.
        #[test]
        fn one_queue_for_all_senders(
            capacity in 1..4usize,
            ops in proptest::collection::vec(op(), 1..200),
        ) {
            let (letterbox, mailbox, _) = mailbox(capacity);
            let mut outboxes: Vec<_> = (0..3).map(|_| Outbox::new(letterbox.clone())).collect();
            let mut kept: [Vec<(u8, u32)>; 3] = Default::default();
            let mut queue: VecDeque<Vec<(u8, u32)>> = VecDeque::new();
            let mut turned = Vec::new();
            for (number, op) in (0u32..).zip(ops) {
                match op {
                    Op::Push(from) => {
                        outboxes[usize::from(from)].push(Mail::Gap { local: number });
                        kept[usize::from(from)].push((from, number));
                    }
                    Op::Flush(from) => {
                        let model = &mut kept[usize::from(from)];
                        let expected = match (model.is_empty(), queue.len() < capacity) {
                            (true, _) => Flushed::Nothing,
                            (false, true) => Flushed::Gone,
                            (false, false) => Flushed::Full,
                        };
                        let flushed = outboxes[usize::from(from)].flush(ShardId(from));
                        prop_assert_eq!(flushed, expected);
                        match flushed {
                            Flushed::Gone => queue.push_back(std::mem::take(model)),
                            Flushed::Full if !turned.contains(&from) => turned.push(from),
                            _ => {}
                        }
                        prop_assert_eq!(outboxes[usize::from(from)].is_empty(), model.is_empty());
                    }
                    Op::Take => {
                        let taken = mailbox.take().map(|batch| numbers(&batch));
                        prop_assert_eq!(taken, queue.pop_front());
                        let mut told = Vec::new();
                        mailbox.take_turned(|shard| told.push(shard.0));
                        turned.sort_unstable();
                        prop_assert_eq!(told, std::mem::take(&mut turned));
                    }
                }
            }
        }
    }

    #[test]
    fn a_sleeping_shard_is_rung_once() {
        let (letterbox, mailbox, bell) = mailbox(8);
        assert!(mailbox.sleep());
        let mut outbox = Outbox::new(letterbox);
        for local in 0..3 {
            outbox.push(Mail::Gap { local });
            assert_eq!(outbox.flush(ShardId(1)), Flushed::Gone);
        }
        assert_eq!(bell.0.load(Ordering::SeqCst), 1);
        assert!(!mailbox.sleep(), "with mail there is no sleep");
    }

    #[test]
    fn credits_and_bytes_bound_requests() {
        let (letterbox, _mailbox, _) = mailbox(1);
        let mut outbox = Outbox::new(letterbox);
        assert!(outbox.spend(2) && outbox.spend(2) && !outbox.spend(2));
        outbox.earn();
        assert!(outbox.spend(2));
        outbox.earn();
        let frame = SharedFrame::new(&vec![0; OUTBOX_BYTES_MAX]);
        outbox.push(Mail::Deliver { local: 0, offset: 0, frame });
        assert!(outbox.is_full() && !outbox.spend(2));
    }
}
