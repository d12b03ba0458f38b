//! Calls about connections of users: all shards carry out what a call orders.

use compact_str::CompactString;

use super::calls::{DisconnectCall, RefreshCall, SubscribeCall, UnsubscribeCall};
use super::error::{ApiError, Result};
use super::{Api, namespace};
use crate::base::expiry::Expiry;
use crate::base::id::ShardId;
use crate::node::inspecting::{self, Found};
use crate::node::orders::{self, Target};
use crate::proto::client;
use crate::session::ServerSub;
use crate::shard::NodeState;
use crate::shard::mail::{AdminCommand, Close, ClosesOf, Inspecting};

impl Api {
    /// Subscribes connections to a channel.
    ///
    /// # Errors
    /// There is no such channel, or no room.
    pub(in crate::node) async fn subscribe(&self, subscribe: SubscribeCall) -> Result<()> {
        let subscribed = async {
            self.has_memory()?;
            let SubscribeCall { target, channel, info, data, expire_at, overrides, since } =
                subscribe;
            let namespace = namespace(&self.node.rules.channels.load(), &channel)?.index;
            let sub = ServerSub {
                channel: channel.into(),
                namespace,
                info: info.into_owned(),
                data: data.into_owned(),
                overrides,
                since,
                expires: Expiry::of_positive(expire_at),
                ..ServerSub::default()
            };
            self.order(target, AdminCommand::Subscribe(Box::new(sub))).await
        };
        self.logged("subscribe", subscribed).await
    }

    /// Ends subscriptions of connections.
    ///
    /// # Errors
    /// There is no such channel, or no room.
    pub(in crate::node) async fn unsubscribe(&self, unsubscribe: UnsubscribeCall) -> Result<()> {
        let unsubscribed = async {
            let UnsubscribeCall { target, channel } = unsubscribe;
            if !channel.is_empty() {
                namespace(&self.node.rules.channels.load(), &channel)?;
            } else if self.cluster.is_some() {
                // Other nodes take it for the name of a channel that nobody has.
                return Ok(());
            }
            let (channel, why) = (channel.into(), None);
            self.order(target, AdminCommand::Unsubscribe { channel, why }).await
        };
        self.logged("unsubscribe", unsubscribed).await
    }

    /// Closes connections.
    ///
    /// # Errors
    /// Code or reason can't be sent to clients, or there is no room.
    pub(in crate::node) async fn disconnect(&self, disconnect: DisconnectCall) -> Result<()> {
        let disconnected = async {
            disconnect.check()?;
            let DisconnectCall { target, code, reason, mut spare } = disconnect;
            let usual = client::Disconnect::ForceDisconnect;
            let (code, reason) = match code {
                0 => (usual.code(), usual.reason().into()),
                // A close frame can carry these, and clients know their meaning.
                3000..=4999 if reason.len() <= REASON_BYTES_MAX => {
                    (code as u16, CompactString::from(reason))
                }
                _ => return Err(ApiError::BadRequest),
            };
            spare.sort_unstable();
            self.order(target, AdminCommand::Disconnect { code, reason, spare }).await
        };
        self.logged("disconnect", disconnected).await
    }

    /// Changes when connections expire, and their info.
    ///
    /// # Errors
    /// There is no room.
    pub(in crate::node) async fn refresh(&self, refresh: RefreshCall) -> Result<()> {
        let RefreshCall { target, expired, expire_at, info } = refresh;
        let command = AdminCommand::Refresh { expired, expire_at, info: info.into_owned() };
        self.logged("refresh", self.order(target, command)).await
    }

    /// Orders this node and all others to do something with a user's connections, and waits until all shards
    /// here have done it and the message to the others is sent. What happens here doesn't depend on that.
    async fn order(&self, target: Target, command: AdminCommand) -> Result<()> {
        let sent = self.cluster.as_ref().map(|cluster| cluster.send_order(&target, &command));
        let done = orders::carry_out(&self.control_mail, &target, &command).await;
        if let Some(sent) = sent
            && !sent.await
        {
            return Err(ApiError::OnlyHere);
        }
        Ok(done?)
    }

    /// Connections of this node.
    ///
    /// # Errors
    /// A shard has no room for the question.
    pub(in crate::node) async fn connections(&self, of: &Inspecting, max: u16) -> Result<Found> {
        Ok(inspecting::connections(&self.control_mail, of, max).await?)
    }

    /// The latest closes of this node, and how many are remembered.
    ///
    /// # Errors
    /// A shard has no room for the question.
    pub(in crate::node) async fn closes(
        &self,
        of: ClosesOf,
        max: u16,
    ) -> Result<(Vec<(ShardId, Close)>, u64)> {
        Ok(inspecting::closes(&self.control_mail, of, max).await?)
    }

    /// The state of the node.
    pub(in crate::node) fn node(&self) -> &NodeState {
        &self.node
    }
}

/// A close frame's reason at most (RFC 6455 5.5: 125 bytes with the code).
const REASON_BYTES_MAX: usize = 123;
