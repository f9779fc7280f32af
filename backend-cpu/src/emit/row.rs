//! One row while its code is being emitted: what is known of it, and the evaluation of expressions at a chunk of
//! columns.
use super::rowgraph::Graph;
use super::{Cmp, Elem, Emitter, Ty, Val, elementwise, rope};
use rdc_ir::DType;
use rdc_ir::packing::Packing;
use rdc_ir::program::rows::{Class, NodeId, NodeKind as Kind, Rotation};
use std::collections::HashMap;

/// Where the rows of a value are kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// At this byte offset of scratch.
    Scratch(usize),
    /// In the memory of the target of that index.
    Target(usize),
    /// Added to the memory of the target of that index.
    Sums(usize),
}

/// A quantity reduced over a row in one sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Stat {
    /// Of the operand of that `rms_norm`.
    SumOfSquares(NodeId),
    /// Of the operand of that `layer_norm` or `reduce_sum`.
    Sum(NodeId),
    /// Of the operand of that `layer_norm`, less its mean.
    CentredSquares(NodeId),
    /// Of the operand of that `reduce_max`.
    Max(NodeId),
    /// Of the operand of that `softmax`.
    SoftmaxMax(NodeId),
    /// Of `e^(x - max)` of that `softmax`; the exponentials are stored on the way.
    ExpSum(NodeId),
}

/// What is known while a row is being computed.
#[derive(Clone)]
pub(super) struct Row<'a> {
    pub(super) index: Val,
    pub(super) targets: &'a [Val],
    pub(super) scratch: Val,
    pub(super) level: usize,
    /// Start of the row in an argument (or of the gathered row), by node.
    pub(super) bases: HashMap<NodeId, Val>,
    /// One element for the row, by node.
    pub(super) columns: HashMap<NodeId, Val>,
    pub(super) stats: HashMap<Stat, Val>,
    /// Values at the current chunk, by node and constant column offset.
    pub(super) chunk: HashMap<(NodeId, usize), Val>,
    /// The matmul's values at the current columns, one per part.
    pub(super) accumulators: &'a [Val],
    /// Columns of a part.
    pub(super) part: usize,
    /// Start of the row in memory of the value that a row epilogue is given.
    pub(super) given: Option<Val>,
}

impl<'a> Row<'a> {
    pub(super) fn new(index: Val, targets: &'a [Val], scratch: Val) -> Row<'a> {
        Row {
            index,
            targets,
            scratch,
            level: 0,
            bases: HashMap::new(),
            columns: HashMap::new(),
            stats: HashMap::new(),
            chunk: HashMap::new(),
            accumulators: &[],
            part: usize::MAX,
            given: None,
        }
    }
    pub(super) fn place(&self, e: &mut Emitter, place: Place) -> Val {
        match place {
            Place::Scratch(offset) => e.offset_const(self.scratch, offset),
            Place::Target(index) | Place::Sums(index) => self.targets[index],
        }
    }
}

/// A chunk of columns: `col + offset ..` of `lanes`.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    pub(super) col: Val,
    pub(super) offset: usize,
    pub(super) lanes: usize,
}

pub(super) fn address(e: &mut Emitter, base: Val, dtype: DType, chunk: Chunk) -> Val {
    let pointer = e.at(base, chunk.col, dtype.bytes());
    e.offset_const(pointer, chunk.offset * dtype.bytes())
}

pub(super) fn load(e: &mut Emitter, base: Val, dtype: DType, chunk: Chunk) -> Val {
    let pointer = address(e, base, dtype, chunk);
    e.load(pointer, dtype, chunk.lanes)
}

pub(super) fn store(e: &mut Emitter, base: Val, dtype: DType, chunk: Chunk, value: Val) {
    let pointer = address(e, base, dtype, chunk);
    e.store(pointer, dtype, value);
}

/// Copies row `id` of a packed table of an element type to `to`.
pub(super) fn packed_row(
    e: &mut Emitter,
    (table, dtype, packing): (Val, DType, &Packing),
    scale: Option<Val>,
    id: Val,
    to: Val,
) {
    let Packing { n, k, nr, parts, kp } = *packing;
    let id = e.index(id, n);
    let (part_rows, part_width) = (n / parts, nr / parts);
    let (part, within) = e.div_rem(id, part_rows);
    let (panel, lane) = e.div_rem(within, part_width);
    let first = e.mul_const(part, part_width);
    let column = e.add(first, lane);
    let base = e.at(table, panel, packing.panel_elements() * dtype.bytes());
    let base = e.at(base, column, kp * dtype.bytes());
    let factor = scale.map(|s| {
        let place = e.at(s, id, 4);
        e.load_raw(place, Ty::f32(1))
    });
    let copy = |e: &mut Emitter, i: Val, j: usize| {
        let from = e.at(base, i, nr * kp * dtype.bytes());
        let from = e.offset_const(from, j * dtype.bytes());
        let mut value = e.load(from, dtype, 1);
        if let Some(f) = factor {
            value = e.mul(value, f);
        }
        let place = e.at(to, i, kp * 4);
        let place = e.offset_const(place, j * 4);
        e.store_raw(place, value);
    };
    e.repeat(k / kp, |e, i| (0..kp).for_each(|j| copy(e, i, j)));
    let last = e.i64(k / kp);
    (0..k % kp).for_each(|j| copy(e, last, j));
}

/// Rotates the heads of row `row` at `from` into `to`.
pub(super) fn rotate_row(e: &mut Emitter, row: Val, rope: &Rotation, from: Val, to: Val) {
    let (batch, step) = e.div_rem(row, rope.steps);
    let place = e.at(e.arg(rope.pos), batch, 4);
    let first = e.load(place, DType::I32, 1);
    let first = e.extsi(first, Elem::I64);
    let position = e.add(first, step);
    let position = e.index(position, rope.table_rows);
    let table = e.at(e.arg(rope.table), position, rope.dim * 4);
    e.repeat(rope.heads, |e, head| {
        let (from, to) = (e.at(from, head, rope.dim * 4), e.at(to, head, rope.dim * 4));
        let read = |e: &mut Emitter, column: usize, lanes: usize| {
            let place = e.offset_const(from, column * 4);
            e.load_raw(place, Ty::f32(lanes))
        };
        let write = |e: &mut Emitter, column: usize, value: Val| {
            let place = e.offset_const(to, column * 4);
            e.store_raw(place, value);
        };
        rope::rotate(e, rope, table, read, write);
    });
}

/// 1 where the integers are equal, else 0.
fn one_where(e: &mut Emitter, a: Val, b: Val) -> Val {
    let (one, zero) = (e.f32(1.0, a.lanes()), e.f32(0.0, a.lanes()));
    let equal = e.cmp(Cmp::Eq, a, b);
    e.select(equal, one, zero)
}

pub(super) type Prepare<'f> = dyn FnMut(&mut Emitter, &mut Row, NodeId) + 'f;
pub(super) type Evaluate<'f> = dyn FnMut(&mut Emitter, &mut Row, NodeId, Chunk) -> Val + 'f;

impl Graph<'_> {
    /// One element for the current row of a node of class `Column` or `Scalar`.
    pub(super) fn column(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId) -> Val {
        if let Some(&value) = ctx.columns.get(&node) {
            return value;
        }
        let n = &self.nodes[node];
        let value = match &n.kind {
            Kind::Arg(index) => {
                let base = e.arg(*index);
                let place = if n.class == Class::Column { e.at(base, ctx.index, n.dtype.bytes()) } else { base };
                e.load(place, n.dtype, 1)
            }
            Kind::Constant(value) => elementwise::constant(e, value.0, n.dtype, 1),
            Kind::Positions { pos, len } => {
                let (batch, step) = e.div_rem(ctx.index, *len);
                let place = e.at(e.arg(*pos), batch, 4);
                let first = e.load(place, DType::I32, 1);
                let step = e.trunci(step, Elem::I32);
                e.add(first, step)
            }
            Kind::Elementwise { opcode, from, operands } => {
                let values: Vec<Val> = operands.iter().map(|&o| self.column(e, ctx, o)).collect();
                elementwise::apply(e, *opcode, (*from, n.dtype), &values).unwrap_or(values[0])
            }
            Kind::Alias(x) => self.column(e, ctx, *x),
            Kind::Reduce { max, .. } => ctx.stats[&if *max { Stat::Max(node) } else { Stat::Sum(node) }],
            Kind::Given(index) => ctx.accumulators[*index],
            Kind::OneHot { ids } => {
                let id = self.column(e, ctx, *ids);
                let first = e.int(0, id.ty);
                one_where(e, id, first)
            }
            Kind::Slice { .. }
            | Kind::Gather { .. }
            | Kind::Rope { .. }
            | Kind::PackedGather { .. }
            | Kind::Concat(_)
            | Kind::RmsNorm { .. }
            | Kind::LayerNorm { .. }
            | Kind::Softmax { .. } => unreachable!("the graph gives these a width"),
        };
        ctx.columns.insert(node, value);
        value
    }

    /// Computes, ahead of a loop over columns, what a node needs once per row; `inner` does so for its operands.
    pub(super) fn prepare(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId, inner: &mut Prepare) {
        let n = &self.nodes[node];
        if n.class.width().is_none() {
            self.column(e, ctx, node);
            return;
        }
        match &n.kind {
            Kind::Arg(_) | Kind::Gather { .. } => {
                self.base(e, ctx, node);
            }
            Kind::OneHot { ids } => {
                self.column(e, ctx, *ids);
            }
            Kind::Alias(x) | Kind::Slice { x, .. } => inner(e, ctx, *x),
            Kind::Elementwise { operands, .. } => operands.iter().for_each(|&o| inner(e, ctx, o)),
            Kind::RmsNorm { x, weight, .. } => [*x, *weight].into_iter().for_each(|o| inner(e, ctx, o)),
            Kind::LayerNorm { x, weight, bias, .. } => {
                [*x, *weight, *bias].into_iter().for_each(|o| inner(e, ctx, o));
            }
            _ => {}
        }
    }

    /// [`Graph::prepare`] of a node and all that it is computed from, in a graph without reductions and buffers.
    pub(super) fn prepare_all(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId) {
        self.prepare(e, ctx, node, &mut |e, ctx, node| self.prepare_all(e, ctx, node));
    }

    /// The value at a chunk of a node in a graph without reductions and buffers.
    pub(super) fn evaluate(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId, chunk: Chunk) -> Val {
        if let Some(&value) = ctx.chunk.get(&(node, chunk.offset)) {
            return value;
        }
        let value = self.value(e, ctx, node, chunk, &mut |e, ctx, node, chunk| self.evaluate(e, ctx, node, chunk));
        ctx.chunk.insert((node, chunk.offset), value);
        value
    }

    /// The address of the current row of an argument or of a gathered row.
    pub(super) fn base(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId) -> Val {
        if let Some(&base) = ctx.bases.get(&node) {
            return base;
        }
        let n = &self.nodes[node];
        let base = match (&n.kind, n.class, ctx.given) {
            (Kind::Arg(index), Class::Rows(_), _) => e.at(e.arg(*index), ctx.index, self.pitch(*index, n)),
            (Kind::Arg(index), ..) => e.arg(*index),
            (Kind::Given(_), _, Some(given)) => given,
            (Kind::Gather { table, rows, ids }, class, _) => {
                let id = self.column(e, ctx, *ids);
                let id = e.index(id, *rows);
                e.at(e.arg(*table), id, class.width().unwrap_or(1) * 4)
            }
            _ => unreachable!("only arguments and gathers lie in memory by rows"),
        };
        ctx.bases.insert(node, base);
        base
    }

    /// The value at a chunk of a node that needs no reduction and no buffer; `inner` evaluates its operands.
    pub(super) fn value(
        &self,
        e: &mut Emitter,
        ctx: &mut Row,
        node: NodeId,
        chunk: Chunk,
        inner: &mut Evaluate,
    ) -> Val {
        let n = &self.nodes[node];
        if n.class.width().is_none() {
            let value = self.column(e, ctx, node);
            return e.splat(value, chunk.lanes);
        }
        match &n.kind {
            Kind::Arg(_) | Kind::Gather { .. } => {
                let base = self.base(e, ctx, node);
                load(e, base, n.dtype, chunk)
            }
            Kind::Alias(x) => inner(e, ctx, *x, chunk),
            Kind::Slice { x, start } => inner(e, ctx, *x, Chunk { offset: chunk.offset + start, ..chunk }),
            Kind::Elementwise { opcode, from, operands } => {
                let values: Vec<Val> = operands.iter().map(|&o| inner(e, ctx, o, chunk)).collect();
                elementwise::apply(e, *opcode, (*from, n.dtype), &values).unwrap_or(values[0])
            }
            Kind::Constant(value) => elementwise::constant(e, value.0, n.dtype, chunk.lanes),
            Kind::OneHot { ids } => {
                let id = self.column(e, ctx, *ids);
                let first = e.add_const(chunk.col, chunk.offset);
                let first = e.trunci(first, Elem::I32);
                let (id, first) = (e.splat(id, chunk.lanes), e.splat(first, chunk.lanes));
                let iota = e.iota(chunk.lanes);
                let columns = e.add(first, iota);
                one_where(e, id, columns)
            }
            Kind::Given(index) => match ctx.given {
                Some(base) => load(e, base, n.dtype, chunk),
                None => ctx.accumulators[(index + chunk.offset / ctx.part).min(ctx.accumulators.len() - 1)],
            },
            _ => unreachable!("row programs evaluate these, epilogues refuse them"),
        }
    }
}
