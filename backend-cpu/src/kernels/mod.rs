//! Code generation, one file per kernel family of [`KernelKind`].
mod anchor;
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
use rdc_ir::program::{Kernel, KernelKind, Tiling};
use rdc_passes::tile::Cpu;

/// The MLIR module of a kernel: one function of the kernel's name, in the calling convention of [`rdc_ir::program`].
///
/// # Errors
/// [`Error::Unsupported`] if the kernel has a form that its family has no code for.
pub fn mlir(cpu: &Cpu, kernel: &Kernel) -> Result<String, Error> {
    match kernel.kind {
        KernelKind::Matmul { .. } if is_gemv(kernel) => gemv::emit(cpu, kernel),
        KernelKind::Matmul { .. } => matmul::emit(cpu, kernel),
        KernelKind::Rows { .. } => rows::emit(cpu, kernel),
        KernelKind::KvWrite { .. } => kv_write::emit(cpu, kernel),
        KernelKind::Attention { .. } => attention::emit(cpu, kernel),
        KernelKind::AttentionGrad { .. } => attention_grad::emit(cpu, kernel),
        KernelKind::DecodeAttention { .. } => decode_attention::emit(cpu, kernel),
        KernelKind::Generic => generic::emit(cpu, kernel),
        KernelKind::Product { .. } => product::emit(cpu, kernel),
        KernelKind::Pack { .. } => pack::emit(cpu, kernel),
        KernelKind::Columns { .. } => columns::emit(cpu, kernel),
        KernelKind::ScatterAdd { .. } => scatter_add::emit(cpu, kernel),
    }
}

/// Bytes of scratch that a thread needs for a kernel ([`Kernel::scratch`]); 0 for one that [`mlir`] refuses.
pub fn scratch_bytes(kernel: &Kernel, cpu: &Cpu) -> usize {
    match kernel.kind {
        KernelKind::Matmul { .. } if is_gemv(kernel) => gemv::scratch(kernel, cpu).unwrap_or(0),
        KernelKind::Matmul { .. } => matmul::scratch(kernel, cpu).unwrap_or(0),
        KernelKind::Rows { .. } => rows::scratch(kernel),
        KernelKind::Attention { .. } => attention::scratch(kernel, cpu),
        KernelKind::AttentionGrad { .. } => attention_grad::scratch(kernel, cpu),
        KernelKind::DecodeAttention { .. } => decode_attention::scratch(kernel, cpu),
        KernelKind::Generic => generic::scratch(kernel),
        KernelKind::Product { .. } => product::scratch(kernel, cpu).unwrap_or(0),
        KernelKind::Columns { .. } => columns::scratch(kernel).unwrap_or(0),
        KernelKind::Pack { .. } | KernelKind::ScatterAdd { .. } | KernelKind::KvWrite { .. } => 0,
    }
}

/// Whether panels of a matmul's weight are read from one end to the other, each once.
fn is_gemv(kernel: &Kernel) -> bool {
    matches!(kernel.tiling, Tiling::Panels { .. })
}
