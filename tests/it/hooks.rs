//! Events that the application gets notice of (`client.hooks`), as its endpoint sees them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::*;

/// An application that keeps what is posted to it and answers with these statuses, the last one from then on.
struct Application {
    url: String,
    posts: Receiver<Value>,
}

impl Application {
    fn new(statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/events", listener.local_addr().unwrap());
        let (sender, posts) = channel();
        std::thread::spawn(move || {
            let mut statuses = statuses.iter().peekable();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    let line = line.trim_end().to_ascii_lowercase();
                    if let Some(value) = line.strip_prefix("content-length: ") {
                        length = value.parse().unwrap();
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let status = match statuses.len() {
                    1 => **statuses.peek().unwrap(),
                    _ => *statuses.next().unwrap(),
                };
                let answer = format!(
                    "HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                // The node may be gone.
                let _ = stream.write_all(answer.as_bytes());
                if sender.send(serde_json::from_slice(&body).unwrap()).is_err() {
                    return;
                }
            }
        });
        Self { url, posts }
    }

    fn post(&self) -> Value {
        self.posts.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// The next events, without what differs from run to run.
    fn events(&self, count: usize) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        while events.len() < count {
            events.extend(self.post()["events"].as_array().unwrap().iter().cloned());
        }
        for event in &mut events {
            let event = event.as_object_mut().unwrap();
            for name in ["id", "time", "address"] {
                event.remove(name);
            }
        }
        events
    }

    fn options(&self) -> String {
        format!(
            "[http_api]\nkey = \"k\"\n[client.hooks]\nendpoint = \"{}\"\ndisconnect = true\n\
             [[channel.namespaces]]\nname = \"room\"\nroost.state_events = [\"occupied\", \"vacated\"]\n\
             allow_subscribe_for_client = true\nallow_subscribe_for_anonymous = true\n",
            self.url
        )
    }
}

#[test]
fn a_channel_gets_its_first_subscriber_and_loses_its_last() {
    let application = Application::new(&[204]);
    let node = Node::open_with(&application.options(), &[]);
    let (mut first, mut second) = (node.connected(), node.connected());
    first.subscribe("room:1");
    second.subscribe("room:1");
    assert_eq!(application.events(1), [json!({"event": "occupied", "channel": "room:1"})]);
    first.ask("unsubscribe", json!({"channel": "room:1"}));
    second.ask("unsubscribe", json!({"channel": "room:1"}));
    assert_eq!(application.events(1), [json!({"event": "vacated", "channel": "room:1"})]);
}

#[test]
fn a_connection_that_ends_makes_an_event_with_code_and_user() {
    let application = Application::new(&[200]);
    let node = Node::open_with(&application.options(), &[]);
    let (client, reply) =
        node.connected_by(Speech::Json, json!({"token": token(json!({"sub": "alice"}))}));
    let id = reply["client"].clone();
    client.close();
    let closed = json!({"event": "disconnect", "client": id, "user": "alice", "code": 3000,
        "reason": "connection closed"});
    assert_eq!(application.events(1), [closed]);
    let mut bob = node.connected_as("bob");
    let command = json!({"user": "bob", "disconnect": {"code": 4001, "reason": "banned"}});
    node.call("disconnect", command);
    bob.is_closed(4001, "banned");
    let event = &application.events(1)[0];
    assert_eq!((&event["user"], &event["code"]), (&json!("bob"), &json!(4001)));
    assert_eq!(event["reason"], "banned");
}

#[test]
fn a_batch_that_was_not_acknowledged_is_sent_again_with_its_ids() {
    let application = Application::new(&[500, 404, 200]);
    let node = Node::open_with(&application.options(), &[]);
    node.connected_as("alice").close();
    let posts = [application.post(), application.post(), application.post()];
    assert_eq!(posts[0], posts[1]);
    assert_eq!(posts[0], posts[2]);
    assert_eq!(posts[0]["lost"], 0);
    node.connected_as("bob").close();
    let next = application.post();
    assert_ne!(next["events"][0]["id"], posts[0]["events"][0]["id"]);
    assert_eq!(next["events"][0]["user"], "bob");
}

#[test]
fn the_last_events_of_a_drain_are_delivered() {
    let application = Application::new(&[200]);
    let node = Node::open_with(&application.options(), &[]);
    let mut client = node.connected_as("alice");
    client.subscribe("room:1");
    assert_eq!(application.events(1)[0]["event"], "occupied");
    node.signal(Signal::TERM);
    client.is_closed(3001, "shutdown");
    drop(client);
    let mut events = application.events(2);
    events.sort_by_key(|event| event["event"].as_str().unwrap().to_owned());
    assert_eq!((&events[0]["event"], &events[0]["code"]), (&json!("disconnect"), &json!(3001)));
    assert_eq!(events[1], json!({"event": "vacated", "channel": "room:1"}));
    node.ended();
}

#[test]
fn everybody_is_disconnected_but_those_who_are_spared() {
    let node = Node::open_with("[http_api]\nkey = \"k\"\n", &[]);
    let (mut alice, mut bob) = (node.connected_as("alice"), node.connected());
    let (mut spared, reply) = node.connected_by(Speech::Json, json!({}));
    let command = json!({"all_users": true, "whitelist": [reply["client"]]});
    assert_eq!(node.call("disconnect", command), json!({"result": {}}));
    alice.is_closed(3503, "force disconnect");
    bob.is_closed(3503, "force disconnect");
    spared.subscribe("still_here");
}

#[test]
fn a_publish_returns_the_number_of_subscribers_when_it_is_requested() {
    let node = Node::open_with("[http_api]\nkey = \"k\"\n", &[]);
    let (mut first, mut second) = (node.connected(), node.connected());
    let publish = |channel: &str| {
        let params = json!({"channel": channel, "data": 1, "count_subscribers": true});
        node.call("publish", params)["result"].clone()
    };
    assert_eq!(publish("news")["subscribers"], 0);
    first.subscribe("news");
    second.subscribe("news");
    assert_eq!(publish("news")["subscribers"], 2);
    // A pattern without a wildcard is looked up, and its escapes are none of the name.
    let listed = |pattern: &str| {
        let answer = node.call("channels", json!({"pattern": pattern}));
        answer["result"]["channels"].clone()
    };
    assert_eq!(listed("news"), json!({"news": {"num_clients": 2}}));
    assert_eq!(listed(r"ne\ws"), listed("new?"));
    assert_eq!(listed("new"), json!({}));
    let plain = node.call("publish", json!({"channel": "news", "data": 1}));
    assert!(plain["result"].get("subscribers").is_none(), "{plain}");
}
