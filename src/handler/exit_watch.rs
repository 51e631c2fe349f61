//! Watches a child for its exit, without reaping it.
//!
//! The caller reaps the child when it needs its number no more. Until then the child stays a zombie, so the number
//! cannot pass to another process, and signals to its process group reach nobody else.

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
const ABANDONED: u8 = 2;

/// How an exit is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WatchMethod {
    /// By a descriptor of the child (a pidfd, Linux 5.3) that the worker thread polls together with the pipes.
    Pidfd,
    /// By a thread for each child, which waits in `waitid(WNOWAIT)` and then wakes the worker thread. For systems
    /// without pidfds, and for sandboxes that forbid them.
    Thread,
}

/// The watch on one child.
pub(super) enum ExitWatch {
    Pidfd(OwnedFd),
    Thread(Arc<AtomicU8>),
}

impl WatchMethod {
    /// The best one that this system has.
    pub(super) fn best() -> Self {
        if pidfd(Pid::this()).is_ok() { Self::Pidfd } else { Self::Thread }
    }

    /// Watches `child`. Nobody may reap it before it has exited.
    pub(super) fn watch(self, child: Pid, waker: Waker, sessions: Arc<Sessions>) -> io::Result<ExitWatch> {
        if self == Self::Pidfd {
            return pidfd(child).map(ExitWatch::Pidfd);
        }
        let state = Arc::new(AtomicU8::new(RUNNING));
        watch_on_a_thread(child, Arc::clone(&state), sessions, Some(waker))?;
        Ok(ExitWatch::Thread(state))
    }
}

impl ExitWatch {
    /// Readable once the child has exited. None with [`WatchMethod::Thread`], where a thread wakes the caller.
    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Pidfd(fd) => Some(fd.as_fd()),
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
            Self::Pidfd(fd) => readable(Some(fd)).unwrap_or(false),
            Self::Thread(_) => self.thread_saw_exit(),
        }
    }

    /// Leaves it to a thread to reap `child` through `sessions` when it exits. False if the child has exited before:
    /// then the caller has to reap it.
    pub(super) fn leave_reaping(&self, child: Pid, sessions: &Arc<Sessions>) -> bool {
        match self {
            Self::Pidfd(_) if self.has_exited() => false,
            Self::Pidfd(_) => {
                let state = Arc::new(AtomicU8::new(ABANDONED));
                if let Err(error) = watch_on_a_thread(child, state, Arc::clone(sessions), None) {
                    log::warn!("a handler that was killed stays a zombie: cannot start a thread: {error}");
                }
                true
            }
            Self::Thread(state) => state.swap(ABANDONED, Ordering::AcqRel) != EXITED,
        }
    }
}

#[cfg(target_os = "linux")]
fn pidfd(process: Pid) -> io::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, pidfd_open};
    let pid = rustix::process::Pid::from_raw(process.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

#[cfg(not(target_os = "linux"))]
fn pidfd(_: Pid) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Starts a thread that waits for the exit. It sets `state` and wakes `waker`; it reaps the child only if `state` was
/// `ABANDONED` by then.
fn watch_on_a_thread(
    child: Pid,
    state: Arc<AtomicU8>,
    sessions: Arc<Sessions>,
    waker: Option<Waker>,
) -> io::Result<()> {
    thread::Builder::new().name("reaper".into()).spawn(move || {
        while waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        if state.swap(EXITED, Ordering::AcqRel) == ABANDONED {
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

    use super::super::limits::{Limits, from_now};
    use super::super::process::{EarlyClose, Process, ProcessIo};
    use super::super::spawn::Launch;
    use super::super::tee::{Label, Tee};
    use super::super::testing::*;
    use super::*;

    fn start(io: &ProcessIo, script: &str) -> (Process<Tee>, Captured) {
        let (spec, out, _) = captured(sh(script));
        let (output, label) = (spec.output(), Label::default());
        let (stdout, stderr) = (output.stdout(io.waker(), &label), output.stderr(io.waker(), &label));
        let arguments = ["sh", "-c", script].map(|argument| CString::new(argument).unwrap());
        let launch = Launch { path: Path::new("/bin/sh"), arguments: &arguments, environment: &[] };
        (Process::start(io, &launch, EarlyClose::Ignore, stdout, stderr).unwrap(), out)
    }

    fn process_ios() -> [ProcessIo; 2] {
        [WatchMethod::Pidfd, WatchMethod::Thread]
            .map(|method| ProcessIo::with_method(method, Arc::default(), Arc::default()).unwrap())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn here_there_are_pidfds() {
        assert_eq!(WatchMethod::best(), WatchMethod::Pidfd);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn either_method_tells_of_the_exit_once_and_leaves_the_reaping() {
        for mut io in process_ios() {
            let (mut process, out) = start(&io, "echo $$; exit 3");
            let limits = Limits { deadline: Some(from_now(LONG)), abort: None };
            while !process.wait(&mut io, &mut &[][..], &limits).unwrap().exited {
                assert!(!limits.deadline_passed());
            }
            assert!(process.exited());
            // Nothing ends further waits before their deadline, except one wake-up that is late.
            let soon = Limits { deadline: Some(from_now(SHORT)), abort: None };
            let mut waits = (0..3).map(|_| process.wait(&mut io, &mut &[][..], &soon).unwrap());
            assert!(waits.any(|seen| seen.deadline_passed));
            assert_eq!(process.finish(&mut io, limits).unwrap().code(), Some(3));
            assert!(is_gone(out.pid()));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn either_method_reaps_what_is_given_up() {
        for mut io in process_ios() {
            let (mut process, out) = start(&io, "echo $$; exec sleep 600");
            let limits = Limits { deadline: Some(from_now(LONG)), abort: None };
            while !out.text().contains('\n') {
                // A short deadline: another thread writes to `out`, which ends no wait.
                process.wait(&mut io, &mut &[][..], &limits.by(from_now(SHORT))).unwrap();
                assert!(!limits.deadline_passed());
            }
            assert!(!process.exited());
            drop(process);
            wait_until_gone(out.pid());
        }
    }
}
