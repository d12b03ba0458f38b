//! The cost of one member that leaves a channel and joins it again: the same in a channel of
//! 1,000 and in one of 100,000, since neither looks at the other members. A lone member needs no
//! tables and costs less. Wall times of a busy machine are noise: compare runs on one machine, not
//! the figures.

use std::hint::black_box;
use std::num::NonZeroU32;

use criterion::{Criterion, criterion_group, criterion_main};
use roost::base::id::{ConnKey, ShardId};
use roost::base::info::ClientInfo;
use roost::hub::members::{Member, Members};
use roost::hub::names::NameHasher;

/// Members on four shards; every user has two of them.
fn crowd(count: u32) -> Vec<(Member, Box<[u8]>)> {
    let one = |index: u32| {
        let conn = ConnKey { index: index / 4, generation: NonZeroU32::MIN };
        let member = Member { shard: ShardId((index % 4) as u8), conn };
        let user = format!("user-{}", index / 2);
        let client = format!("{index:08x}-0000-4000-8000-000000000000");
        let info = ClientInfo { user: &user, client: &client, ..ClientInfo::default() };
        (member, info.pack())
    };
    (0..count).map(one).collect()
}

fn join_and_leave(c: &mut Criterion) {
    let names = NameHasher::new(1, 4);
    let mut group = c.benchmark_group("leave and join again");
    for count in [1, 1_000, 100_000] {
        let crowd = crowd(count);
        let mut members = Members::default();
        for (member, info) in &crowd {
            members.insert(&names, *member, info, true, true);
        }
        let mut at = 0;
        group.bench_function(format!("of {count}"), |b| {
            b.iter(|| {
                let (member, info) = &crowd[at];
                at = (at + 1) % crowd.len();
                black_box(members.remove(&names, *member).is_some());
                members.insert(&names, *member, info, true, true);
                black_box((members.clients(), members.users()));
            });
        });
        assert_eq!((members.clients(), members.users()), (count, count.div_ceil(2)));
    }
    group.finish();
}

criterion_group!(benches, join_and_leave);
criterion_main!(benches);
