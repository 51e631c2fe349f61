//! What a machine can run out of: descriptors, processes, threads, memory. It says nothing about a task or a broker,
//! and passes.

use std::io;
use std::thread;

use crossbeam_channel::bounded;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

/// What is missing, where a call that was to open or start something failed for want of it. (`EAGAIN` means something
/// else where an open descriptor is read or written.)
#[must_use]
pub fn explain(error: &io::Error) -> Option<String> {
    Some(match error.raw_os_error().map(Errno::from_raw)? {
        Errno::EMFILE => {
            let allowed = getrlimit(Resource::RLIMIT_NOFILE)
                .map_or_else(|_| String::new(), |(soft, _)| soft.to_string());
            format!("this process has as many files open as it may ({allowed}; ulimit -n, LimitNOFILE=)")
        }
        Errno::ENFILE => "this machine has as many files open as it can (fs.file-max)".to_owned(),
        Errno::EAGAIN => {
            "no further process or thread may be started (ulimit -u, TasksMax=, or the machine's own limit)"
                .to_owned()
        }
        Errno::ENOMEM => "this machine is out of memory".to_owned(),
        _ => return None,
    })
}

/// The same, or else what the system says.
#[must_use]
pub fn reason(error: &io::Error) -> String {
    explain(error).unwrap_or_else(|| error.to_string())
}

/// Whether so many descriptors can be opened and threads be started now.
pub fn probe(descriptors: usize, threads: usize) -> io::Result<()> {
    let _pipes: Vec<_> = (0..descriptors.div_ceil(2)).map(|_| io::pipe()).collect::<io::Result<_>>()?;
    let (release, held) = bounded::<()>(0);
    let started: io::Result<Vec<_>> = (0..threads)
        .map(|_| {
            let held = held.clone();
            // They are there at the same time.
            thread::Builder::new().name("probe".into()).spawn(move || {
                let _ = held.recv();
            })
        })
        .collect();
    drop(release);
    for thread in started? {
        let _ = thread.join();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_is_told_from_other_trouble() {
        let told = |errno: Errno| explain(&io::Error::from(errno));
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::EAGAIN, Errno::ENOMEM] {
            assert!(told(errno).is_some(), "{errno}");
        }
        for errno in [Errno::ENOENT, Errno::EACCES, Errno::ECONNREFUSED, Errno::E2BIG, Errno::ENOEXEC] {
            assert_eq!(told(errno), None, "{errno}");
        }
        assert_eq!(explain(&io::Error::other("no number")), None);
        assert_eq!(reason(&io::Error::other("no number")), "no number");
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        for _ in 0..300 {
            probe(16, 2).unwrap();
        }
    }
}
