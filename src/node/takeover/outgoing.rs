//! The running node: its control thread hands all shards over to a new process, or goes on.
//!
//! ```text
//!  Hello -> checks -> Welcome -> Prepared -> links to the shards
//!    copy:   one shard after the other sends its state between its turns; then all of them what has changed
//!    settle: no accept, no read; probes until nothing is on its way between two of them
//!    freeze: each shard sends what has changed since, and waits
//!    Frozen -> Ready -> Go          any fault before Go: Abort, and all shards go on
//! ```

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::{info, warn};

use super::brokers::Sharing;
use super::channel::{Async, Fault, check_peer};
use super::shard::News;
use super::{Figures, Gate, Report, monotonic_ns, points};
use crate::base::id::ShardId;
use crate::handover::{Counts, Go, Hello, Identity, Message, Purpose, ShardCounts, Welcome};
use crate::io::sockets::{Address, Switchboard};
use crate::node::control::Control;
use crate::node::memory;
use crate::shard::mail::{HandoverAction, HandoverStep, Mail, Outcome};
use crate::shard::settle::CALLS_MS;

/// The first message comes this soon: the control thread does nothing else meanwhile.
const HELLO_WITHIN: Duration = Duration::from_secs(1);

/// The new process has prepared this soon.
const PREPARED_WITHIN: Duration = Duration::from_secs(30);

/// All shards have sent their state this soon, between their turns. Each gives up earlier if the new process takes
/// nothing.
const COPIED_WITHIN: Duration = Duration::from_secs(120);

/// Shards answer this soon: a turn may be long.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// All shards have settled this soon.
const SETTLED_WITHIN: Duration = Duration::from_millis(3 * CALLS_MS);

/// All shards have sent their state this soon. Each gives up earlier if the new process takes nothing.
const SENT_WITHIN: Duration = Duration::from_secs(30);

/// The new process has made its shards this soon after all state was sent.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// A process that was told to end has ended this soon, or is killed: as long as it lives, closing a connection
/// here doesn't end it.
const END_WITHIN: Duration = Duration::from_secs(1);

/// From one probe to the next while something is under way.
const PROBE_AGAIN: Duration = Duration::from_millis(1);

/// Answers to requests that waited leave within this time.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

/// What a node needs to hand its shards over.
pub(in crate::node) struct Outgoing {
    /// The takeover socket.
    pub(in crate::node) listener: UnixListener,
    pub(in crate::node) switchboard: Arc<Switchboard>,
    pub(in crate::node) reports: Mutex<UnboundedReceiver<Report>>,
    /// Number of the last attempt.
    pub(in crate::node) attempt: Cell<u32>,
    pub(in crate::node) identity: Identity,
    /// The zero of the shards' clock, by the machine's monotonic one.
    pub(in crate::node) zero_ns: u64,
    /// The options that hold until the node ends, with digests of their values.
    pub(in crate::node) options: Vec<(String, [u8; 16])>,
    pub(in crate::node) public: Vec<Address>,
    pub(in crate::node) internal: Vec<Address>,
    /// Copies of the internal port's listeners.
    pub(in crate::node) internal_listeners: Vec<OwnedFd>,
    pub(in crate::node) gate: Arc<Gate>,
    pub(in crate::node) figures: Arc<Figures>,
    /// A copy of the listener of HTTP-01 challenges, if there is one.
    pub(in crate::node) challenges: Option<OwnedFd>,
}

/// An attempt that has frozen shards.
struct Frozen {
    /// Each shard waits for its outcome.
    outcomes: Vec<mpsc::Sender<Outcome>>,
    counts: Counts,
}

impl Control {
    /// The next process that connects to the takeover socket.
    pub(in crate::node) async fn takeover_requested(&self) -> UnixStream {
        let Some(outgoing) = &self.takeover else { return std::future::pending().await };
        loop {
            match outgoing.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(fault) => {
                    warn!(%fault, "cannot accept at the takeover socket");
                    tokio::time::sleep(ANSWER_WITHIN).await;
                }
            }
        }
    }

    /// Hands over to the process at the other end. False: the node goes on as before.
    pub(in crate::node) async fn hand_over(&self, stream: UnixStream) -> bool {
        let Some(outgoing) = &self.takeover else { return false };
        let mut channel = Async::new(stream);
        match self.begin_handover(outgoing, &mut channel).await {
            Ok(false) => return false,
            Ok(true) => {}
            Err(why) => {
                warn!(why, "takeover refused");
                outgoing.figures.failed.fetch_add(1, Ordering::Relaxed);
                let _ = channel.send(&Message::Refused(why), &[]).await;
                return false;
            }
        }
        let begun = tokio::time::Instant::now();
        let outcome = self.hand_all_over(outgoing, &mut channel).await;
        match outcome {
            Ok(counts) => {
                let connections: u64 = counts.shards.iter().map(|shard| shard.connections).sum();
                let elapsed_us = begun.elapsed().as_micros() as u64;
                info!(connections, elapsed_us, "handed over: this process ends");
                true
            }
            Err(why) => {
                outgoing.figures.failed.fetch_add(1, Ordering::Relaxed);
                warn!(why, "takeover failed: this process goes on");
                abort(&mut channel, why).await;
                false
            }
        }
    }

    /// The part before anything is changed. True: the other process prepares.
    async fn begin_handover(
        &self,
        outgoing: &Outgoing,
        channel: &mut Async,
    ) -> Result<bool, String> {
        check_peer(channel.socket())?;
        let hello = match channel.receive(HELLO_WITHIN).await {
            Ok(Message::Hello(hello)) => hello,
            Ok(other) => return Err(format!("unexpected message {}", other.name())),
            Err(fault) => return Err(fault.to_string()),
        };
        if hello.purpose == Purpose::Status {
            let status = outgoing.figures.status();
            return match channel.send(&Message::Status(status), &[]).await {
                Ok(()) => Ok(false),
                Err(fault) => Err(fault.to_string()),
            };
        }
        let Hello { version, .. } = &hello;
        info!(version, "another process takes over");
        if let Some(obstacle) = self.obstacle(outgoing, &hello) {
            return Err(obstacle);
        }
        let (ticket_keys, ticket_keys_since) = self.certificates.ticket_keys();
        let identity = Identity { ticket_keys, ticket_keys_since, ..outgoing.identity.clone() };
        let texts = |of: &[Address]| of.iter().map(Address::to_string).collect();
        let options = &self.node.options;
        let welcome = Welcome {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            identity,
            public: texts(&outgoing.public),
            internal: texts(&outgoing.internal),
            one_accepts: options.one_accepts,
            listeners_stay: options.listeners_stay,
            open: self.node.open.iter().map(|open| open.load(Ordering::Relaxed)).collect(),
            memory: memory::rss_bytes().unwrap_or(0),
            zero_ns: outgoing.zero_ns,
        };
        let sent = channel.send(&Message::Welcome(Box::new(welcome)), &[]).await;
        sent.map(|()| true).map_err(|fault| fault.to_string())
    }

    /// The reason why this node doesn't hand over to that process.
    fn obstacle(&self, outgoing: &Outgoing, hello: &Hello) -> Option<String> {
        self.brokers_obstacle().or_else(|| hello.objection(self.node.open.len(), &outgoing.options))
    }

    /// From Prepared to Go. An error: the shards go on.
    async fn hand_all_over(
        &self,
        outgoing: &Outgoing,
        channel: &mut Async,
    ) -> Result<Counts, String> {
        let text = |fault: Fault| fault.to_string();
        match channel.receive(PREPARED_WITHIN).await.map_err(text)? {
            Message::Prepared => {}
            Message::Failed(why) => return Err(why),
            other => return Err(format!("unexpected message {}", other.name())),
        }
        let links = channel.take_descriptors();
        if links.len() != self.node.open.len() {
            return Err(format!("{} links came for {} shards", links.len(), self.node.open.len()));
        }
        for (shard, link) in self.control_mail.shards().zip(links) {
            let passed = outgoing.switchboard.pass_link(shard, link.as_fd());
            passed.map_err(|fault| format!("the link of shard {}: {fault}", shard.0))?;
        }
        points::pass("old-prepared");
        let mut reports = outgoing.reports.lock().await;
        // Late ones of an attempt before this.
        while reports.try_recv().is_ok() {}
        outgoing.attempt.set(outgoing.attempt.get().wrapping_add(1).max(1));
        let mut sharing = Sharing::new();
        let both = (&mut *channel, &mut *reports);
        if let Err(why) = self.share_channels(outgoing, &mut sharing, both).await {
            self.go_on(outgoing).await;
            return Err(why);
        }
        points::pass("old-shared");
        if let Err(why) = self.copy_twice(outgoing, &mut reports, &sharing).await {
            self.go_on(outgoing).await;
            return Err(why);
        }
        points::pass("old-all-copied");
        outgoing.gate.hold();
        let settled_since = monotonic_ns();
        let both = (&mut *channel, &mut *reports);
        let frozen = match self.freeze(outgoing, &mut sharing, both).await {
            Ok(frozen) => frozen,
            Err(why) => {
                self.go_on(outgoing).await;
                return Err(why);
            }
        };
        let counts = frozen.counts.clone();
        points::pass("old-frozen");
        match self.decide(outgoing, channel, &frozen, settled_since).await {
            Ok(()) => {
                frozen.outcomes.iter().for_each(|outcome| _ = outcome.send(Outcome::Gone));
                outgoing.gate.close();
                Ok(counts)
            }
            Err(why) => {
                // Their senders are gone: the shards go on.
                drop(frozen);
                self.go_on(outgoing).await;
                Err(why)
            }
        }
    }

    /// A first copy of all shards. The second time, each has little to send, and less changes meanwhile.
    async fn copy_twice(
        &self,
        outgoing: &Outgoing,
        reports: &mut UnboundedReceiver<Report>,
        sharing: &Sharing,
    ) -> Result<(), String> {
        let begun = tokio::time::Instant::now();
        self.copy(outgoing, reports, COPIED_WITHIN, true).await?;
        self.mark(sharing).await;
        self.copy(outgoing, reports, COPIED_WITHIN.saturating_sub(begun.elapsed()), false).await?;
        info!(copied_us = begun.elapsed().as_micros() as u64, "all shards have sent a first copy");
        Ok(())
    }

    /// Each shard sends what has changed since it was sent, while it runs. `one_by_one`: only one at a time, so
    /// that serving clients has room beside it.
    async fn copy(
        &self,
        outgoing: &Outgoing,
        reports: &mut UnboundedReceiver<Report>,
        within: Duration,
        one_by_one: bool,
    ) -> Result<(), String> {
        let begun = tokio::time::Instant::now();
        let shards: Vec<ShardId> = self.control_mail.shards().collect();
        let at_once = if one_by_one { 1 } else { shards.len() };
        for some in shards.chunks(at_once) {
            let actions = some.iter().map(|shard| (*shard, HandoverAction::Copy)).collect();
            self.order_some(outgoing, actions);
            let left = within.saturating_sub(begun.elapsed());
            let copied = self.collect_from(outgoing, reports, some, left, |news| match news {
                News::Copied(copied) => Some(copied),
                _ => None,
            });
            for (shard, copied) in some.iter().zip(copied.await?) {
                copied.map_err(|why| format!("shard {}: {why}", shard.0))?;
            }
        }
        Ok(())
    }

    /// All shards settle and send their state.
    async fn freeze(
        &self,
        outgoing: &Outgoing,
        sharing: &mut Sharing,
        (channel, reports): (&mut Async, &mut UnboundedReceiver<Report>),
    ) -> Result<Frozen, String> {
        self.brokers.hold_control().await;
        self.settle(outgoing, reports).await?;
        self.share_channels(outgoing, sharing, (channel, reports)).await?;
        if self.brokers.keep_channels() {
            self.fence(outgoing, sharing).await;
            self.introduce_others(channel).await?;
        }
        if !self.brokers.is_empty() {
            self.until_settled(outgoing, reports).await?;
        }
        // In the same moment: a question in the mailbox of a shard would keep it from being written.
        self.control_mail.hold_questions(true);
        let (mut outcomes, mut actions) = (Vec::new(), Vec::new());
        for _ in self.control_mail.shards() {
            let (sender, receiver) = mpsc::channel();
            outcomes.push(sender);
            actions.push(HandoverAction::Freeze(receiver));
        }
        self.order(outgoing, actions);
        let sent = self.collect(outgoing, reports, SENT_WITHIN, |news| match news {
            News::Sent(sent) => Some(sent),
            _ => None,
        });
        let mut shards = Vec::new();
        for (shard, sent) in self.control_mail.shards().zip(sent.await?) {
            let counts: ShardCounts = sent.map_err(|why| format!("shard {}: {why}", shard.0))?;
            info!(
                shard = shard.0,
                connections = counts.connections,
                bytes = counts.bytes,
                "shard has sent its state"
            );
            shards.push(counts);
        }
        let internal = outgoing.internal_listeners.len() as u32;
        let challenges = outgoing.challenges.is_some();
        Ok(Frozen { outcomes, counts: Counts { shards, internal, challenges } })
    }

    /// Waits until nothing is under way, in any shard or between two of them.
    async fn settle(
        &self,
        outgoing: &Outgoing,
        reports: &mut UnboundedReceiver<Report>,
    ) -> Result<(), String> {
        self.order(outgoing, self.control_mail.shards().map(|_| HandoverAction::Settle).collect());
        let settles = self.collect(outgoing, reports, ANSWER_WITHIN, |news| match news {
            News::Settles(settles) => Some(settles),
            _ => None,
        });
        settles.await?.into_iter().collect::<Result<Vec<()>, _>>()?;
        points::pass("old-settling");
        self.until_settled(outgoing, reports).await
    }

    /// Probes the shards until nothing is under way.
    async fn until_settled(
        &self,
        outgoing: &Outgoing,
        reports: &mut UnboundedReceiver<Report>,
    ) -> Result<(), String> {
        let begun = tokio::time::Instant::now();
        let mut before: Option<Vec<u64>> = None;
        loop {
            self.order(
                outgoing,
                self.control_mail.shards().map(|_| HandoverAction::Probe).collect(),
            );
            let probed = self.collect(outgoing, reports, ANSWER_WITHIN, |news| match news {
                News::Probed { left, mail } => Some((left, mail)),
                _ => None,
            });
            let (mut left, mut mail) = (Vec::new(), Vec::new());
            for (of_shard, opened) in probed.await? {
                left.extend(of_shard);
                mail.push(opened);
            }
            let elapsed = begun.elapsed();
            // Requests at the internal port that take longer than calls are lost with this process.
            let inside = outgoing.gate.inside();
            if inside > 0 && elapsed < Duration::from_millis(CALLS_MS) {
                left.push(("requests at the internal port", inside));
            }
            if !self.control_mail.is_quiet() {
                left.push(("questions of the control thread", self.control_mail.unanswered()));
            }
            left.extend(self.brokers_unsettled());
            if left.is_empty() {
                // Mail is first in, first out: a shard that has opened the second probe and nothing else since
                // the first had none on its way to it, and has sent none.
                let probe_only = |(before, now): (&u64, &u64)| *now == *before + 1;
                if before.is_some_and(|before| before.iter().zip(&mail).all(probe_only)) {
                    info!(settled_us = elapsed.as_micros() as u64, "all shards have settled");
                    return Ok(());
                }
                before = Some(mail);
                continue;
            }
            if elapsed >= SETTLED_WITHIN {
                return Err(format!("shards don't settle: {left:?}"));
            }
            before = None;
            tokio::time::sleep(PROBE_AGAIN).await;
        }
    }

    /// The last messages. Behind an Ok the other process runs, or has ended with all connections.
    async fn decide(
        &self,
        outgoing: &Outgoing,
        channel: &mut Async,
        frozen: &Frozen,
        settled_since: u64,
    ) -> Result<(), String> {
        let text = |fault: Fault| fault.to_string();
        let listeners = outgoing.internal_listeners.iter().map(AsFd::as_fd);
        let challenges = outgoing.challenges.iter().map(AsFd::as_fd);
        let listeners = listeners.chain(challenges).chain([outgoing.listener.as_fd()]);
        let listeners: Vec<BorrowedFd<'_>> = listeners.collect();
        let counts = &frozen.counts;
        channel.send(&Message::Frozen(counts.clone()), &listeners).await.map_err(text)?;
        match channel.receive(READY_WITHIN).await.map_err(text)? {
            Message::Ready(ready) if ready == *counts => {}
            Message::Ready(ready) => return Err(format!("{ready:?} in place of {counts:?}")),
            Message::Failed(why) => return Err(format!("the new process: {why}")),
            other => return Err(format!("unexpected message {}", other.name())),
        }
        points::pass("old-ready");
        let takeovers = outgoing.figures.takeovers.load(Ordering::Relaxed) + 1;
        // The point of no return. No shard runs: each waits for an outcome that is sent behind this, and a
        // message that could not be sent has not been read.
        channel.send(&Message::Go(Go { settled_since, takeovers }), &[]).await.map_err(text)?;
        points::pass("old-go");
        if let Ok(pid) = check_peer(channel.socket()) {
            self.manager.main_process(pid);
        }
        Ok(())
    }

    /// Orders a step of each shard.
    pub(super) fn order(&self, outgoing: &Outgoing, actions: Vec<HandoverAction>) {
        self.order_some(outgoing, self.control_mail.shards().zip(actions).collect());
    }

    /// Orders steps of some shards.
    fn order_some(&self, outgoing: &Outgoing, actions: Vec<(ShardId, HandoverAction)>) {
        let attempt = outgoing.attempt.get();
        let steps = actions.into_iter().map(|(shard, action)| {
            (shard, Mail::Handover(Box::new(HandoverStep { attempt, action })))
        });
        self.control_mail.post_all(steps);
    }

    /// One report of each shard.
    pub(super) async fn collect<T>(
        &self,
        outgoing: &Outgoing,
        reports: &mut UnboundedReceiver<Report>,
        within: Duration,
        pick: impl Fn(News) -> Option<T>,
    ) -> Result<Vec<T>, String> {
        let shards: Vec<ShardId> = self.control_mail.shards().collect();
        self.collect_from(outgoing, reports, &shards, within, pick).await
    }

    /// One report of each of these shards.
    async fn collect_from<T>(
        &self,
        outgoing: &Outgoing,
        reports: &mut UnboundedReceiver<Report>,
        shards: &[ShardId],
        within: Duration,
        pick: impl Fn(News) -> Option<T>,
    ) -> Result<Vec<T>, String> {
        let mut found: Vec<Option<T>> = shards.iter().map(|_| None).collect();
        let collecting = async {
            while found.iter().any(Option::is_none) {
                let Some(Report { shard, attempt, news }) = reports.recv().await else { return };
                let place = shards.iter().position(|of| *of == shard);
                if attempt == outgoing.attempt.get()
                    && let Some(place) = place.and_then(|place| found.get_mut(place))
                {
                    *place = pick(news);
                }
            }
        };
        let in_time = tokio::time::timeout(within, collecting).await.is_ok();
        let found: Option<Vec<T>> = found.into_iter().collect();
        found.filter(|_| in_time).ok_or_else(|| "a shard doesn't answer in time".to_owned())
    }

    /// All shards go on, and so do requests.
    async fn go_on(&self, outgoing: &Outgoing) {
        self.order(outgoing, self.control_mail.shards().map(|_| HandoverAction::GoOn).collect());
        outgoing.gate.open();
        self.control_mail.hold_questions(false);
        self.resume_brokers().await;
    }

    /// The last work of a process that has handed over.
    pub(in crate::node) async fn end_behind_handover(&self) {
        tokio::time::sleep(LAST_ANSWERS).await;
    }
}

/// Ends the other process, which holds copies of connections that go on here.
async fn abort(channel: &mut Async, why: String) {
    let _ = channel.send(&Message::Abort(why), &[]).await;
    // It has no more to say than why it ends.
    while let Ok(Message::Failed(_)) = channel.receive(END_WITHIN).await {}
    let ended = matches!(channel.receive(END_WITHIN).await, Err(Fault::Closed));
    let Ok(pid) = check_peer(channel.socket()) else { return };
    if ended || pid == rustix::process::getpid().as_raw_nonzero().get() {
        return;
    }
    let process = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    if let Some(Ok(process)) = process {
        warn!(pid, "the process that has failed to take over doesn't end: it is killed");
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
}
