//! Commands in Protobuf: what is read can be written in either encoding and is read as the same, and
//! a frame can be left behind any command and taken up again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::proto::client::binary_commands;

fuzz_target!(|frame: &[u8]| {
    let mut all = binary_commands(frame);
    while let Some(Ok(command)) = all.next() {
        roost_fuzz::check(&command);
        if !all.is_done() {
            let rest = binary_commands(&frame[all.consumed()..]).next();
            assert_eq!(rest, all.clone().next());
        }
    }
    assert!(all.is_done() && all.consumed() <= frame.len());
});
