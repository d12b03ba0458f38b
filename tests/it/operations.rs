//! Commands that write configurations, size systems and look at running nodes, with what they leave behind.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command_line::{roost, roost_with};
use crate::harness::*;

/// A folder of one test.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("roost-it-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir(&path).unwrap();
    path
}

fn port(node: &Node) -> String {
    node.listens_at().port().to_string()
}

#[test]
fn a_written_configuration_works_end_to_end() {
    let folder = folder("init");
    let file = folder.join("roost.toml");
    let path = file.to_str().unwrap();
    let written = roost(&["config", "init", path]);
    assert_eq!(written.code, Some(0), "{written:?}");
    assert_eq!(written.errors, "");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    // It is never overwritten by accident, and another one has other keys.
    let again = roost(&["config", "init", path]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    let forced = roost(&["config", "init", path, "--force", "--origin", "https://a.example"]);
    assert_eq!(forced.code, Some(0), "{forced:?}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("allowed_origins = [\"https://a.example\"]"), "{text}");
    assert_eq!(roost(&["config", "check", "--strict", path]).code, Some(0));

    let node = Node::start(&text, &[]);
    let token = roost(&["token", "--user", "42", "-c", path]);
    let mut client = Client::open(&node, CLIENTS);
    let connected = client.ask("connect", json!({"token": token.out.trim()}));
    assert!(connected["connect"]["client"].is_string(), "{connected}");
    let subscribed = client.ask("subscribe", json!({"channel": "chat:room"}));
    assert_eq!(subscribed["subscribe"]["recoverable"], json!(true), "{subscribed}");
    let key = text.lines().find_map(|line| line.strip_prefix("key = \"")).unwrap();
    let header = format!("X-API-Key: {}", key.trim_end_matches('"'));
    let body = json!({"channel": "chat:room", "data": {"hello": 1}}).to_string();
    let published = node.raw().post("/api/publish", &[&header], &body);
    assert_eq!(published.status, 200, "{published:?}");
    loop {
        let push = client.push();
        if push["pub"]["data"] == json!({"hello": 1}) {
            break;
        }
        assert!(push["join"].is_object(), "{push}");
    }
    let url = format!("http://{}", node.address());
    let status = roost(&["status", "-c", path, "--url", &url, "--json"]);
    let info: Value = serde_json::from_str(&status.out).unwrap_or_else(|_| panic!("{status:?}"));
    assert_eq!(info["nodes"][0]["num_clients"], json!(1), "{info}");
    let screen = roost(&["status", "-c", path, "-a", "127.0.0.1", "-p", &port(&node)]);
    assert!(screen.out.contains("1 node\n") && screen.out.lines().count() <= 24, "{screen:?}");
    let top = roost(&["top", "--once", "-c", path, "--url", &url]);
    assert_eq!(top.code, Some(0), "{top:?}");
    assert!(top.out.contains("healthy") && top.out.contains("subscriptions"), "{}", top.out);
    assert!(!top.out.contains('\u{1b}'), "{}", top.out);
    let wrong = roost(&["top", "--once", "--url", &url, "--password", "wrong"]);
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.errors.contains("the password is wrong"), "{wrong:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// `roost top` in a terminal of its own, which `script` makes, and the name of that terminal.
struct TopInTerminal {
    process: Child,
    output: Receiver<u8>,
    seen: Vec<u8>,
    terminal: String,
}

impl TopInTerminal {
    fn start(node: &Node) -> Self {
        let program = env!("CARGO_BIN_EXE_roost");
        // A terminal of `script` without one behind it has no size.
        let line = format!(
            "stty rows 30 cols 100; tty; {program} top --url http://{} --password 'open sesame'; \
             echo code $?; stty -a",
            node.address()
        );
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.env("TERM", "xterm").env("SHELL", "/bin/sh").stderr(Stdio::null());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, output) = std::sync::mpsc::channel();
        let mut stdout = process.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut bytes) {
                // Nobody reads behind the end of the test.
                bytes[..count].iter().for_each(|byte| sender.send(*byte).unwrap_or_default());
            }
        });
        let mut top = Self { process, output, seen: Vec::new(), terminal: String::new() };
        let text = top.until("\n");
        top.terminal = text.trim().to_owned();
        assert!(top.terminal.starts_with("/dev/pts/"), "{text:?}");
        top
    }

    /// The output up to some text, with that text. The screen is drawn each second, so the bound is
    /// one of the whole wait, and not of a byte.
    fn until(&mut self, text: &str) -> String {
        let from = self.seen.len();
        self.until_by(from, text, Instant::now() + BOUND);
        assert!(
            self.seen[from..].ends_with(text.as_bytes()),
            "no {text:?} in {:?}",
            self.since(from)
        );
        self.since(from)
    }

    /// Reads until some text behind a place, or until a moment.
    fn until_by(&mut self, from: usize, text: &str, end: Instant) {
        while !self.seen[from..].ends_with(text.as_bytes()) {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(byte) = self.output.recv_timeout(left) else { return };
            self.seen.push(byte);
        }
    }

    fn since(&self, from: usize) -> String {
        String::from_utf8_lossy(&self.seen[from..]).into_owned()
    }

    /// Presses a key, and once more where it isn't heard within a second: crossterm forgets that there is
    /// one when the terminal is resized in the same moment, and looks again with the next key.
    fn press_until(&mut self, key: &str, text: &str) {
        let (from, end) = (self.seen.len(), Instant::now() + BOUND);
        while !self.seen[from..].ends_with(text.as_bytes()) {
            assert!(Instant::now() < end, "no {text:?} in {:?}", self.since(from));
            self.press(key);
            self.until_by(from, text, Instant::now() + Duration::from_secs(1));
        }
    }

    fn press(&mut self, keys: &str) {
        self.process.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, rows: u16, columns: u16) {
        let (rows, columns) = (rows.to_string(), columns.to_string());
        let words = ["-F", &self.terminal, "rows", &rows, "cols", &columns];
        assert!(Command::new("stty").args(words).status().unwrap().success());
    }

    /// The terminal is as it was: no other screen, a cursor, lines and echo.
    fn until_restored(mut self, code: &str) {
        if !self.seen.ends_with(OTHER_SCREEN_LEFT.as_bytes()) {
            self.until(OTHER_SCREEN_LEFT);
        }
        self.until("\u{1b}[?25h");
        self.until(code);
        let state = self.until(" iexten");
        assert!(state.contains(" icanon") && !state.contains("-icanon"), "{state}");
        let state = state + &self.until("echoke");
        assert!(state.contains(" echo ") && !state.contains("-echo "), "{state}");
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

const OTHER_SCREEN_LEFT: &str = "\u{1b}[?1049l";

#[test]
fn top_in_a_terminal() {
    let node = Node::start(&format!("{ADMIN}[client]\ninsecure = true\n"), &[]);
    let mut top = TopInTerminal::start(&node);
    // Another screen, without a cursor; then figures.
    top.until("\u{1b}[?1049h");
    top.until("\u{1b}[?25l");
    top.until("healthy");
    top.press("?");
    top.until("next column");
    top.press("?p");
    top.until("paused");
    // A smaller terminal is drawn anew, in its size.
    top.resize(20, 60);
    top.until("paused");
    top.press_until("q", OTHER_SCREEN_LEFT);
    top.until_restored("code 0");
    // A signal restores the terminal as well, and so does the end of the node.
    let mut top = TopInTerminal::start(&node);
    top.until("healthy");
    top.press("\u{3}");
    top.until_restored("code 0");
    let mut top = TopInTerminal::start(&node);
    top.until("healthy");
    drop(node);
    top.until_restored("code 1");
}

const ADMIN: &str = "[admin]\nenabled = true\npassword = \"open sesame\"\n";

#[test]
fn a_reload_says_whether_it_succeeded() {
    let folder = folder("reload");
    let file = folder.join("node.toml");
    let path = file.to_str().unwrap();
    let options = |more: &str| format!("{ADMIN}[client.token]\nhmac_secret_key = \"s\"\n{more}");
    std::fs::write(&file, options("")).unwrap();
    let pid_file = folder.join("pid");
    let node = Node::start(&options(""), &["--pid_file", pid_file.to_str().unwrap()]);
    let url = format!("http://{}", node.address());
    let reload = || roost(&["reload", "--url", &url, "--password", "open sesame"]);
    // The harness gave the node a file of its own.
    let running = node.file().to_owned();
    std::fs::write(&running, options("[log]\nlevel = \"debug\"\n[node]\nname = \"other\"\n"))
        .unwrap();
    let done = reload();
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.out.contains("in effect: log.level\n"), "{done:?}");
    assert!(done.out.contains("needs a restart: node\n"), "{done:?}");
    std::fs::write(&running, options("[log]\nlevel = \"loud\"\n")).unwrap();
    let failed = reload();
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.errors.contains("log.level") && failed.errors.contains("nothing is changed"));
    // By the pid file, where the admin API is off in the configuration that is named.
    let plain = format!("pid_file = {:?}\n[client.token]\nhmac_secret_key = \"s\"\n", pid_file);
    std::fs::write(&file, &plain).unwrap();
    std::fs::write(&running, options("")).unwrap();
    let before = node.errors().matches("options reloaded").count();
    let signalled = roost(&["reload", "-c", path]);
    assert_eq!(signalled.code, Some(0), "{signalled:?}");
    node.until("a reload", |_| node.errors().matches("options reloaded").count() > before);
    drop(node);
    let nobody = roost(&["reload", "-c", path]);
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn older_configurations_and_names() {
    let folder = folder("migrate");
    let (old, new) = (folder.join("config.json"), folder.join("roost.toml"));
    let text = r#"{"token_hmac_secret_key": "0123456789abcdef0123456789abcdef",
        "api_key": "0123456789abcdef", "allowed_origins": ["https://a.example"],
        "sockjs": true,
        "namespaces": [{"name": "chat", "presence": true, "allow_subscribe_for_client": true}]}"#;
    std::fs::write(&old, text).unwrap();
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let migrated = roost(&["config", "migrate", old, "-o", new]);
    assert_eq!(migrated.code, Some(0), "{migrated:?}");
    assert!(migrated.errors.contains(&format!("no place: {old}:3: sockjs")), "{migrated:?}");
    assert_eq!(roost(&["config", "check", "--strict", new]).code, Some(0));
    let strict = roost(&["config", "migrate", old, "--strict", "--format", "yaml"]);
    assert_eq!(strict.code, Some(1), "{strict:?}");
    assert!(strict.out.contains("hmac_secret_key: "), "{strict:?}");
    // A node that is given the old file names what was meant.
    let checked = roost(&["checkconfig", "-c", old]);
    let hint = "unknown option token_hmac_secret_key; did you mean client.token.hmac_secret_key?";
    assert!(checked.errors.contains(hint), "{checked:?}");
    let explained = roost(&["config", "explain", "token_hmac_secret_key"]);
    assert!(explained.out.contains("client.token.hmac_secret_key\n"), "{explained:?}");
    let unknown = roost(&["config", "explain", "client.chanel_limit"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.errors.contains("did you mean client.channel_limit?"), "{unknown:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn commands_by_centrifugos_names() {
    let folder = folder("theirs");
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
        command.args(words).env_clear().current_dir(&folder).stdin(Stdio::null());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), output.stderr)
    };
    assert_eq!(run(&["genconfig"]).0, Some(0));
    assert_eq!(run(&["genconfig"]).0, Some(1), "the file exists");
    assert_eq!(run(&["checkconfig"]).0, Some(0));
    let (code, token, _) = run(&["gentoken", "-u", "42", "-q"]);
    assert_eq!((code, token.matches('.').count(), token.ends_with('\n')), (Some(0), 2, false));
    let (code, said, _) = run(&["checktoken", &token]);
    assert_eq!((code, said.as_str()), (Some(0), "valid token for user \"42\"\n"));
    let (code, ..) = run(&["checktoken", &format!("{token}x")]);
    assert_eq!(code, Some(1));
    let (_, said, _) = run(&["gentoken", "--user", "42", "-t", "3600"]);
    assert!(
        said.starts_with("HMAC SHA-256 JWT for user \"42\" with expiration TTL 1h:\n"),
        "{said}"
    );
    let (_, sub, _) = run(&["gensubtoken", "-u", "42", "-s", "chat:a", "-q"]);
    assert_eq!(run(&["gensubtoken", "-u", "42"]).0, Some(2), "a token for no channel");
    // A file that is named has to be there: without it the key would be another one.
    for command in
        [&["gentoken", "-c", "missing.toml"][..], &["checktoken", &sub, "-c", "missing.toml"]]
    {
        let missing = roost(command);
        assert_eq!(missing.code, Some(2), "{missing:?}");
        // ... and nothing is said about options that nobody has set.
        assert_eq!(missing.errors, "error: missing.toml: no such file\n");
    }
    let (code, said, _) = run(&["checksubtoken", &sub]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("channel \"chat:a\""), "{said}");
    let (code, out, _) = run(&["defaultconfig", "-c", "all.json", "--dry-run"]);
    let all: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &all["http_server"]["port"]), (Some(0), &json!(8000)));
    assert_eq!(run(&["defaultconfig", "-c", "all.yaml"]).0, Some(0));
    assert_eq!(run(&["checkconfig", "-c", "all.yaml", "-s"]).0, Some(0));
    let (_, out, _) = run(&["defaultenv"]);
    assert!(out.contains("CENTRIFUGO_HTTP_SERVER_PORT=\"8000\"\n"), "{out}");
    let (_, out, _) = run(&["configdoc"]);
    assert!(out.starts_with("# Configuration\n"), "{out}");
    assert_eq!(run(&["version"]).0, Some(0));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_plan_is_figures() {
    let line = [
        "plan",
        "--connections",
        "1000000",
        "--channels",
        "1000",
        "--history",
        "10",
        "--rate",
        "5",
    ];
    let text = roost(&line);
    assert_eq!(text.code, Some(0), "{text:?}");
    for part in ["kernel: sockets", "4.00 GB", "descriptors", "to clients", "cores"] {
        assert!(text.out.contains(part), "{part}: {text:?}");
    }
    let plain: Value =
        serde_json::from_str(&roost(&[&line[..], &["--json"]].concat()).out).unwrap();
    let tls: Value =
        serde_json::from_str(&roost(&[&line[..], &["--json", "--tls"]].concat()).out).unwrap();
    assert!(tls["process_bytes"].as_u64() > plain["process_bytes"].as_u64());
    assert_eq!(roost(&["plan"]).code, Some(2));
    assert_eq!(roost_with(&["plan", "--connections", "0"], &[]).code, Some(2));
}
