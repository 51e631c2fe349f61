//! What reaches a person: bodies escaped so that they cannot drive a terminal, the logger, and the streams behind it.

mod columns;
mod escape;
mod format;
mod json;
mod lines;
mod logger;
mod secrets;
mod standard;
mod stream;
mod terminal;
mod text;

use std::io::{self, Write as _};

use crate::blocking::Blocking;
pub use columns::{fit, width};
pub use escape::{escape, escape_lines};
pub use format::{CommandLines, LogFormat};
pub use json::line_of_json;
pub use lines::{Lines, Printed};
pub use logger::{RECOVERY, Verbosity, install_logger, install_panic_message};
pub use secrets::{hide, hide_urls_of};
pub use standard::{Patience, finish, flush_stderr, stderr, stdout};
pub use stream::{Parcel, Stream, Unwritten};
pub use terminal::terminal_width;
pub use text::{Excerpt, excerpt, foreign, message, one_word, path, start};

/// A number and what it is a number of: `1 task`, `2 tasks`.
#[must_use]
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Writes data to stdout and flushes it. `false` where its reader has seen enough and closed the pipe: that is the
/// reader's business, and no error.
pub fn print(data: &[u8]) -> io::Result<bool> {
    let mut stdout = Blocking(io::stdout().lock());
    unless_closed(stdout.write_all(data).and_then(|()| stdout.flush()))
}

/// What [`print()`] makes of what a write to stdout returned.
pub fn unless_closed(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_told_as_one() {
        let told = [0, 1, 2, 1000].map(|count| counted(count, "task", "tasks"));
        assert_eq!(told, ["0 tasks", "1 task", "2 tasks", "1000 tasks"]);
    }
}
