//! Attention of a chunk of several tokens (flash attention).
//!
//! Algorithm: a task is a batch row, a head and a block of `q_rows` queries, made by their chain and scaled in
//! scratch. It goes through the keys in blocks of `kv_block`, up to the last key that any of its queries sees, with
//! the online softmax of Milakov and Gimelshein: scores of the block, new maximum and sum of each row, then the
//! block's share of the result, the earlier share scaled down. If causal, tiles above the diagonal are left out, rows end
//! with the last key that their query sees, and so does the second product with that of a tile's last query. Rows are weighed
//! several at a time, so that the folds of one do not wait for another's; between them, memory is asked for the next head's.
//!
//! Tiling: both products are register-blocked, a [`Tile`] of queries by a few vectors, the operand with queries broadcast
//! from scratch. For the scores, the block of keys is transposed into scratch first (vectors run over keys), which costs
//! about `lanes / 2 / q_rows` of the product; for the result, values are copied as panels of a tile's columns. Bound:
//! arithmetic, the two products plus about 17 instructions per vector of exponentials. `examples/attention_bench.rs`
//! on one Zen 3 thread, causal, S = 128, 256, 512, counting visible pairs only, in percent of the multiply-add peak: tiles
//! (96, 128) 48, 55, 57 for D = 32 and 57, 66, 66 for D = 64 (72 if not causal); tiles (48, 64) 44, 50, 54 and 54, 62, 64.
use super::attention_tile::{Block, Left, Scratch, Seen, Tile, load, scale_row, store};
use super::heads::{Token, later, make_head, prefetch_operands, prefetch_row, slab};
use super::panels::Strip;
use super::unsupported;
use crate::emit::rowops::clear_row;
use crate::emit::{Cmp, Emitter, Error, Ty, Val, math};
use rdc_ir::program::body::Attention;
use rdc_ir::program::{Kernel, Tiling};
use rdc_passes::tile::Cpu;

/// Sizes, and byte offsets into scratch.
struct Layout {
    tile: Tile,
    /// Queries of a task.
    q_rows: usize,
    /// Keys of a block, whole tiles.
    kv_block: usize,
    /// Floats of a row of scores.
    stride: usize,
    dim: usize,
    queries: usize,
    keys: usize,
    values: usize,
    scores: usize,
    sums: usize,
    maxima: usize,
    totals: usize,
    factors: usize,
    bytes: usize,
}

impl Layout {
    fn new(kernel: &Kernel, a: &Attention, lanes: usize) -> Result<Layout, Error> {
        let Tiling::Queries { q_rows: q_rows @ 1.., kv_block: kv_block @ 1.. } = kernel.tiling else {
            return unsupported(kernel, "an attention that is cut otherwise than into queries");
        };
        let tile = Tile::new(lanes);
        let q_rows = q_rows.min(a.heads.steps);
        let kv_block = kv_block.min(a.heads.context).next_multiple_of(tile.width);
        let rows = q_rows.next_multiple_of(tile.rows);
        let stride = tile.score_stride(kv_block, lanes);
        let dim = a.heads.query.dim;
        let mut scratch = Scratch::default();
        let mut take = |floats| scratch.take(floats);
        Ok(Layout {
            tile,
            q_rows,
            kv_block,
            stride,
            dim,
            queries: take(rows * dim),
            keys: take(dim * kv_block),
            values: take(dim * kv_block),
            scores: take(rows * stride),
            sums: take(rows * dim),
            maxima: take(rows),
            totals: take(rows),
            factors: take(rows),
            bytes: scratch.bytes,
        })
    }
}

/// Bytes of scratch per thread.
pub fn scratch(kernel: &Kernel, a: &Attention, cpu: &Cpu) -> Result<usize, Error> {
    Ok(Layout::new(kernel, a, cpu.lanes)?.bytes)
}

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, a: &Attention) -> Result<String, Error> {
    let layout = Layout::new(kernel, a, cpu.lanes)?;
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    let blocks = a.heads.steps.div_ceil(layout.q_rows);
    e.tasks(|e, task| {
        let (slab, block) = e.div_rem(task, blocks);
        let (batch, head) = e.div_rem(slab, a.heads.query.heads);
        let first = e.mul_const(block, layout.q_rows);
        block_of_queries(e, a, &layout, (batch, head, first));
    });
    Ok(e.finish())
}

/// Queries `first ..` of one head.
fn block_of_queries(e: &mut Emitter, a: &Attention, l: &Layout, (batch, head, first): (Val, Val, Val)) {
    let [queries, keys, scores, sums] = [l.queries, l.keys, l.scores, l.sums].map(|o| e.offset_const(e.scratch, o));
    let [maxima, totals] = [l.maxima, l.totals].map(|o| e.offset_const(e.scratch, o));
    let (zero, all, most) = (e.i64(0), e.i64(a.heads.steps), e.i64(l.q_rows));
    let left = e.sub(all, first);
    let count = e.min(left, most);
    e.each(zero, count, |e, row| {
        let step = e.add(first, row);
        let token = Token::of(e, batch, step, a.heads.steps);
        let to = e.at(queries, row, l.dim * 4);
        make_head(e, &a.heads.query, token, head, Some(a.heads.scale.0), to);
        let sums = e.at(sums, row, l.dim * 4);
        clear_row(e, l.dim, sums);
        let (minus_inf, none) = (e.f32(f32::NEG_INFINITY, 1), e.f32(0.0, 1));
        for (from, value) in [(maxima, minus_inf), (totals, none)] {
            let place = e.at(from, row, 4);
            e.store_raw(place, value);
        }
    });
    let token = Token { index: first, batch, step: first };
    let position = a.heads.causal.then(|| token.position(e, a.heads.pos));
    let block = Block::new(e, l.tile, count, position, a.heads.context);
    let group = e.div_rem(head, a.heads.heads_per_group()).0;
    let (key_slab, value_slab) = (slab(e, &a.heads.keys, batch, group), slab(e, &a.heads.values, batch, group));
    let query = first;
    e.for_range(zero, block.limit, l.kv_block, &[], |e, key, _| {
        let block = block.beginning_at(e, key, l.kv_block);
        let begins = e.cmp(Cmp::Eq, key, zero);
        let end = e.add(key, block.limit);
        l.tile.transpose(e, (key_slab, a.heads.keys, a.heads.context), (key, end), l.dim, keys);
        block.scores(e, l.tile, l.dim, (queries, keys), (scores, l.stride));
        let first = block.first_row(e, l.tile, zero);
        Seen::each(e, (first, count), &block, |e, row, seen| {
            online_softmax(e, l, row, seen);
            e.when(begins, |e| {
                for i in 0..seen.rows() {
                    let step = e.add(query, row);
                    let step = e.add_const(step, i);
                    ask_for_next(e, a, l, (batch, head, step));
                }
            });
        });
        let value_rows = e.at(value_slab, key, a.heads.values.stride * 4);
        add_values(e, a, l, &block, value_rows);
        vec![]
    });
    e.each(zero, count, |e, row| {
        let place = e.at(totals, row, 4);
        let total = e.load_raw(place, Ty::f32(1));
        let one = e.f32(1.0, 1);
        let inverse = e.div(one, total);
        let step = e.add(first, row);
        let token = Token::of(e, batch, step, a.heads.steps);
        let slab = e.mul_const(token.index, a.heads.query.heads);
        let slab = e.add(slab, head);
        let to = e.at(e.arg(a.result), slab, l.dim * 4);
        let from = e.at(sums, row, l.dim * 4);
        scale_row(e, l.dim, (from, to), inverse);
    });
}

/// Asks memory for the rows at token `step` of the head after this one, which the thread takes next: they lie too far apart for the
/// machine to see them coming.
fn ask_for_next(e: &mut Emitter, a: &Attention, l: &Layout, here: (Val, Val, Val)) {
    let (token, head) = later(e, &a.heads, here, 1);
    prefetch_operands(e, &a.heads, token, head);
    let slab = e.mul_const(token.index, a.heads.query.heads);
    let slab = e.add(slab, head);
    let row = e.at(e.arg(a.result), slab, l.dim * 4);
    prefetch_row(e, l.dim, row);
}

/// Turns the scores of the keys that rows from `row` on see into weights, with zeros for the hidden ones that are read, and brings the
/// rows' maxima, totals and factors up to date.
fn online_softmax(e: &mut Emitter, l: &Layout, row: Val, seen: &Seen) {
    let (n, zero) = (e.lanes, e.i64(0));
    let rows: Vec<Val> = (0..seen.rows()).map(|i| e.add_const(row, i)).collect();
    let of_rows = |e: &mut Emitter, offset: usize, bytes: usize| -> Vec<Val> {
        let from = e.offset_const(e.scratch, offset);
        rows.iter().map(|&row| e.at(from, row, bytes)).collect()
    };
    let lines = of_rows(e, l.scores, l.stride * 4);
    let [max_places, total_places, factor_places] = [l.maxima, l.totals, l.factors].map(|offset| of_rows(e, offset, 4));
    let last = seen.last(e, &lines, f32::NEG_INFINITY);
    let highest = seen.max(e, &lines, &last);
    let (mut max, mut factors) = (Vec::new(), Vec::new());
    for (i, highest) in highest.into_iter().enumerate() {
        let old = e.load_raw(max_places[i], Ty::f32(1));
        // Key 0 is in the first block and every query sees it, so the maximum is finite from then on.
        let new = e.max_fast(highest, old);
        e.store_raw(max_places[i], new);
        let change = e.sub(old, new);
        let factor = math::exp_nonpositive(e, change);
        e.store_raw(factor_places[i], factor);
        max.push(e.splat(new, n));
        factors.push(factor);
    }
    let weigh = |e: &mut Emitter, row: usize, at: Val, score: Val| {
        let less = e.sub(score, max[row]);
        let weight = math::exp_nonpositive(e, less);
        store(e, lines[row], at, weight);
        weight
    };
    let last: Vec<Val> = last.into_iter().enumerate().map(|(row, score)| weigh(e, row, seen.before, score)).collect();
    let sums = e.for_range(zero, seen.before, n, &last, |e, at, sums| {
        let add = |(row, &sum): (usize, &Val)| {
            let score = load(e, lines[row], at);
            let weight = weigh(e, row, at, score);
            e.add(sum, weight)
        };
        sums.iter().enumerate().map(add).collect()
    });
    seen.clear(e, l.tile, &lines);
    for (i, sum) in sums.into_iter().enumerate() {
        let sum = e.fold_add(sum);
        let total = e.load_raw(total_places[i], Ty::f32(1));
        let total = e.fma(total, factors[i], sum);
        e.store_raw(total_places[i], total);
    }
}

/// `sums = sums * factors + weights . values` for the rows that see a key of the block. Panels of values go outside, so that
/// one stays in the first-level cache while the row tiles stream past.
fn add_values(e: &mut Emitter, a: &Attention, l: &Layout, block: &Block, value_rows: Val) {
    let [scores, values, sums, factors] = [l.scores, l.values, l.sums, l.factors].map(|o| e.offset_const(e.scratch, o));
    let zero = e.i64(0);
    let first = block.first_row(e, l.tile, zero);
    l.tile.panels(e, l.dim, |e, panel| {
        let from = e.at(value_rows, panel.first, 4);
        let strip = Strip { from, stride: a.heads.values.stride * 4, transpose: false, columns: panel.width };
        let right = e.at(values, panel.first, l.kv_block * 4);
        strip.copy(e, block.limit, right, panel.width);
        let out = e.at(sums, panel.first, 4);
        e.for_range(first, block.rows, l.tile.rows, &[], |e, row, _| {
            let out = e.at(out, row, l.dim * 4);
            let factors = e.at(factors, row, 4);
            let mut tile = l.tile.load(e, (out, l.dim), &panel.columns);
            for (r, sums) in tile.chunks_exact_mut(panel.columns.len()).enumerate() {
                let place = e.offset_const(factors, r * 4);
                let factor = e.load_raw(place, Ty::f32(1));
                for sum in sums {
                    let factor = e.splat(factor, sum.lanes());
                    *sum = e.mul(*sum, factor);
                }
            }
            let left = Left { at: e.at(scores, row, l.stride * 4), stride: l.stride, step: 1 };
            let inner = block.seen_by_tile(e, l.tile, row);
            let tile = l.tile.multiply(e, left, (right, panel.width), inner, &panel.columns, tile);
            l.tile.store(e, tile, (out, l.dim), &panel.columns);
            vec![]
        });
    });
}
