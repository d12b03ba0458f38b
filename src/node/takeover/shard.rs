//! The threads of shards in a takeover: one sends its state to its counterpart and waits for the outcome, the
//! other makes a shard of it and waits until it may run.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::mpsc::UnboundedSender;

use super::{monotonic_ns, points};
use crate::base::id::{ConnKey, ShardId};
use crate::base::image::ImageReader;
use crate::handover::ShardCounts;
use crate::handover::link::{DESCRIPTORS_MAX, LinkMessage, MESSAGE_BYTES_MAX};
use crate::io::{Driver, descriptors};
use crate::node::{Beginning, MakeDriver, Ready, StartFault};
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
    while shard.turn() {
        while let Some(HandoverStep { attempt, action }) = shard.handing_over().take_step() {
            let report = |news| {
                // Without its receiver the process ends.
                let _ = reports.send(Report { shard: id, attempt, news });
            };
            match action {
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
                    report(News::Sent(send_state(&mut shard)));
                    if outcome.recv() == Ok(Outcome::Gone) {
                        // Nothing of the shard runs any more. Its copies of the sockets are closed now: as long
                        // as they are open, a connection that the other process closes doesn't end.
                        return;
                    }
                    shard.go_on();
                }
                HandoverAction::GoOn => shard.go_on(),
            }
        }
    }
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

/// Sends listeners, sockets and image to the shard of the other process.
fn send_state<D: Driver<Socket = OwnedFd>>(shard: &mut Shard<D>) -> Result<ShardCounts, String> {
    let mut shard = shard.handing_over();
    let link = shard.take_link().ok_or("there is no way to the other process")?;
    let image = shard.image().map_err(|left| format!("the shard has not settled: {left:?}"))?;
    points::pass("send");
    let listeners: Vec<BorrowedFd<'_>> = shard.listeners().into_iter().map(AsFd::as_fd).collect();
    let count = u8::try_from(listeners.len()).map_err(|_| "too many listeners")?;
    send(&link, &LinkMessage::Listeners(count), &listeners)?;
    let (mut keys, mut sockets) = (Vec::new(), Vec::new());
    let mut connections = 0;
    let mut send_sockets = |keys: &mut Vec<ConnKey>, sockets: &mut Vec<BorrowedFd<'_>>| {
        connections += keys.len() as u64;
        let message = LinkMessage::Sockets(std::mem::take(keys));
        let sent = send(&link, &message, sockets);
        sockets.clear();
        sent
    };
    for (key, socket) in shard.sockets() {
        keys.push(key);
        sockets.push(socket.as_fd());
        if keys.len() == DESCRIPTORS_MAX {
            send_sockets(&mut keys, &mut sockets)?;
        }
    }
    if !keys.is_empty() {
        send_sockets(&mut keys, &mut sockets)?;
    }
    points::pass("sockets");
    let failed = |fault| format!("the file for an image: {fault}");
    let file = memfd_create("roost-shard", MemfdFlags::CLOEXEC).map_err(|f| failed(f.into()))?;
    let mut file = File::from(file);
    file.write_all(&image).map_err(failed)?;
    let bytes = image.len() as u64;
    send(&link, &LinkMessage::Image { bytes, connections }, &[file.as_fd()])?;
    Ok(ShardCounts { connections, bytes })
}

/// Sends a message; an error when the other process takes nothing for too long.
fn send(link: &OwnedFd, message: &LinkMessage, with: &[BorrowedFd<'_>]) -> Result<(), String> {
    let bytes = message.to_bytes();
    for _ in 0..STALLS_MAX {
        match descriptors::send(link.as_fd(), &bytes, with) {
            Ok(_) => return Ok(()),
            Err(fault) if fault.kind() == ErrorKind::Interrupted => {}
            Err(fault) if fault.kind() == ErrorKind::WouldBlock => stall(link),
            Err(fault) => return Err(format!("the link to the other process: {fault}")),
        }
    }
    Err("the other process takes nothing".to_owned())
}

/// Waits until there may be room.
fn stall(link: &OwnedFd) {
    let timeout = Timespec { tv_sec: 0, tv_nsec: STALL_NS };
    let mut polled = [PollFd::new(link, PollFlags::OUT)];
    if poll(&mut polled, Some(&timeout)).is_ok_and(|ready| ready > 0) {
        // There is room for bytes, but too many descriptors are on their way: no event reports their end.
        let _ = poll(&mut [], Some(&timeout));
    }
}

/// A wait for room, nanoseconds, and the number of waits without any.
const STALL_NS: i64 = 2_000_000;
const STALLS_MAX: usize = 500;

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
    let LinkMessage::Listeners(_) = message else { return Err(unexpected(&message)) };
    points::pass("listeners");
    let shown = beginning.show(seat.shard, &listeners);
    shown.map_err(|fault| format!("a copy of a listener: {fault}"))?;
    let Beginning { node, switchboard, started, .. } = beginning;
    let driver = make(seat.shard, switchboard, listeners, started);
    let driver = driver.map_err(|fault| format!("the driver: {fault}"))?;
    let mut sockets: Vec<(ConnKey, OwnedFd)> = Vec::new();
    let (file, bytes, connections) = loop {
        match receive(link)? {
            (LinkMessage::Sockets(keys), passed) => sockets.extend(keys.into_iter().zip(passed)),
            (LinkMessage::Image { bytes, connections }, mut passed) => {
                break (passed.pop(), bytes, connections);
            }
            (message @ LinkMessage::Listeners(_), _) => return Err(unexpected(&message)),
        }
    };
    points::pass("image");
    if sockets.len() as u64 != connections {
        return Err(format!("{} of {connections} sockets have come", sockets.len()));
    }
    let image = read(file, bytes).map_err(|fault| format!("the file of an image: {fault}"))?;
    let driver = Secured::new(driver, &node, seat.shard);
    let broken = |fault| format!("the image of the shard: {fault}");
    let mut from = ImageReader::new(&image, driver.now()).map_err(broken)?;
    let shard = Shard::thaw(node, seat, driver, sys::memory::collect, &mut from, sockets);
    Ok((shard.map_err(broken)?, ShardCounts { connections, bytes }))
}

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
        LinkMessage::Listeners(_) => "listeners came twice".to_owned(),
        _ => "the link doesn't begin with listeners".to_owned(),
    }
}

/// The bytes of a file that another process has written: no more than are in it.
fn read(file: Option<OwnedFd>, bytes: u64) -> std::io::Result<Vec<u8>> {
    let file = File::from(file.ok_or(ErrorKind::NotFound)?);
    let length = file.metadata()?.len();
    if length != bytes {
        return Err(std::io::Error::other(format!("it has {length} bytes in place of {bytes}")));
    }
    let mut image = vec![0; usize::try_from(bytes).map_err(std::io::Error::other)?];
    file.read_exact_at(&mut image, 0)?;
    Ok(image)
}
