//! Tickets, with which a client resumes a session without a certificate (RFC 8446, 4.6.1; RFC 5077).
//!
//! A ticket is the session's state, sealed with a key that only nodes have: nothing is kept here for it. The
//! key is the node's own and replaced each period, or comes from a file that several nodes share.
//!
//! ```text
//!  ticket: name of the key (8) | salt (16) | nonce (12) | sealed state | tag (16)
//!          HKDF-SHA256(key, salt) -> AES-256-GCM
//! ```
//! Each ticket has a key of its own, derived with a random salt. So the number of tickets that a shared key
//! seals has no bound that nodes would have to count together.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const NAME_BYTES: usize = 8;
const SALT_BYTES: usize = 16;
const HEAD_BYTES: usize = NAME_BYTES + SALT_BYTES + NONCE_LEN;

/// Bytes of a ticket at most: with a client's chain of certificates it has some thousand.
const TICKET_BYTES_MAX: usize = 64 * 1024;

/// Keys of a file at most.
const KEYS_MAX: usize = 16;

/// One key, wiped when it is dropped.
struct Key {
    /// The begin of its digest.
    name: [u8; NAME_BYTES],
    bytes: Zeroizing<[u8; KEY_BYTES]>,
}

impl Key {
    fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let mut name = [0; NAME_BYTES];
        name.copy_from_slice(&digest(&SHA256, &*bytes).as_ref()[..NAME_BYTES]);
        Self { name, bytes }
    }

    /// A new one. `None`: the library has no random numbers.
    fn random() -> Option<Self> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::fill(&mut *bytes).ok()?;
        Some(Self::new(bytes))
    }

    /// The key of one ticket.
    fn of_ticket(&self, salt: &[u8]) -> Option<LessSafeKey> {
        struct Length;
        impl KeyType for Length {
            fn len(&self) -> usize {
                KEY_BYTES
            }
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        let extracted = Salt::new(HKDF_SHA256, salt).extract(&*self.bytes);
        extracted.expand(&[b"roost ticket"], Length).ok()?.fill(&mut *bytes).ok()?;
        UnboundKey::new(&AES_256_GCM, &*bytes).ok().map(LessSafeKey::new)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// The keys of all listeners: the first seals, all open.
#[derive(Debug)]
pub(super) struct TicketKeys {
    keys: ArcSwap<Vec<Arc<Key>>>,
    /// How long clients may keep a ticket, seconds.
    lifetime: u32,
}

impl TicketKeys {
    /// One random key; `period_ms`: how long it seals.
    ///
    /// # Errors
    /// The library has no random numbers.
    pub(super) fn random(period_ms: u64) -> std::io::Result<Self> {
        let key = Key::random().ok_or_else(|| std::io::Error::other("no entropy"))?;
        let lifetime = u32::try_from(period_ms / 1000).unwrap_or(u32::MAX);
        Ok(Self { keys: ArcSwap::from_pointee(vec![Arc::new(key)]), lifetime })
    }

    /// A new key seals from now on. The one before it still opens tickets, those before that don't.
    pub(super) fn rotate(&self) {
        // Without random numbers the key stays.
        let Some(key) = Key::random() else { return };
        let before = self.keys.load().first().cloned();
        self.keys.store(Arc::new(std::iter::once(Arc::new(key)).chain(before).collect()));
    }

    /// Takes the keys of a file.
    ///
    /// # Errors
    /// It can't be read, or a line is no key. The keys before it stay.
    pub(super) fn read(&self, path: &Path) -> Result<(), String> {
        let text = std::fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|fault| format!("{}: {fault}", path.display()))?;
        let keys = parse(&text).map_err(|fault| format!("{}: {fault}", path.display()))?;
        self.keys.store(Arc::new(keys.into_iter().map(Arc::new).collect()));
        Ok(())
    }
}

/// The keys of a file: a line of base64 for each; empty lines and those that begin with `#` are skipped.
fn parse(text: &str) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let decoded = STANDARD.decode(line).map(Zeroizing::new).ok();
        let bytes: Option<[u8; KEY_BYTES]> =
            decoded.and_then(|bytes| bytes.as_slice().try_into().ok());
        let Some(bytes) = bytes else {
            return Err(format!("line {}: expected base64 of {KEY_BYTES} bytes", at + 1));
        };
        keys.push(Key::new(Zeroizing::new(bytes)));
    }
    match keys.len() {
        0 => Err("no key in it".to_owned()),
        1..=KEYS_MAX => Ok(keys),
        more => Err(format!("{more} keys, expected at most {KEYS_MAX}")),
    }
}

/// Tickets of one listener, which open only with the binding that they were sealed with. A listener that
/// demands client certificates has none.
#[derive(Debug)]
pub(super) struct Tickets {
    pub(super) keys: Arc<TicketKeys>,
    /// Zero where no client shows a certificate.
    pub(super) binding: [u8; 32],
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.keys.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.keys.load();
        let key = keys.first()?;
        let mut ticket = vec![0; HEAD_BYTES];
        ticket[..NAME_BYTES].copy_from_slice(&key.name);
        rand::fill(&mut ticket[NAME_BYTES..]).ok()?;
        let salt = &ticket[NAME_BYTES..NAME_BYTES + SALT_BYTES];
        let sealing = key.of_ticket(salt)?;
        let nonce =
            Nonce::try_assume_unique_for_key(&ticket[NAME_BYTES + SALT_BYTES..HEAD_BYTES]).ok()?;
        let mut sealed = plain.to_vec();
        sealing.seal_in_place_append_tag(nonce, Aad::from(self.binding), &mut sealed).ok()?;
        ticket.extend_from_slice(&sealed);
        (ticket.len() <= TICKET_BYTES_MAX).then_some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_BYTES_MAX {
            return None;
        }
        let (head, sealed) = ticket.split_at_checked(HEAD_BYTES)?;
        let (name, head) = head.split_at(NAME_BYTES);
        let (salt, nonce) = head.split_at(SALT_BYTES);
        let keys = self.keys.keys.load();
        let key = keys.iter().find(|key| key.name == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = sealed.to_vec();
        let opening = key.of_ticket(salt)?;
        let plain = opening.open_in_place(nonce, Aad::from(self.binding), &mut bytes).ok()?.len();
        bytes.truncate(plain);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(keys: &Arc<TicketKeys>, binding: u8) -> Tickets {
        Tickets { keys: Arc::clone(keys), binding: [binding; 32] }
    }

    #[test]
    fn a_ticket_opens_for_two_periods_and_unchanged_only() {
        let keys = Arc::new(TicketKeys::random(60_000).unwrap());
        let tickets = tickets(&keys, 0);
        let ticket = tickets.encrypt(b"state").unwrap();
        assert_eq!(tickets.lifetime(), 60);
        assert_ne!(tickets.encrypt(b"state").unwrap(), ticket);
        for bit in 0..ticket.len() * 8 {
            let mut changed = ticket.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tickets.decrypt(&changed), None, "bit {bit}");
        }
        for end in 0..ticket.len() {
            assert_eq!(tickets.decrypt(&ticket[..end]), None);
        }
        keys.rotate();
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        keys.rotate();
        assert_eq!(tickets.decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_is_bound_to_the_authorities_of_client_certificates() {
        let keys = Arc::new(TicketKeys::random(60_000).unwrap());
        let ticket = tickets(&keys, 1).encrypt(b"state").unwrap();
        assert!(tickets(&keys, 1).decrypt(&ticket).is_some());
        assert_eq!(tickets(&keys, 2).decrypt(&ticket), None);
    }

    #[test]
    fn nodes_with_the_same_file_open_each_others_tickets() {
        let path = std::env::temp_dir().join(format!("roost-tickets-{}", std::process::id()));
        let line = |byte: u8| STANDARD.encode([byte; KEY_BYTES]);
        std::fs::write(&path, format!("# shared\n{}\n\n{}\n", line(1), line(2))).unwrap();
        let (one, other) =
            (TicketKeys::random(60_000).unwrap(), TicketKeys::random(60_000).unwrap());
        let (one, other) = (Arc::new(one), Arc::new(other));
        one.read(&path).unwrap();
        other.read(&path).unwrap();
        let ticket = tickets(&one, 0).encrypt(b"state").unwrap();
        assert!(tickets(&other, 0).decrypt(&ticket).is_some());
        // A new key in front: the older one still opens.
        std::fs::write(&path, format!("{}\n{}\n", line(3), line(1))).unwrap();
        other.read(&path).unwrap();
        assert!(tickets(&other, 0).decrypt(&ticket).is_some());
        let newer = tickets(&other, 0).encrypt(b"state").unwrap();
        assert_eq!(tickets(&one, 0).decrypt(&newer), None);
        for (text, expected) in [
            ("", "no key in it"),
            ("x", "line 1: expected base64 of 32 bytes"),
            ("# a", "no key in it"),
        ] {
            std::fs::write(&path, text).unwrap();
            let fault = other.read(&path).unwrap_err();
            assert!(fault.ends_with(expected), "{fault}");
        }
        // What was read before a fault stays.
        assert!(tickets(&other, 0).decrypt(&newer).is_some());
        std::fs::remove_file(path).unwrap();
    }
}
