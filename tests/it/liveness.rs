//! Pings, pongs, and clients that never begin.

use crate::harness::*;

fn node(interval: &str, timeout: &str) -> Node {
    Node::open(&["--client.ping_interval", interval, "--client.pong_timeout", timeout])
}

const CONNECT: &str = "{\"id\":1,\"connect\":{}}";

#[test]
fn a_client_that_answers_pings_stays() {
    let node = node("800ms", "400ms");
    let mut client = node.connected();
    for _ in 0..4 {
        client.talk("< {}\n> {}");
    }
    client.talk("> {\"id\":2,\"rpc\":{}}\n< {\"id\":2,\"error\":{*}}");
    let figures = node.until("pongs", |figures| figures["pongs"] >= 4);
    assert_eq!(figures["closed_no_pong"], 0);
}

#[test]
fn messages_that_count_as_a_pong() {
    let node = &node("3s", "1500ms");
    std::thread::scope(|scope| {
        for transcript in [
            // Any command without an id that isn't a send.
            "< {}\n> {\"rpc\":{}}\n< {}",
            // Other traffic does not.
            "< {}\n> {\"id\":2,\"rpc\":{}}\n< {\"id\":2,\"error\":{*}}\nx 3012 no pong",
            // A second one for the same ping.
            "< {}\n> {}\\n{}\nx 3501 bad request",
            // One that nobody waits for.
            "> {}\nx 3501 bad request",
        ] {
            scope.spawn(|| node.connected().talk(transcript));
        }
    });
    let figures = node.figures();
    assert_eq!((figures["closed_no_pong"], figures["faults_bad_request"]), (1, 2));
}

#[test]
fn the_connect_result_names_pings() {
    for (interval, timeout, expected) in [
        ("25s", "8s", r#""ping":25,"pong":true}}"#),
        ("90s", "1s", r#""ping":90,"pong":true}}"#),
        // Pings without pongs.
        ("25s", "-1", r#""ping":25}}"#),
    ] {
        let node = node(interval, timeout);
        let reply =
            format!("< {{\"id\":1,\"connect\":{{\"client\":\"*\",\"version\":\"*\",{expected}");
        node.client().talk(&format!("> {CONNECT}\n{reply}"));
    }
    // No pings, and none as messages where they are frames.
    let bare = "< {\"id\":1,\"connect\":{\"client\":\"*\",\"version\":\"*\"}}";
    let off = node("-1", "8s");
    off.client().talk(&format!("> {CONNECT}\n{bare}\n> {{}}\nx 3501 bad request"));
    let on = node("25s", "8s");
    let path = format!("{CLIENTS}?cf_ws_frame_ping_pong=true");
    // A pong as a message answers no ping then.
    Client::open(&on, &path).talk(&format!("> {CONNECT}\n{bare}\n> {{}}\nx 3501 bad request"));
    let path = format!("{CLIENTS}?cf_ws_frame_ping_pong=false");
    Client::open(&on, &path).talk(&format!("> {CONNECT}\n< {{*,\"ping\":25,\"pong\":true}}}}"));
}

#[test]
fn without_pongs_wanted_pings_go_on() {
    let node = node("300ms", "-1");
    let mut client = node.connected();
    client.talk("< {}\n< {}\n< {}\n< {}");
    assert_eq!(node.figures()["closed_no_pong"], 0);
}

#[test]
fn a_client_that_does_not_connect_is_stale() {
    let node = Node::open(&["--client.stale_close_delay", "1s"]);
    node.client().is_closed(3502, "stale");
    // Frames that are no command don't put it off.
    let mut raw = node.upgraded(CLIENTS);
    raw.send(&frame(PING, b""));
    assert_eq!(raw.frame().unwrap().0, PONG);
    assert_eq!(raw.closed(), (3502, "stale".to_owned()));
    raw.send(&frame(CLOSE, b""));
    raw.ends();
    drop(raw);
    // A client that connects in time is not closed.
    let mut client = node.connected();
    assert_eq!(node.until_is("slots_in_use", 1)["closed_stale"], 2);
    client.talk("> {\"id\":2,\"rpc\":{}}\n< {\"id\":2,\"error\":{*}}");
}

#[test]
fn the_time_is_in_the_connect_result_on_request() {
    let node = Node::open(&["--client.connect_include_server_time"]);
    let mut client = node.client();
    client.send(CONNECT);
    let reply: serde_json::Value = serde_json::from_str(&client.line()).unwrap();
    let time = reply["connect"]["time"].as_i64().unwrap();
    // Milliseconds.
    assert!((time / 1000 - now()).abs() <= 5, "{time}");
}
