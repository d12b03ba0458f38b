//! The control thread's mail: where its messages to the shards go out, and theirs come in.
//!
//! ```text
//!  API call --ask--> lane for a shard --(once for all that is there)--> mailbox of the shard
//!      ^                                                                     |
//!      '---- answer <---- mailbox of the control thread <--------------------'
//! ```
//! It is a sender and a receiver like every shard: the same batches, bounds and credits (`shard/mail`).
//! A question for which a shard has no room is refused at once.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::sync::{Notify, oneshot};

use crate::base::id::{ConnKey, ShardId};
use crate::base::limits::API_UNANSWERED_MAX;
use crate::io::Wake;
use crate::shard::mail::emulation::EmulateElsewhere;
use crate::shard::mail::{
    AppEvents, Asker, Batch, CONTROL, Flushed, Letterbox, Mail, MailLane, Mailbox, WebRequest,
};
use crate::shard::proxies::AppCall;

/// Wakes the control thread when mail has come.
#[derive(Debug, Default)]
pub(super) struct Bell(Notify);

impl Bell {
    /// Waits until mail has come since the last call.
    pub(super) async fn rung(&self) {
        self.0.notified().await;
    }
}

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// A shard takes no more questions now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the mailbox of a shard is full")]
pub(super) struct Busy;

/// See the module.
pub(super) struct ControlMail {
    outgoing: Mutex<Outgoing>,
    /// Something is to be sent.
    pushed: Notify,
    shards: usize,
}

struct Outgoing {
    boxes: Vec<MailLane>,
    /// Shards are handed over: no question is sent.
    is_held: bool,
    /// Who waits for an answer, by the number that the question has in place of a connection.
    waiting: Slab<oneshot::Sender<Mail>>,
}

/// What a shard wants of the control thread.
pub(super) enum Visit {
    /// The answer to a request that came to the public port.
    Request(Box<WebRequest>),
    /// What the application says.
    Question(Box<AppCall>),
    /// Events for the application.
    Events(Box<AppEvents>),
    /// Commands go to a session on another node.
    Emulation(Box<EmulateElsewhere>),
}

impl ControlMail {
    /// Nothing to send yet.
    pub(super) fn new(letterboxes: &[Letterbox]) -> Self {
        let boxes: Vec<MailLane> = letterboxes.iter().cloned().map(MailLane::new).collect();
        let shards = boxes.len();
        let outgoing = Mutex::new(Outgoing { boxes, is_held: false, waiting: Slab::new() });
        Self { outgoing, pushed: Notify::new(), shards }
    }

    /// All shards.
    pub(super) fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards).map(|at| ShardId(at as u8))
    }

    /// Asks a shard something that costs so many credits. `mail` makes the question.
    ///
    /// # Errors
    /// The shard has too many unanswered questions, or no room for mail.
    pub(super) fn ask(
        &self,
        to: ShardId,
        credits: u8,
        mail: impl FnOnce(Asker) -> Mail,
    ) -> Result<oneshot::Receiver<Mail>, Busy> {
        let mut outgoing = self.lock();
        let Outgoing { boxes, is_held, waiting } = &mut *outgoing;
        if *is_held {
            return Err(Busy);
        }
        let lane = &mut boxes[to.index()];
        let credits = lane.spend(credits, API_UNANSWERED_MAX).ok_or(Busy)?;
        let (sender, receiver) = oneshot::channel();
        let index = waiting.insert(sender) as u32;
        let conn = ConnKey { index, generation: NonZeroU32::MIN };
        push(lane, mail(Asker { credits, ..Asker::of(conn) }));
        drop(outgoing);
        self.pushed.notify_one();
        Ok(receiver)
    }

    /// Sends mail that has no answer. It never waits: mail that finds a full mailbox stays here until there
    /// is room.
    pub(super) fn post(&self, to: ShardId, mail: Mail) {
        self.post_all([(to, mail)]);
    }

    /// The same for several messages, with one lock and one waking of the control thread. The threads of the
    /// crypto pool send by it, too, each message for a job whose credit the shard has reserved.
    pub(super) fn post_all(&self, all: impl IntoIterator<Item = (ShardId, Mail)>) {
        let mut outgoing = self.lock();
        for (to, mail) in all {
            push(&mut outgoing.boxes[to.index()], mail);
        }
        drop(outgoing);
        self.pushed.notify_one();
    }

    /// Waits until all mail has left: what is posted before the node ends.
    pub(super) async fn sent(&self) {
        while self.flush() {
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Wakes all shards.
    pub(super) fn ring(&self) {
        self.lock().boxes.iter().for_each(MailLane::ring);
    }

    /// Shards have settled, and are handed over: questions are refused until they go on.
    pub(super) fn hold_questions(&self, is_held: bool) {
        self.lock().is_held = is_held;
    }

    /// Questions that are not answered.
    pub(super) fn unanswered(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Nothing waits to be sent, and no question is unanswered.
    pub(super) fn is_quiet(&self) -> bool {
        let outgoing = self.lock();
        outgoing.waiting.is_empty() && outgoing.boxes.iter().all(MailLane::is_empty)
    }

    /// Sends and receives until the process ends; `visit` takes what shards want.
    pub(super) async fn run(
        self: Arc<Self>,
        mailbox: Mailbox,
        bell: Arc<Bell>,
        visit: impl Fn(ShardId, Visit),
    ) {
        loop {
            for _ in 0..BATCHES_MAX {
                let Some(batch) = mailbox.take() else { break };
                self.open(*batch, &visit);
            }
            let blocked = self.flush();
            mailbox.take_turned(|shard| self.lock().boxes[shard.index()].ring());
            if !mailbox.sleep() {
                // Those who were answered have their turn, and ask on.
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                () = bell.rung() => {}
                () = self.pushed.notified() => {}
                () = tokio::time::sleep(RETRY), if blocked => {}
            }
            mailbox.awake();
        }
    }

    fn open(&self, batch: Batch, visit: &impl Fn(ShardId, Visit)) {
        let from = batch.from;
        for mail in batch.mail {
            let asker = match &mail {
                Mail::Published { asker, .. }
                | Mail::Answer { asker, .. }
                | Mail::Listed { asker, .. }
                | Mail::Inspected { asker, .. }
                | Mail::Emulated { asker, .. }
                | Mail::Ordered { asker, .. } => *asker,
                _ => {
                    match mail {
                        Mail::Request(request) => visit(from, Visit::Request(request)),
                        Mail::AppCall(question) => visit(from, Visit::Question(question)),
                        Mail::AppEvents(events) => visit(from, Visit::Events(events)),
                        Mail::EmulateElsewhere(emulate) => visit(from, Visit::Emulation(emulate)),
                        _ => {}
                    }
                    continue;
                }
            };
            let mut outgoing = self.lock();
            outgoing.boxes[from.index()].earn(asker.credits);
            if let Some(waits) = outgoing.waiting.try_remove(asker.conn.index as usize) {
                // Who asked may have given up.
                let _ = waits.send(mail);
            }
        }
    }

    /// Sends what is there. Whether some of it found no room.
    pub(super) fn flush(&self) -> bool {
        let mut outgoing = self.lock();
        let flushed = outgoing.boxes.iter_mut().map(|lane| lane.flush(CONTROL));
        flushed.fold(false, |blocked, flushed| blocked | (flushed == Flushed::Full))
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        // It is held for a few steps only, and a panic ends the process.
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds mail. What fills a lane leaves at once, so that it is full only while the shard has no room.
fn push(lane: &mut MailLane, mail: Mail) {
    lane.push(mail);
    if lane.is_full() {
        lane.flush(CONTROL);
    }
}

/// Batches opened before others of the thread have their turn.
const BATCHES_MAX: usize = 64;

/// Mail that found a full mailbox is sent again after so long, even if nobody rings.
const RETRY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::frame::SharedFrame;
    use crate::base::limits::OUTBOX_BYTES_MAX;
    use crate::hub::history::Position;
    use crate::io::Alarm;
    use crate::shard::mail::List;
    use crate::shard::signatures::Signed;

    fn list(asker: Asker) -> Mail {
        Mail::List(List { asker, cursor: 0, of: crate::shard::mail::ListOf::Channels })
    }

    #[test]
    fn a_full_outbox_leaves_while_there_is_room() {
        let (letterbox, shard) = Mailbox::new(2, Alarm::new(Arc::new(Bell::default())));
        let control_mail = ControlMail::new(&[letterbox]);
        let bytes = SharedFrame::part(&vec![b'x'; OUTBOX_BYTES_MAX]);
        let asker = Asker::of(ConnKey { index: 0, generation: NonZeroU32::MIN });
        let response = || Mail::Response { asker, bytes: bytes.clone(), keep_alive: true };
        for _ in 0..2 {
            control_mail.post(ShardId(0), response());
            assert!(control_mail.ask(ShardId(0), 1, list).is_ok());
        }
        // The mailbox has its two batches: what fills the lane now stays.
        control_mail.post(ShardId(0), response());
        assert_eq!(control_mail.ask(ShardId(0), 1, list).err(), Some(Busy));
        assert!(shard.take().is_some());
        control_mail.flush();
        assert!(control_mail.ask(ShardId(0), 1, list).is_ok());
    }

    #[test]
    fn shards_that_are_handed_over_get_no_questions() {
        let (letterbox, shard) = Mailbox::new(2, Alarm::new(Arc::new(Bell::default())));
        let control_mail = ControlMail::new(&[letterbox]);
        control_mail.hold_questions(true);
        assert_eq!(control_mail.ask(ShardId(0), 1, list).err(), Some(Busy));
        control_mail.flush();
        assert!(shard.take().is_none() && control_mail.is_quiet());
        control_mail.hold_questions(false);
        assert!(control_mail.ask(ShardId(0), 1, list).is_ok());
    }

    #[tokio::test]
    async fn a_full_mailbox_holds_up_nobody_else() {
        let bell = Arc::new(Bell::default());
        let (full_letterbox, full) = Mailbox::new(1, Alarm::new(Arc::new(Bell::default())));
        let (other_letterbox, other) = Mailbox::new(1, Alarm::new(Arc::new(Bell::default())));
        let (_, mailbox) = Mailbox::new(8, Alarm::new(bell.clone()));
        let control_mail = Arc::new(ControlMail::new(&[full_letterbox, other_letterbox]));
        let signed = |ticket| Mail::Signed { ticket, signed: Signed::Bad };
        control_mail.post(ShardId(0), signed(0));
        assert!(!control_mail.flush());
        let running = tokio::spawn(Arc::clone(&control_mail).run(mailbox, bell, |_, _| {}));
        // As a thread of the pool does, which would have waited for ever here.
        (1..100).for_each(|ticket| control_mail.post(ShardId(0), signed(ticket)));
        control_mail.post(ShardId(1), signed(100));
        let received = |mailbox: &Mailbox| {
            let mail = mailbox.take().into_iter().flat_map(|batch| batch.mail);
            let tickets = mail.map(|mail| match mail {
                Mail::Signed { ticket, .. } => ticket,
                mail => panic!("{mail:?}"),
            });
            tickets.collect::<Vec<_>>()
        };
        let mut at_other = Vec::new();
        while at_other.is_empty() {
            tokio::task::yield_now().await;
            at_other = received(&other);
        }
        assert_eq!(at_other, [100]);
        let mut at_full = Vec::new();
        while at_full.len() < 100 {
            at_full.extend(received(&full));
            full.take_turned(|_| {});
            control_mail.sent().await;
        }
        assert_eq!(at_full, (0..100).collect::<Vec<_>>());
        running.abort();
    }

    #[tokio::test]
    async fn questions_are_answered_and_refused_when_there_are_too_many() {
        let bell = Arc::new(Bell::default());
        let (letterbox, shard) = Mailbox::new(1, Alarm::new(Arc::new(Bell::default())));
        let (own_letterbox, mailbox) = Mailbox::new(8, Alarm::new(bell.clone()));
        let control_mail = Arc::new(ControlMail::new(&[letterbox]));
        let running = tokio::spawn(Arc::clone(&control_mail).run(mailbox, bell, |_, _| {}));
        let mut answers: Vec<_> = (0..API_UNANSWERED_MAX)
            .map(|_| control_mail.ask(ShardId(0), 1, list).unwrap())
            .collect();
        assert_eq!(control_mail.ask(ShardId(0), 1, list).err(), Some(Busy));
        assert_eq!(control_mail.unanswered(), API_UNANSWERED_MAX as usize);
        let mut to_control = MailLane::new(own_letterbox);
        let mut answered = 0;
        while answered < API_UNANSWERED_MAX {
            tokio::task::yield_now().await;
            let Some(batch) = shard.take() else { continue };
            shard.take_turned(|_| {});
            for mail in batch.mail {
                let Mail::List(List { asker, .. }) = mail else { panic!("{mail:?}") };
                let position = Position { offset: u64::from(answered), epoch: None };
                to_control.push(Mail::Published { asker, position });
                answered += 1;
            }
            to_control.flush(ShardId(0));
        }
        for (at, answer) in (0..).zip(&mut answers) {
            let mail = answer.await.unwrap();
            assert!(matches!(mail, Mail::Published { position, .. } if position.offset == at));
        }
        assert_eq!(control_mail.unanswered(), 0);
        assert!(control_mail.ask(ShardId(0), 1, list).is_ok());
        running.abort();
    }
}
