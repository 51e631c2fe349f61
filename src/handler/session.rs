//! The sessions of running handlers, and how they are signalled.
//!
//! A handler leads a session of its own. So Ctrl-C at the terminal does not reach it (the worker drains instead), it has
//! no terminal to wait for, and whatever it started can be ended with it, in whatever process group that is. A session
//! is signalled only while its leader is unreaped, and as long as anybody is left in it the kernel gives its number to
//! nobody else: what finished tasks left in the background cannot be taken for a part of it.
//!
//! Only Linux tells who is in a session. Elsewhere the leader's process group stands for it.

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

/// How long the end of the process waits for all that was killed: the kernel needs some milliseconds, unless a disk is
/// dead.
const KILL_ALL_WAIT: Duration = Duration::from_secs(1);

/// The pause between two looks meanwhile.
const KILL_ALL_PAUSE: Duration = Duration::from_millis(10);

/// The sessions of all handlers.
#[derive(Default)]
pub(super) struct Sessions {
    live: Mutex<Live>,
    census: Mutex<Option<Arc<Census>>>,
    /// Read while a leader is started or reaped: whoever has it for writing sees no child of ours that is not known.
    changes: RwLock<()>,
}

/// The leaders that are not reaped yet.
#[derive(Default)]
struct Live {
    running: BTreeSet<Pid>,
    /// Those that ended by themselves: nobody signals what they left.
    over: BTreeSet<Pid>,
    /// Set for good by [`Sessions::kill_all`]: a session that starts later is killed at once.
    closed: bool,
}

impl Sessions {
    /// Starts a leader.
    pub(super) fn start(&self, spawn: impl FnOnce() -> io::Result<Pid>) -> io::Result<Pid> {
        let _unchanged = self.change();
        let leader = spawn()?;
        let mut live = self.live();
        live.running.insert(leader);
        if live.closed {
            self.kill_again(leader);
        }
        Ok(leader)
    }

    /// The leader has ended by itself, and what it left in the background stays.
    pub(super) fn leader_ended(&self, leader: Pid) {
        let mut live = self.live();
        if live.running.remove(&leader) {
            live.over.insert(leader);
        }
    }

    /// Of a leader that has exited; waits for it otherwise.
    pub(super) fn reap(&self, leader: Pid) -> io::Result<ExitStatus> {
        let _unchanged = self.change();
        let mut live = self.live();
        // Before its number can pass to another one.
        live.running.remove(&leader);
        live.over.remove(&leader);
        drop(live);
        spawn::reap(leader)
    }

    /// Kills every session, and every one that starts from now on. Waits a moment until nobody is left.
    pub(super) fn kill_all(&self) {
        self.live().closed = true;
        let patience = Instant::now() + KILL_ALL_WAIT;
        loop {
            let live = self.live();
            for leader in &live.running {
                let _ = killpg(*leader, Signal::SIGKILL);
            }
            // One look for all of them: there may be hundreds.
            let census = self.look();
            for leader in &live.running {
                census.send(*leader, &[Signal::SIGKILL]);
            }
            // They start others until they are gone.
            let left = live.running.iter().any(|leader| !census.members(*leader).is_empty());
            drop(live);
            if !left || Instant::now() >= patience {
                return;
            }
            thread::sleep(KILL_ALL_PAUSE);
        }
    }

    /// Asks every process of the session of an unreaped `leader` to end. A stopped one would sleep through its grace
    /// period.
    pub(super) fn terminate(&self, leader: Pid) {
        self.tell(leader, &[Signal::SIGTERM, Signal::SIGCONT]);
    }

    /// Kills every process of the session of an unreaped `leader`.
    pub(super) fn kill(&self, leader: Pid) {
        self.tell(leader, &[Signal::SIGKILL]);
    }

    fn tell(&self, leader: Pid, signals: &[Signal]) {
        if let Some(errno) = self.signal(leader, signals) {
            log::warn!("not all processes of a handler (session {leader}) can be signalled: {errno}");
        }
    }

    /// Kills those that were started meanwhile. To say once who cannot be signalled is enough.
    pub(super) fn kill_again(&self, leader: Pid) {
        self.signal(leader, &[Signal::SIGKILL]);
    }

    /// One of the errors.
    fn signal(&self, leader: Pid, signals: &[Signal]) -> Option<Errno> {
        // The group first, as a whole: those that it is just starting get the signals as well.
        let failed = signals.iter().find_map(|signal| killpg(leader, *signal).err());
        // Only a zombie was left of it.
        let failed = failed.filter(|errno| *errno != Errno::ESRCH);
        failed.or(self.look().send(leader, signals))
    }

    /// Whether any process but zombies is left. Only its leader's end is an event for us: the others are not our
    /// children.
    pub(super) fn has_members(&self, leader: Pid) -> bool {
        !self.look().members(leader).is_empty()
    }

    /// Nobody starts or reaps a leader while this runs; it gets those that are not reaped.
    pub(super) fn unchanged<T>(&self, look: impl FnOnce(&BTreeSet<Pid>) -> T) -> T {
        let _alone = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        let live = self.live();
        look(&live.running.union(&live.over).copied().collect())
    }

    /// Everybody, as it was at some moment after this call began. Threads that ask at the same time share a look.
    fn look(&self) -> Arc<Census> {
        let asked = Instant::now();
        let mut last = lock(&self.census);
        match &*last {
            Some(census) if census.begun >= asked => Arc::clone(census),
            _ => Arc::clone(last.insert(Arc::new(Census::take()))),
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.live)
    }

    fn change(&self) -> RwLockReadGuard<'_, ()> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who was in which session.
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

    /// To all outside the leader's group, which is signalled as a whole. One of the errors.
    fn send(&self, leader: Pid, signals: &[Signal]) -> Option<Errno> {
        let others = self.members(leader).iter().filter(|member| member.group != leader);
        let mut failed = None;
        for (member, signal) in others.flat_map(|member| signals.iter().map(move |signal| (member, signal))) {
            failed = failed.or(send(member.process, leader, *signal).err());
        }
        failed
    }
}

/// To one process, if it still is what the census has seen. Its descriptor keeps the number from being another's.
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
        // A sandbox without such descriptors.
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
    fn a_look_that_began_before_the_question_does_not_answer_it() {
        let sessions = Sessions::default();
        let session = nix::unistd::getsid(None).unwrap();
        let empty = |begun| Some(Arc::new(Census { begun, sessions: HashMap::new() }));
        *lock(&sessions.census) = empty(Instant::now());
        assert!(sessions.has_members(session));
        *lock(&sessions.census) = empty(Instant::now() + Duration::from_mins(1));
        assert!(!sessions.has_members(session));
    }
}
