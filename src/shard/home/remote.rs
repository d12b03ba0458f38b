//! The home of channels that a broker beside this node keeps: operations wait for its answers.
//!
//! Each channel has a queue of operations ([`Line`]). They begin in order and end in order, so that a client
//! that subscribes and then publishes gets its own publication; between the two as many as there are may be
//! on their way. A queue is as long as the credits of the shards that request its operations allow.
//!
//! | operation | begins | commands | ends |
//! | --- | --- | --- | --- |
//! | subscribe | once the channel is delivered | `Enter`, `Read` where it needs a position | joins, answers |
//! | unsubscribe | at once | - | leaves (`Leave`, `Announce`), answers |
//! | publish | once earlier subscriptions have ended | `Publish` | acknowledges |
//! | read | at once | `Read`, `Members`, `Drop` | answers |
//!
//! While there is no connection, publishing, reading and subscribing fail with an error that is temporary; a
//! subscription that the server makes waits, since its connection could do nothing else about it.

use compact_str::CompactString;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::events::Event;
use super::line::{Effects, Line, Link};
use super::publish::Delivery;
use super::reading::Missed;
use super::{Home, stream_options};
use crate::base::id::{ConnKey, ShardId};
use crate::hub::broker::{
    BrokerEvent, Command, Delivered, Entry, PresenceChange, PresenceUpdate, Publishing, Ticket,
};
use crate::hub::history::{Page, Position, Published, Record, Since, StreamOptions};
use crate::hub::members::Member;
use crate::proto::client::ErrorCode;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::mail::acks::Ack;
use crate::shard::mail::post::Post;
use crate::shard::mail::shard_set::ShardSet;
use crate::shard::mail::{
    Answer, CONTROL, Mail, Method, Publish, Read, Reading, Recovery, Subscribe, Subscribed,
    Unsubscribe,
};

/// An operation of a channel that is not done.
#[derive(Debug)]
pub(super) struct Op {
    from: ShardId,
    request: Request,
    step: Step,
}

/// The request of an operation.
#[derive(Debug)]
enum Request {
    Subscribe(Box<Subscribe>),
    Unsubscribe(Box<Unsubscribe>),
    Publish(Box<Publish>),
    Read(Box<Read>),
    Reinform { conn: ConnKey, info: Box<[u8]> },
}

/// How far an operation is.
#[derive(Debug)]
enum Step {
    /// It has not begun.
    Queued,
    /// It waits for the answer to a command.
    Waits(Ticket),
    /// It can end.
    Ready(Outcome),
}

/// The answer that an operation has got.
#[derive(Debug)]
enum Outcome {
    /// It needed none.
    Nothing,
    Position(Position),
    History(Position, Vec<Entry>),
    Members(Vec<Box<[u8]>>),
    Counts(u32, u32),
    /// It was refused, or the connection is lost.
    Failed,
}

impl Op {
    /// A subscription that has begun to read: publications that come are kept for it.
    pub(super) fn reads(&self) -> bool {
        matches!(self.request, Request::Subscribe(_)) && !matches!(self.step, Step::Queued)
    }

    /// A read of a subscription is of no use any more.
    pub(super) fn read_again(&mut self) {
        if self.reads() && !matches!(self.step, Step::Ready(Outcome::Failed)) {
            self.step = Step::Queued;
        }
    }

    /// The server makes it: nobody waits for a reply that could carry an error.
    fn is_made_by_server(&self) -> bool {
        matches!(&self.request, Request::Subscribe(of) if of.asker.method != Method::Subscribe)
    }

    /// It can't be done without the broker.
    fn needs_broker(&self) -> bool {
        !matches!(self.request, Request::Unsubscribe(_) | Request::Reinform { .. })
    }
}

/// Channels of a home that a broker keeps.
#[derive(Debug, Default)]
pub(super) struct Remote {
    lines: HashMap<CompactString, Line, FixedState>,
    /// The channels of open tickets.
    tickets: HashMap<Ticket, CompactString, FixedState>,
    next_ticket: u64,
    is_connected: bool,
}

impl Remote {
    fn ticket(&mut self, channel: &CompactString) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.tickets.insert(ticket, channel.clone());
        ticket
    }

    /// Operations that are not done.
    pub(super) fn waiting(&self) -> usize {
        self.lines.values().map(|line| line.ops.len()).sum()
    }
}

/// Sends a command to the broker.
fn command(cx: &Cx, out: &mut Post, command: Command) {
    out.send(cx, CONTROL, Mail::Command(Box::new(command)));
}

impl Home {
    /// Takes an operation of a channel into its queue. Other mail comes back.
    pub(super) fn take_operation(
        &mut self,
        cx: &Cx,
        from: ShardId,
        mail: Mail,
        out: &mut Post,
        codec: &mut Codec,
    ) -> Option<Mail> {
        let (channel, namespace, request) = match mail {
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
        self.with_line(cx, &channel, Some(namespace), out, codec, |_, line| {
            line.ops.push_back(Op { from, request, step: Step::Queued });
            Effects::default()
        });
        None
    }

    /// News from the broker.
    pub(super) fn broker_event(
        &mut self,
        cx: &Cx,
        event: BrokerEvent,
        out: &mut Post,
        codec: &mut Codec,
    ) {
        match event {
            BrokerEvent::Connected => self.broker_connected(cx, true, out, codec),
            BrokerEvent::Lost => self.broker_connected(cx, false, out, codec),
            BrokerEvent::Listening { channel } => {
                self.with_line(cx, &channel, None, out, codec, |_, line| {
                    if line.link == Link::Begun {
                        line.link = Link::On;
                        // Publications between the last one and this moment.
                        line.needs_repair |= line.at.is_some();
                    }
                    Effects::default()
                });
            }
            BrokerEvent::Delivered(delivered) => {
                let Delivered { channel, epoch, entry } = *delivered;
                self.with_line(cx, &channel, None, out, codec, |_, line| match line.link {
                    Link::On => line.arrive(epoch, entry),
                    Link::Off | Link::Begun => Effects::default(),
                });
            }
            BrokerEvent::Announced { channel, joined, info } => {
                self.events.push(Event { channel, joined, info });
            }
            BrokerEvent::Published { ticket, position } => {
                self.answered(cx, ticket, Outcome::Position(position), out, codec);
            }
            BrokerEvent::History { ticket, top, entries } => {
                self.answered(cx, ticket, Outcome::History(top, entries), out, codec);
            }
            BrokerEvent::Interrupted { channel } => {
                self.with_line(cx, &channel, None, out, codec, |_, line| {
                    if line.link == Link::On {
                        line.lose();
                        line.link = Link::Begun;
                    }
                    Effects::default()
                });
            }
            BrokerEvent::MemberCounts { ticket, clients, users } => {
                self.answered(cx, ticket, Outcome::Counts(clients, users), out, codec);
            }
            BrokerEvent::Members { ticket, infos } => {
                self.answered(cx, ticket, Outcome::Members(infos), out, codec);
            }
            BrokerEvent::Done { ticket } => {
                self.answered(cx, ticket, Outcome::Nothing, out, codec);
            }
            BrokerEvent::Failed { ticket, .. } => {
                self.answered(cx, ticket, Outcome::Failed, out, codec);
            }
        }
    }

    /// The connection to the broker is there, or lost.
    fn broker_connected(&mut self, cx: &Cx, is_connected: bool, out: &mut Post, codec: &mut Codec) {
        let Some(remote) = &mut self.remote else { return };
        remote.is_connected = is_connected;
        remote.tickets.clear();
        let mut channels: Vec<CompactString> = remote.lines.keys().cloned().collect();
        channels.sort();
        for channel in channels {
            self.with_line(cx, &channel, None, out, codec, |_, line| {
                line.lose();
                for op in &mut line.ops {
                    match op.step {
                        // Whether it took effect is not known. A subscription of the server begins anew.
                        Step::Waits(_) if op.is_made_by_server() => op.step = Step::Queued,
                        Step::Ready(Outcome::History(..)) if op.is_made_by_server() => {
                            op.step = Step::Queued;
                        }
                        Step::Waits(_) => op.step = Step::Ready(Outcome::Failed),
                        Step::Ready(Outcome::History(..)) if op.reads() => {
                            op.step = Step::Ready(Outcome::Failed);
                        }
                        Step::Queued | Step::Ready(_) => {}
                    }
                }
                Effects::default()
            });
        }
    }

    /// The answer to a command.
    fn answered(
        &mut self,
        cx: &Cx,
        ticket: Ticket,
        outcome: Outcome,
        out: &mut Post,
        codec: &mut Codec,
    ) {
        let Some(remote) = &mut self.remote else { return };
        // An answer from before the connection was lost, or one that came twice.
        let Some(channel) = remote.tickets.remove(&ticket) else { return };
        self.with_line(cx, &channel, None, out, codec, |_, line| {
            if line.repair == Some(ticket) {
                return match outcome {
                    Outcome::History(top, entries) => line.repaired(&top, &entries),
                    _ => {
                        (line.repair, line.needs_repair) = (None, true);
                        Effects::default()
                    }
                };
            }
            let waits = |op: &&mut Op| matches!(op.step, Step::Waits(of) if of == ticket);
            if let Some(op) = line.ops.iter_mut().find(waits) {
                op.step = Step::Ready(outcome);
            }
            Effects::default()
        });
    }

    /// Does something with a channel's line, and then all that follows from it.
    fn with_line(
        &mut self,
        cx: &Cx,
        channel: &CompactString,
        namespace: Option<u16>,
        out: &mut Post,
        codec: &mut Codec,
        change: impl FnOnce(&mut Remote, &mut Line) -> Effects,
    ) {
        let Some(mut remote) = self.remote.take() else { return };
        let known = remote.lines.remove(channel);
        if let Some(mut line) = known.or_else(|| namespace.map(Line::new)) {
            let effects = change(&mut remote, &mut line);
            self.carry_out(cx, channel, &line, effects, out, codec);
            if self.advance(cx, channel, &mut remote, &mut line, out, codec) {
                remote.lines.insert(channel.clone(), line);
            }
        }
        self.remote = Some(remote);
    }

    /// Begins the operations that can begin, and ends those that can end, in order. False when neither an
    /// operation nor a subscriber is left.
    fn advance(
        &mut self,
        cx: &Cx,
        channel: &CompactString,
        remote: &mut Remote,
        line: &mut Line,
        out: &mut Post,
        codec: &mut Codec,
    ) -> bool {
        loop {
            begin(cx, channel, remote, line, out);
            let is_ready = line.ops.front().is_some_and(|op| matches!(op.step, Step::Ready(_)));
            if !is_ready {
                break;
            }
            let Some(Op { from, request, step: Step::Ready(outcome) }) = line.ops.pop_front()
            else {
                break;
            };
            self.end(cx, channel, remote, line, from, request, outcome, out, codec);
        }
        line.forget_recent();
        let hash = cx.node.names.hash(channel);
        let at = self.channels.find(channel, hash);
        let has_interest = at.is_some_and(|at| !self.channels.interests(at).is_empty());
        if !has_interest && line.ops.is_empty() {
            if line.link != Link::Off {
                command(cx, out, Command::Unlisten { channel: channel.clone() });
            }
            line.end();
            return false;
        }
        if remote.is_connected && line.link == Link::Off && has_interest {
            line.link = Link::Begun;
            command(cx, out, Command::Listen { channel: channel.clone() });
        }
        if line.needs_repair
            && line.repair.is_none()
            && line.link == Link::On
            && let Some(at) = &line.at
        {
            let ticket = remote.ticket(channel);
            (line.repair, line.needs_repair) = (Some(ticket), false);
            // With the publication that the line stands at, to see that it is still the same.
            let offset = at.offset.saturating_sub(1);
            let since = Some(Since { offset, epoch: CompactString::default() });
            let page = Page { since, limit: REPAIRED_MAX, reverse: false };
            command(cx, out, Command::Read { ticket, channel: channel.clone(), page });
        }
        true
    }

    /// Sends the outcome of news to the subscribers.
    fn carry_out(
        &mut self,
        cx: &Cx,
        channel: &str,
        line: &Line,
        effects: Effects,
        out: &mut Post,
        codec: &mut Codec,
    ) {
        let Some(at) = self.channels.find(channel, cx.node.names.hash(channel)) else { return };
        if effects.gap {
            for interest in self.channels.interests(at) {
                out.send(cx, interest.shard, Mail::Gap { local: interest.local });
            }
        }
        let channels = cx.channels_with(line.namespace);
        let namespace = channels.namespace(line.namespace);
        let epoch = line.at.as_ref().and_then(|at| at.epoch.clone());
        for record in effects.deliver {
            let offset = record.offset();
            let position = Position { offset, epoch: epoch.clone().filter(|_| offset > 0) };
            let published = record.published();
            let delivery = Delivery { at, channel, namespace, published, position, patched: None };
            self.deliver(cx, delivery, out, codec);
        }
    }

    /// Ends an operation: its answer goes to the shard that requested it.
    #[expect(clippy::too_many_arguments, reason = "an operation in its parts")]
    fn end(
        &mut self,
        cx: &Cx,
        channel: &CompactString,
        remote: &mut Remote,
        line: &mut Line,
        from: ShardId,
        request: Request,
        outcome: Outcome,
        out: &mut Post,
        codec: &mut Codec,
    ) {
        match request {
            Request::Subscribe(subscribe) => {
                self.end_subscribe(cx, line, from, subscribe, outcome, out, codec);
            }
            Request::Unsubscribe(unsubscribe) => {
                self.end_unsubscribe(cx, from, &unsubscribe, remote.is_connected, out);
            }
            Request::Reinform { conn, info } => {
                self.reinform(cx, from, channel, conn, &info);
                if remote.is_connected {
                    command(cx, out, presence(channel, PresenceChange::Enter, info));
                }
            }
            Request::Publish(publish) => {
                let Some(asker) = publish.asker else { return };
                match outcome {
                    Outcome::Position(position) => {
                        out.acknowledge(Ack { to: from, asker, position }, ShardSet::default());
                    }
                    _ => {
                        let answer = Answer::failed(ErrorCode::Internal, channel);
                        out.send(cx, from, Mail::Answer { asker, answer });
                    }
                }
            }
            Request::Read(read) => {
                let answer = match outcome {
                    Outcome::Nothing => Answer::Done,
                    Outcome::Members(infos) => super::reading::presence(&read, &infos, codec),
                    Outcome::Counts(clients, users) => Answer::PresenceStats(clients, users),
                    Outcome::History(top, entries) => {
                        super::reading::history(&read, &top, &entries, codec)
                    }
                    Outcome::Position(_) | Outcome::Failed => {
                        Answer::failed(ErrorCode::Internal, channel)
                    }
                };
                cx.counters().reads.add(1);
                out.send(cx, from, Mail::Answer { asker: read.asker, answer });
            }
        }
    }

    /// A subscriber joins at the position of the line. Where the read doesn't fit that any more, it is made
    /// once more.
    #[expect(clippy::too_many_arguments, reason = "an operation in its parts")]
    fn end_subscribe(
        &mut self,
        cx: &Cx,
        line: &mut Line,
        from: ShardId,
        subscribe: Box<Subscribe>,
        outcome: Outcome,
        out: &mut Post,
        codec: &mut Codec,
    ) {
        let none = Position { offset: 0, epoch: None };
        let failed = matches!(outcome, Outcome::Failed);
        let (mut position, mut recovery) = (none, Recovery::None);
        if let Outcome::History(top, entries) = &outcome {
            if line.at.is_none() {
                line.begin(top);
            }
            let mut effects = Effects::default();
            let is_there = line.catch_up(top, entries, &mut effects);
            self.carry_out(cx, &subscribe.channel, line, effects, out, codec);
            if !is_there {
                // The line is behind the read, or in another life: it is repaired first.
                line.needs_repair = true;
                let request = Request::Subscribe(subscribe);
                return line.ops.push_front(Op { from, request, step: Step::Queued });
            }
            if let Some(recover) = &subscribe.recover {
                let limit = cx.client.recovery_publications_max;
                let records = match recover.latest {
                    true => line.latest(entries, &recover.since),
                    false => line.missed(entries, &recover.since, limit),
                };
                let form = subscribe.traits.form();
                cx.counters().recoveries.add(1);
                recovery = match records {
                    Some(records) => {
                        cx.counters().recovered.add(1);
                        Missed { channel: &subscribe.channel, form, recover }.encode(records)
                    }
                    None => Recovery::Failed,
                };
            }
        }
        if failed {
            recovery = Recovery::Unavailable;
        } else if let Some(at) = &line.at {
            position = at.clone();
        }
        let Subscribe { channel, hash, local, asker, serial, mut traits, .. } = *subscribe;
        traits = traits.with_fresh(traits.form().takes_patches());
        let options = StreamOptions::default();
        let (at, _) = self.channels.subscribe(cx.now, &channel, hash, options, from, local, traits);
        let announced = subscribe.membership.filter(|_| !failed).map(|of| {
            let member = Member { shard: from, conn: asker.conn };
            self.channels.enter(at, member, &of.info, of.present, of.announces);
            (of.announces, of.info)
        });
        let fresh = traits.fresh();
        let subscribed = Subscribed { local, asker, serial, position, recovery, fresh };
        out.send(cx, from, Mail::Subscribed(Box::new(subscribed)));
        if let Some((true, info)) = announced {
            command(cx, out, Command::Announce { channel, joined: true, info });
        }
    }

    /// A subscriber leaves.
    fn end_unsubscribe(
        &mut self,
        cx: &Cx,
        from: ShardId,
        unsubscribe: &Unsubscribe,
        is_connected: bool,
        out: &mut Post,
    ) {
        let Unsubscribe { local, channel, asker, traits, member } = unsubscribe;
        let hash = cx.node.names.hash(channel);
        let member = member.map(|conn| Member { shard: from, conn });
        let left = self.channels.unsubscribe(channel, hash, from, *traits, member);
        if let Some(left) = left
            && is_connected
        {
            command(cx, out, presence(channel, PresenceChange::Leave, left.info.clone()));
            if left.announces {
                let (channel, info) = (channel.clone(), left.info);
                command(cx, out, Command::Announce { channel, joined: false, info });
            }
        }
        out.send(cx, from, Mail::Unsubscribed { local: *local, asker: *asker });
    }
}

/// One change of who is present.
fn presence(channel: &CompactString, change: PresenceChange, info: Box<[u8]>) -> Command {
    let changes = vec![(change, info)];
    Command::Presence(Box::new(PresenceUpdate { channel: channel.clone(), changes }))
}

/// Begins operations, each behind those before it, up to one that has to wait.
fn begin(cx: &Cx, channel: &CompactString, remote: &mut Remote, line: &mut Line, out: &mut Post) {
    let mut ops = std::mem::take(&mut line.ops);
    let mut is_subscribing = false;
    for op in &mut ops {
        if matches!(op.step, Step::Queued) {
            if !remote.is_connected && op.needs_broker() {
                if op.is_made_by_server() {
                    break;
                }
                op.step = Step::Ready(Outcome::Failed);
            } else {
                let may = !matches!(op.request, Request::Publish(_)) || !is_subscribing;
                if !may || !begin_one(cx, channel, remote, line, op, out) {
                    break;
                }
            }
        }
        is_subscribing |= matches!(op.request, Request::Subscribe(_));
    }
    debug_assert!(line.ops.is_empty());
    line.ops = ops;
}

/// Begins an operation. False when it has to wait until the channel is delivered and repaired.
fn begin_one(
    cx: &Cx,
    channel: &CompactString,
    remote: &mut Remote,
    line: &mut Line,
    op: &mut Op,
    out: &mut Post,
) -> bool {
    let channel = channel.clone();
    op.step = match &op.request {
        Request::Unsubscribe(_) | Request::Reinform { .. } => Step::Ready(Outcome::Nothing),
        Request::Publish(publish) => {
            let ticket = remote.ticket(&channel);
            let publishing = Box::new(publishing(cx, ticket, publish));
            command(cx, out, Command::Publish(publishing));
            Step::Waits(ticket)
        }
        Request::Read(read) => {
            let ticket = remote.ticket(&channel);
            command(
                cx,
                out,
                match &read.what {
                    Reading::Presence => Command::Members { ticket, channel, counts: false },
                    Reading::PresenceStats => Command::Members { ticket, channel, counts: true },
                    Reading::History(page) => Command::Read { ticket, channel, page: page.clone() },
                    Reading::Drop => Command::Drop { ticket, channel },
                },
            );
            Step::Waits(ticket)
        }
        Request::Subscribe(subscribe) => {
            if line.link == Link::Off {
                line.link = Link::Begun;
                command(cx, out, Command::Listen { channel: channel.clone() });
            }
            if line.link != Link::On || line.needs_repair || line.repair.is_some() {
                return false;
            }
            if let Some(membership) = &subscribe.membership
                && membership.present
            {
                let info = membership.info.clone();
                command(cx, out, presence(&channel, PresenceChange::Enter, info));
            }
            let rules = cx.channels_with(subscribe.namespace);
            line.namespace = subscribe.namespace;
            let keeps = stream_options(rules.namespace(subscribe.namespace)).kept();
            match &subscribe.recover {
                None if !keeps || line.at.is_some() => Step::Ready(Outcome::Nothing),
                recover => {
                    let ticket = remote.ticket(&channel);
                    let page = page_of(cx, recover.as_deref());
                    command(cx, out, Command::Read { ticket, channel, page });
                    Step::Waits(ticket)
                }
            }
        }
    };
    true
}

/// What a subscription reads: the position, and the publications that it may need.
fn page_of(cx: &Cx, recover: Option<&crate::shard::mail::Recover>) -> Page {
    match recover {
        None => Page::default(),
        Some(of) if of.latest => Page { since: None, limit: 1, reverse: true },
        Some(of) => {
            // The epoch is compared here: another life answers with its position all the same.
            let mut since = of.since.clone();
            since.epoch = CompactString::default();
            let limit = cx.client.recovery_publications_max.saturating_add(1);
            Page { since: Some(since), limit, reverse: false }
        }
    }
}

/// A publication as the broker takes it.
fn publishing(cx: &Cx, ticket: Ticket, publish: &Publish) -> Publishing {
    let channels = cx.channels_with(publish.namespace);
    let extra = publish.options.as_deref().cloned().unwrap_or_default();
    let options = match extra.skip_history {
        true => StreamOptions::default(),
        false => stream_options(channels.namespace(publish.namespace)),
    };
    let Publish { data, info, tags, is_json, .. } = publish;
    let published = Published { data, info, tags, is_json: *is_json };
    Publishing {
        ticket,
        channel: publish.channel.clone(),
        record: Record::new(0, &published),
        options,
        idempotency_key: extra.idempotency_key,
        version: extra.version,
        version_epoch: extra.version_epoch,
        delta: extra.delta || channels.namespace(publish.namespace).delta_publish,
    }
}

/// Publications that one repair reads.
const REPAIRED_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::Plan;
    use crate::shard::home::driven::{Driven, texts, with_history};

    fn driven() -> Driven {
        let mut plan = Plan { channels: with_history(), ..Plan::default() };
        plan.options.broker = crate::shard::Broker::Remote;
        Driven::of(plan)
    }

    fn news(driven: &mut Driven, event: BrokerEvent) {
        driven.handle(CONTROL.0, Mail::BrokerEvent(Box::new(event)));
    }

    fn commands(driven: &mut Driven) -> Vec<Command> {
        let command = |mail| match mail {
            Mail::Command(command) => *command,
            other => panic!("{other:?}"),
        };
        driven.sent_to(CONTROL.0).into_iter().map(command).collect()
    }

    fn subscribes(driven: &mut Driven, index: u32) {
        let mut subscribe = driven.subscribe("news", index);
        subscribe.asker.method = Method::Subscribe;
        driven.handle(1, Mail::Subscribe(Box::new(subscribe)));
    }

    fn top(offset: u64) -> Position {
        Position { offset, epoch: Some("a life".into()) }
    }

    #[test]
    fn a_subscription_waits_for_delivery_and_position_and_a_publish_for_the_subscription() {
        let mut driven = driven();
        news(&mut driven, BrokerEvent::Connected);
        subscribes(&mut driven, 1);
        driven.publishes("news", "1");
        let sent = commands(&mut driven);
        assert!(
            matches!(&sent[..], [Command::Listen { channel }] if channel == "news"),
            "{sent:?}"
        );
        news(&mut driven, BrokerEvent::Listening { channel: "news".into() });
        let sent = commands(&mut driven);
        let [Command::Read { ticket, .. }] = sent[..] else { panic!("{sent:?}") };
        assert_eq!(driven.home.left().last().unwrap().1, 2);
        news(&mut driven, BrokerEvent::History { ticket, top: top(7), entries: Vec::new() });
        assert_eq!(texts(&driven.sent_to(1)), ["subscribed 7"]);
        let sent = commands(&mut driven);
        let [Command::Publish(publishing)] = &sent[..] else { panic!("{sent:?}") };
        let record = Record::new(8, &publishing.record.published());
        let ticket = publishing.ticket;
        news(&mut driven, BrokerEvent::Published { ticket, position: top(8) });
        let entry = Entry { after: 7, time_ms: 0, delta: false, record };
        let (channel, epoch) = ("news".into(), top(8).epoch);
        let delivered = Box::new(Delivered { channel, epoch, entry });
        news(&mut driven, BrokerEvent::Delivered(delivered.clone()));
        news(&mut driven, BrokerEvent::Delivered(delivered));
        let mail = texts(&driven.sent_to(1));
        assert_eq!(mail.len(), 2, "{mail:?}");
        assert!(mail.iter().any(|mail| mail == "published 8"));
        assert!(mail.iter().any(|mail| mail.contains(r#""offset":8"#)));
        // The position is known now: the next one needs no read.
        subscribes(&mut driven, 2);
        assert_eq!(texts(&driven.sent_to(1)), ["subscribed 8"]);
        assert!(commands(&mut driven).is_empty());
    }

    #[test]
    fn without_a_connection_requests_fail_and_server_subscriptions_wait() {
        let mut driven = driven();
        subscribes(&mut driven, 1);
        driven.publishes("news", "1");
        let mail = driven.sent_to(1);
        let unavailable = |mail: &Mail| match mail {
            Mail::Subscribed(of) => matches!(of.recovery, Recovery::Unavailable),
            _ => false,
        };
        assert!(unavailable(&mail[0]) && texts(&mail)[1] == "error Internal");
        let by_server = driven.subscribe("other", 2);
        driven.handle(1, Mail::Subscribe(Box::new(by_server)));
        assert!(driven.sent_to(1).is_empty());
        news(&mut driven, BrokerEvent::Connected);
        let mut listens: Vec<CompactString> = commands(&mut driven)
            .into_iter()
            .map(|sent| if let Command::Listen { channel } = sent { channel } else { panic!() })
            .collect();
        listens.sort();
        assert_eq!(listens, ["news", "other"]);
        // The connection goes once more, with a read on its way.
        news(&mut driven, BrokerEvent::Listening { channel: "other".into() });
        assert_eq!(commands(&mut driven).len(), 1);
        news(&mut driven, BrokerEvent::Lost);
        assert!(driven.sent_to(1).is_empty());
        news(&mut driven, BrokerEvent::Connected);
        assert_eq!(commands(&mut driven).len(), 2);
    }

    #[test]
    fn an_answer_that_nobody_waits_for_changes_nothing() {
        let mut driven = driven();
        news(&mut driven, BrokerEvent::Connected);
        news(&mut driven, BrokerEvent::Done { ticket: Ticket(9) });
        news(&mut driven, BrokerEvent::Listening { channel: "nobody".into() });
        assert!(driven.sent_to(1).is_empty() && driven.home.left().iter().all(|of| of.1 == 0));
    }
}
