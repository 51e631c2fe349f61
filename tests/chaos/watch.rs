//! Memory, descriptors and threads of workers over time: a worker that stays up must not grow.

use super::books::memory::{Memory, Sample};
use super::run::{Alarm, Shared};
use super::workers::Place;
use std::io::Write as _;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(2);

/// Looks every two seconds until the workers are told to stop.
pub(crate) fn sample(shared: &Shared, places: &[Place]) -> Memory {
    let _alarm = Alarm(shared);
    let (began, mut memory) = (Instant::now(), Memory::default());
    let mut log = shared.ledger.log("", "memory");
    while !shared.is_closing() {
        for place in places {
            let name = place.name();
            let Some(found) = place.seat.pid().and_then(|pid| look(pid, began.elapsed())) else { continue };
            memory.peak_kib = memory.peak_kib.max(found.kib);
            let _ = writeln!(log, "{name} {found:?}");
            if place.number == 0 {
                memory.veteran.push(found);
            }
        }
        shared.rest(EVERY, Shared::is_closing);
    }
    memory
}

fn look(pid: u32, after: Duration) -> Option<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some(Sample { after, kib: field("VmRSS:")?, descriptors, threads: field("Threads:")? })
}
