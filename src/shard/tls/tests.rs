use super::testing::Rig;
use super::*;
use crate::base::frame::SharedFrame;
use crate::proto::tls::Suite;
use crate::proto::tls::simulated::Simulated;

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
        assert!(rig.driver.left()[3..].iter().all(|(_, count)| *count == 0));
        rig.driver.close(conn.key, conn.socket, false);
    }
    assert!(rig.driver.left().iter().all(|(_, count)| *count == 0), "{:?}", rig.driver.left());
    let counters = rig.counters();
    let full = [&counters.tls_handshakes_1_3_full, &counters.tls_handshakes_1_2_full];
    assert_eq!(full.map(|counter| counter.get()), [3, 3]);
}

#[test]
fn a_time_to_spin_reaches_the_driver_with_tls_and_without() {
    use crate::io::epoll::Epoll;
    use crate::io::sockets::Switchboard;
    use crate::shard::fixture::Plan;
    for tls in [None, Some(Simulated::settings())] {
        let node = Plan { shards: 1, tls, ..Plan::default() }.node();
        let switchboard = Switchboard::new(1).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a zero of time")]
        let zero = std::time::Instant::now();
        let epoll = Epoll::new(ShardId(0), switchboard, Vec::new(), zero).unwrap();
        let mut driver = Secured::new(epoll, &node, ShardId(0));
        let mut told = Vec::new();
        for spins in [false, true, false] {
            driver.spin_for(Duration::from_millis(if spins { 2 } else { 0 }));
            let before = driver.inner.empty_polls();
            driver.wait(Some(driver.now().after(50)), &mut told);
            assert_eq!(driver.inner.empty_polls() > before, spins);
        }
    }
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
