//! How long connections take to open, step by step, and how long pings take to come back.
//!
//! ```text
//!  dial --tcp--> connected --tls--> secured --upgrade--> 101 (200) --protocol--> connect, subscribe answered
//!  '------------------------------------ total -----------------------------------------------------'
//! ```
//! Times of handshakes under way stand in a table of their own: an open connection costs nothing here.

use super::figures::{self, Latency};
use super::report::Summary;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// A step on the way to an open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Tcp,
    Tls,
    Upgrade,
    Protocol,
}

/// The durations of each step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Steps {
    #[serde(with = "figures::sparse")]
    pub(crate) tcp: Latency,
    #[serde(with = "figures::sparse")]
    pub(crate) tls: Latency,
    #[serde(with = "figures::sparse")]
    pub(crate) upgrade: Latency,
    #[serde(with = "figures::sparse")]
    pub(crate) protocol: Latency,
    #[serde(with = "figures::sparse")]
    pub(crate) total: Latency,
    /// From a ping of ours to its pong.
    #[serde(with = "figures::sparse")]
    pub(crate) ping: Latency,
}

impl Default for Steps {
    fn default() -> Self {
        let of = figures::latency;
        Self { tcp: of(), tls: of(), upgrade: of(), protocol: of(), total: of(), ping: of() }
    }
}

impl Steps {
    /// Adds another thread's.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (all, one) in [
            (&mut self.tcp, &other.tcp),
            (&mut self.tls, &other.tls),
            (&mut self.upgrade, &other.upgrade),
            (&mut self.protocol, &other.protocol),
            (&mut self.total, &other.total),
            (&mut self.ping, &other.ping),
        ] {
            // Histograms of equal bounds always fit into each other.
            let _ = all.add(one);
        }
    }
}

/// The steps in the report, microseconds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ConnectReport {
    pub(crate) tcp: Summary,
    pub(crate) tls: Summary,
    /// From the request to the answer that frames, or chunks, follow.
    pub(crate) upgrade: Summary,
    /// From there until `connect` and `subscribe` are answered.
    pub(crate) protocol: Summary,
    pub(crate) total: Summary,
}

impl ConnectReport {
    pub(crate) fn of(steps: &Steps) -> Self {
        Self {
            tcp: Summary::of(&steps.tcp),
            tls: Summary::of(&steps.tls),
            upgrade: Summary::of(&steps.upgrade),
            protocol: Summary::of(&steps.protocol),
            total: Summary::of(&steps.total),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Connects {
    /// When a handshake began, and when its newest step ended.
    under_way: HashMap<u32, (u64, u64)>,
    pub(crate) steps: Steps,
}

fn us(ns: u64) -> u64 {
    // Rounded up, so that nothing takes no time.
    ns.div_ceil(1000).max(1)
}

impl Connects {
    /// A connection is dialled.
    pub(crate) fn begin(&mut self, index: u32, now_ns: u64) {
        self.under_way.insert(index, (now_ns, now_ns));
    }

    /// A step of it is done.
    pub(crate) fn lap(&mut self, index: u32, step: Step, now_ns: u64) {
        let Some((_, since_ns)) = self.under_way.get_mut(&index) else { return };
        let took = us(now_ns.saturating_sub(std::mem::replace(since_ns, now_ns)));
        let of = match step {
            Step::Tcp => &mut self.steps.tcp,
            Step::Tls => &mut self.steps.tls,
            Step::Upgrade => &mut self.steps.upgrade,
            Step::Protocol => &mut self.steps.protocol,
        };
        of.saturating_record(took);
    }

    /// It is open.
    pub(crate) fn end(&mut self, index: u32, now_ns: u64) {
        if let Some((began_ns, _)) = self.under_way.remove(&index) {
            self.steps.total.saturating_record(us(now_ns.saturating_sub(began_ns)));
        }
    }

    /// It could not be opened.
    pub(crate) fn forget(&mut self, index: u32) {
        self.under_way.remove(&index);
    }

    /// A ping came back.
    pub(crate) fn ponged(&mut self, sent_ns: u64, now_ns: u64) {
        self.steps.ping.saturating_record(us(now_ns.saturating_sub(sent_ns)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_its_own_time() {
        let mut connects = Connects::default();
        connects.begin(1, 1_000_000);
        connects.begin(2, 1_000_000);
        connects.lap(1, Step::Tcp, 1_200_000);
        connects.lap(1, Step::Upgrade, 1_900_000);
        connects.end(1, 1_900_000);
        connects.forget(2);
        // Later ones are not about a handshake that is over.
        connects.lap(1, Step::Protocol, 9_000_000);
        connects.end(2, 9_000_000);
        let report = ConnectReport::of(&connects.steps);
        assert_eq!(
            (report.tcp.max, report.upgrade.max, report.total.max),
            (Some(200), Some(700), Some(900))
        );
        assert_eq!((report.protocol.max, connects.under_way.len()), (None, 0));
    }
}
