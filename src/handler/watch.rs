//! Learns that a child has exited, without reaping it.
//!
//! The child stays a zombie until whoever watches it has reaped it, so its process group can still be signalled
//! without any chance that the number belongs to somebody else by then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::poll::readable;
use super::session::Sessions;
use super::wake::Waker;

const RUNNING: u8 = 0;
const EXITED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// How exits are learned of on this system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// A descriptor for the child that is polled beside its pipes: nothing has to be woken but who waits. Linux 5.3.
    Descriptor,
    /// A thread for each child, blocked in `waitid(WNOWAIT)`, that wakes the worker thread: everywhere else, and in sandboxes
    /// that know no such descriptors.
    Thread,
}

/// A child that is watched.
pub(super) enum Watched {
    Descriptor(OwnedFd),
    Thread(Arc<AtomicU8>),
}

impl Means {
    /// What works here.
    pub(super) fn best() -> Self {
        if descriptor(Pid::this()).is_ok() { Self::Descriptor } else { Self::Thread }
    }

    /// Watches `child`. Nobody may reap it before it has exited.
    ///
    /// # Errors
    /// When the system has no descriptor or thread left.
    pub(super) fn watch(self, child: Pid, waker: Waker, sessions: Arc<Sessions>) -> io::Result<Watched> {
        if self == Self::Descriptor {
            return descriptor(child).map(Watched::Descriptor);
        }
        let state = Arc::new(AtomicU8::new(RUNNING));
        wait_on_a_thread(child, Arc::clone(&state), sessions, Some(waker))?;
        Ok(Watched::Thread(state))
    }
}

impl Watched {
    /// Readable once the child has exited. None where a thread wakes the caller instead.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Descriptor(fd) => Some(fd.as_fd()),
            Self::Thread(_) => None,
        }
    }

    /// The watching thread has seen the exit (and wakes the caller).
    pub(super) fn thread_saw_exit(&self) -> bool {
        matches!(self, Self::Thread(state) if state.load(Ordering::Acquire) == EXITED)
    }

    /// The child has exited and waits to be reaped.
    pub(super) fn has_exited(&self) -> bool {
        match self {
            Self::Descriptor(fd) => readable(Some(fd)).unwrap_or(false),
            Self::Thread(_) => self.thread_saw_exit(),
        }
    }

    /// Leaves the reaping of `child` to a thread, which takes it from `sessions` too. False where the child has
    /// exited before: then it is the caller's to reap.
    pub(super) fn give_up(&self, child: Pid, sessions: &Arc<Sessions>) -> bool {
        match self {
            Self::Descriptor(_) if self.has_exited() => false,
            Self::Descriptor(_) => {
                let state = Arc::new(AtomicU8::new(GIVEN_UP));
                if let Err(error) = wait_on_a_thread(child, state, Arc::clone(sessions), None) {
                    log::warn!("a handler that was killed stays a zombie: cannot start a thread: {error}");
                }
                true
            }
            Self::Thread(state) => state.swap(GIVEN_UP, Ordering::AcqRel) != EXITED,
        }
    }
}

#[cfg(target_os = "linux")]
fn descriptor(process: Pid) -> io::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, pidfd_open};
    let pid = rustix::process::Pid::from_raw(process.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

#[cfg(not(target_os = "linux"))]
fn descriptor(_: Pid) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Reaps the child only if it was given up by the time it exits.
fn wait_on_a_thread(
    child: Pid,
    state: Arc<AtomicU8>,
    sessions: Arc<Sessions>,
    waker: Option<Waker>,
) -> io::Result<()> {
    thread::Builder::new().name("reaper".into()).spawn(move || {
        while waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        if state.swap(EXITED, Ordering::AcqRel) == GIVEN_UP {
            let _ = sessions.reap(child);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::path::Path;

    use super::super::process::{Ends, Limits, Process, Slot, from_now};
    use super::super::relay::Relay;
    use super::super::spawn::Launch;
    use super::super::testing::*;
    use super::*;

    fn start(slot: &Slot, script: &str) -> (Process<Relay>, Captured) {
        let (spec, out, _) = captured(sh(script));
        let (stdout, stderr) = (spec.output().stdout(slot.waker()), spec.output().stderr(slot.waker()));
        let arguments = ["sh", "-c", script].map(|argument| CString::new(argument).unwrap());
        let launch = Launch { path: Path::new("/bin/sh"), arguments: &arguments, environment: &[] };
        (Process::start(slot, &launch, Ends::AreNoNews, stdout, stderr).unwrap(), out)
    }

    fn slots() -> [Slot; 2] {
        [Means::Descriptor, Means::Thread]
            .map(|means| Slot::watching_by(means, Arc::default(), Arc::default()).unwrap())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn here_there_are_descriptors() {
        assert_eq!(Means::best(), Means::Descriptor);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn either_means_tells_of_the_exit_once_and_leaves_the_reaping() {
        for mut slot in slots() {
            let (mut process, out) = start(&slot, "echo $$; exit 3");
            let limits = Limits { deadline: Some(from_now(LONG)), abort: None };
            while !process.wait(&mut slot, &mut &[][..], &limits).unwrap().exited {
                assert!(!limits.passed());
            }
            assert!(process.exited());
            // Further waits have nothing to tell that would end them, but for a wake-up that is late.
            let soon = Limits { deadline: Some(from_now(SHORT)), abort: None };
            let mut waits = (0..3).map(|_| process.wait(&mut slot, &mut &[][..], &soon).unwrap());
            assert!(waits.any(|seen| seen.late));
            assert_eq!(process.finish(&mut slot, limits).unwrap().code(), Some(3));
            assert!(is_gone(out.pid()));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn either_means_reaps_what_is_given_up() {
        for mut slot in slots() {
            let (mut process, out) = start(&slot, "echo $$; exec sleep 600");
            let limits = Limits { deadline: Some(from_now(LONG)), abort: None };
            while !out.text().contains('\n') {
                // What it wrote is on its way by then, on another thread.
                process.wait(&mut slot, &mut &[][..], &limits.by(from_now(SHORT))).unwrap();
                assert!(!limits.passed());
            }
            assert!(!process.exited());
            drop(process);
            wait_until_gone(out.pid());
        }
    }
}
