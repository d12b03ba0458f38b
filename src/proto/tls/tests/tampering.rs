//! Changed, repeated, left out and reordered records.

use super::super::testing::{End, ends, forget_uses};
use super::super::*;

/// A client's state, and two records that the server sends to it.
fn two_records(suite: Suite) -> (Packed, Vec<u8>, Vec<u8>) {
    let (mut server, mut client) = ends(suite);
    let first = server.write(&[b"first record"], usize::MAX).unwrap().0;
    let second = server.write(&[b"second"], usize::MAX).unwrap().0;
    (client.pack(), first, second)
}

/// A copy of that client, which reads these bytes.
fn read(state: &Packed, bytes: &[u8]) -> End {
    forget_uses();
    let mut end = End::new(Packed::from_bytes(state.as_bytes()).unwrap());
    end.read(bytes);
    end
}

#[test]
fn a_record_with_any_bit_flipped_is_never_delivered() {
    for suite in Suite::ALL {
        let (state, first, second) = two_records(suite);
        for bit in 0..first.len() * 8 {
            let mut changed = [&first[..], &second].concat();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mut end = read(&state, &changed);
            assert_eq!(end.read, b"", "{suite:?}, bit {bit}");
            // A longer length waits for more bytes; they don't help.
            if end.fault.is_none() {
                assert!((24..40).contains(&bit), "{suite:?}, bit {bit}");
                end.read(&[0; SEALED_BYTES_MAX]);
                assert_eq!(end.read, b"");
            }
            let expected = match bit {
                0..8 => matches!(end.fault, Some(Fault::UnexpectedRecord(_) | Fault::BadRecordMac)),
                24..40 => matches!(end.fault, Some(Fault::RecordOverflow | Fault::BadRecordMac)),
                _ => end.fault == Some(Fault::BadRecordMac),
            };
            assert!(expected, "{suite:?}, bit {bit}: {:?}", end.fault);
            let alert = end.fault.unwrap().alert();
            assert!(alert.is_some() && !end.records().tail().is_empty());
        }
    }
}

#[test]
fn repeated_reordered_and_missing_records_are_refused() {
    for suite in Suite::ALL {
        let (state, first, second) = two_records(suite);
        let cases = [
            (vec![&first, &first], &b"first record"[..]),
            (vec![&second, &first], b""),
            (vec![&first, &second, &first], b"first recordsecond"),
            (vec![&first, &second, &second], b"first recordsecond"),
        ];
        for (records, delivered) in cases {
            let wire: Vec<u8> = records.into_iter().flatten().copied().collect();
            let end = read(&state, &wire);
            assert_eq!((&end.read[..], end.fault), (delivered, Some(Fault::BadRecordMac)));
        }
    }
}

#[test]
fn own_records_come_back_refused() {
    for suite in Suite::ALL {
        let (mut server, _) = ends(suite);
        let sent = server.write(&[b"to the client"], usize::MAX).unwrap().0;
        server.read(&sent);
        assert_eq!((server.read.len(), server.fault), (0, Some(Fault::BadRecordMac)));
    }
}

#[test]
fn records_of_another_generation_of_keys_are_refused() {
    let (mut server, mut client) = ends(Suite::Tls13Aes256Gcm);
    let state = client.pack();
    let old = server.write(&[b"old"], usize::MAX).unwrap().0;
    server.records().update_keys(false);
    let update = server.flush_all();
    let new = server.write(&[b"new"], usize::MAX).unwrap().0;
    forget_uses();
    client.read(&[&old[..], &update, &old].concat());
    assert_eq!((&client.read[..], client.fault), (&b"old"[..], Some(Fault::BadRecordMac)));
    // Without the KeyUpdate between them.
    let client = read(&state, &[&old[..], &new].concat());
    assert_eq!((&client.read[..], client.fault), (&b"old"[..], Some(Fault::BadRecordMac)));
    let client = read(&state, &[&old[..], &update, &new].concat());
    assert_eq!((&client.read[..], client.fault), (&b"oldnew"[..], None));
}

#[test]
fn behind_a_fault_nothing_is_opened_and_one_alert_is_sent() {
    for suite in Suite::ALL {
        let (mut server, mut client) = ends(suite);
        let mut record = server.write(&[b"data"], usize::MAX).unwrap().0;
        *record.last_mut().unwrap() ^= 1;
        client.read(&record);
        assert_eq!(client.fault, Some(Fault::BadRecordMac));
        let alert = client.flush_all();
        assert_eq!(alert.len(), 2 + suite.overhead_bytes());
        client.pass();
        client.read(&server.write(&[b"more"], usize::MAX).unwrap().0);
        assert_eq!((client.read.len(), client.records().tail().len()), (0, 0));
        client.records().close_notify();
        assert_eq!(client.records().tail(), b"");
        assert_eq!(client.write(&[b"late"], 0), Err(Unsealed::Ended));
        assert!(client.records().is_idle());
        server.read(&alert);
        assert_eq!(server.fault, Some(Fault::PeerAlert(Alert::BAD_RECORD_MAC)));
        // An alert isn't answered.
        assert_eq!(server.records().tail(), b"");
    }
}

#[test]
fn data_before_a_fault_is_delivered_first() {
    for suite in Suite::ALL {
        let (state, first, second) = two_records(suite);
        let mut wire = [&first[..], &second, &[0; 5]].concat();
        let end = read(&state, &wire);
        assert_eq!(
            (&end.read[..], end.fault),
            (&b"first recordsecond"[..], Some(Fault::UnexpectedRecord(0)))
        );
        wire.truncate(first.len());
        wire.extend([23, 3, 3, 0xff, 0xff]);
        let end = read(&state, &wire);
        assert_eq!((&end.read[..], end.fault), (&b"first record"[..], Some(Fault::RecordOverflow)));
    }
}
