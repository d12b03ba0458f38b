//! Histories in JetStream at work: streams are made, publications get their places, channels are read.
//!
//! The life of a stream is known from its state, which is read when a connection begins, every [`LOOK`], and when an
//! order of publications shows that it went back. When it changes, all channels of the stream begin anew.
//!
//! Where a stream has replicas, a direct read may be answered by one that lags. The newest place of a channel is then
//! read from the leader, and a direct read that doesn't reach it is repeated.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::client::Unreachable;
use super::requests::{Publication, Replies, Reply, request};
use super::{Shared, now_ms, payload};
use crate::cluster::nats::payload::Message as Payload;
use crate::cluster::nats::streams::{
    self, Ack, Fault, NO_MESSAGE, NO_STREAM, Stored, Stream, StreamInfo, Streams, VERSION_EPOCH,
    WRONG_SEQUENCE,
};
use crate::hub::broker::{BrokerEvent, Command, Entry, FailureCause, Publishing};
use crate::hub::history::{Epoch, Page, Position};
use crate::node::log_limit::LogLimit;

/// The state of each stream is read so often.
const LOOK: Duration = Duration::from_secs(2);

/// Pauses between reads that came too early at a replica, and how many there are.
const REPLICA_PAUSE: Duration = Duration::from_millis(10);
const REPLICA_READS: usize = 50;

/// A publication with a version is tried so often while others come between.
const VERSION_TRIES: usize = 16;

/// Messages that one request asks for: another one follows if there are more.
const BATCH_MAX: usize = 1_024;

/// Lines about errors of JetStream.
static ERRORS: LogLimit = LogLimit::new();

/// What a thread knows of the streams.
#[derive(Default)]
pub(super) struct Lives {
    /// By the number of the stream.
    all: RefCell<Vec<Option<Life>>>,
    /// Milliseconds by which the server's clock is ahead.
    ahead_ms: Cell<i64>,
    /// A stream may have begun anew.
    doubt: Notify,
    /// Streams are to be as namespaces say by now.
    is_changed: Cell<bool>,
}

#[derive(Clone)]
struct Life {
    epoch: Epoch,
    /// The greatest sequence that came.
    last: u64,
}

impl Lives {
    /// The life of a stream; `None` before it is known.
    pub(super) fn epoch(&self, stream: usize) -> Option<Epoch> {
        self.all.borrow().get(stream)?.as_ref().map(|life| life.epoch.clone())
    }

    /// A publication of a stream has come. Sequences grow.
    pub(super) fn seen(&self, stream: usize, sequence: u64) {
        if let Some(Some(life)) = self.all.borrow_mut().get_mut(stream) {
            if sequence <= life.last {
                self.doubt.notify_one();
            }
            life.last = sequence;
        }
    }

    /// The streams are to be made and changed once more.
    pub(super) fn change(&self) {
        self.is_changed.set(true);
        self.doubt.notify_one();
    }

    fn is_over(&self, stored: Stored, ttl_ms: u64) -> bool {
        let now = now_ms().saturating_add_signed(self.ahead_ms.get());
        stored.time_ms.saturating_add(ttl_ms) <= now
    }
}

/// Why something in JetStream failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer in time")]
    Timeout,
    #[error("no JetStream, or no such stream")]
    Nobody,
    #[error("{0}")]
    Fault(String),
    #[error("an answer that can't be read: {0}")]
    Shape(#[from] serde_json::Error),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault.description)
    }
}

/// Makes or changes all streams, and then looks after them until the connection ends: why.
pub(super) async fn look_after(shared: &Rc<Shared>) -> Unreachable {
    let Some(streams) = shared.streams() else { return std::future::pending().await };
    let mut lives = Vec::new();
    for stream in &streams.all {
        match prepare(shared, &streams, stream).await {
            Ok(info) => lives.push(Some(Life { epoch: info.epoch(), last: 0 })),
            Err(error) => {
                let name = &stream.name;
                return Unreachable::Refused(format!("the stream {name} can't be used: {error}"));
            }
        }
    }
    adopt(shared, lives);
    if let Err(error) = shared.ready().await {
        return error;
    }
    loop {
        // As long as nothing is in doubt.
        let _ = timeout(LOOK, shared.lives.doubt.notified()).await;
        let Some(streams) = shared.streams() else { continue };
        let is_changed = shared.lives.is_changed.take();
        for (at, stream) in streams.all.iter().enumerate() {
            let is_known = !is_changed && shared.lives.epoch(at).is_some();
            let mut info = match is_known {
                true => info_of(shared, stream, "INFO", b"").await,
                false => prepare(shared, &streams, stream).await,
            };
            if is_known && matches!(info, Err(Failure::Fault(_))) {
                // It is gone: publications would fail until it is there again.
                info = prepare(shared, &streams, stream).await;
            }
            match info {
                Ok(info) => look(shared, at, &info),
                Err(error) => warn(&stream.name, &error),
            }
        }
    }
}

/// The streams as they are at the beginning of a connection.
fn adopt(shared: &Shared, mut lives: Vec<Option<Life>>) {
    let known = shared.lives.all.borrow().clone();
    for (life, known) in lives.iter_mut().zip(known) {
        if let (Some(life), Some(known)) = (life, known)
            && life.epoch == known.epoch
        {
            life.last = known.last;
        }
    }
    *shared.lives.all.borrow_mut() = lives;
}

/// The state of a stream: channels of one that has begun anew do so, too.
fn look(shared: &Shared, at: usize, info: &StreamInfo) {
    if let Some(now) = streams::unix_ms(&info.ts) {
        shared.lives.ahead_ms.set(now.cast_signed().wrapping_sub(now_ms().cast_signed()));
    }
    let epoch = info.epoch();
    let known = shared.lives.epoch(at);
    if known.as_ref() == Some(&epoch) {
        return;
    }
    let mut all = shared.lives.all.borrow_mut();
    let count = all.len().max(at + 1);
    all.resize(count, None);
    all[at] = Some(Life { epoch, last: 0 });
    drop(all);
    if known.is_none() {
        return;
    }
    let Some(streams) = shared.streams() else { return };
    tracing::warn!(
        "nats: the stream {} has begun anew: its channels do, too",
        streams.all[at].name
    );
    let mut events = vec![Vec::new(); shared.settings.homes];
    shared.interests.borrow().on(|home, channel| {
        if streams.of(channel) == Some(at) {
            let channel = channel.clone();
            events[home].push(BrokerEvent::Interrupted { channel: channel.clone() });
            events[home].push(BrokerEvent::Listening { channel });
        }
    });
    for (home, events) in events.into_iter().enumerate().filter(|(_, of)| !of.is_empty()) {
        shared.events.take(home, events);
    }
}

fn warn(name: &str, error: &Failure) {
    if let Some(left_out) = ERRORS.admit() {
        tracing::warn!(left_out, "nats: stream {name}: {error}");
    }
}

/// A stream as it should be.
async fn prepare(
    shared: &Rc<Shared>,
    streams: &Streams,
    stream: &Stream,
) -> Result<StreamInfo, Failure> {
    let found = info_reply(shared, stream, "INFO", b"").await?;
    let manages = streams.keeping.manages;
    let info = match &found.error {
        Some(fault) if fault.err_code == NO_STREAM && manages => {
            let config = streams.config(stream, None).to_string();
            match info_of(shared, stream, "CREATE", config.as_bytes()).await {
                Ok(info) => info,
                // Another node may have been first.
                Err(Failure::Fault(why)) => {
                    let known = info_of(shared, stream, "INFO", b"").await;
                    known.map_err(|_| Failure::Fault(why))?
                }
                Err(error) => return Err(error),
            }
        }
        Some(fault) => return Err(fault.clone().into()),
        None => {
            let wanted = streams.config(stream, Some(&found.config));
            if manages && wanted != found.config {
                match info_of(shared, stream, "UPDATE", wanted.to_string().as_bytes()).await {
                    Ok(info) => info,
                    Err(error) => {
                        tracing::warn!("nats: stream {} can't be changed: {error}", stream.name);
                        found
                    }
                }
            } else {
                found
            }
        }
    };
    match streams.misfit(stream, &info.config) {
        Some(fault) => Err(Failure::Fault(fault.to_owned())),
        None => Ok(info),
    }
}

async fn info_reply(
    shared: &Rc<Shared>,
    stream: &Stream,
    what: &str,
    body: &[u8],
) -> Result<StreamInfo, Failure> {
    let reply =
        one(request(shared, &stream.request(what), HeaderMap::new(), body.to_vec())).await?;
    Ok(serde_json::from_slice(&reply.payload)?)
}

async fn info_of(
    shared: &Rc<Shared>,
    stream: &Stream,
    what: &str,
    body: &[u8],
) -> Result<StreamInfo, Failure> {
    let info = info_reply(shared, stream, what, body).await?;
    match info.error {
        Some(fault) => Err(fault.into()),
        None => Ok(info),
    }
}

/// The only reply to a request.
async fn one(mut replies: Replies) -> Result<Reply, Failure> {
    let reply = replies.next().await.ok_or(Failure::Timeout)?;
    if reply.status == Some(503) { Err(Failure::Nobody) } else { Ok(reply) }
}

/// Sends a publication to its stream; [`acknowledged`] has the answer.
pub(super) fn publish(
    shared: &Rc<Shared>,
    (home, publishing, cost): (usize, &Publishing, usize),
    stream: usize,
) -> Result<(), FailureCause> {
    let Some(streams) = shared.streams() else { return Err(FailureCause::Unsupported) };
    let bytes = payload::publication(publishing, now_ms());
    if publishing.version > 0 {
        let (shared, publishing) = (shared.clone(), publishing.clone());
        tokio::task::spawn_local(async move {
            let event = publish_version(&shared, &publishing, stream, &bytes).await;
            shared.settle(home, cost, event);
        });
        return Ok(());
    }
    let since = tokio::time::Instant::now();
    let publication = Publication { home, ticket: publishing.ticket, stream, since, cost };
    let number = shared.requests.borrow_mut().publication(publication);
    let subject = streams.all[stream].publications(&publishing.channel);
    let sent = shared.send_request(&subject, number, key_of(publishing), bytes);
    if sent.is_err() {
        shared.requests.borrow_mut().forget(number);
    }
    sent
}

/// The headers of a publication: its idempotency key, if it has one.
fn key_of(publishing: &Publishing) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let key = &publishing.idempotency_key;
    if !key.is_empty() {
        headers.insert(NATS_MESSAGE_ID, streams::message_id(&publishing.channel, key));
    }
    headers
}

/// The event that the answer to a publication means.
pub(super) fn acknowledged(
    shared: &Shared,
    publication: &Publication,
    (status, bytes): (Option<u16>, &[u8]),
) -> BrokerEvent {
    let Publication { ticket, stream, .. } = *publication;
    let ack = match status {
        None => serde_json::from_slice::<Ack>(bytes).map_err(Failure::from),
        Some(_) => Err(Failure::Nobody),
    };
    let failed = BrokerEvent::Failed { ticket, cause: FailureCause::Unavailable };
    match ack {
        Ok(Ack { error: None, seq, .. }) => match shared.lives.epoch(stream) {
            Some(epoch) => {
                let position = Position { offset: seq, epoch: Some(epoch) };
                BrokerEvent::Published { ticket, position }
            }
            None => failed,
        },
        Ok(Ack { error: Some(fault), .. }) => {
            warn("of a publication", &fault.into());
            failed
        }
        Err(error) => {
            warn("of a publication", &error);
            failed
        }
    }
}

/// Takes a publication if its version is greater than that of the channel, and no other has come meanwhile.
async fn publish_version(
    shared: &Rc<Shared>,
    publishing: &Publishing,
    at: usize,
    bytes: &[u8],
) -> BrokerEvent {
    let Publishing { ticket, channel, version, version_epoch, .. } = publishing;
    let failed = BrokerEvent::Failed { ticket: *ticket, cause: FailureCause::Unavailable };
    let (Some(streams), Some(epoch)) = (shared.streams(), shared.lives.epoch(at)) else {
        return failed;
    };
    let stream = &streams.all[at];
    let subject = stream.publications(channel);
    let version_epoch = streams::header_value(version_epoch);
    let position = |offset| BrokerEvent::Published {
        ticket: *ticket,
        position: Position { offset, epoch: Some(epoch.clone()) },
    };
    for _ in 0..VERSION_TRIES {
        let read = async {
            let kept = read_from(shared, stream, &subject, 1, usize::MAX).await?;
            let versions = kept.iter().map(|reply| (payload::version(&reply.payload), reply));
            let newest = versions.rev().find(|(version, _)| *version > 0);
            let known = newest.map(|(version, reply)| (version, reply.version_epoch.clone()));
            let last = kept.last().and_then(|reply| reply.stored).map_or(0, |of| of.sequence);
            Ok::<_, Failure>((last, known))
        };
        let Ok((last, known)) = read.await else { return failed };
        if let Some((known, of)) = known
            && (version_epoch.is_empty() || version_epoch == of)
            && known >= *version
        {
            return position(last);
        }
        let mut headers = key_of(publishing);
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last.to_string());
        headers.insert(VERSION_EPOCH, version_epoch.as_str());
        let Ok(reply) = one(request(shared, &subject, headers, bytes.to_vec())).await else {
            return failed;
        };
        match serde_json::from_slice::<Ack>(&reply.payload) {
            Ok(Ack { error: None, seq, .. }) => return position(seq),
            Ok(Ack { error: Some(fault), .. }) if fault.err_code == WRONG_SEQUENCE => {}
            Ok(_) | Err(_) => return failed,
        }
    }
    failed
}

/// Carries out a command about a history in a task of its own.
pub(super) fn carry_out(
    shared: &Rc<Shared>,
    (home, command, cost): (usize, Command, usize),
    stream: usize,
) {
    let shared = shared.clone();
    tokio::task::spawn_local(async move {
        let (ticket, done) = match command {
            Command::Read { ticket, channel, page, expects, .. } => {
                (ticket, read(&shared, stream, &channel, &page, expects).await)
            }
            Command::Renew { ticket, channel, epoch, .. } => {
                (ticket, renew(&shared, stream, &channel, &epoch).await)
            }
            Command::Drop { ticket, channel } => {
                (ticket, remove(&shared, stream, &channel).await.map(|()| None))
            }
            _ => return,
        };
        let event = match done {
            Ok(Some((top, entries))) => BrokerEvent::History { ticket, top, entries },
            Ok(None) => BrokerEvent::Done { ticket },
            Err(error) => {
                warn("of a history", &error);
                BrokerEvent::Failed { ticket, cause: FailureCause::Unavailable }
            }
        };
        shared.settle(home, cost, event);
    });
}

type Found = Option<(Position, Vec<Entry>)>;

async fn read(
    shared: &Rc<Shared>,
    at: usize,
    channel: &str,
    page: &Page,
    expects: Option<u64>,
) -> Result<Found, Failure> {
    let (Some(streams), Some(epoch)) = (shared.streams(), shared.lives.epoch(at)) else {
        return Err(Failure::Nobody);
    };
    let reading = Reading { shared, stream: &streams.all[at], channel };
    let (top, entries) = reading.page(page, expects).await?;
    Ok(Some((Position { offset: top, epoch: Some(epoch) }, entries)))
}

/// Gives a stream that went back another life, unless it has one.
async fn renew(
    shared: &Rc<Shared>,
    at: usize,
    channel: &str,
    epoch: &Epoch,
) -> Result<Found, Failure> {
    let Some(streams) = shared.streams() else { return Err(Failure::Nobody) };
    let stream = &streams.all[at];
    let mut info = info_of(shared, stream, "INFO", b"").await?;
    if info.epoch() == *epoch {
        let renewed = info.renewed().to_string();
        info = info_of(shared, stream, "UPDATE", renewed.as_bytes()).await?;
    }
    look(shared, at, &info);
    let page = Page { since: None, limit: 1, reverse: true };
    read(shared, at, channel, &page, None).await
}

/// Hides the publications of a channel: the newest one stays for its place.
async fn remove(shared: &Rc<Shared>, at: usize, channel: &str) -> Result<(), Failure> {
    let Some(streams) = shared.streams() else { return Err(Failure::Nobody) };
    let stream = &streams.all[at];
    let subject = stream.publications(channel);
    let reading = Reading { shared, stream, channel };
    let top = reading.top().await?;
    if top == 0 {
        return Ok(());
    }
    let removal = top.to_string();
    let reply =
        one(request(shared, &stream.removals(channel), HeaderMap::new(), removal.into())).await?;
    if let Some(fault) = serde_json::from_slice::<Ack>(&reply.payload)?.error {
        return Err(fault.into());
    }
    // What came behind the mark stays; what is hidden needs no room.
    let purge = streams::purge_before(&subject, top);
    let reply = one(request(shared, &stream.request("PURGE"), HeaderMap::new(), purge)).await?;
    match serde_json::from_slice::<Ack>(&reply.payload)?.error {
        Some(fault) => Err(fault.into()),
        None => Ok(()),
    }
}

/// A channel that is read.
struct Reading<'a> {
    shared: &'a Rc<Shared>,
    stream: &'a Stream,
    channel: &'a str,
}

impl Reading<'_> {
    fn has_replicas(&self) -> bool {
        self.shared.settings.streams.as_ref().is_some_and(|of| of.keeping.replicas > 1)
    }

    /// The offset of the newest publication; 0 if there was none.
    async fn top(&self) -> Result<u64, Failure> {
        let subject = self.stream.publications(self.channel);
        let last = streams::last_of(&subject);
        if self.has_replicas() {
            let reply =
                one(request(self.shared, &self.stream.request("MSG.GET"), HeaderMap::new(), last))
                    .await?;
            return match serde_json::from_slice::<Kept>(&reply.payload)? {
                Kept { error: Some(fault), .. } if fault.err_code == NO_MESSAGE => Ok(0),
                Kept { error: Some(fault), .. } => Err(fault.into()),
                Kept { message, .. } => Ok(message.seq),
            };
        }
        let reply =
            one(request(self.shared, &self.stream.direct(), HeaderMap::new(), last)).await?;
        Ok(reply.stored.map_or(0, |stored| stored.sequence))
    }

    /// A page, and the offset of the newest publication.
    async fn page(&self, page: &Page, expects: Option<u64>) -> Result<(u64, Vec<Entry>), Failure> {
        if page.limit == 0 {
            return Ok((self.top().await?, Vec::new()));
        }
        if let (Some(since), false, true) = (&page.since, page.reverse, expects.is_some())
            && let Some(found) = self.behind(since.offset, page.limit).await?
        {
            return Ok(found);
        }
        let (top, mut entries) = self.all(expects.is_none()).await?;
        let since = page.since.as_ref().map(|since| since.offset);
        if let Some(since) = since {
            entries.retain(|entry| match page.reverse {
                true => entry.record.offset() < since,
                false => entry.record.offset() > since,
            });
        }
        if page.reverse {
            entries.reverse();
        }
        entries.truncate(page.limit);
        Ok((top, entries))
    }

    /// The publications behind an offset, if one directly behind it shows that none between is missing: that is the
    /// one at which a home stands.
    async fn behind(&self, since: u64, limit: usize) -> Result<Option<(u64, Vec<Entry>)>, Failure> {
        if since == 0 || self.has_replicas() {
            return Ok(None);
        }
        let subject = self.stream.publications(self.channel);
        let found = read_from(self.shared, self.stream, &subject, since + 1, limit).await?;
        let stands = found.first().and_then(|reply| reply.stored).map(|of| of.sequence);
        if stands != Some(since + 1) {
            return Ok(None);
        }
        let entries = chain(&found, since);
        let newest = entries.last().map_or(0, |entry| entry.record.offset());
        let top = if found.len() < limit { newest } else { newest.max(self.top().await?) };
        Ok(Some((top, entries)))
    }

    /// All publications that the channel has. `as_clients_see`: without those that are over or removed.
    async fn all(&self, as_clients_see: bool) -> Result<(u64, Vec<Entry>), Failure> {
        let subject = self.stream.publications(self.channel);
        let (top, removed, found) = self.snapshot(&subject).await?;
        let kept = self.stream.size as usize;
        let is_full = found.len() > kept;
        let mut entries = chain(&found, 0);
        if is_full {
            // The oldest ones show what the next one follows.
            entries.drain(..found.len() - kept);
        }
        if as_clients_see {
            let newest = found.last().and_then(|reply| reply.stored);
            let is_over = |of| self.shared.lives.is_over(of, self.stream.ttl_ms);
            let removed = if newest.is_some_and(is_over) { u64::MAX } else { removed };
            entries.retain(|entry| entry.record.offset() > removed);
        }
        Ok((top, entries))
    }

    /// The newest offset, the offset up to which all is removed, and all messages.
    async fn snapshot(&self, subject: &str) -> Result<(u64, u64, Vec<Reply>), Failure> {
        let removals = self.stream.removals(self.channel);
        for _ in 0..REPLICA_READS {
            let both = streams::last_of_each(&[subject, &removals]);
            let mut replies = request(self.shared, &self.stream.direct(), HeaderMap::new(), both);
            let (mut top, mut removed) = (0, 0);
            loop {
                let reply = replies.next().await.ok_or(Failure::Timeout)?;
                match (reply.status, reply.stored) {
                    (Some(503), _) => return Err(Failure::Nobody),
                    (Some(_), _) => break,
                    (None, Some(stored)) if reply.subject == subject => top = stored.sequence,
                    (None, Some(_)) => {
                        let text = std::str::from_utf8(&reply.payload).unwrap_or_default();
                        removed = text.parse().unwrap_or(0);
                    }
                    (None, None) => return Err(Failure::Nobody),
                }
            }
            if self.has_replicas() {
                top = self.top().await?;
            }
            if top == 0 {
                return Ok((0, removed, Vec::new()));
            }
            let found = read_from(self.shared, self.stream, subject, 1, usize::MAX).await?;
            let newest = found.last().and_then(|reply| reply.stored).map_or(0, |of| of.sequence);
            if newest >= top {
                return Ok((newest, removed, found));
            }
            sleep(REPLICA_PAUSE).await;
        }
        Err(Failure::Timeout)
    }
}

/// An answer of the leader to a read of one message.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Kept {
    message: KeptMessage,
    error: Option<Fault>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KeptMessage {
    seq: u64,
}

/// Up to `limit` messages of a subject from a sequence on.
async fn read_from(
    shared: &Rc<Shared>,
    stream: &Stream,
    subject: &str,
    first: u64,
    limit: usize,
) -> Result<Vec<Reply>, Failure> {
    let mut found: Vec<Reply> = Vec::new();
    let mut next = first;
    while found.len() < limit {
        let wanted = (limit - found.len()).min(BATCH_MAX);
        let body = streams::from(subject, next, wanted);
        let mut replies = request(shared, &stream.direct(), HeaderMap::new(), body);
        let pending = loop {
            let reply = replies.next().await.ok_or(Failure::Timeout)?;
            match (reply.status, reply.stored) {
                (Some(503), _) => return Err(Failure::Nobody),
                (Some(404), _) => break 0,
                (Some(_), _) => break reply.pending,
                (None, Some(stored)) => {
                    next = stored.sequence + 1;
                    found.push(reply);
                }
                (None, None) => return Err(Failure::Nobody),
            }
        };
        if pending == 0 {
            break;
        }
    }
    Ok(found)
}

/// Publications that follow each other, the first one an offset. What is no publication is left out.
fn chain(found: &[Reply], before: u64) -> Vec<Entry> {
    let mut after = before;
    let mut entries = Vec::with_capacity(found.len());
    for reply in found {
        let Some(stored) = reply.stored else { continue };
        let place = Some((stored.sequence, after));
        if let Ok(Payload::Publication(_, entry)) = payload::read_at(&reply.payload, place) {
            entries.push(entry);
        }
        after = stored.sequence;
    }
    entries
}
