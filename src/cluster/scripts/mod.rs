//! Scripts that Redis runs. Nodes may run different texts over the same keys: the effect is what must be
//! equal. All keys that a script touches are in KEYS.

/// A script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Script {
    /// A publication with history.
    PublishStream,
    /// The same in lists.
    PublishList,
    /// A publication without history, with an idempotency key.
    PublishOnce,
    /// Position and publications.
    ReadStream,
    /// The same of lists.
    ReadList,
    /// Another epoch for a stream that went back.
    Renew,
    /// Changes of those present.
    PresenceUpdate,
    /// More time for those present.
    PresenceProlong,
    /// Those present, or their number.
    PresenceRead,
    /// Positions of many channels.
    Tops,
}

impl Script {
    /// Each of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::PublishStream,
        Self::PublishList,
        Self::PublishOnce,
        Self::ReadStream,
        Self::ReadList,
        Self::Renew,
        Self::PresenceUpdate,
        Self::PresenceProlong,
        Self::PresenceRead,
        Self::Tops,
    ];

    /// Its text.
    pub const fn text(self) -> &'static str {
        match self {
            Self::PublishStream => include_str!("publish_stream.lua"),
            Self::PublishList => include_str!("publish_list.lua"),
            Self::PublishOnce => include_str!("publish_once.lua"),
            Self::ReadStream => include_str!("read_stream.lua"),
            Self::ReadList => include_str!("read_list.lua"),
            Self::Renew => include_str!("renew.lua"),
            Self::PresenceUpdate => include_str!("presence_update.lua"),
            Self::PresenceProlong => include_str!("presence_prolong.lua"),
            Self::PresenceRead => include_str!("presence_read.lua"),
            Self::Tops => include_str!("tops.lua"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_numbered_in_order() {
        for (at, script) in Script::ALL.iter().enumerate() {
            assert_eq!(*script as usize, at);
            assert!(script.text().starts_with("-- "), "{script:?} says nothing about itself");
        }
    }
}
