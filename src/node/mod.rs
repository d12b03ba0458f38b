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

mod acme;
mod activation;
mod address;
mod admin;
mod admin_refusals;
mod api;
mod broker;
mod broker_mail;
pub mod broker_threads;
mod certificates;
mod cluster;
mod control;
mod control_mail;
mod crypto_pool;
mod demo;
#[cfg(test)]
mod documents;
mod fetch;
mod greeting;
mod health;
mod hooks;
mod info;
mod inspecting;
mod json;
mod jwks;
mod listen;
mod listing;
mod log;
mod log_limit;
mod memory;
mod metrics;
pub mod nats;
mod orders;
mod pages;
mod pid_file;
pub mod presence_nodes;
mod proxies;
pub mod redis;
mod reload_requests;
mod responses;
mod sender;
mod serve;
mod service_manager;
mod slices;
mod takeover;
#[cfg(test)]
mod testing;
pub mod tls;
mod users;
mod web;

pub use self::certificates::check as check_certificates;
pub use self::serve::serve;
pub use self::takeover::status as takeover_status;

use arc_swap::ArcSwap;
use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedSender;

use self::activation::{Activated, PassedListeners};
use self::admin::{Access, Figures};
use self::admin_refusals::AdminRefusals;
use self::api::Api;
pub use self::broker::BrokerSettings;
use self::broker::{Brokers, PreparedBrokers};
use self::broker_threads::ControlEvent;
use self::certificates::Certificates;
use self::cluster::Cluster;
use self::control_mail::{Bell, ControlMail};
use self::demo::Snippets;
use self::health::Health;
pub use self::health::Thresholds;
use self::hooks::Hooks;
use self::listen::SocketFiles;
use self::metrics::Metrics;
use self::proxies::Proxies;
use self::reload_requests::ReloadRequests;
use self::responses::Responses;
use self::service_manager::ServiceManager;
use self::takeover::{
    Arrival, Gate, Opened, Outgoing, Report, Takeover, TakeoverFigures, TakeoverSettings,
};
use self::web::{Pages, Routers};
use crate::base::id::ShardId;
use crate::base::limits::MAILBOX_BATCHES;
use crate::base::rng::Rng;
use crate::base::times::Counts;
use crate::cluster::servers::Server;
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
use crate::proto::tls::handshake::ServerSettings;
use crate::session::{ClientOptions, Rules};
use crate::shard::crypto::Crypto;
use crate::shard::mail::{Letterbox, Mailbox};
use crate::shard::{Memory, NodeParts, NodeState, Notices, Options, Seat, Secured, Shard};
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
    /// Listeners of a service manager, in place of the addresses.
    activated: Activated,
    /// From which process it takes over, and how another one may.
    takeover: TakeoverSettings,
    /// The rules of sessions.
    pub rules: Rules,
    /// Options of each shard.
    pub options: Options,
    /// The brokers that keep channels and presence for several nodes.
    pub brokers: BrokerSettings,
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
    /// The services of the control thread.
    front: FrontSettings,
    /// Where it listens by itself; empty: all is on the public port.
    pub internal: Vec<Address>,
    /// Name of the node; empty: host name and port.
    pub name: String,
    /// How often other nodes get the metrics.
    pub metrics_interval: Duration,
    /// The text to print once the node listens.
    pub greeting: Greeting,
    /// The running log.
    log: log::Log,
    /// Reads the options again, for what may change while a node runs.
    pub reload: Reload,
}

/// Options of the services of the control thread.
struct FrontSettings {
    /// Its endpoints.
    web: Web,
    /// Where events for the application go, if they do.
    hooks: Option<config::Hooks>,
    /// Beyond what the node is not healthy.
    thresholds: Thresholds,
    /// How it runs and what limits it, lines for people.
    plan: Vec<String>,
    /// Certificates of all listeners.
    certificates: Arc<Certificates>,
    /// The snippets of the demo page.
    snippets: Snippets,
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
    /// Certificates of listeners.
    pub tls: config::Tls,
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
    /// The broker can't be reached.
    #[error(
        "cannot start: the broker is unreachable: {why}; roost.start_without_broker starts anyway"
    )]
    Broker {
        /// Which server, and why not.
        why: String,
    },
    /// No process hands over to this one.
    #[error("cannot take over: {why}")]
    Takeover {
        /// The reason, or that of the other process.
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
    /// Another process has taken all connections over.
    HandedOver,
}

/// Runs a node until a signal ends it. Call it in the main thread.
///
/// # Errors
/// When it can't begin to listen, or another process doesn't hand over to it.
pub fn run(settings: Settings) -> Result<Ended, StartFault> {
    sys::memory::disable_huge_pages();
    let Activated { public: passed, internal: passed_internal } = settings.activated;
    let mut takeover = Takeover::begin(settings.takeover, settings.shards)?;
    let listen = public_listeners(&takeover, settings.listen, &passed)?;
    let addresses = listen.addresses.clone();
    let Ground { runtime, signals, output, switchboard, started, mut seeds } =
        Ground::new(settings.shards)?;
    let (letterboxes, mailboxes) = mailboxes(&switchboard, settings.shards);
    let bell = Arc::new(Bell::default());
    let (control, control_mailbox) = Mailbox::new(MAILBOX_BATCHES, Alarm::new(bell.clone()));
    let servers = settings.brokers.servers_of_nodes();
    let brokers = PreparedBrokers::new(settings.brokers)?;
    let (queues, inlets) = crypto_pool::queues();
    let node = Arc::new(node_state(
        settings.rules,
        settings.options,
        (NameHasher::new(takeover.names(), settings.shards), settings.memory_limit_bytes),
        settings.address_limits,
        (&mut seeds, started),
        (Crypto::Pool(queues.jobs.clone()), settings.front.certificates.public()),
    ));
    let client = jwks::client(&node.rules)
        .map_err(system("the certificates that key servers are checked with"))?;
    let with = (switchboard, settings.io, settings.tables_apart);
    let at = (listen, Arc::new(passed), takeover.zero(started));
    let beginning = Beginning::new((node.clone(), takeover.reports()), with, at);
    let seats = (0..).map(ShardId).zip(mailboxes).map(|(shard, mailbox)| {
        let (letterboxes, outside) = (letterboxes.clone(), brokers.outside(shard, control.clone()));
        Seat { shard, mailbox, letterboxes, outside, seed: seeds.next_u64() }
    });
    let (threads, begun) = begin_shards(seats, &mut takeover, &beginning, &settings.cpus)?;
    let control_mail = begin_crypto(settings.crypto_threads, &node, &inlets, &letterboxes)?;
    // The others end with the process.
    begun.into_iter().collect::<Result<(), _>>()?;
    // Behind the shards: their tables would hold copies of its sockets.
    let (brokers, control_events) = brokers.start(&letterboxes, takeover.public().is_some())?;
    // In the process's own table, and in no other.
    let mut files = beginning.socket_files(&takeover);
    let internal = (passed_internal, &settings.internal[..]);
    let (listeners, internal) =
        internal_listeners(&takeover, internal, &beginning.listen, &mut files)?;
    let name = name_of(settings.name, &addresses);
    let way = (servers, settings.metrics_interval, control_events);
    let cluster = begin_cluster(&runtime, (&node, &control_mail, &brokers), &name, started, way);
    let front = Front {
        settings: settings.front,
        name,
        lines_dropped: [settings.log.dropped_counter(), output.dropped_counter()],
        started,
        cluster,
        tables_apart: settings.tables_apart,
        reload: signals.reload_requests(),
        takeover: takeover.figures(),
    };
    let services = front.open(&node, &control_mail, brokers, !internal.is_empty())?;
    let mail = (control_mailbox, bell);
    let begin = (&runtime, &beginning, seeds.next_u64());
    let opened = services.open(begin, mail, listeners, &mut takeover)?;
    let outgoing = takeover.finish(&runtime, opened, [&addresses, &internal], &mut files)?;
    // From here on nothing may fail: another process has perhaps ended for this one. Held, and closed before those of the shards: a copy keeps what waits there from moving to others.
    let shown = beginning.switchboard.shown();
    (settings.greeting)(&addresses, &internal);
    services.keep(&runtime, client, queues);
    let manager = services.report(&runtime, &status(&addresses, settings.shards));
    let pace = (settings.drain_rate, settings.shutdown_timeout, settings.reload);
    let kept = (shown, manager, outgoing);
    let control = services.control(started, pace, (settings.log, output), kept);
    Ok(ended(runtime.block_on(control.run(signals)), threads, files))
}

/// Begins the threads of the crypto pool; they answer by the control thread's mail.
fn begin_crypto(
    threads: usize,
    node: &Arc<NodeState>,
    inlets: &crypto_pool::Inlets,
    letterboxes: &[Letterbox],
) -> Result<Arc<ControlMail>, StartFault> {
    let control_mail = Arc::new(ControlMail::new(letterboxes));
    crypto_pool::spawn(threads.max(1), node, inlets, &control_mail).map_err(system("a thread"))?;
    Ok(control_mail)
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> StartFault {
    move |source| StartFault::System { what, source }
}

/// Waits for the shards where all connections were closed in order. The files of sockets that another process has
/// by now stay.
fn ended(ended: Ended, threads: Vec<JoinHandle<()>>, mut files: SocketFiles) -> Ended {
    if ended == Ended::HandedOver {
        files.release();
    }
    if ended == Ended::Drained {
        for thread in threads {
            // A shard that panicked has aborted the process.
            let _ = thread.join();
        }
    }
    ended
}

/// What has to be there before the descriptor tables part: the runtime, signal pipes, wakers, socketpairs.
struct Ground {
    runtime: Runtime,
    signals: control::Signals,
    output: log::Lines,
    switchboard: Arc<Switchboard>,
    started: Instant,
    seeds: Rng,
}

impl Ground {
    fn new(shards: usize) -> Result<Self, StartFault> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("the control runtime"))?;
        let signals = {
            let _guard = runtime.enter();
            control::Signals::new().map_err(system("signal handlers"))?
        };
        let output = log::Lines::to_stdout().map_err(system("standard output"))?;
        let switchboard = Switchboard::new(shards).map_err(system("wakers"))?;
        #[expect(clippy::disallowed_methods, reason = "the process's zero of time")]
        let started = Instant::now();
        let seeds = Rng::new(random_u64().map_err(system("random numbers"))?);
        Ok(Self { runtime, signals, output, switchboard, started, seeds })
    }
}

fn mailboxes(switchboard: &Arc<Switchboard>, shards: usize) -> (Vec<Letterbox>, Vec<Mailbox>) {
    (0..shards)
        .map(|at| {
            let waker = switchboard.waker(ShardId(at as u8));
            Mailbox::new(MAILBOX_BATCHES, Alarm::new(waker))
        })
        .unzip()
}

/// Threads of shards, and the reports of each whether it could begin.
type BegunShards = (Vec<JoinHandle<()>>, mpsc::Receiver<Result<(), StartFault>>);

/// Begins the threads of the shards. Each says whether it could.
fn begin_shards(
    seats: impl Iterator<Item = Seat>,
    takeover: &mut Takeover,
    beginning: &Beginning,
    cpus: &[usize],
) -> Result<BegunShards, StartFault> {
    let (ready, begun) = mpsc::channel();
    let mut threads = Vec::new();
    let mut arrivals = takeover.take_arrivals().into_iter();
    for seat in seats {
        let cpu = cpus.get(seat.shard.index() % cpus.len().max(1)).copied();
        let beginning = Beginning { cpu, ..beginning.clone() };
        let spawned = spawn_shard(seat, beginning, arrivals.next(), ready.clone());
        threads.push(spawned.map_err(system("a thread"))?);
    }
    Ok((threads, begun))
}

/// The servers by which nodes reach each other, if they do; how often others get the metrics; what comes by the
/// control channel.
type WayToNodes =
    (Option<(Vec<Server>, String)>, Duration, tokio::sync::mpsc::Receiver<ControlEvent>);

/// Begins to take part among other nodes, where a broker connects them.
fn begin_cluster(
    runtime: &Runtime,
    (node, control_mail, brokers): (&Arc<NodeState>, &Arc<ControlMail>, &Arc<Brokers>),
    name: &str,
    started: Instant,
    (servers, metrics_interval, control_events): WayToNodes,
) -> Option<Arc<Cluster>> {
    let cluster = Cluster::new(cluster::Parts {
        node: Arc::clone(node),
        control_mail: Arc::clone(control_mail),
        transmit: brokers.clone(),
        name: name.to_owned(),
        started,
        metrics_interval,
        servers: servers?,
    });
    runtime.spawn(Arc::clone(&cluster).run(control_events));
    Some(cluster)
}

/// What the control thread's endpoints are made of.
struct Front {
    settings: FrontSettings,
    name: String,
    lines_dropped: [Arc<AtomicU64>; 2],
    started: Instant,
    cluster: Option<Arc<Cluster>>,
    tables_apart: bool,
    reload: ReloadRequests,
    takeover: Arc<TakeoverFigures>,
}

/// The services of the control thread, and their endpoints.
struct Services {
    node: Arc<NodeState>,
    control_mail: Arc<ControlMail>,
    brokers: Arc<Brokers>,
    cluster: Option<Arc<Cluster>>,
    health: Arc<Health>,
    proxies: Arc<Proxies>,
    hooks: Option<Arc<Hooks>>,
    figures: Figures,
    calls: Option<Arc<ArcSwap<config::Api>>>,
    routers: Routers,
    certificates: Arc<Certificates>,
    responses: Arc<Responses>,
}

impl Front {
    fn open(
        self,
        node: &Arc<NodeState>,
        control_mail: &Arc<ControlMail>,
        brokers: Arc<Brokers>,
        has_internal: bool,
    ) -> Result<Services, StartFault> {
        let FrontSettings { web, hooks, thresholds, plan, certificates, snippets } = self.settings;
        let (node, control_mail) = (Arc::clone(node), Arc::clone(control_mail));
        let proxies = open_proxies(&control_mail, &node)?;
        let (of, read, ways) = (Arc::clone(&node), Arc::clone(&certificates), Arc::clone(&brokers));
        let health = Arc::new(Health::new(of, thresholds, read, ways));
        let name = self.name;
        let hooks = open_hooks(hooks, &name, &node)?;
        let mail = Arc::clone(&control_mail);
        let api =
            Api::new(Arc::clone(&node), mail, name.clone(), self.started, self.cluster.clone());
        let admin_refusals = Arc::new(AdminRefusals::default());
        let responses = Arc::new(Responses::default());
        let metrics = Metrics {
            node: Arc::clone(&node),
            control_mail: Arc::clone(&control_mail),
            health: Arc::clone(&health),
            proxies: Arc::clone(&proxies),
            hooks: hooks.clone(),
            admin_refusals: Arc::clone(&admin_refusals),
            certificates: Arc::clone(&certificates),
            cluster: self.cluster.clone(),
            brokers: Arc::clone(&brokers),
            lines_dropped: self.lines_dropped,
            started: self.started,
            started_unix: certificates::unix_now() - self.started.elapsed().as_secs() as i64,
            api: api.figures(),
            takeover: self.takeover,
            responses: Arc::clone(&responses),
            tables_apart: self.tables_apart,
            centrifugo_names: web.centrifugo_names,
        };
        let admin = web.admin.as_ref();
        let reload = self.reload;
        let figures = Figures::new(metrics.clone(), name, plan, admin.is_some());
        let access =
            |admin| Arc::new(Access::new(Arc::clone(&node), admin, admin_refusals, reload));
        let pages = Pages {
            access: admin.map(access),
            figures: figures.feed(),
            series: figures.series(),
            snippets,
        };
        let calls = web.api.clone().map(|api| Arc::new(ArcSwap::from_pointee(api)));
        let (api, shared) = (Arc::new(api), calls.clone());
        let routers =
            web::routers(&web, has_internal, api, Arc::clone(&health), metrics, shared, pages);
        Ok(Services {
            node,
            control_mail,
            brokers,
            cluster: self.cluster,
            health,
            proxies,
            hooks,
            figures,
            calls,
            routers,
            certificates,
            responses,
        })
    }
}

/// The endpoints of the application.
fn open_proxies(
    control_mail: &Arc<ControlMail>,
    node: &Arc<NodeState>,
) -> Result<Arc<Proxies>, StartFault> {
    let proxies = Proxies::new(Arc::clone(control_mail), Arc::clone(node));
    let proxies = proxies.map_err(std::io::Error::other).map_err(system("proxies"))?;
    Ok(Arc::new(proxies))
}

/// The way of events to the application, where there is an endpoint.
fn open_hooks(
    options: Option<config::Hooks>,
    name: &str,
    node: &NodeState,
) -> Result<Option<Arc<Hooks>>, StartFault> {
    let of = |options| Hooks::new(options, name.to_owned(), node.rules.node_id.clone());
    let hooks = options.map(of).transpose();
    Ok(hooks.map_err(std::io::Error::other).map_err(system("hooks"))?.map(Arc::new))
}

impl Services {
    /// Gets the listeners of the internal port that come from another process, or takes these, and serves them.
    fn open(
        &self,
        (runtime, beginning, seed): (&Runtime, &Beginning, u64),
        (mailbox, bell): (Mailbox, Arc<Bell>),
        listeners: Vec<listen::Listener>,
        takeover: &mut Takeover,
    ) -> Result<Opened, StartFault> {
        let others = (&*self.brokers, self.cluster.as_deref());
        let listeners = takeover.receive(listeners, others)?;
        let serving = (mailbox, bell, takeover.gate());
        let challenges = takeover.take_challenges();
        Ok(Opened {
            switchboard: Arc::clone(&beginning.switchboard),
            internal: self.serve(runtime, listeners, serving)?,
            challenges: self.obtain_certificates(runtime, seed, challenges)?,
        })
    }

    /// Serves the public port and the listeners of the internal one, until the process ends.
    fn serve(
        &self,
        runtime: &Runtime,
        listeners: Vec<listen::Listener>,
        (mailbox, bell, gate): (Mailbox, Arc<Bell>, Arc<Gate>),
    ) -> Result<Vec<OwnedFd>, StartFault> {
        let Routers { direct, public, internal } = &self.routers;
        let public = web::Public {
            direct: direct.clone(),
            router: public.clone(),
            control_mail: Arc::clone(&self.control_mail),
            cluster: self.cluster.clone(),
            responses: Arc::clone(&self.responses),
        };
        let (node, proxies) = (Arc::clone(&self.node), Arc::clone(&self.proxies));
        let called = (proxies, self.hooks.clone());
        runtime.spawn(web::serve_public(public, mailbox, bell, node, called));
        if let Some(hooks) = &self.hooks {
            let seed = random_u64().map_err(system("random numbers"))?;
            runtime.spawn(Arc::clone(hooks).run(seed));
        }
        let copies = listeners.iter().map(|listener| listener.as_fd().try_clone_to_owned());
        let copies: Vec<OwnedFd> =
            copies.collect::<Result<_, _>>().map_err(system("copies of the internal port"))?;
        if !listeners.is_empty() {
            let _guard = runtime.enter();
            let listeners = listeners.into_iter().map(web::Listener::new);
            let listeners =
                listeners.collect::<Result<_, _>>().map_err(system("the internal port"))?;
            let tls = self.certificates.internal();
            runtime.spawn(web::listen(listeners, internal.clone(), tls, gate));
        }
        Ok(copies)
    }

    /// Begins to obtain certificates, if they are obtained. A copy of the listener of HTTP-01 challenges, which is that
    /// of the process before if there was one.
    fn obtain_certificates(
        &self,
        runtime: &Runtime,
        seed: u64,
        before: Option<OwnedFd>,
    ) -> Result<Option<OwnedFd>, StartFault> {
        let certificates = Arc::clone(&self.certificates);
        let opened = acme::Keeper::open(certificates, seed, before);
        let opened = opened.map_err(system("http_server.tls_autocert"))?;
        let Some((keeper, listener, answers)) = opened else { return Ok(None) };
        let mut copy = None;
        if let Some(listener) = listener {
            let copied = listener.as_fd().try_clone_to_owned();
            copy = Some(copied.map_err(system("a copy of the listener of challenges"))?);
            let _guard = runtime.enter();
            let listener = web::Listener::new(listen::Listener::Tcp(listener));
            let listener = listener.map_err(system("http_server.tls_autocert.http_addr"))?;
            let gate = Arc::default();
            runtime.spawn(web::listen(vec![listener], acme::router(answers), None, gate));
        }
        runtime.spawn(keeper.run());
        Ok(copy)
    }

    /// Begins to keep key sets and the number of users up to date.
    fn keep(&self, runtime: &Runtime, client: fetch::Client, queues: crypto_pool::Queues) {
        let (node, control_mail) = (Arc::clone(&self.node), Arc::clone(&self.control_mail));
        let crypto_pool::Queues { again, asks, .. } = queues;
        let fetcher = jwks::Fetcher::new(Arc::clone(&node), client, asks, again, jwks::Pace::NODE);
        runtime.spawn(fetcher.run());
        runtime.spawn(users::keep_counting(node, control_mail));
    }

    /// Reports to the service manager that the node listens, and begins to ping its watchdog.
    fn report(&self, runtime: &Runtime, status: &str) -> Arc<ServiceManager> {
        let manager = Arc::new(ServiceManager::connect());
        let (node, control_mail) = (Arc::clone(&self.node), Arc::clone(&self.control_mail));
        runtime.spawn(service_manager::watch(Arc::clone(&manager), node, control_mail));
        manager.ready(status);
        manager
    }

    /// What stays with the control thread.
    fn control(
        self,
        started: Instant,
        (drain_rate, shutdown_timeout, reload): (u32, Duration, Reload),
        (log, output): (log::Log, log::Lines),
        (shown, manager, takeover): (Vec<OwnedFd>, Arc<ServiceManager>, Option<Outgoing>),
    ) -> control::Control {
        control::Control {
            node: self.node,
            control_mail: self.control_mail,
            brokers: self.brokers,
            cluster: self.cluster,
            started,
            drain_rate,
            shutdown_timeout,
            watch: RefCell::new(memory::Watch::default()),
            reload,
            lag_told: RefCell::new(Counts::default()),
            certificates: self.certificates,
            health: self.health,
            calls: self.calls,
            log,
            output,
            shown: RefCell::new(shown),
            manager,
            takeover,
            proxies: self.proxies,
            hooks: self.hooks,
            figures: self.figures,
        }
    }
}

/// The state that all threads of a node share, at its beginning.
fn node_state(
    rules: Rules,
    options: Options,
    (names, memory_limit_bytes): (NameHasher, u64),
    address_limits: AddressOptions,
    (seeds, started): (&mut Rng, Instant),
    (crypto, tls): (Crypto, Option<Arc<ArcSwap<ServerSettings>>>),
) -> NodeState {
    let connections_max = names.shards() as u64 * u64::from(options.conns_max);
    let addresses = AddressLimits::new(address_limits, seeds.next_u64(), connections_max);
    let memory = Memory::new(memory_limit_bytes, sys::memory::allocated_bytes);
    let notices = Notices::new(started);
    NodeState::new(NodeParts { rules, options, names, crypto, memory, addresses, notices, tls })
}

/// A line for the service manager.
fn status(addresses: &[Address], shards: usize) -> String {
    let addresses: Vec<_> = addresses.iter().map(Address::to_string).collect();
    format!("Listening on {} with {shards} shards", addresses.join(" and "))
}

/// The name of a node: without one its host and port.
fn name_of(name: String, addresses: &[Address]) -> String {
    if !name.is_empty() {
        return name;
    }
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
#[derive(Clone)]
struct Beginning {
    node: Arc<NodeState>,
    switchboard: Arc<Switchboard>,
    io: Io,
    tables_apart: bool,
    listen: ListenOptions,
    passed: Arc<PassedListeners>,
    cpu: Option<usize>,
    started: Instant,
    /// Where shards report the steps of a takeover.
    reports: UnboundedSender<Report>,
}

impl Beginning {
    fn new(
        (node, reports): (Arc<NodeState>, UnboundedSender<Report>),
        (switchboard, io, tables_apart): (Arc<Switchboard>, Io, bool),
        (listen, passed, started): (ListenOptions, Arc<PassedListeners>, Instant),
    ) -> Self {
        let cpu = None;
        Self { node, switchboard, io, tables_apart, listen, passed, cpu, started, reports }
    }

    /// Files of public Unix sockets that this process has made. Passed ones are the manager's, and those of a
    /// running node its own until it has handed over.
    fn socket_files(&self, takeover: &Takeover) -> SocketFiles {
        let mut files = SocketFiles::default();
        if self.passed.is_empty() && takeover.public().is_none() {
            files.add(&self.listen.addresses);
        }
        files
    }

    /// Gives the calling thread, a shard's, its descriptor table and its CPU.
    fn settle_thread(&self, shard: ShardId) -> Result<(), StartFault> {
        sys::tables::block_signals().map_err(system("blocking signals in a shard"))?;
        if self.tables_apart {
            sys::tables::unshare_files().map_err(system("a descriptor table for a shard"))?;
            // Its descriptors are the main thread's. Were this thread the last to drop it, as one of a start that
            // fails may be, it would close numbers that its own table has no more. They end with the process.
            std::mem::forget(Arc::clone(&self.switchboard));
            let unneeded: Vec<_> = sockets::unneeded(&self.switchboard, shard)
                .map(|fd: BorrowedFd<'_>| fd.as_raw_fd())
                .collect();
            // Copies of this table's own. In a shared one they would be the others'.
            sys::tables::close_copies(&unneeded);
        }
        if let Some(cpu) = self.cpu {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            // A container may forbid it; the shard runs all the same.
            let _ = rustix::thread::sched_setaffinity(None, &set);
        }
        Ok(())
    }

    /// Sets for which connections the kernel chooses these listeners of the shard.
    fn prefer_cpu(&self, listeners: &[OwnedFd]) -> std::io::Result<()> {
        sockets::prefer_cpu(listeners, self.cpu.filter(|_| self.listen.incoming_cpu))
    }

    /// Gives the main thread copies of one shard's listeners: tools such as ss, lsof and fuser look into its
    /// table alone.
    fn show(&self, shard: ShardId, listeners: &[OwnedFd]) -> std::io::Result<()> {
        match self.tables_apart && shard == ShardId(0) {
            true => self.switchboard.show(listeners),
            false => Ok(()),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place where shard threads are made")]
fn spawn_shard(
    seat: Seat,
    beginning: Beginning,
    arrival: Option<Arrival>,
    ready: mpsc::Sender<Result<(), StartFault>>,
) -> std::io::Result<JoinHandle<()>> {
    let name = format!("shard-{}", seat.shard.0);
    std::thread::Builder::new().name(name).stack_size(SHARD_STACK_BYTES).spawn(move || {
        match (beginning.io, arrival) {
            (Io::Epoll, None) => run_shard(seat, beginning, ("epoll", Epoll::new), ready),
            (Io::Uring, None) => run_shard(seat, beginning, ("io_uring", Uring::new), ready),
            (Io::Epoll, Some(of)) => {
                takeover::inherit_shard(seat, beginning, of, Epoll::new, ready)
            }
            (Io::Uring, Some(of)) => {
                takeover::inherit_shard(seat, beginning, of, Uring::new, ready)
            }
        }
    })
}

/// The end of a channel on which a shard's thread says whether it could begin.
type Ready = mpsc::Sender<Result<(), StartFault>>;

fn run_shard<D: Driver<Socket = OwnedFd>>(
    seat: Seat,
    beginning: Beginning,
    (name, driver): (&'static str, MakeDriver<D>),
    ready: Ready,
) {
    let (id, reports) = (seat.shard, beginning.reports.clone());
    match begin_shard(seat, beginning, name, driver) {
        Ok(shard) => {
            let _ = ready.send(Ok(()));
            drop(ready);
            takeover::run(shard, id, &reports);
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
) -> Result<Shard<Secured<D>>, StartFault> {
    beginning.settle_thread(seat.shard)?;
    let passed = &beginning.passed;
    let listeners = match passed.is_empty() {
        true => own_listeners(beginning.listen.clone(), seat.shard)?,
        false => passed
            .of_shard(seat.shard, beginning.node.open.len())
            .map_err(system("a copy of a passed listener"))?,
    };
    beginning.prefer_cpu(&listeners).map_err(system("SO_INCOMING_CPU"))?;
    if beginning.tables_apart {
        // The main thread has them in its table for as long as it lives.
        sys::tables::close_copies(&passed.numbers());
    }
    if passed.is_empty() {
        let shown = beginning.show(seat.shard, &listeners);
        shown.map_err(system("a copy of a listener for the main thread"))?;
    }
    let driver = driver(seat.shard, beginning.switchboard, listeners, beginning.started)
        .map_err(system(name))?;
    let driver = Secured::new(driver, &beginning.node, seat.shard);
    Ok(Shard::new(beginning.node, seat, driver, sys::memory::collect))
}

/// Opens the listeners of a shard.
fn own_listeners(mut listen: ListenOptions, shard: ShardId) -> Result<Vec<OwnedFd>, StartFault> {
    if shard.index() > 0 {
        // One shard accepts for all from a Unix socket.
        listen.addresses.retain(|address| address.ip().is_some());
    }
    sockets::listen(&listen).map_err(|source| {
        // All were had before.
        let address = listen.addresses.swap_remove(0);
        StartFault::Listen { address, source }
    })
}

/// Where the shards listen: at the addresses of a running node or of passed listeners, or at own ones that can be
/// had.
fn public_listeners(
    takeover: &Takeover,
    listen: ListenOptions,
    passed: &PassedListeners,
) -> Result<ListenOptions, StartFault> {
    if let Some(addresses) = takeover.public() {
        return Ok(ListenOptions { addresses: addresses?, ..listen });
    }
    if passed.is_empty() {
        return Ok(ListenOptions { addresses: listen::probe(&listen.addresses)?, ..listen });
    }
    passed.prepare(&listen).map_err(system("a passed listener"))?;
    Ok(ListenOptions { addresses: passed.addresses(), ..listen })
}

/// The listeners of the internal port: those that were passed, or own ones at these addresses. Those of a running
/// node come later; then these are its addresses.
fn internal_listeners(
    takeover: &Takeover,
    (passed, addresses): (PassedListeners, &[Address]),
    options: &ListenOptions,
    files: &mut SocketFiles,
) -> Result<(Vec<listen::Listener>, Vec<Address>), StartFault> {
    if let Some(addresses) = takeover.internal() {
        return Ok((Vec::new(), addresses?));
    }
    if passed.is_empty() {
        let (listeners, addresses) = listen::listen(addresses)?;
        files.add(&addresses);
        return Ok((listeners, addresses));
    }
    if addresses.is_empty() {
        let why = "the descriptor \"internal\" needs http_server.internal_port";
        return Err(system("LISTEN_FDS")(std::io::Error::other(why)));
    }
    let options = ListenOptions { send_buffer_bytes: None, ..options.clone() };
    passed.prepare(&options).map_err(system("a passed listener"))?;
    let addresses = passed.addresses();
    Ok((passed.into_listeners(), addresses))
}

/// Stack of a shard's thread, bytes: what is touched of it counts, not what is reserved.
const SHARD_STACK_BYTES: usize = 1 << 20;

fn random_u64() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| std::io::Error::other("no entropy"))?;
    Ok(u64::from_ne_bytes(bytes))
}
