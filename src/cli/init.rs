//! `roost config init`: a commented configuration with keys of its own, which a node starts with.

use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{EXIT_USAGE, fail, mistaken, say};
use crate::config;

/// Arguments of `roost config init`.
#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// File to write.
    #[arg(default_value = "roost.toml")]
    pub file: PathBuf,
    /// Web pages that may connect, such as `https://example.com`; several by commas or several flags. Without it
    /// a terminal is asked, and else pages of this machine may.
    #[arg(long = "origin", value_name = "ORIGIN", value_delimiter = ',')]
    pub origins: Vec<String>,
    /// Name of a namespace of channels.
    #[arg(long, value_name = "NAME", default_value = "chat")]
    pub namespace: String,
    /// Port to listen on.
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub port: u16,
    /// Overwrite the file.
    #[arg(long)]
    pub force: bool,
}

/// Pages of this machine, on any port.
const LOCAL: &[&str] = &["http://localhost:*", "http://127.0.0.1:*"];

/// Secrets of a configuration.
pub(super) struct Keys {
    pub token: String,
    pub api: String,
    pub password: String,
    pub secret: String,
}

impl Keys {
    /// From the system's generator.
    ///
    /// # Errors
    /// It gives nothing.
    pub(super) fn random() -> Result<Self, String> {
        Ok(Self {
            token: random_text(32)?,
            api: random_text(24)?,
            password: random_text(12)?,
            secret: random_text(32)?,
        })
    }
}

/// So many random bytes in hexadecimal digits.
fn random_text(bytes: usize) -> Result<String, String> {
    let mut buffer = vec![0; bytes];
    aws_lc_rs::rand::fill(&mut buffer).map_err(|_| "the system gives no random numbers")?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn run(arguments: &InitArgs) -> ExitCode {
    let file = &arguments.file;
    if file.extension().is_none_or(|extension| extension != "toml") {
        return mistaken(&format!("{}: expected a name that ends with .toml", file.display()));
    }
    if !is_name(&arguments.namespace) {
        return mistaken("--namespace: expected letters, digits, \"-\", \"_\" and \".\"");
    }
    if file.exists() && !arguments.force {
        return fail(&format!("{}: it exists; --force overwrites it", file.display()));
    }
    let origins = match origins(arguments) {
        Ok(origins) => origins,
        Err(fault) => return fail(&fault),
    };
    let keys = match Keys::random() {
        Ok(keys) => keys,
        Err(fault) => return fail(&fault),
    };
    let text = configuration(arguments, &origins, &keys);
    if let Err(fault) = write(file, &text, arguments.force) {
        return fail(&format!("{}: {fault}", file.display()));
    }
    // It is what the node will read; a mistake in an origin is named here.
    match config::check(file, true) {
        Ok((_, warnings)) => super::warn(&warnings),
        Err(fault) => {
            super::refuse(&fault);
            return ExitCode::from(EXIT_USAGE);
        }
    }
    say(&next_steps(file, arguments.port, &arguments.namespace));
    ExitCode::SUCCESS
}

fn is_name(text: &str) -> bool {
    let is_in = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.len() >= 2 && text.bytes().all(is_in)
}

/// The pages that may connect: those given, those typed, or local ones.
fn origins(arguments: &InitArgs) -> Result<Vec<String>, String> {
    let local = || LOCAL.iter().map(|origin| (*origin).to_owned()).collect();
    if !arguments.origins.is_empty() {
        return Ok(arguments.origins.clone());
    }
    if !std::io::stdin().is_terminal() {
        return Ok(local());
    }
    eprint!(
        "Web pages that may connect, such as https://example.com, with spaces between them\n\
         (empty: pages of this machine only): "
    );
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|fault| fault.to_string())?;
    let typed: Vec<String> = line.split([' ', ',', '\n']).map(str::to_owned).collect();
    let typed: Vec<String> = typed.into_iter().filter(|origin| !origin.is_empty()).collect();
    Ok(if typed.is_empty() { local() } else { typed })
}

/// The text of a file.
fn configuration(arguments: &InitArgs, origins: &[String], keys: &Keys) -> String {
    let origins: Vec<String> = origins.iter().map(|origin| format!("{origin:?}")).collect();
    let Keys { token, api, password, secret } = keys;
    TEMPLATE
        .replace("@file@", &arguments.file.display().to_string())
        .replace("@port@", &arguments.port.to_string())
        .replace("@origins@", &origins.join(", "))
        .replace("@token@", token)
        .replace("@namespace@", &arguments.namespace)
        .replace("@api@", api)
        .replace("@password@", password)
        .replace("@secret@", secret)
}

const TEMPLATE: &str = include_str!("init.toml");

/// Writes a file that only its owner reads. It appears whole, also in the place of another one.
pub(super) fn write(file: &Path, text: &str, overwrite: bool) -> std::io::Result<()> {
    let fresh = |path: &Path| {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(path)
    };
    if !overwrite {
        return fresh(file)?.write_all(text.as_bytes());
    }
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let aside = PathBuf::from(name);
    let written = fresh(&aside).and_then(|mut opened| {
        opened.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        opened.write_all(text.as_bytes())?;
        std::fs::rename(&aside, file)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    written
}

fn next_steps(file: &Path, port: u16, namespace: &str) -> String {
    let file = file.display();
    format!(
        "{file}: written, and readable by its owner only\n\n\
         start a node:   roost serve -c {file}\n\
         a token:        roost token --user 42 -c {file}\n\
         publish:        curl -H \"X-API-Key: KEY\" -d '{{\"channel\":\"{namespace}:room\",\"data\":{{}}}}' \
         http://localhost:{port}/api/publish\n\
         is it well:     roost health -c {file}\n\
         admin page:     http://localhost:{port}/ (admin.password in {file})\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_enough_and_differ() {
        let (one, other) = (Keys::random().unwrap(), Keys::random().unwrap());
        assert_ne!(one.token, other.token);
        assert_eq!((one.token.len(), one.api.len(), one.password.len()), (64, 48, 24));
    }

    #[test]
    fn a_file_is_its_owners_and_is_overwritten_only_by_order() {
        let path = std::env::temp_dir().join(format!("roost-init-{}.toml", std::process::id()));
        let _ = std::fs::remove_file(&path);
        write(&path, "a = 1\n", false).unwrap();
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        assert!(write(&path, "a = 2\n", false).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, "a = 3\n", true).unwrap();
        assert_eq!((mode(), std::fs::read_to_string(&path).unwrap().as_str()), (0o600, "a = 3\n"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn lines_of_the_file_fit_a_terminal() {
        for line in TEMPLATE.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        for name in ["chat", "a-b.c_1"] {
            assert!(is_name(name));
        }
        for name in ["", "a:b", "a b", "\"x"] {
            assert!(!is_name(name));
        }
    }
}
