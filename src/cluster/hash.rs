//! Hashes that all nodes must compute alike: which address keeps a channel, which partition, which slot.

/// FNV-1a with 64 bits.
pub fn fnv1a64(bytes: &[u8]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Jump consistent hash (Lamping, Veach 2014) of a channel's name over `buckets`; 0 for fewer than two.
///
/// One more bucket moves one channel in `buckets + 1`.
pub fn jump(channel: &str, buckets: u32) -> u32 {
    const MULTIPLIER: u64 = 2_862_933_555_777_941_757;
    let mut key = fnv1a64(channel.as_bytes());
    let (mut bucket, mut next) = (0_i64, 0_i64);
    while next < i64::from(buckets) {
        bucket = next;
        key = key.wrapping_mul(MULTIPLIER).wrapping_add(1);
        let scale = (1_i64 << 31) as f64 / ((key >> 33) + 1) as f64;
        next = ((bucket + 1) as f64 * scale) as i64;
    }
    // Less than `buckets`, or 0.
    bucket as u32
}

/// Slots of a Redis Cluster.
pub const SLOTS: u16 = 16_384;

/// The slot of a key in a Redis Cluster: of its first `{...}` with content, else of all of it.
pub fn slot(key: &[u8]) -> u16 {
    let open = key.iter().position(|byte| *byte == b'{').map(|at| &key[at + 1..]);
    let tag = open.and_then(|rest| {
        let end = rest.iter().position(|byte| *byte == b'}')?;
        (end > 0).then(|| &rest[..end])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM: polynomial 0x1021, no reflection, begins with 0.
fn crc16(bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = crc16_table();
    bytes.iter().fold(0, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

const fn crc16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn hashes_are_those_of_the_vectors() {
        let lines = include_str!("../../tests/vectors/redis/hash-vectors.jsonl").lines();
        let mut checked = 0;
        for line in lines {
            let vector: Value = serde_json::from_str(line).unwrap();
            let channel = vector["channel"].as_str().unwrap();
            for (buckets, expected) in vector["jump"].as_object().unwrap() {
                let buckets = buckets.parse().unwrap();
                assert_eq!(u64::from(jump(channel, buckets)), expected.as_u64().unwrap(), "{line}");
            }
            for (buckets, expected) in vector["fnv1a64_mod"].as_object().unwrap() {
                let buckets: u64 = buckets.parse().unwrap();
                assert_eq!(fnv1a64(channel.as_bytes()) % buckets, expected.as_u64().unwrap());
            }
            let of = |name: &str| vector[name].as_u64().unwrap();
            assert_eq!(u64::from(slot(channel.as_bytes())), of("redis_slot"), "{line}");
            let key = format!("centrifugo.stream.{{{channel}}}");
            assert_eq!(u64::from(slot(key.as_bytes())), of("slot_of_cluster_stream_key"), "{line}");
            checked += 1;
        }
        assert!(checked > 40, "{checked}");
    }

    #[test]
    fn one_more_bucket_moves_few_channels() {
        let channels: Vec<String> = (0..10_000).map(|number| format!("chat:{number}")).collect();
        let moved = channels.iter().filter(|channel| jump(channel, 4) != jump(channel, 5)).count();
        assert!((1_700..2_300).contains(&moved), "{moved} of 10,000");
        assert!(channels.iter().all(|channel| jump(channel, 0) == 0 && jump(channel, 1) == 0));
    }

    #[test]
    fn an_empty_tag_is_no_tag() {
        assert_eq!(slot(b"a{}b"), crc16(b"a{}b") % SLOTS);
        assert_eq!(slot(b"a{b}{c}"), slot(b"b"));
        assert_eq!(slot(b"a{b"), crc16(b"a{b") % SLOTS);
        assert_eq!(slot(b"123456789"), 0x31c3);
    }
}
