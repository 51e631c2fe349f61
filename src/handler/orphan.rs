//! Reaps orphans: processes whose parents have ended, and which have become children of this process. It gets them as
//! the first process of a container, or if somebody has made it a subreaper.
//!
//! Nobody else would reap them, and each zombie keeps a process number. The process of a handler is never reaped here,
//! because the handler waits for its exit status.

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

/// The least time between two looks. The exit of each handler causes a look as well, so there may be many.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts to reap orphans, if this process can get any. Does nothing otherwise.
pub(super) fn reap_orphans(sessions: Arc<Sessions>) -> io::Result<()> {
    if !gets_orphans() {
        return Ok(());
    }
    let mut ends = Signals::new([SIGCHLD])?;
    thread::Builder::new().name("orphans".into()).spawn(move || {
        loop {
            reap(&sessions);
            thread::sleep(PAUSE);
            // Returns at once if any SIGCHLD came during the pause.
            ends.wait();
        }
    })?;
    Ok(())
}

/// Waits for each orphan by its number: waiting for any child would also reap the processes of handlers.
fn reap(sessions: &Sessions) {
    sessions.with_leaders(|leaders| {
        let orphans = processes().filter(|(process, stat)| {
            stat.is_zombie && stat.parent == Pid::this() && !leaders.contains(process)
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
