//! The byte form of the channels on their subscribers' side.

use std::ops::Range;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashTable};

use super::{Local, Locals};
use crate::base::chunks::{Chunks, Link};
use crate::base::filling::Filling;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, Slots, Written, kind};
use crate::hub::filter::Filters;
use crate::hub::history::{Epoch, Position};
use crate::hub::names::NameHasher;

impl Locals {
    /// Which places are in use.
    pub(crate) fn slots(&self) -> Slots {
        Slots::of(self.channels.iter().map(|(at, _)| at))
    }

    /// The end of the table of channels.
    pub(crate) fn slots_end(&self) -> usize {
        self.channels.iter().next_back().map_or(0, |(at, _)| at + 1)
    }

    /// Writes the channels of these slots, as far as they have changed since they were written; those that are
    /// in the middle of something are left out. Stops behind `bytes_max` bytes, and returns the slot to go on
    /// with.
    pub(crate) fn write(
        &self,
        out: &mut ImageWriter,
        slots: Range<usize>,
        written: &mut Written,
        bytes_max: usize,
    ) -> usize {
        for at in slots.clone() {
            let Some(local) = self.channels.get(at) else { continue };
            if local.traffic == Link::NONE {
                let position = local.position.get().map(|at| &self.positions[at]);
                out.unit(written.at(at), |out| write_one(out, at as u32, local, position));
            }
            if out.len() >= bytes_max {
                return at + 1;
            }
        }
        slots.end
    }

    /// Subscribers of all channels.
    pub(crate) fn subscribers(&self) -> usize {
        self.channels.iter().map(|(_, local)| local.subscribers.len()).sum()
    }

    /// Channels whose homes have not answered everything.
    pub(crate) fn awaited(&self) -> usize {
        self.traffic.iter().filter(|(_, traffic)| traffic.asked > 0).count()
    }

    /// Fan-outs, those that wait for more among them.
    pub(crate) fn fan_outs(&self) -> usize {
        self.traffic.iter().filter(|(_, traffic)| traffic.fan_out.is_some()).count()
    }
}

fn write_one(out: &mut ImageWriter, at: u32, local: &Local, position: Option<&Position>) {
    let Local { name, subscribers, traffic: _, position: _, claims, namespace, home: _ } = local;
    out.record(kind::LOCAL, |out| {
        out.field(&at);
        out.field(name);
        out.field(subscribers);
        out.field(&position.and_then(|position| position.epoch.clone()));
        out.field(&position.map_or(0, |position| position.offset));
        out.field(claims);
        out.field(namespace);
    });
}

/// Channels that are read from an image.
pub(crate) struct LocalsReader {
    hasher: NameHasher,
    slots: Slots,
    channels: Filling<Local, Chunks<Local>>,
    positions: HashMap<u32, Position, FixedState>,
}

impl LocalsReader {
    /// Channels at these places.
    pub(crate) fn new(slots: Slots, hasher: NameHasher) -> Self {
        let channels = Filling::new(slots.bound(), Local::placeholder);
        Self { hasher, slots, channels, positions: HashMap::default() }
    }

    /// Channels are at these places in the end.
    pub(crate) fn set_slots(&mut self, slots: Slots) {
        self.slots = slots;
    }

    /// Reads the next record of these.
    pub(crate) fn channel(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let at = u32::read(from)?;
        if at as usize >= self.slots.bound() {
            return Err(Broken::Value("a slot"));
        }
        let name: compact_str::CompactString = from.field("Local.name")?;
        let subscribers = from.field("Local.subscribers")?;
        let epoch: Option<Epoch> = from.field("Local.epoch")?;
        let offset = from.field("Local.offset")?;
        let claims = from.field("Local.claims")?;
        let namespace = from.field("Local.namespace")?;
        let home = self.hasher.home(self.hasher.hash(&name));
        self.positions.insert(at, Position { offset, epoch });
        let local = Local { subscribers, claims, ..Local::new(name, namespace, home) };
        self.channels.put(at as usize, local);
        Ok(())
    }

    /// All of them, with their table.
    pub(crate) fn end(self, filters: &Filters) -> Result<Locals, Broken> {
        let channels = self.channels.end(&self.slots)?;
        let mut table = HashTable::with_capacity(channels.len());
        for (at, local) in channels.iter() {
            let hash = self.hasher.hash(&local.name);
            if table.find(hash, |at: &u32| channels[*at as usize].name == local.name).is_some() {
                return Err(Broken::Value("the name of a channel"));
            }
            let hash_at = |at: &u32| self.hasher.hash(&channels[*at as usize].name);
            table.insert_unique(hash, at as u32, hash_at);
            if local.subscribers.iter().any(|of| !filters.has(of.traits.filter())) {
                return Err(Broken::Value("the filter of a subscriber"));
            }
        }
        let mut locals = Locals {
            channels,
            traffic: Chunks::default(),
            positions: Chunks::default(),
            table,
            hasher: self.hasher,
            active: Default::default(),
            delayed: Default::default(),
        };
        self.positions.iter().for_each(|(at, position)| locals.begin_at(*at, position));
        Ok(locals)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::form::Form;
    use crate::base::time::Millis;
    use crate::hub::subscribers::{Subscriber, Traits};

    fn image_of(locals: &Locals) -> Vec<u8> {
        let mut out = ImageWriter::new(Millis(5));
        out.record(kind::LOCAL_SIDE, |out| out.field(&locals.slots()));
        let end = locals.slots_end();
        locals.write(&mut out, 0..end, &mut Written::default(), usize::MAX);
        out.finish()
    }

    fn read(image: &[u8]) -> Result<Locals, Broken> {
        let mut from = ImageReader::new(image, Millis(5))?;
        from.next_record()?;
        let mut reader = LocalsReader::new(Slots::read(&mut from)?, NameHasher::new(7, 3));
        while let Some(found) = from.next_record()? {
            match found {
                kind::LOCAL => reader.channel(&mut from)?,
                _ => return Err(from.misplaced()),
            }
        }
        reader.end(&Filters::default())
    }

    /// Subscribers of a channel, its offset, and which epoch it has.
    type Planned = (Vec<(u16, u8)>, u64, u8);

    /// Channels with these subscribers and positions; each fifth is released.
    fn some(channels: &[Planned]) -> Locals {
        let mut locals = Locals::new(NameHasher::new(7, 3));
        for (at, (subscribers, offset, epoch)) in channels.iter().enumerate() {
            let place = locals.find_or_insert(&format!("channel {at}"), at as u16);
            let epoch = match epoch % 3 {
                0 => None,
                1 => Some(Epoch::from("abcdefgh")),
                _ => Some(Epoch::from("another life")),
            };
            locals.begin_at(place, &Position { offset: *offset, epoch });
            let local = locals.get(place).unwrap();
            local.claims = subscribers.len() as u32;
            for (conn, traits) in subscribers {
                let traits = Traits::new(Form::from_u8(traits % 14))
                    .with_positioned(traits % 2 > 0)
                    .with_fresh(traits % 5 > 3);
                local.subscribers.add(Subscriber { conn: u32::from(*conn), traits });
            }
        }
        for at in (0..channels.len() as u32).step_by(5) {
            if locals.get(at).is_some_and(|local| local.claims == 0) {
                locals.release(at);
            }
        }
        locals
    }

    proptest! {
        #[test]
        fn channels_come_back(
            channels in proptest::collection::vec(
                (proptest::collection::vec(any::<(u16, u8)>(), 0..9), any::<u64>(), any::<u8>()),
                0..20,
            )
        ) {
            let mut locals = some(&channels);
            let image = image_of(&locals);
            let mut again = read(&image).unwrap();
            prop_assert_eq!(image_of(&again), image);
            prop_assert_eq!(again.subscribers(), locals.subscribers());
            for at in 0..channels.len() as u32 {
                let Some(local) = locals.get(at) else { continue };
                let same = again.get(at).unwrap();
                prop_assert!(same.subscribers.iter().eq(local.subscribers.iter()));
                prop_assert_eq!((same.home, same.claims), (local.home, local.claims));
                prop_assert_eq!(again.find(&local.name), Some(at));
                prop_assert_eq!(again.position(at, 0), locals.position(at, 0));
            }
        }

        #[test]
        fn changed_bytes_are_refused(at: proptest::sample::Index, byte: u8) {
            let locals = some(&[(vec![(3, 1), (1, 5)], 7, 1), (vec![], 0, 0), (vec![(3, 2)], 1, 2)]);
            let mut image = image_of(&locals);
            image.truncate(image.len() - 4);
            let at = at.index(image.len() - 10) + 10;
            image[at] = byte;
            crate::base::image::seal(&mut image);
            let _ = read(&image);
        }
    }

    #[test]
    fn a_filter_that_is_not_there_is_refused() {
        let mut locals = some(&[(vec![(3, 1)], 7, 1)]);
        locals.get(0).unwrap().subscribers.at_mut(0..1).for_each(|of| {
            of.traits = of.traits.with_filter(3);
        });
        assert!(matches!(
            read(&image_of(&locals)),
            Err(Broken::Value("the filter of a subscriber"))
        ));
    }
}
