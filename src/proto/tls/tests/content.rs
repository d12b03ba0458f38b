//! Sealed records of contents that an honest peer may send, or that none does.

use super::super::testing::{End, Forger, ends};
use super::super::*;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

const TLS13: [Suite; 3] = [Suite::Tls13Aes128Gcm, Suite::Tls13Aes256Gcm, Suite::Tls13ChaCha20];
const TLS12: [Suite; 3] = [Suite::Tls12Aes128Gcm, Suite::Tls12Aes256Gcm, Suite::Tls12ChaCha20];

/// An end of this role, and a forger of its peer's records.
fn forged(suite: Suite, role: Role) -> (End, Forger) {
    let (mut server, mut client) = ends(suite);
    match role {
        Role::Server => (server, Forger::of(&client.pack())),
        Role::Client => {
            let forger = Forger::of(&server.pack());
            (client, forger)
        }
    }
}

/// The end's fault when it has read records of these types and contents.
fn fault(suite: Suite, role: Role, records: &[(u8, &[u8])]) -> Option<Fault> {
    let (mut end, mut forger) = forged(suite, role);
    for (kind, content) in records {
        let record = forger.record(*kind, content, 0);
        end.read(&record);
    }
    end.fault
}

#[test]
fn the_forger_and_the_record_layer_seal_alike() {
    for suite in Suite::ALL {
        let (mut server, mut client) = ends(suite);
        let mut forger = Forger::of(&client.pack());
        for content in [&b"a"[..], b"longer", &[7; 2000]] {
            let sealed = client.write(&[content], usize::MAX).unwrap().0;
            assert_eq!(sealed, forger.record(DATA, content, 0));
            server.read(&sealed);
        }
    }
}

#[test]
fn padding_is_removed() {
    for suite in TLS13 {
        let (mut end, mut forger) = forged(suite, Role::Server);
        for padding in [0, 1, 100, PLAIN_BYTES_MAX - 4] {
            end.read(&forger.record(DATA, b"data", padding));
        }
        assert_eq!((&end.read[..], end.fault), (&b"data".repeat(4)[..], None));
        end.read(&forger.record(DATA, b"data", PLAIN_BYTES_MAX - 3));
        assert_eq!(end.fault, Some(Fault::RecordOverflow));
        let (mut end, mut forger) = forged(suite, Role::Server);
        end.read(&forger.inner(DATA, &[0; 20]));
        assert_eq!(end.fault, Some(Fault::NoContentType));
    }
}

#[test]
fn records_of_the_greatest_length_are_accepted_and_no_longer_ones() {
    for suite in Suite::ALL {
        let (mut end, mut forger) = forged(suite, Role::Server);
        end.read(&forger.record(DATA, &[1; PLAIN_BYTES_MAX], 0));
        assert_eq!((end.read.len(), end.fault), (PLAIN_BYTES_MAX, None));
        // In pieces as well; what is kept is bounded by what has come.
        let record = forger.record(DATA, &[1; PLAIN_BYTES_MAX], 0);
        let mut came = 0;
        for piece in record.chunks(1000) {
            end.read(piece);
            came += piece.len();
            assert!(
                end.records().heap_bytes() <= 2 * came
                    && end.records().heap_bytes() <= record.len()
            );
        }
        assert_eq!((end.read.len(), end.records().heap_bytes()), (2 * PLAIN_BYTES_MAX, 0));
        end.read(&forger.record(DATA, &[1; PLAIN_BYTES_MAX + 1], 0));
        assert_eq!((end.read.len(), end.fault), (2 * PLAIN_BYTES_MAX, Some(Fault::RecordOverflow)));
    }
}

#[test]
fn lengths_are_refused_with_their_header() {
    for suite in Suite::ALL {
        let longest =
            PLAIN_BYTES_MAX + if suite.is_tls13() { 256 } else { suite.overhead_bytes() - 5 };
        let shortest = suite.overhead_bytes() - HEADER_BYTES;
        let cases = [
            (longest, None),
            (longest + 1, Some(Fault::RecordOverflow)),
            (65535, Some(Fault::RecordOverflow)),
            (shortest, None),
            (shortest - 1, Some(Fault::BadRecordMac)),
            (0, Some(Fault::BadRecordMac)),
        ];
        for (length, fault) in cases {
            let [high, low] = (length as u16).to_be_bytes();
            for pieces in [vec![&[23, 3, 3, high, low][..]], vec![&[23, 3], &[3, high], &[low]]] {
                let (mut end, _) = forged(suite, Role::Server);
                pieces.into_iter().for_each(|piece| end.read(piece));
                assert_eq!(end.fault, fault, "{suite:?}, {length}");
            }
        }
    }
}

#[test]
fn plaintext_records_are_refused_behind_the_handshake() {
    for suite in TLS13 {
        for kind in (0..=255).filter(|kind| *kind != 23) {
            let (mut end, _) = forged(suite, Role::Server);
            end.read(&[kind]);
            assert_eq!(end.fault, Some(Fault::UnexpectedRecord(kind)));
        }
        let alert = [21, 3, 3, 0, 2, 1, 0];
        let (mut end, _) = forged(suite, Role::Server);
        end.read(&alert);
        assert!(!end.closed && end.fault == Some(Fault::UnexpectedRecord(21)));
    }
    for suite in TLS12 {
        for kind in [0, 20, 24, 255] {
            let (mut end, _) = forged(suite, Role::Server);
            end.read(&[kind]);
            assert_eq!(end.fault, Some(Fault::UnexpectedRecord(kind)));
        }
        let (mut end, _) = forged(suite, Role::Server);
        end.read(&[21, 3, 3, 0, 2, 1, 0]);
        assert!(!end.closed && end.fault == Some(Fault::BadRecordMac));
    }
}

#[test]
fn unknown_content_types_inside_are_refused() {
    for suite in TLS13 {
        for kind in [1, 20, 24, 255] {
            let records: [(u8, &[u8]); 1] = [(kind, &[1])];
            assert_eq!(fault(suite, Role::Server, &records), Some(Fault::UnexpectedRecord(kind)));
        }
    }
}

#[test]
fn alerts_end_the_connection_and_close_notify_one_direction() {
    for suite in Suite::ALL {
        let of = |content: &[u8]| fault(suite, Role::Server, &[(ALERT, content)]);
        assert_eq!(of(&[2, 40]), Some(Fault::PeerAlert(Alert(40))));
        assert_eq!(of(&[]), Some(Fault::EmptyRecord));
        assert_eq!(of(&[1]), Some(Fault::AlertLength));
        assert_eq!(of(&[1, 0, 1]), Some(Fault::AlertLength));
        assert_eq!(of(&[1, 90]), None);
        // TLS 1.3 ignores the level; in 1.2 a warning doesn't end the connection.
        let warning = (suite.is_tls13()).then_some(Fault::PeerAlert(Alert(112)));
        assert_eq!(of(&[1, 112]), warning);

        for level in [1, 2] {
            let (mut end, mut forger) = forged(suite, Role::Server);
            let records = [(DATA, &b"data"[..]), (ALERT, &[level, 0]), (DATA, b"late")];
            let records = records.map(|(kind, content)| forger.record(kind, content, 0));
            end.read(&records.concat());
            assert!(end.closed && end.read == b"data" && end.fault.is_none());
            end.pass();
            end.read(b"anything");
            assert!(end.fault.is_none() && end.records().peer_has_closed());
            // The other direction goes on.
            assert!(end.write(&[b"still here"], usize::MAX).is_ok());
            assert!(end.records().is_idle());
        }
    }
}

#[test]
fn records_without_data_are_bounded_between_data() {
    for suite in Suite::ALL {
        let contents: [(u8, &[u8]); 3] =
            [(DATA, b""), (ALERT, &[1, 90]), (HANDSHAKE, &[24, 0, 0, 1, 0])];
        for (kind, content) in contents {
            if kind == HANDSHAKE && !suite.is_tls13() {
                continue;
            }
            let (mut end, mut forger) = forged(suite, Role::Server);
            let mut send = |end: &mut End, kind, content: &[u8]| {
                end.read(&forger.record(kind, content, 0));
                if kind == HANDSHAKE {
                    forger.update_keys();
                }
            };
            for _ in 0..3 {
                for _ in 0..RECORDS_WITHOUT_DATA_MAX {
                    send(&mut end, kind, content);
                    end.pass();
                }
                assert!(end.fault.is_none() && end.records().is_idle());
                send(&mut end, DATA, b"data");
            }
            for _ in 0..=RECORDS_WITHOUT_DATA_MAX {
                send(&mut end, kind, content);
            }
            assert_eq!(end.fault, Some(Fault::TooManyWithoutData), "{suite:?}, {kind}");
        }
    }
}

#[test]
fn key_updates_with_a_byte_of_data_behind_each_are_bounded() {
    for suite in TLS13 {
        let (mut end, mut forger) = forged(suite, Role::Server);
        let mut input = Vec::new();
        for _ in 0..60 {
            input.extend(forger.record(HANDSHAKE, &[24, 0, 0, 1, 0], 0));
            forger.update_keys();
            input.extend(forger.record(DATA, b"x", 0));
        }
        end.read(&input);
        assert_eq!(end.fault, Some(Fault::TooManyWithoutData));
        assert!((32..40).contains(&end.read.len()), "{}", end.read.len());
        // As many in reads of their own are fine, and so are some between much data.
        let (mut end, mut forger) = forged(suite, Role::Server);
        let mut long = Vec::new();
        for _ in 0..10 {
            let update = forger.record(HANDSHAKE, &[24, 0, 0, 1, 0], 0);
            forger.update_keys();
            end.read(&[update, forger.record(DATA, b"x", 0)].concat());
            long.extend(forger.record(HANDSHAKE, &[24, 0, 0, 1, 0], 0));
            forger.update_keys();
            long.extend(forger.record(DATA, &[b'y'; 2000], 0));
            end.read(&std::mem::take(&mut long));
        }
        assert_eq!((end.read.len(), end.fault), (20_010, None));
    }
}

#[test]
fn key_updates_are_checked() {
    for suite in TLS13 {
        let of = |records: &[&[u8]]| {
            let records: Vec<(u8, &[u8])> =
                records.iter().map(|content| (HANDSHAKE, *content)).collect();
            fault(suite, Role::Server, &records)
        };
        assert_eq!(of(&[&[24, 0, 0, 1, 0]]), None);
        assert_eq!(of(&[&[24, 0, 0, 1, 2]]), Some(Fault::KeyUpdateValue));
        assert_eq!(of(&[&[24, 0, 0, 1, 255]]), Some(Fault::KeyUpdateValue));
        assert_eq!(of(&[&[24, 0, 0, 0]]), Some(Fault::KeyUpdateLength));
        assert_eq!(of(&[&[24, 0, 0, 2]]), Some(Fault::KeyUpdateLength));
        assert_eq!(of(&[&[24, 1, 0, 1]]), Some(Fault::KeyUpdateLength));
        assert_eq!(of(&[&[24, 0, 0, 1, 0, 24]]), Some(Fault::KeyUpdateNotLast));
        assert_eq!(of(&[&[24, 0, 0, 1, 0, 24, 0, 0, 1, 0]]), Some(Fault::KeyUpdateNotLast));
        assert_eq!(of(&[&[]]), Some(Fault::EmptyRecord));
        for other in [0, 1, 2, 4, 5, 8, 11, 13, 20, 25, 254] {
            assert_eq!(of(&[&[other]]), Some(Fault::UnexpectedMessage(other)));
        }
        // In fragments, with packed forms between them.
        for cut in 1..5 {
            let (mut end, mut forger) = forged(suite, Role::Server);
            let message = [24, 0, 0, 1, 1];
            end.read(&forger.record(HANDSHAKE, &message[..cut], 0));
            assert!(!end.records().is_idle());
            end.pass();
            end.read(&forger.record(HANDSHAKE, &message[cut..], 3));
            forger.update_keys();
            end.read(&forger.record(DATA, b"new keys", 0));
            assert_eq!((&end.read[..], end.fault), (&b"new keys"[..], None));
            assert_eq!(end.records().tail().len(), 27);
        }
        let begun: (u8, &[u8]) = (HANDSHAKE, &[24, 0]);
        let between: [(u8, &[u8]); 3] = [(DATA, b"data"), (DATA, b""), (ALERT, &[1, 0])];
        for record in between {
            let (mut end, mut forger) = forged(suite, Role::Server);
            for (kind, content) in [begun, record] {
                assert_eq!(end.fault, None);
                end.read(&forger.record(kind, content, 0));
            }
            assert_eq!(end.fault, Some(Fault::Interleaved));
            // Behind a fault there is nothing to go on with.
            end.flush_all();
            assert!(end.records().is_idle());
        }
    }
}

#[test]
fn a_client_passes_over_tickets() {
    for suite in TLS13 {
        let (mut end, mut forger) = forged(suite, Role::Client);
        let ticket = [&[4, 0, 1, 0][..], &[24; 256]].concat();
        let three = [&ticket[..], &ticket, &ticket].concat();
        for piece in three.chunks(100) {
            end.read(&forger.record(HANDSHAKE, piece, 0));
            end.pass();
        }
        assert!(end.records().is_idle() && end.fault.is_none());
        // A ticket and a KeyUpdate in one record.
        end.read(&forger.record(HANDSHAKE, &[&ticket[..], &[24, 0, 0, 1, 0]].concat(), 0));
        forger.update_keys();
        end.read(&forger.record(DATA, b"data", 0));
        assert_eq!((&end.read[..], end.fault), (&b"data"[..], None));
        // A server takes none.
        let records: [(u8, &[u8]); 1] = [(HANDSHAKE, &ticket)];
        assert_eq!(fault(suite, Role::Server, &records), Some(Fault::UnexpectedMessage(4)));
    }
}

#[test]
fn renegotiation_is_refused() {
    for suite in TLS12 {
        let of = |role, content: &[u8]| fault(suite, role, &[(HANDSHAKE, content)]);
        assert_eq!(of(Role::Server, &[1, 0, 0, 1, 0]), Some(Fault::Renegotiation));
        assert_eq!(of(Role::Server, &[24, 0, 0, 1, 0]), Some(Fault::UnexpectedMessage(24)));
        assert_eq!(of(Role::Server, &[]), Some(Fault::EmptyRecord));
        // A client passes over the request for one.
        assert_eq!(of(Role::Client, &[0, 0, 0, 0]), None);
        assert_eq!(of(Role::Client, &[0, 0, 0]), Some(Fault::UnexpectedMessage(0)));
        assert_eq!(of(Role::Client, &[1, 0, 0, 0]), Some(Fault::UnexpectedMessage(1)));
        let (mut server, mut forger) = forged(suite, Role::Server);
        let mut expected = Forger::of(&server.pack());
        server.read(&forger.record(HANDSHAKE, &[1, 0, 0, 0], 0));
        // A warning: level 1, description 100.
        assert_eq!(server.flush_all(), expected.record(ALERT, &[1, 100], 0));
    }
}

#[test]
fn explicit_nonces_are_the_peers_choice() {
    // TLS 1.2: any nonce that the record names opens it.
    use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let (mut server, mut client) = ends(Suite::Tls12Aes128Gcm);
    let packed = client.pack();
    let (key, iv) = (&packed.as_bytes()[1..17], &packed.as_bytes()[17..29]);
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key).unwrap());
    for (sequence, explicit) in [[0; 8], [0xff; 8], *b"explicit"].into_iter().enumerate() {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&iv[..4]);
        nonce[4..].copy_from_slice(&explicit);
        let aad = [&(sequence as u64).to_be_bytes()[..], &[23, 3, 3, 0, 4]].concat();
        let mut sealed = b"data".to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed).unwrap();
        server.read(&[&[23, 3, 3, 0, 28][..], &explicit, &sealed].concat());
    }
    assert_eq!((&server.read[..], server.fault), (&b"datadatadata"[..], None));
}
