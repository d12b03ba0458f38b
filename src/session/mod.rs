//! One client's protocol life, as a machine: commands and facts in, effects out.
//!
//! A session begins with a good `connect` command and is kept apart from the connection's record,
//! so that a connection without one (echo, a handshake) doesn't pay for it, and fan-out, which
//! walks the records, doesn't touch it.
//!
//! ```text
//!  Command --admit()--> may it be handled now? --handle(facts)--> Effect   carried out by the shard
//!                            '-> Stop::Wait: once more later         '-> Stop: error, close, or later
//! ```
//!
//! [`Session::handle`] borrows the session and changes nothing: a command that stops (for credit, a
//! signature, the application) has had no effect, and is handled once more from its beginning when the
//! answer is at hand. [`WaitsFor`] names the reason.
//!
//! # States
//!
//! | state | event | next state | effect |
//! | --- | --- | --- | --- |
//! | New | `connect`, users are counted | Counting | to the user's home: count |
//! | New | `connect` with subscriptions of the server's | Subscribing | to homes: subscribe |
//! | New | `connect`, neither of both | Connected | reply |
//! | New | `connect` that is refused | New | error or close |
//! | Counting | the user's home counts it | Subscribing, or Connected | to homes: subscribe, or reply |
//! | Counting | the user's home refuses it | Ended | close 3504 |
//! | Subscribing | a subscription is made, others are out | Subscribing | none |
//! | Subscribing | the last one is made | Connected | reply, then the frames that were held |
//! | Connected | a command | Connected | its own |
//! | Connected | a subscription of the server's is made | Connected | push |
//! | Counting, Subscribing, Connected | a close of either side | Ended | to homes: unsubscribe, user leaves |
//! | Ended | any | Ended | none |
//!
//! In Counting and Subscribing the session is *connecting*: no command of it is handled. Each effect on
//! a home needs credit there; without any the session stays in its state and the step comes again.

pub mod app;
mod connect;
mod connecting;
mod dispatch;
mod effects;
mod facts;
mod publish;
mod read;
mod refresh;
mod round_trip;
mod rpc;
mod rules;
mod stop;
mod subs;
mod subscribe;
#[cfg(test)]
pub(crate) mod testing;
mod tokens;
mod verdict;
mod waits;

pub use self::app::PublishOptions;
pub use self::connect::{Arrival, NewSession, Opening, connect};
pub use self::connecting::{Connecting, Made, ServerSub, Step};
pub use self::effects::{Effect, NewSub, Publication, Reading};
pub use self::facts::Facts;
pub use self::round_trip::RoundTrip;
pub use self::rules::{AdminRules, ClientOptions, PersonalChannel, Rules};
pub use self::stop::{NO_MEMORY, Stop};
pub use self::subs::{Sub, SubFlags, SubState, Subs};
pub use self::verdict::{Signed, TokenKind, Verdict};
pub use self::waits::WaitsFor;

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::expiry::Expiry;
use crate::base::flags::flags;
use crate::base::image::{durable, durable_enum};
use crate::base::software::SoftwareId;
use crate::hub::filter::FilterId;
use crate::hub::users::UserLinks;

/// What only few subscriptions have.
#[derive(Debug)]
pub struct SubExtra {
    /// The channel here.
    pub channel: u32,
    /// When it expires; `None` is never.
    pub expires: Option<Expiry>,
    /// `chan_info`.
    pub info: Box<[u8]>,
    /// Data for the reply to a subscribe in flight.
    pub data: Box<[u8]>,
    /// What it lets through.
    pub filter: Option<FilterId>,
    /// Who sees to it that it goes on.
    pub renewal: Renewal,
}

durable!(SubExtra { channel, expires, info, data, filter, renewal });

impl SubExtra {
    /// When something is to be done about its expiry, `delay` being what a client has to refresh it.
    pub fn due(&self, delay: i64) -> Option<i64> {
        match self.renewal {
            Renewal::Client => Some(i64::from(self.expires?.seconds()).saturating_add(delay)),
            Renewal::Server => self.expires.map(|at| at.seconds().into()),
            Renewal::Requested => None,
        }
    }
}

/// Who sees to it that something goes on that expires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Renewal {
    /// The client, with a new token.
    #[default]
    Client,
    /// The server, by a call of the application.
    Server,
    /// The same, and the call is out.
    Requested,
}

durable_enum!(Renewal { Client = 0, Server = 1, Requested = 2 });

/// Headers: lower-case names, and values.
pub type NamedValues = Vec<(CompactString, Box<[u8]>)>;

/// What was kept of a client's headers for proxies.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Of its request.
    pub http: NamedValues,
    /// Of its connect command: the client's word.
    pub emulated: NamedValues,
}

durable!(Headers { http, emulated });

/// What only few sessions have.
#[derive(Debug, Default)]
pub struct Extra {
    /// `conn_info` from the token; empty is none.
    pub info: Box<[u8]>,
    /// `meta` from the token, for proxies; empty is none.
    pub meta: Box<[u8]>,
    /// What proxies take over of its headers.
    pub headers: Option<Arc<Headers>>,
    /// Subscriptions that have more than others.
    pub subs: Vec<SubExtra>,
    /// Bytes that the filters of these hold, equal ones each time.
    pub filters_bytes: usize,
    /// `connect` is not answered yet.
    pub connecting: Option<Box<Connecting>>,
}

// Every `connect` is decided when an image is written.
durable!(Extra { info, meta, headers, subs, filters_bytes } anew { connecting: None });

/// A connected client. A user id of up to 24 bytes and one subscription cost nothing beside it.
#[derive(Debug)]
pub struct Session {
    /// Who it is; empty is anonymous.
    pub user: CompactString,
    /// Other sessions of the same user.
    pub user_links: UserLinks,
    /// What it is subscribed to.
    pub subs: Subs,
    /// What few have.
    pub extra: Option<Box<Extra>>,
    /// Its connection's slot.
    pub conn: u32,
    /// When the next ping goes, or the pong to the last one has to be there; in ticks.
    pub due_tick: u32,
    /// When the connection expires; `None` is never.
    pub expires: Option<Expiry>,
    /// Commands that wait for an answer of a home.
    pub unanswered: u8,
    /// What is on and off.
    pub flags: SessionFlags,
    /// The client's software, by its own words.
    pub software: SoftwareId,
    /// How long the last ping took.
    pub round_trip: RoundTrip,
}

const _: () = assert!(size_of::<Session>() == 72);

impl Session {
    /// No session, in a table that is filled.
    pub(crate) fn placeholder() -> Self {
        Self {
            user: CompactString::default(),
            user_links: UserLinks::default(),
            subs: Subs::default(),
            extra: None,
            conn: u32::MAX,
            due_tick: 0,
            expires: None,
            unanswered: 0,
            flags: SessionFlags::default(),
            software: SoftwareId::UNNAMED,
            round_trip: RoundTrip::UNKNOWN,
        }
    }
}

// Homes have answered everything, and users are indexed anew. The number of a software is of its node's table, and
// the beginning of a ping is of the clock of its process.
durable!(Session { user, subs, extra, conn, expires, flags } ticks { due_tick } anew {
    user_links: UserLinks::default(),
    unanswered: 0,
    software: SoftwareId::UNNAMED,
    round_trip: RoundTrip::UNKNOWN,
});
// The slab adds nothing.
const _: () = assert!(size_of::<Option<Session>>() == 72);

flags! {
    /// Yes-or-no facts of a session.
    pub struct SessionFlags(u8) {
        /// No pong has come for the last ping.
        pong_due, set_pong_due = 0;
        /// `due_tick` is when the pong has to be there, not when the next ping goes.
        pong_window, set_pong_window = 1;
        /// Out of the user index and of all lists: only homes are still to be told.
        detached, set_detached = 2;
        /// Counted at its user's home.
        user_counted, set_user_counted = 3;
        /// The application is asked whether it goes on.
        refreshing, set_refreshing = 4;
        /// An administrator's: in no index of users, and counted nowhere.
        hidden, set_hidden = 5;
    }
}

/// How far a client is; see the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No good `connect` has come: there is no session.
    New,
    /// The home of the user counts its connections.
    Counting,
    /// Homes make the subscriptions of the `connect`.
    Subscribing,
    /// The `connect` is answered.
    Connected,
    /// Homes hear of the end, and then the session is gone.
    Ended,
}

impl State {
    /// The state of a connection's session.
    pub fn of(session: Option<&Session>) -> Self {
        let Some(session) = session else { return Self::New };
        let connecting = session.extra.as_ref().and_then(|extra| extra.connecting.as_ref());
        match connecting {
            _ if session.flags.detached() => Self::Ended,
            None => Self::Connected,
            Some(connecting) if connecting.to_count || connecting.counting => Self::Counting,
            Some(_) => Self::Subscribing,
        }
    }
}

impl Session {
    /// Begins a session. Without steps before it the reply to the `connect` is due at once.
    pub fn begin(
        new: NewSession,
        headers: Option<Arc<Headers>>,
        conn: u32,
        due_tick: u32,
    ) -> (Self, Option<Connecting>) {
        let NewSession { user, expires, info, meta, connecting, is_admin } = new;
        let few = info.is_some() || meta.is_some() || headers.is_some();
        let steps = connecting.to_count || !connecting.to_request.is_empty();
        let (connecting, at_once) = match steps {
            true => (Some(Box::new(connecting)), None),
            false => (None, Some(connecting)),
        };
        let extra = (few || steps).then(|| {
            let (info, meta) = (info.unwrap_or_default(), meta.unwrap_or_default());
            Box::new(Extra { info, meta, headers, connecting, ..Extra::default() })
        });
        let mut flags = SessionFlags::default();
        flags.set_hidden(is_admin);
        let session = Self {
            user,
            user_links: UserLinks::default(),
            subs: Subs::default(),
            extra,
            conn,
            due_tick,
            expires,
            unanswered: 0,
            flags,
            software: SoftwareId::UNNAMED,
            round_trip: RoundTrip::UNKNOWN,
        };
        (session, at_once)
    }

    /// A new token of the connection: its expiry, and `meta`.
    pub fn renew(&mut self, expires: Option<Expiry>, meta: Box<[u8]>) {
        self.expires = expires;
        if !meta.is_empty() || self.extra.is_some() {
            self.extra().meta = meta;
        }
    }

    /// A new token of a subscription: its expiry.
    pub fn renew_sub(&mut self, channel: u32, expires: Option<Expiry>) {
        if expires.is_some() || self.sub_extra(channel).is_some() {
            self.sub_extra_or_new(channel).expires = expires;
        }
    }

    /// The reply to the `connect` is still to come.
    pub fn is_connecting(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.connecting.is_some())
    }

    /// The place of a channel, if the session has a subscription to it, whatever its state.
    pub fn subscribed_at(&self, known: Option<u32>) -> Option<u32> {
        known.filter(|at| self.subs.get(*at).is_some())
    }

    /// Whether the session is subscribed to a channel, or about to be.
    pub fn is_subscribed(&self, known: Option<u32>) -> bool {
        let sub = known.and_then(|at| self.subs.get(at));
        sub.is_some_and(|sub| sub.state != SubState::Owed)
    }

    /// What few sessions have, made when it is needed.
    pub fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// `conn_info`, empty without.
    pub fn info(&self) -> &[u8] {
        self.extra.as_ref().map_or(&[], |extra| &extra.info)
    }

    /// `connect` is not answered yet.
    pub fn connecting(&mut self) -> Option<&mut Connecting> {
        self.extra.as_mut()?.connecting.as_deref_mut()
    }

    /// What a subscription has more than others.
    pub fn sub_extra(&self, channel: u32) -> Option<&SubExtra> {
        self.extra.as_ref()?.subs.iter().find(|sub| sub.channel == channel)
    }

    /// The same, to change.
    pub fn sub_extra_mut(&mut self, channel: u32) -> Option<&mut SubExtra> {
        self.extra.as_mut()?.subs.iter_mut().find(|sub| sub.channel == channel)
    }

    /// The same, made when it is needed.
    pub fn sub_extra_or_new(&mut self, channel: u32) -> &mut SubExtra {
        let subs = &mut self.extra().subs;
        let at = subs.iter().position(|sub| sub.channel == channel).unwrap_or_else(|| {
            subs.push(SubExtra {
                channel,
                expires: None,
                info: Box::default(),
                data: Box::default(),
                filter: None,
                renewal: Renewal::default(),
            });
            subs.len() - 1
        });
        &mut subs[at]
    }

    /// Forgets what belonged to one subscription; its filter is to be released.
    pub fn forget_sub(&mut self, channel: u32) -> Option<FilterId> {
        let extra = self.extra.as_mut()?;
        let at = extra.subs.iter().position(|sub| sub.channel == channel)?;
        let filter = extra.subs.swap_remove(at).filter;
        if extra.subs.is_empty() {
            // A client that came to a filtered channel and left is as small as before.
            extra.subs = Vec::new();
        }
        filter
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::client::{ConnectRequest, Disconnect, PublishRequest, Request};
    use crate::session::testing::{Scene, session};

    fn new_session(to_count: bool, subs: usize) -> NewSession {
        let sub = |at| ServerSub { channel: format!("c{at}").into(), ..ServerSub::default() };
        let to_request = (0..subs).map(sub).collect();
        NewSession {
            user: "alice".into(),
            expires: None,
            info: None,
            meta: None,
            connecting: Connecting { to_count, to_request, ..Connecting::default() },
            is_admin: false,
        }
    }

    fn made(session: &mut Session) -> Result<(), Made> {
        session.sub_made(Made {
            channel: "c0".into(),
            recoverable: false,
            positioned: false,
            epoch: Default::default(),
            offset: 0,
            was_recovering: false,
            recovered: false,
            publications: None,
            delta: false,
            data: Box::default(),
        })
    }

    /// Does all steps that are due; whether the reply was among them.
    fn step(session: &mut Session) -> bool {
        loop {
            match session.next_step() {
                Step::Count => session.count_requested(),
                Step::Subscribe(_) => session.sub_requested(),
                Step::Wait => return false,
                Step::Reply(_) => return true,
            }
        }
    }

    /// A session in a state, and with one more subscription that is out, where that makes a difference.
    fn in_state(state: State) -> Session {
        let (mut session, _) = match state {
            State::New => unreachable!(),
            State::Counting => Session::begin(new_session(true, 0), None, 3, 0),
            State::Subscribing => Session::begin(new_session(false, 1), None, 3, 0),
            State::Connected | State::Ended => Session::begin(new_session(false, 0), None, 3, 0),
        };
        session.flags.set_detached(state == State::Ended);
        step(&mut session);
        assert_eq!(State::of(Some(&session)), state);
        session
    }

    #[test]
    fn a_connect_begins_with_the_step_that_it_needs() {
        assert_eq!(State::of(None), State::New);
        for (to_count, subs, state, at_once) in [
            (true, 0, State::Counting, false),
            (true, 2, State::Counting, false),
            (false, 2, State::Subscribing, false),
            (false, 0, State::Connected, true),
        ] {
            let (session, reply) = Session::begin(new_session(to_count, subs), None, 3, 0);
            assert_eq!((State::of(Some(&session)), reply.is_some()), (state, at_once));
            // Only steps before the reply, and what is kept, cost more than the session itself.
            assert_eq!(session.extra.is_none(), at_once);
        }
        let facts = Scene::default();
        let refused = connect(&ConnectRequest::default(), None, Arrival::default(), &facts.facts());
        assert!(refused.is_err());
    }

    /// The other rows of the table, with the effect of each.
    #[test]
    fn all_transitions_are_as_the_table_says() {
        // Counting.
        let mut session = in_state(State::Counting);
        assert!(session.counted() && step(&mut session));
        assert_eq!(State::of(Some(&session)), State::Connected);
        let (mut session, _) = Session::begin(new_session(true, 2), None, 3, 0);
        assert!(!step(&mut session) && session.counted() && !step(&mut session));
        assert_eq!(State::of(Some(&session)), State::Subscribing);
        // Subscribing: one made and one out, then the last.
        assert!(made(&mut session).is_ok() && !step(&mut session));
        assert_eq!(State::of(Some(&session)), State::Subscribing);
        assert!(made(&mut session).is_ok() && step(&mut session));
        assert_eq!(State::of(Some(&session)), State::Connected);
        // Connected: a subscription of the server's is announced by a push, and nothing is counted.
        assert!(made(&mut session).is_err() && !session.counted() && !step(&mut session));
        assert_eq!(State::of(Some(&session)), State::Connected);
        // A close ends each.
        for state in [State::Counting, State::Subscribing, State::Connected] {
            let mut session = in_state(state);
            session.flags.set_detached(true);
            assert_eq!(State::of(Some(&session)), State::Ended);
        }
        // Ended: no home's answer has an effect.
        let mut session = in_state(State::Ended);
        assert!(!session.counted() && made(&mut session).is_err() && !step(&mut session));
        assert_eq!(State::of(Some(&session)), State::Ended);
    }

    #[test]
    fn commands_are_handled_in_one_state_alone() {
        let scene = Scene::default();
        let publish = Request::Publish(PublishRequest::default());
        for (state, expected) in [
            (State::Counting, Err(Stop::Wait(WaitsFor::Broker))),
            (State::Subscribing, Err(Stop::Wait(WaitsFor::Broker))),
            (State::Connected, Ok(())),
        ] {
            assert_eq!(in_state(state).admit(&publish, 0, false), expected, "{state:?}");
        }
        let again = Request::Connect(ConnectRequest::default());
        let stop = in_state(State::Connected).handle(&again, None, &scene.facts()).err();
        assert!(matches!(stop, Some(Stop::Close(Disconnect::BadRequest, _))), "{stop:?}");
    }

    #[test]
    fn few_sessions_have_more_and_give_it_back() {
        let mut session = session("alice");
        session.sub_extra_or_new(4).info = Box::new(*b"{}");
        assert!(session.sub_extra(4).is_some() && session.sub_extra(5).is_none());
        assert!(session.forget_sub(4).is_none());
        assert_eq!(session.extra().subs.capacity(), 0);
    }

    #[test]
    fn an_expiry_is_due_by_the_side_that_renews_it() {
        let mut session = session("alice");
        let extra = session.sub_extra_or_new(4);
        extra.expires = Some(Expiry::at(1_700_000_000));
        for (renewal, due) in [
            (Renewal::Client, Some(1_700_000_005)),
            (Renewal::Server, Some(1_700_000_000)),
            (Renewal::Requested, None),
        ] {
            extra.renewal = renewal;
            assert_eq!(extra.due(5), due);
        }
    }
}
