//! Learns that a child has exited, without reaping it.
//!
//! A thread per worker thread blocks in `waitid(WNOWAIT)`: the child stays a zombie, so its process group can still
//! be signalled without any chance that the number belongs to somebody else by then. Whoever watched the child reaps
//! it; only one that was given up is left to this thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use crossbeam_channel::{Sender, bounded};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;

use super::group::Groups;
use super::wake::Ringer;

/// A worker thread has one child at a time; a second place is for the one that follows a child given up.
const WATCHES: usize = 1;

const RUNNING: u8 = 0;
const EXITED: u8 = 1;
const GIVEN_UP: u8 = 2;

struct Watch {
    pid: Pid,
    state: Arc<AtomicU8>,
    ringer: Ringer,
    groups: Arc<Groups>,
}

/// Waits for one worker thread's children, one after the other.
pub(super) struct Reaper {
    watches: Sender<Watch>,
}

/// A child that is waited for.
pub(super) struct Watched(Arc<AtomicU8>);

impl Reaper {
    pub(super) fn start() -> io::Result<Self> {
        let (watches, jobs) = bounded::<Watch>(WATCHES);
        thread::Builder::new().name("reaper".into()).spawn(move || {
            for Watch { pid, state, ringer, groups } in jobs {
                while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {
                }
                if state.swap(EXITED, Ordering::AcqRel) == GIVEN_UP {
                    groups.remove(pid);
                    while waitpid(pid, None) == Err(Errno::EINTR) {}
                }
                ringer.ring();
            }
        })?;
        Ok(Self { watches })
    }

    /// Rings the bell when `pid` has exited. Nobody else may reap it before that.
    pub(super) fn watch(&self, pid: Pid, ringer: Ringer, groups: Arc<Groups>) -> Watched {
        let state = Arc::new(AtomicU8::new(RUNNING));
        // The thread lives as long as `self.watches`.
        let _ = self.watches.send(Watch { pid, state: Arc::clone(&state), ringer, groups });
        Watched(state)
    }
}

impl Watched {
    /// The child has exited and waits to be reaped.
    pub(super) fn exited(&self) -> bool {
        self.0.load(Ordering::Acquire) == EXITED
    }

    /// Leaves the reaping to the thread. False where the child has exited before: then it is the caller's to reap.
    pub(super) fn give_up(&self) -> bool {
        self.0.swap(GIVEN_UP, Ordering::AcqRel) != EXITED
    }
}
