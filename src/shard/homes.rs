//! The home role: the one writer of its channels. Mail in, deliveries and answers out.

use super::answers::Asked;
use super::mail::{
    Answer, Asker, Flushed, Mail, Publish, Read, Reading, Recover, Recovery, Subscribe, Subscribed,
    Unsubscribe,
};
use super::write::opcode;
use super::*;
use crate::base::info::ClientInfo;
use crate::base::tags::Tags;
use crate::edge::channels::Namespace;
use crate::hub::delta;
use crate::hub::history::{Page, Published, Record, Recovered, StreamOptions};
use crate::hub::home::Wanted;
use crate::hub::members::Member;
use crate::hub::parcel::{Form, Parcel, Told};
use crate::proto::client::{DataForm, ErrorCode, Publication, Push, is_json};

/// A set of shards: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ShardSet([u64; 4]);

impl ShardSet {
    pub(super) fn insert(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] |= 1 << (shard.index() % 64);
    }

    fn remove(&mut self, shard: ShardId) {
        self.0[shard.index() / 64] &= !(1 << (shard.index() % 64));
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    fn pop(&mut self) -> Option<ShardId> {
        let word = self.0.iter().position(|word| *word != 0)?;
        let shard = ShardId((word * 64) as u8 + self.0[word].trailing_zeros() as u8);
        self.remove(shard);
        Some(shard)
    }
}

/// A publish that is taken but not acknowledged: its deliveries are not all in their receivers'
/// mailboxes.
#[derive(Debug)]
pub(super) struct PendingAck {
    to: ShardId,
    asker: Asker,
    waits_for: ShardSet,
}

/// Somebody came to a channel or left it, and it isn't told yet.
#[derive(Debug)]
pub(super) struct Event {
    channel: CompactString,
    came: bool,
    /// Packed.
    info: Box<[u8]>,
}

fn stream_options(namespace: &Namespace) -> StreamOptions {
    StreamOptions {
        size: namespace.history_size,
        ttl_ms: namespace.history_ttl_ms,
        meta_ttl_ms: namespace.history_meta_ttl_ms,
    }
}

impl<D: Driver> Shard<D> {
    /// A subscription begins: the subscriber joins, and what it lacks is read, in one step.
    pub(super) fn home_subscribe(&mut self, from: ShardId, subscribe: Subscribe) {
        let now = self.driver.now();
        let Subscribe { channel, hash, local, asker, serial, mut traits, .. } = subscribe;
        let namespace = subscribe.namespace;
        let options = stream_options(self.channels_with(namespace).namespace(namespace));
        let (at, position) =
            self.homes.subscribe(now, &channel, hash, options, from, local, traits);
        let recovery = match &subscribe.recover {
            Some(recover) => self.recover(at, traits.form(), recover),
            None => Recovery::None,
        };
        let based = matches!(&recovery, Recovery::Done { publications: Some(_), .. });
        traits = traits.with_fresh(traits.form().takes_patches() && !based);
        if traits.fresh() {
            self.homes.mark_fresh(at, from);
        }
        let announced = subscribe.membership.map(|membership| {
            let member = Member { shard: from, conn: asker.conn };
            let (present, announces) = (membership.present, membership.announces);
            self.homes.enter(at, member, &membership.info, present, announces);
            (announces, membership.info)
        });
        let fresh = traits.fresh();
        let subscribed = Subscribed { local, asker, serial, position, recovery, fresh };
        self.post(from, Mail::Subscribed(Box::new(subscribed)));
        if let Some((true, info)) = announced {
            self.events.push(Event { channel, came: true, info });
        }
    }

    /// What a subscriber lacks of a stream, encoded for it.
    fn recover(&mut self, at: u32, form: Form, recover: &Recover) -> Recovery {
        let now = self.driver.now();
        let limit = self.node.rules.client.recovery_publications_max;
        let Recover { since, latest, filter, bytes_max } = recover;
        self.counters().recoveries.add(1);
        let Some(stream) = self.homes.stream(now, at) else { return Recovery::Failed };
        let recovered = match latest {
            true => stream.recover_latest(since),
            false => stream.recover(since, limit),
        };
        let Recovered::Yes(places) = recovered else { return Recovery::Failed };
        let top = stream.position();
        let asked = Asked::of(at, form, &top, &places).filter(|_| filter.is_none());
        let known = asked.as_ref().and_then(|asked| self.answers.get(asked));
        let list = match known {
            Some(list) => Some(list),
            None => {
                let records = stream.range(places).filter(|record| {
                    let tags = Tags::packed(record.published().tags);
                    filter.as_ref().is_none_or(|filter| filter.matches(tags))
                });
                let records: Vec<&Record> = records.collect();
                match encode_list(form, &records, *bytes_max) {
                    Ok(list) => {
                        if let (Some(asked), Some(list)) = (asked, &list) {
                            self.answers.insert(asked, list.clone());
                        }
                        list
                    }
                    Err(ListFault::TooMuch) => return Recovery::Failed,
                    Err(ListFault::Unfit) => return Recovery::Unfit,
                }
            }
        };
        if list.as_ref().is_some_and(|list| list.len() > *bytes_max) {
            return Recovery::Failed;
        }
        self.counters().recovered.add(1);
        // The client comes to the top by what it gets.
        Recovery::Done { publications: list, offset: since.offset }
    }

    /// A subscription ends.
    pub(super) fn home_unsubscribe(&mut self, from: ShardId, unsubscribe: &Unsubscribe) {
        let Unsubscribe { local, channel, asker, traits, member } = unsubscribe;
        let hash = self.node.names.hash(channel);
        let member = member.map(|conn| Member { shard: from, conn });
        let left = self.homes.unsubscribe(channel, hash, from, *traits, member);
        if let Some(left) = left
            && left.announces
        {
            let (channel, info) = (channel.clone(), left.info);
            self.events.push(Event { channel, came: false, info });
        }
        self.post(from, Mail::Unsubscribed { local: *local, asker: *asker });
    }

    /// What others see of a subscriber has changed.
    pub(super) fn home_reinform(
        &mut self,
        from: ShardId,
        channel: &str,
        conn: ConnKey,
        info: &[u8],
    ) {
        let hash = self.node.names.hash(channel);
        self.homes.reinform(channel, hash, Member { shard: from, conn }, info);
    }

    /// A publication: next offset, history, each form encoded once, a delivery to each interested
    /// shard.
    pub(super) fn home_publish(&mut self, from: ShardId, publish: &Publish) {
        let now = self.driver.now();
        let channels = self.channels_with(publish.namespace);
        let namespace = channels.namespace(publish.namespace);
        let options = stream_options(namespace);
        let Publish { channel, hash, data, info, tags, is_json, .. } = publish;
        let published = Published { data, info, tags, is_json: *is_json };
        let patch = match self.homes.find(channel, *hash) {
            Some(at) if namespace.delta_publish && self.homes.wanted(at).patches() => {
                let stream = self.homes.stream(now, at);
                let base = stream.and_then(|stream| stream.last());
                base.and_then(|base| delta::patch(base.data(), data))
            }
            _ => None,
        };
        let taken = self.homes.publish(now, channel, *hash, options, &published);
        self.node.counters[self.id.index()].publications.add(1);
        let mut waits_for = ShardSet::default();
        if let Some(at) = taken.channel {
            let offset = taken.position.offset;
            let epoch = taken.position.epoch.filter(|_| offset == 1);
            let publication = Publication {
                data,
                info: ClientInfo::unpack(info),
                offset,
                tags: Tags::packed(tags),
                epoch: epoch.as_ref().map(|epoch| epoch.as_str()),
                ..Publication::default()
            };
            let wanted = self.homes.wanted(at);
            let parcel = self.pack(channel, &publication, *is_json, patch.as_deref(), wanted);
            for interest in self.homes.interests_mut(at) {
                interest.fresh = false;
            }
            waits_for = self.hand_out(at, &Arc::new(parcel));
        }
        if let Some(asker) = publish.asker {
            self.acks.push_back(PendingAck { to: from, asker, waits_for });
        }
    }

    /// Encodes a publication in the forms that are wanted.
    fn pack(
        &mut self,
        channel: &str,
        publication: &Publication<'_>,
        is_json: bool,
        patch: Option<&[u8]>,
        wanted: Wanted,
    ) -> Parcel {
        let text_patch = patch.filter(|patch| delta::is_text(patch));
        let has = |form| wanted.has(form);
        let json = is_json && has(Form::Json);
        let text = is_json
            && (has(Form::JsonText)
                || has(Form::JsonDelta) && (text_patch.is_none() || wanted.fresh));
        let protobuf =
            has(Form::Protobuf) || has(Form::ProtobufDelta) && (patch.is_none() || wanted.fresh);
        let mut frame = |wanted: bool, encoding, form, data| {
            wanted.then(|| {
                let push = Push::Publication(Publication { data, form, ..*publication });
                self.frame_of(encoding, |encoding, out| encoding.put_push(out, channel, &push))
            })
        };
        let data = publication.data;
        let patch = patch.filter(|_| has(Form::ProtobufDelta));
        let text_patch = text_patch.filter(|_| is_json && has(Form::JsonDelta));
        Parcel {
            json: frame(json, Encoding::Json, DataForm::Plain, data),
            protobuf: frame(protobuf, Encoding::Protobuf, DataForm::Plain, data),
            text: frame(text, Encoding::Json, DataForm::Text, data),
            json_patch: text_patch
                .and_then(|patch| frame(true, Encoding::Json, DataForm::Patch, patch)),
            protobuf_patch: patch
                .and_then(|patch| frame(true, Encoding::Protobuf, DataForm::Patch, patch)),
            unfit_for_json: !is_json,
            ..Parcel::new(Told::Publication, publication.offset, publication.tags)
        }
    }

    /// A frame of what `put` writes.
    fn frame_of(
        &mut self,
        encoding: Encoding,
        put: impl FnOnce(Encoding, &mut Vec<u8>),
    ) -> SharedFrame {
        self.scratch.clear();
        put(encoding, &mut self.scratch);
        self.replies.clear();
        ws::put_frame(&mut self.replies, opcode(encoding), &self.scratch);
        SharedFrame::new(&self.replies)
    }

    /// Adds a parcel to the mail for each shard that is interested in it. The answer: those in whose
    /// mailboxes it is not yet.
    fn hand_out(&mut self, at: u32, parcel: &Arc<Parcel>) -> ShardSet {
        let mut waits_for = ShardSet::default();
        let mut filled = ShardSet::default();
        let counters = &self.node.counters[self.id.index()];
        let presence = parcel.told == Told::Presence;
        for interest in self.homes.interests_mut(at) {
            if presence && !interest.takes_joins() {
                continue;
            }
            let outbox = &mut self.mail[interest.shard.index()];
            if interest.gap || outbox.is_full() {
                if presence {
                    counters.events_lost.add(1);
                    continue;
                }
                if !interest.gap {
                    interest.gap = true;
                    outbox.gaps.push(at);
                }
                counters.gaps_mail.add(1);
                continue;
            }
            waits_for.insert(interest.shard);
            outbox.push(Mail::Deliver { local: interest.local, parcel: Arc::clone(parcel) });
            if outbox.is_full() {
                filled.insert(interest.shard);
            }
        }
        // One turn may bring more than an outbox holds. Where the receiver has room it goes at once:
        // only a mailbox that is full makes a gap.
        while let Some(shard) = filled.pop() {
            if self.flush_to(shard) {
                waits_for.remove(shard);
            }
        }
        waits_for
    }

    /// Tells who came and who left in this turn: for each channel in one message or a few, so that a
    /// burst of them is one write for each subscriber.
    pub(super) fn tell_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        // Stable: in a channel they stay in order, a client's coming before its going.
        events.sort_by(|a, b| a.channel.cmp(&b.channel));
        for events in events.chunk_by(|a, b| a.channel == b.channel) {
            let channel = &events[0].channel;
            let hash = self.node.names.hash(channel);
            let Some(at) = self.homes.find(channel, hash) else { continue };
            if !self.homes.interests(at).iter().any(|interest| interest.takes_joins()) {
                continue;
            }
            for events in events.chunks(usize::from(FRAME_MESSAGES_MAX)) {
                let wanted = self.homes.wanted(at);
                let parcel = self.pack_events(channel, events, wanted);
                self.hand_out(at, &Arc::new(parcel));
            }
        }
        events.clear();
        self.events = events;
    }

    fn pack_events(&mut self, channel: &str, events: &[Event], wanted: Wanted) -> Parcel {
        let infos = events
            .iter()
            .filter_map(|event| ClientInfo::unpack(&event.info).map(|info| (event.came, info)));
        let infos: Vec<(bool, ClientInfo<'_>)> = infos.collect();
        let fits = |info: &ClientInfo<'_>| {
            let parts = [info.conn_info, info.chan_info];
            parts.iter().all(|part| part.is_empty() || is_json(part))
        };
        let is_json = infos.iter().all(|(_, info)| fits(info));
        let any = |protobuf| {
            Form::ALL.into_iter().any(|form| wanted.has(form) && form.is_protobuf() == protobuf)
        };
        let mut frame = |wanted: bool, encoding: Encoding| {
            wanted.then(|| {
                self.frame_of(encoding, |encoding, out| {
                    for (at, (came, info)) in infos.iter().enumerate() {
                        if at > 0 && encoding == Encoding::Json {
                            out.push(b'\n');
                        }
                        let push = if *came { Push::Join(*info) } else { Push::Leave(*info) };
                        encoding.put_push(out, channel, &push);
                    }
                })
            })
        };
        Parcel {
            json: frame(is_json && any(false), Encoding::Json),
            protobuf: frame(any(true), Encoding::Protobuf),
            unfit_for_json: !is_json,
            ..Parcel::new(Told::Presence, 0, Tags::NONE)
        }
    }

    /// Something is to be read.
    pub(super) fn home_read(&mut self, from: ShardId, read: &Read) {
        let answer = match &read.what {
            Reading::Presence => self.read_presence(read),
            Reading::PresenceStats => {
                let members = self.homes.find(&read.channel, read.hash);
                let members = members.and_then(|at| self.homes.members(at));
                members.map_or(Answer::PresenceStats(0, 0), |members| {
                    Answer::PresenceStats(members.clients(), members.users())
                })
            }
            Reading::History(page) => self.read_history(read, page),
        };
        self.counters().reads.add(1);
        self.post(from, Mail::Answer { asker: read.asker, answer });
    }

    fn read_presence(&mut self, read: &Read) -> Answer {
        let members = self.homes.find(&read.channel, read.hash);
        let members = members.and_then(|at| self.homes.members(at));
        let present = || members.into_iter().flat_map(|members| members.present());
        let entries = || present().filter_map(ClientInfo::unpack);
        // What is too much is seen before it is written.
        let mut bytes = 0;
        let mut fits = true;
        for entry in entries() {
            bytes += entry.user.len() + 2 * entry.client.len();
            bytes += entry.conn_info.len() + entry.chan_info.len();
            fits &= [entry.conn_info, entry.chan_info]
                .iter()
                .all(|part| part.is_empty() || is_json(part));
        }
        if bytes > read.bytes_max {
            return Answer::Error(ErrorCode::LimitExceeded);
        }
        if !fits && read.encoding == Encoding::Json {
            return Answer::Unfit;
        }
        self.scratch.clear();
        read.encoding.put_presence(&mut self.scratch, entries());
        if self.scratch.len() > read.bytes_max {
            return Answer::Error(ErrorCode::LimitExceeded);
        }
        Answer::Presence(SharedFrame::part(&self.scratch))
    }

    fn read_history(&mut self, read: &Read, page: &Page) -> Answer {
        let now = self.driver.now();
        let namespace = read.namespace;
        let options = stream_options(self.channels_with(namespace).namespace(namespace));
        let at = self.homes.read(now, &read.channel, read.hash, options);
        let Some(at) = at else { return Answer::Error(ErrorCode::NotAvailable) };
        let Some(stream) = self.homes.stream(now, at) else {
            return Answer::Error(ErrorCode::NotAvailable);
        };
        let position = stream.position();
        let epoch = position.epoch.as_ref().map_or("", |epoch| epoch.as_str());
        let Ok(records) = stream.page(page) else {
            return Answer::Error(ErrorCode::UnrecoverablePosition);
        };
        if read.encoding == Encoding::Json && records.iter().any(|r| !r.published().is_json) {
            return Answer::Unfit;
        }
        // What doesn't fit is cut: the rest can be asked for from where this ends.
        let mut bytes = 0;
        let fitting = records.iter().take_while(|record| {
            bytes += encoded_bytes(record);
            bytes <= read.bytes_max
        });
        let publications = fitting.map(|record| publication_of(record));
        self.scratch.clear();
        read.encoding.put_history(&mut self.scratch, publications, epoch, position.offset);
        Answer::History(SharedFrame::part(&self.scratch))
    }

    /// Sends what the turn had for other shards; then acknowledges the publishes whose deliveries
    /// are in their receivers' mailboxes.
    pub(super) fn send_mail(&mut self) {
        self.mail_blocked = false;
        self.tell_gaps();
        for at in 0..self.mail.len() {
            self.flush_to(ShardId(at as u8));
        }
        if self.acks.is_empty() {
            return;
        }
        let mut acked = false;
        let mail = &mut self.mail;
        self.acks.retain(|ack| {
            let done = ack.waits_for.is_empty();
            if done {
                mail[ack.to.index()].push(Mail::Published { asker: ack.asker });
                acked = true;
            }
            !done
        });
        if acked {
            for at in 0..self.mail.len() {
                self.flush_to(ShardId(at as u8));
            }
        }
    }

    /// Adds mail for a shard. What fills an outbox leaves at once, so that it stays full only while
    /// the receiver has no room: then requests and clean-up wait, and deliveries become a gap.
    pub(super) fn post(&mut self, to: ShardId, mail: Mail) {
        self.mail[to.index()].push(mail);
        if self.mail[to.index()].is_full() {
            self.flush_to(to);
        }
    }

    /// Sends what is there for a shard. Whether all of it has left.
    fn flush_to(&mut self, to: ShardId) -> bool {
        let outbox = &mut self.mail[to.index()];
        if to == self.id {
            if self.loopback_bytes < MAILBOX_BYTES_MAX
                && let Some(batch) = outbox.take(to)
            {
                self.loopback_bytes += batch.bytes;
                self.loopback.push_back(batch);
                self.delivered_to(to);
                return true;
            }
            return false;
        }
        match outbox.flush(self.id) {
            Flushed::Nothing => true,
            Flushed::Gone => {
                self.delivered_to(to);
                true
            }
            Flushed::Full => {
                self.mail_blocked = true;
                self.counters().mail_full.add(1);
                false
            }
        }
    }

    /// Where there is credit: some of those that waited for it try once more. Each turn anew, so
    /// that a credit which one of them has no use for any more is not lost for the others.
    pub(super) fn resume_waiting(&mut self) {
        let unanswered_max = self.node.options.requests_unanswered_max;
        for home in 0..self.waiting.len() {
            if self.waiting[home].is_empty() {
                continue;
            }
            for _ in 0..self.mail[home].credits(unanswered_max).min(RESUMED_MAX) {
                let Some(key) = self.waiting[home].pop_front() else { break };
                let Some(conn) = self.conn(key) else { continue };
                conn.flags.set_waiting(false);
                if self.is_connecting(key.index) {
                    self.go_on_connecting(key.index);
                } else {
                    self.resume(key);
                }
            }
        }
    }

    /// All deliveries to a shard are in its mailbox.
    fn delivered_to(&mut self, shard: ShardId) {
        for ack in &mut self.acks {
            ack.waits_for.remove(shard);
        }
    }

    /// Where there is room again: tells shards which channels have a gap.
    fn tell_gaps(&mut self) {
        for at in 0..self.mail.len() {
            let outbox = &mut self.mail[at];
            if outbox.gaps.is_empty() || outbox.is_full() {
                self.mail_blocked |= !outbox.gaps.is_empty();
                continue;
            }
            for channel in std::mem::take(&mut outbox.gaps) {
                let interests = self.homes.interests_mut(channel);
                // The channel may have lost that shard, or be another one by now.
                if let Some(interest) =
                    interests.iter_mut().find(|i| i.shard.index() == at && i.gap)
                {
                    interest.gap = false;
                    outbox.push(Mail::Gap { local: interest.local });
                }
            }
        }
    }
}

/// Connections that try again in one turn, for each home.
const RESUMED_MAX: u32 = 64;

/// Why a list can't be sent.
enum ListFault {
    /// It is longer than what may wait for the client.
    TooMuch,
    /// Something in it can't be shown to JSON connections.
    Unfit,
}

/// The list of a subscribe result; nothing for no records. In a form that takes patches each is
/// patched from the one before it (client protocol, 21.2).
fn encode_list(
    form: Form,
    records: &[&Record],
    bytes_max: usize,
) -> Result<Option<SharedFrame>, ListFault> {
    if records.is_empty() {
        return Ok(None);
    }
    let encoding = if form.is_protobuf() { Encoding::Protobuf } else { Encoding::Json };
    if encoding == Encoding::Json && records.iter().any(|r| !r.published().is_json) {
        return Err(ListFault::Unfit);
    }
    let bytes: usize = records.iter().map(|record| encoded_bytes(record)).sum();
    if bytes > bytes_max {
        return Err(ListFault::TooMuch);
    }
    let patches: Vec<Option<Vec<u8>>> = match form.takes_patches() {
        true => records
            .windows(2)
            .map(|pair| {
                let patch = delta::patch(pair[0].data(), pair[1].data())?;
                (form.is_protobuf() || delta::is_text(&patch)).then_some(patch)
            })
            .collect(),
        false => Vec::new(),
    };
    let full =
        if form == Form::Json || form.is_protobuf() { DataForm::Plain } else { DataForm::Text };
    let publications = records.iter().enumerate().map(|(at, record)| {
        let patch = at.checked_sub(1).and_then(|before| patches.get(before)?.as_deref());
        let publication = publication_of(record);
        match patch {
            Some(data) => Publication { data, form: DataForm::Patch, ..publication },
            None => Publication { form: full, ..publication },
        }
    });
    let mut list = Vec::new();
    encoding.put_publications(&mut list, publications);
    Ok(Some(SharedFrame::part(&list)))
}

/// A kept publication as it is told.
fn publication_of(record: &Record) -> Publication<'_> {
    let Published { data, info, tags, .. } = record.published();
    Publication {
        data,
        info: ClientInfo::unpack(info),
        offset: record.offset(),
        tags: Tags::packed(tags),
        ..Publication::default()
    }
}

/// What a kept publication takes in an answer, about.
fn encoded_bytes(record: &Record) -> usize {
    record.bytes() + PUBLICATION_BYTES
}

/// Names and marks around a publication in JSON, about.
const PUBLICATION_BYTES: usize = 64;
