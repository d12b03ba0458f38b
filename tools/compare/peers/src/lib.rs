//! Common parts of the servers: a listener with room for a burst, and a room whose members get the
//! messages of the others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

/// Members of a room, each with the sending half of its queue.
pub struct Room<M> {
    members: RefCell<HashMap<u64, UnboundedSender<M>>>,
    next: RefCell<u64>,
}

impl<M: Clone> Room<M> {
    /// A room with nobody in it.
    #[expect(clippy::new_without_default, reason = "a room is made once")]
    pub fn new() -> Self {
        Self { members: RefCell::new(HashMap::new()), next: RefCell::new(0) }
    }

    /// A new member: its number, and what it gets.
    pub fn enter(&self) -> (u64, UnboundedReceiver<M>) {
        let (sender, receiver) = unbounded_channel();
        let mut next = self.next.borrow_mut();
        *next += 1;
        self.members.borrow_mut().insert(*next, sender);
        (*next, receiver)
    }

    /// Gives a message to all but who says it.
    pub fn say(&self, from: u64, message: &M) {
        for (number, member) in self.members.borrow().iter() {
            if *number != from {
                let _ = member.send(message.clone());
            }
        }
    }

    /// A member goes.
    pub fn leave(&self, number: u64) {
        self.members.borrow_mut().remove(&number);
    }
}

/// Listens on the port named on the command line, on one thread, and hands connections over.
pub fn run<M: Clone + 'static, F: Future<Output = ()> + 'static>(
    serve: impl Fn(TcpStream, Rc<Room<M>>) -> F + 'static,
) {
    let port: u16 = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("a port");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], port).into()).unwrap();
        let listener: TcpListener = socket.listen(65_535).unwrap();
        println!("listening on 127.0.0.1:{port}");
        let room = Rc::new(Room::new());
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            tokio::task::spawn_local(serve(stream, Rc::clone(&room)));
        }
    });
}
