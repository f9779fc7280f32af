//! The expression graph behind row operations: what each value looks like from one row, and when it can be computed.
//!
//! A kernel sees its tensors as `R` rows. How a value takes part depends on its use as much as on its shape (a vector
//! of 64 may be a weight or one flag per row of 64), so a [`Node`] is a value *together with* the [`Class`] in which
//! it is wanted; classes flow from results to operands by NumPy's alignment.
//!
//! A row is computed in *sweeps* over its columns, separated by the ends of reductions. The *level* of a node is the
//! number of reductions that must have ended before one chunk of it can be computed.
//!
//! The columns of a row may be several axes of a tensor: `[B, S, H, D]` is B * S rows of H * D columns where that suits.
use super::Error;
use super::rope::Turn;
use rdc_ir::program::Kernel;
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

/// How rows of heads are rotated; row `b * steps + s` is token s of batch row b.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// Tokens of a batch row.
    pub steps: usize,
    /// Heads of a token.
    pub heads: usize,
    /// Rows of the table.
    pub table_rows: usize,
    /// What happens to a head.
    pub turn: Turn,
}

/// How a node is computed; pointer arguments are indices into the kernel's arguments.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An argument.
    Arg(usize),
    /// A value given, by its place among those: in registers the matmul that an epilogue follows, a sum over rows; in memory the
    /// row of a matmul that a row epilogue follows.
    Given(usize),
    /// A constant.
    Constant(f64),
    /// `pos[row / len] + row % len` of an argument.
    Positions { pos: usize, len: usize },
    /// Row `ids` of a table of `rows` rows.
    Gather { table: usize, rows: usize, ids: NodeId },
    /// 1 in column `ids`, else 0.
    OneHot { ids: NodeId },
    /// x with each of its heads rotated by the row's position, written to a buffer before the sweeps of its level.
    Rope { x: NodeId, table: usize, pos: usize, rope: Rotation },
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
        matches!(self.kind, Kind::Concat(_) | Kind::PackedGather { .. } | Kind::Rope { .. })
    }
}

/// Trailing axes that have `columns` elements together.
fn trailing(shape: &[usize], columns: usize) -> Option<usize> {
    (0..=shape.len()).find(|&axes| shape[shape.len() - axes..].iter().product::<usize>() == columns)
}

/// The nodes of one kernel.
pub struct Graph<'k> {
    /// The kernel's function.
    pub func: &'k Func,
    /// Nodes; operands come before their users.
    pub nodes: Vec<Node>,
    kernel: &'k Kernel,
    rows: usize,
    given: Vec<ValueId>,
    memo: HashMap<(ValueId, Class), NodeId>,
}

impl<'k> Graph<'k> {
    /// An empty graph over `rows` rows. Values `given` are at hand in registers, for an epilogue.
    pub fn new(kernel: &'k Kernel, rows: usize, given: &[ValueId]) -> Graph<'k> {
        Graph { func: &kernel.func, nodes: Vec::new(), kernel, rows, given: given.to_vec(), memo: HashMap::new() }
    }

    /// The node of a value that is stored, one row (or element) for each row of the kernel.
    pub fn result(&mut self, value: ValueId) -> Result<NodeId, Error> {
        let ty = self.func.ty(value);
        if self.rows == 0 || !ty.elements().is_multiple_of(self.rows) {
            return Err(self.error(format!("a result of {ty} over {} rows", self.rows)));
        }
        let class = match ty.elements() / self.rows {
            1 => Class::Column,
            columns => Class::Rows(columns),
        };
        self.node(value, class)
    }

    /// Bytes from one row of a node to the next in the memory of a pointer.
    pub fn pitch(&self, pointer: usize, node: &Node) -> usize {
        self.kernel.pitch(pointer, node.class.width().unwrap_or(1) * node.dtype.bytes())
    }

    /// Rows of the kernel.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// That the kernel has something which is not supported.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::unsupported(&self.kernel.name, what)
    }

    fn misfit(&self, op: &Op, class: Class) -> Error {
        let operands: Vec<String> = op.operands.iter().map(|&v| self.func.ty(v).to_string()).collect();
        let (name, operands) = (op.opcode.info().mnemonic, operands.join(", "));
        self.error(format!("{name} of {operands} as {class:?} over {} rows", self.rows))
    }

    /// The class in which an operand is wanted by an elementwise operation with a result in `class`.
    fn aligned(&self, operand: &Type, result: &Type, class: Class) -> Option<Class> {
        let scalar = (operand.elements() == 1).then_some(Class::Scalar);
        let (rows, d) = match class {
            Class::Rows(d) => (self.rows, d),
            Class::RowVector(d) => (1, d),
            Class::Column if operand.elements() == self.rows => return Some(class),
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
            Class::Rows(d) => self.rows * d,
            Class::Column => self.rows,
            Class::RowVector(d) => d,
            Class::Scalar => 1,
        };
        (operand.elements() == elements).then_some(class)
    }

    /// Whether a `sum_to` keeps the rows and sums over the columns.
    fn is_row_sum(&self, from: &Type, to: &Type) -> bool {
        let ones = vec![1; from.rank().saturating_sub(to.rank())];
        let to = [&ones[..], &to.shape[..]].concat();
        let kept = |axes: &usize| from.shape[..*axes] == to[..*axes] && to[*axes..].iter().all(|&n| n == 1);
        let product = |axes: &usize| from.shape[..*axes].iter().product::<usize>() == self.rows;
        (0..=from.rank()).any(|axes| product(&axes) && kept(&axes))
    }

    /// Whether the columns of a class are the last axis of a type.
    fn is_last_axis(&self, ty: &Type, class: Class) -> bool {
        match class {
            Class::Rows(d) => ty.last() == d && ty.rows() == self.rows,
            Class::RowVector(d) => ty.last() == d && ty.rows() == 1,
            Class::Column | Class::Scalar => false,
        }
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
            (None, Some(op)) => match self.given.iter().position(|&v| v == value) {
                Some(index) => Kind::Given(index),
                None => self.kind(op, class)?,
            },
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
        let result = func.ty(op.results[0]);
        let last_axis = self.is_last_axis(result, class);
        let misfit = |g: &Self| g.misfit(op, class);
        Ok(match op.opcode {
            Opcode::Constant => Kind::Constant(op.float("value")),
            Opcode::Reshape => {
                let wanted = self.same(ty(0), class).ok_or_else(|| misfit(self))?;
                Kind::Alias(self.node(op.operands[0], wanted)?)
            }
            Opcode::Broadcast => {
                let wanted = self.aligned(ty(0), result, class).ok_or_else(|| misfit(self))?;
                Kind::Alias(self.node(op.operands[0], wanted)?)
            }
            code if code.is_elementwise() => {
                let mut operands = Vec::new();
                for &v in &op.operands {
                    let wanted = self.aligned(func.ty(v), result, class).ok_or_else(|| misfit(self))?;
                    operands.push(self.node(v, wanted)?);
                }
                Kind::Elementwise { op: id, from: ty(0).dtype, operands }
            }
            // A slice of one column is left to the generic family.
            Opcode::Slice if op.size("axis") + 1 == ty(0).rank() && last_axis => {
                let columns = ty(0).last();
                let x = if matches!(class, Class::Rows(_)) { Class::Rows(columns) } else { Class::RowVector(columns) };
                Kind::Slice { x: self.node(op.operands[0], x)?, start: op.size("start") }
            }
            Opcode::Concat if op.size("axis") + 1 == ty(0).rank() && last_axis && matches!(class, Class::Rows(_)) => {
                let (mut parts, mut start) = (Vec::new(), 0);
                for &v in &op.operands {
                    parts.push((self.columns_of(v)?, start));
                    start += func.ty(v).last();
                }
                Kind::Concat(parts)
            }
            Opcode::Pad if op.size("axis") + 1 == ty(0).rank() && last_axis && matches!(class, Class::Rows(_)) => {
                let (start, end) = (op.size("start"), op.size("start") + ty(0).last());
                let mut parts = vec![(self.columns_of(op.operands[0])?, start)];
                for (from, to) in [(0, start), (end, result.last())] {
                    if from < to {
                        parts.push((self.zeros(to - from), from));
                    }
                }
                Kind::Concat(parts)
            }
            Opcode::OneHot => {
                let wanted = match class {
                    Class::Rows(_) if last_axis => self.same(ty(0), Class::Column),
                    Class::RowVector(_) if last_axis => self.same(ty(0), Class::Scalar),
                    Class::Column if op.size("n") == 1 => self.same(ty(0), class),
                    _ => None,
                };
                let wanted = wanted.ok_or_else(|| misfit(self))?;
                Kind::OneHot { ids: self.node(op.operands[0], wanted)? }
            }
            Opcode::Rope | Opcode::RopeGrad => self.rope(op, class)?,
            Opcode::RmsNorm | Opcode::LayerNorm | Opcode::Softmax => {
                let Class::Rows(d) = class else { return Err(misfit(self)) };
                if !last_axis {
                    return Err(misfit(self));
                }
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
            Opcode::SumTo if class == Class::Column => {
                let width = ty(0).elements() / self.rows.max(1);
                match self.is_row_sum(ty(0), result) {
                    true if width == 1 => Kind::Alias(self.node(op.operands[0], class)?),
                    true => Kind::Reduce { x: self.node(op.operands[0], Class::Rows(width))?, max: false },
                    false => return Err(misfit(self)),
                }
            }
            Opcode::Positions if class == Class::Column => {
                let pos = self.pointer(op.operands[0]).ok_or_else(|| misfit(self))?;
                Kind::Positions { pos, len: op.size("len") }
            }
            Opcode::Gather | Opcode::PackedGather => self.gather(op, class)?,
            _ => return Err(misfit(self)),
        })
    }

    /// The node of a part of the columns of a value with one more or less of them.
    fn columns_of(&mut self, part: ValueId) -> Result<NodeId, Error> {
        let width = self.func.ty(part).last();
        self.node(part, if width == 1 { Class::Column } else { Class::Rows(width) })
    }

    /// A node of zeros.
    fn zeros(&mut self, columns: usize) -> NodeId {
        let class = if columns == 1 { Class::Column } else { Class::Rows(columns) };
        self.nodes.push(Node { kind: Kind::Constant(0.0), class, dtype: DType::F32, level: 0 });
        self.nodes.len() - 1
    }

    fn rope(&mut self, op: &Op, class: Class) -> Result<Kind, Error> {
        let (&[_, steps, heads, dim], &[x, table, pos]) = (&self.func.ty(op.operands[0]).shape[..], &op.operands[..])
        else {
            return Err(self.misfit(op, class));
        };
        let (Some(table_at), Some(pos)) = (self.pointer(table), self.pointer(pos)) else {
            return Err(self.misfit(op, class));
        };
        // One token a row: all of its heads.
        if class != Class::Rows(heads * dim) {
            return Err(self.misfit(op, class));
        }
        let turn = Turn { dim, adjacent: op.text("layout") == "adjacent", back: op.opcode == Opcode::RopeGrad };
        let rope = Rotation { steps, heads, table_rows: self.func.ty(table).shape[0], turn };
        Ok(Kind::Rope { x: self.node(x, class)?, table: table_at, pos, rope })
    }

    fn gather(&mut self, op: &Op, class: Class) -> Result<Kind, Error> {
        let (table, ids) = (op.operands[0], op.operands[1]);
        if !self.is_last_axis(self.func.ty(op.results[0]), class) {
            return Err(self.misfit(op, class));
        }
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
            Kind::Arg(_) | Kind::Given(_) | Kind::Constant(_) | Kind::Positions { .. } => 0,
            Kind::Gather { ids, .. } | Kind::PackedGather { ids, .. } | Kind::OneHot { ids } => of(*ids),
            Kind::Rope { x, .. } => of(*x) + 1,
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
            Kind::Arg(_) | Kind::Given(_) | Kind::Constant(_) | Kind::Gather { .. } | Kind::OneHot { .. } => true,
            _ if n.is_buffered() => true,
            Kind::Alias(x) | Kind::Slice { x, .. } => self.is_cheap(*x),
            _ => false,
        }
    }

    /// Whether the rows of a node lie in memory from its level on: those of arguments, and what is computed into a buffer.
    pub fn is_resident(&self, node: NodeId) -> bool {
        let n = &self.nodes[node];
        match n.kind {
            _ if n.class.width().is_none() => false,
            Kind::Arg(_) | Kind::Given(_) | Kind::Gather { .. } => true,
            Kind::Alias(x) | Kind::Slice { x, .. } => self.is_resident(x),
            _ => n.is_buffered(),
        }
    }
}
