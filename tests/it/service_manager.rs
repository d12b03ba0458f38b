//! Under a service manager such as systemd: notifications, the watchdog, and listeners that it has opened.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::Signal;
use serde_json::json;

use crate::command_line::roost;
use crate::harness::*;

/// The socket of a manager, in a file that is removed when it is dropped.
struct Manager(UnixDatagram, PathBuf);

impl Manager {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("roost-it-{}-{name}.notify", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(BOUND)).unwrap();
        Self(socket, path)
    }

    /// The next message.
    fn next(&self) -> String {
        let mut bytes = [0; 4096];
        let len = self.0.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    /// The next message that is no ping.
    fn next_state(&self) -> String {
        loop {
            let message = self.next();
            if message != "WATCHDOG=1\n" {
                return message;
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.1);
    }
}

/// A script that sets the variables of a manager and becomes the node. Descriptors begin at 3.
fn wrapper(variables: &str, listeners: &[OwnedFd]) -> [String; 4] {
    let mut script = String::new();
    for (at, listener) in listeners.iter().enumerate() {
        script += &format!("exec {}<&{}\n", at + 3, listener.as_raw_fd());
    }
    if !listeners.is_empty() {
        script += &format!("export LISTEN_PID=$$ LISTEN_FDS={}\n", listeners.len());
    }
    script += &format!("export {variables}\nexec \"$@\"");
    ["/bin/bash", "-c", &script, "node"].map(String::from)
}

fn start(
    variables: &str,
    listeners: &[OwnedFd],
    file: &str,
    flags: &[&str],
) -> Result<Node, Ended> {
    let wrapper = wrapper(variables, listeners);
    Node::launch(&wrapper.each_ref().map(String::as_str), file, "0", flags)
}

/// A listener.
fn listener() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (passable(&listener), address)
}

/// A copy that a program which this process starts has, too; its number is above those of the script.
fn passable(listener: impl AsFd) -> OwnedFd {
    let passed = fcntl_dupfd_cloexec(listener, 100).unwrap();
    fcntl_setfd(&passed, FdFlags::empty()).unwrap();
    passed
}

const OPEN_TO_ALL: &str = "client.insecure = true\nshutdown.timeout = '5s'\n";

#[test]
fn a_manager_hears_of_start_reload_health_and_end() {
    let manager = Manager::new("states");
    let variables = format!("NOTIFY_SOCKET={} WATCHDOG_USEC=300000", manager.1.display());
    let options = format!("{OPEN_TO_ALL}admin = {{enabled = true, password = 'open sesame'}}\n");
    let node = start(&variables, &[], &options, &[]).unwrap();
    let ready = manager.next_state();
    let address = node.listens_at();
    assert_eq!(ready, format!("READY=1\nSTATUS=Listening on {address} with 2 shards\n"));
    // Idle shards turn all the same.
    for _ in 0..5 {
        assert_eq!(manager.next(), "WATCHDOG=1\n");
    }
    node.signal(Signal::HUP);
    assert!(manager.next_state().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(manager.next_state(), "READY=1\n");
    // A file that is wrong changes nothing.
    node.reload("nonsense = 1\n[client", "nothing is changed");
    assert!(manager.next_state().starts_with("RELOADING=1\n"));
    assert_eq!(manager.next_state(), "READY=1\n");
    // So it is when the admin API requests it.
    let url = format!("http://{address}");
    let reloaded = roost(&["reload", "--url", &url, "--password", "open sesame"]);
    assert_eq!(reloaded.code, Some(1), "{reloaded:?}");
    assert!(manager.next_state().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(manager.next_state(), "READY=1\n");
    let mut client = node.connected();
    node.signal(Signal::TERM);
    let stopping = manager.next_state();
    let expected = "STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000\nSTATUS=Draining 1 connections\n";
    assert_eq!(stopping, expected);
    client.is_closed(3001, "shutdown");
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn one_passed_listener_serves_every_shard_and_outlives_the_node() {
    let (passed, address) = listener();
    let held = passable(&passed);
    let listeners = [passed];
    let node = start("LISTEN_FDNAMES=roost.socket", &listeners, OPEN_TO_ALL, &[]).unwrap();
    assert_eq!(node.listens_at(), address);
    let mut clients: Vec<_> = (0..10).map(|_| node.connected()).collect();
    clients.iter_mut().for_each(|client| client.subscribe("room"));
    let figures = node.figures();
    assert_eq!((figures["connections_passed"], figures["connections_open"]), (5, 10));
    clients.into_iter().for_each(Client::close);
    node.until_is("connections_open", 0);
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code, Some(0));
    // It comes between two nodes, and waits for the next one.
    let early = TcpStream::connect(address).unwrap();
    let listeners = [held];
    let node = start("LISTEN_FDNAMES=public", &listeners, OPEN_TO_ALL, &[]).unwrap();
    let mut early = Client::over(early, CLIENTS, &[]);
    early.command("connect", json!({}));
    early.line();
    early.close();
    node.is_healthy();
}

#[test]
fn a_listener_for_each_shard_needs_no_passing() {
    let first = listener();
    // As `ReusePort=yes` has it; the same queue is good enough here.
    let second = passable(&first.0);
    let listeners = [first.0, second];
    let node = start("LISTEN_FDNAMES=public:public", &listeners, OPEN_TO_ALL, &[]).unwrap();
    let clients: Vec<_> = (0..20).map(|_| node.connected()).collect();
    let figures = node.figures();
    assert_eq!((figures["connections_passed"], figures["connections_open"]), (0, 20));
    drop(clients);
}

#[test]
fn the_internal_port_is_passed_by_name() {
    let (public, internal) = (listener(), listener());
    let file = "client.insecure = true\nhealth.enabled = true\nhttp_server.internal_port = '1'\n";
    let listeners = [public.0, internal.0];
    let node = start("LISTEN_FDNAMES=public:internal", &listeners, file, &[]).unwrap();
    node.connected().close();
    for (address, status) in [(internal.1, 200), (public.1, 404)] {
        let mut raw = Raw::new(TcpStream::connect(address).unwrap());
        raw.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(raw.response().status, status, "{address}");
    }
    let ended =
        start("LISTEN_FDNAMES=public:internal", &listeners, OPEN_TO_ALL, &[]).err().unwrap();
    assert_eq!(ended.code, Some(1));
    assert!(ended.errors.contains("needs http_server.internal_port"), "{}", ended.errors);
    let ended = start("LISTEN_FDNAMES=public:api", &listeners, OPEN_TO_ALL, &[]).err().unwrap();
    assert!(ended.errors.contains("neither `public` nor `internal`"), "{}", ended.errors);
}
