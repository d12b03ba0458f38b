//! Questions to other nodes, and answers to theirs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use compact_str::CompactString;
use tokio::sync::oneshot;
use tracing::warn;

use super::Cluster;
use super::counters::SurveyOutcome;
use super::surveys::Answers;
use crate::cluster::control::{Message, SurveyRequest, SurveyResponse};
use crate::cluster::survey::{ANSWERS_MS, Code, Question, channels_in, put_channel, response};
use crate::node::broker_threads::Recipient;
use crate::node::listing::{self, LISTED_BYTES, ListFault};
use crate::node::slices::Slice;

/// Questions of other nodes that wait for a list at most; more are answered with [`Code::Busy`].
const SURVEYS_WAITING_MAX: usize = 256;

/// Bytes of a list for another node at most.
const SURVEY_ANSWER_BYTES_MAX: usize = 16 << 20;

/// A question that is on its way. It is closed when this is dropped.
pub(in crate::node) struct Asked {
    cluster: Arc<Cluster>,
    /// None if there is nobody to answer.
    open: Option<(u64, oneshot::Receiver<Answers>)>,
    sent: Option<oneshot::Receiver<bool>>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some((id, _)) = &self.open {
            self.cluster.state().surveys.close(*id);
        }
    }
}

impl Cluster {
    /// Begins to ask all nodes for their channels.
    ///
    /// # Errors
    /// No messages of other nodes arrive now, or there are too many surveys.
    pub(in crate::node) fn ask_for_channels(
        self: &Arc<Self>,
        pattern: &str,
    ) -> Result<Asked, SurveyOutcome> {
        self.ask(Question::Channels { pattern: pattern.to_owned() }, None)
    }

    /// Begins to ask one node, or all that are known.
    pub(super) fn ask(
        self: &Arc<Self>,
        question: Question,
        node: Option<String>,
    ) -> Result<Asked, SurveyOutcome> {
        let begun = {
            let mut state = self.state();
            if !state.membership.is_listening() {
                Err(SurveyOutcome::Unsent)
            } else {
                let nodes: Vec<String> = match &node {
                    Some(node) => vec![node.clone()],
                    None => state.membership.peers().iter().map(|peer| peer.uid.clone()).collect(),
                };
                match nodes.is_empty() {
                    true => Ok(None),
                    false => state.surveys.begin(nodes).map(Some).ok_or(SurveyOutcome::TooMany),
                }
            }
        };
        let open = begun.inspect_err(|outcome| self.counters.surveyed(*outcome))?;
        let sent = open.as_ref().map(|(id, _)| {
            // A repeated question would have commands handled twice.
            let again = self.has_several_servers && node.is_none();
            let request = question.request(*id, node.as_deref().unwrap_or_default());
            let to = node.map_or(Recipient::All, Recipient::Node);
            let (waiter, sent) = oneshot::channel();
            self.send(to, Message::SurveyRequest(request), again, Some(waiter));
            sent
        });
        Ok(Asked { cluster: Arc::clone(self), open, sent })
    }

    /// Answers a question of another node: always, since it waits for each answer.
    pub(super) fn answer_survey(self: &Arc<Self>, from: String, request: SurveyRequest) {
        match Question::read(&request) {
            Ok(Question::Emulation { session, data }) => {
                self.answer_emulation(from, &request, &session, data);
            }
            Ok(Question::Channels { pattern }) => {
                if Arc::strong_count(&self.lists) > SURVEYS_WAITING_MAX {
                    return self.answer(from, request.id, Code::Busy, Vec::new());
                }
                let (cluster, lists) = (Arc::clone(self), Arc::clone(&self.lists));
                tokio::spawn(async move {
                    let list = async {
                        let _place = lists.acquire().await;
                        cluster.list(&pattern).await
                    };
                    let list = tokio::time::timeout(super::SURVEY_ANSWER_TIMEOUT, list).await;
                    let (code, data) = match list {
                        Ok(Ok(data)) => (Code::Ok, data),
                        Ok(Err(code)) => (code, Vec::new()),
                        Err(_) => (Code::Internal, Vec::new()),
                    };
                    cluster.answer(from, request.id, code, data);
                });
            }
            Ok(Question::Presence { channel, counts }) => {
                self.answer_presence(from, request.id, (channel, counts));
            }
            Err(code) => self.answer(from, request.id, code, Vec::new()),
        }
    }

    /// Sends the answer to a question of another node.
    pub(super) fn answer(&self, to: String, id: u64, code: Code, data: Vec<u8>) {
        self.counters.answered(code as u32);
        let message = Message::SurveyResponse(response(id, code, data));
        self.send(Recipient::Node(to), message, self.has_several_servers, None);
    }

    /// The channels here, for another node.
    async fn list(&self, pattern: &str) -> Result<Vec<u8>, Code> {
        let (names, mail) = (&self.node.names, &self.control_mail);
        let listed = listing::channels(names, mail, pattern, SURVEY_ANSWER_BYTES_MAX).await;
        let listed = listed.map_err(|fault| match fault {
            ListFault::Pattern | ListFault::LongPattern => Code::Invalid,
            ListFault::Busy => Code::Busy,
            ListFault::TooLong | ListFault::Internal => Code::Internal,
        })?;
        let (mut data, mut slice) = (Vec::new(), Slice::default());
        for (name, clients) in listed {
            slice.spend(name.len()).await;
            put_channel(&mut data, &name, clients);
        }
        Ok(data)
    }
}

impl Asked {
    /// Waits for the answers by node.
    ///
    /// # Errors
    /// The question was not sent, or there is a node that has not answered.
    pub(super) async fn answers(
        mut self,
    ) -> Result<BTreeMap<String, SurveyResponse>, SurveyOutcome> {
        let answers = self.wait().await;
        let outcome = answers.as_ref().err().copied().unwrap_or(SurveyOutcome::Complete);
        self.cluster.counters.surveyed(outcome);
        answers
    }

    /// Waits for the answers of those that answer in time: and who has not.
    ///
    /// # Errors
    /// The question was not sent.
    pub(super) async fn answers_within(
        mut self,
        time: Duration,
    ) -> Result<(BTreeMap<String, SurveyResponse>, Vec<String>), SurveyOutcome> {
        let answered = match tokio::time::timeout(time, self.wait()).await {
            Ok(answers) => answers.map(|answers| (answers, Vec::new())),
            Err(_) => {
                let open = self.open.take();
                let closed = open.map(|(id, _)| self.cluster.state().surveys.close_partial(id));
                Ok(closed.unwrap_or_default())
            }
        };
        let outcome = match &answered {
            Ok((_, silent)) if silent.is_empty() => SurveyOutcome::Complete,
            Ok(_) => SurveyOutcome::Timeout,
            Err(outcome) => *outcome,
        };
        self.cluster.counters.surveyed(outcome);
        answered
    }

    async fn wait(&mut self) -> Answers {
        let (Some((id, answers)), Some(mut sent)) = (&mut self.open, self.sent.take()) else {
            return Ok(BTreeMap::new());
        };
        let late = tokio::time::sleep(Duration::from_millis(ANSWERS_MS));
        tokio::pin!(late);
        let mut is_sent = false;
        loop {
            tokio::select! {
                all = &mut *answers => return all.unwrap_or(Err(SurveyOutcome::Unsent)),
                fate = &mut sent, if !is_sent => match fate {
                    Ok(true) => is_sent = true,
                    _ => return Err(SurveyOutcome::Unsent),
                },
                () = &mut late => break,
            }
        }
        let silent = self.cluster.state().surveys.close(*id);
        warn!(nodes = silent.join(" "), "nodes have not answered a question in time");
        Err(SurveyOutcome::Timeout)
    }

    /// Waits for the channels of all nodes, and adds them to those of this one.
    ///
    /// # Errors
    /// As [`Self::answers`], or a node has answered with a code, or the list takes more than `bytes_max`.
    pub(in crate::node) async fn channels(
        self,
        own: Vec<(CompactString, u32)>,
        bytes_max: usize,
    ) -> Result<BTreeMap<CompactString, u32>, SurveyOutcome> {
        let answers = self.answers().await?;
        let (mut slice, mut bytes) = (Slice::default(), 0);
        let mut all: BTreeMap<CompactString, u32> = own.into_iter().collect();
        all.keys().for_each(|name| bytes += name.len() + LISTED_BYTES);
        for (node, answer) in answers {
            if answer.code != Code::Ok as u32 {
                warn!(node, code = answer.code, "node has no answer to a question");
                return Err(SurveyOutcome::Refused);
            }
            for channel in channels_in(&answer.data) {
                let Ok((name, clients)) = channel else {
                    warn!(node, "the answer of a node can't be read");
                    return Err(SurveyOutcome::Refused);
                };
                slice.spend(name.len()).await;
                let count = all.entry(name.into()).or_insert_with(|| {
                    bytes += name.len() + LISTED_BYTES;
                    0
                });
                *count = count.saturating_add(clients);
                if bytes > bytes_max {
                    return Err(SurveyOutcome::TooLong);
                }
            }
        }
        Ok(all)
    }
}
