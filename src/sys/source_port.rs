//! A source address without a source port: the kernel picks the port when the socket connects.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets IP_BIND_ADDRESS_NO_PORT: a later `bind` to port 0 fixes the address only.
///
/// The port is then chosen at `connect`, unique for the whole of both addresses and ports, so that
/// one source address serves many destinations. Without it `bind` takes a port nobody else has.
/// Neither socket2 nor rustix has this option.
///
/// # Errors
/// The errors of `setsockopt(2)`; ENOPROTOOPT on kernels before 4.2.
pub fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is borrowed, so open, for the whole call; the pointer is to a live
    // `c_int` whose size is the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
