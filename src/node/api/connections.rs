//! Calls about connections of users: all shards carry out what a call orders.

use compact_str::CompactString;

use super::calls::{DisconnectCall, RefreshCall, SubscribeCall, Target, UnsubscribeCall};
use super::error::{ApiError, Result};
use super::{Api, namespace};
use crate::base::expiry::Expiry;
use crate::base::id::ShardId;
use crate::base::limits::API_LARGE_ANSWER_CREDITS;
use crate::proto::client;
use crate::session::ServerSub;
use crate::shard::mail::{AdminCommand, Inspect, Inspected, Mail, Order};

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
            }
            self.order(target, AdminCommand::Unsubscribe { channel: channel.into() }).await
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

    /// Orders all shards to do something with a user's connections, and waits until all have done it.
    async fn order(&self, target: Target, command: AdminCommand) -> Result<()> {
        let send = |shard: ShardId| {
            let Target { user, client, session } = target.clone();
            let command = command.clone();
            self.control_mail.ask(shard, 1, |asker| {
                Mail::Order(Box::new(Order { asker, user, client, session, command }))
            })
        };
        let sent: Vec<_> = self.control_mail.shards().map(send).collect();
        let mut done = Ok(());
        for sent in sent {
            match sent {
                Ok(sent) => _ = sent.await,
                // The others carry it out all the same.
                Err(busy) => done = Err(busy.into()),
            }
        }
        done
    }

    /// Connections of a user, by shard.
    ///
    /// # Errors
    /// A shard has no room for the question.
    pub(in crate::node) async fn connections(&self, user: &str) -> Result<Vec<Inspected>> {
        let mut all = Vec::new();
        for shard in self.control_mail.shards() {
            let inspect = |asker| Mail::Inspect(Box::new(Inspect { asker, user: user.into() }));
            let sent = self.control_mail.ask(shard, API_LARGE_ANSWER_CREDITS, inspect)?;
            let Ok(Mail::Inspected { inspected, .. }) = sent.await else {
                return Err(ApiError::Internal);
            };
            all.push(*inspected);
        }
        Ok(all)
    }
}

/// A close frame's reason at most (RFC 6455 5.5: 125 bytes with the code).
const REASON_BYTES_MAX: usize = 123;
