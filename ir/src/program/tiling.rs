//! How a kernel's work is cut into tasks, and a task's work into blocks.
use serde::{Deserialize, Serialize};

/// How a kernel is cut, chosen for a family of machines. It is part of the program, so that the order in which sums are added, and with
/// it every bit of a result, depends on neither the number of threads nor the back end's mood. A back end refuses what it has no code for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tiling {
    /// A task is what the kernel's kind calls one, and is not cut further.
    Whole,
    /// Task t covers rows `t * rows_per_task ..` (of `KvWrite` tokens, of `ScatterAdd` rows of the table).
    Rows {
        /// Rows per task.
        rows_per_task: usize,
    },
    /// Task t covers columns `t * columns_per_task ..`.
    Columns {
        /// Columns per task.
        columns_per_task: usize,
    },
    /// Task t covers panels `t * panels_per_task ..` of the weight. A matmul reads each from its beginning to its end for all rows at
    /// once: for few rows, where reading the weight is what takes time.
    Panels {
        /// Panels per task.
        panels_per_task: usize,
    },
    /// Tasks are blocks of rows and within those blocks of columns (`task = row_block * column_blocks + column_block`).
    Blocks {
        /// Rows per task.
        rows_per_task: usize,
        /// Columns per task.
        columns_per_task: usize,
        /// Inner indices whose terms are added before those of the next block.
        kc: usize,
    },
    /// As `Blocks`, over a weight in panels.
    PanelBlocks {
        /// Rows per task.
        rows_per_task: usize,
        /// Panels per task.
        panels_per_task: usize,
        /// Inner indices whose terms are added before those of the next block.
        kc: usize,
        /// Panels whose sums are kept from one inner block to the next, while a block of rows is at hand.
        panels_together: usize,
        /// Bytes of the next task's rows that may be prefetched while a task runs; 0 for none.
        prefetch: usize,
    },
    /// Tasks are blocks of `q_rows` queries, or go through all queries in such blocks, and meet keys in blocks.
    Queries {
        /// Queries per block.
        q_rows: usize,
        /// Keys per step.
        kv_block: usize,
    },
}

impl Tiling {
    /// Rows of a task of a kernel of so many rows: all, where rows are not cut.
    pub fn rows_per_task(&self, rows: usize) -> usize {
        match *self {
            Tiling::Rows { rows_per_task }
            | Tiling::Blocks { rows_per_task, .. }
            | Tiling::PanelBlocks { rows_per_task, .. } => rows_per_task,
            _ => rows,
        }
    }
}
