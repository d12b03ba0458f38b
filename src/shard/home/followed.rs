//! The channels of a home that a broker keeps: lines, queues of operations, open tickets, windows.

use std::collections::VecDeque;

use compact_str::CompactString;
use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashTable};
use slab::Slab;

use super::handover::Leaving;
use super::line::{Line, Link, Need};
use super::ops::{Op, Outcome, Request, Step, Waiting};
use super::presence::Changes;
use super::seam::{Turn, stream_options};
use crate::base::id::ShardId;
use crate::base::image::{Broken, ImageReader, ImageWriter, kind};
use crate::base::time::Millis;
use crate::hub::broker::{PresenceChange, Ticket};
#[cfg(test)]
use crate::hub::history::Position;
use crate::hub::history::StreamOptions;
use crate::shard::context::Cx;
use crate::shard::mail::{BROKER, Mail, PRESENCE_BROKER};
use crate::shard::{Broker, Options, Presence};

/// One channel that a broker keeps.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) name: CompactString,
    /// The hash of its name.
    pub(super) hash: u64,
    pub(super) line: Line,
    /// Operations that are not done, in order; without an allocation while there are none.
    pub(super) ops: VecDeque<Op>,
    /// So many of the first have begun.
    pub(super) begun: usize,
    /// So many of these are subscriptions.
    pub(super) joins: usize,
    /// The greatest need of these.
    pub(super) need: Need,
    /// The first of them needs publications that the window lacks.
    pub(super) unmet: bool,
    /// Operations that have failed behind others are there.
    pub(super) has_failed: bool,
    /// A read failed: the next one follows in a second.
    pub(super) rests: bool,
    /// Without subscribers and operations since then.
    pub(super) idle_since: Option<Millis>,
    /// A process that takes over has its name.
    pub(super) is_named: bool,
}

/// An order that waits until all operations before it are done.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) to: ShardId,
    pub(super) order: u32,
    /// The number of the first operation behind it.
    pub(super) before: u64,
    pub(super) until: Millis,
}

/// What of a home's channels brokers keep.
#[derive(Debug)]
pub(super) struct Remote {
    /// Channels themselves; else presence alone.
    pub(super) shares_channels: bool,
    /// The numbers of channels, by their names. None is taken out while one is looked up or added.
    numbers: HashTable<u32>,
    /// By number. A channel is taken out while something is done with it.
    pub(super) channels: Slab<Option<Box<Channel>>>,
    /// The channels of open tickets.
    pub(super) tickets: HashMap<Ticket, u32, FixedState>,
    pub(super) next_ticket: u64,
    /// The broker of channels can be reached.
    pub(super) is_connected: bool,
    pub(super) waiting: Waiting,
    pub(super) passes: VecDeque<Pass>,
    pub(super) changes: Changes,
    /// Channels that became idle, in order.
    pub(super) lingering: VecDeque<(Millis, u32)>,
    /// Channels whose reads failed.
    pub(super) resting: Vec<u32>,
    /// Bytes in all windows.
    pub(super) window_bytes: usize,
    /// A number for each publication in a window, oldest first, and some for ones that have gone.
    pub(super) window_order: VecDeque<u32>,
    /// Publications in all windows.
    pub(super) window_len: usize,
    /// The number of the channel whose position is looked at next.
    pub(super) check_at: u32,
    /// A second has passed.
    pub(super) ticks: bool,
    /// Another process takes over.
    pub(super) leaving: Leaving,
}

impl Remote {
    /// Nothing yet; `None` where a home keeps all itself.
    pub(super) fn new(options: &Options) -> Option<Box<Self>> {
        let presence = match (options.broker, options.presence) {
            (Broker::Memory, Presence::WithChannels | Presence::Memory) => return None,
            (_, Presence::Apart) => Some(PRESENCE_BROKER),
            (Broker::Remote, Presence::WithChannels) => Some(BROKER),
            (Broker::Remote, Presence::Memory) => None,
        };
        Some(Box::new(Self {
            shares_channels: options.broker == Broker::Remote,
            numbers: HashTable::new(),
            channels: Slab::new(),
            tickets: HashMap::default(),
            next_ticket: 0,
            is_connected: false,
            waiting: Waiting::default(),
            passes: VecDeque::new(),
            changes: Changes::new(presence, options.presence_ttl_s),
            lingering: VecDeque::new(),
            resting: Vec::new(),
            window_bytes: 0,
            window_order: VecDeque::new(),
            window_len: 0,
            check_at: 0,
            ticks: false,
            leaving: Leaving::default(),
        }))
    }

    /// The broker that an operation needs.
    pub(super) fn broker_of(&self, request: &Request) -> ShardId {
        if request.reads_presence() { self.changes.broker.unwrap_or(BROKER) } else { BROKER }
    }

    /// The broker that an operation needs can be reached.
    pub(super) fn reaches(&self, request: &Request) -> bool {
        match request.reads_presence() {
            true => self.changes.is_connected,
            false => self.is_connected,
        }
    }

    /// A client is present from now on, or no more. The ticket that is answered when the broker knows.
    pub(super) fn presence(
        &mut self,
        (number, channel): (u32, &CompactString),
        change: PresenceChange,
        info: &[u8],
    ) -> Option<Ticket> {
        self.changes.presence(channel, change, info);
        let (next, tickets) = (&mut self.next_ticket, &mut self.tickets);
        self.changes.ticket(channel, || {
            *next += 1;
            tickets.insert(Ticket(*next), number);
            Ticket(*next)
        })
    }

    pub(super) fn ticket(&mut self, channel: u32) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.tickets.insert(ticket, channel);
        ticket
    }

    /// Channels here.
    pub(super) fn len(&self) -> usize {
        self.channels.len()
    }

    /// Bytes in all windows.
    pub(super) fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    /// Where the line of a channel stands, if there is one.
    #[cfg(test)]
    pub(super) fn place(&self, name: &str) -> Option<Option<Position>> {
        let mut channels = self.channels.iter().filter_map(|(_, channel)| channel.as_ref());
        let channel = channels.find(|channel| channel.name == name)?;
        Some(channel.line.at().cloned())
    }

    /// The number of a channel, made when it isn't there.
    pub(super) fn find_or_insert(
        &mut self,
        hash: u64,
        name: &CompactString,
        namespace: u16,
    ) -> u32 {
        if let Some(number) = self.find(hash, name) {
            return number;
        }
        let channel = Channel {
            name: name.clone(),
            hash,
            line: Line::new(namespace),
            ops: VecDeque::new(),
            begun: 0,
            joins: 0,
            need: Need::Nothing,
            unmet: false,
            has_failed: false,
            rests: false,
            idle_since: None,
            is_named: false,
        };
        let number = self.channels.insert(Some(Box::new(channel))) as u32;
        let channels = &self.channels;
        self.numbers.insert_unique(hash, number, |number| {
            channels.get(*number as usize).and_then(Option::as_ref).map_or(0, |of| of.hash)
        });
        number
    }

    /// Writes the channels, and how far the refreshing of presence is.
    pub(super) fn write_image(&self, out: &mut ImageWriter) {
        out.record(kind::REMOTE, |out| out.field(&self.changes.refreshed()));
        let channels = self.channels.iter().filter_map(|(_, channel)| channel.as_ref());
        for channel in channels.filter(|channel| channel.line.link != Link::Off) {
            out.record(kind::LINE, |out| {
                out.field(&channel.name);
                out.field(&channel.idle_since.is_some());
                out.field(&channel.line);
            });
        }
    }

    /// Goes on from another process: its brokers can be reached, and deliver its channels.
    pub(super) fn inherit(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        self.is_connected = self.shares_channels;
        self.changes.inherit(self.shares_channels, from.field("Remote.refreshed")?);
        Ok(())
    }

    /// Reads a channel.
    pub(super) fn read_line(&mut self, cx: &Cx, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let name: CompactString = from.field("Line.name")?;
        let is_idle: bool = from.field("Line.is_idle")?;
        let line: Line = from.field("Line")?;
        let hash = cx.node.names.hash(&name);
        if !self.shares_channels || self.find(hash, &name).is_some() {
            return Err(Broken::Value("a channel at a broker"));
        }
        let number = self.find_or_insert(hash, &name, line.namespace);
        let Some(mut channel) = self.channels[number as usize].take() else { return Ok(()) };
        if is_idle {
            channel.idle_since = Some(cx.now);
            self.lingering.push_back((cx.now, number));
        }
        if line.is_in_doubt() {
            // It is looked at within a second.
            self.resting.push(number);
        }
        channel.line = line;
        self.put_back(number, channel, (0, 0), true);
        Ok(())
    }

    /// The number of a channel.
    pub(super) fn find(&self, hash: u64, name: &str) -> Option<u32> {
        let is_named = |number: &u32| {
            let channel = self.channels.get(*number as usize).and_then(Option::as_ref);
            channel.is_some_and(|channel| channel.name == name)
        };
        self.numbers.find(hash, is_named).copied()
    }

    /// A channel that is taken out does not come back.
    pub(super) fn forget(&mut self, number: u32, hash: u64) {
        if let Ok(found) = self.numbers.find_entry(hash, |of| *of == number) {
            found.remove();
        }
        self.channels.remove(number as usize);
    }

    /// Puts a channel back, or forgets it.
    pub(super) fn put_back(
        &mut self,
        number: u32,
        mut channel: Box<Channel>,
        before: (usize, usize),
        stays: bool,
    ) {
        let window = if stays { window_of(&channel) } else { (0, 0) };
        self.window_bytes = self.window_bytes - before.0 + window.0;
        self.window_len = self.window_len - before.1 + window.1;
        if !stays {
            return self.forget(number, channel.hash);
        }
        if channel.ops.is_empty() {
            // Most channels have none for most of the time, and room for some is as much as all else of a channel.
            channel.ops = VecDeque::new();
        }
        let unfiled = channel.line.take_unfiled();
        self.window_order.extend(std::iter::repeat_n(number, unfiled));
        self.channels[number as usize] = Some(channel);
    }

    /// Gives up the oldest publications of windows until the rest has room.
    pub(super) fn trim_windows(&mut self, bytes_max: usize) {
        while self.window_bytes > bytes_max
            && let Some(number) = self.window_order.pop_front()
        {
            // The number may be another channel's by now: then that one gives up its oldest.
            if let Some(Some(channel)) = self.channels.get_mut(number as usize) {
                let before = window_of(channel);
                channel.line.shed_oldest();
                let after = window_of(channel);
                self.window_bytes = self.window_bytes - before.0 + after.0;
                self.window_len = self.window_len - before.1 + after.1;
            }
        }
        if self.window_order.len() > 2 * self.window_len + SPARE_NUMBERS {
            let windows = self.channels.iter().filter_map(|(number, channel)| {
                let count = channel.as_ref().map_or(0, |channel| channel.line.window_len());
                (count > 0).then_some((number as u32, count))
            });
            let numbers = windows.flat_map(|(number, count)| std::iter::repeat_n(number, count));
            self.window_order = numbers.collect();
        }
    }

    /// Channels of those whose turn it is, for which nothing has come for long: deliveries may be lost without
    /// a sign, and only the next publication or a check shows it.
    pub(super) fn quiet(&mut self, now: Millis) -> Vec<u32> {
        let numbers = self.channels.capacity() as u32;
        let mut quiet = Vec::new();
        for _ in 0..numbers.div_ceil((QUIET_MS / 2_000) as u32) {
            self.check_at = if self.check_at < numbers { self.check_at } else { 0 };
            let channel = self.channels.get(self.check_at as usize).and_then(Option::as_deref);
            let is_due = |channel: &&Channel| {
                channel.idle_since.is_none() && channel.line.is_due(now, QUIET_MS)
            };
            quiet.extend(channel.filter(is_due).map(|_| self.check_at));
            self.check_at += 1;
        }
        quiet
    }

    /// Orders whose operations are done, or have waited long enough, go on.
    pub(super) fn send_passes(&mut self, turn: &mut Turn<'_>) {
        while let Some(pass) = self.passes.front()
            && (self.waiting.is_done_before(pass.before) || turn.cx.now >= pass.until)
        {
            turn.out.send(turn.cx, pass.to, Mail::Passed { order: pass.order });
            self.passes.pop_front();
        }
    }
}

/// Bytes and publications of a channel's window.
pub(super) fn window_of(channel: &Channel) -> (usize, usize) {
    (channel.line.window_bytes(), channel.line.window_len())
}

impl Channel {
    /// The rules of its history.
    pub(super) fn history(&self, cx: &Cx) -> StreamOptions {
        let rules = cx.channels_with(self.line.namespace);
        stream_options(rules.namespace(self.line.namespace))
    }

    /// Publications that its window keeps at most.
    pub(super) fn kept_max(&self, cx: &Cx) -> usize {
        cx.client.recovery_publications_max.min(self.history(cx).size as usize)
    }

    /// Counts anew how many operations have begun.
    fn recount(&mut self) {
        let begun = self.ops.iter().take_while(|op| !matches!(op.step, Step::Queued));
        (self.begun, self.joins) = (0, 0);
        for op in begun {
            self.begun += 1;
            self.joins += usize::from(op.request.subscribes());
        }
    }

    /// Operations end with an error, as far as they need the broker. How many get one now.
    pub(super) fn fail(&mut self, which: impl Fn(&Op) -> bool) -> u64 {
        let mut failed = 0;
        for op in self.ops.iter_mut().filter(|op| op.request.needs_broker() && which(op)) {
            op.fail();
            failed += u64::from(matches!(op.step, Step::Ready(Outcome::Failed { .. })));
        }
        self.has_failed |= failed > 0;
        self.recount();
        failed
    }

    /// Operations wait no longer for the broker to know who is present. Whether one did.
    pub(super) fn release(&mut self, which: impl Fn(&Op, Ticket) -> bool) -> bool {
        let mut has_released = false;
        for op in &mut self.ops {
            if op.presence.is_some_and(|ticket| which(op, ticket)) {
                has_released = true;
                op.presence = None;
                if matches!(op.request, Request::Unsubscribe(_)) {
                    op.step = Step::Ready(Outcome::Nothing);
                }
            }
        }
        has_released
    }

    /// Takes out the operations that have failed, wherever they stand.
    pub(super) fn take_failed(&mut self) -> VecDeque<Op> {
        self.has_failed = false;
        let has_failed = |op: &Op| matches!(op.step, Step::Ready(Outcome::Failed { .. }));
        let ops = std::mem::take(&mut self.ops).into_iter();
        let (failed, others): (VecDeque<Op>, _) = ops.partition(has_failed);
        self.ops = others;
        self.recount();
        failed
    }
}

/// The position of a channel is checked when nothing has come for so long, in milliseconds, or half as long
/// again.
const QUIET_MS: u64 = 30_000;

/// Numbers of publications that have gone, beside as many as there are publications.
const SPARE_NUMBERS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_keeps_its_number_until_it_is_forgotten() {
        let options = Options { broker: Broker::Remote, ..crate::shard::fixture::options() };
        let mut remote = Remote::new(&options).unwrap();
        // Two of them have the same hash.
        let news = remote.find_or_insert(7, &"news".into(), 0);
        let other = remote.find_or_insert(7, &"other".into(), 0);
        assert_eq!((remote.find_or_insert(7, &"news".into(), 0), remote.len()), (news, 2));
        assert_eq!((remote.find(7, "other"), remote.find(7, "none")), (Some(other), None));
        let mut channel = remote.channels[news as usize].take().unwrap();
        assert!(remote.place("news").is_none());
        channel.ops.reserve(1);
        remote.put_back(news, channel, (0, 0), true);
        assert_eq!(remote.place("news"), Some(None));
        let mut channel = remote.channels[news as usize].take().unwrap();
        assert_eq!(channel.ops.capacity(), 0);
        channel.line.link = Link::On;
        assert!(remote.quiet(Millis(1 << 40)).is_empty());
        remote.put_back(news, channel, (0, 0), false);
        assert_eq!(
            (remote.len(), remote.find(7, "news"), remote.find(7, "other")),
            (1, None, Some(other))
        );
    }
}
