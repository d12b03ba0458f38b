//! The sender of a request: where its answer goes, and what the answer gives back.

use crate::base::id::ConnKey;
use crate::proto::client::Request;

/// Who asked, so that the answer finds the command, and the credits that come back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The connection.
    pub conn: ConnKey,
    /// The command's id, copied into the reply.
    pub command: u32,
    /// Credits spent.
    pub credits: u8,
    /// What the command is.
    pub method: Method,
    /// When it came: the low bits of the shard's clock, milliseconds.
    pub asked_ms: u16,
}

const _: () = assert!(size_of::<Asker>() == 16);

impl Asker {
    /// A connection, or whoever has its number, without a command.
    pub fn of(conn: ConnKey) -> Self {
        Self { conn, command: 0, credits: 0, method: Method::Other, asked_ms: 0 }
    }
}

/// Methods of the client protocol whose answers are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Who it is.
    Connect,
    /// Join a channel.
    Subscribe,
    /// Leave one.
    Unsubscribe,
    /// Put a message in.
    Publish,
    /// Who is there.
    Presence,
    /// How many are.
    PresenceStats,
    /// What was published.
    History,
    /// A call to the application.
    Rpc,
    /// A new connection token.
    Refresh,
    /// A new subscription token.
    SubRefresh,
    /// Not a command, or one that is never answered.
    Other,
}

impl Method {
    /// Those that are timed, in order, as metrics name them.
    pub const NAMES: [&'static str; 10] = [
        "connect",
        "subscribe",
        "unsubscribe",
        "publish",
        "presence",
        "presence_stats",
        "history",
        "rpc",
        "refresh",
        "sub_refresh",
    ];

    /// The name of a command that is timed, else an empty text.
    pub fn name(self) -> &'static str {
        Self::NAMES.get(self as usize).copied().unwrap_or_default()
    }

    /// That of a request.
    pub fn of(request: &Request<'_>) -> Self {
        match request {
            Request::Connect(_) => Self::Connect,
            Request::Subscribe(_) => Self::Subscribe,
            Request::Unsubscribe(_) => Self::Unsubscribe,
            Request::Publish(_) => Self::Publish,
            Request::Presence(_) => Self::Presence,
            Request::PresenceStats(_) => Self::PresenceStats,
            Request::History(_) => Self::History,
            Request::Rpc(_) => Self::Rpc,
            Request::Refresh(_) => Self::Refresh,
            Request::SubRefresh(_) => Self::SubRefresh,
            Request::Send(_) | Request::Pong | Request::Ping | Request::Unknown => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_with_a_time_have_a_name() {
        assert_eq!(Method::Connect.name(), "connect");
        assert_eq!(Method::SubRefresh.name(), "sub_refresh");
        assert_eq!(Method::NAMES.len(), Method::Other as usize);
        assert_eq!((Method::Other.name(), Method::of(&Request::Pong)), ("", Method::Other));
    }
}
