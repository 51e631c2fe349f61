//! `make chaos`: senders and workers at work while workers, connections and nodes are killed, frozen and cut off; and
//! then every task is accounted for.
//!
//! Each setup is a round, whose history is recorded outside of taskq: what `taskq send` printed, and what handlers
//! wrote. Settings come from the environment: CHAOS_SECONDS, CHAOS_SEED, CHAOS_ON (single, cluster, hostile, both for
//! the first two, all), CHAOS_LIMIT (the delivery limit of quorum queues; 0 for none), CHAOS_HANDLER (command,
//! recycling, mixed).

// A round that cannot go on has failed: it may say so by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

// Shared with the tests, which use more of it.
#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;

mod brokers;
mod checker;
mod child;
mod drain;
mod inject;
mod recorder;
mod round;
mod sampler;
mod senders;
mod shared;
mod workers;

use brokers::Setup;
use shared::Settings;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DEFAULT_SECONDS: u64 = 300;
/// Far below RabbitMQ 4's default of 20.
const DEFAULT_LIMIT: u32 = 3;

/// An environment variable, or its default.
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
    let on = setting("CHAOS_ON", || "all".to_owned());
    let limit = setting("CHAOS_LIMIT", || DEFAULT_LIMIT);
    let handler = setting("CHAOS_HANDLER", || workers::Handler::Mixed);
    let setups: &[Setup] = match on.as_str() {
        "single" => &[Setup::Single],
        "cluster" => &[Setup::Cluster],
        "hostile" => &[Setup::Hostile],
        "both" => &[Setup::Single, Setup::Cluster],
        "all" => &[Setup::Single, Setup::Cluster, Setup::Hostile],
        other => panic!("CHAOS_ON is single, cluster, hostile, both or all, not {other:?}"),
    };
    let other_settings = format!("CHAOS_LIMIT={limit} CHAOS_HANDLER={}", handler.name());
    println!("CHAOS_SEED={seed} CHAOS_SECONDS={seconds} CHAOS_ON={on} {other_settings}");
    let abandoned = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&abandoned)).unwrap();
    }
    let settings = Settings { seed, limit: (limit > 0).then_some(limit), handler };
    let weights: u32 = setups.iter().map(|setup| setup.weight()).sum();
    for setup in setups {
        let time = Duration::from_secs(seconds) * setup.weight() / weights;
        let passed = round::run(*setup, time, settings, &abandoned);
        if abandoned.load(Ordering::Relaxed) {
            println!("interrupted");
            return ExitCode::from(130);
        }
        if !passed {
            println!(
                "To do the same again: make chaos CHAOS_SEED={seed} CHAOS_SECONDS={} CHAOS_ON={} {other_settings}",
                time.as_secs(),
                setup.name()
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
