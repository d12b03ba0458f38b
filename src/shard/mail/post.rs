//! The post of one shard: its mail both ways, acknowledgements that wait for mail to leave, and credits.
//!
//! ```text
//!  groups --send--> lanes --(end of turn, or a lane is full)--> mailboxes of other shards
//!                     '---> mail to this shard itself
//! ```
//! Mail that finds a full mailbox stays in its lane. While a lane is full, requests and clean-up wait, and
//! deliveries become a gap, which is sent when there is room again.

use std::collections::VecDeque;

use super::acks::{Ack, Acks};
use super::app_events::{AppEvent, AppEvents};
use super::credits::{Allowance, Queue, WaitingList};
use super::lane::Lanes;
use super::messages::Mail;
use super::shard_set::ShardSet;
use super::{Batch, CONTROL, Flushed, Letterbox, MailLane, Mailbox, Outside};
use crate::base::id::{ConnKey, ShardId};
use crate::base::limits::MAILBOX_BYTES_MAX;
use crate::shard::context::Cx;
use crate::shard::stats::ShardCounters;

/// Mail of one shard.
pub(crate) struct Post {
    mailbox: Mailbox,
    /// Mail of this shard to itself.
    loopback: VecDeque<Box<Batch>>,
    loopback_bytes: usize,
    lanes: Lanes,
    /// Some receiver had no room in this turn.
    blocked: bool,
    acks: Acks,
    /// Events for the application that have not left.
    app_events: AppEvents,
    /// Connections that wait for credit.
    waiting: WaitingList,
    /// Credits that this shard has at each other one.
    unanswered_max: u32,
}

impl Post {
    /// No mail.
    pub(crate) fn new(
        mailbox: Mailbox,
        letterboxes: Vec<Letterbox>,
        outside: Outside,
        unanswered_max: u32,
    ) -> Self {
        let shards = letterboxes.len();
        Self {
            mailbox,
            loopback: VecDeque::new(),
            loopback_bytes: 0,
            lanes: Lanes::new(letterboxes, outside),
            blocked: false,
            acks: Acks::new(shards),
            app_events: AppEvents::default(),
            waiting: WaitingList::new(shards),
            unanswered_max,
        }
    }

    /// Adds mail for a shard. Mail that fills a lane leaves at once, so that the lane stays full only while
    /// the receiver has no room.
    pub(crate) fn send(&mut self, cx: &Cx, to: ShardId, mail: Mail) {
        self.lanes[to].push(mail);
        if self.lanes[to].is_full() {
            self.flush_to(cx, to);
        }
    }

    /// The lane to a shard: for deliveries, which are pushed to many lanes before any of them is flushed.
    pub(crate) fn lane(&mut self, to: ShardId) -> &mut MailLane {
        &mut self.lanes[to]
    }

    /// The lane to a shard is full: mail that can wait has to wait.
    pub(crate) fn is_full(&self, to: ShardId) -> bool {
        self.lanes[to].is_full()
    }

    /// Sends the mail that waits for a shard. False when some of it has to stay.
    pub(crate) fn flush_to(&mut self, cx: &Cx, to: ShardId) -> bool {
        if !self.lanes.may_have_mail() {
            return to != cx.id;
        }
        let lane = &mut self.lanes[to];
        if to == cx.id {
            if self.loopback_bytes < MAILBOX_BYTES_MAX
                && let Some(batch) = lane.take(to)
            {
                self.loopback_bytes += batch.bytes;
                self.loopback.push_back(batch);
                self.acks.delivered_to(to);
                return true;
            }
            return false;
        }
        match lane.flush(cx.id) {
            Flushed::Nothing => true,
            Flushed::Gone => {
                self.acks.delivered_to(to);
                true
            }
            Flushed::Full => {
                self.blocked = true;
                cx.counters().mail_full.add(1);
                false
            }
        }
    }

    /// Takes an event for the application; it leaves at the end of the turn.
    pub(crate) fn report(&mut self, event: AppEvent) {
        self.app_events.push(event);
    }

    /// The end of a turn: sends the mail for all receivers, then acknowledges the publishes whose
    /// deliveries are in their receivers' mailboxes.
    pub(crate) fn flush(&mut self, cx: &Cx) {
        if !self.may_have_mail() && self.app_events.is_empty() && self.acks.is_empty() {
            self.blocked = false;
            return;
        }
        self.flush_all(cx);
        self.lanes.look();
    }

    fn flush_all(&mut self, cx: &Cx) {
        self.blocked = self.lanes.iter().any(MailLane::has_gaps);
        if !self.app_events.is_empty() && !self.lanes[CONTROL].is_full() {
            let events = std::mem::take(&mut self.app_events);
            self.lanes[CONTROL].push(Mail::AppEvents(Box::new(events)));
        }
        self.lanes.receivers().for_each(|to| _ = self.flush_to(cx, to));
        if self.acks.is_empty() {
            return;
        }
        let mut held = ShardSet::default();
        let receivers = self.lanes.shards();
        receivers.filter(|to| !self.lanes[*to].is_empty()).for_each(|to| held.insert(to));
        let mut acked = false;
        let lanes = &mut self.lanes;
        self.acks.take_done(held, |Ack { to, asker, position }| {
            lanes[to].push(Mail::Published { asker, position });
            acked = true;
        });
        if acked {
            self.lanes.receivers().for_each(|to| _ = self.flush_to(cx, to));
        }
    }

    /// A publish is taken: it is acknowledged when its deliveries are in the mailboxes of these shards.
    pub(crate) fn acknowledge(&mut self, ack: Ack, waits_for: ShardSet) {
        self.acks.push(ack, waits_for);
    }

    /// Whether mail or gaps may wait for any receiver.
    pub(crate) fn may_have_mail(&self) -> bool {
        self.lanes.may_have_mail()
    }

    /// All receivers, those that are no shards too.
    pub(crate) fn receivers(&self) -> impl Iterator<Item = ShardId> + use<> {
        self.lanes.receivers()
    }

    /// Takes the channels of this home whose gaps can be sent to a shard now.
    pub(crate) fn take_gaps(&mut self, to: ShardId) -> Vec<u32> {
        self.lanes[to].take_gaps()
    }

    /// Wakes the other shards.
    pub(crate) fn ring_others(&self, cx: &Cx) {
        let others = self.lanes.shards().filter(|to| *to != cx.id);
        others.for_each(|to| self.lanes[to].ring());
    }
}

/// Mail that comes in.
impl Post {
    /// The next batch of another shard.
    pub(crate) fn take_batch(&mut self) -> Option<Box<Batch>> {
        self.mailbox.take()
    }

    /// Rings the shards that found the mailbox full: there is room again.
    pub(crate) fn ring_turned_away(&mut self) {
        self.mailbox.take_turned(|shard| self.lanes[shard].ring());
    }

    /// Batches of this shard's mail to itself.
    pub(crate) fn own_batches(&self) -> usize {
        self.loopback.len()
    }

    /// The next of them.
    pub(crate) fn take_own_batch(&mut self) -> Option<Box<Batch>> {
        let batch = self.loopback.pop_front()?;
        self.loopback_bytes -= batch.bytes;
        Some(batch)
    }

    /// From now on mail wakes the shard. False when some mail is there, or can leave, already.
    pub(crate) fn sleep(&self, cx: &Cx) -> bool {
        // The lanes after the alarm: a ring before that was not heard.
        self.mailbox.sleep()
            && !(self.blocked && self.lanes.iter().any(|lane| lane.may_retry(cx.id)))
    }

    /// The shard is awake: mail needn't wake it.
    pub(crate) fn awake(&self) {
        self.mailbox.awake();
    }

    /// Some receiver has no room: a wait must end soon, in case that it ended without ringing.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Mail is here that nothing keeps from leaving.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.blocked && self.may_have_mail() && self.lanes.iter().any(|lane| !lane.is_empty())
    }

    /// Gauges that are cheaper to read off than to keep.
    pub(crate) fn set_gauges(&self, counters: &ShardCounters) {
        let (batches, bytes) = self.mailbox.waiting();
        counters.mailbox_batches.set(batches as u64);
        counters.mailbox_bytes.set(bytes as u64);
    }

    /// What keeps this shard from being written: mail that has not left or is not opened. Credits that are
    /// spent begin anew.
    pub(crate) fn unsettled(&self) -> [(&'static str, usize); 6] {
        let waits = |lane: &&MailLane| !lane.is_empty() || lane.has_gaps();
        [
            ("batches in the mailbox", self.mailbox.waiting().0),
            ("batches to itself", self.loopback.len()),
            ("lanes with mail", self.lanes.iter().filter(waits).count()),
            ("receivers without room", usize::from(self.blocked)),
            ("acknowledgements", self.acks.len()),
            ("events for the application", self.app_events.events.len()),
        ]
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(crate) fn left(&self) -> [(&'static str, usize); 6] {
        [
            ("connections that wait for credit", self.waiting.len()),
            ("batches to itself", self.loopback.len()),
            ("lanes with mail", self.lanes.iter().filter(|lane| !lane.is_empty()).count()),
            ("credits spent", self.lanes.iter().map(|lane| lane.spent() as usize).sum()),
            ("acknowledgements", self.acks.len()),
            ("events for the application", self.app_events.events.len()),
        ]
    }
}

/// Credits.
impl Post {
    /// Takes credits for a request to a shard, as many as its answer needs room, or refuses it.
    pub(crate) fn spend(&mut self, to: ShardId, credits: u8) -> Option<u8> {
        self.lanes[to].spend(credits, self.unanswered_max)
    }

    /// The answer to a request has come: its credits are back.
    pub(crate) fn earn(&mut self, from: ShardId, credits: u8) {
        self.lanes[from].earn(credits);
    }

    /// Counts an up-link's request to a shard, or refuses it.
    pub(crate) fn begin_emulation(&mut self, to: ShardId) -> bool {
        self.lanes[to].begin_emulation(self.unanswered_max)
    }

    /// The request of an up-link is answered.
    pub(crate) fn end_emulation(&mut self, from: ShardId) {
        self.lanes[from].end_emulation();
    }

    /// Puts a connection on the list of those that wait for credit: its last request was refused.
    pub(crate) fn wait_for_credit(&mut self, to: ShardId, key: ConnKey) {
        match to == CONTROL {
            // Calls of the application have one price.
            true => self.waiting.push(Queue::Application, key, 1),
            false => self.waiting.push(Queue::Shard(to), key, self.lanes[to].refused()),
        }
    }

    /// The queues in which connections wait for credit.
    pub(crate) fn queues(&self) -> impl Iterator<Item = Queue> + use<> {
        self.waiting.queues()
    }

    /// Somebody waits in a queue.
    pub(crate) fn is_waited_for(&self, queue: Queue) -> bool {
        !self.waiting.is_empty_at(queue)
    }

    /// Which connections of a queue may try again in this turn; `calls`: how many calls of the application
    /// may begin.
    pub(crate) fn allowance(&self, queue: Queue, calls: u32) -> Allowance {
        let credits = match queue {
            Queue::Shard(shard) => self.lanes[shard].credits(self.unanswered_max),
            Queue::Application => calls,
        };
        Allowance::new(credits, self.unanswered_max)
    }

    /// The next connection that may try again, and the price of its request.
    pub(crate) fn next_waiting(&mut self, queue: Queue, of: &Allowance) -> Option<(ConnKey, u8)> {
        self.waiting.next(queue, of)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::base::frame::SharedFrame;
    use crate::base::limits::OUTBOX_BYTES_MAX;
    use crate::hub::history::Position;
    use crate::shard::fixture::{Plan, Posts};
    use crate::shard::mail::{Answer, Asker};

    fn key(index: u32) -> ConnKey {
        ConnKey { index, generation: NonZeroU32::MIN }
    }

    fn gaps(mail: &[Mail]) -> Vec<u32> {
        let local = |mail: &Mail| if let Mail::Gap { local } = mail { Some(*local) } else { None };
        mail.iter().filter_map(local).collect()
    }

    fn large() -> Mail {
        let answer = Answer::History(SharedFrame::part(&vec![b'x'; OUTBOX_BYTES_MAX]));
        Mail::Answer { asker: Asker::of(key(9)), answer }
    }

    fn ack(index: u32) -> Ack {
        let position = Position { offset: 1, epoch: None };
        Ack { to: ShardId(1), asker: Asker::of(key(index)), position }
    }

    fn set(shard: u8) -> ShardSet {
        let mut set = ShardSet::default();
        set.insert(ShardId(shard));
        set
    }

    #[test]
    fn mail_leaves_in_order_and_to_itself_without_a_mailbox() {
        let cx = Plan::default().cx();
        let mut posts = Posts::new(2, 8);
        for (to, local) in [(1, 1), (0, 2), (1, 3), (0, 4)] {
            posts.post.send(&cx, ShardId(to), Mail::Gap { local });
        }
        assert!(posts.post.has_unsent());
        posts.post.flush(&cx);
        assert!(!posts.post.has_unsent() && posts.post.own_batches() == 1);
        assert_eq!(gaps(&posts.sent_to(1)), [1, 3]);
        assert_eq!(gaps(&posts.sent_to(0)), [2, 4]);
        assert!(posts.post.left().iter().all(|(_, count)| *count == 0));
    }

    #[test]
    fn mail_that_fills_a_lane_leaves_at_once_while_there_is_room() {
        let cx = Plan::default().cx();
        let mut posts = Posts::new(2, 1);
        posts.post.send(&cx, ShardId(1), large());
        assert!(!posts.post.is_full(ShardId(1)));
        posts.post.send(&cx, ShardId(1), large());
        // The mailbox is full: the lane stays full, without credits, until there is room.
        assert!(posts.post.is_full(ShardId(1)) && posts.post.is_blocked());
        assert_eq!(posts.post.spend(ShardId(1), 1), None);
        posts.post.lane(ShardId(1)).add_gap(7);
        assert!(posts.post.take_gaps(ShardId(1)).is_empty());
        assert_eq!(posts.sent_to(1).len(), 1);
        posts.post.flush(&cx);
        assert_eq!(posts.post.take_gaps(ShardId(1)), [7]);
        assert_eq!(posts.post.spend(ShardId(1), 1), Some(1));
    }

    #[test]
    fn a_publish_is_acknowledged_when_its_deliveries_have_left() {
        let cx = Plan { shards: 3, ..Plan::default() }.cx();
        let mut posts = Posts::new(3, 1);
        posts.post.send(&cx, ShardId(2), Mail::Gap { local: 1 });
        posts.post.flush(&cx);
        // The mailbox of shard 2 is full now.
        posts.post.send(&cx, ShardId(2), Mail::Gap { local: 2 });
        posts.post.acknowledge(ack(1), set(2));
        posts.post.acknowledge(ack(2), ShardSet::default());
        posts.post.flush(&cx);
        let acked = |mail: Vec<Mail>| -> Vec<u32> {
            let number = |mail: &Mail| match mail {
                Mail::Published { asker, .. } => asker.conn.index,
                other => panic!("{other:?}"),
            };
            mail.iter().map(number).collect()
        };
        assert_eq!(acked(posts.sent_to(1)), [2]);
        assert_eq!(posts.post.left()[4], ("acknowledgements", 1));
        assert_eq!(gaps(&posts.sent_to(2)), [1]);
        posts.post.flush(&cx);
        assert_eq!(acked(posts.sent_to(1)), [1]);
        assert_eq!(gaps(&posts.sent_to(2)), [2]);
    }

    #[test]
    fn connections_wait_for_the_credit_that_they_were_refused() {
        let cx = Plan::default().cx();
        let mut posts = Posts::new(2, 8);
        let post = &mut posts.post;
        let shard = ShardId(1);
        assert_eq!((post.spend(shard, 3), post.spend(shard, 2)), (Some(3), None));
        post.wait_for_credit(shard, key(1));
        post.wait_for_credit(CONTROL, key(2));
        let queue = Queue::Shard(shard);
        assert!(post.is_waited_for(queue) && !post.is_waited_for(Queue::Shard(cx.id)));
        let next = |post: &mut Post, queue, calls| {
            let allowance = post.allowance(queue, calls);
            post.next_waiting(queue, &allowance)
        };
        assert_eq!(next(post, queue, 9), None);
        post.earn(shard, 3);
        assert_eq!(next(post, queue, 9), Some((key(1), 2)));
        assert_eq!(next(post, Queue::Application, 0), None);
        assert_eq!(next(post, Queue::Application, 1), Some((key(2), 1)));
    }

    #[test]
    fn a_delivery_may_fill_a_lane_without_leaving() {
        let cx = Plan::default().cx();
        let mut posts = Posts::new(2, 8);
        posts.post.lane(ShardId(1)).push(large());
        assert!(posts.post.is_full(ShardId(1)) && posts.post.flush_to(&cx, ShardId(1)));
        assert!(!posts.post.is_full(ShardId(1)));
    }
}
