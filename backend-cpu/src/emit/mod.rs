//! Text emission: the MLIR builder, vector mathematics, and code for row operations.
mod columns;
pub mod elementwise;
pub mod emitter;
mod epilogue;
pub mod math;
#[cfg(test)]
mod math_tests;
pub mod rope;
mod row;
mod rowgraph;
pub mod rowops;
pub mod vectors;

pub use columns::ColumnProgram;
pub use emitter::{Cmp, Elem, Emitter, Ty, Val};
pub use epilogue::ElementEpilogue;
pub use rowops::{RowProgram, RowTarget};

/// Why no code could be generated for a kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel has a form that this back end has no code for.
    #[error("kernel {kernel}: {what} is not supported on this target")]
    Unsupported {
        /// Name of the kernel.
        kernel: String,
        /// What about it.
        what: String,
    },
}

impl Error {
    /// An unsupported form of a kernel.
    pub fn unsupported(kernel: &str, what: impl Into<String>) -> Error {
        Error::Unsupported { kernel: kernel.into(), what: what.into() }
    }
}
