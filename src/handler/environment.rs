//! The environment of a handler: that of the worker without taskq's own variables, and variables that describe the
//! task.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::task::Task;

/// The beginning of the variables for the headers of a task.
const HEADER: &str = "TASKQ_HEADER_";

/// The variables that every task has.
const OF_ALL: [&str; 6] =
    ["TASKQ_ID", "TASKQ_ATTEMPT", "TASKQ_ATTEMPTS", "TASKQ_QUEUE", "TASKQ_REDELIVERED", "TASKQ_CONTENT_TYPE"];

/// The variables of what a task may have or not.
const OF_SOME: [&str; 8] = [
    "TASKQ_REPLY_TO",
    "TASKQ_CORRELATION_ID",
    "TASKQ_CONTENT_ENCODING",
    "TASKQ_TYPE",
    "TASKQ_PRIORITY",
    "TASKQ_TIMESTAMP",
    // As OpenTelemetry's tools have them, for the headers of the W3C's Trace Context.
    "TRACEPARENT",
    "TRACESTATE",
];

/// What handlers get of the worker's own environment. Made once, because that does not change.
#[derive(Clone)]
pub(super) struct Environment(Vec<CString>);

impl Environment {
    pub(super) fn of_this_process() -> Self {
        Self::from_variables(std::env::vars_os())
    }

    fn from_variables(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let visible = variables.filter(|(name, _)| !is_private(name));
        Self(visible.filter_map(|(name, value)| entry(name.as_bytes(), value.as_bytes())).collect())
    }

    /// As `NAME=VALUE`. None of the names is one of [`task_variables`], so both together have each name once.
    pub(super) fn entries(&self) -> impl Iterator<Item = &CStr> {
        self.0.iter().map(CString::as_c_str)
    }
}

/// The variables that describe `task`, as `NAME=VALUE`. Those whose value has a NUL byte are left out, because an
/// environment cannot hold them.
pub(super) fn task_variables(task: &Task<'_>) -> Vec<CString> {
    let of_all = [
        task.id,
        &task.attempt.to_string(),
        &task.attempts.to_string(),
        task.queue,
        if task.redelivered { "1" } else { "0" },
        task.content_type,
    ];
    let properties = &task.properties;
    let (priority, timestamp) =
        (properties.priority.map(|it| it.to_string()), properties.timestamp.map(|it| it.to_string()));
    let of_some = [
        properties.reply_to,
        properties.correlation_id,
        properties.content_encoding,
        properties.kind,
        priority.as_deref(),
        timestamp.as_deref(),
        task.header("traceparent"),
        task.header("tracestate"),
    ];
    let of_some = OF_SOME.into_iter().zip(of_some).filter_map(|(name, value)| Some((name, value?)));
    let own = OF_ALL
        .into_iter()
        .zip(of_all)
        .chain(of_some)
        .filter_map(|(name, value)| entry(name.as_bytes(), value.as_bytes()));
    // If several headers become the same variable, the last one holds.
    let headers: BTreeMap<String, CString> = task
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let variable = variable(name);
            entry(variable.as_bytes(), value.as_bytes()).map(|entry| (variable, entry))
        })
        .collect();
    own.chain(headers.into_values()).collect()
}

fn entry(name: &[u8], value: &[u8]) -> Option<CString> {
    CString::new([name, b"=", value].concat()).ok()
}

/// Whether a variable is kept from handlers: taskq's own secrets, what systemd meant for the worker alone, and what
/// describes a task. The latter is there if the worker was started by a handler, whose task is not the one that runs
/// here.
fn is_private(name: &OsStr) -> bool {
    let is_one_of = |names: &[&str]| names.iter().any(|other| name == *other);
    let name_bytes = name.as_encoded_bytes();
    is_one_of(&["TASKQ_URL", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET"])
        || is_one_of(&OF_ALL)
        || is_one_of(&OF_SOME)
        || name_bytes.starts_with(HEADER.as_bytes())
        || name_bytes.starts_with(b"WATCHDOG_")
}

/// The variable for a header: `TASKQ_HEADER_X_TRACE_ID` for `X-Trace.id`.
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
    use crate::calendar::Moment;
    use crate::handler::TaskProperties;

    fn text<S: AsRef<CStr>>(entries: impl IntoIterator<Item = S>) -> Vec<String> {
        entries.into_iter().map(|entry| entry.as_ref().to_str().unwrap().to_owned()).collect()
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
        for name in OF_ALL.iter().chain(&OF_SOME) {
            assert!(is_private(OsStr::new(name)), "{name}");
        }
        for name in
            ["TASKQ_URL", "TASKQ_ID", "TASKQ_HEADER_A", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"]
        {
            assert!(is_private(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "HOME", "TASKQ_URLS", "XTASKQ_ID", "TRACE", "traceparent"] {
            assert!(!is_private(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn what_is_private_is_not_passed_on() {
        let variables = ["TASKQ_ID", "TASKQ_URL", "TASKQ_HEADER_OLD", "PATH"];
        let variables = variables.iter().map(|name| (OsString::from(name), OsString::from("v=1")));
        assert_eq!(text(Environment::from_variables(variables).entries()), ["PATH=v=1"]);
    }

    #[test]
    fn a_task_is_described() {
        let headers = [("new", "1"), ("nul", "a\0b"), ("x y", "first"), ("x-y", "last")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let task = Task {
            id: "with\0nul",
            attempt: 2,
            attempts: 5,
            queue: "q",
            redelivered: true,
            content_type: "",
            properties: TaskProperties::default(),
            headers: &headers,
            body: b"",
        };
        let expected = [
            "TASKQ_ATTEMPT=2",
            "TASKQ_ATTEMPTS=5",
            "TASKQ_QUEUE=q",
            "TASKQ_REDELIVERED=1",
            "TASKQ_CONTENT_TYPE=",
            "TASKQ_HEADER_NEW=1",
            "TASKQ_HEADER_X_Y=last",
        ];
        assert_eq!(text(task_variables(&task)), expected);
    }

    #[test]
    fn what_a_task_has_is_set_and_nothing_else() {
        let of_some = |properties, headers: &[(&str, &str)]| {
            let headers: Vec<_> = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let task = Task {
                id: "",
                attempt: 1,
                attempts: 1,
                queue: "",
                redelivered: false,
                content_type: "",
                properties,
                headers: &headers,
                body: b"",
            };
            let is_of_some = |entry: &String| OF_SOME.iter().any(|name| entry.starts_with(name));
            text(task_variables(&task)).into_iter().filter(is_of_some).collect::<Vec<_>>()
        };
        let whole = TaskProperties {
            reply_to: Some("answers"),
            correlation_id: Some(""),
            content_encoding: Some("gzip"),
            kind: Some("a=b"),
            priority: Some(0),
            timestamp: Moment::from_unix(1_795_905_631),
        };
        let expected = [
            "TASKQ_REPLY_TO=answers",
            "TASKQ_CORRELATION_ID=",
            "TASKQ_CONTENT_ENCODING=gzip",
            "TASKQ_TYPE=a=b",
            "TASKQ_PRIORITY=0",
            "TASKQ_TIMESTAMP=2026-11-28T22:40:31Z",
        ];
        assert_eq!(of_some(whole, &[]), expected);
        let traced = [("TraceParent", "first"), ("tracestate", "a=1"), ("traceparent", "00-1-2-01")];
        let expected = ["TRACEPARENT=00-1-2-01", "TRACESTATE=a=1"];
        assert_eq!(of_some(TaskProperties::default(), &traced), expected);
    }
}
