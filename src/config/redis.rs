//! The options of a broker and of a presence manager in Redis, and which of the brokers there is.
//!
//! ```text
//!  engine.type = redis            broker and presence in engine.redis
//!  broker.enabled, .type = redis  the broker in broker.redis instead
//!  broker.enabled, .type = nats   the broker in broker.nats instead
//!  presence_manager.enabled, ...  presence in presence_manager.redis instead
//! ```

use percent_encoding::percent_decode_str;

use super::build::pem;
use super::layers::{Report, Scope, Settings};
use super::nats::{NatsOptions, nats};
use crate::cluster::names::Partitions;
use crate::cluster::servers::{Access, Address, Security, Server};

/// What is kept elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brokers {
    /// Publications, histories and messages between nodes, in Redis.
    pub broker: Option<RedisOptions>,
    /// The same in NATS. With neither they are in this node.
    pub nats: Option<NatsOptions>,
    /// Those present; none: in this node.
    pub presence: Option<RedisOptions>,
    /// Each node keeps those present on it, and others ask it.
    pub presence_by_nodes: bool,
    /// Threads for that.
    pub threads: usize,
}

/// A use of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisOptions {
    /// Prefix of all names.
    pub prefix: String,
    /// Servers in their order: channels are divided among them.
    pub servers: Vec<Server>,
    /// Time for a connection to be made.
    pub connect_timeout_ms: u64,
    /// Time for a reply.
    pub io_timeout_ms: u64,
    /// Histories are lists.
    pub use_lists: bool,
    /// Time for which an entry of presence is kept.
    pub presence_ttl_s: u64,
    /// Entries expire by themselves.
    pub presence_field_ttl: bool,
    /// Users are counted beside clients.
    pub presence_users: bool,
    /// Messages of channels go by sharded PUB/SUB, in these partitions.
    pub partitions: Option<Partitions>,
}

/// Reads what the sections say. Faults of sections that are used go into the report.
pub(super) fn brokers(settings: &Settings, report: &mut Report) -> Brokers {
    let root = &settings.root;
    let engine = keeper(root, None, ("engine.type", &["redis"]), report) == "redis";
    let of = |switch: &str, kind: (&str, &'static [&'static str]), report: &mut Report| match root
        .flag(switch)
    {
        true => keeper(root, Some(switch), kind, report),
        false if engine => "engine",
        false => "memory",
    };
    let section = |keeper: &str, own: &str, report: &mut Report| match keeper {
        "redis" => Some(redis(settings.section(own), own != "broker.redis", report)),
        "engine" => Some(redis(settings.section("engine.redis"), true, report)),
        _ => None,
    };
    let keeper = of("broker.enabled", ("broker.type", &["redis", "nats"]), report);
    let mut broker = section(keeper, "broker.redis", report);
    if let Some(broker) = &mut broker {
        broker.partitions = partitions(root, &broker.servers, report);
    }
    let takes_all = root.text("roost.nats_interest") == "all";
    let nats = (keeper == "nats").then(|| nats(settings.section("broker.nats"), takes_all, report));
    if takes_all && nats.as_ref().is_some_and(|nats| nats.raw.is_some()) {
        let expected = "\"channels\" with raw_mode: subjects don't show which channel they are of";
        report.errors.push(root.complaint("roost.nats_interest", expected));
    }
    let of_presence =
        of("presence_manager.enabled", ("presence_manager.type", &["redis", "nodes"]), report);
    let presence = section(of_presence, "presence_manager.redis", report);
    let presence_by_nodes = of_presence == "nodes";
    let is_shared = broker.is_some() || nats.is_some();
    if presence_by_nodes && !is_shared {
        let fault =
            "it needs a broker, by which nodes ask each other; expected \"memory\" without one";
        report.errors.push(root.remark("presence_manager.type", fault));
    }
    if is_shared && presence.is_none() && !presence_by_nodes {
        report.warnings.push(
            "presence_manager: presence is kept by each node for itself, though channels are shared: \
             every node shows its own clients only"
                .to_owned(),
        );
    }
    if broker.is_some() {
        check_lifetimes(settings, report);
    }
    if nats.as_ref().is_some_and(|nats| nats.history.is_none()) {
        warn_of_history(settings, report);
    }
    let threads = root.size("roost.broker_threads");
    Brokers { broker, nats, presence, presence_by_nodes, threads }
}

/// The partitions of sharded PUB/SUB; none without it.
fn partitions(root: &Scope, servers: &[Server], report: &mut Report) -> Option<Partitions> {
    const COUNT: &str = "roost.broker_partitions";
    let count = u16::try_from(root.size(COUNT)).ok().filter(|count| *count > 0)?;
    for server in servers {
        match server {
            Server::Cluster { access, .. } if access.force_resp2 => {
                let fault = "0 with force_resp2: sharded PUB/SUB needs version 3 of the protocol";
                report.errors.push(root.complaint(COUNT, fault));
            }
            Server::Cluster { .. } => {}
            Server::Single { .. } | Server::Sentinel { .. } => {
                let fault = "0 unless channels are in a Redis Cluster (cluster_address)";
                report.errors.push(root.complaint(COUNT, fault));
            }
        }
    }
    if root.text("roost.broker_partition_tags") == "numbers" {
        return Some(Partitions::numbered(count));
    }
    let balanced = Partitions::balanced(count);
    if balanced.is_none() {
        report.errors.push(root.complaint(COUNT, "16, 32, 64, 128 or 256 with balanced tags"));
    }
    balanced
}

/// The type that an option names: `memory`, or one of the known ones. All others are refused.
fn keeper(
    root: &Scope,
    switch: Option<&str>,
    (path, known): (&str, &'static [&'static str]),
    report: &mut Report,
) -> &'static str {
    let named = root.text(path);
    if named == "memory" {
        return "memory";
    }
    if let Some(known) = known.iter().find(|known| **known == named) {
        return known;
    }
    let with = switch.map_or(String::new(), |switch| format!(" with {switch} = true"));
    let (all, or) = match known {
        [first, second] => {
            let all = format!("memory, {first} and {second}");
            (all, format!("\"memory\", \"{first}\" or \"{second}\""))
        }
        _ => ("memory and redis".to_owned(), "\"memory\" or \"redis\"".to_owned()),
    };
    report.errors.push(root.remark(path, &format!("only {all} are known{with}; expected {or}")));
    "memory"
}

/// Nothing keeps histories.
fn warn_of_history(settings: &Settings, report: &mut Report) {
    let named = settings.list("channel.namespaces").iter().map(|(_, scope)| scope);
    let all = named.chain([settings.section("channel.without_namespace")]);
    for scope in all.filter(|scope| scope.size("history_size") > 0) {
        let why = "NATS keeps no history without broker.nats.jetstream.enabled: requests for it get error 108";
        report.warnings.push(scope.remark("history_size", why));
    }
}

/// Redis expires keys by whole seconds.
fn check_lifetimes(settings: &Settings, report: &mut Report) {
    let named = settings.list("channel.namespaces").iter().map(|(_, scope)| scope);
    let all = named.chain([settings.section("channel.without_namespace")]);
    let of_namespaces =
        all.flat_map(|scope| ["history_ttl", "history_meta_ttl"].map(|path| (scope, path)));
    let global = [(&settings.root, "channel.history_meta_ttl")];
    for (scope, path) in of_namespaces.chain(global) {
        if !scope.ms(path).is_multiple_of(1_000) {
            report.errors.push(scope.complaint(path, "whole seconds with a broker in Redis"));
        }
    }
}

/// One section.
fn redis(scope: &Scope, has_presence: bool, report: &mut Report) -> RedisOptions {
    let mut timeout = |path: &str| {
        if scope.ms(path) == 0 {
            report.errors.push(scope.complaint(path, "more than 0"));
        }
        scope.ms(path)
    };
    let (connect_timeout_ms, io_timeout_ms) = (timeout("connect_timeout"), timeout("io_timeout"));
    let mut options = RedisOptions {
        prefix: scope.text("prefix"),
        servers: Vec::new(),
        connect_timeout_ms,
        io_timeout_ms,
        use_lists: scope.row("history_use_lists").is_some() && scope.flag("history_use_lists"),
        presence_ttl_s: 60,
        presence_field_ttl: false,
        presence_users: false,
        partitions: None,
    };
    if has_presence {
        let ttl = scope.ms("presence_ttl");
        if ttl == 0 || !ttl.is_multiple_of(1_000) {
            report.errors.push(scope.complaint("presence_ttl", "whole seconds, at least one"));
        }
        options.presence_ttl_s = (ttl / 1_000).max(1);
        options.presence_field_ttl = scope.flag("presence_hash_field_ttl");
        options.presence_users = scope.flag("presence_user_mapping");
    }
    if options.prefix.is_empty() {
        report
            .errors
            .push(scope.complaint("prefix", "a text: the names of all nodes begin with it"));
    }
    options.servers = servers(scope, &mut options, report);
    check(scope, &options, report);
    options
}

/// The servers: those of a Cluster, else those that Sentinels name, else addresses.
fn servers(scope: &Scope, options: &mut RedisOptions, report: &mut Report) -> Vec<Server> {
    let access = Access {
        user: scope.text("user"),
        password: scope.text("password"),
        db: scope.integer("db"),
        force_resp2: scope.flag("force_resp2"),
        client_name: scope.text("client_name"),
        security: security(scope, "tls", report),
    };
    let sentinel_access = Access {
        user: scope.text("sentinel_user"),
        password: scope.text("sentinel_password"),
        client_name: scope.text("sentinel_client_name"),
        security: security(scope, "sentinel_tls", report),
        ..Access::default()
    };
    let master = scope.text("sentinel_master_name");
    let (path, kind) = if !scope.list("cluster_address").is_empty() {
        ("cluster_address", Of::Cluster)
    } else if !scope.list("sentinel_address").is_empty() {
        ("sentinel_address", Of::Sentinel)
    } else {
        ("address", Of::Address)
    };
    if kind == Of::Sentinel && master.is_empty() {
        let expected = "the name of the master that Sentinels watch";
        report.errors.push(scope.complaint("sentinel_master_name", expected));
    }
    let mut servers = Vec::new();
    for text in scope.list(path) {
        let begin =
            Begin { kind, access: &access, sentinel_access: &sentinel_access, master: &master };
        match begin.server(&text, options) {
            Ok(server) => servers.push(server),
            // The text may have a password.
            Err(fault) => report.errors.push(format!("{}: {fault}", scope.full(path))),
        }
    }
    if scope.list(path).is_empty() {
        report.errors.push(scope.complaint(path, "at least one address"));
    }
    servers
}

/// Combinations that can't work.
fn check(scope: &Scope, options: &RedisOptions, report: &mut Report) {
    let is_cluster = |server: &&Server| matches!(server, Server::Cluster { .. });
    let clusters = options.servers.iter().filter(is_cluster).count();
    if clusters > 0 && clusters < options.servers.len() {
        let fault = "either each of them a Cluster, or none: names of channels differ";
        report.errors.push(scope.complaint("address", fault));
    }
    for server in &options.servers {
        let (Server::Single { access, .. }
        | Server::Sentinel { access, .. }
        | Server::Cluster { access, .. }) = server;
        if access.db != 0 && is_cluster(&server) {
            report.errors.push(scope.complaint("db", "0: a Redis Cluster has no other database"));
        } else if access.db != 0 && options.prefix == "centrifugo" {
            let why = "messages go to all databases of a server: each system on it needs a prefix of \
                       its own";
            report.warnings.push(scope.remark("db", why));
        }
        if access.security.as_ref().is_some_and(|security| security.insecure) {
            let danger = "anybody between here and Redis can read and change everything";
            report.warnings.push(scope.remark("tls.insecure_skip_verify", danger));
        }
    }
}

pub(super) fn security(scope: &Scope, section: &str, report: &mut Report) -> Option<Security> {
    let path = |name: &str| format!("{section}.{name}");
    if !scope.flag(&path("enabled")) {
        return None;
    }
    let mut pem = |name: &str| {
        let path = path(name);
        let read = pem(&scope.text(&path)).unwrap_or_else(|expected| {
            report.errors.push(scope.complaint(&path, &expected));
            String::new()
        });
        Some(read.into_bytes()).filter(|bytes| !bytes.is_empty())
    };
    let (authorities, cert, key) = (pem("server_ca_pem"), pem("cert_pem"), pem("key_pem"));
    if cert.is_some() != key.is_some() {
        let expected = format!("both, or neither of it and {}", scope.full(&path("key_pem")));
        report.errors.push(scope.complaint(&path("cert_pem"), &expected));
    }
    let insecure = scope.flag(&path("insecure_skip_verify"));
    Some(Security { authorities, identity: cert.zip(key), insecure })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Address,
    Sentinel,
    Cluster,
}

/// What holds for an address that says nothing else.
struct Begin<'a> {
    kind: Of,
    access: &'a Access,
    sentinel_access: &'a Access,
    master: &'a str,
}

impl Begin<'_> {
    /// Reads an address: hosts with ports, or a URL whose query has options of its own.
    fn server(&self, text: &str, options: &mut RedisOptions) -> Result<Server, String> {
        let (mut kind, mut master) = (self.kind, self.master.to_owned());
        let (mut access, mut sentinel_access) = (self.access.clone(), self.sentinel_access.clone());
        let Some((scheme, rest)) = text.split_once("://") else {
            let hosts = text.split(',').map(tcp).collect::<Result<Vec<_>, _>>()?;
            return assemble(kind, hosts, master, access, sentinel_access);
        };
        let secure = |access: &mut Access| {
            access.security.get_or_insert_default();
        };
        match scheme {
            "tcp" | "redis" | "unix" => {}
            "rediss" => secure(&mut access),
            "redis+sentinel" => kind = Of::Sentinel,
            "rediss+sentinel" => {
                kind = Of::Sentinel;
                secure(&mut access);
            }
            "redis+cluster" => kind = Of::Cluster,
            "rediss+cluster" => {
                kind = Of::Cluster;
                secure(&mut access);
            }
            _ => return Err(format!("{scheme}:// is not known")),
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, place) =
            rest.rsplit_once('@').map_or((None, rest), |(user, at)| (Some(user), at));
        if let Some(user) = user {
            let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            (access.user, access.password) = (decode(user), decode(password));
        }
        let mut hosts = if scheme == "unix" {
            vec![Address::Unix(place.to_owned())]
        } else {
            let (host, db) = place.split_once('/').unwrap_or((place, ""));
            if !db.is_empty() {
                access.db = db.parse().map_err(|_| "a database that is no number")?;
            }
            host.split(',').map(tcp).collect::<Result<Vec<_>, _>>()?
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let is_on = || on(&name, &value);
            match &*name {
                "addr" => hosts.push(tcp(&value)?),
                "connect_timeout" => options.connect_timeout_ms = milliseconds(&name, &value)?,
                "io_timeout" => options.io_timeout_ms = milliseconds(&name, &value)?,
                "force_resp2" => access.force_resp2 = is_on()?,
                "tls_enabled" if is_on()? => secure(&mut access),
                "sentinel_tls_enabled" if is_on()? => secure(&mut sentinel_access),
                "tls_enabled" => access.security = None,
                "sentinel_tls_enabled" => sentinel_access.security = None,
                "sentinel_master_name" => master = value.into_owned(),
                "sentinel_user" => sentinel_access.user = value.into_owned(),
                "sentinel_password" => sentinel_access.password = value.into_owned(),
                // Commands go to masters alone.
                "replica_client_enabled" => {}
                _ => return Err(format!("{name:?} is no option of an address")),
            }
        }
        assemble(kind, hosts, master, access, sentinel_access)
    }
}

fn assemble(
    kind: Of,
    hosts: Vec<Address>,
    master: String,
    access: Access,
    sentinel_access: Access,
) -> Result<Server, String> {
    match kind {
        Of::Cluster => Ok(Server::Cluster { seeds: hosts, access }),
        Of::Sentinel if master.is_empty() => Err("no sentinel_master_name".to_owned()),
        Of::Sentinel => Ok(Server::Sentinel { sentinels: hosts, master, sentinel_access, access }),
        Of::Address => {
            let [address] = <[Address; 1]>::try_from(hosts).map_err(|hosts| {
                format!("{} hosts in one address, which is no Cluster", hosts.len())
            })?;
            Ok(Server::Single { address, access })
        }
    }
}

/// `host:port`, the port 6379 by default; an IPv6 address is in brackets.
fn tcp(text: &str) -> Result<Address, String> {
    let text = text.trim();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, "6379"),
    };
    let host = host.trim_matches(['[', ']']);
    let port = port.parse().ok().filter(|port| *port > 0).ok_or("a port that is no number")?;
    if host.is_empty() || host.contains([' ', '/']) {
        return Err("no host".to_owned());
    }
    Ok(Address::Tcp(host.to_owned(), port))
}

fn on(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" | "t" => Ok(true),
        "false" | "0" | "f" => Ok(false),
        _ => Err(format!("{name} is neither true nor false")),
    }
}

fn milliseconds(name: &str, value: &str) -> Result<u64, String> {
    let duration = humantime::parse_duration(value).ok().filter(|duration| !duration.is_zero());
    let duration = duration.ok_or_else(|| format!("{name} is no time of more than 0"))?;
    Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> RedisOptions {
        RedisOptions {
            partitions: None,
            prefix: "p".into(),
            servers: vec![],
            connect_timeout_ms: 1,
            io_timeout_ms: 1,
            use_lists: false,
            presence_ttl_s: 60,
            presence_field_ttl: false,
            presence_users: false,
        }
    }

    fn read(kind: Of, text: &str) -> Result<(Server, RedisOptions), String> {
        let mut options = options();
        let (access, sentinel_access) = (Access::default(), Access::default());
        let (access, sentinel_access) = (&access, &sentinel_access);
        let begin = Begin { kind, access, sentinel_access, master: "" };
        begin.server(text, &mut options).map(|server| (server, options))
    }

    fn at(host: &str, port: u16) -> Address {
        Address::Tcp(host.into(), port)
    }

    #[test]
    fn addresses_of_one_server_are_read() {
        for (text, address) in [
            ("127.0.0.1:7000", at("127.0.0.1", 7_000)),
            ("redis.test", at("redis.test", 6_379)),
            ("redis://[::1]:7000", at("::1", 7_000)),
            ("tcp://h:1", at("h", 1)),
            ("unix:///run/redis.sock", Address::Unix("/run/redis.sock".into())),
        ] {
            let (server, _) = read(Of::Address, text).unwrap();
            assert_eq!(server, Server::Single { address, access: Access::default() }, "{text}");
        }
        let text =
            "rediss://us%40er:p%3Aw@h:1/3?force_resp2=true&connect_timeout=2s&io_timeout=150ms";
        let (server, options) = read(Of::Address, text).unwrap();
        let Server::Single { access, .. } = server else { panic!("{server:?}") };
        assert_eq!((&*access.user, &*access.password, access.db), ("us@er", "p:w", 3));
        assert!(access.force_resp2 && access.security.is_some());
        assert_eq!((options.connect_timeout_ms, options.io_timeout_ms), (2_000, 150));
    }

    #[test]
    fn sentinels_and_clusters_are_read() {
        let text = "redis+sentinel://:pw@a:1?addr=b:2&sentinel_master_name=m&sentinel_user=u\
                    &sentinel_password=s&sentinel_tls_enabled=true";
        let (server, _) = read(Of::Address, text).unwrap();
        let Server::Sentinel { sentinels, master, sentinel_access, access } = server else {
            panic!("{server:?}")
        };
        assert_eq!((sentinels, &*master), (vec![at("a", 1), at("b", 2)], "m"));
        assert_eq!((&*sentinel_access.user, &*sentinel_access.password), ("u", "s"));
        assert!(sentinel_access.security.is_some() && access.security.is_none());
        assert_eq!(access.password, "pw");
        for (kind, text) in [
            (Of::Cluster, "a:1,b:2"),
            (Of::Address, "redis+cluster://a:1?addr=b:2"),
            (Of::Address, "redis+cluster://a:1,b:2"),
        ] {
            let (server, _) = read(kind, text).unwrap();
            let Server::Cluster { seeds, .. } = server else { panic!("{server:?}") };
            assert_eq!(seeds, [at("a", 1), at("b", 2)], "{text}");
        }
    }

    #[test]
    fn addresses_that_cannot_work_are_refused() {
        for (text, fault) in [
            ("h:x", "a port that is no number"),
            ("h:0", "a port that is no number"),
            (":1", "no host"),
            ("http://h", "http:// is not known"),
            ("redis://h/x", "a database that is no number"),
            ("redis://h?conect_timeout=1s", "\"conect_timeout\" is no option of an address"),
            ("redis://h?io_timeout=0s", "io_timeout is no time of more than 0"),
            ("redis://h?tls_enabled=yes", "tls_enabled is neither true nor false"),
            ("a:1,b:2", "2 hosts in one address, which is no Cluster"),
            ("redis+sentinel://a:1", "no sentinel_master_name"),
        ] {
            assert_eq!(read(Of::Address, text).unwrap_err(), fault, "{text}");
        }
    }
}
