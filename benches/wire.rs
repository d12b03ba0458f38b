//! The cost of the wire: reading a masked message, masking, a frame, a browser's upgrade.
//! Wall times of a busy machine are noise: compare runs on one machine, not the figures.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use roost::proto::http;
use roost::proto::ws::{self, ReadRules, Reader};
use std::hint::black_box;

const SERVER: ReadRules = ReadRules { masked: true, deflate: false, message_bytes_max: 65536 };

const BROWSER: &[u8] = b"GET /connection/websocket?format=json HTTP/1.1\r\n\
    Host: realtime.example.com\r\n\
    Connection: keep-alive, Upgrade\r\n\
    Pragma: no-cache\r\n\
    Cache-Control: no-cache\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/1\r\n\
    Upgrade: websocket\r\n\
    Origin: https://app.example.com\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef\r\n\
    Sec-Fetch-Mode: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    for bytes in [64, 1024] {
        let mut frame = Vec::new();
        ws::put_masked(&mut frame, ws::TEXT, &vec![b'x'; bytes], [1, 2, 3, 4]);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        let mut reader = Reader::new();
        group.bench_function(format!("masked text, {bytes} B"), |b| {
            b.iter_batched_ref(
                || frame.clone(),
                |input| {
                    let mut at = 0;
                    while let Ok(Some(event)) = reader.next(&SERVER, input, &mut at) {
                        black_box(event);
                    }
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function(format!("masked text, {bytes} B, in two pieces"), |b| {
            b.iter_batched_ref(
                || frame.clone(),
                |input| {
                    let (head, tail) = input.split_at_mut(bytes / 2);
                    for piece in [head, tail] {
                        let mut at = 0;
                        while let Ok(Some(event)) = reader.next(&SERVER, piece, &mut at) {
                            black_box(event);
                        }
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
    // All of it is checked for UTF-8: two bytes a character.
    let mut frame = Vec::new();
    ws::put_masked(&mut frame, ws::TEXT, "é".repeat(512).as_bytes(), [1, 2, 3, 4]);
    let mut reader = Reader::new();
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("masked text, 1024 B, not ASCII", |b| {
        b.iter_batched_ref(
            || frame.clone(),
            |input| black_box(reader.next(&SERVER, input, &mut 0).is_ok()),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn mask(c: &mut Criterion) {
    let mut group = c.benchmark_group("mask");
    for bytes in [64, 1024, 16384] {
        let mut data = vec![0x55; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{bytes} B"), |b| {
            b.iter(|| ws::mask(black_box(&mut data), black_box([1, 2, 3, 4]), black_box(1)));
        });
    }
    group.finish();
}

fn write(c: &mut Criterion) {
    let mut out = Vec::with_capacity(64);
    c.bench_function("put_header", |b| {
        b.iter(|| {
            out.clear();
            ws::put_header(&mut out, ws::TEXT, black_box(300));
            black_box(&out);
        });
    });
    let payload = [b'x'; 128];
    c.bench_function("a shared frame of 128 B", |b| b.iter(|| ws::text_frame(black_box(&payload))));
}

fn upgrade(c: &mut Criterion) {
    let mut out = Vec::with_capacity(256);
    let date = http::HttpDate::at(0);
    let mut group = c.benchmark_group("upgrade");
    group.bench_function("parse a browser's 14 headers", |b| {
        b.iter(|| black_box(http::parse(black_box(BROWSER)).is_ok()));
    });
    group.bench_function("parse, check, answer", |b| {
        b.iter(|| {
            out.clear();
            if let Ok(Some(head)) = http::parse(black_box(BROWSER)) {
                match http::upgrade(&head) {
                    Ok(upgrade) => http::put_switching(&mut out, &upgrade, date),
                    Err(refusal) => http::put_refusal(&mut out, refusal, "", date, false),
                }
            }
            assert!(out.starts_with(b"HTTP/1.1 101"));
        });
    });
    group.finish();
}

criterion_group!(benches, read, mask, write, upgrade);
criterion_main!(benches);
