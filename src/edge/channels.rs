//! The meaning of a channel's name, and the permissions that its namespace gives a user.
//!
//! Sections named here are those of the client protocol: 13 names, 14 subscribe, 17 presence,
//! 18 publish, 20 server-side subscriptions.

use std::sync::Arc;

use arc_swap::ArcSwap;
use compact_str::CompactString;
use hashbrown::HashMap;
use regex_lite::Regex;
use serde_json::value::RawValue;

use super::jwt::{Overrides, SubscriptionClaims, TokenFault};
use super::proxy::ProxyOptions;
use super::subjects::SubjectRules;
use crate::base::time::UnixSeconds;

/// Options of a namespace, or of the channels without one.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    /// Empty for the channels without a namespace.
    pub name: CompactString,
    /// Place in [`ChannelRules::namespace`]; set by [`ChannelRules::new`].
    pub index: u16,
    /// Publications kept; 0 keeps none, and then offsets are not given out.
    pub history_size: u32,
    /// How long a publication is kept, ms.
    pub history_ttl_ms: u64,
    /// How long offset and epoch are kept after the last publication, ms.
    pub history_meta_ttl_ms: u64,
    /// Positioned subscriptions for clients that request them.
    pub allow_positioning: bool,
    /// Positioned subscriptions for all.
    pub force_positioning: bool,
    /// Recovery for clients that request it.
    pub allow_recovery: bool,
    /// Recovery for all.
    pub force_recovery: bool,
    /// The publications that a subscription with recovery gets back.
    pub recovery_mode: RecoveryMode,
    /// In the mode `cache` the latest publication comes with every subscribe, requested or not.
    pub auto_cache_recover: bool,
    /// Clients may ask for delta (fossil, the only type).
    pub delta_allowed: bool,
    /// Every publish takes part in delta.
    pub delta_publish: bool,
    /// Clients may filter by tags.
    pub allow_tags_filter: bool,
    /// Keep who is here.
    pub presence: bool,
    /// Make join and leave events.
    pub join_leave: bool,
    /// Send them to all subscribers, not only to those that request them.
    pub force_push_join_leave: bool,
    /// The application gets an event when a channel has its first subscriber.
    pub occupied_events: bool,
    /// ... and when the last subscriber has left.
    pub vacated_events: bool,
    /// Read who is here.
    pub allow_presence_for_client: bool,
    /// Read who is here when subscribed.
    pub allow_presence_for_subscriber: bool,
    /// ... and without a user id.
    pub allow_presence_for_anonymous: bool,
    /// Subscribe without a token.
    pub allow_subscribe_for_client: bool,
    /// ... and without a user id.
    pub allow_subscribe_for_anonymous: bool,
    /// Publish from a connection.
    pub allow_publish_for_client: bool,
    /// Publish from a connection that is subscribed.
    pub allow_publish_for_subscriber: bool,
    /// ... and without a user id.
    pub allow_publish_for_anonymous: bool,
    /// Read history; with the next two it also grants positions and recovery on request.
    pub allow_history_for_client: bool,
    /// Read history when subscribed.
    pub allow_history_for_subscriber: bool,
    /// ... and without a user id.
    pub allow_history_for_anonymous: bool,
    /// `room#u1,u2` is for the users listed only.
    pub allow_user_limited_channels: bool,
    /// The expression that the part after the namespace must match, instead of being ASCII.
    pub channel_regex: Option<Regex>,
    /// The allowed data of publications.
    pub data_format: DataFormat,
    /// The policy for publications that a client is too slow for.
    pub slow_policy: SlowPolicy,
    /// Publications wait so long for others to go out with them, ms; 0: not at all.
    pub write_delay_ms: u64,
    /// They go plain also to clients that have agreed on compression.
    pub uncompressed: bool,
    /// Kept publications have the time of their publishing: 4 bytes each.
    pub history_time: bool,
    /// Entries of presence have the time of the subscription: 4 bytes each.
    pub subscribed_at: bool,
    /// The proxy that decides whether a client may subscribe.
    pub subscribe_proxy: Option<Arc<ProxyOptions>>,
    /// The proxy that decides about a client's publications.
    pub publish_proxy: Option<Arc<ProxyOptions>>,
    /// The proxy that renews expiring subscriptions.
    pub sub_refresh_proxy: Option<Arc<ProxyOptions>>,
}

/// The policy for publications that a client is too slow for, `roost.slow_policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlowPolicy {
    /// They wait, up to `client.queue_max_size`; then the client is closed (3008).
    #[default]
    Disconnect,
    /// They wait as well, and then the oldest make room.
    DropOldest,
    /// Of a channel only the newest waits.
    Latest,
}

impl SlowPolicy {
    /// A client may miss some without notice.
    pub fn drops(self) -> bool {
        self != Self::Disconnect
    }
}

/// The format of a publication's data, `publication_data_format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataFormat {
    /// Anything but nothing from the application, JSON from clients: what one of them sends must not
    /// end all subscribers that speak JSON.
    #[default]
    NotEmpty,
    /// A JSON text.
    Json,
    /// A JSON object.
    JsonObject,
    /// Anything.
    Binary,
}

/// The publications that a recovery returns, `force_recovery_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecoveryMode {
    /// All that was missed.
    #[default]
    Stream,
    /// The latest publication.
    Cache,
}

/// Features that a client requests on top of a subscription. None by default, as for server-side
/// subscriptions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Notification of gaps.
    pub positioned: bool,
    /// To get back what it missed.
    pub recoverable: bool,
    /// Join and leave events.
    pub join_leave: bool,
}

/// The features of a subscription, by namespace, token and client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// Gaps are noticed; true with recovery.
    pub positioned: bool,
    /// Missed publications can be recovered.
    pub recoverable: bool,
    /// Gets join and leave pushes.
    pub join_leave: bool,
    /// Is kept as present.
    pub presence: bool,
    /// Makes join and leave events.
    pub announces: bool,
}

/// Namespaces and the rules of names, prepared once.
#[derive(Clone, Debug)]
pub struct ChannelRules {
    /// The channels without a namespace first, the others as configured.
    namespaces: Vec<Namespace>,
    index_by_name: Indices,
    syntax: ChannelSyntax,
    /// Names are subjects of NATS, which can't be any text.
    subjects: Option<Arc<SubjectRules>>,
    /// Some namespace has events about the first and the last subscriber.
    has_state_events: bool,
}

/// Namespaces by name.
type Indices = HashMap<CompactString, u16, foldhash::fast::RandomState>;

/// How names are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelSyntax {
    /// Bytes of a name at most.
    pub length_max: usize,
    /// Begins the name of a channel that needs a token; empty: there are none.
    pub private_prefix: String,
    /// Ends the namespace in a name; empty: there are no namespaces.
    pub namespace_boundary: String,
    /// Begins the list of users in a name; empty: there are no such lists.
    pub user_boundary: String,
    /// Between the users in it; empty: the list is one user.
    pub user_separator: String,
}

impl Default for ChannelSyntax {
    fn default() -> Self {
        Self {
            length_max: 255,
            private_prefix: "$".into(),
            namespace_boundary: ":".into(),
            user_boundary: "#".into(),
            user_separator: ",".into(),
        }
    }
}

/// The fault of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameFault {
    /// Longer than allowed.
    TooLong,
    /// Its namespace is not configured.
    Unknown,
    /// Not ASCII, or not what the namespace's expression wants.
    BadName,
}

impl NameFault {
    /// The protocol's error code.
    pub fn error_code(self) -> u16 {
        match self {
            Self::Unknown => 102,
            Self::TooLong | Self::BadName => 107,
        }
    }
}

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Error 103.
    PermissionDenied(&'static str),
    /// Error 107.
    BadRequest(&'static str),
    /// Error 109: the client should fetch a new token.
    TokenExpired(&'static str),
    /// Error 110: the token is good, the expiry that it sets is past.
    Expired(&'static str),
    /// Disconnect 3500: a token for another user, channel or client.
    InvalidToken(&'static str),
}

impl Refusal {
    /// The protocol's number: an error below 3000, from there a disconnect.
    pub fn code(self) -> u16 {
        match self {
            Self::PermissionDenied(_) => 103,
            Self::BadRequest(_) => 107,
            Self::TokenExpired(_) => 109,
            Self::Expired(_) => 110,
            Self::InvalidToken(_) => 3500,
        }
    }

    /// True when the connection is closed with [`Self::code`] instead of being answered.
    pub fn is_disconnect(self) -> bool {
        self.code() >= 3000
    }
}

/// The client that requests a subscription.
#[derive(Clone, Copy, Debug)]
pub struct Subscriber<'a> {
    /// User id, empty for an anonymous one.
    pub user: &'a str,
    /// Client id of the connection.
    pub client: &'a str,
    /// `client.insecure` is on.
    pub insecure: bool,
}

/// The channel that the node itself publishes its figures in, for those who may administer it. No client,
/// token or application can name it.
pub const OWN_CHANNEL: &str = "roost.admin";

impl ChannelRules {
    /// Prepares the lookup. Names of namespaces are unique and there are at most 65,535 of them:
    /// the configuration checked that; of two with one name the later would be found.
    pub fn new(
        without_namespace: Namespace,
        namespaces: Vec<Namespace>,
        syntax: ChannelSyntax,
    ) -> Self {
        let mut all = vec![without_namespace];
        all.extend(namespaces);
        all.truncate(usize::from(u16::MAX) - 1);
        let own = Namespace { name: OWN_CHANNEL.into(), ..Namespace::default() };
        all.push(own);
        let mut index_by_name = HashMap::default();
        for (index, namespace) in (0u16..).zip(all.iter_mut()) {
            namespace.index = index;
            if index > 0 && namespace.name != OWN_CHANNEL {
                index_by_name.insert(namespace.name.clone(), index);
            }
        }
        Self::of(all, index_by_name, syntax)
    }

    /// These rules, to be shared and replaced.
    pub fn into_shared(self) -> ArcSwap<Self> {
        ArcSwap::from_pointee(self)
    }

    /// These rules in the place of `older` ones, while both may be in use: a namespace that is in both
    /// keeps its number. One that is not here any more keeps it, too, and is found by no name.
    pub fn in_place_of(self, older: &Self) -> Self {
        let mut named: HashMap<CompactString, Namespace, foldhash::fast::RandomState> = self
            .namespaces
            .iter()
            .skip(1)
            .map(|namespace| (namespace.name.clone(), namespace.clone()))
            .collect();
        let mut all = vec![self.namespaces[0].clone()];
        for namespace in &older.namespaces[1..] {
            let gone = || Namespace { name: namespace.name.clone(), ..Namespace::default() };
            all.push(named.remove(&namespace.name).unwrap_or_else(gone));
        }
        // The others in the order in which they were configured.
        all.extend(self.namespaces.iter().skip(1).filter_map(|n| named.remove(&n.name)));
        all.truncate(usize::from(u16::MAX));
        let mut index_by_name = HashMap::default();
        for (index, namespace) in (0u16..).zip(all.iter_mut()) {
            namespace.index = index;
            if self.index_by_name.contains_key(&namespace.name) {
                index_by_name.insert(namespace.name.clone(), index);
            }
        }
        Self { subjects: self.subjects, ..Self::of(all, index_by_name, self.syntax) }
    }

    /// Channels are subjects of NATS: names that are none are bad names.
    #[must_use]
    pub fn with_subjects(self, rules: Option<SubjectRules>) -> Self {
        Self { subjects: rules.map(Arc::new), ..self }
    }

    fn of(namespaces: Vec<Namespace>, index_by_name: Indices, syntax: ChannelSyntax) -> Self {
        let has_state_events = namespaces.iter().any(|of| of.occupied_events || of.vacated_events);
        Self { namespaces, index_by_name, syntax, subjects: None, has_state_events }
    }

    /// The namespace of a channel whose name is good.
    ///
    /// # Errors
    /// In the order of section 14: too long, namespace unknown, bad name. An empty name is the
    /// caller's to refuse (disconnect 3501).
    pub fn resolve(&self, channel: &str) -> Result<&Namespace, NameFault> {
        self.check_length(channel)?;
        let (namespace, rest) = self.find(channel)?;
        let good = match &namespace.channel_regex {
            Some(regex) => regex.is_match(rest),
            None => channel.is_ascii(),
        };
        if !good {
            return Err(NameFault::BadName);
        }
        self.check_carried(namespace, channel)?;
        Ok(namespace)
    }

    /// The broker can carry a channel. One that stands for several has no history of its own.
    fn check_carried(&self, namespace: &Namespace, channel: &str) -> Result<(), NameFault> {
        let Some(rules) = &self.subjects else { return Ok(()) };
        let is_carried =
            rules.carries(channel) && (namespace.history_size == 0 || !rules.is_pattern(channel));
        if is_carried { Ok(()) } else { Err(NameFault::BadName) }
    }

    /// Something can be published to a channel whose name is good: it doesn't stand for several.
    ///
    /// # Errors
    /// [`NameFault::BadName`].
    pub fn check_publishable(&self, channel: &str) -> Result<(), NameFault> {
        match &self.subjects {
            Some(rules) if rules.is_pattern(channel) => Err(NameFault::BadName),
            _ => Ok(()),
        }
    }

    /// The namespace of a channel that the server chose (a token's, the personal one): neither
    /// length nor characters are checked. Section 11.
    ///
    /// # Errors
    /// [`NameFault::Unknown`], and [`NameFault::BadName`] for a name that the broker can't carry.
    pub fn resolve_trusted(&self, channel: &str) -> Result<&Namespace, NameFault> {
        let (namespace, _) = self.find(channel)?;
        self.check_carried(namespace, channel)?;
        Ok(namespace)
    }

    /// The first check alone: between it and the rest of [`Self::resolve`] a subscribe looks
    /// whether the channel is taken (section 14, step 4).
    ///
    /// # Errors
    /// [`NameFault::TooLong`].
    pub fn check_length(&self, channel: &str) -> Result<(), NameFault> {
        if channel.len() > self.syntax.length_max { Err(NameFault::TooLong) } else { Ok(()) }
    }

    /// Some namespace has events about the first and the last subscriber.
    pub fn has_state_events(&self) -> bool {
        self.has_state_events
    }

    /// The namespace with this [`Namespace::index`].
    ///
    /// # Panics
    /// When no namespace of these rules has this index.
    pub fn namespace(&self, index: u16) -> &Namespace {
        &self.namespaces[usize::from(index)]
    }

    /// The namespace of [`OWN_CHANNEL`].
    pub fn own(&self) -> &Namespace {
        let mut all = self.namespaces.iter();
        // It is made with the rules, and stays in those that take their place.
        all.find(|namespace| namespace.name == OWN_CHANNEL).unwrap_or(&self.namespaces[0])
    }

    /// All namespaces, that of the channels without one first; among them that of [`OWN_CHANNEL`].
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// How names are read.
    pub fn syntax(&self) -> &ChannelSyntax {
        &self.syntax
    }

    /// True when a subscription needs a token, whatever the options say.
    pub fn is_private(&self, channel: &str) -> bool {
        let prefix = self.syntax.private_prefix.as_str();
        !prefix.is_empty() && channel.starts_with(prefix)
    }

    /// `None` when the name lists no users, or lists mean nothing in the namespace; else whether
    /// this user is in the list behind the last boundary. An anonymous user is in no list.
    pub fn user_limited_allows(
        &self,
        namespace: &Namespace,
        channel: &str,
        user: &str,
    ) -> Option<bool> {
        let boundary = self.syntax.user_boundary.as_str();
        if !namespace.allow_user_limited_channels || boundary.is_empty() {
            return None;
        }
        let (_, listed) = channel.rsplit_once(boundary)?;
        let separator = self.syntax.user_separator.as_str();
        Some(
            !user.is_empty()
                && match separator {
                    "" => listed == user,
                    _ => listed.split(separator).any(|one| one == user),
                },
        )
    }

    /// May this client subscribe? Section 14, steps 6, 7 (without proxies) and 9. `namespace` is
    /// the result of [`Self::resolve`] for `channel`; `token` is the verdict about the token of the
    /// request, if there is one.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn may_subscribe(
        &self,
        namespace: &Namespace,
        channel: &str,
        subscriber: Subscriber<'_>,
        token: Option<&Result<SubscriptionClaims, TokenFault>>,
        now: UnixSeconds,
    ) -> Result<(), Refusal> {
        match token {
            Some(Ok(claims)) => may_subscribe_by_token(claims, channel, subscriber, now),
            Some(Err(TokenFault::Expired(flaw))) => Err(Refusal::TokenExpired(flaw)),
            Some(Err(TokenFault::Invalid(flaw))) => Err(Refusal::PermissionDenied(flaw)),
            None if self.may_subscribe_unasked(namespace, channel, subscriber) => Ok(()),
            None => {
                let why = self.why_not_unasked(namespace, channel, subscriber);
                Err(Refusal::PermissionDenied(why))
            }
        }
    }

    /// The proxy that decides about a subscription without a token, if one does (section 14, 7 c).
    pub fn subscribe_proxy<'n>(
        &self,
        namespace: &'n Namespace,
        channel: &str,
        user: &str,
    ) -> Option<&'n Arc<ProxyOptions>> {
        let proxy = namespace.subscribe_proxy.as_ref()?;
        let is_limited = self.user_limited_allows(namespace, channel, user).is_some();
        (!is_limited && !self.is_private(channel)).then_some(proxy)
    }

    /// May this client subscribe when neither a token nor a proxy decides? It also decides about
    /// the keys of a connect request's `subs` (section 20). `namespace` is the result of
    /// [`Self::resolve`] for `channel`.
    pub fn may_subscribe_unasked(
        &self,
        namespace: &Namespace,
        channel: &str,
        subscriber: Subscriber<'_>,
    ) -> bool {
        if self.is_private(channel) {
            return false;
        }
        let listed = self.user_limited_allows(namespace, channel, subscriber.user);
        let open = namespace.allow_subscribe_for_client
            && (!subscriber.user.is_empty() || namespace.allow_subscribe_for_anonymous)
            && listed.is_none();
        listed == Some(true) || open || subscriber.insecure
    }

    /// The option that keeps [`Self::may_subscribe_unasked`] from allowing it.
    fn why_not_unasked(
        &self,
        namespace: &Namespace,
        channel: &str,
        subscriber: Subscriber<'_>,
    ) -> &'static str {
        if self.is_private(channel) {
            "the channel's prefix asks for a subscription token, and none came"
        } else if self.user_limited_allows(namespace, channel, subscriber.user).is_some() {
            "the channel's name lists users, and this one is not among them"
        } else if !namespace.allow_subscribe_for_client {
            "allow_subscribe_for_client is off in the namespace, and no token came"
        } else {
            "allow_subscribe_for_anonymous is off in the namespace, and no token came"
        }
    }
}

/// Section 12.2: the token has to be for this user, channel and client.
fn may_subscribe_by_token(
    claims: &SubscriptionClaims,
    channel: &str,
    subscriber: Subscriber<'_>,
    now: UnixSeconds,
) -> Result<(), Refusal> {
    let for_client = claims.client.is_empty() || claims.client == subscriber.client;
    if claims.channel != channel {
        Err(Refusal::InvalidToken("channel: the token is for another one"))
    } else if claims.user != subscriber.user {
        Err(Refusal::InvalidToken("sub: the token is for another user"))
    } else if !for_client {
        Err(Refusal::InvalidToken("client: the token is for another client"))
    } else if claims.is_past(now) {
        Err(Refusal::Expired("expire_at: past"))
    } else {
        Ok(())
    }
}

impl Namespace {
    /// May a connection publish `data` here? Section 18, without proxies. `is_json`: it is a JSON text.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`] for data of the wrong format, else [`Refusal::PermissionDenied`].
    pub fn may_publish(
        &self,
        user: &str,
        subscribed: bool,
        insecure: bool,
        data: &[u8],
        is_json: bool,
    ) -> Result<(), Refusal> {
        self.check_data(data, is_json)?;
        let known = !user.is_empty() || self.allow_publish_for_anonymous;
        let allowed = known
            && (self.allow_publish_for_client || (self.allow_publish_for_subscriber && subscribed));
        match allowed || insecure {
            true => Ok(()),
            false => Err(Refusal::PermissionDenied(match known {
                true => "neither allow_publish_for_client nor ..._for_subscriber allows it",
                false => "allow_publish_for_anonymous is off in the namespace",
            })),
        }
    }

    /// May this be published here at all by a client, or in its place by a publish proxy? `is_json`: it is a
    /// JSON text.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`].
    pub fn check_data(&self, data: &[u8], is_json: bool) -> Result<(), Refusal> {
        let flaw = match self.data_format {
            DataFormat::NotEmpty if !data.is_empty() => {
                "the data is not JSON, and publication_data_format isn't binary"
            }
            _ => "the data is not in the namespace's data format",
        };
        match self.data_format.accepts_of_client(data, is_json) {
            true => Ok(()),
            false => Err(Refusal::BadRequest(flaw)),
        }
    }

    /// May a connection read history here?
    pub fn may_read_history(&self, user: &str, subscribed: bool, insecure: bool) -> bool {
        let known = !user.is_empty() || self.allow_history_for_anonymous;
        let allowed = known
            && (self.allow_history_for_client || (self.allow_history_for_subscriber && subscribed));
        allowed || insecure
    }

    /// May a connection read who is here? That the namespace keeps presence is another question
    /// (error 108).
    pub fn may_read_presence(&self, user: &str, subscribed: bool, insecure: bool) -> bool {
        let known = !user.is_empty() || self.allow_presence_for_anonymous;
        let allowed = known
            && (self.allow_presence_for_client
                || (self.allow_presence_for_subscriber && subscribed));
        allowed || insecure
    }

    /// The features of a subscription: those that the token (or proxy) forces or, where it has no
    /// override, the namespace; and those that the client requested and may have. Section 14,
    /// step 8; section 17.
    /// Not granted is no error.
    pub fn grant(
        &self,
        asked: Asked,
        user: &str,
        insecure: bool,
        overrides: Option<&Overrides>,
    ) -> Granted {
        let overrides = overrides.copied().unwrap_or_default();
        // "For subscriber" counts as if subscribed already.
        let reads_history = self.may_read_history(user, true, insecure);
        let reads_presence = self.may_read_presence(user, true, insecure);
        let recoverable = overrides.force_recovery.unwrap_or(self.force_recovery)
            || (asked.recoverable && (self.allow_recovery || reads_history));
        let positioned = overrides.force_positioning.unwrap_or(self.force_positioning)
            || (asked.positioned && (self.allow_positioning || reads_history));
        // Receiving events and causing them are independent: a token may hide its user from the
        // others, and the user still sees them come and go. So the namespace's own option counts
        // for the receiver.
        let join_leave = overrides.force_push_join_leave.unwrap_or(self.force_push_join_leave)
            || (asked.join_leave && self.join_leave && reads_presence);
        Granted {
            positioned: (positioned || recoverable) && self.keeps_positions(),
            recoverable: recoverable && self.keeps_positions(),
            join_leave,
            presence: overrides.presence.unwrap_or(self.presence),
            announces: overrides.join_leave.unwrap_or(self.join_leave),
        }
    }

    /// A position means something: publications carry offsets, and who has one either misses none or
    /// wants only the latest.
    fn keeps_positions(&self) -> bool {
        let drops = self.slow_policy.drops() && self.recovery_mode != RecoveryMode::Cache;
        self.has_history() && !drops
    }

    /// True when publications are kept and carry offsets.
    pub fn has_history(&self) -> bool {
        self.history_size > 0 && self.history_ttl_ms > 0
    }
}

impl DataFormat {
    /// True when `data` may be published by a client. `is_json`: it is a JSON text.
    pub fn accepts_of_client(self, data: &[u8], is_json: bool) -> bool {
        match self {
            Self::Binary => true,
            Self::NotEmpty | Self::Json => is_json,
            Self::JsonObject => self.accepts(data),
        }
    }

    /// True when `data` may be published by the application.
    pub fn accepts(self, data: &[u8]) -> bool {
        let json = || serde_json::from_slice::<&RawValue>(data);
        match self {
            Self::Binary => true,
            Self::NotEmpty => !data.is_empty(),
            Self::Json => json().is_ok(),
            Self::JsonObject => json().is_ok_and(|value| value.get().starts_with('{')),
        }
    }
}

impl ChannelRules {
    /// The namespace of a name and what its expression is held against: what follows the boundary,
    /// or the whole name where there is none.
    fn find<'a>(&self, channel: &'a str) -> Result<(&Namespace, &'a str), NameFault> {
        match self.split(channel) {
            _ if channel == OWN_CHANNEL => Err(NameFault::Unknown),
            Some((name, rest)) => {
                let index = *self.index_by_name.get(name).ok_or(NameFault::Unknown)?;
                Ok((self.namespace(index), rest))
            }
            None => Ok((self.namespace(0), channel)),
        }
    }

    /// Namespace and rest of a name, `None` for a name without a namespace.
    fn split<'a>(&self, channel: &'a str) -> Option<(&'a str, &'a str)> {
        let boundary = self.syntax.namespace_boundary.as_str();
        if boundary.is_empty() {
            return None;
        }
        let public = channel.strip_prefix(self.syntax.private_prefix.as_str()).unwrap_or(channel);
        match boundary.as_bytes() {
            // As good as always: a search for a text takes ten times as long to begin.
            [byte] => {
                let at = public.bytes().position(|other| other == *byte)?;
                Some((&public[..at], &public[at + 1..]))
            }
            _ => public.split_once(boundary),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixSeconds = UnixSeconds(1_700_000_000);

    fn named(name: &str) -> Namespace {
        Namespace { name: name.into(), ..Default::default() }
    }

    #[test]
    fn names_that_nats_cannot_carry_are_bad_names() {
        let kept = Namespace { name: "kept".into(), history_size: 1, ..Namespace::default() };
        let subjects = |wildcards| Some(SubjectRules::new(wildcards, "p.client.", Vec::new()));
        let plain = rules(Namespace::default(), vec![kept]).with_subjects(subjects(false));
        let patterns = plain.clone().with_subjects(subjects(true));
        for name in ["with space", "a..b", ".a", "a.", "news.*", "kept:>"] {
            assert_eq!(plain.resolve(name).unwrap_err(), NameFault::BadName, "{name}");
            assert_eq!(plain.resolve_trusted(name).unwrap_err(), NameFault::BadName, "{name}");
        }
        assert!(plain.resolve("news.a").is_ok() && patterns.resolve("news.*").is_ok());
        assert_eq!(patterns.resolve("kept:a.*").unwrap_err(), NameFault::BadName);
        assert!(patterns.check_publishable("news.a").is_ok());
        assert!(patterns.check_publishable("news.*").is_err());
        let newer = patterns.clone().in_place_of(&plain);
        assert!(newer.resolve("news.*").is_ok(), "they stay when rules are replaced");
    }

    fn rules(without: Namespace, namespaces: Vec<Namespace>) -> ChannelRules {
        ChannelRules::new(without, namespaces, ChannelSyntax::default())
    }

    fn claims(user: &str, channel: &str) -> SubscriptionClaims {
        SubscriptionClaims {
            user: user.into(),
            channel: channel.into(),
            client: "".into(),
            expire_at: None,
            info: None,
            data: None,
            overrides: Default::default(),
        }
    }

    #[test]
    fn names() {
        let words =
            Namespace { channel_regex: Some(Regex::new("^[a-zé]+$").unwrap()), ..named("words") };
        let rules = rules(named(""), vec![named("news"), words, named("a.b")]);
        let long = "x".repeat(256);
        for (channel, expected) in [
            ("plain", Ok("")),
            ("news:today", Ok("news")),
            ("$news:today", Ok("news")),
            ("news:a:b", Ok("news")),
            ("news:", Ok("news")),
            ("a.b:c", Ok("a.b")),
            ("$plain", Ok("")),
            ("plain#1,2", Ok("")),
            ("nope:x", Err(NameFault::Unknown)),
            (":x", Err(NameFault::Unknown)),
            ("$$news:x", Err(NameFault::Unknown)),
            ("caf\u{e9}", Err(NameFault::BadName)),
            ("news:caf\u{e9}", Err(NameFault::BadName)),
            ("n\u{e9}ws:x", Err(NameFault::Unknown)),
            ("words:caf\u{e9}", Ok("words")),
            ("words:Cafe", Err(NameFault::BadName)),
            (&long[..255], Ok("")),
            (&long, Err(NameFault::TooLong)),
        ] {
            let resolved = rules.resolve(channel).map(|namespace| namespace.name.as_str());
            assert_eq!(resolved, expected, "{channel}");
        }
        let index = rules.resolve("news:x").unwrap().index;
        assert_eq!(rules.namespace(index).name, "news");
        assert_eq!(NameFault::Unknown.error_code(), 102);
        assert_eq!(NameFault::BadName.error_code(), 107);
    }

    #[test]
    fn other_syntax() {
        let syntax = ChannelSyntax {
            length_max: 8,
            private_prefix: String::new(),
            namespace_boundary: "/".into(),
            user_boundary: "@".into(),
            user_separator: String::new(),
        };
        let limited = Namespace { allow_user_limited_channels: true, ..named("") };
        let rules = ChannelRules::new(limited, vec![named("news")], syntax);
        assert_eq!(rules.resolve("news/x").unwrap().name, "news");
        assert_eq!(rules.resolve("news:x").unwrap().name, "");
        assert_eq!(rules.resolve("123456789").unwrap_err(), NameFault::TooLong);
        assert!(!rules.is_private("$x"));
        let without = rules.namespace(0);
        assert_eq!(rules.user_limited_allows(without, "x@1,2", "1,2"), Some(true));
        assert_eq!(rules.user_limited_allows(without, "x@1,2", "1"), Some(false));
    }

    #[test]
    fn lists_of_users() {
        let limited = Namespace { allow_user_limited_channels: true, ..named("") };
        let rules = rules(limited.clone(), vec![]);
        for (channel, user, expected) in [
            ("room", "1", None),
            ("room#1", "1", Some(true)),
            ("room#1,2", "2", Some(true)),
            ("room#1,2", "12", Some(false)),
            ("room#1#2", "1", Some(false)),
            ("room#1#2", "2", Some(true)),
            ("room#", "", Some(false)),
            ("room#1,,2", "", Some(false)),
        ] {
            let verdict = rules.user_limited_allows(&limited, channel, user);
            assert_eq!(verdict, expected, "{channel} {user}");
        }
        assert_eq!(rules.user_limited_allows(&named(""), "room#1", "1"), None);
    }

    #[test]
    fn subscribing_without_a_token() {
        let closed = named("");
        let open = Namespace { allow_subscribe_for_client: true, ..named("") };
        let all = Namespace { allow_subscribe_for_anonymous: true, ..open.clone() };
        let only_anonymous = Namespace { allow_subscribe_for_anonymous: true, ..named("") };
        let limited = Namespace { allow_user_limited_channels: true, ..all.clone() };
        for (namespace, channel, user, insecure, allowed) in [
            (&closed, "c", "u", false, false),
            (&closed, "c", "u", true, true),
            (&closed, "c", "", true, true),
            (&closed, "$c", "u", true, false),
            (&open, "c", "u", false, true),
            (&open, "c", "", false, false),
            (&open, "$c", "u", false, false),
            (&open, "c#1", "u", false, true),
            (&all, "c", "", false, true),
            (&only_anonymous, "c", "", false, false),
            (&limited, "c", "u", false, true),
            (&limited, "c#u", "u", false, true),
            (&limited, "c#v", "u", false, false),
            (&limited, "c#v", "u", true, true),
            (&limited, "c#", "", false, false),
            (&limited, "$c#u", "u", false, false),
        ] {
            let rules = rules(namespace.clone(), vec![]);
            let subscriber = Subscriber { user, client: "c1", insecure };
            let unasked = rules.may_subscribe_unasked(namespace, channel, subscriber);
            assert_eq!(unasked, allowed, "{channel} {user} {insecure} {namespace:?}");
            let verdict = rules.may_subscribe(namespace, channel, subscriber, None, NOW);
            let verdict = verdict.map_err(Refusal::code);
            let expected = if allowed { Ok(()) } else { Err(103) };
            assert_eq!(verdict, expected, "{channel} {user} {insecure} {namespace:?}");
        }
    }

    #[test]
    fn subscribing_with_a_token() {
        let with = |change: fn(&mut SubscriptionClaims)| {
            let mut claims = claims("u", "$c");
            change(&mut claims);
            Ok(claims)
        };
        // Wide open, so that each refusal comes from the token alone.
        let open = Namespace { allow_subscribe_for_client: true, ..named("") };
        let rules = rules(open.clone(), vec![]);
        for (token, expected) in [
            (with(|_| ()), Ok(())),
            (with(|claims| claims.client = "c1".into()), Ok(())),
            (with(|claims| claims.client = "c2".into()), Err(3500)),
            (with(|claims| claims.user = "".into()), Err(3500)),
            (with(|claims| claims.channel = "$d".into()), Err(3500)),
            (with(|claims| claims.expire_at = Some(NOW.0)), Err(110)),
            (with(|claims| claims.expire_at = Some(NOW.0 + 1)), Ok(())),
            (Err(TokenFault::Expired("exp")), Err(109)),
            (Err(TokenFault::Invalid("sub")), Err(103)),
        ] {
            let subscriber = Subscriber { user: "u", client: "c1", insecure: true };
            let verdict = rules.may_subscribe(&open, "$c", subscriber, Some(&token), NOW);
            assert_eq!(verdict.map_err(Refusal::code), expected, "{token:?}");
        }
        assert!(Refusal::InvalidToken("").is_disconnect());
        assert!(!Refusal::TokenExpired("").is_disconnect());
    }

    #[test]
    fn publishing() {
        let client = Namespace { allow_publish_for_client: true, ..named("") };
        let subscriber = Namespace { allow_publish_for_subscriber: true, ..named("") };
        let anonymous = Namespace { allow_publish_for_anonymous: true, ..named("") };
        let both = Namespace { allow_publish_for_anonymous: true, ..client.clone() };
        for (namespace, user, subscribed, insecure, allowed) in [
            (&named(""), "u", true, false, false),
            (&named(""), "", false, true, true),
            (&client, "u", false, false, true),
            (&client, "", true, false, false),
            (&subscriber, "u", true, false, true),
            (&subscriber, "u", false, false, false),
            (&anonymous, "", true, false, false),
            (&both, "", false, false, true),
        ] {
            let verdict = namespace.may_publish(user, subscribed, insecure, b"{}", true);
            assert_eq!(verdict.is_ok(), allowed, "{user} {subscribed} {insecure} {namespace:?}");
        }
        for data in [&b""[..], b"\xff"] {
            let refused = client.may_publish("u", true, true, data, false);
            assert_eq!(refused.map_err(Refusal::code), Err(107));
        }
    }

    #[test]
    fn formats_of_data() {
        use DataFormat::{Binary, Json, JsonObject, NotEmpty};
        for (data, accepted_by) in [
            (&b""[..], &[Binary][..]),
            (b"\xff", &[Binary, NotEmpty]),
            (b"1", &[Binary, NotEmpty, Json]),
            (b"{", &[Binary, NotEmpty]),
            (b" {\"a\":1} ", &[Binary, NotEmpty, Json, JsonObject]),
            (b"{} x", &[Binary, NotEmpty]),
        ] {
            for format in [Binary, NotEmpty, Json, JsonObject] {
                let expected = accepted_by.contains(&format);
                assert_eq!(format.accepts(data), expected, "{data:?} {format:?}");
                // From clients nothing but JSON is taken where it isn't said otherwise.
                let is_json = Json.accepts(data);
                let expected = expected && (is_json || format == Binary);
                assert_eq!(
                    format.accepts_of_client(data, is_json),
                    expected,
                    "{data:?} {format:?}"
                );
            }
        }
    }

    #[test]
    fn trusted_names() {
        let words =
            Namespace { channel_regex: Some(Regex::new("^[a-z]+$").unwrap()), ..named("words") };
        let rules = rules(named(""), vec![words]);
        let long = format!("words:{}", "x".repeat(300));
        for (channel, expected) in [
            ("plain", Ok("")),
            ("#42", Ok("")),
            ("caf\u{e9}", Ok("")),
            ("words:CAF\u{c9}", Ok("words")),
            ("$words:1", Ok("words")),
            ("words:#a:b", Ok("words")),
            (&long, Ok("words")),
            ("nope:x", Err(NameFault::Unknown)),
            ("#a:b", Err(NameFault::Unknown)),
            (":x", Err(NameFault::Unknown)),
        ] {
            let resolved = rules.resolve_trusted(channel).map(|namespace| namespace.name.as_str());
            assert_eq!(resolved, expected, "{channel}");
        }
    }

    #[test]
    fn reading_history_and_presence() {
        let client = |anonymous| Namespace {
            allow_history_for_client: true,
            allow_history_for_anonymous: anonymous,
            allow_presence_for_client: true,
            allow_presence_for_anonymous: anonymous,
            ..named("")
        };
        let subscriber = |anonymous| Namespace {
            allow_history_for_subscriber: true,
            allow_history_for_anonymous: anonymous,
            allow_presence_for_subscriber: true,
            allow_presence_for_anonymous: anonymous,
            ..named("")
        };
        let only_anonymous = Namespace {
            allow_history_for_anonymous: true,
            allow_presence_for_anonymous: true,
            ..named("")
        };
        for (namespace, user, subscribed, insecure, allowed) in [
            (named(""), "u", true, false, false),
            (named(""), "", false, true, true),
            (client(false), "u", false, false, true),
            (client(false), "", true, false, false),
            (client(true), "", false, false, true),
            (subscriber(false), "u", true, false, true),
            (subscriber(false), "u", false, false, false),
            (subscriber(false), "", true, false, false),
            (subscriber(true), "", true, false, true),
            (subscriber(true), "", false, false, false),
            (only_anonymous.clone(), "", true, false, false),
            (only_anonymous, "u", true, false, false),
        ] {
            let verdict = namespace.may_read_history(user, subscribed, insecure);
            assert_eq!(verdict, allowed, "{user} {subscribed} {insecure} {namespace:?}");
            let verdict = namespace.may_read_presence(user, subscribed, insecure);
            assert_eq!(verdict, allowed, "{user} {subscribed} {insecure} {namespace:?}");
        }
        let history = Namespace { allow_history_for_client: true, ..named("") };
        let presence = Namespace { allow_presence_for_client: true, ..named("") };
        assert!(!history.may_read_presence("u", true, false));
        assert!(!presence.may_read_history("u", true, false));
    }

    fn with_history(name: &str) -> Namespace {
        Namespace { history_size: 1, history_ttl_ms: 1, ..named(name) }
    }

    const NOTHING: Asked = Asked { positioned: false, recoverable: false, join_leave: false };
    const POSITION: Asked = Asked { positioned: true, ..NOTHING };
    const RECOVERY: Asked = Asked { recoverable: true, ..NOTHING };
    const JOIN_LEAVE: Asked = Asked { join_leave: true, ..NOTHING };

    #[test]
    fn positions_and_recovery() {
        let none = with_history("");
        let allow = Namespace { allow_positioning: true, ..with_history("") };
        let force = Namespace { force_positioning: true, ..with_history("") };
        let allow_recovery = Namespace { allow_recovery: true, ..with_history("") };
        let force_recovery = Namespace { force_recovery: true, ..with_history("") };
        let reads = Namespace { allow_history_for_subscriber: true, ..with_history("") };
        for (namespace, asked, user, insecure, positioned, recoverable) in [
            (&none, POSITION, "u", false, false, false),
            (&none, POSITION, "u", true, true, false),
            (&none, RECOVERY, "u", false, false, false),
            (&none, RECOVERY, "u", true, true, true),
            (&none, NOTHING, "u", true, false, false),
            (&allow, POSITION, "", false, true, false),
            (&allow, RECOVERY, "u", false, false, false),
            (&allow, NOTHING, "u", false, false, false),
            (&force, NOTHING, "", false, true, false),
            (&force, RECOVERY, "u", false, true, false),
            (&allow_recovery, NOTHING, "u", false, false, false),
            (&allow_recovery, POSITION, "u", false, false, false),
            (&allow_recovery, RECOVERY, "", false, true, true),
            (&force_recovery, NOTHING, "", false, true, true),
            (&reads, POSITION, "u", false, true, false),
            (&reads, RECOVERY, "u", false, true, true),
            (&reads, NOTHING, "u", false, false, false),
            (&reads, POSITION, "", false, false, false),
            (&reads, RECOVERY, "", false, false, false),
        ] {
            let granted = namespace.grant(asked, user, insecure, None);
            let expected = Granted { positioned, recoverable, ..Granted::default() };
            assert_eq!(granted, expected, "{asked:?} {user} {insecure} {namespace:?}");
            let without = Namespace { history_size: 0, ..namespace.clone() };
            assert_eq!(without.grant(asked, user, insecure, None), Granted::default());
        }
        // Where publications may be dropped only the latest counts, whatever a token says.
        for (recovery_mode, positioned) in
            [(RecoveryMode::Stream, false), (RecoveryMode::Cache, true)]
        {
            let slow_policy = SlowPolicy::Latest;
            let drops = Namespace { slow_policy, recovery_mode, ..with_history("") };
            let token = Overrides { force_positioning: Some(true), ..Overrides::default() };
            let granted = drops.grant(NOTHING, "u", false, Some(&token));
            assert_eq!(granted.positioned, positioned, "{recovery_mode:?}");
        }
        for (namespace, force_positioning, force_recovery, positioned, recoverable) in [
            (&force, None, None, true, false),
            (&force, Some(false), None, false, false),
            (&none, Some(true), None, true, false),
            (&force_recovery, None, Some(false), false, false),
            (&force_recovery, Some(false), None, true, true),
            (&none, None, Some(true), true, true),
            (&none, Some(false), Some(true), true, true),
        ] {
            let token = Overrides { force_positioning, force_recovery, ..Overrides::default() };
            let granted = namespace.grant(NOTHING, "u", false, Some(&token));
            let expected = Granted { positioned, recoverable, ..Granted::default() };
            assert_eq!(granted, expected, "{token:?} {namespace:?}");
        }
        // A client may still request features that a token does not force.
        let token = Overrides { force_positioning: Some(false), ..Overrides::default() };
        assert!(allow.grant(POSITION, "u", false, Some(&token)).positioned);
    }

    #[test]
    fn presence_and_events() {
        let none = named("");
        let present = Namespace { presence: true, ..named("") };
        let events = Namespace { join_leave: true, ..named("") };
        let pushed = Namespace { force_push_join_leave: true, ..events.clone() };
        let read = Namespace { allow_presence_for_subscriber: true, ..events.clone() };
        let read_only = Namespace { allow_presence_for_client: true, ..named("") };
        let no_override = Overrides::default();
        let hidden =
            Overrides { presence: Some(false), join_leave: Some(false), ..Overrides::default() };
        let shown =
            Overrides { presence: Some(true), join_leave: Some(true), ..Overrides::default() };
        let told = Overrides { force_push_join_leave: Some(true), ..Overrides::default() };
        let not_told = Overrides { force_push_join_leave: Some(false), ..Overrides::default() };
        for (namespace, asked, user, insecure, token, (presence, announces, join_leave)) in [
            (&none, JOIN_LEAVE, "u", true, no_override, (false, false, false)),
            (&none, NOTHING, "u", false, shown, (true, true, false)),
            (&none, NOTHING, "u", false, told, (false, false, true)),
            (&present, JOIN_LEAVE, "u", true, no_override, (true, false, false)),
            (&present, NOTHING, "u", false, hidden, (false, false, false)),
            (&events, NOTHING, "u", true, no_override, (false, true, false)),
            (&events, JOIN_LEAVE, "u", false, no_override, (false, true, false)),
            (&events, JOIN_LEAVE, "", true, no_override, (false, true, true)),
            (&pushed, NOTHING, "", false, no_override, (false, true, true)),
            (&pushed, NOTHING, "u", false, not_told, (false, true, false)),
            (&pushed, NOTHING, "u", false, hidden, (false, false, true)),
            (&read, JOIN_LEAVE, "u", false, no_override, (false, true, true)),
            (&read, JOIN_LEAVE, "", false, no_override, (false, true, false)),
            (&read, JOIN_LEAVE, "u", false, not_told, (false, true, true)),
            (&read, JOIN_LEAVE, "u", false, hidden, (false, false, true)),
            (&read, NOTHING, "u", false, no_override, (false, true, false)),
            (&read_only, JOIN_LEAVE, "u", false, no_override, (false, false, false)),
            (&read_only, JOIN_LEAVE, "u", false, shown, (true, true, false)),
        ] {
            let granted = namespace.grant(asked, user, insecure, Some(&token));
            let expected = Granted { presence, announces, join_leave, ..Granted::default() };
            assert_eq!(granted, expected, "{asked:?} {user} {insecure} {token:?} {namespace:?}");
        }
    }

    /// The flags of a number, lowest bit first.
    fn flags<const COUNT: usize>(bits: u32) -> [bool; COUNT] {
        std::array::from_fn(|at| (bits >> at) & 1 == 1)
    }

    #[test]
    fn every_grant_has_its_reason() {
        for bits in 0..1 << 14 {
            let [history, force_position, position, force, recovery, reads, asks] = flags(bits);
            let [presence, events, pushed, read, asks_recovery, asks_events, insecure] =
                flags(bits >> 7);
            let namespace = Namespace {
                history_size: u32::from(history),
                history_ttl_ms: 1,
                force_positioning: force_position,
                allow_positioning: position,
                force_recovery: force,
                allow_recovery: recovery,
                allow_history_for_client: reads,
                presence,
                join_leave: events,
                force_push_join_leave: pushed,
                allow_presence_for_client: read,
                ..named("")
            };
            let asked =
                Asked { positioned: asks, recoverable: asks_recovery, join_leave: asks_events };
            let by_namespace = namespace.grant(asked, "u", insecure, None);
            // Whether a token or the namespace says it makes no difference, but for the namespace's
            // own `join_leave`.
            let same = Overrides {
                presence: Some(presence),
                join_leave: Some(events),
                force_push_join_leave: Some(pushed),
                force_recovery: Some(force),
                force_positioning: Some(force_position),
            };
            let by_token = namespace.grant(asked, "u", insecure, Some(&same));
            assert_eq!(by_token, by_namespace, "{namespace:?}");
            let silent = Namespace {
                presence: !presence,
                force_push_join_leave: !pushed,
                force_recovery: !force,
                force_positioning: !force_position,
                ..namespace.clone()
            };
            let by_token = silent.grant(asked, "u", insecure, Some(&same));
            assert_eq!(by_token, by_namespace, "{namespace:?}");

            let reason_to_recover = force || (asks_recovery && (recovery || reads || insecure));
            let reason_to_position = force_position || (asks && (position || reads || insecure));
            let reason_to_tell = pushed || (asks_events && events && (read || insecure));
            let expected = Granted {
                positioned: history && (reason_to_position || reason_to_recover),
                recoverable: history && reason_to_recover,
                join_leave: reason_to_tell,
                presence,
                announces: events,
            };
            assert_eq!(by_namespace, expected, "{asked:?} {insecure} {namespace:?}");
        }
    }

    #[test]
    fn numbers_of_namespaces_outlive_a_change() {
        let of = |names: &[&str]| rules(named(""), names.iter().map(|name| named(name)).collect());
        let older = of(&["aa", "bb", "cc"]);
        let newer = of(&["dd", "cc", "aa"]).in_place_of(&older);
        let index = |rules: &ChannelRules, name: &str| {
            rules.resolve(&format!("{name}:x")).map(|namespace| namespace.index)
        };
        let indices = ["aa", "bb", "cc", "dd"].map(|name| index(&newer, name));
        // The fourth is that of the node's own channel, which no name leads to.
        assert_eq!(indices, [Ok(1), Err(NameFault::Unknown), Ok(3), Ok(5)]);
        assert_eq!((older.own().index, newer.own().index), (4, 4));
        for resolved in [newer.resolve(OWN_CHANNEL), newer.resolve_trusted(OWN_CHANNEL)] {
            assert_eq!(resolved.err(), Some(NameFault::Unknown));
        }
        assert_eq!(newer.namespace(2).name, "bb");
        // And back again: who left has its number still.
        let again = of(&["bb"]).in_place_of(&newer);
        assert_eq!((index(&again, "bb"), index(&again, "dd")), (Ok(2), Err(NameFault::Unknown)));
    }
}
