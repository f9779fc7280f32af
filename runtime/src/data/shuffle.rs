//! The order of rows: a permutation of each epoch that is computed, not stored, so that a run resumes at any row.
use crate::random::philox4x32;

/// Rounds of the Feistel network. Four make its output indistinguishable from random for this use (Luby and Rackoff, "How to
/// construct pseudorandom permutations from pseudorandom functions", 1988).
const ROUNDS: u32 = 4;

/// A permutation of `0..len` that depends on a seed and an epoch.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    key: [u32; 2],
    epoch: u64,
}

impl Permutation {
    /// The permutation of an epoch. `len` must be at least 1 and below 2^62.
    pub fn new(len: u64, seed: u64, epoch: u64) -> Permutation {
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        Permutation { len, half_bits: bits.div_ceil(2).max(1), key: [seed as u32, (seed >> 32) as u32], epoch }
    }
    /// The row at a place, which must be below `len`.
    pub fn at(&self, place: u64) -> u64 {
        // The network permutes the next power of four; walking its cycle from inside the range comes back into the range.
        let mut x = place;
        loop {
            x = self.network(x);
            if x < self.len {
                return x;
            }
        }
    }
    fn network(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for round in 0..ROUNDS {
            let counter = [right as u32, (self.epoch << 2) as u32 | round, (self.epoch >> 30) as u32, 0x5u32];
            let words = philox4x32(counter, self.key);
            let mixed = (u64::from(words[0]) | u64::from(words[1]) << 32) & mask;
            (left, right) = (right, left ^ mixed);
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_once_in_each_epoch_and_in_another_order() {
        for len in [1, 2, 3, 7, 64, 1000, 4097] {
            let order = |seed, epoch| {
                let permutation = Permutation::new(len, seed, epoch);
                (0..len).map(|i| permutation.at(i)).collect::<Vec<_>>()
            };
            for (seed, epoch) in [(0, 0), (0, 1), (9, 0)] {
                let mut sorted = order(seed, epoch);
                sorted.sort_unstable();
                assert_eq!(sorted, (0..len).collect::<Vec<_>>());
            }
            if len > 50 {
                assert_ne!(order(0, 0), order(0, 1));
                assert_ne!(order(0, 0), order(1, 0));
                let kept = order(0, 0).iter().enumerate().filter(|(i, r)| *i as u64 == **r).count();
                assert!(kept < 10, "{kept} of {len} rows stay in place");
            }
        }
    }
}
