//! To come.

pub mod timers;
