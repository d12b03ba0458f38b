//! tokio-tungstenite on a current-thread runtime, with buffers of 4 KB.

use std::rc::Rc;

use futures_util::{SinkExt, StreamExt};
use peers::Room;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

fn main() {
    peers::run(serve);
}

async fn serve(stream: TcpStream, room: Rc<Room<Message>>) {
    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
    let mut echo = false;
    #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
    let look = |request: &Request, response: Response| {
        echo = request.uri().path() == "/echo";
        Ok(response)
    };
    let accepted = tokio_tungstenite::accept_hdr_async_with_config(stream, look, Some(config));
    let Ok(mut socket) = accepted.await else { return };
    if echo {
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
        return;
    }
    let (number, mut queue) = room.enter();
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message)) if message.is_text() || message.is_binary() => {
                    room.say(number, &message);
                }
                Some(Ok(_)) => {}
                _ => break,
            },
            Some(message) = queue.recv() => {
                if socket.feed(message).await.is_err() {
                    break;
                }
                while let Ok(message) = queue.try_recv() {
                    if socket.feed(message).await.is_err() {
                        break;
                    }
                }
                if socket.flush().await.is_err() {
                    break;
                }
            }
        }
    }
    room.leave(number);
}
