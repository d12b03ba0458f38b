//! Proxies on the shard's side: calls of the application go by mail to the control thread, which makes
//! them (`node/proxies`).
//!
//! ```text
//!  command -> paused, Mail::AppCall -> control thread -> HTTP -> Mail::AppReply -> the command again
//!  expiry  ->         Mail::AppCall ->      ...                  Mail::AppReply -> new expiry, or the end
//! ```
//! As with tokens, a paused connection keeps the command that it stopped at, and with the answer at hand it
//! is handled once more: it costs no thread, and commands stay in their order. With `client.concurrency` a
//! command may be deferred instead: its bytes are put in front of what the connection has to handle when the
//! answer is there.

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::expiry::Expiry;
use crate::base::id::ConnKey;
use crate::base::limits::PROXY_QUESTIONS_MAX;
use crate::edge::jwt::ConnectionClaims;
use crate::edge::proxy::{ProxyEvent, ProxyOptions};
use crate::io::Driver;
use crate::proto::client::{ConnectRequest, Disconnect, Encoding, ErrorCode, Unsubscribed};
use crate::session::{Headers, NO_MEMORY, Renewal, Stop, WaitsFor};
use crate::shard::clients::aside::ReplyAtHand;
use crate::shard::clients::{Clients, DeferredCommand, DelayedCall};
use crate::shard::local::LocalSide;
use crate::shard::mail::post::Post;
use crate::shard::mail::{Asker, CONTROL, Mail};
use crate::shard::net::Net;
use crate::shard::net::record::{NONE, Phase};
use crate::shard::outlets::Outlets;

pub use crate::session::app::{AppAnswer, AppRequest, AppResult};
pub use crate::shard::mail::app::{AppCall, AppReply};

impl Clients {
    /// Takes all deferred commands out: their replies come too late.
    pub(crate) fn take_deferred(&mut self) -> Vec<DeferredCommand> {
        let commands: Vec<DeferredCommand> = self.deferred.drain().collect();
        for command in &commands {
            self.asides.take(command.conn.index, |aside| aside.deferred = 0);
        }
        commands
    }
}

impl Clients {
    /// Calls the application for a command that stops meanwhile: alone, or deferred while later ones go on.
    pub(crate) fn call_application<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        command: u32,
        proxy: &Arc<ProxyOptions>,
        call: impl FnOnce() -> AppRequest,
    ) -> Stop {
        if self.asides.is_pending(index) {
            return Stop::Wait(WaitsFor::Application);
        }
        // `connect` is the one barrier.
        let at_once = match out.net[index].session {
            NONE => 1,
            _ => out.cx.client.concurrency.max(1),
        };
        if at_once > 1 && self.asides.deferred(index) >= at_once {
            // Each reply resumes it, and so does each answer of a home.
            return Stop::Wait(WaitsFor::EarlierCommands);
        }
        if out.cx.is_short_for(|counters| &counters.short_call) {
            return Stop::Error(ErrorCode::Internal, NO_MEMORY);
        }
        if self.call_credits(out.post) == 0 {
            return Stop::Wait(WaitsFor::Credit(CONTROL));
        }
        if at_once > 1 {
            let call = call();
            let channel = match &call {
                AppRequest::Subscribe { channel, .. } => channel.clone(),
                _ => CompactString::default(),
            };
            let conn = out.net[index].key(index);
            let deferred = DeferredCommand { conn, channel, bytes: Box::default() };
            let ticket = self.deferred.insert(deferred) as u32;
            self.asides.entry(index).deferred += 1;
            self.send_call(out, index, command, proxy, call, Some(ticket));
            return Stop::Defer(ticket);
        }
        self.asides.entry(index).call = true;
        self.send_call(out, index, command, proxy, call(), None);
        Stop::Wait(WaitsFor::Application)
    }

    /// Calls that may begin now.
    pub(crate) fn call_credits(&self, post: &Post) -> usize {
        match post.is_full(CONTROL) {
            true => 0,
            false => PROXY_QUESTIONS_MAX.saturating_sub(self.calls),
        }
    }

    /// Makes a call for which no command waits: now, or when others are answered.
    fn call_or_delay<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        proxy: &Arc<ProxyOptions>,
        call: AppRequest,
    ) {
        match self.call_credits(out.post) {
            0 => {
                let conn = out.net[index].key(index);
                self.delayed.push_back(DelayedCall { conn, proxy: Arc::clone(proxy), call });
            }
            _ => self.send_call(out, index, 0, proxy, call, None),
        }
    }

    /// Makes the delayed calls, as far as may be.
    pub(crate) fn send_delayed_calls<D: Driver>(&mut self, out: &mut Outlets<'_, D>) {
        while self.call_credits(out.post) > 0 {
            let Some(DelayedCall { conn, proxy, call }) = self.delayed.pop_front() else {
                break;
            };
            if out.net.conn(conn).is_some_and(|conn| conn.phase == Phase::Client) {
                self.send_call(out, conn.index, 0, &proxy, call, None);
            }
        }
    }

    fn send_call<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        command: u32,
        proxy: &Arc<ProxyOptions>,
        call: AppRequest,
        ticket: Option<u32>,
    ) {
        let key = out.net[index].key(index);
        let client = CompactString::new(out.cx.client_id(key).text().as_str());
        let form = out.net.form(index);
        let asked_with = self.asides.get(index).and_then(|aside| aside.headers.clone());
        let session = self.session_of(out.net, index);
        let (user, meta, headers) = match session {
            Some(session) => {
                let extra = session.extra.as_ref();
                let meta = extra.map(|extra| extra.meta.clone()).unwrap_or_default();
                let headers = extra.and_then(|extra| extra.headers.clone());
                (session.user.clone(), meta, headers)
            }
            None => (CompactString::default(), Box::default(), asked_with),
        };
        self.calls += 1;
        out.cx.counters().proxy_questions.add(1);
        let asked_ms = out.cx.low_ms();
        let asker = Asker { command, asked_ms, ..Asker::of(key) };
        let proxy = Arc::clone(proxy);
        let meta = if proxy.include_connection_meta { meta } else { Box::default() };
        let address = out.net.client_address(asker.conn.index);
        let certificate = out.net.client_name(asker.conn.index).map(Into::into);
        let question = AppCall {
            asker,
            proxy,
            client,
            form,
            user,
            meta,
            headers,
            address,
            certificate,
            call,
            ticket,
        };
        out.post.send(out.cx, CONTROL, Mail::AppCall(Box::new(question)));
    }

    /// The application has answered.
    pub(crate) fn take_app_reply<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        reply: AppReply,
    ) {
        self.calls -= 1;
        let AppReply { asker, local, ticket, event, answer } = reply;
        let index = asker.conn.index;
        let deferred = ticket.and_then(|ticket| self.deferred.try_remove(ticket as usize));
        let Some(conn) = out.net.conn(asker.conn) else { return };
        let is_client = conn.phase == Phase::Client;
        if deferred.is_some() {
            self.asides.take(index, |aside| aside.deferred = aside.deferred.saturating_sub(1));
        }
        if !is_client {
            return;
        }
        // Given up meanwhile: its command is done.
        let is_late = match ticket {
            Some(_) => deferred.is_none(),
            None => self.asides.get(index).is_none_or(|aside| !aside.call),
        };
        match event {
            ProxyEvent::Refresh => self.refreshed(out, side, index, answer),
            ProxyEvent::SubRefresh => self.sub_refreshed(out, side, index, local, answer),
            _ if is_late => {}
            _ => {
                let reply = ReplyAtHand { began_ms: asker.asked_ms, answer: Arc::new(answer) };
                let aside = self.asides.entry(index);
                // In the order of the commands: deferred ones are put in front of a paused one.
                match deferred {
                    None => {
                        aside.call = false;
                        aside.replies.push_back(reply);
                    }
                    Some(command) => {
                        aside.replies.push_front(reply);
                        put_in_front(out.net, &command);
                    }
                }
                out.net.resume(asker.conn);
            }
        }
    }

    /// Whether a deferred command of the connection subscribes to this channel: it is reserved.
    pub(crate) fn is_reserved(&self, conn: ConnKey, channel: &str) -> bool {
        if self.asides.deferred(conn.index) == 0 {
            return false;
        }
        let mut deferred = self.deferred.iter();
        deferred.any(|(_, command)| command.conn == conn && command.channel == channel)
    }

    /// Keeps the bytes of a command that waits for the application.
    pub(crate) fn keep_deferred(&mut self, ticket: u32, bytes: &[u8]) {
        if let Some(command) = self.deferred.get_mut(ticket as usize) {
            command.bytes = bytes.into();
        }
    }

    /// Keeps the headers that proxies take over from a connect command.
    pub(crate) fn keep_emulated_headers<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        request: &ConnectRequest<'_>,
    ) {
        let wanted = &out.cx.client.proxies.emulated_headers;
        if wanted.is_empty() {
            return;
        }
        let named = request.headers.iter().filter_map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            let value = Box::from(value.as_bytes());
            wanted.contains(&name).then(|| (CompactString::from(name), value))
        });
        let emulated: Vec<_> = named.collect();
        if !emulated.is_empty() {
            let kept = &mut self.asides.entry(index).headers;
            let http = kept.as_ref().map(|kept| kept.http.clone()).unwrap_or_default();
            *kept = Some(Arc::new(Headers { http, emulated }));
        }
    }

    /// A connection expires that the application refreshes.
    pub(crate) fn request_refresh<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        proxy: &Arc<ProxyOptions>,
    ) {
        if let Some(session) = self.session_of(out.net, index) {
            session.flags.set_refreshing(true);
        }
        self.call_or_delay(out, index, proxy, AppRequest::Refresh);
    }

    /// The application has said whether a connection goes on (client protocol, section 19).
    fn refreshed<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        answer: AppAnswer,
    ) {
        let now = out.cx.unix;
        let Some(session) = self.session_of(out.net, index) else { return };
        session.flags.set_refreshing(false);
        let again_at = Some(Expiry::at(now.0.saturating_add(AGAIN_S)));
        let result = match answer {
            AppAnswer::Result(result) if !result.expired => result,
            AppAnswer::Failed => {
                session.expires = again_at;
                return self.schedule(out, index);
            }
            _ => return self.connection_expired(out, side, index),
        };
        let ConnectionClaims { expire_at, info, meta, .. } = result.claims;
        let expires = expire_at.map(Expiry::at);
        if expires.is_some_and(|expires| expires.is_past(now)) {
            return self.connection_expired(out, side, index);
        }
        session.expires = expires;
        if let Some(meta) = meta {
            session.extra().meta = meta;
        }
        if let Some(info) = info
            && self.reinform(out, side, index, info).is_err()
        {
            // A home has no room for the new info: the refresh is tried again.
            if let Some(session) = self.session_of(out.net, index) {
                session.expires = again_at;
            }
        }
        self.schedule(out, index);
    }

    fn connection_expired<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) {
        out.cx.counters().closed_expired.add(1);
        self.disconnect(out, side, index, Disconnect::ConnectionExpired);
    }

    /// A subscription expires that the application refreshes.
    pub(crate) fn request_sub_refresh<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        local: u32,
    ) {
        let Some((channel, namespace)) =
            side.locals.get(local).map(|local| (local.name.clone(), local.namespace))
        else {
            return;
        };
        let channels = out.cx.channels_with(namespace);
        let proxy = &channels.namespace(namespace).sub_refresh_proxy;
        let Some(session) = self.session_of(out.net, index) else { return };
        let Some(extra) = session.sub_extra_mut(local) else { return };
        let Some(proxy) = proxy else {
            // The options have changed since: from now on it is the client's business.
            extra.renewal = Renewal::Client;
            return;
        };
        extra.renewal = Renewal::Requested;
        self.call_or_delay(out, index, proxy, AppRequest::SubRefresh { channel, local });
    }

    fn sub_refreshed<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        local: u32,
        answer: AppAnswer,
    ) {
        let now = out.cx.unix;
        let Some(session) = self.session_of(out.net, index) else { return };
        // Unsubscribed since, and perhaps subscribed again.
        let extra =
            session.sub_extra_mut(local).filter(|extra| extra.renewal == Renewal::Requested);
        let Some(extra) = extra else { return };
        extra.renewal = Renewal::Server;
        let result = match answer {
            AppAnswer::Result(result) if !result.expired => result,
            AppAnswer::Failed => {
                extra.expires = Some(Expiry::at(now.0.saturating_add(AGAIN_S)));
                return self.schedule(out, index);
            }
            _ => return self.end_sub(out, side, index, local, Unsubscribed::Expired),
        };
        let ConnectionClaims { expire_at, info, .. } = result.claims;
        let expires = expire_at.map(Expiry::at);
        if expires.is_some_and(|expires| expires.is_past(now)) {
            return self.end_sub(out, side, index, local, Unsubscribed::Expired);
        }
        extra.expires = expires;
        if let Some(info) = info {
            self.reinform_in(out, side, index, local, info);
        }
        self.schedule(out, index);
    }
}

/// A refresh that failed is tried again after so many seconds (client protocol, section 19).
const AGAIN_S: i64 = 60;

/// Puts a deferred command in front of the commands that its connection has yet to handle: the reply is in
/// front, too.
fn put_in_front<D: Driver>(net: &mut Net<D>, command: &DeferredCommand) {
    put_commands_in_front(net, command.conn, &command.bytes);
}

/// Puts commands in front of those that a connection has yet to handle.
pub(crate) fn put_commands_in_front<D: Driver>(net: &mut Net<D>, key: ConnKey, commands: &[u8]) {
    if commands.is_empty() {
        return;
    }
    let is_json = net.encoding(key.index) == Encoding::Json;
    let Some(conn) = net.conn(key) else { return };
    let rx = conn.rx.get_or_insert_default();
    rx.commands = joined(commands, &rx.commands[rx.commands_at..], is_json);
    rx.commands_at = 0;
}

/// One message of two parts: in JSON a line feed stands between commands.
fn joined(first: &[u8], rest: &[u8], is_json: bool) -> Vec<u8> {
    let mut commands = Vec::with_capacity(first.len() + rest.len() + 1);
    commands.extend_from_slice(first);
    if is_json && !rest.is_empty() {
        commands.push(b'\n');
    }
    commands.extend_from_slice(rest);
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deferred_command_goes_before_waiting_ones() {
        assert_eq!(joined(b"{1}", b"{2}", true), b"{1}\n{2}");
        assert_eq!(joined(b"{1}", b"", true), b"{1}");
        assert_eq!(joined(b"\x011", b"\x012", false), b"\x011\x012");
    }
}
