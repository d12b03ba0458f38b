//! `roost`: a node, and the tools around it.

use std::process::ExitCode;

use roost::cli::{self, Commands};
use roost::sys::memory::Counted;
use roost::{host, node};

/// Gives memory back after a burst, which the system's allocator does not; and counts, so that the node
/// knows what is in use.
#[global_allocator]
static ALLOCATOR: Counted = Counted;

fn main() -> ExitCode {
    cli::run(Commands { serve: node::serve, tune: host::tune::run })
}
