//! Sums over all rows, for the gradients of what is added to or multiplied with every row.
//!
//! Algorithm: a task is a range of columns. It goes through the rows in order, a few at a time, and adds each row's terms to
//! sums in scratch, which stay in the first-level cache; elementwise operations on the sums follow ([`ColumnProgram`]). The
//! sum of a single column is one row's reduction ([`RowProgram`]). The order of additions depends on the shape only. Bound:
//! memory; every argument is read once.
use super::matmul::bounded;
use crate::emit::{ColumnProgram, Emitter, Error, RowProgram};
use rdc_ir::ValueId;
use rdc_ir::program::{Kernel, KernelKind, Tiling};
use rdc_passes::tile::Cpu;

/// How the sums of a kernel are computed.
enum Program<'k> {
    /// Of one column.
    One(RowProgram<'k>),
    /// Of several, so many per task.
    Several(ColumnProgram<'k>, usize, usize),
}

fn program(kernel: &Kernel) -> Result<(Program<'_>, Vec<(ValueId, usize)>), Error> {
    let func = &kernel.func;
    let (KernelKind::Columns { rows, columns }, Tiling::Columns { columns_per_task }) = (kernel.kind, kernel.tiling)
    else {
        return Err(Error::unsupported(&kernel.name, "a kernel of another kind or tiling than columns"));
    };
    if rows == 0 || columns == 0 || columns_per_task == 0 {
        return Err(Error::unsupported(&kernel.name, "an empty task among columns"));
    }
    let first = func.args.len();
    let yields = func.regions[func.body].yields.iter();
    let results: Vec<(ValueId, usize)> = yields.enumerate().map(|(i, &v)| (v, first + i)).collect();
    if columns == 1 {
        let targets: Vec<ValueId> = results.iter().map(|r| r.0).collect();
        return Ok((Program::One(RowProgram::new(kernel, 1, &targets)?), results));
    }
    let sums = ColumnProgram::new(kernel, (rows, columns), &results)?;
    Ok((Program::Several(sums, columns, columns_per_task.min(columns)), results))
}

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel) -> Result<String, Error> {
    let (program, results) = program(kernel)?;
    let first = kernel.func.args.len();
    let mut e = Emitter::new(&kernel.name, first + results.len(), cpu.lanes);
    e.tasks(|e, task| match &program {
        Program::One(sum) => {
            let to: Vec<_> = results.iter().map(|r| e.arg(r.1)).collect();
            sum.emit(e, task, &to, e.scratch);
        }
        Program::Several(sums, columns, per_task) => {
            let first = e.mul_const(task, *per_task);
            let count = bounded(e, first, *per_task, *columns);
            sums.emit(e, first, count, *per_task);
        }
    });
    Ok(e.finish())
}

/// Bytes of scratch per thread.
pub fn scratch(kernel: &Kernel) -> Result<usize, Error> {
    Ok(match program(kernel)?.0 {
        Program::One(sum) => sum.scratch(),
        Program::Several(sums, _, per_task) => sums.scratch(per_task),
    })
}
