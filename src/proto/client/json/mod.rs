//! The client protocol in JSON (protocol, section 2.1): one object a line, payloads as they are.

pub(super) mod fields;
mod line;
mod read;
mod write;

pub use read::is_json;
pub(super) use read::{connect_request, emulation_request, parse};
pub(super) use write::{
    put_bare_push, put_connect_result, put_history, put_position, put_presence, put_publication,
    put_publications, put_push, put_reply,
};
