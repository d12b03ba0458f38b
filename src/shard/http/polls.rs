//! Requests that wait for publications: `long_poll`, for clients that can hold neither a socket nor a stream.
//!
//! ```text
//!  GET --> session, channels recovered --(something was missed or lost, or no position was given)--> answer
//!              '--> waits --(publications, its time is over, the session ends)--> answer --> Head
//! ```
//! Each request is a session of its own, with a key and a client id of its own, that ends with its answer. What goes on is the positions, which the
//! client has: any shard, or any node with the same history, takes the next request. So whatever can't be in
//! an answer is left out of it together with the position behind it: the next request gets it.

use std::sync::Arc;

use crate::base::form::{Form, Framing};
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::io::Driver;
use crate::proto::client::{
    self, ConnectRequest, ConnectResult, Disconnect, Encoding, Push, Reply, SubscribeResult,
    comes_back,
};
use crate::proto::http::{Head, Reuse};
use crate::session::{Connecting, Made, SubState};
use crate::shard::Shard;
use crate::shard::context::Cx;
use crate::shard::net::Net;
use crate::shard::net::record::NONE;

/// A request that isn't answered.
#[derive(Debug)]
pub(crate) struct Poll {
    /// Whether another request may follow.
    reuse: Reuse,
    /// Header lines of the answer.
    cors: Box<str>,
    /// What its `connect` came to: nothing before that is answered.
    begun: Option<Begun>,
    /// Publications that came, by channel: each a list without its brackets.
    came: Vec<(u32, SharedFrame)>,
    /// Bytes of them.
    came_bytes: usize,
    /// They were too many.
    over: bool,
}

/// What is kept of a `connect` until the answer.
#[derive(Debug)]
struct Begun {
    made: Box<[Made]>,
    ttl: Option<u32>,
    /// Data for the result; empty for none.
    data: Box<[u8]>,
}

/// A request of a poll as a connect request: the channels with a position go on from there, and all are to be
/// recoverable.
pub(crate) fn as_poll(request: &mut ConnectRequest<'_>) {
    for sub in request.subs.values_mut() {
        sub.recover |= !sub.epoch.is_empty() || sub.offset > 0;
        sub.recoverable = true;
        sub.join_leave = false;
        sub.delta = "".into();
    }
}

/// Status of the answer when a session ends with a code before it has begun, or for good.
fn status_of(code: u16) -> u16 {
    match code {
        _ if comes_back(code) => 503,
        _ if code == Disconnect::InvalidToken.code() => 401,
        _ if code == Disconnect::BadRequest.code() => 400,
        _ => 403,
    }
}

impl<D: Driver> Net<D> {
    /// A request is whole, and a client's.
    pub(crate) fn begin_poll(&mut self, cx: &Cx, key: ConnKey, head: &Head<'_>) {
        cx.counters().polls.add(1);
        let poll = Poll {
            reuse: head.reuse(),
            cors: self.cors(cx, head).into(),
            begun: None,
            came: Vec::new(),
            came_bytes: 0,
            over: false,
        };
        self.begin_client(cx, key, Form::one_way(Framing::Poll), head);
        self.polls.insert(key.index, Box::new(poll));
        if let Some(conn) = self.conn(key) {
            let pipelined = conn.rx.as_ref().is_some_and(|rx| !rx.raw.is_empty());
            conn.flags.set_paused(pipelined);
            if !pipelined {
                conn.rx = None;
            }
        }
    }

    /// What came on a connection whose request isn't answered: it is the next one's, and no more is read.
    pub(crate) fn behind_poll(&mut self, key: ConnKey, bytes: &[u8]) {
        if let Some(conn) = self.conn(key) {
            conn.flags.set_paused(true);
            conn.rx.get_or_insert_default().raw.extend_from_slice(bytes);
        }
    }

    /// Publications for a poll: it is answered when the turn has no more for it.
    pub(crate) fn collect_for_poll(
        &mut self,
        cx: &Cx,
        index: u32,
        channel: u32,
        frame: Option<&SharedFrame>,
    ) {
        let bytes_max = cx.client.answer_bytes_max();
        let (Some(poll), Some(frame)) = (self.polls.get_mut(&index), frame) else { return };
        poll.came_bytes += frame.len();
        poll.over |= poll.came_bytes > bytes_max;
        match poll.over {
            true => poll.came = Vec::new(),
            false => poll.came.push((channel, frame.clone())),
        }
    }
}

impl<D: Driver> Shard<D> {
    /// The `connect` of a poll is good, and its channels are there.
    pub(crate) fn poll_begun(&mut self, index: u32, connecting: Connecting) {
        let Some(poll) = self.net.polls.get_mut(&index) else { return };
        let nothing = |made: &Made| made.recovered && made.publications.is_none();
        let Connecting { made, ttl, data, .. } = connecting;
        let waits = made.iter().all(nothing) && poll.came.is_empty() && !poll.over;
        poll.begun = Some(Begun { made: made.into(), ttl, data });
        if !waits {
            self.answer_poll(index);
        }
    }

    /// Answers a poll that has begun with what there is for it, if anything.
    pub(crate) fn answer_poll(&mut self, index: u32) {
        let Some(poll) = self.net.polls.get_mut(&index) else { return };
        let Some(mut begun) = poll.begun.take() else { return };
        let (came, over) = (std::mem::take(&mut poll.came), poll.over);
        let mut left = self.cx.client.answer_bytes_max();
        for made in &mut begun.made {
            let list = made.publications.take();
            let Some(local) = self.local.locals.find(&made.channel).filter(|_| !over) else {
                continue;
            };
            let came = || came.iter().filter(|(of, _)| *of == local).map(|(_, frame)| frame);
            let bytes = list.iter().chain(came()).map(SharedFrame::len).sum::<usize>();
            let Some(rest) = left.checked_sub(bytes) else { continue };
            let sub = self.session_of(index).and_then(|session| Some(*session.subs.find(local)?));
            let place = sub.filter(|sub| sub.state == SubState::Live).map(|sub| sub.place);
            let position = place.and_then(|place| self.local.locals.position(local, place));
            let Some((_, epoch, offset)) = position else { continue };
            left = rest;
            (made.epoch, made.offset) = (epoch.as_str().into(), offset);
            if bytes > 0 {
                made.publications = Some(join(list.as_ref(), came()));
            }
        }
        self.put_poll_answer(index, &begun);
    }

    /// Answers a poll as if nothing had come: what did comes again, from the positions that it began with.
    pub(crate) fn return_poll(&mut self, index: u32) {
        let Some(poll) = self.net.polls.get_mut(&index) else { return };
        let Some(mut begun) = poll.begun.take() else { return };
        begun.made.iter_mut().for_each(|made| made.publications = None);
        self.put_poll_answer(index, &begun);
    }

    fn put_poll_answer(&mut self, index: u32, begun: &Begun) {
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        let client_id = self.client_id(conn.key(index)).text();
        let client = Arc::clone(&self.cx.client);
        let subs: Vec<(&str, SubscribeResult<'_>)> =
            begun.made.iter().map(|made| (made.channel.as_str(), made.result())).collect();
        if begun.made.iter().all(|made| made.publications.is_none()) {
            self.cx.counters().polls_empty.add(1);
        }
        let result = ConnectResult {
            client: client_id.as_str(),
            version: &client.version,
            expires: begun.ttl.is_some(),
            ttl: begun.ttl.unwrap_or(0),
            data: &begun.data,
            subs: &subs,
            time: if client.include_server_time { self.cx.unix.0 * 1000 } else { 0 },
            ..ConnectResult::default()
        };
        let mut body = Vec::new();
        client::put_connect_result(&mut body, &result);
        self.end_poll(index, 200, &body);
    }

    /// The `connect` of a poll is an error.
    pub(crate) fn poll_error(&mut self, index: u32, code: u32, reply: &Reply<'_>) {
        let mut body = Vec::new();
        Encoding::Json.put_reply(&mut body, 0, reply);
        self.end_poll(index, client::http_status(code), &body);
    }

    /// The session of a poll ends before that is answered: if it only has to come back, it is told so by an
    /// answer with nothing in it.
    pub(crate) fn break_off_poll(&mut self, index: u32, code: u16, reason: &str) {
        let begun = self.net.polls.get(&index).is_some_and(|poll| poll.begun.is_some());
        if begun && comes_back(code) {
            return self.return_poll(index);
        }
        let mut body = Vec::new();
        client::put_push(
            &mut body,
            Form::one_way(Framing::Poll),
            "",
            &Push::Disconnect { code, reason },
        );
        self.end_poll(index, status_of(code), &body);
    }

    /// Sends the answer to a poll, and ends its session. The connection may have another one, of another user,
    /// under a key of its own: what comes for this session later must not be taken for that one's.
    fn end_poll(&mut self, index: u32, status: u16, body: &[u8]) {
        let Some(poll) = self.net.polls.remove(&index) else { return };
        self.detach(index);
        self.forget_client(index);
        let draining = self.net.draining.is_some();
        self.net.take_held(index);
        let Some(conn) = self.net.conns.get(index as usize) else { return };
        // Otherwise a home may still have to be told in which form it was, and under which key.
        let is_free = conn.session == NONE;
        let old = conn.key(index);
        let renewed = match poll.reuse.is_kept() && !draining && is_free {
            true => self.net.renew_key(index),
            false => None,
        };
        let (key, reuse) = (renewed.unwrap_or(old), poll.reuse.unless(renewed.is_none()));
        if reuse.is_kept()
            && let Some(conn) = self.net.conn(key)
        {
            conn.form = Form::JSON;
        }
        //= client protocol, 1: what one user was told is nobody else's, and is not told again
        let more = [&poll.cors, "Cache-Control: private, no-store\r\n"].concat();
        self.net.answer(&self.cx, &mut self.post, key, reuse, status, &more, body, &[]);
    }
}

/// A list and what came behind it, as one list.
fn join<'f>(
    list: Option<&SharedFrame>,
    came: impl Iterator<Item = &'f SharedFrame>,
) -> SharedFrame {
    let mut joined = list.map_or_else(|| b"[".to_vec(), |list| list.bytes().to_vec());
    if list.is_some() {
        joined.pop();
    }
    for frame in came {
        if joined.len() > 1 {
            joined.push(b',');
        }
        joined.extend_from_slice(frame.bytes());
    }
    joined.push(b']');
    SharedFrame::part(&joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_joined() {
        let part = |text: &str| SharedFrame::part(text.as_bytes());
        let (list, one, two) = (part("[{},{}]"), part("{\"a\":1}"), part("{\"b\":2},{\"c\":3}"));
        for (list, came, expected) in [
            (Some(&list), vec![], "[{},{}]"),
            (None, vec![&one], "[{\"a\":1}]"),
            (None, vec![&one, &two], "[{\"a\":1},{\"b\":2},{\"c\":3}]"),
            (Some(&list), vec![&two], "[{},{},{\"b\":2},{\"c\":3}]"),
        ] {
            assert_eq!(join(list, came.into_iter()).bytes(), expected.as_bytes());
        }
    }

    #[test]
    fn statuses() {
        for (code, status) in [
            (3001, 503),
            (3010, 503),
            (3500, 401),
            (3501, 400),
            (3503, 403),
            (4000, 503),
            (4500, 403),
        ] {
            assert_eq!(status_of(code), status, "{code}");
        }
    }
}
