//! The channels that connections of this shard are subscribed to: the delivering half of a
//! channel, whose other half is at its home.

pub(crate) mod image;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use compact_str::CompactString;
use hashbrown::HashTable;

use super::fanout::{FanOut, Join, Outgoing, Walk};
use super::filter::Filters;
use super::history::{Epoch, Position};
use super::names::NameHasher;
use super::parcel::Parcel;
use super::subscribers::Subscribers;
use crate::base::chunks::{Chunks, Link};
use crate::base::id::ShardId;
use crate::base::time::Millis;

/// One channel on the side of its subscribers.
#[derive(Debug)]
pub struct Local {
    /// Its name.
    pub name: CompactString,
    /// The receivers of its publications.
    pub subscribers: Subscribers,
    /// Its [`Traffic`].
    traffic: Link,
    /// Offset of the latest publication delivered here, 0 before the first, and the stream's life, when a
    /// subscriber last began. Only where the channel has history. One for all subscribers: mail comes in order,
    /// so they are all at the same place.
    position: Link,
    /// Subscriptions of sessions here, from the asking on.
    pub claims: u32,
    /// Its namespace's number.
    pub namespace: u16,
    /// Where its other half lives.
    pub home: ShardId,
}

const _: () = assert!(size_of::<Local>() == 56 && size_of::<Option<Local>>() == 56);

/// The record of a channel while mail is on its way to its home or to its subscribers. No other channel has one.
#[derive(Debug, Default)]
struct Traffic {
    fan_out: Option<FanOut>,
    /// Mail to the home that isn't answered yet. While there is any, the record stays: deliveries
    /// to it may be on their way.
    asked: u32,
    /// Its pending parcels wait for more.
    delayed: bool,
}

const _: () = assert!(size_of::<Traffic>() == 56);

impl Local {
    fn new(name: CompactString, namespace: u16, home: ShardId) -> Self {
        let subscribers = Subscribers::default();
        let (traffic, position) = (Link::NONE, Link::NONE);
        Self { name, subscribers, traffic, position, claims: 0, namespace, home }
    }

    /// No channel, in a table that is filled.
    fn placeholder() -> Self {
        Self::new(CompactString::default(), 0, ShardId(0))
    }
}

/// All such channels of a shard.
pub struct Locals {
    channels: Chunks<Local>,
    traffic: Chunks<Traffic>,
    positions: Chunks<Position>,
    table: HashTable<u32>,
    hasher: NameHasher,
    /// Channels with something to send.
    active: VecDeque<u32>,
    /// Channels with something to send later, and when. One that was sent before is still here.
    delayed: BinaryHeap<Reverse<(u64, u32)>>,
}

/// How a channel's namespace has its publications sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sending {
    /// They may be dropped on the way.
    pub drops: bool,
    /// They wait until then for more, if they wait.
    pub due: Option<Millis>,
}

/// The outcome of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is on its way to the subscribers.
    Taken,
    /// It doesn't follow what was delivered before: some are missing, or the stream began anew.
    /// Subscribers with a position have to be notified; delivered again, it is accepted for the others.
    Broken,
    /// Too much waits for the subscribers already: it is lost here.
    Refused,
    /// Nobody is there.
    Nothing,
}

impl Locals {
    /// No channels.
    pub fn new(hasher: NameHasher) -> Self {
        Self {
            channels: Chunks::default(),
            traffic: Chunks::default(),
            positions: Chunks::default(),
            table: HashTable::new(),
            hasher,
            active: VecDeque::new(),
            delayed: BinaryHeap::new(),
        }
    }

    /// Channels here.
    pub fn len(&self) -> usize {
        self.channels.len()
    }

    /// No channel is here.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// A channel by its place.
    pub fn get(&mut self, at: u32) -> Option<&mut Local> {
        self.channels.get_mut(at as usize)
    }

    /// A channel by its name.
    pub fn find(&self, name: &str) -> Option<u32> {
        let hash = self.hasher.hash(name);
        self.table.find(hash, |at| self.channels[*at as usize].name == name).copied()
    }

    /// The same, made when it isn't there.
    pub fn find_or_insert(&mut self, name: &str, namespace: u16) -> u32 {
        if let Some(at) = self.find(name) {
            return at;
        }
        let hash = self.hasher.hash(name);
        let home = self.hasher.home(hash);
        let local = Local::new(CompactString::new(name), namespace, home);
        let at = self.channels.insert(local) as u32;
        let (channels, hasher) = (&self.channels, &self.hasher);
        self.table.insert_unique(hash, at, |at| hasher.hash(&channels[*at as usize].name));
        at
    }

    /// Forgets a channel that no session claims and whose home has answered everything.
    pub fn release(&mut self, at: u32) {
        let Some(local) = self.channels.get(at as usize) else { return };
        if local.claims > 0 || local.traffic != Link::NONE {
            return;
        }
        assert!(local.subscribers.is_empty(), "a subscriber without a claim");
        if let Some(position) = local.position.get() {
            self.positions.remove(position);
        }
        let hash = self.hasher.hash(&local.name);
        if let Ok(entry) = self.table.find_entry(hash, |found| *found == at) {
            entry.remove();
        }
        self.channels.remove(at as usize);
        if self.channels.is_empty() {
            self.channels = Chunks::default();
            self.table = HashTable::new();
        }
    }

    /// Whether those who are subscribed stand elsewhere than the home, where a new subscriber begins: something
    /// was lost on its way to them, and the mail that says so comes behind.
    pub fn is_elsewhere(&self, at: u32, position: &Position) -> bool {
        self.channels
            .get(at as usize)
            .is_some_and(|local| !local.subscribers.is_empty() && !self.is_at(local, position))
    }

    fn is_at(&self, local: &Local, position: &Position) -> bool {
        match local.position.get() {
            Some(own) => self.positions[own] == *position,
            None => position.is_none(),
        }
    }

    /// A subscriber begins at a position: what comes next here follows that.
    pub fn begin_at(&mut self, at: u32, position: &Position) {
        let Some(local) = self.channels.get_mut(at as usize) else { return };
        match local.position.get() {
            Some(own) if position.is_none() => {
                self.positions.remove(own);
                local.position = Link::NONE;
            }
            Some(own) => self.positions[own] = position.clone(),
            None if position.is_none() => {}
            None => local.position = Link::to(self.positions.insert(position.clone())),
        }
    }

    fn traffic(&self, at: u32) -> Option<&Traffic> {
        self.traffic.get(self.channels.get(at as usize)?.traffic.get()?)
    }

    fn traffic_mut(&mut self, at: u32) -> Option<&mut Traffic> {
        self.traffic.get_mut(self.channels.get(at as usize)?.traffic.get()?)
    }

    /// Mail to the home goes out that the home answers.
    pub fn ask(&mut self, at: u32) {
        let Some(local) = self.channels.get_mut(at as usize) else { return };
        traffic_of(local, &mut self.traffic).asked += 1;
    }

    /// The home has answered such mail. The caller releases the channel when nothing else needs it.
    pub fn answered(&mut self, at: u32) {
        if let Some(traffic) = self.traffic_mut(at) {
            traffic.asked -= 1;
            self.end_traffic(at);
        }
    }

    /// Mail to a channel's home that isn't answered yet.
    pub fn asked(&self, at: u32) -> u32 {
        self.traffic(at).map_or(0, |traffic| traffic.asked)
    }

    /// Gives the record of a channel's traffic back when there is none.
    fn end_traffic(&mut self, at: u32) {
        if let Some(local) = self.channels.get_mut(at as usize)
            && let Some(place) = local.traffic.get()
            && let Traffic { fan_out: None, asked: 0, .. } = self.traffic[place]
        {
            self.traffic.remove(place);
            local.traffic = Link::NONE;
        }
    }

    /// Where the subscriber at `place` of a channel stands, behind all that was sent to it: the channel's
    /// name, the stream's life and the offset. `None` without history.
    pub fn position(&self, at: u32, place: u32) -> Option<(&str, Epoch, u64)> {
        let local = self.channels.get(at as usize)?;
        let fan_out = self.traffic(at).and_then(|traffic| traffic.fan_out.as_ref());
        let waiting = fan_out.and_then(|fan_out| fan_out.offset_at(place));
        let position = &self.positions[local.position.get()?];
        Some((&local.name, position.epoch.clone()?, waiting.unwrap_or(position.offset)))
    }

    /// A parcel from the home. Its offset is 0 for all but publications with history.
    pub fn deliver(&mut self, at: u32, parcel: &Arc<Parcel>, sending: Sending) -> Delivery {
        let Some(local) = self.channels.get_mut(at as usize) else { return Delivery::Nothing };
        let offset = parcel.offset;
        if offset > 0 {
            let place = match local.position.get() {
                Some(place) => place,
                None => self.positions.insert(Position { offset: 0, epoch: None }),
            };
            local.position = Link::to(place);
            let position = &mut self.positions[place];
            let follows = position.offset == 0 || parcel.after == position.offset;
            position.offset = if follows { offset } else { parcel.after };
            if !follows && !local.subscribers.is_empty() {
                return Delivery::Broken;
            }
        }
        if local.subscribers.is_empty() {
            return Delivery::Nothing;
        }
        let places = local.subscribers.places();
        let parcel = Arc::clone(parcel);
        let traffic = traffic_of(local, &mut self.traffic);
        let begins = traffic.fan_out.is_none();
        let fan_out = traffic.fan_out.get_or_insert_default();
        let taken = fan_out.push(parcel, places, sending.drops);
        match sending.due {
            Some(due) if begins => {
                traffic.delayed = true;
                self.delayed.push(Reverse((due.0, at)));
            }
            None if begins => self.active.push_back(at),
            _ if traffic.delayed && fan_out.is_ripe() => {
                traffic.delayed = false;
                self.active.push_back(at);
            }
            _ => {}
        }
        if taken { Delivery::Taken } else { Delivery::Refused }
    }

    /// Whether a fan-out holds the places of this channel's subscribers.
    pub fn held(&self, at: u32) -> bool {
        self.traffic(at).is_some_and(|traffic| traffic.fan_out.is_some())
    }

    /// When the first of the channels that wait for more is to be sent.
    pub fn next_due(&self) -> Option<Millis> {
        self.delayed.peek().map(|Reverse((due, _))| Millis(*due))
    }

    /// Channels whose time has come have something to send.
    pub fn wake_due(&mut self, now: Millis) {
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse((_, at))) = self.delayed.pop() else { return };
            // It may be another channel by now: one that is woken too early sends less at a time.
            if let Some(traffic) = self.traffic_mut(at)
                && std::mem::take(&mut traffic.delayed)
            {
                self.active.push_back(at);
            }
        }
    }

    /// The next channel with something to send, taken off the list.
    pub fn next_active(&mut self) -> Option<u32> {
        self.active.pop_front()
    }

    /// Puts a channel back that still has something to send.
    pub fn still_active(&mut self, at: u32) {
        self.active.push_back(at);
    }

    /// Channels that have something to send.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// The next part of what a channel has to send, into `walk`: at most `places_max` subscribers.
    /// False when there is nothing.
    pub fn walk(
        &mut self,
        at: u32,
        places_max: u32,
        filters: &Filters,
        walk: &mut Walk,
        join: Join,
        scratch: &mut Vec<u8>,
    ) -> bool {
        let Some(local) = self.channels.get_mut(at as usize) else { return false };
        let Some(fan_out) = fan_out_of(local, &mut self.traffic) else { return false };
        fan_out.walk(places_max, &mut local.subscribers, filters, walk, join, scratch)
    }

    /// See [`FanOut::pending_for`].
    pub fn pending_for(
        &mut self,
        at: u32,
        place: u32,
        filters: &Filters,
        join: Join,
        scratch: &mut Vec<u8>,
    ) -> Vec<Outgoing> {
        let Some(local) = self.channels.get_mut(at as usize) else { return Vec::new() };
        let Some(fan_out) = fan_out_of(local, &mut self.traffic) else { return Vec::new() };
        fan_out.pending_for(place, &local.subscribers, filters, join, scratch)
    }

    /// Whether a channel has nothing left to send.
    pub fn is_walked(&self, at: u32) -> bool {
        let fan_out = self.traffic(at).and_then(|traffic| traffic.fan_out.as_ref());
        fan_out.is_none_or(|fan_out| fan_out.is_empty())
    }

    /// All is sent: places may change again.
    pub fn fan_out_done(&mut self, at: u32) {
        if let Some(traffic) = self.traffic_mut(at) {
            debug_assert!(traffic.fan_out.as_ref().is_none_or(|f| f.is_empty()));
            traffic.fan_out = None;
            self.end_traffic(at);
        }
    }
}

/// The record of a channel's traffic, made when there is none.
fn traffic_of<'a>(local: &mut Local, traffic: &'a mut Chunks<Traffic>) -> &'a mut Traffic {
    let place = match local.traffic.get() {
        Some(place) => place,
        None => traffic.insert(Traffic::default()),
    };
    local.traffic = Link::to(place);
    &mut traffic[place]
}

/// A channel's fan-out.
fn fan_out_of<'a>(local: &Local, traffic: &'a mut Chunks<Traffic>) -> Option<&'a mut FanOut> {
    traffic.get_mut(local.traffic.get()?)?.fan_out.as_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::form::Form;
    use crate::base::frame::SharedFrame;
    use crate::base::limits::JOIN_PARCELS_MAX;
    use crate::base::tags::Tags;
    use crate::hub::parcel::{Frames, ParcelKind};
    use crate::hub::subscribers::{Subscriber, Traits};

    fn one() -> (Locals, u32) {
        let mut locals = Locals::new(NameHasher::new(1, 1));
        let at = locals.find_or_insert("news", 0);
        let local = locals.get(at).unwrap();
        local.claims = 1;
        local.subscribers.add(Subscriber { conn: 0, traits: Traits::JSON.with_positioned(true) });
        (locals, at)
    }

    #[test]
    fn a_channel_of_one_costs_what_the_documents_say() {
        let mut locals = Locals::new(NameHasher::new(1, 1));
        let before = crate::sys::memory::requested_bytes();
        let count = 10_000;
        for conn in 0..count {
            let at = locals.find_or_insert(&format!("channel:{conn}"), 0);
            let local = locals.get(at).unwrap();
            local.subscribers.add(Subscriber { conn, traits: Traits::JSON });
        }
        let held = crate::sys::memory::requested_bytes() - before;
        // Record 56, a table of 16,384 places: 8.2; the rest of a chunk and the list of chunks beside that.
        assert!(held <= i64::from(count) * 65 + (36 << 10), "{}", held / i64::from(count));
    }

    #[test]
    fn offsets_may_have_holes() {
        let (mut locals, at) = one();
        locals.begin_at(at, &Position { offset: 4, epoch: None });
        let mut deliver = |after, offset| {
            let parcel = Parcel::new(ParcelKind::Publication, offset, Tags::NONE);
            locals.deliver(at, &Arc::new(Parcel { after, ..parcel }), Sending::default())
        };
        assert_eq!((deliver(4, 9), deliver(9, 20)), (Delivery::Taken, Delivery::Taken));
        // Another one was between them. Delivered again, it is accepted.
        assert_eq!((deliver(21, 22), deliver(21, 22)), (Delivery::Broken, Delivery::Taken));
    }

    #[test]
    fn a_jump_and_a_new_epoch_are_one_gap_and_then_delivered() {
        let (mut locals, at) = one();
        locals.begin_at(at, &Position { offset: 7, epoch: None });
        let mut deliver = |offset| {
            let parcel = Parcel::new(ParcelKind::Publication, offset, Tags::NONE);
            locals.deliver(at, &Arc::new(parcel), Sending::default())
        };
        assert_eq!(deliver(8), Delivery::Taken);
        assert_eq!(
            (deliver(11), deliver(11), deliver(12)),
            (Delivery::Broken, Delivery::Taken, Delivery::Taken)
        );
        assert_eq!(
            (deliver(1), deliver(1), deliver(2)),
            (Delivery::Broken, Delivery::Taken, Delivery::Taken)
        );
        assert_eq!((deliver(0), deliver(3)), (Delivery::Taken, Delivery::Taken));
    }

    #[test]
    fn a_new_subscriber_reveals_a_lost_delivery() {
        let (mut locals, at) = one();
        let epoch = Some(Epoch::new(&mut crate::base::rng::Rng::new(1)));
        let home = |offset| Position { offset, epoch: epoch.clone() };
        locals.begin_at(at, &home(7));
        assert!(!locals.is_elsewhere(at, &home(7)));
        let parcel = Arc::new(Parcel::new(ParcelKind::Publication, 8, Tags::NONE));
        locals.deliver(at, &parcel, Sending::default());
        assert!(!locals.is_elsewhere(at, &home(8)));
        // The ninth was lost on its way here, and the mail about that comes behind the new subscriber.
        assert!(locals.is_elsewhere(at, &home(9)) && locals.is_elsewhere(at, &home(7)));
        locals.get(at).unwrap().subscribers.remove(0, false);
        assert!(!locals.is_elsewhere(at, &home(9)));
    }

    #[test]
    fn an_epoch_may_be_any_text_and_goes_with_its_channel() {
        let (mut locals, at) = one();
        let named = |epoch: &str| Position { offset: 7, epoch: Some(epoch.into()) };
        for epoch in ["a name of a broker's stream", "eight888", "", "x"] {
            locals.begin_at(at, &named(epoch));
            assert!(
                !locals.is_elsewhere(at, &named(epoch)) && locals.is_elsewhere(at, &named("y"))
            );
            let (_, here, offset) = locals.position(at, 0).unwrap();
            assert_eq!((here.as_str(), offset), (epoch, 7));
        }
        let local = locals.get(at).unwrap();
        local.subscribers.remove(0, false);
        local.claims = 0;
        locals.release(at);
        assert!(locals.is_empty());
    }

    #[test]
    fn delayed_publications_wait_for_their_time_or_for_a_full_group() {
        let (mut locals, at) = one();
        let deliver = |locals: &mut Locals, due| {
            let frames = Frames { full: Some(SharedFrame::new(b"x")), patch: None };
            let parcel = Parcel {
                frames: vec![(Form::JSON, frames)],
                ..Parcel::new(ParcelKind::Publication, 0, Tags::NONE)
            };
            locals.deliver(at, &Arc::new(parcel), Sending { drops: false, due: Some(Millis(due)) })
        };
        assert_eq!(deliver(&mut locals, 5), Delivery::Taken);
        assert_eq!(deliver(&mut locals, 7), Delivery::Taken);
        assert_eq!((locals.active(), locals.next_due()), (0, Some(Millis(5))));
        locals.wake_due(Millis(4));
        assert_eq!(locals.active(), 0);
        locals.wake_due(Millis(5));
        assert_eq!((locals.next_active(), locals.next_due()), (Some(at), None));
        let (filters, mut walk) = (Filters::default(), Walk::default());
        assert!(locals.walk(at, 9, &filters, &mut walk, |_, _, _| (), &mut Vec::new()));
        locals.fan_out_done(at);
        for _ in 0..JOIN_PARCELS_MAX {
            assert_eq!(locals.active(), 0);
            deliver(&mut locals, 9);
        }
        assert_eq!(locals.next_active(), Some(at));
        locals.wake_due(Millis(9));
        assert_eq!(locals.active(), 0);
    }

    #[test]
    fn a_record_stays_while_its_home_owes_an_answer() {
        let (mut locals, at) = one();
        locals.ask(at);
        let local = locals.get(at).unwrap();
        local.claims = 0;
        local.subscribers.remove(0, false);
        locals.release(at);
        assert_eq!(locals.find("news"), Some(at));
        locals.answered(at);
        locals.release(at);
        assert_eq!((locals.find("news"), locals.len()), (None, 0));
    }
}
