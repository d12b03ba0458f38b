//! Client ids: random UUIDs to the eye, sealed shard and slot to us, so that nobody keeps them.

use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;

use crate::base::id::{ConnKey, ShardId};
use crate::base::uuid;

/// Bits of a UUID that version and variant leave free.
const FREE_BITS: u32 = 122;
/// Bits of one half of them.
const HALF_BITS: u32 = FREE_BITS / 2;
const HALF_MASK: u64 = (1 << HALF_BITS) - 1;
/// Bits of the plain text that say nothing and must come out as 0: one forgery in 2^50 passes.
const CHECK_BITS: u32 = FREE_BITS - 8 - 32 - 32;
/// Four rounds are a strong pseudo-random permutation if the round function is a pseudo-random
/// function (Luby and Rackoff 1988): ids show no pattern, even to who can try to open some.
const ROUNDS: u8 = 4;

const _: () = assert!(CHECK_BITS == 50);

/// A connection's public name: a UUID of version 4 (RFC 9562 5.4).
///
/// Shape: 16 bytes, computed on demand and not stored. As text 36 bytes, lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId([u8; 16]);

impl ClientId {
    /// Length as text.
    pub const TEXT_BYTES: usize = uuid::TEXT_BYTES;

    /// The 16 bytes, most significant first.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// The id as text, on the stack.
    pub fn text(&self) -> ClientIdText {
        ClientIdText(uuid::to_text(self.0))
    }

    /// Appends the 36 bytes of text.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.text().0);
    }

    /// Reads what [`text`](Self::text) writes: lower case, dashes in place, version 4.
    fn from_text(text: &str) -> Option<Self> {
        let bytes = uuid::from_text(text.as_bytes())?;
        (bytes[6] >> 4 == 4 && bytes[8] >> 6 == 0b10).then_some(Self(bytes))
    }

    /// Puts 122 bits around version and variant.
    fn from_free(free: u128) -> Self {
        let high = free >> 74 << 80; // 48 bits: time_high and time_mid of old
        let middle = (free >> 62 & 0xfff) << 64; // 12 bits after the version
        let low = free & ((1 << 62) - 1); // 62 bits after the variant
        Self((high | 4 << 76 | middle | 0b10 << 62 | low).to_be_bytes())
    }

    /// The 122 bits again.
    fn free(&self) -> u128 {
        let all = u128::from_be_bytes(self.0);
        all >> 80 << 74 | (all >> 64 & 0xfff) << 62 | all & ((1 << 62) - 1)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

/// Text of a [`ClientId`], without a heap allocation. Shape: 36 bytes of ASCII.
#[derive(Clone, Copy)]
pub struct ClientIdText([u8; ClientId::TEXT_BYTES]);

impl ClientIdText {
    /// The text.
    pub fn as_str(&self) -> &str {
        // Only `ClientId::text` makes one, from digits and dashes.
        std::str::from_utf8(&self.0).expect("hexadecimal digits and dashes")
    }
}

/// Makes client ids of a node, and knows its own again. The same key gives the same ids.
///
/// A keyed permutation of 122 bits: a Feistel network over halves of 61 bits whose round function is
/// HMAC-SHA256. Plain text is `shard (8) | index (32) | generation (32) | zeros (50)`. A seal or an
/// open costs four short HMACs; no state for each connection is what it buys.
pub struct ClientIdSealer {
    key: hmac::Key,
}

impl ClientIdSealer {
    /// A sealer for a secret of the process (or of the simulation's seed).
    pub fn new(key: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// The id of this tenant of this slot: no other tenant, slot or shard has it, and a tenant has one
    /// session at most.
    pub fn seal(&self, shard: ShardId, conn: ConnKey) -> ClientId {
        let payload = u128::from(shard.0) << 64
            | u128::from(conn.index) << 32
            | u128::from(conn.generation.get());
        let (mut left, mut right) = halves(payload << CHECK_BITS);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ self.mix(round, right));
        }
        ClientId::from_free(joined(left, right))
    }

    /// Whose id this is; `None` for any text that [`seal`](Self::seal) with this key has not made
    /// (but for one in 2^50). The connection itself may be long gone: look its generation up.
    pub fn open(&self, text: &str) -> Option<(ShardId, ConnKey)> {
        let (mut left, mut right) = halves(ClientId::from_text(text)?.free());
        for round in (0..ROUNDS).rev() {
            (left, right) = (right ^ self.mix(round, left), left);
        }
        let plain = joined(left, right);
        if plain & ((1 << CHECK_BITS) - 1) != 0 {
            return None;
        }
        let payload = plain >> CHECK_BITS;
        let generation = NonZeroU32::new(payload as u32)?;
        let conn = ConnKey { index: (payload >> 32) as u32, generation };
        Some((ShardId((payload >> 64) as u8), conn))
    }

    /// The same for an id that is a secret: the text is compared in a time that says nothing of it.
    pub fn open_secret(&self, text: &str) -> Option<(ShardId, ConnKey)> {
        let (shard, conn) = self.open(text)?;
        let sealed = self.seal(shard, conn).text();
        verify_slices_are_equal(sealed.as_str().as_bytes(), text.as_bytes()).ok()?;
        Some((shard, conn))
    }

    /// Round function: 61 bits that only who has the key can tell from random ones.
    fn mix(&self, round: u8, half: u64) -> u64 {
        // The label keeps apart what else may be signed with this key; 1 + 15 + 8 bytes are one
        // block of SHA-256.
        let mut message = *b"\0roost client id________";
        message[0] = round;
        message[16..].copy_from_slice(&half.to_be_bytes());
        let tag = hmac::sign(&self.key, &message);
        let mut first = [0; 8];
        first.copy_from_slice(&tag.as_ref()[..8]);
        u64::from_be_bytes(first) & HALF_MASK
    }
}

impl fmt::Debug for ClientIdSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdSealer(..)")
    }
}

fn halves(free: u128) -> (u64, u64) {
    ((free >> HALF_BITS) as u64, free as u64 & HALF_MASK)
}

fn joined(left: u64, right: u64) -> u128 {
    u128::from(left) << HALF_BITS | u128::from(right)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn conn(index: u32, generation: u32) -> ConnKey {
        ConnKey { index, generation: NonZeroU32::new(generation).unwrap() }
    }

    #[test]
    fn neighbours_look_unrelated_and_differ() {
        let sealer = ClientIdSealer::new(&[7; 32]);
        let mut seen = HashSet::new();
        let mut bits_changed = 0;
        let mut last = None;
        for shard in [0, 1, 254] {
            for index in 0..20 {
                for generation in 1..20 {
                    let id = sealer.seal(ShardId(shard), conn(index, generation));
                    assert!(seen.insert(id), "{id}");
                    let now = id.free();
                    if let Some(last) = last.replace(now) {
                        bits_changed += (now ^ last).count_ones();
                    }
                }
            }
        }
        // Half of 122 bits change from one to the next: 61 of them; the mean of 1139 steps lies
        // within 1 of it (six sigma), always the same for this key.
        let mean = f64::from(bits_changed) / (seen.len() - 1) as f64;
        assert!((60.0..62.0).contains(&mean), "{mean}");
    }

    #[test]
    fn an_id_is_stable() {
        // A change here breaks ids that live through an upgrade of the program.
        let id = ClientIdSealer::new(&[1; 32]).seal(ShardId(3), conn(4, 5));
        assert_eq!(id.to_string(), "13d0465d-e164-4d5f-96c9-3076dacb8e9c");
    }

    #[test]
    fn other_text_is_refused() {
        let sealer = ClientIdSealer::new(&[7; 32]);
        let good = sealer.seal(ShardId(1), conn(2, 3)).to_string();
        assert!(sealer.open(&good).is_some());
        for text in [
            String::new(),
            "x".into(),
            "3f1c2a9e-0000-4000-8000-000000000001".into(),
            "00000000-0000-0000-0000-000000000000".into(),
            good.to_uppercase(),
            good.replace('-', ""),
            good.replace('-', "0"),
            good.replace('-', "_"),
            format!("{good} "),
            format!("{{{good}}}"),
            format!("{}é", &good[..34]),
            format!("{}-{}", &good[..8], &good[10..]) + "0",
            format!("-{}", &good[1..]),
        ] {
            assert_eq!(sealer.open(&text), None, "{text}");
        }
    }

    #[test]
    fn the_key_is_not_shown() {
        assert_eq!(format!("{:?}", ClientIdSealer::new(&[7; 32])), "ClientIdSealer(..)");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn ids_open_to_their_sealed_keys(
            key in any::<[u8; 32]>(),
            other_key in any::<[u8; 32]>(),
            shard in 0u8..=254,
            index in any::<u32>(),
            generation in 1u32..,
        ) {
            let sealer = ClientIdSealer::new(&key);
            let tenant = (ShardId(shard), conn(index, generation));
            let id = sealer.seal(tenant.0, tenant.1);
            prop_assert_eq!(sealer.seal(tenant.0, tenant.1), id);
            let text = id.to_string();
            let mut written = Vec::new();
            id.write_to(&mut written);
            prop_assert_eq!(&written, text.as_bytes());
            prop_assert_eq!(ClientId::from_text(&text), Some(id));
            prop_assert_eq!(sealer.open(&text), Some(tenant));

            // RFC 9562 5.4: version 4, variant 10.
            prop_assert_eq!(text.as_bytes()[14], b'4');
            prop_assert!(matches!(text.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
            let dashes: Vec<_> = text.match_indices('-').map(|(at, _)| at).collect();
            prop_assert_eq!(dashes, [8, 13, 18, 23]);

            prop_assert!(key == other_key || ClientIdSealer::new(&other_key).open(&text).is_none());
        }

        #[test]
        fn a_flipped_bit_is_refused(index in any::<u32>(), generation in 1u32..) {
            let sealer = ClientIdSealer::new(&[9; 32]);
            let id = sealer.seal(ShardId(0), conn(index, generation));
            for bit in 0..128 {
                let mut bytes = id.bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(sealer.open(&ClientId(bytes).to_string()), None);
            }
        }

        #[test]
        fn any_text_can_be_tried(text in any::<String>(), hex in "[0-9a-f-]{36}") {
            let sealer = ClientIdSealer::new(&[9; 32]);
            prop_assert_eq!(sealer.open(&text), None);
            prop_assert_eq!(sealer.open(&hex), None);
        }
    }
}
