//! Log lines about the connections of clients: with address, user and client id.

use std::fmt;

use tracing::Level;

use crate::base::notices::Reason;
use crate::io::Driver;
use crate::shard::clients::Clients;
use crate::shard::net::record::{Conn, Phase};
use crate::shard::notices::{Fields, write_line, write_ordinary};
use crate::shard::outlets::Outlets;

impl Clients {
    /// Writes a line about a connection, with its address, user and client id.
    ///
    /// Costs a few atomics where the line is left out: `why` isn't formatted then.
    pub(crate) fn notice<D: Driver>(
        &self,
        out: &Outlets<'_, D>,
        index: u32,
        reason: Reason,
        code: u32,
        channel: &str,
        why: fmt::Arguments<'_>,
    ) {
        if out.cx.node.notices.is_due(out.cx.now, reason) {
            self.with_fields_of(out, index, |fields| {
                write_line(reason, &Fields { channel, code, why: Some(why), ..*fields });
            });
        }
    }

    /// A client is connected: a line at level debug.
    pub(crate) fn notice_connected<D: Driver>(&self, out: &Outlets<'_, D>, index: u32) {
        if tracing::enabled!(Level::DEBUG) {
            self.with_fields_of(out, index, |fields| write_ordinary(fields, true));
        }
    }

    /// A client has gone by itself: a line at level debug.
    pub(crate) fn notice_gone<D: Driver>(&self, out: &Outlets<'_, D>, index: u32) {
        let is_client = |conn: &Conn<D::Socket>| conn.phase == Phase::Client;
        if tracing::enabled!(Level::DEBUG)
            && out.net.conns.get(index as usize).is_some_and(is_client)
        {
            self.with_fields_of(out, index, |fields| write_ordinary(fields, false));
        }
    }

    /// Calls `write` with what is known of a connection.
    fn with_fields_of<D: Driver>(
        &self,
        out: &Outlets<'_, D>,
        index: u32,
        write: impl FnOnce(&Fields<'_>),
    ) {
        let conn = out.net.conns.get(index as usize);
        let session = conn.and_then(|conn| self.sessions.get(conn.session as usize));
        // A client id exists from the connect on.
        let client = conn.filter(|_| session.is_some());
        let client = client.map(|conn| out.cx.client_id(conn.key(index)).text());
        let client = client.as_ref().map_or("", |client| client.as_str());
        let user = session.map_or("", |session| session.user.as_str());
        let address = out.net.client_address(index);
        write(&Fields { address, user, client, ..Fields::default() });
    }
}
