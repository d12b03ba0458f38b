//! Messages that came, as news for homes and for the control thread, until they are delivered together.

use std::sync::atomic::Ordering;

use async_nats::Message;
use async_nats::header::NATS_STREAM;

use super::fence::{Sign, Turn, digest};
use super::history;
use super::pending::{Group, Pending};
use super::receive::Source;
use super::refusals::{Fate, Refusals};
use super::requests::Answered;
use super::{ControlCommand, ControlEvent, Figures, Shared, payload};
use crate::base::heap::HeapBytes;
use crate::cluster::control::Message as ControlMessage;
use crate::cluster::entries::ENTRIES_REMOVED;
use crate::cluster::nats::payload::Message as Payload;
use crate::cluster::nats::streams::{Stored, text};
use crate::hub::broker::{BrokerEvent, Delivered, FailureCause};
use crate::hub::history::{Epoch, Position};
use crate::node::log_limit::LogLimit;

/// Lines about messages that can't be read: anybody at that server can send any number of them.
static MALFORMED: LogLimit = LogLimit::new();

/// Messages since the last delivery.
pub(super) struct News {
    homes: Vec<Vec<BrokerEvent>>,
    control: Vec<ControlEvent>,
    /// Signs of a takeover.
    signs: Vec<Sign>,
    messages: u64,
    /// The number of the newest probe that is back; 0: none.
    pub(super) probe: u64,
    /// A subscription has ended without being ended: the connection has.
    pub(super) has_ended: bool,
}

impl News {
    pub(super) fn new(homes: usize) -> Self {
        let homes = vec![Vec::new(); homes];
        let (control, signs) = (Vec::new(), Vec::new());
        Self { homes, control, signs, messages: 0, probe: 0, has_ended: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages == 0 && !self.has_ended
    }

    fn push(&mut self, home: impl Into<usize>, event: BrokerEvent) {
        self.homes[home.into()].push(event);
    }
}

/// A message has come.
pub(super) fn take(shared: &Shared, source: Source, message: Message) {
    let mut news = shared.news.borrow_mut();
    news.messages += 1;
    match source {
        Source::Channel(number) => news.take_message(shared, Some(number), &message),
        Source::All => news.take_message(shared, None, &message),
        Source::Control => news.take_control(shared, &message.payload),
        Source::Fences => news.signs.extend(Sign::read(&message.payload)),
        Source::Replies => news.take_reply(shared, message),
        Source::Probes => {
            let number = std::str::from_utf8(&message.payload).ok().and_then(|of| of.parse().ok());
            news.probe = news.probe.max(number.unwrap_or(0));
        }
    }
}

impl News {
    fn take_reply(&mut self, shared: &Shared, message: Message) {
        let answered = shared.requests.borrow_mut().take(message);
        if let Answered::Publication(publication, status, payload) = answered {
            let event = history::acknowledged(shared, &publication, (status, &payload));
            shared.bytes.fetch_sub(publication.cost, Ordering::Relaxed);
            shared.took(publication.since);
            self.push(publication.home, event);
        }
    }

    fn take_message(&mut self, shared: &Shared, number: Option<u64>, message: &Message) {
        let interests = shared.interests.borrow();
        let subjects = &shared.settings.subjects;
        let interest = match number {
            Some(number) => interests.get(number),
            None => subjects.channel_of(&message.subject).and_then(|name| interests.named(name)),
        };
        // One that nobody wishes, or not any more.
        let Some(interest) = interest else { return };
        let source = match interest.is_pattern {
            true => subjects.channel_of(&message.subject).map(Box::from),
            false => None,
        };
        let kept = place(shared, &interest.channel, message);
        let place = kept.as_ref().map(|(_, stored)| (stored.sequence, stored.last));
        let read = match subjects.is_raw() {
            true => Ok(Payload::Publication(None, payload::raw(&message.payload))),
            false => payload::read_at(&message.payload, place),
        };
        let channel = interest.channel.clone();
        let event = match read {
            Ok(Payload::Publication(epoch, mut entry)) => {
                entry.source = source;
                let epoch = kept.map(|(epoch, _)| epoch).or(epoch);
                BrokerEvent::Delivered(Box::new(Delivered { channel, epoch, entry }))
            }
            // Those of a channel are no news of a pattern.
            Ok(_) if interest.is_pattern => return,
            Ok(Payload::Join(info)) => BrokerEvent::Announced { channel, joined: true, info },
            Ok(Payload::Leave(info)) => BrokerEvent::Announced { channel, joined: false, info },
            Err(error) => {
                return malformed(shared, &format!("of channel {channel:?}"), &error.to_string());
            }
        };
        let seam = &mut shared.seams.borrow_mut()[usize::from(interest.home)];
        if seam.is_open() {
            self.push(interest.home, event);
        } else {
            let place = place.map_or(0, |(sequence, _)| sequence);
            let known = digest(&interest.channel, &message.subject, place, &message.payload);
            seam.add(known, event);
        }
    }

    /// A node's own messages are dropped: it has carried them out.
    fn take_control(&mut self, shared: &Shared, payload: &[u8]) {
        match ControlCommand::read(payload) {
            Ok(command) if command.uid == shared.settings.uid => {}
            Ok(command) => {
                let mut seam = shared.control_seam.borrow_mut();
                // States of nodes hold in both processes.
                if seam.is_open() || matches!(command.message, ControlMessage::Node(_)) {
                    self.hear(command);
                } else {
                    seam.add(digest("", "", 0, payload), command);
                }
            }
            Err(error) => malformed(shared, "between nodes", &error.to_string()),
        }
    }

    /// Sends all on.
    fn send(&mut self, shared: &Shared) {
        for (home, events) in self.homes.iter_mut().enumerate() {
            if !events.is_empty() {
                shared.events.take(home, std::mem::take(events));
            }
        }
        if !self.control.is_empty() {
            shared.events.control(std::mem::take(&mut self.control));
        }
    }

    /// Another node says something.
    fn hear(&mut self, command: ControlCommand) {
        match command {
            ControlCommand { message: ControlMessage::Notification(of), .. }
                if of.op == ENTRIES_REMOVED =>
            {
                tracing::warn!(
                    "nats: other nodes took this one for dead and removed its presence entries; they \
                     are written again"
                );
                self.homes.iter_mut().for_each(|home| home.push(BrokerEvent::EntriesRemoved));
            }
            command => self.control.push(between_nodes(command)),
        }
    }

    /// Messages of this turn that are this process's, in a takeover.
    fn divide(&mut self, shared: &Shared) {
        let signs = std::mem::take(&mut self.signs);
        let of = |home: usize| -> Vec<Sign> {
            let signs = signs.iter().filter(|sign| usize::from(sign.home) == home);
            signs.cloned().collect()
        };
        for home in shared.homes() {
            let size = |event: &BrokerEvent| size_of::<BrokerEvent>() + event.heap_bytes();
            let seam = &mut shared.seams.borrow_mut()[home];
            if seam.is_open() {
                continue;
            }
            let mut turn = seam.end_turn(home, &of(home), size);
            self.homes[home].append(&mut turn.own);
            if turn.is_over {
                shared.begin_anew(home, &mut self.homes[home]);
            }
            if let Some(key) = follow(shared, turn) {
                self.homes[home].push(BrokerEvent::Fenced { key });
            }
        }
        let behind = shared.settings.homes;
        let mut seam = shared.control_seam.borrow_mut();
        if !seam.is_open() {
            let mut turn = seam.end_turn(behind, &of(behind), |of| of.message.bytes());
            std::mem::take(&mut turn.own).into_iter().for_each(|command| self.hear(command));
            if turn.is_over {
                self.control.extend([ControlEvent::Interrupted, ControlEvent::Listening]);
            }
            if let Some(key) = follow(shared, turn) {
                self.control.push(ControlEvent::Fenced { key });
            }
        }
    }

    /// The server has carried out a group of commands.
    fn settle(&mut self, shared: &Shared, group: Group, refusals: &Refusals) {
        shared.bytes.fetch_sub(group.cost, Ordering::Relaxed);
        let subjects = &shared.settings.subjects;
        let fate = |channel: &str| refusals.fate(group.number, || subjects.messages(channel));
        for pending in group.all {
            match pending {
                Pending::Listening { numbers, is_alone, done } => {
                    if refusals.is_at_limit(group.number) && !is_alone {
                        shared.is_at_limit.set(true);
                    }
                    let fate = |channel: &str| {
                        let subject = || subjects.messages(channel);
                        refusals.fate_of_subscription(group.number, is_alone, subject)
                    };
                    let mut are_made = true;
                    for number in numbers {
                        are_made &= self.listening(shared, number, fate);
                    }
                    // The next channels are subscribed.
                    let _ = done.send(are_made);
                }
                Pending::ListeningToAll => {
                    let mut interests = shared.interests.borrow_mut();
                    interests.confirm_all(|home, event| self.push(home, event));
                }
                Pending::Published { home, ticket, channel, since } => {
                    shared.took(since);
                    let position = Position { offset: 0, epoch: None };
                    let failed = |cause| BrokerEvent::Failed { ticket, cause };
                    let event = match fate(&channel) {
                        Fate::Done => BrokerEvent::Published { ticket, position },
                        Fate::Refused => failed(FailureCause::Unsupported),
                        Fate::InDoubt => failed(FailureCause::Unavailable),
                    };
                    self.push(home, event);
                }
                Pending::Control { ticket } => {
                    self.control.push(ControlEvent::Sent { ticket, is_sent: true });
                }
                Pending::ControlListening => {
                    shared.with_output(|output| output.is_control_on = true);
                    self.control.push(ControlEvent::Listening);
                }
            }
        }
    }

    /// A subscription is carried out. False if the server may have refused it.
    fn listening(&mut self, shared: &Shared, number: u64, fate: impl Fn(&str) -> Fate) -> bool {
        let mut interests = shared.interests.borrow_mut();
        let fate = interests.get(number).map(|interest| fate(&interest.channel));
        match fate {
            None => {}
            // It stays without an answer until it is made, and its subscribers get an error.
            Some(Fate::Refused) => interests.refuse(number),
            Some(Fate::InDoubt) => {
                interests.again(number);
                shared.wanted.notify_one();
            }
            Some(Fate::Done) => {
                if let Some(interest) = interests.confirm(number) {
                    let channel = interest.channel.clone();
                    self.push(interest.home, BrokerEvent::Listening { channel });
                }
            }
        }
        matches!(fate, None | Some(Fate::Done))
    }
}

/// What follows from a turn beside messages. The key of a fence that has come.
fn follow<T>(shared: &Shared, turn: Turn<T>) -> Option<u64> {
    if let Some(joining) = &shared.joining {
        if turn.is_lost {
            joining.lose();
        }
        turn.passed.map(|key| joining.passes(key));
    }
    let (key, signs) = turn.fenced?;
    signs.iter().for_each(|sign| shared.send_sign(sign));
    Some(key)
}

/// News of another node.
pub(super) fn between_nodes(command: ControlCommand) -> ControlEvent {
    ControlEvent::Message(Box::new(command))
}

/// The process goes on: messages between nodes that were held.
pub(super) fn hand_out(shared: &Shared, held: Vec<ControlCommand>, is_over: bool) {
    let mut news = shared.news.borrow_mut();
    held.into_iter().for_each(|command| news.hear(command));
    if is_over {
        news.control.extend([ControlEvent::Interrupted, ControlEvent::Listening]);
    }
    news.send(shared);
}

/// Answers what the server has carried out, as the newest probe shows, and delivers all that came. `looks` is called
/// before, when it is known which channels are subscribed.
pub(super) fn deliver(shared: &Shared, looks: impl FnOnce()) {
    let mut news = shared.news.borrow_mut();
    let probe = news.probe;
    let refusals = shared.with_output(|output| std::mem::take(&mut output.refusals));
    let mut refusals = refusals.unwrap_or_default();
    while let Some(group) = shared.with_output(|output| output.groups.answered(probe)).flatten() {
        shared.is_late.set(false);
        news.settle(shared, group, &refusals);
    }
    refusals.forget(probe);
    shared.with_output(|output| output.refusals = refusals);
    news.divide(shared);
    looks();
    let messages = std::mem::take(&mut news.messages);
    shared.handle(messages);
    Figures::add(&shared.figures.messages, messages);
    news.send(shared);
}

/// The place of a republished message in the stream of its channel.
fn place(shared: &Shared, channel: &str, message: &Message) -> Option<(Epoch, Stored)> {
    let streams = shared.streams()?;
    let headers = message.headers.as_ref()?;
    let stored = Stored::read(headers)?;
    let stream = streams.of(channel)?;
    if text(headers, NATS_STREAM) != Some(&streams.all[stream].name) {
        return None;
    }
    shared.lives.seen(stream, stored.sequence);
    Some((shared.lives.epoch(stream)?, stored))
}

fn malformed(shared: &Shared, which: &str, error: &str) {
    Figures::add(&shared.figures.malformed, 1);
    if let Some(left_out) = MALFORMED.admit() {
        tracing::warn!(left_out, "nats: a message {which} is malformed: {error}");
    }
}
