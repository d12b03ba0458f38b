//! Commands of clients: the session decides, this file collects the facts and carries the effects out.

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::id::ConnKey;
use crate::base::info::ClientInfo;
use crate::base::limits::COMMANDS_UNANSWERED_MAX;
use crate::base::notices::Reason;
use crate::edge::proxy::{AppDisconnect, AppError};
use crate::io::Driver;
use crate::proto::client::{
    self, Body, Command, Commands, Disconnect, Encoding, ErrorCode, Push, Reply, Request,
};
use crate::session::app::AppRequest;
use crate::session::{
    self, Effect, Facts, NO_MEMORY, Publication, PublishOptions, Session, Stop, TokenKind, WaitsFor,
};
use crate::shard::clients::Clients;
use crate::shard::context::Cx;
use crate::shard::flow::Flow;
use crate::shard::local::LocalSide;
use crate::shard::mail::{Answer, Asker, Failure, Mail, Method, Publish, Read, Reading};
use crate::shard::net::Net;
use crate::shard::net::record::Phase;
use crate::shard::notices::{Cut, reason_of_error};
use crate::shard::outlets::Outlets;

/// An error that a command is answered with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorReply<'a> {
    pub(crate) code: ErrorCode,
    /// The client may try again.
    pub(crate) temporary: bool,
    /// The channel of the command, for the log; empty for none.
    pub(crate) channel: &'a str,
    /// The detail for the log.
    pub(crate) why: &'static str,
}

impl<'a> ErrorReply<'a> {
    /// An error that is as temporary as its code says.
    pub(crate) fn new(code: ErrorCode, channel: &'a str, why: &'static str) -> Self {
        Self { code, temporary: code.temporary(), channel, why }
    }
}

impl Clients {
    /// Handles the commands of one message, as far as may be.
    pub(crate) fn commands<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        mut commands: Commands<'_>,
    ) -> Flow {
        loop {
            let handled = commands.consumed();
            let Some(command) = commands.next() else { return Flow::On };
            // What the application has replied to is done: it may not be called twice for it.
            if out.cx.settles && self.asides.reply(index).is_none() {
                out.net.pause(out.cx, index, WaitsFor::EarlierCommands);
                return Flow::Pause(handled);
            }
            let command = match command {
                Ok(command) => command,
                Err(_) => {
                    return self.bad_request(
                        out,
                        side,
                        index,
                        "the message is no command of the protocol",
                    );
                }
            };
            match self.command(out, side, index, command) {
                Flow::On => {}
                Flow::Defer(ticket) => self.keep_deferred(ticket, commands.bytes_from(handled)),
                Flow::Pause(_) => return Flow::Pause(handled),
                Flow::Skip => return Flow::On,
                Flow::End => return Flow::End,
            }
        }
    }

    pub(crate) fn bad_request<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        why: &'static str,
    ) -> Flow {
        out.cx.counters().faults_bad_request.add(1);
        self.disconnect_because(out, side, index, Disconnect::BadRequest, why);
        Flow::End
    }

    fn command<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        command: Command<'_>,
    ) -> Flow {
        let (id, request) = (command.id, &command.request);
        let conn = &out.net[index];
        let Some(session) = self.sessions.get_mut(conn.session as usize) else {
            return match request {
                Request::Connect(connect) if conn.phase == Phase::Client && id > 0 => {
                    out.cx.counters().count_command(request);
                    let result = self.connect(out, side, index, id, connect);
                    self.finish_command(out, side, index, id, "", result)
                }
                _ => self.bad_request(out, side, index, "the first command is not connect"),
            };
        };
        let deferred = self.asides.deferred(index);
        if let Err(stop) = session.admit(request, deferred, conn.flags.frame_ping()) {
            return self.finish_command(out, side, index, id, "", Err(stop));
        }
        if let Request::Pong = request {
            self.pong(out, index);
            return Flow::On;
        }
        let (unanswered, key) = (session.unanswered, conn.key(index));
        out.cx.counters().count_command(request);
        let method = Method::of(request);
        let asked_ms = self.began_ms(out.cx, index);
        let asker = Asker { command: id, method, asked_ms, ..Asker::of(key) };
        let result = self.handle(out, side, asker, request);
        // A command that no home has to answer is answered.
        let is_answered = match &result {
            Ok(_) => true,
            Err(stop) => stop.is_error() && !matches!(stop, Stop::TemporaryError(..)),
        };
        if is_answered
            && self.session_of(out.net, index).is_some_and(|s| s.unanswered == unanswered)
        {
            out.cx.time_answer(method, asked_ms);
        }
        self.finish_command(out, side, index, id, channel_of(request), result)
    }

    /// Lets the session decide about a command, and carries the effect out.
    fn handle<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        asker: Asker,
        request: &Request<'_>,
    ) -> Result<Flow, Stop> {
        let index = asker.conn.index;
        let answer = self.asides.answer(index);
        let is_short = match request {
            Request::Publish(_) | Request::Subscribe(_) => out.cx.node.memory.is_short(),
            _ => false,
        };
        let is_reserved = match request {
            Request::Subscribe(request) => self.is_reserved(asker.conn, &request.channel),
            _ => false,
        };
        let facts = Facts {
            is_short,
            is_reserved,
            ..self.facts(out.cx, side, asker.conn, out.net.encoding(index))
        };
        let at = out.net[index].session;
        let Some(session) = self.sessions.get(at as usize) else { return Ok(Flow::On) };
        let decided = session.handle(request, answer.as_deref(), &facts);
        let is_checked = facts.verdict.is_some();
        let token = token_of(request);
        if is_checked && !token.is_empty() {
            self.asides.take(index, |aside| aside.check.take());
        }
        match decided {
            Ok(effect) => self.apply(out, side, asker, effect),
            Err(Stop::Verify(kind)) => Err(self.request_check(out, index, token, kind)),
            Err(Stop::Call(proxy)) => {
                Err(self.call_application(out, index, asker.command, &proxy, || {
                    AppRequest::of(request).unwrap_or(AppRequest::Refresh)
                }))
            }
            Err(stop) => {
                match (&stop, request) {
                    (Stop::NoMemory, Request::Publish(_)) => {
                        out.cx.counters().short_publish.inc();
                    }
                    (Stop::NoMemory, _) => out.cx.counters().short_subscribe.inc(),
                    _ => {}
                }
                Err(stop)
            }
        }
    }

    /// The facts that commands of a connection are judged by.
    pub(crate) fn facts<'a>(
        &self,
        cx: &'a Cx,
        side: &'a LocalSide,
        conn: ConnKey,
        encoding: Encoding,
    ) -> Facts<'a> {
        let (node, rules) = (&cx.node, &cx.node.rules);
        Facts {
            channels: &cx.channels,
            client: &cx.client,
            rpc: &rules.rpc,
            connection_keys: node.keys(TokenKind::Connection),
            subscription_keys: node.keys(TokenKind::Subscription),
            ids: &rules.client_ids,
            names: &node.names,
            locals: &side.locals,
            shard: cx.id,
            conn,
            encoding,
            now: cx.unix,
            is_short: false,
            is_reserved: false,
            verdict: self.asides.verdict(conn.index),
        }
    }

    /// Carries out the effect of a command. Without credit at the home nothing is done.
    fn apply<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        asker: Asker,
        effect: Effect<'_>,
    ) -> Result<Flow, Stop> {
        let index = asker.conn.index;
        match effect {
            Effect::Pong => {}
            Effect::Reply(reply) => out.net.reply(out.cx, out.codec, index, asker.command, &reply),
            Effect::Unfit => {
                self.inappropriate(out, side, index);
                return Ok(Flow::End);
            }
            Effect::Publish(publication) => self.publish(out, asker, publication)?,
            Effect::Read { channel, namespace, reading } => {
                self.request_read(out, asker, channel, namespace, reading)?;
            }
            Effect::Subscribe(sub) => {
                self.request_sub(out, side, asker, sub)?;
                if let Some(session) = self.session_of(out.net, index) {
                    session.unanswered += 1;
                }
                self.schedule(out, index);
            }
            Effect::Unsubscribe { channel, local } => {
                self.unsubscribe(out, side, asker, channel, local)?
            }
            Effect::Refresh { expires, ttl, info, meta } => {
                self.reinform(out, side, index, info)?;
                if let Some(session) = self.session_of(out.net, index) {
                    session.renew(expires, meta);
                }
                out.net.reply(out.cx, out.codec, index, asker.command, &Reply::Refresh { ttl });
                self.schedule(out, index);
            }
            Effect::SubRefresh { local, expires, ttl } => {
                if let Some(session) = self.session_of(out.net, index) {
                    session.renew_sub(local, expires);
                }
                out.net.reply(out.cx, out.codec, index, asker.command, &Reply::SubRefresh { ttl });
                self.schedule(out, index);
            }
        }
        Ok(Flow::On)
    }

    pub(crate) fn finish_command<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        id: u32,
        channel: &str,
        result: Result<Flow, Stop>,
    ) -> Flow {
        // A reply of the application holds until its command is done.
        if !matches!(&result, Err(stop) if stop.comes_back()) {
            self.asides.take(index, |aside| aside.replies.pop_front());
        }
        match result {
            Ok(flow) => flow,
            Err(Stop::Error(code, why)) => {
                self.reply_error(out, side, index, id, ErrorReply::new(code, channel, why));
                Flow::On
            }
            Err(Stop::NoMemory) => {
                let error = ErrorReply::new(ErrorCode::Internal, channel, NO_MEMORY);
                self.reply_error(out, side, index, id, error);
                Flow::On
            }
            Err(Stop::TemporaryError(code, why)) => {
                let error = ErrorReply { temporary: true, ..ErrorReply::new(code, channel, why) };
                self.reply_error(out, side, index, id, error);
                Flow::On
            }
            Err(Stop::Close(close, why)) => {
                match close {
                    Disconnect::BadRequest => out.cx.counters().faults_bad_request.add(1),
                    Disconnect::InvalidToken => out.cx.counters().faults_token.add(1),
                    _ => {}
                }
                self.disconnect_in(out, side, index, close, channel, why);
                Flow::End
            }
            Err(Stop::Wait(waits)) => {
                if let WaitsFor::Credit(home) = waits {
                    out.wait_for_credit(index, home);
                }
                out.net.pause(out.cx, index, waits);
                Flow::Pause(0)
            }
            Err(Stop::Defer(ticket)) => Flow::Defer(ticket),
            // The answers of both are requested where the command is handled.
            Err(Stop::Verify(_)) => {
                out.net.pause(out.cx, index, WaitsFor::TokenCheck);
                Flow::Pause(0)
            }
            Err(Stop::Call(_)) => {
                out.net.pause(out.cx, index, WaitsFor::Application);
                Flow::Pause(0)
            }
            Err(Stop::AppError(error)) => {
                self.reply_app_error(out, side, index, id, channel, &error);
                Flow::On
            }
            Err(Stop::AppClose(AppDisconnect { code, reason })) => {
                out.cx.counters().closed_by_application.add(1);
                self.end_session(out, side, index, code, &reason);
                Flow::End
            }
        }
    }

    /// When the command came that is being handled: with a reply of the application at hand, the time
    /// of the call.
    pub(crate) fn began_ms(&self, cx: &Cx, index: u32) -> u16 {
        let reply = self.asides.reply(index);
        reply.map_or_else(|| cx.low_ms(), |reply| reply.began_ms)
    }

    /// Answers a command with an error.
    pub(crate) fn reply_error<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        id: u32,
        error: ErrorReply<'_>,
    ) {
        let ErrorReply { code, temporary, channel, why } = error;
        out.cx.counters().count_error(code);
        let reason = reason_of_error(code);
        self.notice(out, index, reason, code.code().into(), channel, format_args!("{why}"));
        self.error(out, side, index, id, code.code().into(), &Reply::Error { code, temporary });
    }

    /// Answers a command with an error of the application's. The channel is for the log.
    pub(crate) fn reply_app_error<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        id: u32,
        channel: &str,
        error: &AppError,
    ) {
        out.cx.counters().command_errors.inc();
        out.cx.counters().error_application.inc();
        let why = format_args!("{}", Cut(&error.message));
        self.notice(out, index, Reason::ErrorApplication, error.code, channel, why);
        let AppError { code, message, temporary } = error;
        let reply = Reply::AppError { code: *code, message, temporary: *temporary };
        self.error(out, side, index, id, *code, &reply);
    }

    /// Sends an error in the way of the connection's transport.
    fn error<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        id: u32,
        code: u32,
        reply: &Reply<'_>,
    ) {
        match out.net.form(index) {
            form if form.is_poll() => self.poll_error(out, side, index, code, reply),
            form if form.is_one_way() => self.one_way_error(out, side, index, code),
            _ => out.net.reply(out.cx, out.codec, index, id, reply),
        }
    }

    /// Queues a push for one connection alone.
    pub(crate) fn push<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        channel: &str,
        push: &Push<'_>,
    ) {
        let form = out.net.form(index);
        if form.is_poll() {
            // It has answers only: what changes its session ends the wait.
            return self.return_poll(out, side, index);
        }
        out.net.push(out.cx, out.codec, index, channel, push);
    }

    pub(crate) fn session_of<D: Driver>(
        &mut self,
        net: &Net<D>,
        index: u32,
    ) -> Option<&mut Session> {
        let conn = net.at(index)?;
        self.sessions.get_mut(conn.session as usize)
    }

    /// The packed ClientInfo of a connection, which other clients see. `chan_info` belongs to the channel.
    pub(crate) fn client_info<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        key: ConnKey,
        chan_info: &[u8],
    ) -> Box<[u8]> {
        self.client_info_since(out, key, chan_info, 0)
    }

    /// The same with the time of a subscription; 0: none.
    pub(crate) fn client_info_since<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        key: ConnKey,
        chan_info: &[u8],
        subscribed_at: u32,
    ) -> Box<[u8]> {
        let ids = &out.cx.node.rules.client_ids;
        let client = self.ids.get(ids, out.cx.id, key).text();
        let Some(session) = self.session_of(out.net, key.index) else { return Box::default() };
        let (user, conn_info) = (session.user.as_str(), session.info());
        ClientInfo { user, client: client.as_str(), conn_info, chan_info, subscribed_at }.pack()
    }

    /// Requests a publish of the channel's home.
    fn publish<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        asker: Asker,
        publication: Publication<'_>,
    ) -> Result<(), Stop> {
        let Publication { channel, namespace, local, data, is_json, result } = publication;
        let index = asker.conn.index;
        let Some(session) = self.session_of(out.net, index) else { return Ok(()) };
        let chan_info: Box<[u8]> = local
            .and_then(|at| session.sub_extra(at))
            .map(|extra| extra.info.clone())
            .unwrap_or_default();
        let hash = out.cx.node.names.hash(channel);
        let home = out.cx.node.names.home(hash);
        let credits = out.spend(home, 1)?;
        let info = self.client_info(out, asker.conn, &chan_info);
        let is_json =
            is_json && ClientInfo::unpack(&info).is_none_or(|info| client::info_is_json(&info));
        let Some(session) = self.session_of(out.net, index) else { return Ok(()) };
        session.unanswered += 1;
        out.post.send(
            out.cx,
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
    fn request_read<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        asker: Asker,
        channel: &str,
        namespace: u16,
        reading: session::Reading,
    ) -> Result<(), Stop> {
        let index = asker.conn.index;
        let hash = out.cx.node.names.hash(channel);
        let home = out.cx.node.names.home(hash);
        let credits = out.spend(home, reading.credits())?;
        let encoding = out.net.encoding(index);
        let Some(session) = self.session_of(out.net, index) else { return Ok(()) };
        session.unanswered += 1;
        let read = Read {
            channel: CompactString::new(channel),
            hash,
            namespace,
            asker: Asker { credits, ..asker },
            encoding,
            bytes_max: out.cx.client.answer_bytes_max(),
            what: match reading {
                session::Reading::Presence => Reading::Presence,
                session::Reading::PresenceStats => Reading::PresenceStats,
                session::Reading::History(page) => Reading::History(page),
            },
        };
        out.post.send(out.cx, home, Mail::Read(Box::new(read)));
        Ok(())
    }

    /// The home has answered a read or a publish.
    pub(crate) fn answered<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        asker: Asker,
        answer: &Answer,
    ) {
        let index = asker.conn.index;
        if !self.takes_answer(out, asker) {
            return;
        }
        let id = asker.command;
        match answer {
            Answer::Presence(body) => {
                let reply = Reply::Presence(Body::Elsewhere(body.len()));
                out.net.reply_around(out.cx, out.codec, index, id, &reply, body);
            }
            Answer::History(body) => {
                let reply = Reply::History(Body::Elsewhere(body.len()));
                out.net.reply_around(out.cx, out.codec, index, id, &reply, body);
            }
            Answer::PresenceStats(clients, users) => {
                let reply = Reply::PresenceStats { clients: *clients, users: *users };
                out.net.reply(out.cx, out.codec, index, id, &reply);
            }
            // Only requests of the control thread have these answers.
            Answer::Done | Answer::Subscribers(_) => {}
            Answer::Error(failure) => {
                let Failure { code, channel } = &**failure;
                let why = asker.method.name();
                self.reply_error(out, side, index, id, ErrorReply::new(*code, channel, why));
            }
            Answer::Unfit => self.inappropriate(out, side, index),
        }
    }

    /// Ends a JSON connection that would get data which isn't JSON; other subscribers get theirs.
    pub(crate) fn inappropriate<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) {
        out.cx.counters().closed_inappropriate.add(1);
        let why = "data that isn't JSON, for a client that speaks JSON";
        self.disconnect_because(out, side, index, Disconnect::InappropriateProtocol, why);
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

impl Clients {
    /// Whether the connection of a request is still there for its answer, which is no longer awaited.
    pub(crate) fn takes_answer<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        asker: Asker,
    ) -> bool {
        let Some(conn) = out.net.conn(asker.conn) else { return false };
        let (waits, at) = (conn.waits, conn.session);
        let Some(session) = self.sessions.get_mut(at as usize) else { return false };
        if session.flags.detached() {
            return false;
        }
        session.unanswered -= 1;
        out.cx.time_answer(asker.method, asker.asked_ms);
        let Some(session) = self.sessions.get_mut(at as usize) else { return false };
        // Half of the answers first, so that what is left of a long message is taken in few parts.
        let few = session.unanswered <= COMMANDS_UNANSWERED_MAX / 2;
        if few && waits.is_some_and(WaitsFor::ends_with_answers) {
            out.net.resume(asker.conn);
        }
        true
    }

    /// Lets some of the connections that wait for credit try again, where there is credit. Each turn
    /// anew, so that credit which one of them has no use for is not lost for the others.
    pub(crate) fn resume_waiting<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
    ) {
        self.send_delayed_calls(out);
        for queue in out.post.queues() {
            if !out.post.is_waited_for(queue) {
                continue;
            }
            let calls = self.call_credits(out.post) as u32;
            let mut allowance = out.post.allowance(queue, calls);
            while let Some((key, needed)) = out.post.next_waiting(queue, &allowance) {
                let Some(conn) = out.net.conn(key) else { continue };
                allowance.use_up(needed);
                conn.flags.set_waiting(false);
                if self.is_connecting(out.net, key.index) {
                    self.go_on_connecting(out, side, key.index);
                } else {
                    out.net.resume(key);
                }
            }
        }
    }
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
}
