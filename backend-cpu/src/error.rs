//! What can go wrong in the back end.

/// An error of the back end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No target has that name.
    #[error("unknown target `{name}`; the targets are {}", crate::TARGETS.join(", "))]
    UnknownTarget {
        /// The name given.
        name: String,
    },
    /// This machine lacks what the back end needs for `native`.
    #[error("this machine cannot run generated code: {reason}")]
    UnsupportedHost {
        /// What is missing.
        reason: String,
    },
    /// There is no kernel of that index.
    #[error("the program has {count} kernels; there is no kernel {index}")]
    NoSuchKernel {
        /// The index given.
        index: usize,
        /// Kernels in the program.
        count: usize,
    },
    /// A kernel has a form that no family has code for.
    #[error(transparent)]
    Emit(#[from] crate::emit::Error),
    /// MLIR or LLVM rejected the code of a kernel; a mistake of this back end.
    #[error("kernel {kernel}: {stage} failed: {message}")]
    Lowering {
        /// The kernel's name.
        kernel: String,
        /// Which step failed.
        stage: &'static str,
        /// What the library said.
        message: String,
    },
    /// An object cannot be laid out into an image.
    #[error("kernel {kernel}: {message}")]
    Layout {
        /// The kernel's name.
        kernel: String,
        /// Why.
        message: String,
    },
}
