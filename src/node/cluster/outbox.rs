//! Messages of this node on their way to the server: which of them have been sent, and who waits for that.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::counters::Counters;
use crate::base::time::Millis;
use crate::cluster::control::{Kind, Message};
use crate::hub::broker::Ticket;
use crate::node::broker_threads::Recipient;

/// Messages that are not sent yet at most; more fail at once.
const MESSAGES_UNSENT_MAX: usize = 16_384;

/// Bytes of them at most; more fail at once.
const MESSAGES_UNSENT_BYTES_MAX: usize = 64 << 20;

/// The fate of a message comes so soon, or never.
const FATE_MS: u64 = 30_000;

/// See the module.
#[derive(Default)]
pub(super) struct Outbox {
    last: u64,
    unsent: BTreeMap<u64, Unsent>,
    bytes: usize,
}

struct Unsent {
    kind: Kind,
    bytes: usize,
    since: Millis,
    /// A copy, to be sent once more if the first attempt fails.
    spare: Option<Box<(Recipient, Message)>>,
    waiter: Option<oneshot::Sender<bool>>,
}

/// A message that is to be sent now.
pub(super) type Outgoing = (Recipient, Ticket, Message);

impl Outbox {
    /// Takes a message. `again`: it is sent once more if that fails, which has to be harmless. None if there is
    /// no room: the waiter, if any, gets that answer at once.
    pub(super) fn add(
        &mut self,
        now: Millis,
        counters: &Counters,
        (to, message): (Recipient, Message),
        again: bool,
        waiter: Option<oneshot::Sender<bool>>,
    ) -> Option<Outgoing> {
        let (kind, mut bytes) = (message.kind(), message.bytes());
        let spare = again.then(|| Box::new((to.clone(), message.clone())));
        bytes *= 1 + usize::from(again);
        if self.unsent.len() >= MESSAGES_UNSENT_MAX
            || self.bytes + bytes > MESSAGES_UNSENT_BYTES_MAX
        {
            counters.failed(kind);
            answer(waiter, false);
            return None;
        }
        self.bytes += bytes;
        self.last += 1;
        self.unsent.insert(self.last, Unsent { kind, bytes, since: now, spare, waiter });
        Some((to, Ticket(self.last), message))
    }

    /// Messages whose fate is not known.
    pub(super) fn len(&self) -> usize {
        self.unsent.len()
    }

    /// The fate of a message. Yields it when it is to be sent again.
    pub(super) fn sent(
        &mut self,
        now: Millis,
        counters: &Counters,
        ticket: Ticket,
        is_sent: bool,
    ) -> Option<Outgoing> {
        let Unsent { kind, bytes, spare, waiter, .. } = self.unsent.remove(&ticket.0)?;
        self.bytes -= bytes;
        match (is_sent, spare) {
            (true, _) => counters.sent(kind),
            (false, Some(spare)) => return self.add(now, counters, *spare, false, waiter),
            (false, None) => counters.failed(kind),
        }
        answer(waiter, is_sent);
        None
    }

    /// Gives messages up whose fate has not come for a long time: the news of it was lost.
    pub(super) fn expire(&mut self, now: Millis, counters: &Counters) {
        while let Some(first) = self.unsent.first_entry()
            && now.since(first.get().since) > FATE_MS
        {
            let Unsent { kind, bytes, waiter, .. } = first.remove();
            self.bytes -= bytes;
            counters.failed(kind);
            answer(waiter, false);
        }
    }
}

fn answer(waiter: Option<oneshot::Sender<bool>>, is_sent: bool) {
    if let Some(waiter) = waiter {
        // Nobody may wait any more.
        let _ = waiter.send(is_sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::control::Disconnect;

    const NOW: Millis = Millis(5);

    fn message(bytes: usize) -> (Recipient, Message) {
        let reason = "x".repeat(bytes);
        (Recipient::All, Message::Disconnect(Disconnect { reason, ..Disconnect::default() }))
    }

    #[test]
    fn each_message_has_its_fate() {
        let (mut outbox, counters) = (Outbox::default(), Counters::default());
        let (waiter, mut fate) = oneshot::channel();
        let (_, one, _) = outbox.add(NOW, &counters, message(0), false, Some(waiter)).unwrap();
        let (_, two, _) = outbox.add(NOW, &counters, message(0), false, None).unwrap();
        assert!(outbox.sent(NOW, &counters, two, false).is_none());
        assert!(fate.try_recv().is_err());
        assert!(outbox.sent(NOW, &counters, one, true).is_none());
        assert!(outbox.sent(NOW, &counters, one, false).is_none(), "twice");
        assert_eq!(fate.try_recv(), Ok(true));
        assert_eq!((counters.all_sent(), counters.all_failed()), (1, 1));
        assert_eq!((outbox.bytes, outbox.unsent.len()), (0, 0));
    }

    #[test]
    fn a_message_is_sent_once_more() {
        let (mut outbox, counters) = (Outbox::default(), Counters::default());
        let (waiter, mut fate) = oneshot::channel();
        let (_, first, _) = outbox.add(NOW, &counters, message(5), true, Some(waiter)).unwrap();
        let (to, second, again) = outbox.sent(NOW, &counters, first, false).unwrap();
        assert_eq!(((to, again), fate.try_recv().is_err()), (message(5), true));
        assert!(outbox.sent(NOW, &counters, second, false).is_none());
        assert_eq!(fate.try_recv(), Ok(false));
        assert_eq!((outbox.bytes, counters.all_failed()), (0, 1));
    }

    #[test]
    fn a_message_without_news_is_given_up() {
        let (mut outbox, counters) = (Outbox::default(), Counters::default());
        let (waiter, mut fate) = oneshot::channel();
        outbox.add(NOW, &counters, message(0), true, Some(waiter));
        outbox.add(NOW.after(1), &counters, message(0), false, None);
        outbox.expire(NOW.after(FATE_MS), &counters);
        assert!(fate.try_recv().is_err());
        outbox.expire(NOW.after(FATE_MS + 1), &counters);
        assert_eq!((fate.try_recv(), outbox.unsent.len()), (Ok(false), 1));
        assert_eq!(counters.all_failed(), 1);
    }

    #[test]
    fn what_has_no_room_fails_at_once() {
        let (mut outbox, counters) = (Outbox::default(), Counters::default());
        let large = MESSAGES_UNSENT_BYTES_MAX - 2 * message(0).1.bytes();
        let (_, first, _) = outbox.add(NOW, &counters, message(large), false, None).unwrap();
        let (waiter, mut fate) = oneshot::channel();
        assert!(outbox.add(NOW, &counters, message(large), false, Some(waiter)).is_none());
        assert_eq!(fate.try_recv(), Ok(false));
        outbox.sent(NOW, &counters, first, true);
        for _ in 0..MESSAGES_UNSENT_MAX {
            assert!(outbox.add(NOW, &counters, message(0), false, None).is_some());
        }
        assert!(outbox.add(NOW, &counters, message(0), false, None).is_none());
    }
}
