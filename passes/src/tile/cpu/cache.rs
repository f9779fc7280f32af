//! What a CPU's caches keep: how far apart rows lie in a first-level cache, and what lasts in the second-level one.
use super::Cpu;
use super::fitted::{LASTING, OF_ROWS, PANELS_TOGETHER};

/// Bytes between addresses that fall into the same set of a first-level cache.
const SET_STRIDE: usize = 4096;
/// Rows that fall into one set of a first-level cache and still stay there together.
const WAYS: usize = 4;

/// Whether so many rows, so many bytes apart, keep each other out of a first-level cache.
pub fn collide(rows: usize, stride: usize) -> bool {
    rows > WAYS && stride.is_multiple_of(SET_STRIDE)
}

/// Bytes of so many floats and some more: an odd number of cache lines, so that rows do not fall on each other in the cache.
pub fn odd_lines(floats: usize) -> usize {
    (floats.saturating_mul(4).div_ceil(64) | 1).saturating_mul(64)
}

impl Cpu {
    /// Bytes of that part of the second-level cache.
    pub(super) fn share(&self, (numerator, denominator): (usize, usize)) -> usize {
        numerator * self.l2 / denominator
    }

    /// Whether a weight of so many panels of a matmul, of `k` rows each, stays in the second-level cache while row blocks go by.
    pub(super) fn keeps_weight(&self, panels: usize, k: usize) -> bool {
        panels * self.nr * k * 4 <= self.share(LASTING)
    }

    /// Whether so many rows of the left operand of a matmul, of `k` floats each, stay in the second-level cache while a task's panels go by.
    pub(super) fn keeps_rows(&self, rows: usize, k: usize) -> bool {
        rows * k * 4 <= self.share(OF_ROWS)
    }

    /// How many of its `panels` a task of a matmul takes together, the inner size `k` in blocks of `kc`: the sums of those are kept from one
    /// block to the next. If `rows` whole rows of the left operand do not stay in the second-level cache, they come again for each
    /// group, so that it is as large as leaves its sums, its pieces of the weight and a block of the rows two thirds of that cache.
    pub fn panels_together(&self, rows: usize, (k, kc): (usize, usize), panels: usize) -> usize {
        if k <= kc {
            return 1;
        }
        let few = PANELS_TOGETHER.min(panels.max(1));
        if self.keeps_rows(rows, k) {
            return few;
        }
        let room = self.share(LASTING).saturating_sub(rows * kc * 4);
        let most = (room / ((rows + kc) * self.nr * 4)).max(few);
        panels.div_ceil(panels.div_ceil(most).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_an_odd_number_of_lines_apart_do_not_collide() {
        assert!(collide(5, 4096) && collide(1024, 8192));
        assert!(!collide(4, 4096) && !collide(1024, 4160) && !collide(1024, 1536));
        for floats in [1, 16, 17, 384, 1024, 2048, 4096] {
            let bytes = odd_lines(floats);
            assert!(bytes >= floats * 4 && bytes < floats * 4 + 128 && (bytes / 64) % 2 == 1, "{floats}");
            assert!(!collide(1024, bytes));
        }
    }

    /// Two thirds of the cache of an AVX-512 machine hold what a group of panels needs, and so many as one more would not fit.
    #[test]
    fn groups_fill_the_cache_where_rows_come_again() {
        let cpu = Cpu { lanes: 16, mr: 12, nr: 32, l1: 48 << 10, l2: 2 << 20 };
        let bytes = |rows: usize, kc: usize, group: usize| rows * kc * 4 + group * 32 * 4 * (rows + kc);
        let (rows, k, kc) = (264, 1024, 256);
        let group = cpu.panels_together(rows, (k, kc), 1000);
        assert!(group > PANELS_TOGETHER && bytes(rows, kc, group) <= cpu.l2 * 2 / 3);
        assert!(bytes(rows, kc, group + 1) > cpu.l2 * 2 / 3);
        assert_eq!(cpu.panels_together(rows, (k, kc), 22), 11, "22 panels are two groups of one size");
        assert_eq!(cpu.panels_together(96, (k, kc), 1000), PANELS_TOGETHER, "the rows stay");
        assert_eq!(cpu.panels_together(rows, (256, 256), 1000), 1, "no sums are kept");
        assert_eq!(cpu.panels_together(4000, (k, kc), 3), 3);
        assert!(cpu.keeps_weight(28, 384) && !cpu.keeps_weight(29, 384));
    }
}
