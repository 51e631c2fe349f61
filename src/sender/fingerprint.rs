//! By which the bytes that were read of a file are recognised again.

use crate::digest::Digest;

/// How many bytes there were, and a digest of them: enough to tell a file that was written anew from one that was only
/// added to. It is no defence: who may write to the file needs none of this to spoil it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileFingerprint {
    bytes: u64,
    digest: Digest,
}

impl FileFingerprint {
    /// These bytes come after the ones before.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.digest.add(bytes);
    }

    /// How many bytes there were.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_depends_on_the_bytes_and_not_on_the_pieces() {
        let of = |pieces: &[&str]| {
            let mut fingerprint = FileFingerprint::default();
            for piece in pieces {
                fingerprint.add(piece.as_bytes());
            }
            fingerprint
        };
        assert_eq!(of(&["ab", "", "c"]), of(&["abc"]));
        assert_eq!(of(&["abc"]).bytes(), 3);
        for other in ["abd", "acb", "ab", "abc\0"] {
            assert_ne!(of(&[other]), of(&["abc"]), "{other:?}");
        }
    }
}
