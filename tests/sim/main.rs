//! Whole shards on a simulated network, one seed for each run: partial reads and writes, full
//! sockets, resets, delays, shards that are not run for a while; then everything heals, and there
//! has to be progress; then all go, and nothing may be left.
//!
//! `ROOST_SIM_SEED=n cargo test --test sim` replays one run, `ROOST_SIM_RUNS=n` makes it n random
//! ones. Seeds that failed once are in `tests/seeds.txt` and are run first.
//!
//! For `tools/traces`: `ROOST_SIM_TRACES=FILE` writes one line for each known and fixed seed,
//! `ROOST_SIM_TRACE=FILE` with `ROOST_SIM_SEED=n` the events of one run, a line each.

mod checker;
mod client;
mod nodes;
mod orders;
mod plan;
mod presence;
mod run;
mod tls;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Instant, SystemTime};

use self::run::{Report, Run};

/// Seeds that every test run has.
const FIXED_SEEDS: u64 = 150;

/// Seeds behind those, each for something that is rare: a client that closes in the middle of its TLS handshake.
const RARE_SEEDS: [u64; 1] = [322];

/// Random ones on top.
const RANDOM_SEEDS: u64 = 5;

/// No new seed is begun after so many seconds.
const SECONDS_MAX: u64 = 100;

/// Events that the fixed seeds together must contain.
const MET: [&str; 51] = [
    "accept_failed",
    "accepts_put_off",
    "close_timeouts",
    "closed_expired",
    "closed_idle",
    "closed_inappropriate",
    "closed_no_pong",
    "closed_shutdown",
    "closed_slow",
    "closed_stale",
    "closed_user_limit",
    "closed_write_timeout",
    "command_errors",
    "commands_paused",
    "deadlines_put_off",
    "connections_passed",
    "connections_refused_full",
    "emulations",
    "events_lost",
    "faults_bad_request",
    "faults_protocol",
    "faults_token",
    "faults_too_long",
    "faults_utf8",
    "gaps_fanout",
    "gaps_mail",
    "gaps_told",
    "mail_full",
    "messages_inflated",
    "polls",
    "polls_empty",
    "pongs",
    "reads",
    "recovered",
    "recoveries",
    "refused_timeout",
    "shed_answers",
    "shed_channels",
    "shed_publications",
    "short_history",
    "short_publish",
    "short_subscribe",
    "stale_events",
    "streams",
    "tls_failed_closed",
    "tls_handshakes_1_2_full",
    "tls_handshakes_1_3_full",
    "tls_truncated",
    "tokens_checked",
    "tokens_known",
    "writes_blocked",
];

fn play(seed: u64) -> Result<Report, String> {
    catch_unwind(AssertUnwindSafe(|| Run::of(seed))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text
            .or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()))
            .unwrap_or_default())
    })
}

#[expect(clippy::disallowed_methods, reason = "how a run is replayed")]
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str) -> Option<u64> {
    setting(name).map(|value| value.parse().expect("a number"))
}

/// The seeds that failed once.
fn known() -> impl Iterator<Item = u64> {
    let lines = include_str!("../seeds.txt").lines();
    lines.filter_map(|line| line.split('#').next()?.trim().parse().ok())
}

/// A line for each known and fixed seed: the seed, its trace, its steps, and a summary to read.
/// Counters are not in it, so that their names and number may change.
fn traces() -> String {
    let seeds: Vec<u64> = known().chain(1..=FIXED_SEEDS).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut lines = BTreeMap::new();
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let line = match play(*seed) {
                Ok(Report { trace, steps, summary, .. }) => {
                    format!("{seed} {trace:016x} {steps} {summary}\n")
                }
                Err(fault) => format!("{seed} failed 0 {}\n", fault.replace('\n', " ")),
            };
            lines.insert(*seed, line);
        }
        lines
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let lines: BTreeMap<_, _> = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    lines.into_values().collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "seeds that no run had before, and an end to all")]
fn seeds() {
    if let Some(seed) = number("ROOST_SIM_SEED") {
        client::TALKATIVE.store(true, Ordering::Relaxed);
        println!("seed {seed}: ROOST_SIM_SEED={seed} cargo test --test sim");
        if let Some(path) = setting("ROOST_SIM_TRACE") {
            client::TALKATIVE.store(false, Ordering::Relaxed);
            fs::write(path, Run::written(seed).1).unwrap();
            return;
        }
        let report = play(seed).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        println!("{report:#?}");
        return;
    }
    if let Some(path) = setting("ROOST_SIM_TRACES") {
        fs::write(path, traces()).unwrap();
        return;
    }
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let first = nanos as u64 % 1_000_000_000 * 1_000;
    let random = number("ROOST_SIM_RUNS").unwrap_or(RANDOM_SEEDS);
    println!("seeds 1 to {FIXED_SEEDS} and {first} to {}", first + random);
    println!("ROOST_SIM_SEED={first} cargo test --test sim replays one");
    let fixed = if number("ROOST_SIM_RUNS").is_some() { 0 } else { FIXED_SEEDS };
    let begun = Instant::now();
    let mut failed = Vec::new();
    let mut runs = 0;
    let mut is_whole = fixed > 0;
    let mut met = BTreeMap::new();
    let rare = RARE_SEEDS.into_iter().filter(|_| fixed > 0);
    for seed in known().chain(first..first + random).chain(1..=fixed).chain(rare) {
        if begun.elapsed().as_secs() > SECONDS_MAX && number("ROOST_SIM_RUNS").is_none() {
            println!("time is over before seed {seed}");
            is_whole = false;
            break;
        }
        runs += 1;
        match play(seed) {
            Ok(report) => {
                for (name, value) in report.figures {
                    *met.entry(name).or_insert(0) += value;
                }
            }
            Err(fault) => {
                println!(
                    "seed {seed} failed (ROOST_SIM_SEED={seed} cargo test --test sim): {fault}"
                );
                failed.push(seed);
            }
        }
    }
    // A simulation in which nothing happens finds nothing.
    let unmet: Vec<_> = MET.iter().filter(|name| met.get(*name).is_none_or(|n| *n == 0)).collect();
    assert!(!is_whole || unmet.is_empty(), "the fixed seeds never met {unmet:?}");
    println!("{runs} runs in {:?}, which met: {met:?}", begun.elapsed());
    assert!(failed.is_empty(), "seeds {failed:?}: add them to tests/seeds.txt");
}

/// The check of orders can fail: a session that is closed by an order for another one is noticed.
#[test]
fn an_order_that_closes_another_session_is_noticed() {
    let fault = |seed| catch_unwind(|| Run::misdirected(seed)).ok()?.err();
    let mut faults = (0..FIXED_SEEDS).filter_map(fault);
    assert!(faults.any(|fault| fault.contains("meant for another session")));
}

/// Seeds of runs in which the node is replaced.
const REPLACED_SEEDS: u64 = 15;

/// Seeds of them that failed once.
const REPLACED_KNOWN: [u64; 2] = [123, 205];

/// Seconds after which no new one is begun.
const REPLACED_SECONDS_MAX: u64 = 40;

fn play_replaced(seed: u64) -> Result<Report, String> {
    catch_unwind(AssertUnwindSafe(|| Run::replaced(seed))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text
            .or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()))
            .unwrap_or_default())
    })
}

/// Each shard is written to bytes in the middle of a run, several times, and goes on from them in a new
/// node: the checker sees no difference. `ROOST_SIM_REPLACED=n` replays one seed.
#[test]
#[expect(clippy::disallowed_methods, reason = "an end to all")]
fn a_node_that_is_replaced_loses_nothing() {
    if let Some(seed) = number("ROOST_SIM_REPLACED") {
        client::TALKATIVE.store(true, Ordering::Relaxed);
        let report = play_replaced(seed).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        println!("{report:#?}");
        return;
    }
    let begun = Instant::now();
    let (mut met, mut failed) = (BTreeMap::new(), Vec::new());
    let seeds = 1..=number("ROOST_SIM_REPLACED_RUNS").unwrap_or(REPLACED_SEEDS);
    for seed in REPLACED_KNOWN.into_iter().chain(seeds) {
        if begun.elapsed().as_secs() > REPLACED_SECONDS_MAX
            && number("ROOST_SIM_REPLACED_RUNS").is_none()
        {
            break;
        }
        match play_replaced(seed) {
            Ok(report) => report
                .figures
                .into_iter()
                .for_each(|(name, value)| *met.entry(name).or_insert(0) += value),
            Err(fault) => {
                println!("seed {seed} failed (ROOST_SIM_REPLACED={seed}): {fault}");
                failed.push(seed);
            }
        }
    }
    println!("{:?}: {met:?}", begun.elapsed());
    assert!(failed.is_empty(), "seeds {failed:?}");
    let [all, copied] = ["replacements", "copied"].map(|name| met.get(name).copied().unwrap_or(0));
    assert!(0 < copied && copied < all, "{copied} of {all} were copied while they ran");
}

/// Reads one field of the image after the other as if it had been forgotten, and prints which of them `n` runs
/// notice: `ROOST_SIM_FORGET=n`, an experiment that takes minutes.
#[test]
fn forgotten_fields() {
    let Some(runs) = number("ROOST_SIM_FORGET") else { return };
    let fields: BTreeSet<&str> =
        (1..=runs).flat_map(|seed| Run::forgetting(seed, "").fields).collect();
    let fields: Vec<&str> = fields.into_iter().collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(field) = fields.get(next.fetch_add(1, Ordering::Relaxed)) {
            let noticed = (1..=runs).find_map(|seed| {
                let fault = Run::forgetting(seed, field).result.err()?;
                Some(format!("seed {seed}: {fault}"))
            });
            let text = noticed.unwrap_or_else(|| "not noticed".to_owned()).replace('\n', " ");
            println!("{field}  {}", text.chars().take(120).collect::<String>());
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn a_seed_is_one_run() {
    for seed in [1, 2, 3, 1_000_000] {
        assert_eq!(play(seed), play(seed), "seed {seed}");
    }
}
