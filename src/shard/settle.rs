//! Settling: a shard takes nothing new until everything that lives for a turn is nothing.
//!
//! | what lives for a turn | how it becomes nothing |
//! | --- | --- |
//! | mail, acknowledgements, gaps, fan-outs, leavers, orders | turns go on, without accepting and reading |
//! | commands and `connect`s that homes have to answer | the same |
//! | sends under way, bytes read ahead | the driver ends and hands over what it has |
//! | connections accepted by the driver, or passed by other shards | get their slots; they are not read |
//! | requests of the up-link | are answered; their commands stay with the connection |
//! | polls | are answered as if nothing had come |
//! | commands that wait for credit, for the check of a token | are handled once more from their bytes |
//! | calls of the application for `connect` and `subscribe` | the same, behind [`CALLS_MS`] |
//! | calls for `publish` and `rpc` | error 100 behind [`CALLS_MS`]: a second call might do it twice |
//! | requests that the control thread has | 503 behind [`CALLS_MS`] |
//! | TLS handshakes | are read to their end; those that need longer are given up behind [`CALLS_MS`] |
//! | sessions for which a home has not answered | are closed behind twice that time |
//!
//! A command is not begun while a shard settles, unless the application's reply to it is at hand. What is
//! left at the bound is named by [`Shard::unsettled`]; then the shard goes on as before
//! ([`Shard::go_on`]), and nothing is lost.

use crate::base::id::ConnKey;
use crate::base::limits::{TURN_FRAMES_MAX, TURN_READS_MAX};
use crate::base::time::Millis;
use crate::io::{Driver, Received};
use crate::proto::client::{self, Disconnect, Encoding, ErrorCode, Request};
use crate::session::WaitsFor;
use crate::shard::Shard;
use crate::shard::clients::Clients;
use crate::shard::clients::commands::ErrorReply;
use crate::shard::clients::proxies::put_commands_in_front;
use crate::shard::life::Settling;
use crate::shard::local::LocalSide;
use crate::shard::net::record::{NONE, Phase};
use crate::shard::outlets::{Outlets, outlets};

/// Milliseconds after which calls of the application and requests of the control thread are waited for no
/// longer.
pub const CALLS_MS: u64 = 1000;

impl<D: Driver> Shard<D> {
    /// From now on nothing new is taken: no connection, no bytes, no command. Turns go on until
    /// [`Self::unsettled`] names nothing.
    ///
    /// # Errors
    /// The shard drains its connections, or has stopped.
    pub fn settle(&mut self) -> Result<(), &'static str> {
        if self.net.draining.is_some() || self.life.is_stopped() {
            return Err("the node closes its connections");
        }
        if !std::mem::replace(&mut self.cx.settles, true) {
            self.home.settle(&self.cx, &mut self.post);
        }
        self.life.settling.get_or_insert(Settling { since: None, given_up: Vec::new() });
        Ok(())
    }

    /// Takes everything again: nothing was lost. Connections whose calls of the application were given up
    /// are closed: a late reply must not be taken for that to their next command.
    pub fn go_on(&mut self) {
        if self.life.copying.take().is_some() {
            // Copies of sockets may be there until the other process has ended.
            self.net.driver.share(false);
        }
        let settling = self.life.settling.take();
        self.cx.settles = false;
        // Also where the other process has failed before this shard settled: another one knows no channel.
        self.home.go_on(&self.cx, &mut self.post);
        let Some(settling) = settling else { return };
        self.cx.resumes = true;
        for key in settling.given_up {
            if self.net.conn(key).is_some() {
                self.clients.end_for_good(&mut outlets!(self), &mut self.local, key.index);
            }
        }
        let stopped = self.net.conns.iter().filter(|(_, conn)| {
            conn.flags.paused() && conn.waits == Some(WaitsFor::EarlierCommands)
        });
        let stopped: Vec<ConnKey> = stopped.map(|(index, conn)| conn.key(index as u32)).collect();
        stopped.into_iter().for_each(|key| self.net.resume(key));
        let queued = self.net.conns.iter().filter(|(_, conn)| {
            conn.queue != NONE && !conn.flags.sending() && !conn.flags.blocked()
        });
        let queued: Vec<ConnKey> = queued.map(|(index, conn)| conn.key(index as u32)).collect();
        queued.into_iter().for_each(|key| self.net.mark_dirty(key));
        (self.net.acceptable, self.net.passed) = (true, true);
    }

    /// Everything that lives for a turn and isn't nothing, and how much of it.
    pub fn unsettled(&self) -> Vec<(&'static str, usize)> {
        let mut left = vec![("orders", self.orders.len())];
        left.extend(self.post.unsettled());
        left.extend(self.home.unsettled());
        left.extend(self.clients.unsettled_calls());
        left.extend(self.local.unsettled());
        left.extend(self.net.unsettled());
        left.extend(self.clients.unsettled());
        left.retain(|(_, count)| *count > 0);
        left
    }

    /// In place of accepting and reading: brings to an end what turns alone don't.
    pub(crate) fn settle_some(&mut self) {
        self.net.seat_accepted(&self.cx, &mut self.post);
        self.take_from_driver();
        self.clients.continue_answered(&mut outlets!(self), &mut self.local);
        self.local.locals.wake_due(Millis(u64::MAX));
        self.clients.handle_replied(&mut outlets!(self), &mut self.local);
        self.clients.answer_those_who_wait(&mut outlets!(self), &mut self.local);
        let now = self.cx.now;
        // Again in each turn: a request that was on its way may have begun another call.
        let Some(settling) = &mut self.life.settling else { return };
        let settled_ms = now.since(*settling.since.get_or_insert(now));
        if settled_ms >= CALLS_MS {
            // The bound: calls that may not be made twice have failed, and requests get 503.
            let out = &mut outlets!(self);
            settling.given_up.extend(self.clients.give_up_calls(out, &mut self.local));
            self.net.give_up_requests(&self.cx, &mut self.post);
            self.net.give_up_handshakes(&self.cx, &mut self.post);
        }
        if settled_ms >= 2 * CALLS_MS {
            self.clients.end_late_sessions(&mut outlets!(self), &mut self.local);
        }
    }

    /// Ends sends, and takes over what the driver has read ahead: bytes become unfinished input.
    fn take_from_driver(&mut self) {
        self.net.end_sends();
        self.take_completions();
        while let Some((key, received)) = self.net.driver.take_ahead() {
            keep_received(self, key, received);
        }
        // Keys can be handed over, and a handshake can't: it is read, so that it comes to its end.
        for key in self.net.driver.unpackable().into_iter().take(TURN_READS_MAX) {
            if let Some(received) = self.net.receive(key) {
                keep_received(self, key, received);
            }
        }
    }
}

/// Keeps what was read of a connection: nothing of it is handled.
fn keep_received<D: Driver>(shard: &mut Shard<D>, key: ConnKey, received: Received<D::Lease>) {
    match received {
        Received::Bytes { mut lease, .. } => {
            shard.cx.counters().bytes_received.add(lease.len() as u64);
            let out = &mut outlets!(shard);
            shard.clients.keep_bytes(out, &mut shard.local, key, &mut lease);
            shard.net.driver.give_back(lease);
            shard.net.mark_ready(key);
        }
        Received::Ended | Received::Failed => {
            if let Some(conn) = shard.net.conn(key) {
                conn.flags.set_ended(true);
            }
            shard.net.mark_ready(key);
        }
        Received::Refused => {
            let out = &mut outlets!(shard);
            shard.clients.peer_refused(out, &mut shard.local, key.index);
        }
        Received::Blocked | Received::Taken => {}
    }
}

/// What `Clients` brings to an end while its shard settles.
impl Clients {
    /// The session is closed, and its client comes again.
    fn end_for_good<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
    ) {
        self.disconnect(out, side, index, Disconnect::Shutdown);
    }

    /// Bytes of a connection, which are read and not handled.
    fn keep_bytes<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        key: ConnKey,
        bytes: &mut [u8],
    ) {
        let Some(conn) = out.net.conn(key) else { return };
        match conn.phase {
            // Nothing is looked at here before the rest of it has come.
            Phase::Head => {
                out.net.head(out.cx, out.codec, out.post, key, bytes);
                self.after_net(out, side);
            }
            _ if conn.flags.deaf() => {}
            _ => conn.rx.get_or_insert_default().raw.extend_from_slice(bytes),
        }
    }

    /// Handles commands to which the application has replied: it is not to be called again for them.
    fn handle_replied<D: Driver>(&mut self, out: &mut Outlets<'_, D>, side: &mut LocalSide) {
        let replied = self.asides.iter().filter(|(_, aside)| !aside.replies.is_empty());
        let replied: Vec<u32> = replied.map(|(index, _)| index).collect();
        for index in replied {
            if out.net.at(index).is_none_or(|conn| conn.phase != Phase::Client) {
                // The command ended with its session.
                self.asides.take(index, |aside| aside.replies.clear());
                continue;
            }
            for _ in 0..TURN_FRAMES_MAX {
                let Some(conn) = out.net.at(index) else { break };
                let (key, paused) = (conn.key(index), conn.flags.paused());
                let waits = conn.rx.as_ref().is_some_and(|rx| !rx.commands.is_empty());
                if paused || !waits || self.asides.reply(index).is_none() {
                    break;
                }
                self.handle_kept(out, side, key);
            }
        }
    }

    /// Answers polls, and the requests of the up-link whose commands wait.
    fn answer_those_who_wait<D: Driver>(&mut self, out: &mut Outlets<'_, D>, side: &mut LocalSide) {
        let begun = out.net.http.polls.iter().filter(|(_, poll)| poll.has_begun());
        let begun: Vec<u32> = begun.map(|(index, _)| *index).collect();
        for index in begun {
            self.return_poll(out, side, index);
        }
        let waiting = out.net.conns.iter().filter(|(_, conn)| conn.rx.is_some());
        let waiting: Vec<u32> = waiting.map(|(index, _)| index as u32).collect();
        for index in waiting {
            out.net.answer_waiting(out.cx, out.post, index);
        }
    }

    /// A session in the middle of a step at a home is closed, so that its client comes again.
    fn end_late_sessions<D: Driver>(&mut self, out: &mut Outlets<'_, D>, side: &mut LocalSide) {
        let late: Vec<u32> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.is_connecting() || session.unanswered > 0)
            .map(|(_, session)| session.conn)
            .collect();
        late.into_iter().for_each(|index| self.end_for_good(out, side, index));
    }

    /// Gives up the calls of the application that have had no reply, and returns their connections.
    fn give_up_calls<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
    ) -> Vec<ConnKey> {
        let mut given_up = Vec::new();
        for command in self.take_deferred() {
            // Nothing follows a close.
            if out.net.conn(command.conn()).is_some_and(|conn| conn.phase == Phase::Client) {
                given_up.extend(self.give_up_command(
                    out,
                    side,
                    command.conn().index,
                    command.bytes(),
                ));
            }
        }
        let called = self.asides.iter().filter(|(_, aside)| aside.call);
        let called: Vec<u32> = called.map(|(index, _)| index).collect();
        for index in called {
            self.asides.take(index, |aside| aside.call = false);
            let conn = out.net.at_mut(index).filter(|conn| conn.phase == Phase::Client);
            let Some(rx) = conn.and_then(|conn| conn.rx.as_mut()) else { continue };
            let commands = std::mem::take(&mut rx.commands);
            let at = std::mem::take(&mut rx.commands_at);
            given_up.extend(self.give_up_command(
                out,
                side,
                index,
                &commands[at.min(commands.len())..],
            ));
        }
        given_up
    }

    /// The first of these commands waits for the application, which has not replied. One that may not be
    /// repeated is answered with an error; the others stay, in front of what the connection has.
    fn give_up_command<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        index: u32,
        bytes: &[u8],
    ) -> Option<ConnKey> {
        let mut left = bytes;
        let first = match out.net.encoding(index) {
            Encoding::Protobuf => first_of(client::binary_commands(bytes)),
            Encoding::Json => match std::str::from_utf8(bytes) {
                Ok(text) => first_of(client::commands(text)),
                Err(_) => None,
            },
        };
        if let Some((id, consumed)) = first {
            let code = ErrorCode::Internal;
            let why = "the application has not replied, and the node is being replaced";
            let error = ErrorReply { temporary: true, ..ErrorReply::new(code, "", why) };
            self.reply_error(out, side, index, id, error);
            left = bytes.get(consumed..).unwrap_or_default();
        }
        let key = out.net.at(index).map(|conn| conn.key(index))?;
        put_commands_in_front(out.net, key, left);
        out.net.resume(key);
        Some(key)
    }
}

/// The id of the first command, and its bytes, if it may not be handled twice.
fn first_of(mut commands: client::Commands<'_>) -> Option<(u32, usize)> {
    let Some(Ok(command)) = commands.next() else { return None };
    let id = command.id;
    let once = matches!(command.request, Request::Publish(_) | Request::Rpc(_));
    once.then(|| (id, commands.consumed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::freeze::tests::Alone;

    #[test]
    fn the_bound_begins_with_the_first_turn_of_a_shard_that_was_idle() {
        let mut of = Alone::new();
        let link = of.connect();
        of.says(link, r#"{"id":1,"connect":{}}"#);
        assert!(of.hears(link).contains("connect"), "it is connected");
        let now = Millis(of.shard.cx.now.0 + 60_000);
        of.world.borrow_mut().advance_to(now);
        of.shard.settle().unwrap();
        of.shard.turn_after(Some(now));
        let settling = of.shard.life.settling.as_ref().unwrap();
        assert_eq!(settling.since, Some(now), "not that of the turn before");
    }

    #[test]
    fn no_command_is_begun_until_the_shard_goes_on() {
        let mut of = Alone::new();
        let link = of.connect();
        of.says(link, r#"{"id":1,"connect":{}}"#);
        assert!(of.hears(link).contains("connect"), "it is connected");
        of.shard.settle().unwrap();
        of.says(link, r#"{"id":2,"subscribe":{"channel":"news"}}"#);
        assert_eq!(of.hears(link), "");
        assert_eq!(of.shard.unsettled(), []);
        // A connection that comes is not accepted.
        let other = of.connect();
        assert_eq!(of.hears(other), "");
        of.shard.go_on();
        assert!(of.hears(link).contains(r#""subscribe":{"#));
        assert!(of.hears(other).contains("101 Switching"));
    }

    #[test]
    fn a_shard_that_drains_is_not_settled() {
        let mut of = Alone::new();
        of.shard.net.drain(&of.shard.cx, 1);
        assert!(of.shard.settle().is_err());
    }

    #[test]
    fn commands_that_may_not_be_repeated_are_those_with_an_effect_at_the_application() {
        for (commands, expected) in [
            (r#"{"id":3,"publish":{"channel":"a","data":1}}"#, Some((3, 43))),
            (r#"{"id":4,"rpc":{"data":1}}"#, Some((4, 25))),
            (r#"{"id":5,"subscribe":{"channel":"a"}}"#, None),
            (r#"{"token":"a one-way client's"}"#, None),
            ("", None),
        ] {
            assert_eq!(first_of(client::commands(commands)), expected, "{commands}");
        }
        let two = "{\"id\":4,\"rpc\":{\"data\":1}}\n{\"id\":5,\"ping\":{}}";
        let (_, consumed) = first_of(client::commands(two)).unwrap();
        assert_eq!(&two[consumed..], r#"{"id":5,"ping":{}}"#);
    }
}
