//! Timers: intrusive lists, and a coarse hashed wheel made of them.
//!
//! Nothing is allocated for a timer: its links and its deadline live in the record that it belongs
//! to (12 bytes), which this file reaches by index through a trait and knows nothing else about.
//!
//! ```text
//!   slots:  0     1     2 ...                  511          one lap: 512 x 100 ms = 51.2 s
//!           -     |     -                       |
//!                 v                             v
//!           record 7 <-> record 3 <-+     record 5 <-+      circular, so that a head is 4 bytes
//!              ^                    |        ^       |      and both ends are at hand
//!              +--------------------+        +-------+
//! ```

use crate::base::time::Millis;
pub use crate::base::time::TICK_MS;

/// "No record" in links and heads.
const NONE: u32 = u32::MAX;

/// The tick of a moment.
pub(crate) fn tick_of(at: Millis) -> u32 {
    (at.0 / TICK_MS) as u32
}

/// Milliseconds as ticks, rounded up, at least one.
pub(crate) fn ticks(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(TICK_MS)).unwrap_or(u32::MAX / 4).clamp(1, u32::MAX / 4)
}

/// Ticks as whole seconds.
pub(crate) fn seconds_of(ticks: u32) -> u32 {
    (u64::from(ticks) * TICK_MS / 1000) as u32
}

/// Slots of the wheel, 4 bytes each. A lap is longer than every deadline that an idle connection has
/// (pings every 25 s), so that later laps are the exception.
pub const SLOTS: usize = 512;

const WORDS: usize = SLOTS / 64;

const _: () = assert!(SLOTS.is_power_of_two() && SLOTS >= 64);

/// A record's place in one intrusive list at a time. Shape: 8 bytes, in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    next: u32,
    prev: u32,
}

impl Links {
    /// In no list.
    pub const UNLINKED: Self = Self { next: NONE, prev: NONE };

    /// The member behind it, in a circle.
    pub(crate) fn next(self) -> u32 {
        self.next
    }

    /// True while in a list.
    pub fn is_linked(self) -> bool {
        self.next != NONE
    }
}

impl Default for Links {
    fn default() -> Self {
        Self::UNLINKED
    }
}

const _: () = assert!(size_of::<Links>() == 8);

/// Records that can be members of an intrusive list, by index (below `u32::MAX`).
pub trait LinkTable {
    /// The links of a record that exists.
    fn links(&mut self, index: u32) -> &mut Links;
}

/// Records that can have a timer: one each.
pub trait TimerTable: LinkTable {
    /// The tick at which the record's timer is due, 0 without one. Only the wheel writes it; a new
    /// record starts with 0.
    fn deadline_tick(&mut self, index: u32) -> &mut u32;
}

/// An intrusive list, circular and doubly linked: all in O(1), first in, first out.
///
/// Shape: 4 bytes. A record is in one list at most; which one is the caller's to know.
#[derive(Debug)]
pub struct List {
    head: u32,
}

impl Default for List {
    fn default() -> Self {
        Self::new()
    }
}

impl List {
    /// An empty list.
    pub const fn new() -> Self {
        Self { head: NONE }
    }

    /// True without members.
    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// The first member.
    pub fn head(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    /// Makes `index`, which is in no list, the last member.
    pub fn push_back(&mut self, table: &mut impl LinkTable, index: u32) {
        // In release too: a record in two lists would mix up two connections later.
        assert!(index != NONE && !table.links(index).is_linked(), "record {index} is in a list");
        if self.head == NONE {
            *table.links(index) = Links { next: index, prev: index };
            self.head = index;
        } else {
            let last = std::mem::replace(&mut table.links(self.head).prev, index);
            table.links(last).next = index;
            *table.links(index) = Links { next: self.head, prev: last };
        }
    }

    /// Takes the first member out.
    pub fn pop_front(&mut self, table: &mut impl LinkTable) -> Option<u32> {
        let head = self.head()?;
        self.remove(table, head);
        Some(head)
    }

    /// Takes a member of this list out.
    pub fn remove(&mut self, table: &mut impl LinkTable, index: u32) {
        let next = unlink(table, index);
        if self.head == index {
            self.head = next;
        }
    }
}

/// Takes a record out of its ring; yields the one after it, `NONE` if it was alone.
fn unlink(table: &mut impl LinkTable, index: u32) -> u32 {
    let Links { next, prev } = std::mem::take(table.links(index));
    assert!(next != NONE, "record {index} is in no list");
    if next == index {
        return NONE;
    }
    table.links(prev).next = next;
    table.links(next).prev = prev;
    next
}

/// A hashed timer wheel of one lap, hashed by tick (Varghese and Lauck 1987, scheme 6).
///
/// Shape: 2.1 KB, and 12 bytes in each record. Setting and cancelling are O(1) and touch the
/// record and its neighbours in the slot. Expiry costs what expired, the slots that it passes (64 at
/// a time), and one look for each entry of a slot that is due in a later lap. Ticks are 32 bits:
/// 13 years.
#[derive(Debug)]
pub struct Wheel {
    slots: [List; SLOTS],
    /// A bit for each slot that has members.
    occupied: [u64; WORDS],
    /// What is left of the slot that was being looked through when the budget ended. Its members
    /// are still in the books under their slot; only a head may be here instead of there.
    pending: List,
    /// Every slot up to this tick's has been emptied of what was due. No timer is set at or
    /// before it.
    tick: u32,
    /// Timers set.
    len: usize,
}

impl Wheel {
    /// An empty wheel.
    pub fn new(now: Millis) -> Self {
        Self {
            slots: [const { List::new() }; SLOTS],
            occupied: [0; WORDS],
            pending: List::new(),
            tick: passed(now),
            len: 0,
        }
    }

    /// Timers set.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without timers.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the timer of a record that has none. One that is overdue fires with the next tick, so
    /// that a turn that sets timers ends.
    pub fn insert(&mut self, table: &mut impl TimerTable, index: u32, deadline: Millis) {
        assert!(*table.deadline_tick(index) == 0, "record {index} has a timer");
        let tick = due(deadline).max(self.tick.saturating_add(1));
        *table.deadline_tick(index) = tick;
        self.put(table, index, tick);
        self.len += 1;
    }

    /// Cancels a record's timer; false when it has none. Must be done before the record goes.
    pub fn remove(&mut self, table: &mut impl TimerTable, index: u32) -> bool {
        let tick = std::mem::take(table.deadline_tick(index));
        if tick == 0 {
            return false;
        }
        let slot = slot_of(tick);
        let next = unlink(table, index);
        // In a ring of one the member is the head, so that asking the heads is enough.
        if self.pending.head == index {
            self.pending.head = next;
        } else if self.slots[slot].head == index {
            self.slots[slot].head = next;
            self.mark(slot);
        }
        self.len -= 1;
        true
    }

    /// Sets or moves the timer of a record.
    pub fn set(&mut self, table: &mut impl TimerTable, index: u32, deadline: Millis) {
        // Often the same tick as before: nothing to relink then.
        let tick = *table.deadline_tick(index);
        if tick != 0 && tick == due(deadline) {
            return;
        }
        self.remove(table, index);
        self.insert(table, index, deadline);
    }

    /// Takes out one timer that is due; `None` when none is, or when `budget` (records looked at)
    /// is used up. The caller handles it and asks again, so nothing is held that a handler could
    /// make stale; with `budget == 0` there may be more, and it comes back next turn.
    ///
    /// In the order of ticks, except after a jump of more than a lap; within a tick as set.
    pub fn pop_expired(
        &mut self,
        now: Millis,
        table: &mut impl TimerTable,
        budget: &mut usize,
    ) -> Option<u32> {
        let now_tick = passed(now);
        if now_tick <= self.tick && self.pending.is_empty() {
            return None;
        }
        loop {
            while *budget > 0 {
                let Some(index) = self.pending.pop_front(table) else { break };
                *budget -= 1;
                let tick = *table.deadline_tick(index);
                if tick <= now_tick {
                    *table.deadline_tick(index) = 0;
                    self.len -= 1;
                    return Some(index);
                }
                self.put(table, index, tick);
            }
            if *budget == 0 || !self.turn(now_tick) {
                return None;
            }
        }
    }

    /// When [`pop_expired`](Self::pop_expired) next has something to look at; `None` without timers.
    ///
    /// Exact within the lap. A slot that holds timers of later laps only costs a wake-up in each lap.
    pub fn next_deadline(&self) -> Option<Millis> {
        if !self.pending.is_empty() {
            return Some(moment(self.tick));
        }
        self.ticks_to_occupied().map(|ticks| moment(self.tick.saturating_add(ticks)))
    }

    /// Turns to the next occupied slot up to `now_tick` and takes its members into `pending`, which
    /// is empty; false when there is none.
    fn turn(&mut self, now_tick: u32) -> bool {
        // The last lap before now passes every slot, so that a jump costs one lap and not many.
        self.tick = self.tick.max(now_tick.saturating_sub(SLOTS as u32));
        let tick = self.ticks_to_occupied().map(|ticks| self.tick.saturating_add(ticks));
        match tick {
            Some(tick) if tick <= now_tick => {
                self.tick = tick;
                let slot = slot_of(tick);
                self.pending = std::mem::take(&mut self.slots[slot]);
                self.mark(slot);
                true
            }
            _ => {
                self.tick = self.tick.max(now_tick);
                false
            }
        }
    }

    /// Ticks from the current one (excluded) to the next with an occupied slot: 1..=SLOTS.
    fn ticks_to_occupied(&self) -> Option<u32> {
        let first = slot_of(self.tick.wrapping_add(1));
        let (word, bit) = (first / 64, first % 64);
        // The first word twice: its bits from `bit` on at first, those below in the end.
        for step in 0..=WORDS {
            let at = (word + step) % WORDS;
            let mask = match step {
                0 => u64::MAX << bit,
                WORDS => !(u64::MAX << bit),
                _ => u64::MAX,
            };
            let bits = self.occupied[at] & mask;
            if bits != 0 {
                let slot = at * 64 + bits.trailing_zeros() as usize;
                return Some((slot + SLOTS - first) as u32 % SLOTS as u32 + 1);
            }
        }
        None
    }

    fn put(&mut self, table: &mut impl TimerTable, index: u32, tick: u32) {
        let slot = slot_of(tick);
        self.slots[slot].push_back(table, index);
        self.mark(slot);
    }

    /// Keeps the bit of a slot true.
    fn mark(&mut self, slot: usize) {
        let bit = 1 << (slot % 64);
        if self.slots[slot].is_empty() {
            self.occupied[slot / 64] &= !bit;
        } else {
            self.occupied[slot / 64] |= bit;
        }
    }
}

fn slot_of(tick: u32) -> usize {
    tick as usize % SLOTS
}

/// The last tick that has passed: rounded down.
fn passed(now: Millis) -> u32 {
    u32::try_from(now.0 / TICK_MS).unwrap_or(u32::MAX)
}

/// The tick at which a deadline is over: rounded up.
fn due(deadline: Millis) -> u32 {
    u32::try_from(deadline.0.div_ceil(TICK_MS)).unwrap_or(u32::MAX)
}

fn moment(tick: u32) -> Millis {
    Millis(u64::from(tick) * TICK_MS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use slab::Slab;

    use super::*;

    /// A record as a shard may have it.
    #[derive(Default)]
    struct Conn {
        links: Links,
        deadline_tick: u32,
        _more: [u32; 13],
    }

    const _: () = assert!(size_of::<Conn>() == 64);

    impl LinkTable for Slab<Conn> {
        fn links(&mut self, index: u32) -> &mut Links {
            &mut self[index as usize].links
        }
    }

    impl TimerTable for Slab<Conn> {
        fn deadline_tick(&mut self, index: u32) -> &mut u32 {
            &mut self[index as usize].deadline_tick
        }
    }

    fn slab(count: usize) -> Slab<Conn> {
        (0..count).map(|index| (index, Conn::default())).collect()
    }

    /// Members of a list, after a check of every link.
    fn members(list: &List, table: &Slab<Conn>) -> Vec<u32> {
        let mut members = Vec::new();
        let mut at = list.head;
        while at != NONE && members.len() < table.len() {
            members.push(at);
            let next = table[at as usize].links.next;
            assert_eq!(table[next as usize].links.prev, at);
            at = if next == list.head { NONE } else { next };
        }
        members
    }

    /// All that is due, with no bound.
    fn drain(wheel: &mut Wheel, now: u64, table: &mut Slab<Conn>) -> Vec<u32> {
        let mut budget = usize::MAX;
        std::iter::from_fn(|| wheel.pop_expired(Millis(now), table, &mut budget)).collect()
    }

    #[test]
    fn a_list_is_first_in_first_out() {
        let mut table = slab(5);
        let mut list = List::new();
        assert_eq!(list.pop_front(&mut table), None);
        for index in [3, 0, 4, 1] {
            list.push_back(&mut table, index);
        }
        assert_eq!(members(&list, &table), [3, 0, 4, 1]);
        list.remove(&mut table, 4);
        list.remove(&mut table, 3);
        assert_eq!(members(&list, &table), [0, 1]);
        list.push_back(&mut table, 4);
        assert_eq!(list.pop_front(&mut table), Some(0));
        assert_eq!(list.pop_front(&mut table), Some(1));
        assert_eq!(list.head(), Some(4));
        list.remove(&mut table, 4);
        assert!(list.is_empty());
        assert!(table.iter().all(|(_, conn)| !conn.links.is_linked()));
    }

    #[test]
    fn a_timer_fires_at_the_tick_after_its_deadline_and_not_before() {
        for (deadline, fires) in [(1, 100), (100, 100), (101, 200), (25_000, 25_000)] {
            let mut table = slab(1);
            let mut wheel = Wheel::new(Millis(0));
            assert_eq!(wheel.next_deadline(), None);
            wheel.insert(&mut table, 0, Millis(deadline));
            assert_eq!(wheel.next_deadline(), Some(Millis(fires)), "{deadline}");
            assert!(drain(&mut wheel, fires - 1, &mut table).is_empty());
            assert_eq!(drain(&mut wheel, fires, &mut table), [0]);
            assert!(wheel.is_empty());
            assert_eq!(wheel.next_deadline(), None);
            assert_eq!(wheel.occupied, [0; WORDS]);
        }
    }

    #[test]
    fn an_overdue_timer_fires_with_the_next_tick() {
        let mut table = slab(1);
        let mut wheel = Wheel::new(Millis(5_000));
        wheel.insert(&mut table, 0, Millis(0));
        assert!(drain(&mut wheel, 5_000, &mut table).is_empty());
        assert_eq!(wheel.next_deadline(), Some(Millis(5_100)));
        assert_eq!(drain(&mut wheel, 5_100, &mut table), [0]);
    }

    #[test]
    fn a_later_lap_costs_a_look_in_each() {
        let lap = SLOTS as u64 * TICK_MS;
        let mut table = slab(1);
        let mut wheel = Wheel::new(Millis(0));
        wheel.insert(&mut table, 0, Millis(3 * lap + 700));
        for turn in 0..3 {
            let wake = Millis(turn * lap + 700);
            assert_eq!(wheel.next_deadline(), Some(wake));
            let mut budget = 10;
            assert_eq!(wheel.pop_expired(wake, &mut table, &mut budget), None);
            assert_eq!(budget, 9);
        }
        assert_eq!(wheel.next_deadline(), Some(Millis(3 * lap + 700)));
        assert_eq!(drain(&mut wheel, 3 * lap + 700, &mut table), [0]);
    }

    #[test]
    fn a_jump_of_years_takes_one_lap() {
        let mut table = slab(3);
        let mut wheel = Wheel::new(Millis(0));
        let years = 10 * 365 * 24 * 3600 * 1000;
        wheel.insert(&mut table, 0, Millis(25_000));
        wheel.insert(&mut table, 1, Millis(years - 1));
        wheel.insert(&mut table, 2, Millis(years + 1));
        let mut budget = 4;
        let mut fired = Vec::new();
        while let Some(index) = wheel.pop_expired(Millis(years), &mut table, &mut budget) {
            fired.push(index);
        }
        fired.sort_unstable();
        assert_eq!(fired, [0, 1]);
        // Each was looked at once.
        assert_eq!(budget, 1);
        assert_eq!(drain(&mut wheel, years + 100, &mut table), [2]);
    }

    #[test]
    fn the_furthest_deadline_is_thirteen_years_away() {
        let mut table = slab(1);
        let mut wheel = Wheel::new(Millis(0));
        wheel.insert(&mut table, 0, Millis(u64::MAX));
        let years = 13 * 365 * 24 * 3600 * 1000;
        assert!(drain(&mut wheel, years, &mut table).is_empty());
        assert!(wheel.remove(&mut table, 0));
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn a_mass_expiry_goes_in_batches_in_order() {
        let mut table = slab(100);
        let mut wheel = Wheel::new(Millis(0));
        for index in 0..100 {
            wheel.insert(&mut table, index, Millis(1_000 + u64::from(index / 40)));
        }
        let mut fired = Vec::new();
        let mut turns = 0;
        while !wheel.is_empty() {
            assert!(wheel.next_deadline().is_some_and(|wake| wake <= Millis(2_000)));
            let mut budget = 7;
            while let Some(index) = wheel.pop_expired(Millis(2_000), &mut table, &mut budget) {
                fired.push(index);
            }
            turns += 1;
        }
        assert_eq!(turns, 15);
        assert_eq!(fired, (0..100).collect::<Vec<_>>());
    }

    /// What may be done to a wheel.
    #[derive(Clone, Debug)]
    enum Op {
        /// Set a record's timer so many milliseconds from now (or before: overdue).
        Set(u32, i64),
        Remove(u32),
        /// Time goes on.
        Advance(u64),
        /// A turn with so large a budget.
        Expire(usize),
        Drain,
    }

    const RECORDS: u32 = 24;

    fn op() -> impl Strategy<Value = Op> {
        let near = -2_000i64..60_000;
        let laps = 0i64..400_000;
        prop_oneof![
            4 => (0..RECORDS, near).prop_map(|(index, delta)| Op::Set(index, delta)),
            // Few slots, so that laps meet.
            2 => (0..RECORDS, 0i64..6).prop_map(|(index, lap)| Op::Set(index, lap * 51_200 + 100)),
            1 => (0..RECORDS, laps).prop_map(|(index, delta)| Op::Set(index, delta)),
            2 => (0..RECORDS).prop_map(Op::Remove),
            3 => (0u64..2_000).prop_map(Op::Advance),
            1 => (0u64..300_000).prop_map(Op::Advance),
            4 => (0usize..5).prop_map(Op::Expire),
            2 => Just(Op::Drain),
        ]
    }

    /// What is known of a timer: not before `due`, and not later than at `latest`, in ticks.
    #[derive(Clone, Copy)]
    struct Timer {
        due: u64,
        latest: u64,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn the_wheel_equals_a_plain_list(
            start in 0u64..1_000_000,
            ops in prop::collection::vec(op(), 1..120),
        ) {
            let mut table = slab(RECORDS as usize);
            let mut wheel = Wheel::new(Millis(start));
            let mut model = [None::<Timer>; RECORDS as usize];
            let mut now = start;
            let mut seen_tick = now / TICK_MS;
            for op in ops {
                let budget = match op {
                    Op::Set(index, delta) => {
                        let deadline = now.saturating_add_signed(delta);
                        wheel.set(&mut table, index, Millis(deadline));
                        let due = deadline.div_ceil(TICK_MS);
                        model[index as usize] = Some(Timer { due, latest: due.max(seen_tick + 1) });
                        None
                    }
                    Op::Remove(index) => {
                        let had = model[index as usize].take().is_some();
                        prop_assert_eq!(wheel.remove(&mut table, index), had);
                        None
                    }
                    Op::Advance(by) => {
                        now += by;
                        None
                    }
                    Op::Expire(budget) => Some(budget),
                    Op::Drain => Some(usize::MAX),
                };
                if let Some(budget) = budget {
                    let mut left = budget;
                    seen_tick = now / TICK_MS;
                    while let Some(index) = wheel.pop_expired(Millis(now), &mut table, &mut left) {
                        let timer = model[index as usize].take();
                        prop_assert!(timer.is_some_and(|timer| timer.due <= seen_tick), "{index}");
                    }
                    // Nothing due is left behind unless the budget ended.
                    let late = model.iter().flatten().any(|timer| timer.latest <= seen_tick);
                    prop_assert!(left == 0 || !late);
                }
                // The shard never sleeps past a timer (not at all when one is late already), and
                // for ever only without one.
                let first = model.iter().flatten().map(|timer| timer.latest * TICK_MS).min();
                let wake = wheel.next_deadline();
                prop_assert_eq!(wake.is_some(), first.is_some());
                prop_assert!(wake.map(|wake| wake.0) <= first.map(|first| first.max(now)));
                prop_assert_eq!(wheel.len(), model.iter().flatten().count());
                check(&wheel, &table);
            }
        }
    }

    /// Every record is in the list and slot that its tick says, or in none.
    fn check(wheel: &Wheel, table: &Slab<Conn>) {
        let mut found = Vec::new();
        for (slot, list) in wheel.slots.iter().enumerate() {
            let bit = wheel.occupied[slot / 64] >> (slot % 64) & 1;
            assert_eq!(bit == 0, list.is_empty(), "slot {slot}");
            for index in members(list, table) {
                let tick = table[index as usize].deadline_tick;
                assert!(tick > 0 && slot_of(tick) == slot);
                found.push(index);
            }
        }
        found.extend(members(&wheel.pending, table));
        found.sort_unstable();
        let linked: Vec<_> = table
            .iter()
            .filter(|(_, conn)| conn.links.is_linked())
            .map(|(index, conn)| {
                assert!(conn.deadline_tick > 0);
                index as u32
            })
            .collect();
        assert_eq!(found, linked);
        assert!(table.iter().all(|(_, conn)| conn.links.is_linked() == (conn.deadline_tick > 0)));
    }
}
