//! Descriptors that go from one process to another, beside bytes (`SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Descriptors in one message at most (`SCM_MAX_FD`).
pub const DESCRIPTORS_MAX: usize = 253;

/// Sends bytes, and descriptors of which the receiver gets copies of its own. Returns how many bytes have
/// left; the descriptors go with the first.
///
/// # Errors
/// That of the kernel: `WouldBlock` where there is no room, also for more descriptors on their way than
/// the process may have open (ETOOMANYREFS).
pub fn send(
    into: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match rustix::net::sendmsg(into, &[IoSlice::new(bytes)], &mut control, flags) {
        Ok(sent) => Ok(sent),
        Err(Errno::TOOMANYREFS | Errno::NOBUFS) => Err(io::ErrorKind::WouldBlock.into()),
        Err(fault) => Err(fault.into()),
    }
}

/// Receives bytes, and the descriptors that come beside them. Returns the number of bytes, 0 at the end of
/// the stream.
///
/// # Errors
/// That of the kernel, or descriptors are missing: this table had no room for them.
pub fn receive(
    from: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(from, &mut data, &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    // The kernel closes what finds no room, and says so in this way only.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("descriptors are missing: too few are free here"));
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    #[test]
    fn as_many_descriptors_as_the_kernel_passes_go_in_one_message() {
        let kind = SocketType::SEQPACKET;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let passed = vec![one.as_fd(); DESCRIPTORS_MAX];
        assert_eq!(send(one.as_fd(), b"abc", &passed).unwrap(), 3);
        assert_eq!(send(one.as_fd(), b"d", &[]).unwrap(), 1);
        let (mut bytes, mut descriptors) = ([0; 10], Vec::new());
        assert_eq!(receive(other.as_fd(), &mut bytes, &mut descriptors).unwrap(), 3);
        assert_eq!((&bytes[..3], descriptors.len()), (&b"abc"[..], DESCRIPTORS_MAX));
        assert_eq!(receive(other.as_fd(), &mut bytes, &mut descriptors).unwrap(), 1);
        assert_eq!(descriptors.len(), DESCRIPTORS_MAX);
        let fault = receive(other.as_fd(), &mut bytes, &mut descriptors).unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::WouldBlock);
        let more = vec![one.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(send(one.as_fd(), b"abc", &more).is_err());
        drop((one, descriptors));
        assert_eq!(receive(other.as_fd(), &mut bytes, &mut Vec::new()).unwrap(), 0);
    }
}
