//! Reaps processes whose parents have ended, where they become ours: as the first process of a container, or where
//! somebody has made this one a subreaper.
//!
//! Nobody else would, and each would keep its number for ever. A handler's own process is never reaped here: its exit
//! status is what the handler waits for.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::unistd::Pid;
use rustix::process::{WaitOptions, waitpid};
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::Signals;

use super::procfs::processes;
use super::session::Sessions;

/// Between two looks: the end of each handler causes one as well.
const PAUSE: Duration = Duration::from_secs(1);

/// From now on, where there may be any.
pub(super) fn reap_orphans(sessions: Arc<Sessions>) -> io::Result<()> {
    if !gets_orphans() {
        return Ok(());
    }
    let mut ends = Signals::new([SIGCHLD])?;
    thread::Builder::new().name("orphans".into()).spawn(move || {
        loop {
            reap(&sessions);
            thread::sleep(PAUSE);
            // However many came meanwhile.
            ends.wait();
        }
    })?;
    Ok(())
}

/// By their numbers: to wait for any child would take those of handlers as well.
fn reap(sessions: &Sessions) {
    sessions.unchanged(|ours| {
        let orphans = processes().filter(|(process, stat)| {
            stat.is_zombie && stat.parent == Pid::this() && !ours.contains(process)
        });
        for (orphan, _) in orphans {
            let _ = waitpid(rustix::process::Pid::from_raw(orphan.as_raw()), WaitOptions::NOHANG);
        }
    });
}

fn gets_orphans() -> bool {
    Pid::this().as_raw() == 1 || is_subreaper()
}

#[cfg(target_os = "linux")]
fn is_subreaper() -> bool {
    rustix::process::child_subreaper().is_ok_and(|set| set.is_some())
}

#[cfg(not(target_os = "linux"))]
fn is_subreaper() -> bool {
    false
}
