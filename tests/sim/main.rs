//! Whole shards on a simulated network, one seed for each run: partial reads and writes, full
//! sockets, resets, delays, shards that are not run for a while; then everything heals, and there
//! has to be progress; then all go, and nothing may be left.
//!
//! `ROOST_SIM_SEED=n cargo test --test sim` replays one run, `ROOST_SIM_RUNS=n` makes it n random
//! ones. Seeds that failed once are in `tests/seeds.txt` and are run first.

mod checker;
mod client;
mod orders;
mod plan;
mod presence;
mod run;
mod wire;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use self::run::{Report, Run};

/// Seeds that every test run has.
const FIXED_SEEDS: u64 = 150;

/// Random ones on top.
const RANDOM_SEEDS: u64 = 5;

/// No new seed is begun after so many seconds.
const SECONDS_MAX: u64 = 60;

/// What the fixed seeds must meet together.
const MET: [&str; 47] = [
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
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
#[expect(clippy::disallowed_methods, reason = "seeds that no run had before, and an end to all")]
fn seeds() {
    if let Some(seed) = number("ROOST_SIM_SEED") {
        client::TALKATIVE.store(true, Ordering::Relaxed);
        println!("seed {seed}: ROOST_SIM_SEED={seed} cargo test --test sim");
        let report = play(seed).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        println!("{report:#?}");
        return;
    }
    let known = include_str!("../seeds.txt").lines();
    let known = known.filter_map(|line| line.split('#').next()?.trim().parse().ok());
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let first = nanos as u64 % 1_000_000_000 * 1_000;
    let random = number("ROOST_SIM_RUNS").unwrap_or(RANDOM_SEEDS);
    println!("seeds 1 to {FIXED_SEEDS} and {first} to {}", first + random);
    println!("ROOST_SIM_SEED={first} cargo test --test sim replays one");
    let fixed = if number("ROOST_SIM_RUNS").is_some() { 0 } else { FIXED_SEEDS };
    let begun = Instant::now();
    let mut failed = Vec::new();
    let mut runs = 0;
    let mut met = BTreeMap::new();
    for seed in known.chain(first..first + random).chain(1..=fixed) {
        if begun.elapsed().as_secs() > SECONDS_MAX && number("ROOST_SIM_RUNS").is_none() {
            println!("time is over before seed {seed}");
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
    assert!(runs < FIXED_SEEDS || unmet.is_empty(), "the fixed seeds never met {unmet:?}");
    println!("{runs} runs in {:?}, which met: {met:?}", begun.elapsed());
    assert!(failed.is_empty(), "seeds {failed:?}: add them to tests/seeds.txt");
}

#[test]
fn a_seed_is_one_run() {
    for seed in [1, 2, 3, 1_000_000] {
        assert_eq!(play(seed), play(seed), "seed {seed}");
    }
}
