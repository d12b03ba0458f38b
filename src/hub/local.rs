//! The channels that connections of this shard are subscribed to: the delivering half of a
//! channel, whose other half is at its home.

use std::collections::VecDeque;
use std::sync::Arc;

use compact_str::CompactString;
use hashbrown::HashTable;
use slab::Slab;

use super::fanout::{FanOut, Walk};
use super::filter::Filters;
use super::names::NameHasher;
use super::parcel::Parcel;
use super::subscribers::Subscribers;
use crate::base::id::ShardId;

/// One channel on the side of its subscribers.
#[derive(Debug)]
pub struct Local {
    /// Its name.
    pub name: CompactString,
    /// Who gets its publications.
    pub subscribers: Subscribers,
    fan_out: Option<Box<FanOut>>,
    /// Offset of the latest publication delivered here, 0 before the first and without history.
    /// One for all subscribers: mail comes in order, so they are all at the same place.
    offset: u64,
    /// Subscriptions of sessions here, from the asking on.
    pub claims: u32,
    /// Mail to the home that isn't answered yet. While there is any, the record stays: deliveries
    /// to it may be on their way.
    pub asked: u32,
    /// Its namespace's number.
    pub namespace: u16,
    /// Where its other half lives.
    pub home: ShardId,
}

const _: () = assert!(size_of::<Local>() <= 88);

/// All such channels of a shard.
pub struct Locals {
    channels: Slab<Local>,
    table: HashTable<u32>,
    hasher: NameHasher,
    /// Channels with something to send.
    active: VecDeque<u32>,
}

/// What a delivery came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is on its way to the subscribers.
    Taken,
    /// It doesn't follow what was delivered before: some are missing, or the stream began anew. Who
    /// is positioned has to be told; delivered again, it is taken for the others.
    Broken,
    /// Too much waits for the subscribers already: it is lost here.
    Refused,
    /// Nobody is there.
    Nothing,
}

impl Locals {
    /// No channels.
    pub fn new(hasher: NameHasher) -> Self {
        Self { channels: Slab::new(), table: HashTable::new(), hasher, active: VecDeque::new() }
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
        let at = self.channels.insert(Local {
            name: CompactString::new(name),
            subscribers: Subscribers::default(),
            fan_out: None,
            offset: 0,
            claims: 0,
            asked: 0,
            namespace,
            home: self.hasher.home(hash),
        }) as u32;
        let (channels, hasher) = (&self.channels, &self.hasher);
        self.table.insert_unique(hash, at, |at| hasher.hash(&channels[*at as usize].name));
        at
    }

    /// Forgets a channel that no session claims and whose home has answered everything.
    pub fn release(&mut self, at: u32) {
        let Some(local) = self.channels.get(at as usize) else { return };
        if local.claims > 0 || local.asked > 0 || local.fan_out.is_some() {
            return;
        }
        assert!(local.subscribers.is_empty(), "a subscriber without a claim");
        let hash = self.hasher.hash(&local.name);
        if let Ok(entry) = self.table.find_entry(hash, |found| *found == at) {
            entry.remove();
        }
        self.channels.remove(at as usize);
        if self.channels.is_empty() {
            self.channels = Slab::new();
            self.table = HashTable::new();
        }
    }

    /// A subscriber begins at `offset`: what comes next here follows that.
    pub fn begin_at(&mut self, at: u32, offset: u64) {
        if let Some(local) = self.channels.get_mut(at as usize) {
            local.offset = offset;
        }
    }

    /// A parcel from the home. Its offset is 0 for all but publications with history.
    pub fn deliver(&mut self, at: u32, parcel: &Arc<Parcel>) -> Delivery {
        let Some(local) = self.channels.get_mut(at as usize) else { return Delivery::Nothing };
        let offset = parcel.offset;
        if offset > 0 {
            let follows = local.offset == 0 || offset == local.offset + 1;
            local.offset = if follows { offset } else { offset - 1 };
            if !follows && !local.subscribers.is_empty() {
                return Delivery::Broken;
            }
        }
        if local.subscribers.is_empty() {
            return Delivery::Nothing;
        }
        let places = local.subscribers.places();
        let parcel = Arc::clone(parcel);
        let taken = match &mut local.fan_out {
            Some(fan_out) => fan_out.push(parcel, places),
            None => {
                self.active.push_back(at);
                local.fan_out.get_or_insert_default().push(parcel, places)
            }
        };
        if taken { Delivery::Taken } else { Delivery::Refused }
    }

    /// Whether a fan-out holds the places of this channel's subscribers.
    pub fn held(&self, at: u32) -> bool {
        self.channels.get(at as usize).is_some_and(|local| local.fan_out.is_some())
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
        scratch: &mut Vec<u8>,
    ) -> bool {
        let Some(local) = self.channels.get_mut(at as usize) else { return false };
        let Some(fan_out) = &mut local.fan_out else { return false };
        fan_out.walk(places_max, &mut local.subscribers, filters, walk, scratch)
    }

    /// Whether a channel has nothing left to send.
    pub fn is_walked(&self, at: u32) -> bool {
        let local = self.channels.get(at as usize);
        local.and_then(|local| local.fan_out.as_ref()).is_none_or(|fan_out| fan_out.is_empty())
    }

    /// All is sent: places may change again.
    pub fn fan_out_done(&mut self, at: u32) {
        if let Some(local) = self.channels.get_mut(at as usize) {
            debug_assert!(local.fan_out.as_ref().is_none_or(|f| f.is_empty()));
            local.fan_out = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tags::Tags;
    use crate::hub::parcel::Told;
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
    fn a_jump_and_a_new_life_are_told_once_and_then_delivered() {
        let (mut locals, at) = one();
        locals.begin_at(at, 7);
        let mut deliver = |offset| {
            let parcel = Parcel::new(Told::Publication, offset, Tags::NONE);
            locals.deliver(at, &Arc::new(parcel))
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
    fn a_record_stays_while_its_home_owes_an_answer() {
        let (mut locals, at) = one();
        let local = locals.get(at).unwrap();
        local.asked = 1;
        local.claims = 0;
        local.subscribers.remove(0, false);
        locals.release(at);
        assert_eq!(locals.find("news"), Some(at));
        locals.get(at).unwrap().asked = 0;
        locals.release(at);
        assert_eq!((locals.find("news"), locals.len()), (None, 0));
    }
}
