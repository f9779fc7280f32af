//! Kernels: what each computes, how it is cut, how it reaches its tensors.
use super::Tiling;
use super::body::{Attention, AttentionGrad, Columns, Generic, KvWrite, Matmul, Pack, Product, Rows, ScatterAdd};
use crate::module::Func;
use crate::types::Type;
use serde::{Deserialize, Serialize};

/// How a kernel's tasks are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dispatch {
    /// Each thread takes one contiguous share: for memory-bound kernels, whose data then stays with its thread.
    Static,
    /// Threads claim runs of tasks, each of its own share first and then of the others': for compute-bound kernels on a shared machine.
    Dynamic,
}

/// What a kernel computes, taken apart. How it is cut into tasks is its [`Tiling`].
///
/// *Row operations* are elementwise operations, `rms_norm`, `layer_norm`, `softmax`, reductions, slices and concats of the
/// last axis over tensors seen as `[rows, columns]`; an operand may also be one row (`[columns]`, leading axes 1), one
/// column (`[rows, 1]`, or any shape of `rows` elements), or a scalar. Scalar arithmetic and a `gather` of one row by a
/// scalar index may be among them, and a reshape that keeps rows and columns, or a column, as it is. So may `one_hot` of a
/// column of ids, `pad` of the last axis, and `rope`/`rope_grad` over `[B, S, H, D]` seen as rows of H * D. A `sum_blocks` of
/// rows may be among the results, if tasks begin with a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "a program has a few dozen kernels")]
pub enum KernelKind {
    /// Row operations; `gather`/`packed_gather`/`positions` may produce rows, or one row for a scalar index.
    Rows(Rows),
    /// One `packed_matmul`. Before it, row operations on its left operand (the prologue); after it elementwise operations
    /// (the epilogue), which, if the weight has `parts` > 1, begin with slices into the parts and work on them. Values of the
    /// epilogue may be joined along the last axis at its end. Or, after it, row operations on its rows and arguments (the row
    /// epilogue): the weight then has one part and no scales, and a task all columns. Results may also be prologue values, and
    /// other row operations of as many rows on arguments and prologue values; those are written by column block 0.
    Matmul(Matmul),
    /// One `matmul` of two row-major operands, either transposed, of rank 2, or of rank 3 with a leading axis: a weight's gradient,
    /// `trans_a` with the tokens as inner size. After it elementwise operations (the epilogue), whose values may be joined.
    Product(Product),
    /// `sum_to` one row of `[rows, columns]` tensors, of the same rows: the gradients of biases and norm weights. Before them
    /// elementwise operations on such tensors, slices of the last axis of arguments, columns `[rows, 1]`, rows and scalars, after
    /// them elementwise operations on the sums (the epilogue).
    Columns(Columns),
    /// `cache_update`s, with the chains that make their operands: slice of the last axis, reshape to heads, bias, `rope`.
    /// The caches are single slots (`cache f32[1, B, T, H, D]`, slot 0).
    KvWrite(KvWrite),
    /// One `attention`; k and v are views (`cache f32[B, T, G, D]`) or plain tensors `f32[B, T, G, D]`; q comes through a chain as in `KvWrite`.
    Attention(Attention),
    /// One `attention` with S = 1, fused with the `cache_update`s of its k and v (single slots as in `KvWrite`) and the
    /// chains of all three. Task = (batch, group).
    DecodeAttention(Attention),
    /// One `attention_grad`, of whose results each may go through `rope_grad` and a reshape, and several of them be joined along
    /// the last axis. Task = (batch, group of heads): all of its queries and keys.
    AttentionGrad(AttentionGrad),
    /// One `pack` of an f32 weight, perhaps of its `transpose`.
    Pack(Pack),
    /// One `scatter_add`. A task covers some rows of the table, and all ids. The result may share the base's memory.
    ScatterAdd(ScatterAdd),
    /// Any single operation. One task.
    Generic(Generic),
}

/// How a kernel reaches the tensor of a pointer. Rows are those that the kernel's kind counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Row i of the kernel touches row i of the tensor, of so many columns.
    Rows(usize),
    /// Row i of the kernel touches row `i / rows` of the tensor.
    Blocks {
        /// Rows of a block.
        rows: usize,
        /// Columns of a row.
        columns: usize,
    },
    /// A task touches any rows, of so many columns, of the matrix of the batch that it works on.
    Matrix(usize),
    /// A task touches the part of the leading axis, the batch, that it works on.
    Batch,
    /// One row, the same for all.
    Row,
    /// One element, the same for all.
    Scalar,
    /// Some rows, found by ids.
    Table {
        /// Elements that one launch looks up, at most.
        elements: usize,
    },
    /// A packed weight, or its scales.
    Weight,
    /// One slot of a KV cache, that is written in place.
    Cache,
    /// Anything.
    Whole,
}

/// A pointer of a kernel's calling convention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pointer {
    /// The type of the tensor.
    pub ty: Type,
    /// How it is reached.
    pub access: Access,
    /// Bytes from one row of the last axis to the next, if rows do not follow each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pitch: Option<usize>,
    /// Whether the kernel writes there: a result, or a single slot `[1, B, T, H, D]` of a cache in place.
    pub written: bool,
}

impl Pointer {
    /// The size of the tensor in memory.
    pub fn bytes(&self) -> usize {
        self.ty.bytes_at(self.pitch)
    }
    /// Whether rows of the last axis may lie apart: the kernel addresses each of them as a row.
    pub fn may_have_pitch(&self) -> bool {
        matches!(self.access, Access::Rows(columns) | Access::Matrix(columns) if columns == self.ty.last())
    }
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Symbol name: `k` and its index, then what it does (`k3_matmul_f32_256x1024x384`).
    pub name: String,
    /// What it computes, taken apart.
    pub kind: KernelKind,
    /// How it is cut.
    pub tiling: Tiling,
    /// What it computes, as a function: arguments in launch order, results in launch order (linear results have no pointer).
    pub func: Func,
    /// Its pointers: arguments, then results that are not linear (such a result is its argument's memory).
    pub pointers: Vec<Pointer>,
    /// Number of tasks.
    pub tasks: usize,
    /// How they are handed out.
    pub dispatch: Dispatch,
    /// Bytes of scratch per thread.
    pub scratch: usize,
    /// Floating-point operations of one launch.
    pub flops: u64,
    /// Bytes of arguments and results that one launch must read or write.
    pub bytes: u64,
}

impl Kernel {
    /// Bytes from one row to the next of a pointer whose rows are so long.
    pub fn pitch(&self, pointer: usize, row: usize) -> usize {
        self.pointers.get(pointer).and_then(|pointer| pointer.pitch).unwrap_or(row)
    }
    /// The pointers of results: places in [`Kernel::pointers`].
    pub fn results(&self) -> impl Iterator<Item = usize> {
        // A cache is its argument, written in place.
        self.pointers.iter().enumerate().filter(|(_, pointer)| pointer.written && !pointer.ty.cache).map(|(at, _)| at)
    }
}

impl KernelKind {
    /// The name of the family.
    pub fn name(&self) -> &'static str {
        match self {
            KernelKind::Rows(_) => "rows",
            KernelKind::Matmul(_) => "matmul",
            KernelKind::Product(_) => "product",
            KernelKind::Columns(_) => "columns",
            KernelKind::KvWrite(_) => "kv_write",
            KernelKind::Attention(_) => "attention",
            KernelKind::DecodeAttention(_) => "decode_attention",
            KernelKind::AttentionGrad(_) => "attention_grad",
            KernelKind::Pack(_) => "pack",
            KernelKind::ScatterAdd(_) => "scatter_add",
            KernelKind::Generic(_) => "generic",
        }
    }
    /// Rows over which its work is counted, where rows can be cut into tasks.
    pub fn rows(&self) -> Option<usize> {
        match self {
            KernelKind::Rows(rows) => Some(rows.graph.rows),
            KernelKind::Matmul(matmul) => Some(matmul.m),
            KernelKind::Product(product) if product.batch == 1 => Some(product.m),
            _ => None,
        }
    }
    /// Parts of the leading axis that tasks work on one by one: sequences of an attention, matrices of products.
    pub fn batch(&self) -> usize {
        match self {
            KernelKind::Attention(attention) | KernelKind::DecodeAttention(attention) => attention.heads.batch,
            KernelKind::AttentionGrad(grad) => grad.heads.batch,
            KernelKind::Product(product) => product.batch,
            _ => 1,
        }
    }
}
