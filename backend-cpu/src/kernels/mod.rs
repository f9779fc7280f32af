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
use rdc_ir::program::{Kernel, KernelKind, Target};
use rdc_ir::{DType, Opcode};

/// Rows up to which a matmul is bound by reading its weight and goes to [`gemv`].
const GEMV_ROWS: usize = 4;

/// The MLIR module of a kernel: one function of the kernel's name, in the calling convention of [`rdc_ir::program`].
///
/// # Errors
/// [`Error::Unsupported`] if the kernel has a form that its family has no code for.
pub fn mlir(target: &Target, kernel: &Kernel) -> Result<String, Error> {
    if kernel.kind != KernelKind::Generic && multiplies_bf16(kernel) {
        return Err(Error::unsupported(&kernel.name, "products of bf16 operands"));
    }
    match kernel.kind {
        KernelKind::Matmul { m, .. } if m <= GEMV_ROWS => gemv::emit(target, kernel),
        KernelKind::Matmul { .. } => matmul::emit(target, kernel),
        KernelKind::Rows { .. } => rows::emit(target, kernel),
        KernelKind::KvWrite { .. } => kv_write::emit(target, kernel),
        KernelKind::Attention { .. } => attention::emit(target, kernel),
        KernelKind::AttentionGrad { .. } => attention_grad::emit(target, kernel),
        KernelKind::DecodeAttention => decode_attention::emit(target, kernel),
        KernelKind::Generic => generic::emit(target, kernel),
        KernelKind::Product { .. } => product::emit(target, kernel),
        KernelKind::Pack { .. } => pack::emit(target, kernel),
        KernelKind::Columns { .. } => columns::emit(target, kernel),
        KernelKind::ScatterAdd { .. } => scatter_add::emit(target, kernel),
    }
}

/// Whether a product has a left operand in bf16. (Attention refuses queries that are no chain of f32.)
fn multiplies_bf16(kernel: &Kernel) -> bool {
    let products = kernel.func.ops.values().filter(|op| matches!(op.opcode, Opcode::Matmul | Opcode::PackedMatmul));
    products.into_iter().any(|op| kernel.func.ty(op.operands[0]).dtype == DType::BF16)
}

/// Bytes of scratch that a thread needs for a kernel ([`Kernel::scratch`]); 0 for one that [`mlir`] refuses.
pub fn scratch_bytes(kernel: &Kernel, target: &Target) -> usize {
    match kernel.kind {
        KernelKind::Matmul { m, .. } if m <= GEMV_ROWS => gemv::scratch(kernel, target).unwrap_or(0),
        KernelKind::Matmul { .. } => matmul::scratch(kernel, target).unwrap_or(0),
        KernelKind::Rows { .. } => rows::scratch(kernel),
        KernelKind::Attention { .. } => attention::scratch(kernel, target),
        KernelKind::AttentionGrad { .. } => attention_grad::scratch(kernel, target),
        KernelKind::DecodeAttention => decode_attention::scratch(kernel, target),
        KernelKind::Generic => generic::scratch(kernel),
        KernelKind::Product { .. } => product::scratch(kernel, target).unwrap_or(0),
        KernelKind::Columns { .. } => columns::scratch(kernel).unwrap_or(0),
        KernelKind::Pack { .. } | KernelKind::ScatterAdd { .. } | KernelKind::KvWrite { .. } => 0,
    }
}
