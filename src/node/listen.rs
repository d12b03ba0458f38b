//! Finds out before the shards start whether the addresses can be had.

use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use super::StartFault;

/// Binds each address once without SO_REUSEPORT, so that a second node on the same port is told
/// instead of silently taking half of the first one's connections. Port 0 becomes a free port, the
/// same for all addresses.
pub(super) fn probe(addresses: &[SocketAddr]) -> Result<Vec<SocketAddr>, StartFault> {
    let mut bound = Vec::with_capacity(addresses.len());
    let mut held = Vec::with_capacity(addresses.len());
    let mut port = 0;
    for address in addresses {
        let mut address = *address;
        if address.port() == 0 {
            address.set_port(port);
        }
        let socket = match try_bind(address) {
            Ok(socket) => socket,
            // A machine without IPv6 listens on what it has.
            Err(fault) if address.is_ipv6() && !bound.is_empty() && no_such_family(&fault) => {
                continue;
            }
            Err(source) => return Err(StartFault::Listen { address, source }),
        };
        if let Some(local) = socket.local_addr().ok().and_then(|local| local.as_socket()) {
            port = local.port();
            address.set_port(port);
        }
        bound.push(address);
        held.push(socket);
    }
    Ok(bound)
}

/// Listens at these addresses, for the control thread. Port 0 becomes a free port, the same for all.
pub(super) fn listen(addresses: &[SocketAddr]) -> Result<Vec<std::net::TcpListener>, StartFault> {
    let listen = |address: SocketAddr| {
        let listener = || {
            let socket = try_bind(address)?;
            socket.listen(INTERNAL_BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        };
        listener().map_err(|source| StartFault::Listen { address, source })
    };
    probe(addresses)?.into_iter().map(listen).collect()
}

/// Connections that may wait at the internal port.
const INTERNAL_BACKLOG: i32 = 1024;

fn no_such_family(fault: &std::io::Error) -> bool {
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
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_taken_port_is_told_and_a_free_one_found() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let taken = TcpListener::bind(any).unwrap();
        let fault = probe(&[taken.local_addr().unwrap()]).unwrap_err();
        assert!(fault.to_string().starts_with("cannot listen on 127.0.0.1:"), "{fault}");
        let found = probe(&[any]).unwrap();
        assert_ne!(found[0].port(), 0);
    }
}
