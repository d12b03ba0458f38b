//! Requests for a WebSocket: checked, answered with 101, and from then on a client's, an administrator's, or an
//! echo connection.

use crate::base::form::{Form, Framing};
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::io::Driver;
use crate::proto::client;
use crate::proto::http::{self, Head, Refusal};
use crate::shard::Options;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::http::endpoint::EndpointKind;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::net::effects::Effect;
use crate::shard::net::record::{Phase, Rx};

impl<D: Driver> Net<D> {
    /// A request for a WebSocket.
    #[expect(clippy::too_many_arguments, reason = "the groups, and a request")]
    pub(crate) fn upgrade(
        &mut self,
        cx: &Cx,
        codec: &mut Codec,
        post: &mut Post,
        key: ConnKey,
        kind: EndpointKind,
        head: &Head<'_>,
        rest: &[u8],
    ) {
        let Some(mut upgrade) = self.check_upgrade(cx, post, key, kind, head) else { return };
        let (echo, one_way) = (kind == EndpointKind::Echo, kind == EndpointKind::UniWebSocket);
        let asked = http::query_param(head.query, "cf_connect").filter(|_| one_way);
        if asked.as_ref().is_some_and(|asked| client::connect_request(asked).is_err()) {
            return self.refuse(cx, post, key.index, Refusal::Malformed);
        }
        if !self.admit_upgrade(cx, post, key, kind, head) {
            return;
        }
        cx.counters().upgrades.add(1);
        cx.count_response(cx.endpoint_of(kind), 101);
        let form = agreed_form(&cx.node.options, kind, head, &mut upgrade);
        let frame_ping = !echo
            && !one_way
            && http::query_param(head.query, "cf_ws_frame_ping_pong").is_some_and(|v| v == "true");
        match kind {
            EndpointKind::Admin => self.effect(Effect::Admin(key.index)),
            EndpointKind::Echo => {}
            _ => self.keep_client_headers(cx, key.index, head),
        }
        // Two-way WebSocket without a subprotocol in the request gets none in the answer.
        upgrade.protocol = upgrade.protocol.filter(|_| !echo && !one_way);
        let frame = self.switching(cx, codec, &upgrade);
        if let Some(conn) = self.conn(key) {
            conn.phase = if echo { Phase::Echo } else { Phase::Client };
            conn.form = form;
            conn.flags.set_frame_ping(frame_ping);
            if echo {
                conn.since_tick = cx.tick();
            }
            // The bytes behind the head are handled when the turn comes back to this connection.
            conn.rx = Rx::behind(rest);
            if let Some(asked) = asked {
                // An empty request is one, too.
                let asked = if asked.is_empty() { "{}".into() } else { asked };
                conn.rx.get_or_insert_default().commands = asked.into_owned().into_bytes();
                self.mark_ready(key);
            }
        }
        self.enqueue(cx, key.index, frame);
        self.schedule(cx, key.index);
    }

    /// Whether a request is one for a WebSocket, of a sender that may have it. `None`: it is refused.
    fn check_upgrade(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        kind: EndpointKind,
        head: &Head<'_>,
    ) -> Option<http::Upgrade> {
        let upgrade = match http::upgrade(head) {
            Ok(upgrade) => upgrade,
            Err(refusal) => {
                self.refuse_request(cx, post, key.index, head, refusal);
                return None;
            }
        };
        match kind {
            EndpointKind::Echo => {}
            EndpointKind::Admin => {
                if !cx.node.options.hosts.admits(head.header("host"), true) {
                    self.refuse_host(cx, post, key.index, head);
                    return None;
                }
                if !http::is_of_own_host(head) {
                    let allowed = &"the host of the admin page";
                    self.refuse_origin(cx, post, key.index, head, "", allowed);
                    return None;
                }
            }
            _ => {
                if !self.allows_page(cx, head) {
                    self.refuse_page(cx, post, key.index, head);
                    return None;
                }
            }
        }
        Some(upgrade)
    }

    /// Whether one more such connection may come. If not, the request is refused.
    fn admit_upgrade(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        key: ConnKey,
        kind: EndpointKind,
        head: &Head<'_>,
    ) -> bool {
        let admitted = match kind {
            EndpointKind::Admin | EndpointKind::Echo => {
                self.takes_no_clients(cx).map_or_else(|| self.has_client_place(cx), Err)
            }
            _ => self.admit(cx),
        };
        if let Err(reason) = admitted {
            self.refuse_busy(cx, post, key.index, head, reason);
            return false;
        }
        match kind {
            EndpointKind::Echo => self.set_busy(key.index),
            // It is a client once it is connected.
            _ => self.set_replaceable(key.index),
        }
        true
    }

    /// The answer to an upgrade. It is a part, so that it goes out even when too much stands behind it and is
    /// dropped: no close frame could be read without it.
    fn switching(&mut self, cx: &Cx, codec: &mut Codec, upgrade: &http::Upgrade) -> SharedFrame {
        let date = self.date(cx);
        codec.replies.clear();
        http::put_switching(&mut codec.replies, upgrade, date);
        SharedFrame::part(&codec.replies)
    }
}

/// How messages go on a WebSocket. Compression stays in `upgrade` only where it is agreed on.
fn agreed_form(
    options: &Options,
    kind: EndpointKind,
    head: &Head<'_>,
    upgrade: &mut http::Upgrade,
) -> Form {
    let (echo, one_way) = (kind == EndpointKind::Echo, kind == EndpointKind::UniWebSocket);
    let deflate = if one_way { options.uni_websocket.deflate } else { options.deflate };
    let may_deflate = deflate.is_some() && kind != EndpointKind::Admin;
    upgrade.deflate = upgrade.deflate.filter(|_| may_deflate);
    let framing = match upgrade.deflate {
        Some(deflate) => Framing::deflate(deflate.server_window_bits),
        None if one_way && !options.uni_websocket.joins => Framing::WebSocketSingle,
        None => Framing::WebSocket,
    };
    let format = http::format(head.query, upgrade.protocol);
    match one_way {
        true => Form::one_way(framing),
        false => Form::new(framing, !echo && format == http::Format::Protobuf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};
    use crate::shard::http::endpoint::Endpoint;

    #[test]
    fn the_user_of_a_header_is_kept_until_the_client_connects() {
        let mut plan = Plan::default();
        plan.client.user_id_http_header = "x-user".into();
        plan.options.endpoints = vec![Endpoint::new("/ws", EndpointKind::WebSocket)];
        let mut of = Wired::new(plan);
        let (link, key) = of.connect();
        let head = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                    X-User: ann\r\n\r\n";
        of.request(key, head);
        assert!(of.received(link).starts_with("HTTP/1.1 101 "));
        let effect = of.net.next_effect();
        assert!(
            matches!(&effect, Some(Effect::Client { user: Some(user), headers: None, .. }) if user == "ann"),
            "{effect:?}"
        );
        assert_eq!(of.end(), []);
    }
}
