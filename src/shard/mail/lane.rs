//! Lanes: mail that waits to leave for one receiver, and the credits that the shard has there.

use std::ops::{Index, IndexMut};

use super::credits::Credits;
use super::mailbox::{BROKER, Batch, CONTROL, Letterbox, Outside, PRESENCE_BROKER};
use super::messages::Mail;
use crate::base::id::ShardId;
use crate::base::limits::OUTBOX_BYTES_MAX;

/// The lanes of one sender: one for each shard by number, behind them [`OUTSIDE`].
pub(crate) struct Lanes {
    lanes: Vec<MailLane>,
    /// Some lane was lent to be changed since all were found empty: without that all still are.
    touched: bool,
}

/// Receivers that are no shards, in the order of their lanes.
const OUTSIDE: [ShardId; 3] = [PRESENCE_BROKER, BROKER, CONTROL];

impl Lanes {
    /// Empty lanes to these receivers.
    pub(crate) fn new(shards: Vec<Letterbox>, outside: Outside) -> Self {
        let Outside { control, broker, presence } = outside;
        // Nothing is sent to a broker that isn't there.
        let broker = broker.unwrap_or_else(|| control.clone());
        let outside = [presence.unwrap_or_else(|| broker.clone()), broker, control];
        let lanes = shards.into_iter().chain(outside).map(MailLane::new).collect();
        Self { lanes, touched: false }
    }

    /// The receivers, in order.
    pub(crate) fn receivers(&self) -> impl Iterator<Item = ShardId> + use<> {
        self.shards().chain(OUTSIDE)
    }

    /// Those of them that are shards.
    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.lanes.len() - OUTSIDE.len()).map(|at| ShardId(at as u8))
    }

    fn place(&self, to: ShardId) -> usize {
        // The numbers of the others are the last ones.
        let from_end = usize::from(u8::MAX - to.0) + 1;
        if from_end <= OUTSIDE.len() { self.lanes.len() - from_end } else { to.index() }
    }

    /// All lanes, in the order of [`Self::receivers`].
    pub(crate) fn iter(&self) -> impl Iterator<Item = &MailLane> {
        self.lanes.iter()
    }

    /// Whether any may have mail or gaps. False for certain behind a turn without mail.
    pub(crate) fn may_have_mail(&self) -> bool {
        self.touched
    }

    /// Looks whether all lanes are empty.
    pub(crate) fn look(&mut self) {
        self.touched = self.lanes.iter().any(|lane| !lane.is_empty());
    }
}

impl Index<ShardId> for Lanes {
    type Output = MailLane;

    fn index(&self, to: ShardId) -> &MailLane {
        &self.lanes[self.place(to)]
    }
}

impl IndexMut<ShardId> for Lanes {
    fn index_mut(&mut self, to: ShardId) -> &mut MailLane {
        let place = self.place(to);
        self.touched = true;
        &mut self.lanes[place]
    }
}

/// Mail for one receiver that has not left yet, and the sender's credits there.
pub struct MailLane {
    letterbox: Letterbox,
    mail: Vec<Mail>,
    bytes: usize,
    credits: Credits,
    /// Channels (of this home) whose deliveries to that shard were lost, and whose gap is not sent yet.
    gaps: Vec<u32>,
}

/// The outcome of sending a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// There was no mail.
    Nothing,
    /// It is in the mailbox.
    Gone,
    /// The mailbox is full; the mail stays.
    Full,
}

impl MailLane {
    /// An empty lane.
    pub fn new(letterbox: Letterbox) -> Self {
        let (mail, bytes, credits, gaps) = (Vec::new(), 0, Credits::default(), Vec::new());
        Self { letterbox, mail, bytes, credits, gaps }
    }

    /// Whether mail that can wait has to wait: deliveries, requests and clean-up.
    pub fn is_full(&self) -> bool {
        self.bytes >= OUTBOX_BYTES_MAX
    }

    /// Takes the credits of a request, or refuses it; see [`Credits::spend`]. A full lane has none.
    pub fn spend(&mut self, credits: u8, unanswered_max: u32) -> Option<u8> {
        let max = if self.is_full() { 0 } else { unanswered_max };
        self.credits.spend(credits, max)
    }

    /// The price of the request that was refused last; 1 when none was refused since.
    pub fn refused(&self) -> u8 {
        self.credits.refused()
    }

    /// Credits that are left; a full lane has none.
    pub fn credits(&self, unanswered_max: u32) -> u32 {
        if self.is_full() { 0 } else { self.credits.left(unanswered_max) }
    }

    /// The answer to a request has come.
    pub fn earn(&mut self, credits: u8) {
        self.credits.earn(credits);
    }

    /// Credits of unanswered requests.
    pub fn spent(&self) -> u32 {
        self.credits.spent()
    }

    /// Counts the request of an up-link, or refuses it.
    pub fn begin_emulation(&mut self, unanswered_max: u32) -> bool {
        !self.is_full() && self.credits.begin_emulation(unanswered_max)
    }

    /// The request of an up-link is answered.
    pub fn end_emulation(&mut self) {
        self.credits.end_emulation();
    }

    /// Adds a message.
    pub fn push(&mut self, mail: Mail) {
        self.bytes += mail.bytes();
        self.mail.push(mail);
    }

    /// A delivery of a channel was lost: its gap is sent when there is room.
    pub fn add_gap(&mut self, channel: u32) {
        self.gaps.push(channel);
    }

    /// Channels whose gaps are not sent.
    pub fn has_gaps(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// Takes the channels whose gaps can be sent now: none while the lane is full.
    pub fn take_gaps(&mut self) -> Vec<u32> {
        if self.is_full() { Vec::new() } else { std::mem::take(&mut self.gaps) }
    }

    /// Mail waits here for room, and the receiver has made some since.
    pub fn may_retry(&self, from: ShardId) -> bool {
        !self.mail.is_empty() && !self.letterbox.has_turned_away(from)
    }

    /// Wakes the receiver.
    pub fn ring(&self) {
        self.letterbox.ring();
    }

    /// Nothing waits here.
    pub fn is_empty(&self) -> bool {
        self.mail.is_empty() && self.gaps.is_empty()
    }

    /// Takes the mail as one batch, for a shard's mail to itself.
    pub fn take(&mut self, from: ShardId) -> Option<Box<Batch>> {
        if self.mail.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.bytes);
        Some(Box::new(Batch { from, mail: std::mem::take(&mut self.mail), bytes }))
    }

    /// Sends the mail as one batch, and rings.
    pub fn flush(&mut self, from: ShardId) -> Flushed {
        if self.mail.is_empty() {
            return Flushed::Nothing;
        }
        let mail = std::mem::take(&mut self.mail);
        match self.letterbox.send(Box::new(Batch { from, mail, bytes: self.bytes })) {
            Ok(()) => {
                self.bytes = 0;
                Flushed::Gone
            }
            Err(batch) => {
                self.mail = batch.mail;
                Flushed::Full
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::base::form::Form;
    use crate::base::frame::SharedFrame;
    use crate::base::tags::Tags;
    use crate::hub::parcel::{self, Frames, Parcel};
    use crate::shard::mail::mailbox::tests::mailbox;

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
            let mut lanes: Vec<_> = (0..3).map(|_| MailLane::new(letterbox.clone())).collect();
            let mut kept: [Vec<(u8, u32)>; 3] = Default::default();
            let mut queue: VecDeque<Vec<(u8, u32)>> = VecDeque::new();
            let mut turned = Vec::new();
            for (number, op) in (0u32..).zip(ops) {
                match op {
                    Op::Push(from) => {
                        lanes[usize::from(from)].push(Mail::Gap { local: number });
                        kept[usize::from(from)].push((from, number));
                    }
                    Op::Flush(from) => {
                        let model = &mut kept[usize::from(from)];
                        let expected = match (model.is_empty(), queue.len() < capacity) {
                            (true, _) => Flushed::Nothing,
                            (false, true) => Flushed::Gone,
                            (false, false) => Flushed::Full,
                        };
                        let flushed = lanes[usize::from(from)].flush(ShardId(from));
                        prop_assert_eq!(flushed, expected);
                        match flushed {
                            Flushed::Gone => queue.push_back(std::mem::take(model)),
                            Flushed::Full if !turned.contains(&from) => turned.push(from),
                            _ => {}
                        }
                        prop_assert_eq!(lanes[usize::from(from)].is_empty(), model.is_empty());
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
    fn credits_and_bytes_bound_requests() {
        let (letterbox, _mailbox, _) = mailbox(1);
        let mut lane = MailLane::new(letterbox);
        let spent: Vec<_> = (0..3).map(|_| lane.spend(1, 2)).collect();
        assert_eq!(spent, [Some(1), Some(1), None]);
        lane.earn(1);
        // A large one waits until all is there.
        assert_eq!(lane.spend(9, 2), None);
        lane.earn(1);
        assert_eq!((lane.spend(9, 2), lane.spend(1, 2)), (Some(2), None));
        lane.earn(2);
        let full = Some(SharedFrame::new(&vec![0; OUTBOX_BYTES_MAX]));
        let parcel = Parcel {
            frames: vec![(Form::JSON, Frames { full, patch: None })],
            ..Parcel::new(parcel::ParcelKind::Publication, 0, Tags::NONE)
        };
        lane.push(Mail::Deliver { local: 0, parcel: Arc::new(parcel) });
        assert!(lane.is_full() && lane.spend(1, 2).is_none());
    }
}
