//! One running process: its group, its pipes, its end.
//!
//! The worker thread itself moves the bytes, so a body is never copied, and waits in one `poll` for the pipes, the
//! exit, the abort and the deadline.

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::group::{self, Groups};
use super::poll::{poll_some, readable};
use super::relay::{Consumer, LINE_MAX, Relay};
use super::wake::{Bell, Ringer, bell};
use super::watch::{Means, Watched};

/// After the exit of a process, how long its pipes may still be held open by something that it started: long enough
/// for the last lines of a `| tee log &`, short enough for a daemon that never closes them.
pub(super) const LINGER: Duration = Duration::from_millis(250);

/// How much is read from pipes after that: more than a process can have left in them (`pipe-max-size`, for each).
const LEFT_IN_PIPES: u64 = 2 * 1024 * 1024;

/// How long output of a process that is over may wait for the worker's own stdout or stderr to take it, where
/// something presses: a deadline that has passed, or an abort.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// How often to look whether the rest of a group has ended: nothing tells us.
const GROUP_CHECK: Duration = Duration::from_millis(50);

/// How long the kernel may take to end a process that was killed (one that waits for a dead disk may take for ever).
const KILL_WAIT: Duration = Duration::from_secs(5);

/// The most a worker that was told to stop at once leaves a handler between TERM and KILL.
pub(super) const ABORT_GRACE: Duration = Duration::from_secs(5);

/// What a worker thread keeps from process to process.
pub(super) struct Slot {
    bell: Bell,
    ringer: Ringer,
    means: Means,
    groups: Arc<Groups>,
    buffer: Vec<u8>,
}

impl Slot {
    pub(super) fn new(groups: Arc<Groups>) -> io::Result<Self> {
        Self::watching_by(Means::best(), groups)
    }

    pub(super) fn watching_by(means: Means, groups: Arc<Groups>) -> io::Result<Self> {
        let (ringer, bell) = bell()?;
        Ok(Self { bell, ringer, means, groups, buffer: vec![0; LINE_MAX] })
    }

    pub(super) fn ringer(&self) -> Ringer {
        self.ringer.clone()
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
pub(super) struct Seen {
    pub(super) exited: bool,
    pub(super) aborted: bool,
    pub(super) late: bool,
}

/// Whether a process that closes its stdout or stderr tells us something by that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    Tell,
    AreNoNews,
}

/// A process that leads its own group. Dropping it kills the group.
pub(super) struct Process<O: Consumer> {
    child: Child,
    leader: Pid,
    watched: Watched,
    groups: Arc<Groups>,
    reaped: bool,
    /// A wait has told of the exit, and does not end for it again.
    exit_seen: bool,
    /// Bytes from both pipes so far.
    read: u64,
    stdin: Option<ChildStdin>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
    /// Our own copies of the ends that the process writes to. As long as they are open its pipes do not end, which they
    /// would do just before the exit, so that each task would wake its thread twice or thrice at its end.
    far_ends: Option<[PipeWriter; 2]>,
    pub(super) out: O,
    pub(super) err: Relay,
}

impl<O: Consumer> Process<O> {
    /// `ends` says what the end of its stdout would mean.
    ///
    /// # Errors
    /// Those of `fork` and `exec`.
    pub(super) fn start(
        slot: &Slot,
        mut command: Command,
        ends: Ends,
        out: O,
        err: Relay,
    ) -> io::Result<Self> {
        let ((stdout, far_out), (stderr, far_err)) = (pipe()?, pipe()?);
        let far_ends = match ends {
            Ends::Tell => None,
            Ends::AreNoNews => Some([far_out.try_clone()?, far_err.try_clone()?]),
        };
        // No pre_exec: with that the standard library could not use posix_spawn, which copies no page tables.
        command.stdin(Stdio::piped()).stdout(far_out).stderr(far_err).process_group(0);
        let mut child = command.spawn()?;
        let leader = Pid::from_raw(child.id().cast_signed());
        slot.groups.add(leader);
        let watched = match slot.means.watch(&child, slot.ringer(), Arc::clone(&slot.groups)) {
            Ok(watched) => watched,
            Err(error) => {
                group::signal(leader, Signal::SIGKILL);
                slot.groups.remove(leader);
                child.wait()?;
                return Err(error);
            }
        };
        let stdin = child.stdin.take();
        let groups = Arc::clone(&slot.groups);
        let process = Self {
            child,
            leader,
            watched,
            groups,
            reaped: false,
            exit_seen: false,
            read: 0,
            stdin,
            stdout: Some(stdout),
            stderr: Some(stderr),
            far_ends,
            out,
            err,
        };
        if let Some(stdin) = &process.stdin {
            // Of our end only: the two ends of a pipe do not share their flags.
            fcntl(stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(process)
    }

    pub(super) fn exited(&self) -> bool {
        self.exit_seen || self.watched.has_exited()
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
                Err(_) => self.stdin = None,
            }
        }
    }

    /// Waits until something happens, and moves the bytes that can be moved.
    pub(super) fn wait(&mut self, slot: &mut Slot, input: &mut &[u8], limits: &Limits) -> io::Result<Seen> {
        self.out.refresh();
        self.err.refresh();
        let (out_room, err_room) = (self.out.room(), self.err.room());
        let sources = [
            Some((slot.bell.as_fd(), PollFlags::POLLIN)),
            limits.abort.as_ref().map(|abort| (abort.as_fd(), PollFlags::POLLIN)),
            self.stdin.as_ref().filter(|_| !input.is_empty()).map(|fd| (fd.as_fd(), PollFlags::POLLOUT)),
            self.stdout.as_ref().filter(|_| out_room > 0).map(|fd| (fd.as_fd(), PollFlags::POLLIN)),
            self.stderr.as_ref().filter(|_| err_room > 0).map(|fd| (fd.as_fd(), PollFlags::POLLIN)),
            self.watched.descriptor().filter(|_| !self.exit_seen).map(|fd| (fd, PollFlags::POLLIN)),
        ];
        // The bell may have been silenced since.
        let at_once = !self.exit_seen && self.watched.was_rung_for();
        let deadline = if at_once { Some(Instant::now()) } else { limits.deadline };
        let [rung, aborted, writable, out, err, exited] = poll_some(sources, deadline)?;
        if !rung.is_empty() {
            slot.bell.silence();
        }
        if !writable.is_empty() {
            self.feed(input);
        }
        if !out.is_empty() {
            self.read += pull(&mut self.stdout, &mut self.out, &mut slot.buffer[..out_room], out);
        }
        if !err.is_empty() {
            self.read += pull(&mut self.stderr, &mut self.err, &mut slot.buffer[..err_room], err);
        }
        self.exit_seen |= !exited.is_empty() || self.watched.was_rung_for();
        Ok(Seen { exited: self.exit_seen, aborted: !aborted.is_empty(), late: limits.passed() })
    }

    /// Moves what can be moved without waiting: what the process has written is not left in its pipes.
    pub(super) fn catch_up(&mut self, slot: &mut Slot) -> io::Result<()> {
        let (enough, exit_seen) = (self.read + LEFT_IN_PIPES, self.exit_seen);
        while self.read < enough && self.anything_to_read()? {
            self.wait(slot, &mut &[][..], &Limits { deadline: Some(Instant::now()), abort: None })?;
        }
        // This was not looking for the exit.
        self.exit_seen = exit_seen;
        Ok(())
    }

    /// TERM to the whole group, KILL at the deadline. False if the process still runs (it hangs in the kernel).
    fn end(&mut self, slot: &mut Slot, limits: &mut Limits) -> io::Result<bool> {
        group::signal(self.leader, Signal::SIGTERM);
        loop {
            // Its leader may be gone before the rest of the group: that has the same grace.
            let leaderless = self.exited();
            if limits.passed() || leaderless && !group::has_members(self.leader) {
                break;
            }
            let step = if leaderless { limits.by(Instant::now() + GROUP_CHECK) } else { limits.clone() };
            if self.wait(slot, &mut &[][..], &step)?.aborted {
                limits.shorten(ABORT_GRACE);
            }
        }
        group::signal(self.leader, Signal::SIGKILL);
        let patience = Limits { deadline: Some(Instant::now() + KILL_WAIT), abort: None };
        while !self.exited() && !patience.passed() {
            self.wait(slot, &mut &[][..], &patience)?;
        }
        if !self.exited() {
            log::error!("a handler (process {}) cannot be killed: it is left behind", self.leader);
        }
        Ok(self.exited())
    }

    /// Ends the group and what there is to do after that.
    pub(super) fn cut_short(&mut self, slot: &mut Slot, limits: &mut Limits) -> io::Result<()> {
        if self.end(slot, limits)? {
            // The rest of the grace period is not for its output.
            self.finish(slot, limits.by(Instant::now()))?;
        }
        Ok(())
    }

    /// After the exit: passes on what was left in the pipes, waits until the worker's own streams have taken it, and
    /// reaps the process. Without a deadline a reader that does not read is waited for, as it would be without us.
    pub(super) fn finish(&mut self, slot: &mut Slot, mut limits: Limits) -> io::Result<ExitStatus> {
        self.stdin = None;
        self.far_ends = None;
        let soon = Instant::now() + LAST_OUTPUT;
        limits.deadline = limits.deadline.map(|deadline| deadline.max(soon));
        let linger = Instant::now() + LINGER;
        let mut enough = None;
        loop {
            if Instant::now() >= linger {
                let enough = *enough.get_or_insert(self.read + LEFT_IN_PIPES);
                self.drop_quiet_pipes(self.read >= enough)?;
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
            if self.wait(slot, &mut &[][..], &step)?.aborted {
                limits.shorten(LAST_OUTPUT);
            }
            // What nobody has taken by then is counted as lost.
            if limits.passed() {
                break;
            }
        }
        self.groups.remove(self.leader);
        self.reaped = true;
        self.child.wait()
    }

    /// A pipe that is open but has nothing to read is held by somebody who left the process behind.
    fn drop_quiet_pipes(&mut self, all: bool) -> io::Result<()> {
        if all || self.out.room() > 0 && !readable(self.stdout.as_ref())? {
            self.stdout = None;
        }
        if all || self.err.room() > 0 && !readable(self.stderr.as_ref())? {
            self.stderr = None;
        }
        Ok(())
    }

    fn anything_to_read(&self) -> io::Result<bool> {
        Ok(self.out.room() > 0 && readable(self.stdout.as_ref())?
            || self.err.room() > 0 && readable(self.stderr.as_ref())?)
    }
}

impl<O: Consumer> Drop for Process<O> {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        group::signal(self.leader, Signal::SIGKILL);
        if !self.watched.give_up(&self.child, &self.groups) {
            self.groups.remove(self.leader);
            let _ = self.child.wait();
        }
    }
}

/// One read: all that a pipe has (of the usual capacity), or its end.
fn pull<R: Read>(from: &mut Option<R>, to: &mut impl Consumer, buffer: &mut [u8], seen: PollFlags) -> u64 {
    let Some(pipe) = from else { return 0 };
    let result = if seen.contains(PollFlags::POLLIN) { pipe.read(buffer) } else { Ok(0) };
    match result {
        Ok(n) if n > 0 => {
            to.take(&buffer[..n]);
            return n as u64;
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => {}
        _ => {
            *from = None;
            to.end();
        }
    }
    0
}
