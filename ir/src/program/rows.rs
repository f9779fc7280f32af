//! Row operations taken apart: what each value looks like from one row, and when it can be computed.
//!
//! A kernel sees its tensors as so many rows. How a value takes part depends on its use as much as on its shape (a vector of 64 may be a
//! weight or one flag per row of 64), so a [`Node`] is a value *together with* the [`Class`] in which it is wanted.
//!
//! A row is computed in *sweeps* over its columns, separated by the ends of reductions. The *level* of a node is the number of sweeps that
//! must have ended before one chunk of it can be computed.
//!
//! The columns of a row may be several axes of a tensor: `[B, S, H, D]` is B * S rows of H * D columns where that suits.
use crate::float::Float;
use crate::ops::Opcode;
use crate::packing::Packing;
use crate::types::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How a value is seen from one row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Class {
    /// `[rows, columns]`
    Rows(usize),
    /// One element for each row.
    Column,
    /// `[columns]`, the same for every row.
    RowVector(usize),
    /// One element.
    Scalar,
}

impl Class {
    /// Columns swept, if the value has any.
    pub fn width(self) -> Option<usize> {
        match self {
            Class::Rows(d) | Class::RowVector(d) => Some(d),
            Class::Column | Class::Scalar => None,
        }
    }
}

/// Index of a node in its graph.
pub type NodeId = usize;

/// How the heads of a token are rotated by its position; see the ops `rope` and `rope_grad`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Pointer of the table `f32[rows, dim / 2, 2]`.
    pub table: usize,
    /// Rows of the table.
    pub table_rows: usize,
    /// Pointer of the positions `i32[B]`.
    pub pos: usize,
    /// Tokens of a batch row: row `b * steps + s` is token s of batch row b.
    pub steps: usize,
    /// Heads of a token.
    pub heads: usize,
    /// Head size, even.
    pub dim: usize,
    /// Whether pairs are neighbours; else they are half a head apart.
    pub adjacent: bool,
    /// Whether it turns back, as the derivative does.
    pub back: bool,
}

/// How a node is computed. Pointers are indices into [`super::Kernel::pointers`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A tensor in memory.
    Arg(usize),
    /// The value that the kernel's anchor made (a product, a sum over rows), by its place among those.
    Given(usize),
    /// A constant.
    Constant(Float),
    /// `pos[row / len] + row % len` of a pointer.
    Positions {
        /// Pointer of `i32[B]`.
        pos: usize,
        /// Positions of a batch row.
        len: usize,
    },
    /// Row `ids` of a table of `rows` rows.
    Gather {
        /// Pointer of the table.
        table: usize,
        /// Rows of the table.
        rows: usize,
        /// The ids.
        ids: NodeId,
    },
    /// 1 in column `ids`, else 0.
    OneHot {
        /// The ids.
        ids: NodeId,
    },
    /// x with each of its heads rotated by the row's position.
    Rope {
        /// What is rotated.
        x: NodeId,
        /// How.
        rope: Rotation,
    },
    /// Row `ids` of a packed table.
    PackedGather {
        /// Pointer of the table.
        table: usize,
        /// Pointer of the int8 scales.
        scale: Option<usize>,
        /// The ids.
        ids: NodeId,
        /// Where rows are in the table.
        packing: Packing,
        /// Element type of the table.
        dtype: DType,
    },
    /// Another node's elements.
    Alias(NodeId),
    /// An elementwise operation, to the node's element type.
    Elementwise {
        /// The operation.
        opcode: Opcode,
        /// Element type of the first operand.
        from: DType,
        /// Its operands.
        operands: Vec<NodeId>,
    },
    /// Columns `start..` of x.
    Slice {
        /// Of what.
        x: NodeId,
        /// First column.
        start: usize,
    },
    /// Parts and their first columns.
    Concat(Vec<(NodeId, usize)>),
    /// `rms_norm`
    RmsNorm {
        /// Operand.
        x: NodeId,
        /// Weight.
        weight: NodeId,
        /// Added to the mean of squares.
        eps: Float,
    },
    /// `layer_norm`
    LayerNorm {
        /// Operand.
        x: NodeId,
        /// Weight.
        weight: NodeId,
        /// Bias.
        bias: NodeId,
        /// Added to the variance.
        eps: Float,
    },
    /// `softmax`
    Softmax {
        /// Operand.
        x: NodeId,
    },
    /// `reduce_sum` or `reduce_max` over the columns of x.
    Reduce {
        /// Operand.
        x: NodeId,
        /// Whether it is the maximum.
        max: bool,
    },
}

/// A value in a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// How it is computed.
    pub kind: NodeKind,
    /// How it is seen.
    pub class: Class,
    /// Element type.
    pub dtype: DType,
    /// Sweeps that come before it.
    pub level: usize,
}

impl NodeKind {
    /// The nodes that it is computed from.
    pub fn operands(&self) -> Vec<NodeId> {
        match self {
            NodeKind::Arg(_) | NodeKind::Given(_) | NodeKind::Constant(_) | NodeKind::Positions { .. } => vec![],
            NodeKind::Gather { ids, .. } | NodeKind::OneHot { ids } | NodeKind::PackedGather { ids, .. } => vec![*ids],
            NodeKind::Rope { x, .. } | NodeKind::Alias(x) | NodeKind::Slice { x, .. } => vec![*x],
            NodeKind::Softmax { x } | NodeKind::Reduce { x, .. } => vec![*x],
            NodeKind::Elementwise { operands, .. } => operands.clone(),
            NodeKind::Concat(parts) => parts.iter().map(|part| part.0).collect(),
            NodeKind::RmsNorm { x, weight, .. } => vec![*x, *weight],
            NodeKind::LayerNorm { x, weight, bias, .. } => vec![*x, *weight, *bias],
        }
    }
    /// Sweeps over the row of x that must have ended before one of its own chunks can be computed.
    pub fn sweeps(&self) -> usize {
        match self {
            NodeKind::RmsNorm { .. } | NodeKind::Reduce { .. } => 1,
            NodeKind::LayerNorm { .. } | NodeKind::Softmax { .. } => 2,
            _ => 0,
        }
    }
}

/// The values of row operations over so many rows; operands come before their users.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct RowGraph {
    /// Rows.
    pub rows: usize,
    /// Values.
    pub nodes: Vec<Node>,
}

/// A node that a kernel writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The node.
    pub node: NodeId,
    /// The pointer that it is written to.
    pub pointer: usize,
    /// Its first column there.
    pub first: usize,
    /// If sums of blocks of so many rows are written: the node is what is summed.
    pub block: Option<usize>,
}

impl RowGraph {
    /// The nodes that some are computed from, those included.
    pub fn reached(&self, from: impl IntoIterator<Item = NodeId>) -> BTreeSet<NodeId> {
        let (mut reached, mut work) = (BTreeSet::new(), Vec::from_iter(from));
        while let Some(node) = work.pop() {
            if reached.insert(node) {
                work.extend(self.nodes[node].kind.operands());
            }
        }
        reached
    }
}
