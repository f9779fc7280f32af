//! IR → IR and IR → `Program`.
//!
//! [`pipeline`] holds the order of the passes; each pass has a module of its own name whose documentation says what it does and
//! why that is right.
mod analysis;
pub mod cse;
pub mod dce;
pub mod differentiate;
pub mod expand;
pub mod fuse;
pub mod hoist;
pub mod layout;
pub mod optimizer;
pub mod options;
pub mod pipeline;
pub mod plan;
mod rewrite;
pub mod simplify;
pub mod tile;
pub mod uses;
pub mod weights;

pub use options::{Error, Options, Training, WeightType};
pub use pipeline::{Observer, POINTS, Stage, TRAINING_POINTS, compile, optimise};
