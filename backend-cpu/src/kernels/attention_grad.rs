//! The derivative of attention.
//!
//! Algorithm: a task is a batch row and a group, so that no two tasks add to the same keys. For each head of the group and
//! each block of `q_rows` queries, over all keys that one of them sees: scores `s = scale q . kᵀ` and `dp = dout . vᵀ`, the
//! softmax `p`, `delta = sum of p dp` and `ds = p (dp - delta)`, some rows at a time and in place, then `dv += pᵀ dout`,
//! `dk += scale dsᵀ q` and `dq = scale ds . k`. Rows of `p` and `ds` keep a factor `1 / sum`, which is applied to the rows
//! of `dout`, `q` and `dq` instead. What leaves scratch is turned back on the way, if a rotation follows, and goes where its
//! [`HeadTarget`] says. While a row's weights are computed, memory is asked for the rows that the next task reads and writes.
//!
//! Tiling: the five products are register-blocked as in `attention_tile.rs`. Keys and values are transposed once per
//! task into panels of a tile's width, keys are also copied as panels, and the sums `dk`, `dv` stay in scratch until the
//! task's end. If causal, tiles above the diagonal are left out, and the inner loops of the last three products begin or
//! end at it. Bound: arithmetic, the five products plus about 25 instructions per vector of weights.
//! `examples/attention_bench.rs` on one Zen 3 thread, causal, S = 128, 256, 512, blocks of 48 queries, counting visible pairs
//! only: 59, 66, 68 % of the multiply-add peak for D = 32, 65, 73, 73 % for D = 64; about 61 % for S = 4096, whose scratch
//! of 6.5 MB leaves the second-level cache. Blocks of 96 do the same within the noise.
use super::attention_tile::{Block, Left, Scratch, Seen, Tile, load, scale_row, store};
use super::heads::{Token, later, make_head, prefetch_head, prefetch_operands, prefetch_target, put_head, slab};
use super::panels::Strip;
use super::unsupported;
use crate::emit::rowops::clear_row;
use crate::emit::{Emitter, Error, Ty, Val, math};
use rdc_ir::program::body::{AttentionGrad, HeadTarget};
use rdc_ir::program::{Kernel, Tiling};
use rdc_passes::tile::Cpu;

/// Keys of an inner block of `ds . k`: a panel of them stays in the first-level cache.
const INNER_KEYS: usize = 128;

/// Sizes, and byte offsets into scratch.
struct Layout {
    tile: Tile,
    /// Queries of a block.
    q_rows: usize,
    dim: usize,
    /// Floats of a row of scores.
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
    fn new(kernel: &Kernel, a: &AttentionGrad, lanes: usize) -> Result<Layout, Error> {
        let Tiling::Queries { q_rows: q_rows @ 1.., .. } = kernel.tiling else {
            return unsupported(kernel, "the derivative of an attention that is cut otherwise than into queries");
        };
        let tile = Tile::new(lanes);
        let q_rows = q_rows.min(a.heads.steps);
        let rows = q_rows.next_multiple_of(tile.rows);
        let dim = a.heads.query.dim;
        let stride = tile.score_stride(a.heads.context, lanes);
        let positions = a.heads.context.next_multiple_of(tile.rows);
        let transposed = a.heads.context.next_multiple_of(tile.width) * dim;
        let mut scratch = Scratch::default();
        let mut take = |floats| scratch.take(floats);
        Ok(Layout {
            tile,
            q_rows,
            dim,
            stride,
            keys_t: take(transposed),
            values_t: take(transposed),
            keys: take(a.heads.context * dim),
            queries: take(rows * dim),
            douts: take(rows * dim),
            dqueries: take(rows * dim),
            scores: take(rows * stride),
            dscores: take(rows * stride),
            inverses: take(rows),
            dkeys: take(positions * dim),
            dvalues: take(positions * dim),
            bytes: scratch.bytes,
        })
    }
}

/// Bytes of scratch per thread.
pub fn scratch(kernel: &Kernel, a: &AttentionGrad, cpu: &Cpu) -> Result<usize, Error> {
    Ok(Layout::new(kernel, a, cpu.lanes)?.bytes)
}

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, a: &AttentionGrad) -> Result<String, Error> {
    let l = Layout::new(kernel, a, cpu.lanes)?;
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    e.tasks(|e, task| {
        let (batch, group) = e.div_rem(task, a.heads.groups);
        let context = e.i64(a.heads.context);
        let [keys_t, values_t, keys] = [l.keys_t, l.values_t, l.keys].map(|o| e.offset_const(e.scratch, o));
        let (key_slab, value_slab) = (slab(e, &a.heads.keys, batch, group), slab(e, &a.heads.values, batch, group));
        let zero = e.i64(0);
        l.tile.transpose(e, (key_slab, a.heads.keys, a.heads.context), (zero, context), l.dim, keys_t);
        l.tile.transpose(e, (value_slab, a.heads.values, a.heads.context), (zero, context), l.dim, values_t);
        l.tile.panels(e, l.dim, |e, panel| {
            let (from, to) = (e.at(key_slab, panel.first, 4), e.at(keys, panel.first, a.heads.context * 4));
            let strip = Strip { from, stride: a.heads.keys.stride * 4, transpose: false, columns: panel.width };
            strip.copy(e, context, to, panel.width);
        });
        let sums = e.offset_const(e.scratch, l.dkeys);
        let floats = e.i64((l.bytes - l.dkeys) / 4);
        e.for_range(zero, floats, e.lanes, &[], |e, at, _| {
            let none = e.f32(0.0, e.lanes);
            store(e, sums, at, none);
            vec![]
        });
        e.repeat(a.heads.heads_per_group(), |e, h| {
            let head = e.mul_const(group, a.heads.heads_per_group());
            let head = e.add(head, h);
            let steps = e.i64(a.heads.steps);
            e.for_range(zero, steps, l.q_rows, &[], |e, first, _| {
                block_of_queries(e, a, &l, (batch, head, first));
                vec![]
            });
        });
        let [_, dkeys, dvalues] = &a.targets;
        for (target, from) in [(dkeys, l.dkeys), (dvalues, l.dvalues)] {
            let Some(target) = target else { continue };
            let from = e.offset_const(e.scratch, from);
            e.each(zero, context, |e, step| {
                let token = Token::of(e, batch, step, a.heads.context);
                let from = e.at(from, step, l.dim * 4);
                put_head(e, target, token, group, from, None);
            });
        }
    });
    Ok(e.finish())
}

/// Adds the shares of queries `first ..` of one head to the sums, and writes their `dq`.
fn block_of_queries(e: &mut Emitter, a: &AttentionGrad, l: &Layout, (batch, head, first): (Val, Val, Val)) {
    let (zero, steps, most) = (e.i64(0), e.i64(a.heads.steps), e.i64(l.q_rows));
    let left = e.sub(steps, first);
    let count = e.min(left, most);
    let token = Token { index: first, batch, step: first };
    let position = a.heads.causal.then(|| token.position(e, a.heads.pos));
    let block = Block::new(e, l.tile, count, position, a.heads.context);
    let [queries, douts, dqueries] = [l.queries, l.douts, l.dqueries].map(|o| e.offset_const(e.scratch, o));
    let [scores, dscores] = [l.scores, l.dscores].map(|o| e.offset_const(e.scratch, o));
    let [keys_t, values_t] = [l.keys_t, l.values_t].map(|o| e.offset_const(e.scratch, o));
    e.each(zero, count, |e, row| {
        let step = e.add(first, row);
        let token = Token::of(e, batch, step, a.heads.steps);
        let to = e.at(queries, row, l.dim * 4);
        make_head(e, &a.heads.query, token, head, Some(a.heads.scale.0), to);
        let to = e.at(douts, row, l.dim * 4);
        make_head(e, &a.dout, token, head, None, to);
        let to = e.at(dqueries, row, l.dim * 4);
        clear_row(e, l.dim, to);
    });
    block.scores(e, l.tile, l.dim, (queries, keys_t), (scores, l.stride));
    block.scores(e, l.tile, l.dim, (douts, values_t), (dscores, l.stride));
    let inverses = e.offset_const(e.scratch, l.inverses);
    // No query sees beyond the block's limit, and a constant bound leaves a register free.
    let bounded = Block { limit: e.i64(a.heads.context), ..block };
    Seen::each(e, (zero, count), &bounded, |e, row, seen| {
        let rows: Vec<Val> = (0..seen.rows()).map(|i| e.add_const(row, i)).collect();
        let lines =
            |e: &mut Emitter, from: Val| rows.iter().map(|&row| e.at(from, row, l.stride * 4)).collect::<Vec<_>>();
        let (s, d) = (lines(e, scores), lines(e, dscores));
        let weights = weights(e, l, (&s, &d), seen);
        for (&row, inverse) in rows.iter().zip(weights) {
            let place = e.at(inverses, row, 4);
            e.store_raw(place, inverse);
            for from in [queries, douts] {
                let row = e.at(from, row, l.dim * 4);
                scale_row(e, l.dim, (row, row), inverse);
            }
            let step = e.add(first, row);
            ask_for_next(e, a, (batch, head, step));
        }
    });
    add_to_positions(e, l, &block);
    add_to_queries(e, a, l, &block);
    let Some(target) = &a.targets[0] else { return };
    e.each(zero, count, |e, row| {
        let step = e.add(first, row);
        let token = Token::of(e, batch, step, a.heads.steps);
        let from = e.at(dqueries, row, l.dim * 4);
        let place = e.at(inverses, row, 4);
        let inverse = e.load_raw(place, Ty::f32(1));
        let scale = e.f32(a.heads.scale.0 as f32, 1);
        let factor = e.mul(inverse, scale);
        put_head(e, target, token, head, from, Some(factor));
    });
}

/// Asks memory for the rows at token `step` that the head in this one's place in the next task reads and writes: they lie too far
/// apart for the machine to see them coming.
fn ask_for_next(e: &mut Emitter, a: &AttentionGrad, here: (Val, Val, Val)) {
    let (token, head) = later(e, &a.heads, here, a.heads.heads_per_group());
    prefetch_operands(e, &a.heads, token, head);
    prefetch_head(e, &a.dout, token, head);
    let ask = |e: &mut Emitter, target: &Option<HeadTarget>, head: Val| {
        if let Some(target) = target {
            prefetch_target(e, target, token, head);
        }
    };
    let [dqueries, dkeys, dvalues] = &a.targets;
    ask(e, dqueries, head);
    let group = e.div_rem(head, a.heads.heads_per_group()).0;
    ask(e, dkeys, group);
    ask(e, dvalues, group);
}

/// Turns rows of scores s into `p = e^(s - max)` and rows dp into `p (dp - delta)`, for the keys seen, and zeros for the hidden ones
/// that are read. Returns the reciprocals of the sums of `p`.
fn weights(e: &mut Emitter, l: &Layout, (s, d): (&[Val], &[Val]), seen: &Seen) -> Vec<Val> {
    let (n, zero, count) = (e.lanes, e.i64(0), seen.rows());
    let last = seen.last(e, s, f32::NEG_INFINITY);
    let max = seen.max(e, s, &last);
    let max: Vec<Val> = max.into_iter().map(|max| e.splat(max, n)).collect();
    let weigh = |e: &mut Emitter, row: usize, at: Val, score: Val| {
        let less = e.sub(score, max[row]);
        let p = math::exp_nonpositive(e, less);
        store(e, s[row], at, p);
        p
    };
    let last: Vec<Val> = last.into_iter().enumerate().map(|(row, score)| weigh(e, row, seen.before, score)).collect();
    let last_d = seen.last(e, d, 0.0);
    d.iter().zip(&last_d).for_each(|(&row, &dp)| store(e, row, seen.before, dp));
    let deltas = last.iter().zip(last_d).map(|(&p, dp)| e.mul(p, dp)).collect();
    let start = [last, deltas].concat();
    let sums = e.for_range(zero, seen.before, n, &start, |e, at, sums| {
        let (mut totals, mut deltas) = (Vec::new(), Vec::new());
        for row in 0..count {
            let (score, dp) = (load(e, s[row], at), load(e, d[row], at));
            let p = weigh(e, row, at, score);
            totals.push(e.add(sums[row], p));
            deltas.push(e.fma(p, dp, sums[count + row]));
        }
        [totals, deltas].concat()
    });
    let sums: Vec<Val> = sums.into_iter().map(|sum| e.fold_add(sum)).collect();
    let one = e.f32(1.0, 1);
    let inverses: Vec<Val> = sums[..count].iter().map(|&sum| e.div(one, sum)).collect();
    let mean = |(&delta, &inverse): (&Val, &Val)| {
        let delta = e.mul(delta, inverse);
        e.splat(delta, n)
    };
    let deltas: Vec<Val> = sums[count..].iter().zip(&inverses).map(mean).collect();
    let end = e.add_const(seen.before, n);
    e.for_range(zero, end, n, &[], |e, at, _| {
        for row in 0..count {
            let (p, dp) = (load(e, s[row], at), load(e, d[row], at));
            let difference = e.sub(dp, deltas[row]);
            let ds = e.mul(p, difference);
            store(e, d[row], at, ds);
        }
        vec![]
    });
    seen.clear(e, l.tile, s);
    seen.clear(e, l.tile, d);
    inverses
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
            l.tile.panels(e, l.dim, |e, panel| {
                let (right, sums) = (e.at(right, panel.first, 4), e.at(sums, panel.first, 4));
                let tile = l.tile.load(e, (sums, l.dim), &panel.columns);
                let tile = l.tile.multiply(e, left, (right, l.dim), inner, &panel.columns, tile);
                l.tile.store(e, tile, (sums, l.dim), &panel.columns);
            });
        }
        vec![]
    });
}

/// `dq += ds . k`: tiles of queries by columns, the inner index a key that one of the queries sees.
fn add_to_queries(e: &mut Emitter, a: &AttentionGrad, l: &Layout, block: &Block) {
    let zero = e.i64(0);
    let [dscores, keys, dqueries] = [l.dscores, l.keys, l.dqueries].map(|o| e.offset_const(e.scratch, o));
    e.for_range(zero, block.limit, INNER_KEYS, &[], |e, key, _| {
        let block = block.beginning_at(e, key, INNER_KEYS);
        let first = block.first_row(e, l.tile, zero);
        l.tile.panels(e, l.dim, |e, panel| {
            let right = e.at(keys, panel.first, a.heads.context * 4);
            let right = e.at(right, key, panel.width * 4);
            let sums = e.at(dqueries, panel.first, 4);
            e.for_range(first, block.rows, l.tile.rows, &[], |e, row, _| {
                let inner = block.seen_by_tile(e, l.tile, row);
                let left = e.at(dscores, row, l.stride * 4);
                let left = Left { at: e.at(left, key, 4), stride: l.stride, step: 1 };
                let sums = e.at(sums, row, l.dim * 4);
                let tile = l.tile.load(e, (sums, l.dim), &panel.columns);
                let tile = l.tile.multiply(e, left, (right, panel.width), inner, &panel.columns, tile);
                l.tile.store(e, tile, (sums, l.dim), &panel.columns);
                vec![]
            });
        });
        vec![]
    });
}
