//! What the command line says about the command, and what all worker threads share to run it.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::abort::AbortPipe;
use super::background::BackgroundPipes;
use super::environment::Environment;
use super::executable;
use super::exit::ExitMap;
use super::output::Output;
use super::process::ProcessIo;
use super::session::Sessions;
use crate::output;

/// The command, the rules it runs under, and what all worker threads share. Clones are cheap: each handler has one, and
/// they share one state.
#[derive(Clone)]
pub struct Spec(Arc<SpecInner>);

struct SpecInner {
    options: Options,
    output: Output,
    environment: Environment,
    aborts: AbortPipe,
    sessions: Arc<Sessions>,
    background: Arc<BackgroundPipes>,
}

/// What the command line says about the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Looked for on PATH if it has no slash.
    pub program: OsString,
    /// Passed on as they are.
    pub arguments: Vec<OsString>,
    /// The body is one of the arguments, too; for commands that are started for each task.
    pub body_as_argument: bool,
    /// How long an attempt may take; None: as long as it likes.
    pub timeout: Option<Duration>,
    /// How long a process has between TERM and KILL.
    pub grace: Duration,
    /// Rules for exit statuses that go before the built-in meanings.
    pub on_exit: ExitMap,
}

impl Spec {
    /// Nothing is started or checked yet.
    #[must_use]
    pub fn new(options: Options, output: Output) -> Self {
        Self(Arc::new(SpecInner {
            options,
            output,
            environment: Environment::of_this_process(),
            aborts: AbortPipe::default(),
            sessions: Arc::default(),
            background: Arc::default(),
        }))
    }

    /// Checks that the command can be executed, without running it.
    ///
    /// # Errors
    /// One line for a person that names the command and says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        executable::check(&self.0.options.program)
    }

    /// Kills the processes of all clones, and all that start later: for a worker that exits now. To end them in order,
    /// close the `abort` channel instead.
    pub fn kill_all(&self) {
        self.0.sessions.kill_all();
    }

    /// How much output of commands could not be written to the worker's stdout and stderr, or to files, so far, in words;
    /// None if nothing is missing.
    #[must_use]
    pub fn lost_output(&self) -> Option<String> {
        self.0.output.lost()
    }

    pub(super) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(super) fn output(&self) -> &Output {
        &self.0.output
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.0.environment
    }

    pub(super) fn aborts(&self) -> &AbortPipe {
        &self.0.aborts
    }

    pub(super) fn sessions(&self) -> Arc<Sessions> {
        Arc::clone(&self.0.sessions)
    }

    /// For a new worker thread.
    pub(super) fn process_io(&self) -> io::Result<ProcessIo> {
        ProcessIo::new(Arc::clone(&self.0.sessions), Arc::clone(&self.0.background))
    }

    /// The program as it was written, for messages.
    pub(super) fn name(&self) -> String {
        output::path(&self.0.options.program)
    }

    /// The file to execute. PATH is searched for each start, as a shell does: the file may have moved meanwhile.
    pub(super) fn path(&self) -> io::Result<PathBuf> {
        let program = &self.0.options.program;
        if program.as_bytes().contains(&b'/') {
            // If something is wrong with it, the start will say what.
            return Ok(program.into());
        }
        executable::find(program).map_err(|why| io::Error::new(io::ErrorKind::NotFound, why))
    }

    /// The program as it was written, and its arguments.
    pub(super) fn arguments(&self) -> io::Result<Vec<CString>> {
        let Options { program, arguments, .. } = &self.0.options;
        let words = [program].into_iter().chain(arguments);
        Ok(words.map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?)
    }
}
