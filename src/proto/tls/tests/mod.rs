//! The record layer against itself, against records of any content, and against what attackers change.

mod content;
mod conversations;
mod keys;
mod tampering;
