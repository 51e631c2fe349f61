//! What a handler finds in its environment: what the worker has, without taskq's own, and the task.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use super::Task;

/// One variable per user header follows this.
const HEADER: &str = "TASKQ_HEADER_";

/// The worker's own environment as handlers may see it: computed once, as it does not change.
#[derive(Clone)]
pub(super) struct Environment {
    /// Names to take out of what every child inherits.
    private: Vec<OsString>,
}

impl Environment {
    /// Of this process.
    pub(super) fn of_this_process() -> Self {
        Self { private: std::env::vars_os().map(|(name, _)| name).filter(|name| is_private(name)).collect() }
    }

    /// For a process that outlives a task.
    pub(super) fn clean(&self, command: &mut Command) {
        for name in &self.private {
            command.env_remove(name);
        }
    }

    /// For a process that runs `task`. Values with a NUL byte have no place in an environment: they are left out.
    pub(super) fn describe(&self, command: &mut Command, task: &Task<'_>) {
        self.clean(command);
        let attempt = task.attempt.to_string();
        let own = [
            ("TASKQ_ID", task.id),
            ("TASKQ_ATTEMPT", &attempt),
            ("TASKQ_QUEUE", task.queue),
            ("TASKQ_REDELIVERED", if task.redelivered { "1" } else { "0" }),
            ("TASKQ_CONTENT_TYPE", task.content_type),
        ];
        for (name, value) in own.into_iter().filter(|(_, value)| !value.contains('\0')) {
            command.env(name, value);
        }
        for (name, value) in task.headers.iter().filter(|(_, value)| !value.contains('\0')) {
            command.env(variable(name), value);
        }
    }
}

/// Secrets of taskq's own, what systemd meant for the worker alone, and what describes a task: a worker that was
/// started by a handler must not pass on the task of that one.
fn is_private(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let exact: [&[u8]; 8] = [
        b"TASKQ_URL",
        b"TASKQ_ID",
        b"TASKQ_ATTEMPT",
        b"TASKQ_QUEUE",
        b"TASKQ_REDELIVERED",
        b"TASKQ_CONTENT_TYPE",
        b"CREDENTIALS_DIRECTORY",
        b"NOTIFY_SOCKET",
    ];
    exact.contains(&name) || name.starts_with(HEADER.as_bytes()) || name.starts_with(b"WATCHDOG_")
}

/// `X-Trace.id` is `TASKQ_HEADER_X_TRACE_ID`.
fn variable(header: &str) -> String {
    let tail = header.bytes().map(|byte| match byte.to_ascii_uppercase() {
        byte @ (b'A'..=b'Z' | b'0'..=b'9') => char::from(byte),
        _ => '_',
    });
    HEADER.chars().chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(command: &Command) -> Vec<(String, Option<String>)> {
        let text = |os: &OsStr| os.to_string_lossy().into_owned();
        command.get_envs().map(|(name, value)| (text(name), value.map(text))).collect()
    }

    #[test]
    fn header_names_become_variables() {
        assert_eq!(variable("X-Trace.id"), "TASKQ_HEADER_X_TRACE_ID");
        assert_eq!(variable("a=b c9"), "TASKQ_HEADER_A_B_C9");
        assert_eq!(variable("\u{e9}"), "TASKQ_HEADER___");
        assert_eq!(variable(""), "TASKQ_HEADER_");
    }

    #[test]
    fn what_is_private() {
        for name in
            ["TASKQ_URL", "TASKQ_ID", "TASKQ_HEADER_A", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"]
        {
            assert!(is_private(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "HOME", "TASKQ_URLS", "XTASKQ_ID"] {
            assert!(!is_private(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn the_task_replaces_what_was_inherited() {
        let environment = Environment {
            private: ["TASKQ_ID", "TASKQ_URL", "TASKQ_HEADER_OLD"].map(OsString::from).to_vec(),
        };
        let headers = [("new".into(), "1".into()), ("nul".into(), "a\0b".into())];
        let task = Task {
            id: "with\0nul",
            attempt: 2,
            queue: "q",
            redelivered: true,
            content_type: "",
            headers: &headers,
            body: b"",
        };
        let mut command = Command::new("true");
        environment.describe(&mut command, &task);
        let some = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let none = |name: &str| (name.to_owned(), None);
        let expected = [
            some("TASKQ_ATTEMPT", "2"),
            some("TASKQ_CONTENT_TYPE", ""),
            some("TASKQ_HEADER_NEW", "1"),
            none("TASKQ_HEADER_OLD"),
            none("TASKQ_ID"),
            some("TASKQ_QUEUE", "q"),
            some("TASKQ_REDELIVERED", "1"),
            none("TASKQ_URL"),
        ];
        assert_eq!(set(&command), expected);
    }
}
