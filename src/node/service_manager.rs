//! The service manager that supervises the node: states (`Type=notify`), a line of status, the watchdog.
//!
//! Without `NOTIFY_SOCKET` nothing is sent. A message is one datagram that never waits: a manager that does
//! not read loses messages, and a node goes on.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::control_mail::ControlMail;
use crate::shard::NodeState;

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    socket: Option<UnixDatagram>,
}

/// Time that the manager grants beyond that of draining.
const END_MARGIN: Duration = Duration::from_secs(10);

impl ServiceManager {
    /// Connects to the manager that the environment names.
    #[expect(clippy::disallowed_methods, reason = "a variable of the manager, not an option")]
    pub(super) fn connect() -> Self {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        match datagram(&path) {
            Ok(socket) => Self { socket: Some(socket) },
            Err(fault) => {
                warn!(%fault, "NOTIFY_SOCKET names no socket: the service manager gets no message");
                Self::default()
            }
        }
    }

    /// The node listens.
    pub(super) fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Options are read again. [`Self::reloaded`] follows.
    pub(super) fn reloading(&self) {
        // `Type=notify-reload` compares the moment with that of its signal.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.send(&[NotifyState::Reloading, now]);
        }
    }

    /// Options have been read, with or without success.
    pub(super) fn reloaded(&self) {
        self.send(&[NotifyState::Ready]);
    }

    /// The node drains, for so long at most. `TimeoutStopSec=` of the unit may be shorter.
    pub(super) fn stopping(&self, connections: u64, timeout: Duration) {
        let status = format!("Draining {connections} connections");
        let micros = (timeout + END_MARGIN).as_micros();
        let extend = NotifyState::ExtendTimeoutUsec(u32::try_from(micros).unwrap_or(u32::MAX));
        self.send(&[NotifyState::Stopping, extend, NotifyState::Status(&status)]);
    }

    /// Another process is the main one of the unit from now on.
    pub(super) fn main_process(&self, pid: i32) {
        if let Ok(pid) = u32::try_from(pid) {
            self.send(&[NotifyState::MainPid(pid)]);
        }
    }

    fn ping(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        // A full socket loses it; a later message says the same.
        let _ = socket.send(text.as_bytes());
    }
}

/// A socket that is connected to a path, or to a name that begins with `@`.
fn datagram(path: &OsStr) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match path.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(path)?,
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Pings a manager that has a watchdog (`WatchdogSec=`), for as long as all threads turn: it runs in the
/// control thread, and looks at each shard. One that stands still gets no ping, and the manager ends the
/// node and starts it anew.
pub(super) async fn watch(
    manager: Arc<ServiceManager>,
    node: Arc<NodeState>,
    control_mail: Arc<ControlMail>,
) {
    let Some(period) = sd_notify::watchdog_enabled().filter(|period| !period.is_zero()) else {
        return;
    };
    // One look may find a shard in a long turn, and the next is still in time.
    let mut every = tokio::time::interval(period / 3);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turns = Turns::default();
    loop {
        every.tick().await;
        if turns.has_each_moved(node.loop_lag.iter().map(|times| times.count())) {
            manager.ping();
        } else {
            warn!("a shard has not turned since the last look: the watchdog gets no ping");
        }
        // A shard that has nothing to do takes a turn all the same.
        control_mail.ring();
    }
}

/// Turns of all shards at the last look.
#[derive(Debug, Default)]
struct Turns(Vec<u64>);

impl Turns {
    /// Whether each shard has taken a turn since the last look; true at the first one.
    fn has_each_moved(&mut self, now: impl Iterator<Item = u64>) -> bool {
        let before = std::mem::replace(&mut self.0, now.collect());
        before.iter().zip(&self.0).all(|(before, now)| now > before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_stands_still_is_noticed() {
        let mut turns = Turns::default();
        assert!(turns.has_each_moved([0, 0].into_iter()), "the first look");
        assert!(turns.has_each_moved([1, 5].into_iter()));
        assert!(!turns.has_each_moved([2, 5].into_iter()));
        assert!(turns.has_each_moved([3, 6].into_iter()), "it was a long turn");
    }

    #[test]
    fn messages_are_those_of_the_protocol() {
        let name = format!("@roost-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        let inbox = UnixDatagram::bind_addr(&address).unwrap();
        let manager = ServiceManager { socket: Some(datagram(OsStr::new(&name)).unwrap()) };
        let next = || {
            let mut bytes = [0; 256];
            let len = inbox.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..len].to_vec()).unwrap()
        };
        manager.ready("Listening");
        assert_eq!(next(), "READY=1\nSTATUS=Listening\n");
        manager.reloading();
        let text = next();
        let micros = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(micros.trim_end().parse::<u64>().unwrap() > 0);
        manager.reloaded();
        assert_eq!(next(), "READY=1\n");
        manager.main_process(17);
        assert_eq!(next(), "MAINPID=17\n");
        manager.ping();
        assert_eq!(next(), "WATCHDOG=1\n");
        manager.stopping(7, Duration::from_secs(30));
        let text = "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\nSTATUS=Draining 7 connections\n";
        assert_eq!(next(), text);
        // Nobody reads: nothing waits.
        for _ in 0..10_000 {
            manager.ping();
        }
    }
}
