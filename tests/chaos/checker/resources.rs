//! What a worker uses over time: one that stays up must not leak.

use std::time::Duration;

/// What one process used at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) after: Duration,
    pub(crate) kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: u64,
}

/// The samples of the worker into which no fault is injected, and the peak of all workers.
#[derive(Default)]
pub(crate) struct Resources {
    pub(crate) long_lived: Vec<Sample>,
    /// The most that any worker used.
    pub(crate) peak_kib: u64,
}

/// How far a process may grow between the first and the last third of its life.
const GROWTH_KIB: u64 = 2 * 1024;
/// The descriptors in use depend on the load: a worker can be idle in the first third of a short round and busy in the
/// last one. A leak at every task or fault soon exceeds this.
const DESCRIPTORS_OF_A_TASK: usize = 5;
const DESCRIPTORS_OF_A_CONNECTION: usize = 7;

impl Resources {
    /// The medians of the first and the last third of the samples.
    pub(crate) fn ends(&self) -> Option<(Sample, Sample)> {
        let third = self.long_lived.len() / 3;
        let (first, last) = (self.long_lived.get(..third)?, self.long_lived.get(2 * third..)?);
        Some((median(first)?, median(last)?))
    }

    /// A violation if the worker has grown. It runs this many tasks at a time and has two connections, one of them for
    /// copies.
    pub(crate) fn has_grown(&self, threads: usize) -> Option<String> {
        let (first, last) = self.ends()?;
        let load = threads * DESCRIPTORS_OF_A_TASK + DESCRIPTORS_OF_A_CONNECTION;
        let grown = last.kib > first.kib + first.kib / 4 + GROWTH_KIB
            || last.descriptors > first.descriptors + load
            || last.threads > first.threads + first.threads / 2;
        grown.then(|| format!("the worker in slot 0 has grown: from {first:?} to {last:?}"))
    }
}

/// The median of each value by itself, so that one outlier does not count.
fn median(samples: &[Sample]) -> Option<Sample> {
    let middle = |mut values: Vec<u64>| {
        values.sort_unstable();
        values.get(values.len() / 2).copied()
    };
    Some(Sample {
        after: samples.last()?.after,
        kib: middle(samples.iter().map(|sample| sample.kib).collect())?,
        descriptors: usize::try_from(middle(samples.iter().map(|s| s.descriptors as u64).collect())?).ok()?,
        threads: middle(samples.iter().map(|sample| sample.threads).collect())?,
    })
}
