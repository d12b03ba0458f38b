//! The home of channels that a broker beside this node keeps: operations wait for its answers. Where a broker
//! keeps presence alone, only reads of presence are such operations.
//!
//! Each channel has a [`Line`](super::line::Line), and a queue of operations ([`super::ops`]) that begin and end in order, so that
//! a client that subscribes and then publishes gets its own publication; between the two as many as there are
//! may be on their way.
//!
//! While there is no connection, publishing, reading and subscribing fail with an error that is temporary, and
//! so they do when no answer comes in [`ANSWER_MS`] or when too many wait. A subscription that the server makes
//! waits as long as it takes, since its connection could do nothing else about it; when far too many wait, its
//! connection ends.
//!
//! A channel without subscribers is listened to for another second ([`LINGER_MS`]): clients that come back at
//! once find position and window as they were.

use compact_str::CompactString;

use super::Event;
use super::Home;
use super::followed::{Channel, Pass, Remote, window_of};
use super::line::{Cause, Effects, Link, Need, Query};
use super::ops::{Op, Outcome, Request, Step};
use super::publish::Delivery;
use super::seam::{Turn, command};
use crate::base::id::ShardId;
use crate::base::time::Millis;
use crate::hub::broker::{BrokerEvent, Command, Delivered, FailureCause, Ticket};
use crate::hub::history::Position;
use crate::hub::home::Homes;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::mail::{BROKER, Mail, PRESENCE_BROKER, Reading};

impl Home {
    /// Takes an operation of a channel into its queue. Other mail comes back.
    pub(super) fn take_operation(
        &mut self,
        turn: &mut Turn<'_>,
        from: ShardId,
        mail: Mail,
    ) -> Option<Mail> {
        let (shares_channels, shares_presence) = {
            let remote = self.remote.as_ref()?;
            (remote.shares_channels, remote.changes.broker.is_some())
        };
        let (name, namespace, request) = match mail {
            // This node's own.
            Mail::Read(of) if matches!(of.what, Reading::Subscribers | Reading::Here) => {
                return Some(Mail::Read(of));
            }
            Mail::Read(of) if !shares_channels && of.what.is_presence() => {
                (of.channel.clone(), of.namespace, Request::Read(of))
            }
            mail if !shares_channels => return Some(mail),
            Mail::Read(of) if of.what.is_presence() && !shares_presence => {
                (of.channel.clone(), of.namespace, Request::ReadHere(of))
            }
            Mail::Subscribe(of) => (of.channel.clone(), of.namespace, Request::Subscribe(of)),
            Mail::Publish(of) => (of.channel.clone(), of.namespace, Request::Publish(of)),
            Mail::Read(of) => (of.channel.clone(), of.namespace, Request::Read(of)),
            // Both come behind the subscription, whose line is there.
            Mail::Unsubscribe(of) => (of.channel.clone(), 0, Request::Unsubscribe(of)),
            Mail::Reinform { channel, conn, info } => {
                (CompactString::new(&*channel), 0, Request::Reinform { conn, info })
            }
            other => return Some(other),
        };
        let remote = self.remote.as_mut()?;
        let broker = remote.broker_of(&request);
        let waiting = remote.waiting.len();
        let (is_full, is_away) = match request.is_made_by_server() {
            true => (waiting >= SERVER_OPERATIONS_MAX, false),
            false => {
                (waiting >= OPERATIONS_MAX || turn.out.is_full(broker), !remote.reaches(&request))
            }
        };
        let fails = request.needs_broker() && (is_full || is_away);
        turn.cx.counters().broker_refused.add(u64::from(fails && is_full));
        if fails {
            self.refuse(turn, from, request);
            return None;
        }
        let hash = turn.cx.node.names.hash(&name);
        let number = remote.find_or_insert(hash, &name, namespace);
        self.with_channel(turn, number, |turn, remote, channel| {
            let number = remote.waiting.add(turn.cx.now, number);
            channel.ops.push_back(Op { number, from, request, step: Step::Queued, presence: None });
            Effects::default()
        });
        None
    }

    /// All operations that shards have sent before this are to be done first.
    pub(super) fn pass(&mut self, cx: &Cx, to: ShardId, order: u32, out: &mut Post) {
        if let Some(remote) = &mut self.remote
            && remote.waiting.len() > 0
        {
            let (before, until) = (remote.waiting.next(), cx.now.after(ANSWER_MS));
            return remote.passes.push_back(Pass { to, order, before, until });
        }
        out.send(cx, to, Mail::Passed { order });
    }

    /// News from a broker.
    pub(super) fn broker_event(&mut self, turn: &mut Turn<'_>, from: ShardId, event: BrokerEvent) {
        let connected = match from {
            PRESENCE_BROKER => Self::presence_connected,
            _ => Self::broker_connected,
        };
        match event {
            BrokerEvent::Connected => connected(self, turn, true),
            BrokerEvent::Lost => connected(self, turn, false),
            BrokerEvent::Listening { channel } => self.listening(turn, &channel),
            BrokerEvent::Interrupted { channel } => {
                self.with_named(turn, &channel, |_, _, channel| {
                    if channel.line.link == Link::On {
                        channel.line.lose(Link::Begun);
                    }
                    Effects::default()
                });
            }
            BrokerEvent::Delivered(delivered) => {
                let Delivered { channel, epoch, entry } = *delivered;
                self.with_named(turn, &channel, |turn, _, channel| {
                    let kept_max = channel.kept_max(turn.cx);
                    channel.line.arrive(turn.cx.now, epoch, entry, kept_max)
                });
            }
            BrokerEvent::Announced { channel, joined, info } => {
                self.events.push(Event { channel, joined, info });
            }
            BrokerEvent::Fenced { key } => {
                if let Some(remote) = &mut self.remote {
                    remote.leaving.fenced(key);
                }
            }
            BrokerEvent::EntriesMissing { channel } => self.enter_again(turn.cx, &channel),
            BrokerEvent::EntriesRemoved => {
                if let Some(remote) = &mut self.remote {
                    remote.changes.enter_all_again(self.channels.numbers());
                }
            }
            BrokerEvent::Orphaned { channel, info } => {
                if !self.remote.as_ref().is_some_and(|remote| remote.shares_channels) {
                    return;
                }
                let leave = Command::Announce { channel, joined: false, info };
                command(turn.cx, turn.out, leave);
            }
            BrokerEvent::Published { ticket, position } => {
                self.answered(turn, ticket, Outcome::Position(position));
            }
            BrokerEvent::History { ticket, top, entries } => {
                self.answered(turn, ticket, Outcome::History(top, entries));
            }
            BrokerEvent::Members { ticket, infos } => {
                self.answered(turn, ticket, Outcome::Members(infos));
            }
            BrokerEvent::MemberCounts { ticket, clients, users } => {
                self.answered(turn, ticket, Outcome::Counts(clients, users));
            }
            BrokerEvent::Done { ticket } => self.answered(turn, ticket, Outcome::Nothing),
            BrokerEvent::Failed { ticket, cause } => {
                self.answered(turn, ticket, Outcome::Failed { cause, is_present: false });
            }
        }
    }

    /// The broker delivers a channel from now on.
    fn listening(&mut self, turn: &mut Turn<'_>, channel: &str) {
        self.with_named(turn, channel, |_, _, channel| {
            // Once more while it is delivered: some may have been lost in between.
            if channel.line.link == Link::On {
                channel.line.lose(Link::Begun);
            }
            if channel.line.link == Link::Begun {
                channel.line.listen();
                channel.rests = false;
            }
            Effects::default()
        });
    }

    /// The broker has lost entries of a channel.
    fn enter_again(&mut self, cx: &Cx, name: &CompactString) {
        let at = self.channels.find(name, cx.node.names.hash(name));
        let members = at.and_then(|at| self.channels.members(at));
        if let (Some(remote), Some(members)) = (&mut self.remote, members) {
            remote.changes.enter_members(name, members, false);
        }
    }

    /// The connection to the broker is there, or lost.
    fn broker_connected(&mut self, turn: &mut Turn<'_>, is_connected: bool) {
        let Some(remote) = &mut self.remote else { return };
        remote.is_connected = is_connected;
        remote.tickets.clear();
        remote.changes.carries_events(is_connected);
        if remote.changes.broker == Some(BROKER) {
            remote.changes.connected(is_connected);
        }
        let numbers: Vec<u32> = remote.channels.iter().map(|(number, _)| number as u32).collect();
        for number in numbers {
            self.with_channel(turn, number, |_, _, channel| {
                channel.line.lose(Link::Off);
                channel.rests = false;
                channel.release(|_, _| true);
                // Whether the operations took effect is not known. Those of the server begin anew.
                channel.fail(|op| !is_connected || !matches!(op.step, Step::Queued));
                Effects::default()
            });
        }
    }

    /// The connection to the broker of presence, which is another one, is there, or lost.
    fn presence_connected(&mut self, turn: &mut Turn<'_>, is_connected: bool) {
        let Some(remote) = &mut self.remote else { return };
        remote.changes.connected(is_connected);
        let numbers: Vec<u32> = remote.channels.iter().map(|(number, _)| number as u32).collect();
        for number in numbers {
            self.with_channel(turn, number, |_, remote, channel| {
                let reads = channel.ops.iter().filter(|op| op.request.reads_presence());
                for op in reads {
                    if let Step::Waits(ticket) = &op.step {
                        remote.tickets.remove(ticket);
                    }
                }
                for ticket in channel.ops.iter().filter_map(|op| op.presence) {
                    remote.tickets.remove(&ticket);
                }
                channel.fail(|op| op.request.reads_presence());
                channel.release(|_, _| true);
                Effects::default()
            });
        }
    }

    /// The answer to a command.
    fn answered(&mut self, turn: &mut Turn<'_>, ticket: Ticket, outcome: Outcome) {
        let Some(remote) = &mut self.remote else { return };
        // An answer from before the connection was lost, or one that came twice.
        let Some(number) = remote.tickets.remove(&ticket) else { return };
        self.with_channel(turn, number, |turn, remote, channel| {
            if channel.line.reads(ticket) {
                return match outcome {
                    Outcome::History(top, entries) => {
                        let limit = turn.cx.client.recovery_publications_max;
                        let kept_max = channel.kept_max(turn.cx);
                        channel.line.answered(turn.cx.now, top, entries, limit, kept_max)
                    }
                    Outcome::Failed { cause: FailureCause::Unsupported, .. } => {
                        channel.line.query_failed(true);
                        Effects::default()
                    }
                    _ => {
                        channel.line.query_failed(false);
                        channel.fail(|op| matches!(op.step, Step::Joining(_)));
                        channel.rests = true;
                        remote.resting.push(number);
                        Effects::default()
                    }
                };
            }
            if channel.release(|_, of| of == ticket) {
                return Effects::default();
            }
            let waits = |op: &&mut Op| matches!(op.step, Step::Waits(of) if of == ticket);
            if let Some(op) = channel.ops.iter_mut().find(waits) {
                op.step = Step::Ready(outcome);
            }
            Effects::default()
        });
    }

    fn with_named(
        &mut self,
        turn: &mut Turn<'_>,
        channel: &str,
        change: impl FnOnce(&mut Turn<'_>, &mut Remote, &mut Channel) -> Effects,
    ) {
        let hash = turn.cx.node.names.hash(channel);
        let number = self.remote.as_ref().and_then(|of| of.find(hash, channel));
        if let Some(number) = number {
            self.with_channel(turn, number, change);
        }
    }

    /// Does something with a channel, and then all that follows from it.
    fn with_channel(
        &mut self,
        turn: &mut Turn<'_>,
        number: u32,
        change: impl FnOnce(&mut Turn<'_>, &mut Remote, &mut Channel) -> Effects,
    ) {
        let Some(mut remote) = self.remote.take() else { return };
        let channel = remote.channels.get_mut(number as usize).and_then(Option::take);
        if let Some(mut channel) = channel {
            let before = window_of(&channel);
            let effects = change(turn, &mut remote, &mut channel);
            self.carry_out(turn, &channel, effects);
            let stays = self.advance(turn, &mut remote, number, &mut channel);
            remote.put_back(number, channel, before, stays);
            let shards = turn.cx.node.counters.len();
            remote.trim_windows(turn.cx.node.options.broker_window_bytes / shards.max(1));
            remote.send_passes(turn);
        }
        self.remote = Some(remote);
    }

    /// Begins the operations that can begin, and ends those that can end, in order. False when the channel can
    /// be forgotten.
    fn advance(
        &mut self,
        turn: &mut Turn<'_>,
        remote: &mut Remote,
        number: u32,
        channel: &mut Channel,
    ) -> bool {
        // Interest begins and ends with operations: without one it is as it was.
        let is_followed = channel.ops.is_empty()
            && channel.idle_since.is_none()
            && channel.line.link != Link::Off;
        channel.unmet = false;
        if channel.has_failed {
            for op in channel.take_failed() {
                remote.waiting.done(op.number);
                self.end(turn, remote, channel, op);
            }
        }
        loop {
            begin(turn, &mut self.channels, remote, number, channel);
            let Some(op) = channel.ops.pop_front() else { break };
            let op = match op.step {
                Step::Ready(_) => op,
                Step::Joining(sent) => {
                    let number = op.number;
                    if let Err(op) = self.try_join(turn, remote, channel, (op, sent)) {
                        channel.ops.push_front(op);
                        break;
                    }
                    (channel.begun, channel.joins) = (channel.begun - 1, channel.joins - 1);
                    remote.waiting.done(number);
                    continue;
                }
                Step::Queued | Step::Waits(_) => {
                    channel.ops.push_front(op);
                    break;
                }
            };
            channel.begun -= 1;
            channel.joins -= usize::from(op.request.subscribes());
            remote.waiting.done(op.number);
            self.end(turn, remote, channel, op);
        }
        if channel.joins == 0 {
            channel.need = Need::Nothing;
        }
        self.follow(turn, remote, (number, channel), is_followed)
    }

    /// Some shard has subscribers.
    fn has_interest(&self, channel: &Channel) -> bool {
        let at = self.channels.find(&channel.name, channel.hash);
        at.is_some_and(|at| self.channels.is_in_use(at))
    }

    /// Sends what the line needs of the broker. `is_followed`: it certainly has subscribers, and a look into the
    /// table of all channels is spared. False when the channel can be forgotten.
    fn follow(
        &mut self,
        turn: &mut Turn<'_>,
        remote: &mut Remote,
        (number, channel): (u32, &mut Channel),
        is_followed: bool,
    ) -> bool {
        if !remote.shares_channels {
            return !channel.ops.is_empty();
        }
        let has_interest = is_followed || self.has_interest(channel);
        if !has_interest && channel.ops.is_empty() {
            if channel.line.link == Link::Off {
                return false;
            }
            if channel.idle_since.is_none() {
                channel.idle_since = Some(turn.cx.now);
                remote.lingering.push_back((turn.cx.now, number));
            }
            return true;
        }
        channel.idle_since = None;
        if remote.is_connected && channel.line.link == Link::Off && has_interest {
            listen(turn, channel);
        }
        if channel.rests || !remote.is_connected {
            return true;
        }
        let limit = turn.cx.client.recovery_publications_max;
        let ticket = Ticket(remote.next_ticket + 1);
        let query = channel.line.query(ticket, channel.need, channel.unmet, limit);
        if let Some(query) = query {
            let (ticket, name) = (remote.ticket(number), channel.name.clone());
            let meta_ttl_ms = channel.history(turn.cx).meta_ttl_ms;
            let of = match query {
                Query::Read(page) => {
                    let at = channel.line.at().filter(|_| !page.reverse);
                    let expects = at.map(|at| at.offset);
                    Command::Read { ticket, channel: name, page, meta_ttl_ms, expects }
                }
                Query::Renew(epoch) => Command::Renew { ticket, channel: name, epoch, meta_ttl_ms },
            };
            command(turn.cx, turn.out, of);
        }
        true
    }

    /// Sends the outcome of news to the subscribers.
    fn carry_out(&mut self, turn: &mut Turn<'_>, channel: &Channel, effects: Effects) {
        let Turn { cx, out, codec } = turn;
        let counters = cx.counters();
        counters.broker_duplicates.add(effects.duplicates);
        counters.broker_repaired.add(effects.repaired);
        if effects.gap.is_none() && effects.deliver.is_empty() {
            return;
        }
        let name = &*channel.name;
        let at = self.channels.find(name, channel.hash);
        if let Some(cause) = effects.gap {
            let counter = match cause {
                Cause::Epoch => &counters.broker_gaps_epoch,
                Cause::Trimmed => &counters.broker_gaps_trimmed,
                Cause::Rewind => &counters.broker_gaps_rewind,
                Cause::Lag => &counters.broker_gaps_lag,
            };
            counter.add(1);
            for target in at.iter().flat_map(|at| self.channels.targets(*at)) {
                out.send(cx, target.shard, Mail::Lapse { local: target.local });
            }
        }
        let Some(at) = at else { return };
        let rules = cx.channels_with(channel.line.namespace);
        let namespace = rules.namespace(channel.line.namespace);
        let epoch = channel.line.at().and_then(|at| at.epoch.clone());
        for next in effects.deliver {
            let published = next.entry.record.published();
            let wants_patch = next.entry.delta || namespace.delta_publish;
            let base = next.base.filter(|_| wants_patch && self.channels.wanted(at).patches());
            let patched = base.map(|base| self.patcher.patch(base.data(), published.data));
            let offset = next.entry.record.offset();
            let position = Position { offset, epoch: epoch.clone().filter(|_| offset > 0) };
            let (channel, after) = (name, next.after);
            let source = next.entry.source.as_deref().unwrap_or_default();
            let delivery =
                Delivery { at, channel, namespace, published, position, after, patched, source };
            self.deliver(cx, delivery, out, codec);
        }
    }

    /// Once a second: see [`Self::tick`], which has the way out.
    pub(super) fn mark_second(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.ticks = true;
        }
    }

    /// The end of a turn: changes of presence go out, and once a second what has waited long enough ends.
    pub(super) fn end_remote_turn(&mut self, turn: &mut Turn<'_>) {
        let Some(remote) = &mut self.remote else { return };
        if std::mem::take(&mut remote.ticks) {
            match turn.cx.settles {
                // Nothing is begun: another process goes on from here.
                true => self.end_late_operations(turn),
                false => self.tick(turn),
            }
        }
        if let Some(remote) = &mut self.remote {
            remote.changes.send(turn.cx, turn.out);
        }
    }

    fn tick(&mut self, turn: &mut Turn<'_>) {
        let now = turn.cx.now;
        self.end_late_operations(turn);
        let Some(remote) = &mut self.remote else { return };
        let mut idle = Vec::new();
        while let Some((since, number)) = remote.lingering.front().copied()
            && now.since(since) >= LINGER_MS
        {
            remote.lingering.pop_front();
            idle.push((since, number));
        }
        let resting = std::mem::take(&mut remote.resting);
        let quiet = remote.quiet(now);
        for (since, number) in idle {
            self.with_channel(turn, number, |turn, remote, channel| {
                // It may have become busy again, and idle again later.
                if channel.idle_since == Some(since) {
                    let name = channel.name.clone();
                    command(turn.cx, turn.out, Command::Unlisten { channel: name });
                    remote.leaving.ends(&channel.name, channel.is_named);
                    channel.is_named = false;
                    channel.line.lose(Link::Off);
                }
                Effects::default()
            });
        }
        for number in resting {
            self.with_channel(turn, number, |_, _, channel| {
                channel.rests = false;
                Effects::default()
            });
        }
        for number in quiet {
            self.with_channel(turn, number, |_, _, channel| {
                channel.line.check();
                Effects::default()
            });
        }
        if let Some(remote) = &mut self.remote {
            remote.changes.refresh(turn.cx, &self.channels, turn.out);
            remote.send_passes(turn);
        }
    }

    /// Operations that the broker doesn't answer end with an error.
    fn end_late_operations(&mut self, turn: &mut Turn<'_>) {
        let Some(remote) = &self.remote else { return };
        let Some(moment) = turn.cx.now.0.checked_sub(ANSWER_MS).map(Millis) else { return };
        let (before, mut late) = remote.waiting.before(moment);
        late.sort_unstable();
        late.dedup();
        for number in late {
            self.with_channel(turn, number, |turn, _, channel| {
                let is_late = |op: &Op| op.number < before && !op.request.is_made_by_server();
                turn.cx.counters().broker_timeouts.add(channel.fail(is_late));
                channel.release(|op, _| op.number < before);
                Effects::default()
            });
        }
    }
}

/// Has the broker deliver a channel.
fn listen(turn: &mut Turn<'_>, channel: &mut Channel) {
    channel.line.link = Link::Begun;
    command(turn.cx, turn.out, Command::Listen { channel: channel.name.clone() });
}

/// Begins operations, each behind those before it, up to one that has to wait.
fn begin(
    turn: &mut Turn<'_>,
    homes: &mut Homes,
    remote: &mut Remote,
    number: u32,
    channel: &mut Channel,
) {
    while let Some(op) = channel.ops.get(channel.begun) {
        if matches!(op.step, Step::Queued) {
            if op.request.needs_broker() && !remote.reaches(&op.request) {
                return;
            }
            if op.request.subscribes() && channel.line.link != Link::On {
                if channel.line.link == Link::Off {
                    listen(turn, channel);
                }
                return;
            }
            let is_behind_joins =
                matches!(op.request, Request::Publish(_) | Request::Unsubscribe(_));
            if is_behind_joins && channel.joins > 0 {
                return;
            }
            let begun = super::operations::begin(turn, homes, remote, number, channel);
            let op = &mut channel.ops[channel.begun];
            (op.step, op.presence) = begun;
        }
        channel.joins += usize::from(channel.ops[channel.begun].request.subscribes());
        channel.begun += 1;
    }
}

/// The broker has so long to answer an operation, in milliseconds.
const ANSWER_MS: u64 = 5_000;

/// A channel without subscribers is listened to for so long, in milliseconds.
const LINGER_MS: u64 = 1_000;

/// Operations that wait at one home; more get an error that is temporary.
const OPERATIONS_MAX: usize = 1 << 16;

/// The same with subscriptions that the server makes: more end their connections, which come again later.
const SERVER_OPERATIONS_MAX: usize = 1 << 17;

#[cfg(test)]
mod tests;
