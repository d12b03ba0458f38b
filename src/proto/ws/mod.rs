//! WebSocket framing (RFC 6455), sans I/O, for either role.
//!
//! ```text
//!  bytes read --> Reader::next --> Event (lent from the input, or from what was kept) --> session
//!                    '--> Fault --> close frame with Fault::close_code(), then the end
//!  payload    --> frame / put_frame / put_masked / close_frame --> bytes to write
//! ```
//!
//! A [`Reader`] is one pointer and owns heap only in the middle of a frame or of a fragmented
//! message. It is pulled: the caller may stop between two events and come back with the rest of the
//! bytes. What it must not know: sockets, time, what a message means. Answering pings, echoing the
//! close frame and dropping what follows a close are the caller's.
//!
//! Frame headers and opcodes are tungstenite's; what RFC 6455 forbids and that parser accepts is
//! refused here (`header.rs`).

mod close;
#[cfg(test)]
mod conformance;
mod deflate;
mod fault;
mod header;
mod mask;
mod offer;
mod reader;
mod rules;
#[cfg(test)]
mod testing;
mod utf8;
mod write;

pub use self::close::{CLOSE_REASON_BYTES_MAX, close_code_is_valid};
pub use self::deflate::{DEFLATE_BYTES_MIN, DeflateOptions, Deflaters, InflateFault, Inflater};
pub use self::fault::Fault;
pub use self::header::{CONTROL_BYTES_MAX, HEADER_BYTES_MAX};
pub use self::mask::mask;
pub use self::offer::Deflate;
pub use self::reader::{Event, MessageKind, Reader};
pub use self::rules::ReadRules;
pub use self::write::{
    close_frame, frame, payload, put_deflated_header, put_frame, put_header, put_masked, text_frame,
};
pub use tungstenite::protocol::frame::coding::OpCode;

use tungstenite::protocol::frame::coding::{Control, Data};

/// Opcode 0: a further fragment of a message (RFC 6455 5.4).
pub const CONTINUATION: OpCode = OpCode::Data(Data::Continue);
/// Opcode 1: a text message, or its first fragment.
pub const TEXT: OpCode = OpCode::Data(Data::Text);
/// Opcode 2: a binary message, or its first fragment.
pub const BINARY: OpCode = OpCode::Data(Data::Binary);
/// Opcode 8: close (RFC 6455 5.5.1).
pub const CLOSE: OpCode = OpCode::Control(Control::Close);
/// Opcode 9: ping (RFC 6455 5.5.2).
pub const PING: OpCode = OpCode::Control(Control::Ping);
/// Opcode 10: pong (RFC 6455 5.5.3).
pub const PONG: OpCode = OpCode::Control(Control::Pong);
