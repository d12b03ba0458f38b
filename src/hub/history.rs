//! A channel's stream: consecutive offsets, an epoch, and the latest publications.

use std::collections::VecDeque;

use compact_str::CompactString;
use triomphe::ThinArc;

use super::delta::{Patched, Patcher};
use crate::base::heap::HeapBytes;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, durable};
use crate::base::rng::Rng;
use crate::base::time::Millis;

/// Names one life of a stream. This node's own have eight letters; a broker may name its streams by any
/// text. Shape: 16 bytes, and no allocation for eight bytes.
#[derive(Clone)]
pub struct Epoch(Text);

#[derive(Clone)]
enum Text {
    Eight([u8; 8]),
    Any(ThinArc<(), u8>),
}

const _: () = assert!(size_of::<Option<Epoch>>() == 16);

impl Epoch {
    /// A new one.
    pub fn new(rng: &mut Rng) -> Self {
        const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        Self(Text::Eight(std::array::from_fn(|_| LETTERS[rng.below(52) as usize])))
    }

    /// As the protocol carries it.
    pub fn as_str(&self) -> &str {
        // Made of texts only.
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }

    /// Its eight letters, if it is of this node's form: those who hold many epochs need no more.
    pub fn eight(&self) -> Option<[u8; 8]> {
        match &self.0 {
            Text::Eight(letters) => Some(*letters),
            Text::Any(_) => None,
        }
    }

    /// The reverse of [`Self::eight`].
    pub fn of_eight(letters: [u8; 8]) -> Self {
        Self(Text::Eight(letters))
    }

    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Text::Eight(letters) => letters,
            Text::Any(text) => &text.slice,
        }
    }
}

impl From<&str> for Epoch {
    fn from(text: &str) -> Self {
        Self(match <[u8; 8]>::try_from(text.as_bytes()) {
            Ok(eight) => Text::Eight(eight),
            Err(_) => Text::Any(ThinArc::from_header_and_slice((), text.as_bytes())),
        })
    }
}

impl PartialEq for Epoch {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Epoch {}

impl std::hash::Hash for Epoch {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

impl HeapBytes for Epoch {
    fn heap_bytes(&self) -> usize {
        match &self.0 {
            Text::Eight(_) => 0,
            // Count and length stand before the text.
            Text::Any(text) => (2 * size_of::<usize>() + text.slice.len()).next_multiple_of(8),
        }
    }
}

impl std::fmt::Debug for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Durable for Epoch {
    fn write(&self, out: &mut ImageWriter) {
        out.bytes(self.bytes());
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let text = std::str::from_utf8(from.bytes()?);
        text.map(Self::from).map_err(|_| Broken::Value("an epoch"))
    }
}

/// Where a stream stands. Offsets of a channel grow, on whichever node it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Offset of the latest publication, 0 before the first.
    pub offset: u64,
    /// The stream's life; `None` for a channel without history.
    pub epoch: Option<Epoch>,
}

durable!(Position { offset, epoch });

impl Position {
    /// The position of a channel without history.
    pub fn is_none(&self) -> bool {
        self.offset == 0 && self.epoch.is_none()
    }
}

impl HeapBytes for Position {
    fn heap_bytes(&self) -> usize {
        self.epoch.as_ref().map_or(0, HeapBytes::heap_bytes)
    }
}

/// The history options of a channel's namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Publications kept, 0 for no history.
    pub size: u32,
    /// They are dropped so long after the last publish, in milliseconds.
    pub ttl_ms: u64,
    /// Offset and epoch are kept so long after the last publish, in milliseconds.
    pub meta_ttl_ms: u64,
}

durable!(StreamOptions { size, ttl_ms, meta_ttl_ms });

impl StreamOptions {
    /// Whether the channel has a stream at all.
    pub fn kept(&self) -> bool {
        self.size > 0 && self.ttl_ms > 0
    }
}

/// A publication as it comes to its channel's home.
#[derive(Clone, Copy, Debug, Default)]
pub struct Published<'a> {
    /// The payload.
    pub data: &'a [u8],
    /// The publisher, packed (`base::info`); empty for the server.
    pub info: &'a [u8],
    /// Tags, packed (`base::tags`).
    pub tags: &'a [u8],
    /// All of it can be shown to JSON connections.
    pub is_json: bool,
    /// When it was published, in seconds since 1970; 0 where the namespace keeps no times.
    pub time: u32,
}

/// The fixed part of a kept publication.
#[derive(Clone, Copy, Debug)]
pub struct RecordHead {
    /// Its offset in the stream.
    offset: u64,
    /// How many bytes of the record are the payload.
    data_bytes: u32,
    /// How many bytes behind them are the publisher's info; what follows are tags, and behind them the time
    /// where there is one. The top bit is [`Published::is_json`], the next one says that there is a time.
    info_bytes: u32,
}

const IS_JSON: u32 = 1 << 31;
const HAS_TIME: u32 = 1 << 30;
const TIME_BYTES: usize = size_of::<u32>();

/// A kept publication: one allocation of 32 bytes, payload, publisher info, tags, and 4 bytes of a time where
/// the namespace keeps times; 8 bytes in the ring.
#[derive(Clone)]
pub struct Record(ThinArc<RecordHead, u8>);

impl Published<'_> {
    /// When it was published, in milliseconds since 1970; 0: not known.
    pub fn time_ms(&self) -> u64 {
        u64::from(self.time) * 1_000
    }

    /// Its bytes when it is kept.
    pub fn record_bytes(&self) -> usize {
        let time = if self.time == 0 { 0 } else { TIME_BYTES };
        RECORD_BYTES + self.data.len() + self.info.len() + self.tags.len() + time
    }
}

impl Record {
    /// A publication with its offset; 0 while it has none.
    pub fn new(offset: u64, published: &Published<'_>) -> Self {
        let Published { data, info, tags, is_json, time } = *published;
        let (time, has_time) = (time.to_le_bytes(), time != 0);
        let flags = if is_json { IS_JSON } else { 0 } | if has_time { HAS_TIME } else { 0 };
        let head = RecordHead {
            offset,
            data_bytes: data.len() as u32,
            info_bytes: info.len() as u32 | flags,
        };
        if info.is_empty() && tags.is_empty() && !has_time {
            return Self(ThinArc::from_header_and_slice(head, data));
        }
        let time: &[u8] = if has_time { &time } else { &[] };
        // Copied twice: byte by byte, as the parts would be taken one behind the other, costs several times as much.
        Self(ThinArc::from_header_and_slice(head, &[data, info, tags, time].concat()))
    }

    fn head(&self) -> &RecordHead {
        &self.0.header.header
    }

    /// Its offset.
    pub fn offset(&self) -> u64 {
        self.head().offset
    }

    /// The published data.
    pub fn published(&self) -> Published<'_> {
        let RecordHead { data_bytes, info_bytes, .. } = *self.head();
        let (data, rest) = self.0.slice.split_at(data_bytes as usize);
        let (info, mut tags) = rest.split_at((info_bytes & !(IS_JSON | HAS_TIME)) as usize);
        let mut time = 0;
        if info_bytes & HAS_TIME != 0
            && let Some((before, bytes)) = tags.split_last_chunk()
        {
            (tags, time) = (before, u32::from_le_bytes(*bytes));
        }
        Published { data, info, tags, is_json: info_bytes & IS_JSON != 0, time }
    }

    /// The payload.
    pub fn data(&self) -> &[u8] {
        self.published().data
    }

    /// Bytes of its allocation and its place in the ring.
    pub fn bytes(&self) -> usize {
        RECORD_BYTES + self.0.slice.len()
    }
}

impl Durable for Record {
    fn write(&self, out: &mut ImageWriter) {
        let Published { data, info, tags, is_json, time } = self.published();
        out.field(&self.offset());
        out.field(&is_json);
        out.field(&time);
        [data, info, tags].into_iter().for_each(|part| out.bytes(part));
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let (offset, is_json) = (from.field("Record.offset")?, from.field("Record.is_json")?);
        let time = from.field("Record.time")?;
        let (data, info, tags) = (from.bytes()?, from.bytes()?, from.bytes()?);
        Ok(Self::new(offset, &Published { data, info, tags, is_json, time }))
    }
}

/// What a kept publication costs beside its own bytes: count, length, head, and its place in the
/// ring, which may be half empty.
const RECORD_BYTES: usize =
    size_of::<RecordHead>() + 2 * size_of::<usize>() + 2 * size_of::<Record>();
const _: () = assert!(RECORD_BYTES == 48);

/// The known patch that makes a kept publication out of its predecessor.
#[derive(Clone, Debug, Default)]
enum Known {
    /// Nothing.
    #[default]
    Nothing,
    /// It is no use.
    Useless,
    /// The patch.
    Patch(Box<[u8]>),
}

impl Known {
    /// Bytes that it takes, its own included.
    fn bytes(&self) -> usize {
        let patch = if let Self::Patch(patch) = self { patch.len() } else { 0 };
        size_of::<Self>() + patch
    }
}

impl From<Patched> for Known {
    fn from(patched: Patched) -> Self {
        match patched {
            Patched::Patch(patch) => Self::Patch(patch),
            Patched::Useless => Self::Useless,
            Patched::OverBudget => Self::Nothing,
        }
    }
}

/// How much history is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Publications.
    pub publications: usize,
    /// Bytes of them.
    pub bytes: usize,
}

/// The position that a client claims in a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// Offset of the last publication that it has.
    pub offset: u64,
    /// The stream's life in which that holds; empty is any.
    pub epoch: CompactString,
}

/// The requested part of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Begin behind this, or before it when `reverse`; without it at the oldest (the newest).
    pub since: Option<Since>,
    /// Maximum of publications; 0 requests the position only.
    pub limit: usize,
    /// Newest first.
    pub reverse: bool,
}

/// The epoch that was named is not the stream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unrecoverable;

/// The outcome of a recovery: the places in the ring of the publications that the client lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// Something is missing, or it is another life.
    No,
    /// All of these, oldest first.
    Yes(std::ops::Range<usize>),
}

/// A channel's stream. Publications go all together `ttl_ms` after the last publish, offset and
/// epoch `meta_ttl_ms` after it.
#[derive(Debug)]
pub struct Stream {
    offset: u64,
    epoch: Epoch,
    ring: VecDeque<Record>,
    /// What is known of patches, by place in the ring: as many as there are records. Only where somebody took
    /// patches.
    #[expect(clippy::box_collection, reason = "most streams have none: 8 bytes instead of 32")]
    patches: Option<Box<VecDeque<Known>>>,
    /// Bytes of the ring's records, and of patches.
    bytes: usize,
    last_publish: Millis,
    options: StreamOptions,
    /// The latest publication is the last that subscribers got: a patch may build on it.
    is_base: bool,
}

/// The byte form, without the publications: those are written apart, since they don't change. Patches are
/// computed again when somebody needs them.
impl Stream {
    /// Writes the stream without its publications, and how many it keeps.
    pub fn write_head(&self, out: &mut ImageWriter) {
        let Self { offset, epoch, ring, patches: _, bytes: _, last_publish, options, is_base } =
            self;
        out.field(offset);
        out.field(epoch);
        out.field(&ring.len());
        out.field(last_publish);
        out.field(options);
        out.field(is_base);
    }

    /// Reads what [`Self::write_head`] writes: the stream, and how many publications it lacks.
    ///
    /// # Errors
    /// It is no such head.
    pub fn read_head(from: &mut ImageReader<'_>) -> Result<(Self, usize), Broken> {
        let (offset, epoch) = (from.field("Stream.offset")?, from.field("Stream.epoch")?);
        let kept = from.field("Stream.kept")?;
        let stream = Self {
            offset,
            epoch,
            ring: VecDeque::new(),
            patches: None,
            bytes: 0,
            last_publish: from.field("Stream.last_publish")?,
            options: from.field("Stream.options")?,
            is_base: from.field("Stream.is_base")?,
        };
        Ok((stream, kept))
    }

    /// Gives a stream that was read its publications: the last `kept` of these.
    ///
    /// # Errors
    /// There are too few, or they are not those before its offset.
    pub fn fill(&mut self, mut ring: VecDeque<Record>, kept: usize) -> Result<(), Broken> {
        let over = ring.len().checked_sub(kept).ok_or(Broken::Value("a stream"))?;
        ring.drain(..over);
        self.bytes = ring_bytes(&ring);
        self.ring = ring;
        if self.is_whole() { Ok(()) } else { Err(Broken::Value("a stream")) }
    }

    /// Its life.
    pub(crate) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// The kept publications behind an offset, the oldest first.
    pub(crate) fn behind(&self, offset: u64) -> std::collections::vec_deque::Iter<'_, Record> {
        let first = self.ring.front().map_or(0, Record::offset);
        let passed = usize::try_from((offset + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        self.ring.range(passed.min(self.ring.len())..)
    }

    /// Offset of the oldest kept publication.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.ring.front().map(Record::offset)
    }
}

fn ring_bytes(ring: &VecDeque<Record>) -> usize {
    ring.iter().map(Record::bytes).sum()
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({}, {} bytes)", self.offset(), self.data().len())
    }
}

impl Stream {
    /// A stream that has not begun: offset 0.
    pub fn new(now: Millis, options: StreamOptions, epoch: Epoch) -> Self {
        Self {
            offset: 0,
            epoch,
            ring: VecDeque::new(),
            patches: None,
            bytes: 0,
            last_publish: now,
            options,
            is_base: true,
        }
    }

    /// Other sizes and times hold from the next publish on.
    pub fn set_options(&mut self, options: StreamOptions) {
        self.options = options;
    }

    /// The kept publications are the last ones, without a hole: true of every stream, and to be checked of
    /// one that was read from an image.
    pub fn is_whole(&self) -> bool {
        let offsets = self.ring.iter().rev().map(Record::offset);
        self.ring.len() as u64 <= self.offset
            && offsets.zip(0..).all(|(offset, back)| offset == self.offset - back)
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        Position { offset: self.offset, epoch: Some(self.epoch.clone()) }
    }

    /// Takes the next offset for a publication and keeps it. The oldest goes when there are more
    /// than `size`.
    pub fn append(&mut self, now: Millis, published: &Published<'_>) -> Position {
        self.expire(now);
        self.offset += 1;
        self.last_publish = now;
        while self.ring.len() >= self.options.size as usize {
            self.bytes -= self.ring.pop_front().map_or(0, |record| record.bytes());
            if let Some(patches) = &mut self.patches {
                self.bytes -= patches.pop_front().map_or(0, |known| known.bytes());
            }
            // Its base has gone.
            self.set_patch(0, Known::Nothing);
        }
        let record = Record::new(self.offset, published);
        self.bytes += record.bytes();
        self.is_base = true;
        self.ring.push_back(record);
        if let Some(patches) = &mut self.patches {
            patches.push_back(Known::Nothing);
            self.bytes += size_of::<Known>();
        }
        self.position()
    }

    /// Drops publications whose time is over.
    pub fn expire(&mut self, now: Millis) {
        if !self.ring.is_empty() && now.since(self.last_publish) >= self.options.ttl_ms {
            self.clear();
        }
    }

    /// Drops all publications.
    pub fn clear(&mut self) {
        self.ring = VecDeque::new();
        self.patches = None;
        self.bytes = 0;
    }

    /// Something was published in it, so that somebody may have a position in it.
    pub fn has_begun(&self) -> bool {
        self.offset > 0
    }

    /// The growth of the history by a publication of so many bytes, its record's among them.
    pub fn growth(&self, options: StreamOptions, bytes: usize) -> usize {
        let gone = match self.ring.front() {
            Some(first) if self.ring.len() >= options.size as usize => first.bytes(),
            _ => 0,
        };
        bytes.saturating_sub(gone)
    }

    fn set_patch(&mut self, place: usize, patch: Known) {
        if let Some(known) = self.patches.as_mut().and_then(|patches| patches.get_mut(place)) {
            self.bytes -= known.bytes();
            self.bytes += patch.bytes();
            *known = patch;
        }
    }

    /// The patches of all records, made when the first is to be kept.
    fn patches(&mut self) -> &mut VecDeque<Known> {
        let (ring, bytes) = (&self.ring, &mut self.bytes);
        self.patches.get_or_insert_with(|| {
            *bytes += ring.len() * size_of::<Known>();
            Box::new(vec![Known::Nothing; ring.len()].into())
        })
    }

    /// Keeps the patch that made the latest publication out of the one before it.
    pub fn keep_patch(&mut self, patched: Patched) {
        if self.ring.len() > 1 && patched != Patched::OverBudget {
            self.patches();
            self.set_patch(self.ring.len() - 1, patched.into());
        }
    }

    /// Makes the patches between the records at these places that are not known: each is made once. How many
    /// are still not known, since the budget is used up.
    pub fn make_patches(&mut self, places: std::ops::Range<usize>, patcher: &mut Patcher) -> usize {
        let places = places.start.saturating_add(1)..places.end.min(self.ring.len());
        if places.is_empty() {
            return 0;
        }
        self.patches();
        let mut missing = 0;
        for place in places {
            let known = self.patches.as_ref().and_then(|patches| patches.get(place));
            if !matches!(known, Some(Known::Nothing)) {
                continue;
            }
            let (old, new) = (self.ring[place - 1].data(), self.ring[place].data());
            match patcher.patch(old, new) {
                Patched::OverBudget => missing += 1,
                patched => self.set_patch(place, patched.into()),
            }
        }
        missing
    }

    /// The patch that makes the record at a place out of the one before it, where it is known.
    pub fn patch(&self, place: usize) -> Option<&[u8]> {
        match self.patches.as_ref()?.get(place)? {
            Known::Patch(patch) => Some(patch),
            Known::Nothing | Known::Useless => None,
        }
    }

    /// How much is kept.
    pub fn kept(&self) -> Kept {
        Kept { publications: self.ring.len(), bytes: self.bytes }
    }

    /// Whether offset and epoch may be forgotten, too.
    pub fn forgettable(&self, now: Millis) -> bool {
        now.since(self.last_publish) >= self.options.meta_ttl_ms
    }

    /// The kept publications, oldest first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.ring.iter()
    }

    /// The publication that the next one may be a patch to.
    pub fn base(&self) -> Option<&Record> {
        self.ring.back().filter(|_| self.is_base)
    }

    /// Subscribers got something that isn't kept: no patch builds on what is.
    pub fn break_base(&mut self) {
        self.is_base = false;
    }

    /// The kept publications at these places.
    pub fn range(&self, places: std::ops::Range<usize>) -> impl Iterator<Item = &Record> {
        self.ring.range(places)
    }

    /// A part of the history, in the requested order (client protocol, 15.2).
    ///
    /// # Errors
    /// When the epoch of `since` is another one.
    pub fn page(&self, page: &Page) -> Result<Vec<&Record>, Unrecoverable> {
        let Page { since, limit, reverse } = page;
        if since.as_ref().is_some_and(|since| !self.is_epoch(&since.epoch)) {
            return Err(Unrecoverable);
        }
        let since = since.as_ref().map(|since| since.offset);
        Ok(if *reverse {
            let end = since.map_or(self.ring.len(), |offset| self.place_of(offset));
            self.ring.range(..end).rev().take(*limit).collect()
        } else {
            let start = since.map_or(0, |offset| self.place_of(offset.saturating_add(1)));
            self.ring.range(start..).take(*limit).collect()
        })
    }

    /// What a client lacks that has all up to `since`, at most `limit` publications (client
    /// protocol, 15.3).
    pub fn recover(&self, since: &Since, limit: usize) -> Recovered {
        if !self.is_epoch(&since.epoch) {
            return Recovered::No;
        }
        let start = self.place_of(since.offset.saturating_add(1));
        let missing = start..self.ring.len().min(start.saturating_add(limit));
        let complete =
            match (self.ring.get(missing.start), self.ring.get(missing.end.wrapping_sub(1))) {
                (Some(first), Some(last)) if !missing.is_empty() => {
                    first.offset() == since.offset + 1 && last.offset() == self.offset
                }
                _ => since.offset == self.offset,
            };
        if complete { Recovered::Yes(missing) } else { Recovered::No }
    }

    /// The same where only the latest publication counts (client protocol, 15.5).
    pub fn recover_latest(&self, since: &Since) -> Recovered {
        let same = since.offset > 0 && self.is_at(since);
        match self.ring.len() {
            0 if same => Recovered::Yes(0..0),
            0 => Recovered::No,
            len if same => Recovered::Yes(len..len),
            // The last of the ring is always the latest of the stream.
            len => Recovered::Yes(len - 1..len),
        }
    }

    /// Whether it stands where a client does.
    pub fn is_at(&self, since: &Since) -> bool {
        since.offset == self.offset && *self.epoch.as_str() == since.epoch
    }

    fn is_epoch(&self, epoch: &str) -> bool {
        epoch.is_empty() || epoch == self.epoch.as_str()
    }

    /// Where the first publication is whose offset is at least `offset`. Offsets are consecutive.
    fn place_of(&self, offset: u64) -> usize {
        let Some(first) = self.ring.front() else { return 0 };
        let ahead = offset.saturating_sub(first.offset());
        usize::try_from(ahead).unwrap_or(usize::MAX).min(self.ring.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::image::kind;
    use crate::base::rng::Rng;

    proptest! {
        // Against a plain list of everything that was published.
        #[test]
        fn the_ring_equals_a_plain_list(
            size in 1..6u32,
            ops in proptest::collection::vec((0..80u64, 0..20usize), 1..100),
        ) {
            let options = StreamOptions { size, ttl_ms: 100, meta_ttl_ms: 1000 };
            let mut stream = Stream::new(Millis(0), options, Epoch::new(&mut Rng::new(1)));
            let mut list: Vec<(u64, Vec<u8>)> = Vec::new();
            let (mut now, mut last) = (0, 0);
            for (offset, (pause, bytes)) in (1u64..).zip(ops) {
                now += pause;
                if now - last >= 100 {
                    list.clear();
                }
                last = now;
                let data = vec![offset as u8; bytes];
                prop_assert_eq!(stream.append(Millis(now), &published(&data)).offset, offset);
                list.push((offset, data));
                let from = list.len().saturating_sub(size as usize);
                let kept: Vec<_> =
                    stream.records().map(|r| (r.offset(), r.data().to_vec())).collect();
                prop_assert_eq!(&kept[..], &list[from..]);
                let bytes = stream.records().map(|r| r.bytes()).sum();
                prop_assert_eq!(stream.kept(), Kept { publications: kept.len(), bytes });
            }
        }
    }

    fn published(data: &[u8]) -> Published<'_> {
        Published { data, info: b"info", tags: b"tags", is_json: true, time: 0 }
    }

    #[test]
    fn a_record_has_a_time_where_there_is_one() {
        let plain = Record::new(7, &published(b"data"));
        let timed = Published { time: u32::MAX, ..published(b"data") };
        let record = Record::new(7, &timed);
        assert_eq!((record.bytes(), record.bytes()), (plain.bytes() + 4, timed.record_bytes()));
        let read = record.published();
        assert_eq!((read.data, read.info, read.tags), (timed.data, timed.info, timed.tags));
        assert_eq!((read.is_json, read.time), (true, u32::MAX));
        assert_eq!(plain.published().time, 0);
        // The image of a node has it.
        let mut writer = ImageWriter::new(Millis(0));
        writer.record(kind::CHANNEL, |out| out.field(&record));
        let image = writer.finish();
        let mut reader = ImageReader::new(&image, Millis(0)).unwrap();
        reader.next_record().unwrap();
        let again: Record = reader.field("record").unwrap();
        assert_eq!((again.published().time, again.offset()), (u32::MAX, 7));
    }

    proptest! {
        // Publishes, some with the patch that went to subscribers, and recoveries, against what is in the ring.
        #[test]
        fn patches_belong_to_their_records_and_are_counted(
            size in 1..6u32,
            ops in proptest::collection::vec((0..3u8, 0..6usize, 0..60u64), 1..60),
        ) {
            let options = StreamOptions { size, ttl_ms: 100, meta_ttl_ms: 1000 };
            let mut stream = Stream::new(Millis(0), options, Epoch::new(&mut Rng::new(1)));
            let mut patcher = Patcher::new(1);
            let (mut now, mut number) = (0, 0);
            for (op, at, pause) in ops {
                if op == 2 {
                    let places = at.min(stream.ring.len())..stream.ring.len();
                    prop_assert_eq!(stream.make_patches(places.clone(), &mut patcher), 0);
                    for place in places.skip(1) {
                        prop_assert!(stream.patch(place).is_some());
                    }
                } else {
                    number += 1;
                    now += pause;
                    stream.expire(Millis(now));
                    let data = format!("a text that all of them have, and number {number}");
                    let patched = stream.base().map(|base| patcher.patch(base.data(), data.as_bytes()));
                    stream.append(Millis(now), &published(data.as_bytes()));
                    if let (1, Some(patched)) = (op, patched) {
                        stream.keep_patch(patched);
                    }
                }
                let mut bytes: usize = stream.records().map(|r| r.bytes()).sum();
                bytes += stream.patches.iter().flat_map(|known| known.iter()).map(Known::bytes).sum::<usize>();
                prop_assert_eq!(stream.kept().bytes, bytes);
                prop_assert!(stream.patches.as_ref().is_none_or(|known| known.len() == stream.ring.len()));
                prop_assert_eq!(stream.patch(0), None);
                for place in 1..stream.ring.len() {
                    let (old, new) = (stream.ring[place - 1].data(), stream.ring[place].data());
                    if let Some(patch) = stream.patch(place) {
                        prop_assert_eq!(fossil_delta::apply(old, patch).unwrap(), new);
                    }
                }
            }
        }
    }

    #[test]
    fn each_patch_of_a_recovery_is_made_once_and_the_budget_holds_for_all() {
        use crate::base::limits::{DELTA_BYTES_MAX, TURN_PATCH_BYTES_MAX};
        use crate::base::steps;

        let options = StreamOptions { size: 100, ttl_ms: 100, meta_ttl_ms: 1000 };
        let mut stream = Stream::new(Millis(0), options, Epoch::new(&mut Rng::new(1)));
        let text = "a".repeat(DELTA_BYTES_MAX - 1);
        let count = 2 * TURN_PATCH_BYTES_MAX / DELTA_BYTES_MAX;
        for number in 0..count {
            stream.append(Millis(0), &published(format!("{text}{}", number % 10).as_bytes()));
        }
        let in_one = TURN_PATCH_BYTES_MAX / (2 * DELTA_BYTES_MAX);
        let mut patcher = Patcher::new(1);
        let mut missing = count - 1;
        while missing > 0 {
            patcher.begin_turn();
            for _ in 0..3 {
                let left = stream.make_patches(0..count, &mut patcher);
                assert_eq!(left, missing.saturating_sub(in_one));
            }
            missing = missing.saturating_sub(in_one);
        }
        let (left, steps) = steps::of(|| stream.make_patches(0..count, &mut patcher));
        assert_eq!((left, steps), (0, 0), "all are known");
    }

    const OPTIONS: StreamOptions = StreamOptions { size: 3, ttl_ms: 100, meta_ttl_ms: 1000 };

    #[test]
    fn offsets_are_consecutive_and_the_oldest_goes() {
        let mut rng = Rng::new(1);
        let mut stream = Stream::new(Millis(0), OPTIONS, Epoch::new(&mut rng));
        let epoch = stream.position().epoch;
        for n in 1..=5u64 {
            let position = stream.append(Millis(n), &published(format!("data {n}").as_bytes()));
            assert_eq!(position, Position { offset: n, epoch: epoch.clone() });
        }
        let kept: Vec<_> = stream.records().map(|r| (r.offset(), r.data().to_vec())).collect();
        let expected: Vec<_> = (3..=5u64).map(|n| (n, format!("data {n}").into_bytes())).collect();
        assert_eq!(kept, expected);
        assert!(
            stream
                .records()
                .all(|r| (r.published().info, r.published().tags) == (b"info", b"tags"))
        );
    }

    #[test]
    fn publications_expire_together_and_offsets_go_on() {
        let mut rng = Rng::new(2);
        let mut stream = Stream::new(Millis(0), OPTIONS, Epoch::new(&mut rng));
        stream.append(Millis(10), &published(b"a"));
        stream.expire(Millis(109));
        assert_eq!(stream.records().count(), 1);
        stream.expire(Millis(110));
        assert_eq!(stream.records().count(), 0);
        assert_eq!(stream.append(Millis(200), &published(b"b")).offset, 2);
        assert!(!stream.forgettable(Millis(1199)));
        assert!(stream.forgettable(Millis(1200)));
    }

    #[test]
    fn pages_go_both_ways_from_anywhere() {
        let mut stream = Stream::new(Millis(0), OPTIONS, Epoch::new(&mut Rng::new(1)));
        for _ in 0..5 {
            stream.append(Millis(1), &published(b"x"));
        }
        let epoch: CompactString = stream.epoch.as_str().into();
        let page = |since: Option<u64>, limit, reverse| {
            let since = since.map(|offset| Since { offset, epoch: epoch.clone() });
            let page = Page { since, limit, reverse };
            stream.page(&page).unwrap().iter().map(|r| r.offset()).collect::<Vec<_>>()
        };
        // Kept are 3, 4 and 5.
        for (since, limit, reverse, expected) in [
            (None, 0, false, &[][..]),
            (None, 9, false, &[3, 4, 5]),
            (None, 2, false, &[3, 4]),
            (None, 2, true, &[5, 4]),
            (Some(0), 9, false, &[3, 4, 5]),
            (Some(3), 9, false, &[4, 5]),
            (Some(3), 1, false, &[4]),
            (Some(5), 9, false, &[]),
            (Some(u64::MAX), 9, false, &[]),
            (Some(5), 9, true, &[4, 3]),
            (Some(5), 1, true, &[4]),
            (Some(3), 9, true, &[]),
            (Some(1), 9, true, &[]),
            (Some(9), 9, true, &[5, 4, 3]),
        ] {
            assert_eq!(page(since, limit, reverse), expected, "{since:?} {limit} {reverse}");
        }
        let other = Page { since: Some(Since { offset: 3, epoch: "x".into() }), ..Page::default() };
        assert_eq!(stream.page(&other).unwrap_err(), Unrecoverable);
    }

    #[test]
    fn recovery_is_all_or_nothing() {
        let mut stream = Stream::new(Millis(0), OPTIONS, Epoch::new(&mut Rng::new(1)));
        let since = |offset, epoch: &str| Since { offset, epoch: epoch.into() };
        let epoch = stream.epoch.as_str().to_owned();
        assert_eq!(stream.recover(&since(0, &epoch), 9), Recovered::Yes(0..0));
        assert_eq!(stream.recover(&since(1, &epoch), 9), Recovered::No);
        assert_eq!(stream.recover_latest(&since(0, &epoch)), Recovered::No);
        for _ in 0..5 {
            stream.append(Millis(1), &published(b"x"));
        }
        for (offset, epoch, limit, expected) in [
            (5, epoch.as_str(), 9, Recovered::Yes(3..3)),
            (4, &epoch, 9, Recovered::Yes(2..3)),
            (2, &epoch, 3, Recovered::Yes(0..3)),
            (2, "", 3, Recovered::Yes(0..3)),
            (2, &epoch, 2, Recovered::No),
            (1, &epoch, 9, Recovered::No),
            (6, &epoch, 9, Recovered::No),
            (u64::MAX, &epoch, 9, Recovered::No),
            (4, "other", 9, Recovered::No),
        ] {
            assert_eq!(stream.recover(&since(offset, epoch), limit), expected, "{offset} {epoch}");
        }
        for (offset, epoch, expected) in [
            (5, epoch.as_str(), Recovered::Yes(3..3)),
            (4, &epoch, Recovered::Yes(2..3)),
            (5, "other", Recovered::Yes(2..3)),
            (5, "", Recovered::Yes(2..3)),
            (0, "", Recovered::Yes(2..3)),
        ] {
            assert_eq!(stream.recover_latest(&since(offset, epoch)), expected, "{offset} {epoch}");
        }
        stream.expire(Millis(101));
        assert_eq!(stream.recover(&since(5, &epoch), 9), Recovered::Yes(0..0));
        assert_eq!(stream.recover(&since(4, &epoch), 9), Recovered::No);
        assert_eq!(stream.recover_latest(&since(5, &epoch)), Recovered::Yes(0..0));
        assert_eq!(stream.recover_latest(&since(4, &epoch)), Recovered::No);
    }

    #[test]
    fn epochs_are_letters() {
        let mut rng = Rng::new(3);
        let (a, b) = (Epoch::new(&mut rng), Epoch::new(&mut rng));
        assert_ne!(a, b);
        assert!(a.as_str().len() == 8 && a.as_str().bytes().all(|b| b.is_ascii_alphabetic()));
    }
}
