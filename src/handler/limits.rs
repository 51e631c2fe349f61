//! How long a wait for a process may take.

use std::io::PipeReader;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most time a process has between TERM and KILL once the worker was told to stop at once.
pub(super) const ABORT_GRACE: Duration = Duration::from_secs(5);

/// What ends a wait if the process does nothing.
#[derive(Clone)]
pub(super) struct Limits {
    /// None: no deadline.
    pub(super) deadline: Option<Instant>,
    /// Readable once the worker was told to stop at once. None when that is known: it would end every further wait.
    pub(super) abort: Option<Arc<PipeReader>>,
}

/// Now plus `duration`; or some 100 years ahead, if that is more than the clock can count.
pub(super) fn from_now(duration: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(duration).unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX)))
}

impl Limits {
    pub(super) fn deadline_passed(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// The same limits with this deadline, unless their own is earlier.
    pub(super) fn by(&self, deadline: Instant) -> Self {
        Self {
            deadline: Some(self.deadline.map_or(deadline, |own| own.min(deadline))),
            abort: self.abort.clone(),
        }
    }

    /// To be called when the abort was seen: leaves at most `rest`, and lets the abort end no further wait.
    pub(super) fn shorten(&mut self, rest: Duration) {
        *self = Self { abort: None, ..self.by(Instant::now() + rest) };
    }
}
