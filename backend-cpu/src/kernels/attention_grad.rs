//! The derivative of attention.
//!
//! Algorithm: a task is a batch row and a group, so that no two tasks add to the same keys. For each head of the group and
//! each block of `q_rows` queries, over all keys that one of them sees: scores `s = scale q . kᵀ` and `dp = dout . vᵀ`, the
//! softmax `p`, `delta = sum of p dp` and `ds = p (dp - delta)` row by row in place, then `dv += pᵀ dout`,
//! `dk += scale dsᵀ q` and `dq = scale ds . k`. Rows of `p` and `ds` keep a factor `1 / sum`, which is applied to the rows
//! of `dout`, `q` and `dq` instead.
//!
//! Tiling: the five products are register-blocked as in [`super::attention_tile`]. Keys and values are transposed once per
//! task into panels of a tile's width, keys are also copied as panels, and the sums `dk`, `dv` stay in scratch until the
//! task's end. If causal, tiles above the diagonal are left out, and the inner loops of the last three products begin or
//! end at it. Bound: arithmetic, the five products plus about 30 instructions per vector of weights.
use super::attention_tile::{Left, Tile, copy_rows, transpose};
use super::heads::{AttendGrad, Token, all_pieces};
use crate::emit::{Cmp, Elem, Emitter, Error, Ty, Val, math};
use rdc_ir::program::{Kernel, KernelKind, Target};

/// Keys of an inner block of `ds . k`: a panel of them stays in the first-level cache.
const INNER_KEYS: usize = 128;

/// Sizes, and byte offsets into scratch.
struct Layout {
    tile: Tile,
    /// Columns of a tile.
    width: usize,
    /// Queries of a block.
    q_rows: usize,
    dim: usize,
    /// Floats of a row of scores: all keys, and room for whole vectors beyond the last.
    stride: usize,
    /// Transposed keys and values, panels `[dim][width]`.
    keys_t: usize,
    values_t: usize,
    /// Keys, panels `[context][width]` of columns.
    keys: usize,
    /// `[q_rows][dim]`
    queries: usize,
    douts: usize,
    dqueries: usize,
    /// `[q_rows][stride]`: scores, then `p`; and `dp`, then `ds`.
    scores: usize,
    dscores: usize,
    /// Reciprocals of the sums of `p`, one per query.
    inverses: usize,
    /// Sums `[context][dim]`, with padding to whole tiles.
    dkeys: usize,
    dvalues: usize,
    bytes: usize,
}

impl Layout {
    fn new(kernel: &Kernel, a: &AttendGrad, lanes: usize) -> Result<Layout, Error> {
        let KernelKind::AttentionGrad { q_rows } = kernel.kind else {
            return Err(Error::unsupported(&kernel.name, "a kernel of another kind than attention_grad"));
        };
        if q_rows == 0 {
            return Err(Error::unsupported(&kernel.name, "an empty tile"));
        }
        let tile = Tile::new(lanes);
        let width = tile.vectors * lanes;
        let q_rows = q_rows.min(a.steps);
        let rows = q_rows.next_multiple_of(tile.rows);
        let dim = a.query.dim;
        let stride = a.context.next_multiple_of(width) + hidden_vectors(tile, lanes) * lanes;
        let positions = a.context.next_multiple_of(tile.rows);
        let transposed = a.context.next_multiple_of(width) * dim;
        let mut bytes = 0;
        let mut take = |floats: usize| {
            let at = bytes;
            bytes += (floats * 4).next_multiple_of(64);
            at
        };
        Ok(Layout {
            tile,
            width,
            q_rows,
            dim,
            stride,
            keys_t: take(transposed),
            values_t: take(transposed),
            keys: take(a.context * dim),
            queries: take(rows * dim),
            douts: take(rows * dim),
            dqueries: take(rows * dim),
            scores: take(rows * stride),
            dscores: take(rows * stride),
            inverses: take(rows),
            dkeys: take(positions * dim),
            dvalues: take(positions * dim),
            bytes,
        })
    }
}

/// Vectors of a row, from the one that holds the first hidden key, that a tile on the diagonal may read.
fn hidden_vectors(tile: Tile, lanes: usize) -> usize {
    (lanes + tile.rows - 2).div_ceil(lanes)
}

/// Bytes of scratch per thread.
pub fn scratch(kernel: &Kernel, target: &Target) -> usize {
    AttendGrad::new(kernel).and_then(|a| Ok(Layout::new(kernel, &a, target.lanes)?.bytes)).unwrap_or(0)
}

/// The kernel's MLIR module.
pub fn emit(target: &Target, kernel: &Kernel) -> Result<String, Error> {
    let a = AttendGrad::new(kernel)?;
    let l = Layout::new(kernel, &a, target.lanes)?;
    let mut e = Emitter::new(&kernel.name, a.pointers, target.lanes);
    e.tasks(|e, task| {
        let (batch, group) = e.div_rem(task, a.groups);
        let context = e.i64(a.context);
        let [keys_t, values_t, keys] = [l.keys_t, l.values_t, l.keys].map(|o| e.offset_const(e.scratch, o));
        let (key_slab, value_slab) = (a.keys.slab(e, batch, group), a.values.slab(e, batch, group));
        let zero = e.i64(0);
        e.for_range(zero, context, l.width, &[], |e, key, _| {
            let (left, most) = (e.sub(context, key), e.i64(l.width));
            let visible = e.min(left, most);
            for (from, stride, to) in [(key_slab, a.keys.stride, keys_t), (value_slab, a.values.stride, values_t)] {
                let from = e.at(from, key, stride * 4);
                let to = e.at(to, key, l.dim * 4);
                transpose(e, l.dim, (from, stride), (to, l.width), visible, most);
            }
            vec![]
        });
        for panel in panels(&l, e.lanes) {
            let from = e.offset_const(key_slab, panel.first * 4);
            let to = e.offset_const(keys, panel.first * a.context * 4);
            copy_rows(e, panel.width, (from, a.keys.stride), (to, panel.width), context);
        }
        let sums = e.offset_const(e.scratch, l.dkeys);
        let floats = e.i64((l.bytes - l.dkeys) / 4);
        e.for_range(zero, floats, e.lanes, &[], |e, at, _| {
            let place = e.at(sums, at, 4);
            let none = e.f32(0.0, e.lanes);
            e.store_raw(place, none);
            vec![]
        });
        e.repeat(a.heads_per_group(), |e, h| {
            let head = e.mul_const(group, a.heads_per_group());
            let head = e.add(head, h);
            let steps = e.i64(a.steps);
            e.for_range(zero, steps, l.q_rows, &[], |e, first, _| {
                block_of_queries(e, &a, &l, (batch, head, first));
                vec![]
            });
        });
        for (result, from) in [(a.dkeys, l.dkeys), (a.dvalues, l.dvalues)] {
            let Some(result) = result else { continue };
            let from = e.offset_const(e.scratch, from);
            let row = a.groups * l.dim;
            let to = e.at(e.arg(result), batch, a.context * row * 4);
            let to = e.at(to, group, l.dim * 4);
            copy_rows(e, l.dim, (from, l.dim), (to, row), context);
        }
    });
    Ok(e.finish())
}

/// A tile's width of the columns of a head.
struct Panel {
    /// First column.
    first: usize,
    /// Columns.
    width: usize,
    /// (column of the panel, lanes) of its vectors.
    columns: Vec<(usize, usize)>,
}

fn panels(l: &Layout, lanes: usize) -> Vec<Panel> {
    let pieces = all_pieces(l.dim, lanes);
    pieces
        .chunks(l.tile.vectors)
        .map(|pieces| {
            let first = pieces[0].0;
            let columns = pieces.iter().map(|&(column, lanes)| (column - first, lanes)).collect();
            Panel { first, width: pieces.iter().map(|p| p.1).sum(), columns }
        })
        .collect()
}

/// What a block of queries sees.
struct Block {
    /// Queries, and rows of whole tiles that hold them.
    count: Val,
    rows: Val,
    /// Position of the first query; at the end of the keys if all see all.
    position: Val,
    /// End of the keys that the last query sees.
    limit: Val,
}

impl Block {
    /// The first row of the first tile with a query that sees key `key`.
    fn first_row(&self, e: &mut Emitter, l: &Layout, key: Val) -> Val {
        let (zero, tile) = (e.i64(0), e.i64(l.tile.rows));
        let row = e.sub(key, self.position);
        let row = e.max(row, zero);
        let inside = e.rem(row, tile);
        e.sub(row, inside)
    }
}

/// Adds the shares of queries `first ..` of one head to the sums, and writes their `dq`.
fn block_of_queries(e: &mut Emitter, a: &AttendGrad, l: &Layout, (batch, head, first): (Val, Val, Val)) {
    let (zero, one) = (e.i64(0), e.i64(1));
    let (steps, most, context) = (e.i64(a.steps), e.i64(l.q_rows), e.i64(a.context));
    let left = e.sub(steps, first);
    let count = e.min(left, most);
    let tile_rows = e.i64(l.tile.rows);
    let rows = e.add_const(count, l.tile.rows - 1);
    let padding = e.rem(rows, tile_rows);
    let rows = e.sub(rows, padding);
    let (position, limit) = if a.causal {
        let token = Token { index: first, batch, step: first };
        let position = token.position(e, a.pos);
        let position = e.max(position, zero);
        let end = e.add(position, count);
        (position, e.min(end, context))
    } else {
        (context, context)
    };
    let block = Block { count, rows, position, limit };
    let [queries, douts, dqueries] = [l.queries, l.douts, l.dqueries].map(|o| e.offset_const(e.scratch, o));
    let [scores, dscores] = [l.scores, l.dscores].map(|o| e.offset_const(e.scratch, o));
    let [keys_t, values_t] = [l.keys_t, l.values_t].map(|o| e.offset_const(e.scratch, o));
    e.each(zero, count, |e, row| {
        let step = e.add(first, row);
        let token = Token::of(e, batch, step, a.steps);
        let to = e.at(queries, row, l.dim * 4);
        a.query.emit(e, token, head, Some(a.scale), to);
        let to = e.at(douts, row, l.dim * 4);
        a.dout.emit(e, token, head, None, to);
        let to = e.at(dqueries, row, l.dim * 4);
        for (column, lanes) in all_pieces(l.dim, e.lanes) {
            let place = e.offset_const(to, column * 4);
            let none = e.f32(0.0, lanes);
            e.store_raw(place, none);
        }
    });
    against_positions(e, l, &block, (queries, keys_t, scores));
    against_positions(e, l, &block, (douts, values_t, dscores));
    let inverses = e.offset_const(e.scratch, l.inverses);
    e.each(zero, count, |e, row| {
        let end = e.add(block.position, row);
        let end = e.add(end, one);
        let seen = e.min(end, context);
        let (s, d) = (e.at(scores, row, l.stride * 4), e.at(dscores, row, l.stride * 4));
        let inverse = weights(e, l, (s, d), seen);
        let place = e.at(inverses, row, 4);
        e.store_raw(place, inverse);
        for from in [queries, douts] {
            let row = e.at(from, row, l.dim * 4);
            scale_row(e, l.dim, (row, row), inverse);
        }
    });
    add_to_positions(e, l, &block);
    add_to_queries(e, a, l, &block);
    let Some(result) = a.dqueries else { return };
    e.each(zero, count, |e, row| {
        let step = e.add(first, row);
        let token = Token::of(e, batch, step, a.steps);
        let slab = e.mul_const(token.index, a.query.heads);
        let slab = e.add(slab, head);
        let to = e.at(e.arg(result), slab, l.dim * 4);
        let from = e.at(dqueries, row, l.dim * 4);
        let place = e.at(inverses, row, 4);
        let inverse = e.load_raw(place, Ty::f32(1));
        let scale = e.f32(a.scale, 1);
        let factor = e.mul(inverse, scale);
        scale_row(e, l.dim, (from, to), factor);
    });
}

/// `to = from * factor`
fn scale_row(e: &mut Emitter, dim: usize, (from, to): (Val, Val), factor: Val) {
    for (column, lanes) in all_pieces(dim, e.lanes) {
        let place = e.offset_const(from, column * 4);
        let value = e.load_raw(place, Ty::f32(lanes));
        let factor = e.splat(factor, lanes);
        let value = e.mul(value, factor);
        let place = e.offset_const(to, column * 4);
        e.store_raw(place, value);
    }
}

/// `out[row][key] = left[row] . right[key]` for tiles with a pair that is seen. Panels of the right operand go outside: one
/// stays in the first-level cache while the row tiles stream past.
fn against_positions(e: &mut Emitter, l: &Layout, block: &Block, (left, right, out): (Val, Val, Val)) {
    let zero = e.i64(0);
    let columns: Vec<(usize, usize)> = (0..l.tile.vectors).map(|v| (v * e.lanes, e.lanes)).collect();
    e.for_range(zero, block.limit, l.width, &[], |e, key, _| {
        let right = e.at(right, key, l.dim * 4);
        let out = e.at(out, key, 4);
        let first = block.first_row(e, l, key);
        e.for_range(first, block.rows, l.tile.rows, &[], |e, row, _| {
            let left = Left { at: e.at(left, row, l.dim * 4), stride: l.dim, step: 1 };
            let inner = e.i64(l.dim);
            let none = l.tile.zeros(e, &columns);
            let tile = l.tile.multiply(e, left, (right, l.width), inner, &columns, none);
            let out = e.at(out, row, l.stride * 4);
            l.tile.store(e, tile, (out, l.stride), &columns);
            vec![]
        });
        vec![]
    });
}

/// Turns a row of scores s into `p = e^(s - max)` and a row dp into `p (dp - delta)`, for the `seen` first keys, and zeros
/// for the hidden ones that are read. Returns the reciprocal of the sum of `p`.
fn weights(e: &mut Emitter, l: &Layout, (s, d): (Val, Val), seen: Val) -> Val {
    let n = e.lanes;
    let (zero, lanes) = (e.i64(0), e.i64(n));
    let inside = e.rem(seen, lanes);
    let whole = e.sub(seen, inside);
    let iota = e.iota(n);
    let inside = e.trunci(inside, Elem::I32);
    let inside = e.splat(inside, n);
    let hidden = e.cmp(Cmp::Ge, iota, inside);
    let load = |e: &mut Emitter, row: Val, at: Val| {
        let place = e.at(row, at, 4);
        e.load_raw(place, Ty::f32(n))
    };
    let store = |e: &mut Emitter, row: Val, at: Val, value: Val| {
        let place = e.at(row, at, 4);
        e.store_raw(place, value);
    };
    let (minus_inf, none) = (e.f32(f32::NEG_INFINITY, n), e.f32(0.0, n));
    // The vector with the first hidden key: what lies there beyond the seen keys is arbitrary.
    let last = load(e, s, whole);
    let last = e.select(hidden, minus_inf, last);
    let max = e.for_range(zero, whole, n, &[last], |e, at, max| {
        let score = load(e, s, at);
        vec![e.max_fast(score, max[0])]
    });
    let max = e.fold(max[0], Emitter::max_fast);
    let max = e.splat(max, n);
    let weigh = |e: &mut Emitter, score: Val| {
        let less = e.sub(score, max);
        math::exp_nonpositive(e, less)
    };
    let last = weigh(e, last);
    store(e, s, whole, last);
    let last_d = load(e, d, whole);
    let last_d = e.select(hidden, none, last_d);
    store(e, d, whole, last_d);
    let last_delta = e.mul(last, last_d);
    let sums = e.for_range(zero, whole, n, &[last, last_delta], |e, at, sums| {
        let score = load(e, s, at);
        let p = weigh(e, score);
        store(e, s, at, p);
        let dp = load(e, d, at);
        vec![e.add(sums[0], p), e.fma(p, dp, sums[1])]
    });
    let (sum, delta) = (e.fold_add(sums[0]), e.fold_add(sums[1]));
    let one = e.f32(1.0, 1);
    let inverse = e.div(one, sum);
    let delta = e.mul(delta, inverse);
    let delta = e.splat(delta, n);
    let end = e.add_const(whole, n);
    e.for_range(zero, end, n, &[], |e, at, _| {
        let (p, dp) = (load(e, s, at), load(e, d, at));
        let difference = e.sub(dp, delta);
        let ds = e.mul(p, difference);
        store(e, d, at, ds);
        vec![]
    });
    for vector in 1..hidden_vectors(l.tile, n) {
        let at = e.add_const(whole, vector * n);
        store(e, s, at, none);
        store(e, d, at, none);
    }
    inverse
}

/// `dk += dsᵀ q`, `dv += pᵀ dout`: tiles of keys by columns, the inner index a query that sees one of the keys.
fn add_to_positions(e: &mut Emitter, l: &Layout, block: &Block) {
    let zero = e.i64(0);
    let [scores, dscores, queries, douts, dkeys, dvalues] =
        [l.scores, l.dscores, l.queries, l.douts, l.dkeys, l.dvalues].map(|o| e.offset_const(e.scratch, o));
    e.for_range(zero, block.limit, l.tile.rows, &[], |e, key, _| {
        let row = e.sub(key, block.position);
        let row = e.max(row, zero);
        let inner = e.sub(block.count, row);
        for (left, right, sums) in [(dscores, queries, dkeys), (scores, douts, dvalues)] {
            let left = e.at(left, row, l.stride * 4);
            let left = Left { at: e.at(left, key, 4), stride: 1, step: l.stride };
            let right = e.at(right, row, l.dim * 4);
            let sums = e.at(sums, key, l.dim * 4);
            for columns in all_pieces(l.dim, e.lanes).chunks(l.tile.vectors) {
                let tile = l.tile.load(e, (sums, l.dim), columns);
                let tile = l.tile.multiply(e, left, (right, l.dim), inner, columns, tile);
                l.tile.store(e, tile, (sums, l.dim), columns);
            }
        }
        vec![]
    });
}

/// `dq += ds . k`: tiles of queries by columns, the inner index a key that one of the queries sees.
fn add_to_queries(e: &mut Emitter, a: &AttendGrad, l: &Layout, block: &Block) {
    let zero = e.i64(0);
    let [dscores, keys, dqueries] = [l.dscores, l.keys, l.dqueries].map(|o| e.offset_const(e.scratch, o));
    e.for_range(zero, block.limit, INNER_KEYS, &[], |e, key, _| {
        let first = block.first_row(e, l, key);
        let end = e.add_const(key, INNER_KEYS);
        let end = e.min(end, block.limit);
        for panel in panels(l, e.lanes) {
            let right = e.offset_const(keys, panel.first * a.context * 4);
            let right = e.at(right, key, panel.width * 4);
            let sums = e.offset_const(dqueries, panel.first * 4);
            e.for_range(first, block.rows, l.tile.rows, &[], |e, row, _| {
                let seen = e.add(block.position, row);
                let seen = e.add_const(seen, l.tile.rows);
                let end = e.min(end, seen);
                let inner = e.sub(end, key);
                let left = e.at(dscores, row, l.stride * 4);
                let left = Left { at: e.at(left, key, 4), stride: l.stride, step: 1 };
                let sums = e.at(sums, row, l.dim * 4);
                let tile = l.tile.load(e, (sums, l.dim), &panel.columns);
                let tile = l.tile.multiply(e, left, (right, panel.width), inner, &panel.columns, tile);
                l.tile.store(e, tile, (sums, l.dim), &panel.columns);
                vec![]
            });
        }
        vec![]
    });
}
