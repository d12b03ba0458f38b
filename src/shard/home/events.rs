//! Join and leave events of a turn. A channel's events go together, so that a burst of them is one write for
//! each subscriber.

use std::sync::Arc;

use super::seam::Turn;
use super::{Event, Home};
use crate::base::form::{Form, Forms};
use crate::base::frame::SharedFrame;
use crate::base::info::ClientInfo;
use crate::base::limits::FRAME_MESSAGES_MAX;
use crate::base::tags::Tags;
use crate::hub::home::{Target, Wanted};
use crate::hub::parcel::{Frames, Parcel, ParcelKind};
use crate::proto::client::{self, Push, info_is_json};
use crate::proto::framing;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;

/// Events that a publication searches for those of its channel. Among more all leave, so that the search has a
/// bound for each event.
pub(super) const EVENTS_SEARCHED: usize = 64;

impl Home {
    /// Sends the join and leave events of this turn: each channel's in one message or a few.
    pub(crate) fn send_events(&mut self, cx: &Cx, out: &mut Post, codec: &mut Codec) {
        self.end_remote_turn(&mut Turn { cx, out, codec });
        self.hand_out_events(cx, out, codec);
    }

    /// Events of a channel leave before a publication that came behind them.
    pub(super) fn send_events_before(
        &mut self,
        cx: &Cx,
        channel: &str,
        out: &mut Post,
        codec: &mut Codec,
    ) {
        let is_of_channel = |event: &Event| event.channel == channel;
        if self.events.len() > EVENTS_SEARCHED || self.events.iter().any(is_of_channel) {
            self.hand_out_events(cx, out, codec);
        }
    }

    fn hand_out_events(&mut self, cx: &Cx, out: &mut Post, codec: &mut Codec) {
        if self.events.is_empty() {
            return;
        }
        let mut events = std::mem::take(&mut self.events);
        // Stable: in a channel they stay in order, a client's join before its leave.
        events.sort_by(|a, b| a.channel.cmp(&b.channel));
        for events in events.chunk_by(|a, b| a.channel == b.channel) {
            let channel = &events[0].channel;
            let hash = cx.node.names.hash(channel);
            let Some(at) = self.channels.find(channel, hash) else { continue };
            if !self.channels.targets(at).any(Target::takes_joins) {
                continue;
            }
            for events in events.chunks(usize::from(FRAME_MESSAGES_MAX)) {
                let wanted = self.channels.wanted(at);
                let parcel = pack(codec, channel, events, wanted);
                self.hand_out(cx, at, &Arc::new(parcel), out);
            }
        }
        events.clear();
        self.events = events;
    }
}

/// Encodes events in the forms that are wanted.
fn pack(codec: &mut Codec, channel: &str, events: &[Event], wanted: Wanted) -> Parcel {
    let infos = events
        .iter()
        .filter_map(|event| ClientInfo::unpack(&event.info).map(|info| (event.joined, info)));
    let infos: Vec<(bool, ClientInfo<'_>)> = infos.collect();
    let is_json = infos.iter().all(|(_, info)| info_is_json(info));
    let mut forms = Forms::default();
    let all = wanted.forms.iter().map(Form::of_connection).filter(|form| !form.is_poll());
    all.filter(|form| is_json || form.is_protobuf()).for_each(|form| forms.insert(form));
    let mut frames = Vec::new();
    for form in forms.iter() {
        let mut each = Vec::new();
        for (joined, info) in &infos {
            let push = if *joined { Push::Join(*info) } else { Push::Leave(*info) };
            codec.scratch.clear();
            client::put_push(&mut codec.scratch, form, channel, &push);
            codec.replies.clear();
            framing::put(&mut codec.replies, form, &codec.scratch);
            each.push(SharedFrame::new(&codec.replies));
        }
        let mut joined = Vec::new();
        framing::join(form, &each.iter().collect::<Vec<_>>(), &mut joined);
        let full = Some(SharedFrame::new(&joined));
        frames.push((form, Frames { full, patch: None }));
    }
    Parcel { frames, unfit_for_json: !is_json, ..Parcel::new(ParcelKind::Presence, 0, Tags::NONE) }
}

#[cfg(test)]
mod tests {
    use crate::edge::channels::Namespace;
    use crate::shard::home::driven::{Driven, texts};

    #[test]
    fn the_events_of_a_turn_go_together_and_in_order() {
        let mut driven = Driven::with(Namespace::default());
        driven.joins("news", 1, "ann");
        driven.joins("other", 1, "bob");
        driven.joins("news", 2, "cid");
        driven.leaves("news", 2);
        let mail = texts(&driven.sent_to(1));
        let delivered: Vec<&String> = mail.iter().filter(|mail| mail.starts_with("7 ")).collect();
        assert_eq!(delivered.len(), 2, "{mail:?}");
        let at = |what: &str| delivered[0].find(what).unwrap();
        assert!(at("client-1") < at("client-2"), "{delivered:?}");
        assert!(at(r#""join""#) < at(r#""leave""#));
        assert!(delivered[1].contains("bob") && !delivered[0].contains("bob"));
        assert!(driven.sent_to(1).is_empty());
    }

    #[test]
    fn a_channel_whose_last_subscriber_left_gets_no_event() {
        let mut driven = Driven::with(Namespace::default());
        driven.joins("news", 1, "ann");
        driven.leaves("news", 1);
        assert_eq!(texts(&driven.sent_to(1)), ["subscribed 0", "unsubscribed 7"]);
    }
}
