//! Figures about the messages between nodes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cluster::control::Kind;

const KINDS: usize = Kind::NAMES.len();

/// One figure for each kind of message, by the number of the kind.
type ByKind = [AtomicU64; KINDS];

/// See the module.
#[derive(Debug, Default)]
pub(in crate::node) struct Counters {
    sent: ByKind,
    failed: ByKind,
    received: ByKind,
    /// Commands of other nodes that were not carried out.
    pub(in crate::node) orders_refused: AtomicU64,
    /// Nodes that were forgotten because they were silent.
    pub(in crate::node) forgotten: AtomicU64,
    /// Answers about presence that lack some node's clients.
    pub(in crate::node) presence_partial: AtomicU64,
    /// Surveys of this node, by outcome.
    surveys: [AtomicU64; SurveyOutcome::NAMES.len()],
    /// Questions of other nodes, by the code of the answer; unusual codes are the last.
    answers: [AtomicU64; ANSWER_CODES.len()],
}

/// How a survey of this node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum SurveyOutcome {
    /// All nodes have answered.
    Complete,
    /// The question was not sent.
    Unsent,
    /// A node has not answered in time.
    Timeout,
    /// A node has answered with a code, or with something that can't be read.
    Refused,
    /// The answers were too long together.
    TooLong,
    /// There were too many surveys.
    TooMany,
}

impl SurveyOutcome {
    /// As metrics name them, in order.
    pub(super) const NAMES: [&'static str; 6] =
        ["complete", "unsent", "timeout", "refused", "too_long", "too_many"];
}

/// Codes of answers to surveys, as metrics name them.
const ANSWER_CODES: [&str; 5] = ["0", "1", "2", "3", "4"];

/// Figures with the value of their one label.
pub(in crate::node) type Labelled = Vec<(&'static str, u64)>;

impl Counters {
    /// A message was sent.
    pub(super) fn sent(&self, kind: Kind) {
        self.sent[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A message was not sent, or it is not known whether it was.
    pub(super) fn failed(&self, kind: Kind) {
        self.failed[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A message of another node has come.
    pub(super) fn received(&self, kind: Kind) {
        self.received[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A survey of this node has ended.
    pub(super) fn surveyed(&self, outcome: SurveyOutcome) {
        self.surveys[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A question of another node was answered.
    pub(super) fn answered(&self, code: u32) {
        let at = (code as usize).min(ANSWER_CODES.len() - 1);
        self.answers[at].fetch_add(1, Ordering::Relaxed);
    }

    /// Messages by kind: sent, failed, received.
    pub(in crate::node) fn messages(&self) -> [Labelled; 3] {
        [&self.sent, &self.failed, &self.received].map(|of| labelled(&Kind::NAMES, of))
    }

    /// Surveys of this node by outcome.
    pub(in crate::node) fn surveys(&self) -> Labelled {
        labelled(&SurveyOutcome::NAMES, &self.surveys)
    }

    /// Answers to surveys of other nodes by code.
    pub(in crate::node) fn answers(&self) -> Labelled {
        labelled(&ANSWER_CODES, &self.answers)
    }

    #[cfg(test)]
    pub(super) fn all_sent(&self) -> u64 {
        self.messages()[0].iter().map(|(_, count)| count).sum()
    }

    #[cfg(test)]
    pub(super) fn all_failed(&self) -> u64 {
        self.messages()[1].iter().map(|(_, count)| count).sum()
    }
}

fn labelled(names: &[&'static str], counts: &[AtomicU64]) -> Labelled {
    names.iter().zip(counts).map(|(name, count)| (*name, count.load(Ordering::Relaxed))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_has_its_name() {
        let counters = Counters::default();
        counters.sent(Kind::Node);
        counters.failed(Kind::Refresh);
        counters.received(Kind::Unknown);
        counters.surveyed(SurveyOutcome::TooMany);
        counters.answered(2);
        counters.answered(77);
        let counted =
            |of: Labelled| of.into_iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
        let messages = counters.messages().map(counted);
        assert_eq!(messages, [[("node", 1)], [("refresh", 1)], [("unknown", 1)]]);
        assert_eq!(counted(counters.surveys()), [("too_many", 1)]);
        assert_eq!(counted(counters.answers()), [("2", 1), ("4", 1)]);
    }
}
