//! What comes to a client, and whether it may.

use roost::io::sim::LinkId;
use roost::proto::http;
use roost::proto::ws::{self, Event, ReadRules};
use serde_json::Value;

use super::{Client, Phase, Scene, State, What};
use crate::checker::End;
use crate::plan::Kind;

impl Client {
    pub(super) fn handle_bytes(
        &mut self,
        scene: &mut Scene<'_>,
        bytes: Vec<u8>,
    ) -> Result<(), String> {
        let mut bytes = bytes;
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
        let rules = ReadRules { masked: false, message_bytes_max: 1 << 24 };
        let mut at = 0;
        loop {
            match reader.next(&rules, &mut bytes, &mut at) {
                Ok(Some(event)) => {
                    if self.closed.is_some() {
                        return Err("something came behind the close frame".into());
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
            other if self.refusal == Some(other) => true,
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
            Event::Message { data, .. } => {
                let text = std::str::from_utf8(data).map_err(|_| "not UTF-8")?.to_owned();
                for line in text.split('\n') {
                    self.handle_reply(scene, line)
                        .map_err(|fault| format!("{fault}, in {}", &line[..line.len().min(300)]))?;
                }
                Ok(())
            }
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

    pub(super) fn check_close(&self, scene: &Scene<'_>, code: u16) -> Result<(), String> {
        let tight = !scene.plan.roomy;
        let slow = tight || self.kind == Kind::Slow;
        let may = match code {
            1000 => self.left,
            3001 => scene.draining,
            3008 => slow,
            3012 => slow || self.kind == Kind::Mute,
            3502 => slow || self.kind == Kind::Stale,
            other => self.expected == Some(other),
        };
        if may { Ok(()) } else { Err(format!("closed with {code}")) }
    }

    pub(super) fn handle_reply(&mut self, scene: &mut Scene<'_>, line: &str) -> Result<(), String> {
        let reply: Value = serde_json::from_str(line).map_err(|fault| fault.to_string())?;
        if line == "{}" {
            if !matches!(self.kind, Kind::Mute) && self.state != State::Leaving {
                if self.frame_ping {
                    return Err("a ping of the protocol, though frames were asked for".into());
                }
                self.text("{}");
            }
            return Ok(());
        }
        if let Some(push) = reply.get("push") {
            return self.handle_push(scene, push);
        }
        let id = reply["id"].as_u64().ok_or("no id")? as u32;
        let pending = self.pending.remove(&id).ok_or("a reply that nobody waits for")?;
        if let Some(error) = reply.get("error") {
            let code = error["code"].as_u64().unwrap_or(0);
            if !pending.errors.contains(&code) {
                return Err(format!("{pending:?} failed"));
            }
            if pending.what == What::Connect {
                self.fail_to_connect(scene);
            }
            return Ok(());
        }
        let has = |name: &str| reply.get(name).is_some_and(Value::is_object);
        match pending.what {
            What::Connect if has("connect") => {
                if self.state == State::Connecting {
                    self.state = State::Online;
                }
                self.since = scene.world.now().0;
                Ok(())
            }
            What::Subscribe(channel) if has("subscribe") => {
                let result = &reply["subscribe"];
                let positioned = result["positioned"].as_bool().unwrap_or(false);
                let start = positioned.then(|| {
                    let epoch = result["epoch"].as_str().unwrap_or_default().to_owned();
                    (epoch, result["offset"].as_u64().unwrap_or(0))
                });
                if positioned != start.as_ref().is_some_and(|(epoch, _)| !epoch.is_empty()) {
                    return Err("positioned without an epoch".into());
                }
                if channel.starts_with("pos:") && !positioned && self.wants(&channel) {
                    return Err("not positioned, though all are".into());
                }
                let opened = scene.history.opened(self.index, &channel, pending.sent, start);
                let known = self.channels.entry(channel).or_default();
                if known.open.replace(opened).is_some() {
                    return Err("subscribed twice".into());
                }
                Ok(())
            }
            What::Unsubscribe(channel) if has("unsubscribe") => {
                if let Some(open) =
                    self.channels.get_mut(&channel).and_then(|channel| channel.open.take())
                {
                    scene.history.ended(open, End::Gone);
                }
                Ok(())
            }
            What::Publish(publication) if has("publish") => {
                scene.history.acked(publication);
                Ok(())
            }
            other => Err(format!("{other:?} was answered with something else")),
        }
    }

    /// It was told that it can't connect: it goes, or waits to be closed, or tries again.
    pub(super) fn fail_to_connect(&mut self, scene: &Scene<'_>) {
        self.since = scene.world.now().0;
        match self.rng.below(3) {
            0 => {
                // A command on an unusable connection.
                self.expected = Some(3501);
                let id = self.number(scene, What::Refused, &[]);
                self.text(&format!(r#"{{"id":{id},"connect":{{}}}}"#));
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

    pub(super) fn handle_push(
        &mut self,
        scene: &mut Scene<'_>,
        push: &Value,
    ) -> Result<(), String> {
        let channel = push["channel"].as_str().ok_or("no channel")?;
        let known = self.channels.get_mut(channel).ok_or("a channel it never asked for")?;
        let open = known.open.ok_or("a channel that it isn't subscribed to")?;
        if let Some(publication) = push.get("pub") {
            let number = publication["data"]["n"].as_u64().ok_or("no number")? as usize;
            let offset = publication["offset"].as_u64().unwrap_or(0);
            if publication["info"]["client"].as_str().is_none_or(str::is_empty) {
                return Err("nobody published it".into());
            }
            return scene.history.delivered(open, number, offset);
        }
        let code = push["unsubscribe"]["code"].as_u64().ok_or("an unknown push")?;
        if code != 2500 {
            return Err(format!("unsubscribed with {code}"));
        }
        known.open = None;
        known.told = true;
        known.wanted = false;
        scene.history.ended(open, End::Told);
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
        self.lost(scene);
        if !told && !injected && !slow && !patient {
            return Err(format!("the connection came to its {how}, and nobody said why"));
        }
        Ok(())
    }

    /// There is no connection any more.
    pub(super) fn lost(&mut self, scene: &mut Scene<'_>) {
        for channel in std::mem::take(&mut self.channels).into_values() {
            if let Some(open) = channel.open {
                scene.history.ended(open, End::Gone);
            }
        }
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
        let until = again.then(|| now + 1 + self.rng.below(1_000));
        self.state = State::Offline { until };
    }
}
