//! Passwords that must not be printed, wherever a message repeats them: in a broker's words, a header, a command's name.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::RwLock;

use super::escape::escape;
use crate::percent;

/// What stands in place of a password.
const HIDDEN: &str = "***";
/// In bytes. A shorter password hides in any word by chance: replacing it would spoil messages, and show where it was.
const SHORTEST: usize = 4;

/// Every form in which a password of this process may come back, the longest first.
static PASSWORDS: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// From now on [`redact`] hides this password: as it is, as bytes, and escaped as in a URL (as one library or another
/// does it) or in a message.
pub fn hide(password: &str) {
    let bytes = password.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    let mut forms = vec![password.to_owned(), bytes, password.escape_debug().to_string(), escape(password)];
    for left_as_they_are in ["-._~", "-._~/", "-._", "-_.!~*'()"] {
        for blank in [Blank::Escaped, Blank::Plus] {
            let encoded = percent_encoded(password, left_as_they_are, &blank);
            forms.push(lower_escapes(&encoded));
            forms.push(encoded);
        }
    }
    let all = password.bytes().fold(String::new(), |out, byte| out + &format!("%{byte:02X}"));
    forms.extend([all.to_ascii_lowercase(), all]);
    hide_forms(&forms);
}

/// Hides the passwords of all broker URLs in an argument or a variable, as they are written there, before anything
/// else reads it: a complaint may repeat what is malformed, or stands where no URL is expected.
pub fn hide_urls_of(argument: &str) {
    let urls = url_starts(argument);
    for (before, password) in (0..urls.len()).filter_map(|number| password_at(argument, &urls, number).1) {
        let scheme = before.rsplit_once("://").map_or("", |(scheme, _)| scheme);
        let word = scheme.rfind(|c: char| !c.is_ascii_alphanumeric()).map_or(scheme, |at| &scheme[at..]);
        if word.to_ascii_lowercase().contains("amqp") {
            hide(password);
            // Where it cannot be decoded, nobody logs in with it.
            if let Some(Ok(decoded)) = percent::decode(password).map(String::from_utf8) {
                hide(&decoded);
            }
        }
    }
}

fn hide_forms(forms: &[String]) {
    let mut known = PASSWORDS.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    for form in forms.iter().filter(|form| form.len() >= SHORTEST) {
        if !known.iter().any(|old| old == form) {
            known.push(form.clone());
        }
    }
    // A password may be a part of another one.
    known.sort_by_key(|form| std::cmp::Reverse(form.len()));
}

/// The same text without the passwords.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let known = PASSWORDS.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut text = Cow::Borrowed(text);
    for form in known.iter() {
        if text.contains(form.as_str()) {
            text = Cow::Owned(text.replace(form.as_str(), HIDDEN));
        }
    }
    text
}

/// The same of bytes that need not be text.
#[must_use]
pub fn redact_bytes(bytes: &[u8]) -> Cow<'_, [u8]> {
    let known = PASSWORDS.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut bytes = Cow::Borrowed(bytes);
    for form in known.iter() {
        let form = form.as_bytes();
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(form.len()).position(|window| window == form) {
            let begin = at + found;
            bytes.to_mut().splice(begin..begin + form.len(), HIDDEN.bytes());
            at = begin + HIDDEN.len();
        }
    }
    bytes
}

/// How many bytes the longest form of a password has: none of them lies across the end of a text that goes on for so
/// long.
#[must_use]
pub fn longest() -> usize {
    let known = PASSWORDS.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    known.first().map_or(0, String::len)
}

/// The same text without what stands for a password in anything like a URL, for text that was typed and may be a URL of
/// any service.
#[must_use]
pub fn redact_urls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    for (before, password) in url_passwords(text) {
        let at = before.len() - (text.len() - rest.len());
        out.push_str(&rest[..at]);
        out.push_str(HIDDEN);
        rest = &rest[at + password.len()..];
    }
    out.push_str(rest);
    out
}

/// The passwords of what looks like URLs, each with all of the text before it.
fn url_passwords(text: &str) -> Vec<(&str, &str)> {
    let urls = url_starts(text);
    let mut passwords = Vec::new();
    let mut number = 0;
    while number < urls.len() {
        let (next, password) = password_at(text, &urls, number);
        passwords.extend(password);
        number = next;
    }
    passwords
}

/// Where a user's name may begin.
fn url_starts(text: &str) -> Vec<usize> {
    text.match_indices("://").map(|(at, found)| at + found.len()).collect()
}

/// The number of the next URL, and the password of this one with all of the text before it. Any character may stand in
/// it unescaped: it goes on until the last @ before the next URL, which cannot begin before the first @, nor right after
/// one: there a host is, and otherwise it is still the password.
fn password_at<'t>(text: &'t str, urls: &[usize], number: usize) -> (usize, Option<(&'t str, &'t str)>) {
    let begin = urls[number];
    let is_next = |other: &usize| {
        let between = &text[begin..urls[*other] - "://".len()];
        let before_scheme =
            between.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let has_scheme = before_scheme.len() < between.len();
        has_scheme && before_scheme.contains('@') && !before_scheme.ends_with('@')
    };
    let next = (number + 1..urls.len()).find(is_next).unwrap_or(urls.len());
    let end = urls.get(next).copied().unwrap_or(text.len());
    let password = text[begin..end].rsplit_once('@').and_then(|(userinfo, _)| userinfo.split_once(':'));
    // One that is the user's name is no secret: it is shown as that.
    let secret = password.filter(|(user, password)| !password.is_empty() && password != user);
    (next, secret.map(|(user, password)| (&text[..=begin + user.len()], password)))
}

/// How a blank is written in a URL.
enum Blank {
    Escaped,
    Plus,
}

fn percent_encoded(text: &str, left_as_they_are: &str, blank: &Blank) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match (byte, blank) {
            (b' ', Blank::Plus) => out.push('+'),
            _ if byte.is_ascii_alphanumeric() || left_as_they_are.as_bytes().contains(&byte) => {
                out.push(char::from(byte));
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}

/// The same with `%2f` for `%2F`.
fn lower_escapes(encoded: &str) -> String {
    let mut parts = encoded.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |out, part| {
        let (digits, rest) = part.split_at(part.len().min(2));
        out + "%" + &digits.to_ascii_lowercase() + rest
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_hidden_in_every_form() {
        hide("in the/house+\u{1b}");
        for form in [
            "in the/house+\u{1b}",
            "in%20the%2Fhouse%2B%1B",
            "in%20the%2fhouse%2b%1b",
            "in%20the/house%2B%1B",
            "in+the%2Fhouse%2B%1B",
            "%69%6E%20%74%68%65%2F%68%6F%75%73%65%2B%1B",
            "in the/house+\\x1b",
            "in the/house+\\u{1b}",
            "105, 110, 32, 116, 104, 101, 47, 104, 111, 117, 115, 101, 43, 27",
        ] {
            assert_eq!(redact(&format!("refused for {form}!")), "refused for ***!", "{form}");
            let bytes = [b"\xff", form.as_bytes(), b"\xfe", form.as_bytes()].concat();
            assert_eq!(&*redact_bytes(&bytes), b"\xff***\xfe***", "{form}");
            assert!(longest() >= form.len());
        }
        assert!(matches!(redact("in the house"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_password_that_holds_another_one_is_hidden_whole() {
        hide("swordfish");
        hide("my swordfish too");
        assert_eq!(redact("swordfish, my swordfish too"), "***, ***");
    }

    #[test]
    fn one_that_any_word_may_hold_spoils_no_message() {
        hide("err");
        assert_eq!(redact("an error"), "an error");
    }

    #[test]
    fn passwords_are_taken_from_broker_urls_alone() {
        for url in [
            "x=AMQPS://u:bookcase@h",
            "amqpz://u:armchair@h",
            "http://u:tabletop@h see amqp://h",
            "http://a:80 and amqp://u:footstool@h",
        ] {
            hide_urls_of(url);
        }
        assert_eq!(redact("bookcase armchair footstool tabletop"), "*** *** *** tabletop");
        hide_urls_of("amqp://u:side%20board@h,amqp://u:wardrobe%2@h");
        assert_eq!(redact("side%20board side board wardrobe%2"), "*** *** ***");
    }

    #[test]
    fn passwords_are_found_in_urls_of_any_form() {
        let found = |text| url_passwords(text).into_iter().map(|(_, password)| password).collect::<Vec<_>>();
        assert_eq!(found("amqp://u:se cret@h/v"), ["se cret"]);
        assert_eq!(found("'https://u:s3@c/r?et#@h/x' found"), ["s3@c/r?et#"]);
        assert_eq!(found("amqp://u:one@h,amqp://u:two@h"), ["one", "two"]);
        assert_eq!(found("amqp://u:a://b@h"), ["a://b"]);
        assert_eq!(found("'amqp://://secret@h'"), ["//secret"]);
        assert_eq!(found("'amqp://:@secret://@host' found"), ["@secret://"]);
        assert_eq!(found("amqp://u:@,://secret@host"), ["@,://secret"]);
        assert_eq!(found("amqp://guest:guest@h amqp://u:@h amqp://u@h https://example.org/x:y"), [""; 0]);
        assert_eq!(redact_urls("a amqp://u:one@h, b://v:tw o@i/x c"), "a amqp://u:***@h, b://v:***@i/x c");
        assert_eq!(redact_urls("see https://example.org/x"), "see https://example.org/x");
    }
}
