//! permessage-deflate: offers of any kind are taken or declined, any bytes are inflated or refused within
//! their bound, and what is deflated comes back.
//!
//! Input: a byte that says what is done with the rest, one for window or bound, then the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::base::form::{Form, Framing};
use roost::proto::ws::{BINARY, Deflate, DeflateOptions, Deflaters, Inflater, payload};

fuzz_target!(|bytes: &[u8]| {
    let [what, number, bytes @ ..] = bytes else { return };
    match what % 3 {
        0 => {
            let Some(deflate) = Deflate::choose(bytes.split(|byte| *byte == b'\n')) else { return };
            assert!((9..=15).contains(&deflate.server_window_bits));
            let mut answer = Vec::new();
            deflate.put_answer(&mut answer);
            // Our answer is an offer that we would accept.
            assert!(Deflate::choose([&answer[..]].into_iter()).is_some());
        }
        1 => {
            let (max, mut out) = (usize::from(*number) * 16, Vec::new());
            let _ = Inflater::default().inflate(bytes, max, &mut out);
            assert!(out.len() <= max + 1);
        }
        _ => {
            let options = DeflateOptions { level: u32::from(number % 9) + 1, bytes_min: 0 };
            let form = Form::new(Framing::deflate(9 + number % 7), true);
            let (mut frame, mut out) = (Vec::new(), Vec::new());
            let mut deflaters = Deflaters::new(options, options);
            if deflaters.put_frame(&mut frame, BINARY, form, bytes) {
                assert!(frame.len() < bytes.len() + 10);
                Inflater::default().inflate(payload(&frame), bytes.len(), &mut out).unwrap();
                assert_eq!(out, bytes);
            }
        }
    }
});
