//! What one address may have of the node: connections, new connections a second, bytes of unfinished
//! requests, checks of signatures.
//!
//! The figures are the node's, not a shard's, and nobody waits for anybody: they stand in tables of
//! atomic words, of a fixed size. A keyed hash of the address picks a bucket of eight words; a word holds
//! a part of the hash, which says whose it is, and the figure. A word is free when its figure is 0, so
//! nothing has to be cleaned up, and strangers with a million addresses take no more memory than one.
//!
//! Where all eight words of a bucket are in use, one more address isn't counted: it is let in. Two
//! addresses share a word with a probability of less than 1 to 100,000; nobody can choose them, since the hash has a key.
//! Two shards that count the first connections of one address at the same moment may make two words for
//! it: the figure is the sum of both, and may be over its limit by one for each shard.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use std::hash::BuildHasher as _;

use crate::base::address::network;
use crate::base::time::Millis;

/// The limits of one address; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressOptions {
    /// Connections that are open.
    pub connections: u32,
    /// New connections in a second.
    pub connections_per_second: u32,
    /// Bytes of requests that have begun to come.
    pub unfinished_bytes: u64,
    /// Checks of expensive signatures that are not answered.
    pub signature_checks: u32,
}

/// The outcome of counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It is counted.
    Yes,
    /// There was no room to count it: it is let in.
    NoRoom,
    /// That limit is off.
    Off,
    /// It would be too much.
    TooMuch,
}

/// The figures of all addresses.
pub struct AddressLimits {
    options: AddressOptions,
    hasher: SeedableRandomState,
    connections: Amounts,
    rates: Rates,
    unfinished: Amounts,
    checks: Amounts,
}

impl AddressLimits {
    /// No figures. `connections_max`: what the node holds at most. Tables of limits that are off are empty.
    pub fn new(options: AddressOptions, seed: u64, connections_max: u64) -> Self {
        // foldhash derives its shared part from a seed that lives as long as the process.
        let shared = Box::leak(Box::new(SharedSeed::from_u64(seed)));
        let words = usize::try_from(connections_max).unwrap_or(usize::MAX);
        let words = words.min(CONNECTION_WORDS_MAX).next_power_of_two();
        let table = |on: bool, words: usize| words * usize::from(on);
        Self {
            options,
            hasher: SeedableRandomState::with_seed(seed, shared),
            connections: Amounts(Table::new(table(options.connections > 0, words))),
            rates: Rates(Table::new(table(options.connections_per_second > 0, RATE_WORDS))),
            unfinished: Amounts(Table::new(table(options.unfinished_bytes > 0, UNFINISHED_WORDS))),
            checks: Amounts(Table::new(table(options.signature_checks > 0, CHECK_WORDS))),
        }
    }

    /// Whether any limit is on that has to know the address of each connection.
    pub fn is_on(&self) -> bool {
        let AddressOptions { connections, connections_per_second, unfinished_bytes, .. } =
            self.options;
        connections > 0 || connections_per_second > 0 || unfinished_bytes > 0
    }

    /// Whether checks of signatures are limited.
    pub fn limits_checks(&self) -> bool {
        self.options.signature_checks > 0
    }

    /// Whether unfinished bytes are limited.
    pub fn limits_unfinished(&self) -> bool {
        self.options.unfinished_bytes > 0
    }

    /// One more connection of an address. What is [`Counted::Yes`] is given back with
    /// [`Self::connection_ended`].
    pub fn connection_began(&self, address: IpAddr) -> Counted {
        match self.options.connections {
            0 => Counted::Off,
            max => self.connections.take(self.hash(address), 1, u64::from(max)),
        }
    }

    /// A connection that was counted is over.
    pub fn connection_ended(&self, address: IpAddr) {
        self.connections.give_back(self.hash(address), 1);
    }

    /// One more new connection: whether its address keeps to its rate. A second's worth may come at once.
    pub fn is_in_rate(&self, address: IpAddr, now: Millis) -> Counted {
        match self.options.connections_per_second {
            0 => Counted::Off,
            rate => self.rates.take(self.hash(address), rate, now),
        }
    }

    /// So many bytes more of an address's unfinished requests. What is [`Counted::Yes`] is given back with
    /// [`Self::bytes_finished`].
    pub fn bytes_began(&self, address: IpAddr, bytes: u64) -> Counted {
        match self.options.unfinished_bytes {
            0 => Counted::Off,
            max => self.unfinished.take(self.hash(address), bytes, max),
        }
    }

    /// Bytes that were counted are done with.
    pub fn bytes_finished(&self, address: IpAddr, bytes: u64) {
        self.unfinished.give_back(self.hash(address), bytes);
    }

    /// One more check of a signature. What is [`Counted::Yes`] is given back with [`Self::check_ended`].
    pub fn check_began(&self, address: IpAddr) -> Counted {
        match self.options.signature_checks {
            0 => Counted::Off,
            max => self.checks.take(self.hash(address), 1, u64::from(max)),
        }
    }

    /// A check that was counted is answered.
    pub fn check_ended(&self, address: IpAddr) {
        self.checks.give_back(self.hash(address), 1);
    }

    /// Connections and bytes that are counted, of all addresses.
    pub fn counted(&self) -> (u64, u64) {
        (self.connections.sum(), self.unfinished.sum())
    }

    /// Checks that are counted, of all addresses.
    pub fn checks(&self) -> u64 {
        self.checks.sum()
    }

    fn hash(&self, address: IpAddr) -> u64 {
        match network(address) {
            IpAddr::V4(address) => self.hasher.hash_one((4, u64::from(address.to_bits()))),
            IpAddr::V6(address) => self.hasher.hash_one((6, (address.to_bits() >> 64) as u64)),
        }
    }
}

/// Words of the table of connections at most, 16 MiB: one for each connection otherwise.
const CONNECTION_WORDS_MAX: usize = 1 << 21;

/// Words of the table of rates, 1 MiB: one for each address that came within the last second.
const RATE_WORDS: usize = 1 << 17;

/// Words of the table of unfinished bytes, 512 KiB.
const UNFINISHED_WORDS: usize = 1 << 16;

/// Words of the table of checks, 512 KiB: a shard has no more of them open than it has credits.
const CHECK_WORDS: usize = 1 << 16;

/// Words in which an address may stand.
const BUCKET_WORDS: usize = 8;

/// How often a word is tried that others write at the same moment.
const TRIES: usize = 64;

struct Table(Box<[AtomicU64]>);

impl Table {
    fn new(words: usize) -> Self {
        let words = if words == 0 { 0 } else { words.next_power_of_two().max(BUCKET_WORDS) };
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    fn bucket(&self, hash: u64) -> &[AtomicU64] {
        let buckets = self.0.len() / BUCKET_WORDS;
        let Some(last) = buckets.checked_sub(1) else { return &[] };
        let at = (hash as usize & last) * BUCKET_WORDS;
        &self.0[at..at + BUCKET_WORDS]
    }
}

/// Amounts that are given back: a tag of 24 bits and an amount of 40 in each word.
struct Amounts(Table);

const AMOUNT_BITS: u32 = 40;
const AMOUNT_MAX: u64 = (1 << AMOUNT_BITS) - 1;

/// The upper bits of a hash, which don't pick the bucket, above `bits` others.
fn tag(hash: u64, bits: u32) -> u64 {
    hash >> bits << bits
}

impl Amounts {
    fn take(&self, hash: u64, amount: u64, max: u64) -> Counted {
        let (bucket, tag) = (self.0.bucket(hash), tag(hash, AMOUNT_BITS));
        for _ in 0..TRIES {
            let (mut sum, mut own, mut free) = (0, None, None);
            for place in bucket {
                match place.load(Relaxed) {
                    0 => free = free.or(Some((place, 0))),
                    word if word & !AMOUNT_MAX == tag => {
                        sum += word & AMOUNT_MAX;
                        own = Some((place, word));
                    }
                    _ => {}
                }
            }
            if sum.saturating_add(amount) > max.min(AMOUNT_MAX) {
                return Counted::TooMuch;
            }
            let Some((place, word)) = own.or(free) else { return Counted::NoRoom };
            let more = tag | ((word & AMOUNT_MAX) + amount);
            if amount == 0 || place.compare_exchange(word, more, Relaxed, Relaxed).is_ok() {
                return Counted::Yes;
            }
        }
        Counted::NoRoom
    }

    fn give_back(&self, hash: u64, mut amount: u64) {
        let (bucket, tag) = (self.0.bucket(hash), tag(hash, AMOUNT_BITS));
        // Where an address has two words, the figure may move from one that was not looked at yet.
        for place in std::iter::repeat_n(bucket, TRIES).flatten() {
            while amount > 0 {
                let word = place.load(Relaxed);
                let held = word & AMOUNT_MAX;
                if held == 0 || word & !AMOUNT_MAX != tag {
                    break;
                }
                let less = held.min(amount);
                let rest = if less == held { 0 } else { word - less };
                if place.compare_exchange(word, rest, Relaxed, Relaxed).is_ok() {
                    amount -= less;
                }
            }
            if amount == 0 {
                return;
            }
        }
        debug_assert_eq!(amount, 0, "given back what was not counted");
    }

    fn sum(&self) -> u64 {
        self.0.0.iter().map(|word| word.load(Relaxed) & AMOUNT_MAX).sum()
    }
}

/// When each address has used up what it may have: a tag of 20 bits and a moment of 44 in each word. A
/// moment that has passed frees the word.
struct Rates(Table);

const MOMENT_BITS: u32 = 44;
const MOMENT_MAX: u64 = (1 << MOMENT_BITS) - 1;

/// Moments in a millisecond: 44 bits of them are eight years.
const MOMENTS: u64 = 64;

impl Rates {
    fn take(&self, hash: u64, rate: u32, now: Millis) -> Counted {
        let (bucket, tag) = (self.0.bucket(hash), tag(hash, MOMENT_BITS));
        let now = now.0.saturating_mul(MOMENTS) & MOMENT_MAX;
        let each = (1000 * MOMENTS).div_ceil(u64::from(rate));
        let burst = each * u64::from(rate);
        for _ in 0..TRIES {
            let (mut used, mut own, mut free) = (now, None, None);
            for place in bucket {
                let word = place.load(Relaxed);
                let until = word & MOMENT_MAX;
                if word & !MOMENT_MAX == tag && until > now {
                    used = used.max(until);
                    own = Some((place, word));
                } else if until <= now {
                    free = free.or(Some((place, word)));
                }
            }
            let next = used + each;
            if next > now + burst {
                return Counted::TooMuch;
            }
            let Some((place, word)) = own.or(free) else { return Counted::NoRoom };
            let more = tag | next.min(MOMENT_MAX);
            if place.compare_exchange(word, more, Relaxed, Relaxed).is_ok() {
                return Counted::Yes;
            }
        }
        Counted::NoRoom
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn limits(options: AddressOptions) -> AddressLimits {
        AddressLimits::new(options, 7, 1000)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_of_an_address() {
        let limits = limits(AddressOptions { connections: 2, ..Default::default() });
        let (one, other) = (ip("192.0.2.1"), ip("192.0.2.2"));
        for _ in 0..2 {
            assert_eq!(limits.connection_began(one), Counted::Yes);
        }
        assert_eq!(limits.connection_began(one), Counted::TooMuch);
        assert_eq!(limits.connection_began(other), Counted::Yes);
        limits.connection_ended(one);
        assert_eq!(limits.connection_began(one), Counted::Yes);
        assert_eq!(limits.counted(), (3, 0));
        // A limit that is off counts nothing.
        assert_eq!(limits.is_in_rate(one, Millis(0)), Counted::Off);
        assert_eq!(limits.bytes_began(one, 1 << 30), Counted::Off);
    }

    #[test]
    fn checks_of_an_address() {
        let limits = limits(AddressOptions { signature_checks: 2, ..Default::default() });
        let (one, other) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let began = [one, one, one, other].map(|address| limits.check_began(address));
        assert_eq!(began, [Counted::Yes, Counted::Yes, Counted::TooMuch, Counted::Yes]);
        limits.check_ended(one);
        assert_eq!(limits.check_began(one), Counted::Yes);
        assert_eq!((limits.checks(), limits.counted()), (3, (0, 0)));
        assert!(limits.limits_checks() && !limits.is_on());
        assert_eq!(limits.connection_began(one), Counted::Off);
    }

    #[test]
    fn addresses_of_ipv6_count_by_64_bits() {
        let limits = limits(AddressOptions { connections: 1, ..Default::default() });
        assert_eq!(limits.connection_began(ip("2001:db8:0:1::1")), Counted::Yes);
        assert_eq!(limits.connection_began(ip("2001:db8:0:1:ffff::2")), Counted::TooMuch);
        assert_eq!(limits.connection_began(ip("2001:db8:0:2::1")), Counted::Yes);
        assert_eq!(limits.connection_began(ip("192.0.2.1")), Counted::Yes);
        assert_eq!(limits.connection_began(ip("::ffff:192.0.2.1")), Counted::TooMuch);
    }

    #[test]
    fn a_rate_lets_a_second_s_worth_come_at_once_and_no_more() {
        let options = AddressOptions { connections_per_second: 10, ..Default::default() };
        let limits = limits(options);
        let one = ip("192.0.2.1");
        let taken = |at: u64, tries: usize| {
            let all = (0..tries).map(|_| limits.is_in_rate(one, Millis(at)));
            all.filter(|counted| *counted == Counted::Yes).count()
        };
        assert_eq!(taken(5000, 100), 10);
        assert_eq!(taken(5000, 1), 0);
        assert_eq!(taken(5100, 5), 1);
        assert_eq!(taken(5350, 5), 2);
        assert_eq!(taken(5350, 5), 0);
        assert_eq!(taken(60_000, 100), 10);
        assert_eq!(limits.is_in_rate(ip("192.0.2.2"), Millis(60_000)), Counted::Yes);
    }

    #[test]
    fn a_million_addresses_take_no_more_memory_and_lock_nobody_out() {
        let options =
            AddressOptions { connections: 5, connections_per_second: 5, ..Default::default() };
        let limits = limits(options);
        let mut counted = Vec::new();
        for number in 0..1_000_000u32 {
            let address = IpAddr::from(number.to_be_bytes());
            let began = limits.connection_began(address);
            assert_ne!(began, Counted::TooMuch, "{address}");
            assert_ne!(limits.is_in_rate(address, Millis(1000)), Counted::TooMuch, "{address}");
            if began == Counted::Yes {
                counted.push(address);
            }
        }
        assert!(counted.len() <= 1024, "{}", counted.len());
        counted.into_iter().for_each(|address| limits.connection_ended(address));
        assert_eq!(limits.counted(), (0, 0));
    }

    proptest! {
        #[test]
        fn amounts_are_exact(steps in proptest::collection::vec((0..6u8, 1..60u64, any::<bool>()), 0..200)) {
            let limits = limits(AddressOptions { unfinished_bytes: 100, ..Default::default() });
            let mut held: HashMap<u8, Vec<u64>> = HashMap::new();
            for (host, bytes, begins) in steps {
                let address = IpAddr::from([192, 0, 2, host]);
                let own = held.entry(host).or_default();
                if begins {
                    let fits = own.iter().sum::<u64>() + bytes <= 100;
                    let expected = if fits { Counted::Yes } else { Counted::TooMuch };
                    prop_assert_eq!(limits.bytes_began(address, bytes), expected);
                    if fits {
                        own.push(bytes);
                    }
                } else if let Some(bytes) = own.pop() {
                    limits.bytes_finished(address, bytes);
                }
            }
            let sum = held.values().flatten().sum::<u64>();
            prop_assert_eq!(limits.counted(), (0, sum));
        }
    }
}
