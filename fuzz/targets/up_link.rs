//! Input in separate requests: connect requests of one-way clients, commands of the up-link; and
//! that frames of any form hold the messages that were put into them.
//!
//! Input: a byte that says what is done with the rest, then the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::base::form::{Form, Framing};
use roost::base::frame::SharedFrame;
use roost::proto::client::{Encoding, connect_request, emulation_request};
use roost::proto::framing;

fuzz_target!(|bytes: &[u8]| {
    let [what, bytes @ ..] = bytes else { return };
    match what % 4 {
        0 => _ = std::str::from_utf8(bytes).map(connect_request),
        1 => _ = emulation_request(bytes, Encoding::Json),
        2 => _ = emulation_request(bytes, Encoding::Protobuf),
        _ => {
            let framing = Framing::ALL[usize::from(what / 4) % Framing::ALL.len()];
            let form = Form::new(framing, what & 64 != 0);
            let messages: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            let put = |message: &&[u8]| {
                let mut out = Vec::new();
                framing::put(&mut out, form, message);
                SharedFrame::new(&out)
            };
            let frames: Vec<SharedFrame> = messages.iter().map(put).collect();
            let mut joined = Vec::new();
            framing::join(form, &frames.iter().collect::<Vec<_>>(), &mut joined);
            for message in messages {
                assert!(
                    message.is_empty() || joined.windows(message.len()).any(|at| at == message)
                );
            }
        }
    }
});
