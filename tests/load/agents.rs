//! Runs with agents: one report of several machines, and what becomes of it when one of them goes.

use super::scenarios::{Scenario, pub_sub_server, pub_sub_server_on};
use super::*;
use std::process::Child;

const TOKEN: &str = "the-token-of-these-tests";

/// An agent that ends with the test.
struct Agent {
    child: Child,
    address: String,
}

impl Agent {
    fn start() -> Self {
        Self::start_with(&mut Command::new(env!("CARGO_BIN_EXE_roost-load")), "127.0.0.1:0")
    }

    /// By a command that ends in `roost-load`.
    fn start_with(command: &mut Command, listen: &str) -> Self {
        let command = command.args(["agent", "--listen", listen]).env("ROOST_LOAD_TOKEN", TOKEN);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("waiting for runs with --agents ").unwrap();
        Self { child, address: address.to_owned() }
    }

    fn pair() -> ([Self; 2], String) {
        let agents = [Self::start(), Self::start()];
        let names = format!("{},{}", agents[0].address, agents[1].address);
        (agents, names)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run with agents.
fn with_agents(agents: &str, args: &str) -> Command {
    let mut command = start(args);
    command.args(["--agents", agents]).env("ROOST_LOAD_TOKEN", TOKEN);
    command
}

fn run(agents: &str, args: &str) -> (i32, Value) {
    result(&with_agents(agents, args).output().unwrap())
}

#[test]
fn two_agents_are_one_run_with_one_report() {
    let server = pub_sub_server(|_, _| true);
    let (agents, names) = Agent::pair();
    let url = server.url("/connection/websocket");
    let files = std::env::temp_dir().join(format!("roost-load-agents-{}", std::process::id()));
    std::fs::create_dir_all(&files).unwrap();
    let [csv, html] = ["run.csv", "run.html"].map(|name| files.join(name).display().to_string());
    let (code, report) = run(
        &names,
        &format!(
            "broadcast --url {url} --connections 21 --publish 60 --rate 100 --csv {csv} --html {html}"
        ),
    );
    assert_eq!(code, 0);
    assert_messages(&report, all_fine(60, 1260));
    let opened = json!({ "asked": 21, "opened": 21, "failed": 0, "dropped": 0 });
    assert_eq!(report["connections"], opened);
    let parts = report["agents"].as_array().unwrap();
    let of = |key: &str| parts.iter().map(|of| of[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("name"), agents.each_ref().map(|of| Value::from(of.address.as_str())));
    // The one publisher is on the first, so what comes to the second has two clocks in it.
    assert_eq!(
        (of("connections"), of("publishers")),
        (vec![10.into(), 11.into()], vec![1.into(), 0.into()])
    );
    assert_eq!(of("received"), [600, 660]);
    assert_eq!(of("lost"), [0, 0]);
    assert_eq!(of("is_latency_corrected"), [false, true]);
    assert!(report["latency_uncertainty_us"].as_f64().unwrap() > 0.0);
    for part in parts {
        assert!(part["clock"]["uncertainty_us"].as_f64().unwrap() > 0.0, "{part}");
        assert!(part["latency_us"]["p50"].as_u64().unwrap() > 0, "{part}");
        assert_eq!(part["fault"], Value::Null);
    }
    let [csv, html] = [csv, html].map(|path| std::fs::read_to_string(path).unwrap());
    for agent in &agents {
        assert!(csv.lines().next().unwrap().contains(&format!("\"received {}\"", agent.address)));
        assert!(html.contains(&agent.address));
    }
    let received: u64 = csv.lines().skip(1).map(|line| column(line, 17) + column(line, 20)).sum();
    assert_eq!(received, 1260);
    std::fs::remove_dir_all(&files).unwrap();
}

fn column(line: &str, at: usize) -> u64 {
    line.split(',').nth(at).unwrap().parse().unwrap()
}

#[test]
fn the_oracle_is_right_across_agents() {
    // Each receiver once: 5 is lost, 7 comes twice, 9 behind 10, and 20, the last one, is lost.
    let server = broadcast_server(|peer, number, text| match number {
        5 | 20 => vec![],
        7 => vec![text.to_owned(), text.to_owned()],
        9 => {
            peer.set_note("kept", text);
            vec![]
        }
        10 => vec![text.to_owned(), peer.note("kept").as_str().unwrap().to_owned()],
        _ => vec![text.to_owned()],
    });
    let (_agents, names) = Agent::pair();
    let url = server.url("/");
    let args =
        format!("broadcast --url {url} --connections 8 --publish 20 --rate 200 --drain 400ms");
    let (code, report) = run(&names, &args);
    assert_eq!(code, 1);
    assert_messages(
        &report,
        json!({ "sent": 20, "received": 152, "lost": 16, "duplicated": 8, "out_of_order": 8 }),
    );
    let lost = report["agents"].as_array().unwrap().iter().map(|of| of["lost"].clone());
    assert_eq!(lost.collect::<Vec<_>>(), [8, 8]);
}

#[test]
fn rates_and_channels_are_divided() {
    let server = pub_sub_server(|_, _| true);
    let (_agents, names) = Agent::pair();
    let url = server.url("/connection/websocket");
    let args =
        format!("channels --url {url} --connections 12 --channels 6 --rate 120 --publish 60");
    let (code, report) = run(&names, &args);
    assert_eq!(code, 0);
    assert_messages(&report, all_fine(60, 120));
    let sent = report["agents"].as_array().unwrap().iter().map(|of| of["sent"].clone());
    assert_eq!(sent.collect::<Vec<_>>(), [30, 30]);
    let echo = echo_server();
    let args = format!("echo --url {} --connections 10 --rate 400 --duration 500ms", echo.url("/"));
    let (code, report) = run(&names, &args);
    assert_eq!(code, 0);
    let sent = report["messages"]["sent"].as_u64().unwrap();
    assert!((194..=202).contains(&sent), "{sent}");
    for part in report["agents"].as_array().unwrap() {
        assert!((96..=102).contains(&part["sent"].as_u64().unwrap()), "{part}");
        assert_eq!(part["is_latency_corrected"], false);
    }
}

#[test]
fn connections_that_join_while_another_agent_publishes_lose_nothing() {
    let server = pub_sub_server(|_, _| true);
    let (_agents, names) = Agent::pair();
    let text = format!(
        "url = \"{}\"\nchannels = {{ name = \"c\" }}\npopulations = [{{ connections = 20 }}]\n\
         [[phases]]\nopen = 0.5\n[[phases]]\nopen = 1.0\nduration = \"1s\"\nrate = 300\nchurn = 40\n\
         [[phases]]\npublish = 50\nrate = 500\n",
        server.url("/connection/websocket")
    );
    let scenario = Scenario::new("agents-join", &text);
    let (code, report) = run(&names, &format!("run {}", scenario.path()));
    assert_eq!(code, 0);
    let messages = &report["messages"];
    assert_eq!((&messages["lost"], &messages["sent"]), (&json!(0), &json!(350)));
    assert!(report["churn"]["left"].as_u64().unwrap() > 20, "{report}");
    // All were there for the last phase: what they did not get, they were away for.
    let absent = report["churn"]["absent"].as_u64().unwrap();
    assert_eq!(messages["received"].as_u64().unwrap() + absent, 350 * 20);
}

#[test]
fn an_agent_that_cannot_be_reached_is_said() {
    let server = echo_server();
    let agent = Agent::start();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let missing = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let args = format!("echo --url {} --connections 6 --rate 60 --duration 200ms", server.url("/"));
    let (code, report) = run(&format!("{missing},{}", agent.address), &args);
    // The other one does all of it.
    assert_eq!((code, &report["connections"]["opened"]), (1, &json!(6)));
    assert_eq!(report["agents"].as_array().unwrap().len(), 1);
    let text = with_agents(&format!("{missing},{}", agent.address), &args).output().unwrap();
    let text = String::from_utf8_lossy(&text.stderr).into_owned();
    let said = format!("FAILED: agent {missing}: connection refused: it took no part");
    assert!(text.contains(&said), "{text}");
    // Messages that wait for each other would have to do so across machines.
    let closed = format!("broadcast --url {} --window 2 --duration 1s", server.url("/"));
    let closed = with_agents(&format!("{missing},{missing}"), &closed).output().unwrap();
    assert_eq!(closed.status.code(), Some(2));
    let none = with_agents(&missing, &args).output().unwrap();
    assert_eq!((none.status.code(), none.stdout.len()), (Some(1), 0));
}

#[test]
fn an_agent_that_dies_is_said_and_the_others_go_on() {
    let (agents, names) = Agent::pair();
    let [first, mut second] = agents;
    // Half of the messages, and the second agent is gone.
    let (middle, reached) = std::sync::mpsc::channel();
    let middle = Mutex::new(middle);
    let server = broadcast_server(move |_, number, text| {
        if number == 40 {
            let _ = middle.lock().unwrap().send(());
        }
        vec![text.to_owned()]
    });
    let args = format!(
        "broadcast --url {} --connections 10 --publish 80 --rate 80 --drain 500ms",
        server.url("/")
    );
    let running = thread::spawn(move || with_agents(&names, &args).output().unwrap());
    reached.recv().unwrap();
    second.child.kill().unwrap();
    let output = running.join().unwrap();
    let (code, report) = result(&output);
    assert_eq!(code, 1);
    let parts = &report["agents"];
    assert_eq!((&parts[0]["received"], &parts[0]["lost"]), (&json!(400), &json!(0)));
    assert_eq!((&parts[1]["lost"], &parts[1]["dropped"]), (&Value::Null, &json!(5)));
    assert!(parts[1]["fault"].is_string(), "{parts}");
    let text = String::from_utf8_lossy(&output.stderr);
    let said = format!("FAILED: agent {}: ", second.address);
    assert!(text.contains(&said), "{text}");
    drop(first);
}

#[test]
fn a_stranger_gets_nothing() {
    let server = echo_server();
    let agent = Agent::start();
    let args = format!("echo --url {} --connections 2 --duration 100ms", server.url("/"));
    let other = with_agents(&agent.address, &args)
        .env("ROOST_LOAD_TOKEN", "another-token-of-these-tests")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(1));
    assert!(text.contains("the token is another one"), "{text}");
    let short = with_agents(&agent.address, &args).env("ROOST_LOAD_TOKEN", "short").output();
    let short = short.unwrap();
    assert!(String::from_utf8_lossy(&short.stderr).contains("at least 16 characters"));
    let mut none = with_agents(&agent.address, &args);
    assert_eq!(none.env_remove("ROOST_LOAD_TOKEN").output().unwrap().status.code(), Some(2));
    // Frames that are none, and too large.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0, 0, 0, 2, b'{', b'}']] {
        let mut stream = TcpStream::connect(&agent.address).unwrap();
        stream.write_all(bytes).unwrap();
        // A connection that the agent has ended can't be shut down.
        let _ = stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        // The greeting, and no more; a reset where the agent has not read all of it.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 400, "{}", String::from_utf8_lossy(&rest));
    }
    let (code, _) = run(&agent.address, &args);
    assert_eq!(code, 0);
}

#[test]
fn one_run_at_a_time_which_ends_with_its_controller() {
    let (told, opened) = std::sync::mpsc::channel();
    let told = Mutex::new(told);
    let server = Server::start(move |_, text, _| {
        let _ = told.lock().unwrap().send(text.len());
    });
    let agent = Agent::start();
    let line = format!("echo --url {} --connections 3 --duration 60s", server.url("/"));
    let mut first = with_agents(&agent.address, &line).spawn().unwrap();
    for _ in 0..3 {
        opened.recv().unwrap();
    }
    let args = format!("idle --url {} --connections 2 --duration 100ms", server.url("/"));
    let busy = with_agents(&agent.address, &args).output().unwrap();
    assert_eq!(busy.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("busy with another run"));
    first.kill().unwrap();
    first.wait().unwrap();
    let (code, report) = run(&agent.address, &args);
    assert_eq!((code, &report["connections"]["opened"]), (0, &json!(2)));
}

#[test]
fn a_search_is_run_after_run() {
    let server = echo_server();
    let agent = Agent::start();
    let args = format!(
        "echo --url {} --connections 2 --rate 40 --duration 100ms --search rate --until sent>10",
        server.url("/")
    );
    let (_, report) = run(&agent.address, &args);
    assert!(report["search"]["probes"].as_array().unwrap().len() > 1, "{report}");
    assert_eq!(report["agents"][0]["connections"], 2);
}

/// A network namespace that is connected to this one.
struct Namespace {
    name: String,
}

impl Namespace {
    /// With an address in 10.213.`number`.0/24, whose .1 is here; nothing without the rights for it.
    fn new(number: u32) -> Option<Self> {
        let name = format!("roost-load-{}-{number}", std::process::id());
        let link = format!("rl{number}-{}", std::process::id() % 100_000);
        let namespace = Self { name: name.clone() };
        let steps = [
            format!("netns add {name}"),
            format!("link add {link} type veth peer name inside netns {name}"),
            format!("addr add 10.213.{number}.1/24 dev {link}"),
            format!("link set {link} up"),
            format!("-n {name} addr add 10.213.{number}.2/24 dev inside"),
            format!("-n {name} link set inside up"),
            format!("-n {name} link set lo up"),
        ];
        let run = |step: &String| {
            let mut ip = Command::new("ip");
            ip.args(step.split_whitespace()).stderr(Stdio::null());
            ip.status().is_ok_and(|status| status.success())
        };
        steps.iter().all(run).then_some(namespace)
    }

    fn agent(&self, number: u32) -> Agent {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, env!("CARGO_BIN_EXE_roost-load")]);
        Agent::start_with(&mut command, &format!("10.213.{number}.2:7400"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ =
            Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

#[test]
fn two_agents_in_namespaces_of_their_own() {
    let (Some(first), Some(second)) = (Namespace::new(1), Namespace::new(2)) else {
        eprintln!("skipped: no rights to make network namespaces");
        return;
    };
    let server = pub_sub_server_on("10.213.1.1", |_, _| true);
    let agents = [first.agent(1), second.agent(2)];
    let names = agents.each_ref().map(|of| of.address.clone()).join(",");
    // Each agent reaches the server over the way to its own namespace's neighbour.
    let url = format!("ws://10.213.1.1:{}/connection/websocket", server.port);
    let second_way = ["-n", &second.name, "route", "add", "10.213.1.0/24", "via", "10.213.2.1"];
    assert!(Command::new("ip").args(second_way).status().unwrap().success());
    let args = format!("broadcast --url {url} --connections 40 --publish 100 --rate 200");
    let (code, report) = run(&names, &args);
    assert_eq!(code, 0);
    assert_messages(&report, all_fine(100, 4000));
    let parts = report["agents"].as_array().unwrap();
    assert_eq!(parts.iter().map(|of| of["received"].clone()).collect::<Vec<_>>(), [2000, 2000]);
    assert_eq!(parts[1]["is_latency_corrected"], true);
}
