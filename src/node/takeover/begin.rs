//! The part of a takeover in the start of a node: whether it takes over from another process, and how the next
//! one may take over from it.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex};
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::incoming::{Arrived, Links};
use super::{Arrival, Figures, Gate, Incoming, Outgoing, Report, monotonic_ns};
use crate::handover::Identity;
use crate::io::sockets::{Address, Switchboard, UnixAddress};
use crate::node::broker::Brokers;
use crate::node::cluster::Cluster;
use crate::node::listen::{self, Listener, SocketFiles};
use crate::node::pid_file::PidFile;
use crate::node::{StartFault, system};

/// The pid file of a node that has taken over: written when the process before gives it up.
pub(in crate::node) type LaterPidFile = Arc<StdMutex<Option<PidFile>>>;

/// How a node begins, and how another process may take over from it.
pub(in crate::node) struct TakeoverSettings {
    /// The takeover socket.
    pub(in crate::node) path: Option<PathBuf>,
    /// The running node, if there is one.
    pub(in crate::node) incoming: Option<Incoming>,
    /// Secrets and seeds, the running node's or new ones.
    pub(in crate::node) identity: Identity,
    /// The options that hold until the node ends, with digests of their values.
    pub(in crate::node) options: Vec<(String, [u8; 16])>,
    /// The pid file that the running node still holds.
    pub(in crate::node) pid_file: Option<(PathBuf, LaterPidFile)>,
}

/// How far a takeover from another process has come.
enum Stage {
    /// An ordinary start.
    None,
    /// Its shards wait for state.
    Prepared(Box<(Incoming, Links)>),
    /// All of it is here.
    Arrived(Box<Arrived>),
    /// The shards run.
    Done,
}

/// A node that begins.
pub(in crate::node) struct Takeover {
    settings: TakeoverSettings,
    stage: Stage,
    arrivals: Vec<Arrival>,
    shards: usize,
    sender: UnboundedSender<Report>,
    reports: Option<UnboundedReceiver<Report>>,
    gate: Arc<Gate>,
    figures: Arc<Figures>,
    /// The takeover socket of the process before.
    listener: Option<OwnedFd>,
    /// Its listener of HTTP-01 challenges.
    challenges: Option<OwnedFd>,
    /// The zero of the shards' clock, by the machine's monotonic one.
    zero_ns: u64,
}

/// What a process that takes over from this one needs of its services.
pub(in crate::node) struct Opened {
    /// The way to the shards' descriptor tables.
    pub(in crate::node) switchboard: Arc<Switchboard>,
    /// Copies of the internal port's listeners.
    pub(in crate::node) internal: Vec<OwnedFd>,
    /// A copy of the listener of HTTP-01 challenges, if there is one.
    pub(in crate::node) challenges: Option<OwnedFd>,
}

impl Takeover {
    /// Makes what has to be there before the descriptor tables part.
    pub(in crate::node) fn begin(
        mut settings: TakeoverSettings,
        shards: usize,
    ) -> Result<Self, StartFault> {
        let (sender, reports) = unbounded_channel();
        let (stage, arrivals) = match settings.incoming.take() {
            None => (Stage::None, Vec::new()),
            Some(incoming) => {
                let links = incoming.links(shards);
                let (links, arrivals) = links.map_err(system("links to the running node"))?;
                (Stage::Prepared(Box::new((incoming, links))), arrivals)
            }
        };
        Ok(Self {
            settings,
            stage,
            arrivals,
            shards,
            sender,
            reports: Some(reports),
            gate: Arc::default(),
            figures: Arc::default(),
            listener: None,
            challenges: None,
            zero_ns: monotonic_ns(),
        })
    }

    /// The addresses of public listeners that come from another process; `None`: none come.
    pub(in crate::node) fn public(&self) -> Option<Result<Vec<Address>, StartFault>> {
        Some(self.incoming()?.addresses().map(|[public, _]| public))
    }

    /// The same of the internal port.
    pub(in crate::node) fn internal(&self) -> Option<Result<Vec<Address>, StartFault>> {
        Some(self.incoming()?.addresses().map(|[_, internal]| internal))
    }

    fn incoming(&self) -> Option<&Incoming> {
        match &self.stage {
            Stage::Prepared(prepared) => Some(&prepared.0),
            Stage::None | Stage::Arrived(_) | Stage::Done => None,
        }
    }

    /// The zero of the shards' clock: that of the process before, so that ages go on; at an ordinary start this moment.
    pub(in crate::node) fn zero(&mut self, started: Instant) -> Instant {
        let now = monotonic_ns();
        let before = self.incoming().map_or(now, |incoming| incoming.welcome().zero_ns.min(now));
        self.zero_ns = before.max(now.saturating_sub(CLOCK_NS_MAX));
        // A moment that the clock can't show is before any other one.
        started.checked_sub(Duration::from_nanos(now - self.zero_ns)).unwrap_or(started)
    }

    /// Seed of the hasher of names.
    pub(in crate::node) fn names(&self) -> u64 {
        self.settings.identity.names
    }

    /// Where shards report.
    pub(in crate::node) fn reports(&self) -> UnboundedSender<Report> {
        self.sender.clone()
    }

    /// How each shard comes by its state; none at an ordinary start.
    pub(in crate::node) fn take_arrivals(&mut self) -> Vec<Arrival> {
        std::mem::take(&mut self.arrivals)
    }

    /// The listener of HTTP-01 challenges that came from the process before.
    pub(in crate::node) fn take_challenges(&mut self) -> Option<OwnedFd> {
        self.challenges.take()
    }

    pub(in crate::node) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    pub(in crate::node) fn figures(&self) -> Arc<Figures> {
        Arc::clone(&self.figures)
    }

    /// Waits for the state of all shards, if it comes from another process, and for the listeners of the internal
    /// port, which are the node's own at an ordinary start.
    pub(in crate::node) fn receive(
        &mut self,
        own: Vec<Listener>,
        (brokers, cluster): (&Brokers, Option<&Cluster>),
    ) -> Result<Vec<Listener>, StartFault> {
        let (incoming, links) = match std::mem::replace(&mut self.stage, Stage::None) {
            Stage::Prepared(prepared) => *prepared,
            other => {
                self.stage = other;
                return Ok(own);
            }
        };
        let [_, addresses] = incoming.addresses()?;
        let Some(reports) = &mut self.reports else { return Ok(own) };
        let mut arrived = incoming.receive(links, reports, brokers)?;
        if let Some(cluster) = cluster {
            cluster.inherit(&arrived.others);
        }
        let descriptors = std::mem::take(&mut arrived.internal).into_iter();
        let listeners = descriptors.zip(&addresses).map(|(of, at)| Listener::of(of, at)).collect();
        self.listener = arrived.listener.take();
        self.challenges = arrived.challenges.take();
        self.stage = Stage::Arrived(Box::new(arrived));
        Ok(listeners)
    }

    /// The node serves from here on, in the place of another process if there was one. Listens at the takeover
    /// socket for the next one.
    pub(in crate::node) fn finish(
        &mut self,
        runtime: &Runtime,
        opened: Opened,
        addresses: [&[Address]; 2],
        files: &mut SocketFiles,
    ) -> Result<Option<Outgoing>, StartFault> {
        let mut outgoing = self.offer(runtime, opened, addresses, files)?;
        self.commit(runtime, &mut outgoing, addresses, files)?;
        Ok(outgoing)
    }

    /// Listens at the takeover socket, if there is one.
    fn offer(
        &mut self,
        runtime: &Runtime,
        opened: Opened,
        [public, internal]: [&[Address]; 2],
        files: &mut SocketFiles,
    ) -> Result<Option<Outgoing>, StartFault> {
        let Some(path) = &self.settings.path else { return Ok(None) };
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => {
                let at = [Address::Unix(UnixAddress { path: path.clone(), mode: SOCKET_MODE })];
                let (listeners, _) = listen::listen(&at)?;
                files.add(&at);
                let Some(Listener::Unix(listener)) = listeners.into_iter().next() else {
                    return Ok(None);
                };
                listener.into()
            }
        };
        let _guard = runtime.enter();
        let listener = UnixListener::from_std(listener.into()).map_err(system("roost.takeover"))?;
        let Some(reports) = self.reports.take() else { return Ok(None) };
        Ok(Some(Outgoing {
            listener,
            switchboard: opened.switchboard,
            reports: Mutex::new(reports),
            attempt: Cell::new(0),
            identity: self.settings.identity.clone(),
            zero_ns: self.zero_ns,
            options: self.settings.options.clone(),
            public: public.to_vec(),
            internal: internal.to_vec(),
            internal_listeners: opened.internal,
            gate: self.gate(),
            figures: self.figures(),
            challenges: opened.challenges,
        }))
    }

    /// Ends a takeover from another process: this one serves in its place, and has its files of sockets.
    fn commit(
        &mut self,
        runtime: &Runtime,
        outgoing: &mut Option<Outgoing>,
        addresses: [&[Address]; 2],
        files: &mut SocketFiles,
    ) -> Result<(), StartFault> {
        let Stage::Arrived(arrived) = std::mem::replace(&mut self.stage, Stage::Done) else {
            return Ok(());
        };
        let stay = arrived.listeners_stay();
        let running = arrived.commit(&self.figures)?;
        let reports = match outgoing {
            Some(outgoing) => Some(outgoing.reports.get_mut()),
            None => self.reports.as_mut(),
        };
        if let Some(reports) = reports {
            running.report(self.shards, reports, &self.figures);
        }
        if !stay {
            addresses.into_iter().for_each(|of| files.add(of));
        }
        if let Some(path) = &self.settings.path {
            files.add(&[Address::Unix(UnixAddress { path: path.clone(), mode: SOCKET_MODE })]);
        }
        if let Some((path, slot)) = self.settings.pid_file.take() {
            runtime.spawn(PidFile::write_when_free(path, slot));
        }
        Ok(())
    }
}

/// The clock of shards is not further from its zero at a start: ticks of timers are 32 bits. Older ages become
/// this one: 180 days.
const CLOCK_NS_MAX: u64 = 180 * 24 * 60 * 60 * 1_000_000_000;

/// Mode of the takeover socket's file: who connects gets all secrets of the node.
const SOCKET_MODE: u32 = 0o600;
