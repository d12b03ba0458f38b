//! Endpoints of the public port that shards serve, and their options.

use crate::proto::ws::DeflateOptions;

/// Something that shards serve on the public port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its path.
    pub path: String,
    /// What it is.
    pub kind: EndpointKind,
    /// Bytes of a request's body at most.
    pub body_bytes_max: usize,
    /// What a `connect` that fails is answered with, by its code, in place of the response that it would
    /// have begun.
    pub responses: Vec<CodeResponse>,
}

impl Endpoint {
    /// An endpoint without a body and without peculiarities.
    pub fn new(path: &str, kind: EndpointKind) -> Self {
        Self { path: path.to_owned(), kind, body_bytes_max: 0, responses: Vec::new() }
    }
}

/// What an endpoint is (client protocol, 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// The client protocol over WebSocket.
    WebSocket,
    /// The same for administrators.
    Admin,
    /// A WebSocket whose messages go back.
    Echo,
    /// Pushes over WebSocket.
    UniWebSocket,
    /// The client protocol over an endless response.
    HttpStream,
    /// The client protocol over server-sent events.
    Sse,
    /// Commands for connections of the last two.
    Emulation,
    /// Pushes over an endless response.
    UniHttpStream,
    /// Pushes as server-sent events.
    UniSse,
    /// What was missed, or what comes next: one answer for each request.
    LongPoll,
    /// Nothing: a browser warms up with it.
    Init,
}

impl EndpointKind {
    /// It begins with an upgrade.
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::Admin | Self::Echo | Self::UniWebSocket)
    }

    /// Pushes only.
    pub(crate) fn is_one_way(self) -> bool {
        matches!(self, Self::UniWebSocket | Self::UniHttpStream | Self::UniSse | Self::LongPoll)
    }

    /// Server-sent events.
    pub(crate) fn is_events(self) -> bool {
        matches!(self, Self::Sse | Self::UniSse)
    }

    /// Methods that it takes, beside a pre-flight request.
    pub(crate) fn methods(self) -> &'static str {
        match self {
            Self::HttpStream | Self::Emulation | Self::UniHttpStream => "POST",
            Self::Sse | Self::UniSse | Self::LongPoll => "GET, POST",
            _ => "GET",
        }
    }
}

/// A response in place of a connect error or disconnect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeResponse {
    /// The error's or the disconnect's code.
    pub code: u32,
    /// Status of the response.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// Options of one-way WebSockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniWebSocketOptions {
    /// How messages are deflated; `None`: they aren't.
    pub deflate: Option<DeflateOptions>,
    /// Bytes of the client's message at most.
    pub message_bytes_max: usize,
    /// Pushes share frames.
    pub joins: bool,
    /// A push says why the connection ends.
    pub tells_end: bool,
    /// A close frame does.
    pub closes: bool,
}

impl Default for UniWebSocketOptions {
    fn default() -> Self {
        Self {
            deflate: None,
            message_bytes_max: 65_536,
            joins: false,
            tells_end: true,
            closes: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_with_an_upgrade_takes_get_alone() {
        use EndpointKind as Kind;
        for kind in [Kind::WebSocket, Kind::Admin, Kind::Echo, Kind::UniWebSocket] {
            assert_eq!((kind.is_websocket(), kind.methods()), (true, "GET"));
        }
        for kind in [Kind::HttpStream, Kind::Emulation, Kind::UniHttpStream] {
            assert_eq!((kind.is_websocket(), kind.methods()), (false, "POST"));
        }
        assert!(Kind::Sse.is_events() && !Kind::Sse.is_one_way());
        assert!(Kind::UniSse.is_events() && Kind::UniSse.is_one_way());
    }
}
