//! Requests that are refused: the answer, in the form that its client understands, and a counter for each reason.
//!
//! An event source gives up for good on any status but 200 (HTML standard, 9.2.3). So where it should come back,
//! because the node is busy only, its answer is a stream that says when to, and ends.

use std::fmt;

use crate::base::frame::SharedFrame;
use crate::base::notices::Reason;
use crate::io::Driver;
use crate::proto::http::{self, Head, Refusal};
use crate::shard::context::Cx;
use crate::shard::http::bodies::Incoming;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;
use crate::shard::notices::reason_of_refusal;

/// The form of a refusal, as the request determines it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner<'a> {
    /// The path of the request; empty: unknown.
    pub(crate) path: &'a str,
    /// More header lines of the answer.
    pub(crate) headers: &'a str,
    /// It was a HEAD: the answer has no body.
    pub(crate) is_head: bool,
    /// An event source sent it: where it may come back later, the answer is a stream.
    pub(crate) is_event_source: bool,
}

impl<'a> Manner<'a> {
    /// That of a request which is not for events.
    pub(crate) fn of(head: &'a Head<'_>) -> Self {
        Self { path: head.path, is_head: head.method == "HEAD", ..Self::default() }
    }
}

/// A refusal: the answer and its form, the reason and its detail for the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused<'a> {
    pub(crate) refusal: Refusal,
    pub(crate) reason: Reason,
    pub(crate) manner: Manner<'a>,
    /// The detail, formatted only for a line that is written.
    pub(crate) why: fmt::Arguments<'a>,
}

impl<'a> Refused<'a> {
    /// A refusal for the reason that belongs to it, without a detail.
    pub(crate) fn new(refusal: Refusal, manner: Manner<'a>) -> Self {
        Self { refusal, reason: reason_of_refusal(refusal), manner, why: format_args!("") }
    }

    /// A refusal whose client should send the request again later.
    fn busy(reason: Reason, manner: Manner<'a>) -> Self {
        Self { reason, ..Self::new(Refusal::Unavailable, manner) }
    }
}

impl<D: Driver> Net<D> {
    /// Refuses what is no request; the connection ends with the answer.
    pub(crate) fn refuse(&mut self, cx: &Cx, post: &mut Post, index: u32, refusal: Refusal) {
        self.refuse_because(cx, post, index, &Refused::new(refusal, Manner::default()));
    }

    /// Refuses a request; the connection ends with the answer.
    pub(crate) fn refuse_request(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        index: u32,
        head: &Head<'_>,
        refusal: Refusal,
    ) {
        self.refuse_because(cx, post, index, &Refused::new(refusal, Manner::of(head)));
    }

    /// Refuses a request in an answer that the page which sent it may read; the connection ends with it.
    pub(crate) fn refuse_openly(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        index: u32,
        head: &Head<'_>,
        refusal: Refusal,
    ) {
        let cors = self.cors(cx, head);
        let manner = Manner { headers: &cors, ..Manner::of(head) };
        self.refuse_because(cx, post, index, &Refused::new(refusal, manner));
    }

    /// Refuses a request that its client should send again later: with 503, or for an event source with a stream
    /// that ends. The connection ends with the answer.
    pub(crate) fn refuse_busy(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        index: u32,
        head: &Head<'_>,
        reason: Reason,
    ) {
        let cors = self.cors(cx, head);
        let is_event_source = self.is_event_source(cx, head);
        let manner = Manner { headers: &cors, is_event_source, ..Manner::of(head) };
        self.refuse_because(cx, post, index, &Refused::busy(reason, manner));
    }

    /// Logs why a request was refused. Its connection has no session, so that its address says who it was.
    pub(crate) fn log_refusal(
        &mut self,
        cx: &Cx,
        index: u32,
        reason: Reason,
        code: u32,
        why: fmt::Arguments<'_>,
    ) {
        let address = || self.client_address(index);
        cx.node.notices.notice_of(cx.now, reason, address, code, why);
    }

    /// Answers a request with a refusal, and logs the reason and its detail. The connection ends with it.
    pub(crate) fn refuse_because(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        index: u32,
        refused: &Refused<'_>,
    ) {
        let Refused { refusal, reason, manner, why } = *refused;
        let label = match refusal {
            Refusal::Unavailable => "",
            refusal => refusal.label(),
        };
        let sep = if label.is_empty() || why.as_str() == Some("") { "" } else { ": " };
        let code = refusal.status().into();
        self.log_refusal(cx, index, reason, code, format_args!("{label}{sep}{why}"));
        match refusal {
            Refusal::Unavailable => self.count_busy(cx, reason),
            _ => self.count_refusal(cx, refusal),
        }
        let Manner { path, headers, is_head, is_event_source } = manner;
        let mut answer = Vec::new();
        let date = self.date(cx);
        match is_event_source && refusal == Refusal::Unavailable {
            true => {
                cx.count_response(cx.endpoint_at(path), 200);
                http::put_event_source_retry(&mut answer, self.retry_ms(), headers, date);
            }
            false => {
                cx.count_response(cx.endpoint_at(path), refusal.status());
                http::put_refusal(&mut answer, refusal, headers, date, is_head);
            }
        }
        self.enqueue(cx, index, SharedFrame::new(&answer));
        self.linger(cx, post, index);
    }

    /// The request whose body is on its way is refused.
    pub(crate) fn refuse_body(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        index: u32,
        incoming: &Incoming,
        refusal: Refusal,
    ) {
        match http::parse(incoming.head()) {
            Ok(Some(head)) if incoming.endpoint().is_some() => {
                self.refuse_openly(cx, post, index, &head, refusal);
            }
            Ok(Some(head)) => self.refuse_request(cx, post, index, &head, refusal),
            _ => self.refuse(cx, post, index, refusal),
        }
    }

    /// The request of a connection that isn't whole is refused for now, whether its head or its body is missing.
    pub(crate) fn refuse_unfinished(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        index: u32,
        reason: Reason,
    ) {
        let rx = self.at_mut(index).and_then(|conn| conn.rx.as_mut());
        match rx.and_then(|rx| rx.incoming.take()) {
            Some(incoming) => {
                self.forget_body(&incoming);
                self.refuse_body_busy(cx, post, index, &incoming, reason);
            }
            None => {
                let refused = Refused::busy(reason, Manner::default());
                self.refuse_because(cx, post, index, &refused);
            }
        }
    }

    /// The same, where it should be sent again later.
    pub(crate) fn refuse_body_busy(
        &mut self,
        cx: &Cx,
        post: &mut Post,
        index: u32,
        incoming: &Incoming,
        reason: Reason,
    ) {
        // It was parsed before.
        if let Ok(Some(head)) = http::parse(incoming.head()) {
            self.refuse_busy(cx, post, index, &head, reason);
        }
    }

    /// Whether a request is an event source's, for an endpoint that has events for it.
    fn is_event_source(&self, cx: &Cx, head: &Head<'_>) -> bool {
        let mut endpoints = cx.node.options.endpoints.iter();
        endpoints.any(|endpoint| endpoint.path == head.path && endpoint.kind.is_events())
            && http::takes_events(head)
    }

    /// When an event source is to come back: random, so that those of a node that ended are spread.
    pub(crate) fn retry_ms(&mut self) -> u64 {
        EVENT_RETRY_MS_MIN + self.random_below(EVENT_RETRY_MS_MAX - EVENT_RETRY_MS_MIN)
    }

    pub(crate) fn count_refusal(&self, cx: &Cx, refusal: Refusal) {
        let counters = cx.counters();
        let counter = match refusal.status() {
            _ if refusal == Refusal::ForeignHost => &counters.refused_host,
            _ if refusal == Refusal::Repeated => &counters.refused_repeated,
            401 => &counters.refused_api_key,
            403 => &counters.refused_origin,
            404 => &counters.refused_not_found,
            408 if refusal == Refusal::BodyTimeout => &counters.refused_slow_body,
            408 => &counters.refused_timeout,
            413 | 414 | 431 => &counters.refused_too_long,
            429 if refusal == Refusal::AddressConnections => &counters.refused_address_connections,
            429 if refusal == Refusal::AddressRate => &counters.refused_address_rate,
            429 => &counters.refused_address_bytes,
            _ if matches!(
                refusal,
                Refusal::Method
                    | Refusal::NotUpgrade
                    | Refusal::WebSocketVersion
                    | Refusal::WebSocketKey
                    | Refusal::UpgradeBody
            ) =>
            {
                &counters.refused_upgrade
            }
            _ => &counters.refused_malformed,
        };
        counter.add(1);
    }

    /// The answer of a shard that ends to a request that begins with `bytes`.
    pub(crate) fn put_last_answer(&mut self, cx: &Cx, out: &mut Vec<u8>, bytes: &[u8]) {
        let date = self.date(cx);
        match http::parse(bytes) {
            Ok(Some(head)) if self.is_event_source(cx, &head) => {
                let (retry_ms, cors) = (self.retry_ms(), self.cors(cx, &head));
                http::put_event_source_retry(out, retry_ms, &cors, date);
            }
            Ok(Some(head)) => {
                let is_head = head.method == "HEAD";
                http::put_refusal(out, Refusal::Unavailable, "", date, is_head);
            }
            Ok(None) | Err(_) => {}
        }
    }
}

/// Event sources come back so soon, at random between both. Browsers take 3 to 5 s by themselves, all the same.
const EVENT_RETRY_MS_MIN: u64 = 1_000;
const EVENT_RETRY_MS_MAX: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn a_refusal_is_answered_and_counted_and_ends_the_connection() {
        let mut of = Wired::new(Plan::default());
        for (refusal, status) in
            [(Refusal::Malformed, "400"), (Refusal::Timeout, "408"), (Refusal::Unavailable, "503")]
        {
            let (link, key) = of.connect();
            of.net.refuse(&of.cx, &mut of.posts.post, key.index, refusal);
            let answer = of.received(link);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(of.net.conn(key).is_some_and(|conn| conn.flags.finished()));
        }
        let counters = of.cx.counters();
        let counted = (counters.refused_malformed.get(), counters.refused_timeout.get());
        assert_eq!((counted, counters.busy_requests.get()), ((1, 1), 1));
        assert_eq!(of.end(), []);
    }

    #[test]
    fn event_sources_come_back_at_random() {
        let mut of = Wired::new(Plan::default());
        let times: Vec<u64> = (0..20).map(|_| of.net.retry_ms()).collect();
        assert!(times.iter().all(|ms| (EVENT_RETRY_MS_MIN..EVENT_RETRY_MS_MAX).contains(ms)));
        assert!(times.iter().any(|ms| *ms != times[0]));
    }
}
