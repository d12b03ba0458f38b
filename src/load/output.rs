//! Bytes to sockets that may not take them all.

use crate::base::rng::Rng;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::io;
use std::os::fd::OwnedFd;

/// Bytes that may wait for a socket to take them; beyond that nothing more is sent on it.
pub(crate) const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// A key for the next frame. Spreads bits; is no secret.
pub(crate) fn mask_key(rng: &mut Rng) -> [u8; 4] {
    (rng.next_u64() as u32).to_ne_bytes()
}

/// Writes as much as the socket takes. Returns how many bytes that were.
pub(crate) fn write_some(fd: Option<&OwnedFd>, bytes: &[u8]) -> Result<usize, Errno> {
    let Some(fd) = fd else { return Ok(bytes.len()) };
    let mut count = 0;
    while count < bytes.len() {
        match rustix::net::send(fd, &bytes[count..], SendFlags::NOSIGNAL) {
            Ok(written) => count += written,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// An error's text without the number that std appends to it.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
