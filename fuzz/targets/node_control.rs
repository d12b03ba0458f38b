//! Messages between nodes: nothing panics, and what is read is written as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::cluster::control::{Command, Connection, Message};
use roost::cluster::survey::{Question, channels_in};

fuzz_target!(|bytes: &[u8]| {
    let _ = channels_in(bytes).count();
    let Ok(command) = Command::read(bytes) else { return };
    let connection = Connection { user: "u", client: "c", session: "s" };
    let _ = command.message.selection().map(|selection| selection.contains(connection));
    if let Message::SurveyRequest(request) = &command.message {
        let _ = Question::read(request);
    }
    let again = command.write();
    // Bytes, since a metric may be no number.
    assert_eq!(Command::read(&again).map(Command::write), Ok(again));
});
