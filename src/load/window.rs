//! Closed-loop publishing: a message leaves when the one so many before it has reached everybody.
//!
//! ```text
//!  publisher:  may 20 leave?  --> has 20 - window arrived everywhere?  no: waits for the bell
//!  workers:    17 arrived     --> arrivals of 17 + 1; all of them: rings, if somebody waits
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::event::EventfdFlags;

/// Messages of which arrivals are counted at a time.
const SLOTS: usize = 2 * WINDOW_MAX as usize;

/// Messages in flight at most.
pub(crate) const WINDOW_MAX: u32 = 1024;

/// Arrivals of the messages in flight on one channel, shared by publisher and workers.
#[derive(Debug)]
pub(crate) struct Window {
    in_flight_max: u32,
    /// The receivers of each message.
    receivers: AtomicU32,
    arrivals: Box<[AtomicU32]>,
    /// A complete message that the publisher does not know of yet.
    complete: AtomicBool,
    /// The publisher waits for the bell.
    waiting: AtomicBool,
    bell: OwnedFd,
}

impl Window {
    /// For so many messages in flight. Makes a descriptor: before descriptor tables part.
    pub(crate) fn new(in_flight_max: u32) -> io::Result<Self> {
        Ok(Self {
            in_flight_max,
            receivers: AtomicU32::new(u32::MAX),
            arrivals: (0..SLOTS).map(|_| AtomicU32::new(0)).collect(),
            complete: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            bell: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// So many get each message. Before the first one leaves.
    pub(crate) fn set_receivers(&self, count: u32) {
        self.receivers.store(count, Ordering::Relaxed);
    }

    /// By a worker: message `sequence` has reached one more. Behind the last one that came with it:
    /// [`Self::ring`].
    pub(crate) fn arrived(&self, sequence: u32) {
        let arrivals = self.slot(sequence).fetch_add(1, Ordering::SeqCst) + 1;
        if arrivals >= self.receivers.load(Ordering::Relaxed) {
            self.complete.store(true, Ordering::SeqCst);
        }
    }

    /// By a worker: the publisher may see what is complete. Those that came together are followed
    /// together.
    pub(crate) fn ring(&self) {
        if self.complete.load(Ordering::Relaxed)
            && self.complete.swap(false, Ordering::SeqCst)
            && self.waiting.swap(false, Ordering::SeqCst)
        {
            // Full means that it rings already.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
            // On one processor the publisher would else wait for the end of this thread's slice.
            std::thread::yield_now();
        }
    }

    /// By the publisher: whether message `sequence` may leave now. If so its arrivals are counted from
    /// here on; if not the bell rings when it is worth asking again.
    pub(crate) fn may_leave(&self, sequence: u32) -> bool {
        let before = sequence.checked_sub(self.in_flight_max).filter(|before| *before > 0);
        let complete = || {
            let receivers = self.receivers.load(Ordering::Relaxed);
            before.is_none_or(|before| self.slot(before).load(Ordering::SeqCst) >= receivers)
        };
        if !complete() {
            self.waiting.store(true, Ordering::SeqCst);
            // A message that arrived in between found no waiter.
            if !complete() {
                return false;
            }
            self.waiting.store(false, Ordering::SeqCst);
        }
        self.slot(sequence).store(0, Ordering::SeqCst);
        true
    }

    /// The descriptor that becomes readable when the bell rings.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The bell was heard.
    pub(crate) fn heard(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.bell, &mut count);
    }

    fn slot(&self, sequence: u32) -> &AtomicU32 {
        &self.arrivals[sequence as usize % SLOTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_leaves_when_the_one_before_the_window_is_everywhere() {
        let window = Window::new(2).unwrap();
        window.set_receivers(2);
        assert!(window.may_leave(1) && window.may_leave(2) && !window.may_leave(3));
        for sequence in [2, 2, 1] {
            window.arrived(sequence);
            assert!(!window.may_leave(3));
        }
        window.arrived(1);
        assert!(window.may_leave(3) && window.may_leave(4) && !window.may_leave(5));
        // Rung once for all that was waited for.
        window.ring();
        window.ring();
        assert_eq!(rustix::io::read(window.bell(), &mut [0; 8]), Ok(8));
        window.heard();
    }
}
