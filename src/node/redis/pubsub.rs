//! The PUB/SUB connection of a home to a server: it listens to the channels that the home wishes.
//!
//! A channel is subscribed or not, or its SUBSCRIBE or UNSUBSCRIBE is under way. Only one of them is under
//! way for a channel, so that their order does not matter; a wish that changes meanwhile is carried out
//! afterwards. Names go in commands of 512: one by one they would cost Redis ten times as much.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use compact_str::CompactString;
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use hashbrown::HashMap;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::commands::probe;
use super::fence::{self, Part};
use super::reconnect::stay_connected;
use super::wire::{Message, Messages, Subscriptions, Unreachable};
use super::{Connected, Shared};
use crate::base::heap::HeapBytes as _;
use crate::hub::broker::BrokerEvent;
use crate::node::broker_threads::Figures;
use crate::node::log_limit::LogLimit;

/// Names in one command.
const NAMES_MAX: usize = 512;

/// Commands under way at most.
const WINDOW: usize = 16;

/// Messages handled before commands have their turn.
const MESSAGES_MAX: usize = 1_024;

/// Lines about messages that can't be read: anybody on that Redis can send any number of them.
static MALFORMED: LogLimit = LogLimit::new();

/// The channels that a home wishes to listen to at a server.
#[derive(Default)]
pub(super) struct Wishes {
    state: RefCell<State>,
    changed: Notify,
    /// The part of the messages that is this process's.
    pub(super) part: RefCell<Part<BrokerEvent>>,
}

#[derive(Default)]
struct State {
    channels: HashMap<CompactString, Channel, foldhash::fast::RandomState>,
    /// Channels whose state differs from the wish.
    different: VecDeque<CompactString>,
    /// Those that are wished and not subscribed.
    missing: usize,
    /// The home has forgotten all.
    forgotten: bool,
}

#[derive(Clone, Copy)]
struct Channel {
    wished: bool,
    actual: Actual,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Actual {
    Off,
    Changing,
    On,
}

/// Commands of a turn.
#[derive(Default)]
struct Turn {
    subscribe: Vec<CompactString>,
    unsubscribe: Vec<CompactString>,
}

impl Wishes {
    /// No wishes of a connection whose messages are this process's in part.
    pub(super) fn with(part: Part<BrokerEvent>) -> Self {
        Self { part: RefCell::new(part), ..Self::default() }
    }

    /// Messages are missing: the channels that are delivered begin anew.
    pub(super) fn begin_anew(&self) -> Vec<BrokerEvent> {
        let state = self.state.borrow();
        let delivered = state.channels.iter().filter(|(_, known)| known.actual == Actual::On);
        let both = delivered.flat_map(|(channel, _)| {
            let interrupted = BrokerEvent::Interrupted { channel: channel.clone() };
            [interrupted, BrokerEvent::Listening { channel: channel.clone() }]
        });
        both.collect()
    }

    /// A home wishes to listen. Where it does already, it hears so again.
    pub(super) fn listen(&self, channel: CompactString) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let new = Channel { wished: false, actual: Actual::Off };
        let known = state.channels.entry(channel.clone()).or_insert(new);
        if !known.wished && known.actual != Actual::On {
            state.missing += 1;
        }
        known.wished = true;
        if known.actual != Actual::Changing {
            state.different.push_back(channel);
        }
        self.changed.notify_one();
    }

    /// A home wishes it no more.
    pub(super) fn unlisten(&self, channel: &str) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(known) = state.channels.get_mut(channel) else { return };
        if known.wished && known.actual != Actual::On {
            state.missing -= 1;
        }
        known.wished = false;
        match known.actual {
            Actual::On => state.different.push_back(channel.into()),
            Actual::Off => drop(state.channels.remove(channel)),
            Actual::Changing => {}
        }
        self.changed.notify_one();
    }

    /// The home forgets all, since the broker is lost to it.
    pub(super) fn forget(&self) {
        *self.state.borrow_mut() = State { forgotten: true, ..State::default() };
        self.changed.notify_one();
    }

    /// The next names to subscribe and to unsubscribe; channels that are subscribed already are reported.
    fn turn(&self, subscribed: &mut Vec<BrokerEvent>) -> Turn {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut turn = Turn::default();
        while turn.subscribe.len() < NAMES_MAX && turn.unsubscribe.len() < NAMES_MAX {
            let Some(channel) = state.different.pop_front() else {
                // After a lost connection all channels were here.
                state.different.shrink_to(NAMES_MAX);
                break;
            };
            let Some(known) = state.channels.get_mut(&channel) else { continue };
            match (known.wished, known.actual) {
                (true, Actual::Off) => {
                    known.actual = Actual::Changing;
                    turn.subscribe.push(channel);
                }
                (true, Actual::On) => subscribed.push(BrokerEvent::Listening { channel }),
                (false, Actual::On) => {
                    known.actual = Actual::Changing;
                    turn.unsubscribe.push(channel);
                }
                (false, Actual::Off) => drop(state.channels.remove(&channel)),
                // It is looked at again when that is done.
                (_, Actual::Changing) => {}
            }
        }
        turn
    }

    /// A SUBSCRIBE or UNSUBSCRIBE is carried out.
    fn done(&self, channels: Vec<CompactString>, is_on: bool, events: &mut Vec<BrokerEvent>) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        for channel in channels {
            let Some(known) = state.channels.get_mut(&channel) else { continue };
            known.actual = if is_on { Actual::On } else { Actual::Off };
            match (known.wished, is_on) {
                (true, true) => {
                    state.missing = state.missing.saturating_sub(1);
                    events.push(BrokerEvent::Listening { channel });
                }
                (false, false) => drop(state.channels.remove(&channel)),
                _ => state.different.push_back(channel),
            }
        }
    }

    /// The connection is lost: what was subscribed is interrupted, and all wishes wait for the next one.
    fn interrupt(&self) -> Vec<BrokerEvent> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.channels.retain(|_, channel| channel.wished);
        let interrupted = state.channels.iter().filter(|(_, known)| known.actual == Actual::On);
        let channel =
            |channel: &CompactString| BrokerEvent::Interrupted { channel: channel.clone() };
        let events = interrupted.map(|(name, _)| channel(name)).collect();
        state.channels.values_mut().for_each(|channel| channel.actual = Actual::Off);
        state.different = state.channels.keys().cloned().collect();
        state.missing = state.channels.len();
        events
    }

    fn missing(&self) -> usize {
        self.state.borrow().missing
    }

    fn take_forgotten(&self) -> bool {
        std::mem::take(&mut self.state.borrow_mut().forgotten)
    }
}

/// The use of a PUB/SUB connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The number of the server.
    pub server: usize,
    /// The partition of its channels; 0 where they have none.
    pub partition: u16,
    /// Whose wishes it carries out.
    pub home: usize,
}

/// Keeps a connection until the process ends.
pub(super) async fn run(
    shared: Rc<Shared>,
    server: Rc<Connected>,
    place: Place,
    wishes: Rc<Wishes>,
) {
    let settings = shared.settings.clone();
    let Place { server: at, partition, home } = place;
    let names = &settings.operations.names;
    let probe_name = names.probe_of(&settings.uid, home, partition);
    let name = match names.is_sharded() {
        true => format!("PUB/SUB connection of home {home} for partition {partition}"),
        false => format!("PUB/SUB connection of home {home}"),
    };
    let owned = names.is_sharded().then_some(&*probe_name);
    let number = at * usize::from(names.partitions()) + usize::from(partition);
    let serve = async |subscriptions, messages| {
        Figures::add(&shared.figures.pubsub_connects, 1);
        let mut connection = Connection {
            shared: &shared,
            number,
            server: &server,
            wishes: &wishes,
            home,
            probe_name: &probe_name,
            heard: Instant::now(),
            resubscribing: Some(Instant::now()),
        };
        connection.hear();
        let error = connection.serve(subscriptions, messages).await;
        if connection.resubscribing.is_none() {
            Figures::add(&shared.figures.resubscribing, 1);
        }
        let events = wishes.interrupt();
        if matches!(*wishes.part.borrow(), Part::Behind)
            && let Some(joining) = &shared.joining
        {
            // Its fence may be lost with it.
            joining.lose();
        }
        if !events.is_empty() {
            shared.events.take(home, events);
        }
        error
    };
    stay_connected(&shared, (at, &server), owned, &name, serve).await;
}

struct Connection<'a> {
    shared: &'a Shared,
    /// The number of its server and partition.
    number: usize,
    server: &'a Connected,
    wishes: &'a Wishes,
    home: usize,
    probe_name: &'a str,
    /// When something came last.
    heard: Instant,
    /// When the connection began, until all wishes are carried out.
    resubscribing: Option<Instant>,
}

type Changed = (Vec<CompactString>, bool, Result<(), Unreachable>);

impl Connection<'_> {
    /// Something came.
    fn hear(&mut self) {
        self.heard = Instant::now();
        self.shared.figures.heard(self.number, self.home, self.shared.settings.homes);
    }

    /// Listens until the connection fails: why.
    async fn serve(&mut self, subscriptions: Subscriptions, messages: Messages) -> Unreachable {
        let probe_interval = self.shared.settings.probe_interval;
        if let Err(error) = subscriptions.subscribe(vec![self.probe_name.to_owned()]).await {
            return error;
        }
        let mut changes: FuturesUnordered<LocalBoxFuture<'_, Changed>> = FuturesUnordered::new();
        let mut messages = messages.ready_chunks(MESSAGES_MAX);
        let mut probes = interval(probe_interval);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unanswered = 0;
        loop {
            self.change(&subscriptions, &changes);
            tokio::select! {
                some = messages.next() => {
                    let Some(some) = some else { return messages.get_ref().end() };
                    if self.take(some) {
                        unanswered = 0;
                    }
                }
                Some((channels, is_on, result)) = changes.next() => {
                    if let Err(error) = result {
                        return error;
                    }
                    let mut events = Vec::new();
                    self.wishes.done(channels, is_on, &mut events);
                    self.report(events);
                }
                () = self.wishes.changed.notified() => {
                    if self.wishes.take_forgotten() {
                        return Unreachable::Forgotten;
                    }
                }
                _ = probes.tick() => {
                    if unanswered >= 2 && self.heard.elapsed() > probe_interval {
                        Figures::add(&self.shared.figures.probes_missed, 1);
                        return Unreachable::Silent;
                    }
                    let command = self.shared.settings.operations.names.publish_command();
                    let probe = probe(self.server, self.home, (command, self.probe_name));
                    unanswered += usize::from(probe);
                }
            }
        }
    }

    /// Begins what has to change, as far as there is room for it.
    fn change<'s>(
        &mut self,
        subscriptions: &'s Subscriptions,
        changes: &FuturesUnordered<LocalBoxFuture<'s, Changed>>,
    ) {
        let names = &self.shared.settings.operations.names;
        let of = |channels: &[CompactString]| -> Vec<String> {
            channels.iter().map(|channel| names.messages(channel)).collect()
        };
        while changes.len() < WINDOW {
            let mut events = Vec::new();
            let Turn { subscribe, unsubscribe } = self.wishes.turn(&mut events);
            let is_done = events.is_empty() && subscribe.is_empty() && unsubscribe.is_empty();
            self.report(events);
            if is_done {
                break;
            }
            if !subscribe.is_empty() {
                let all = of(&subscribe);
                changes.push(Box::pin(async move {
                    (subscribe, true, subscriptions.subscribe(all).await)
                }));
            }
            if !unsubscribe.is_empty() {
                let all = of(&unsubscribe);
                changes.push(Box::pin(async move {
                    (unsubscribe, false, subscriptions.unsubscribe(all).await)
                }));
            }
        }
        if self.wishes.missing() == 0
            && let Some(began) = self.resubscribing.take()
        {
            let took = began.elapsed().as_millis() as u64;
            self.shared.figures.resubscribe_ms.store(took, Ordering::Relaxed);
            self.shared.figures.resubscribing.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Delivers messages. True if the connection has shown that they come.
    fn take(&mut self, messages: Vec<Message>) -> bool {
        let operations = &self.shared.settings.operations;
        self.hear();
        self.shared.handle(messages.len());
        Figures::add(&self.shared.figures.messages, messages.len() as u64);
        let mut events = Vec::with_capacity(messages.len());
        let mut has_probe = false;
        for message in messages {
            if message.name() == self.probe_name.as_bytes() {
                has_probe = true;
                if let Some(key) = fence::key_of(message.payload()) {
                    self.deliver(std::mem::take(&mut events));
                    fence::arrive(self.shared, self.home, key, self.wishes);
                }
                continue;
            }
            let Some(channel) = operations.names.channel_of(message.name()) else { continue };
            match operations.message(channel, message.payload()) {
                Ok(event) => events.push(event),
                Err(error) => {
                    Figures::add(&self.shared.figures.malformed, 1);
                    if let Some(left_out) = MALFORMED.admit() {
                        tracing::warn!(
                            left_out,
                            "redis: a message of channel {channel:?} is malformed: {error}"
                        );
                    }
                }
            }
        }
        self.deliver(events);
        has_probe
    }

    /// Hands out what has come, as far as it is this process's.
    fn deliver(&self, events: Vec<BrokerEvent>) {
        let size = |event: &BrokerEvent| size_of::<BrokerEvent>() + event.heap_bytes();
        let events = self.wishes.part.borrow_mut().admit(events, size);
        self.report(events);
    }

    fn report(&self, events: Vec<BrokerEvent>) {
        if !events.is_empty() {
            self.shared.events.take(self.home, events);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(events: &[BrokerEvent]) -> Vec<&str> {
        let mut channels = Vec::new();
        for event in events {
            let BrokerEvent::Listening { channel } = event else { panic!("{event:?}") };
            channels.push(channel.as_str());
        }
        channels
    }

    #[test]
    fn a_wish_that_changes_under_way_is_carried_out_afterwards() {
        let (wishes, mut events) = (Wishes::default(), Vec::new());
        wishes.listen("a".into());
        assert_eq!(wishes.missing(), 1);
        let turn = wishes.turn(&mut events);
        assert_eq!(turn.subscribe, ["a"]);
        wishes.unlisten("a");
        assert!(wishes.turn(&mut events).unsubscribe.is_empty(), "SUBSCRIBE is under way");
        wishes.done(turn.subscribe, true, &mut events);
        assert!(events.is_empty(), "nobody wishes it any more");
        let turn = wishes.turn(&mut events);
        assert_eq!(turn.unsubscribe, ["a"]);
        wishes.listen("a".into());
        wishes.done(turn.unsubscribe, false, &mut events);
        let turn = wishes.turn(&mut events);
        assert_eq!(turn.subscribe, ["a"]);
        wishes.done(turn.subscribe, true, &mut events);
        assert_eq!(listening(&events), ["a"]);
        assert_eq!(wishes.missing(), 0);
    }

    #[test]
    fn names_go_in_bounded_commands() {
        let (wishes, mut events) = (Wishes::default(), Vec::new());
        (0..1_300).for_each(|number| wishes.listen(format!("c{number}").into()));
        let sizes: Vec<usize> = (0..4).map(|_| wishes.turn(&mut events).subscribe.len()).collect();
        assert_eq!(sizes, [512, 512, 276, 0]);
    }

    #[test]
    fn a_lost_connection_interrupts_and_keeps_the_wishes() {
        let (wishes, mut events) = (Wishes::default(), Vec::new());
        ["a", "b", "c"].iter().for_each(|channel| wishes.listen((*channel).into()));
        let turn = wishes.turn(&mut events);
        wishes.done(turn.subscribe, true, &mut events);
        wishes.listen("under way".into());
        wishes.turn(&mut events);
        wishes.unlisten("c");
        let interrupted = wishes.interrupt();
        assert_eq!(interrupted.len(), 2, "{interrupted:?}");
        let mut again = wishes.turn(&mut events).subscribe;
        again.sort();
        assert_eq!(again, ["a", "b", "under way"]);
    }

    #[test]
    fn a_second_wish_is_answered_at_once_and_forgetting_drops_all() {
        let (wishes, mut events) = (Wishes::default(), Vec::new());
        wishes.listen("a".into());
        let turn = wishes.turn(&mut events);
        wishes.done(turn.subscribe, true, &mut events);
        events.clear();
        wishes.listen("a".into());
        assert!(wishes.turn(&mut events).subscribe.is_empty());
        assert_eq!(listening(&events), ["a"]);
        wishes.forget();
        assert!(wishes.take_forgotten() && !wishes.take_forgotten());
        assert!(wishes.interrupt().is_empty());
    }
}
