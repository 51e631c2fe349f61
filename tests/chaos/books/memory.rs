//! What a worker had over time: one that stays up must not grow.

use std::time::Duration;

/// What one process had at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) after: Duration,
    pub(crate) kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: u64,
}

/// The samples of a worker that nothing is done to.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) veteran: Vec<Sample>,
    /// The most that any worker had.
    pub(crate) peak_kib: u64,
}

/// How far a process may grow between the first and the last third of its life.
const GROWTH_KIB: u64 = 2 * 1024;
/// What it has open comes and goes with the load: half of a short run's first third can be idle, and half of the last
/// one busy. What leaks at every task or fault comes to more than that soon.
const DESCRIPTORS_OF_A_TASK: usize = 5;
const DESCRIPTORS_OF_A_CONNECTION: usize = 7;

impl Memory {
    /// The medians of a third of the samples: what the process had once it was warm, and in the end.
    pub(crate) fn ends(&self) -> Option<(Sample, Sample)> {
        let third = self.veteran.len() / 3;
        let (first, last) = (self.veteran.get(..third)?, self.veteran.get(2 * third..)?);
        Some((median(first)?, median(last)?))
    }

    /// What is wrong with a worker that runs so many tasks at a time and has two connections, one of them for copies.
    pub(crate) fn has_grown(&self, threads: usize) -> Option<String> {
        let (first, last) = self.ends()?;
        let load = threads * DESCRIPTORS_OF_A_TASK + DESCRIPTORS_OF_A_CONNECTION;
        let grown = last.kib > first.kib + first.kib / 4 + GROWTH_KIB
            || last.descriptors > first.descriptors + load
            || last.threads > first.threads + first.threads / 2;
        grown.then(|| format!("the worker in place 0 has grown: from {first:?} to {last:?}"))
    }
}

/// Each value by itself, so that one odd moment does not count.
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
