//! One client's protocol life: who it is, what it is subscribed to, when it is pinged.
//!
//! A session begins with a good `connect` command and is kept apart from the connection's record,
//! so that a connection without one (echo, a handshake) doesn't pay for it, and fan-out, which
//! walks the records, doesn't touch it.

mod rules;
mod subs;

pub use self::rules::{ClientOptions, PersonalChannel, Rules};
pub use self::subs::{Sub, SubState, Subs};

use compact_str::CompactString;

use crate::hub::users::UserLinks;

/// What only few sessions have.
#[derive(Debug, Default)]
pub struct Extra {
    /// `conn_info` from the token, JSON.
    pub info: Option<Box<[u8]>>,
    /// Subscriptions that expire: the channel here, Unix seconds.
    pub sub_expiries: Vec<(u32, i64)>,
    /// `chan_info` from subscription tokens: the channel here, JSON.
    pub sub_infos: Vec<(u32, Box<[u8]>)>,
    /// Data from subscription tokens for the reply to a subscribe in flight: the channel, JSON.
    pub sub_data: Vec<(u32, Box<[u8]>)>,
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
    /// When the connection expires, Unix seconds; 0 is never.
    pub expires: u32,
    /// Commands that wait for an answer of a home.
    pub unanswered: u8,
    /// No pong has come for the last ping.
    pub pong_due: bool,
    /// `due_tick` is when the pong has to be there, not when the next ping goes.
    pub pong_window: bool,
    /// Out of the user index and of all lists: only homes are still to be told.
    pub detached: bool,
}

const _: () = assert!(size_of::<Session>() == 72);
const _: () = assert!(size_of::<Option<Session>>() == 72);

impl Session {
    /// What few sessions have, made when it is needed.
    pub fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// `conn_info`, if there is any.
    pub fn info(&self) -> Option<&[u8]> {
        self.extra.as_ref()?.info.as_deref()
    }

    /// Forgets what belonged to one subscription.
    pub fn forget_sub(&mut self, channel: u32) {
        if let Some(extra) = &mut self.extra {
            extra.sub_expiries.retain(|(c, _)| *c != channel);
            extra.sub_infos.retain(|(c, _)| *c != channel);
            extra.sub_data.retain(|(c, _)| *c != channel);
        }
    }
}
