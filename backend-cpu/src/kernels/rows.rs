//! Row operations without a matmul.
//!
//! Algorithm: each row is computed by itself in the sweeps that [`RowProgram`] plans; a task is a run of rows. Tiling:
//! none but vectors, since a row and its intermediate values stay in the first-level cache. Bound: memory for
//! elementwise chains and norms (each argument is read once, each result written once), division and polynomials for
//! activations.
use super::{unsupported, whole_blocks};
use crate::emit::{Emitter, Error, RowProgram, RowTarget};
use rdc_ir::program::body::Rows;
use rdc_ir::program::{Kernel, Tiling};
use rdc_passes::tile::Cpu;

/// The plan of the rows of a kernel.
pub fn program<'k>(kernel: &'k Kernel, body: &'k Rows) -> RowProgram<'k> {
    let targets: Vec<RowTarget> = body.results.iter().map(RowTarget::from).collect();
    RowProgram::new(kernel, &body.graph, &targets)
}

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, body: &Rows) -> Result<String, Error> {
    let rows = body.graph.rows;
    let rows_per_task = match kernel.tiling {
        Tiling::Rows { rows_per_task: 1.. } | Tiling::Whole => kernel.tiling.rows_per_task(rows),
        _ => return unsupported(kernel, "row operations that are cut otherwise than into rows"),
    };
    whole_blocks(kernel, &body.results, (rows_per_task, rows))?;
    let program = program(kernel, body);
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    e.items(rows_per_task, rows, |e, row| {
        let to: Vec<_> =
            body.results.iter().enumerate().map(|(i, stored)| program.row_of(e, i, stored.pointer, row)).collect();
        program.emit(e, row, &to, e.scratch);
    });
    Ok(e.finish())
}
