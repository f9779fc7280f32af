//! Machines that code is generated for.
use serde::{Deserialize, Serialize};

/// A machine that code is generated for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// The name on the command line: `native`, `x86-64-v3`, `x86-64-v4`, `aarch64`.
    pub name: String,
    /// LLVM target triple.
    pub triple: String,
    /// LLVM processor name.
    pub cpu: String,
    /// LLVM feature string.
    pub features: String,
    /// CPU features that must be present to run the code, by their `std::arch` names (`avx2`, `fma`).
    pub requires: Vec<String>,
    /// f32 lanes of a vector register.
    pub lanes: usize,
    /// Rows of the matmul micro-kernel.
    pub mr: usize,
    /// Columns of the matmul micro-kernel and width of a weight panel; a multiple of `2 * lanes`.
    pub nr: usize,
    /// First-level data cache in bytes.
    pub l1: usize,
    /// Second-level cache per core in bytes.
    pub l2: usize,
}

/// Panels of a matmul's weight that a task takes together, where its rows stay in the second-level cache.
const PANELS_TOGETHER: usize = 8;

impl Target {
    /// Bytes of the second-level cache that operands can count on: what passes by, rows and results, takes the rest.
    fn lasting(&self) -> usize {
        2 * self.l2 / 3
    }

    /// Whether a weight of so many panels of a matmul, of `k` rows each, stays in the second-level cache while row blocks go by.
    pub fn keeps_weight(&self, panels: usize, k: usize) -> bool {
        panels * self.nr.max(1) * k * 4 <= self.lasting()
    }

    /// Whether so many rows of the left operand of a matmul, of `k` floats each, stay in the second-level cache while a task's panels go by.
    pub fn keeps_rows(&self, rows: usize, k: usize) -> bool {
        rows * k * 4 <= self.l2 / 2
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
        let room = self.lasting().saturating_sub(rows * kc * 4);
        let most = (room / ((rows + kc) * self.nr.max(1) * 4)).max(few);
        panels.div_ceil(panels.div_ceil(most).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two thirds of the cache of an AVX-512 machine hold what a group of panels needs, and so many as one more would not fit.
    #[test]
    fn groups_fill_the_cache_where_rows_come_again() {
        let target = Target {
            name: String::new(),
            triple: String::new(),
            cpu: String::new(),
            features: String::new(),
            requires: vec![],
            lanes: 16,
            mr: 12,
            nr: 32,
            l1: 48 << 10,
            l2: 2 << 20,
        };
        let bytes = |rows: usize, kc: usize, group: usize| rows * kc * 4 + group * 32 * 4 * (rows + kc);
        let (rows, k, kc) = (264, 1024, 256);
        let group = target.panels_together(rows, (k, kc), 1000);
        assert!(group > PANELS_TOGETHER && bytes(rows, kc, group) <= target.l2 * 2 / 3);
        assert!(bytes(rows, kc, group + 1) > target.l2 * 2 / 3);
        assert_eq!(target.panels_together(rows, (k, kc), 22), 11, "22 panels are two groups of one size");
        assert_eq!(target.panels_together(96, (k, kc), 1000), PANELS_TOGETHER, "the rows stay");
        assert_eq!(target.panels_together(rows, (256, 256), 1000), 1, "no sums are kept");
        assert_eq!(target.panels_together(4000, (k, kc), 3), 3);
        assert!(target.keeps_weight(28, 384) && !target.keeps_weight(29, 384));
    }
}
