//! What the attention family shares: the chains that make heads out of a projection, and where keys and values live.
use super::anchor::{only, pointer};
use super::panels::Strip;
use crate::emit::rope::Turn;
pub use crate::emit::rowops::all_pieces;
use crate::emit::{Cmp, Elem, Emitter, Error, Ty, Val};
use rdc_ir::program::Kernel;
use rdc_ir::{DType, Func, Op, Opcode, ValueId};

/// The argument whose elements, from an element offset on and without gaps, are the value's: looks through reshapes and
/// slices below axes of size 1.
fn contiguous(func: &Func, value: ValueId) -> Option<(usize, usize)> {
    if let Some(index) = pointer(func, value) {
        return Some((index, 0));
    }
    if let Some(op) = func.defined_by(value, Opcode::Reshape) {
        return contiguous(func, op.operands[0]);
    }
    let op = func.defined_by(value, Opcode::Slice)?;
    let shape = &func.ty(op.operands[0]).shape;
    let axis = op.size("axis");
    let inner: usize = shape[axis + 1..].iter().product();
    let (index, offset) = contiguous(func, op.operands[0])?;
    shape[..axis].iter().all(|&n| n == 1).then_some((index, offset + op.size("start") * inner))
}

/// Rotation of heads by position.
struct Rope {
    table: usize,
    table_rows: usize,
    pos: usize,
    adjacent: bool,
}

impl Rope {
    /// The rotation that a `rope` or `rope_grad` is.
    fn new(func: &Func, op: &Op) -> Option<Rope> {
        Some(Rope {
            table: pointer(func, op.operands[1])?,
            table_rows: func.ty(op.operands[1]).shape[0],
            pos: pointer(func, op.operands[2])?,
            adjacent: op.text("layout") == "adjacent",
        })
    }

    /// The row of the table for a token.
    fn row(&self, e: &mut Emitter, token: Token, dim: usize) -> Val {
        let position = token.position(e, self.pos);
        let position = e.index(position, self.table_rows);
        e.at(e.arg(self.table), position, dim * 4)
    }
}

/// The address of a head of `dim` columns in rows of tokens, of which `stride` columns from `start` on have the heads.
fn head_row(e: &mut Emitter, base: Val, (stride, start, dim): (usize, usize, usize), token: Token, head: Val) -> Val {
    let row = e.at(base, token.index, stride * 4);
    let row = e.offset_const(row, start * 4);
    e.at(row, head, dim * 4)
}

/// Moves a head of `dim` columns of a token from `read` to `write`, rotated or turned back if there is a rotation.
fn move_head(
    e: &mut Emitter,
    dim: usize,
    token: Token,
    (rope, back): (Option<&Rope>, bool),
    read: impl Fn(&mut Emitter, usize, usize) -> Val,
    write: impl Fn(&mut Emitter, usize, Val),
) {
    if let Some(rope) = rope {
        let table = rope.row(e, token, dim);
        return Turn { dim, adjacent: rope.adjacent, back }.emit(e, table, read, write);
    }
    for (column, lanes) in all_pieces(dim, e.lanes) {
        let value = read(e, column, lanes);
        write(e, column, value);
    }
}

/// A chain slice → reshape to heads → bias → rope, each part optional: gives `f32[B, S, H, D]`.
pub struct HeadChain {
    source: usize,
    /// Columns of the source's rows, and the first one used.
    stride: usize,
    start: usize,
    /// Biases: argument and element offset of `f32[H, D]` elements.
    biases: Vec<(usize, usize)>,
    rope: Option<Rope>,
    /// Heads.
    pub heads: usize,
    /// Head size.
    pub dim: usize,
}

impl HeadChain {
    /// The chain that makes `value`, a tensor `f32[B, S, H, D]`.
    pub fn new(kernel: &Kernel, value: ValueId) -> Result<HeadChain, Error> {
        Self::find(&kernel.func, value)
            .ok_or_else(|| Error::unsupported(&kernel.name, "heads that are not slice, reshape, bias, rope"))
    }

    fn find(func: &Func, value: ValueId) -> Option<HeadChain> {
        let &[batch, steps, heads, dim] = func.ty(value).shape.as_slice() else { return None };
        let (tokens, columns) = (batch * steps, heads * dim);
        let mut value = value;
        let mut rope = None;
        if let Some(op) = func.defined_by(value, Opcode::Rope) {
            rope = Some(Rope::new(func, op)?);
            value = op.operands[0];
        }
        let mut biases = Vec::new();
        loop {
            if let Some(op) = func.defined_by(value, Opcode::Reshape) {
                value = op.operands[0];
            } else if let Some(op) = func.defined_by(value, Opcode::Add) {
                // The bias is the operand of H * D elements; B * S = 1 leaves that open, and then either order adds.
                let is_bias = |v: ValueId| func.ty(v).elements() == columns && contiguous(func, v).is_some();
                let (x, bias) = match (is_bias(op.operands[1]), is_bias(op.operands[0])) {
                    (true, _) => (op.operands[0], op.operands[1]),
                    (_, true) => (op.operands[1], op.operands[0]),
                    _ => return None,
                };
                if func.ty(x).elements() != tokens * columns {
                    return None;
                }
                biases.push(contiguous(func, bias)?);
                value = x;
            } else {
                break;
            }
        }
        // The bias next to the source is added first.
        biases.reverse();
        let (mut stride, mut start) = (columns, 0);
        if let Some(op) = func.defined_by(value, Opcode::Slice) {
            let ty = func.ty(op.operands[0]);
            let last = op.size("axis") + 1 == ty.rank() && ty.rows() == tokens;
            if !last || op.size("end") - op.size("start") != columns {
                return None;
            }
            (stride, start) = (ty.last(), op.size("start"));
            value = func.through_reshapes(op.operands[0]);
        }
        let source = pointer(func, value)?;
        (func.ty(value).dtype == DType::F32).then_some(HeadChain { source, stride, start, biases, rope, heads, dim })
    }

    /// The address of head `head` of a token in the source.
    fn row(&self, e: &mut Emitter, token: Token, head: Val) -> Val {
        head_row(e, e.arg(self.source), (self.stride, self.start, self.dim), token, head)
    }

    /// Asks memory for what [`HeadChain::emit`] reads of the source.
    pub fn prefetch(&self, e: &mut Emitter, token: Token, head: Val) {
        let row = self.row(e, token, head);
        prefetch_row(e, self.dim * 4, row);
    }

    /// Writes head `head` of token `batch * S + step` to `to`, times `scale`.
    pub fn emit(&self, e: &mut Emitter, token: Token, head: Val, scale: Option<f32>, to: Val) {
        self.emit_as(e, token, head, scale, (to, DType::F32));
    }

    /// As [`HeadChain::emit`], to elements of that type.
    fn emit_as(&self, e: &mut Emitter, token: Token, head: Val, scale: Option<f32>, (to, dtype): (Val, DType)) {
        let first = e.mul_const(head, self.dim * 4);
        let row = self.row(e, token, head);
        let mut rows = vec![row];
        for &(index, offset) in &self.biases {
            let bias = e.offset_const(e.arg(index), offset * 4);
            rows.push(e.offset(bias, first));
        }
        let read = |e: &mut Emitter, column: usize, lanes: usize| {
            let mut sum: Option<Val> = None;
            for &row in &rows {
                let place = e.offset_const(row, column * 4);
                let value = e.load_raw(place, Ty::f32(lanes));
                sum = Some(match sum {
                    Some(sum) => e.add(sum, value),
                    None => value,
                });
            }
            sum.unwrap_or(row)
        };
        let write = |e: &mut Emitter, column: usize, value: Val| {
            let value = match scale {
                Some(scale) => {
                    let scale = e.f32(scale, value.lanes());
                    e.mul(value, scale)
                }
                None => value,
            };
            let place = e.offset_const(to, column * dtype.bytes());
            e.store(place, dtype, value);
        };
        move_head(e, self.dim, token, (self.rope.as_ref(), false), read, write);
    }
}

/// Where the heads of a derivative go: some columns of rows of tokens, perhaps turned back first.
pub struct HeadTarget {
    pointer: usize,
    /// Columns of a row, and the first one.
    stride: usize,
    start: usize,
    rope: Option<Rope>,
    dim: usize,
}

impl HeadTarget {
    /// Finds the targets of the results of `op` in a value that a kernel yields under a pointer: one of them, perhaps turned back
    /// and reshaped, or several joined along the last axis. Adds them to `targets`, by result; `None` if the value is anything
    /// else or a target was known.
    fn find(func: &Func, op: &Op, value: ValueId, pointer: usize, targets: &mut [Option<HeadTarget>]) -> Option<()> {
        let value = func.through_reshapes(value);
        let joined = func.defined_by(value, Opcode::Concat).filter(|op| op.size("axis") + 1 == func.ty(value).rank());
        let parts = joined.map_or(vec![value], |op| op.operands.clone());
        let mut found = Vec::new();
        let mut start = 0;
        for part in parts {
            let mut heads = func.through_reshapes(part);
            let mut rope = None;
            if let Some(turn) = func.defined_by(heads, Opcode::RopeGrad) {
                rope = Some(Rope::new(func, turn)?);
                heads = func.through_reshapes(turn.operands[0]);
            }
            let result = op.results.iter().position(|&r| r == heads)?;
            let &[_, _, count, dim] = func.ty(heads).shape.as_slice() else { return None };
            found.push((result, HeadTarget { pointer, stride: 0, start, rope, dim }));
            start += count * dim;
        }
        for (result, target) in found {
            let slot = targets.get_mut(result).filter(|slot| slot.is_none())?;
            *slot = Some(HeadTarget { stride: start, ..target });
        }
        Some(())
    }

    /// The address of a head of a token.
    fn row(&self, e: &mut Emitter, token: Token, head: Val) -> Val {
        head_row(e, e.arg(self.pointer), (self.stride, self.start, self.dim), token, head)
    }

    /// Asks memory for what [`HeadTarget::emit`] writes.
    pub fn prefetch(&self, e: &mut Emitter, token: Token, head: Val) {
        let row = self.row(e, token, head);
        prefetch_row(e, self.dim * 4, row);
    }

    /// Writes the head of a token that lies at `from`, times `scale` (`f32`).
    pub fn emit(&self, e: &mut Emitter, token: Token, head: Val, from: Val, scale: Option<Val>) {
        let to = self.row(e, token, head);
        let read = |e: &mut Emitter, column: usize, lanes: usize| {
            let place = e.offset_const(from, column * 4);
            let value = e.load_raw(place, Ty::f32(lanes));
            let Some(scale) = scale else { return value };
            let scale = e.splat(scale, lanes);
            e.mul(value, scale)
        };
        let write = |e: &mut Emitter, column: usize, value: Val| {
            let place = e.offset_const(to, column * 4);
            e.store_raw(place, value);
        };
        move_head(e, self.dim, token, (self.rope.as_ref(), true), read, write);
    }
}

/// A token: `index = batch * S + step`, all `i64`.
#[derive(Clone, Copy)]
pub struct Token {
    /// Row of the projection.
    pub index: Val,
    /// Batch row.
    pub batch: Val,
    /// Place in the chunk.
    pub step: Val,
}

impl Token {
    /// Token `index` of chunks of `steps`.
    pub fn new(e: &mut Emitter, index: Val, steps: usize) -> Token {
        let (batch, step) = e.div_rem(index, steps);
        Token { index, batch, step }
    }
    /// Token `step` of row `batch` of chunks of `steps`.
    pub fn of(e: &mut Emitter, batch: Val, step: Val, steps: usize) -> Token {
        let first = e.mul_const(batch, steps);
        Token { index: e.add(first, step), batch, step }
    }
    /// Its absolute position by the argument `pos: i32[B]`.
    pub fn position(self, e: &mut Emitter, pos: usize) -> Val {
        let place = e.at(e.arg(pos), self.batch, 4);
        let first = e.load_raw(place, Ty::new(Elem::I32, 1));
        let first = e.extsi(first, Elem::I64);
        e.add(first, self.step)
    }
}

/// A `cache_update` of a single-slot cache.
pub struct Update {
    chain: HeadChain,
    cache: usize,
    pos: usize,
    /// Positions of the cache.
    pub context: usize,
    dtype: DType,
}

impl Update {
    /// The update that an operation is.
    pub fn new(kernel: &Kernel, op: &Op) -> Result<Update, Error> {
        let func = &kernel.func;
        let fail = |what: &str| Error::unsupported(&kernel.name, what);
        let (shape, dtype) = (&func.ty(op.operands[0]).shape, func.ty(op.operands[0]).dtype);
        let cache = pointer(func, op.operands[0]).ok_or_else(|| fail("a cache that is not an argument"))?;
        let pos = pointer(func, op.operands[2]).ok_or_else(|| fail("positions that are not an argument"))?;
        if shape[0] != 1 {
            return Err(fail("a cache of several slots"));
        }
        Ok(Update { chain: HeadChain::new(kernel, op.operands[1])?, cache, pos, context: shape[2], dtype })
    }

    /// Writes the heads `heads` (a range of `i64`) of a token, unless its position is outside the cache.
    pub fn emit(&self, e: &mut Emitter, token: Token, heads: (Val, Val)) {
        let position = token.position(e, self.pos);
        let (zero, context) = (e.i64(0), e.i64(self.context));
        let (after, before) = (e.cmp(Cmp::Ge, position, zero), e.cmp(Cmp::Lt, position, context));
        let inside = e.and(after, before);
        e.when(inside, |e| {
            e.each(heads.0, heads.1, |e, head| {
                let first = e.mul_const(token.batch, self.chain.heads);
                let slab = e.add(first, head);
                let row = self.chain.dim * self.dtype.bytes();
                let slab = e.at(e.arg(self.cache), slab, self.context * row);
                let to = e.at(slab, position, row);
                self.chain.emit_as(e, token, head, None, (to, self.dtype));
            });
        });
    }
    /// Heads of the cache.
    pub fn heads(&self) -> usize {
        self.chain.heads
    }
}

/// Where keys or values `[B, T, G, D]` lie; counts are of elements.
#[derive(Clone, Copy)]
pub struct HeadRows {
    pointer: usize,
    start: usize,
    batch: usize,
    group: usize,
    /// From a position to the next.
    pub stride: usize,
    /// f32, or bf16 in a cache.
    pub dtype: DType,
}

impl HeadRows {
    /// The place of `value`: a view of a cache, `[B, G, T, D]` in memory, or a plain tensor, perhaps some columns of a
    /// projection.
    fn find(func: &Func, value: ValueId) -> Option<HeadRows> {
        let &[_, positions, groups, dim] = func.ty(value).shape.as_slice() else { return None };
        let view = match (pointer(func, value), func.defined_by(value, Opcode::CacheUpdate)) {
            (Some(index), _) if func.ty(value).cache => Some(index),
            (_, Some(update)) => pointer(func, update.operands[0]),
            _ => None,
        };
        if let Some(pointer) = view {
            let group = positions * dim;
            let dtype = func.ty(value).dtype;
            return Some(HeadRows { pointer, start: 0, batch: groups * group, group, stride: dim, dtype });
        }
        let chain = HeadChain::find(func, value).filter(|c| c.biases.is_empty() && c.rope.is_none())?;
        let HeadChain { source, stride, start, .. } = chain;
        let batch = positions * stride;
        Some(HeadRows { pointer: source, start, batch, group: dim, stride, dtype: DType::F32 })
    }

    /// The address of position 0 of a group.
    pub fn slab(&self, e: &mut Emitter, batch: Val, group: Val) -> Val {
        let size = self.dtype.bytes();
        let first = e.offset_const(e.arg(self.pointer), self.start * size);
        let first = e.at(first, batch, self.batch * size);
        e.at(first, group, self.group * size)
    }

    /// The address of the row at a position of a group's slab.
    pub fn row(&self, e: &mut Emitter, slab: Val, position: Val) -> Val {
        e.at(slab, position, self.stride * self.dtype.bytes())
    }

    /// Columns `first ..` (`i64`) of rows, to be copied.
    pub fn strip(&self, e: &mut Emitter, (rows, first): (Val, Val), columns: usize) -> Strip {
        let (size, dtype) = (self.dtype.bytes(), self.dtype);
        Strip { from: e.at(rows, first, size), stride: self.stride * size, dtype, transpose: false, columns }
    }

    /// Elements `column ..` of a row, or of those after it, as f32.
    pub fn load(&self, e: &mut Emitter, row: Val, column: usize, lanes: usize) -> Val {
        let place = e.offset_const(row, column * self.dtype.bytes());
        e.load(place, self.dtype, lanes)
    }
}

/// Asks memory for a row of that many bytes, to be in the second-level cache when it is used.
pub fn prefetch_row(e: &mut Emitter, bytes: usize, row: Val) {
    for byte in (0..bytes).step_by(64) {
        let line = e.offset_const(row, byte);
        e.prefetch(line, 2);
    }
}

/// What an attention, and its derivative, is of.
pub struct Inputs {
    /// The queries.
    pub query: HeadChain,
    /// The keys.
    pub keys: HeadRows,
    /// The values.
    pub values: HeadRows,
    /// Pointer argument of the positions.
    pub pos: usize,
    /// Whether later keys are hidden.
    pub causal: bool,
    /// Factor of the scores.
    pub scale: f32,
    /// S.
    pub steps: usize,
    /// G.
    pub groups: usize,
    /// T.
    pub context: usize,
}

impl Inputs {
    /// Of an operation whose first operands are q, k, v and pos.
    fn new(kernel: &Kernel, op: &Op) -> Result<Inputs, Error> {
        let func = &kernel.func;
        let fail = |what: &str| Error::unsupported(&kernel.name, what);
        let (q, k) = (func.ty(op.operands[0]), func.ty(op.operands[1]));
        Ok(Inputs {
            query: HeadChain::new(kernel, op.operands[0])?,
            keys: HeadRows::find(func, op.operands[1]).ok_or_else(|| fail("keys that are not in memory"))?,
            values: HeadRows::find(func, op.operands[2]).ok_or_else(|| fail("values that are not in memory"))?,
            pos: pointer(func, op.operands[3]).ok_or_else(|| fail("positions that are not an argument"))?,
            causal: op.flag("causal"),
            scale: op.float("scale") as f32,
            steps: q.shape[1],
            groups: k.shape[2],
            context: k.shape[1],
        })
    }

    /// Token `step` of the head that comes `heads` after a head of a batch row, and that head.
    pub fn later(&self, e: &mut Emitter, (batch, head, step): (Val, Val, Val), heads: usize) -> (Token, Val) {
        let slab = e.mul_const(batch, self.query.heads);
        let slab = e.add(slab, head);
        let slab = e.add_const(slab, heads);
        let (batch, head) = e.div_rem(slab, self.query.heads);
        (Token::of(e, batch, step, self.steps), head)
    }

    /// Asks memory for the query of a head of a token, and for the key and the value at its step.
    pub fn prefetch(&self, e: &mut Emitter, token: Token, head: Val) {
        self.query.prefetch(e, token, head);
        let group = e.div_rem(head, self.heads_per_group()).0;
        for rows in [self.keys, self.values] {
            let slab = rows.slab(e, token.batch, group);
            let row = rows.row(e, slab, token.step);
            prefetch_row(e, self.query.dim * rows.dtype.bytes(), row);
        }
    }

    /// Heads that share a group.
    pub fn heads_per_group(&self) -> usize {
        self.query.heads / self.groups
    }
}

/// An attention taken apart.
pub struct Attend {
    /// What it is of.
    pub inputs: Inputs,
    /// Pointer argument of the result.
    pub result: usize,
    /// Updates of the caches in the same kernel.
    pub updates: Vec<Update>,
    /// Pointers of the calling convention.
    pub pointers: usize,
}

impl Attend {
    /// Takes an attention kernel apart.
    pub fn new(kernel: &Kernel) -> Result<Attend, Error> {
        let func = &kernel.func;
        let fail = |what: &str| Error::unsupported(&kernel.name, what);
        let op = &func.ops[only(kernel, Opcode::Attention)?];
        let mut updates = Vec::new();
        for &id in &func.regions[func.body].ops {
            if func.ops[id].opcode == Opcode::CacheUpdate {
                updates.push(Update::new(kernel, &func.ops[id])?);
            }
        }
        let result = result_pointer(func, op.results[0]).ok_or_else(|| fail("results besides the attention's"))?;
        Ok(Attend { inputs: Inputs::new(kernel, op)?, result, updates, pointers: func.args.len() + 1 })
    }
}

/// An attention's derivative taken apart.
pub struct AttendGrad {
    /// What the attention is of.
    pub inputs: Inputs,
    /// The cotangent of the attention's result.
    pub dout: HeadChain,
    /// Where the results go, those that are wanted.
    pub dqueries: Option<HeadTarget>,
    /// See `dqueries`.
    pub dkeys: Option<HeadTarget>,
    /// See `dqueries`.
    pub dvalues: Option<HeadTarget>,
    /// Pointers of the calling convention.
    pub pointers: usize,
}

impl AttendGrad {
    /// Takes a kernel of an attention's derivative apart.
    pub fn new(kernel: &Kernel) -> Result<AttendGrad, Error> {
        let func = &kernel.func;
        let fail = |what: &str| Error::unsupported(&kernel.name, what);
        let op = &func.ops[only(kernel, Opcode::AttentionGrad)?];
        let yields = &func.regions[func.body].yields;
        let mut results = [None, None, None];
        for (index, &value) in yields.iter().enumerate() {
            let found = HeadTarget::find(func, op, value, func.args.len() + index, &mut results);
            found.ok_or_else(|| fail("results besides the derivatives"))?;
        }
        let [dqueries, dkeys, dvalues] = results;
        Ok(AttendGrad {
            inputs: Inputs::new(kernel, op)?,
            dout: HeadChain::new(kernel, op.operands[4])?,
            dqueries,
            dkeys,
            dvalues,
            pointers: func.args.len() + yields.len(),
        })
    }
}

/// The pointer of the only result that is not linear, if it is `value`, perhaps reshaped.
fn result_pointer(func: &Func, value: ValueId) -> Option<usize> {
    let mut results = func.regions[func.body].yields.iter().copied().filter(|&v| !func.ty(v).cache);
    let (Some(result), None) = (results.next(), results.next()) else { return None };
    (func.through_reshapes(result) == value).then_some(func.args.len())
}
