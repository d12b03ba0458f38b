//! A new process takes over the connections of a running node.
//!
//! ```text
//!  begin.rs      the start of every node: from another process or not, and offered to the next one
//!  incoming.rs   the new process: connects, prepares, waits for the state, runs at Go
//!  outgoing.rs   the running node: settles, freezes, sends, ends or goes on
//!  brokers.rs    channels that a broker delivers to both processes
//!  shard.rs      the threads of shards on both sides
//!  sending.rs    a shard that is sent in slices, while it runs
//!  channel.rs    messages of the two control threads
//!  gate.rs       requests at the internal port wait while shards are frozen
//! ```
//! The running node decides: until it sends Go it can go on, and from Go on it never serves again. The new
//! process never runs by a time-out, so that no record is sealed by both.

mod begin;
mod brokers;
mod channel;
mod gate;
mod incoming;
mod outgoing;
mod points;
mod sending;
mod shard;

pub(super) use self::Figures as TakeoverFigures;
pub(super) use self::begin::{LaterPidFile, Opened, Takeover, TakeoverSettings};
pub(super) use self::gate::Gate;
pub(super) use self::incoming::Incoming;
pub use self::incoming::status;
pub(super) use self::outgoing::Outgoing;
pub(super) use self::shard::{Arrival, Report, inherit_shard, run};

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use rustix::time::{ClockId, clock_gettime};

use crate::base::id::{ConnKey, ShardId};
use crate::edge::client_id::ClientIdSealer;
use crate::handover::{Identity, Status};

/// Figures of takeovers.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Takeovers since the first process of this node began.
    pub(super) takeovers: AtomicU64,
    /// Attempts of other processes that have failed.
    pub(super) failed: AtomicU64,
    /// Connections that came with the last one.
    pub(super) connections: AtomicU64,
    /// Bytes of state that came with it.
    pub(super) bytes: AtomicU64,
    /// How long no shard read, microseconds.
    pub(super) pause_us: AtomicU64,
    /// When it was, in Unix seconds; 0: this process is the first.
    pub(super) at: AtomicI64,
}

impl Figures {
    /// The node in brief.
    pub(super) fn status(&self) -> Status {
        let load = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            takeovers: load(&self.takeovers),
            connections: load(&self.connections),
            pause_us: load(&self.pause_us),
            bytes: load(&self.bytes),
        }
    }
}

/// The secrets and seeds of a node that begins.
pub(super) fn new_identity() -> std::io::Result<Identity> {
    let secret = || {
        let mut key = [0; 32];
        let filled = aws_lc_rs::rand::fill(&mut key);
        filled.map(|()| key).map_err(|_| std::io::Error::other("no entropy"))
    };
    // A sealed number is as good an id as any: of a version 4, and nobody's.
    let nobody = ConnKey { index: 0, generation: std::num::NonZeroU32::MIN };
    let node_id = ClientIdSealer::new(&secret()?).seal(ShardId(0), nobody).to_string();
    let names = secret()?.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    Ok(Identity {
        node_id,
        client_ids: secret()?,
        session_ids: secret()?,
        names,
        admin_secret: None,
        admin_link: None,
        api_key: None,
        ticket_keys: Vec::new(),
        ticket_keys_since: 0,
    })
}

/// Options with digests of their values: no secret of a configuration leaves the process.
pub(super) fn digests(options: &[(String, String)]) -> Vec<(String, [u8; 16])> {
    let digest_of = |value: &str| {
        let mut first = [0; 16];
        first.copy_from_slice(&digest(&SHA256, value.as_bytes()).as_ref()[..16]);
        first
    };
    options.iter().map(|(name, value)| (name.clone(), digest_of(value))).collect()
}

/// Nanoseconds of the clock that both processes have in common.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_differ_and_digests_hide_values() {
        let (one, other) = (new_identity().unwrap(), new_identity().unwrap());
        assert!(one.node_id != other.node_id && one.client_ids != other.client_ids);
        assert_ne!(one.names, other.names);
        let of = |value: &str| digests(&[("name".to_owned(), value.to_owned())]);
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
    }
}
