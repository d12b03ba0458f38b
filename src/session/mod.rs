//! One client's protocol life: who it is, what it is subscribed to, when it is pinged.
//!
//! A session begins with a good `connect` command and is kept apart from the connection's record,
//! so that a connection without one (echo, a handshake) doesn't pay for it, and fan-out, which
//! walks the records, doesn't touch it.

mod connecting;
mod rules;
mod subs;
mod waits;

pub use self::connecting::{Connecting, Made, ServerSub};
pub use self::rules::{AdminRules, ClientOptions, PersonalChannel, Rules};
pub use self::subs::{Sub, SubFlags, SubState, Subs};
pub use self::waits::WaitsFor;

use std::sync::Arc;

use compact_str::CompactString;

use crate::base::expiry::Expiry;
use crate::base::flags::flags;
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

impl SubExtra {
    /// When something is to be done about its expiry, `delay` being what a client has to refresh it.
    pub fn due(&self, delay: i64) -> Option<i64> {
        match self.renewal {
            Renewal::Client => Some(i64::from(self.expires?.seconds()).saturating_add(delay)),
            Renewal::Server => self.expires.map(|at| at.seconds().into()),
            Renewal::Asked => None,
        }
    }
}

/// Who sees to it that something goes on that expires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Renewal {
    /// The client, with a new token.
    #[default]
    Client,
    /// The server, by asking the application.
    Server,
    /// It is being asked.
    Asked,
}

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
}

const _: () = assert!(size_of::<Session>() == 72);
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

impl Session {
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
