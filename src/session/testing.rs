//! Facts for unit tests: one namespace without a name, nothing subscribed, tokens of one secret.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::Value;

use crate::base::id::{ConnKey, ShardId};
use crate::base::time::UnixSeconds;
use crate::edge::channels::{ChannelRules, ChannelSyntax, Namespace};
use crate::edge::client_id::ClientIdSealer;
use crate::edge::jwt::{TokenKeys, TokenOptions, sign_hs256};
use crate::edge::proxy::{ProxyOptions, RpcRules};
use crate::hub::local::Locals;
use crate::hub::names::NameHasher;
use crate::proto::client::Encoding;
use crate::session::facts::Facts;
use crate::session::{ClientOptions, Session, SessionFlags, Sub, SubFlags, SubState};

pub(crate) const NOW: UnixSeconds = UnixSeconds(1_700_000_000);

const SECRET: &str = "secret";

/// Everything that facts borrow.
pub(crate) struct Scene {
    pub(crate) channels: ChannelRules,
    pub(crate) client: ClientOptions,
    pub(crate) rpc: ArcSwap<RpcRules>,
    pub(crate) keys: TokenKeys,
    pub(crate) ids: ClientIdSealer,
    pub(crate) names: NameHasher,
    pub(crate) locals: Locals,
    pub(crate) is_short: bool,
    pub(crate) is_reserved: bool,
}

impl Default for Scene {
    fn default() -> Self {
        let options = TokenOptions { hmac_secret_key: SECRET.into(), ..TokenOptions::default() };
        let names = NameHasher::new(1, 1);
        Self {
            channels: channels(Namespace::default()),
            client: client(),
            rpc: ArcSwap::default(),
            keys: TokenKeys::new(&options).unwrap(),
            ids: ClientIdSealer::new(&[7; 32]),
            locals: Locals::new(names.clone()),
            names,
            is_short: false,
            is_reserved: false,
        }
    }
}

impl Scene {
    /// Replaces the one namespace.
    pub(crate) fn namespace(&mut self, set: impl FnOnce(&mut Namespace)) {
        let mut namespace = Namespace::default();
        set(&mut namespace);
        self.channels = channels(namespace);
    }

    /// Subscribes a session; the channel's place.
    pub(crate) fn subscribe(&mut self, session: &mut Session, channel: &str) -> u32 {
        let local = self.locals.find_or_insert(channel, 0);
        let (state, flags) = (SubState::Live, SubFlags::default());
        session.subs.push(Sub { channel: local, place: 0, state, flags });
        local
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            channels: &self.channels,
            client: &self.client,
            rpc: &self.rpc,
            connection_keys: &self.keys,
            subscription_keys: &self.keys,
            ids: &self.ids,
            names: &self.names,
            locals: &self.locals,
            shard: ShardId(0),
            conn: ConnKey { index: 3, generation: std::num::NonZeroU32::MIN },
            encoding: Encoding::Json,
            now: NOW,
            is_short: self.is_short,
            is_reserved: self.is_reserved,
            verdict: None,
        }
    }
}

fn channels(namespace: Namespace) -> ChannelRules {
    ChannelRules::new(namespace, Vec::new(), ChannelSyntax::default())
}

/// Options of clients that a test need not care about: pings are on, nothing is limited.
pub(crate) fn client() -> ClientOptions {
    ClientOptions {
        insecure: false,
        allow_anonymous: false,
        disallow_anonymous_tokens: false,
        user_id_http_header: String::new(),
        ping_interval_ms: Some(25_000),
        pong_timeout_ms: Some(10_000),
        stale_close_delay_ms: None,
        expired_close_delay_ms: 0,
        expired_sub_close_delay_ms: 0,
        channel_limit: 128,
        queue_bytes_max: 1 << 20,
        connection_limit: 0,
        connection_rate_limit: 0,
        user_connection_limit: 0,
        history_publications_max: usize::MAX,
        recovery_publications_max: usize::MAX,
        personal_channel: None,
        include_server_time: false,
        version: String::new(),
        proxies: Default::default(),
        one_way_disconnects: Vec::new(),
        concurrency: 0,
        disconnect_events: false,
    }
}

/// A connected session without subscriptions.
pub(crate) fn session(user: &str) -> Session {
    Session {
        user: user.into(),
        user_links: Default::default(),
        subs: Default::default(),
        extra: None,
        conn: 3,
        due_tick: 0,
        expires: None,
        unanswered: 0,
        flags: SessionFlags::default(),
        software: Default::default(),
        round_trip: Default::default(),
    }
}

/// A token that every scene accepts.
pub(crate) fn token(claims: &Value) -> String {
    sign_hs256(SECRET, claims).unwrap()
}

/// A proxy.
pub(crate) fn proxy() -> Arc<ProxyOptions> {
    Arc::new(ProxyOptions {
        name: "test".into(),
        endpoint: "http://localhost/".into(),
        timeout_ms: 1000,
        http_headers: Vec::new(),
        emulated_headers: Vec::new(),
        static_headers: Vec::new(),
        binary_encoding: false,
        include_connection_meta: false,
        transforms: Vec::new(),
        tls: None,
        concurrency: 1,
        breaker_failures: 0,
        breaker_pause_ms: 0,
    })
}
