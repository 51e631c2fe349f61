//! `make chaos`: senders and workers at work while workers, connections and nodes are killed, frozen and cut off; and
//! then the books are balanced, to the task.
//!
//! The books are kept outside of taskq: what `taskq send` printed, and what handlers wrote. Settings come from the
//! environment: CHAOS_SECONDS, CHAOS_SEED, CHAOS_ON (single, cluster, both).

// A run that cannot go on has failed: it may say so by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

// Shared with the tests, which use more of it.
#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;

mod books;
mod brokers;
mod faults;
mod ledger;
mod run;
mod seat;
mod senders;
mod settle;
mod storm;
mod watch;
mod workers;

use brokers::Ground;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DEFAULT_SECONDS: u64 = 300;

/// An environment variable, or what it is without one.
fn setting<T: std::str::FromStr>(name: &str, default: impl FnOnce() -> T) -> T {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name} cannot be {text:?}")),
        _ => default(),
    }
}

fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    u64::try_from(now % 1_000_000_007).unwrap()
}

fn main() -> ExitCode {
    let seed = setting("CHAOS_SEED", new_seed);
    let seconds = setting("CHAOS_SECONDS", || DEFAULT_SECONDS);
    let on = setting("CHAOS_ON", || "both".to_owned());
    let grounds: &[Ground] = match on.as_str() {
        "single" => &[Ground::Single],
        "cluster" => &[Ground::Cluster],
        "both" => &[Ground::Single, Ground::Cluster],
        other => panic!("CHAOS_ON is single, cluster or both, not {other:?}"),
    };
    println!("CHAOS_SEED={seed} CHAOS_SECONDS={seconds} CHAOS_ON={on}");
    let abandoned = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&abandoned)).unwrap();
    }
    let time = Duration::from_secs(seconds) / u32::try_from(grounds.len()).unwrap();
    for ground in grounds {
        let survived = storm::weather(*ground, time, seed, &abandoned);
        if abandoned.load(Ordering::Relaxed) {
            println!("interrupted");
            return ExitCode::from(130);
        }
        if !survived {
            println!(
                "To do the same again: CHAOS_SEED={seed} CHAOS_SECONDS={} CHAOS_ON={} make chaos",
                time.as_secs(),
                ground.name()
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
