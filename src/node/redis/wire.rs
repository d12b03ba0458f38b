//! The `redis` crate: the only file that names it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::future::{LocalBoxFuture, join_all};
use redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo as _, Msg, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo,
    RedisError, TlsCertificates, TlsMode, Value,
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::slots::owners;
use crate::cluster::hash::slot;
use crate::cluster::operations::{Reply, Request};
use crate::cluster::scripts::Script;
use crate::cluster::servers::{Access, Address, Security, Server};

/// Why there is no connection any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    /// The crate says why.
    #[error("{0}")]
    Redis(#[from] RedisError),
    /// No connection in time.
    #[error("no connection in time")]
    Timeout,
    /// The server ended it.
    #[error("closed by the server")]
    Closed,
    /// Probes don't come.
    #[error("probes don't come back")]
    Silent,
    /// The server answers, and can't serve.
    #[error("{0}")]
    Useless(String),
    /// The broker is lost to the home.
    #[error("begins anew")]
    Forgotten,
}

impl Address {
    fn to(&self, security: Option<&Security>) -> ConnectionAddr {
        match (self, security) {
            (Self::Unix(path), _) => ConnectionAddr::Unix(path.into()),
            (Self::Tcp(host, port), None) => ConnectionAddr::Tcp(host.clone(), *port),
            (Self::Tcp(host, port), Some(security)) => ConnectionAddr::TcpTls {
                host: host.clone(),
                port: *port,
                insecure: security.insecure,
                tls_params: None,
            },
        }
    }
}

impl Access {
    fn info(&self, address: &Address) -> Result<ConnectionInfo, RedisError> {
        let mut redis =
            RedisConnectionInfo::default().set_db(self.db).set_protocol(self.protocol());
        if !self.user.is_empty() {
            redis = redis.set_username(&self.user);
        }
        if !self.password.is_empty() {
            redis = redis.set_password(&self.password);
        }
        let info = address.to(self.security.as_ref()).into_connection_info()?;
        Ok(info.set_redis_settings(redis))
    }

    fn protocol(&self) -> ProtocolVersion {
        if self.force_resp2 { ProtocolVersion::RESP2 } else { ProtocolVersion::RESP3 }
    }

    fn client(&self, address: &Address) -> Result<Client, RedisError> {
        let info = self.info(address)?;
        match &self.security {
            Some(security) => Client::build_with_tls(info, security.certificates()),
            None => Client::open(info),
        }
    }

    fn set_name(&self) -> Option<Cmd> {
        if self.client_name.is_empty() {
            return None;
        }
        let mut command = redis::cmd("CLIENT");
        command.arg("SETNAME").arg(&self.client_name);
        Some(command)
    }
}

impl Security {
    fn certificates(&self) -> TlsCertificates {
        let identity = |(cert, key): &(Vec<u8>, Vec<u8>)| ClientTlsConfig {
            client_cert: cert.clone(),
            client_key: key.clone(),
        };
        TlsCertificates {
            client_tls: self.identity.as_ref().map(identity),
            root_cert: self.authorities.clone(),
        }
    }

    fn mode(&self) -> TlsMode {
        if self.insecure { TlsMode::Insecure } else { TlsMode::Secure }
    }
}

impl Server {
    fn access(&self) -> &Access {
        match self {
            Self::Single { access, .. }
            | Self::Sentinel { access, .. }
            | Self::Cluster { access, .. } => access,
        }
    }

    /// A client of one server; of a Cluster, of one of its nodes.
    async fn client(&self, attempt: usize) -> Result<Client, RedisError> {
        match self {
            Self::Single { address, access } => access.client(address),
            Self::Cluster { seeds, access } => access.client(&seeds[attempt % seeds.len()]),
            Self::Sentinel { sentinels, master, sentinel_access, access } => {
                let to = sentinels.iter().map(|one| one.to(sentinel_access.security.as_ref()));
                let kind = SentinelServerType::Master;
                let mut builder = SentinelClientBuilder::new(to, master, kind)?
                    .set_client_to_redis_db(access.db)
                    .set_client_to_redis_protocol(access.protocol())
                    .set_client_to_sentinel_protocol(sentinel_access.protocol());
                if let Some(security) = &access.security {
                    builder = builder
                        .set_client_to_redis_tls_mode(security.mode())
                        .set_client_to_redis_certificates(security.certificates());
                }
                if let Some(security) = &sentinel_access.security {
                    builder = builder
                        .set_client_to_sentinel_tls_mode(security.mode())
                        .set_client_to_sentinel_certificates(security.certificates());
                }
                if !access.user.is_empty() {
                    builder = builder.set_client_to_redis_username(&access.user);
                }
                if !access.password.is_empty() {
                    builder = builder.set_client_to_redis_password(&access.password);
                }
                if !sentinel_access.user.is_empty() {
                    builder = builder.set_client_to_sentinel_username(&sentinel_access.user);
                }
                if !sentinel_access.password.is_empty() {
                    builder = builder.set_client_to_sentinel_password(&sentinel_access.password);
                }
                builder.build()?.async_get_client().await
            }
        }
    }
}

/// A command connection.
pub(super) struct Link {
    kind: Kind,
    /// Names of the scripts, by their numbers.
    names: Vec<String>,
}

#[derive(Clone)]
enum Kind {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    /// Connects, and loads the scripts.
    pub(super) async fn connect(
        server: &Server,
        io_timeout: Duration,
    ) -> Result<Self, Unreachable> {
        let access = server.access();
        let mut kind = if let Server::Cluster { seeds, .. } = server {
            let infos =
                seeds.iter().map(|seed| access.info(seed)).collect::<Result<Vec<_>, _>>()?;
            // No retries: a command that was sent may have taken effect.
            let mut builder = ClusterClient::builder(infos)
                .retries(0)
                .response_timeout(io_timeout)
                .use_protocol(access.protocol());
            if let Some(security) = &access.security {
                builder = builder.tls(security.mode()).certs(security.certificates());
            }
            Kind::Cluster(builder.build()?.get_async_connection().await?)
        } else {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(None)
                .set_response_timeout(Some(io_timeout));
            let client = server.client(0).await?;
            Kind::One(client.get_multiplexed_async_connection_with_config(&config).await?)
        };
        if let (Kind::One(connection), Some(name)) = (&mut kind, access.set_name()) {
            name.query_async::<()>(connection).await?;
        }
        let mut link = Self { kind, names: vec![] };
        link.load_scripts().await?;
        Ok(link)
    }

    /// Gives the server the texts of all scripts.
    pub(super) async fn load_scripts(&mut self) -> Result<(), Unreachable> {
        let mut names = Vec::new();
        for script in Script::ALL {
            let mut command = redis::cmd("SCRIPT");
            command.arg("LOAD").arg(script.text());
            names.push(match &mut self.kind {
                Kind::One(connection) => command.query_async(connection).await?,
                Kind::Cluster(connection) => command.query_async(connection).await?,
            });
        }
        self.names = names;
        Ok(())
    }

    /// A setting of the server; none where it doesn't say so, or is a Cluster.
    pub(super) async fn setting(&mut self, name: &str) -> Option<String> {
        let Kind::One(connection) = &mut self.kind else { return None };
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg(name);
        let pair: HashMap<String, String> = command.query_async(connection).await.ok()?;
        pair.into_values().next()
    }

    /// The server is a node of a Cluster, and does not say that where it may not be asked.
    pub(super) async fn is_cluster(&mut self) -> bool {
        let mut command = redis::cmd("INFO");
        command.arg("cluster");
        self.text(&command).await.is_some_and(|info| info.contains("cluster_enabled:1"))
    }

    /// Fields of hashes can expire.
    pub(super) async fn has_field_ttl(&mut self) -> bool {
        let mut command = redis::cmd("COMMAND");
        command.arg("INFO").arg("HEXPIRE");
        let Kind::One(connection) = &mut self.kind else { return true };
        let found: Result<Vec<Value>, _> = command.query_async(connection).await;
        !matches!(found.as_deref(), Ok([Value::Nil]))
    }

    /// Messages of sharded PUB/SUB can be sent.
    pub(super) async fn takes_sharded(&mut self, name: String) -> bool {
        let request = Request::Plain { name: "SPUBLISH", arguments: vec![name.into(), Vec::new()] };
        let replies = self.send(std::iter::once(&request)).await;
        !matches!(replies.as_deref(), Err(_) | Ok([] | [Reply::Error(_), ..]))
    }

    async fn text(&mut self, command: &Cmd) -> Option<String> {
        let Kind::One(connection) = &mut self.kind else { return None };
        command.query_async(connection).await.ok()
    }

    /// It leads to a Cluster.
    pub(super) fn is_of_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster(_))
    }

    /// Batches whose replies may be missing at the same time. In a Cluster the next batch waits: two of them
    /// have no order between each other.
    pub(super) fn window(&self) -> usize {
        match &self.kind {
            Kind::One(_) => 4,
            Kind::Cluster(_) => 1,
        }
    }

    /// Sends requests: their replies, in their order. It is sent when the future is polled first. Requests for
    /// one key take effect in their order.
    pub(super) fn send<'r>(
        &self,
        requests: impl Iterator<Item = &'r Request>,
    ) -> LocalBoxFuture<'static, Result<Vec<Reply>, Unreachable>> {
        match self.kind.clone() {
            Kind::One(mut connection) => {
                let mut pipeline = redis::Pipeline::with_capacity(requests.size_hint().0);
                for request in requests {
                    pipeline.add_command(self.command(request));
                }
                Box::pin(async move {
                    let count = pipeline.len();
                    let values = connection.send_packed_commands(&pipeline, 0, count).await?;
                    Ok(values.into_iter().map(reply).collect())
                })
            }
            Kind::Cluster(connection) => {
                // One by one they would overtake each other on their way through the crate.
                let mut slots: BTreeMap<u16, (redis::Pipeline, Vec<usize>)> = BTreeMap::new();
                let mut count = 0;
                for request in requests {
                    let (pipeline, places) = slots.entry(slot(request.key())).or_default();
                    pipeline.add_command(self.command(request));
                    places.push(count);
                    count += 1;
                }
                let all = slots.into_iter().map(|(slot, (pipeline, places))| {
                    let route = Route::new(slot, SlotAddr::Master);
                    let route = SingleNodeRoutingInfo::SpecificNode(route);
                    let mut connection = connection.clone();
                    async move {
                        let count = places.len();
                        (places, connection.route_pipeline(pipeline, 0, count, route).await)
                    }
                });
                let all = join_all(all.collect::<Vec<_>>());
                Box::pin(async move {
                    let mut replies = vec![Reply::Nil; count];
                    for (places, values) in all.await {
                        match values {
                            Ok(values) => places
                                .into_iter()
                                .zip(values)
                                .for_each(|(place, value)| replies[place] = reply(value)),
                            Err(error) => {
                                let Some(code) = error.code() else { return Err(error.into()) };
                                let error = Reply::Error(format!("{code} {error}"));
                                places.iter().for_each(|place| replies[*place] = error.clone());
                            }
                        }
                    }
                    Ok(replies)
                })
            }
        }
    }

    /// One allocation for its bytes and one for its words: it would grow several times for each publication.
    fn command(&self, request: &Request) -> Cmd {
        match request {
            Request::Plain { name, arguments } => {
                let mut command = Cmd::with_capacity(1 + arguments.len(), request.bytes());
                command.arg(name);
                for argument in arguments {
                    command.arg(&argument[..]);
                }
                command
            }
            Request::Script { script, keys, arguments } => {
                let words = 3 + keys.len() + arguments.len();
                let mut command = Cmd::with_capacity(words, request.bytes());
                command.arg("EVALSHA").arg(&self.names[*script as usize]).arg(keys.len());
                for key in keys {
                    command.arg(key);
                }
                for argument in arguments {
                    command.arg(&argument[..]);
                }
                command
            }
        }
    }
}

fn reply(value: Value) -> Reply {
    match value {
        Value::Int(number) => Reply::Int(number),
        Value::BulkString(bytes) => Reply::Bytes(bytes),
        Value::SimpleString(text) => Reply::Bytes(text.into()),
        Value::VerbatimString { text, .. } => Reply::Bytes(text.into()),
        Value::Okay => Reply::Bytes(b"OK".into()),
        Value::Array(values) | Value::Set(values) => {
            Reply::List(values.into_iter().map(reply).collect())
        }
        Value::Map(pairs) => {
            let flat = pairs.into_iter().flat_map(|(key, value)| [reply(key), reply(value)]);
            Reply::List(flat.collect())
        }
        Value::Boolean(value) => Reply::Int(value.into()),
        Value::ServerError(error) => {
            Reply::Error(format!("{} {}", error.code(), error.details().unwrap_or_default()))
        }
        _ => Reply::Nil,
    }
}

/// Subscribes and unsubscribes on a PUB/SUB connection.
pub(super) enum Subscriptions {
    /// To any node: SUBSCRIBE.
    Ordinary(PubSubSink),
    /// To the owner of a slot of a Cluster, for names in that slot: SSUBSCRIBE.
    Sharded(MultiplexedConnection),
}

/// Its messages: name and payload.
pub(super) enum Messages {
    Ordinary(PubSubStream),
    Sharded(UnboundedReceiver<Message>, Arc<Incoming>),
}

/// A PUB/SUB message. That of the crate keeps its bytes: they would be copied for each of them.
pub(super) enum Message {
    Ordinary(Msg),
    Sharded { name: Vec<u8>, payload: Vec<u8> },
}

impl Message {
    pub(super) fn name(&self) -> &[u8] {
        match self {
            Self::Ordinary(message) => message.get_channel_name().as_bytes(),
            Self::Sharded { name, .. } => name,
        }
    }

    pub(super) fn payload(&self) -> &[u8] {
        match self {
            Self::Ordinary(message) => message.get_payload_bytes(),
            Self::Sharded { payload, .. } => payload,
        }
    }
}

/// Messages of a connection to the owner of a slot on their way from the crate's task.
pub(super) struct Incoming {
    /// None: the connection is over.
    sender: Mutex<Option<UnboundedSender<Message>>>,
    /// Bytes of those that wait.
    waiting: AtomicUsize,
    /// Why it is over.
    end: OnceLock<&'static str>,
    /// A name in the slot that is always subscribed.
    own: Box<[u8]>,
}

/// Bytes of messages that may wait on their way from the crate. Beyond that the connection ends, and what was
/// missed is read.
const WAITING_BYTES_MAX: usize = 64 << 20;

impl Incoming {
    /// The crate has read this: it does not block.
    fn push(&self, push: PushInfo) {
        let PushInfo { kind, data } = push;
        let mut data = data.into_iter();
        let name = match data.next() {
            Some(Value::BulkString(name)) => name,
            _ => Vec::new(),
        };
        match kind {
            PushKind::SMessage => {
                let Some(Value::BulkString(payload)) = data.next() else { return };
                let bytes = name.len() + payload.len();
                if self.waiting.fetch_add(bytes, Ordering::Relaxed) > WAITING_BYTES_MAX {
                    return self.end("messages come faster than they are handled");
                }
                if let Some(sender) = &*self.sender.lock().unwrap_or_else(PoisonError::into_inner) {
                    let _ = sender.send(Message::Sharded { name, payload });
                }
            }
            // It was not requested: the node owns the slot no longer.
            PushKind::SUnsubscribe if *name == *self.own => {
                self.end("the slot of its channels has moved to another node");
            }
            PushKind::Disconnection => self.end("closed by the server"),
            _ => {}
        }
    }

    fn end(&self, why: &'static str) {
        let _ = self.end.set(why);
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Subscriptions {
    /// Connects. An `attempt` of its own goes to another node of a Cluster.
    pub(super) async fn connect(
        server: &Server,
        attempt: usize,
    ) -> Result<(Self, Messages), Unreachable> {
        let client = server.client(attempt).await?;
        let (sink, stream) = client.get_async_pubsub().await?.split();
        Ok((Self::Ordinary(sink), Messages::Ordinary(stream)))
    }

    /// Connects to the node of a Cluster that owns the slot of a name, and learns which nodes are `known`. An
    /// `attempt` of its own asks another node for the owner.
    pub(super) async fn connect_to_owner(
        (server, known): (&Server, &RefCell<Vec<Address>>),
        name: &str,
        attempt: usize,
        io_timeout: Duration,
    ) -> Result<(Self, Messages), Unreachable> {
        let Server::Cluster { seeds, access } = server else {
            return Err(Unreachable::Useless("it is no Redis Cluster".into()));
        };
        let asked = {
            let known = known.borrow();
            let all: Vec<&Address> = seeds.iter().chain(&*known).collect();
            (*all[attempt % all.len()]).clone()
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(io_timeout));
        let mut connection =
            access.client(&asked)?.get_multiplexed_async_connection_with_config(&config).await?;
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let owners = owners(&reply(command.query_async(&mut connection).await?), &asked);
        let slot = slot(name.as_bytes());
        let owner = owners.iter().find(|owned| owned.slots.contains(&slot));
        let Some(owner) = owner.map(|owned| owned.master.clone()) else {
            return Err(Unreachable::Useless(format!("no node of the Cluster owns slot {slot}")));
        };
        let mut masters: Vec<Address> = owners.into_iter().map(|owned| owned.master).collect();
        masters.sort();
        masters.dedup();
        known.replace(masters);

        let (sender, receiver) = unbounded_channel();
        let incoming = Arc::new(Incoming {
            sender: Mutex::new(Some(sender)),
            waiting: AtomicUsize::new(0),
            end: OnceLock::new(),
            own: name.as_bytes().into(),
        });
        let pushes = incoming.clone();
        let take = move |push: PushInfo| -> Result<(), ()> {
            pushes.push(push);
            Ok(())
        };
        let config = config.set_push_sender(take);
        let connection =
            access.client(&owner)?.get_multiplexed_async_connection_with_config(&config).await?;
        Ok((Self::Sharded(connection), Messages::Sharded(receiver, incoming)))
    }

    /// Subscribes to all of these names.
    pub(super) fn subscribe(
        &self,
        names: Vec<String>,
    ) -> LocalBoxFuture<'static, Result<(), Unreachable>> {
        match self {
            Self::Ordinary(sink) => {
                let mut sink = sink.clone();
                Box::pin(async move { Ok(sink.subscribe(names).await?) })
            }
            Self::Sharded(connection) => {
                Box::pin(change_sharded(connection.clone(), "SSUBSCRIBE", names))
            }
        }
    }

    /// Unsubscribes from all of these names.
    pub(super) fn unsubscribe(
        &self,
        names: Vec<String>,
    ) -> LocalBoxFuture<'static, Result<(), Unreachable>> {
        match self {
            Self::Ordinary(sink) => {
                let mut sink = sink.clone();
                Box::pin(async move { Ok(sink.unsubscribe(names).await?) })
            }
            Self::Sharded(connection) => {
                Box::pin(change_sharded(connection.clone(), "SUNSUBSCRIBE", names))
            }
        }
    }
}

/// A command for each name, since an error takes the place of all confirmations of a command: with several names
/// in one the others would be waited for.
async fn change_sharded(
    mut connection: MultiplexedConnection,
    command: &'static str,
    names: Vec<String>,
) -> Result<(), Unreachable> {
    let mut pipeline = redis::Pipeline::with_capacity(names.len());
    for name in &names {
        pipeline.cmd(command).arg(name);
    }
    let values = connection.send_packed_commands(&pipeline, 0, names.len()).await?;
    let mut errors = values.into_iter().map(reply).filter_map(|reply| match reply {
        Reply::Error(text) => Some(Unreachable::Useless(text)),
        _ => None,
    });
    errors.next().map_or(Ok(()), Err)
}

impl Messages {
    /// Why there are no more.
    pub(super) fn end(&self) -> Unreachable {
        let why = match self {
            Self::Ordinary(_) => None,
            Self::Sharded(_, incoming) => incoming.end.get(),
        };
        why.map_or(Unreachable::Closed, |why| Unreachable::Useless((*why).into()))
    }
}

impl Stream for Messages {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut *self {
            Self::Ordinary(stream) => {
                Pin::new(stream).poll_next(context).map(|message| message.map(Message::Ordinary))
            }
            Self::Sharded(receiver, incoming) => receiver.poll_recv(context).map(|message| {
                let message = message?;
                let bytes = message.name().len() + message.payload().len();
                incoming.waiting.fetch_sub(bytes, Ordering::Relaxed);
                Some(message)
            }),
        }
    }
}
