//! The machine: what it allows, what holds it back first, and what to set so that it allows more.
//!
//! Who calls it: `node` reads [`facts::Facts`] once at start, plans its shards with
//! [`plan::plan_shards`] and prints [`plan::capacity`]; `cli` runs [`tune::run`]. It knows nothing of
//! connections, channels or options beyond the numbers that it is given.
//!
//! One table, [`table::ROWS`], says which sysctl keys matter, how much of each N connections need,
//! and why. `roost tune` compares the host with it, and the files in `sysctl/` are printed from it.

pub mod cards;
pub mod costs;
pub mod facts;
pub mod plan;
pub mod process;
pub mod sysctls;
pub mod table;
pub mod tune;
