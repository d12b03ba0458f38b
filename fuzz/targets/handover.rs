//! Messages of a handover between two processes: any bytes are messages or a fault, and what is read is
//! written again as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost::base::image::seal;
use roost::handover::Message;
use roost::handover::framing::{Unframer, framed};
use roost::handover::link::LinkMessage;

fuzz_target!(|bytes: &[u8]| {
    if let Some(message) = LinkMessage::from_bytes(bytes) {
        assert_eq!(message.to_bytes(), bytes);
    }
    // As the writer begins an image; the checksum is made good, so that the record is reached.
    let mut image = b"roostimg\x01\0".to_vec();
    image.extend_from_slice(bytes);
    seal(&mut image);
    if let Ok(message) = Message::from_bytes(&image) {
        let mut unframer = Unframer::default();
        framed(&message).chunks(7).for_each(|chunk| unframer.push(chunk));
        assert_eq!(unframer.next_message(), Ok(Some(message)));
    }
    let mut unframer = Unframer::default();
    unframer.push(bytes);
    while let Ok(Some(_)) = unframer.next_message() {}
});
