//! From the flags of training, and a configuration, to what a text is compiled for.
use crate::cli::{OptimizerFlag, RematFlag, TrainFlags};
use crate::pipeline::Training;
use anyhow::{Result, ensure};
use rdc_passes::Remat;
use rdc_passes::optimizer::Optimizer;
use rdc_runtime::train::{self, Config, OptimizerKind};

/// Iterations with gradient unless something says otherwise: the paper's.
const GRAD_STEPS: usize = 8;
/// Memory for `auto` unless --memory says otherwise.
const MEMORY: usize = 4_000_000_000;

/// What the flags ask for, for `grad_steps` iterations with gradient at least.
pub fn of_flags(flags: &TrainFlags, grad_steps: Option<usize>) -> Result<Training> {
    let memory = flags.memory.map(|m| m.0 as usize);
    let remat = match (flags.remat, memory) {
        (Some(RematFlag::Auto), memory) => Remat::Auto { memory: memory.unwrap_or(MEMORY) },
        (None, Some(memory)) => Remat::Auto { memory },
        (Some(RematFlag::None) | None, None) => Remat::None,
        (Some(RematFlag::Iteration), None) => Remat::Iteration,
        (Some(_), Some(_)) => anyhow::bail!("--memory belongs to --remat auto"),
    };
    Ok(Training {
        losses: flags.loss.iter().cloned().collect(),
        seq: None,
        max_grad_steps: flags.max_grad_steps.or(grad_steps).unwrap_or(GRAD_STEPS).max(grad_steps.unwrap_or(1)),
        remat,
        optimizer: Some(match flags.optimizer.unwrap_or(OptimizerFlag::AdamW) {
            OptimizerFlag::AdamW => Optimizer::AdamW,
            OptimizerFlag::EllisAdam => Optimizer::EllisAdam,
        }),
        accumulate: flags.accumulate.is_some_and(|n| n > 1),
        freeze: flags.freeze.clone(),
        evaluate: true,
    })
}

/// What a configuration asks for.
pub fn of_config(config: &Config) -> Result<Training> {
    let train = &config.train;
    let memory = train.memory.map(|m| m.0 as usize);
    let remat = match train.remat {
        train::Remat::None => Remat::None,
        train::Remat::Iteration => Remat::Iteration,
        train::Remat::Auto => Remat::Auto { memory: memory.unwrap_or(MEMORY) },
    };
    ensure!(memory.is_none() || train.remat == train::Remat::Auto, "train.memory belongs to train.remat = \"auto\"");
    Ok(Training {
        losses: config.model.loss.iter().cloned().collect(),
        seq: Some(train.seq),
        max_grad_steps: config.recurrence.max_grad().max(1),
        remat,
        optimizer: Some(match config.optimizer.kind {
            OptimizerKind::Adamw => Optimizer::AdamW,
            OptimizerKind::EllisAdam => Optimizer::EllisAdam,
        }),
        accumulate: train.accumulate > 1,
        freeze: config.model.freeze.clone(),
        evaluate: true,
    })
}
