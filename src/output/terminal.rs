//! How much room there is on a terminal.

use std::os::fd::AsFd;

/// How many columns it has now: the window may be resized at any time. None for what is no terminal, or one that does
/// not say, such as a serial line.
#[must_use]
pub fn terminal_width(stream: impl AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_terminal_has_no_width() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(terminal_width(&reader), None);
        assert_eq!(terminal_width(&writer), None);
    }
}
