//! Requests with a subject for their replies: one subscription takes all replies, and the end of its subject is the
//! number of the request.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use async_nats::header::NATS_SUBJECT;
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout};

use super::Shared;
use crate::cluster::nats::streams::{PENDING, Stored, VERSION_EPOCH, number, text};
use crate::hub::broker::Ticket;

/// A server has so long for a reply.
const REPLY: Duration = Duration::from_secs(4);

/// A reply.
#[derive(Debug)]
pub(super) struct Reply {
    /// Of the server itself: 404 nothing found, 503 nobody answers, 204 no more.
    pub(super) status: Option<u16>,
    /// The place of the message in its stream, if it is one.
    pub(super) stored: Option<Stored>,
    pub(super) subject: String,
    /// Messages behind it that were found, too.
    pub(super) pending: u64,
    pub(super) version_epoch: String,
    pub(super) payload: Bytes,
}

impl Reply {
    fn new(message: Message) -> Self {
        let none = HeaderMap::new();
        let headers = message.headers.as_ref().unwrap_or(&none);
        Self {
            status: message.status.map(u16::from),
            stored: Stored::read(headers),
            subject: text(headers, NATS_SUBJECT).unwrap_or_default().to_owned(),
            pending: number(headers, PENDING).unwrap_or(0),
            version_epoch: text(headers, VERSION_EPOCH).unwrap_or_default().to_owned(),
            payload: message.payload,
        }
    }
}

/// A publication that waits for its place in a stream.
#[derive(Debug)]
pub(super) struct Publication {
    pub(super) home: usize,
    pub(super) ticket: Ticket,
    /// The number of the stream.
    pub(super) stream: usize,
    pub(super) since: Instant,
    /// Bytes that leave the account of the thread with it.
    pub(super) cost: usize,
}

/// Who waits for replies.
#[derive(Debug)]
enum Waiting {
    Publication(Publication),
    Task(UnboundedSender<Reply>),
}

/// What a message answers.
pub(super) enum Answered {
    /// A publication: its status and its content.
    Publication(Publication, Option<u16>, Bytes),
    /// A task, which has it, or nobody.
    Else,
}

/// Requests that wait for replies, by number.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: HashMap<u64, Waiting, foldhash::fast::RandomState>,
    last: u64,
}

impl Requests {
    /// The number of a publication.
    pub(super) fn publication(&mut self, publication: Publication) -> u64 {
        self.last += 1;
        self.waiting.insert(self.last, Waiting::Publication(publication));
        self.last
    }

    /// It was not sent.
    pub(super) fn forget(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    fn task(&mut self) -> (u64, UnboundedReceiver<Reply>) {
        self.last += 1;
        let (sender, replies) = unbounded_channel();
        self.waiting.insert(self.last, Waiting::Task(sender));
        (self.last, replies)
    }

    /// A reply has come.
    pub(super) fn take(&mut self, message: Message) -> Answered {
        let number = message.subject.rsplit('.').next().and_then(|text| text.parse().ok());
        let Some(number) = number else { return Answered::Else };
        match self.waiting.get(&number) {
            Some(Waiting::Task(task)) => {
                // One that nobody waits for any more is removed by its task.
                let _ = task.send(Reply::new(message));
                Answered::Else
            }
            Some(Waiting::Publication(_)) => match self.waiting.remove(&number) {
                Some(Waiting::Publication(publication)) => {
                    let status = message.status.map(u16::from);
                    Answered::Publication(publication, status, message.payload)
                }
                _ => Answered::Else,
            },
            None => Answered::Else,
        }
    }

    /// Publications that have waited for too long, or all of them; tasks end when all do.
    pub(super) fn expire(&mut self, all: bool) -> Vec<Publication> {
        let is_late = |_: &u64, waiting: &mut Waiting| match waiting {
            Waiting::Publication(publication) => all || publication.since.elapsed() > REPLY,
            Waiting::Task(_) => all,
        };
        let late = self.waiting.extract_if(is_late);
        let publication = |(_, waiting)| match waiting {
            Waiting::Publication(publication) => Some(publication),
            Waiting::Task(_) => None,
        };
        late.filter_map(publication).collect()
    }
}

/// Replies to one request of a task.
pub(super) struct Replies {
    shared: Rc<Shared>,
    number: u64,
    replies: UnboundedReceiver<Reply>,
}

impl Replies {
    /// The next one; `None` when none comes, or the connection has ended.
    pub(super) async fn next(&mut self) -> Option<Reply> {
        timeout(REPLY, self.replies.recv()).await.ok().flatten()
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.shared.requests.borrow_mut().waiting.remove(&self.number);
    }
}

/// Sends a request of a task.
pub(super) fn request(
    shared: &Rc<Shared>,
    subject: &str,
    headers: HeaderMap,
    payload: Vec<u8>,
) -> Replies {
    let (number, replies) = shared.requests.borrow_mut().task();
    // One that is not sent has no replies.
    let _ = shared.send_request(subject, number, headers, payload);
    Replies { shared: shared.clone(), number, replies }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(subject: &str) -> Message {
        let (subject, payload) = (subject.to_owned().into(), Bytes::from_static(b"{}"));
        let (reply, headers, status, description) = (None, None, None, None);
        Message { subject, reply, payload, headers, status, description, length: 2 }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_reply_goes_to_its_request() {
        let mut requests = Requests::default();
        let publication = |ticket| Publication {
            home: 0,
            ticket: Ticket(ticket),
            stream: 0,
            since: Instant::now(),
            cost: 7,
        };
        let number = requests.publication(publication(1));
        let (task, mut replies) = requests.task();
        let reply = |requests: &mut Requests, subject: &str| requests.take(message(subject));
        let Answered::Publication(found, None, _) =
            reply(&mut requests, &format!("_INBOX.x.{number}"))
        else {
            panic!()
        };
        assert_eq!((found.ticket, found.cost), (Ticket(1), 7));
        assert!(matches!(reply(&mut requests, &format!("_INBOX.x.{number}")), Answered::Else));
        reply(&mut requests, &format!("_INBOX.x.{task}"));
        assert_eq!(replies.recv().await.unwrap().payload, "{}");
        assert!(matches!(reply(&mut requests, "_INBOX.x.none"), Answered::Else));
        requests.publication(publication(2));
        assert!(requests.expire(false).is_empty());
        assert_eq!(requests.expire(true).len(), 1);
        assert!(replies.recv().await.is_none(), "its connection has ended");
    }
}
