//! fastwebsockets on a current-thread runtime, upgraded through hyper.

use std::rc::Rc;

use fastwebsockets::{FragmentCollector, Frame, OpCode, Payload, WebSocketError, upgrade};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use peers::Room;
use tokio::net::TcpStream;

fn main() {
    peers::run(serve);
}

async fn serve(stream: TcpStream, room: Rc<Room<Bytes>>) {
    let service = service_fn(move |request| upgraded(request, Rc::clone(&room)));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = connection.with_upgrades().await;
}

async fn upgraded(
    mut request: Request<Incoming>,
    room: Rc<Room<Bytes>>,
) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let echo = request.uri().path() == "/echo";
    let (response, socket) = upgrade::upgrade(&mut request)?;
    tokio::task::spawn_local(async move {
        let _ = if echo { echoes(socket).await } else { talks(socket, &room).await };
    });
    Ok(response)
}

async fn echoes(socket: upgrade::UpgradeFut) -> Result<(), WebSocketError> {
    let mut socket = socket.await?;
    socket.set_writev(true);
    let mut socket = FragmentCollector::new(socket);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            _ => {}
        }
    }
}

async fn talks(socket: upgrade::UpgradeFut, room: &Room<Bytes>) -> Result<(), WebSocketError> {
    let mut socket = socket.await?;
    socket.set_writev(true);
    let (mut reader, mut writer) = socket.split(tokio::io::split);
    let (number, mut queue) = room.enter();
    let writing = tokio::task::spawn_local(async move {
        while let Some(bytes) = queue.recv().await {
            if writer.write_frame(Frame::text(Payload::Borrowed(&bytes))).await.is_err() {
                return;
            }
        }
    });
    let mut no_answer = |_: Frame<'_>| async { Ok::<_, WebSocketError>(()) };
    while let Ok(frame) = reader.read_frame(&mut no_answer).await {
        match frame.opcode {
            OpCode::Close => break,
            OpCode::Text | OpCode::Binary => {
                room.say(number, &Bytes::copy_from_slice(&frame.payload));
            }
            _ => {}
        }
    }
    room.leave(number);
    writing.abort();
    Ok(())
}
