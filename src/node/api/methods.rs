//! The methods themselves. Each gives its result as JSON.

use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::oneshot::Receiver;

use super::Api;
use super::bounds::{Work, is_nested_deeper};
use super::wire::{self, ApiError, Outcome, Published};
use crate::base::expiry::Expiry;
use crate::base::id::ShardId;
use crate::base::limits::{API_LARGE_ANSWER_CREDITS, API_NESTING_MAX, API_PATTERN_BYTES_MAX};
use crate::base::notices::Reason;
use crate::base::tags::Tags;
use crate::edge::channels::{ChannelRules, NameFault, Namespace, OWN_CHANNEL};
use crate::edge::glob::Glob;
use crate::edge::jwt::Overrides;
use crate::hub::history::{Page, Since};
use crate::node::desk::Busy;
use crate::node::json::flaw;
use crate::node::slices::Slice;
use crate::node::users;
use crate::proto::client::{self, Encoding, ErrorCode};
use crate::session::ServerSub;
use crate::shard::mail::{
    Act, Answer, Asker, Inspect, Inspected, List, ListOf, Mail, Order, Publish, PublishOptions,
    Read, Reading,
};

/// A result or an error, as a method gives it.
pub(super) type Result<T> = std::result::Result<T, ApiError>;

impl From<NameFault> for ApiError {
    fn from(fault: NameFault) -> Self {
        match fault {
            NameFault::Unknown => Self::UNKNOWN_CHANNEL,
            NameFault::TooLong | NameFault::BadName => Self::BAD_REQUEST,
        }
    }
}

impl From<Busy> for ApiError {
    fn from(_: Busy) -> Self {
        Self::BUSY
    }
}

impl From<ErrorCode> for ApiError {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::LimitExceeded => Self::LIMIT_EXCEEDED,
            ErrorCode::NotAvailable => Self::NOT_AVAILABLE,
            ErrorCode::UnrecoverablePosition => Self::UNRECOVERABLE_POSITION,
            ErrorCode::UnknownChannel => Self::UNKNOWN_CHANNEL,
            _ => Self::INTERNAL,
        }
    }
}

/// Parameters that are absent are empty ones.
pub(super) fn parse<'a, T: Deserialize<'a>>(params: &'a str) -> std::result::Result<T, BadParams> {
    let params = if params.is_empty() { "{}" } else { params };
    // An array would do for a struct, too.
    match params.trim_ascii_start().starts_with('{') {
        true => serde_json::from_str(params).map_err(|fault| BadParams(flaw(params, &fault))),
        false => Err(BadParams("no JSON object".to_owned())),
    }
}

/// Not JSON, or not of the types that the method has: what is wrong, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadParams(pub(super) String);

fn written<T: Serialize>(result: &T) -> Result<String> {
    serde_json::to_string(result).map_err(|_| ApiError::INTERNAL)
}

/// Payload given as JSON or, when that is not empty, in base64.
fn payload(json: Option<&RawValue>, b64: &str) -> Result<Box<[u8]>> {
    if b64.is_empty() {
        let json = json.map_or("", |json| json.get());
        return match is_nested_deeper(json, API_NESTING_MAX) {
            true => Err(ApiError::TOO_DEEP),
            false => Ok(json.as_bytes().into()),
        };
    }
    let payload = STANDARD.decode(b64).map_err(|_| ApiError::BAD_REQUEST)?.into_boxed_slice();
    // In base64 it may be JSON as well; where it isn't, brackets in a row mean nothing.
    let is_deep = std::str::from_utf8(&payload)
        .is_ok_and(|text| is_nested_deeper(text, API_NESTING_MAX) && client::is_json(&payload));
    if is_deep { Err(ApiError::TOO_DEEP) } else { Ok(payload) }
}

/// Methods of the old form that have numbers.
const NUMBERED: &[(u32, &str)] = &[
    (0, "publish"),
    (1, "broadcast"),
    (2, "unsubscribe"),
    (3, "disconnect"),
    (4, "presence"),
    (5, "presence_stats"),
    (6, "history"),
    (7, "history_remove"),
    (8, "channels"),
    (9, "info"),
    (10, "rpc"),
    (11, "subscribe"),
    (12, "refresh"),
    (33, "map_publish"),
    (34, "map_remove"),
    (35, "map_read_state"),
    (36, "map_read_stream"),
    (37, "map_stats"),
    (38, "map_clear"),
    (39, "shared_poll_publish"),
];

/// Names of all methods but `batch`.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    NUMBERED.iter().map(|(_, name)| *name)
}

/// The name of a method of the old form.
pub(super) fn name_of(method: &wire::Method) -> Option<&'static str> {
    let found = NUMBERED.iter().find(|(number, name)| match method {
        wire::Method::Number(wanted) => number == wanted,
        wire::Method::Name(wanted) => name.eq_ignore_ascii_case(wanted),
    });
    found.map(|(_, name)| *name)
}

/// A call whose parameters have been read.
#[derive(Debug)]
pub(super) enum Call<'a> {
    Publish(String, wire::Content<'a>),
    Broadcast(Vec<String>, wire::Content<'a>),
    Subscribe(wire::Subscribe<'a>),
    Unsubscribe(wire::Unsubscribe),
    Disconnect(wire::Disconnect),
    Refresh(wire::Refresh<'a>),
    /// Presence, or its counts.
    Presence(String, Reading),
    History(wire::History),
    HistoryRemove(String),
    /// By a pattern.
    Channels(String),
    Info,
    /// By the name of the procedure.
    Rpc(String),
    /// A call to a map, and whether it needs a key.
    Keyed(wire::Keyed, bool),
    SharedPoll(wire::Keyed),
}

impl<'a> Call<'a> {
    /// Reads the parameters of a method; `None` when there is no such method.
    pub(super) fn read(
        method: &str,
        params: &'a str,
    ) -> Option<std::result::Result<Self, BadParams>> {
        let channel = |params| parse(params).map(|wire::Channel { channel }| channel);
        Some(match method {
            "publish" => {
                channel(params).and_then(|channel| Ok(Self::Publish(channel, parse(params)?)))
            }
            // The channels first: a list that is too long ends the reading.
            "broadcast" => parse(params).and_then(|wire::Channels { channels }| {
                Ok(Self::Broadcast(channels.0, parse(params)?))
            }),
            "subscribe" => parse(params).map(Self::Subscribe),
            "unsubscribe" => parse(params).map(Self::Unsubscribe),
            "disconnect" => parse(params).map(Self::Disconnect),
            "refresh" => parse(params).map(Self::Refresh),
            "presence" => channel(params).map(|channel| Self::Presence(channel, Reading::Presence)),
            "presence_stats" => {
                channel(params).map(|channel| Self::Presence(channel, Reading::PresenceStats))
            }
            "history" => parse(params).map(Self::History),
            "history_remove" => channel(params).map(Self::HistoryRemove),
            "channels" => parse(params).map(|wire::Pattern { pattern }| Self::Channels(pattern)),
            "info" => Ok(Self::Info),
            "rpc" => parse(params).map(|wire::Rpc { method }| Self::Rpc(method)),
            "map_publish" | "map_remove" => parse(params).map(|keyed| Self::Keyed(keyed, true)),
            "map_read_state" | "map_read_stream" | "map_stats" | "map_clear" => {
                parse(params).map(|keyed| Self::Keyed(keyed, false))
            }
            "shared_poll_publish" => parse(params).map(Self::SharedPoll),
            _ => return None,
        })
    }

    /// The name of its method, or of the group that it belongs to.
    fn method(&self) -> &'static str {
        match self {
            Self::Publish(..) => "publish",
            Self::Broadcast(..) => "broadcast",
            Self::Subscribe(_) => "subscribe",
            Self::Unsubscribe(_) => "unsubscribe",
            Self::Disconnect(_) => "disconnect",
            Self::Refresh(_) => "refresh",
            Self::Presence(_, Reading::PresenceStats) => "presence_stats",
            Self::Presence(..) => "presence",
            Self::History(_) => "history",
            Self::HistoryRemove(_) => "history_remove",
            Self::Channels(_) => "channels",
            Self::Info => "info",
            Self::Rpc(_) => "rpc",
            Self::Keyed(..) => "map",
            Self::SharedPoll(_) => "shared_poll_publish",
        }
    }

    /// What it amounts to.
    pub(super) fn work(&self) -> Work {
        let (entries, bytes) = match self {
            Self::Publish(_, content) => (0, content.bytes()),
            Self::Broadcast(channels, content) => {
                (channels.len(), channels.len().saturating_mul(content.bytes()))
            }
            Self::Disconnect(disconnect) => (disconnect.whitelist.0.len(), 0),
            _ => (0, 0),
        };
        Work { commands: 1, entries, bytes }
    }
}

impl wire::Content<'_> {
    /// Bytes that each channel gets, about.
    fn bytes(&self) -> usize {
        let tags = self.tags.0.iter().map(|(name, value)| name.len() + value.len());
        let data = self.data.map_or(0, |data| data.get().len()).max(self.b64data.len());
        data + tags.sum::<usize>() + self.idempotency_key.len() + self.version_epoch.len()
    }
}

/// What is published, as it goes to each channel.
struct Publication {
    data: Box<[u8]>,
    is_json: bool,
    tags: Box<[u8]>,
    options: Option<Box<PublishOptions>>,
}

impl Publication {
    fn new(content: &wire::Content<'_>) -> Result<Self> {
        let data = payload(content.data, &content.b64data)?;
        let is_json = content.b64data.is_empty() || client::is_json(&data);
        let tags = content.tags.0.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let tags = if content.tags.0.is_empty() { Box::default() } else { Tags::pack(tags) };
        let options = PublishOptions {
            skip_history: content.skip_history,
            delta: content.delta,
            idempotency_key: content.idempotency_key.as_str().into(),
            version: content.version,
            version_epoch: content.version_epoch.as_str().into(),
        };
        let options = (options != PublishOptions::default()).then(|| Box::new(options));
        Ok(Self { data, is_json, tags, options })
    }
}

impl Api {
    /// Carries a call out. `room` is how long its result may be.
    pub(super) async fn carry_out(&self, call: Call<'_>, room: usize) -> Result<String> {
        let method = call.method();
        let called = self.call(call, room).await;
        if let Err(error) = &called {
            let why = format_args!("{method}: {}", error.message);
            self.refused(Reason::ApiError, error.code.into(), why);
        }
        called
    }

    async fn call(&self, call: Call<'_>, room: usize) -> Result<String> {
        match call {
            Call::Publish(channel, content) => self.publish(&channel, &content).await,
            Call::Broadcast(channels, content) => self.broadcast(&channels, &content).await,
            Call::Subscribe(params) => self.subscribe(params).await,
            Call::Unsubscribe(params) => self.unsubscribe(params).await,
            Call::Disconnect(params) => self.disconnect(params).await,
            Call::Refresh(params) => self.refresh(params).await,
            Call::Presence(channel, what) => {
                self.read(&channel, what, room, |namespace| namespace.presence).await
            }
            Call::History(params) => self.history(params, room).await,
            Call::HistoryRemove(channel) => {
                self.read(&channel, Reading::Drop, room, Namespace::has_history).await
            }
            Call::Channels(pattern) => self.channels(&pattern, room).await,
            Call::Info => written(&self.info().await?),
            Call::Rpc(method) => Self::rpc(&method),
            Call::Keyed(params, has_key) => self.keyed(&params, has_key),
            Call::SharedPoll(params) => self.shared_poll(&params),
        }
    }

    async fn publish(&self, channel: &str, content: &wire::Content<'_>) -> Result<String> {
        let asked = self.begin_publish(channel, &Publication::new(content)?)?;
        written(&published(asked).await?)
    }

    async fn broadcast(&self, channels: &[String], content: &wire::Content<'_>) -> Result<String> {
        if channels.is_empty() {
            return Err(ApiError::BAD_REQUEST);
        }
        let publication = Publication::new(content)?;
        let at_once = (BROADCAST_SLICE_BYTES / content.bytes().max(1)).clamp(1, PARALLEL_MAX);
        let mut result = String::from(r#"{"responses":["#);
        for channels in channels.chunks(at_once) {
            let asked: Vec<_> =
                channels.iter().map(|channel| self.begin_publish(channel, &publication)).collect();
            for asked in asked {
                let response: Outcome<Published> = match asked {
                    Ok(asked) => published(asked).await,
                    Err(error) => Err(error),
                }
                .into();
                if !result.ends_with('[') {
                    result.push(',');
                }
                result.push_str(&written(&response)?);
            }
            // Where all were refused nothing above has waited.
            tokio::task::yield_now().await;
        }
        result.push_str("]}");
        Ok(result)
    }

    /// Hands a publication to the channel's home.
    fn begin_publish(&self, channel: &str, publication: &Publication) -> Result<Receiver<Mail>> {
        let Publication { data, is_json, tags, options } = publication;
        let rules = self.node.rules.channels.load();
        let namespace = namespace(&rules, channel)?;
        self.has_memory()?;
        if !namespace.data_format.accepts(data) {
            return Err(ApiError::BAD_REQUEST);
        }
        let (hash, namespace) = (self.node.names.hash(channel), namespace.index);
        let asked = self.desk.ask(self.node.names.home(hash), 1, |asker| {
            Mail::Publish(Box::new(Publish {
                channel: channel.into(),
                hash,
                namespace,
                asker: Some(asker),
                data: data.clone(),
                info: Box::default(),
                tags: tags.clone(),
                is_json: *is_json,
                options: options.clone(),
            }))
        });
        Ok(asked?)
    }

    /// What may be refused for want of memory.
    fn has_memory(&self) -> Result<()> {
        match self.node.memory.is_short() {
            true => Err(ApiError::SHORT),
            false => Ok(()),
        }
    }

    async fn subscribe(&self, params: wire::Subscribe<'_>) -> Result<String> {
        let wire::Subscribe {
            channel,
            user,
            b64info,
            client,
            b64data,
            recover_since,
            r#override,
            session,
            info,
            data,
            expire_at,
        } = params;
        self.has_memory()?;
        let namespace = namespace(&self.node.rules.channels.load(), &channel)?.index;
        let value = |setting: Option<wire::Setting>| setting.map(|setting| setting.value);
        let wire::Overrides { presence, join_leave, .. } = r#override;
        let overrides = Overrides {
            presence: value(presence),
            join_leave: value(join_leave),
            force_recovery: value(r#override.force_recovery),
            force_positioning: value(r#override.force_positioning),
            force_push_join_leave: value(r#override.force_push_join_leave),
        };
        let sub = ServerSub {
            channel: channel.as_str().into(),
            namespace,
            info: payload(info, &b64info)?,
            data: payload(data, &b64data)?,
            overrides,
            since: recover_since
                .map(|wire::Since { offset, epoch }| Since { offset, epoch: epoch.into() }),
            expires: Expiry::of_positive(expire_at),
            ..ServerSub::default()
        };
        self.order(user, client, session, Act::Subscribe(Box::new(sub))).await
    }

    async fn unsubscribe(&self, params: wire::Unsubscribe) -> Result<String> {
        let wire::Unsubscribe { channel, user, client, session } = params;
        if !channel.is_empty() {
            namespace(&self.node.rules.channels.load(), &channel)?;
        }
        let act = Act::Unsubscribe { channel: channel.into() };
        self.order(user, client, session, act).await
    }

    async fn disconnect(&self, params: wire::Disconnect) -> Result<String> {
        let wire::Disconnect { user, disconnect, client, whitelist, session } = params;
        let force = client::Disconnect::ForceDisconnect;
        let (code, reason) = match disconnect {
            None | Some(wire::Reason { code: 0, .. }) => (force.code(), force.reason().into()),
            // What a close frame can say, and clients know what to do about.
            Some(wire::Reason { code: code @ 3000..=4999, reason })
                if reason.len() <= REASON_BYTES_MAX =>
            {
                (code as u16, CompactString::from(reason))
            }
            Some(_) => return Err(ApiError::BAD_REQUEST),
        };
        let mut spare: Vec<_> = whitelist.0.into_iter().map(CompactString::from).collect();
        spare.sort_unstable();
        self.order(user, client, session, Act::Disconnect { code, reason, spare }).await
    }

    async fn refresh(&self, params: wire::Refresh<'_>) -> Result<String> {
        let wire::Refresh { user, client, expired, expire_at, session, info, b64info } = params;
        let info = payload(info, &b64info)?;
        self.order(user, client, session, Act::Refresh { expired, expire_at, info }).await
    }

    /// Tells all shards what to do with a user's connections, and waits until all have done it.
    async fn order(
        &self,
        user: String,
        client: String,
        session: String,
        act: Act,
    ) -> Result<String> {
        let (user, client) = (CompactString::from(user), CompactString::from(client));
        let session = CompactString::from(session);
        let ask = |shard: ShardId| {
            let (user, client, session, act) =
                (user.clone(), client.clone(), session.clone(), act.clone());
            self.desk.ask(shard, 1, |asker| {
                Mail::Order(Box::new(Order { asker, user, client, session, act }))
            })
        };
        let asked: Vec<_> = self.desk.shards().map(ask).collect();
        let mut done = Ok("{}".to_owned());
        for asked in asked {
            match asked {
                Ok(asked) => _ = asked.await,
                Err(busy) => done = Err(busy.into()),
            }
        }
        done
    }

    async fn history(&self, params: wire::History, room: usize) -> Result<String> {
        let wire::History { channel, limit, since, reverse } = params;
        let since =
            since.map(|wire::Since { offset, epoch }| Since { offset, epoch: epoch.into() });
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let page = Page { since, limit, reverse };
        self.read(&channel, Reading::History(page), room, Namespace::has_history).await
    }

    /// Asks a channel's home for something, where its namespace has such a thing.
    async fn read(
        &self,
        channel: &str,
        what: Reading,
        room: usize,
        has: impl FnOnce(&Namespace) -> bool,
    ) -> Result<String> {
        let Ok(_place) = self.reads.acquire().await else { return Err(ApiError::INTERNAL) };
        let asked = {
            let rules = self.node.rules.channels.load();
            let namespace = namespace(&rules, channel)?;
            if !has(namespace) {
                return Err(ApiError::NOT_AVAILABLE);
            }
            let (hash, namespace) = (self.node.names.hash(channel), namespace.index);
            self.desk.ask(self.node.names.home(hash), API_LARGE_ANSWER_CREDITS, |asker| {
                Mail::Read(Box::new(Read {
                    channel: channel.into(),
                    hash,
                    namespace,
                    asker,
                    encoding: Encoding::Json,
                    bytes_max: room,
                    what,
                }))
            })?
        };
        let Ok(Mail::Answer { answer, .. }) = asked.await else { return Err(ApiError::INTERNAL) };
        match answer {
            Answer::Presence(body) | Answer::History(body) => {
                String::from_utf8(body.bytes().to_vec()).map_err(|_| ApiError::INTERNAL)
            }
            Answer::PresenceStats(clients, users) => {
                Ok(format!(r#"{{"num_clients":{clients},"num_users":{users}}}"#))
            }
            Answer::Done => Ok("{}".to_owned()),
            Answer::Error(failure) => Err(failure.code.into()),
            Answer::Unfit => Err(ApiError::NOT_JSON),
        }
    }

    async fn channels(&self, pattern: &str, room: usize) -> Result<String> {
        let glob = match pattern {
            "" => None,
            pattern if pattern.len() > API_PATTERN_BYTES_MAX => return Err(ApiError::LONG_PATTERN),
            pattern => Some(Glob::new(pattern).map_err(|_| ApiError::BAD_REQUEST)?),
        };
        let mut channels = Listing::new(room);
        let mut slice = Slice::default();
        for shard in self.desk.shards() {
            let mut next = Some(0);
            while let Some(cursor) = next {
                let list = |asker: Asker| Mail::List(List { asker, cursor, of: ListOf::Channels });
                let asked = self.desk.ask(shard, API_LARGE_ANSWER_CREDITS, list)?;
                let Ok(Mail::Listed { listed, .. }) = asked.await else {
                    return Err(ApiError::INTERNAL);
                };
                next = listed.next;
                for (name, num_clients) in listed.channels {
                    // A comparison takes steps for each character of both.
                    slice.spend(name.len() * (1 + pattern.len() / PATTERN_BYTES_A_STEP)).await;
                    let is_wanted =
                        name != OWN_CHANNEL && glob.as_ref().is_none_or(|glob| glob.matches(&name));
                    if is_wanted && !channels.add(name, num_clients) {
                        return Err(ApiError::TOO_LONG);
                    }
                }
            }
        }
        channels.written(&mut slice).await
    }

    /// Connections of a user, by shard.
    pub(in crate::node) async fn connections(&self, user: &str) -> Result<Vec<Inspected>> {
        let mut all = Vec::new();
        for shard in self.desk.shards() {
            let inspect = |asker| Mail::Inspect(Box::new(Inspect { asker, user: user.into() }));
            let asked = self.desk.ask(shard, API_LARGE_ANSWER_CREDITS, inspect)?;
            let Ok(Mail::Inspected { inspected, .. }) = asked.await else {
                return Err(ApiError::INTERNAL);
            };
            all.push(*inspected);
        }
        Ok(all)
    }

    /// What this node is and holds.
    async fn info(&self) -> Result<serde_json::Value> {
        let counters = &self.node.counters;
        let sum =
            |of: fn(&crate::shard::ShardCounters) -> u64| counters.iter().map(of).sum::<u64>();
        let homes = sum(|shard| shard.channels_home.get());
        // What was counted since the start, which is the interval; gauges as they are.
        let mut items = std::collections::BTreeMap::new();
        for shard in counters {
            shard.each(|name, value| *items.entry(name).or_insert(0u64) += value);
        }
        let node = json!({
            "uid": self.uid,
            "name": self.name,
            "version": env!("CARGO_PKG_VERSION"),
            "num_clients": self.node.clients.load(Ordering::Relaxed),
            "num_users": users::count(&self.node, &self.desk).await?,
            "num_channels": homes.saturating_sub(sum(|shard| shard.channels_idle.get())),
            "num_subs": sum(|shard| shard.subscriptions.get()),
            "uptime": self.started.elapsed().as_secs(),
            "metrics": { "interval": self.started.elapsed().as_secs_f64(), "items": items },
        });
        Ok(json!({ "nodes": [node] }))
    }

    /// There are no extensions.
    fn rpc(method: &str) -> Result<String> {
        Err(if method.is_empty() { ApiError::BAD_REQUEST } else { ApiError::NOT_FOUND })
    }

    /// Maps: no namespace here is one.
    fn keyed(&self, params: &wire::Keyed, has_key: bool) -> Result<String> {
        let wire::Keyed { channel, key, .. } = params;
        if !has_key || !key.is_empty() {
            namespace(&self.node.rules.channels.load(), channel)?;
        }
        Err(ApiError::BAD_REQUEST)
    }

    /// Polled channels: no namespace here is one.
    fn shared_poll(&self, params: &wire::Keyed) -> Result<String> {
        match params.version {
            0 => Err(ApiError::BAD_REQUEST),
            _ => self.keyed(params, true),
        }
    }
}

/// Channels for an answer whose length is known before it is made.
struct Listing {
    channels: Vec<(CompactString, u32)>,
    /// Bytes that they take.
    bytes: usize,
    room: usize,
}

impl Listing {
    fn new(room: usize) -> Self {
        Self { channels: Vec::new(), bytes: 0, room }
    }

    /// Adds one; false when the answer would be too long.
    #[must_use]
    fn add(&mut self, name: CompactString, num_clients: u32) -> bool {
        self.bytes += name.len() + LISTED_BYTES;
        self.channels.push((name, num_clients));
        self.bytes <= self.room
    }

    /// As JSON, in the order of names.
    async fn written(mut self, slice: &mut Slice) -> Result<String> {
        self.channels.sort_unstable();
        let mut result = String::with_capacity(self.bytes + LISTED_BYTES);
        result.push_str(r#"{"channels":{"#);
        for (at, (name, num_clients)) in self.channels.iter().enumerate() {
            slice.spend(name.len() + LISTED_BYTES).await;
            let comma = if at > 0 { "," } else { "" };
            let name = written(name)?;
            let member = format!(r#"{comma}{name}:{{"num_clients":{num_clients}}}"#);
            result.push_str(&member);
            // Characters that are escaped take more than they were counted for.
            if result.len() > self.room {
                return Err(ApiError::TOO_LONG);
            }
        }
        result.push_str("}}");
        Ok(result)
    }
}

/// The namespace of a channel that a call names.
fn namespace<'n>(rules: &'n ChannelRules, channel: &str) -> Result<&'n Namespace> {
    if channel.is_empty() {
        return Err(ApiError::BAD_REQUEST);
    }
    rules.check_length(channel)?;
    Ok(rules.resolve_trusted(channel)?)
}

/// Waits until the home has taken a publication.
async fn published(asked: Receiver<Mail>) -> Result<Published> {
    match asked.await {
        Ok(Mail::Published { position, .. }) => {
            let epoch = position.epoch.map(|epoch| epoch.as_str().to_owned());
            Ok(Published { offset: position.offset, epoch: epoch.unwrap_or_default() })
        }
        // History has no room for it.
        Ok(Mail::Answer { .. }) => Err(ApiError::SHORT),
        _ => Err(ApiError::INTERNAL),
    }
}

/// Channels of a broadcast, or commands of a batch, that are on their way at a time.
pub(super) const PARALLEL_MAX: usize = 256;

/// Bytes of a broadcast's publications that are on their way at a time, or one of them.
const BROADCAST_SLICE_BYTES: usize = 1 << 20;

/// Bytes of a channel in a list of them at most, beside its name.
const LISTED_BYTES: usize = 32;

/// Bytes of a pattern that are compared with one character about as fast as one byte is copied.
const PATTERN_BYTES_A_STEP: usize = 4;

/// A close frame's reason at most (RFC 6455 5.5: 125 bytes with the code).
const REASON_BYTES_MAX: usize = 123;
