//! Messages arrive whole, once, in order; who doesn't take them goes.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Barrier;

use serde_json::{Value, json};

use crate::harness::*;
use crate::protobuf;

/// Subscribers over several channels, publishers that pipeline: everyone gets everything of its
/// channels, in the order of offsets, and all subscribers of a channel the same.
#[test]
fn every_subscriber_gets_every_message_in_order() {
    const CHANNELS: usize = 5;
    const SUBSCRIBERS: usize = 50;
    const PUBLISHERS: usize = 4;
    const PUBLISHES: usize = 2000;
    /// Publications in each channel.
    const EACH: usize = PUBLISHERS * PUBLISHES / CHANNELS;

    let node = Node::open(&["--shards", "4", "--client.queue_max_size", "100000000"]);
    let everyone = Barrier::new(SUBSCRIBERS + PUBLISHERS);
    let streams: Vec<(usize, Vec<(u64, u64)>)> = std::thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let (node, everyone) = (&node, &everyone);
            scope.spawn(move || {
                let mut client = node.connected();
                everyone.wait();
                let mut writing = client.socket.get_ref().try_clone().unwrap();
                scope.spawn(move || {
                    for batch in 0..PUBLISHES / 20 {
                        let lines = (batch * 20..(batch + 1) * 20).map(|number| {
                            let channel = format!("stream:{}", number % CHANNELS);
                            let data = publisher * PUBLISHES + number;
                            let publish = json!({"channel": channel, "data": data});
                            json!({"id": number + 2, "publish": publish}).to_string()
                        });
                        let text = lines.collect::<Vec<_>>().join("\n");
                        writing.write_all(&frame(TEXT, text.as_bytes())).unwrap();
                    }
                });
                // Different homes answer: each once, in the order of each channel.
                let mut seen = [0; CHANNELS];
                for _ in 0..PUBLISHES {
                    let reply: Value = serde_json::from_str(&client.line()).unwrap();
                    assert_eq!(reply["publish"], json!({}), "{reply}");
                    let id = reply["id"].as_u64().unwrap() as usize;
                    let last = std::mem::replace(&mut seen[(id - 2) % CHANNELS], id);
                    assert!(last < id, "{last} before {id}");
                }
            });
        }
        let subscribers: Vec<_> = (0..SUBSCRIBERS)
            .map(|number| {
                let (node, everyone) = (&node, &everyone);
                scope.spawn(move || {
                    let mut client = node.connected();
                    // Two channels each.
                    let channels = [number % CHANNELS, (number / CHANNELS + number + 1) % CHANNELS];
                    let channels: std::collections::BTreeSet<_> = channels.into();
                    for channel in &channels {
                        client.subscribe(&format!("stream:{channel}"));
                    }
                    everyone.wait();
                    let mut got: BTreeMap<usize, Vec<(u64, u64)>> = BTreeMap::new();
                    for _ in 0..EACH * channels.len() {
                        let push: Value = serde_json::from_str(&client.line()).unwrap();
                        let (push, publication) = (&push["push"], &push["push"]["pub"]);
                        let channel = push["channel"].as_str().unwrap();
                        let channel: usize = channel["stream:".len()..].parse().unwrap();
                        let offset = publication["offset"].as_u64().unwrap();
                        let data = publication["data"].as_u64().unwrap();
                        got.entry(channel).or_default().push((offset, data));
                    }
                    // And nothing behind the last one.
                    client.talk("> {\"id\":9,\"rpc\":{}}\n< {\"id\":9,\"error\":{*}}");
                    got
                })
            })
            .collect();
        subscribers.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });

    let mut by_channel: BTreeMap<usize, &Vec<(u64, u64)>> = BTreeMap::new();
    for (channel, got) in &streams {
        let offsets: Vec<u64> = got.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, (1..=EACH as u64).collect::<Vec<_>>(), "channel {channel}");
        assert_eq!(*by_channel.entry(*channel).or_insert(got), got, "channel {channel}");
    }
    assert_eq!(by_channel.len(), CHANNELS);
    for (channel, got) in by_channel {
        let mut all: Vec<u64> = got.iter().map(|(_, data)| *data).collect();
        // Publications of one publisher stay in their order.
        for publisher in 0..PUBLISHERS as u64 {
            let own = |data: &&u64| **data / PUBLISHES as u64 == publisher;
            assert!(all.iter().filter(own).is_sorted(), "channel {channel}");
        }
        all.sort_unstable();
        let sent = (0..PUBLISHERS * PUBLISHES).filter(|data| data % CHANNELS == channel);
        assert_eq!(all, sent.map(|data| data as u64).collect::<Vec<_>>());
    }
    let figures = node.figures();
    assert_eq!(figures["publications"], (PUBLISHERS * PUBLISHES) as u64);
    assert_eq!(figures["deliveries"], streams.iter().map(|(_, got)| got.len() as u64).sum::<u64>());
    for lost in ["gaps_mail", "gaps_fanout", "gaps_told", "gaps_untold", "closed_slow"] {
        assert_eq!(figures[lost], 0, "{lost}");
    }
}

/// Publishes until the node has closed somebody, as its figures say.
pub(crate) fn publish_until(node: &Node, closed: &str, channel: &str) {
    let mut publisher = node.connected();
    let data = "x".repeat(30_000);
    for _ in 0..1000 {
        for _ in 0..20 {
            let id = publisher.command("publish", json!({"channel": channel, "data": data}));
            let line = publisher.line();
            // Over the limit of memory it is refused, until the client has gone.
            let taken = like(&line, &format!("{{\"id\":{id},\"publish\":{{}}}}"));
            assert!(taken || like(&line, &format!("{{\"id\":{id},\"error\":{{\"code\":100,*}}}}")));
        }
        if node.figures().get(closed).is_some_and(|count| *count > 0) {
            return;
        }
    }
    panic!("600 MB were queued for a client that doesn't read");
}

#[test]
fn a_slow_consumer_is_closed_with_3008_and_the_others_lose_nothing() {
    let node = Node::open(&["--websocket.write_timeout", "10m", "--close-timeout", "10m"]);
    let mut slow = node.upgraded(CLIENTS);
    slow.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    slow.send(&frame(TEXT, br#"{"id":2,"subscribe":{"channel":"a"}}"#));
    node.until_is("subscriptions", 1);
    std::thread::scope(|scope| {
        let mut reading = node.connected();
        reading.subscribe("a");
        let reader = scope.spawn(move || {
            let mut got = 0u64;
            while reading.line().len() > 30_000 {
                got += 1;
            }
            got
        });
        publish_until(&node, "closed_slow", "a");
        let mut last = node.connected();
        last.send(r#"{"id":2,"publish":{"channel":"a","data":"end"}}"#);
        let got = reader.join().unwrap();
        assert_eq!(got + 1, node.until_is("publications", got + 1)["publications"]);
    });
    // But for what had begun to go: publications that are joined for one write are 64 KiB at most.
    let figures = node.until("its queue gone", |figures| figures["queued_bytes"] < 70_000);
    assert_eq!(figures["closed_slow"], 1);

    // It reads again: what was on its way, whole frames, then the close.
    let mut got = 0;
    let closed = loop {
        match slow.frame().expect("a close frame") {
            (TEXT, _) => got += 1,
            (CLOSE, payload) => break payload,
            other => panic!("{other:?}"),
        }
    };
    assert!(got > 2);
    assert_eq!(closed, close_payload(3008, "slow"));
    slow.send(&frame(CLOSE, &closed));
    slow.ends();
    drop(slow);
    node.until("empty", |figures| figures["slots_in_use"] == 0 && figures["queues"] == 0);
}

#[test]
fn a_peer_that_takes_nothing_is_dropped_after_the_write_timeout() {
    let node = Node::open(&[
        "--websocket.write_timeout",
        "300ms",
        "--client.queue_max_size",
        "1000000000",
    ]);
    let mut stuck = node.upgraded(CLIENTS);
    stuck.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    stuck.send(&frame(TEXT, br#"{"id":2,"subscribe":{"channel":"a"}}"#));
    node.until_is("subscriptions", 1);
    publish_until(&node, "closed_write_timeout", "a");
    // No close frame gets through to it: its stream is cut.
    while let Some((first, _)) = stuck.frame() {
        assert_eq!(first, TEXT);
    }
    let figures =
        node.until("empty", |figures| figures["queued_bytes"] == 0 && figures["slots_in_use"] == 0);
    assert_eq!((figures["closed_write_timeout"], figures["closed_slow"]), (1, 0));
    node.is_healthy();
}

/// A client that takes its time is not slow as long as it keeps up with its bounds.
#[test]
fn commands_are_answered_however_late_they_are_read() {
    const COMMANDS: usize = 2000;
    let node = Node::open(&["--shards", "2"]);
    let mut client = node.connected();
    client.subscribe("a");
    // All written before anything is read: more than may be unanswered at once. Half of them in
    // one frame, half in one each.
    let publish = |id: usize| {
        let channel = if id.is_multiple_of(2) { "a" } else { "b" };
        json!({"id": id, "publish": {"channel": channel, "data": id}}).to_string()
    };
    let batch: Vec<String> = (2..COMMANDS / 2).map(publish).collect();
    client.send(&batch.join("\n"));
    for id in COMMANDS / 2..COMMANDS + 2 {
        client.send(&publish(id));
    }
    let (mut replies, mut pushes) = (0, 0);
    while replies < COMMANDS || pushes < COMMANDS / 2 {
        match client.line().starts_with("{\"id\":") {
            true => replies += 1,
            false => pushes += 1,
        }
    }
    let figures = node.figures();
    assert!(figures["commands_paused"] > 0, "the bound was never met");

    // Behind what waits, the client's close is found all the same.
    let mut raw = node.upgraded(CLIENTS);
    raw.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    raw.send(&frame(TEXT, batch.join("\n").as_bytes()));
    raw.send(&frame(CLOSE, &close_payload(1000, "")));
    while let Some((first, payload)) = raw.frame() {
        if first == CLOSE {
            assert_eq!(payload, close_payload(1000, ""));
            break;
        }
    }
    raw.ends();
    node.is_healthy();
}

/// Many large publications at once, more than what waits between two shards in a turn: nobody who
/// takes them in time loses one.
#[test]
fn a_burst_of_large_publications() {
    const PUBLISHERS: usize = 40;
    const EACH: usize = 10;
    let node = Node::open(&[
        "--client.queue_max_size",
        "100000000",
        "--websocket.write_timeout",
        "10m",
        "--shards",
        "3",
    ]);
    let mut subscribers: Vec<Client> = (0..4).map(|_| node.connected()).collect();
    for client in &mut subscribers {
        client.subscribe("stream:one");
        (0..PUBLISHERS).for_each(|channel| client.subscribe(&format!("{channel}")));
    }
    let everyone = Barrier::new(PUBLISHERS);
    let data = "x".repeat(60_000);
    std::thread::scope(|scope| {
        for number in 0..PUBLISHERS {
            let (node, everyone, data) = (&node, &everyone, &data);
            scope.spawn(move || {
                let mut client = node.connected();
                everyone.wait();
                for publish in 0..EACH {
                    // One for all, and one of its own.
                    let own = number.to_string();
                    let channel = if publish % 2 == 0 { "stream:one" } else { &own };
                    client.command("publish", json!({"channel": channel, "data": data}));
                }
                for _ in 0..EACH {
                    client.expect("{\"id\":*,\"publish\":{}}");
                }
            });
        }
    });
    for client in &mut subscribers {
        let mut last = 0;
        for _ in 0..PUBLISHERS * EACH {
            let push: Value = serde_json::from_str(&client.line()).unwrap();
            if let Some(offset) = push["push"]["pub"]["offset"].as_u64() {
                assert_eq!(offset, last + 1);
                last = offset;
            }
        }
        assert_eq!(last as usize, PUBLISHERS * EACH / 2);
    }
    let figures = node.figures();
    for lost in ["gaps_mail", "gaps_fanout", "gaps_untold"] {
        assert_eq!(figures[lost], 0, "{lost}");
    }
}

/// Which publications were too much for whom is told by namespace.
#[test]
fn slow_consumers_are_counted_by_namespace() {
    let node = Node::open(&["--websocket.write_timeout", "10m", "--close-timeout", "10m"]);
    let slow = |figures: &Figures| {
        let of = |name: &str| figures.get(&format!("closed_slow{{namespace=\"{name}\"}}")).copied();
        (of("stream"), of(""))
    };
    assert_eq!(slow(&node.figures()), (None, None));
    let mut stuck = vec![];
    for (channel, counter, expected) in [
        ("stream:a", "closed_slow{namespace=\"stream\"}", (Some(1), None)),
        ("a", "closed_slow{namespace=\"\"}", (Some(1), Some(1))),
    ] {
        let mut raw = node.upgraded(CLIENTS);
        raw.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
        let subscribe = json!({"id": 2, "subscribe": {"channel": channel}});
        raw.send(&frame(TEXT, subscribe.to_string().as_bytes()));
        node.until_is("subscriptions", 1);
        publish_until(&node, counter, channel);
        node.until_is("subscriptions", 0);
        assert_eq!(slow(&node.figures()), expected);
        stuck.push(raw);
    }
    assert_eq!(node.figures()["closed_slow"], 2);
}

/// One publication, a thousand subscribers, both encodings.
#[test]
fn a_publication_to_a_thousand() {
    const SUBSCRIBERS: usize = 1000;
    let node = Node::open(&["--shards", "3"]);
    let open = |number: usize| {
        let (path, first, commands) = match number % 2 {
            0 => (
                CLIENTS,
                TEXT,
                b"{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"stream:a\"}}"
                    .to_vec(),
            ),
            _ => (
                PROTOBUF_CLIENTS,
                BINARY,
                protobuf::commands(
                    "{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"stream:a\"}}",
                ),
            ),
        };
        let mut raw = node.upgraded(path);
        raw.send(&frame(first, &commands));
        (raw, first)
    };
    let mut subscribers: Vec<(Raw, u8)> = (0..SUBSCRIBERS).map(open).collect();
    // The next messages of one of them, as JSON.
    let messages = |(raw, expected): &mut (Raw, u8), count: usize| {
        let mut messages = vec![];
        while messages.len() < count {
            let (first, payload) = raw.frame().unwrap();
            assert_eq!(first, *expected);
            match first {
                TEXT => {
                    let text = String::from_utf8(payload).unwrap();
                    messages.extend(text.split('\n').map(String::from));
                }
                _ => messages.extend(protobuf::replies(&payload)),
            }
        }
        messages
    };
    for subscriber in &mut subscribers {
        let got = messages(subscriber, 2);
        assert!(got[0].starts_with("{\"id\":1,\"connect\":{\"client\":"), "{got:?}");
        assert_eq!(got[1..], ["{\"id\":2,\"subscribe\":{}}"]);
    }
    let mut publisher = node.connected();
    for number in 1..=3 {
        publisher.publish("stream:a", json!({"number": number}));
    }
    let first = messages(&mut subscribers[0], 3);
    for (at, line) in (1..).zip(&first) {
        let expected = format!(
            "{{\"push\":{{\"channel\":\"stream:a\",\"pub\":{{\"data\":{{\"number\":{at}}},\"info\":*,\"offset\":{at}*}}}}}}"
        );
        assert!(like(line, &expected), "{line}");
    }
    for subscriber in &mut subscribers[1..] {
        assert_eq!(messages(subscriber, 3), first);
    }
    let figures = node.figures();
    assert_eq!(figures["deliveries"], 3 * SUBSCRIBERS as u64);
    assert_eq!((figures["closed_slow"], figures["gaps_untold"]), (0, 0));
}
