//! Products of two activations.
use super::fitted::*;
use super::{Cpu, Tiled, shared, unevenness};
use rdc_ir::program::Tiling;

impl Cpu {
    /// Products `[m, k] x [k, n]`, `batch` of them. A task packs its rows and its columns, so large blocks do less in vain, but few
    /// threads must be able to share the tasks evenly, and both packed pieces must stay in the second-level cache.
    pub(super) fn product(&self, batch: usize, (m, n, k): (usize, usize, usize)) -> Tiled {
        let (mr, nr) = (self.mr, self.nr);
        // Two pieces of the right operand, one being copied, fit into the first-level cache.
        let inner = INNER_OF_PRODUCT.min(self.l1 / (2 * nr * 4)).max(32);
        let kc = k.div_ceil(k.div_ceil(inner).max(1)).next_multiple_of(4);
        // A last block that is short leaves no room between its steps for asking memory ahead.
        let is_long = |kc: &usize| k.is_multiple_of(*kc) || k % kc >= kc / 2;
        let kc = (kc / 2..=kc).rev().filter(|kc| kc.is_multiple_of(4)).find(is_long).unwrap_or(kc);
        let tallest = BLOCK_OF_PRODUCT.0.min(self.share(OF_LEFT) / (4 * kc));
        let mut best = (f64::INFINITY, mr, nr);
        for &rows in &even_blocks(m, mr, tallest) {
            for &columns in &even_blocks(n, nr, BLOCK_OF_PRODUCT.1) {
                if (rows + columns) * kc * 4 > self.l2.max((mr + nr) * kc * 4) {
                    continue;
                }
                let tasks = batch * m.div_ceil(rows) * n.div_ceil(columns);
                let all = (batch * m * n) as f64;
                let slowest = |threads: usize| (tasks.div_ceil(threads) * threads * rows * columns) as f64 / all;
                let packing = 1.0 + PACKING * self.lanes as f64 * (1.0 / rows as f64 + 1.0 / columns as f64);
                let cost = unevenness(OF_FOUR_IN_PRODUCTS, slowest) * packing;
                if cost < best.0 {
                    best = (cost, rows, columns);
                }
            }
        }
        let (_, rows_per_task, columns_per_task) = best;
        let tasks = batch * m.div_ceil(rows_per_task) * n.div_ceil(columns_per_task);
        shared(Tiling::Blocks { rows_per_task, columns_per_task, kc }, tasks)
    }
}

/// Sizes of blocks of whole units, `most` or a unit at most, that cut an axis about evenly.
fn even_blocks(size: usize, unit: usize, most: usize) -> Vec<usize> {
    let counts = 1..=size.div_ceil(unit).min(BLOCKS_OF_PRODUCT);
    let sizes = counts.map(|count| size.div_ceil(count).next_multiple_of(unit));
    let mut sizes: Vec<usize> = sizes.filter(|&each| each <= most.max(unit)).collect();
    sizes.dedup();
    if sizes.is_empty() { vec![most / unit * unit] } else { sizes }
}

#[cfg(test)]
mod tests {
    use super::super::tests::AVX2;
    use super::*;

    #[test]
    fn a_product_is_shared_evenly() {
        for (m, n, k) in
            [(128, 128, 4096), (128, 352, 4096), (1024, 384, 1024), (5632, 1024, 512), (7, 3, 5), (1024, 128, 1)]
        {
            let tiled = AVX2.product(1, (m, n, k));
            let Tiling::Blocks { rows_per_task, columns_per_task, kc } = tiled.tiling else { panic!() };
            let (row_blocks, column_blocks) = (m.div_ceil(rows_per_task), n.div_ceil(columns_per_task));
            assert_eq!(tiled.tasks, row_blocks * column_blocks);
            assert!(rows_per_task % 6 == 0 && columns_per_task % 16 == 0 && kc % 2 == 0 && kc <= 256, "{m} {n} {k}");
            assert!((rows_per_task + columns_per_task) * kc * 4 <= AVX2.l2, "{m} {n} {k}");
            let in_vain = (tiled.tasks.next_multiple_of(2) * rows_per_task * columns_per_task) as f64 / (m * n) as f64;
            assert!(m < 128 || in_vain < 1.1, "{m} {n} {k}: {rows_per_task} x {columns_per_task}");
            assert!(m * n < 1 << 20 || tiled.tasks >= 16, "{m} {n} {k}: {}", tiled.tasks);
        }
    }
}
