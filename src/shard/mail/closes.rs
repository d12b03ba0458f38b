//! Ends of connections, as the control thread gets them.

use std::net::IpAddr;

use compact_str::CompactString;

use crate::base::form::Transport;
use crate::base::heap::HeapBytes;
use crate::base::id::ConnKey;
use crate::base::software::SoftwareId;

/// The end of a connection.
#[derive(Clone, Debug)]
pub struct Close {
    /// Unix seconds.
    pub at: i64,
    /// The connection, which the client id is made of.
    pub conn: ConnKey,
    /// Its client was connected: there is a client id.
    pub was_connected: bool,
    /// The user; empty for an anonymous one and for none.
    pub user: CompactString,
    /// Its address, if it has one.
    pub address: Option<IpAddr>,
    /// The transport.
    pub transport: Transport,
    /// The client's software.
    pub software: SoftwareId,
    /// How long it was open, seconds.
    pub lasted_s: u32,
    /// The code of the close; 0: the peer went without one.
    pub code: u16,
    /// The client closed, or its connection broke; else the node closed.
    pub by_client: bool,
    /// The detail, as the log has it.
    pub detail: CompactString,
}

impl HeapBytes for Close {
    fn heap_bytes(&self) -> usize {
        self.user.heap_bytes() + self.detail.heap_bytes()
    }
}

/// Which closes are wanted.
#[derive(Clone, Debug, Default)]
pub struct ClosesOf {
    /// Of this user; empty: of any.
    pub user: CompactString,
    /// Of this address; `None`: of any.
    pub address: Option<IpAddr>,
    /// With this code; 0: with any.
    pub code: u16,
}

impl ClosesOf {
    /// Whether a close is wanted.
    pub(crate) fn has(&self, close: &Close) -> bool {
        (self.user.is_empty() || self.user == close.user)
            && (self.address.is_none() || self.address == close.address)
            && (self.code == 0 || self.code == close.code)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn a_close_is_wanted_by_each_of_its_parts() {
        let close = Close {
            at: 1,
            conn: ConnKey { index: 1, generation: NonZeroU32::MIN },
            was_connected: true,
            user: "anna".into(),
            address: Some(IpAddr::from([192, 0, 2, 1])),
            transport: Transport::WebSocket,
            software: SoftwareId::UNNAMED,
            lasted_s: 1,
            code: 3000,
            by_client: false,
            detail: CompactString::default(),
        };
        let has = |user: &str, address: Option<[u8; 4]>, code| {
            ClosesOf { user: user.into(), address: address.map(IpAddr::from), code }.has(&close)
        };
        assert!(has("", None, 0) && has("anna", Some([192, 0, 2, 1]), 3000));
        assert!(!has("ben", None, 0) && !has("", Some([192, 0, 2, 2]), 0) && !has("", None, 3001));
    }
}
