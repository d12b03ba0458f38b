//! Commands of other nodes about connections of users: carried out here in the order in which they come.
//!
//! Each leaves for the shards before the next one, and shards carry out those for one user in their order
//! (`shard/orders.rs`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tracing::warn;

use super::Cluster;
use super::commands::command_of;
use crate::base::limits::API_UNANSWERED_MAX;
use crate::cluster::control::Message;
use crate::node::log_limit::LogLimit;
use crate::node::orders::{self, Target};
use crate::shard::mail::{AdminCommand, Mail};

/// Bytes of commands that wait at most; more are dropped, counted and logged.
const ORDERS_BYTES_MAX: usize = 64 << 20;

/// Answers of shards that are waited for at most: the server API has room beside them.
const ORDERS_UNANSWERED_MAX: usize = API_UNANSWERED_MAX as usize / 2;

/// A shard without room is tried again after so long, if no other command is under way.
const ORDERS_RETRY: Duration = Duration::from_millis(10);

/// Lines about commands that are refused: any node can send any number of them.
static REFUSALS: LogLimit = LogLimit::new();

/// Commands that wait.
#[derive(Default)]
pub(super) struct Incoming {
    waiting: VecDeque<(Target, AdminCommand, usize)>,
    bytes: usize,
    /// Some were dropped since the last one that was not.
    drops: bool,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Added {
    Yes,
    /// It is dropped. The first of several says so.
    Dropped {
        is_first: bool,
    },
}

impl Incoming {
    fn add(&mut self, target: Target, command: AdminCommand, bytes: usize) -> Added {
        if self.bytes + bytes > ORDERS_BYTES_MAX {
            let is_first = !std::mem::replace(&mut self.drops, true);
            return Added::Dropped { is_first };
        }
        self.drops = false;
        self.bytes += bytes;
        self.waiting.push_back((target, command, bytes));
        Added::Yes
    }

    /// Commands that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn next(&mut self) -> Option<(Target, AdminCommand)> {
        let (target, command, bytes) = self.waiting.pop_front()?;
        self.bytes -= bytes;
        Some((target, command))
    }
}

impl Cluster {
    /// Takes a command of another node.
    pub(super) fn take_command(&self, from: &str, message: Message) {
        let (kind, bytes) = (message.kind().name(), message.bytes());
        let refused = |why: &dyn std::fmt::Display| {
            self.counters.orders_refused.fetch_add(1, Ordering::Relaxed);
            if let Some(left_out) = REFUSALS.admit() {
                warn!(
                    node = from,
                    command = kind,
                    left_out,
                    "command of another node refused: {why}"
                );
            }
        };
        let (target, command) = match command_of(message, &self.node.rules.channels.load()) {
            Ok(Some(command)) => command,
            Ok(None) => return,
            Err(refusal) => return refused(&refusal),
        };
        if matches!(command, AdminCommand::Subscribe(_)) && self.node.memory.is_short() {
            return refused(&"memory is short");
        }
        let added = self.state().incoming.add(target, command, bytes);
        match added {
            Added::Yes => self.arrived.notify_one(),
            Added::Dropped { is_first: true } => refused(&"too many wait; more are only counted"),
            Added::Dropped { is_first: false } => {
                self.counters.orders_refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Hands commands to the shards, until the process ends.
    pub(super) async fn carry_out(self: Arc<Self>) {
        let mut underway = FuturesUnordered::new();
        loop {
            let next = self.state().incoming.next();
            match next {
                Some((target, command)) => {
                    self.hand_over(&mut underway, &target, &command).await;
                }
                None => tokio::select! {
                    () = self.arrived.notified() => {}
                    Some(_) = underway.next() => {}
                },
            }
        }
    }

    /// Hands a command to all shards; waits for those that have no room.
    async fn hand_over(
        &self,
        underway: &mut FuturesUnordered<oneshot::Receiver<Mail>>,
        target: &Target,
        command: &AdminCommand,
    ) {
        for shard in self.control_mail.shards() {
            while underway.len() >= ORDERS_UNANSWERED_MAX {
                underway.next().await;
            }
            loop {
                match orders::send(&self.control_mail, shard, target, command) {
                    Ok(sent) => break underway.push(sent),
                    Err(_) if underway.next().await.is_some() => {}
                    Err(_) => tokio::time::sleep(ORDERS_RETRY).await,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(incoming: &mut Incoming, user: &str, bytes: usize) -> Added {
        let target = Target { user: user.into(), ..Target::default() };
        let command = AdminCommand::Unsubscribe { channel: "".into(), why: None };
        incoming.add(target, command, bytes)
    }

    #[test]
    fn commands_wait_in_their_order_within_a_bound() {
        let mut incoming = Incoming::default();
        assert_eq!(add(&mut incoming, "a", 1), Added::Yes);
        assert_eq!(add(&mut incoming, "b", ORDERS_BYTES_MAX - 1), Added::Yes);
        assert_eq!(add(&mut incoming, "c", 1), Added::Dropped { is_first: true });
        assert_eq!(add(&mut incoming, "c", 1), Added::Dropped { is_first: false });
        let user = |incoming: &mut Incoming| incoming.next().map(|(target, _)| target.user);
        assert_eq!(user(&mut incoming).as_deref(), Some("a"));
        assert_eq!(add(&mut incoming, "d", 1), Added::Yes);
        assert_eq!(add(&mut incoming, "e", 1), Added::Dropped { is_first: true });
        let rest: Vec<_> = std::iter::from_fn(|| user(&mut incoming)).collect();
        assert_eq!((rest, incoming.bytes), (vec!["b".into(), "d".into()], 0));
    }
}
