//! Adds rows to the rows of a table that ids name: the gradient of an embedding.
//!
//! Algorithm: a task is a range of the table's rows. It copies them from the base, unless the result is the base's memory,
//! then goes through all ids in order and adds the rows whose id lies in its range: no two tasks write one row, and the order
//! of additions is that of the ids. Bound: memory; reading the ids in every task is little beside a row.
use super::anchor::{only, pointer};
use super::heads::all_pieces;
use crate::emit::{Cmp, Emitter, Error, Ty, Val};
use rdc_ir::program::{Kernel, KernelKind, Tiling};
use rdc_ir::{DType, Opcode};
use rdc_passes::tile::Cpu;

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel) -> Result<String, Error> {
    let func = &kernel.func;
    let fail = |what: &str| Err(Error::unsupported(&kernel.name, what));
    let (KernelKind::ScatterAdd { rows }, Tiling::Rows { rows_per_task }) = (kernel.kind, kernel.tiling) else {
        return fail("a kernel of another kind or tiling than scatter_add");
    };
    let body = &func.regions[func.body];
    let op = &func.ops[only(kernel, Opcode::ScatterAdd)?];
    let operand = |i: usize| pointer(func, func.through_reshapes(op.operands[i]));
    let (Some(base), Some(ids), Some(terms)) = (operand(0), operand(1), operand(2)) else {
        return fail("operands that are computed");
    };
    let table = func.ty(op.operands[0]);
    if body.yields != op.results || table.shape[0] != rows || rows_per_task == 0 {
        return fail("a scatter_add of another form than its kind says");
    }
    let (columns, count) = (table.last(), func.ty(op.operands[1]).elements());
    let result = func.args.len();
    let mut e = Emitter::new(&kernel.name, result + 1, cpu.lanes);
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
