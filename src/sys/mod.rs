//! The only unsafe code of the crate, behind safe functions: what no maintained crate offers safely.

pub mod activation;
pub mod memory;
pub mod source_port;
pub mod tables;
pub mod uring;
