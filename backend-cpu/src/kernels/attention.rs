//! Attention of a chunk of several tokens (flash attention).
//!
//! Algorithm: a task is a batch row, a head and a block of `q_rows` queries, made by their chain and scaled in
//! scratch. It goes through the keys in blocks of `kv_block`, up to the last key that any of its queries sees, with
//! the online softmax of Milakov and Gimelshein: scores of the block, new maximum and sum of each row, then the
//! block's share of the result, the earlier share scaled down. Only blocks that cross the diagonal, or the end, are
//! masked.
//!
//! Tiling: both products are register-blocked, [`Tile::rows`] queries by a few vectors, the operand with queries
//! broadcast from scratch. For the scores, the block of keys is transposed into scratch first (vectors run over keys),
//! which costs about `lanes / 2 / q_rows` of the product; values are read in place (vectors run over columns), unless
//! several groups lie side by side, which a cache set holds few rows of: then the block is copied to scratch. Bound:
//! arithmetic, the two products plus about 20 instructions per vector of exponentials. `examples/attention_bench.rs`
//! on one Zen 3 thread, D = 64, S = 256 to 512, counting visible pairs only: 51 to 57 % of the multiply-add peak if
//! causal, 61 to 68 % if not.
use super::attention_tile::{Left, Tile, copy_rows, transpose};
use super::heads::{Attend, Token, all_pieces};
use crate::emit::{Cmp, Elem, Emitter, Error, Ty, Val, math};
use rdc_ir::program::{Kernel, KernelKind, Target};

/// Sizes, and byte offsets into scratch.
struct Layout {
    tile: Tile,
    /// Queries of a task.
    q_rows: usize,
    /// Keys of a block; `columns` of them with padding to whole tiles.
    kv_block: usize,
    columns: usize,
    dim: usize,
    queries: usize,
    keys: usize,
    scores: usize,
    /// A copy of the block's values, if they do not lie row after row.
    values: Option<usize>,
    sums: usize,
    maxima: usize,
    totals: usize,
    factors: usize,
    bytes: usize,
}

impl Layout {
    fn new(kernel: &Kernel, a: &Attend, lanes: usize) -> Result<Layout, Error> {
        let KernelKind::Attention { q_rows, kv_block } = kernel.kind else {
            return Err(Error::unsupported(&kernel.name, "a kernel of another kind than attention"));
        };
        if q_rows == 0 || kv_block == 0 {
            return Err(Error::unsupported(&kernel.name, "an empty tile"));
        }
        let tile = Tile::new(lanes);
        let (q_rows, kv_block) = (q_rows.min(a.steps), kv_block.min(a.context));
        let rows = q_rows.next_multiple_of(tile.rows);
        let columns = kv_block.next_multiple_of(tile.vectors * lanes);
        let dim = a.query.dim;
        let mut bytes = 0;
        let mut take = |floats: usize| {
            let at = bytes;
            bytes += (floats * 4).next_multiple_of(64);
            at
        };
        Ok(Layout {
            tile,
            q_rows,
            kv_block,
            columns,
            dim,
            queries: take(rows * dim),
            keys: take(dim * columns),
            scores: take(rows * columns),
            values: (a.values.stride != dim).then(|| take(kv_block * dim)),
            sums: take(rows * dim),
            maxima: take(rows),
            totals: take(rows),
            factors: take(rows),
            bytes,
        })
    }
}

/// Bytes of scratch per thread.
pub fn scratch(kernel: &Kernel, target: &Target) -> usize {
    Attend::new(kernel).and_then(|a| Ok(Layout::new(kernel, &a, target.lanes)?.bytes)).unwrap_or(0)
}

/// The kernel's MLIR module.
pub fn emit(target: &Target, kernel: &Kernel) -> Result<String, Error> {
    let a = Attend::new(kernel)?;
    if !a.updates.is_empty() {
        return Err(Error::unsupported(&kernel.name, "cache updates with an attention of several tokens"));
    }
    let layout = Layout::new(kernel, &a, target.lanes)?;
    let mut e = Emitter::new(&kernel.name, a.pointers, target.lanes);
    let blocks = a.steps.div_ceil(layout.q_rows);
    e.tasks(|e, task| {
        let (slab, block) = e.div_rem(task, blocks);
        let (batch, head) = e.div_rem(slab, a.query.heads);
        let first = e.mul_const(block, layout.q_rows);
        block_of_queries(e, &a, &layout, (batch, head, first));
    });
    Ok(e.finish())
}

/// Queries `first ..` of one head.
fn block_of_queries(e: &mut Emitter, a: &Attend, l: &Layout, (batch, head, first): (Val, Val, Val)) {
    let [queries, keys, scores, sums] = [l.queries, l.keys, l.scores, l.sums].map(|o| e.offset_const(e.scratch, o));
    let (all, most) = (e.i64(a.steps), e.i64(l.q_rows));
    let left = e.sub(all, first);
    let count = e.min(left, most);
    // Rows of padding repeat the last query: their results are finite and unused.
    let (end, one) = (e.add(first, count), e.i64(1));
    let last_row = e.sub(end, one);
    let tile_rows = e.i64(l.tile.rows);
    let whole = e.add_const(count, l.tile.rows - 1);
    let padding = e.rem(whole, tile_rows);
    let rows = e.sub(whole, padding);
    let zero = e.i64(0);
    e.each(zero, rows, |e, row| {
        let step = e.add(first, row);
        let step = e.min(step, last_row);
        let token = Token::of(e, batch, step, a.steps);
        let to = e.at(queries, row, l.dim * 4);
        a.query.emit(e, token, head, Some(a.scale), to);
        for (column, lanes) in all_pieces(l.dim, e.lanes) {
            let place = e.at(sums, row, l.dim * 4);
            let place = e.offset_const(place, column * 4);
            let none = e.f32(0.0, lanes);
            e.store_raw(place, none);
        }
        let (minus_inf, none) = (e.f32(f32::NEG_INFINITY, 1), e.f32(0.0, 1));
        for (offset, value) in [(l.maxima, minus_inf), (l.totals, none)] {
            let place = e.offset_const(e.scratch, offset);
            let place = e.at(place, row, 4);
            e.store_raw(place, value);
        }
    });
    // The position of the block's first query, and the end of the keys that its last one sees.
    let context = e.i64(a.context);
    let (position, limit) = if a.causal {
        let token = Token { index: first, batch, step: first };
        let position = token.position(e, a.pos);
        let position = e.max(position, zero);
        let end = e.add(position, count);
        (position, e.min(end, context))
    } else {
        (context, context)
    };
    let group = e.div_rem(head, a.heads_per_group()).0;
    let (key_slab, value_slab) = (a.keys.slab(e, batch, group), a.values.slab(e, batch, group));
    e.for_range(zero, limit, l.kv_block, &[], |e, key, _| {
        let (left, most) = (e.sub(limit, key), e.i64(l.kv_block));
        let visible = e.min(left, most);
        let width = l.tile.vectors * e.lanes;
        let (whole, width_value) = (e.add_const(visible, width - 1), e.i64(width));
        let padding = e.rem(whole, width_value);
        let columns = e.sub(whole, padding);
        let key_rows = e.at(key_slab, key, a.keys.stride * 4);
        transpose(e, l.dim, (key_rows, a.keys.stride), (keys, l.columns), visible, columns);
        multiply(e, l, Product::Scores { queries, keys, scores }, rows, columns);
        // The first query sees the whole block, and the block fills its tiles: nothing to mask.
        let end = e.add(key, columns);
        let seen = e.add(position, one);
        let below_diagonal = e.cmp(Cmp::Le, end, seen);
        let filled = e.cmp(Cmp::Eq, columns, visible);
        let clear = e.and(below_diagonal, filled);
        let softmax = |e: &mut Emitter, masked: bool| {
            // Row r sees this many keys of the block, and none beyond `visible`.
            let seen = e.sub(seen, key);
            online_softmax(e, l, scores, rows, columns, masked.then_some((seen, visible)));
            vec![]
        };
        e.branch(clear, &[], |e| softmax(e, false), |e| softmax(e, true));
        let mut value_rows = e.at(value_slab, key, a.values.stride * 4);
        if let Some(copy) = l.values {
            let copy = e.offset_const(e.scratch, copy);
            copy_rows(e, l.dim, (value_rows, a.values.stride), (copy, l.dim), visible);
            value_rows = copy;
        }
        multiply(e, l, Product::Values { scores, values: value_rows, sums }, rows, visible);
        vec![]
    });
    let totals = e.offset_const(e.scratch, l.totals);
    e.each(zero, count, |e, row| {
        let place = e.at(totals, row, 4);
        let total = e.load_raw(place, Ty::f32(1));
        let one = e.f32(1.0, 1);
        let inverse = e.div(one, total);
        let step = e.add(first, row);
        let token = Token::of(e, batch, step, a.steps);
        let slab = e.mul_const(token.index, a.query.heads);
        let slab = e.add(slab, head);
        let to = e.at(e.arg(a.result), slab, l.dim * 4);
        let from = e.at(sums, row, l.dim * 4);
        for (column, lanes) in all_pieces(l.dim, e.lanes) {
            let place = e.offset_const(from, column * 4);
            let value = e.load_raw(place, Ty::f32(lanes));
            let inverse = e.splat(inverse, lanes);
            let value = e.mul(value, inverse);
            let place = e.offset_const(to, column * 4);
            e.store_raw(place, value);
        }
    });
}

/// The two matrix products; addresses in scratch, but `values`.
#[derive(Clone, Copy)]
enum Product {
    /// `scores = queries . keys`
    Scores { queries: Val, keys: Val, scores: Val },
    /// `sums = sums * factors + scores . values`
    Values { scores: Val, values: Val, sums: Val },
}

/// Emits a product over `rows` rows. `extent` is the number of columns for the scores, the inner size for the values.
/// Columns go outside, so that a panel of the right operand stays in the first-level cache while the (smaller) row tiles
/// of the left one stream past.
fn multiply(e: &mut Emitter, l: &Layout, product: Product, rows: Val, extent: Val) {
    let zero = e.i64(0);
    let n = e.lanes;
    match product {
        Product::Scores { queries, keys, scores } => {
            let columns: Vec<(usize, usize)> = (0..l.tile.vectors).map(|v| (v * n, n)).collect();
            e.for_range(zero, extent, l.tile.vectors * n, &[], |e, column, _| {
                let right = e.at(keys, column, 4);
                let out = e.at(scores, column, 4);
                e.for_range(zero, rows, l.tile.rows, &[], |e, row, _| {
                    let left = e.at(queries, row, l.dim * 4);
                    let left = Left { at: left, stride: l.dim, step: 1 };
                    let inner = e.i64(l.dim);
                    let none = l.tile.zeros(e, &columns);
                    let tile = l.tile.multiply(e, left, (right, l.columns), inner, &columns, none);
                    let out = e.at(out, row, l.columns * 4);
                    l.tile.store(e, tile, (out, l.columns), &columns);
                    vec![]
                });
                vec![]
            });
        }
        Product::Values { scores, values, sums } => {
            for columns in all_pieces(l.dim, n).chunks(l.tile.vectors) {
                e.for_range(zero, rows, l.tile.rows, &[], |e, row, _| {
                    let left = e.at(scores, row, l.columns * 4);
                    let out = e.at(sums, row, l.dim * 4);
                    let factors = e.offset_const(e.scratch, l.factors);
                    let factors = e.at(factors, row, 4);
                    let mut start = Vec::new();
                    for r in 0..l.tile.rows {
                        let place = e.offset_const(factors, r * 4);
                        let factor = e.load_raw(place, Ty::f32(1));
                        for &(column, lanes) in columns {
                            let place = e.offset_const(out, (r * l.dim + column) * 4);
                            let value = e.load_raw(place, Ty::f32(lanes));
                            let factor = e.splat(factor, lanes);
                            start.push(e.mul(value, factor));
                        }
                    }
                    let left = Left { at: left, stride: l.columns, step: 1 };
                    let tile = l.tile.multiply(e, left, (values, l.dim), extent, columns, start);
                    l.tile.store(e, tile, (out, l.dim), columns);
                    vec![]
                });
            }
        }
    }
}

/// Turns a block of scores into weights and brings each row's maximum, total and factor up to date. `mask` is the number
/// of keys that row 0 sees (each further row sees one more) and the number there are.
fn online_softmax(e: &mut Emitter, l: &Layout, scores: Val, rows: Val, columns: Val, mask: Option<(Val, Val)>) {
    let n = e.lanes;
    let zero = e.i64(0);
    let iota = e.iota(n);
    let [maxima, totals, factors] = [l.maxima, l.totals, l.factors].map(|o| e.offset_const(e.scratch, o));
    e.each(zero, rows, |e, row| {
        let line = e.at(scores, row, l.columns * 4);
        let seen = mask.map(|(first, visible)| {
            let seen = e.add(first, row);
            let seen = e.min(seen, visible);
            let seen = e.trunci(seen, Elem::I32);
            e.splat(seen, n)
        });
        let minus_inf = e.f32(f32::NEG_INFINITY, n);
        let highest = e.for_range(zero, columns, n, &[minus_inf], |e, column, carried| {
            let place = e.at(line, column, 4);
            let mut score = e.load_raw(place, Ty::f32(n));
            if let Some(seen) = seen {
                let base = e.trunci(column, Elem::I32);
                let base = e.splat(base, n);
                let index = e.add(base, iota);
                let hidden = e.cmp(Cmp::Ge, index, seen);
                score = e.select(hidden, minus_inf, score);
                e.store_raw(place, score);
            }
            vec![e.max_fast(score, carried[0])]
        });
        let highest = e.fold(highest[0], Emitter::max_fast);
        let max_place = e.at(maxima, row, 4);
        let old = e.load_raw(max_place, Ty::f32(1));
        // Key 0 is in the first block and every query sees it, so the maximum is finite from then on.
        let max = e.max_fast(highest, old);
        e.store_raw(max_place, max);
        let change = e.sub(old, max);
        let factor = math::exp_nonpositive(e, change);
        let place = e.at(factors, row, 4);
        e.store_raw(place, factor);
        let wide = e.splat(max, n);
        let none = e.f32(0.0, n);
        let sum = e.for_range(zero, columns, n, &[none], |e, column, carried| {
            let place = e.at(line, column, 4);
            let score = e.load_raw(place, Ty::f32(n));
            let less = e.sub(score, wide);
            let weight = math::exp_nonpositive(e, less);
            e.store_raw(place, weight);
            vec![e.add(carried[0], weight)]
        });
        let sum = e.fold_add(sum[0]);
        let place = e.at(totals, row, 4);
        let total = e.load_raw(place, Ty::f32(1));
        let total = e.fma(total, factor, sum);
        e.store_raw(place, total);
    });
}
