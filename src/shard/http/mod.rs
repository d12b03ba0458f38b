//! HTTP on the public port: requests, their bodies, responses that go on, up-links and polls.

pub(crate) mod bodies;
pub(crate) mod body;
pub(crate) mod emulation;
pub(crate) mod endpoint;
pub(crate) mod polls;
pub(crate) mod refusals;
pub(crate) mod route;
pub(crate) mod stream;
pub(crate) mod upgrade;

use self::bodies::Bodies;
use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::image::durable;
use crate::proto::http::{DateCache, HttpDate, Reuse};
use crate::session::Made;
use crate::shard::by_slot::BySlot;
use crate::shard::context::Cx;
use crate::shard::stats::ShardCounters;

/// The state of HTTP requests that their connections' records have no room for.
#[derive(Default)]
pub(crate) struct HttpState {
    /// Bodies of requests that are not complete.
    pub(crate) bodies: Bodies,
    /// Heads of responses that wait for the result of the `connect`, by slot.
    pub(crate) heads: BySlot<UnsentHead>,
    /// Connections with a request that was answered at once: bytes behind it are next.
    pub(crate) answered: Vec<ConnKey>,
    /// Requests that wait for publications, by slot.
    pub(crate) polls: BySlot<Box<Poll>>,
    /// The `Date` of answers.
    date: DateCache,
}

impl HttpState {
    /// The `Date` of answers in this turn.
    pub(crate) fn date(&mut self, cx: &Cx) -> HttpDate {
        self.date.at(cx.unix.0)
    }

    /// A connection is closed: its unsent head and its poll go.
    pub(crate) fn forget(&mut self, index: u32) {
        self.heads.remove(&index);
        self.polls.remove(&index);
    }

    /// Takes the connections with a request that was answered at once.
    pub(crate) fn take_answered(&mut self) -> Vec<ConnKey> {
        std::mem::take(&mut self.answered)
    }

    /// Whether any request was answered at once.
    pub(crate) fn has_answered(&self) -> bool {
        !self.answered.is_empty()
    }

    /// The poll of a connection.
    pub(crate) fn poll(&mut self, index: u32) -> Option<&mut Poll> {
        self.polls.get_mut(&index).map(|poll| &mut **poll)
    }

    /// Takes the poll of a connection, which ends.
    pub(crate) fn take_poll(&mut self, index: u32) -> Option<Box<Poll>> {
        self.polls.remove(&index)
    }

    /// Gauges that are cheaper to read off than to keep.
    pub(crate) fn set_gauges(&self, counters: &ShardCounters) {
        counters.unfinished_bytes.set(self.bodies.bytes() as u64);
    }

    /// Everything that has to be empty when all connections have gone, and how much is in it.
    pub(crate) fn left(&self) -> [(&'static str, usize); 4] {
        [
            ("heads of responses", self.heads.len()),
            ("requests just answered", self.answered.len()),
            ("polls", self.polls.len()),
            ("bytes of bodies", self.bodies.bytes()),
        ]
    }
}

/// The head of a response that goes out, or is replaced, when its `connect` is decided.
#[derive(Debug)]
pub(crate) struct UnsentHead {
    frame: SharedFrame,
    /// Which of the endpoints.
    endpoint: usize,
    cors: String,
}

durable!(UnsentHead { frame, endpoint, cors });

/// A request that isn't answered.
#[derive(Debug)]
pub(crate) struct Poll {
    /// Whether another request may follow.
    pub(crate) reuse: Reuse,
    /// Header lines of the answer.
    pub(crate) cors: Box<str>,
    /// The result of its `connect`: nothing is answered before it.
    pub(crate) begun: Option<Begun>,
    /// Publications that came, by channel: each a list without its brackets.
    pub(crate) came: Vec<(u32, SharedFrame)>,
    /// Bytes of them.
    pub(crate) came_bytes: usize,
    /// They were too many.
    pub(crate) over: bool,
}

// One that has begun is answered before an image is written.
durable!(Poll { reuse, cors } anew { begun: None, came: Vec::new(), came_bytes: 0, over: false });

impl Poll {
    /// Its `connect` is answered.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }
}

/// The parts of a `connect` that are kept until the answer.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) made: Box<[Made]>,
    pub(crate) ttl: Option<u32>,
    /// Data for the result; empty for none.
    pub(crate) data: Box<[u8]>,
}

#[cfg(test)]
mod tests {
    use crate::shard::fixture::{Plan, Wired};
    use crate::shard::http::endpoint::{Endpoint, EndpointKind};

    #[test]
    fn a_closed_connection_leaves_no_poll() {
        let mut plan = Plan::default();
        plan.options.endpoints = vec![Endpoint::new("/poll", EndpointKind::LongPoll)];
        let mut of = Wired::new(plan);
        let (_, key) = of.connect();
        of.request(key, "GET /poll?cf_connect={} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(of.net.http.poll(key.index).is_some());
        assert_eq!(of.net.http.left()[2], ("polls", 1));
        of.net.http.forget(key.index);
        assert!(of.net.http.take_poll(key.index).is_none());
        assert_eq!(of.end(), []);
    }
}
