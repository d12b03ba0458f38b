//! The messages between shards, and with the control thread.
//!
//! Each request gets exactly one answer. A message knows how many bytes it holds, since mailboxes are bounded by bytes.

use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;

use super::app::{AppCall, AppReply};
use super::app_events::AppEvents;
use super::asker::Asker;
use super::closes::{Close, ClosesOf};
use super::emulation::{Emulate, EmulateElsewhere, Uptake};
use super::handover::HandoverStep;
use crate::base::bytes::SharedBytes;
use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::heap::{HeapBytes, heap_bytes_of};
use crate::base::id::ConnKey;
use crate::base::software::SoftwareId;
use crate::hub::broker::{BrokerEvent, Command};
use crate::hub::filter::Filter;
use crate::hub::history::{Page, Position, Since};
use crate::hub::parcel::Parcel;
use crate::hub::subscribers::Traits;
use crate::proto::client::{Encoding, ErrorCode};
use crate::session::{PublishOptions, ServerSub};
use crate::shard::clients::signatures::{Interest, Signed, TokenKind};

/// A publication on its way to the home. Boxed in [`Mail`], which stays small.
#[derive(Debug)]
pub struct Publish {
    /// The channel.
    pub channel: CompactString,
    /// Its hash.
    pub hash: u64,
    /// Its namespace's number.
    pub namespace: u16,
    /// Who is told that it was taken; `None` for the control thread.
    pub asker: Option<Asker>,
    /// The payload. A broadcast has it in common for all its channels, as tags and options.
    pub data: SharedBytes,
    /// The publisher's packed ClientInfo.
    pub info: Box<[u8]>,
    /// Packed tags.
    pub tags: SharedBytes,
    /// Data and info are known to be JSON.
    pub is_json: bool,
    /// What only the server API and proxies ask for, if they do.
    pub options: Option<Arc<PublishOptions>>,
}

/// A request for the control thread, which came to the public port.
#[derive(Debug)]
pub struct WebRequest {
    /// Where the answer goes.
    pub asker: Asker,
    /// The request's head, as it came.
    pub head: Box<[u8]>,
    /// Its body, without a transfer coding.
    pub body: Box<[u8]>,
    /// The client's address, where it is known.
    pub address: Option<IpAddr>,
}

/// Channels are to be listed.
#[derive(Clone, Copy, Debug)]
pub struct List {
    /// Who asks.
    pub asker: Asker,
    /// Where to go on; 0 at first.
    pub cursor: u32,
    /// What is listed.
    pub of: ListOf,
}

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListOf {
    /// The home's channels.
    Channels,
    /// Users with connections here.
    Users {
        /// Only those whose hash ends in so many zeros.
        zeros: u32,
    },
}

/// Some of a home's channels that somebody is subscribed to, or of a shard's users.
#[derive(Debug, Default)]
pub struct Listed {
    /// Hashes of users.
    pub users: Vec<u64>,
    /// Names, and how many subscribe.
    pub channels: Vec<(CompactString, u32)>,
    /// Where to go on, if that is not all.
    pub next: Option<u32>,
}

/// Connections, or closes of them, are to be looked at.
#[derive(Debug)]
pub struct Inspect {
    /// The sender of the question.
    pub asker: Asker,
    /// The wanted ones.
    pub of: Inspecting,
    /// Where the answer before has stopped; 0: the beginning.
    pub cursor: u32,
    /// Connections that rank below are too little: there are enough that rank higher.
    pub floor: u64,
    /// Connections or closes in the answer at most.
    pub max: u16,
}

/// Connections that are looked at.
#[derive(Clone, Debug)]
pub enum Inspecting {
    /// Those of a user; empty are the anonymous ones.
    User(CompactString),
    /// The one with a client id.
    Client(CompactString),
    /// Subscribers of a channel.
    Channel(CompactString),
    /// Those of an address, the newest first.
    Address(IpAddr),
    /// Those with queued bytes, the largest queues first.
    Queues,
    /// All, the newest first.
    Newest,
    /// Those that were closed lately.
    Closes(ClosesOf),
}

/// Connections on one shard.
#[derive(Debug, Default)]
pub struct Inspected {
    /// Some of them.
    pub connections: Vec<Seen>,
    /// Some of the closes.
    pub closes: Vec<Close>,
    /// How many there are, of those that were looked at.
    pub found: u64,
    /// Where the next question goes on; `None`: all were looked at.
    pub next: Option<u32>,
}

/// A connection, as it was looked at.
#[derive(Debug)]
pub struct Seen {
    /// Client id.
    pub client: CompactString,
    /// The user; empty for an anonymous one.
    pub user: CompactString,
    /// Its address, if it has one.
    pub address: Option<IpAddr>,
    /// Transport and encoding.
    pub form: Form,
    /// The client's software.
    pub software: SoftwareId,
    /// When it began, in ticks of the node.
    pub since_tick: u32,
    /// The same as seconds that have passed.
    pub age_s: u32,
    /// How long the last ping took, milliseconds.
    pub round_trip_ms: Option<u32>,
    /// It is not read now.
    pub paused: bool,
    /// Bytes that wait for it.
    pub queued_bytes: usize,
    /// Commands that are not answered.
    pub unanswered: u8,
    /// When it expires, Unix seconds; 0 is never.
    pub expires: u32,
    /// Subscriptions that it has.
    pub subscriptions: usize,
    /// Some of them.
    pub named: Vec<SeenSub>,
}

/// A subscription of such a connection.
#[derive(Debug)]
pub struct SeenSub {
    /// The channel.
    pub channel: CompactString,
    /// It gets what is published.
    pub live: bool,
    /// The server made it.
    pub server: bool,
    /// A gap ends it.
    pub positioned: bool,
}

/// A command of the server API for connections of a user.
#[derive(Debug)]
pub struct Order {
    /// The API call that gets the answer.
    pub asker: Asker,
    /// The user; empty: anonymous clients.
    pub user: CompactString,
    /// Connections of all users, whatever `user` is.
    pub all_users: bool,
    /// Only its connection with this client id; empty: all.
    pub client: CompactString,
    /// Only its connection with this session id; empty: all.
    pub session: CompactString,
    /// The command.
    pub command: AdminCommand,
}

/// A command of the server API for one connection.
#[derive(Clone, Debug)]
pub enum AdminCommand {
    /// Close it, unless its client id is spared.
    Disconnect {
        /// The code.
        code: u16,
        /// The reason.
        reason: CompactString,
        /// Spared client ids, sorted: the list is searched for each connection.
        spare: Vec<CompactString>,
    },
    /// End a subscription, or all of them when the name is empty.
    Unsubscribe {
        /// The channel.
        channel: CompactString,
        /// Code and reason for the client; `None`: the usual ones.
        why: Option<(u16, CompactString)>,
    },
    /// Subscribe it to a channel.
    Subscribe(Box<ServerSub>),
    /// Change its expiry and its info.
    Refresh {
        /// It expires now.
        expired: bool,
        /// Expiry, seconds since 1970; 0: never.
        expire_at: i64,
        /// New info about the connection; empty: unchanged.
        info: Box<[u8]>,
    },
}

/// What a subscriber wants to have that was published before.
#[derive(Debug)]
pub struct Recover {
    /// What it has.
    pub since: Since,
    /// Only the latest publication counts.
    pub latest: bool,
    /// What of it is for the subscriber.
    pub filter: Option<Filter>,
    /// Bytes of the answer at most; what is more can't be recovered.
    pub bytes_max: usize,
    /// As frames with pushes, since no reply can carry a list.
    pub as_pushes: bool,
}

/// How others see a subscriber.
#[derive(Debug)]
pub struct Membership {
    /// Its packed ClientInfo.
    pub info: Box<[u8]>,
    /// It is kept as present.
    pub present: bool,
    /// It makes join and leave events.
    pub announces: bool,
}

/// A subscription that begins.
#[derive(Debug)]
pub struct Subscribe {
    /// The channel.
    pub channel: CompactString,
    /// Its hash.
    pub hash: u64,
    /// Its namespace's number.
    pub namespace: u16,
    /// Where the asking shard keeps the channel.
    pub local: u32,
    /// Who asks.
    pub asker: Asker,
    /// Which attempt of the session it is: an unsubscribe may overtake the answer.
    pub serial: u32,
    /// What it gets (the filter's number is the asking shard's and left out).
    pub traits: Traits,
    /// What it wants to have that was published before.
    pub recover: Option<Box<Recover>>,
    /// How others see it, if they do.
    pub membership: Option<Box<Membership>>,
}

/// What came of a [`Recover`].
#[derive(Debug)]
pub enum Recovery {
    /// Nothing was to be recovered.
    None,
    /// Not all of it is there.
    Failed,
    /// The broker could not be reached: there is no subscription either, and a later attempt may succeed.
    Unavailable,
    /// The subscriber can't be shown it.
    Unfit,
    /// Here it is.
    Done {
        /// The publications, encoded as the list of a subscribe result, which many replies share; or
        /// whole frames with pushes, when that was asked for.
        publications: Option<SharedFrame>,
        /// The offset for the result.
        offset: u64,
    },
}

/// A subscription has begun at `position`.
#[derive(Debug)]
pub struct Subscribed {
    /// Where the asking shard keeps the channel.
    pub local: u32,
    /// Who asked.
    pub asker: Asker,
    /// Which attempt it was.
    pub serial: u32,
    /// Where the subscription begins.
    pub position: Position,
    /// What was missed.
    pub recovery: Recovery,
    /// It has no base for patches yet.
    pub fresh: bool,
}

/// A subscription that ends.
#[derive(Debug)]
pub struct Unsubscribe {
    /// Where the asking shard keeps the channel; it keeps the name until it has the answer.
    pub local: u32,
    /// The channel.
    pub channel: CompactString,
    /// Who waits for a reply: nobody when the server ended it or a connection has died.
    pub asker: Option<Asker>,
    /// What the subscriber got.
    pub traits: Traits,
    /// The connection, when others could see it.
    pub member: Option<ConnKey>,
}

/// Something to be read of a channel.
#[derive(Debug)]
pub struct Read {
    /// The channel.
    pub channel: CompactString,
    /// Its hash.
    pub hash: u64,
    /// Its namespace's number.
    pub namespace: u16,
    /// Who asks.
    pub asker: Asker,
    /// In which encoding the answer is wanted.
    pub encoding: Encoding,
    /// Bytes of the answer at most.
    pub bytes_max: usize,
    /// What is read.
    pub what: Reading,
}

/// What is read of a channel.
#[derive(Debug)]
pub enum Reading {
    /// Who is there.
    Presence,
    /// How many are there.
    PresenceStats,
    /// Who is there on this node, whatever other nodes have.
    Here,
    /// How many subscribe on this node, whether presence shows them or not.
    Subscribers,
    /// What was published.
    History(Page),
    /// Nothing: what was published is dropped, position and epoch stay.
    Drop,
}

impl Reading {
    /// It is about those present.
    pub(crate) fn is_presence(&self) -> bool {
        matches!(self, Self::Presence | Self::PresenceStats)
    }
}

/// What was read: encoded results, or why there are none.
#[derive(Debug)]
pub enum Answer {
    /// A whole presence result.
    Presence(SharedFrame),
    /// Clients and users.
    PresenceStats(u32, u32),
    /// Subscribers on this node.
    Subscribers(u32),
    /// A whole history result.
    History(SharedFrame),
    /// It is done.
    Done,
    /// It failed. Errors are rare: the box keeps every other answer small.
    Error(Box<Failure>),
    /// The asking connection can't be shown it.
    Unfit,
}

/// Why a home didn't do what was requested.
#[derive(Debug)]
pub struct Failure {
    /// The error.
    pub code: ErrorCode,
    /// The channel, for the log of the shard that has the client: its [`Asker`] doesn't name it.
    pub channel: CompactString,
}

impl Answer {
    /// A failed operation on a channel.
    pub fn failed(code: ErrorCode, channel: &str) -> Self {
        Self::Error(Box::new(Failure { code, channel: CompactString::new(channel) }))
    }
}

/// A connection of a user whose connections are counted.
#[derive(Debug)]
pub struct UserConn {
    /// The user.
    pub user: CompactString,
    /// Its connection, and who waits for the verdict.
    pub asker: Asker,
}

/// One message between shards.
#[derive(Debug)]
pub enum Mail {
    /// To the home: one more subscriber. Answer: [`Mail::Subscribed`].
    Subscribe(Box<Subscribe>),
    /// From the home. What comes after this mail is for the subscriber, what came before isn't.
    Subscribed(Box<Subscribed>),
    /// To the home: one subscriber less. Answer: [`Mail::Unsubscribed`].
    Unsubscribe(Box<Unsubscribe>),
    /// From the home: done.
    Unsubscribed {
        /// Where the asking shard keeps the channel.
        local: u32,
        /// Who waits for a reply.
        asker: Option<Asker>,
    },
    /// To the home: publish. Answer: [`Mail::Published`].
    Publish(Box<Publish>),
    /// From the home: taken, and its deliveries are in their receivers' queues.
    Published {
        /// Who asked.
        asker: Asker,
        /// Where the channel stands with it.
        position: Position,
    },
    /// To the home: read something. Answer: [`Mail::Answer`].
    Read(Box<Read>),
    /// From the home: what was read.
    Answer {
        /// Who asked.
        asker: Asker,
        /// The answer.
        answer: Answer,
    },
    /// To the home: what others see of a subscriber has changed. Not answered.
    Reinform {
        /// The channel.
        channel: Box<str>,
        /// The subscriber.
        conn: ConnKey,
        /// Its packed ClientInfo.
        info: Box<[u8]>,
    },
    /// From the home: for the subscribers of the channel.
    Deliver {
        /// Where the receiving shard keeps the channel.
        local: u32,
        /// What they get, encoded once for all.
        parcel: Arc<Parcel>,
    },
    /// From the home: something of the channel was lost on the way to this shard.
    Gap {
        /// Where the receiving shard keeps the channel.
        local: u32,
    },
    /// From the home: publications of the channel can't be had any more.
    Lapse {
        /// Where the receiving shard keeps the channel.
        local: u32,
    },
    /// To a user's home: one more connection. Answer: [`Mail::UserEntered`].
    UserEnter(Box<UserConn>),
    /// From a user's home: the connection may stay, or not.
    UserEntered {
        /// Who asked.
        asker: Asker,
        /// It may.
        admitted: bool,
    },
    /// To a user's home: a counted connection has gone. Not answered.
    UserLeave {
        /// The user.
        user: Box<str>,
        /// Its connection.
        conn: ConnKey,
    },
    /// From a user's home: a newer connection takes this one's place.
    Evict {
        /// The older one.
        conn: ConnKey,
    },
    /// To the home of a token: is its signature good? Answer: [`Mail::Verified`].
    Verify {
        /// The token.
        token: Box<str>,
        /// Which keys it is held against.
        kind: TokenKind,
        /// Who asks.
        asker: Asker,
        /// Whether they still wait.
        interest: Interest,
    },
    /// From the home of a token.
    Verified {
        /// Who asked.
        asker: Asker,
        /// The hash of the token that it is about.
        hash: u64,
        /// What came of it.
        signed: Signed,
    },
    /// From the pool to the home of a token: a signature is checked.
    Signed {
        /// Which question this answers.
        ticket: u64,
        /// What came of it.
        signed: Signed,
    },
    /// To the control thread: a request. Answer: [`Mail::Response`].
    Request(Box<WebRequest>),
    /// Commands of a connection, from its separate up-link. Answer: [`Mail::Response`].
    Emulate(Box<Emulate>),
    /// From a shard: what became of commands of the control thread's.
    Emulated {
        /// Where the answer goes.
        asker: Asker,
        /// What became of them.
        uptake: Uptake,
    },
    /// To the control thread: commands for a session on another node. Answer: [`Mail::Response`].
    EmulateElsewhere(Box<EmulateElsewhere>),
    /// From the control thread: a whole response.
    Response {
        /// Who asked.
        asker: Asker,
        /// Head and body.
        bytes: SharedFrame,
        /// The connection may be used again.
        keep_alive: bool,
    },
    /// To the control thread: call the application. Answer: [`Mail::AppReply`].
    AppCall(Box<AppCall>),
    /// From the control thread: the answer of the application.
    AppReply(Box<AppReply>),
    /// To the control thread: events for the application. Not answered.
    AppEvents(Box<AppEvents>),
    /// From the control thread to a home: name some channels. Answer: [`Mail::Listed`].
    List(List),
    /// From a home.
    Listed {
        /// Who asked.
        asker: Asker,
        /// Some of them.
        listed: Box<Listed>,
    },
    /// From the control thread to a shard: what are a user's connections like? Answer:
    /// [`Mail::Inspected`].
    Inspect(Box<Inspect>),
    /// From a shard.
    Inspected {
        /// Who asked.
        asker: Asker,
        /// What they are like.
        inspected: Box<Inspected>,
    },
    /// From the control thread to all shards: do something with a user's connections. Answer:
    /// [`Mail::Ordered`], when all homes have taken what follows from it.
    Order(Box<Order>),
    /// To a home: tell when all mail before this one is opened. Answer: [`Mail::Passed`].
    Pass {
        /// Which order asks.
        order: u32,
    },
    /// From a home.
    Passed {
        /// Which order asked.
        order: u32,
    },
    /// From a shard: the order is carried out.
    Ordered {
        /// Who asked.
        asker: Asker,
        /// Connections that it was about.
        connections: u32,
    },
    /// From a home to the broker: see [`crate::hub::broker`].
    Command(Box<Command>),
    /// From the broker to a home.
    BrokerEvent(Box<BrokerEvent>),
    /// From the control thread: close all connections at this pace, refuse new ones.
    Drain {
        /// Connections closed per second on this shard.
        per_second: u32,
    },
    /// From the control thread: a step of the handover to another process.
    Handover(Box<HandoverStep>),
    /// From the control thread: end the loop.
    Stop,
}

const _: () = assert!(size_of::<Mail>() <= 56);

impl Mail {
    /// What it counts towards the bound on bytes: all that it holds.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Subscribe(subscribe) => subscribe.heap_bytes(),
                Self::Subscribed(subscribed) => subscribed.heap_bytes(),
                Self::Unsubscribe(unsubscribe) => unsubscribe.heap_bytes(),
                Self::Publish(publish) => publish.heap_bytes(),
                Self::Read(read) => read.heap_bytes(),
                Self::Answer { answer, .. } => match answer {
                    Answer::Presence(body) | Answer::History(body) => body.heap_bytes(),
                    Answer::Error(failure) => failure.heap_bytes(),
                    Answer::PresenceStats(..)
                    | Answer::Subscribers(_)
                    | Answer::Done
                    | Answer::Unfit => 0,
                },
                Self::Reinform { channel, info, .. } => heap_bytes_of!(channel, info),
                Self::Deliver { parcel, .. } => parcel.bytes(),
                Self::UserEnter(conn) => conn.heap_bytes(),
                Self::UserLeave { user, .. } => user.heap_bytes(),
                Self::Verify { token, .. } => token.heap_bytes() + Interest::HEAP_BYTES,
                Self::Request(request) => request.heap_bytes(),
                Self::Emulate(emulate) => emulate.heap_bytes(),
                Self::EmulateElsewhere(emulate) => emulate.heap_bytes(),
                Self::Response { bytes, .. } => bytes.heap_bytes(),
                Self::AppCall(call) => call.heap_bytes(),
                Self::AppReply(reply) => reply.heap_bytes(),
                Self::AppEvents(events) => size_of::<AppEvents>() + events.heap_bytes(),
                Self::Listed { listed, .. } => {
                    listed.heap_bytes() + listed.users.capacity() * size_of::<u64>()
                }
                Self::Inspect(inspect) => inspect.heap_bytes(),
                Self::Inspected { inspected, .. } => inspected.heap_bytes(),
                Self::Order(order) => order.heap_bytes(),
                Self::Command(command) => command.heap_bytes(),
                Self::BrokerEvent(event) => event.heap_bytes(),
                Self::Handover(_) => size_of::<HandoverStep>(),
                Self::Unsubscribed { .. }
                | Self::Published { .. }
                | Self::Gap { .. }
                | Self::Lapse { .. }
                | Self::Emulated { .. }
                | Self::UserEntered { .. }
                | Self::Evict { .. }
                | Self::Verified { .. }
                | Self::Signed { .. }
                | Self::List(_)
                | Self::Pass { .. }
                | Self::Passed { .. }
                | Self::Ordered { .. }
                | Self::Drain { .. }
                | Self::Stop => 0,
            }
    }
}

/// Says which fields of a type hold bytes.
macro_rules! heap_bytes_in {
    ($($type:ty: $($field:ident),*;)*) => {$(
        impl HeapBytes for $type {
            fn heap_bytes(&self) -> usize {
                heap_bytes_of!($(&self.$field),*)
            }
        }
    )*};
}

heap_bytes_in! {
    Publish: channel, data, info, tags, options;
    PublishOptions: idempotency_key, version_epoch;
    WebRequest: head, body;
    Listed: channels;
    Inspect: of;
    Inspected: connections, closes;
    Seen: client, user, named;
    SeenSub: channel;
    Order: user, client, session, command;
    ServerSub: channel, info, data, since;
    Since: epoch;
    Recover: since, filter;
    Membership: info;
    Subscribe: channel, recover, membership;
    Unsubscribe: channel;
    Read: channel, what;
    Failure: channel;
    UserConn: user;
}

impl HeapBytes for Inspecting {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::User(text) | Self::Client(text) | Self::Channel(text) => text.heap_bytes(),
            Self::Closes(of) => of.user.heap_bytes(),
            Self::Address(_) | Self::Queues | Self::Newest => 0,
        }
    }
}

impl AdminCommand {
    /// Whether it ends the connections that it is about.
    pub(crate) fn ends_connections(&self) -> bool {
        matches!(self, Self::Disconnect { .. } | Self::Refresh { expired: true, .. })
    }
}

impl HeapBytes for AdminCommand {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Disconnect { reason, spare, .. } => heap_bytes_of!(reason, spare),
            Self::Unsubscribe { channel, why } => {
                let reason = why.as_ref().map_or(0, |(_, reason)| reason.heap_bytes());
                channel.heap_bytes() + reason
            }
            Self::Subscribe(sub) => sub.heap_bytes(),
            Self::Refresh { info, .. } => info.heap_bytes(),
        }
    }
}

impl HeapBytes for Subscribed {
    fn heap_bytes(&self) -> usize {
        match &self.recovery {
            Recovery::Done { publications, .. } => publications.heap_bytes(),
            Recovery::None | Recovery::Failed | Recovery::Unavailable | Recovery::Unfit => 0,
        }
    }
}

impl HeapBytes for Reading {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::History(page) => page.since.heap_bytes(),
            Self::Presence | Self::PresenceStats | Self::Here | Self::Subscribers | Self::Drop => 0,
        }
    }
}

impl HeapBytes for Filter {
    fn heap_bytes(&self) -> usize {
        self.bytes() - size_of::<Self>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::num::NonZeroU32;

    use super::*;
    use crate::base::filter::FilterNode;
    use crate::base::tags::Tags;
    use crate::edge::jwt::{ConnectionClaims, SubOptions};
    use crate::edge::proxy::{AppDisconnect, AppError, ProxyEvent, ProxyOptions};
    use crate::hub::broker::{
        Delivered, Entry, PresenceChange, PresenceUpdate, Publishing, Ticket,
    };
    use crate::hub::history::{Published, Record, StreamOptions};
    use crate::hub::parcel::{self, Frames};
    use crate::session::{Headers, NamedValues};
    use crate::shard::mail::{AppEvent, HandoverAction};
    use crate::shard::proxies::{AppAnswer, AppRequest, AppResult};
    use crate::sys::memory::requested_bytes;

    /// The kinds of mail: each has an example in [`examples`].
    const KINDS: [&str; 40] = [
        "Subscribe",
        "Subscribed",
        "Unsubscribe",
        "Unsubscribed",
        "Publish",
        "Published",
        "Read",
        "Answer",
        "Reinform",
        "Deliver",
        "Gap",
        "Lapse",
        "UserEnter",
        "UserEntered",
        "UserLeave",
        "Evict",
        "Verify",
        "Verified",
        "Signed",
        "Request",
        "Emulate",
        "Emulated",
        "EmulateElsewhere",
        "Response",
        "AppCall",
        "AppReply",
        "AppEvents",
        "List",
        "Listed",
        "Inspect",
        "Inspected",
        "Order",
        "Pass",
        "Passed",
        "Ordered",
        "Command",
        "BrokerEvent",
        "Drain",
        "Handover",
        "Stop",
    ];

    fn text() -> String {
        "a text that is too long to be kept in place ".repeat(40)
    }

    fn name() -> CompactString {
        CompactString::new(text())
    }

    fn data() -> Box<[u8]> {
        text().into_bytes().into()
    }

    fn frame() -> SharedFrame {
        SharedFrame::new(text().as_bytes())
    }

    fn filter() -> Filter {
        let leaf = |cmp: &str, val: String, vals: Vec<String>| FilterNode {
            cmp: cmp.into(),
            key: "k".repeat(300),
            val,
            vals,
            ..FilterNode::default()
        };
        let vals = (0..200).map(|n| format!("value {n}")).collect();
        let nodes = vec![leaf("in", String::new(), vals), leaf("eq", "v".repeat(300), Vec::new())];
        Filter::new(&FilterNode { op: "and".into(), nodes, ..FilterNode::default() }).unwrap()
    }

    fn record() -> Record {
        Record::new(1, &Published { data: text().as_bytes(), ..Published::default() })
    }

    fn entry() -> Entry {
        Entry { after: 0, time_ms: 0, delta: false, source: None, record: record() }
    }

    fn since() -> Since {
        Since { offset: 1, epoch: name() }
    }

    fn options() -> PublishOptions {
        PublishOptions {
            idempotency_key: name(),
            version_epoch: name(),
            ..PublishOptions::default()
        }
    }

    fn server_sub() -> Box<ServerSub> {
        Box::new(ServerSub {
            channel: name(),
            info: data(),
            data: data(),
            since: Some(since()),
            ..ServerSub::default()
        })
    }

    fn told(answer: AppAnswer) -> Mail {
        let event = ProxyEvent::Rpc;
        Mail::AppReply(Box::new(AppReply { asker: asker(), local: 0, ticket: None, event, answer }))
    }

    fn asker() -> Asker {
        Asker::of(ConnKey { index: 0, generation: NonZeroU32::MIN })
    }

    /// Mail of every kind, and of every content that holds bytes; whoever adds one adds it here.
    fn examples(proxy: &Arc<ProxyOptions>) -> Vec<Box<dyn Fn() -> Mail + '_>> {
        let asker = asker();
        let conn = asker.conn;
        let position = || Position { offset: 1, epoch: None };
        let answer = move |answer| Mail::Answer { asker, answer };
        let order = move |command| {
            let (user, client, session, all_users) = (name(), name(), name(), false);
            Mail::Order(Box::new(Order { asker, user, all_users, client, session, command }))
        };
        let read = move |what| {
            let (channel, encoding) = (name(), Encoding::Json);
            let (hash, namespace, bytes_max) = (0, 0, 0);
            Mail::Read(Box::new(Read {
                channel,
                hash,
                namespace,
                asker,
                encoding,
                bytes_max,
                what,
            }))
        };
        let subscribed = move |recovery| {
            let (local, serial, fresh) = (0, 0, false);
            Mail::Subscribed(Box::new(Subscribed {
                local,
                asker,
                serial,
                position: position(),
                recovery,
                fresh,
            }))
        };
        let ask = move |call| {
            let headers = NamedValues::from([(name(), data()), (name(), data())]);
            let headers = Headers { http: headers.clone(), emulated: headers };
            Mail::AppCall(Box::new(AppCall {
                asker,
                proxy: Arc::clone(proxy),
                client: name(),
                form: Form::JSON,
                user: name(),
                meta: data(),
                headers: Some(Arc::new(headers)),
                address: None,
                certificate: Some(name()),
                call,
                ticket: None,
            }))
        };
        vec![
            Box::new(move || {
                let recover = Recover {
                    since: since(),
                    latest: false,
                    filter: Some(filter()),
                    bytes_max: 0,
                    as_pushes: false,
                };
                let membership = Membership { info: data(), present: true, announces: true };
                Mail::Subscribe(Box::new(Subscribe {
                    channel: name(),
                    hash: 0,
                    namespace: 0,
                    local: 0,
                    asker,
                    serial: 0,
                    traits: Traits::JSON,
                    recover: Some(Box::new(recover)),
                    membership: Some(Box::new(membership)),
                }))
            }),
            Box::new(move || subscribed(Recovery::Failed)),
            Box::new(move || subscribed(Recovery::Done { publications: Some(frame()), offset: 0 })),
            Box::new(move || {
                let (local, channel, traits, member) = (0, name(), Traits::JSON, None);
                let asker = Some(asker);
                Mail::Unsubscribe(Box::new(Unsubscribe { local, channel, asker, traits, member }))
            }),
            Box::new(|| Mail::Unsubscribed { local: 0, asker: None }),
            Box::new(move || {
                Mail::Publish(Box::new(Publish {
                    channel: name(),
                    hash: 0,
                    namespace: 0,
                    asker: Some(asker),
                    data: (&*data()).into(),
                    info: data(),
                    tags: (&*data()).into(),
                    is_json: true,
                    options: Some(Arc::new(options())),
                }))
            }),
            Box::new(move || Mail::Published { asker, position: position() }),
            Box::new(move || read(Reading::Presence)),
            Box::new(move || {
                read(Reading::History(Page { since: Some(since()), ..Page::default() }))
            }),
            Box::new(move || answer(Answer::Presence(frame()))),
            Box::new(move || answer(Answer::History(frame()))),
            Box::new(move || answer(Answer::Done)),
            Box::new(move || answer(Answer::failed(ErrorCode::Internal, &text()))),
            Box::new(move || Mail::Reinform { channel: text().into(), conn, info: data() }),
            Box::new(|| {
                let frames = Frames { full: Some(frame()), patch: Some(frame()) };
                let tags = BTreeMap::from([(text(), text())]);
                let tags = Tags::pack(tags.iter().map(|(name, of)| (name.as_str(), of.as_str())));
                let parcel = Parcel {
                    frames: vec![(Form::JSON, frames.clone()), (Form::BINARY, frames)],
                    tags,
                    ..Parcel::new(parcel::ParcelKind::Publication, 0, Tags::NONE)
                };
                Mail::Deliver { local: 0, parcel: Arc::new(parcel) }
            }),
            Box::new(|| Mail::Gap { local: 0 }),
            Box::new(|| Mail::Lapse { local: 0 }),
            Box::new(move || Mail::UserEnter(Box::new(UserConn { user: name(), asker }))),
            Box::new(move || Mail::UserEntered { asker, admitted: true }),
            Box::new(move || Mail::UserLeave { user: text().into(), conn }),
            Box::new(move || Mail::Evict { conn }),
            Box::new(move || {
                let kind = TokenKind::Connection;
                Mail::Verify { token: text().into(), kind, asker, interest: Interest::default() }
            }),
            Box::new(move || Mail::Verified { asker, hash: 0, signed: Signed::Bad }),
            Box::new(|| Mail::Signed { ticket: 0, signed: Signed::Bad }),
            Box::new(move || {
                Mail::Request(Box::new(WebRequest {
                    asker,
                    head: data(),
                    body: data(),
                    address: None,
                }))
            }),
            Box::new(move || {
                Mail::Emulate(Box::new(Emulate::holding(data(), text().into(), asker)))
            }),
            Box::new(move || Mail::Emulated { asker, uptake: Uptake::Taken }),
            Box::new(move || {
                Mail::EmulateElsewhere(Box::new(EmulateElsewhere::holding(
                    data(),
                    text().into(),
                    asker,
                )))
            }),
            Box::new(move || Mail::Response { asker, bytes: frame(), keep_alive: true }),
            Box::new(move || {
                let channels = vec![name(), name()];
                let (name, version) = (name(), name());
                ask(AppRequest::Connect { data: data(), name, version, channels })
            }),
            Box::new(move || ask(AppRequest::Refresh)),
            Box::new(move || ask(AppRequest::Subscribe { channel: name(), data: data() })),
            Box::new(move || ask(AppRequest::Publish { channel: name(), data: data() })),
            Box::new(move || ask(AppRequest::Rpc { method: name(), data: data() })),
            Box::new(move || ask(AppRequest::SubRefresh { channel: name(), local: 0 })),
            Box::new(|| {
                let of_sub = || SubOptions {
                    info: Some(data()),
                    data: Some(data()),
                    ..SubOptions::default()
                };
                let claims = ConnectionClaims {
                    user: name(),
                    info: Some(data()),
                    meta: Some(data()),
                    subs: vec![(name(), of_sub()), (name(), of_sub())],
                    ..ConnectionClaims::default()
                };
                let options = options();
                let (data, tags) = (Some(data()), data());
                let result = AppResult { claims, data, tags, options, ..AppResult::default() };
                told(AppAnswer::Result(Box::new(result)))
            }),
            Box::new(|| {
                let error = AppError { code: 1000, message: text(), temporary: false };
                told(AppAnswer::Error(error))
            }),
            Box::new(|| told(AppAnswer::Disconnect(AppDisconnect { code: 4000, reason: text() }))),
            Box::new(|| told(AppAnswer::Failed)),
            Box::new(|| {
                let mut events = AppEvents::default();
                events.push(AppEvent::Occupied(name()));
                let (client, user, reason) = (name(), name(), name());
                let disconnect =
                    AppEvent::Disconnect { client, user, address: None, code: 3000, reason };
                events.push(disconnect);
                Mail::AppEvents(Box::new(events))
            }),
            Box::new(move || Mail::List(List { asker, cursor: 0, of: ListOf::Channels })),
            Box::new(move || {
                let channels = vec![(name(), 1), (name(), 2)];
                let listed = Listed { channels, users: vec![1, 2], next: None };
                Mail::Listed { asker, listed: Box::new(listed) }
            }),
            Box::new(move || {
                let of = Inspecting::User(name());
                Mail::Inspect(Box::new(Inspect { asker, of, cursor: 0, floor: 0, max: 1 }))
            }),
            Box::new(move || {
                let named =
                    || SeenSub { channel: name(), live: true, server: false, positioned: false };
                let seen = || Seen {
                    client: name(),
                    user: name(),
                    address: None,
                    form: Form::JSON,
                    software: SoftwareId::UNNAMED,
                    since_tick: 0,
                    age_s: 0,
                    round_trip_ms: None,
                    paused: false,
                    queued_bytes: 0,
                    unanswered: 0,
                    expires: 0,
                    subscriptions: 2,
                    named: vec![named(), named()],
                };
                let connections = vec![seen(), seen()];
                let inspected = Inspected { connections, ..Inspected::default() };
                Mail::Inspected { asker, inspected: Box::new(inspected) }
            }),
            Box::new(move || {
                let spare = vec![name(), name()];
                order(AdminCommand::Disconnect { code: 3000, reason: name(), spare })
            }),
            Box::new(move || {
                let why = Some((2000, name()));
                order(AdminCommand::Unsubscribe { channel: name(), why })
            }),
            Box::new(move || order(AdminCommand::Subscribe(server_sub()))),
            Box::new(move || {
                order(AdminCommand::Refresh { expired: false, expire_at: 0, info: data() })
            }),
            Box::new(|| Mail::Pass { order: 0 }),
            Box::new(|| Mail::Passed { order: 0 }),
            Box::new(move || Mail::Ordered { asker, connections: 0 }),
            Box::new(|| {
                let publishing = Publishing {
                    ticket: Ticket(1),
                    channel: name(),
                    record: record(),
                    options: StreamOptions::default(),
                    idempotency_key: name(),
                    version: 0,
                    version_epoch: name(),
                    delta: false,
                };
                Mail::Command(Box::new(Command::Publish(Box::new(publishing))))
            }),
            Box::new(|| {
                let page = Page { since: Some(since()), ..Page::default() };
                Mail::Command(Box::new(Command::Read {
                    ticket: Ticket(1),
                    channel: name(),
                    page,
                    meta_ttl_ms: 0,
                    expects: None,
                }))
            }),
            Box::new(|| {
                let changes = vec![
                    (PresenceChange::Enter { announces: true }, data()),
                    (PresenceChange::Leave, data()),
                ];
                let update = PresenceUpdate { channel: name(), ticket: None, changes };
                Mail::Command(Box::new(Command::Presence(Box::new(update))))
            }),
            Box::new(|| {
                let epoch = text().as_str().into();
                let (ticket, channel, meta_ttl_ms) = (Ticket(1), name(), 0);
                let renew = Command::Renew { ticket, channel, epoch, meta_ttl_ms };
                Mail::Command(Box::new(renew))
            }),
            Box::new(|| {
                let entry = entry();
                let epoch = Some(text().as_str().into());
                let delivered = Delivered { channel: name(), epoch, entry };
                Mail::BrokerEvent(Box::new(BrokerEvent::Delivered(Box::new(delivered))))
            }),
            Box::new(|| {
                let entries = vec![entry()];
                let top = Position { offset: 1, epoch: Some(text().as_str().into()) };
                let event = BrokerEvent::History { ticket: Ticket(1), top, entries };
                Mail::BrokerEvent(Box::new(event))
            }),
            Box::new(|| {
                let infos = vec![data(), data()];
                let event = BrokerEvent::Members { ticket: Ticket(1), infos };
                Mail::BrokerEvent(Box::new(event))
            }),
            Box::new(|| Mail::Drain { per_second: 1 }),
            Box::new(|| {
                let action = HandoverAction::Probe;
                Mail::Handover(Box::new(HandoverStep { attempt: 1, action }))
            }),
            Box::new(|| Mail::Stop),
        ]
    }

    #[test]
    fn no_mail_counts_less_than_it_holds() {
        let proxy = Arc::new(ProxyOptions {
            name: String::new(),
            endpoint: String::new(),
            timeout_ms: 0,
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
        });
        let mut kinds = BTreeSet::new();
        for example in examples(&proxy) {
            let before = requested_bytes();
            let mail = example();
            let held = size_of::<Mail>() + usize::try_from(requested_bytes() - before).unwrap();
            let counted = mail.bytes();
            let text = format!("{mail:?}");
            let kind: String = text.chars().take_while(|c| c.is_alphanumeric()).collect();
            assert!(counted >= held, "{kind} counts {counted} and holds {held}: {text:.200}");
            assert!(counted <= held + held / 2 + 64, "{kind} counts {counted}, holds {held}");
            kinds.insert(kind);
        }
        assert_eq!(kinds, KINDS.iter().map(|kind| (*kind).to_owned()).collect());
    }

    #[test]
    fn parts_of_mail_count_their_allocations() {
        fn check<T: HeapBytes>(make: impl Fn() -> T) {
            let before = requested_bytes();
            let value = make();
            let held = usize::try_from(requested_bytes() - before).unwrap();
            let counted = value.heap_bytes();
            assert!(counted >= held && counted <= held + 16, "{counted} for {held}");
        }
        let long = "long enough to be on the heap ".repeat(3);
        check(|| CompactString::new(&long));
        check(|| CompactString::new("short"));
        check(|| long.clone());
        check(|| long.as_str().to_owned().into_boxed_str());
        check(|| Box::<[u8]>::from(long.as_bytes()));
        check(|| SharedFrame::new(long.as_bytes()));
        check(|| Some(Box::new(long.clone())));
        check(|| Arc::new(long.clone()));
        check(|| vec![(long.clone(), 1), (long.clone(), 2)]);
    }
}
