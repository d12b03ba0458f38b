//! The actions of a client: its random program, its faults, its leaving.

use roost::proto::ws;

use super::{Client, Scene, State, What};
use crate::plan::{BINARY, Kind};

impl Client {
    pub(super) fn act(&mut self, scene: &mut Scene<'_>) {
        if self.state == State::Connecting {
            let asked = self.pending.values().any(|p| matches!(p.what, What::Connect(_)));
            if self.kind != Kind::Stale && !asked && self.expected.is_none() {
                self.send_connect(scene);
            }
            return;
        }
        match self.kind {
            Kind::Echo => return self.act_echo(scene),
            Kind::Frozen if self.rng.one_in(10) => {
                self.say(scene, "freezes");
                self.frozen = true;
                self.left = true;
                return;
            }
            Kind::Hostile if self.expected.is_none() && self.rng.one_in(8) => {
                return self.attack(scene);
            }
            Kind::Flaky if self.rng.one_in(8) => return self.flake(scene),
            _ if self.rng.one_in(60) && self.kind == Kind::Normal => return self.leave(scene),
            _ => {}
        }
        if self.expected.is_some() || self.pending.len() > 100 || self.over.is_one_way() {
            return;
        }
        let mut batch = Vec::new();
        for _ in 0..=self.rng.below(4) {
            let channel = match &self.personal {
                _ if scene.plan.binary && self.rng.one_in(10) => BINARY.to_owned(),
                Some(personal) if self.rng.one_in(8) => personal.clone(),
                _ => self.any_channel(scene.plan),
            };
            let namespace = scene.plan.namespace(&channel);
            batch.push(match self.rng.below(26) {
                0..=6 => self.subscribe(scene, &channel),
                7..=9 => self.unsubscribe(scene, &channel),
                10..=19 => self.publish(scene, &channel),
                20 | 21 if namespace.presence => self.ask_presence(scene, &channel),
                22 if namespace.presence => self.ask_stats(scene, &channel),
                23 | 24 if namespace.allow_history_for_client => self.read_history(scene, &channel),
                25 if self.can_refresh() => self.refresh(scene),
                _ => self.refused(scene),
            });
        }
        self.send_batch(batch);
    }

    pub(super) fn send_batch(&mut self, batch: Vec<Vec<u8>>) {
        // Below the bound of a message.
        if self.rng.one_in(2) && batch.iter().map(Vec::len).sum::<usize>() < 60_000 {
            let mut joined = Vec::new();
            batch.iter().for_each(|message| self.join(&mut joined, message));
            if self.rng.one_in(4) && !self.protobuf {
                joined.push(b'\n');
            }
            self.message(&joined);
        } else {
            batch.iter().for_each(|message| self.message(message));
        }
    }

    pub(super) fn act_echo(&mut self, scene: &mut Scene<'_>) {
        if self.rng.one_in(20) {
            return self.leave(scene);
        }
        if self.echoes.is_empty() && self.out.is_empty() && self.rng.one_in(20) {
            self.say(scene, "falls silent");
            self.frozen = true;
            self.left = true;
            return;
        }
        let payload = vec![b'e'; self.rng.below(scene.plan.pad_bytes + 20) as usize];
        self.frame(ws::BINARY, &payload);
        self.echoes.push_back(payload);
    }

    /// Breaks a rule whose answer is known.
    pub(super) fn attack(&mut self, scene: &mut Scene<'_>) {
        let id = self.next_id;
        self.next_id += 1;
        let code = match self.rng.below(10) {
            0 => {
                self.out.extend(*b"\x81\x02{}");
                1002
            }
            1 => {
                self.out.extend(*b"\xf1\x80\0\0\0\0");
                1002
            }
            2 => {
                self.frame(ws::TEXT, b"\xff\xfe");
                1007
            }
            3 => {
                self.out.extend(*b"\x82\xff\0\0\0\0\x7f\xff\xff\xff\0\0\0\0");
                1009
            }
            4 => {
                self.frame(ws::TEXT, b"nonsense");
                3501
            }
            5 => {
                self.frame(ws::TEXT, b"");
                3501
            }
            6 => {
                self.frame(ws::TEXT, br#"{"send":{"data":{}}}"#);
                // Behind it a pong is due to be seen, or not.
                3508
            }
            7 => {
                self.frame(ws::TEXT, format!(r#"{{"id":{id},"connect":{{}}}}"#).as_bytes());
                3501
            }
            8 => {
                self.frame(ws::TEXT, b"{}\n{}");
                3501
            }
            _ => {
                self.frame(ws::TEXT, format!(r#"{{"id":{id},"subscribe":{{}}}}"#).as_bytes());
                3501
            }
        };
        self.say(scene, format!("does what is answered with {code}"));
        self.expected = Some(code);
        self.since = scene.world.now().0;
    }

    /// Goes in one of the ways in which connections go.
    pub(super) fn flake(&mut self, scene: &mut Scene<'_>) {
        let Some(link) = self.link else { return };
        if self.rng.one_in(2) && self.over.is_websocket() && !self.over.is_one_way() {
            // In the middle of a frame.
            let message = self.publish(scene, "plain");
            let mut frame = Vec::new();
            let opcode = if self.protobuf { ws::BINARY } else { ws::TEXT };
            ws::put_masked(&mut frame, opcode, &message, [9; 4]);
            frame.truncate(1 + self.rng.below(frame.len() as u64) as usize);
            self.out.extend(frame);
            self.flush(scene, link);
        }
        self.out.clear();
        self.left = true;
        match self.rng.below(3) {
            0 => {
                self.say(scene, "resets");
                scene.world.reset(link);
                self.lost(scene);
            }
            1 => {
                self.say(scene, "sends a FIN");
                scene.world.shut(link);
                self.state = State::Leaving;
                self.since = scene.world.now().0;
                self.shut_at = Some(self.since);
            }
            _ => {
                self.say(scene, "goes half-way and stays");
                scene.world.shut(link);
                self.frozen = true;
                scene.world.reset(link);
            }
        }
    }

    /// Closes as RFC 6455 wants it.
    pub(crate) fn leave(&mut self, scene: &mut Scene<'_>) {
        if self.state == State::Leaving || self.closed.is_some() {
            return;
        }
        self.say(scene, "closes");
        match self.link.filter(|_| !self.over.is_websocket()) {
            Some(link) => scene.world.shut(link),
            None => self.frame(ws::CLOSE, &1000u16.to_be_bytes()),
        }
        self.state = State::Leaving;
        self.since = scene.world.now().0;
        self.left = true;
    }

    /// From now on nothing goes wrong here either.
    pub(crate) fn behave(&mut self, scene: &mut Scene<'_>) {
        self.read_at = 0;
        if self.is_served() {
            if let State::Offline { until: None } = self.state {
                self.state = State::Offline { until: Some(scene.world.now().0) };
            }
        } else if let Some(link) = self.link.filter(|_| self.kind != Kind::Mute && !self.frozen) {
            self.left = true;
            scene.world.reset(link);
        } else if self.link.is_none() {
            self.state = State::Offline { until: None };
        }
    }

    /// Goes for good.
    pub(crate) fn go(&mut self, scene: &mut Scene<'_>) {
        match self.link {
            None => self.state = State::Offline { until: None },
            Some(_) if self.acts() && self.kind == Kind::Normal => self.leave(scene),
            // The server has to find out by itself.
            Some(_) if self.frozen => {}
            Some(link) => {
                self.left = true;
                scene.world.reset(link);
            }
        }
    }

    /// Subscribes to everything, then publishes now and then.
    pub(super) fn heal(&mut self, scene: &mut Scene<'_>) {
        if self.state == State::Connecting {
            return self.act(scene);
        }
        if self.kind != Kind::Normal || self.pending.len() > 10 || self.over.is_one_way() {
            return;
        }
        for channel in scene.plan.channels.clone() {
            let asked = self
                .channels
                .get(&channel)
                .is_some_and(|c| c.open.is_some() || (c.wanted && !c.told));
            let asks = self
                .pending
                .values()
                .any(|p| matches!(&p.what, What::Subscribe(of, _) if *of == channel));
            if !asked && !asks {
                let message = self.subscribe(scene, &channel);
                self.message(&message);
            }
        }
        if self.rng.one_in(4) {
            let channel = self.any_channel(scene.plan);
            let message = self.publish(scene, &channel);
            self.message(&message);
        }
    }

    /// Publishes once to each channel: all must get it. Counts those who are there.
    pub(crate) fn publish_to_all(&mut self, scene: &mut Scene<'_>) {
        if self.over.is_one_way() {
            return;
        }
        self.counts_since = Some(scene.history.step);
        for channel in scene.plan.channels.clone() {
            if scene.plan.namespace(&channel).presence {
                let mut messages = self.ask_presence(scene, &channel);
                let stats = self.ask_stats(scene, &channel);
                self.join(&mut messages, &stats);
                let again = self.ask_presence(scene, &channel);
                self.join(&mut messages, &again);
                self.message(&messages);
            }
            let message = self.publish(scene, &channel);
            self.message(&message);
        }
    }
}
