//! Calls of the application and its replies, as mail to the control thread and back.

use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;

use super::asker::Asker;
use crate::base::form::Form;
use crate::base::heap::{HeapBytes, heap_bytes_of};
use crate::edge::jwt::{ConnectionClaims, SubOptions};
use crate::edge::proxy::{AppDisconnect, AppError, ProxyEvent, ProxyOptions};
use crate::session::Headers;
use crate::session::app::{AppAnswer, AppRequest, AppResult};

/// A call of the application.
#[derive(Debug)]
pub struct AppCall {
    /// Whose command it is; its credits mean nothing here.
    pub asker: Asker,
    /// The endpoint.
    pub proxy: Arc<ProxyOptions>,
    /// Client id.
    pub client: CompactString,
    /// Transport and encoding of the connection.
    pub form: Form,
    /// User id; empty is anonymous, and of nobody yet in a `connect`.
    pub user: CompactString,
    /// `meta` of the connection, empty for none.
    pub meta: Box<[u8]>,
    /// The client's headers that the proxy takes over.
    pub headers: Option<Arc<Headers>>,
    /// The client's address, if it has one.
    pub address: Option<IpAddr>,
    /// The subject of the client's certificate, where the node requires one. It may be empty.
    pub certificate: Option<CompactString>,
    /// What it is about.
    pub call: AppRequest,
    /// The deferred command that it is for, if it is for one; comes back with the answer.
    pub ticket: Option<u32>,
}

impl HeapBytes for AppRequest {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Connect { data, name, version, channels } => {
                heap_bytes_of!(data, name, version, channels)
            }
            Self::Subscribe { channel, data } | Self::Publish { channel, data } => {
                heap_bytes_of!(channel, data)
            }
            Self::Rpc { method, data } => heap_bytes_of!(method, data),
            Self::SubRefresh { channel, .. } => channel.heap_bytes(),
            Self::Refresh => 0,
        }
    }
}

impl HeapBytes for AppCall {
    fn heap_bytes(&self) -> usize {
        heap_bytes_of!(
            &self.client,
            &self.user,
            &self.meta,
            &self.headers,
            &self.certificate,
            &self.call
        )
    }
}

impl HeapBytes for Headers {
    fn heap_bytes(&self) -> usize {
        heap_bytes_of!(&self.http, &self.emulated)
    }
}

/// The result of a call.
#[derive(Debug)]
pub struct AppReply {
    /// The asker of the call.
    pub asker: Asker,
    /// The subscription that it was about, where it was one that expires.
    pub local: u32,
    /// That of the call.
    pub ticket: Option<u32>,
    /// About what.
    pub event: ProxyEvent,
    /// The application's answer.
    pub answer: AppAnswer,
}

impl HeapBytes for AppReply {
    fn heap_bytes(&self) -> usize {
        match &self.answer {
            AppAnswer::Result(result) => result.heap_bytes(),
            AppAnswer::Error(AppError { message, .. }) => message.heap_bytes(),
            AppAnswer::Disconnect(AppDisconnect { reason, .. }) => reason.heap_bytes(),
            AppAnswer::Nothing | AppAnswer::Failed => 0,
        }
    }
}

impl HeapBytes for AppResult {
    fn heap_bytes(&self) -> usize {
        let ConnectionClaims { user, info, meta, subs, .. } = &self.claims;
        heap_bytes_of!(user, info, meta, subs, &self.data, &self.tags, &self.options)
    }
}

impl HeapBytes for SubOptions {
    fn heap_bytes(&self) -> usize {
        heap_bytes_of!(&self.info, &self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_request_count_as_held() {
        let channel = "a channel with a name that is kept on the heap".to_owned();
        let bytes = channel.len();
        let publish = AppRequest::Publish { channel: channel.into(), data: vec![0; 7].into() };
        assert!(publish.heap_bytes() >= bytes + 7);
        assert_eq!(AppRequest::Refresh.heap_bytes(), 0);
    }
}
