//! The threads that check signatures for the shards.
//!
//! ```text
//!  jobs (shards) -----.          .--> Mail::Signed, to the requesting shard
//!                      >-- worker
//!  again (control) ---'          '--> Ask, to the control thread: keys of an endpoint are missing
//! ```
//! They share the process's descriptor table with the control thread and open nothing. Answers go out by the
//! control thread's desk, which keeps those that find a full mailbox: so no worker ever waits for a shard.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, select};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::desk::Desk;
use crate::base::time::UnixSeconds;
use crate::edge::jwt::{Checked, TokenKeys};
use crate::shard::Node;
use crate::shard::mail::Mail;
use crate::shard::signatures::{SignatureJob, Signed, TokenKind};
use crate::sys;

/// Stack of a worker, bytes: the arithmetic of large keys is done in it.
const STACK_BYTES: usize = 512 << 10;

/// Where the keys of each kind of token are.
pub(super) trait KeySource: Send + Sync + 'static {
    /// The keys of this kind of token.
    fn keys(&self, kind: TokenKind) -> &TokenKeys;

    /// The kind whose keys hold for this kind: connection tokens' for both, unless subscription
    /// tokens have their own.
    fn owner(&self, kind: TokenKind) -> TokenKind;
}

impl KeySource for Node {
    fn keys(&self, kind: TokenKind) -> &TokenKeys {
        self.keys(kind)
    }

    fn owner(&self, kind: TokenKind) -> TokenKind {
        if self.rules.subscription_keys.is_some() { kind } else { TokenKind::Connection }
    }
}

/// A job whose key is unknown: its endpoint is to be fetched.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) job: SignatureJob,
    pub(super) endpoint: Endpoint,
}

/// An address that keys come from. Two kinds of tokens with one address have their keys twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Endpoint {
    pub(super) kind: TokenKind,
    pub(super) url: String,
}

/// A job that comes back from the control thread.
#[derive(Debug)]
pub(super) enum Again {
    /// All keys are known now: a token with an unknown one is bad.
    Check(SignatureJob),
    /// Its keys could not be fetched.
    Unavailable(SignatureJob),
}

/// The ends of the pool's queues that others hold. None of them has a bound of its own: each job in
/// them holds a credit of the requesting shard.
pub(super) struct Queues {
    /// For the shards.
    pub(super) jobs: Sender<SignatureJob>,
    /// For the control thread: jobs that it is done with.
    pub(super) again: Sender<Again>,
    /// For the control thread: jobs that wait for keys.
    pub(super) asks: UnboundedReceiver<Ask>,
}

/// The workers' ends.
#[derive(Clone)]
pub(super) struct Inlets {
    jobs: Receiver<SignatureJob>,
    again: Receiver<Again>,
    asks: UnboundedSender<Ask>,
}

/// The queues of a pool.
pub(super) fn queues() -> (Queues, Inlets) {
    let (jobs, jobs_out) = crossbeam_channel::unbounded();
    let (again, again_out) = crossbeam_channel::unbounded();
    let (asks_in, asks) = tokio::sync::mpsc::unbounded_channel();
    let inlets = Inlets { jobs: jobs_out, again: again_out, asks: asks_in };
    (Queues { jobs, again, asks }, inlets)
}

/// Starts the workers. They end with the process.
///
/// # Errors
/// When a thread can't be made.
#[expect(clippy::disallowed_methods, reason = "threads of the node are made in this folder")]
pub(super) fn spawn(
    threads: usize,
    node: &Arc<Node>,
    inlets: &Inlets,
    desk: &Arc<Desk>,
) -> std::io::Result<()> {
    for at in 0..threads {
        let worker = Worker { keys: Arc::clone(node), inlets: inlets.clone() };
        let desk = Arc::clone(desk);
        let name = format!("signatures-{at}");
        std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            // Signals are the control thread's. A worker that gets one all the same does no harm:
            // the pipes that handlers write into are in its table, too.
            let _ = sys::tables::block_signals();
            worker.run(|job, signed| {
                desk.post(job.home, Mail::Signed { ticket: job.ticket, signed });
            });
        })?;
    }
    Ok(())
}

/// One thread of the pool.
struct Worker<K> {
    keys: Arc<K>,
    inlets: Inlets,
}

impl<K: KeySource> Worker<K> {
    /// Works until nobody can have a job any more.
    fn run(&self, mut answer: impl FnMut(&SignatureJob, Signed)) {
        loop {
            let worked = select! {
                recv(self.inlets.jobs) -> job => {
                    job.map(|job| self.first(job, unix_now(), &mut answer))
                }
                recv(self.inlets.again) -> again => {
                    again.map(|again| self.second(&again, unix_now(), &mut answer))
                }
            };
            if worked.is_err() {
                return;
            }
        }
    }

    /// A job that comes from a shard.
    fn first(
        &self,
        job: SignatureJob,
        now: UnixSeconds,
        answer: &mut impl FnMut(&SignatureJob, Signed),
    ) {
        if job.interest.is_withdrawn() {
            return answer(&job, Signed::Unavailable);
        }
        match self.keys.keys(job.kind).check_signature(&job.token, now) {
            Checked::Good { until } => answer(&job, Signed::Good { until }),
            Checked::Bad => answer(&job, Signed::Bad),
            Checked::Unknown { url } => {
                let endpoint = Endpoint { kind: self.keys.owner(job.kind), url };
                if let Err(refused) = self.inlets.asks.send(Ask { job, endpoint }) {
                    // The node ends, or fetches no keys.
                    answer(&refused.0.job, Signed::Unavailable);
                }
            }
        }
    }

    /// A job that comes back from the control thread.
    fn second(
        &self,
        again: &Again,
        now: UnixSeconds,
        answer: &mut impl FnMut(&SignatureJob, Signed),
    ) {
        match again {
            Again::Unavailable(job) => answer(job, Signed::Unavailable),
            Again::Check(job) if job.interest.is_withdrawn() => answer(job, Signed::Unavailable),
            Again::Check(job) => {
                let signed = match self.keys.keys(job.kind).check_signature(&job.token, now) {
                    Checked::Good { until } => Signed::Good { until },
                    Checked::Bad | Checked::Unknown { .. } => Signed::Bad,
                };
                answer(job, signed);
            }
        }
    }
}

/// Only for secrets that end, which shards check themselves; so this is read for completeness.
#[expect(clippy::disallowed_methods, reason = "the pool has no driver that reads the clock")]
fn unix_now() -> UnixSeconds {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixSeconds(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A pool without threads: the caller works off its queues.
    pub(in crate::node) struct Bench<K> {
        worker: Worker<K>,
    }

    impl<K: KeySource> Bench<K> {
        pub(in crate::node) fn new(keys: &Arc<K>, inlets: Inlets) -> Self {
            Self { worker: Worker { keys: Arc::clone(keys), inlets } }
        }

        /// Works off what is there; the answers by ticket.
        pub(in crate::node) fn work(&self) -> Vec<(u64, Signed)> {
            let mut answers = Vec::new();
            let mut answer = |job: &SignatureJob, signed| answers.push((job.ticket, signed));
            while let Ok(again) = self.worker.inlets.again.try_recv() {
                self.worker.second(&again, UnixSeconds(1), &mut answer);
            }
            while let Ok(job) = self.worker.inlets.jobs.try_recv() {
                self.worker.first(job, UnixSeconds(1), &mut answer);
            }
            answers
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::id::ShardId;
    use crate::edge::jwt::TokenOptions;
    use crate::edge::jwt::testing::Pair;
    use crate::shard::signatures::Interest;

    struct Two(TokenKeys, TokenKeys);

    impl KeySource for Two {
        fn keys(&self, kind: TokenKind) -> &TokenKeys {
            if kind == TokenKind::Connection { &self.0 } else { &self.1 }
        }

        fn owner(&self, kind: TokenKind) -> TokenKind {
            kind
        }
    }

    #[test]
    fn jobs_are_answered_by_their_own_keys() {
        let (one, two) = (Pair::ec("P-256"), Pair::ec("P-256"));
        let keys = |pair: &Pair| {
            let options = TokenOptions { ecdsa_public_key: pair.pem(), ..Default::default() };
            TokenKeys::new(&options).unwrap()
        };
        let (queues, inlets) = queues();
        let bench = testing::Bench::new(&Arc::new(Two(keys(&one), keys(&two))), inlets);
        let token = |pair: &Pair| pair.token(&json!({"alg": "ES256"}), &json!({"exp": 7}));
        for (ticket, (pair, kind)) in [
            (&one, TokenKind::Connection),
            (&one, TokenKind::Subscription),
            (&two, TokenKind::Connection),
            (&two, TokenKind::Subscription),
        ]
        .into_iter()
        .enumerate()
        {
            let token = token(pair).into();
            let job = SignatureJob {
                token,
                kind,
                home: ShardId(3),
                ticket: ticket as u64,
                interest: Interest::default(),
            };
            queues.jobs.send(job).unwrap();
        }
        let token = token(&one).into();
        let kind = TokenKind::Connection;
        let job = SignatureJob {
            token,
            kind,
            home: ShardId(3),
            ticket: 4,
            interest: Interest::default(),
        };
        queues.again.send(Again::Unavailable(job)).unwrap();
        let mut answers = bench.work();
        answers.sort_by_key(|(ticket, _)| *ticket);
        let good = Signed::Good { until: Some(7) };
        let expected = [good, Signed::Bad, Signed::Bad, good, Signed::Unavailable];
        let expected: Vec<_> = (0..).zip(expected).collect();
        assert_eq!(answers, expected);
    }

    #[test]
    fn a_check_that_nobody_waits_for_is_not_made() {
        let pair = Pair::ec("P-256");
        let options = TokenOptions { ecdsa_public_key: pair.pem(), ..Default::default() };
        let keys = || TokenKeys::new(&options).unwrap();
        let (queues, inlets) = queues();
        let bench = testing::Bench::new(&Arc::new(Two(keys(), keys())), inlets);
        let token: Box<str> = pair.token(&json!({"alg": "ES256"}), &json!({})).into();
        let (kind, home) = (TokenKind::Connection, ShardId(0));
        let interest = Interest::default();
        let job = |ticket| SignatureJob {
            token: token.clone(),
            kind,
            home,
            ticket,
            interest: interest.clone(),
        };
        queues.jobs.send(job(0)).unwrap();
        assert_eq!(bench.work(), [(0, Signed::Good { until: None })]);
        interest.withdraw();
        queues.jobs.send(job(1)).unwrap();
        queues.again.send(Again::Check(job(2))).unwrap();
        assert_eq!(bench.work(), [(2, Signed::Unavailable), (1, Signed::Unavailable)]);
    }
}
