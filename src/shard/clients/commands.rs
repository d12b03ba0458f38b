//! Commands of clients: each goes to the file that knows it; here is what they share.

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::id::{ConnKey, ShardId};
use crate::base::info::ClientInfo;
use crate::base::limits::{ANSWER_BYTES_MAX, COMMANDS_UNANSWERED_MAX, LARGE_ANSWER_CREDITS};
use crate::base::notices::Reason;
use crate::base::time::Millis;
use crate::edge::channels::{ChannelRules, NameFault, Namespace, Refusal};
use crate::edge::client_id::ClientId;
use crate::edge::proxy::{AppDisconnect, AppError, RpcTarget};
use crate::hub::history::{Page, Since};
use crate::io::Driver;
use crate::proto::client::{
    self, Body, Command, Commands, Disconnect, Encoding, ErrorCode, HistoryRequest, PublishRequest,
    Push, Reply, Request, RpcRequest,
};
use crate::session::{Session, SubState, WaitsFor};
use crate::shard::Shard;
use crate::shard::clients::proxies::{AppAnswer, AppRequest, verdict};
use crate::shard::mail::{
    Answer, Asker, Failure, Mail, Method, Publish, PublishOptions, Read, Reading,
};
use crate::shard::memory::NO_MEMORY;
use crate::shard::net::read::Flow;
use crate::shard::net::record::Phase;
use crate::shard::notices::{Cut, reason_of_error};

/// How a command ends that isn't simply answered.
pub(crate) enum Stop {
    /// An error in the reply, and a detail for the log; the connection goes on.
    Error(ErrorCode, &'static str),
    /// The same, said to be temporary whatever the error.
    TemporaryError(ErrorCode, &'static str),
    /// The connection is closed; a detail for the log.
    Close(Disconnect, &'static str),
    /// Nothing was done: the command is handled again once that answer is there.
    Wait(WaitsFor),
    /// Nothing was done: the application is called, and later commands go on. The number of the
    /// deferred command.
    Defer(u32),
    /// An error of the application's.
    AppError(AppError),
    /// The application closes the connection.
    AppClose(AppDisconnect),
}

impl From<ErrorCode> for Stop {
    fn from(code: ErrorCode) -> Self {
        Self::Error(code, "")
    }
}

impl From<Disconnect> for Stop {
    fn from(why: Disconnect) -> Self {
        Self::Close(why, "")
    }
}

impl From<NameFault> for Stop {
    fn from(fault: NameFault) -> Self {
        match fault {
            NameFault::Unknown => {
                Self::Error(ErrorCode::UnknownChannel, "no namespace of that name is configured")
            }
            NameFault::TooLong => {
                Self::Error(ErrorCode::BadRequest, "the name is longer than channel.max_length")
            }
            NameFault::BadName => {
                Self::Error(ErrorCode::BadRequest, "the name is not ASCII, or not as channel_regex")
            }
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::PermissionDenied(why) => Self::Error(ErrorCode::PermissionDenied, why),
            Refusal::BadRequest(why) => Self::Error(ErrorCode::BadRequest, why),
            Refusal::TokenExpired(why) => Self::Error(ErrorCode::TokenExpired, why),
            Refusal::Expired(why) => Self::Error(ErrorCode::Expired, why),
            Refusal::InvalidToken(why) => Self::Close(Disconnect::InvalidToken, why),
        }
    }
}

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
        let conn = &self.net.conns[index as usize];
        let id = command.id;
        let Some(session) = self.clients.sessions.get_mut(conn.session as usize) else {
            return match &command.request {
                Request::Connect(request) if conn.phase == Phase::Client && id > 0 => {
                    self.cx.counters().count_command(&command.request);
                    let result = self.connect(index, id, request);
                    self.finish_command(index, id, "", result)
                }
                _ => self.bad_request(index, "the first command is not connect"),
            };
        };
        if let Request::Pong = command.request {
            if !session.flags.pong_due() || conn.flags.frame_ping() {
                return self.bad_request(index, "a pong without a ping");
            }
            session.flags.set_pong_due(false);
            self.cx.counters().pongs.add(1);
            return Flow::On;
        }
        // `connect` is the one barrier.
        if session.connecting().is_some() {
            return self.pause(index, WaitsFor::Broker);
        }
        if session.unanswered >= COMMANDS_UNANSWERED_MAX {
            return self.pause(index, WaitsFor::EarlierCommands);
        }
        // What ends or renews something waits for what is to begin.
        let follows = matches!(
            command.request,
            Request::Unsubscribe(_) | Request::Refresh(_) | Request::SubRefresh(_)
        );
        if follows && self.clients.asides.deferred(index) > 0 {
            return self.pause(index, WaitsFor::EarlierCommands);
        }
        let unanswered = session.unanswered;
        self.cx.counters().count_command(&command.request);
        let method = Method::of(&command.request);
        let asked_ms = self.began_ms(index);
        let asker = Asker {
            command: id,
            method,
            asked_ms,
            ..Asker::of(self.net.conns[index as usize].key(index))
        };
        let result = match &command.request {
            Request::Subscribe(request) => self.subscribe(index, asker, request),
            Request::Unsubscribe(request) => self.unsubscribe(index, asker, &request.channel),
            Request::Publish(request) => self.publish(index, asker, request),
            Request::Presence(request) => {
                self.presence(index, asker, &request.channel, Reading::Presence)
            }
            Request::PresenceStats(request) => {
                self.presence(index, asker, &request.channel, Reading::PresenceStats)
            }
            Request::History(request) => self.history(index, asker, request),
            Request::Rpc(request) => self.rpc(index, asker, request),
            Request::Send(_) => {
                Err(Stop::Close(Disconnect::NotAvailable, "the command send is not available"))
            }
            Request::Refresh(request) => self.refresh(index, id, request),
            Request::SubRefresh(request) => self.sub_refresh(index, id, request),
            Request::Connect(_) => {
                Err(Stop::Close(Disconnect::BadRequest, "connect on a connected session"))
            }
            Request::Ping | Request::Unknown | Request::Pong => {
                Err(Stop::Close(Disconnect::BadRequest, "an unknown command, or none"))
            }
        };
        // What no home has to be asked about is answered.
        let is_answered = matches!(result, Ok(_) | Err(Stop::Error(..) | Stop::AppError(_)));
        if is_answered && self.session_of(index).is_some_and(|s| s.unanswered == unanswered) {
            self.time_answer(method, asked_ms);
        }
        self.finish_command(index, id, channel_of(&command.request), result)
    }

    pub(crate) fn finish_command(
        &mut self,
        index: u32,
        id: u32,
        channel: &str,
        result: Result<Flow, Stop>,
    ) -> Flow {
        // A reply of the application holds until its command is done.
        if !matches!(result, Err(Stop::Wait(_) | Stop::Defer(_))) {
            self.clients.asides.take(index, |aside| aside.replies.pop_front());
        }
        match result {
            Ok(flow) => flow,
            Err(Stop::Error(code, why)) => {
                self.reply_error_because(index, id, code, code.temporary(), channel, why);
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
                    self.wait_for_credit(index, home);
                }
                self.pause(index, waits)
            }
            Err(Stop::Defer(ticket)) => Flow::Defer(ticket),
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

    /// Puts a connection on the list of those that wait for credit at a home.
    pub(crate) fn wait_for_credit(&mut self, index: u32, home: ShardId) {
        let conn = &mut self.net.conns[index as usize];
        if !conn.flags.waiting() {
            conn.flags.set_waiting(true);
            self.post.wait_for_credit(home, conn.key(index));
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

    /// What others see of a connection: packed. `chan_info` is what belongs to the channel.
    pub(crate) fn client_info(&mut self, key: ConnKey, chan_info: &[u8]) -> Box<[u8]> {
        let client = self.client_id(key).text();
        let Some(session) = self.session_of(key.index) else { return Box::default() };
        let (user, conn_info) = (session.user.as_str(), session.info());
        ClientInfo { user, client: client.as_str(), conn_info, chan_info }.pack()
    }

    /// The namespace of a channel that a command names.
    fn namespace<'n>(channels: &'n ChannelRules, channel: &str) -> Result<&'n Namespace, Stop> {
        if channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest, "a channel without a name"));
        }
        Ok(channels.resolve(channel)?)
    }

    /// Takes credits for a request to `home`: what the answer may need.
    pub(crate) fn spend(&mut self, home: ShardId, credits: u8) -> Result<u8, Stop> {
        self.post.spend(home, credits).ok_or(Stop::Wait(WaitsFor::Credit(home)))
    }

    /// Whether a session is subscribed to a channel, or about to be.
    fn is_subscribed(&mut self, index: u32, channel: &str) -> bool {
        let known = self.local.locals.find(channel);
        let Some(session) = self.session_of(index) else { return false };
        let sub = known.and_then(|at| session.subs.find(at));
        matches!(sub, Some(sub) if sub.state != SubState::Owed)
    }

    fn publish(
        &mut self,
        index: u32,
        asker: Asker,
        request: &PublishRequest<'_>,
    ) -> Result<Flow, Stop> {
        let node = Arc::clone(&self.cx.node);
        let insecure = self.cx.client.insecure;
        let channels = Arc::clone(&self.cx.channels);
        let channel: &str = &request.channel;
        let namespace = Self::namespace(&channels, channel)?;
        if request.kind != 0 {
            return Err(Stop::Error(ErrorCode::NotAvailable, "publications of that type"));
        }
        if self.cx.is_short_for(|counters| &counters.short_publish) {
            return Err(Stop::Error(ErrorCode::Internal, NO_MEMORY));
        }
        let data = request.data.as_ref().map_or(&b""[..], |data| data.bytes());
        let speaks_json = self.net.encoding(index) == Encoding::Json;
        let is_json = !data.is_empty() && (speaks_json || client::is_json(data));
        let subscribed = self.is_subscribed(index, channel);
        let known = self.local.locals.find(channel);
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        let user = session.user.clone();
        let told = match &namespace.publish_proxy {
            None => {
                namespace.may_publish(&user, subscribed, insecure, data, is_json)?;
                None
            }
            Some(proxy) => {
                namespace.check_data(data, is_json)?;
                let answer = self.ask_application(index, asker.command, proxy, || {
                    AppRequest::Publish { channel: CompactString::new(channel), data: data.into() }
                })?;
                // Without a result the application has not allowed it.
                verdict(&answer)?.ok_or(PROXY_GAVE_NO_RESULT)?;
                Some(answer)
            }
        };
        let told = match told.as_deref() {
            Some(AppAnswer::Result(result)) => Some(&**result),
            _ => None,
        };
        // What the application gives in place of it is judged as what is published, too.
        let (data, is_json) = match told.and_then(|result| result.data.as_deref()) {
            Some(data) => {
                let is_json = client::is_json(data);
                namespace.check_data(data, is_json)?;
                (data, is_json)
            }
            None => (data, is_json),
        };
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        let chan_info: Box<[u8]> = known
            .and_then(|at| session.sub_extra(at))
            .map(|extra| extra.info.clone())
            .unwrap_or_default();
        let hash = node.names.hash(channel);
        let home = node.names.home(hash);
        let credits = self.spend(home, 1)?;
        let info = self.client_info(asker.conn, &chan_info);
        let is_json =
            is_json && ClientInfo::unpack(&info).is_none_or(|info| client::info_is_json(&info));
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        session.unanswered += 1;
        self.post.send(
            &self.cx,
            home,
            Mail::Publish(Box::new(Publish {
                channel: CompactString::new(channel),
                hash,
                namespace: namespace.index,
                asker: Some(Asker { credits, ..asker }),
                data: data.into(),
                info,
                tags: told.map(|result| (&*result.tags).into()).unwrap_or_default(),
                is_json,
                options: told
                    .filter(|result| result.options != PublishOptions::default())
                    .map(|result| Arc::new(result.options.clone())),
            })),
        );
        Ok(Flow::On)
    }

    fn presence(
        &mut self,
        index: u32,
        asker: Asker,
        channel: &str,
        what: Reading,
    ) -> Result<Flow, Stop> {
        let insecure = self.cx.client.insecure;
        let channels = Arc::clone(&self.cx.channels);
        let namespace = Self::namespace(&channels, channel)?;
        if !namespace.presence {
            return Err(Stop::Error(ErrorCode::NotAvailable, "presence is off in the namespace"));
        }
        let subscribed = self.is_subscribed(index, channel);
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        if !namespace.may_read_presence(&session.user, subscribed, insecure) {
            let why = "no allow_presence_for_... option of the namespace allows it";
            return Err(Stop::Error(ErrorCode::PermissionDenied, why));
        }
        self.ask(index, asker, channel, namespace, what)
    }

    fn history(
        &mut self,
        index: u32,
        asker: Asker,
        request: &HistoryRequest<'_>,
    ) -> Result<Flow, Stop> {
        let client = Arc::clone(&self.cx.client);
        let channels = Arc::clone(&self.cx.channels);
        let channel: &str = &request.channel;
        let namespace = Self::namespace(&channels, channel)?;
        if !namespace.has_history() {
            let why = "history_size or history_ttl of the namespace is 0";
            return Err(Stop::Error(ErrorCode::NotAvailable, why));
        }
        let subscribed = self.is_subscribed(index, channel);
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        if !namespace.may_read_history(&session.user, subscribed, client.insecure) {
            let why = "no allow_history_for_... option of the namespace allows it";
            return Err(Stop::Error(ErrorCode::PermissionDenied, why));
        }
        let since = request.since.as_ref();
        if request.reverse && since.is_some_and(|since| since.offset == 0) {
            return Err(Stop::Error(ErrorCode::BadRequest, "reverse since offset 0"));
        }
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let page = Page {
            since: since.map(|since| Since {
                offset: since.offset,
                epoch: CompactString::new(&since.epoch),
            }),
            limit: limit.min(client.history_publications_max),
            reverse: request.reverse,
        };
        self.ask(index, asker, channel, namespace, Reading::History(page))
    }

    /// Asks a channel's home for something to be read.
    fn ask(
        &mut self,
        index: u32,
        asker: Asker,
        channel: &str,
        namespace: &Namespace,
        what: Reading,
    ) -> Result<Flow, Stop> {
        let hash = self.cx.node.names.hash(channel);
        let home = self.cx.node.names.home(hash);
        let credits = match &what {
            Reading::PresenceStats => 1,
            Reading::History(page) if page.limit == 0 => 1,
            _ => LARGE_ANSWER_CREDITS,
        };
        let credits = self.spend(home, credits)?;
        let encoding = self.net.encoding(index);
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        session.unanswered += 1;
        let read = Read {
            channel: CompactString::new(channel),
            hash,
            namespace: namespace.index,
            asker: Asker { credits, ..asker },
            encoding,
            bytes_max: self.answer_bytes_max(),
            what,
        };
        self.post.send(&self.cx, home, Mail::Read(Box::new(read)));
        Ok(Flow::On)
    }

    /// Bytes of one answer at most: what may wait for a client, with room for the rest of the reply.
    pub(crate) fn answer_bytes_max(&self) -> usize {
        let queue_bytes_max = self.cx.client.queue_bytes_max;
        (queue_bytes_max - queue_bytes_max / 8).min(ANSWER_BYTES_MAX)
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

    /// A call to the application.
    fn rpc(&mut self, index: u32, asker: Asker, request: &RpcRequest<'_>) -> Result<Flow, Stop> {
        let rules = self.cx.node.rules.rpc.load();
        let method: &str = &request.method;
        let proxy = match rules.target(method) {
            RpcTarget::Ping => {
                self.net.reply(
                    &self.cx,
                    &mut self.codec,
                    index,
                    asker.command,
                    &Reply::Rpc { data: b"" },
                );
                return Ok(Flow::On);
            }
            RpcTarget::NotFound => {
                return Err(Stop::Error(ErrorCode::MethodNotFound, "no such rpc method"));
            }
            RpcTarget::NotAvailable => {
                return Err(Stop::Error(ErrorCode::NotAvailable, "no rpc proxy is configured"));
            }
            RpcTarget::Proxy(proxy) => Arc::clone(proxy),
        };
        drop(rules);
        let data = request.data.as_ref().map_or(&b""[..], |data| data.bytes());
        let answer = self.ask_application(index, asker.command, &proxy, || AppRequest::Rpc {
            method: CompactString::new(method),
            data: data.into(),
        })?;
        let data = verdict(&answer)?.and_then(|result| result.data.as_deref()).unwrap_or_default();
        if data.len() > self.answer_bytes_max() {
            let why = "the result of the rpc is longer than what may wait for a client";
            return Err(Stop::Error(ErrorCode::LimitExceeded, why));
        }
        if !self.may_show(index, data) {
            self.inappropriate(index);
            return Ok(Flow::End);
        }
        self.net.reply(&self.cx, &mut self.codec, index, asker.command, &Reply::Rpc { data });
        Ok(Flow::On)
    }

    /// Whether a connection can be shown this.
    pub(crate) fn may_show(&self, index: u32, data: &[u8]) -> bool {
        data.is_empty() || self.net.encoding(index) == Encoding::Protobuf || client::is_json(data)
    }
}

/// An answer of the application without a result: it has not allowed the command.
pub(crate) const PROXY_GAVE_NO_RESULT: Stop =
    Stop::Error(ErrorCode::PermissionDenied, "the proxy's answer has no result");

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
