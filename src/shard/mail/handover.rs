//! The steps in which the control thread hands a shard over to another process.

use std::sync::mpsc::Receiver;

/// One step. A shard carries it out behind the turn that opens it, and reports it with the number of the
/// attempt: a report that comes late is none for the next attempt.
#[derive(Debug)]
pub struct HandoverStep {
    /// The attempt that it belongs to.
    pub attempt: u32,
    /// The step.
    pub action: HandoverAction,
}

/// What a shard does in a step.
#[derive(Debug)]
pub enum HandoverAction {
    /// Send what has changed since it was sent, in slices between turns: the first time all there is.
    Copy,
    /// Take nothing new, and bring to an end what lives for a turn.
    Settle,
    /// Report the channels at a broker that the other process does not know yet.
    Channels,
    /// Have the broker divide what it delivers between both processes: names the attempt.
    Fence(u64),
    /// Report whether the shard has settled, and how much mail it has opened.
    Probe,
    /// Send what has changed for the last time, and wait for the outcome.
    Freeze(Receiver<Outcome>),
    /// Go on as before: the handover has failed.
    GoOn,
}

/// The outcome of a handover. A sender that is gone means [`Outcome::GoOn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The other process has the connections: this shard never reads, seals or sends again.
    Gone,
    /// The shard goes on.
    GoOn,
}
