//! Bytes of a server of NATS: its protocol, payloads of channels, answers about presence. Nothing panics, whatever is
//! read takes bytes, and answers of JetStream are read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::cluster::nats::payload;
use roost::cluster::nats::protocol::{Info, Op, next};
use roost::cluster::nats::streams::{Ack, Stored, StreamInfo};
use roost::cluster::presence::{Counts, Members};
use roost::edge::subjects::SubjectRules;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some((op, taken))) = next(rest) {
        assert!(taken > 0 && taken <= rest.len());
        match op {
            Op::Message(message) => {
                let _ = message.headers.status();
                let stored = Stored::read(&message.headers);
                let place = stored.map(|of| (of.sequence, of.last));
                let _ = payload::read_at(message.payload, place);
                let _ = serde_json::from_slice::<Ack>(message.payload);
                if let Ok(info) = serde_json::from_slice::<StreamInfo>(message.payload) {
                    let _ = (info.epoch(), info.renewed());
                }
            }
            Op::Info(json) => drop(Info::read(json)),
            _ => {}
        }
        rest = &rest[taken..];
    }
    let _ = (payload::read(bytes), payload::version(bytes));
    let _ = Members::default().add(bytes);
    let _ = Counts::default().add(bytes);
    if let Ok(name) = std::str::from_utf8(bytes) {
        let rules = SubjectRules::new(true, "p.client.", Vec::new());
        if rules.carries(name) {
            assert!(!rules.subject(name).contains([' ', '\r', '\n']));
        }
    }
});
