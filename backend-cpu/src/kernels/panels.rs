//! Copies of row-major matrices into panels `f32[length, pitch]`, whose inner steps lie one after the other.
use crate::emit::vectors::all_pieces;
use crate::emit::{Cmp, Emitter, Val};
use rdc_ir::DType;

/// Some columns of a panel, as they lie in a matrix.
#[derive(Clone, Copy)]
pub struct Strip {
    /// Address of the first element.
    pub from: Val,
    /// Bytes from one row of the matrix to the next.
    pub stride: usize,
    /// What the matrix is of (f32 or bf16); panels are of f32.
    pub dtype: DType,
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
            copy_row(e, (from, self.dtype), to, self.columns);
        });
    }

    /// Squares of vectors at a time, two along a row so that its cache lines are read whole, and single elements where the
    /// length leaves a rest.
    fn transpose(self, e: &mut Emitter, length: Val, to: Val, pitch: usize) {
        let n = e.lanes;
        let mut done = e.i64(0);
        for squares in [2, 1] {
            let (count, _) = e.div_rem(length, squares * n);
            let end = e.mul_const(count, squares * n);
            e.for_range(done, end, squares * n, &[], |e, k, _| {
                for first in (0..self.columns).step_by(n) {
                    for square in 0..squares {
                        let k = e.add_const(k, square * n);
                        self.square(e, first, k, to, pitch);
                    }
                }
                vec![]
            });
            done = end;
        }
        e.each(done, length, |e, k| {
            let (from, to) = (e.at(self.from, k, self.dtype.bytes()), e.at(to, k, pitch * 4));
            for column in 0..self.columns {
                let place = e.offset_const(from, column * self.stride);
                let value = e.load(place, self.dtype, 1);
                let place = e.offset_const(to, column * 4);
                e.store_raw(place, value);
            }
        });
    }

    /// Columns `first..`, a vector of them or what is left, of the steps from `k` on.
    fn square(self, e: &mut Emitter, first: usize, k: Val, to: Val, pitch: usize) {
        let n = e.lanes;
        let count = n.min(self.columns - first);
        let (from, to) = (e.at(self.from, k, self.dtype.bytes()), e.at(to, k, pitch * 4));
        let rows: Vec<Val> = (0..n)
            .map(|i| {
                let place = e.offset_const(from, (first + i.min(count - 1)) * self.stride);
                e.load(place, self.dtype, n)
            })
            .collect();
        for (i, row) in e.transposed(rows).into_iter().enumerate() {
            for (start, lanes) in all_pieces(count, n) {
                let part =
                    if lanes == n { row } else { e.shuffle(row, row, &(start..start + lanes).collect::<Vec<_>>()) };
                let place = e.offset_const(to, (i * pitch + first + start) * 4);
                e.store_raw(place, part);
            }
        }
    }
}

/// Copies steps `0..length` (`i64`) of some rows, which are so many bytes apart where they lie and where they go.
pub fn copy_rows(
    e: &mut Emitter,
    (from, stride): (Val, usize),
    (to, pitch): (Val, usize),
    (rows, length): (usize, Val),
) {
    let mut done = e.i64(0);
    for step in [2 * e.lanes, e.lanes, 1] {
        let (count, _) = e.div_rem(length, step);
        let end = e.mul_const(count, step);
        e.for_range(done, end, step, &[], |e, k, _| {
            let (from, to) = (e.at(from, k, 4), e.at(to, k, 4));
            for row in 0..rows {
                let (from, to) = (e.offset_const(from, row * stride), e.offset_const(to, row * pitch));
                copy_floats(e, from, to, step);
            }
            vec![]
        });
        done = end;
    }
}

/// Copies `count` floats.
pub fn copy_floats(e: &mut Emitter, from: Val, to: Val, count: usize) {
    copy_row(e, (from, DType::F32), to, count);
}

/// Copies `count` elements of that type to floats.
fn copy_row(e: &mut Emitter, (from, dtype): (Val, DType), to: Val, count: usize) {
    for (start, lanes) in all_pieces(count, e.lanes) {
        let place = e.offset_const(from, start * dtype.bytes());
        let value = e.load(place, dtype, lanes);
        let place = e.offset_const(to, start * 4);
        e.store_raw(place, value);
    }
}

/// Sets columns `columns` of inner steps `0..length` to zero.
pub fn clear(e: &mut Emitter, columns: std::ops::Range<usize>, length: Val, to: Val, pitch: usize) {
    if columns.is_empty() {
        return;
    }
    let zero = e.i64(0);
    e.each(zero, length, |e, k| {
        let to = e.at(to, k, pitch * 4);
        for (start, lanes) in all_pieces(columns.len(), e.lanes) {
            let none = e.f32(0.0, lanes);
            let place = e.offset_const(to, (columns.start + start) * 4);
            e.store_raw(place, none);
        }
    });
}

/// What is left over in tasks of `per_task` of `size` items, the last task shorter, that are taken `unit` at a time.
fn remainders(size: usize, per_task: usize, unit: usize) -> Vec<usize> {
    let mut out = vec![per_task.min(size) % unit, size % per_task % unit];
    out.sort_unstable();
    out.dedup();
    out.retain(|&rest| rest > 0);
    out
}

/// Runs `body` with the size of a unit where `left_over` (`i64`) items of a task begin with it; tasks are cut from `size` items,
/// `per_task` each, and taken `unit` at a time.
pub fn widths(
    e: &mut Emitter,
    left_over: Val,
    (size, per_task, unit): (usize, usize, usize),
    body: impl Fn(&mut Emitter, usize),
) {
    let ragged = remainders(size, per_task, unit);
    if per_task >= unit {
        if ragged.is_empty() {
            return body(e, unit);
        }
        let whole = e.i64(unit);
        let whole = e.cmp(Cmp::Ge, left_over, whole);
        e.when(whole, |e| body(e, unit));
    }
    for count in ragged {
        let wanted = e.i64(count);
        let here = e.cmp(Cmp::Eq, left_over, wanted);
        e.when(here, |e| body(e, count));
    }
}
