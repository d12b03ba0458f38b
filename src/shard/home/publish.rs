//! Publications at their channel's home: position, history, encoding, deliveries, acknowledgement.
//!
//! A publication is encoded once in each form that a subscriber takes, and goes to each interested shard
//! as one piece of mail. It is acknowledged when these are in their receivers' mailboxes, so that an
//! operation that the publisher begins afterwards comes behind them.

use std::sync::Arc;

use super::Home;
use super::seam::stream_options;
use crate::base::form::{Data, Form};
use crate::base::id::ShardId;
use crate::base::info::ClientInfo;
use crate::base::tags::Tags;
use crate::edge::channels::Namespace;
use crate::hub::delta::{self, Patched};
use crate::hub::history::{Position, Published, StreamOptions};
use crate::hub::home::Wanted;
use crate::hub::parcel::{Frames, Parcel, ParcelKind};
use crate::proto::client::{self, DataForm, ErrorCode, Publication, Push};
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::mail::acks::Ack;
use crate::shard::mail::post::Post;
use crate::shard::mail::shard_set::ShardSet;
use crate::shard::mail::{Answer, Asker, Mail, Publish, PublishOptions};
use crate::shard::net::send::frame_of;

impl Home {
    /// Takes a publication: next offset, history, a delivery to each interested shard. The
    /// acknowledgement follows when the deliveries have left.
    pub(super) fn publish(
        &mut self,
        cx: &Cx,
        from: ShardId,
        publish: &Publish,
        out: &mut Post,
        codec: &mut Codec,
    ) {
        let channels = cx.channels_with(publish.namespace);
        let namespace = channels.namespace(publish.namespace);
        let Publish { channel, hash, data, info, tags, is_json, .. } = publish;
        let extra = publish.options.as_deref();
        let skips = extra.is_some_and(|extra| extra.skip_history);
        let options = if skips { StreamOptions::default() } else { stream_options(namespace) };
        if let Some(position) = extra.and_then(|extra| self.is_old(cx, publish, extra, options)) {
            return acknowledge(out, from, publish.asker, position, ShardSet::default());
        }
        // Seconds of 32 bits last until 2106.
        let time = if namespace.history_time { cx.unix.0 as u32 } else { 0 };
        let published = Published { data, info, tags, is_json: *is_json, time };
        let known = self.channels.find(channel, *hash);
        if options.kept() && !self.has_room(cx, known, options, &published, out) {
            return refuse(cx, out, from, publish);
        }
        let delta = namespace.delta_publish || extra.is_some_and(|extra| extra.delta);
        let patched = known.filter(|_| delta && options.kept());
        let patched = patched.and_then(|at| self.patch(cx, at, data));
        let taken = self.channels.publish(cx.now, channel, *hash, options, &published);
        cx.counters().publications.add(1);
        cx.of_namespace(publish.namespace).publications.add(1);
        if let Some(extra) = extra {
            self.remember(cx, publish, extra, &taken.position);
        }
        let mut waits_for = ShardSet::default();
        if let Some(at) = taken.channel {
            if skips {
                self.channels.break_base(at);
            }
            let position = taken.position.clone();
            let after = position.offset.saturating_sub(1);
            let source = "";
            let delivery =
                Delivery { at, channel, namespace, published, position, after, patched, source };
            waits_for = self.deliver(cx, delivery, out, codec);
        }
        acknowledge(out, from, publish.asker, taken.position, waits_for);
    }

    /// Whether a publication may be kept; counts what is refused.
    fn has_room(
        &mut self,
        cx: &Cx,
        known: Option<u32>,
        options: StreamOptions,
        published: &Published<'_>,
        out: &Post,
    ) -> bool {
        let bytes = self.channels.growth(known, options, published.record_bytes());
        if cx.is_short_for(|counters| &counters.short_publish) {
            return false;
        }
        let may = self.may_keep(cx, known, bytes, out);
        if !may {
            cx.counters().short_history.inc();
        }
        may
    }

    /// The patch from a channel's latest publication to this payload, where a subscriber takes patches.
    fn patch(&mut self, cx: &Cx, at: u32, data: &[u8]) -> Option<Patched> {
        if !self.channels.wanted(at).patches() {
            return None;
        }
        let base = self.channels.stream(cx.now, at)?.base()?;
        let patched = self.patcher.patch(base.data(), data);
        if patched == Patched::OverBudget {
            cx.counters().patches_over_budget.add(1);
        }
        Some(patched)
    }

    /// Encodes a publication and adds it to the mail for each interested shard. Returns the shards in
    /// whose mailboxes it is not yet.
    pub(super) fn deliver(
        &mut self,
        cx: &Cx,
        delivery: Delivery<'_>,
        out: &mut Post,
        codec: &mut Codec,
    ) -> ShardSet {
        let Delivery { at, channel, namespace, published, position, after, patched, source } =
            delivery;
        if !self.events.is_empty() {
            self.send_events_before(cx, channel, out, codec);
        }
        let patch = match &patched {
            Some(Patched::Patch(patch)) => Some(&**patch),
            _ => None,
        };
        let offset = position.offset;
        let epoch = position.epoch.as_ref().filter(|_| offset > 0 && after == 0);
        let publication = Publication {
            data: published.data,
            info: ClientInfo::unpack(published.info),
            offset,
            tags: Tags::packed(published.tags),
            epoch: epoch.map(|epoch| epoch.as_str()),
            channel: source,
            ..Publication::default()
        };
        let mut wanted = self.channels.wanted(at);
        // A client that misses a publication on the way needs the next one in full.
        wanted.fresh |= namespace.slow_policy.drops();
        let packed = pack(codec, channel, &publication, published.is_json, patch, wanted);
        if let Some(patched) = patched
            && cx.has_room_for_patches(published.data.len())
        {
            self.channels.keep_patch(at, patched);
        }
        let parcel = Parcel { taken_at: Some(cx.now), after, ..packed };
        self.channels.targets_mut(at).for_each(|target| target.set_fresh(false));
        self.hand_out(cx, at, &Arc::new(parcel), out)
    }

    /// The channel's position, when a publish does nothing: it was taken before, or a newer version was.
    fn is_old(
        &mut self,
        cx: &Cx,
        publish: &Publish,
        extra: &PublishOptions,
        options: StreamOptions,
    ) -> Option<Position> {
        let Publish { channel, hash, .. } = publish;
        if !extra.idempotency_key.is_empty()
            && let Some(position) = self.results.get(cx.now, channel, &extra.idempotency_key)
        {
            return Some(position);
        }
        let at = self.channels.find(channel, *hash)?;
        if extra.version == 0 || !options.kept() {
            return None;
        }
        let newer = self.channels.is_newer(at, extra.version, &extra.version_epoch);
        let stream = self.channels.stream(cx.now, at)?;
        (!newer).then(|| stream.position())
    }

    /// Keeps the key and the version that later publishes are compared with.
    fn remember(
        &mut self,
        cx: &Cx,
        publish: &Publish,
        extra: &PublishOptions,
        position: &Position,
    ) {
        let Publish { channel, hash, .. } = publish;
        if !extra.idempotency_key.is_empty() {
            self.results.insert(cx.now, channel, &extra.idempotency_key, position.clone());
        }
        if extra.version > 0
            && let Some(at) = self.channels.find(channel, *hash)
        {
            self.channels.set_version(at, extra.version, &extra.version_epoch);
        }
    }

    /// Adds a parcel to the mail for each shard that is interested in it. Returns the shards in whose
    /// mailboxes it is not yet.
    pub(super) fn hand_out(
        &mut self,
        cx: &Cx,
        at: u32,
        parcel: &Arc<Parcel>,
        out: &mut Post,
    ) -> ShardSet {
        let mut waits_for = ShardSet::default();
        let mut filled = ShardSet::default();
        let counters = cx.counters();
        let presence = parcel.kind == ParcelKind::Presence;
        for target in self.channels.targets_mut(at) {
            if presence && !target.takes_joins() {
                continue;
            }
            let lane = out.lane(target.shard);
            if target.gap || lane.is_full() {
                if presence {
                    counters.events_lost.add(1);
                    continue;
                }
                if !target.gap {
                    target.gap = true;
                    lane.add_gap(at);
                }
                counters.gaps_mail.add(1);
                continue;
            }
            waits_for.insert(target.shard);
            lane.push(Mail::Deliver { local: target.local, parcel: Arc::clone(parcel) });
            if lane.is_full() {
                filled.insert(target.shard);
            }
        }
        // One turn may bring more than a lane holds. Where the receiver has room it goes at once:
        // only a mailbox that is full makes a gap.
        while let Some(shard) = filled.pop() {
            if out.flush_to(cx, shard) {
                waits_for.remove(shard);
            }
        }
        waits_for
    }

    /// Sends the gaps of channels to shards that have room again.
    pub(crate) fn send_gaps(&mut self, out: &mut Post) {
        if !out.may_have_mail() {
            return;
        }
        for to in out.receivers() {
            for channel in out.take_gaps(to) {
                let mut targets = self.channels.targets_mut(channel);
                // The channel may have lost that shard, or its number may be another channel's by now.
                if let Some(target) = targets.find(|of| of.shard == to && of.gap) {
                    target.gap = false;
                    out.lane(to).push(Mail::Gap { local: target.local });
                }
            }
        }
    }
}

/// A publication that has its position and goes to the subscribers.
pub(super) struct Delivery<'a> {
    pub(super) at: u32,
    pub(super) channel: &'a str,
    pub(super) namespace: &'a Namespace,
    pub(super) published: Published<'a>,
    pub(super) position: Position,
    /// The offset before it in the stream.
    pub(super) after: u64,
    pub(super) patched: Option<Patched>,
    /// The channel that it was published to, where the subscription is to a pattern; else empty.
    pub(super) source: &'a str,
}

/// There is no room for a publication: the publisher may try again.
fn refuse(cx: &Cx, out: &mut Post, to: ShardId, publish: &Publish) {
    if let Some(asker) = publish.asker {
        let answer = Answer::failed(ErrorCode::Internal, &publish.channel);
        out.send(cx, to, Mail::Answer { asker, answer });
    }
}

/// The publish is taken; its acknowledgement waits until the deliveries are in these shards' mailboxes.
fn acknowledge(
    out: &mut Post,
    to: ShardId,
    asker: Option<Asker>,
    position: Position,
    waits_for: ShardSet,
) {
    if let Some(asker) = asker {
        out.acknowledge(Ack { to, asker, position }, waits_for);
    }
}

/// Encodes a publication in the forms that are wanted.
fn pack(
    codec: &mut Codec,
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
                out.reserve(channel.len() + data.len() + PUSH_BYTES);
                client::put_push(out, form, channel, &Push::Publication(of));
            });
            frame_of(&mut codec.deflaters, &mut codec.replies, form, message)
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
        ..Parcel::new(ParcelKind::Publication, publication.offset, publication.tags)
    }
}

/// Bytes of a push beside its texts, about: the buffer grows once.
const PUSH_BYTES: usize = 96;

/// Which of the messages for one kind of content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Full,
    Patch,
}

/// The latest message of each kind, so that forms with the same content share it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::Plan;
    use crate::shard::home::driven::{Driven, texts, with_history};
    use crate::shard::memory::Memory;

    #[test]
    fn subscribers_get_a_publication_and_its_publisher_the_position() {
        let mut driven = Driven::with(with_history());
        driven.subscribes("news", 1);
        driven.publishes("news", r#"{"n":1}"#);
        driven.publishes("news", r#"{"n":2}"#);
        let mail = texts(&driven.sent_to(1));
        assert!(mail[0].starts_with("7 {\"push\":{\"channel\":\"news\",\"pub\":{"), "{mail:?}");
        assert!(mail[0].contains(r#""data":{"n":1}"#) && mail[0].contains(r#""offset":1"#));
        assert!(mail[1].contains(r#""data":{"n":2}"#) && mail[1].contains(r#""offset":2"#));
        assert_eq!(mail[2..], ["published 1", "published 2"]);
    }

    #[test]
    fn one_encoding_serves_all_shards() {
        let mut driven =
            Driven::of(Plan { shards: 3, channels: with_history(), ..Plan::default() });
        for shard in [1, 2] {
            let subscribe = driven.subscribe("news", 1);
            driven.handle(shard, Mail::Subscribe(subscribe.into()));
        }
        driven.publishes("news", "1");
        let parcels: Vec<Arc<Parcel>> = [1, 2]
            .into_iter()
            .flat_map(|shard| driven.sent_to(shard))
            .filter_map(
                |mail| if let Mail::Deliver { parcel, .. } = mail { Some(parcel) } else { None },
            )
            .collect();
        assert_eq!(parcels.len(), 2);
        assert!(Arc::ptr_eq(&parcels[0], &parcels[1]));
    }

    #[test]
    fn a_channel_without_history_gives_out_no_positions() {
        let mut driven = Driven::with(Namespace::default());
        driven.subscribes("news", 1);
        driven.publishes("news", "1");
        driven.publishes("nobody", "1");
        let mail = texts(&driven.sent_to(1));
        assert!(!mail[0].contains("offset"), "{mail:?}");
        assert_eq!(mail[1..], ["published 0", "published 0"]);
    }

    #[test]
    fn a_publish_with_a_known_key_or_an_old_version_does_nothing() {
        let mut driven = Driven::with(with_history());
        driven.subscribes("news", 1);
        let keyed = PublishOptions { idempotency_key: "key".into(), ..PublishOptions::default() };
        driven.publishes_with("news", "1", keyed.clone());
        driven.publishes_with("news", "2", keyed);
        assert_eq!(texts(&driven.sent_to(1))[1..], ["published 1", "published 1"]);
        let version = |version| PublishOptions { version, ..PublishOptions::default() };
        for of in [5, 5, 4, 6] {
            driven.publishes_with("news", "3", version(of));
        }
        let mail = texts(&driven.sent_to(1));
        let published = ["published 2", "published 2", "published 2", "published 3"];
        assert_eq!(mail[2..], published, "{mail:?}");
        // Another life of the versions begins anew.
        let reborn = PublishOptions { version_epoch: "b".into(), ..version(1) };
        driven.publishes_with("news", "4", reborn);
        assert_eq!(texts(&driven.sent_to(1))[1], "published 4");
    }

    #[test]
    fn a_publication_beside_history_has_no_offset() {
        let mut driven = Driven::with(with_history());
        driven.subscribes("news", 1);
        let skips = PublishOptions { skip_history: true, ..PublishOptions::default() };
        driven.publishes_with("news", "1", skips);
        driven.publishes("news", "2");
        let mail = texts(&driven.sent_to(1));
        assert!(!mail[0].contains("offset") && mail[1].contains(r#""offset":1"#));
        assert_eq!(mail[2..], ["published 0", "published 1"]);
    }

    #[test]
    fn a_shard_without_room_gets_one_gap_and_the_rest_waits_for_nothing() {
        let mut driven = Driven::with(with_history());
        driven.subscribes("news", 1);
        // A third of what a lane holds: the mailbox has room for eight batches.
        let large = format!("\"{}\"", "x".repeat(400_000));
        (0..60).for_each(|_| driven.publishes("news", &large));
        let mail = driven.sent_to(1);
        let lost = driven.cx.counters().gaps_mail.get();
        let delivered =
            mail.iter().filter(|mail| matches!(mail, Mail::Deliver { .. })).count() as u64;
        assert!(
            lost > 0 && delivered < 60 && mail.iter().all(|mail| !matches!(mail, Mail::Gap { .. }))
        );
        // There is room again: what was in the lane, the gap, and every acknowledgement.
        let mail = driven.sent_to(1);
        let delivered = delivered
            + mail.iter().filter(|mail| matches!(mail, Mail::Deliver { .. })).count() as u64;
        let rest = driven.sent_to(1);
        let all: Vec<Mail> = mail.into_iter().chain(rest).collect();
        assert_eq!(all.iter().filter(|mail| matches!(mail, Mail::Gap { local: 7 })).count(), 1);
        assert_eq!(delivered + lost, 60);
        assert!(driven.posts.post.left().iter().all(|(_, count)| *count == 0));
    }

    #[test]
    fn without_memory_a_publication_is_refused_and_without_history_it_is_not() {
        let memory = Memory::simulated(1_000_000);
        memory.set_allocated(2_000_000);
        let mut driven = Driven::of(Plan { memory, channels: with_history(), ..Plan::default() });
        driven.publishes("news", "1");
        assert_eq!(texts(&driven.sent_to(1)), ["error Internal"]);
        assert_eq!(driven.cx.counters().short_publish.get(), 1);
        let skips = PublishOptions { skip_history: true, ..PublishOptions::default() };
        driven.publishes_with("news", "1", skips);
        assert_eq!(texts(&driven.sent_to(1)), ["published 0"]);
    }

    #[test]
    fn a_publisher_that_waits_for_nothing_gets_no_answer() {
        let mut driven = Driven::with(with_history());
        let publish = Publish { asker: None, ..driven.publish("news", "1") };
        driven.handle(1, Mail::Publish(publish.into()));
        assert!(driven.sent_to(1).is_empty());
    }
}
