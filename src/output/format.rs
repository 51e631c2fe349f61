//! The forms in which messages are written to stderr.

use std::io::{Stderr, Stdout};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, Record};
use nix::sys::stat::{SFlag, fstat};
use serde_json::{Map, json};

use super::json::line_of_json;
use super::secrets;
use super::text::message;
use crate::calendar::Moment;

/// Set by systemd where stdout or stderr is the journal: the device and the inode of its socket.
const JOURNAL: &str = "JOURNAL_STREAM";

static CURRENT: OnceLock<LogFormat> = OnceLock::new();

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// The same with the time in front, in UTC.
    Time,
    /// One object a line: docs/log.md.
    Json,
    /// Lines with a priority of syslog in front, which systemd's journal takes off.
    Journal,
}

impl LogFormat {
    /// What is right where nobody chose.
    #[must_use]
    pub fn of_stderr() -> Self {
        if is_the_journal(&std::io::stderr()) { Self::Journal } else { Self::Text }
    }

    /// For all messages from now on.
    pub(super) fn choose(self) {
        let _ = CURRENT.set(self);
    }

    /// What was chosen.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.get().copied().unwrap_or(Self::Text)
    }

    /// The line of an error that ends the process before there is a logger.
    #[must_use]
    pub fn complaint(self, text: &str) -> String {
        self.line(
            &Record::builder().level(Level::Error).args(format_args!("{text}")).build(),
            SystemTime::now(),
        )
    }

    /// A whole line. Whoever composed it, it can drive no terminal and holds no password.
    pub(super) fn line(self, record: &Record<'_>, now: SystemTime) -> String {
        let level = record.level();
        let text = message(&record.args().to_string());
        match self {
            Self::Text => format!("{}{text}\n", prefix(level)),
            Self::Time => format!("{} {}{text}\n", moment(now), prefix(level)),
            Self::Journal => format!("<{}>{}{text}\n", priority(level), prefix(level)),
            Self::Json => {
                let mut facts = Facts(Map::new());
                let _ = record.key_values().visit(&mut facts);
                let Facts(mut object) = facts;
                object.entry("event").or_insert_with(|| json!("message"));
                object.insert("ts".to_owned(), json!(moment(now)));
                object.insert("level".to_owned(), json!(name(level)));
                object.insert("thread".to_owned(), json!(std::thread::current().name()));
                object.insert("message".to_owned(), json!(text));
                line_of_json(&object.into()) + "\n"
            }
        }
    }
}

/// How lines of commands are passed on to a stream of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLines {
    /// What stands before each; mostly nothing.
    pub before: Option<Arc<[u8]>>,
    /// A last line without its end gets one: messages follow it.
    pub end: bool,
}

impl CommandLines {
    /// Exactly what the command writes.
    pub const DATA: Self = Self { before: None, end: false };

    /// To stdout and to stderr. Where both are the same thing (the journal, a terminal), messages are between the lines of
    /// either. In the journal a command must not choose the priority of what it prints.
    #[must_use]
    pub fn beside_messages() -> [Self; 2] {
        let priority = |is_the_journal: bool| is_the_journal.then(|| Arc::from(&b"<6>"[..]));
        let stderr = Self { before: priority(LogFormat::current() == LogFormat::Journal), end: true };
        let (out, err) = (std::io::stdout(), std::io::stderr());
        let stdout = if are_the_same(&out, &err) {
            stderr.clone()
        } else if is_the_journal(&out) || is_the_journal(&err) && is_a_socket(&out) {
            // Each has a stream of its own to the journal; only one of them is announced.
            Self { before: priority(true), end: true }
        } else {
            Self::DATA
        };
        [stdout, stderr]
    }

    /// With a tag before each line, and after what stands there already. Tagged lines are for people: the last one is
    /// ended as well.
    #[must_use]
    pub fn tagged(&self, tag: &[u8]) -> Self {
        let before = self.before.as_deref().unwrap_or_default();
        Self { before: Some([before, tag].concat().into()), end: true }
    }
}

/// What is known of an event beside its text.
struct Facts(Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Facts {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = match value.to_u64() {
            Some(number) => json!(number),
            None => json!(secrets::redact(&value.to_string())),
        };
        self.0.insert(key.to_string(), value);
        Ok(())
    }
}

fn prefix(level: Level) -> &'static str {
    match level {
        Level::Error => "taskq: error: ",
        Level::Warn => "taskq: warning: ",
        Level::Info => "",
        Level::Debug | Level::Trace => "taskq: debug: ",
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

/// Of syslog.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// `2026-11-28T22:40:31.123Z`
fn moment(now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let Some(seconds) = Moment::from_unix(now.as_secs()) else { return String::new() };
    let seconds = seconds.to_string();
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), now.subsec_millis())
}

fn is_the_journal(stream: &impl AsFd) -> bool {
    let announced = std::env::var(JOURNAL).ok();
    let parts = announced.as_deref().and_then(|text| text.split_once(':'));
    let Some((Ok(device), Ok(inode))) = parts.map(|(device, inode)| (device.parse(), inode.parse())) else {
        return false;
    };
    fstat(stream.as_fd()).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

fn is_a_socket(stream: &Stdout) -> bool {
    fstat(stream.as_fd()).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits())
}

fn are_the_same(stdout: &Stdout, stderr: &Stderr) -> bool {
    match (fstat(stdout.as_fd()), fstat(stderr.as_fd())) {
        (Ok(stdout), Ok(stderr)) => (stdout.st_dev, stdout.st_ino) == (stderr.st_dev, stderr.st_ino),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn line(format: LogFormat, level: Level) -> String {
        let facts =
            [("event", Value::from("done")), ("id", Value::from("a\nb")), ("attempt", Value::from(2_u32))];
        let facts = &facts[..];
        let now = UNIX_EPOCH + Duration::from_millis(1_795_905_631_042);
        let record =
            Record::builder().args(format_args!("it is\nso")).level(level).key_values(&facts).build();
        format.line(&record, now)
    }

    #[test]
    fn each_form_is_one_line() {
        assert_eq!(line(LogFormat::Text, Level::Warn), "taskq: warning: it is\\nso\n");
        assert_eq!(line(LogFormat::Text, Level::Info), "it is\\nso\n");
        assert_eq!(
            line(LogFormat::Time, Level::Error),
            "2026-11-28T22:40:31.042Z taskq: error: it is\\nso\n"
        );
        assert_eq!(line(LogFormat::Journal, Level::Info), "<6>it is\\nso\n");
        assert_eq!(line(LogFormat::Journal, Level::Error), "<3>taskq: error: it is\\nso\n");
        let object: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, Level::Info)).unwrap();
        let thread = std::thread::current();
        let expected = json!({
            "ts": "2026-11-28T22:40:31.042Z", "level": "info", "event": "done", "id": "a\nb", "attempt": 2,
            "thread": thread.name(), "message": "it is\\nso",
        });
        assert_eq!(object, expected);
    }

    #[test]
    fn whatever_is_said_is_one_harmless_line_without_a_password() {
        secrets::hide("hidden treasure");
        let harm = "one\r\n\u{1b}[2Jtwo \u{202e}of hidden treasure";
        let long = "x\n".repeat(100_000);
        for format in [LogFormat::Text, LogFormat::Time, LogFormat::Json, LogFormat::Journal] {
            for level in Level::iter() {
                let said = |text: &str| {
                    format.line(
                        &Record::builder().level(level).args(format_args!("{text}")).build(),
                        UNIX_EPOCH,
                    )
                };
                let line = said(harm);
                assert!(
                    line.ends_with('\n') && !line.trim_end().contains(['\n', '\r', '\u{1b}', '\u{202e}']),
                    "{line}"
                );
                assert!(line.contains("***") && !line.contains("treasure"), "{line}");
                let line = said(&long);
                assert!(line.chars().count() < 5_000 && line.matches('\n').count() == 1, "{level}: {line}");
            }
        }
    }
}
