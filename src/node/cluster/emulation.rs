//! Commands of clients whose session is on another node: each request to the up-link becomes a survey of that
//! node alone. Those for one session follow each other: the next one leaves when the one before it is answered,
//! since nothing else keeps their order on the way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Cluster;
use super::counters::SurveyOutcome;
use crate::base::limits::EMULATED_BYTES_MAX;
use crate::cluster::control::SurveyRequest;
use crate::cluster::survey::{Code, Question};
use crate::proto::client::{self, Encoding};
use crate::shard::mail::emulation::{
    CommandsForm, Emulate, EmulateElsewhere, Emulated, Emulating, Uptake,
};
use crate::shard::mail::{CONTROL, Mail};

/// Bytes of all commands that wait at most; more are answered with 503.
const EMULATIONS_BYTES_MAX: usize = 32 << 20;

/// Gets the status of the answer to a request.
pub(in crate::node) type Respond = Box<dyn FnOnce(u16) + Send>;

/// A session, by its node.
type Key = (String, String);

/// Requests to the up-link that wait, by the session.
#[derive(Default)]
pub(super) struct Lines {
    /// A session is here while one of its requests is under way.
    waiting: BTreeMap<Key, VecDeque<Waiting>>,
    bytes: usize,
}

struct Waiting {
    data: Vec<u8>,
    respond: Respond,
}

/// What becomes of a request.
enum Place {
    /// It is the first of its session.
    First(Waiting),
    /// It follows others.
    Behind,
    /// It has no room.
    Refused(Respond),
}

impl Lines {
    fn add(&mut self, key: &Key, waiting: Waiting) -> Place {
        let bytes = size_of::<Waiting>() + waiting.data.len();
        let Some(line) = self.waiting.get_mut(key) else {
            self.waiting.insert(key.clone(), VecDeque::new());
            return Place::First(waiting);
        };
        let own = |waiting: &Waiting| size_of::<Waiting>() + waiting.data.len();
        let in_line: usize = line.iter().map(own).sum();
        if in_line + bytes > EMULATED_BYTES_MAX || self.bytes + bytes > EMULATIONS_BYTES_MAX {
            return Place::Refused(waiting.respond);
        }
        self.bytes += bytes;
        line.push_back(waiting);
        Place::Behind
    }

    /// The next request of a session. Without one the session is forgotten.
    fn next(&mut self, key: &Key) -> Option<Waiting> {
        match self.waiting.get_mut(key)?.pop_front() {
            Some(waiting) => {
                self.bytes -= size_of::<Waiting>() + waiting.data.len();
                Some(waiting)
            }
            None => {
                self.waiting.remove(key);
                None
            }
        }
    }
}

impl Cluster {
    /// Takes a request to the up-link of a session on another node: 204 when that node has handled the commands
    /// or has no such session, 404 for an unknown node, 500 if the node can't be reached or doesn't answer,
    /// 503 without room.
    pub(in crate::node) fn emulate(self: &Arc<Self>, emulate: EmulateElsewhere, respond: Respond) {
        let EmulateElsewhere { node, session, encoding, data, .. } = emulate;
        if !self.state().membership.peers().contains(&node) {
            return respond(404);
        }
        let data = match encoding {
            Encoding::Json => match std::str::from_utf8(&data) {
                Ok(text) => client::literal_of_text(text),
                // It was read as a text.
                Err(_) => return respond(400),
            },
            Encoding::Protobuf => data.into_vec(),
        };
        let key = (String::from(node), String::from(session));
        let place = self.state().lines.add(&key, Waiting { data, respond });
        match place {
            Place::First(first) => {
                tokio::spawn(Arc::clone(self).run_line(key, first));
            }
            Place::Behind => {}
            Place::Refused(respond) => respond(503),
        }
    }

    /// Sends the requests of a session, one after the other, until there is none.
    async fn run_line(self: Arc<Self>, key: Key, first: Waiting) {
        let mut next = Some(first);
        while let Some(Waiting { data, respond }) = next {
            let (node, session) = (key.0.clone(), key.1.clone());
            let question = Question::Emulation { session, data };
            respond(match self.ask(question, Some(node)) {
                Ok(asked) => status_of(asked.answers().await.map(|answers| {
                    let codes = answers.values().map(|answer| answer.code);
                    codes.max().unwrap_or_default()
                })),
                Err(_) => 500,
            });
            next = self.state().lines.next(&key);
        }
    }

    /// Hands commands of another node to the session here, in the order in which they come, and answers when
    /// they are handled.
    pub(super) fn answer_emulation(
        self: &Arc<Self>,
        from: String,
        request: &SurveyRequest,
        session: &str,
        data: Vec<u8>,
    ) {
        let id = request.id;
        let Some((shard, conn)) = self.node.rules.session_ids.open_secret(session) else {
            return self.answer(from, id, Code::Invalid, Vec::new());
        };
        let asked = self.control_mail.ask(shard, 1, |asker| {
            let reuse = crate::proto::http::Reuse::Close;
            let by = Emulating { from: CONTROL, asker, cors: "".into(), reuse };
            let emulated = Emulated { data: data.into(), by: Some(by) };
            Mail::Emulate(Box::new(Emulate { conn, form: CommandsForm::OfSession, emulated }))
        });
        let Ok(asked) = asked else { return self.answer(from, id, Code::Busy, Vec::new()) };
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            let code = match tokio::time::timeout(super::SURVEY_ANSWER_TIMEOUT, asked).await {
                Ok(Ok(Mail::Emulated { uptake, .. })) => code_of(uptake),
                Ok(_) => Code::Internal,
                // They wait at the connection, and will be handled.
                Err(_) => Code::Ok,
            };
            cluster.answer(from, id, code, Vec::new());
        });
    }
}

/// The status of the answer to a request, from the code of the node's answer.
fn status_of(answer: Result<u32, SurveyOutcome>) -> u16 {
    match answer {
        // A session that has ended, or commands that it can't read: as on its own node, by other means.
        Ok(0..=2) => 204,
        Ok(_) | Err(_) => 500,
    }
}

fn code_of(uptake: Uptake) -> Code {
    match uptake {
        Uptake::Taken => Code::Ok,
        Uptake::NoSession => Code::Invalid,
        Uptake::Malformed => Code::Internal,
        Uptake::NoRoom => Code::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(bytes: usize) -> Waiting {
        Waiting { data: vec![0; bytes], respond: Box::new(|_| ()) }
    }

    #[test]
    fn the_requests_of_a_session_follow_each_other() {
        let mut lines = Lines::default();
        let (one, two) = (("n".into(), "1".into()), ("n".into(), "2".into()));
        assert!(matches!(lines.add(&one, waiting(1)), Place::First(_)));
        assert!(matches!(lines.add(&one, waiting(2)), Place::Behind));
        assert!(matches!(lines.add(&two, waiting(3)), Place::First(_)));
        assert!(matches!(lines.add(&one, waiting(4)), Place::Behind));
        assert_eq!(lines.next(&one).map(|waiting| waiting.data.len()), Some(2));
        assert!(lines.next(&two).is_none());
        assert_eq!(lines.next(&one).map(|waiting| waiting.data.len()), Some(4));
        assert!(lines.next(&one).is_none());
        assert!(lines.waiting.is_empty() && lines.bytes == 0);
    }

    #[test]
    fn waiting_requests_are_bounded() {
        let mut lines = Lines::default();
        let key = ("n".into(), "1".into());
        assert!(matches!(lines.add(&key, waiting(EMULATED_BYTES_MAX)), Place::First(_)));
        assert!(matches!(lines.add(&key, waiting(EMULATED_BYTES_MAX / 2)), Place::Behind));
        assert!(matches!(lines.add(&key, waiting(EMULATED_BYTES_MAX / 2)), Place::Refused(_)));
        lines.bytes = EMULATIONS_BYTES_MAX;
        assert!(matches!(lines.add(&key, waiting(0)), Place::Refused(_)));
    }

    #[test]
    fn statuses_of_answers() {
        for (answer, status) in [
            (Ok(0), 204),
            (Ok(1), 204),
            (Ok(2), 204),
            (Ok(3), 500),
            (Ok(4), 500),
            (Err(SurveyOutcome::Timeout), 500),
            (Err(SurveyOutcome::Unsent), 500),
        ] {
            assert_eq!(status_of(answer), status, "{answer:?}");
        }
    }
}
