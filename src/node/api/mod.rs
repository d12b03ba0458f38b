//! The server API (server API, sections 1 to 3): what applications ask a node to do.
//!
//! ```text
//!  /api/publish, /api (old form), /api/batch --> Api::call --> the desk --> homes and shards
//! ```
//! Nothing here touches a connection or a channel: each method is a question to the shards that know.

mod bounds;
mod http;
mod methods;
mod wire;

pub(super) use self::http::{answer_old_form, router};

use std::fmt::Arguments;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::Semaphore;

use super::desk::Desk;
use crate::base::limits::API_READS_MAX;
use crate::base::notices::Reason;
use crate::edge::channels::ChannelRules;
use crate::shard::{Fields, Node};

/// What methods work with.
pub(super) struct Api {
    node: Arc<Node>,
    desk: Arc<Desk>,
    /// Name of this node.
    name: String,
    /// Its id, made anew at each start.
    uid: String,
    started: Instant,
    /// Each answer about a channel that is asked for holds a place, since it may be long.
    reads: Semaphore,
}

tokio::task_local! {
    /// Address of the client whose request the task answers, for the log lines of whatever it does.
    static CALLER: Option<IpAddr>;
}

impl Api {
    /// The API of a node. `uid` tells its lives apart.
    pub(super) fn new(
        node: Arc<Node>,
        desk: Arc<Desk>,
        name: String,
        uid: String,
        started: Instant,
    ) -> Self {
        Self { node, desk, name, uid, started, reads: Semaphore::new(API_READS_MAX) }
    }

    /// The rules of channels.
    pub(super) fn rules(&self) -> Arc<ChannelRules> {
        self.node.rules.channels.load_full()
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
