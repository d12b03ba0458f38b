//! KeyUpdates, limits of keys, and the order of sealed bytes.

use super::super::state::{State, Way, state_bytes};
use super::super::testing::{End, ends};
use super::super::*;

/// Both ends with so many records sealed by the server.
fn with_sequence(suite: Suite, sequence: u64) -> (End, End) {
    let (mut server, mut client) = ends(suite);
    let at = |end: &mut End, way| {
        let mut bytes = end.pack().as_bytes().to_vec();
        assert_eq!(bytes.len(), state_bytes(suite));
        State::of(&mut bytes).unwrap().set_sequence(way, sequence);
        End::new(Packed::from_bytes(&bytes).unwrap())
    };
    (at(&mut server, Way::Send), at(&mut client, Way::Receive))
}

#[test]
fn a_request_is_answered_once_for_each_read() {
    let (mut server, mut client) = ends(Suite::Tls13Aes128Gcm);
    for _ in 0..3 {
        client.records().update_keys(true);
    }
    let requests = client.flush_all();
    server.read(&requests);
    assert_eq!(server.records().tail().len(), 27);
    let answer = server.flush_all();
    client.read(&answer);
    // The answer requests nothing.
    assert!(client.records().tail().is_empty());
    client.read(&server.write(&[b"new keys"], usize::MAX).unwrap().0);
    server.read(&client.write(&[b"as well"], usize::MAX).unwrap().0);
    assert_eq!((&client.read[..], &server.read[..]), (&b"new keys"[..], &b"as well"[..]));
}

#[test]
fn sealed_records_go_out_before_the_answer() {
    let (mut server, mut client) = ends(Suite::Tls13ChaCha20);
    let sent = server.write(&[b"sealed with the old key"], 10).unwrap().0;
    client.records().update_keys(true);
    let request = client.flush_all();
    server.read(&request);
    // The tail is still the record alone: the answer follows when it is sent.
    let rest = 23 + 22 - 10;
    assert_eq!(server.records().tail().len(), rest);
    server.pass();
    client.read(&sent);
    client.read(&server.flush(rest));
    assert_eq!(
        (&client.read[..], server.records().tail().len()),
        (&b"sealed with the old key"[..], 27)
    );
    client.read(&server.flush(5));
    assert_eq!(server.write(&[b"x"], 0), Err(Unsealed::TailFirst));
    client.read(&server.flush(22));
    client.read(&server.write(&[b", new"], usize::MAX).unwrap().0);
    assert_eq!(client.read, b"sealed with the old key, new");
    assert!(server.records().is_idle());
}

#[test]
fn a_peer_that_requests_and_does_not_read_gets_one_answer() {
    let (mut server, mut client) = ends(Suite::Tls13Aes128Gcm);
    server.write(&[b"stuck"], 0).unwrap();
    for _ in 0..100 {
        client.records().update_keys(true);
        let request = client.flush_all();
        let data = client.write(&[b"data"], usize::MAX).unwrap().0;
        server.read(&[request, data].concat());
    }
    assert_eq!((server.records().tail().len(), server.fault), (27, None));
    client.read(&server.flush_all());
    assert_eq!((&client.read[..], client.fault), (&b"stuck"[..], None));
}

#[test]
fn a_request_that_comes_while_a_batch_is_under_way_is_answered_with_the_next() {
    let (server, client) = testing::pair(Suite::Tls13Aes128Gcm);
    let mut client = End::new(client);
    let mut pool = Pool::default();
    let key = pool.insert(server).unwrap();
    client.records().update_keys(true);
    let mut request = client.flush_all();
    let data = client.write(&[b"data"], usize::MAX).unwrap().0;
    request.extend(data);
    let mut records = pool.records(&key).unwrap();
    let mut opener = Opener::new();
    // The caller stops at the data and seals before it has read to the end.
    let received = opener.next(&mut records, &mut request, &mut 0).unwrap();
    assert!(matches!(received, Some(Received::Data(b)) if b == b"data"));
    let mut batch = Batch::new();
    let sealed = batch.seal(&mut records, [&b"reply"[..]]).unwrap();
    let bytes = batch.bytes(&sealed);
    // KeyUpdate, then data with the new key.
    assert_eq!(bytes.len(), 27 + 5 + 22);
    client.read(bytes);
    records.sent(bytes, bytes.len());
    assert_eq!((&client.read[..], client.fault), (&b"reply"[..], None));
    assert!(records.is_idle());
}

#[test]
fn keys_are_replaced_before_their_limit() {
    for suite in [Suite::Tls13Aes128Gcm, Suite::Tls13Aes256Gcm, Suite::Tls13ChaCha20] {
        let limit = suite.records_max() - RECORDS_SPARE;
        let (mut server, mut client) = with_sequence(suite, limit - 2);
        let mut lengths = Vec::new();
        for _ in 0..4 {
            let wire = server.write(&[b"data"], usize::MAX).unwrap().0;
            lengths.push(wire.len());
            client.read(&wire);
        }
        assert_eq!(lengths, [26, 26, 27 + 26, 26]);
        assert_eq!((&client.read[..], client.fault), (&b"data".repeat(4)[..], None));
        // In the middle of what one call seals, too.
        let (mut server, mut client) = with_sequence(suite, limit - 2);
        client.read(&server.write(&[&[5; 70_000]], usize::MAX).unwrap().0);
        assert_eq!((client.read.len(), client.fault), (70_000, None));
    }
}

#[test]
fn tls12_stops_before_the_limit_of_its_key_and_still_says_goodbye() {
    for suite in [Suite::Tls12Aes128Gcm, Suite::Tls12Aes256Gcm] {
        let limit = suite.records_max() - RECORDS_SPARE;
        let (mut server, mut client) =
            with_sequence(suite, limit - RECORDS_WORN + RECORDS_SPARE - 1);
        assert!(!server.records().is_worn());
        client.read(&server.write(&[b"data"], usize::MAX).unwrap().0);
        assert!(server.records().is_worn());

        let (mut server, mut client) = with_sequence(suite, limit - 1);
        client.read(&server.write(&[b"last"], usize::MAX).unwrap().0);
        assert_eq!(server.write(&[b"more"], usize::MAX), Err(Unsealed::KeyWorn));
        server.records().close_notify();
        client.read(&server.flush_all());
        assert!(client.closed && client.read == b"last");

        // Beyond the limit there is nothing, not even an alert.
        let (mut server, _) = with_sequence(suite, suite.records_max());
        server.records().close_notify();
        assert!(server.records().tail().is_empty() && server.records().has_ended());
    }
}

#[test]
fn updates_wipe_the_keys_before_them() {
    for suite in [Suite::Tls13Aes128Gcm, Suite::Tls13Aes256Gcm, Suite::Tls13ChaCha20] {
        let (mut server, mut client) = ends(suite);
        let before = server.pack().as_bytes().to_vec();
        server.records().update_keys(false);
        client.read(&server.flush_all());
        let after = server.pack();
        let direction = (before.len() - 1) / 2;
        assert_eq!(before.len(), after.as_bytes().len());
        // Four bytes in their place are equal by chance once in 2^32.
        let equal =
            before[1..=direction].windows(4).zip(after.as_bytes()[1..=direction].windows(4));
        let equal = equal.filter(|(before, after)| before == after).count();
        // The sequence number and the notes are all zero.
        assert!(equal <= 5, "{suite:?}: {equal}");
        assert_eq!(before[direction + 1..], after.as_bytes()[direction + 1..]);
    }
}

#[test]
fn a_state_that_goes_on_twice_is_noticed_by_the_record_of_nonces() {
    let (mut server, _) = ends(Suite::Tls13Aes128Gcm);
    let mut twin = End::new(server.pack());
    server.write(&[b"once"], usize::MAX).unwrap();
    let twice =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| twin.write(&[b"twice"], 0)));
    assert!(twice.is_err());
}
