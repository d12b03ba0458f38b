//! The byte form of a home's channels: how lives of streams go on, and each channel with its stream, its
//! interested shards and its members.

use compact_str::CompactString;
use hashbrown::{HashMap, HashTable};
use slab::Slab;

use super::{Channel, Homes, Interests, Lives};
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, Slots, kind};
use crate::hub::history::{Kept, Stream};
use crate::hub::idle::{Idle, Place, Seat, Seats};
use crate::hub::members::Members;
use crate::hub::names::NameHasher;

impl Durable for Lives {
    fn write(&self, out: &mut ImageWriter) {
        let Self { seed, forgotten } = self;
        out.field(seed);
        let forgotten = forgotten.iter().zip(0u32..).filter(|(count, _)| **count > 0);
        let forgotten: Vec<(u32, u32)> = forgotten.map(|(count, at)| (at, *count)).collect();
        out.field(&forgotten);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let seed = from.field("Lives.seed")?;
        let counts: Vec<(u32, u32)> = from.field("Lives.forgotten")?;
        let mut forgotten = Vec::new();
        if !counts.is_empty() {
            forgotten = vec![0; Self::BUCKETS];
        }
        for (at, count) in counts {
            *forgotten.get_mut(at as usize).ok_or(Broken::Value("a bucket"))? = count;
        }
        Ok(Self { seed, forgotten })
    }
}

impl Durable for Interests {
    fn write(&self, out: &mut ImageWriter) {
        out.count(self.as_slice().len());
        Durable::write_all(self.as_slice(), out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let mut interests = Vec::read(from)?;
        Ok(match interests.len() {
            0 => Self::None,
            1 => interests.pop().map_or(Self::None, Self::One),
            _ => Self::Many(Box::new(interests)),
        })
    }
}

impl Homes {
    /// Writes what there is beside the channels, into a record.
    pub(crate) fn write_head(&self, out: &mut ImageWriter) {
        out.field(&self.lives);
        out.field(&Slots::of(self.channels.iter().map(|(at, _)| at)));
        let next = |at: u32| self.channels[at as usize].seat.next();
        out.field(&self.idle.order(Place::Bare, next));
        out.field(&self.idle.order(Place::Holding, next));
    }

    /// Writes a record for each channel.
    pub(crate) fn write_channels(&self, out: &mut ImageWriter) {
        for (at, channel) in &self.channels {
            let version = self.versions.get(&(at as u32));
            out.record(kind::CHANNEL, |out| write_channel(out, at as u32, channel, version));
        }
    }
}

fn write_channel(
    out: &mut ImageWriter,
    at: u32,
    channel: &Channel,
    version: Option<&(u64, CompactString)>,
) {
    let Channel { name, interests, stream, members, seat } = channel;
    out.field(&at);
    out.field(name);
    out.field(interests);
    out.field(stream);
    match members {
        Some(members) => members.write(out),
        None => out.count(0),
    }
    out.field(&seat.is_used());
    out.field(&version.cloned());
}

/// The channels of a home that are read from an image.
pub(crate) struct HomesReader {
    hasher: NameHasher,
    idle_max: usize,
    lives: Lives,
    slots: Slots,
    bare: Vec<u32>,
    holding: Vec<u32>,
    used: Vec<u32>,
    channels: Vec<(usize, Channel)>,
    versions: HashMap<u32, (u64, CompactString), foldhash::fast::FixedState>,
}

impl HomesReader {
    /// Reads what [`Homes::write_head`] writes.
    pub(crate) fn new(
        from: &mut ImageReader<'_>,
        hasher: NameHasher,
        idle_max: usize,
    ) -> Result<Self, Broken> {
        Ok(Self {
            hasher,
            idle_max: idle_max.max(1),
            lives: Lives::read(from)?,
            slots: Slots::read(from)?,
            bare: from.field("Idle.bare")?,
            holding: from.field("Idle.holding")?,
            used: Vec::new(),
            channels: Vec::new(),
            versions: HashMap::default(),
        })
    }

    /// Reads the record of a channel.
    pub(crate) fn channel(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let at = u32::read(from)?;
        let slot = self.slots.take(at)?;
        let name = from.field("Channel.name")?;
        let interests = from.field("Channel.interests")?;
        let stream: Option<Box<Stream>> = from.field("Channel.stream")?;
        if stream.as_ref().is_some_and(|stream| !stream.is_whole()) {
            return Err(Broken::Value("a stream"));
        }
        let members = Members::read(from, &self.hasher)?;
        let members = Some(Box::new(members)).filter(|members| !members.is_empty());
        let members = if from.forgets("Channel.members") { None } else { members };
        if from.field("Channel.used")? {
            self.used.push(at);
        }
        if let Some(version) = from.field("Channel.version")? {
            self.versions.insert(at, version);
        }
        let seat = Seat::default();
        self.channels.push((slot, Channel { name, interests, stream, members, seat }));
        Ok(())
    }

    /// All of them, with their tables and lists.
    pub(crate) fn end(self) -> Result<Homes, Broken> {
        self.slots.end()?;
        let mut channels: Slab<Channel> = self.channels.into_iter().collect();
        let (mut table, mut kept) = (HashTable::with_capacity(channels.len()), Kept::default());
        for (at, channel) in &channels {
            let hash = self.hasher.hash(&channel.name);
            if table.find(hash, |at: &u32| channels[*at as usize].name == channel.name).is_some() {
                return Err(Broken::Value("the name of a channel"));
            }
            let hash_at = |at: &u32| self.hasher.hash(&channels[*at as usize].name);
            table.insert_unique(hash, at as u32, hash_at);
            if let Some(stream) = &channel.stream {
                kept.publications += stream.kept().publications;
                kept.bytes += stream.kept().bytes;
            }
        }
        let mut idle = Idle::default();
        for (list, place) in [(self.bare, Place::Bare), (self.holding, Place::Holding)] {
            for at in list {
                let channel = channels.get(at as usize).ok_or(Broken::Value("an idle channel"))?;
                if channel.seat.place() != Place::InUse || !channel.is_idle() {
                    return Err(Broken::Value("an idle channel"));
                }
                idle.put(&mut channels, at, place);
            }
        }
        if channels.iter().any(|(_, of)| of.is_idle() && of.seat.place() == Place::InUse) {
            return Err(Broken::Value("a channel without subscribers"));
        }
        self.used.iter().for_each(|at| channels.seat(*at).mark_used());
        Ok(Homes {
            channels,
            table,
            hasher: self.hasher,
            lives: self.lives,
            idle,
            idle_max: self.idle_max,
            sweep_at: 0,
            shed_at: 0,
            kept,
            versions: self.versions,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::form::Form;
    use crate::base::id::{ConnKey, ShardId};
    use crate::base::rng::Rng;
    use crate::base::time::Millis;
    use crate::hub::history::{Published, StreamOptions};
    use crate::hub::members::Member;
    use crate::hub::subscribers::Traits;

    const NOW: Millis = Millis(5_000_000);

    fn names() -> NameHasher {
        NameHasher::new(7, 2)
    }

    fn image_of(homes: &Homes, now: Millis) -> Vec<u8> {
        let mut out = ImageWriter::new(now);
        out.record(kind::HOME, |out| homes.write_head(out));
        homes.write_channels(&mut out);
        out.finish()
    }

    fn read(image: &[u8], now: Millis) -> Result<Homes, Broken> {
        let mut from = ImageReader::new(image, now)?;
        if from.next_record()? != Some(kind::HOME) {
            return Err(from.misplaced());
        }
        let mut reader = HomesReader::new(&mut from, names(), 3)?;
        while let Some(found) = from.next_record()? {
            match found {
                kind::CHANNEL => reader.channel(&mut from)?,
                _ => return Err(from.misplaced()),
            }
        }
        reader.end()
    }

    /// Some channels: publications, subscribers of several shards and forms, members, versions, idle ones
    /// and forgotten ones.
    fn some(steps: &[(u8, u8, u8)]) -> Homes {
        let names = names();
        let mut homes = Homes::new(names.clone(), Rng::new(1), 3);
        let options = StreamOptions { size: 3, ttl_ms: 60_000, meta_ttl_ms: 600_000 };
        let mut subscribed: Vec<(String, ShardId, Traits, Option<Member>)> = Vec::new();
        for (at, (what, channel, of)) in steps.iter().enumerate() {
            let now = Millis(NOW.0 + at as u64);
            let name = format!("channel {}", channel % 9);
            let hash = names.hash(&name);
            let shard = ShardId(of % 2);
            let traits = Traits::new(Form::from_u8(of % 6)).with_joins(of % 3 == 0);
            match what % 5 {
                0 | 1 => {
                    let info = crate::base::info::ClientInfo { user: "u", ..Default::default() };
                    let published = Published {
                        data: &[*of; 5],
                        info: &info.pack(),
                        is_json: *of > 9,
                        ..Published::default()
                    };
                    let taken = homes.publish(now, &name, hash, options, &published);
                    if let Some(at) = taken.channel {
                        homes.set_version(at, u64::from(*of), "life");
                    }
                }
                2 | 3 => {
                    let (at, _) = homes.subscribe(
                        now,
                        &name,
                        hash,
                        options,
                        shard,
                        u32::from(*channel) % 9,
                        traits,
                    );
                    let conn =
                        ConnKey { index: u32::from(*of), generation: std::num::NonZeroU32::MIN };
                    let taken = subscribed.iter().any(|(known, _, _, member)| {
                        *known == name && member.is_some_and(|member| member.conn == conn)
                    });
                    let member = Some(Member { shard, conn }).filter(|_| of % 4 > 0 && !taken);
                    if let Some(member) = member {
                        homes.enter(at, member, &[1, 2, *of], true, of % 8 > 3);
                    }
                    subscribed.push((name, shard, traits, member));
                }
                _ => {
                    let at = subscribed.iter().position(|(known, ..)| *known == name);
                    if let Some(at) = at {
                        let (name, shard, traits, member) = subscribed.swap_remove(at);
                        homes.unsubscribe(&name, hash, shard, traits, member);
                    }
                }
            }
        }
        homes
    }

    proptest! {
        #[test]
        fn channels_come_back(steps in proptest::collection::vec(any::<(u8, u8, u8)>(), 0..120)) {
            let homes = some(&steps);
            let image = image_of(&homes, NOW);
            let mut again = read(&image, Millis(99)).unwrap();
            prop_assert_eq!(image_of(&again, Millis(99)), image);
            // And they behave as before.
            prop_assert_eq!(again.kept(), homes.kept());
            prop_assert_eq!(again.idle(), homes.idle());
            prop_assert_eq!(again.members_of_all(), homes.members_of_all());
            for (at, channel) in &homes.channels {
                let hash = names().hash(&channel.name);
                prop_assert_eq!(again.find(&channel.name, hash), Some(at as u32));
                prop_assert_eq!(again.interests(at as u32), homes.interests(at as u32));
                let position = channel.stream.as_ref().map(|stream| stream.position());
                let now = Millis(99);
                prop_assert_eq!(again.stream(now, at as u32).map(Stream::position), position);
            }
            // The same channels are forgotten, in the same order, and with the same epochs behind it.
            let mut homes = homes;
            prop_assert_eq!(again.shed_idle(1, 1, None), homes.shed_idle(1, 1, None));
            let hash = names().hash("channel 0");
            prop_assert_eq!(again.beginning(hash), homes.beginning(hash));
        }

        #[test]
        fn changed_bytes_are_refused(at: proptest::sample::Index, byte: u8) {
            let homes = some(&[(2, 1, 5), (0, 1, 9), (2, 2, 6), (0, 3, 1), (4, 2, 6)]);
            let mut image = image_of(&homes, NOW);
            image.truncate(image.len() - 4);
            let at = at.index(image.len() - 10) + 10;
            image[at] = byte;
            crate::base::image::seal(&mut image);
            // With a good checksum: an error, or channels that can be used.
            if let Ok(mut homes) = read(&image, NOW) {
                homes.sweep(Millis(NOW.0 + 10_000_000), 100);
            }
        }
    }

    #[test]
    fn each_prefix_is_refused() {
        let image = image_of(&some(&[(2, 1, 5), (0, 1, 9), (0, 3, 1)]), NOW);
        for length in 0..image.len() {
            assert!(read(&image[..length], NOW).is_err());
            // Even where the checksum is that of the prefix.
            let mut prefix = image[..length].to_vec();
            crate::base::image::seal(&mut prefix);
            let is_refused = read(&prefix, NOW).is_err();
            assert!(is_refused || length == image.len() - 4, "{length}");
        }
    }
}
