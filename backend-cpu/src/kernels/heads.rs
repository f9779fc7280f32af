//! What the attention family shares: heads on their way out of a projection or into a derivative, cache writes, and where keys and
//! values lie.
pub use crate::emit::vectors::all_pieces;
use crate::emit::{Cmp, Elem, Emitter, Ty, Val, rope};
use rdc_ir::program::body::{CacheWrite, HeadChain, HeadRows, HeadTarget, Heads};
use rdc_ir::program::rows::Rotation;

/// The address of a head of `dim` columns in rows of tokens, of which `stride` columns from `start` on have the heads.
fn head_row(e: &mut Emitter, base: Val, (stride, start, dim): (usize, usize, usize), token: Token, head: Val) -> Val {
    let row = e.at(base, token.index, stride * 4);
    let row = e.offset_const(row, start * 4);
    e.at(row, head, dim * 4)
}

/// Moves a head of `dim` columns of a token from `read` to `write`, rotated if there is a rotation.
fn move_head(
    e: &mut Emitter,
    dim: usize,
    token: Token,
    rope: Option<&Rotation>,
    read: impl Fn(&mut Emitter, usize, usize) -> Val,
    write: impl Fn(&mut Emitter, usize, Val),
) {
    if let Some(rope) = rope {
        let position = token.position(e, rope.pos);
        let position = e.index(position, rope.table_rows);
        let table = e.at(e.arg(rope.table), position, dim * 4);
        return rope::rotate(e, rope, table, read, write);
    }
    for (column, lanes) in all_pieces(dim, e.lanes) {
        let value = read(e, column, lanes);
        write(e, column, value);
    }
}

/// The address of head `head` of a token in the source of a chain.
fn source(e: &mut Emitter, chain: &HeadChain, token: Token, head: Val) -> Val {
    head_row(e, e.arg(chain.source), (chain.stride, chain.start, chain.dim), token, head)
}

/// Asks memory for what [`make_head`] reads of the source.
pub fn prefetch_head(e: &mut Emitter, chain: &HeadChain, token: Token, head: Val) {
    let row = source(e, chain, token, head);
    prefetch_row(e, chain.dim, row);
}

/// Writes head `head` of a token to `to`, times `scale`.
pub fn make_head(e: &mut Emitter, chain: &HeadChain, token: Token, head: Val, scale: Option<f64>, to: Val) {
    let first = e.mul_const(head, chain.dim * 4);
    let row = source(e, chain, token, head);
    let mut rows = vec![row];
    for &(index, offset) in &chain.biases {
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
                let scale = e.f32(scale as f32, value.lanes());
                e.mul(value, scale)
            }
            None => value,
        };
        let place = e.offset_const(to, column * 4);
        e.store_raw(place, value);
    };
    move_head(e, chain.dim, token, chain.rope.as_ref(), read, write);
}

/// The address of a head of a token where a derivative goes.
fn destination(e: &mut Emitter, target: &HeadTarget, token: Token, head: Val) -> Val {
    head_row(e, e.arg(target.pointer), (target.stride, target.start, target.dim), token, head)
}

/// Asks memory for what [`put_head`] writes.
pub fn prefetch_target(e: &mut Emitter, target: &HeadTarget, token: Token, head: Val) {
    let row = destination(e, target, token, head);
    prefetch_row(e, target.dim, row);
}

/// Writes the head of a token that lies at `from`, times `scale` (`f32`), to its target.
pub fn put_head(e: &mut Emitter, target: &HeadTarget, token: Token, head: Val, from: Val, scale: Option<Val>) {
    let to = destination(e, target, token, head);
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
    move_head(e, target.dim, token, target.rope.as_ref(), read, write);
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

/// Writes the heads `heads` (a range of `i64`) of a token to a cache, unless its position is outside it.
pub fn write_cache(e: &mut Emitter, write: &CacheWrite, token: Token, heads: (Val, Val)) {
    let CacheWrite { chain, cache, pos, context, .. } = write;
    let position = token.position(e, *pos);
    let (zero, end) = (e.i64(0), e.i64(*context));
    let (after, before) = (e.cmp(Cmp::Ge, position, zero), e.cmp(Cmp::Lt, position, end));
    let inside = e.and(after, before);
    e.when(inside, |e| {
        e.each(heads.0, heads.1, |e, head| {
            let first = e.mul_const(token.batch, chain.heads);
            let slab = e.add(first, head);
            let slab = e.at(e.arg(*cache), slab, context * chain.dim * 4);
            let to = e.at(slab, position, chain.dim * 4);
            make_head(e, chain, token, head, None, to);
        });
    });
}

/// The address of position 0 of a group of keys or values.
pub fn slab(e: &mut Emitter, rows: &HeadRows, batch: Val, group: Val) -> Val {
    let first = e.offset_const(e.arg(rows.pointer), rows.start * 4);
    let first = e.at(first, batch, rows.batch * 4);
    e.at(first, group, rows.group * 4)
}

/// Asks memory for a row of `dim` floats, to be in the second-level cache when it is used.
pub fn prefetch_row(e: &mut Emitter, dim: usize, row: Val) {
    for byte in (0..dim * 4).step_by(64) {
        let line = e.offset_const(row, byte);
        e.prefetch(line, 2);
    }
}

/// Token `step` of the head that comes `further` heads after a head of a batch row, and that head.
pub fn later(e: &mut Emitter, heads: &Heads, (batch, head, step): (Val, Val, Val), further: usize) -> (Token, Val) {
    let slab = e.mul_const(batch, heads.query.heads);
    let slab = e.add(slab, head);
    let slab = e.add_const(slab, further);
    let (batch, head) = e.div_rem(slab, heads.query.heads);
    (Token::of(e, batch, step, heads.steps), head)
}

/// Asks memory for the query of a head of a token, and for the key and the value at its step.
pub fn prefetch_operands(e: &mut Emitter, heads: &Heads, token: Token, head: Val) {
    prefetch_head(e, &heads.query, token, head);
    let group = e.div_rem(head, heads.heads_per_group()).0;
    for rows in [&heads.keys, &heads.values] {
        let slab = slab(e, rows, token.batch, group);
        let row = e.at(slab, token.step, rows.stride * 4);
        prefetch_row(e, heads.query.dim, row);
    }
}
