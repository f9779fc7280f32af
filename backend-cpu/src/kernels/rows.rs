//! Row operations without a matmul.
//!
//! Algorithm: each row is computed by itself in the sweeps that [`RowProgram`] plans; a task is a run of rows. Tiling:
//! none but vectors, since a row and its intermediate values stay in the first-level cache. Bound: memory for
//! elementwise chains and norms (each argument is read once, each result written once), division and polynomials for
//! activations.
use crate::emit::{Emitter, Error, RowProgram};
use rdc_ir::ValueId;
use rdc_ir::program::{Kernel, KernelKind, Tiling};
use rdc_passes::tile::Cpu;

/// The rows, rows per task and results of a kernel.
fn form(kernel: &Kernel) -> Result<(usize, usize, Vec<ValueId>), Error> {
    let func = &kernel.func;
    let (KernelKind::Rows { rows }, Tiling::Rows { rows_per_task }) = (kernel.kind, kernel.tiling) else {
        return Err(Error::unsupported(&kernel.name, "a kernel of another kind or tiling than rows"));
    };
    let yields = func.regions[func.body].yields.clone();
    if rows_per_task == 0 || yields.iter().any(|&v| func.ty(v).cache) {
        return Err(Error::unsupported(&kernel.name, "a cache or an empty task among rows"));
    }
    Ok((rows, rows_per_task, yields))
}

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel) -> Result<String, Error> {
    let (rows, rows_per_task, results) = form(kernel)?;
    let program = RowProgram::new(kernel, rows, &results)?.in_tasks(rows_per_task)?;
    let arguments = kernel.func.args.len();
    let mut e = Emitter::new(&kernel.name, arguments + results.len(), cpu.lanes);
    e.items(rows_per_task, rows, |e, row| {
        let to: Vec<_> = (0..results.len()).map(|i| program.row_of(e, i, arguments + i, row)).collect();
        program.emit(e, row, &to, e.scratch);
    });
    Ok(e.finish())
}

/// Bytes of scratch per thread.
pub fn scratch(kernel: &Kernel) -> usize {
    form(kernel).and_then(|(rows, _, results)| Ok(RowProgram::new(kernel, rows, &results)?.scratch())).unwrap_or(0)
}
