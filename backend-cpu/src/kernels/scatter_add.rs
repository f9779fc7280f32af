//! Adds rows to the rows of a table that ids name: the gradient of an embedding.
//!
//! Algorithm: a task is a range of the table's rows. It copies them from the base, unless the result is the base's memory,
//! then goes through all ids in order and adds the rows whose id lies in its range: no two tasks write one row, and the order
//! of additions is that of the ids. Bound: memory; reading the ids in every task is little beside a row.
use super::heads::all_pieces;
use super::unsupported;
use crate::emit::{Cmp, Emitter, Error, Ty, Val};
use rdc_ir::DType;
use rdc_ir::program::body::ScatterAdd;
use rdc_ir::program::{Kernel, Tiling};
use rdc_passes::tile::Cpu;

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, body: &ScatterAdd) -> Result<String, Error> {
    let Tiling::Rows { rows_per_task: rows_per_task @ 1.. } = kernel.tiling else {
        return unsupported(kernel, "a scatter_add that is cut otherwise than into rows");
    };
    let &ScatterAdd { base, ids, terms, result, rows, columns, count } = body;
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    e.tasks(|e, task| {
        let first = e.mul_const(task, rows_per_task);
        let (end, all) = (e.add_const(first, rows_per_task), e.i64(rows));
        let end = e.min(end, all);
        let (from, to) = (e.arg(base), e.arg(result));
        let apart = e.differs(from, to);
        e.when(apart, |e| {
            e.each(first, end, |e, row| {
                let (from, to) = (e.at(from, row, columns * 4), e.at(to, row, columns * 4));
                by_pieces(e, columns, |e, place, lanes| {
                    let (from, to) = (e.offset(from, place), e.offset(to, place));
                    let value = e.load_raw(from, Ty::f32(lanes));
                    e.store_raw(to, value);
                });
            });
        });
        e.repeat(count, |e, i| {
            let place = e.at(e.arg(ids), i, 4);
            let id = e.load(place, DType::I32, 1);
            let id = e.index(id, rows);
            let (after, before) = (e.cmp(Cmp::Ge, id, first), e.cmp(Cmp::Lt, id, end));
            let own = e.and(after, before);
            e.when(own, |e| {
                let (from, to) = (e.at(e.arg(terms), i, columns * 4), e.at(to, id, columns * 4));
                by_pieces(e, columns, |e, place, lanes| {
                    let (from, to) = (e.offset(from, place), e.offset(to, place));
                    let (sum, term) = (e.load_raw(to, Ty::f32(lanes)), e.load_raw(from, Ty::f32(lanes)));
                    let sum = e.add(sum, term);
                    e.store_raw(to, sum);
                });
            });
        });
    });
    Ok(e.finish())
}

/// Runs the body for every piece of a row of floats: its byte offset (`i64`) and lanes.
fn by_pieces(e: &mut Emitter, columns: usize, body: impl Fn(&mut Emitter, Val, usize)) {
    let n = e.lanes;
    let (zero, whole) = (e.i64(0), e.i64(columns / n * n));
    e.for_range(zero, whole, n, &[], |e, column, _| {
        let place = e.mul_const(column, 4);
        body(e, place, n);
        vec![]
    });
    for (start, lanes) in all_pieces(columns, n).into_iter().filter(|piece| piece.1 < n) {
        let place = e.i64(start * 4);
        body(e, place, lanes);
    }
}
