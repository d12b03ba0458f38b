//! Commands that write configurations, size systems and look at running nodes, with what they leave behind.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

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
