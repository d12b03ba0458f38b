//! `roost`: a node, and the tools around it.

use std::process::ExitCode;

use roost::cli::{self, Commands};

fn main() -> ExitCode {
    cli::run(Commands {
        serve: |_, _| {
            eprintln!("error: this build has no node");
            ExitCode::FAILURE
        },
        tune: |_, _, _| {
            eprintln!("error: this build has no tune");
            ExitCode::FAILURE
        },
    })
}
