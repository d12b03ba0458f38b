//! The sending end of a shard: slices between its turns, while it runs, and what has changed meanwhile once it has
//! settled.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};

use super::{monotonic_ns, points};
use crate::base::time::Millis;
use crate::handover::ShardCounts;
use crate::handover::link::{DESCRIPTORS_MAX, LinkMessage, MESSAGE_BYTES_MAX};
use crate::io::{Driver, descriptors};
use crate::shard::Shard;
use crate::shard::handover::{Slice, SliceMax};

/// A slice between two turns: short beside what a client notices.
const RUNNING_MAX: SliceMax = SliceMax { entries: 512, sockets: DESCRIPTORS_MAX, bytes: 64 * 1024 };

/// A slice while the shard is frozen.
const FROZEN_MAX: SliceMax =
    SliceMax { entries: usize::MAX, sockets: DESCRIPTORS_MAX, bytes: 512 * 1024 };

/// A link that takes nothing is tried again so soon.
const AGAIN_MS: u64 = 1;

/// So long the other process may take nothing while this shard serves its clients: nobody waits for it, and on a
/// machine that is full a thread may have to wait for seconds. In the freeze, [`STALLS_MAX`] is the bound.
const STALLED_NS_MAX: u64 = 5_000_000_000;

/// How far a round has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Slices go.
    Sends,
    /// All have gone, and the other process has not taken all.
    Awaited,
    /// It has.
    Done,
}

/// A shard that is sent.
pub(super) struct Sending {
    link: OwnedFd,
    attempt: u32,
    /// Messages that wait for room, with the files that go along.
    waiting: VecDeque<(LinkMessage, Option<File>)>,
    round: Round,
    /// Since when the other process has taken nothing, by the machine's monotonic clock.
    stalled_since: Option<u64>,
    /// Bytes of parts so far.
    bytes: u64,
}

impl Sending {
    /// Begins a round: the first one, or one with what has changed since the last.
    pub(super) fn begin<D: Driver<Socket = OwnedFd>>(
        shard: &mut Shard<D>,
        before: Option<Self>,
        attempt: u32,
    ) -> Result<Self, String> {
        let mut shard = shard.handing_over();
        if let Some(before) = before.filter(|before| before.attempt == attempt) {
            shard.begin_again();
            return Ok(Self { round: Round::Sends, ..before });
        }
        let link = shard.take_link().ok_or("there is no way to the other process")?;
        points::pass("send");
        // The moment of the turn behind which this is.
        let moment = monotonic_ns();
        shard.begin_copy();
        let listeners: Vec<BorrowedFd<'_>> =
            shard.listeners().into_iter().map(AsFd::as_fd).collect();
        let count = u8::try_from(listeners.len()).map_err(|_| "too many listeners")?;
        send(&link, &LinkMessage::Listeners { count, moment }, &listeners)?;
        Ok(Self {
            link,
            attempt,
            waiting: VecDeque::new(),
            round: Round::Sends,
            stalled_since: None,
            bytes: 0,
        })
    }

    /// The attempt to hand over that it belongs to.
    pub(super) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When the shard's next turn ends its wait.
    pub(super) fn wait_until(&self, until: Option<Millis>, now: Millis) -> Option<Millis> {
        let mine = match (self.round, self.stalled_since) {
            (Round::Done, _) => return until,
            (_, None) => now,
            (_, Some(_)) => now.after(AGAIN_MS),
        };
        Some(until.map_or(mine, |until| until.min(mine)))
    }

    /// Goes on behind a turn of the shard. The outcome of the round, once.
    pub(super) fn turn<D: Driver<Socket = OwnedFd>>(
        &mut self,
        shard: &mut Shard<D>,
    ) -> Option<Result<(), String>> {
        let before = self.round;
        let went_on = self.go_on(shard);
        match went_on {
            Err(why) => Some(Err(why)),
            Ok(()) if before != Round::Done && self.round == Round::Done => Some(Ok(())),
            Ok(()) => None,
        }
    }

    fn go_on<D: Driver<Socket = OwnedFd>>(&mut self, shard: &mut Shard<D>) -> Result<(), String> {
        if !self.flush(shard)? {
            return self.stall();
        }
        match self.round {
            Round::Done => {}
            Round::Sends => {
                match shard.handing_over().next_slice(RUNNING_MAX) {
                    Some(slice) => self.put(slice)?,
                    None => {
                        self.waiting.push_back((LinkMessage::Copied, None));
                        self.round = Round::Awaited;
                    }
                }
                if !self.flush(shard)? {
                    return self.stall();
                }
            }
            Round::Awaited => match self.answer()? {
                true => {
                    points::pass("old-copied");
                    self.round = Round::Done;
                }
                false => return self.stall(),
            },
        }
        self.stalled_since = None;
        Ok(())
    }

    /// The other process takes nothing at the moment.
    fn stall(&mut self) -> Result<(), String> {
        let now = monotonic_ns();
        let since = *self.stalled_since.get_or_insert(now);
        match now.saturating_sub(since) < STALLED_NS_MAX {
            true => Ok(()),
            false => Err("the other process takes nothing".to_owned()),
        }
    }

    /// Whether the other process has taken everything.
    fn answer(&self) -> Result<bool, String> {
        let mut polled = [PollFd::new(&self.link, PollFlags::IN)];
        let ready = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if !ready.is_ok_and(|ready| ready > 0) {
            return Ok(false);
        }
        let (mut bytes, mut passed) = ([0; MESSAGE_BYTES_MAX], Vec::new());
        match descriptors::receive(self.link.as_fd(), &mut bytes, &mut passed) {
            Ok(0) => Err("the other process has closed the link".to_owned()),
            Ok(count) => match bytes.get(..count).and_then(LinkMessage::from_bytes) {
                Some(LinkMessage::CaughtUp) => Ok(true),
                _ => Err("the other process sends what it can't".to_owned()),
            },
            Err(fault) if fault.kind() == ErrorKind::Interrupted => Ok(false),
            Err(fault) => Err(format!("the link to the other process: {fault}")),
        }
    }

    /// Puts the messages of a slice behind those that wait.
    fn put(&mut self, Slice { gone, sockets, part }: Slice) -> Result<(), String> {
        for keys in gone.chunks(DESCRIPTORS_MAX) {
            self.waiting.push_back((LinkMessage::Gone(keys.to_vec()), None));
        }
        if !sockets.is_empty() {
            self.waiting.push_back((LinkMessage::Sockets(sockets), None));
        }
        if !part.is_empty() {
            let failed = |fault| format!("the file for an image: {fault}");
            let file = memfd_create("roost-shard", MemfdFlags::CLOEXEC);
            let mut file = File::from(file.map_err(|fault| failed(fault.into()))?);
            file.write_all(&part).map_err(failed)?;
            self.bytes += part.len() as u64;
            self.waiting.push_back((LinkMessage::Part(part.len() as u64), Some(file)));
        }
        Ok(())
    }

    /// Sends what waits. False: there is no room for all of it.
    fn flush<D: Driver<Socket = OwnedFd>>(&mut self, shard: &mut Shard<D>) -> Result<bool, String> {
        let shard = shard.handing_over();
        while let Some((message, file)) = self.waiting.front_mut() {
            let mut with: Vec<BorrowedFd<'_>> = file.iter().map(AsFd::as_fd).collect();
            if let LinkMessage::Sockets(keys) = message {
                // Some may have ended since; what has taken their slots comes later.
                keys.retain(|key| shard.socket(*key).is_some());
                with.extend(keys.iter().filter_map(|key| shard.socket(*key)).map(AsFd::as_fd));
            }
            if !try_send(&self.link, message, &with)? {
                return Ok(false);
            }
            self.waiting.pop_front();
        }
        Ok(true)
    }

    /// Sends all that has changed, of a shard that has settled, and the end.
    pub(super) fn send_rest<D: Driver<Socket = OwnedFd>>(
        mut self,
        shard: &mut Shard<D>,
    ) -> Result<ShardCounts, String> {
        let begun = shard.handing_over().begin_last();
        begun.map_err(|left| format!("the shard has not settled: {left:?}"))?;
        points::pass("sockets");
        while let Some(slice) = shard.handing_over().next_slice(FROZEN_MAX) {
            self.put(slice)?;
            self.flush_all(shard)?;
        }
        let connections = shard.handing_over().connections() as u64;
        let bytes = self.bytes;
        self.waiting.push_back((LinkMessage::End { bytes, connections }, None));
        self.flush_all(shard)?;
        Ok(ShardCounts { connections, bytes })
    }

    /// Sends all that waits; an error when the other process takes nothing for too long.
    fn flush_all<D: Driver<Socket = OwnedFd>>(
        &mut self,
        shard: &mut Shard<D>,
    ) -> Result<(), String> {
        for _ in 0..STALLS_MAX {
            let before = self.waiting.len();
            if self.flush(shard)? {
                return Ok(());
            }
            if self.waiting.len() == before {
                stall(&self.link);
            }
        }
        Err("the other process takes nothing".to_owned())
    }
}

/// Sends a message, if there is room.
fn try_send(
    link: &OwnedFd,
    message: &LinkMessage,
    with: &[BorrowedFd<'_>],
) -> Result<bool, String> {
    let bytes = message.to_bytes();
    loop {
        match descriptors::send(link.as_fd(), &bytes, with) {
            Ok(_) => return Ok(true),
            Err(fault) if fault.kind() == ErrorKind::Interrupted => {}
            Err(fault) if fault.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(fault) => return Err(format!("the link to the other process: {fault}")),
        }
    }
}

/// Sends a message; an error when the other process takes nothing for too long.
pub(super) fn send(
    link: &OwnedFd,
    message: &LinkMessage,
    with: &[BorrowedFd<'_>],
) -> Result<(), String> {
    for _ in 0..STALLS_MAX {
        if try_send(link, message, with)? {
            return Ok(());
        }
        stall(link);
    }
    Err("the other process takes nothing".to_owned())
}

/// Waits until there may be room.
fn stall(link: &OwnedFd) {
    let timeout = Timespec { tv_sec: 0, tv_nsec: STALL_NS };
    let mut polled = [PollFd::new(link, PollFlags::OUT)];
    if poll(&mut polled, Some(&timeout)).is_ok_and(|ready| ready > 0) {
        // There is room for bytes, but too many descriptors are on their way: no event reports their end.
        let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: STALL_NS / 4 }));
    }
}

/// A wait for room, nanoseconds, and the number of waits without any.
const STALL_NS: i64 = 2_000_000;
const STALLS_MAX: usize = 500;
