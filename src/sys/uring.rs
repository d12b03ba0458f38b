//! An io_uring as a safe type: batches of sends and receives that end within one call, and
//! accepting that goes on by itself.
//!
//! Nothing of a batch outlives the call that runs it: [`Batch::run`] comes back when the kernel has
//! answered every operation, so buffers are plain borrows. On a socket that doesn't block each
//! operation ends as it is submitted, whatever its answer is, so that the wait costs nothing.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// Operations submitted at once. Between submissions the kernel holds one request for each.
const SUBMIT_MAX: u32 = 256;

/// Completions for which the kernel has room; beyond it the kernel keeps them in a list of its own.
const COMPLETIONS: u32 = 4 * SUBMIT_MAX;

// The kind of an operation, in the upper half of its user data; its number is the lower half.
const OF_BATCH: u64 = 1 << 32;
const OF_ACCEPT: u64 = 2 << 32;
const OF_CANCEL: u64 = 3 << 32;
const KIND: u64 = !(u32::MAX as u64);

/// One ring, for the thread that made it.
pub struct Ring {
    ring: IoUring,
    /// The operations of the batch that is being made.
    operations: Vec<Operation>,
    /// The parts of its sends that have several.
    parts: Vec<libc::iovec>,
    messages: Vec<libc::msghdr>,
    accepted: VecDeque<Accepted>,
}

/// An operation of a batch. Its pointers are valid while the batch is borrowed from.
struct Operation {
    fd: RawFd,
    what: What,
}

enum What {
    Send { bytes: *const u8, len: usize },
    SendParts { from: usize, count: usize },
    Recv { bytes: *mut u8, len: usize },
}

/// The outcome of an accept.
#[derive(Debug)]
pub struct Accepted {
    /// The number that [`Ring::accept`] was given.
    pub listener: u32,
    /// The connection: close-on-exec, not blocking.
    pub result: io::Result<OwnedFd>,
    /// More may come. Without it the listener has to be given to [`Ring::accept`] again.
    pub more: bool,
}

impl Ring {
    /// A ring for the calling thread, and no other.
    ///
    /// # Errors
    /// ENOSYS or EPERM where the kernel, a seccomp filter or `kernel.io_uring_disabled` doesn't allow
    /// it, EINVAL before Linux 6.0.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            // Only this thread submits. What comes about meanwhile is completed when the thread next
            // enters the kernel, without an interrupt; a wait elsewhere (epoll) is woken for it, which
            // deferring to the ring's own wait would rule out.
            .setup_single_issuer()
            .setup_coop_taskrun()
            // One operation that can't be is no reason to leave out the ones behind it.
            .setup_submit_all()
            .build(SUBMIT_MAX)?;
        Ok(Self {
            ring,
            operations: Vec::new(),
            parts: Vec::new(),
            messages: Vec::new(),
            accepted: VecDeque::new(),
        })
    }

    /// Which of the operations used here the kernel lacks.
    pub fn missing(&self) -> io::Result<Option<&'static str>> {
        let mut probe = io_uring::register::Probe::new();
        self.ring.submitter().register_probe(&mut probe)?;
        let needed = [
            (opcode::Send::CODE, "IORING_OP_SEND"),
            (opcode::SendMsg::CODE, "IORING_OP_SENDMSG"),
            (opcode::Recv::CODE, "IORING_OP_RECV"),
            (opcode::Accept::CODE, "IORING_OP_ACCEPT"),
            (opcode::AsyncCancel::CODE, "IORING_OP_ASYNC_CANCEL"),
        ];
        Ok(needed.into_iter().find(|(code, _)| !probe.is_supported(*code)).map(|(_, name)| name))
    }

    /// A batch with nothing in it.
    pub fn batch<'a>(&mut self) -> Batch<'_, 'a> {
        self.operations.clear();
        self.parts.clear();
        Batch { ring: self, borrowed: PhantomData }
    }

    /// Accepts connections from now on, as they come, until [`Accepted::more`] is false. They are
    /// taken by [`Self::take_accepted`].
    pub fn accept(&mut self, listener: impl AsFd, number: u32) {
        let entry = opcode::AcceptMulti::new(types::Fd(listener.as_fd().as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
            .build()
            .user_data(OF_ACCEPT | u64::from(number));
        // SAFETY: the entry points at nothing; the kernel takes its own reference to the file.
        unsafe { self.push(&entry) };
        self.enter(0);
        self.reap(&mut []);
    }

    /// Accepts no more from this listener: what was accepted before is there to be taken.
    pub fn stop_accepting(&mut self, number: u32) {
        let entry = opcode::AsyncCancel::new(OF_ACCEPT | u64::from(number))
            .build()
            .user_data(OF_CANCEL | u64::from(number));
        // SAFETY: the entry points at nothing.
        unsafe { self.push(&entry) };
        // The answer of the one that is cancelled comes before the cancellation's own, or with it.
        while !self.reap(&mut []).cancelled {
            self.enter(1);
        }
        self.poll();
    }

    /// Takes a connection that was accepted, or learns that accepting has ended.
    pub fn take_accepted(&mut self) -> Option<Accepted> {
        self.accepted.pop_front()
    }

    /// Something is there for [`Self::take_accepted`].
    pub fn has_accepted(&self) -> bool {
        !self.accepted.is_empty()
    }

    /// Finishes what has come about meanwhile. Doesn't wait.
    pub fn poll(&mut self) {
        const GET_EVENTS: u32 = 1;
        // SAFETY: nothing is submitted, and there is no argument that is pointed at.
        let polled =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, GET_EVENTS, None) };
        self.entered(polled);
        self.reap(&mut []);
    }

    /// # Safety
    /// The memory that the entry points at lives until its completion was seen.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: as above.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enter(0);
        }
    }

    /// Submits what was pushed, and waits for so many completions.
    fn enter(&mut self, want: usize) {
        let entered = self.ring.submit_and_wait(want);
        self.entered(entered);
    }

    fn entered(&self, entered: io::Result<usize>) {
        let Err(fault) = entered else { return };
        match fault.raw_os_error() {
            // A full completion queue (EBUSY) has room when its reader has reaped, which all callers
            // do next; short of memory (EAGAIN) the same is tried again.
            Some(libc::EINTR | libc::EBUSY) => {}
            Some(libc::EAGAIN) => std::thread::yield_now(),
            // Only a broken ring gives anything else: the thread could never go on.
            _ => panic!("io_uring_enter: {fault}"),
        }
    }

    /// Takes what is completed. Answers of a batch go into `results`.
    fn reap(&mut self, results: &mut [i32]) -> Reaped {
        let mut reaped = Reaped { of_batch: 0, cancelled: false };
        for completion in self.ring.completion() {
            let number = completion.user_data() as u32;
            match completion.user_data() & KIND {
                OF_BATCH => {
                    results[number as usize] = completion.result();
                    reaped.of_batch += 1;
                }
                OF_ACCEPT => self.accepted.push_back(Accepted {
                    listener: number,
                    result: match completion.result() {
                        // SAFETY: the kernel has just made this descriptor, in the table of this
                        // thread, and tells of it once: nobody else owns it.
                        fd @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
                        errno => Err(io::Error::from_raw_os_error(-errno)),
                    },
                    more: cqueue::more(completion.flags()),
                }),
                OF_CANCEL => reaped.cancelled = true,
                kind => unreachable!("a completion of kind {kind:#x}"),
            }
        }
        reaped
    }
}

impl AsFd for Ring {
    /// Readable when [`Ring::poll`] has something to finish.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the ring is, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

struct Reaped {
    of_batch: usize,
    cancelled: bool,
}

/// Operations that are run together. Sockets have to be non-blocking, else a full one would hold up
/// the thread.
pub struct Batch<'r, 'a> {
    ring: &'r mut Ring,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Batch<'_, 'a> {
    /// Sends `parts`, one behind the other, as much as the socket takes.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'a>,
        mut parts: impl ExactSizeIterator<Item = &'a [u8]>,
    ) {
        let what = if parts.len() == 1
            && let Some(part) = parts.next()
        {
            What::Send { bytes: part.as_ptr(), len: part.len() }
        } else {
            let from = self.ring.parts.len();
            self.ring.parts.extend(parts.map(|part| libc::iovec {
                // `sendmsg` only reads.
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            }));
            What::SendParts { from, count: self.ring.parts.len() - from }
        };
        self.ring.operations.push(Operation { fd: socket.as_raw_fd(), what });
    }

    /// Receives into `buffer` what is there.
    pub fn recv(&mut self, socket: BorrowedFd<'a>, buffer: &'a mut [u8]) {
        let what = What::Recv { bytes: buffer.as_mut_ptr(), len: buffer.len() };
        self.ring.operations.push(Operation { fd: socket.as_raw_fd(), what });
    }

    /// Runs them all. The answer of each, in order: bytes, or an errno with its sign turned.
    pub fn run(self, results: &mut Vec<i32>) {
        let Self { ring, .. } = self;
        let operations = std::mem::take(&mut ring.operations);
        ring.messages.clear();
        ring.messages.reserve(operations.len());
        results.clear();
        results.resize(operations.len(), 0);
        let mut at = 0;
        for operations in operations.chunks(SUBMIT_MAX as usize) {
            for operation in operations {
                let entry = ring.entry(operation).user_data(OF_BATCH | at);
                // SAFETY: what the operation points at is borrowed for 'a, which outlives this call;
                // parts and messages are the ring's and don't change before it is over. And it isn't
                // over before the completion of every operation was seen.
                unsafe { ring.push(&entry) };
                at += 1;
            }
            let mut left = operations.len();
            while left > 0 {
                ring.enter(left);
                left -= ring.reap(results).of_batch;
            }
        }
        ring.operations = operations;
    }
}

impl Ring {
    fn entry(&mut self, operation: &Operation) -> squeue::Entry {
        const SEND: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // No message and no buffer of a batch is as long as 4 GiB: the rest would be a short send.
        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let fd = types::Fd(operation.fd);
        match operation.what {
            What::Send { bytes, len } => {
                opcode::Send::new(fd, bytes, length(len)).flags(SEND).build()
            }
            What::SendParts { from, count } => {
                // SAFETY: a message header without anything in it is a valid one, whose fields are
                // numbers and null pointers. Some of them are private padding on some targets.
                let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
                message.msg_iov = self.parts[from..from + count].as_mut_ptr();
                message.msg_iovlen = count;
                // There is room, so that none of them moves.
                debug_assert!(self.messages.len() < self.messages.capacity());
                self.messages.push(message);
                let message: *const libc::msghdr =
                    &raw const self.messages[self.messages.len() - 1];
                opcode::SendMsg::new(fd, message).flags(SEND as u32).build()
            }
            What::Recv { bytes, len } => {
                opcode::Recv::new(fd, bytes, length(len)).flags(libc::MSG_DONTWAIT).build()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    /// A ring, where this machine has one.
    fn ring() -> Option<Ring> {
        Ring::new().inspect_err(|why| eprintln!("skipped: {why}")).ok()
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
    }

    #[test]
    fn a_batch_larger_than_both_queues_is_answered_in_order() {
        let Some(mut ring) = ring() else { return };
        let (sender, receiver) = pair();
        let count = COMPLETIONS as usize * 2 + 7;
        let mut results = Vec::new();
        let bytes = [b'x'; 3];
        let mut batch = ring.batch();
        for at in 0..count {
            batch.send(sender.as_fd(), std::iter::once(&bytes[..at % 3 + 1]));
        }
        batch.run(&mut results);
        let taken = results.iter().take_while(|result| **result > 0).count();
        assert!(taken > SUBMIT_MAX as usize, "the socket takes more than one submission: {taken}");
        for (at, result) in results.iter().enumerate() {
            assert!(*result == (at % 3 + 1) as i32 || *result == -libc::EAGAIN, "{at}: {result}");
        }
        let mut buffers = vec![[0u8; 2]; count];
        let mut batch = ring.batch();
        for buffer in &mut buffers {
            batch.recv(receiver.as_fd(), buffer);
        }
        let sent: i32 = results.iter().filter(|result| **result > 0).sum();
        batch.run(&mut results);
        let received: i32 = results.iter().filter(|result| **result > 0).sum();
        assert_eq!(received, sent.min(2 * count as i32));
    }

    #[test]
    fn parts_go_out_one_behind_the_other() {
        let Some(mut ring) = ring() else { return };
        let (sender, receiver) = pair();
        let mut results = Vec::new();
        let mut batch = ring.batch();
        batch.send(sender.as_fd(), [&b"ab"[..], b"", b"cde"].into_iter());
        batch.send(sender.as_fd(), [&b"f"[..]].into_iter());
        batch.run(&mut results);
        assert_eq!(results, [5, 1]);
        let mut buffer = [0; 9];
        let mut batch = ring.batch();
        batch.recv(receiver.as_fd(), &mut buffer);
        batch.run(&mut results);
        assert_eq!((results[0], &buffer[..6]), (6, &b"abcdef"[..]));
        drop(sender);
        let mut batch = ring.batch();
        batch.recv(receiver.as_fd(), &mut buffer);
        batch.run(&mut results);
        assert_eq!(results, [0]);
    }

    #[test]
    fn a_batch_that_is_thrown_away_does_nothing() {
        let Some(mut ring) = ring() else { return };
        let (sender, receiver) = pair();
        ring.batch().send(sender.as_fd(), std::iter::once(&b"lost"[..]));
        let mut results = Vec::new();
        let mut buffer = [0; 9];
        let mut batch = ring.batch();
        batch.recv(receiver.as_fd(), &mut buffer);
        batch.run(&mut results);
        assert_eq!(results, [-libc::EAGAIN]);
    }

    #[test]
    fn accepting_goes_on_until_it_is_stopped() {
        let Some(mut ring) = ring() else { return };
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        ring.accept(&listener, 7);
        assert!(!ring.has_accepted());
        let clients: Vec<_> =
            (0..3).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        ring.poll();
        for _ in &clients {
            let accepted = ring.take_accepted().unwrap();
            assert!(accepted.listener == 7 && accepted.more && accepted.result.is_ok());
        }
        ring.stop_accepting(7);
        let last = ring.take_accepted().unwrap();
        let errno = last.result.unwrap_err().raw_os_error();
        assert!(!last.more && errno == Some(libc::ECANCELED), "{errno:?}");
        let _later = std::net::TcpStream::connect(address).unwrap();
        ring.poll();
        assert!(!ring.has_accepted());
    }
}
