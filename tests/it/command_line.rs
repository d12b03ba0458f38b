//! Commands beside a running node: they find it by its configuration or by a URL.

use std::process::{Command, Stdio};

use crate::harness::*;

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) errors: String,
}

/// Runs `roost` in a folder without a configuration, with no variables but these.
pub(crate) fn roost_with(words: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
    command.args(words).env_clear().envs(variables.iter().copied());
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), errors: text(output.stderr) }
}

/// The same without variables.
pub(crate) fn roost(words: &[&str]) -> Ran {
    roost_with(words, &[])
}

fn port(node: &Node) -> String {
    node.listens_at().port().to_string()
}

#[test]
fn health_is_an_exit_code() {
    let node = Node::open(&["--health.enabled"]);
    let healthy = roost(&["health", "-a", "127.0.0.1", "-p", &port(&node)]);
    assert_eq!(healthy.code, Some(0), "{healthy:?}");
    assert_eq!(healthy.out, format!("http://{}: healthy\n", node.address()));
    let port = port(&node);
    let variable = [("ROOST_HTTP_SERVER_PORT", port.as_str())];
    assert_eq!(roost_with(&["health", "--ready"], &variable).code, Some(0));
    // Options may stand in front of the command, and by Centrifugo's names.
    let before = roost(&["--port", &port, "--address", "127.0.0.1", "health", "--quiet"]);
    assert_eq!((before.code, before.out.as_str()), (Some(0), ""), "{before:?}");
    let url = format!("http://{}", node.address());
    assert_eq!(roost(&["health", "--url", &url]).code, Some(0));
    drop(node);
    let away = roost(&["health", "--url", &url]);
    assert_eq!(away.code, Some(1), "{away:?}");
    assert_eq!(away.errors, format!("error: {url}: the connection is refused\n"));
}

#[test]
fn health_of_a_node_without_the_check() {
    let node = Node::open(&[]);
    let port = port(&node);
    let alive = roost(&["health", "--port", &port, "--http_api.key", "0123456789abcdef"]);
    assert_eq!(alive.code, Some(0), "{alive:?}");
    assert!(alive.out.contains("health.enabled is false"), "{alive:?}");
    // By a URL, the check is expected.
    let url = format!("http://127.0.0.1:{port}");
    let missing = roost(&["health", "--url", &url]);
    assert_eq!(missing.code, Some(1), "{missing:?}");
}

#[test]
fn health_over_tls_over_a_unix_socket_and_behind_a_proxy_header() {
    let node = Node::open_with("[roost]\ntls_self_signed = true\n", &["--health.enabled"]);
    let port = port(&node);
    let options = ["-a", "127.0.0.1", "-p", &port, "--tls-self-signed"];
    let secure = roost(&[&["health"], &options[..]].concat());
    assert_eq!(secure.code, Some(0), "{secure:?}");
    let url = format!("https://127.0.0.1:{port}");
    let distrusted = roost(&["health", "--url", &url]);
    assert_eq!(distrusted.code, Some(1), "{distrusted:?}");
    let trusted = roost(&["health", "--url", &url, "--insecure"]);
    assert_eq!(trusted.code, Some(0), "{trusted:?}");

    let path = std::env::temp_dir().join(format!("roost-it-{}-health.sock", std::process::id()));
    let address = format!("unix:{}", path.display());
    let node = Node::open(&["-a", &address, "--health.enabled", "--proxy-protocol"]);
    let local = roost(&["health", "--http_server.address", &address, "--proxy-protocol"]);
    assert_eq!(local.code, Some(0), "{local:?}");
    assert_eq!(local.out, format!("{address}: healthy\n"));
    drop(node);
}

#[test]
fn mistakes_of_the_command_line() {
    for (words, named) in [
        (&["health", "--url", "localhost:80"][..], "--url"),
        (&["health", "--timeout", "0"], "--timeout"),
        (&["health", "-c", "/nowhere/roost.toml"], "/nowhere/roost.toml: no such file"),
        (&["--port", "1", "version"], "--http_server.port has no effect"),
        (&["serve", "--log-level", "loud"], "log.level"),
    ] {
        let ran = roost(words);
        assert_eq!(ran.code, Some(2), "{words:?}: {ran:?}");
        assert!(ran.errors.contains(named), "{words:?}: {ran:?}");
    }
}

#[test]
fn options_in_front_of_serve() {
    let help = roost(&["-h"]);
    assert_eq!((help.code, help.errors.as_str()), (Some(0), ""));
    assert!(help.out.lines().count() <= 24, "{}", help.out);
    let ran = roost(&["--config", "/nowhere/a.toml", "serve"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.errors.ends_with("error: /nowhere/a.toml: no such file\n"), "{ran:?}");
    let ran = roost(&["--config", "/nowhere/a.toml", "serve", "--config", "/nowhere/b.toml"]);
    assert!(ran.errors.ends_with("error: /nowhere/b.toml: no such file\n"), "{ran:?}");
}
