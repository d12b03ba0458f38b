//! What one session is subscribed to: nothing or one channel without an allocation.

use crate::base::flags::flags;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, durable, durable_enum};

/// How far a subscription is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubState {
    /// Asked for at the home; `place` is the attempt's serial number.
    Joining,
    /// In the channel's list of subscribers, at `place`.
    Live,
    /// Out of the list; the home is still to be told.
    Owed,
}

/// One subscription. 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sub {
    /// Where this shard keeps the channel.
    pub channel: u32,
    /// See [`SubState`].
    pub place: u32,
    /// How far it is.
    pub state: SubState,
    /// What it is like.
    pub flags: SubFlags,
}

const _: () = assert!(size_of::<Sub>() == 12);

durable_enum!(SubState { Joining = 0, Live = 1, Owed = 2 });

durable!(Sub { channel, place, state, flags });

flags! {
    /// Yes-or-no facts of a subscription.
    pub struct SubFlags(u16) {
        /// A gap ends it, so that the client recovers.
        positioned, set_positioned = 0;
        /// The client may recover.
        recoverable, set_recoverable = 1;
        /// It gets join and leave events.
        joins, set_joins = 2;
        /// Delta compression was granted.
        delta, set_delta = 3;
        /// The server made it; a gap or an expiry ends the connection.
        server, set_server = 4;
        /// The connection's token named it.
        token, set_token = 5;
        /// Others see it: presence, or join and leave events.
        member, set_member = 6;
        /// The request asked for what was missed.
        recovering, set_recovering = 7;
        /// Where recovery fails, error 112 is the answer.
        strict, set_strict = 8;
        /// Its publications go without compression, whatever the connection has agreed on.
        plain, set_plain = 9;
        /// An administrator's, which is counted nowhere.
        hidden, set_hidden = 10;
    }
}

/// A session's subscriptions. 16 bytes.
#[derive(Debug, Default)]
pub enum Subs {
    /// None.
    #[default]
    None,
    /// One.
    One(Sub),
    /// Several, in no order. The box keeps the common cases small: 16 bytes instead of 24.
    Many(Box<Vec<Sub>>),
}

const _: () = assert!(size_of::<Subs>() == 16);

impl Durable for Subs {
    fn write(&self, out: &mut ImageWriter) {
        out.count(self.len());
        Sub::write_all(self.as_slice(), out);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let subs = Vec::<Sub>::read(from)?;
        Ok(match subs[..] {
            [] => Self::None,
            [one] => Self::One(one),
            _ => Self::Many(Box::new(subs)),
        })
    }
}

impl Subs {
    /// All of them.
    pub fn as_slice(&self) -> &[Sub] {
        match self {
            Self::None => &[],
            Self::One(sub) => std::slice::from_ref(sub),
            Self::Many(subs) => subs,
        }
    }

    /// All of them, to change.
    pub fn as_mut_slice(&mut self) -> &mut [Sub] {
        match self {
            Self::None => &mut [],
            Self::One(sub) => std::slice::from_mut(sub),
            Self::Many(subs) => subs,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// The same, to look at.
    pub fn get(&self, channel: u32) -> Option<&Sub> {
        self.as_slice().iter().find(|sub| sub.channel == channel)
    }

    /// The subscription to a channel. Linear: a client has at most `client.channel_limit`.
    pub fn find(&mut self, channel: u32) -> Option<&mut Sub> {
        self.as_mut_slice().iter_mut().find(|sub| sub.channel == channel)
    }

    /// Adds one.
    pub fn push(&mut self, sub: Sub) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(sub),
            Self::One(first) => Self::Many(Box::new(vec![first, sub])),
            Self::Many(mut subs) => {
                subs.push(sub);
                Self::Many(subs)
            }
        };
    }

    /// Takes one out.
    pub fn remove(&mut self, channel: u32) -> Option<Sub> {
        let at = self.as_slice().iter().position(|sub| sub.channel == channel)?;
        match std::mem::take(self) {
            Self::Many(mut subs) => {
                let sub = subs.swap_remove(at);
                *self = if let [one] = subs[..] { Self::One(one) } else { Self::Many(subs) };
                Some(sub)
            }
            Self::One(sub) => Some(sub),
            Self::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_shrinks_through_its_forms() {
        let mut subs = Subs::default();
        let flags = SubFlags::default();
        let sub = |channel| Sub { channel, place: 0, state: SubState::Live, flags };
        for channel in 0..5 {
            subs.push(sub(channel));
        }
        assert!(subs.find(3).is_some() && subs.find(5).is_none());
        for channel in [2, 0, 4, 1] {
            assert_eq!(subs.remove(channel), Some(sub(channel)));
            assert_eq!(subs.remove(channel), None);
        }
        assert!(matches!(subs, Subs::One(_)));
        assert_eq!(subs.remove(3), Some(sub(3)));
        assert!(subs.is_empty());
    }
}
