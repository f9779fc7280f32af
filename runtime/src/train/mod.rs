//! Training: depths, schedule, optimiser, batches and checkpoints around a compiled `grad` and `update`.
mod batch;
mod config;
mod optimizer;
mod recurrence;
mod schedule;

pub use batch::{Batch, Batches, IGNORED, Rows};
pub use config::{Bytes, CheckpointConfig, Config, ModelConfig, Remat, TrainConfig, ValidateConfig};
pub use optimizer::{Hyper, Optimizer, OptimizerKind};
pub use recurrence::{Depth, Kind, Recurrence};
pub use schedule::{Schedule, Shape, Span};
