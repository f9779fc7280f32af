//! Training: depths, schedule, optimiser, batches and checkpoints around a compiled `grad` and `update`.
mod batch;

pub use batch::{Batch, Batches, IGNORED};
