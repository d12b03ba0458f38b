//! The home role: the one writer of its channels. Mail in, deliveries and answers out.

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::form::{Data, Form, Forms};
use crate::base::frame::SharedFrame;
use crate::base::id::{ConnKey, ShardId};
use crate::base::info::ClientInfo;
use crate::base::limits::FRAME_MESSAGES_MAX;
use crate::base::tags::Tags;
use crate::base::time::Millis;
use crate::edge::channels::Namespace;
use crate::hub::delta::{self, Patched};
use crate::hub::history::{Position, Published, StreamOptions};
use crate::hub::home::Wanted;
use crate::hub::members::Member;
use crate::hub::parcel::{Frames, Parcel, Told};
use crate::io::Driver;
use crate::proto::client::{self, DataForm, ErrorCode, Publication, Push, info_is_json};
use crate::proto::framing;
use crate::shard::Shard;
use crate::shard::mail::acks::Ack;
use crate::shard::mail::shard_set::ShardSet;
use crate::shard::mail::{
    Answer, Asker, Mail, Publish, PublishOptions, Recovery, Subscribe, Subscribed, Unsubscribe,
};
use crate::shard::net::send::frame_of;

/// Somebody came to a channel or left it, and it isn't told yet.
#[derive(Debug)]
pub(crate) struct Event {
    channel: CompactString,
    came: bool,
    /// Packed.
    info: Box<[u8]>,
}

/// What a namespace says of its channels' streams.
pub(crate) fn stream_options(namespace: &Namespace) -> StreamOptions {
    StreamOptions {
        size: namespace.history_size,
        ttl_ms: namespace.history_ttl_ms,
        meta_ttl_ms: namespace.history_meta_ttl_ms,
    }
}

impl<D: Driver> Shard<D> {
    /// A subscription begins: the subscriber joins, and what it lacks is read, in one step.
    pub(crate) fn home_subscribe(&mut self, from: ShardId, subscribe: Subscribe) {
        let now = self.cx.now;
        let Subscribe { channel, hash, local, asker, serial, mut traits, .. } = subscribe;
        let namespace = subscribe.namespace;
        let options = stream_options(self.cx.channels_with(namespace).namespace(namespace));
        let (at, position) =
            self.home.homes.subscribe(now, &channel, hash, options, from, local, traits);
        let recovery = match &subscribe.recover {
            Some(recover) => self.recover(at, traits.form(), recover),
            None => Recovery::None,
        };
        let based = matches!(&recovery, Recovery::Done { publications: Some(_), .. });
        traits = traits.with_fresh(traits.form().takes_patches() && !based);
        if traits.fresh() {
            self.home.homes.mark_fresh(at, from);
        }
        let announced = subscribe.membership.map(|membership| {
            let member = Member { shard: from, conn: asker.conn };
            let (present, announces) = (membership.present, membership.announces);
            self.home.homes.enter(at, member, &membership.info, present, announces);
            (announces, membership.info)
        });
        let fresh = traits.fresh();
        let subscribed = Subscribed { local, asker, serial, position, recovery, fresh };
        self.post.send(&self.cx, from, Mail::Subscribed(Box::new(subscribed)));
        if let Some((true, info)) = announced {
            self.home.events.push(Event { channel, came: true, info });
        }
    }

    /// A subscription ends.
    pub(crate) fn home_unsubscribe(&mut self, from: ShardId, unsubscribe: &Unsubscribe) {
        let Unsubscribe { local, channel, asker, traits, member } = unsubscribe;
        let hash = self.cx.node.names.hash(channel);
        let member = member.map(|conn| Member { shard: from, conn });
        let left = self.home.homes.unsubscribe(channel, hash, from, *traits, member);
        if let Some(left) = left
            && left.announces
        {
            let (channel, info) = (channel.clone(), left.info);
            self.home.events.push(Event { channel, came: false, info });
        }
        self.post.send(&self.cx, from, Mail::Unsubscribed { local: *local, asker: *asker });
    }

    /// What others see of a subscriber has changed.
    pub(crate) fn home_reinform(
        &mut self,
        from: ShardId,
        channel: &str,
        conn: ConnKey,
        info: &[u8],
    ) {
        let hash = self.cx.node.names.hash(channel);
        self.home.homes.reinform(channel, hash, Member { shard: from, conn }, info);
    }

    /// A publication: next offset, history, each form encoded once, a delivery to each interested
    /// shard.
    pub(crate) fn home_publish(&mut self, from: ShardId, publish: &Publish) {
        let now = self.cx.now;
        let channels = self.cx.channels_with(publish.namespace);
        let namespace = channels.namespace(publish.namespace);
        let Publish { channel, hash, data, info, tags, is_json, .. } = publish;
        let extra = publish.options.as_deref();
        let skips = extra.is_some_and(|extra| extra.skip_history);
        let options = if skips { StreamOptions::default() } else { stream_options(namespace) };
        if let Some(position) = extra.and_then(|extra| self.is_old(now, publish, extra, options)) {
            return self.acknowledge(from, publish.asker, position, ShardSet::default());
        }
        let published = Published { data, info, tags, is_json: *is_json };
        let known = self.home.homes.find(channel, *hash);
        if options.kept() {
            let bytes = self.home.homes.growth(known, options, published.record_bytes());
            if self.cx.is_short_for(|counters| &counters.short_publish) {
                return self.refuse_publish(from, publish);
            }
            if !self.may_keep(known, bytes) {
                self.cx.counters().short_history.inc();
                return self.refuse_publish(from, publish);
            }
        }
        let delta = namespace.delta_publish || extra.is_some_and(|extra| extra.delta);
        let patched = match known {
            Some(at) if delta && options.kept() && self.home.homes.wanted(at).patches() => {
                let stream = self.home.homes.stream(now, at);
                let base = stream.and_then(|stream| stream.base());
                base.map(|base| self.home.patcher.patch(base.data(), data))
            }
            _ => None,
        };
        if patched == Some(Patched::OverBudget) {
            self.cx.counters().patches_over_budget.add(1);
        }
        let patch = match &patched {
            Some(Patched::Patch(patch)) => Some(&**patch),
            _ => None,
        };
        let taken = self.home.homes.publish(now, channel, *hash, options, &published);
        self.cx.node.counters[self.cx.id.index()].publications.add(1);
        if let Some(extra) = extra {
            self.remember(now, publish, extra, taken.position);
        }
        let mut waits_for = ShardSet::default();
        if let Some(at) = taken.channel {
            if skips {
                self.home.homes.break_base(at);
            }
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
            let mut wanted = self.home.homes.wanted(at);
            // Who misses a publication on the way needs the next one in full.
            wanted.fresh |= namespace.slow_policy.drops();
            let packed = self.pack(channel, &publication, *is_json, patch, wanted);
            if let Some(patched) = patched
                && self.cx.has_room_for_patches(data.len())
            {
                self.home.homes.keep_patch(at, patched);
            }
            let parcel = Parcel { taken_at: Some(now), ..packed };
            for interest in self.home.homes.interests_mut(at) {
                interest.fresh = false;
            }
            waits_for = self.hand_out(at, &Arc::new(parcel));
        }
        self.acknowledge(from, publish.asker, taken.position, waits_for);
    }

    /// There is no room for a publication: its sender may try again.
    fn refuse_publish(&mut self, to: ShardId, publish: &Publish) {
        if let Some(asker) = publish.asker {
            let answer = Answer::failed(ErrorCode::Internal, &publish.channel);
            self.post.send(&self.cx, to, Mail::Answer { asker, answer });
        }
    }

    /// The publish is taken; that is told when its deliveries are in their receivers' mailboxes.
    fn acknowledge(
        &mut self,
        to: ShardId,
        asker: Option<Asker>,
        position: Position,
        waits_for: ShardSet,
    ) {
        if let Some(asker) = asker {
            self.post.acknowledge(Ack { to, asker, position }, waits_for);
        }
    }

    /// The channel's position, when a publish does nothing: it was there already, or something newer
    /// was.
    fn is_old(
        &mut self,
        now: Millis,
        publish: &Publish,
        extra: &PublishOptions,
        options: StreamOptions,
    ) -> Option<Position> {
        let Publish { channel, hash, .. } = publish;
        if !extra.idempotency_key.is_empty()
            && let Some(position) = self.home.results.get(now, channel, &extra.idempotency_key)
        {
            return Some(position);
        }
        let at = self.home.homes.find(channel, *hash)?;
        if extra.version == 0 || !options.kept() {
            return None;
        }
        let newer = self.home.homes.is_newer(at, extra.version, &extra.version_epoch);
        let stream = self.home.homes.stream(now, at)?;
        (!newer).then(|| stream.position())
    }

    /// Keeps what later publishes are held against.
    fn remember(
        &mut self,
        now: Millis,
        publish: &Publish,
        extra: &PublishOptions,
        position: Position,
    ) {
        let Publish { channel, hash, .. } = publish;
        if !extra.idempotency_key.is_empty() {
            self.home.results.insert(now, channel, &extra.idempotency_key, position);
        }
        if extra.version > 0
            && let Some(at) = self.home.homes.find(channel, *hash)
        {
            self.home.homes.set_version(at, extra.version, &extra.version_epoch);
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
        let mut frames = Vec::new();
        let mut encoded = Encoded::default();
        for form in wanted.forms.iter() {
            if !is_json && !form.is_protobuf() {
                continue;
            }
            let patch = match form.data() {
                Data::Delta if form.is_protobuf() => patch,
                Data::Delta => text_patch,
                _ => None,
            };
            let full = DataForm::full(form);
            let mut frame = |which: Which, data, written| {
                let of = Publication { data, form: written, ..*publication };
                let message = encoded.get(form, which, |out| {
                    client::put_push(out, form, channel, &Push::Publication(of));
                });
                frame_of(&mut self.codec.deflaters, &mut self.codec.replies, form, message)
            };
            frames.push((
                form,
                Frames {
                    full: (patch.is_none() || wanted.fresh)
                        .then(|| frame(Which::Full, publication.data, full)),
                    patch: patch.map(|patch| frame(Which::Patch, patch, DataForm::Patch)),
                },
            ));
        }
        Parcel {
            frames,
            unfit_for_json: !is_json,
            ..Parcel::new(Told::Publication, publication.offset, publication.tags)
        }
    }

    /// Adds a parcel to the mail for each shard that is interested in it. The answer: those in whose
    /// mailboxes it is not yet.
    fn hand_out(&mut self, at: u32, parcel: &Arc<Parcel>) -> ShardSet {
        let mut waits_for = ShardSet::default();
        let mut filled = ShardSet::default();
        let counters = &self.cx.node.counters[self.cx.id.index()];
        let presence = parcel.told == Told::Presence;
        for interest in self.home.homes.interests_mut(at) {
            if presence && !interest.takes_joins() {
                continue;
            }
            let lane = self.post.lane(interest.shard);
            if interest.gap || lane.is_full() {
                if presence {
                    counters.events_lost.add(1);
                    continue;
                }
                if !interest.gap {
                    interest.gap = true;
                    lane.add_gap(at);
                }
                counters.gaps_mail.add(1);
                continue;
            }
            waits_for.insert(interest.shard);
            lane.push(Mail::Deliver { local: interest.local, parcel: Arc::clone(parcel) });
            if lane.is_full() {
                filled.insert(interest.shard);
            }
        }
        // One turn may bring more than an outbox holds. Where the receiver has room it goes at once:
        // only a mailbox that is full makes a gap.
        while let Some(shard) = filled.pop() {
            if self.post.flush_to(&self.cx, shard) {
                waits_for.remove(shard);
            }
        }
        waits_for
    }

    /// Tells who came and who left in this turn: for each channel in one message or a few, so that a
    /// burst of them is one write for each subscriber.
    pub(crate) fn tell_events(&mut self) {
        let mut events = std::mem::take(&mut self.home.events);
        // Stable: in a channel they stay in order, a client's coming before its going.
        events.sort_by(|a, b| a.channel.cmp(&b.channel));
        for events in events.chunk_by(|a, b| a.channel == b.channel) {
            let channel = &events[0].channel;
            let hash = self.cx.node.names.hash(channel);
            let Some(at) = self.home.homes.find(channel, hash) else { continue };
            if !self.home.homes.interests(at).iter().any(|interest| interest.takes_joins()) {
                continue;
            }
            for events in events.chunks(usize::from(FRAME_MESSAGES_MAX)) {
                let wanted = self.home.homes.wanted(at);
                let parcel = self.pack_events(channel, events, wanted);
                self.hand_out(at, &Arc::new(parcel));
            }
        }
        events.clear();
        self.home.events = events;
    }

    fn pack_events(&mut self, channel: &str, events: &[Event], wanted: Wanted) -> Parcel {
        let infos = events
            .iter()
            .filter_map(|event| ClientInfo::unpack(&event.info).map(|info| (event.came, info)));
        let infos: Vec<(bool, ClientInfo<'_>)> = infos.collect();
        let is_json = infos.iter().all(|(_, info)| info_is_json(info));
        let mut forms = Forms::default();
        let all = wanted.forms.iter().map(Form::of_connection).filter(|form| !form.is_poll());
        all.filter(|form| is_json || form.is_protobuf()).for_each(|form| forms.insert(form));
        let mut frames = Vec::new();
        for form in forms.iter() {
            let mut each = Vec::new();
            for (came, info) in &infos {
                let push = if *came { Push::Join(*info) } else { Push::Leave(*info) };
                self.codec.scratch.clear();
                client::put_push(&mut self.codec.scratch, form, channel, &push);
                self.codec.replies.clear();
                framing::put(&mut self.codec.replies, form, &self.codec.scratch);
                each.push(SharedFrame::new(&self.codec.replies));
            }
            let mut joined = Vec::new();
            framing::join(form, &each.iter().collect::<Vec<_>>(), &mut joined);
            let full = Some(SharedFrame::new(&joined));
            frames.push((form, Frames { full, patch: None }));
        }
        Parcel { frames, unfit_for_json: !is_json, ..Parcel::new(Told::Presence, 0, Tags::NONE) }
    }
}

/// Which of the messages for one kind of content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Full,
    Patch,
}

/// What was encoded last of each, so that forms with the same content share it.
#[derive(Default)]
struct Encoded {
    full: (Option<Form>, Vec<u8>),
    patch: (Option<Form>, Vec<u8>),
}

impl Encoded {
    fn get(&mut self, form: Form, which: Which, put: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        let (known, message) = match which {
            Which::Full => &mut self.full,
            Which::Patch => &mut self.patch,
        };
        if *known != Some(form.content()) {
            *known = Some(form.content());
            message.clear();
            put(message);
        }
        message
    }
}
