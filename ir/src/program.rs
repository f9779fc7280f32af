//! `Program`: what the passes hand to a back end and to the runtime: semantic kernels, a memory plan and a schedule.
//!
//! A [`Kernel`] computes what is around one anchor operation (a matmul, an attention, a row-wise chain). Its [`KernelKind`] says what,
//! taken apart: operands, prologue, epilogue; its [`Tiling`] how that is cut into *tasks*, a number fixed here and independent of the
//! number of threads, so results do not depend on it either; its [`Pointer`]s say how each tensor is reached. The kernel's function is
//! the same once more, for the interpreter and for people. An [`Entry`] is a schedule: every thread walks the same list
//! of [`Step`]s, takes its share of the tasks of each launch, and meets the others at barriers; between them tasks may wait for those
//! of earlier launches.
//!
//! # Calling convention of a kernel
//! `extern "C" fn(args: *const *mut u8, begin: i64, end: i64, scratch: *mut u8)` runs tasks `begin..end`. `args` holds one
//! pointer per function argument, then one per non-linear result, in order. `scratch` is private to the thread, 64-byte
//! aligned, [`Kernel::scratch`] bytes. Arguments and results are row-major, rows of the last axis one after the other or
//! [`Pointer::pitch`] apart; packed weights as the `pack` op says; types marked `cache` are one slot of a KV cache stored
//! head-major: logical `[.., T, H, D]`, physical `[.., H, T, D]`.
//!
//! Results do not overlap arguments or each other, but for these cases: a result may have the memory of an argument that it
//! is computed from element by element (only elementwise operations, all over the full shape, lead from the argument to the
//! result), if no other result depends on the argument or all of the kernel is elementwise; of [`KernelKind::Rows`] a result may, if
//! norms and sums and maxima of rows lead to it too, if the others that depend on the argument have one element a row, and no sweep
//! over the row that they need comes after the one that computes it; and the result of `scatter_add` may have the memory of its
//! base. A kernel therefore reads an element of an argument (a row of it, in the second case) before it writes that element of a
//! result computed from it, in the same task, and not again after.
use crate::module::ArgRole;
use crate::types::Type;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

pub mod body;
mod kernel;
mod memory;
mod reach;
pub mod rows;
mod schedule;
mod tiling;

pub use kernel::{Access, Dispatch, Kernel, KernelKind, Pointer};
pub use reach::Reach;
pub use schedule::{Advance, Beyond, Exit, KvPolicy, Launch, LaunchArg, LoopStep, Offset, Step};
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Piece {
    /// Checkpoint name.
    pub param: String,
    /// Row range.
    pub rows: (usize, usize),
    /// Column range. int8 scales come from the whole row all the same.
    pub cols: (usize, usize),
}

impl Piece {
    /// How many rows it has.
    pub fn height(&self) -> usize {
        self.rows.1 - self.rows.0
    }
    /// Rows `start..end` of pieces stacked by rows.
    pub fn rows_between(pieces: &[Piece], start: usize, end: usize) -> Vec<Piece> {
        let mut at = 0;
        let mut out = Vec::new();
        for piece in pieces {
            let (from, to) = (start.max(at), end.min(at + piece.height()));
            if from < to {
                out.push(Piece { rows: (piece.rows.0 + from - at, piece.rows.0 + to - at), ..piece.clone() });
            }
            at += piece.height();
        }
        out
    }
    /// Columns `start..end` of pieces stacked by rows.
    pub fn columns_between(pieces: &[Piece], start: usize, end: usize) -> Vec<Piece> {
        let cut = |p: &Piece| Piece { cols: (p.cols.0 + start, p.cols.0 + end), ..p.clone() };
        pieces.iter().map(cut).collect()
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

/// The buffers that steps write.
fn note_written(kernels: &[Kernel], steps: &[Step], written: &mut Vec<usize>) {
    for step in steps {
        match step {
            Step::Copy { dst: buffer, .. } | Step::Zero { buffer, .. } => written.push(*buffer),
            Step::Launch(launch) => {
                let results = kernels.get(launch.kernel).into_iter().flat_map(Kernel::results);
                written.extend(results.filter_map(|result| launch.args.get(result)).map(|arg| arg.buffer));
            }
            Step::Barrier => {}
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
    /// Where `even` lives while the trips of a loop are even, where `odd` does while they are odd: a value that the loop carries, or,
    /// the two the other way around, the one that comes next. Neither of the two is a pair, and both are as this buffer.
    Pair {
        /// A buffer.
        even: usize,
        /// Another.
        odd: usize,
        /// The buffer of [`Place::Trips`].
        trips: usize,
    },
    /// A cell: the `i32` step of the loop around.
    Step,
    /// A cell: a `bool`, whether the step is the last.
    IsLast,
    /// A cell: the `i32` number of iterations that a loop has done.
    Trips,
    /// A cell: a `bool` of the caller, whether loops may end before their last step.
    MayExit,
}

impl Place {
    /// Whether it is a cell: a number that each thread may keep for itself.
    pub fn is_cell(self) -> bool {
        matches!(self, Place::Step | Place::IsLast | Place::Trips | Place::MayExit)
    }
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
    /// Of ids: each is below this, the rows of the smallest table that they are looked up in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<usize>,
}

/// A result of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputBuffer {
    /// Its name.
    pub name: String,
    /// Its buffer, read after the last step.
    pub buffer: usize,
    /// Whether the leading axis is to be cut to the trips of the loop.
    pub stacked: bool,
    /// Which axis holds the positions of the sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<usize>,
}
