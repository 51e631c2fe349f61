//! Samples the memory, descriptors and threads of workers: a worker that stays up must not leak.

use super::checker::resources::{Resources, Sample};
use super::shared::{AbandonOnPanic, Shared};
use super::workers::WorkerSlot;
use std::io::Write as _;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(2);

/// Samples every two seconds until the workers are told to stop.
pub(crate) fn sample(shared: &Shared, slots: &[WorkerSlot]) -> Resources {
    let _guard = AbandonOnPanic(shared);
    let (began, mut resources) = (Instant::now(), Resources::default());
    let mut log = shared.recorder.log("", "resources");
    while !shared.is_stopping() {
        for slot in slots {
            let name = slot.name();
            let Some(found) = slot.child.pid().and_then(|pid| read_sample(pid, began.elapsed())) else {
                continue;
            };
            resources.peak_kib = resources.peak_kib.max(found.kib);
            let _ = writeln!(log, "{name} {found:?}");
            if slot.number == 0 {
                resources.long_lived.push(found);
            }
        }
        shared.sleep(EVERY, Shared::is_stopping);
    }
    resources
}

fn read_sample(pid: u32, after: Duration) -> Option<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some(Sample { after, kib: field("VmRSS:")?, descriptors, threads: field("Threads:")? })
}
