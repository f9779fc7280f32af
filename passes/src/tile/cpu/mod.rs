//! CPUs: a few cores, each with a first- and a second-level cache of its own, and vectors that multiply and add.
//!
//! A program does not know how many threads will run it, and must give the same bits with any number. So a cut is judged by how evenly
//! *few* threads could share it ([`unevenness`]): 2 and 4 stand for those. A count in between or above finds its tasks about as evenly
//! spread, since dynamic tasks go to whoever is free, and the more tasks there are for a thread the less one of them matters; counts
//! like 3 may wait for one task. The count changes who runs a task, never what the task computes.
pub mod cache;
mod fitted;
mod matmul;
mod product;

use super::{Around, Backward, Machine, Tiled, block};
use fitted::*;
use rdc_ir::program::body::{Attention, AttentionGrad};
use rdc_ir::program::{Dispatch, KernelKind, Tiling};

/// A CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
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

impl Machine for Cpu {
    fn panel(&self) -> usize {
        self.nr
    }
    fn tile(&self, kernel: &KernelKind) -> Tiled {
        match kernel {
            KernelKind::Rows(body) => rows(body.graph.rows, block(&body.results)),
            KernelKind::KvWrite(body) => rows(body.tokens, 1),
            KernelKind::ScatterAdd(body) => rows(body.rows, 1),
            KernelKind::Pack(body) => {
                let panels = body.packing.panels();
                let panels_per_task = even_tasks(panels);
                fixed(Tiling::Panels { panels_per_task }, panels.div_ceil(panels_per_task))
            }
            KernelKind::Columns(body) => self.columns(body.columns),
            KernelKind::Matmul(body) => self.matmul((body.m, body.n, body.k), Around::of(body)),
            KernelKind::Product(body) => self.product(body.batch, (body.m, body.n, body.k)),
            // As many queries as a block has keys reuse those more often, fewer make enough tasks of few heads.
            KernelKind::Attention(Attention { heads, .. }) => {
                let (queries, heads) = (heads.steps, heads.batch * heads.query.heads);
                let tall = KV_BLOCK.min(queries.max(1));
                let enough = heads * queries.div_ceil(tall) >= TASKS / 2;
                let q_rows = if enough { tall } else { Q_ROWS.min(queries.max(1)) };
                shared(Tiling::Queries { q_rows, kv_block: KV_BLOCK }, heads * queries.div_ceil(q_rows))
            }
            KernelKind::AttentionGrad(AttentionGrad { heads, .. }) => {
                let q_rows = Q_ROWS.min(heads.steps.max(1));
                shared(Tiling::Queries { q_rows, kv_block: KV_BLOCK }, heads.batch * heads.groups)
            }
            KernelKind::DecodeAttention(Attention { heads, .. }) => fixed(Tiling::Whole, heads.batch * heads.groups),
            KernelKind::Generic(_) => fixed(Tiling::Whole, 1),
        }
    }
    fn widest_prologue(&self) -> usize {
        WIDEST_PROLOGUE
    }
    fn widest_row_epilogue(&self, rows: usize) -> usize {
        if rows > FEW_ROWS { WIDEST_ROW_EPILOGUE } else { 0 }
    }
    /// A register tile's rows, so that no task of a matmul cuts a block.
    fn sum_block(&self, rows: usize) -> Option<usize> {
        (rows >= MANY_ROWS).then_some(self.mr)
    }
    fn kernels_put_off(&self) -> usize {
        KERNELS_PUT_OFF
    }
    fn pitch(&self, rows: usize, columns: usize) -> Option<usize> {
        cache::collide(rows, columns * 4).then(|| cache::odd_lines(columns))
    }
    fn loss_tokens(&self, vocabulary: usize) -> usize {
        (LOGITS / vocabulary.max(1)).clamp(LOSS_TOKENS.0, LOSS_TOKENS.1)
    }
    fn backward(&self) -> Backward {
        BACKWARD
    }
}

impl Cpu {
    /// Sums of so many columns. A task reads whole cache lines of each row.
    fn columns(&self, columns: usize) -> Tiled {
        let (blocks, widest) = BLOCKS_OF_COLUMNS;
        let columns_per_task = columns.div_ceil(blocks).next_multiple_of(2 * self.lanes).min(widest);
        fixed(Tiling::Columns { columns_per_task }, columns.div_ceil(columns_per_task))
    }
}

/// Work over so many rows (of activations, tokens, a table), in tasks of whole blocks of `block` rows.
fn rows(rows: usize, block: usize) -> Tiled {
    let rows_per_task = even_tasks(rows).next_multiple_of(block);
    fixed(Tiling::Rows { rows_per_task }, rows.div_ceil(rows_per_task))
}

/// Tasks that threads take in fixed shares: memory is what they wait for.
fn fixed(tiling: Tiling, tasks: usize) -> Tiled {
    Tiled { tiling, tasks, dispatch: Dispatch::Static }
}

/// Tasks that threads claim.
fn shared(tiling: Tiling, tasks: usize) -> Tiled {
    Tiled { tiling, tasks, dispatch: Dispatch::Dynamic }
}

/// Of so many rows or panels, those of a task.
fn even_tasks(all: usize) -> usize {
    all.div_ceil(TASKS).max(1)
}

/// What a cut costs few threads: how many times its share of the work the slowest does, of 2 threads and, counting `of_four` times as
/// much, of 4.
fn unevenness(of_four: f64, slowest: impl Fn(usize) -> f64) -> f64 {
    slowest(2) + of_four * slowest(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with 256-bit vectors.
    pub(super) const AVX2: Cpu = Cpu { lanes: 8, mr: 6, nr: 16, l1: 32 << 10, l2: 512 << 10 };

    #[test]
    fn columns_are_in_one_task_each() {
        for columns in [1, 7, 128, 384, 1000] {
            let tiled = AVX2.columns(columns);
            let Tiling::Columns { columns_per_task } = tiled.tiling else { panic!() };
            assert!(columns_per_task * tiled.tasks >= columns && columns_per_task * (tiled.tasks - 1) < columns);
        }
    }

    #[test]
    fn every_row_is_in_one_task() {
        for count in [1, 31, 32, 33, 1000] {
            let tiled = rows(count, 1);
            assert!(tiled.tiling.rows_per_task(count) * tiled.tasks >= count && tiled.tasks <= count);
        }
    }

    #[test]
    fn tasks_begin_with_a_block() {
        for block in [1, 4, 6, 7, 50] {
            let tiled = AVX2.matmul((500, 64, 32), Around { before: 3, whole: true, block });
            let rows_per_task = tiled.tiling.rows_per_task(500);
            assert!(rows_per_task.is_multiple_of(block) || tiled.tasks == 1, "{block}: {rows_per_task}");
            let tiled = rows(500, block);
            assert_eq!(tiled.tiling.rows_per_task(500) % block, 0);
        }
    }

    #[test]
    fn large_vocabularies_have_fewer_tokens_at_a_time() {
        assert_eq!([1000, 32000, 1 << 20].map(|vocabulary| AVX2.loss_tokens(vocabulary)), [512, 262, 128]);
    }

    #[test]
    fn rows_of_whole_pages_lie_apart() {
        assert_eq!([(5, 1024), (4, 1024), (5, 1000)].map(|(m, n)| AVX2.pitch(m, n)), [Some(4160), None, None]);
    }
}
