//! Which part of each of its tensors a task of a kernel touches, so that a task need wait only for those tasks of earlier launches
//! that touch the same memory.
use super::{Access, Kernel, Pointer};
use std::ops::Range;

/// The bytes of a pointer's tensor that tasks read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Perhaps any.
    Whole,
    /// Task t those of block `t / tasks` only, blocks following each other in memory.
    Blocks {
        /// Consecutive tasks that work on the same block.
        tasks: usize,
        /// Bytes of a block; the last may be shorter.
        bytes: usize,
    },
}

impl Reach {
    /// The bytes that a run of tasks may touch of a tensor of `size` bytes.
    pub fn of(&self, run: &Range<usize>, size: usize) -> Range<usize> {
        match *self {
            _ if run.is_empty() => 0..0,
            Reach::Whole => 0..size,
            Reach::Blocks { tasks, bytes } => {
                let (first, end) = (run.start / tasks, (run.end - 1) / tasks + 1);
                first.saturating_mul(bytes).min(size)..end.saturating_mul(bytes).min(size)
            }
        }
    }
}

impl Kernel {
    /// What tasks touch of each of the pointers.
    pub fn reaches(&self) -> Vec<Reach> {
        self.pointers.iter().map(|pointer| self.reach(pointer).unwrap_or(Reach::Whole)).collect()
    }
    fn reach(&self, pointer: &Pointer) -> Option<Reach> {
        let blocks_of = |blocks: usize, bytes: usize| {
            let tasks = self.tasks.checked_div(blocks)?;
            (tasks > 0 && tasks * blocks == self.tasks).then_some(Reach::Blocks { tasks, bytes })
        };
        // Of the kernel's rows so many belong to one row of the tensor.
        let by_rows = |columns: usize, block: usize| {
            let rows = self.kind.rows()?;
            let rows_per_task = self.tiling.rows_per_task(rows).max(1);
            let pitch = pointer.pitch.unwrap_or(columns.saturating_mul(pointer.ty.dtype.bytes()));
            let whole = block > 0 && rows_per_task.is_multiple_of(block);
            whole.then(|| blocks_of(rows.div_ceil(rows_per_task), (rows_per_task / block).saturating_mul(pitch)))?
        };
        match pointer.access {
            Access::Rows(columns) => by_rows(columns, 1),
            Access::Blocks { rows, columns } => by_rows(columns, rows),
            Access::Matrix(_) | Access::Batch => {
                let batch = self.kind.batch();
                blocks_of(batch, pointer.bytes().checked_div(batch)?).filter(|_| batch > 1)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::program::{Dispatch, Tiling};
    use std::collections::BTreeMap;

    fn kernel(text: &str, kind: KernelKind, tiling: Tiling, tasks: usize) -> Kernel {
        let func = crate::parse_func(text).unwrap();
        let (name, pitches, dispatch) = ("k".into(), BTreeMap::new(), Dispatch::Dynamic);
        Kernel { name, kind, tiling, func, pitches, tasks, dispatch, scratch: 0, flops: 0, bytes: 0 }
    }

    fn blocks(tasks: usize, bytes: usize) -> Reach {
        Reach::Blocks { tasks, bytes }
    }

    #[test]
    fn rows_reach_their_own_and_what_all_share() {
        // As many columns as rows, so that a row of one operand could be a column of another.
        let text = "func \"k\"(\"x\" input = %x: f32[2, 3, 6], \"row\" input = %row: f32[6], \"first\" input = %first: f32[1, 6],
          \"column\" input = %column: f32[2, 3, 1], \"table\" input = %table: f32[6, 6], \"ids\" input = %ids: i32[2, 3]) {
          %a = add %x, %row : f32[2, 3, 6]
          %b = mul %a, %first : f32[2, 3, 6]
          %c = mul %b, %column : f32[2, 3, 6]
          %d = gather %table, %ids : f32[2, 3, 6]
          %e = add %c, %d : f32[2, 3, 6]
          %f = sum_blocks %e {rows = 2} : f32[3, 6]
          yield \"e\" = %e, \"f\" = %f
        }";
        let mut kernel = kernel(text, KernelKind::Rows { rows: 6 }, Tiling::Rows { rows_per_task: 2 }, 3);
        let whole = Reach::Whole;
        let expected = [blocks(1, 48), whole, whole, blocks(1, 8), whole, whole, blocks(1, 48), blocks(1, 24)];
        assert_eq!(kernel.reaches(), expected);
        kernel.pitches.insert(0, 64);
        assert_eq!(kernel.reaches()[0], blocks(1, 128));
        // Tasks that cut a block.
        kernel.tiling = Tiling::Rows { rows_per_task: 1 };
        kernel.tasks = 6;
        assert_eq!((kernel.reaches()[3], kernel.reaches()[7]), (blocks(1, 4), whole));
    }

    #[test]
    fn column_blocks_of_a_matmul_reach_the_same_rows() {
        let text =
            "func \"k\"(\"x\" input = %x: f32[8, 4], \"w\" input = %w: f32[8, 4, 1, 1], \"y\" input = %y: f32[8, 8]) {
          %z = packed_matmul %x, %w {n = 8, k = 4, parts = 1} : f32[8, 8]
          %r = add %z, %y : f32[8, 8]
          yield \"r\" = %r
        }";
        let (panels_per_task, panels_together) = (4, 1);
        let tiling = Tiling::PanelBlocks { rows_per_task: 3, panels_per_task, kc: 4, panels_together, prefetch: 0 };
        let mut kernel = kernel(text, KernelKind::Matmul { m: 8, n: 8, k: 4 }, tiling, 6);
        assert_eq!(kernel.reaches(), [blocks(2, 48), Reach::Whole, blocks(2, 96), blocks(2, 96)]);
        // The last block is short.
        let reach = kernel.reaches()[0];
        assert_eq!([reach.of(&(0..1), 128), reach.of(&(1..3), 128), reach.of(&(4..6), 128)], [0..48, 0..96, 96..128]);
        kernel.tiling = Tiling::Panels { panels_per_task };
        assert_eq!(kernel.reaches()[0], blocks(6, 128), "rows are not cut");
        assert_eq!((reach.of(&(2..2), 128), Reach::Whole.of(&(0..1), 7)), (0..0, 0..7));
    }

    #[test]
    fn attentions_reach_their_sequences_and_products_their_matrices() {
        let heads = "f32[3, 4, 2, 5]";
        let text = format!(
            "func \"k\"(\"q\" input = %q: f32[3, 4, 10], \"k\" input = %k: {heads}, \"v\" input = %v: {heads},
              \"bias\" input = %bias: f32[2, 5], \"pos\" input = %pos: i32[3]) {{
              %a = reshape %q {{shape = [3, 4, 2, 5]}} : {heads}
              %b = add %a, %bias : {heads}
              %o = attention %b, %k, %v, %pos {{causal = true, scale = 1.0}} : {heads}
              yield \"o\" = %o
            }}"
        );
        let one = blocks(4, 4 * 10 * 4);
        let attention = kernel(
            &text,
            KernelKind::Attention { queries: 4, heads: 6 },
            Tiling::Queries { q_rows: 2, kv_block: 4 },
            12,
        );
        assert_eq!(attention.reaches(), [one, one, one, Reach::Whole, Reach::Whole, one]);
        let text =
            "func \"k\"(\"a\" input = %a: f32[2, 6, 3], \"b\" input = %b: f32[2, 6, 5], \"c\" input = %c: f32[3, 5]) {
          %y = matmul %a, %b {trans_a = true, trans_b = false} : f32[2, 3, 5]
          %r = add %y, %c : f32[2, 3, 5]
          yield \"r\" = %r
        }";
        let tiling = |rows_per_task: usize| Tiling::Blocks { rows_per_task, columns_per_task: 3, kc: 6 };
        let product = kernel(text, KernelKind::Product { batch: 2, m: 3, n: 5, k: 6 }, tiling(3), 4);
        assert_eq!(product.reaches(), [blocks(2, 72), blocks(2, 120), Reach::Whole, blocks(2, 60)]);
        // Rows of one matrix, unless they are summed over.
        for (shape, trans_a, left) in [("3, 6", false, blocks(2, 48)), ("6, 3", true, Reach::Whole)] {
            let text = format!(
                "func \"k\"(\"a\" input = %a: f32[{shape}], \"b\" input = %b: f32[6, 5], \"c\" input = %c: f32[3, 5]) {{
                  %y = matmul %a, %b {{trans_a = {trans_a}, trans_b = false}} : f32[3, 5]
                  %r = add %y, %c : f32[3, 5]
                  yield \"r\" = %r
                }}"
            );
            let product = kernel(&text, KernelKind::Product { batch: 1, m: 3, n: 5, k: 6 }, tiling(2), 4);
            assert_eq!(product.reaches(), [left, Reach::Whole, blocks(2, 40), blocks(2, 40)], "{trans_a}");
        }
    }
}
