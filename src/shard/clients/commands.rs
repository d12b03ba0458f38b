//! Commands of clients: each goes to the file that knows it; here is what they share.

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::id::ConnKey;
use crate::base::info::ClientInfo;
use crate::base::notices::Reason;
use crate::base::time::Millis;
use crate::edge::client_id::ClientId;
use crate::edge::proxy::{AppDisconnect, AppError};
use crate::io::Driver;
use crate::proto::client::{
    self, Body, Command, Commands, Disconnect, ErrorCode, Push, Reply, Request,
};
use crate::session::app::AppRequest;
use crate::session::{
    self, Effect, Facts, NO_MEMORY, Publication, PublishOptions, Session, Stop, TokenKind, WaitsFor,
};
use crate::shard::Shard;
use crate::shard::flow::Flow;
use crate::shard::mail::{Answer, Asker, Failure, Mail, Method, Publish, Read, Reading};
use crate::shard::net::record::Phase;
use crate::shard::notices::{Cut, reason_of_error};
use crate::shard::outlets::outlets;

impl<D: Driver> Shard<D> {
    /// Handles the commands of one message, as far as may be.
    pub(crate) fn commands(&mut self, index: u32, mut commands: Commands<'_>) -> Flow {
        loop {
            let handled = commands.consumed();
            let Some(command) = commands.next() else { return Flow::On };
            let command = match command {
                Ok(command) => command,
                Err(_) => {
                    return self.bad_request(index, "the message is no command of the protocol");
                }
            };
            match self.command(index, command) {
                Flow::On => {}
                Flow::Defer(ticket) => self.keep_deferred(ticket, commands.bytes_from(handled)),
                Flow::Pause(_) => return Flow::Pause(handled),
                Flow::Skip => return Flow::On,
                Flow::End => return Flow::End,
            }
        }
    }

    pub(crate) fn bad_request(&mut self, index: u32, why: &'static str) -> Flow {
        self.cx.counters().faults_bad_request.add(1);
        self.disconnect_because(index, Disconnect::BadRequest, why);
        Flow::End
    }

    fn command(&mut self, index: u32, command: Command<'_>) -> Flow {
        let (id, request) = (command.id, &command.request);
        let conn = &self.net.conns[index as usize];
        let Some(session) = self.clients.sessions.get_mut(conn.session as usize) else {
            return match request {
                Request::Connect(connect) if conn.phase == Phase::Client && id > 0 => {
                    self.cx.counters().count_command(request);
                    let result = self.connect(index, id, connect);
                    self.finish_command(index, id, "", result)
                }
                _ => self.bad_request(index, "the first command is not connect"),
            };
        };
        let deferred = self.clients.asides.deferred(index);
        if let Err(stop) = session.admit(request, deferred, conn.flags.frame_ping()) {
            return self.finish_command(index, id, "", Err(stop));
        }
        if let Request::Pong = request {
            session.flags.set_pong_due(false);
            self.cx.counters().pongs.add(1);
            return Flow::On;
        }
        let (unanswered, key) = (session.unanswered, conn.key(index));
        self.cx.counters().count_command(request);
        let method = Method::of(request);
        let asked_ms = self.began_ms(index);
        let asker = Asker { command: id, method, asked_ms, ..Asker::of(key) };
        let result = self.handle(asker, request);
        // A command that no home has to answer is answered.
        let is_answered = match &result {
            Ok(_) => true,
            Err(stop) => stop.is_error() && !matches!(stop, Stop::TemporaryError(..)),
        };
        if is_answered && self.session_of(index).is_some_and(|s| s.unanswered == unanswered) {
            self.time_answer(method, asked_ms);
        }
        self.finish_command(index, id, channel_of(request), result)
    }

    /// Lets the session decide about a command, and carries the effect out.
    fn handle(&mut self, asker: Asker, request: &Request<'_>) -> Result<Flow, Stop> {
        let index = asker.conn.index;
        let answer = self.clients.asides.answer(index);
        let is_short = match request {
            Request::Publish(_) | Request::Subscribe(_) => self.cx.node.memory.is_short(),
            _ => false,
        };
        let is_reserved = match request {
            Request::Subscribe(request) => self.is_reserved(asker.conn, &request.channel),
            _ => false,
        };
        let facts = Facts { is_short, is_reserved, ..self.facts(asker.conn) };
        let at = self.net.conns[index as usize].session;
        let Some(session) = self.clients.sessions.get(at as usize) else { return Ok(Flow::On) };
        let decided = session.handle(request, answer.as_deref(), &facts);
        let is_checked = facts.verdict.is_some();
        let token = token_of(request);
        if is_checked && !token.is_empty() {
            self.clients.asides.take(index, |aside| aside.check.take());
        }
        match decided {
            Ok(effect) => self.apply(asker, effect),
            Err(Stop::Verify(kind)) => Err(self.request_check(index, token, kind)),
            Err(Stop::Call(proxy)) => {
                Err(self.call_application(index, asker.command, &proxy, || {
                    AppRequest::of(request).unwrap_or(AppRequest::Refresh)
                }))
            }
            Err(stop) => {
                match (&stop, request) {
                    (Stop::NoMemory, Request::Publish(_)) => {
                        self.cx.counters().short_publish.inc();
                    }
                    (Stop::NoMemory, _) => self.cx.counters().short_subscribe.inc(),
                    _ => {}
                }
                Err(stop)
            }
        }
    }

    /// The facts that commands of a connection are judged by.
    pub(crate) fn facts(&self, conn: ConnKey) -> Facts<'_> {
        let (node, rules) = (&self.cx.node, &self.cx.node.rules);
        Facts {
            channels: &self.cx.channels,
            client: &self.cx.client,
            rpc: &rules.rpc,
            connection_keys: node.keys(TokenKind::Connection),
            subscription_keys: node.keys(TokenKind::Subscription),
            ids: &rules.client_ids,
            names: &node.names,
            locals: &self.local.locals,
            shard: self.cx.id,
            conn,
            encoding: self.net.encoding(conn.index),
            now: self.cx.unix,
            is_short: false,
            is_reserved: false,
            verdict: self.clients.asides.verdict(conn.index),
        }
    }

    /// Carries out the effect of a command. Without credit at the home nothing is done.
    fn apply(&mut self, asker: Asker, effect: Effect<'_>) -> Result<Flow, Stop> {
        let index = asker.conn.index;
        match effect {
            Effect::Pong => {}
            Effect::Reply(reply) => {
                self.net.reply(&self.cx, &mut self.codec, index, asker.command, &reply)
            }
            Effect::Unfit => {
                self.inappropriate(index);
                return Ok(Flow::End);
            }
            Effect::Publish(publication) => self.publish(asker, publication)?,
            Effect::Read { channel, namespace, reading } => {
                self.request_read(asker, channel, namespace, reading)?;
            }
            Effect::Subscribe(sub) => {
                self.request_sub(asker, sub)?;
                if let Some(session) = self.session_of(index) {
                    session.unanswered += 1;
                }
                self.schedule(index);
            }
            Effect::Unsubscribe { channel, local } => self.unsubscribe(asker, channel, local)?,
            Effect::Refresh { expires, ttl, info, meta } => {
                self.reinform(index, info)?;
                if let Some(session) = self.session_of(index) {
                    session.renew(expires, meta);
                }
                self.net.reply(
                    &self.cx,
                    &mut self.codec,
                    index,
                    asker.command,
                    &Reply::Refresh { ttl },
                );
                self.schedule(index);
            }
            Effect::SubRefresh { local, expires, ttl } => {
                if let Some(session) = self.session_of(index) {
                    session.renew_sub(local, expires);
                }
                self.net.reply(
                    &self.cx,
                    &mut self.codec,
                    index,
                    asker.command,
                    &Reply::SubRefresh { ttl },
                );
                self.schedule(index);
            }
        }
        Ok(Flow::On)
    }

    pub(crate) fn finish_command(
        &mut self,
        index: u32,
        id: u32,
        channel: &str,
        result: Result<Flow, Stop>,
    ) -> Flow {
        // A reply of the application holds until its command is done.
        if !matches!(&result, Err(stop) if stop.comes_back()) {
            self.clients.asides.take(index, |aside| aside.replies.pop_front());
        }
        match result {
            Ok(flow) => flow,
            Err(Stop::Error(code, why)) => {
                self.reply_error_because(index, id, code, code.temporary(), channel, why);
                Flow::On
            }
            Err(Stop::NoMemory) => {
                let code = ErrorCode::Internal;
                self.reply_error_because(index, id, code, code.temporary(), channel, NO_MEMORY);
                Flow::On
            }
            Err(Stop::TemporaryError(code, why)) => {
                self.reply_error_because(index, id, code, true, channel, why);
                Flow::On
            }
            Err(Stop::Close(close, why)) => {
                match close {
                    Disconnect::BadRequest => self.cx.counters().faults_bad_request.add(1),
                    Disconnect::InvalidToken => self.cx.counters().faults_token.add(1),
                    _ => {}
                }
                self.disconnect_in(index, close, channel, why);
                Flow::End
            }
            Err(Stop::Wait(waits)) => {
                if let WaitsFor::Credit(home) = waits {
                    outlets!(self).wait_for_credit(index, home);
                }
                self.pause(index, waits)
            }
            Err(Stop::Defer(ticket)) => Flow::Defer(ticket),
            // The answers of both are requested where the command is handled.
            Err(Stop::Verify(_)) => self.pause(index, WaitsFor::TokenCheck),
            Err(Stop::Call(_)) => self.pause(index, WaitsFor::Application),
            Err(Stop::AppError(error)) => {
                self.reply_app_error(index, id, channel, &error);
                Flow::On
            }
            Err(Stop::AppClose(AppDisconnect { code, reason })) => {
                self.cx.counters().closed_by_application.add(1);
                self.end_session(index, code, &reason);
                Flow::End
            }
        }
    }

    /// When the command came that is being handled: with a reply of the application at hand, the time
    /// of the call.
    pub(crate) fn began_ms(&self, index: u32) -> u16 {
        let reply = self.clients.asides.reply(index);
        reply.map_or_else(|| low_ms(self.cx.now), |reply| reply.began_ms)
    }

    /// A command is answered.
    pub(crate) fn time_answer(&self, method: Method, asked_ms: u16) {
        if let Some(times) = self.cx.node.commands[self.cx.id.index()].get(method as usize) {
            let ms = low_ms(self.cx.now).wrapping_sub(asked_ms);
            times.record(u32::from(ms) * 1000);
        }
    }

    /// Stops the commands of a connection, and its reading, until the answer is there.
    fn pause(&mut self, index: u32, waits: WaitsFor) -> Flow {
        self.cx.counters().commands_paused.add(1);
        let conn = &mut self.net.conns[index as usize];
        conn.flags.set_paused(true);
        conn.waits = Some(waits);
        Flow::Pause(0)
    }

    /// Answers a command with an error. The channel and `why` are for the log.
    pub(crate) fn reply_error_because(
        &mut self,
        index: u32,
        id: u32,
        code: ErrorCode,
        temporary: bool,
        channel: &str,
        why: &'static str,
    ) {
        self.cx.counters().count_error(code);
        let reason = reason_of_error(code);
        self.notice(index, reason, code.code().into(), channel, format_args!("{why}"));
        self.error(index, id, code.code().into(), &Reply::Error { code, temporary });
    }

    /// Answers a command with an error of the application's. The channel is for the log.
    pub(crate) fn reply_app_error(&mut self, index: u32, id: u32, channel: &str, error: &AppError) {
        self.cx.counters().command_errors.inc();
        self.cx.counters().error_application.inc();
        let why = format_args!("{}", Cut(&error.message));
        self.notice(index, Reason::ErrorApplication, error.code, channel, why);
        let AppError { code, message, temporary } = error;
        let reply = Reply::AppError { code: *code, message, temporary: *temporary };
        self.error(index, id, *code, &reply);
    }

    /// Tells an error, as it is told to such a connection.
    fn error(&mut self, index: u32, id: u32, code: u32, reply: &Reply<'_>) {
        match self.net.form(index) {
            form if form.is_poll() => self.poll_error(index, code, reply),
            form if form.is_one_way() => self.one_way_error(index, code),
            _ => self.net.reply(&self.cx, &mut self.codec, index, id, reply),
        }
    }

    /// Queues a push for one connection alone.
    pub(crate) fn push(&mut self, index: u32, channel: &str, push: &Push<'_>) {
        let form = self.net.form(index);
        if form.is_poll() {
            // It has answers only: what changes its session ends the wait.
            return self.return_poll(index);
        }
        self.net.push(&self.cx, &mut self.codec, index, channel, push);
    }

    pub(crate) fn client_id(&self, key: ConnKey) -> ClientId {
        self.cx.node.rules.client_ids.seal(self.cx.id, key)
    }

    pub(crate) fn session_of(&mut self, index: u32) -> Option<&mut Session> {
        let conn = self.net.conns.get(index as usize)?;
        self.clients.sessions.get_mut(conn.session as usize)
    }

    /// The packed ClientInfo of a connection, which other clients see. `chan_info` belongs to the channel.
    pub(crate) fn client_info(&mut self, key: ConnKey, chan_info: &[u8]) -> Box<[u8]> {
        let ids = &self.cx.node.rules.client_ids;
        let client = self.clients.ids.get(ids, self.cx.id, key).text();
        let Some(session) = self.session_of(key.index) else { return Box::default() };
        let (user, conn_info) = (session.user.as_str(), session.info());
        ClientInfo { user, client: client.as_str(), conn_info, chan_info }.pack()
    }

    /// Requests a publish of the channel's home.
    fn publish(&mut self, asker: Asker, publication: Publication<'_>) -> Result<(), Stop> {
        let Publication { channel, namespace, local, data, is_json, result } = publication;
        let index = asker.conn.index;
        let Some(session) = self.session_of(index) else { return Ok(()) };
        let chan_info: Box<[u8]> = local
            .and_then(|at| session.sub_extra(at))
            .map(|extra| extra.info.clone())
            .unwrap_or_default();
        let hash = self.cx.node.names.hash(channel);
        let home = self.cx.node.names.home(hash);
        let credits = outlets!(self).spend(home, 1)?;
        let info = self.client_info(asker.conn, &chan_info);
        let is_json =
            is_json && ClientInfo::unpack(&info).is_none_or(|info| client::info_is_json(&info));
        let Some(session) = self.session_of(index) else { return Ok(()) };
        session.unanswered += 1;
        self.post.send(
            &self.cx,
            home,
            Mail::Publish(Box::new(Publish {
                channel: CompactString::new(channel),
                hash,
                namespace,
                asker: Some(Asker { credits, ..asker }),
                data: data.into(),
                info,
                tags: result.map(|result| (&*result.tags).into()).unwrap_or_default(),
                is_json,
                options: result
                    .filter(|result| result.options != PublishOptions::default())
                    .map(|result| Arc::new(result.options.clone())),
            })),
        );
        Ok(())
    }

    /// Requests a part of a channel's state of its home.
    fn request_read(
        &mut self,
        asker: Asker,
        channel: &str,
        namespace: u16,
        reading: session::Reading,
    ) -> Result<(), Stop> {
        let index = asker.conn.index;
        let hash = self.cx.node.names.hash(channel);
        let home = self.cx.node.names.home(hash);
        let credits = outlets!(self).spend(home, reading.credits())?;
        let encoding = self.net.encoding(index);
        let Some(session) = self.session_of(index) else { return Ok(()) };
        session.unanswered += 1;
        let read = Read {
            channel: CompactString::new(channel),
            hash,
            namespace,
            asker: Asker { credits, ..asker },
            encoding,
            bytes_max: self.cx.client.answer_bytes_max(),
            what: match reading {
                session::Reading::Presence => Reading::Presence,
                session::Reading::PresenceStats => Reading::PresenceStats,
                session::Reading::History(page) => Reading::History(page),
            },
        };
        self.post.send(&self.cx, home, Mail::Read(Box::new(read)));
        Ok(())
    }

    /// What was read comes back.
    pub(crate) fn answered(&mut self, asker: Asker, answer: &Answer) {
        let index = asker.conn.index;
        if !self.takes_answer(asker) {
            return;
        }
        let id = asker.command;
        match answer {
            Answer::Presence(body) => {
                let reply = Reply::Presence(Body::Elsewhere(body.len()));
                self.net.reply_around(&self.cx, &mut self.codec, index, id, &reply, body);
            }
            Answer::History(body) => {
                let reply = Reply::History(Body::Elsewhere(body.len()));
                self.net.reply_around(&self.cx, &mut self.codec, index, id, &reply, body);
            }
            Answer::PresenceStats(clients, users) => {
                let reply = Reply::PresenceStats { clients: *clients, users: *users };
                self.net.reply(&self.cx, &mut self.codec, index, id, &reply);
            }
            // Only the control thread asks for that.
            Answer::Done => {}
            Answer::Error(failure) => {
                let Failure { code, channel } = &**failure;
                let why = asker.method.name();
                self.reply_error_because(index, id, *code, code.temporary(), channel, why);
            }
            Answer::Unfit => self.inappropriate(index),
        }
    }

    /// A JSON connection would have to be shown what isn't JSON: it goes, and nobody else.
    pub(crate) fn inappropriate(&mut self, index: u32) {
        self.cx.counters().closed_inappropriate.add(1);
        let why = "data that isn't JSON, for a client that speaks JSON";
        self.disconnect_because(index, Disconnect::InappropriateProtocol, why);
    }
}

/// The token of a command, empty for none.
fn token_of<'a>(request: &'a Request<'_>) -> &'a str {
    match request {
        Request::Connect(request) => &request.token,
        Request::Subscribe(request) => &request.token,
        Request::Refresh(request) => &request.token,
        Request::SubRefresh(request) => &request.token,
        _ => "",
    }
}

/// The channel that a command names, for the log.
fn channel_of<'a>(request: &'a Request<'_>) -> &'a str {
    match request {
        Request::Subscribe(request) => &request.channel,
        Request::Unsubscribe(request) => &request.channel,
        Request::Publish(request) => &request.channel,
        Request::Presence(request) | Request::PresenceStats(request) => &request.channel,
        Request::History(request) => &request.channel,
        Request::SubRefresh(request) => &request.channel,
        _ => "",
    }
}

/// The low bits of the clock: a command that takes longer than they count is a wrong figure, no more.
pub(crate) fn low_ms(at: Millis) -> u16 {
    at.0 as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_its_channel_and_its_token() {
        for (text, channel, token) in [
            (r#"{"id":1,"connect":{"token":"t"}}"#, "", "t"),
            (r#"{"id":1,"subscribe":{"channel":"c","token":"t"}}"#, "c", "t"),
            (r#"{"id":1,"unsubscribe":{"channel":"c"}}"#, "c", ""),
            (r#"{"id":1,"publish":{"channel":"c","data":{}}}"#, "c", ""),
            (r#"{"id":1,"presence":{"channel":"c"}}"#, "c", ""),
            (r#"{"id":1,"presence_stats":{"channel":"c"}}"#, "c", ""),
            (r#"{"id":1,"history":{"channel":"c"}}"#, "c", ""),
            (r#"{"id":1,"refresh":{"token":"t"}}"#, "", "t"),
            (r#"{"id":1,"sub_refresh":{"channel":"c","token":"t"}}"#, "c", "t"),
            (r#"{"id":1,"rpc":{"method":"m"}}"#, "", ""),
        ] {
            let command = client::commands(text).next().unwrap().unwrap();
            let named = (channel_of(&command.request), token_of(&command.request));
            assert_eq!(named, (channel, token), "{text}");
        }
    }

    #[test]
    fn times_are_differences_of_low_bits() {
        let (began, answered) = (low_ms(Millis(65_530)), low_ms(Millis(65_540)));
        assert_eq!(answered.wrapping_sub(began), 10);
    }
}
