//! The request headers of connections, beside those that a handshake needs: as the flags have them, with the
//! number of the connection where `{n}` stands.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{HeaderName, HeaderValue};

use super::flags::Flags;

/// The place of the connection's number, in values of headers and in the query of the URL.
const NUMBER: &str = "{n}";

/// Names that a handshake or a request has of its own, in lower case.
const RESERVED: [&str; 8] = [
    "connection",
    "content-length",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-version",
    "transfer-encoding",
    "upgrade",
];

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Headers {
    all: Vec<(String, String)>,
    /// The requested subprotocols.
    subprotocols: Vec<String>,
    /// In place of the URL's.
    pub(super) host: Option<String>,
}

impl Headers {
    /// The headers of the flags.
    ///
    /// # Errors
    /// One of them can't be sent: text for the user.
    pub(super) fn new(flags: &Flags) -> Result<Self, String> {
        let mut headers = Self { subprotocols: flags.subprotocol.clone(), ..Self::default() };
        for text in &flags.header {
            let (name, value) = text.split_once(':').ok_or_else(|| {
                format!("--header {text}: a name and a value, as in 'Authorization: Bearer abc'")
            })?;
            headers.put("--header", name.trim(), value.trim())?;
        }
        for (flag, name, value) in [
            ("--origin", "Origin", &flags.origin),
            ("--cookie", "Cookie", &flags.cookie),
            ("--bearer", "Authorization", &flags.bearer.as_ref().map(|of| format!("Bearer {of}"))),
            ("--user", "Authorization", &flags.user.as_ref().map(|of| basic(of))),
        ] {
            if let Some(value) = value {
                headers.put(flag, name, value)?;
            }
        }
        if !flags.subprotocol.is_empty() {
            headers.put(
                "--subprotocol",
                "Sec-WebSocket-Protocol",
                &flags.subprotocol.join(", "),
            )?;
        }
        Ok(headers)
    }

    fn put(&mut self, flag: &str, name: &str, value: &str) -> Result<(), String> {
        let lower = name.to_ascii_lowercase();
        if HeaderName::from_bytes(name.as_bytes()).is_err() || HeaderValue::from_str(value).is_err()
        {
            return Err(format!("{flag} {name}: not a header that can be sent"));
        }
        if RESERVED.contains(&lower.as_str()) {
            return Err(format!("{flag} {name}: a handshake has its own"));
        }
        match lower.as_str() {
            "host" => self.host = Some(value.to_owned()),
            _ => self.all.push((name.to_owned(), value.to_owned())),
        }
        Ok(())
    }

    /// Name and value of each, for connection `number`.
    pub(super) fn of(&self, number: u32) -> Vec<(&str, String)> {
        self.all.iter().map(|(name, value)| (name.as_str(), numbered(value, number))).collect()
    }

    /// Whether a server may answer with this subprotocol. One that was not requested ends the connection
    /// (RFC 6455, 4.1); none at all is up to the server.
    pub(super) fn agree(&self, subprotocol: &str) -> bool {
        self.subprotocols.iter().any(|of| of == subprotocol)
    }
}

/// Credentials of basic authentication (RFC 7617).
fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(user))
}

/// A text with the number of a connection in its place.
pub(super) fn numbered(text: &str, number: u32) -> String {
    text.replace(NUMBER, &number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn of(more: &[&str]) -> Result<Headers, String> {
        let base = ["roost-load", "idle", "--url", "ws://h/"];
        Headers::new(&Flags::try_parse_from(base.iter().chain(more)).unwrap())
    }

    #[test]
    fn headers_have_the_number_of_their_connection() {
        let flags = ["--header", "X-User: user-{n}", "--cookie", "id={n}", "--origin", "https://a"];
        let expected = [("X-User", "user-7"), ("Origin", "https://a"), ("Cookie", "id=7")];
        let headers = of(&flags).unwrap();
        let all = headers.of(7);
        assert!(all.iter().map(|(name, value)| (*name, value.as_str())).eq(expected), "{all:?}");
    }

    #[test]
    fn credentials_and_subprotocols() {
        let (user, bearer) = (of(&["--user", "me:secret"]), of(&["--bearer", "abc"]));
        let (user, bearer) = (user.unwrap(), bearer.unwrap());
        assert_eq!(user.of(0), [("Authorization", "Basic bWU6c2VjcmV0".to_owned())]);
        assert_eq!(bearer.of(0), [("Authorization", "Bearer abc".to_owned())]);
        let two = of(&["--subprotocol", "mqtt", "--subprotocol", "wamp.2.json"]).unwrap();
        assert_eq!(two.of(0), [("Sec-WebSocket-Protocol", "mqtt, wamp.2.json".to_owned())]);
        assert!(two.agree("mqtt") && !two.agree("stomp"));
        assert_eq!(of(&["--header", "Host: other"]).unwrap().host.as_deref(), Some("other"));
    }

    #[test]
    fn headers_that_cannot_be_sent_are_refused() {
        for (flag, value, expected) in [
            ("--header", "no colon", "a name and a value"),
            ("--header", "a b: c", "not a header"),
            ("--header", "Upgrade: h2c", "a handshake has its own"),
            ("--cookie", "a\r\nb", "not a header"),
        ] {
            let error = of(&[flag, value]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
