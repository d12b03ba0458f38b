//! How operations of channels that a broker keeps begin and end: see [`super::ops`].

use compact_str::CompactString;

use super::Home;
use super::followed::{Channel, Remote};
use super::line::{Missed, Need};
use super::occupancy::{report_joined, report_left};
use super::ops::{Op, Outcome, Request, Step};
use super::reading::MissedList;
use super::seam::{Turn, command, command_to};
use crate::base::id::ShardId;
use crate::hub::broker::{Command, FailureCause, PresenceChange, Publishing, Ticket};
use crate::hub::history::{Position, Published, Record, StreamOptions};
use crate::hub::home::Homes;
use crate::hub::members::Member;
use crate::proto::client::ErrorCode;
use crate::shard::context::Cx;
use crate::shard::mail::acks::Ack;
use crate::shard::mail::shard_set::ShardSet;
use crate::shard::mail::{
    Answer, Mail, Membership, Publish, Read, Reading, Recover, Recovery, Subscribe, Subscribed,
    Unsubscribe,
};

/// Begins the next operation of a channel: its step, and the ticket of its change of presence.
pub(super) fn begin(
    turn: &mut Turn<'_>,
    homes: &mut Homes,
    remote: &mut Remote,
    number: u32,
    channel: &mut Channel,
) -> (Step, Option<Ticket>) {
    let Some(op) = channel.ops.get(channel.begun) else { return (Step::Queued, None) };
    let step = match &op.request {
        Request::Reinform { .. } | Request::ReadHere(_) => Step::Ready(Outcome::Nothing),
        Request::Unsubscribe(unsubscribe) => {
            let presence = leave(turn.cx, homes, remote, (number, op.from), unsubscribe);
            let name = &unsubscribe.channel;
            report_left(turn.cx, turn.out, homes, name, turn.cx.node.names.hash(name));
            return match presence {
                Some(ticket) => (Step::Waits(ticket), presence),
                None => (Step::Ready(Outcome::Nothing), None),
            };
        }
        Request::Publish(publish) => {
            let ticket = remote.ticket(number);
            let publishing = Box::new(publishing(turn.cx, ticket, publish));
            remote.changes.send_before(turn.cx, &channel.name, turn.out);
            command(turn.cx, turn.out, Command::Publish(publishing));
            Step::Waits(ticket)
        }
        // This node's own: no operation.
        Request::Read(read) if matches!(read.what, Reading::Subscribers | Reading::Here) => {
            Step::Ready(Outcome::Nothing)
        }
        Request::Read(read) => {
            let ticket = remote.ticket(number);
            let of = reading(turn.cx, ticket, channel.name.clone(), read);
            // Who has just entered is to be seen.
            remote.changes.send(turn.cx, turn.out);
            let broker = remote.broker_of(&op.request);
            command_to(turn.cx, turn.out, broker, of);
            Step::Waits(ticket)
        }
        Request::Subscribe(subscribe) => {
            let membership = subscribe.membership.as_ref().filter(|of| of.present);
            let presence = membership.and_then(|membership| {
                let Membership { announces, info, .. } = &**membership;
                let change = PresenceChange::Enter { announces: *announces };
                remote.presence((number, &channel.name), change, info)
            });
            channel.line.namespace = subscribe.namespace;
            let need = match &subscribe.recover {
                Some(recover) if !recover.latest => Need::Missed,
                _ => Need::Position,
            };
            if channel.history(turn.cx).kept() {
                channel.need = channel.need.max(need);
            }
            let sent = channel.line.reads_sent();
            if subscribe.recover.is_none() {
                // At once, so that the read and the change of presence are under way together.
                channel.line.look();
            }
            return (Step::Joining(sent), presence);
        }
    };
    (step, None)
}

/// A subscriber leaves. The ticket of its change of presence.
fn leave(
    cx: &Cx,
    homes: &mut Homes,
    remote: &mut Remote,
    (number, from): (u32, ShardId),
    unsubscribe: &Unsubscribe,
) -> Option<Ticket> {
    let Unsubscribe { channel, traits, member, .. } = unsubscribe;
    let hash = cx.node.names.hash(channel);
    let member = member.map(|conn| Member { shard: from, conn });
    let left = homes.unsubscribe(channel, hash, from, *traits, member)?;
    let ticket = remote.presence((number, channel), PresenceChange::Leave, &left.info);
    if left.announces {
        remote.changes.event(channel, false, left.info);
    }
    ticket
}

/// A publication as the broker takes it.
fn publishing(cx: &Cx, ticket: Ticket, publish: &Publish) -> Publishing {
    let channels = cx.channels_with(publish.namespace);
    let namespace = channels.namespace(publish.namespace);
    let extra = publish.options.as_deref().cloned().unwrap_or_default();
    let options = match extra.skip_history {
        true => StreamOptions::default(),
        false => super::seam::stream_options(namespace),
    };
    let Publish { data, info, tags, is_json, .. } = publish;
    // Other nodes read the time in the payload.
    let published = Published { data, info, tags, is_json: *is_json, time: 0 };
    Publishing {
        ticket,
        channel: publish.channel.clone(),
        record: Record::new(0, &published),
        options,
        idempotency_key: extra.idempotency_key,
        version: extra.version,
        version_epoch: extra.version_epoch,
        delta: extra.delta || namespace.delta_publish,
    }
}

/// The error that a requester gets.
fn code_of(cause: FailureCause) -> ErrorCode {
    match cause {
        FailureCause::Unavailable => ErrorCode::Internal,
        FailureCause::Unsupported => ErrorCode::NotAvailable,
    }
}

impl Home {
    /// Ends an operation: its answer goes to the shard that requested it.
    pub(super) fn end(
        &mut self,
        turn: &mut Turn<'_>,
        remote: &mut Remote,
        channel: &mut Channel,
        op: Op,
    ) {
        let Op { from, request, step, .. } = op;
        let Step::Ready(outcome) = step else { return };
        match request {
            Request::Subscribe(subscribe) => {
                let is_present = matches!(outcome, Outcome::Failed { is_present: true, .. });
                if let Some(of) = subscribe.membership.as_ref().filter(|of| of.present)
                    && is_present
                {
                    remote.changes.presence(&channel.name, PresenceChange::Leave, &of.info);
                }
                let none = Position { offset: 0, epoch: None };
                self.join(turn, remote, from, (*subscribe, none, Recovery::Unavailable));
            }
            Request::Unsubscribe(unsubscribe) => {
                let Unsubscribe { local, asker, .. } = *unsubscribe;
                turn.out.send(turn.cx, from, Mail::Unsubscribed { local, asker });
            }
            Request::Reinform { conn, info } => {
                let shown = self.reinform(turn.cx, from, &channel.name, conn, &info);
                if let Some((announces, info)) = shown {
                    let enter = PresenceChange::Enter { announces };
                    remote.changes.presence(&channel.name, enter, &info);
                }
            }
            Request::Publish(publish) => end_publish(turn, from, &publish, outcome),
            Request::ReadHere(read) => self.read(turn.cx, from, &read, turn.out, turn.codec),
            Request::Read(read) => {
                if matches!((&read.what, &outcome), (Reading::Drop, Outcome::Nothing)) {
                    channel.line.clear_window();
                }
                end_read(turn, from, &read, outcome);
            }
        }
    }

    /// An operation that needs a broker can't begin: its requester gets an error that is temporary.
    pub(super) fn refuse(&mut self, turn: &mut Turn<'_>, from: ShardId, request: Request) {
        match request {
            Request::Subscribe(subscribe) => {
                let Some(mut remote) = self.remote.take() else { return };
                let none = Position { offset: 0, epoch: None };
                let failed = (*subscribe, none, Recovery::Unavailable);
                self.join(turn, &mut remote, from, failed);
                self.remote = Some(remote);
            }
            Request::Publish(of) => end_publish(turn, from, &of, Outcome::UNAVAILABLE),
            Request::Read(of) => end_read(turn, from, &of, Outcome::UNAVAILABLE),
            Request::Unsubscribe(_) | Request::Reinform { .. } | Request::ReadHere(_) => {}
        }
    }

    /// A subscriber joins at the position of the line, if that is known, and what the subscriber missed. Else
    /// the operation comes back.
    pub(super) fn try_join(
        &mut self,
        turn: &mut Turn<'_>,
        remote: &mut Remote,
        channel: &mut Channel,
        (op, sent): (Op, u32),
    ) -> Result<(), Op> {
        let Request::Subscribe(subscribe) = &op.request else { return Err(op) };
        if op.presence.is_some() {
            return Err(op);
        }
        let history = channel.history(turn.cx);
        let mut recovery = Recovery::None;
        let mut position = Position { offset: 0, epoch: None };
        if history.kept() {
            if !channel.line.is_settled() {
                return Err(op);
            }
            channel.line.expire(turn.cx.now, history.ttl_ms);
            let is_in_doubt = match &subscribe.recover {
                Some(recover) => channel.line.may_lag(&recover.since, sent),
                // Deliveries may come later than the reply to the publisher: without a position of its own
                // the client would get publications that were taken before it subscribed.
                None => !channel.line.has_shown(sent),
            };
            if is_in_doubt {
                channel.line.look();
                return Err(op);
            }
            if let Some(at) = channel.line.at() {
                position = at.clone();
            }
        }
        if let Some(recover) = &subscribe.recover {
            let limit = turn.cx.client.recovery_publications_max;
            let missed = match recover.latest {
                true => channel.line.latest(&recover.since),
                false => channel.line.missed(&recover.since, limit),
            };
            recovery = match missed {
                Missed::Unread => {
                    channel.unmet = true;
                    return Err(op);
                }
                Missed::Gone => Recovery::Failed,
                Missed::All(records) => self.encode_missed(turn.cx, subscribe, &position, records),
            };
            turn.cx.counters().recoveries.add(1);
            let is_done = matches!(recovery, Recovery::Done { .. });
            turn.cx.counters().recovered.add(u64::from(is_done));
        }
        let Op { from, request, .. } = op;
        if let Request::Subscribe(subscribe) = request {
            self.join(turn, remote, from, (*subscribe, position, recovery));
        }
        Ok(())
    }

    /// Publications that a subscriber missed, encoded once for all that miss the same ones.
    fn encode_missed(
        &mut self,
        cx: &Cx,
        subscribe: &Subscribe,
        position: &Position,
        records: Vec<&Record>,
    ) -> Recovery {
        let Some(recover) = &subscribe.recover else { return Recovery::None };
        let Recover { filter, as_pushes, .. } = &**recover;
        let at = self.channels.find(&subscribe.channel, subscribe.hash);
        let (channel, form) = (&*subscribe.channel, subscribe.traits.form());
        let list = MissedList { channel, form, recover };
        let (answers, patcher) = (&mut self.answers, &mut self.patcher);
        let asked = at
            .filter(|_| filter.is_none() && !as_pushes)
            .and_then(|at| super::answers::Asked::of(at, form, position, &(0..records.len())));
        if let Some(known) = asked.as_ref().and_then(|asked| answers.get(asked)) {
            return list.recovery(Some(known));
        }
        let recovery = list.encode(cx, records, patcher);
        if let (Some(asked), Recovery::Done { publications: Some(list), .. }) = (asked, &recovery) {
            answers.insert(asked, list.clone());
        }
        recovery
    }

    /// A subscriber joins. One without a broker leaves at once: its shard ends the subscription.
    fn join(
        &mut self,
        turn: &mut Turn<'_>,
        remote: &mut Remote,
        from: ShardId,
        (subscribe, position, recovery): (Subscribe, Position, Recovery),
    ) {
        let Turn { cx, out, .. } = turn;
        let Subscribe { channel, hash, local, asker, serial, mut traits, .. } = subscribe;
        let failed = matches!(recovery, Recovery::Unavailable);
        let based = matches!(&recovery, Recovery::Done { publications: Some(_), .. });
        traits = traits.with_fresh(traits.form().takes_patches() && !based);
        let options = StreamOptions::default();
        let (at, _) = self.channels.subscribe(cx.now, &channel, hash, options, from, local, traits);
        if traits.fresh() {
            self.channels.mark_fresh(at, from);
        }
        let announced = subscribe.membership.filter(|_| !failed).map(|of| {
            let member = Member { shard: from, conn: asker.conn };
            self.channels.enter(at, member, &of.info, of.present, of.announces);
            (of.announces, of.info)
        });
        report_joined(cx, out, &self.channels, at, subscribe.namespace);
        let fresh = traits.fresh();
        let subscribed = Subscribed { local, asker, serial, position, recovery, fresh };
        out.send(cx, from, Mail::Subscribed(Box::new(subscribed)));
        if let Some((true, info)) = announced {
            remote.changes.event(&channel, true, info);
        }
    }
}

/// The command that reads at the broker.
fn reading(cx: &Cx, ticket: Ticket, channel: CompactString, read: &Read) -> Command {
    match &read.what {
        // What is here is never read there.
        Reading::Presence | Reading::Here => Command::Members { ticket, channel, counts: false },
        Reading::PresenceStats | Reading::Subscribers => {
            Command::Members { ticket, channel, counts: true }
        }
        Reading::History(page) => {
            let rules = cx.channels_with(read.namespace);
            let options = super::seam::stream_options(rules.namespace(read.namespace));
            let (page, meta_ttl_ms) = (page.clone(), options.meta_ttl_ms);
            Command::Read { ticket, channel, page, meta_ttl_ms, expects: None }
        }
        Reading::Drop => Command::Drop { ticket, channel },
    }
}

fn end_publish(turn: &mut Turn<'_>, to: ShardId, publish: &Publish, outcome: Outcome) {
    let Some(asker) = publish.asker else { return };
    let cause = match outcome {
        Outcome::Position(position) => {
            turn.cx.counters().publications.add(1);
            turn.cx.of_namespace(publish.namespace).publications.add(1);
            return turn.out.acknowledge(Ack { to, asker, position }, ShardSet::default());
        }
        Outcome::Failed { cause, .. } => cause,
        _ => FailureCause::Unavailable,
    };
    let answer = Answer::failed(code_of(cause), &publish.channel);
    turn.out.send(turn.cx, to, Mail::Answer { asker, answer });
}

fn end_read(turn: &mut Turn<'_>, to: ShardId, read: &Read, outcome: Outcome) {
    let Turn { cx, out, codec } = turn;
    let answer = match outcome {
        Outcome::Nothing => Answer::Done,
        Outcome::Members(infos) => super::reading::presence(read, &infos, codec),
        Outcome::Counts(clients, users) => Answer::PresenceStats(clients, users),
        Outcome::History(top, entries) => {
            let rules = cx.channels_with(read.namespace);
            let shows_times = rules.namespace(read.namespace).history_time;
            super::reading::history(read, &top, &entries, shows_times, codec)
        }
        Outcome::Position(_) => Answer::failed(ErrorCode::Internal, &read.channel),
        Outcome::Failed { cause, .. } => Answer::failed(code_of(cause), &read.channel),
    };
    cx.counters().reads.add(1);
    out.send(cx, to, Mail::Answer { asker: read.asker, answer });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::broker::BrokerEvent;
    use crate::shard::fixture::Plan;
    use crate::shard::home::driven::{Driven, texts, with_history};
    use crate::shard::mail::BROKER;

    #[test]
    fn errors_of_the_broker_reach_the_publisher() {
        let mut plan = Plan { channels: with_history(), ..Plan::default() };
        plan.options.broker = crate::shard::options::Broker::Remote;
        let mut driven = Driven::of(plan);
        let mut news = |event| {
            driven.handle(BROKER.0, Mail::BrokerEvent(Box::new(event)));
            driven.publishes("news", "1");
            let sent = driven.sent_to(BROKER.0);
            let ticket = sent.into_iter().find_map(|mail| match mail {
                Mail::Command(command) => match *command {
                    Command::Publish(publishing) => Some(publishing.ticket),
                    other => panic!("{other:?}"),
                },
                _ => None,
            });
            (ticket.unwrap(), texts(&driven.sent_to(1)))
        };
        let (ticket, _) = news(BrokerEvent::Connected);
        let failed = |ticket, cause| BrokerEvent::Failed { ticket, cause };
        let (ticket, sent) = news(failed(ticket, FailureCause::Unsupported));
        assert_eq!(sent, ["error NotAvailable"]);
        let (ticket, sent) = news(failed(ticket, FailureCause::Unavailable));
        assert_eq!(sent, ["error Internal"]);
        let position = Position { offset: 4, epoch: Some("a life".into()) };
        let (_, sent) = news(BrokerEvent::Published { ticket, position });
        assert_eq!(sent, ["published 4"]);
    }
}
