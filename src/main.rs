//! `roost`: a node, and the tools around it.

use std::process::ExitCode;

use roost::cli::{self, Commands};
use roost::{host, node};

/// Gives memory back after a burst, which the system's allocator does not.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(Commands { serve: node::serve, tune: host::tune::run })
}
