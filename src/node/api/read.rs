//! Reading of channels: presence, history, and which there are.

use compact_str::CompactString;

use super::calls::{HistoryCall, PresenceStats};
use super::error::{ApiError, Result};
use super::{Api, namespace};
use crate::base::frame::SharedFrame;
use crate::base::limits::API_LARGE_ANSWER_CREDITS;
use crate::edge::channels::Namespace;
use crate::edge::glob;
use crate::hub::history::Page;
use crate::node::listing::{self, ListFault};
use crate::proto::client::Encoding;
use crate::shard::mail::{Answer, Mail, Read, Reading};

/// How an answer about a channel is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) struct Format {
    /// The encoding of a result that the home encodes.
    pub(in crate::node) encoding: Encoding,
    /// Bytes of a result at most.
    pub(in crate::node) bytes_max: usize,
}

impl Api {
    /// The clients in a channel, encoded.
    ///
    /// # Errors
    /// The namespace has no presence, or the answer is too long.
    pub(in crate::node) async fn presence(
        &self,
        channel: &str,
        format: Format,
    ) -> Result<SharedFrame> {
        let answer = self.read(channel, Reading::Presence, format, |of| of.presence);
        self.logged("presence", async { encoded(answer.await?) }).await
    }

    /// The numbers of clients and users in a channel.
    ///
    /// # Errors
    /// The namespace has no presence.
    pub(in crate::node) async fn presence_stats(&self, channel: &str) -> Result<PresenceStats> {
        let format = Format { encoding: Encoding::Json, bytes_max: 0 };
        let answer = self.read(channel, Reading::PresenceStats, format, |of| of.presence);
        let stats = async {
            match answer.await? {
                Answer::PresenceStats(clients, users) => Ok(PresenceStats { clients, users }),
                _ => Err(ApiError::Internal),
            }
        };
        self.logged("presence_stats", stats).await
    }

    /// Publications that a channel keeps, encoded.
    ///
    /// # Errors
    /// The namespace has no history, the position can't be recovered, or the answer is too long.
    pub(in crate::node) async fn history(
        &self,
        history: HistoryCall,
        format: Format,
    ) -> Result<SharedFrame> {
        let HistoryCall { channel, limit, since, reverse } = history;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let reading = Reading::History(Page { since, limit, reverse });
        let answer = self.read(&channel, reading, format, Namespace::has_history);
        self.logged("history", async { encoded(answer.await?) }).await
    }

    /// Drops the publications that a channel keeps. Position and epoch stay.
    ///
    /// # Errors
    /// The namespace has no history.
    pub(in crate::node) async fn history_remove(&self, channel: &str) -> Result<()> {
        let format = Format { encoding: Encoding::Json, bytes_max: 0 };
        let answer = self.read(channel, Reading::Drop, format, Namespace::has_history);
        self.logged("history_remove", async { answer.await.map(|_| ()) }).await
    }

    /// The number of subscribers that a channel has on all nodes; none if another node has no answer. Each
    /// node looks the channel up at its home, but a question and an answer for each node go over the broker.
    ///
    /// # Errors
    /// This node's own number is not to be had.
    pub(super) async fn subscribers(&self, channel: &str) -> Result<Option<u32>> {
        let asked = self.cluster.as_ref();
        let asked = asked.map(|cluster| cluster.ask_for_channels(&glob::escape(channel)));
        let own = listing::subscribers(&self.node.names, &self.control_mail, channel).await?;
        let others = match asked {
            None => return Ok(Some(own)),
            Some(Err(_)) => return Ok(None),
            Some(Ok(asked)) => asked.channels(Vec::new(), SUBSCRIBERS_BYTES_MAX).await,
        };
        let of = others.ok().map(|others| others.get(channel).copied().unwrap_or(0));
        Ok(of.map(|others| own.saturating_add(others)))
    }

    /// Sends a question to a channel's home, where its namespace has such a thing.
    async fn read(
        &self,
        channel: &str,
        what: Reading,
        format: Format,
        has: impl FnOnce(&Namespace) -> bool,
    ) -> Result<Answer> {
        let Ok(_place) = self.reads.acquire().await else { return Err(ApiError::Internal) };
        let sent = {
            let rules = self.node.rules.channels.load();
            let namespace = namespace(&rules, channel)?;
            if !has(namespace) {
                return Err(ApiError::NotAvailable);
            }
            let (hash, namespace) = (self.node.names.hash(channel), namespace.index);
            let Format { encoding, bytes_max } = format;
            self.control_mail.ask(
                self.node.names.home(hash),
                API_LARGE_ANSWER_CREDITS,
                |asker| {
                    Mail::Read(Box::new(Read {
                        channel: channel.into(),
                        hash,
                        namespace,
                        asker,
                        encoding,
                        bytes_max,
                        what,
                    }))
                },
            )?
        };
        match sent.await {
            Ok(Mail::Answer { answer: Answer::Error(failure), .. }) => Err(failure.code.into()),
            Ok(Mail::Answer { answer: Answer::Unfit, .. }) => Err(ApiError::NotJson),
            Ok(Mail::Answer { answer, .. }) => Ok(answer),
            _ => Err(ApiError::Internal),
        }
    }

    /// The channels with subscribers on any node that match a pattern (all for an empty one), in the order of
    /// names.
    ///
    /// # Errors
    /// The pattern can't be used, the list takes more than `bytes_max`, or another node has no answer.
    pub(in crate::node) async fn channels(
        &self,
        pattern: &str,
        bytes_max: usize,
    ) -> Result<Vec<(CompactString, u32)>> {
        self.logged("channels", self.list_channels(pattern, bytes_max)).await
    }

    async fn list_channels(
        &self,
        pattern: &str,
        bytes_max: usize,
    ) -> Result<Vec<(CompactString, u32)>> {
        let names = &self.node.names;
        let Some(cluster) = &self.cluster else {
            let mut channels =
                listing::channels(names, &self.control_mail, pattern, bytes_max).await?;
            channels.sort_unstable();
            return Ok(channels);
        };
        if let Err(fault) = listing::glob(pattern) {
            // A node that answers a survey has one code for it, and other nodes answer the call with this.
            return Err(match fault {
                ListFault::Pattern => ApiError::UnusablePattern,
                fault => fault.into(),
            });
        }
        let asked = cluster.ask_for_channels(pattern)?;
        let own = listing::channels(names, &self.control_mail, pattern, bytes_max).await?;
        let all = asked.channels(own, bytes_max).await?;
        Ok(all.into_iter().collect())
    }
}

/// Bytes of the names of one channel, from all nodes.
const SUBSCRIBERS_BYTES_MAX: usize = 64 << 10;

fn encoded(answer: Answer) -> Result<SharedFrame> {
    match answer {
        Answer::Presence(body) | Answer::History(body) => Ok(body),
        _ => Err(ApiError::Internal),
    }
}
