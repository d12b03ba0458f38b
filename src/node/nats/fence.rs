//! The seam between two processes of one node in what NATS delivers to both.
//!
//! A server has no order in common for two of its clients: publications of two others may reach them in different
//! orders. So a fence alone divides nothing. The running node says what it has delivered, and the new process delivers
//! all else. Both learn from *signs*, which the running node publishes to a subject of its own, what that is about:
//!
//! ```text
//!             running node                        new process
//!  mark       counts what comes from now on       counts what comes from now on
//!  keep                                           keeps what comes from now on
//!             (shards settle: holds what comes)
//!  fence      hands out what it holds; later
//!             messages are not its own
//!  delivered  digests of all that it counted      delivers what it kept, less what was counted there and not here
//! ```
//! A message that the new process has before the second sign reaches the running node before the fence, and one that
//! it keeps, and that the running node had before, reached that one behind the mark: [`SIGNS_APART`] is longer than a
//! server needs to hand a message to two clients. Messages are equal if channel, place in the stream and bytes are.
//!
//! Signs come beside messages, not among them: each subscription has a channel of its own in the crate. So they divide
//! turns of the thread, and a turn takes all that has come ([`super::receive`]).

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use tokio::time::Instant;

use crate::base::limits::BROKER_WAITING_BYTES_MAX;

/// Messages that are counted at most; with more the attempt fails.
const COUNTED_MAX: usize = 1 << 21;

/// Digests in one message.
const DIGESTS_AT_ONCE: usize = 4_096;

/// Behind the fence, messages that the running node has delivered come this late at most.
const LATE: Duration = Duration::from_secs(2);

/// Signs are so far apart at least.
pub(in crate::node) const SIGNS_APART: Duration = Duration::from_millis(50);

/// A number by which both processes know a message.
pub type Digest = u64;

/// The digest of a message: of its parts, which can't be confused.
pub fn digest(channel: &str, subject: &str, place: u64, payload: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    for part in [channel.as_bytes(), subject.as_bytes()] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.update(&place.to_be_bytes());
    context.update(payload);
    let mut first = [0; 8];
    first.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    u64::from_be_bytes(first)
}

/// The meaning of a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Messages are counted from now on.
    Mark = 1,
    /// The new process keeps them from now on.
    Keep = 2,
    /// Later ones are the new process's.
    Fence = 3,
    /// Digests that the running node has delivered.
    Delivered = 4,
    /// The last of them.
    DeliveredAll = 5,
}

/// A message of the running node to both processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sign {
    /// Its meaning.
    pub kind: Kind,
    /// Names the attempt.
    pub key: u64,
    /// The home that it is about; the one behind the last: messages between nodes.
    pub home: u16,
    /// Of messages that were delivered.
    pub digests: Vec<Digest>,
}

impl Sign {
    /// One without digests.
    pub fn new(kind: Kind, key: u64, home: usize) -> Self {
        Self { kind, key, home: home as u16, digests: Vec::new() }
    }

    /// The bytes of its message.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind as u8];
        bytes.extend(self.key.to_be_bytes());
        bytes.extend(self.home.to_be_bytes());
        self.digests.iter().for_each(|digest| bytes.extend(digest.to_be_bytes()));
        bytes
    }

    /// `None` for anything else.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let kind = match kind {
            1 => Kind::Mark,
            2 => Kind::Keep,
            3 => Kind::Fence,
            4 => Kind::Delivered,
            5 => Kind::DeliveredAll,
            _ => return None,
        };
        let (key, rest) = rest.split_first_chunk()?;
        let (home, rest) = rest.split_first_chunk()?;
        let (digests, rest) = rest.as_chunks();
        let digests = digests.iter().map(|digest| u64::from_be_bytes(*digest)).collect();
        let (key, home) = (u64::from_be_bytes(*key), u16::from_be_bytes(*home));
        rest.is_empty().then_some(Self { kind, key, home, digests })
    }

    /// Signs that say what was delivered.
    fn delivered(key: u64, home: usize, counts: Counts) -> Vec<Self> {
        let digests: Vec<Digest> = counts
            .into_iter()
            .flat_map(|(digest, count)| std::iter::repeat_n(digest, count as usize))
            .collect();
        let mut signs: Vec<Self> = digests
            .chunks(DIGESTS_AT_ONCE)
            .map(|some| Self { digests: some.to_vec(), ..Self::new(Kind::Delivered, key, home) })
            .collect();
        signs.push(Self::new(Kind::DeliveredAll, key, home));
        signs
    }
}

type Counts = HashMap<Digest, u32, foldhash::fast::RandomState>;

/// Takes one of these messages from the counts. False: there is none.
fn take(counts: &mut Counts, digest: Digest) -> bool {
    let Some(count) = counts.get_mut(&digest) else { return false };
    *count -= 1;
    if *count == 0 {
        counts.remove(&digest);
    }
    true
}

/// Messages with their digests.
type Items<T> = Vec<(Digest, T)>;

/// Messages that are kept.
#[derive(Debug)]
struct Kept<T> {
    items: Items<T>,
    bytes: usize,
    /// There was no room for all of them.
    is_over: bool,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { items: Vec::new(), bytes: 0, is_over: false }
    }
}

impl<T> Kept<T> {
    fn extend(&mut self, items: Items<T>, size: impl Fn(&T) -> usize) {
        for item in items {
            self.bytes += size(&item.1);
            self.is_over |= self.bytes > BROKER_WAITING_BYTES_MAX;
            if !self.is_over {
                self.items.push(item);
            }
        }
    }
}

/// Which messages of a home are this process's.
#[derive(Debug)]
pub struct Seam<T> {
    side: Side<T>,
    /// Messages of this turn.
    turn: Items<T>,
}

#[derive(Debug)]
enum Side<T> {
    /// All of them.
    All,
    /// The running node's.
    Leaving(Leaving<T>),
    /// The new process's.
    Joining(Joining<T>),
    /// All but those that the process before has delivered.
    Late { owed: Counts, until: Instant },
}

#[derive(Debug)]
struct Leaving<T> {
    /// Names the attempt; 0: it has failed.
    key: u64,
    /// Messages since the mark.
    counts: Option<Counts>,
    counted: usize,
    is_holding: bool,
    is_fenced: bool,
    kept: Kept<T>,
}

#[derive(Debug)]
struct Joining<T> {
    key: u64,
    /// Messages between the first two signs.
    counts: Option<Counts>,
    /// Messages since the second one.
    kept: Option<Kept<T>>,
    /// Messages that the running node has delivered.
    delivered: Counts,
}

/// What follows from a turn.
#[derive(Debug)]
pub struct Turn<T> {
    /// Messages that are this process's.
    pub own: Vec<T>,
    /// Some of them found no room: channels begin anew.
    pub is_over: bool,
    /// The fence of this attempt has come, and these signs follow.
    pub fenced: Option<(u64, Vec<Sign>)>,
    /// What comes is this process's from now on, in this attempt.
    pub passed: Option<u64>,
    /// The attempt can't come to its end.
    pub is_lost: bool,
}

impl<T> Default for Turn<T> {
    fn default() -> Self {
        Self { own: Vec::new(), is_over: false, fenced: None, passed: None, is_lost: false }
    }
}

impl<T> Seam<T> {
    /// `joins`: the process takes over from another one.
    pub fn new(joins: bool) -> Self {
        let joining = Joining { key: 0, counts: None, kept: None, delivered: Counts::default() };
        let side = if joins { Side::Joining(joining) } else { Side::All };
        Self { side, turn: Vec::new() }
    }

    /// All messages are this process's, and no digests are needed.
    pub fn is_open(&self) -> bool {
        matches!(self.side, Side::All)
    }

    /// A message has come.
    pub fn add(&mut self, digest: Digest, item: T) {
        self.turn.push((digest, item));
    }

    /// Another process is to take over.
    pub fn mark(&mut self, key: u64) {
        self.side = Side::Leaving(Leaving {
            key,
            counts: None,
            counted: 0,
            is_holding: false,
            is_fenced: false,
            kept: Kept::default(),
        });
    }

    /// From now on messages are held.
    pub fn hold(&mut self) {
        if !matches!(self.side, Side::Leaving(_)) {
            self.mark(0);
        }
        if let Side::Leaving(leaving) = &mut self.side {
            leaving.is_holding = true;
        }
    }

    /// The attempt has failed before messages were held: nothing is counted any more.
    pub fn forget(&mut self) {
        if let Side::Leaving(Leaving { is_holding: false, .. }) = self.side {
            self.side = Side::All;
        }
    }

    /// The process goes on: what was held, and whether some of it is missing.
    pub fn resume(&mut self) -> (Vec<T>, bool) {
        match std::mem::replace(&mut self.side, Side::All) {
            Side::Leaving(leaving) => (items(leaving.kept.items), leaving.kept.is_over),
            other => {
                self.side = other;
                (Vec::new(), false)
            }
        }
    }

    /// The connection has ended: what was held, and whether a new process can't go on.
    pub fn cut(&mut self) -> (Vec<T>, bool) {
        self.turn.clear();
        match &mut self.side {
            Side::Leaving(leaving) if !leaving.is_fenced => {
                leaving.key = 0;
                (items(std::mem::take(&mut leaving.kept).items), false)
            }
            Side::All | Side::Late { .. } | Side::Leaving(_) => (Vec::new(), false),
            Side::Joining(_) => (Vec::new(), true),
        }
    }

    /// All that has come in this turn is here, signs too.
    pub fn end_turn(&mut self, home: usize, signs: &[Sign], size: impl Fn(&T) -> usize) -> Turn<T> {
        let came = std::mem::take(&mut self.turn);
        match &mut self.side {
            Side::All => Turn { own: items(came), ..Turn::default() },
            Side::Leaving(leaving) => leaving.end_turn(home, came, signs, size),
            Side::Joining(joining) => {
                let (turn, owed) = joining.end_turn(came, signs, size);
                if let Some(owed) = owed {
                    self.side = Side::Late { owed, until: Instant::now() + LATE };
                }
                turn
            }
            Side::Late { owed, until } => {
                let own = came.into_iter().filter(|(digest, _)| !take(owed, *digest)).collect();
                if Instant::now() > *until {
                    self.side = Side::All;
                }
                Turn { own: items(own), ..Turn::default() }
            }
        }
    }
}

fn items<T>(all: Items<T>) -> Vec<T> {
    all.into_iter().map(|(_, item)| item).collect()
}

impl<T> Leaving<T> {
    fn end_turn(
        &mut self,
        home: usize,
        came: Items<T>,
        signs: &[Sign],
        size: impl Fn(&T) -> usize,
    ) -> Turn<T> {
        let has = |kind| signs.iter().any(|sign| (sign.kind, sign.key) == (kind, self.key));
        let (is_marked, is_fence) = (has(Kind::Mark), has(Kind::Fence) && !self.is_fenced);
        if is_marked {
            self.counts = Some(Counts::default());
        }
        if let Some(counts) = self.counts.as_mut().filter(|_| !self.is_fenced) {
            self.counted += came.len();
            came.iter().for_each(|(digest, _)| *counts.entry(*digest).or_default() += 1);
        }
        if self.counted > COUNTED_MAX {
            self.counts = None;
        }
        let mut turn = Turn::default();
        if self.is_holding {
            self.kept.extend(came, size);
        } else {
            turn.own = items(came);
        }
        if is_fence && let Some(counts) = self.counts.take() {
            let kept = std::mem::take(&mut self.kept);
            turn.is_over = kept.is_over;
            turn.own.extend(items(kept.items));
            self.is_fenced = true;
            turn.fenced = Some((self.key, Sign::delivered(self.key, home, counts)));
        }
        turn
    }
}

impl<T> Joining<T> {
    /// What follows, and behind the last sign the messages that are still to come twice.
    fn end_turn(
        &mut self,
        came: Items<T>,
        signs: &[Sign],
        size: impl Fn(&T) -> usize,
    ) -> (Turn<T>, Option<Counts>) {
        let (mut turn, mut is_new, mut is_over) = (Turn::default(), false, false);
        for Sign { kind, key, digests, .. } in signs {
            match kind {
                Kind::Mark => {
                    let (counts, delivered) = (Some(Counts::default()), Counts::default());
                    *self = Self { key: *key, counts, kept: None, delivered };
                    is_new = true;
                }
                _ if *key != self.key => {}
                Kind::Keep => {
                    // A turn with the mark has messages that came before it.
                    turn.is_lost |= is_new || self.counts.is_none();
                    self.kept = Some(Kept::default());
                }
                Kind::Fence => {}
                Kind::Delivered => {
                    digests.iter().for_each(|of| *self.delivered.entry(*of).or_default() += 1);
                }
                Kind::DeliveredAll => is_over = true,
            }
        }
        match (&mut self.kept, &mut self.counts) {
            (Some(kept), _) => kept.extend(came, size),
            (None, Some(counts)) if !is_new => {
                came.iter().for_each(|(digest, _)| *counts.entry(*digest).or_default() += 1);
            }
            _ => {}
        }
        if !is_over || turn.is_lost {
            return (turn, None);
        }
        let (Some(kept), Some(counts)) = (self.kept.take(), self.counts.take()) else {
            turn.is_lost = true;
            return (turn, None);
        };
        let mut owed = std::mem::take(&mut self.delivered);
        for (digest, count) in counts {
            (0..count).for_each(|_| _ = take(&mut owed, digest));
        }
        turn.is_over = kept.is_over;
        let own = kept.items.into_iter().filter(|(digest, _)| !take(&mut owed, *digest));
        turn.own = items(own.collect());
        turn.passed = Some(self.key);
        (turn, Some(owed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::base::rng::Rng;

    const KEY: u64 = 7;

    fn sign(kind: Kind) -> Sign {
        Sign::new(kind, KEY, 0)
    }

    #[test]
    fn signs_are_read_as_they_are_written() {
        let digests = vec![1, u64::MAX];
        for kind in [Kind::Mark, Kind::Keep, Kind::Fence, Kind::Delivered, Kind::DeliveredAll] {
            let sign = Sign { digests: digests.clone(), ..Sign::new(kind, KEY, 300) };
            assert_eq!(Sign::read(&sign.write()), Some(sign.clone()));
            assert_eq!(Sign::read(&sign.write()[..20]), None, "half a digest");
        }
        for other in [&b""[..], b"\x01", b"\x06aaaaaaaahh", b"\x00aaaaaaaahh"] {
            assert_eq!(Sign::read(other), None, "{other:?}");
        }
        let counts: Counts = (0..2 * DIGESTS_AT_ONCE as u64).map(|digest| (digest, 2)).collect();
        let signs = Sign::delivered(KEY, 1, counts);
        let kinds: Vec<_> = signs.iter().map(|sign| sign.kind).collect();
        assert_eq!(kinds[..4], [Kind::Delivered; 4]);
        assert_eq!((kinds.len(), kinds[4]), (5, Kind::DeliveredAll));
    }

    #[test]
    fn digests_are_those_of_all_parts() {
        let all = [
            digest("a", "b", 0, b"c"),
            digest("ab", "", 0, b"c"),
            digest("", "ab", 0, b"c"),
            digest("a", "b", 1, b"c"),
            digest("a", "b", 0, b"d"),
        ];
        let different: std::collections::HashSet<_> = all.into_iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(digest("a", "b", 0, b"c"), 0x7023_05fe_1a39_16c3, "of all versions");
    }

    /// What comes to one process, in the order in which it comes.
    #[derive(Clone, Copy, Debug)]
    enum Came {
        Message(u64),
        Sign(Kind),
    }

    /// One process, with what is on its way to it.
    struct Process {
        seam: Seam<u64>,
        coming: VecDeque<Came>,
        own: Vec<u64>,
    }

    impl Process {
        fn new(joins: bool) -> Self {
            Self { seam: Seam::new(joins), coming: VecDeque::new(), own: Vec::new() }
        }

        /// Takes up to so much in one turn.
        fn turn(&mut self, count: usize, said: &mut VecDeque<Sign>) -> Turn<u64> {
            let mut signs = Vec::new();
            for _ in 0..count {
                match self.coming.pop_front() {
                    Some(Came::Message(number)) => self.seam.add(number, number),
                    Some(Came::Sign(Kind::DeliveredAll)) => signs.extend(said.drain(..)),
                    Some(Came::Sign(kind)) => signs.push(sign(kind)),
                    None => break,
                }
            }
            let mut turn = self.seam.end_turn(0, &signs, |_| 1);
            self.own.append(&mut turn.own);
            turn
        }
    }

    /// Puts a message on the way to one process before or behind what came last: a server has no common order.
    fn put(rng: &mut Rng, process: &mut Process, number: u64) {
        let back = usize::from(rng.below(3) == 0 && !process.coming.is_empty());
        let is_message = matches!(process.coming.back(), Some(Came::Message(_)));
        let at = process.coming.len() - if is_message { 0 } else { back };
        process.coming.insert(at, Came::Message(number));
    }

    /// All turns of one attempt. `goes_on`: the running node does, without the other one.
    fn attempt(seed: u64, goes_on: bool) -> (Process, Process, u64) {
        let rng = &mut Rng::new(seed);
        let (mut old, mut new) = (Process::new(false), Process::new(true));
        let (mut said, mut number) = (VecDeque::new(), 0);
        for stage in [Kind::Mark, Kind::Keep, Kind::Fence] {
            match stage {
                Kind::Mark => old.seam.mark(KEY),
                Kind::Fence => old.seam.hold(),
                _ => {}
            }
            old.coming.push_back(Came::Sign(stage));
            new.coming.push_back(Came::Sign(stage));
            let mut fenced = None;
            for _ in 0..rng.below(8) + 1 {
                number += 1;
                put(rng, &mut old, number);
                put(rng, &mut new, number);
            }
            // Both have the sign before the next one is sent.
            while !old.coming.is_empty() {
                fenced = old.turn(rng.below(4) as usize + 1, &mut said).fenced.or(fenced);
            }
            if stage == Kind::Fence {
                let (key, signs) = fenced.expect("its fence came");
                assert_eq!(key, KEY);
                said.extend(signs);
                new.coming.push_back(Came::Sign(Kind::DeliveredAll));
            }
            let mut passed = None;
            while !new.coming.is_empty() {
                let turn = new.turn(rng.below(4) as usize + 1, &mut said);
                assert!(!turn.is_lost, "seed {seed}");
                passed = turn.passed.or(passed);
            }
            assert_eq!(passed, (stage == Kind::Fence).then_some(KEY));
        }
        if goes_on {
            let (held, is_over) = old.seam.resume();
            assert!(!is_over && old.seam.is_open());
            old.own.extend(held);
        }
        (old, new, number)
    }

    #[test]
    fn each_message_is_delivered_once_in_whatever_order_it_comes() {
        for seed in 0..2_000 {
            let (old, new, count) = attempt(seed, false);
            let mut all = [old.own.clone(), new.own.clone()].concat();
            all.sort_unstable();
            assert_eq!(all, (1..=count).collect::<Vec<_>>(), "seed {seed}: {:?}", new.own);
            let (old, _, count) = attempt(seed, true);
            let mut all = old.own;
            all.sort_unstable();
            assert_eq!(all, (1..=count).collect::<Vec<_>>(), "seed {seed}, alone");
        }
    }

    #[test]
    fn an_attempt_without_its_mark_comes_to_no_end() {
        let mut old = Seam::new(false);
        old.hold();
        old.add(1, 1);
        let turn = old.end_turn(0, &[sign(Kind::Fence)], |_| 1);
        assert!(turn.fenced.is_none() && turn.own.is_empty());
        assert_eq!(old.resume(), (vec![1], false));
        let mut new: Seam<u8> = Seam::new(true);
        let turn = new.end_turn(0, &[sign(Kind::Mark), sign(Kind::Keep)], |_| 1);
        assert!(turn.is_lost, "nothing was counted between them");
        let mut new: Seam<u8> = Seam::new(true);
        assert!(new.end_turn(0, &[sign(Kind::DeliveredAll)], |_| 1).passed.is_none());
        assert!(new.cut().1, "its connection is lost");
    }

    #[test]
    fn an_attempt_that_fails_early_is_forgotten() {
        let mut old = Seam::new(false);
        old.mark(KEY);
        old.add(1, 1);
        assert_eq!(old.end_turn(0, &[sign(Kind::Mark)], |_| 1).own, [1]);
        old.forget();
        assert!(old.is_open());
        old.mark(KEY);
        old.hold();
        old.forget();
        assert!(!old.is_open(), "it is resumed by what it holds for");
        let mut new: Seam<u8> = Seam::new(true);
        new.forget();
        assert!(!new.is_open());
    }

    #[test]
    fn a_connection_that_ends_hands_out_what_was_held() {
        let mut old = Seam::new(false);
        old.mark(KEY);
        old.end_turn(0, &[sign(Kind::Mark)], |_| 1);
        old.hold();
        old.add(1, 1);
        assert!(old.end_turn(0, &[], |_| 1).own.is_empty());
        assert_eq!(old.cut(), (vec![1], false));
        assert!(old.end_turn(0, &[sign(Kind::Fence)], |_| 1).fenced.is_none());
    }

    #[test]
    fn without_room_channels_begin_anew() {
        let mut old = Seam::new(false);
        old.mark(KEY);
        old.end_turn(0, &[sign(Kind::Mark)], |_| 1);
        old.hold();
        old.add(1, 1);
        old.end_turn(0, &[], |_| BROKER_WAITING_BYTES_MAX + 1);
        let turn = old.end_turn(0, &[sign(Kind::Fence)], |_| 1);
        assert!(turn.is_over && turn.fenced.is_some());
    }
}
