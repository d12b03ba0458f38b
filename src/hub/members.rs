//! The members of a channel: the content of `presence`, and its exact counts (client protocol, 17).
//!
//! Kept at a channel's home, which hears of every subscribe and unsubscribe in order.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::names::NameHasher;
use super::users::{Sessions, UserLinks, Users};
use crate::base::id::{ConnKey, ShardId};
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, durable};
use crate::base::info::ClientInfo;

/// A connection of any shard, as a channel's home names it. Shape: 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Where the connection is.
    pub shard: ShardId,
    /// Which one there.
    pub conn: ConnKey,
}

/// The record of a member that has gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its packed [`ClientInfo`].
    pub info: Box<[u8]>,
    /// It makes join and leave events.
    pub announces: bool,
}

/// The members of one channel. Default: nobody, and no heap.
///
/// Shape: 24 bytes. A lone member is in there; its info is the only allocation. Two to eight are
/// in a list of 24 bytes each, searched from end to end. More have 8 bytes of links in addition,
/// and two tables, by member and by user, of 5 bytes a place, 44 to 87 % of them in use: 46 to 57
/// bytes a member beside its info, and up to 8 more while the channel grows. All of it is given
/// back as members go.
///
/// Joining and leaving cost the same whatever the number of members: a few look-ups in tables; what
/// moves when tables and lists grow and shrink is spread over the joins and leaves that made it
/// necessary.
#[derive(Default)]
pub struct Members(Held);

enum Held {
    One(Entry),
    Several(Option<Box<Several>>),
}

impl Default for Held {
    fn default() -> Self {
        Self::Several(None)
    }
}

/// Members that are searched from end to end, at most; the tables go when it is half of that.
const FEW_MAX: usize = 8;

/// A member: the connection, and `record`: the info's bytes, the number of the shard, the flags.
/// The last two are there because beside them they would take 8 bytes.
struct Entry {
    conn: ConnKey,
    record: Box<[u8]>,
}

durable!(Entry { conn, record });

const _: () = assert!(size_of::<Member>() == 12);
const _: () = assert!(size_of::<Entry>() == 24);
const _: () = assert!(size_of::<Members>() == 24);
const _: () = assert!(size_of::<Several>() == 40);
const _: () = assert!(size_of::<UserLinks>() == 8);

/// Flag: it counts in presence.
const PRESENT: u8 = 1;
/// Flag: it makes join and leave events.
const ANNOUNCES: u8 = 2;

/// Two members and more. `present <= entries.len()`; `index` is there from the first moment with
/// more than [`FEW_MAX`] of them.
#[derive(Default)]
struct Several {
    entries: Vec<Entry>,
    present: u32,
    index: Option<Box<Index>>,
}

/// How members are found among many. `links.len() == places.len() == entries.len()`.
#[derive(Default)]
struct Index {
    /// By member: places in `entries`.
    places: HashTable<u32>,
    /// By user, the present ones only.
    users: Users,
    links: Vec<UserLinks>,
}

impl Members {
    /// Adds a member. One that is there already is taken out first: the latest counts.
    ///
    /// `info` is a packed [`ClientInfo`]. `present`: presence shows and counts it. `announces`: it
    /// makes join and leave events.
    pub fn insert(
        &mut self,
        names: &NameHasher,
        member: Member,
        info: &[u8],
        present: bool,
        announces: bool,
    ) {
        self.remove(names, member);
        let flags = (u8::from(present) * PRESENT) | (u8::from(announces) * ANNOUNCES);
        self.push(names, Entry { conn: member.conn, record: record(info, member.shard, flags) });
    }

    fn push(&mut self, names: &NameHasher, entry: Entry) {
        self.0 = match std::mem::take(&mut self.0) {
            Held::Several(None) => Held::One(entry),
            Held::One(first) => {
                let mut several = Box::<Several>::default();
                several.add(names, first);
                several.add(names, entry);
                Held::Several(Some(several))
            }
            Held::Several(Some(mut several)) => {
                several.add(names, entry);
                Held::Several(Some(several))
            }
        };
    }

    /// Takes a member out; `None` when it isn't there.
    pub fn remove(&mut self, names: &NameHasher, member: Member) -> Option<Left> {
        let place = self.find(member)?;
        if let Held::Several(Some(several)) = &mut self.0 {
            let gone = several.take(names, place);
            if several.entries.len() == 1
                && let Some(last) = several.entries.pop()
            {
                self.0 = Held::One(last);
            }
            return Some(gone.left());
        }
        match std::mem::take(&mut self.0) {
            Held::One(gone) => Some(gone.left()),
            Held::Several(_) => None,
        }
    }

    /// A member's info is another one now, which keeps the time of the subscription; nothing happens when the
    /// member isn't there. Where presence shows the member: whether it makes join and leave events, and its
    /// info.
    pub fn replace_info(
        &mut self,
        names: &NameHasher,
        member: Member,
        info: &[u8],
    ) -> Option<(bool, &[u8])> {
        let place = self.find(member)?;
        match &mut self.0 {
            Held::One(entry) => entry.replace_info(info),
            Held::Several(Some(several)) => several.replace_info(names, place, info),
            Held::Several(None) => {}
        }
        let replaced = self.entries().get(place).filter(|entry| entry.is_present());
        replaced.map(|entry| (entry.announces(), entry.info()))
    }

    /// Members, present or not.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Nobody is here.
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// Present ones.
    pub fn clients(&self) -> u32 {
        match &self.0 {
            Held::One(entry) => u32::from(entry.is_present()),
            Held::Several(several) => several.as_ref().map_or(0, |several| several.present),
        }
    }

    /// Distinct users among the present ones; the empty user id is one of them.
    pub fn users(&self) -> u32 {
        if let Held::Several(Some(several)) = &self.0
            && let Some(index) = &several.index
        {
            return index.users.len() as u32;
        }
        let few = self.entries();
        let counts = |(place, entry): &(usize, &Entry)| {
            let same = |other: &Entry| other.is_present() && other.user() == entry.user();
            entry.is_present() && !few[..*place].iter().any(same)
        };
        few.iter().enumerate().filter(counts).count() as u32
    }

    /// The packed [`ClientInfo`] of each present one, in no order.
    pub fn present(&self) -> impl Iterator<Item = &[u8]> {
        self.entries().iter().filter(|entry| entry.is_present()).map(Entry::info)
    }

    /// The same, and whether each makes join and leave events.
    pub fn present_and_announcing(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let present = self.entries().iter().filter(|entry| entry.is_present());
        present.map(|entry| (entry.info(), entry.announces()))
    }

    /// Writes all of them, in their order.
    pub fn write(&self, out: &mut ImageWriter) {
        let entries = self.entries();
        out.count(entries.len());
        Entry::write_all(entries, out);
    }

    /// Reads what [`Self::write`] writes; the tables are made anew.
    ///
    /// # Errors
    /// The bytes are none of that, or name a member twice.
    pub fn read(from: &mut ImageReader<'_>, names: &NameHasher) -> Result<Self, Broken> {
        let mut members = Self::default();
        for _ in 0..from.count()? {
            let entry = Entry::read(from)?;
            if entry.record.len() < 2 || members.find(entry.member()).is_some() {
                return Err(Broken::Value("a member"));
            }
            members.push(names, entry);
        }
        Ok(members)
    }

    fn entries(&self) -> &[Entry] {
        match &self.0 {
            Held::One(entry) => std::slice::from_ref(entry),
            Held::Several(Some(several)) => &several.entries,
            Held::Several(None) => &[],
        }
    }

    fn find(&self, member: Member) -> Option<usize> {
        let entries = self.entries();
        let is_it = |entry: &Entry| entry.conn == member.conn && entry.member() == member;
        if let Held::Several(Some(several)) = &self.0
            && let Some(index) = &several.index
        {
            let found = index.places.find(hash(member), |place| is_it(&entries[*place as usize]));
            return found.map(|place| *place as usize);
        }
        entries.iter().position(is_it)
    }
}

/// Keys are given out by shards, and not chosen by clients, so that a fixed seed will do.
fn hash(member: Member) -> u64 {
    FixedState::default().hash_one(member)
}

fn record(info: &[u8], shard: ShardId, flags: u8) -> Box<[u8]> {
    [info, &[shard.0, flags]].concat().into_boxed_slice()
}

impl Entry {
    /// Info, number of the shard, flags.
    fn parts(&self) -> (&[u8], u8, u8) {
        match &*self.record {
            [info @ .., shard, flags] => (info, *shard, *flags),
            // `record` puts two bytes behind every info.
            _ => (&[], 0, 0),
        }
    }

    fn info(&self) -> &[u8] {
        self.parts().0
    }

    fn member(&self) -> Member {
        Member { shard: ShardId(self.parts().1), conn: self.conn }
    }

    fn is_present(&self) -> bool {
        self.parts().2 & PRESENT != 0
    }

    fn announces(&self) -> bool {
        self.parts().2 & ANNOUNCES != 0
    }

    fn user(&self) -> &str {
        ClientInfo::unpack(self.info()).map_or("", |info| info.user)
    }

    fn replace_info(&mut self, info: &[u8]) {
        let (before, shard, flags) = self.parts();
        let subscribed_at = ClientInfo::unpack(before).map_or(0, |before| before.subscribed_at);
        let timed = ClientInfo::unpack(info).filter(|_| subscribed_at != 0);
        let timed = timed.map(|info| ClientInfo { subscribed_at, ..info }.pack());
        self.record = record(timed.as_deref().unwrap_or(info), ShardId(shard), flags);
    }

    fn left(self) -> Left {
        let (info, _, flags) = self.parts();
        let (info_bytes, announces) = (info.len(), flags & ANNOUNCES != 0);
        let mut info = self.record.into_vec();
        info.truncate(info_bytes);
        Left { info: info.into_boxed_slice(), announces }
    }
}

impl Several {
    fn add(&mut self, names: &NameHasher, entry: Entry) {
        self.present += u32::from(entry.is_present());
        let place = self.entries.len();
        push(&mut self.entries, entry);
        match &mut self.index {
            Some(index) => {
                push(&mut index.links, UserLinks::default());
                index.insert(names, &self.entries, place);
            }
            None if self.entries.len() > FEW_MAX => self.index = Some(self.indexed(names)),
            None => {}
        }
    }

    /// Takes out the one at `place`; the last one moves there.
    fn take(&mut self, names: &NameHasher, place: usize) -> Entry {
        let last = self.entries.len() - 1;
        if let Some(index) = &mut self.index {
            index.remove(names, &self.entries, place);
            if place != last {
                index.remove(names, &self.entries, last);
            }
        }
        let gone = self.entries.swap_remove(place);
        self.present -= u32::from(gone.is_present());
        if let Some(index) = &mut self.index {
            index.links.truncate(last);
            if place != last {
                index.insert(names, &self.entries, place);
            }
        }
        self.shrink(names);
        gone
    }

    fn shrink(&mut self, names: &NameHasher) {
        if self.entries.len() <= FEW_MAX / 2 {
            self.index = None;
        }
        if self.entries.len() * 4 < self.entries.capacity() {
            self.entries.shrink_to(self.entries.len() * 2);
            // Made anew: the table of users knows no way to become smaller.
            if self.index.take().is_some() {
                self.index = Some(self.indexed(names));
            }
        }
    }

    fn replace_info(&mut self, names: &NameHasher, place: usize, info: &[u8]) {
        // The user should be the same; if it isn't, the counts are still true.
        if let Some(index) = &mut self.index {
            index.remove(names, &self.entries, place);
        }
        self.entries[place].replace_info(info);
        if let Some(index) = &mut self.index {
            index.insert(names, &self.entries, place);
        }
    }

    fn indexed(&self, names: &NameHasher) -> Box<Index> {
        let count = self.entries.len();
        let mut index = Box::new(Index {
            places: HashTable::with_capacity(count),
            users: Users::default(),
            links: vec![UserLinks::default(); count],
        });
        (0..count).for_each(|place| index.insert(names, &self.entries, place));
        index
    }
}

impl Index {
    fn insert(&mut self, names: &NameHasher, entries: &[Entry], place: usize) {
        let hash_at = |place: &u32| hash(entries[*place as usize].member());
        self.places.insert_unique(hash_at(&(place as u32)), place as u32, hash_at);
        if entries[place].is_present() {
            let links = &mut self.links;
            self.users.insert(place as u32, &mut Present { names, entries, links });
        }
    }

    fn remove(&mut self, names: &NameHasher, entries: &[Entry], place: usize) {
        let hash = hash(entries[place].member());
        if let Ok(found) = self.places.find_entry(hash, |at| *at as usize == place) {
            found.remove();
        }
        if entries[place].is_present() {
            let links = &mut self.links;
            self.users.remove(place as u32, &mut Present { names, entries, links });
        }
    }
}

/// Grows by a quarter, and by one at first: most channels have few members, and of a large one's
/// memory little shall be idle. 4 copies a member, however many there are.
fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact((list.len() / 4).max(1));
    }
    list.push(item);
}

/// The present members as [`Users`] wants to see them.
struct Present<'a> {
    names: &'a NameHasher,
    entries: &'a [Entry],
    links: &'a mut [UserLinks],
}

impl Sessions for Present<'_> {
    fn user_hash(&self, session: u32) -> u64 {
        self.names.hash(self.entries[session as usize].user())
    }

    fn same_user(&self, a: u32, b: u32) -> bool {
        self.entries[a as usize].user() == self.entries[b as usize].user()
    }

    fn links(&mut self, session: u32) -> &mut UserLinks {
        &mut self.links[session as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn member(shard: u8, index: u32, generation: u32) -> Member {
        let generation = NonZeroU32::new(generation).unwrap();
        Member { shard: ShardId(shard), conn: ConnKey { index, generation } }
    }

    fn info(user: u8, note: u8) -> Box<[u8]> {
        // User 0 is the anonymous one.
        let user = if user == 0 { String::new() } else { user.to_string() };
        ClientInfo { user: &user, client: "c", conn_info: &[note], ..<_>::default() }.pack()
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert { key: (u8, u32, u32), user: u8, present: bool, announces: bool },
        Remove((u8, u32, u32)),
        RemoveNth(usize),
        ReplaceInfo((u8, u32, u32), u8),
    }

    fn ops(shards: u8, slots: u32) -> impl Strategy<Value = Vec<Op>> {
        let key = (0..shards, 0..slots, 1..3u32);
        let insert = (key.clone(), 0..6u8, any::<bool>(), any::<bool>()).prop_map(
            |(key, user, quiet, announces)| {
                // Three of four are present.
                Op::Insert { key, user, present: !quiet || announces, announces }
            },
        );
        // Filling comes before emptying, so that all sizes are met on the way up and down.
        let fill = prop_oneof![
            8 => insert.clone(),
            1 => key.clone().prop_map(Op::Remove),
            1 => (key.clone(), any::<u8>()).prop_map(|(key, note)| Op::ReplaceInfo(key, note)),
        ];
        let empty = prop_oneof![
            1 => insert,
            1 => key.clone().prop_map(Op::Remove),
            8 => any::<usize>().prop_map(Op::RemoveNth),
            1 => (key, any::<u8>()).prop_map(|(key, note)| Op::ReplaceInfo(key, note)),
        ];
        let fill = proptest::collection::vec(fill, 1..150);
        let empty = proptest::collection::vec(empty, 1..150);
        (fill, empty).prop_map(|(mut fill, mut empty)| {
            fill.append(&mut empty);
            fill
        })
    }

    struct Known {
        user: u8,
        info: Box<[u8]>,
        present: bool,
        announces: bool,
    }

    // Against plain maps.
    fn check(ops: Vec<Op>) -> Result<(), TestCaseError> {
        let names = NameHasher::new(1, 1);
        let mut members = Members::default();
        let mut model: BTreeMap<(u8, u32, u32), Known> = BTreeMap::new();
        for op in ops {
            let op = match op {
                Op::RemoveNth(nth) => match model.keys().nth(nth % model.len().max(1)) {
                    Some(key) => Op::Remove(*key),
                    None => continue,
                },
                op => op,
            };
            match op {
                Op::Insert { key, user, present, announces } => {
                    let info = info(user, 0);
                    let (shard, index, generation) = key;
                    let member = member(shard, index, generation);
                    members.insert(&names, member, &info, present, announces);
                    model.insert(key, Known { user, info, present, announces });
                }
                Op::Remove(key) => {
                    let left = members.remove(&names, member(key.0, key.1, key.2));
                    let known = model.remove(&key);
                    let known = known.map(|k| Left { info: k.info, announces: k.announces });
                    prop_assert_eq!(left, known);
                }
                Op::ReplaceInfo(key, note) => {
                    let user = model.get(&key).map_or(0, |known| known.user);
                    let info = info(user, note);
                    members.replace_info(&names, member(key.0, key.1, key.2), &info);
                    if let Some(known) = model.get_mut(&key) {
                        known.info = info;
                    }
                }
                Op::RemoveNth(_) => {}
            }
            let present = || model.values().filter(|known| known.present);
            let users: BTreeSet<u8> = present().map(|known| known.user).collect();
            prop_assert_eq!(members.len(), model.len());
            prop_assert_eq!(members.is_empty(), model.is_empty());
            prop_assert_eq!(members.clients() as usize, present().count());
            prop_assert_eq!(members.users() as usize, users.len());
            let mut found: Vec<&[u8]> = members.present().collect();
            let mut known: Vec<&[u8]> = present().map(|known| &*known.info).collect();
            found.sort_unstable();
            known.sort_unstable();
            prop_assert_eq!(found, known);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn few_members_equal_plain_maps(ops in ops(2, 3)) {
            check(ops)?;
        }

        #[test]
        fn many_members_equal_plain_maps(ops in ops(3, 20)) {
            check(ops)?;
        }
    }

    #[test]
    fn an_absent_member_cannot_leave() {
        let names = NameHasher::new(1, 1);
        let mut members = Members::default();
        assert_eq!(members.remove(&names, member(0, 1, 1)), None);
        members.insert(&names, member(0, 1, 1), &info(1, 0), true, true);
        for other in [member(1, 1, 1), member(0, 2, 1), member(0, 1, 2)] {
            members.replace_info(&names, other, &info(2, 9));
            assert_eq!(members.remove(&names, other), None);
        }
        let left = members.remove(&names, member(0, 1, 1)).unwrap();
        assert_eq!(left, Left { info: info(1, 0), announces: true });
        assert!(members.is_empty());
    }

    #[test]
    fn another_info_keeps_the_time_of_the_subscription() {
        let names = NameHasher::new(1, 1);
        let at = |note: u8, subscribed_at| {
            let conn_info = &[note];
            ClientInfo { user: "u", conn_info, subscribed_at, ..<_>::default() }.pack()
        };
        for others in [0, 1, 20] {
            let mut members = Members::default();
            for other in 0..others {
                members.insert(&names, member(1, other, 1), &info(1, 0), true, false);
            }
            members.insert(&names, member(0, 0, 1), &at(1, 70), true, true);
            let replaced = members.replace_info(&names, member(0, 0, 1), &at(2, 0));
            assert_eq!(replaced, Some((true, &*at(2, 70))));
            assert!(members.present().any(|info| *info == *at(2, 70)));
        }
    }

    #[test]
    fn a_user_that_changes_is_counted_as_the_new_one() {
        let names = NameHasher::new(1, 1);
        for count in [1, 2, 20] {
            let mut members = Members::default();
            for index in 0..count {
                members.insert(&names, member(0, index, 1), &info(1, 0), true, false);
            }
            assert_eq!(members.users(), 1);
            members.replace_info(&names, member(0, 0, 1), &info(2, 0));
            assert_eq!(members.users(), if count == 1 { 1 } else { 2 });
        }
    }

    #[test]
    fn memory_of_many_members_is_given_back() {
        let names = NameHasher::new(1, 1);
        let mut members = Members::default();
        for index in 0..2000 {
            members.insert(&names, member(0, index, 1), &info(index as u8, 0), true, false);
        }
        for index in 0..1980 {
            members.remove(&names, member(0, index, 1));
            let Held::Several(Some(several)) = &members.0 else { panic!("not several") };
            let index = several.index.as_ref().unwrap();
            let room = several.entries.len() * 4 + 1;
            assert!(several.entries.capacity() <= room);
            assert!(index.links.capacity() <= room);
            assert!(index.places.capacity() <= room * 2);
        }
        for index in 1980..1996 {
            members.remove(&names, member(0, index, 1));
        }
        let Held::Several(Some(several)) = &members.0 else { panic!("not several") };
        assert!(several.index.is_none());
        for index in 1996..1999 {
            members.remove(&names, member(0, index, 1));
        }
        assert!(matches!(members.0, Held::One(_)));
        members.remove(&names, member(0, 1999, 1));
        assert!(matches!(members.0, Held::Several(None)));
    }
}
