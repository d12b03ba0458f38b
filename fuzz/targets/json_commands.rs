//! Commands in JSON: what is read can be written in either encoding and is read as the same, payloads
//! are JSON, and a frame can be left behind any command and taken up again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::proto::client::commands;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut all = commands(text);
    while let Some(Ok(command)) = all.next() {
        roost_fuzz::check(&command);
        if !all.is_done() {
            let rest = commands(&text[all.consumed()..]).next();
            assert_eq!(rest, all.clone().next());
        }
    }
    assert!(all.is_done() && all.consumed() <= text.len());
});
