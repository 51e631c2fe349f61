//! Chance that can be had again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A small generator (xorshift64*): a failure can be had again with the seed it printed.
pub(crate) struct Dice(u64);

impl Dice {
    /// From the seed in `TASKQ_TEST_SEED`, or a new one.
    pub(crate) fn new() -> Self {
        let seed = std::env::var("TASKQ_TEST_SEED").map_or_else(
            |_| u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap() | 1,
            |seed| seed.parse().unwrap(),
        );
        println!("TASKQ_TEST_SEED={seed}");
        Self::from(seed)
    }

    /// From this seed: the same luck again.
    pub(crate) fn from(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike, and none may be 0.
        let mut dice = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        dice.below(1);
        dice
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        // The upper half: the lower bits are less random.
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % limit
    }

    pub(crate) fn pause(&mut self, below_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(below_ms)));
    }
}
