//! Operations of channels that a broker keeps: from the request to the answer.
//!
//! | operation | begins | commands | ends |
//! | --- | --- | --- | --- |
//! | subscribe | once the channel is delivered | `Presence` | once its position and what it missed are known |
//! | unsubscribe | once earlier subscriptions have ended | `Presence`, `Announce` | answers |
//! | publish | once earlier subscriptions have ended | `Publish` | acknowledges |
//! | read | at once | `Read`, `Members`, `Drop`; none for what the home keeps | answers |

use std::collections::VecDeque;

use crate::base::id::{ConnKey, ShardId};
use crate::base::time::Millis;
use crate::hub::broker::{Entry, FailureCause, Ticket};
use crate::hub::history::Position;
use crate::shard::mail::{Method, Publish, Read, Subscribe, Unsubscribe};

/// An operation of a channel that is not done.
#[derive(Debug)]
pub(super) struct Op {
    /// Its place in the order of all operations.
    pub(super) number: u64,
    pub(super) from: ShardId,
    pub(super) request: Request,
    pub(super) step: Step,
    /// It changes who is present, and the broker has not answered that yet: it ends behind the answer, so that
    /// the change is found on each node from then on.
    pub(super) presence: Option<Ticket>,
}

/// The request of an operation.
#[derive(Debug)]
pub(super) enum Request {
    Subscribe(Box<Subscribe>),
    Unsubscribe(Box<Unsubscribe>),
    Publish(Box<Publish>),
    Read(Box<Read>),
    /// A read of what the home keeps itself: behind the operations before it.
    ReadHere(Box<Read>),
    Reinform {
        conn: ConnKey,
        info: Box<[u8]>,
    },
}

impl Request {
    /// It can't be done without the broker.
    pub(super) fn needs_broker(&self) -> bool {
        !matches!(self, Self::Unsubscribe(_) | Self::Reinform { .. } | Self::ReadHere(_))
    }

    /// The broker of presence does it.
    pub(super) fn reads_presence(&self) -> bool {
        matches!(self, Self::Read(read) if read.what.is_presence())
    }

    /// The server makes it: nobody waits for a reply that could carry an error.
    pub(super) fn is_made_by_server(&self) -> bool {
        matches!(self, Self::Subscribe(of) if of.asker.method != Method::Subscribe)
    }

    pub(super) fn subscribes(&self) -> bool {
        matches!(self, Self::Subscribe(_))
    }
}

/// How far an operation is.
#[derive(Debug)]
pub(super) enum Step {
    /// It has not begun.
    Queued,
    /// A subscription: the client is present, and waits for the line, which had sent so many reads.
    Joining(u32),
    /// It waits for the answer to a command.
    Waits(Ticket),
    /// It can end.
    Ready(Outcome),
}

/// The answer that an operation has got.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It needed none.
    Nothing,
    Position(Position),
    History(Position, Vec<Entry>),
    Members(Vec<Box<[u8]>>),
    Counts(u32, u32),
    /// It failed, or the connection is lost, or no answer came in time. `is_present`: a subscription that has
    /// entered its client already.
    Failed {
        cause: FailureCause,
        is_present: bool,
    },
}

impl Outcome {
    /// A later attempt may succeed.
    pub(super) const UNAVAILABLE: Self =
        Self::Failed { cause: FailureCause::Unavailable, is_present: false };
}

impl Op {
    /// It can't be done now: its requester gets an error that is temporary. What the server subscribes waits,
    /// and begins anew.
    pub(super) fn fail(&mut self) {
        let is_present = match &self.step {
            Step::Queued => false,
            Step::Joining(_) => true,
            Step::Waits(_) => false,
            Step::Ready(_) => return,
        };
        self.presence = None;
        self.step = match self.request.is_made_by_server() {
            true => Step::Queued,
            false => Step::Ready(Outcome::Failed { cause: FailureCause::Unavailable, is_present }),
        };
    }
}

/// The operations of a home that are not done, by their order: the oldest ones are found first.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The number of the first one in `open`.
    first: u64,
    /// When each was requested, and the number of its line; `None` is done.
    open: VecDeque<Option<(Millis, u32)>>,
    count: usize,
}

impl Waiting {
    /// One more operation: its number.
    pub(super) fn add(&mut self, now: Millis, line: u32) -> u64 {
        self.open.push_back(Some((now, line)));
        self.count += 1;
        self.first + self.open.len() as u64 - 1
    }

    /// An operation is done.
    pub(super) fn done(&mut self, number: u64) {
        let at = usize::try_from(number.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        if let Some(open) = self.open.get_mut(at)
            && open.take().is_some()
        {
            self.count -= 1;
        }
        while let Some(None) = self.open.front() {
            self.open.pop_front();
            self.first += 1;
        }
        if self.open.is_empty() {
            self.open = VecDeque::new();
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The number that the next one gets.
    pub(super) fn next(&self) -> u64 {
        self.first + self.open.len() as u64
    }

    /// All operations before this number are done.
    pub(super) fn is_done_before(&self, number: u64) -> bool {
        self.first >= number
    }

    /// The operations from before a moment: the number of the first later one, and the lines of these, some
    /// of them several times.
    pub(super) fn before(&self, moment: Millis) -> (u64, Vec<u32>) {
        let is_old = |of: &Option<(Millis, u32)>| of.is_none_or(|(since, _)| since <= moment);
        let count = self.open.iter().take_while(|of| is_old(of)).count();
        let lines = self.open.range(..count).flatten().map(|(_, line)| *line);
        (self.first + count as u64, lines.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_done_in_any_order() {
        let mut waiting = Waiting::default();
        let numbers = [1, 2, 3].map(|of| waiting.add(Millis(of), of as u32));
        let next = waiting.next();
        assert_eq!(waiting.before(Millis(2)), (numbers[2], vec![1, 2]));
        waiting.done(numbers[0]);
        waiting.done(numbers[2]);
        waiting.done(numbers[2]);
        assert_eq!((waiting.len(), waiting.is_done_before(next)), (1, false));
        assert!(waiting.is_done_before(numbers[1]) && waiting.before(Millis(1)).1.is_empty());
        waiting.done(numbers[1]);
        assert!(waiting.is_done_before(next) && waiting.len() == 0);
        assert_eq!(waiting.add(Millis(9), 9), next);
    }
}
