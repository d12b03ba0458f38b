//! The timer that ends the waits of a shard.
//!
//! A wait with a timeout sets a timer of the kernel and takes it back, each time, which is a good part of what
//! a round trip costs above a bare loop's. This one stays set from one wait to the next, and is set anew only for an earlier
//! end, or when it has ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer that becomes readable when it ends, and stays so until it is set again: nobody reads it.
pub(super) struct Timer {
    fd: OwnedFd,
    /// When it ends, if it hasn't yet.
    at: Option<Duration>,
    /// How often it was set.
    #[cfg(test)]
    pub(super) settings: u32,
}

impl Timer {
    /// One that is not set.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self {
            fd,
            at: None,
            #[cfg(test)]
            settings: 0,
        })
    }

    /// Sees to it that it ends at a moment at the latest, which is in `left` from now, more than nothing. False:
    /// it can't.
    pub(super) fn ends_by(&mut self, moment: Duration, left: Duration) -> bool {
        if self.at.is_some_and(|at| at <= moment) {
            return true;
        }
        let Ok(it_value) = Timespec::try_from(left) else { return false };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let end = Itimerspec { it_interval: never, it_value };
        if timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &end).is_err() {
            return false;
        }
        self.at = Some(moment);
        #[cfg(test)]
        {
            self.settings += 1;
        }
        true
    }

    /// It has ended, and this was reported.
    pub(super) fn ended(&mut self) {
        self.at = None;
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
