//! Tokens whose signature was found good, remembered until they expire: a client that comes back
//! with the same token costs a digest instead of a signature.

use std::collections::VecDeque;

use aws_lc_rs::digest;
use hashbrown::HashMap;

use crate::base::time::UnixSeconds;

/// Stands for a token: SHA-256 over it and what it is good for. Nobody can make another token with
/// the same one.
pub type TokenDigest = [u8; 32];

/// The digest of a token; tokens of different `kind` have different ones.
pub fn token_digest(kind: u8, token: &str) -> TokenDigest {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[kind]);
    context.update(token.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

/// How long a signature is good for.
#[derive(Clone, Copy, Debug)]
struct Good {
    /// Unix seconds; `i64::MAX` for a token that never expires.
    until: i64,
    /// Under which keys it was checked.
    generation: u64,
}

/// Good tokens, the latest so many. About 100 bytes each.
#[derive(Debug)]
pub struct GoodTokens {
    known: HashMap<TokenDigest, Good, foldhash::fast::RandomState>,
    /// In the order in which they came.
    order: VecDeque<TokenDigest>,
    max: usize,
}

impl GoodTokens {
    /// None yet; of more than `max` the oldest is forgotten.
    pub fn new(max: usize) -> Self {
        Self { known: HashMap::default(), order: VecDeque::new(), max }
    }

    /// Whether a token is known to be good now, under the present keys.
    pub fn has(&self, token: &TokenDigest, generation: u64, now: UnixSeconds) -> bool {
        let good = self.known.get(token);
        good.is_some_and(|good| good.generation == generation && now.0 < good.until)
    }

    /// Remembers one until it expires.
    pub fn insert(&mut self, token: TokenDigest, generation: u64, until: Option<i64>) {
        let good = Good { until: until.unwrap_or(i64::MAX), generation };
        if self.known.insert(token, good).is_some() {
            return;
        }
        self.order.push_back(token);
        while self.order.len() > self.max {
            let Some(oldest) = self.order.pop_front() else { break };
            self.known.remove(&oldest);
        }
    }

    /// Forgets tokens whose time is over, looking at `count` of them.
    pub fn sweep(&mut self, now: UnixSeconds, count: usize) {
        for _ in 0..count.min(self.order.len()) {
            let Some(token) = self.order.pop_front() else { break };
            match self.known.get(&token) {
                Some(good) if now.0 < good.until => self.order.push_back(token),
                _ => drop(self.known.remove(&token)),
            }
        }
        if self.order.is_empty() && self.known.capacity() > 0 {
            *self = Self::new(self.max);
        }
    }

    /// Forgets the oldest `count`. How many there were.
    pub fn forget_oldest(&mut self, count: usize) -> usize {
        let count = count.min(self.order.len());
        for token in self.order.drain(..count) {
            self.known.remove(&token);
        }
        if self.order.is_empty() && self.known.capacity() > 0 {
            *self = Self::new(self.max);
        }
        count
    }

    /// Tokens remembered.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// None is remembered.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_until_its_time_or_its_keys_are_over() {
        let mut tokens = GoodTokens::new(9);
        let (a, b) = (token_digest(0, "a"), token_digest(1, "a"));
        assert_ne!(a, b);
        tokens.insert(a, 1, Some(100));
        tokens.insert(b, 1, None);
        let has = |token, generation, now| tokens.has(token, generation, UnixSeconds(now));
        assert!(has(&a, 1, 99) && !has(&a, 1, 100) && !has(&a, 2, 99));
        assert!(has(&b, 1, 1 << 60) && !has(&token_digest(0, "b"), 1, 0));
        tokens.insert(a, 2, Some(100));
        assert!(tokens.has(&a, 2, UnixSeconds(99)));
        tokens.sweep(UnixSeconds(100), 9);
        assert_eq!(tokens.len(), 1);
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut tokens = GoodTokens::new(2);
        let digests = ["a", "b", "c"].map(|token| token_digest(0, token));
        digests.iter().for_each(|token| tokens.insert(*token, 0, None));
        let known = digests.map(|token| tokens.has(&token, 0, UnixSeconds(0)));
        assert_eq!((known, tokens.len()), ([false, true, true], 2));
        assert_eq!((tokens.forget_oldest(1), tokens.len()), (1, 1));
        assert!(tokens.has(&digests[2], 0, UnixSeconds(0)));
        assert_eq!((tokens.forget_oldest(9), tokens.is_empty()), (1, true));
    }
}
