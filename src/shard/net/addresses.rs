//! Who a connection's client is, and what its address may have.
//!
//! ```text
//!  accepted --(a peer that isn't trusted, or nothing is forwarded)--> the peer's address
//!      |--(proxy_protocol, a trusted peer)--> PROXY header --> the address that it names
//!      '--(client_address_header, the last of them is trusted)--> request head --> its nearest stranger
//! ```
//! A connection that a client made itself costs nothing: its address is asked of the kernel when
//! somebody wants it. What the kernel doesn't know, and what a limit has to know after a reset, is
//! remembered by slot.

use std::net::IpAddr;
use std::num::NonZeroU32;

use crate::base::address::Peer;
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::notices::Reason;
use crate::edge::address_limits::Counted;
use crate::io::Driver;
use crate::proto::http::{self, Refusal, forwarded_hops};
use crate::proto::proxy_header;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::known::Known;
use crate::shard::net::record::Rx;
use crate::shard::notices::{Fields, reason_of_refusal};

/// A connection that is to get a slot.
pub(crate) enum Arrival {
    /// Nothing is to be remembered.
    Plain,
    /// It begins with a PROXY header.
    Unannounced,
    /// It counts for its peer.
    Known(Peer, bool),
}

impl<D: Driver> Net<D> {
    /// Whether a connection has to begin with a PROXY header, and didn't yet.
    pub(crate) fn awaits_proxy_header(&self, index: u32) -> bool {
        self.addresses.awaits_header(index)
    }

    /// The address of a connection's client. `None`: it has none (a Unix socket), or the connection was
    /// reset or closed.
    pub(crate) fn client_address(&self, index: u32) -> Option<IpAddr> {
        let known = self.addresses.known.get(&index);
        if let Some(client) = known.and_then(|known| known.client.or(known.peer)) {
            return client.ip();
        }
        let socket = self.conns.get(index as usize)?.socket.as_ref()?;
        self.driver.peer(socket)?.ip()
    }
}

impl<D: Driver> Net<D> {
    /// The subject of the certificate that a connection's client has shown, which may be empty.
    pub(crate) fn client_name(&self, index: u32) -> Option<&str> {
        let key = self.conns.get(index as usize).map(|conn| conn.key(index));
        self.driver.client_name(key?)
    }

    /// Whether the address of a new connection lets it come. What is counted for it is taken over by
    /// [`Self::arrived`], or given back by [`Self::turned_back`].
    pub(crate) fn arrival(&mut self, cx: &Cx, socket: &D::Socket) -> Result<Arrival, Refusal> {
        let node = &cx.node;
        let sources = &node.options.addresses;
        if !sources.proxy_protocol && !node.addresses.is_on() {
            return Ok(Arrival::Plain);
        }
        // One that was reset already has no address any more, and ends with the first read.
        let Some(peer) = self.driver.peer(socket) else { return Ok(Arrival::Plain) };
        if sources.forwards_for(peer) {
            return Ok(match sources.proxy_protocol {
                true => Arrival::Unannounced,
                false => Arrival::Plain,
            });
        }
        match node.addresses.is_on() {
            true => Ok(Arrival::Known(peer, self.count_connection(cx, peer)?)),
            false => Ok(Arrival::Plain),
        }
    }

    /// The connection has a slot.
    pub(crate) fn arrived(&mut self, index: u32, arrival: Arrival) {
        match arrival {
            Arrival::Plain => {}
            Arrival::Unannounced => {
                self.addresses.unannounced.insert(index, ());
                let key = self.conns.get(index as usize).map(|conn| conn.key(index));
                key.into_iter().for_each(|key| self.driver.expect_proxy_header(key, &[]));
            }
            Arrival::Known(peer, is_counted) => {
                let (peer, client) = (Some(peer), Some(peer));
                let known = Known { peer, client, is_counted, unfinished: 0 };
                self.addresses.known.insert(index, known);
            }
        }
    }

    /// The connection got no slot.
    pub(crate) fn turned_back(&mut self, cx: &Cx, arrival: Arrival) {
        if let Arrival::Known(Peer::Ip(address), true) = arrival {
            cx.node.addresses.connection_ended(address);
        }
    }

    /// One more connection of a client: whether it was counted.
    fn count_connection(&self, cx: &Cx, client: Peer) -> Result<bool, Refusal> {
        let Peer::Ip(address) = client else { return Ok(false) };
        let limits = &cx.node.addresses;
        let began = limits.connection_began(address);
        if began == Counted::TooMuch {
            return Err(Refusal::AddressConnections);
        }
        let is_counted = began == Counted::Yes;
        let in_rate = limits.is_in_rate(address, cx.now);
        if in_rate == Counted::TooMuch {
            if is_counted {
                limits.connection_ended(address);
            }
            return Err(Refusal::AddressRate);
        }
        if [began, in_rate].contains(&Counted::NoRoom) {
            cx.counters().addresses_uncounted.inc();
        }
        Ok(is_counted)
    }

    /// A connection that has no slot is answered, as far as the socket takes it, and closed: whoever comes
    /// too often must not hold slots by it.
    pub(crate) fn turn_away(&mut self, cx: &Cx, socket: D::Socket, refusal: Refusal) {
        self.count_refusal(cx, refusal);
        let address = self.driver.peer(&socket).and_then(Peer::ip);
        let fields = Fields { address, code: refusal.status().into(), ..Fields::default() };
        cx.node.notices.notice(cx.now, reason_of_refusal(refusal), &fields);
        let mut answer = Vec::new();
        http::put_refusal(&mut answer, refusal, "", self.date(cx), false);
        let nobody = ConnKey { index: u32::MAX, generation: NonZeroU32::MAX };
        self.driver.send(nobody, &socket, std::iter::once(&SharedFrame::new(&answer)), 0);
        self.driver.finish(nobody, &socket);
        self.driver.close(nobody, socket, false);
    }

    /// Bytes of a connection that begins with a PROXY header.
    pub(crate) fn proxy_header(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        key: ConnKey,
        bytes: &[u8],
    ) {
        let Some(conn) = self.conn(key) else { return };
        let mut raw = conn.rx.take().map_or_else(Vec::new, |rx| rx.raw);
        raw.extend_from_slice(bytes);
        let header = match proxy_header::parse(&raw) {
            Ok(Some(header)) => header,
            Ok(None) => {
                conn.rx = Some(Box::new(Rx { raw, ..Rx::default() }));
                return;
            }
            Err(_) => {
                cx.counters().proxy_headers_refused.inc();
                let why = format_args!("no PROXY header at the beginning, or a malformed one");
                self.log_refusal(cx, key.index, Reason::HttpProxyHeader, 0, why);
                return self.release(cx, post, key.index, true);
            }
        };
        cx.counters().proxy_headers.inc();
        self.addresses.unannounced.remove(&key.index);
        if let Some(client) = header.client.map(Peer::of) {
            let known =
                Known { peer: Some(client), client: None, is_counted: false, unfinished: 0 };
            self.addresses.known.insert(key.index, known);
            let sources = &cx.node.options.addresses;
            let names_another = sources.header.is_some() && sources.trusted.trusts(client);
            if !names_another && let Err(refusal) = self.set_client(cx, key.index, client) {
                return self.refuse(cx, post, key.index, refusal);
            }
        }
        let rest = &raw[header.bytes..];
        if !rest.is_empty() {
            self.head(cx, codec, post, key, rest);
        }
    }

    /// A whole request head: whoever a trusted peer names is the client from here on. Whether its address
    /// lets it come.
    pub(crate) fn learn_client(
        &mut self,
        cx: &Cx,
        index: u32,
        head: &http::Head<'_>,
    ) -> Result<(), Refusal> {
        let node = &cx.node;
        let sources = &node.options.addresses;
        let Some(header) = sources.header else { return Ok(()) };
        let known = self.addresses.known.get(&index).and_then(|known| known.peer);
        let peer = known.or_else(|| {
            let socket = self.conns.get(index as usize)?.socket.as_ref()?;
            self.driver.peer(socket)
        });
        let Some(peer) = peer.filter(|peer| sources.trusted.trusts(*peer)) else { return Ok(()) };
        let client = sources.trusted.client(peer, forwarded_hops(head, header));
        self.forget_client_address(cx, index);
        match client == peer {
            true => Ok(()),
            false => self.set_client(cx, index, client),
        }
    }

    /// From here on a connection is this client's. A trusted one has no limits.
    fn set_client(&mut self, cx: &Cx, index: u32, client: Peer) -> Result<(), Refusal> {
        let is_limited =
            cx.node.addresses.is_on() && !cx.node.options.addresses.trusted.trusts(client);
        let counted = if is_limited { self.count_connection(cx, client) } else { Ok(false) };
        let known = self.addresses.known.entry(index).or_insert(Known {
            peer: None,
            client: None,
            is_counted: false,
            unfinished: 0,
        });
        known.client = Some(client);
        known.is_counted = counted.as_ref().is_ok_and(|is_counted| *is_counted);
        counted.map(drop)
    }

    /// A request that a proxy sent for a client is answered: the connection is the proxy's again.
    pub(crate) fn request_of_client_done(&mut self, cx: &Cx, index: u32) {
        if cx.node.options.addresses.header.is_none() || self.addresses.known.is_empty() {
            return;
        }
        let known = self.addresses.known.get(&index);
        if known.is_some_and(|known| known.client != known.peer) {
            self.forget_client_address(cx, index);
        }
    }

    /// What a request head has said about the client holds no longer.
    fn forget_client_address(&mut self, cx: &Cx, index: u32) {
        let peer = self.addresses.known.get(&index).and_then(|known| known.peer);
        self.forget_address(cx, index);
        if peer.is_some() {
            let known = Known { peer, client: None, is_counted: false, unfinished: 0 };
            self.addresses.known.insert(index, known);
        }
    }

    /// A connection is gone.
    pub(crate) fn forget_address(&mut self, cx: &Cx, index: u32) {
        if !self.addresses.unannounced.is_empty() {
            self.addresses.unannounced.remove(&index);
        }
        if self.addresses.known.is_empty() {
            return;
        }
        let Some(known) = self.addresses.known.remove(&index) else { return };
        let Some(Peer::Ip(address)) = known.client else { return };
        if known.is_counted {
            cx.node.addresses.connection_ended(address);
        }
        if known.unfinished > 0 {
            cx.node.addresses.bytes_finished(address, known.unfinished);
        }
    }

    /// So many bytes of a connection's request are here, and it isn't whole; 0: it is, or it ends. Whether
    /// its client's address may have them.
    pub(crate) fn hold_unfinished(&mut self, cx: &Cx, index: u32, bytes: usize) -> bool {
        if !cx.node.addresses.limits_unfinished() {
            return true;
        }
        let Some(known) = self.addresses.known.get_mut(&index) else { return true };
        let Some(Peer::Ip(address)) = known.client else { return true };
        if cx.node.options.addresses.forwards_for(Peer::Ip(address)) {
            return true;
        }
        let bytes = bytes as u64;
        if bytes <= known.unfinished {
            let less = known.unfinished - bytes;
            known.unfinished = bytes;
            if less > 0 {
                cx.node.addresses.bytes_finished(address, less);
            }
            return true;
        }
        match cx.node.addresses.bytes_began(address, bytes - known.unfinished) {
            Counted::Yes => known.unfinished = bytes,
            Counted::NoRoom | Counted::Off => cx.counters().addresses_uncounted.inc(),
            Counted::TooMuch => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::address_limits::AddressLimits;
    use crate::edge::address_limits::AddressOptions;

    #[test]
    fn threads_that_count_at_the_same_time_lose_nothing() {
        let options = AddressOptions { connections: 3, ..AddressOptions::default() };
        let limits = AddressLimits::new(options, 7, 1000);
        std::thread::scope(|scope| {
            for seed in 0..4u32 {
                let limits = &limits;
                scope.spawn(move || {
                    for round in 0..20_000u32 {
                        let address = IpAddr::from([10, 0, 0, ((round * 7 + seed) % 5) as u8]);
                        if limits.connection_began(address) == Counted::Yes {
                            limits.connection_ended(address);
                        }
                    }
                });
            }
        });
        assert_eq!(limits.counted(), (0, 0));
    }
}
