//! Pieces of the hot path, each run as often as it is told, for counting instructions instead of time:
//! `tools/instructions` runs them under a machine that counts. Without arguments each piece runs once.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;

use roost::base::chunks::{Chunks, Stack};
use roost::base::form::Form;
use roost::base::frame::SharedFrame;
use roost::base::id::{ConnKey, ShardId};
use roost::base::info::ClientInfo;
use roost::base::rng::Rng;
use roost::base::tags::Tags;
use roost::base::time::Millis;
use roost::hub::fanout::{FanOut, Walk};
use roost::hub::filter::Filters;
use roost::hub::history::{Published, StreamOptions};
use roost::hub::home::Homes;
use roost::hub::local::{Locals, Sending};
use roost::hub::members::{Member, Members};
use roost::hub::names::NameHasher;
use roost::hub::parcel::{Frames, Parcel, ParcelKind};
use roost::hub::subscribers::{Subscriber, Subscribers, Traits};
use roost::io::{Alarm, Wake};
use roost::proto::client::{Encoding, Publication, Push, binary_commands, commands};
use roost::proto::ws::{self, ReadRules, Reader};
use roost::shard::mail::{Mail, MailLane, Mailbox};
use roost::shard::timers::{LinkTable, Links, TimerTable, Wheel};
use slab::Slab;

const SERVER: ReadRules = ReadRules { masked: true, deflate: false, message_bytes_max: 65536 };

/// A piece: its name, and what runs it so many times.
type Piece = (&'static str, fn(u32));

const PIECES: &[Piece] = &[
    ("read a masked text of 64 B", |n| read(n, &"x".repeat(64))),
    ("read a masked text of 1 KiB, not ASCII", |n| read(n, &"é".repeat(512))),
    ("mask 1 KiB", |n| {
        let mut data = vec![0x55; 1024];
        (0..n).for_each(|_| ws::mask(black_box(&mut data), [1, 2, 3, 4], 0));
    }),
    ("write a frame of 128 B", |n| {
        let (payload, mut out) = ([b'x'; 128], Vec::new());
        for _ in 0..n {
            out.clear();
            ws::put_frame(black_box(&mut out), ws::TEXT, &payload);
        }
    }),
    ("read a publish in JSON", |n| {
        let line = r#"{"id":17,"publish":{"channel":"chat:lobby","data":{"text":"hello"}}}"#;
        (0..n).for_each(|_| drop(black_box(commands(black_box(line)).next())));
    }),
    ("read a publish in Protobuf", |n| {
        let frame = b"\x3c\x08\x11\x3a\x38\x0a\x0achat:lobby\x12\x2a{\"text\":\"hello, everyone\",\
                      \"at\":1700000000}";
        (0..n).for_each(|_| drop(black_box(binary_commands(black_box(frame)).next())));
    }),
    ("write a publication in JSON", |n| put(n, Encoding::Json)),
    ("write a publication in Protobuf", |n| put(n, Encoding::Protobuf)),
    ("a timer fires and is set again", timers),
    ("fan-out to 1,000 subscribers", fan_out),
    ("a batch of 16 mails", mail),
    ("a publication for the one subscriber of a channel", publish_to_one),
    ("find a channel by its name", |n| {
        let (locals, names) = channels();
        (0..n).for_each(|at| _ = black_box(locals.find(black_box(&names[far(at)]))));
    }),
    ("find a channel by its number", |n| {
        let (mut locals, _) = channels();
        (0..n).for_each(|at| _ = black_box(locals.get(black_box(far(at) as u32)).is_some()));
    }),
    ("find a member of a channel", |n| {
        let (members, known) = members();
        (0..n).for_each(|at| _ = black_box(members.has(black_box(known[far(at)]))));
    }),
    ("read a record of 56 B in chunks", |n| {
        let mut table = Chunks::default();
        (0..MANY as u64).for_each(|at| _ = table.insert([at; 7]));
        (0..n).for_each(|at| _ = black_box(table[black_box(far(at))][3]));
    }),
    ("the same in a slab", |n| {
        let mut table = Slab::new();
        (0..MANY as u64).for_each(|at| _ = table.insert([at; 7]));
        (0..n).for_each(|at| _ = black_box(table[black_box(far(at))][3]));
    }),
    ("read an entry of 24 B of a stack in chunks", |n| {
        let mut table = Stack::default();
        (0..MANY as u64).for_each(|at| table.push([at; 3]));
        (0..n).for_each(|at| _ = black_box(table[black_box(far(at))][1]));
    }),
    ("the same in a list", |n| {
        let table: Vec<_> = (0..MANY as u64).map(|at| [at; 3]).collect();
        (0..n).for_each(|at| _ = black_box(table[black_box(far(at))][1]));
    }),
];

fn read(n: u32, text: &str) {
    let mut frame = Vec::new();
    ws::put_masked(&mut frame, ws::TEXT, text.as_bytes(), [1, 2, 3, 4]);
    let (mut reader, mut input) = (Reader::new(), frame.clone());
    for _ in 0..n {
        input.copy_from_slice(&frame);
        let mut at = 0;
        while let Ok(Some(event)) = reader.next(&SERVER, &mut input, &mut at) {
            black_box(event);
        }
    }
}

fn put(n: u32, encoding: Encoding) {
    let data = br#"{"text":"hello, everyone","at":1700000000}"#;
    let push = Push::Publication(Publication { data, offset: 42, ..Publication::DEFAULT });
    let mut out = Vec::with_capacity(1024);
    for _ in 0..n {
        out.clear();
        encoding.put_push(black_box(&mut out), "chat:lobby", &push);
    }
}

#[derive(Clone, Default)]
struct Conn {
    links: Links,
    deadline_tick: u32,
}

struct Table(Vec<Conn>);

impl LinkTable for Table {
    fn links(&mut self, index: u32) -> &mut Links {
        &mut self.0[index as usize].links
    }
}

impl TimerTable for Table {
    fn deadline_tick(&mut self, index: u32) -> &mut u32 {
        &mut self.0[index as usize].deadline_tick
    }
}

fn timers(n: u32) {
    const CONNS: u32 = 1000;
    let mut table = Table(vec![Conn::default(); CONNS as usize]);
    let mut wheel = Wheel::new(Millis(0));
    for index in 0..CONNS {
        wheel.insert(&mut table, index, Millis(1 + u64::from(index) * 25));
    }
    for _ in 0..n {
        let now = wheel.next_deadline().unwrap_or_default();
        if let Some(index) = wheel.pop_expired(now, &mut table, &mut 1) {
            wheel.insert(&mut table, index, now.after(25_000));
        }
    }
}

fn fan_out(n: u32) {
    let mut subscribers = Subscribers::default();
    for conn in 0..1000 {
        subscribers.add(Subscriber { conn, traits: Traits::new(Form::JSON) });
    }
    let frames = Frames { full: Some(SharedFrame::new(&[b'x'; 200])), patch: None };
    let frames = vec![(Form::JSON, frames)];
    let parcel = Arc::new(Parcel { frames, ..Parcel::new(ParcelKind::Publication, 0, Tags::NONE) });
    let (filters, mut walk, mut scratch) = (Filters::default(), Walk::default(), Vec::new());
    for _ in 0..n {
        let mut fan_out = FanOut::default();
        fan_out.push(Arc::clone(&parcel), 1000, false);
        while fan_out.walk(2048, &mut subscribers, &filters, &mut walk, |_, _, _| (), &mut scratch)
        {
            black_box(&walk.to);
        }
    }
}

/// Entries of a table that is looked into: several chunks.
const MANY: usize = 10_000;

/// A place that is far from that of the one before.
fn far(at: u32) -> usize {
    at as usize * 7919 % MANY
}

/// Channels with one subscriber each, and their names.
fn channels() -> (Locals, Vec<String>) {
    let mut locals = Locals::new(NameHasher::new(1, 1));
    let names: Vec<_> = (0..MANY).map(|at| format!("personal:{at}")).collect();
    for (conn, name) in names.iter().enumerate() {
        let at = locals.find_or_insert(name, 0);
        let local = locals.get(at).expect("made above");
        local.claims = 1;
        local.subscribers.add(Subscriber { conn: conn as u32, traits: Traits::new(Form::JSON) });
    }
    (locals, names)
}

fn members() -> (Members, Vec<Member>) {
    let (names, mut members) = (NameHasher::new(1, 1), Members::default());
    let member = |index: usize| Member {
        shard: ShardId(0),
        conn: ConnKey { index: index as u32, generation: NonZeroU32::MIN },
    };
    let known: Vec<_> = (0..MANY).map(member).collect();
    for (at, member) in known.iter().enumerate() {
        let (user, client) =
            (format!("user-{at}"), format!("{at:08x}-0000-4000-8000-000000000000"));
        let info = ClientInfo { user: &user, client: &client, ..ClientInfo::default() };
        members.insert(&names, *member, &info.pack(), true, true);
    }
    (members, known)
}

/// Both halves of a channel: the home takes a publication and looks who gets it, the other delivers it.
fn publish_to_one(n: u32) {
    let (mut locals, names) = channels();
    let hasher = NameHasher::new(1, 1);
    let mut homes = Homes::new(hasher.clone(), Rng::new(1), 10);
    let options = StreamOptions::default();
    for (local, name) in names.iter().enumerate() {
        let (hash, traits) = (hasher.hash(name), Traits::new(Form::JSON));
        homes.subscribe(Millis(0), name, hash, options, ShardId(0), local as u32, traits);
    }
    let frames = Frames { full: Some(SharedFrame::new(&[b'x'; 200])), patch: None };
    let frames = vec![(Form::JSON, frames)];
    let parcel = Arc::new(Parcel { frames, ..Parcel::new(ParcelKind::Publication, 0, Tags::NONE) });
    let (filters, mut walk, mut scratch) = (Filters::default(), Walk::default(), Vec::new());
    for at in 0..n {
        let name = &names[far(at)];
        let published = Published { data: b"{}", ..Published::default() };
        let taken = homes.publish(Millis(0), name, hasher.hash(name), options, &published);
        let channel = taken.channel.expect("somebody is subscribed");
        black_box(homes.wanted(channel));
        for target in homes.targets(channel) {
            locals.deliver(target.local, &parcel, Sending::default());
        }
        let local = locals.next_active().expect("delivered above");
        while locals.walk(local, 512, &filters, &mut walk, |_, _, _| (), &mut scratch) {
            black_box(&walk.to);
        }
        locals.fan_out_done(local);
        locals.release(local);
    }
}

struct Silent;

impl Wake for Silent {
    fn wake(&self) {}
}

fn mail(n: u32) {
    let (letterbox, mailbox) = Mailbox::new(16, Alarm::new(Arc::new(Silent)));
    let mut outbox = MailLane::new(letterbox);
    let parcel = Arc::new(Parcel::new(ParcelKind::Publication, 0, Tags::NONE));
    for _ in 0..n {
        for local in 0..16 {
            outbox.push(Mail::Deliver { local, parcel: Arc::clone(&parcel) });
        }
        outbox.flush(ShardId(1));
        black_box(mailbox.take());
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [flag] if flag == "--list" => PIECES.iter().for_each(|(name, _)| println!("{name}")),
        [name, times] if times.parse::<u32>().is_ok() => {
            let (_, run) = PIECES.iter().find(|(piece, _)| piece == name).expect("a piece");
            run(times.parse().unwrap_or(1));
        }
        // Arguments of the test runner and of `cargo bench` are no piece.
        _ => PIECES.iter().for_each(|(_, run)| run(1)),
    }
}
