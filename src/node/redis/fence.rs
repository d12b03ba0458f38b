//! The seam between two processes of one node in what Redis delivers to both.
//!
//! A *fence* is a message that the running node publishes on the names of its own connections when the new process
//! listens to all channels. Each connection has a counterpart in the other process, and Redis delivers to both in one
//! order: what comes before the fence is the running node's, and what comes behind it the new process's. So nothing
//! is lost or comes twice, also where publications have no offsets.
//!
//! The running node holds what comes while its shards settle, so that they do, and hands it out when the fence comes.
//! It holds what comes behind the fence, too: it may have to go on. In a Cluster without sharded PUB/SUB the
//! two connections may be to different nodes, which have no order in common; there offsets alone decide.

use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::pubsub::Wishes;
use super::queue::Queued;
use super::{Connected, Shared};
use crate::base::limits::BROKER_WAITING_BYTES_MAX;
use crate::cluster::operations::{Awaited, Request};
use crate::hub::broker::BrokerEvent;

/// The payload of a fence, before its key.
const PREFIX: &[u8] = b"fence ";

/// The payload of a fence.
fn payload(key: u64) -> Vec<u8> {
    [PREFIX, format!("{key:016x}").as_bytes()].concat()
}

/// The key of a fence; `None` for another message.
pub(super) fn key_of(payload: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(payload.strip_prefix(PREFIX)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

/// The part of a connection's messages that is this process's.
#[derive(Debug, Default)]
pub(super) enum Part<T> {
    /// All of them.
    #[default]
    All,
    /// Those behind a fence that has not come: earlier ones are dropped.
    Behind,
    /// Those before a fence. They are held until it comes, and later ones until it is clear whose they are.
    Before(Held<T>),
}

/// Messages that are held.
#[derive(Debug)]
pub(super) struct Held<T> {
    items: Vec<T>,
    bytes: usize,
    /// There was no room for all of them.
    is_over: bool,
    /// The fence has come: these are behind it.
    is_fenced: bool,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { items: Vec::new(), bytes: 0, is_over: false, is_fenced: false }
    }
}

impl<T> Held<T> {
    /// What was held; `None`: there was no room for all of it.
    fn into_items(self) -> Option<Vec<T>> {
        (!self.is_over).then_some(self.items)
    }
}

impl<T> Part<T> {
    /// The messages that are to be handled now, of some with their sizes.
    pub(super) fn admit(&mut self, some: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<T> {
        match self {
            Self::All => some,
            Self::Behind => Vec::new(),
            Self::Before(held) => {
                for item in some {
                    held.bytes += size(&item);
                    held.is_over |= held.bytes > BROKER_WAITING_BYTES_MAX;
                    if !held.is_over {
                        held.items.push(item);
                    }
                }
                Vec::new()
            }
        }
    }

    /// From now on messages are held.
    pub(super) fn hold(&mut self) {
        if matches!(self, Self::All) {
            *self = Self::Before(Held::default());
        }
    }

    /// The fence of the running node has come: what was held before it. `None`: there was no room for all of it.
    pub(super) fn divide(&mut self) -> Option<Vec<T>> {
        let fenced = Self::Before(Held { is_fenced: true, ..Held::default() });
        match std::mem::replace(self, fenced) {
            Self::Before(held) => held.into_items(),
            Self::All | Self::Behind => Some(Vec::new()),
        }
    }

    /// Its fence has not come.
    pub(super) fn awaits_fence(&self) -> bool {
        match self {
            Self::All => true,
            Self::Behind => false,
            Self::Before(held) => !held.is_fenced,
        }
    }

    /// The process goes on: what was held. `None`: there was no room for all of it.
    pub(super) fn resume(&mut self) -> Option<Vec<T>> {
        match std::mem::take(self) {
            Self::Before(held) => held.into_items(),
            other => {
                *self = other;
                Some(Vec::new())
            }
        }
    }
}

/// A fence that a home has had published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Awaits {
    key: u64,
    /// Connections that have not delivered it.
    connections: usize,
}

/// Publishes a fence on the names of all connections of a home.
pub(super) fn publish(shared: &Shared, servers: &[Rc<Connected>], home: usize, key: u64) {
    let names = &shared.settings.operations.names;
    let partitions = names.partitions();
    let connections = servers.len() * usize::from(partitions);
    shared.fences.borrow_mut().insert(home, Awaits { key, connections });
    for server in servers {
        for partition in 0..partitions {
            let name = names.probe_of(&shared.settings.uid, home, partition);
            let arguments = vec![name.into(), payload(key)];
            let request = Request::Plain { name: names.publish_command(), arguments };
            server.queue.push(Queued::new(home, request, Awaited::Nothing, 0));
        }
    }
}

/// The same on the names of the control connections.
pub(super) fn publish_control(shared: &Shared, servers: &[Rc<Connected>], key: u64) {
    shared.control_fence.set(Some(key));
    for server in servers {
        let name =
            shared.settings.operations.names.probe(&shared.settings.uid, shared.settings.homes);
        let arguments = vec![name.into(), payload(key)];
        let request = Request::Plain { name: "PUBLISH", arguments };
        server.queue.push(Queued::new(shared.settings.homes, request, Awaited::Nothing, 0));
    }
}

/// A connection of a home has delivered a fence.
pub(super) fn arrive(shared: &Shared, home: usize, key: u64, wishes: &Wishes) {
    let mut part = wishes.part.borrow_mut();
    if matches!(*part, Part::Behind) {
        if shared.joining.as_ref().is_some_and(|joining| joining.passes(key)) {
            *part = Part::All;
        }
        return;
    }
    let mut fences = shared.fences.borrow_mut();
    let awaits = fences.get_mut(&home).filter(|of| of.key == key && part.awaits_fence());
    let Some(awaits) = awaits else { return };
    awaits.connections = awaits.connections.saturating_sub(1);
    let mut events = part.divide().unwrap_or_else(|| wishes.begin_anew());
    if awaits.connections == 0 {
        events.push(BrokerEvent::Fenced { key });
    }
    if !events.is_empty() {
        shared.events.take(home, events);
    }
}

/// From now on nothing is delivered to a home.
pub(super) fn hold(shared: &Shared, servers: &[Rc<Connected>], home: usize) {
    for server in servers {
        for partition in 0..shared.settings.operations.names.partitions() {
            server.wishes_of(shared, home, partition).part.borrow_mut().hold();
        }
    }
}

/// The process goes on: homes get what was held.
pub(super) fn resume(shared: &Shared, servers: &[Rc<Connected>], home: usize) {
    shared.fences.borrow_mut().remove(&home);
    for server in servers {
        for partition in 0..shared.settings.operations.names.partitions() {
            let wishes = server.wishes_of(shared, home, partition);
            let held = wishes.part.borrow_mut().resume();
            let events = held.unwrap_or_else(|| wishes.begin_anew());
            if !events.is_empty() {
                shared.events.take(home, events);
            }
        }
    }
}

/// The connections of a process that takes over from another one, as its main thread sees them. That thread waits
/// for them: nothing else happens in the process meanwhile.
#[derive(Debug, Default)]
pub struct Joining {
    state: Mutex<JoiningState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct JoiningState {
    /// Names the attempt; 0: none is known yet.
    key: u64,
    /// Channels that are listened to.
    listening: usize,
    /// Connections without a fence.
    unfenced: usize,
    /// Homes get events from now on.
    is_open: bool,
    /// A connection was lost before its fence.
    is_lost: bool,
}

impl Joining {
    /// Connections whose fences are to come.
    pub(in crate::node) fn new(connections: usize) -> Self {
        let state = JoiningState { unfenced: connections, ..JoiningState::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, JoiningState> {
        // It is held for a few steps only, and a panic ends the process.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempt that this process belongs to.
    pub fn begin(&self, key: u64) {
        self.state().key = key;
    }

    /// Whether a home is to get an event.
    pub fn admits(&self, event: &BrokerEvent) -> bool {
        let mut state = self.state();
        match event {
            BrokerEvent::Listening { .. } => state.listening += 1,
            BrokerEvent::Interrupted { .. } | BrokerEvent::Lost => {
                state.listening = state.listening.saturating_sub(1);
                state.is_lost |= state.unfenced > 0;
            }
            _ => {}
        }
        self.changed.notify_all();
        state.is_open
    }

    /// A connection without a fence is lost.
    pub(in crate::node) fn lose(&self) {
        self.state().is_lost = true;
        self.changed.notify_all();
    }

    /// A fence has come by a connection. False: it is another attempt's.
    pub(in crate::node) fn passes(&self, key: u64) -> bool {
        let mut state = self.state();
        if state.key != key {
            return false;
        }
        state.unfenced = state.unfenced.saturating_sub(1);
        self.changed.notify_all();
        true
    }

    /// A connection was lost before its fence.
    pub(in crate::node) fn is_lost(&self) -> bool {
        self.state().is_lost
    }

    /// All fences have come, and nothing is different from now on.
    pub fn is_over(&self) -> bool {
        let state = self.state();
        state.is_open && state.unfenced == 0
    }

    /// Waits until so many channels are listened to. From then on homes get events.
    ///
    /// # Errors
    /// A connection was lost, or it takes too long.
    pub fn wait_for_channels(&self, count: usize, within: Duration) -> Result<(), String> {
        self.wait(within, |state| {
            let is_done = state.listening >= count;
            state.is_open |= is_done;
            is_done
        })
    }

    /// Waits until the fence has come by each connection.
    ///
    /// # Errors
    /// As [`Self::wait_for_channels`].
    pub fn wait_for_fences(&self, within: Duration) -> Result<(), String> {
        self.wait(within, |state| state.unfenced == 0)
    }

    #[expect(clippy::disallowed_methods, reason = "the bound of a wait for a server")]
    fn wait(
        &self,
        within: Duration,
        mut is_done: impl FnMut(&mut JoiningState) -> bool,
    ) -> Result<(), String> {
        let until = Instant::now() + within;
        let mut state = self.state();
        loop {
            if state.is_lost {
                return Err("a connection to the broker is lost".to_owned());
            }
            if is_done(&mut state) {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let JoiningState { listening, unfenced, .. } = *state;
                return Err(format!(
                    "the broker is too slow: {listening} channels are listened to, {unfenced} connections wait \
                     for a fence"
                ));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The part that connections of a process begin with.
pub(super) fn first_part<T>(joining: Option<&Arc<Joining>>) -> Part<T> {
    match joining {
        Some(_) => Part::Behind,
        None => Part::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_have_keys_and_other_messages_have_none() {
        assert_eq!(key_of(&payload(77)), Some(77));
        assert_eq!(key_of(&payload(u64::MAX)), Some(u64::MAX));
        for other in [&b"probe"[..], b"fence ", b"fence x", b"fence 10000000000000000", b"\xff"] {
            assert_eq!(key_of(other), None, "{other:?}");
        }
    }

    #[test]
    fn each_message_is_one_process_s() {
        let size = |_: &u8| 1;
        let mut all = Part::All;
        assert_eq!(all.admit(vec![1, 2], size), [1, 2]);
        let mut new = Part::Behind;
        assert!(new.admit(vec![1, 2], size).is_empty());
        assert_eq!(new.resume(), Some(Vec::new()), "it drops on until the fence comes");
        assert!(new.admit(vec![1, 2], size).is_empty());
        let mut old = Part::All;
        old.hold();
        assert!(old.admit(vec![3], size).is_empty() && old.awaits_fence());
        assert_eq!(old.divide(), Some(vec![3]), "before the fence");
        old.hold();
        assert!(old.admit(vec![4, 5], size).is_empty() && !old.awaits_fence());
        assert_eq!(old.resume(), Some(vec![4, 5]), "behind it");
        assert_eq!(old.admit(vec![6], size), [6]);
        assert_eq!(old.divide(), Some(vec![]), "nothing was held");
        let mut old = Part::Before(Held::default());
        assert!(old.admit(vec![3], |_| BROKER_WAITING_BYTES_MAX + 1).is_empty());
        assert!(old.admit(vec![4], size).is_empty());
        assert_eq!(old.resume(), None, "some are missing");
    }

    #[test]
    fn a_process_waits_for_channels_and_for_the_fences_of_its_attempt() {
        let joining = Joining::new(2);
        let (now, soon) = (Duration::ZERO, Duration::from_secs(30));
        let listening = || BrokerEvent::Listening { channel: "a".into() };
        joining.begin(7);
        assert!(!joining.admits(&listening()), "no home is there");
        assert!(joining.wait_for_channels(2, now).unwrap_err().contains("1 channels"));
        joining.admits(&listening());
        joining.wait_for_channels(2, soon).unwrap();
        assert!(joining.admits(&BrokerEvent::Connected));
        assert!(!joining.passes(6) && joining.passes(7) && !joining.is_over());
        assert!(joining.wait_for_fences(now).unwrap_err().contains("1 connections"));
        assert!(joining.passes(7) && joining.is_over());
        joining.wait_for_fences(now).unwrap();
        // From here on a lost connection is what it always is.
        assert!(joining.admits(&BrokerEvent::Lost));
        joining.wait_for_fences(now).unwrap();
        let joining = Joining::new(1);
        joining.admits(&BrokerEvent::Lost);
        assert!(joining.wait_for_channels(0, soon).unwrap_err().contains("lost"));
    }
}
