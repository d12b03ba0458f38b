//! Commands of homes as requests to Redis, and its replies as events for homes.
//!
//! ```text
//!  hub::broker::Command --requests()--> Request, Awaited ...Redis... Reply --settle()--> BrokerEvent
//!                                                             PUB/SUB message --message()--^
//! ```
//! What a home listens to is not here: that is state of a connection.

use compact_str::CompactString;

use super::check::{Check, Top};
use super::names::Names;
use super::payload::{Envelope, Payload};
use super::scripts::Script;
use super::tops::TopRead;
use crate::base::info::ClientInfo;
use crate::hub::broker::{
    BrokerEvent, Command, Delivered, Entry, FailureCause, PresenceChange, PresenceUpdate,
    Publishing, Ticket,
};
use crate::hub::history::{Epoch, Page, Position, Published, Record};
use crate::proto::client::nodes::{NodePublication, put_client_info, read_client_info};
use crate::proto::client::{info_is_json, is_json};

/// Time for which the answer to an idempotency key is kept, in seconds.
const RESULT_TTL_S: &str = "300";

/// Changes of presence in one script: a script blocks Redis while it runs.
const PRESENCE_CHANGES_MAX: usize = 128;

/// The options of all nodes that change what is written.
#[derive(Clone, Debug)]
pub struct Operations {
    /// Keys and names.
    pub names: Names,
    /// Histories are lists, not streams.
    pub use_lists: bool,
    /// Time for which an entry of presence is kept, in seconds.
    pub presence_ttl_s: u64,
    /// Users are counted beside clients.
    pub presence_users: bool,
    /// Entries expire by themselves (Redis 7.4).
    pub presence_field_ttl: bool,
}

/// Values that a request contains and that are made for it.
#[derive(Clone, Copy, Debug)]
pub struct Fresh<'a> {
    /// Unix milliseconds.
    pub now_ms: u64,
    /// Eight random letters: the epoch of a stream that has none.
    pub epoch: &'a str,
}

/// What Redis is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run a script.
    Script {
        /// The script.
        script: Script,
        /// KEYS.
        keys: Vec<String>,
        /// ARGV.
        arguments: Vec<Vec<u8>>,
    },
    /// Another command: its name and arguments.
    Plain {
        /// Its name.
        name: &'static str,
        /// Its arguments; the first one is a key or a PUB/SUB name.
        arguments: Vec<Vec<u8>>,
    },
}

impl Request {
    /// The key whose slot says which master of a Cluster takes it.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Script { keys, .. } => keys.first().map_or(b"", |key| key.as_bytes()),
            Self::Plain { arguments, .. } => arguments.first().map_or(b"", |first| first),
        }
    }

    /// Carried out twice, one behind the other, it has the effect and the reply of once. A publication has
    /// that property by its idempotency key.
    pub fn is_repeatable(&self) -> bool {
        match self {
            Self::Script { script, arguments, .. } => match script {
                // The time for which the result is kept.
                Script::PublishStream | Script::PublishList => {
                    arguments.get(7).is_some_and(|ttl| !ttl.is_empty())
                }
                _ => true,
            },
            Self::Plain { name, .. } => !name.ends_with("PUBLISH"),
        }
    }

    /// Its bytes, nearly.
    pub fn bytes(&self) -> usize {
        let of = |arguments: &[Vec<u8>]| arguments.iter().map(|a| a.len() + 16).sum::<usize>();
        match self {
            Self::Script { keys, arguments, .. } => {
                64 + keys.iter().map(|key| key.len() + 16).sum::<usize>() + of(arguments)
            }
            Self::Plain { arguments, .. } => 32 + of(arguments),
        }
    }
}

/// What its reply means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Nothing.
    Nothing,
    /// Entries of presence are prolonged: how many of them were not there.
    Prolonged {
        /// The channel.
        channel: CompactString,
    },
    /// Some entries of a node that is dead: each is removed, and then the next ones are taken.
    Taken {
        /// The node.
        uid: String,
    },
    /// The content of an entry of a dead node.
    Orphan {
        /// Its channel.
        channel: CompactString,
        /// Others are to see its leave.
        announces: bool,
    },
    /// A publication is taken: with history the reply is its position.
    Published {
        /// Of the command.
        ticket: Ticket,
        /// It has a position.
        has_history: bool,
    },
    /// Position and publications.
    History {
        /// Of the command.
        ticket: Ticket,
        /// Those of a list are selected here.
        page: Page,
    },
    /// The position alone, by `HMGET`. A stream without one gets it by a read.
    Top(Box<TopRead>),
    /// The positions of several channels.
    Tops(Vec<TopRead>),
    /// The first reply of a check.
    CheckTop(Top),
    /// The second one.
    Check(Box<Check>),
    /// Done.
    Done {
        /// Of the command.
        ticket: Ticket,
    },
    /// Those present.
    Members {
        /// Of the command.
        ticket: Ticket,
        /// Their number is enough.
        counts: bool,
    },
}

impl Awaited {
    /// The command that waits; of several the first.
    pub fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Nothing
            | Self::CheckTop(_)
            | Self::Prolonged { .. }
            | Self::Taken { .. }
            | Self::Orphan { .. } => None,
            Self::Check(check) => Some(check.ticket),
            Self::Top(read) => Some(read.ticket),
            Self::Tops(reads) => reads.first().map(|read| read.ticket),
            Self::Published { ticket, .. }
            | Self::History { ticket, .. }
            | Self::Done { ticket }
            | Self::Members { ticket, .. } => Some(*ticket),
        }
    }

    /// The events when there is no reply, or an error.
    pub fn failed(&self, cause: FailureCause) -> Vec<BrokerEvent> {
        let event = |ticket| BrokerEvent::Failed { ticket, cause };
        match self {
            Self::Tops(reads) => reads.iter().map(|read| event(read.ticket)).collect(),
            other => other.ticket().map(event).into_iter().collect(),
        }
    }
}

/// A reply of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing.
    Nil,
    /// A number.
    Int(i64),
    /// A text or bytes.
    Bytes(Vec<u8>),
    /// Several.
    List(Vec<Self>),
    /// An error of the server: its text.
    Error(String),
}

/// What follows of a reply.
#[derive(Clone, Debug)]
pub enum Settled {
    /// Nothing.
    Nothing,
    /// News for the home.
    Event(BrokerEvent),
    /// Another request.
    Again(Request, Awaited),
    /// News for the home, and other requests.
    Several(Vec<BrokerEvent>, Vec<(Request, Awaited)>),
    /// The reply has another shape than all replies of this kind, or is an error.
    Faulty(Vec<BrokerEvent>, String),
}

impl Operations {
    /// The requests of a command: none for one about listening. The last one has the answer.
    ///
    /// # Errors
    /// The channel can't be kept here: the event for a home that waits.
    pub fn requests(
        &self,
        command: Command,
        fresh: Fresh<'_>,
        mut each: impl FnMut(Request, Awaited),
    ) -> Result<(), Option<BrokerEvent>> {
        match command {
            Command::Listen { .. }
            | Command::Unlisten { .. }
            | Command::Hold
            | Command::Fence { .. }
            | Command::Resume => {}
            Command::Publish(publishing) => {
                let Publishing { ticket, channel, options, .. } = &*publishing;
                let has_history = options.kept();
                self.check(channel, has_history, Some(*ticket))?;
                let awaited = Awaited::Published { ticket: *ticket, has_history };
                each(self.publish(&publishing, fresh), awaited);
            }
            Command::Read { ticket, channel, page, meta_ttl_ms, expects } => {
                self.check(&channel, true, Some(ticket))?;
                if page.limit == 0 || expects == Some(0) {
                    self.top(TopRead { ticket, channel, page, meta_ttl_ms }, each);
                } else if expects.is_some() && !self.use_lists {
                    self.check_commands((ticket, channel), page, meta_ttl_ms, each);
                } else {
                    let request = self.read(&channel, &page, meta_ttl_ms, fresh.epoch);
                    each(request, Awaited::History { ticket, page });
                }
            }
            Command::Renew { ticket, channel, epoch, meta_ttl_ms } => {
                self.check(&channel, true, Some(ticket))?;
                let request = self.renew(&channel, &epoch, meta_ttl_ms, fresh);
                let page = Page { since: None, limit: 1, reverse: true };
                each(request, Awaited::History { ticket, page });
            }
            Command::Drop { ticket, channel } => {
                self.check(&channel, true, Some(ticket))?;
                let (history, _) = self.history_keys(&channel);
                let request = Request::Plain { name: "DEL", arguments: vec![history.into()] };
                each(request, Awaited::Done { ticket });
            }
            Command::Presence(update) => {
                self.check(&update.channel, false, update.ticket)?;
                self.change_presence(&update, each);
            }
            Command::Members { ticket, channel, counts } => {
                self.check(&channel, false, Some(ticket))?;
                each(self.members(&channel, counts), Awaited::Members { ticket, counts });
            }
            Command::Announce { channel, joined, info } => {
                self.check(&channel, false, None)?;
                each(self.announce(&channel, joined, &info), Awaited::Nothing);
            }
        }
        Ok(())
    }

    /// The requests of an update of presence: the last one has the answer, if one is awaited.
    fn change_presence(&self, update: &PresenceUpdate, mut each: impl FnMut(Request, Awaited)) {
        let PresenceUpdate { channel, ticket, changes } = update;
        let (prolonged, changed): (Vec<_>, Vec<_>) =
            changes.iter().partition(|(of, _)| *of == PresenceChange::Refresh);
        let mut requests = Vec::new();
        for some in prolonged.chunks(PRESENCE_CHANGES_MAX) {
            let awaited = Awaited::Prolonged { channel: channel.clone() };
            requests.push((self.presence_prolong(channel, some), awaited));
        }
        for some in changed.chunks(PRESENCE_CHANGES_MAX) {
            requests.push((self.presence_update(channel, some), Awaited::Nothing));
        }
        if let (Some(ticket), Some((_, awaited))) = (ticket, requests.last_mut()) {
            *awaited = Awaited::Done { ticket: *ticket };
        }
        requests.into_iter().for_each(|(request, awaited)| each(request, awaited));
    }

    fn members(&self, channel: &str, counts: bool) -> Request {
        let counts_users = counts && self.presence_users;
        Request::Script {
            script: Script::PresenceRead,
            keys: self.presence_keys(channel),
            arguments: vec![digit(self.presence_field_ttl), digit(counts_users)],
        }
    }

    fn announce(&self, channel: &str, joined: bool, info: &[u8]) -> Request {
        let mut message = Vec::new();
        put_client_info(&mut message, info);
        let mut payload = Vec::with_capacity(message.len() + 8);
        let event = if joined { Payload::Join(&message) } else { Payload::Leave(&message) };
        event.put(&mut payload);
        self.send(channel, payload)
    }

    /// What a reply means.
    pub fn settle(&self, awaited: Awaited, reply: Reply, fresh: Fresh<'_>) -> Settled {
        if let Reply::Error(text) = reply {
            return Settled::Faulty(awaited.failed(FailureCause::Unavailable), text);
        }
        let awaited = match awaited {
            Awaited::Tops(reads) => return self.settle_tops(reads, &reply, fresh.epoch),
            other => other,
        };
        let event = match &awaited {
            Awaited::Nothing => return Settled::Nothing,
            Awaited::CheckTop(top) => {
                *top.borrow_mut() = Some(reply);
                return Settled::Nothing;
            }
            Awaited::Check(check) => return self.settle_check(check, &reply, fresh.epoch),
            Awaited::Prolonged { channel } => match reply {
                Reply::Int(0) => return Settled::Nothing,
                Reply::Int(_) => Some(BrokerEvent::EntriesMissing { channel: channel.clone() }),
                _ => None,
            },
            Awaited::Taken { uid } => match &reply {
                Reply::List(members) => return self.orphans(uid, members),
                _ => None,
            },
            Awaited::Orphan { channel, announces } => match &reply {
                // Its time was over, or another node has removed it.
                Reply::Nil => return Settled::Nothing,
                Reply::Bytes(info) => match read_client_info(info) {
                    Ok(info) => return self.orphan(channel, *announces, info),
                    Err(_) => None,
                },
                _ => None,
            },
            Awaited::Done { ticket } => Some(BrokerEvent::Done { ticket: *ticket }),
            Awaited::Published { ticket, has_history: false } => {
                let position = Position { offset: 0, epoch: None };
                Some(BrokerEvent::Published { ticket: *ticket, position })
            }
            Awaited::Published { ticket, has_history: true } => {
                let position = published(&reply);
                position.map(|position| BrokerEvent::Published { ticket: *ticket, position })
            }
            Awaited::Top(read) => match reply {
                Reply::List(values) => {
                    return self.settle_top((**read).clone(), &values, fresh.epoch);
                }
                _ => None,
            },
            // Above.
            Awaited::Tops(_) => None,
            Awaited::History { ticket, page } => self.history(*ticket, page, &reply),
            Awaited::Members { ticket, counts } => members(*ticket, *counts, &reply),
        };
        match event {
            Some(event) => Settled::Event(event),
            None => shapeless(&awaited, &reply),
        }
    }

    /// The event of a PUB/SUB message of a channel.
    ///
    /// # Errors
    /// It is malformed: why.
    pub fn message(&self, channel: &str, payload: &[u8]) -> Result<BrokerEvent, String> {
        let channel = CompactString::from(channel);
        match Payload::parse(payload).map_err(|error| error.to_string())? {
            Payload::Publication(envelope) => {
                let (epoch, entry) = entry(&envelope, None)?;
                Ok(BrokerEvent::Delivered(Box::new(Delivered { channel, epoch, entry })))
            }
            Payload::Join(info) | Payload::Leave(info) => {
                let joined = payload.starts_with(b"__j");
                let info = read_client_info(info).map_err(|error| error.to_string())?;
                Ok(BrokerEvent::Announced { channel, joined, info })
            }
        }
    }

    pub(super) fn check(
        &self,
        channel: &str,
        has_history: bool,
        ticket: Option<Ticket>,
    ) -> Result<(), Option<BrokerEvent>> {
        let cause = FailureCause::Unsupported;
        let failed = |_| ticket.map(|ticket| BrokerEvent::Failed { ticket, cause });
        self.names.check(channel, has_history).map_err(failed)
    }

    pub(super) fn history_keys(&self, channel: &str) -> (String, String) {
        if self.use_lists {
            (self.names.list(channel), self.names.list_meta(channel))
        } else {
            (self.names.stream(channel), self.names.stream_meta(channel))
        }
    }

    fn presence_keys(&self, channel: &str) -> Vec<String> {
        let names = &self.names;
        vec![
            names.presence_expiry(channel),
            names.presence(channel),
            names.presence_users_expiry(channel),
            names.presence_users(channel),
        ]
    }

    /// A PUB/SUB message to the subscribers of a channel.
    fn send(&self, channel: &str, payload: Vec<u8>) -> Request {
        let arguments = vec![self.names.messages(channel).into(), payload];
        Request::Plain { name: self.names.publish_command(), arguments }
    }

    fn publish(&self, publishing: &Publishing, fresh: Fresh<'_>) -> Request {
        let Publishing { channel, options, idempotency_key, version, version_epoch, .. } =
            publishing;
        let has_history = options.kept();
        let payload = publication(publishing, has_history, fresh.now_ms);
        let command = self.names.publish_command().to_ascii_lowercase();
        if !has_history && idempotency_key.is_empty() {
            return self.send(channel, payload);
        }
        let name = self.names.messages(channel);
        let result = self.names.result(channel, idempotency_key);
        if !has_history {
            return Request::Script {
                script: Script::PublishOnce,
                keys: vec![result],
                arguments: vec![payload, name.into(), command.into(), RESULT_TTL_S.into()],
            };
        }
        let (history, position) = self.history_keys(channel);
        let result_ttl = if idempotency_key.is_empty() { "" } else { RESULT_TTL_S };
        let mut arguments = vec![
            payload,
            options.size.to_string().into(),
            // A TTL of less than a second would remove it at once.
            Vec::from((options.ttl_ms / 1_000).max(1).to_string()),
            name.into(),
            seconds(options.meta_ttl_ms),
            fresh.epoch.into(),
            command.into(),
            result_ttl.into(),
            if publishing.delta { b"1".into() } else { vec![] },
        ];
        let script = if self.use_lists {
            Script::PublishList
        } else {
            arguments.extend([version.to_string().into(), version_epoch.as_bytes().into()]);
            Script::PublishStream
        };
        Request::Script { script, keys: vec![history, position, result], arguments }
    }

    fn renew(&self, channel: &str, epoch: &Epoch, meta_ttl_ms: u64, fresh: Fresh<'_>) -> Request {
        let (history, position) = self.history_keys(channel);
        Request::Script {
            script: Script::Renew,
            keys: vec![history, position],
            arguments: vec![
                epoch.as_str().into(),
                fresh.epoch.into(),
                digit(self.use_lists),
                seconds(meta_ttl_ms),
            ],
        }
    }

    /// A read. Lists are read as a whole.
    pub(super) fn read(
        &self,
        channel: &str,
        page: &Page,
        meta_ttl_ms: u64,
        epoch: &str,
    ) -> Request {
        let (history, position) = self.history_keys(channel);
        let keys = vec![history, position];
        let meta_ttl = seconds(meta_ttl_ms);
        let since = page.since.as_ref().map(|since| since.offset);
        // Before the first one there is none.
        let nothing = page.limit == 0 || (page.reverse && since.is_some_and(|since| since <= 1));
        let include = digit(!nothing);
        if self.use_lists {
            let arguments = vec![include, meta_ttl, epoch.into()];
            return Request::Script { script: Script::ReadList, keys, arguments };
        }
        let first = match (since, page.reverse) {
            (None, _) => 0,
            (Some(since), false) => since.saturating_add(1),
            (Some(since), true) => since.saturating_sub(1),
        };
        let limit = if page.limit > i32::MAX as usize { 0 } else { page.limit };
        let arguments = vec![
            include,
            first.to_string().into(),
            limit.to_string().into(),
            digit(page.reverse),
            meta_ttl,
            epoch.into(),
        ];
        Request::Script { script: Script::ReadStream, keys, arguments }
    }

    pub(super) fn history(
        &self,
        ticket: Ticket,
        page: &Page,
        reply: &Reply,
    ) -> Option<BrokerEvent> {
        let Reply::List(values) = reply else { return None };
        let top = position(values.first(), values.get(1))?;
        let empty = Vec::new();
        let listed = match values.get(2) {
            Some(Reply::List(listed)) => listed,
            _ => &empty,
        };
        let entries = if self.use_lists {
            selected(of_list(listed, top.offset), page)
        } else {
            listed.iter().filter_map(of_stream).collect()
        };
        Some(BrokerEvent::History { ticket, top, entries })
    }

    pub(super) fn presence_update(
        &self,
        channel: &str,
        changes: &[&(PresenceChange, Box<[u8]>)],
    ) -> Request {
        let mut arguments = self.presence_options();
        for (change, packed) in changes {
            let Some(info) = ClientInfo::unpack(packed) else { continue };
            let mut message = Vec::new();
            let is_leave = *change == PresenceChange::Leave;
            if !is_leave {
                put_client_info(&mut message, packed);
            }
            let kind: &[u8] = if is_leave { b"-" } else { b"+" };
            arguments.extend([kind.into(), info.client.into(), message, info.user.into()]);
        }
        let keys = self.presence_keys(channel);
        Request::Script { script: Script::PresenceUpdate, keys, arguments }
    }

    /// What the entries contain isn't sent again: that would cost Redis as much as writing them.
    fn presence_prolong(&self, channel: &str, entries: &[&(PresenceChange, Box<[u8]>)]) -> Request {
        let infos = || entries.iter().filter_map(|(_, packed)| ClientInfo::unpack(packed));
        let mut arguments = self.presence_options();
        arguments.push(infos().count().to_string().into());
        arguments.extend(infos().map(|info| Vec::from(info.client)));
        if self.presence_users {
            arguments.extend(infos().map(|info| Vec::from(info.user)));
        }
        let keys = self.presence_keys(channel);
        Request::Script { script: Script::PresenceProlong, keys, arguments }
    }

    fn presence_options(&self) -> Vec<Vec<u8>> {
        let ttl = self.presence_ttl_s.to_string();
        vec![ttl.into(), digit(self.presence_users), digit(self.presence_field_ttl)]
    }
}

/// Whole seconds, as Redis takes them.
pub(super) fn seconds(ms: u64) -> Vec<u8> {
    (ms / 1_000).to_string().into()
}

fn digit(is_on: bool) -> Vec<u8> {
    if is_on { b"1".into() } else { b"0".into() }
}

/// The payload of a publication. Where it has history, the script says that a delta is wanted.
fn publication(publishing: &Publishing, has_history: bool, now_ms: u64) -> Vec<u8> {
    let Published { data, info, tags, .. } = publishing.record.published();
    let mut payload = Vec::with_capacity(data.len() + info.len() + tags.len() + 32);
    NodePublication {
        data: data.into(),
        info: info.into(),
        tags: tags.into(),
        delta: publishing.delta && !has_history,
        time_ms: now_ms,
        version: publishing.version,
        ..<_>::default()
    }
    .put(&mut payload);
    payload
}

/// A publication and its epoch. `offset` is known where the payload stands in a stream.
fn entry(envelope: &Envelope<'_>, offset: Option<u64>) -> Result<(Option<Epoch>, Entry), String> {
    let read = NodePublication::read(envelope.publication).map_err(|error| error.to_string())?;
    let (known, epoch) = envelope.position.unwrap_or((0, ""));
    // Its own position wins: one that came another way has it inside.
    let offset = if read.offset > 0 { read.offset } else { offset.unwrap_or(known) };
    let epoch = if read.epoch.is_empty() { epoch } else { &read.epoch };
    let has_position = offset > 0 && (envelope.position.is_some() || read.offset > 0);
    let infos = ClientInfo::unpack(&read.info);
    let published = Published {
        data: &read.data,
        info: &read.info,
        tags: &read.tags,
        is_json: is_json(&read.data) && infos.is_none_or(|info| info_is_json(&info)),
        // That of the entry is in milliseconds.
        time: 0,
    };
    let entry = Entry {
        after: offset.saturating_sub(1),
        time_ms: read.time_ms,
        delta: read.delta || envelope.previous.is_some(),
        source: None,
        record: Record::new(offset, &published),
    };
    Ok((has_position.then(|| Epoch::from(epoch)), entry))
}

/// An entry of a stream: `[id, [field, value, ...]]`. One that is none of ours is left out.
fn of_stream(reply: &Reply) -> Option<Entry> {
    let Reply::List(parts) = reply else { return None };
    let [Reply::Bytes(id), Reply::List(fields), ..] = &parts[..] else { return None };
    let offset = std::str::from_utf8(id).ok()?.split('-').next()?.parse().ok()?;
    let field = fields.chunks_exact(2).find(|pair| pair[0] == Reply::Bytes(b"d".into()))?;
    let Reply::Bytes(publication) = &field[1] else { return None };
    let envelope = Envelope { position: None, previous: None, publication };
    entry(&envelope, Some(offset)).ok().map(|(_, entry)| entry)
}

/// The entries of a list, the oldest first: payloads with their positions. A list may be older than its
/// position, when that was evicted: what doesn't follow from the top downwards is of an earlier life.
fn of_list(listed: &[Reply], top: u64) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for reply in listed {
        let Reply::Bytes(payload) = reply else { continue };
        let Ok(Payload::Publication(envelope)) = Payload::parse(payload) else { continue };
        let Ok((_, entry)) = entry(&envelope, None) else { continue };
        let most = entries.last().map_or(top, |newer| newer.record.offset().saturating_sub(1));
        if entry.record.offset() > most {
            break;
        }
        entries.push(entry);
    }
    entries.reverse();
    entries
}

/// The part of a whole history, oldest first, that a page means.
fn selected(mut entries: Vec<Entry>, page: &Page) -> Vec<Entry> {
    if let Some(since) = &page.since {
        let offset = since.offset;
        entries.retain(|entry| match page.reverse {
            true => entry.record.offset() < offset,
            false => entry.record.offset() > offset,
        });
    }
    if page.reverse {
        entries.reverse();
    }
    entries.truncate(page.limit);
    entries
}

/// `{offset, epoch, ...}`, the offset as a number or as a text.
fn published(reply: &Reply) -> Option<Position> {
    let Reply::List(values) = reply else { return None };
    position(values.first(), values.get(1))
}

pub(super) fn position(offset: Option<&Reply>, epoch: Option<&Reply>) -> Option<Position> {
    let Some(Reply::Bytes(epoch)) = epoch else { return None };
    let epoch = Epoch::from(std::str::from_utf8(epoch).ok()?);
    let offset = match offset {
        Some(Reply::Int(offset)) => u64::try_from(*offset).ok()?,
        Some(Reply::Bytes(digits)) => std::str::from_utf8(digits).ok()?.parse().ok()?,
        _ => 0,
    };
    Some(Position { offset, epoch: Some(epoch) })
}

fn members(ticket: Ticket, counts: bool, reply: &Reply) -> Option<BrokerEvent> {
    let Reply::List(values) = reply else { return None };
    if let [Reply::Int(clients), Reply::Int(users)] = values[..] {
        let count = |number: i64| u32::try_from(number).unwrap_or(0);
        let (clients, users) = (count(clients), count(users));
        return Some(BrokerEvent::MemberCounts { ticket, clients, users });
    }
    // Client, info, client, info.
    let infos = values.chunks_exact(2).filter_map(|pair| match &pair[1] {
        Reply::Bytes(info) => read_client_info(info).ok(),
        _ => None,
    });
    let infos: Vec<Box<[u8]>> = infos.collect();
    if !counts {
        return Some(BrokerEvent::Members { ticket, infos });
    }
    let users = infos.iter().filter_map(|info| ClientInfo::unpack(info)).map(|info| info.user);
    let users: std::collections::BTreeSet<&str> = users.collect();
    let (clients, users) = (infos.len() as u32, users.len() as u32);
    Some(BrokerEvent::MemberCounts { ticket, clients, users })
}

fn shapeless(awaited: &Awaited, reply: &Reply) -> Settled {
    let mut text = format!("an unknown reply: {reply:?}");
    text.truncate(text.floor_char_boundary(200));
    Settled::Faulty(awaited.failed(FailureCause::Unavailable), text)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::Value;

    use super::super::control;
    use super::super::names::Layout;
    use super::*;
    use crate::base::tags::Tags;
    use crate::hub::history::{Since, StreamOptions};

    const FRESH: Fresh<'static> = Fresh { now_ms: 1_700_000_000_000, epoch: "abcdefgh" };

    fn operations(layout: Layout) -> Operations {
        Operations {
            names: Names::new("centrifugo", layout),
            use_lists: false,
            presence_ttl_s: 60,
            presence_users: false,
            presence_field_ttl: false,
        }
    }

    fn publishing(channel: &str, size: u32) -> Publishing {
        let published = Published { data: b"{}", is_json: true, ..<_>::default() };
        Publishing {
            ticket: Ticket(7),
            channel: channel.into(),
            record: Record::new(0, &published),
            options: StreamOptions { size, ttl_ms: 300_000, meta_ttl_ms: 3_600_000 },
            idempotency_key: "".into(),
            version: 0,
            version_epoch: "".into(),
            delta: false,
        }
    }

    fn only(operations: &Operations, command: Command) -> (Request, Awaited) {
        let mut all = Vec::new();
        operations
            .requests(command, FRESH, |request, awaited| all.push((request, awaited)))
            .unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// The arguments that a captured node sent in a step, with those of a script.
    fn captured(step: &str, script_keys: &str) -> Vec<String> {
        let lines = include_str!("../../tests/vectors/redis/scripts.jsonl").lines();
        let mut values = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        let is_it = |value: &Value| value["step"] == step && value["command"][2] == script_keys;
        let command = values.find(is_it).unwrap();
        let command = command["command"].as_array().unwrap();
        command[3..].iter().map(|part| part.as_str().unwrap().to_owned()).collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn refreshes_are_a_script_of_their_own_without_what_entries_contain() {
        let info =
            |user, client| ClientInfo { user, client, conn_info: b"{}", ..<_>::default() }.pack();
        let (enter, refresh) = (PresenceChange::Enter { announces: true }, PresenceChange::Refresh);
        let changes =
            vec![(refresh, info("u", "1")), (enter, info("v", "2")), (refresh, info("w", "3"))];
        let mut operations = operations(Layout::Plain);
        operations.presence_users = true;
        let update = PresenceUpdate { channel: "news".into(), ticket: Some(Ticket(7)), changes };
        let mut requests = Vec::new();
        operations.change_presence(&update, |request, awaited| requests.push((request, awaited)));
        let [(prolong, counted), (enter, done)] = &requests[..] else { panic!("{requests:?}") };
        let Request::Script { script: Script::PresenceProlong, arguments, .. } = prolong else {
            panic!("{prolong:?}")
        };
        let words = ["60", "1", "0", "2", "1", "3", "u", "w"].map(Vec::<u8>::from);
        assert_eq!(arguments[..], words);
        assert_eq!(*counted, Awaited::Prolonged { channel: "news".into() });
        assert!(matches!(enter, Request::Script { script: Script::PresenceUpdate, .. }));
        assert_eq!(*done, Awaited::Done { ticket: Ticket(7) });
    }

    #[test]
    fn arguments_are_those_of_the_captured_nodes() {
        let operations = operations(Layout::Plain);
        let publish = Command::Publish(Box::new(publishing("hist:x", 10)));
        let (Request::Script { keys, arguments, .. }, _) = only(&operations, publish) else {
            panic!("no script")
        };
        let expected = captured("api-publish-history", "33");
        let ours: Vec<String> = keys.iter().map(|key| hex(key.as_bytes())).collect();
        assert_eq!(ours, expected[..3]);
        let ours: Vec<String> = arguments.iter().map(|argument| hex(argument)).collect();
        assert_eq!(ours.len(), expected[3..].len());
        // Payload, lifetime of the position (the namespace's there) and epoch are of that run.
        for (at, (ours, expected)) in ours.iter().zip(&expected[3..]).enumerate() {
            assert!(ours == expected || [0, 4, 5].contains(&at), "{at}: {ours} {expected}");
        }
    }

    #[test]
    fn pages_are_reads_of_streams() {
        let operations = operations(Layout::Plain);
        let since = |offset| Some(Since { offset, epoch: "a life".into() });
        for (page, expected) in [
            (Page { since: None, limit: usize::MAX, reverse: false }, ["1", "0", "0", "0"]),
            (Page { since: None, limit: 5, reverse: false }, ["1", "0", "5", "0"]),
            (Page { since: since(4), limit: 5, reverse: false }, ["1", "5", "5", "0"]),
            (Page { since: None, limit: 5, reverse: true }, ["1", "0", "5", "1"]),
            (Page { since: since(4), limit: 5, reverse: true }, ["1", "3", "5", "1"]),
            (Page { since: since(1), limit: 5, reverse: true }, ["0", "0", "5", "1"]),
        ] {
            let read = Command::Read {
                ticket: Ticket(1),
                channel: "c".into(),
                page: page.clone(),
                meta_ttl_ms: 2_592_000_000,
                expects: None,
            };
            let (Request::Script { arguments, .. }, _) = only(&operations, read) else {
                panic!("no script")
            };
            assert_eq!(arguments[..4], expected.map(|text| text.as_bytes().to_vec()), "{page:?}");
        }
    }

    #[test]
    fn a_top_without_epoch_becomes_a_read_that_makes_one() {
        let operations = operations(Layout::Plain);
        let (ticket, meta_ttl_ms) = (Ticket(3), 1_000);
        let channel = || "c".into();
        let page = Page::default;
        let read = || TopRead { ticket, channel: channel(), page: page(), meta_ttl_ms };
        let awaited = || Awaited::Top(Box::new(read()));
        let nothing = Reply::List(vec![Reply::Nil, Reply::Nil]);
        let settled = operations.settle(awaited(), nothing, FRESH);
        assert!(matches!(settled, Settled::Again(Request::Script { .. }, Awaited::History { .. })));
        for top in [Reply::Bytes(b"4".into()), Reply::Int(4)] {
            let reply = Reply::List(vec![Reply::Bytes(b"ep".into()), top]);
            let Settled::Event(event) = operations.settle(awaited(), reply, FRESH) else {
                panic!("no event")
            };
            let BrokerEvent::History { top, .. } = event else { panic!("{event:?}") };
            assert_eq!(top, Position { offset: 4, epoch: Some("ep".into()) });
        }
    }

    #[test]
    fn channels_that_a_layout_cannot_carry_are_unsupported() {
        let cluster = operations(Layout::Cluster);
        let (ticket, page, meta_ttl_ms) = (Ticket(1), Page::default(), 0);
        let channel = "}x".into();
        let read = Command::Read { ticket, channel, page, meta_ttl_ms, expects: None };
        let refused = cluster.requests(read, FRESH, |_, _| panic!("sent")).unwrap_err();
        let Some(BrokerEvent::Failed { cause, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(cause, FailureCause::Unsupported);
    }

    #[test]
    fn messages_become_events() {
        let operations = operations(Layout::Plain);
        let mut payload = b"__p1:5:epoch__".to_vec();
        NodePublication { data: b"{}".into(), time_ms: 9, ..<_>::default() }.put(&mut payload);
        let event = operations.message("c", &payload).unwrap();
        let BrokerEvent::Delivered(delivered) = event else { panic!("{event:?}") };
        assert_eq!(delivered.epoch, Some("epoch".into()));
        assert_eq!((delivered.entry.after, delivered.entry.time_ms), (4, 9));
        assert_eq!(delivered.entry.record.offset(), 5);
        assert!(delivered.entry.record.published().is_json && !delivered.entry.delta);
        let info = ClientInfo { user: "u", client: "c", ..<_>::default() }.pack();
        let announce = Command::Announce { channel: "c".into(), joined: false, info };
        let (Request::Plain { name, arguments }, _) = only(&operations, announce) else {
            panic!("a script")
        };
        assert_eq!((name, &*arguments[0]), ("PUBLISH", &b"centrifugo.client.c"[..]));
        let event = operations.message("c", &arguments[1]).unwrap();
        assert!(matches!(event, BrokerEvent::Announced { joined: false, .. }), "{event:?}");
        assert!(operations.message("c", b"__d1:7:ep:3:abc").is_err());
        assert!(operations.message("c", b"__p1:7:ep__\xff").is_err());
    }

    #[test]
    fn a_whole_list_is_cut_to_a_page() {
        let entries = |range: std::ops::RangeInclusive<u64>| -> Vec<Entry> {
            let of = |offset| Record::new(offset, &Published::default());
            range
                .map(|offset| Entry {
                    after: 0,
                    time_ms: 0,
                    delta: false,
                    source: None,
                    record: of(offset),
                })
                .collect()
        };
        let offsets = |page: Page| -> Vec<u64> {
            selected(entries(3..=7), &page).iter().map(|entry| entry.record.offset()).collect()
        };
        let since = |offset| Some(Since { offset, epoch: "".into() });
        assert_eq!(offsets(Page { since: since(5), limit: 9, reverse: false }), [6, 7]);
        assert_eq!(offsets(Page { since: since(5), limit: 9, reverse: true }), [4, 3]);
        assert_eq!(offsets(Page { since: None, limit: 2, reverse: true }), [7, 6]);
    }

    #[test]
    fn a_list_that_is_older_than_its_position_is_not_its_history() {
        let entry = |offset: u64| Reply::Bytes(format!("__p1:{offset}:ep__").into());
        let offsets = |listed: &[u64], top: u64| -> Vec<u64> {
            let listed: Vec<Reply> = listed.iter().map(|offset| entry(*offset)).collect();
            of_list(&listed, top).iter().map(|entry| entry.record.offset()).collect()
        };
        assert_eq!(offsets(&[9, 8, 7], 9), [7, 8, 9]);
        // The position was evicted, and the list was not.
        assert_eq!(offsets(&[9, 8, 7], 0), [0; 0]);
        assert_eq!(offsets(&[2, 1, 9, 8, 7], 2), [1, 2]);
    }

    #[test]
    fn a_reply_of_another_shape_fails_the_command() {
        let operations = operations(Layout::Plain);
        for awaited in [
            Awaited::Published { ticket: Ticket(1), has_history: true },
            Awaited::History { ticket: Ticket(1), page: Page::default() },
            Awaited::Members { ticket: Ticket(1), counts: true },
            Awaited::Done { ticket: Ticket(1) },
        ] {
            let error = Reply::Error("WRONGTYPE".into());
            let settled = operations.settle(awaited.clone(), error, FRESH);
            let Settled::Faulty(failed, _) = settled else { panic!("{settled:?}") };
            assert!(matches!(failed[..], [BrokerEvent::Failed { .. }]));
            if !matches!(awaited, Awaited::Done { .. }) {
                let settled = operations.settle(awaited, Reply::Int(3), FRESH);
                let Settled::Faulty(failed, _) = settled else { panic!("{settled:?}") };
                assert!(matches!(failed[..], [BrokerEvent::Failed { .. }]));
            }
        }
    }

    fn unhex(text: &str) -> Vec<u8> {
        let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(pair).collect()
    }

    fn packed(value: &Value) -> Vec<u8> {
        STANDARD.decode(value.as_str().unwrap_or_default()).unwrap()
    }

    /// The packed client of a captured `ClientInfo`.
    fn client(info: &Value) -> Box<[u8]> {
        let text = |name: &str| info[name].as_str().unwrap_or_default();
        let (conn_info, chan_info) = (packed(&info["conn_info"]), packed(&info["chan_info"]));
        let (user, client) = (text("user"), text("client"));
        ClientInfo { user, client, conn_info: &conn_info, chan_info: &chan_info, ..<_>::default() }
            .pack()
    }

    fn check_publication(delivered: &Delivered, decoded: &Value) {
        let epoch = decoded["epoch"].as_str();
        assert_eq!(delivered.epoch, epoch.map(Epoch::from), "{decoded}");
        let record = &delivered.entry.record;
        assert_eq!(record.offset(), decoded["offset"].as_u64().unwrap_or(0), "{decoded}");
        let (expected, found) = (&decoded["publication"], record.published());
        assert_eq!(found.data, packed(&expected["data"]), "{decoded}");
        assert_eq!(expected["time"], delivered.entry.time_ms.to_string(), "{decoded}");
        let tags = Tags::packed(found.tags).iter().count();
        assert_eq!(tags, expected["tags"].as_object().map_or(0, serde_json::Map::len));
        for (name, value) in Tags::packed(found.tags).iter() {
            assert_eq!(expected["tags"][name], value, "{decoded}");
        }
        match &expected["info"] {
            Value::Null => assert!(found.info.is_empty(), "{decoded}"),
            info => assert_eq!(*found.info, *client(info), "{decoded}"),
        }
        let wants_delta = decoded["kind"] == "publication+prev" || expected["delta"] == true;
        assert_eq!(delivered.entry.delta, wants_delta, "{decoded}");
    }

    #[test]
    fn all_messages_of_captured_nodes_are_read() {
        let (mut publications, mut events, mut messages) = (0, 0, 0);
        for line in include_str!("../../tests/vectors/redis/captured.jsonl").lines() {
            let captured: Value = serde_json::from_str(line).unwrap();
            let is_cluster = captured["layout"] == "cluster";
            let operations = operations(if is_cluster { Layout::Cluster } else { Layout::Plain });
            let name = captured["channel"].as_str().unwrap();
            let payload = unhex(captured["payload_hex"].as_str().unwrap());
            let decoded = &captured["decoded"];
            if decoded["kind"] == "control" {
                assert_eq!(operations.names.channel_of(name.as_bytes()), None, "{line}");
                let command = control::Command::read(&payload).unwrap();
                assert_eq!(decoded["command"]["uid"], command.uid, "{line}");
                assert_ne!(command.message, control::Message::Unknown, "{line}");
                // Maps have no order of their own, so a value and not bytes.
                let again = control::Command::read(&command.clone().write());
                assert_eq!(again, Ok(command), "{line}");
                messages += 1;
                continue;
            }
            let channel = operations.names.channel_of(name.as_bytes()).unwrap();
            match operations.message(channel, &payload).unwrap() {
                BrokerEvent::Delivered(delivered) => {
                    check_publication(&delivered, decoded);
                    publications += 1;
                }
                BrokerEvent::Announced { joined, info, .. } => {
                    assert_eq!(decoded["kind"], if joined { "join" } else { "leave" }, "{line}");
                    assert_eq!(info, client(&decoded["info"]), "{line}");
                    events += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((publications, events, messages), (48, 12, 41));
    }
}
