//! Payloads of PUB/SUB messages: nothing panics, and what is read is written as the same.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use roost::cluster::names::{Layout, Names};
use roost::cluster::operations::Operations;
use roost::cluster::payload::Payload;

static OPERATIONS: LazyLock<Operations> = LazyLock::new(|| Operations {
    names: Names::new("p", Layout::Plain),
    use_lists: false,
    presence_ttl_s: 60,
    presence_users: false,
    presence_field_ttl: false,
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(payload) = Payload::parse(bytes) {
        let mut again = Vec::new();
        payload.put(&mut again);
        assert_eq!(Payload::parse(&again), Ok(payload));
    }
    let _ = OPERATIONS.message("c", bytes);
    let _ = OPERATIONS.names.channel_of(bytes);
});
