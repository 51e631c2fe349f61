//! Starts a process that leads a session of its own, and reaps it.
//!
//! `posix_spawn` does not copy the page tables of the worker. The standard library uses it too, but cannot start a
//! session with it.

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
    /// PATH is not searched for it.
    pub(super) path: &'a Path,
    /// The first one is the name of the command.
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

/// Starts the process. Only [`reap`] may reap it.
pub(super) fn spawn(launch: &Launch<'_>, stdio: &ChildStdio<'_>) -> io::Result<Pid> {
    let mut files = PosixSpawnFileActions::init()?;
    // None of these descriptors is 0, 1 or 2 itself: those are open from the start of any Rust program.
    files.add_dup2(stdio.stdin.as_raw_fd(), 0)?;
    files.add_dup2(stdio.stdout.as_raw_fd(), 1)?;
    files.add_dup2(stdio.stderr.as_raw_fd(), 2)?;
    let mut attributes = PosixSpawnAttr::init()?;
    let signals = PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK;
    attributes.set_flags(own_session() | signals)?;
    attributes.set_sigmask(&SigSet::empty())?;
    // Rust programs ignore SIGPIPE, and the child would inherit that.
    attributes.set_sigdefault(&SigSet::from_iter([Signal::SIGPIPE]))?;
    Ok(posix_spawn(launch.path, &files, &attributes, launch.arguments, launch.environment)?)
}

/// The flag has no name in `nix`, because POSIX does not have it yet.
#[cfg(target_os = "linux")]
fn own_session() -> PosixSpawnFlags {
    PosixSpawnFlags::from_bits_retain(nix::libc::POSIX_SPAWN_SETSID.into())
}

/// Other systems cannot start a session: the process gets a process group of its own instead.
#[cfg(not(target_os = "linux"))]
fn own_session() -> PosixSpawnFlags {
    PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
}

/// Reaps a child; waits for its exit first if need be.
pub(super) fn reap(child: Pid) -> io::Result<ExitStatus> {
    // `nix` cannot express an end by a real-time signal, so this uses `rustix`.
    let pid = rustix::process::Pid::from_raw(child.as_raw());
    loop {
        match waitpid(pid, WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
