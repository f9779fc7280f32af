//! What each kind of kernel computes, taken apart: fusion does so once, and everything after it reads this.
use super::rows::{NodeId, Rotation, RowGraph, Stored};
use crate::entity::OpId;
use crate::float::Float;
use crate::packing::Packing;
use crate::types::DType;
use serde::{Deserialize, Serialize};

/// Row operations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// The operations.
    pub graph: RowGraph,
    /// What is written.
    pub results: Vec<Stored>,
}

/// `x · wᵀ` with a packed weight, of m rows and n columns (counted before slicing).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Matmul {
    /// Rows.
    pub m: usize,
    /// Columns of the product.
    pub n: usize,
    /// Inner size.
    pub k: usize,
    /// How the weight lies.
    pub packing: Packing,
    /// Element type of the weight.
    pub dtype: DType,
    /// Pointer of the weight.
    pub weight: usize,
    /// Pointer of the int8 scales.
    pub scale: Option<usize>,
    /// Row operations that make the left operand (the prologue).
    pub before: RowGraph,
    /// The left operand among those.
    pub left: NodeId,
    /// What is written of the values before the product.
    pub kept: Vec<Stored>,
    /// What follows the product.
    pub epilogue: Epilogue,
}

/// What follows a product; it is given the product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Epilogue {
    /// Elementwise operations on its elements, or on the elements of its parts that stand in one column.
    Elements(Rows),
    /// Row operations on its rows, which a task then has whole.
    Rows(Rows),
}

/// An operand of a [`Product`]: matrices in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// Its pointer.
    pub pointer: usize,
    /// Rows of a matrix as it lies.
    pub rows: usize,
    /// Columns of a matrix as it lies.
    pub columns: usize,
    /// Whether the inner index runs along its rows.
    pub inner_last: bool,
}

/// Products of two activations, `batch` of them, m rows by n columns by k.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Product {
    /// Matrices.
    pub batch: usize,
    /// Rows of a result.
    pub m: usize,
    /// Columns of a result.
    pub n: usize,
    /// Inner size.
    pub k: usize,
    /// Left operand.
    pub left: Matrix,
    /// Right operand.
    pub right: Matrix,
    /// Elementwise operations on the products, seen as `batch * m` rows.
    pub epilogue: Rows,
}

/// Sums over all rows of several columns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Columns {
    /// Columns.
    pub columns: usize,
    /// Elementwise operations that make what is summed.
    pub terms: RowGraph,
    /// What is summed.
    pub sums: Vec<NodeId>,
    /// Elementwise operations on the sums, which are given, as one row, and what is written of them.
    pub epilogue: Rows,
}

/// A chain slice → reshape to heads → bias → rotation, each part optional: `f32[B, S, heads, dim]` out of rows of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadChain {
    /// Pointer of the rows.
    pub source: usize,
    /// Columns of those rows.
    pub stride: usize,
    /// The first column used.
    pub start: usize,
    /// Biases in the order in which they are added: pointer, and offset in elements, of `f32[heads, dim]` elements.
    pub biases: Vec<(usize, usize)>,
    /// Rotation by position.
    pub rope: Option<Rotation>,
    /// Heads.
    pub heads: usize,
    /// Head size.
    pub dim: usize,
}

/// Where the heads of a derivative go: some columns of rows of tokens, perhaps turned back first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadTarget {
    /// Pointer of the rows.
    pub pointer: usize,
    /// Columns of a row.
    pub stride: usize,
    /// The first column.
    pub start: usize,
    /// Rotation back.
    pub rope: Option<Rotation>,
    /// Head size.
    pub dim: usize,
}

/// Where keys or values `[B, T, groups, dim]` lie; counts are of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRows {
    /// Their pointer.
    pub pointer: usize,
    /// The first element.
    pub start: usize,
    /// From a batch row to the next.
    pub batch: usize,
    /// From a group of heads to the next.
    pub group: usize,
    /// From a position to the next.
    pub stride: usize,
}

/// The writing of keys or values of a chunk to one slot of a cache, `[B, heads, context, dim]` in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheWrite {
    /// What is written.
    pub chain: HeadChain,
    /// Pointer of the slot.
    pub cache: usize,
    /// Pointer of the positions `i32[B]`.
    pub pos: usize,
    /// Tokens of a batch row.
    pub steps: usize,
    /// Positions of the cache.
    pub context: usize,
}

/// Keys and values of a chunk of tokens, written to single slots of caches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvWrite {
    /// Tokens (B*S).
    pub tokens: usize,
    /// What is written where.
    pub writes: Vec<CacheWrite>,
}

/// What an attention, or its derivative, is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heads {
    /// The queries.
    pub query: HeadChain,
    /// The keys.
    pub keys: HeadRows,
    /// The values.
    pub values: HeadRows,
    /// Pointer of the positions `i32[B]`.
    pub pos: usize,
    /// Whether later keys are hidden.
    pub causal: bool,
    /// Factor of the scores.
    pub scale: Float,
    /// B.
    pub batch: usize,
    /// S.
    pub steps: usize,
    /// Groups of heads that share keys and values.
    pub groups: usize,
    /// T.
    pub context: usize,
}

impl Heads {
    /// Heads that share a group.
    pub fn heads_per_group(&self) -> usize {
        self.query.heads / self.groups
    }
}

/// An attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// What it is of.
    pub heads: Heads,
    /// Pointer of the result.
    pub result: usize,
    /// Cache writes that come first.
    pub writes: Vec<CacheWrite>,
}

/// The derivative of an attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionGrad {
    /// What the attention is of.
    pub heads: Heads,
    /// The cotangent of the attention's result.
    pub dout: HeadChain,
    /// Where the derivatives of queries, keys and values go, those that are wanted.
    pub targets: [Option<HeadTarget>; 3],
}

/// The packing of an f32 weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Pointer of the weight.
    pub weight: usize,
    /// Whether the weight's transpose is packed.
    pub flipped: bool,
    /// How it is to lie.
    pub packing: Packing,
    /// Pointer of the result.
    pub result: usize,
}

/// Rows added to the rows of a table that ids name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScatterAdd {
    /// Pointer of the table that is added to.
    pub base: usize,
    /// Pointer of the ids.
    pub ids: usize,
    /// Pointer of the rows.
    pub terms: usize,
    /// Pointer of the result, which may be the base's memory.
    pub result: usize,
    /// Rows of the table.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Ids.
    pub count: usize,
}

/// Any single operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generic {
    /// The operation of the kernel's function.
    pub op: OpId,
    /// The pointers whose elements are each read for the result's element in their place only.
    pub in_place: Vec<usize>,
    /// If it is one over the last axis: as row operations.
    pub rows: Option<Rows>,
}
