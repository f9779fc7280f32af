//! What differs from one family of machines to the next: how kernels are cut, what is fused around a contraction, how rows lie, and
//! how much is chunked or summed at a time.
//!
//! Passes see a [`Machine`] and ask it; they know no cache size, no register tile and no number that was fitted on a machine. A family
//! is one implementation, in a folder of its own: [`cpu`]. What a back end must know of the same machine to emit code, its
//! instruction set above all, is the back end's.
pub mod cpu;

pub use cpu::Cpu;

use rdc_ir::program::body::{Epilogue, Matmul};
use rdc_ir::program::rows::{NodeId, NodeKind, Stored};
use rdc_ir::program::{Dispatch, KernelKind, Tiling};
use std::fmt::Debug;

/// A machine that programs are made for. The questions that have an answer here need none of a machine that is plain: it fuses
/// elementwise operations after a contraction only, and rows follow each other.
pub trait Machine: Debug + Send + Sync {
    /// Columns of a panel of a packed weight.
    fn panel(&self) -> usize;

    /// How a kernel is cut, into how many tasks and how they are handed out. A function of the kernel and the machine alone, so that
    /// results depend on neither the number of threads nor the moment.
    fn tile(&self, kernel: &KernelKind) -> Tiled;

    /// The longest rows that a matmul's kernel may make for its left operand by row operations (the prologue); 0 if contractions take
    /// operands from memory only.
    fn widest_prologue(&self) -> usize {
        0
    }

    /// The longest rows that the kernel of a matmul of so many rows may complete, to work on them as a whole (the row epilogue); 0 for
    /// none.
    fn widest_row_epilogue(&self, _rows: usize) -> usize {
        0
    }

    /// Rows of the blocks whose sums row kernels give, if a column sum of so many rows is worth taking of such sums. Tasks begin with a
    /// block.
    fn sum_block(&self, _rows: usize) -> Option<usize> {
        None
    }

    /// The most kernels for which a sum over all rows is put off, to where threads would wait for each other.
    fn kernels_put_off(&self) -> usize {
        0
    }

    /// Bytes from one row of floats to the next of a buffer that contractions use, if its rows had better not follow each other.
    fn pitch(&self, _rows: usize, _columns: usize) -> Option<usize> {
        None
    }

    /// The most tokens of a loss whose logits exist at one time, for a vocabulary.
    fn loss_tokens(&self, vocabulary: usize) -> usize;

    /// What the backward pass is to weigh.
    fn backward(&self) -> Backward {
        Backward::default()
    }
}

/// How a kernel is cut, into how many tasks and how they are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiled {
    /// The cut.
    pub tiling: Tiling,
    /// Number of tasks.
    pub tasks: usize,
    /// How they are handed out.
    pub dispatch: Dispatch,
}

/// What stands around a matmul.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// What a machine's backward pass weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    /// Floating-point operations that take as long as moving a byte between kernels.
    pub flops_per_byte: u64,
    /// Floating-point operations that take as long as keeping a byte until the backward pass and fetching it again.
    pub flops_per_byte_kept: u64,
    /// Partial sums of a weight's gradient that a loop carries, each of its part of the tokens.
    pub partial_sums: usize,
    /// How many times larger than the gradient the activations of an iteration must be for that.
    pub many_tokens: usize,
}

impl Default for Backward {
    /// Arithmetic that waits for memory, and one sum.
    fn default() -> Backward {
        Backward { flops_per_byte: 4, flops_per_byte_kept: 32, partial_sums: 1, many_tokens: 0 }
    }
}

/// The least common multiple of two positive numbers.
fn lcm(a: usize, b: usize) -> usize {
    (a..=a * b).step_by(a).find(|n| n.is_multiple_of(b)).unwrap_or(a * b)
}
