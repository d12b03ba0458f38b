//! The byte form of a home's channels: how lives of streams go on, and each channel with its stream, its
//! interested shards and its members. Publications are records of their own: they never change, so that each is
//! written once, and those that a stream has dropped meanwhile are dropped by the reader at the end.

use std::collections::VecDeque;
use std::ops::Range;

use compact_str::CompactString;
use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet, HashTable};

use super::{Channel, Homes, Lives};
use crate::base::chunks::Chunks;
use crate::base::filling::Filling;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, Slots, Written, kind};
use crate::hub::history::{Epoch, Kept, Record, Stream};
use crate::hub::idle::{Idle, Place, Seats};
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

impl Homes {
    /// Writes what there is beside the channels, into a record.
    pub(crate) fn write_head(&self, out: &mut ImageWriter) {
        out.field(&self.lives);
        out.field(&Slots::of(self.channels.iter().map(|(at, _)| at)));
        let next = |at: u32| self.channels[at as usize].next_idle();
        out.field(&self.idle.order(Place::Bare, next));
        out.field(&self.idle.order(Place::Holding, next));
    }

    /// The end of the table of channels.
    pub(crate) fn slots_end(&self) -> usize {
        self.channels.iter().next_back().map_or(0, |(at, _)| at + 1)
    }

    /// Writes the channels of these slots, as far as they have changed since they were written. Stops behind
    /// `bytes_max` bytes, and returns the slot to go on with.
    pub(crate) fn write_channels(
        &self,
        out: &mut ImageWriter,
        slots: Range<usize>,
        written: &mut ChannelsWritten,
        bytes_max: usize,
    ) -> usize {
        for at in slots.clone() {
            let Some(channel) = self.channels.get(at) else { continue };
            if !written.publications(out, at as u32, channel, bytes_max) {
                return at;
            }
            let version = self.versions.get(&(at as u32));
            out.unit(written.channels.at(at), |out| {
                out.record(kind::CHANNEL, |out| write_channel(out, at as u32, channel, version));
            });
            if out.len() >= bytes_max {
                return at + 1;
            }
        }
        slots.end
    }
}

/// What was written of a home's channels.
#[derive(Default)]
pub(crate) struct ChannelsWritten {
    channels: Written,
    /// Where the publications of channels end that were written.
    ends: HashMap<u32, End, FixedState>,
}

/// The last publication of a channel that was written: of which life, and its offset.
struct End {
    name: CompactString,
    epoch: Epoch,
    offset: u64,
}

impl ChannelsWritten {
    /// Writes the publications of a channel that were not written. False: some are left, `bytes_max` is reached.
    fn publications(
        &mut self,
        out: &mut ImageWriter,
        at: u32,
        channel: &Channel,
        bytes_max: usize,
    ) -> bool {
        let Some((stream, oldest)) =
            channel.stream().and_then(|stream| Some((stream, stream.oldest()?)))
        else {
            return true;
        };
        let end = self.ends.get(&at).filter(|end| {
            end.name == channel.name && end.epoch == *stream.epoch() && end.offset + 1 >= oldest
        });
        let mut begins = end.is_none();
        let mut offset = end.map_or_else(|| oldest.saturating_sub(1), |end| end.offset);
        let mut left = stream.behind(offset).peekable();
        if left.peek().is_none() {
            return true;
        }
        while left.peek().is_some() && out.len() < bytes_max {
            let (mut bytes, mut count) = (0, 0);
            let some = left.clone().take_while(|record| {
                let goes_on = bytes < RECORD_BYTES_MAX;
                bytes += record.bytes();
                goes_on
            });
            let some = some.inspect(|record| {
                count += 1;
                offset = record.offset();
            });
            out.record(kind::PUBLICATIONS, |out| {
                out.field(&at);
                out.field(&begins);
                // To the end of the record.
                some.for_each(|record| out.field(record));
            });
            begins = false;
            left.by_ref().take(count).for_each(drop);
        }
        let is_done = left.peek().is_none();
        let end = End { name: channel.name.clone(), epoch: stream.epoch().clone(), offset };
        if !begins {
            self.ends.insert(at, end);
        }
        is_done
    }
}

/// Bytes of publications after which a record ends.
const RECORD_BYTES_MAX: usize = 32 * 1024;

fn write_channel(
    out: &mut ImageWriter,
    at: u32,
    channel: &Channel,
    version: Option<&(u64, CompactString)>,
) {
    out.field(&at);
    out.field(&channel.name);
    out.field(&channel.interests());
    out.field(&channel.stream().is_some());
    if let Some(stream) = channel.stream() {
        stream.write_head(out);
    }
    match channel.members() {
        Some(members) => members.write(out),
        None => out.count(0),
    }
    out.field(&channel.rest.as_ref().is_some_and(|rest| rest.seat.is_used()));
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
    used: HashSet<u32, FixedState>,
    channels: Filling<Channel, Chunks<Channel>>,
    versions: HashMap<u32, (u64, CompactString), FixedState>,
    /// Publications, and how many of them each stream keeps.
    rings: HashMap<u32, VecDeque<Record>, FixedState>,
    kept: HashMap<u32, usize, FixedState>,
}

impl HomesReader {
    /// Reads what [`Homes::write_head`] writes.
    pub(crate) fn new(
        from: &mut ImageReader<'_>,
        hasher: NameHasher,
        idle_max: usize,
    ) -> Result<Self, Broken> {
        let (lives, slots) = (Lives::read(from)?, Slots::read(from)?);
        Ok(Self {
            hasher,
            idle_max: idle_max.max(1),
            lives,
            bare: from.field("Idle.bare")?,
            holding: from.field("Idle.holding")?,
            used: HashSet::default(),
            channels: Filling::new(slots.bound(), Channel::placeholder),
            slots,
            versions: HashMap::default(),
            rings: HashMap::default(),
            kept: HashMap::default(),
        })
    }

    /// Reads it once more: this is what holds.
    pub(crate) fn head(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        self.lives = Lives::read(from)?;
        self.slots = Slots::read(from)?;
        (self.bare, self.holding) = (from.field("Idle.bare")?, from.field("Idle.holding")?);
        Ok(())
    }

    /// Reads publications of a channel.
    pub(crate) fn publications(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let at = u32::read(from)?;
        if at as usize >= self.slots.bound() {
            return Err(Broken::Value("a slot"));
        }
        let ring = self.rings.entry(at).or_default();
        if bool::read(from)? {
            ring.clear();
        }
        while !from.is_read() {
            ring.push_back(Record::read(from)?);
        }
        Ok(())
    }

    /// Reads the record of a channel.
    pub(crate) fn channel(&mut self, from: &mut ImageReader<'_>) -> Result<(), Broken> {
        let at = u32::read(from)?;
        if at as usize >= self.slots.bound() {
            return Err(Broken::Value("a slot"));
        }
        let mut channel = Channel::new(from.field("Channel.name")?);
        let interests = from.field("Channel.interests")?;
        self.kept.remove(&at);
        let mut stream = None;
        if bool::read(from)? {
            let (head, kept) = Stream::read_head(from)?;
            stream = Some(Box::new(head)).filter(|_| !from.forgets("Channel.stream"));
            if kept > 0 && stream.is_some() {
                self.kept.insert(at, kept);
            }
        }
        let members = Members::read(from, &self.hasher)?;
        let members = Some(Box::new(members)).filter(|members| !members.is_empty());
        let members = if from.forgets("Channel.members") { None } else { members };
        match from.field("Channel.used")? {
            true => _ = self.used.insert(at),
            false => _ = self.used.remove(&at),
        }
        match from.field("Channel.version")? {
            Some(version) => _ = self.versions.insert(at, version),
            None => _ = self.versions.remove(&at),
        }
        let rest = channel.rest_mut();
        (rest.stream, rest.members) = (stream, members);
        channel.set_interests(interests);
        self.channels.put(at as usize, channel);
        Ok(())
    }

    /// All of them, with their tables and lists.
    pub(crate) fn end(mut self) -> Result<Homes, Broken> {
        let gone: Vec<usize> = self.channels.beside(&self.slots).collect();
        for at in gone.iter().map(|at| *at as u32) {
            self.versions.remove(&at);
            self.used.remove(&at);
            self.kept.remove(&at);
        }
        let mut channels = self.channels.end(&self.slots)?;
        for (at, kept) in self.kept {
            let stream = channels.get_mut(at as usize).and_then(Channel::stream_mut);
            let ring = self.rings.remove(&at).unwrap_or_default();
            stream.ok_or(Broken::Value("a stream"))?.fill(ring, kept)?;
        }
        let (mut table, mut kept) = (HashTable::with_capacity(channels.len()), Kept::default());
        for (at, channel) in channels.iter() {
            let hash = self.hasher.hash(&channel.name);
            if table.find(hash, |at: &u32| channels[*at as usize].name == channel.name).is_some() {
                return Err(Broken::Value("the name of a channel"));
            }
            let hash_at = |at: &u32| self.hasher.hash(&channels[*at as usize].name);
            table.insert_unique(hash, at as u32, hash_at);
            if let Some(stream) = channel.stream() {
                kept.publications += stream.kept().publications;
                kept.bytes += stream.kept().bytes;
            }
        }
        let mut idle = Idle::default();
        for (list, place) in [(self.bare, Place::Bare), (self.holding, Place::Holding)] {
            for at in list {
                let channel = channels.get(at as usize).ok_or(Broken::Value("an idle channel"))?;
                if channel.place() != Place::InUse || !channel.is_idle() {
                    return Err(Broken::Value("an idle channel"));
                }
                idle.put(&mut channels, at, place);
            }
        }
        if channels.iter().any(|(_, of)| of.is_idle() && of.place() == Place::InUse) {
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
        let end = homes.slots_end();
        homes.write_channels(&mut out, 0..end, &mut ChannelsWritten::default(), usize::MAX);
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
                kind::PUBLICATIONS => reader.publications(&mut from)?,
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
            for (at, channel) in homes.channels.iter() {
                let hash = names().hash(&channel.name);
                prop_assert_eq!(again.find(&channel.name, hash), Some(at as u32));
                prop_assert_eq!(again.channels[at].interests(), channel.interests());
                let position = channel.stream().map(Stream::position);
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
