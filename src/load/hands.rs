//! The threads that carry out what the coordinator orders: those of this process, or those of agents.

use super::agents::Agents;
use super::crew::Crew;
use super::figures::{Sum, Tally};
use super::host::Usage;
use super::pace::Segment;
use super::publisher;
use super::report::AgentReport;
use super::series::AgentSecond;
use super::worker::Order;
use std::time::Duration;

/// See the module.
pub(super) enum Hands {
    Here(Box<Crew>),
    Agents(Box<Agents>),
}

/// The result of a run.
pub(super) struct Finished {
    /// Of all machines.
    pub(super) tally: Tally,
    /// Why the figures say more about a client than about the server.
    pub(super) bottleneck: Option<&'static str>,
    pub(super) agents: Vec<AgentReport>,
    /// Faults of agents.
    pub(super) troubles: Vec<String>,
}

impl Hands {
    /// Gives each worker an order: at once, or with agents at a moment that is the same for all, not before `at`.
    pub(super) fn order(&mut self, at: Duration, order: impl Fn(usize) -> Order) {
        match self {
            Self::Here(crew) => crew.order(order),
            Self::Agents(agents) => agents.order(at, order),
        }
    }

    /// How long an order takes to be carried out, at most.
    pub(super) fn lead(&self) -> Duration {
        match self {
            Self::Here(_) => Duration::ZERO,
            Self::Agents(agents) => agents.lead(),
        }
    }

    /// The figures so far.
    pub(super) fn sum(&self) -> Sum {
        match self {
            Self::Here(crew) => crew.lives.sum(),
            Self::Agents(agents) => agents.sum(),
        }
    }

    /// Memory and processor time of the clients.
    pub(super) fn usage(&self) -> Usage {
        match self {
            Self::Here(_) => Usage::own(),
            Self::Agents(agents) => agents.usage(),
        }
    }

    /// Figures of each agent; none of this process.
    pub(super) fn seconds(&self) -> Vec<AgentSecond> {
        match self {
            Self::Here(_) => Vec::new(),
            Self::Agents(agents) => agents.seconds(),
        }
    }

    /// Whether everything runs as it should. Agents that are gone are no error: the others go on.
    ///
    /// # Errors
    /// A thread failed: text for the user.
    pub(super) fn check(&mut self) -> Result<(), String> {
        match self {
            Self::Here(crew) => crew.check(),
            Self::Agents(agents) => {
                agents.tend();
                Ok(())
            }
        }
    }

    /// Whether nobody is left to carry anything out.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Here(_) => false,
            Self::Agents(agents) => agents.is_gone(),
        }
    }

    /// Whether the threads are those of this process.
    pub(super) fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    /// Opens publishers. Returns what went wrong: then there are none.
    ///
    /// # Errors
    /// A thread can't be started: text for the user.
    pub(super) fn open_publishers(&mut self) -> Result<Option<String>, String> {
        match self {
            Self::Here(crew) => crew.open_publishers(),
            Self::Agents(agents) => Ok(agents.open_publishers()),
        }
    }

    /// Has the publishers publish these messages; `first`: messages of all publishers before them.
    pub(super) fn start_publishing(&mut self, segment: Segment, first: u32) {
        match self {
            Self::Here(crew) => crew.start_publishing(segment, first),
            Self::Agents(agents) => agents.start_publishing(segment, first),
        }
    }

    /// Ends what the publishers are at.
    pub(super) fn stop_publishing(&mut self) {
        match self {
            Self::Here(crew) => crew.publish(publisher::Order::Stop),
            Self::Agents(agents) => agents.stop_publishing(),
        }
    }

    /// Ends everything, judges, and sums up; messages took `span_s` seconds.
    ///
    /// # Errors
    /// A thread failed: text for the user.
    pub(super) fn finish(&mut self, span_s: f64) -> Result<Finished, String> {
        match self {
            Self::Here(crew) => {
                let sent = crew.end_publishers()?;
                let tally = crew.finish(sent)?;
                let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
                let bottleneck = super::run::bottleneck(&tally, span_s, processors);
                Ok(Finished { tally, bottleneck, agents: Vec::new(), troubles: Vec::new() })
            }
            Self::Agents(agents) => Ok(agents.finish(span_s)),
        }
    }
}
