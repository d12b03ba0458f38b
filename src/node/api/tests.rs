//! The core without a front: typed calls in, mail to shards out, typed results back.

use std::cell::RefCell;
use std::rc::Rc;

use super::calls::{
    BroadcastCall, Content, DisconnectCall, HistoryCall, Payload, PublishCall, Published,
};
use super::calls::{SubscribeCall, UnsubscribeCall};
use super::*;
use crate::base::frame::SharedFrame;
use crate::base::id::ShardId;
use crate::base::limits::{API_PATTERN_BYTES_MAX, API_SPARED_MAX};
use crate::hub::history::Position;
use crate::node::orders::Target;
use crate::node::testing::Bench;
use crate::proto::client::{Encoding, ErrorCode};
use crate::shard::mail::{AdminCommand, Answer, Listed, Mail, PublishOptions, Reading};

const OPTIONS: &[(&str, &str)] = &[
    ("CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_PRESENCE", "true"),
    ("CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_HISTORY_SIZE", "10"),
    ("CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_HISTORY_TTL", "60s"),
];

const FORMAT: Format = Format { encoding: Encoding::Json, bytes_max: 1000 };

fn bench(shards: usize) -> (Bench, Api) {
    limited(shards, u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "the start of a node")]
fn limited(shards: usize, memory_limit: u64) -> (Bench, Api) {
    let bench = Bench::new(shards, memory_limit, OPTIONS);
    let (node, control_mail) = (Arc::clone(&bench.node), Arc::clone(&bench.control_mail));
    let api = Api::new(node, control_mail, "name".to_owned(), Instant::now(), None);
    (bench, api)
}

fn content(json: &str) -> Content {
    let payload = Payload::json(json).unwrap();
    Content::new(payload, std::iter::empty(), PublishOptions::default()).unwrap()
}

fn publish(channel: &str) -> PublishCall {
    PublishCall { channel: channel.to_owned(), content: content("{}"), counts: false }
}

/// In the place of a home that takes every publication.
fn taken(_: ShardId, mail: Mail) -> Option<Mail> {
    let Mail::Publish(publish) = mail else { panic!("{mail:?}") };
    let position = Position { offset: publish.channel.len() as u64, epoch: None };
    Some(Mail::Published { asker: publish.asker.unwrap(), position })
}

/// Where nothing may reach a shard.
fn nothing(_: ShardId, mail: Mail) -> Option<Mail> {
    panic!("{mail:?}")
}

#[tokio::test]
async fn a_publication_goes_to_the_home_of_its_channel() {
    let (mut bench, api) = bench(3);
    let node = Arc::clone(&bench.node);
    let published = bench.with_shards(api.publish(publish("news")), |shard, mail| {
        let Mail::Publish(publish) = &mail else { panic!("{mail:?}") };
        assert_eq!((&*publish.data, publish.is_json), (&b"{}"[..], true));
        assert_eq!(shard, node.names.home(node.names.hash("news")));
        taken(shard, mail)
    });
    assert_eq!(published.await, Ok(Published { offset: 4, ..<_>::default() }));
}

#[tokio::test]
async fn a_publication_that_may_not_be_reaches_no_shard() {
    let (mut bench, api) = bench(1);
    let binary =
        Content::new(Payload::bytes(b"").unwrap(), std::iter::empty(), PublishOptions::default());
    for (channel, content, expected) in [
        ("", content("{}"), ApiError::BadRequest),
        ("none:a", content("{}"), ApiError::UnknownChannel),
        ("a", binary.unwrap(), ApiError::BadRequest),
    ] {
        let publish = PublishCall { channel: channel.to_owned(), content, counts: false };
        let refused = bench.with_shards(api.publish(publish), nothing).await;
        assert_eq!(refused, Err(expected), "{channel}");
    }
    let (mut bench, api) = limited(1, 1000);
    bench.node.memory.set_allocated(2000);
    let refused = bench.with_shards(api.publish(publish("a")), nothing).await;
    assert_eq!(refused, Err(ApiError::ShortOfMemory));
}

#[tokio::test]
async fn a_broadcast_shares_its_payload_and_answers_in_the_order_of_channels() {
    let (mut bench, api) = bench(4);
    let channels = ["a", "none:b", "ccc", "dd"].map(str::to_owned).to_vec();
    let content = content("[1,2,3]");
    let payload = content.data.as_ptr();
    let broadcast = BroadcastCall { channels, content };
    let seen = Rc::new(RefCell::new(0));
    let answers = bench.with_shards(api.broadcast(broadcast), |shard, mail| {
        let Mail::Publish(publish) = &mail else { panic!("{mail:?}") };
        assert_eq!(publish.data.as_ptr(), payload, "a copy for {}", publish.channel);
        *seen.borrow_mut() += 1;
        taken(shard, mail)
    });
    let at = |offset| Ok(Published { offset, ..<_>::default() });
    let expected = vec![at(1), Err(ApiError::UnknownChannel), at(3), at(2)];
    assert_eq!(answers.await, Ok(expected));
    assert_eq!(*seen.borrow(), 3);
}

#[tokio::test]
async fn a_broadcast_of_too_much_publishes_nothing() {
    let (mut bench, api) = bench(1);
    let none = BroadcastCall { channels: Vec::new(), content: content("{}") };
    assert_eq!(bench.with_shards(api.broadcast(none), nothing).await, Err(ApiError::BadRequest));
    let long = format!("\"{}\"", "x".repeat(1 << 20));
    let channels = vec!["a".to_owned(); 1000];
    let much = BroadcastCall { channels, content: content(&long) };
    let refused = bench.with_shards(api.broadcast(much.clone()), nothing).await;
    assert_eq!(refused, Err(ApiError::TooMuch));
    let call = api.call(Call::Broadcast(much), FORMAT);
    assert_eq!(bench.with_shards(call, nothing).await.unwrap_err(), ApiError::TooMuch);
}

#[tokio::test]
async fn reads_are_answered_by_the_home_in_the_encoding_that_was_wanted() {
    let (mut bench, api) = bench(2);
    let format = Format { encoding: Encoding::Protobuf, bytes_max: 77 };
    let history = HistoryCall { channel: "a".to_owned(), limit: -1, ..HistoryCall::default() };
    let read = bench.with_shards(api.history(history, format), |_, mail| {
        let Mail::Read(read) = mail else { panic!("{mail:?}") };
        let Reading::History(page) = &read.what else { panic!("{read:?}") };
        assert_eq!((read.encoding, read.bytes_max), (Encoding::Protobuf, 77));
        assert_eq!(page.limit, usize::MAX);
        let answer = Answer::History(SharedFrame::part(b"encoded"));
        Some(Mail::Answer { asker: read.asker, answer })
    });
    assert_eq!(read.await.unwrap().bytes(), b"encoded");
    for (answer, expected) in [
        (Answer::Unfit, ApiError::NotJson),
        (Answer::failed(ErrorCode::UnrecoverablePosition, "a"), ApiError::UnrecoverablePosition),
        (Answer::Done, ApiError::Internal),
    ] {
        let mut answer = Some(answer);
        let read = bench.with_shards(api.presence("a", FORMAT), |_, mail| {
            let Mail::Read(read) = mail else { panic!("{mail:?}") };
            Some(Mail::Answer { asker: read.asker, answer: answer.take().unwrap() })
        });
        assert_eq!(read.await.unwrap_err(), expected);
    }
}

#[tokio::test]
async fn channels_of_all_homes_are_listed_by_name_as_far_as_there_is_room() {
    let (mut bench, api) = bench(2);
    let homes = |shard: ShardId, mail: Mail| {
        let Mail::List(list) = mail else { panic!("{mail:?}") };
        let (channels, next) = match (shard.0, list.cursor) {
            (0, 0) => (vec![("b".into(), 1)], Some(5)),
            (0, 5) => (vec![("roost.admin".into(), 1), ("a".into(), 2)], None),
            _ => (vec![("ab".into(), 3)], None),
        };
        let listed = Box::new(Listed { channels, next, ..Listed::default() });
        Some(Mail::Listed { asker: list.asker, listed })
    };
    for (pattern, expected) in
        [("", vec![("a", 2), ("ab", 3), ("b", 1)]), ("a*", vec![("a", 2), ("ab", 3)])]
    {
        let listed = bench.with_shards(api.channels(pattern, 1000), homes).await.unwrap();
        let listed: Vec<_> = listed.iter().map(|(name, of)| (name.as_str(), *of)).collect();
        assert_eq!(listed, expected, "{pattern}");
    }
    let long = bench.with_shards(api.channels("", 50), homes).await;
    assert_eq!(long, Err(ApiError::AnswerTooLong));
    let pattern = "a".repeat(API_PATTERN_BYTES_MAX + 1);
    let refused = bench.with_shards(api.channels(&pattern, 1000), nothing).await;
    assert_eq!(refused, Err(ApiError::LongPattern));
}

#[tokio::test]
async fn an_order_goes_to_all_shards_and_waits_for_all() {
    let (mut bench, api) = bench(3);
    let target = Target { user: "42".into(), ..Target::default() };
    let unsubscribe = UnsubscribeCall { target: target.clone(), channel: String::new() };
    let shards = RefCell::new(Vec::new());
    let done = bench.with_shards(api.unsubscribe(unsubscribe), |shard, mail| {
        let Mail::Order(order) = mail else { panic!("{mail:?}") };
        assert_eq!(order.user, "42");
        shards.borrow_mut().push(shard.0);
        Some(Mail::Ordered { asker: order.asker, connections: 1 })
    });
    assert_eq!(done.await, Ok(()));
    assert_eq!(*shards.borrow(), [0, 1, 2]);
    let unknown =
        SubscribeCall { target, channel: "none:a".to_owned(), ..SubscribeCall::default() };
    let refused = bench.with_shards(api.subscribe(unknown), nothing).await;
    assert_eq!(refused, Err(ApiError::UnknownChannel));
}

#[tokio::test]
async fn a_disconnect_has_a_code_that_clients_know() {
    let (mut bench, api) = bench(1);
    let disconnect = |code, reason: &str| DisconnectCall {
        code,
        reason: reason.to_owned(),
        spare: ["b", "a"].map(Into::into).to_vec(),
        ..DisconnectCall::default()
    };
    for (code, reason, expected) in
        [(0, "ignored", (3503, "force disconnect")), (4000, "x", (4000, "x"))]
    {
        let done = bench.with_shards(api.disconnect(disconnect(code, reason)), |_, mail| {
            let Mail::Order(order) = mail else { panic!("{mail:?}") };
            let AdminCommand::Disconnect { code, reason, spare } = &order.command else {
                panic!("{order:?}")
            };
            assert_eq!((*code, reason.as_str()), expected);
            assert_eq!(*spare, ["a", "b"], "searched by bisection");
            Some(Mail::Ordered { asker: order.asker, connections: 1 })
        });
        assert_eq!(done.await, Ok(()));
    }
    for (code, reason) in [(2999, ""), (5000, ""), (4000, &*"x".repeat(124))] {
        let refused = bench.with_shards(api.disconnect(disconnect(code, reason)), nothing).await;
        assert_eq!(refused, Err(ApiError::BadRequest), "{code}");
    }
    let mut many = disconnect(0, "");
    many.spare = vec!["a".into(); API_SPARED_MAX + 1];
    let refused = bench.with_shards(api.disconnect(many), nothing).await;
    assert_eq!(refused, Err(ApiError::TooMuch));
}

#[tokio::test]
async fn calls_of_no_use_here_are_refused() {
    let (mut bench, api) = bench(1);
    let keyed = |channel: &str, key: &str, version| Keyed {
        channel: channel.to_owned(),
        key: key.to_owned(),
        version,
    };
    for (call, expected) in [
        (Call::Rpc(String::new()), ApiError::BadRequest),
        (Call::Rpc("x".to_owned()), ApiError::NotFound),
        (Call::Map(keyed("none:a", "", 0)), ApiError::UnknownChannel),
        (Call::Map(keyed("a", "", 0)), ApiError::BadRequest),
        (Call::MapKey(keyed("none:a", "", 0)), ApiError::BadRequest),
        (Call::MapKey(keyed("none:a", "k", 0)), ApiError::UnknownChannel),
        (Call::SharedPoll(keyed("none:a", "k", 0)), ApiError::BadRequest),
        (Call::SharedPoll(keyed("none:a", "k", 1)), ApiError::UnknownChannel),
    ] {
        let name = format!("{call:?}");
        let refused = bench.with_shards(api.call(call, FORMAT), nothing).await;
        assert_eq!(refused.unwrap_err(), expected, "{name}");
    }
}

#[tokio::test]
async fn info_names_and_counts_the_node() {
    let (mut bench, api) = bench(1);
    bench.node.counters[0].subscriptions.add(3);
    bench.node.counters[0].users.add(2);
    let nodes = bench.with_shards(api.info(), nothing).await.unwrap();
    let [info] = &nodes[..] else { panic!("{nodes:?}") };
    assert_eq!((&*info.uid, &*info.name), ("node", "name"));
    assert_eq!((info.subscriptions, info.users), (3, 2));
    assert_eq!(info.figures.as_ref().unwrap().items["subscriptions"], 3.0);
}
