//! Which dead tasks are meant by what they are, not by name.

use crate::browse::QueuedTask;

/// What a task must be like. Empty: any task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// A part of its id.
    pub id: Option<String>,
    /// A part of its error, as it is shown.
    pub error: Option<String>,
    /// A part of its body.
    pub body: Option<String>,
    /// How its last attempt ended.
    pub exit: Option<ExitIs>,
    /// It failed at this moment or before, in seconds since 1970. Where nobody wrote down when, it is neither older nor
    /// newer than anything.
    pub older_than: Option<u64>,
    /// It failed at this moment or later.
    pub newer_than: Option<u64>,
}

/// See [`Filter::exit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitIs {
    /// With this exit status.
    Status(u32),
    /// In a way whose words contain this.
    Like(String),
}

impl Filter {
    /// Whether the task is meant.
    #[must_use]
    pub fn matches(&self, task: &QueuedTask<'_>) -> bool {
        let record = &task.record;
        let failed = |is: fn(u64, u64) -> bool, than: Option<u64>| {
            than.is_none_or(|than| record.failed_at.is_some_and(|at| is(at, than)))
        };
        let has = |part: &Option<String>, text: &str| part.as_deref().is_none_or(|part| text.contains(part));
        has(&self.id, task.properties.id())
            && has(&self.error, record.error.as_deref().unwrap_or_default())
            && self.exit.as_ref().is_none_or(|exit| exit.is(record.exit.as_deref().unwrap_or_default()))
            && failed(|at, than| at <= than, self.older_than)
            && failed(|at, than| at >= than, self.newer_than)
            && self.body.as_deref().is_none_or(|part| contains(task.body, part.as_bytes()))
    }
}

impl ExitIs {
    fn is(&self, exit: &str) -> bool {
        match self {
            Self::Status(status) => exit == format!("exit status {status}"),
            Self::Like(part) => exit.contains(part.as_str()),
        }
    }
}

fn contains(body: &[u8], part: &[u8]) -> bool {
    part.is_empty() || body.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Properties, Record};
    use crate::browse::Key;

    fn failed(exit: &str, at: Option<u64>) -> Record {
        let exit = Some(exit.to_owned()).filter(|exit| !exit.is_empty());
        Record { exit, failed_at: at, error: Some("no such host\nbye".to_owned()), ..Record::default() }
    }

    fn matches(filter: &Filter, record: &Record) -> bool {
        let properties = Properties::new_task("text/plain").with_id("night-17");
        let (body, record) = (&b"resize \xff 17.jpg"[..], record.clone());
        let key = Key::of("night-17", &record, body);
        filter.matches(&QueuedTask { key, properties: &properties, record, redelivered: false, body })
    }

    #[test]
    fn each_part_must_be_there() {
        let some = |text: &str| Some(text.to_owned());
        let any = Filter::default;
        for (filter, expected) in [
            (any(), true),
            (Filter { id: some("ht-1"), ..any() }, true),
            (Filter { id: some("NIGHT"), ..any() }, false),
            (Filter { error: some("such host"), ..any() }, true),
            (Filter { error: some("such host"), id: some("day"), ..any() }, false),
            (Filter { body: some(" 17.jpg"), ..any() }, true),
            (Filter { body: some("17.jpg."), ..any() }, false),
            (Filter { body: some("resize and much more than the body"), ..any() }, false),
        ] {
            assert_eq!(matches(&filter, &failed("exit status 3", Some(5))), expected, "{filter:?}");
        }
        assert!(!matches(&Filter { error: some("x"), ..any() }, &Record::default()), "it has no error");
    }

    #[test]
    fn a_number_is_that_exit_status_and_no_other() {
        let exit = |exit| Filter { exit: Some(exit), ..Filter::default() };
        assert!(matches(&exit(ExitIs::Status(3)), &failed("exit status 3", None)));
        assert!(!matches(&exit(ExitIs::Status(3)), &failed("exit status 33", None)));
        assert!(!matches(&exit(ExitIs::Status(9)), &failed("killed by signal 9", None)));
        assert!(matches(&exit(ExitIs::Like("signal".to_owned())), &failed("killed by signal 9", None)));
        assert!(!matches(&exit(ExitIs::Status(0)), &failed("", None)));
    }

    #[test]
    fn what_failed_at_no_known_time_is_neither_older_nor_newer() {
        let older = Filter { older_than: Some(5), ..Filter::default() };
        let newer = Filter { newer_than: Some(5), ..Filter::default() };
        let meant = |at| (matches(&older, &failed("", at)), matches(&newer, &failed("", at)));
        assert_eq!(meant(Some(4)), (true, false));
        assert_eq!(meant(Some(5)), (true, true));
        assert_eq!(meant(Some(6)), (false, true));
        assert_eq!(meant(None), (false, false));
    }
}
