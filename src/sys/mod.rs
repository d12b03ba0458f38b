//! The only unsafe code: system calls that no crate wraps safely.

pub mod source_port;
pub mod tables;
