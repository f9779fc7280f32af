//! Sums over all rows, for the gradients of what is added to or multiplied with every row.
//!
//! Algorithm: a task is a range of columns. It goes through the rows in order, a few at a time, and adds each row's terms to
//! sums in scratch, which stay in the first-level cache; elementwise operations on the sums follow ([`ColumnProgram`]). The order of
//! additions depends on the shape only. Bound: memory; every argument is read once.
use super::matmul::bounded;
use super::unsupported;
use crate::emit::{ColumnProgram, Emitter, Error};
use rdc_ir::program::body::Columns;
use rdc_ir::program::{Kernel, Tiling};
use rdc_passes::tile::Cpu;

/// Columns of a task.
fn per_task(kernel: &Kernel, body: &Columns) -> Result<usize, Error> {
    match kernel.tiling {
        Tiling::Columns { columns_per_task: columns @ 1.. } => Ok(columns.min(body.columns)),
        _ => unsupported(kernel, "column sums that are cut otherwise than into columns"),
    }
}

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, body: &Columns) -> Result<String, Error> {
    let per_task = per_task(kernel, body)?;
    let sums = ColumnProgram::new(kernel, body);
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    e.tasks(|e, task| {
        let first = e.mul_const(task, per_task);
        let count = bounded(e, first, per_task, body.columns);
        sums.emit(e, first, count, per_task);
    });
    Ok(e.finish())
}

/// Bytes of scratch per thread.
pub fn scratch(kernel: &Kernel, body: &Columns) -> Result<usize, Error> {
    Ok(ColumnProgram::new(kernel, body).scratch(per_task(kernel, body)?))
}
