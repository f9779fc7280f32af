//! Takes row operations apart: values of a kernel's function become nodes of a [`RowGraph`], each in the class in which it is wanted.
//! Classes flow from results to operands by NumPy's alignment.
use super::{Unsupported, pointer};
use rdc_ir::packing::Packing;
use rdc_ir::program::rows::{Class, Node, NodeId, NodeKind, Rotation, RowGraph, Stored};
use rdc_ir::{DType, Float, Func, Op, OpId, Opcode, Type, ValueId};
use std::collections::HashMap;

/// Trailing axes that have `columns` elements together.
fn trailing(shape: &[usize], columns: usize) -> Option<usize> {
    (0..=shape.len()).find(|&axes| shape[shape.len() - axes..].iter().product::<usize>() == columns)
}

/// The shape of a type, with leading axes of 1 up to a rank: what a `sum_to` from that rank leaves of each axis.
pub(super) fn padded(ty: &Type, rank: usize) -> Vec<usize> {
    [&vec![1; rank.saturating_sub(ty.rank())][..], &ty.shape[..]].concat()
}

/// A graph being built.
pub(super) struct Builder<'k> {
    func: &'k Func,
    given: Vec<ValueId>,
    memo: HashMap<(ValueId, Class), NodeId>,
    graph: RowGraph,
}

impl<'k> Builder<'k> {
    /// An empty graph over `rows` rows. Values `given` are what the kernel's anchor makes.
    pub fn new(func: &'k Func, rows: usize, given: &[ValueId]) -> Builder<'k> {
        Builder { func, given: given.to_vec(), memo: HashMap::new(), graph: RowGraph { rows, nodes: Vec::new() } }
    }

    /// The graph.
    pub fn finish(self) -> RowGraph {
        self.graph
    }

    /// A node.
    pub fn at(&self, node: NodeId) -> &Node {
        &self.graph.nodes[node]
    }

    /// A value that is written to a pointer, or the sums of its blocks of rows.
    pub fn stored(&mut self, value: ValueId, pointer: usize) -> Result<Stored, Unsupported> {
        let Some(op) = self.func.defined_by(value, Opcode::SumBlocks) else {
            return Ok(Stored { node: self.result(value)?, pointer, first: 0, block: None });
        };
        let ty = self.func.ty(op.operands[0]);
        if ty.rows() != self.graph.rows || ty.last() < 2 {
            return Err(format!("sums of blocks of {ty} over {} rows", self.graph.rows));
        }
        Ok(Stored { node: self.result(op.operands[0])?, pointer, first: 0, block: Some(op.size("rows")) })
    }

    /// The node of a value that has one row (or element) for each row of the kernel.
    pub fn result(&mut self, value: ValueId) -> Result<NodeId, Unsupported> {
        let (ty, rows) = (self.func.ty(value), self.graph.rows);
        if rows == 0 || !ty.elements().is_multiple_of(rows) {
            return Err(format!("a result of {ty} over {rows} rows"));
        }
        let class = match ty.elements() / rows {
            1 => Class::Column,
            columns => Class::Rows(columns),
        };
        self.node(value, class)
    }

    fn misfit<T>(&self, op: &Op, class: Class) -> Result<T, Unsupported> {
        let operands: Vec<String> = op.operands.iter().map(|&v| self.func.ty(v).to_string()).collect();
        let (name, operands) = (op.opcode.info().mnemonic, operands.join(", "));
        Err(format!("{name} of {operands} as {class:?} over {} rows", self.graph.rows))
    }

    /// The class in which an operand is wanted by an elementwise operation with a result in `class`.
    fn aligned(&self, operand: &Type, result: &Type, class: Class) -> Option<Class> {
        let scalar = (operand.elements() == 1).then_some(Class::Scalar);
        let (rows, d) = match class {
            Class::Rows(d) => (self.graph.rows, d),
            Class::RowVector(d) => (1, d),
            Class::Column if operand.elements() == self.graph.rows => return Some(class),
            Class::Column | Class::Scalar => return scalar,
        };
        if result.elements() != rows * d {
            return None;
        }
        // Axes are aligned at the end.
        let columns = operand.rank().saturating_sub(trailing(&result.shape, d)?);
        let lead: usize = operand.shape[..columns].iter().product();
        let trail: usize = operand.shape[columns..].iter().product();
        match class {
            _ if lead == rows && trail == d => Some(class),
            Class::Rows(_) if lead == rows && trail == 1 => Some(Class::Column),
            Class::Rows(_) if lead == 1 && trail == d => Some(Class::RowVector(d)),
            _ => scalar,
        }
    }

    /// The class if the operand has the same elements in the same places, whatever its shape.
    fn same(&self, operand: &Type, class: Class) -> Option<Class> {
        let elements = match class {
            Class::Rows(d) => self.graph.rows * d,
            Class::Column => self.graph.rows,
            Class::RowVector(d) => d,
            Class::Scalar => 1,
        };
        (operand.elements() == elements).then_some(class)
    }

    /// Whether a `sum_to` keeps the rows and sums over the columns.
    fn is_row_sum(&self, from: &Type, to: &Type) -> bool {
        let to = padded(to, from.rank());
        let kept = |axes: &usize| from.shape[..*axes] == to[..*axes] && to[*axes..].iter().all(|&n| n == 1);
        let product = |axes: &usize| from.shape[..*axes].iter().product::<usize>() == self.graph.rows;
        (0..=from.rank()).any(|axes| product(&axes) && kept(&axes))
    }

    /// Whether the columns of a class are the last axis of a type.
    fn is_last_axis(&self, ty: &Type, class: Class) -> bool {
        match class {
            Class::Rows(d) => ty.last() == d && ty.rows() == self.graph.rows,
            Class::RowVector(d) => ty.last() == d && ty.rows() == 1,
            Class::Column | Class::Scalar => false,
        }
    }

    /// The node of a value in a class.
    pub fn node(&mut self, value: ValueId, class: Class) -> Result<NodeId, Unsupported> {
        if let Some(&id) = self.memo.get(&(value, class)) {
            return Ok(id);
        }
        let kind = match (pointer(self.func, value), self.func.def_op(value)) {
            (Some(index), _) => NodeKind::Arg(index),
            (None, Some(op)) => match self.given.iter().position(|&v| v == value) {
                Some(index) => NodeKind::Given(index),
                None => self.kind(op, class)?,
            },
            (None, None) => return Err("a value from outside the kernel".into()),
        };
        let id = self.push(kind, class, self.func.ty(value).dtype);
        self.memo.insert((value, class), id);
        Ok(id)
    }

    fn push(&mut self, kind: NodeKind, class: Class, dtype: DType) -> NodeId {
        let level = self.level(&kind);
        self.graph.nodes.push(Node { kind, class, dtype, level });
        self.graph.nodes.len() - 1
    }

    /// Sweeps that come before a node: a reduction ends a sweep, and what is looked up, joined or rotated is complete before the next.
    fn level(&self, kind: &NodeKind) -> usize {
        let of = |n: NodeId| self.graph.nodes[n].level;
        let own = match kind {
            NodeKind::RmsNorm { x, .. } | NodeKind::LayerNorm { x, .. } => of(*x) + kind.sweeps(),
            NodeKind::Rope { x, .. } => of(*x) + 1,
            NodeKind::Concat(parts) => parts.iter().map(|part| of(part.0)).max().unwrap_or(0) + 1,
            NodeKind::Softmax { x } | NodeKind::Reduce { x, .. } => of(*x) + kind.sweeps(),
            _ => 0,
        };
        kind.operands().into_iter().map(of).fold(own, usize::max)
    }

    fn kind(&mut self, id: OpId, class: Class) -> Result<NodeKind, Unsupported> {
        let func = self.func;
        let op = &func.ops[id];
        let ty = |i: usize| func.ty(op.operands[i]);
        let result = func.ty(op.results[0]);
        let last_axis = self.is_last_axis(result, class);
        let of_last_axis = || op.size("axis") + 1 == ty(0).rank();
        Ok(match op.opcode {
            Opcode::Constant => NodeKind::Constant(Float(op.float("value"))),
            Opcode::Reshape => match self.same(ty(0), class) {
                Some(wanted) => NodeKind::Alias(self.node(op.operands[0], wanted)?),
                None => return self.misfit(op, class),
            },
            Opcode::Broadcast => match self.aligned(ty(0), result, class) {
                Some(wanted) => NodeKind::Alias(self.node(op.operands[0], wanted)?),
                None => return self.misfit(op, class),
            },
            opcode if opcode.is_elementwise() => {
                let mut operands = Vec::new();
                for &v in &op.operands {
                    let Some(wanted) = self.aligned(func.ty(v), result, class) else { return self.misfit(op, class) };
                    operands.push(self.node(v, wanted)?);
                }
                NodeKind::Elementwise { opcode, from: ty(0).dtype, operands }
            }
            // A slice of one column is left to the generic family.
            Opcode::Slice if of_last_axis() && last_axis => {
                let columns = ty(0).last();
                let x = if matches!(class, Class::Rows(_)) { Class::Rows(columns) } else { Class::RowVector(columns) };
                NodeKind::Slice { x: self.node(op.operands[0], x)?, start: op.size("start") }
            }
            Opcode::Concat if of_last_axis() && last_axis && matches!(class, Class::Rows(_)) => {
                let (mut parts, mut start) = (Vec::new(), 0);
                for &v in &op.operands {
                    parts.push((self.columns_of(v)?, start));
                    start += func.ty(v).last();
                }
                NodeKind::Concat(parts)
            }
            Opcode::Pad if of_last_axis() && last_axis && matches!(class, Class::Rows(_)) => {
                let (start, end) = (op.size("start"), op.size("start") + ty(0).last());
                let mut parts = vec![(self.columns_of(op.operands[0])?, start)];
                for (from, to) in [(0, start), (end, result.last())] {
                    if from < to {
                        parts.push((self.zeros(to - from), from));
                    }
                }
                NodeKind::Concat(parts)
            }
            Opcode::OneHot => {
                let wanted = match class {
                    Class::Rows(_) if last_axis => self.same(ty(0), Class::Column),
                    Class::RowVector(_) if last_axis => self.same(ty(0), Class::Scalar),
                    Class::Column if op.size("n") == 1 => self.same(ty(0), class),
                    _ => None,
                };
                let Some(wanted) = wanted else { return self.misfit(op, class) };
                NodeKind::OneHot { ids: self.node(op.operands[0], wanted)? }
            }
            Opcode::Rope | Opcode::RopeGrad => self.rope(op, class)?,
            // Of rows of one element: the element is the largest of its row.
            Opcode::RmsNorm | Opcode::LayerNorm | Opcode::Softmax
                if class == Class::Column && self.is_last_axis(result, Class::Rows(1)) =>
            {
                NodeKind::Reduce { x: self.node(op.results[0], Class::Rows(1))?, max: true }
            }
            Opcode::RmsNorm | Opcode::LayerNorm | Opcode::Softmax => {
                let Class::Rows(d) = class else { return self.misfit(op, class) };
                if !last_axis {
                    return self.misfit(op, class);
                }
                let x = self.node(op.operands[0], class)?;
                if op.opcode == Opcode::Softmax {
                    return Ok(NodeKind::Softmax { x });
                }
                let weight = self.node(op.operands[1], Class::RowVector(d))?;
                let eps = Float(op.float("eps"));
                if op.opcode == Opcode::RmsNorm {
                    return Ok(NodeKind::RmsNorm { x, weight, eps });
                }
                let bias = self.node(op.operands[2], Class::RowVector(d))?;
                NodeKind::LayerNorm { x, weight, bias, eps }
            }
            Opcode::ReduceSum | Opcode::ReduceMax if of_last_axis() => {
                let wanted = match class {
                    Class::Column => self.same(ty(0), Class::Rows(ty(0).last())),
                    _ => None,
                };
                let Some(wanted) = wanted else { return self.misfit(op, class) };
                NodeKind::Reduce { x: self.node(op.operands[0], wanted)?, max: op.opcode == Opcode::ReduceMax }
            }
            Opcode::SumTo if class == Class::Column && self.is_row_sum(ty(0), result) => {
                match ty(0).elements() / self.graph.rows.max(1) {
                    1 => NodeKind::Alias(self.node(op.operands[0], class)?),
                    width => NodeKind::Reduce { x: self.node(op.operands[0], Class::Rows(width))?, max: false },
                }
            }
            Opcode::Positions if class == Class::Column => match pointer(func, op.operands[0]) {
                Some(pos) => NodeKind::Positions { pos, len: op.size("len") },
                None => return self.misfit(op, class),
            },
            Opcode::Gather | Opcode::PackedGather => self.gather(op, class)?,
            _ => return self.misfit(op, class),
        })
    }

    /// The node of a part of the columns of a value with one more or less of them.
    fn columns_of(&mut self, part: ValueId) -> Result<NodeId, Unsupported> {
        let width = self.func.ty(part).last();
        self.node(part, if width == 1 { Class::Column } else { Class::Rows(width) })
    }

    /// A node of zeros.
    fn zeros(&mut self, columns: usize) -> NodeId {
        let class = if columns == 1 { Class::Column } else { Class::Rows(columns) };
        self.push(NodeKind::Constant(Float(0.0)), class, DType::F32)
    }

    fn rope(&mut self, op: &Op, class: Class) -> Result<NodeKind, Unsupported> {
        match rotation(self.func, op) {
            // One token a row: all of its heads.
            Some(rope) if class == Class::Rows(rope.heads * rope.dim) => {
                Ok(NodeKind::Rope { x: self.node(op.operands[0], class)?, rope })
            }
            _ => self.misfit(op, class),
        }
    }

    fn gather(&mut self, op: &Op, class: Class) -> Result<NodeKind, Unsupported> {
        let (table, ids) = (op.operands[0], op.operands[1]);
        let wanted = match class {
            _ if !self.is_last_axis(self.func.ty(op.results[0]), class) => None,
            Class::Rows(_) => self.same(self.func.ty(ids), Class::Column),
            Class::RowVector(_) if op.opcode == Opcode::Gather => self.same(self.func.ty(ids), Class::Scalar),
            _ => None,
        };
        let (Some(wanted), Some(at)) = (wanted, pointer(self.func, table)) else { return self.misfit(op, class) };
        let (ty, ids) = (self.func.ty(table), self.node(ids, wanted)?);
        if op.opcode == Opcode::Gather {
            return Ok(NodeKind::Gather { table: at, rows: ty.shape[0], ids });
        }
        let scale = op.operands.get(2).map(|&scale| pointer(self.func, scale));
        if scale == Some(None) {
            return self.misfit(op, class);
        }
        let packing = packing(ty, op.size("n"), op.size("k"), op.size("parts"));
        Ok(NodeKind::PackedGather { table: at, scale: scale.flatten(), ids, packing, dtype: ty.dtype })
    }
}

/// How a packed weight of that type lies.
pub(super) fn packing(ty: &Type, n: usize, k: usize, parts: usize) -> Packing {
    Packing { n, k, nr: ty.shape[2], parts: parts.max(1), kp: ty.shape[3] }
}

/// The rotation that a `rope` or `rope_grad` is, if its table and positions are in memory.
pub(super) fn rotation(func: &Func, op: &Op) -> Option<Rotation> {
    let &[_, steps, heads, dim] = &func.ty(op.operands[0]).shape[..] else { return None };
    let (table, pos) = (pointer(func, op.operands[1])?, pointer(func, op.operands[2])?);
    let adjacent = op.text("layout") == "adjacent";
    let (table_rows, back) = (func.ty(op.operands[1]).shape[0], op.opcode == Opcode::RopeGrad);
    Some(Rotation { table, table_rows, pos, steps, heads, dim, adjacent, back })
}
