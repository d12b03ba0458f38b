//! Finds out before the shards start whether the addresses can be had, and listens for the control thread.

use std::fs;
use std::io::{Error, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::StartFault;
use crate::io::sockets::{self, Address};

/// Binds each address of TCP once without SO_REUSEPORT, so that a second node on the same port
/// gets an error instead of silently taking half of the first one's connections. Port 0 becomes a free port, the
/// same for all addresses. The file of a Unix socket at which nobody listens is removed.
pub(super) fn probe(addresses: &[Address]) -> Result<Vec<Address>, StartFault> {
    let mut bound = Vec::with_capacity(addresses.len());
    let mut held = Vec::with_capacity(addresses.len());
    let mut port = 0;
    for address in addresses {
        let fault = |source| StartFault::Listen { address: address.clone(), source };
        let mut address = match address {
            Address::Ip(address) => *address,
            Address::Unix(unix) => {
                remove_stale(&unix.path).map_err(fault)?;
                bound.push(address.clone());
                continue;
            }
        };
        if address.port() == 0 {
            address.set_port(port);
        }
        let socket = match try_bind(address) {
            Ok(socket) => socket,
            // A machine without IPv6 listens on what it has.
            Err(fault) if address.is_ipv6() && !bound.is_empty() && no_such_family(&fault) => {
                continue;
            }
            Err(source) => {
                return Err(StartFault::Listen { address: Address::Ip(address), source });
            }
        };
        if let Some(local) = socket.local_addr().ok().and_then(|local| local.as_socket()) {
            port = local.port();
            address.set_port(port);
        }
        bound.push(Address::Ip(address));
        held.push(socket);
    }
    Ok(bound)
}

/// Removes the file of a Unix socket that nobody listens at: a node that was killed leaves its own.
fn remove_stale(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => {
            return Err(Error::new(ErrorKind::AlreadyExists, "a file that is no socket is there"));
        }
        Err(fault) if fault.kind() == ErrorKind::NotFound => return Ok(()),
        Err(fault) => return Err(fault),
    }
    // A listener whose queue is full doesn't make it wait.
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(fault) if fault.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(fault) if fault.kind() == ErrorKind::PermissionDenied => Err(fault),
        Ok(()) | Err(_) => Err(Error::from(ErrorKind::AddrInUse)),
    }
}

/// The files of Unix sockets of this process: removed with it, unless others have taken their places.
#[derive(Default)]
pub(super) struct SocketFiles(Vec<(PathBuf, (u64, u64))>);

impl SocketFiles {
    /// The addresses that this process listens on.
    pub(super) fn add(&mut self, addresses: &[Address]) {
        let unix = addresses.iter().filter_map(|address| match address {
            Address::Unix(unix) => Some(&unix.path),
            Address::Ip(_) => None,
        });
        self.0.extend(unix.filter_map(|path| Some((path.clone(), identity(path)?))));
    }

    /// Another process has the sockets, and their files stay.
    pub(super) fn release(&mut self) {
        self.0.clear();
    }
}

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for (path, of) in &self.0 {
            if identity(path) == Some(*of) {
                // It may be gone, and nobody is there who could do anything about the rest.
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// A listener of the control thread.
pub(super) enum Listener {
    /// Of TCP.
    Tcp(TcpListener),
    /// Of a Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// One that another process has opened.
    pub(super) fn of(descriptor: OwnedFd, address: &Address) -> Self {
        match address {
            Address::Ip(_) => Self::Tcp(descriptor.into()),
            Address::Unix(_) => Self::Unix(descriptor.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Listens at these addresses, for the control thread, and says which they are. Port 0 becomes a free
/// port, the same for all.
pub(super) fn listen(addresses: &[Address]) -> Result<(Vec<Listener>, Vec<Address>), StartFault> {
    let addresses = probe(addresses)?;
    let listen = |address: &Address| {
        let listener = || match address {
            Address::Ip(address) => {
                let socket = try_bind(*address)?;
                socket.listen(INTERNAL_BACKLOG)?;
                socket.set_nonblocking(true)?;
                Ok(Listener::Tcp(socket.into()))
            }
            Address::Unix(unix) => {
                let listener = sockets::listen_unix(unix, INTERNAL_BACKLOG)?;
                Ok(Listener::Unix(listener.into()))
            }
        };
        listener().map_err(|source| StartFault::Listen { address: address.clone(), source })
    };
    let listeners = addresses.iter().map(listen).collect::<Result<_, _>>()?;
    Ok((listeners, addresses))
}

/// Connections that may wait at the internal port.
const INTERNAL_BACKLOG: i32 = 1024;

fn no_such_family(fault: &Error) -> bool {
    matches!(fault.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn try_bind(address: SocketAddr) -> std::io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // For connections of an earlier run that are still in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sockets::UnixAddress;

    #[test]
    fn a_taken_port_is_an_error_and_port_0_takes_a_free_one() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let taken = TcpListener::bind(any).unwrap();
        let fault = probe(&[Address::Ip(taken.local_addr().unwrap())]).unwrap_err();
        assert!(fault.to_string().starts_with("cannot listen on 127.0.0.1:"), "{fault}");
        let found = probe(&[Address::Ip(any)]).unwrap();
        assert_ne!(found[0].ip().unwrap().port(), 0);
    }

    #[test]
    fn a_unix_socket_is_taken_over_only_where_nobody_listens() {
        let path = std::env::temp_dir().join(format!("roost-listen-{}", std::process::id()));
        let address = Address::Unix(UnixAddress { path: path.clone(), mode: 0o600 });
        let addresses = [address];
        let (listeners, _) = listen(&addresses).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let fault = probe(&addresses).unwrap_err().to_string();
        assert!(fault.starts_with("cannot listen on unix:") && fault.contains("in use"), "{fault}");
        // A node that was killed.
        drop(listeners);
        assert!(path.exists());
        let (_listeners, _) = listen(&addresses).unwrap();
        let mut files = SocketFiles::default();
        files.add(&addresses);
        drop(files);
        assert!(!path.exists());
        // Somebody else's file.
        let mut files = SocketFiles::default();
        let (_listeners, _) = listen(&addresses).unwrap();
        files.add(&addresses);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(files);
        let fault = probe(&addresses).unwrap_err().to_string();
        assert!(fault.contains("no socket"), "{fault}");
        fs::remove_file(path).unwrap();
    }
}
