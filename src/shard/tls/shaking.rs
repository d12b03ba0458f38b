//! Handshakes: a step for each read, a bounded number of steps in a turn, and the reasons why they fail.

use std::iter;

use super::conns::{Early, Refused, Tls};
use crate::base::id::ConnKey;
use crate::io::{Driver, Sent};
use crate::proto::tls::handshake::{Established, HandshakeFault};
use crate::proto::tls::{Fault, Suite};
use crate::shard::notices;
use crate::shard::stats::ShardCounters;

/// The result of a step.
pub(super) enum Step {
    /// More has to come.
    More,
    /// The connection has keys. Behind this offset records follow.
    Done(usize),
    /// The connection is refused.
    Refused,
    /// The socket is broken.
    Broken,
}

/// The answer to a request in plain text.
const PLAIN_TEXT_REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    Content-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 59\r\n\
    Connection: close\r\n\
    \r\n\
    This port speaks TLS: use https:// or wss:// in the address";

impl Tls {
    /// Takes bytes that were read before and aren't handled.
    pub(super) fn take_unread(&mut self, index: u32) -> Option<Vec<u8>> {
        match self.early.get_mut(&index) {
            Some(Early::Shaking(shaking)) if !shaking.unread.is_empty() => {
                Some(std::mem::take(&mut shaking.unread))
            }
            _ => None,
        }
    }

    /// Handles bytes of a handshake.
    pub(super) fn step<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        input: &[u8],
    ) -> Step {
        self.steps = self.steps.saturating_sub(1);
        if !matches!(self.early.get(&key.index), Some(Early::Shaking(_))) {
            self.begin_shaking(key, Vec::new());
        }
        if let Err(answer) = self.begin(key.index, input) {
            return self.refuse_shaking(inner, key, socket, &answer);
        }
        let Some(Early::Shaking(shaking)) = self.early.get_mut(&key.index) else {
            return Step::Refused;
        };
        let Some(handshake) = &mut shaking.handshake else { return Step::Refused };
        let mut at = 0;
        let result = handshake.read(input, &mut at);
        let is_broken = !self.flush_handshake(inner, key, socket);
        match result {
            Ok(false) if is_broken => Step::Broken,
            Ok(false) => Step::More,
            Ok(true) => match self.established(key.index) {
                Ok(()) if is_broken => Step::Broken,
                Ok(()) => Step::Done(at),
                Err(fault) => {
                    let answer = Answer { label: fault.label(), fault: Some(fault), plain: false };
                    self.refuse_shaking(inner, key, socket, &answer)
                }
            },
            Err(fault) => {
                let answer = Answer { label: fault.label(), fault: Some(fault), plain: false };
                self.refuse_shaking(inner, key, socket, &answer)
            }
        }
    }

    /// Makes the handshake with its first bytes.
    fn begin(&mut self, index: u32, input: &[u8]) -> Result<(), Answer> {
        let Some(Early::Shaking(shaking)) = self.early.get_mut(&index) else { return Ok(()) };
        if shaking.handshake.is_some() {
            return Ok(());
        }
        // A record begins with a number below 32, an HTTP request with a letter.
        if input.first().is_some_and(u8::is_ascii_alphabetic) {
            return Err(Answer { label: "plain_text", fault: None, plain: true });
        }
        let settings = self.node.tls.as_ref().map(|tls| tls.load());
        let begun = settings.map_or(Err(HandshakeFault::Secrets), |settings| settings.begin());
        match begun {
            Ok(handshake) => {
                shaking.handshake = Some(handshake);
                Ok(())
            }
            Err(fault) => Err(Answer { label: fault.label(), fault: Some(fault), plain: false }),
        }
    }

    /// Sends what the handshake has to say. False: the connection is broken.
    pub(super) fn flush_handshake<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
    ) -> bool {
        let Some(Early::Shaking(shaking)) = self.early.get_mut(&key.index) else { return true };
        let Some(handshake) = &mut shaking.handshake else { return true };
        while !shaking.in_flight && !handshake.to_send().is_empty() {
            match inner.send(key, socket, iter::once(handshake.to_send()), 0) {
                Sent::Bytes(bytes) => handshake.sent(bytes),
                Sent::Blocked => break,
                Sent::Pending => shaking.in_flight = true,
                Sent::Failed => return false,
            }
        }
        true
    }

    /// The handshake is done: rustls goes, the keys stay.
    fn established(&mut self, index: u32) -> Result<(), HandshakeFault> {
        let Some(Early::Shaking(shaking)) = self.early.get_mut(&index) else {
            return Err(HandshakeFault::Closed);
        };
        let in_flight = shaking.in_flight;
        let Some(handshake) = shaking.handshake.take() else { return Err(HandshakeFault::Closed) };
        let Established { packed, certificate, resumed, .. } = handshake.finish()?;
        let suite = packed.suite().ok_or(HandshakeFault::Secrets)?;
        let key = self.pool.insert(packed).map_err(|_| HandshakeFault::Secrets)?;
        self.early.remove(&index);
        self.shaking -= 1;
        self.set_key(index, key);
        if let Some(certificate) = certificate
            && let Some(settings) = &self.node.tls
        {
            // One without a name is a certificate, too.
            let name = settings.load().subject(&certificate).unwrap_or_default();
            self.names.insert(index, name.into_boxed_str());
        }
        self.set_notes(index, super::conns::Notes { in_flight, ..Default::default() });
        self.count_handshake(suite, resumed);
        Ok(())
    }

    fn count_handshake(&self, suite: Suite, resumed: bool) {
        let counters = self.counters();
        let counter = match (suite.is_tls13(), resumed) {
            (true, false) => &counters.tls_handshakes_1_3_full,
            (true, true) => &counters.tls_handshakes_1_3_resumed,
            (false, false) => &counters.tls_handshakes_1_2_full,
            (false, true) => &counters.tls_handshakes_1_2_resumed,
        };
        counter.add(1);
    }

    /// Ends a handshake that has failed. The peer gets the alert of rustls, or an answer in plain text.
    fn refuse_shaking<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        answer: &Answer,
    ) -> Step {
        failed_counter(self.counters(), answer.label).add(1);
        let address = inner.peer(socket).and_then(crate::base::address::Peer::ip);
        match &answer.fault {
            Some(fault) => notices::tls_refused(address, answer.label, fault),
            None => notices::tls_refused(address, answer.label, &"a request in plain text"),
        }
        self.end_shaking(key);
        if let Some(Early::Refused(refused)) = self.early.get_mut(&key.index) {
            refused.is_announced = false;
            if answer.plain {
                refused.unsent = PLAIN_TEXT_REFUSED.to_vec();
            }
        }
        Step::Refused
    }

    /// What a handshake has still to say goes out, and all that comes is thrown away. Not counted: the caller
    /// knows why.
    pub(super) fn end_shaking(&mut self, key: ConnKey) {
        if let Some(Early::Shaking(shaking)) = self.early.remove(&key.index) {
            self.shaking -= 1;
            let handshake = shaking.handshake.as_ref();
            let unsent = handshake.map_or_else(Vec::new, |handshake| handshake.to_send().to_vec());
            let refused = Refused {
                is_announced: true,
                unsent,
                in_flight: shaking.in_flight,
                finishing: false,
            };
            self.early.insert(key.index, Early::Refused(refused));
        }
    }

    /// The socket is broken: the keys go, so that a close sends nothing.
    pub(super) fn break_off(&mut self, index: u32) {
        if let Some(of) = self.take_key(index) {
            self.pool.remove(of);
            let refused = Refused { is_announced: true, ..Refused::default() };
            self.early.insert(index, Early::Refused(refused));
        }
    }

    /// The peer has closed in the middle of its handshake.
    pub(super) fn shaking_ended(&mut self, index: u32) {
        if let Some(Early::Shaking(_)) = self.early.get(&index) {
            self.counters().tls_failed_closed.add(1);
            self.early.remove(&index);
            self.shaking -= 1;
        }
    }

    /// A connection without keys is closed. One whose handshake is under way has run out of time, or made room.
    pub(super) fn forget_early(&mut self, index: u32) {
        if self.early.is_empty() {
            return;
        }
        if let Some(Early::Shaking(_)) = self.early.remove(&index) {
            self.counters().tls_failed_unfinished.add(1);
            self.shaking -= 1;
        }
    }

    /// A record that ends the connection.
    pub(super) fn record_fault<D: Driver>(
        &mut self,
        inner: &mut D,
        key: ConnKey,
        socket: &D::Socket,
        fault: Fault,
    ) {
        let address = inner.peer(socket).and_then(crate::base::address::Peer::ip);
        notices::tls_refused(address, fault.label(), &fault);
        self.take_fault(key.index, fault);
        self.flush_refused(inner, key, socket);
    }

    /// The keys go; the alert, and the sealed bytes before it, are still to be sent.
    pub(super) fn take_fault(&mut self, index: u32, fault: Fault) {
        fault_counter(self.counters(), fault).add(1);
        let in_flight = self.notes(index).in_flight;
        let unsent = self.records(index).map_or_else(Vec::new, |records| records.tail().to_vec());
        if let Some(of) = self.take_key(index) {
            self.pool.remove(of);
        }
        let refused = Refused { is_announced: false, unsent, in_flight, finishing: false };
        self.early.insert(index, Early::Refused(refused));
    }
}

/// Why a handshake ends, and how its peer is answered.
struct Answer {
    label: &'static str,
    fault: Option<HandshakeFault>,
    plain: bool,
}

/// The counter of handshakes that failed for a reason.
fn failed_counter<'c>(
    counters: &'c ShardCounters,
    label: &str,
) -> &'c crate::base::counters::Counter {
    match label {
        "plain_text" => &counters.tls_failed_plain_text,
        "malformed" => &counters.tls_failed_malformed,
        "incompatible" => &counters.tls_failed_incompatible,
        "misbehaved" => &counters.tls_failed_misbehaved,
        "peer_alert" => &counters.tls_failed_peer_alert,
        "certificate" => &counters.tls_failed_certificate,
        "protocol" => &counters.tls_failed_protocol,
        "decrypt" => &counters.tls_failed_decrypt,
        "too_long" => &counters.tls_failed_too_long,
        "closed" => &counters.tls_failed_closed,
        "inconsistent" => &counters.tls_failed_inconsistent,
        _ => &counters.tls_failed_refused,
    }
}

/// The counter of connections that ended with a record.
fn fault_counter(counters: &ShardCounters, fault: Fault) -> &crate::base::counters::Counter {
    match fault.label() {
        "bad_record_mac" => &counters.tls_record_faults_bad_record_mac,
        "record_overflow" => &counters.tls_record_faults_record_overflow,
        "unexpected_message" => &counters.tls_record_faults_unexpected_message,
        "key_update" => &counters.tls_record_faults_key_update,
        "without_data" => &counters.tls_record_faults_without_data,
        "late" => &counters.tls_record_faults_late,
        "renegotiation" => &counters.tls_record_faults_renegotiation,
        "peer_alert" => &counters.tls_record_faults_peer_alert,
        _ => &counters.tls_record_faults_other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Rig, SUITE};
    use super::super::waiting::TURN_BEGINNINGS_MAX;
    use super::*;
    use crate::io::Completion;
    use crate::io::sim::Seen;

    #[test]
    fn a_turn_makes_a_bounded_number_of_steps() {
        let mut rig = Rig::new(1 << 20);
        let mut conns: Vec<_> = (0..20).map(|_| rig.connect(SUITE)).collect();
        conns.iter_mut().for_each(|conn| rig.up(conn));
        rig.turn();
        for (at, conn) in conns.iter().enumerate() {
            let expected = if at < TURN_BEGINNINGS_MAX { "taken" } else { "blocked" };
            assert_eq!(rig.recv(conn), Err(expected));
        }
        // The rest is for those that have begun.
        let mut begun = TURN_BEGINNINGS_MAX;
        assert_eq!(rig.driver.unpackable().len(), begun);
        while begun < conns.len() {
            // A turn reports as many as it can make steps, in their order.
            assert!(rig.driver.has_work());
            let reported = rig.turn();
            let more = TURN_BEGINNINGS_MAX.min(conns.len() - begun);
            let readable = |conn: &super::super::testing::Conn| Completion::Readable {
                key: conn.key,
                ended: false,
            };
            let expected: Vec<_> = conns[begun..begun + more].iter().map(readable).collect();
            assert_eq!(reported, expected);
            for conn in &conns[begun..begun + more] {
                assert_eq!(rig.recv(conn), Err("taken"));
            }
            begun += more;
            assert_eq!(rig.driver.unpackable().len(), begun);
        }
        assert!(!rig.driver.has_work());
    }

    #[test]
    fn a_flight_takes_one_read() {
        let mut rig = Rig::new(1 << 20);
        let mut conn = rig.connect(SUITE);
        while rig.counters().tls_handshakes_1_3_full.get() == 0 {
            rig.up(&mut conn);
            rig.turn();
            assert_eq!(rig.recv(&conn), Err("taken"));
            rig.down(&mut conn);
        }
        conn.client.write(b"first");
        rig.up(&mut conn);
        rig.turn();
        assert_eq!(rig.recv(&conn), Ok(b"first".to_vec()));
    }

    #[test]
    fn a_broken_socket_gets_one_send() {
        let mut rig = Rig::new(1 << 20);
        let mut sends = Vec::new();
        for number in 0..40 {
            // Each second one is open already.
            let is_open = number % 2 == 0;
            let mut conn = if is_open { rig.open(SUITE) } else { rig.connect(SUITE) };
            conn.client.write(b"last");
            rig.up(&mut conn);
            rig.world.borrow_mut().reset(conn.link);
            rig.turn();
            let before = rig.world.borrow().failed_sends();
            let mut result = rig.recv(&conn);
            if is_open && result == Ok(b"last".to_vec()) {
                result = rig.recv(&conn);
            }
            assert_eq!(result, Err("failed"));
            rig.driver.close(conn.key, conn.socket, false);
            sends.push((is_open, rig.world.borrow().failed_sends() - before));
            assert!(rig.driver.left().iter().all(|(_, count)| *count == 0));
        }
        // A reset may destroy the hello before it is read.
        assert!(sends.contains(&(false, 1)), "{sends:?}");
        let is_allowed = |&(is_open, count): &(bool, usize)| count <= usize::from(!is_open);
        assert!(sends.iter().all(is_allowed), "{sends:?}");
    }

    #[test]
    fn a_request_in_plain_text_gets_an_answer_in_plain_text() {
        let mut rig = Rig::new(1 << 20);
        let conn = rig.connect(SUITE);
        rig.world.borrow_mut().write(conn.link, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        rig.turn();
        assert_eq!(rig.recv(&conn), Err("refused"));
        rig.driver.finish(conn.key, &conn.socket);
        let answer = rig.world.borrow_mut().read(conn.link, 1000);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        assert_eq!(rig.world.borrow().look(conn.link), Seen::Ended);
        assert_eq!(rig.counters().tls_failed_plain_text.get(), 1);
        // What the shard has to say in spite of it is thrown away.
        assert_eq!(rig.send(&conn, &[b"HTTP/1.1 408"], 2), Sent::Bytes(10));
    }

    #[test]
    fn bytes_that_are_no_hello_get_an_alert() {
        let mut rig = Rig::new(1 << 20);
        let conn = rig.connect(SUITE);
        rig.world.borrow_mut().write(conn.link, &[22, 3, 1, 0, 2, 1, 1]);
        rig.world.borrow_mut().write(conn.link, &[1, 2, 3, 4, 5, 6]);
        rig.turn();
        assert_eq!(rig.recv(&conn), Err("refused"));
        assert_eq!(rig.recv(&conn), Err("blocked"));
        assert_eq!(rig.counters().tls_failed_inconsistent.get(), 1);
    }

    #[test]
    fn an_invalid_record_ends_the_connection_behind_what_was_good() {
        let mut rig = Rig::new(1 << 20);
        let mut conn = rig.open(SUITE);
        conn.client.write(b"good");
        let good = conn.client.out().len();
        conn.client.write(b"bad");
        conn.client.out()[good + 9] ^= 1;
        rig.up(&mut conn);
        rig.turn();
        assert_eq!(rig.recv(&conn), Ok(b"good".to_vec()));
        assert_eq!(rig.recv(&conn), Err("refused"));
        assert_eq!(rig.recv(&conn), Err("blocked"));
        rig.driver.finish(conn.key, &conn.socket);
        rig.down(&mut conn);
        let alert = crate::proto::tls::Alert::BAD_RECORD_MAC;
        assert_eq!(conn.client.fault, Some(Fault::PeerAlert(alert)));
        assert_eq!(rig.world.borrow().look(conn.link), Seen::Ended);
        assert_eq!(rig.counters().tls_record_faults_bad_record_mac.get(), 1);
        rig.driver.close(conn.key, conn.socket, false);
        assert!(rig.driver.left().iter().all(|(_, count)| *count == 0));
    }
}
