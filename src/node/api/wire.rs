//! What the server API says, as JSON (server API, sections 1 to 3). Read as `node/json.rs` says.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::node::json::objects;
use crate::proto::client::http_status;

/// An error of a method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::node) struct ApiError {
    pub(super) code: u16,
    pub(super) message: Cow<'static, str>,
}

impl ApiError {
    pub(super) const INTERNAL: Self = Self::new(100, "internal server error");
    pub(super) const BUSY: Self =
        Self::new(100, "internal server error: the channel's shard takes no more now, try again");
    pub(super) const NOT_JSON: Self =
        Self::new(100, "internal server error: what is kept there isn't JSON");
    pub(super) const UNKNOWN_CHANNEL: Self = Self::new(102, "unknown channel");
    pub(super) const NOT_FOUND: Self = Self::new(104, "not found");
    pub(super) const LIMIT_EXCEEDED: Self = Self::new(106, "limit exceeded");
    pub(super) const BAD_REQUEST: Self = Self::new(107, "bad request");
    pub(super) const NOT_AVAILABLE: Self = Self::new(108, "not available");
    pub(super) const UNRECOVERABLE_POSITION: Self = Self::new(112, "unrecoverable position");

    const fn new(code: u16, message: &'static str) -> Self {
        Self { code, message: Cow::Borrowed(message) }
    }

    /// The status in transport mode (server API, 1.2).
    pub(super) fn status(&self) -> u16 {
        http_status(self.code.into())
    }
}

objects! {
    /// What publish and broadcast have in common.
    struct Content<'a> {
        b64data: String,
        skip_history: bool,
        tags: BTreeMap<String, String>,
        idempotency_key: String,
        delta: bool,
        version: u64,
        version_epoch: String,
        ;
        data,
    }
    struct Channel {
        channel: String,
    }
    struct Channels {
        channels: Vec<String>,
    }
    struct Subscribe<'a> {
        channel: String,
        user: String,
        expire_at: i64,
        b64info: String,
        client: String,
        b64data: String,
        recover_since: Option<Since>,
        r#override: Overrides,
        session: String,
        ;
        info,
        data,
    }
    struct Overrides {
        presence: Option<Setting>,
        join_leave: Option<Setting>,
        force_recovery: Option<Setting>,
        force_positioning: Option<Setting>,
        force_push_join_leave: Option<Setting>,
    }
    struct Setting {
        value: bool,
    }
    struct Unsubscribe {
        channel: String,
        user: String,
        client: String,
        session: String,
    }
    struct Disconnect {
        user: String,
        disconnect: Option<Reason>,
        client: String,
        whitelist: Vec<String>,
        session: String,
    }
    struct Reason {
        code: u32,
        reason: String,
    }
    struct Refresh<'a> {
        user: String,
        client: String,
        expired: bool,
        expire_at: i64,
        session: String,
        b64info: String,
        ;
        info,
    }
    struct History {
        channel: String,
        limit: i64,
        since: Option<Since>,
        reverse: bool,
    }
    struct Since {
        offset: u64,
        epoch: String,
    }
    struct Pattern {
        pattern: String,
    }
    struct Rpc {
        method: String,
    }
    /// Fields that decide what becomes of a call to a map or a polled channel.
    struct Keyed {
        channel: String,
        key: String,
        version: u64,
    }
    struct Batch<'a> {
        parallel: bool,
        ;
        commands,
    }
    /// One command of the old form.
    struct Command<'a> {
        id: u64,
        method: Option<Method>,
        ;
        params,
    }
}

/// A method of the old form, by name or number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Method {
    Number(u32),
    Name(String),
}

/// Offset and epoch; nothing for a channel without history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Published {
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) offset: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) epoch: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A reply of a broadcast: `{"result":{...}}` or `{"error":{...}}`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome<T> {
    Result(T),
    Error(ApiError),
}

impl<T> From<Result<T, ApiError>> for Outcome<T> {
    fn from(result: Result<T, ApiError>) -> Self {
        match result {
            Ok(result) => Self::Result(result),
            Err(error) => Self::Error(error),
        }
    }
}
