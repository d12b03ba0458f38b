//! The facts that a command is judged by: everything that the session doesn't know itself.
//!
//! They are values and tables to look into. Nothing in them can be changed, so a decision can be
//! taken twice: what a command waits for is at hand the second time.

use arc_swap::ArcSwap;

use crate::base::id::{ConnKey, ShardId};
use crate::base::time::UnixSeconds;
use crate::edge::channels::{ChannelRules, Namespace};
use crate::edge::client_id::{ClientIdSealer, ClientIdText};
use crate::edge::jwt::TokenKeys;
use crate::edge::proxy::RpcRules;
use crate::hub::local::Locals;
use crate::hub::names::NameHasher;
use crate::proto::client::{Disconnect, Encoding, is_json};
use crate::session::rules::ClientOptions;
use crate::session::stop::Stop;
use crate::session::verdict::Verdict;

/// Facts about one command and its connection.
#[derive(Clone, Copy)]
pub struct Facts<'f> {
    /// Rules of channels.
    pub channels: &'f ChannelRules,
    /// Options of clients.
    pub client: &'f ClientOptions,
    /// Targets of calls.
    pub rpc: &'f ArcSwap<RpcRules>,
    /// Keys of connection tokens.
    pub connection_keys: &'f TokenKeys,
    /// Keys of subscription tokens.
    pub subscription_keys: &'f TokenKeys,
    /// Seals client ids.
    pub ids: &'f ClientIdSealer,
    /// Hashes names and tokens.
    pub names: &'f NameHasher,
    /// Channels that connections of this shard are subscribed to.
    pub locals: &'f Locals,
    /// The shard of the connection.
    pub shard: ShardId,
    /// The connection.
    pub conn: ConnKey,
    /// Its encoding.
    pub encoding: Encoding,
    /// The time by the wall clock.
    pub now: UnixSeconds,
    /// The node is over its memory limit.
    pub is_short: bool,
    /// A deferred command of the connection subscribes to the same channel.
    pub is_reserved: bool,
    /// The check of a token's signature that the command stopped for.
    pub verdict: Option<Verdict>,
}

impl<'f> Facts<'f> {
    /// The namespace of a channel that a command names.
    pub(super) fn namespace(&self, channel: &str) -> Result<&'f Namespace, Stop> {
        if channel.is_empty() {
            return Err(Stop::Close(Disconnect::BadRequest, "a channel without a name"));
        }
        Ok(self.channels.resolve(channel)?)
    }

    /// The text of the client id.
    pub(super) fn client_id(&self) -> ClientIdText {
        self.ids.seal(self.shard, self.conn).text()
    }

    /// Whether the connection can be shown this.
    pub(super) fn may_show(&self, data: &[u8]) -> bool {
        data.is_empty() || self.encoding == Encoding::Protobuf || is_json(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::client::ErrorCode;
    use crate::session::testing::Scene;

    #[test]
    fn a_channel_needs_a_name_and_a_namespace() {
        let scene = Scene::default();
        let facts = scene.facts();
        assert!(facts.namespace("news").is_ok());
        let stop = facts.namespace("").err();
        assert!(matches!(stop, Some(Stop::Close(Disconnect::BadRequest, _))), "{stop:?}");
        let stop = facts.namespace("nowhere:news").err();
        assert!(matches!(stop, Some(Stop::Error(ErrorCode::UnknownChannel, _))), "{stop:?}");
    }

    #[test]
    fn json_clients_are_shown_json_alone() {
        let scene = Scene::default();
        let facts = scene.facts();
        let binary = Facts { encoding: Encoding::Protobuf, ..facts };
        for (data, json) in [(&b""[..], true), (b"{}", true), (b"\xff", false)] {
            assert_eq!((facts.may_show(data), binary.may_show(data)), (json, true), "{data:?}");
        }
    }
}
