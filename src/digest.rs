//! A digest of bytes, by which they are recognised again.

/// FNV-1a in 64 bits. It is the same in every version and on every machine, and no defence: who wants two texts with one
/// digest finds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// These bytes come after the ones before.
    pub fn add(&mut self, bytes: &[u8]) {
        const PRIME: u64 = 0x0100_0000_01b3;
        self.0 = bytes.iter().fold(self.0, |digest, byte| (digest ^ u64::from(*byte)).wrapping_mul(PRIME));
    }

    /// All bits of it depend on all the bytes: FNV alone leaves its upper bits nearly as they were before the last bytes.
    /// (The last step of MurmurHash3.)
    #[must_use]
    pub fn mixed(self) -> u64 {
        let mix = |digest: u64, factor: u64| (digest ^ (digest >> 33)).wrapping_mul(factor);
        let mixed = mix(mix(self.0, 0xff51_afd7_ed55_8ccd), 0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Digest {
        let mut digest = Digest::default();
        digest.add(bytes);
        digest
    }

    #[test]
    fn it_is_the_one_that_others_compute() {
        assert_eq!(of(b""), Digest(0xcbf2_9ce4_8422_2325));
        assert_eq!(of(b"a"), Digest(0xaf63_dc4c_8601_ec8c));
        assert_eq!(of(b"foobar"), Digest(0x8594_4171_f739_67e8));
    }

    #[test]
    fn its_upper_bits_tell_the_last_bytes_apart() {
        let upper: std::collections::BTreeSet<u64> =
            (0..1000).map(|n| of(format!("task {n}").as_bytes()).mixed() >> 32).collect();
        assert_eq!(upper.len(), 1000);
    }
}
