//! Calls of the application and its answers, as values (server API, 6.1 to 6.6).

use compact_str::CompactString;

use crate::edge::jwt::{ConnectionClaims, Overrides};
use crate::edge::proxy::{AppDisconnect, AppError, ProxyEvent};
use crate::proto::client::{ConnectRequest, ErrorCode, Payload, Request};
use crate::session::stop::Stop;

/// The subject of a call. Payloads may be empty.
#[derive(Clone, Debug, PartialEq)]
pub enum AppRequest {
    /// Identify the user of a connection.
    Connect {
        /// Data of the client's.
        data: Box<[u8]>,
        /// Name of its SDK.
        name: CompactString,
        /// Version of that.
        version: CompactString,
        /// Channels that it names.
        channels: Vec<CompactString>,
    },
    /// Renew a connection.
    Refresh,
    /// Permit a subscription.
    Subscribe {
        /// The channel.
        channel: CompactString,
        /// Data of the client's.
        data: Box<[u8]>,
    },
    /// Permit a publication.
    Publish {
        /// The channel.
        channel: CompactString,
        /// The payload.
        data: Box<[u8]>,
    },
    /// Answer a call of the client's.
    Rpc {
        /// The method.
        method: CompactString,
        /// The parameters.
        data: Box<[u8]>,
    },
    /// Renew a subscription.
    SubRefresh {
        /// The channel.
        channel: CompactString,
        /// Its place on the shard.
        local: u32,
    },
}

impl AppRequest {
    /// The call for a `connect`.
    pub fn connect(request: &ConnectRequest<'_>) -> Self {
        Self::Connect {
            data: request.data.as_ref().map_or(&b""[..], Payload::bytes).into(),
            name: CompactString::new(&request.name),
            version: CompactString::new(&request.version),
            channels: request.subs.keys().map(CompactString::new).collect(),
        }
    }

    /// The call for a client's command; `None` for commands that no application decides about.
    pub fn of(request: &Request<'_>) -> Option<Self> {
        let bytes =
            |data: &Option<Payload<'_>>| data.as_ref().map_or(&b""[..], Payload::bytes).into();
        let name = |name: &str| CompactString::new(name);
        Some(match request {
            Request::Connect(request) => Self::connect(request),
            Request::Subscribe(request) => {
                Self::Subscribe { channel: name(&request.channel), data: bytes(&request.data) }
            }
            Request::Publish(request) => {
                Self::Publish { channel: name(&request.channel), data: bytes(&request.data) }
            }
            Request::Rpc(request) => {
                Self::Rpc { method: name(&request.method), data: bytes(&request.data) }
            }
            _ => return None,
        })
    }

    /// The event of the call.
    pub fn event(&self) -> ProxyEvent {
        match self {
            Self::Connect { .. } => ProxyEvent::Connect,
            Self::Refresh => ProxyEvent::Refresh,
            Self::Subscribe { .. } => ProxyEvent::Subscribe,
            Self::Publish { .. } => ProxyEvent::Publish,
            Self::Rpc { .. } => ProxyEvent::Rpc,
            Self::SubRefresh { .. } => ProxyEvent::SubRefresh,
        }
    }
}

/// The answer of an application.
#[derive(Clone, Debug)]
pub enum AppAnswer {
    /// Permission, with a result.
    Result(Box<AppResult>),
    /// An error for the client.
    Error(AppError),
    /// The client has to be closed.
    Disconnect(AppDisconnect),
    /// Neither a result nor an error.
    Nothing,
    /// The call failed, or the answer can't be understood.
    Failed,
}

impl AppAnswer {
    /// The result, if there is one.
    ///
    /// # Errors
    /// The command ends by an error or a close of the application's, or because the call failed.
    pub fn result(&self) -> Result<Option<&AppResult>, Stop> {
        match self {
            Self::Result(result) => Ok(Some(result)),
            Self::Nothing => Ok(None),
            Self::Error(error) => Err(Stop::AppError(error.clone())),
            Self::Disconnect(disconnect) => Err(Stop::AppClose(disconnect.clone())),
            Self::Failed => {
                Err(Stop::Error(ErrorCode::Internal, "the proxy failed: see proxy.failed"))
            }
        }
    }

    /// The result of a command that isn't allowed without one.
    ///
    /// # Errors
    /// As [`Self::result`], and for an answer without a result.
    pub(super) fn permission(&self) -> Result<&AppResult, Stop> {
        let why = "the proxy's answer has no result";
        self.result()?.ok_or(Stop::Error(ErrorCode::PermissionDenied, why))
    }
}

/// The results of all events: each fills what it has. JSON payloads are text in one line; empty is none.
#[derive(Clone, Debug, Default)]
pub struct AppResult {
    /// Connect: the user, the expiry, and server-side subscriptions. Of a channel those in `subs`.
    pub claims: ConnectionClaims,
    /// Connect and subscribe: for the client. Publish: in place of the client's. Rpc: the answer.
    pub data: Option<Box<[u8]>>,
    /// Refresh and sub_refresh: it has expired.
    pub expired: bool,
    /// Subscribe: options in place of the namespace's.
    pub overrides: Overrides,
    /// Publish: packed tags.
    pub tags: Box<[u8]>,
    /// Publish: options of the publication.
    pub options: PublishOptions,
}

/// Options of a publication beside its content (server API, 3 publish).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishOptions {
    /// It is delivered and not kept, and has no offset.
    pub skip_history: bool,
    /// It may go as a patch, whatever the namespace says.
    pub delta: bool,
    /// A second one with this key does nothing, for a while; empty: no such thing.
    pub idempotency_key: CompactString,
    /// It is taken only when it is newer than the channel's; 0: whatever that is.
    pub version: u64,
    /// The life of the versions; empty: any.
    pub version_epoch: CompactString,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::client::{ChannelRequest, RpcRequest, SubscribeRequest};

    #[test]
    fn commands_that_an_application_decides_about_have_a_call() {
        let one = SubscribeRequest { channel: "a".into(), ..SubscribeRequest::default() };
        let subs = [("a".into(), SubscribeRequest::default())].into();
        let connect = ConnectRequest { subs, name: "js".into(), ..ConnectRequest::default() };
        for (request, event) in [
            (Request::Connect(connect), Some(ProxyEvent::Connect)),
            (Request::Subscribe(one), Some(ProxyEvent::Subscribe)),
            (Request::Rpc(RpcRequest::default()), Some(ProxyEvent::Rpc)),
            (Request::Unsubscribe(ChannelRequest::default()), None),
            (Request::Pong, None),
        ] {
            assert_eq!(AppRequest::of(&request).map(|call| call.event()), event);
        }
    }

    #[test]
    fn an_answer_permits_with_its_result_alone() {
        let error = AppError { code: 1000, message: "no".into(), temporary: false };
        let close = AppDisconnect { code: 4000, reason: "no".into() };
        assert!(AppAnswer::Result(Box::default()).permission().is_ok());
        assert!(AppAnswer::Nothing.result().is_ok_and(|result| result.is_none()));
        let denied = Stop::Error(ErrorCode::PermissionDenied, "the proxy's answer has no result");
        assert_eq!(AppAnswer::Nothing.permission().err(), Some(denied));
        let stop = AppAnswer::Error(error.clone()).permission().err();
        assert_eq!(stop, Some(Stop::AppError(error)));
        let stop = AppAnswer::Disconnect(close.clone()).permission().err();
        assert_eq!(stop, Some(Stop::AppClose(close)));
        let failed = AppAnswer::Failed.permission().err();
        assert!(matches!(failed, Some(Stop::Error(ErrorCode::Internal, _))), "{failed:?}");
    }
}
