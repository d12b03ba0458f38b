//! The methods themselves. Each gives its result as JSON.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::oneshot::Receiver;

use super::Api;
use super::wire::{self, ApiError, Outcome, Published};
use crate::base::id::ShardId;
use crate::base::limits::{API_LARGE_ANSWER_CREDITS, WEB_ANSWER_BYTES_MAX};
use crate::base::tags::Tags;
use crate::edge::channels::{ChannelRules, NameFault, Namespace, OWN_CHANNEL};
use crate::edge::glob::Glob;
use crate::edge::jwt::Overrides;
use crate::hub::history::{Page, Since};
use crate::node::desk::Busy;
use crate::proto::client::{self, Encoding, ErrorCode};
use crate::session::ServerSub;
use crate::shard::mail::{
    Act, Answer, Asker, Inspect, Inspected, List, Mail, Order, Publish, PublishOptions, Read,
    Reading,
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
        true => serde_json::from_str(params).map_err(|_| BadParams),
        false => Err(BadParams),
    }
}

/// Not JSON, or not of the types that the method has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadParams;

/// What came of a call: the result's JSON or an error; or the parameters are no such.
pub(super) type Called = std::result::Result<Result<String>, BadParams>;

fn written<T: Serialize>(result: Result<T>) -> Called {
    Ok(result.and_then(|result| serde_json::to_string(&result).map_err(|_| ApiError::INTERNAL)))
}

/// Payload given as JSON or, when that is not empty, in base64.
fn payload(json: Option<&RawValue>, b64: &str) -> Result<Box<[u8]>> {
    if b64.is_empty() {
        return Ok(json.map_or("", |json| json.get()).as_bytes().into());
    }
    STANDARD.decode(b64).map(Vec::into).map_err(|_| ApiError::BAD_REQUEST)
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

impl Api {
    /// Calls a method by its name; `None` when there is none.
    pub(super) async fn call(&self, method: &str, params: &str) -> Option<Called> {
        Some(match method {
            "publish" => self.publish(params).await,
            "broadcast" => self.broadcast(params).await,
            "subscribe" => self.subscribe(params).await,
            "unsubscribe" => self.unsubscribe(params).await,
            "disconnect" => self.disconnect(params).await,
            "refresh" => self.refresh(params).await,
            "presence" => self.presence(params, Reading::Presence).await,
            "presence_stats" => self.presence(params, Reading::PresenceStats).await,
            "history" => self.history(params).await,
            "history_remove" => self.history_remove(params).await,
            "channels" => self.channels(params).await,
            "info" => written(Ok(self.info())),
            "rpc" => Self::rpc(params),
            "map_publish" | "map_remove" => self.keyed(params, true),
            "map_read_state" | "map_read_stream" | "map_stats" | "map_clear" => {
                self.keyed(params, false)
            }
            "shared_poll_publish" => self.shared_poll(params),
            _ => return None,
        })
    }

    async fn publish(&self, params: &str) -> Called {
        let content: wire::Content<'_> = parse(params)?;
        let wire::Channel { channel } = parse(params)?;
        let asked = match self.begin_publish(&channel, &content) {
            Ok(asked) => asked,
            Err(error) => return Ok(Err(error)),
        };
        written(published(asked).await)
    }

    async fn broadcast(&self, params: &str) -> Called {
        let content: wire::Content<'_> = parse(params)?;
        let wire::Channels { channels } = parse(params)?;
        if channels.is_empty() {
            return Ok(Err(ApiError::BAD_REQUEST));
        }
        let mut responses: Vec<Outcome<Published>> = Vec::with_capacity(channels.len());
        for channels in channels.chunks(PARALLEL_MAX) {
            let asked: Vec<_> =
                channels.iter().map(|channel| self.begin_publish(channel, &content)).collect();
            for asked in asked {
                let response = match asked {
                    Ok(asked) => published(asked).await,
                    Err(error) => Err(error),
                };
                responses.push(response.into());
            }
        }
        written(Ok(json!({ "responses": responses })))
    }

    /// Hands a publication to the channel's home.
    fn begin_publish(&self, channel: &str, content: &wire::Content<'_>) -> Result<Receiver<Mail>> {
        let rules = self.node.rules.channels.load();
        let namespace = namespace(&rules, channel)?;
        let data = payload(content.data, &content.b64data)?;
        if !namespace.data_format.accepts(&data) {
            return Err(ApiError::BAD_REQUEST);
        }
        let is_json = content.b64data.is_empty() || client::is_json(&data);
        let tags = content.tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let tags = if content.tags.is_empty() { Box::default() } else { Tags::pack(tags) };
        let options = PublishOptions {
            skip_history: content.skip_history,
            delta: content.delta,
            idempotency_key: content.idempotency_key.as_str().into(),
            version: content.version,
            version_epoch: content.version_epoch.as_str().into(),
        };
        let (hash, namespace) = (self.node.names.hash(channel), namespace.index);
        let options = (options != PublishOptions::default()).then(|| Box::new(options));
        let asked = self.desk.ask(self.node.names.home(hash), 1, |asker| {
            Mail::Publish(Box::new(Publish {
                channel: channel.into(),
                hash,
                namespace,
                asker: Some(asker),
                data,
                info: Box::default(),
                tags,
                is_json,
                options,
            }))
        });
        Ok(asked?)
    }

    async fn subscribe(&self, params: &str) -> Called {
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
        } = parse(params)?;
        let since = recover_since
            .map(|wire::Since { offset, epoch }| Since { offset, epoch: epoch.into() });
        let sub = || {
            let rules = self.node.rules.channels.load();
            let namespace = namespace(&rules, &channel)?.index;
            let value = |setting: Option<wire::Setting>| setting.map(|setting| setting.value);
            let wire::Overrides { presence, join_leave, .. } = r#override;
            let overrides = Overrides {
                presence: value(presence),
                join_leave: value(join_leave),
                force_recovery: value(r#override.force_recovery),
                force_positioning: value(r#override.force_positioning),
                force_push_join_leave: value(r#override.force_push_join_leave),
            };
            Ok(ServerSub {
                channel: channel.as_str().into(),
                namespace,
                info: payload(info, &b64info)?,
                data: payload(data, &b64data)?,
                overrides,
                since: since.clone(),
                expires: Some(expire_at).filter(|at| *at > 0),
                ..ServerSub::default()
            })
        };
        match sub() {
            Ok(sub) => self.order(user, client, session, Act::Subscribe(Box::new(sub))).await,
            Err(error) => Ok(Err(error)),
        }
    }

    async fn unsubscribe(&self, params: &str) -> Called {
        let wire::Unsubscribe { channel, user, client, session } = parse(params)?;
        if !channel.is_empty() {
            let rules = self.node.rules.channels.load();
            if let Err(error) = namespace(&rules, &channel) {
                return Ok(Err(error));
            }
        }
        let act = Act::Unsubscribe { channel: channel.into() };
        self.order(user, client, session, act).await
    }

    async fn disconnect(&self, params: &str) -> Called {
        let wire::Disconnect { user, disconnect, client, whitelist, session } = parse(params)?;
        let force = client::Disconnect::ForceDisconnect;
        let (code, reason) = match disconnect {
            None | Some(wire::Reason { code: 0, .. }) => (force.code(), force.reason().into()),
            // What a close frame can say, and clients know what to do about.
            Some(wire::Reason { code: code @ 3000..=4999, reason })
                if reason.len() <= REASON_BYTES_MAX =>
            {
                (code as u16, CompactString::from(reason))
            }
            Some(_) => return Ok(Err(ApiError::BAD_REQUEST)),
        };
        let spare = whitelist.into_iter().map(CompactString::from).collect();
        self.order(user, client, session, Act::Disconnect { code, reason, spare }).await
    }

    async fn refresh(&self, params: &str) -> Called {
        let wire::Refresh { user, client, expired, expire_at, session, info, b64info } =
            parse(params)?;
        let info = match payload(info, &b64info) {
            Ok(info) => info,
            Err(error) => return Ok(Err(error)),
        };
        self.order(user, client, session, Act::Refresh { expired, expire_at, info }).await
    }

    /// Tells all shards what to do with a user's connections, and waits until all have done it.
    async fn order(&self, user: String, client: String, session: String, act: Act) -> Called {
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
        let mut done = Ok(json!({}));
        for asked in asked {
            match asked {
                Ok(asked) => _ = asked.await,
                Err(busy) => done = Err(busy.into()),
            }
        }
        written(done)
    }

    async fn presence(&self, params: &str, what: Reading) -> Called {
        let wire::Channel { channel } = parse(params)?;
        Ok(self.read(&channel, what, |namespace| namespace.presence).await)
    }

    async fn history(&self, params: &str) -> Called {
        let wire::History { channel, limit, since, reverse } = parse(params)?;
        let since =
            since.map(|wire::Since { offset, epoch }| Since { offset, epoch: epoch.into() });
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let page = Page { since, limit, reverse };
        Ok(self.read(&channel, Reading::History(page), Namespace::has_history).await)
    }

    async fn history_remove(&self, params: &str) -> Called {
        let wire::Channel { channel } = parse(params)?;
        Ok(self.read(&channel, Reading::Drop, Namespace::has_history).await)
    }

    /// Asks a channel's home for something, where its namespace has such a thing.
    async fn read(
        &self,
        channel: &str,
        what: Reading,
        has: impl FnOnce(&Namespace) -> bool,
    ) -> Result<String> {
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
                    bytes_max: WEB_ANSWER_BYTES_MAX,
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
            Answer::Error(code) => Err(code.into()),
            Answer::Unfit => Err(ApiError::NOT_JSON),
        }
    }

    async fn channels(&self, params: &str) -> Called {
        let wire::Pattern { pattern } = parse(params)?;
        let glob = match (pattern.as_str(), Glob::new(&pattern)) {
            ("", _) => None,
            (_, Ok(glob)) => Some(glob),
            (_, Err(_)) => return Ok(Err(ApiError::BAD_REQUEST)),
        };
        #[derive(Serialize)]
        struct Clients {
            num_clients: u32,
        }
        let mut channels = BTreeMap::new();
        for shard in self.desk.shards() {
            let mut next = Some(0);
            while let Some(cursor) = next {
                let list = |asker: Asker| Mail::List(List { asker, cursor });
                let asked = match self.desk.ask(shard, API_LARGE_ANSWER_CREDITS, list) {
                    Ok(asked) => asked,
                    Err(busy) => return Ok(Err(busy.into())),
                };
                let Ok(Mail::Listed { listed, .. }) = asked.await else {
                    return Ok(Err(ApiError::INTERNAL));
                };
                next = listed.next;
                let is_wanted = |name: &str| {
                    name != OWN_CHANNEL && glob.as_ref().is_none_or(|glob| glob.matches(name))
                };
                let wanted = listed.channels.into_iter().filter(|(name, _)| is_wanted(name));
                channels.extend(
                    wanted.map(|(name, num_clients)| (String::from(name), Clients { num_clients })),
                );
            }
        }
        #[derive(Serialize)]
        struct Listing {
            channels: BTreeMap<String, Clients>,
        }
        written(Ok(Listing { channels }))
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

    /// What this node is and holds. Users are summed over shards: one with connections on several
    /// counts once on each.
    fn info(&self) -> serde_json::Value {
        let counters = &self.node.counters;
        let sum =
            |of: fn(&crate::shard::ShardCounters) -> u64| counters.iter().map(of).sum::<u64>();
        let homes = sum(|shard| shard.channels_home.get());
        let node = json!({
            "uid": self.uid,
            "name": self.name,
            "version": env!("CARGO_PKG_VERSION"),
            "num_clients": self.node.clients.load(Ordering::Relaxed),
            "num_users": sum(|shard| shard.users.get()),
            "num_channels": homes.saturating_sub(sum(|shard| shard.channels_idle.get())),
            "num_subs": sum(|shard| shard.subscriptions.get()),
            "uptime": self.started.elapsed().as_secs(),
        });
        json!({ "nodes": [node] })
    }

    /// There are no extensions.
    fn rpc(params: &str) -> Called {
        let wire::Rpc { method } = parse(params)?;
        Ok(Err(if method.is_empty() { ApiError::BAD_REQUEST } else { ApiError::NOT_FOUND }))
    }

    /// Maps: no namespace here is one.
    fn keyed(&self, params: &str, has_key: bool) -> Called {
        let wire::Keyed { channel, key, .. } = parse(params)?;
        if has_key && key.is_empty() {
            return Ok(Err(ApiError::BAD_REQUEST));
        }
        let rules = self.node.rules.channels.load();
        Ok(Err(namespace(&rules, &channel).err().unwrap_or(ApiError::BAD_REQUEST)))
    }

    /// Polled channels: no namespace here is one.
    fn shared_poll(&self, params: &str) -> Called {
        let wire::Keyed { key, version, .. } = parse(params)?;
        match key.is_empty() || version == 0 {
            true => Ok(Err(ApiError::BAD_REQUEST)),
            false => self.keyed(params, true),
        }
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
        _ => Err(ApiError::INTERNAL),
    }
}

/// Channels of a broadcast, or commands of a batch, that are on their way at a time.
pub(super) const PARALLEL_MAX: usize = 1024;

/// A close frame's reason at most (RFC 6455 5.5: 125 bytes with the code).
const REASON_BYTES_MAX: usize = 123;
