//! Copies of row-major matrices into panels `f32[length, pitch]`, whose inner steps lie one after the other.
use super::heads::all_pieces;
use crate::emit::{Emitter, Ty, Val};

/// Some columns of a panel, as they lie in a matrix.
#[derive(Clone, Copy)]
pub struct Strip {
    /// Address of the first element.
    pub from: Val,
    /// Bytes from one row of the matrix to the next.
    pub stride: usize,
    /// Whether the panel's columns are rows of the matrix; else they are columns.
    pub transpose: bool,
    /// How many columns.
    pub columns: usize,
}

impl Strip {
    /// Copies inner steps `0..length` (`i64`) to `to`; steps there are `pitch` floats apart.
    pub fn copy(self, e: &mut Emitter, length: Val, to: Val, pitch: usize) {
        let zero = e.i64(0);
        if self.transpose {
            return self.transpose(e, length, to, pitch);
        }
        e.each(zero, length, |e, k| {
            let (from, to) = (e.at(self.from, k, self.stride), e.at(to, k, pitch * 4));
            copy_floats(e, from, to, self.columns);
        });
    }

    /// Squares of vectors at a time, and single elements where the length leaves a rest.
    fn transpose(self, e: &mut Emitter, length: Val, to: Val, pitch: usize) {
        let n = e.lanes;
        let (zero, (squares, _)) = (e.i64(0), e.div_rem(length, n));
        let whole = e.mul_const(squares, n);
        e.for_range(zero, whole, n, &[], |e, k, _| {
            let (from, to) = (e.at(self.from, k, 4), e.at(to, k, pitch * 4));
            for first in (0..self.columns).step_by(n) {
                let count = n.min(self.columns - first);
                let rows: Vec<Val> = (0..n)
                    .map(|i| {
                        let place = e.offset_const(from, (first + i.min(count - 1)) * self.stride);
                        e.load_raw(place, Ty::f32(n))
                    })
                    .collect();
                for (i, row) in e.transposed(rows).into_iter().enumerate() {
                    for (start, lanes) in all_pieces(count, n) {
                        let part = e.shuffle(row, row, &(start..start + lanes).collect::<Vec<_>>());
                        let place = e.offset_const(to, (i * pitch + first + start) * 4);
                        e.store_raw(place, part);
                    }
                }
            }
            vec![]
        });
        e.each(whole, length, |e, k| {
            let (from, to) = (e.at(self.from, k, 4), e.at(to, k, pitch * 4));
            for column in 0..self.columns {
                let place = e.offset_const(from, column * self.stride);
                let value = e.load_raw(place, Ty::f32(1));
                let place = e.offset_const(to, column * 4);
                e.store_raw(place, value);
            }
        });
    }
}

/// Copies `count` floats.
pub fn copy_floats(e: &mut Emitter, from: Val, to: Val, count: usize) {
    for (start, lanes) in all_pieces(count, e.lanes) {
        let place = e.offset_const(from, start * 4);
        let value = e.load_raw(place, Ty::f32(lanes));
        let place = e.offset_const(to, start * 4);
        e.store_raw(place, value);
    }
}
