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
    use super::*;
    use crate::float::Float;
    use crate::module::Func;
    use crate::program::body::{Attention, HeadChain, HeadRows, Heads, Matrix, Product, Rows};
    use crate::program::rows::RowGraph;
    use crate::program::{Dispatch, KernelKind, Tiling};
    use crate::types::Type;

    /// A kernel with one pointer of six rows of eight floats, in a batch of two.
    fn reach(kind: KernelKind, access: Access, tiling: Tiling, tasks: usize, pitch: Option<usize>) -> Reach {
        let pointers = vec![Pointer { ty: Type::f32([2, 3, 8]), access, pitch, written: false }];
        let (name, func, dispatch) = ("k".into(), Func::new("k"), Dispatch::Dynamic);
        Kernel { name, kind, tiling, func, pointers, tasks, dispatch, scratch: 0, flops: 0, bytes: 0 }.reaches()[0]
    }

    fn rows() -> Rows {
        Rows { graph: RowGraph { rows: 6, nodes: vec![] }, results: vec![] }
    }

    fn product(batch: usize) -> KernelKind {
        let matrix = Matrix { pointer: 0, rows: 3, columns: 8, inner_last: true };
        KernelKind::Product(Product { batch, m: 3, n: 5, k: 8, left: matrix, right: matrix, epilogue: rows() })
    }

    fn attention() -> KernelKind {
        let query = HeadChain { source: 0, stride: 8, start: 0, biases: vec![], rope: None, heads: 2, dim: 4 };
        let keys = HeadRows { pointer: 0, start: 0, batch: 24, group: 4, stride: 8 };
        let (pos, causal, scale, batch, steps, groups, context) = (0, true, Float(1.0), 2, 3, 2, 3);
        let heads = Heads { query, keys, values: keys, pos, causal, scale, batch, steps, groups, context };
        KernelKind::Attention(Attention { heads, result: 0, writes: vec![] })
    }

    fn blocks(tasks: usize, bytes: usize) -> Reach {
        Reach::Blocks { tasks, bytes }
    }

    #[test]
    fn tasks_reach_their_rows() {
        let of = |access, rows_per_task| {
            let tiling = Tiling::Rows { rows_per_task };
            reach(KernelKind::Rows(rows()), access, tiling, 6 / rows_per_task, None)
        };
        assert_eq!(of(Access::Rows(8), 2), blocks(1, 64));
        assert_eq!(of(Access::Rows(1), 3), blocks(1, 12));
        assert_eq!(of(Access::Blocks { rows: 2, columns: 8 }, 2), blocks(1, 32));
        assert_eq!(of(Access::Blocks { rows: 2, columns: 8 }, 1), Reach::Whole, "tasks cut a block");
        assert_eq!((of(Access::Row, 2), of(Access::Weight, 2)), (Reach::Whole, Reach::Whole));
        let tiling = Tiling::Rows { rows_per_task: 2 };
        assert_eq!(reach(KernelKind::Rows(rows()), Access::Rows(8), tiling, 3, Some(64)), blocks(1, 128));
    }

    #[test]
    fn column_blocks_reach_the_same_rows_and_batches_their_part() {
        let tiling = |rows_per_task: usize| Tiling::Blocks { rows_per_task, columns_per_task: 3, kc: 8 };
        assert_eq!(reach(product(1), Access::Rows(8), tiling(2), 4, None), blocks(2, 64));
        assert_eq!(reach(product(1), Access::Matrix(8), tiling(2), 4, None), Reach::Whole);
        assert_eq!(reach(product(2), Access::Matrix(8), tiling(3), 4, None), blocks(2, 96));
        let queries = Tiling::Queries { q_rows: 2, kv_block: 4 };
        assert_eq!(reach(attention(), Access::Batch, queries, 8, None), blocks(4, 96));
    }

    #[test]
    fn the_last_block_is_short() {
        let reach = blocks(2, 48);
        assert_eq!([reach.of(&(0..1), 128), reach.of(&(1..3), 128), reach.of(&(4..6), 128)], [0..48, 0..96, 96..128]);
        assert_eq!((reach.of(&(2..2), 128), Reach::Whole.of(&(0..1), 7)), (0..0, 0..7));
    }
}
