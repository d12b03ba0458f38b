//! The byte form of a connection's TLS state: flags, the name in its certificate, the state of the record
//! layer. A handshake has none.

use super::conns::{Early, Notes, Refused, Tls};
use crate::base::id::ConnKey;
use crate::proto::tls::Packed;

const WITHHELD: u8 = 1;
const FINISHING: u8 = 2;
/// Its client has shown a certificate.
const NAMED: u8 = 4;
/// Refused: its input is thrown away, nothing more is sent.
const REFUSED: u8 = 0x80;

impl Tls {
    /// The state of a connection as bytes. Either these or the connection go on, never both. `None`: nothing is
    /// kept for it, or its handshake is under way.
    pub(super) fn pack(&mut self, key: ConnKey) -> Option<Vec<u8>> {
        let index = key.index;
        if let Some(Early::Refused(_)) = self.early.get(&index) {
            return Some(vec![REFUSED]);
        }
        let Notes { withheld, finishing, .. } = self.notes(index);
        // Sealed bytes are in a batch within a turn only.
        let packed = self.records(index)?.pack()?;
        let name = self.names.get(&index);
        let named = name.is_some();
        let name = name.map_or("", |name| name);
        let name = name.get(..usize::from(u16::MAX)).unwrap_or(name);
        let state = packed.as_bytes();
        // As long as it will be: a vector that grows leaves secrets behind.
        let mut bytes = Vec::with_capacity(3 + name.len() + state.len());
        let flags = [(withheld, WITHHELD), (finishing, FINISHING), (named, NAMED)];
        bytes.push(flags.iter().filter(|(is, _)| *is).map(|(_, flag)| flag).sum());
        bytes.extend_from_slice(&(name.len() as u16).to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(state);
        Some(bytes)
    }

    /// Forgets a connection that goes on elsewhere: its peer gets nothing.
    pub(super) fn forget(&mut self, key: ConnKey) {
        if let Some(of) = self.take_key(key.index) {
            self.pool.remove(of);
        }
        self.names.remove(&key.index);
        self.forget_early(key.index);
        self.waiting.remove(key.index);
        self.again.retain(|of| of.index != key.index);
    }

    /// Takes over what [`Self::pack`] has returned. False: it is no such state.
    pub(super) fn unpack(&mut self, key: ConnKey, packed: &[u8]) -> bool {
        let index = key.index;
        if self.is_open(index) || self.early.contains_key(&index) {
            return false;
        }
        if packed == [REFUSED] {
            let refused = Refused { is_announced: true, ..Refused::default() };
            self.early.insert(index, Early::Refused(refused));
            return true;
        }
        let Some((flags, length, rest)) = packed.split_first().and_then(|(flags, rest)| {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            Some((*flags, usize::from(u16::from_be_bytes(*length)), rest))
        }) else {
            return false;
        };
        let Some((name, state)) = rest.split_at_checked(length) else { return false };
        let (Ok(name), Ok(state)) = (std::str::from_utf8(name), Packed::from_bytes(state)) else {
            return false;
        };
        if flags & !(WITHHELD | FINISHING | NAMED) != 0 || flags & NAMED == 0 && !name.is_empty() {
            return false;
        }
        let Ok(of) = self.pool.insert(state) else { return false };
        self.set_key(index, of);
        if flags & NAMED != 0 {
            self.names.insert(index, name.into());
        }
        let (withheld, finishing) = (flags & WITHHELD != 0, flags & FINISHING != 0);
        self.set_notes(index, Notes { withheld, finishing, in_flight: false });
        if self.notes.contains_key(&index) {
            self.again.push(key);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Rig, SUITE};
    use crate::io::{Driver as _, Sent};

    #[test]
    fn states_are_packed_with_their_tails_and_go_on_elsewhere() {
        let mut rig = Rig::new(1000);
        let mut conn = rig.open(SUITE);
        assert_eq!(rig.send(&conn, &[&[b'x'; 3000]], 0), Sent::Bytes(2999));
        conn.client.write(b"a record in pieces");
        let half = conn.client.out().len() / 2;
        let rest = conn.client.out().split_off(half);
        rig.up(&mut conn);
        rig.turn();
        assert_eq!(rig.read(&conn), b"");
        let packed = rig.driver.pack(conn.key).unwrap();
        assert_eq!(rig.driver.pack(conn.key).as_ref(), Some(&packed), "nothing has changed");
        assert!(!rig.driver.unpack(conn.key, &packed), "it is here");
        rig.driver.forget(conn.key, None);
        assert!(rig.driver.left().iter().all(|(_, count)| *count == 0));
        assert!(rig.driver.pack(conn.key).is_none());
        for end in 0..packed.len() {
            assert!(!rig.driver.unpack(conn.key, &packed[..end]));
        }
        assert!(rig.driver.unpack(conn.key, &packed));
        assert!(!rig.driver.unpack(conn.key, &packed), "once");
        *conn.client.out() = rest;
        rig.up(&mut conn);
        rig.turn();
        assert_eq!(rig.read(&conn), b"a record in pieces");
        let mut sent = 2999;
        while sent < 3000 {
            rig.down(&mut conn);
            if let Sent::Bytes(bytes) = rig.send(&conn, &[&[b'x'; 3000]], sent) {
                sent += bytes;
            }
        }
        rig.down(&mut conn);
        assert_eq!(conn.client.plain().len(), 3000);
    }
}
