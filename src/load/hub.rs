//! Hubs of server-sent events: a request for each subscriber, whose response goes on, and one for each message.
//!
//! ```text
//!  Mercure: GET /.well-known/mercure?topic=C       POST topic=C&data=...   by a JWT
//!  nchan:   GET /sub/C                             POST /pub/C, the message as the body
//!                        --> 200, lines: `id: 1`, `data: {"roost_load":..}`, an empty one; `:` is a ping
//! ```
//! The stamp of a message stands in one line, so lines are all that is read of an event.

use super::flags::Protocol;
use super::payload;
use super::speech::Said;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// The place of the channel in paths.
const CHANNEL: &str = "{channel}";

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hub {
    Mercure,
    Nchan,
}

impl Hub {
    /// The hub of a protocol, if it is one.
    pub(crate) fn of(protocol: Option<Protocol>) -> Option<Self> {
        match protocol {
            Some(Protocol::Mercure) => Some(Self::Mercure),
            Some(Protocol::Nchan) => Some(Self::Nchan),
            _ => None,
        }
    }

    /// Path and query of subscribers, by those of the URL, with a place for the channel.
    ///
    /// # Errors
    /// There is no such place: text for the user.
    pub(super) fn subscribe_path(self, path: &str) -> Result<String, String> {
        match self {
            _ if path.contains(CHANNEL) => Ok(path.to_owned()),
            Self::Mercure if path.contains('?') => Ok(format!("{path}&topic={CHANNEL}")),
            Self::Mercure => Ok(format!("{path}?topic={CHANNEL}")),
            Self::Nchan => Err(format!("--protocol nchan: {CHANNEL} stands in the path of a URL")),
        }
    }

    /// Path and query that messages are published to.
    ///
    /// # Errors
    /// As [`Self::subscribe_path`].
    pub(super) fn publish_path(self, path: &str) -> Result<String, String> {
        match self {
            Self::Mercure => Ok(path.split('?').next().unwrap_or_default().to_owned()),
            Self::Nchan => self.subscribe_path(path),
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Mercure => "application/x-www-form-urlencoded",
            Self::Nchan => "text/plain",
        }
    }

    /// The body that publishes a payload.
    pub(super) fn body(self, channel: &str, payload: &[u8]) -> Vec<u8> {
        match self {
            Self::Mercure => {
                let mut form = form_urlencoded::Serializer::new(String::new());
                form.append_pair("topic", channel);
                form.append_pair("data", &String::from_utf8_lossy(payload));
                form.finish().into_bytes()
            }
            Self::Nchan => payload.to_vec(),
        }
    }
}

/// A path with the channel in its place.
pub(super) fn placed(path: &str, channel: &str) -> String {
    let channel = utf8_percent_encode(channel, NON_ALPHANUMERIC).to_string();
    path.replace(CHANNEL, &channel)
}

/// Appends what whole lines of a stream of events meant.
pub(super) fn read_lines(text: &str, run: u32, said: &mut Vec<Said>) {
    let before = said.len();
    payload::read_all(text, run, |stamp| said.push(Said::Message(stamp, 0)));
    if said.len() == before && text.lines().any(|line| line.starts_with(':')) {
        said.push(Said::Ping);
    }
}

#[cfg(test)]
mod tests {
    use super::super::payload::Stamp;
    use super::*;

    #[test]
    fn paths_and_bodies() {
        let path = Hub::Mercure.subscribe_path("/.well-known/mercure").unwrap();
        assert_eq!(placed(&path, "a/b 1"), "/.well-known/mercure?topic=a%2Fb%201");
        assert_eq!(Hub::Mercure.subscribe_path("/m?x=1").unwrap(), "/m?x=1&topic={channel}");
        assert_eq!(Hub::Mercure.publish_path("/m?x=1").unwrap(), "/m");
        let body = Hub::Mercure.body("a/b", b"{\"x\":1}");
        assert_eq!(String::from_utf8(body).unwrap(), "topic=a%2Fb&data=%7B%22x%22%3A1%7D");
        assert_eq!(Hub::Nchan.publish_path("/pub/{channel}").unwrap(), "/pub/{channel}");
        assert!(Hub::Nchan.subscribe_path("/sub").is_err());
    }

    #[test]
    fn lines_have_messages_and_pings() {
        let line = |s: u32| {
            format!("id: {s}\ndata: {{\"roost_load\":7,\"c\":1,\"s\":{s},\"i\":3,\"a\":4}}\n\n")
        };
        let mut said = Vec::new();
        read_lines(&(line(1) + ": hi\n" + &line(2)), 7, &mut said);
        let stamp = |sequence| {
            let stamp = Stamp { run: 7, channel: 1, sequence, intended_ns: 3, actual_ns: 4 };
            Said::Message(stamp, 0)
        };
        assert_eq!(said, [stamp(1), stamp(2)]);
        said.clear();
        read_lines(": hi\n\n", 7, &mut said);
        assert_eq!(said, [Said::Ping]);
        said.clear();
        read_lines("id: 1\nevent: x\n", 7, &mut said);
        assert_eq!(said, []);
    }
}
