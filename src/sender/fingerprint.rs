//! By which the bytes that were read of a file are recognised again.

/// How many bytes there were, and a digest of them (FNV-1a): enough to tell a file that was written anew from one that
/// was only added to. It is no defence: who may write to the file needs none of this to spoil it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFingerprint {
    bytes: u64,
    digest: u64,
}

impl Default for FileFingerprint {
    fn default() -> Self {
        Self { bytes: 0, digest: 0xcbf2_9ce4_8422_2325 }
    }
}

impl FileFingerprint {
    /// These bytes come after the ones before.
    pub fn add(&mut self, bytes: &[u8]) {
        const PRIME: u64 = 0x0100_0000_01b3;
        self.bytes += bytes.len() as u64;
        self.digest =
            bytes.iter().fold(self.digest, |digest, byte| (digest ^ u64::from(*byte)).wrapping_mul(PRIME));
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
