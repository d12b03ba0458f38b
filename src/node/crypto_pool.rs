//! A pool of threads for slow cryptography: today signatures of tokens.
//!
//! ```text
//!  jobs (shards) -----.          .--> results, to the shards that wait: all of a round at once
//!                      >-- worker
//!  again (control) ---'          '--> Ask, to the control thread: keys of an endpoint are missing
//! ```
//! A worker does jobs in rounds: those that are there, up to [`ROUND_JOBS_MAX`]. Their results go out together,
//! with one lock and one waking of the control thread, whose mail makes one batch for each shard out of them.
//! Mail that finds a full mailbox stays with the control thread: so no worker ever waits for a shard.
//!
//! Workers share the process's descriptor table with the control thread and open nothing.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, select};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::control_mail::ControlMail;
use crate::base::id::ShardId;
use crate::base::time::UnixSeconds;
use crate::edge::jwt::{Checked, TokenKeys};
use crate::shard::NodeState;
use crate::shard::crypto::CryptoJob;
use crate::shard::mail::Mail;
use crate::shard::signatures::{SignatureJob, Signed, TokenKind};
use crate::sys;

/// Stack of a worker, bytes: the arithmetic of large keys is done in it.
const STACK_BYTES: usize = 512 << 10;

/// Jobs whose results wait for each other: half a millisecond of RSA.
const ROUND_JOBS_MAX: usize = 16;

/// Where the keys of each kind of token are.
pub(super) trait KeySource: Send + Sync + 'static {
    /// The keys of this kind of token.
    fn keys(&self, kind: TokenKind) -> &TokenKeys;

    /// The kind whose keys hold for this kind: connection tokens' for both, unless subscription
    /// tokens have their own.
    fn owner(&self, kind: TokenKind) -> TokenKind;
}

impl KeySource for NodeState {
    fn keys(&self, kind: TokenKind) -> &TokenKeys {
        self.keys(kind)
    }

    fn owner(&self, kind: TokenKind) -> TokenKind {
        if self.rules.subscription_keys.is_some() { kind } else { TokenKind::Connection }
    }
}

/// A check whose key is unknown: its endpoint may have it.
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

/// A check that comes back from the control thread.
#[derive(Debug)]
pub(super) enum Again {
    /// What can be known is known now: a key that still isn't makes a token bad.
    Check(SignatureJob),
    /// Its keys could not be fetched.
    Unavailable(SignatureJob),
}

/// The ends of the pool's queues that others hold. None of them has a bound of its own: each job in them
/// holds a credit of the shard that waits.
pub(super) struct Queues {
    /// For the shards.
    pub(super) jobs: Sender<CryptoJob>,
    /// For the control thread: jobs that it is done with.
    pub(super) again: Sender<Again>,
    /// For the control thread: jobs that wait for keys.
    pub(super) asks: UnboundedReceiver<Ask>,
}

/// The workers' ends.
#[derive(Clone)]
pub(super) struct Inlets {
    jobs: Receiver<CryptoJob>,
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
    node: &Arc<NodeState>,
    inlets: &Inlets,
    control_mail: &Arc<ControlMail>,
) -> std::io::Result<()> {
    for at in 0..threads {
        let worker = Worker { keys: Arc::clone(node), inlets: inlets.clone() };
        let control_mail = Arc::clone(control_mail);
        let name = format!("crypto-{at}");
        std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            // Signals are the control thread's. A worker that gets one all the same does no harm:
            // the pipes that handlers write into are in its table, too.
            let _ = sys::tables::block_signals();
            worker.run(|results| control_mail.post_all(results));
        })?;
    }
    Ok(())
}

/// Results of a round, with the shards that wait for them.
type Results = Vec<(ShardId, Mail)>;

/// Something that a worker has to do.
enum Task {
    /// It comes from a shard.
    Job(CryptoJob),
    /// It comes back from the control thread.
    Again(Again),
}

/// One thread of the pool.
struct Worker<K> {
    keys: Arc<K>,
    inlets: Inlets,
}

impl<K: KeySource> Worker<K> {
    /// Works until no more jobs can come.
    fn run(&self, mut post: impl FnMut(Results)) {
        while let Some(first) = self.wait() {
            post(self.round(first));
        }
    }

    /// Waits for the next task; `None` when no more can come.
    fn wait(&self) -> Option<Task> {
        select! {
            recv(self.inlets.jobs) -> job => job.map(Task::Job).ok(),
            recv(self.inlets.again) -> again => again.map(Task::Again).ok(),
        }
    }

    /// The next task that is there. Checks that have waited for their keys come first.
    fn next(&self) -> Option<Task> {
        let again = self.inlets.again.try_recv().map(Task::Again);
        again.or_else(|_| self.inlets.jobs.try_recv().map(Task::Job)).ok()
    }

    /// Does a task and those behind it, as many as a round has.
    fn round(&self, first: Task) -> Results {
        let now = unix_now();
        let tasks = std::iter::once(first).chain(std::iter::from_fn(|| self.next()));
        tasks.take(ROUND_JOBS_MAX).filter_map(|task| self.work(task, now)).collect()
    }

    /// Does one task. There is no result yet when it waits for keys.
    fn work(&self, task: Task, now: UnixSeconds) -> Option<(ShardId, Mail)> {
        let (job, signed) = match task {
            Task::Job(CryptoJob::Signature(job)) => self.first_check(job, now)?,
            Task::Again(again) => self.second_check(again, now),
        };
        Some((job.home, Mail::Signed { ticket: job.ticket, signed }))
    }

    /// A check that comes from a shard.
    fn first_check(&self, job: SignatureJob, now: UnixSeconds) -> Option<(SignatureJob, Signed)> {
        if job.interest.is_withdrawn() {
            return Some((job, Signed::Unavailable));
        }
        match self.keys.keys(job.kind).check_signature(&job.token, now) {
            Checked::Good { until } => Some((job, Signed::Good { until })),
            Checked::Bad => Some((job, Signed::Bad)),
            Checked::Unknown { url } => {
                let endpoint = Endpoint { kind: self.keys.owner(job.kind), url };
                let refused = self.inlets.asks.send(Ask { job, endpoint }).err()?;
                // The node ends, or fetches no keys.
                Some((refused.0.job, Signed::Unavailable))
            }
        }
    }

    /// A check that comes back from the control thread.
    fn second_check(&self, again: Again, now: UnixSeconds) -> (SignatureJob, Signed) {
        match again {
            Again::Unavailable(job) => (job, Signed::Unavailable),
            Again::Check(job) if job.interest.is_withdrawn() => (job, Signed::Unavailable),
            Again::Check(job) => {
                let signed = match self.keys.keys(job.kind).check_signature(&job.token, now) {
                    Checked::Good { until } => Signed::Good { until },
                    Checked::Bad | Checked::Unknown { .. } => Signed::Bad,
                };
                (job, signed)
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

    /// A pool without threads: a test works off what is in its queues.
    pub(in crate::node) struct Bench<K> {
        worker: Worker<K>,
    }

    impl<K: KeySource> Bench<K> {
        pub(in crate::node) fn new(keys: &Arc<K>, inlets: Inlets) -> Self {
            Self { worker: Worker { keys: Arc::clone(keys), inlets } }
        }

        /// Works off what is there; the answers by ticket.
        pub(in crate::node) fn work(&self) -> Vec<(u64, Signed)> {
            let tasks = std::iter::from_fn(|| self.worker.next());
            let results = tasks.filter_map(|task| self.worker.work(task, UnixSeconds(1)));
            let answer = |(_, mail)| match mail {
                Mail::Signed { ticket, signed } => (ticket, signed),
                other => panic!("{other:?}"),
            };
            results.map(answer).collect()
        }

        /// The results of one round, or none when nothing is there.
        pub(in crate::node) fn round(&self) -> Results {
            self.worker.next().map(|first| self.worker.round(first)).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::edge::jwt::TokenOptions;
    use crate::edge::jwt::testing::Pair;
    use crate::io::Alarm;
    use crate::node::control_mail::Bell;
    use crate::shard::mail::Mailbox;
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
            queues.jobs.send(CryptoJob::Signature(job)).unwrap();
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
        queues.jobs.send(CryptoJob::Signature(job(0))).unwrap();
        assert_eq!(bench.work(), [(0, Signed::Good { until: None })]);
        interest.withdraw();
        queues.jobs.send(CryptoJob::Signature(job(1))).unwrap();
        queues.again.send(Again::Check(job(2))).unwrap();
        assert_eq!(bench.work(), [(2, Signed::Unavailable), (1, Signed::Unavailable)]);
    }

    /// A pool whose jobs are of bad tokens, for these shards in turn.
    fn with_jobs(shards: impl IntoIterator<Item = u8>) -> (Queues, Inlets, Arc<Two>) {
        let keys = || TokenKeys::new(&TokenOptions::default()).unwrap();
        let (queues, inlets) = queues();
        for (ticket, shard) in (0..).zip(shards) {
            let (token, kind, home) = ("a.b.c".into(), TokenKind::Connection, ShardId(shard));
            let interest = Interest::default();
            let job = SignatureJob { token, kind, home, ticket, interest };
            queues.jobs.send(CryptoJob::Signature(job)).unwrap();
        }
        (queues, inlets, Arc::new(Two(keys(), keys())))
    }

    #[test]
    fn results_of_a_round_go_out_together_and_a_round_is_bounded() {
        let (_queues, inlets, keys) = with_jobs((0..40).map(|at| at % 3));
        let bench = testing::Bench::new(&keys, inlets);
        let rounds: Vec<_> = std::iter::from_fn(|| Some(bench.round()).filter(|of| !of.is_empty()))
            .map(|results| results.len())
            .collect();
        assert_eq!(rounds, [16, 16, 8]);
    }

    #[test]
    fn each_result_goes_to_the_shard_that_waits() {
        let (_queues, inlets, keys) = with_jobs([2, 0, 2, 1]);
        let results = testing::Bench::new(&keys, inlets).round();
        let shards: Vec<u8> = results.iter().map(|(shard, _)| shard.0).collect();
        assert_eq!(shards, [2, 0, 2, 1]);
        for (expected, (_, mail)) in (0..).zip(results) {
            let Mail::Signed { ticket, signed } = mail else { panic!("{mail:?}") };
            assert_eq!((ticket, signed), (expected, Signed::Bad));
        }
    }

    /// A worker goes on although the mailbox of the first shard is full.
    #[test]
    fn a_full_mailbox_holds_up_no_worker() {
        let mailbox = || Mailbox::new(1, Alarm::new(Arc::new(Bell::default())));
        let ((to_full, full), (to_other, other)) = (mailbox(), mailbox());
        assert!(to_full.try_post(Mail::Stop).is_ok() && to_full.try_post(Mail::Stop).is_err());
        let control_mail = ControlMail::new(&[to_full, to_other]);
        let (_queues, inlets, keys) = with_jobs((0..100).map(|at| u8::from(at >= 90)));
        let worker = Worker { keys, inlets };
        while let Some(first) = worker.next() {
            control_mail.post_all(worker.round(first));
        }
        let received = |mailbox: &Mailbox| mailbox.take().map(|batch| batch.mail.len());
        control_mail.flush();
        assert_eq!(received(&other), Some(10), "one batch");
        assert_eq!((received(&full), received(&full)), (Some(1), None));
        control_mail.flush();
        assert_eq!(received(&full), Some(90), "they have waited at the control_mail");
    }
}
