//! Answers of the application, as they reach clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use serde_json::json;

use crate::harness::*;

/// An application that gives each path its one answer, and the URL before the path.
fn application(answers: &'static [(&'static str, &'static str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                match line.trim_end() {
                    "" => break,
                    line => lines.push(line.to_ascii_lowercase()),
                }
            }
            let length = lines.iter().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            reader.read_exact(&mut body).unwrap();
            let path = lines[0].split(' ').nth(1).unwrap();
            let (_, answer) = answers.iter().find(|(of, _)| *of == path).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", answer.len());
            let answer = format!("{head}Connection: close\r\n\r\n{answer}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    url
}

/// Data that isn't JSON is no publication of a client, even when the application put it in its place; where a
/// namespace allows it, it isn't taken for JSON because a client that speaks JSON has sent it.
#[test]
fn a_publication_of_a_proxy_is_judged_as_published() {
    let url = application(&[
        ("/bytes", r#"{"result":{"b64data":"AP8="}}"#),
        ("/json", r#"{"result":{"b64data":"eyJhIjoxfQ=="}}"#),
    ]);
    let namespace = |name: &str, proxy: &str, format: &str| {
        format!(
            "[[channel.namespaces]]\nname = \"{name}\"\npublish_proxy_enabled = true\n\
             publish_proxy_name = \"{proxy}\"\npublication_data_format = \"{format}\"\n\
             allow_subscribe_for_client = true\nallow_subscribe_for_anonymous = true\n"
        )
    };
    let proxy =
        |name: &str| format!("[[proxies]]\nname = \"{name}\"\nendpoint = \"{url}/{name}\"\n");
    let file = [
        proxy("bytes"),
        proxy("json"),
        namespace("closed", "bytes", ""),
        namespace("open", "bytes", "binary"),
        namespace("text", "json", ""),
    ];
    let node = Node::open_with(&file.concat(), &[]);
    let mut publisher = node.connected();
    let mut json_client = node.connected();
    let mut binary_client = node.connected_in(Speech::Protobuf);
    for channel in ["closed:a", "open:a", "text:a"] {
        json_client.subscribe(channel);
        binary_client.subscribe(channel);
    }
    let refused = publisher.ask("publish", json!({"channel": "closed:a", "data": 1}));
    assert_eq!(refused["error"]["code"], 107, "{refused}");
    publisher.publish("text:a", json!(1));
    for client in [&mut json_client, &mut binary_client] {
        let push = client.push();
        assert_eq!((&push["channel"], &push["pub"]["data"]), (&json!("text:a"), &json!({"a": 1})));
    }
    publisher.publish("open:a", json!(1));
    assert_eq!(binary_client.push()["pub"]["data"], "hex:00ff");
    json_client.is_closed(3506, "inappropriate protocol");
}

#[test]
fn null_is_an_answer_to_a_call() {
    let url =
        application(&[("/null", r#"{"result":{"data":null}}"#), ("/none", r#"{"result":{}}"#)]);
    let namespace = |name: &str| {
        format!(
            "[[proxies]]\nname = \"{name}\"\nendpoint = \"{url}/{name}\"\n\
             [[rpc.namespaces]]\nname = \"{name}\"\nproxy_enabled = true\nproxy_name = \"{name}\"\n"
        )
    };
    let file = namespace("null") + &namespace("none");
    let node = Node::open_with(&file, &[]);
    for speech in BOTH {
        let mut client = node.connected_in(speech);
        let answer = client.ask("rpc", json!({"method": "null:x", "data": {}}));
        assert!(answer["rpc"].as_object().unwrap().contains_key("data"), "{answer}");
        let answer = client.ask("rpc", json!({"method": "none:x", "data": {}}));
        assert_eq!(answer, json!({"rpc": {}}));
    }
}

/// A peer that goes while the application decides about it doesn't hold its place until that answers.
#[test]
fn a_client_that_goes_while_the_application_is_called_is_noticed() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = application.local_addr().unwrap();
    let file = format!(
        "[client.proxy.connect]\nenabled = true\nendpoint = \"http://{address}/\"\n\
         timeout = \"60s\"\n"
    );
    let node = Node::open_with(&file, &[]);
    let mut client = node.client();
    client.command("connect", json!({}));
    // The call is here, and is not answered.
    let (call, _) = application.accept().unwrap();
    assert_eq!(node.figures()["connections_open"], 1);
    drop(client);
    node.until_is("connections_open", 0);
    drop(call);
}
