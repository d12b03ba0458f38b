use super::*;
use crate::base::form::Form;
use crate::hub::broker::{Entry, PresenceChange, Ticket};
use crate::hub::history::{Position, Published, Record, Since};
use crate::hub::subscribers::Traits;
use crate::shard::fixture::Plan;
use crate::shard::home::driven::{Driven, conn, info, texts, with_history};
use crate::shard::mail::BROKER;
use crate::shard::mail::{Method, Recover, Recovery};

fn driven() -> Driven {
    let mut plan = Plan { channels: with_history(), ..Plan::default() };
    plan.options.broker = crate::shard::options::Broker::Remote;
    Driven::of(plan)
}

fn news(driven: &mut Driven, event: BrokerEvent) {
    driven.handle(BROKER.0, Mail::BrokerEvent(Box::new(event)));
}

fn commands(driven: &mut Driven) -> Vec<Command> {
    let command = |mail| match mail {
        Mail::Command(command) => *command,
        other => panic!("{other:?}"),
    };
    driven.sent_to(BROKER.0).into_iter().map(command).collect()
}

fn subscribes(driven: &mut Driven, index: u32) {
    let mut subscribe = driven.subscribe("news", index);
    subscribe.asker.method = Method::Subscribe;
    driven.handle(1, Mail::Subscribe(Box::new(subscribe)));
}

fn unsubscribes(driven: &mut Driven) {
    let unsubscribe = crate::shard::mail::Unsubscribe {
        local: 7,
        channel: "news".into(),
        asker: None,
        traits: Traits::JSON.with_positioned(true),
        member: None,
    };
    driven.handle(1, Mail::Unsubscribe(Box::new(unsubscribe)));
}

fn top(offset: u64) -> Position {
    Position { offset, epoch: Some("a life".into()) }
}

fn entry(offset: u64, text: &str) -> Entry {
    let published = Published { data: text.as_bytes(), is_json: true, ..Published::default() };
    let record = Record::new(offset, &published);
    Entry { after: offset.saturating_sub(1), time_ms: 0, delta: false, source: None, record }
}

fn delivered(offset: u64, text: &str) -> BrokerEvent {
    let (channel, epoch) = ("news".into(), top(offset).epoch);
    BrokerEvent::Delivered(Box::new(Delivered { channel, epoch, entry: entry(offset, text) }))
}

/// A home that listens to `news`, with one subscriber at offset 7.
fn at_seven() -> Driven {
    let mut driven = driven();
    news(&mut driven, BrokerEvent::Connected);
    subscribes(&mut driven, 1);
    let sent = commands(&mut driven);
    assert!(matches!(&sent[..], [Command::Listen { channel }] if channel == "news"), "{sent:?}");
    news(&mut driven, BrokerEvent::Listening { channel: "news".into() });
    let sent = commands(&mut driven);
    let [Command::Read { ticket, .. }] = sent[..] else { panic!("{sent:?}") };
    let entries = vec![entry(7, "\"a text that is long enough for a patch: 7\"")];
    news(&mut driven, BrokerEvent::History { ticket, top: top(7), entries });
    assert_eq!(texts(&driven.sent_to(1)), ["subscribed 7"]);
    driven
}

/// The answer to the read for a second subscriber: nothing has come.
fn still_at_seven(driven: &mut Driven) {
    let sent = commands(driven);
    let [Command::Read { ticket, .. }] = sent[..] else { panic!("{sent:?}") };
    let entries = vec![entry(7, "\"a text that is long enough for a patch: 7\"")];
    news(driven, BrokerEvent::History { ticket, top: top(7), entries });
}

fn second(driven: &mut Driven) {
    driven.cx.now = driven.cx.now.after(1_000);
    driven.home.housekeeping(&driven.cx);
}

#[test]
fn a_subscription_waits_for_delivery_and_position_and_a_publish_for_the_subscription() {
    let mut driven = driven();
    news(&mut driven, BrokerEvent::Connected);
    subscribes(&mut driven, 1);
    driven.publishes("news", "1");
    assert_eq!(commands(&mut driven).len(), 1);
    news(&mut driven, BrokerEvent::Listening { channel: "news".into() });
    let sent = commands(&mut driven);
    let [Command::Read { ticket, .. }] = sent[..] else { panic!("{sent:?}") };
    assert_eq!(driven.home.left().last().unwrap().1, 2);
    news(&mut driven, BrokerEvent::History { ticket, top: top(7), entries: Vec::new() });
    assert_eq!(texts(&driven.sent_to(1)), ["subscribed 7"]);
    let sent = commands(&mut driven);
    let [Command::Publish(publishing)] = &sent[..] else { panic!("{sent:?}") };
    let ticket = publishing.ticket;
    news(&mut driven, BrokerEvent::Published { ticket, position: top(8) });
    news(&mut driven, delivered(8, "1"));
    news(&mut driven, delivered(8, "1"));
    let mail = texts(&driven.sent_to(1));
    assert_eq!(mail.len(), 2, "{mail:?}");
    assert!(mail.iter().any(|mail| mail == "published 8"));
    assert!(mail.iter().any(|mail| mail.contains(r#""offset":8"#)));
    assert_eq!(driven.cx.counters().broker_duplicates.get(), 1);
    // The position is known now: one that recovers needs no read.
    let since = Since { offset: 7, epoch: "a life".into() };
    assert_eq!(driven.recovers("news", since).position, top(8));
    assert!(commands(&mut driven).is_empty());
}

#[test]
fn a_subscription_begins_behind_publications_that_are_not_delivered_yet() {
    let mut driven = at_seven();
    subscribes(&mut driven, 2);
    // The read may see less than these have to.
    subscribes(&mut driven, 3);
    subscribes(&mut driven, 4);
    assert!(driven.sent_to(1).is_empty());
    let sent = commands(&mut driven);
    let [Command::Read { ticket, .. }] = sent[..] else { panic!("{sent:?}") };
    let entries = vec![entry(7, "\"a text that is long enough for a patch: 7\""), entry(8, "1")];
    news(&mut driven, BrokerEvent::History { ticket, top: top(8), entries });
    let mail = texts(&driven.sent_to(1));
    assert!(mail[0].contains(r#""offset":8"#), "for the first subscriber: {mail:?}");
    assert_eq!(mail[1..], ["subscribed 8"]);
    let sent = commands(&mut driven);
    let [Command::Read { ticket, .. }] = sent[..] else { panic!("{sent:?}") };
    news(&mut driven, BrokerEvent::History { ticket, top: top(8), entries: vec![entry(8, "1")] });
    assert_eq!(texts(&driven.sent_to(1)), ["subscribed 8", "subscribed 8"]);
    news(&mut driven, delivered(8, "1"));
    assert!(driven.sent_to(1).is_empty() && commands(&mut driven).is_empty());
}

#[test]
fn events_and_publications_of_a_turn_keep_their_order() {
    let mut driven = at_seven();
    let mut subscribe = driven.subscribe("news", 2);
    subscribe.traits = Traits::JSON.with_joins(true).with_positioned(true);
    driven.handle(1, Mail::Subscribe(Box::new(subscribe)));
    still_at_seven(&mut driven);
    driven.sent_to(1);
    // As they come from the broker.
    let event =
        |joined| BrokerEvent::Announced { channel: "news".into(), joined, info: info("ann", "1") };
    news(&mut driven, event(true));
    news(&mut driven, delivered(8, "1"));
    news(&mut driven, event(false));
    let mail = texts(&driven.sent_to(1));
    let place = |what: &str| mail.iter().position(|of| of.contains(what)).unwrap();
    assert!(place(r#""join""#) < place(r#""offset":8"#), "{mail:?}");
    assert!(place(r#""offset":8"#) < place(r#""leave""#), "{mail:?}");
    // As they leave for it.
    driven.joins("news", 3, "bob");
    driven.publishes("news", "2");
    let mut sent = commands(&mut driven);
    presence_is_taken(&mut driven, &sent);
    let read = sent.iter().find_map(|of| match of {
        Command::Read { ticket, .. } => Some(*ticket),
        _ => None,
    });
    let (ticket, entries) = (read.unwrap(), vec![entry(8, "1")]);
    news(&mut driven, BrokerEvent::History { ticket, top: top(8), entries });
    sent = commands(&mut driven);
    let is_in_order =
        matches!(sent[..], [Command::Announce { joined: true, .. }, Command::Publish(_)]);
    assert!(is_in_order, "{sent:?}");
}

#[test]
fn without_a_connection_requests_fail_and_server_subscriptions_wait() {
    let mut driven = driven();
    let by_server = driven.subscribe("news", 9);
    driven.handle(1, Mail::Subscribe(Box::new(by_server)));
    subscribes(&mut driven, 1);
    driven.publishes("news", "1");
    let mail = driven.sent_to(1);
    let unavailable = |mail: &Mail| match mail {
        Mail::Subscribed(of) => matches!(of.recovery, Recovery::Unavailable),
        _ => false,
    };
    // Also behind one that waits.
    assert!(unavailable(&mail[0]) && texts(&mail)[1] == "error Internal" && mail.len() == 2);
    assert!(crate::proto::client::ErrorCode::Internal.temporary());
    news(&mut driven, BrokerEvent::Connected);
    assert_eq!(commands(&mut driven).len(), 1);
    news(&mut driven, BrokerEvent::Listening { channel: "news".into() });
    assert_eq!(commands(&mut driven).len(), 1);
    // The connection goes once more, with a read on its way.
    news(&mut driven, BrokerEvent::Lost);
    assert!(driven.sent_to(1).is_empty());
    news(&mut driven, BrokerEvent::Connected);
    assert!(matches!(&commands(&mut driven)[..], [Command::Listen { .. }]));
}

#[test]
fn an_operation_that_the_broker_does_not_answer_ends_with_an_error() {
    let mut driven = at_seven();
    driven.publishes("news", "1");
    let pass = Mail::Pass { order: 3 };
    driven.handle(1, pass);
    (0..4).for_each(|_| second(&mut driven));
    assert!(driven.sent_to(1).is_empty());
    second(&mut driven);
    let mail = driven.sent_to(1);
    assert!(matches!(mail[1], Mail::Passed { order: 3 }) && texts(&mail)[0] == "error Internal");
    assert_eq!(driven.cx.counters().broker_timeouts.get(), 1);
    // Its answer comes too late.
    let sent = commands(&mut driven);
    let Command::Publish(publishing) = &sent[0] else { panic!("{sent:?}") };
    let ticket = publishing.ticket;
    news(&mut driven, BrokerEvent::Published { ticket, position: top(8) });
    assert!(driven.sent_to(1).is_empty());
    // Without operations an order passes at once.
    driven.handle(1, Mail::Pass { order: 4 });
    assert!(matches!(driven.sent_to(1)[..], [Mail::Passed { order: 4 }]));
}

#[test]
fn too_many_operations_that_wait_get_an_error_at_once() {
    let mut driven = at_seven();
    for _ in 0..OPERATIONS_MAX {
        driven.publishes("news", "1");
        driven.sent_to(BROKER.0);
    }
    driven.publishes("news", "2");
    let mail = texts(&driven.sent_to(1));
    assert_eq!(mail, ["error Internal"]);
    assert_eq!(driven.cx.counters().broker_refused.get(), 1);
    assert_eq!(driven.home.left().last().unwrap().1, OPERATIONS_MAX);
}

#[test]
fn operations_get_an_error_at_once_while_the_broker_takes_no_mail() {
    let mut driven = at_seven();
    let data = format!("\"{}\"", "x".repeat(1 << 20));
    // The mailbox takes eight batches, and the lane one publication of this size.
    for _ in 0..8 {
        driven.publishes("news", "1");
        assert!(driven.sent_to(1).is_empty());
    }
    driven.publishes("news", &data);
    assert!(driven.sent_to(1).is_empty());
    driven.publishes("news", "1");
    assert_eq!(texts(&driven.sent_to(1)), ["error Internal"]);
    let sent = commands(&mut driven);
    assert_eq!(sent.len(), 8, "{sent:?}");
    assert_eq!(commands(&mut driven).len(), 1, "there is room again");
    driven.publishes("news", "2");
    assert!(driven.sent_to(1).is_empty());
}

#[test]
fn a_channel_is_listened_to_for_a_second_behind_its_last_subscriber() {
    let mut driven = at_seven();
    unsubscribes(&mut driven);
    assert_eq!(texts(&driven.sent_to(1)), ["unsubscribed 7"]);
    news(&mut driven, delivered(8, "1"));
    // It comes back where it was, and the position has gone on.
    let since = Since { offset: 7, epoch: "a life".into() };
    assert_eq!(driven.recovers("news", since).position, top(8));
    assert!(commands(&mut driven).is_empty());
    unsubscribes(&mut driven);
    second(&mut driven);
    let sent = commands(&mut driven);
    assert!(matches!(&sent[..], [Command::Unlisten { .. }]), "{sent:?}");
    assert!(driven.home.is_empty());
}

#[test]
fn a_storm_of_clients_costs_one_read() {
    let mut driven = driven();
    news(&mut driven, BrokerEvent::Connected);
    let comes_back = |driven: &mut Driven, index: u32, offset| {
        let since = Since { offset, epoch: "a life".into() };
        let (latest, filter, bytes_max, as_pushes) = (false, None, 1 << 20, false);
        let recover = Some(Box::new(Recover { since, latest, filter, bytes_max, as_pushes }));
        let mut subscribe =
            crate::shard::mail::Subscribe { recover, ..driven.subscribe("news", index) };
        subscribe.asker.method = Method::Subscribe;
        driven.handle(1, Mail::Subscribe(Box::new(subscribe)));
    };
    (0..50).for_each(|index| comes_back(&mut driven, index, u64::from(index % 7)));
    news(&mut driven, BrokerEvent::Listening { channel: "news".into() });
    let sent = commands(&mut driven);
    let [Command::Listen { .. }, Command::Read { ticket, .. }] = sent[..] else {
        panic!("{sent:?}")
    };
    let entries = (1..=7).rev().map(|offset| entry(offset, &offset.to_string())).collect();
    news(&mut driven, BrokerEvent::History { ticket, top: top(7), entries });
    (50..100).for_each(|index| comes_back(&mut driven, index, u64::from(index % 8)));
    let mail = driven.sent_to(1);
    let lists: Vec<_> = mail
        .iter()
        .filter_map(|mail| match mail {
            Mail::Subscribed(of) => match &of.recovery {
                Recovery::Done { publications, .. } => Some(publications.as_ref()),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert_eq!(lists.len(), 100);
    // Each list is encoded once; the very first comes before the channel has a number.
    let mut bytes: Vec<_> = lists.iter().flatten().map(|list| list.bytes().as_ptr()).collect();
    bytes.sort();
    bytes.dedup();
    assert!(bytes.len() <= 8, "{}", bytes.len());
    assert!(commands(&mut driven).is_empty() && driven.cx.counters().broker_reads.get() == 1);
    assert_eq!(driven.cx.counters().recovered.get(), 100);
}

#[test]
fn publications_go_as_patches_to_those_who_take_them() {
    let mut driven = at_seven();
    let delta = Form::JSON.with_data(crate::base::form::Data::Delta);
    let subscribe = driven.subscribe("news", 2);
    let traits = Traits::new(delta).with_positioned(true);
    let subscribe = crate::shard::mail::Subscribe { traits, ..subscribe };
    driven.handle(1, Mail::Subscribe(Box::new(subscribe)));
    still_at_seven(&mut driven);
    driven.sent_to(1);
    let text = |offset: u64| format!("\"a text that is long enough for a patch: {offset}\"");
    let patches = |driven: &mut Driven| -> Vec<(u64, bool, bool)> {
        let parcels = driven.sent_to(1).into_iter().filter_map(|mail| match mail {
            Mail::Deliver { parcel, .. } => Some(parcel),
            _ => None,
        });
        let of = |of: std::sync::Arc<crate::hub::parcel::Parcel>| {
            let frames = of.frames.iter().find(|(form, _)| *form == delta).unwrap();
            (of.offset, frames.1.patch.is_some(), frames.1.full.is_some())
        };
        parcels.map(of).collect()
    };
    for offset in 8..=10 {
        let mut event = delivered(offset, &text(offset));
        if let BrokerEvent::Delivered(of) = &mut event {
            of.entry.delta = true;
        }
        news(&mut driven, event);
    }
    // The first one behind a begin has no base, and goes in full.
    let all = patches(&mut driven);
    assert_eq!(all, [(8, false, true), (9, true, false), (10, true, false)]);
    news(&mut driven, delivered(11, &text(11)));
    assert_eq!(patches(&mut driven), [(11, false, true)]);
}

#[test]
fn members_are_refreshed_and_seen_before_they_are_read() {
    let mut driven = driven();
    news(&mut driven, BrokerEvent::Connected);
    driven.joins("news", 1, "ann");
    news(&mut driven, BrokerEvent::Listening { channel: "news".into() });
    let sent = commands(&mut driven);
    let ticket = sent.iter().find_map(|of| match of {
        Command::Read { ticket, .. } => Some(*ticket),
        _ => None,
    });
    let enters = |of: &Command, change| match of {
        Command::Presence(update) => update.changes[0].0 == change,
        _ => false,
    };
    assert!(sent.iter().any(|of| enters(of, ENTER)), "{sent:?}");
    let ticket = ticket.unwrap();
    news(&mut driven, BrokerEvent::History { ticket, top: top(0), entries: Vec::new() });
    // The reply comes when other nodes see the client.
    assert!(driven.sent_to(1).is_empty() && commands(&mut driven).is_empty());
    presence_is_taken(&mut driven, &sent);
    assert_eq!(texts(&driven.sent_to(1)), ["subscribed 0"]);
    let sent = commands(&mut driven);
    assert!(matches!(&sent[..], [Command::Announce { joined: true, .. }]), "{sent:?}");
    let info = info("ann", "renamed");
    driven.handle(1, Mail::Reinform { channel: "news".into(), conn: conn(1), info });
    let read = crate::shard::mail::Read {
        channel: "news".into(),
        hash: driven.cx.node.names.hash("news"),
        namespace: 0,
        asker: crate::shard::mail::Asker::of(conn(98)),
        encoding: crate::proto::client::Encoding::Json,
        bytes_max: 1 << 20,
        what: Reading::PresenceStats,
    };
    driven.handle(1, Mail::Read(Box::new(read)));
    let sent = commands(&mut driven);
    let [first, Command::Members { ticket, counts: true, .. }] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert!(enters(first, ENTER));
    let counts = BrokerEvent::MemberCounts { ticket: *ticket, clients: 5, users: 4 };
    news(&mut driven, counts);
    let mail = format!("{:?}", driven.sent_to(1));
    assert!(mail.contains("PresenceStats(5, 4)"), "{mail}");
    // Each is refreshed within some seconds of a connection.
    let refreshed = (0..30).any(|_| {
        second(&mut driven);
        commands(&mut driven).iter().any(|of| enters(of, PresenceChange::Refresh))
    });
    assert!(refreshed);
    driven.leaves("news", 1);
    let sent = commands(&mut driven);
    assert!(enters(&sent[0], PresenceChange::Leave), "{sent:?}");
    assert!(matches!(sent[1], Command::Announce { joined: false, .. }));
    assert!(driven.sent_to(1).is_empty());
    presence_is_taken(&mut driven, &sent);
    assert_eq!(texts(&driven.sent_to(1)), ["unsubscribed 7"]);
}

/// The broker answers the changes of presence among these commands.
fn presence_is_taken(driven: &mut Driven, sent: &[Command]) {
    for command in sent {
        if let Command::Presence(update) = command
            && let Some(ticket) = update.ticket
        {
            news(driven, BrokerEvent::Done { ticket });
        }
    }
}

#[test]
fn a_reply_does_not_wait_for_presence_that_no_broker_takes() {
    let mut driven = driven();
    news(&mut driven, BrokerEvent::Connected);
    driven.joins("news", 1, "ann");
    news(&mut driven, BrokerEvent::Listening { channel: "news".into() });
    let sent = commands(&mut driven);
    presence_is_taken(&mut driven, &sent);
    let ticket = sent.iter().find_map(|of| match of {
        Command::Read { ticket, .. } => Some(*ticket),
        _ => None,
    });
    let (ticket, entries) = (ticket.unwrap(), Vec::new());
    news(&mut driven, BrokerEvent::History { ticket, top: top(0), entries });
    assert_eq!(texts(&driven.sent_to(1)), ["subscribed 0"]);
    driven.leaves("news", 1);
    assert!(driven.sent_to(1).is_empty());
    news(&mut driven, BrokerEvent::Lost);
    assert_eq!(texts(&driven.sent_to(1)), ["unsubscribed 7"]);
    // The answer would come too late.
    assert!(driven.home.left().iter().all(|(_, count)| *count == 0));
}

#[test]
fn members_enter_again_when_their_entries_are_gone() {
    let mut driven = driven();
    news(&mut driven, BrokerEvent::Connected);
    driven.joins("news", 1, "ann");
    news(&mut driven, BrokerEvent::Listening { channel: "news".into() });
    let sent = commands(&mut driven);
    presence_is_taken(&mut driven, &sent);
    let ticket = sent.iter().find_map(|of| match of {
        Command::Read { ticket, .. } => Some(*ticket),
        _ => None,
    });
    let entries = Vec::new();
    news(&mut driven, BrokerEvent::History { ticket: ticket.unwrap(), top: top(0), entries });
    commands(&mut driven);
    let is_entered =
        |of: &Command| matches!(of, Command::Presence(update) if update.changes[0].0 == ENTER);
    // The broker lost them: nobody saw a leave, so nobody sees a join.
    news(&mut driven, BrokerEvent::EntriesMissing { channel: "news".into() });
    let sent = commands(&mut driven);
    assert!(sent.len() == 1 && is_entered(&sent[0]), "{sent:?}");
    // Other nodes removed them, and announced leaves.
    news(&mut driven, BrokerEvent::EntriesRemoved);
    let mut sent = Vec::new();
    for _ in 0..30 {
        second(&mut driven);
        sent.extend(commands(&mut driven));
    }
    let joins = |of: &&Command| matches!(of, Command::Announce { joined: true, .. });
    assert_eq!(sent.iter().filter(|of| is_entered(of)).count(), 1, "{sent:?}");
    assert_eq!(sent.iter().filter(joins).count(), 1, "{sent:?}");
    // Of another node: it goes on as a leave.
    let info = info("bob", "x");
    news(&mut driven, BrokerEvent::Orphaned { channel: "elsewhere".into(), info });
    let sent = commands(&mut driven);
    assert!(matches!(&sent[..], [Command::Announce { joined: false, .. }]), "{sent:?}");
}

const ENTER: PresenceChange = PresenceChange::Enter { announces: true };

#[test]
fn an_answer_that_nobody_waits_for_changes_nothing() {
    let mut driven = driven();
    news(&mut driven, BrokerEvent::Connected);
    news(&mut driven, BrokerEvent::Done { ticket: Ticket(9) });
    news(&mut driven, BrokerEvent::Listening { channel: "nobody".into() });
    assert!(driven.sent_to(1).is_empty() && driven.home.left().iter().all(|of| of.1 == 0));
}

#[test]
fn windows_have_a_bound_in_common() {
    let mut driven = at_seven();
    let large = format!("\"{}\"", "x".repeat(100_000));
    (8..30).for_each(|offset| news(&mut driven, delivered(offset, &large)));
    driven.home.set_gauges(driven.cx.counters());
    // Half of 1 MiB: the other half is the other home's.
    let bytes = driven.cx.counters().broker_window_bytes.get();
    assert!((400_000..=524_288).contains(&bytes), "{bytes}");
}
