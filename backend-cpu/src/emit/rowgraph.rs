//! The expression graph behind row operations: what each value looks like from one row, and when it can be computed.
//!
//! A kernel sees its tensors as `R` rows. How a value takes part depends on its use as much as on its shape (a vector
//! of 64 may be a weight or one flag per row of 64), so a [`Node`] is a value *together with* the [`Class`] in which
//! it is wanted; classes flow from results to operands by NumPy's alignment.
//!
//! A row is computed in *sweeps* over its columns, separated by the ends of reductions. The *level* of a node is the
//! number of reductions that must have ended before one chunk of it can be computed.
use super::Error;
use rdc_ir::{DType, Func, Op, OpId, Opcode, Type, ValueDef, ValueId};
use std::collections::HashMap;

/// How a value is seen from one row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// `[R, columns]`
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

/// Index of a node.
pub type NodeId = usize;

/// How to find a row of a packed weight, see the `pack` op.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// Unpacked rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// Parts.
    pub parts: usize,
    /// Panel width.
    pub nr: usize,
    /// Consecutive columns that are interleaved.
    pub kp: usize,
    /// Element type.
    pub dtype: DType,
}

/// How a node is computed; pointer arguments are indices into the kernel's arguments.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An argument.
    Arg(usize),
    /// The result of the matmul that an epilogue follows, in registers.
    Matmul,
    /// A constant.
    Constant(f64),
    /// `pos[row / len] + row % len` of an argument.
    Positions { pos: usize, len: usize },
    /// Row `ids` of a table of `rows` rows.
    Gather { table: usize, rows: usize, ids: NodeId },
    /// Row `ids` of a packed table, copied into a buffer before the sweeps of its level.
    PackedGather { w: usize, scale: Option<usize>, ids: NodeId, packed: Packed },
    /// Another node's elements.
    Alias(NodeId),
    /// An elementwise operation.
    Elementwise { op: OpId, from: DType, operands: Vec<NodeId> },
    /// Columns `start..` of x.
    Slice { x: NodeId, start: usize },
    /// Parts and their first columns; always written to a buffer.
    Concat(Vec<(NodeId, usize)>),
    /// `rms_norm`
    RmsNorm { x: NodeId, weight: NodeId, eps: f32 },
    /// `layer_norm`
    LayerNorm { x: NodeId, weight: NodeId, bias: NodeId, eps: f32 },
    /// `softmax`
    Softmax { x: NodeId },
    /// `reduce_sum` or `reduce_max` over the columns of x.
    Reduce { x: NodeId, max: bool },
}

/// A value in a class.
#[derive(Clone, Debug)]
pub struct Node {
    /// How it is computed.
    pub kind: Kind,
    /// How it is seen.
    pub class: Class,
    /// Element type.
    pub dtype: DType,
    /// Reductions that come before it.
    pub level: usize,
}

impl Node {
    /// Whether the value is computed straight into a buffer, apart from the sweep of its level.
    pub fn is_buffered(&self) -> bool {
        matches!(self.kind, Kind::Concat(_) | Kind::PackedGather { .. })
    }
}

/// The nodes of one kernel.
pub struct Graph<'k> {
    /// The kernel's function.
    pub func: &'k Func,
    /// Nodes; operands come before their users.
    pub nodes: Vec<Node>,
    kernel: &'k str,
    rows: usize,
    matmul: Option<OpId>,
    memo: HashMap<(ValueId, Class), NodeId>,
}

impl<'k> Graph<'k> {
    /// An empty graph over `rows` rows. `matmul` is the operation whose result is at hand in registers, for an epilogue.
    pub fn new(kernel: &'k str, func: &'k Func, rows: usize, matmul: Option<OpId>) -> Graph<'k> {
        Graph { func, nodes: Vec::new(), kernel, rows, matmul, memo: HashMap::new() }
    }

    /// The node of a value that is stored, one row (or element) for each row of the kernel.
    pub fn result(&mut self, value: ValueId) -> Result<NodeId, Error> {
        let ty = self.func.ty(value);
        let class = if ty.rank() > 0 && ty.rows() == self.rows && ty.last() > 1 {
            Class::Rows(ty.last())
        } else if ty.elements() == self.rows {
            Class::Column
        } else {
            return Err(self.error(format!("a result of {ty} over {} rows", self.rows)));
        };
        self.node(value, class)
    }

    fn error(&self, what: impl Into<String>) -> Error {
        Error::unsupported(self.kernel, what)
    }

    fn misfit(&self, op: &Op, class: Class) -> Error {
        let operands: Vec<String> = op.operands.iter().map(|&v| self.func.ty(v).to_string()).collect();
        let (name, operands) = (op.opcode.info().mnemonic, operands.join(", "));
        self.error(format!("{name} of {operands} as {class:?} over {} rows", self.rows))
    }

    /// The class in which an operand of that type is wanted by an elementwise operation with a result in `class`.
    fn aligned(&self, operand: &Type, class: Class) -> Option<Class> {
        let (lead, last) = (operand.rows(), operand.last());
        match class {
            Class::Rows(d) if lead == self.rows && last == d => Some(class),
            Class::Rows(_) if lead == self.rows && last == 1 => Some(Class::Column),
            Class::Rows(d) if lead == 1 && last == d => Some(Class::RowVector(d)),
            Class::Column if operand.elements() == self.rows => Some(Class::Column),
            Class::RowVector(d) if lead == 1 && last == d => Some(class),
            _ if operand.elements() == 1 => Some(Class::Scalar),
            _ => None,
        }
    }

    /// The operand's class if it must have the same elements in the same places, whatever its shape.
    fn same(&self, operand: &Type, class: Class) -> Option<Class> {
        let fits = match class {
            Class::Rows(d) => operand.rows() == self.rows && operand.last() == d,
            Class::Column => operand.elements() == self.rows,
            Class::RowVector(d) => operand.elements() == d && operand.last() == d,
            Class::Scalar => operand.elements() == 1,
        };
        fits.then_some(class)
    }

    /// The pointer argument that a value is.
    fn pointer(&self, value: ValueId) -> Option<usize> {
        match self.func.values[value].def {
            ValueDef::Arg(region, index) if region == self.func.body => Some(index),
            _ => None,
        }
    }

    /// The node of a value in a class.
    pub fn node(&mut self, value: ValueId, class: Class) -> Result<NodeId, Error> {
        if let Some(&id) = self.memo.get(&(value, class)) {
            return Ok(id);
        }
        let kind = match (self.pointer(value), self.func.def_op(value)) {
            (Some(index), _) => Kind::Arg(index),
            (None, Some(op)) if Some(op) == self.matmul => Kind::Matmul,
            (None, Some(op)) => self.kind(op, class)?,
            (None, None) => return Err(self.error("a value from outside the kernel")),
        };
        let level = self.level(&kind);
        self.nodes.push(Node { kind, class, dtype: self.func.ty(value).dtype, level });
        let id = self.nodes.len() - 1;
        self.memo.insert((value, class), id);
        Ok(id)
    }

    fn kind(&mut self, id: OpId, class: Class) -> Result<Kind, Error> {
        let func = self.func;
        let op = &func.ops[id];
        let ty = |i: usize| func.ty(op.operands[i]);
        let misfit = |g: &Self| g.misfit(op, class);
        Ok(match op.opcode {
            Opcode::Constant => Kind::Constant(op.float("value")),
            Opcode::Reshape => {
                let wanted = self.same(ty(0), class).ok_or_else(|| misfit(self))?;
                Kind::Alias(self.node(op.operands[0], wanted)?)
            }
            Opcode::Broadcast => {
                let wanted = self.aligned(ty(0), class).ok_or_else(|| misfit(self))?;
                Kind::Alias(self.node(op.operands[0], wanted)?)
            }
            code if code.is_elementwise() => {
                let mut operands = Vec::new();
                for &v in &op.operands {
                    let wanted = self.aligned(func.ty(v), class).ok_or_else(|| misfit(self))?;
                    operands.push(self.node(v, wanted)?);
                }
                Kind::Elementwise { op: id, from: ty(0).dtype, operands }
            }
            Opcode::Slice if op.size("axis") + 1 == ty(0).rank() => {
                let x = match class {
                    Class::Rows(_) => self.same(ty(0), Class::Rows(ty(0).last())),
                    Class::RowVector(_) => self.same(ty(0), Class::RowVector(ty(0).last())),
                    // A slice of one column is left to the generic family.
                    Class::Column | Class::Scalar => None,
                };
                let x = x.ok_or_else(|| misfit(self))?;
                Kind::Slice { x: self.node(op.operands[0], x)?, start: op.size("start") }
            }
            Opcode::Concat if op.size("axis") + 1 == ty(0).rank() && matches!(class, Class::Rows(_)) => {
                let (mut parts, mut start) = (Vec::new(), 0);
                for &v in &op.operands {
                    let width = func.ty(v).last();
                    let wanted = if width == 1 { Class::Column } else { Class::Rows(width) };
                    let wanted = self.same(func.ty(v), wanted).ok_or_else(|| misfit(self))?;
                    parts.push((self.node(v, wanted)?, start));
                    start += width;
                }
                Kind::Concat(parts)
            }
            Opcode::RmsNorm | Opcode::LayerNorm | Opcode::Softmax => {
                let Class::Rows(d) = class else { return Err(misfit(self)) };
                let x = self.node(op.operands[0], class)?;
                if op.opcode == Opcode::Softmax {
                    return Ok(Kind::Softmax { x });
                }
                let weight = self.node(op.operands[1], Class::RowVector(d))?;
                let eps = op.float("eps") as f32;
                if op.opcode == Opcode::RmsNorm {
                    return Ok(Kind::RmsNorm { x, weight, eps });
                }
                let bias = self.node(op.operands[2], Class::RowVector(d))?;
                Kind::LayerNorm { x, weight, bias, eps }
            }
            Opcode::ReduceSum | Opcode::ReduceMax if op.size("axis") + 1 == ty(0).rank() => {
                let wanted = match class {
                    Class::Column => self.same(ty(0), Class::Rows(ty(0).last())),
                    _ => None,
                };
                let wanted = wanted.filter(|_| ty(0).last() > 1).ok_or_else(|| misfit(self))?;
                Kind::Reduce { x: self.node(op.operands[0], wanted)?, max: op.opcode == Opcode::ReduceMax }
            }
            Opcode::Positions if class == Class::Column => {
                let pos = self.pointer(op.operands[0]).ok_or_else(|| misfit(self))?;
                Kind::Positions { pos, len: op.size("len") }
            }
            Opcode::Gather | Opcode::PackedGather => self.gather(op, class)?,
            _ => return Err(misfit(self)),
        })
    }

    fn gather(&mut self, op: &Op, class: Class) -> Result<Kind, Error> {
        let (table, ids) = (op.operands[0], op.operands[1]);
        let wanted = match class {
            Class::Rows(_) => self.same(self.func.ty(ids), Class::Column),
            Class::RowVector(_) => self.same(self.func.ty(ids), Class::Scalar),
            Class::Column | Class::Scalar => None,
        };
        let wanted = wanted.ok_or_else(|| self.misfit(op, class))?;
        let table_ty = self.func.ty(table);
        let (rows, ids) = (table_ty.shape[0], self.node(ids, wanted)?);
        let table = self.pointer(table).ok_or_else(|| self.misfit(op, class))?;
        if op.opcode == Opcode::Gather {
            return Ok(Kind::Gather { table, rows, ids });
        }
        if !matches!(class, Class::Rows(_)) {
            return Err(self.misfit(op, class));
        }
        let scale = match op.operands.get(2) {
            Some(&s) => Some(self.pointer(s).ok_or_else(|| self.misfit(op, class))?),
            None => None,
        };
        let packed = Packed {
            n: op.size("n"),
            k: op.size("k"),
            parts: op.size("parts"),
            nr: table_ty.shape[2],
            kp: table_ty.shape[3],
            dtype: table_ty.dtype,
        };
        Ok(Kind::PackedGather { w: table, scale, ids, packed })
    }

    fn level(&self, kind: &Kind) -> usize {
        let of = |n: NodeId| self.nodes[n].level;
        match kind {
            Kind::Arg(_) | Kind::Matmul | Kind::Constant(_) | Kind::Positions { .. } => 0,
            Kind::Gather { ids, .. } | Kind::PackedGather { ids, .. } => of(*ids),
            Kind::Alias(x) | Kind::Slice { x, .. } => of(*x),
            Kind::Elementwise { operands, .. } => operands.iter().map(|&o| of(o)).max().unwrap_or(0),
            Kind::Concat(parts) => parts.iter().map(|p| of(p.0)).max().unwrap_or(0) + 1,
            Kind::RmsNorm { x, weight, .. } => of(*weight).max(of(*x) + 1),
            Kind::LayerNorm { x, weight, bias, .. } => of(*weight).max(of(*bias)).max(of(*x) + 2),
            Kind::Softmax { x } => of(*x) + 2,
            Kind::Reduce { x, .. } => of(*x) + 1,
        }
    }

    /// Whether computing a chunk again costs no more than loading it from a buffer.
    pub fn is_cheap(&self, node: NodeId) -> bool {
        let n = &self.nodes[node];
        if !matches!(n.class, Class::Rows(_)) {
            return true;
        }
        match &n.kind {
            Kind::Arg(_) | Kind::Matmul | Kind::Constant(_) | Kind::Gather { .. } => true,
            Kind::Concat(_) | Kind::PackedGather { .. } => true,
            Kind::Alias(x) | Kind::Slice { x, .. } => self.is_cheap(*x),
            _ => false,
        }
    }
}
