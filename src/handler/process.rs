//! One running process: its session, its pipes, its end.
//!
//! The worker thread itself moves the bytes, so a body is never copied, and waits in one `poll` for the pipes, the
//! exit, the abort and the deadline.

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Write, pipe};
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::unistd::Pid;

use super::background::BackgroundPipes;
use super::exit_watch::{ExitWatch, WatchMethod};
use super::poll::{poll_some, readable};
use super::relay::{Discard, LINE_MAX, OutputSink, Relay, pull};
use super::session::Sessions;
use super::spawn::{ChildStdio, Launch, spawn};
use super::wake::{WakeFd, Waker, wake_pair};

/// After the exit of a process, how long its task waits for pipes that something it started holds open: long enough
/// for the last lines of a `| tee log &`, short enough for a daemon that never closes them. [`BackgroundPipes`] reads on.
pub(super) const LINGER: Duration = Duration::from_millis(250);

/// How much is read from pipes after that: more than a process can have left in them (`pipe-max-size`, for each).
const LEFT_IN_PIPES: u64 = 2 * 1024 * 1024;

/// How long output of a process that is over may wait for the worker's own stdout or stderr to take it, where
/// something presses: a deadline that has passed, or an abort.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// How often to look whether the rest of a session has ended: nothing tells us.
const SESSION_CHECK: Duration = Duration::from_millis(50);

/// How long the kernel may take to end what was killed (a process that waits for a dead disk may take for ever).
const KILL_WAIT: Duration = Duration::from_secs(5);

/// The most a worker that was told to stop at once leaves a handler between TERM and KILL.
pub(super) const ABORT_GRACE: Duration = Duration::from_secs(5);

/// What a worker thread keeps from process to process.
pub(super) struct ProcessIo {
    wake_fd: WakeFd,
    waker: Waker,
    method: WatchMethod,
    sessions: Arc<Sessions>,
    background: Arc<BackgroundPipes>,
    buffer: Vec<u8>,
}

impl ProcessIo {
    pub(super) fn new(sessions: Arc<Sessions>, background: Arc<BackgroundPipes>) -> io::Result<Self> {
        Self::with_method(WatchMethod::best(), sessions, background)
    }

    pub(super) fn with_method(
        method: WatchMethod,
        sessions: Arc<Sessions>,
        background: Arc<BackgroundPipes>,
    ) -> io::Result<Self> {
        let (waker, wake_fd) = wake_pair()?;
        Ok(Self { wake_fd, waker, method, sessions, background, buffer: vec![0; LINE_MAX] })
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

/// When to stop waiting.
#[derive(Clone)]
pub(super) struct Limits {
    pub(super) deadline: Option<Instant>,
    /// None once it is known that the worker was told to stop: it would end every wait.
    pub(super) abort: Option<Arc<PipeReader>>,
}

/// As far ahead as the clock goes if `duration` is longer than that: some 100 years.
pub(super) fn from_now(duration: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(duration).unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX)))
}

impl Limits {
    pub(super) fn passed(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// No later than `deadline`.
    pub(super) fn by(&self, deadline: Instant) -> Self {
        Self {
            deadline: Some(self.deadline.map_or(deadline, |own| own.min(deadline))),
            abort: self.abort.clone(),
        }
    }

    /// The worker was told to stop: there is `rest` left.
    fn shorten(&mut self, rest: Duration) {
        *self = Self { abort: None, ..self.by(Instant::now() + rest) };
    }
}

/// What one wait has seen beside bytes that moved.
#[derive(Clone, Copy, Default)]
pub(super) struct Events {
    pub(super) exited: bool,
    pub(super) aborted: bool,
    pub(super) late: bool,
}

/// Whether a process that closes its stdout or stderr tells us something by that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EarlyClose {
    Notice,
    Ignore,
}

/// A process that leads its own session. Dropping it before its end kills the session.
pub(super) struct Process<O: OutputSink> {
    leader: Pid,
    exit_watch: ExitWatch,
    sessions: Arc<Sessions>,
    /// Neither the process nor what it left is to be ended any more.
    over: bool,
    reaped: bool,
    /// A wait has told of the exit, and does not end for it again.
    exit_seen: bool,
    /// Bytes from both pipes so far.
    read: u64,
    stdin: Option<PipeWriter>,
    /// What was left in its stdin when it closed that.
    left_in_stdin: Option<u64>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
    /// Our own copies of the ends that the process writes to. As long as they are open its pipes do not end, which they
    /// would do just before the exit, so that each task would wake its thread twice or thrice at its end.
    write_ends: Option<[PipeWriter; 2]>,
    pub(super) out: O,
    pub(super) err: Relay,
}

impl<O: OutputSink> Process<O> {
    /// `ends` says what the end of its stdout would mean.
    ///
    /// # Errors
    /// Those of [`spawn`], and a lack of descriptors.
    pub(super) fn start(
        io: &ProcessIo,
        launch: &Launch<'_>,
        early_close: EarlyClose,
        out: O,
        err: Relay,
    ) -> io::Result<Self> {
        let ((far_in, stdin), (stdout, far_out), (stderr, far_err)) = (pipe()?, pipe()?, pipe()?);
        // Of our end only: the two ends of a pipe do not share their flags.
        fcntl(&stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let streams = ChildStdio { stdin: &far_in, stdout: &far_out, stderr: &far_err };
        let leader = io.sessions.start(|| spawn(launch, &streams))?;
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
            EarlyClose::Ignore => Some([far_out, far_err]),
        };
        Ok(Self {
            leader,
            exit_watch,
            sessions: Arc::clone(&io.sessions),
            over: false,
            reaped: false,
            exit_seen: false,
            read: 0,
            stdin: Some(stdin),
            left_in_stdin: None,
            stdout: Some(stdout),
            stderr: Some(stderr),
            write_ends,
            out,
            err,
        })
    }

    pub(super) fn exited(&self) -> bool {
        self.exit_seen || self.exit_watch.has_exited()
    }

    /// It will write no more.
    pub(super) fn closed_stdout(&self) -> bool {
        self.stdout.is_none()
    }

    pub(super) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Writes what the pipe takes now. A process need not read its input: then the rest is forgotten.
    pub(super) fn feed(&mut self, input: &mut &[u8]) {
        while let Some(stdin) = &mut self.stdin
            && !input.is_empty()
        {
            match stdin.write(input) {
                Ok(n) => *input = &input[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.left_in_stdin = self.left_in_stdin();
                    self.stdin = None;
                }
            }
        }
    }

    /// How much of what was written to its stdin nobody has read; where the system tells.
    pub(super) fn left_in_stdin(&self) -> Option<u64> {
        self.stdin.as_ref().map_or(self.left_in_stdin, bytes_inside)
    }

    /// Waits until something happens, and moves the bytes that can be moved.
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
        // An earlier wait may have cleared the wake-up that told of the exit.
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
        Ok(Events { exited: self.exit_seen, aborted: !aborted.is_empty(), late: limits.passed() })
    }

    /// Moves what can be moved without waiting: what the process has written is not left in its pipes.
    pub(super) fn catch_up(&mut self, io: &mut ProcessIo) -> io::Result<()> {
        let (enough, exit_seen) = (self.read + LEFT_IN_PIPES, self.exit_seen);
        while self.read < enough && self.anything_to_read()? {
            self.wait(io, &mut &[][..], &Limits { deadline: Some(Instant::now()), abort: None })?;
        }
        // This was not looking for the exit.
        self.exit_seen = exit_seen;
        Ok(())
    }

    /// TERM to the whole session, KILL at the deadline, until nobody is left. False if the process still runs (it hangs
    /// in the kernel).
    fn end(&mut self, io: &mut ProcessIo, limits: &mut Limits) -> io::Result<bool> {
        self.sessions.terminate(self.leader);
        loop {
            // Its leader may be gone before the rest of the session: that has the same grace.
            let leaderless = self.exited();
            if limits.passed() || leaderless && !self.sessions.has_members(self.leader) {
                break;
            }
            let step = if leaderless { limits.by(Instant::now() + SESSION_CHECK) } else { limits.clone() };
            if self.wait(io, &mut &[][..], &step)?.aborted {
                limits.shorten(ABORT_GRACE);
            }
        }
        self.sessions.kill(self.leader);
        let patience = Limits { deadline: Some(Instant::now() + KILL_WAIT), abort: None };
        while !self.exited() || self.sessions.has_members(self.leader) {
            if patience.passed() {
                log::error!("a handler (session {}) cannot be killed: it is left behind", self.leader);
                break;
            }
            self.wait(io, &mut &[][..], &patience.by(Instant::now() + SESSION_CHECK))?;
            // Some were just being started.
            self.sessions.kill_again(self.leader);
        }
        Ok(self.exited())
    }

    /// EarlyClose the session and what there is to do after that.
    pub(super) fn stop(&mut self, io: &mut ProcessIo, limits: &mut Limits) -> io::Result<()> {
        if self.end(io, limits)? {
            // The rest of the grace period is not for its output.
            self.finish(io, limits.by(Instant::now()))?;
        }
        Ok(())
    }

    /// After the exit: passes on what was left in the pipes, waits until the worker's own streams have taken it, and
    /// reaps the process. Without a deadline a reader that does not read is waited for, as it would be without us.
    pub(super) fn finish(&mut self, io: &mut ProcessIo, mut limits: Limits) -> io::Result<ExitStatus> {
        // What it left in the background is not ours to end.
        self.over = true;
        self.sessions.leader_ended(self.leader);
        self.stdin = None;
        self.write_ends = None;
        let (mut out_left, mut err_left) = (None, None);
        let soon = Instant::now() + LAST_OUTPUT;
        limits.deadline = limits.deadline.map(|deadline| deadline.max(soon));
        let linger = Instant::now() + LINGER;
        let mut enough = None;
        loop {
            if Instant::now() >= linger {
                // A pipe that is open but has nothing to read is held by somebody who left the process behind.
                let all = self.read >= *enough.get_or_insert(self.read + LEFT_IN_PIPES);
                if all || self.out.room() > 0 && !readable(self.stdout.as_ref())? {
                    out_left = out_left.or(self.stdout.take());
                }
                if all || self.err.room() > 0 && !readable(self.stderr.as_ref())? {
                    err_left = err_left.or(self.stderr.take());
                }
            }
            if self.stdout.is_none() {
                self.out.end();
            }
            if self.stderr.is_none() {
                self.err.end();
            }
            self.out.refresh();
            self.err.refresh();
            let piped = self.stdout.is_some() || self.stderr.is_some();
            if !piped && self.out.is_idle() && self.err.is_idle() {
                break;
            }
            let step = if piped && Instant::now() < linger { limits.by(linger) } else { limits.clone() };
            if self.wait(io, &mut &[][..], &step)?.aborted {
                limits.shorten(LAST_OUTPUT);
            }
            // What nobody has taken by then is counted as lost.
            if limits.passed() {
                break;
            }
        }
        // Only now: all that was read before is on its way.
        if let Some(pipe) = out_left {
            io.background.take_over(pipe, |waker| self.out.successor(waker));
        }
        if let Some(pipe) = err_left {
            io.background.take_over(pipe, |waker| self.err.successor(waker));
        }
        // What nobody took is lost, but whoever still writes is not ended by that.
        for pipe in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            io.background.take_over(pipe, |_| Box::new(Discard));
        }
        self.reaped = true;
        self.sessions.reap(self.leader)
    }

    fn anything_to_read(&self) -> io::Result<bool> {
        Ok(self.out.room() > 0 && readable(self.stdout.as_ref())?
            || self.err.room() > 0 && readable(self.stderr.as_ref())?)
    }
}

impl<O: OutputSink> Drop for Process<O> {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        if !self.over {
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
