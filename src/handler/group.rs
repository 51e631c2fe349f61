//! The process groups of running handlers, and how they are signalled.
//!
//! A handler leads a group of its own: Ctrl-C at the terminal does not reach it (the worker drains instead), and
//! whatever it started can be ended with it. A group is signalled only while its leader is unreaped, so its number
//! cannot have passed to another process.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Mutex, MutexGuard};

use crate::lock::lock;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The groups whose leaders are not reaped yet.
#[derive(Default)]
pub(super) struct Groups(Mutex<Live>);

#[derive(Default)]
struct Live {
    leaders: BTreeSet<Pid>,
    /// Set for good by [`Groups::kill_all`]: a group that starts later is killed at once.
    closed: bool,
}

impl Groups {
    pub(super) fn add(&self, leader: Pid) {
        let mut live = self.live();
        live.leaders.insert(leader);
        if live.closed {
            signal(leader, Signal::SIGKILL);
        }
    }

    /// To be called before the leader is reaped.
    pub(super) fn remove(&self, leader: Pid) {
        self.live().leaders.remove(&leader);
    }

    /// Kills every group, and every one that starts from now on.
    pub(super) fn kill_all(&self) {
        let mut live = self.live();
        live.closed = true;
        for leader in &live.leaders {
            signal(*leader, Signal::SIGKILL);
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.0)
    }
}

/// Signals every process of the group of an unreaped `leader`.
pub(super) fn signal(leader: Pid, signal: Signal) {
    match killpg(leader, signal) {
        // No such process: only the zombie of the leader was left.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => log::warn!("cannot send {signal} to the process group {leader} of a handler: {errno}"),
    }
    if signal == Signal::SIGTERM {
        // A stopped process (one that read from the terminal, say) would sleep through its grace period.
        let _ = killpg(leader, Signal::SIGCONT);
    }
}

/// Whether any process but zombies is left in the group. Only its leader's end is an event for us (the others are
/// not our children), so this looks through /proc; where there is none, nothing is left.
pub(super) fn has_members(leader: Pid) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    processes.flatten().any(|process| {
        process.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit)
            && fs::read(process.path().join("stat")).is_ok_and(|stat| is_live_member(&stat, leader))
    })
}

/// `stat` is `pid (name) state ppid pgrp ...`, where the name may contain anything.
fn is_live_member(stat: &[u8], leader: Pid) -> bool {
    let stat = String::from_utf8_lossy(stat);
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let mut fields = fields.split(' ');
    let state = fields.next();
    let group = fields.nth(1).and_then(|group| group.parse().ok());
    group == Some(leader.as_raw()) && !matches!(state, Some("Z" | "X"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_from_stat_lines() {
        let leader = Pid::from_raw(42);
        assert!(is_live_member(b"43 (sleep) S 42 42 1 0 -1", leader));
        assert!(is_live_member(b"43 (a) Z 9 9) S 42 42 1 0 -1", leader));
        assert!(!is_live_member(b"42 (sh) Z 1 42 1 0 -1", leader));
        assert!(!is_live_member(b"43 (sleep) S 42 43 1 0 -1", leader));
        assert!(!is_live_member(b"", leader));
    }

    #[test]
    fn this_process_is_in_its_group() {
        assert!(has_members(nix::unistd::getpgrp()));
        assert!(!has_members(Pid::from_raw(i32::MAX)));
    }
}
