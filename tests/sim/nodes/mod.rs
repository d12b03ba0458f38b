//! Several nodes that share a Redis, in one thread and from one seed: whole shards with real client connections,
//! the requests of `src/cluster`, its scripts, and a Redis that does everything that one can do to a node.
//!
//! ```text
//!  clients --WebSocket--> shards of node 0..3 --commands--> carrier (one a node) --requests--> Redis
//! ```
//! [`truth`] has the rules. `ROOST_NODES_SEED=n cargo test --test sim several_nodes` replays one run,
//! `ROOST_NODES_RUNS=n` makes it n random ones. Seeds that failed once are in `tests/nodes_seeds.txt`.

mod broker;
mod carrier;
mod client;
mod keyspace;
mod node;
mod plan;
mod redis;
mod replace;
mod run;
mod truth;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Instant, SystemTime};

use self::plan::{CHANNELS, Fault, NodesPlan, Sabotage};
use self::run::{Run, fault_name};
use self::truth::Rule;
use crate::number;
use roost::base::rng::Rng;

/// Seeds that every test run has.
const FIXED_SEEDS: u64 = 40;

/// Random ones on top.
const RANDOM_SEEDS: u64 = 4;

/// No new seed is begun after so many seconds.
const SECONDS_MAX: u64 = 25;

/// Events that the fixed seeds together must contain, beside each fault.
const MET: [&str; 19] = [
    "api_failed",
    "broker_duplicates",
    "broker_gaps_epoch",
    "broker_gaps_rewind",
    "broker_gaps_trimmed",
    "broker_repaired",
    "closed_by_api",
    "commands_paused",
    "connected",
    "cut",
    "failovers",
    "interrupted",
    "io_timeouts",
    "lost",
    "queue_full",
    "recovered",
    "temporary_errors",
    "told",
    "unrecovered",
];

type Met = BTreeMap<&'static str, u64>;

fn play(seed: u64, log: bool) -> Result<Met, String> {
    play_by(Run::new, seed, log)
}

fn play_by(
    make: fn(u64, Option<Sabotage>, bool) -> Run,
    seed: u64,
    log: bool,
) -> Result<Met, String> {
    let run = || {
        let mut run = make(seed, None, log);
        run.play().inspect_err(|_| {
            if log {
                run.show()
            }
        })
    };
    let result = catch_unwind(AssertUnwindSafe(run));
    match result {
        Ok(result) => result.map_err(|(rule, text)| format!("{rule:?}: {text}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|of| (*of).to_owned()));
            Err(text.unwrap_or_default())
        }
    }
}

/// The seeds that failed once.
fn known() -> impl Iterator<Item = u64> {
    let lines = include_str!("../../nodes_seeds.txt").lines();
    lines.filter_map(|line| line.split('#').next()?.trim().parse().ok())
}

/// The first rule that a run with a sabotage breaks.
fn broken_by(sabotage: Sabotage, seed: u64) -> Option<Rule> {
    let play = || Run::new(seed, Some(sabotage), false).play().err().map(|(rule, _)| rule);
    catch_unwind(AssertUnwindSafe(play)).unwrap_or_default()
}

#[test]
fn each_rule_of_several_nodes_can_fail() {
    let pairs = [
        (Sabotage::DropPublication, Rule::Chain),
        (Sabotage::RepeatPublication, Rule::Twice),
        (Sabotage::FalseRecovery, Rule::Recovery),
        (Sabotage::DropLastPublications, Rule::End),
        (Sabotage::ForgetPublication, Rule::Stored),
        (Sabotage::StoreTwice, Rule::Stored),
        (Sabotage::CloseConnection, Rule::Connection),
        (Sabotage::PermanentError, Rule::Temporary),
        (Sabotage::DropReply, Rule::Answer),
        (Sabotage::DropPresence, Rule::Presence),
        (Sabotage::RepeatJoin, Rule::Events),
        (Sabotage::ReadTwice, Rule::Reads),
        (Sabotage::DropUnlisten, Rule::Rest),
        (Sabotage::ForgetPosition, Rule::Needless),
    ];
    for (sabotage, rule) in pairs {
        // The first of them is a run without faults.
        let broken: Vec<_> = [8, 1, 3, 4, 6, 7, 16, 24]
            .into_iter()
            .map_while({
                let mut is_found = false;
                move |seed| {
                    let broken = (!is_found).then(|| broken_by(sabotage, seed))?;
                    is_found = broken == Some(rule);
                    Some(broken)
                }
            })
            .collect();
        assert_eq!(broken.last(), Some(&Some(rule)), "{sabotage:?} breaks {broken:?}");
    }
}

/// Channels with history, of two nodes.
const LINES: u64 = 2 * (CHANNELS.len() as u64 - 1);

#[test]
fn a_lost_connection_costs_one_read_of_each_channel_and_no_client_notices() {
    let mut run = Run::with(1, NodesPlan::calm(30), Rng::new(1), false);
    let (reads, told) = run.cost_of_cut().unwrap();
    assert!(reads > 0 && reads <= LINES && told == 0, "{reads} reads, {told} were told");
}

#[test]
fn clients_that_return_at_once_cost_one_read_of_each_channel() {
    let mut run = Run::with(1, NodesPlan::calm(60), Rng::new(1), false);
    let (reads, told) = run.cost_of_return().unwrap();
    // And one more for those who have no position yet, and begin at the newest one.
    assert!(reads > 0 && reads <= 2 * LINES && told == 0, "{reads} reads, {told} were told");
}

#[test]
fn a_seed_of_several_nodes_is_one_run() {
    for seed in [1, 8] {
        assert_eq!(play(seed, false), play(seed, true), "seed {seed}");
    }
}

/// Seeds of runs in which nodes are replaced.
const REPLACED_SEEDS: u64 = 16;

/// Nodes are replaced by other processes all the time, also while something else goes wrong: nothing is lost, comes
/// twice or is out of order. `ROOST_NODES_REPLACED=n` replays one seed, `ROOST_NODES_REPLACED_RUNS=n` plays so many.
#[test]
#[expect(clippy::disallowed_methods, reason = "an end to all")]
fn nodes_that_are_replaced_lose_nothing() {
    if let Some(seed) = number("ROOST_NODES_REPLACED") {
        let met = play_by(Run::replaced, seed, true);
        println!("{:#?}", met.unwrap_or_else(|fault| panic!("seed {seed}: {fault}")));
        return;
    }
    let begun = Instant::now();
    let runs = number("ROOST_NODES_REPLACED_RUNS");
    let (mut met, mut failed) = (Met::new(), Vec::new());
    for seed in 1..=runs.unwrap_or(REPLACED_SEEDS) {
        if begun.elapsed().as_secs() > SECONDS_MAX && runs.is_none() {
            println!("time is over before seed {seed}");
            break;
        }
        match play_by(Run::replaced, seed, false) {
            Ok(figures) => {
                figures.into_iter().for_each(|(name, value)| *met.entry(name).or_insert(0) += value)
            }
            Err(fault) => {
                let fault: String = fault.chars().take(3_000).collect();
                println!("seed {seed} failed (ROOST_NODES_REPLACED={seed}): {fault}");
                failed.push(seed);
            }
        }
    }
    println!("{:?}: {met:?}", begun.elapsed());
    assert!(failed.is_empty(), "seeds {failed:?}");
    let [replaced, not] = ["replaced", "not_replaced"].map(|name| met.get(name).copied());
    assert!(replaced > Some(0) && not > Some(0), "{replaced:?} were replaced, {not:?} not");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "seeds that no run had before, and an end to all")]
fn several_nodes() {
    if let Some(seed) = number("ROOST_NODES_SEED") {
        let met = play(seed, true).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        println!("{met:#?}");
        return;
    }
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let first = number("ROOST_NODES_FIRST").unwrap_or(nanos as u64 % 1_000_000_000 * 1_000);
    let runs = number("ROOST_NODES_RUNS");
    let random = first..first + runs.unwrap_or(RANDOM_SEEDS);
    let fixed = if runs.is_some() { 0 } else { FIXED_SEEDS };
    println!("seeds 1 to {fixed} and {random:?}; ROOST_NODES_SEED=n replays one");
    let begun = Instant::now();
    let (mut met, mut failed) = (Met::new(), Vec::new());
    let mut played = 0;
    for seed in known().chain(random).chain(1..=fixed) {
        if begun.elapsed().as_secs() > SECONDS_MAX && runs.is_none() {
            println!("time is over before seed {seed}");
            break;
        }
        played += 1;
        match play(seed, false) {
            Ok(figures) => {
                figures
                    .into_iter()
                    .for_each(|(name, value)| *met.entry(name).or_insert(0) += value);
            }
            Err(fault) => {
                let fault: String = fault.chars().take(3_000).collect();
                println!("seed {seed} failed (ROOST_NODES_SEED={seed}): {fault}");
                failed.push(seed);
            }
        }
    }
    met.retain(|_, value| *value > 0);
    let faults = Fault::ALL.map(fault_name);
    let unmet = MET.iter().chain(&faults).filter(|name| !met.contains_key(*name));
    let unmet: Vec<_> = if played < FIXED_SEEDS { vec![] } else { unmet.collect() };
    // A simulation in which nothing happens finds nothing.
    println!("not met: {unmet:?}");
    println!("{played} runs in {:?}, which met: {met:?}", begun.elapsed());
    assert!(failed.is_empty(), "seeds {failed:?}: add them to tests/nodes_seeds.txt");
}

/// Seeds of runs with NATS.
const NATS_SEEDS: u64 = 24;

/// Nodes share a NATS with JetStream, and in every second run they are replaced all the time. `ROOST_NODES_NATS=n`
/// replays one seed, `ROOST_NODES_NATS_RUNS=n` plays so many.
#[test]
#[expect(clippy::disallowed_methods, reason = "an end to all")]
fn several_nodes_on_nats() {
    if let Some(seed) = number("ROOST_NODES_NATS") {
        let met = play_by(Run::on_nats, seed, true);
        println!("{:#?}", met.unwrap_or_else(|fault| panic!("seed {seed}: {fault}")));
        return;
    }
    let begun = Instant::now();
    let runs = number("ROOST_NODES_NATS_RUNS");
    let (mut met, mut failed) = (Met::new(), Vec::new());
    let mut played = 0;
    for seed in 1..=runs.unwrap_or(NATS_SEEDS) {
        if begun.elapsed().as_secs() > SECONDS_MAX && runs.is_none() {
            println!("time is over before seed {seed}");
            break;
        }
        played = seed;
        match play_by(Run::on_nats, seed, false) {
            Ok(figures) => {
                figures.into_iter().for_each(|(name, value)| *met.entry(name).or_insert(0) += value)
            }
            Err(fault) => {
                let fault: String = fault.chars().take(3_000).collect();
                println!("seed {seed} failed (ROOST_NODES_NATS={seed}): {fault}");
                failed.push(seed);
            }
        }
    }
    println!("{played} runs in {:?}: {met:?}", begun.elapsed());
    assert!(failed.is_empty(), "seeds {failed:?}");
    let missed = ["replaced", "recovered", "broker_repaired", "interrupted", "acknowledged"];
    let missed: Vec<_> = missed.iter().filter(|name| !met.contains_key(*name)).collect();
    assert!(played < NATS_SEEDS || missed.is_empty(), "not met: {missed:?}");
}
