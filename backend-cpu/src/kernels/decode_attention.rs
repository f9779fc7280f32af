//! Attention of one new token per batch row, with the writing of its key and value.
//!
//! Algorithm: a task is a batch row and a group of heads that share keys and values. It writes the token's key and
//! value, makes the group's queries (bias, rope, scale) in scratch, then streams the keys `0..=pos` once for the
//! scores, takes the softmax of each head, and streams the values once for the sums. Tiling: keys go by fours, whose
//! dot products fold their lanes together; values are summed in a register block of [`HEADS`] heads by a few vectors
//! of columns. Bound: memory, the bytes of keys and values up to the position; scores never leave the cache.
use super::heads::{Token, all_pieces, make_head, slab, write_cache};
use crate::emit::{Emitter, Error, Ty, Val, math};
use rdc_ir::program::Kernel;
use rdc_ir::program::body::Attention;
use rdc_passes::tile::Cpu;

/// Keys whose dot products are folded together.
const KEYS: usize = 4;
/// Heads of a register block.
const HEADS: usize = 4;
/// Accumulators of a register block.
const ACCUMULATORS: usize = 12;

/// Scratch: queries, then scores, in bytes.
struct Layout {
    /// Bytes from one head's scores to the next's; room for a vector of padding.
    score_stride: usize,
    /// Where the scores begin.
    scores: usize,
    bytes: usize,
}

impl Layout {
    fn new(a: &Attention, lanes: usize) -> Layout {
        let heads = a.heads.heads_per_group();
        let scores = (heads * a.heads.query.dim * 4).next_multiple_of(64);
        let score_stride = ((a.heads.context + 2 * lanes) * 4).next_multiple_of(64);
        Layout { score_stride, scores, bytes: scores + heads * score_stride }
    }
}

/// Bytes of scratch per thread.
pub fn scratch(a: &Attention, cpu: &Cpu) -> usize {
    Layout::new(a, cpu.lanes).bytes
}

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, a: &Attention) -> Result<String, Error> {
    let layout = Layout::new(a, cpu.lanes);
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    e.tasks(|e, task| group(e, a, &layout, task));
    Ok(e.finish())
}

fn group(e: &mut Emitter, a: &Attention, layout: &Layout, task: Val) {
    let (heads, dim) = (a.heads.heads_per_group(), a.heads.query.dim);
    let (batch, group) = e.div_rem(task, a.heads.groups);
    let zero = e.i64(0);
    let token = Token { index: batch, batch, step: zero };
    let next = e.add_const(group, 1);
    for write in &a.writes {
        write_cache(e, write, token, (group, next));
    }
    let first_head = e.mul_const(group, heads);
    e.repeat(heads, |e, h| {
        let head = e.add(first_head, h);
        let to = e.at(e.scratch, h, dim * 4);
        make_head(e, &a.heads.query, token, head, Some(a.heads.scale.0), to);
    });
    // Keys that the token sees: 1..=T of them.
    let count = if a.heads.causal {
        let position = token.position(e, a.heads.pos);
        let (one, context) = (e.i64(1), e.i64(a.heads.context));
        let seen = e.add(position, one);
        let seen = e.max(seen, one);
        e.min(seen, context)
    } else {
        e.i64(a.heads.context)
    };
    let (keys, values) = (slab(e, &a.heads.keys, batch, group), slab(e, &a.heads.values, batch, group));
    let scores = e.offset_const(e.scratch, layout.scores);
    score(e, a, layout, keys, scores, count);
    e.repeat(heads, |e, h| {
        let row = e.at(scores, h, layout.score_stride);
        softmax(e, a, row, count);
    });
    let out = e.at(e.arg(a.result), task, heads * dim * 4);
    weigh(e, a, layout, (values, scores), count, out);
}

/// `scores[h][j] = q[h] . k[j]` for all heads and `count` keys.
fn score(e: &mut Emitter, a: &Attention, layout: &Layout, keys: Val, scores: Val, count: Val) {
    let (heads, dim) = (a.heads.heads_per_group(), a.heads.query.dim);
    let (zero, width) = (e.i64(0), e.i64(KEYS));
    let rest = e.rem(count, width);
    let whole = e.sub(count, rest);
    e.for_range(zero, whole, KEYS, &[], |e, j, _| {
        let key = e.at(keys, j, dim * 4);
        e.repeat(heads, |e, h| {
            let query = e.at(e.scratch, h, dim * 4);
            let dots = dots(e, dim, query, key, KEYS);
            let row = e.at(scores, h, layout.score_stride);
            let to = e.at(row, j, 4);
            e.store_raw(to, dots);
        });
        vec![]
    });
    e.each(whole, count, |e, j| {
        let key = e.at(keys, j, dim * 4);
        e.repeat(heads, |e, h| {
            let query = e.at(e.scratch, h, dim * 4);
            let dot = dots(e, dim, query, key, 1);
            let row = e.at(scores, h, layout.score_stride);
            let to = e.at(row, j, 4);
            e.store_raw(to, dot);
        });
    });
}

/// The dot products of a query with `n` (1 or [`KEYS`]) consecutive keys, as `n` lanes. Both cases add in the same order,
/// so a key's score does not depend on how many keys there are.
fn dots(e: &mut Emitter, dim: usize, query: Val, key: Val, n: usize) -> Val {
    // One sum for each width of piece; two for full vectors, to hide latency.
    let mut sums: Vec<Vec<Val>> = vec![Vec::new(); n];
    let pieces = all_pieces(dim, e.lanes);
    let full = pieces.iter().filter(|p| p.1 == e.lanes).count();
    for (i, &(column, lanes)) in pieces.iter().enumerate() {
        let place = e.offset_const(query, column * 4);
        let q = e.load_raw(place, Ty::f32(lanes));
        for (k, sums) in sums.iter_mut().enumerate() {
            let place = e.offset_const(key, (k * dim + column) * 4);
            let value = e.load_raw(place, Ty::f32(lanes));
            if i < full && i >= 2 {
                sums[i % 2] = e.fma(q, value, sums[i % 2]);
            } else {
                let product = e.mul(q, value);
                sums.push(product);
            }
        }
    }
    let mut vectors = Vec::new();
    let mut rests: Vec<Option<Val>> = Vec::new();
    for sums in sums {
        let mut wide: Option<Val> = None;
        let mut rest: Option<Val> = None;
        for sum in sums {
            if sum.lanes() >= KEYS {
                let four = e.fold_to(sum, KEYS);
                wide = Some(wide.map_or(four, |w| e.add(w, four)));
            } else {
                let one = e.fold_add(sum);
                rest = Some(rest.map_or(one, |r| e.add(r, one)));
            }
        }
        let zero = e.f32(0.0, KEYS);
        vectors.push(wide.unwrap_or(zero));
        rests.push(rest);
    }
    // Four vectors of four lanes to one of their sums: (0 + 2) + (1 + 3) of each.
    let sum = if let [a, b, c, d] = vectors[..] {
        let mut halves = |a: Val, b: Val| {
            let (low, high) = (e.shuffle(a, b, &[0, 4, 1, 5]), e.shuffle(a, b, &[2, 6, 3, 7]));
            e.add(low, high)
        };
        let (ab, cd) = (halves(a, b), halves(c, d));
        let (low, high) = (e.shuffle(ab, cd, &[0, 1, 4, 5]), e.shuffle(ab, cd, &[2, 3, 6, 7]));
        e.add(low, high)
    } else {
        e.fold_add(vectors[0])
    };
    match rests.into_iter().collect::<Option<Vec<Val>>>() {
        Some(rests) => {
            let rest = e.from_lanes(&rests);
            e.add(sum, rest)
        }
        None => sum,
    }
}

/// Index in a row of scores where the reciprocal of the sum is kept.
fn inverse_at(a: &Attention, lanes: usize) -> usize {
    a.heads.context + lanes
}

/// Replaces `count` scores by `e^(score - max)`, and keeps the reciprocal of their sum.
fn softmax(e: &mut Emitter, a: &Attention, row: Val, count: Val) {
    let lanes = e.lanes;
    // Padding makes whole vectors.
    let minus_inf = e.f32(f32::NEG_INFINITY, lanes);
    let end = e.at(row, count, 4);
    e.store_raw(end, minus_inf);
    let zero = e.i64(0);
    let max = e.for_range(zero, count, lanes, &[minus_inf], |e, j, carried| {
        let place = e.at(row, j, 4);
        let score = e.load_raw(place, Ty::f32(lanes));
        vec![e.max_fast(score, carried[0])]
    });
    let max = e.fold(max[0], Emitter::max_fast);
    let max = e.splat(max, lanes);
    let none = e.f32(0.0, lanes);
    let sum = e.for_range(zero, count, lanes, &[none], |e, j, carried| {
        let place = e.at(row, j, 4);
        let score = e.load_raw(place, Ty::f32(lanes));
        let less = e.sub(score, max);
        let power = math::exp_nonpositive(e, less);
        e.store_raw(place, power);
        vec![e.add(carried[0], power)]
    });
    let sum = e.fold_add(sum[0]);
    let one = e.f32(1.0, 1);
    let inverse = e.div(one, sum);
    let place = e.offset_const(row, inverse_at(a, lanes) * 4);
    e.store_raw(place, inverse);
}

/// `out[h] = sum over j of weight[h][j] * v[j]`, over the sum of the weights.
fn weigh(e: &mut Emitter, a: &Attention, layout: &Layout, (values, weights): (Val, Val), count: Val, out: Val) {
    let (heads, dim) = (a.heads.heads_per_group(), a.heads.query.dim);
    let block = heads.min(HEADS);
    for first in (0..heads).step_by(block) {
        let block = block.min(heads - first);
        let rows: Vec<Val> = (first..first + block).map(|h| e.offset_const(weights, h * layout.score_stride)).collect();
        for columns in all_pieces(dim, e.lanes).chunks(ACCUMULATORS / block) {
            let none: Vec<Val> = (0..block).flat_map(|_| columns).map(|c| e.f32(0.0, c.1)).collect();
            let zero = e.i64(0);
            let sums = e.for_range(zero, count, 1, &none, |e, j, sums| {
                let value = e.at(values, j, dim * 4);
                let value: Vec<Val> = columns
                    .iter()
                    .map(|&(column, lanes)| {
                        let place = e.offset_const(value, column * 4);
                        e.load_raw(place, Ty::f32(lanes))
                    })
                    .collect();
                let mut next = Vec::new();
                for (h, &row) in rows.iter().enumerate() {
                    let place = e.at(row, j, 4);
                    let weight = e.load_raw(place, Ty::f32(1));
                    for (c, &value) in value.iter().enumerate() {
                        let weight = e.splat(weight, value.lanes());
                        next.push(e.fma(weight, value, sums[h * columns.len() + c]));
                    }
                }
                next
            });
            for (h, &row) in rows.iter().enumerate() {
                let place = e.offset_const(row, inverse_at(a, e.lanes) * 4);
                let inverse = e.load_raw(place, Ty::f32(1));
                for (c, &(column, lanes)) in columns.iter().enumerate() {
                    let inverse = e.splat(inverse, lanes);
                    let value = e.mul(sums[h * columns.len() + c], inverse);
                    let place = e.offset_const(out, ((first + h) * dim + column) * 4);
                    e.store_raw(place, value);
                }
            }
        }
    }
}
