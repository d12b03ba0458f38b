//! The cost of a patch, for payloads of applications and for crafted ones: the time grows with the bytes of
//! both payloads, whatever they hold. Wall times of a busy machine are noise: compare runs on one machine, not the figures.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use roost::hub::delta::Patcher;

/// A document of rows in which one number of each `changed` rows differs from that of another.
fn document(bytes: usize, changed: usize) -> Vec<u8> {
    let mut out = b"[".to_vec();
    for n in 0.. {
        let price = if n % changed == 0 { n * 37 % 1000 } else { n };
        let row = format!(r#"{{"id":{n},"name":"item {n}","price":{price},"tags":["a","b"]}},"#);
        if out.len() + row.len() > bytes {
            return out;
        }
        out.extend_from_slice(row.as_bytes());
    }
    out
}

/// Blocks whose sums are equal, and that have no 16 bytes in common.
fn crafted(bytes: usize) -> [Vec<u8>; 2] {
    let blocks = bytes / 16 - 2;
    let edge = "#".repeat(15);
    let one = format!("{}b{}`", "a".repeat(9), "a".repeat(5)).repeat(blocks);
    [one, "a".repeat(16 * blocks)].map(|text| format!("\"{edge}{text}{edge}\"").into_bytes())
}

fn noise(bytes: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn patches(c: &mut Criterion) {
    for kib in [1, 32, 256] {
        let bytes = kib * 1024;
        let mut group = c.benchmark_group(format!("a patch of {kib} KiB"));
        let [one, two] = crafted(bytes);
        let old = document(bytes, 7);
        let mut edited = old.clone();
        edited[bytes / 2] ^= 1;
        for (name, old, new) in [
            ("one byte changed", &old, &edited),
            ("changed all over", &old, &document(bytes, 5)),
            ("nothing in common", &noise(bytes, 1), &noise(bytes, 2)),
            ("equal sums", &one, &two),
            ("equal sums, the other way", &two, &one),
        ] {
            group.throughput(Throughput::Bytes((old.len() + new.len()) as u64));
            let mut patcher = Patcher::new(1);
            group.bench_function(name, |b| {
                b.iter(|| {
                    patcher.begin_turn();
                    black_box(patcher.patch(old, new))
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, patches);
criterion_main!(benches);
