//! Answers to a `connect` that fails, as lists of options have them.

use serde::Deserialize;

use crate::edge::proxy::AppDisconnect;

/// The answer to a `connect` that fails.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResponseTransform {
    pub(super) code: u32,
    pub(super) to: ResponseOf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ResponseOf {
    pub(super) status_code: u16,
    pub(super) body: String,
}

impl ResponseTransform {
    /// A status that ends a request.
    pub(super) fn is_valid(&self) -> bool {
        (200..600).contains(&self.to.status_code)
    }
}

/// The close of a one-way connection whose `connect` fails.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DisconnectTransform {
    pub(super) code: u32,
    pub(super) to: AppDisconnect,
}
