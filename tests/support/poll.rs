//! Waiting: until something holds, with a generous deadline, never for a fixed time.

use std::time::{Duration, Instant};

/// How long a test waits for anything. Far above what a slow machine needs: it is there to end a hang.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// The pause between two polls.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until there is something to return, or fails after [`DEADLINE`], naming what did not come.
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(DEADLINE, what, look)
}

/// Like [`until`], with a deadline of the caller's own.
pub(crate) fn within<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}
