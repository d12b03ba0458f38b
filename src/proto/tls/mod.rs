//! The record layer of TLS 1.3 (RFC 8446) and 1.2 (RFC 5246, 5288, 7905) behind the handshake, sans I/O.
//!
//! ```text
//!  handshake --> Packed (keys, IVs, counters, secrets) --> Pool: a slot of 73 to 201 bytes a connection
//!
//!  bytes read ------> Opener::next --> Received::Data (lent) | Received::Closed | Fault
//!                        '--> tail: the alert that answers a fault, the KeyUpdate that was requested
//!  frames to send --> Batch::seal --> bytes to send --> Records::sent --> tail: what the socket left
//!  tail ------------> goes out before anything else is sealed
//! ```
//!
//! A shard keeps a [`Key`] (4 bytes) for each connection and the [`Pool`] for all of them. An idle
//! connection owns its slot and nothing else. A piece of a record that hasn't come whole, and a *tail* of
//! sealed bytes that the socket didn't take, exist only meanwhile.
//!
//! Rules that this module keeps:
//! - One key and one nonce seal once. Sealed bytes are sent or kept as the tail, in their order. They are
//!   never sealed again and never left out. A state that was packed goes on in one place only.
//! - No plaintext of a record is returned before the record is known to be authentic.
//! - Secrets are in slots, in [`Packed`] and in the library's contexts. All three are wiped.
//!
//! What it must not know: sockets, clocks, rustls. AEADs and the KDF are aws-lc-rs'. `handshake.rs` is the
//! seam: the one file, with `handshake/trust.rs`, that knows rustls, and nothing of the record layer but [`Packed`].

mod alert;
mod batch;
mod context;
mod fault;
pub mod handshake;
#[cfg(any(test, debug_assertions))]
pub mod nonces;
mod open;
mod packed;
mod pool;
mod records;
mod seal;
/// Compiled for tests alone, of the simulation as well: debug builds.
#[cfg(any(test, debug_assertions))]
pub mod simulated;
mod state;
mod suite;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod unfinished;

pub use self::alert::Alert;
pub use self::batch::{BATCH_BYTES, Batch, Sealed};
pub use self::fault::Fault;
pub use self::open::{Opener, Place, Received};
pub use self::packed::{Malformed, Packed, Secrets};
pub use self::pool::{Key, Late, Pool};
pub use self::records::Records;
pub use self::seal::Unsealed;
pub use self::state::Role;
pub use self::suite::{IV_BYTES, Suite, TAG_BYTES};

/// Header of a record, bytes: type, version, length.
pub const HEADER_BYTES: usize = 5;

/// Plaintext of one record at most, bytes (RFC 8446 5.1).
pub const PLAIN_BYTES_MAX: usize = 1 << 14;

/// A sealed record of TLS 1.3 at most, bytes behind the header (RFC 8446 5.2).
const SEALED_BYTES_MAX: usize = PLAIN_BYTES_MAX + 256;

/// Records without data in a row at most: KeyUpdates, warnings, empty records, a server's tickets. Behind
/// them the peer gets unexpected_message and the connection ends.
pub const RECORDS_WITHOUT_DATA_MAX: u8 = 32;

/// Records that a key still may seal when it is replaced, or when TLS 1.2 seals no more data with it: for
/// alerts.
const RECORDS_SPARE: u64 = 64;

/// TLS 1.2: records that a key still may seal when [`Records::is_worn`] says so first: for a connection's
/// last words.
const RECORDS_WORN: u64 = 1 << 16;

/// Content types (RFC 8446 5.1).
mod kind {
    pub(super) const ALERT: u8 = 21;
    pub(super) const HANDSHAKE: u8 = 22;
    pub(super) const DATA: u8 = 23;
}

/// Version of a record's header in both versions (RFC 8446 5.1: legacy_record_version).
const VERSION: [u8; 2] = [3, 3];
