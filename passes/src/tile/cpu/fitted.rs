//! The numbers that were fitted to CPUs, each with the machine and the month's day it was fitted on, and what to run to fit it again.
//!
//! The machines, two cores of each (docs/performance.md): *Zen 3* (AVX2, 32 KiB and 512 KiB of cache; 24 and 30 November 2026), *Xeon*
//! (AVX-512, 48 KiB and 2 MiB; 28 and 29 November). To fit a number again: change it, build, and run both binaries in turn, five times
//! or more, since clocks and neighbours change by the hour; keep it if medians at all sizes are no worse on both kinds of machine.
//! Where a line names a work of `rdc bench --sizes tiny,small`, that is the judge; `gemm`, `gemv`, `product` and `memory` are parts of
//! `cargo run --release -p rdc-backend-cpu --features testing --example matmul_bench`, as `attention_bench` is an example beside it.
//! Reduction orders follow from inner blocks, `FEW_ROWS`, `KV_BLOCK`, partial sums and chunks of tokens: changing those changes the last
//! bits of results.
use crate::tile::Backward;

// How many tasks.

/// Tasks aimed at where work has no natural grain. Zen 3, 24th; decode.
pub const TASKS: usize = 32;
/// Tasks of a matmul below which its cost grows in proportion: with fewer there is nothing to help a late thread with. Zen 3, 24th;
/// prefill.
pub const FEW_TASKS: usize = 16;
/// What the share of the slowest of 4 threads counts beside that of 2, see [`super::unevenness`]. Zen 3, 24th; prefill.
pub const OF_FOUR: f64 = 0.5;
/// The same of products, which pack more for every cut. Xeon, 28th; train.
pub const OF_FOUR_IN_PRODUCTS: f64 = 0.15;
/// What it costs that threads, taking as many tasks each, do not take whole row blocks each: rows that one wrote another reads. Xeon,
/// 29th; prefill and train.
pub const PARTED: f64 = 0.05;

// Matmuls.

/// Rows up to which reading the weight is what takes time: sums of more rows do not fit into registers. Zen 3, 24th; `gemv`, `gemm`.
pub const FEW_ROWS: usize = 4;
/// Longest inner block: `256 * nr` f32 of the weight and a register tile's rows share a first-level cache of 32 KiB. Zen 3, 24th; `gemm`.
pub const INNER: usize = 256;
/// Rows of a task, at least and at most. Xeon, 28th; prefill.
pub const HEIGHTS: (usize, usize) = (48, 96);
/// How many times taller tasks may be where every row block brings the weight in again. Xeon, 29th; `gemm` of 512 x 5632 x 1024.
pub const TALLER: usize = 3;
/// Most blocks of columns beside each other. Zen 3, 24th; prefill.
pub const COLUMN_BLOCKS: usize = 32;
/// What a row operation before a matmul costs per element, in multiplications with additions; bringing rows as they are costs as much
/// as two. Xeon, 28th; `gemm`, plain and after a norm.
pub const PROLOGUE: f64 = 2.0;
/// How long a row block waits for a weight from beyond the second-level cache, in times of a register tile. Xeon, 28th; `gemm` of
/// 512 x 5632 x 1024.
pub const STREAMED: f64 = 1.2;
/// The same for a weight that stays in that cache. Xeon, 28th; `gemm` of 4096 x 704 x 128.
pub const CACHED: f64 = 0.1;
/// How long a group of panels waits for rows from beyond that cache, in the same unit: they lie one after the other. Xeon, 29th;
/// `gemm` of 512 x 1024 x 2816.
pub const ROWS_AGAIN: f64 = 0.6;
/// Panels that are taken together where a task's rows stay in that cache. Xeon, 29th; `gemm` of 512 x 1024 x 2816.
pub const PANELS_TOGETHER: usize = 8;
/// Row blocks from which the rows of the next one are prefetched: those of the first are not. Xeon, 28th; train at tiny.
pub const MANY_ROW_BLOCKS: usize = 16;

// Shares of the second-level cache, as numerator and denominator.

/// What an operand that is to last can count on: rows and results that pass by take the rest. Zen 3, 30th; prefill and train.
pub const LASTING: (usize, usize) = (2, 3);
/// A task's rows, or an inner block of them, while panels go by. Zen 3, 24th; `gemm`.
pub const OF_ROWS: (usize, usize) = (1, 2);
/// An inner block of a taller task's rows, or rows that are prefetched: two of them are in a half. Xeon, 28th; train at tiny.
pub const OF_NEXT_ROWS: (usize, usize) = (1, 4);
/// A piece of a product's left operand; there are two, one being copied. Xeon, 28th; `product`.
pub const OF_LEFT: (usize, usize) = (3, 16);

// Products of two activations.

/// Longest inner block: sums are loaded and stored seldom enough, and packed pieces leave the first-level cache room. Xeon, 28th;
/// `product`.
pub const INNER_OF_PRODUCT: usize = 128;
/// Most rows and most columns of a task. Xeon, 28th; `product`.
pub const BLOCK_OF_PRODUCT: (usize, usize) = (384, 512);
/// Most blocks of an axis. Zen 3, 24th; train.
pub const BLOCKS_OF_PRODUCT: usize = 64;
/// What packing an element costs, in vectors of multiplications with additions. Xeon, 28th; `product`.
pub const PACKING: f64 = 1.5;

// Other kernels.

/// Keys of a step: a panel of them stays in the first-level cache. Zen 3, 24th; `attention_bench`.
pub const KV_BLOCK: usize = 128;
/// Queries of a block where as many as keys would leave too few tasks, and in the backward pass. Zen 3, 24th; `attention_bench`.
pub const Q_ROWS: usize = 48;
/// Blocks that column sums are cut into, and most columns of one. Zen 3, 24th; `memory`.
pub const BLOCKS_OF_COLUMNS: (usize, usize) = (4, 64);

// What is fused, and what is summed in parts.

/// Longest rows that are worth computing again for each block of columns. Zen 3, 24th; prefill.
pub const WIDEST_PROLOGUE: usize = 8192;
/// Longest rows of a result that a task completes: they stay in the second-level cache, and tasks of whole rows are many enough to be
/// shared evenly. Xeon, 28th; prefill and train.
pub const WIDEST_ROW_EPILOGUE: usize = 2048;
/// Rows from which sums over blocks of rows are worth a kernel that adds them up. Xeon, 28th; train.
pub const MANY_ROWS: usize = 64;
/// Kernels that a sum over all rows is put off at most: its operands stay in memory as long. Xeon, 29th; train.
pub const KERNELS_PUT_OFF: usize = 3;
/// Tokens whose logits exist at one time, at least and at most: with fewer, a matmul reads its weight too often. Zen 3, 24th; train.
pub const LOSS_TOKENS: (usize, usize) = (128, 512);
/// Logits that exist at one time, at most, where the fewest tokens do not have more: 32 MiB. Zen 3, 24th; train, all sizes.
pub const LOGITS: usize = 1 << 23;
/// The backward pass where cores share their caches and a bus. What is kept is fetched and written back where it is made, and fetched
/// again where it is used, from memory further away than any cache. Two sums of a gradient, of one half of the tokens each: a thread
/// that has one half of the work reads rows that it wrote itself, and copies half the activations for twice as much of the gradient.
/// Zen 3, 24th (bytes moved); Xeon, 28th; train, and `--memory` of docs/performance.md.
pub const BACKWARD: Backward =
    Backward { flops_per_byte: 4, flops_per_byte_kept: 32, partial_sums: 2, many_tokens: 16 };
