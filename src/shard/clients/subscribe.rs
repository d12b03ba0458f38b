//! Subscriptions on the subscriber's side: asked for, answered, refreshed, ended.

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::expiry::Expiry;
use crate::base::filter::FilterNode;
use crate::base::form::Framing;
use crate::base::limits::{CONNECTION_FILTERS_BYTES_MAX, LARGE_ANSWER_CREDITS};
use crate::base::notices::Reason;
use crate::edge::channels::{
    Asked, Granted, Namespace, OWN_CHANNEL, RecoveryMode, Subscriber as Asking,
};
use crate::edge::jwt::{SubOptions, SubscriptionClaims, TokenFault};
use crate::hub::filter::{Filter, FilterId};
use crate::hub::history::Since;
use crate::hub::subscribers::{Subscriber, Traits};
use crate::io::Driver;
use crate::proto::client::{
    Body, Disconnect, ErrorCode, Push, Reply, SubRefreshRequest, SubscribeRequest, SubscribeResult,
    Unsubscribed,
};
use crate::session::{Made, Renewal, ServerSub, Sub, SubFlags, SubState};
use crate::shard::Shard;
use crate::shard::clients::commands::{PROXY_GAVE_NO_RESULT, Stop};
use crate::shard::clients::connect::{asked_by, since_of};
use crate::shard::clients::proxies::{self, AppRequest, AppResult};
use crate::shard::mail::{
    Asker, Mail, Membership, Method, Recover, Recovery, Subscribe, Subscribed, Unsubscribe,
};
use crate::shard::memory::NO_MEMORY;
use crate::shard::net::read::Flow;

/// What a new subscription is to be, before its home is asked.
struct Wish<'a> {
    channel: &'a str,
    namespace: &'a Namespace,
    granted: Granted,
    flags: SubFlags,
    /// `chan_info`, empty for none.
    info: Box<[u8]>,
    /// Data for the result, empty for none.
    data: Box<[u8]>,
    expires: Option<Expiry>,
    filter: Option<Filter>,
    since: Option<Since>,
    /// No reply will tell of it: what was missed comes as pushes.
    unasked: bool,
}

impl<D: Driver> Shard<D> {
    pub(crate) fn subscribe(
        &mut self,
        index: u32,
        asker: Asker,
        request: &SubscribeRequest<'_>,
    ) -> Result<Flow, Stop> {
        let client = Arc::clone(&self.cx.client);
        let channels = Arc::clone(&self.cx.channels);
        let channel: &str = &request.channel;
        if channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest, "a channel without a name"));
        }
        if request.kind == KIND_SHARED_POLL {
            return Err(Stop::Error(ErrorCode::NotAvailable, "shared polls"));
        }
        if !request.delta.is_empty() && request.delta != "fossil" {
            return Err(Stop::Close(Disconnect::BadRequest, "delta: only fossil is known"));
        }
        channels.check_length(channel)?;
        let known = self.local.locals.find(channel);
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        if known.is_some_and(|at| session.subs.find(at).is_some())
            || self.is_reserved(index, channel)
        {
            return Err(Stop::Error(ErrorCode::AlreadySubscribed, ""));
        }
        if self.cx.is_short_for(|counters| &counters.short_subscribe) {
            return Err(Stop::Error(ErrorCode::Internal, NO_MEMORY));
        }
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        if session.subs.len() >= client.channel_limit {
            return Err(Stop::Error(ErrorCode::LimitExceeded, "client.channel_limit"));
        }
        let namespace = channels.resolve(channel)?;
        // Maps: no namespace here is one.
        if request.kind != 0 {
            let why = "no namespace is a map";
            return Err(Stop::Error(ErrorCode::PermissionDenied, why));
        }
        let user = session.user.clone();
        let insecure = client.insecure;
        let now = self.cx.unix;
        let verdict = match request.token.is_empty() {
            true => None,
            false => Some(self.subscription_claims(index, &request.token)?),
        };
        let client_id = match &verdict {
            Some(Ok(claims)) if !claims.client.is_empty() => self.client_id(asker.conn).to_string(),
            _ => String::new(),
        };
        let asking = Asking { user: &user, client: &client_id, insecure };
        let proxy = channels.subscribe_proxy(namespace, channel, &user);
        let told = match proxy.filter(|_| verdict.is_none()) {
            None => {
                channels.may_subscribe(namespace, channel, asking, verdict.as_ref(), now)?;
                None
            }
            Some(proxy) => {
                let answer = self.ask_application(index, asker.command, proxy, || {
                    let data = request.data.as_ref().map_or(&b""[..], |data| data.bytes());
                    AppRequest::Subscribe {
                        channel: CompactString::new(channel),
                        data: data.into(),
                    }
                })?;
                // Without a result the application has not allowed it.
                let result = proxies::verdict(&answer)?.ok_or(PROXY_GAVE_NO_RESULT)?;
                let AppResult { claims, data, overrides, .. } = result;
                Some(SubOptions {
                    info: claims.info.clone(),
                    data: data.clone(),
                    overrides: *overrides,
                    expire_at: claims.expire_at,
                })
            }
        };
        let is_told = told.is_some();
        let options = told.or_else(|| {
            let SubscriptionClaims { info, data, overrides, expire_at, .. } =
                verdict.and_then(Result::ok)?;
            Some(SubOptions { info, data, overrides, expire_at })
        });
        let is_past = |of: &SubOptions| of.expire_at.is_some_and(|at| Expiry::at(at).is_past(now));
        if is_told && options.as_ref().is_some_and(is_past) {
            return Err(Stop::Error(ErrorCode::Expired, "expire_at of the proxy: past"));
        }
        let filter = match &request.tf {
            Some(node) => Some(filter(namespace, node)?),
            None => None,
        };
        let overrides = options.as_ref().map(|options| &options.overrides);
        // Where the application decides, what the client asks for on top is not looked at.
        let asked = if is_told { Asked::default() } else { asked_by(request) };
        let granted = namespace.grant(asked, &user, insecure, overrides);
        let mut flags = SubFlags::default();
        // What a filter keeps back is no base that a patch could build on.
        flags.set_delta(
            request.delta == "fossil" && namespace.delta_allowed && request.tf.is_none(),
        );
        flags.set_recovering(request.recover);
        flags.set_strict(request.flag & FLAG_STRICT_RECOVERY != 0);
        let SubOptions { expire_at, info, data, .. } = options.unwrap_or_default();
        if !self.may_show(index, data.as_deref().unwrap_or_default()) {
            self.inappropriate(index);
            return Ok(Flow::End);
        }
        let wish = Wish {
            channel,
            namespace,
            granted,
            flags,
            info: info.unwrap_or_default(),
            data: data.unwrap_or_default(),
            expires: expire_at.map(Expiry::at),
            filter,
            since: request.recover.then(|| since_of(request)),
            unasked: false,
        };
        self.ask_for(index, asker, wish)?;
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        session.unanswered += 1;
        self.schedule(index);
        Ok(Flow::On)
    }

    /// Asks for a subscription that the server makes.
    pub(crate) fn subscribe_by_server(
        &mut self,
        index: u32,
        asker: Asker,
        sub: &ServerSub,
    ) -> Result<(), Stop> {
        let insecure = self.cx.client.insecure;
        let channels = self.cx.channels_with(sub.namespace);
        let namespace = channels.namespace(sub.namespace);
        let Some(session) = self.session_of(index) else { return Ok(()) };
        let unasked = session.connecting().is_none();
        let user = session.user.clone();
        let mut granted = namespace.grant(sub.asked, &user, insecure, Some(&sub.overrides));
        if self.net.form(index).is_poll() {
            // Nobody comes and goes with each request.
            (granted.presence, granted.announces, granted.join_leave) = (false, false, false);
        }
        let mut flags = SubFlags::default();
        flags.set_server(true);
        flags.set_hidden(sub.channel == OWN_CHANNEL);
        flags.set_token(sub.by_token);
        flags.set_delta(sub.delta && namespace.delta_allowed);
        flags.set_recovering(sub.since.is_some());
        let wish = Wish {
            channel: &sub.channel,
            namespace,
            granted,
            flags,
            info: sub.info.clone(),
            data: sub.data.clone(),
            expires: sub.expires,
            filter: None,
            since: sub.since.clone(),
            unasked,
        };
        self.ask_for(index, asker, wish)?;
        self.schedule(index);
        if let Some(session) = self.session_of(index)
            && let Some(connecting) = session.connecting()
        {
            connecting.awaited += 1;
        }
        Ok(())
    }

    /// Asks the home for a subscription. From here on the session has it, as joining.
    fn ask_for(&mut self, index: u32, asker: Asker, wish: Wish<'_>) -> Result<(), Stop> {
        let Wish { channel, namespace, granted, mut flags, info, data, expires, filter, .. } = wish;
        let (since, as_pushes) = (wish.since, wish.unasked);
        flags.set_positioned(granted.positioned);
        flags.set_recoverable(granted.recoverable);
        flags.set_joins(granted.join_leave);
        flags.set_member(granted.presence || granted.announces);
        flags.set_plain(namespace.uncompressed);
        let latest = namespace.recovery_mode == RecoveryMode::Cache;
        let since = match since {
            None if granted.recoverable && latest && namespace.auto_cache_recover => {
                flags.set_recovering(true);
                Some(Since::default())
            }
            since => since.filter(|_| granted.recoverable),
        };
        let hash = self.cx.node.names.hash(channel);
        let home = self.cx.node.names.home(hash);
        let credits = self.spend(home, if since.is_some() { LARGE_ANSWER_CREDITS } else { 1 })?;
        let recover = since.map(|since| {
            let bytes_max = self.answer_bytes_max();
            Box::new(Recover { since, latest, filter: filter.clone(), bytes_max, as_pushes })
        });
        let filter = match filter.map(|filter| self.hold_filter(index, filter)) {
            None => None,
            Some(Some(id)) => Some(id),
            Some(None) => {
                self.post.earn(home, credits);
                let why = "too many tag filters on this connection or shard";
                return Err(Stop::Error(ErrorCode::LimitExceeded, why));
            }
        };
        let membership = flags.member().then(|| {
            let info = self.client_info(asker.conn, &info);
            let Granted { presence: present, announces, .. } = granted;
            Box::new(Membership { info, present, announces })
        });
        let local = self.local.locals.find_or_insert(channel, namespace.index);
        let serial = self.local.next_serial;
        self.local.next_serial = serial.wrapping_add(1);
        if let Some(record) = self.local.locals.get(local) {
            record.claims += 1;
            record.asked += 1;
        }
        let traits = self.traits(index, flags);
        let Some(session) = self.session_of(index) else { return Ok(()) };
        session.subs.push(Sub { channel: local, place: serial, state: SubState::Joining, flags });
        if expires.is_some() || !info.is_empty() || !data.is_empty() || filter.is_some() {
            let extra = session.sub_extra_or_new(local);
            (extra.expires, extra.info, extra.data, extra.filter) = (expires, info, data, filter);
            if namespace.sub_refresh_proxy.is_some() {
                extra.renewal = Renewal::Server;
            }
        }
        if !flags.hidden() {
            self.cx.counters().subscriptions.add(1);
        }
        self.post.send(
            &self.cx,
            home,
            Mail::Subscribe(Box::new(Subscribe {
                channel: CompactString::new(channel),
                hash,
                namespace: namespace.index,
                local,
                asker: Asker { credits, ..asker },
                serial,
                traits,
                recover,
                membership,
            })),
        );
        Ok(())
    }

    /// What a subscription of a connection gets of its channel.
    pub(crate) fn traits(&self, index: u32, flags: SubFlags) -> Traits {
        let form = self.net.form(index);
        let form = match form.framing().window_bits() {
            Some(_) if flags.plain() && form.is_one_way() => {
                form.with_framing(Framing::WebSocketSingle)
            }
            Some(_) if flags.plain() => form.with_framing(Framing::WebSocket),
            _ => form,
        };
        let form = form.subscriber(flags.delta(), flags.positioned());
        Traits::new(form).with_positioned(flags.positioned()).with_joins(flags.joins())
    }

    /// The home has a new subscriber: from here on it gets what is published.
    pub(crate) fn subscribed(&mut self, subscribed: &Subscribed) {
        let Subscribed { local, asker, serial, position, recovery, fresh } = subscribed;
        let (local, index) = (*local, asker.conn.index);
        if let Some(record) = self.local.locals.get(local) {
            record.asked -= 1;
        }
        let session = match self.net.conn(asker.conn) {
            Some(conn) => {
                let at = conn.session;
                self.clients.sessions.get_mut(at as usize)
            }
            None => None,
        };
        let Some(session) = session else { return self.local.locals.release(local) };
        let mine = |sub: &&mut Sub| sub.state == SubState::Joining && sub.place == *serial;
        let Some(sub) = session.subs.find(local).filter(mine).map(|sub| *sub) else {
            // The client has unsubscribed since: the reply goes out all the same, if it asked.
            if asker.method == Method::Subscribe && self.takes_answer(*asker) {
                let result = SubscribeResult::default();
                self.net.reply(
                    &self.cx,
                    &mut self.codec,
                    index,
                    asker.command,
                    &Reply::Subscribe(result),
                );
            }
            return self.local.locals.release(local);
        };
        if matches!(recovery, Recovery::Unfit) {
            return self.inappropriate(index);
        }
        if matches!(recovery, Recovery::Failed) && sub.flags.strict() {
            // As if it had never been there: the home is told, the client gets the error.
            let channel = self.local.locals.get(local).map(|record| record.name.clone());
            self.undo(index, local);
            if self.takes_answer(*asker) {
                let (code, channel) =
                    (ErrorCode::UnrecoverablePosition, channel.unwrap_or_default());
                let (id, temporary, why) = (asker.command, code.temporary(), "subscribe");
                self.reply_error_because(index, id, code, temporary, &channel, why);
            }
            return;
        }
        let filter = session.sub_extra(local).and_then(|extra| extra.filter);
        if self.local.locals.is_elsewhere(local, *position) {
            // There is one place for all: nobody may seem to have what only the new one has.
            self.end_positioned(local);
        }
        let traits = self
            .traits(index, sub.flags)
            .with_fresh(*fresh)
            .with_filter(filter.map_or(0, FilterId::get));
        if let Some(record) = self.local.locals.get(local) {
            let place = record.subscribers.add(Subscriber { conn: index, traits });
            if let Some(session) = self.session_of(index)
                && let Some(sub) = session.subs.find(local)
            {
                (sub.place, sub.state) = (place, SubState::Live);
            }
            self.local.locals.begin_at(local, *position);
        }
        let made = self.made_of(index, local, sub.flags, subscribed);
        if sub.flags.server() {
            return self.made(index, made);
        }
        if !self.takes_answer(*asker) {
            return;
        }
        let now = self.cx.unix;
        let extra = self.session_of(index).and_then(|session| session.sub_extra(local));
        let extra = extra.filter(|extra| extra.renewal == Renewal::Client);
        let expires = extra.and_then(|extra| extra.expires);
        let ttl = expires.map(|expires| expires.ttl(now));
        let list = made.publications.as_ref();
        let reply = Reply::Subscribe(SubscribeResult {
            expires: ttl.is_some(),
            ttl: ttl.unwrap_or(0),
            publications: list.map_or(Body::Here(b""), |list| Body::Elsewhere(list.len())),
            ..made.result()
        });
        match list {
            Some(list) => {
                self.net.reply_around(&self.cx, &mut self.codec, index, asker.command, &reply, list)
            }
            None => self.net.reply(&self.cx, &mut self.codec, index, asker.command, &reply),
        }
    }

    /// What came of a subscription, as its result says it.
    fn made_of(
        &mut self,
        index: u32,
        local: u32,
        flags: SubFlags,
        subscribed: &Subscribed,
    ) -> Made {
        let Subscribed { position, recovery, .. } = subscribed;
        let channel =
            self.local.locals.get(local).map(|local| local.name.clone()).unwrap_or_default();
        let session = self.session_of(index);
        let data = session
            .and_then(|session| Some(std::mem::take(&mut session.sub_extra_mut(local)?.data)))
            .unwrap_or_default();
        let positioned = flags.positioned();
        let epoch = position.epoch.filter(|_| positioned);
        let (recovered, publications, offset) = match recovery {
            Recovery::Done { publications, offset } => (true, publications.clone(), *offset),
            _ => (false, None, position.offset),
        };
        Made {
            channel,
            recoverable: flags.recoverable(),
            positioned,
            epoch: epoch.map(|epoch| epoch.as_str().into()).unwrap_or_default(),
            offset: if positioned { offset } else { 0 },
            was_recovering: flags.recovering(),
            recovered,
            publications,
            delta: flags.delta(),
            data,
        }
    }

    /// Takes back a subscription that its home has just made.
    fn undo(&mut self, index: u32, local: u32) {
        let Some(session) = self.session_of(index) else { return };
        let Some(mut sub) = session.subs.remove(local) else { return };
        self.forget_sub(index, local);
        self.leave_list(&mut sub);
        self.leave_home(index, &sub, None);
    }

    pub(crate) fn unsubscribe(
        &mut self,
        index: u32,
        asker: Asker,
        channel: &str,
    ) -> Result<Flow, Stop> {
        if channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest, "a channel without a name"));
        }
        let known = self.local.locals.find(channel);
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        let Some(local) = known.filter(|at| session.subs.find(*at).is_some()) else {
            self.net.reply(&self.cx, &mut self.codec, index, asker.command, &Reply::Unsubscribe);
            return Ok(Flow::On);
        };
        let home = self.cx.node.names.home(self.cx.node.names.hash(channel));
        let credits = self.spend(home, 1)?;
        // Out of the list at once; a subscribe in flight is undone behind its answer.
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        let Some(mut sub) = session.subs.remove(local) else { return Ok(Flow::On) };
        session.unanswered += 1;
        self.forget_sub(index, local);
        self.leave_list(&mut sub);
        self.leave_home(index, &sub, Some(Asker { credits, ..asker }));
        Ok(Flow::On)
    }

    /// Tells the home that a subscription has ended. `asker` waits for the answer, and has spent the
    /// credit.
    pub(crate) fn leave_home(&mut self, index: u32, sub: &Sub, asker: Option<Asker>) {
        let traits = self.traits(index, sub.flags);
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        let member = sub.flags.member().then(|| conn.key(index));
        let Some(local) = self.local.locals.get(sub.channel) else { return };
        local.claims -= 1;
        local.asked += 1;
        let (home, channel) = (local.home, local.name.clone());
        let unsubscribe = Unsubscribe { local: sub.channel, channel, asker, traits, member };
        self.post.send(&self.cx, home, Mail::Unsubscribe(Box::new(unsubscribe)));
    }

    /// The home has one subscriber less.
    pub(crate) fn unsubscribed(&mut self, local: u32, asker: Option<Asker>) {
        if let Some(record) = self.local.locals.get(local) {
            record.asked -= 1;
        }
        self.local.locals.release(local);
        if let Some(asker) = asker
            && self.takes_answer(asker)
        {
            self.net.reply(
                &self.cx,
                &mut self.codec,
                asker.conn.index,
                asker.command,
                &Reply::Unsubscribe,
            );
        }
    }

    /// Forgets what a session kept for one subscription.
    fn forget_sub(&mut self, index: u32, local: u32) {
        let filter = self.session_of(index).and_then(|session| session.forget_sub(local));
        if let Some(filter) = filter {
            let bytes = self.local.filters.get(filter).bytes();
            self.local.filters.release(filter);
            if let Some(extra) = self.session_of(index).and_then(|s| s.extra.as_mut()) {
                extra.filters_bytes -= bytes;
            }
        }
    }

    /// Keeps a filter for one more subscription of a connection; `None` when that is too much for the
    /// connection or the shard.
    fn hold_filter(&mut self, index: u32, filter: Filter) -> Option<FilterId> {
        let bytes = filter.bytes();
        let extra = self.session_of(index)?.extra();
        if extra.filters_bytes + bytes > CONNECTION_FILTERS_BYTES_MAX {
            return None;
        }
        let id = self.local.filters.intern(filter)?;
        self.session_of(index)?.extra().filters_bytes += bytes;
        Some(id)
    }

    /// Ends a subscription by the server: push, list, home. One that the server made ends with its
    /// connection where the client would have to do something about it.
    pub(crate) fn end_sub(&mut self, index: u32, channel: u32, why: Unsubscribed) {
        let Some(session) = self.session_of(index) else { return };
        let Some(sub) = session.subs.find(channel).map(|sub| *sub) else { return };
        if sub.flags.server() {
            return self.disconnect(
                index,
                match why {
                    Unsubscribed::Expired => Disconnect::SubscriptionExpired,
                    _ => Disconnect::InsufficientState,
                },
            );
        }
        self.take_away(index, channel, why);
    }

    /// Ends a subscription, whoever made it: push, list, home.
    pub(crate) fn take_away(&mut self, index: u32, channel: u32, why: Unsubscribed) {
        let Some(session) = self.session_of(index) else { return };
        let Some(mut sub) = session.subs.remove(channel) else { return };
        self.forget_sub(index, channel);
        self.leave_list(&mut sub);
        let Some(name) = self.local.locals.get(channel).map(|local| local.name.clone()) else {
            return;
        };
        // Not held back by a full outbox: there are at most as many as subscriptions.
        self.leave_home(index, &sub, None);
        let reason = match why {
            Unsubscribed::Expired => Some(Reason::EndExpired),
            Unsubscribed::InsufficientState => Some(Reason::EndInsufficientState),
            _ => None,
        };
        if let Some(reason) = reason {
            self.notice(index, reason, why.code().into(), &name, format_args!(""));
        }
        self.push(index, &name, &Push::Unsubscribe(why));
    }

    pub(crate) fn sub_refresh(
        &mut self,
        index: u32,
        id: u32,
        request: &SubRefreshRequest<'_>,
    ) -> Result<Flow, Stop> {
        if request.channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest, "a channel without a name"));
        }
        let known = self.local.locals.find(&request.channel);
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        let Some(local) = known.filter(|at| session.subs.find(*at).is_some()) else {
            return Err(Stop::Error(ErrorCode::PermissionDenied, "not subscribed"));
        };
        if request.kind != 0 {
            return Err(Stop::Error(ErrorCode::NotAvailable, "subscriptions of that type"));
        }
        // What the application refreshes is not the client's business.
        if session.sub_extra(local).is_some_and(|extra| extra.renewal != Renewal::Client) {
            let why = "sub_refresh where a proxy refreshes";
            return Err(Stop::Close(Disconnect::BadRequest, why));
        }
        if request.token.is_empty() {
            return Err(Stop::Error(ErrorCode::BadRequest, "sub_refresh without a token"));
        }
        let now = self.cx.unix;
        let claims = match self.subscription_claims(index, &request.token)? {
            Ok(claims) => claims,
            // Said to be temporary, so that the client comes back with a new token.
            Err(TokenFault::Expired(why)) => {
                return Err(Stop::TemporaryError(ErrorCode::TokenExpired, why));
            }
            Err(TokenFault::Invalid(why)) => {
                return Err(Stop::Close(Disconnect::InvalidToken, why));
            }
        };
        let key = self.net.conns[index as usize].key(index);
        let client_id = self.client_id(key).to_string();
        let Some(session) = self.session_of(index) else { return Ok(Flow::On) };
        let for_client = claims.client.is_empty() || claims.client == client_id;
        if claims.user != session.user || claims.channel != request.channel || !for_client {
            let why = "sub, channel or client: the token is for another one";
            return Err(Stop::Close(Disconnect::InvalidToken, why));
        }
        if claims.is_past(now) {
            return Err(Stop::Error(ErrorCode::Expired, "expire_at: past"));
        }
        let expires = claims.expire_at.map(Expiry::at);
        if expires.is_some() || session.sub_extra(local).is_some() {
            session.sub_extra_or_new(local).expires = expires;
        }
        let ttl = expires.map(|expires| expires.ttl(now));
        self.net.reply(&self.cx, &mut self.codec, index, id, &Reply::SubRefresh { ttl });
        self.schedule(index);
        Ok(Flow::On)
    }
}

/// `SubscribeRequest.type` of what the server polls for its subscribers.
const KIND_SHARED_POLL: i32 = 4;

/// Bit 1 of `SubscribeRequest.flag`: error 112 instead of a result that isn't recovered.
const FLAG_STRICT_RECOVERY: i64 = 2;

/// The filter that a request carries (client protocol, section 22).
fn filter(namespace: &Namespace, node: &FilterNode) -> Result<Filter, Stop> {
    if !namespace.allow_tags_filter {
        let why = "tf: allow_tags_filter is off in the namespace";
        return Err(Stop::Error(ErrorCode::BadRequest, why));
    }
    Filter::new(node).map_err(|_| Stop::Error(ErrorCode::BadRequest, "tf: no valid filter"))
}
