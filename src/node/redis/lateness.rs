//! A server that answers, but late: commands would wait in the queue until their homes give up, each of them. It
//! counts as away instead, and new commands fail at once, until a reply comes soon again.
//!
//! ```text
//!  soon --oldest reply missing for `late_after`--> late --a reply in half of that--> soon
//! ```
//! The connection stays: commands under way may have taken effect, and their replies are still of use. An idle
//! connection is tried each second, so that a server that has recovered is noticed though nothing is sent to it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Connected, Shared};
use crate::node::broker_threads::Figures;

/// Whether the server of a connection answers late. Ends with the connection.
pub(super) struct Lateness<'a> {
    shared: &'a Shared,
    at: usize,
    server: &'a Connected,
}

impl<'a> Lateness<'a> {
    /// Of a new connection to server `at`, which has answered soon.
    pub(super) fn new(shared: &'a Shared, at: usize, server: &'a Connected) -> Self {
        Self { shared, at, server }
    }

    /// The server is late from this moment on, if the oldest command under way was sent at `oldest`; `None` where
    /// nothing is under way, or it is late already.
    pub(super) fn due(&self, oldest: Option<Instant>) -> Option<Instant> {
        oldest.filter(|_| !self.is_late()).map(|sent| sent + self.shared.settings.late_after)
    }

    /// No reply came in time.
    pub(super) fn begin(&self) {
        if !self.server.queue.is_late.replace(true) {
            tracing::warn!(
                "redis: server {} answers late: it counts as away, and commands fail until it answers sooner",
                self.at
            );
            Figures::add(&self.shared.figures.servers_away, 1);
        }
    }

    /// A reply came, so long after its command was sent.
    pub(super) fn answered(&self, took: Duration) {
        if self.is_late() && took <= self.shared.settings.late_after / 2 {
            tracing::info!("redis: server {} answers in time again", self.at);
            self.end();
        }
    }

    fn is_late(&self) -> bool {
        self.server.queue.is_late.get()
    }

    fn end(&self) {
        if self.server.queue.is_late.replace(false) {
            self.shared.figures.servers_away.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Lateness<'_> {
    /// The connection ends: what follows decides.
    fn drop(&mut self) {
        self.end();
    }
}
