//! What reaches a person: bodies escaped so that they cannot drive a terminal, the logger, and the streams behind it.

mod logger;
mod standard;
mod stream;

use std::fmt::Write as _;
use std::io::{self, Write as _};

use crate::blocking::Blocking;
pub use logger::{Verbosity, install_logger, install_panic_message};
pub use standard::{Patience, finish, flush_stderr, stderr, stdout};
pub use stream::{Parcel, Stream, Unwritten};

/// How much of a body is shown in a message, in characters.
const EXCERPT_CHARS: usize = 200;

/// A body as one printable line: control characters and invalid UTF-8 escaped, cut at a sensible length.
#[must_use]
pub fn excerpt(bytes: &[u8]) -> String {
    // A character is four bytes at most, so this prefix decides everything that will be shown.
    let head = &bytes[..bytes.len().min(EXCERPT_CHARS * 4 + 4)];
    let mut out = String::new();
    let mut shown = 0;
    for chunk in head.utf8_chunks() {
        for c in chunk.valid().chars() {
            if shown == EXCERPT_CHARS {
                let _ = write!(out, "… ({} bytes)", bytes.len());
                return out;
            }
            push_escaped(&mut out, c);
            shown += 1;
        }
        for byte in chunk.invalid() {
            if shown == EXCERPT_CHARS {
                let _ = write!(out, "… ({} bytes)", bytes.len());
                return out;
            }
            let _ = write!(out, "\\x{byte:02x}");
            shown += 1;
        }
    }
    if head.len() < bytes.len() {
        let _ = write!(out, "… ({} bytes)", bytes.len());
    }
    out
}

/// A number and what it is a number of: `1 task`, `2 tasks`.
#[must_use]
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Text from outside (a broker's reason, a file name) as one printable line of any length.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_escaped(&mut out, c);
    }
    out
}

/// Any bytes as printable lines: what [`excerpt`] does to one line, without cutting, and line ends are kept.
#[must_use]
pub fn escape_lines(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\n' {
                out.push(c);
            } else {
                push_escaped(&mut out, c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn push_escaped(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c.is_control() => {
            let _ = write!(out, "\\x{:02x}", u32::from(c));
        }
        c if is_invisible(c) => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
        c => out.push(c),
    }
}

/// Characters that reorder or hide the text around them (bidirectional controls, zero-width characters, line and
/// paragraph separators, tags).
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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
mod proptests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_text_is_left_alone() {
        assert_eq!(excerpt("hello... it's \"größer\" C:\\x".as_bytes()), "hello... it's \"größer\" C:\\x");
        assert_eq!(excerpt(b""), "");
    }

    #[test]
    fn nothing_that_drives_a_terminal_survives() {
        assert_eq!(excerpt(b"\x1b[2J\x07\r\n\tx\x7f"), "\\x1b[2J\\x07\\r\\n\\tx\\x7f");
        assert_eq!(excerpt("\u{9b}31m\u{202e}abc\u{200b}".as_bytes()), "\\x9b31m\\u{202e}abc\\u{200b}");
        assert_eq!(excerpt(b"a\xff\xfeb\xc3"), "a\\xff\\xfeb\\xc3");
    }

    #[test]
    fn one_is_told_as_one() {
        let told = [0, 1, 2, 1000].map(|count| counted(count, "task", "tasks"));
        assert_eq!(told, ["0 tasks", "1 task", "2 tasks", "1000 tasks"]);
    }

    #[test]
    fn long_bodies_are_cut_and_their_length_told() {
        let body = "x".repeat(EXCERPT_CHARS);
        assert_eq!(excerpt(body.as_bytes()), body);
        assert_eq!(excerpt(format!("{body}y").as_bytes()), format!("{body}… (201 bytes)"));
        let wide = "ü".repeat(100_000);
        assert_eq!(excerpt(wide.as_bytes()), format!("{}… (200000 bytes)", "ü".repeat(EXCERPT_CHARS)));
        let raw = vec![0xff; 5000];
        assert_eq!(excerpt(&raw), format!("{}… (5000 bytes)", "\\xff".repeat(EXCERPT_CHARS)));
    }
}
