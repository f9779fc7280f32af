//! The CPU back end: kernels of an [`rdc_ir::program::Program`] to machine code.
//!
//! Each kernel becomes the text of an MLIR module with one function ([`kernels`], written with [`emit`]), in the dialects
//! `scf`, `arith`, `vector` and `llvm`. The module is parsed, verified and lowered to the LLVM dialect, translated in
//! process to an LLVM module, optimised and turned into an object in memory ([`compile`]). The objects are laid out into
//! one flat position-independent [`CodeImage`] without external symbols. No temporary file is written and no linker runs.
//!
//! The calling convention of a kernel is that of [`rdc_ir::program`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod compile;
pub mod emit;
mod error;
pub mod kernels;
mod target;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use compile::{CodeImage, Options, Progress, Stage, Symbol, compile, emit_stage};
pub use error::Error;
pub use kernels::scratch_bytes;
pub use target::{Isa, TARGETS, Target, target};
