//! Documents that packages ship beside the program: completions of shells, and manual pages.

use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{command, say};
use crate::load;

/// A program of the package. One of them has the documents of both, so that the other one, whose command line
/// begins with a scenario, needs no commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Program {
    /// The node.
    Roost,
    /// The load client.
    RoostLoad,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Roost => "roost",
            Self::RoostLoad => "roost-load",
        }
    }

    fn command(self) -> Command {
        match self {
            Self::Roost => command(),
            Self::RoostLoad => load::Flags::command(),
        }
    }

    fn completions(self, shell: Shell) -> String {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut self.command(), self.name(), &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}

/// `roost completions SHELL [PROGRAM]`: prints a script that completes a command line.
pub(super) fn completions(shell: Shell, program: Program) -> ExitCode {
    say(&program.completions(shell));
    ExitCode::SUCCESS
}

/// `roost man DIR`: writes a page for each program and for each command.
pub(super) fn man(folder: &Path) -> ExitCode {
    match write_all(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {}: {fault}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write_all(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    Program::value_variants().iter().try_for_each(|program| {
        let mut root = program.command().disable_help_subcommand(true);
        // Names the commands below: `roost-config-check`.
        root.build();
        write_pages(&root, folder)
    })
}

/// The pages of a command and of those below it.
fn write_pages(command: &Command, folder: &Path) -> std::io::Result<()> {
    // Without a date: two builds of one version give the same bytes.
    let page = Man::new(command.clone()).source(concat!("roost ", env!("CARGO_PKG_VERSION")));
    page.generate_to(folder)?;
    let mut shown = command.get_subcommands().filter(|below| !below.is_hide_set());
    shown.try_for_each(|below| write_pages(below, folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page() {
        let folder = std::env::temp_dir().join(format!("roost-man-{}", std::process::id()));
        write_all(&folder).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(page("roost.1").contains("development node"));
        assert!(page("roost-serve.1").contains("http_server"));
        assert!(page("roost-config-check.1").contains("strict"));
        assert!(page("roost-load.1").contains("connect\\-rate"));
        assert!(!folder.join("roost-help.1").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn each_shell_has_a_script_with_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = Program::Roost.completions(shell);
            assert!(script.contains("serve") && script.contains("token"), "{shell}");
            let script = Program::RoostLoad.completions(shell);
            assert!(script.contains("broadcast") && script.contains("roost-load"), "{shell}");
        }
    }
}
