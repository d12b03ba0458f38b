//! The session's half of polls: each ends with the answer, and the positions go with that.

use std::sync::Arc;

use crate::base::form::{Form, Framing};
use crate::base::frame::SharedFrame;
use crate::io::Driver;
use crate::proto::client::{
    self, ConnectResult, Encoding, Push, Reply, SubscribeResult, comes_back,
};
use crate::session::{Connecting, Made, SubState};
use crate::shard::clients::Clients;
use crate::shard::clients::leave::End;
use crate::shard::http::Begun;
use crate::shard::http::endpoint::EndpointKind;
use crate::shard::http::polls::{join, status_of};
use crate::shard::http::route::Answer;
use crate::shard::local::LocalSide;
use crate::shard::net::record::NONE;
use crate::shard::outlets::Outlets;

impl Clients {
    /// The `connect` of a poll is good, and its channels are there.
    pub(crate) fn poll_begun<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        connecting: Connecting,
    ) {
        let Some(poll) = out.net.http.poll(index) else { return };
        let nothing = |made: &Made| made.recovered && made.publications.is_none();
        let Connecting { made, ttl, data, .. } = connecting;
        let waits = made.iter().all(nothing) && poll.came.is_empty() && !poll.over;
        poll.begun = Some(Begun { made: made.into(), ttl, data });
        if !waits {
            self.answer_poll(out, side, index);
        }
    }

    /// Answers a poll that has begun with what there is for it, if anything.
    pub(crate) fn answer_poll<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) {
        let Some(poll) = out.net.http.poll(index) else { return };
        let Some(mut begun) = poll.begun.take() else { return };
        let (came, over) = (std::mem::take(&mut poll.came), poll.over);
        let mut left = out.cx.client.answer_bytes_max();
        for made in &mut begun.made {
            let list = made.publications.take();
            let Some(local) = side.locals.find(&made.channel).filter(|_| !over) else {
                continue;
            };
            let came = || came.iter().filter(|(of, _)| *of == local).map(|(_, frame)| frame);
            let bytes = list.iter().chain(came()).map(SharedFrame::len).sum::<usize>();
            let Some(rest) = left.checked_sub(bytes) else { continue };
            let sub = self
                .session_of(out.net, index)
                .and_then(|session| Some(*session.subs.find(local)?));
            let place = sub.filter(|sub| sub.state == SubState::Live).map(|sub| sub.place);
            let position = place.and_then(|place| side.locals.position(local, place));
            let Some((_, epoch, offset)) = position else { continue };
            left = rest;
            (made.epoch, made.offset) = (epoch.as_str().into(), offset);
            if bytes > 0 {
                made.publications = Some(join(list.as_ref(), came()));
            }
        }
        self.put_poll_answer(out, side, index, &begun);
    }

    /// Answers a poll as if nothing had come: what did comes again, from the positions that it began with.
    pub(crate) fn return_poll<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) {
        let Some(poll) = out.net.http.poll(index) else { return };
        let Some(mut begun) = poll.begun.take() else { return };
        begun.made.iter_mut().for_each(|made| made.publications = None);
        self.put_poll_answer(out, side, index, &begun);
    }

    fn put_poll_answer<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        begun: &Begun,
    ) {
        let Some(conn) = out.net.at(index) else { return };
        let client_id = out.cx.client_id(conn.key(index)).text();
        let client = Arc::clone(&out.cx.client);
        let subs: Vec<(&str, SubscribeResult<'_>)> =
            begun.made.iter().map(|made| (made.channel.as_str(), made.result())).collect();
        if begun.made.iter().all(|made| made.publications.is_none()) {
            out.cx.counters().polls_empty.add(1);
        }
        let result = ConnectResult {
            client: client_id.as_str(),
            version: &client.version,
            expires: begun.ttl.is_some(),
            ttl: begun.ttl.unwrap_or(0),
            data: &begun.data,
            subs: &subs,
            time: if client.include_server_time { out.cx.unix.0 * 1000 } else { 0 },
            ..ConnectResult::default()
        };
        let mut body = Vec::new();
        client::put_connect_result(&mut body, &result);
        self.end_poll(out, side, index, End::of_poll(), 200, &body);
    }

    /// The `connect` of a poll is an error.
    pub(crate) fn poll_error<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        code: u32,
        reply: &Reply<'_>,
    ) {
        let mut body = Vec::new();
        Encoding::Json.put_reply(&mut body, 0, reply);
        self.end_poll(out, side, index, End::of_poll(), client::http_status(code), &body);
    }

    /// The session of a poll ends before the answer. A client that should come back gets an answer
    /// without publications.
    pub(crate) fn end_poll_session<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        code: u16,
        reason: &str,
    ) {
        let begun = out.net.http.poll(index).is_some_and(|poll| poll.begun.is_some());
        if begun && comes_back(code) {
            return self.return_poll(out, side, index);
        }
        let mut body = Vec::new();
        client::put_push(
            &mut body,
            Form::one_way(Framing::Poll),
            "",
            &Push::Disconnect { code, reason },
        );
        self.end_poll(out, side, index, End { code, reason }, status_of(code), &body);
    }

    /// Sends the answer to a poll, and ends its session. The connection may have another one, of another user,
    /// under a key of its own: what comes for this session later must not be taken for that one's.
    fn end_poll<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        end: End<'_>,
        status: u16,
        body: &[u8],
    ) {
        let Some(poll) = out.net.http.take_poll(index) else { return };
        self.detach(out, side, index, end);
        self.forget_client(out, index);
        let draining = out.net.is_draining();
        out.net.take_held(index);
        let Some(conn) = out.net.at(index) else { return };
        // Otherwise mail to a home still needs the form and the key of the old session.
        let is_free = conn.session == NONE;
        let old = conn.key(index);
        let renewed = match poll.reuse.is_kept() && !draining && is_free {
            true => out.net.renew_key(index),
            false => None,
        };
        let (key, reuse) = (renewed.unwrap_or(old), poll.reuse.unless(renewed.is_none()));
        if reuse.is_kept()
            && let Some(conn) = out.net.conn(key)
        {
            conn.form = Form::JSON;
        }
        //= client protocol, 1: what one user was told is nobody else's, and is not told again
        let more = [&poll.cors, "Cache-Control: private, no-store\r\n"].concat();
        let answer = Answer { reuse, status, headers: &more, body };
        out.cx.count_response(out.cx.endpoint_of(EndpointKind::LongPoll), status);
        out.net.answer(out.cx, out.post, key, answer, &[]);
    }
}

#[cfg(test)]
mod tests {
    use crate::base::id::ConnKey;
    use crate::io::sim::LinkId;
    use crate::proto::client::{ConnectRequest, Disconnect};
    use crate::shard::clients::testing::Scene;
    use crate::shard::fixture::Plan;
    use crate::shard::http::endpoint::{Endpoint, EndpointKind};

    /// A poll without subscriptions, which waits.
    fn poll() -> (Scene, LinkId, ConnKey) {
        let mut plan = Plan::default();
        plan.options.endpoints = vec![Endpoint::new("/poll", EndpointKind::LongPoll)];
        let mut scene = Scene::new(plan);
        let (link, key) = scene.wired.connect();
        scene.wired.request(key, "GET /poll HTTP/1.1\r\nHost: a\r\n\r\n");
        while scene.wired.net.next_effect().is_some() {}
        let index = key.index;
        scene.clients.asides.entry(index).header_user = "alice".into();
        scene.with(|clients, out, side| {
            let result = clients.connect(out, side, index, 0, &ConnectRequest::default());
            clients.finish_command(out, side, index, 0, "", result);
        });
        assert_eq!(scene.wired.received(link), "");
        (scene, link, key)
    }

    #[test]
    fn a_poll_is_answered_once_and_its_connection_gets_a_new_key() {
        let (mut scene, link, key) = poll();
        scene.with(|clients, out, side| clients.answer_poll(out, side, key.index));
        let answer = scene.wired.received(link);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("no-store"), "{answer}");
        assert_eq!(scene.wired.cx.counters().polls_empty.get(), 1);
        assert!(scene.wired.net.conn(key).is_none(), "mail for that session finds nobody");
        scene.with(|clients, out, side| clients.answer_poll(out, side, key.index));
        assert_eq!(scene.wired.received(link), "");
        assert_eq!(scene.end(), []);
    }

    #[test]
    fn the_status_of_a_poll_whose_session_ends_says_whether_to_come_back() {
        for (why, status) in [
            (Disconnect::ForceReconnect, "200"),
            (Disconnect::InvalidToken, "401"),
            (Disconnect::ConnectionLimit, "403"),
        ] {
            let (mut scene, link, key) = poll();
            scene.with(|clients, out, side| clients.disconnect(out, side, key.index, why));
            let answer = scene.wired.received(link);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{why:?}: {answer}");
            assert_eq!(scene.end(), []);
        }
    }
}
