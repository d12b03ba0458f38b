//! Requests to read the options again that come over the admin API. A `SIGHUP` has no answer; these have one.

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// The outcome of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Outcome {
    /// Everything that is wrong with the options; then nothing is changed.
    pub problems: Vec<String>,
    /// Options that have changed and are in effect.
    pub changed: Vec<&'static str>,
    /// Sections that have changed and need a restart.
    pub needs_restart: Vec<&'static str>,
    pub warnings: Vec<String>,
}

/// Where the outcome goes.
pub(super) type Reply = oneshot::Sender<Outcome>;

/// Requests at a time: one is carried out before the next.
const REQUESTS_MAX: usize = 4;

/// The side of those who request.
#[derive(Clone, Debug)]
pub(super) struct ReloadRequests(mpsc::Sender<Reply>);

impl ReloadRequests {
    /// Both sides.
    pub(super) fn new() -> (Self, mpsc::Receiver<Reply>) {
        let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
        (Self(sender), receiver)
    }

    /// Has the options read again; `None` where too many requests wait, or the node is ending.
    pub(super) async fn reload(&self) -> Option<Outcome> {
        let (reply, outcome) = oneshot::channel();
        self.0.try_send(reply).ok()?;
        outcome.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_gets_its_outcome_and_a_node_that_ends_gives_none() {
        let (requests, mut receiver) = ReloadRequests::new();
        let wanted = Outcome { changed: vec!["channel"], ..Outcome::default() };
        let sent = wanted.clone();
        let serving = tokio::spawn(async move {
            let reply = receiver.recv().await.unwrap();
            reply.send(sent).unwrap();
        });
        assert_eq!(requests.reload().await, Some(wanted));
        serving.await.unwrap();
        assert_eq!(requests.reload().await, None);
    }
}
