//! Two ends that talk: random data, cuts, partial sends, key updates, and passes to other pools.

use proptest::prelude::*;

use super::super::testing::{End, ends, records_sealed};
use super::super::*;

/// One step; 0 is the server and 1 the client.
#[derive(Clone, Debug)]
enum Step {
    /// Frames of these lengths; how many bytes the socket takes at once.
    Send(usize, Vec<usize>, usize),
    /// Bytes of the tail.
    Flush(usize, usize),
    /// Bytes that come to the other end in one read.
    Arrive(usize, usize),
    Update(usize, bool),
    Pass(usize),
    UserCanceled(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = 0..2_usize;
    let frame = prop_oneof![8 => 0..300_usize, 2 => 0..3000_usize, 1 => 16_000..40_000_usize];
    let frames = prop::collection::vec(frame, 0..6);
    let bytes = || prop_oneof![1 => Just(0_usize), 3 => 1..60_usize, 3 => 1..5000_usize, 3 => Just(usize::MAX)];
    let step = prop_oneof![
        5 => (end.clone(), frames, bytes()).prop_map(|(end, frames, sent)| Step::Send(end, frames, sent)),
        3 => (end.clone(), bytes()).prop_map(|(end, bytes)| Step::Flush(end, bytes)),
        8 => (end.clone(), bytes()).prop_map(|(end, bytes)| Step::Arrive(end, bytes)),
        1 => (end.clone(), any::<bool>()).prop_map(|(end, requested)| Step::Update(end, requested)),
        2 => end.clone().prop_map(Step::Pass),
        1 => end.prop_map(Step::UserCanceled),
    ];
    prop::collection::vec(step, 1..60)
}

struct Conversation {
    ends: [End; 2],
    /// Sealed bytes on their way from each end.
    wires: [Vec<u8>; 2],
    /// Plaintext that each end has sealed, and that it still has to.
    sealed: [Vec<u8>; 2],
    waiting: [Vec<Vec<u8>>; 2],
    written: u8,
}

impl Conversation {
    fn new(suite: Suite) -> Self {
        let (server, client) = ends(suite);
        Self {
            ends: [server, client],
            wires: Default::default(),
            sealed: Default::default(),
            waiting: Default::default(),
            written: 0,
        }
    }

    fn frame(&mut self, bytes: usize) -> Vec<u8> {
        self.written = self.written.wrapping_add(1);
        (0..bytes).map(|at| self.written.wrapping_add(at as u8)).collect()
    }

    fn seal(&mut self, end: usize, sent: usize) {
        let waiting = self.waiting[end].concat();
        let frames: Vec<&[u8]> = self.waiting[end].iter().map(|frame| &frame[..]).collect();
        let tail = !self.ends[end].records().tail().is_empty();
        match self.ends[end].write(&frames, sent) {
            Ok((bytes, plain)) => {
                assert!(!tail && plain == waiting.len());
                self.wires[end].extend(bytes);
                self.sealed[end].extend(waiting);
                self.waiting[end].clear();
            }
            Err(unsealed) => assert_eq!((unsealed, tail), (Unsealed::TailFirst, true)),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send(end, lengths, sent) => {
                for bytes in lengths {
                    let frame = self.frame(bytes);
                    self.waiting[end].push(frame);
                }
                self.seal(end, sent);
            }
            Step::Flush(end, bytes) => {
                let sent = self.ends[end].flush(bytes);
                self.wires[end].extend(sent);
            }
            Step::Arrive(from, bytes) => {
                let wire = &mut self.wires[from];
                let came: Vec<u8> = wire.drain(..bytes.min(wire.len())).collect();
                self.ends[1 - from].read(&came);
            }
            Step::Update(end, requested) => {
                let mut records = self.ends[end].records();
                assert_eq!(records.update_keys(requested), records.suite().is_tls13());
            }
            Step::Pass(end) => self.ends[end].pass(),
            Step::UserCanceled(end) => self.ends[end].records().alert(Alert::USER_CANCELED),
        }
        for end in &mut self.ends {
            assert_eq!(end.fault, None);
            let heap = end.records().heap_bytes();
            assert_eq!(end.pool.unfinished_bytes(), heap);
        }
    }

    /// Until nothing is on its way.
    fn settle(&mut self) {
        for _ in 0..4 {
            for end in [0, 1] {
                let bytes = self.ends[end].flush_all();
                self.wires[end].extend(bytes);
                self.seal(end, usize::MAX);
                let wire = std::mem::take(&mut self.wires[end]);
                self.ends[1 - end].read(&wire);
            }
        }
    }

    fn finish(mut self) {
        self.settle();
        for end in [0, 1] {
            self.ends[end].records().close_notify();
            self.ends[end].pass();
            assert_eq!(self.ends[end].write(&[b"late"], 0).unwrap_err(), Unsealed::Ended);
            let bytes = self.ends[end].flush_all();
            self.ends[1 - end].read(&bytes);
        }
        for end in [0, 1] {
            assert!(self.ends[end].closed && self.ends[end].records().has_ended());
            assert!(self.ends[end].read == self.sealed[1 - end], "streams differ");
            assert!(self.ends[end].records().is_idle());
            assert_eq!(
                (self.ends[end].pool.unfinished(), self.ends[end].pool.unfinished_bytes()),
                (0, 0)
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn streams_arrive_whole_however_they_are_cut_and_passed_on(
        suite in prop::sample::select(Suite::ALL.to_vec()),
        steps in steps(),
    ) {
        let mut conversation = Conversation::new(suite);
        let mut without_data = 0;
        for step in steps {
            // More warnings and key updates without data than the bound would be a fault.
            if matches!(step, Step::Update(..) | Step::UserCanceled(_)) {
                without_data += 1;
                if without_data > 10 {
                    continue;
                }
            }
            conversation.step(step);
        }
        conversation.finish();
    }
}

#[test]
fn every_cut_of_a_stream_gives_the_same() {
    for suite in Suite::ALL {
        let (mut server, client) = ends(suite);
        let mut wire = server.write(&[b"one", b"two"], usize::MAX).unwrap().0;
        wire.extend(server.write(&[&[7; 40]], usize::MAX).unwrap().0);
        server.records().update_keys(false);
        wire.extend(server.flush_all());
        wire.extend(server.write(&[b"three"], usize::MAX).unwrap().0);
        server.records().close_notify();
        wire.extend(server.flush_all());
        let expected = [&b"onetwo"[..], &[7; 40], b"three"].concat();
        let mut client = client;
        let state = client.pack();
        for cut in 0..=wire.len() {
            let mut client = End::new(Packed::from_bytes(state.as_bytes()).unwrap());
            client.read(&wire[..cut]);
            client.pass();
            client.read(&wire[cut..]);
            assert_eq!(
                (&client.read, client.closed, client.fault),
                (&expected, true, None),
                "{cut}"
            );
            assert!(client.records().is_idle());
        }
        let mut client = End::new(Packed::from_bytes(state.as_bytes()).unwrap());
        wire.iter().for_each(|byte| client.read(&[*byte]));
        assert_eq!((&client.read, client.closed), (&expected, true));
    }
}

#[test]
fn small_frames_go_in_one_record_and_large_ones_in_several() {
    for suite in Suite::ALL {
        let (mut server, mut client) = ends(suite);
        let before = records_sealed();
        let small = [&[1; 100][..], &[2; 1024], &[], &[3; 500]];
        let (wire, plain) = server.write(&small, usize::MAX).unwrap();
        assert_eq!((records_sealed() - before, plain), (1, 1624));
        assert_eq!(wire.len(), plain + suite.overhead_bytes());
        client.read(&wire);

        let before = records_sealed();
        let large = [&[4; 1025][..], &[5; 40_000], &[6; 10], &[7; 1025]];
        let (wire, plain) = server.write(&large, usize::MAX).unwrap();
        assert_eq!((records_sealed() - before, plain), (6, 42_060));
        client.read(&wire);
        assert!(client.read == [small.concat(), large.concat()].concat());
    }
}

#[test]
fn joined_frames_are_at_most_a_record() {
    for (last, records) in [(384, 1), (385, 2)] {
        let (mut server, mut client) = ends(Suite::Tls13Aes128Gcm);
        let mut frames = vec![&[8; 1000][..]; 16];
        frames.push(&[9; 385][..last]);
        let (wire, plain) = server.write(&frames, usize::MAX).unwrap();
        assert_eq!((plain, wire.len()), (16_000 + last, plain + records * 22));
        client.read(&wire);
        assert!(client.fault.is_none() && client.read == frames.concat());
    }
}

#[test]
fn a_batch_is_filled_to_its_last_bytes() {
    let mut pool = Pool::default();
    let mut batch = Batch::new();
    let frames = vec![&[3; 1000][..]; 40];
    let mut all = Vec::new();
    while !batch.is_full() {
        let (server, client) = testing::pair(Suite::Tls12Aes256Gcm);
        let key = pool.insert(server).unwrap();
        let mut records = pool.records(&key).unwrap();
        let sealed = batch.seal(&mut records, frames.iter().copied()).unwrap();
        assert!(sealed.plain >= 16_000 && !sealed.is_empty());
        all.push((key, End::new(client), sealed));
    }
    assert!(all.len() > 5);
    for (key, mut client, sealed) in all {
        let bytes = batch.bytes(&sealed);
        pool.records(&key).unwrap().sent(bytes, bytes.len());
        client.read(bytes);
        assert!(client.read == frames.concat()[..sealed.plain]);
    }
}

#[test]
fn a_batch_takes_whole_records_until_it_is_full() {
    let (mut server, mut client) = ends(Suite::Tls13Aes128Gcm);
    let frames = vec![&[9; 20_000][..]; 20];
    let mut received = 0;
    let mut left = 400_000;
    while left > 0 {
        let frame = vec![9; left];
        let (wire, plain) = server.write(&[&frame], usize::MAX).unwrap();
        assert!(wire.len() <= BATCH_BYTES && (plain == left || plain % PLAIN_BYTES_MAX == 0));
        left -= plain;
        received += plain;
        client.read(&wire);
    }
    assert_eq!(received, frames.concat().len());
    assert_eq!(client.read.len(), received);
}

#[test]
fn a_batch_holds_records_of_many_connections() {
    let mut pool = Pool::default();
    let mut batch = Batch::new();
    assert_eq!(batch.heap_bytes(), 0);
    let mut clients = Vec::new();
    let mut keys = Vec::new();
    for suite in Suite::ALL {
        let (server, client) = testing::pair(suite);
        keys.push(pool.insert(server).unwrap());
        clients.push(End::new(client));
    }
    let shared = vec![5; 2000];
    let mut sealed = Vec::new();
    for key in &keys {
        let mut records = pool.records(key).unwrap();
        sealed.push(batch.seal(&mut records, [&shared[..]]).unwrap());
        // Nothing else of this connection before the bytes are sent or kept.
        assert_eq!(batch.seal(&mut records, [&shared[..]]), Err(Unsealed::InBatch));
        assert!(records.pack().is_none());
        assert!(!records.update_keys(false));
    }
    assert!(!batch.is_full());
    for ((key, sealed), client) in keys.iter().zip(&sealed).zip(&mut clients) {
        let mut records = pool.records(key).unwrap();
        let bytes = batch.bytes(sealed);
        client.read(&bytes[..100]);
        records.sent(bytes, 100);
        client.read(records.tail());
        let tail = records.tail().len();
        records.tail_sent(tail);
        assert!(client.read == shared && records.is_idle());
    }
    batch.release();
    assert_eq!(batch.heap_bytes(), 0);
}

#[test]
fn an_opener_of_one_connection_opens_another_ones_records_as_well() {
    let mut pool = Pool::default();
    let mut opener = Opener::new();
    let pairs = [testing::pair(Suite::Tls13Aes128Gcm), testing::pair(Suite::Tls13Aes128Gcm)];
    let ends = pairs.map(|(server, client)| (pool.insert(server).unwrap(), End::new(client)));
    for (key, mut client) in ends {
        let mut wire = client.write(&[b"data"], usize::MAX).unwrap().0;
        let mut records = pool.records(&key).unwrap();
        let received = opener.next(&mut records, &mut wire, &mut 0).unwrap();
        assert!(matches!(received, Some(Received::Data(data)) if data == b"data"));
    }
}
