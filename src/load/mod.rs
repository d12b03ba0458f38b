//! The load client `roost-load`: opens many connections to any WebSocket server, uses them as a
//! scenario says, and checks that every message that should have arrived did.
//!
//! ```text
//!  flags, scenario file -> plan -> run (coordinator, main thread) --orders--> worker: fleet, dialer, epoll
//!                     |   |--------------------------orders--> publisher | api: schedule
//!                     |   '--orders over TCP--> agents, each with workers and publishers of its own
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

mod agenda;
mod agent;
mod agents;
mod api;
mod batch;
mod clock;
mod compare;
mod conn;
mod connects;
mod crew;
mod dial;
mod figures;
mod file;
mod flags;
mod fleet;
mod hands;
mod hdr;
mod headers;
mod host;
mod html;
mod http;
mod hub;
mod mix;
mod oracle;
mod output;
mod pace;
mod payload;
mod plan;
mod profile;
mod progress;
mod publisher;
mod recovery;
mod report;
mod run;
mod scenario;
mod schema;
mod search;
mod series;
mod speech;
mod stream;
mod svg;
mod target;
mod threshold;
mod tls;
mod token;
mod upgrade;
mod view;
mod window;
mod wire;
mod worker;

pub use self::flags::{Flags, Protocol, Scenario, Threads};
pub use self::search::Goal;

use self::agents::Party;
use self::plan::{Plan, Room};
use self::run::Run;
use self::search::Search;
use crate::sys::tables;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};
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

/// `roost-load compare A B`.
fn compare_reports(flags: &Flags) -> u8 {
    let [a, b] = &flags.operands[..] else {
        eprintln!("roost-load: compare needs two files");
        return EXIT_USAGE;
    };
    match compare::compare(Path::new(a), Path::new(b)) {
        Ok((text, is_worse)) => match write!(std::io::stdout(), "{text}") {
            Err(_) => EXIT_LOST,
            Ok(()) if is_worse => EXIT_FAILED,
            Ok(()) => EXIT_GOOD,
        },
        Err(error) => {
            eprintln!("roost-load: {error}");
            EXIT_USAGE
        }
    }
}

/// `--search`: run after run. The report is that of the best one, else of the last.
fn search(mut flags: Flags, descriptors: u64, files: &Files, stop: &Arc<AtomicBool>) -> u8 {
    let goal = flags.search.unwrap_or(Goal::Rate);
    if flags.hdr.take().is_some() {
        eprintln!("roost-load: --hdr: not with --search");
        return EXIT_USAGE;
    }
    flags.fail_if.append(&mut flags.until);
    let first = match goal {
        Goal::Rate => flags.rate.map_or(1000, |rate| rate as u32),
        Goal::Connections => flags.connections.unwrap_or(100),
    };
    let mut search = Search::new(goal, first);
    let mut shown = None;
    while let Some(value) = search.next() {
        match goal {
            Goal::Rate => flags.rate = Some(value.into()),
            Goal::Connections => flags.connections = Some(value),
        }
        let run = match run_once(flags.clone(), descriptors, stop) {
            Ok(run) => run,
            Err(code) => return code,
        };
        let is_interrupted = run.report.interrupted;
        let is_best = !is_interrupted && search.note(&run.report);
        if shown.is_none() || is_best {
            shown = Some(run);
        }
        if is_interrupted {
            break;
        }
    }
    let Some(mut run) = shown else { return EXIT_LOST };
    run.report.search = Some(search.found());
    let written = files.write(&run);
    if let Err(error) = &written {
        eprintln!("roost-load: {error}");
    }
    exit_code(&run.report, written.is_err())
}

/// Where the report goes.
struct Files {
    json: Option<Option<PathBuf>>,
    csv: Option<PathBuf>,
    html: Option<PathBuf>,
}

impl Files {
    /// # Errors
    /// A file can't be written: an hour's report would be lost at its end.
    fn new(flags: &Flags) -> Result<Self, String> {
        let Flags { json, csv, html, hdr, .. } = flags.clone();
        // A dash is standard output, as without a file.
        let json = json.map(|file| file.filter(|file| file.as_os_str() != "-"));
        let wanted = [
            ("--json", json.as_ref().and_then(|file| file.as_ref())),
            ("--csv", csv.as_ref()),
            ("--html", html.as_ref()),
            ("--hdr", hdr.as_ref()),
        ];
        for (flag, path) in wanted {
            let Some(path) = path else { continue };
            check_writable(path).map_err(|error| format!("{flag} {}: {error}", path.display()))?;
        }
        Ok(Self { json, csv, html })
    }

    /// Writes the report wherever it is wanted: for people at least.
    ///
    /// # Errors
    /// A line for each report that could not be written; the others are written all the same.
    fn write(&self, run: &Run) -> Result<(), String> {
        let Run { report, seconds, latency } = run;
        let mut faults = Vec::new();
        let mut note = |flag: &str, path: &Path, written: std::io::Result<()>| {
            let error = written.map_err(|error| format!("{flag} {}: {error}", path.display()));
            faults.extend(error.err());
        };
        if let Some(path) = &self.csv {
            let written = std::fs::File::create(path).and_then(|file| {
                let mut out = std::io::BufWriter::new(file);
                let names: Vec<&str> = report.agents.iter().map(|of| of.name.as_str()).collect();
                series::write_csv(&mut out, seconds, &names)?;
                out.flush()
            });
            note("--csv", path, written);
        }
        if let Some(path) = &self.html {
            note("--html", path, std::fs::write(path, html::page(report, seconds, latency)));
        }
        let printed = match &self.json {
            Some(Some(path)) => {
                note("--json", path, std::fs::write(path, report.json_with(seconds, latency)));
                write!(std::io::stdout(), "{report}")
            }
            Some(None) => {
                eprint!("{report}");
                writeln!(std::io::stdout(), "{}", report.json())
            }
            None => write!(std::io::stdout(), "{report}"),
        };
        faults.extend(printed.err().map(|error| format!("standard output: {error}")));
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\nroost-load: ")) }
    }
}

/// Whether a file can be written, or made. Its contents stay, and one that is not there isn't made.
fn check_writable(path: &Path) -> std::io::Result<()> {
    let is_there = match std::fs::metadata(path) {
        // A reader of a pipe would take a look for the end.
        Ok(found) if !found.is_file() && !found.is_dir() => return Ok(()),
        found => found.is_ok(),
    };
    std::fs::File::options().append(true).create(true).open(path)?;
    if is_there { Ok(()) } else { std::fs::remove_file(path) }
}

/// The text that `show` and `schema` print; nothing for other commands.
fn documents(flags: &Flags) -> Option<Result<String, String>> {
    let operand = flags.operands.first().map(String::as_str);
    let (found, known) = match flags.scenario {
        Scenario::Show => (file::built_in(operand.unwrap_or_default()), file::built_in_names()),
        Scenario::Schema => (schema::of(operand.unwrap_or_default()), schema::NAMES.to_vec()),
        _ => return None,
    };
    match (operand, found) {
        (None, _) => Some(Ok(known.iter().map(|name| format!("{name}\n")).collect())),
        (Some(_), Some(text)) => Some(Ok(text.to_owned())),
        (Some(name), None) => Some(Err(format!("{name}: one of {}", known.join(", ")))),
    }
}

/// Runs what the flags say, and prints the result: with `--json` alone one JSON object as the last line
/// of standard output and the summary on standard error, else the summary on standard output.
/// Setting `stop` ends it early with what there is. Returns the exit code.
///
/// Raises the process's soft descriptor limit to the hard one. Call it once in a process, from its
/// main thread: it starts threads that leave the process's descriptor table.
pub fn main(flags: Flags, stop: Arc<AtomicBool>) -> u8 {
    if let Some(answer) = documents(&flags) {
        return match answer {
            Ok(text) if write!(std::io::stdout(), "{text}").is_ok() => EXIT_GOOD,
            Ok(_) => EXIT_LOST,
            Err(error) => {
                eprintln!("roost-load: {error}");
                EXIT_USAGE
            }
        };
    }
    if flags.scenario == Scenario::Compare {
        return compare_reports(&flags);
    }
    let (descriptors, _) = tables::raise_nofile();
    if flags.scenario == Scenario::Agent {
        return agent::serve(&flags, descriptors, &stop);
    }
    let files = match Files::new(&flags) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("roost-load: {error}");
            return EXIT_USAGE;
        }
    };
    if flags.search.is_some() {
        return search(flags, descriptors, &files, &stop);
    }
    let run = match run_once(flags, descriptors, &stop) {
        Ok(run) => run,
        Err(code) => return code,
    };
    let written = files.write(&run);
    if let Err(error) = &written {
        eprintln!("roost-load: {error}");
    }
    exit_code(&run.report, written.is_err())
}

/// One run, here or by agents.
///
/// # Errors
/// The exit code; standard error has the reason.
fn run_once(flags: Flags, descriptors: u64, stop: &Arc<AtomicBool>) -> Result<Run, u8> {
    let failed = |error: String, code: u8| {
        eprintln!("roost-load: {error}");
        code
    };
    // Before agents are asked: a command line that makes no sense is one for this machine too.
    let room = Room { machines: flags.agents.len().max(1), ..Room::from(descriptors) };
    let plan = Plan::new(flags.clone(), room, run_number());
    let plan = plan.map_err(|error| failed(error.to_string(), EXIT_USAGE))?;
    let party = Party::gather(&flags).map_err(|error| failed(error, EXIT_LOST))?;
    let plan = match &party {
        None => plan,
        Some(party) => Plan::new(flags, party.room, plan.run)
            .map_err(|error| failed(error.to_string(), EXIT_USAGE))?,
    };
    run::run(plan, party, Arc::clone(stop)).map_err(|error| failed(error, EXIT_LOST))
}

/// A number that other runs don't have. 31 bits: every JSON reader on the way takes it for the same number.
fn run_number() -> u32 {
    RandomState::new().hash_one(std::process::id()) as u32 >> 1
}

fn exit_code(report: &report::Report, is_unwritten: bool) -> u8 {
    match is_unwritten || !report.problems().is_empty() {
        _ if report.interrupted => EXIT_INTERRUPTED,
        _ if report.fails() => EXIT_FAILED,
        true => EXIT_LOST,
        false => EXIT_GOOD,
    }
}
