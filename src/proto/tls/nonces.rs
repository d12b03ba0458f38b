//! A record of the nonces that this thread has sealed with, so that tests fail when one seals twice. Only in
//! builds with debug assertions.

use std::cell::RefCell;
use std::collections::HashSet;

use super::suite::IV_BYTES;

type Uses = HashSet<(Vec<u8>, [u8; IV_BYTES])>;

thread_local! {
    /// `None`: nobody watches. In unit tests somebody always does.
    static USED: RefCell<Option<Uses>> = RefCell::new(cfg!(test).then(Uses::default));
}

/// From here on sealing twice with a nonce panics on this thread. What was sealed before is forgotten.
pub fn watch() {
    USED.with(|used| *used.borrow_mut() = Some(Uses::default()));
}

/// How many records this thread has sealed since.
pub fn sealed() -> usize {
    USED.with(|used| used.borrow().as_ref().map_or(0, HashSet::len))
}

/// Notes that a key seals with a nonce.
///
/// # Panics
/// It has done so before, on this thread.
pub(super) fn record_use(key: &[u8], nonce: [u8; IV_BYTES]) {
    let first = USED.with(|used| {
        let mut used = used.borrow_mut();
        used.as_mut().is_none_or(|used| used.insert((key.to_vec(), nonce)))
    });
    assert!(first, "a nonce seals twice");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "a nonce seals twice")]
    fn the_second_use_of_a_nonce_panics() {
        watch();
        record_use(b"one", [0; 12]);
        record_use(b"other", [0; 12]);
        assert_eq!(sealed(), 2);
        record_use(b"one", [0; 12]);
    }
}
