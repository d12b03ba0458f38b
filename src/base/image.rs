//! The byte form of what lives long: what one process writes and the next one reads.
//!
//! ```text
//!  image  = magic, format number, records, end
//!  record = kind (1 byte), length (varint), body
//!  end    = kind 0, number of records (varint), CRC-32 of all before it (4 bytes)
//! ```
//! A body is a row of fields without names: each type writes and reads its own ([`Durable`]), mostly by
//! [`durable!`], which takes a type apart field by field in both directions, so that a field which is
//! neither written nor made anew does not compile. A change of a body is a record of another kind. A kind
//! below [`SKIPPABLE`] that the reader does not know is refused, one from there on is passed over.
//!
//! Integers are varints (LEB128). Times are kept as distances from the moment at which the image was
//! written, since clocks of processes begin at different moments. A [`SharedFrame`] is a record of its own,
//! written before the first record that points at it, and pointed at by number: a frame that waits for
//! ten thousand connections is in the image once.
//!
//! An image may come in parts, while what it is written from goes on changing: each part is an image by
//! itself, but frames keep their numbers over all of them. Records that belong together are a *unit*; one that
//! is written again is left out where its bytes would be those of before, and replaces them otherwise.
//!
//! The reader trusts nothing: each count and length is compared with the bytes that are left before
//! memory is taken for it, and a body has to be used up to its last byte.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _};

use compact_str::CompactString;
use hashbrown::HashMap;

use super::form::Form;
use super::frame::SharedFrame;
use super::time::{Millis, TICK_MS};

/// The first bytes of an image.
const MAGIC: &[u8; 8] = b"roostimg";

/// The number of the format: of what is around the records.
pub const FORMAT: u16 = 1;

/// From this kind on a record that the reader doesn't know is passed over.
pub const SKIPPABLE: u8 = 0x80;

/// Kind of the last record.
const END: u8 = 0;
/// Kind of a shared frame.
const FRAME: u8 = 1;

/// Kinds of records, one list for all groups.
pub mod kind {
    /// Secrets and seeds of the node.
    pub const NODE: u8 = 2;
    /// A shard begins: its number.
    pub const SHARD: u8 = 3;
    /// The part of a home that is not a channel.
    pub const HOME: u8 = 4;
    /// A channel at its home.
    pub const CHANNEL: u8 = 5;
    /// The connections of a user at its home.
    pub const USER: u8 = 6;
    /// The result of a publish with an idempotency key.
    pub const RESULT: u8 = 7;
    /// The part of the subscribers' side that is not a channel.
    pub const LOCAL_SIDE: u8 = 8;
    /// A channel with subscribers on a shard.
    pub const LOCAL: u8 = 9;
    /// A filter.
    pub const FILTER: u8 = 10;
    /// The part of clients that is not a session.
    pub const CLIENTS: u8 = 11;
    /// A session.
    pub const SESSION: u8 = 12;
    /// The side entry of a connection: what it has beside its session.
    pub const ASIDE: u8 = 13;
    /// The part of connections' group that is not a connection.
    pub const NET: u8 = 14;
    /// A connection.
    pub const CONN: u8 = 15;
    /// The send queue of a connection.
    pub const QUEUE: u8 = 16;
    /// Unfinished input of a connection.
    pub const INPUT: u8 = 17;
    /// The address of a connection's client.
    pub const ADDRESS: u8 = 18;
    /// A request that waits for publications.
    pub const POLL: u8 = 19;
    /// The head of a response that waits for the result of a `connect`.
    pub const HEAD: u8 = 20;
    /// The TLS of a connection: secrets.
    pub const TLS: u8 = 21;
    /// Publications that a channel keeps.
    pub const PUBLICATIONS: u8 = 22;
    /// The part of a home's channels at a broker that is not a channel.
    pub const REMOTE: u8 = 26;
    /// A channel that a broker keeps: how far its publications have come.
    pub const LINE: u8 = 27;
}

/// The reason why bytes are no image, or none that this reader understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It doesn't begin as an image does.
    NotAnImage,
    /// Another format.
    Format(u16),
    /// Bytes are missing, or changed on the way.
    Checksum,
    /// A body, or the image, ends too early.
    Short,
    /// A record that this reader doesn't know, and may not pass over.
    UnknownRecord(u8),
    /// A record that can't stand where it does, or stands there twice.
    Misplaced(u8),
    /// Bytes are left behind the last field of a record of this kind.
    Leftover(u8),
    /// A value that this field can't have.
    Value(&'static str),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnImage => f.write_str("not an image of a node"),
            Self::Format(number) => {
                write!(f, "an image of format {number}; this version reads format {FORMAT}")
            }
            Self::Checksum => f.write_str("the checksum is wrong"),
            Self::Short => f.write_str("it ends too early"),
            Self::UnknownRecord(kind) => write!(f, "unknown record of kind {kind}"),
            Self::Misplaced(kind) => write!(f, "misplaced record of kind {kind}"),
            Self::Leftover(kind) => write!(f, "bytes are left in a record of kind {kind}"),
            Self::Value(field) => write!(f, "a value that {field} can't have"),
        }
    }
}

impl std::error::Error for Broken {}

/// A type with a byte form.
pub trait Durable: Sized {
    /// Appends it to the record that is being written.
    fn write(&self, out: &mut ImageWriter);

    /// Takes it from the record that is being read.
    ///
    /// # Errors
    /// The bytes are none of this type's.
    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken>;

    /// Appends several, without their count.
    fn write_all(items: &[Self], out: &mut ImageWriter) {
        items.iter().for_each(|item| item.write(out));
    }

    /// Takes as many as `count` says.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_all(count: usize, from: &mut ImageReader<'_>) -> Result<Vec<Self>, Broken> {
        // Grown by what is there: a count is no reason to take memory.
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(Self::read(from)?);
        }
        items.shrink_to_fit();
        Ok(items)
    }
}

/// Declares the byte form of a struct: the fields that are written, in this order, and those that begin
/// anew. Both directions name all fields, so that one which is forgotten doesn't compile.
///
/// ```text
/// durable!(Session { user, conn, expires } ticks { due_tick } anew { unanswered: 0 });
/// ```
macro_rules! durable {
    (
        $name:ident { $($field:ident),* $(,)? }
        $(ticks { $($tick:ident),* $(,)? })?
        $(anew { $($new:ident: $value:expr),* $(,)? })?
    ) => {
        impl $crate::base::image::Durable for $name {
            fn write(&self, out: &mut $crate::base::image::ImageWriter) {
                let Self { $($field,)* $($($tick,)*)? $($($new: _,)*)? } = self;
                $(out.field($field);)*
                $($(out.field(&$crate::base::image::Tick(*$tick));)*)?
            }

            fn read(
                from: &mut $crate::base::image::ImageReader<'_>,
            ) -> Result<Self, $crate::base::image::Broken> {
                $(let $field = from.field(concat!(stringify!($name), ".", stringify!($field)))?;)*
                $($(
                    let $crate::base::image::Tick($tick) =
                        from.field(concat!(stringify!($name), ".", stringify!($tick)))?;
                )*)?
                // First what begins anew: it may look at what was read.
                Ok(Self { $($($new: $value,)*)? $($field,)* $($($tick,)*)? })
            }
        }
    };
}
pub(crate) use durable;

/// Declares the byte form of an enum without data: a byte for each variant.
macro_rules! durable_enum {
    ($name:ident { $($variant:ident = $number:literal),* $(,)? }) => {
        impl $crate::base::image::Durable for $name {
            fn write(&self, out: &mut $crate::base::image::ImageWriter) {
                out.field::<u8>(&match self { $(Self::$variant => $number,)* });
            }

            fn read(
                from: &mut $crate::base::image::ImageReader<'_>,
            ) -> Result<Self, $crate::base::image::Broken> {
                match u8::read(from)? {
                    $($number => Ok(Self::$variant),)*
                    _ => Err($crate::base::image::Broken::Value(stringify!($name))),
                }
            }
        }
    };
}
pub(crate) use durable_enum;

/// Hashes of the units that were written, by slot; 0 for none.
///
/// A unit that has changed is taken for the one of before with a probability of 2^-64, and the hashes have a
/// seed of their own: nobody can look for two states of a connection that have the same.
#[derive(Debug, Default)]
pub struct Written(Vec<u64>);

impl Written {
    /// The hash of a slot's unit.
    pub fn at(&mut self, slot: usize) -> &mut u64 {
        if self.0.len() <= slot {
            self.0.resize(slot + 1, 0);
        }
        &mut self.0[slot]
    }

    /// Takes room for so many slots, so that growing doesn't copy.
    pub fn reserve(&mut self, slots: usize) {
        self.0.reserve_exact(slots.saturating_sub(self.0.len()));
    }
}

/// Frames that an image has had so far, for the parts that follow.
#[derive(Debug, Default)]
pub struct Frames(Vec<SharedFrame>);

/// Writes an image.
pub struct ImageWriter {
    /// Records that are whole.
    done: Vec<u8>,
    /// The body that is being written.
    body: Vec<u8>,
    records: u64,
    now: Millis,
    /// Numbers of the frames that are written, by the address of their bytes.
    numbers: HashMap<usize, u32, foldhash::fast::FixedState>,
    /// These frames: as long as one is here, no other has its address.
    frames: Vec<SharedFrame>,
    /// Hash of the unit that is being written.
    unit: Option<u64>,
    hasher: foldhash::quality::RandomState,
}

impl ImageWriter {
    /// An image of this moment.
    pub fn new(now: Millis) -> Self {
        Self {
            done: head(),
            body: Vec::new(),
            records: 0,
            now,
            numbers: HashMap::default(),
            frames: Vec::new(),
            unit: None,
            hasher: foldhash::quality::RandomState::default(),
        }
    }

    /// Writes records that belong together, unless they are the same as those of before. `before` is their hash.
    pub fn unit(&mut self, before: &mut u64, write: impl FnOnce(&mut Self)) {
        let (end, records) = (self.done.len(), self.records);
        self.unit = Some(0);
        write(self);
        // 0 is no unit.
        let hash = self.unit.take().unwrap_or_default().max(1);
        if hash == *before {
            // No frame is new, or its number would be.
            self.done.truncate(end);
            self.records = records;
        }
        *before = hash;
    }

    /// Takes the records so far as a part of the image.
    pub fn take_part(&mut self) -> Vec<u8> {
        let mut part = std::mem::replace(&mut self.done, head());
        part.push(END);
        put_varint(&mut part, std::mem::take(&mut self.records));
        seal(&mut part);
        part
    }

    /// Writes one record.
    pub fn record(&mut self, kind: u8, write: impl FnOnce(&mut Self)) {
        debug_assert!(self.body.is_empty() && kind > FRAME, "a record within another");
        write(self);
        let body = std::mem::take(&mut self.body);
        if let Some(before) = self.unit {
            let mut hasher = self.hasher.build_hasher();
            hasher.write_u64(before);
            hasher.write_u8(kind);
            hasher.write(&body);
            self.unit = Some(hasher.finish());
        }
        self.append(kind, &body);
        self.body = body;
        self.body.clear();
    }

    /// Writes a field of the record.
    pub fn field<T: Durable>(&mut self, value: &T) {
        value.write(self);
    }

    /// Writes bytes, their count before them.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.body.extend_from_slice(bytes);
    }

    /// Writes a count.
    pub fn count(&mut self, count: usize) {
        put_varint(&mut self.body, count as u64);
    }

    /// Bytes of the records so far.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Nothing is written.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The image.
    pub fn finish(mut self) -> Vec<u8> {
        self.take_part()
    }

    fn append(&mut self, kind: u8, body: &[u8]) {
        self.done.push(kind);
        put_varint(&mut self.done, body.len() as u64);
        self.done.extend_from_slice(body);
        self.records += 1;
    }

    fn frame(&mut self, frame: &SharedFrame) -> u32 {
        let address = frame.bytes().as_ptr() as usize;
        if let Some(number) = self.numbers.get(&address) {
            return *number;
        }
        let number = self.frames.len() as u32;
        let body = [&[u8::from(frame.is_part())], frame.bytes()].concat();
        self.append(FRAME, &body);
        self.numbers.insert(address, number);
        self.frames.push(frame.clone());
        number
    }
}

/// The beginning of an image.
fn head() -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head
}

/// Appends the checksum of an image that lacks it.
pub fn seal(image: &mut Vec<u8>) {
    let sum = checksum(image);
    image.extend_from_slice(&sum.to_le_bytes());
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads an image.
pub struct ImageReader<'a> {
    /// The rest of the body that is being read.
    rest: &'a [u8],
    /// Its kind.
    kind: u8,
    /// The records behind it.
    after: &'a [u8],
    records: u64,
    now: Millis,
    frames: Vec<SharedFrame>,
    experiment: Option<Box<Experiment>>,
}

/// An experiment: one field is read as if it had been forgotten.
#[derive(Debug, Default)]
struct Experiment {
    forget: String,
    /// The fields that were met.
    met: BTreeSet<&'static str>,
}

impl<'a> ImageReader<'a> {
    /// A reader of an image, whose times are distances from `now`.
    ///
    /// # Errors
    /// It is no image, one of another format, or damaged.
    pub fn new(image: &'a [u8], now: Millis) -> Result<Self, Broken> {
        let records = image.strip_prefix(MAGIC).ok_or(Broken::NotAnImage)?;
        let (format, records) = records.split_first_chunk().ok_or(Broken::Short)?;
        let format = u16::from_le_bytes(*format);
        if format != FORMAT {
            return Err(Broken::Format(format));
        }
        let (after, sum) = records.split_last_chunk().ok_or(Broken::Short)?;
        if checksum(&image[..image.len() - sum.len()]) != u32::from_le_bytes(*sum) {
            return Err(Broken::Checksum);
        }
        Ok(Self {
            rest: &[],
            kind: FRAME,
            after,
            records: 0,
            now,
            frames: Vec::new(),
            experiment: None,
        })
    }

    /// The same, and the field of this name is read as if nobody had written it: as zero, empty, none, or
    /// this moment. For an experiment that shows what a forgotten field breaks.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn forgetting(image: &'a [u8], now: Millis, field: &str) -> Result<Self, Broken> {
        let experiment = Experiment { forget: field.into(), met: BTreeSet::new() };
        Ok(Self { experiment: Some(Box::new(experiment)), ..Self::new(image, now)? })
    }

    /// The same for a part that follows others, which had these frames.
    pub fn with_frames(self, Frames(frames): Frames) -> Self {
        Self { frames, ..self }
    }

    /// The frames so far, for the next part.
    pub fn into_frames(self) -> Frames {
        Frames(self.frames)
    }

    /// The fields that an experiment has met.
    pub fn fields_met(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.experiment.iter().flat_map(|experiment| experiment.met.iter().copied())
    }

    /// The kind of the next record, whose fields are read then; `None` at the end of the image.
    ///
    /// # Errors
    /// The last record has bytes left, or the image ends without its end.
    pub fn next_record(&mut self) -> Result<Option<u8>, Broken> {
        loop {
            self.end_record()?;
            let (kind, after) = self.after.split_first().ok_or(Broken::Short)?;
            self.after = after;
            if *kind == END {
                let records = take_varint(&mut self.after)?;
                return match records == self.records && self.after.is_empty() {
                    true => Ok(None),
                    false => Err(Broken::Misplaced(END)),
                };
            }
            let length = take_varint(&mut self.after)?;
            let length = usize::try_from(length).map_err(|_| Broken::Short)?;
            (self.rest, self.after) = self.after.split_at_checked(length).ok_or(Broken::Short)?;
            self.kind = *kind;
            self.records += 1;
            if *kind != FRAME {
                return Ok(Some(*kind));
            }
            let is_part = bool::read(self)?;
            let bytes = std::mem::take(&mut self.rest);
            let make = if is_part { SharedFrame::part } else { SharedFrame::new };
            self.frames.push(make(bytes));
        }
    }

    /// A record of a kind that no group knows.
    ///
    /// # Errors
    /// It may not be passed over.
    pub fn pass_over(&mut self) -> Result<(), Broken> {
        if self.kind < SKIPPABLE {
            return Err(Broken::UnknownRecord(self.kind));
        }
        self.rest = &[];
        Ok(())
    }

    /// Passes over the record, whatever it is.
    #[cfg(test)]
    pub(crate) fn skip(&mut self) {
        self.rest = &[];
    }

    /// The record stands where it can't, or is there twice.
    pub fn misplaced(&self) -> Broken {
        Broken::Misplaced(self.kind)
    }

    /// The record is read to its end.
    ///
    /// # Errors
    /// Bytes are left.
    pub fn end_record(&self) -> Result<(), Broken> {
        if self.rest.is_empty() { Ok(()) } else { Err(Broken::Leftover(self.kind)) }
    }

    /// Whether all of the record is read.
    pub fn is_read(&self) -> bool {
        self.rest.is_empty()
    }

    /// Reads a field of the record. The name is the type's and the field's.
    ///
    /// # Errors
    /// As [`Durable::read`].
    pub fn field<T: Durable>(&mut self, name: &'static str) -> Result<T, Broken> {
        let value = T::read(self)?;
        Ok(if self.forgets(name) { self.forgotten().unwrap_or(value) } else { value })
    }

    /// Whether an experiment forgets the field of this name.
    pub(crate) fn forgets(&mut self, name: &'static str) -> bool {
        self.experiment.as_mut().is_some_and(|experiment| {
            experiment.met.insert(name);
            experiment.forget == name
        })
    }

    /// The value of a type as nobody wrote it, where there is one.
    fn forgotten<T: Durable>(&self) -> Option<T> {
        const NOTHING: &[u8] = &[0; 64];
        let mut reader = ImageReader {
            rest: NOTHING,
            kind: self.kind,
            after: &[],
            records: 0,
            now: self.now,
            frames: Vec::new(),
            experiment: None,
        };
        T::read(&mut reader).ok()
    }

    /// The moment from which times are distances.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Reads a count of things that take a byte at least.
    ///
    /// # Errors
    /// So many bytes are not left.
    pub fn count(&mut self) -> Result<usize, Broken> {
        let count = take_varint(&mut self.rest)?;
        usize::try_from(count).ok().filter(|count| *count <= self.rest.len()).ok_or(Broken::Short)
    }

    /// Reads bytes with their count before them.
    ///
    /// # Errors
    /// So many are not left.
    pub fn bytes(&mut self) -> Result<&'a [u8], Broken> {
        let count = self.count()?;
        self.take(count)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(Broken::Short)?;
        self.rest = rest;
        Ok(bytes)
    }
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, Broken> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(Broken::Short)?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        // One way to write each number: no bits beyond the 64th, and no zeros behind the last.
        if bits << shift >> shift != bits || (*byte == 0 && shift > 0) {
            return Err(Broken::Value("an integer"));
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Broken::Value("an integer"))
}

macro_rules! durable_integers {
    ($($type:ident),*) => {$(
        impl Durable for $type {
            fn write(&self, out: &mut ImageWriter) {
                put_varint(&mut out.body, *self as u64);
            }

            fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
                let value = take_varint(&mut from.rest)?;
                Self::try_from(value).map_err(|_| Broken::Value(stringify!($type)))
            }
        }
    )*};
}

durable_integers!(u16, u32, u64, usize);

impl Durable for u8 {
    fn write(&self, out: &mut ImageWriter) {
        out.body.push(*self);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        from.take(1).map(|byte| byte[0])
    }

    fn write_all(items: &[Self], out: &mut ImageWriter) {
        out.body.extend_from_slice(items);
    }

    fn read_all(count: usize, from: &mut ImageReader<'_>) -> Result<Vec<Self>, Broken> {
        from.take(count).map(<[u8]>::to_vec)
    }
}

impl Durable for bool {
    fn write(&self, out: &mut ImageWriter) {
        u8::from(*self).write(out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        match u8::read(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Broken::Value("a flag")),
        }
    }
}

/// Distances in either direction: even numbers for 0 and more, odd ones for less.
impl Durable for i64 {
    fn write(&self, out: &mut ImageWriter) {
        ((*self << 1 ^ *self >> 63) as u64).write(out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let value = u64::read(from)?;
        Ok((value >> 1) as Self ^ -((value & 1) as Self))
    }
}

/// A distance from now, which may lie before it.
impl Durable for Millis {
    fn write(&self, out: &mut ImageWriter) {
        (self.0 as i64).wrapping_sub(out.now.0 as i64).write(out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let distance = i64::read(from)?;
        // A new process goes on with the clock of the one before, so that nothing is older than its zero.
        Ok(Self(from.now.0.saturating_add_signed(distance)))
    }
}

/// A tick of the timers: as a moment, and rounded up, so that nothing is due early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick(pub u32);

impl Durable for Tick {
    fn write(&self, out: &mut ImageWriter) {
        Millis(u64::from(self.0) * TICK_MS).write(out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let tick = Millis::read(from)?.0.div_ceil(TICK_MS);
        Ok(Self(u32::try_from(tick).unwrap_or(u32::MAX)))
    }
}

impl<T: Durable> Durable for Option<T> {
    fn write(&self, out: &mut ImageWriter) {
        self.is_some().write(out);
        if let Some(value) = self {
            value.write(out);
        }
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        if bool::read(from)? { T::read(from).map(Some) } else { Ok(None) }
    }
}

impl<T: Durable> Durable for Box<T> {
    fn write(&self, out: &mut ImageWriter) {
        (**self).write(out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        T::read(from).map(Self::new)
    }
}

impl<T: Durable> Durable for Vec<T> {
    fn write(&self, out: &mut ImageWriter) {
        out.count(self.len());
        T::write_all(self, out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let count = from.count()?;
        T::read_all(count, from)
    }
}

impl<T: Durable> Durable for std::collections::VecDeque<T> {
    fn write(&self, out: &mut ImageWriter) {
        out.count(self.len());
        let (first, second) = self.as_slices();
        T::write_all(first, out);
        T::write_all(second, out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        Vec::read(from).map(Self::from)
    }
}

impl<T: Durable> Durable for Box<[T]> {
    fn write(&self, out: &mut ImageWriter) {
        out.count(self.len());
        T::write_all(self, out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        Vec::read(from).map(Vec::into_boxed_slice)
    }
}

impl<A: Durable, B: Durable> Durable for (A, B) {
    fn write(&self, out: &mut ImageWriter) {
        self.0.write(out);
        self.1.write(out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        Ok((A::read(from)?, B::read(from)?))
    }
}

impl<T: Durable> Durable for std::sync::Arc<T> {
    fn write(&self, out: &mut ImageWriter) {
        (**self).write(out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        T::read(from).map(Self::new)
    }
}

macro_rules! durable_texts {
    ($($type:ty),*) => {$(
        impl Durable for $type {
            fn write(&self, out: &mut ImageWriter) {
                out.bytes(self.as_bytes());
            }

            fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
                let text = std::str::from_utf8(from.bytes()?);
                text.map(Self::from).map_err(|_| Broken::Value("a text"))
            }
        }
    )*};
}

durable_texts!(CompactString, String, Box<str>);

impl Durable for SharedFrame {
    fn write(&self, out: &mut ImageWriter) {
        out.frame(self).write(out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let number = usize::read(from)?;
        from.frames.get(number).cloned().ok_or(Broken::Value("a frame"))
    }
}

impl Durable for std::num::NonZeroU32 {
    fn write(&self, out: &mut ImageWriter) {
        self.get().write(out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        Self::new(u32::read(from)?).ok_or(Broken::Value("a number from 1"))
    }
}

impl<const N: usize> Durable for [u8; N] {
    fn write(&self, out: &mut ImageWriter) {
        out.body.extend_from_slice(self);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        // `take` gives as many bytes as it was asked for.
        let bytes = from.take(N)?;
        Self::try_from(bytes).map_err(|_| Broken::Short)
    }
}

impl Durable for Form {
    fn write(&self, out: &mut ImageWriter) {
        self.number().write(out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        Self::by_number(u8::read(from)?).ok_or(Broken::Value("a form"))
    }
}

/// Which slots of a table are in use: a bit for each. A reader makes a table no larger than the bits that
/// are there, and notices an entry that is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    bits: Vec<u8>,
    /// Slots whose entry has not come.
    missing: usize,
}

impl Slots {
    /// These slots, in growing order.
    pub fn of(slots: impl Iterator<Item = usize>) -> Self {
        let mut all = Self::default();
        for slot in slots {
            let bytes = slot / 8 + 1;
            if all.bits.len() < bytes {
                all.bits.resize(bytes, 0);
            }
            all.bits[slot / 8] |= 1 << (slot % 8);
            all.missing += 1;
        }
        all
    }

    /// Takes the entry of a slot.
    ///
    /// # Errors
    /// There is none, or it was taken before.
    pub fn take(&mut self, slot: u32) -> Result<usize, Broken> {
        let slot = slot as usize;
        let bits = self.bits.get_mut(slot / 8).ok_or(Broken::Value("a slot"))?;
        let bit = 1 << (slot % 8);
        if *bits & bit == 0 {
            return Err(Broken::Value("a slot"));
        }
        *bits &= !bit;
        self.missing -= 1;
        Ok(slot)
    }

    /// Whether a slot is in use; one that was taken is not.
    pub fn has(&self, slot: usize) -> bool {
        self.bits.get(slot / 8).is_some_and(|bits| bits & 1 << (slot % 8) != 0)
    }

    /// No slot in use is at this number or beyond.
    pub fn bound(&self) -> usize {
        8 * self.bits.len()
    }

    /// Slots in use that were not taken.
    pub fn len(&self) -> usize {
        self.missing
    }

    /// No slot is in use.
    pub fn is_empty(&self) -> bool {
        self.missing == 0
    }

    /// All entries have come.
    ///
    /// # Errors
    /// One is missing.
    pub fn end(&self) -> Result<(), Broken> {
        if self.missing == 0 { Ok(()) } else { Err(Broken::Value("a slot that is in use")) }
    }
}

impl Durable for Slots {
    fn write(&self, out: &mut ImageWriter) {
        out.bytes(&self.bits);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let bits = from.bytes()?.to_vec();
        if bits.last() == Some(&0) {
            return Err(Broken::Value("slots"));
        }
        let missing = bits.iter().map(|bits| bits.count_ones() as usize).sum();
        Ok(Self { bits, missing })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;

    use super::*;

    const NOW: Millis = Millis(123_456);

    /// An image of one record with this value.
    fn image_of<T: Durable>(value: &T) -> Vec<u8> {
        let mut writer = ImageWriter::new(NOW);
        writer.record(9, |out| out.field(value));
        writer.finish()
    }

    fn read<T: Durable>(image: &[u8], now: Millis) -> Result<T, Broken> {
        let mut reader = ImageReader::new(image, now)?;
        assert_eq!(reader.next_record()?, Some(9));
        let value = T::read(&mut reader)?;
        assert_eq!(reader.next_record()?, None);
        Ok(value)
    }

    fn round<T: Durable + PartialEq + Debug>(value: &T) {
        let image = image_of(value);
        let again: T = read(&image, NOW).unwrap();
        assert_eq!(again, *value);
        assert_eq!(image_of(&again), image);
    }

    #[test]
    fn a_unit_is_written_again_when_it_has_changed_and_frames_keep_their_numbers() {
        let frame = SharedFrame::new(b"a frame");
        let mut out = ImageWriter::new(NOW);
        let mut written = Written::default();
        let mut unit = |out: &mut ImageWriter, value: u32| {
            out.unit(written.at(3), |out| {
                out.record(9, |out| out.field(&value));
                out.record(10, |out| out.field(&frame));
            });
            out.take_part()
        };
        let (first, same, other) = (unit(&mut out, 5), unit(&mut out, 5), unit(&mut out, 6));
        assert_eq!(unit(&mut out, 6), same);
        let mut frames = Frames::default();
        for (part, value) in [(first, Some(5)), (same, None), (other, Some(6))] {
            let mut from = ImageReader::new(&part, NOW).unwrap().with_frames(frames);
            if let Some(value) = value {
                assert_eq!(from.next_record(), Ok(Some(9)));
                assert_eq!(u32::read(&mut from), Ok(value));
                assert_eq!(from.next_record(), Ok(Some(10)));
                assert_eq!(SharedFrame::read(&mut from).unwrap().bytes(), b"a frame");
            }
            assert_eq!(from.next_record(), Ok(None));
            frames = from.into_frames();
        }
    }

    #[test]
    fn values_come_back() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u64::MAX] {
            round(&number);
        }
        for number in [0, -1, 1, 63, -64, 64, i64::MIN, i64::MAX] {
            round(&number);
        }
        round(&vec![Some(3u8), None]);
        round(&(true, false));
        round(&CompactString::from("žluťoučký"));
        round(&Box::<[u8]>::from(&b"\0\xff"[..]));
        round(&std::collections::VecDeque::from(vec![1u32, 2]));
        for form in 0..=u8::MAX {
            if let Some(form) = Form::by_number(form) {
                round(&form);
            }
        }
        for moment in [0, 1, NOW.0, NOW.0 + 1, 10 * NOW.0] {
            round(&Millis(moment));
        }
        round(&Tick(7));
        round(&Slots::of([0, 3, 8, 1000].into_iter()));
    }

    #[test]
    fn times_are_distances() {
        let image = image_of(&vec![Millis(NOW.0 - 5), Millis(NOW.0 + 7)]);
        let moments: Vec<Millis> = read(&image, Millis(1_000)).unwrap();
        assert_eq!(moments, [Millis(995), Millis(1_007)]);
        // Older than the process.
        assert_eq!(read::<Vec<Millis>>(&image, Millis(2)).unwrap()[0], Millis(0));
        // 44 ms from NOW; a clock with other ticks is late rather than early.
        let image = image_of(&Tick(1_235));
        assert_eq!(read::<Tick>(&image, Millis(1_000)), Ok(Tick(11)));
        assert_eq!(read::<Tick>(&image, Millis(1_056)), Ok(Tick(11)));
        assert_eq!(read::<Tick>(&image, Millis(1_057)), Ok(Tick(12)));
    }

    #[test]
    fn a_frame_of_many_is_there_once() {
        let long = SharedFrame::new(&[7; 10_000]);
        let part = SharedFrame::part(b"part");
        let mut writer = ImageWriter::new(NOW);
        for _ in 0..100 {
            writer.record(9, |out| out.field(&vec![long.clone(), part.clone()]));
        }
        let image = writer.finish();
        assert!(image.len() < 10_700, "{}", image.len());
        let mut reader = ImageReader::new(&image, NOW).unwrap();
        let mut first: Option<SharedFrame> = None;
        while let Some(kind) = reader.next_record().unwrap() {
            assert_eq!(kind, 9);
            let frames = Vec::<SharedFrame>::read(&mut reader).unwrap();
            assert_eq!(frames[1].bytes(), b"part");
            assert!(frames[1].is_part() && !frames[0].is_part());
            let first = first.get_or_insert_with(|| frames[0].clone());
            assert_eq!(first.bytes().as_ptr(), frames[0].bytes().as_ptr());
        }
    }

    #[test]
    fn unknown_records_are_refused_or_passed_over() {
        for (kind, expected) in [(200, Ok(())), (0x7f, Err(Broken::UnknownRecord(0x7f)))] {
            let mut writer = ImageWriter::new(NOW);
            writer.record(kind, |out| out.bytes(b"news"));
            let image = writer.finish();
            let mut reader = ImageReader::new(&image, NOW).unwrap();
            assert_eq!(reader.next_record(), Ok(Some(kind)));
            assert_eq!(reader.pass_over(), expected);
        }
        assert_eq!(Broken::UnknownRecord(7).to_string(), "unknown record of kind 7");
    }

    #[test]
    fn other_bytes_are_refused() {
        let image = image_of(&vec![1u32, 2, 3]);
        assert_eq!(read::<Vec<u32>>(b"GET / HTTP/1.1", NOW), Err(Broken::NotAnImage));
        let mut newer = image.clone();
        newer[8] = 2;
        assert_eq!(read::<Vec<u32>>(&newer, NOW), Err(Broken::Format(2)));
        for length in 0..image.len() {
            assert!(read::<Vec<u32>>(&image[..length], NOW).is_err(), "{length} bytes");
        }
        for at in 0..image.len() {
            for bit in 0..8 {
                let mut image = image.clone();
                image[at] ^= 1 << bit;
                assert!(read::<Vec<u32>>(&image, NOW).is_err(), "bit {bit} of byte {at}");
            }
        }
        // A field too many.
        let mut reader = ImageReader::new(&image, NOW).unwrap();
        reader.next_record().unwrap();
        assert_eq!(u8::read(&mut reader), Ok(3));
        assert_eq!(reader.next_record(), Err(Broken::Leftover(9)));
    }

    #[test]
    fn counts_take_no_memory() {
        for count in [5u64, 1 << 20, 1 << 40, u64::MAX] {
            let image = image_of(&count);
            assert_eq!(read::<Vec<u64>>(&image, NOW), Err(Broken::Short));
            assert_eq!(read::<String>(&image, NOW), Err(Broken::Short));
        }
        // 5 in two bytes, and a number of 70 bits.
        for bytes in [&[0x85, 0][..], &[0xff; 10]] {
            let mut writer = ImageWriter::new(NOW);
            writer.record(9, |out| u8::write_all(bytes, out));
            let image = writer.finish();
            assert_eq!(read::<u64>(&image, NOW), Err(Broken::Value("an integer")));
        }
    }

    #[test]
    fn slots_are_each_taken_once() {
        let mut slots = Slots::of([1, 9].into_iter());
        assert_eq!(slots.take(0), Err(Broken::Value("a slot")));
        assert_eq!(slots.take(1_000_000_000), Err(Broken::Value("a slot")));
        assert_eq!(slots.take(9), Ok(9));
        assert!(slots.end().is_err() && slots.take(9).is_err());
        assert_eq!(slots.take(1), Ok(1));
        assert_eq!(slots.end(), Ok(()));
    }

    #[derive(Debug, PartialEq)]
    struct Sample {
        name: CompactString,
        due: u32,
        lost: u32,
    }

    durable!(Sample { name } ticks { due } anew { lost: 5 });

    #[test]
    fn a_field_can_be_forgotten_as_an_experiment() {
        let sample = Sample { name: "news".into(), due: 2_000, lost: 5 };
        round(&sample);
        let image = image_of(&sample);
        for (field, expected) in [
            ("Sample.name", Sample { name: "".into(), due: 2_000, lost: 5 }),
            ("Sample.due", Sample { name: "news".into(), due: 1_235, lost: 5 }),
            ("Sample.none", Sample { name: "news".into(), due: 2_000, lost: 5 }),
        ] {
            let mut reader = ImageReader::forgetting(&image, NOW, field).unwrap();
            reader.next_record().unwrap();
            assert_eq!(Sample::read(&mut reader), Ok(expected));
            let met: Vec<_> = reader.fields_met().collect();
            assert_eq!(met, ["Sample.due", "Sample.name"]);
        }
    }

    proptest! {
        #[test]
        fn any_rows_come_back(
            rows in proptest::collection::vec((any::<u64>(), ".{0,9}", any::<Option<u32>>()), 0..9)
        ) {
            let rows: Vec<(u64, (String, Option<u32>))> =
                rows.into_iter().map(|(a, b, c)| (a, (b, c))).collect();
            let image = image_of(&rows);
            prop_assert_eq!(read::<Vec<(u64, (String, Option<u32>))>>(&image, NOW), Ok(rows));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(body: Vec<u8>) {
            let mut image = [&MAGIC[..], &FORMAT.to_le_bytes(), &body].concat();
            seal(&mut image);
            let mut reader = ImageReader::new(&image, NOW).unwrap();
            while let Ok(Some(_)) = reader.next_record() {
                let _ = Vec::<(SharedFrame, Option<CompactString>)>::read(&mut reader);
                let _ = reader.pass_over();
            }
        }
    }
}
