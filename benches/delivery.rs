//! The way from a publication to the sockets: mail between shards, and fan-out to a channel's
//! subscribers. Wall times of a busy machine are noise: compare runs on one machine, not the figures;
//! `tools/instructions` counts what doesn't depend on it.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use roost::base::filter::FilterNode;
use roost::base::form::Form;
use roost::base::frame::SharedFrame;
use roost::base::id::ShardId;
use roost::base::tags::Tags;
use roost::hub::fanout::{FanOut, Walk};
use roost::hub::filter::{Filter, Filters};
use roost::hub::parcel::{Frames, Parcel, ParcelKind};
use roost::hub::subscribers::{Subscriber, Subscribers, Traits};
use roost::io::{Alarm, Wake};
use roost::shard::mail::{Mail, MailLane, Mailbox};

struct Silent;

impl Wake for Silent {
    fn wake(&self) {}
}

fn parcel(bytes: usize) -> Arc<Parcel> {
    let frame = Some(SharedFrame::new(&vec![b'x'; bytes]));
    let frames = |form| (form, Frames { full: frame.clone(), patch: None });
    let frames = vec![frames(Form::JSON), frames(Form::BINARY)];
    let tags = Tags::pack([("ticker", "a")]);
    Arc::new(Parcel { frames, ..Parcel::new(ParcelKind::Publication, 0, Tags::packed(&tags)) })
}

/// The number of a filter for one value of a tag.
fn filter(filters: &mut Filters, ticker: &str) -> u32 {
    let node = FilterNode {
        key: "ticker".to_owned(),
        cmp: "eq".to_owned(),
        val: ticker.to_owned(),
        ..FilterNode::default()
    };
    let filter = Filter::new(&node).ok().and_then(|filter| filters.intern(filter));
    filter.expect("a filter that keeps the rules").get()
}

fn concat(_: Form, frames: &[&SharedFrame], out: &mut Vec<u8>) {
    frames.iter().for_each(|frame| out.extend_from_slice(frame.bytes()));
}

/// Publications to all subscribers of a channel, up to where the connections' queues begin.
fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("fan-out");
    let mut filters = Filters::default();
    let wanted = ["a", "b", "c", "d"].map(|ticker| filter(&mut filters, ticker));
    for (name, count, parcels, forms, wanted) in [
        ("1 to 10,000", 10_000, 1, &[Form::JSON][..], &[0][..]),
        ("16 to 10,000", 10_000, 16, &[Form::JSON], &[0]),
        ("1 to 10,000 in two encodings", 10_000, 1, &[Form::JSON, Form::BINARY], &[0]),
        ("16 to 10,000 with four filters", 10_000, 16, &[Form::JSON], &wanted),
        ("1 to 100,000", 100_000, 1, &[Form::JSON], &[0]),
    ] {
        let mut subscribers = Subscribers::default();
        for conn in 0..count {
            let form = forms[conn as usize % forms.len()];
            let traits = Traits::new(form).with_filter(wanted[conn as usize % wanted.len()]);
            subscribers.add(Subscriber { conn, traits });
        }
        let parcel = parcel(200);
        let (mut walk, mut scratch) = (Walk::default(), Vec::new());
        group.throughput(Throughput::Elements(u64::from(count)));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut fan_out = FanOut::default();
                for _ in 0..parcels {
                    fan_out.push(Arc::clone(&parcel), count, false);
                }
                while fan_out.walk(
                    2048,
                    &mut subscribers,
                    &filters,
                    &mut walk,
                    concat,
                    &mut scratch,
                ) {
                    black_box(&walk.to);
                }
            });
        });
    }
    group.finish();
}

/// A turn's mail for another shard: one batch through the mailbox.
fn mailbox(c: &mut Criterion) {
    let (letterbox, mailbox) = Mailbox::new(16, Alarm::new(Arc::new(Silent)));
    let mut outbox = MailLane::new(letterbox);
    let parcel = parcel(200);
    let mut group = c.benchmark_group("mail");
    for count in [1, 64] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("a batch of {count}"), |b| {
            b.iter(|| {
                for local in 0..count as u32 {
                    outbox.push(Mail::Deliver { local, parcel: Arc::clone(&parcel) });
                }
                outbox.flush(ShardId(1));
                mailbox.take()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, fan_out, mailbox);
criterion_main!(benches);
