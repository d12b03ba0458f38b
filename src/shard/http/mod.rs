//! HTTP on the public port: requests, their bodies, responses that go on, up-links and polls.

pub(crate) mod bodies;
pub(crate) mod emulation;
pub(crate) mod polls;
pub(crate) mod refusals;
pub(crate) mod requests;
pub(crate) mod web;
