//! The commands of a client, drawn from its numbers.

use std::collections::BTreeMap;

use roost::edge::jwt::Signer;
use serde_json::json;

use super::{Ask, Client, Over, Phase, Scene, What};
use crate::plan::{BINARY, Kind, SECRET, signed_token};
use crate::wire::{
    ChannelRequest, Command, ConnectRequest, FilterNode, HistoryRequest, PublishRequest,
    RefreshRequest, RpcRequest, StreamPosition, SubscribeRequest,
};

impl Client {
    /// The token that it connects with.
    fn token(&mut self, scene: &Scene<'_>) -> (String, &'static [u64]) {
        let now = scene.world.unix().0;
        let signer = Signer::new(SECRET);
        match (&self.user, self.kind) {
            (_, Kind::Stranger) => match self.rng.below(3) {
                0 => {
                    self.expected = Some(3500);
                    match signed_token("forged").filter(|_| scene.plan.signed) {
                        Some(forged) => (forged.into(), &[]),
                        None => {
                            (Signer::new("another secret").connection_token("stranger", None), &[])
                        }
                    }
                }
                1 => {
                    // An error, and then we are expected to go.
                    match signed_token("expired").filter(|_| scene.plan.signed) {
                        Some(expired) => (expired.into(), &[109]),
                        None => (signer.connection_token("stranger", Some(now - 1)), &[109]),
                    }
                }
                _ => {
                    self.expected = Some(3005);
                    (signer.connection_token("stranger", Some(now + 2)), &[109])
                }
            },
            _ if self.signed.is_some() => (self.signed.unwrap_or_default().into(), &[]),
            (user, _) if self.by_token && !self.server.is_empty() => {
                let user = user.as_deref().unwrap_or_default();
                let claims = json!({"sub": user, "channels": self.server});
                (signer.sign(&claims).unwrap(), &[])
            }
            (Some(user), _) => (signer.connection_token(user, None), &[]),
            (None, _) => (String::new(), &[]),
        }
    }

    pub(super) fn send_connect(&mut self, scene: &mut Scene<'_>) {
        let (token, errors) = self.token(scene);
        let mut asked = BTreeMap::new();
        let mut subs = BTreeMap::new();
        let channels = self.server.iter().chain(&self.personal).cloned();
        for channel in channels.collect::<Vec<_>>() {
            let mut ask = Ask { server: true, ..Ask::default() };
            self.goes_on(&mut ask, &channel);
            let polls = self.over == Over::LongPoll;
            if self.rng.one_in(3) && !polls {
                ask.request.delta = "fossil".into();
            }
            if polls {
                // It is so whatever it asks for; a position is enough.
                ask.request.recoverable = true;
                let mut request = ask.request.clone();
                (request.recover, request.recoverable) =
                    ((request.epoch.is_empty() || self.rng.one_in(2)) && request.recover, false);
                subs.insert(channel.clone(), request);
                self.channels.entry(channel.clone()).or_default().wanted = true;
                asked.insert(channel, ask);
                continue;
            }
            let named = !self.by_token && self.server.contains(&channel);
            if named || ask.request.recover || !ask.request.delta.is_empty() {
                if named {
                    ask.request.positioned = self.rng.one_in(2);
                    ask.request.recoverable = ask.request.recover || self.rng.one_in(2);
                    ask.request.join_leave = self.rng.one_in(2);
                }
                subs.insert(channel.clone(), ask.request.clone());
            }
            self.channels.entry(channel.clone()).or_default().wanted = true;
            asked.insert(channel, ask);
        }
        let id = self.number(scene, What::Connect(asked), errors);
        let mut connect = ConnectRequest { token, subs };
        if self.over.is_one_way() {
            if self.over == Over::UniSse && self.rng.one_in(2) {
                self.last_id = last_id(&mut connect);
            }
            let message = serde_json::to_vec(&connect).unwrap();
            return self.message(&message);
        }
        let connect = Some(connect);
        let mut message = self.encode(&Command { id, connect, ..Command::default() });
        if self.rng.one_in(2) && scene.phase < Phase::Leave {
            // As SDKs do it: connect and the first subscriptions in one frame.
            for _ in 0..=self.rng.below(2) {
                let channel = self.any_channel(scene.plan);
                let subscribe = self.subscribe(scene, &channel);
                self.join(&mut message, &subscribe);
            }
        }
        self.message(&message);
    }

    /// Adds a message to those of a frame.
    pub(super) fn join(&self, messages: &mut Vec<u8>, message: &[u8]) {
        if !self.protobuf && !messages.is_empty() {
            messages.push(b'\n');
        }
        messages.extend_from_slice(message);
    }

    pub(super) fn encode(&self, command: &Command) -> Vec<u8> {
        command.encode(self.protobuf)
    }

    /// Asks for what it lacks of a channel, most of the time; sometimes for what can't be.
    fn goes_on(&mut self, ask: &mut Ask, channel: &str) {
        let Some(had) = self.had.get(channel).cloned().filter(|_| self.rng.below(4) > 0) else {
            return;
        };
        let request = &mut ask.request;
        (request.recover, request.offset, request.epoch) = (true, had.offset, had.epoch);
        ask.from = Some(had.segment);
        if self.rng.one_in(20) {
            ask.from = None;
            match self.rng.below(3) {
                0 => request.epoch = "nonesuch".into(),
                1 => request.offset += 1_000,
                _ => request.epoch.clear(),
            }
        }
    }

    pub(super) fn subscribe(&mut self, scene: &mut Scene<'_>, channel: &str) -> Vec<u8> {
        let mut ask = Ask::default();
        self.goes_on(&mut ask, channel);
        let namespace = scene.plan.namespace(channel);
        let request = &mut ask.request;
        request.channel = channel.to_owned();
        request.positioned = self.rng.one_in(2);
        request.recoverable = request.recover || self.rng.one_in(2);
        request.join_leave = self.rng.one_in(2);
        if self.rng.one_in(3) {
            request.delta = "fossil".into();
        }
        if self.rng.one_in(4) && namespace.allow_tags_filter {
            request.tf = Some(filter(self.rng.below(6)));
        }
        if self.rng.one_in(4) {
            request.flag = 2;
        }
        self.risks_binary |= channel == BINARY;
        let known = self.channels.entry(channel.to_owned()).or_default();
        let (again, strict) = (known.wanted || known.told, ask.request.flag == 2);
        let errors: &[u64] = match (again, strict) {
            (true, true) => &[105, 112],
            (true, false) => &[105],
            (false, true) => &[112],
            (false, false) => &[],
        };
        if !known.wanted {
            scene.history.presence.asks(channel, &self.id);
        }
        known.wanted = true;
        let subscribe = Some(ask.request.clone());
        let id = self.number(scene, What::Subscribe(channel.to_owned(), Box::new(ask)), errors);
        self.encode(&Command { id, subscribe, ..Command::default() })
    }

    pub(super) fn unsubscribe(&mut self, scene: &mut Scene<'_>, channel: &str) -> Vec<u8> {
        self.channels.entry(channel.to_owned()).or_default().wanted = false;
        scene.history.presence.asks(channel, &self.id);
        let id = self.number(scene, What::Unsubscribe(channel.to_owned()), &[]);
        let unsubscribe = Some(ChannelRequest { channel: channel.to_owned() });
        self.encode(&Command { id, unsubscribe, ..Command::default() })
    }

    pub(super) fn publish(&mut self, scene: &mut Scene<'_>, channel: &str) -> Vec<u8> {
        let plan = scene.plan;
        let least = if plan.pad_bytes > 10_000 { plan.pad_bytes / 2 } else { 0 };
        let len = (least + self.rng.below(plan.pad_bytes - least + 1)) as usize;
        let from = self.rng.below(40) as usize;
        let mut pad = plan.pad[from..from + len].to_owned();
        for _ in 0..self.rng.below(4) {
            // Two of them differ in their second byte only, so that a patch may cut one in two.
            pad.push(['y', '\u{436}', '\u{437}', '"'][self.rng.below(4) as usize]);
        }
        let pad = json!(pad).to_string();
        let binary = self.protobuf && channel == BINARY && self.rng.one_in(2);
        let number = scene.history.publish(channel, Some(&self.id), BTreeMap::new(), |number| {
            let mut data = if binary { vec![0xff] } else { Vec::new() };
            data.extend_from_slice(format!(r#"{{"n":{number},"pad":{pad}}}"#).as_bytes());
            data
        });
        let id = self.number(scene, What::Publish(number), &[]);
        let data = scene.history.data(number).to_vec();
        let publish = Some(PublishRequest { channel: channel.to_owned(), data });
        self.encode(&Command { id, publish, ..Command::default() })
    }

    /// Whether it must be shown to itself in a channel.
    fn is_in(&self, channel: &str) -> bool {
        self.channels.get(channel).is_some_and(|known| known.wanted && known.open.is_some())
    }

    pub(super) fn ask_presence(&mut self, scene: &mut Scene<'_>, channel: &str) -> Vec<u8> {
        let errors = if scene.plan.roomy { &[][..] } else { &[106] };
        let snapshot = Box::new(scene.history.presence.snapshot(channel));
        let id = self.number(scene, What::Presence(channel.to_owned(), snapshot), errors);
        let presence = Some(ChannelRequest { channel: channel.to_owned() });
        self.encode(&Command { id, presence, ..Command::default() })
    }

    pub(super) fn ask_stats(&mut self, scene: &mut Scene<'_>, channel: &str) -> Vec<u8> {
        let what = What::Stats(channel.to_owned(), self.is_in(channel));
        let id = self.number(scene, what, &[]);
        let presence_stats = Some(ChannelRequest { channel: channel.to_owned() });
        self.encode(&Command { id, presence_stats, ..Command::default() })
    }

    /// Reads history from somewhere.
    pub(super) fn read_history(&mut self, scene: &mut Scene<'_>, channel: &str) -> Vec<u8> {
        self.risks_binary |= channel == BINARY;
        let mut errors: &[u64] = &[];
        let reverse = self.rng.one_in(2);
        let known = self.channels.get(channel).and_then(|known| known.open);
        let known = known.and_then(|open| scene.history.position(open));
        let had = self.had.get(channel).map(|had| (had.epoch.clone(), had.offset));
        let mut since = match known.or(had) {
            Some((epoch, offset)) if self.rng.below(4) > 0 => {
                // The stream may have a new life by now.
                errors = &[112];
                let offset = (offset + 2).saturating_sub(self.rng.below(8));
                Some(StreamPosition { offset, epoch })
            }
            _ => None,
        };
        if self.rng.one_in(10) {
            errors = &[112];
            since = Some(StreamPosition { offset: 1, epoch: "nonesuch".into() });
        }
        if reverse && since.as_ref().is_some_and(|since| since.offset == 0) {
            errors = &[107];
        }
        let limit = [-1, 0, 1, 2, 5, 1_000][self.rng.below(6) as usize];
        let request = HistoryRequest { channel: channel.to_owned(), limit, since, reverse };
        let id = self.number(scene, What::History(Box::new(request.clone())), errors);
        self.encode(&Command { id, history: Some(request), ..Command::default() })
    }

    /// The token that it has, once more.
    pub(super) fn refresh(&mut self, scene: &mut Scene<'_>) -> Vec<u8> {
        let token = self.token(scene).0;
        let id = self.number(scene, What::Refresh, &[]);
        let refresh = Some(RefreshRequest { token });
        self.encode(&Command { id, refresh, ..Command::default() })
    }

    /// Whether it has a token that it may send again.
    pub(super) fn can_refresh(&self) -> bool {
        self.user.is_some() && self.server.is_empty() && self.kind != Kind::Stranger
    }

    /// A command that must be answered with an error.
    pub(super) fn refused(&mut self, scene: &Scene<'_>) -> Vec<u8> {
        let channel = |name: &str| Some(ChannelRequest { channel: name.to_owned() });
        let publish = |name: &str, data: &[u8]| {
            Some(PublishRequest { channel: name.to_owned(), data: data.to_vec() })
        };
        let subscribe = |name: &str| {
            Some(SubscribeRequest { channel: name.to_owned(), ..SubscribeRequest::default() })
        };
        let history = |name: &str, since| {
            Some(HistoryRequest { channel: name.to_owned(), limit: 1, since, reverse: true })
        };
        let mut command = Command::default();
        let errors: &'static [u64] = match self.rng.below(10) {
            0 => {
                command.publish = publish("deny:x", b"{}");
                &[103]
            }
            1 => {
                command.subscribe = subscribe("deny:x");
                &[103]
            }
            2 => {
                command.subscribe = subscribe("nowhere:x");
                &[102]
            }
            3 => {
                command.history = history("hist:a", None);
                &[103]
            }
            4 => {
                command.history = history("plain", None);
                &[108]
            }
            5 => {
                command.rpc = Some(RpcRequest { data: b"{}".to_vec() });
                &[108]
            }
            6 => {
                command.presence = channel("hist:a");
                &[108]
            }
            7 => {
                command.presence_stats = channel("nowhere:x");
                &[102]
            }
            8 => {
                let since = StreamPosition { offset: 0, epoch: String::new() };
                command.history = history("rec:a", Some(since));
                &[107]
            }
            _ => {
                command.publish = publish("plain", b"");
                &[107]
            }
        };
        command.id = self.number(scene, What::Refused, errors);
        self.encode(&command)
    }
}

/// The positions of a request, taken out of it, as the id of the last event has them; empty for none.
fn last_id(request: &mut ConnectRequest) -> String {
    let mut positions = serde_json::Map::new();
    for (channel, sub) in &mut request.subs {
        if std::mem::take(&mut sub.recover) {
            let (offset, epoch) = (std::mem::take(&mut sub.offset), std::mem::take(&mut sub.epoch));
            positions.insert(channel.clone(), json!({"offset": offset, "epoch": epoch}));
        }
    }
    if positions.is_empty() { String::new() } else { json!(positions).to_string() }
}

/// One of the filters that clients use: two are equal in all but their form.
fn filter(which: u64) -> FilterNode {
    let compare = |key: &str, cmp: &str, val: &str| FilterNode {
        key: key.into(),
        cmp: cmp.into(),
        val: val.into(),
        ..FilterNode::default()
    };
    let combine = |op: &str, nodes: Vec<FilterNode>| FilterNode {
        op: op.into(),
        nodes,
        ..FilterNode::default()
    };
    match which {
        0 => compare("t", "eq", "1"),
        1 => compare("t", "neq", "1"),
        2 => FilterNode { vals: vec!["0".into(), "2".into()], ..compare("t", "in", "") },
        3 => combine("or", vec![compare("t", "eq", "0"), compare("t", "eq", "2")]),
        4 => combine("and", vec![compare("u", "ex", ""), compare("t", "neq", "0")]),
        _ => combine("not", vec![compare("t", "eq", "1")]),
    }
}
