//! The server API (server API, sections 1 to 3): methods that an application calls.
//!
//! ```text
//!  POST /api/publish, /api, /api/batch --> http: keys, JSON, statuses  --> Call --> Api::call --> control mail --> shards
//!           another front, say gRPC   -->        own encoding         --> Call --'
//! ```
//! The core (everything but `http`) takes typed calls and returns typed replies: bounds, checks and mail to
//! shards are its business, and it knows no transport. A front is what stands around it.
//!
//! Nothing here touches a connection or a channel: each method is a question to the shards that hold them.

mod calls;
mod connections;
mod error;
mod figures;
mod http;
mod publish;
mod read;
#[cfg(test)]
mod tests;
mod work;

#[cfg(test)]
pub(super) use self::calls::DisconnectCall;
pub(super) use self::error::ApiError;
pub(super) use self::figures::ApiFigures;
pub(super) use self::http::{Answer, Direct, answer_old_form, router};
pub(super) use self::work::is_nested_deeper;

use std::fmt::Arguments;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::Semaphore;

use self::calls::{Call, Keyed, Reply};
use self::error::Result;
use self::read::Format;
use self::work::Work;
use super::cluster::Cluster;
use super::control_mail::ControlMail;
use super::info::NodeInfo;
use super::users;
use crate::base::limits::API_READS_MAX;
use crate::base::notices::Reason;
use crate::edge::channels::{ChannelRules, Namespace};
use crate::shard::{Fields, NodeState};

/// The methods of the API.
pub(super) struct Api {
    node: Arc<NodeState>,
    control_mail: Arc<ControlMail>,
    /// Name of this node.
    name: String,
    started: Instant,
    /// The other nodes, where a broker connects them.
    cluster: Option<Arc<Cluster>>,
    /// Each answer about a channel holds a place, since it may be long.
    reads: Semaphore,
    figures: Arc<ApiFigures>,
}

tokio::task_local! {
    /// Address of the client whose request the task answers, for the log lines of everything that it does.
    static CALLER: Option<IpAddr>;
}

impl Api {
    /// The API of a node.
    pub(super) fn new(
        node: Arc<NodeState>,
        control_mail: Arc<ControlMail>,
        name: String,
        started: Instant,
        cluster: Option<Arc<Cluster>>,
    ) -> Self {
        let (reads, figures) = (Semaphore::new(API_READS_MAX), Arc::default());
        Self { node, control_mail, name, started, cluster, reads, figures }
    }

    /// Counted calls and errors.
    pub(super) fn figures(&self) -> Arc<ApiFigures> {
        Arc::clone(&self.figures)
    }

    /// The rules of channels.
    pub(super) fn rules(&self) -> Arc<ChannelRules> {
        self.node.rules.channels.load_full()
    }

    /// Carries out a call. `format` is how results are wanted that homes encode.
    ///
    /// # Errors
    /// The errors of the method; [`ApiError::TooMuch`] when it alone is more than one request may carry out.
    pub(super) async fn call(&self, call: Call, format: Format) -> Result<Reply> {
        let (method, began) = (call.method(), tokio::time::Instant::now());
        let result = self.carry_out(call, method, format).await;
        self.figures.took(method, began.elapsed());
        result
    }

    async fn carry_out(&self, call: Call, method: &str, format: Format) -> Result<Reply> {
        if Work::default().with(call.work()).is_none() {
            self.refused_call(method, ApiError::TooMuch);
            return Err(ApiError::TooMuch);
        }
        let refuse = |error| {
            self.refused_call(method, error);
            Err(error)
        };
        match call {
            Call::Publish(publish) => self.publish(publish).await.map(Reply::Published),
            Call::Broadcast(broadcast) => self.broadcast(broadcast).await.map(Reply::Broadcast),
            Call::Subscribe(subscribe) => self.subscribe(*subscribe).await.map(done),
            Call::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe).await.map(done),
            Call::Disconnect(disconnect) => self.disconnect(disconnect).await.map(done),
            Call::Refresh(refresh) => self.refresh(refresh).await.map(done),
            Call::Presence(channel) => self.presence(&channel, format).await.map(Reply::Encoded),
            Call::PresenceStats(channel) => {
                self.presence_stats(&channel).await.map(Reply::PresenceStats)
            }
            Call::History(history) => self.history(history, format).await.map(Reply::Encoded),
            Call::HistoryRemove(channel) => self.history_remove(&channel).await.map(done),
            Call::Channels(pattern) => {
                self.channels(&pattern, format.bytes_max).await.map(Reply::Channels)
            }
            Call::Info => self.info().await.map(Reply::Info),
            Call::Rpc(procedure) => refuse(rpc(&procedure)),
            Call::MapKey(keyed) => refuse(self.map(&keyed, true)),
            Call::Map(keyed) => refuse(self.map(&keyed, false)),
            Call::SharedPoll(keyed) => refuse(self.shared_poll(&keyed)),
        }
    }

    /// Identity and figures of this node, and of the others as they have published them.
    ///
    /// # Errors
    /// A shard has no room for the question who its users are.
    pub(super) async fn info(&self) -> Result<Vec<NodeInfo>> {
        // Kept in the state of the node.
        let users = async { Ok(users::count(&self.node, &self.control_mail).await?) };
        self.logged("info", users).await?;
        Ok(match &self.cluster {
            Some(cluster) => cluster.nodes(),
            None => vec![NodeInfo::of(&self.node, &self.name, self.started)],
        })
    }

    /// Maps: no namespace here is one.
    fn map(&self, keyed: &Keyed, has_key: bool) -> ApiError {
        match self.rules() {
            rules if !has_key || !keyed.key.is_empty() => {
                namespace(&rules, &keyed.channel).err().unwrap_or(ApiError::BadRequest)
            }
            _ => ApiError::BadRequest,
        }
    }

    /// Polled channels: no namespace here is one.
    fn shared_poll(&self, keyed: &Keyed) -> ApiError {
        if keyed.version == 0 { ApiError::BadRequest } else { self.map(keyed, true) }
    }

    /// Refuses calls that would make memory grow while it is short.
    fn has_memory(&self) -> Result<()> {
        if self.node.memory.is_short() { Err(ApiError::ShortOfMemory) } else { Ok(()) }
    }

    /// Waits for the result of a method, and logs its error.
    async fn logged<T>(&self, method: &str, result: impl Future<Output = Result<T>>) -> Result<T> {
        result.await.inspect_err(|error| self.refused_call(method, *error))
    }

    /// Logs and counts the error of a method.
    fn refused_call(&self, method: &str, error: ApiError) {
        self.figures.failed(method, error);
        self.refused(Reason::ApiError, error.code().into(), format_args!("{method}: {error}"));
    }

    /// Logs why a request was refused.
    fn refused(&self, reason: Reason, code: u32, why: Arguments<'_>) {
        let address = CALLER.try_with(|address| *address).unwrap_or_default();
        let fields = Fields { address, code, why: Some(why), ..Fields::default() };
        self.node.notices.notice_now(reason, &fields);
    }

    /// The node closes its connections and ends.
    fn is_draining(&self) -> bool {
        self.node.draining.load(Ordering::Relaxed)
    }
}

fn done((): ()) -> Reply {
    Reply::Done
}

/// There are no extensions.
fn rpc(method: &str) -> ApiError {
    if method.is_empty() { ApiError::BadRequest } else { ApiError::NotFound }
}

/// The namespace of a channel that a call names.
fn namespace<'n>(rules: &'n ChannelRules, channel: &str) -> Result<&'n Namespace> {
    if channel.is_empty() {
        return Err(ApiError::BadRequest);
    }
    rules.check_length(channel)?;
    Ok(rules.resolve_trusted(channel)?)
}
