//! Log lines about the connections of clients: with address, user and client id.

use std::fmt;

use compact_str::CompactString;
use tracing::Level;

use crate::base::notices::Reason;
use crate::base::software::SoftwareId;
use crate::io::Driver;
use crate::shard::clients::Clients;
use crate::shard::clients::closes::{CLOSES_MAX, cut};
use crate::shard::mail::Close;
use crate::shard::net::record::Phase;
use crate::shard::net::timers::seconds_of;
use crate::shard::notices::{Fields, write_line, write_ordinary};
use crate::shard::outlets::Outlets;

impl Clients {
    /// Remembers that a connection ends.
    pub(crate) fn remember_close<D: Driver>(
        &mut self,
        out: &Outlets<'_, D>,
        index: u32,
        (code, by_client): (u16, bool),
        detail: &str,
    ) {
        if out.cx.node.rules.admin.is_none() {
            return;
        }
        let Some(conn) = out.net.at(index) else { return };
        let session = self.sessions.get(conn.session as usize);
        if session.is_some_and(|session| session.flags.hidden()) {
            return;
        }
        let ticks = out.cx.tick().saturating_sub(conn.since_tick);
        let close = Close {
            at: out.cx.unix.0,
            conn: conn.key(index),
            was_connected: session.is_some(),
            user: session.map_or_else(CompactString::default, |session| cut(&session.user)),
            address: out.net.client_address(index),
            transport: conn.form.transport(),
            software: session.map_or(SoftwareId::UNNAMED, |session| session.software),
            lasted_s: seconds_of(ticks),
            code,
            by_client,
            detail: cut(detail),
        };
        let max = CLOSES_MAX.div_ceil(out.cx.node.counters.len());
        self.closes.push(max, close);
        out.cx.counters().closes_bytes.set(self.closes.bytes() as u64);
    }

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

    /// A client has gone by itself, with a code or without (0): it is remembered, and a line at level debug.
    pub(crate) fn notice_gone<D: Driver>(
        &mut self,
        out: &Outlets<'_, D>,
        index: u32,
        code: u16,
        detail: &str,
    ) {
        if !out.net.at(index).is_some_and(|conn| conn.phase == Phase::Client) {
            return;
        }
        self.remember_close(out, index, (code, true), detail);
        if tracing::enabled!(Level::DEBUG) {
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
        let conn = out.net.at(index);
        let session = conn.and_then(|conn| self.sessions.get(conn.session as usize));
        // A client id exists from the connect on.
        let client = conn.filter(|_| session.is_some());
        let client = client.map(|conn| out.cx.client_id(conn.key(index)).text());
        let client = client.as_ref().map_or("", |client| client.as_str());
        let user = session.map_or("", |session| session.user.as_str());
        let address = out.net.client_address(index);
        let certificate = out.net.client_name(index).unwrap_or_default();
        write(&Fields { address, user, client, certificate, ..Fields::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::clients::testing::Scene;
    use crate::shard::fixture::Plan;
    use crate::shard::notices::tests::logged;

    #[test]
    fn a_line_names_the_user_and_the_client_of_a_connection() {
        let mut scene = Scene::new(Plan::default());
        let (_, key) = scene.client("alice");
        let client = scene.wired.cx.client_id(key).text();
        let reason = Reason::ErrorPermissionDenied;
        let text = logged(false, || {
            scene.with(|clients, out, _| {
                clients.notice(out, key.index, reason, 103, "news", format_args!("needs a token"));
            });
        });
        let (client, line) = (client.as_str(), text.trim());
        assert!(
            line.starts_with("INFO command refused reason=\"error.permission_denied\""),
            "{line}"
        );
        assert!(
            line.contains(&format!("user=\"alice\" client=\"{client}\" channel=\"news\"")),
            "{line}"
        );
        assert!(line.ends_with("why=\"needs a token\""), "{line}");
    }

    #[test]
    fn a_connection_without_a_session_has_neither() {
        let mut scene = Scene::new(Plan::default());
        let (_, key) = scene.wired.connect_client();
        let text = logged(false, || {
            scene.with(|clients, out, _| {
                clients.notice(out, key.index, Reason::CloseStale, 3502, "", format_args!(""));
            });
        });
        assert!(text.contains("connection closed"), "{text}");
        assert!(!text.contains("user=") && !text.contains("client="), "{text}");
    }
}
