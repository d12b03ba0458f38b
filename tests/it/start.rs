//! Starts that fail: what is said, and with which exit code.

use std::net::TcpListener;
use std::process::Command;

use serde_json::json;

use crate::harness::*;

fn refused(file: &str, port: &str, flags: &[&str]) -> Ended {
    match Node::launch(&[], file, port, flags) {
        Ok(node) => panic!("it started: {}", node.errors()),
        Err(ended) => ended,
    }
}

#[test]
fn a_taken_port() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let ended = refused("", &address.port().to_string(), &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.errors.contains(&format!("cannot listen on {address}")), "{ended:?}");
}

#[test]
fn two_nodes_on_one_port() {
    let first = Node::open(&[]);
    let port = first.address().port().to_string();
    let ended = refused("", &port, &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.errors.contains(&format!("cannot listen on {}", first.address())), "{ended:?}");
    first.is_healthy();
    // As soon as the first has gone it may be had, whatever is left of its connections.
    let client = first.connected();
    drop(first);
    let second = Node::launch(&[], "", &port, &[]);
    assert!(second.is_ok(), "{:?}", second.err());
    drop(client);
}

#[test]
fn wrong_configurations_end_with_2_and_name_the_option() {
    for (file, flags, words) in [
        ("nonsense", &[][..], &["error"][..]),
        ("client.ping_interval = \"soon\"", &[], &["client.ping_interval", "soon"]),
        ("client.ping_interval = \"5s\"", &[], &["client.ping_interval", "client.pong_timeout"]),
        ("engine.type = \"nats\"", &[], &["engine.type", "nats"]),
        ("http_server.tls.enabled = true", &[], &["http_server.tls.cert_pem"]),
        ("", &["--shards", "0"], &["shards", "0"]),
        ("", &["--io", "kqueue"], &["io", "kqueue"]),
        ("", &["--client.channel_limit", "many"], &["client.channel_limit", "many"]),
        ("", &["--no-such-flag"], &["--no-such-flag"]),
        ("channel.without_namespace.history_size = 5", &[], &["history_size", "history_ttl"]),
    ] {
        let ended = refused(file, "0", flags);
        assert_eq!(ended.code, Some(2), "{file} {flags:?}: {ended:?}");
        for word in words {
            assert!(ended.errors.contains(word), "{file} {flags:?}: {ended:?}");
        }
    }
}

#[test]
fn the_driver_is_said_and_chosen() {
    let started = |io| Node::launch(&[], "client.insecure = true", "0", &["--io", io]);
    let node = started("epoll").unwrap();
    assert!(node.errors().contains("driver: epoll, as roost.io says"), "{}", node.errors());
    let auto = started("auto").unwrap();
    match started("uring") {
        Ok(uring) => {
            assert!(uring.errors().contains("driver: io_uring, as"), "{}", uring.errors());
            uring.is_healthy();
            assert!(auto.errors().contains("driver: io_uring, which"), "{}", auto.errors());
        }
        // Where there is none, one that asks for it doesn't start, and both say why.
        Err(ended) => {
            assert_eq!(ended.code, Some(1), "{ended:?}");
            assert!(ended.errors.contains("roost.io = \"uring\": "), "{ended:?}");
            assert!(auto.errors().contains("driver: epoll, because "), "{}", auto.errors());
        }
    }
    auto.is_healthy();
}

#[test]
fn a_configuration_is_judged_before_the_port_is_opened() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = refused("engine.type = \"nats\"", &port, &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
}

#[test]
fn defaults_are_safe_and_development_is_open() {
    let node = Node::start("", &[]);
    node.client().talk("> {\"id\":1,\"connect\":{}}\nx 3501 bad request");
    let mut raw = node.raw();
    raw.send(upgrade(CLIENTS, &["Origin: http://localhost"]).as_bytes());
    assert_eq!(raw.response().status, 403);
    let body = r#"{"channel":"news","data":1}"#;
    assert_eq!(node.raw().post("/api/publish", &[], body).status, 401);
    let node = Node::start("", &["--dev"]);
    // Its API asks for a key that is printed, and is another one each time.
    let key = |node: &Node| {
        let errors = node.errors();
        let (_, rest) = errors.split_once("curl -H '").expect("what to paste");
        rest.split_once('\'').unwrap().0.to_owned()
    };
    assert_eq!(node.raw().post("/api/publish", &[], body).status, 401);
    let mut client = node.connected();
    client.subscribe("news");
    assert_eq!(node.raw().post("/api/publish", &[&key(&node)], body).status, 200);
    assert!(client.push()["join"].is_object(), "its own");
    assert_eq!(client.push()["pub"]["data"], 1);
    assert_ne!(key(&Node::start("", &["--dev"])), key(&node));
}

#[test]
fn a_development_node_keeps_history_and_presence_of_names_without_a_namespace() {
    let node = Node::start("", &["--dev"]);
    let get = |path: &str| {
        let mut raw = node.raw();
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        raw.response()
    };
    assert_eq!(get("/health").status, 200);
    let metrics = get("/metrics");
    assert!(metrics.status == 200 && metrics.body.contains("\nroost_"), "{metrics:?}");

    let mut first = node.connected();
    let reply = first.ask("subscribe", json!({"channel": "news"}));
    let subscribed = &reply["subscribe"];
    assert_eq!([&subscribed["recoverable"], &subscribed["positioned"]], [true, true], "{reply}");
    let epoch = subscribed["epoch"].clone();
    assert!(first.push()["join"].is_object(), "its own");
    let mut second = node.connected();
    second.publish("news", json!(1));
    assert_eq!(first.push()["pub"]["data"], 1);
    let history = first.ask("history", json!({"channel": "news", "limit": 10}));
    assert_eq!(history["history"]["publications"][0]["data"], 1, "{history}");
    let presence = first.ask("presence", json!({"channel": "news"}));
    assert_eq!(presence["presence"]["presence"].as_object().unwrap().len(), 1, "{presence}");

    let lost = json!({"channel": "news", "recover": true, "offset": 0, "epoch": epoch});
    let reply = second.ask("subscribe", lost);
    assert_eq!(reply["subscribe"]["recovered"], true, "{reply}");
    assert_eq!(reply["subscribe"]["publications"][0]["data"], 1, "{reply}");
    assert!(first.push()["join"].is_object());
    drop(second);
    assert!(first.push()["leave"].is_object());
}

#[test]
fn the_environment_stands_between_file_and_flags() {
    let words = ["env", "CENTRIFUGO_CLIENT_INSECURE=true", "ROOST_ECHO=true", "ROOST_SHARDS=7"];
    let file = "client.insecure = false\nroost.shards = 5";
    let node = Node::launch(&words, file, "0", &["--shards", "3"]).unwrap();
    assert_eq!(node.figures()["shards"], 3);
    node.is_healthy();
    drop(node.upgraded("/echo"));
}

#[test]
fn tokens_that_the_program_prints_are_good() {
    let node = Node::open(&[]);
    let token = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
        command.arg("token").args(arguments).env_clear();
        let output = command.env("ROOST_CLIENT_TOKEN_HMAC_SECRET_KEY", "secret").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let connect = token(&["--user", "42", "--ttl", "10m"]);
    let subscribe = token(&["--user", "42", "--channel", "$gold", "--ttl", "0"]);
    node.client().talk(&format!(
        r#"> {{"id":1,"connect":{{"token":"{connect}"}}}}
           < {{"id":1,"connect":{{*"expires":true,*}}}}
           > {{"id":2,"subscribe":{{"channel":"$gold","token":"{subscribe}"}}}}
           < {{"id":2,"subscribe":{{}}}}"#
    ));
}

#[test]
fn the_start_names_the_tightest_limit() {
    let node = Node::open(&[]);
    let errors = node.errors();
    assert!(errors.contains("descriptors"), "{errors}");
    assert!(errors.contains(&format!("ws://{}{CLIENTS}", node.address())), "{errors}");
}

#[test]
fn figures_are_one_line_of_json() {
    let node = Node::open(&["--shards", "3"]);
    let figures = node.figures();
    assert_eq!(figures["shards"], 3);
    for name in ["connections_open", "slots_in_use", "queued_bytes", "clients", "rss_bytes"] {
        assert!(figures.contains_key(name), "{name}");
    }
}

#[test]
fn messages_may_be_logged_as_json() {
    let node = Node::open(&["--log-format", "json"]);
    let mut client = node.connected();
    node.signal(rustix::process::Signal::TERM);
    client.is_closed(3001, "shutdown");
    let ended = node.ended();
    let messages: Vec<serde_json::Value> =
        ended.errors.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let draining = messages.iter().find(|message| message["message"] == "draining").unwrap();
    assert_eq!((&draining["level"], &draining["connections"]), (&"INFO".into(), &1.into()));
}

/// The standard error of `roost` until it listens or ends; and its exit code, if it ended.
fn start(arguments: &[&str], environment: &[(&str, &str)]) -> (String, Option<i32>) {
    use std::io::{BufRead, BufReader};
    let mut child = Command::new(env!("CARGO_BIN_EXE_roost"))
        .args(arguments)
        .args(["-a", "127.0.0.1", "-p", "0", "--shards", "1"])
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(std::env::temp_dir())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok) {
        said += &format!("{line}\n");
        if line.contains("listening on ") {
            child.kill().unwrap();
            child.wait().unwrap();
            return (said, None);
        }
    }
    (said, child.wait().unwrap().code())
}

#[test]
fn a_node_with_a_file_or_a_key_is_no_development_node() {
    let path = std::env::temp_dir().join(format!("roost-it-prod-{}.json", std::process::id()));
    std::fs::write(&path, r#"{"client": {"allowed_origins": ["https://example.com"]}}"#).unwrap();
    let file = path.to_str().unwrap();
    let key = "0123456789abcdef0123456789abcdef";
    for (arguments, environment) in [
        (&["-c", file][..], &[][..]),
        (&["--config", file], &[]),
        (&[], &[("ROOST_CONFIG", file)]),
        (&[], &[("CENTRIFUGO_CLIENT_TOKEN_HMAC_SECRET_KEY", key)]),
        (&["--http_api.key", key], &[]),
    ] {
        let (said, code) = start(arguments, environment);
        assert_eq!(code, None, "{arguments:?} {said}");
        for word in ["development node", "DEVELOPMENT", "one_time", "/demo"] {
            assert!(!said.contains(word), "{arguments:?} {environment:?}: {said}");
        }
        assert!(said.contains("admin page: off"), "{said}");
    }
    let (said, _) = start(&[], &[]);
    assert!(said.contains("development node") && !said.contains("THIS IS"), "{said}");
    for dev in [&["--dev", "-c", file][..], &["serve", "--dev", "-c", file]] {
        let (said, code) = start(dev, &[]);
        assert_eq!(code, None, "{said}");
        assert!(said.contains("WARN THIS IS A DEVELOPMENT NODE"), "{said}");
        assert!(said.contains("development node: anonymous clients"), "{said}");
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_file_that_is_named_has_to_be_there() {
    let folder = std::env::temp_dir();
    let missing = folder.join("roost-it-none.json");
    for (path, why) in [
        (missing.to_str().unwrap(), "roost-it-none.json: no such file"),
        (folder.to_str().unwrap(), "a folder, expected a file"),
        ("/dev/null", "the file is empty"),
    ] {
        for command in [&["-c", path][..], &["serve", "-c", path]] {
            let (said, code) = start(command, &[]);
            assert_eq!(code, Some(2), "{said}");
            assert!(said.contains(why) && said.contains(path), "{said}");
        }
    }
}

#[test]
fn a_check_counts_its_findings_in_its_last_line() {
    let path = std::env::temp_dir().join(format!("roost-it-check-{}.json", std::process::id()));
    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_roost"))
            .args(["config", "check", path.to_str().unwrap()])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let last = text(&output.stdout).lines().last().unwrap_or_default().to_owned();
        (output.status.code(), last, text(&output.stderr))
    };
    let good = r#"{"client": {"token": {"hmac_secret_key": "0123456789abcdef0123456789abcdef"}},
        "http_api": {"key": "0123456789abcdef"}}"#;
    let (code, last, _) = check(good);
    assert_eq!(code, Some(0));
    assert!(last.ends_with(": good: 0 errors, 0 warnings"), "{last}");
    let (code, last, said) = check(r#"{"http_api": {"key": "k", "none": 1, "external": "x"}}"#);
    assert_eq!(code, Some(2));
    assert!(last.ends_with(": not usable: 1 error, 1 warning"), "{last} {said}");
    assert_eq!(said.matches("warning: ").count(), 1, "{said}");
    let (code, last, said) = check("{\n  \"http_api\": {},\n}");
    assert_eq!(code, Some(2));
    assert!(last.ends_with(": not usable: 1 error, 0 warnings"), "{last} {said}");
    assert!(said.contains(".json:3:1: a comma with nothing behind it"), "{said}");
    std::fs::remove_file(&path).unwrap();
}

/// A pipe that is full, and that nobody reads.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    use std::io::Write;

    use rustix::fs::{OFlags, fcntl_setfl};
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (reader, writer)
}

#[test]
fn figures_and_logs_that_nobody_reads_block_nobody() {
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let (_output, stdout) = full_pipe();
    let (_errors, stderr) = full_pipe();
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
    command.args(["serve", "-a", "127.0.0.1", "-p", &port.to_string(), "--shards", "2"]);
    command.env_clear().env("ROOST_HEALTH_ENABLED", "true").current_dir(std::env::temp_dir());
    let mut child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
    let since = std::time::Instant::now();
    let healthy = || {
        let mut raw = Raw::new(std::net::TcpStream::connect(("127.0.0.1", port)).ok()?);
        raw.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        Some(raw.response_or_end()?.status)
    };
    while healthy() != Some(200) {
        assert!(since.elapsed() < BOUND, "does not start");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    assert_eq!(healthy(), Some(200));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if since.elapsed() > BOUND {
            child.kill().unwrap();
            panic!("does not end");
        }
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(0));
}

/// Starts a program for which `unshare(2)` is forbidden, as seccomp profiles of containers do.
const WITHOUT_UNSHARE: &str = r#"
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None)
number = {'x86_64': 272, 'aarch64': 97}[platform.machine()]
ins = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *i) for i in ins))
class Program(ctypes.Structure): _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
program = Program(len(ins), ctypes.addressof(code))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn where_unshare_is_forbidden_shards_share_one_table() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: no python3 to forbid it with");
        return;
    }
    let file = r#"
health.enabled = true
[client]
allow_anonymous_connect_without_token = true
[client.token]
hmac_secret_key = "secret"
[channel.without_namespace]
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
"#;
    let wrapper = ["python3", "-c", WITHOUT_UNSHARE];
    let node = Node::launch(&wrapper, file, "0", &["--shards", "4"]).unwrap();
    node.until_logged(&["WARN", "unshare(2) is forbidden here", "one descriptor table"]);
    node.until_logged(&["4 shards share one table", "unshare(2) is forbidden"]);
    node.is_healthy();
    let mut clients: Vec<_> = (0..40).map(|_| node.connected_as("42")).collect();
    clients.iter_mut().for_each(|client| client.subscribe("news"));
    // A publisher that is no subscriber: its reply and the push would come in either order.
    let mut publisher = node.connected_as("7");
    publisher.publish("news", serde_json::json!({"text": "hello"}));
    for client in &mut clients {
        client.expect("*hello*");
    }
    drop((clients, publisher));
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn the_main_thread_has_a_copy_of_a_listener_for_tools() {
    let node = Node::open(&[]);
    let (pid, port) = (node.pid(), node.address().port());
    // Local address, state (0A: it listens) and inode, as ss, lsof and fuser read them.
    let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let listening: Vec<String> = sockets
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() > 9 && words[1].ends_with(&format!(":{port:04X}")))
        .filter(|words| words[3] == "0A")
        .map(|words| format!("socket:[{}]", words[9]))
        .collect();
    assert_eq!(listening.len(), 2, "{sockets}");
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links: Vec<_> = descriptors
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.display().to_string())
        .collect();
    assert_eq!(listening.iter().filter(|socket| links.contains(socket)).count(), 1, "{links:?}");
}
