//! A connection at work: what is written, and what comes.
//!
//! Reading never waits for homes, so a server has no reason to cut this connection off as a slow consumer. If it
//! does so anyway, that is counted, and the connection is made anew: channels with history are read again.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::history;
use super::pending::{Group, Groups, Pending};
use super::requests::Answered;
use super::wire::{Link, Stream, Unreachable};
use super::{ControlCommand, ControlEvent, Figures, Shared, payload};
use crate::cluster::control::Message as ControlMessage;
use crate::cluster::entries::ENTRIES_REMOVED;
use crate::cluster::nats::payload::Message as Payload;
use crate::cluster::nats::protocol::{self, Message, Op};
use crate::cluster::nats::streams::Stored;
use crate::hub::broker::{BrokerEvent, Delivered, FailureCause};
use crate::hub::history::{Epoch, Position};
use crate::node::log_limit::LogLimit;

/// Subscriptions of the thread itself: messages to all nodes, and to this one.
pub(super) const CONTROL: u64 = 1;
pub(super) const NODE: u64 = 2;
/// And replies to its requests.
pub(super) const INBOX: u64 = 3;

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;

/// Commands that one `PING` answers: of many, as when all channels are subscribed anew, the first ones are
/// answered soon.
const GROUP_BYTES: usize = 64 << 10;

/// How often the age of the oldest `PING` is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Lines about messages that can't be read: anybody at that server can send any number of them.
static MALFORMED: LogLimit = LogLimit::new();

/// Lines about errors of the server.
static ERRORS: LogLimit = LogLimit::new();

/// What is to be written, and what is answered.
pub(super) struct Output {
    bytes: Vec<u8>,
    /// Where the commands begin that have no `PING` behind them.
    group_at: usize,
    pub(super) groups: Groups,
    /// Bytes of a message that the server takes at most.
    payload_max: usize,
    /// Subjects that the server has refused since the last `PONG`.
    refused: HashSet<String>,
    /// Messages of other nodes come.
    pub(super) is_control_on: bool,
}

impl Output {
    pub(super) fn new(payload_max: u64) -> Self {
        Self {
            bytes: Vec::new(),
            group_at: 0,
            groups: Groups::default(),
            payload_max: usize::try_from(payload_max).unwrap_or(usize::MAX),
            refused: HashSet::new(),
            is_control_on: false,
        }
    }

    pub(super) fn subscribe(&mut self, subject: &str, sid: u64) {
        self.subscribe_own(subject, sid);
        self.groups.add(Pending::Listening { sid });
        self.bound_group();
    }

    /// A subscription of the thread itself.
    pub(super) fn subscribe_own(&mut self, subject: &str, sid: u64) {
        protocol::put_subscribe(&mut self.bytes, subject, sid);
    }

    pub(super) fn unsubscribe(&mut self, sid: u64) {
        protocol::put_unsubscribe(&mut self.bytes, sid);
    }

    /// False: the server would end the connection, since the payload is too long.
    pub(super) fn publish(
        &mut self,
        subject: &str,
        payload: &[u8],
        pending: Option<Pending>,
    ) -> bool {
        if payload.len() > self.payload_max {
            return false;
        }
        protocol::put_publish(&mut self.bytes, subject, payload);
        pending.into_iter().for_each(|pending| self.groups.add(pending));
        self.bound_group();
        true
    }

    /// The same with a subject for replies.
    pub(super) fn request(
        &mut self,
        subject: &str,
        reply: &str,
        headers: &[(&str, &str)],
        payload: &[u8],
    ) -> bool {
        let of_headers: usize =
            headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        if payload.len() + of_headers + HEADER_BYTES > self.payload_max {
            return false;
        }
        protocol::put_request(&mut self.bytes, subject, reply, headers, payload);
        true
    }

    fn bound_group(&mut self) {
        if self.bytes.len() - self.group_at > GROUP_BYTES {
            self.end_group();
        }
    }

    fn end_group(&mut self) {
        if self.groups.end(Instant::now()) {
            self.bytes.extend_from_slice(b"PING\r\n");
        }
        self.group_at = self.bytes.len();
    }

    /// The bytes to write next.
    fn take(&mut self) -> Vec<u8> {
        self.end_group();
        self.group_at = 0;
        std::mem::take(&mut self.bytes)
    }
}

/// Serves until the connection ends: why.
pub(super) async fn serve(shared: &Rc<Shared>, link: Link) -> Unreachable {
    let Link { stream, input, .. } = link;
    let (reads, writes) = tokio::io::split(stream);
    let began = Instant::now();
    shared.figures.heard(shared.at, 0, 1);
    let mut resubscribing = Resubscribing { shared, since: Some(began) };
    tokio::select! {
        error = read(shared, reads, input, &mut resubscribing) => error,
        error = write(shared, writes) => error,
        error = watch(shared) => error,
        error = history::look_after(shared) => error,
    }
}

/// The figure of channels that are not all delivered yet.
struct Resubscribing<'a> {
    shared: &'a Shared,
    since: Option<Instant>,
}

impl Resubscribing<'_> {
    fn look(&mut self) {
        if self.shared.interests.borrow().missing() == 0
            && let Some(since) = self.since.take()
        {
            let figures = &self.shared.figures;
            figures.resubscribe_ms.store(since.elapsed().as_millis() as u64, Ordering::Relaxed);
            figures.resubscribing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Resubscribing<'_> {
    fn drop(&mut self) {
        if self.since.is_none() {
            Figures::add(&self.shared.figures.resubscribing, 1);
        }
    }
}

async fn write(shared: &Shared, mut writes: WriteHalf<Box<dyn Stream>>) -> Unreachable {
    loop {
        let bytes = shared.output.borrow_mut().as_mut().map(Output::take).unwrap_or_default();
        if bytes.is_empty() {
            shared.written.notified().await;
            continue;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match timeout(shared.settings.write_timeout, writes.write(rest)).await {
                Ok(Ok(0)) => return Unreachable::Closed,
                Ok(Ok(count)) => rest = &rest[count..],
                Ok(Err(error)) => return error.into(),
                Err(_) => return Unreachable::Timeout,
            }
        }
        match timeout(shared.settings.write_timeout, writes.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return Unreachable::Timeout,
        }
    }
}

/// Sends probes, and ends when the server answers none.
async fn watch(shared: &Shared) -> Unreachable {
    let probe_interval = shared.settings.probe_interval;
    let mut looks = interval(LOOK.min(probe_interval / 2));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut probed = Instant::now();
    loop {
        looks.tick().await;
        if probed.elapsed() >= probe_interval {
            probed = Instant::now();
            shared.with_output(|output| output.groups.probe());
        }
        let oldest = shared.output.borrow().as_ref().and_then(|output| output.groups.oldest());
        let age = oldest.map_or(Duration::ZERO, |since| since.elapsed());
        if age > 2 * probe_interval {
            Figures::add(&shared.figures.probes_missed, 1);
            return Unreachable::Silent;
        }
        let late = shared.requests.borrow_mut().expire(false);
        shared.fail(late, |home, event| shared.events.take(home, vec![event]));
        if age > probe_interval && !shared.is_late.replace(true) {
            tracing::warn!("nats: the server answers late: commands fail until it has");
        }
    }
}

async fn read(
    shared: &Shared,
    mut reads: ReadHalf<Box<dyn Stream>>,
    mut input: BytesMut,
    resubscribing: &mut Resubscribing<'_>,
) -> Unreachable {
    let mut news = News::new(shared);
    let mut last_error = None;
    loop {
        loop {
            let (op, taken) = match protocol::next(&input) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(error) => return error.into(),
            };
            news.take(op, &mut last_error);
            input.advance(taken);
        }
        news.deliver();
        resubscribing.look();
        input.reserve(READ_BYTES);
        match reads.read_buf(&mut input).await {
            Ok(0) => return last_error.take().map_or(Unreachable::Closed, Unreachable::Refused),
            Ok(_) => shared.figures.heard(shared.at, 0, 1),
            Err(error) => return error.into(),
        }
        // Other tasks have their turn between two reads.
        tokio::task::yield_now().await;
    }
}

/// News of one read, until they are delivered together.
struct News<'a> {
    shared: &'a Shared,
    homes: Vec<Vec<BrokerEvent>>,
    control: Vec<ControlEvent>,
    messages: u64,
}

impl<'a> News<'a> {
    fn new(shared: &'a Shared) -> Self {
        let homes = vec![Vec::new(); shared.settings.homes];
        Self { shared, homes, control: Vec::new(), messages: 0 }
    }

    fn take(&mut self, op: Op<'_>, last_error: &mut Option<String>) {
        match op {
            Op::Message(message) => {
                self.messages += 1;
                match message.sid {
                    CONTROL | NODE => self.take_control(message.payload),
                    INBOX => self.take_reply(&message),
                    _ => self.take_message(message),
                }
            }
            Op::Pong => {
                let group = self.shared.with_output(|output| output.groups.pong()).flatten();
                if let Some(group) = group {
                    self.shared.is_late.set(false);
                    self.settle(group);
                }
            }
            Op::Ping => {
                self.shared.with_output(|output| output.bytes.extend_from_slice(b"PONG\r\n"));
            }
            Op::Error(text) => {
                self.take_error(text);
                *last_error = Some(text.to_owned());
            }
            Op::Info(_) | Op::Ok => {}
        }
    }

    fn take_reply(&mut self, message: &Message<'_>) {
        let answered = self.shared.requests.borrow_mut().take(message);
        if let Answered::Publication(publication) = answered {
            let status = message.headers.status();
            let event = history::acknowledged(self.shared, &publication, (status, message.payload));
            self.shared.bytes.fetch_sub(publication.cost, Ordering::Relaxed);
            let took = u32::try_from(publication.since.elapsed().as_micros()).unwrap_or(u32::MAX);
            self.shared.figures.latency[self.shared.at].record(took);
            self.homes[publication.home].push(event);
        }
    }

    fn take_message(&mut self, message: Message<'_>) {
        let interests = self.shared.interests.borrow();
        // One that nobody wishes any more.
        let Some(interest) = interests.get(message.sid) else { return };
        let subjects = &self.shared.settings.subjects;
        let is_pattern =
            subjects.rules().wildcards && subjects.rules().is_pattern(&interest.channel);
        let source =
            is_pattern.then(|| subjects.channel_of(message.subject).map(Box::from)).flatten();
        let kept = self.place(&interest.channel, &message);
        let place = kept.as_ref().map(|(_, stored)| (stored.sequence, stored.last));
        let read = match subjects.is_raw() {
            true => Ok(Payload::Publication(None, payload::raw(message.payload))),
            false => payload::read_at(message.payload, place),
        };
        let channel = interest.channel.clone();
        let event = match read {
            Ok(Payload::Publication(epoch, mut entry)) => {
                entry.source = source;
                let epoch = kept.map(|(epoch, _)| epoch).or(epoch);
                BrokerEvent::Delivered(Box::new(Delivered { channel, epoch, entry }))
            }
            // Those of a channel are no news of a pattern.
            Ok(_) if is_pattern => return,
            Ok(Payload::Join(info)) => BrokerEvent::Announced { channel, joined: true, info },
            Ok(Payload::Leave(info)) => BrokerEvent::Announced { channel, joined: false, info },
            Err(error) => {
                return self.malformed(&format!("of channel {channel:?}"), &error.to_string());
            }
        };
        self.homes[usize::from(interest.home)].push(event);
    }

    /// The place of a republished message in the stream of its channel.
    fn place(&self, channel: &str, message: &Message<'_>) -> Option<(Epoch, Stored)> {
        let streams = self.shared.settings.streams.as_ref()?;
        let stored = Stored::read(&message.headers)?;
        let stream = streams.of(channel)?;
        if message.headers.get("Nats-Stream") != Some(&streams.all[stream].name) {
            return None;
        }
        self.shared.lives.seen(stream, stored.sequence);
        Some((self.shared.lives.epoch(stream)?, stored))
    }

    /// A node's own messages are dropped: it has carried them out.
    fn take_control(&mut self, payload: &[u8]) {
        match ControlCommand::read(payload) {
            Ok(command) if command.uid == self.shared.settings.uid => {}
            Ok(ControlCommand { message: ControlMessage::Notification(of), .. })
                if of.op == ENTRIES_REMOVED =>
            {
                tracing::warn!(
                    "nats: other nodes took this one for dead and removed its presence entries; they \
                     are written again"
                );
                self.homes.iter_mut().for_each(|home| home.push(BrokerEvent::EntriesRemoved));
            }
            Ok(command) => self.control.push(ControlEvent::Message(Box::new(command))),
            Err(error) => self.malformed("between nodes", &error.to_string()),
        }
    }

    fn malformed(&self, which: &str, error: &str) {
        Figures::add(&self.shared.figures.malformed, 1);
        if let Some(left_out) = MALFORMED.admit() {
            tracing::warn!(left_out, "nats: a message {which} is malformed: {error}");
        }
    }

    /// Errors come before the `PONG` that answers what they are about.
    fn take_error(&self, text: &str) {
        let figures = &self.shared.figures;
        Figures::add(&figures.errors, 1);
        let lowercase = text.to_ascii_lowercase();
        if lowercase.starts_with("slow consumer") {
            Figures::add(&figures.slow_consumers, 1);
            return tracing::warn!(
                "nats: the server has dropped messages for this node, since it was too slow: channels with \
                 history are read again, of others publications are lost"
            );
        }
        if lowercase.starts_with("permissions violation")
            && let Some((_, subject)) = text.split_once('"')
        {
            let subject = subject.trim_end_matches('"').to_owned();
            self.shared.with_output(|output| {
                if output.refused.len() < REFUSED_MAX {
                    output.refused.insert(subject);
                }
            });
        }
        if let Some(left_out) = ERRORS.admit() {
            tracing::warn!(left_out, "nats: {text}");
        }
    }

    /// The server has carried out what came before a `PING`.
    fn settle(&mut self, group: Group) {
        let Group { all, cost, .. } = group;
        self.shared.bytes.fetch_sub(cost, Ordering::Relaxed);
        let refused = self.shared.with_output(|output| std::mem::take(&mut output.refused));
        let refused = refused.unwrap_or_default();
        let subjects = &self.shared.settings.subjects;
        let is_refused =
            |channel: &str| !refused.is_empty() && refused.contains(&subjects.messages(channel));
        for pending in all {
            match pending {
                Pending::Listening { sid } => {
                    let mut interests = self.shared.interests.borrow_mut();
                    // One that is refused stays without an answer, and its subscribers get an error.
                    if interests.get(sid).is_none_or(|of| is_refused(&of.channel)) {
                        continue;
                    }
                    if let Some(interest) = interests.confirm(sid) {
                        let channel = interest.channel.clone();
                        self.homes[usize::from(interest.home)]
                            .push(BrokerEvent::Listening { channel });
                    }
                }
                Pending::Published { home, ticket, channel, since } => {
                    let took = u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX);
                    self.shared.figures.latency[self.shared.at].record(took);
                    let position = Position { offset: 0, epoch: None };
                    let event = match is_refused(&channel) {
                        true => BrokerEvent::Failed { ticket, cause: FailureCause::Unsupported },
                        false => BrokerEvent::Published { ticket, position },
                    };
                    self.homes[home].push(event);
                }
                Pending::Control { ticket } => {
                    self.control.push(ControlEvent::Sent { ticket, is_sent: true });
                }
                Pending::ControlListening => {
                    self.shared.with_output(|output| output.is_control_on = true);
                    self.control.push(ControlEvent::Listening);
                }
            }
        }
    }

    fn deliver(&mut self) {
        let messages = std::mem::take(&mut self.messages);
        self.shared.handle(messages);
        Figures::add(&self.shared.figures.messages, messages);
        for (home, events) in self.homes.iter_mut().enumerate() {
            if !events.is_empty() {
                self.shared.events.take(home, std::mem::take(events));
            }
        }
        if !self.control.is_empty() {
            self.shared.events.control(std::mem::take(&mut self.control));
        }
    }
}

/// Bytes of the lines around headers.
const HEADER_BYTES: usize = 16;

/// Subjects that are remembered as refused until the next `PONG`.
const REFUSED_MAX: usize = 4_096;
