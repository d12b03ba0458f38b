//! Requests with a body, and those that are not for a shard: the socket stays here, the control thread
//! answers.
//!
//! ```text
//!   Head --(body is coming)--> Body --(all of it is here)--> Asked --(Mail::Response)--> Head
//! ```
//! One request of a connection is on its way at a time, so that answers go out in the order of the
//! requests; what was sent behind it waits unread.

use super::conn::Rx;
use super::mail::{Asker, CONTROL, Mail, WebRequest};
use super::*;
use crate::base::notices::Reason;
use crate::proto::http::{self, BodyReader};

/// A request whose body is on its way in.
#[derive(Debug)]
pub(super) struct Incoming {
    head: Box<[u8]>,
    body: BodyReader,
    /// Which of the endpoints it is for; `None`: the control thread.
    endpoint: Option<usize>,
}

impl Incoming {
    /// The request's head.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Which of the endpoints it is for.
    pub(super) fn endpoint(&self) -> Option<usize> {
        self.endpoint
    }

    /// Head and body.
    pub(super) fn into_parts(self) -> (Box<[u8]>, Vec<u8>) {
        (self.head, self.body.into_bytes())
    }

    /// Bytes of it that are here.
    pub(super) fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

impl<D: Driver> Shard<D> {
    /// A request for an endpoint, or for the control thread; `rest` came behind its head.
    pub(super) fn collect(
        &mut self,
        key: ConnKey,
        endpoint: Option<usize>,
        head: &http::Head<'_>,
        bytes: &[u8],
        rest: &[u8],
    ) {
        let bytes_max = match endpoint.and_then(|at| self.node.options.endpoints.get(at)) {
            Some(endpoint) => endpoint.body_bytes_max,
            None => {
                self.counters().web_requests.add(1);
                WEB_BODY_BYTES_MAX
            }
        };
        let body = match BodyReader::new(head.body, bytes_max) {
            Ok(body) => body,
            Err(refusal) if endpoint.is_some() => {
                return self.refuse_openly(key.index, head, refusal);
            }
            Err(refusal) => return self.refuse(key.index, refusal),
        };
        let incoming = Box::new(Incoming { head: bytes.into(), body, endpoint });
        let tick = self.tick();
        let Some(conn) = self.conn(key) else { return };
        conn.phase = Phase::Body;
        conn.since_tick = tick;
        conn.rx = Some(Box::new(Rx { incoming: Some(incoming), ..Rx::default() }));
        self.schedule(key.index);
        self.web_body(key, rest);
        //= RFC 9110 10.1.1: who waits for it gets a 100 before it sends the body
        let waits = self.conn(key).is_some_and(|conn| conn.phase == Phase::Body);
        if waits && head.version == 1 && head.has_token("expect", "100-continue") {
            self.enqueue(key.index, SharedFrame::part(http::CONTINUE));
        }
    }

    /// Bytes of a request's body, and of what may come behind it.
    pub(super) fn web_body(&mut self, key: ConnKey, bytes: &[u8]) {
        let short = self.web_bytes > WEB_BYTES_MAX
            || self.mail[CONTROL].is_full()
            || self.node.memory.is_short();
        let Some(conn) = self.conn(key) else { return };
        let Some(rx) = conn.rx.as_mut() else { return };
        let Some(incoming) = rx.incoming.as_mut() else { return };
        let before = incoming.body.len();
        let taken = match incoming.body.take(bytes) {
            Ok(taken) => taken,
            Err(refusal) => {
                let Some(incoming) = rx.incoming.take() else { return };
                self.web_bytes -= before;
                return self.refuse_body(key.index, &incoming, refusal);
            }
        };
        let added = incoming.body.len() - before;
        if !incoming.body.is_done() {
            let bytes = incoming.bytes();
            self.web_bytes += added;
            if short {
                self.refuse_for_now(key.index, Reason::HttpBusy);
            } else if !self.hold_unfinished(key.index, bytes) {
                self.refuse(key.index, http::Refusal::AddressBytes);
            }
            return;
        }
        rx.raw.extend_from_slice(&bytes[taken..]);
        let Some(incoming) = rx.incoming.take() else { return };
        self.web_bytes -= before;
        self.hold_unfinished(key.index, 0);
        match incoming.endpoint {
            Some(at) => self.serve(key, at, *incoming),
            None => self.ask_control(key, *incoming),
        }
    }

    /// The request is whole.
    fn ask_control(&mut self, key: ConnKey, incoming: Incoming) {
        let max = self.node.options.requests_unanswered_max;
        let Some(credits) = self.mail[CONTROL].spend(1, max) else {
            return self.refuse_for_now(key.index, Reason::HttpBusy);
        };
        if let Some(conn) = self.conn(key) {
            conn.phase = Phase::Asked;
            conn.flags.set_paused(true);
        }
        let asker = Asker { credits, ..Asker::of(key) };
        let address = self.client_address(key.index);
        let (head, body) = incoming.into_parts();
        let body = body.into();
        self.post(CONTROL, Mail::Request(Box::new(WebRequest { asker, head, body, address })));
    }

    /// A request is answered: by the control thread, by another shard, or here.
    pub(super) fn web_response(&mut self, key: ConnKey, bytes: SharedFrame, keep_alive: bool) {
        if self.conn(key).is_none_or(|conn| conn.phase != Phase::Asked) {
            return;
        }
        self.enqueue(key.index, bytes);
        match keep_alive {
            true => self.request_done(key),
            false => self.linger(key.index),
        }
    }

    /// The answer to a request is on its way: the next may come.
    pub(super) fn request_done(&mut self, key: ConnKey) {
        let tick = self.tick();
        let Some(conn) = self.conn(key) else { return };
        if conn.phase != Phase::Asked {
            return;
        }
        conn.phase = Phase::Head;
        conn.flags.set_served(true);
        conn.since_tick = tick;
        self.request_of_client_done(key.index);
        self.next_web_request(key);
        self.schedule(key.index);
    }

    /// Goes on with what was sent behind a request, unless its answers aren't taken.
    pub(super) fn next_web_request(&mut self, key: ConnKey) {
        let Some(at) = self.conn(key).map(|conn| conn.outbox) else { return };
        let waits = self.outboxes.get(at).map_or(0, |outbox| outbox.bytes());
        if waits >= ECHO_BACKLOG_BYTES as usize {
            return;
        }
        let rx = self.conn(key).and_then(|conn| conn.rx.take());
        let raw = rx.map(|rx| rx.raw).filter(|raw| !raw.is_empty());
        self.resume(key);
        if let Some(raw) = raw {
            self.head(key, &raw);
        }
    }

    /// Nothing of this connection is on its way any more: bodies, commands.
    pub(super) fn forget_rx(&mut self, rx: Option<Box<Rx>>) {
        let Some(mut rx) = rx else { return };
        self.forget_emulated(&mut rx);
        if let Some(incoming) = rx.incoming {
            self.web_bytes -= incoming.body.len();
        }
    }
}
