//! What the attention kernels are made of: register tiles, panels of keys and values, rows of scores.
use super::heads::all_pieces;
use super::panels::Strip;
use crate::emit::{Cmp, Elem, Emitter, Ty, Val};
use rdc_ir::program::body::HeadRows;

/// Steps of the inner size per iteration.
const UNROLL: usize = 4;

/// Scratch of a kernel while it is laid out.
#[derive(Default)]
pub struct Scratch {
    /// Bytes so far.
    pub bytes: usize,
}

impl Scratch {
    /// The byte offset of that many more floats, on cache lines of their own.
    pub fn take(&mut self, floats: usize) -> usize {
        let at = self.bytes;
        self.bytes += (floats * 4).next_multiple_of(64);
        at
    }
}

/// A register tile of a product.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Rows.
    pub rows: usize,
    /// Vectors of columns.
    pub vectors: usize,
    /// Columns.
    pub width: usize,
}

impl Tile {
    /// 12 of 16 accumulators with AVX2, 16 of 32 with AVX-512, 24 of 32 with NEON.
    pub fn new(lanes: usize) -> Tile {
        let (rows, vectors) = match lanes {
            16 => (8, 2),
            4 => (6, 4),
            _ => (6, 2),
        };
        Tile { rows, vectors, width: vectors * lanes }
    }

    /// `start + left . right` in registers; `start` and the result are row by row, a vector for each of `columns` (first
    /// column, lanes).
    pub fn multiply(
        self,
        e: &mut Emitter,
        left: Left,
        (right, right_stride): (Val, usize),
        inner: Val,
        columns: &[(usize, usize)],
        start: Vec<Val>,
    ) -> Vec<Val> {
        let zero = e.i64(0);
        let (quarters, _) = e.div_rem(inner, UNROLL);
        let whole = e.mul_const(quarters, UNROLL);
        let steps = |e: &mut Emitter, k: Val, tile: &[Val], steps: usize| {
            let right = e.at(right, k, right_stride * 4);
            let left_k = e.at(left.at, k, left.step * 4);
            let mut tile = tile.to_vec();
            for u in 0..steps {
                let vectors: Vec<Val> = columns
                    .iter()
                    .map(|&(column, lanes)| {
                        let place = e.offset_const(right, (u * right_stride + column) * 4);
                        e.load_raw(place, Ty::f32(lanes))
                    })
                    .collect();
                for r in 0..self.rows {
                    let place = e.offset_const(left_k, (u * left.step + r * left.stride) * 4);
                    let scalar = e.load_raw(place, Ty::f32(1));
                    for (c, &vector) in vectors.iter().enumerate() {
                        let broadcast = e.splat(scalar, vector.lanes());
                        let sum = &mut tile[r * columns.len() + c];
                        *sum = e.fma(broadcast, vector, *sum);
                    }
                }
            }
            tile
        };
        let tile = e.for_range(zero, whole, UNROLL, &start, |e, k, tile| steps(e, k, tile, UNROLL));
        e.for_range(whole, inner, 1, &tile, |e, k, tile| steps(e, k, tile, 1))
    }

    /// A tile of zeros.
    pub fn zeros(self, e: &mut Emitter, columns: &[(usize, usize)]) -> Vec<Val> {
        (0..self.rows).flat_map(|_| columns).map(|&(_, lanes)| e.f32(0.0, lanes)).collect()
    }

    /// The tile at (address, row stride in floats).
    pub fn load(self, e: &mut Emitter, (from, stride): (Val, usize), columns: &[(usize, usize)]) -> Vec<Val> {
        let places = (0..self.rows).flat_map(|r| columns.iter().map(move |&c| (r, c)));
        places
            .map(|(r, (column, lanes))| {
                let place = e.offset_const(from, (r * stride + column) * 4);
                e.load_raw(place, Ty::f32(lanes))
            })
            .collect()
    }

    /// Stores a tile at (address, row stride in floats).
    pub fn store(self, e: &mut Emitter, tile: Vec<Val>, (out, stride): (Val, usize), columns: &[(usize, usize)]) {
        for (i, value) in tile.into_iter().enumerate() {
            let (row, column) = (i / columns.len(), columns[i % columns.len()].0);
            let place = e.offset_const(out, (row * stride + column) * 4);
            e.store_raw(place, value);
        }
    }

    /// Runs the body for the `dim` columns of a head, a tile's width (or what is left) at a time.
    pub fn panels(self, e: &mut Emitter, dim: usize, mut body: impl FnMut(&mut Emitter, Panel)) {
        let whole = dim / self.width * self.width;
        let columns = |width: usize, e: &Emitter| all_pieces(width, e.lanes);
        if whole > 0 {
            let (zero, end) = (e.i64(0), e.i64(whole));
            e.for_range(zero, end, self.width, &[], |e, first, _| {
                let columns = columns(self.width, e);
                body(e, Panel { first, width: self.width, columns });
                vec![]
            });
        }
        if whole < dim {
            let (first, columns) = (e.i64(whole), columns(dim - whole, e));
            body(e, Panel { first, width: dim - whole, columns });
        }
    }

    /// Copies the keys (or values) `keys` of `context` at `slab`, transposed: panels `[dim][width]` of a tile's width of
    /// them. What a panel holds beyond the context is arbitrary.
    pub fn transpose(
        self,
        e: &mut Emitter,
        (slab, rows, context): (Val, HeadRows, usize),
        keys: (Val, Val),
        dim: usize,
        to: Val,
    ) {
        e.for_range(keys.0, keys.1, self.width, &[], |e, key, _| {
            let length = e.i64(dim);
            let at = e.sub(key, keys.0);
            let (from, to) = (e.at(slab, key, rows.stride * 4), e.at(to, at, dim * 4));
            let copy = |e: &mut Emitter, columns: usize| {
                let strip = Strip { from, stride: rows.stride * 4, transpose: true, columns };
                strip.copy(e, length, to, self.width);
                vec![]
            };
            match (context / self.width, context % self.width) {
                (_, 0) => copy(e, self.width),
                (0, rest) => copy(e, rest),
                (whole, rest) => {
                    let end = e.i64(whole * self.width);
                    let inside = e.cmp(Cmp::Lt, key, end);
                    e.branch(inside, &[], |e| copy(e, self.width), |e| copy(e, rest))
                }
            }
        });
    }

    /// Vectors of a row, from the one that holds the last key seen on, that a tile on the diagonal may read.
    pub fn hidden_vectors(self, lanes: usize) -> usize {
        (lanes + self.rows - 1).div_ceil(lanes)
    }

    /// Floats of a row of scores for `keys` keys.
    pub fn score_stride(self, keys: usize, lanes: usize) -> usize {
        keys.next_multiple_of(self.width) + self.hidden_vectors(lanes) * lanes
    }
}

/// The left operand of a product, whose elements are broadcast; strides in floats.
#[derive(Clone, Copy)]
pub struct Left {
    /// Address of row 0.
    pub at: Val,
    /// From a row to the next.
    pub stride: usize,
    /// From an inner index to the next.
    pub step: usize,
}

/// A tile's width, or less, of the columns of a head.
pub struct Panel {
    /// First column (`i64`).
    pub first: Val,
    /// Columns.
    pub width: usize,
    /// (column of the panel, lanes) of its vectors.
    pub columns: Vec<(usize, usize)>,
}

/// Queries of a task against a range of keys; counts are `i64`, positions from the range's first key on.
#[derive(Clone, Copy)]
pub struct Block {
    /// Queries.
    pub count: Val,
    /// Rows of whole tiles that hold the queries.
    pub rows: Val,
    /// Position of the first query (each further one sees one key more), or the end of the keys if all see all. It may be
    /// negative.
    pub position: Val,
    /// End of the keys that the last query sees.
    pub limit: Val,
}

impl Block {
    /// `count` queries that see the keys up to `position`, or all `context` keys if there is no position.
    pub fn new(e: &mut Emitter, tile: Tile, count: Val, position: Option<Val>, context: usize) -> Block {
        let whole = e.add_const(count, tile.rows - 1);
        let size = e.i64(tile.rows);
        let padding = e.rem(whole, size);
        let rows = e.sub(whole, padding);
        let context = e.i64(context);
        let Some(position) = position else { return Block { count, rows, position: context, limit: context } };
        let zero = e.i64(0);
        let position = e.max(position, zero);
        let end = e.add(position, count);
        Block { count, rows, position, limit: e.min(end, context) }
    }

    /// The block against the keys from `key` on, at most `most` of them.
    pub fn beginning_at(self, e: &mut Emitter, key: Val, most: usize) -> Block {
        let (left, most) = (e.sub(self.limit, key), e.i64(most));
        Block { position: e.sub(self.position, key), limit: e.min(left, most), ..self }
    }

    /// The first row of the first tile with a query that sees key `key`.
    pub fn first_row(&self, e: &mut Emitter, tile: Tile, key: Val) -> Val {
        let (zero, size) = (e.i64(0), e.i64(tile.rows));
        let row = e.sub(key, self.position);
        let row = e.max(row, zero);
        let inside = e.rem(row, size);
        e.sub(row, inside)
    }

    /// The keys that the query in row `row` sees.
    pub fn seen(&self, e: &mut Emitter, row: Val) -> Val {
        let (one, zero) = (e.i64(1), e.i64(0));
        let seen = e.add(self.position, row);
        let seen = e.add(seen, one);
        let seen = e.max(seen, zero);
        e.min(seen, self.limit)
    }

    /// The keys that the last query of the tile of rows from `row` on sees, or might if there were more queries.
    pub fn seen_by_tile(&self, e: &mut Emitter, tile: Tile, row: Val) -> Val {
        let seen = e.add(self.position, row);
        let seen = e.add_const(seen, tile.rows);
        e.min(seen, self.limit)
    }

    /// `out[row][key] = left[row] . right[key]` over `dim`, for tiles with a pair that is seen; `left: f32[rows, dim]`, `right`
    /// as [`Tile::transpose`] makes it. Its panels go outside: one stays in the first-level cache while the row tiles
    /// stream past.
    pub fn scores(
        &self,
        e: &mut Emitter,
        tile: Tile,
        dim: usize,
        (left, right): (Val, Val),
        (out, stride): (Val, usize),
    ) {
        let zero = e.i64(0);
        let columns: Vec<(usize, usize)> = (0..tile.vectors).map(|v| (v * e.lanes, e.lanes)).collect();
        e.for_range(zero, self.limit, tile.width, &[], |e, key, _| {
            let right = e.at(right, key, dim * 4);
            let out = e.at(out, key, 4);
            let first = self.first_row(e, tile, key);
            e.for_range(first, self.rows, tile.rows, &[], |e, row, _| {
                let left = Left { at: e.at(left, row, dim * 4), stride: dim, step: 1 };
                let inner = e.i64(dim);
                let none = tile.zeros(e, &columns);
                let sums = tile.multiply(e, left, (right, tile.width), inner, &columns, none);
                let out = e.at(out, row, stride * 4);
                tile.store(e, sums, (out, stride), &columns);
                vec![]
            });
            vec![]
        });
    }
}

/// Rows of scores that are taken together, so that the folds of one do not wait for those of another: as many as registers allow.
fn together(lanes: usize) -> usize {
    if lanes == 8 { 2 } else { 4 }
}

/// The keys that rows of scores see, one after the other: all have the last one in the same vector, whose hidden lanes hold arbitrary
/// values.
pub struct Seen {
    /// Keys of the vectors before that one.
    pub before: Val,
    /// Which of its lanes are hidden, for each row.
    hidden: Vec<Val>,
}

impl Seen {
    /// Rows `first .. end` of a block, as many at a time as are alike; the body is given the first of them.
    pub fn each(e: &mut Emitter, (first, end): (Val, Val), block: &Block, body: impl Fn(&mut Emitter, Val, &Seen)) {
        let most = together(e.lanes);
        e.for_range(first, end, most, &[], |e, row, _| {
            let last = e.add_const(row, most - 1);
            let inside = e.cmp(Cmp::Lt, last, end);
            let [a, b] = [row, last].map(|row| {
                let seen = block.seen(e, row);
                Seen::before(e, seen)
            });
            let alike = e.cmp(Cmp::Eq, a, b);
            let all = e.and(inside, alike);
            let rows = |e: &mut Emitter, row: Val, count: usize| {
                let seen: Vec<Val> = (0..count)
                    .map(|i| {
                        let row = e.add_const(row, i);
                        block.seen(e, row)
                    })
                    .collect();
                let seen = Seen::new(e, &seen);
                body(e, row, &seen);
            };
            let one_by_one = |e: &mut Emitter| {
                let next = e.add_const(row, most);
                let end = e.min(next, end);
                e.each(row, end, |e, row| rows(e, row, 1));
                vec![]
            };
            let at_once = |e: &mut Emitter| {
                rows(e, row, most);
                vec![]
            };
            e.branch(all, &[], at_once, one_by_one);
            vec![]
        });
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.hidden.len()
    }

    /// Keys before the vector that holds the last of the `seen` first.
    fn before(e: &mut Emitter, seen: Val) -> Val {
        let (one, zero, lanes) = (e.i64(1), e.i64(0), e.i64(e.lanes));
        let last = e.sub(seen, one);
        let last = e.max(last, zero);
        let inside = e.rem(last, lanes);
        e.sub(last, inside)
    }

    fn new(e: &mut Emitter, seen: &[Val]) -> Seen {
        let before = Seen::before(e, seen[0]);
        let hidden = |&seen: &Val| {
            let inside = e.sub(seen, before);
            let inside = e.trunci(inside, Elem::I32);
            let inside = e.splat(inside, e.lanes);
            let iota = e.iota(e.lanes);
            e.cmp(Cmp::Ge, iota, inside)
        };
        Seen { before, hidden: seen.iter().map(hidden).collect() }
    }

    /// The last vector of each row with its hidden lanes set to `fill`.
    pub fn last(&self, e: &mut Emitter, rows: &[Val], fill: f32) -> Vec<Val> {
        let of_row = |(&row, &hidden): (&Val, &Val)| {
            let value = load(e, row, self.before);
            let fill = e.f32(fill, e.lanes);
            e.select(hidden, fill, value)
        };
        rows.iter().zip(&self.hidden).map(of_row).collect()
    }

    /// The maxima of rows whose last vectors are `last`, with minus infinity in hidden lanes.
    pub fn max(&self, e: &mut Emitter, rows: &[Val], last: &[Val]) -> Vec<Val> {
        let zero = e.i64(0);
        let max = e.for_range(zero, self.before, e.lanes, last, |e, at, max| {
            let larger = |(&row, &max): (&Val, &Val)| {
                let score = load(e, row, at);
                e.max_fast(score, max)
            };
            rows.iter().zip(max).map(larger).collect()
        });
        max.into_iter().map(|max| e.fold(max, Emitter::max_fast)).collect()
    }

    /// Zeros in the vectors after the last that a tile on the diagonal may read.
    pub fn clear(&self, e: &mut Emitter, tile: Tile, rows: &[Val]) {
        let none = e.f32(0.0, e.lanes);
        for vector in 1..tile.hidden_vectors(e.lanes) {
            let at = e.add_const(self.before, vector * e.lanes);
            rows.iter().for_each(|&row| store(e, row, at, none));
        }
    }
}

/// The vector at element `at` of a row.
pub fn load(e: &mut Emitter, row: Val, at: Val) -> Val {
    let place = e.at(row, at, 4);
    e.load_raw(place, Ty::f32(e.lanes))
}

/// Stores a vector at element `at` of a row.
pub fn store(e: &mut Emitter, row: Val, at: Val, value: Val) {
    let place = e.at(row, at, 4);
    e.store_raw(place, value);
}

/// `to = from * factor` for a row of `dim` floats.
pub fn scale_row(e: &mut Emitter, dim: usize, (from, to): (Val, Val), factor: Val) {
    for (column, lanes) in all_pieces(dim, e.lanes) {
        let place = e.offset_const(from, column * 4);
        let value = e.load_raw(place, Ty::f32(lanes));
        let factor = e.splat(factor, lanes);
        let value = e.mul(value, factor);
        let place = e.offset_const(to, column * 4);
        e.store_raw(place, value);
    }
}
