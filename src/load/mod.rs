//! The load client `roost-load`: opens many connections to any WebSocket server, uses them as a
//! scenario says, and checks that every message that should have arrived did.
//!
//! ```text
//!  flags -> plan -> run (coordinator, main thread) --orders--> worker: fleet, dialer, epoll
//!                     |   '--------------------------orders--> publisher | api: schedule
//!                     '-- report <-- figures, oracle -----------'
//! ```
//!
//! It shares framing and handshake with the node, and nothing else: sockets, clocks and threads
//! here are the client's own. Each worker thread has its own descriptor table, so that the limit
//! of descriptors counts for each thread.

#![expect(
    clippy::disallowed_methods,
    reason = "a load client has clocks and threads of its own, outside the node's layers"
)]

mod api;
mod batch;
mod conn;
mod dial;
mod figures;
mod flags;
mod fleet;
mod headers;
mod host;
mod http;
mod oracle;
mod output;
mod payload;
mod plan;
mod progress;
mod publisher;
mod recovery;
mod report;
mod run;
mod scenario;
mod speech;
mod stream;
mod threshold;
mod tls;
mod token;
mod upgrade;
mod window;
mod worker;

pub use self::flags::{Flags, Protocol, Scenario, Threads};

use self::plan::Plan;
use crate::sys::tables;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The exit code when all went well.
pub const EXIT_GOOD: u8 = 0;
/// The exit code when a connection or a message that should have arrived was lost, or the scenario
/// could not be run.
pub const EXIT_LOST: u8 = 1;
/// The exit code for a command line that makes no sense.
pub const EXIT_USAGE: u8 = 2;

/// The exit code when a condition of `--fail-if` holds.
pub const EXIT_FAILED: u8 = 99;

/// The exit code when a signal ended the run early: that of a shell for Ctrl-C.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Runs what the flags say, and prints the result: with `--json` one JSON object as the last line
/// of standard output and the summary on standard error, else the summary on standard output.
/// Setting `stop` ends it early with what there is. Returns the exit code.
///
/// Raises the process's soft descriptor limit to the hard one. Call it once in a process, from its
/// main thread: it starts threads that leave the process's descriptor table.
pub fn main(flags: Flags, stop: Arc<AtomicBool>) -> u8 {
    let (descriptors, _) = tables::raise_nofile();
    // 31 bits: every JSON reader on the way takes it for the same number.
    let run = RandomState::new().hash_one(std::process::id()) as u32 >> 1;
    let plan = match Plan::new(flags, descriptors, run) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("roost-load: {error}");
            return EXIT_USAGE;
        }
    };
    let json = plan.json;
    let report = match run::run(plan, stop) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("roost-load: {error}");
            return EXIT_LOST;
        }
    };
    let printed = if json {
        eprint!("{report}");
        writeln!(std::io::stdout(), "{}", report.json())
    } else {
        write!(std::io::stdout(), "{report}")
    };
    match printed.is_err() || !report.problems().is_empty() {
        _ if report.interrupted => EXIT_INTERRUPTED,
        _ if report.fails() => EXIT_FAILED,
        true => EXIT_LOST,
        false => EXIT_GOOD,
    }
}
