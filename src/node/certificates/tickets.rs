//! Tickets, with which a client resumes a session without a certificate (RFC 8446, 4.6.1; RFC 5077).
//!
//! A ticket is the session's state, sealed with a key that only nodes have: nothing is kept here for it. The
//! key is the node's own and replaced each period, or comes from a file that several nodes share.
//!
//! ```text
//!  ticket: format (1) | name of the key (8) | salt (16) | nonce (12) | sealed: issue time (8), state | tag (16)
//!          HKDF-SHA256(key, salt) -> AES-256-GCM, format and name authenticated with it
//! ```
//! Each ticket has a key of its own, derived with a random salt. So the number of tickets that a shared key
//! seals has no bound that nodes would have to count together.
//!
//! The issue time bounds the age of a ticket, whatever becomes of the key: a shared one may stay for years. A
//! node of another format doesn't open it, and the client gets a full handshake.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::server::ProducesTickets;
use zeroize::{Zeroize as _, Zeroizing};

const KEY_BYTES: usize = 32;
const NAME_BYTES: usize = 8;
const SALT_BYTES: usize = 16;
const ISSUED_BYTES: usize = size_of::<i64>();

/// Format and name: what is authenticated beside the sealed part. Salt and nonce are, by what they lead to.
const LABEL_BYTES: usize = 1 + NAME_BYTES;
const HEAD_BYTES: usize = LABEL_BYTES + SALT_BYTES + NONCE_LEN;

/// The format of tickets. The first had neither this byte nor a time.
const FORMAT: u8 = 2;

/// Seconds that a ticket is accepted at most (RFC 8446, 4.6.1).
const AGE_MAX: u32 = 7 * 24 * 60 * 60;

/// Seconds by which the clocks of nodes that share keys may differ.
const CLOCKS_APART_MAX: i64 = 5 * 60;

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
        extracted.expand(&[b"roost ticket 2"], Length).ok()?.fill(&mut *bytes).ok()?;
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
    /// How long a key of the node's own seals, seconds.
    period: AtomicU32,
}

impl TicketKeys {
    /// One random key; `period_ms`: how long it seals.
    ///
    /// # Errors
    /// The library has no random numbers.
    pub(super) fn random(period_ms: u64) -> std::io::Result<Self> {
        let key = Key::random().ok_or_else(|| std::io::Error::other("no entropy"))?;
        let keys = ArcSwap::from_pointee(vec![Arc::new(key)]);
        let tickets = Self { keys, period: AtomicU32::new(0) };
        tickets.set_period(period_ms);
        Ok(tickets)
    }

    /// The keys, for the next process of this node: the first seals.
    pub(super) fn secrets(&self) -> Vec<[u8; KEY_BYTES]> {
        self.keys.load().iter().map(|key| *key.bytes).collect()
    }

    /// Goes on with the keys of the process before.
    pub(super) fn inherit(&self, keys: &[[u8; KEY_BYTES]]) {
        let keys = keys.iter().map(|bytes| Arc::new(Key::new(Zeroizing::new(*bytes))));
        let keys: Vec<_> = keys.collect();
        if !keys.is_empty() {
            self.keys.store(Arc::new(keys));
        }
    }

    /// Another period, after a reload. It holds for tickets that exist, too.
    pub(super) fn set_period(&self, period_ms: u64) {
        let seconds = u32::try_from(period_ms / 1000).unwrap_or(u32::MAX);
        self.period.store(seconds.min(AGE_MAX), Ordering::Relaxed);
    }

    /// How long clients may keep a ticket, seconds: as long as each is sure to be accepted.
    fn lifetime(&self) -> u32 {
        self.period.load(Ordering::Relaxed)
    }

    /// The age from which on a ticket is refused, seconds.
    fn age_max(&self) -> u32 {
        self.lifetime().saturating_mul(2).min(AGE_MAX)
    }

    /// Whether a ticket that was issued then is accepted now, Unix times.
    fn accepts(&self, issued: i64, now: i64) -> bool {
        // The clock of the node that has issued it may be ahead, not by as much as one that was set back.
        let age = now.saturating_sub(issued);
        (-CLOCKS_APART_MAX..=i64::from(self.age_max())).contains(&age)
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

/// Makes and opens the tickets of all listeners. One that demands client certificates has none.
#[derive(Debug)]
pub(super) struct Tickets {
    keys: Arc<TicketKeys>,
    /// The wall clock, Unix time.
    now: fn() -> i64,
}

impl Tickets {
    pub(super) fn new(keys: Arc<TicketKeys>) -> Self {
        Self { keys, now: super::unix_now }
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.keys.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.keys.load();
        let key = keys.first()?;
        let bytes = HEAD_BYTES + ISSUED_BYTES + plain.len() + AES_256_GCM.tag_len();
        if bytes > TICKET_BYTES_MAX {
            return None;
        }
        // As long as it will be: a vector that grows leaves the session's secret behind.
        let mut ticket = Vec::with_capacity(bytes);
        ticket.push(FORMAT);
        ticket.extend_from_slice(&key.name);
        ticket.resize(HEAD_BYTES, 0);
        rand::fill(&mut ticket[LABEL_BYTES..]).ok()?;
        let (salt, nonce) = ticket[LABEL_BYTES..].split_at(SALT_BYTES);
        let sealing = key.of_ticket(salt)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        ticket.extend_from_slice(&(self.now)().to_be_bytes());
        ticket.extend_from_slice(plain);
        let (head, state) = ticket.split_at_mut(HEAD_BYTES);
        let aad = Aad::from(&head[..LABEL_BYTES]);
        match sealing.seal_in_place_separate_tag(nonce, aad, state) {
            Ok(tag) => ticket.extend_from_slice(tag.as_ref()),
            Err(_) => {
                ticket.zeroize();
                return None;
            }
        }
        debug_assert_eq!(ticket.len(), bytes);
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_BYTES_MAX || ticket.first() != Some(&FORMAT) {
            return None;
        }
        let (head, sealed) = ticket.split_at_checked(HEAD_BYTES)?;
        let (label, head) = head.split_at(LABEL_BYTES);
        let (salt, nonce) = head.split_at(SALT_BYTES);
        let keys = self.keys.keys.load();
        let key = keys.iter().find(|key| key.name == label[1..])?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opening = key.of_ticket(salt)?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let plain = opening.open_in_place(nonce, Aad::from(label), &mut bytes).ok()?;
        let (issued, state) = plain.split_first_chunk::<ISSUED_BYTES>()?;
        let accepted = self.keys.accepts(i64::from_be_bytes(*issued), (self.now)());
        accepted.then(|| state.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    /// Tickets of a node whose clock shows this time.
    fn tickets(keys: &Arc<TicketKeys>, now: fn() -> i64) -> Tickets {
        Tickets { keys: Arc::clone(keys), now }
    }

    fn keys(period_ms: u64) -> Arc<TicketKeys> {
        Arc::new(TicketKeys::random(period_ms).unwrap())
    }

    #[test]
    fn a_ticket_opens_for_two_periods_and_unchanged_only() {
        let keys = keys(60_000);
        let tickets = tickets(&keys, || NOW);
        let ticket = tickets.encrypt(b"state").unwrap();
        assert_eq!(ticket.capacity(), ticket.len());
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
    fn a_ticket_has_an_age_whatever_becomes_of_the_key() {
        let keys = keys(60_000);
        let ticket = tickets(&keys, || NOW).encrypt(b"state").unwrap();
        let opens = |now| tickets(&keys, now).decrypt(&ticket).is_some();
        assert!(opens(|| NOW + 120));
        assert!(!opens(|| NOW + 121));
        // The clock of the node that has issued it may be ahead by so much.
        assert!(opens(|| NOW - CLOCKS_APART_MAX));
        assert!(!opens(|| NOW - CLOCKS_APART_MAX - 1));
        // Another period after a reload, for clients and for tickets that exist.
        keys.set_period(3_600_000);
        assert_eq!(tickets(&keys, || NOW).lifetime(), 3600);
        assert!(opens(|| NOW + 7200));
        assert!(!opens(|| NOW + 7201));
        // Seven days, whatever the period.
        keys.set_period(u64::MAX);
        assert!(opens(|| NOW + 604_800));
        assert!(!opens(|| NOW + 604_801));
    }

    #[test]
    fn a_state_that_is_too_long_gets_no_ticket() {
        let tickets = tickets(&keys(60_000), || NOW);
        let room = TICKET_BYTES_MAX - HEAD_BYTES - ISSUED_BYTES - AES_256_GCM.tag_len();
        let ticket = tickets.encrypt(&vec![7; room]).unwrap();
        assert_eq!(tickets.decrypt(&ticket), Some(vec![7; room]));
        assert_eq!(tickets.encrypt(&vec![7; room + 1]), None);
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
        let ticket = tickets(&one, || NOW).encrypt(b"state").unwrap();
        assert!(tickets(&other, || NOW).decrypt(&ticket).is_some());
        // A new key in front: the older one still opens.
        std::fs::write(&path, format!("{}\n{}\n", line(3), line(1))).unwrap();
        other.read(&path).unwrap();
        assert!(tickets(&other, || NOW).decrypt(&ticket).is_some());
        let newer = tickets(&other, || NOW).encrypt(b"state").unwrap();
        assert_eq!(tickets(&one, || NOW).decrypt(&newer), None);
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
        assert!(tickets(&other, || NOW).decrypt(&newer).is_some());
        std::fs::remove_file(path).unwrap();
    }
}
