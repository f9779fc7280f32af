//! What a caller can choose, and what can go wrong.
use crate::optimizer;
use crate::tile::Machine;
use rdc_ir::Loc;
use rdc_ir::training::Remat;
use std::sync::Arc;

/// How weights are stored. Arithmetic is in f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WeightType {
    /// As they are.
    #[default]
    F32,
    /// Every parameter is rounded to bf16. Matmul weights and tables are stored as bf16, the rest widened again.
    Bf16,
    /// Matmul weights, and tables that share one, are int8 with a scale per row of the whole parameter; the rest stays f32.
    I8,
}

/// Options of the pipeline.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of the target, which the program keeps.
    pub target: String,
    /// The machine that code will be generated for.
    pub machine: Arc<dyn Machine>,
    /// How weights are stored.
    pub dtype: WeightType,
    /// How often a loop is expected to run: work inside it weighs this many times as much as work outside.
    pub expected_trips: usize,
    /// If set, the module's losses are compiled for training.
    pub training: Option<Training>,
}

/// How a module is compiled for training: `grad.NAME` for each `loss.NAME`.
#[derive(Clone, Debug)]
pub struct Training {
    /// The largest number of iterations with gradient.
    pub max_grad_steps: usize,
    /// What is kept for the backward pass.
    pub remat: Remat,
    /// The bytes that weights and the largest arena may take with [`Remat::Auto`]; without, there is no limit.
    pub memory: Option<usize>,
    /// The optimiser's functions, if they are wanted; they leave out `frozen` too.
    pub optimizer: Option<optimizer::Options>,
    /// Names of the parameters that get no gradient and are not updated.
    pub frozen: Vec<String>,
    /// Whether the losses without gradient stay in the module, for evaluation.
    pub losses: bool,
}

/// Why no program came out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The module breaks a rule of the IR. After a pass this is a mistake of the compiler.
    #[error("the module is not valid after {pass}: {details}")]
    Invalid {
        /// The pass that ran last; `lower` if none did.
        pass: &'static str,
        /// What the verifier says, one line per error.
        details: String,
    },
    /// The module is valid, but cannot be compiled.
    #[error("{message}")]
    Unsupported {
        /// What cannot be compiled and why.
        message: String,
        /// Where the model text says it (line 0 if unknown).
        loc: Loc,
    },
}
