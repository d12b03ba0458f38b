//! The channels whose home is this shard: the one writer of each.

pub(crate) mod image;
mod interest;

use std::borrow::Cow;

use compact_str::CompactString;
use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashTable};

use super::delta::{Patched, Patcher};
use super::history::{Epoch, Kept, Position, Published, Stream, StreamOptions};
use super::idle::{Idle, Place, Seat, Seats};
use super::members::{Left, Member, Members};
use super::names::NameHasher;
use super::subscribers::Traits;
use crate::base::chunks::Chunks;
use crate::base::form::{Form, Forms};
use crate::base::heap::HeapBytes;
use crate::base::id::ShardId;
use crate::base::rng::Rng;
use crate::base::time::Millis;
use interest::Interest;
pub use interest::Target;

/// The forms in which a channel's publications are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The forms in use.
    pub forms: Forms,
    /// Somebody takes patches and has nothing yet that they build on.
    pub fresh: bool,
}

impl Wanted {
    /// Somebody takes patches.
    pub fn patches(&self) -> bool {
        self.forms.iter().any(Form::takes_patches)
    }
}

/// One channel at its home. Most channels have one subscriber and nothing more: that is in the record itself.
struct Channel {
    name: CompactString,
    /// The shard of the only subscriber.
    sole: Option<Target>,
    rest: Option<Box<Rest>>,
}

const _: () = assert!(size_of::<Channel>() == 40 && size_of::<Option<Channel>>() == 40);

/// The rest of a channel, where there is any of it.
#[derive(Default)]
struct Rest {
    /// The interested shards of a channel with several subscribers.
    #[expect(clippy::box_collection, reason = "8 bytes for channels that have only history")]
    interests: Option<Box<Vec<Interest>>>,
    stream: Option<Box<Stream>>,
    /// The members, where they are kept.
    members: Option<Box<Members>>,
    /// Where it is among the idle ones.
    seat: Seat,
}

const _: () = assert!(size_of::<Rest>() == 32);

impl Channel {
    /// A channel that nobody is interested in and nothing is known of.
    fn new(name: CompactString) -> Self {
        Self { name, sole: None, rest: None }
    }

    /// No channel, in a table that is filled.
    fn placeholder() -> Self {
        Self::new(CompactString::default())
    }

    fn several(&self) -> &[Interest] {
        let interests = self.rest.as_ref().and_then(|rest| rest.interests.as_deref());
        interests.map_or(&[], Vec::as_slice)
    }

    /// The shards that publications go to.
    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.sole.iter().chain(self.several().iter().map(|interest| &interest.target))
    }

    /// The same, to set and clear flags.
    fn targets_mut(&mut self) -> impl Iterator<Item = &mut Target> {
        let interests = self.rest.as_mut().and_then(|rest| rest.interests.as_deref_mut());
        let several = interests.map_or(&mut [][..], Vec::as_mut_slice);
        self.sole.iter_mut().chain(several.iter_mut().map(|interest| &mut interest.target))
    }

    /// Subscribers on all shards.
    fn subscribers(&self) -> u32 {
        let several: u32 = self.several().iter().map(Interest::count).sum();
        u32::from(self.sole.is_some()) + several
    }

    /// All interested shards.
    fn interests(&self) -> Vec<Interest> {
        let sole = self.sole.iter().map(|sole| Interest::of_one(sole.clone()));
        sole.chain(self.several().iter().cloned()).collect()
    }

    /// A channel that had none has these interested shards.
    fn set_interests(&mut self, interests: Vec<Interest>) {
        match &interests[..] {
            [] => {}
            [only] if let Some(target) = only.sole() => self.sole = Some(target.clone()),
            _ => self.rest_mut().interests = Some(Box::new(interests)),
        }
        self.tidy();
    }

    /// One more subscriber on a shard that keeps the channel at `local`.
    fn join(&mut self, from: ShardId, local: u32, traits: Traits) {
        if self.is_idle() {
            self.sole = Some(Target::of(from, local, traits));
            return;
        }
        let sole = self.sole.take();
        let interests = self.rest_mut().interests.get_or_insert_default();
        interests.extend(sole.map(Interest::of_one));
        match interests.iter_mut().find(|interest| interest.target.shard == from) {
            Some(interest) => {
                debug_assert_eq!(interest.target.local, local);
                interest.add(traits);
            }
            None => {
                interests.reserve_exact(1);
                interests.push(Interest::of_one(Target::of(from, local, traits)));
            }
        }
    }

    /// One subscriber less on a shard. False when that shard has none.
    fn part(&mut self, from: ShardId, traits: Traits) -> bool {
        if self.sole.take_if(|sole| sole.shard == from).is_some() {
            return true;
        }
        let Some(interests) = self.rest.as_mut().and_then(|rest| rest.interests.as_mut()) else {
            return false;
        };
        let of_shard = |interest: &Interest| interest.target.shard == from;
        let Some(at) = interests.iter().position(of_shard) else { return false };
        interests[at].sub(traits);
        if interests[at].count() == 0 {
            interests.remove(at);
        }
        if let [only] = &interests[..]
            && let Some(sole) = only.sole()
        {
            self.sole = Some(sole.clone());
            self.rest_mut().interests = None;
        }
        true
    }

    fn is_idle(&self) -> bool {
        self.sole.is_none() && self.several().is_empty()
    }

    fn rest_mut(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    /// Gives back what is empty. The channel is in use.
    fn tidy(&mut self) {
        self.rest.take_if(|rest| {
            rest.interests.is_none() && rest.stream.is_none() && rest.members.is_none()
        });
    }

    fn stream(&self) -> Option<&Stream> {
        self.rest.as_ref()?.stream.as_deref()
    }

    fn stream_mut(&mut self) -> Option<&mut Stream> {
        self.rest.as_mut()?.stream.as_deref_mut()
    }

    fn members(&self) -> Option<&Members> {
        self.rest.as_ref()?.members.as_deref()
    }

    fn members_mut(&mut self) -> Option<&mut Members> {
        self.rest.as_mut()?.members.as_deref_mut()
    }

    /// Which list of idle channels it is in.
    fn place(&self) -> Place {
        self.rest.as_ref().map_or(Place::InUse, |rest| rest.seat.place())
    }

    /// The one behind it in that list.
    fn next_idle(&self) -> u32 {
        self.rest.as_ref().map_or_else(|| Seat::default().next(), |rest| rest.seat.next())
    }

    fn mark_used(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.seat.mark_used();
        }
    }

    /// Its bytes, about: record, name, stream and publications.
    fn bytes(&self) -> usize {
        let rest = self.rest.as_ref().map_or(0, |_| size_of::<Rest>());
        let stream = self.stream();
        let stream = stream.map_or(0, |stream| size_of::<Stream>() + stream.kept().bytes);
        size_of::<Self>() + TABLE_BYTES + self.name.heap_bytes() + rest + stream
    }
}

/// A channel's place in the table of names.
const TABLE_BYTES: usize = 8;

impl Seats for Chunks<Channel> {
    fn seat(&mut self, at: u32) -> &mut Seat {
        &mut self[at as usize].rest_mut().seat
    }
}

/// The lives of streams. A stream that begins has an epoch that follows from its channel's name, so that a
/// channel that was never published to needs no record: each request for its position gets the same answer.
/// When a stream that had publications is forgotten, its name gets another epoch, together with the few that
/// share its bucket: a client with a position in one of these learns that it cannot be recovered.
struct Lives {
    seed: u64,
    /// How many were forgotten in each bucket; empty while none was.
    forgotten: Vec<u32>,
}

impl Lives {
    /// Buckets: 16 KiB.
    const BUCKETS: usize = 4096;

    fn bucket(hash: u64) -> usize {
        hash as usize % Self::BUCKETS
    }

    fn epoch(&self, hash: u64) -> Epoch {
        let life = self.forgotten.get(Self::bucket(hash)).copied().unwrap_or(0);
        let life = u64::from(life).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Two steps, so that neighbouring lives have nothing in common.
        let mut rng = Rng::new(Rng::new(self.seed ^ hash).next_u64() ^ life);
        Epoch::new(&mut Rng::new(rng.next_u64()))
    }

    /// A stream of the name ends that others have positions in.
    fn end(&mut self, hash: u64) {
        if self.forgotten.is_empty() {
            self.forgotten = vec![0; Self::BUCKETS];
        }
        let life = &mut self.forgotten[Self::bucket(hash)];
        *life = life.wrapping_add(1);
    }
}

/// The memory that was released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shed {
    /// Channels forgotten.
    pub channels: usize,
    /// Publications that went.
    pub publications: usize,
    /// Bytes of both.
    pub bytes: usize,
}

impl Kept {
    /// Does something with a stream that changes what it keeps.
    fn change<T>(&mut self, stream: &mut Stream, change: impl FnOnce(&mut Stream) -> T) -> T {
        let before = stream.kept();
        let result = change(stream);
        let after = stream.kept();
        self.publications = self.publications - before.publications + after.publications;
        self.bytes = self.bytes - before.bytes + after.bytes;
        result
    }

    /// A stream goes.
    fn forget(&mut self, stream: Option<Box<Stream>>) {
        if let Some(stream) = stream {
            self.publications -= stream.kept().publications;
            self.bytes -= stream.kept().bytes;
        }
    }
}

/// The outcome of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The channel, while anyone is interested.
    pub channel: Option<u32>,
    /// Its position after the publish; offset 0 and no epoch without history.
    pub position: Position,
}

/// All channels whose home is this shard. A channel that nobody is subscribed to and that has no
/// stream doesn't exist here.
pub struct Homes {
    channels: Chunks<Channel>,
    table: HashTable<u32>,
    hasher: NameHasher,
    lives: Lives,
    /// Channels with a stream and without subscribers.
    idle: Idle,
    idle_max: usize,
    /// How far the sweep for expired publications has come.
    sweep_at: usize,
    /// The same of giving up those of channels with subscribers.
    shed_at: usize,
    /// The history of all streams together.
    kept: Kept,
    /// The latest versions of channels whose publications have some, and the versions' life.
    versions: HashMap<u32, (u64, CompactString), FixedState>,
}

impl Homes {
    /// No channels. At most `idle_max` channels, and one at least, are kept for their stream alone;
    /// beyond it one without publications is forgotten, or else the one that is idle longest (its next use
    /// gets a new epoch).
    pub fn new(hasher: NameHasher, mut rng: Rng, idle_max: usize) -> Self {
        Self {
            channels: Chunks::default(),
            table: HashTable::new(),
            hasher,
            lives: Lives { seed: rng.next_u64(), forgotten: Vec::new() },
            idle: Idle::default(),
            idle_max: idle_max.max(1),
            sweep_at: 0,
            shed_at: 0,
            kept: Kept::default(),
            versions: HashMap::default(),
        }
    }

    /// How much history is kept here.
    pub fn kept(&self) -> Kept {
        self.kept
    }

    /// Channels known here.
    pub fn len(&self) -> usize {
        self.channels.len()
    }

    /// No channel is known.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// Channels kept for their stream alone.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// A channel's name.
    pub fn name(&self, channel: u32) -> &str {
        self.channels.get(channel as usize).map_or("", |channel| &channel.name)
    }

    /// The shards that a publication of `channel` goes to.
    pub fn targets(&self, channel: u32) -> impl Iterator<Item = &Target> {
        self.channels.get(channel as usize).into_iter().flat_map(Channel::targets)
    }

    /// Subscribers of a channel, on all shards.
    pub fn subscribers(&self, channel: u32) -> u32 {
        self.channels.get(channel as usize).map_or(0, Channel::subscribers)
    }

    /// Whether a channel, by its number, has a subscriber.
    pub fn is_in_use(&self, channel: u32) -> bool {
        self.channels.get(channel as usize).is_some_and(|channel| !channel.is_idle())
    }

    /// Whether a channel has a subscriber.
    pub fn has_subscribers(&self, name: &str, hash: u64) -> bool {
        self.find(name, hash).is_some_and(|at| self.is_in_use(at))
    }

    /// The shards that a publication of `channel` goes to, to set and clear flags.
    pub fn targets_mut(&mut self, channel: u32) -> impl Iterator<Item = &mut Target> {
        self.channels.get_mut(channel as usize).into_iter().flat_map(Channel::targets_mut)
    }

    /// The forms in which a publication of `channel` is needed.
    pub fn wanted(&self, channel: u32) -> Wanted {
        let mut wanted = Wanted::default();
        let Some(channel) = self.channels.get(channel as usize) else { return wanted };
        for target in channel.targets() {
            wanted.fresh |= target.fresh();
            wanted.forms.insert(target.form());
        }
        for interest in channel.several() {
            interest.others().for_each(|(form, _)| wanted.forms.insert(form));
        }
        wanted
    }

    /// The stream of a channel, without publications whose time is over.
    pub fn stream(&mut self, now: Millis, channel: u32) -> Option<&Stream> {
        let record = self.channels.get_mut(channel as usize)?;
        let stream = record.stream_mut()?;
        self.kept.change(stream, |stream| stream.expire(now));
        let is_bare = stream.kept().publications == 0;
        if is_bare && record.place() == Place::Holding {
            self.idle.put(&mut self.channels, channel, Place::Bare);
        }
        self.channels.get(channel as usize)?.stream()
    }

    /// Where a channel stands that has no stream yet.
    pub fn beginning(&self, hash: u64) -> Position {
        Position { offset: 0, epoch: Some(self.lives.epoch(hash)) }
    }

    /// The members of a channel, where they are kept.
    pub fn members(&self, channel: u32) -> Option<&Members> {
        self.channels.get(channel as usize)?.members()
    }

    /// Members of all channels together; counts them one by one.
    pub fn members_of_all(&self) -> usize {
        self.channels.iter().filter_map(|(_, c)| c.members()).map(Members::len).sum()
    }

    /// One more subscriber on shard `from`, which keeps the channel at `local`. The position is
    /// where the subscriber begins: what is published later reaches it, and nothing earlier does.
    /// The channel's number is the answer, too.
    #[expect(clippy::too_many_arguments, reason = "a channel as it is named, and who comes")]
    pub fn subscribe(
        &mut self,
        now: Millis,
        name: &str,
        hash: u64,
        options: StreamOptions,
        from: ShardId,
        local: u32,
        traits: Traits,
    ) -> (u32, Position) {
        let at = self.find_or_insert(name, hash);
        self.take_up(at);
        let channel = &mut self.channels[at as usize];
        let unheard = channel.is_idle();
        channel.join(from, local, traits);
        if let Some(stream) = channel.stream()
            && !options.kept()
            && stream.records().next().is_none()
        {
            // The namespace lost its history and nothing is left to keep.
            self.end_stream(at, hash);
            self.channels[at as usize].tidy();
        }
        if !options.kept() {
            return (at, Position { offset: 0, epoch: None });
        }
        (at, self.stream_or_new(at, hash, now, options, unheard).position())
    }

    /// A subscriber on shard `from` takes patches and has nothing that they build on.
    pub fn mark_fresh(&mut self, channel: u32, from: ShardId) {
        if let Some(target) = self.targets_mut(channel).find(|target| target.shard == from) {
            target.set_fresh(true);
        }
    }

    /// A subscriber is here for others to see, or makes events. `info` is packed (`base::info`).
    pub fn enter(
        &mut self,
        channel: u32,
        member: Member,
        info: &[u8],
        present: bool,
        announces: bool,
    ) {
        let Some(channel) = self.channels.get_mut(channel as usize) else { return };
        let members = channel.rest_mut().members.get_or_insert_default();
        members.insert(&self.hasher, member, info, present, announces);
    }

    /// The visible part of a member has changed; its user hasn't. Where presence shows the member: whether it
    /// makes join and leave events, and the info that presence shows.
    pub fn reinform(
        &mut self,
        name: &str,
        hash: u64,
        member: Member,
        info: &[u8],
    ) -> Option<(bool, Cow<'_, [u8]>)> {
        let at = self.find(name, hash)?;
        let members = self.channels[at as usize].members_mut()?;
        members.replace_info(&self.hasher, member, info)
    }

    /// The numbers of channels are below this one.
    pub fn numbers(&self) -> usize {
        self.channels.end()
    }

    /// One subscriber less on shard `from`. What others saw of it is the answer, when it was a member.
    pub fn unsubscribe(
        &mut self,
        name: &str,
        hash: u64,
        from: ShardId,
        traits: Traits,
        member: Option<Member>,
    ) -> Option<Left> {
        let Some(at) = self.find(name, hash) else {
            debug_assert!(false, "unsubscribe from a channel that nobody is subscribed to");
            return None;
        };
        let channel = &mut self.channels[at as usize];
        if !channel.part(from, traits) {
            debug_assert!(false, "unsubscribe from a shard that isn't interested");
            return None;
        }
        let mut left = None;
        if let (Some(member), Some(members)) = (member, channel.members_mut()) {
            left = members.remove(&self.hasher, member);
            if members.is_empty() {
                channel.rest_mut().members = None;
            }
        }
        channel.tidy();
        if channel.is_idle() {
            self.file(at);
        }
        left
    }

    /// Takes a publication: next offset, history. Delivering it is the caller's part.
    pub fn publish(
        &mut self,
        now: Millis,
        name: &str,
        hash: u64,
        options: StreamOptions,
        published: &Published<'_>,
    ) -> Taken {
        if !options.kept() {
            return Taken {
                channel: self.find(name, hash),
                position: Position { offset: 0, epoch: None },
            };
        }
        let at = self.find_or_insert(name, hash);
        let channel = &mut self.channels[at as usize];
        let unheard = channel.is_idle();
        channel.mark_used();
        self.stream_or_new(at, hash, now, options, unheard);
        let mut position = Position { offset: 0, epoch: None };
        if let Some(stream) = self.channels[at as usize].stream_mut() {
            position = self.kept.change(stream, |stream| stream.append(now, published));
        }
        if unheard && self.channels[at as usize].place() != Place::Holding {
            self.file(at);
        }
        Taken { channel: (!unheard).then_some(at), position }
    }

    /// Whether a publication is newer than the channel's latest: an unknown life begins anew, an empty
    /// one is any.
    pub fn is_newer(&self, channel: u32, version: u64, life: &str) -> bool {
        match self.versions.get(&channel) {
            Some((latest, known)) => (!life.is_empty() && life != known) || version > *latest,
            None => true,
        }
    }

    /// The version of the channel's latest publication.
    pub fn set_version(&mut self, channel: u32, version: u64, life: &str) {
        if self.channels.get(channel as usize).is_some_and(|channel| channel.stream().is_some()) {
            self.versions.insert(channel, (version, life.into()));
        }
    }

    /// Keeps the patch that a channel's latest publication was sent as, for who comes back later.
    pub fn keep_patch(&mut self, channel: u32, patched: Patched) {
        if let Some(channel) = self.channels.get_mut(channel as usize)
            && let Some(stream) = channel.stream_mut()
        {
            self.kept.change(stream, |stream| stream.keep_patch(patched));
        }
    }

    /// See [`Stream::make_patches`].
    pub fn make_patches(
        &mut self,
        channel: u32,
        places: std::ops::Range<usize>,
        patcher: &mut Patcher,
    ) -> usize {
        match self.channels.get_mut(channel as usize).and_then(Channel::stream_mut) {
            Some(stream) => self.kept.change(stream, |stream| stream.make_patches(places, patcher)),
            None => 0,
        }
    }

    /// Subscribers of a channel got something that its stream doesn't keep.
    pub fn break_base(&mut self, channel: u32) {
        if let Some(channel) = self.channels.get_mut(channel as usize)
            && let Some(stream) = channel.stream_mut()
        {
            stream.break_base();
        }
    }

    /// A channel's number, for reading; `None` where nothing is known of it, which makes no record either:
    /// see [`Self::beginning`].
    pub fn read(&mut self, now: Millis, name: &str, hash: u64) -> Option<u32> {
        let at = self.find(name, hash)?;
        let channel = &mut self.channels[at as usize];
        channel.mark_used();
        let is_over = channel.stream().is_some_and(|stream| stream.forgettable(now));
        if channel.is_idle() && is_over {
            self.forget_idle(at);
            return None;
        }
        Some(at)
    }

    /// The growth of the history by a publication of so many bytes: the oldest ones may go for it.
    pub fn growth(&self, channel: Option<u32>, options: StreamOptions, bytes: usize) -> usize {
        let stream = channel.and_then(|at| self.channels.get(at as usize)?.stream());
        match stream {
            Some(stream) => stream.growth(options, bytes),
            None => size_of::<Channel>() + size_of::<Rest>() + size_of::<Stream>() + bytes,
        }
    }

    /// Forgets idle channels until that gives `bytes` back, `channels_max` of them at most and `spare`
    /// not: those without publications first, then by how long nobody used them.
    pub fn shed_idle(&mut self, bytes: usize, channels_max: usize, spare: Option<u32>) -> Shed {
        let mut shed = Shed::default();
        while shed.bytes < bytes
            && shed.channels < channels_max
            && let Some(at) = self.idle.next(&mut self.channels, spare)
        {
            let channel = &self.channels[at as usize];
            let kept = channel.stream().map_or_else(Kept::default, Stream::kept);
            shed.channels += 1;
            shed.publications += kept.publications;
            shed.bytes += channel.bytes();
            self.forget_idle(at);
        }
        shed
    }

    /// Drops publications of channels with subscribers until that gives `bytes` back, looking at `count`
    /// channels at most. Positions stay, so a client that lacks one of them learns that it cannot be recovered.
    pub fn shed_in_use(&mut self, bytes: usize, count: usize) -> Shed {
        let mut shed = Shed::default();
        let end = self.channels.end();
        for _ in 0..count.min(end) {
            if shed.bytes >= bytes {
                break;
            }
            let at = self.shed_at % end;
            self.shed_at = at + 1;
            let Some(channel) = self.channels.get_mut(at).filter(|channel| !channel.is_idle())
            else {
                continue;
            };
            let Some(stream) = channel.stream_mut() else { continue };
            let kept = stream.kept();
            self.kept.change(stream, Stream::clear);
            shed.publications += kept.publications;
            shed.bytes += kept.bytes;
        }
        shed
    }

    /// Drops what was published in a channel; position and epoch stay.
    pub fn drop_history(&mut self, channel: u32) {
        if let Some(record) = self.channels.get_mut(channel as usize)
            && let Some(stream) = record.stream_mut()
        {
            self.kept.change(stream, Stream::clear);
            if record.is_idle() {
                self.file(channel);
            }
        }
    }

    /// Calls `each` with channels that somebody is subscribed to, and how many do: of `count` slots
    /// from `cursor` on. Where to go on, if there are more.
    pub fn list(&self, cursor: u32, count: usize, mut each: impl FnMut(&str, u32)) -> Option<u32> {
        let begin = cursor as usize;
        let end = self.channels.end().min(begin.saturating_add(count));
        for channel in (begin..end).filter_map(|at| self.channels.get(at)) {
            let subscribers = channel.subscribers();
            if subscribers > 0 {
                each(&channel.name, subscribers);
            }
        }
        (end < self.channels.end()).then_some(end as u32)
    }

    /// Drops expired publications and streams, looking at `count` channels at most. A few calls a
    /// second keep memory in step with time; correctness doesn't depend on them.
    pub fn sweep(&mut self, now: Millis, count: usize) {
        let end = self.channels.end();
        for _ in 0..count.min(end) {
            let at = self.sweep_at % end;
            self.sweep_at = at + 1;
            let Some(channel) = self.channels.get_mut(at) else { continue };
            let Some(stream) = channel.stream_mut() else { continue };
            self.kept.change(stream, |stream| stream.expire(now));
            let is_over = stream.forgettable(now);
            match channel.is_idle() {
                true if is_over => self.forget_idle(at as u32),
                true => self.file(at as u32),
                false => {}
            }
        }
    }

    /// A channel's number.
    pub fn find(&self, name: &str, hash: u64) -> Option<u32> {
        self.table.find(hash, |at| self.channels[*at as usize].name == name).copied()
    }

    fn find_or_insert(&mut self, name: &str, hash: u64) -> u32 {
        if let Some(at) = self.find(name, hash) {
            return at;
        }
        let at = self.channels.insert(Channel::new(CompactString::new(name))) as u32;
        let (channels, hasher) = (&self.channels, &self.hasher);
        self.table.insert_unique(hash, at, |at| hasher.hash(&channels[*at as usize].name));
        at
    }

    /// The stream of a channel: a new life when there is none, or when the old one is over. It is
    /// never over while it has a subscriber: clients with a position would have to be notified.
    fn stream_or_new(
        &mut self,
        at: u32,
        hash: u64,
        now: Millis,
        options: StreamOptions,
        unheard: bool,
    ) -> &mut Stream {
        let known = self.channels[at as usize].stream();
        if unheard && known.is_some_and(|stream| stream.forgettable(now)) {
            self.end_stream(at, hash);
        }
        let Self { channels, lives, .. } = self;
        let slot = &mut channels[at as usize].rest_mut().stream;
        let stream =
            slot.get_or_insert_with(|| Box::new(Stream::new(now, options, lives.epoch(hash))));
        // The options of its namespace may have changed since.
        stream.set_options(options);
        stream
    }

    /// A channel's stream goes; where others have positions in it, the next one has another epoch.
    fn end_stream(&mut self, at: u32, hash: u64) {
        let rest = self.channels[at as usize].rest.as_mut();
        let stream = rest.and_then(|rest| rest.stream.take());
        if stream.as_ref().is_some_and(|stream| stream.has_begun()) {
            self.lives.end(hash);
        }
        self.kept.forget(stream);
    }

    /// Puts a channel without subscribers where it belongs: forgotten when it has nothing to be kept for.
    fn file(&mut self, at: u32) {
        let channel = &self.channels[at as usize];
        let place = match channel.stream() {
            Some(stream) if stream.kept().publications > 0 => Place::Holding,
            Some(stream) if stream.has_begun() => Place::Bare,
            // Its position follows from its name.
            _ => return self.forget_idle(at),
        };
        if channel.place() == place {
            return;
        }
        self.idle.put(&mut self.channels, at, place);
        while self.idle.len() > self.idle_max
            && let Some(first) = self.idle.next(&mut self.channels, None)
        {
            self.forget_idle(first);
        }
    }

    /// Takes a channel out of the list of idle ones that it is in.
    fn take_up(&mut self, at: u32) {
        if self.channels[at as usize].rest.is_some() {
            self.idle.put(&mut self.channels, at, Place::InUse);
        }
    }

    fn forget_idle(&mut self, at: u32) {
        self.take_up(at);
        self.remove(at);
    }

    fn remove(&mut self, at: u32) {
        let hash = self.hasher.hash(&self.channels[at as usize].name);
        self.end_stream(at, hash);
        self.channels.remove(at as usize);
        if !self.versions.is_empty() {
            self.versions.remove(&at);
        }
        if let Ok(entry) = self.table.find_entry(hash, |found| *found == at) {
            entry.remove();
        }
        if self.channels.is_empty() {
            // After a burst of channels nothing of them is left behind.
            self.channels = Chunks::default();
            self.table = HashTable::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::history::{Recovered, Since};

    const OPTIONS: StreamOptions = StreamOptions { size: 5, ttl_ms: 100, meta_ttl_ms: 1000 };
    const SHARD: ShardId = ShardId(0);
    const PLAIN: Traits = Traits::JSON;
    const PUBLISHED: Published<'static> =
        Published { data: b"{}", info: b"", tags: b"", is_json: true, time: 0 };

    fn homes(idle_max: usize) -> Homes {
        Homes::new(NameHasher::new(1, 1), Rng::new(1), idle_max)
    }

    fn hash(homes: &Homes, name: &str) -> u64 {
        homes.hasher.hash(name)
    }

    #[test]
    fn a_channel_costs_what_the_documents_say() {
        let mut homes = homes(10);
        let before = crate::sys::memory::requested_bytes();
        let count = 10_000;
        for local in 0..count {
            let name = format!("channel:{local}");
            let hash = hash(&homes, &name);
            homes.subscribe(Millis(0), &name, hash, StreamOptions::default(), SHARD, local, PLAIN);
        }
        let held = crate::sys::memory::requested_bytes() - before;
        // Record 40, a table of 16,384 places: 8.2; the rest of a chunk and the list of chunks beside that.
        assert!(held <= i64::from(count) * 49 + (36 << 10), "{}", held / i64::from(count));
    }

    #[test]
    fn a_stream_lives_as_long_as_anyone_is_subscribed() {
        let mut homes = homes(10);
        let hash = hash(&homes, "a");
        let begin = homes.subscribe(Millis(0), "a", hash, OPTIONS, SHARD, 7, PLAIN).1;
        let publish = |homes: &mut Homes, at| {
            homes.publish(Millis(at), "a", hash, OPTIONS, &PUBLISHED).position
        };
        assert_eq!(publish(&mut homes, 10).offset, 1);
        let later = publish(&mut homes, 5_000);
        assert_eq!((later.offset, &later.epoch), (2, &begin.epoch));
        let second = homes.subscribe(Millis(10_000), "a", hash, OPTIONS, SHARD, 7, PLAIN).1;
        assert_eq!(second, later);
        homes.unsubscribe("a", hash, SHARD, PLAIN, None);
        homes.unsubscribe("a", hash, SHARD, PLAIN, None);
        // Nobody is there, and it has been quiet for so long: the next one finds a new stream.
        let anew = homes.subscribe(Millis(10_001), "a", hash, OPTIONS, SHARD, 7, PLAIN).1;
        assert_eq!(anew.offset, 0);
        assert_ne!(anew.epoch, begin.epoch);
    }

    #[test]
    fn a_channel_that_was_never_published_to_costs_nothing() {
        let mut homes = homes(1);
        let name = "asked for";
        let hash = hash(&homes, name);
        let before = homes.beginning(hash);
        assert_eq!((homes.read(Millis(0), name, hash), homes.len()), (None, 0));
        // A subscriber gets the same answer, and leaves nothing behind.
        let begin = homes.subscribe(Millis(0), name, hash, OPTIONS, SHARD, 0, PLAIN).1;
        assert_eq!(begin, before);
        homes.unsubscribe(name, hash, SHARD, PLAIN, None);
        assert_eq!((homes.len(), homes.idle()), (0, 0));
        // The first publication is the first behind that position.
        let taken = homes.publish(Millis(1), name, hash, OPTIONS, &PUBLISHED);
        assert_eq!(taken.position, Position { offset: 1, epoch: before.epoch.clone() });
        let at = homes.read(Millis(1), name, hash).unwrap();
        let since = Since { offset: 0, epoch: before.epoch.unwrap().as_str().into() };
        let recovered = homes.stream(Millis(1), at).unwrap().recover(&since, 9);
        assert_eq!(recovered, Recovered::Yes(0..1));
    }

    #[test]
    fn a_position_in_a_forgotten_stream_is_not_recovered() {
        let mut homes = homes(10);
        let hash = hash(&homes, "a");
        let first = homes.publish(Millis(0), "a", hash, OPTIONS, &PUBLISHED).position;
        assert_eq!(homes.shed_idle(1, 9, None).channels, 1);
        assert_ne!(homes.beginning(hash).epoch, first.epoch);
        let again = homes.publish(Millis(1), "a", hash, OPTIONS, &PUBLISHED).position;
        assert_eq!((again.offset, again.epoch == first.epoch), (1, false));
    }

    #[test]
    fn channels_without_publications_go_first() {
        let mut homes = homes(3);
        let publish = |homes: &mut Homes, name: &str, at| {
            let hash = homes.hasher.hash(name);
            homes.publish(Millis(at), name, hash, OPTIONS, &PUBLISHED);
            hash
        };
        let keeps = publish(&mut homes, "keeps", 0);
        let cleared = publish(&mut homes, "cleared", 0);
        let at = homes.find("cleared", cleared).unwrap();
        homes.drop_history(at);
        // Many that are subscribed to, and left; their publications have expired.
        for n in 0..20u64 {
            let name = n.to_string();
            let hash = hash(&homes, &name);
            homes.subscribe(Millis(0), &name, hash, OPTIONS, SHARD, 0, PLAIN);
            homes.publish(Millis(0), &name, hash, OPTIONS, &PUBLISHED);
            let at = homes.find(&name, hash).unwrap();
            assert!(homes.stream(Millis(100), at).is_some());
            homes.unsubscribe(&name, hash, SHARD, PLAIN, None);
            assert!(homes.find("keeps", keeps).is_some(), "{n}");
        }
        assert_eq!((homes.len(), homes.idle(), homes.kept().publications), (3, 3, 1));
        assert!(homes.find("cleared", cleared).is_none());
        // Where all hold some, the one that wasn't used for longest goes.
        for name in ["b", "c", "d"] {
            publish(&mut homes, name, 1);
            let hash = homes.hasher.hash("b");
            homes.read(Millis(1), "b", hash);
        }
        let left = ["keeps", "b", "c", "d"].map(|name| {
            let hash = homes.hasher.hash(name);
            homes.find(name, hash).is_some()
        });
        assert_eq!(left, [false, true, true, true]);
    }

    #[test]
    fn shed_bytes_equal_the_held_bytes() {
        let mut homes = homes(1000);
        let data = vec![b'x'; 1000];
        let published = Published { data: &data, ..PUBLISHED };
        for n in 0..10 {
            let name = format!("channel {n}");
            let hash = hash(&homes, &name);
            homes.publish(Millis(n), &name, hash, OPTIONS, &published);
        }
        let spare = homes.find("channel 0", hash(&homes, "channel 0"));
        let shed = homes.shed_idle(2500, 100, spare);
        assert_eq!((shed.channels, shed.publications), (3, 3));
        assert!((3000..4500).contains(&shed.bytes), "{shed:?}");
        assert_eq!(homes.shed_idle(usize::MAX, 2, spare).channels, 2);
        assert_eq!(homes.shed_idle(usize::MAX, 100, spare).channels, 4);
        assert_eq!((homes.len(), homes.kept().publications), (1, 1));
        // A channel with a subscriber is not idle: it keeps its position.
        let hash = hash(&homes, "channel 0");
        let before = homes.subscribe(Millis(9), "channel 0", hash, OPTIONS, SHARD, 0, PLAIN).1;
        assert_eq!(homes.shed_idle(usize::MAX, 100, None), Shed::default());
        assert_eq!(homes.shed_in_use(1, 100).publications, 1);
        assert_eq!(homes.kept(), Kept::default());
        let at = homes.find("channel 0", hash).unwrap();
        let stream = homes.stream(Millis(9), at).unwrap();
        assert_eq!(stream.position(), before);
        // A client that lacks a forgotten publication learns that.
        let since = Since { offset: 0, epoch: before.epoch.unwrap().as_str().into() };
        assert_eq!(stream.recover(&since, 9), Recovered::No);
    }

    #[test]
    fn a_full_stream_grows_by_the_difference() {
        let mut homes = homes(10);
        let options = StreamOptions { size: 1, ..OPTIONS };
        let published = Published { data: &[b'x'; 1000], ..PUBLISHED };
        let hash = hash(&homes, "a");
        assert!(homes.growth(None, options, 1048) > 1048);
        homes.publish(Millis(0), "a", hash, options, &published);
        let at = homes.find("a", hash);
        assert_eq!(homes.growth(at, options, 1048), 0);
        assert_eq!(homes.growth(at, options, 2048), 1000);
        assert_eq!(homes.growth(at, OPTIONS, 1048), 1048);
    }

    #[test]
    fn the_channel_that_is_idle_longest_goes_first() {
        let mut homes = homes(2);
        for name in ["a", "b", "c"] {
            let hash = hash(&homes, name);
            homes.publish(Millis(0), name, hash, OPTIONS, &PUBLISHED);
        }
        assert_eq!((homes.len(), homes.idle()), (2, 2));
        let offset = |homes: &mut Homes, name| {
            let hash = homes.hasher.hash(name);
            homes.subscribe(Millis(1), name, hash, OPTIONS, SHARD, 0, PLAIN).1.offset
        };
        assert_eq!(["a", "b", "c"].map(|name| offset(&mut homes, name)), [0, 1, 1]);
    }
}

#[cfg(test)]
mod model {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::base::rng::Rng;

    const KEPT: StreamOptions = StreamOptions { size: 2, ttl_ms: 1 << 40, meta_ttl_ms: 1 << 41 };

    #[derive(Clone, Debug)]
    enum Op {
        Subscribe(usize, u8),
        Unsubscribe(usize, u8),
        Publish(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..4usize, 0..4u8).prop_map(|(channel, shard)| Op::Subscribe(channel, shard)),
            (0..4usize, 0..4u8).prop_map(|(channel, shard)| Op::Unsubscribe(channel, shard)),
            (0..4usize).prop_map(Op::Publish),
        ]
    }

    proptest! {
        // Two channels with history, two without, against plain maps.
        #[test]
        fn interest_and_offsets_equal_plain_maps(
            ops in proptest::collection::vec(op(), 1..200),
        ) {
            let names = ["kept-1", "kept-2", "plain-1", "plain-2"];
            let options = |at: usize| if at < 2 { KEPT } else { StreamOptions::default() };
            let hasher = NameHasher::new(7, 4);
            let mut homes = Homes::new(hasher.clone(), Rng::new(1), 100);
            let mut interest: BTreeMap<(usize, u8), u32> = BTreeMap::new();
            let mut offsets = [0u64; 4];
            for op in ops {
                match op {
                    Op::Subscribe(at, shard) => {
                        *interest.entry((at, shard)).or_default() += 1;
                        let hash = hasher.hash(names[at]);
                        let (_, position) = homes.subscribe(
                            Millis(0), names[at], hash, options(at), ShardId(shard), at as u32,
                            Traits::JSON,
                        );
                        prop_assert_eq!(position.offset, offsets[at]);
                        prop_assert_eq!(position.epoch.is_some(), at < 2);
                    }
                    Op::Unsubscribe(at, shard) => {
                        let Some(count) = interest.get_mut(&(at, shard)) else { continue };
                        *count -= 1;
                        if *count == 0 {
                            interest.remove(&(at, shard));
                        }
                        let hash = hasher.hash(names[at]);
                        homes.unsubscribe(names[at], hash, ShardId(shard), Traits::JSON, None);
                    }
                    Op::Publish(at) => {
                        offsets[at] += u64::from(at < 2);
                        let hash = hasher.hash(names[at]);
                        let published = Published { data: b"x", ..Published::default() };
                        let taken =
                            homes.publish(Millis(0), names[at], hash, options(at), &published);
                        prop_assert_eq!(taken.position.offset, offsets[at]);
                        let mut shards: Vec<(u8, u32)> = taken
                            .channel
                            .map(|channel| homes.channels[channel as usize].interests())
                            .unwrap_or_default()
                            .iter()
                            .map(|i| (i.target.shard.0, i.count()))
                            .collect();
                        shards.sort_unstable();
                        let expected: Vec<(u8, u32)> = interest
                            .iter()
                            .filter(|((channel, _), _)| *channel == at)
                            .map(|((_, shard), count)| (*shard, *count))
                            .collect();
                        prop_assert_eq!(shards, expected);
                    }
                }
                let used = |at: usize| interest.keys().any(|(channel, _)| *channel == at);
                let idle = (0..2).filter(|at| !used(*at) && offsets[*at] > 0).count();
                prop_assert!(homes.idle() <= idle);
                prop_assert_eq!(
                    homes.len() - homes.idle(),
                    (0..4).filter(|at| used(*at)).count()
                );
            }
        }
    }
}
