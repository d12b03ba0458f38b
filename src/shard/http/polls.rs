//! Requests that wait for publications: `long_poll`, for clients that can hold neither a socket nor a stream.
//!
//! ```text
//!  GET --> session, channels recovered --(something was missed or lost, or no position was given)--> answer
//!              '--> waits --(publications, its time is over, the session ends)--> answer --> Head
//! ```
//! Each request is a session of its own, with a key and a client id of its own, that ends with its answer. What goes on is the positions, which the
//! client has: any shard, or any node with the same history, takes the next request. So whatever can't be in
//! an answer is left out of it together with the position behind it: the next request gets it.

use crate::base::form::{Form, Framing};
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::io::Driver;
use crate::proto::client::{ConnectRequest, Disconnect, comes_back};
use crate::proto::http::Head;
use crate::shard::context::Cx;
use crate::shard::http::Poll;
use crate::shard::net::Net;

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
pub(crate) fn status_of(code: u16) -> u16 {
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
        self.http.polls.insert(key.index, Box::new(poll));
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
        let (Some(poll), Some(frame)) = (self.http.polls.get_mut(&index), frame) else { return };
        poll.came_bytes += frame.len();
        poll.over |= poll.came_bytes > bytes_max;
        match poll.over {
            true => poll.came = Vec::new(),
            false => poll.came.push((channel, frame.clone())),
        }
    }
}

/// A list and what came behind it, as one list.
pub(crate) fn join<'f>(
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
