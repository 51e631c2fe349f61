//! Where the output of handlers goes, for all of them.

use std::io;
#[cfg(test)]
use std::io::Write;

use super::file_name::stem;
use super::files::OutputFiles;
use super::relay::Destination;
use super::task::Task;
use super::tee::{Label, Tee};
use super::wake::Waker;
#[cfg(test)]
use crate::output::Stream;
use crate::output::{self, CommandLines, one_word};

/// Stands before what a persistent command prints while it has no task.
const NO_TASK: &[u8] = b"[-] ";

/// How the worker's own stdout and stderr show what commands write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// As it is.
    Inherit,
    /// With the task's id before each line.
    Tag,
    /// Not at all.
    None,
}

/// Where the output of handlers goes. Clones share their writing threads.
#[derive(Clone)]
pub struct Output {
    /// What stdout and stderr are passed on to.
    passed_on: Option<[Destination; 2]>,
    has_tags: bool,
    files: Option<OutputFiles>,
}

impl Output {
    /// To the worker's own stdout and stderr, and besides to these files.
    pub fn of_this_process(shown: Shown, files: Option<OutputFiles>) -> io::Result<Self> {
        let passed_on = match shown {
            Shown::None => None,
            Shown::Inherit | Shown::Tag => {
                let [stdout, stderr] = CommandLines::beside_messages();
                Some([
                    Destination::new(output::stdout()?, stdout),
                    Destination::new(output::stderr()?, stderr),
                ])
            }
        };
        Ok(Self { passed_on, has_tags: shown == Shown::Tag, files })
    }

    /// To anything else.
    #[cfg(test)]
    pub fn new(stdout: impl Write + Send + 'static, stderr: impl Write + Send + 'static) -> io::Result<Self> {
        let [data, messages] = [CommandLines::DATA, CommandLines { end: true, ..CommandLines::DATA }];
        let passed_on = Some([
            Destination::new(Stream::start("stdout", stdout)?, data),
            Destination::new(Stream::start("stderr", stderr)?, messages),
        ]);
        Ok(Self { passed_on, has_tags: false, files: None })
    }

    /// What could not be passed on or written to files so far, in words; `None` where nothing is missing.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        let streams = self.passed_on.iter().flatten().filter_map(Destination::lost);
        let files = self.files.iter().filter_map(OutputFiles::lost);
        let losses: Vec<String> = streams.chain(files).collect();
        (!losses.is_empty()).then(|| losses.join("; "))
    }

    /// For what comes of this attempt at the task.
    pub(super) fn label(&self, task: &Task<'_>) -> Label {
        let tag = self.has_tags.then(|| match task.id {
            // What its files are called.
            "" => format!("[{}] ", stem("", task.body)).into_bytes(),
            id => format!("[{}] ", one_word(id)).into_bytes(),
        });
        Label { tag, files: self.files.as_ref().map(|files| files.of(task)) }
    }

    /// For what a process writes that has no task. That is in no file.
    pub(super) fn between_tasks(&self) -> Label {
        Label { tag: self.has_tags.then(|| NO_TASK.to_vec()), files: None }
    }

    pub(super) fn stdout(&self, waker: Waker, label: &Label) -> Tee {
        Tee::of_stdout(self.passed_on.as_ref().map(|[stdout, _]| stdout.clone()), waker, label)
    }

    pub(super) fn stderr(&self, waker: Waker, label: &Label) -> Tee {
        Tee::of_stderr(self.passed_on.as_ref().map(|[_, stderr]| stderr.clone()), waker, label)
    }
}
