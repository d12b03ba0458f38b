//! Every bound that is not an option, by name, with what happens when it is met.

/// Shards of one process at most: a shard's number is one byte, 255 means none.
pub const SHARDS_MAX: usize = 255;

/// Bytes that one shard reads from one connection in one turn; the rest waits for the next turn.
pub const TURN_READ_BYTES_MAX: usize = 64 * 1024;

/// Frames that one connection has handled in one turn; the rest waits for the next turn.
pub const TURN_FRAMES_MAX: usize = 128;

/// Request head at most, bytes: more is answered with 431.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Headers in a request head at most: more is answered with 431.
pub const HEADERS_MAX: usize = 64;
