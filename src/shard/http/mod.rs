//! HTTP on the public port: requests, their bodies, responses that go on, up-links and polls.

pub(crate) mod bodies;
pub(crate) mod body;
pub(crate) mod emulation;
pub(crate) mod endpoint;
pub(crate) mod polls;
pub(crate) mod refusals;
pub(crate) mod route;
pub(crate) mod stream;
pub(crate) mod upgrade;
