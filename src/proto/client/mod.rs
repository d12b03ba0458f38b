//! The client protocol in JSON, as pure functions: text frames to commands, results to replies.
//!
//! The session calls it; it knows no connection, no channel's state and no transport framing. A
//! second encoding (Protobuf) would stand beside [`json`] and share everything else.
//!
//! ```text
//! frame --commands()--> Command{id, Request}  ...session, hub...  ConnectResult --put_connect()--> bytes
//!            '--> Malformed: close 3501                           Publication --put_push_publication()-->
//! ```

pub mod codes;
pub mod command;
pub mod json;
mod parse;
pub mod reply;
#[cfg(test)]
mod tests;

pub use codes::{Disconnect, ErrorCode, Unsubscribed};
pub use command::{
    ChannelRequest, Command, ConnectRequest, HistoryRequest, PublishRequest, RefreshRequest,
    Request, RpcRequest, SendRequest, StreamPosition, SubRefreshRequest, SubscribeRequest,
};
pub use json::{
    PING, put_client_info, put_connect, put_error, put_publish, put_push_publication,
    put_push_unsubscribe, put_refresh, put_sub_refresh, put_subscribe, put_temporary_error,
    put_unsubscribe,
};
pub use parse::{Commands, Malformed, commands, parse};
pub use reply::{ConnectResult, Publication, SubscribeResult};
