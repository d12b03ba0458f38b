//! A `connect` that is good but not answered: homes count the user's connections and make the
//! subscriptions first, and frames of their channels wait behind the reply meanwhile.
//!
//! [`Session::next_step`] says what is to be done next. A step that finds no credit is given back, so
//! that it comes again.

use compact_str::CompactString;

use crate::base::expiry::Expiry;
use crate::base::frame::SharedFrame;
use crate::edge::channels::Asked;
use crate::edge::jwt::Overrides;
use crate::hub::history::Since;
use crate::proto::client::{Body, SubscribeResult};
use crate::session::Session;

/// A subscription that the server makes for a client, to be requested of its home.
#[derive(Clone, Debug, Default)]
pub struct ServerSub {
    /// The channel.
    pub channel: CompactString,
    /// Its namespace's number.
    pub namespace: u16,
    /// `chan_info`, empty for none.
    pub info: Box<[u8]>,
    /// Data for the result, empty for none.
    pub data: Box<[u8]>,
    /// Options that replace those of the namespace.
    pub overrides: Overrides,
    /// When it expires; `None` is never.
    pub expires: Option<Expiry>,
    /// The connection's token named it.
    pub by_token: bool,
    /// What the client has of it, if it wants the rest.
    pub since: Option<Since>,
    /// It asked for delta compression.
    pub delta: bool,
    /// It asked for position checks, for recovery, for join and leave events.
    pub asked: Asked,
}

/// One that is made: a subscribe result, owned.
#[derive(Debug)]
pub struct Made {
    /// The channel.
    pub channel: CompactString,
    /// Recovery is on.
    pub recoverable: bool,
    /// Positions are checked.
    pub positioned: bool,
    /// The stream's life; empty without a position.
    pub epoch: CompactString,
    /// Where it stands, or from where the publications are.
    pub offset: u64,
    /// The client asked for what it missed.
    pub was_recovering: bool,
    /// And that is all here.
    pub recovered: bool,
    /// The encoded list.
    pub publications: Option<SharedFrame>,
    /// Delta compression was granted.
    pub delta: bool,
    /// From the token.
    pub data: Box<[u8]>,
}

impl Made {
    /// As a subscribe result, with its publications in it.
    pub fn result(&self) -> SubscribeResult<'_> {
        SubscribeResult {
            recoverable: self.recoverable,
            epoch: &self.epoch,
            publications: Body::Here(self.publications.as_ref().map_or(b"", |list| list.bytes())),
            recovered: self.recovered,
            offset: self.offset,
            positioned: self.positioned,
            data: &self.data,
            was_recovering: self.was_recovering,
            delta: self.delta,
            ..SubscribeResult::default()
        }
    }
}

/// How far a `connect` is.
#[derive(Debug, Default)]
pub struct Connecting {
    /// The command's id.
    pub command: u32,
    /// The user's connections have to be counted first.
    pub to_count: bool,
    /// They are being counted.
    pub counting: bool,
    /// Subscriptions that are to be requested, the last first.
    pub to_request: Vec<ServerSub>,
    /// Answers that are to come.
    pub awaited: u32,
    /// Subscriptions that are made.
    pub made: Vec<Made>,
    /// When it came: the low bits of the shard's clock, milliseconds.
    pub began_ms: u16,
    /// Data for the result, from the application; empty for none.
    pub data: Box<[u8]>,
    /// Seconds until the connection expires, when the client refreshes it.
    pub ttl: Option<u32>,
}

/// The next step of a `connect`.
#[derive(Debug)]
pub enum Step {
    /// The home of the user counts this connection.
    Count,
    /// A home makes this subscription.
    Subscribe(ServerSub),
    /// Nothing, until a home has answered.
    Wait,
    /// The reply, and behind it the frames that were held.
    Reply(Box<Connecting>),
}

impl Session {
    /// The next step of the `connect`; a connected session has none. A subscription is taken out, and
    /// has to be either [requested](Self::sub_requested) or [given back](Self::give_back).
    pub fn next_step(&mut self) -> Step {
        let Some(connecting) = self.connecting() else { return Step::Wait };
        if connecting.to_count {
            return Step::Count;
        }
        // No home gets a subscription as long as the user may have one connection too many.
        if connecting.counting {
            return Step::Wait;
        }
        if let Some(sub) = connecting.to_request.pop() {
            return Step::Subscribe(sub);
        }
        match connecting.awaited {
            0 => self.end_connecting().map_or(Step::Wait, Step::Reply),
            _ => Step::Wait,
        }
    }

    /// The home of the user has the request to count this connection.
    pub fn count_requested(&mut self) {
        self.flags.set_user_counted(true);
        if let Some(connecting) = self.connecting() {
            (connecting.to_count, connecting.counting) = (false, true);
        }
    }

    /// The home of the user has counted the connection, which may stay. False for a session that
    /// doesn't wait for that.
    pub fn counted(&mut self) -> bool {
        self.connecting().is_some_and(|connecting| std::mem::take(&mut connecting.counting))
    }

    /// The home has the request for a subscription of the `connect`.
    pub fn sub_requested(&mut self) {
        if let Some(connecting) = self.connecting() {
            connecting.awaited += 1;
        }
    }

    /// No home has a request for this subscription: it is the next step once more.
    pub fn give_back(&mut self, sub: ServerSub) {
        if let Some(connecting) = self.connecting() {
            connecting.to_request.push(sub);
        }
    }

    /// A home has made a subscription of the server's.
    ///
    /// # Errors
    /// The session is connected: no reply announces this subscription.
    pub fn sub_made(&mut self, made: Made) -> Result<(), Made> {
        let Some(connecting) = self.connecting() else { return Err(made) };
        connecting.made.push(made);
        connecting.awaited -= 1;
        Ok(())
    }

    /// Ends the `connect`; a session that has nothing special is as small as others from then on.
    fn end_connecting(&mut self) -> Option<Box<Connecting>> {
        let extra = self.extra.as_mut()?;
        let connecting = extra.connecting.take();
        let is_empty = extra.info.is_empty() && extra.meta.is_empty() && extra.subs.is_empty();
        if is_empty && extra.headers.is_none() {
            self.extra = None;
        }
        connecting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::testing::session;

    #[test]
    fn a_connect_result_names_its_subscriptions() {
        let made = Made { channel: "news".into(), recoverable: true, offset: 7, ..made() };
        let result = made.result();
        assert_eq!((result.offset, result.recoverable, result.epoch), (7, true, "abcd"));
    }

    fn made() -> Made {
        Made {
            channel: CompactString::default(),
            recoverable: false,
            positioned: true,
            epoch: "abcd".into(),
            offset: 0,
            was_recovering: false,
            recovered: false,
            publications: None,
            delta: false,
            data: Box::default(),
        }
    }

    #[test]
    fn a_step_without_credit_comes_again() {
        let mut session = session("alice");
        let to_request = vec![ServerSub { channel: "news".into(), ..ServerSub::default() }];
        let connecting = Connecting { to_request, to_count: true, ..Connecting::default() };
        session.extra().connecting = Some(Box::new(connecting));
        for _ in 0..2 {
            assert!(matches!(session.next_step(), Step::Count));
        }
        session.count_requested();
        assert!(session.flags.user_counted());
        assert!(matches!(session.next_step(), Step::Wait));
        assert!(session.counted() && !session.counted());
        for _ in 0..2 {
            let Step::Subscribe(sub) = session.next_step() else { panic!() };
            session.give_back(sub);
        }
        let Step::Subscribe(_) = session.next_step() else { panic!() };
        session.sub_requested();
        assert!(matches!(session.next_step(), Step::Wait));
        assert!(session.sub_made(made()).is_ok());
        let Step::Reply(connecting) = session.next_step() else { panic!() };
        assert_eq!(connecting.made.len(), 1);
        assert!(session.extra.is_none() && session.sub_made(made()).is_err());
    }
}
