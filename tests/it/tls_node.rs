//! A node that listens with TLS: its transports through a tunnel, and OpenSSL, Python and curl as clients.
//! `ROOST_IT_TLS=1` runs the rest of the suite through such tunnels.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use rustix::process::Signal;
use rustls::ClientConfig;
use serde_json::json;
use tungstenite::Message;

use crate::harness::{BOUND, CLIENTS, KEY, Node, Raw, TEXT, frame, post, upgrade};
use crate::tunnel;

const SECURE: &str = "[roost]\ntls_self_signed = true\necho = true\n[http_api]\nkey = 'k'\n\
    [health]\nenabled = true\n[http_stream]\nenabled = true\n[sse]\nenabled = true\n\
    [emulation]\n";

/// A node with TLS; its clients come through a tunnel.
fn node(flags: &[&str]) -> Node {
    let mut node = Node::open_with(SECURE, flags);
    node.through_tls();
    node
}

/// A connection to the node that speaks no TLS by itself.
fn raw(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(node.listens_at()).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream
}

/// All that comes until the end of the stream.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    rest
}

/// Runs a program that speaks to the node, with this input.
fn run(program: &str, words: &[&str], input: &str) -> Output {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn python(node: &Node, program: &str) -> String {
    let begin = format!(
        "import socket, ssl\ncontext = ssl._create_unverified_context()\n\
         plain = socket.create_connection(('127.0.0.1', {}), 20)\n",
        node.listens_at().port()
    );
    let output = run("python3", &["-c", &(begin + program)], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn all_transports_and_the_api_work_over_tls() {
    let node = node(&[]);
    node.is_healthy();
    let mut echo = node.upgraded("/echo");
    for bytes in [1, 100, 20_000, 60_000] {
        echo.send(&frame(TEXT, &vec![b'x'; bytes]));
        assert_eq!(echo.frame().unwrap().1.len(), bytes);
    }
    let mut subscriber = node.connected();
    subscriber.subscribe("a");
    node.call("publish", json!({"channel": "a", "data": "by the API"}));
    assert!(subscriber.line().contains("by the API"));
    let connect = br#"{"id":1,"connect":{}}"#;
    let mut stream = node.raw();
    stream.send(
        post("/connection/http_stream", &[], std::str::from_utf8(connect).unwrap()).as_bytes(),
    );
    assert_eq!(stream.response().status, 200);
    assert!(String::from_utf8(stream.chunk().unwrap()).unwrap().contains("\"connect\""));
    let mut events = node.raw();
    events.send(b"GET /connection/sse?cf_connect=%7B%22id%22%3A1%7D HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(events.response().status, 200);
    assert!(!events.chunk().unwrap().is_empty());
    let figures = node.until_is("tls_connections", 4);
    assert_eq!(figures["tls_unfinished_bytes"], 0);
}

#[test]
fn large_messages_and_many_publications_come_whole_and_in_order() {
    let flags = [
        "--websocket.message_size_limit",
        "2000000",
        "--client.queue_max_size",
        "50000000",
        // The subscriber reads when all are published: its socket is full for as long as that takes.
        "--websocket.write_timeout",
        "60s",
    ];
    let node = node(&flags);
    let mut subscriber = node.connected();
    subscriber.subscribe("stream:a");
    let mut publisher = node.connected();
    for number in 0..200 {
        let pad = "x".repeat(number * 150);
        publisher.publish("stream:a", json!({"number": number, "pad": pad}));
    }
    for number in 0..200 {
        let push = subscriber.push();
        assert_eq!(push["pub"]["data"]["number"], number);
    }
    publisher.close();
    subscriber.close();
}

#[test]
fn openssl_resumes_updates_keys_and_gets_each_version() {
    let node = node(&[]);
    let port = format!("127.0.0.1:{}", node.listens_at().port());
    let request = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";
    for (version, name) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let session =
            std::env::temp_dir().join(format!("roost-it-{}{version}", std::process::id()));
        let session = session.display().to_string();
        for (way, is_new) in [("-sess_out", "New, "), ("-sess_in", "Reused, ")] {
            let closing = "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            let words = ["s_client", "-connect", &port, version, "-ign_eof", way, &session];
            let output = run("openssl", &words, closing);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("HTTP/1.1 200 OK"), "{text}");
            assert!(text.contains(is_new) && text.contains(name), "{version} {way}: {text}");
        }
        let _ = std::fs::remove_file(&session);
    }
    let figures = node.figures();
    let kinds = ["1_3_full", "1_3_resumed", "1_2_full", "1_2_resumed"];
    let kinds = kinds.map(|kind| figures[&format!("tls_handshakes_{kind}")]);
    assert_eq!(kinds, [1; 4]);
    // K and k at the beginning of a line change the keys, and K the node's as well.
    let closing = "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let program = format!(
        "import subprocess, time\n\
         child = subprocess.Popen(['openssl', 's_client', '-connect', '{port}', '-tls1_3'],\n\
             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)\n\
         def until(mark):\n\
         \tseen = b''\n\
         \twhile mark not in seen:\n\
         \t\tbyte = child.stdout.read(1)\n\
         \t\tassert byte, seen\n\
         \t\tseen += byte\n\
         until(b'Verify return code')\n\
         def say(text, mark):\n\
         \tchild.stdin.write(text.encode())\n\
         \tchild.stdin.flush()\n\
         \tuntil(mark)\n\
         say({request:?}, b'200 OK')\n\
         say('K\\n', b'KEYUPDATE')\n\
         say({request:?}, b'200 OK')\n\
         say('k\\n', b'KEYUPDATE')\n\
         say({closing:?}, b'200 OK')\n\
         until(b'closed')\n\
         print('done')\n"
    );
    assert_eq!(python(&node, &program), "done\n");
    let refused = run("openssl", &["s_client", "-connect", &port, "-tls1_1"], "");
    assert!(!refused.status.success());
    node.until("a failed handshake", |figures| {
        figures["tls_failed_incompatible"] + figures["tls_failed_peer_alert"] > 0
    });
}

#[test]
fn python_gets_a_close_notify_and_sends_one() {
    let node = node(&[]);
    for version in ["TLSv1_2", "TLSv1_3"] {
        let program = format!(
            "context.minimum_version = context.maximum_version = ssl.TLSVersion.{version}\n\
             tls = context.wrap_socket(plain, suppress_ragged_eofs=False)\n\
             tls.sendall(b'GET /health HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n')\n\
             answer = b''\n\
             while piece := tls.recv(7):\n\
             \tanswer += piece\n\
             tls.unwrap()\n\
             print(answer.split(b'\\r\\n')[0].decode())\n"
        );
        assert_eq!(python(&node, &program), "HTTP/1.1 200 OK\n");
    }
    let figures = node.until_is("tls_connections", 0);
    assert_eq!((figures["tls_truncated"], figures["tls_handshakes_1_2_full"]), (0, 1));
}

#[test]
fn curl_speaks_to_the_api() {
    let node = node(&[]);
    let port = node.listens_at().port();
    let address = format!("https://127.0.0.1:{port}/api/publish");
    let words = ["-sk", "--http1.1", "-H", KEY, "-d", r#"{"channel":"a","data":1}"#, &address];
    let output = run("curl", &words, "");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"result\""), "{output:?}");
    let body = format!("{{\"channel\":\"a\",\"data\":\"{}\"}}", "x".repeat(1_000_000));
    let large = run("curl", &["-sk", "-H", KEY, "--data-binary", "@-", &address], &body);
    assert!(String::from_utf8_lossy(&large.stdout).contains("\"result\""), "{large:?}");
}

#[test]
fn plain_text_gets_a_400_that_says_so() {
    let node = node(&[]);
    let mut stream = raw(&node);
    stream.write_all(upgrade(CLIENTS, &[]).as_bytes()).unwrap();
    let answer = String::from_utf8(rest(stream)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(answer.contains("TLS"), "{answer}");
    // A body that goes on doesn't destroy it.
    let mut stream = raw(&node);
    stream.write_all(post("/api/publish", &[], &"x".repeat(100_000)).as_bytes()).unwrap();
    assert!(rest(stream).starts_with(b"HTTP/1.1 400 "));
    assert_eq!(node.until_is("connections_open", 0)["tls_failed_plain_text"], 2);
}

#[test]
fn what_is_no_hello_gets_an_alert_and_is_counted() {
    let node = Node::open_with(SECURE, &["--log.level", "debug"]);
    let mut stream = raw(&node);
    stream.write_all(&[22, 3, 1, 0, 5, 1, 0, 0, 1, 0]).unwrap();
    let answer = rest(stream);
    assert_eq!((answer[0], answer[5]), (21, 2), "{answer:?}");
    let mut stream = raw(&node);
    stream.write_all(&[0x80; 100]).unwrap();
    let _ = rest(stream);
    node.until("two failures", |figures| {
        let failed = |of| figures[&format!("tls_failed_{of}")];
        failed("malformed") + failed("misbehaved") + failed("refused") == 2
    });
    node.until_logged(&["TLS refused", "reason"]);
}

#[test]
fn slow_and_unfinished_hellos_are_closed_and_counted() {
    let node = Node::open_with(SECURE, &["--handshake-timeout", "300ms"]);
    let silent = raw(&node);
    let mut begun = raw(&node);
    begun.write_all(&[22, 3, 1, 2]).unwrap();
    let mut gone = raw(&node);
    gone.write_all(&[22, 3]).unwrap();
    gone.shutdown(Shutdown::Write).unwrap();
    for stream in [silent, begun, gone] {
        assert!(rest(stream).is_empty());
    }
    let figures = node.until_is("connections_open", 0);
    let failed = ["unfinished", "closed"].map(|of| figures[&format!("tls_failed_{of}")]);
    assert_eq!((failed, figures["tls_handshakes_open"]), ([1, 1], 0));
}

#[test]
fn a_subscriber_that_does_not_read_loses_plain_frames_only() {
    let namespace = "[[channel.namespaces]]\nname = 'ns'\nallow_subscribe_for_client = true\n\
        allow_subscribe_for_anonymous = true\nallow_publish_for_client = true\n\
        allow_publish_for_anonymous = true\nroost.slow_policy = 'drop_oldest'\n";
    let flags = [
        "--send-buffer",
        "4096",
        "--notsent-lowat",
        "4096",
        "--websocket.write_timeout",
        "60s",
        "--client.queue_max_size",
        "60000",
    ];
    let mut node = Node::open_with(&format!("{namespace}{SECURE}"), &flags);
    node.through_tls();
    let mut stalled = node.upgraded(CLIENTS);
    stalled.send(&frame(TEXT, br#"{"id":1,"connect":{}}"#));
    stalled.send(&frame(TEXT, br#"{"id":2,"subscribe":{"channel":"ns:a"}}"#));
    node.until_is("subscriptions", 1);
    let mut publisher = node.connected();
    let mut number = 0;
    // Until the sockets on the way are full and publications are dropped.
    while number < 1000 || node.figures()["writes_blocked"] == 0 {
        number += 1;
        publisher.publish("ns:a", json!({"number": number, "pad": "x".repeat(3000)}));
        assert!(number < 20_000, "never full");
    }
    publisher.publish("ns:a", json!({"number": 0}));
    let mut last = 0;
    loop {
        let (_, payload) = stalled.frame().expect("it stays, and its frames are whole");
        for line in String::from_utf8(payload).unwrap().lines() {
            let message: serde_json::Value = serde_json::from_str(line).unwrap();
            let Some(number) = message["push"]["pub"]["data"]["number"].as_u64() else { continue };
            if number == 0 {
                assert!(last > 0);
                return;
            }
            assert!(number > last, "{number} behind {last}");
            last = number;
        }
    }
}

#[test]
fn a_drain_closes_with_a_close_frame_and_a_close_notify() {
    let node = node(&["--shutdown.timeout", "10s"]);
    let mut client = node.connected();
    let mut idle = node.raw();
    idle.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(idle.response().status, 200);
    node.signal(Signal::TERM);
    client.is_closed(3001, "shutdown");
    drop(client);
    idle.ends();
    drop(idle);
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn a_connection_limit_refuses_over_tls() {
    let node = node(&["--client.connection_limit", "1"]);
    let one = node.connected();
    let mut other = node.raw();
    other.send(upgrade(CLIENTS, &[]).as_bytes());
    assert_eq!(other.response().status, 503);
    one.close();
}

#[test]
fn a_proxy_header_stands_before_the_handshake() {
    let flags = ["--proxy-protocol"];
    let node = Node::open_with(SECURE, &flags);
    for header in ["'PROXY TCP4 192.0.2.7 192.0.2.8 1000 443\\r\\n'", "'PROXY UNKNOWN\\r\\n'"] {
        let program = format!(
            "plain.sendall({header}.encode())\n\
             tls = context.wrap_socket(plain)\n\
             tls.sendall(b'GET /health HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n')\n\
             print(tls.recv(100).split(b'\\r\\n')[0].decode())\n"
        );
        assert_eq!(python(&node, &program), "HTTP/1.1 200 OK\n");
    }
    assert_eq!(node.figures()["proxy_headers"], 2);
    let without = raw(&node);
    (&without).write_all(&[22, 3, 1, 0, 5]).unwrap();
    assert!(rest(without).is_empty());
}

#[test]
fn heap_and_slots_are_given_back() {
    let node = node(&[]);
    for _ in 0..3 {
        let mut clients: Vec<_> = (0..50).map(|_| node.connected()).collect();
        clients.iter_mut().for_each(|client| client.subscribe("a"));
        let figures = node.until_is("tls_connections", 50);
        assert!(figures["tls_state_bytes"] > 0);
        node.call("publish", json!({"channel": "a", "data": "x".repeat(20_000)}));
        for client in &mut clients {
            assert!(client.line().len() > 20_000);
        }
    }
    let figures = node.until_is("tls_connections", 0);
    node.until_is("tls_state_bytes", 0);
    assert_eq!(figures["tls_unfinished_bytes"], 0);
}

#[test]
fn suites_are_chosen_by_the_node() {
    let node = node(&[]);
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.reverse();
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    // It doesn't know the certificate: an alert, which is counted.
    let address = tunnel::open(node.listens_at(), Arc::new(config));
    let mut stranger = Raw::new(TcpStream::connect(address).unwrap());
    stranger.send(b"GET / HTTP/1.1\r\n");
    assert!(stranger.response_or_end().is_none());
    node.until("an alert", |figures| figures["tls_failed_peer_alert"] == 1);
    let port = format!("127.0.0.1:{}", node.listens_at().port());
    let output = run("openssl", &["s_client", "-connect", &port], "");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("TLS_AES_128_GCM_SHA256"), "{text}");
}

#[test]
fn close_frames_end_in_order() {
    let node = node(&[]);
    let mut client = node.connected();
    client.socket.send(Message::Close(None)).unwrap();
    let mut raw = node.upgraded(CLIENTS);
    raw.finish();
    raw.ends();
    client.close();
    node.until_is("connections_open", 0);
}
