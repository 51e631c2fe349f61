//! One running process and its pipes.
//!
//! The worker thread itself writes the body to stdin (so that is never copied) and reads stdout and stderr. It waits in
//! one `poll` for the pipes, the exit, the abort and the deadline.

mod end;

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Write, pipe};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::unistd::Pid;

use super::background::BackgroundPipes;
use super::exit_watch::{ExitWatch, WatchMethod};
use super::limits::Limits;
use super::poll::{poll_some, readable};
use super::session::Sessions;
use super::sink::{OutputSink, READ_MAX, pull};
use super::spawn::{ChildStdio, Launch, spawn};
use super::tee::Tee;
use super::wake::{WakeFd, Waker, wake_pair};

/// More bytes than the stdout and stderr pipes of a process can hold together (`pipe-max-size` is 1 MiB as a rule).
/// After reading so many, all that was in the pipes at the beginning is read.
const LEFT_IN_PIPES: u64 = 2 * 1024 * 1024;

/// What a worker thread needs to run processes, one after the other.
pub(super) struct ProcessIo {
    wake_fd: WakeFd,
    waker: Waker,
    method: WatchMethod,
    sessions: Arc<Sessions>,
    background: Arc<BackgroundPipes>,
    /// For one read; [`READ_MAX`] long.
    buffer: Vec<u8>,
}

impl ProcessIo {
    pub(super) fn new(sessions: Arc<Sessions>, background: Arc<BackgroundPipes>) -> io::Result<Self> {
        Self::with_method(WatchMethod::best(), sessions, background)
    }

    /// With a method that need not be the best one.
    pub(super) fn with_method(
        method: WatchMethod,
        sessions: Arc<Sessions>,
        background: Arc<BackgroundPipes>,
    ) -> io::Result<Self> {
        let (waker, wake_fd) = wake_pair()?;
        Ok(Self { wake_fd, waker, method, sessions, background, buffer: vec![0; READ_MAX] })
    }

    /// Wakes the thread that is in [`Process::wait`].
    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

/// What one wait has seen, beside bytes that were moved.
#[derive(Clone, Copy, Default)]
pub(super) struct Events {
    pub(super) exited: bool,
    pub(super) aborted: bool,
    pub(super) deadline_passed: bool,
}

/// Whether to notice that a process closes its stdout or stderr before it exits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EarlyClose {
    Notice,
    Ignore,
}

/// A process that leads its own session. Dropping it before [`Process::finish`] kills the session.
pub(super) struct Process<O: OutputSink> {
    leader: Pid,
    exit_watch: ExitWatch,
    sessions: Arc<Sessions>,
    /// `finish` has begun: the session is not killed any more.
    ended: bool,
    reaped: bool,
    /// A wait has told of the exit; further waits do not end because of it.
    exit_seen: bool,
    /// Bytes read from stdout and stderr so far.
    read: u64,
    stdin: Option<PipeWriter>,
    /// How many bytes the process had not read when it closed its stdin.
    unread_input: Option<u64>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
    /// Our copies of the pipe ends that the process writes to, with [`EarlyClose::Ignore`]. While they are open its
    /// pipes do not end. Without them both pipes would end just before the exit, and each would wake the worker thread
    /// once more at the end of each task.
    write_ends: Option<[PipeWriter; 2]>,
    pub(super) out: O,
    pub(super) err: Tee,
}

impl<O: OutputSink> Process<O> {
    /// Starts a process.
    pub(super) fn start(
        io: &ProcessIo,
        launch: &Launch<'_>,
        early_close: EarlyClose,
        out: O,
        err: Tee,
    ) -> io::Result<Self> {
        let ((child_in, stdin), (stdout, child_out), (stderr, child_err)) = (pipe()?, pipe()?, pipe()?);
        // This concerns our end only: the two ends of a pipe do not share their flags.
        fcntl(&stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let child_ends = ChildStdio { stdin: &child_in, stdout: &child_out, stderr: &child_err };
        let leader = io.sessions.start(|| spawn(launch, &child_ends))?;
        let exit_watch = match io.method.watch(leader, io.waker(), Arc::clone(&io.sessions)) {
            Ok(exit_watch) => exit_watch,
            Err(error) => {
                io.sessions.kill(leader);
                io.sessions.reap(leader)?;
                return Err(error);
            }
        };
        let write_ends = match early_close {
            EarlyClose::Notice => None,
            EarlyClose::Ignore => Some([child_out, child_err]),
        };
        Ok(Self {
            leader,
            exit_watch,
            sessions: Arc::clone(&io.sessions),
            ended: false,
            reaped: false,
            exit_seen: false,
            read: 0,
            stdin: Some(stdin),
            unread_input: None,
            stdout: Some(stdout),
            stderr: Some(stderr),
            write_ends,
            out,
            err,
        })
    }

    /// Whether the process has exited, also if no wait has told of it yet.
    pub(super) fn exited(&self) -> bool {
        self.exit_seen || self.exit_watch.has_exited()
    }

    /// With [`EarlyClose::Notice`]: it will write nothing more to stdout.
    pub(super) fn closed_stdout(&self) -> bool {
        self.stdout.is_none()
    }

    pub(super) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Writes as much of `input` as the pipe takes now, and removes that from it. If the process has closed its stdin
    /// the rest stays unwritten, which is no error.
    pub(super) fn feed(&mut self, input: &mut &[u8]) {
        while let Some(stdin) = &mut self.stdin
            && !input.is_empty()
        {
            match stdin.write(input) {
                Ok(n) => *input = &input[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.unread_input = self.unread_input();
                    self.stdin = None;
                }
            }
        }
    }

    /// How many of the bytes written to its stdin the process has not read; None if the system does not tell.
    pub(super) fn unread_input(&self) -> Option<u64> {
        self.stdin.as_ref().map_or(self.unread_input, bytes_inside)
    }

    /// Waits until something happens or a limit is reached, and moves the bytes that can be moved: `input` to stdin,
    /// stdout and stderr to their sinks.
    pub(super) fn wait(
        &mut self,
        io: &mut ProcessIo,
        input: &mut &[u8],
        limits: &Limits,
    ) -> io::Result<Events> {
        self.out.refresh();
        self.err.refresh();
        let (out_room, err_room) = (self.out.room(), self.err.room());
        let sources = [
            Some((io.wake_fd.as_fd(), PollFlags::POLLIN)),
            limits.abort.as_ref().map(|abort| (abort.as_fd(), PollFlags::POLLIN)),
            self.stdin.as_ref().filter(|_| !input.is_empty()).map(|fd| (fd.as_fd(), PollFlags::POLLOUT)),
            self.stdout.as_ref().filter(|_| out_room > 0).map(|fd| (fd.as_fd(), PollFlags::POLLIN)),
            self.stderr.as_ref().filter(|_| err_room > 0).map(|fd| (fd.as_fd(), PollFlags::POLLIN)),
            self.exit_watch.pidfd().filter(|_| !self.exit_seen).map(|fd| (fd, PollFlags::POLLIN)),
        ];
        // The wake-up for the exit may have been cleared by the wait before, so this one must not rely on it.
        let at_once = !self.exit_seen && self.exit_watch.thread_saw_exit();
        let deadline = if at_once { Some(Instant::now()) } else { limits.deadline };
        let [woken, aborted, writable, out, err, exited] = poll_some(sources, deadline)?;
        if !woken.is_empty() {
            io.wake_fd.clear();
        }
        if !writable.is_empty() {
            self.feed(input);
        }
        if !out.is_empty() {
            self.read += pull(&mut self.stdout, &mut self.out, &mut io.buffer[..out_room], out);
        }
        if !err.is_empty() {
            self.read += pull(&mut self.stderr, &mut self.err, &mut io.buffer[..err_room], err);
        }
        self.exit_seen |= !exited.is_empty() || self.exit_watch.thread_saw_exit();
        Ok(Events {
            exited: self.exit_seen,
            aborted: !aborted.is_empty(),
            deadline_passed: limits.deadline_passed(),
        })
    }

    /// Moves what can be moved without waiting, so that nothing of what the process has written so far stays in its
    /// pipes.
    pub(super) fn catch_up(&mut self, io: &mut ProcessIo) -> io::Result<()> {
        let (enough, exit_seen) = (self.read + LEFT_IN_PIPES, self.exit_seen);
        while self.read < enough && self.anything_to_read()? {
            self.wait(io, &mut &[][..], &Limits { deadline: Some(Instant::now()), abort: None })?;
        }
        // The next wait still has to tell of an exit that was seen here.
        self.exit_seen = exit_seen;
        Ok(())
    }

    fn anything_to_read(&self) -> io::Result<bool> {
        Ok(self.out.room() > 0 && readable(self.stdout.as_ref())?
            || self.err.room() > 0 && readable(self.stderr.as_ref())?)
    }
}

impl<O: OutputSink> Drop for Process<O> {
    /// Kills the session unless `finish` has begun, and sees to it that somebody reaps the process.
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        if !self.ended {
            self.sessions.kill(self.leader);
        }
        if !self.exit_watch.leave_reaping(self.leader, &self.sessions) {
            let _ = self.sessions.reap(self.leader);
        }
    }
}

#[cfg(target_os = "linux")]
fn bytes_inside(pipe: &PipeWriter) -> Option<u64> {
    rustix::io::ioctl_fionread(pipe).ok()
}

#[cfg(not(target_os = "linux"))]
fn bytes_inside(_: &PipeWriter) -> Option<u64> {
    None
}
