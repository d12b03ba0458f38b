//! The client protocol in Protobuf (protocol, section 2.2): messages of [`schema`](super::schema),
//! with their lengths in front.

mod read;
mod write;

pub(super) use read::{emulation_request, parse, split};
pub(super) use write::{put_history, put_presence, put_publications, put_push, put_reply};
