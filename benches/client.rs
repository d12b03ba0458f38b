//! The cost of the client protocol, the timers and the client ids: `cargo bench --bench client`.

use std::hint::black_box;
use std::num::NonZeroU32;

use criterion::{Criterion, criterion_group, criterion_main};
use roost::base::id::{ConnKey, ShardId};
use roost::base::info::ClientInfo;
use roost::base::time::Millis;
use roost::edge::client_id::ClientIdSealer;
use roost::proto::client::{Encoding, Publication, Push, binary_commands, commands};
use roost::shard::timers::{LinkTable, Links, TimerTable, Wheel};

fn protocol(bench: &mut Criterion) {
    // A chat message and a subscribe as centrifuge-js sends them, and the same in Protobuf.
    let json = [
        (
            "publish",
            r#"{"id":17,"publish":{"channel":"chat:lobby","data":{"text":"hello, everyone","at":1700000000}}}"#,
        ),
        (
            "subscribe",
            r#"{"id":2,"subscribe":{"channel":"chat:lobby","recover":true,"epoch":"QwErTyUi","offset":41,"flag":1}}"#,
        ),
    ];
    for (name, line) in json {
        bench.bench_function(&format!("parse {name}, json"), |bench| {
            bench.iter(|| commands(black_box(line)).next());
        });
    }
    let protobuf = [
        (
            "publish",
            &b"\x3c\x08\x11\x3a\x38\x0a\x0achat:lobby\x12\x2a{\"text\":\"hello, everyone\",\"at\":1700000000}"[..],
        ),
        ("subscribe", b"\x20\x08\x02\x2a\x1c\x0a\x0achat:lobby\x18\x01\x32\x08QwErTyUi\x38\x29\x70\x01"),
    ];
    for (name, frame) in protobuf {
        assert!(binary_commands(frame).all(|command| command.is_ok()), "{name}");
        bench.bench_function(&format!("parse {name}, protobuf"), |bench| {
            bench.iter(|| binary_commands(black_box(frame)).next());
        });
    }

    let publication = Publication {
        data: br#"{"text":"hello, everyone","at":1700000000}"#,
        info: Some(ClientInfo {
            user: "user-0000000042",
            client: "3f1c2a9e-0000-4000-8000-000000000001",
            ..ClientInfo::default()
        }),
        offset: 123_456,
        ..Publication::DEFAULT
    };
    let push = Push::Publication(publication);
    let mut out = Vec::with_capacity(1024);
    for (name, encoding) in [("json", Encoding::Json), ("protobuf", Encoding::Protobuf)] {
        bench.bench_function(&format!("put push publication, {name}"), |bench| {
            bench.iter(|| {
                out.clear();
                encoding.put_push(&mut out, black_box("chat:lobby"), black_box(&push));
                out.len()
            });
        });
    }
}

/// A record of a connection, one cache line.
#[derive(Clone, Default)]
struct Conn {
    links: Links,
    deadline_tick: u32,
    _more: [u32; 13],
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

/// Connections that are pinged every 25 s, 20,000 (a full shard) or a million: one timer fires and is
/// set again.
fn timers(bench: &mut Criterion) {
    for (name, conns) in [("20,000", 20_000), ("1,000,000", 1_000_000)] {
        timers_of(bench, name, conns);
    }
}

fn timers_of(bench: &mut Criterion, name: &str, conns: u32) {
    let mut table = Table(vec![Conn::default(); conns as usize]);
    let mut wheel = Wheel::new(Millis(0));
    for index in 0..conns {
        // Multiplied by an odd number: neighbours in time are not neighbours in memory.
        let spread = u64::from(index.wrapping_mul(2_654_435_761) % 25_000);
        wheel.insert(&mut table, index, Millis(1 + spread));
    }
    bench.bench_function(&format!("timer expire and insert, of {name}"), |bench| {
        bench.iter(|| {
            let now = wheel.next_deadline().unwrap_or_default();
            let index = wheel.pop_expired(now, &mut table, &mut 1);
            if let Some(index) = index {
                wheel.insert(&mut table, index, now.after(25_000));
            }
            index
        });
    });
    let now = wheel.next_deadline().unwrap_or_default();
    let mut index = 0;
    bench.bench_function(&format!("timer move, of {name}"), |bench| {
        bench.iter(|| {
            index = (index + 7_919) % conns;
            wheel.set(&mut table, index, now.after(25_000 + u64::from(index)));
        });
    });
}

fn client_ids(bench: &mut Criterion) {
    let sealer = ClientIdSealer::new(&[7; 32]);
    let conn = ConnKey { index: 4_711, generation: NonZeroU32::MIN };
    bench.bench_function("client id seal", |bench| {
        bench.iter(|| sealer.seal(ShardId(3), black_box(conn)));
    });
    let text = sealer.seal(ShardId(3), conn).to_string();
    bench.bench_function("client id open", |bench| bench.iter(|| sealer.open(black_box(&text))));
}

criterion_group!(benches, protocol, timers, client_ids);
criterion_main!(benches);
