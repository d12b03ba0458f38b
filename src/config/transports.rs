//! Which transports clients have: sections `websocket`, `http_stream`, `sse`, `emulation`, `uni_*`,
//! `long_poll` and `init`.

use serde::Deserialize;

use super::layers::{Report, Scope};
use super::transforms::{DisconnectTransform, ResponseOf, ResponseTransform};
use crate::edge::proxy::AppDisconnect;
use crate::proto::ws::DeflateOptions;
use crate::shard::{CodeResponse, Endpoint, EndpointKind, UniWebSocketOptions};

/// Endpoints of clients, and how WebSockets are compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transports {
    /// All endpoints of clients that are on.
    pub endpoints: Vec<Endpoint>,
    /// How messages are deflated over two-way WebSockets, if they are.
    pub deflate: Option<DeflateOptions>,
    /// The maximum of a client's message after inflation, bytes.
    pub inflated_bytes_max: usize,
    /// One-way WebSockets.
    pub uni_websocket: UniWebSocketOptions,
    /// How long a poll may wait, milliseconds.
    pub poll_wait_ms: u64,
}

/// The section's transforms, if they are on. That they are good was checked with the value.
fn transforms<T: for<'de> Deserialize<'de>>(root: &Scope, section: &str) -> Vec<T> {
    let list = root.json(&format!("{section}.transforms"));
    let on = root.flag(&format!("{section}.enabled"));
    if on { serde_json::from_value(list).unwrap_or_default() } else { Vec::new() }
}

/// The close of one-way connections, by the code of their connect error.
pub(super) fn one_way_disconnects(root: &Scope) -> Vec<(u32, AppDisconnect)> {
    let section = "client.connect_code_to_unidirectional_disconnect";
    transforms::<DisconnectTransform>(root, section)
        .into_iter()
        .map(|of| (of.code, of.to))
        .collect()
}

fn deflate(root: &Scope, section: &str) -> Option<DeflateOptions> {
    // -2, -1 and 0 mean something to other libraries: the fastest here.
    let level = root.integer(&format!("{section}.compression_level")).max(1);
    root.flag(&format!("{section}.compression")).then(|| DeflateOptions {
        level: u32::try_from(level).unwrap_or(1),
        bytes_min: root.size(&format!("{section}.compression_min_size")),
    })
}

/// How long a poll may wait: shorter ones are no waiting, and of longer ones nobody knows whether they live.
const POLL_WAIT_MS: std::ops::RangeInclusive<u64> = 1_000..=600_000;

/// The transports that are on. Paths that two of them have are reported, and `taken` gets all.
pub(super) fn transports(
    root: &Scope,
    taken: &mut Vec<(&'static str, String)>,
    report: &mut Report,
) -> Transports {
    let on = |section: &str| root.flag(&format!("{section}.enabled"));
    let emulation = on("http_stream") || on("sse");
    let all = [
        ("websocket.handler_prefix", EndpointKind::WebSocket, !root.flag("websocket.disabled")),
        ("http_stream.handler_prefix", EndpointKind::HttpStream, on("http_stream")),
        ("sse.handler_prefix", EndpointKind::Sse, on("sse")),
        ("emulation.handler_prefix", EndpointKind::Emulation, emulation),
        ("uni_websocket.handler_prefix", EndpointKind::UniWebSocket, on("uni_websocket")),
        ("uni_http_stream.handler_prefix", EndpointKind::UniHttpStream, on("uni_http_stream")),
        ("uni_sse.handler_prefix", EndpointKind::UniSse, on("uni_sse")),
        ("long_poll.handler_prefix", EndpointKind::LongPoll, on("long_poll")),
        ("init.handler_prefix", EndpointKind::Init, on("init")),
    ];
    let mut endpoints = Vec::new();
    for (option, kind, _) in all.into_iter().filter(|(_, _, on)| *on) {
        let path = root.text(option);
        if let Some((other, _)) = taken.iter().find(|(_, other)| *other == path) {
            report.errors.push(root.complaint(option, &format!("another path than {other}")));
        }
        let section = option.trim_end_matches(".handler_prefix");
        let (has_body, has_responses) = match kind {
            EndpointKind::HttpStream
            | EndpointKind::Sse
            | EndpointKind::Emulation
            | EndpointKind::LongPoll => (true, false),
            EndpointKind::UniHttpStream | EndpointKind::UniSse => (true, true),
            _ => (false, false),
        };
        let mut endpoint = Endpoint::new(&path, kind);
        if has_body {
            endpoint.body_bytes_max = root.size(&format!("{section}.max_request_body_size"));
        }
        if has_responses {
            let section = format!("{section}.connect_code_to_http_response");
            let responses = transforms::<ResponseTransform>(root, &section).into_iter();
            let of = |ResponseTransform { code, to }| {
                let ResponseOf { status_code: status, body } = to;
                CodeResponse { code, status, body }
            };
            endpoint.responses = responses.map(of).collect();
        }
        endpoints.push(endpoint);
        taken.push((option, path));
    }
    let poll_wait_ms = root.ms("long_poll.timeout");
    if !POLL_WAIT_MS.contains(&poll_wait_ms) {
        report.errors.push(root.complaint("long_poll.timeout", "1s to 10m"));
    }
    let message_bytes_max = root.size("websocket.message_size_limit");
    Transports {
        endpoints,
        deflate: deflate(root, "websocket"),
        inflated_bytes_max: match root.size("websocket.decompressed_message_size_limit") {
            0 => message_bytes_max.saturating_mul(10),
            bytes => bytes,
        },
        uni_websocket: UniWebSocketOptions {
            deflate: deflate(root, "uni_websocket"),
            message_bytes_max: root.size("uni_websocket.message_size_limit"),
            joins: root.flag("uni_websocket.join_push_messages"),
            tells_end: !root.flag("uni_websocket.disable_disconnect_push"),
            closes: !root.flag("uni_websocket.disable_closing_handshake"),
        },
        poll_wait_ms,
    }
}
