//! Random numbers that can be repeated from their seed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A small random number generator (xorshift64*). A failed test can be repeated with the seed that it printed.
pub(crate) struct Rng(u64);

impl Rng {
    /// From the seed in `TASKQ_TEST_SEED`, or a new one.
    pub(crate) fn new() -> Self {
        let seed = std::env::var("TASKQ_TEST_SEED").map_or_else(
            |_| u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap() | 1,
            |seed| seed.parse().unwrap(),
        );
        println!("TASKQ_TEST_SEED={seed}");
        Self::from(seed)
    }

    /// From this seed: the same numbers each time.
    pub(crate) fn from(seed: u64) -> Self {
        // Multiplied, so that neighbouring seeds do not begin alike; the state must not be 0.
        let mut rng = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        rng.below(1);
        rng
    }

    /// A number from 0 to `limit - 1`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        // The upper half: the lower bits are less random.
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % limit
    }

    /// Sleeps for a random time below this.
    pub(crate) fn pause(&mut self, below_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(below_ms)));
    }
}
