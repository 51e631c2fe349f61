//! The sessions of running handlers, and how they are signalled.
//!
//! The process of a handler leads a session of its own. So Ctrl-C at the terminal does not reach it (the worker
//! finishes its tasks instead), it has no terminal that it could wait for, and whatever it has started can be ended
//! with it, in any process group.
//!
//! A session is signalled only while its leader is not reaped: until then no other session can get its number. Nor does
//! the kernel give the number of a session to a new one while any process is left in it: so what finished tasks left in
//! the background is never taken for a part of a later session.
//!
//! Only Linux tells which processes are in a session. Elsewhere only the leader's process group is signalled.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::procfs::{Stat, processes};
use super::spawn;
use crate::lock::lock;

/// How long a worker that exits waits for the end of what it has killed. The kernel needs some milliseconds, unless a
/// disk is dead.
const KILL_ALL_WAIT: Duration = Duration::from_secs(1);

/// How often to look meanwhile whether it has ended.
const KILL_ALL_PAUSE: Duration = Duration::from_millis(10);

/// The sessions of all handlers.
#[derive(Default)]
pub(super) struct Sessions {
    leaders: Mutex<Leaders>,
    /// The latest one.
    census: Mutex<Option<Arc<Census>>>,
    /// Locked for reading while a leader is started or reaped. Whoever locks it for writing finds all of them in
    /// `leaders`.
    changes: RwLock<()>,
}

/// The leaders that are not reaped yet.
#[derive(Default)]
struct Leaders {
    running: BTreeSet<Pid>,
    /// Those that have ended: what is left of their sessions is not signalled.
    ended: BTreeSet<Pid>,
    /// Set for good by [`Sessions::kill_all`]: a session that starts later is killed at once.
    kill_new: bool,
}

impl Sessions {
    /// Starts a leader by `spawn`.
    pub(super) fn start(&self, spawn: impl FnOnce() -> io::Result<Pid>) -> io::Result<Pid> {
        let _changing = self.change();
        let leader = spawn()?;
        let mut leaders = self.leaders();
        leaders.running.insert(leader);
        if leaders.kill_new {
            self.kill_again(leader);
        }
        Ok(leader)
    }

    /// To be called when `leader` has ended: from now on what is left of its session is not signalled.
    pub(super) fn leader_ended(&self, leader: Pid) {
        let mut leaders = self.leaders();
        if leaders.running.remove(&leader) {
            leaders.ended.insert(leader);
        }
    }

    /// Reaps `leader`; waits for its exit first if need be.
    pub(super) fn reap(&self, leader: Pid) -> io::Result<ExitStatus> {
        let _changing = self.change();
        let mut leaders = self.leaders();
        // This has to be done before the reaping, after which another process may get the number.
        leaders.running.remove(&leader);
        leaders.ended.remove(&leader);
        drop(leaders);
        spawn::reap(leader)
    }

    /// Kills all sessions now, and at their start those that start later. Waits until nobody is left in them, but no
    /// longer than a second.
    pub(super) fn kill_all(&self) {
        self.leaders().kill_new = true;
        let patience = Instant::now() + KILL_ALL_WAIT;
        loop {
            let leaders = self.leaders();
            for leader in &leaders.running {
                let _ = killpg(*leader, Signal::SIGKILL);
            }
            // One census for all sessions: there may be hundreds.
            let census = self.census();
            for leader in &leaders.running {
                census.send(*leader, &[Signal::SIGKILL]);
            }
            // Until they are gone, processes may start others.
            let left = leaders.running.iter().any(|leader| !census.members(*leader).is_empty());
            drop(leaders);
            if !left || Instant::now() >= patience {
                return;
            }
            thread::sleep(KILL_ALL_PAUSE);
        }
    }

    /// Sends TERM to every process in the session of `leader`, which must not be reaped yet. Sends CONT as well: a
    /// stopped process would act on TERM only then.
    pub(super) fn terminate(&self, leader: Pid) {
        self.signal_or_warn(leader, &[Signal::SIGTERM, Signal::SIGCONT]);
    }

    /// Kills every process in the session of `leader`, which must not be reaped yet.
    pub(super) fn kill(&self, leader: Pid) {
        self.signal_or_warn(leader, &[Signal::SIGKILL]);
    }

    fn signal_or_warn(&self, leader: Pid, signals: &[Signal]) {
        if let Some(errno) = self.signal(leader, signals) {
            log::warn!("not all processes of a handler (session {leader}) can be signalled: {errno}");
        }
    }

    /// As [`Sessions::kill`], for what was started meanwhile. Warns no more if somebody cannot be signalled.
    pub(super) fn kill_again(&self, leader: Pid) {
        self.signal(leader, &[Signal::SIGKILL]);
    }

    /// Returns the first error, if any.
    fn signal(&self, leader: Pid, signals: &[Signal]) -> Option<Errno> {
        // The leader's group comes first and as a whole: so processes that it is just starting get the signals as well.
        let failed = signals.iter().find_map(|signal| killpg(leader, *signal).err());
        // This error means that only a zombie was left in the group.
        let failed = failed.filter(|errno| *errno != Errno::ESRCH);
        failed.or(self.census().send(leader, signals))
    }

    /// Whether any process except zombies is left in the session. This has to be asked from time to time: only the
    /// leader is our child, so no event tells of the end of the others.
    pub(super) fn has_members(&self, leader: Pid) -> bool {
        !self.census().members(leader).is_empty()
    }

    /// Runs `look` with all leaders that are not reaped. No leader is started or reaped meanwhile.
    pub(super) fn with_leaders<T>(&self, look: impl FnOnce(&BTreeSet<Pid>) -> T) -> T {
        let _unchanged = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        let leaders = self.leaders();
        look(&leaders.running.union(&leaders.ended).copied().collect())
    }

    /// A census that was begun after this call. Threads that ask at the same time share one.
    fn census(&self) -> Arc<Census> {
        let asked = Instant::now();
        let mut last = lock(&self.census);
        match &*last {
            Some(census) if census.begun >= asked => Arc::clone(census),
            _ => Arc::clone(last.insert(Arc::new(Census::take()))),
        }
    }

    fn leaders(&self) -> MutexGuard<'_, Leaders> {
        lock(&self.leaders)
    }

    /// To be held while a leader is started or reaped.
    fn change(&self) -> RwLockReadGuard<'_, ()> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which processes were in which session, without zombies.
struct Census {
    begun: Instant,
    sessions: HashMap<Pid, Vec<Member>>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    process: Pid,
    group: Pid,
}

impl Census {
    fn take() -> Self {
        let mut census = Self { begun: Instant::now(), sessions: HashMap::new() };
        for (process, Stat { group, session, .. }) in processes().filter(|(_, stat)| !stat.is_zombie) {
            census.sessions.entry(session).or_default().push(Member { process, group });
        }
        census
    }

    fn members(&self, leader: Pid) -> &[Member] {
        self.sessions.get(&leader).map_or(&[], Vec::as_slice)
    }

    /// Sends the signals to all members outside the leader's group. Returns the first error, if any.
    fn send(&self, leader: Pid, signals: &[Signal]) -> Option<Errno> {
        let others = self.members(leader).iter().filter(|member| member.group != leader);
        let mut failed = None;
        for (member, signal) in others.flat_map(|member| signals.iter().map(move |signal| (member, signal))) {
            failed = failed.or(send(member.process, leader, *signal).err());
        }
        failed
    }
}

/// Signals one process, if it still is in `session`. Its number may have passed to another process since the census,
/// and may do so even after the check here: so the descriptor, opened before the check, is what is signalled.
///
/// # Errors
/// `EPERM`, say. It is no error if the process has ended.
#[cfg(target_os = "linux")]
fn send(process: Pid, session: Pid, signal: Signal) -> Result<(), Errno> {
    use rustix::process::{PidfdFlags, Signal as RawSignal, pidfd_open, pidfd_send_signal};
    let (Some(number), Some(raw)) =
        (rustix::process::Pid::from_raw(process.as_raw()), RawSignal::from_named_raw(signal as i32))
    else {
        return Err(Errno::EINVAL);
    };
    let descriptor = pidfd_open(number, PidfdFlags::empty());
    if Stat::of(process).is_none_or(|stat| stat.session != session) {
        return Ok(());
    }
    match descriptor {
        Ok(descriptor) => {
            pidfd_send_signal(descriptor, raw).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
        }
        // A sandbox without pidfds: the number is all there is.
        Err(_) => nix::sys::signal::kill(process, signal),
    }
    .or_else(|errno| if errno == Errno::ESRCH { Ok(()) } else { Err(errno) })
}

#[cfg(not(target_os = "linux"))]
fn send(_: Pid, _: Pid, _: Signal) -> Result<(), Errno> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_in_its_session() {
        let sessions = Sessions::default();
        assert!(sessions.has_members(nix::unistd::getsid(None).unwrap()));
        assert!(!sessions.has_members(Pid::from_raw(i32::MAX)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_census_that_began_before_the_question_does_not_answer_it() {
        let sessions = Sessions::default();
        let session = nix::unistd::getsid(None).unwrap();
        let empty = |begun| Some(Arc::new(Census { begun, sessions: HashMap::new() }));
        *lock(&sessions.census) = empty(Instant::now());
        assert!(sessions.has_members(session));
        *lock(&sessions.census) = empty(Instant::now() + Duration::from_mins(1));
        assert!(!sessions.has_members(session));
    }
}
