//! Presence by survey: who is in a channel on all nodes. Each node knows its own clients exactly.
//!
//! A node that doesn't answer in [`ANSWERS`], or has no such answer, is left out: the result has what the others have
//! answered, and that it is partial is counted and logged. Without a connection to other nodes a read fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::warn;

use super::Cluster;
use crate::base::limits::API_LARGE_ANSWER_CREDITS;
use crate::cluster::control::SurveyResponse;
use crate::cluster::presence::{ANSWER_BYTES_MAX, Counts, Members, put_counts, put_members};
use crate::cluster::survey::{Code, Question};
use crate::hub::broker::{BrokerEvent, FailureCause};
use crate::node::log_limit::LogLimit;
use crate::node::presence_nodes::PresenceRead;
use crate::proto::client::Encoding;
use crate::proto::client::nodes::read_presence;
use crate::shard::mail::{Answer, Mail, Read, Reading};

/// Other nodes have so long for their answers: homes wait for 5 s.
const ANSWERS: Duration = Duration::from_secs(2);

/// Bytes of the list of one node's clients at most.
const OWN_BYTES_MAX: usize = 16 << 20;

/// Lines about answers that are missing.
static PARTIAL: LogLimit = LogLimit::new();

impl Cluster {
    /// Answers a read of a home.
    pub(super) fn read_presence(self: &Arc<Self>, read: PresenceRead) {
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            let PresenceRead { home, ticket, channel, counts } = read;
            let cause = FailureCause::Unavailable;
            let event = match cluster.members_of_all(&channel, counts).await {
                Some((own, others)) => cluster.merged((ticket, counts), own, others),
                None => BrokerEvent::Failed { ticket, cause },
            };
            cluster.transmit.answer_presence(home, event);
        });
    }

    /// The own clients, and the answers of other nodes; `None` when these can't be asked.
    async fn members_of_all(
        self: &Arc<Self>,
        channel: &str,
        counts: bool,
    ) -> Option<(Vec<u8>, BTreeMap<String, SurveyResponse>)> {
        let question = Question::Presence { channel: channel.to_owned(), counts };
        let asked = self.ask(question, None).ok()?;
        let own = self.own_members(channel, counts).await?;
        let (answers, silent) = asked.answers_within(ANSWERS).await.ok()?;
        if !silent.is_empty() {
            self.partial(&silent.join(" "), "no answer in time");
        }
        Some((own, answers))
    }

    fn merged(
        &self,
        (ticket, counts): (crate::hub::broker::Ticket, bool),
        own: Vec<u8>,
        others: BTreeMap<String, SurveyResponse>,
    ) -> BrokerEvent {
        let (mut members, mut numbers) = (Members::default(), Counts::default());
        let mut add = |data: &[u8]| match counts {
            true => numbers.add(data).is_ok(),
            false => members.add(data).is_ok(),
        };
        add(&own);
        for (node, answer) in others {
            if answer.code != Code::Ok as u32 || !add(&answer.data) {
                self.partial(&node, "no such answer");
            }
        }
        if members.is_partial || numbers.is_partial {
            self.partial("", "too many clients for one answer");
        }
        match counts {
            true => {
                let users = numbers.users.len() as u32;
                BrokerEvent::MemberCounts { ticket, clients: numbers.clients, users }
            }
            false => BrokerEvent::Members { ticket, infos: members.infos },
        }
    }

    fn partial(&self, nodes: &str, why: &str) {
        self.counters.presence_partial.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = PARTIAL.admit() {
            warn!(left_out, nodes, "presence is partial: {why}");
        }
    }

    /// Answers the question of another node.
    pub(super) fn answer_presence(
        self: &Arc<Self>,
        from: String,
        id: u64,
        (channel, counts): (String, bool),
    ) {
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            let own = cluster.own_members(&channel, counts);
            match tokio::time::timeout(ANSWERS, own).await {
                Ok(Some(data)) => cluster.answer(from, id, Code::Ok, data),
                _ => cluster.answer(from, id, Code::Busy, Vec::new()),
            }
        });
    }

    /// The own clients of a channel as an answer; `None` if its shard has no room for the question.
    async fn own_members(&self, channel: &str, counts: bool) -> Option<Vec<u8>> {
        let hash = self.node.names.hash(channel);
        let sent =
            self.control_mail.ask(self.node.names.home(hash), API_LARGE_ANSWER_CREDITS, |asker| {
                Mail::Read(Box::new(Read {
                    channel: channel.into(),
                    hash,
                    namespace: 0,
                    asker,
                    encoding: Encoding::Protobuf,
                    bytes_max: OWN_BYTES_MAX,
                    what: Reading::Here,
                }))
            });
        let Ok(Mail::Answer { answer: Answer::Presence(list), .. }) = sent.ok()?.await else {
            return None;
        };
        let infos = read_presence(list.bytes()).ok()?;
        Some(match counts {
            true => put_counts(&infos, ANSWER_BYTES_MAX),
            false => put_members(&infos, ANSWER_BYTES_MAX),
        })
    }
}
