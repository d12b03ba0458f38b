//! To come.

pub mod client_id;
