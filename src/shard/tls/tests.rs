use super::testing::Rig;
use super::*;
use crate::base::frame::SharedFrame;
use crate::base::limits::TURN_HANDSHAKES_MAX;
use crate::io::sim::Seen;
use crate::proto::tls::Suite;

const SUITE: Suite = Suite::Tls13Aes128Gcm;

#[test]
fn plain_text_goes_in_and_out_in_every_suite() {
    let mut rig = Rig::new(1 << 20);
    for suite in Suite::ALL {
        let mut conn = rig.open(suite);
        conn.client.write(b"to the server");
        rig.up(&mut conn);
        rig.turn();
        assert_eq!(rig.read(&conn), b"to the server");
        assert_eq!(rig.send(&conn, &[b"to ", b"the client"], 1), Sent::Bytes(12));
        rig.down(&mut conn);
        assert_eq!(conn.client.plain(), b"o the client");
        assert!(rig.driver.left()[2..].iter().all(|(_, count)| *count == 0));
        rig.driver.close(conn.key, conn.socket, false);
    }
    assert!(rig.driver.left().iter().all(|(_, count)| *count == 0), "{:?}", rig.driver.left());
    let counters = rig.counters();
    let full = [&counters.tls_handshakes_1_3_full, &counters.tls_handshakes_1_2_full];
    assert_eq!(full.map(|counter| counter.get()), [3, 3]);
}

#[test]
fn an_idle_connection_owns_nothing_but_its_keys() {
    let mut rig = Rig::new(9000);
    let mut conn = rig.open(SUITE);
    conn.client.write(&[b'x'; 20_000]);
    for _ in 0..5 {
        rig.up(&mut conn);
        rig.turn();
        rig.read(&conn);
    }
    let blocked = rig.send_and_read(&mut conn, &[&[b'y'; 50_000]]);
    assert!(blocked > 0 && conn.client.plain_bytes() == 50_000);
    rig.driver.housekeeping();
    rig.driver.housekeeping();
    let tls = rig.driver.tls.as_ref().unwrap();
    let owned = (tls.early.capacity(), tls.notes.capacity(), tls.batch.heap_bytes());
    assert_eq!((owned, tls.pool.unfinished_bytes()), ((0, 0, 0), 0));
}

#[test]
fn what_is_read_in_pieces_is_returned_once_and_in_order() {
    let mut rig = Rig::new(100_000);
    let mut conn = rig.open(SUITE);
    let sent: Vec<u8> = (0..30_000u32).map(|number| number as u8).collect();
    conn.client.write(&sent);
    let out = std::mem::take(conn.client.out());
    let mut read = Vec::new();
    for piece in out.chunks(7001) {
        rig.world.borrow_mut().write(conn.link, piece);
        rig.turn();
        read.extend(rig.read(&conn));
    }
    assert!(read == sent);
}

#[test]
fn one_byte_is_withheld_until_the_tail_has_gone() {
    let mut rig = Rig::new(1000);
    let mut conn = rig.open(SUITE);
    // Both frames are sealed, and the last byte of the second isn't counted.
    assert_eq!(rig.send(&conn, &[&[b'x'; 3000], &[b'y'; 500]], 0), Sent::Bytes(3499));
    let left = &[b'y'; 500];
    assert_eq!(rig.send(&conn, &[left], 499), Sent::Blocked);
    rig.down(&mut conn);
    assert_eq!(rig.send(&conn, &[left], 499), Sent::Bytes(0), "it goes on, and isn't at its end");
    while rig.send(&conn, &[left, b"more"], 499) == Sent::Blocked
        || rig.driver.left().iter().any(|(what, count)| what.contains("middle") && *count > 0)
    {
        rig.down(&mut conn);
    }
    rig.down(&mut conn);
    assert_eq!(conn.client.plain().len(), 3504);
    assert!(conn.client.plain().ends_with(b"ymore"));
}

#[test]
fn a_last_byte_alone_is_not_withheld_since_its_frame_has_not_begun() {
    let mut rig = Rig::new(1000);
    let mut conn = rig.open(SUITE);
    assert_eq!(rig.send(&conn, &[&[b'x'; 3000], b"]"], 0), Sent::Bytes(3001));
    // The shard has nothing to send any more: the tail goes with reads.
    for _ in 0..5 {
        rig.down(&mut conn);
        let readable = Completion::Readable { key: conn.key, ended: false };
        if rig.turn().contains(&readable) {
            assert!(rig.read(&conn).is_empty());
        }
    }
    assert_eq!(conn.client.plain().len(), 3001);
}

#[test]
fn a_batch_goes_to_many_connections() {
    let mut rig = Rig::new(1 << 20);
    let mut conns: Vec<_> = (0..300).map(|_| rig.open(SUITE)).collect();
    let frame = SharedFrame::new(&[b'x'; 1000]);
    let mut sent = Vec::new();
    let writes = conns.iter().map(|conn| Write {
        key: conn.key,
        socket: &conn.socket,
        frames: std::iter::once(&frame),
        skip: 0,
    });
    rig.driver.send_all(writes, &mut sent);
    assert_eq!(sent, vec![Sent::Bytes(1000); 300]);
    for conn in &mut conns {
        rig.down(conn);
        assert_eq!(conn.client.plain().len(), 1000);
    }
}

#[test]
fn the_fin_comes_behind_the_tail_and_a_close_notify() {
    let mut rig = Rig::new(1000);
    let mut conn = rig.open(SUITE);
    assert_eq!(rig.send(&conn, &[&[b'x'; 3000], b"]"], 0), Sent::Bytes(3001));
    rig.driver.finish(conn.key, &conn.socket);
    for _ in 0..9 {
        rig.down(&mut conn);
        rig.turn();
        let _ = rig.recv(&conn);
    }
    assert_eq!((conn.client.plain().len(), conn.client.is_closed), (3001, true));
    assert_eq!(rig.world.borrow().look(conn.link), Seen::Ended);
    rig.driver.close(conn.key, conn.socket, false);
    assert!(rig.driver.left().iter().all(|(_, count)| *count == 0));
}

#[test]
fn a_close_notify_of_the_client_is_the_end_and_a_fin_alone_is_counted() {
    let mut rig = Rig::new(1 << 20);
    let mut conn = rig.open(SUITE);
    conn.client.write(b"last");
    conn.client.close();
    rig.up(&mut conn);
    rig.turn();
    assert_eq!(rig.recv(&conn), Ok(b"last".to_vec()));
    assert_eq!(rig.recv(&conn), Err("ended"));
    assert_eq!(rig.counters().tls_truncated.get(), 0);
    let other = rig.open(SUITE);
    rig.world.borrow_mut().shut(other.link);
    rig.turn();
    assert_eq!(rig.recv(&other), Err("ended"));
    assert_eq!(rig.counters().tls_truncated.get(), 1);
}

#[test]
fn a_turn_makes_a_bounded_number_of_steps() {
    let mut rig = Rig::new(1 << 20);
    let mut conns: Vec<_> = (0..20).map(|_| rig.connect(SUITE)).collect();
    conns.iter_mut().for_each(|conn| rig.up(conn));
    rig.turn();
    for conn in &conns {
        assert_eq!(rig.recv(conn), Err("blocked"));
    }
    assert_eq!(rig.driver.unpackable().len(), TURN_HANDSHAKES_MAX);
    assert!(rig.driver.has_work());
    let readable = rig.turn();
    for conn in &conns[TURN_HANDSHAKES_MAX..] {
        assert!(readable.contains(&Completion::Readable { key: conn.key, ended: false }));
    }
    assert!(!rig.driver.has_work());
}

#[test]
fn one_handshake_too_many_ends_the_oldest() {
    let mut rig = Rig::new(1 << 10);
    let handshakes_max = 30;
    let mut conns: Vec<_> = (0..=handshakes_max).map(|_| rig.connect(SUITE)).collect();
    for conn in &mut conns {
        rig.up(conn);
        rig.turn();
        assert_eq!(rig.recv(conn), Err("blocked"));
    }
    assert_eq!(rig.driver.unpackable().len(), handshakes_max);
    assert_eq!(rig.counters().tls_failed_crowded.get(), 1);
    let readable = Completion::Readable { key: conns[0].key, ended: false };
    assert!(rig.turn().contains(&readable));
    assert_eq!(rig.recv(&conns[0]), Err("refused"));
    assert_eq!(rig.recv(&conns[0]), Err("blocked"));
}

#[test]
fn a_request_in_plain_text_gets_an_answer_in_plain_text() {
    let mut rig = Rig::new(1 << 20);
    let conn = rig.connect(SUITE);
    rig.world.borrow_mut().write(conn.link, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    rig.turn();
    assert_eq!(rig.recv(&conn), Err("refused"));
    rig.driver.finish(conn.key, &conn.socket);
    let answer = rig.world.borrow_mut().read(conn.link, 1000);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    assert_eq!(rig.world.borrow().look(conn.link), Seen::Ended);
    assert_eq!(rig.counters().tls_failed_plain_text.get(), 1);
    // What the shard has to say in spite of it is thrown away.
    assert_eq!(rig.send(&conn, &[b"HTTP/1.1 408"], 2), Sent::Bytes(10));
}

#[test]
fn bytes_that_are_no_hello_get_an_alert() {
    let mut rig = Rig::new(1 << 20);
    let conn = rig.connect(SUITE);
    rig.world.borrow_mut().write(conn.link, &[22, 3, 1, 0, 2, 1, 1]);
    rig.world.borrow_mut().write(conn.link, &[1, 2, 3, 4, 5, 6]);
    rig.turn();
    assert_eq!(rig.recv(&conn), Err("refused"));
    assert_eq!(rig.recv(&conn), Err("blocked"));
    assert_eq!(rig.counters().tls_failed_inconsistent.get(), 1);
}

#[test]
fn an_invalid_record_ends_the_connection_behind_what_was_good() {
    let mut rig = Rig::new(1 << 20);
    let mut conn = rig.open(SUITE);
    conn.client.write(b"good");
    let good = conn.client.out().len();
    conn.client.write(b"bad");
    conn.client.out()[good + 9] ^= 1;
    rig.up(&mut conn);
    rig.turn();
    assert_eq!(rig.recv(&conn), Ok(b"good".to_vec()));
    assert_eq!(rig.recv(&conn), Err("refused"));
    assert_eq!(rig.recv(&conn), Err("blocked"));
    rig.driver.finish(conn.key, &conn.socket);
    rig.down(&mut conn);
    let alert = crate::proto::tls::Alert::BAD_RECORD_MAC;
    assert_eq!(conn.client.fault, Some(crate::proto::tls::Fault::PeerAlert(alert)));
    assert_eq!(rig.world.borrow().look(conn.link), Seen::Ended);
    assert_eq!(rig.counters().tls_record_faults_bad_record_mac.get(), 1);
    rig.driver.close(conn.key, conn.socket, false);
    assert!(rig.driver.left().iter().all(|(_, count)| *count == 0));
}

#[test]
fn a_proxy_header_comes_first_in_plain_text() {
    let mut rig = Rig::new(1 << 20);
    for cut in [4, 40, 60] {
        let mut conn = rig.connect(SUITE);
        rig.driver.expect_proxy_header(conn.key, &[]);
        let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n";
        let first = [&header[..], conn.client.out()].concat();
        conn.client.out().clear();
        let mut read = Vec::new();
        for piece in [&first[..cut], &first[cut..]] {
            rig.world.borrow_mut().write(conn.link, piece);
            rig.turn();
            read.extend(rig.read(&conn));
        }
        assert_eq!(read, header);
        for _ in 0..2 {
            rig.down(&mut conn);
            rig.up(&mut conn);
            rig.turn();
            assert_eq!(rig.read(&conn), b"");
        }
        assert!(conn.client.is_open() && rig.driver.unpackable().is_empty());
    }
}

#[test]
fn a_key_update_that_was_requested_is_answered_and_sealing_goes_on() {
    let mut rig = Rig::new(1000);
    let mut conn = rig.open(SUITE);
    assert!(matches!(rig.send(&conn, &[&[b'x'; 2000]], 0), Sent::Bytes(1999)));
    conn.client.update_keys(true);
    conn.client.write(b"under the new keys");
    rig.up(&mut conn);
    rig.turn();
    assert_eq!(rig.read(&conn), b"under the new keys");
    let all = [b'x'; 2000];
    let mut sent = 1999;
    while sent < 2000 {
        rig.down(&mut conn);
        if let Sent::Bytes(bytes) = rig.send(&conn, &[&all], sent) {
            sent += bytes;
        }
    }
    rig.send_and_read(&mut conn, &[&[b'y'; 3000]]);
    assert_eq!((conn.client.plain().len(), conn.client.fault), (5000, None));
}

#[test]
fn states_are_packed_with_their_tails_and_go_on_elsewhere() {
    let mut rig = Rig::new(1000);
    let mut conn = rig.open(SUITE);
    assert_eq!(rig.send(&conn, &[&[b'x'; 3000]], 0), Sent::Bytes(2999));
    conn.client.write(b"a record in pieces");
    let half = conn.client.out().len() / 2;
    let rest = conn.client.out().split_off(half);
    rig.up(&mut conn);
    rig.turn();
    assert_eq!(rig.read(&conn), b"");
    let packed = rig.driver.pack(conn.key).unwrap();
    assert!(rig.driver.left().iter().all(|(_, count)| *count == 0));
    assert!(rig.driver.pack(conn.key).is_none());
    for end in 0..packed.len() {
        assert!(!rig.driver.unpack(conn.key, &packed[..end]));
    }
    assert!(rig.driver.unpack(conn.key, &packed));
    assert!(!rig.driver.unpack(conn.key, &packed), "once");
    *conn.client.out() = rest;
    rig.up(&mut conn);
    rig.turn();
    assert_eq!(rig.read(&conn), b"a record in pieces");
    let mut sent = 2999;
    while sent < 3000 {
        rig.down(&mut conn);
        if let Sent::Bytes(bytes) = rig.send(&conn, &[&[b'x'; 3000]], sent) {
            sent += bytes;
        }
    }
    rig.down(&mut conn);
    assert_eq!(conn.client.plain().len(), 3000);
}

#[test]
fn a_worn_key_is_reported() {
    let mut rig = Rig::new(1 << 20);
    let mut conn = rig.open(Suite::Tls12Aes128Gcm);
    let mut packed = rig.driver.pack(conn.key).unwrap();
    // The number of the next record, behind flags, name, head, key and IV.
    packed[3 + 1 + 16 + 12..][..7].copy_from_slice(&((1u64 << 24) - 65_537).to_be_bytes()[1..]);
    assert!(rig.driver.unpack(conn.key, &packed));
    rig.send(&conn, &[b"one more"], 0);
    assert_eq!(rig.driver.next_worn(), Some(conn.key));
    rig.send(&conn, &[b"and another"], 0);
    assert_eq!((rig.driver.next_worn(), rig.driver.next_worn()), (Some(conn.key), None));
    rig.down(&mut conn);
    // The numbers of TLS 1.2 are in the records' authenticated data: the client has others.
    assert!(conn.client.fault.is_some());
}

#[test]
fn a_node_without_tls_passes_everything_through() {
    use crate::io::sim::{Faults, SimDriver, Sizes, World};
    use crate::shard::fixture::Plan;
    let sizes = Sizes { shards: 1, pipe_bytes: 100, read_buffer_bytes: 100, passing: 1, events: 8 };
    let world = World::new(1, sizes, Faults::NONE);
    let node = Plan { shards: 1, ..Plan::default() }.node();
    let mut driver = Secured::new(SimDriver::new(&world, ShardId(0)), &node, ShardId(0));
    let link = world.borrow_mut().connect_to(ShardId(0));
    let Accepted::Socket(socket) = driver.accept() else { panic!() };
    let key = ConnKey { index: 0, generation: std::num::NonZeroU32::MIN };
    driver.watch(key, &socket).unwrap();
    world.borrow_mut().write(link, b"plain");
    let Received::Bytes { lease, .. } = driver.recv(key, &socket, 10) else { panic!() };
    assert_eq!(&lease[..], b"plain");
    driver.give_back(lease);
    let frame = SharedFrame::new(b"answer");
    assert_eq!(driver.send(key, &socket, std::iter::once(&frame), 0), Sent::Bytes(6));
    assert_eq!(world.borrow_mut().read(link, 10), b"answer");
    assert!(driver.pack(key).is_none() && driver.left().is_empty() && !driver.has_work());
}
