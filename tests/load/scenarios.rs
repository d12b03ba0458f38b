//! Scenario files: populations, phases, connections that come and go.

use super::*;
use std::path::PathBuf;

/// A scenario file that is removed again.
pub(super) struct Scenario(PathBuf);

impl Scenario {
    pub(super) fn new(name: &str, text: &str) -> Self {
        let file = format!("roost-load-{}-{name}.toml", std::process::id());
        let path = std::env::temp_dir().join(file);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> String {
        self.0.display().to_string()
    }

    fn run(&self, more: &str) -> (i32, Value) {
        load(&format!("run {} {more}", self.0.display()))
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A server of the client protocol that sends a publication to the subscribers of its channel, once it has
/// passed through `pass`.
pub(super) fn pub_sub_server(
    pass: impl Fn(&Peer, &Value) -> bool + Send + Sync + 'static,
) -> Server {
    pub_sub_server_on("127.0.0.1", pass)
}

/// The same at another address of this machine.
pub(super) fn pub_sub_server_on(
    ip: &str,
    pass: impl Fn(&Peer, &Value) -> bool + Send + Sync + 'static,
) -> Server {
    let order = Mutex::new(());
    Server::start_on(ip, "", move |peer, text, all| {
        // One after the other: the order of a channel is the same for all.
        let _order = order.lock().unwrap();
        for line in text.split('\n') {
            let command: Value = serde_json::from_str(line).unwrap();
            let id = command["id"].clone();
            if command.get("connect").is_some() {
                let token = command["connect"]["token"].as_str().unwrap_or_default();
                peer.set_note("token", token);
                peer.send(&json!({ "id": id, "connect": { "client": "x" } }).to_string());
            } else if let Some(subscribe) = command.get("subscribe") {
                peer.set_note("channel", subscribe["channel"].clone());
                peer.send(&json!({ "id": id, "subscribe": {} }).to_string());
            } else if let Some(publish) = command.get("publish") {
                let publication = json!({ "data": publish["data"] });
                let push = json!({ "push": { "channel": publish["channel"], "pub": publication } });
                for peer in all {
                    if peer.note("channel") == publish["channel"] && pass(peer, &publish["data"]) {
                        peer.send(&push.to_string());
                    }
                }
                peer.send(&json!({ "id": id, "publish": {} }).to_string());
            } else if let Some(refresh) = command.get("refresh") {
                assert_ne!(refresh["token"].as_str().unwrap(), "");
                let count = peer.note("refreshed").as_u64().unwrap_or(0);
                peer.set_note("refreshed", count + 1);
                peer.send(&json!({ "id": id, "refresh": { "client": "x" } }).to_string());
            }
        }
    })
}

#[test]
fn a_command_is_a_file_that_is_built_in() {
    let shown = start("show broadcast").output().unwrap();
    assert_eq!(shown.status.code(), Some(0));
    let text = String::from_utf8(shown.stdout).unwrap();
    let scenario = Scenario::new("built-in", &text);
    let server = broadcast_server(|_, _, text| vec![text.to_owned()]);
    let (code, result) =
        scenario.run(&format!("--url {} --connections 7 --publish 20 --rate 500", server.url("/")));
    assert_eq!((code, &result["scenario"]), (0, &json!("broadcast")));
    assert_messages(&result, all_fine(20, 140));
    let names = start("show").output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    assert!(["idle", "storm", "chat"].iter().all(|name| names.lines().any(|line| line == *name)));
    let schema = start("schema scenario").output().unwrap();
    assert!(serde_json::from_slice::<Value>(&schema.stdout).unwrap()["properties"].is_object());
    let wrong = start("show nothing").output().unwrap();
    assert_eq!((wrong.status.code(), wrong.stdout.len()), (Some(2), 0));
}

#[test]
fn populations_share_a_run_and_phases_follow_each_other() {
    let server = pub_sub_server(|_, _| true);
    let scenario = Scenario::new(
        "mixed",
        r#"
        channels = { name = "c", count = 5, subscribers = "zipf", messages = "zipf" }
        populations = [
            { name = "readers", connections = 40 },
            { name = "slow", role = "slow_readers", connections = 4 },
            { name = "holders", role = "idle", connections = 6 },
            { name = "writers", role = "publishers", connections = 3 },
        ]
        phases = [
            { name = "open", open = true },
            { name = "ramp", rate = [0, 200], duration = "500ms" },
            { name = "steady", rate = 200, duration = "250ms" },
            { name = "pause", duration = "100ms" },
            { name = "end", publish = 25, rate = 500 },
        ]
        "#,
    );
    let (code, result) = scenario.run(&format!("--url {}", server.url("/connection/websocket")));
    assert_eq!(code, 0);
    assert_eq!(result["messages"]["sent"], 50 + 50 + 25);
    assert_eq!(result["messages"]["lost"], 0);
    assert_eq!(result["connections"]["opened"], 50);
    let peers = server.peers.lock().unwrap();
    assert_eq!(peers.iter().filter(|peer| peer.note("channel").is_string()).count(), 44);
    let of = |name: &str| {
        peers.iter().filter(|peer| peer.note("channel").as_str() == Some(name)).count()
    };
    assert!(of("c-0") > of("c-4"), "the first channel is the largest");
    let phases: Vec<&str> = result["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["name"].as_str().unwrap())
        .collect();
    assert_eq!(phases, ["open", "ramp", "steady", "pause", "end"]);
    assert_eq!(result["phases"][4]["sent"], 25);
    let names = result["populations"].as_array().unwrap().iter();
    assert!(names.map(|of| of["name"].as_str().unwrap()).eq(["readers", "slow", "holders"]));
}

/// Connections that come, leave and break off while messages are published.
const RESTLESS: &str = r#"
    channels = { name = "c", count = 3 }
    drain = "500ms"
    populations = [
        { connections = 30 },
        { connections = 30, stay = ["50ms", "150ms"], away = ["10ms", "60ms"] },
    ]
    phases = [
        { open = 0.5 },
        { open = 1.0, rate = 300, duration = "400ms" },
        { rate = 300, duration = "400ms", churn = 60, drop = 0.2 },
        { open = 0.3, rate = 300, duration = "200ms" },
    ]
"#;

#[test]
fn messages_for_those_who_are_away_are_not_lost() {
    let server = pub_sub_server(|_, _| true);
    let scenario = Scenario::new("restless", RESTLESS);
    let (code, result) = scenario.run(&format!("--url {}", server.url("/connection/websocket")));
    assert_eq!(code, 0, "{result}");
    assert_eq!(result["messages"]["sent"], 300);
    assert!(result["churn"]["left"].as_u64().unwrap() > 40, "{result}");
    assert!(result["churn"]["absent"].as_u64().unwrap() > 100, "{result}");
    assert_eq!(result["phases"][0]["open"], 30);
}

#[test]
fn a_storm_while_messages_are_published_is_timed_until_all_are_back() {
    let server = pub_sub_server(|_, _| true);
    let scenario = Scenario::new(
        "storm-under-load",
        r#"
        channels = { name = "c" }
        populations = [{ connections = 20 }]
        phases = [{ open = 1.0 }, { drop = 1.0, rate = 100, publish = 30 }, { rate = 100, publish = 5 }]
        "#,
    );
    let (code, result) = scenario.run(&format!("--url {}", server.url("/connection/websocket")));
    assert_eq!(code, 0, "{result}");
    assert_eq!((&result["storm"]["dropped"], &result["storm"]["back"]), (&json!(20), &json!(20)));
    let back_s = result["storm"]["back_s"].as_f64().unwrap();
    assert!(back_s > 0.0 && back_s <= result["phases"][1]["duration_s"].as_f64().unwrap());
    // The time of all messages, and not that of the storm.
    assert!(result["duration_s"].as_f64().unwrap() > 0.3, "{result}");
}

#[test]
fn a_report_that_could_not_be_written_is_refused_before_the_run() {
    let server = pub_sub_server(|_, _| true);
    let files = std::env::temp_dir().join(format!("roost-load-{}-files", std::process::id()));
    std::fs::create_dir_all(&files).unwrap();
    let (good, bad) = (files.join("kept"), files.join("absent/run"));
    std::fs::write(&good, "of an earlier run").unwrap();
    let pairs = [("--csv", "--html"), ("--html", "--csv"), ("--json", "--csv"), ("--hdr", "--csv")];
    for (bad_flag, good_flag) in pairs {
        let done = Command::new(env!("CARGO_BIN_EXE_roost-load"))
            .args(["idle", "--url", &server.url("/"), "--connections", "2"])
            .args([good_flag.as_ref(), good.as_os_str(), bad_flag.as_ref(), bad.as_os_str()])
            .output()
            .unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{said}");
        assert!(said.contains("absent/run: No such file or directory"), "{said}");
    }
    assert!(server.peers.lock().unwrap().is_empty());
    // Neither does a run that doesn't begin take away what is there, nor leave an empty file.
    assert_eq!(std::fs::read_to_string(&good).unwrap(), "of an earlier run");
    assert_eq!(std::fs::read_dir(&files).unwrap().count(), 1);
    std::fs::remove_dir_all(&files).unwrap();
}

#[test]
fn messages_that_are_lost_beside_those_for_the_absent_are_counted() {
    // Two messages reach nobody: those who are there miss them.
    let server = pub_sub_server(|_, data| {
        !(data["c"] == 1 && [40, 41].contains(&data["s"].as_u64().unwrap()))
    });
    let scenario = Scenario::new("restless-lossy", RESTLESS);
    let (code, result) = scenario.run(&format!("--url {}", server.url("/connection/websocket")));
    assert_eq!(code, 1, "{result}");
    let lost = result["messages"]["lost"].as_u64().unwrap();
    // The first half of the first population is there all the time: ten subscribers of the channel.
    assert!((10..=40).contains(&lost), "{lost}");
}

#[test]
fn tokens_are_replaced_before_they_expire() {
    let server = pub_sub_server(|_, _| true);
    let scenario = Scenario::new(
        "tokens",
        r#"
        secret = "s3cret"
        channels = { name = "c" }
        populations = [{ connections = 5, token_ttl = "300ms" }]
        phases = [{ open = true }, { duration = "500ms" }]
        "#,
    );
    let (code, result) = scenario.run(&format!("--url {}", server.url("/connection/websocket")));
    assert_eq!(code, 0);
    assert!(result["churn"]["refreshed"].as_u64().unwrap() >= 5, "{result}");
    let peers = server.peers.lock().unwrap();
    assert!(peers.iter().all(|peer| peer.note("refreshed").as_u64() >= Some(1)));
}

#[test]
fn echoes_pause_before_they_go_on() {
    let server = echo_server();
    let scenario = Scenario::new(
        "think",
        r#"
        populations = [{ role = "echoes", connections = 10, think = ["40ms", "60ms"] }]
        phases = [{ open = true }, { echo = true, duration = "600ms" }]
        "#,
    );
    let (code, result) = scenario.run(&format!("--url {}", server.url("/")));
    assert_eq!(code, 0);
    // At most one in 40 ms each.
    let sent = result["messages"]["sent"].as_u64().unwrap();
    assert!((10..=150).contains(&sent), "{sent}");
    assert_messages(&result, all_fine(sent, sent));
}

#[test]
fn an_error_in_a_file_has_its_line_and_column() {
    let scenario = Scenario::new("wrong", "[[populations]]\nname = \"a\"\n[[phases]]\nopen = 3\n");
    let path = scenario.0.display();
    let output = start(&format!("run {path} --url ws://127.0.0.1:1/")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(&format!("{path}:4:8: a share is from 0 to 1, not 3")), "{stderr}");
}

/// A file that a run writes.
fn output(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("roost-load-{}-{name}", std::process::id()))
}

#[test]
fn a_run_writes_what_happened_second_by_second() {
    let server = pub_sub_server(|_, _| true);
    let scenario = Scenario::new(
        "files",
        r#"
        channels = { name = "c", count = 2 }
        ping_every = "100ms"
        populations = [{ name = "a", connections = 4 }, { name = "b", connections = 2 }]
        phases = [{ open = true }, { rate = 100, duration = "2500ms" }]
        "#,
    );
    let [json, csv, hdr, html] = ["json", "csv", "hdr", "html"].map(output);
    let url = server.url("/connection/websocket");
    let args = format!(
        "run {} --url {url} --pid {} --csv {} --hdr {} --html {}",
        scenario.0.display(),
        std::process::id(),
        csv.display(),
        hdr.display(),
        html.display()
    );
    let mut command = start(&args);
    let status = command.arg(&json).output().unwrap();
    assert_eq!(status.status.code(), Some(0), "{}", String::from_utf8_lossy(&status.stderr));
    // The summary for people, since the JSON is in a file.
    assert!(String::from_utf8_lossy(&status.stdout).contains("messages     250 sent"));
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::remove_file(path).unwrap();
        text
    };
    let report: Value = serde_json::from_str(&read(&json)).unwrap();
    let column = |key: &str| report["seconds"][key].as_array().unwrap();
    let seconds = column("open").len();
    assert!(seconds >= 3 && report["version"] == 2);
    let sum = |key: &str| column(key).iter().map(|of| of.as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("sent"), sum("received"), sum("opened")), (250, 750, 6));
    let mut both = column("p99_us").iter().zip(column("server_rss_bytes"));
    assert!(both.any(|(p99, rss)| p99.is_u64() && rss.is_u64()));
    for path in ["/connect_us/tcp/p50", "/connect_us/protocol/max", "/ping_us/p99"] {
        assert!(report.pointer(path).unwrap().is_u64(), "{path}");
    }
    let received = |of: &Value| of["received"].as_u64().unwrap();
    assert_eq!(report["channels"].as_array().unwrap().iter().map(received).sum::<u64>(), 750);
    assert!(report["populations"][1]["latency_us"]["p50"].is_u64());
    assert!(report["transports"]["websocket"]["p50"].is_u64());
    assert_eq!(read(&csv).lines().count(), seconds + 1);
    let log = read(&hdr);
    let lines = log.lines().filter(|line| line.contains(",HISTFAAA")).count();
    assert!((3..=seconds).contains(&lines), "{log}");
    let page = read(&html);
    assert!(page.starts_with("<!doctype html>") && page.contains("Latency histogram"));
}

#[test]
fn two_reports_are_compared() {
    let server = pub_sub_server(|_, _| true);
    let url = server.url("/connection/websocket");
    let [a, b] = ["a.json", "b.json"].map(output);
    for (path, rate) in [(&a, 200), (&b, 50)] {
        let args = format!("broadcast --url {url} --connections 5 --rate {rate} --duration 8s");
        let done = start(&args).arg(path).output().unwrap();
        assert_eq!(done.status.code(), Some(0));
    }
    let compare = |a: &PathBuf, b: &PathBuf| {
        let args = format!("compare {} {}", a.display(), b.display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_roost-load"));
        let done = command.args(args.split_whitespace()).output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap())
    };
    let (code, table) = compare(&a, &b);
    assert_eq!(code, Some(99), "{table}");
    assert!(table.contains("WORSE") && table.contains("B is worse than A"), "{table}");
    let (code, table) = compare(&a, &a);
    assert_eq!(code, Some(0), "{table}");
    assert_eq!(compare(&a, &PathBuf::from("/missing")).0, Some(2));
    [a, b].iter().for_each(|path| std::fs::remove_file(path).unwrap());
}

#[test]
fn a_search_finds_the_highest_rate() {
    // Loses messages of a run that come faster than 500 a second.
    let last = Mutex::new(None::<std::time::Instant>);
    let server = pub_sub_server(move |_, data| {
        let mut last = last.lock().unwrap();
        let now = std::time::Instant::now();
        let is_first = data["s"] == 1;
        let is_quick = last.is_some_and(|last| now - last < Duration::from_micros(400));
        *last = Some(now);
        is_first || !is_quick
    });
    let url = server.url("/connection/websocket");
    let (code, result) = load(&format!(
        "broadcast --url {url} --connections 1 --rate 100 --duration 500ms --drain 200ms \
         --search rate --until p99>5s"
    ));
    let search = &result["search"];
    assert_eq!(search["goal"], "rate");
    assert!(search["probes"].as_array().unwrap().len() >= 2, "{search}");
    // A machine with much to do finds less, or that it is the limit itself.
    match search["best"].as_u64() {
        Some(best) => assert!(code == 0 && best < 5000, "{search}"),
        None => assert_eq!(code, 1, "{search}"),
    }
    let wrong = start(&format!("echo --url {url} --search rate")).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn a_terminal_shows_the_run_while_it_goes_on() {
    let server = broadcast_server(|_, _, text| vec![text.to_owned()]);
    let program = env!("CARGO_BIN_EXE_roost-load");
    let url = server.url("/");
    // A terminal of `script` without one behind it has no size.
    let line = format!(
        "stty rows 30 cols 100; {program} broadcast --url {url} --connections 5 --rate 100 --duration 3s"
    );
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    command.env("TERM", "xterm").env("SHELL", "/bin/sh").stdin(Stdio::null());
    let done = command.output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    let text = String::from_utf8_lossy(&done.stdout);
    let (screen, rest) = text.split_once("\u{1b}[?1049l").expect("the screen of its own ends");
    assert!(screen.contains("\u{1b}[?1049h"), "{screen:?}");
    // Spaces are movements of the cursor.
    for expected in ["received", "missing", "processors"] {
        assert!(screen.contains(expected), "{expected}: {screen:?}");
    }
    assert!(rest.contains("messages     300 sent"), "{rest:?}");
}

#[test]
fn socket_io_is_spoken_with_the_oracle() {
    const GREETING: &str = r#"0{"sid":"y","pingInterval":25000}"#;
    let server = Server::start_on("127.0.0.1", GREETING, |peer, text, all| match text {
        "40" => peer.send(r#"40{"sid":"x"}"#),
        "3" => peer.set_note("ponged", true),
        text => {
            let event = text.trim_start_matches(|c: char| c.is_ascii_digit());
            let event: Value = serde_json::from_str(event).unwrap();
            if event[0] == "subscribe" {
                peer.set_note("channel", event[1].clone());
                peer.send("430[]");
                peer.send("2");
            } else {
                for peer in all.iter().filter(|peer| peer.note("channel") == event[1]) {
                    peer.send(&format!("42{}", json!(["message", event[2]])));
                }
            }
        }
    });
    let url = server.url("/socket.io/?EIO=4&transport=websocket");
    let (code, result) = load(&format!(
        "channels --protocol socket-io --url {url} --connections 4 --channels 2 --publish 30 --rate 300"
    ));
    assert_eq!(code, 0);
    assert_messages(&result, all_fine(30, 60));
    assert_eq!(server.peers.lock().unwrap().len(), 5, "four connections and the publisher");
}

/// As soketi: it takes an event from members of the channel, and sends it to the others.
#[test]
fn a_publisher_of_pusher_is_a_member_of_its_channels() {
    const GREETING: &str =
        r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.2\"}"}"#;
    let server = Server::start_on("127.0.0.1", GREETING, |peer, text, all| {
        let event: Value = serde_json::from_str(text).unwrap();
        let name = event["event"].as_str().unwrap();
        let channel = if name == "pusher:subscribe" { &event["data"] } else { &event };
        let channel = channel["channel"].as_str().unwrap();
        let is_member = |peer: &Peer| peer.note("channels").get(channel).is_some();
        if name == "pusher:subscribe" {
            let mut channels = peer.note("channels");
            channels[channel] = json!(true);
            peer.set_note("channels", channels);
            let name = "pusher_internal:subscription_succeeded";
            peer.send(&json!({ "event": name, "channel": channel, "data": "{}" }).to_string());
        } else if is_member(peer) {
            for other in all.iter().filter(|of| of.number != peer.number && is_member(of)) {
                other.send(text);
            }
        }
    });
    let url = server.url("/app/key?protocol=7");
    let (code, result) = load(&format!(
        "channels --protocol pusher --url {url} --connections 6 --channels 3 --publish 30 --rate 300"
    ));
    assert_eq!(code, 0);
    assert_messages(&result, all_fine(30, 60));
}

#[test]
fn payloads_follow_a_template() {
    let server = Server::start(|peer, text, _| {
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(value["no"], value["meta"]["s"]);
        assert_eq!(value["text"].as_str().unwrap().len(), 12);
        peer.send(&json!({ "wrapped": value }).to_string());
    });
    let mut command =
        start(&format!("echo --url {} --connections 3 --duration 100ms", server.url("/")));
    let template = r#"{"no":{counter},"text":"{random:12}","meta":{stamp}}"#;
    let (code, result) = result(&command.args(["--payload", template]).output().unwrap());
    assert_eq!(code, 0);
    let sent = result["messages"]["sent"].as_u64().unwrap();
    assert!(sent >= 3);
    assert_messages(&result, all_fine(sent, sent));
}
