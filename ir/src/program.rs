//! `Program`: what the passes hand to a back end and to the runtime: semantic kernels, a memory plan and a schedule.
//!
//! A [`Kernel`] is a small IR function around one anchor operation (a matmul, an attention, a row-wise chain). Its [`KernelKind`] says
//! what is computed, its [`Tiling`] how that is cut into *tasks*, a number fixed here and independent of the number of threads, so
//! results do not depend on it either. An [`Entry`] is a schedule: every thread walks the same list
//! of [`Step`]s, takes its share of the tasks of each launch, and meets the others at barriers; between them tasks may wait for those
//! of earlier launches.
//!
//! # Calling convention of a kernel
//! `extern "C" fn(args: *const *mut u8, begin: i64, end: i64, scratch: *mut u8)` runs tasks `begin..end`. `args` holds one
//! pointer per function argument, then one per non-linear result, in order. `scratch` is private to the thread, 64-byte
//! aligned, [`Kernel::scratch`] bytes. Arguments and results are row-major, rows of the last axis one after the other or
//! [`Kernel::pitches`] apart; packed weights as the `pack` op says; types marked `cache` are one slot of a KV cache stored
//! head-major: logical `[.., T, H, D]`, physical `[.., H, T, D]`.
//!
//! Results do not overlap arguments or each other, but for these cases: a result may have the memory of an argument that it
//! is computed from element by element (only elementwise operations, all over the full shape, lead from the argument to the
//! result), if no other result depends on the argument or all of the kernel is elementwise; of [`KernelKind::Rows`] a result may, if
//! norms and sums and maxima of rows lead to it too, if the others that depend on the argument have one element a row, and no sweep
//! over the row that they need comes after the one that computes it; and the result of `scatter_add` may have the memory of its
//! base. A kernel therefore reads an element of an argument (a row of it, in the second case) before it writes that element of a
//! result computed from it, in the same task, and not again after.
use crate::entity::OpId;
use crate::module::{ArgRole, Func};
use crate::ops::Opcode;
use crate::types::Type;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

mod memory;
mod reach;
mod schedule;
mod tiling;

pub use reach::Reach;
pub use schedule::{KvPolicy, Launch, LaunchArg, LoopStep, Offset, Step};
pub use tiling::Tiling;

/// A compiled model, less its code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The model's name.
    pub name: String,
    /// The name of the target it is for, `native` if that is the machine that compiled it.
    pub target: String,
    /// Constant data: packed weights, small parameters, tables.
    pub weights: Vec<Weight>,
    /// Distinct kernels; launches refer to them by index.
    pub kernels: Vec<Kernel>,
    /// The functions.
    pub entries: Vec<Entry>,
}

/// A constant buffer and how its bytes come to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weight {
    /// A name for people, from the parameters it is made of.
    pub name: String,
    /// The type of the stored data; for packed weights as the `pack` op infers it.
    pub ty: Type,
    /// What it holds.
    pub source: WeightSource,
}

/// What a constant buffer holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WeightSource {
    /// A parameter as it is, f32 (rounded to bf16 and back if `via_bf16`).
    Param {
        /// Checkpoint name.
        name: String,
        /// Whether values pass through bf16 (`--dtype bf16`).
        via_bf16: bool,
    },
    /// Rows of parameters stacked, then packed into panels as the `pack` op says; its element type is the weight's.
    Packed {
        /// The stacked pieces.
        pieces: Vec<Piece>,
        /// Rows in all.
        n: usize,
        /// Columns of every piece.
        k: usize,
        /// Panel width.
        nr: usize,
        /// Parts, as in the `pack` op.
        parts: usize,
    },
    /// The int8 scales `f32[n]` of stacked pieces, in the order of the unpacked rows.
    Scales {
        /// The stacked pieces.
        pieces: Vec<Piece>,
    },
    /// A rotary table, as the op `rope_table`.
    RopeTable {
        /// Rows.
        len: usize,
        /// Head size.
        dim: usize,
        /// Base of the angles.
        base: f64,
    },
    /// Training state under that name (a gradient, a moment), zero at first.
    State {
        /// The name of the parameter.
        name: String,
    },
    /// A sinusoid table, as the op `sinusoid_table`.
    SinusoidTable {
        /// Rows.
        len: usize,
        /// Columns.
        dim: usize,
        /// Base of the wavelengths.
        base: f64,
    },
}

impl WeightSource {
    /// The name of the parameter, or of the training state, that the buffer holds as it is.
    pub fn as_is(&self) -> Option<&str> {
        match self {
            WeightSource::Param { name, via_bf16: false } | WeightSource::State { name } => Some(name),
            _ => None,
        }
    }
}

impl Program {
    /// Bytes that running it needs: the constant buffers, training state included, the largest arena, the most inputs and outputs
    /// but for caches, and the scratch of so many threads. Saturates, since an artifact may claim any size.
    pub fn memory(&self, threads: usize) -> usize {
        let weights = self.weights.iter().map(|w| w.ty.bytes());
        let outside = self.entries.iter().map(Entry::outside).max().unwrap_or(0);
        let others = [self.arena(), outside, self.scratch().saturating_mul(threads)];
        weights.chain(others).fold(0, usize::saturating_add)
    }

    /// Bytes of the largest arena: entries take turns in it.
    pub fn arena(&self) -> usize {
        self.entries.iter().map(|e| e.arena).max().unwrap_or(0)
    }

    /// Bytes of scratch that a thread needs; 0 before a back end has set those of the kernels.
    pub fn scratch(&self) -> usize {
        self.kernels.iter().map(|k| k.scratch).max().unwrap_or(0)
    }
}

/// A block of a rank-2 parameter (a parameter of other rank counts as rank 2 by its last axis).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// Checkpoint name.
    pub param: String,
    /// Row range.
    pub rows: (usize, usize),
    /// Column range. int8 scales come from the whole row all the same.
    pub cols: (usize, usize),
}

/// How a kernel's tasks are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dispatch {
    /// Each thread takes one contiguous share: for memory-bound kernels, whose data then stays with its thread.
    Static,
    /// Threads claim runs of tasks, each of its own share first and then of the others': for compute-bound kernels on a shared machine.
    Dynamic,
}

/// What a kernel computes, and the sizes of it.
///
/// *Row operations* are elementwise operations, `rms_norm`, `layer_norm`, `softmax`, reductions, slices and concats of the
/// last axis over tensors seen as `[rows, columns]`; an operand may also be one row (`[columns]`, leading axes 1), one
/// column (`[rows, 1]`, or any shape of `rows` elements), or a scalar. Scalar arithmetic and a `gather` of one row by a
/// scalar index may be among them, and a reshape that keeps rows and columns, or a column, as it is. So may `one_hot` of a
/// column of ids, `pad` of the last axis, and `rope`/`rope_grad` over `[B, S, H, D]` seen as rows of H * D. A `sum_blocks` of
/// rows may be among the results, if tasks begin with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelKind {
    /// Row operations; `gather`/`packed_gather`/`positions` may produce rows, or one row for a scalar index.
    Rows {
        /// Rows in all.
        rows: usize,
    },
    /// One `packed_matmul`. Before it, row operations on its left operand (the prologue); after it elementwise operations
    /// (the epilogue), which, if the weight has `parts` > 1, begin with slices into the parts and work on them. Values of the
    /// epilogue may be joined along the last axis at its end. Or, after it, row operations on its rows and arguments (the row
    /// epilogue): the weight then has one part and no scales, and a task all columns. Results may also be prologue values, and
    /// other row operations of as many rows on arguments and prologue values; they are written by the tasks of column block 0.
    Matmul {
        /// Rows of the left operand.
        m: usize,
        /// Columns of the result before slicing.
        n: usize,
        /// Inner size.
        k: usize,
    },
    /// `cache_update`s, with the chains that make their operands: slice of the last axis, reshape to heads, bias, `rope`.
    /// The caches are single slots (`cache f32[1, B, T, H, D]`, slot 0).
    KvWrite {
        /// Tokens (B*S).
        tokens: usize,
    },
    /// One `attention`; k and v are views (`cache f32[B, T, G, D]`) or plain tensors `f32[B, T, G, D]`; q comes through a chain as in `KvWrite`.
    /// Task = (batch, head, block of queries), the block innermost; keys meet them in the steps of an online softmax.
    Attention {
        /// Queries of a head.
        queries: usize,
        /// Heads, over all of the batch.
        heads: usize,
    },
    /// One `attention` with S = 1, fused with the `cache_update`s of its k and v (single slots as in `KvWrite`) and the
    /// chains of all three. Task = (batch, group).
    DecodeAttention {
        /// Groups of heads, over all of the batch.
        groups: usize,
    },
    /// One `matmul` of two row-major operands, either transposed, of rank 2, or of rank 3 with a leading axis of `batch`: a
    /// weight's gradient, `trans_a` with the tokens as inner size. After it elementwise operations (the epilogue), whose values may
    /// be joined. The blocks of one matrix of the batch after another are tasks.
    Product {
        /// Matrices.
        batch: usize,
        /// Rows of the result.
        m: usize,
        /// Columns of the result.
        n: usize,
        /// Inner size.
        k: usize,
    },
    /// One `pack` of an f32 weight, perhaps of its `transpose`.
    Pack {
        /// Panels.
        panels: usize,
    },
    /// `sum_to` one row of `[rows, columns]` tensors, of the same rows: the gradients of biases and norm weights. Before them
    /// elementwise operations on such tensors, slices of the last axis of arguments, columns `[rows, 1]`, rows and scalars, after
    /// them elementwise operations on the sums (the epilogue). A task goes through all rows, in order.
    Columns {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// One `scatter_add`. A task goes through all ids. The result may share the base's memory.
    ScatterAdd {
        /// Rows of the table.
        rows: usize,
    },
    /// One `attention_grad`, of whose results each may go through `rope_grad` and a reshape, and several of them be joined along
    /// the last axis. Task = (batch, group of heads): all of its queries and keys.
    AttentionGrad {
        /// Queries of a head.
        queries: usize,
        /// Groups of heads, over all of the batch.
        groups: usize,
    },
    /// Any single operation, as plain loops over the result. One task.
    Generic,
}

/// Whether among operations, in order, row operations follow a `packed_matmul` on its rows: its kernel has a row epilogue.
pub fn has_row_epilogue(func: &Func, ops: &[OpId], anchor: OpId) -> bool {
    let whole = func.ops[anchor].size("parts") <= 1;
    let mut after = BTreeSet::from([func.ops[anchor].results[0]]);
    let mut found = false;
    for &op in ops {
        let op = &func.ops[op];
        if op.operands.iter().any(|v| after.contains(v)) {
            after.extend(&op.results);
            found |= !op.opcode.is_elementwise()
                && match op.opcode {
                    Opcode::Reshape | Opcode::Concat => false,
                    Opcode::Slice => whole,
                    _ => true,
                };
        }
    }
    found
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Symbol name: `k` and its index, then what it does (`k3_matmul_f32_256x1024x384`).
    pub name: String,
    /// What it computes, and how large that is.
    pub kind: KernelKind,
    /// How it is cut.
    pub tiling: Tiling,
    /// The computation; arguments in launch order, results in launch order (linear results have no pointer).
    pub func: Func,
    /// Bytes from one row of the last axis to the next, of the pointers whose rows do not follow each other.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pitches: BTreeMap<usize, usize>,
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

/// A pointer of a kernel's calling convention.
#[derive(Clone, Copy, Debug)]
pub struct Pointer<'k> {
    /// The type of the tensor.
    pub ty: &'k Type,
    /// Bytes from one row to the next, if rows do not follow each other.
    pub pitch: Option<usize>,
    /// Whether the kernel writes there: a result, or a single slot `[1, B, T, H, D]` of a cache in place.
    pub written: bool,
}

impl Pointer<'_> {
    /// The size of the tensor in memory.
    pub fn bytes(&self) -> usize {
        self.ty.bytes_at(self.pitch)
    }
}

impl Kernel {
    /// The pointers: arguments, then results that are not linear (such a result is its argument's memory).
    pub fn pointers(&self) -> impl Iterator<Item = Pointer<'_>> {
        let body = &self.func.regions[self.func.body];
        let arguments = body.args.iter().map(|&v| self.func.ty(v)).map(|ty| (ty, ty.cache && ty.rank() == 5));
        let results = body.yields.iter().map(|&v| self.func.ty(v)).filter(|ty| !ty.cache).map(|ty| (ty, true));
        let all = arguments.chain(results).enumerate();
        all.map(|(index, (ty, written))| Pointer { ty, pitch: self.pitches.get(&index).copied(), written })
    }
    /// Bytes from one row to the next of a pointer whose rows are so long.
    pub fn pitch(&self, pointer: usize, row: usize) -> usize {
        self.pitches.get(&pointer).copied().unwrap_or(row)
    }
}

/// A specialised function as a schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The function's name.
    pub name: String,
    /// Buffers; steps refer to them by index.
    pub buffers: Vec<Buffer>,
    /// Arguments by name.
    pub inputs: Vec<Input>,
    /// Results by name (caches are not listed: they are updated in place).
    pub outputs: Vec<OutputBuffer>,
    /// What to do.
    pub steps: Vec<Step>,
    /// Bytes of the arena.
    pub arena: usize,
    /// The most bytes of the arena that live at one moment: what the arena would be without gaps.
    pub live: usize,
}

impl Entry {
    /// Bytes of the inputs and outputs, but for caches. Saturates, since an artifact may claim any size.
    pub fn outside(&self) -> usize {
        let inputs = self.inputs.iter().filter(|i| i.role != ArgRole::Cache).map(|i| i.buffer);
        let outside = inputs.chain(self.outputs.iter().map(|o| o.buffer));
        outside.map(|b| self.buffers[b].ty.bytes()).fold(0, usize::saturating_add)
    }
    /// The weights that it writes: parameters and training state that its results replace. `kernels` are the program's.
    pub fn updated(&self, kernels: &[Kernel]) -> BTreeSet<usize> {
        let mut written = Vec::new();
        note_written(kernels, &self.steps, &mut written);
        let weight = |buffer: usize| match self.buffers.get(buffer)?.place {
            Place::Weight(weight) => Some(weight),
            _ => None,
        };
        written.into_iter().filter_map(weight).collect()
    }
}

/// The buffers that steps write other than in place.
fn note_written(kernels: &[Kernel], steps: &[Step], written: &mut Vec<usize>) {
    for step in steps {
        match step {
            Step::Copy { dst: buffer, .. } | Step::Zero { buffer, .. } => written.push(*buffer),
            Step::Launch(launch) => {
                let arguments = kernels.get(launch.kernel).map_or(0, |k| k.func.regions[k.func.body].args.len());
                written.extend(launch.args.iter().skip(arguments).map(|arg| arg.buffer));
            }
            Step::Loop(inner) => note_written(kernels, &inner.body, written),
        }
    }
}

/// A piece of memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// A name for people.
    pub name: String,
    /// Type of the contents.
    pub ty: Type,
    /// Bytes from one row of the last axis to the next, if rows do not follow each other; of the arena only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pitch: Option<usize>,
    /// Where it lives.
    pub place: Place,
}

impl Buffer {
    /// Its size.
    pub fn bytes(&self) -> usize {
        self.ty.bytes_at(self.pitch)
    }
}

/// Where a buffer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// At this byte offset of the entry's arena (a multiple of 64).
    Arena(usize),
    /// The program's weight of that index. Results that update a parameter are written to it.
    Weight(usize),
    /// Memory of the caller, for the entry's input of that index.
    Input(usize),
    /// Memory of the caller, for the entry's output of that index.
    Output(usize),
    /// A thread-private `i32` that holds the step of the loop around.
    Step,
    /// A thread-private `bool` that says whether the step is the last.
    IsLast,
    /// A thread-private `i32` that receives the trips of a loop.
    Trips,
}

/// An argument of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its role and, for a state, how it is drawn.
    pub role: ArgRole,
    /// Its buffer.
    pub buffer: usize,
}

/// A result of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputBuffer {
    /// Its name.
    pub name: String,
    /// Its buffer; the runtime reads the pointer as it stands after the last step.
    pub buffer: usize,
    /// Whether the leading axis is to be cut to the trips of the loop.
    pub stacked: bool,
}
