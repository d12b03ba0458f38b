//! The up-link of connections whose own request has no end: commands come in requests of their own, to any
//! shard, and go by mail to the shard that has the session (client protocol, 7).
//!
//! ```text
//!  POST /emulation -> session id: shard and slot -> Mail::Emulate -> as a message of that connection
//!  204 <- Mail::Response <- when its commands are handled, behind those that came before
//!
//!  session of another node -> Mail::EmulateElsewhere -> control thread -> that node; 204 <- Mail::Response
//!  control thread, for another node -> Mail::Emulate -> as above; Mail::Emulated <- when they are handled
//! ```

use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::limits::EMULATED_BYTES_MAX;
use crate::io::Driver;
use crate::proto::client::{self, EmulationRequest, Encoding};
use crate::proto::http::Head;
use crate::shard::context::Cx;
use crate::shard::flow::Flow;
use crate::shard::http::endpoint::EndpointKind;
use crate::shard::http::stream::is_binary;
use crate::shard::mail::emulation::{
    CommandsForm, Emulate, EmulateElsewhere, Emulated, Emulating, Uptake,
};
use crate::shard::mail::post::Post;
use crate::shard::mail::{Asker, CONTROL, Mail};
use crate::shard::net::Net;
use crate::shard::net::record::{Phase, Rx};
use crate::shard::options::Broker;

impl<D: Driver> Net<D> {
    /// A request to the up-link is whole.
    ///
    /// # Errors
    /// The status of its answer: 400 for what is none, 404 for an unknown node, 503 without room.
    pub(crate) fn emulation(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        head: &Head<'_>,
        cors: &str,
        body: &[u8],
    ) -> Result<(), u16> {
        let encoding = if is_binary(head) { Encoding::Protobuf } else { Encoding::Json };
        let request = client::emulation_request(body, encoding).map_err(|_| 400u16)?;
        let EmulationRequest { node, session, data } = request;
        let (mut asker, reuse) = (Asker::of(key), head.reuse());
        let is_here = node == cx.node.rules.node_id;
        let (to, mail) = if is_here {
            let Some((shard, conn)) = cx.node.rules.session_ids.open_secret(&session) else {
                // Nobody's: taken all the same.
                return Err(204);
            };
            if !post.begin_emulation(shard) {
                return Err(503);
            }
            let by = Emulating { from: cx.id, asker, cors: cors.into(), reuse };
            let emulated = Emulated { data: data.into(), by: Some(by) };
            let form = CommandsForm::Of(encoding);
            (shard, Mail::Emulate(Box::new(Emulate { conn, form, emulated })))
        } else {
            if cx.node.options.broker == Broker::Memory {
                return Err(404);
            }
            asker.credits = post.spend(CONTROL, 1).ok_or(503u16)?;
            let by = Emulating { from: cx.id, asker, cors: cors.into(), reuse };
            let (node, session, data) = ((&*node).into(), (&*session).into(), data.into());
            let elsewhere = EmulateElsewhere { node, session, encoding, data, by };
            (CONTROL, Mail::EmulateElsewhere(Box::new(elsewhere)))
        };
        if let Some(conn) = self.conn(key) {
            conn.phase = Phase::Asked;
            conn.flags.set_paused(true);
        }
        self.set_busy(key.index);
        post.send(cx, to, mail);
        Ok(())
    }

    /// Commands are handled, or can't be.
    pub(crate) fn answer_emulated(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        by: impl Into<Option<Emulating>>,
        uptake: Uptake,
    ) {
        let Some(Emulating { from, asker, cors, reuse }) = by.into() else { return };
        if from == CONTROL {
            return post.send(cx, CONTROL, Mail::Emulated { asker, uptake });
        }
        let status = uptake.status();
        cx.count_response(cx.endpoint_of(EndpointKind::Emulation), status);
        let reuse = reuse.unless(self.is_draining());
        let bytes = SharedFrame::new(&self.response(cx, reuse, status, &cors, b"", false));
        post.send(cx, from, Mail::Response { asker, bytes, keep_alive: reuse.is_kept() });
    }

    /// Answers all requests whose commands wait at a connection: the commands stay. Whether there was one.
    pub(crate) fn answer_waiting(&mut self, cx: &Cx, post: &mut Post, index: u32) -> bool {
        let rx = self.at_mut(index).and_then(|conn| conn.rx.as_mut());
        let Some(rx) = rx else { return false };
        let queued = rx.emulated.iter_mut().filter_map(|emulated| emulated.by.take());
        let waiting: Vec<_> = rx.waiting.take().into_iter().chain(queued).collect();
        let any = !waiting.is_empty();
        waiting.into_iter().for_each(|by| self.answer_emulated(cx, post, by, Uptake::Taken));
        any
    }

    /// Takes commands for a connection of this shard. Returns them if they can be handled at once; behind
    /// earlier ones they wait.
    pub(crate) fn take_emulated(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        emulate: Emulate,
    ) -> Option<(ConnKey, Emulated)> {
        let Emulate { conn: key, form: of, mut emulated } = emulate;
        cx.counters().emulations.add(1);
        let refusal = match self.conn(key) {
            None => Uptake::NoSession,
            Some(conn) => {
                let form = conn.form;
                let speaks = matches!(conn.phase, Phase::Client | Phase::Unusable);
                let waits =
                    conn.flags.paused() || conn.rx.as_ref().is_some_and(|rx| rx.has_leftover());
                let bytes = conn.rx.as_ref().map_or(0, |rx| rx.emulated_bytes());
                match waits {
                    _ if !speaks || !form.transport().has_up_link() => Uptake::NoSession,
                    _ if !emulated.take_form(of, Encoding::from(form)) => Uptake::Malformed,
                    false => return Some((key, emulated)),
                    true if bytes + emulated.bytes() > EMULATED_BYTES_MAX => {
                        cx.counters().emulations_refused.add(1);
                        Uptake::NoRoom
                    }
                    true => {
                        conn.rx.get_or_insert_default().emulated.push_back(emulated);
                        return None;
                    }
                }
            }
        };
        self.answer_emulated(cx, post, emulated.by, refusal);
        None
    }

    /// Commands that came up the separate up-link are handled as far as `flow` says: the rest is kept, or
    /// their request is answered.
    pub(crate) fn emulated_done(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        emulated: Emulated,
        flow: Flow,
    ) {
        let Emulated { data, by } = emulated;
        if let Some(left) = flow.unhandled(&data)
            && let Some(conn) = self.conn(key)
        {
            let rx = conn.rx.get_or_insert_default();
            (rx.commands, rx.commands_at) = (left.to_vec(), 0);
            rx.waiting = by;
            return;
        }
        self.answer_emulated(cx, post, by, Uptake::Taken);
    }

    /// A connection takes no commands any more: who waits for some to be handled waits in vain.
    pub(crate) fn forget_emulated(&mut self, cx: &Cx, post: &mut Post, rx: &mut Rx) {
        let waiting = rx.waiting.take();
        let queued =
            std::mem::take(&mut rx.emulated).into_iter().filter_map(|emulated| emulated.by);
        for by in waiting.into_iter().chain(queued) {
            self.answer_emulated(cx, post, by, Uptake::NoSession);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::ShardId;
    use crate::shard::fixture::{Plan, Wired};
    use crate::shard::http::endpoint::{Endpoint, EndpointKind};

    fn of() -> Wired {
        let mut plan = Plan::default();
        let endpoint = Endpoint::new("/emulation", EndpointKind::Emulation);
        plan.options.endpoints = vec![Endpoint { body_bytes_max: 1000, ..endpoint }];
        Wired::new(plan)
    }

    fn post(of: &mut Wired, key: ConnKey, body: &str) {
        let length = body.len();
        let head = format!("POST /emulation HTTP/1.1\r\nHost: a\r\nContent-Length: {length}");
        of.request(key, &format!("{head}\r\n\r\n{body}"));
    }

    #[test]
    fn commands_go_to_the_shard_that_has_the_session() {
        let mut of = of();
        let (_, session) = of.connect_client();
        let (_, key) = of.connect();
        let id = of.cx.node.rules.session_ids.seal(ShardId(1), session).text();
        let id = id.as_str();
        post(
            &mut of,
            key,
            &format!("{{\"session\":\"{id}\",\"node\":\"node\",\"data\":\"{{}}\"}}"),
        );
        assert!(of.net.conn(key).is_some_and(|conn| conn.phase == Phase::Asked));
        assert!(of.posts.post.flush_to(&of.cx, ShardId(1)));
        let mail = of.posts.sent_to(1);
        assert!(matches!(&mail[..], [Mail::Emulate(emulate)] if emulate.conn == session));
        assert_eq!(of.end(), []);
    }

    #[test]
    fn a_session_of_another_node_isnt_found_and_no_request_is_malformed() {
        let mut of = of();
        for (body, status) in [
            ("{\"session\":\"x\",\"node\":\"other\",\"data\":\"{}\"}", "404"),
            ("{\"session\":\"x\",\"node\":\"node\",\"data\":\"{}\"}", "204"),
            ("nothing", "400"),
        ] {
            let (link, key) = of.connect();
            post(&mut of, key, body);
            let answer = of.received(link);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{body}: {answer}");
        }
        assert_eq!(of.end(), []);
    }
}
