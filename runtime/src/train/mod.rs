//! Training: depths, schedule, optimiser, batches and checkpoints around a compiled `grad` and `update`.
//!
//! [`Run`] is a whole run under a [`Config`]; [`Trainer`] is a model's compiled functions by themselves. Whatever is random is a
//! function of (seed, step), and kernels cut their work independently of the threads: a run that is resumed, or has another
//! number of threads, is the same bit for bit.
mod batch;
mod config;
mod flops;
mod metrics;
mod optimizer;
mod recurrence;
mod run;
mod schedule;
pub mod state;
mod trainer;

pub use batch::{Batch, Batches, Rows};
pub use config::{Bytes, CheckpointConfig, Config, ModelConfig, TrainConfig, ValidateConfig};
pub use optimizer::{Hyper, Optimizer};
pub use recurrence::{Depth, Kind, Recurrence};
pub use run::{Event, METRICS, Parts, Run, Summary};
pub use schedule::{Schedule, Shape, Span};
pub use trainer::{Draw, StepOutput, Trainer};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
