//! This node among the others that share its broker.
//!
//! ```text
//!  server API --send_order--> Outbox --Transmit--> the broker's control connection
//!             --ask---------> Surveys              |
//!  POST /emulation -> Lines ----^                  v
//!  shards <--orders-- Incoming <--take-- ControlEvent: Node, Shutdown, commands, surveys, answers
//! ```
//! A node is known by the state that it publishes every three seconds ([`membership`]). Nothing here is on the
//! path of a publication. A node without a broker has none of this.

mod commands;
mod counters;
mod emulation;
mod handover;
mod heartbeat;
mod incoming;
mod membership;
mod outbox;
mod presence;
mod questions;
mod surveys;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tracing::{info, warn};

pub(super) use self::counters::{Counters, Labelled, SurveyOutcome};
pub(super) use self::emulation::Respond;
use self::heartbeat::{OwnData, VERSION, hash_of_servers, misfits};
use self::incoming::Incoming;
use self::membership::Membership;
use self::outbox::Outbox;
use self::surveys::Surveys;
use super::broker_threads::{ControlEvent, Recipient};
use super::control_mail::ControlMail;
use super::info::NodeInfo;
use super::memory;
use super::orders::Target;
use super::users;
use crate::base::time::Millis;
use crate::cluster::control::{Command, Message, Node};
use crate::cluster::peers::Heard;
use crate::cluster::servers::Server;
use crate::hub::broker::{BrokerEvent, Ticket};
use crate::shard::NodeState;
use crate::shard::mail::AdminCommand;

/// The broker, as far as nodes reach each other by it.
pub(super) trait Transmit: Send + Sync + 'static {
    /// Sends a message. False if that is not possible; else [`ControlEvent::Sent`] follows.
    fn send_control(&self, to: Recipient, ticket: Ticket, message: Message) -> bool;

    /// A node has gone: its presence entries are removed, and their leaves announced.
    fn take_entries(&self, uid: &str);

    /// A read of presence by survey is answered.
    fn answer_presence(&self, home: usize, event: BrokerEvent);
}

/// What the group is made of.
pub(super) struct Parts {
    pub(super) node: Arc<NodeState>,
    pub(super) control_mail: Arc<ControlMail>,
    pub(super) transmit: Arc<dyn Transmit>,
    pub(super) name: String,
    pub(super) started: Instant,
    /// `node.info_metrics_aggregate_interval`.
    pub(super) metrics_interval: Duration,
    /// The servers of the broker, in their order, and how channels are divided beside that.
    pub(super) servers: (Vec<Server>, String),
}

/// See the module.
pub(super) struct Cluster {
    node: Arc<NodeState>,
    control_mail: Arc<ControlMail>,
    transmit: Arc<dyn Transmit>,
    name: String,
    started: Instant,
    /// The list of servers as a hash.
    servers: String,
    /// A message that fails at one server is sent by another one.
    has_several_servers: bool,
    is_redis_cluster: bool,
    state: Mutex<State>,
    counters: Counters,
    /// A command of another node has come.
    arrived: Notify,
    /// Lists for other nodes that are made at a time.
    lists: Arc<Semaphore>,
    /// This node has said that it ends.
    has_ended: AtomicBool,
}

/// What changes.
struct State {
    membership: Membership,
    outbox: Outbox,
    surveys: Surveys,
    lines: emulation::Lines,
    incoming: Incoming,
    fence: handover::Fence,
}

/// How often is looked whether something is due.
const TICK: Duration = Duration::from_millis(250);

/// So long a state waits for the number of users.
const COUNT_TIMEOUT: Duration = Duration::from_millis(200);

/// So long the fate of a message is waited for; the broker's own time limits are shorter.
const SENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A question of another node is answered so soon, before that one gives up.
const SURVEY_ANSWER_TIMEOUT: Duration = Duration::from_secs(9);

/// So long the end of this node waits until the others are told.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Lists for other nodes that are made at a time; the next ones wait.
const LISTS_MAX: usize = 2;

impl Cluster {
    /// No other node is known yet.
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let Parts { node, control_mail, transmit, name, started, metrics_interval, servers } =
            parts;
        let (servers, partitions) = servers;
        let state = State {
            membership: Membership::new(metrics_interval),
            outbox: Outbox::default(),
            surveys: Surveys::default(),
            lines: emulation::Lines::default(),
            incoming: Incoming::default(),
            fence: handover::Fence::default(),
        };
        Arc::new(Self {
            node,
            control_mail,
            transmit,
            name,
            started,
            servers: hash_of_servers(&servers) + &partitions,
            has_several_servers: servers.len() > 1,
            is_redis_cluster: servers.iter().any(|at| matches!(at, Server::Cluster { .. })),
            state: Mutex::new(state),
            counters: Counters::default(),
            arrived: Notify::new(),
            lists: Arc::new(Semaphore::new(LISTS_MAX)),
            has_ended: AtomicBool::new(false),
        })
    }

    /// Figures about messages.
    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Number of known nodes, this one among them.
    pub(super) fn known(&self) -> usize {
        self.state().membership.peers().len() + 1
    }

    /// This node, and the others as they have published it.
    pub(super) fn nodes(&self) -> Vec<NodeInfo> {
        let own = self.own();
        let state = self.state();
        std::iter::once(own).chain(state.membership.peers().iter().map(NodeInfo::of_peer)).collect()
    }

    /// Takes what comes by the control channel, until the process ends.
    pub(super) async fn run(self: Arc<Self>, mut events: mpsc::Receiver<ControlEvent>) {
        tokio::spawn(Arc::clone(&self).carry_out());
        let mut every = tokio::time::interval(TICK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(self.now(), event),
                    // The broker has gone, and with it the process.
                    None => return,
                },
                _ = every.tick() => self.look(self.now()),
            }
        }
    }

    /// Sends a command of the server API to the other nodes. The result says whether it was sent: false means
    /// that they may have got it, or not.
    pub(super) fn send_order(
        &self,
        target: &Target,
        command: &AdminCommand,
    ) -> impl Future<Output = bool> + use<> {
        let message = commands::message_of(target, command, &self.node.rules.channels.load());
        let (waiter, sent) = oneshot::channel();
        // Whoever gets it twice has nothing left to do.
        self.send(Recipient::All, message, self.has_several_servers, Some(waiter));
        async { matches!(tokio::time::timeout(SENT_TIMEOUT, sent).await, Ok(Ok(true))) }
    }

    /// Says that this node ends: the others forget it at once. Nothing is published after it.
    pub(super) async fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        let (waiter, sent) = oneshot::channel();
        self.send(Recipient::All, Message::Shutdown, self.has_several_servers, Some(waiter));
        // Without a broker they find out by themselves.
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, sent).await;
    }

    fn now(&self) -> Millis {
        Millis(self.started.elapsed().as_millis() as u64)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is held for a few steps only, and a panic ends the process.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uid(&self) -> &str {
        &self.node.rules.node_id
    }

    /// The state of this node.
    fn own(&self) -> NodeInfo {
        let open = self.node.open.iter().map(|open| u64::from(open.load(Ordering::Relaxed)));
        let data = OwnData {
            roost: env!("CARGO_PKG_VERSION").to_owned(),
            bytes_per_connection: memory::rss_bytes().unwrap_or(0) / open.sum::<u64>().max(1),
            servers: self.servers.clone(),
        };
        let info = NodeInfo::of(&self.node, &self.name, self.started);
        NodeInfo { version: VERSION.to_owned(), data: data.text(), ..info }
    }

    fn send(
        &self,
        to: Recipient,
        message: Message,
        again: bool,
        waiter: Option<oneshot::Sender<bool>>,
    ) {
        let outgoing =
            self.state().outbox.add(self.now(), &self.counters, (to, message), again, waiter);
        self.transmit(outgoing);
    }

    fn transmit(&self, mut outgoing: Option<outbox::Outgoing>) {
        while let Some((to, ticket, message)) = outgoing {
            if self.transmit.send_control(to, ticket, message) {
                return;
            }
            outgoing = self.state().outbox.sent(self.now(), &self.counters, ticket, false);
        }
    }

    /// Publishes the own state, to all nodes or to one.
    fn publish_state(&self, to: Recipient, with_metrics: bool) {
        if !self.has_ended.load(Ordering::Relaxed) {
            let state = Message::Node(self.own().into_message(with_metrics));
            self.send(to, state, false, None);
        }
    }

    /// Does what is due.
    fn look(self: &Arc<Self>, now: Millis) {
        let due = {
            let mut state = self.state();
            state.outbox.expire(now, &self.counters);
            state.membership.due(now)
        };
        for uid in due.forgotten {
            warn!(uid, "node is silent: forgotten");
            self.counters.forgotten.fetch_add(1, Ordering::Relaxed);
            self.has_gone(&uid);
        }
        if due.ping {
            let cluster = Arc::clone(self);
            tokio::spawn(async move {
                let count = users::count(&cluster.node, &cluster.control_mail);
                // A busy shard may not keep the others from hearing of this node.
                let _ = tokio::time::timeout(COUNT_TIMEOUT, count).await;
                cluster.publish_state(Recipient::All, due.with_metrics);
            });
        }
    }

    /// Takes one event of the control channel.
    fn take(self: &Arc<Self>, now: Millis, event: ControlEvent) {
        match event {
            ControlEvent::Listening => {
                self.state().membership.listens(now);
                self.look(now);
            }
            ControlEvent::Interrupted => self.state().membership.is_interrupted(),
            ControlEvent::Sent { ticket, is_sent } => {
                let again = self.state().outbox.sent(now, &self.counters, ticket, is_sent);
                self.transmit(again);
            }
            ControlEvent::Fenced { key } => self.state().fence.arrive(key),
            // This node has done by itself what it has sent to all.
            ControlEvent::Message(command) if command.uid == self.uid() => {}
            ControlEvent::Message(command) => self.take_message(now, *command),
            ControlEvent::Presence(read) => self.read_presence(read),
        }
    }

    fn take_message(self: &Arc<Self>, now: Millis, command: Command) {
        let Command { uid, message } = command;
        self.counters.received(message.kind());
        match message {
            Message::Node(node) => self.heard(now, node),
            Message::Shutdown => {
                if self.state().membership.ended(now, &uid) {
                    info!(uid, "node has ended");
                }
                self.has_gone(&uid);
            }
            Message::SurveyRequest(request) => self.answer_survey(uid, request),
            Message::SurveyResponse(response) => self.state().surveys.take(&uid, response),
            Message::Unsubscribe(_)
            | Message::Subscribe(_)
            | Message::Disconnect(_)
            | Message::Refresh(_) => self.take_command(&uid, message),
            Message::Notification(_) | Message::Unknown => {}
        }
    }

    /// A node has published its state.
    fn heard(&self, now: Millis, node: Node) {
        if node.uid.is_empty() || node.uid == self.uid() {
            return;
        }
        let Node { uid, name, version, .. } = node.clone();
        let misfits = misfits(&node, &self.servers, self.is_redis_cluster);
        let heard = self.state().membership.heard(now, node);
        if heard == Heard::New {
            info!(uid, name, version, "node has joined");
            for misfit in misfits {
                warn!(uid, name, version, "node does not fit this one: {misfit}");
            }
            self.publish_state(Recipient::Node(uid), true);
        }
    }

    /// A node is known no more.
    fn has_gone(&self, uid: &str) {
        self.state().surveys.ended(uid);
        self.transmit.take_entries(uid);
    }
}
