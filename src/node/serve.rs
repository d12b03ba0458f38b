//! From a configuration to a running node: builds every layer's options, says what the machine
//! allows, and greets.

use std::cell::RefCell;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::{info, warn};

use super::activation::Activated;
use super::admin::{admin_rules, websocket_path};
use super::certificates::{self, Certificates};
use super::demo::Snippets;
use super::greeting::Greeting;
use super::log::{self, Log};
use super::pid_file::PidFile;
use super::takeover::{Incoming, LaterPidFile, TakeoverSettings, digests, new_identity};
use super::web::public_paths;
use super::{BrokerSettings, Ended, FrontSettings, Io, Reloaded, Settings, StartFault, Thresholds};
use crate::base::limits::{LAPSED_BATCH, REQUESTS_UNANSWERED_MAX, TURN_ORDERED_MAX};
use crate::config::{
    self, Config, DEV_SECRET, ListenAt, Loaded, MemoryLimit, Shards, Sources, Tls, Transports,
};
use crate::edge::client_id::ClientIdSealer;
use crate::edge::host::{HostRules, HostScope};
use crate::edge::jwt::TokenKeys;
use crate::edge::proxy::ClientProxies;
use crate::handover::{Hello, Identity, Purpose};
use crate::host::facts::Facts;
use crate::host::plan::{self, ShardPlan};
use crate::io::sockets::{Address, ListenOptions};
use crate::io::uring;
use crate::session::{ClientOptions, Rules};
use crate::shard::{Endpoint, EndpointKind, Options};
use crate::sys;

/// Connections that may wait at one listener; the kernel's `somaxconn` bounds it further.
const BACKLOG: i32 = 65_535;

/// Runs a node until a signal ends it. Returns 0 at a regular end, 1 when it could not start or
/// was cut short by a second signal.
pub fn serve(loaded: Loaded, sources: Sources) -> ExitCode {
    // Before anything else opens a file.
    let activated = Activated::take();
    let options = &loaded.config.log;
    let log = match log::init(options.level, options.file.as_deref(), options.json) {
        Ok(log) => log,
        Err(source) => {
            let fault = StartFault::System { what: "the log file", source };
            log::fatal_without(options.json, &fault);
            return ExitCode::FAILURE;
        }
    };
    let ended = activated.and_then(|activated| start(loaded, sources, activated, log.clone()));
    match &ended {
        Ok(ended) => info!(?ended, "node ended"),
        Err(fault) => log.fatal(fault),
    }
    log.flush();
    match ended {
        Ok(Ended::Drained | Ended::TimedOut | Ended::HandedOver) => ExitCode::SUCCESS,
        Ok(Ended::Cut) | Err(_) => ExitCode::FAILURE,
    }
}

fn start(
    loaded: Loaded,
    sources: Sources,
    activated: Activated,
    log: Log,
) -> Result<Ended, StartFault> {
    let Loaded { mut config, origin, warnings, fixed } = loaded;
    // A file that was read once is required at a reload, also one that was found by its default name.
    let sources = Sources { file: sources.file.clone().or_else(|| origin.clone()), ..sources };
    let system = |what| move |source| StartFault::System { what, source };
    for warning in warnings {
        warn!("{warning}");
    }
    sys::tables::raise_nofile();
    let facts = Facts::read();
    let plan = shard_plan(&config, &facts);
    if !facts.tables_apart {
        warn!(
            descriptors = facts.table_descriptors_max(),
            connections_max = plan.connections_max(),
            "unshare(2) is forbidden here: all shards share one descriptor table, and the hard limit of \
             descriptors counts once for all of them"
        );
    }
    let memory_limit_bytes = memory_limit(&config, &facts);
    let handshakes = config.tls.public.is_some().then_some(config.tls.handshakes_max as u64);
    let capacity = plan::capacity(&facts, &plan, memory_limit_bytes, handshakes);
    let (io, why) = driver(config.roost.io)?;
    let mut takeover = takeover_settings(&config, digests(&fixed), &plan, &facts)?;
    fill_in_secrets(&mut config, sources.dev, &mut takeover.identity)
        .map_err(system("random numbers"))?;
    // Listeners of a node that hands over come from there.
    let activated = if takeover.incoming.is_some() { Activated::default() } else { activated };
    let mut limits = capacity.lines();
    limits.push(why);
    let (cpus, why) = pinning(&config, &plan, &facts);
    limits.push(why);
    if config.roost.incoming_cpu && cpus.is_empty() {
        limits.push("roost.incoming_cpu has no effect, since shards are not pinned".to_owned());
    }
    let certificates = open_certificates(&config)?;
    let Identity { ticket_keys, ticket_keys_since, .. } = &takeover.identity;
    certificates.inherit_ticket_keys(ticket_keys, *ticket_keys_since);
    let node = (memory_limit_bytes, sources.dev, log.clone(), Arc::new(certificates));
    let (pid_file, later) = pid_file(&config, &mut takeover)?;
    let mut settings =
        settings(config.clone(), io, &plan, &facts, node, takeover).map_err(system("keys"))?;
    settings.activate(activated);
    if !config.roost.start_without_broker {
        settings.brokers.check()?;
    }
    settings.front.plan = limits.clone();
    settings.cpus = cpus;
    settings.front.snippets = Snippets::new(&config, sources.dev);
    let from = origin.map_or_else(|| "no file".to_owned(), |path| path.display().to_string());
    let snippets = settings.front.snippets.clone();
    let own = (sources.dev, settings.front.certificates.self_signed());
    let greeting = Greeting::new(&config, &from, (plan.shards, &limits), snippets, own);
    settings.greeting = Box::new(listening(greeting, from, &settings, &config, &plan, log.clone()));
    settings.reload = Box::new(reloading(config, sources, log));
    let ended = super::run(settings);
    let later = later.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(pid_file) = pid_file.or(later) {
        match ended {
            Ok(Ended::HandedOver) => pid_file.release(),
            _ => pid_file.remove(),
        }
    }
    ended
}

/// Looks for a running node to take over from, and takes its identity or makes one.
fn takeover_settings(
    config: &Config,
    options: Vec<(String, [u8; 16])>,
    plan: &ShardPlan,
    facts: &Facts,
) -> Result<TakeoverSettings, StartFault> {
    let path = config.roost.takeover.clone();
    let mut hello = Hello::new(Purpose::Takeover, env!("CARGO_PKG_VERSION"));
    hello.shards = u32::try_from(plan.shards).unwrap_or(u32::MAX);
    hello.options.clone_from(&options);
    let incoming = path.as_deref().map(|path| Incoming::connect(path, hello)).transpose()?;
    let incoming = incoming.flatten();
    let identity = match &incoming {
        Some(incoming) => {
            let available = facts.memory_available_bytes.as_ref().ok().copied();
            incoming.check_room(plan.conns_per_shard_hard, available)?;
            incoming.identity().clone()
        }
        None => new_identity().map_err(|source| StartFault::System { what: "keys", source })?,
    };
    Ok(TakeoverSettings { path, incoming, identity, options, pid_file: None })
}

/// The pid file, and the place for that of a node which takes over: the process before still holds it.
fn pid_file(
    config: &Config,
    takeover: &mut TakeoverSettings,
) -> Result<(Option<PidFile>, LaterPidFile), StartFault> {
    let later = LaterPidFile::default();
    let Some(path) = config.pid_file.clone() else { return Ok((None, later)) };
    if takeover.incoming.is_some() {
        takeover.pid_file = Some((path, Arc::clone(&later)));
        return Ok((None, later));
    }
    let file = PidFile::write(path);
    let file = file.map_err(|source| StartFault::System { what: "the pid file", source })?;
    Ok((Some(file), later))
}

impl Settings {
    /// Takes listeners of a service manager, if there are some.
    fn activate(&mut self, activated: Activated) {
        if !activated.public.is_empty() {
            self.options.one_accepts = !activated.public.suffice(self.shards);
            self.options.listeners_stay = true;
        }
        self.activated = activated;
    }
}

/// Reads the certificates of all listeners.
fn open_certificates(config: &Config) -> Result<Certificates, StartFault> {
    let listens = config.http_server.at.ips().iter().filter(|address| !address.is_unspecified());
    let addresses = listens.map(ToString::to_string).collect();
    let opened = Certificates::open(config.tls.clone(), addresses, certificates::unix_now());
    opened
        .map_err(|faults| StartFault::System { what: "TLS", source: std::io::Error::other(faults) })
}

/// Says that the node listens: as a text on a terminal, and as an event of the log.
fn listening(
    greeting: Greeting,
    from: String,
    settings: &Settings,
    config: &Config,
    plan: &ShardPlan,
    log: Log,
) -> impl FnOnce(&[Address], &[Address]) + 'static {
    let (insecure, memory_limit_bytes) = (config.client.insecure, settings.memory_limit_bytes);
    let (limits, shards) = (settings.front.plan.join("; "), plan.shards);
    let connections_max = plan.connections_max();
    move |addresses, internal| {
        let list =
            |all: &[Address]| all.iter().map(Address::to_string).collect::<Vec<_>>().join(" and ");
        if log.has_banner() {
            log.show(greeting.text(addresses, internal));
        }
        info!(
            version = env!("CARGO_PKG_VERSION"),
            options = from,
            addresses = list(addresses),
            internal = list(internal),
            shards,
            connections_max,
            memory_limit_bytes,
            limits,
            insecure,
            "listening on {} with {} shards",
            list(addresses),
            shards
        );
    }
}

/// Reads the options of a running node again.
fn reloading(
    running: Config,
    sources: Sources,
    log: Log,
) -> impl Fn() -> Result<Reloaded, String> + 'static {
    let last = RefCell::new(running.clone());
    move || match config::load(&sources) {
        Ok(Loaded { mut config, warnings, .. }) => {
            log.set_level(config.log.level);
            keep_secrets(&running, &mut config);
            let changed = changed(&last.replace(config.clone()), &config);
            Ok(Reloaded { changed, ..reloaded(&running, config, warnings) })
        }
        Err(fault) => Err(fault.problems.join("\n")),
    }
}

/// Secrets that nobody has set: they hold for one life of the node, over all its processes.
fn fill_in_secrets(config: &mut Config, dev: bool, identity: &mut Identity) -> std::io::Result<()> {
    let kept = |secret: &mut Option<String>| match secret {
        Some(secret) => Ok::<_, std::io::Error>(secret.clone()),
        None => Ok(secret.insert(random_text()?).clone()),
    };
    if let Some(admin) = &mut config.web.admin {
        if admin.secret.is_empty() {
            admin.secret = kept(&mut identity.admin_secret)?;
        }
        if dev && admin.password.is_none() {
            admin.link = Some(kept(&mut identity.admin_link)?);
        }
    }
    if dev
        && let Some(api) = &mut config.web.api
        && api.key.is_none()
    {
        // Made anew at each start: any page in the developer's browser can send requests to this machine.
        api.key = Some(kept(&mut identity.api_key)?);
    }
    Ok(())
}

/// Values that were made at the start, and those that a development node has printed, stay.
fn keep_secrets(running: &Config, config: &mut Config) {
    if let (Some(running), Some(admin)) = (&running.web.admin, &mut config.web.admin) {
        admin.link = running.link.clone();
        if admin.secret.is_empty() {
            admin.secret = running.secret.clone();
        }
    }
    if let (Some(running), Some(api)) = (&running.web.api, &mut config.web.api)
        && api.key.is_none()
    {
        api.key =
            running.key.clone().filter(|_| config.tokens.connection.hmac_secret_key == DEV_SECRET);
    }
}

/// The differences of two configurations among options that may change while a node runs.
fn changed(before: &Config, now: &Config) -> Vec<&'static str> {
    let limits = |config: &Config| ClientOptions {
        proxies: ClientProxies::default(),
        ..config.client.clone()
    };
    // Compiled expressions know no equality, but how they are written.
    let channels = |config: &Config| {
        format!("{:?} {:?}", config.channels.namespaces(), config.channels.syntax())
    };
    let origins = |config: &Config| format!("{:?}", config.origins);
    let key = |config: &Config| {
        config.web.api.as_ref().map(|api| (api.key.clone(), api.insecure, api.transport_errors))
    };
    let differs = [
        ("channel", channels(before) != channels(now)),
        ("client.token or client.subscription_token", before.tokens != now.tokens),
        ("client.allowed_origins", origins(before) != origins(now)),
        ("client (limits and delays)", limits(before) != limits(now)),
        ("client.proxy", before.client.proxies != now.client.proxies),
        ("rpc", before.rpc != now.rpc),
        ("http_server.tls, http_server.internal_tls or roost.tls", before.tls != now.tls),
        ("http_api.key, http_api.insecure or http_api.error_mode", key(before) != key(now)),
        ("log.level", before.log.level != now.log.level),
    ];
    differs.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect()
}

/// The reloadable part of a new configuration, and the changed sections of the rest.
fn reloaded(running: &Config, config: Config, warnings: Vec<String>) -> Reloaded {
    let (_, all) = running.client.with_limits_of(&config.client);
    let api = |config: &Config| config.web.api.clone().map(|api| (api.prefix, api.external));
    let web = |config: &Config| {
        (
            config.web.metrics.clone(),
            config.web.health.clone(),
            config.web.ready.clone(),
            api(config),
        )
    };
    let tls = |config: &Config| {
        let Tls { public, internal, handshakes_max, tickets, acme } = &config.tls;
        let acme =
            acme.as_ref().map(|acme| (&acme.cache, acme.http, &acme.directory, &acme.authorities));
        let acme = format!("{acme:?}");
        (public.is_some(), internal.is_some(), *handshakes_max, tickets.period_ms, acme)
    };
    let pages = |config: &Config| (config.web.admin.clone(), config.web.demo.clone());
    let differs = [
        ("http_server", running.http_server != config.http_server),
        (
            "http_server.tls.enabled, internal_tls.enabled, tls_external, tls_autocert (other than hosts), \
             roost.acme_directory or roost.acme_ca_pem",
            tls(running) != tls(&config),
        ),
        (
            "log.file or roost.log_format",
            (&running.log.file, running.log.json) != (&config.log.file, config.log.json),
        ),
        ("client (other than limits, delays, origins and tokens)", !all),
        ("client.hooks", running.hooks != config.hooks),
        ("websocket", running.websocket != config.websocket),
        (
            "websocket.compression, http_stream, sse, emulation, uni_*, long_poll or init",
            running.transports != config.transports,
        ),
        ("http_api, prometheus or health (other than the key)", web(running) != web(&config)),
        ("admin, roost.demo or roost.demo_sdk", pages(running) != pages(&config)),
        ("shutdown.timeout", running.shutdown_timeout_ms != config.shutdown_timeout_ms),
        (
            "node",
            (&running.node_name, running.metrics_interval_ms)
                != (&config.node_name, config.metrics_interval_ms),
        ),
        ("pid_file", running.pid_file != config.pid_file),
        ("engine, broker or presence_manager", running.brokers != config.brokers),
        ("roost", running.roost != config.roost),
    ];
    let needs_start = differs.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name);
    let needs_start = needs_start.collect();
    let Config { channels, tokens, rpc, web, client, origins, tls, .. } = config;
    let (api, changed) = (web.api, Vec::new());
    Reloaded { channels, tokens, client, rpc, origins, api, tls, changed, needs_start, warnings }
}

/// The options that a reload would put into effect, and those that would need a restart.
#[cfg(test)]
pub(super) fn differences(
    running: &Config,
    config: &Config,
) -> (Vec<&'static str>, Vec<&'static str>) {
    let needs_start = reloaded(running, config.clone(), Vec::new()).needs_start;
    (changed(running, config), needs_start)
}

/// A text that nobody guesses: the key for the server API of a development node, and others.
fn random_text() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| std::io::Error::other("no entropy"))?;
    Ok(bytes.map(|byte| format!("{byte:02x}")).concat())
}

/// Which driver runs, and why, for the operator.
fn driver(wanted: config::Io) -> Result<(Io, String), StartFault> {
    match (wanted, uring::probe()) {
        (config::Io::Epoll, _) => Ok((Io::Epoll, "driver: epoll, as roost.io says".to_owned())),
        (config::Io::Uring, Ok(())) => {
            Ok((Io::Uring, "driver: io_uring, as roost.io says".to_owned()))
        }
        (config::Io::Uring, Err(why)) => Err(StartFault::Driver { why }),
        (config::Io::Auto, Ok(())) => {
            Ok((Io::Uring, "driver: io_uring, which this kernel has (roost.io is auto)".to_owned()))
        }
        (config::Io::Auto, Err(why)) => {
            Ok((Io::Epoll, format!("driver: epoll, because {why} (roost.io is auto)")))
        }
    }
}

fn shard_plan(config: &Config, facts: &Facts) -> ShardPlan {
    let wanted = match config.roost.shards {
        Shards::Cores => plan::Shards::Cores,
        Shards::Auto => plan::Shards::Auto,
        Shards::Count(count) => plan::Shards::Count(usize::from(count)),
    };
    let target = (config.client.connection_limit > 0).then_some(config.client.connection_limit);
    plan::plan_shards(wanted, target, facts)
}

fn pinning(config: &Config, plan: &ShardPlan, facts: &Facts) -> (Vec<usize>, String) {
    let wanted = match config.roost.pin {
        config::Pin::Auto => plan::Pin::Auto,
        config::Pin::On => plan::Pin::On,
        config::Pin::Off => plan::Pin::Off,
    };
    plan::pin_shards(wanted, plan.shards, facts)
}

fn memory_limit(config: &Config, facts: &Facts) -> u64 {
    match config.roost.memory_limit {
        MemoryLimit::Bytes(bytes) => bytes,
        MemoryLimit::Percent(percent) => {
            facts.memory_bytes().map_or(u64::MAX, |bytes| bytes / 100 * u64::from(percent))
        }
    }
}

fn settings(
    config: Config,
    io: Io,
    plan: &ShardPlan,
    facts: &Facts,
    (memory_limit_bytes, dev, log, certificates): (u64, bool, Log, Arc<Certificates>),
    takeover: TakeoverSettings,
) -> std::io::Result<Settings> {
    let Config {
        client,
        origins,
        rpc,
        roost,
        websocket,
        http_server,
        tokens,
        channels,
        web,
        hooks,
        brokers,
        ..
    } = config;
    let Transports { mut endpoints, deflate, inflated_bytes_max, uni_websocket, poll_wait_ms } =
        config.transports;
    // On the internal port the control thread serves it.
    if let Some(admin) = &web.admin
        && admin.is_public(http_server.internal.is_some())
    {
        endpoints.push(Endpoint::new(&websocket_path(&admin.prefix), EndpointKind::Admin));
    }
    if roost.echo {
        endpoints.push(Endpoint::new("/echo", EndpointKind::Echo));
    }
    let mode = http_server.socket_mode;
    let internal = http_server.internal.as_ref();
    let internal = internal.map_or_else(Vec::new, |at| at.at.addresses(at.port, mode));
    // A slot's memory is reserved for as many connections as could ever be here.
    let by_memory = plan::connections_in(memory_limit_bytes).max(1);
    let conns = |count: usize| u32::try_from((count as u64).min(by_memory)).unwrap_or(u32::MAX / 2);
    let positive = |bytes: usize| (bytes > 0).then_some(bytes);
    let hosts = HostRules {
        scope: match web.admin.as_ref().is_some_and(|admin| admin.insecure) {
            _ if dev => HostScope::Everything,
            true => HostScope::Admin,
            false => HostScope::Nothing,
        },
        addresses: http_server
            .at
            .ips()
            .iter()
            .chain(http_server.internal.iter().flat_map(|internal| internal.at.ips()))
            .copied()
            .collect(),
        names: roost.allowed_hosts,
    };
    let identity = &takeover.identity;
    let client_ids = ClientIdSealer::new(&identity.client_ids);
    let session_ids = ClientIdSealer::new(&identity.session_ids);
    let node_id = identity.node_id.clone();
    let welcome = takeover.incoming.as_ref().map(Incoming::welcome);
    let one_accepts =
        welcome.map_or(matches!(http_server.at, ListenAt::Unix(_)), |welcome| welcome.one_accepts);
    let listeners_stay = welcome.is_some_and(|welcome| welcome.listeners_stay);
    let shares_presence = brokers.presence.is_some() || brokers.presence_by_nodes;
    let brokers = BrokerSettings::new(&brokers, &channels, &node_id, plan.shards);
    let (broker, presence) = brokers.keepers(shares_presence);
    let presence_ttl_s = brokers.presence_ttl_s();
    Ok(Settings {
        brokers,
        shards: plan.shards,
        tables_apart: facts.tables_apart,
        log,
        cpus: Vec::new(),
        io,
        activated: Activated::default(),
        takeover,
        listen: ListenOptions {
            addresses: http_server.at.addresses(http_server.port, mode),
            backlog: BACKLOG,
            send_buffer_bytes: positive(roost.send_buffer_bytes),
            notsent_lowat_bytes: positive(roost.notsent_lowat_bytes)
                .and_then(|bytes| u32::try_from(bytes).ok()),
            incoming_cpu: roost.incoming_cpu,
        },
        rules: Rules {
            client: ArcSwap::from_pointee(client),
            keys: TokenKeys::new(&tokens.connection).map_err(std::io::Error::other)?,
            subscription_keys: tokens
                .subscription
                .as_ref()
                .map(TokenKeys::new)
                .transpose()
                .map_err(std::io::Error::other)?,
            channels: channels.into_shared(),
            admin: web.admin.as_ref().map(admin_rules).transpose()?,
            api: ArcSwap::from_pointee(web.api.as_ref().map(config::Api::access)),
            origins: ArcSwap::from_pointee(origins),
            client_ids,
            session_ids,
            node_id,
            rpc: ArcSwap::from_pointee(rpc),
        },
        options: Options {
            conns_soft: conns(plan.conns_per_shard_soft),
            conns_max: conns(plan.conns_per_shard_hard),
            handshake_timeout_ms: roost.handshake_timeout_ms,
            close_timeout_ms: roost.close_timeout_ms,
            write_timeout_ms: websocket.write_timeout_ms,
            idle_timeout_ms: roost.idle_timeout_ms,
            message_bytes_max: websocket.message_bytes_max,
            inflated_bytes_max,
            endpoints,
            deflate,
            uni_websocket,
            poll_wait_ms,
            one_accepts,
            listeners_stay,
            addresses: roost.addresses,
            web: public_paths(&web, !internal.is_empty()),
            channels_idle_max: roost.channels_max.div_ceil(plan.shards),
            spin_us: roost.spin_us,
            requests_unanswered_max: REQUESTS_UNANSWERED_MAX,
            turn_deliveries_max: roost.turn_deliveries,
            turn_ordered_max: TURN_ORDERED_MAX,
            hosts,
            broker,
            presence,
            presence_ttl_s,
            broker_window_bytes: roost.broker_window_bytes,
            lapsed_batch: LAPSED_BATCH,
            tls_handshakes_max: config.tls.handshakes_max.div_ceil(plan.shards),
        },
        address_limits: roost.address_limits,
        // As many as can check a burst of new clients' tokens without taking the shards' time.
        crypto_threads: (facts.cores() / 4).max(1),
        drain_rate: u32::try_from(roost.drain_rate).unwrap_or(u32::MAX),
        shutdown_timeout: Duration::from_millis(config.shutdown_timeout_ms),
        memory_limit_bytes,
        front: FrontSettings {
            web,
            hooks,
            thresholds: Thresholds {
                loop_lag_us: Some(roost.health_loop_lag_ms * 1000).filter(|us| *us > 0),
                connections_percent: roost.health_connections.into(),
                broker: roost.health_broker,
            },
            plan: Vec::new(),
            certificates,
            snippets: Snippets::default(),
        },
        internal,
        name: config.node_name,
        metrics_interval: Duration::from_millis(config.metrics_interval_ms),
        greeting: Box::new(|_, _| ()),
        reload: Box::new(|| Err("nothing to read".into())),
    })
}
