//! Runs tasks, and says what came of them.
//!
//! A [`Handler`] belongs to one worker thread. It is given a [`Task`], runs it to its end (or until the worker
//! gives up its tasks) and says how it went; what that means for the task is decided elsewhere (`retry`).

mod abort;
mod arguments;
mod background;
mod capped_file;
mod command;
mod dots;
mod environment;
mod errors;
mod executable;
mod exit;
mod exit_watch;
mod file_name;
mod files;
mod idle;
mod limits;
mod loss;
mod orphan;
mod output;
mod persistent;
mod poll;
mod process;
mod procfs;
mod protocol;
mod relay;
mod session;
mod sink;
mod spawn;
mod spec;
mod task;
mod tee;
#[cfg(test)]
mod testing;
mod wake;

use std::io;
use std::sync::Arc;

pub use dots::Dots;
pub use exit::ExitRule;
pub use files::OutputFiles;
pub use output::{Output, Shown};
pub use spec::{Options, Spec};
pub use task::{Failure, Handler, Obstacle, Outcome, Task, TaskProperties};

use command::Command;
use persistent::Persistent;

/// Makes handlers. This is not in `spec.rs`, because the files of the handlers import that.
impl Spec {
    /// A handler that starts one process per task.
    pub fn command(&self) -> io::Result<Command> {
        Command::new(self.clone())
    }

    /// A handler that keeps one process for all its tasks, started with the first one.
    pub fn persistent(&self) -> io::Result<Persistent> {
        Persistent::new(self.clone())
    }
}

/// Reaps orphans from now on, if this process can get any. The processes of `spec` are none.
pub fn reap_orphans(spec: Option<&Spec>) -> io::Result<()> {
    orphan::reap_orphans(spec.map_or_else(Arc::default, Spec::sessions))
}
