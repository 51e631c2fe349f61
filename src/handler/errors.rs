//! What it means for a task that its process could not be started or watched: is it the fault of the command, of the
//! task, or of the machine at this moment?

use std::io;

use nix::errno::Errno;

use super::task::{Failure, Obstacle, Outcome};
use crate::descriptors::FOR_A_COMMAND;
use crate::shortage;

/// How many threads or processes a command needs: its process, and a thread that waits for its exit on systems without
/// pidfds.
const THREADS: usize = 2;

/// The outcome if the command called `name` did not start. `has_headers`: the environment contains headers of the task.
pub(super) fn cannot_start(name: &str, error: &io::Error, has_headers: bool) -> Outcome {
    if let Some(missing) = shortage::explain(error) {
        return Outcome::NoResources(missing);
    }
    match error.raw_os_error().map(Errno::from_raw) {
        // As a rule the file is just being replaced.
        Some(Errno::ETXTBSY) => Outcome::NoResources(format!("{name} is being written by somebody")),
        Some(Errno::EINTR) => Outcome::NoResources(format!("the start of {name} was interrupted")),
        // Arguments and environment together are too long. If the task has headers, that is its fault.
        Some(Errno::E2BIG) if has_headers => {
            Outcome::Failed(Failure { exit: format!("could not be started: {error}"), stderr: Vec::new() })
        }
        Some(Errno::E2BIG) => {
            Outcome::CannotRun(Obstacle::lasting(format!("{name} cannot be executed: {error}")))
        }
        // This may pass: a file that is just being written is empty at first.
        Some(Errno::ENOEXEC) => may_pass(format!(
            "{name} cannot be executed: {error} (a script has to begin with #! and its interpreter)"
        )),
        _ => may_pass(format!("{name} cannot be executed: {error}")),
    }
}

/// Arguments and environment together, or one of them, are too long for the system.
pub(super) fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(Errno::E2BIG)
}

fn may_pass(why: String) -> Outcome {
    Outcome::CannotRun(Obstacle { why, may_pass: true })
}

/// The outcome if the process of the command called `name` could not be watched. It was killed when it was dropped.
pub(super) fn cannot_watch(name: &str, error: &io::Error) -> Outcome {
    if let Some(missing) = shortage::explain(error) {
        return Outcome::NoResources(missing);
    }
    if error.raw_os_error().map(Errno::from_raw) == Some(Errno::ECHILD) {
        // The task may well be done. The exit status of the next one would be lost as well.
        return Outcome::CannotRun(Obstacle::lasting(format!(
            "how {name} ended cannot be known: something takes the exit statuses of this process's children"
        )));
    }
    Outcome::Failed(Failure { exit: format!("could not be watched: {error}"), stderr: Vec::new() })
}

/// Checks that there are descriptors and processes left for a command.
pub(super) fn ready() -> io::Result<()> {
    shortage::probe(usize::try_from(FOR_A_COMMAND).unwrap_or(usize::MAX), THREADS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(errno: Errno, has_headers: bool) -> Outcome {
        cannot_start("convert", &errno.into(), has_headers)
    }

    #[test]
    fn what_the_machine_lacks_is_no_fault_of_the_task() {
        for errno in
            [Errno::EMFILE, Errno::ENFILE, Errno::EAGAIN, Errno::ENOMEM, Errno::ETXTBSY, Errno::EINTR]
        {
            for has_headers in [false, true] {
                assert!(matches!(outcome(errno, has_headers), Outcome::NoResources(_)), "{errno}");
            }
        }
        assert!(matches!(cannot_watch("convert", &Errno::ENOMEM.into()), Outcome::NoResources(_)));
        assert!(matches!(cannot_watch("convert", &Errno::EIO.into()), Outcome::Failed(_)));
    }

    #[test]
    fn an_exit_status_that_somebody_else_took_is_no_failure_of_the_task() {
        let lost = cannot_watch("convert", &Errno::ECHILD.into());
        assert!(
            matches!(lost, Outcome::CannotRun(Obstacle { why, may_pass: false }) if why.contains("convert"))
        );
    }

    #[test]
    fn headers_that_are_too_long_are_the_tasks_fault_and_a_command_that_cannot_run_the_workers() {
        assert!(matches!(outcome(Errno::E2BIG, true), Outcome::Failed(_)));
        for errno in [Errno::E2BIG, Errno::ENOENT, Errno::EACCES, Errno::ENOEXEC] {
            let Outcome::CannotRun(Obstacle { why, may_pass }) = outcome(errno, false) else {
                panic!("{errno}")
            };
            assert!(why.contains("convert"));
            // Neither the arguments nor the environment get shorter.
            assert_eq!(may_pass, errno != Errno::E2BIG, "{errno}");
        }
    }

    #[test]
    fn here_and_now_there_is_enough() {
        ready().unwrap();
    }
}
