//! A channel's stream: consecutive offsets, an epoch, and the latest publications.

use std::collections::VecDeque;

use triomphe::ThinArc;

use crate::base::rng::Rng;
use crate::base::time::Millis;

/// Names one life of a stream: eight letters, never empty, never `_`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch([u8; 8]);

impl Epoch {
    /// A new one.
    pub fn new(rng: &mut Rng) -> Self {
        const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        Self(std::array::from_fn(|_| LETTERS[rng.below(52) as usize]))
    }

    /// As the protocol carries it.
    pub fn as_str(&self) -> &str {
        // Made of letters only.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::fmt::Debug for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Offset of the latest publication, 0 before the first.
    pub offset: u64,
    /// The stream's life; `None` for a channel without history.
    pub epoch: Option<Epoch>,
}

/// What a channel's namespace says of its history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Publications kept, 0 for no history.
    pub size: u32,
    /// They are dropped so long after the last publish, in milliseconds.
    pub ttl_ms: u64,
    /// Offset and epoch are kept so long after the last publish, in milliseconds.
    pub meta_ttl_ms: u64,
}

impl StreamOptions {
    /// Whether the channel has a stream at all.
    pub fn kept(&self) -> bool {
        self.size > 0 && self.ttl_ms > 0
    }
}

/// The fixed part of a kept publication.
#[derive(Clone, Copy, Debug)]
pub struct RecordHead {
    /// Its offset in the stream.
    pub offset: u64,
    /// How many bytes of the record are the payload; what follows is the publisher's info.
    pub data_bytes: u32,
}

/// A kept publication: one allocation of 32 bytes, payload and publisher info; 8 bytes in the ring.
#[derive(Clone)]
pub struct Record(ThinArc<RecordHead, u8>);

impl Record {
    fn new(offset: u64, data: &[u8], info: &[u8]) -> Self {
        let head = RecordHead { offset, data_bytes: data.len() as u32 };
        let bytes = Chained { first: data, second: info };
        Self(ThinArc::from_header_and_iter(head, bytes))
    }

    /// Its offset.
    pub fn offset(&self) -> u64 {
        self.0.header.header.offset
    }

    /// The payload.
    pub fn data(&self) -> &[u8] {
        &self.0.slice[..self.0.header.header.data_bytes as usize]
    }

    /// The publisher's encoded info, empty when the server published.
    pub fn info(&self) -> &[u8] {
        &self.0.slice[self.0.header.header.data_bytes as usize..]
    }
}

/// The bytes of two slices, one after the other, with their exact count.
struct Chained<'a> {
    first: &'a [u8],
    second: &'a [u8],
}

impl Iterator for Chained<'_> {
    type Item = u8;
    fn next(&mut self) -> Option<u8> {
        if self.first.is_empty() {
            std::mem::swap(&mut self.first, &mut self.second);
        }
        let (byte, rest) = self.first.split_first()?;
        self.first = rest;
        Some(*byte)
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.first.len() + self.second.len();
        (len, Some(len))
    }
}

impl ExactSizeIterator for Chained<'_> {}

/// A channel's stream. Publications go all together `ttl_ms` after the last publish, offset and
/// epoch `meta_ttl_ms` after it.
#[derive(Debug)]
pub struct Stream {
    offset: u64,
    epoch: Epoch,
    ring: VecDeque<Record>,
    last_publish: Millis,
    options: StreamOptions,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({}, {} bytes)", self.offset(), self.data().len())
    }
}

impl Stream {
    /// A stream that has not begun: offset 0.
    pub fn new(now: Millis, options: StreamOptions, rng: &mut Rng) -> Self {
        let epoch = Epoch::new(rng);
        Self { offset: 0, epoch, ring: VecDeque::new(), last_publish: now, options }
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        Position { offset: self.offset, epoch: Some(self.epoch) }
    }

    /// Takes the next offset for a publication and keeps it. The oldest goes when there are more
    /// than `size`.
    pub fn append(&mut self, now: Millis, data: &[u8], info: &[u8]) -> Position {
        self.expire(now);
        self.offset += 1;
        self.last_publish = now;
        while self.ring.len() >= self.options.size as usize {
            self.ring.pop_front();
        }
        self.ring.push_back(Record::new(self.offset, data, info));
        self.position()
    }

    /// Drops publications whose time is over.
    pub fn expire(&mut self, now: Millis) {
        if !self.ring.is_empty() && now.since(self.last_publish) >= self.options.ttl_ms {
            self.ring = VecDeque::new();
        }
    }

    /// Whether offset and epoch may be forgotten, too.
    pub fn forgettable(&self, now: Millis) -> bool {
        now.since(self.last_publish) >= self.options.meta_ttl_ms
    }

    /// The kept publications, oldest first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.ring.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::rng::Rng;

    proptest! {
        // Against a plain list of everything that was published.
        #[test]
        fn the_ring_keeps_what_a_list_would(
            size in 1..6u32,
            ops in proptest::collection::vec((0..80u64, 0..20usize), 1..100),
        ) {
            let options = StreamOptions { size, ttl_ms: 100, meta_ttl_ms: 1000 };
            let mut stream = Stream::new(Millis(0), options, &mut Rng::new(1));
            let mut list: Vec<(u64, Vec<u8>)> = Vec::new();
            let (mut now, mut last) = (0, 0);
            for (offset, (pause, bytes)) in (1u64..).zip(ops) {
                now += pause;
                if now - last >= 100 {
                    list.clear();
                }
                last = now;
                let data = vec![offset as u8; bytes];
                prop_assert_eq!(stream.append(Millis(now), &data, b"i").offset, offset);
                list.push((offset, data));
                let from = list.len().saturating_sub(size as usize);
                let kept: Vec<_> =
                    stream.records().map(|r| (r.offset(), r.data().to_vec())).collect();
                prop_assert_eq!(&kept[..], &list[from..]);
            }
        }
    }

    const OPTIONS: StreamOptions = StreamOptions { size: 3, ttl_ms: 100, meta_ttl_ms: 1000 };

    #[test]
    fn offsets_are_consecutive_and_the_oldest_goes() {
        let mut rng = Rng::new(1);
        let mut stream = Stream::new(Millis(0), OPTIONS, &mut rng);
        let epoch = stream.position().epoch;
        for n in 1..=5u64 {
            let position = stream.append(Millis(n), format!("data {n}").as_bytes(), b"info");
            assert_eq!(position, Position { offset: n, epoch });
        }
        let kept: Vec<_> = stream.records().map(|r| (r.offset(), r.data().to_vec())).collect();
        let expected: Vec<_> = (3..=5u64).map(|n| (n, format!("data {n}").into_bytes())).collect();
        assert_eq!(kept, expected);
        assert!(stream.records().all(|r| r.info() == b"info"));
    }

    #[test]
    fn publications_expire_together_and_offsets_go_on() {
        let mut rng = Rng::new(2);
        let mut stream = Stream::new(Millis(0), OPTIONS, &mut rng);
        stream.append(Millis(10), b"a", b"");
        stream.expire(Millis(109));
        assert_eq!(stream.records().count(), 1);
        stream.expire(Millis(110));
        assert_eq!(stream.records().count(), 0);
        assert_eq!(stream.append(Millis(200), b"b", b"").offset, 2);
        assert!(!stream.forgettable(Millis(1199)));
        assert!(stream.forgettable(Millis(1200)));
    }

    #[test]
    fn a_record_costs_its_bytes_and_little_more() {
        // Count, length, offset, data length; the ring's pointer on top.
        assert_eq!(size_of::<RecordHead>() + 2 * size_of::<usize>() + size_of::<Record>(), 40);
    }

    #[test]
    fn epochs_are_letters() {
        let mut rng = Rng::new(3);
        let (a, b) = (Epoch::new(&mut rng), Epoch::new(&mut rng));
        assert_ne!(a, b);
        assert!(a.as_str().len() == 8 && a.as_str().bytes().all(|b| b.is_ascii_alphabetic()));
    }
}
