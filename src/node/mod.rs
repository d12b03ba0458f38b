//! A running node: threads, wiring, signals, draining.
//!
//! ```text
//!  main thread: raise limits -> runtime, signals, wakers, socketpairs -> spawn shards -> control
//!  shard i:     own descriptor table -> CPU, if pinned -> listeners -> driver -> loop
//!  crypto i:    the process's table; RSA and EC signatures for the shards
//! ```
//! The order matters. What more than one thread uses is made before the first descriptor table
//! parts from the process's; what is made later belongs to one table alone, and its number means
//! another file, or none, in every other one.

mod address;
mod admin;
mod api;
mod control;
mod control_mail;
mod crypto_pool;
mod demo;
#[cfg(test)]
mod documents;
mod fetch;
mod health;
mod json;
mod jwks;
mod listen;
mod log;
mod memory;
mod metrics;
mod pages;
mod pid_file;
mod proxies;
pub mod redis;
mod sender;
mod serve;
mod slices;
#[cfg(test)]
mod testing;
mod tls;
mod users;
mod web;

pub use self::serve::serve;

use arc_swap::ArcSwap;
use std::cell::RefCell;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::admin::{Access, AdminRefusals, Figures};
use self::api::Api;
use self::control_mail::{Bell, ControlMail};
use self::demo::Snippets;
use self::health::Health;
pub use self::health::Thresholds;
use self::listen::SocketFiles;
use self::metrics::Metrics;
use self::proxies::Proxies;
use self::web::{Pages, Routers};
use crate::base::id::ShardId;
use crate::base::limits::MAILBOX_BATCHES;
use crate::base::rng::Rng;
use crate::base::times::{Counts, Times};
use crate::config::{self, Tokens, Web};
use crate::edge::address_limits::{AddressLimits, AddressOptions};
use crate::edge::channels::ChannelRules;
use crate::edge::origin::OriginRules;
use crate::edge::proxy::RpcRules;
use crate::hub::names::NameHasher;
use crate::io::epoll::Epoll;
use crate::io::sockets::{self, Address, ListenOptions, Switchboard};
use crate::io::uring::Uring;
use crate::io::{Alarm, Driver};
use crate::session::{ClientOptions, Rules};
use crate::shard::crypto::Crypto;
use crate::shard::mail::{Letterbox, Mailbox};
use crate::shard::{Memory, NodeState, Notices, Options, Seat, Shard, ShardCounters, SlowCounters};
use crate::sys;

/// All that a node is started with.
pub struct Settings {
    /// Shard threads.
    pub shards: usize,
    /// Each shard has a descriptor table of its own; false where `unshare(2)` is forbidden: all share the
    /// process's.
    pub tables_apart: bool,
    /// The CPU of each shard; empty leaves them where the scheduler puts them.
    pub cpus: Vec<usize>,
    /// The driver of the shards.
    pub io: Io,
    /// Where to listen; port 0 takes a free one.
    pub listen: ListenOptions,
    /// The rules of sessions.
    pub rules: Rules,
    /// Options of each shard.
    pub options: Options,
    /// The limits of an address.
    pub address_limits: AddressOptions,
    /// Threads for slow cryptography, such as RSA and EC signatures; at least one.
    pub crypto_threads: usize,
    /// Connections closed in a second when the node drains.
    pub drain_rate: u32,
    /// Draining takes no longer than this.
    pub shutdown_timeout: Duration,
    /// Bytes of memory, kernel's included, beyond which new connections are refused.
    pub memory_limit_bytes: u64,
    /// The endpoints of the control thread.
    pub web: Web,
    /// Where it listens by itself; empty: all is on the public port.
    pub internal: Vec<Address>,
    /// Beyond what the node is not healthy.
    pub thresholds: Thresholds,
    /// Name of the node; empty: host name and port.
    pub name: String,
    /// How it runs and what limits it, lines for people.
    pub plan: Vec<String>,
    /// The snippets of the demo page.
    snippets: Snippets,
    /// The text to print once the node listens.
    pub greeting: Greeting,
    /// The running log.
    log: log::Log,
    /// Reads the options again, for what may change while a node runs.
    pub reload: Reload,
}

/// Which driver runs the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// [`crate::io::epoll`].
    Epoll,
    /// [`crate::io::uring`].
    Uring,
}

/// Says that the node listens, at its public addresses and the internal ones.
pub type Greeting = Box<dyn FnOnce(&[Address], &[Address])>;

/// Reads the options again, and sets the log's level. What is wrong is the error, a line each.
pub type Reload = Box<dyn Fn() -> Result<Reloaded, String>>;

/// Options that may change while a node runs.
pub struct Reloaded {
    /// Namespaces and names of channels.
    pub channels: ChannelRules,
    /// The keys and claims that tokens are checked against.
    pub tokens: Tokens,
    /// Options of clients: their limits, delays and proxies may change.
    pub client: ClientOptions,
    /// The answering side of RPC calls.
    pub rpc: RpcRules,
    /// Which web pages may connect.
    pub origins: OriginRules,
    /// The server API: its key may change, and the form of its errors.
    pub api: Option<config::Api>,
    /// The changed options since the last time.
    pub changed: Vec<&'static str>,
    /// Sections that have changed and need a new start.
    pub needs_start: Vec<&'static str>,
    /// The warnings for their owner, a line each.
    pub warnings: Vec<String>,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFault {
    /// The address can't be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which one.
        address: Address,
        /// The error of the kernel.
        source: std::io::Error,
    },
    /// The requested driver can't run here.
    #[error("cannot start: roost.io = \"uring\": {why}; \"auto\" takes epoll then")]
    Driver {
        /// The missing feature.
        why: String,
    },
    /// Something else that the kernel refused.
    #[error("cannot start: {what}: {source}")]
    System {
        /// The attempted step.
        what: &'static str,
        /// The error of the kernel.
        source: std::io::Error,
    },
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All connections were closed in order.
    Drained,
    /// `shutdown_timeout` was over while some were open.
    TimedOut,
    /// A second signal came while some were open.
    Cut,
}

/// Runs a node until a signal ends it. Call it in the main thread.
///
/// # Errors
/// When it can't begin to listen.
pub fn run(settings: Settings) -> Result<Ended, StartFault> {
    let system = |what| move |source: std::io::Error| StartFault::System { what, source };
    sys::memory::disable_huge_pages();
    let addresses = listen::probe(&settings.listen.addresses)?;
    // Removed whatever comes of it.
    let mut files = SocketFiles::default();
    let listen = ListenOptions { addresses: addresses.clone(), ..settings.listen };

    // Before the tables part: the runtime, signal pipes, wakers, socketpairs.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("the control runtime"))?;
    let signals = {
        let _guard = runtime.enter();
        control::Signals::new().map_err(system("signal handlers"))?
    };
    let output = log::Lines::to_stdout().map_err(system("standard output"))?;
    let switchboard = Switchboard::new(settings.shards).map_err(system("wakers"))?;

    #[expect(clippy::disallowed_methods, reason = "the process's zero of time")]
    let started = Instant::now();
    let seed = random_u64().map_err(system("random numbers"))?;
    let mut seeds = Rng::new(seed);
    let ids: Vec<ShardId> = (0..settings.shards).map(|at| ShardId(at as u8)).collect();
    let (letterboxes, mailboxes): (Vec<Letterbox>, Vec<Mailbox>) = ids
        .iter()
        .map(|id| Mailbox::new(MAILBOX_BATCHES, Alarm::new(switchboard.waker(*id))))
        .unzip();
    let bell = Arc::new(Bell::default());
    let (control, control_mailbox) = Mailbox::new(MAILBOX_BATCHES, Alarm::new(bell.clone()));
    let (queues, inlets) = crypto_pool::queues();
    let namespaces = settings.rules.channels.load().namespaces().len();
    let slow = |_: &ShardId| (0..=namespaces).map(|_| SlowCounters::default()).collect();
    let connections_max = settings.shards as u64 * u64::from(settings.options.conns_max);
    let address_limits =
        AddressLimits::new(settings.address_limits, seeds.next_u64(), connections_max);
    let node = Arc::new(NodeState {
        rules: settings.rules,
        options: settings.options,
        names: NameHasher::new(seeds.next_u64(), settings.shards),
        counters: ids.iter().map(|_| ShardCounters::default()).collect(),
        slow: ids.iter().map(slow).collect(),
        loop_lag: ids.iter().map(|_| Times::default()).collect(),
        fan_out: ids.iter().map(|_| Times::default()).collect(),
        fan_out_size: ids.iter().map(|_| Times::default()).collect(),
        commands: ids.iter().map(|_| Default::default()).collect(),
        open: ids.iter().map(|_| AtomicU32::new(0)).collect(),
        clients: AtomicU64::new(0),
        admins: AtomicU32::new(0),
        users: AtomicU64::new(0),
        client_rate: Default::default(),
        addresses: address_limits,
        memory: Memory::new(settings.memory_limit_bytes, sys::memory::allocated_bytes),
        draining: AtomicBool::new(false),
        drained: AtomicU32::new(0),
        notices: Notices::new(started),
        crypto: Crypto::Pool(queues.jobs),
    });
    let client = jwks::client(&node.rules)
        .map_err(system("the certificates that key servers are checked with"))?;

    let (ready, begun) = mpsc::channel();
    let mut threads = Vec::new();
    for (id, mailbox) in ids.iter().copied().zip(mailboxes) {
        let (letterboxes, control) = (letterboxes.clone(), control.clone());
        let seat = Seat { shard: id, mailbox, letterboxes, control, seed: seeds.next_u64() };
        let beginning = Beginning {
            node: Arc::clone(&node),
            switchboard: Arc::clone(&switchboard),
            io: settings.io,
            tables_apart: settings.tables_apart,
            listen: listen.clone(),
            cpu: settings.cpus.get(id.index() % settings.cpus.len().max(1)).copied(),
            started,
        };
        threads.push(spawn_shard(seat, beginning, ready.clone()).map_err(system("a thread"))?);
    }
    let workers = settings.crypto_threads.max(1);
    let control_mail = Arc::new(ControlMail::new(&letterboxes));
    crypto_pool::spawn(workers, &node, &inlets, &control_mail).map_err(system("a thread"))?;
    drop(ready);
    for result in begun {
        // The others end with the process.
        result?;
    }
    // Only held, and closed before the shards close theirs: a copy would keep the kernel from moving what
    // waits there to others.
    let shown = switchboard.shown();
    // In the process's own table, and in no other.
    files.add(&addresses);
    let (listeners, internal) = listen::listen(&settings.internal)?;
    files.add(&internal);
    let name = match settings.name.as_str() {
        "" => host_and_port(&addresses),
        name => name.to_owned(),
    };
    let proxies = Proxies::new(Arc::clone(&control_mail), Arc::clone(&node));
    let proxies = proxies.map_err(std::io::Error::other).map_err(system("proxies"))?;
    let proxies = Arc::new(proxies);
    let health = Arc::new(Health::new(Arc::clone(&node), settings.thresholds));
    let uid = node.rules.node_id.clone();
    let api = Api::new(Arc::clone(&node), Arc::clone(&control_mail), name.clone(), uid, started);
    let admin_refusals = Arc::new(AdminRefusals::default());
    let metrics = Metrics {
        node: Arc::clone(&node),
        control_mail: Arc::clone(&control_mail),
        health: Arc::clone(&health),
        proxies: Arc::clone(&proxies),
        admin_refusals: Arc::clone(&admin_refusals),
        lines_dropped: [settings.log.dropped_counter(), output.dropped_counter()],
        started,
    };
    let figures = Figures::new(metrics.clone(), name, settings.plan);
    let has_internal = !internal.is_empty();
    let admin = settings.web.admin.as_ref();
    let pages = Pages {
        access: admin.map(|admin| Arc::new(Access::new(Arc::clone(&node), admin, admin_refusals))),
        figures: figures.feed(),
        snippets: settings.snippets,
    };
    let calls = settings.web.api.clone().map(|api| Arc::new(ArcSwap::from_pointee(api)));
    let Routers { direct, public: router, internal: own } = web::routers(
        &settings.web,
        has_internal,
        Arc::new(api),
        Arc::clone(&health),
        metrics,
        calls.clone(),
        pages,
    );
    let public = web::Public { direct, router, control_mail: Arc::clone(&control_mail) };
    runtime.spawn(web::serve_public(
        public,
        control_mailbox,
        bell,
        Arc::clone(&node),
        Arc::clone(&proxies),
    ));
    if !listeners.is_empty() {
        let _guard = runtime.enter();
        let listeners = listeners.into_iter().map(web::Listener::new);
        let listeners = listeners.collect::<Result<_, _>>().map_err(system("the internal port"))?;
        runtime.spawn(web::listen(listeners, own));
    }
    (settings.greeting)(&addresses, &internal);
    let fetcher =
        jwks::Fetcher::new(Arc::clone(&node), client, queues.asks, queues.again, jwks::Pace::NODE);
    runtime.spawn(fetcher.run());
    runtime.spawn(users::keep_counting(Arc::clone(&node), Arc::clone(&control_mail)));
    let control = control::Control {
        node,
        control_mail,
        started,
        drain_rate: settings.drain_rate,
        shutdown_timeout: settings.shutdown_timeout,
        watch: RefCell::new(memory::Watch::default()),
        reload: settings.reload,
        lag_told: RefCell::new(Counts::default()),
        health,
        calls: calls.clone(),
        log: settings.log,
        output,
        shown: RefCell::new(shown),
        proxies,
        figures,
    };
    let ended = runtime.block_on(control.run(signals));
    if ended == Ended::Drained {
        for thread in threads {
            // A shard that panicked has aborted the process.
            let _ = thread.join();
        }
    }
    Ok(ended)
}

/// How a node is called that has no name: by its host and port.
fn host_and_port(addresses: &[Address]) -> String {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().into_owned();
    match port_of(addresses) {
        0 => format!("{host}_unix"),
        port => format!("{host}_{port}"),
    }
}

/// The port of clients; 0 for none.
fn port_of(addresses: &[Address]) -> u16 {
    addresses.iter().find_map(Address::ip).map_or(0, |address| address.port())
}

/// The parts that a shard's thread begins with.
struct Beginning {
    node: Arc<NodeState>,
    switchboard: Arc<Switchboard>,
    io: Io,
    tables_apart: bool,
    listen: ListenOptions,
    cpu: Option<usize>,
    started: Instant,
}

#[expect(clippy::disallowed_methods, reason = "the one place where shard threads are made")]
fn spawn_shard(
    seat: Seat,
    beginning: Beginning,
    ready: mpsc::Sender<Result<(), StartFault>>,
) -> std::io::Result<JoinHandle<()>> {
    let name = format!("shard-{}", seat.shard.0);
    std::thread::Builder::new().name(name).stack_size(SHARD_STACK_BYTES).spawn(move || {
        match beginning.io {
            Io::Epoll => run_shard(begin_shard(seat, beginning, "epoll", Epoll::new), ready),
            Io::Uring => run_shard(begin_shard(seat, beginning, "io_uring", Uring::new), ready),
        }
    })
}

fn run_shard<D: Driver>(
    begun: Result<Shard<D>, StartFault>,
    ready: mpsc::Sender<Result<(), StartFault>>,
) {
    match begun {
        Ok(shard) => {
            let _ = ready.send(Ok(()));
            drop(ready);
            shard.run();
        }
        Err(fault) => {
            let _ = ready.send(Err(fault));
        }
    }
}

/// Makes a driver, from the shard, what connects it to others, its listeners and the process's zero
/// of time.
type MakeDriver<D> = fn(ShardId, Arc<Switchboard>, Vec<OwnedFd>, Instant) -> std::io::Result<D>;

fn begin_shard<D: Driver>(
    seat: Seat,
    beginning: Beginning,
    name: &'static str,
    driver: MakeDriver<D>,
) -> Result<Shard<D>, StartFault> {
    let system = |what| move |source: std::io::Error| StartFault::System { what, source };
    sys::tables::block_signals().map_err(system("blocking signals in a shard"))?;
    if beginning.tables_apart {
        sys::tables::unshare_files().map_err(system("a descriptor table for a shard"))?;
        let unneeded: Vec<_> = sockets::unneeded(&beginning.switchboard, seat.shard)
            .map(|fd: BorrowedFd<'_>| fd.as_raw_fd())
            .collect();
        // Copies of this table's own. In a shared one they would be the others'.
        sys::tables::close_copies(&unneeded);
    }
    if let Some(cpu) = beginning.cpu {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        // A container may forbid it; the shard runs all the same.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
    let mut listen = beginning.listen;
    if seat.shard.index() > 0 {
        // One shard accepts for all from a Unix socket.
        listen.addresses.retain(|address| address.ip().is_some());
    }
    let listeners = sockets::listen(&listen).map_err(|source| {
        // All were had before.
        let address = listen.addresses.swap_remove(0);
        StartFault::Listen { address, source }
    })?;
    if beginning.tables_apart && seat.shard == ShardId(0) {
        // Tools such as ss, lsof and fuser look into the main thread's table alone.
        let shown = beginning.switchboard.show(&listeners);
        shown.map_err(system("a copy of a listener for the main thread"))?;
    }
    let driver = driver(seat.shard, beginning.switchboard, listeners, beginning.started)
        .map_err(system(name))?;
    Ok(Shard::new(beginning.node, seat, driver, sys::memory::collect))
}

/// Stack of a shard's thread, bytes: what is touched of it counts, not what is reserved.
const SHARD_STACK_BYTES: usize = 1 << 20;

fn random_u64() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| std::io::Error::other("no entropy"))?;
    Ok(u64::from_ne_bytes(bytes))
}
