//! IR → IR and IR → `Program`.
pub mod options;

pub use options::{Error, Options, WeightType};
