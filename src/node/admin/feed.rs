//! Figures for administrators who come to the internal port: a WebSocket that the control thread serves
//! itself. On the public port a shard does.
//!
//! It speaks as much of the client protocol as the page does: `connect` with a token of the page, pings, and
//! pushes of the node's own channel.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};

use super::access::Access;
use crate::edge::channels::OWN_CHANNEL;
use crate::proto::client::Disconnect;
use crate::proto::http::{self, is_of_own_host};
use crate::proto::ws::{Event, PONG, ReadRules, Reader, TEXT, close_frame, put_frame};

/// The state that serves the WebSocket.
#[derive(Clone)]
pub(super) struct Feed {
    access: Arc<Access>,
    figures: watch::Sender<Bytes>,
    places: Arc<Semaphore>,
}

impl Feed {
    pub(super) fn new(access: Arc<Access>, figures: watch::Sender<Bytes>) -> Self {
        Self { access, figures, places: Arc::new(Semaphore::new(VIEWERS_MAX)) }
    }
}

/// Answers the request for the WebSocket.
pub(super) async fn websocket(State(feed): State<Feed>, mut request: Request) -> Response {
    // Held against the same rules as on the public port.
    let head = head(&request);
    let Ok(Some(head)) = http::parse(&head) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let upgrade = match http::upgrade(&head) {
        Ok(upgrade) if is_of_own_host(&head) => upgrade,
        Ok(_) => return StatusCode::FORBIDDEN.into_response(),
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.status());
            return status.unwrap_or(StatusCode::BAD_REQUEST).into_response();
        }
    };
    let Ok(place) = Arc::clone(&feed.places).try_acquire_owned() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let Ok(accept) = HeaderValue::from_bytes(&upgrade.accept) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(socket) = upgraded.await {
            let figures = feed.figures.subscribe();
            serve(TokioIo::new(socket), |token| feed.access.admits(token), figures).await;
        }
        drop(place);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// A request's head as it goes over a connection.
fn head(request: &Request) -> Vec<u8> {
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri()).into_bytes();
    for (name, value) in request.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Serves one viewer until one of both goes.
async fn serve(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    admits: impl Fn(&str) -> bool,
    mut figures: watch::Receiver<Bytes>,
) {
    let mut viewer = Viewer::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut pings = tokio::time::interval(PING_INTERVAL);
    pings.tick().await;
    loop {
        let mut out = Vec::new();
        let next = tokio::select! {
            read = socket.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => viewer.take(&mut buffer[..count], &admits, &mut out),
            },
            changed = figures.changed(), if viewer.has_entered => {
                if changed.is_err() {
                    return;
                }
                let data = figures.borrow_and_update().clone();
                put_frame(&mut out, TEXT, &push(&data));
                Next::Goes
            }
            _ = pings.tick() => viewer.ping(&mut out),
        };
        let written = tokio::time::timeout(PING_INTERVAL, socket.write_all(&out)).await;
        if next == Next::Ends || !matches!(written, Ok(Ok(()))) {
            let _ = tokio::time::timeout(PING_INTERVAL, socket.shutdown()).await;
            return;
        }
    }
}

fn push(figures: &[u8]) -> Vec<u8> {
    let head = format!(r#"{{"push":{{"channel":"{OWN_CHANNEL}","pub":{{"data":"#);
    [head.as_bytes(), figures, b"}}}"].concat()
}

/// How it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Goes,
    Ends,
}

/// One viewer's connection.
#[derive(Default)]
struct Viewer {
    reader: Reader,
    has_entered: bool,
    /// A ping is out and has no pong.
    is_pinged: bool,
}

impl Viewer {
    /// Takes what was read; answers go to `out`.
    fn take(
        &mut self,
        input: &mut [u8],
        admits: &impl Fn(&str) -> bool,
        out: &mut Vec<u8>,
    ) -> Next {
        let mut at = 0;
        loop {
            let closes = match self.reader.next(&RULES, input, &mut at) {
                Ok(None) => return Next::Goes,
                Ok(Some(Event::Ping(payload))) => {
                    put_frame(out, PONG, payload);
                    continue;
                }
                Ok(Some(Event::Pong(_))) => continue,
                Ok(Some(Event::Close { code, .. })) => {
                    close_frame(out, code, "");
                    return Next::Ends;
                }
                Ok(Some(Event::Message { data, .. })) => {
                    let commands = data.split(|byte| *byte == b'\n');
                    let mut commands = commands.filter(|command| !command.is_empty());
                    let (has_entered, is_pinged) = (&mut self.has_entered, &mut self.is_pinged);
                    commands.find_map(|command| {
                        answer(command, has_entered, is_pinged, admits, out).err()
                    })
                }
                Err(fault) => {
                    close_frame(out, Some(fault.close_code()), "");
                    return Next::Ends;
                }
            };
            if let Some(disconnect) = closes {
                close_frame(out, Some(disconnect.code()), disconnect.reason());
                return Next::Ends;
            }
        }
    }

    /// The time for a ping; the last one has to be answered by then.
    fn ping(&mut self, out: &mut Vec<u8>) -> Next {
        if !self.has_entered || self.is_pinged {
            let disconnect = if self.has_entered { Disconnect::NoPong } else { Disconnect::Stale };
            close_frame(out, Some(disconnect.code()), disconnect.reason());
            return Next::Ends;
        }
        self.is_pinged = true;
        put_frame(out, TEXT, b"{}");
        Next::Goes
    }
}

/// Answers one command; the error closes.
fn answer(
    command: &[u8],
    has_entered: &mut bool,
    is_pinged: &mut bool,
    admits: &impl Fn(&str) -> bool,
    out: &mut Vec<u8>,
) -> Result<(), Disconnect> {
    #[derive(Deserialize)]
    struct Command {
        #[serde(default)]
        id: u32,
        connect: Option<Connect>,
    }
    #[derive(Deserialize)]
    struct Connect {
        #[serde(default)]
        token: String,
    }
    let command: Command = serde_json::from_slice(command).map_err(|_| Disconnect::BadRequest)?;
    let reply = match command {
        Command { id: 0, connect: None } => {
            *is_pinged = false;
            return Ok(());
        }
        Command { id, connect: Some(Connect { token }) } if id > 0 && !*has_entered => {
            if !admits(&token) {
                return Err(Disconnect::InvalidToken);
            }
            *has_entered = true;
            let connect = json!({
                "version": env!("CARGO_PKG_VERSION"),
                "subs": { OWN_CHANNEL: {} },
                "ping": PING_INTERVAL.as_secs(),
                "pong": true,
            });
            format!(r#"{{"id":{id},"connect":{connect}}}"#)
        }
        Command { id, connect: None } if *has_entered => {
            format!(r#"{{"id":{id},"error":{{"code":108,"message":"not available"}}}}"#)
        }
        Command { .. } => return Err(Disconnect::BadRequest),
    };
    put_frame(out, TEXT, reply.as_bytes());
    Ok(())
}

/// Administrators at the internal port at a time.
const VIEWERS_MAX: usize = 64;

/// Between two pings; within it a viewer connects, answers the last ping, and takes what is sent.
const PING_INTERVAL: Duration = Duration::from_secs(20);

const BUFFER_BYTES: usize = 4096;

/// A connect command with a token is what a viewer sends at most.
const RULES: ReadRules = ReadRules { masked: true, deflate: false, message_bytes_max: 16 << 10 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ws::{payload, put_masked};

    /// Enough for the serving task to do all that it can.
    async fn turns() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// Sends messages to a viewer's connection that admits the token `good`, publishes once, and gives back all
    /// payloads.
    async fn spoken(messages: &[&str]) -> Vec<String> {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let (figures, seen) = watch::channel(Bytes::new());
        for message in messages {
            let mut frame = Vec::new();
            put_masked(&mut frame, TEXT, message.as_bytes(), [1, 2, 3, 4]);
            client.write_all(&frame).await.unwrap();
        }
        let serving = tokio::spawn(serve(server, |token| token == "good", seen));
        turns().await;
        figures.send_replace(Bytes::from_static(b"{\"a\":1}"));
        turns().await;
        drop(figures);
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        drop(client);
        serving.await.unwrap();
        let mut payloads = Vec::new();
        let mut rest = &received[..];
        while !rest.is_empty() {
            // Short frames: two bytes of header, or four.
            let (head, len) = match rest[1] {
                126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
                len => (2, usize::from(len)),
            };
            let body = payload(&rest[..head + len]);
            payloads.push(match rest[0] {
                0x88 => u16::from_be_bytes([body[0], body[1]]).to_string(),
                _ => String::from_utf8(body.to_vec()).unwrap(),
            });
            rest = &rest[head + len..];
        }
        payloads
    }

    #[tokio::test]
    async fn figures_need_a_token() {
        let connect = r#"{"id":1,"connect":{"token":"good"}}"#;
        let seen = spoken(&[connect, "{}\n{\"id\":2,\"rpc\":{}}"]).await;
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(seen[0].contains(r#""subs":{"roost.admin":{}}"#), "{seen:?}");
        assert!(seen[1].contains("108"), "{seen:?}");
        assert_eq!(seen[2], r#"{"push":{"channel":"roost.admin","pub":{"data":{"a":1}}}}"#);
        for (wrong, code) in [
            (r#"{"id":1,"connect":{"token":"bad"}}"#, "3500"),
            (r#"{"id":1,"connect":{}}"#, "3500"),
            (r#"{"id":1,"rpc":{}}"#, "3501"),
            ("x", "3501"),
        ] {
            assert_eq!(spoken(&[wrong]).await, [code], "{wrong}");
        }
        assert_eq!(spoken(&[connect, connect]).await.last().map(String::as_str), Some("3501"));
    }

    #[test]
    fn a_viewer_without_pongs_is_closed() {
        let mut viewer = Viewer::default();
        let mut out = Vec::new();
        assert_eq!(viewer.ping(&mut out), Next::Ends, "it has not connected");
        let mut viewer = Viewer { has_entered: true, ..Viewer::default() };
        assert_eq!(viewer.ping(&mut out), Next::Goes);
        assert_eq!(viewer.ping(&mut out), Next::Ends);
    }
}
