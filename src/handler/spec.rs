//! What the person asked to be run, checked before the first task is taken.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use super::abort::AbortPipe;
use super::background::BackgroundPipes;
use super::environment::Environment;
use super::exit::ExitMap;
use super::process::ProcessIo;
use super::relay::Output;
use super::session::Sessions;

/// Where programs are looked for without PATH, as `execvp` does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// How much of a script is read to find its interpreter: the kernel reads no more.
const SHEBANG_MAX: u64 = 256;

/// A command and the rules it runs under. Clones are cheap and belong together: one per worker thread.
#[derive(Clone)]
pub struct Spec(Arc<Shared>);

struct Shared {
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
    /// How long an attempt may take; for ever if none.
    pub timeout: Option<Duration>,
    /// How long a process has between TERM and KILL.
    pub grace: Duration,
    /// What exit statuses mean beside the built-in meanings.
    pub on_exit: ExitMap,
}

impl Spec {
    /// Nothing is started or checked yet.
    #[must_use]
    pub fn new(options: Options, output: Output) -> Self {
        Self(Arc::new(Shared {
            options,
            output,
            environment: Environment::of_this_process(),
            aborts: AbortPipe::default(),
            sessions: Arc::default(),
            background: Arc::default(),
        }))
    }

    /// Looks whether the command can be executed, without running it.
    ///
    /// # Errors
    /// One line for a person that names the command and says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let path = find(&self.0.options.program, env::var_os("PATH").as_deref())?;
        match interpreter(&path) {
            Some(interpreter) if !interpreter.exists() => {
                let interpreter = interpreter.to_string_lossy();
                Err(format!("{} needs {interpreter:?}, which does not exist", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Kills all running handlers of all clones, and those that start later: for a worker that has to exit now.
    /// Orderly ends go through the `abort` channel.
    pub fn kill_all(&self) {
        self.0.sessions.kill_all();
    }

    /// What commands wrote and nobody could take so far, in words.
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

    /// For one worker thread.
    pub(super) fn process_io(&self) -> io::Result<ProcessIo> {
        ProcessIo::new(Arc::clone(&self.0.sessions), Arc::clone(&self.0.background))
    }

    /// The program as it was written, for messages.
    pub(super) fn name(&self) -> String {
        self.0.options.program.display().to_string()
    }

    /// The file to execute; looked for now, so that every start finds what a shell would.
    pub(super) fn path(&self) -> io::Result<PathBuf> {
        let program = &self.0.options.program;
        if program.as_bytes().contains(&b'/') {
            // What is wrong with it comes with the start.
            return Ok(program.into());
        }
        find(program, env::var_os("PATH").as_deref())
            .map_err(|why| io::Error::new(io::ErrorKind::NotFound, why))
    }

    /// The program as it was written, and its arguments.
    pub(super) fn arguments(&self) -> io::Result<Vec<CString>> {
        let Options { program, arguments, .. } = &self.0.options;
        let words = [program].into_iter().chain(arguments);
        Ok(words.map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?)
    }
}

/// The file that `execvp` would execute.
fn find(program: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, String> {
    let name = program.display();
    if program.is_empty() {
        return Err("the command is empty".into());
    }
    if program.as_bytes().contains(&b'/') {
        return executable(Path::new(program)).map(|()| program.into());
    }
    let mut found = Err(format!("{name}: command not found (looked in PATH)"));
    for folder in env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))) {
        // An empty entry is the current folder; the slash keeps the file from being looked for again.
        let file =
            if folder.as_os_str().is_empty() { Path::new(".").join(program) } else { folder.join(program) };
        // Most folders have no such file: one look at each is enough.
        if file.metadata().is_ok_and(|file| !file.is_dir()) {
            match executable(&file) {
                Ok(()) => return Ok(file),
                // As `execvp`: another folder may have a better one.
                Err(why) => found = Err(why),
            }
        }
    }
    found
}

fn executable(path: &Path) -> Result<(), String> {
    let name = path.display();
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!("{name}: command not found")),
        Err(error) => Err(format!("{name}: {error}")),
        Ok(file) if file.is_dir() => Err(format!("{name} is a directory")),
        // A named pipe, say: to look into it would wait for a writer.
        Ok(file) if !file.is_file() => Err(format!("{name} is not a regular file")),
        Ok(_) => access(path, AccessFlags::X_OK).map_err(|_| format!("{name} is not executable")),
    }
}

/// What a script names in its first line. Most commands are no scripts, and some cannot be read.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut start = Vec::new();
    File::open(path).ok()?.take(SHEBANG_MAX).read_to_end(&mut start).ok()?;
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    // A carriage return is part of the name: the classic script that "does not exist".
    let name = line.split(is_blank).find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(name.to_vec())))
}
