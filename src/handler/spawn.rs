//! Starts a process that leads a session of its own, and reaps it.
//!
//! By `posix_spawn`, which copies no page tables. The standard library does that too, but without the session.

use std::ffi::{CStr, CString};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use rustix::process::{WaitOptions, waitpid};

/// What is to be started.
pub(super) struct Launch<'a> {
    /// Not looked for anywhere.
    pub(super) path: &'a Path,
    /// The name it is called by is the first.
    pub(super) arguments: &'a [CString],
    /// `NAME=VALUE`, each name once.
    pub(super) environment: &'a [&'a CStr],
}

/// The child's ends of its pipes.
pub(super) struct ChildStdio<'a> {
    pub(super) stdin: &'a PipeReader,
    pub(super) stdout: &'a PipeWriter,
    pub(super) stderr: &'a PipeWriter,
}

/// Nobody else may reap it.
///
/// # Errors
/// Those of `fork`, `setsid` and `exec`.
pub(super) fn spawn(launch: &Launch<'_>, streams: &ChildStdio<'_>) -> io::Result<Pid> {
    let mut files = PosixSpawnFileActions::init()?;
    // Not among 0 to 2 themselves, which are open from the start of any Rust program.
    files.add_dup2(streams.stdin.as_raw_fd(), 0)?;
    files.add_dup2(streams.stdout.as_raw_fd(), 1)?;
    files.add_dup2(streams.stderr.as_raw_fd(), 2)?;
    let mut attributes = PosixSpawnAttr::init()?;
    let signals = PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK;
    attributes.set_flags(own_session() | signals)?;
    attributes.set_sigmask(&SigSet::empty())?;
    // Rust ignores it, and what is ignored would stay so.
    attributes.set_sigdefault(&SigSet::from_iter([Signal::SIGPIPE]))?;
    Ok(posix_spawn(launch.path, &files, &attributes, launch.arguments, launch.environment)?)
}

/// `nix` does not name the flag, as POSIX does not yet.
#[cfg(target_os = "linux")]
fn own_session() -> PosixSpawnFlags {
    PosixSpawnFlags::from_bits_retain(nix::libc::POSIX_SPAWN_SETSID.into())
}

/// A process group of its own, where that is all there is.
#[cfg(not(target_os = "linux"))]
fn own_session() -> PosixSpawnFlags {
    PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
}

/// Waits for the end of a child.
///
/// # Errors
/// `ECHILD` where somebody else has reaped it.
pub(super) fn reap(child: Pid) -> io::Result<ExitStatus> {
    // `nix` has no form for an end by a real-time signal.
    let pid = rustix::process::Pid::from_raw(child.as_raw());
    loop {
        match waitpid(pid, WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
