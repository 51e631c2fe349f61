//! A republisher whose copies the test keeps or refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::super::planned_copy::PlannedCopy;
use super::{CopyJob, Republisher};
use crate::broker::testing::LONG;
use crate::settlement::{CopyResult, WaitsFor};

const SHORT: Duration = Duration::from_millis(50);

/// What worker threads ask for.
pub(in super::super) struct Copies {
    jobs: Receiver<CopyJob>,
    blocked: Arc<AtomicBool>,
}

/// A copy that was asked for.
pub(in super::super) struct Asked(CopyJob);

impl Republisher {
    pub(in super::super) fn scripted() -> (Self, Copies) {
        let (sender, jobs) = crossbeam_channel::unbounded();
        let blocked = Arc::<AtomicBool>::default();
        (Self { jobs: sender, blocked: Arc::clone(&blocked) }, Copies { jobs, blocked })
    }
}

impl Copies {
    /// The next copy that is asked for.
    pub(in super::super) fn next(&self) -> Asked {
        Asked(self.jobs.recv_timeout(LONG).expect("a copy is asked for"))
    }

    pub(in super::super) fn none(&self) {
        assert!(self.jobs.recv_timeout(SHORT).is_err(), "no copy is asked for");
    }

    /// The broker takes no copies.
    pub(in super::super) fn block(&self) {
        self.blocked.store(true, Ordering::SeqCst);
    }
}

impl Asked {
    pub(in super::super) fn copy(&self) -> &PlannedCopy {
        &self.0.copy
    }

    pub(in super::super) fn answer(self, result: CopyResult) {
        self.0.requester.answer(result);
    }

    pub(in super::super) fn kept(self) {
        self.answer(CopyResult::Kept);
    }

    pub(in super::super) fn waits_for(&self, what: WaitsFor) {
        self.0.requester.set_waits_for(what);
    }

    pub(in super::super) fn is_withdrawn(&self) -> bool {
        self.0.requester.is_gone()
    }
}
