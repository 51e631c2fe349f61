//! Finds the file of a command, and says what is wrong with it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::output;

/// Searched if there is no PATH, as by `execvp`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// How many bytes of a script are read to find its interpreter: the kernel reads no more either.
const SHEBANG_MAX: u64 = 256;

/// Checks that `program` can be executed, without running it.
///
/// # Errors
/// One line for a person that names the program and says what is wrong with it.
pub(super) fn check(program: &OsStr) -> Result<(), String> {
    let path = find(program)?;
    match interpreter(&path) {
        Some(interpreter) if !interpreter.exists() => Err(format!(
            "{} needs \"{}\", which does not exist",
            output::path(path),
            output::path(interpreter)
        )),
        _ => Ok(()),
    }
}

/// The file that `execvp` would execute now.
pub(super) fn find(program: &OsStr) -> Result<PathBuf, String> {
    let path = env::var_os("PATH");
    let name = output::path(program);
    if program.is_empty() {
        return Err("the command is empty".into());
    }
    if program.as_bytes().contains(&b'/') {
        return executable(Path::new(program)).map(|()| program.into());
    }
    let mut found = Err(format!("{name}: command not found (looked in PATH)"));
    for folder in env::split_paths(path.as_deref().unwrap_or(OsStr::new(DEFAULT_PATH))) {
        // An empty entry means the current folder. The path gets a slash, so that nobody searches PATH for it again.
        let file =
            if folder.as_os_str().is_empty() { Path::new(".").join(program) } else { folder.join(program) };
        // Most folders have no such file: only where there is one it is looked at more closely.
        if file.metadata().is_ok_and(|file| !file.is_dir()) {
            match executable(&file) {
                Ok(()) => return Ok(file),
                // As `execvp` does: a later folder may have one that can be executed.
                Err(why) => found = Err(why),
            }
        }
    }
    found
}

fn executable(path: &Path) -> Result<(), String> {
    let name = output::path(path);
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!("{name}: command not found")),
        Err(error) => Err(format!("{name}: {error}")),
        Ok(file) if file.is_dir() => Err(format!("{name} is a directory")),
        // To look for an interpreter in a named pipe would wait for a writer.
        Ok(file) if !file.is_file() => Err(format!("{name} is not a regular file")),
        Ok(_) => access(path, AccessFlags::X_OK).map_err(|_| format!("{name} is not executable")),
    }
}

/// The interpreter that a script names in its first line. None if the file is no script or cannot be read.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut start = Vec::new();
    File::open(path).ok()?.take(SHEBANG_MAX).read_to_end(&mut start).ok()?;
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    // A carriage return counts as part of the name, as for the kernel: a script with DOS line ends cannot be executed.
    let name = line.split(is_blank).find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(name.to_vec())))
}
