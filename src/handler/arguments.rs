//! The arguments of a command that gets its task's body as one of them (`--arg`).

use std::ffi::CString;

/// What stands for the body, as in `xargs -I {}` and `find -exec`.
const PLACE: &[u8] = b"{}";

/// The longest argument with the NUL at its end: Linux's own limit where pages have 4 KiB. It is larger where they are, but
/// what becomes of a task must not depend on who runs it.
const ARGUMENT_MAX: usize = 128 * 1024;

/// What POSIX promises for a command line and its environment. If so little is too much, it is not for the body.
const ALWAYS_FITS: usize = 4096;

/// The arguments with the body in place of each that is `{}`, or after the last one. The first one is the name of the
/// command, which no body replaces.
///
/// # Errors
/// The body cannot be an argument; the text says why.
pub(super) fn with_body(arguments: &[CString], body: &[u8]) -> Result<Vec<CString>, String> {
    if body.len() >= ARGUMENT_MAX {
        let (has, most) = (body.len(), ARGUMENT_MAX - 1);
        return Err(format!("the body cannot be an argument: it has {has} bytes, and {most} are possible"));
    }
    let body = CString::new(body)
        .map_err(|_| "the body cannot be an argument: it holds a NUL byte, which ends one".to_owned())?;
    let mut words = arguments.to_vec();
    let mut has_place = false;
    for place in words.iter_mut().skip(1).filter(|word| word.as_bytes() == PLACE) {
        place.clone_from(&body);
        has_place = true;
    }
    if !has_place {
        words.push(body);
    }
    Ok(words)
}

/// Why the body is to blame if a command cannot be started with these arguments because they are too long together with the
/// environment; `None` if it is not.
pub(super) fn body_is_too_long(arguments: &[CString], body: &[u8]) -> Option<String> {
    let is_body = |word: &&CString| word.as_bytes() == body;
    let copies = arguments.iter().skip(1).filter(is_body).count();
    let bytes = body.len() * copies;
    (bytes > ALWAYS_FITS).then(|| {
        format!("the body cannot be an argument: {bytes} bytes of it are too many for one command line")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(arguments: &[&str]) -> Vec<CString> {
        arguments.iter().map(|word| CString::new(*word).unwrap()).collect()
    }

    #[test]
    fn the_body_takes_its_places_or_the_last_one() {
        for (arguments, expected) in [
            (&["cmd"][..], &["cmd", "b {}"][..]),
            (&["cmd", "a"], &["cmd", "a", "b {}"]),
            (&["cmd", "{}", "a"], &["cmd", "b {}", "a"]),
            (&["cmd", "{}", "x", "{}"], &["cmd", "b {}", "x", "b {}"]),
            // Only a whole argument, and never the command.
            (&["cmd", "a{}", "{ }", "{}{}"], &["cmd", "a{}", "{ }", "{}{}", "b {}"]),
            (&["{}"], &["{}", "b {}"]),
        ] {
            assert_eq!(with_body(&words(arguments), b"b {}"), Ok(words(expected)), "{arguments:?}");
        }
        assert_eq!(with_body(&words(&["cmd"]), b""), Ok(words(&["cmd", ""])));
        let bytes = with_body(&words(&["cmd"]), b"\xff\n").unwrap();
        assert_eq!(bytes[1].as_bytes(), b"\xff\n");
    }

    #[test]
    fn what_no_argument_can_be_is_told() {
        let why = |body: &[u8]| with_body(&words(&["cmd", "{}"]), body).err().unwrap_or_default();
        assert!(why(b"a\0b").contains("NUL"));
        assert!(why(&vec![b'x'; ARGUMENT_MAX]).contains("131072 bytes"));
        assert_eq!(why(&vec![b'x'; ARGUMENT_MAX - 1]), "");
    }

    #[test]
    fn a_short_body_is_not_to_blame_for_a_long_command_line() {
        let blamed = |arguments: &[&str], body: &[u8]| {
            body_is_too_long(&with_body(&words(arguments), body).unwrap(), body).is_some()
        };
        assert!(!blamed(&["cmd"], &[b'x'; ALWAYS_FITS]));
        assert!(blamed(&["cmd"], &[b'x'; ALWAYS_FITS + 1]));
        assert!(blamed(&["cmd", "{}", "{}"], &[b'x'; ALWAYS_FITS / 2 + 1]));
        assert!(!blamed(&["cmd"], b""));
    }
}
