//! The threads of shards in a takeover: one sends its state to its counterpart ([`super::sending`]) and waits for
//! the outcome, the other makes a shard of it and waits until it may run.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use tokio::sync::mpsc::UnboundedSender;

use super::sending::{Sending, send};
use super::{monotonic_ns, points};
use crate::base::id::ShardId;
use crate::base::image::{Broken, Frames, ImageReader};
use crate::base::time::Millis;
use crate::handover::ShardCounts;
use crate::handover::link::{LinkMessage, MESSAGE_BYTES_MAX};
use crate::io::{Driver, descriptors};
use crate::node::{Beginning, MakeDriver, Ready, StartFault};
use crate::shard::freeze::Thawing;
use crate::shard::mail::{HandoverAction, HandoverStep, Outcome};
use crate::shard::{ChannelNames, Seat, Secured, Shard};
use crate::sys;

/// The part of the control thread's news that comes from a shard.
#[derive(Debug)]
pub(in crate::node) struct Report {
    /// The shard.
    pub(super) shard: ShardId,
    /// The attempt to hand over that it belongs to; 0: the shard takes over.
    pub(super) attempt: u32,
    /// What has happened.
    pub(super) news: News,
}

/// What has happened at a shard.
#[derive(Debug)]
pub(super) enum News {
    /// What there was is sent and taken, and the shard runs on; or not.
    Copied(Result<(), String>),
    /// It settles, or can't.
    Settles(Result<(), &'static str>),
    /// The channels at a broker that the other process doesn't know yet.
    Channels(ChannelNames),
    /// What has not settled, and how much mail was opened so far.
    Probed { left: Vec<(&'static str, usize)>, mail: u64 },
    /// It has sent its state, or goes on.
    Sent(Result<ShardCounts, String>),
    /// It was made of the state of its counterpart, or can't be.
    Thawed(Result<ShardCounts, String>),
    /// It runs, since this moment of the machine's monotonic clock.
    Runs(u64),
}

/// How a shard's thread of a new process comes by its state.
pub(in crate::node) struct Arrival {
    /// Its end of the link, by the number in the process's table.
    pub(super) link: RawFd,
    /// Numbers in that table that no shard needs.
    pub(super) unneeded: Arc<Vec<RawFd>>,
    /// It may run. A sender that is gone: it never may.
    pub(super) release: Receiver<()>,
}

impl Arrival {
    /// Takes the thread's own copy of the link, once the thread has its table; the other copies there are closed.
    pub(in crate::node) fn take_link(&self, tables_apart: bool) -> std::io::Result<OwnedFd> {
        let link = sys::tables::copy_of(self.link)?;
        if tables_apart {
            sys::tables::close_copies(&self.unneeded);
        }
        Ok(link)
    }
}

/// Runs a shard until it stops, or until another process has its connections.
pub(in crate::node) fn run<D: Driver<Socket = OwnedFd>>(
    mut shard: Shard<D>,
    id: ShardId,
    reports: &UnboundedSender<Report>,
) {
    let mut sending: Option<Sending> = None;
    loop {
        let until = shard.wait_until();
        let until = match &sending {
            Some(sending) => sending.wait_until(until, shard.handing_over().now()),
            None => until,
        };
        if !shard.turn_after(until) {
            return;
        }
        if let Some(of) = &mut sending
            && let Some(copied) = of.turn(&mut shard)
        {
            let attempt = of.attempt();
            // A link that has failed is closed: the other process notices.
            sending = sending.filter(|_| copied.is_ok());
            let _ = reports.send(Report { shard: id, attempt, news: News::Copied(copied) });
        }
        while let Some(step) = shard.handing_over().take_step() {
            if carry_out(&mut shard, id, reports, &mut sending, step).is_break() {
                return;
            }
        }
    }
}

/// Carries out a step of a handover. Break: the shard has ended here.
fn carry_out<D: Driver<Socket = OwnedFd>>(
    shard: &mut Shard<D>,
    id: ShardId,
    reports: &UnboundedSender<Report>,
    sending: &mut Option<Sending>,
    HandoverStep { attempt, action }: HandoverStep,
) -> ControlFlow<()> {
    let report = |news| {
        // Without its receiver the process ends.
        let _ = reports.send(Report { shard: id, attempt, news });
    };
    match action {
        HandoverAction::Copy => match Sending::begin(shard, sending.take(), attempt) {
            Ok(begun) => *sending = Some(begun),
            Err(why) => report(News::Copied(Err(why))),
        },
        HandoverAction::Settle => report(News::Settles(shard.settle())),
        HandoverAction::Probe => {
            let (left, mail) = (shard.unsettled(), shard.handing_over().mail_opened());
            report(News::Probed { left, mail });
        }
        HandoverAction::Channels => {
            report(News::Channels(shard.handing_over().channel_names()));
        }
        HandoverAction::Fence(key) => shard.handing_over().fence(key),
        HandoverAction::Freeze(outcome) => {
            let sent = match sending.take() {
                Some(sending) => sending.send_rest(shard),
                None => Err("nothing was sent before".to_owned()),
            };
            report(News::Sent(sent));
            if outcome.recv() == Ok(Outcome::Gone) {
                // Nothing of the shard runs any more. Its copies of the sockets are closed now: as long as they
                // are open, a connection whose process ends stays. The other process goes first.
                let _ = rustix::process::setpriority_process(None, 19);
                return ControlFlow::Break(());
            }
            shard.go_on();
        }
        HandoverAction::GoOn => {
            *sending = None;
            shard.go_on();
        }
    }
    ControlFlow::Continue(())
}

/// The thread of a shard that another process hands over: says on `ready` when it has its descriptor table, and
/// then waits for its state.
pub(in crate::node) fn inherit_shard<D: Driver<Socket = OwnedFd>>(
    seat: Seat,
    beginning: Beginning,
    arrival: Arrival,
    make: MakeDriver<D>,
    ready: Ready,
) {
    let (id, reports) = (seat.shard, beginning.reports.clone());
    let link = beginning.settle_thread(id).and_then(|()| {
        let link = arrival.take_link(beginning.tables_apart);
        link.map_err(|source| StartFault::System { what: "a link to another process", source })
    });
    let link = match link {
        Ok(link) => link,
        Err(fault) => {
            let _ = ready.send(Err(fault));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    // Who waits for all shards waits until there are no more senders.
    drop(ready);
    let (shard, thawed) = match thaw(seat, beginning, &link, make) {
        Ok((shard, counts)) => (Some(shard), Ok(counts)),
        Err(why) => (None, Err(why)),
    };
    drop(link);
    let _ = reports.send(Report { shard: id, attempt: 0, news: News::Thawed(thawed) });
    if let Some(shard) = shard {
        run_released(shard, id, &arrival.release, &reports);
    }
}

/// Waits until the shard may run, and runs it.
fn run_released<D: Driver<Socket = OwnedFd>>(
    shard: Shard<D>,
    id: ShardId,
    release: &Receiver<()>,
    reports: &UnboundedSender<Report>,
) {
    if release.recv().is_err() {
        // The running node goes on with these connections.
        std::mem::forget(shard);
        return;
    }
    let _ = reports.send(Report { shard: id, attempt: 0, news: News::Runs(monotonic_ns()) });
    run(shard, id, reports);
}

/// Makes a shard of the state that comes on a link.
///
/// # Errors
/// The state is none of this shard, or not whole; or the driver can't be made.
fn thaw<D: Driver<Socket = OwnedFd>>(
    seat: Seat,
    beginning: Beginning,
    link: &OwnedFd,
    make: MakeDriver<D>,
) -> Result<(Shard<Secured<D>>, ShardCounts), String> {
    let (message, listeners) = receive(link)?;
    let LinkMessage::Listeners { moment, .. } = message else { return Err(unexpected(&message)) };
    points::pass("listeners");
    let preferred = beginning.prefer_cpu(&listeners);
    preferred.map_err(|fault| format!("SO_INCOMING_CPU: {fault}"))?;
    let shown = beginning.show(seat.shard, &listeners);
    shown.map_err(|fault| format!("a copy of a listener: {fault}"))?;
    let Beginning { node, switchboard, started, .. } = beginning;
    let driver = make(seat.shard, switchboard, listeners, started);
    let driver = driver.map_err(|fault| format!("the driver: {fault}"))?;
    let driver = Secured::new(driver, &node, seat.shard);
    let passed_ms = monotonic_ns().saturating_sub(moment) / 1_000_000;
    let moment = Millis(driver.now().0.saturating_sub(passed_ms));
    let mut arriving = Arriving {
        thawing: Thawing::new(node, seat, driver, sys::memory::collect),
        moment,
        frames: Frames::default(),
        buffer: Vec::new(),
        bytes: 0,
    };
    loop {
        let (message, passed) = receive(link)?;
        if let LinkMessage::End { bytes, connections } = message {
            points::pass("image");
            if bytes != arriving.bytes {
                return Err(format!("{} of {bytes} bytes have come", arriving.bytes));
            }
            let shard = arriving.thawing.end().map_err(broken)?;
            return Ok((shard, ShardCounts { connections, bytes }));
        }
        arriving.take(link, message, passed)?;
    }
}

fn broken(fault: Broken) -> String {
    format!("the image of the shard: {fault}")
}

/// A shard whose state comes.
struct Arriving<D: Driver> {
    thawing: Thawing<D>,
    /// The moment from which times are distances, by the clock of this process.
    moment: Millis,
    frames: Frames,
    /// Room for a part.
    buffer: Vec<u8>,
    /// Bytes of the parts so far.
    bytes: u64,
}

impl<D: Driver<Socket = OwnedFd>> Arriving<D> {
    /// Takes a message that is neither the first nor the last.
    fn take(
        &mut self,
        link: &OwnedFd,
        message: LinkMessage,
        mut passed: Vec<OwnedFd>,
    ) -> Result<(), String> {
        match message {
            LinkMessage::Gone(keys) => keys.into_iter().for_each(|key| self.thawing.gone(key)),
            LinkMessage::Sockets(keys) => {
                for (key, socket) in keys.into_iter().zip(passed) {
                    self.thawing.socket(key, socket).map_err(broken)?;
                }
            }
            LinkMessage::Part(bytes) => {
                points::pass("part");
                self.read(passed.pop(), bytes)
                    .map_err(|fault| format!("the file of an image: {fault}"))?;
                let from = ImageReader::new(&self.buffer, self.moment).map_err(broken)?;
                let mut from = from.with_frames(std::mem::take(&mut self.frames));
                self.thawing.part(&mut from).map_err(broken)?;
                self.frames = from.into_frames();
                self.bytes += bytes;
                if self.buffer.len() > BUFFER_KEPT {
                    self.buffer = Vec::new();
                }
            }
            LinkMessage::Copied => {
                points::pass("copied");
                self.thawing.drain_driver();
                send(link, &LinkMessage::CaughtUp, &[])?;
            }
            LinkMessage::Listeners { .. } | LinkMessage::CaughtUp | LinkMessage::End { .. } => {
                return Err(unexpected(&message));
            }
        }
        Ok(())
    }

    /// Reads a file that another process has written: no more than is in it.
    fn read(&mut self, file: Option<OwnedFd>, bytes: u64) -> std::io::Result<()> {
        let file = File::from(file.ok_or(ErrorKind::NotFound)?);
        let length = file.metadata()?.len();
        if length != bytes {
            let why = format!("it has {length} bytes in place of {bytes}");
            return Err(std::io::Error::other(why));
        }
        let length = usize::try_from(bytes).map_err(std::io::Error::other)?;
        self.buffer.clear();
        self.buffer.reserve_exact(length);
        self.buffer.resize(length, 0);
        file.read_exact_at(&mut self.buffer, 0)
    }
}

/// Room for a part that stays until the next one comes.
const BUFFER_KEPT: usize = 1 << 20;

/// The next message of a link, with its descriptors.
fn receive(link: &OwnedFd) -> Result<(LinkMessage, Vec<OwnedFd>), String> {
    let (mut bytes, mut passed) = ([0; MESSAGE_BYTES_MAX], Vec::new());
    let count = loop {
        match descriptors::receive(link.as_fd(), &mut bytes, &mut passed) {
            Ok(count) => break count,
            Err(fault) if fault.kind() == ErrorKind::Interrupted => {}
            Err(fault) => return Err(format!("the link to the running node: {fault}")),
        }
    };
    let message = bytes.get(..count).and_then(LinkMessage::from_bytes);
    match message {
        _ if count == 0 => Err("the running node has closed the link".to_owned()),
        Some(message) if message.descriptors() == passed.len() => Ok((message, passed)),
        Some(_) => Err("a message of the link lacks descriptors".to_owned()),
        None => Err("a message of the link can't be read".to_owned()),
    }
}

fn unexpected(message: &LinkMessage) -> String {
    match message {
        LinkMessage::Listeners { .. } => "listeners came twice".to_owned(),
        _ => "a message of the link comes where it can't".to_owned(),
    }
}
