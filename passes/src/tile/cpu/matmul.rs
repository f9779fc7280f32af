//! Matmuls over packed weights.
use super::fitted::*;
use super::{Around, Cpu, Tiled, fixed, shared, unevenness};
use crate::tile::lcm;
use rdc_ir::program::Tiling;

impl Cpu {
    /// A matmul `[m, k] x [k, n]`.
    pub(super) fn matmul(&self, (m, n, k): (usize, usize, usize), around: Around) -> Tiled {
        let panels = n.div_ceil(self.nr);
        if m <= FEW_ROWS {
            let panels_per_task = even_shares(panels);
            return fixed(Tiling::Panels { panels_per_task }, panels.div_ceil(panels_per_task));
        }
        let kc = k.div_ceil(k.div_ceil(INNER).max(1)).next_multiple_of(2);
        let (rows_per_task, panels_per_task) = self.block((m, panels, k), around, kc);
        let row_blocks = m.div_ceil(rows_per_task);
        let panels_together = self.panels_together(rows_per_task.min(m), (k, kc), panels_per_task);
        let streams = row_blocks >= MANY_ROW_BLOCKS && panels_per_task == panels && k <= kc;
        let prefetch = if streams { self.share(OF_NEXT_ROWS) } else { 0 };
        let tiling = Tiling::PanelBlocks { rows_per_task, panels_per_task, kc, panels_together, prefetch };
        shared(tiling, row_blocks * panels.div_ceil(panels_per_task))
    }

    /// Rows and panels of a task. Tall blocks reuse a panel of the weight more often, and a block with all its columns computes its
    /// prologue once; but few threads must be able to share the tasks evenly, and an inner block of the rows must stay in the
    /// second-level cache.
    fn block(&self, (m, panels, k): (usize, usize, usize), around: Around, kc: usize) -> (usize, usize) {
        let (mr, nr) = (self.mr, self.nr);
        let unit = lcm(mr, around.block);
        let (least, most) = (HEIGHTS.0.next_multiple_of(unit), HEIGHTS.1 / unit * unit);
        let fits = |rows: usize, share: (usize, usize)| rows * kc * 4 <= self.share(share);
        let heights = (least..=most.max(least)).step_by(unit);
        let mut heights: Vec<usize> = heights.filter(|&rows| fits(rows, OF_ROWS)).collect();
        if heights.is_empty() {
            heights.push(least);
        }
        // Where the weight comes from beyond the second-level cache for each row block.
        let streamed = !self.keeps_weight(panels, k);
        if streamed {
            let tall = (most + unit..=TALLER * most).step_by(unit);
            heights.extend(tall.filter(|&rows| self.keeps_rows(rows, k) || fits(rows, OF_NEXT_ROWS)));
        }
        let streaming = if streamed { STREAMED } else { CACHED };
        let prologue = PROLOGUE * around.before.max(2) as f64;
        let mut best = (f64::INFINITY, least, panels);
        for rows in heights.into_iter().map(|rows| rows.min(m.next_multiple_of(unit))) {
            for split in 1..=if around.whole { 1 } else { panels.min(COLUMN_BLOCKS) } {
                let columns = panels.div_ceil(split);
                let (row_blocks, column_blocks) = (m.div_ceil(rows), panels.div_ceil(columns));
                let tasks = row_blocks * column_blocks;
                // Rows of padding in the last tile, what the slowest thread does more than its share, and the prologue again for
                // each column block.
                let padding = (m.next_multiple_of(mr) as f64) / m as f64;
                let all = (row_blocks * rows) as f64 / m as f64;
                let slowest = |threads: usize| {
                    if row_blocks.is_multiple_of(threads) {
                        return all;
                    }
                    (tasks.div_ceil(threads) * threads) as f64 / tasks as f64 + PARTED
                };
                let again = if self.keeps_rows(rows, k) {
                    0.0
                } else {
                    ROWS_AGAIN * mr as f64 / (self.panels_together(rows, (k, kc), columns) * nr) as f64
                };
                let ragged = (column_blocks * columns) as f64 / panels as f64 * all;
                let few = (FEW_TASKS as f64 / tasks as f64).max(1.0);
                let uneven = 1.0 + (ragged - 1.0) / row_blocks.max(column_blocks) as f64;
                let cost = padding
                    * unevenness(OF_FOUR, slowest)
                    * few
                    * uneven
                    * (1.0 + prologue / (columns * nr) as f64 + streaming * mr as f64 / rows as f64 + again);
                if cost < best.0 {
                    best = (cost, rows, columns);
                }
            }
        }
        (best.1, best.2)
    }
}

/// Panels of a task where each thread streams one contiguous share of the weight: [`TASKS`] / 2 to 2 [`TASKS`] tasks of two panels or
/// more, if there are as many, of the size that is shared most evenly.
fn even_shares(panels: usize) -> usize {
    let least = panels.div_ceil(2 * TASKS).max(2).min(panels);
    let largest_share = |each: usize, threads: usize| {
        let cut = |t: usize| (t * panels.div_ceil(each) / threads * each).min(panels);
        let share = (0..threads).map(|t| cut(t + 1) - cut(t)).max().unwrap_or(panels);
        (share * threads) as f64
    };
    let cost = |each: usize| unevenness(OF_FOUR, |threads| largest_share(each, threads));
    (least..=(2 * least).min(panels)).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(least)
}

#[cfg(test)]
mod tests {
    use super::super::tests::AVX2;
    use super::*;

    /// Nothing.
    const ALONE: Around = Around { before: 0, whole: false, block: 1 };

    fn tiles(m: usize, n: usize, k: usize) -> (Tiling, usize) {
        let tiled = AVX2.matmul((m, n, k), ALONE);
        (tiled.tiling, tiled.tasks)
    }

    #[test]
    fn one_row_streams_the_weight_in_even_shares() {
        let panels = |panels_per_task| Tiling::Panels { panels_per_task };
        assert_eq!(tiles(1, 1024, 384), (panels(2), 32));
        assert_eq!(tiles(1, 65536, 5280), (panels(64), 64));
        assert_eq!(tiles(1, 1, 128), (panels(1), 1));
        assert_eq!(tiles(1, 5632, 1024), (panels(8), 44), "352 panels are 2 shares of 22 tasks");
    }

    #[test]
    fn two_threads_take_whole_row_blocks() {
        let cpu = Cpu { lanes: 16, mr: 12, nr: 32, l1: 48 << 10, l2: 2 << 20 };
        for (m, n, k) in [(512, 5632, 1024), (512, 1024, 1024), (512, 1024, 2816), (1024, 2048, 384), (1024, 384, 2048)]
        {
            let rows_per_task = cpu.matmul((m, n, k), ALONE).tiling.rows_per_task(m);
            let blocks = m.div_ceil(rows_per_task);
            let half = blocks / 2 * rows_per_task;
            assert!(blocks.is_multiple_of(2) && half < m / 2 + m / 25, "{m} {n} {k}: {rows_per_task}");
        }
    }

    #[test]
    fn many_rows_give_enough_tasks() {
        for (m, n, k) in [(128, 384, 128), (256, 2048, 384), (512, 5632, 1024), (512, 1024, 2816), (5, 64, 16)] {
            let (tiling, tasks) = tiles(m, n, k);
            let Tiling::PanelBlocks { rows_per_task, panels_per_task, kc, .. } = tiling else { panic!("{tiling:?}") };
            assert!(rows_per_task % 6 == 0 && rows_per_task <= 192 && kc % 2 == 0 && kc <= 512, "{m} {n} {k}");
            assert!(tasks >= 8.min(n.div_ceil(16)), "{m} {n} {k}: {tasks}");
            assert!(tasks == m.div_ceil(rows_per_task) * n.div_ceil(16).div_ceil(panels_per_task));
        }
    }

    #[test]
    fn rows_of_many_short_blocks_are_prefetched() {
        let prefetch = |m, n, k| match tiles(m, n, k).0 {
            Tiling::PanelBlocks { prefetch, .. } => prefetch,
            _ => 0,
        };
        assert_eq!([prefetch(4096, 704, 128), prefetch(256, 704, 128), prefetch(4096, 704, 1024)], [128 << 10, 0, 0]);
    }
}
