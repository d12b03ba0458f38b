//! The new process: it connects to the running node, prepares by what that says, waits for the state of its
//! shards, and runs when it is told to.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::{info, warn};

use super::brokers::{self, Taken};
use super::channel::{Blocking, Fault, check_peer};
use super::shard::News;
use super::{Arrival, Figures, Report, monotonic_ns, points};
use crate::handover::{
    Counts, Go, Hello, Identity, Message, Others, Purpose, ShardCounts, Status, Welcome,
};
use crate::io::sockets::{Address, UnixAddress};
use crate::node::StartFault;
use crate::node::broker::Brokers;
use crate::node::certificates::unix_now;

/// The running node answers this soon.
const WELCOME_WITHIN: Duration = Duration::from_secs(10);

/// It has settled and sent everything this soon: longer than it takes to give up by itself.
const FROZEN_WITHIN: Duration = Duration::from_secs(180);

/// A takeover that has begun.
pub(in crate::node) struct Incoming {
    channel: Blocking,
    welcome: Welcome,
}

/// The links of the shards: the process's own table has both ends of each until they are used.
pub(in crate::node) struct Links {
    own: Vec<OwnedFd>,
    others: Vec<OwnedFd>,
    releases: Vec<mpsc::Sender<()>>,
}

/// All state is here, and the running node waits.
pub(in crate::node) struct Arrived {
    incoming: Incoming,
    links: Links,
    counts: Counts,
    /// Listeners of the internal port.
    pub(in crate::node) internal: Vec<OwnedFd>,
    /// The takeover socket.
    pub(in crate::node) listener: Option<OwnedFd>,
    /// The listener of HTTP-01 challenges.
    pub(in crate::node) challenges: Option<OwnedFd>,
    /// The nodes beside the running one.
    pub(in crate::node) others: Others,
}

/// The node that listens at a path, in brief; `None` when none does.
///
/// # Errors
/// It doesn't answer.
pub fn status(path: &Path) -> Result<Option<Status>, String> {
    let Some(mut channel) = connect(path)? else { return Ok(None) };
    let hello = Hello::new(Purpose::Status, env!("CARGO_PKG_VERSION"));
    let text = |fault: Fault| fault.to_string();
    channel.send(&Message::Hello(hello), &[]).map_err(text)?;
    match channel.receive(Some(WELCOME_WITHIN)).map_err(text)? {
        Message::Status(status) => Ok(Some(status)),
        Message::Refused(why) => Err(why),
        other => Err(format!("unexpected message {}", other.name())),
    }
}

/// Connects to the node that listens at a path, which has to run as the same user.
fn connect(path: &Path) -> Result<Option<Blocking>, String> {
    let at = |fault: std::io::Error| format!("{}: {fault}", path.display());
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(fault)
            if matches!(fault.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(fault) => return Err(at(fault)),
    };
    stream.set_nonblocking(true).map_err(at)?;
    let channel = Blocking::new(stream.into());
    check_peer(channel.socket())?;
    Ok(Some(channel))
}

fn fault(why: impl std::fmt::Display) -> StartFault {
    StartFault::Takeover { why: why.to_string() }
}

impl Incoming {
    /// Connects to the node that listens at a path; `None` when none does.
    pub(in crate::node) fn connect(path: &Path, hello: Hello) -> Result<Option<Self>, StartFault> {
        let Some(mut channel) = connect(path).map_err(fault)? else { return Ok(None) };
        points::pass("hello");
        channel.send(&Message::Hello(hello), &[]).map_err(fault)?;
        let welcome = match channel.receive(Some(WELCOME_WITHIN)).map_err(fault)? {
            Message::Welcome(welcome) => *welcome,
            Message::Refused(why) | Message::Abort(why) => {
                return Err(fault(format!("the running node refuses: {why}")));
            }
            other => return Err(fault(format!("unexpected message {}", other.name()))),
        };
        points::pass("welcome");
        info!(version = welcome.version, "takes over from a running node");
        Ok(Some(Self { channel, welcome }))
    }

    pub(in crate::node) fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    pub(in crate::node) fn identity(&self) -> &Identity {
        &self.welcome.identity
    }

    /// The machine has room for what comes: descriptors in each shard's table, and memory for both processes.
    pub(in crate::node) fn check_room(
        &self,
        connections_max: usize,
        memory_available: Option<u64>,
    ) -> Result<(), StartFault> {
        let why = if let Some(open) =
            self.welcome.open.iter().find(|open| **open as usize > connections_max)
        {
            format!("a shard has {open} connections, and one here has room for {connections_max}")
        } else if let Some(available) = memory_available
            && available < self.welcome.memory
        {
            let needed = self.welcome.memory;
            format!("{available} bytes of memory are free, and the running node has {needed}")
        } else {
            return Ok(());
        };
        self.fail(&why);
        Err(fault(why))
    }

    /// Says that this process ends. The running node notices its end in any case.
    fn fail(&self, why: &str) {
        let _ = self.channel.send(&Message::Failed(why.to_owned()), &[]);
    }

    /// The addresses of public listeners, and those of the internal port.
    pub(in crate::node) fn addresses(&self) -> Result<[Vec<Address>; 2], StartFault> {
        let Welcome { public, internal, .. } = &self.welcome;
        let all = |texts: &[String]| texts.iter().map(|text| address(text)).collect();
        let read = |texts: &[String]| -> Option<Vec<Address>> { all(texts) };
        match (read(public), read(internal)) {
            (Some(public), Some(internal)) => Ok([public, internal]),
            _ => Err(fault("an address that can't be read")),
        }
    }

    /// Makes the links of the shards, and says how each of their threads comes by its state.
    pub(in crate::node) fn links(&self, shards: usize) -> std::io::Result<(Links, Vec<Arrival>)> {
        let mut links = Links { own: Vec::new(), others: Vec::new(), releases: Vec::new() };
        let mut released = Vec::new();
        for _ in 0..shards {
            let flags = SocketFlags::CLOEXEC;
            let kind = SocketType::SEQPACKET;
            let (own, other) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
            links.own.push(own);
            links.others.push(other);
            let (sender, receiver) = mpsc::channel();
            links.releases.push(sender);
            released.push(receiver);
        }
        let all = links.own.iter().chain(&links.others).map(AsRawFd::as_raw_fd);
        let unneeded: Vec<RawFd> = all.chain([self.channel.socket().as_raw_fd()]).collect();
        let unneeded = Arc::new(unneeded);
        let arrivals = links.own.iter().zip(released).map(|(own, release)| Arrival {
            link: own.as_raw_fd(),
            unneeded: Arc::clone(&unneeded),
            release,
        });
        let arrivals = arrivals.collect();
        Ok((links, arrivals))
    }

    /// Hands the links to the running node, and waits until all state is here. The threads of the shards have
    /// their own tables by now.
    pub(in crate::node) fn receive(
        mut self,
        mut links: Links,
        reports: &mut UnboundedReceiver<Report>,
        brokers: &Brokers,
    ) -> Result<Arrived, StartFault> {
        let mut others = Others::default();
        match self.receive_all(&mut links, reports, (brokers, &mut others)) {
            Ok((counts, Descriptors { internal, challenges, listener })) => {
                let listener = Some(listener);
                let incoming = self;
                Ok(Arrived { incoming, links, counts, internal, listener, challenges, others })
            }
            Err(why) => {
                self.fail(&why);
                Err(fault(why))
            }
        }
    }

    fn receive_all(
        &mut self,
        links: &mut Links,
        reports: &mut UnboundedReceiver<Report>,
        (brokers, known): (&Brokers, &mut Others),
    ) -> Result<(Counts, Descriptors), String> {
        points::pass("prepared");
        let text = |fault: Fault| fault.to_string();
        let others: Vec<BorrowedFd<'_>> = links.others.iter().map(AsFd::as_fd).collect();
        self.channel.send(&Message::Prepared, &others).map_err(text)?;
        // The shards have copies of their own, and the other ends are the running node's now.
        links.own.clear();
        links.others.clear();
        let expected = loop {
            let message = self.channel.receive(Some(FROZEN_WITHIN)).map_err(text)?;
            match brokers::take(brokers, known, message)? {
                Taken::Done => {}
                Taken::Answered(answer) => {
                    points::pass("listening");
                    self.channel.send(&answer, &[]).map_err(text)?;
                }
                Taken::Other(Message::Frozen(counts)) => break counts,
                Taken::Other(Message::Abort(why)) => {
                    return Err(reason_of_shard(reports)
                        .unwrap_or_else(|| format!("the running node goes on: {why}")));
                }
                Taken::Other(other) => {
                    return Err(format!("unexpected message {}", other.name()));
                }
            }
        };
        points::pass("frozen");
        let mut shards = vec![ShardCounts::default(); expected.shards.len()];
        for _ in 0..shards.len() {
            let Some(Report { shard, news: News::Thawed(thawed), .. }) = reports.blocking_recv()
            else {
                return Err("a shard has ended".to_owned());
            };
            let counts = thawed.map_err(|why| format!("shard {}: {why}", shard.0))?;
            *shards.get_mut(shard.index()).ok_or("a shard too many")? = counts;
        }
        brokers.wait_for_fences()?;
        let mut internal = self.channel.take_descriptors();
        let listener = internal.pop().ok_or("the takeover socket didn't come")?;
        let challenges = expected.challenges.then(|| internal.pop()).flatten();
        let counts =
            Counts { shards, internal: internal.len() as u32, challenges: challenges.is_some() };
        match counts == expected {
            true => Ok((counts, Descriptors { internal, challenges, listener })),
            false => Err(format!("{counts:?} have come in place of {expected:?}")),
        }
    }
}

/// The listeners of the running node's control thread.
struct Descriptors {
    internal: Vec<OwnedFd>,
    challenges: Option<OwnedFd>,
    listener: OwnedFd,
}

impl Arrived {
    /// A service manager has opened the public listeners.
    pub(in crate::node) fn listeners_stay(&self) -> bool {
        self.incoming.welcome.listeners_stay
    }

    /// Says that all is here, and waits for the decision of the running node: as long as that lives.
    ///
    /// # Errors
    /// It goes on, and this process has to end.
    pub(in crate::node) fn commit(mut self, figures: &Figures) -> Result<Running, StartFault> {
        points::pass("ready");
        let channel = &mut self.incoming.channel;
        channel.send(&Message::Ready(self.counts.clone()), &[]).map_err(fault)?;
        let go = match channel.receive(None) {
            Ok(Message::Go(go)) => Some(go),
            Ok(Message::Abort(why)) => {
                return Err(fault(format!("the running node goes on: {why}")));
            }
            // It sends Abort before it goes on: without one it is dead.
            Err(Fault::Closed) => {
                warn!(
                    "the process before has ended without its last message: its connections go on"
                );
                None
            }
            Ok(other) => return Err(fault(format!("unexpected message {}", other.name()))),
            Err(why) => return Err(fault(why)),
        };
        points::pass("go");
        let settled_since = go.map_or_else(monotonic_ns, |go: Go| go.settled_since);
        let sum = |of: fn(&ShardCounts) -> u64| self.counts.shards.iter().map(of).sum::<u64>();
        let (connections, bytes) = (sum(|of| of.connections), sum(|of| of.bytes));
        figures.takeovers.store(go.map_or(1, |go| go.takeovers), Ordering::Relaxed);
        figures.connections.store(connections, Ordering::Relaxed);
        figures.bytes.store(bytes, Ordering::Relaxed);
        self.links.releases.iter().for_each(|release| {
            // A shard that has panicked has aborted the process.
            let _ = release.send(());
        });
        Ok(Running { settled_since, version: self.incoming.welcome.version, connections, bytes })
    }
}

/// A takeover whose shards run.
pub(in crate::node) struct Running {
    settled_since: u64,
    version: String,
    connections: u64,
    bytes: u64,
}

impl Running {
    /// Waits until each shard runs, and reports the takeover.
    pub(in crate::node) fn report(
        self,
        shards: usize,
        reports: &mut UnboundedReceiver<Report>,
        figures: &Figures,
    ) {
        let mut longest = 0;
        for _ in 0..shards {
            let Some(Report { shard, news: News::Runs(at), .. }) = reports.blocking_recv() else {
                return;
            };
            let pause_us = at.saturating_sub(self.settled_since) / 1000;
            info!(shard = shard.0, pause_us, "shard runs");
            longest = longest.max(pause_us);
        }
        figures.pause_us.store(longest, Ordering::Relaxed);
        figures.at.store(unix_now(), Ordering::Relaxed);
        info!(
            from = self.version,
            connections = self.connections,
            bytes = self.bytes,
            pause_us = longest,
            "took over the connections of the process before"
        );
    }
}

/// Why a shard has failed, which is also why the running node goes on.
fn reason_of_shard(reports: &mut UnboundedReceiver<Report>) -> Option<String> {
    std::iter::from_fn(|| reports.try_recv().ok()).find_map(|report| match report.news {
        News::Thawed(Err(why)) => Some(format!("shard {}: {why}", report.shard.0)),
        _ => None,
    })
}

/// An address, as [`Address`] shows it.
fn address(text: &str) -> Option<Address> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(Address::Unix(UnixAddress { path: PathBuf::from(path), mode: 0 })),
        None => text.parse::<SocketAddr>().ok().map(Address::Ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        let unix = UnixAddress { path: "/run/roost.sock".into(), mode: 0 };
        for expected in [
            Address::Ip("127.0.0.1:8000".parse().unwrap()),
            Address::Ip("[::1]:8000".parse().unwrap()),
            Address::Unix(unix),
        ] {
            assert_eq!(address(&expected.to_string()), Some(expected));
        }
        assert_eq!(address("nowhere"), None);
    }

    #[test]
    fn a_path_where_nobody_listens_is_an_ordinary_start() {
        use crate::handover::Purpose;
        let path = std::env::temp_dir().join(format!("roost-takeover-{}", std::process::id()));
        let hello = || Hello::new(Purpose::Takeover, "1");
        assert!(Incoming::connect(&path, hello()).unwrap().is_none());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(
            Incoming::connect(&path, hello()).unwrap().is_none(),
            "a file that was left behind"
        );
        std::fs::remove_file(&path).unwrap();
    }
}
