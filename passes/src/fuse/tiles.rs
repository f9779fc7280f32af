//! Tile sizes: how a kernel's work is cut into tasks. A pure function of shapes and target, so that results depend on
//! neither the number of threads nor the moment.
use rdc_ir::program::body::{Epilogue, Matmul};
use rdc_ir::program::rows::{NodeId, NodeKind, Stored};
use rdc_ir::program::{Dispatch, Target, Tiling};

/// Rows up to which a matmul is bound by reading the weight.
pub const FEW_ROWS: usize = 4;
/// Longest inner block of a matmul: `256 * nr` f32 weights and a micro-tile of the left operand share a 32 KiB cache.
const INNER: usize = 256;
/// Longest inner block of a product: sums are loaded and stored seldom enough, and the pieces packed leave the first-level cache room.
const INNER_OF_PRODUCT: usize = 128;
/// Row blocks from which the rows of the next one are prefetched: those of the first are not.
const MANY_ROW_BLOCKS: usize = 16;
/// Tasks aimed at where the work has no natural grain.
const TASKS: usize = 32;

/// What packing an element costs, in vectors of multiplications with additions.
const PACKING: f64 = 1.5;

/// What a row operation before a matmul costs per element, in multiplications with additions; bringing rows as they are costs as
/// much as two.
const PROLOGUE: f64 = 2.0;
/// How long a row block waits for a weight that comes from beyond the second-level cache, in times of a register tile.
const STREAMED: f64 = 1.2;
/// The same for a weight that stays in that cache.
const CACHED: f64 = 0.1;
/// How long a group of panels waits for rows that come from beyond that cache, in the same unit: they lie one after the other.
const ROWS_AGAIN: f64 = 0.6;
/// What it costs that threads, taking as many tasks each, do not take whole row blocks each: rows that one wrote another reads.
const PARTED: f64 = 0.05;

/// How a kernel is cut, into how many tasks and how they are handed out.
pub struct Tiled {
    /// The cut.
    pub tiling: Tiling,
    /// Number of tasks.
    pub tasks: usize,
    /// How they are handed out.
    pub dispatch: Dispatch,
}

/// Work over `rows` rows (of activations, tokens, a table), in tasks of whole blocks of `block` rows.
pub fn rows(rows: usize, block: usize) -> Tiled {
    let rows_per_task = rows.div_ceil(TASKS).max(1).next_multiple_of(block);
    let tasks = rows.div_ceil(rows_per_task);
    Tiled { tiling: Tiling::Rows { rows_per_task }, tasks, dispatch: Dispatch::Static }
}

/// Attention of `queries` queries for each of `heads` heads (over all batches). As many queries as a block has keys reuse those more
/// often, 48 make enough tasks of few heads.
pub fn attention(queries: usize, heads: usize) -> Tiled {
    let kv_block = 128;
    let tall = kv_block.min(queries.max(1));
    let q_rows = if heads * queries.div_ceil(tall) >= TASKS / 2 { tall } else { 48.min(queries.max(1)) };
    let tasks = heads * queries.div_ceil(q_rows);
    Tiled { tiling: Tiling::Queries { q_rows, kv_block }, tasks, dispatch: Dispatch::Dynamic }
}

/// What stands around a matmul.
#[derive(Clone, Copy)]
pub struct Around {
    /// How many row operations make the left operand, a norm as four.
    pub before: usize,
    /// Whether row operations follow on rows that a task must complete.
    pub whole: bool,
    /// Rows after which a block that is summed begins again: so do tasks.
    pub block: usize,
}

impl Around {
    /// What stands around a matmul.
    pub fn of(body: &Matmul) -> Around {
        let work = |node: NodeId| match body.before.nodes[node].kind {
            NodeKind::Arg(_) | NodeKind::Alias(_) | NodeKind::Constant(_) => 0,
            NodeKind::RmsNorm { .. } | NodeKind::LayerNorm { .. } | NodeKind::Softmax { .. } => 4,
            _ => 1,
        };
        let before = body.before.reached([body.left]).into_iter().map(work).sum();
        let (whole, after) = match &body.epilogue {
            Epilogue::Elements(rows) => (false, rows),
            Epilogue::Rows(rows) => (true, rows),
        };
        Around { before, whole, block: block(body.kept.iter().chain(&after.results)) }
    }
}

/// Rows after which a block of every sum of blocks among some results begins again.
pub fn block<'r>(results: impl IntoIterator<Item = &'r Stored>) -> usize {
    results.into_iter().filter_map(|stored| stored.block).fold(1, |block, rows| lcm(block, rows.max(1)))
}

/// A matmul `[m, k] x [k, n]` over panels of `nr` columns.
pub fn matmul((m, n, k): (usize, usize, usize), nr: usize, around: Around, target: &Target) -> Tiled {
    let panels = n.div_ceil(nr);
    let blocks = k.div_ceil(INNER).max(1);
    let kc = k.div_ceil(blocks).next_multiple_of(2);
    if m <= FEW_ROWS {
        let panels_per_task = even_shares(panels);
        let tasks = panels.div_ceil(panels_per_task);
        return Tiled { tiling: Tiling::Panels { panels_per_task }, tasks, dispatch: Dispatch::Static };
    }
    let (rows_per_task, panels_per_task) = blocks_of((m, panels, k), around, kc, target);
    let row_blocks = m.div_ceil(rows_per_task);
    let panels_together = target.panels_together(rows_per_task.min(m), (k, kc), panels_per_task);
    // A quarter of the second-level cache: two row blocks are in a half of it.
    let prefetch =
        if row_blocks >= MANY_ROW_BLOCKS && panels_per_task == panels && k <= kc { target.l2 / 4 } else { 0 };
    let tiling = Tiling::PanelBlocks { rows_per_task, panels_per_task, kc, panels_together, prefetch };
    Tiled { tiling, tasks: row_blocks * panels.div_ceil(panels_per_task), dispatch: Dispatch::Dynamic }
}

/// Products `[m, k] x [k, n]` of two activations, `batch` of them. A task packs its rows and its columns, so large blocks do less in vain, but
/// two or four threads must be able to share the tasks evenly, and both packed pieces must stay in the second-level cache.
pub fn product(batch: usize, (m, n, k): (usize, usize, usize), target: &Target) -> Tiled {
    let (mr, nr) = (target.mr.max(1), target.nr.max(1));
    // Two pieces of the right operand, one being copied, fit into the first-level cache.
    let inner = INNER_OF_PRODUCT.min(target.l1 / (2 * nr * 4)).max(32);
    let blocks = k.div_ceil(inner).max(1);
    let kc = k.div_ceil(blocks).next_multiple_of(4);
    // A last block that is short leaves no room between its steps for asking memory ahead.
    let is_long = |kc: &usize| k.is_multiple_of(*kc) || k % kc >= kc / 2;
    let kc = (kc / 2..=kc).rev().filter(|kc| kc.is_multiple_of(4)).find(is_long).unwrap_or(kc);
    let even = |size: usize, unit: usize, most: usize| {
        let mut sizes: Vec<usize> = (1..=size.div_ceil(unit).min(64))
            .map(|count| size.div_ceil(count).next_multiple_of(unit))
            .filter(|&each| each <= most.max(unit))
            .collect();
        sizes.dedup();
        if sizes.is_empty() { vec![most / unit * unit] } else { sizes }
    };
    // Two pieces of the left operand, one being copied, take three eighths of the second-level cache.
    let tallest = 384.min(3 * target.l2 / (64 * kc));
    let mut best = (f64::INFINITY, mr, nr);
    for &rows in &even(m, mr, tallest) {
        for &columns in &even(n, nr, 512) {
            if (rows + columns) * kc * 4 > target.l2.max((mr + nr) * kc * 4) {
                continue;
            }
            let tasks = batch * m.div_ceil(rows) * n.div_ceil(columns);
            let all = (batch * m * n) as f64;
            let share = |threads: usize| (tasks.div_ceil(threads) * threads * rows * columns) as f64 / all;
            let packing = 1.0 + PACKING * target.lanes as f64 * (1.0 / rows as f64 + 1.0 / columns as f64);
            let cost = (share(2) + 0.15 * share(4)) * packing;
            if cost < best.0 {
                best = (cost, rows, columns);
            }
        }
    }
    let (_, rows_per_task, columns_per_task) = best;
    let tasks = batch * m.div_ceil(rows_per_task) * n.div_ceil(columns_per_task);
    Tiled { tiling: Tiling::Blocks { rows_per_task, columns_per_task, kc }, tasks, dispatch: Dispatch::Dynamic }
}

/// Packing a weight of that many panels.
pub fn pack(panels: usize) -> Tiled {
    let panels_per_task = panels.div_ceil(TASKS).max(1);
    let tasks = panels.div_ceil(panels_per_task);
    Tiled { tiling: Tiling::Panels { panels_per_task }, tasks, dispatch: Dispatch::Static }
}

/// Column sums. A task reads whole cache lines of each row.
pub fn columns(columns: usize, target: &Target) -> Tiled {
    let columns_per_task = columns.div_ceil(4).next_multiple_of(2 * target.lanes.max(1)).min(64);
    let tasks = columns.div_ceil(columns_per_task);
    Tiled { tiling: Tiling::Columns { columns_per_task }, tasks, dispatch: Dispatch::Static }
}

/// The derivatives of attention of `queries` queries for each of `groups` groups of heads (over all batches).
pub fn attention_grad(queries: usize, groups: usize) -> Tiled {
    let q_rows = 48.min(queries.max(1));
    Tiled { tiling: Tiling::Queries { q_rows, kv_block: 128 }, tasks: groups, dispatch: Dispatch::Dynamic }
}

/// Panels of a task where each thread streams one contiguous share of the weight: 16 to 64 tasks of two panels or more, if
/// there are as many, and the size that splits best among two and among four threads.
fn even_shares(panels: usize) -> usize {
    let least = panels.div_ceil(2 * TASKS).max(2).min(panels);
    let largest_share = |each: usize, threads: usize| {
        let cut = |t: usize| (t * panels.div_ceil(each) / threads * each).min(panels);
        let share = (0..threads).map(|t| cut(t + 1) - cut(t)).max().unwrap_or(panels);
        share * threads
    };
    let cost = |each: &usize| 2 * largest_share(*each, 2) + largest_share(*each, 4);
    (least..=(2 * least).min(panels)).min_by_key(cost).unwrap_or(least)
}

/// Rows and panels of a task. Tall blocks reuse a panel of the weight more often, and a block with all its columns
/// computes its prologue once; but a few threads must be able to share the tasks evenly, and an inner block of the rows
/// must stay in the second-level cache.
fn blocks_of((m, panels, k): (usize, usize, usize), around: Around, kc: usize, target: &Target) -> (usize, usize) {
    let mr = target.mr.max(1);
    let unit = lcm(mr, around.block);
    let (least, most) = (48usize.next_multiple_of(unit), 96 / unit * unit);
    let fits = |rows: usize| rows * kc * 4 <= target.l2 / 2;
    let mut heights: Vec<usize> = (least..=most.max(least)).step_by(unit).filter(|&rows| fits(rows)).collect();
    if heights.is_empty() {
        heights.push(least);
    }
    // Where the weight comes from beyond the second-level cache for each row block.
    let nr = target.nr.max(1);
    let streamed = !target.keeps_weight(panels, k);
    if streamed {
        let tall = (most + unit..=3 * most).step_by(unit);
        heights.extend(tall.filter(|&rows| target.keeps_rows(rows, k) || rows * kc * 4 <= target.l2 / 4));
    }
    let streaming = if streamed { STREAMED } else { CACHED };
    let prologue = PROLOGUE * around.before.max(2) as f64;
    let mut best = (f64::INFINITY, least, panels);
    for rows in heights.into_iter().map(|rows| rows.min(m.next_multiple_of(unit))) {
        for split in 1..=if around.whole { 1 } else { panels.min(32) } {
            let columns = panels.div_ceil(split);
            let (row_blocks, column_blocks) = (m.div_ceil(rows), panels.div_ceil(columns));
            let tasks = row_blocks * column_blocks;
            // Rows of padding in the last tile, what the slowest of 2 and of 4 threads does more than its share, and the prologue
            // again for each column block.
            let padding = (m.next_multiple_of(mr) as f64) / m as f64;
            let all = (row_blocks * rows) as f64 / m as f64;
            let round = |threads: usize| {
                if row_blocks.is_multiple_of(threads) {
                    return all;
                }
                (tasks.div_ceil(threads) * threads) as f64 / tasks as f64 + PARTED
            };
            let again = if target.keeps_rows(rows, k) {
                0.0
            } else {
                ROWS_AGAIN * mr as f64 / (target.panels_together(rows, (k, kc), columns) * nr) as f64
            };
            let ragged = (column_blocks * columns) as f64 / panels as f64 * all;
            let few = (16.0 / tasks as f64).max(1.0);
            let uneven = 1.0 + (ragged - 1.0) / row_blocks.max(column_blocks) as f64;
            let cost = padding
                * (round(2) + 0.5 * round(4))
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

/// The least common multiple of two positive numbers.
pub fn lcm(a: usize, b: usize) -> usize {
    (a..=a * b).step_by(a).find(|n| n.is_multiple_of(b)).unwrap_or(a * b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::target;

    fn tiles(m: usize, n: usize, k: usize) -> (usize, usize, usize, usize) {
        let target = target();
        let tiled = matmul((m, n, k), target.nr, Around { before: 0, whole: false, block: 1 }, &target);
        match tiled.tiling {
            Tiling::PanelBlocks { rows_per_task, panels_per_task, kc, .. } => {
                (rows_per_task, panels_per_task, kc, tiled.tasks)
            }
            Tiling::Panels { panels_per_task } => (m, panels_per_task, k, tiled.tasks),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_row_streams_the_weight_in_even_shares() {
        assert_eq!(tiles(1, 1024, 384), (1, 2, 384, 32));
        assert_eq!(tiles(1, 65536, 5280), (1, 64, 5280, 64));
        assert_eq!(tiles(1, 1, 128), (1, 1, 128, 1));
        assert_eq!(tiles(1, 5632, 1024), (1, 8, 1024, 44), "352 panels are 2 shares of 22 tasks");
    }

    #[test]
    fn two_threads_take_whole_row_blocks() {
        let target = Target { lanes: 16, mr: 12, nr: 32, l1: 48 << 10, l2: 2 << 20, ..target() };
        let around = Around { before: 0, whole: false, block: 1 };
        for (m, n, k) in [(512, 5632, 1024), (512, 1024, 1024), (512, 1024, 2816), (1024, 2048, 384), (1024, 384, 2048)]
        {
            let rows_per_task = matmul((m, n, k), 32, around, &target).tiling.rows_per_task(m);
            let blocks = m.div_ceil(rows_per_task);
            let half = blocks / 2 * rows_per_task;
            assert!(blocks.is_multiple_of(2) && half < m / 2 + m / 25, "{m} {n} {k}: {rows_per_task}");
        }
    }

    #[test]
    fn tasks_begin_with_a_block() {
        for block in [1, 4, 6, 7, 50] {
            let around = Around { before: 3, whole: true, block };
            let tiled = matmul((500, 64, 32), 16, around, &target());
            let rows_per_task = tiled.tiling.rows_per_task(500);
            assert!(rows_per_task % block == 0 || tiled.tasks == 1, "{block}: {rows_per_task}");
            assert_eq!(super::rows(500, block).tiling.rows_per_task(500) % block, 0);
        }
    }

    #[test]
    fn many_rows_give_enough_tasks() {
        for (m, n, k) in [(128, 384, 128), (256, 2048, 384), (512, 5632, 1024), (512, 1024, 2816), (5, 64, 16)] {
            let (rows, panels, kc, tasks) = tiles(m, n, k);
            assert!(rows % 6 == 0 && rows <= 192 && panels >= 1 && kc % 2 == 0 && kc <= 512, "{m} {n} {k}");
            assert!(tasks >= 8.min(n.div_ceil(16)), "{m} {n} {k}: {tasks}");
            assert!(tasks == m.div_ceil(rows) * n.div_ceil(16).div_ceil(panels));
        }
    }

    #[test]
    fn a_product_is_shared_evenly() {
        let target = target();
        for (m, n, k) in
            [(128, 128, 4096), (128, 352, 4096), (1024, 384, 1024), (5632, 1024, 512), (7, 3, 5), (1024, 128, 1)]
        {
            let tiled = product(1, (m, n, k), &target);
            let Tiling::Blocks { rows_per_task, columns_per_task, kc } = tiled.tiling else { panic!() };
            let (row_blocks, column_blocks) = (m.div_ceil(rows_per_task), n.div_ceil(columns_per_task));
            assert_eq!(tiled.tasks, row_blocks * column_blocks);
            assert!(rows_per_task % 6 == 0 && columns_per_task % 16 == 0 && kc % 2 == 0 && kc <= 256, "{m} {n} {k}");
            assert!((rows_per_task + columns_per_task) * kc * 4 <= target.l2, "{m} {n} {k}");
            let in_vain = (tiled.tasks.next_multiple_of(2) * rows_per_task * columns_per_task) as f64 / (m * n) as f64;
            assert!(m < 128 || in_vain < 1.1, "{m} {n} {k}: {rows_per_task} x {columns_per_task}");
            assert!(m * n < 1 << 20 || tiled.tasks >= 16, "{m} {n} {k}: {}", tiled.tasks);
        }
    }

    #[test]
    fn columns_are_in_one_task_each() {
        for n in [1, 7, 128, 384, 1000] {
            let tiled = columns(n, &target());
            let Tiling::Columns { columns_per_task } = tiled.tiling else { panic!() };
            assert!(columns_per_task * tiled.tasks >= n && columns_per_task * (tiled.tasks - 1) < n, "{n}");
        }
    }

    #[test]
    fn every_row_is_in_one_task() {
        for n in [1, 31, 32, 33, 1000] {
            let tiled = rows(n, 1);
            assert!(tiled.tiling.rows_per_task(n) * tiled.tasks >= n);
            assert!(tiled.tasks <= n);
        }
    }
}
