//! What the attention kernels multiply with: register tiles, and keys or values transposed for them.
use super::heads::all_pieces;
use crate::emit::{Cmp, Emitter, Ty, Val};

/// A register tile of a product.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Rows.
    pub rows: usize,
    /// Vectors of columns.
    pub vectors: usize,
}

impl Tile {
    /// 12 of 16 accumulators with AVX2, 16 of 32 with AVX-512, 24 of 32 with NEON.
    pub fn new(lanes: usize) -> Tile {
        match lanes {
            16 => Tile { rows: 8, vectors: 2 },
            4 => Tile { rows: 6, vectors: 4 },
            _ => Tile { rows: 6, vectors: 2 },
        }
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
        e.for_range(zero, inner, 1, &start, |e, k, tile| {
            let right = e.at(right, k, right_stride * 4);
            let left_k = e.at(left.at, k, left.step * 4);
            let vectors: Vec<Val> = columns
                .iter()
                .map(|&(column, lanes)| {
                    let place = e.offset_const(right, column * 4);
                    e.load_raw(place, Ty::f32(lanes))
                })
                .collect();
            let mut next = Vec::new();
            for r in 0..self.rows {
                let place = e.offset_const(left_k, r * left.stride * 4);
                let scalar = e.load_raw(place, Ty::f32(1));
                for (c, &vector) in vectors.iter().enumerate() {
                    let broadcast = e.splat(scalar, vector.lanes());
                    next.push(e.fma(broadcast, vector, tile[r * columns.len() + c]));
                }
            }
            next
        })
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

/// `to[d][j] = from[j][d]` for `visible` rows j of `dim` floats, and zeros up to `columns`; (address, row stride in floats).
pub fn transpose(
    e: &mut Emitter,
    dim: usize,
    (from, from_stride): (Val, usize),
    (to, to_stride): (Val, usize),
    visible: Val,
    columns: Val,
) {
    let n = e.lanes;
    let (from_stride, to_stride) = (from_stride * 4, to_stride * 4);
    let (zero, lanes) = (e.i64(0), e.i64(n));
    let rest = e.rem(visible, lanes);
    let whole = e.sub(visible, rest);
    let full = dim / n * n;
    e.for_range(zero, whole, n, &[], |e, key, _| {
        let from = e.at(from, key, from_stride);
        let to = e.at(to, key, 4);
        let (lo, hi) = (e.i64(0), e.i64(full));
        e.for_range(lo, hi, n, &[], |e, column, _| {
            let from = e.at(from, column, 4);
            let rows: Vec<Val> = (0..n)
                .map(|i| {
                    let place = e.offset_const(from, i * from_stride);
                    e.load_raw(place, Ty::f32(n))
                })
                .collect();
            let to = e.at(to, column, to_stride);
            for (i, row) in transposed(e, rows).into_iter().enumerate() {
                let place = e.offset_const(to, i * to_stride);
                e.store_raw(place, row);
            }
            vec![]
        });
        for column in full..dim {
            let lanes: Vec<Val> = (0..n)
                .map(|i| {
                    let place = e.offset_const(from, i * from_stride + column * 4);
                    e.load_raw(place, Ty::f32(1))
                })
                .collect();
            let row = e.from_lanes(&lanes);
            let place = e.offset_const(to, column * to_stride);
            e.store_raw(place, row);
        }
        vec![]
    });
    e.each(whole, columns, |e, key| {
        let inside = e.cmp(Cmp::Lt, key, visible);
        let from = e.at(from, key, from_stride);
        let to = e.at(to, key, 4);
        e.repeat(dim, |e, column| {
            let place = e.at(from, column, 4);
            let value =
                e.branch(inside, &[Ty::f32(1)], |e| vec![e.load_raw(place, Ty::f32(1))], |e| vec![e.f32(0.0, 1)]);
            let place = e.at(to, column, to_stride);
            e.store_raw(place, value[0]);
        });
    });
}

/// Copies `count` rows of `dim` floats; (address, row stride in floats).
pub fn copy_rows(
    e: &mut Emitter,
    dim: usize,
    (from, from_stride): (Val, usize),
    (to, to_stride): (Val, usize),
    count: Val,
) {
    let zero = e.i64(0);
    e.each(zero, count, |e, row| {
        let (from, to) = (e.at(from, row, from_stride * 4), e.at(to, row, to_stride * 4));
        for (column, lanes) in all_pieces(dim, e.lanes) {
            let place = e.offset_const(from, column * 4);
            let value = e.load_raw(place, Ty::f32(lanes));
            let place = e.offset_const(to, column * 4);
            e.store_raw(place, value);
        }
    });
}

/// The transpose of a square of vectors: blocks of falling size change places.
fn transposed(e: &mut Emitter, mut rows: Vec<Val>) -> Vec<Val> {
    let n = rows.len();
    let mut size = n / 2;
    while size > 0 {
        for i in (0..n).filter(|i| i & size == 0) {
            let (a, b) = (rows[i], rows[i + size]);
            let low = (0..n).map(|j| if j & size == 0 { j } else { n + j - size }).collect::<Vec<_>>();
            let high = (0..n).map(|j| if j & size == 0 { j + size } else { n + j }).collect::<Vec<_>>();
            (rows[i], rows[i + size]) = (e.shuffle(a, b, &low), e.shuffle(a, b, &high));
        }
        size /= 2;
    }
    rows
}
