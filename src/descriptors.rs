//! How many files a worker may have open. The usual limit (1024) is that of programs that wait by `select`, and commands
//! inherit it: it is raised as far as the threads need, and no further.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Error, Result};
use crate::output::counted;

/// Connections, signals, the standard streams, the files of a resolver or of TLS.
const FIXED: u64 = 64;
/// A thread and its command: a wake-up pair (2), three pipes with both ends (6) and two copies (2), the child (1), and
/// while it starts the pipe that tells of a failed `exec` (2). The files of `--output-dir` (2) come when most of these are
/// closed again.
pub const FOR_A_COMMAND: u64 = 14;
/// The pipes of what finished commands have left in the background. It goes on without them.
const FOR_BACKGROUND: u64 = 512;

/// What to do about a limit.
#[derive(Debug, PartialEq, Eq)]
enum LimitStep {
    Leave,
    Raise(u64),
    Refuse { needed: u64 },
}

/// Makes sure of what `threads` with commands need, beside what is open already.
///
/// # Errors
/// Configuration, with the numbers, where the limit cannot be raised so far.
pub fn ensure(threads: u16) -> Result<()> {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    // Where there is no /proc, the fixed part has to do.
    let open = fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as u64);
    let refuse = |needed: u64| Error::configuration(refusal(threads, needed, hard, open));
    match step(threads, open, soft, hard) {
        LimitStep::Leave => Ok(()),
        LimitStep::Refuse { needed } => Err(refuse(needed)),
        LimitStep::Raise(to) => {
            log::debug!("raising the limit of open files from {soft} to {to}");
            setrlimit(Resource::RLIMIT_NOFILE, to, hard).or_else(|errno| {
                log::debug!("it stays: {errno}");
                let needed = needed(threads, open);
                if soft < needed { Err(refuse(needed)) } else { Ok(()) }
            })
        }
    }
}

fn needed(threads: u16, open: u64) -> u64 {
    FIXED + open + u64::from(threads) * FOR_A_COMMAND
}

fn threads_with(limit: u64, open: u64) -> u64 {
    limit.saturating_sub(FIXED + open) / FOR_A_COMMAND
}

fn refusal(threads: u16, needed: u64, hard: u64, open: u64) -> String {
    let who = counted(threads.into(), "thread that runs commands needs", "threads that run commands need");
    let allowed = counted(hard, "is", "are");
    let remedy = match threads_with(hard, open) {
        0 => format!("raise that limit to {needed} or more"),
        1 => "raise that limit, or work with 1 thread".to_owned(),
        fit => format!("raise that limit, or work with at most {fit} threads"),
    };
    format!("{who} up to {needed} open files, and {allowed} allowed (ulimit -Hn, LimitNOFILE=): {remedy}")
}

fn step(threads: u16, open: u64, soft: u64, hard: u64) -> LimitStep {
    let needed = needed(threads, open);
    let wanted = (needed + FOR_BACKGROUND).min(hard);
    if hard < needed {
        LimitStep::Refuse { needed }
    } else if soft < wanted {
        LimitStep::Raise(wanted)
    } else {
        LimitStep::Leave
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_the_threads_need_and_no_further() {
        assert_eq!(step(1, 4, 1024, 4096), LimitStep::Leave);
        assert_eq!(step(31, 4, 1024, 4096), LimitStep::Leave);
        assert_eq!(step(200, 4, 1024, 1 << 20), LimitStep::Raise(64 + 4 + 2800 + 512));
        // Without what background processes may need.
        assert_eq!(step(200, 4, 1024, 3000), LimitStep::Raise(3000));
        assert_eq!(step(200, 4, 2868, 2868), LimitStep::Leave);
        assert_eq!(step(200, 4, 1024, 2867), LimitStep::Refuse { needed: 2868 });
        assert_eq!(threads_with(2867, 4), 199);
        assert_eq!(threads_with(10, 4), 0);
    }

    #[test]
    fn a_refusal_says_what_would_do() {
        assert_eq!(
            refusal(30, 488, 200, 4),
            "30 threads that run commands need up to 488 open files, and 200 are allowed (ulimit -Hn, LimitNOFILE=): \
             raise that limit, or work with at most 9 threads"
        );
        let one = refusal(2, 96, 82, 4);
        assert!(one.ends_with("raise that limit, or work with 1 thread"), "{one}");
        // Not one has room.
        assert_eq!(
            refusal(1, 82, 64, 4),
            "1 thread that runs commands needs up to 82 open files, and 64 are allowed (ulimit -Hn, LimitNOFILE=): \
             raise that limit to 82 or more"
        );
        let many = refusal(30, 488, 1, 4);
        assert!(
            many.contains("and 1 is allowed") && many.ends_with("raise that limit to 488 or more"),
            "{many}"
        );
    }
}
