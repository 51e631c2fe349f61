//! Text from outside as a part of messages: nothing in it can drive a terminal, hide or reorder what stands around it,
//! fill a screen, or show a password.

use std::fmt::{self, Write as _};
use std::path::Path;

use super::escape::{escape, push_escaped};
use super::secrets;

/// How much of a body is shown in a message, in characters as they are shown.
const EXCERPT_CHARS: usize = 200;
/// The same where it only reminds of the task.
const START_CHARS: usize = 80;
/// How much of any other text from outside is shown in a message: a queue's name, or a path of usual length, is whole.
const FOREIGN_CHARS: usize = 300;
/// How long a message can get, whatever is in it.
const MESSAGE_CHARS: usize = 2_000;

/// A body as one printable line: control characters and invalid UTF-8 escaped, cut at a sensible length.
#[must_use]
pub fn excerpt(bytes: &[u8]) -> String {
    cut(bytes, EXCERPT_CHARS)
}

/// The same, and less of it.
#[must_use]
pub fn start(bytes: &[u8]) -> String {
    cut(bytes, START_CHARS)
}

/// [`excerpt`], made when it is shown.
pub struct Excerpt<'b>(pub &'b [u8]);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&excerpt(self.0))
    }
}

fn cut(bytes: &[u8], most: usize) -> String {
    // A character is four bytes at most, so this prefix decides everything that will be shown.
    let head = &bytes[..bytes.len().min(most * 4 + 4 + secrets::longest())];
    let head = secrets::redact_bytes(head);
    let mut out = String::new();
    let mut room = most;
    let mut fits = |out: &mut String, before: usize| {
        let left = room.checked_sub(out[before..].chars().count());
        match left {
            Some(left) => room = left,
            None => out.truncate(before),
        }
        left.is_some()
    };
    let whole = head.utf8_chunks().all(|chunk| {
        chunk.valid().chars().all(|c| {
            let before = out.len();
            push_escaped(&mut out, c);
            fits(&mut out, before)
        }) && chunk.invalid().iter().all(|byte| {
            let before = out.len();
            let _ = write!(out, "\\x{byte:02x}");
            fits(&mut out, before)
        })
    });
    if !whole {
        let _ = write!(out, "… ({} bytes)", bytes.len());
    }
    out
}

/// Text from outside (a broker's words, a name, a reason) as a part of a message: printable, without passwords, and no
/// longer than a few hundred characters.
#[must_use]
pub fn foreign(text: impl AsRef<str>) -> String {
    let text = secrets::redact_urls(&secrets::redact(text.as_ref()));
    shortened(&escape(&text), FOREIGN_CHARS)
}

/// The same of a path, whose end tells most.
#[must_use]
pub fn path(path: impl AsRef<Path>) -> String {
    foreign(path.as_ref().to_string_lossy())
}

/// An id without what ends it where it stands in brackets of either kind, or in a list: [`foreign`], and no blank.
#[must_use]
pub fn one_word(id: &str) -> String {
    let mut word = String::with_capacity(id.len());
    for c in foreign(id).chars() {
        match c {
            '(' | ')' | '[' | ']' | ',' | ' ' => {
                let _ = write!(word, "\\x{:02x}", u32::from(c));
            }
            c => word.push(c),
        }
    }
    word
}

/// A whole message as one line of bounded length, whatever it was composed of.
#[must_use]
pub fn message(text: &str) -> String {
    shortened(&escape(&secrets::redact(text)), MESSAGE_CHARS)
}

/// Both ends of it, where it is too long: what a message says of a name stands after it.
fn shortened(text: &str, most: usize) -> String {
    let chars = text.chars().count();
    if chars <= most {
        return text.to_owned();
    }
    let at = |nth: usize| text.char_indices().nth(nth).map_or(text.len(), |(at, _)| at);
    let (head, tail) = (&text[..at(most / 2)], &text[at(chars - most / 2)..]);
    format!("{head}…{tail}")
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
        assert_eq!(foreign("a queue, größer"), "a queue, größer");
    }

    #[test]
    fn nothing_that_drives_a_terminal_survives() {
        assert_eq!(excerpt(b"\x1b[2J\x07\r\n\tx\x7f"), "\\x1b[2J\\x07\\r\\n\\tx\\x7f");
        assert_eq!(excerpt("\u{9b}31m\u{202e}abc\u{200b}".as_bytes()), "\\x9b31m\\u{202e}abc\\u{200b}");
        assert_eq!(excerpt(b"a\xff\xfeb\xc3"), "a\\xff\\xfeb\\xc3");
        assert_eq!(foreign("\u{1b}[2J\u{202e}\n"), "\\x1b[2J\\u{202e}\\n");
        assert_eq!(message("one\r\ntwo\u{1b}"), "one\\r\\ntwo\\x1b");
    }

    #[test]
    fn an_id_is_one_word_without_brackets() {
        assert_eq!(one_word("01a2-b/c.d"), "01a2-b/c.d");
        assert_eq!(one_word("a] (b), [c\n"), "a\\x5d\\x20\\x28b\\x29\\x2c\\x20\\x5bc\\n");
    }

    #[test]
    fn long_bodies_are_cut_and_their_length_told() {
        let body = "x".repeat(EXCERPT_CHARS);
        assert_eq!(excerpt(body.as_bytes()), body);
        assert_eq!(excerpt(format!("{body}y").as_bytes()), format!("{body}… (201 bytes)"));
        let wide = "ü".repeat(100_000);
        assert_eq!(excerpt(wide.as_bytes()), format!("{}… (200000 bytes)", "ü".repeat(EXCERPT_CHARS)));
        let raw = vec![0xff; 5000];
        assert_eq!(excerpt(&raw), format!("{}… (5000 bytes)", "\\xff".repeat(EXCERPT_CHARS / 4)));
    }

    #[test]
    fn long_text_keeps_both_ends() {
        let name = format!("/srv/{}/file", "ü".repeat(4000));
        let shown = path(&name);
        assert!(shown.starts_with("/srv/ü") && shown.ends_with("ü/file"), "{shown}");
        assert_eq!(shown.chars().count(), FOREIGN_CHARS + 1);
        let told = message(&format!("cannot read {name}: no such file"));
        assert!(told.starts_with("cannot read /srv") && told.ends_with("/file: no such file"), "{told}");
        assert_eq!(told.chars().count(), MESSAGE_CHARS + 1);
    }

    #[test]
    fn a_password_is_in_no_text_nor_a_part_of_it() {
        secrets::hide("correcthorse");
        for before in EXCERPT_CHARS - 14..=EXCERPT_CHARS {
            let shown = excerpt(format!("{}correcthorse", "x".repeat(before)).as_bytes());
            assert!(!shown.contains('c'), "{shown}");
        }
        assert_eq!(foreign("ACCESS_REFUSED for correcthorse"), "ACCESS_REFUSED for ***");
        assert_eq!(foreign("https://me:token@example.org/x"), "https://me:***@example.org/x");
        assert_eq!(message("no file correcthorse.txt"), "no file ***.txt");
    }
}
