//! Code generation, one file per kernel family of [`KernelKind`].
mod attention;
mod attention_grad;
#[cfg(test)]
mod attention_grad_tests;
#[cfg(test)]
mod attention_tests;
mod attention_tile;
mod columns;
mod decode_attention;
mod gemv;
mod generic;
#[cfg(test)]
mod generic_tests;
mod generic_view;
mod heads;
mod kv_write;
mod matmul;
mod matmul_form;
mod matmul_rowops;
#[cfg(test)]
mod matmul_tests;
mod matmul_weights;
mod micro;
#[cfg(test)]
mod oracle;
mod pack;
mod panels;
#[cfg(test)]
mod pitch_tests;
mod product;
#[cfg(test)]
mod product_tests;
#[cfg(test)]
mod row_epilogue_tests;
mod rows;
#[cfg(test)]
mod rows_tests;
mod scatter_add;
#[cfg(test)]
mod training_tests;

use crate::emit::Error;
use rdc_ir::program::rows::Stored;
use rdc_ir::program::{Kernel, KernelKind, Tiling};
use rdc_passes::tile::Cpu;

/// The MLIR module of a kernel: one function of the kernel's name, in the calling convention of [`rdc_ir::program`].
///
/// # Errors
/// [`Error::Unsupported`] if the kernel has a form or a tiling that its family has no code for.
pub fn mlir(cpu: &Cpu, kernel: &Kernel) -> Result<String, Error> {
    match &kernel.kind {
        KernelKind::Matmul(body) if matches!(kernel.tiling, Tiling::Panels { .. }) => gemv::emit(cpu, kernel, body),
        KernelKind::Matmul(body) => matmul::emit(cpu, kernel, body),
        KernelKind::Rows(body) => rows::emit(cpu, kernel, body),
        KernelKind::KvWrite(body) => kv_write::emit(cpu, kernel, body),
        KernelKind::Attention(body) => attention::emit(cpu, kernel, body),
        KernelKind::AttentionGrad(body) => attention_grad::emit(cpu, kernel, body),
        KernelKind::DecodeAttention(body) => decode_attention::emit(cpu, kernel, body),
        KernelKind::Generic(body) => generic::emit(cpu, kernel, body),
        KernelKind::Product(body) => product::emit(cpu, kernel, body),
        KernelKind::Pack(body) => pack::emit(cpu, kernel, body),
        KernelKind::Columns(body) => columns::emit(cpu, kernel, body),
        KernelKind::ScatterAdd(body) => scatter_add::emit(cpu, kernel, body),
    }
}

/// Bytes of scratch that a thread needs for a kernel ([`Kernel::scratch`]); 0 for one that [`mlir`] refuses.
pub fn scratch_bytes(kernel: &Kernel, cpu: &Cpu) -> usize {
    let bytes = match &kernel.kind {
        KernelKind::Matmul(body) if matches!(kernel.tiling, Tiling::Panels { .. }) => gemv::scratch(kernel, body, cpu),
        KernelKind::Matmul(body) => matmul::scratch(kernel, body, cpu),
        KernelKind::Rows(body) => Ok(rows::program(kernel, body).scratch()),
        KernelKind::Attention(body) => attention::scratch(kernel, body, cpu),
        KernelKind::AttentionGrad(body) => attention_grad::scratch(kernel, body, cpu),
        KernelKind::DecodeAttention(body) => Ok(decode_attention::scratch(body, cpu)),
        KernelKind::Generic(body) => Ok(generic::scratch(kernel, body)),
        KernelKind::Product(body) => product::scratch(kernel, body, cpu),
        KernelKind::Columns(body) => columns::scratch(kernel, body),
        KernelKind::Pack(_) | KernelKind::ScatterAdd(_) | KernelKind::KvWrite(_) => Ok(0),
    };
    bytes.unwrap_or(0)
}

/// That there is no code for a kernel.
fn unsupported<T>(kernel: &Kernel, what: &str) -> Result<T, Error> {
    Err(Error::unsupported(&kernel.name, what))
}

/// Checks that tasks of so many of `rows` rows begin with a block of every result that sums blocks.
fn whole_blocks(kernel: &Kernel, results: &[Stored], (rows_per_task, rows): (usize, usize)) -> Result<(), Error> {
    let cut = results.iter().filter_map(|stored| stored.block).find(|&block| !rows_per_task.is_multiple_of(block));
    match cut.filter(|_| rows_per_task < rows) {
        Some(block) => unsupported(kernel, &format!("sums of {block} rows in tasks of {rows_per_task}")),
        None => Ok(()),
    }
}
