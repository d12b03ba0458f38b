//! Publishing into channels.

use tokio::sync::oneshot::Receiver;

use super::calls::{BroadcastCall, Content, PublishCall, Published};
use super::error::{ApiError, Result};
use super::work::Work;
use super::{Api, namespace};
use crate::proto::client::ErrorCode;
use crate::shard::Broker;
use crate::shard::mail::{self, Answer, Mail};

impl Api {
    /// Publishes into a channel.
    ///
    /// # Errors
    /// The channel can't have such a publication, or there is no room for it.
    pub(in crate::node) async fn publish(&self, publish: PublishCall) -> Result<Published> {
        let sent = self.begin_publish(&publish.channel, &publish.content);
        // Begun behind the publication: the number of those that it went to.
        let counted = publish.counts.then(|| self.subscribers(&publish.channel));
        self.logged("publish", async {
            let mut published = published(sent?, self.node.options.broker).await?;
            if let Some(counted) = counted {
                published.subscribers = counted.await.unwrap_or(None);
            }
            Ok(published)
        })
        .await
    }

    /// Publishes the same into many channels: an answer for each, in their order. The payload is in memory
    /// once, whatever their number.
    ///
    /// # Errors
    /// None is published, since there are no channels, or too many for such a payload.
    pub(in crate::node) async fn broadcast(
        &self,
        broadcast: BroadcastCall,
    ) -> Result<Vec<Result<Published>>> {
        self.logged("broadcast", self.publish_to_all(&broadcast)).await
    }

    async fn publish_to_all(&self, broadcast: &BroadcastCall) -> Result<Vec<Result<Published>>> {
        let BroadcastCall { channels, content } = broadcast;
        if channels.is_empty() {
            return Err(ApiError::BadRequest);
        }
        Work::default().with(broadcast.work()).ok_or(ApiError::TooMuch)?;
        // Homes hold copies of what has reached them, so only so much is on its way.
        let at_once = (BROADCAST_SLICE_BYTES / content.len().max(1)).clamp(1, PARALLEL_MAX);
        let mut all = Vec::with_capacity(channels.len());
        for channels in channels.chunks(at_once) {
            let sent: Vec<_> =
                channels.iter().map(|channel| self.begin_publish(channel, content)).collect();
            for sent in sent {
                all.push(match sent {
                    Ok(sent) => published(sent, self.node.options.broker).await,
                    Err(error) => Err(error),
                });
            }
            // Where all were refused nothing above has waited.
            tokio::task::yield_now().await;
        }
        Ok(all)
    }

    /// Hands a publication to the channel's home.
    fn begin_publish(&self, channel: &str, content: &Content) -> Result<Receiver<Mail>> {
        let rules = self.node.rules.channels.load();
        let namespace = namespace(&rules, channel)?;
        rules.check_publishable(channel)?;
        self.has_memory()?;
        if !namespace.data_format.accepts(&content.data) {
            return Err(ApiError::BadRequest);
        }
        let Content { data, is_json, tags, options } = content.clone();
        let (hash, namespace) = (self.node.names.hash(channel), namespace.index);
        let sent = self.control_mail.ask(self.node.names.home(hash), 1, |asker| {
            Mail::Publish(Box::new(mail::Publish {
                channel: channel.into(),
                hash,
                namespace,
                asker: Some(asker),
                data,
                info: Box::default(),
                tags,
                is_json,
                options,
            }))
        });
        Ok(sent?)
    }
}

/// Waits until the home has taken a publication.
async fn published(sent: Receiver<Mail>, broker: Broker) -> Result<Published> {
    match sent.await {
        Ok(Mail::Published { position, .. }) => {
            let epoch = position.epoch.map(|epoch| epoch.as_str().into());
            let epoch = epoch.unwrap_or_default();
            Ok(Published { offset: position.offset, epoch, subscribers: None })
        }
        Ok(Mail::Answer { answer: Answer::Error(failure), .. })
            if failure.code != ErrorCode::Internal =>
        {
            Err(failure.code.into())
        }
        Ok(Mail::Answer { .. }) => Err(match broker {
            // History has no room for it.
            Broker::Memory => ApiError::ShortOfMemory,
            Broker::Remote => ApiError::BrokerUnavailable,
        }),
        _ => Err(ApiError::Internal),
    }
}

/// Calls of a request, or channels of a broadcast, that are on their way at a time.
pub(in crate::node) const PARALLEL_MAX: usize = 256;

/// Bytes of a broadcast's publications that are on their way at a time, or one of them.
const BROADCAST_SLICE_BYTES: usize = 1 << 20;
