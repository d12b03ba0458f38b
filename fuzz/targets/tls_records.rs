//! Records of TLS: sealed ones of any content, with any bytes between them. However they come in pieces and
//! however often the state is packed, the same data is delivered before the same fault. Without a fault that
//! is the data that was sealed. Packed states that are accepted pack to the same bytes.
//!
//! Input: suite and role in a byte, the length of pieces in another, then steps: a byte of the content type
//! (0 to 20: 20 + this; more: bytes that aren't sealed), a byte of padding, a byte of length, the content.
#![no_main]

use std::cell::RefCell;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use libfuzzer_sys::fuzz_target;
use roost::proto::tls::{Fault, Key, Opener, Packed, Pool, Received, Role, Secrets, Suite};

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand(suite: Suite, secret: &[u8], label: &str, bytes: usize) -> Vec<u8> {
    let hash: hkdf::Algorithm = match suite {
        Suite::Tls13Aes256Gcm => HKDF_SHA384,
        _ => HKDF_SHA256,
    };
    let label = format!("tls13 {label}");
    let info = [&[0, bytes as u8, label.len() as u8][..], label.as_bytes(), &[0]].concat();
    let mut out = vec![0; bytes];
    let prk = Prk::new_less_safe(hash, secret);
    prk.expand(&[&info], Length(bytes)).unwrap().fill(&mut out).unwrap();
    out
}

/// The peer: seals whatever it is given.
struct Peer {
    suite: Suite,
    secret: Vec<u8>,
    key: Vec<u8>,
    iv: Vec<u8>,
    sequence: u64,
}

impl Peer {
    fn new(suite: Suite) -> Self {
        let mut peer = Self {
            suite,
            secret: vec![7; suite.secret_bytes()],
            key: vec![1; suite.key_bytes()],
            iv: vec![2; 12],
            sequence: 0,
        };
        peer.derive();
        peer
    }

    fn derive(&mut self) {
        self.sequence = 0;
        if self.suite.is_tls13() {
            self.key = expand(self.suite, &self.secret, "key", self.suite.key_bytes());
            self.iv = expand(self.suite, &self.secret, "iv", 12);
        }
    }

    fn update(&mut self) {
        self.secret = expand(self.suite, &self.secret, "traffic upd", self.secret.len());
        self.derive();
    }

    fn secrets(&self) -> Secrets<'_> {
        Secrets { sequence: 0, key: &self.key, iv: &self.iv, traffic_secret: &self.secret }
    }

    fn record(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let aead: &Algorithm = match self.suite {
            Suite::Tls13Aes128Gcm | Suite::Tls12Aes128Gcm => &AES_128_GCM,
            Suite::Tls13Aes256Gcm | Suite::Tls12Aes256Gcm => &AES_256_GCM,
            Suite::Tls13ChaCha20 | Suite::Tls12ChaCha20 => &CHACHA20_POLY1305,
        };
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.sequence.to_be_bytes());
        nonce.iter_mut().zip(&self.iv).for_each(|(byte, iv)| *byte ^= iv);
        let explicit = if self.suite.is_gcm() && !self.suite.is_tls13() { 8 } else { 0 };
        let explicit = nonce[12 - explicit..].to_vec();
        let mut sealed = content.to_vec();
        let header =
            |outer: u8, bytes: usize| [&[outer, 3, 3][..], &(bytes as u16).to_be_bytes()].concat();
        let (head, aad) = if self.suite.is_tls13() {
            sealed.push(kind);
            sealed.resize(sealed.len() + padding, 0);
            let head = header(23, sealed.len() + 16);
            (head.clone(), head)
        } else {
            let aad = [&self.sequence.to_be_bytes()[..], &header(kind, content.len())].concat();
            (header(kind, explicit.len() + content.len() + 16), aad)
        };
        let key = LessSafeKey::new(UnboundKey::new(aead, &self.key).unwrap());
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed).unwrap();
        self.sequence += 1;
        [&head[..], &explicit, &sealed].concat()
    }
}

/// Data, whether close_notify came, and the fault.
type Outcome = (Vec<u8>, bool, Option<Fault>);

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

fn read<'p>(state: &Packed, pieces: impl Iterator<Item = &'p [u8]>, pass: bool) -> Outcome {
    POOL.with_borrow_mut(|pool| {
        let mut key = pool.insert(Packed::from_bytes(state.as_bytes()).unwrap()).unwrap();
        let outcome = read_with(pool, &mut key, pieces, pass);
        pool.remove(key);
        outcome
    })
}

/// Reads with the record layer of `key`, which moves from slot to slot if `pass`.
fn read_with<'p>(
    pool: &mut Pool,
    key: &mut Key,
    pieces: impl Iterator<Item = &'p [u8]>,
    pass: bool,
) -> Outcome {
    let (mut data, mut closed) = (Vec::new(), false);
    let mut came = 0;
    for piece in pieces {
        let mut input = piece.to_vec();
        came += input.len();
        let mut at = 0;
        let mut opener = Opener::new();
        let mut records = pool.records(key).unwrap();
        loop {
            match opener.next(&mut records, &mut input, &mut at) {
                Ok(Some(Received::Data(more))) => data.extend_from_slice(more),
                Ok(Some(Received::Closed)) => closed = true,
                Ok(None) => break,
                Err(fault) => {
                    assert_eq!(fault.alert().is_some(), !records.tail().is_empty());
                    assert_eq!(opener.next(&mut records, &mut input, &mut at), Err(Fault::Ended));
                    return (data, closed, Some(fault));
                }
            }
        }
        assert_eq!(at, input.len());
        let tail = records.tail().len();
        assert!(records.heap_bytes() <= 2 * came + 2 * tail + 64);
        // As a socket would take it.
        records.tail_sent(tail);
        if pass {
            let packed = records.pack().unwrap();
            let passed = pool.insert(Packed::from_bytes(packed.as_bytes()).unwrap()).unwrap();
            pool.remove(std::mem::replace(key, passed));
        }
    }
    (data, closed, None)
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(packed) = Packed::from_bytes(bytes) {
        let mut pool = Pool::default();
        let key = pool.insert(packed).unwrap();
        assert_eq!(pool.take(key).unwrap().as_bytes(), bytes);
    }
    let [first, piece, rest @ ..] = bytes else { return };
    let suite = Suite::ALL[usize::from(first & 7) % Suite::ALL.len()];
    let role = if first & 8 == 0 { Role::Server } else { Role::Client };
    let mut peer = Peer::new(suite);
    let state = Packed::new(role, suite, peer.secrets(), peer.secrets()).unwrap();
    let mut rest = rest;
    let (mut wire, mut data, mut sealed_only) = (Vec::new(), Vec::new(), true);
    while let [kind, padding, length, behind @ ..] = rest {
        let (content, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        rest = behind;
        if *kind > 20 {
            wire.extend_from_slice(content);
            sealed_only &= content.is_empty();
            continue;
        }
        let kind = 20 + kind;
        wire.extend(peer.record(kind, content, usize::from(*padding)));
        if kind == 23 {
            data.extend_from_slice(content);
        }
        if suite.is_tls13()
            && kind == 22
            && content.len() >= 5
            && content.ends_with(&[24, 0, 0, 1, content[content.len() - 1]])
        {
            peer.update();
        }
    }
    let whole = read(&state, [&wire[..]].into_iter(), false);
    let (read_data, closed, fault) = &whole;
    assert!(data.starts_with(read_data), "data that was never sealed");
    if sealed_only && !closed && fault.is_none() {
        assert_eq!(*read_data, data);
    }
    let pieces = usize::from(*piece) + 1;
    assert_eq!(read(&state, wire.chunks(pieces), false), whole);
    assert_eq!(read(&state, wire.chunks(pieces), true), whole);
});
