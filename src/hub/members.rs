//! The members of a channel: the content of `presence`, and its exact counts (client protocol, 17).
//!
//! Kept at a channel's home, which hears of every subscribe and unsubscribe in order.

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::num::NonZeroU32;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::names::NameHasher;
use super::users::{Sessions, UserLinks, Users};
use crate::base::chunks::Stack;
use crate::base::id::{ConnKey, ShardId};
use crate::base::image::{Broken, ImageReader, ImageWriter};
use crate::base::info::{ClientInfo, lengthen, short_user, shorten};

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
/// Shape: 24 bytes. A lone member is in there; its record is the only allocation. Two to eight are
/// in a list of 16 bytes each, searched from end to end. More are in a stack of 24 bytes each, with
/// links, and in two tables, by member and by user, of 5 bytes a place, 44 to 87 % of them in use: 35
/// to 47 bytes a member beside its record. All of it is given back as members go.
///
/// A record is one allocation. For a client of this node it has 30 bytes beside user id and infos
/// ([`shorten`]): 46 with a user id of 16 bytes, of which the allocator makes 48.
///
/// Joining and leaving cost the same whatever the number of members: a few look-ups in tables; what
/// moves when tables and lists grow and shrink is spread over the joins and leaves that made it
/// necessary.
#[derive(Default)]
pub struct Members(Held);

enum Held {
    One(Entry),
    Few(Vec<Entry>),
    Many(Box<Many>),
}

impl Default for Held {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

/// Members that are searched from end to end, at most; the tables go when it is half of that.
const FEW_MAX: usize = 8;

/// A member: its info, in short where that is possible, then the connection, the number of the shard, the
/// flags.
struct Entry(Box<[u8]>);

/// Bytes behind the info: index and generation of the connection, shard, flags.
const TAIL_BYTES: usize = 10;

const _: () = assert!(size_of::<Member>() == 12);
const _: () = assert!(size_of::<Entry>() == 16);
const _: () = assert!(size_of::<Members>() == 24);
const _: () = assert!(size_of::<Linked>() == 24);
const _: () = assert!(size_of::<UserLinks>() == 8);

/// Flag: it counts in presence.
const PRESENT: u8 = 1;
/// Flag: it makes join and leave events.
const ANNOUNCES: u8 = 2;
/// Flag: its info is in short.
const SHORT: u8 = 4;

/// A member among many, with its place in the chain of its user.
struct Linked {
    entry: Entry,
    links: UserLinks,
}

/// More members than are searched one by one, or half as many. The tables hold places in `entries`.
#[derive(Default)]
struct Many {
    entries: Stack<Linked>,
    present: u32,
    /// By member.
    places: HashTable<u32>,
    /// By user, the present ones only.
    users: Users,
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
        self.push(names, Entry::new(info, member, flags));
    }

    fn push(&mut self, names: &NameHasher, entry: Entry) {
        self.0 = match std::mem::take(&mut self.0) {
            Held::Few(few) if few.is_empty() => Held::One(entry),
            Held::One(first) => Held::Few(vec![first, entry]),
            Held::Few(few) if few.len() == FEW_MAX => {
                let mut many = Box::<Many>::default();
                few.into_iter().for_each(|entry| many.add(names, entry));
                many.add(names, entry);
                Held::Many(many)
            }
            Held::Few(mut few) => {
                few.reserve_exact(1);
                few.push(entry);
                Held::Few(few)
            }
            Held::Many(mut many) => {
                many.add(names, entry);
                Held::Many(many)
            }
        };
    }

    /// Takes a member out; `None` when it isn't there.
    pub fn remove(&mut self, names: &NameHasher, member: Member) -> Option<Left> {
        let place = self.find(member)?;
        let (held, gone) = match std::mem::take(&mut self.0) {
            Held::One(gone) => (Held::default(), Some(gone)),
            Held::Few(mut few) => {
                let gone = few.swap_remove(place);
                few.shrink_to_fit();
                let last = if few.len() == 1 { few.pop() } else { None };
                (last.map_or(Held::Few(few), Held::One), Some(gone))
            }
            Held::Many(mut many) => {
                let gone = many.take(names, place);
                match many.entries.len() > FEW_MAX / 2 {
                    true => (Held::Many(many), gone),
                    false => {
                        (Held::Few(many.entries.drain().map(|linked| linked.entry).collect()), gone)
                    }
                }
            }
        };
        self.0 = held;
        gone.map(|gone| gone.left())
    }

    /// A member's info is another one now, which keeps the time of the subscription; nothing happens when the
    /// member isn't there. Where presence shows the member: whether it makes join and leave events, and its
    /// info.
    pub fn replace_info(
        &mut self,
        names: &NameHasher,
        member: Member,
        info: &[u8],
    ) -> Option<(bool, Cow<'_, [u8]>)> {
        let place = self.find(member)?;
        match &mut self.0 {
            Held::One(entry) => entry.replace_info(info),
            Held::Few(few) => few[place].replace_info(info),
            Held::Many(many) => many.replace_info(names, place, info),
        }
        let replaced = self.get(place).filter(|entry| entry.is_present());
        replaced.map(|entry| (entry.announces(), entry.info()))
    }

    /// Whether it is here, present or not.
    pub fn has(&self, member: Member) -> bool {
        self.find(member).is_some()
    }

    /// Members, present or not.
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::One(_) => 1,
            Held::Few(few) => few.len(),
            Held::Many(many) => many.entries.len(),
        }
    }

    /// Nobody is here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Present ones.
    pub fn clients(&self) -> u32 {
        match &self.0 {
            Held::Many(many) => many.present,
            _ => self.entries().filter(|entry| entry.is_present()).count() as u32,
        }
    }

    /// Distinct users among the present ones; the empty user id is one of them.
    pub fn users(&self) -> u32 {
        let few = match &self.0 {
            Held::One(entry) => std::slice::from_ref(entry),
            Held::Few(few) => few,
            Held::Many(many) => return many.users.len() as u32,
        };
        let counts = |(place, entry): &(usize, &Entry)| {
            let same = |other: &Entry| other.is_present() && other.user() == entry.user();
            entry.is_present() && !few[..*place].iter().any(same)
        };
        few.iter().enumerate().filter(counts).count() as u32
    }

    /// The packed [`ClientInfo`] of each present one, in no order.
    pub fn present(&self) -> impl Iterator<Item = Cow<'_, [u8]>> {
        self.entries().filter(|entry| entry.is_present()).map(Entry::info)
    }

    /// The same, and whether each makes join and leave events.
    pub fn present_and_announcing(&self) -> impl Iterator<Item = (Cow<'_, [u8]>, bool)> {
        let present = self.entries().filter(|entry| entry.is_present());
        present.map(|entry| (entry.info(), entry.announces()))
    }

    /// Writes all of them, in their order.
    pub fn write(&self, out: &mut ImageWriter) {
        out.count(self.len());
        self.entries().for_each(|entry| entry.write(out));
    }

    /// Reads what [`Self::write`] writes; the tables are made anew.
    ///
    /// # Errors
    /// The bytes are none of that, or name a member twice.
    pub fn read(from: &mut ImageReader<'_>, names: &NameHasher) -> Result<Self, Broken> {
        let mut members = Self::default();
        for _ in 0..from.count()? {
            let entry = Entry::read(from)?;
            if members.find(entry.member()).is_some() {
                return Err(Broken::Value("a member"));
            }
            members.push(names, entry);
        }
        Ok(members)
    }

    /// All of them; a home with many has no slice of them.
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let (few, many) = match &self.0 {
            Held::One(entry) => (std::slice::from_ref(entry), None),
            Held::Few(few) => (&few[..], None),
            Held::Many(many) => (&[][..], Some(many)),
        };
        let many = many.into_iter().flat_map(|many| many.entries.iter());
        few.iter().chain(many.map(|linked| &linked.entry))
    }

    fn get(&self, place: usize) -> Option<&Entry> {
        match &self.0 {
            Held::One(entry) => Some(entry),
            Held::Few(few) => few.get(place),
            Held::Many(many) => Some(&many.entries[place].entry),
        }
    }

    fn find(&self, member: Member) -> Option<usize> {
        match &self.0 {
            Held::Many(many) => many.find(member),
            _ => self.entries().position(|entry| entry.member() == member),
        }
    }
}

/// Keys are given out by shards, and not chosen by clients, so that a fixed seed will do.
fn hash(member: Member) -> u64 {
    FixedState::default().hash_one(member)
}

impl Entry {
    /// A member with its packed info.
    fn new(info: &[u8], member: Member, flags: u8) -> Self {
        let short = shorten(info);
        let flags = if short.is_some() { flags | SHORT } else { flags & !SHORT };
        let ConnKey { index, generation } = member.conn;
        let (index, generation) = (index.to_le_bytes(), generation.get().to_le_bytes());
        let info = short.as_deref().unwrap_or(info);
        Self([info, &index, &generation, &[member.shard.0, flags]].concat().into_boxed_slice())
    }

    /// The info as it is kept, and what stands behind it.
    fn parts(&self) -> (&[u8], [u8; TAIL_BYTES]) {
        // Each was made by `new`: the other case is none.
        self.0.split_last_chunk().map_or((&[], [0; TAIL_BYTES]), |(info, tail)| (info, *tail))
    }

    fn flags(&self) -> u8 {
        self.parts().1[TAIL_BYTES - 1]
    }

    /// Its packed info.
    fn info(&self) -> Cow<'_, [u8]> {
        let (info, tail) = self.parts();
        match tail[TAIL_BYTES - 1] & SHORT {
            0 => Cow::Borrowed(info),
            _ => Cow::Owned(lengthen(info).into_vec()),
        }
    }

    fn member(&self) -> Member {
        let [a, b, c, d, e, f, g, h, shard, _] = self.parts().1;
        let generation = NonZeroU32::new(u32::from_le_bytes([e, f, g, h]));
        let generation = generation.unwrap_or(NonZeroU32::MIN);
        let conn = ConnKey { index: u32::from_le_bytes([a, b, c, d]), generation };
        Member { shard: ShardId(shard), conn }
    }

    fn is_present(&self) -> bool {
        self.flags() & PRESENT != 0
    }

    fn announces(&self) -> bool {
        self.flags() & ANNOUNCES != 0
    }

    fn user(&self) -> &str {
        let info = self.parts().0;
        match self.flags() & SHORT {
            0 => ClientInfo::unpack(info).map_or("", |info| info.user),
            _ => short_user(info),
        }
    }

    fn replace_info(&mut self, info: &[u8]) {
        let before = self.info();
        let subscribed_at = ClientInfo::unpack(&before).map_or(0, |before| before.subscribed_at);
        let timed = ClientInfo::unpack(info).filter(|_| subscribed_at != 0);
        let timed = timed.map(|info| ClientInfo { subscribed_at, ..info }.pack());
        *self = Self::new(timed.as_deref().unwrap_or(info), self.member(), self.flags());
    }

    fn left(&self) -> Left {
        Left { info: self.info().into_owned().into_boxed_slice(), announces: self.announces() }
    }

    /// Writes it as releases before this form did: the connection, then the packed info, shard and flags.
    fn write(&self, out: &mut ImageWriter) {
        let Member { shard, conn } = self.member();
        let record: Box<[u8]> = [&*self.info(), &[shard.0, self.flags() & !SHORT]].concat().into();
        out.field(&conn);
        out.field(&record);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let conn = from.field("Entry.conn")?;
        let record: Box<[u8]> = from.field("Entry.record")?;
        let [info @ .., shard, flags] = &*record else { return Err(Broken::Value("a member")) };
        Ok(Self::new(info, Member { shard: ShardId(*shard), conn }, *flags))
    }
}

impl Many {
    fn find(&self, member: Member) -> Option<usize> {
        let is_it = |place: &u32| self.entries[*place as usize].entry.member() == member;
        self.places.find(hash(member), is_it).map(|place| *place as usize)
    }

    fn add(&mut self, names: &NameHasher, entry: Entry) {
        self.present += u32::from(entry.is_present());
        self.entries.push(Linked { entry, links: UserLinks::default() });
        self.index(names, self.entries.len() - 1);
    }

    /// Takes out the one at `place`; the last one moves there.
    fn take(&mut self, names: &NameHasher, place: usize) -> Option<Entry> {
        let last = self.entries.len() - 1;
        self.forget(names, place);
        if place != last {
            self.forget(names, last);
        }
        let gone = self.entries.swap_remove(place)?.entry;
        self.present -= u32::from(gone.is_present());
        if place != last {
            self.index(names, place);
        }
        if self.entries.len() * 8 < self.places.capacity() {
            self.index_anew(names);
        }
        Some(gone)
    }

    fn replace_info(&mut self, names: &NameHasher, place: usize, info: &[u8]) {
        // The user should be the same; if it isn't, the counts are still true.
        self.forget(names, place);
        self.entries[place].entry.replace_info(info);
        self.index(names, place);
    }

    /// Makes the tables anew: that of users knows no way to become smaller.
    fn index_anew(&mut self, names: &NameHasher) {
        (self.places, self.users) = (HashTable::new(), Users::default());
        (0..self.entries.len()).for_each(|place| self.index(names, place));
    }

    /// Enters the one at `place` into the tables.
    fn index(&mut self, names: &NameHasher, place: usize) {
        let Self { entries, places, users, .. } = self;
        let hash_at = |place: &u32| hash(entries[*place as usize].entry.member());
        places.insert_unique(hash_at(&(place as u32)), place as u32, hash_at);
        if entries[place].entry.is_present() {
            users.insert(place as u32, &mut Present { names, entries });
        }
    }

    /// Takes the one at `place` out of the tables.
    fn forget(&mut self, names: &NameHasher, place: usize) {
        let Self { entries, places, users, .. } = self;
        let hash = hash(entries[place].entry.member());
        if let Ok(found) = places.find_entry(hash, |at| *at as usize == place) {
            found.remove();
        }
        if entries[place].entry.is_present() {
            users.remove(place as u32, &mut Present { names, entries });
        }
    }
}

/// The present members as [`Users`] wants to see them.
struct Present<'a> {
    names: &'a NameHasher,
    entries: &'a mut Stack<Linked>,
}

impl Present<'_> {
    fn user(&self, session: u32) -> &str {
        self.entries[session as usize].entry.user()
    }
}

impl Sessions for Present<'_> {
    fn user_hash(&self, session: u32) -> u64 {
        self.names.hash(self.user(session))
    }

    fn same_user(&self, a: u32, b: u32) -> bool {
        self.user(a) == self.user(b)
    }

    fn links(&mut self, session: u32) -> &mut UserLinks {
        &mut self.entries[session as usize].links
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::base::uuid;

    fn member(shard: u8, index: u32, generation: u32) -> Member {
        let generation = NonZeroU32::new(generation).unwrap();
        Member { shard: ShardId(shard), conn: ConnKey { index, generation } }
    }

    fn info(user: u8, note: u8) -> Box<[u8]> {
        // User 0 is the anonymous one.
        let user = if user == 0 { String::new() } else { user.to_string() };
        // Half of them have an id that this node gives.
        let client = uuid::to_text([note ^ 0x5a; 16]);
        let client = std::str::from_utf8(&client).unwrap();
        let client = if note.is_multiple_of(2) { client } else { "c" };
        ClientInfo { user: &user, client, conn_info: &[note], ..<_>::default() }.pack()
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
            let mut found: Vec<Cow<'_, [u8]>> = members.present().collect();
            let mut known: Vec<Cow<'_, [u8]>> =
                present().map(|known| (&*known.info).into()).collect();
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
            assert_eq!(replaced, Some((true, Cow::Borrowed(&*at(2, 70)))));
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
            let Held::Many(many) = &members.0 else { panic!("not many") };
            assert!(many.places.capacity() <= many.entries.len() * 8);
        }
        for index in 1980..1996 {
            members.remove(&names, member(0, index, 1));
        }
        let Held::Few(few) = &members.0 else { panic!("not few") };
        assert_eq!((few.len(), few.capacity()), (4, 4));
        for index in 1996..1999 {
            members.remove(&names, member(0, index, 1));
        }
        assert!(matches!(members.0, Held::One(_)));
        members.remove(&names, member(0, 1999, 1));
        assert!(matches!(&members.0, Held::Few(few) if few.capacity() == 0));
    }

    #[test]
    fn a_member_costs_what_the_documents_say() {
        let names = NameHasher::new(1, 1);
        let mut members = Members::default();
        let before = crate::sys::memory::requested_bytes();
        let count = 10_000;
        for index in 0..count {
            let client = uuid::to_text(u128::from(index).to_le_bytes());
            let client = std::str::from_utf8(&client).unwrap();
            let user = format!("{index:016}");
            let info = ClientInfo { user: &user, client, ..<_>::default() }.pack();
            members.insert(&names, member(0, index, 1), &info, true, false);
        }
        let held = crate::sys::memory::requested_bytes() - before;
        // Record 46, list 24, two tables of 16,384 places: 16.4; a chunk and the list of chunks beside that.
        assert!(held <= i64::from(count) * 85 + (40 << 10), "{}", held / i64::from(count));
    }
}
