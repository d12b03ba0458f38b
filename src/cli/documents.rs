//! Documents that packages ship beside the program: completions of shells, and manual pages.

use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::{command, say};

/// `roost completions SHELL`: prints a script that completes the command line.
pub(super) fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "roost", &mut script);
    say(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

/// `roost man DIR`: writes a page for the program and for each command.
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
    let mut root = command().disable_help_subcommand(true);
    // Names the commands below: `roost-config-check`.
    root.build();
    write_pages(&root, folder)
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
        assert!(!folder.join("roost-help.1").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn each_shell_has_a_script_with_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "roost", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("serve") && script.contains("token"), "{shell}");
        }
    }
}
