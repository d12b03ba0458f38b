//! The brokers of a node in a takeover. The new process listens to all channels before the running node stops; then
//! a fence divides what the broker delivers to both (`src/node/redis/fence.rs`, `src/node/nats/fence.rs`).
//!
//! ```text
//!  Channels* AllChannels ->   while the running node serves: what it listens to
//!                        <-   Listening
//!    settle
//!  Channels* AllChannels ->   what has changed since
//!                        <-   Listening
//!    fence; settle: what came before it has reached the clients
//!  Others*, Frozen       ->
//! ```

use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::channel::{Async, Fault};
use super::outgoing::Outgoing;
use super::shard::News;
use super::{Report, monotonic_ns};
use crate::base::id::ShardId;
use crate::handover::{Channels, Message, Others};
use crate::node::broker::Brokers;
use crate::node::control::Control;
use crate::shard::ChannelNames;
use crate::shard::mail::HandoverAction;

/// The new process listens to all channels this soon.
const LISTENING_WITHIN: Duration = Duration::from_secs(30);

/// The same of those that have changed, while no shard reads.
const CHANGES_WITHIN: Duration = Duration::from_secs(2);

/// Bytes of names, or of states of nodes, in one message.
const PART_BYTES: usize = 256 * 1024;

/// An attempt to hand the channels of brokers over.
pub(super) struct Sharing {
    /// Names it to the brokers of both processes.
    key: u64,
    /// The running node has stopped reading.
    is_late: bool,
}

impl Sharing {
    /// Another attempt.
    pub(super) fn new() -> Self {
        Self { key: monotonic_ns(), is_late: false }
    }
}

impl Control {
    /// The reason for which the brokers of this node keep it from handing over.
    pub(super) fn brokers_obstacle(&self) -> Option<String> {
        let why = self.brokers.fault()?;
        Some(format!("{why}, so that another process could not go on from here"))
    }

    /// Waits until the new process listens to the channels that brokers deliver to this one.
    pub(super) async fn share_channels(
        &self,
        outgoing: &Outgoing,
        sharing: &mut Sharing,
        (channel, reports): (&mut Async, &mut UnboundedReceiver<Report>),
    ) -> Result<(), String> {
        if self.brokers.is_empty() {
            return Ok(());
        }
        let text = |fault: Fault| fault.to_string();
        self.order(
            outgoing,
            self.control_mail.shards().map(|_| HandoverAction::Channels).collect(),
        );
        let names = self.collect(outgoing, reports, LISTENING_WITHIN, |news| match news {
            News::Channels(names) => Some(names),
            _ => None,
        });
        for (shard, names) in self.control_mail.shards().zip(names.await?) {
            for part in parts(sharing.key, shard, names) {
                channel.send(&Message::Channels(part), &[]).await.map_err(text)?;
            }
        }
        channel.send(&Message::AllChannels { key: sharing.key }, &[]).await.map_err(text)?;
        let within = if sharing.is_late { CHANGES_WITHIN } else { LISTENING_WITHIN };
        sharing.is_late = true;
        match channel.receive(within).await.map_err(text)? {
            Message::Listening => Ok(()),
            Message::Failed(why) => Err(why),
            other => Err(format!("unexpected message {}", other.name())),
        }
    }

    /// Has the brokers prepare for the fence, while shards still serve.
    pub(super) async fn mark(&self, sharing: &Sharing) {
        self.brokers.mark(sharing.key).await;
    }

    /// Has the brokers divide what they deliver, behind all commands of the shards, which have settled. They settle
    /// again: fences are among what is under way.
    pub(super) async fn fence(&self, outgoing: &Outgoing, sharing: &Sharing) {
        let Sharing { key, .. } = *sharing;
        if let Some(cluster) = &self.cluster {
            cluster.await_fence(key, self.brokers.servers());
        }
        self.brokers.fence_control(key).await;
        let fence = |_| HandoverAction::Fence(key);
        self.order(outgoing, self.control_mail.shards().map(fence).collect());
    }

    /// What is under way between this node, its brokers and other nodes.
    pub(super) fn brokers_unsettled(&self) -> Vec<(&'static str, usize)> {
        let mut left = vec![("bytes of commands for brokers", self.brokers.queued_bytes())];
        left.extend(self.cluster.iter().flat_map(|cluster| cluster.unsettled()));
        left.retain(|(_, count)| *count > 0);
        left
    }

    /// Sends what this node knows of others.
    pub(super) async fn introduce_others(&self, channel: &mut Async) -> Result<(), String> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let Others { nodes, surveys } = cluster.others();
        let mut all = nodes.into_iter().peekable();
        while all.peek().is_some() {
            let (mut nodes, mut bytes) = (Vec::new(), 0);
            while let Some(node) = all.next_if(|_| bytes < PART_BYTES) {
                bytes += node.len();
                nodes.push(node);
            }
            let others = Message::Others(Others { nodes, surveys });
            channel.send(&others, &[]).await.map_err(|fault| fault.to_string())?;
        }
        Ok(())
    }

    /// The other process has failed: brokers deliver all to this one again.
    pub(super) async fn resume_brokers(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.forget_fence();
        }
        self.brokers.resume_control().await;
    }
}

/// The names of a shard in messages of a bounded size.
fn parts(key: u64, shard: ShardId, names: ChannelNames) -> Vec<Channels> {
    let ChannelNames { begun, ended } = names;
    let mut parts: Vec<Channels> = Vec::new();
    let mut bytes = PART_BYTES;
    let all = ended
        .into_iter()
        .map(|name| (name, false))
        .chain(begun.into_iter().map(|name| (name, true)));
    for (name, begins) in all {
        if bytes >= PART_BYTES {
            parts.push(Channels { key, shard: shard.0, ..Channels::default() });
            bytes = 0;
        }
        bytes += name.len() + 1;
        if let Some(part) = parts.last_mut() {
            let list = if begins { &mut part.begun } else { &mut part.ended };
            list.push(name);
        }
    }
    parts
}

/// What a message of the running node means to the brokers of the new process.
pub(super) enum Taken {
    /// It is done.
    Done,
    /// It has an answer.
    Answered(Message),
    /// Nothing: it is no message about brokers.
    Other(Message),
}

/// Takes a message that comes before the state of the running node.
///
/// # Errors
/// The brokers of this process don't get so far.
pub(super) fn take(
    brokers: &Brokers,
    others: &mut Others,
    message: Message,
) -> Result<Taken, String> {
    match message {
        Message::Channels(Channels { key, shard, begun, ended }) => {
            brokers.join(key);
            brokers.listen(usize::from(shard), begun, ended);
        }
        Message::AllChannels { key } => {
            brokers.join(key);
            brokers.wait_for_channels()?;
            return Ok(Taken::Answered(Message::Listening));
        }
        Message::Others(Others { nodes, surveys }) => {
            others.nodes.extend(nodes);
            others.surveys = surveys;
        }
        other => return Ok(Taken::Other(other)),
    }
    Ok(Taken::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_in_messages_of_a_bounded_size() {
        let name = |number: usize| format!("{number:0>1000}").into();
        let names = ChannelNames {
            begun: (0..1_000).map(name).collect(),
            ended: (1_000..1_010).map(name).collect(),
        };
        let all = parts(7, ShardId(3), names.clone());
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|part| (part.key, part.shard) == (7, 3)));
        let begun: Vec<_> = all.iter().flat_map(|part| part.begun.clone()).collect();
        let ended: Vec<_> = all.iter().flat_map(|part| part.ended.clone()).collect();
        assert_eq!(ChannelNames { begun, ended }, names);
        assert!(parts(7, ShardId(3), ChannelNames::default()).is_empty());
        for part in all {
            assert!(Message::Channels(part).to_bytes().len() < 1 << 19);
        }
    }
}
