//! What the files of a task are called.

use crate::digest::Digest;
use crate::percent;

/// The longest id that is a name itself, in bytes as it is written there. File systems take 255 for all of a name.
const ID_MAX: usize = 200;

/// Stands before a digest. No id can be written so: in one it is escaped.
const DIGEST_MARK: char = '@';

/// The names of a task's files, without `.<attempt>.out` and `.<attempt>.err`: its id, in which whatever is no letter,
/// digit, `.`, `_` or `-` is escaped as in a URL, and a `.` or `-` at the beginning as well. Where there is no id, or the
/// name would be too long, a digest of id and body.
pub(super) fn stem(id: &str, body: &[u8]) -> String {
    let plain = |nth, byte: u8| {
        byte.is_ascii_alphanumeric() || byte == b'_' || nth > 0 && (byte == b'.' || byte == b'-')
    };
    let name = percent::encode(id.as_bytes(), plain);
    if (1..=ID_MAX).contains(&name.len()) { name } else { digest(id, body) }
}

fn digest(id: &str, body: &[u8]) -> String {
    let mut digest = Digest::default();
    digest.add(&(id.len() as u64).to_le_bytes());
    digest.add(id.as_bytes());
    digest.add(body);
    format!("{DIGEST_MARK}{:016x}", digest.mixed())
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;
    use crate::percent::decode;

    #[test]
    fn an_id_is_a_name_that_leads_nowhere_else() {
        for (id, name) in [
            ("01a204a2-499c-7598-8b3f-bb9077d323e2", "01a204a2-499c-7598-8b3f-bb9077d323e2"),
            ("a/b", "a%2Fb"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            (".", "%2E"),
            ("..", "%2E."),
            ("-rf", "%2Drf"),
            ("nul\0 \n%", "nul%00%20%0A%25"),
            ("@0", "%400"),
            ("ü", "%C3%BC"),
        ] {
            assert_eq!(stem(id, b""), name);
        }
    }

    #[test]
    fn without_an_id_that_fits_it_is_a_digest_and_the_same_in_every_version() {
        assert_eq!(stem("", b"hello"), "@9e4e330444ee1017");
        let fits = "x".repeat(ID_MAX);
        assert_eq!(stem(&fits, b"hello"), fits);
        // 67 bytes, of which three are made of each.
        for long in ["x".repeat(255), "/".repeat(67)] {
            let name = stem(&long, b"hello");
            assert!(name.len() == 17 && name.starts_with(DIGEST_MARK), "{name}");
            assert_ne!(name, stem(&long, b"another body"));
            assert_ne!(name, stem(&long[1..], b"hello"));
        }
        assert_ne!(stem("", b"one"), stem("", b"two"));
    }

    proptest! {
        #[test]
        fn any_id_is_one_name_and_no_other_id_has_it(id in "\\PC{0,90}|[\\x00-\\x7f]{0,255}", other in any::<String>(), body in any::<Vec<u8>>()) {
            let name = stem(&id, &body);
            let file = format!("{name}.{}.out", u32::MAX);
            prop_assert!(file.len() <= 255 && file.is_ascii() && !file.contains(['/', '\0']));
            prop_assert!(!file.starts_with(['.', '-']));
            prop_assert_eq!(Path::new(&file).components().collect::<Vec<_>>(), [Component::Normal(file.as_ref())]);
            if name.starts_with(DIGEST_MARK) {
                prop_assert!(id.is_empty() || id.len() * 3 > ID_MAX);
            } else {
                // It can be read back, so it is that of no other id.
                prop_assert_eq!(decode(&name), Some(id.clone().into_bytes()));
            }
            prop_assert!(id == other || name != stem(&other, &body));
        }
    }
}
