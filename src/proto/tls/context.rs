//! The AEAD with one key: the only place that seals or opens.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey};

use super::state::{State, Way};
use super::suite::{IV_BYTES, Suite, TAG_BYTES};

/// A key as the library uses it: 24 bytes and 592 on the heap, so it is made for one read or one batch and
/// dropped: 63 ns (ChaCha20) to 183 ns (AES-256), 2 to 3 % of a delivery. The library wipes it.
pub(super) struct Context {
    key: LessSafeKey,
    /// What tests recognise the key by.
    #[cfg(any(test, debug_assertions))]
    name: Vec<u8>,
}

/// The library fails, or a record isn't authentic.
#[derive(Debug)]
pub(super) struct Unspecified;

impl Context {
    /// The context of a direction's key.
    pub(super) fn of(state: &State<'_>, way: Way) -> Result<Self, Unspecified> {
        Self::new(state.suite(), state.key(way))
    }

    pub(super) fn new(suite: Suite, key: &[u8]) -> Result<Self, Unspecified> {
        let unbound = UnboundKey::new(suite.aead(), key).map_err(|_| Unspecified)?;
        Ok(Self {
            key: LessSafeKey::new(unbound),
            #[cfg(any(test, debug_assertions))]
            name: key.to_vec(),
        })
    }

    /// Seals `plain` and, behind it, `extra` into `out`, which is longer than both by the tag.
    pub(super) fn seal(
        &self,
        nonce: [u8; IV_BYTES],
        aad: &[u8],
        plain: &[u8],
        extra: &[u8],
        out: &mut [u8],
    ) -> Result<(), Unspecified> {
        self.record_use(nonce);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let (sealed, tail) = out.split_at_mut_checked(plain.len()).ok_or(Unspecified)?;
        self.key
            .seal_out_of_place_scatter(nonce, Aad::from(aad), plain, sealed, extra, tail)
            .map_err(|_| Unspecified)
    }

    /// The same, with the plaintext at the begin of `out`.
    pub(super) fn seal_in_place(
        &self,
        nonce: [u8; IV_BYTES],
        aad: &[u8],
        extra: &[u8],
        out: &mut [u8],
    ) -> Result<(), Unspecified> {
        self.record_use(nonce);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = out.len().checked_sub(extra.len() + TAG_BYTES).ok_or(Unspecified)?;
        let (sealed, tail) = out.split_at_mut(plain);
        self.key
            .seal_in_place_scatter(nonce, Aad::from(aad), sealed, extra, tail)
            .map_err(|_| Unspecified)
    }

    /// Opens ciphertext and tag in place. Returns the length of the plaintext. Of bytes that aren't
    /// authentic nothing is returned, and nobody looks at them again.
    pub(super) fn open(
        &self,
        nonce: [u8; IV_BYTES],
        aad: &[u8],
        sealed: &mut [u8],
    ) -> Result<usize, Unspecified> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let opened = self.key.open_in_place(nonce, Aad::from(aad), sealed);
        opened.map(|plain| plain.len()).map_err(|_| Unspecified)
    }

    #[cfg(not(any(test, debug_assertions)))]
    #[inline]
    fn record_use(&self, _nonce: [u8; IV_BYTES]) {}

    /// Fails if a key and a nonce seal twice, wherever it happens on a test's thread.
    #[cfg(any(test, debug_assertions))]
    fn record_use(&self, nonce: [u8; IV_BYTES]) {
        super::nonces::record_use(&self.name, nonce);
    }
}
