//! The six suites, their lengths and their limits.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Algorithm, CHACHA20_POLY1305};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384};

/// Version and AEAD of a connection. The key exchange and the kind of certificate, which TLS 1.2 names
/// in its suites, end with the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// TLS_AES_128_GCM_SHA256 (RFC 8446 B.4).
    Tls13Aes128Gcm = 0,
    /// TLS_AES_256_GCM_SHA384 (RFC 8446 B.4).
    Tls13Aes256Gcm = 1,
    /// TLS_CHACHA20_POLY1305_SHA256 (RFC 8446 B.4).
    Tls13ChaCha20 = 2,
    /// TLS_ECDHE_*_WITH_AES_128_GCM_SHA256 (RFC 5288, RFC 5289).
    Tls12Aes128Gcm = 3,
    /// TLS_ECDHE_*_WITH_AES_256_GCM_SHA384 (RFC 5288, RFC 5289).
    Tls12Aes256Gcm = 4,
    /// TLS_ECDHE_*_WITH_CHACHA20_POLY1305_SHA256 (RFC 7905).
    Tls12ChaCha20 = 5,
}

/// IV of both versions and all suites, bytes: of AES-GCM in TLS 1.2 the fixed 4 bytes, and 8 with which
/// the explicit nonces begin.
pub const IV_BYTES: usize = 12;

/// Authentication tag of all suites, bytes.
pub const TAG_BYTES: usize = 16;

impl Suite {
    /// All of them, at their numbers.
    pub const ALL: [Self; 6] = [
        Self::Tls13Aes128Gcm,
        Self::Tls13Aes256Gcm,
        Self::Tls13ChaCha20,
        Self::Tls12Aes128Gcm,
        Self::Tls12Aes256Gcm,
        Self::Tls12ChaCha20,
    ];

    /// Whether the version is TLS 1.3; else it is 1.2.
    pub const fn is_tls13(self) -> bool {
        matches!(self, Self::Tls13Aes128Gcm | Self::Tls13Aes256Gcm | Self::Tls13ChaCha20)
    }

    /// Whether the AEAD is AES-GCM.
    pub const fn is_gcm(self) -> bool {
        !matches!(self, Self::Tls13ChaCha20 | Self::Tls12ChaCha20)
    }

    /// Bytes of an AEAD key.
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::Tls13Aes128Gcm | Self::Tls12Aes128Gcm => 16,
            _ => 32,
        }
    }

    /// Bytes of a traffic secret. TLS 1.2 has none: its keys stay.
    pub const fn secret_bytes(self) -> usize {
        match self {
            Self::Tls13Aes128Gcm | Self::Tls13ChaCha20 => 32,
            Self::Tls13Aes256Gcm => 48,
            _ => 0,
        }
    }

    /// Bytes of the nonce that a record carries: 8 with AES-GCM in TLS 1.2 (RFC 5288 3).
    pub const fn explicit_bytes(self) -> usize {
        if self.is_gcm() && !self.is_tls13() { 8 } else { 0 }
    }

    /// Bytes that a record is longer than its plaintext, without padding: 21 to 29.
    pub const fn overhead_bytes(self) -> usize {
        let inner_type = if self.is_tls13() { 1 } else { 0 };
        super::HEADER_BYTES + self.explicit_bytes() + inner_type + TAG_BYTES
    }

    /// Records that one key may seal. AES-GCM: 2^24 full ones keep an attacker's advantage below 2^-60
    /// (RFC 8446 5.5 has 2^24.5). ChaCha20-Poly1305 has no such limit; 2^48 is far from the end of the
    /// sequence numbers, and nobody reaches it.
    pub const fn records_max(self) -> u64 {
        if self.is_gcm() { 1 << 24 } else { 1 << 48 }
    }

    /// The AEAD.
    pub(super) fn aead(self) -> &'static Algorithm {
        match self {
            Self::Tls13Aes128Gcm | Self::Tls12Aes128Gcm => &AES_128_GCM,
            Self::Tls13Aes256Gcm | Self::Tls12Aes256Gcm => &AES_256_GCM,
            Self::Tls13ChaCha20 | Self::Tls12ChaCha20 => &CHACHA20_POLY1305,
        }
    }

    /// The KDF with the suite's hash. TLS 1.2 has no use for it.
    pub(super) fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Self::Tls13Aes256Gcm | Self::Tls12Aes256Gcm => HKDF_SHA384,
            _ => HKDF_SHA256,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::aead::NONCE_LEN;

    #[test]
    fn lengths_are_those_of_the_library() {
        for (number, suite) in Suite::ALL.into_iter().enumerate() {
            assert_eq!(suite as usize, number);
            assert_eq!(suite.aead().key_len(), suite.key_bytes());
            assert_eq!((suite.aead().tag_len(), NONCE_LEN), (TAG_BYTES, IV_BYTES));
            if suite.is_tls13() {
                assert_eq!(
                    suite.hkdf().hmac_algorithm().digest_algorithm().output_len(),
                    suite.secret_bytes()
                );
            }
        }
    }

    #[test]
    fn records_are_longer_than_their_plaintext_by_a_few_bytes() {
        let overheads = Suite::ALL.map(Suite::overhead_bytes);
        assert_eq!(overheads, [22, 22, 22, 29, 29, 21]);
    }
}
