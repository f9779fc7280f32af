//! The runtime: reads and writes artifacts (`.rda`) and runs their schedules. It links neither LLVM nor MLIR.
//!
//! - [`artifact`]: the file: [`artifact::write`], [`artifact::Artifact::open`]. The format is in docs/artifact.md.
//! - [`checkpoint`], [`weights`], [`random`]: where the bytes of weights come from: safetensors or initialisers, through
//!   the recipes of [`rdc_ir::program::WeightSource`].
//! - [`model`]: a program with its code and weights, ready to run.
//! - [`exec`]: every thread walks an entry's schedule; [`threads`] and [`barrier`] are what they walk and meet with.
//! - [`Session`]: runs a sequence, chunk by chunk, from named tensors to named tensors.
//! - [`train`]: the loop around the compiled gradient and optimiser: depths, schedules, checkpoints.
//! - [`profile`], [`probe`]: time per kernel, and the machine's ceilings to hold it against.
//!
//! # Floating point
//! Threads run with the processor's default environment: round to nearest even, denormal numbers are kept (neither flushed
//! nor treated as zero), exceptions masked. NaN and infinities go through kernels as IEEE 754 says and are written to the
//! outputs as they are; the runtime neither looks for them nor stops at them.
//!
//! # Unsafe code
//! It lives in [`memory`], [`code`], [`threads`], [`probe`] and [`exec`]'s `walk`, each of which states its invariant. Kernels are
//! native code and are trusted: see the trust model in docs/artifact.md.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod artifact;
pub mod barrier;
pub mod checkpoint;
pub mod code;
pub mod data;
mod error;
pub mod exec;
pub mod memory;
pub mod model;
pub mod probe;
pub mod profile;
pub mod random;
mod session;
pub mod tensor;
pub mod threads;
pub mod train;
mod validate;
pub mod weights;

pub use error::Error;
pub use session::{KvState, RunOptions, RunOutput, Session, SessionOptions};
pub use tensor::{Tensor, TensorMap};
