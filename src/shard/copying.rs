//! A shard is written in slices: first while it runs, then once more when it has settled, and the second time only
//! what has changed meanwhile.
//!
//! ```text
//!  heads -> channels -> local channels -> sessions -> connections with their sockets -> (settled: the rest)
//! ```
//! What has changed is found by its bytes: each unit is written again and its hash compared with the one of before
//! ([`ImageWriter::unit`]). That costs a look at each connection in the freeze, and nothing
//! can be forgotten that a mark at each change could forget. So what is in the other process from the first time is
//! used only where its bytes are those of the last moment; TLS with its record numbers is a part of them.

use super::Shard;
use crate::base::id::ConnKey;
use crate::base::image::{ImageWriter, Written, kind};
use crate::base::time::Millis;
use crate::hub::home::image::ChannelsWritten;
use crate::io::Driver;

/// A part of a shard, for the other process. Keys come first, then sockets, then the records.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Connections whose sockets were sent and that have ended.
    pub gone: Vec<ConnKey>,
    /// Connections whose sockets go next.
    pub sockets: Vec<ConnKey>,
    /// A part of the image; empty where it has no records.
    pub part: Vec<u8>,
}

/// The bounds of a slice.
#[derive(Clone, Copy, Debug)]
pub struct SliceMax {
    /// Connections, and entries of other tables, that are looked at.
    pub entries: usize,
    /// Sockets.
    pub sockets: usize,
    /// Bytes of records, after which it ends.
    pub bytes: usize,
}

impl SliceMax {
    /// No bound.
    pub const NONE: Self = Self { entries: usize::MAX, sockets: usize::MAX, bytes: usize::MAX };
}

/// The next table to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Heads,
    Channels,
    Locals,
    Sessions,
    Conns,
    Rest,
    Done,
}

/// How far a shard is written.
pub(crate) struct Copying {
    out: ImageWriter,
    channels: ChannelsWritten,
    locals: Written,
    sessions: Written,
    conns: Written,
    /// The generations of the connections whose sockets were sent, by slot; 0 for none.
    sent: Vec<u32>,
    /// The shard has settled: all of it is written.
    is_last: bool,
    table: Table,
    /// The slot in that table.
    at: usize,
    /// The ends of the tables.
    ends: [usize; 4],
}

impl Copying {
    /// Nothing is written. Times are distances from `now`.
    pub(crate) fn new(now: Millis) -> Self {
        Self {
            out: ImageWriter::new(now),
            channels: ChannelsWritten::default(),
            locals: Written::default(),
            sessions: Written::default(),
            conns: Written::default(),
            sent: Vec::new(),
            is_last: false,
            table: Table::Heads,
            at: 0,
            ends: [0; 4],
        }
    }

    /// Begins once more. `is_last`: the shard has settled.
    pub(crate) fn begin_again(&mut self, is_last: bool) {
        (self.is_last, self.table, self.at) = (is_last, Table::Heads, 0);
    }

    /// Writes on, up to the bounds. `None`: it came to the end.
    pub(crate) fn next<D: Driver>(&mut self, shard: &mut Shard<D>, max: SliceMax) -> Option<Slice> {
        let mut slice = Slice { gone: self.take_closed(shard), ..Slice::default() };
        let mut entries = 0;
        while self.table != Table::Done
            && entries < max.entries
            && slice.sockets.len() < max.sockets
            && self.out.len() < max.bytes
        {
            entries += self.step(shard, &mut slice, max, max.entries - entries);
        }
        if !self.out.is_empty() {
            slice.part = self.out.take_part();
        }
        (slice != Slice::default() || self.table != Table::Done).then_some(slice)
    }

    /// Connections that have ended are unknown to the other process from now on.
    fn take_closed<D: Driver>(&mut self, shard: &mut Shard<D>) -> Vec<ConnKey> {
        let mut closed = shard.net.driver.take_closed();
        closed.retain(|key| {
            let sent = self.sent.get_mut(key.index as usize);
            let Some(sent) = sent.filter(|sent| **sent == key.generation.get()) else {
                return false;
            };
            *sent = 0;
            *self.conns.at(key.index as usize) = 0;
            true
        });
        closed
    }

    /// Writes a bit of a table. Returns how many entries were looked at.
    fn step<D: Driver>(
        &mut self,
        shard: &mut Shard<D>,
        slice: &mut Slice,
        max: SliceMax,
        entries_max: usize,
    ) -> usize {
        let [channels, locals, sessions, conns] = self.ends;
        let (from, out) = (self.at, &mut self.out);
        let until = |end: usize| from.saturating_add(entries_max).min(end);
        let (next, to, end) = match self.table {
            Table::Heads => {
                self.write_heads(shard);
                (Table::Channels, 0, 0)
            }
            Table::Channels => {
                let (slots, homes) = (from..until(channels), &shard.home.channels);
                let to = homes.write_channels(out, slots, &mut self.channels, max.bytes);
                (Table::Locals, to, channels)
            }
            Table::Locals => {
                let (slots, locals_of) = (from..until(locals), &shard.local.locals);
                (Table::Sessions, locals_of.write(out, slots, &mut self.locals, max.bytes), locals)
            }
            Table::Sessions => {
                let (slots, clients) = (from..until(sessions), &shard.clients);
                let to = clients.write_sessions(out, slots, &mut self.sessions, max.bytes);
                (Table::Conns, to, sessions)
            }
            Table::Conns => {
                let to = self.write_conns(shard, slice, max, until(conns));
                (if self.is_last { Table::Rest } else { Table::Done }, to, conns)
            }
            Table::Rest => {
                shard.home.write_rest(out);
                shard.local.write_rest(out);
                shard.clients.write_rest(out);
                shard.net.write_rest(out);
                (Table::Done, 0, 0)
            }
            Table::Done => return 0,
        };
        self.at = to;
        if to >= end {
            (self.table, self.at) = (next, 0);
        }
        to.saturating_sub(from)
    }

    /// Which entries there are now. Those that come later are written the next time.
    fn write_heads<D: Driver>(&mut self, shard: &Shard<D>) {
        let out = &mut self.out;
        out.record(kind::SHARD, |out| {
            out.field(&shard.cx.id);
            out.field(&shard.cx.node.open.len());
        });
        self.ends = [
            shard.home.write_head(out),
            shard.local.write_head(out),
            shard.clients.write_head(out),
            shard.net.write_head(out),
        ];
        let [_, locals, sessions, conns] = self.ends;
        self.locals.reserve(locals);
        self.sessions.reserve(sessions);
        self.conns.reserve(conns);
        self.sent.reserve_exact(conns.saturating_sub(self.sent.len()));
        if self.sent.len() < conns {
            self.sent.resize(conns, 0);
        }
    }

    /// Writes connections up to a slot, and lists the sockets that were not sent. Returns the slot to go on with.
    fn write_conns<D: Driver>(
        &mut self,
        shard: &mut Shard<D>,
        slice: &mut Slice,
        max: SliceMax,
        end: usize,
    ) -> usize {
        for at in self.at..end {
            if slice.sockets.len() >= max.sockets || self.out.len() >= max.bytes {
                return at;
            }
            let Some(key) = shard.net.key_at(at as u32) else { continue };
            if let Some(sent) = self.sent.get_mut(at)
                && *sent != key.generation.get()
            {
                *sent = key.generation.get();
                slice.sockets.push(key);
            }
            if self.is_last || shard.net.is_writable(key.index) {
                shard.net.write_conn(&mut self.out, key.index, self.conns.at(at));
            }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::ShardId;
    use crate::base::image::{Frames, ImageReader};
    use crate::shard::freeze::tests::Alone;

    const SMALL: SliceMax = SliceMax { entries: 1, sockets: 1, bytes: 20 };

    /// Kinds of the records of all slices, and the sockets that go.
    fn written(copying: &mut Copying, of: &mut Alone, max: SliceMax) -> (Vec<u8>, Vec<ConnKey>) {
        let (mut kinds, mut sockets, mut frames) = (Vec::new(), Vec::new(), Frames::default());
        while let Some(slice) = copying.next(&mut of.shard, max) {
            sockets.extend(slice.sockets);
            if slice.part.is_empty() {
                continue;
            }
            let now = of.shard.cx.now;
            let mut from = ImageReader::new(&slice.part, now).unwrap().with_frames(frames);
            while let Some(kind) = from.next_record().unwrap() {
                kinds.push(kind);
                from.skip();
            }
            frames = from.into_frames();
        }
        (kinds, sockets)
    }

    fn count(kinds: &[u8], kind: u8) -> usize {
        kinds.iter().filter(|of| **of == kind).count()
    }

    #[test]
    fn the_second_time_what_has_changed_is_written() {
        let mut of = Alone::new();
        let links = [of.connect(), of.connect(), of.connect()];
        for link in links {
            of.says(link, r#"{"id":1,"connect":{}}"#);
            of.says(link, r#"{"id":2,"subscribe":{"channel":"news"}}"#);
            assert!(of.hears(link).contains("epoch"));
        }
        of.says(links[0], r#"{"id":3,"publish":{"channel":"news","data":{"n":1}}}"#);
        of.hears(links[0]);
        let mut copying = Copying::new(of.shard.cx.now);
        let (kinds, sockets) = written(&mut copying, &mut of, SMALL);
        assert_eq!(sockets.len(), 3);
        let counts = [kind::CONN, kind::SESSION, kind::LOCAL, kind::CHANNEL, kind::PUBLICATIONS]
            .map(|kind| count(&kinds, kind));
        assert_eq!(counts, [3, 3, 1, 1, 1]);
        // Nothing has changed: heads only.
        copying.begin_again(false);
        let heads = [kind::SHARD, kind::HOME, kind::LOCAL_SIDE, kind::CLIENTS, kind::NET];
        assert_eq!(written(&mut copying, &mut of, SliceMax::NONE), (heads.to_vec(), vec![]));
        // A publication more, half a message, a connection more.
        of.says(links[0], r#"{"id":4,"publish":{"channel":"news","data":{"n":2}}}"#);
        of.hears(links[0]);
        let other = of.world.borrow_mut().connect_to(ShardId(0));
        of.world.borrow_mut().write(other, b"GET /");
        of.hears(other);
        copying.begin_again(false);
        let (kinds, sockets) = written(&mut copying, &mut of, SMALL);
        assert_eq!((sockets.len(), count(&kinds, kind::CONN)), (1, 0), "it is half read");
        copying.begin_again(true);
        let (kinds, sockets) = written(&mut copying, &mut of, SMALL);
        assert_eq!(sockets, []);
        assert_eq!((count(&kinds, kind::CONN), count(&kinds, kind::INPUT)), (1, 1));
        assert_eq!(count(&kinds, kind::SESSION), 0);
    }
}
