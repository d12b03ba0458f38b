//! Payloads of messages by NATS, which any of its clients may send: those of channels, answers about presence, answers
//! of JetStream. They are read or refused, and nothing panics. Names of channels that are carried are subjects.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::cluster::nats::payload;
use roost::cluster::nats::streams::{Ack, StreamInfo};
use roost::cluster::presence::{Counts, Members};
use roost::edge::subjects::SubjectRules;

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<Ack>(bytes);
    if let Ok(info) = serde_json::from_slice::<StreamInfo>(bytes) {
        let _ = (info.epoch(), info.renewed());
    }
    let _ = (payload::read(bytes), payload::read_at(bytes, Some((7, 5))), payload::version(bytes));
    let _ = Members::default().add(bytes);
    let _ = Counts::default().add(bytes);
    if let Ok(name) = std::str::from_utf8(bytes) {
        let rules = SubjectRules::new(true, "p.client.", Vec::new());
        if rules.carries(name) {
            assert!(!rules.subject(name).contains([' ', '\r', '\n']));
        }
    }
});
