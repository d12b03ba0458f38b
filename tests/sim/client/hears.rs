//! Messages to a client, and whether they are allowed.

use std::collections::{BTreeMap, BTreeSet};

use roost::edge::address_limits::AddressOptions;
use roost::edge::channels::RecoveryMode;
use roost::io::sim::LinkId;
use roost::proto::http;
use roost::proto::ws::{self, Event, ReadRules};

use super::{Ask, Client, Had, Over, Pending, Phase, Scene, Shown, State, What};
use crate::checker::{Begin, End, Wanted};
use crate::plan::Kind;
use crate::wire::{self, Command, ConnectResult, HistoryResult, Push, Reply, SubscribeResult};

impl Client {
    pub(super) fn handle_bytes(
        &mut self,
        scene: &mut Scene<'_>,
        bytes: Vec<u8>,
    ) -> Result<(), String> {
        let mut bytes = bytes;
        if !self.over.is_websocket() {
            return self.handle_http(scene, &bytes);
        }
        if self.state == State::Upgrading {
            self.head.extend_from_slice(&bytes);
            match http::parse_upgrade_response(&self.head, &self.key) {
                Ok(None) => return Ok(()),
                Ok(Some(len)) => {
                    bytes = self.head.split_off(len);
                    self.head.clear();
                    let echo = self.kind == Kind::Echo;
                    self.state = if echo { State::Online } else { State::Connecting };
                    self.since = scene.world.now().0;
                    self.say(scene, "upgraded");
                }
                Err(http::UpgradeRefused::Status(status)) => return self.refused_by(scene, status),
                Err(fault) => return Err(format!("{fault}: {:?}", self.head)),
            }
        } else if !self.head.is_empty() {
            // The body of a refusal.
            return Ok(());
        }
        let mut reader = std::mem::take(&mut self.reader);
        let deflate = matches!(self.over, Over::Deflated(_));
        let rules = ReadRules { masked: false, deflate, message_bytes_max: 1 << 24 };
        let mut at = 0;
        loop {
            match reader.next(&rules, &mut bytes, &mut at) {
                Ok(Some(event)) => {
                    if self.closed.is_some() {
                        return Err(format!("this came behind the close frame: {event:?}"));
                    }
                    self.handle_event(scene, event)?;
                }
                Ok(None) => break,
                Err(fault) => return Err(format!("the server broke RFC 6455: {fault}")),
            }
        }
        self.reader = reader;
        Ok(())
    }

    pub(super) fn refused_by(&mut self, scene: &mut Scene<'_>, status: u16) -> Result<(), String> {
        self.say(scene, format!("refused with {status}"));
        let expected = match status {
            503 => (scene.plan.crowded && !scene.plan.ample) || scene.draining,
            429 => scene.plan.address_limits != AddressOptions::default(),
            other if self.refusal == Some(other) => true,
            500 => scene.plan.sheds(),
            408 => self.kind == Kind::Loris || !scene.plan.roomy,
            _ => false,
        };
        if !expected {
            return Err(format!("refused with {status}"));
        }
        // The body, and then the end, are read.
        self.state = State::Leaving;
        self.left = true;
        if let Some(link) = self.link {
            scene.world.shut(link);
        }
        Ok(())
    }

    pub(super) fn handle_event(
        &mut self,
        scene: &mut Scene<'_>,
        event: Event<'_>,
    ) -> Result<(), String> {
        match event {
            Event::Message { data, .. } if self.kind == Kind::Echo => {
                match self.echoes.pop_front() {
                    Some(sent) if sent == *data => Ok(()),
                    _ => Err("an echo of something else".into()),
                }
            }
            Event::Message { deflated: true, data, .. } => {
                let mut inflated = Vec::new();
                let done = self.inflater.inflate(data, 1 << 24, &mut inflated);
                done.map_err(|fault| format!("{fault:?}"))?;
                self.messages(scene, &inflated)
            }
            Event::Message { data, .. } => self.messages(scene, data),
            Event::Ping(payload) => {
                let payload = payload.to_vec();
                if self.kind != Kind::Mute && self.state != State::Leaving {
                    self.frame(ws::PONG, &payload);
                }
                Ok(())
            }
            Event::Pong(_) => Ok(()),
            Event::Close { code, .. } => {
                self.say(scene, format!("closed with {code:?}"));
                if self.told.is_some() && self.told != code {
                    return Err(format!("told of {:?}, and closed with {code:?}", self.told));
                }
                if self.over == Over::UniWebSocket && self.told.is_none() && !self.left {
                    return Err("closed, and not told".into());
                }
                self.closed = Some(code.unwrap_or(1005));
                if !self.left {
                    self.frame(ws::CLOSE, &code.unwrap_or(1000).to_be_bytes());
                }
                self.state = State::Leaving;
                self.since = scene.world.now().0;
                self.check_close(scene, code.unwrap_or(1005))
            }
        }
    }

    /// Closed by something that was ordered in a step: publications that were acknowledged before have
    /// come. A poll leaves them to the next one.
    fn check_overtaken(&self, scene: &mut Scene<'_>, given: Option<u64>) {
        let given = given.filter(|_| self.over != Over::LongPoll);
        let open = self.channels.values().filter(|known| !known.leaving);
        for segment in open.filter_map(|known| known.open) {
            given.into_iter().for_each(|step| scene.history.overtaken(segment, step));
        }
    }

    pub(super) fn check_close(&self, scene: &mut Scene<'_>, code: u16) -> Result<(), String> {
        let tight = !scene.plan.roomy;
        let slow = tight || self.kind == Kind::Slow;
        // The id of a poll is known when it is answered, and then its session is over.
        let id = if self.over == Over::LongPoll { "" } else { &self.id };
        if let Some(meant) = scene.history.orders.meant(code, self.user.as_deref(), id) {
            return match meant && scene.phase <= Phase::Heal {
                true => {
                    let given = scene.history.orders.given(code);
                    self.check_overtaken(scene, given);
                    Ok(())
                }
                false => Err(format!("closed with {code}, which was meant for another session")),
            };
        }
        let may = match code {
            1000 => self.left,
            3001 => {
                let given = scene.history.drains;
                self.check_overtaken(scene, given);
                scene.draining
            }
            // Told in place of error 100.
            3004 => scene.plan.sheds(),
            3008 => slow,
            // All places were taken between its upgrade and its connect.
            3013 => scene.plan.crowded,
            3012 if slow || self.kind == Kind::Mute => true,
            // Its pongs go to any shard: to one that stands still, while the one that waits for them runs.
            // And they wait behind commands that the up-link has not taken yet.
            3012 => {
                self.over.has_up_link() && (scene.plan.standstill_ms > 0 || self.up.is_behind())
            }
            // A connection over its user's limit, and one that got data it cannot show.
            3504 => scene.plan.counts_users() && self.user.is_some(),
            3506 => self.risks_binary && !self.protobuf,
            // A gap in a subscription that the server made, or was about to make.
            3010 => tight && !(self.server.is_empty() && self.personal.is_none()),
            3502 => slow || self.kind == Kind::Stale,
            other => self.expected == Some(other),
        };
        let roomy = if tight { "" } else { ", though there is room" };
        if may { Ok(()) } else { Err(format!("closed with {code}{roomy}")) }
    }

    pub(super) fn handle_reply(
        &mut self,
        scene: &mut Scene<'_>,
        reply: Reply,
    ) -> Result<(), String> {
        if reply == Reply::default() {
            if !matches!(self.kind, Kind::Mute) && self.state != State::Leaving {
                if self.frame_ping {
                    return Err("a ping of the protocol, though frames were asked for".into());
                }
                let pong = self.encode(&Command::default());
                self.message(&pong);
            }
            return Ok(());
        }
        if let Some(disconnect) = reply.push.as_ref().and_then(|push| push.disconnect.as_ref()) {
            return self.disconnected(scene, disconnect.code);
        }
        if let Some(push) = reply.push {
            return self.handle_push(scene, push);
        }
        let pending = self.pending.remove(&reply.id).ok_or("a reply that nobody waits for")?;
        if self.state == State::Connecting && !matches!(pending.what, What::Connect(_)) {
            return Err("something came before the reply to connect".into());
        }
        scene.history.presence.heard(&self.id, pending.sent)?;
        if let Some(error) = reply.error {
            return self.handle_error(scene, &pending, u64::from(error.code));
        }
        match pending.what {
            What::Connect(asked) if reply.connect.is_some() => {
                let result = reply.connect.unwrap_or_default();
                self.connected(scene, &asked, result, pending.sent)
            }
            What::Subscribe(channel, ask) if reply.subscribe.is_some() => {
                let result = reply.subscribe.unwrap_or_default();
                self.opened(scene, channel, &ask, result, pending.sent)
            }
            What::Unsubscribe(channel) if reply.unsubscribe.is_some() => {
                // Of several the last one to be answered says that it has left: one that found
                // nothing any more is answered at once.
                let last = self.wants(&channel) && !self.asks_for(&channel);
                let known = self.channels.entry(channel.clone()).or_default();
                let open = known.open.take();
                known.leaving |= open.is_some();
                if known.leaving && last {
                    known.leaving = false;
                    scene.history.presence.left(&channel, &self.id);
                }
                if let Some(open) = open {
                    self.close(scene, &channel, open, End::Gone);
                }
                Ok(())
            }
            What::Publish(publication) if reply.publish.is_some() => {
                scene.history.acked(publication);
                Ok(())
            }
            What::Presence(channel, asked) if reply.presence.is_some() => {
                let mut present = BTreeMap::new();
                for (id, info) in reply.presence.unwrap_or_default().presence {
                    if info.client != id {
                        return Err(format!("{id} is shown as {info:?}"));
                    }
                    present.insert(id, info.user);
                }
                let step = scene.history.step;
                scene.history.presence.shown(&channel, &asked, &self.id, &present, step)?;
                if self.counts_since.is_none_or(|since| pending.sent < since) {
                    return Ok(());
                }
                let known = self.channels.entry(channel).or_default();
                if let Some(Shown { present: before, counts: Some(counts) }) = known.shown.take()
                    && before == present
                {
                    let users: BTreeSet<&String> = present.values().collect();
                    if counts != (present.len() as u32, users.len() as u32) {
                        return Err(format!("{counts:?} are said to be here: {present:?}"));
                    }
                } else {
                    known.shown = Some(Shown { present, counts: None });
                }
                Ok(())
            }
            What::Stats(channel, itself) if reply.presence_stats.is_some() => {
                let stats = reply.presence_stats.unwrap_or_default();
                let (clients, users) = (stats.num_clients, stats.num_users);
                let known = self.channels.entry(channel).or_default();
                let itself = itself && known.open.is_some() && known.wanted;
                if users > clients || (users == 0) != (clients == 0) || itself && clients == 0 {
                    return Err("the counts can't be".into());
                }
                if let Some(shown) = &mut known.shown {
                    shown.counts = Some((clients, users));
                }
                Ok(())
            }
            What::History(request) if reply.history.is_some() => {
                self.read(scene, &request, &reply.history.unwrap_or_default())
            }
            What::Refresh if reply.refresh.is_some() => Ok(()),
            other => Err(format!("{other:?} was answered with something else")),
        }
    }

    /// The connection is there, with the subscriptions that the server makes.
    pub(super) fn connected(
        &mut self,
        scene: &mut Scene<'_>,
        asked: &BTreeMap<String, Ask>,
        result: ConnectResult,
        sent: u64,
    ) -> Result<(), String> {
        if self.state == State::Connecting {
            self.state = State::Online;
        }
        self.since = scene.world.now().0;
        self.id = result.client;
        let (up, lasts) = (self.over.has_up_link(), self.over.is_one_way());
        if result.node.is_empty() == up || result.session.is_empty() == (up || lasts) {
            return Err("ids of session and node, or none".into());
        }
        (self.node, self.session) = (result.node, result.session);
        let user = self.user.clone().unwrap_or_default();
        scene.history.presence.named(&self.id, &user)?;
        if !result.subs.keys().eq(asked.keys()) {
            return Err(format!("the subscriptions are {:?}", result.subs.keys()));
        }
        for (channel, result) in result.subs {
            self.opened(scene, channel.clone(), &asked[&channel], result, sent)?;
        }
        Ok(())
    }

    /// Whether a subscribe to a channel isn't answered yet.
    fn asks_for(&self, channel: &str) -> bool {
        let mut pending = self.pending.values();
        pending.any(|p| matches!(&p.what, What::Subscribe(of, _) if of == channel))
    }

    fn handle_error(
        &mut self,
        scene: &mut Scene<'_>,
        pending: &Pending,
        code: u64,
    ) -> Result<(), String> {
        let no_memory = code == 100 && scene.plan.sheds();
        // The application didn't reply in time before the node was replaced.
        let no_reply =
            code == 100 && scene.plan.is_replaced && matches!(pending.what, What::Publish(_));
        let too_many =
            code == 111 && scene.plan.crowded && matches!(pending.what, What::Connect(_));
        if !pending.errors.contains(&code) && !too_many && !no_memory && !no_reply {
            return Err(format!("{pending:?} failed"));
        }
        match &pending.what {
            What::Connect(_) => self.fail_to_connect(scene),
            What::Subscribe(channel, _) if code == 100 => {
                let (asks, stays) = (self.asks_for(channel), self.wants(channel));
                let known = self.channels.entry(channel.clone()).or_default();
                known.wanted = known.open.is_some() && stays || asks && known.wanted;
            }
            What::Subscribe(channel, ask) if code == 112 => {
                let namespace = scene.plan.namespace(channel);
                if !ask.request.recover && !namespace.auto_cache_recover {
                    return Err("nothing was to be recovered".into());
                }
                // It is as if it had never asked.
                let (asks, stays) = (self.asks_for(channel), self.wants(channel));
                let known = self.channels.entry(channel.clone()).or_default();
                known.wanted = known.open.is_some() && stays || asks && known.wanted;
            }
            _ => {}
        }
        Ok(())
    }

    /// A subscription is there: is it what was asked for?
    pub(super) fn opened(
        &mut self,
        scene: &mut Scene<'_>,
        channel: String,
        ask: &Ask,
        result: SubscribeResult,
        asked: u64,
    ) -> Result<(), String> {
        let namespace = scene.plan.namespace(&channel);
        let request = &ask.request;
        // Undone by an unsubscribe that is on its way.
        let undone = !self.wants(&channel) && result == SubscribeResult::default();
        let reads = namespace.allow_history_for_client;
        let kept = namespace.has_history();
        let recoverable = kept
            && (namespace.force_recovery
                || request.recoverable && (namespace.allow_recovery || reads));
        let positioned = recoverable
            || kept && namespace.force_positioning
            || kept && request.positioned && (namespace.allow_positioning || reads);
        let latest = namespace.recovery_mode == RecoveryMode::Cache;
        let polls = self.over == Over::LongPoll;
        let recovers = request.recover || recoverable && latest && namespace.auto_cache_recover;
        let delta = !request.delta.is_empty() && namespace.delta_allowed && request.tf.is_none();
        let is = (result.recoverable, result.positioned, result.was_recovering, result.delta);
        if !undone && is != (recoverable, positioned, recovers, delta) {
            return Err(format!(
                "{channel}: expected {:?}",
                (recoverable, positioned, recovers, delta)
            ));
        }
        if result.positioned == result.epoch.is_empty() {
            return Err(format!("{channel}: a position without an epoch, or the reverse"));
        }
        let list = result.publications;
        let mut start = Some(result.offset);
        let from = (request.epoch.as_str(), request.offset);
        let top = (result.epoch.as_str(), result.offset);
        if result.recovered && latest {
            if !recovers || list.len() > 1 {
                return Err(format!("{channel}: too much was recovered"));
            }
            if from.1 != top.1 {
                return Err(format!("{channel}: recovered from elsewhere than {from:?}"));
            }
            match list.first() {
                Some(latest) if (top.0, latest.offset) == from => {
                    return Err(format!("{channel}: it has the latest one: {from:?}"));
                }
                Some(latest) => start = Some(latest.offset - 1),
                // The latest one was kept back: where that is isn't told.
                None if request.tf.is_some() => start = None,
                // A poll gets it with the next answer if it found no room.
                None if !polls && (from.0 != top.0 || from.1 == 0) => {
                    return Err(format!("{channel}: not the latest one: {from:?}"));
                }
                None => {}
            }
        } else if result.recovered {
            if !recoverable || !recovers || from.1 != top.1 {
                return Err(format!("{channel}: recovered from elsewhere than {from:?}"));
            }
            if !from.0.is_empty() && from.0 != top.0 {
                return Err(format!("{channel}: recovered in another life than {from:?}"));
            }
        } else if !undone && recovers && recoverable {
            if request.flag & 2 != 0 && !ask.server {
                return Err(format!("{channel}: not recovered, and no error"));
            }
            let wanted = Wanted {
                channel: &channel,
                from,
                top,
                history_size: u64::from(namespace.history_size),
                history_ttl_ms: namespace.history_ttl_ms,
                limit: scene.plan.client.recovery_publications_max as u64,
                bytes_max: scene.plan.answer_bytes_max(),
                bytes_each: scene.plan.publication_bytes_max(),
                latest,
            };
            if !scene.plan.sheds() && scene.history.must_recover(&wanted) {
                return Err(format!("{channel}: not recovered: {wanted:?}"));
            }
        }
        if !result.recovered && !list.is_empty() {
            return Err(format!("{channel}: a list, though nothing was recovered"));
        }
        // Across a change of filters nothing is promised.
        let before = ask.from.filter(|before| {
            result.recovered && !latest && scene.history.filter(*before) == request.tf.as_ref()
        });
        let joins = namespace.force_push_join_leave || request.join_leave && namespace.join_leave;
        let joins = joins && !polls;
        let opened = scene.history.opened(Begin {
            client: self.index,
            client_id: self.id.clone(),
            channel: channel.clone(),
            asked,
            start: start.filter(|_| result.positioned).map(|start| (result.epoch.clone(), start)),
            recovered: result.recovered,
            before,
            filter: request.tf.clone(),
            joins: joins && !undone,
        });
        let wanted = self.wants(&channel);
        if wanted && namespace.presence && !self.id.is_empty() && !polls {
            let user = self.user.clone().unwrap_or_default();
            scene.history.presence.entered(&channel, &self.id, &user, asked);
        }
        let known = self.channels.entry(channel.clone()).or_default();
        if known.open.replace(opened).is_some() {
            return Err(format!("subscribed to {channel} twice"));
        }
        (known.delta, known.base, known.server) = (result.delta, None, ask.server);
        known.leaving = false;
        for publication in list {
            if !publication.epoch.is_empty() {
                return Err("an epoch in a list".into());
            }
            self.take(scene, &channel, publication)?;
        }
        Ok(())
    }

    /// A subscription is over: what it brought may be gone on from.
    pub(super) fn close(&mut self, scene: &mut Scene<'_>, channel: &str, segment: usize, end: End) {
        scene.history.ended(segment, end);
        self.stands(scene, channel, segment);
    }

    /// It has all of a subscription up to here.
    pub(super) fn stands(&mut self, scene: &Scene<'_>, channel: &str, segment: usize) {
        if let Some((epoch, offset)) = scene.history.position(segment) {
            self.had.insert(channel.to_owned(), Had { segment, epoch, offset });
        }
    }

    /// A publication, live or in a list: patched, and held against what was published.
    pub(super) fn take(
        &mut self,
        scene: &mut Scene<'_>,
        channel: &str,
        mut publication: wire::Publication,
    ) -> Result<(), String> {
        let known = self.channels.get_mut(channel).ok_or("a channel it never asked for")?;
        let open = known.open.ok_or("a channel that it isn't subscribed to")?;
        if known.delta {
            if !self.protobuf {
                let text: String = serde_json::from_slice(&publication.data)
                    .map_err(|_| "no string, though it is a subscription with patches")?;
                publication.data = text.into_bytes();
            }
            if publication.delta {
                let base = known.base.as_ref().ok_or("a patch of nothing")?;
                publication.data = fossil_delta::apply(base, &publication.data)
                    .map_err(|fault| format!("a patch doesn't apply: {fault:?}"))?;
                publication.delta = false;
            }
            known.base = Some(publication.data.clone());
        } else if publication.delta {
            return Err("a patch that nobody asked for".into());
        }
        scene.history.delivered(open, &publication)
    }

    /// A part of the history of a channel.
    fn read(
        &mut self,
        scene: &mut Scene<'_>,
        request: &wire::HistoryRequest,
        result: &HistoryResult,
    ) -> Result<(), String> {
        let channel = request.channel.as_str();
        let namespace = scene.plan.namespace(channel);
        let (epoch, top) = (result.epoch.as_str(), result.offset);
        let count = result.publications.len() as u64;
        let most = scene.plan.client.history_publications_max as u64;
        let limit = u64::try_from(request.limit).map_or(most, |limit| limit.min(most));
        if epoch.is_empty() || count > limit || count > u64::from(namespace.history_size) {
            return Err("too much of history, or without an epoch".into());
        }
        if request.since.as_ref().is_some_and(|s| !s.epoch.is_empty() && s.epoch != epoch) {
            return Err("the epoch is another one, and no error".into());
        }
        let offsets: Vec<u64> = result.publications.iter().map(|p| p.offset).collect();
        let next = |pair: &[u64]| match request.reverse {
            true => pair[0] == pair[1] + 1,
            false => pair[1] == pair[0] + 1,
        };
        let (least, last) = match (&request.since, request.reverse) {
            (Some(since), false) => (since.offset + 1, top),
            (Some(since), true) => (1, top.min(since.offset.saturating_sub(1))),
            (None, _) => (1, top),
        };
        let within = |offset: &u64| (least..=last).contains(offset);
        if !offsets.windows(2).all(next) || !offsets.iter().all(within) {
            return Err(format!("these are not in order, or not in {least}..={last}: {offsets:?}"));
        }
        for publication in &result.publications {
            scene.history.read(channel, epoch, publication)?;
        }
        // All that is kept and asked for is there, unless its time was over or it is too long.
        let oldest = (top + 1).saturating_sub(u64::from(namespace.history_size)).max(1);
        let first = match request.reverse {
            false => least.max(oldest),
            true => least.max(oldest).max((last + 1).saturating_sub(limit)),
        };
        let asked = (first..=last).count() as u64;
        let each = scene.plan.publication_bytes_max();
        let cut = limit * each > scene.plan.answer_bytes_max()
            && asked * each > scene.plan.answer_bytes_max();
        let ttl_ms = namespace.history_ttl_ms;
        if count < asked.min(limit)
            && !cut
            && !scene.plan.sheds()
            && !scene.history.may_be_dropped(channel, epoch, (first, top), ttl_ms)
        {
            return Err(format!("only {count} of {asked}, at most {limit}"));
        }
        Ok(())
    }

    /// It was told that it can't connect: it goes, or waits to be closed, or tries again.
    pub(super) fn fail_to_connect(&mut self, scene: &Scene<'_>) {
        self.since = scene.world.now().0;
        match self.rng.below(3) {
            0 => {
                // A command on an unusable connection.
                self.expected = Some(3501);
                let id = self.number(scene, What::Refused, &[]);
                let connect = Some(wire::ConnectRequest::default());
                let again = self.encode(&Command { id, connect, ..Command::default() });
                self.message(&again);
            }
            1 => {
                self.state = State::Leaving;
                self.left = true;
                self.frame(ws::CLOSE, &1000u16.to_be_bytes());
            }
            _ => {
                self.state = State::Leaving;
                self.left = true;
            }
        }
    }

    /// No unsubscribe of this channel is on its way.
    pub(super) fn wants(&self, channel: &str) -> bool {
        !self.pending.values().any(|p| p.what == What::Unsubscribe(channel.to_owned()))
    }

    pub(super) fn handle_push(&mut self, scene: &mut Scene<'_>, push: Push) -> Result<(), String> {
        if self.state == State::Connecting {
            return Err("a push before the reply to connect".into());
        }
        let channel = push.channel.as_str();
        let known = self.channels.get(channel).ok_or("a channel it never asked for")?;
        let open = known.open.ok_or("a channel that it isn't subscribed to")?;
        if let Some(publication) = push.r#pub {
            let position = scene.history.position(open);
            let (offset, epoch) = (publication.offset, &publication.epoch);
            let other = position.is_some_and(|(own, _)| own != *epoch);
            if epoch.is_empty() == (offset == 1) || !epoch.is_empty() && other {
                return Err("the epoch is another one, or missing, or too much".into());
            }
            let publication = wire::Publication { epoch: String::new(), ..publication };
            return self.take(scene, channel, publication);
        }
        for (event, came) in [(&push.join, true), (&push.leave, false)] {
            if let Some(event) = event {
                let info = event.info.as_ref().ok_or("nobody came or left")?;
                scene.history.event(open, &info.client, came);
                return Ok(());
            }
        }
        let code = push.unsubscribe.as_ref().ok_or("an unknown push")?.code;
        if code != 2500 {
            return Err(format!("unsubscribed with {code}"));
        }
        if known.server {
            return Err("the server made it, and ended it, and the connection goes on".into());
        }
        let channel = channel.to_owned();
        let known = self.channels.entry(channel.clone()).or_default();
        known.open = None;
        known.told = true;
        known.wanted = false;
        scene.history.presence.told(&channel, &self.id);
        self.close(scene, &channel, open, End::Told);
        Ok(())
    }

    /// The connection has come to its end, from the server's side.
    pub(super) fn ended(
        &mut self,
        scene: &mut Scene<'_>,
        link: LinkId,
        how: &str,
    ) -> Result<(), String> {
        self.say(scene, how);
        let told = self.closed.is_some() || self.left;
        let injected = scene.world.is_injected(link);
        let slow = !scene.plan.roomy || self.kind == Kind::Slow;
        if how == "end" {
            scene.world.shut(link);
        }
        let patient = self.kind == Kind::Echo && scene.world.now().0 > self.since + 2_000;
        // Too many of its address: it may be closed before anybody has read its request.
        let turned_away = scene.plan.address_limits != AddressOptions::default()
            && self.state == State::Upgrading;
        // Where no place is left, a connection that isn't connected loses its own to another.
        let few = scene.plan.crowded || scene.plan.faults.accept_full_one_in > 0;
        // So does one that is kept between two polls.
        let replaced = few && (self.state != State::Online || self.over == Over::LongPoll);
        self.lost(scene);
        if !told && !injected && !slow && !patient && !replaced && !turned_away {
            return Err(format!("the connection came to its {how}, and nobody said why"));
        }
        Ok(())
    }

    /// There is no connection any more.
    pub(super) fn lost(&mut self, scene: &mut Scene<'_>) {
        let polls = self.over == Over::LongPoll;
        // The positions of a poll hold until the next one is answered, over any transport.
        let channels = if polls { BTreeMap::new() } else { std::mem::take(&mut self.channels) };
        for (name, channel) in channels {
            if let Some(open) = channel.open {
                self.close(scene, &name, open, End::Gone);
            }
        }
        scene.history.presence.gone(&self.id);
        self.drop_up(scene);
        self.pending.clear();
        self.echoes.clear();
        self.link = None;
        self.frozen = false;
        let now = scene.world.now().0;
        let again = match scene.phase {
            Phase::Faults => !scene.draining,
            Phase::Heal | Phase::Quiet => self.is_served() && !scene.draining,
            Phase::Leave => false,
        };
        let in_order = std::mem::take(&mut self.in_order);
        let until = again.then(|| now + 1 + if in_order { 0 } else { self.rng.below(1_000) });
        self.state = State::Offline { until };
    }
}
