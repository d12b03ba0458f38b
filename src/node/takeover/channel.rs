//! Messages between the control threads of both processes, over a Unix socket.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::base::image::Broken;
use crate::handover::Message;
use crate::handover::framing::{Unframer, framed};
use crate::io::descriptors;

/// Bytes taken in one call.
const RECEIVE_BYTES: usize = 64 * 1024;

/// The reason why there is no message.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The other process has closed its end, or has ended.
    #[error("the other process has ended or closed the socket")]
    Closed,
    /// It sends nothing for too long.
    #[error("the other process doesn't answer in time")]
    Late,
    /// It sends something else.
    #[error("what the other process sends can't be read: {0}")]
    Broken(#[from] Broken),
    /// The kernel's.
    #[error("the takeover socket: {0}")]
    Io(#[from] io::Error),
}

/// Messages that have come in part, and descriptors beside them.
#[derive(Debug, Default)]
struct Inbox {
    unframer: Unframer,
    descriptors: Vec<OwnedFd>,
}

impl Inbox {
    /// The next message, as far as it is here or can be read without waiting.
    fn next(&mut self, from: BorrowedFd<'_>) -> Result<Option<Message>, Fault> {
        let mut bytes = [0; RECEIVE_BYTES];
        loop {
            if let Some(message) = self.unframer.next_message()? {
                return Ok(Some(message));
            }
            match descriptors::receive(from, &mut bytes, &mut self.descriptors) {
                Ok(0) => return Err(Fault::Closed),
                Ok(count) => self.unframer.push(&bytes[..count]),
                Err(fault) => match fault.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset => return Err(Fault::Closed),
                    _ => return Err(fault.into()),
                },
            }
        }
    }
}

/// Sends as much as there is room for; the descriptors go with the first bytes.
fn send_some(
    into: BorrowedFd<'_>,
    bytes: &mut &[u8],
    with: &mut &[BorrowedFd<'_>],
) -> Result<(), Fault> {
    while !bytes.is_empty() {
        match descriptors::send(into, bytes, with) {
            Ok(count) => {
                *bytes = bytes.get(count..).unwrap_or_default();
                *with = &[];
            }
            Err(fault) => match fault.kind() {
                ErrorKind::WouldBlock => return Ok(()),
                ErrorKind::Interrupted => {}
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => return Err(Fault::Closed),
                _ => return Err(fault.into()),
            },
        }
    }
    Ok(())
}

/// The process at the other end runs as the same user.
pub(super) fn check_peer(socket: BorrowedFd<'_>) -> Result<i32, String> {
    let peer = socket_peercred(socket).map_err(|fault| format!("SO_PEERCRED: {fault}"))?;
    match peer.uid == geteuid() {
        true => Ok(peer.pid.as_raw_nonzero().get()),
        false => Err(format!(
            "process {} runs as user {}, this one as {}",
            peer.pid.as_raw_nonzero(),
            peer.uid.as_raw(),
            geteuid().as_raw()
        )),
    }
}

/// The end of a process that has nothing else to do than to wait.
pub(super) struct Blocking {
    socket: OwnedFd,
    inbox: Inbox,
}

impl Blocking {
    /// Over a socket that doesn't block.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, inbox: Inbox::default() }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a message, and descriptors beside it.
    pub(super) fn send(&self, message: &Message, with: &[BorrowedFd<'_>]) -> Result<(), Fault> {
        let bytes = framed(message);
        let (mut bytes, mut with) = (&bytes[..], with);
        loop {
            send_some(self.socket.as_fd(), &mut bytes, &mut with)?;
            if bytes.is_empty() {
                return Ok(());
            }
            wait(self.socket.as_fd(), PollFlags::OUT, Some(SEND_WITHIN))?;
        }
    }

    /// The next message; without a bound it waits as long as the other process lives.
    #[expect(clippy::disallowed_methods, reason = "bounds the wait for another process")]
    pub(super) fn receive(&mut self, within: Option<Duration>) -> Result<Message, Fault> {
        let deadline = within.map(|within| Instant::now() + within);
        loop {
            if let Some(message) = self.inbox.next(self.socket.as_fd())? {
                return Ok(message);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            wait(self.socket.as_fd(), PollFlags::IN, left)?;
        }
    }

    /// The descriptors that came so far.
    pub(super) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.inbox.descriptors)
    }
}

/// The other process takes what is sent within this time.
const SEND_WITHIN: Duration = Duration::from_secs(2);

/// Waits until the socket is ready, at most so long.
fn wait(socket: BorrowedFd<'_>, until: PollFlags, within: Option<Duration>) -> Result<(), Fault> {
    let mut polled = [PollFd::from_borrowed_fd(socket, until)];
    let timeout = within.map(|within| Timespec {
        tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(within.subsec_nanos()),
    });
    match poll(&mut polled, timeout.as_ref()) {
        Ok(0) => Err(Fault::Late),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(fault) => Err(Fault::Io(fault.into())),
    }
}

/// The end of the control thread of a running node.
pub(super) struct Async {
    socket: UnixStream,
    inbox: Inbox,
}

impl Async {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, inbox: Inbox::default() }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a message, and descriptors beside it.
    pub(super) async fn send(
        &self,
        message: &Message,
        with: &[BorrowedFd<'_>],
    ) -> Result<(), Fault> {
        let bytes = framed(message);
        let (mut bytes, mut with) = (&bytes[..], with);
        let sending = async {
            loop {
                self.socket.writable().await?;
                let mut fault = None;
                let tried = self.socket.try_io(Interest::WRITABLE, || {
                    fault = send_some(self.socket(), &mut bytes, &mut with).err();
                    let is_done = fault.is_some() || bytes.is_empty();
                    if is_done { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
                });
                match fault {
                    Some(fault) => return Err(fault),
                    None if tried.is_ok() => return Ok(()),
                    None => {}
                }
            }
        };
        tokio::time::timeout(SEND_WITHIN, sending).await.unwrap_or(Err(Fault::Late))
    }

    /// The next message.
    pub(super) async fn receive(&mut self, within: Duration) -> Result<Message, Fault> {
        let Self { socket, inbox } = self;
        let receiving = async {
            loop {
                socket.readable().await?;
                let mut next = Ok(None);
                let _ = socket.try_io(Interest::READABLE, || {
                    next = inbox.next(socket.as_fd());
                    // This clears the readiness, so that it is awaited anew.
                    if matches!(next, Ok(None)) {
                        Err(ErrorKind::WouldBlock.into())
                    } else {
                        Ok(())
                    }
                });
                if let Some(message) = next? {
                    return Ok(message);
                }
            }
        };
        tokio::time::timeout(within, receiving).await.unwrap_or(Err(Fault::Late))
    }

    /// The descriptors that came so far.
    pub(super) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.inbox.descriptors)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;

    fn pair() -> (Blocking, StdStream) {
        let (one, other) = StdStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        (Blocking::new(one.into()), other)
    }

    #[test]
    fn messages_and_descriptors_come_over_a_socket() {
        let (mut one, other) = pair();
        other.set_nonblocking(true).unwrap();
        let mut other = Blocking::new(other.into());
        assert!(check_peer(one.socket()).is_ok_and(|pid| pid as u32 == std::process::id()));
        let passed = [one.socket(), one.socket()];
        one.send(&Message::Prepared, &passed).unwrap();
        one.send(&Message::Refused("no".into()), &[]).unwrap();
        assert_eq!(other.receive(None).unwrap(), Message::Prepared);
        assert_eq!(other.take_descriptors().len(), 2);
        assert_eq!(other.receive(None).unwrap(), Message::Refused("no".into()));
        let late = other.receive(Some(Duration::from_millis(1)));
        assert!(matches!(late, Err(Fault::Late)));
        drop(other);
        assert!(matches!(one.receive(None), Err(Fault::Closed)));
        assert!(matches!(one.send(&Message::Prepared, &[]), Err(Fault::Closed)));
    }

    #[test]
    fn bytes_that_are_no_message_are_a_fault() {
        use std::io::Write as _;
        let (mut one, mut other) = pair();
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(one.receive(None), Err(Fault::Broken(_))));
    }
}
