//! The control connection to a server: messages between nodes, in the order in which they come.
//!
//! With several servers a node listens at each of them, and sends each message to one: those about a user to
//! the server of that user, so that they arrive in their order, the others in turn. One that is away is left
//! out.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use tokio::time::{MissedTickBehavior, interval};

use super::commands::probe;
use super::fence::{self, Part};
use super::queue::Queued;
use super::reconnect::stay_connected;
use super::wire::{Messages, Subscriptions, Unreachable};
use super::{Connected, Shared};
use crate::cluster::control::{Command, Message, Notification};
use crate::cluster::entries::ENTRIES_REMOVED;
use crate::cluster::hash::fnv1a64;
use crate::cluster::operations::{Awaited, Request};
use crate::hub::broker::{BrokerEvent, Ticket};
use crate::node::broker_threads::{ControlEvent, Figures, Outgoing, Recipient};
use crate::node::log_limit::LogLimit;

/// Lines about messages that can't be read: anybody on that Redis can send any number of them.
static MALFORMED: LogLimit = LogLimit::new();

/// Sends a message to a server that is not away.
pub(super) fn send(
    shared: &Shared,
    servers: &[Rc<Connected>],
    turn: &mut usize,
    outgoing: Outgoing,
) {
    let Outgoing { to, ticket, message } = outgoing;
    let first = match message.selection() {
        Some(selection) => fnv1a64(selection.user().as_bytes()) as usize,
        None => {
            *turn = turn.wrapping_add(1);
            *turn
        }
    };
    let in_turn = (0..servers.len()).map(|at| &servers[first.wrapping_add(at) % servers.len()]);
    let Some(server) = in_turn.into_iter().find(|server| server.queue.is_open.get()) else {
        return shared.events.control(vec![ControlEvent::Sent { ticket, is_sent: false }]);
    };
    let names = &shared.settings.operations.names;
    let name = match to {
        Recipient::All => names.control(),
        Recipient::Node(uid) => names.node(&uid),
    };
    let payload = Command { uid: shared.settings.uid.clone(), message }.write();
    let request = Request::Plain { name: "PUBLISH", arguments: vec![name.into(), payload] };
    let awaited = Awaited::Done { ticket };
    let (home, cost) = (shared.settings.homes, request.bytes());
    let waiting = shared.bytes.fetch_add(cost, Ordering::Relaxed);
    if waiting + cost > shared.settings.queue_bytes_max {
        server.queue.settled(cost);
        return shared.events.control(vec![ControlEvent::Sent { ticket, is_sent: false }]);
    }
    server.queue.push(Queued::new(home, request, awaited, cost));
}

/// Says to a node that its presence entries are removed, in case it is alive. Nobody waits for that.
pub(super) fn notify_removed(
    shared: &Shared,
    servers: &[Rc<Connected>],
    turn: &mut usize,
    uid: &str,
) {
    let notification = Notification { op: ENTRIES_REMOVED.into(), ..<_>::default() };
    let (to, message) = (Recipient::Node(uid.into()), Message::Notification(notification));
    send(shared, servers, turn, Outgoing { to, ticket: UNHEARD, message });
}

/// Nobody waits for what becomes of a message with this ticket.
const UNHEARD: Ticket = Ticket(u64::MAX);

/// Keeps a connection until the process ends.
pub(super) async fn run(shared: Rc<Shared>, at: usize, server: Rc<Connected>) {
    let serve = async |subscriptions, messages| {
        let mut is_listening = false;
        let error = serve(&shared, &server, subscriptions, messages, &mut is_listening).await;
        if matches!(*server.control_part.borrow(), Part::Behind)
            && let Some(joining) = &shared.joining
        {
            joining.lose();
        }
        if is_listening {
            shared.events.control(vec![ControlEvent::Interrupted]);
        }
        error
    };
    stay_connected(&shared, (at, &server), None, "control connection", serve).await;
}

/// Listens until the connection fails: why.
async fn serve(
    shared: &Shared,
    server: &Connected,
    subscriptions: Subscriptions,
    mut messages: Messages,
    is_listening: &mut bool,
) -> Unreachable {
    let settings = &shared.settings;
    let names = &settings.operations.names;
    // The place behind those of the homes.
    let probe_name = names.probe(&settings.uid, settings.homes);
    let own = vec![names.control(), names.node(&settings.uid), probe_name.clone()];
    if let Err(error) = subscriptions.subscribe(own).await {
        return error;
    }
    *is_listening = true;
    shared.events.control(vec![ControlEvent::Listening]);
    let mut probes = interval(settings.probe_interval);
    probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unanswered = 0;
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return Unreachable::Closed };
                unanswered = 0;
                if message.name() != probe_name.as_bytes() {
                    take(shared, server, message.payload());
                } else if let Some(key) = fence::key_of(message.payload()) {
                    fence_arrives(shared, server, key);
                }
            }
            _ = probes.tick() => {
                if unanswered >= 2 {
                    Figures::add(&shared.figures.probes_missed, 1);
                    return Unreachable::Silent;
                }
                unanswered += usize::from(probe(server, settings.homes, ("PUBLISH", &probe_name)));
            }
        }
    }
}

/// A fence has come: messages behind it are the other process's.
fn fence_arrives(shared: &Shared, server: &Connected, key: u64) {
    let mut part = server.control_part.borrow_mut();
    if matches!(*part, Part::Behind) {
        if shared.joining.as_ref().is_some_and(|joining| joining.passes(key)) {
            *part = Part::All;
        }
    } else if shared.control_fence.get() == Some(key) && part.awaits_fence() {
        hand_out(shared, part.divide());
        shared.events.control(vec![ControlEvent::Fenced { key }]);
    }
}

/// From now on messages of other nodes are held.
pub(super) fn hold(servers: &[Rc<Connected>]) {
    servers.iter().for_each(|server| server.control_part.borrow_mut().hold());
}

/// Handles what was held.
fn hand_out(shared: &Shared, held: Option<Vec<Command>>) {
    match held {
        Some(commands) => commands.into_iter().for_each(|command| handle(shared, command)),
        None => {
            // Some are missing, as behind a connection that was lost.
            shared.events.control(vec![ControlEvent::Interrupted, ControlEvent::Listening]);
        }
    }
}

/// The process goes on: what was held is handled.
pub(super) fn resume(shared: &Shared, servers: &[Rc<Connected>]) {
    shared.control_fence.set(None);
    for server in servers {
        let held = server.control_part.borrow_mut().resume();
        hand_out(shared, held);
    }
}

/// A node's own messages are dropped: it has carried them out.
fn take(shared: &Shared, server: &Connected, payload: &[u8]) {
    let command = match Command::read(payload) {
        Ok(command) if command.uid == shared.settings.uid => return,
        Ok(command) => command,
        Err(error) => {
            Figures::add(&shared.figures.malformed, 1);
            if let Some(left_out) = MALFORMED.admit() {
                tracing::warn!(left_out, "redis: a message between nodes is malformed: {error}");
            }
            return;
        }
    };
    let part = &mut *server.control_part.borrow_mut();
    // States of nodes hold in both processes.
    let some = match (&part, &command.message) {
        (Part::Behind, Message::Node(_)) => vec![command],
        _ => part.admit(vec![command], |of| size_of::<Command>() + of.message.bytes()),
    };
    some.into_iter().for_each(|command| handle(shared, command));
}

fn handle(shared: &Shared, command: Command) {
    match command {
        Command { message: Message::Notification(of), .. } if of.op == ENTRIES_REMOVED => {
            tracing::warn!(
                "redis: other nodes took this one for dead and removed its presence entries; they are \
                 written again"
            );
            let homes = 0..shared.settings.homes;
            homes.for_each(|home| shared.events.take(home, vec![BrokerEvent::EntriesRemoved]));
        }
        command => shared.events.control(vec![ControlEvent::Message(Box::new(command))]),
    }
}
