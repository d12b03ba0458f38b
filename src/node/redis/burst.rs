//! When a thread gives memory back: behind a burst, as when all channels were subscribed again. What it took
//! would otherwise stay with its heap, since a thread that is idle frees nothing.

/// Messages and commands behind which memory may be worth giving back.
const LARGE: u64 = 1_000;

/// Of these in a second the thread is idle.
const IDLE: u64 = 100;

/// Messages and commands of a thread, as counted a second ago.
#[derive(Debug, Default)]
pub(in crate::node) struct Burst {
    seen: u64,
    given_back: u64,
}

impl Burst {
    /// Once a second, with the number of messages and commands so far. True if a burst is over.
    pub(in crate::node) fn is_over(&mut self, handled: u64) -> bool {
        let is_idle = handled - std::mem::replace(&mut self.seen, handled) <= IDLE;
        let is_over = is_idle && handled - self.given_back > LARGE;
        if is_over {
            self.given_back = handled;
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_behind_each_burst() {
        let mut burst = Burst::default();
        let handled = [10, 500, 1_200, 2_900, 2_950, 2_960, 4_000, 4_001, 4_002];
        let over = handled.map(|handled| burst.is_over(handled));
        assert_eq!(over, [false, false, false, false, true, false, false, true, false]);
    }
}
